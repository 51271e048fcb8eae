//! Moves or copies selected ready messages of a queue to another queue or to an exchange, for an operator; and
//! shows which queues a message would reach.
//!
//! ```text
//! keys ──→ selected messages ── only in the log? ──→ the caller reads them and calls again
//!               └── copies, added to a transaction ──→ one commit: copies published, originals removed
//! ```
//!
//! # Invariants
//! - The user needs the same permissions as for `basic.get` and `basic.publish`.
//! - A commit has all copies and the removal of all originals. A failed request changes no queue.
//! - A copy has the properties, headers and body of its original. Its time to live begins anew.
//! - The firehose does not trace copies. If a full queue of traces is the source, traces that arrive in it could drop
//!   selected messages.
//! - A request fails if a copy would reach no queue, or if a target queue would refuse or drop it. A move also fails if
//!   a copy would reach the source queue.

use leveret_amqp::field::Table;
use leveret_amqp::props::Properties;
use leveret_amqp::reply_text::Lossy;
use leveret_amqp::{Full, Writer};
use leveret_core::command::{ChannelId, ConnectionId, QueueId};
use leveret_core::error::{Fault, ReplyCode};
use leveret_core::mem::{MessageFlags, MessageId, MessageNames};
use leveret_queues::{
    BrowsedMessage, CannotPublish, Claim, EntryContent, LogRun, MessageKey, OnFull, Overflow, Queues,
    RefusedBy, SelectedMessage, Shortage, WaitingPublishers, copy_flags,
};

use super::access::{Resource, Right};
use super::own_connections::QueueRef;
use super::publish::Removal;
use super::{Broker, Context};
use crate::counters::count_up;
use crate::views::DiskFacts;

/// Maximum number of bytes of bodies that one request copies, unless it is a single message.
const COPIED_BYTES_MAX: u64 = 8 << 20;

/// Where messages are moved to, in the virtual host of their queue.
#[derive(Clone, Copy, Debug)]
pub enum MoveTarget<'a> {
    /// A queue.
    Queue(&'a str),
    /// An exchange, and the routing key of the copies. Without a key each copy has the key of its original.
    Exchange(&'a str, Option<&'a [u8]>),
}

/// A request to move or copy messages of a queue.
#[derive(Clone, Copy, Debug)]
pub struct MoveRequest<'a> {
    /// The user.
    pub user: &'a str,
    /// The virtual host.
    pub vhost: &'a str,
    /// The queue that has the messages.
    pub queue: &'a str,
    /// The queue or exchange that gets the copies.
    pub target: MoveTarget<'a>,
    /// Whether the originals stay.
    pub is_copy: bool,
}

/// The result of [`Broker::move_messages`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MoveOutcome {
    /// This many messages were moved or copied.
    Moved(u32),
    /// These messages must be read from the log first. Nothing was changed.
    Read(LogRun),
}

/// The route of a message: names of the queues that it would reach, and of the exchanges that it would pass.
#[derive(Debug)]
pub struct ShownRoute {
    /// Names of queues.
    pub queues: Vec<Box<str>>,
    /// Names of exchanges. The name of the default exchange is empty.
    pub exchanges: Vec<Box<str>>,
}

/// The messages that a request adds to one queue.
#[derive(Clone, Copy)]
struct Added {
    queue: QueueId,
    count: u64,
    body_bytes: u64,
}

/// One request while its copies are made.
struct MoveState<'a> {
    connection: ConnectionId,
    channel: ChannelId,
    source: QueueId,
    request: &'a MoveRequest<'a>,
    /// The target queue, if the target is one.
    queue: Option<QueueId>,
    added: Vec<Added>,
}

fn impossible(text: core::fmt::Arguments<'_>) -> Fault {
    Fault::new(ReplyCode::PreconditionFailed, text)
}

impl Broker {
    /// Ensures that keys of browsed messages can be made.
    pub(crate) fn prepare_message_keys(&mut self) {
        if self.queues.message_keys_mut().needs_process_number() {
            let random = self.random_u64();
            self.queues.message_keys_mut().begin(random);
        }
    }

