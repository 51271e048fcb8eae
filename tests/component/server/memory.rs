//! The memory limit: the built broker with every pool filled stays within `memory_limit`, and releases the
//! memory of a burst to the system.
//!
//! The kernel's counters (VmHWM, VmRSS) are checked, so they include memory that the broker does not account
//! for.

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use leveret_amqp::{Method, Table};
use leveret_config::{Config, Layer};
use leveret_core::limits::Limits;
use leveret_test_support::built_program::{TempDir, patience};
use leveret_test_support::simulated_server::{content_frames, declare, method_frame};
use leveret_test_support::socket_client::{Broker, Link};

/// Time for which a broker that accepts nothing more is tried, in seconds.
const FULL_AFTER_S: u64 = 1;
/// Number of times that a flood fills all bodies: dropped or delivered messages free memory for more.
const FLOOD_TIMES: u64 = 4;
/// Longer than the time for which memory of a burst stays allocated, in seconds.
const GIVEN_BACK_WITHIN_S: u64 = 20;

/// Returns a number of kilobytes from the process status, in bytes.
fn status_bytes(broker: &Broker, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", broker.pid())).expect("it runs");
    let line = status.lines().find(|line| line.starts_with(name)).expect("the kernel says it");
    let digits: String = line.chars().filter(char::is_ascii_digit).collect();
    digits.parse::<u64>().expect("a number") * 1024
}

fn profile(board: &str) -> Config {
    let mut flags = Layer::default();
    flags.board = Some(board.to_string());
    Config::gather(None, flags).expect("it comes with the program")
}

/// Fills every pool of one broker completely.
struct Filler {
    limits: Limits,
    links: Vec<Link>,
    channels_each: u16,
}

impl Filler {
    /// Opens all connections with all channels.
    fn open(broker: &Broker, limits: &Limits) -> Self {
        let channels = limits.channels_max / limits.connections_max;
        let channels_each = (channels as u16).min(limits.channel_max);
        let mut filler = Self { limits: limits.clone(), links: Vec::new(), channels_each };
        for link in 0..limits.connections_max as usize {
            let numbers: Vec<u16> = (1..=filler.channels_of(link)).collect();
            filler.links.push(Link::open(broker.address, &numbers));
        }
        filler
    }

    /// Returns the number of channels of a connection. The last one has to leave as many to others as it has
    /// itself.
    fn channels_of(&self, link: usize) -> u16 {
        let is_last = link + 1 == self.limits.connections_max as usize;
        if is_last { (self.channels_each / 2).max(1) } else { self.channels_each }
    }

    /// Returns a unique name, so long that all names together nearly fill their limit.
    fn name(&self, kind: char, number: u32) -> String {
        let things = self.limits.queues_max + self.limits.exchanges_max + self.limits.bindings_max;
        let each = self.limits.names_bytes_max / things * 3 / 4;
        format!("{kind}{number:0width$}", width = each.clamp(8, 200) as usize)
    }

    /// Sends methods without reading, then waits for an answer on each connection.
    ///
    /// No connection may declare more than fifteen times what it leaves to others, so from `link` on each
    /// declares an equal number.
    fn send_all(&mut self, mut link: usize, mut methods: &[Vec<u8>]) {
        while !methods.is_empty() {
            let (now, later) = methods.split_at((methods.len() * 15 / 16).max(1));
            now.iter().for_each(|bytes| self.links[link].write(bytes));
            self.links[link].ask(1, &Method::BasicQos { prefetch_size: 0, prefetch_count: 0, global: false });
            (methods, link) = (later, link + 1);
        }
    }

