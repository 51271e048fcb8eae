//! What the program says of stores that another version left.

use std::process::{Command, Output};

use super::stores::{Folder, ONE};
use leveret::store::{Disk, FileDisk};

#[test]
fn a_newer_version_is_refused_with_a_sentence_and_left_alone() {
    let folder = Folder::newer("refused");
    let before = folder.files();
    let output = run(&["serve", "--listen", "127.0.0.1:0", "--data-dir", folder.name()]);
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("was written by a newer version of Leveret; run that one"), "{said}");
    let output = run(&["upgrade-store", folder.name()]);
    assert!(!output.status.success() && output.stdout.is_empty());
    assert_eq!(folder.files(), before);
}

#[test]
fn the_command_upgrades_once_says_what_that_means_and_needs_a_store_that_nobody_has() {
    let folder = Folder::new("upgrade", ONE);
    let refused = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let mut broker = FileDisk::new(&folder.0);
    broker.lock().expect("nobody has it");
    let before = folder.files();
    let output = run(&["upgrade-store", folder.name()]);
    assert!(!output.status.success() && refused(&output).contains("a broker has it; stop that first"));
    assert_eq!(folder.files(), before);
    drop(broker);
    let output = run(&["upgrade-store", folder.name()]);
    assert!(output.status.success(), "{}", refused(&output));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("was of format 1 and is of format 2 now"), "{said}");
    let after = folder.files();
    let output = run(&["upgrade-store", folder.name()]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && said.contains("there is nothing to do"), "{said}");
    assert_eq!(folder.files(), after);
    assert_eq!(run(&["inspect", folder.name()]).status.code(), Some(0));
    let output = run(&["upgrade-store", "/nowhere/at/all"]);
    assert!(!output.status.success() && refused(&output).contains("/nowhere/at/all"));
    let empty = Folder::new("empty", "");
    let output = run(&["upgrade-store", empty.name()]);
    assert!(!output.status.success() && refused(&output).contains("there is no store in it"));
    assert!(empty.files().is_empty());
}

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_leveret")).args(arguments).output().expect("it runs")
}