    /// Returns the keys of up to `count` messages at the front of a queue.
    ///
    /// # Errors
    /// The user may not read the queue, or there is no such queue.
    pub fn first_message_keys(
        &mut self,
        cx: &mut Context<'_>,
        user: &str,
        queue: QueueRef<'_>,
        count: u32,
    ) -> Result<Vec<MessageKey>, Fault> {
        let (connection, channel) = self.connect_user(cx, user, queue.vhost)?;
        let found = self.readable_queue(cx, connection, channel, queue.name);
        self.release(cx, connection);
        let queue = found?;
        self.prepare_message_keys();
        Ok(self.queues.first_keys(cx.messages, queue, count))
    }

    /// Returns a queue that the user of a connection may read.
    pub(crate) fn readable_queue(
        &self,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        channel: ChannelId,
        queue: &str,
    ) -> Result<QueueId, Fault> {
        let vhost = self.clients.channel(channel).vhost;
        self.check(cx.work, connection, vhost, Right::Read, Resource::Queue(queue))?;
        self.require_queue(connection, vhost, queue)
    }

    /// Moves or copies the ready messages of a queue that these keys name, in the order of the queue. The reply
    /// waits for `cx.awaited`.
    ///
    /// `read` has messages that were read from the log for this request. The caller releases them.
    ///
    /// # Errors
    /// Nothing was changed: the user lacks a permission, a queue or exchange does not exist or accepts no more,
    /// or there is no capacity.
    #[cold]
    pub fn move_messages(
        &mut self,
        cx: &mut Context<'_>,
        request: &MoveRequest<'_>,
        keys: &[MessageKey],
        read: &[BrowsedMessage],
    ) -> Result<MoveOutcome, Fault> {
        let (connection, channel) = self.connect_user(cx, request.user, request.vhost)?;
        let result = self.move_messages_of(cx, channel, request, keys, read);
        // Rolls an open transaction back.
        self.release(cx, connection);
        result
    }

    fn move_messages_of(
        &mut self,
        cx: &mut Context<'_>,
        channel: ChannelId,
        request: &MoveRequest<'_>,
        keys: &[MessageKey],
        read: &[BrowsedMessage],
    ) -> Result<MoveOutcome, Fault> {
        let connection = self.clients.connection_of(channel);
        let source = self.readable_queue(cx, connection, channel, request.queue)?;
        let queue = self.check_move_target(cx, connection, channel, request)?;
        let mut state = MoveState { connection, channel, source, request, queue, added: Vec::new() };
        if queue == Some(source) && !request.is_copy {
            return Err(impossible(format_args!("the messages are in this queue already")));
        }
        // Messages that a consumer can have now are the consumer's.
        self.catch_up(cx, source);
        let selected = self.queues.find_selected(cx.messages, source, keys);
        if let Some(run) = self.run_to_read(&selected, read) {
            return Ok(MoveOutcome::Read(run));
        }
        let originals: Vec<(MessageId, MessageKey)> =
            selected.iter().filter_map(|message| self.original(cx, message, read)).collect();
        if originals.is_empty() {
            return Ok(MoveOutcome::Moved(0));
        }
        let bytes: u64 = originals.iter().map(|(message, _)| u64::from(cx.messages.body_len(*message))).sum();
        if bytes > COPIED_BYTES_MAX && originals.len() > 1 {
            return Err(impossible(format_args!(
                "the bodies of these messages have {bytes} bytes; move at most {COPIED_BYTES_MAX} bytes at once"
            )));
        }
        self.select_transactions(channel)?;
        let mut targets = core::mem::take(&mut self.publishing.targets);
        let added = originals
            .iter()
            .try_for_each(|(message, _)| self.add_move_copy(cx, &mut state, *message, &mut targets));
        self.publishing.targets = targets;
        added?;
        let keys: Vec<MessageKey> = originals.iter().map(|(_, key)| *key).collect();
        let removal = Removal { queue: source, keys: &keys, chunks: Queues::removal_chunks(&selected) };
        self.commit_with_removal(cx, channel, (!request.is_copy).then_some(&removal))?;
        Ok(MoveOutcome::Moved(originals.len() as u32))
    }

