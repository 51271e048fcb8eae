//! Connections of this broker's own: the local end of a bridge, and of a request of the management API.
//!
//! Why it exists: a bridge consumes and publishes like any client, under the same caps and the same order;
//! but nobody logs in for it (the operator's configuration says what it may do), and what the other side
//! refuses it sets aside, which no client can do in one step.
//!
//! Always true: what is set aside is in the queue for that or where it was, never in both or in neither, as
//! far as a power cut can tell; its exchange, key and body stay as they are.

use crate::command::{ChannelId, Command, ConnectionId, Outcome, QueueId, Refusal, Settlement};
use crate::error::{Fault, ReplyCode};
use crate::journal::{Batch, Urgency};
use crate::mem::{MessageFlags, MessageId, Share};
use crate::wire::props::Properties;

use super::access::{Identity, Right, Thing};
use super::deliver::OutboxView;
use super::faults::out_of;
use super::letters::{Firehose, Parking, Reason, TracedName};
use super::publish::Publish;
use super::queues::{LOOKED_MAX, Looked};
use super::{Broker, Context};

/// What comes into a queue and lies in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QueueFlow {
    /// Messages that came in since it is here, what was found in the log counted in.
    pub came: u64,
    /// Messages ready.
    pub ready: u32,
    /// Bytes of their bodies.
    pub body_bytes: u64,
}

/// What a delivery on its way is known by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeliverySource {
    /// Its queue, as a number that no other ever has: for all lives where it is durable, else for this one.
    pub queue: u64,
    /// Its place in it.
    pub offset: u64,
    /// It lives no longer than the broker.
    pub is_transient: bool,
}

impl OutboxView<'_> {
    /// What the delivery at the cursor is known by; `None` for one that comes from no queue.
    pub fn source(&self) -> Option<DeliverySource> {
        let delivery = &self.broker.queues.deliveries()[self.at?];
        let queue = self.broker.queues.at(delivery.queue?);
        Some(match delivery.logged {
            Some(offset) => DeliverySource { queue: queue.logged.incarnation(), offset, is_transient: false },
            None => DeliverySource { queue: queue.serial, offset: delivery.offset, is_transient: true },
        })
    }
}

impl Broker {
    /// A connection of this broker's own, in a virtual host.
    ///
    /// # Errors
    /// There is no such virtual host, or no record is free.
    #[cold]
    pub fn connect_own(&mut self, name: &str, vhost: &str) -> Result<ConnectionId, Fault> {
        let Some(id) = self.access.find_vhost(vhost) else {
            return Err(Fault::connection(ReplyCode::NotAllowed, format_args!("vhost {vhost} not found")));
        };
        let connection = self.connect().ok_or_else(|| out_of("connections_max"))?;
        // Whoever had the place before may have had a name in the firehose.
        self.name_traced(connection, name);
        let record = self.consumers.connection_mut(connection);
        (record.identity, record.vhost) = (Identity::own(name), Some(id));
        self.quota.enter_vhost(connection, id);
        self.access.hold_vhost(id);
        Ok(connection)
    }

    /// A connection of a user of the management API, and its channel, by which it does what it might do over
    /// AMQP. Nobody hears of it, and whoever asked for it releases it.
    ///
    /// # Errors
    /// The user may not come in, or no record is free.
    #[cold]
    pub fn connect_user(
        &mut self,
        cx: &mut Context<'_>,
        user: &str,
        vhost: &str,
    ) -> Result<(ConnectionId, ChannelId), Fault> {
        let connection = self.connect().ok_or_else(|| out_of("connections_max"))?;
        // Whether it may come from where it is was looked at with its password.
        let commands = [
            Command::LoginExternal { user, from_loopback: true },
            Command::OpenVhost { vhost },
            Command::OpenChannel { number: 1 },
        ];
        for command in commands {
            match self.apply(cx, connection, None, command).0 {
                Outcome::ChannelOpened(channel) => return Ok((connection, channel)),
                Outcome::Fault(fault) => {
                    self.release(cx, connection);
                    return Err(fault);
                }
                _ => {}
            }
        }
        unreachable!("opening a channel is answered with a channel or a fault")
    }

    /// Moves a delivery that was sent to another queue, with other properties. `None`: there is no room for
    /// it now, and it is as it was.
    ///
    /// # Errors
    /// There is no such queue, or it takes no more.
    #[cold]
    pub fn set_aside(
        &mut self,
        cx: &mut Context<'_>,
        channel: ChannelId,
        tag: u64,
        queue: &str,
        properties: &[u8],
    ) -> Result<Option<Batch>, Fault> {
        let queue = self.queue_for(channel, queue)?;
        let Some((index, message)) = self.sent_in_memory(channel, tag) else { return Ok(None) };
        let Some(copy) = copied(cx, message, properties) else { return Ok(None) };
        cx.journal.begin_group();
        let is_moved = self.push_aside(cx, channel, copy, queue);
        if is_moved == Ok(true) {
            self.consumers.leave_unacknowledged(&mut self.queues, channel, index);
            self.settle_one(cx, index, Settlement::Ack);
        }
        let batch = cx.journal.end_group(cx.messages, Urgency::Awaited);
        is_moved.map(|is_moved| is_moved.then_some(batch))
    }

