//! Objects in the store that a start cannot declare stay in the store, with everything that belongs to them.
//!
//! Limits may be lowered by mistake and raised again. A block may be unreadable, and readable after the card
//! was reinserted. A start between these two must delete nothing.

use std::fs;
use std::path::Path;

use leveret_amqp::{Method, Table};
use leveret_core::time::Now;
use leveret_storage::{FileDisk, Identity, Log, Record, Settings, Urgency};
use leveret_test_support::built_program::TempDir;
use leveret_test_support::simulated_server::method_frame;
use leveret_test_support::socket_client::{Broker, Link, publish};

/// Too little memory for [`FILLERS`] and the other objects.
const LITTLE_MEMORY: &str = "memory_limit = \"18MB\"\n";
/// Number of objects that a start with little memory restores before the others.
const FILLERS: usize = 4_000;
/// A start restores objects in the order of the lengths of their names, so these come after the fillers.
const EXCHANGES: [&str; 9] = [
    "the exchange x1",
    "the exchange x2",
    "the exchange x3",
    "the exchange x4",
    "the exchange x5",
    "the exchange x6",
    "the exchange x7",
    "the exchange x8",
    "the exchange x9",
];
/// `delivery_mode` 2.
const PERSISTENT: &[u8] = &[0x10, 0x00, 2];

/// Starts a broker on the store of `home` with this configuration.
fn start(home: &TempDir, config: &str) -> Broker {
    let file = home.path().join("leveret.toml");
    fs::write(&file, config).expect("the folder can be written");
    let store = home.path().join("store");
    let texts = [&file, &store].map(|path| path.to_str().expect("UTF-8"));
    Broker::start(&["--config", texts[0], "--data-dir", texts[1]])
}

fn exchange(name: &str) -> Method<'_> {
    Method::ExchangeDeclare {
        exchange: name,
        kind: "direct",
        passive: false,
        durable: true,
        auto_delete: false,
        internal: false,
        no_wait: false,
        arguments: Table::EMPTY,
    }
}

fn queue(name: &str, passive: bool) -> Method<'_> {
    Method::QueueDeclare {
        queue: name,
        passive,
        durable: true,
        exclusive: false,
        auto_delete: false,
        no_wait: false,
        arguments: Table::EMPTY,
    }
}

fn bind<'a>(queue: &'a str, exchange: &'a str) -> Method<'a> {
    Method::QueueBind { queue, exchange, routing_key: "key", no_wait: false, arguments: Table::EMPTY }
}

/// Declares many objects of one kind, without waiting for each.
fn fill_before(broker: &Broker, method: impl Fn(&str) -> Vec<u8>) {
    // A connection may declare fifteen times what it leaves to others.
    for part in 0..8 {
        let mut link = Link::open(broker.address, &[1]);
        for number in 0..FILLERS / 8 {
            link.write(&method(&format!("filler {part} {number}")));
        }
        link.ask(1, &Method::BasicQos { prefetch_size: 0, prefetch_count: 0, global: false });
    }
}

fn fill_with_queues(broker: &Broker) {
    fill_before(broker, |name| {
        let mut method = queue(name, false);
        if let Method::QueueDeclare { no_wait, .. } = &mut method {
            *no_wait = true;
        }
        method_frame(1, &method)
    });
}

fn fill_with_exchanges(broker: &Broker) {
    fill_before(broker, |name| {
        let mut method = exchange(name);
        if let Method::ExchangeDeclare { no_wait, .. } = &mut method {
            *no_wait = true;
        }
        method_frame(1, &method)
    });
}

/// Deletes fillers, so that other objects find memory.
fn delete_fillers(link: &mut Link) {
    for number in 0..100 {
        link.ask(1, &delete(&format!("filler 0 {number}")));
    }
}

/// Declares queues q1 to q3, and binds each to each exchange.
fn fill(broker: &Broker) {
    let mut link = Link::open(broker.address, &[1]);
    for name in EXCHANGES {
        link.ask(1, &exchange(name));
    }
    for name in ["the queue q1", "the queue q2", "the queue q3"] {
        link.ask(1, &queue(name, false));
        for exchange in EXCHANGES {
            link.ask(1, &bind(name, exchange));
        }
    }
}

fn count(link: &mut Link, name: &str) -> u32 {
    match link.ask(1, &queue(name, true)).method() {
        Method::QueueDeclareOk { message_count, .. } => message_count,
        other => panic!("{other:?}"),
    }
}