    /// Checks whether the user may publish to the target. Returns the target queue, if the target is one.
    fn check_move_target(
        &mut self,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        channel: ChannelId,
        request: &MoveRequest<'_>,
    ) -> Result<Option<QueueId>, Fault> {
        let vhost = self.clients.channel(channel).vhost;
        let exchange = match request.target {
            MoveTarget::Queue(_) => "",
            MoveTarget::Exchange(exchange, _) => exchange,
        };
        self.check(cx.work, connection, vhost, Right::Write, Resource::Exchange(exchange))?;
        match request.target {
            MoveTarget::Queue(queue) => {
                let queue = self.queue_for(channel, queue)?;
                let record = self.queues.at(queue);
                match record.is_internal() {
                    true => Err(impossible(format_args!("messages cannot be moved to this queue"))),
                    false => Ok(Some(queue)),
                }
            }
            MoveTarget::Exchange(exchange, _) => {
                let exchange = self.publishable_exchange(vhost, exchange)?;
                // A message that reaches no queue when it is due would be lost.
                match self.topology.exchange(exchange).delayed_queue {
                    Some(_) => {
                        Err(impossible(format_args!("messages cannot be moved to a delayed exchange")))
                    }
                    None => Ok(None),
                }
            }
        }
    }

    /// Returns the first run of selected messages that must be read from the log.
    fn run_to_read(&self, selected: &[SelectedMessage], read: &[BrowsedMessage]) -> Option<LogRun> {
        let mut run: Option<LogRun> = None;
        for message in selected {
            let EntryContent::AbsentRun(offset, _) = message.content else { continue };
            let key = self.queues.key_in_log(message.level, offset);
            let is_read = read.iter().any(|read| read.key == key);
            match &mut run {
                None if is_read => {}
                None => {
                    let durable_index = &self.queues.at(message.level).durable_index;
                    run = Some(LogRun {
                        queue: message.level,
                        incarnation: durable_index.incarnation(),
                        start: offset,
                        count: 1,
                        redelivered_below: durable_index.redelivered_below(),
                        first_key: key,
                    });
                }
                Some(run)
                    if !is_read
                        && run.queue == message.level
                        && run.start + u64::from(run.count) == offset =>
                {
                    run.count += 1;
                }
                Some(_) => break,
            }
        }
        run
    }

    /// Returns a selected message, in memory or as it was read, and its key.
    fn original(
        &mut self,
        cx: &mut Context<'_>,
        selected: &SelectedMessage,
        read: &[BrowsedMessage],
    ) -> Option<(MessageId, MessageKey)> {
        match selected.content {
            EntryContent::InMemory(message) => {
                Some((message, self.queues.key_in_memory(cx.messages, selected.level, message)))
            }
            EntryContent::InMemoryAndLog(message, offset) => {
                Some((message, self.queues.key_in_log(selected.level, offset)))
            }
            EntryContent::AbsentRun(offset, _) => {
                let key = self.queues.key_in_log(selected.level, offset);
                read.iter().find(|read| read.key == key).map(|read| (read.message, key))
            }
        }
    }

