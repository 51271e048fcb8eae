//! Clients blocked for memory or for the disk, with the real event loop: the built binary, real sockets, no
//! timers.
//!
//! `tests/simulation/in_memory` tests the same with a simulated loop. These few tests confirm it for the real one.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use leveret_amqp::{Method, Table};
use leveret_test_support::built_program;
use leveret_test_support::simulated_server::{declare, method_frame, purge, qos};
use leveret_test_support::socket_client::{Broker, Link, publish};

/// A few megabytes for messages.
const CONFIG: &str = "memory_limit = \"32MB\"\nframe_max = \"128KiB\"\n";
/// Bytes of a message of those that fill the memory, and of one that waits: the rest of a queue's last extent has no space for
/// it.
const FILLING_BYTES: usize = 4_000;
const WAITING_BYTES: usize = 40_000;

struct ConfigFile(PathBuf);

impl ConfigFile {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("leveret-waiting-{}-{test}.toml", std::process::id()));
        std::fs::write(&path, CONFIG).expect("the temporary folder can be written");
        Self(path)
    }
}

impl Drop for ConfigFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn start(test: &str) -> (Broker, ConfigFile) {
    let file = ConfigFile::new(test);
    (Broker::start(&["--config", file.0.to_str().expect("UTF-8")]), file)
}

/// Waits until the broker has told this publisher that it is blocked or unblocked.
fn await_blocked(link: &mut Link, blocked: bool) {
    loop {
        match link.next().method() {
            Method::ConnectionBlocked { .. } if blocked => return,
            Method::ConnectionUnblocked {} if !blocked => return,
            Method::ConnectionBlocked { .. } | Method::ConnectionUnblocked {} | Method::BasicAck { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

/// Queues that take all memory of ordinary publishers, each two thirds of what is left.
const FILLED: [&str; 8] = ["full", "b", "c", "d", "e", "f", "g", "h"];

/// Returns whether the broker has sent something to this client.
fn has_heard(link: &Link) -> bool {
    link.stream.set_nonblocking(true).expect("it is a socket");
    let has_heard = link.stream.peek(&mut [0]).is_ok();
    link.stream.set_nonblocking(false).expect("it is a socket");
    has_heard
}

/// Fills the memory. Returns the blocked clients.
fn fill(broker: &Broker, operator: &mut Link) -> [Link; 8] {
    FILLED.map(|queue| {
        operator.ask(1, &declare(queue));
        let mut link = Link::open(broker.address, &[1]);
        while !has_heard(&link) {
            link.write(&publish("", queue, false, &[0, 0], &[b'x'; FILLING_BYTES]));
            std::thread::sleep(Duration::from_millis(1));
        }
        await_blocked(&mut link, true);
        link
    })
}

#[test]
fn every_blocked_publisher_resumes_when_memory_is_freed() {
    let (broker, _file) = start("room");
    let mut operator = Link::open(broker.address, &[1]);
    operator.ask(1, &declare("other"));
    let fillers = fill(&broker, &mut operator);
    let mut waiting: Vec<Link> = (0..40).map(|_| Link::open(broker.address, &[1])).collect();
    for link in &mut waiting {
        link.ask(1, &Method::ConfirmSelect { no_wait: false });
        link.write(&publish("", "other", false, &[0, 0], &[b'x'; WAITING_BYTES]));
        await_blocked(link, true);
    }
    for queue in FILLED.into_iter().chain(FILLED) {
        operator.ask(1, &purge(queue));
    }
    for link in &mut waiting {
        await_blocked(link, false);
    }
    drop(fillers);
}

#[test]
fn a_lost_blocked_publisher_leaves_its_queue_to_its_successor() {
    let exclusive = Method::QueueDeclare {
        queue: "mine",
        passive: false,
        durable: false,
        exclusive: true,
        auto_delete: false,
        no_wait: false,
        arguments: Table::EMPTY,
    };
    let (broker, _file) = start("gone");
    let mut operator = Link::open(broker.address, &[1]);
    let _fillers = fill(&broker, &mut operator);
    let mut first = Link::open(broker.address, &[1]);
    first.ask(1, &exclusive);
    first.write(&publish("", "mine", false, &[0, 0], &[b'x'; WAITING_BYTES]));
    await_blocked(&mut first, true);
    socket2::SockRef::from(&first.stream).set_linger(Some(Duration::ZERO)).expect("it is a TCP socket");
    drop(first);
    // It resets its connection, and the broker drops it a little later.
    let deadline = Instant::now() + built_program::patience(20);
    loop {
        let mut successor = Link::open(broker.address, &[1]);
        successor.send(1, &exclusive);
        match successor.next().method() {
            Method::QueueDeclareOk { .. } => break,
            Method::ChannelClose { reply_code: 405, .. } if Instant::now() < deadline => {}
            other => panic!("{other:?}"),
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    operator.ask(1, &qos(1));
}

#[test]
fn declarations_with_no_wait_share_their_commits() {
    const QUEUES: usize = 300;
    let broker = Broker::start(&["--log-level", "debug"]);
    let mut link = Link::open(broker.address, &[1]);
    let names: Vec<String> = (0..QUEUES).map(|number| format!("q{number}")).collect();
    let declare = |queue, passive, no_wait| Method::QueueDeclare {
        queue,
        passive,
        durable: true,
        exclusive: false,
        auto_delete: false,
        no_wait,
        arguments: Table::EMPTY,
    };
    let all: Vec<u8> = names.iter().flat_map(|name| method_frame(1, &declare(name, false, true))).collect();
    link.write(&all);
    // The answer comes when all of them are durable.
    link.ask(1, &declare(&names[QUEUES - 1], true, false));
    let said = broker.stop();
    let told = said.iter().find_map(|line| line.split_once("the log: ")).expect("it tells what it did");
    let commits: usize = told.1.split(' ').next().and_then(|word| word.parse().ok()).expect("a number");
    println!("{QUEUES} queues in {commits} commits");
    assert!((1..=30).contains(&commits), "{commits} commits for {QUEUES} queues");
}
