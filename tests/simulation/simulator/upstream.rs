//! A simulated upstream with the faults that a bridge may meet.
//!
//! It confirms late and in any order, rejects, returns, closes channels, falls silent, stalls, and loses the
//! connection between a publish and its confirm.
//!
//! # Invariants
//! - It keeps each message that it has taken, whether or not the bridge was told.
//! - It never sends anything that RabbitMQ would not send in the same situation.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use leveret_amqp::{ContentHeader, FrameKind, HEARTBEAT_FRAME, Method, Properties, Table, next_frame};

use super::source::Source;
use leveret_test_support::random::Random;
use leveret_test_support::simulated_server::{Line, content_frames, method_frame};

/// Interval of its heartbeats, in milliseconds.
const BEAT_MS: u64 = 2_000;

/// The decision about a publish, which is sent when it is due.
#[derive(Clone, Copy, Debug)]
struct Verdict {
    due_ms: u64,
    is_taken: bool,
}

/// Its faults, each in one of this many publishes; 0: never.
#[derive(Clone, Copy, Debug, Default)]
pub struct Vices {
    pub nacks: u64,
    pub returns: u64,
    pub closes: u64,
    pub resets: u64,
    pub stalls: u64,
    /// It falls silent permanently, while the connection stays open.
    pub dies: u64,
    /// It never confirms a publish, and works normally otherwise.
    pub forgets: u64,
    /// It closes a channel without a publish as the cause.
    pub idle_closes: u64,
    /// Maximum delay of a confirm, in milliseconds.
    pub late_ms: u64,
}

/// A channel that is open, or that it has closed without an answer so far.
#[derive(Debug, Default)]
struct Channel {
    publishes: u64,
    verdicts: BTreeMap<u64, Verdict>,
    properties: Vec<u8>,
    key: Vec<u8>,
    /// The incoming body, and the number of bytes still to come.
    body: Vec<u8>,
    left: u64,
    is_closed: bool,
}

pub struct Upstream {
    pub line: Rc<RefCell<Line>>,
    pub vices: Vices,
    /// The messages that it has taken, in order: channel, number, and whether marked as a possible repeat.
    pub taken: Vec<(u16, u64, bool)>,
    /// All messages that it has ever rejected.
    pub refused: BTreeSet<u64>,
    /// Message ids and their messages. Each id belongs to one message, and each message has one id.
    pub names: BTreeMap<String, u64>,
    named: BTreeMap<u64, String>,
    /// The queue that a bridge fetches from.
    pub source: Source,
    /// Number of connections that it has ended during a transfer.
    pub breaks: u64,
    pub now: u64,
    heard: Vec<u8>,
    dialed: u32,
    channels: BTreeMap<u16, Channel>,
    beats_at: u64,
    deaf_until: u64,
    /// Its random decisions follow from the seed and from the number of messages received.
    seed: u64,
    messages: u64,
}

impl Upstream {
    pub fn new(seed: u64, line: Rc<RefCell<Line>>, vices: Vices) -> Self {
        Self {
            line,
            vices,
            taken: Vec::new(),
            refused: BTreeSet::new(),
            names: BTreeMap::new(),
            named: BTreeMap::new(),
            source: Source::default(),
            breaks: 0,
            now: 0,
            heard: Vec::new(),
            dialed: 0,
            channels: BTreeMap::new(),
            beats_at: u64::MAX,
            deaf_until: 0,
            seed,
            messages: 0,
        }
    }

    /// Forgets the connection: it was replaced by another one, or the broker has stopped.
    pub fn forget_connection(&mut self, dialed: u32) {
        if super::is_traced() {
            eprintln!("{} upstream: connection {dialed}", self.now);
        }
        self.dialed = dialed;
        self.heard.clear();
        self.channels.clear();
        self.source.take_back();
        (self.beats_at, self.deaf_until) = (u64::MAX, 0);
    }

    /// Returns whether no confirm is due or delayed.
    pub fn is_at_rest(&self) -> bool {
        self.channels.values().all(|channel| channel.verdicts.is_empty())
    }