    /// Publishes a delivery that was sent once more, with other properties, and settles it, both or neither.
    /// `false`: there is no room for it now, and it is as it was.
    ///
    /// # Errors
    /// It reaches no queue, or is refused.
    #[cold]
    pub fn publish_again(
        &mut self,
        cx: &mut Context<'_>,
        channel: ChannelId,
        tag: u64,
        properties: &[u8],
    ) -> Result<bool, Fault> {
        let Some((index, message)) = self.sent_in_memory(channel, tag) else { return Ok(false) };
        let Some(copy) = copied(cx, message, properties) else { return Ok(false) };
        let connection = self.consumers.connection_of(channel);
        cx.journal.begin_group();
        let mut outcome = self.publish(cx, channel, copy, true);
        let is_returned = self.has_returned(connection);
        if outcome == Ok(Outcome::Published) && !is_returned {
            self.consumers.leave_unacknowledged(&mut self.queues, channel, index);
            self.settle_one(cx, index, Settlement::Ack);
        }
        cx.journal.end_group(cx.messages, Urgency::Awaited);
        if is_returned {
            self.sent(cx, connection, 1);
            let why = format_args!("it reaches no queue here");
            outcome = Err(Fault::new(ReplyCode::NoRoute, why));
        }
        taken(cx, copy, outcome?, "a queue refuses it by its own arguments")
    }

    /// Puts a copy of a message that is in no queue into one, with other properties. `None`: there is no room
    /// for it now.
    ///
    /// # Errors
    /// There is no such queue, or it takes no more.
    #[cold]
    pub fn put_aside(
        &mut self,
        cx: &mut Context<'_>,
        channel: ChannelId,
        message: MessageId,
        queue: &str,
        properties: &[u8],
    ) -> Result<Option<Batch>, Fault> {
        let queue = self.queue_for(channel, queue)?;
        let Some(copy) = copied(cx, message, properties) else { return Ok(None) };
        cx.awaited = Batch::NONE;
        let is_taken = self.push_aside(cx, channel, copy, queue)?;
        Ok(is_taken.then_some(cx.awaited))
    }

    pub(super) fn queue_for(&self, channel: ChannelId, name: &str) -> Result<QueueId, Fault> {
        let vhost = self.consumers.channel(channel).vhost;
        self.queues.find_queue(vhost, name).ok_or_else(|| {
            let vhost = self.access.vhost_name(vhost);
            Fault::new(ReplyCode::NotFound, format_args!("no queue '{name}' in vhost '{vhost}'"))
        })
    }

    fn sent_in_memory(&self, channel: ChannelId, tag: u64) -> Option<(usize, MessageId)> {
        let record = self.consumers.find_channel(channel).filter(|record| !record.closing)?;
        let head = record.unacknowledged.front()?;
        let is_head = self.queues.deliveries()[head].tag == tag;
        let index = if is_head { head } else { self.queues.deliveries().find(channel, tag)? };
        let delivery = &self.queues.deliveries()[index];
        delivery.message.filter(|_| delivery.sent).map(|message| (index, message))
    }

    /// Takes the copy over, whatever comes of it; says whether it is in the queue.
    #[cold]
    fn push_aside(
        &mut self,
        cx: &mut Context<'_>,
        channel: ChannelId,
        copy: MessageId,
        queue: QueueId,
    ) -> Result<bool, Fault> {
        let publish = Publish {
            channel,
            mandatory: false,
            share: Share::Reserve,
            may_wait: true,
            urgency: Urgency::Awaited,
        };
        let mut targets = core::mem::take(&mut self.publishing.targets);
        targets.clear();
        targets.push(queue);
        let outcome = self.deliver_to_targets(cx, copy, &mut targets, &publish);
        self.publishing.targets = targets;
        taken(cx, copy, outcome?, "the queue for what is set aside takes no more, by its own arguments")
    }

    /// How many messages are ready in a queue; `None`: there is no such queue.
    pub fn queue_depth(&self, vhost: &str, queue: &str) -> Option<u32> {
        let vhost = self.access.find_vhost(vhost)?;
        let queue = self.queues.find_queue(vhost, queue)?;
        Some(self.queues.ready_in(queue))
    }

    /// What comes into a queue and lies in it.
    pub fn queue_flow(&self, vhost: &str, queue: &str) -> Option<QueueFlow> {
        let queue = self.queues.find_queue(self.access.find_vhost(vhost)?, queue)?;
        Some(QueueFlow {
            came: self.queues.in_all(queue, |level| level.backlog.came()),
            ready: self.queues.ready_in(queue),
            body_bytes: self.queues.in_all(queue, |level| level.backlog.body_bytes()),
        })
    }

    /// A message of the connection's own that reached no queue and stands first in its outbox.
    pub fn has_returned(&self, connection: ConnectionId) -> bool {
        let front = self.consumers.connection(connection).outbox.front();
        front.is_some_and(|index| self.queues.deliveries()[index].queue.is_none())
    }
}

