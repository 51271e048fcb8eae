//! A simulated client: a connection with its channels, its unanswered requests and its unacknowledged
//! messages.
//!
//! # Invariants
//! - The client sends requests before earlier ones are answered, as programs do. The exception are requests
//!   that change how later frames of the channel are interpreted.
//! - Answers come in the order of the requests; otherwise the frame checker has already failed.
//! - The ledger learns of a request before it is sent, and of a frame as soon as it is received.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use leveret_amqp::Method;

use super::content::{body_of, number_of};
use super::deaths::{Deaths, Delivery, is_dying};
use super::ledger::{Holder, Key, Ledger, Settled, Tick};
use leveret_test_support::simulated_server::{Client, Line, Phase, Said};

/// More messages than one client ever publishes.
const CONTENTS_MAX: u64 = 1_000_000;

/// A message in a queue.
pub type Place = (Key, u64);

/// The purpose of a channel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    Plain,
    Confirm,
    Transaction,
}

/// A request without an answer.
#[derive(Clone, Debug)]
pub enum Pending {
    Setting,
    Recover,
    Declare(Key),
    Scan(Key),
    Delete(Key),
    Purge(Key),
    DeclareExchange(&'static str),
    DeleteExchange(&'static str),
    Bind(usize),
    Unbind(usize),
    Consume,
    Cancel(String),
    Get { key: Key, no_ack: bool, since: Tick },
    Commit { published: Vec<u64>, settled: Vec<(Place, bool)> },
    Close,
}

/// The source of deliveries to a consumer.
#[derive(Clone, Debug)]
pub struct Consumer {
    pub key: Key,
    pub no_ack: bool,
    pub since: Tick,
}

#[derive(Debug)]
pub struct Channel {
    pub mode: Mode,
    /// Unanswered requests, each with the tick at which it was sent.
    pub pending: VecDeque<(Pending, Tick)>,
    pub consumers: BTreeMap<String, Consumer>,
    /// Unacknowledged deliveries, by delivery tag.
    pub unacked: BTreeMap<u64, Place>,
    /// Unconfirmed messages, by publish number.
    pub unconfirmed: BTreeMap<u64, u64>,
    pub publishes: u64,
    /// Contents of the open transaction: messages, and settlements with whether they requeue.
    pub published: Vec<u64>,
    pub decided: Vec<(Place, bool)>,
    /// Settlements sent since the last answer on the channel.
    pub settling: VecDeque<(Tick, Place)>,
    /// Consecutive gets that were counted as empty.
    ///
    /// The broker may omit the answer with a message when it is about to close the channel. Then the empty
    /// answer to a later get is taken for the answer to an earlier one.
    pub empty_gets: Vec<(Key, bool)>,
    pub is_closing: bool,
}

/// Notes that one of these gets took a message which was not delivered: with `no_ack` it is lost, otherwise
/// it was requeued.
fn doubt_gets(ledger: &mut Ledger, gets: &[(Key, bool)]) {
    for (key, no_ack) in gets {
        ledger.note_return(key);
        if *no_ack {
            ledger.doubt(key);
        }
    }
}

impl Channel {
    pub fn new(mode: Mode) -> Self {
        Self {
            mode,
            pending: VecDeque::new(),
            consumers: BTreeMap::new(),
            unacked: BTreeMap::new(),
            unconfirmed: BTreeMap::new(),
            publishes: 0,
            published: Vec::new(),
            decided: Vec::new(),
            settling: VecDeque::new(),
            empty_gets: Vec::new(),
            is_closing: false,
        }
    }

    /// Returns whether a recover is unanswered: deliveries that arrive now may already be with another
    /// consumer.
    fn is_recovering(&self) -> bool {
        self.pending.iter().any(|(pending, _)| matches!(pending, Pending::Recover))
    }

    fn is_at_rest(&self) -> bool {
        self.pending.is_empty() && self.unconfirmed.is_empty()
    }
}

/// Current behaviour of the connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct Link {
    /// Until this time nothing arrives at the broker; until `down_at` the client reads nothing.
    pub up_at: u64,
    pub down_at: u64,
    /// Maximum delay of a fragment, in milliseconds.
    pub latency_ms: u64,
}

/// Whether and how the client has left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Leaving {
    No,
    /// It has closed its connection in an orderly way.
    Politely,
    /// It disappeared. Its requests may still take effect while the broker keeps the connection.
    Gone,
}

