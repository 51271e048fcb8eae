//! The broker's own connections: the local end of a bridge, and requests to the management API.
//!
//! In addition to what clients can do, they settle a delivery and, in the same commit, publish its message again or
//! move it to a parking queue.

use leveret_amqp::props::Properties;
use leveret_core::batch::Batch;
use leveret_core::command::{
    ChannelId, ConnectionId, LoginCommand, OpenChannel, OpenVhost, PublishAnswer, QueueId, Refusal,
    Settlement,
};
use leveret_core::error::{Fault, ReplyCode, out_of};
use leveret_core::mem::{MessageFlags, MessageId, Share};
use leveret_queues::{BROWSED_MAX, BrowseResult, Claim, OnFull, PlannedCopy, Reason, Shortage, copy_flags};
use leveret_storage::Urgency;

use super::access::Identity;
use super::deliver::OutboxView;
use super::publish::Publish;
use super::republish::Parking;
use super::{Broker, Context};

/// Identifies the message of a delivery, so that another broker can detect duplicates.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeliverySource {
    /// Number of the queue. It is never reused in this process; that of a durable queue, never in later
    /// processes either.
    pub queue: u64,
    /// Offset of the message in its queue.
    pub offset: u64,
    /// The message is not in the log, so it is lost when the broker stops.
    pub is_transient: bool,
}

impl OutboxView<'_> {
    /// Returns the identification of the delivery at the cursor; `None` for a `basic.return`.
    pub fn source(&self) -> Option<DeliverySource> {
        let delivery = &self.broker.queues.deliveries()[self.at?];
        let queue = self.broker.queues.at(delivery.queue?);
        Some(match delivery.log_offset {
            Some(offset) => {
                DeliverySource { queue: queue.durable_index.incarnation(), offset, is_transient: false }
            }
            None => DeliverySource { queue: queue.serial, offset: delivery.order, is_transient: true },
        })
    }
}

/// Converts the outcome of publishing a copy: `true` if it is in the queue, `false` if there is no capacity
/// now. In the latter case the copy is discarded. `refused` is the error text if the queue refuses the copy.
fn publish_result_of_copy(
    cx: &mut Context<'_>,
    copy: MessageId,
    answer: PublishAnswer,
    refused: &str,
) -> Result<bool, Fault> {
    match answer {
        PublishAnswer::Published | PublishAnswer::PublishedNowhere => Ok(true),
        PublishAnswer::Wait => {
            cx.messages.discard(copy);
            Ok(false)
        }
        _ => Err(Fault::new(ReplyCode::PreconditionFailed, format_args!("{refused}"))),
    }
}

/// Returns a copy of a message with other properties; `None` without capacity. The caller must publish or
/// discard the copy.
#[cold]
fn copy_with_properties_of(cx: &mut Context<'_>, message: MessageId, properties: &[u8]) -> Option<MessageId> {
    let flags = copy_flags(cx.messages, message, &Properties::trusted(properties));
    cx.messages.copy_with_properties(message, properties, flags.with(MessageFlags::PARSE_PROPERTIES)).ok()
}

/// A queue by name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QueueRef<'a> {
    /// Name of its virtual host.
    pub vhost: &'a str,
    /// Its name.
    pub name: &'a str,
}

/// Where a bridge parks a message, and why.
#[derive(Clone, Copy, Debug)]
pub struct ParkRequest<'a> {
    /// Name of the bridge.
    pub bridge: &'a str,
    /// The queue of parked messages, in the virtual host of the bridge.
    pub queue: &'a str,
    /// Why the other end of the bridge refuses the message.
    pub why: Refusal,
}

impl Broker {
    /// Opens one of the broker's own connections in a virtual host.
    ///
    /// # Errors
    /// There is no such virtual host, or no connection record is free.
    #[cold]
    pub fn connect_own(&mut self, name: &str, vhost: &str) -> Result<ConnectionId, Fault> {
        let Some(id) = self.access.find_vhost(vhost) else {
            return Err(Fault::connection(ReplyCode::NotAllowed, format_args!("vhost {vhost} not found")));
        };
        let connection = self.connect().ok_or_else(|| out_of("connections_max"))?;
        // Replaces the firehose name of an earlier connection with the same id.
        self.set_firehose_name(connection, name);
        let record = self.clients.connection_mut(connection);
        (record.identity, record.vhost) = (Identity::own(name), Some(id));
        self.quota.enter_vhost(connection, id);
        self.access.add_vhost_reference(id);
        Ok(connection)
    }

