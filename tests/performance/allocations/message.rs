//! Nothing is allocated on the way of a message, proven on the real loop with real sockets.
//!
//! The broker runs in a thread of this process and its allocations are counted; clients run in another and
//! theirs are not. Each way a message can go is gone twice: the first time may set something up, the second
//! must not allocate once.

use crate::counting::Count;
use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::mpsc;

use leveret_amqp::{Method, Table, Writer};
use leveret_config::units::ListenAddress;
use leveret_config::{Config, Layer};
use leveret_daemon::EventLoop;
use leveret_test_support::built_program::TempDir;
use leveret_test_support::simulated_server::{bind, consume, declare, qos};
use leveret_test_support::socket_client::{Link, publish};

static COUNT: Count = Count::new();

/// Receives the port on which the broker listens. At the configured level nothing else is logged.
struct Ear(Mutex<Option<mpsc::Sender<SocketAddr>>>);

static EAR: Ear = Ear(Mutex::new(None));

impl log::Log for Ear {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let said = record.args().to_string();
        if record.level() <= log::Level::Warn {
            eprintln!("{said}");
        }
        if let Some(address) = said.strip_prefix("listening on ").and_then(|said| said.parse().ok())
            && let Some(sender) = self.0.lock().expect("nobody panicked").as_ref()
        {
            sender.send(address).expect("the test waits for it");
        }
    }

    fn flush(&self) {}
}

/// Starts a broker in a thread that ends with the process.
fn start_broker(home: &TempDir) -> SocketAddr {
    let data_dir = home.path().to_path_buf();
    let (sender, receiver) = mpsc::channel();
    *EAR.0.lock().expect("nobody panicked") = Some(sender);
    std::thread::spawn(move || {
        let text = "memory_limit = \"32MB\"\nframe_max = \"128KiB\"\n";
        let layer = Layer::parse("leveret.toml", text).expect("it is valid");
        let mut config = Config::gather(None, layer).expect("it is valid");
        config.management = Vec::new();
        config.listen = vec![ListenAddress::required(SocketAddr::from(([127, 0, 0, 1], 0)))];
        config.data_dir = data_dir;
        let mut event_loop = EventLoop::open(&config).expect("it starts");
        COUNT.this_thread();
        event_loop.run().expect("it runs");
    });
    receiver.recv().expect("it listens")
}

/// The participants of a test: everything that is declared and opened beforehand.
struct Cast {
    publisher: Link,
    confirming: Link,
    consumer: Link,
    getter: Link,
    requester: Link,
    transacting: Link,
}

const EVERYWHERE: [(&str, &str); 5] = [
    ("amq.direct", "one"),
    ("amq.fanout", ""),
    ("amq.topic", "a.long.key"),
    ("amq.headers", ""),
    ("outer", "x"),
];

fn set_up(address: SocketAddr) -> Cast {
    let mut publisher = Link::open(address, &[1]);
    for queue in ["acked", "auto", "got", "requests", "one", "two", "three", "waiting"] {
        publisher.ask(1, &declare(queue));
    }
    for queue in ["kept", "deep"] {
        publisher.ask(1, &durable(queue));
    }
    for exchange in ["outer", "inner"] {
        let exchange_declare = Method::ExchangeDeclare {
            exchange,
            kind: "fanout",
            passive: false,
            durable: false,
            auto_delete: false,
            internal: false,
            no_wait: false,
            arguments: Table::EMPTY,
        };
        publisher.ask(1, &exchange_declare);
    }
    let inner = Method::ExchangeBind {
        destination: "inner",
        source: "outer",
        routing_key: "",
        no_wait: false,
        arguments: Table::EMPTY,
    };
    publisher.ask(1, &inner);
    for queue in ["one", "two", "three"] {
        for (exchange, key) in
            [("amq.direct", queue), ("amq.fanout", ""), ("amq.topic", "a.#"), ("inner", "")]
        {
            publisher.ask(1, &bind(queue, exchange, key));
        }
        let arguments = headers_table();
        let by_header = Method::QueueBind {
            queue,
            exchange: "amq.headers",
            routing_key: "",
            no_wait: false,
            arguments: Table::trusted(&arguments),
        };
        publisher.ask(1, &by_header);
    }
    let mut confirming = Link::open(address, &[1]);
    confirming.ask(1, &Method::ConfirmSelect { no_wait: false });
    let mut consumer = Link::open(address, &[1, 2]);
    for queue in ["auto", "one", "two", "three"] {
        consumer.ask(1, &consume(queue, queue, true));
    }
    consumer.ask(2, &qos(100));
    consumer.ask(2, &consume("acked", "acked", false));
    consumer.ask(2, &consume("waiting", "waiting", false));
    consumer.ask(2, &consume("kept", "kept", false));
    let getter = Link::open(address, &[1]);
    let mut requester = Link::open(address, &[1]);
    requester.ask(1, &consume("amq.rabbitmq.reply-to", "replies", true));
    let mut transacting = Link::open(address, &[1]);
    transacting.ask(1, &Method::TxSelect {});
    Cast { publisher, confirming, consumer, getter, requester, transacting }
}

