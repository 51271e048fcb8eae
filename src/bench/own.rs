//! A broker of our own: the `leveret` beside this program, serving on a free port for as long as the bench runs.
//!
//! Always true: the child is ended by its own id when its [`OwnBroker`] goes, however that comes; its data
//! is in a folder of its own and goes with it.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io::{self, BufRead, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::thread;
use std::time::Duration;

use super::error::BenchError;

/// What the broker's program is called.
const BROKER: &str = "leveret";
/// How long a broker may take to start.
const START: Duration = Duration::from_secs(30);
/// What it says when it is ready.
const READY: &str = "listening on ";

/// A running child.
#[derive(Debug)]
pub(super) struct OwnBroker {
    child: Child,
    folder: PathBuf,
    address: SocketAddr,
}

impl OwnBroker {
    /// Starts a broker and waits until it is ready.
    pub(super) fn start(arguments: &[OsString]) -> Result<Self, BenchError> {
        let program = broker_program().map_err(BenchError::io("finding this program"))?;
        let folder = new_folder().map_err(BenchError::io("making a folder for the broker"))?;
        let mut command = Command::new(&program);
        command.args(["serve", "--listen", "127.0.0.1:0", "--data-dir"]).arg(&folder).args(arguments);
        // Or it might not say that it is ready, or say it in another shape.
        command.env_remove("RUST_LOG").env_remove("JOURNAL_STREAM").env_remove("NOTIFY_SOCKET");
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        let child = child.map_err(|why| {
            // Nothing is in it yet.
            let _ = fs::remove_dir(&folder);
            BenchError::NotStarted(format!(
                "{} cannot be run ({why}): put it beside leveret-bench or into PATH, or measure a broker that runs \
                 by --url",
                program.display()
            ))
        })?;
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        // From here on it is ended when this goes.
        let mut broker = Self { child, folder, address: nowhere };
        let (say, said) = mpsc::sync_channel(64);
        let stderr = broker.child.stderr.take();
        thread::spawn(move || stderr.map(|stderr| listen_to(stderr, &say)));
        broker.address = wait_until_ready(&said)?;
        Ok(broker)
    }

    pub(super) const fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for OwnBroker {
    fn drop(&mut self) {
        // Each may fail only because there is nothing left to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// The broker that lies where this program does, as it was built and is installed; where none lies there, the one
/// that a shell would find.
fn broker_program() -> io::Result<PathBuf> {
    let beside = env::current_exe()?.with_file_name(BROKER);
    Ok(if beside.exists() { beside } else { PathBuf::from(BROKER) })
}

/// A folder that was not there before. Not named by this process alone: one that was killed leaves its folder
/// behind with all its messages, and ids come again.
fn new_folder() -> io::Result<PathBuf> {
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(io::Error::other)?;
    let folder = env::temp_dir().join(format!("leveret-bench-{:016x}", u64::from_le_bytes(random)));
    fs::create_dir(&folder)?;
    Ok(folder)
}

/// Reads what the broker says to the end, or it would block; passes on what somebody still wants to know.
fn listen_to(stderr: ChildStderr, say: &SyncSender<String>) {
    for line in BufReader::new(stderr).lines().map_while(Result::ok) {
        // Warnings of a broker that runs are for a person; before, they are in the channel.
        if say.send(line.clone()).is_err() && !line.contains(" INFO ") {
            eprintln!("broker: {line}");
        }
    }
}

/// The address of the first ready line.
fn wait_until_ready(said: &Receiver<String>) -> Result<SocketAddr, BenchError> {
    let mut last = String::from("it said nothing");
    loop {
        match said.recv_timeout(START) {
            Ok(line) => {
                let address = line.rsplit_once(READY).and_then(|(_, address)| address.trim().parse().ok());
                if let Some(address) = address {
                    return Ok(address);
                }
                last = line;
            }
            Err(RecvTimeoutError::Disconnected) => return Err(BenchError::NotStarted(last)),
            Err(RecvTimeoutError::Timeout) => {
                let seconds = START.as_secs();
                return Err(BenchError::NotStarted(format!("not ready after {seconds} s; {last}")));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ready_line_names_the_port() {
        let (say, said) = mpsc::sync_channel(2);
        say.send("2026-01-01 INFO something else".to_string()).expect("room");
        say.send("2026-01-01 INFO leveret 0.1.0, listening on 127.0.0.1:4321".to_string()).expect("room");
        assert_eq!(wait_until_ready(&said).expect("ready").port(), 4321);
        say.send("leveret: address in use".to_string()).expect("room");
        drop(say);
        let why = wait_until_ready(&said).unwrap_err().to_string();
        assert_eq!(why, "the broker did not start: leveret: address in use");
    }
}