    /// Adds a copy of a message to the transaction of the request.
    fn add_move_copy(
        &mut self,
        cx: &mut Context<'_>,
        state: &mut MoveState<'_>,
        message: MessageId,
        targets: &mut Vec<QueueId>,
    ) -> Result<(), Fault> {
        let (connection, channel) = (state.connection, state.channel);
        let copy = self.copy_for_move(cx, state, message)?;
        let routed = match state.queue {
            Some(queue) => {
                targets.clear();
                targets.push(queue);
                self.check_copied_user_id(cx, channel, copy).map(|()| copy)
            }
            None => self.parse_and_route(cx, channel, copy, targets),
        };
        let routed = routed.inspect_err(|_| cx.messages.release(copy))?;
        if routed != copy {
            cx.messages.release(copy);
        }
        if self.sessions.may_exclude_any() {
            self.select_subscribers(cx.work, Some(connection), cx.messages, routed, targets);
        }
        let checked = self.check_move_targets(cx, state, routed, targets).and_then(|()| {
            let share = self.publish_share(connection);
            let claim = Claim { share, on_full: OnFull::Wait };
            let capacity = self.check_transaction(cx, connection, routed, targets, claim);
            capacity.map_err(|hindrance| match hindrance {
                CannotPublish::Wait(shortage) => self.blocked(cx, shortage),
                CannotPublish::Fault(fault) => fault,
            })
        });
        if let Err(fault) = checked {
            cx.messages.release(routed);
            return Err(fault);
        }
        self.publish_in_transaction(cx, channel, routed, false, Some(targets))?;
        self.counters.received += 1;
        count_up(&mut self.clients.channel_mut(channel).counters.published);
        let exchange = self.topology.find_exchange(
            self.clients.channel(channel).vhost,
            match state.request.target {
                MoveTarget::Queue(_) => "",
                MoveTarget::Exchange(exchange, _) => exchange,
            },
        );
        if let Some(exchange) = exchange {
            self.topology.count_published(exchange, targets.len() as u32);
        }
        Ok(())
    }

    /// Returns a copy of a message, as if it were published to the target of the request.
    fn copy_for_move(
        &self,
        cx: &mut Context<'_>,
        state: &MoveState<'_>,
        message: MessageId,
    ) -> Result<MessageId, Fault> {
        let mut properties = vec![0; cx.messages.properties_len(message) as usize];
        let bytes = cx.messages.properties(message, &mut properties).to_vec();
        let flags = copy_flags(cx.messages, message, &Properties::trusted(&bytes));
        let key = match state.request.target {
            MoveTarget::Queue(queue) => queue.as_bytes().to_vec(),
            MoveTarget::Exchange(_, Some(key)) => key.to_vec(),
            MoveTarget::Exchange(_, None) => cx.messages.routing_key(message).to_vec(),
        };
        let exchange = match state.request.target {
            MoveTarget::Queue(_) => "",
            MoveTarget::Exchange(exchange, _) => exchange,
        };
        cx.work.charge(8);
        cx.work.charge_octets(cx.messages.body_len(message) as usize);
        let (flags, share) =
            (flags.with(MessageFlags::PARSE_PROPERTIES), self.content_share(state.connection));
        let copy =
            cx.messages.copy_as(message, MessageNames { exchange, routing_key: &key }, &bytes, flags, share);
        copy.map_err(|full| self.blocked(cx, full.into()))
    }

    fn check_copied_user_id(
        &mut self,
        cx: &mut Context<'_>,
        channel: ChannelId,
        copy: MessageId,
    ) -> Result<(), Fault> {
        let mut scratch = self.queues.lend_scratch();
        let properties = Properties::trusted(cx.messages.properties(copy, &mut scratch.properties));
        let checked = self.check_user_id(channel, &properties);
        self.queues.return_scratch(scratch);
        checked
    }

    /// Checks whether each target queue takes the copy and keeps it, with all earlier copies of the request.
    fn check_move_targets(
        &self,
        cx: &Context<'_>,
        state: &mut MoveState<'_>,
        copy: MessageId,
        targets: &[QueueId],
    ) -> Result<(), Fault> {
        if targets.is_empty() {
            let key = Lossy(cx.messages.routing_key(copy));
            return Err(impossible(format_args!("a message with the routing key '{key}' reaches no queue")));
        }
        if !state.request.is_copy && targets.contains(&state.source) {
            let key = Lossy(cx.messages.routing_key(copy));
            return Err(impossible(format_args!(
                "a message with the routing key '{key}' would reach the queue that it comes from"
            )));
        }
        let mut kept = targets.to_vec();
        let (accepting_count, refused_by) = self.keep_accepting(cx.messages, copy, &mut kept);
        if accepting_count == 0 && refused_by == RefusedBy::NoQueue {
            return Err(impossible(format_args!("no target queue would keep a message: it expires at once")));
        }
        let body_len = u64::from(cx.messages.body_len(copy));
        for &queue in targets {
            let place = state.added.iter().position(|added| added.queue == queue).unwrap_or_else(|| {
                state.added.push(Added { queue, count: 0, body_bytes: 0 });
                state.added.len() - 1
            });
            let added = &mut state.added[place];
            (added.count, added.body_bytes) = (added.count + 1, added.body_bytes + body_len);
            if self.exceeds_length(*added, state.queue.is_some()) {
                let name = &self.queues.at(queue).name;
                return Err(impossible(format_args!("queue '{name}' would be over its length limit")));
            }
        }
        Ok(())
    }

