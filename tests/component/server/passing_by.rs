//! Persistent messages that are consumed before a commit causes no disk write.
//!
//! Every sync wears a card, and a message that is consumed at once needs no copy on it. The test counts the
//! commits that the broker reports at its end, so it does not depend on the clock.

use leveret_amqp::{Method, Table};

use leveret_test_support::simulated_server::consume;
use leveret_test_support::socket_client::{Broker, Frame, Link, publish};

/// `delivery_mode` 2.
const PERSISTENT: &[u8] = &[0x10, 0x00, 2];
const BURSTS: usize = 50;
/// Number of messages of 1 KiB that the smallest board reads at once.
const BURST: usize = 20;
/// The start, the queue, the end, and one more if this machine was late for a burst.
const COMMITS_MAX: u32 = 12;

/// Returns the number of commits in the broker's last log line.
fn commits(broker: Broker) -> u32 {
    let said = broker.stop();
    let line = said.iter().find_map(|line| line.split_once("the log: ")).expect("it had a log").1;
    line.split(' ').next().and_then(|count| count.parse().ok()).expect("a number")
}

/// Returns the publish number of a confirm.
fn confirmed(frame: &Frame) -> u64 {
    match frame.method() {
        Method::BasicAck { delivery_tag, .. } => delivery_tag,
        other => panic!("{other:?}"),
    }
}

/// Publishes confirmed messages in bursts; a consumer takes each burst before the next one is sent.
fn commits_of_bursts(board: &str) -> u32 {
    let broker = Broker::start(&["--board", board, "--log-level", "debug"]);
    let mut consumer = Link::open(broker.address, &[1]);
    let declare = Method::QueueDeclare {
        queue: "q",
        passive: false,
        durable: true,
        exclusive: false,
        auto_delete: false,
        no_wait: false,
        arguments: Table::EMPTY,
    };
    consumer.ask(1, &declare);
    consumer.ask(1, &consume("q", "it", true));
    let mut publisher = Link::open(broker.address, &[1]);
    publisher.ask(1, &Method::ConfirmSelect { no_wait: false });
    let burst = publish("", "q", false, PERSISTENT, &[7; 1024]).repeat(BURST);
    for number in 1..=BURSTS {
        publisher.write(&burst);
        for _ in 0..BURST {
            assert_eq!(consumer.content().1.len(), 1024);
        }
        let last = (number * BURST) as u64;
        while confirmed(&publisher.next()) < last {}
    }
    commits(broker)
}

#[test]
fn messages_consumed_at_once_are_never_written() {
    for board in ["generic", "router-64"] {
        let commits = commits_of_bursts(board);
        assert!(commits <= COMMITS_MAX, "{board}: {commits} commits for {BURSTS} bursts");
    }
}
