//! A model of the messages that MQTT clients may and must receive, from the packets that they sent and received.
//!
//! A *pair* is a message and a session that may receive it. While the message is under way, the subscriptions of the
//! session decide which guarantees the pair has. Messages to [`GROUP_TOPICS`] have no pairs: one session of the group
//! that shares a subscription receives them.
//!
//! # Invariants
//! - The model uses only what clients have seen, and never looks into the broker.
//! - A guarantee that a pair has lost does not come back.

use std::collections::{BTreeMap, BTreeSet};

/// The topics of all messages.
pub const TOPICS: [&str; 6] = ["a", "a/x", "a/y", "b/x", "b/x/z", "c.d/e"];
/// The topic filters of all subscriptions. Their identifiers are their positions, plus 1.
pub const FILTERS: [&str; 8] = ["#", "a/#", "a/+", "+/x", "b/#", "a/x", "+/+/z", "c.d/e"];
/// The topics of retained messages.
pub const RETAINED_TOPICS: [&str; 3] = ["r/1", "r/2", "r/3"];
/// The topics of a shared subscription. Of [`FILTERS`], only the first one matches them.
pub const GROUP_TOPICS: [&str; 2] = ["s/g/1", "s/g/2"];
/// The shared subscription of the group.
pub const GROUP_FILTER: &str = "$share/g/s/#";

/// The options of a subscription.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Grant {
    pub qos: u8,
    pub no_local: bool,
}

/// A PUBLISH that a client has received, or the will of its connection.
#[derive(Clone, Copy, Debug)]
pub struct Reception<'a> {
    pub number: u64,
    pub topic: &'a str,
    pub qos: u8,
    /// The RETAIN flag: the message is sent because of a new subscription.
    pub is_retained: bool,
    /// The subscription identifiers; `None` before MQTT 5.
    pub identifiers: Option<&'a [u8]>,
}

/// A message.
#[derive(Debug)]
struct Message {
    publisher: usize,
    topic: &'static str,
    qos: u8,
    sort: Sort,
    /// The event at which the publisher sent it for the first time.
    sent_at: u64,
    /// The event at which the publisher received PUBACK or PUBREC.
    accepted_at: Option<u64>,
    /// The pairs of the message, by client and its session.
    pairs: BTreeMap<(usize, u64), Pair>,
    /// The group that shares the message.
    group: Option<Group>,
}

/// How a message is published.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sort {
    Plain,
    Will,
    /// With RETAIN; `is_deletion`: with an empty payload.
    Retained {
        is_deletion: bool,
    },
}

