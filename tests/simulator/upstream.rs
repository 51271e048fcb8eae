//! An upstream as a bridge may meet it: it confirms late and in any order, refuses, returns, closes, falls
//! silent, stalls, and loses the connection between a publish and its confirm.
//!
//! Always true: what it has taken it keeps, whether or not the bridge has heard so; it never says anything
//! that a RabbitMQ would not say in its place.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use leveret::wire::{ContentHeader, FrameKind, HEARTBEAT_FRAME, Method, Properties, Table, next_frame};

use super::world::{Line, Random, content_frames, method_frame};

/// Its own heartbeats, in milliseconds.
const BEAT_MS: u64 = 2_000;

/// What it has decided of a publish, to be said when it is due.
#[derive(Clone, Copy, Debug)]
struct Verdict {
    due_ms: u64,
    is_taken: bool,
}

/// What it does at all, each one in so many publishes; 0 is never.
#[derive(Clone, Copy, Debug, Default)]
pub struct Vices {
    pub nacks: u64,
    pub returns: u64,
    pub closes: u64,
    pub resets: u64,
    pub stalls: u64,
    /// It falls silent for good, and the connection stays.
    pub dies: u64,
    /// It never says what became of a publish, and is well otherwise.
    pub forgets: u64,
    /// The most that a confirm is late, in milliseconds.
    pub late_ms: u64,
}