/// Checks that one message through each exchange reaches each queue.
#[track_caller]
fn check_all(broker: &Broker) {
    let mut link = Link::open(broker.address, &[1]);
    for exchange in EXCHANGES {
        link.write(&publish(exchange, "key", false, PERSISTENT, b"through a binding"));
    }
    let counts = ["the queue q1", "the queue q2", "the queue q3"].map(|name| count(&mut link, name));
    assert_eq!(counts, [9; 3], "all bindings are there again");
}

#[test]
fn a_start_with_lower_limits_deletes_no_binding_of_objects_it_leaves_out() {
    for fill_with in [fill_with_queues, fill_with_exchanges] {
        let home = TempDir::new("left-out");
        let broker = start(&home, "");
        fill_with(&broker);
        fill(&broker);
        broker.stop();
        // Twice, because the first start may have changed what the second one finds.
        for _ in 0..2 {
            let broker = start(&home, LITTLE_MEMORY);
            let said = refusal(&mut Link::open(broker.address, &[1]), &queue("the queue q3", true));
            assert!(said.starts_with("404"), "nothing is left out: {said}");
            broker.stop();
        }
        let broker = start(&home, "");
        check_all(&broker);
        broker.stop();
    }
}

/// Returns the error of a failed method.
fn refusal(link: &mut Link, method: &Method<'_>) -> String {
    link.send(1, method);
    match link.next().method() {
        Method::ChannelClose { reply_code, reply_text, .. } => format!("{reply_code} {reply_text}"),
        other => panic!("{method:?}: {other:?}"),
    }
}

fn delete(queue: &str) -> Method<'_> {
    Method::QueueDelete { queue, if_unused: false, if_empty: false, no_wait: false }
}

/// The memory is lowered with messages in all queues. There is space for one again when others are deleted.
#[test]
fn objects_left_out_by_a_start_cannot_be_declared_again() {
    let home = TempDir::new("left-out");
    let broker = start(&home, "");
    fill_with_queues(&broker);
    fill(&broker);
    check_all(&broker);
    broker.stop();

    let broker = start(&home, LITTLE_MEMORY);
    let mut link = Link::open(broker.address, &[1, 2]);
    delete_fillers(&mut link);
    for again in [
        queue("the queue q3", false),
        Method::QueueDelete { queue: "the queue q3", if_unused: false, if_empty: true, no_wait: false },
    ] {
        let said = refusal(&mut link, &again);
        let words =
            "506 RESOURCE_ERROR - queue 'the queue q3' in vhost '/' is in the store with its messages";
        assert!(said.starts_with(words) && said.contains("there was no memory for it"), "{said}");
        link.send(1, &Method::ChannelCloseOk {});
        link.ask(1, &Method::ChannelOpen {});
    }
    link.ask(1, &queue("the queue q4", false));
    drop(link);
    broker.stop();

    // With capacity, the queue exists with its messages.
    let broker = start(&home, "");
    let mut link = Link::open(broker.address, &[1]);
    assert_eq!(count(&mut link, "the queue q3"), 9);
    drop(link);
    broker.stop();

    // A client can delete such a queue, and declare a new one.
    let broker = start(&home, LITTLE_MEMORY);
    let mut link = Link::open(broker.address, &[1]);
    for number in 100..200 {
        link.ask(1, &delete(&format!("filler 0 {number}")));
    }
    link.ask(1, &delete("the queue q3"));
    link.ask(1, &queue("the queue q3", false));
    assert_eq!(count(&mut link, "the queue q3"), 0);
    drop(link);
    broker.stop();
    let broker = start(&home, "");
    let mut link = Link::open(broker.address, &[1]);
    assert_eq!(count(&mut link, "the queue q3"), 0, "of the first nothing came back");
    drop(link);
    broker.stop();
}

/// Flips one bit in each record that defines this exchange.
fn flip(store: &Path, exchange: &str) -> usize {
    let key = [b"\x01\x01/", &[exchange.len() as u8][..], exchange.as_bytes()].concat();
    let mut flipped = 0;
    for file in fs::read_dir(store).expect("a store").map(|entry| entry.expect("an entry").path()) {
        if file.extension().is_none_or(|extension| extension != "seg") {
            continue;
        }
        let mut bytes = fs::read(&file).expect("readable");
        let found: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(&key)).collect();
        found.iter().for_each(|at| bytes[*at] ^= 0x80);
        flipped += found.len();
        // A second call restores the bits.
        let key = [&[key[0] ^ 0x80], &key[1..]].concat();
        if found.is_empty() {
            let found: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(&key)).collect();
            found.iter().for_each(|at| bytes[*at] ^= 0x80);
            flipped += found.len();
        }
        fs::write(&file, bytes).expect("writable");
    }
    flipped
}