/// The sessions of a group that may receive a message.
#[derive(Clone, Debug, Default)]
struct Group {
    members: BTreeSet<(usize, u64)>,
    /// A member receives the message at least once, if the publisher gets PUBACK or PUBREC and all members stay.
    is_owed: bool,
    /// Number of receptions by each session.
    receivers: BTreeMap<(usize, u64), u64>,
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
    /// Until CONNACK, an earlier session of the client may exist that is one of the group.
    is_earlier_member: bool,
    /// The session is kept over its connection.
    is_kept: bool,
    /// The broker was started again, and the session was not kept.
    is_lost: bool,
    /// By filter: all options that the subscription may have. `None`: there may be no subscription.
    subscriptions: BTreeMap<&'static str, BTreeSet<Option<Grant>>>,
    /// Every filter that the session has requested, and whether without No Local.
    requested: BTreeSet<(&'static str, bool)>,
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
    /// Messages of a group that were checked for at least one reception.
    pub shared: u64,
    /// Retained messages that were checked at the end.
    pub retained: u64,
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
    /// Returns the QoS that each matching subscription may have. `is_own`: the client has published the message.
    fn matching(&self, topic: &str, is_own: bool) -> impl Iterator<Item = BTreeSet<Option<u8>>> {
        let is_sent = move |grant: &Grant| !(is_own && grant.no_local);
        let qos = move |grant: &Option<Grant>| grant.filter(is_sent).map(|grant| grant.qos);
        let matching = self.subscriptions.iter().filter(move |(filter, _)| matches(filter, topic));
        matching.map(move |(_, grants)| grants.iter().map(qos).collect())
    }

    /// Returns the lowest QoS that the session may have for a topic; `None` if it may have no subscription.
    fn lowest(&self, topic: &str, is_own: bool) -> Option<u8> {
        self.matching(topic, is_own).filter_map(|qos| *qos.first()?).max()
    }

    /// Returns the guarantees for a message with this topic and QoS, if all subscriptions stay.
    fn pair(&self, topic: &str, qos: u8, is_own: bool) -> Pair {
        let lowest = self.lowest(topic, is_own);
        // A message that is in the queue is sent with the QoS of any subscription that matches then.
        let is_two_or_none = self.matching(topic, false).flatten().all(|qos| qos.is_none_or(|qos| qos == 2));
        Pair {
            is_owed: self.is_live && qos > 0 && lowest.is_some_and(|lowest| lowest > 0),
            is_exact: qos == 2 && (lowest == Some(2) || is_two_or_none),
            // A delivery with QoS 0 may be lost, and the repetition of its message by the publisher may arrive later.
            is_ordered: lowest.is_some_and(|lowest| qos == 0 || lowest > 0),
            received: 0,
        }
    }

    /// Returns whether the session may be one of the group, and whether it is.
    fn membership(&self) -> (bool, bool) {
        let Some(grants) = self.subscriptions.get(GROUP_FILTER) else { return (false, false) };
        let is_possible = grants.iter().any(Option::is_some);
        (is_possible, self.is_live && grants.iter().all(Option::is_some))
    }
}

impl Message {
    /// Returns whether a subscription of `client` with No Local does not get the message.
    fn is_own(&self, client: usize) -> bool {
        self.publisher == client && self.sort != Sort::Will
    }

    /// Returns whether `other`, with the same topic, was surely applied after this message for the last time.
    fn is_replaced_by(&self, other: &Self) -> bool {
        other.accepted_at.is_some() && self.accepted_at.is_some_and(|at| at < other.sent_at)
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
        let earlier = &self.sessions[client];
        let is_earlier_member = earlier.membership().0 || !earlier.is_live && earlier.is_earlier_member;
        let (number, begun_at) = (earlier.number + 1, self.events);
        self.sessions[client] = Session { number, begun_at, is_earlier_member, ..Session::default() };
    }

    /// Notes that a client has received CONNACK.
    pub fn connected(&mut self, client: usize, is_kept: bool) {
        (self.sessions[client].is_live, self.sessions[client].is_kept) = (true, is_kept);
    }

    /// Notes that the broker was started again.
    pub fn restarted(&mut self) {
        self.sessions.iter_mut().for_each(|session| session.is_lost |= !session.is_kept);
    }

    /// Notes that the session of a client has dropped messages, because it had used up its share of a small memory.
    pub fn dropped(&mut self, client: usize) {
        let number = self.sessions[client].number;
        for message in self.messages.values_mut() {
            if let Some(pair) = message.pairs.get_mut(&(client, number)) {
                pair.is_owed = false;
            }
            if let Some(group) =
                message.group.as_mut().filter(|group| group.members.contains(&(client, number)))
            {
                group.is_owed = false;
            }
        }
    }