#[derive(Debug)]
pub struct Actor {
    pub number: u64,
    pub vhost: &'static str,
    pub client: Client,
    pub line: Rc<RefCell<Line>>,
    pub link: Link,
    pub channels: BTreeMap<u16, Channel>,
    pub next_channel: u16,
    pub act_at: u64,
    /// Number of times that it has acted.
    pub acts: u64,
    /// Number of its next message. No other client uses the same numbers.
    pub next_content: u64,
    pub leaving: Leaving,
    /// Unanswered requests of channels that have ended.
    ghosts: Vec<Pending>,
    has_ended: bool,
    /// Consumers with `no_ack` of a client that disappeared, by channel and consumer tag.
    unread_consumers: BTreeMap<(u16, String), Key>,
    /// Its unanswered gets, by channel: the queue of each, and whether it uses `no_ack`.
    unread_gets: BTreeMap<u16, VecDeque<(Key, bool)>>,
    /// Print its methods, sent and received, on standard error.
    is_traced: bool,
}

impl Actor {
    pub fn new(
        number: u64,
        vhost: &'static str,
        client: Client,
        line: Rc<RefCell<Line>>,
        link: Link,
    ) -> Self {
        Self {
            number,
            vhost,
            client,
            line,
            link,
            channels: BTreeMap::new(),
            next_channel: 0,
            act_at: 0,
            acts: 0,
            next_content: number * CONTENTS_MAX,
            leaving: Leaving::No,
            ghosts: Vec::new(),
            has_ended: false,
            unread_consumers: BTreeMap::new(),
            unread_gets: BTreeMap::new(),
            is_traced: super::is_traced(),
        }
    }

    pub const fn holder(&self, channel: u16) -> Holder {
        Holder { connection: self.number, channel }
    }

    pub fn key(&self, name: &str) -> Key {
        (self.vhost, name.to_string())
    }

    /// Returns the name of its exclusive queue.
    pub fn own_queue(&self) -> String {
        format!("x{}", self.number)
    }

    pub fn is_open(&self) -> bool {
        self.leaving == Leaving::No && self.client.checker.phase == Phase::Open
    }

    /// Returns whether the broker still has the connection, and so may still process its requests.
    pub fn is_held(&self) -> bool {
        self.line.borrow().is_held
    }

    /// Returns whether all its requests are answered.
    pub fn is_at_rest(&self) -> bool {
        self.leaving != Leaving::No
            || self.client.is_done_sending() && self.channels.values().all(Channel::is_at_rest)
    }

    pub fn shown(&self) -> String {
        let channels = self.channels.iter().filter(|(_, channel)| !channel.is_at_rest());
        let channels: Vec<String> = channels
            .map(|(number, channel)| {
                let confirms = channel.unconfirmed.len();
                format!("{number}: {:?}, {confirms} confirms", channel.pending.front())
            })
            .collect();
        format!("connection {}: {} octets unsent, {channels:?}", self.number, self.client.unsent())
    }

    /// Sends a request on a channel and remembers it as unanswered.
    pub fn ask(&mut self, ledger: &mut Ledger, number: u16, pending: Pending, method: &Method<'_>) {
        let at = ledger.tick();
        let Some(channel) = self.channels.get_mut(&number) else { return };
        channel.pending.push_back((pending, at));
        self.send(number, method);
    }

    pub fn send(&mut self, number: u16, method: &Method<'_>) {
        if self.is_traced {
            eprintln!("{} -> {number} {method:?}", self.number);
        }
        self.client.send(number, method);
    }

    // ---- receiving

    /// Sends and receives, and tells the ledger. Returns whether anything moved.
    pub fn step(&mut self, ledger: &mut Ledger, now: leveret_core::time::Now) -> bool {
        let moved = self.client.step(&mut self.line.borrow_mut(), now);
        while let Some(said) = self.client.heard.pop_front() {
            self.hear(ledger, &said);
        }
        if self.leaving == Leaving::Politely && self.client.is_done_sending() {
            self.line.borrow_mut().hang_up();
        }
        moved
    }

