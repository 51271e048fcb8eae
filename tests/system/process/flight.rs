//! Tests of the flight recorder.
//!
//! # Invariants
//! - Events before a kill can be read after it.
//! - Text of a client stays within its line.
//! - A flood of events does not fill it, and it is never on a disk.
//! - A broker that cannot have a flight recorder runs without it.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use leveret_core::flight::{self, Event, FILE_BYTES};

use leveret_test_support::built_program::{self, TempDir};

/// A folder in memory, gone with it.
pub(crate) struct Memory(PathBuf);

impl Memory {
    pub(crate) fn new(test: &str) -> Self {
        let folder = PathBuf::from(format!("/dev/shm/leveret-flight-{}-{test}", std::process::id()));
        fs::create_dir_all(&folder).expect("Linux has /dev/shm");
        Self(folder)
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.0.join("flight")
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub(crate) fn program() -> Command {
    built_program::leveret()
}

/// A broker with a configuration of its own.
pub(crate) struct Broker {
    process: Child,
    port: u16,
    /// The log lines before it listened.
    said: Vec<String>,
}

impl Broker {
    pub(crate) fn start(home: &TempDir, recorder: &str, more: &str) -> Self {
        let config = config_of(home);
        let data = home.path().join("data");
        let text = format!(
            "listen = [\"127.0.0.1:0\"]\ndata_dir = {data:?}\nflight_recorder = {recorder:?}\n{more}"
        );
        fs::write(&config, text).expect("the folder can be written");
        let mut process = program();
        let process = process.args(["serve", "--config"]).arg(&config).stderr(Stdio::piped());
        let mut process = process.spawn().expect("the built binary runs");
        let (mut said, pid) = (Vec::new(), process.id());
        let mut lines = BufReader::new(process.stderr.as_mut().expect("it is piped")).lines();
        // With nothing but warnings in its log the port is looked for in the file.
        let port = loop {
            if more.contains("\"warn\"") {
                if let Some(port) = port_in(&recorded(Path::new(recorder)), pid) {
                    break port;
                }
                std::thread::sleep(Duration::from_millis(10));
                continue;
            }
            let line = lines.next().expect("a line that says where it listens").expect("UTF-8");
            let port = port_of(&line);
            said.push(line);
            if let Some(port) = port {
                break port;
            }
        };
        Self { process, port, said }
    }

    fn signal(&self, signal: &str) {
        let pid = self.process.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().expect("kill runs").success());
    }

    pub(crate) fn kill(mut self) {
        self.process.kill().expect("it runs");
        self.process.wait().expect("it is our child");
    }

    pub(crate) fn end(mut self) {
        self.signal("-TERM");
        assert!(self.process.wait().expect("it is our child").success());
    }

    fn peer(&self) -> TcpStream {
        let peer = TcpStream::connect(("127.0.0.1", self.port)).expect("it listens");
        peer.set_read_timeout(Some(built_program::patience(20))).expect("a timeout can be set");
        peer
    }

    /// Says who it is; the answer is still to be taken.
    pub(crate) fn log_in(&self, user: &str) -> TcpStream {
        let mut peer = self.peer();
        peer.write_all(b"AMQP\0\0\x09\x01").expect("it reads");
        frame(&mut peer);
        let mut start_ok = vec![0, 10, 0, 11, 0, 0, 0, 0, 5];
        start_ok.extend(b"PLAIN");
        let response = format!("\0{user}\0guest");
        start_ok.extend((response.len() as u32).to_be_bytes());
        start_ok.extend(response.as_bytes());
        start_ok.extend(b"\x05en_US");
        send(&mut peer, &start_ok);
        peer
    }

    /// Opens a connection as guest.
    pub(crate) fn open(&self) -> TcpStream {
        let mut peer = self.log_in("guest");
        assert_eq!(frame(&mut peer)[..4], [0, 10, 0, 30], "tune");
        send(&mut peer, &[0, 10, 0, 31, 0, 10, 0, 1, 0, 0, 0, 0]);
        send(&mut peer, &[0, 10, 0, 40, 1, b'/', 0, 0]);
        assert_eq!(frame(&mut peer)[..4], [0, 10, 0, 41], "open-ok");
        peer
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub(crate) fn config_of(home: &TempDir) -> PathBuf {
    home.path().join("leveret.toml")
}

fn port_of(line: &str) -> Option<u16> {
    line.split_once("listening on 127.0.0.1:")?.1.trim().parse().ok()
}

/// Where the process of this number listens.
fn port_in(events: &[Event], pid: u32) -> Option<u16> {
    let began = events.iter().rposition(|event| event.text.ends_with(&format!("process {pid}")))?;
    events[began..].iter().find_map(|event| port_of(&event.text))
}

fn send(peer: &mut TcpStream, method: &[u8]) {
    peer.write_all(&framed(1, 0, method)).expect("it reads");
}

pub(crate) fn framed(kind: u8, channel: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind, 0, channel];
    bytes.extend((payload.len() as u32).to_be_bytes());
    bytes.extend(payload);
    bytes.push(0xce);
    bytes
}

/// Declares a durable queue that keeps ten messages, on channel 1.
fn declare_a_short_queue(peer: &mut TcpStream) {
    peer.write_all(&framed(1, 1, &[0, 20, 0, 10, 0])).expect("it reads");
    assert_eq!(frame(peer)[..4], [0, 20, 0, 11], "channel.open-ok");
    let mut declare = vec![0, 50, 0, 10, 0, 0, 1, b'q', 0b10, 0, 0, 0, 18, 12];
    declare.extend(b"x-max-lengthI\0\0\0\x0a");
    peer.write_all(&framed(1, 1, &declare)).expect("it reads");
    assert_eq!(frame(peer)[..4], [0, 50, 0, 11], "queue.declare-ok");
}

/// A persistent message for it.
fn message() -> Vec<u8> {
    let mut bytes = framed(1, 1, &[0, 60, 0, 40, 0, 0, 0, 1, b'q', 0]);
    bytes.extend(framed(2, 1, &[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0x10, 0, 2]));
    bytes.extend(framed(3, 1, b"21.5"));
    bytes
}

/// Returns the next frame.
pub(crate) fn frame(peer: &mut TcpStream) -> Vec<u8> {
    let mut head = [0; 7];
    peer.read_exact(&mut head).expect("a frame");
    let bytes = u32::from_be_bytes(head[3..].try_into().expect("four bytes"));
    let mut body = vec![0; bytes as usize + 1];
    peer.read_exact(&mut body).expect("all of it");
    body
}

fn recorded(file: &Path) -> Vec<Event> {
    fs::read(file).map_or(Vec::new(), |bytes| flight::read(&bytes).expect("it is a flight recorder"))
}

/// `leveret ctl report` with these arguments.
pub(crate) fn report(arguments: &[&str]) -> (Option<i32>, String) {
    let Output { status, stdout, .. } =
        program().args(["ctl", "report"]).args(arguments).output().expect("the built binary runs");
    (status.code(), String::from_utf8(stdout).expect("UTF-8"))
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// The broker tries for half a second; the reader has finished by then.
#[test]
#[ignore = "judges the clock: tests/run --full"]
fn a_reader_during_a_start_does_not_prevent_recording() {
    let (home, memory) = (TempDir::new("flight"), Memory::new("reader"));
    fs::write(memory.file(), "").expect("the folder can be written");
    let reader = fs::File::open(memory.file()).expect("it is there");
    reader.lock_shared().expect("nobody else has it");
    let reading = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(200));
        drop(reader);
    });
    Broker::start(&home, memory.file().to_str().expect("UTF-8"), "").end();
    reading.join().expect("it only waits");
    let stopped = recorded(&memory.file());
    assert!(stopped.iter().any(|event| event.text.contains("stopped")), "{stopped:?}");
}

