//! A simulated MQTT client that keeps its part of a session over connections and power cuts.
//!
//! The client sends PUBLISH and PUBREL again after a reconnection, answers late, and checks every packet of the broker.
//!
//! # Invariants
//! - The client sends acknowledgements in the order of the packets that they answer.
//! - A packet identifier of the client belongs to one message or request until the broker has answered.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use leveret_core::command::SESSION_EXACTLY_ONCE_MAX;
use leveret_test_support::random::Random;
use leveret_test_support::simulated_server::mqtt::{FromServer, Login, packet, split_packet};
use leveret_test_support::simulated_server::{Line, Shape};

use super::mqtt_model::{
    FILTERS, GROUP_FILTER, GROUP_TOPICS, Grant, Model, RETAINED_TOPICS, Reception, Sort, TOPICS,
};

/// Highest packet identifier that a client uses.
const PACKET_ID_MAX: u16 = 12;
/// Maximum number of messages that a client has published without the last answer.
const OUTGOING_MAX: usize = 8;
/// A session is not expected to exist in the last milliseconds of its expiry interval, because CONNECT takes time.
const PRESENT_MARGIN_MS: u64 = 5_000;
/// A session is not expected to be gone in the first milliseconds after its expiry interval.
const ABSENT_MARGIN_MS: u64 = 400;
/// The reason code of MQTT 5 with which the broker refuses what it has no memory for, and the one of MQTT 3.1.1 for CONNECT.
const QUOTA_EXCEEDED: u8 = 0x97;
const SERVER_UNAVAILABLE: u8 = 3;
/// Bytes before the padding of a payload: the number of the message.
const NUMBER_BYTES: usize = 8;

/// The two clocks of a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    /// Milliseconds since the start of the broker.
    pub life_ms: u64,
    /// Milliseconds since the beginning of the run.
    pub total_ms: u64,
    /// When the last long pause ended, in milliseconds since the start of the broker.
    pub resumed_ms: u64,
}

/// How a client behaves in a run.
#[derive(Clone, Copy, Debug)]
pub struct Habits {
    /// The version of the protocol: 4 or 5.
    pub level: u8,
    /// The session expiry interval in seconds; 0: the session ends with its connection.
    pub expiry_s: u32,
    /// Receive Maximum of a client with MQTT 5.
    pub receive_max: u16,
    /// An answer is late by less than this many milliseconds.
    pub lateness_ms: u64,
    /// The connection ends in one of this many actions.
    pub break_one_in: u64,
    /// The largest number of milliseconds between two actions.
    pub rest_ms: u64,
    /// The length of the longest payloads, which is the same for all clients.
    pub long_len: usize,
    /// Clients share a subscription, and none subscribes to `#`.
    pub has_group: bool,
    /// The broker has little memory, so it may refuse requests and close connections.
    pub may_be_refused: bool,
}

/// The session in the broker, as far as the client knows it.
#[derive(Clone, Copy, Debug)]
enum Presence {
    /// The client has no session.
    Absent,
    /// A CONNECT that begins a session was not answered.
    Unknown,
    /// The session is kept for one of these intervals.
    Kept { expiry_min_s: u32, expiry_max_s: u32 },
}

/// The content of CONNACK about the session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Expected {
    Present,
    Absent,
    Unknown,
}

/// A message that the client has published and not completed.
#[derive(Clone, Copy, Debug)]
struct Outgoing {
    packet_id: u16,
    number: u64,
    qos: u8,
    /// PUBREC was received.
    is_released: bool,
    /// How often PUBREL was sent.
    releases: u32,
}

/// A packet that the client will send.
#[derive(Debug)]
struct Due {
    at_ms: u64,
    octets: Vec<u8>,
    /// The packet identifier of a delivery that is complete when this is sent.
    completes: Option<u16>,
    /// The packet identifier of the message that this releases.
    releases: Option<u16>,
}