    fn hear(&mut self, ledger: &mut Ledger, said: &Said) {
        if self.is_traced {
            eprintln!(
                "{} <- {} {:?}",
                self.number,
                said.shown(),
                said.body.first_chunk::<8>().map(|b| u64::from_le_bytes(*b))
            );
        }
        let method = said.method();
        if said.channel == 0 {
            if let Method::ConnectionClose { reply_code, reply_text, .. } = method {
                self.check_close(ledger, reply_code, reply_text);
                self.end(ledger);
            }
            if let Method::ConnectionCloseOk {} = method {
                self.end(ledger);
            }
            return;
        }
        match method {
            Method::BasicDeliver { consumer_tag, delivery_tag, redelivered, exchange, routing_key } => {
                let channel = self.channels.get(&said.channel);
                let consumer = channel.and_then(|channel| channel.consumers.get(consumer_tag)).cloned();
                let Some(Consumer { key, no_ack, since }) = consumer else { return };
                let sent = (exchange, routing_key);
                let (number, deaths) = self.take(ledger, said, sent);
                if !no_ack && channel.is_some_and(Channel::is_recovering) {
                    return ledger.pass_by(&key, number, self.number);
                }
                let from = (&key, number, deaths);
                self.note_delivery(ledger, from, said.channel, (redelivered, no_ack), since);
                if let Some(channel) = self.channels.get_mut(&said.channel).filter(|_| !no_ack) {
                    channel.unacked.insert(delivery_tag, (key, number));
                }
            }
            Method::BasicGetOk { delivery_tag, redelivered, exchange, routing_key, .. } => {
                let (number, deaths) = self.take(ledger, said, (exchange, routing_key));
                if let Some((Pending::Get { key, no_ack, since }, _)) =
                    self.pop(ledger, said.channel, method.id())
                {
                    let channel = self.channels.get(&said.channel);
                    if !no_ack && channel.is_some_and(Channel::is_recovering) {
                        return ledger.pass_by(&key, number, self.number);
                    }
                    let from = (&key, number, deaths);
                    self.note_delivery(ledger, from, said.channel, (redelivered, no_ack), since);
                    if let Some(channel) = self.channels.get_mut(&said.channel).filter(|_| !no_ack) {
                        channel.unacked.insert(delivery_tag, (key, number));
                    }
                }
            }
            Method::BasicReturn { exchange, routing_key, .. } => {
                let (number, _) = self.take(ledger, said, (exchange, routing_key));
                ledger.take_return(number);
            }
            Method::BasicAck { delivery_tag, multiple } => {
                for number in self.confirmed(said.channel, delivery_tag, multiple) {
                    ledger.confirm(number);
                }
            }
            Method::BasicNack { delivery_tag, multiple, .. } => {
                for number in self.confirmed(said.channel, delivery_tag, multiple) {
                    ledger.refuse(number);
                }
            }
            Method::BasicCancel { consumer_tag, .. } => {
                if let Some(channel) = self.channels.get_mut(&said.channel)
                    && let Some(consumer) = channel.consumers.remove(consumer_tag)
                {
                    ledger.note_return(&consumer.key);
                }
            }
            Method::ChannelClose { reply_code, reply_text, class_id, method_id } => {
                let about = (class_id, method_id);
                self.check_channel_close(ledger, said.channel, (reply_code, reply_text), about);
                self.note_closed(ledger, said.channel);
                self.end_channel(ledger, said.channel);
            }
            Method::ChannelCloseOk {} => self.end_channel(ledger, said.channel),
            _ => {
                if let Some(asked) = self.pop(ledger, said.channel, method.id()) {
                    self.answer(ledger, said.channel, asked, &method);
                }
            }
        }
    }

    /// Removes and returns the messages that a confirm is about.
    fn confirmed(&mut self, number: u16, tag: u64, multiple: bool) -> Vec<u64> {
        let Some(channel) = self.channels.get_mut(&number) else { return Vec::new() };
        if multiple {
            let left = channel.unconfirmed.split_off(&(tag + 1));
            core::mem::replace(&mut channel.unconfirmed, left).into_values().collect()
        } else {
            channel.unconfirmed.remove(&tag).into_iter().collect()
        }
    }

