//! Publishing: routes a message, checks the capacity of all its target queues, and pushes it to all of them
//! or to none.
//!
//! A transaction is a linked list of its messages and a list of its settlements. Behind a message that was
//! published to a named exchange, the list has its route, stored as a message too. The links are in the
//! records of messages and deliveries, so a transaction needs no memory of its own. `tx.commit` first checks
//! the capacity for all messages, and only then changes anything.
//!
//! # Invariants
//! - If any target queue has no capacity, the message is pushed to no queue. A message that must wait for
//!   capacity is the one that the client sent: a copy with other properties is discarded and written again
//!   later.
//! - The message is stored once, whatever the number of target queues.
//! - A publisher waits only for capacity that others can free. A connection for which messages wait, or with an
//!   open transaction, does not wait for memory: it may use the reserve, or is refused. It waits for the disk
//!   only for a limited time.

use leveret_amqp::Writer;
use leveret_amqp::field::{Table, Value};
use leveret_amqp::props::{BLIND_BYTES_MAX, Edit, HeadersEdit, Properties, PropertyEdit};
use leveret_amqp::reply_text::Lossy;
use leveret_core::command::{ChannelId, ConnectionId, ExchangeId, PublishAnswer, QueueId, VhostId};
use leveret_core::error::{Fault, ReplyCode, no_memory_for, out_of};
use leveret_core::mem::{MessageFlags, MessageId, Messages, Share};
use leveret_core::work::Work;
use leveret_storage::faults::{out_of_disk, unwritable_for_messages};
use leveret_storage::{Mode as PendingWritesMode, NoCapacity, PendingWrites, Urgency};

use super::access::{Resource, Right};

#[cfg(debug_assertions)]
use super::clients::WatchedPublish;
use super::clients::{FullQueue, Mode};
use super::state::REPLY_TO;
use super::{Broker, Context};
use crate::counters::count_up;
use leveret_queues::{
    CannotPublish, Claim, DeliveryMethod, MessageKey, NewDelivery, OnFull, Overflow, Pool, RefusedBy,
    SLOT_BYTES, Scratch, Shortage, expiration_ms, expiry_flags,
};
use leveret_routing::{Targets, cc_and_bcc};

/// A message that a client publishes on a channel to an exchange.
#[derive(Clone, Copy)]
struct Incoming {
    channel: ChannelId,
    exchange: ExchangeId,
    message: MessageId,
}

/// How a message is published.
pub(crate) struct Publish {
    /// The channel of the publisher; `None` for a will, which is never mandatory.
    pub(crate) channel: Option<ChannelId>,
    pub(crate) mandatory: bool,
    pub(crate) claim: Claim,
    /// How soon the log must commit the message, if it is logged.
    pub(crate) urgency: Urgency,
}

/// Checks CC and BCC. As in RabbitMQ, a message is refused if they are not arrays; entries that are not
/// strings are ignored.
fn check_copies(headers: Table<'_>, name: &str) -> Result<(), Fault> {
    match headers.get(name) {
        None | Some(Value::Array(_)) => Ok(()),
        Some(value) => Err(Fault::new(
            ReplyCode::PreconditionFailed,
            format_args!("invalid message: {{unacceptable_type_in_header,\"{name}\",{}}}", value.type_name()),
        )),
    }
}

/// Checks the delivery mode: 1 is transient and 2 persistent; no other value is valid.
fn check_delivery_mode(properties: &Properties<'_>) -> Result<(), Fault> {
    match properties.delivery_mode() {
        None | Some(1 | 2) => Ok(()),
        Some(mode) => Err(Fault::new(
            ReplyCode::PreconditionFailed,
            format_args!("invalid message: {{delivery_mode_unknown,{mode}}}"),
        )),
    }
}

/// The routing of all messages of a transaction may take this many times the work that the routing of one
/// message may take.
const COMMIT_TIMES: u32 = 8;

/// Returns the message `next` of a transaction, and its stored route if it has one. Advances `next` to the
/// message behind them.
fn take_published(
    messages: &Messages,
    next: &mut Option<MessageId>,
) -> Option<(MessageId, Option<MessageId>)> {
    let message = next.take()?;
    let behind = messages.link(message);
    let route = behind.filter(|id| messages.flags(*id).has(MessageFlags::ROUTE));
    *next = route.map_or(behind, |route| messages.link(route));
    Some((message, route))
}

/// Returns 506: the transaction has more persistent messages than can be pending writes.
fn too_much_to_write() -> Fault {
    Fault::new(
        ReplyCode::ResourceError,
        format_args!(
            "a transaction with more persistent messages than can be pending: commit more often, or raise \
             memory_limit in this broker's configuration"
        ),
    )
}

/// Returns 406, with RabbitMQ's text: a full queue refused a message of the transaction, and the rest of the
/// transaction was carried out.
fn partly_completed() -> Fault {
    Fault::new(ReplyCode::PreconditionFailed, format_args!("partial tx completion"))
}

fn too_large_for_sessions(bytes: u32) -> Fault {
    Fault::new(
        ReplyCode::ResourceError,
        format_args!(
            "a message of {bytes} bytes, which no subscriber's session can keep: raise memory_limit or disk_limit"
        ),
    )
}

fn not_transactional() -> Fault {
    Fault::new(ReplyCode::PreconditionFailed, format_args!("channel is not transactional"))
}

impl Broker {
    /// Handles `basic.publish` with its content. Takes ownership of the message, unless it returns
    /// [`PublishAnswer::Wait`].
    pub(crate) fn publish(
        &mut self,
        cx: &mut Context<'_>,
        channel: ChannelId,
        message: MessageId,
        mandatory: bool,
    ) -> Result<PublishAnswer, Fault> {
        let mut targets = core::mem::take(&mut self.publishing.targets);
        let result = self.publish_with_buffer(cx, channel, message, mandatory, &mut targets);
        self.publishing.targets = targets;
        #[cfg(debug_assertions)]
        self.note_watched_publish(channel, matches!(result, Err(_) | Ok(PublishAnswer::Refused)));
        result
    }

