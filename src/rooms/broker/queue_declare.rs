//! Declaring, binding, purging and deleting queues.
//!
//! Always true: an exclusive queue is touched by its own connection alone; an auto-delete queue goes with
//! its last consumer, but not before it had one; a deleted queue's name is free at once.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::command::{ChannelId, ConnectionId, Name, Outcome, QueueId, VhostId};
use crate::error::{Fault, ReplyCode};
use crate::journal::DestinationName;
use crate::wire::field::{Table, Value};

use super::access::{Right, Thing};
use super::arguments::{self, QueueFlags, QueueSettings, inequivalent_flag};
use super::consumers::ConsumerState;
use super::faults::{check_deletable, version_for};
use super::job::Job;
use super::policy::Applied;
use super::queues::Logged;
use super::queues::Queue;
use super::queues::first_rank;
use super::quota::{Declared, Declarer, Room};
use super::state::REPLY_TO;
use super::topology::{BindingSpec, Destination};
use super::words::QueueInWords;
use super::work::Work;
use super::{Broker, Context};

/// queue.declare's fields.
pub(super) struct QueueDeclaration<'a> {
    pub(super) queue: &'a str,
    pub(super) durable: bool,
    pub(super) exclusive: bool,
    pub(super) auto_delete: bool,
    pub(super) arguments: &'a [u8],
}

impl QueueDeclaration<'_> {
    /// An exclusive queue dies with its connection, so durable means nothing for it.
    const fn outlives_broker(&self) -> bool {
        self.durable && !self.exclusive
    }

    const fn flags(&self) -> QueueFlags {
        QueueFlags { durable: self.durable, exclusive: self.exclusive, auto_delete: self.auto_delete }
    }
}

impl Broker {
    pub(super) fn queue_in_words<'a>(&'a self, vhost: VhostId, name: &'a str) -> QueueInWords<'a> {
        QueueInWords { name, vhost: self.access.vhost_name(vhost) }
    }

    /// The queue, if this connection may use it.
    pub(super) fn require_queue(
        &self,
        connection: ConnectionId,
        vhost: VhostId,
        name: &str,
    ) -> Result<QueueId, Fault> {
        let queue = self.queues.find_queue(vhost, name).filter(|queue| !self.queues.at(*queue).hidden);
        let queue = queue.ok_or_else(|| {
            Fault::new(ReplyCode::NotFound, format_args!("no {}", self.queue_in_words(vhost, name)))
        })?;
        self.check_exclusive(connection, queue)?;
        Ok(queue)
    }

    fn check_exclusive(&self, connection: ConnectionId, queue: QueueId) -> Result<(), Fault> {
        let record = self.queues.at(queue);
        match record.exclusive_owner {
            Some(owner) if owner != connection => Err(self.locked(queue)),
            _ => Ok(()),
        }
    }

    fn locked(&self, queue: QueueId) -> Fault {
        let record = self.queues.at(queue);
        Fault::new(
            ReplyCode::ResourceLocked,
            format_args!(
                "cannot obtain exclusive access to locked {}. It could be originally declared on another \
                 connection or the exclusive property value does not match that of the original declaration.",
                self.queue_in_words(record.vhost, &record.name)
            ),
        )
    }

    /// queue.declare with passive set: who is told that it is there may rely on it.
    pub(super) fn check_queue_exists(
        &mut self,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        vhost: VhostId,
        name: &str,
    ) -> Result<Outcome, Fault> {
        if name.starts_with(REPLY_TO) {
            return self.check_reply_queue(vhost, name);
        }
        let queue = self.require_queue(connection, vhost, name)?;
        cx.await_defined(self.queues.at(queue).logged.defined());
        self.queues.touch_queue(cx.journal, queue);
        Ok(self.declared(queue))
    }

