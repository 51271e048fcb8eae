//! Commands about exchanges and bindings, and the routes of channels: who may, and in which order it happens.
//!
//! Why it exists: what exchanges and bindings are is known in `topology`; here it meets connections, virtual hosts,
//! policies, hidden queues and jobs.
//!
//! Always true: the order of the checks is RabbitMQ's, because clients see which one fails first.

use crate::command::{BindingId, ChannelId, ConnectionId, ExchangeId, Outcome, QueueId, VhostId};
use crate::error::{Fault, ReplyCode};
use crate::journal::DestinationName;
use crate::mem::{MessageId, Messages};
use crate::wire::field::Table;

use super::access::{Right, Thing, Topic};
use super::arguments::QueueSettings;
use super::faults::{check_deletable, version_for};
use super::job::Job;
use super::policy::Applied;
use super::queues::{Queue, SLOTS, Targets};
use super::quota::Declared;
use super::topology::{
    BindingSpec, Destination, ExchangeDeclaration, FoundBinding, Kind, NewExchange, check_deletable_name,
    exchange_in_words, refuse_default,
};
use super::work::Work;
use super::{Broker, Context};

impl Broker {
    /// exchange.declare with passive set: who is told that it is there may rely on it.
    pub(super) fn check_exchange_exists(
        &self,
        cx: &mut Context<'_>,
        vhost: VhostId,
        name: &str,
    ) -> Result<Outcome, Fault> {
        refuse_default(name)?;
        let exchange = self.topology.require_exchange(&self.access, vhost, name)?;
        cx.await_defined(self.topology.exchange(exchange).defined);
        Ok(Outcome::Done)
    }

    pub(super) fn declare_exchange(
        &mut self,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        vhost: VhostId,
        declaration: &ExchangeDeclaration<'_>,
    ) -> Result<Outcome, Fault> {
        let name = declaration.exchange;
        declaration.check_askable()?;
        self.check(cx.work, connection, vhost, Right::Configure, Thing::Exchange(name))?;
        if let Some(exchange) = self.topology.find_exchange(vhost, name) {
            self.topology.compare_exchange(cx, &self.access, exchange, declaration)?;
            return Ok(Outcome::Done);
        }
        declaration.check_name()?;
        if let Some(alternate) = declaration.alternate(&self.access, vhost)? {
            self.check(cx.work, connection, vhost, Right::Read, Thing::Exchange(name))?;
            self.check(cx.work, connection, vhost, Right::Write, Thing::Exchange(alternate))?;
        }
        self.create_exchange(cx, vhost, declaration)
    }

    /// Makes an exchange whose name is free.
    pub(super) fn create_exchange(
        &mut self,
        cx: &mut Context<'_>,
        vhost: VhostId,
        declaration: &ExchangeDeclaration<'_>,
    ) -> Result<Outcome, Fault> {
        declaration.check_name()?;
        declaration.new_kind()?;
        declaration.alternate(&self.access, vhost)?;
        let name = DestinationName::Exchange(declaration.exchange);
        self.recovery.check_not_left_out(&self.access, vhost, name, declaration.durable)?;
        let version = version_for(cx.journal, declaration.durable)?;
        if version != 0 && declaration.is_delayed() {
            // The log knows its slots by those behind its own.
            cx.journal.next_versions(SLOTS.into());
        }
        let exchange = self.add_exchange(cx, vhost, declaration, version)?;
        self.topology.append_exchange(cx, &self.access, exchange, true);
        Ok(Outcome::Done)
    }

    /// Puts an exchange that was checked where it is found, with its hidden queue and its policies.
    pub(super) fn add_exchange(
        &mut self,
        cx: &mut Context<'_>,
        vhost: VhostId,
        declaration: &ExchangeDeclaration<'_>,
        version: u64,
    ) -> Result<ExchangeId, Fault> {
        self.access.check_vhost_alive(vhost)?;
        let (bytes, who) = (declaration.bytes(), (vhost, cx.declarer));
        self.declare_quota(Declared::Exchange, bytes, who)?;
        let is_delayed = declaration.is_delayed();
        let sleepers = is_delayed.then(|| self.add_sleepers(cx, vhost, (version, declaration.durable)));
        let sleepers =
            sleepers.transpose().inspect_err(|_| self.quota.undeclare(Declared::Exchange, bytes, who))?;
        self.access.hold_vhost(vhost);
        let new = NewExchange { vhost, declaration: *declaration, version, declarer: cx.declarer, sleepers };
        let exchange = self.topology.insert_exchange(&new);
        self.apply_to_new_exchange(cx.work, exchange);
        if let Some(queue) = sleepers {
            self.queues.give_sleepers(queue, exchange);
        }
        Ok(exchange)
    }