    /// Makes [`Self::was_watched_publish_refused`] tell about the next publish of this connection.
    #[cfg(debug_assertions)]
    pub fn watch_publish(&mut self, connection: ConnectionId) {
        self.clients.connection_mut(connection).watched_publish = WatchedPublish::Awaited;
    }

    /// Returns whether the first publish since [`Self::watch_publish`] was refused, be it by the length limit of a queue.
    #[cfg(debug_assertions)]
    pub fn was_watched_publish_refused(&self, connection: ConnectionId) -> bool {
        self.clients.connection(connection).watched_publish == WatchedPublish::Refused
    }

    #[cfg(debug_assertions)]
    fn note_watched_publish(&mut self, channel: ChannelId, is_refused: bool) {
        let connection = self.clients.connection_of(channel);
        let watched = &mut self.clients.connection_mut(connection).watched_publish;
        if *watched == WatchedPublish::Awaited {
            *watched = if is_refused { WatchedPublish::Refused } else { WatchedPublish::No };
        }
    }

    #[inline]
    fn publish_with_buffer(
        &mut self,
        cx: &mut Context<'_>,
        channel: ChannelId,
        message: MessageId,
        mandatory: bool,
        targets: &mut Vec<QueueId>,
    ) -> Result<PublishAnswer, Fault> {
        // What an earlier publish waited for does not matter any more.
        let connection = self.clients.connection_of(channel);
        let waiting = self.clients.connection_mut(connection);
        waiting.waits_for = None;
        let on_full = match core::mem::take(&mut waiting.has_timed_out) {
            true => OnFull::Refuse,
            false => OnFull::Wait,
        };
        let routed = match self.parse_and_route(cx, channel, message, targets) {
            Ok(routed) => routed,
            Err(fault) => {
                cx.messages.release(message);
                return Err(fault);
            }
        };
        if self.sessions.may_exclude_any() {
            self.select_subscribers(cx.work, Some(connection), cx.messages, routed, targets);
        }
        let may_wait_for_clients =
            self.queues.has_slow_clients() && cx.messages.flags(routed).has(MessageFlags::PERSISTENT);
        let copy = match self.firehose.is_on {
            true => self.republisher().trace_published(cx, channel, routed, targets),
            false => None,
        };
        let routed_to = targets.len() as u32;
        let record = self.clients.channel_mut(channel);
        record.has_published = true;
        let (in_transaction, is_awaited) = match record.mode {
            Mode::Plain => (false, false),
            Mode::Confirm => (false, true),
            Mode::Transaction(_) => (true, true),
        };
        let claim = Claim { share: self.publish_share(connection), on_full };
        let result = if !in_transaction {
            let urgency = if is_awaited { Urgency::Awaited } else { Urgency::Window };
            let publish = Publish { channel: Some(channel), mandatory, claim, urgency };
            self.deliver_to_targets(cx, routed, targets, &publish)
        } else if let Err(hindrance) = self.check_transaction(cx, connection, routed, targets, claim) {
            self.wait_or_refuse(cx, routed, targets, Some(channel), hindrance)
        } else {
            // On the default exchange the routing keys are names of queues, so `tx.commit` needs no stored
            // route. A rewritten copy needs one, because its BCC keys may have been removed.
            let is_by_name = cx.messages.exchange_len(routed) == 0 && routed == message;
            let route = (!is_by_name).then_some(&**targets);
            self.publish_in_transaction(cx, channel, routed, mandatory, route)
        };
        let is_taken = matches!(
            result,
            Ok(PublishAnswer::Published | PublishAnswer::PublishedNowhere | PublishAnswer::Refused)
        );
        match copy {
            Some(copy) if is_taken => self.republisher().publish_trace(cx, channel, copy),
            Some(copy) => cx.messages.discard(copy),
            None => {}
        }
        if is_taken {
            self.counters.received_confirm += u64::from(is_awaited || mandatory);
            let is_accepted =
                matches!(result, Ok(PublishAnswer::Published | PublishAnswer::PublishedNowhere));
            self.count_published(channel, is_accepted, routed_to);
            if is_accepted && may_wait_for_clients {
                self.wait_for_slow_clients(connection, targets, cx.pending_writes.time_ms());
            }
        }
        if routed != message {
            match result {
                // The connection keeps the original message and publishes it again later.
                Ok(PublishAnswer::Wait) => cx.messages.discard(routed),
                _ => cx.messages.release(message),
            }
        }
        result
    }

    /// Counts a message that was taken from a client and routed to this many queues. `is_accepted`: no queue refused it.
    #[inline]
    fn count_published(&mut self, channel: ChannelId, is_accepted: bool, routed_to: u32) {
        self.counters.received += 1;
        let revision = self.revision();
        let record = self.clients.channel_mut(channel);
        count_up(&mut record.counters.published);
        if is_accepted && matches!(record.mode, Mode::Confirm) {
            count_up(&mut record.counters.confirmed);
        }
        if let Some(exchange) = record.may_write.filter(|_| record.may_write_until == revision) {
            self.topology.count_published(exchange, routed_to);
        }
    }

    /// Checks whether a message has capacity in the open transaction of its channel.
    ///
    /// # Errors
    /// The publisher must wait, or the message is refused.
    pub(crate) fn check_transaction(
        &self,
        cx: &Context<'_>,
        connection: ConnectionId,
        message: MessageId,
        targets: &[QueueId],
        claim: Claim,
    ) -> Result<(), CannotPublish> {
        self.queues.check_memory_shares(cx, message, targets, claim)?;
        let open = self.quota.open_log_bytes_for(connection);
        self.queues.check_transaction_capacity(cx, open, message, targets, claim.on_full)
    }

