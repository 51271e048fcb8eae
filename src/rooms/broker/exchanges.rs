//! Declaring, deleting and binding exchanges.
//!
//! The order of the checks is RabbitMQ's, because clients see which one fails first.

use core::fmt;

use crate::command::{BindingId, ConnectionId, ExchangeId, Outcome, QueueId, VhostId};
use crate::error::{Fault, ReplyCode};
use crate::journal::DestinationName;
use crate::wire::field::{Table, Value};

use super::access::{Right, Thing, Topic};
use super::arguments::QueueSettings;
use super::arguments::{self, inequivalent_flag};
use super::faults::{check_deletable, version_for};
use super::job::Job;
use super::policy::Applied;
use super::queues::Queue;
use super::queues::Queues;
use super::queues::SLOTS;
use super::quota::{Declared, Declarer};
use super::routing::{self, Binding, BindingSpec, DELAYED, Destination, End, Kind, NewExchange};
use super::words::{ErlangBinary, ErlangTerm, ExchangeInWords};
use super::work::Work;
use super::{Broker, Context};

/// Types of exchanges that plug-ins of RabbitMQ or later versions of it add. Whoever asks for one is told
/// what is missing; RabbitMQ without it says only that it does not know the type.
const PLUG_INS: [(&str, &str); 8] = [
    ("x-consistent-hash", "rabbitmq_consistent_hash_exchange"),
    ("x-event", "rabbitmq_event_exchange"),
    ("x-jms-topic", "rabbitmq_jms_topic_exchange"),
    ("x-local-random", "version 4"),
    ("x-modulus-hash", "rabbitmq_sharding"),
    ("x-random", "rabbitmq_random_exchange"),
    ("x-recent-history", "rabbitmq_recent_history_exchange"),
    ("x-rtopic", "rabbitmq_rtopic_exchange"),
];

/// exchange.declare's fields.
pub(super) struct ExchangeDeclaration<'a> {
    pub(super) exchange: &'a str,
    pub(super) kind: &'a str,
    pub(super) durable: bool,
    pub(super) auto_delete: bool,
    pub(super) internal: bool,
    pub(super) arguments: &'a [u8],
}

impl ExchangeDeclaration<'_> {
    fn is_delayed(&self) -> bool {
        self.kind == DELAYED
    }

    /// How it chooses, which its type says; of a delayed one that is asked only when it is new.
    pub(super) fn kind(&self) -> Result<Kind, Fault> {
        match self.is_delayed() {
            true => Ok(self.new_kind().unwrap_or(Kind::Direct)),
            false => kind_named(self.kind),
        }
    }

    /// How a new one chooses.
    pub(super) fn new_kind(&self) -> Result<Kind, Fault> {
        if !self.is_delayed() {
            return kind_named(self.kind);
        }
        let said = Table::trusted(self.arguments).get("x-delayed-type").and_then(|value| value.as_str());
        // Delayed twice it would never be routed.
        let said = said.filter(|kind| *kind != DELAYED).ok_or_else(|| {
            Fault::new(
                ReplyCode::PreconditionFailed,
                format_args!("Invalid argument, 'x-delayed-type' must be an existing exchange type"),
            )
        });
        said.and_then(kind_named)
    }
}

/// The type that a name stands for.
fn kind_named(kind: &str) -> Result<Kind, Fault> {
    Kind::from_name(kind).ok_or_else(|| {
        let invalid = |words: fmt::Arguments<'_>| Fault::connection(ReplyCode::CommandInvalid, words);
        match PLUG_INS.iter().find(|(known, _)| *known == kind) {
            Some((_, plug_in)) => invalid(format_args!(
                "unknown exchange type '{kind}': RabbitMQ has it with {plug_in}, and Leveret has not"
            )),
            None if kind.is_empty() => invalid(format_args!("invalid exchange type ''")),
            None => invalid(format_args!("unknown exchange type '{kind}'")),
        }
    })
}

impl Broker {
    pub(super) fn exchange_in_words<'a>(&'a self, vhost: VhostId, name: &'a str) -> ExchangeInWords<'a> {
        ExchangeInWords { name, vhost: self.access.vhost_name(vhost) }
    }