#[derive(Debug)]
struct Connection {
    line: Rc<RefCell<Line>>,
    input: Vec<u8>,
    is_open: bool,
    /// CONNECT continues an earlier session.
    is_continued: bool,
    expects_present: bool,
    due: VecDeque<Due>,
    /// Subscriptions with their QoS, and with `None` the ends of subscriptions, that are not answered.
    requests: BTreeMap<u16, (&'static str, Option<Grant>)>,
    /// Deliveries of this connection that the client has not acknowledged completely.
    in_flight: BTreeMap<u16, u64>,
    receive_max: u16,
}

/// Numbers of packets and events.
#[derive(Clone, Copy, Debug, Default)]
pub struct ClientCounts {
    pub packets_sent: u64,
    pub packets_received: u64,
    pub connects: u64,
    pub continued: u64,
    pub takeovers: u64,
    pub resent: u64,
    /// Requests that were refused, and connections that the broker closed.
    pub refused: u64,
}

#[derive(Debug)]
pub struct SessionClient {
    number: usize,
    pub habits: Habits,
    connection: Option<Connection>,
    presence: Presence,
    /// The session expiry interval of the connection.
    expiry_s: u32,
    /// When the client left the session, on the clock of the run.
    left_total_ms: u64,
    /// Since when the broker knows that the session has no connection; `None` if the broker does not know it.
    unused_life_ms: Option<u64>,
    outgoing: VecDeque<Outgoing>,
    /// Messages with QoS 2 by packet identifier, until PUBREL.
    received: BTreeMap<u16, u64>,
    /// Packet identifiers that the broker must not use for other messages. Those of QoS 1 are valid until the broker
    /// is started again.
    in_use: BTreeMap<u16, (u64, u8)>,
    act_at_ms: u64,
    pub counts: ClientCounts,
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u16).to_be_bytes()[..], text.as_bytes()].concat()
}

fn id_packet(first_octet: u8, packet_id: u16) -> Vec<u8> {
    packet(first_octet, &packet_id.to_be_bytes())
}

impl SessionClient {
    pub const fn new(number: usize, habits: Habits) -> Self {
        Self {
            number,
            habits,
            connection: None,
            presence: Presence::Absent,
            expiry_s: 0,
            left_total_ms: 0,
            unused_life_ms: None,
            outgoing: VecDeque::new(),
            received: BTreeMap::new(),
            in_use: BTreeMap::new(),
            act_at_ms: 0,
            counts: ClientCounts {
                packets_sent: 0,
                packets_received: 0,
                connects: 0,
                continued: 0,
                takeovers: 0,
                resent: 0,
                refused: 0,
            },
        }
    }

    pub const fn act_at_ms(&self) -> u64 {
        self.act_at_ms
    }

    /// Returns when the next late packet is sent.
    pub fn due_ms(&self) -> Option<u64> {
        self.connection.as_ref().and_then(|connection| connection.due.front()).map(|due| due.at_ms)
    }

    pub const fn is_connected(&self) -> bool {
        self.connection.is_some()
    }

    pub fn is_open(&self) -> bool {
        self.connection.as_ref().is_some_and(|connection| connection.is_open)
    }

    /// Returns whether all exchanges of packets are complete.
    pub fn is_at_rest(&self) -> bool {
        let is_quiet = |connection: &Connection| {
            connection.is_open && connection.due.is_empty() && connection.requests.is_empty()
        };
        self.connection.as_ref().is_some_and(is_quiet) && self.outgoing.is_empty() && self.received.is_empty()
    }

    fn trace(&self, what: &str, detail: &dyn core::fmt::Debug) {
        if super::is_traced() {
            eprintln!("    client {} {what} {detail:?}", self.number);
        }
    }

    // ---- the connection

