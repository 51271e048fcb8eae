//! The program as a person at a prompt meets it: what it prints, and its exit code.
//!
//! Everything here runs the built binary. Always true of it: a mistake of the operator is one sentence on
//! standard error that names what to change, and exit code 1.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

fn leveret(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_leveret"));
    // What the surroundings say about logging and systemd is not what is tried here.
    for name in ["RUST_LOG", "JOURNAL_STREAM", "NOTIFY_SOCKET", "STATE_DIRECTORY"] {
        command.env_remove(name);
    }
    command.args(arguments).output().expect("the built binary runs")
}

/// The one line on standard error of a run that must fail.
#[track_caller]
fn refusal(arguments: &[&str]) -> String {
    let output = leveret(arguments);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(output.stdout, b"", "{output:?}");
    let said = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(said.lines().count(), 1, "{said}");
    said.trim_end().to_string()
}

/// A configuration file of its own for each test.
struct ConfigFile(PathBuf);

impl ConfigFile {
    fn new(test: &str, text: &str) -> Self {
        let path = std::env::temp_dir().join(format!("leveret-program-{}-{test}.toml", std::process::id()));
        fs::write(&path, text).expect("the temporary folder can be written");
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("UTF-8")
    }
}

impl Drop for ConfigFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[test]
fn version_and_help_go_to_standard_output() {
    let output = leveret(&["--version"]);
    assert!(output.status.success());
    assert_eq!(output.stdout, concat!("leveret ", env!("CARGO_PKG_VERSION"), "\n").as_bytes());
    let output = leveret(&["--help"]);
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stdout).contains("leveret check"));
    assert_eq!(output.stderr, b"");
}

#[test]
fn an_unknown_flag_is_answered_with_the_likely_one() {
    assert_eq!(
        refusal(&["--lisen", "127.0.0.1:0"]),
        "leveret: unknown option --lisen; did you mean --listen? (leveret --help lists what there is)"
    );
}

#[test]
fn an_unknown_key_names_file_line_and_the_likely_key() {
    let file = ConfigFile::new("key", "# ours\nmemory_limt = \"64MB\"\n");
    assert_eq!(
        refusal(&["--config", file.path()]),
        format!("leveret: {}, line 2: unknown key memory_limt; did you mean memory_limit?", file.path())
    );
}

#[test]
fn a_bad_size_names_file_line_and_key() {
    let file = ConfigFile::new("size", "memory_limit = \"64 elephants\"\n");
    let said = refusal(&["check", "--config", file.path()]);
    assert!(said.contains("line 1: memory_limit: \"64 elephants\" is not a size: write"), "{said}");
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let said = refusal(&["--config", "/no/such/leveret.toml"]);
    assert!(said.starts_with("leveret: cannot read /no/such/leveret.toml: No such file"), "{said}");
}

#[test]
fn an_unknown_board_lists_those_there_are() {
    let said = refusal(&["--board", "toaster"]);
    assert!(said.contains("unknown board toaster; there are generic, pi-zero-w, pi-4"), "{said}");
}