    /// Takes the next unanswered request, and notes that the settlements sent before it have been applied.
    ///
    /// A get may have no answer with a message if the channel is about to be closed.
    fn pop(&mut self, ledger: &mut Ledger, number: u16, id: (u16, u16)) -> Option<(Pending, Tick)> {
        let channel = self.channels.get_mut(&number)?;
        if !matches!(id, (60, 71 | 72)) {
            while matches!(channel.pending.front(), Some((Pending::Get { .. }, _))) {
                if let Some((Pending::Get { key, no_ack, .. }, _)) = channel.pending.pop_front() {
                    channel.empty_gets.push((key, no_ack));
                    doubt_gets(ledger, &channel.empty_gets);
                }
            }
            channel.empty_gets.clear();
        }
        let (pending, at) = channel.pending.pop_front()?;
        let holder = Holder { connection: self.number, channel: number };
        ledger.note_alive(holder, at);
        if let (Pending::Get { key, no_ack, .. }, (60, 72)) = (&pending, id) {
            channel.empty_gets.push((key.clone(), *no_ack));
        }
        let settled = channel.settling.partition_point(|(sent, _)| *sent < at);
        for (_, place) in channel.settling.drain(..settled) {
            ledger.note_settled(&place, holder, Settled::Applied);
        }
        Some((pending, at))
    }

    fn answer(
        &mut self,
        ledger: &mut Ledger,
        number: u16,
        (pending, since): (Pending, Tick),
        method: &Method<'_>,
    ) {
        let (vhost, holder) = (self.vhost, self.holder(number));
        match pending {
            Pending::Declare(key) => ledger.end_declaration(&key, true),
            Pending::Scan(key) => {
                // The answer may be old: a queue deleted since then existed when it was sent.
                if ledger.queue(&key).changed_at < since
                    && ledger.queue(&key).fact.is_there == Some(false)
                    && !super::topology::may_go(&key.1)
                    && ledger.queue(&key).fact.is_quiet()
                {
                    ledger.miss(format!("queue {key:?} was deleted and still exists: {method:?}"));
                }
                ledger.learn(&key, since, true);
            }
            Pending::Delete(key) => ledger.end_deletion(&key, true),
            Pending::Purge(key) => ledger.end_purge(&key),
            Pending::DeclareExchange(name) => ledger.exchange(vhost, name).settle(true),
            Pending::DeleteExchange(name) => ledger.end_exchange_deletion(vhost, name, true),
            Pending::Bind(at) | Pending::Unbind(at) => ledger.binding(vhost, at).settle(true),
            Pending::Cancel(tag) => {
                if let Some(channel) = self.channels.get_mut(&number)
                    && let Some(consumer) = channel.consumers.remove(&tag)
                {
                    ledger.note_return(&consumer.key);
                }
            }
            Pending::Commit { published, settled } => {
                published.iter().for_each(|number| ledger.confirm_committed(*number));
                for (place, _) in settled.iter().filter(|(_, gives_back)| !gives_back) {
                    ledger.note_settled(place, holder, Settled::Durable);
                }
            }
            // Deliveries that were on their way at that time are requeued as well.
            Pending::Recover => self.give_all_back(ledger, number),
            Pending::Setting | Pending::Consume | Pending::Get { .. } | Pending::Close => {}
        }
    }

    /// Compares a received message byte by byte with what was published.
    fn take(&self, ledger: &mut Ledger, said: &Said, (exchange, key): (&str, &[u8])) -> (u64, Deaths) {
        let number = number_of(&said.body);
        let Some(content) = ledger.contents.get(&number) else { return (number, Deaths::default()) };
        match content.deaths_in(exchange, key, &said.properties) {
            Some(deaths) if said.body == body_of(number, content.len) => (number, deaths),
            None if ledger.lacks_deaths
                && is_dying(&content.key)
                && said.body == body_of(number, content.len) =>
            {
                (number, Deaths::default())
            }
            _ => {
                ledger.complain(format!("message {number} was altered: {:?}", said.properties));
                (number, Deaths::default())
            }
        }
    }