    /// Pushes a message to the queues that routing chose, except those that refuse it. Takes ownership of the
    /// message, unless it returns [`PublishAnswer::Wait`].
    pub(crate) fn deliver_to_targets(
        &mut self,
        cx: &mut Context<'_>,
        message: MessageId,
        targets: &mut Vec<QueueId>,
        publish: &Publish,
    ) -> Result<PublishAnswer, Fault> {
        if targets.is_empty() {
            return self.unroutable(cx.messages, message, publish);
        }
        let routed = targets.len() as u64;
        let (mut accepting_count, refused_by) = self.filter_targets(cx, message, targets);
        if self.queues.take_slot_capacity_lack() {
            cx.messages.release(message);
            return Err(no_memory_for("a delay of this length"));
        }
        if refused_by == RefusedBy::Sessions && self.is_mqtt_publisher(publish.channel) {
            // Before MQTT 5 there is no answer that refuses a message. Without one, the client would lose it unnoticed.
            let fault = too_large_for_sessions(cx.messages.body_len(message));
            cx.messages.release(message);
            return Err(fault);
        }
        self.queues.count_live_log_bytes(cx.pending_writes);
        let claim = publish.claim;
        let mut reserved =
            self.queues.check_capacity(cx, &self.quota, message, &targets[..accepting_count], claim);
        if matches!(reserved, Err(CannotPublish::Wait(Shortage::QueueDisk(_)))) {
            // The count of bytes in the log may be outdated, because messages may have been settled since.
            self.queues.recount_live_log_bytes(cx.pending_writes.durable());
            self.queues.count_live_log_bytes(cx.pending_writes);
            reserved =
                self.queues.check_capacity(cx, &self.quota, message, &targets[..accepting_count], claim);
        }
        if matches!(reserved, Err(CannotPublish::Wait(Shortage::QueueMemory(_)))) {
            let removed = self.remove_full_sessions(cx, message, targets, &mut accepting_count, publish);
            if !removed.is_empty() {
                reserved =
                    self.queues.check_capacity(cx, &self.quota, message, &targets[..accepting_count], claim);
            }
            if reserved.is_ok() {
                removed.into_iter().for_each(|queue| self.queues.count_dropped(queue));
            }
        }
        match reserved {
            Ok(()) => {
                self.counters.routed += routed;
                if self.queues.push(cx, message, &targets[..accepting_count], publish.urgency) {
                    self.republisher().enforce_limits_after_push(cx, message, &targets[..accepting_count]);
                }
                if accepting_count < targets.len() {
                    self.republisher().dead_letter_refused(cx, message, &targets[accepting_count..]);
                }
                cx.messages.release(message);
                Ok(match refused_by {
                    RefusedBy::NoQueue => PublishAnswer::Published,
                    RefusedBy::LengthLimit | RefusedBy::Sessions => PublishAnswer::Refused,
                })
            }
            Err(hindrance) => self.wait_or_refuse(cx, message, targets, publish.channel, hindrance),
        }
    }

    /// Removes the sessions from the targets that have used up their share of the memory and get no message: that of the
    /// publisher itself, whose acknowledgements may come behind the message, and those for which publishers have waited long
    /// enough. Returns them. The wait for the others begins, for all at once.
    #[cold]
    fn remove_full_sessions(
        &mut self,
        cx: &mut Context<'_>,
        message: MessageId,
        targets: &mut Vec<QueueId>,
        accepting_count: &mut usize,
        publish: &Publish,
    ) -> Vec<QueueId> {
        let now_ms = cx.pending_writes.time_ms();
        let publisher = publish.channel.map(|channel| self.clients.connection_of(channel));
        let own = publisher.and_then(|publisher| self.clients.connection(publisher).session);
        let free = self.queues.free_memory(cx.messages, publish.claim.share).with(cx.messages, message);
        let mut removed = Vec::new();
        for at in (0..*accepting_count).rev() {
            let (queue, record) = (targets[at], self.queues.at(targets[at]));
            // The messages of an absent client leave the memory, or are dropped for the limits of its session.
            let is_full = record.session().is_some()
                && !record.queue_consumers.is_empty()
                && !self.queues.records().is_within_share(free, queue);
            let is_own = own.is_some() && record.session() == own;
            if is_full && (is_own || self.queues.drops_for_share(queue, now_ms)) {
                removed.push(targets.remove(at));
            }
        }
        *accepting_count -= removed.len();
        removed
    }

    /// Returns whether the publisher is a client of MQTT.
    fn is_mqtt_publisher(&self, channel: Option<ChannelId>) -> bool {
        channel.is_some_and(|channel| {
            let connection = self.clients.connection_of(channel);
            self.clients.connection(connection).session.is_some()
        })
    }

    /// Handles a message that cannot be published now: its publisher waits, or the message is released and
    /// refused.
    fn wait_or_refuse(
        &mut self,
        cx: &mut Context<'_>,
        message: MessageId,
        targets: &[QueueId],
        channel: Option<ChannelId>,
        hindrance: CannotPublish,
    ) -> Result<PublishAnswer, Fault> {
        match hindrance {
            CannotPublish::Wait(shortage) => {
                self.publishing.shortage = shortage;
                if let Some(channel) = channel {
                    self.note_wait(cx.messages, message, targets, channel);
                }
                // The publisher may be waiting for the pending commit.
                cx.pending_writes.request_commit_now();
                Ok(PublishAnswer::Wait)
            }
            CannotPublish::Fault(fault) => {
                cx.messages.release(message);
                Err(fault)
            }
        }
    }