    /// Returns what CONNACK must say about a session that this CONNECT continues.
    fn expected(&self, clock: Clock) -> Expected {
        match self.presence {
            Presence::Absent => Expected::Absent,
            Presence::Unknown => Expected::Unknown,
            Presence::Kept { expiry_min_s, expiry_max_s } => {
                let away_ms = clock.total_ms - self.left_total_ms + PRESENT_MARGIN_MS;
                let unused_ms = self.unused_life_ms.map(|since| clock.life_ms - since);
                let gone_after_ms = u64::from(expiry_max_s) * 1_000 + ABSENT_MARGIN_MS;
                let is_gone = unused_ms.is_some_and(|unused_ms| unused_ms > gone_after_ms);
                // In the first turns after a pause, sessions that have expired may still exist.
                let is_gone = is_gone && clock.life_ms > clock.resumed_ms + ABSENT_MARGIN_MS;
                match is_gone {
                    true => Expected::Absent,
                    false if away_ms < u64::from(expiry_min_s) * 1_000 => Expected::Present,
                    false => Expected::Unknown,
                }
            }
        }
    }

    /// Sends CONNECT on a new line. `must_begin`: an earlier session is deleted.
    pub fn connect(
        &mut self,
        line: Rc<RefCell<Line>>,
        model: &mut Model,
        (clock, random): (Clock, &mut Random),
        must_begin: bool,
    ) {
        let expected = self.expected(clock);
        // A client without a kept session may still ask for an earlier one, which does not exist.
        let is_kept = self.habits.expiry_s > 0;
        let clean_start = must_begin
            || expected == Expected::Unknown
            || self.habits.level == 4 && !is_kept
            || random.once_in(12);
        let is_continued = !clean_start && expected == Expected::Present;
        let mut expiry_s = self.habits.expiry_s;
        if must_begin || self.habits.level == 5 && random.once_in(16) {
            expiry_s = 0;
        }
        if self.habits.level == 4 {
            expiry_s = if clean_start { 0 } else { u32::MAX };
        }
        self.presence = match self.presence {
            Presence::Kept { expiry_min_s, expiry_max_s } if is_continued => Presence::Kept {
                expiry_min_s: expiry_min_s.min(expiry_s),
                expiry_max_s: expiry_max_s.max(expiry_s),
            },
            _ => Presence::Unknown,
        };
        if !is_continued {
            model.begin_session(self.number);
            self.outgoing.clear();
            self.received.clear();
            self.in_use.clear();
        }
        // The broker keeps the packet identifiers of 20 messages for a client that is gone.
        if self.in_use.len() > SESSION_EXACTLY_ONCE_MAX {
            self.in_use.retain(|_, (_, qos)| *qos == 2);
        }
        let receive_max = self.habits.receive_max;
        let mut properties = vec![0x21];
        properties.extend(receive_max.to_be_bytes());
        if expiry_s > 0 {
            properties.push(0x11);
            properties.extend(expiry_s.to_be_bytes());
        }
        let client_id = format!("client-{}", self.number);
        let will_topic = random.one_of(&TOPICS);
        let will = random.once_in(3).then(|| model.add_will(self.number, will_topic));
        // CONNECT has space for a short will only.
        let will = will.map(|number| payload(number, self.habits.long_len)).filter(|will| will.len() < 2_000);
        let will_properties = random.one_of(&[&[][..], &[0x18, 0, 0, 0, 1], &[0x18, 0, 0, 0, 60]]);
        let login = Login {
            will: will.as_deref().map(|payload| (will_topic, payload, 2, false)),
            will_properties,
            level: self.habits.level,
            client_id: &client_id,
            clean_start,
            properties: &properties,
            ..Login::default()
        };
        self.trace("connects", &(clean_start, expiry_s, is_continued));
        self.expiry_s = expiry_s;
        self.counts.connects += 1;
        self.counts.continued += u64::from(is_continued);
        self.connection = Some(Connection {
            line,
            input: Vec::new(),
            is_open: false,
            is_continued,
            expects_present: is_continued,
            due: VecDeque::new(),
            requests: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            receive_max,
        });
        self.write(&login.packet());
    }