    pub(super) fn find_exchange(&self, vhost: VhostId, name: &str) -> Option<ExchangeId> {
        self.routing.find(vhost, name)
    }

    pub(super) fn require_exchange(&self, vhost: VhostId, name: &str) -> Result<ExchangeId, Fault> {
        self.find_exchange(vhost, name).ok_or_else(|| {
            Fault::new(ReplyCode::NotFound, format_args!("no {}", self.exchange_in_words(vhost, name)))
        })
    }

    /// exchange.declare with passive set: who is told that it is there may rely on it.
    pub(super) fn check_exchange_exists(
        &mut self,
        cx: &mut Context<'_>,
        vhost: VhostId,
        name: &str,
    ) -> Result<Outcome, Fault> {
        refuse_default(name)?;
        let exchange = self.require_exchange(vhost, name)?;
        cx.await_defined(self.routing.exchange(exchange).defined);
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
        let kind = declaration.kind()?;
        refuse_default(name)?;
        self.check(cx.work, connection, vhost, Right::Configure, Thing::Exchange(name))?;
        if let Some(exchange) = self.find_exchange(vhost, name) {
            return self.compare_exchange(cx, vhost, exchange, kind, declaration);
        }
        check_exchange_name(name)?;
        if let Some(alternate) = self.alternate_argument(vhost, declaration)? {
            self.check(cx.work, connection, vhost, Right::Read, Thing::Exchange(name))?;
            self.check(cx.work, connection, vhost, Right::Write, Thing::Exchange(alternate))?;
        }
        self.create_exchange(cx, vhost, kind, declaration)
    }

    /// Makes an exchange whose name is free.
    pub(super) fn create_exchange(
        &mut self,
        cx: &mut Context<'_>,
        vhost: VhostId,
        kind: Kind,
        declaration: &ExchangeDeclaration<'_>,
    ) -> Result<Outcome, Fault> {
        check_exchange_name(declaration.exchange)?;
        declaration.new_kind()?;
        self.alternate_argument(vhost, declaration)?;
        let name = DestinationName::Exchange(declaration.exchange);
        self.check_not_left_out(vhost, name, declaration.durable)?;
        let version = version_for(cx.journal, declaration.durable)?;
        if version != 0 && declaration.is_delayed() {
            // The log knows its slots by those behind its own.
            cx.journal.next_versions(SLOTS.into());
        }
        let exchange = self.add_exchange(cx, vhost, kind, declaration, version)?;
        self.append_exchange(cx, exchange, true);
        Ok(Outcome::Done)
    }

    pub(super) fn compare_exchange(
        &mut self,
        cx: &mut Context<'_>,
        vhost: VhostId,
        exchange: ExchangeId,
        kind: Kind,
        declaration: &ExchangeDeclaration<'_>,
    ) -> Result<Outcome, Fault> {
        let words = self.exchange_in_words(vhost, declaration.exchange);
        let record = self.routing.exchange(exchange);
        // As in the plug-in nobody asks how a delayed one was to choose.
        let is_same =
            declaration.kind == record.type_name() && (record.kind == kind || declaration.is_delayed());
        if !is_same {
            return Err(inequivalent_flag("type", &words, &declaration.kind, &record.type_name()));
        }
        let flags = [
            ("durable", declaration.durable, record.durable),
            ("auto_delete", declaration.auto_delete, record.auto_delete),
            ("internal", declaration.internal, record.internal),
        ];
        if let Some((name, received, current)) = flags.into_iter().find(|(_, one, two)| one != two) {
            return Err(inequivalent_flag(name, &words, &received, &current));
        }
        let alternate = |arguments| Table::trusted(arguments).get("alternate-exchange");
        let (received, current) = (alternate(declaration.arguments), alternate(&*record.arguments));
        if !arguments::equivalent(received, current) {
            return Err(arguments::inequivalent("alternate-exchange", &words, received, current));
        }
        cx.await_defined(record.defined);
        Ok(Outcome::Done)
    }