    /// Declaring a reply queue says whether somebody still waits for the reply.
    fn check_reply_queue(&self, vhost: VhostId, name: &str) -> Result<Outcome, Fault> {
        let exists = name == REPLY_TO || self.queues.find_queue(vhost, name).is_some();
        if exists {
            return Ok(Outcome::QueueDeclared { queue: name.into(), message_count: 0, consumer_count: 1 });
        }
        Err(Fault::new(ReplyCode::NotFound, format_args!("no {}", self.queue_in_words(vhost, name))))
    }

    pub(super) fn declare_queue(
        &mut self,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        vhost: VhostId,
        declaration: &QueueDeclaration<'_>,
    ) -> Result<Outcome, Fault> {
        if declaration.queue.starts_with(REPLY_TO) {
            return self.check_reply_queue(vhost, declaration.queue);
        }
        if declaration.queue.starts_with("amq.") {
            return Err(Fault::new(
                ReplyCode::AccessRefused,
                format_args!("queue name '{}' contains reserved prefix 'amq.*'", declaration.queue),
            ));
        }
        if declaration.queue.is_empty() {
            let name = self.unique_name("amq.gen-");
            let named = QueueDeclaration { queue: &name, ..*declaration };
            self.check(cx.work, connection, vhost, Right::Configure, Thing::Queue(&name))?;
            return self.create_declared(cx, connection, vhost, &named);
        }
        self.check(cx.work, connection, vhost, Right::Configure, Thing::Queue(declaration.queue))?;
        match self.queues.find_queue(vhost, declaration.queue) {
            Some(queue) => self.compare_queue(cx, connection, vhost, queue, declaration),
            None => self.create_declared(cx, connection, vhost, declaration),
        }
    }

    fn create_declared(
        &mut self,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        vhost: VhostId,
        declaration: &QueueDeclaration<'_>,
    ) -> Result<Outcome, Fault> {
        self.check_dead_letters(cx.work, connection, vhost, declaration)?;
        let queue = self.create_checked(cx, Some(connection), vhost, declaration)?;
        Ok(self.declared(queue))
    }

    /// Whether a connection may have the messages that this queue gives up go where it says.
    fn check_dead_letters(
        &self,
        work: &mut Work,
        connection: ConnectionId,
        vhost: VhostId,
        declaration: &QueueDeclaration<'_>,
    ) -> Result<(), Fault> {
        let arguments = Table::trusted(declaration.arguments);
        if let Some(Value::LongStr(exchange)) = arguments.get("x-dead-letter-exchange") {
            let exchange = core::str::from_utf8(exchange).unwrap_or_default();
            self.check(work, connection, vhost, Right::Read, Thing::Queue(declaration.queue))?;
            self.check(work, connection, vhost, Right::Write, Thing::Exchange(exchange))?;
        }
        Ok(())
    }

    /// Makes a queue whose name is free, if its arguments and the limits allow it.
    pub(super) fn create_checked(
        &mut self,
        cx: &mut Context<'_>,
        owner: Option<ConnectionId>,
        vhost: VhostId,
        declaration: &QueueDeclaration<'_>,
    ) -> Result<QueueId, Fault> {
        let words = self.queue_in_words(vhost, declaration.queue);
        arguments::check(words, Table::trusted(declaration.arguments), declaration.flags())?;
        self.access.check_queue_limit(vhost, declaration.queue)?;
        let queue = self.create_queue(cx, owner, vhost, declaration, false)?;
        self.counters.queues_declared += 1;
        self.counters.queues_created += 1;
        Ok(queue)
    }

    fn compare_queue(
        &mut self,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        vhost: VhostId,
        queue: QueueId,
        declaration: &QueueDeclaration<'_>,
    ) -> Result<Outcome, Fault> {
        let record = self.queues.at(queue);
        let is_mine = record.exclusive_owner == Some(connection);
        if record.exclusive_owner.is_some() && !is_mine || declaration.exclusive != is_mine {
            return Err(self.locked(queue));
        }
        if record.is_rebuilt && declaration.durable {
            self.check_dead_letters(cx.work, connection, vhost, declaration)?;
        }
        self.compare_properties(cx, vhost, queue, declaration)?;
        self.counters.queues_declared += 1;
        self.queues.touch_queue(cx.journal, queue);
        Ok(self.declared(queue))
    }

