//! Retained messages: the last message of each topic that an MQTT client has published with RETAIN.
//!
//! A retained message is in memory, and it is a definition in the log ([`Definition::Retained`]). A message with QoS 1 or
//! 2 is in the log before its publisher gets the acknowledgement. A message with QoS 0 promises nothing, and devices
//! publish such messages often. So it is written within [`WRITE_DELAY_MS`], and only the last one of its topic, which
//! spares the flash.
//!
//! A subscriber gets the retained messages that match its filter as messages in the queue of its session. Their exchange
//! has no name, which distinguishes them from other messages ([`leveret_core::command::Delivery`]). Only some of them are
//! in the queue at a time; when the client has received these, the next ones are added. So a client gets thousands of
//! them in many turns, and they take little memory.
//!
//! A retained message whose message expiry interval has passed is not sent, and is deleted when a subscription matches it.
//! The time since its publication is not in the log: after a restart, the interval begins again.
//!
//! A message that exceeds a limit is refused, and its topic keeps the message that it had.
//!
//! # Invariants
//! - All retained messages together take at most a fixed number of bytes, and the memory that is free.

use core::num::NonZeroU16;
use std::collections::VecDeque;

use leveret_amqp::field::Table;
use leveret_amqp::props::Properties;
use leveret_core::batch::Batch;
use leveret_core::command::{BindingId, ChannelId, ConnectionId, Name, Outcome, QueueId, SessionId, VhostId};
use leveret_core::definition::{self, Definition};
use leveret_core::error::{Fault, ReplyCode};
use leveret_core::limits::Limits;
use leveret_core::mem::{Class, HeapBytes, Memory, MessageFlags, MessageId, Messages, Share, Slab};
use leveret_core::topic::exchange_separators;
use leveret_storage::{PendingWrites, Urgency};

use super::access::Access;
use super::arguments::expiration_ms;
use super::queue_flow::Claim;
use super::recovery::Restored;
use super::reply_text::check_deletable;
use super::sessions::matches;
use super::state::{ALLOCATION_BYTES, IndexTable};
use super::topology::{Binding, Destination};
use super::{Broker, Context};

/// The longest time between the publication of a retained message with QoS 0 and its write, in milliseconds.
const WRITE_DELAY_MS: u64 = 60_000;
/// The most bytes of the properties and the payload of a retained message.
const CONTENT_BYTES_MAX: usize = 60 << 10;
/// Why a retained message is not stored, and what to do, as a text for log lines.
const NO_MEMORY: &str = "memory_limit: raise it, or delete retained messages, queues or bindings";
/// The number of messages in the queue of a session up to which retained messages are added.
const READY_MAX: u32 = 32;
/// The number of retained messages that are compared with a filter before other sessions have their turn.
const EXAMINED_MAX: usize = 4096;
/// The number of comparisons that count as one unit of work.
const EXAMINED_PER_UNIT: usize = 8;

/// One retained message.
#[derive(Debug)]
struct RetainedMessage {
    vhost: VhostId,
    /// The routing key of the topic.
    key: Box<str>,
    content: Content,
    /// The message is not in the log yet.
    is_due: bool,
}

/// The content of a retained message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Content {
    qos: u8,
    /// The AMQP properties, followed by the payload.
    octets: Box<[u8]>,
    properties_len: u32,
    /// When the message was published or restored, in milliseconds of broker time.
    arrived_ms: u64,
}

impl Content {
    fn new(qos: u8, properties: &[u8], payload: &[u8], arrived_ms: u64) -> Self {
        let octets = [properties, payload].concat().into_boxed_slice();
        Self { qos, octets, properties_len: properties.len() as u32, arrived_ms }
    }

    pub(crate) const fn arrived_ms(&self) -> u64 {
        self.arrived_ms
    }