    fn alternate_argument<'a>(
        &self,
        vhost: VhostId,
        declaration: &ExchangeDeclaration<'a>,
    ) -> Result<Option<&'a str>, Fault> {
        match Table::trusted(declaration.arguments).get("alternate-exchange") {
            None => Ok(None),
            Some(value @ Value::LongStr(_)) => Ok(Some(value.as_str().unwrap_or_default())),
            Some(other) => Err(Fault::new(
                ReplyCode::PreconditionFailed,
                format_args!(
                    "invalid type '{}' for arg 'alternate-exchange' in {}",
                    other.type_name(),
                    self.exchange_in_words(vhost, declaration.exchange)
                ),
            )),
        }
    }

    /// Puts an exchange where it is found.
    pub(super) fn add_exchange(
        &mut self,
        cx: &mut Context<'_>,
        vhost: VhostId,
        kind: Kind,
        declaration: &ExchangeDeclaration<'_>,
        version: u64,
    ) -> Result<ExchangeId, Fault> {
        self.access.check_vhost_alive(vhost)?;
        let bytes = declaration.exchange.len() + declaration.arguments.len();
        let declarer = cx.declarer;
        self.declare_quota(Declared::Exchange, bytes, (vhost, declarer))?;
        let sleepers = match declaration.is_delayed() {
            true => self.add_sleepers(cx, vhost, (version, declaration.durable)).map(Some),
            false => Ok(None),
        };
        let sleepers =
            sleepers.inspect_err(|_| self.quota.undeclare(Declared::Exchange, bytes, (vhost, declarer)))?;
        let exchange = self.insert_exchange(vhost, kind, declaration, (version, declarer, sleepers));
        self.apply_to_new_exchange(cx.work, exchange);
        if let Some(queue) = sleepers {
            self.queues.give_sleepers(queue, exchange);
        }
        Ok(exchange)
    }

    /// The caller made sure of room, and asks for the policies of what is no virtual host's from its beginning.
    pub(super) fn insert_exchange(
        &mut self,
        vhost: VhostId,
        kind: Kind,
        declaration: &ExchangeDeclaration<'_>,
        (version, declarer, sleepers): (u64, Option<Declarer>, Option<QueueId>),
    ) -> ExchangeId {
        self.access.hold_vhost(vhost);
        self.routing.insert_exchange(&NewExchange {
            vhost,
            name: declaration.exchange,
            kind,
            version,
            durable: declaration.durable,
            auto_delete: declaration.auto_delete,
            internal: declaration.internal,
            arguments: declaration.arguments,
            declarer,
            sleepers,
        })
    }

    pub(super) fn delete_exchange_by_name(
        &mut self,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        vhost: VhostId,
        name: &str,
        if_unused: bool,
    ) -> Result<Option<ExchangeId>, Fault> {
        refuse_default(name)?;
        if name.starts_with("amq.") {
            return Err(Fault::new(
                ReplyCode::AccessRefused,
                format_args!("deletion of system {} not allowed", self.exchange_in_words(vhost, name)),
            ));
        }
        self.check(cx.work, connection, vhost, Right::Configure, Thing::Exchange(name))?;
        let Some(exchange) = self.find_exchange(vhost, name) else {
            if !self.delete_left_out(cx, vhost, DestinationName::Exchange(name), if_unused)? {
                cx.await_others();
            }
            return Ok(None);
        };
        if if_unused && self.routing.is_source(exchange) {
            return Err(Fault::new(
                ReplyCode::PreconditionFailed,
                format_args!("{} in use", self.exchange_in_words(vhost, name)),
            ));
        }
        check_deletable(cx.journal, self.routing.exchange(exchange).version != 0)?;
        self.retire_exchange(cx, exchange);
        Ok(Some(exchange))
    }

    /// Takes the name away; the record goes when its bindings are cleared.
    pub(super) fn retire_exchange(&mut self, cx: &mut Context<'_>, exchange: ExchangeId) {
        if let Some(queue) = self.routing.exchange(exchange).sleepers {
            // Before it, so that nothing of it outlives it in the log.
            self.retire_sleepers(cx, queue);
        }
        self.append_exchange(cx, exchange, false);
        self.routing.retire_exchange(exchange);
    }

    pub(super) fn free_exchange(&mut self, exchange: ExchangeId) {
        let record = self.routing.free_exchange(exchange);
        // Those that every virtual host begins with are counted with it.
        if !is_system_name(&record.name) {
            let bytes = record.name.len() + record.arguments.len();
            self.quota.undeclare(Declared::Exchange, bytes, (record.vhost, record.declarer));
        }
        self.release_vhost(record.vhost);
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
        let Some(source) = self.find_exchange(vhost, spec.source) else { return Ok(()) };
        self.check_key(work, connection, source, Right::Read, spec.routing_key.as_bytes())
    }

    /// Whether keys have to be looked at where a connection's user writes to, or reads from, an exchange.
    #[inline]
    pub(super) fn limits_keys(&self, connection: ConnectionId, exchange: ExchangeId) -> bool {
        self.access.limits_topics(&self.consumers.connection(connection).identity)
            && self.routing.exchange(exchange).kind == Kind::Topic
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
        let record = self.routing.exchange(exchange);
        let topic = Topic { vhost: record.vhost, exchange: &record.name };
        self.access.check_topic(work, &self.consumers.connection(connection).identity, topic, right, key)
    }

    /// exchange.bind and queue.bind, once the destination is known.
    pub(super) fn bind(
        &mut self,
        cx: &mut Context<'_>,
        source: ExchangeId,
        destination: Destination,
        spec: &BindingSpec<'_>,
    ) -> Result<Outcome, Fault> {
        if self.routing.exchange(source).kind == Kind::Headers {
            check_x_match(spec.arguments)?;
        }
        if let Some(binding) = self.find_binding(source, destination, spec) {
            if self.routing.binding(binding).stored {
                cx.await_others();
            }
            return Ok(Outcome::Done);
        }
        if self.is_stored_binding(cx.journal, source, destination) {
            version_for(cx.journal, true)?;
        }
        let binding = self.add_binding(cx, source, destination, spec)?;
        self.append_binding(cx, binding, true);
        Ok(Outcome::Done)
    }

    /// Unbinding what is not there is fine, whatever of it is missing.
    pub(super) fn unbind_exchange(
        &mut self,
        cx: &mut Context<'_>,
        vhost: VhostId,
        destination: &str,
        spec: &BindingSpec<'_>,
    ) -> Result<(), Fault> {
        if let Some(source) = self.find_exchange(vhost, spec.source)
            && let Some(destination) = self.find_exchange(vhost, destination)
            && let Some(found) = self.find_binding(source, Destination::Exchange(destination), spec)
        {
            check_deletable(cx.journal, self.routing.binding(found).stored)?;
            self.remove_binding(cx, found);
        } else {
            cx.await_others();
        }
        Ok(())
    }

    /// Puts a binding on everything it hangs on.
    pub(super) fn add_binding(
        &mut self,
        cx: &mut Context<'_>,
        source: ExchangeId,
        destination: Destination,
        spec: &BindingSpec<'_>,
    ) -> Result<BindingId, Fault> {
        let record = self.routing.exchange(source);
        let (kind, vhost) = (record.kind, record.vhost);
        let bytes = binding_bytes(kind, spec.routing_key, spec.arguments);
        let declared = Declared::Binding(routing::places_of_binding(kind, spec.arguments));
        let declarer = cx.declarer;
        self.declare_quota(declared, bytes, (vhost, declarer))?;
        let missing = self.routing.missing_nodes(source, spec.routing_key);
        let nodes = self.quota.take_nodes(missing, (vhost, declarer), self.routing.node_room());
        nodes.inspect_err(|_| self.quota.undeclare(declared, bytes, (vhost, declarer)))?;
        let stored = self.is_stored_binding(cx.journal, source, destination);
        let end = end(&mut self.queues, destination);
        Ok(self.routing.insert_binding(source, end, spec, stored, declarer))
    }

    pub(super) fn find_binding(
        &self,
        source: ExchangeId,
        destination: Destination,
        spec: &BindingSpec<'_>,
    ) -> Option<BindingId> {
        self.routing.find_binding(source, destination, spec)
    }

    /// Takes a binding off everything it hangs on. An auto-delete source goes with its last binding.
    pub(super) fn remove_binding(&mut self, cx: &mut Context<'_>, binding: BindingId) {
        if !self.is_bound_anew(binding) {
            self.append_binding(cx, binding, false);
        }
        let end = end(&mut self.queues, self.routing.binding(binding).destination);
        let mut gone = self.routing.remove_binding(binding, end);
        let record = self.routing.exchange(gone.source);
        let (kind, vhost) = (record.kind, record.vhost);
        let bytes = binding_bytes(kind, &gone.key, &gone.arguments);
        let declared = Declared::Binding(routing::places_of_binding(kind, &gone.arguments));
        self.quota.undeclare(declared, bytes, (vhost, gone.declarer));
        while let Some(user) = self.routing.prune(&mut gone) {
            self.quota.give_node_back(vhost, user);
        }
        let record = self.routing.exchange(gone.source);
        if record.auto_delete && !record.dying && !self.routing.is_source(gone.source) {
            self.retire_exchange(cx, gone.source);
            self.jobs.begin(Job::Exchange(gone.source));
        }
    }

    /// Whether an end of it was deleted, and things of the same names are bound the same way by now: to the
    /// log that is one binding, and it exists.
    fn is_bound_anew(&self, binding: BindingId) -> bool {
        let binding: &Binding = self.routing.binding(binding);
        let source = self.routing.exchange(binding.source);
        let (is_dying, destination) = match binding.destination {
            Destination::Queue(queue) => {
                let record = self.queues.at(queue);
                (record.dying, self.queues.find_queue(record.vhost, &record.name).map(Destination::Queue))
            }
            Destination::Exchange(exchange) => {
                let record = self.routing.exchange(exchange);
                (record.dying, self.find_exchange(record.vhost, &record.name).map(Destination::Exchange))
            }
        };
        if !binding.stored || !source.dying && !is_dying {
            return false;
        }
        let spec =
            BindingSpec { source: &source.name, routing_key: &binding.key, arguments: &binding.arguments };
        let ends = self.find_exchange(source.vhost, &source.name).zip(destination);
        let anew = ends.and_then(|(source, destination)| self.find_binding(source, destination, &spec));
        anew.is_some_and(|anew| self.routing.binding(anew).stored)
    }
}