    /// Opens a connection and a channel for a user of the management API. The user has the same permissions
    /// on it as over AMQP.
    ///
    /// No list of connections shows it. The caller releases it after the request.
    ///
    /// # Errors
    /// The user may not open the virtual host, or no connection record is free.
    #[cold]
    pub fn connect_user(
        &mut self,
        cx: &mut Context<'_>,
        user: &str,
        vhost: &str,
    ) -> Result<(ConnectionId, ChannelId), Fault> {
        let connection = self.connect().ok_or_else(|| out_of("connections_max"))?;
        // The management API has already checked whether the user may log in from its address.
        let login = LoginCommand::External { user, from_loopback: true };
        let opened = self
            .apply_to_connection(cx, connection, login)
            .and_then(|_| self.apply_to_connection(cx, connection, OpenVhost { vhost }))
            .and_then(|()| self.apply_to_connection(cx, connection, OpenChannel { number: 1 }));
        match opened {
            Ok(channel) => Ok((connection, channel)),
            Err(fault) => {
                self.release(cx, connection);
                Err(fault)
            }
        }
    }

    /// Moves the message of a written delivery to another queue, with other properties, and settles the
    /// delivery. Returns the batch of the copy and the settlement; `None` if there is no capacity for the copy
    /// now. The delivery is unchanged then.
    ///
    /// # Errors
    /// There is no such queue, or the queue accepts no more.
    #[cold]
    pub fn move_delivery(
        &mut self,
        cx: &mut Context<'_>,
        channel: ChannelId,
        tag: u64,
        queue: &str,
        properties: &[u8],
    ) -> Result<Option<Batch>, Fault> {
        let queue = self.queue_for(channel, queue)?;
        let Some((index, message)) = self.find_sent_in_memory(channel, tag) else { return Ok(None) };
        let Some(copy) = copy_with_properties_of(cx, message, properties) else { return Ok(None) };
        cx.pending_writes.begin_group();
        let is_moved = self.push_copy(cx, channel, copy, queue);
        if is_moved == Ok(true) {
            self.clients.leave_unacknowledged(&mut self.queues, channel, index);
            self.settle_one(cx, index, Settlement::Ack);
        }
        let batch = cx.pending_writes.end_group(cx.messages, Urgency::Awaited);
        is_moved.map(|is_moved| is_moved.then_some(batch))
    }

    /// Publishes the message of a written delivery again, with other properties, and settles the delivery.
    /// Both are done in one commit, or neither.
    ///
    /// Returns `false` if there is no capacity for the copy now. The delivery is unchanged then.
    ///
    /// # Errors
    /// The message reaches no queue, or is refused.
    #[cold]
    pub fn republish_delivery(
        &mut self,
        cx: &mut Context<'_>,
        channel: ChannelId,
        tag: u64,
        properties: &[u8],
    ) -> Result<bool, Fault> {
        let Some((index, message)) = self.find_sent_in_memory(channel, tag) else { return Ok(false) };
        let Some(copy) = copy_with_properties_of(cx, message, properties) else { return Ok(false) };
        let connection = self.clients.connection_of(channel);
        cx.pending_writes.begin_group();
        let mut outcome = self.publish(cx, channel, copy, true);
        let is_returned = self.has_returned(connection);
        if outcome == Ok(PublishAnswer::Published) && !is_returned {
            self.clients.leave_unacknowledged(&mut self.queues, channel, index);
            self.settle_one(cx, index, Settlement::Ack);
        }
        cx.pending_writes.end_group(cx.messages, Urgency::Awaited);
        if is_returned {
            self.sent(cx, connection, 1);
            let why = format_args!("it is routed to no queue here");
            outcome = Err(Fault::new(ReplyCode::NoRoute, why));
        }
        publish_result_of_copy(cx, copy, outcome?, "a queue refuses it by its own arguments")
    }

    /// Adds a copy of a message, with other properties, to a queue. The original is in no queue. Returns the
    /// batch of the copy; `None` if there is no capacity for it now.
    ///
    /// # Errors
    /// There is no such queue, or the queue accepts no more.
    #[cold]
    pub fn move_copy(
        &mut self,
        cx: &mut Context<'_>,
        channel: ChannelId,
        message: MessageId,
        queue: &str,
        properties: &[u8],
    ) -> Result<Option<Batch>, Fault> {
        let queue = self.queue_for(channel, queue)?;
        let Some(copy) = copy_with_properties_of(cx, message, properties) else { return Ok(None) };
        cx.awaited = Batch::NONE;
        let is_taken = self.push_copy(cx, channel, copy, queue)?;
        Ok(is_taken.then_some(cx.awaited))
    }

    pub(crate) fn queue_for(&self, channel: ChannelId, name: &str) -> Result<QueueId, Fault> {
        let vhost = self.clients.channel(channel).vhost;
        self.queues.records().find_queue(vhost, name).ok_or_else(|| {
            let vhost = self.access.vhost_name(vhost);
            Fault::new(ReplyCode::NotFound, format_args!("no queue '{name}' in vhost '{vhost}'"))
        })
    }