    /// Returns whether added messages would exceed the length limit of their queue, so that some are refused or
    /// dropped. If the target is an exchange, a queue that drops its oldest messages (`drop-head`) only must
    /// have room for the added messages.
    fn exceeds_length(&self, added: Added, is_target: bool) -> bool {
        let Added { queue, count, body_bytes } = added;
        let (records, settings) = (self.queues.records(), &self.queues.at(queue).settings);
        let drops_oldest = settings.overflow == Overflow::DropHead && !is_target;
        let (ready, ready_bytes) = match drops_oldest {
            true => (0, 0),
            false => (
                u64::from(records.ready_in(queue)),
                records.sum_over_levels(queue, |level| level.backlog.body_bytes()),
            ),
        };
        ready + count > settings.max_length || ready_bytes + body_bytes > settings.max_length_bytes
    }

    /// Returns the fault for a copy that cannot be published now, because publishers must wait.
    fn blocked(&self, cx: &Context<'_>, shortage: Shortage) -> Fault {
        let waiters = WaitingPublishers::none_for(shortage);
        let why = self.views().explain(cx.pending_writes, cx.messages, waiters, DiskFacts::default());
        Fault::new(ReplyCode::ResourceError, format_args!("publishers are blocked: {why}"))
    }

    /// Returns whether a virtual host has an exchange of this name.
    pub fn has_exchange(&self, vhost: &str, name: &str) -> bool {
        let vhost = self.access.find_vhost(vhost);
        vhost.is_some_and(|vhost| self.topology.find_exchange(vhost, name).is_some())
    }

    /// Returns the route of a message with this routing key and these headers. Nothing is published or counted.
    ///
    /// # Errors
    /// There is no such exchange, or the routing takes too long.
    #[cold]
    pub fn show_route(
        &mut self,
        cx: &mut Context<'_>,
        vhost: &str,
        exchange: &str,
        routing_key: &[u8],
        headers: Table<'_>,
    ) -> Result<ShownRoute, Fault> {
        let missing =
            || Fault::new(ReplyCode::NotFound, format_args!("no exchange '{exchange}' in vhost '{vhost}'"));
        let vhost = self.access.find_vhost(vhost).ok_or_else(missing)?;
        let exchange = self.topology.find_exchange(vhost, exchange).ok_or_else(missing)?;
        // A delayed message is routed without this header when it is due.
        let mut bytes = vec![0; headers.bytes_len() + 4];
        let mut writer = Writer::new(&mut bytes);
        let mut others = headers.iter().filter(|(name, _)| *name != b"x-delay");
        let written = writer.table(|table| others.try_for_each(|(name, value)| table.value(name, value)));
        let headers = match written {
            Ok(()) => Table::trusted(&writer.written()[4..]),
            Err(Full) => headers,
        };
        let mut targets = core::mem::take(&mut self.publishing.targets);
        let routed = self.republisher().route(cx.work, exchange, routing_key, headers, &mut targets);
        let shown = |queue: &&QueueId| !self.queues.at(**queue).is_internal();
        let queues = targets.iter().filter(shown).map(|queue| self.queues.at(*queue).name.clone()).collect();
        let exchanges = self.topology.passed_exchanges().collect();
        targets.clear();
        self.publishing.targets = targets;
        routed.map(|()| ShownRoute { queues, exchanges })
    }
}