/// Where a binding leads, with the list that it is on there.
fn end(queues: &mut Queues, destination: Destination) -> End<'_> {
    match destination {
        Destination::Queue(queue) => End::Queue(queue, queues.bindings_mut(queue)),
        Destination::Exchange(exchange) => End::Exchange(exchange),
    }
}

/// Whether only the broker itself gives exchanges such a name.
fn is_system_name(name: &str) -> bool {
    name.is_empty() || name.starts_with("amq.")
}

/// Names with this prefix are the broker's own.
fn check_exchange_name(name: &str) -> Result<(), Fault> {
    if name.starts_with("amq.") {
        return Err(Fault::new(
            ReplyCode::AccessRefused,
            format_args!("exchange name '{name}' contains reserved prefix 'amq.*'"),
        ));
    }
    Ok(())
}

/// Bytes of a binding's names: where keys make nodes, the words of this one may lie there once more.
const fn binding_bytes(kind: Kind, key: &str, arguments: &[u8]) -> usize {
    let words = matches!(kind, Kind::Direct | Kind::Topic);
    key.len() * (1 + words as usize) + arguments.len()
}

/// The nameless exchange cannot be declared, bound or deleted.
pub(super) fn refuse_default(name: &str) -> Result<(), Fault> {
    if name.is_empty() {
        return Err(Fault::new(
            ReplyCode::AccessRefused,
            format_args!("operation not permitted on the default exchange"),
        ));
    }
    Ok(())
}

fn check_x_match(arguments: &[u8]) -> Result<(), Fault> {
    let fault = |what: core::fmt::Arguments<'_>| {
        Err(Fault::new(ReplyCode::PreconditionFailed, format_args!("Invalid x-match field {what}")))
    };
    match routing::invalid_match(arguments) {
        None => Ok(()),
        Some(Value::LongStr(text)) => {
            fault(format_args!("value {}; expected all, any, all-with-x, or any-with-x", ErlangBinary(text)))
        }
        Some(value) => {
            fault(format_args!("type {} (value {}); expected longstr", value.type_name(), ErlangTerm(value)))
        }
    }
}