    pub(super) fn compare_properties(
        &mut self,
        cx: &mut Context<'_>,
        vhost: VhostId,
        queue: QueueId,
        declaration: &QueueDeclaration<'_>,
    ) -> Result<(), Fault> {
        let words = self.queue_in_words(vhost, declaration.queue);
        let record = self.queues.at(queue);
        if record.is_rebuilt && declaration.outlives_broker() {
            arguments::check(words, Table::trusted(declaration.arguments), declaration.flags())?;
            return self.redefine_rebuilt(cx, vhost, queue, declaration);
        }
        let flags = [
            ("durable", declaration.outlives_broker(), record.durable),
            ("auto_delete", declaration.auto_delete, record.auto_delete),
        ];
        if let Some((name, received, current)) = flags.into_iter().find(|(_, one, two)| one != two) {
            return Err(inequivalent_flag(name, &words, &received, &current));
        }
        arguments::compare(words, Table::trusted(declaration.arguments), Table::trusted(&record.arguments))?;
        cx.await_defined(record.logged.defined());
        Ok(())
    }

    fn declared(&self, queue: QueueId) -> Outcome {
        let record = self.queues.at(queue);
        Outcome::QueueDeclared {
            queue: record.name.clone(),
            message_count: self.queues.ready_in(queue) + self.recovery.adopted_by(queue),
            consumer_count: record.audience.len(),
        }
    }

    pub(super) fn create_queue(
        &mut self,
        cx: &mut Context<'_>,
        owner: Option<ConnectionId>,
        vhost: VhostId,
        declaration: &QueueDeclaration<'_>,
        hidden: bool,
    ) -> Result<QueueId, Fault> {
        let vhost_name = self.access.vhost_name(vhost);
        let at =
            self.recovery.orphan_of(vhost_name, declaration.queue).filter(|_| declaration.outlives_broker());
        let orphan = at.map(|at| self.recovery.take_orphan(at));
        let incarnation = orphan.as_ref().map(|orphan| orphan.incarnation);
        let created = self.create_as(cx, owner, vhost, declaration, (hidden, incarnation));
        self.end_creation(created, orphan)
    }

    /// Makes a queue, perhaps one that the store has messages of.
    pub(super) fn create_as(
        &mut self,
        cx: &mut Context<'_>,
        owner: Option<ConnectionId>,
        vhost: VhostId,
        declaration: &QueueDeclaration<'_>,
        (hidden, incarnation): (bool, Option<u64>),
    ) -> Result<QueueId, Fault> {
        let durable = declaration.outlives_broker();
        self.recovery.check_not_left_out(
            &self.access,
            vhost,
            DestinationName::Queue(declaration.queue),
            durable,
        )?;
        let applied = match hidden {
            true => Applied::default(),
            false => self.policies_for(cx.work, vhost, declaration.queue, declaration.arguments),
        };
        let settings = QueueSettings::of(&self.policies.terms(declaration.arguments, applied));
        let mut record = Queue::new(vhost, declaration.queue, declaration.arguments, settings);
        record.applied = applied;
        record.durable = durable;
        record.auto_delete = declaration.auto_delete;
        record.exclusive_owner = owner.filter(|_| declaration.exclusive);
        record.hidden = hidden;
        let incarnation = incarnation.unwrap_or(version_for(cx.journal, record.durable)?);
        record.logged = Logged::as_incarnation(incarnation);
        record.rank = first_rank(cx.journal, &record, 0);
        let queue = self.add_queue(cx, record)?;
        self.queues.append_queue(cx, &self.access, queue.index(), true);
        self.queues.touch_queue(cx.journal, queue);
        Ok(queue)
    }