    /// Returns whether a connection that waits for space on the disk or for a queue may wait for what only
    /// this connection can free.
    ///
    /// That is possible if messages wait for the connection ([`Self::holds_messages`]), which may fill the disk or the
    /// queue. It is also possible if this connection has an open transaction and waits for a queue, or if this
    /// connection and another have open transactions and wait for the disk: others may wait for the memory or
    /// for the space that the transaction has reserved.
    pub fn may_wait_for_itself(&self, connection: ConnectionId, shortage: Shortage) -> bool {
        let own = self.quota.open_log_bytes_of(connection);
        match shortage {
            Shortage::QueueMemory(_) => {
                self.holds_messages(connection) || self.clients.connection(connection).open_transactions > 0
            }
            _ if shortage.is_log_full() => {
                self.holds_messages(connection) || (own > 0 && self.quota.open_log_bytes() > own)
            }
            _ => false,
        }
    }

    /// Returns whether messages wait for this connection: it has unsettled deliveries, consumers that are paused because its
    /// socket takes no more, or a session that gets nothing before the client has sent PUBCOMPs.
    fn holds_messages(&self, connection: ConnectionId) -> bool {
        let record = self.clients.connection(connection);
        self.quota.has_deliveries(connection)
            || record.has_paused_consumers()
            || record.session.is_some_and(|session| self.awaits_pubcomp(session))
    }

    /// Marks the waiting publish of a connection: at the next attempt it is refused with 506 if the disk or
    /// the queue still has no space for the message.
    pub fn time_out_waiting(&mut self, connection: ConnectionId) {
        self.clients.connection_mut(connection).has_timed_out = true;
    }

    /// Returns the part of the pools that a connection's publishes may use. A connection with unsettled
    /// deliveries or open transactions may use the reserve, because others may wait until it settles or
    /// commits.
    #[inline]
    pub(crate) fn publish_share(&self, connection: ConnectionId) -> Share {
        let record = self.clients.connection(connection);
        if self.holds_messages(connection) || record.open_transactions > 0 {
            Share::Reserve
        } else {
            Share::Ordinary
        }
    }

    /// Returns the part of the pools that the content of the connection's next publish may use. Within a
    /// transaction that is less than the whole reserve, because clients may leave transactions open.
    #[inline]
    pub fn content_share(&self, connection: ConnectionId) -> Share {
        let record = self.clients.connection(connection);
        if record.open_transactions > 0 { Share::Transaction } else { self.publish_share(connection) }
    }

    /// Replaces queues with priorities by their levels, and removes target queues that do not accept the
    /// message (see `Records::keep_accepting`).
    ///
    /// Returns the number of queues at the front of `targets` that accept the message, and whether the length
    /// limit of any queue refused the message.
    #[inline]
    pub(crate) fn filter_targets(
        &mut self,
        cx: &mut Context<'_>,
        message: MessageId,
        targets: &mut Vec<QueueId>,
    ) -> (usize, RefusedBy) {
        let due = cx.messages.flags(message).has(MessageFlags::DUE_AT_ONCE);
        let has_rules = |&queue: &QueueId| self.queues.at(queue).has_rules_or_levels();
        if !due && !targets.iter().any(has_rules) {
            return (targets.len(), RefusedBy::NoQueue);
        }
        if self.queues.has_slow_clients() && !cx.messages.flags(message).has(MessageFlags::PERSISTENT) {
            self.queues.drop_for_slow_clients(targets);
        }
        self.queues.choose_levels(cx, &mut self.quota, message, targets);
        self.queues.count_live_log_bytes(cx.pending_writes);
        self.queues.note_memory(cx.messages, cx.pending_writes);
        for &queue in &*targets {
            if self.queues.at(queue).session().is_some() {
                self.prepare_session(cx, queue);
            }
            // Otherwise messages would be refused, or be dropped, that a ready consumer can take now.
            let body_len = cx.messages.body_len(message);
            if self.queues.at(queue).settings.overflow != Overflow::DropHead
                || self.queues.records().would_drop_for_bytes(queue, body_len)
            {
                self.catch_up(cx, queue);
            }
        }
        self.keep_accepting(cx.messages, message, targets)
    }

    /// Makes room in the queue of a session for another message.
    fn prepare_session(&mut self, cx: &mut Context<'_>, queue: QueueId) {
        let record = self.queues.at(queue);
        if u64::from(record.backlog.ready()) >= record.settings.max_length {
            // A client that can take messages now is not slow.
            self.catch_up(cx, queue);
        }
        // The limit of a session falls while the log fills. Otherwise the publisher would wait for the share of its queue.
        if self.queues.records().is_over_length(queue) {
            self.queues.recount_live_log_bytes(cx.pending_writes.durable());
            self.queues.count_live_log_bytes(cx.pending_writes);
            self.queues.note_memory(cx.messages, cx.pending_writes);
            if self.queues.records().is_over_length(queue) {
                self.republisher().enforce_limits(cx, queue);
            }
        }
    }

    /// Removes target queues that refuse the message because of their length limit, and those in which a
    /// message that expires at once would be dropped.
    ///
    /// Returns the number of queues at the front of `targets` that accept the message; the queues behind them
    /// refuse and dead-letter it. The Boolean is whether the length limit of any queue refused the message.
    pub(crate) fn keep_accepting(
        &self,
        messages: &Messages,
        message: MessageId,
        targets: &mut Vec<QueueId>,
    ) -> (usize, RefusedBy) {
        let credit = |queue| self.clients.waiting_credit(&self.queues, &self.quota, queue);
        self.queues.records().keep_accepting(messages, message, targets, Some(&credit))
    }

