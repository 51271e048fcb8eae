//! Tests of the program with stores of other versions.

use std::process::{Command, Output};

use leveret_test_support::store_formats::{Folder, ONE};

#[test]
fn a_newer_version_is_refused_with_a_sentence_and_left_alone() {
    let folder = Folder::newer("refused");
    let before = folder.files();
    let output = run(&["serve", "--listen", "127.0.0.1:0", "--data-dir", folder.name()]);
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("was written by a newer version of Leveret; run that one"), "{said}");
    assert_eq!(folder.files(), before);
}

#[test]
fn an_older_version_is_refused_with_a_sentence_that_says_what_to_do_and_left_alone() {
    let folder = Folder::new("older", ONE);
    let before = folder.files();
    for arguments in
        [&["serve", "--listen", "127.0.0.1:0", "--data-dir", folder.name()][..], &["inspect", folder.name()]]
    {
        let output = run(arguments);
        assert!(!output.status.success());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("store format 1") && said.contains("leveret upgrade-store"), "{said}");
    }
    assert_eq!(folder.files(), before);
}

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_leveret")).args(arguments).output().expect("it runs")
}