    /// Returns when it acts next without input.
    pub fn next_ms(&self) -> u64 {
        if self.line.borrow().is_lost() || !self.line.borrow().is_held {
            return u64::MAX;
        }
        let verdicts = self.channels.values().flat_map(|channel| channel.verdicts.values());
        let due = verdicts.map(|verdict| verdict.due_ms).min().unwrap_or(u64::MAX);
        due.min(self.beats_at).max(self.deaf_until)
    }

    /// Reads and answers. Returns whether anything moved.
    pub fn step(&mut self, dialed: u32) -> bool {
        if dialed != self.dialed {
            self.forget_connection(dialed);
        }
        if self.deaf_until > self.now || self.line.borrow().is_lost() {
            return false;
        }
        let read = self.line.borrow_mut().read_down(usize::MAX, &mut self.heard);
        if self.heard.starts_with(b"AMQP\0") && self.heard.len() < 8 {
            return true;
        }
        if self.heard.starts_with(b"AMQP\0") {
            self.heard.drain(..8);
            self.say(0, &start());
        }
        let heard = core::mem::take(&mut self.heard);
        let mut at = 0;
        while let Some(frame) = next_frame(&heard[at..], 1 << 20).expect("the bridge's frames are sound") {
            at += frame.input_len();
            let on = frame.header.channel;
            match frame.header.kind().expect("a known kind") {
                FrameKind::Method => self.take_method(on, frame.payload),
                FrameKind::Header => {
                    let header = ContentHeader::parse(frame.payload).expect("a sound header");
                    let channel = self.channels.get_mut(&on).expect("a content is on an open channel");
                    assert_eq!(channel.left, 0, "a content within another");
                    channel.properties = header.properties.as_bytes().to_vec();
                    (channel.left, channel.body) = (header.body_len, Vec::new());
                }
                FrameKind::Body => self.take_body(on, frame.payload),
                FrameKind::Heartbeat => {}
            }
            // Frames before the end of the connection count; later ones are not read.
            if self.line.borrow().is_lost() {
                return true;
            }
        }
        self.heard = heard[at..].to_vec();
        let spoke = self.speak();
        read > 0 || spoke
    }

    fn take_method(&mut self, on: u16, payload: &[u8]) {
        if super::is_traced() {
            eprintln!("{} upstream is told on {on} {:?}", self.now, Method::parse(payload));
        }
        let answer = match Method::parse(payload).expect("the bridge's methods are sound") {
            Method::ConnectionStartOk { .. } => {
                (0, Method::ConnectionTune { channel_max: 2047, frame_max: 131_072, heartbeat: 60 })
            }
            Method::ConnectionOpen { .. } => {
                self.beats_at = self.now + BEAT_MS;
                (0, Method::ConnectionOpenOk {})
            }
            Method::ChannelOpen {} => {
                let before = self.channels.insert(on, Channel::default());
                assert!(before.is_none(), "channel {on} is opened twice");
                (on, Method::ChannelOpenOk {})
            }
            Method::ChannelClose { .. } if self.channels.get(&on).is_some_and(|it| it.is_closed) => {
                // The close has crossed the upstream's own.
                (on, Method::ChannelCloseOk {})
            }
            Method::ChannelClose { .. } => {
                let channel = self.channels.remove(&on).expect("an open channel is closed");
                assert_eq!(channel.left, 0, "a channel is closed in the middle of a content");
                self.source.take_back();
                (on, Method::ChannelCloseOk {})
            }
            Method::ChannelCloseOk {} => {
                let channel = self.channels.remove(&on).expect("it was closed");
                assert!(channel.is_closed, "a close-ok without a close");
                return;
            }
            Method::ConfirmSelect { .. } => (on, Method::ConfirmSelectOk {}),
            Method::BasicPublish { routing_key, .. } => {
                let channel = self.channels.get_mut(&on).expect("a publish is on an open channel");
                assert_eq!(channel.left, 0, "a publish within a content");
                channel.key = routing_key.to_vec();
                return;
            }
            Method::ConnectionClose { .. } => (0, Method::ConnectionCloseOk {}),
            // Methods on a closed channel have no effect.
            _ if self.channels.get(&on).is_none_or(|channel| channel.is_closed) => return,
            method => match self.source.hear(on, &method) {
                Some(answer) => (on, answer),
                None => return,
            },
        };
        self.say(answer.0, &answer.1);
    }