    fn find_sent_in_memory(&self, channel: ChannelId, tag: u64) -> Option<(usize, MessageId)> {
        let record = self.clients.find_channel(channel).filter(|record| !record.is_closed())?;
        let head = record.unacknowledged.front()?;
        let is_head = self.queues.deliveries()[head].tag == tag;
        let index = if is_head { head } else { self.queues.deliveries().find(channel, tag)? };
        let delivery = &self.queues.deliveries()[index];
        delivery.message.filter(|_| delivery.is_sent).map(|message| (index, message))
    }

    /// Adds a copy to a queue. Returns `false` if there is no capacity now; the copy is discarded then.
    #[cold]
    fn push_copy(
        &mut self,
        cx: &mut Context<'_>,
        channel: ChannelId,
        copy: MessageId,
        queue: QueueId,
    ) -> Result<bool, Fault> {
        let publish = Publish {
            channel: Some(channel),
            mandatory: false,
            claim: Claim { share: Share::Reserve, on_full: OnFull::WaitForLog },
            urgency: Urgency::Awaited,
        };
        let bytes = cx.messages.stream_len(copy) as u64;
        if let Some(full) = self.queues.queue_too_full_for_moved(
            cx,
            &self.quota,
            None,
            PlannedCopy { message: copy, bytes },
            &[queue],
        ) {
            self.publishing.shortage = Shortage::QueueMemory(full);
            cx.messages.discard(copy);
            return Ok(false);
        }
        let mut targets = core::mem::take(&mut self.publishing.targets);
        targets.clear();
        targets.push(queue);
        let outcome = self.deliver_to_targets(cx, copy, &mut targets, &publish);
        self.publishing.targets = targets;
        publish_result_of_copy(cx, copy, outcome?, "the parking queue is full by its own arguments")
    }

    /// Returns whether the first entry of the connection's outbox is a `basic.return`.
    pub fn has_returned(&self, connection: ConnectionId) -> bool {
        let front = self.clients.connection(connection).outbox.front();
        front.is_some_and(|index| self.queues.deliveries()[index].queue.is_none())
    }

    /// Returns up to `count` messages of a queue, beginning with position `from`, without delivering them.
    /// Position 0 is the front of the queue. The permissions of the user are checked.
    ///
    /// # Errors
    /// The user may not read the queue, there is no such queue, or the position is too far from the front.
    pub fn browse_queue(
        &mut self,
        cx: &mut Context<'_>,
        user: &str,
        queue: QueueRef<'_>,
        from: u32,
        count: u32,
    ) -> Result<BrowseResult, Fault> {
        let (connection, channel) = self.connect_user(cx, user, queue.vhost)?;
        let found = self.readable_queue(cx, connection, channel, queue.name);
        self.release(cx, connection);
        let queue = found?;
        self.prepare_message_keys();
        let seen = self.queues.browse(cx.messages, queue, from, count.min(BROWSED_MAX))?;
        Ok(BrowseResult { ready: self.queues.records().ready_in(queue), seen })
    }

    /// Moves the message of a written delivery to a parking queue, because the other end of a bridge refuses
    /// the message. The cause is added to its headers. If the message is not in memory or there is no
    /// capacity, it is moved later.
    ///
    /// # Errors
    /// There is no such delivery or queue, or the queue accepts no more. The delivery is unchanged.
    #[cold]
    pub fn park_delivery(
        &mut self,
        cx: &mut Context<'_>,
        channel: ChannelId,
        tag: u64,
        request: ParkRequest<'_>,
    ) -> Result<(), Fault> {
        let ParkRequest { bridge, queue, why } = request;
        let target = self.queue_for(channel, queue)?;
        let Some(index) = self.clients.find_sent(&self.queues, channel, tag) else {
            return Err(Fault::new(
                ReplyCode::PreconditionFailed,
                format_args!("unknown delivery tag {tag}"),
            ));
        };
        let body_len = self.queues.deliveries()[index].body_len;
        if self.queues.records().refuses_body(target, body_len, 0) {
            let why = format_args!("{queue} is full by its own arguments");
            return Err(Fault::new(ReplyCode::PreconditionFailed, why));
        }
        let parking = Parking { bridge: bridge.into(), queue: queue.into(), why };
        let Some(place) = self.republisher().parking_index(parking) else {
            let why = format_args!("too many bridges park messages for too many different causes");
            return Err(Fault::new(ReplyCode::ResourceError, why));
        };
        let source = self.queues.deliveries()[index].queue;
        self.clients.leave_unacknowledged(&mut self.queues, channel, index);
        match source {
            Some(source) => self.dead_letter_delivery(cx, source, index, Reason::Parked(place)),
            None => self.finish_delivery(cx, index),
        }
        Ok(())
    }
}
