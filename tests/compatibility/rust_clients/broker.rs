//! The built broker as a child process.
//!
//! It is ended when the test ends, also by a panic. It listens on a free loopback port and has a data directory
//! of its own.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread;

use leveret_test_support::built_program;

const READY: &str = "listening on 127.0.0.1:";
const START_S: u64 = 30;

/// A broker on loopback.
pub(crate) struct Broker {
    port: u16,
    child: Option<(Child, PathBuf)>,
}

impl Broker {
    /// Starts one, or takes the one that `LEVERET_TEST_BROKER` names.
    pub(crate) fn start() -> Self {
        if let Ok(address) = env::var("LEVERET_TEST_BROKER") {
            let port = address.strip_prefix("127.0.0.1:").and_then(|port| port.parse().ok());
            return Self { port: port.expect("LEVERET_TEST_BROKER is like 127.0.0.1:5672"), child: None };
        }
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = env::temp_dir().join(format!("leveret-rust-{}-{count}", std::process::id()));
        let mut command = built_program::leveret();
        command.args(["serve", "--listen", "127.0.0.1:0", "--data-dir"]).arg(&folder);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        let mut child = child.expect("the built binary runs");
        let stderr = child.stderr.take().expect("it is piped");
        // From here on it is ended when this goes.
        let mut broker = Self { port: 0, child: Some((child, folder)) };
        broker.port = wait_until_ready(stderr);
        broker
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Some((mut child, folder)) = self.child.take() {
            // Each may fail only because there is nothing left to do.
            let _ = child.kill();
            let _ = child.wait();
            let _ = fs::remove_dir_all(folder);
        }
    }
}

/// The port of the ready line; what the broker says is shown with the test's own output.
fn wait_until_ready(stderr: ChildStderr) -> u16 {
    let (say, said) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            eprintln!("{line}");
            if let Some((_, rest)) = line.split_once(READY) {
                let digits = rest.split(|letter: char| !letter.is_ascii_digit()).next();
                // The receiver is gone after the first value.
                let _ = say.send(digits.and_then(|digits| digits.parse().ok()));
            }
        }
    });
    let port = said.recv_timeout(built_program::patience(START_S)).ok().flatten();
    port.expect("the broker says which port it listens on")
}