    /// Tells the ledger of a delivery.
    fn note_delivery(
        &self,
        ledger: &mut Ledger,
        (key, number, deaths): (&Key, u64, Deaths),
        channel: u16,
        (redelivered, no_ack): (bool, bool),
        since: Tick,
    ) {
        if is_dying(&key.1) && ledger.contents.get(&number).is_some_and(|it| is_dying(&it.key)) {
            let delivery = Delivery { connection: self.number, since, now: 0, redelivered, no_ack };
            return ledger.deliver_dying(key, number, deaths, delivery);
        }
        ledger.deliver(key, number, self.holder(channel), (redelivered, no_ack), since);
    }

    // ---- ends

    fn check_close(&self, ledger: &mut Ledger, code: u16, text: &str) {
        let is_known = matches!(code, 320 | 403 | 530) || code == 506;
        if !is_known {
            ledger.complain(format!("connection {} is closed with {code} {text}", self.number));
        }
    }

    fn check_channel_close(
        &self,
        ledger: &mut Ledger,
        number: u16,
        (code, text): (u16, &str),
        about: (u16, u16),
    ) {
        let Some(channel) = self.channels.get(&number) else { return };
        match code {
            // The queue may be missing if a client deleted it or if its existence is uncertain.
            404 if about != (60, 40) => {
                // A declaration may have been processed after the request.
                let sure = channel.pending.front().and_then(|(pending, at)| match pending {
                    Pending::Scan(key) | Pending::Purge(key) | Pending::Get { key, .. } => {
                        Some(key).filter(|key| ledger.queue(key).changed_at < *at)
                    }
                    _ => None,
                });
                let is_meant = |key: &&Key| text.contains(&format!("'{}'", key.1));
                if let Some(key) = sure.filter(|key| !super::topology::may_go(&key.1)).filter(is_meant)
                    && ledger.queue(key).fact.is_sure()
                {
                    let key = key.clone();
                    ledger.miss(format!("queue {key:?} does not exist, but no client deleted it: {text}"));
                }
                if let Some((Pending::Scan(key), at)) = channel.pending.front()
                    && is_meant(&key)
                {
                    ledger.learn(key, *at, false);
                }
            }
            // Limits and pools; deliveries with an acknowledgement timeout; a queue exclusive to another
            // client.
            506 | 406 | 405 | 404 => {}
            _ => ledger.complain(format!("channel {number} is closed with {code} {text}")),
        }
    }

    /// Notes that the broker has closed a channel.
    ///
    /// Messages sent with `no_ack` that were not written yet may be lost, and it is unknown which they were.
    fn note_closed(&self, ledger: &mut Ledger, number: u16) {
        let Some(channel) = self.channels.get(&number) else { return };
        let consumed = channel.consumers.values().filter(|consumer| consumer.no_ack);
        let got = channel.pending.iter().filter_map(|(pending, _)| match pending {
            Pending::Get { key, no_ack: true, .. } => Some(key),
            _ => None,
        });
        for key in consumed.map(|consumer| &consumer.key).chain(got) {
            ledger.doubt(key);
        }
    }

    /// Ends a channel: its unacknowledged messages are requeued, and its unanswered requests may or may not
    /// happen.
    pub fn end_channel(&mut self, ledger: &mut Ledger, number: u16) {
        let Some(channel) = self.channels.remove(&number) else { return };
        let holder = self.holder(number);
        ledger.note_ended(holder);
        for place in channel.unacked.values() {
            ledger.give_back(place, holder);
        }
        for (_, place) in &channel.settling {
            ledger.give_back(place, holder);
        }
        for (place, _) in &channel.decided {
            ledger.give_back(place, holder);
        }
        for consumer in channel.consumers.values() {
            ledger.note_return(&consumer.key);
        }
        if matches!(channel.pending.front(), Some((Pending::Get { .. }, _))) {
            doubt_gets(ledger, &channel.empty_gets);
        }
        for (pending, _) in channel.pending {
            if let Pending::Get { key, .. } = &pending {
                ledger.note_return(key);
            }
            if let Pending::Commit { settled, .. } = &pending {
                settled.iter().for_each(|(place, _)| ledger.give_back(place, holder));
            }
            self.ghosts.push(pending);
        }
        self.lay_ghosts(ledger);
    }

