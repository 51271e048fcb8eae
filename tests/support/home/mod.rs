//! A folder of its own for each broker that a test starts, gone with it, and nothing of the environment of
//! the tests that the broker would heed.

#![allow(dead_code, unreachable_pub, missing_docs, reason = "each test uses its part")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Variables that say to the program where it is, whom it is to tell, and how much.
const HEEDED: [&str; 7] = [
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

/// The built program. Cargo tells the tests of its own package where it is; it lies above those of other packages, once
/// it is built.
pub fn leveret() -> Command {
    let above = || Some(std::env::current_exe().ok()?.ancestors().nth(2)?.join("leveret"));
    let told = option_env!("CARGO_BIN_EXE_leveret").map(PathBuf::from);
    let program = told.or_else(above).filter(|path| path.exists());
    undisturbed(Command::new(program.expect("cargo build --profile checked has made it")))
}

/// A command that runs it, in the end.
pub fn undisturbed(mut command: Command) -> Command {
    for name in HEEDED {
        command.env_remove(name);
    }
    command
}

/// The folder; it goes with this value.
#[derive(Debug)]
pub struct Home(PathBuf);

impl Home {
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

impl Drop for Home {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