    /// Notes that a client sends SUBSCRIBE, or with `None` UNSUBSCRIBE.
    pub fn request(&mut self, client: usize, filter: &'static str, grant: Option<Grant>) {
        let session = &mut self.sessions[client];
        session.requested.extend(grant.map(|grant| (filter, !grant.no_local)));
        session.subscriptions.entry(filter).or_insert_with(|| BTreeSet::from([None])).insert(grant);
        let member = (client, session.number);
        for message in self.messages.values_mut() {
            let is_own = message.is_own(client);
            if let Some(pair) = message.pairs.get_mut(&member) {
                let now = session.pair(message.topic, message.qos, is_own);
                pair.is_owed &= now.is_owed;
                pair.is_exact &= now.is_exact;
                pair.is_ordered &= now.is_ordered;
            }
            if let Some(group) = message.group.as_mut().filter(|_| filter == GROUP_FILTER) {
                if message.accepted_at.is_none() && grant.is_some() {
                    group.members.insert(member);
                }
                // A client that unsubscribes loses what was not sent to it.
                group.is_owed &= grant.is_some() || !group.members.contains(&member);
            }
        }
    }

    /// Notes that a client has received SUBACK or UNSUBACK.
    pub fn granted(&mut self, client: usize, filter: &'static str, grant: Option<Grant>) {
        self.sessions[client].subscriptions.insert(filter, BTreeSet::from([grant]));
    }

    // ---- messages

    /// Notes that a client publishes a new message. Returns its number.
    pub fn publish(&mut self, publisher: usize, topic: &'static str, qos: u8, sort: Sort) -> u64 {
        self.counts.published += 1;
        self.events += 1;
        let number = self.counts.published;
        let (pairs, sent_at) = (BTreeMap::new(), self.events);
        let mut message =
            Message { publisher, topic, qos, sort, sent_at, accepted_at: None, pairs, group: None };
        if GROUP_TOPICS.contains(&topic) {
            let mut group = Group::default();
            let mut are_known = qos > 0;
            for (client, session) in self.sessions.iter().enumerate() {
                let (is_possible, is_sure) = session.membership();
                group.members.extend(is_possible.then_some((client, session.number)));
                are_known &= is_possible == is_sure && (session.is_live || !session.is_earlier_member);
            }
            group.is_owed = are_known && !group.members.is_empty();
            message.group = Some(group);
        } else {
            let of_session = |(client, session): (usize, &Session)| {
                ((client, session.number), session.pair(topic, qos, message.is_own(client)))
            };
            message.pairs = self.sessions.iter().enumerate().map(of_session).collect();
        }
        if sort == (Sort::Retained { is_deletion: true }) {
            // An empty payload has no number, so its reception cannot be noted.
            message.pairs.clear();
        }
        self.messages.insert(number, message);
        number
    }

    /// Notes that a client connects with a will, which is a message of QoS 2. It may be published later than messages that
    /// the client publishes afterwards, or never. Returns its number.
    pub fn add_will(&mut self, publisher: usize, topic: &'static str) -> u64 {
        let number = self.publish(publisher, topic, 2, Sort::Will);
        let message = self.messages.get_mut(&number).expect("it was added");
        message.pairs.values_mut().for_each(|pair| pair.is_ordered = false);
        number
    }

