//! A model of the messages that MQTT clients may and must receive, from the packets that they sent and received.
//!
//! A *pair* is a message and a session that may receive it. While the message is under way, the subscriptions of the
//! session decide which guarantees the pair has.
//!
//! # Invariants
//! - The model uses only what clients have seen, and never looks into the broker.
//! - A guarantee that a pair has lost does not come back.

use std::collections::{BTreeMap, BTreeSet};

/// The topics of all messages.
pub const TOPICS: [&str; 6] = ["a", "a/x", "a/y", "b/x", "b/x/z", "c.d/e"];
/// The topic filters of all subscriptions.
pub const FILTERS: [&str; 8] = ["#", "a/#", "a/+", "+/x", "b/#", "a/x", "+/+/z", "c.d/e"];

/// A message.
#[derive(Debug)]
struct Message {
    publisher: usize,
    topic: &'static str,
    qos: u8,
    /// The event at which the publisher received PUBACK or PUBREC.
    accepted_at: Option<u64>,
    /// The pairs of the message, by client and its session.
    pairs: BTreeMap<(usize, u64), Pair>,
}

/// The guarantees of a message and a session.
#[derive(Clone, Copy, Debug)]
struct Pair {
    /// The session receives the message at least once, if the publisher gets PUBACK or PUBREC.
    is_owed: bool,
    /// The session receives the message at most once.
    is_exact: bool,
    /// The session receives the message for the first time after those that the publisher sent before.
    is_ordered: bool,
    received: u64,
}

/// A session, as its client knows it.
#[derive(Debug, Default)]
struct Session {
    /// Number of the session among those of its client.
    number: u64,
    /// The event at which the CONNECT was sent that began the session.
    begun_at: u64,
    /// The client has received CONNACK.
    is_live: bool,
    /// By filter: every QoS that the subscription may have. `None`: there may be no subscription.
    subscriptions: BTreeMap<&'static str, BTreeSet<Option<u8>>>,
    /// Every filter that the session has requested.
    requested: BTreeSet<&'static str>,
    /// The last message that was received for the first time, by publisher, topic and QoS.
    last: BTreeMap<(usize, &'static str, u8), u64>,
}

/// Number of messages and receptions.
#[derive(Clone, Copy, Debug, Default)]
pub struct ModelCounts {
    pub published: u64,
    pub accepted: u64,
    pub received: u64,
    /// Receptions of a message that the session had received before.
    pub repeated: u64,
    /// Pairs that were checked for at least one reception, and those for exactly one.
    pub owed: u64,
    pub exact: u64,
}

/// All messages and sessions.
#[derive(Debug)]
pub struct Model {
    messages: BTreeMap<u64, Message>,
    sessions: Vec<Session>,
    events: u64,
    pub complaints: Vec<String>,
    pub counts: ModelCounts,
}

/// Returns whether a topic filter matches a topic. Written independently of the broker.
fn matches(filter: &str, topic: &str) -> bool {
    match (filter.split_once('/'), topic.split_once('/')) {
        _ if filter == "#" => true,
        (None, None) => filter == "+" || filter == topic,
        // `a/#` matches `a`.
        (Some((level, "#")), None) => level == "+" || level == topic,
        (Some((level, filter)), Some((first, topic))) => {
            (level == "+" || level == first) && matches(filter, topic)
        }
        (Some(_), None) | (None, Some(_)) => false,
    }
}

impl Session {
    /// Returns the QoS that each matching subscription may have.
    fn matching(&self, topic: &str) -> impl Iterator<Item = &BTreeSet<Option<u8>>> {
        self.subscriptions.iter().filter(move |(filter, _)| matches(filter, topic)).map(|(_, qos)| qos)
    }

    /// Returns the lowest QoS that the session may have for a topic; `None` if it may have no subscription.
    fn lowest(&self, topic: &str) -> Option<u8> {
        self.matching(topic).filter_map(|qos| *qos.first()?).max()
    }

    /// Returns the guarantees for a message with this topic and QoS, if all subscriptions stay.
    fn pair(&self, topic: &str, qos: u8) -> Pair {
        let lowest = self.lowest(topic);
        let is_two_or_none = self.matching(topic).flatten().all(|qos| qos.is_none_or(|qos| qos == 2));
        Pair {
            is_owed: self.is_live && qos > 0 && lowest.is_some_and(|lowest| lowest > 0),
            is_exact: qos == 2 && (lowest == Some(2) || is_two_or_none),
            // A delivery with QoS 0 may be lost, and the repetition of its message by the publisher may arrive later.
            is_ordered: lowest.is_some_and(|lowest| qos == 0 || lowest > 0),
            received: 0,
        }
    }
}

impl Model {
    pub fn new(clients: usize) -> Self {
        Self {
            messages: BTreeMap::new(),
            sessions: (0..clients).map(|_| Session::default()).collect(),
            events: 0,
            complaints: Vec::new(),
            counts: ModelCounts::default(),
        }
    }

    pub fn complain(&mut self, what: String) {
        self.complaints.push(what);
    }

    // ---- sessions