    /// Forgets the connection. `is_noticed`: the broker learns at once that it has ended. Returns its line.
    fn leave(&mut self, clock: Clock, is_noticed: bool) -> Option<Rc<RefCell<Line>>> {
        let connection = self.connection.take()?;
        // The broker keeps the lost connection of a publisher that waits for memory.
        let is_noticed = is_noticed && !self.habits.may_be_refused;
        if connection.is_open {
            self.left_total_ms = clock.total_ms;
            self.unused_life_ms = is_noticed.then_some(clock.life_ms);
        } else {
            // Perhaps the broker has not handled CONNECT, and an earlier connection still has the session.
            let is_known = self.unused_life_ms.is_some() && !self.habits.may_be_refused;
            self.unused_life_ms = is_known.then_some(clock.life_ms);
        }
        self.act_at_ms = clock.life_ms;
        Some(connection.line)
    }

    /// Loses the connection. The broker notices it at once.
    pub fn lose(&mut self, clock: Clock) {
        if let Some(line) = self.leave(clock, true) {
            self.trace("loses its connection", &());
            line.borrow_mut().lose();
        }
    }

    /// Notes that the broker was started again.
    pub fn restart(&mut self, clock: Clock, random: &mut Random) {
        self.leave(clock, true);
        self.unused_life_ms = Some(0);
        self.in_use.retain(|_, (_, qos)| *qos == 2);
        self.act_at_ms = 10 + random.below(self.habits.rest_ms);
    }

    fn write(&mut self, octets: &[u8]) {
        let Some(connection) = &self.connection else { return };
        self.counts.packets_sent += 1;
        let count = connection.line.borrow_mut().write_up(octets);
        assert_eq!(count, octets.len(), "the line has space for all packets of a client");
    }

    // ---- actions

    /// Takes one random action. `connect` returns a new line to the broker. `keep` takes the line of a connection that
    /// the client has left without closing it.
    pub fn act(
        &mut self,
        model: &mut Model,
        (clock, random): (Clock, &mut Random),
        connect: &mut dyn FnMut() -> Rc<RefCell<Line>>,
        keep: &mut dyn FnMut(Rc<RefCell<Line>>),
    ) {
        if clock.life_ms < self.act_at_ms {
            return;
        }
        self.act_at_ms = clock.life_ms + random.below(self.habits.rest_ms);
        let Some(connection) = &self.connection else {
            // Most clients wait until it is known whether their session has ended.
            if self.expected(clock) != Expected::Unknown || random.once_in(4) {
                self.connect(connect(), model, (clock, random), false);
            }
            return;
        };
        if random.once_in(self.habits.break_one_in) {
            match random.below(5) {
                0 if connection.is_open => {
                    // DISCONNECT.
                    self.trace("disconnects", &());
                    self.write(&[0xE0, 0]);
                    let line = self.leave(clock, true);
                    line.into_iter().for_each(|line| line.borrow_mut().hang_up());
                }
                // Otherwise the broker might handle the CONNECT of the next connection before that of this one.
                _ if !connection.is_open => self.lose(clock),
                0 | 1 => self.lose(clock),
                // The broker does not notice it until another connection takes the session over.
                2 => {
                    self.trace("stops without closing its connection", &());
                    self.leave(clock, false).into_iter().for_each(&mut *keep);
                    if random.once_in(2) {
                        self.act_at_ms = clock.life_ms + random.below(20_000);
                    }
                }
                _ => {
                    self.counts.takeovers += 1;
                    self.leave(clock, false).into_iter().for_each(&mut *keep);
                    self.connect(connect(), model, (clock, random), false);
                }
            }
            return;
        }
        if !connection.is_open {
            return;
        }
        match random.below(16) {
            0 | 1 => self.subscribe(model, random),
            2 if random.once_in(2) => self.unsubscribe(model, random),
            _ => {
                for _ in 0..1 + random.below(4) {
                    self.publish(model, random);
                }
            }
        }
    }

    fn free_packet_id(&self, random: &mut Random) -> Option<u16> {
        let requests = &self.connection.as_ref()?.requests;
        let is_free = |id: &u16| {
            !requests.contains_key(id) && self.outgoing.iter().all(|outgoing| outgoing.packet_id != *id)
        };
        let free: Vec<u16> = (1..=PACKET_ID_MAX).filter(is_free).collect();
        (!free.is_empty()).then(|| random.one_of(&free))
    }