    /// Notes the target queue for which the channel's connection waits, if any target queue has used up its
    /// share of the memory.
    pub(crate) fn note_wait(
        &mut self,
        messages: &Messages,
        message: MessageId,
        targets: &[QueueId],
        channel: ChannelId,
    ) {
        let connection = self.clients.connection_of(channel);
        let free = self.queues.free_memory(messages, self.publish_share(connection)).with(messages, message);
        let full = targets.iter().copied().find(|&queue| !self.queues.records().is_within_share(free, queue));
        self.clients.connection_mut(connection).waits_for = full.map(|queue| FullQueue {
            queue,
            serial: self.queues.at(queue).serial,
            revision: self.revision(),
        });
    }

    /// Returns whether the connection must still wait for a queue, so that retrying its publish would be
    /// useless.
    ///
    /// A publisher waits when a queue has used up its share, and continues when the queue uses at most three
    /// quarters of its share.
    pub fn is_still_blocked(&mut self, messages: &Messages, connection: ConnectionId) -> bool {
        let Some(full) = self.clients.connection(connection).waits_for else { return false };
        let record = self.queues.records().get(full.queue.index());
        let is_there = record.is_some_and(|record| record.serial == full.serial && !record.is_deleted())
            && self.revision() == full.revision;
        // A connection that got deliveries meanwhile may use more.
        let free = self.queues.free_memory(messages, self.publish_share(connection));
        let must_wait = is_there
            && !self.queues.records().is_well_within_share(free, full.queue)
            && !self.queues.is_dropping_for_share(full.queue);
        if !must_wait {
            self.clients.connection_mut(connection).waits_for = None;
        }
        must_wait
    }

    /// Checks a message and finds its target queues. Returns the message to push: this one, or a copy if
    /// properties must change.
    pub(crate) fn parse_and_route(
        &mut self,
        cx: &mut Context<'_>,
        channel: ChannelId,
        message: MessageId,
        targets: &mut Vec<QueueId>,
    ) -> Result<MessageId, Fault> {
        let needs_properties = cx.messages.flags(message).has(MessageFlags::PARSE_PROPERTIES);
        let cache = &self.clients.channel(channel).route_cache;
        if !needs_properties && cache.set_targets_if_cached(self.revision(), cx.messages, message, targets) {
            return Ok(message);
        }
        self.topology.limit_routing(cx.work, 1);
        let exchange = match cache.exchange(self.revision(), cx.messages, message) {
            Some(exchange) => exchange,
            None => self.allowed_exchange(cx, channel, message)?,
        };
        let incoming = Incoming { channel, exchange, message };
        if !needs_properties {
            self.route(cx.messages, cx.work, incoming, Table::EMPTY, targets)?;
            return Ok(message);
        }
        let mut scratch = self.queues.lend_scratch();
        let result = self.parse_and_check(cx, incoming, targets, &mut scratch);
        self.queues.return_scratch(scratch);
        result
    }

    /// Returns the exchange of a message.
    ///
    /// # Errors
    /// The exchange does not exist, or this channel may not publish this message to it.
    pub(crate) fn allowed_exchange(
        &mut self,
        cx: &mut Context<'_>,
        channel: ChannelId,
        message: MessageId,
    ) -> Result<ExchangeId, Fault> {
        let vhost = self.clients.channel(channel).vhost;
        self.check_publish(cx.work, channel, cx.messages.exchange(message))?;
        let exchange = self.publishable_exchange(vhost, cx.messages.exchange(message))?;
        let connection = self.clients.connection_of(channel);
        self.check_key(cx.work, connection, exchange, Right::Write, cx.messages.routing_key(message))?;
        Ok(exchange)
    }

    /// Checks whether a channel may publish to this exchange, which need not exist. A positive result is
    /// cached until a permission or a route changes.
    fn check_publish(&mut self, work: &mut Work, channel: ChannelId, exchange: &str) -> Result<(), Fault> {
        let record = self.clients.channel(channel);
        let (connection, vhost) = (record.connection, record.vhost);
        let found = self.topology.find_exchange(vhost, exchange);
        if found.is_some() && record.may_write == found && record.may_write_until == self.revision() {
            return Ok(());
        }
        self.check(work, connection, vhost, Right::Write, Resource::Exchange(exchange))?;
        let revision = self.revision();
        let record = self.clients.channel_mut(channel);
        (record.may_write, record.may_write_until) = (found, revision);
        Ok(())
    }

    pub(crate) fn publishable_exchange(&self, vhost: VhostId, name: &str) -> Result<ExchangeId, Fault> {
        let exchange = self.require_exchange(vhost, name)?;
        let record = &self.topology.exchange(exchange);
        if record.internal {
            return Err(Fault::new(
                ReplyCode::AccessRefused,
                format_args!("cannot publish to internal {}", self.access.exchange_text(vhost, name)),
            ));
        }
        Ok(exchange)
    }

    /// Chooses the queues for a message of a channel into `targets`, and caches the route if it can be used
    /// again.
    ///
    /// `headers` is empty unless routing needs them.
    ///
    /// # Errors
    /// Routing takes more work than allowed.
    fn route(
        &mut self,
        messages: &Messages,
        work: &mut Work,
        incoming: Incoming,
        headers: Table<'_>,
        targets: &mut Vec<QueueId>,
    ) -> Result<(), Fault> {
        let Incoming { channel, exchange, message } = incoming;
        let mut chosen = Targets { queues: self.queues.records_mut(), chosen: targets };
        let key = messages.routing_key(message);
        let by_key_alone = self.topology.route(work, exchange, key, headers, &mut chosen)?;
        if by_key_alone && headers.is_empty() {
            let connection = self.clients.connection_of(channel);
            let for_all_keys = (!self.checks_routing_keys(connection, exchange)).then_some(exchange);
            let revision = self.revision();
            let cache = &mut self.clients.channel_mut(channel).route_cache;
            cache.set(revision, messages, message, for_all_keys, targets);
        }
        Ok(())
    }