    /// Returns the content of a message that arrived at `arrived_ms`.
    fn of(messages: &Messages, message: MessageId, arrived_ms: u64) -> Self {
        let (properties_len, body_len) = (messages.properties_len(message), messages.body_len(message));
        let mut octets = vec![0; properties_len as usize + body_len as usize].into_boxed_slice();
        let mut cursor = messages.properties_cursor(message);
        messages.read(message, &mut cursor, &mut octets);
        let flags = messages.flags(message);
        let qos = match () {
            () if flags.has(MessageFlags::EXACTLY_ONCE) => 2,
            () if flags.has(MessageFlags::PERSISTENT) => 1,
            () => 0,
        };
        Self { qos, octets, properties_len, arrived_ms }
    }

    pub(crate) const fn qos(&self) -> u8 {
        self.qos
    }

    pub(crate) fn properties(&self) -> &[u8] {
        &self.octets[..self.properties_len as usize]
    }

    pub(crate) fn payload(&self) -> &[u8] {
        &self.octets[self.properties_len as usize..]
    }

    /// Returns when the message expires, in milliseconds of broker time; `None` if it does not.
    fn expires_ms(&self) -> Option<u64> {
        let expiration_ms = expiration_ms(&Properties::trusted(self.properties())).ok().flatten()?;
        Some(self.arrived_ms.saturating_add(expiration_ms))
    }

    /// Returns the flags of a message with this content.
    fn flags(&self) -> MessageFlags {
        let flags = match self.qos {
            0 => MessageFlags::NONE,
            1 => MessageFlags::PERSISTENT,
            _ => MessageFlags::PERSISTENT.with(MessageFlags::EXACTLY_ONCE),
        };
        if self.expires_ms().is_some() { flags.with(MessageFlags::EXPIRES) } else { flags }
    }
}

/// All retained messages.
#[derive(Debug)]
pub(crate) struct Retained {
    slab: Slab<RetainedMessage>,
    /// By virtual host and routing key.
    table: IndexTable,
    /// Bytes of topics, properties and payloads.
    bytes: HeapBytes,
    bytes_max: usize,
    /// When messages are written that are not in the log yet, in milliseconds of broker time; `None` if there are none.
    write_ms: Option<u64>,
    replaying: Replaying,
    /// The topic whose update was refused last, until it has an update that fits or is deleted.
    refused: Option<RefusedUpdate>,
    /// Number of updates that were refused since the start.
    refused_count: u64,
}

/// A topic whose retained message could not be updated.
#[derive(Debug)]
struct RefusedUpdate {
    vhost: VhostId,
    key: Box<str>,
    limit: &'static str,
}

impl Retained {
    /// Bytes that a retained message takes besides its record, without its topic and its content: the allocator's overhead for
    /// both, and its definition in the index of the log.
    const SIDE_BYTES: usize = 2 * ALLOCATION_BYTES + leveret_storage::DEFINITION_BYTES;
    /// Bytes of memory that a retained message takes, without its topic and its content.
    pub(crate) const RECORD_BYTES: usize =
        Slab::<RetainedMessage>::record_bytes() + IndexTable::ENTRY_BYTES + Self::SIDE_BYTES;

    /// Returns the bytes of unused places that may be resident in memory.
    pub(crate) const fn idle_bytes(&self) -> usize {
        self.slab.idle_bytes()
    }

    /// Returns unused memory to the system.
    pub(crate) fn trim(&mut self) {
        self.slab.trim();
        self.table.trim(self.slab.touched());
    }

    pub(crate) fn new(limits: &Limits, memory: &Memory, seed: u64) -> Self {
        let count = limits.retained_max as usize;
        Self {
            slab: Slab::in_memory(count, memory, Class::Definitions).with_side_bytes(Self::SIDE_BYTES),
            table: IndexTable::in_memory(count, memory, Class::Definitions, seed),
            bytes: HeapBytes::with_gaps(memory, Class::Definitions),
            bytes_max: limits.retained_bytes_max as usize,
            write_ms: None,
            replaying: Replaying::default(),
            refused: None,
            refused_count: 0,
        }
    }