    /// Declares queues (every other one durable), exchanges, and bindings of three words.
    fn declare_all(&mut self) {
        let queues: Vec<String> = (0..self.limits.queues_max).map(|number| self.name('q', number)).collect();
        let exchanges: Vec<String> =
            (8..self.limits.exchanges_max).map(|number| self.name('e', number)).collect();
        let declares = queues.iter().enumerate().map(|(at, queue)| declare_queue(queue, at % 2 == 0));
        self.send_all(0, &declares.collect::<Vec<_>>());
        let declares = exchanges.iter().map(|exchange| declare_exchange(exchange));
        self.send_all(6, &declares.collect::<Vec<_>>());
        let each = self.limits.bindings_max as usize / exchanges.len();
        let mut binds = Vec::new();
        for (at, exchange) in exchanges.iter().enumerate() {
            for number in 0..each {
                let key = format!("w{number}.{at}");
                let queue = &queues[(at * each + number) % queues.len()];
                binds.push(bind_queue(queue, exchange, &key));
            }
        }
        self.send_all(12, &binds);
    }

    /// Starts consumers on every channel that acknowledge nothing, none of them on the first queue.
    fn consume_all(&mut self) {
        let each = self.limits.consumers_max / self.limits.connections_max / u32::from(self.channels_each);
        for link in 0..self.links.len() {
            for channel in 1..=self.channels_of(link) {
                for number in 0..each {
                    let queue = 1 + (link as u32 * 31 + number) % (self.limits.queues_max - 1);
                    let tag = format!("consumer {link} {channel} {number}");
                    let consume = Method::BasicConsume {
                        queue: &self.name('q', queue),
                        consumer_tag: &tag,
                        no_local: false,
                        no_ack: false,
                        exclusive: false,
                        no_wait: false,
                        arguments: Table::EMPTY,
                    };
                    self.links[link].ask(channel, &consume);
                }
            }
        }
    }