    /// Checks user-id, delivery mode, expiration, CC and BCC, and routes the message with its routing key and
    /// these headers. Returns the message, or a copy if reply-to must be replaced or BCC removed.
    fn parse_and_check(
        &mut self,
        cx: &mut Context<'_>,
        incoming: Incoming,
        targets: &mut Vec<QueueId>,
        scratch: &mut Scratch,
    ) -> Result<MessageId, Fault> {
        let Incoming { channel, exchange, message } = incoming;
        let bytes = cx.messages.properties(message, &mut scratch.properties);
        let properties = Properties::trusted(bytes);
        let headers = properties.headers().unwrap_or(Table::EMPTY);
        self.check_user_id(channel, &properties)?;
        check_delivery_mode(&properties)?;
        let expiration_ms = expiration_ms(&properties)?;
        check_copies(headers, "CC")?;
        check_copies(headers, "BCC")?;
        let connection = self.clients.connection_of(channel);
        for key in cc_and_bcc(headers).into_iter().flatten().filter_map(|value| value.as_bytes()) {
            self.check_key(cx.work, connection, exchange, Right::Write, key)?;
        }
        let reply_to = self.reply_queue_for(channel, &properties)?;
        // The token that replaces amq.rabbitmq.reply-to is longer.
        let len = bytes.len() + reply_to.as_ref().map_or(0, |token| token.len());
        let (is_blind, is_long) = (headers.get("BCC").is_some(), len > BLIND_BYTES_MAX);
        // BCC is normally removed when the message is delivered, which is impossible for properties of this
        // length.
        let drops_bcc = is_blind && is_long;
        self.route(cx.messages, cx.work, incoming, headers, targets)?;
        let due = expiry_flags(expiration_ms);
        let known = if is_blind && !is_long { due.with(MessageFlags::HAS_BCC) } else { due };
        if reply_to.is_none() && !drops_bcc {
            cx.messages.add_flags(message, known);
            return Ok(message);
        }
        let edit = PropertyEdit {
            reply_to: reply_to.as_ref().map_or(Edit::Keep, |token| Edit::Set(token.as_bytes())),
            headers: if drops_bcc { HeadersEdit::Without("BCC") } else { HeadersEdit::Keep },
            ..PropertyEdit::default()
        };
        let mut writer = Writer::new(&mut scratch.rewritten);
        let written = properties.write_with(edit, &mut writer);
        let flags = cx.messages.flags(message).with(known);
        written.map_err(|_| out_of("frame_max")).and_then(|()| {
            let copy = cx.messages.copy_with_properties(message, writer.written(), flags);
            copy.map_err(|full| no_memory_for(full.what()))
        })
    }

    pub(crate) fn check_user_id(&self, channel: ChannelId, properties: &Properties<'_>) -> Result<(), Fault> {
        let connection = self.clients.connection_of(channel);
        let who = &self.clients.connection(connection).identity;
        match properties.user_id() {
            Some(claimed) if claimed != who.name().as_bytes() && !self.access.may_impersonate(who) => {
                Err(Fault::new(
                    ReplyCode::PreconditionFailed,
                    format_args!(
                        "user_id property set to '{}' but authenticated user was '{}'",
                        Lossy(claimed),
                        who.name()
                    ),
                ))
            }
            _ => Ok(()),
        }
    }

    /// Returns the name of the channel's reply queue if reply-to is `amq.rabbitmq.reply-to`, which that name
    /// replaces; otherwise `None`.
    fn reply_queue_for(
        &self,
        channel: ChannelId,
        properties: &Properties<'_>,
    ) -> Result<Option<heapless::String<64>>, Fault> {
        if properties.reply_to() != Some(REPLY_TO.as_bytes()) {
            return Ok(None);
        }
        let queue = self.reply_queue_of(channel).ok_or_else(|| {
            Fault::new(ReplyCode::PreconditionFailed, format_args!("fast reply consumer does not exist"))
        })?;
        Ok(heapless::String::try_from(&*self.queues.at(queue).name).ok())
    }

    fn unroutable(
        &mut self,
        messages: &mut Messages,
        message: MessageId,
        publish: &Publish,
    ) -> Result<PublishAnswer, Fault> {
        let Some(channel) = publish.channel.filter(|_| publish.mandatory) else {
            self.counters.unroutable_dropped += 1;
            if let Some(channel) = publish.channel {
                count_up(&mut self.clients.channel_mut(channel).counters.dropped);
            }
            messages.release(message);
            return Ok(PublishAnswer::PublishedNowhere);
        };
        let connection = self.clients.connection_of(channel);
        let crowded = self.clients.is_output_full(connection, 2);
        if crowded && publish.claim.on_full != OnFull::Publish {
            // A client that does not read basic.return waits only for itself.
            self.publishing.shortage = Shortage::Returns;
            return Ok(PublishAnswer::Wait);
        }
        if self.queues.deliveries().free_count() == 0 {
            if publish.claim.share == Share::Ordinary {
                self.publishing.shortage = Shortage::Pool(Pool::Unacknowledged);
                return Ok(PublishAnswer::Wait);
            }
            messages.release(message);
            return Err(no_memory_for("another unacknowledged delivery"));
        }
        self.counters.unroutable_returned += 1;
        count_up(&mut self.clients.channel_mut(channel).counters.returned);
        self.put_into_outbox(
            messages,
            NewDelivery {
                tag: 0,
                order: 0,
                log_offset: None,
                message,
                channel,
                consumer: None,
                queue: None,
                method: DeliveryMethod::Return,
                redelivered: false,
                requeues: 0,
                no_ack: true,
            },
        );
        Ok(PublishAnswer::Published)
    }