#[test]
fn a_start_that_cannot_read_an_exchange_deletes_none_of_its_bindings() {
    let home = TempDir::new("left-out");
    let broker = start(&home, "");
    fill(&broker);
    broker.stop();
    let store = home.path().join("store");
    let flipped = flip(&store, EXCHANGES[1]);
    assert!(flipped > 0, "the exchange is in the log");
    start(&home, "").stop();
    assert_eq!(flip(&store, EXCHANGES[1]), flipped);
    let broker = start(&home, "");
    check_all(&broker);
    broker.stop();
}

/// Replaces the definition of an exchange in a store without a broker. Returns the old one.
fn define(store: &Path, exchange: &str, value: &[u8]) -> Vec<u8> {
    let key = [b"\x01\x01/", &[exchange.len() as u8][..], exchange.as_bytes()].concat();
    let mut disk = FileDisk::new(store);
    let (identity, now) = (Identity { id: [0; 16], secret: 0 }, Now::from_ms(0));
    let (mut log, _) = Log::open(&mut disk, Settings::default(), identity, now).expect("it opens");
    let mut before = Vec::new();
    let note = |found: &[u8], value: &[u8], _| {
        if found == key {
            before = value.to_vec();
        }
    };
    assert_eq!(log.read_definitions(&mut disk, note).expect("readable"), 0);
    let version = log.index().definitions().get(&*key).expect("it is defined").version + 1;
    let record = Record::Defined { version, key: &key, value: Some(value) };
    log.append_reserved(&record, Urgency::Awaited, now).expect("there is room");
    while let Some(job) = log.next_prepare() {
        log.prepare_done(job.run(&mut disk)).expect("the disk is well");
    }
    let job = log.next_commit(Now::from_ms(60_000)).expect("it is due");
    log.commit_done(job.run(&mut disk)).expect("the disk is well");
    before
}

/// The queue of a shovel is deleted with its shovel, but not if the shovel may be in an unreadable block.
#[test]
fn a_start_that_cannot_read_everything_deletes_no_shovels_queue() {
    let home = TempDir::new("left-out");
    let broker = start(&home, "");
    fill(&broker);
    let mut link = Link::open(broker.address, &[1]);
    let whose = b"\x08x-shovelS\0\0\0\x01s\x0ex-shovel-vhostS\0\0\0\x01/";
    let mut declare = queue("shovel.s", false);
    if let Method::QueueDeclare { arguments, .. } = &mut declare {
        *arguments = Table::trusted(whose);
    }
    link.ask(1, &declare);
    link.write(&publish("", "shovel.s", false, PERSISTENT, b"not forwarded yet"));
    assert_eq!(count(&mut link, "shovel.s"), 1);
    drop(link);
    broker.stop();
    let store = home.path().join("store");
    let known = define(&store, EXCHANGES[1], b"");
    let broker = start(&home, "");
    assert_eq!(count(&mut Link::open(broker.address, &[1]), "shovel.s"), 1, "its shovel may be there");
    broker.stop();
    assert_eq!(define(&store, EXCHANGES[1], &known), b"");
    let broker = start(&home, "");
    let said = refusal(&mut Link::open(broker.address, &[1]), &queue("shovel.s", true));
    assert!(said.starts_with("404"), "{said}");
    broker.stop();
}

/// A newer version defined an exchange with more than this one can read, and runs again later.
#[test]
fn a_start_of_an_older_version_deletes_no_binding_of_an_exchange() {
    let home = TempDir::new("left-out");
    let broker = start(&home, "");
    fill(&broker);
    broker.stop();
    let store = home.path().join("store");
    let known = define(&store, EXCHANGES[1], b"");
    assert!(!known.is_empty());
    start(&home, "").stop();
    assert_eq!(define(&store, EXCHANGES[1], &known), b"");
    let broker = start(&home, "");
    check_all(&broker);
    broker.stop();
}
