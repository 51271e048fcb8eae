//! The program as a person at a prompt meets it: what it prints, its exit code, and that it touches nothing.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::SystemTime;

use leveret_storage::Log;

use super::read_line;
use super::traffic::{Directory, Sent, Traffic};
use leveret_test_support::built_program;

fn run(arguments: &[&str]) -> Output {
    built_program::leveret().args(arguments).output().expect("the built binary runs")
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("nothing kills it")
}

fn said(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// The one line on standard error of a run that must fail.
#[track_caller]
fn refusal(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert_eq!((code(&output), output.stdout.len()), (3, 0), "{output:?}");
    let line = said(&output.stderr);
    assert_eq!(line.lines().count(), 1, "{line}");
    line.trim_end().to_string()
}

/// Everything that a touch would change.
fn state(directory: &Path) -> BTreeMap<String, (SystemTime, Vec<u8>)> {
    let mut state = BTreeMap::new();
    for entry in fs::read_dir(directory).expect("it is there") {
        let path = entry.expect("it is there").path();
        let written = fs::metadata(&path).and_then(|found| found.modified()).expect("it is there");
        let bytes = fs::read(&path).expect("it can be read");
        state.insert(path.to_string_lossy().into_owned(), (written, bytes));
    }
    state
}

#[test]
fn exit_codes_say_what_was_found_and_nothing_is_touched() {
    let traffic = Traffic::aged(3, 3, 600);
    let files = traffic.files();
    let directory = Directory::with("program", &files);
    let path = directory.path().to_str().expect("UTF-8");
    let before = state(directory.path());
    let output = run(&["inspect", path, "--details", "--records", "--export", "-"]);
    assert_eq!(code(&output), 0, "{output:?}");
    assert_eq!(state(directory.path()), before, "only reading");
    let mut messages = BTreeMap::new();
    said(&output.stdout).lines().for_each(|line| read_line(line, &mut messages));
    assert!(messages.iter().all(|(place, message)| traffic.sent.get(place) == Some(message)));
    let report = said(&output.stderr);
    for word in ["store", "broker", "log", "last", "segment", "queue", "queues", "defined"] {
        assert!(report.lines().any(|line| line.starts_with(&format!("{word} "))), "{word}:\n{report}");
    }
    assert!(report.starts_with("verdict    good: everything is as it was written"), "{report}");
    let plain = run(&["inspect", path]);
    let plain = said(&plain.stdout);
    let has = |word: &str| plain.lines().any(|line| line.starts_with(word));
    assert!(has("queues ") && !has("segment "), "{plain}");

    let mut damaged = files;
    damaged.get_mut(&oldest_slot(&traffic)).expect("just seen")[4096 + 60] ^= 1;
    directory.fill(&damaged);
    let output = run(&["inspect", path]);
    assert_eq!(code(&output), 2, "{output:?}");
    let report = said(&output.stdout);
    assert!(report.contains("\ndamage     segment "), "{report}");
    assert!(report.starts_with("verdict    damaged: 1 parts"), "{report}");
}

/// The file of the oldest segment.
fn oldest_slot(traffic: &Traffic) -> u32 {
    let (log, _) = Log::read_only(&mut traffic.disk.clone()).expect("it is a store");
    log.index().segments().values().next().expect("it has one").slot
}

/// Makes a segment one of the next version of the format: what stands alike in all of them is right.
fn make_newer(bytes: &mut [u8]) {
    bytes[7] += 1;
    let length = u32::from_le_bytes(bytes[12..16].try_into().expect("four bytes")) as usize;
    let sum = crc32c::crc32c_append(crc32c::crc32c(&bytes[..8]), &bytes[12..length]);
    bytes[8..12].copy_from_slice(&sum.to_le_bytes());
}

#[test]
fn what_cannot_be_inspected_is_one_sentence_and_exit_code_3() {
    let mut files = Traffic::aged(4, 1, 100).files();
    let directory = Directory::with("cannot", &BTreeMap::new());
    let path = directory.path().to_str().expect("UTF-8");
    let none = "there is no store: no segment file (such as 00000000.seg)";
    assert_eq!(refusal(&["inspect", path]), format!("leveret: {path}: {none}"));
    let nowhere = format!("{path}/nowhere");
    assert!(refusal(&["inspect", &nowhere]).contains("the data directory cannot be read: No such file"));
    files.values_mut().filter(|bytes| bytes.starts_with(b"LEVERET")).for_each(|bytes| make_newer(bytes));
    directory.fill(&files);
    let newer = "the data directory was written by a newer version of Leveret; run that one";
    assert_eq!(refusal(&["inspect", path]), format!("leveret: {path}: {newer}"));
    assert!(refusal(&["inspect"]).starts_with("leveret: inspect: name the data directory"));
    assert!(refusal(&["inspect", path, "--exprot", "x"]).contains("did you mean --export?"));
    let output = run(&["inspect", "--help"]);
    assert!(output.status.success() && said(&output.stdout).contains("leveret inspect DIR"));
}

#[test]
fn an_export_goes_to_a_file_that_was_not_there() {
    let traffic = Traffic::aged(5, 2, 500);
    let directory = Directory::with("export", &traffic.files());
    let path = directory.path().to_str().expect("UTF-8");
    let file = directory.path().join("saved.json");
    let name = file.to_str().expect("UTF-8");
    let output = run(&["inspect", path, "--export", name]);
    assert_eq!(code(&output), 0, "{output:?}");
    let mut messages: BTreeMap<(u64, u64), Sent> = BTreeMap::new();
    fs::read_to_string(&file)
        .expect("it was written")
        .lines()
        .for_each(|line| read_line(line, &mut messages));
    let exported: u64 = said(&output.stdout)
        .lines()
        .find_map(|line| line.strip_prefix("exported   ")?.split(' ').next()?.parse().ok())
        .expect("it says how many");
    assert!(exported > 20 && messages.len() as u64 >= exported);
    let output = run(&["inspect", path, "--export", name]);
    assert_eq!(code(&output), 3, "{output:?}");
    assert!(said(&output.stderr).contains("exists already: name a new file"), "{output:?}");
}

#[test]
fn a_user_with_read_access_can_inspect_but_not_drop() {
    let traffic = Traffic::aged(7, 2, 500);
    let mut files = traffic.files();
    files.get_mut(&oldest_slot(&traffic)).expect("just seen")[4096 + 60] ^= 1;
    let directory = Directory::with("reading", &files);
    let path = directory.path();
    let allow =
        |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).expect("it is ours");
    for entry in fs::read_dir(path).expect("it is there") {
        allow(&entry.expect("it is there").path(), 0o444);
    }
    allow(path, 0o555);
    let run = |option: &str| {
        let mut command = built_program::leveret();
        command.arg("inspect").arg(path).arg(option);
        if fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0) {
            // The user nobody; root may read everything.
            command.uid(65534).gid(65534);
        }
        command.output()
    };
    let before = state(path);
    let output = run("--records");
    let after = state(path);
    allow(path, 0o755);
    // If only root can reach the binary, the user nobody cannot run it.
    let Ok(output) = output else { return };
    assert_eq!(code(&output), 2, "{output:?}");
    assert_eq!(after, before, "nothing was written");
}

#[test]
fn a_reader_that_leaves_is_no_trouble() {
    let directory = Directory::with("pipe", &Traffic::aged(6, 2, 500).files());
    let command = format!(
        "{} inspect {} --records | head -1",
        env!("CARGO_BIN_EXE_leveret"),
        directory.path().display()
    );
    let output = Command::new("sh").args(["-c", &command]).output().expect("a shell runs");
    assert!(output.stderr.is_empty() && output.stdout.starts_with(b"verdict "), "{output:?}");
}