    pub(super) fn delete_exchange(
        &mut self,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        vhost: VhostId,
        name: &str,
        if_unused: bool,
    ) -> Result<Outcome, Fault> {
        check_deletable_name(&self.access, vhost, name)?;
        self.check(cx.work, connection, vhost, Right::Configure, Thing::Exchange(name))?;
        let Some(exchange) = self.topology.find_exchange(vhost, name) else {
            if !self.delete_left_out(cx, vhost, DestinationName::Exchange(name), if_unused)? {
                cx.await_others();
            }
            return Ok(Outcome::Done);
        };
        if if_unused && self.topology.is_source(exchange) {
            return Err(Fault::new(
                ReplyCode::PreconditionFailed,
                format_args!("{} in use", exchange_in_words(&self.access, vhost, name)),
            ));
        }
        check_deletable(cx.journal, self.topology.exchange(exchange).version != 0)?;
        self.retire_exchange(cx, exchange);
        self.begin_job(connection, Job::Exchange(exchange));
        Ok(Outcome::Done)
    }

    /// Takes the name of an exchange away; the record goes when its bindings are cleared.
    pub(super) fn retire_exchange(&mut self, cx: &mut Context<'_>, exchange: ExchangeId) {
        if let Some(queue) = self.topology.exchange(exchange).sleepers {
            // First, so that nothing in the hidden queue outlives the exchange in the log.
            self.retire_sleepers(cx, queue);
        }
        self.topology.retire_exchange(cx, &self.access, exchange);
    }

    /// Frees an exchange that is retired and has no bindings any more.
    pub(super) fn free_exchange(&mut self, exchange: ExchangeId) {
        let vhost = self.topology.free_exchange(&mut self.quota, exchange);
        self.release_vhost(vhost);
    }

    /// Makes the hidden queue of an exchange of this version.
    pub(super) fn add_sleepers(
        &mut self,
        cx: &mut Context<'_>,
        vhost: VhostId,
        (version, durable): (u64, bool),
    ) -> Result<QueueId, Fault> {
        let settings = QueueSettings::of(&self.policies.terms(&[], Applied::default()));
        self.declare_quota(Declared::Queue, 0, (vhost, cx.declarer))?;
        let mut record = Queue::sleepers(cx.journal, vhost, settings, version, durable);
        record.declarer = cx.declarer;
        let queue = self.queues.insert_hidden(record)?;
        self.access.hold_vhost(vhost);
        Ok(queue)
    }

    /// The exchange is deleted: what sleeps goes with it.
    #[cold]
    pub(super) fn retire_sleepers(&mut self, cx: &mut Context<'_>, queue: QueueId) {
        for level in self.queues.retire_levels(cx.journal, queue) {
            self.jobs.begin(Job::Queue(level));
        }
        let gone = self.queues.retire_sleepers(cx.journal, queue);
        self.jobs.begin(Job::Queue(queue));
        for held in gone {
            self.post().let_go_of_held(cx, held);
        }
        while let Some(queue) = self.letters.next_perhaps_done() {
            self.free_queue_if_done(queue);
        }
    }

    /// Whether a connection may bind, or unbind, a destination to a source.
    pub(super) fn check_bind(
        &self,
        work: &mut Work,
        connection: ConnectionId,
        vhost: VhostId,
        destination: Thing<'_>,
        spec: &BindingSpec<'_>,
    ) -> Result<(), Fault> {
        self.check(work, connection, vhost, Right::Write, destination)?;
        if let Thing::Exchange(name) = destination {
            refuse_default(name)?;
        }
        refuse_default(spec.source)?;
        self.check(work, connection, vhost, Right::Read, Thing::Exchange(spec.source))?;
        let Some(source) = self.topology.find_exchange(vhost, spec.source) else { return Ok(()) };
        self.check_key(work, connection, source, Right::Read, spec.routing_key.as_bytes())
    }