    /// Returns the topic whose update was refused last: its virtual host, its routing key, and the limit that the update
    /// exceeds. `None` if it has had an update that fits, or was deleted.
    pub(crate) fn refused_update(&self) -> Option<(VhostId, &str, &'static str)> {
        self.refused.as_ref().map(|refused| (refused.vhost, &*refused.key, refused.limit))
    }

    /// Returns the number of updates that were refused since the start.
    pub(crate) const fn refused_count(&self) -> u64 {
        self.refused_count
    }

    fn note_refused(&mut self, vhost: VhostId, key: &str, limit: &'static str) {
        self.refused_count += 1;
        self.refused = Some(RefusedUpdate { vhost, key: key.into(), limit });
    }

    /// Notes that a topic has an update that fits, or is to have no message.
    fn forget_refused(&mut self, vhost: VhostId, key: &str) {
        self.refused.take_if(|refused| refused.vhost == vhost && *refused.key == *key);
    }

    /// Returns the number of places that retained messages have used since the start.
    pub(crate) const fn places(&self) -> usize {
        self.slab.places()
    }

    /// Returns the virtual host, the routing key and the content of the retained message in a place.
    pub(crate) fn at(&self, place: usize) -> Option<(VhostId, &str, &Content)> {
        self.slab.get(place).map(|record| (record.vhost, &*record.key, &record.content))
    }

    /// Returns the number of retained messages, and the bytes of their topics and contents.
    pub(crate) const fn counts(&self) -> (usize, usize) {
        (self.slab.len(), self.bytes.used())
    }

    fn find(&self, vhost: VhostId, key: &str) -> Option<usize> {
        self.table.find((vhost, key), |at| self.slab[at].vhost == vhost && *self.slab[at].key == *key)
    }

    /// Returns the limit that a new retained message would exceed, and what to do, as a text for log lines; `None` if it
    /// fits. `bytes` is the length of its properties and its payload.
    fn exceeded_limit(&self, vhost: VhostId, key: &str, bytes: usize) -> Option<&'static str> {
        let replaced = self.find(vhost, key).map(|at| self.bytes_of(at));
        match replaced {
            None if self.slab.free_count() == 0 => Some(NO_MEMORY),
            _ if bytes > CONTENT_BYTES_MAX => {
                Some("60 KiB, the most that is retained: publish less in one message")
            }
            _ if self.bytes.used() - replaced.unwrap_or(0) + key.len() + bytes > self.bytes_max => {
                Some(NO_MEMORY)
            }
            _ if (key.len() + bytes).saturating_sub(replaced.unwrap_or(0)) > self.bytes.free() => {
                Some(NO_MEMORY)
            }
            _ => None,
        }
    }

    fn bytes_of(&self, at: usize) -> usize {
        self.slab[at].key.len() + self.slab[at].content.octets.len()
    }

    /// Sets the retained message of a topic, for which there is capacity.
    fn put(&mut self, vhost: VhostId, key: &str, content: Content) -> usize {
        if let Some(at) = self.find(vhost, key) {
            let before = self.bytes_of(at);
            (self.slab[at].content, self.slab[at].is_due) = (content, false);
            self.bytes.subtract(before);
            self.bytes.add(self.bytes_of(at));
            return at;
        }
        let record = RetainedMessage { vhost, key: key.into(), content, is_due: false };
        let at = self.slab.insert_checked(record);
        self.table.insert((vhost, key), at, self.slab.touched());
        self.bytes.add(self.bytes_of(at));
        at
    }

    /// Removes the retained message of a topic. Returns whether there was one.
    fn remove(&mut self, vhost: VhostId, key: &str) -> bool {
        let Some(at) = self.find(vhost, key) else { return false };
        self.bytes.subtract(self.bytes_of(at));
        self.slab.remove(at);
        self.table.remove((vhost, key), at);
        true
    }

    /// Notes that a retained message has changed and is to be written later.
    fn note_due(&mut self, pending_writes: &PendingWrites, at: usize) {
        self.slab[at].is_due = true;
        self.write_ms.get_or_insert(pending_writes.time_ms() + WRITE_DELAY_MS);
    }

    /// Returns the place of the next retained message that matches a subscription, from `place` on. Advances `place` by at
    /// most `examined_max`.
    fn next_match(
        &self,
        vhost: VhostId,
        subscription: &Binding,
        place: &mut usize,
        examined_max: usize,
    ) -> NextMatch {
        let key = &*subscription.key;
        if !key.contains(['*', '#']) {
            let found = self.find(vhost, key).filter(|at| *at >= *place);
            *place = self.slab.places();
            return found.map_or(NextMatch::None, NextMatch::At);
        }
        let arguments = Table::trusted(&subscription.arguments);
        let end = self.slab.places().min(*place + examined_max);
        while *place < end {
            let at = *place;
            *place += 1;
            let is_match =
                |found: &RetainedMessage| found.vhost == vhost && matches(key, arguments, &found.key);
            if self.slab.get(at).is_some_and(is_match) {
                return NextMatch::At(at);
            }
        }
        if end < self.slab.places() { NextMatch::ExamineMore } else { NextMatch::None }
    }

    /// Appends a retained message, or its deletion, to the log. Returns the batch.
    fn append(
        &self,
        pending_writes: &mut PendingWrites,
        access: &Access,
        vhost: VhostId,
        key: &str,
    ) -> Batch {
        let found = self.find(vhost, key).map(|at| &self.slab[at].content);
        let definition = Definition::Retained(definition::Retained {
            vhost: access.vhost_name(vhost),
            key,
            qos: found.map_or(0, |content| content.qos),
            properties: found.map_or(&[], |content| content.properties()),
            payload: found.map_or(&[], |content| content.payload()),
        });
        pending_writes.write_definition(&definition, found.is_some())
    }

    /// Appends retained messages to the log that are to be written now, or with `all` those that are to be written later,
    /// too.
    pub(crate) fn write_due(&mut self, pending_writes: &mut PendingWrites, access: &Access, all: bool) {
        let is_due = self.write_ms.is_some_and(|at_ms| all || at_ms <= pending_writes.time_ms());
        if !is_due {
            return;
        }
        for at in 0..self.slab.places() {
            if !all && pending_writes.is_crowded() {
                // The rest is written in one of the next turns.
                return;
            }
            let Some(record) = self.slab.get_mut(at).filter(|record| record.is_due) else { continue };
            record.is_due = false;
            let record = &self.slab[at];
            self.append(pending_writes, access, record.vhost, &record.key);
        }
        self.write_ms = None;
    }
}