/// The entries of a table that says x = "y".
fn headers_table() -> Vec<u8> {
    let mut bytes = vec![0; 64];
    let mut writer = Writer::new(&mut bytes);
    writer.table(|table| table.text("x", "y")).expect("there is room");
    writer.written()[4..].to_vec()
}

/// Properties with these headers.
fn with_headers(entries: &[u8]) -> Vec<u8> {
    let mut properties = vec![0x20, 0];
    properties.extend((entries.len() as u32).to_be_bytes());
    properties.extend(entries);
    properties
}

/// A way that messages go, and its name.
type Way = (&'static str, fn(&mut Cast));

/// The ways of a message through the broker.
const WAYS: [Way; 16] = [
    ("automatic acknowledgement, all sizes", by_default_exchange),
    ("every kind of exchange, with and without the cache", by_every_exchange),
    ("headers against bindings, from either side", by_headers),
    ("acknowledged one by one and together", acknowledged),
    ("rejected, requeued, recovered", requeued),
    ("basic.get", got),
    ("confirms", confirmed),
    ("mandatory returns", returned),
    ("direct reply-to", replied),
    ("transactions", transacted),
    ("a body in many frames", large),
    ("frames in pieces", in_pieces),
    ("publishers that wait and go on", waited),
    ("answers on the side", aside),
    ("written down, confirmed, acknowledged", kept),
    ("read back", read_back),
];

#[test]
fn nothing_is_allocated_on_the_way_of_a_message() {
    log::set_logger(&EAR).expect("the test has no other");
    log::set_max_level(log::LevelFilter::Info);
    let home = TempDir::new("allocations");
    let mut cast = set_up(start_broker(&home));
    go_all(&mut cast, &WAYS);
    assert!(COUNT.allocations() > 0, "the counter does not count");
    // A large body in the log is known chunk by chunk, which takes a little; nothing of the body's size.
    let largest = COUNT.take_largest();
    assert!(largest >= LARGE_KEPT_BYTES_MAX, "the pools were larger than {largest} bytes");
    large_and_kept(&mut cast);
    settle(&mut cast);
    let largest = COUNT.take_largest();
    assert!(largest <= LARGE_KEPT_BYTES_MAX, "an allocation of {largest} bytes for a large message");
}

fn go_all(cast: &mut Cast, ways: &[Way]) {
    for (name, way) in ways {
        // The second run repeats the first without its setup; the runs after that are counted. A list of the log's
        // index may still grow once to a length that the timing of its helper thread did not need before.
        way(cast);
        way(cast);
        settle(cast);
        let mut allocations = 0;
        for _ in 0..4 {
            let before = COUNT.allocations();
            way(cast);
            settle(cast);
            allocations = COUNT.allocations() - before;
            if allocations == 0 {
                break;
            }
        }
        assert_eq!(allocations, 0, "allocations on the way: {name}");
    }
}

/// Sends a request on each connection. The answers show that everything before is done.
fn settle(cast: &mut Cast) {
    let Cast { publisher, confirming, consumer, getter, requester, transacting } = cast;
    for link in [publisher, confirming, consumer, getter, requester, transacting] {
        be_done(link);
    }
}

/// Waits until everything it sent before is done.
fn be_done(link: &mut Link) {
    link.send(1, &Method::ChannelFlow { active: true });
    loop {
        match link.next().method() {
            Method::ChannelFlowOk { .. } => return,
            // The publisher had to wait for capacity. The notification of its end comes a little later.
            Method::ConnectionBlocked { .. } | Method::ConnectionUnblocked {} => {}
            other => panic!("{other:?}"),
        }
    }
}

fn by_default_exchange(cast: &mut Cast) {
    for size in [0, 16, 100, 300, 5_000] {
        let script = publish("", "auto", false, &[0, 0], &vec![7; size]).repeat(200);
        cast.publisher.write(&script);
        for _ in 0..200 {
            assert_eq!(cast.consumer.content().1.len(), size);
        }
    }
}

fn by_every_exchange(cast: &mut Cast) {
    let headers = with_headers(&headers_table());
    let mut script = Vec::new();
    for _ in 0..50 {
        for (exchange, key) in EVERYWHERE {
            // The first goes beside the cache, for the one before was another; the second through it.
            script.extend(publish(exchange, key, false, &headers, b"a body").repeat(2));
            script.extend(publish(exchange, key, false, &[0, 0], b"a body").repeat(2));
        }
    }
    cast.publisher.write(&script);
    // Direct to one queue; fanout, topic and exchange to exchange to three; headers to three or none.
    for _ in 0..50 * (4 + 12 + 12 + 6 + 12) {
        cast.consumer.content();
    }
}

/// One header, which is fewer than the bindings ask for, and nearly as many as a frame has room for.
fn by_headers(cast: &mut Cast) {
    let many: Vec<u8> = (1..20_000_u32).flat_map(|at| [2, 0x80 | (at >> 8) as u8, at as u8, b'V']).collect();
    let few = headers_table();
    for entries in [few.clone(), [few, many].concat()] {
        let script = publish("amq.headers", "", false, &with_headers(&entries), b"a body").repeat(10);
        cast.publisher.write(&script);
        take(&mut cast.consumer, 30);
    }
}

fn durable(queue: &str) -> Method<'_> {
    Method::QueueDeclare {
        queue,
        passive: false,
        durable: true,
        exclusive: false,
        auto_delete: false,
        no_wait: false,
        arguments: Table::EMPTY,
    }
}