    /// Adds a message and its route to the channel's transaction. As in RabbitMQ, a message is routed when it
    /// is published, and later changes of bindings have no effect on its route.
    ///
    /// `route` has the target queues; `None` on the default exchange, whose routing keys are names of queues.
    pub(crate) fn publish_in_transaction(
        &mut self,
        cx: &mut Context<'_>,
        channel: ChannelId,
        message: MessageId,
        mandatory: bool,
        route: Option<&[QueueId]>,
    ) -> Result<PublishAnswer, Fault> {
        let result = self.add_to_transaction(cx.messages, channel, message, route);
        match result {
            Ok(()) => cx.messages.set_mandatory(message, mandatory),
            Err(_) => cx.messages.release(message),
        }
        result.map(|()| PublishAnswer::Published)
    }

    fn add_to_transaction(
        &mut self,
        messages: &mut Messages,
        channel: ChannelId,
        message: MessageId,
        route: Option<&[QueueId]>,
    ) -> Result<(), Fault> {
        let route =
            route.map(|targets| self.queues.records_mut().write_route(messages, targets)).transpose()?;
        let added = || core::iter::once(message).chain(route);
        let bytes = added().map(|id| u64::from(messages.footprint_bytes(id)) - SLOT_BYTES).sum();
        let connection = self.clients.connection_of(channel);
        if let Err(fault) = self.quota.take_open(connection, added().count() as u32, bytes) {
            route.into_iter().for_each(|route| messages.release(route));
            return Err(fault);
        }
        self.note_transaction_change(channel);
        let Mode::Transaction(transaction) = &mut self.clients.channel_mut(channel).mode else {
            panic!("the caller checked that the channel is transactional");
        };
        for id in added() {
            messages.set_link(id, None);
            match transaction.last {
                Some(last) => messages.set_link(last, Some(id)),
                None => transaction.first = Some(id),
            }
            transaction.last = Some(id);
            transaction.slots += 1;
        }
        transaction.messages += 1;
        transaction.bytes += bytes;
        Ok(())
    }

    pub(crate) fn commit(&mut self, cx: &mut Context<'_>, channel: ChannelId) -> Result<(), Fault> {
        if !matches!(self.clients.channel(channel).mode, Mode::Transaction(_)) {
            return Err(not_transactional());
        }
        self.commit_with_removal(cx, channel, None)
    }

    /// Commits the transaction of a channel. Removes selected messages from their queue in the same commit.
    ///
    /// # Errors
    /// There is no capacity, and nothing was changed; or a full queue refused a message of the transaction, and
    /// nothing was removed.
    pub(crate) fn commit_with_removal(
        &mut self,
        cx: &mut Context<'_>,
        channel: ChannelId,
        removal: Option<&Removal<'_>>,
    ) -> Result<(), Fault> {
        let mut targets = core::mem::take(&mut self.publishing.targets);
        let result = self.commit_with_buffer(cx, channel, removal, &mut targets);
        self.publishing.targets = targets;
        result
    }

    fn commit_with_buffer(
        &mut self,
        cx: &mut Context<'_>,
        channel: ChannelId,
        removal: Option<&Removal<'_>>,
        targets: &mut Vec<QueueId>,
    ) -> Result<(), Fault> {
        let reservation = self.check_commit_fits(cx, channel, targets)?;
        let chunks = removal.map_or(0, |removal| removal.chunks);
        // The chunks are touched now, because copies of the messages (dead letters, the firehose) could take their extents
        // before the messages are pushed.
        if chunks > 0 && !self.queues.entries().may_take(reservation.chunks + chunks, 0)
            || !self.queues.touch_chunks(reservation.chunks + chunks)
        {
            return Err(no_memory_for("another entry of a queue"));
        }
        self.republish.set_reservation(reservation);
        // The check of the transaction was within the work limit. Carrying it out must not end half-way.
        cx.work.lift_limit();
        let changes_before = cx.pending_writes.change_count();
        cx.pending_writes.begin_group();
        let outcome = self.carry_out(cx, channel, targets);
        if let Some(removal) = removal.filter(|_| outcome.is_ok()) {
            let removed_count = self.queues.remove_selected(cx, removal.queue, removal.keys);
            assert_eq!(removed_count, removal.keys.len(), "the messages were found before the commit");
        }
        self.republish.set_reservation(CommitReservation::default());
        let batch = cx.pending_writes.end_group(cx.messages, Urgency::Awaited);
        if cx.pending_writes.change_count() != changes_before {
            cx.await_batch(batch);
        }
        outcome
    }

    /// Publishes the messages and carries out the settlements of a transaction for which capacity was
    /// checked.
    fn carry_out(
        &mut self,
        cx: &mut Context<'_>,
        channel: ChannelId,
        targets: &mut Vec<QueueId>,
    ) -> Result<(), Fault> {
        let transaction = self.take_transaction(channel);
        let (mut next, mut is_refused) = (transaction.first, false);
        while let Some((message, route)) = take_published(cx.messages, &mut next) {
            let mandatory = cx.messages.is_mandatory(message);
            self.find_route(cx, channel, message, route, targets)?;
            if let Some(route) = route {
                cx.messages.release(route);
            }
            // Capacity for everything was checked; only a queue's length limit can refuse a message.
            let publish = Publish {
                channel: Some(channel),
                mandatory,
                claim: Claim { share: Share::Reserve, on_full: OnFull::Publish },
                urgency: Urgency::Awaited,
            };
            let outcome = self.deliver_to_targets(cx, message, targets, &publish)?;
            assert!(outcome != PublishAnswer::Wait, "tx.commit checked the capacity, so no message waits");
            is_refused |= outcome == PublishAnswer::Refused;
        }
        self.republish.set_reservation(CommitReservation::default());
        let mut settlements = transaction.settlements;
        if !settlements.is_empty() {
            // The deletion of a queue settles its messages.
            cx.await_all_changes();
        }
        while let Some((index, settlement)) = self.queues.deliveries_mut().next_settlement(&mut settlements) {
            self.settle_one(cx, index, settlement);
        }
        if is_refused { Err(partly_completed()) } else { Ok(()) }
    }