#[test]
fn events_before_a_kill_are_readable_after_it_and_after_a_restart() {
    let (home, memory) = (TempDir::new("flight"), Memory::new("kill"));
    let file = memory.file();
    let broker = Broker::start(&home, text(&file), "");
    assert!(!broker.said.iter().any(|line| line.contains("without a word")), "{:?}", broker.said);
    let mut peer = broker.log_in("evil\u{1b}[2J\n  1970-01-01T00:00:00.000Z END it is well\u{202e}");
    assert_eq!(peer.read(&mut [0]).expect("it is told by the end"), 0);
    broker.kill();
    let (code, told) = report(&["--file", text(&file)]);
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains("Run 1, ") && told.contains("it ended without a record"), "{told}");
    assert!(told.contains(" START leveret ") && told.contains(" INFO  listening on "), "{told}");
    assert!(told.contains("evil\\u{1b}[2J\\n  1970"), "{told}");
    assert!(!told.contains(['\u{1b}', '\u{202e}']), "{told}");

    let broker = Broker::start(&home, text(&file), "");
    assert!(broker.said.iter().any(|line| line.contains(" ended without a record ")), "{:?}", broker.said);
    let (code, told) = report(&["--data-dir", text(&home.path().join("data"))]);
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains("memory_limit = ") && told.contains("Totals"), "the rest is there: {told}");
    assert!(told.contains("evil\\u{1b}[2J\\n"), "of the run before: {told}");
    assert!(told.contains("Run 2, ") && told.contains("it goes on"), "{told}");
    broker.end();
    let (_, told) = report(&["--file", text(&file)]);
    assert!(told.contains("it ended by itself"), "{told}");
    let broker = Broker::start(&home, text(&file), "");
    assert!(!broker.said.iter().any(|line| line.contains("without a word")), "{:?}", broker.said);
}