/// Progress in sending the retained messages that match a subscription.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Replay {
    /// The subscription.
    binding: BindingId,
    /// The place of the next retained message to examine.
    place: usize,
}

/// The result of [`Retained::next_match`].
enum NextMatch {
    /// The message at this place matches.
    At(usize),
    /// No further message matches.
    None,
    /// There are further messages to examine.
    ExamineMore,
}

/// Sessions with retained messages to be added to their queues, in the order of their turns.
#[derive(Debug, Default)]
pub(crate) struct Replaying {
    sessions: VecDeque<SessionId>,
    /// The counter of freed capacity when no session could get a message.
    stuck_at: Option<u64>,
}

impl Broker {
    /// Publishes a message of an MQTT client, and makes it the retained message of its topic, or deletes that one if the
    /// message has no payload. See [`leveret_core::command::Command::PublishRetained`].
    pub(crate) fn publish_retained(
        &mut self,
        cx: &mut Context<'_>,
        (connection, channel): (ConnectionId, ChannelId),
        message: MessageId,
        packet_id: Option<NonZeroU16>,
        is_refusable: bool,
    ) -> Result<Outcome, Fault> {
        let vhost = self.consumers.channel(channel).vhost;
        let now_ms = cx.pending_writes.time_ms();
        let change = self.retained_change(cx.messages, vhost, message, now_ms);
        let exceeded = match &change.update {
            Update::Refuse(limit) => Some(*limit),
            Update::Set(_) | Update::Delete => None,
        };
        // A message that was published before is not refused: its packet identifier would be free for the client only.
        let is_repeated = packet_id.is_some_and(|packet_id| self.is_received(connection, packet_id));
        let exceeded = exceeded.filter(|_| !is_repeated);
        let topic = exceeded.and_then(|_| exchange_separators(&change.key)).unwrap_or_default();
        if let Some(limit) = exceeded.filter(|_| is_refusable) {
            let allowed = self.allowed_exchange(cx, channel, message);
            cx.messages.release(message);
            allowed?;
            self.change_retained(cx, change);
            let text =
                format_args!("a message with RETAIN to '{}' that exceeds {limit}", topic.escape_debug());
            return Err(Fault::new(ReplyCode::ResourceError, text));
        }
        let outcome = match packet_id {
            Some(packet_id) => {
                self.publish_once(cx, (connection, channel), (message, Some(change)), packet_id)
            }
            None => {
                let outcome = self.publish(cx, channel, message, false);
                if matches!(outcome, Ok(Outcome::Published | Outcome::PublishedNowhere)) {
                    self.change_retained(cx, change);
                }
                outcome
            }
        };
        match (outcome, exceeded) {
            (Ok(Outcome::Published | Outcome::PublishedNowhere), Some(limit)) => {
                Ok(Outcome::NotRetained { limit, topic: topic.as_str().into() })
            }
            (outcome, _) => outcome,
        }
    }