/// Properties that say delivery_mode 2.
const PERSISTENT: [u8; 3] = [0x10, 0, 2];

/// Messages that are synced before they are confirmed, and those whose commit comes when it comes.
fn kept(cast: &mut Cast) {
    for size in [10, 200, 5_000] {
        let one = publish("", "kept", false, &PERSISTENT, &vec![3; size]);
        for _ in 0..30 {
            cast.confirming.write(&one);
            let answer = cast.confirming.next();
            assert!(matches!(answer.method(), Method::BasicAck { .. }), "{answer:?}");
            let delivery_tag = take(&mut cast.consumer, 1);
            cast.consumer.send(2, &Method::BasicAck { delivery_tag, multiple: false });
        }
        cast.publisher.write(&one.repeat(100));
        take(&mut cast.consumer, 100);
        cast.consumer.send(2, &Method::BasicAck { delivery_tag: 0, multiple: true });
    }
}

/// More than memory is meant to hold: most of it leaves memory and is read back.
fn read_back(cast: &mut Cast) {
    fill_and_empty(cast, "deep", &PERSISTENT);
}

fn fill_and_empty(cast: &mut Cast, queue: &str, properties: &[u8]) {
    const DEEP: usize = 6_000;
    let one = publish("", queue, false, properties, &[4; 50]);
    cast.publisher.write(&one.repeat(DEEP));
    be_done(&mut cast.publisher);
    for _ in 0..DEEP {
        cast.getter.send(1, &Method::BasicGet { queue, no_ack: true });
        cast.getter.content();
    }
}