    fn take_body(&mut self, on: u16, octets: &[u8]) {
        let channel = self.channels.get_mut(&on).expect("a body is on an open channel");
        channel.body.extend(octets);
        channel.left = channel.left.checked_sub(octets.len() as u64).expect("no more than was announced");
        if channel.left == 0 && !channel.is_closed {
            let body = core::mem::take(&mut channel.body);
            channel.publishes += 1;
            self.take_message(on, &body);
        }
    }

    fn take_name(&mut self, on: u16, number: u64) {
        let marked = Properties::trusted(&self.channels[&on].properties);
        let name = marked.headers().and_then(|headers| headers.get("x-bridge-id")?.as_str());
        let name = name.expect("a bridge sets a message id").to_string();
        let other = *self.names.entry(name.clone()).or_insert(number);
        assert_eq!(other, number, "two messages have the id {name}");
        let before = self.named.entry(number).or_insert_with(|| name.clone());
        assert_eq!(*before, name, "{number} has another id than before");
    }

    fn take_message(&mut self, on: u16, body: &[u8]) {
        let number = u64::from_be_bytes(*body.first_chunk().expect("bodies begin with their number"));
        self.messages += 1;
        let random = &mut Random::of(self.seed, "upstream's message", &[self.messages]);
        if super::is_traced() {
            eprintln!("{} upstream hears {number} on {on}", self.now);
        }
        self.take_name(on, number);
        let vices = self.vices;
        let mut happens = |one_in: u64| one_in > 0 && random.once_in(one_in);
        if happens(vices.closes) {
            self.refused.insert(number);
            if super::is_traced() {
                eprintln!("{} upstream closes its channel over {number}", self.now);
            }
            let reply_text = "NOT_FOUND - no exchange 'there' in vhost '/'";
            let close = Method::ChannelClose { reply_code: 404, reply_text, class_id: 60, method_id: 40 };
            self.say(on, &close);
            // Later frames on this channel are ignored.
            if let Some(channel) = self.channels.get_mut(&on) {
                (channel.is_closed, channel.verdicts) = (true, BTreeMap::new());
            }
            return;
        }
        let is_returned = happens(vices.returns);
        let is_nacked = !is_returned && happens(vices.nacks);
        if is_returned {
            let channel = &self.channels[&on];
            let (reply_text, routing_key) = ("NO_ROUTE", &channel.key[..]);
            self.say(on, &Method::BasicReturn { reply_code: 312, reply_text, exchange: "", routing_key });
            self.say_bytes(&content_frames(on, &channel.properties, body, 100_000));
        }
        if is_returned || is_nacked {
            if super::is_traced() {
                eprintln!("{} upstream refuses {number}", self.now);
            }
            self.refused.insert(number);
        } else {
            let marked = Properties::trusted(&self.channels[&on].properties);
            let is_repeat = marked.headers().is_some_and(|headers| headers.get("x-bridge-repeat").is_some());
            self.taken.push((on, number, is_repeat));
        }
        let late_ms = if vices.late_ms > 0 { random.below(vices.late_ms) } else { 0 };
        let verdict = Verdict { due_ms: self.now + late_ms, is_taken: !is_nacked };
        let mut happens = |one_in: u64| one_in > 0 && random.once_in(one_in);
        if !happens(vices.forgets)
            && let Some(channel) = self.channels.get_mut(&on)
        {
            channel.verdicts.insert(channel.publishes, verdict);
        }
        let mut happens = |one_in: u64| one_in > 0 && random.once_in(one_in);
        if happens(vices.idle_closes)
            && let Some(channel) = self.channels.get_mut(&on)
        {
            (channel.is_closed, channel.verdicts) = (true, BTreeMap::new());
            let close =
                Method::ChannelClose { reply_code: 541, reply_text: "INTERNAL", class_id: 0, method_id: 0 };
            self.say(on, &close);
            return;
        }
        let mut happens = |one_in: u64| one_in > 0 && random.once_in(one_in);
        if happens(vices.resets) {
            self.line.borrow_mut().lose();
            self.breaks += 1;
        } else if happens(vices.dies) {
            (self.deaf_until, self.breaks) = (u64::MAX, self.breaks + 1);
        } else if happens(vices.stalls) {
            self.deaf_until = self.now + random.below(9_000);
        }
    }

