//! A world in memory: real sessions, the real broker and real message pools, joined to clients by lines of
//! bytes, under a clock that jumps.
//!
//! | file      | what it is |
//! |-----------|------------|
//! | `house`   | the broker's side: everything below `net`, and the turn |
//! | `line`    | one connection: fragments, windows, breaks |
//! | `client`  | the other side |
//! | `checker` | what a client demands of what it hears |
//! | `hostile` | any octets as the life of a broker, for the fuzzer |
//!
//! Why it exists: what depends on timing (a window that is full, a byte that comes late, a day of heartbeats)
//! can be had here exactly, again and again. Always true: the same calls give the same run; a world that
//! does not come to rest is a failure, for the loop would be burning a processor.

#![allow(dead_code, unused_imports, missing_docs, unreachable_pub, reason = "each test uses its part")]

pub mod checker;
pub mod client;
pub mod hostile;
pub mod house;
pub mod line;

use leveret::limits::Limits;
use leveret::time::{Deadline, Now};
use leveret::wire::{Method, Table};

pub use checker::{Phase, Said};
pub use client::{Client, Manners, Silence, content_frames, frame, method_frame};
pub use house::House;
pub use line::{Line, Shape};

/// A peer that is gone while it waits for room is given up after so long.
pub const LOST_MS: u64 = 600_000;
/// Rounds at one instant after which a world that still moves is held to be running in circles.
const ROUNDS_MAX: u64 = 3_000_000;

/// A stream of numbers from a seed.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) % bound
    }

    pub fn one_of<T: Copy>(&mut self, things: &[T]) -> T {
        things[self.below(things.len() as u64) as usize]
    }

    /// Once in so many times.
    pub fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}

/// Limits small enough to be filled in a test.
pub fn small_limits() -> Limits {
    Limits {
        connections_max: 600,
        handshakes_max: 600,
        channels_max: 1200,
        consumers_max: 512,
        queues_max: 512,
        exchanges_max: 32,
        bindings_max: 512,
        messages_max: 2_000,
        queue_entries_max: 32_000,
        unacknowledged_max: 2_048,
        body_bytes_max: 4 << 20,
        assembly_bytes_max: 3 << 20,
        message_size_max: 1 << 20,
        stash_bytes_max: 1 << 20,
        ..Limits::default()
    }
}

/// The flags and properties of a publish.
#[derive(Clone, Copy, Debug)]
pub struct Publish<'a> {
    pub exchange: &'a str,
    pub key: &'a str,
    pub mandatory: bool,
    pub properties: &'a [u8],
    /// Octets of body per frame.
    pub piece: usize,
}

impl Default for Publish<'_> {
    fn default() -> Self {
        Self { exchange: "", key: "", mandatory: false, properties: &[0, 0], piece: 4088 }
    }
}

/// Clients, lines, house and clock.
#[derive(Debug)]
pub struct World {
    pub house: House,
    pub clients: Vec<Client>,
    pub lines: Vec<Line>,
    pub now: Now,
}

impl World {
    pub fn new(limits: Limits) -> Self {
        Self { house: House::new(limits, 1), clients: Vec::new(), lines: Vec::new(), now: Now::from_ms(0) }
    }

    /// A client connects; its number.
    pub fn connect(&mut self, manners: Manners, shape: Shape) -> usize {
        let number = self.lines.len();
        self.lines.push(Line::new(shape));
        self.clients.push(Client::new(manners));
        assert!(self.house.welcome(number, self.now), "there is a free record");
        number
    }

    /// A client with an open connection and these channels.
    pub fn open(&mut self, channels: &[u16]) -> usize {
        self.open_with(Manners::default(), Shape::WIDE, channels)
    }

    pub fn open_with(&mut self, manners: Manners, shape: Shape, channels: &[u16]) -> usize {
        let client = self.connect(manners, shape);
        self.run();
        assert_eq!(self.clients[client].checker.phase, Phase::Open);
        for channel in channels {
            self.ask(client, *channel, &Method::ChannelOpen {});
        }
        self.clients[client].heard.clear();
        client
    }

    // ---- time

    /// One round: everybody sends and receives once, and the house takes a turn if the poll would return.
    /// Says whether anything moved.
    pub fn round(&mut self) -> bool {
        let mut moved = false;
        for (client, line) in self.clients.iter_mut().zip(&mut self.lines) {
            moved |= client.step(line, self.now);
            moved |= line.arrive();
        }
        let woken = self.house.take_events(&mut self.lines);
        if woken || self.house.has_work() || self.house.next_deadline().is_due(self.now) {
            self.house.turn(&mut self.lines, self.now);
            moved = true;
        }
        moved
    }