/// Publishes `count` messages to a queue.
fn give(cast: &mut Cast, queue: &str, count: usize) {
    let script = publish("", queue, false, &[0, 0], &[1; 200]).repeat(count);
    cast.publisher.write(&script);
}

/// Receives `count` deliveries; returns the last delivery tag.
fn take(link: &mut Link, count: usize) -> u64 {
    let mut last = 0;
    for _ in 0..count {
        let (method, _) = link.content();
        let Method::BasicDeliver { delivery_tag, .. } = method.method() else { panic!("{method:?}") };
        last = delivery_tag;
    }
    last
}

fn acknowledged(cast: &mut Cast) {
    give(cast, "acked", 150);
    let last = take(&mut cast.consumer, 100);
    for delivery_tag in last - 99..=last {
        cast.consumer.send(2, &Method::BasicAck { delivery_tag, multiple: false });
    }
    let delivery_tag = take(&mut cast.consumer, 50);
    cast.consumer.send(2, &Method::BasicAck { delivery_tag, multiple: true });
}

fn requeued(cast: &mut Cast) {
    give(cast, "acked", 60);
    let last = take(&mut cast.consumer, 60);
    cast.consumer.send(2, &Method::BasicReject { delivery_tag: last, requeue: true });
    take(&mut cast.consumer, 1);
    cast.consumer.send(2, &Method::BasicNack { delivery_tag: 0, multiple: true, requeue: true });
    let last = take(&mut cast.consumer, 60);
    cast.consumer.send(2, &Method::BasicReject { delivery_tag: last, requeue: false });
    cast.consumer.send(2, &Method::BasicRecover { requeue: true });
    assert!(matches!(cast.consumer.next().method(), Method::BasicRecoverOk {}));
    take(&mut cast.consumer, 59);
    cast.consumer.send(2, &Method::BasicAck { delivery_tag: 0, multiple: true });
}

fn got(cast: &mut Cast) {
    give(cast, "got", 40);
    be_done(&mut cast.publisher);
    for number in 0..40 {
        cast.getter.send(1, &Method::BasicGet { queue: "got", no_ack: number % 2 == 0 });
        let (method, _) = cast.getter.content();
        let Method::BasicGetOk { delivery_tag, .. } = method.method() else { panic!("{method:?}") };
        if number % 2 == 1 {
            cast.getter.send(1, &Method::BasicAck { delivery_tag, multiple: false });
        }
    }
    let empty = cast.getter.ask(1, &Method::BasicGet { queue: "got", no_ack: true });
    assert!(matches!(empty.method(), Method::BasicGetEmpty {}));
}