    /// Returns the topic of a message, and how it is published.
    pub fn message(&self, number: u64) -> (&'static str, Sort) {
        (self.messages[&number].topic, self.messages[&number].sort)
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
    pub fn receive(&mut self, client: usize, reception: &Reception<'_>) {
        let Reception { number, topic, qos, is_retained, identifiers } = *reception;
        self.counts.received += 1;
        let number_of = |session: &Session| (!session.is_lost).then_some(session.number);
        let current: Vec<Option<u64>> = self.sessions.iter().map(number_of).collect();
        let session = &mut self.sessions[client];
        let Some(message) = self.messages.get_mut(&number) else {
            return self.complain(format!("client {client} receives message {number}, which does not exist"));
        };
        if topic != message.topic || qos > message.qos {
            let expected = (message.topic, message.qos);
            return self.complain(format!("message {number} {expected:?} became {:?}", (topic, qos)));
        }
        let is_own = message.is_own(client) && !is_retained;
        let filter_of_group = message.group.is_some().then_some(GROUP_FILTER);
        let may_match = |filter: &str| filter_of_group == Some(filter) || matches(filter, topic);
        let is_requested = |(filter, is_local): &(&str, bool)| may_match(filter) && (*is_local || !is_own);
        if !session.requested.iter().any(is_requested) {
            return self.complain(format!("client {client} is not subscribed to message {number}, {topic}"));
        }
        if let Some(identifiers) = identifiers {
            let filter_of = |identifier: &u8| match usize::from(*identifier) {
                identifier @ 1..=8 => FILTERS[identifier - 1],
                _ => GROUP_FILTER,
            };
            // If another subscription matches a message of the client, one with No Local is named as well.
            let is_wrong = |filter: &str| {
                !may_match(filter) || !session.requested.iter().any(|(requested, _)| *requested == filter)
            };
            // A message that was sent before may be sent again after its subscription has ended.
            let is_missing = identifiers.is_empty() && session.lowest(topic, is_own).is_some();
            if is_missing || identifiers.iter().map(filter_of).any(is_wrong) {
                let text =
                    format!("client {client} receives {number}, {topic}, by {identifiers:?}: {session:?}");
                return self.complain(text);
            }
        }
        if is_retained {
            if !matches!(message.sort, Sort::Retained { is_deletion: false }) {
                let text = format!("client {client} receives {number} as retained: {message:?}");
                self.complain(text);
            }
            return;
        }
        if message.accepted_at.is_some_and(|at| at < session.begun_at) {
            return self.complain(format!("client {client} receives {number} of an earlier session"));
        }
        if let Some(group) = &mut message.group {
            let count = group.receivers.entry((client, session.number)).or_insert(0);
            *count += 1;
            let is_twice = qos == 2 && *count > 1;
            // A session that is not kept may receive a message that is lost with it in a power cut.
            let is_current = |(client, session): &&(usize, u64)| current[*client] == Some(*session);
            // A message with QoS 1 is shared anew when the publisher sends it again.
            if is_twice || message.qos == 2 && group.receivers.keys().filter(is_current).count() > 1 {
                let text = format!("client {client} receives {number} too often: {message:?}");
                self.complain(text);
            }
            return;
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
        for (number, message) in &self.messages {
            let Some(group) = message.group.as_ref().filter(|group| group.is_owed) else { continue };
            let stays = |(client, session): &(usize, u64)| {
                is_connected[*client] && self.sessions[*client].number == *session
            };
            if message.accepted_at.is_some() && group.members.iter().all(stays) {
                self.counts.shared += 1;
                if group.receivers.is_empty() {
                    lost.push(format!("no client of the group receives {number}: {message:?}"));
                }
            }
        }
        self.complaints.extend(lost);
    }

    /// Checks the retained messages that a subscriber gets at the end: by topic, the number of the message.
    pub fn check_retained(&mut self, found: &BTreeMap<String, u64>) {
        let mut wrong = Vec::new();
        for topic in RETAINED_TOPICS {
            let published: Vec<(&u64, &Message)> =
                self.messages.iter().filter(|(_, message)| message.topic == topic).collect();
            let is_last =
                |message: &Message| !published.iter().any(|(_, other)| message.is_replaced_by(other));
            let is_deletion = |message: &Message| message.sort == Sort::Retained { is_deletion: true };
            let found = found.get(topic);
            let is_right = match found {
                Some(found) => published
                    .iter()
                    .any(|(number, message)| *number == found && !is_deletion(message) && is_last(message)),
                None => {
                    published.iter().all(|(_, message)| message.accepted_at.is_none())
                        || published.iter().any(|(_, message)| is_deletion(message) && is_last(message))
                }
            };
            self.counts.retained += u64::from(!published.is_empty());
            if !is_right {
                wrong.push(format!("{topic} retains {found:?}: {published:?}"));
            }
        }
        self.complaints.extend(wrong);
    }
}