    /// Delivers messages of its queue, as far as the bridge allows, with occasional faults.
    fn give(&mut self) -> bool {
        let mut gave = false;
        while !self.line.borrow().is_lost()
            && self.deaf_until <= self.now
            && let Some((on, frames)) = self.source.give()
        {
            gave = true;
            self.messages += 1;
            self.say_bytes(&frames);
            let random = &mut Random::of(self.seed, "upstream's delivery", &[self.messages]);
            let vices = self.vices;
            let mut happens = |one_in: u64| one_in > 0 && random.once_in(one_in);
            if happens(vices.idle_closes)
                && let Some(channel) = self.channels.get_mut(&on)
            {
                channel.is_closed = true;
                self.source.take_back();
                let reply_text = "RESOURCE_LOCKED";
                self.say(
                    on,
                    &Method::ChannelClose { reply_code: 405, reply_text, class_id: 0, method_id: 0 },
                );
            } else if happens(vices.resets) {
                self.line.borrow_mut().lose();
                self.breaks += 1;
            } else if happens(vices.dies) {
                (self.deaf_until, self.breaks) = (u64::MAX, self.breaks + 1);
            } else if happens(vices.stalls) {
                self.deaf_until = self.now + random.below(9_000);
            }
        }
        gave
    }

    /// Sends what is due.
    fn speak(&mut self) -> bool {
        let mut spoke = self.give();
        if self.beats_at <= self.now {
            self.beats_at = self.now + BEAT_MS;
            self.say_bytes(&HEARTBEAT_FRAME);
            spoke = true;
        }
        let (now, seed, messages) = (self.now, self.seed, self.messages);
        let mut said = Vec::new();
        for (on, channel) in &mut self.channels {
            while let Some((&tag, verdict)) =
                channel.verdicts.iter().find(|(_, verdict)| verdict.due_ms <= now)
            {
                let is_taken = verdict.is_taken;
                let is_the_same = |verdict: &Verdict| verdict.is_taken == is_taken;
                let random = &mut Random::of(seed, "upstream's verdict", &[messages, tag]);
                let mut before = channel.verdicts.range(..=tag);
                let multiple = before.all(|(_, verdict)| is_the_same(verdict)) && random.once_in(2);
                match multiple {
                    true => channel.verdicts = channel.verdicts.split_off(&(tag + 1)),
                    false => drop(channel.verdicts.remove(&tag)),
                }
                let delivery_tag = tag;
                let method = match is_taken {
                    true => Method::BasicAck { delivery_tag, multiple },
                    false => Method::BasicNack { delivery_tag, multiple, requeue: false },
                };
                said.push(method_frame(*on, &method));
            }
        }
        spoke |= !said.is_empty();
        said.iter().for_each(|bytes| self.say_bytes(bytes));
        spoke
    }

    fn say(&self, channel: u16, method: &Method<'_>) {
        self.say_bytes(&method_frame(channel, method));
    }

    fn say_bytes(&self, bytes: &[u8]) {
        let said = self.line.borrow_mut().write_up(bytes);
        assert_eq!(said, bytes.len(), "the line accepts all bytes of the upstream");
    }
}

const fn start() -> Method<'static> {
    Method::ConnectionStart {
        version_major: 0,
        version_minor: 9,
        server_properties: Table::EMPTY,
        mechanisms: b"PLAIN AMQPLAIN",
        locales: b"en_US",
    }
}
