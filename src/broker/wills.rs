//! Wills of MQTT clients: messages that the broker publishes for clients that are gone (MQTT 5, §3.1.2.5).
//!
//! A session has the will of its client as a message in memory. The will of a session that is kept is also in the log
//! ([`Definition::Will`]), because its client may not come back after a power cut.
//!
//! ```text
//!   CONNECT             the session gets the will                      kept: in the log before CONNACK
//!   DISCONNECT 0x00     the will is deleted
//!   connection lost     published at once, or after the will delay     in one commit with its deletion
//!   client is back      before the delay is over: deleted
//!   session ends        published at once                              in one commit with its deletion
//!   broker is started   published 1.5 keep-alive times and the will delay later, if the client is not back;
//!                       at once if its session is not in the log any more
//! ```
//!
//! # Invariants
//! - A will is published at most once.
//! - A will is a message like others, except that no client can wait for it: a queue that has used its share does not get it.
//!   Its retained message is stored nevertheless.
//! - The log has the will of a session that is kept until the will is published or deleted, also if the session ends
//!   before that. DISCONNECT deletes it before the session can end.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};

use leveret_amqp::Properties;
use leveret_amqp::field::Table;
use leveret_core::command::{ChannelId, PublishAnswer, QueueId, SessionId, SessionWill, VhostId};
use leveret_core::definition::{self, Definition};
use leveret_core::error::{Fault, no_memory_for};
use leveret_core::mem::{MessageFlags, MessageId, Share};
use leveret_queues::{Claim, OnFull, expiration_ms, expiry_flags};
use leveret_routing::Targets;
use leveret_storage::Urgency;

use super::publish::Publish;
use super::sessions::TOPIC_EXCHANGE;
use super::{Broker, Context};
use crate::restored::Restored;

/// Milliseconds until a will is tried again for which there was no capacity.
const RETRY_MS: u64 = 1_000;
/// Maximum number of wills of ended sessions that wait for capacity. Each takes memory for messages; the oldest one is
/// dropped for another one.
const LATE_MAX: usize = 64;
/// All wills with more bytes than this together may take a part of the memory for bodies, one in [`LARGE_DIVISOR`]. Wills stay
/// in memory for days, and may use the reserve of others.
const LARGE_BYTES_MIN: usize = 4 << 10;
const LARGE_DIVISOR: usize = 8;
/// The keep-alive time that is assumed after a start for a client without one, in seconds.
const KEEP_ALIVE_ASSUMED_S: u16 = 60;

/// The will of a session.
#[derive(Debug)]
pub(crate) struct Will {
    will: SessionWill,
    /// When it is published, in milliseconds of broker time; `None` while the client is connected.
    due_ms: Option<u64>,
}

/// A will of a session that has ended, for which there was no capacity.
#[derive(Debug)]
struct LateWill {
    vhost: VhostId,
    will: SessionWill,
    /// The key of its definition, if the log has it.
    key: Option<Box<[u8]>>,
}

/// The wills that wait.
#[derive(Debug, Default)]
pub(crate) struct Wills {
    /// When the next will may be due, in milliseconds of broker time.
    next_ms: Option<u64>,
    late: VecDeque<LateWill>,
    /// The broker stops. The wills of sessions that are kept stay in the log.
    are_held: bool,
}

impl Wills {
    /// Bytes of memory that a late will takes beside its message. The list grows by doubling. Its key is in the memory of
    /// the client identifier of the session, which has ended.
    pub(crate) const LATE_BYTES: usize = 2 * size_of::<LateWill>();

    fn note_due(&mut self, at_ms: u64) {
        self.next_ms = Some(self.next_ms.map_or(at_ms, |next| next.min(at_ms)));
    }
}

