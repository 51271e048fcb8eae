//! A broker that is started with less memory than before loses nothing that is on its card.
//!
//! # Invariants
//! - Every message that fits into the smaller pools is delivered unchanged.
//! - A message that does not fit is named in the log, and blocks no message behind it.

use leveret_amqp::{Method, Table};
use leveret_test_support::built_program::TempDir;
use leveret_test_support::socket_client::{Broker, Link, publish};

const MESSAGES: usize = 600;
const LARGE_BYTES: usize = 6 << 20;
/// `delivery_mode` 2.
const PERSISTENT: &[u8] = &[0x10, 0x00, 2];

fn body(number: usize) -> Vec<u8> {
    let bytes = if number == MESSAGES / 2 { LARGE_BYTES } else { 50 * number };
    vec![number as u8; bytes]
}

#[test]
fn a_start_with_less_memory_serves_the_store_that_is_there() {
    let home = TempDir::new("less-memory");
    let folder = home.path().to_str().expect("UTF-8");
    let start = |limit| Broker::start(&["--data-dir", folder, "--memory-limit", limit]);
    let broker = start("200MB");
    let mut link = Link::open(broker.address, &[1]);
    let declare = Method::QueueDeclare {
        queue: "kept",
        passive: false,
        durable: true,
        exclusive: false,
        auto_delete: false,
        no_wait: false,
        arguments: Table::EMPTY,
    };
    link.ask(1, &declare);
    link.ask(1, &Method::TxSelect {});
    for number in 0..MESSAGES {
        link.write(&publish("", "kept", false, PERSISTENT, &body(number)));
        if number % 20 == 19 {
            // The commit is answered when all of them are durable.
            link.ask(1, &Method::TxCommit {});
        }
    }
    broker.stop();

    let broker = start("20MB");
    let mut link = Link::open(broker.address, &[1]);
    let consume = Method::BasicConsume {
        queue: "kept",
        consumer_tag: "",
        no_local: false,
        no_ack: true,
        exclusive: false,
        no_wait: false,
        arguments: Table::EMPTY,
    };
    link.ask(1, &consume);
    for number in (0..MESSAGES).filter(|number| *number != MESSAGES / 2) {
        let (_, came) = link.content();
        assert!(came == body(number), "message {number} came as {} bytes", came.len());
    }
    drop(link);
    let said = broker.stop().join("\n");
    assert!(said.contains("is larger than the memory for messages"), "{said}");
}

/// The memory of the smallest profile is enough for a bridge over TLS. Its upstream is not there, so the log has the cause.
#[test]
fn the_smallest_board_starts_a_bridge_over_tls() {
    let home = TempDir::new("bridge");
    let file = home.path().join("leveret.toml");
    let text = "board = \"router-64\"\n[[bridge]]\nname = \"plant\"\nupstream = \"amqps://edge:p@127.0.0.1:1\"\n\
                ca_file = \"missing.pem\"\n[[bridge.forward]]\nqueue = \"a\"\nto_queue = \"a\"\n\
                [[bridge.fetch]]\nqueue = \"b\"\nto_queue = \"b\"\n";
    std::fs::write(&file, text).expect("the folder can be written");
    let broker = Broker::start(&["--config", file.to_str().expect("UTF-8")]);
    // A client is served after the first turns, in which the bridge was added and has tried its upstream.
    drop(Link::open(broker.address, &[1]));
    let said = broker.stop().join("\n");
    assert!(said.contains("bridge plant") && !said.contains("not started"), "{said}");
}