    pub(crate) fn rollback(&mut self, messages: &mut Messages, channel: ChannelId) -> Result<(), Fault> {
        if !matches!(self.clients.channel(channel).mode, Mode::Transaction(_)) {
            return Err(not_transactional());
        }
        self.abandon_transaction(messages, channel);
        Ok(())
    }

    /// Finds the target queues of a message of the transaction, as far as they still exist.
    fn find_route(
        &mut self,
        cx: &mut Context<'_>,
        channel: ChannelId,
        message: MessageId,
        route: Option<MessageId>,
        targets: &mut Vec<QueueId>,
    ) -> Result<(), Fault> {
        targets.clear();
        let vhost = self.clients.channel(channel).vhost;
        if let Some(route) = route {
            self.queues.records().read_route(cx.messages, cx.work, vhost, route, targets);
            return Ok(());
        }
        let Some(exchange) = self.topology.find_exchange(vhost, "") else { return Ok(()) };
        let mut scratch = self.queues.lend_scratch();
        let bytes = cx.messages.properties(message, &mut scratch.properties);
        let headers = leveret_amqp::props::Properties::trusted(bytes).headers().unwrap_or(Table::EMPTY);
        let incoming = Incoming { channel, exchange, message };
        let routed = self.route(cx.messages, cx.work, incoming, headers, targets);
        self.queues.return_scratch(scratch);
        routed
    }

    fn check_commit_fits(
        &mut self,
        cx: &mut Context<'_>,
        channel: ChannelId,
        targets: &mut Vec<QueueId>,
    ) -> Result<CommitReservation, Fault> {
        let Mode::Transaction(transaction) = &self.clients.channel(channel).mode else {
            panic!("the caller checked that the channel is transactional");
        };
        let mut next = transaction.first;
        self.topology.limit_routing(cx.work, COMMIT_TIMES);
        self.queues.count_live_log_bytes(cx.pending_writes);
        let (mut entries, mut returns, mut logged, mut log_bytes) = (0, 0, 0, 0);
        let mut chunks = 0;
        while let Some((message, route)) = take_published(cx.messages, &mut next) {
            self.find_route(cx, channel, message, route, targets)?;
            cx.work.check()?;
            self.queues.choose_levels(cx, &mut self.quota, message, targets);
            if self.queues.take_slot_capacity_lack() {
                return Err(no_memory_for("another queue"));
            }
            entries += targets.len();
            returns += usize::from(targets.is_empty() && cx.messages.is_mandatory(message));
            if self.queues.logged_target_count(cx, message, targets) > 0 {
                log_bytes += cx.messages.stream_len(message) as u64;
                let (bytes, body_bytes) = (cx.messages.stream_len(message), cx.messages.body_len(message));
                if !cx.pending_writes.fits_commit(bytes as u64, body_bytes.into(), targets.len()) {
                    return Err(out_of("commit_bytes_max"));
                }
                logged += 1;
                if !cx.pending_writes.fits_transaction(logged) {
                    return Err(too_much_to_write());
                }
                self.check_log_space(cx.pending_writes, log_bytes)?;
            }
            // Checked after each message, so that the routing of a transaction that is far too large stops
            // early.
            chunks = entries.min(
                self.queues.records().queue_count() + entries / leveret_core::mem::ENTRIES_PER_CHUNK + 1,
            );
            if !self.queues.entries().may_take(chunks, 0) || targets.len() > self.queues.fan_out_max() {
                return Err(no_memory_for("another entry of a queue"));
            }
        }
        if returns > self.queues.deliveries().free_count() {
            return Err(no_memory_for("another unacknowledged delivery"));
        }
        Ok(CommitReservation { chunks, logged })
    }

    /// Checks whether the log has space for the messages of a transaction with this many bytes. A transaction
    /// that is larger than one commit of the log is written twice.
    fn check_log_space(&self, pending_writes: &PendingWrites, bytes: u64) -> Result<(), Fault> {
        let times = if pending_writes.fits_commit(bytes, 0, 0) { 1 } else { 2 };
        match pending_writes.admit(times * bytes + self.queues.reserved_for_dead_letters(pending_writes), 1) {
            Err(NoCapacity::Disk) => Err(out_of_disk(pending_writes)),
            Err(NoCapacity::Commit) if pending_writes.mode() == PendingWritesMode::Unwritable => {
                Err(unwritable_for_messages())
            }
            Ok(()) | Err(NoCapacity::Commit) => Ok(()),
        }
    }
}

/// Messages that a commit removes from their queue, because it publishes copies of them.
pub(crate) struct Removal<'a> {
    pub(crate) queue: QueueId,
    /// The keys of the messages, which are all ready.
    pub(crate) keys: &'a [MessageKey],
    /// Maximum number of chunks of queue entries that the removal takes.
    pub(crate) chunks: usize,
}

/// Upper bound of the capacity that the `tx.commit` being carried out still needs. Dead letters that it
/// causes must leave this capacity free, or it would end half-way.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct CommitReservation {
    /// Number of chunks for queue entries.
    pub(crate) chunks: usize,
    /// Number of messages for the log.
    pub(crate) logged: usize,
}

/// State kept between publishes.
#[derive(Debug)]
pub(crate) struct Publishing {
    /// Buffer for the target queues of a message. Empty while a message is routed and pushed, because the
    /// code that does so has taken the buffer.
    pub(crate) targets: Vec<QueueId>,
    /// The cause for which the publish that last returned [`PublishAnswer::Wait`] waits.
    pub(crate) shortage: Shortage,
}

impl Publishing {
    /// Reserves the buffer for up to `queues` target queues.
    pub(crate) fn with_capacity(queues: usize) -> Self {
        Self { targets: Vec::with_capacity(queues), shortage: Shortage::Commit }
    }
}