    fn publish(&mut self, model: &mut Model, random: &mut Random) {
        let mut qos = random.one_of(&[0, 1, 1, 2, 2, 2]);
        let (mut topic, mut sort) = (random.one_of(&TOPICS), Sort::Plain);
        match random.below(8) {
            0 => {
                (topic, qos) = (random.one_of(&RETAINED_TOPICS), qos.max(1));
                sort = Sort::Retained { is_deletion: random.once_in(5) };
            }
            1 | 2 if self.habits.has_group => topic = random.one_of(&GROUP_TOPICS),
            _ => {}
        }
        let packet_id = self.free_packet_id(random);
        let Some(packet_id) = packet_id.filter(|_| self.outgoing.len() < OUTGOING_MAX) else { return };
        let number = model.publish(self.number, topic, qos, sort);
        self.trace("publishes", &(number, topic, qos, packet_id, sort));
        let outgoing = Outgoing { packet_id, number, qos, is_released: false, releases: 0 };
        if qos > 0 {
            self.outgoing.push_back(outgoing);
        }
        self.write_publish(model, &outgoing, false);
    }

    fn write_publish(&mut self, model: &Model, outgoing: &Outgoing, is_duplicate: bool) {
        let Outgoing { packet_id, number, qos, .. } = *outgoing;
        let (topic, sort) = model.message(number);
        let mut body = string(topic);
        if qos > 0 {
            body.extend(packet_id.to_be_bytes());
        }
        if self.habits.level == 5 {
            body.push(0);
        }
        if sort != (Sort::Retained { is_deletion: true }) {
            body.extend(payload(number, self.habits.long_len));
        }
        let is_retained = matches!(sort, Sort::Retained { .. });
        let flags = u8::from(is_retained) | qos << 1 | u8::from(is_duplicate) << 3;
        self.write(&packet(0x30 | flags, &body));
    }

    fn subscribe(&mut self, model: &mut Model, random: &mut Random) {
        let mut grant = Grant { qos: random.one_of(&[0, 1, 1, 2, 2, 2]), no_local: false };
        let filter = self.any_filter(random);
        if filter == GROUP_FILTER {
            grant.qos = 1 + (self.number % 2) as u8;
        } else {
            grant.no_local = self.habits.level == 5 && random.once_in(4);
        }
        self.request(model, random, filter, Some(grant));
    }