#[test]
fn a_broker_that_stands_still_is_reported_as_far_as_it_can_be() {
    let (home, memory) = (TempDir::new("flight"), Memory::new("stop"));
    let broker = Broker::start(&home, text(&memory.file()), "");
    let _peer = broker.open();
    broker.signal("-STOP");
    let (code, told) = report(&["--config", text(&config_of(&home)), "--timeout", "1"]);
    broker.signal("-CONT");
    assert_eq!(code, Some(75), "it took too long: {told}");
    assert!(told.contains("connection opened") && told.contains("it goes on"), "{told}");
    assert!(told.contains("MemTotal"), "what the system says is there too: {told}");
}

#[test]
fn a_flood_is_recorded_by_a_budget_and_what_no_line_says_is_recorded_all_the_same() {
    let (home, memory) = (TempDir::new("flight"), Memory::new("flood"));
    let file = memory.file();
    let broker = Broker::start(&home, text(&file), "log_level = \"warn\"\n");
    drop(broker.open());
    for _ in 0..400 {
        let mut peer = broker.peer();
        // It may have been turned away before it has said anything.
        let _ = peer.write_all(b"GET / HTTP/1.1\r\n\r\n").and_then(|()| peer.read_to_end(&mut Vec::new()));
    }
    let events = recorded(&file);
    let count = |what: &str| events.iter().filter(|event| event.text.contains(what)).count();
    assert_eq!(count("connection opened"), 1, "{events:?}");
    assert!(events.len() > 70, "{} events of a flood", events.len());
    assert!(events.len() < 110, "{} events of a flood", events.len());
    assert_eq!(fs::metadata(&file).expect("it is there").len(), FILE_BYTES as u64);
    broker.end();
}

#[test]
fn a_broker_that_cannot_have_one_says_so_once_and_runs_on() {
    let (home, memory) = (TempDir::new("flight"), Memory::new("refused"));
    let foreign = memory.0.join("letter");
    fs::write(&foreign, "Dear Sir\n").expect("there is room");
    let link = memory.0.join("link");
    std::os::unix::fs::symlink(memory.file(), &link).expect("there is room");
    for (path, why) in [
        ("/proc/flight", "/proc is not a tmpfs"),
        ("/nowhere/at/all/flight", "No such file or directory"),
        ("flight", "an absolute path"),
        (text(&foreign), "it is not a flight recorder file"),
        (text(&link), "symbolic link"),
    ] {
        let broker = Broker::start(&home, path, "");
        let told = broker.said.iter().filter(|line| line.contains("flight_recorder") && line.contains(why));
        assert_eq!(told.count(), 1, "{path}: {:?}", broker.said);
        drop(broker.open());
        broker.end();
    }
    assert_eq!(fs::read(&foreign).expect("it is there"), b"Dear Sir\n");
    assert!(!memory.file().exists());
    assert_eq!(report(&["--file", text(&foreign)]).0, Some(66));

    let first = Broker::start(&home, text(&memory.file()), "");
    let other = TempDir::new("flight");
    let second = Broker::start(&other, text(&memory.file()), "");
    assert!(second.said.iter().any(|line| line.contains("another broker has it")), "{:?}", second.said);
    second.end();
    first.end();
}

#[test]
fn a_turn_and_a_commit_that_take_long_are_recorded() {
    let (home, memory) = (TempDir::new("flight"), Memory::new("slow"));
    let file = memory.file();
    let broker = Broker::start(&home, text(&file), "");
    let mut peer = broker.open();
    declare_a_short_queue(&mut peer);
    let mut feeder = peer.try_clone().expect("it is open");
    let feeder = std::thread::spawn(move || {
        let messages = message().repeat(100);
        while feeder.write_all(&messages).is_ok() {}
    });
    // A process that is stopped in the middle of its work stands for a processor or a card that is busy.
    let is_there = |what: &str| recorded(&file).iter().any(|event| event.text.contains(what));
    for _ in 0..60 {
        broker.signal("-STOP");
        std::thread::sleep(Duration::from_millis(1_100));
        broker.signal("-CONT");
        std::thread::sleep(Duration::from_millis(200));
        if is_there("the event loop was busy for ") && is_there("the disk needed ") {
            break;
        }
    }
    assert!(is_there("the event loop was busy for "), "{:?}", recorded(&file));
    assert!(is_there("the disk needed "), "{:?}", recorded(&file));
    broker.end();
    feeder.join().expect("it ends with its connection");
}