/// Waits for the confirms of the last `publishes` messages.
fn await_confirms(link: &mut Link, publishes: u64) {
    thread_local! {
        static PUBLISHED: Cell<u64> = const { Cell::new(0) };
    }
    let upto = PUBLISHED.with(|published| {
        published.set(published.get() + publishes);
        published.get()
    });
    loop {
        let frame = link.next();
        match frame.method() {
            Method::BasicAck { delivery_tag, .. } if delivery_tag == upto => return,
            Method::BasicAck { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

fn confirmed(cast: &mut Cast) {
    let script = publish("", "auto", false, &[0, 0], b"to be confirmed");
    for together in [1, 100] {
        cast.confirming.write(&script.repeat(together));
        take(&mut cast.consumer, together);
        await_confirms(&mut cast.confirming, together as u64);
    }
}

fn returned(cast: &mut Cast) {
    let script = publish("", "no such queue", true, &[0, 0], &[3; 300]);
    for _ in 0..20 {
        cast.confirming.write(&script);
        let (method, body) = cast.confirming.content();
        assert!(matches!(method.method(), Method::BasicReturn { .. }) && body.len() == 300);
        await_confirms(&mut cast.confirming, 1);
    }
}

fn replied(cast: &mut Cast) {
    let properties = [&[0x02, 0x00, 21][..], b"amq.rabbitmq.reply-to"].concat();
    let request = publish("", "requests", false, &properties, &[5; 1_000]);
    for _ in 0..20 {
        cast.requester.write(&request);
        cast.requester.ask(1, &Method::ChannelFlow { active: true });
        cast.getter.send(1, &Method::BasicGet { queue: "requests", no_ack: true });
        let (_, properties, body) = cast.getter.content_with_properties();
        let token = std::str::from_utf8(&properties[3..]).expect("a name");
        cast.getter.write(&publish("", token, false, &[0, 0], &body));
        assert_eq!(cast.requester.content().1, body);
    }
}

fn transacted(cast: &mut Cast) {
    let script = publish("amq.fanout", "", false, &[0, 0], &[5; 500]).repeat(20);
    cast.transacting.write(&script);
    cast.transacting.ask(1, &Method::TxRollback {});
    cast.transacting.write(&script);
    cast.transacting.ask(1, &Method::TxCommit {});
    take(&mut cast.consumer, 60);
}

/// As large as the profile takes.
const LARGE_BYTES: usize = 4 << 20;
/// The most that is allocated in one piece for a large message that is kept.
const LARGE_KEPT_BYTES_MAX: u64 = 64 << 10;

/// The largest message, written down, confirmed, delivered and acknowledged.
fn large_and_kept(cast: &mut Cast) {
    cast.confirming.write(&publish("", "kept", false, &PERSISTENT, &vec![9; LARGE_BYTES]));
    assert!(matches!(cast.confirming.next().method(), Method::BasicAck { .. }));
    let delivery_tag = take(&mut cast.consumer, 1);
    cast.consumer.send(2, &Method::BasicAck { delivery_tag, multiple: false });
}

fn large(cast: &mut Cast) {
    let script = publish("", "auto", false, &[0, 0], &vec![9; LARGE_BYTES]);
    for _ in 0..3 {
        cast.publisher.write(&script);
        assert_eq!(cast.consumer.content().1.len(), LARGE_BYTES);
    }
}

fn in_pieces(cast: &mut Cast) {
    let script = publish("", "auto", false, &[0, 0], &[9; 700]);
    for piece in script.repeat(2).chunks(37) {
        cast.publisher.write(piece);
        // The broker has seen the piece before the next comes.
        cast.getter.ask(1, &Method::ChannelFlow { active: true });
    }
    take(&mut cast.consumer, 2);
}

fn waited(cast: &mut Cast) {
    const MANY: usize = 6_000;
    let script = publish("", "waiting", false, &[0, 0], &[1; 3_000]).repeat(MANY);
    std::thread::scope(|scope| {
        let Cast { publisher, consumer, .. } = cast;
        scope.spawn(|| publisher.write(&script));
        let mut left = MANY;
        while left > 0 {
            let count = left.min(100);
            take(consumer, count);
            consumer.send(2, &Method::BasicAck { delivery_tag: 0, multiple: true });
            left -= count;
        }
    });
    let (mut told, mut is_answered) = (0, false);
    cast.publisher.send(1, &qos(1));
    // The notification of the end of the wait comes a moment later.
    while !is_answered || told % 2 == 1 {
        match cast.publisher.next().method() {
            Method::ConnectionBlocked { .. } | Method::ConnectionUnblocked {} => told += 1,
            Method::BasicQosOk {} => is_answered = true,
            other => panic!("{other:?}"),
        }
    }
    assert!(told >= 2, "it had to wait: told {told} times");
}

fn aside(cast: &mut Cast) {
    cast.publisher.write(&leveret_amqp::HEARTBEAT_FRAME);
    cast.publisher.ask(1, &qos(3));
    cast.publisher.ask(0, &Method::ConnectionUpdateSecret { new_secret: b"x", reason: "y" });
}