    /// Goes on until nobody can do anything before time passes.
    pub fn run(&mut self) {
        let mut rounds = 0;
        while self.round() {
            rounds += 1;
            assert!(rounds < ROUNDS_MAX, "the world does not come to rest");
        }
    }

    pub fn next_deadline(&self) -> Deadline {
        let clients = self.clients.iter().map(Client::next_deadline);
        clients.fold(self.house.next_deadline(), Deadline::earlier)
    }

    /// Lets so much time pass, jumping from deadline to deadline.
    pub fn pass_ms(&mut self, ms: u64) {
        let end = Now::from_ms(self.now.as_ms() + ms);
        loop {
            self.run();
            let next = self.next_deadline().ms_left(self.now);
            match next.map(|left| self.now.as_ms() + left) {
                Some(at) if at <= end.as_ms() => self.now = Now::from_ms(at),
                _ => break,
            }
        }
        self.now = end;
        self.run();
    }

    // ---- what clients do

    /// Says a method; nothing moves before the world runs.
    pub fn send(&mut self, client: usize, channel: u16, method: &Method<'_>) {
        self.clients[client].send(channel, method);
    }

    /// Says a method and gives the answer to it.
    #[track_caller]
    pub fn ask(&mut self, client: usize, channel: u16, method: &Method<'_>) -> Said {
        self.clients[client].heard.retain(|said| said.channel != channel || is_unasked(said));
        self.send(client, channel, method);
        self.run();
        let heard = &mut self.clients[client].heard;
        let place = heard.iter().position(|said| said.channel == channel && !is_unasked(said));
        let found = place.and_then(|place| heard.remove(place));
        found.unwrap_or_else(|| panic!("no answer to {method:?}, but {:?}", self.shown(client)))
    }

    pub fn publish(&mut self, client: usize, channel: u16, publish: Publish<'_>, body: &[u8]) {
        let Publish { exchange, key, mandatory, properties, piece } = publish;
        let routing_key = key.as_bytes();
        let method = Method::BasicPublish { exchange, routing_key, mandatory, immediate: false };
        self.send(client, channel, &method);
        self.clients[client].say(&content_frames(channel, properties, body, piece));
    }

    /// Publishes to a queue through the default exchange.
    pub fn publish_to(&mut self, client: usize, channel: u16, queue: &str, body: &[u8]) {
        self.publish(client, channel, Publish { key: queue, ..Publish::default() }, body);
    }

    pub fn declare(&mut self, client: usize, channel: u16, queue: &str) {
        let said = self.ask(client, channel, &declare(queue));
        assert!(matches!(said.method(), Method::QueueDeclareOk { .. }), "{}", said.shown());
    }

    /// Messages that are ready, and consumers.
    pub fn counts(&mut self, client: usize, channel: u16, queue: &str) -> (u32, u32) {
        let said = self.ask(client, channel, &passive(queue));
        match said.method() {
            Method::QueueDeclareOk { message_count, consumer_count, .. } => (message_count, consumer_count),
            other => panic!("{other:?}"),
        }
    }

    /// Messages that are ready, as somebody sees it who has nothing to do with it.
    pub fn counts_from_outside(&mut self, queue: &str) -> u32 {
        let visitor = self.open(&[1]);
        let (ready, _) = self.counts(visitor, 1, queue);
        self.lose(visitor);
        self.run();
        ready
    }

    pub fn consume(&mut self, client: usize, channel: u16, queue: &str, consumer_tag: &str, no_ack: bool) {
        let said = self.ask(client, channel, &consume(queue, consumer_tag, no_ack));
        assert!(matches!(said.method(), Method::BasicConsumeOk { .. }), "{}", said.shown());
    }

    pub fn ack(&mut self, client: usize, channel: u16, delivery_tag: u64, multiple: bool) {
        self.send(client, channel, &Method::BasicAck { delivery_tag, multiple });
    }

    /// What the client heard and nobody asked about, as text.
    pub fn shown(&self, client: usize) -> Vec<String> {
        self.clients[client].heard.iter().map(Said::shown).collect()
    }

    /// What was delivered to the client and not taken yet.
    pub fn deliveries(&mut self, client: usize) -> Vec<Said> {
        let heard = core::mem::take(&mut self.clients[client].heard);
        let is_delivery = |said: &Said| matches!(said.method(), Method::BasicDeliver { .. });
        let (deliveries, others): (Vec<_>, Vec<_>) = heard.into_iter().partition(is_delivery);
        self.clients[client].heard = others.into();
        deliveries
    }