impl Broker {
    /// Looks at messages of a queue from the one in this place on, counted from 0, as a user who might read
    /// them over AMQP.
    ///
    /// # Errors
    /// He may not, there is no such queue, or the place is too far behind.
    pub fn look(
        &mut self,
        cx: &mut Context<'_>,
        (user, vhost, queue): (&str, &str, &str),
        from: u32,
        count: u32,
    ) -> Result<Looked, Fault> {
        let (connection, channel) = self.connect_user(cx, user, vhost)?;
        let vhost = self.consumers.channel(channel).vhost;
        let found = self
            .check(cx.work, connection, vhost, Right::Read, Thing::Queue(queue))
            .and_then(|()| self.require_queue(connection, vhost, queue));
        self.release(cx, connection);
        let queue = found?;
        let seen = self.queues.look_from(queue, from, count.min(LOOKED_MAX))?;
        Ok(Looked { ready: self.queues.ready_in(queue), seen })
    }

    /// A delivery that was sent goes to a queue for what a bridge's other side does not take, with the cause:
    /// at once, or as soon as it is read back and there is room.
    ///
    /// # Errors
    /// There is no such delivery or queue, or the queue takes no more: the delivery is as it was.
    #[cold]
    pub fn park_delivery(
        &mut self,
        cx: &mut Context<'_>,
        (channel, tag): (ChannelId, u64),
        (bridge, queue): (&str, &str),
        why: Refusal,
    ) -> Result<(), Fault> {
        let target = self.queue_for(channel, queue)?;
        let Some(index) = self.consumers.find_sent(&self.queues, channel, tag) else {
            return Err(Fault::new(
                ReplyCode::PreconditionFailed,
                format_args!("unknown delivery tag {tag}"),
            ));
        };
        let body_len = self.queues.deliveries()[index].body_len;
        if self.queues.refuses_body(target, body_len) {
            let why = format_args!("{queue} takes no more, by its own arguments");
            return Err(Fault::new(ReplyCode::PreconditionFailed, why));
        }
        let parking = Parking { bridge: bridge.into(), queue: queue.into(), why };
        let Some(place) = self.post().parking_place(parking) else {
            let why = format_args!("too many bridges set messages aside, for too many causes");
            return Err(Fault::new(ReplyCode::ResourceError, why));
        };
        let source = self.queues.deliveries()[index].queue;
        self.consumers.leave_unacknowledged(&mut self.queues, channel, index);
        match source {
            Some(source) => self.leave_for_good(cx, source, index, Reason::Parked(place)),
            None => self.settle_sent(cx, index),
        }
        Ok(())
    }

    /// Whether a virtual host is traced, so that connections have to have names.
    pub const fn is_tracing(&self) -> bool {
        self.firehose.is_on
    }

    /// The operator wants the firehose of a virtual host, or no more; says whether there is such a one. What
    /// this broker calls itself stands in the copies.
    pub fn trace(&mut self, vhost: &str, node: &str, is_on: bool) -> bool {
        let Some(vhost) = self.access.find_vhost(vhost) else { return false };
        self.access.set_traced(vhost, is_on);
        self.firehose.is_on = self.access.is_any_traced();
        if !self.firehose.is_on {
            self.firehose = Firehose::default();
        } else if self.firehose.names.is_empty() {
            self.firehose.node = node.into();
            self.firehose.names = vec![TracedName::new(); self.consumers.connections_fill().max];
        }
        true
    }

    /// What a connection is called in the copies; a longer name is cut.
    pub fn name_traced(&mut self, connection: ConnectionId, name: &str) {
        let Some(place) = self.firehose.names.get_mut(connection.index()) else { return };
        place.clear();
        for letter in name.chars() {
            if place.push(letter).is_err() {
                break;
            }
        }
    }
}

/// Whether a copy found its place; without room for it now it is gone. Refused says why it can never.
fn taken(cx: &mut Context<'_>, copy: MessageId, outcome: Outcome, refused: &str) -> Result<bool, Fault> {
    match outcome {
        Outcome::Published => Ok(true),
        Outcome::Wait => {
            cx.messages.discard(copy);
            Ok(false)
        }
        _ => Err(Fault::new(ReplyCode::PreconditionFailed, format_args!("{refused}"))),
    }
}

/// A copy with other properties, that nothing holds yet.
#[cold]
fn copied(cx: &mut Context<'_>, message: MessageId, properties: &[u8]) -> Option<MessageId> {
    let is_persistent = cx.messages.flags(message).has(MessageFlags::PERSISTENT);
    let flags = if is_persistent { MessageFlags::PERSISTENT } else { MessageFlags::NONE };
    let is_blind = Properties::trusted(properties).is_blind();
    let flags = if is_blind { flags.with(MessageFlags::BLIND) } else { flags };
    cx.messages.copy_with_properties(message, properties, flags.with(MessageFlags::LOOK_INSIDE)).ok()
}
