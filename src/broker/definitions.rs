//! Declares and deletes exchanges, queues and bindings, and applies policies to them.
//!
//! ```text
//! declare ──→ permissions, arguments, capacity, policies ──→ the record ──→ the log
//! delete  ──→ the name is freed at once ──→ the log ──→ a job clears the rest
//! policy set, cleared ──→ a job, in steps ──→ queues, exchanges: matching policies, new settings
//! ```
//!
//! # Invariants
//! - The order of the checks is RabbitMQ's, because clients see which one fails first.
//! - Only its own connection can use an exclusive queue.
//! - An auto-delete queue is deleted with its last consumer, but not before it had one.
//! - The name of a deleted queue is free at once.
//! - A queue's settings follow from its arguments and policies. After a change of policies, a job updates the
//!   settings.

use leveret_amqp::field::{Table, Value};
use leveret_amqp::reply_text::inequivalent_flag;
use leveret_core::command::{
    AppliedPolicies, BindingId, ConnectionId, DefinitionAnswer, ExchangeId, QueueId, VhostId,
};
use leveret_core::definition::DestinationName;
use leveret_core::error::{Fault, ReplyCode};
use leveret_core::quota::Declared;
use leveret_core::work::Work;
use leveret_queues::{
    DurableIndex, EffectivePolicy, PeekedExpiry, Queue, QueueKind, QueueSettings, SLOTS, first_rank,
    is_quorum,
};
use leveret_routing::{
    BindingIdentity, BindingSpec, Destination, ExchangeDeclaration, ExchangeKind, NewExchange,
    check_deletable_name, refuse_default,
};
use leveret_storage::PendingWrites;
use leveret_storage::faults::{check_deletable, version_for};

use super::access::{PREDECLARED, Resource, Right, Topic};
use super::arguments::{self, QueueFlags};
use super::job::{Job, Sweep, spend};
use super::orphans::Orphan;
use super::policy::{Listener, Subject};
use super::state::REPLY_TO;
use super::{Broker, Context};

/// The fields of `queue.declare`.
#[derive(Clone, Copy, Debug)]
pub struct QueueDeclaration<'a> {
    /// Name of the queue.
    pub queue: &'a str,
    /// Whether it survives a restart of the broker.
    pub durable: bool,
    /// Whether only the connection that declares it may use it.
    pub exclusive: bool,
    /// Whether it is deleted with its last consumer.
    pub auto_delete: bool,
    /// Its arguments, encoded as an AMQP table.
    pub arguments: &'a [u8],
}

/// A queue that is about to be created.
pub(crate) struct NewQueue<'a> {
    /// The connection that declares it, which owns an exclusive queue.
    pub(crate) owner: Option<ConnectionId>,
    pub(crate) vhost: VhostId,
    pub(crate) declaration: &'a QueueDeclaration<'a>,
    pub(crate) kind: QueueKind,
    /// The incarnation of the orphan whose messages the queue adopts; `None` if it adopts none.
    pub(crate) incarnation: Option<u64>,
}

/// The argument that names the type of a queue.
const TYPE: &str = "x-queue-type";

impl QueueDeclaration<'_> {
    /// Returns whether the queue survives a restart. An exclusive queue is deleted with its connection, so
    /// its durable flag has no effect.
    const fn outlives_broker(&self) -> bool {
        self.durable && !self.exclusive
    }

    pub(crate) const fn flags(&self) -> QueueFlags {
        QueueFlags { durable: self.durable, exclusive: self.exclusive, auto_delete: self.auto_delete }
    }
}

/// Conditions for deleting a queue.
#[derive(Clone, Copy, Default, Debug)]
pub struct DeleteIf {
    /// The queue has no consumers.
    pub unused: bool,
    /// The queue has no ready messages.
    pub empty: bool,
}

/// Units of matching work that cost as much as processing one record in a job.
const UNITS_PER_RECORD: u32 = 8;

impl Broker {
    // ---- exchanges and bindings

    /// Returns the exchange of this name.
    ///
    /// # Errors
    /// 404: there is no such exchange.
    pub(crate) fn require_exchange(&self, vhost: VhostId, name: &str) -> Result<ExchangeId, Fault> {
        self.topology.require_exchange(vhost, self.access.exchange_text(vhost, name))
    }

    /// Handles a passive `exchange.declare`. The reply waits until the definition of the exchange is durable.
    pub(crate) fn check_exchange_exists(
        &self,
        cx: &mut Context<'_>,
        vhost: VhostId,
        name: &str,
    ) -> Result<(), Fault> {
        refuse_default(name)?;
        let exchange = self.require_exchange(vhost, name)?;
        cx.await_defined(self.topology.exchange(exchange).definition_batch);
        Ok(())
    }

    pub(crate) fn declare_exchange(
        &mut self,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        vhost: VhostId,
        declaration: &ExchangeDeclaration<'_>,
    ) -> Result<(), Fault> {
        let name = declaration.exchange;
        declaration.check_type_and_name()?;
        self.check(cx.work, connection, vhost, Right::Configure, Resource::Exchange(name))?;
        if let Some(exchange) = self.topology.find_exchange(vhost, name) {
            self.topology.compare_exchange(cx, self.access.vhost_name(vhost), exchange, declaration)?;
            return Ok(());
        }
        declaration.check_name()?;
        if let Some(alternate) = declaration.alternate(self.access.vhost_name(vhost))? {
            self.check(cx.work, connection, vhost, Right::Read, Resource::Exchange(name))?;
            self.check(cx.work, connection, vhost, Right::Write, Resource::Exchange(alternate))?;
        }
        self.create_exchange(cx, vhost, declaration)
    }