    /// Ends the requests of ended channels, once the broker has answered the close or dropped the connection.
    fn lay_ghosts(&mut self, ledger: &mut Ledger) {
        if self.leaving == Leaving::Gone && self.is_held() {
            return;
        }
        let vhost = self.vhost;
        for ghost in self.ghosts.drain(..) {
            match ghost {
                Pending::Declare(key) => ledger.end_declaration(&key, false),
                Pending::Delete(key) => ledger.end_deletion(&key, false),
                Pending::Purge(key) => ledger.end_purge(&key),
                Pending::DeclareExchange(name) => ledger.exchange(vhost, name).settle(false),
                Pending::DeleteExchange(name) => ledger.end_exchange_deletion(vhost, name, false),
                Pending::Bind(at) | Pending::Unbind(at) => ledger.binding(vhost, at).settle(false),
                _ => {}
            }
        }
    }

    /// Notes that the connection is closed on both sides.
    pub fn end(&mut self, ledger: &mut Ledger) {
        if self.leaving == Leaving::No {
            self.leaving = Leaving::Politely;
        }
        for number in self.channels.keys().copied().collect::<Vec<_>>() {
            self.end_channel(ledger, number);
        }
        self.lay_ghosts(ledger);
    }

    /// Notes that the connection broke or the client disappeared. Data written to it is lost.
    pub fn vanish(&mut self, ledger: &mut Ledger) {
        if self.leaving == Leaving::Gone {
            return;
        }
        self.leaving = Leaving::Gone;
        self.note_unread();
        self.read_unheard(ledger);
        for number in self.channels.keys().copied().collect::<Vec<_>>() {
            self.end_channel(ledger, number);
        }
        self.client.die();
    }

    /// Reads what the broker wrote and the client never read. Messages sent with `no_ack` count as settled.
    fn read_unheard(&mut self, ledger: &mut Ledger) {
        self.client.overhear(&mut self.line.borrow_mut());
        while let Some(said) = self.client.heard.pop_front() {
            let content = number_of(&said.body);
            match said.method() {
                Method::BasicDeliver { consumer_tag, .. } => {
                    let place = (said.channel, consumer_tag.to_string());
                    if let Some(key) = self.unread_consumers.get(&place) {
                        ledger.lose(&(key.clone(), content));
                    }
                }
                // Gets are answered in order.
                Method::BasicGetOk { .. } => {
                    if let Some((key, true)) = self.next_unread_get(said.channel) {
                        ledger.lose(&(key, content));
                    }
                }
                Method::BasicGetEmpty { .. } => drop(self.next_unread_get(said.channel)),
                Method::ChannelClose { .. } => self.note_closed(ledger, said.channel),
                _ => {}
            }
        }
    }

    /// Remembers the consumers and gets whose messages the client will never read.
    fn note_unread(&mut self) {
        for (number, channel) in &self.channels {
            let consumers = channel.consumers.iter().filter(|(_, consumer)| consumer.no_ack);
            let consumers = consumers.map(|(tag, consumer)| ((*number, tag.clone()), consumer.key.clone()));
            self.unread_consumers.extend(consumers);
            let gets = channel.pending.iter().filter_map(|(pending, _)| match pending {
                Pending::Get { key, no_ack, .. } => Some((key.clone(), *no_ack)),
                _ => None,
            });
            self.unread_gets.insert(*number, gets.collect());
        }
    }

    fn next_unread_get(&mut self, channel: u16) -> Option<(Key, bool)> {
        self.unread_gets.get_mut(&channel)?.pop_front()
    }

    /// Checks after a turn of the broker whether it has dropped the connection.
    pub fn note_turn(&mut self, ledger: &mut Ledger) {
        if self.has_ended || self.is_held() {
            return;
        }
        self.has_ended = true;
        // The broker may have ended the connection without a close method.
        self.vanish(ledger);
        self.read_unheard(ledger);
        self.lay_ghosts(ledger);
    }

    pub const fn is_over(&self) -> bool {
        self.has_ended
    }
}