/// Returns a number by which it is recognised that the log has a will already.
fn digest_of(value: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

impl Broker {
    /// Checks whether the client may publish its will. RabbitMQ checks it at CONNECT, too.
    ///
    /// # Errors
    /// The user has no permission for the topic, or large wills have used up their part of the memory.
    ///
    /// `earlier` is the session of the client, whose will is replaced.
    pub(crate) fn check_will(
        &mut self,
        cx: &mut Context<'_>,
        channel: ChannelId,
        earlier: Option<SessionId>,
        will: &SessionWill,
    ) -> Result<(), Fault> {
        let is_large = |bytes: usize| bytes > LARGE_BYTES_MIN;
        let bytes_of =
            |id: MessageId| cx.messages.body_len(id) as usize + cx.messages.properties_len(id) as usize;
        let bytes = bytes_of(will.message);
        if is_large(bytes) {
            let of_sessions = (0..self.sessions.places())
                .filter_map(|place| self.sessions.id_at(place))
                .filter(|session| Some(*session) != earlier)
                .filter_map(|session| self.sessions.will(session).map(|will| will.will.message));
            let late = self.wills.late.iter().map(|late| late.will.message);
            let used_bytes: usize =
                of_sessions.chain(late).map(bytes_of).filter(|bytes| is_large(*bytes)).sum();
            if used_bytes + bytes > cx.messages.body_bytes_max() / LARGE_DIVISOR {
                return Err(no_memory_for("another large will"));
            }
        }
        self.allowed_exchange(cx, channel, will.message).map(drop)
    }

    /// Gives a session the will of its CONNECT, instead of one that waits for its delay. The reply waits until the log has
    /// the will, if the session is kept.
    pub(crate) fn set_will(&mut self, cx: &mut Context<'_>, session: SessionId, will: Option<SessionWill>) {
        self.store_will(cx, session, will.as_ref());
        let will = will.map(|will| Will { will, due_ms: None });
        if let Some(earlier) = core::mem::replace(self.sessions.will_mut(session), will) {
            cx.messages.release(earlier.will.message);
        }
    }

    /// Writes the will of a session that is kept to the log, unless the log has it already.
    fn store_will(&mut self, cx: &mut Context<'_>, session: SessionId, will: Option<&SessionWill>) {
        let Some(will) = will else { return self.delete_stored_will(cx, session) };
        let properties_len = cx.messages.properties_len(will.message) as usize;
        let mut octets = vec![0; properties_len + cx.messages.body_len(will.message) as usize];
        let mut cursor = cx.messages.properties_cursor(will.message);
        cx.messages.read(will.message, &mut cursor, &mut octets);
        let (properties, payload) = octets.split_at(properties_len);
        let topic_key = core::str::from_utf8(cx.messages.routing_key(will.message)).unwrap_or_default();
        let Some((vhost, queue, incarnation)) = self.session_in_log(session) else { return };
        let definition = Definition::Will(definition::Will {
            vhost,
            queue,
            incarnation,
            retain: will.retain,
            delay_s: will.delay_s,
            keep_alive_s: will.keep_alive_s,
            topic_key,
            properties,
            payload,
        });
        let (key, value) = (definition.key(), definition.value());
        let digest = digest_of(&value);
        if self.sessions.stored_will_mut(session).replace(digest) != Some(digest) {
            // The log has one will of a session. An earlier one must be published before it is replaced.
            let batch = cx.pending_writes.define_behind_messages(cx.messages, key, Some(value));
            cx.await_batch(batch);
        }
    }

    /// Deletes the will of a session from the log, if it is there. The deletion is never behind that of the session.
    fn delete_stored_will(&mut self, cx: &mut Context<'_>, session: SessionId) {
        if let Some(key) = self.stored_will_key(session) {
            *self.sessions.stored_will_mut(session) = None;
            let batch = cx.pending_writes.define(key, None);
            cx.await_batch(batch);
        }
    }

    /// Returns the key of a session's will in the log; `None` if the log has no will of it.
    fn stored_will_key(&mut self, session: SessionId) -> Option<Box<[u8]>> {
        (*self.sessions.stored_will_mut(session))?;
        let (vhost, queue, _) = self.session_in_log(session)?;
        Some(Definition::Will(definition::Will { vhost, queue, ..Default::default() }).key())
    }

    /// Deletes the will of a session whose client has sent DISCONNECT (MQTT-3.14.4-3).
    pub(crate) fn discard_will(&mut self, cx: &mut Context<'_>, session: SessionId) {
        if let Some(will) = self.sessions.will_mut(session).take() {
            cx.messages.release(will.will.message);
        }
        self.delete_stored_will(cx, session);
    }

    /// Publishes the will of a session whose client has connected again, if its session ends, or if the connection that is
    /// replaced has a will without a delay (§3.1.3.2.2).
    pub(crate) fn publish_replaced_will(&mut self, cx: &mut Context<'_>, session: SessionId, ends: bool) {
        let Some(will) = self.sessions.will_mut(session) else { return };
        let is_replaced = will.due_ms.is_none();
        if ends || is_replaced && will.will.delay_s == 0 {
            self.end_will(cx, session);
        }
    }

    /// Handles that a session has lost its connection, and is kept for `expiry_s` seconds.
    pub(crate) fn delay_will(&mut self, cx: &mut Context<'_>, session: SessionId, expiry_s: u32) {
        let is_stored = self.sessions.stored_will_mut(session).is_some();
        let now_ms = cx.pending_writes.time_ms();
        let Some(will) = self.sessions.will_mut(session) else { return };
        if self.wills.are_held && is_stored {
            let message = will.will.message;
            *self.sessions.will_mut(session) = None;
            return cx.messages.release(message);
        }
        let delay_s = will.will.delay_s.min(expiry_s);
        let due_ms = now_ms + u64::from(delay_s) * 1_000;
        will.due_ms = Some(due_ms);
        match delay_s {
            0 => self.try_will(cx, session),
            _ => self.wills.note_due(due_ms),
        }
    }

    /// Publishes the will of a session that is kept, or notes when to try again.
    fn try_will(&mut self, cx: &mut Context<'_>, session: SessionId) {
        let (vhost, key) = (self.sessions.vhost_of(session), self.stored_will_key(session));
        let Some(will) = self.sessions.will_mut(session).take() else { return };
        match self.publish_will(cx, vhost, will.will, key.as_deref()) {
            None => *self.sessions.stored_will_mut(session) = None,
            Some(will) => {
                let due_ms = cx.pending_writes.time_ms() + RETRY_MS;
                *self.sessions.will_mut(session) = Some(Will { will, due_ms: Some(due_ms) });
                self.wills.note_due(due_ms);
            }
        }
    }

    /// Publishes the will of a session that ends.
    pub(crate) fn end_will(&mut self, cx: &mut Context<'_>, session: SessionId) {
        let Some(will) = self.sessions.will_mut(session).take() else {
            return self.delete_stored_will(cx, session);
        };
        let (vhost, key) = (self.sessions.vhost_of(session), self.stored_will_key(session));
        *self.sessions.stored_will_mut(session) = None;
        if let Some(will) = self.publish_will(cx, vhost, will.will, key.as_deref()) {
            self.add_late_will(cx, LateWill { vhost, will, key });
            self.wills.note_due(cx.pending_writes.time_ms() + RETRY_MS);
        }
    }

    /// Adds a will that waits for capacity. If there are too many, the oldest one is dropped; only its retained message is
    /// stored.
    fn add_late_will(&mut self, cx: &mut Context<'_>, late: LateWill) {
        self.wills.late.push_back(late);
        if self.wills.late.len() <= LATE_MAX {
            return;
        }
        let Some(LateWill { vhost, will, key }) = self.wills.late.pop_front() else { return };
        let awaited = cx.awaited;
        if will.retain {
            let change = self.retained_change(cx, vhost, will.message);
            let _ = self.change_retained(cx, change, will.message);
        }
        if let Some(key) = key {
            cx.pending_writes.define(key, None);
        }
        self.counters.wills_dropped += 1;
        cx.messages.release(will.message);
        cx.awaited = awaited;
    }

    /// Publishes a will. Deletes its definition, which has this `key`, in the same commit. Returns the will if there is no
    /// capacity now.
    fn publish_will(
        &mut self,
        cx: &mut Context<'_>,
        vhost: VhostId,
        will: SessionWill,
        key: Option<&[u8]>,
    ) -> Option<SessionWill> {
        let change = will.retain.then(|| self.retained_change(cx, vhost, will.message));
        // No reply waits for the will.
        let awaited = cx.awaited;
        cx.messages.retain(will.message);
        let mut targets = core::mem::take(&mut self.publishing.targets);
        let routed = self.route_will(cx, vhost, will.message, &mut targets);
        cx.pending_writes.begin_group();
        let dropped_count = match routed {
            true => self.queues.remove_full_targets(cx, &self.quota, will.message, &mut targets),
            false => 0,
        };
        let outcome = match routed && !(targets.is_empty() && dropped_count > 0) {
            true => {
                let publish = Publish {
                    channel: None,
                    mandatory: false,
                    claim: Claim { share: Share::Ordinary, on_full: OnFull::Wait },
                    urgency: Urgency::Awaited,
                };
                self.deliver_to_targets(cx, will.message, &mut targets, &publish)
            }
            false => {
                cx.messages.release(will.message);
                Ok(PublishAnswer::PublishedNowhere)
            }
        };
        targets.clear();
        self.publishing.targets = targets;
        let must_wait = outcome == Ok(PublishAnswer::Wait);
        if !must_wait {
            self.counters.received += 1;
            self.counters.wills_dropped += dropped_count as u64;
            if let Some(change) = change {
                // An alarm names the topic if the message is not retained.
                let _ = self.change_retained(cx, change, will.message);
            }
            if let Some(key) = key {
                cx.pending_writes.define_in_group(key.into(), None);
            }
        }
        // While a will waits, the group is empty.
        let urgency = if must_wait { Urgency::Window } else { Urgency::Awaited };
        cx.pending_writes.end_group(cx.messages, urgency);
        cx.messages.release(will.message);
        cx.awaited = awaited;
        must_wait.then_some(will)
    }

    /// Chooses the queues for a will. Returns `false` if it cannot be routed.
    fn route_will(
        &mut self,
        cx: &mut Context<'_>,
        vhost: VhostId,
        message: MessageId,
        targets: &mut Vec<QueueId>,
    ) -> bool {
        let Some(exchange) = self.topology.find_exchange(vhost, TOPIC_EXCHANGE) else { return false };
        self.topology.limit_routing(cx.work, 1);
        let mut scratch = self.queues.lend_scratch();
        let mut headers = Table::EMPTY;
        if cx.messages.flags(message).has(MessageFlags::PARSE_PROPERTIES) {
            let properties = cx.messages.properties(message, &mut scratch.properties);
            headers = Properties::trusted(properties).headers().unwrap_or(Table::EMPTY);
        }
        let mut chosen = Targets { queues: self.queues.records_mut(), chosen: targets };
        let key = cx.messages.routing_key(message);
        let is_routed = self.topology.route(cx.work, exchange, key, headers, &mut chosen).is_ok();
        self.queues.return_scratch(scratch);
        if self.sessions.may_exclude_any() {
            self.select_subscribers(cx.work, None, cx.messages, message, targets);
        }
        is_routed
    }

    /// Publishes the wills that are due.
    pub(crate) fn publish_due_wills(&mut self, cx: &mut Context<'_>) {
        let now_ms = cx.pending_writes.time_ms();
        if self.wills.next_ms.is_none_or(|at_ms| at_ms > now_ms) {
            return;
        }
        self.wills.next_ms = None;
        for place in 0..self.sessions.places() {
            let Some(session) = self.sessions.id_at(place) else { continue };
            match self.sessions.will_mut(session).as_ref().and_then(|will| will.due_ms) {
                // While the broker stops, the log keeps it.
                Some(_) if self.wills.are_held => {}
                Some(due_ms) if due_ms <= now_ms => self.try_will(cx, session),
                Some(due_ms) => self.wills.note_due(due_ms),
                None => {}
            }
        }
        for _ in 0..self.wills.late.len() {
            let Some(LateWill { vhost, will, key }) = self.wills.late.pop_front() else { break };
            if let Some(will) = self.publish_will(cx, vhost, will, key.as_deref()) {
                self.add_late_will(cx, LateWill { vhost, will, key });
                self.wills.note_due(now_ms + RETRY_MS);
            }
        }
    }

    /// Deletes the late wills of a virtual host that is deleted.
    pub(crate) fn delete_late_wills_of(&mut self, cx: &mut Context<'_>, vhost: VhostId) {
        self.wills.late.retain(|late| {
            if late.vhost != vhost {
                return true;
            }
            cx.messages.release(late.will.message);
            if let Some(key) = &late.key {
                cx.pending_writes.define(key.clone(), None);
            }
            false
        });
    }

    /// Returns when the next will may be due, in milliseconds of broker time.
    pub const fn next_will_ms(&self) -> Option<u64> {
        self.wills.next_ms
    }

    /// Keeps the wills in the log that are there, because the broker stops: its clients have not failed.
    pub const fn hold_wills(&mut self) {
        self.wills.are_held = true;
    }

    /// Gives a restored session the will that the log has. It is published if the client does not come back. A will without
    /// its session is published at once: the session has ended before the will could be published.
    pub(crate) fn restore_will(&mut self, cx: &mut Context<'_>, stored: &definition::Will<'_>) -> Restored {
        let definition = Definition::Will(*stored);
        let definition::Will { retain, delay_s, keep_alive_s, properties, payload, .. } = *stored;
        let Some(vhost) = self.access.find_vhost(stored.vhost) else {
            return self.access.result_without_owner();
        };
        let session = self.restored_session(stored.vhost, stored.queue, stored.incarnation);
        let Ok(message) = cx.messages.begin(TOPIC_EXCHANGE, stored.topic_key.as_bytes(), Share::ReadBack)
        else {
            return Restored::NoCapacity;
        };
        let read = Properties::trusted(properties);
        let flags = read.message_flags().with(expiry_flags(expiration_ms(&read).ok().flatten()));
        let len = payload.len() as u32;
        if cx.messages.reserve_content(message, properties, flags, len, Share::ReadBack).is_err() {
            cx.messages.discard(message);
            return Restored::NoCapacity;
        }
        cx.messages.append_body(message, payload);
        cx.messages.finish(message);
        let will = SessionWill { message, retain, delay_s, keep_alive_s };
        let Some(session) = session else {
            let key = Some(definition.key());
            self.add_late_will(cx, LateWill { vhost, will, key });
            self.wills.note_due(cx.pending_writes.time_ms());
            return Restored::Exists(None);
        };
        let assumed_s = if keep_alive_s == 0 { KEEP_ALIVE_ASSUMED_S } else { keep_alive_s };
        let due_ms = cx.pending_writes.time_ms() + u64::from(assumed_s) * 1_500 + u64::from(delay_s) * 1_000;
        *self.sessions.will_mut(session) = Some(Will { will, due_ms: Some(due_ms) });
        *self.sessions.stored_will_mut(session) = Some(digest_of(&definition.value()));
        self.wills.note_due(due_ms);
        Restored::Exists(None)
    }
}