    /// Creates an exchange whose name is free.
    pub(crate) fn create_exchange(
        &mut self,
        cx: &mut Context<'_>,
        vhost: VhostId,
        declaration: &ExchangeDeclaration<'_>,
    ) -> Result<(), Fault> {
        declaration.check_name()?;
        declaration.new_kind()?;
        declaration.alternate(self.access.vhost_name(vhost))?;
        let name = DestinationName::Exchange(declaration.exchange);
        self.recovery.check_not_left_out(&self.access, vhost, name, declaration.durable)?;
        let version = version_for(cx.pending_writes, declaration.durable)?;
        if version != 0 && declaration.is_delayed() {
            // The log identifies the slots of a delayed exchange by the versions behind the exchange's own.
            cx.pending_writes.next_versions(SLOTS.into());
        }
        let exchange = self.add_exchange(cx, vhost, declaration, version)?;
        self.topology.append_exchange(cx, self.access.vhost_name(vhost), exchange, true);
        Ok(())
    }

    /// Adds a checked exchange under its name, with its hidden queue and its policies.
    pub(crate) fn add_exchange(
        &mut self,
        cx: &mut Context<'_>,
        vhost: VhostId,
        declaration: &ExchangeDeclaration<'_>,
        version: u64,
    ) -> Result<ExchangeId, Fault> {
        self.access.check_vhost_alive(vhost)?;
        let (bytes, declarer) = (declaration.bytes(), cx.declarer);
        self.declare_quota(Declared::Exchange, bytes, declarer)?;
        let is_delayed = declaration.is_delayed();
        let delayed_queue =
            is_delayed.then(|| self.add_delayed_queue(cx, vhost, version, declaration.durable));
        let delayed_queue = delayed_queue
            .transpose()
            .inspect_err(|_| self.quota.undeclare(Declared::Exchange, bytes, declarer))?;
        self.access.add_vhost_reference(vhost);
        let new =
            NewExchange { vhost, declaration: *declaration, version, declarer: cx.declarer, delayed_queue };
        let exchange = self.topology.insert_exchange(&new);
        self.apply_to_new_exchange(cx.work, exchange);
        if let Some(queue) = delayed_queue {
            self.queues.records_mut().set_delayed_exchange(queue, exchange);
        }
        Ok(exchange)
    }

    pub(crate) fn delete_exchange(
        &mut self,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        vhost: VhostId,
        name: &str,
        if_unused: bool,
    ) -> Result<(), Fault> {
        check_deletable_name(self.access.exchange_text(vhost, name))?;
        self.check(cx.work, connection, vhost, Right::Configure, Resource::Exchange(name))?;
        let Some(exchange) = self.topology.find_exchange(vhost, name) else {
            if !self.delete_left_out(cx, vhost, DestinationName::Exchange(name), if_unused)? {
                cx.await_all_changes();
            }
            return Ok(());
        };
        if if_unused && self.topology.is_source(exchange) {
            return Err(Fault::new(
                ReplyCode::PreconditionFailed,
                format_args!("{} in use", self.access.exchange_text(vhost, name)),
            ));
        }
        check_deletable(cx.pending_writes, self.topology.exchange(exchange).version != 0)?;
        self.retire_exchange(cx, exchange);
        self.begin_job(connection, Job::Exchange(exchange));
        Ok(())
    }

    /// Frees the name of a deleted exchange. The record is freed when its bindings are cleared.
    pub(crate) fn retire_exchange(&mut self, cx: &mut Context<'_>, exchange: ExchangeId) {
        if let Some(queue) = self.topology.exchange(exchange).delayed_queue {
            // The hidden queue is deleted first, so that no message in it outlives the exchange in the log.
            self.retire_delayed_queue(cx, queue);
        }
        let vhost = self.access.vhost_name(self.topology.exchange(exchange).vhost);
        self.topology.retire_exchange(cx, vhost, exchange);
    }

    /// Frees an exchange that is retired and has no bindings any more.
    pub(crate) fn free_exchange(&mut self, exchange: ExchangeId) {
        let vhost = self.topology.free_exchange(&mut self.quota, exchange);
        self.remove_vhost_reference(vhost);
    }

    /// Creates the hidden queue of a delayed exchange with this version.
    pub(crate) fn add_delayed_queue(
        &mut self,
        cx: &mut Context<'_>,
        vhost: VhostId,
        version: u64,
        durable: bool,
    ) -> Result<QueueId, Fault> {
        let settings = QueueSettings::of(&self.policies.effective_policy(&[], AppliedPolicies::default()));
        self.declare_quota(Declared::Queue, 0, cx.declarer)?;
        let mut record = Queue::delayed_queue(cx.pending_writes, vhost, settings, version, durable);
        record.declared.declarer = cx.declarer;
        let queue = self.queues.records_mut().insert_hidden(record);
        self.access.add_vhost_reference(vhost);
        Ok(queue)
    }

    /// Retires the hidden queue of a deleted exchange with its delayed messages.
    #[cold]
    pub(crate) fn retire_delayed_queue(&mut self, cx: &mut Context<'_>, queue: QueueId) {
        for level in self.queues.records_mut().retire_levels(cx.pending_writes, queue) {
            self.jobs.begin(Job::Queue(level));
        }
        let gone = self.queues.retire_delayed_queue(cx.pending_writes, queue);
        self.jobs.begin(Job::Queue(queue));
        for held in gone {
            self.republisher().settle_held(cx, held);
        }
        while let Some(queue) = self.republish.next_maybe_unreferenced() {
            self.free_queue_if_done(queue);
        }
    }