pub struct Upstream {
    pub line: Rc<RefCell<Line>>,
    pub vices: Vices,
    /// What it has, in order, and whether it was marked as perhaps sent before.
    pub taken: Vec<(u64, bool)>,
    /// What it has ever said no to.
    pub refused: BTreeSet<u64>,
    /// How often it has ended a connection in the midst of it.
    pub breaks: u64,
    pub now: u64,
    heard: Vec<u8>,
    dialed: u32,
    publishes: u64,
    verdicts: BTreeMap<u64, Verdict>,
    properties: Vec<u8>,
    key: Vec<u8>,
    beats_at: u64,
    deaf_until: u64,
    is_open: bool,
    /// What it leaves to chance follows from this and from how many messages it has had.
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
            breaks: 0,
            now: 0,
            heard: Vec::new(),
            dialed: 0,
            publishes: 0,
            verdicts: BTreeMap::new(),
            properties: Vec::new(),
            key: Vec::new(),
            beats_at: u64::MAX,
            deaf_until: 0,
            is_open: false,
            seed,
            messages: 0,
        }
    }

    /// The broker that had the connection is gone, or another connection has taken its place.
    pub fn forget_connection(&mut self, dialed: u32) {
        if super::is_traced() {
            eprintln!("{} upstream: connection {dialed}", self.now);
        }
        self.dialed = dialed;
        self.heard.clear();
        self.verdicts.clear();
        (self.publishes, self.beats_at, self.deaf_until, self.is_open) = (0, u64::MAX, 0, false);
    }

    /// Nothing is under way that it has still to answer.
    pub fn is_at_rest(&self) -> bool {
        self.verdicts.is_empty()
    }

    /// When it does something by itself.
    pub fn next_ms(&self) -> u64 {
        if self.line.borrow().is_lost() || !self.line.borrow().is_held {
            return u64::MAX;
        }
        let due = self.verdicts.values().map(|verdict| verdict.due_ms).min().unwrap_or(u64::MAX);
        due.min(self.beats_at).max(self.deaf_until)
    }

    /// Reads and answers; says whether anything moved.
    pub fn step(&mut self, dialed: u32) -> bool {
        if dialed != self.dialed {
            self.forget_connection(dialed);
        }
        if self.deaf_until > self.now || self.line.borrow().is_lost() {
            return false;
        }
        let read = self.line.borrow_mut().read_down(usize::MAX, &mut self.heard);
        if self.heard.starts_with(b"AMQP\0") {
            self.heard.drain(..8);
            self.say(0, &start());
        }
        let heard = core::mem::take(&mut self.heard);
        let mut at = 0;
        while let Some(frame) = next_frame(&heard[at..], 1 << 20).expect("the bridge's frames are sound") {
            at += frame.input_len();
            match frame.header.kind().expect("a known kind") {
                FrameKind::Method => self.take_method(frame.payload),
                FrameKind::Header => {
                    let header = ContentHeader::parse(frame.payload).expect("a sound header");
                    self.properties = header.properties.as_bytes().to_vec();
                }
                FrameKind::Body => self.take_message(frame.payload),
                FrameKind::Heartbeat => {}
            }
            // What it had said before it ended the connection counts; what comes after is not read.
            if self.line.borrow().is_lost() {
                return true;
            }
        }
        self.heard = heard[at..].to_vec();
        let spoke = self.speak();
        read > 0 || spoke
    }

    fn take_method(&mut self, payload: &[u8]) {
        if super::is_traced() {
            eprintln!("{} upstream is told {:?}", self.now, Method::parse(payload));
        }
        let answer = match Method::parse(payload).expect("the bridge's methods are sound") {
            Method::ConnectionStartOk { .. } => {
                (0, Method::ConnectionTune { channel_max: 2047, frame_max: 131_072, heartbeat: 60 })
            }
            Method::ConnectionOpen { .. } => (0, Method::ConnectionOpenOk {}),
            Method::ChannelOpen {} => (1, Method::ChannelOpenOk {}),
            Method::ConfirmSelect { .. } => {
                self.is_open = true;
                self.beats_at = self.now + BEAT_MS;
                (1, Method::ConfirmSelectOk {})
            }
            Method::BasicPublish { routing_key, .. } => {
                self.key = routing_key.to_vec();
                return;
            }
            Method::ConnectionClose { .. } => (0, Method::ConnectionCloseOk {}),
            _ => return,
        };
        self.say(answer.0, &answer.1);
    }

    fn take_message(&mut self, body: &[u8]) {
        let number = u64::from_be_bytes(*body.first_chunk().expect("bodies begin with their number"));
        (self.publishes, self.messages) = (self.publishes + 1, self.messages + 1);
        let random = &mut Random::of(self.seed, "upstream's message", &[self.messages]);
        if super::is_traced() {
            eprintln!("{} upstream hears {number} as {}", self.now, self.publishes);
        }
        let vices = self.vices;
        let mut happens = |one_in: u64| one_in > 0 && random.once_in(one_in);
        if happens(vices.closes) {
            self.refused.insert(number);
            if super::is_traced() {
                eprintln!("{} upstream closes its channel over {number}", self.now);
            }
            let reply_text = "NOT_FOUND - no exchange 'there' in vhost '/'";
            let close = Method::ChannelClose { reply_code: 404, reply_text, class_id: 60, method_id: 40 };
            self.say(1, &close);
            // What else was sent on it is not looked at any more.
            (self.deaf_until, self.breaks) = (u64::MAX, self.breaks + 1);
            return;
        }
        let is_returned = happens(vices.returns);
        let is_nacked = !is_returned && happens(vices.nacks);
        if is_returned {
            let key = core::mem::take(&mut self.key);
            let (reply_text, routing_key) = ("NO_ROUTE", &key[..]);
            self.say(1, &Method::BasicReturn { reply_code: 312, reply_text, exchange: "", routing_key });
            self.say_bytes(&content_frames(1, &self.properties, body, 100_000));
        }
        if is_returned || is_nacked {
            if super::is_traced() {
                eprintln!("{} upstream refuses {number}", self.now);
            }
            self.refused.insert(number);
        } else {
            let marked = Properties::trusted(&self.properties);
            let is_repeat = marked.headers().is_some_and(|headers| headers.get("x-bridge-repeat").is_some());
            self.taken.push((number, is_repeat));
        }
        let late_ms = if vices.late_ms > 0 { random.below(vices.late_ms) } else { 0 };
        let verdict = Verdict { due_ms: self.now + late_ms, is_taken: !is_nacked };
        let mut happens = |one_in: u64| one_in > 0 && random.once_in(one_in);
        if !happens(vices.forgets) {
            self.verdicts.insert(self.publishes, verdict);
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

    /// Says what is due.
    fn speak(&mut self) -> bool {
        let mut spoke = false;
        if self.beats_at <= self.now {
            self.beats_at = self.now + BEAT_MS;
            self.say_bytes(&HEARTBEAT_FRAME);
            spoke = true;
        }
        while let Some((&tag, verdict)) = self.verdicts.iter().find(|(_, verdict)| verdict.due_ms <= self.now)
        {
            let is_taken = verdict.is_taken;
            let is_the_same = |verdict: &Verdict| verdict.is_taken == is_taken;
            let random = &mut Random::of(self.seed, "upstream's verdict", &[self.messages, tag]);
            let multiple =
                self.verdicts.range(..=tag).all(|(_, verdict)| is_the_same(verdict)) && random.once_in(2);
            match multiple {
                true => self.verdicts = self.verdicts.split_off(&(tag + 1)),
                false => drop(self.verdicts.remove(&tag)),
            }
            let delivery_tag = tag;
            self.say(
                1,
                &match is_taken {
                    true => Method::BasicAck { delivery_tag, multiple },
                    false => Method::BasicNack { delivery_tag, multiple, requeue: false },
                },
            );
            spoke = true;
        }
        spoke
    }

    fn say(&self, channel: u16, method: &Method<'_>) {
        self.say_bytes(&method_frame(channel, method));
    }

    fn say_bytes(&self, bytes: &[u8]) {
        let said = self.line.borrow_mut().write_up(bytes);
        assert_eq!(said, bytes.len(), "there is room for what it says");
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