    /// Returns the change of the retained message that a message with RETAIN makes. `now_ms` is broker time.
    pub(crate) fn retained_change(
        &self,
        messages: &Messages,
        vhost: VhostId,
        message: MessageId,
        now_ms: u64,
    ) -> RetainedChange {
        let key = core::str::from_utf8(messages.routing_key(message)).unwrap_or_default();
        let key = Name::try_from(key).unwrap_or_default();
        let len = messages.properties_len(message) as usize + messages.body_len(message) as usize;
        let update = match messages.body_len(message) {
            0 => Update::Delete,
            _ => match self.retained.exceeded_limit(vhost, &key, len) {
                Some(limit) => Update::Refuse(limit),
                None => Update::Set(Content::of(messages, message, now_ms)),
            },
        };
        RetainedChange { vhost, key, update }
    }

    /// Sets or deletes the retained message of a topic, or notes that it could not be set.
    pub(crate) fn change_retained(&mut self, cx: &mut Context<'_>, change: RetainedChange) {
        let RetainedChange { vhost, key, update } = change;
        if let Update::Refuse(limit) = update {
            return self.retained.note_refused(vhost, &key, limit);
        }
        self.retained.forget_refused(vhost, &key);
        let is_written_later = match update {
            Update::Set(content) => {
                let is_written_later = content.qos == 0;
                let at = self.retained.put(vhost, &key, content);
                if is_written_later {
                    self.retained.note_due(cx.pending_writes, at);
                }
                is_written_later
            }
            Update::Delete if self.retained.remove(vhost, &key) => false,
            Update::Delete | Update::Refuse(_) => return,
        };
        if !is_written_later {
            let batch = self.retained.append(cx.pending_writes, &self.access, vhost, &key);
            cx.await_batch(batch);
        }
    }

    /// Adds a retained message from the log. `arrived_ms` is the present broker time in milliseconds.
    pub(crate) fn restore_retained(
        &mut self,
        stored: &definition::Retained<'_>,
        arrived_ms: u64,
    ) -> Restored {
        let definition::Retained { vhost, key, qos, properties, payload } = *stored;
        let Some(vhost) = self.access.find_vhost(vhost) else { return self.access.result_without_owner() };
        if self.retained.exceeded_limit(vhost, key, properties.len() + payload.len()).is_some() {
            return Restored::NoCapacity;
        }
        self.retained.put(vhost, key, Content::new(qos, properties, payload, arrived_ms));
        Restored::Exists(None)
    }

