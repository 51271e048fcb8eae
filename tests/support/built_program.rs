//! The built program without the environment of the tests, and a temporary folder for each test.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Environment variables that change what the program does.
const READ_BY_THE_PROGRAM: [&str; 7] = [
    "RUST_LOG",
    "JOURNAL_STREAM",
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "STATE_DIRECTORY",
    "CREDENTIALS_DIRECTORY",
    "LEVERET_SOCKET",
];

/// Returns a timeout that only a hanging broker exceeds. `LEVERET_PATIENCE` multiplies it for busy machines.
/// Nothing is judged by it.
pub fn patience(seconds: u64) -> Duration {
    let factor = std::env::var("LEVERET_PATIENCE").map_or(Ok(1.0), |text| text.parse());
    Duration::from_secs(seconds).mul_f64(factor.expect("LEVERET_PATIENCE is a number"))
}

/// Returns a command that runs the built program.
///
/// Cargo puts it into the folder above the test programs. It builds it for tests of the package `leveret`; tests of other
/// packages need `cargo build` with the same profile before.
///
/// # Panics
/// Panics if the program is not there.
pub fn leveret() -> Command {
    let test = std::env::current_exe().expect("a test program has a path");
    let program = test.ancestors().nth(2).expect("it is in target/PROFILE/deps").join("leveret");
    assert!(program.exists(), "{} is missing: run cargo build --profile checked", program.display());
    without_test_environment(Command::new(program))
}

/// Removes the variables that the program reads from a command's environment.
pub fn without_test_environment(mut command: Command) -> Command {
    for name in READ_BY_THE_PROGRAM {
        command.env_remove(name);
    }
    command
}

/// A temporary folder, removed when this value is dropped.
#[derive(Debug)]
pub struct TempDir(PathBuf);

impl TempDir {
    /// Creates a folder whose name contains `test`.
    pub fn new(test: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("leveret-{test}-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).expect("the temporary folder can be written");
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