    /// Notes that a client sends a CONNECT that begins a new session.
    pub fn begin_session(&mut self, client: usize) {
        self.events += 1;
        let number = self.sessions[client].number + 1;
        self.sessions[client] = Session { number, begun_at: self.events, ..Session::default() };
    }

    /// Notes that a client has received CONNACK.
    pub fn connected(&mut self, client: usize) {
        self.sessions[client].is_live = true;
    }

    /// Notes that a client sends SUBSCRIBE, or with `None` UNSUBSCRIBE.
    pub fn request(&mut self, client: usize, filter: &'static str, qos: Option<u8>) {
        let session = &mut self.sessions[client];
        session.requested.insert(filter);
        session.subscriptions.entry(filter).or_insert_with(|| BTreeSet::from([None])).insert(qos);
        let number = session.number;
        for message in self.messages.values_mut() {
            if let Some(pair) = message.pairs.get_mut(&(client, number)) {
                let now = session.pair(message.topic, message.qos);
                pair.is_owed &= now.is_owed;
                pair.is_exact &= now.is_exact;
                pair.is_ordered &= now.is_ordered;
            }
        }
    }

    /// Notes that a client has received SUBACK or UNSUBACK.
    pub fn granted(&mut self, client: usize, filter: &'static str, qos: Option<u8>) {
        self.sessions[client].subscriptions.insert(filter, BTreeSet::from([qos]));
    }

    // ---- messages

    /// Notes that a client publishes a new message. Returns its number.
    pub fn publish(&mut self, publisher: usize, topic: &'static str, qos: u8) -> u64 {
        self.counts.published += 1;
        let of_session =
            |(client, session): (usize, &Session)| ((client, session.number), session.pair(topic, qos));
        let pairs = self.sessions.iter().enumerate().map(of_session).collect();
        let number = self.counts.published;
        self.messages.insert(number, Message { publisher, topic, qos, accepted_at: None, pairs });
        number
    }

    /// Notes that a client connects with a will, which is a message of QoS 2. It may be published later than messages that
    /// the client publishes afterwards, or never. Returns its number.
    pub fn add_will(&mut self, publisher: usize, topic: &'static str) -> u64 {
        let number = self.publish(publisher, topic, 2);
        let message = self.messages.get_mut(&number).expect("it was added");
        message.pairs.values_mut().for_each(|pair| pair.is_ordered = false);
        number
    }

    /// Returns the topic of a message.
    pub fn topic(&self, number: u64) -> &'static str {
        self.messages[&number].topic
    }

    /// Notes that the publisher has received PUBACK or PUBREC for a message.
    pub fn accepted(&mut self, number: u64) {
        self.events += 1;
        let message = self.messages.get_mut(&number).expect("it was published");
        if message.accepted_at.is_none() {
            (message.accepted_at, self.counts.accepted) = (Some(self.events), self.counts.accepted + 1);
        }
    }

    /// Notes that the application of a client receives a message.
    pub fn receive(&mut self, client: usize, number: u64, topic: &str, qos: u8) {
        self.counts.received += 1;
        let session = &mut self.sessions[client];
        let Some(message) = self.messages.get_mut(&number) else {
            return self.complain(format!("client {client} receives message {number}, which does not exist"));
        };
        if topic != message.topic || qos > message.qos {
            let expected = (message.topic, message.qos);
            return self.complain(format!("message {number} {expected:?} became {:?}", (topic, qos)));
        }
        if !session.requested.iter().any(|filter| matches(filter, topic)) {
            return self.complain(format!("client {client} is not subscribed to message {number}, {topic}"));
        }
        if message.accepted_at.is_some_and(|at| at < session.begun_at) {
            return self.complain(format!("client {client} receives {number} of an earlier session"));
        }
        // A session that began after the message was sent has no guarantee.
        let none = Pair { is_owed: false, is_exact: false, is_ordered: false, received: 0 };
        let pair = message.pairs.entry((client, session.number)).or_insert(none);
        pair.received += 1;
        if pair.received > 1 {
            self.counts.repeated += 1;
            if pair.is_exact {
                self.complain(format!("client {client} receives message {number} with QoS 2 twice"));
            }
            return;
        }
        if pair.is_ordered {
            let last = session.last.entry((message.publisher, message.topic, message.qos)).or_insert(0);
            let earlier = core::mem::replace(last, number.max(*last));
            if earlier > number {
                self.complain(format!("client {client} receives {number} after {earlier}"));
            }
        }
    }

    // ---- the end

    /// Checks that every session has received what it must have received. `is_connected` are the clients whose
    /// sessions exist.
    pub fn check_received(&mut self, is_connected: &[bool]) {
        let mut lost = Vec::new();
        for (number, message) in &self.messages {
            for (&(client, session), pair) in &message.pairs {
                let is_current = is_connected[client] && self.sessions[client].number == session;
                if message.accepted_at.is_none() || !is_current || !pair.is_owed {
                    continue;
                }
                self.counts.owed += 1;
                self.counts.exact += u64::from(pair.is_exact);
                if pair.received == 0 {
                    lost.push(format!("client {client} never receives {number}: {message:?}"));
                }
            }
        }
        self.complaints.extend(lost);
    }
}