    /// Publishes from `links` until the broker accepts nothing from any of them.
    fn flood(&mut self, links: core::ops::Range<usize>, mut message: impl FnMut(usize) -> Vec<u8>) -> usize {
        for link in &self.links[links.clone()] {
            link.stream.set_nonblocking(true).expect("it is a socket");
        }
        let mut rest: Vec<(Vec<u8>, usize)> = links.clone().map(|_| (Vec::new(), 0)).collect();
        let (mut last_taken, mut count) = (Instant::now(), 0);
        let count_max = (self.limits.messages_max + self.limits.queue_entries_max) as usize;
        let (mut bytes_sent, bytes_max) = (0, FLOOD_TIMES * self.limits.body_bytes_max);
        while last_taken.elapsed() < patience(FULL_AFTER_S) && count < count_max && bytes_sent < bytes_max {
            let mut took = false;
            for (link, (bytes, at)) in self.links[links.clone()].iter_mut().zip(&mut rest) {
                if *at == bytes.len() {
                    (*bytes, *at) = (message(count), 0);
                    (count, bytes_sent) = (count + 1, bytes_sent + bytes.len() as u64);
                }
                match link.stream.write(&bytes[*at..]) {
                    Ok(taken) => (*at, took) = (*at + taken, true),
                    Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
                }
            }
            if took {
                last_taken = Instant::now();
            } else {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        eprintln!("{count} messages from {links:?}");
        count
    }

    /// Leaves half a frame on each of the `links`.
    fn leave_half_frames(&mut self, links: core::ops::Range<usize>) {
        let each = self.limits.input_backlog_bytes_max as usize / links.len() / 2;
        let half = each.min(self.limits.frame_max as usize / 2);
        for link in &mut self.links[links] {
            let queue = "half".repeat(40);
            let mut bytes = publish(&queue, &[0, 0], &vec![7; self.limits.frame_max as usize - 8]);
            bytes.truncate(half);
            link.write(&bytes);
        }
    }
}

/// Returns basic.publish to a queue, in frames that every profile accepts.
fn publish(queue: &str, properties: &[u8], body: &[u8]) -> Vec<u8> {
    let (exchange, routing_key) = ("", queue.as_bytes());
    let method = Method::BasicPublish { exchange, routing_key, mandatory: false, immediate: false };
    let mut bytes = method_frame(1, &method);
    bytes.extend(content_frames(1, properties, body, 8_000));
    bytes
}

fn declare_queue(queue: &str, durable: bool) -> Vec<u8> {
    let method = Method::QueueDeclare {
        queue,
        passive: false,
        durable,
        exclusive: false,
        auto_delete: false,
        no_wait: true,
        arguments: Table::EMPTY,
    };
    method_frame(1, &method)
}

fn declare_exchange(exchange: &str) -> Vec<u8> {
    let method = Method::ExchangeDeclare {
        exchange,
        kind: "topic",
        passive: false,
        durable: true,
        auto_delete: false,
        internal: false,
        no_wait: true,
        arguments: Table::EMPTY,
    };
    method_frame(1, &method)
}

fn bind_queue(queue: &str, exchange: &str, key: &str) -> Vec<u8> {
    let arguments = Table::EMPTY;
    method_frame(1, &Method::QueueBind { queue, exchange, routing_key: key, no_wait: true, arguments })
}

/// Properties of a persistent message: only delivery_mode 2.
const PERSISTENT: [u8; 3] = [0x10, 0x00, 2];

/// Returns the numbers of objects with which the broker is filled. They leave about half of the shared memory to messages.
fn objects_of(config: &Config) -> Limits {
    let megabytes = (config.memory_limit_bytes / 1_000_000) as u32;
    Limits {
        connections_max: 4 * megabytes,
        channels_max: 16 * megabytes,
        consumers_max: 16 * megabytes,
        queues_max: 16 * megabytes,
        exchanges_max: 8 + 4 * megabytes,
        bindings_max: 48 * megabytes,
        names_bytes_max: 8_000 * megabytes,
        messages_max: 3_000 * megabytes,
        queue_entries_max: 6_000 * megabytes,
        body_bytes_max: u64::from(megabytes) * 500_000,
        ..config.limits.clone()
    }
}

/// Fills a broker of this board with everything it can hold at once.
fn stays_within_its_limit(board: &str) {
    let config = profile(board);
    let limits = objects_of(&config);
    // Unlimited syncs, or declaring everything would take minutes. A small disk limit, or messages would be
    // written forever.
    let (_home, path) = file("[store]\nsyncs_per_second = 0\ndisk_limit = \"48MB\"\n");
    let broker = Broker::start(&["--board", board, "--config", path.to_str().expect("UTF-8")]);
    let mut filler = Filler::open(&broker, &limits);
    filler.declare_all();
    filler.consume_all();
    let (all, names) = (filler.links.len(), [0, 1, 2, 3].map(|number| filler.name('q', number)));
    filler.leave_half_frames(all / 2..all * 3 / 4);
    // Unacknowledged deliveries through all queues except the first one; then messages without a consumer.
    // Tiny ones fill the records and the index, and large ones the blocks.
    let queues: Vec<String> = (1..limits.queues_max).map(|number| filler.name('q', number)).collect();
    let mut sent = filler.flood(4..6, |at| publish(&queues[at % queues.len()], &PERSISTENT, &[1; 40]));
    sent += filler.flood(6..8, |_| publish(&names[0], &PERSISTENT, b""));
    sent += filler.flood(8..10, |at| publish(&names[0], &[0, 0], &vec![2; at % 300]));
    let large = vec![3; limits.frame_max as usize * 3];
    sent += filler.flood(10..12, |_| publish(&names[0], &[0, 0], &large));
    let (peak, limit) = (status_bytes(&broker, "VmHWM:"), config.memory_limit_bytes);
    let now = status_bytes(&broker, "VmRSS:");
    eprintln!("{board}: {sent} messages, {now} bytes resident, {peak} at most, of {limit}");
    assert!(peak <= limit, "{peak} bytes resident, and memory_limit is {limit}");
    let shared = config.limits.memory_table(&leveret_daemon::record_sizes(&config), limit).shared_bytes();
    assert!(now > shared * 9 / 10, "{now} bytes are not what full pools take, {shared}");
}

#[test]
fn a_full_router_of_64_mb_stays_within_its_limit() {
    stays_within_its_limit("router-64");
}

#[test]
fn a_full_router_of_128_mb_stays_within_its_limit() {
    stays_within_its_limit("router-128");
}

#[test]
fn a_full_pi_zero_stays_within_its_limit() {
    stays_within_its_limit("pi-zero-w");
}

/// Writes a configuration file in a folder of its own.
fn file(text: &str) -> (TempDir, PathBuf) {
    let home = TempDir::new("memory");
    let path = home.path().join("leveret.toml");
    fs::write(&path, text).expect("the folder can be written");
    (home, path)
}

#[test]
fn locked_memory_is_what_is_used_and_is_released_after_a_burst() {
    let limits = fs::read_to_string("/proc/self/limits").expect("the kernel says it");
    let line = limits.lines().find(|line| line.starts_with("Max locked memory")).expect("it is listed");
    let is_root = fs::metadata("/proc/self").is_ok_and(|me| std::os::unix::fs::MetadataExt::uid(&me) == 0);
    if !line.contains("unlimited") && !is_root {
        eprintln!("SKIP memory may not be locked here: {line}");
        return;
    }
    let (_home, path) = file("memory_lock = true\n");
    let broker = Broker::start(&["--config", path.to_str().expect("UTF-8")]);
    let (locked, resident) = (status_bytes(&broker, "VmLck:"), status_bytes(&broker, "VmRSS:"));
    assert!(locked >= resident / 10 * 9, "{locked} of {resident} bytes are locked");
    assert!(
        status_bytes(&broker, "RssAnon:") < 5_000_000,
        "{resident} bytes are resident while nothing is used"
    );
    release_a_burst(&broker);
}

#[test]
fn a_thousand_connections_and_queues_are_small() {
    let broker = Broker::start(&[]);
    let before = status_bytes(&broker, "RssAnon:");
    let mut links: Vec<Link> = (0..1_000).map(|_| Link::open(broker.address, &[1])).collect();
    let each = (status_bytes(&broker, "RssAnon:") - before) / 1_000;
    for (number, link) in links.iter_mut().enumerate() {
        link.ask(1, &declare(&format!("queue {number}")));
    }
    let all = status_bytes(&broker, "VmRSS:");
    eprintln!("{each} bytes per connection, {all} in all");
    assert!(each <= 4_000, "{each} bytes per idle connection with a channel");
    assert!(all <= 16_000_000, "{all} bytes with 1,000 connections and 1,000 queues");
}

/// Memory of many small messages, unacknowledged deliveries and connections is released when they are gone.
#[test]
fn the_memory_of_a_burst_is_released() {
    release_a_burst(&Broker::start(&[]));
}

fn release_a_burst(broker: &Broker) {
    let mut control = Link::open(broker.address, &[1]);
    control.ask(1, &declare("burst"));
    let before = status_bytes(broker, "RssAnon:");
    let mut publisher = Link::open(broker.address, &[1]);
    let messages: Vec<u8> = publish("burst", &[0, 0], b"a reading").repeat(1_000);
    for _ in 0..150 {
        publisher.write(&messages);
    }
    publisher.ask(1, &declare("is all there"));
    let mut consumer = Link::open(broker.address, &[1]);
    consumer.ask(1, &leveret_test_support::simulated_server::consume("burst", "it", false));
    for _ in 0..20_000 {
        consumer.content();
    }
    let crowd: Vec<Link> = (0..300).map(|_| Link::open(broker.address, &[1, 2, 3])).collect();
    let peak = status_bytes(broker, "RssAnon:");
    assert!(peak > before + 20_000_000, "{peak} bytes are no burst");
    drop((crowd, consumer, publisher));
    let deadline = Instant::now() + patience(GIVEN_BACK_WITHIN_S);
    // Unacknowledged messages are requeued when the broker has noticed the end of their consumer.
    while status_bytes(broker, "RssAnon:") > before + 2_500_000 {
        let left = status_bytes(broker, "RssAnon:");
        assert!(Instant::now() < deadline, "{left} bytes stayed of {peak}; before there were {before}");
        control.ask(1, &leveret_test_support::simulated_server::purge("burst"));
        std::thread::sleep(Duration::from_millis(100));
    }
}