    /// Checks whether a connection may bind a destination to a source, or unbind it.
    pub(crate) fn check_bind(
        &self,
        work: &mut Work,
        connection: ConnectionId,
        vhost: VhostId,
        destination: Resource<'_>,
        spec: &BindingSpec<'_>,
    ) -> Result<(), Fault> {
        self.check(work, connection, vhost, Right::Write, destination)?;
        if let Resource::Exchange(name) = destination {
            refuse_default(name)?;
        }
        refuse_default(spec.source)?;
        self.check(work, connection, vhost, Right::Read, Resource::Exchange(spec.source))?;
        let Some(source) = self.topology.find_exchange(vhost, spec.source) else { return Ok(()) };
        self.check_key(work, connection, source, Right::Read, spec.routing_key.as_bytes())
    }

    /// Returns whether routing keys are to be checked when a connection's user writes to or reads from an
    /// exchange.
    #[inline]
    pub(crate) fn checks_routing_keys(&self, connection: ConnectionId, exchange: ExchangeId) -> bool {
        self.access.limits_topics(&self.clients.connection(connection).identity)
            && self.topology.exchange(exchange).kind == ExchangeKind::Topic
    }

    /// Checks whether the user of a connection may write to, or read from, an exchange with this routing key.
    pub(crate) fn check_key(
        &self,
        work: &mut Work,
        connection: ConnectionId,
        exchange: ExchangeId,
        right: Right,
        key: &[u8],
    ) -> Result<(), Fault> {
        if !self.checks_routing_keys(connection, exchange) {
            return Ok(());
        }
        let record = self.topology.exchange(exchange);
        let client_id = self.sessions.client_id_of(connection, &self.clients);
        let topic = Topic { vhost: record.vhost, exchange: &record.name, client_id };
        self.access.check_topic(work, &self.clients.connection(connection).identity, topic, right, key)
    }

    /// Handles `exchange.bind` and `queue.bind`, for a source and destination that were found.
    pub(crate) fn bind(&mut self, cx: &mut Context<'_>, new: &BindingIdentity<'_>) -> Result<(), Fault> {
        let vhost = self.access.vhost_name(self.topology.exchange(new.source).vhost);
        self.topology.bind(cx, vhost, &mut self.quota, self.queues.records_mut(), new)
    }

    pub(crate) fn bind_exchange(
        &mut self,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        vhost: VhostId,
        destination: &str,
        spec: &BindingSpec<'_>,
    ) -> Result<(), Fault> {
        self.check_bind(cx.work, connection, vhost, Resource::Exchange(destination), spec)?;
        let source = self.require_exchange(vhost, spec.source)?;
        let destination = Destination::Exchange(self.require_exchange(vhost, destination)?);
        self.bind(cx, &spec.between(source, destination))
    }

    /// Handles `exchange.unbind`. A missing binding, exchange or queue is not an error.
    pub(crate) fn unbind_exchange(
        &mut self,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        vhost: VhostId,
        destination: &str,
        spec: &BindingSpec<'_>,
    ) -> Result<(), Fault> {
        self.check_bind(cx.work, connection, vhost, Resource::Exchange(destination), spec)?;
        let destination = self.topology.find_exchange(vhost, destination).map(Destination::Exchange);
        match destination.and_then(|to| self.topology.find_binding(vhost, spec, to)) {
            Some(binding) => self.unbind(cx, binding)?,
            None => cx.await_all_changes(),
        }
        Ok(())
    }

    /// Removes a binding for a client or an operator.
    ///
    /// # Errors
    /// The binding is stored, and the storage cannot be written.
    pub(crate) fn unbind(&mut self, cx: &mut Context<'_>, binding: BindingId) -> Result<(), Fault> {
        check_deletable(cx.pending_writes, self.topology.binding(binding).is_stored)?;
        self.remove_binding(cx, binding);
        Ok(())
    }

    /// Removes a binding. An auto-delete source is deleted with its last binding.
    pub(crate) fn remove_binding(&mut self, cx: &mut Context<'_>, binding: BindingId) {
        let source = self.topology.binding(binding).source;
        let vhost = self.access.vhost_name(self.topology.exchange(source).vhost);
        let unused =
            self.topology.remove_binding(cx, vhost, &mut self.quota, self.queues.records_mut(), binding);
        if let Some(exchange) = unused {
            self.retire_exchange(cx, exchange);
            self.jobs.begin(Job::Exchange(exchange));
        }
    }

    // ---- routes of messages

    // ---- queues

    /// Returns the queue of this name, if this connection may use it.
    pub(crate) fn require_queue(
        &self,
        connection: ConnectionId,
        vhost: VhostId,
        name: &str,
    ) -> Result<QueueId, Fault> {
        let queue = self
            .queues
            .records()
            .find_queue(vhost, name)
            .filter(|queue| !self.queues.at(*queue).is_internal());
        let queue = queue.ok_or_else(|| {
            Fault::new(ReplyCode::NotFound, format_args!("no {}", self.queue_text(vhost, name)))
        })?;
        self.check_exclusive(connection, queue)?;
        Ok(queue)
    }