    fn any_filter(&self, random: &mut Random) -> &'static str {
        match self.habits.has_group {
            true if random.once_in(4) => GROUP_FILTER,
            true => random.one_of(&FILTERS[1..]),
            false => random.one_of(&FILTERS),
        }
    }

    fn unsubscribe(&mut self, model: &mut Model, random: &mut Random) {
        let filter = self.any_filter(random);
        self.request(model, random, filter, None);
    }

    fn request(
        &mut self,
        model: &mut Model,
        random: &mut Random,
        filter: &'static str,
        grant: Option<Grant>,
    ) {
        let Some(packet_id) = self.free_packet_id(random) else { return };
        let Some(connection) = &mut self.connection else { return };
        if connection.requests.values().any(|(other, _)| *other == filter) {
            return;
        }
        connection.requests.insert(packet_id, (filter, grant));
        self.trace("requests", &(filter, grant, packet_id));
        model.request(self.number, filter, grant);
        let mut body = packet_id.to_be_bytes().to_vec();
        let mut options = grant.map(|grant| grant.qos | u8::from(grant.no_local) << 2);
        if self.habits.level == 5 {
            let at = FILTERS.iter().position(|other| *other == filter).unwrap_or(FILTERS.len());
            match &mut options {
                Some(options) => {
                    *options |= random.one_of(&[0, 1, 2]) << 4;
                    body.extend([2, 0x0B, at as u8 + 1]);
                }
                None => body.push(0),
            }
        }
        body.extend(string(filter));
        body.extend(options);
        self.write(&packet(if grant.is_some() { 0x82 } else { 0xA2 }, &body));
    }

    // ---- packets of the broker

    /// Sends what is due and handles what has arrived. Returns whether there was anything.
    pub fn step(&mut self, model: &mut Model, (clock, random): (Clock, &mut Random)) -> bool {
        let mut moved = self.send_due(clock);
        let Some(connection) = &mut self.connection else { return moved };
        let line = connection.line.clone();
        moved |= line.borrow_mut().read_down(usize::MAX, &mut connection.input) > 0;
        while model.complaints.is_empty()
            && let Some(connection) = &mut self.connection
            && let Some((packet, len)) = split_packet(&connection.input)
        {
            connection.input.drain(..len);
            self.counts.packets_received += 1;
            self.trace("gets", &packet);
            self.handle(model, &packet, (clock, random));
        }
        if self.connection.is_some() && line.borrow().broker_is_done {
            if self.habits.may_be_refused {
                self.trace("is closed", &());
                self.counts.refused += 1;
            } else {
                model.complain(format!("the broker closes the connection of client {}", self.number));
            }
            self.leave(clock, true);
        }
        moved
    }

    fn send_due(&mut self, clock: Clock) -> bool {
        let mut moved = false;
        while let Some(connection) = &mut self.connection
            && connection.due.front().is_some_and(|due| due.at_ms <= clock.life_ms)
            && let Some(due) = connection.due.pop_front()
        {
            moved = true;
            if let Some(packet_id) = due.completes {
                connection.in_flight.remove(&packet_id);
                self.in_use.remove(&packet_id);
            }
            if let Some(packet_id) = due.releases {
                let is_it = |outgoing: &&mut Outgoing| outgoing.packet_id == packet_id;
                self.outgoing.iter_mut().filter(is_it).for_each(|outgoing| outgoing.releases += 1);
            }
            self.trace("sends", &due.octets);
            self.write(&due.octets);
        }
        moved
    }

    /// Sends a packet, usually at once.
    fn send_later(
        &mut self,
        (clock, random): (Clock, &mut Random),
        octets: Vec<u8>,
        (completes, releases): (Option<u16>, Option<u16>),
    ) {
        let lateness_ms = if random.once_in(2) { random.below(self.habits.lateness_ms) } else { 0 };
        let Some(connection) = &mut self.connection else { return };
        let last_ms = connection.due.back().map_or(0, |due| due.at_ms);
        let at_ms = last_ms.max(clock.life_ms + lateness_ms);
        connection.due.push_back(Due { at_ms, octets, completes, releases });
    }

    fn handle(&mut self, model: &mut Model, packet: &FromServer, when: (Clock, &mut Random)) {
        let FromServer { first_octet, body } = packet;
        let Some(connection) = &mut self.connection else { return };
        if connection.is_open == (*first_octet == 0x20) {
            return model.complain(format!("client {} gets {packet:?} at a wrong time", self.number));
        }
        let id = || u16::from_be_bytes([body[0], body[1]]);
        // Before MQTT 5 there are no reasons.
        let reason = body.get(2).copied().unwrap_or(0);
        let may_be_refused = self.habits.may_be_refused;
        match first_octet {
            // The broker gives a reason before it closes the connection.
            0xE0 if may_be_refused && body.first() == Some(&QUOTA_EXCEEDED) => {}
            0x40 | 0x50 if may_be_refused && reason == QUOTA_EXCEEDED => {
                self.counts.refused += 1;
                let is_it = |outgoing: &Outgoing| outgoing.packet_id == id() && !outgoing.is_released;
                match self.outgoing.iter().position(is_it) {
                    Some(at) => drop(self.outgoing.remove(at)),
                    None => model.complain(format!("{packet:?} refuses nothing")),
                }
            }
            0x20 => self.handle_connack(model, body, when),
            0x40 => {
                let is_it =
                    |outgoing: &Outgoing| (outgoing.packet_id, outgoing.qos) == (id(), 1) && reason < 0x80;
                match self.outgoing.iter().position(is_it).and_then(|at| self.outgoing.remove(at)) {
                    Some(outgoing) => model.accepted(outgoing.number),
                    None => model.complain(format!("PUBACK {body:?} for nothing")),
                }
            }
            0x50 => {
                let is_it = |outgoing: &&mut Outgoing| {
                    (outgoing.packet_id, outgoing.qos) == (id(), 2) && reason < 0x80
                };
                match self.outgoing.iter_mut().find(is_it) {
                    Some(outgoing) => {
                        outgoing.is_released = true;
                        model.accepted(outgoing.number);
                        self.send_later(when, id_packet(0x62, id()), (None, Some(id())));
                    }
                    None => model.complain(format!("PUBREC {body:?} for nothing")),
                }
            }
            0x70 => {
                // A repeated PUBREL may be answered with "packet identifier not found".
                let is_it = |outgoing: &Outgoing| {
                    let is_known = reason == 0 || outgoing.releases > 1 && reason == 0x92;
                    outgoing.packet_id == id() && outgoing.is_released && outgoing.releases > 0 && is_known
                };
                match self.outgoing.iter().position(is_it) {
                    Some(at) => drop(self.outgoing.remove(at)),
                    None => model.complain(format!("PUBCOMP {body:?} for nothing: {:?}", self.outgoing)),
                }
            }
            0x62 => {
                // An unknown packet identifier is that of an exchange that the client has completed.
                let in_use = self.in_use.get(&id()).copied();
                self.forget(id());
                self.in_use.extend(in_use.map(|message| (id(), message)));
                self.send_later(when, id_packet(0x70, id()), (Some(id()), None));
            }
            0x90 | 0xB0 => {
                let Some((filter, grant)) = connection.requests.remove(&id()) else {
                    return model.complain(format!("an answer {packet:?} to no request"));
                };
                if may_be_refused && grant.is_some() && body.last().is_some_and(|code| *code >= 0x80) {
                    // The model goes on with what may have been before and what was requested.
                    self.counts.refused += 1;
                    return;
                }
                // An UNSUBACK of MQTT 3.1.1 has no codes.
                let is_granted = match grant {
                    Some(grant) => body.last() == Some(&grant.qos),
                    None => body.len() == 2 || [0, 0x11].contains(body.last().unwrap_or(&0xFF)),
                };
                if *first_octet != if grant.is_some() { 0x90 } else { 0xB0 } || !is_granted {
                    model.complain(format!("{packet:?} answers {filter} {grant:?}"));
                }
                model.granted(self.number, filter, grant);
            }
            octet if octet >> 4 == 3 => self.handle_publish(model, packet, when),
            _ => model.complain(format!("client {} gets {packet:?}", self.number)),
        }
    }

    fn handle_connack(&mut self, model: &mut Model, body: &[u8], (clock, _): (Clock, &mut Random)) {
        let Some(connection) = &mut self.connection else { return };
        if self.habits.may_be_refused && [SERVER_UNAVAILABLE, QUOTA_EXCEEDED].contains(&body[1]) {
            // The broker closes the connection.
            return;
        }
        let expected = [u8::from(connection.expects_present), 0];
        if body[..2] != expected {
            let what = format!("client {} gets CONNACK {body:?}, not {expected:?}", self.number);
            return model.complain(what);
        }
        connection.is_open = true;
        let is_continued = connection.is_continued;
        model.connected(self.number, self.expiry_s > 0);
        self.presence = Presence::Kept { expiry_min_s: self.expiry_s, expiry_max_s: self.expiry_s };
        self.left_total_ms = clock.total_ms;
        if is_continued {
            for at in 0..self.outgoing.len() {
                let outgoing = self.outgoing[at];
                self.counts.resent += 1;
                self.trace("sends again", &outgoing);
                if outgoing.is_released {
                    self.outgoing[at].releases += 1;
                    self.write(&id_packet(0x62, outgoing.packet_id));
                } else {
                    self.write_publish(model, &outgoing, true);
                }
            }
        }
    }

    /// Forgets a message with QoS 2 and its packet identifier.
    fn forget(&mut self, packet_id: u16) {
        self.received.remove(&packet_id);
        self.in_use.remove(&packet_id);
    }

    fn handle_publish(&mut self, model: &mut Model, packet: &FromServer, when: (Clock, &mut Random)) {
        let (flags, body) = (packet.first_octet & 15, &packet.body);
        let (qos, is_duplicate, is_retained) = (flags >> 1 & 3, flags & 8 != 0, flags & 1 != 0);
        let (topic, mut rest) = body[2..].split_at(usize::from(u16::from_be_bytes([body[0], body[1]])));
        let mut packet_id = 0;
        if qos > 0 {
            packet_id = u16::from_be_bytes([rest[0], rest[1]]);
            rest = &rest[2..];
        }
        let mut identifiers = None;
        if self.habits.level == 5 {
            let (properties, payload) = rest[1..].split_at(usize::from(rest[0]));
            assert!(
                properties.iter().step_by(2).all(|property| *property == 0x0B),
                "subscription identifiers"
            );
            rest = payload;
            identifiers = Some(properties.iter().skip(1).step_by(2).copied().collect::<Vec<u8>>());
        }
        let topic = String::from_utf8_lossy(topic).into_owned();
        let is_deletion = rest.is_empty() && RETAINED_TOPICS.contains(&&*topic);
        let number = rest.first_chunk().map_or(0, |number| u64::from_be_bytes(*number));
        if rest != payload(number, self.habits.long_len) && !is_deletion {
            return model.complain(format!("the payload of {number} was altered: {packet:?}"));
        }
        let client = self.number;
        let identifiers = identifiers.as_deref();
        let reception = Reception { number, topic: &topic, qos, is_retained, identifiers };
        let receive = |model: &mut Model| {
            if !is_deletion {
                model.receive(client, &reception);
            }
        };
        if qos == 0 {
            return receive(model);
        }
        let Some(connection) = &mut self.connection else { return };
        connection.in_flight.insert(packet_id, number);
        if connection.in_flight.len() > usize::from(connection.receive_max) && self.habits.level == 5 {
            model.complain(format!("client {} gets more than {}", self.number, connection.receive_max));
        }
        // With QoS 1, the broker may give a message another packet identifier on a new connection.
        self.in_use.retain(|id, message| *id == packet_id || qos == 2 || *message != (number, qos));
        let earlier = self.in_use.insert(packet_id, (number, qos));
        if let Some(earlier) = earlier.filter(|earlier| *earlier != (number, qos)) {
            let what = format!("packet {packet_id} is used for {:?} and {earlier:?}", (number, qos));
            return model.complain(format!("client {}: {what}", self.number));
        }
        if earlier.is_some() && !is_duplicate {
            model.complain(format!("client {} gets {number} again without DUP", self.number));
        }
        if qos == 1 {
            receive(model);
            return self.send_later(when, id_packet(0x40, packet_id), (Some(packet_id), None));
        }
        if self.received.insert(packet_id, number).is_none() {
            receive(model);
        }
        self.send_later(when, id_packet(0x50, packet_id), (None, None));
    }
}

/// Returns the payload of a message. A few messages have `long_len` bytes.
pub fn payload(number: u64, long_len: usize) -> Vec<u8> {
    let mut payload = number.to_be_bytes().to_vec();
    let padding = match number {
        _ if number.is_multiple_of(53) => long_len,
        // Some messages are longer than what a PUBLISH usually has.
        _ if number.is_multiple_of(17) => 900,
        _ => number as usize % 40,
    };
    payload.resize(NUMBER_BYTES + padding, number as u8);
    payload
}

/// Returns a line to the broker.
pub fn line() -> Rc<RefCell<Line>> {
    Rc::new(RefCell::new(Line::new(Shape::WIDE)))
}