    // ---- how it ends

    /// The client says nothing more; what it sent still arrives.
    pub fn hang_up(&mut self, client: usize) {
        self.lines[client].hang_up();
    }

    /// The connection breaks.
    pub fn lose(&mut self, client: usize) {
        self.clients[client].die();
        self.lines[client].lose();
    }

    /// Everybody is gone: then nothing is left but what was declared to stay.
    pub fn lose_everybody(&mut self) {
        for client in 0..self.clients.len() {
            self.lose(client);
        }
        // Those who wait for room are given time for what they sent before.
        self.pass_ms(LOST_MS);
        assert_eq!(self.house.peers_count(), 0, "a lost peer is noticed");
    }

    /// A newcomer deletes these queues; then every pool must be empty.
    #[track_caller]
    pub fn end(mut self, queues: &[&str]) {
        self.lose_everybody();
        let cleaner = self.open(&[1]);
        for queue in queues {
            let delete = Method::QueueDelete { queue, if_unused: false, if_empty: false, no_wait: false };
            self.ask(cleaner, 1, &delete);
        }
        self.lose_everybody();
        self.house.assert_empty();
    }
}

/// Whether it came without a question.
fn is_unasked(said: &Said) -> bool {
    matches!(
        said.method(),
        Method::BasicDeliver { .. }
            | Method::BasicReturn { .. }
            | Method::BasicAck { .. }
            | Method::BasicNack { .. }
            | Method::BasicCancel { .. }
            | Method::ConnectionBlocked { .. }
            | Method::ConnectionUnblocked {}
    )
}

pub const fn declare(queue: &str) -> Method<'_> {
    Method::QueueDeclare {
        queue,
        passive: false,
        durable: false,
        exclusive: false,
        auto_delete: false,
        no_wait: false,
        arguments: Table::EMPTY,
    }
}

pub const fn passive(queue: &str) -> Method<'_> {
    Method::QueueDeclare {
        queue,
        passive: true,
        durable: false,
        exclusive: false,
        auto_delete: false,
        no_wait: false,
        arguments: Table::EMPTY,
    }
}

pub const fn consume<'a>(queue: &'a str, consumer_tag: &'a str, no_ack: bool) -> Method<'a> {
    Method::BasicConsume {
        queue,
        consumer_tag,
        no_local: false,
        no_ack,
        exclusive: false,
        no_wait: false,
        arguments: Table::EMPTY,
    }
}

pub const fn bind<'a>(queue: &'a str, exchange: &'a str, routing_key: &'a str) -> Method<'a> {
    Method::QueueBind { queue, exchange, routing_key, no_wait: false, arguments: Table::EMPTY }
}

pub const fn close_channel() -> Method<'static> {
    Method::ChannelClose { reply_code: 200, reply_text: "", class_id: 0, method_id: 0 }
}

pub const fn close_connection() -> Method<'static> {
    Method::ConnectionClose { reply_code: 200, reply_text: "", class_id: 0, method_id: 0 }
}

pub const fn qos(prefetch_count: u16) -> Method<'static> {
    Method::BasicQos { prefetch_size: 0, prefetch_count, global: false }
}

pub const fn delete(queue: &str) -> Method<'_> {
    Method::QueueDelete { queue, if_unused: false, if_empty: false, no_wait: false }
}

pub const fn purge(queue: &str) -> Method<'_> {
    Method::QueuePurge { queue, no_wait: false }
}

/// Runs a seeded test for each seed, or for those in `LEVERET_SEED` (a number, or from..to); says how to
/// replay the one that fails.
pub fn for_seeds(test: &str, seeds: core::ops::Range<u64>, run: impl Fn(u64) + std::panic::RefUnwindSafe) {
    let only = std::env::var("LEVERET_SEED").ok().and_then(|seeds| {
        let (from, to) = seeds.split_once("..").unwrap_or((&seeds, ""));
        let from = from.parse().ok()?;
        Some(from..to.parse().unwrap_or(from + 1))
    });
    for seed in only.unwrap_or(seeds) {
        if let Err(panic) = std::panic::catch_unwind(|| run(seed)) {
            eprintln!("replay with: LEVERET_SEED={seed} cargo test --profile checked --test pair {test}");
            std::panic::resume_unwind(panic);
        }
    }
}