    /// Counts something that is about to be declared for a virtual host, with its names.
    ///
    /// # Errors
    /// There is no more room, or who declares it has its share.
    pub(super) fn declare_quota(
        &mut self,
        declared: Declared,
        names_bytes: usize,
        who: (VhostId, Option<Declarer>),
    ) -> Result<(), Fault> {
        self.quota.declare(declared, names_bytes, who, Room { queues: self.queues.room() })
    }

    /// Puts a queue where it is found.
    pub(super) fn add_queue(&mut self, cx: &mut Context<'_>, mut record: Queue) -> Result<QueueId, Fault> {
        let bytes = record.name.len() + record.arguments.len();
        let (vhost, owner) = (record.vhost, record.exclusive_owner);
        let (hidden, is_rebuilt) = (record.hidden, record.is_rebuilt);
        let consumer_timeout_ms = record.settings.consumer_timeout_ms;
        self.access.check_vhost_alive(vhost)?;
        self.declare_quota(Declared::Queue, bytes, (vhost, cx.declarer))?;
        record.declarer = cx.declarer;
        let queue = self.queues.insert(record)?;
        self.access.hold_vhost(vhost);
        if is_rebuilt {
            self.recovery.rebuilt_came();
        }
        self.watch.note_timeout(consumer_timeout_ms);
        if !hidden {
            self.access.count_queue(vhost, true);
        }
        if let Some(owner) = owner {
            let owned = &mut self.consumers.connection_mut(owner).exclusive_queues;
            self.queues.enter_owned(owned, queue);
        }
        self.topology.revise();
        Ok(queue)
    }

    pub(super) fn bind_queue(
        &mut self,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        vhost: VhostId,
        queue: &str,
        spec: &BindingSpec<'_>,
    ) -> Result<Outcome, Fault> {
        self.check_bind(cx.work, connection, vhost, Thing::Queue(queue), spec)?;
        let source = self.topology.require_exchange(&self.access, vhost, spec.source)?;
        let queue = self.require_queue(connection, vhost, queue)?;
        self.bind(cx, &spec.between(source, Destination::Queue(queue)))
    }

    /// Unbinding what is not there is fine, whatever of it is missing.
    pub(super) fn unbind_queue(
        &mut self,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        vhost: VhostId,
        queue: &str,
        spec: &BindingSpec<'_>,
    ) -> Result<Outcome, Fault> {
        self.check_bind(cx.work, connection, vhost, Thing::Queue(queue), spec)?;
        if let Some(queue) = self.queues.find_queue(vhost, queue)
            && let Some(binding) = self.topology.find_binding(vhost, spec, Destination::Queue(queue))
        {
            self.check_exclusive(connection, queue)?;
            self.unbind(cx, binding)?;
        } else {
            cx.await_others();
        }
        Ok(Outcome::Done)
    }

    pub(super) fn purge_queue(
        &mut self,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        vhost: VhostId,
        name: &str,
    ) -> Result<Outcome, Fault> {
        self.check(cx.work, connection, vhost, Right::Read, Thing::Queue(name))?;
        let queue = self.require_queue(connection, vhost, name)?;
        let (count, taken) = self.queues.purge(queue);
        for (queue, parts) in taken {
            self.begin_job(connection, Job::Purge { queue, parts });
        }
        Ok(Outcome::MessageCount(count))
    }