    /// Deletes the retained messages of a virtual host. Returns `false` if there are further ones: too much waits to be
    /// written.
    pub(crate) fn delete_retained_of(&mut self, cx: &mut Context<'_>, vhost: VhostId) -> bool {
        self.retained.refused.take_if(|refused| refused.vhost == vhost);
        for at in 0..self.retained.slab.places() {
            let Some(record) = self.retained.slab.get(at).filter(|record| record.vhost == vhost) else {
                continue;
            };
            if cx.pending_writes.is_crowded() {
                return false;
            }
            let key = record.key.clone();
            self.retained.remove(vhost, &key);
            self.retained.append(cx.pending_writes, &self.access, vhost, &key);
        }
        true
    }

    /// Deletes the retained message of a topic. Returns whether there was one. The reply waits until this is durable.
    ///
    /// # Errors
    /// The storage cannot be written.
    pub(crate) fn delete_retained(
        &mut self,
        cx: &mut Context<'_>,
        vhost: VhostId,
        key: &str,
    ) -> Result<bool, Fault> {
        check_deletable(cx.pending_writes, true)?;
        self.retained.forget_refused(vhost, key);
        let is_there = self.retained.find(vhost, key).is_some();
        if is_there {
            let key = Name::try_from(key).unwrap_or_default();
            self.change_retained(cx, RetainedChange { vhost, key, update: Update::Delete });
        }
        Ok(is_there)
    }

    /// Appends all retained messages to the log that are not in it yet. Called before a clean stop.
    pub fn write_all_retained(&mut self, pending_writes: &mut PendingWrites) {
        self.retained.write_due(pending_writes, &self.access, true);
    }

    /// Returns when retained messages with QoS 0 are to be written, in milliseconds of broker time.
    pub const fn next_retained_write_ms(&self) -> Option<u64> {
        self.retained.write_ms
    }

    // ---- subscriptions

    /// Begins to send the retained messages that match a subscription, at the end of this turn.
    pub(crate) fn begin_replay(&mut self, session: SessionId, binding: BindingId) {
        let replays = self.sessions.replays_mut(session);
        replays.retain(|replay| replay.binding != binding);
        replays.push_back(Replay { binding, place: 0 });
        self.retained.replaying.add(session);
    }

    /// Continues with the sessions that wait for their turn, or for capacity.
    pub(crate) fn continue_replays(&mut self, cx: &mut Context<'_>) {
        let replaying = &mut self.retained.replaying;
        let (mut sessions_left, mut examined_left) = (replaying.sessions.len(), EXAMINED_MAX);
        let mut is_any_examined = sessions_left == 0;
        while sessions_left > 0 && examined_left > 0 {
            let Some(session) = self.retained.replaying.sessions.pop_front() else { break };
            sessions_left -= 1;
            is_any_examined |= self.replay_retained(cx, session, &mut examined_left);
        }
        let has_given_up = !is_any_examined && sessions_left == 0;
        self.retained.replaying.stuck_at = has_given_up.then(|| self.all_capacity_freed(cx));
    }

    fn all_capacity_freed(&self, cx: &Context<'_>) -> u64 {
        self.capacity_freed() + cx.pending_writes.capacity_freed() + cx.messages.capacity_freed()
    }

    /// Returns whether sessions wait for their turn to get retained messages, and may get some.
    pub(crate) fn may_replay(&self, capacity_freed: impl FnOnce() -> u64) -> bool {
        let Replaying { sessions, stuck_at } = &self.retained.replaying;
        !sessions.is_empty() && stuck_at.is_none_or(|stuck_at| stuck_at != capacity_freed())
    }

    /// Adds retained messages to the queue of a session whose client has received others.
    pub(crate) fn refill_retained(&mut self, cx: &mut Context<'_>, session: SessionId) {
        if !self.sessions.replays_mut(session).is_empty() {
            let mut examined_left = EXAMINED_MAX;
            self.replay_retained(cx, session, &mut examined_left);
        }
    }