    /// Whether keys have to be looked at where a connection's user writes to, or reads from, an exchange.
    #[inline]
    fn limits_keys(&self, connection: ConnectionId, exchange: ExchangeId) -> bool {
        self.access.limits_topics(&self.consumers.connection(connection).identity)
            && self.topology.exchange(exchange).kind == Kind::Topic
    }

    /// Whether the user of a connection may write to, or read from, an exchange with this key.
    pub(super) fn check_key(
        &self,
        work: &mut Work,
        connection: ConnectionId,
        exchange: ExchangeId,
        right: Right,
        key: &[u8],
    ) -> Result<(), Fault> {
        if !self.limits_keys(connection, exchange) {
            return Ok(());
        }
        let record = self.topology.exchange(exchange);
        let topic = Topic { vhost: record.vhost, exchange: &record.name };
        self.access.check_topic(work, &self.consumers.connection(connection).identity, topic, right, key)
    }

    /// exchange.bind and queue.bind, once both ends are known.
    pub(super) fn bind(&mut self, cx: &mut Context<'_>, new: &FoundBinding<'_>) -> Result<Outcome, Fault> {
        self.topology.bind(cx, &self.access, &mut self.quota, &mut self.queues, new)?;
        Ok(Outcome::Done)
    }

    /// exchange.unbind; what is not there may be unbound, whatever of it is missing.
    pub(super) fn unbind_exchange(
        &mut self,
        cx: &mut Context<'_>,
        vhost: VhostId,
        destination: &str,
        spec: &BindingSpec<'_>,
    ) -> Result<(), Fault> {
        let destination = self.topology.find_exchange(vhost, destination).map(Destination::Exchange);
        match destination.and_then(|to| self.topology.find_binding(vhost, spec, to)) {
            Some(binding) => self.unbind(cx, binding)?,
            None => cx.await_others(),
        }
        Ok(())
    }

    /// Removes a binding that somebody wants to be gone.
    ///
    /// # Errors
    /// The log takes nothing now.
    pub(super) fn unbind(&mut self, cx: &mut Context<'_>, binding: BindingId) -> Result<(), Fault> {
        check_deletable(cx.journal, self.topology.binding(binding).stored)?;
        self.remove_binding(cx, binding);
        Ok(())
    }

    /// Removes a binding. An auto-delete source goes with its last binding.
    pub(super) fn remove_binding(&mut self, cx: &mut Context<'_>, binding: BindingId) {
        let unused =
            self.topology.remove_binding(cx, &self.access, &mut self.quota, &mut self.queues, binding);
        if let Some(exchange) = unused {
            self.retire_exchange(cx, exchange);
            self.jobs.begin(Job::Exchange(exchange));
        }
    }

    // ---- routes of channels

    /// Chooses the queues for a message of a channel into `targets`, and remembers the route if it may be taken again.
    /// `headers` is empty unless they matter.
    ///
    /// # Errors
    /// It takes more work than allowed.
    pub(super) fn route(
        &mut self,
        (messages, work): (&Messages, &mut Work),
        channel: ChannelId,
        exchange: ExchangeId,
        (message, headers): (MessageId, Table<'_>),
        targets: &mut Vec<QueueId>,
    ) -> Result<(), Fault> {
        let mut chosen = Targets { queues: &mut self.queues, chosen: targets };
        let key = messages.routing_key(message);
        let by_key_alone = self.topology.route(work, exchange, key, headers, &mut chosen)?;
        if by_key_alone && headers.is_empty() {
            let connection = self.consumers.connection_of(channel);
            let for_all_keys = (!self.limits_keys(connection, exchange)).then_some(exchange);
            let revision = self.revision();
            let cache = &mut self.consumers.channel_mut(channel).route_cache;
            cache.set(revision, messages, message, for_all_keys, targets);
        }
        Ok(())
    }
}