    pub(super) fn delete_queue_by_name(
        &mut self,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        vhost: VhostId,
        name: &str,
        (if_unused, if_empty): (bool, bool),
    ) -> Result<Outcome, Fault> {
        self.check(cx.work, connection, vhost, Right::Configure, Thing::Queue(name))?;
        if self.queues.find_queue(vhost, name).is_none() {
            if !self.delete_left_out(cx, vhost, DestinationName::Queue(name), if_unused || if_empty)? {
                cx.await_others();
            }
            return Ok(Outcome::MessageCount(0));
        }
        let queue = self.require_queue(connection, vhost, name)?;
        let record = self.queues.at(queue);
        let problem = match () {
            () if if_unused && !record.audience.is_empty() => "in use",
            () if if_empty && self.queues.ready_in(queue) > 0 => "not empty",
            () => {
                let count = self.queues.ready_in(queue);
                check_deletable(cx.journal, record.logged.is_on())?;
                self.retire_queue(cx, queue);
                self.begin_job(connection, Job::Queue(queue));
                return Ok(Outcome::MessageCount(count));
            }
        };
        let words = self.queue_in_words(vhost, name);
        Err(Fault::new(ReplyCode::PreconditionFailed, format_args!("{words} {problem}")))
    }

    /// Takes the name away and stops deliveries; a job clears the rest.
    pub(super) fn retire_queue(&mut self, cx: &mut Context<'_>, queue: QueueId) {
        let index = queue.index();
        // Before it, so that none of them outlives it in the log.
        for level in self.queues.retire_levels(cx.journal, queue) {
            self.jobs.begin(Job::Queue(level));
        }
        self.queues.append_queue(cx, &self.access, index, false);
        self.queues.append_spilled_gone(cx.journal, index);
        self.queues.retire(queue);
        let record = self.queues.at_mut(queue);
        let (vhost, hidden, owner) = (record.vhost, record.hidden, record.exclusive_owner.take());
        if record.is_rebuilt {
            self.recovery.rebuilt_gone();
        }
        if !hidden {
            self.counters.queues_deleted += 1;
            self.access.count_queue(vhost, false);
        }
        if let Some(owner) = owner {
            self.queues.leave_owned(&mut self.consumers.connection_mut(owner).exclusive_queues, queue);
        }
        self.topology.revise();
    }

    /// Frees the record of a cleared queue once neither a delivery nor a level refers to it.
    pub(super) fn free_queue_if_done(&mut self, queue: QueueId) {
        let mut next = Some(queue);
        while let Some((record, whole)) = next.and_then(|queue| self.queues.take_if_done(queue)) {
            let bytes = record.name.len() + record.arguments.len();
            self.quota.undeclare(Declared::Queue, bytes, (record.vhost, record.declarer));
            if !record.is_level() {
                self.release_vhost(record.vhost);
            }
            next = whole;
        }
    }

    /// One job less whose messages a queue waits for: what stands first now stays so.
    pub(super) fn end_returning(&mut self, queue: QueueId) {
        self.queues.end_returning(queue);
        self.free_queue_if_done(queue);
    }

    /// A name nobody has and nobody can guess, of RabbitMQ's shape: 128 random bits in base64.
    pub(super) fn unique_name(&mut self, prefix: &str) -> Name {
        let mut random = [0; 16];
        (self.entropy)(&mut random);
        let mut digits = [0; 22];
        let written = URL_SAFE_NO_PAD.encode_slice(random, &mut digits);
        assert_eq!(written, Ok(digits.len()), "16 bytes are 22 digits");
        let digits = core::str::from_utf8(&digits).unwrap_or_default();
        // Prefix and digits fit into any name.
        let mut name = Name::try_from(prefix).unwrap_or_default();
        let _ = name.push_str(digits);
        name
    }

    /// The hidden queue behind amq.rabbitmq.reply-to of this channel.
    pub(super) fn reply_queue_of(&self, channel: ChannelId) -> Option<QueueId> {
        let mut at = self.consumers.next_of_channel(channel, None);
        while let Some(index) = at {
            let consumer = self.consumers.at(index);
            let queue = consumer.queue;
            if consumer.state == ConsumerState::Active && self.queues.at(queue).hidden {
                return Some(queue);
            }
            at = self.consumers.next_of_channel(channel, Some(index));
        }
        None
    }
}