    fn check_exclusive(&self, connection: ConnectionId, queue: QueueId) -> Result<(), Fault> {
        let record = self.queues.at(queue);
        match record.declared.exclusive_owner {
            Some(owner) if owner != connection => Err(self.locked(queue)),
            _ if self.is_queue_of_other_session(connection, queue) => Err(self.locked(queue)),
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
                self.queue_text(record.vhost, &record.name)
            ),
        )
    }

    /// Handles a passive `queue.declare`. The reply waits until the definition of the queue is durable.
    pub(crate) fn check_queue_exists(
        &mut self,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        vhost: VhostId,
        name: &str,
    ) -> Result<DefinitionAnswer, Fault> {
        if name.starts_with(REPLY_TO) {
            return self.check_reply_queue(vhost, name);
        }
        let queue = self.require_queue(connection, vhost, name)?;
        cx.await_defined(self.queues.at(queue).durable_index.defined());
        self.queues.touch_queue(cx.pending_writes, queue);
        Ok(self.declared(queue))
    }

    /// Handles `queue.declare` of a reply queue, by which a client checks whether a consumer still waits for
    /// the reply.
    fn check_reply_queue(&self, vhost: VhostId, name: &str) -> Result<DefinitionAnswer, Fault> {
        let exists = name == REPLY_TO || self.queues.records().find_queue(vhost, name).is_some();
        if exists {
            return Ok(DefinitionAnswer::QueueDeclared {
                queue: name.into(),
                message_count: 0,
                consumer_count: 1,
            });
        }
        Err(Fault::new(ReplyCode::NotFound, format_args!("no {}", self.queue_text(vhost, name))))
    }

    pub(crate) fn declare_queue(
        &mut self,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        vhost: VhostId,
        declaration: &QueueDeclaration<'_>,
    ) -> Result<DefinitionAnswer, Fault> {
        if declaration.queue.starts_with(REPLY_TO) {
            return self.check_reply_queue(vhost, declaration.queue);
        }
        if declaration.queue.starts_with("amq.") {
            return Err(Fault::new(
                ReplyCode::AccessRefused,
                format_args!("queue name '{}' contains reserved prefix 'amq.*'", declaration.queue),
            ));
        }
        let typed = self.with_default_type(vhost, declaration);
        let arguments = typed.as_deref().unwrap_or(declaration.arguments);
        let declaration = &QueueDeclaration { arguments, ..*declaration };
        if declaration.queue.is_empty() {
            let name = self.unique_name("amq.gen-");
            let named = QueueDeclaration { queue: &name, ..*declaration };
            self.check(cx.work, connection, vhost, Right::Configure, Resource::Queue(&name))?;
            return self.create_declared(cx, connection, vhost, &named);
        }
        self.check(cx.work, connection, vhost, Right::Configure, Resource::Queue(declaration.queue))?;
        match self.queues.records().find_queue(vhost, declaration.queue) {
            Some(queue) => self.compare_queue(cx, connection, vhost, queue, declaration),
            None => self.create_declared(cx, connection, vhost, declaration),
        }
    }

    /// Returns the arguments of a declaration with the default queue type of the virtual host added.
    ///
    /// Returns `None` if there is no default type, or the declaration names a type. As in RabbitMQ 3.11, also if
    /// the flags of the declaration do not suit the default type.
    pub(crate) fn with_default_type(
        &self,
        vhost: VhostId,
        declaration: &QueueDeclaration<'_>,
    ) -> Option<Vec<u8>> {
        let default = self.access.vhost_metadata(vhost).default_queue_type;
        let QueueDeclaration { durable, exclusive, auto_delete, arguments, .. } = *declaration;
        let suits = default == "classic" || durable && !exclusive && !auto_delete;
        if default.is_empty() || !suits || Table::trusted(arguments).get(TYPE).is_some() {
            return None;
        }
        let mut typed = arguments.to_vec();
        typed.push(TYPE.len() as u8);
        typed.extend_from_slice(TYPE.as_bytes());
        typed.push(b'S');
        typed.extend_from_slice(&(default.len() as u32).to_be_bytes());
        typed.extend_from_slice(default.as_bytes());
        Some(typed)
    }

    fn create_declared(
        &mut self,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        vhost: VhostId,
        declaration: &QueueDeclaration<'_>,
    ) -> Result<DefinitionAnswer, Fault> {
        self.check_dead_letters(cx.work, connection, vhost, declaration)?;
        self.check_not_of_session(vhost, declaration)?;
        let queue = self.create_checked(cx, Some(connection), vhost, declaration)?;
        Ok(self.declared(queue))
    }

    /// Checks whether a connection may declare a queue with these dead-letter arguments.
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
            self.check(work, connection, vhost, Right::Read, Resource::Queue(declaration.queue))?;
            self.check(work, connection, vhost, Right::Write, Resource::Exchange(exchange))?;
        }
        Ok(())
    }

    /// Creates a queue whose name is free, if its arguments and the limits allow it.
    pub(crate) fn create_checked(
        &mut self,
        cx: &mut Context<'_>,
        owner: Option<ConnectionId>,
        vhost: VhostId,
        declaration: &QueueDeclaration<'_>,
    ) -> Result<QueueId, Fault> {
        let words = self.queue_text(vhost, declaration.queue);
        arguments::check(words, Table::trusted(declaration.arguments), declaration.flags())?;
        self.access.check_queue_limit(vhost, declaration.queue)?;
        let kind = QueueKind::declared_with(Table::trusted(declaration.arguments));
        let queue = self.create_queue(cx, owner, vhost, declaration, kind)?;
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
    ) -> Result<DefinitionAnswer, Fault> {
        let record = self.queues.at(queue);
        let is_owner = record.declared.exclusive_owner == Some(connection);
        if record.declared.exclusive_owner.is_some() && !is_owner
            || declaration.exclusive != is_owner
            || record.session().is_some()
        {
            return Err(self.locked(queue));
        }
        if record.declared.is_rebuilt && declaration.durable {
            self.check_dead_letters(cx.work, connection, vhost, declaration)?;
        }
        self.compare_properties(cx, vhost, queue, declaration)?;
        self.counters.queues_declared += 1;
        self.queues.touch_queue(cx.pending_writes, queue);
        Ok(self.declared(queue))
    }

    pub(crate) fn compare_properties(
        &mut self,
        cx: &mut Context<'_>,
        vhost: VhostId,
        queue: QueueId,
        declaration: &QueueDeclaration<'_>,
    ) -> Result<(), Fault> {
        let words = self.queue_text(vhost, declaration.queue);
        let record = self.queues.at(queue);
        if record.declared.is_rebuilt && declaration.outlives_broker() {
            arguments::check(words, Table::trusted(declaration.arguments), declaration.flags())?;
            return self.redefine_rebuilt(cx, queue, declaration);
        }
        let flags = [
            ("durable", declaration.outlives_broker(), record.declared.durable),
            ("auto_delete", declaration.auto_delete, record.declared.auto_delete),
        ];
        if let Some((name, received, current)) = flags.into_iter().find(|(_, one, two)| one != two) {
            return Err(inequivalent_flag(name, &words, &received, &current));
        }
        arguments::compare(words, Table::trusted(declaration.arguments), Table::trusted(&record.arguments))?;
        cx.await_defined(record.durable_index.defined());
        Ok(())
    }

    /// Returns the number of ready messages of a queue, including adopted ones that are not in it yet.
    fn ready_or_adopted(&self, queue: QueueId) -> u32 {
        self.queues.records().ready_in(queue).saturating_add(self.recovery.adopted_count(queue))
    }

    fn declared(&self, queue: QueueId) -> DefinitionAnswer {
        let record = self.queues.at(queue);
        DefinitionAnswer::QueueDeclared {
            queue: record.name.clone(),
            message_count: self.ready_or_adopted(queue),
            consumer_count: record.queue_consumers.len(),
        }
    }

    pub(crate) fn create_queue(
        &mut self,
        cx: &mut Context<'_>,
        owner: Option<ConnectionId>,
        vhost: VhostId,
        declaration: &QueueDeclaration<'_>,
        kind: QueueKind,
    ) -> Result<QueueId, Fault> {
        let vhost_name = self.access.vhost_name(vhost);
        let at = self
            .recovery
            .find_orphan_by_name(vhost_name, declaration.queue)
            .filter(|_| declaration.outlives_broker());
        let orphan = at.map(|at| self.recovery.take_orphan(at));
        let incarnation = orphan.as_ref().map(|orphan| orphan.incarnation);
        let new = NewQueue { owner, vhost, declaration, kind, incarnation };
        let created = self.create_as(cx, new);
        self.end_creation(created, orphan)
    }

    pub(crate) fn create_as(&mut self, cx: &mut Context<'_>, new: NewQueue<'_>) -> Result<QueueId, Fault> {
        let NewQueue { owner, vhost, declaration, kind, incarnation } = new;
        let durable = declaration.outlives_broker();
        self.recovery.check_not_left_out(
            &self.access,
            vhost,
            DestinationName::Queue(declaration.queue),
            durable,
        )?;
        let applied = match kind {
            QueueKind::DirectReply => AppliedPolicies::default(),
            _ => self.policies_for(cx.work, vhost, declaration.queue, declaration.arguments),
        };
        let settings = QueueSettings::of(&self.policies.effective_policy(declaration.arguments, applied));
        let mut record = Queue::new(vhost, declaration.queue, declaration.arguments, settings);
        record.applied = applied;
        record.declared.durable = durable;
        record.declared.auto_delete = declaration.auto_delete;
        record.declared.exclusive_owner = owner.filter(|_| declaration.exclusive);
        record.kind = kind;
        let incarnation = incarnation.unwrap_or(version_for(cx.pending_writes, record.declared.durable)?);
        record.durable_index = DurableIndex::as_incarnation(incarnation);
        record.rank = first_rank(cx.pending_writes, &record, 0);
        let queue = self.add_queue(cx, record)?;
        self.queues.records_mut().append_queue(cx, &self.access, queue.index(), true);
        self.queues.touch_queue(cx.pending_writes, queue);
        Ok(queue)
    }

    /// Adds a queue under its name.
    pub(crate) fn add_queue(&mut self, cx: &mut Context<'_>, mut record: Queue) -> Result<QueueId, Fault> {
        let bytes = record.name.len() + record.arguments.len();
        let (vhost, owner) = (record.vhost, record.declared.exclusive_owner);
        let (is_internal, is_rebuilt) = (record.is_internal(), record.declared.is_rebuilt);
        let consumer_timeout_ms = record.settings.consumer_timeout_ms;
        self.access.check_vhost_alive(vhost)?;
        self.declare_quota(Declared::Queue, bytes, cx.declarer)?;
        record.declared.declarer = cx.declarer;
        let queue = self.queues.records_mut().insert(record);
        self.access.add_vhost_reference(vhost);
        if is_rebuilt {
            self.recovery.note_rebuilt();
        }
        self.ack_timeout.note_timeout(consumer_timeout_ms);
        if !is_internal {
            self.access.count_queue(vhost, true);
        }
        if let Some(owner) = owner {
            let owned = &mut self.clients.connection_mut(owner).exclusive_queues;
            self.queues.records_mut().link_exclusive_queue(owned, queue);
        }
        self.topology.revise();
        Ok(queue)
    }

    pub(crate) fn bind_queue(
        &mut self,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        vhost: VhostId,
        queue: &str,
        spec: &BindingSpec<'_>,
    ) -> Result<(), Fault> {
        self.check_bind(cx.work, connection, vhost, Resource::Queue(queue), spec)?;
        let source = self.require_exchange(vhost, spec.source)?;
        let queue = self.require_queue(connection, vhost, queue)?;
        self.bind(cx, &spec.between(source, Destination::Queue(queue)))
    }

    /// Handles `queue.unbind`. A missing binding, exchange or queue is not an error.
    pub(crate) fn unbind_queue(
        &mut self,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        vhost: VhostId,
        queue: &str,
        spec: &BindingSpec<'_>,
    ) -> Result<(), Fault> {
        self.check_bind(cx.work, connection, vhost, Resource::Queue(queue), spec)?;
        if let Some(queue) = self.queues.records().find_queue(vhost, queue)
            && let Some(binding) = self.topology.find_binding(vhost, spec, Destination::Queue(queue))
        {
            self.check_exclusive(connection, queue)?;
            self.unbind(cx, binding)?;
        } else {
            cx.await_all_changes();
        }
        Ok(())
    }

    pub(crate) fn purge_queue(
        &mut self,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        vhost: VhostId,
        name: &str,
    ) -> Result<u32, Fault> {
        self.check(cx.work, connection, vhost, Right::Read, Resource::Queue(name))?;
        let queue = self.require_queue(connection, vhost, name)?;
        let (count, drop_jobs) = self.purge(queue);
        drop_jobs.into_iter().for_each(|job| self.begin_job(connection, job));
        Ok(count)
    }

    /// Takes all ready messages out of a queue, including adopted ones. Returns their number, and the jobs
    /// that drop them.
    pub(crate) fn purge(&mut self, queue: QueueId) -> (u32, Vec<Job>) {
        let adopted = self.recovery.purge_adopted(queue);
        let (count, taken) = self.queues.purge(queue);
        let drop_jobs = taken.into_iter().map(|(queue, parts)| Job::Purge { queue, parts });
        (count.saturating_add(adopted), drop_jobs.collect())
    }

    pub(crate) fn delete_queue_by_name(
        &mut self,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        vhost: VhostId,
        name: &str,
        only_if: DeleteIf,
    ) -> Result<u32, Fault> {
        self.check(cx.work, connection, vhost, Right::Configure, Resource::Queue(name))?;
        if self.queues.records().find_queue(vhost, name).is_none() {
            if !self.delete_left_out(
                cx,
                vhost,
                DestinationName::Queue(name),
                only_if.unused || only_if.empty,
            )? {
                cx.await_all_changes();
            }
            return Ok(0);
        }
        let queue = self.require_queue(connection, vhost, name)?;
        let count = self.check_queue_deletable(cx.pending_writes, queue, only_if)?;
        self.retire_queue(cx, queue);
        self.begin_job(connection, Job::Queue(queue));
        Ok(count)
    }

    /// Checks whether a queue may be deleted now, under these conditions. Returns the number of its ready
    /// messages.
    ///
    /// # Errors
    /// The queue is in use or not empty, or the storage cannot be written.
    pub(crate) fn check_queue_deletable(
        &self,
        pending_writes: &PendingWrites,
        queue: QueueId,
        only_if: DeleteIf,
    ) -> Result<u32, Fault> {
        let (record, count) = (self.queues.at(queue), self.ready_or_adopted(queue));
        let problem = match () {
            () if only_if.unused && !record.queue_consumers.is_empty() => "in use",
            () if only_if.empty && count > 0 => "not empty",
            () => return check_deletable(pending_writes, record.durable_index.is_logged()).map(|()| count),
        };
        let words = self.queue_text(record.vhost, &record.name);
        Err(Fault::new(ReplyCode::PreconditionFailed, format_args!("{words} {problem}")))
    }

    /// Frees the name of a deleted queue and stops its deliveries; a job clears the rest.
    pub(crate) fn retire_queue(&mut self, cx: &mut Context<'_>, queue: QueueId) {
        let index = queue.index();
        // The levels are deleted before their queue, so that none outlives it in the log.
        for level in self.queues.records_mut().retire_levels(cx.pending_writes, queue) {
            self.jobs.begin(Job::Queue(level));
        }
        self.queues.records_mut().append_queue(cx, &self.access, index, false);
        self.queues.records_mut().retire(queue);
        let record = self.queues.at_mut(queue);
        let (vhost, is_internal, owner) =
            (record.vhost, record.is_internal(), record.declared.exclusive_owner.take());
        let session = record.end_session();
        if record.declared.is_rebuilt {
            self.recovery.note_rebuilt_gone();
        }
        if !is_internal {
            self.counters.queues_deleted += 1;
            self.access.count_queue(vhost, false);
        }
        if let Some(session) = session {
            self.note_session_queue_deleted(cx, session, queue);
        }
        if let Some(owner) = owner {
            self.queues
                .records_mut()
                .unlink_exclusive_queue(&mut self.clients.connection_mut(owner).exclusive_queues, queue);
        }
        self.topology.revise();
    }

    // ---- policies

    /// Drops the policies of a virtual host that is deleted.
    pub(crate) fn drop_policies_of(
        &mut self,
        pending_writes: &mut PendingWrites,
        vhost: VhostId,
        name: &str,
    ) {
        self.policies.clear_all_of_vhost(pending_writes, vhost, name);
        self.notify_of_policies();
    }

    pub(crate) fn notify_of_policies(&mut self) {
        if self.policies.take_job_request() {
            self.jobs.begin(Job::Policies);
        }
    }

    /// Applies changed policies to some more queues and exchanges. Returns whether all are done.
    pub(crate) fn run_policies(&mut self, cx: &mut Context<'_>, left: &mut u32) -> bool {
        while let Some(listener) =
            self.policies.next_to_notify(self.queues.records().places(), self.topology.exchange_places())
        {
            if *left == 0 {
                return false;
            }
            self.policies.note_notified(listener);
            let before = cx.work.units();
            match listener {
                Listener::Queue(queue) => self.apply_to_queue(cx, queue),
                Listener::Exchange(exchange) => self.apply_to_exchange(cx.work, exchange),
            }
            let units = cx.work.units().saturating_sub(before);
            *left = left.saturating_sub(1 + units / UNITS_PER_RECORD);
        }
        self.policies.end_notification(self.access.pattern_bytes_mut());
        true
    }

    /// Returns the policies that apply to a queue of this name that is about to be created.
    pub(crate) fn policies_for(
        &self,
        work: &mut Work,
        vhost: VhostId,
        name: &str,
        arguments: &[u8],
    ) -> AppliedPolicies {
        let subject = match is_quorum(Table::trusted(arguments)) {
            true => Subject::QuorumQueue,
            false => Subject::ClassicQueue,
        };
        self.policies.choose(work, vhost, name, subject)
    }

    /// Returns the effective policy of a queue: its arguments and policies combined.
    pub(crate) fn effective_policy_of(&self, queue: QueueId) -> EffectivePolicy<'_> {
        let record = self.queues.records().record_of_queue(queue);
        self.policies.effective_policy(&record.arguments, record.applied)
    }

    /// Determines which policies apply to a queue, and gives the queue its new settings.
    pub(crate) fn apply_to_queue(&mut self, cx: &mut Context<'_>, queue: QueueId) {
        // A level takes the settings of its queue.
        let Some(record) = self.queues.records().get(queue.index()).filter(|record| !record.is_level())
        else {
            return;
        };
        let applied = match record.is_internal() || record.is_deleted() {
            true => AppliedPolicies::default(),
            false => self.policies_for(cx.work, record.vhost, &record.name, &record.arguments),
        };
        let record = self.queues.at_mut(queue);
        record.applied = applied;
        if !record.is_deleted() {
            let settings = QueueSettings::of(&self.effective_policy_of(queue));
            self.queues.renew(cx.pending_writes, queue, settings);
            self.clients.keep_one_active(&mut self.queues, queue);
            self.ack_timeout.note_timeout(settings.consumer_timeout_ms);
        }
    }

    fn apply_to_exchange(&mut self, work: &mut Work, exchange: ExchangeId) {
        let found = self.topology.exchange_at(exchange.index());
        let Some(record) = found.filter(|record| record.kind != ExchangeKind::Default) else { return };
        let applied = self.policies.choose(work, record.vhost, &record.name, Subject::Exchange);
        self.topology.apply_policies(exchange, applied, self.policies.alternate(applied));
    }

    /// Determines which policies apply to an exchange that has just been created.
    pub(crate) fn apply_to_new_exchange(&mut self, work: &mut Work, exchange: ExchangeId) {
        if !self.policies.is_empty() {
            self.apply_to_exchange(work, exchange);
        }
    }

    // ---- virtual hosts

    /// Continues to delete the queues, exchanges, retained messages and wills of a deleted virtual host.
    /// Examines at most `left` records of queues and exchanges. Returns `true` after the last step.
    pub(crate) fn run_vhost(&mut self, cx: &mut Context<'_>, sweep: &mut Sweep, left: &mut u32) -> bool {
        while sweep.queue < self.queues.records().places() {
            if cx.pending_writes.is_crowded() || !spend(left) {
                return false;
            }
            let queue = self.queues.records().get(sweep.queue);
            // Levels are deleted with their queue, and hidden queues with their exchange.
            let is_part = |queue: &Queue| queue.is_level() || queue.delayed_exchange().is_some();
            let is_swept =
                |queue: &Queue| queue.vhost == sweep.vhost && !queue.is_deleted() && !is_part(queue);
            if queue.is_some_and(is_swept) {
                let queue = QueueId::from_index(sweep.queue);
                self.retire_queue(cx, queue);
                self.jobs.begin(Job::Queue(queue));
            }
            sweep.queue += 1;
        }
        while sweep.exchange < self.topology.exchange_places() {
            if cx.pending_writes.is_crowded() || !spend(left) {
                return false;
            }
            let exchange = self.topology.exchange_at(sweep.exchange);
            if exchange.is_some_and(|exchange| exchange.vhost == sweep.vhost) {
                let exchange = ExchangeId::from_index(sweep.exchange);
                self.retire_exchange(cx, exchange);
                self.jobs.begin(Job::Exchange(exchange));
            }
            sweep.exchange += 1;
        }
        if !self.delete_retained_of(cx, sweep.vhost) {
            return false;
        }
        self.delete_late_wills_of(cx, sweep.vhost);
        self.access.note_vhost_emptied(sweep.vhost);
        self.free_vhost_if_done(sweep.vhost);
        true
    }

    /// Deletes at once, at start, a virtual host that has only the predeclared exchanges.
    pub(crate) fn drop_empty_vhost(&mut self, cx: &mut Context<'_>, vhost: VhostId) {
        for (name, ..) in PREDECLARED {
            if let Some(exchange) = self.topology.find_exchange(vhost, name) {
                self.retire_exchange(cx, exchange);
                self.free_exchange(exchange);
            }
        }
        self.remove_vhost(vhost);
    }

    // ---- objects that could not be restored at start

    /// Gives the new queue `created` the messages of the orphan that it adopts. If the queue could not be
    /// created, the orphan is listed again.
    ///
    /// The queue delivers nothing until the storage has returned the offsets of all adopted messages.
    pub(crate) fn end_creation(
        &mut self,
        created: Result<QueueId, Fault>,
        orphan: Option<Orphan>,
    ) -> Result<QueueId, Fault> {
        let Some(orphan) = orphan else { return created };
        let Ok(queue) = created else {
            self.recovery.add_orphan(orphan);
            return created;
        };
        self.queues.restore_contents(queue, &orphan.contents);
        self.queues.at_mut(queue).blocking_jobs += 1;
        self.recovery.note_adoption(&orphan, queue);
        Ok(queue)
    }

    /// Gives a rebuilt queue the flags and arguments of a client's declaration.
    ///
    /// # Errors
    /// There is no capacity for the arguments, or the storage cannot be written.
    pub(crate) fn redefine_rebuilt(
        &mut self,
        cx: &mut Context<'_>,
        queue: QueueId,
        declaration: &QueueDeclaration<'_>,
    ) -> Result<(), Fault> {
        version_for(cx.pending_writes, true)?;
        self.quota.take_names(declaration.arguments.len())?;
        let record = self.queues.at_mut(queue);
        assert!(record.arguments.is_empty(), "a rebuilt queue has no arguments");
        record.arguments = declaration.arguments.into();
        record.kind = QueueKind::declared_with(Table::trusted(declaration.arguments));
        record.times.peeked = PeekedExpiry::NOTHING;
        (record.declared.auto_delete, record.declared.is_rebuilt) = (declaration.auto_delete, false);
        self.recovery.note_rebuilt_gone();
        self.apply_to_queue(cx, queue);
        let rank = first_rank(cx.pending_writes, self.queues.at(queue), 0);
        self.queues.at_mut(queue).rank = rank;
        self.queues.examine_stored(queue);
        if self.queues.at(queue).settings.may_expire {
            self.queues.list_for_trim(queue);
        }
        self.queues.records_mut().append_queue(cx, &self.access, queue.index(), true);
        Ok(())
    }

    /// Gives a durable queue other arguments, and appends its definition to the log if they differ.
    ///
    /// # Errors
    /// There is no capacity for the arguments, or the storage cannot be written.
    pub(crate) fn redefine_queue(
        &mut self,
        cx: &mut Context<'_>,
        queue: QueueId,
        arguments: &[u8],
    ) -> Result<(), Fault> {
        let record = self.queues.at(queue);
        let before = record.arguments.len();
        if *record.arguments == *arguments {
            return Ok(());
        }
        version_for(cx.pending_writes, true)?;
        self.quota.replace_names(before, arguments.len())?;
        self.queues.at_mut(queue).arguments = arguments.into();
        self.apply_to_queue(cx, queue);
        self.queues.touch_queue(cx.pending_writes, queue);
        self.queues.records_mut().append_queue(cx, &self.access, queue.index(), true);
        Ok(())
    }

    /// Deletes an exchange or queue that was left out at start, a queue with its messages. If there is none and
    /// the deletion is unconditional, deletes the orphan of a queue of that name. Returns whether anything was
    /// deleted.
    ///
    /// # Errors
    /// The storage cannot be written. Or the object was left out, and the deletion has a condition (if-unused,
    /// if-empty), which cannot be checked.
    pub(crate) fn delete_left_out(
        &mut self,
        cx: &mut Context<'_>,
        vhost: VhostId,
        name: DestinationName<'_>,
        is_conditional: bool,
    ) -> Result<bool, Fault> {
        if self.recovery.delete_left_out(cx, &self.access, vhost, name, is_conditional)? {
            return Ok(true);
        }
        match name {
            DestinationName::Queue(name) if !is_conditional => self.delete_orphan_of(cx, vhost, name),
            DestinationName::Queue(_) | DestinationName::Exchange(_) => Ok(false),
        }
    }

    /// Deletes the orphan of a queue of this name. Returns `false` when there is none.
    ///
    /// # Errors
    /// The storage cannot be written.
    pub(crate) fn delete_orphan_of(
        &mut self,
        cx: &mut Context<'_>,
        vhost: VhostId,
        queue: &str,
    ) -> Result<bool, Fault> {
        let Some(at) = self.recovery.find_orphan_by_name(self.access.vhost_name(vhost), queue) else {
            return Ok(false);
        };
        check_deletable(cx.pending_writes, true)?;
        self.delete_orphan(cx, at);
        Ok(true)
    }

    pub(crate) fn delete_orphan(&mut self, cx: &mut Context<'_>, at: usize) -> u64 {
        let orphan = self.recovery.take_orphan(at);
        let batch = cx.pending_writes.append_queue_deleted(orphan.incarnation);
        cx.await_batch(batch);
        if let Some((vhost, name)) = &orphan.name {
            self.delete_definition_of_name(cx, vhost, name);
        }
        orphan.contents.count
    }

    /// Appends the deletion of the definition of this queue name to the log, unless a queue has the name now.
    pub(crate) fn delete_definition_of_name(&mut self, cx: &mut Context<'_>, vhost: &str, name: &str) {
        let is_used = self
            .access
            .find_vhost(vhost)
            .is_some_and(|vhost| self.queues.records().find_queue(vhost, name).is_some());
        if is_used {
            return;
        }
        let batch = cx.pending_writes.define(DestinationName::Queue(name).key(vhost), None);
        cx.await_batch(batch);
    }
}