    /// Adds retained messages to the queue of a session, unless it has enough messages for its client. Examines at most
    /// `examined_left` messages, and subtracts their number. Returns `false` if there is no capacity.
    fn replay_retained(
        &mut self,
        cx: &mut Context<'_>,
        session: SessionId,
        examined_left: &mut usize,
    ) -> bool {
        loop {
            let Some((vhost, queue)) = self.sessions.replay_target(session) else { return true };
            let Some(replay) = self.sessions.replays_mut(session).front().copied() else { return true };
            if self.queues.records().ready_in(queue) >= READY_MAX.min(self.sessions.messages_max()) {
                // `refill_retained` continues.
                return true;
            }
            if *examined_left == 0 {
                self.retained.replaying.add(session);
                return true;
            }
            let subscription = self.topology.binding_at(replay.binding.index());
            let is_own = |binding: &&Binding| binding.destination == Destination::Queue(queue);
            let mut place = replay.place;
            let found = match subscription.filter(is_own) {
                Some(binding) => self.retained.next_match(vhost, binding, &mut place, *examined_left),
                // The subscription has ended.
                None => NextMatch::None,
            };
            let examined = (place - replay.place).max(1);
            cx.work.charge(examined / EXAMINED_PER_UNIT);
            *examined_left = examined_left.saturating_sub(examined);
            match found {
                NextMatch::At(at) if !self.push_retained(cx, queue, at) => {
                    self.retained.replaying.add(session);
                    return false;
                }
                NextMatch::At(_) | NextMatch::ExamineMore => {
                    if let Some(replay) = self.sessions.replays_mut(session).front_mut() {
                        replay.place = place;
                    }
                }
                NextMatch::None => {
                    self.sessions.replays_mut(session).pop_front();
                }
            }
        }
    }

    /// Pushes a copy of a retained message to the queue of a session, or deletes the message if it has expired. Returns
    /// `false` if there is no capacity.
    fn push_retained(&mut self, cx: &mut Context<'_>, queue: QueueId, at: usize) -> bool {
        let RetainedMessage { vhost, key, content, .. } = &self.retained.slab[at];
        if content.expires_ms().is_some_and(|expires_ms| expires_ms <= cx.pending_writes.time_ms()) {
            let (vhost, key) = (*vhost, key.clone());
            if !cx.pending_writes.is_crowded() {
                self.retained.remove(vhost, &key);
                self.retained.append(cx.pending_writes, &self.access, vhost, &key);
            }
            return true;
        }
        let (properties, payload) = (content.properties(), content.payload());
        let bytes = key.len() + properties.len() + payload.len();
        if cx.messages.check_extents(bytes, Share::Ordinary).is_err() {
            return false;
        }
        let Ok(message) = cx.messages.begin("", key.as_bytes(), Share::Ordinary) else { return false };
        let len = payload.len() as u32;
        if cx.messages.reserve_content(message, properties, content.flags(), len, Share::Ordinary).is_err() {
            cx.messages.discard(message);
            return false;
        }
        cx.messages.append_body(message, payload);
        cx.messages.finish(message);
        if content.flags().has(MessageFlags::EXPIRES) {
            cx.messages.set_arrived_ms(message, content.arrived_ms.max(1));
        }
        let claim = Claim { share: Share::Ordinary, may_wait: true, has_shares: true, has_timed_out: false };
        let targets = [queue];
        if self.queues.check_capacity(cx, &self.quota, message, &targets, claim).is_err() {
            cx.messages.discard(message);
            return false;
        }
        if self.queues.push(cx, message, &targets, Urgency::Window) {
            self.republisher().enforce_limits_after_push(cx, message, &targets);
        }
        cx.messages.release(message);
        true
    }
}

impl Replaying {
    /// Adds a session, unless it is on the list.
    fn add(&mut self, session: SessionId) {
        if !self.sessions.contains(&session) {
            self.sessions.push_back(session);
        }
    }
}

/// A change of the retained message of a topic.
#[derive(Debug)]
pub(crate) struct RetainedChange {
    vhost: VhostId,
    key: Name,
    update: Update,
}

/// The effect of a message with RETAIN on the retained message of its topic.
#[derive(Debug)]
enum Update {
    Set(Content),
    Delete,
    /// The new message exceeds this limit, given as a text for log lines. The topic keeps its message.
    Refuse(&'static str),
}
