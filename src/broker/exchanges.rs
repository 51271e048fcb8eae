//! Declaring, deleting and binding exchanges.
//!
//! The order of the checks is RabbitMQ's, because clients see which one fails first.

use crate::command::{BindingId, ConnectionId, ExchangeId, Outcome, VhostId};
use crate::error::{Fault, ReplyCode};
use crate::journal::{Batch, DestinationName};
use crate::mem::{Links, List};
use crate::wire::field::{Table, Value};

use super::Broker;
use super::access::{Right, Thing};
use super::arguments::{self, inequivalent_flag};
use super::exchange::{Binding, Destination, Exchange, Kind, Node};
use super::headers;
use super::jobs::Job;
use super::shares::{Declared, Declarer};
use super::topic;
use super::words::{ErlangBinary, ErlangTerm, ExchangeInWords};

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
    /// The type that its name stands for.
    pub(super) fn kind(&self) -> Result<Kind, Fault> {
        Kind::from_name(self.kind).ok_or_else(|| {
            let what = if self.kind.is_empty() { "invalid" } else { "unknown" };
            Fault::connection(ReplyCode::CommandInvalid, format_args!("{what} exchange type '{}'", self.kind))
        })
    }
}

/// A binding's fields, whichever method they came with.
pub(super) struct BindingSpec<'a> {
    pub(super) source: &'a str,
    pub(super) routing_key: &'a str,
    pub(super) arguments: &'a [u8],
}

impl Broker {
    pub(super) fn exchange_in_words<'a>(&'a self, vhost: VhostId, name: &'a str) -> ExchangeInWords<'a> {
        ExchangeInWords { name, vhost: self.vhost_name(vhost) }
    }

    pub(super) fn find_exchange(&self, vhost: VhostId, name: &str) -> Option<ExchangeId> {
        let is_it =
            |index: usize| self.exchanges[index].vhost == vhost && &*self.exchanges[index].name == name;
        self.exchange_table.find((vhost, name), is_it).map(ExchangeId::from_index)
    }

    pub(super) fn require_exchange(&self, vhost: VhostId, name: &str) -> Result<ExchangeId, Fault> {
        self.find_exchange(vhost, name).ok_or_else(|| {
            Fault::new(ReplyCode::NotFound, format_args!("no {}", self.exchange_in_words(vhost, name)))
        })
    }

    /// exchange.declare with passive set: who is told that it is there may rely on it.
    pub(super) fn check_exchange_exists(&mut self, vhost: VhostId, name: &str) -> Result<Outcome, Fault> {
        refuse_default(name)?;
        let exchange = self.require_exchange(vhost, name)?;
        self.await_defined(self.exchanges[exchange.index()].defined);
        Ok(Outcome::Done)
    }

    pub(super) fn declare_exchange(
        &mut self,
        connection: ConnectionId,
        vhost: VhostId,
        declaration: &ExchangeDeclaration<'_>,
    ) -> Result<Outcome, Fault> {
        let name = declaration.exchange;
        let kind = declaration.kind()?;
        refuse_default(name)?;
        self.check(connection, vhost, Right::Configure, Thing::Exchange(name))?;
        if let Some(exchange) = self.find_exchange(vhost, name) {
            return self.compare_exchange(vhost, exchange, kind, declaration);
        }
        check_exchange_name(name)?;
        if let Some(alternate) = self.alternate_argument(vhost, declaration)? {
            self.check(connection, vhost, Right::Read, Thing::Exchange(name))?;
            self.check(connection, vhost, Right::Write, Thing::Exchange(alternate))?;
        }
        self.create_exchange(vhost, kind, declaration)
    }

    /// Makes an exchange whose name is free.
    pub(super) fn create_exchange(
        &mut self,
        vhost: VhostId,
        kind: Kind,
        declaration: &ExchangeDeclaration<'_>,
    ) -> Result<Outcome, Fault> {
        check_exchange_name(declaration.exchange)?;
        self.alternate_argument(vhost, declaration)?;
        let name = DestinationName::Exchange(declaration.exchange);
        self.check_not_left_out(vhost, name, declaration.durable)?;
        let version = self.version_for(declaration.durable)?;
        let exchange = self.add_exchange(vhost, kind, declaration, version)?;
        self.say_exchange(exchange.index(), true);
        Ok(Outcome::Done)
    }

    pub(super) fn compare_exchange(
        &mut self,
        vhost: VhostId,
        exchange: ExchangeId,
        kind: Kind,
        declaration: &ExchangeDeclaration<'_>,
    ) -> Result<Outcome, Fault> {
        let words = self.exchange_in_words(vhost, declaration.exchange);
        let record = &self.exchanges[exchange.index()];
        if record.kind != kind {
            return Err(inequivalent_flag("type", &words, &kind.name(), &record.kind.name()));
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
        self.await_defined(record.defined);
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
        vhost: VhostId,
        kind: Kind,
        declaration: &ExchangeDeclaration<'_>,
        version: u64,
    ) -> Result<ExchangeId, Fault> {
        self.check_vhost_alive(vhost)?;
        let bytes = declaration.exchange.len() + declaration.arguments.len();
        let declarer = self.take_share(Declared::Exchange, vhost, bytes)?;
        self.declared_exchanges += 1;
        let exchange = self.insert_exchange(vhost, kind, declaration, version);
        self.exchanges[exchange.index()].declarer = declarer;
        Ok(exchange)
    }

    /// The caller made sure of room.
    pub(super) fn insert_exchange(
        &mut self,
        vhost: VhostId,
        kind: Kind,
        declaration: &ExchangeDeclaration<'_>,
        version: u64,
    ) -> ExchangeId {
        let alternate = Table::trusted(declaration.arguments).get("alternate-exchange");
        let root = self.insert_node(None, b"", 0);
        let record = Exchange {
            vhost,
            name: declaration.exchange.into(),
            kind,
            version,
            defined: Batch::NONE,
            durable: declaration.durable,
            auto_delete: declaration.auto_delete,
            internal: declaration.internal,
            arguments: declaration.arguments.into(),
            declarer: None,
            alternate: alternate.and_then(|value| value.as_str()).map(Into::into),
            root,
            bindings: List::default(),
            incoming: List::default(),
            pairs: 0,
            routed_at: 0,
            dying: false,
        };
        let index = self.exchanges.insert(record).expect("there was room");
        self.exchange_table.insert((vhost, declaration.exchange), index);
        self.hold_vhost(vhost);
        self.topology += 1;
        ExchangeId::from_index(index)
    }

    pub(super) fn delete_exchange_by_name(
        &mut self,
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
        self.check(connection, vhost, Right::Configure, Thing::Exchange(name))?;
        let Some(exchange) = self.find_exchange(vhost, name) else {
            if !self.delete_left_out(vhost, DestinationName::Exchange(name), if_unused)? {
                self.await_others();
            }
            return Ok(None);
        };
        if if_unused && !self.exchanges[exchange.index()].bindings.is_empty() {
            return Err(Fault::new(
                ReplyCode::PreconditionFailed,
                format_args!("{} in use", self.exchange_in_words(vhost, name)),
            ));
        }
        self.check_deletable(self.exchanges[exchange.index()].version != 0)?;
        self.retire_exchange(exchange);
        Ok(Some(exchange))
    }

    /// Takes the name away; the record goes when its bindings are cleared.
    pub(super) fn retire_exchange(&mut self, exchange: ExchangeId) {
        self.say_exchange(exchange.index(), false);
        let record = &mut self.exchanges[exchange.index()];
        record.dying = true;
        self.exchange_table.remove((record.vhost, &*record.name), exchange.index());
        self.topology += 1;
    }

    pub(super) fn free_exchange(&mut self, exchange: ExchangeId) {
        let record = self.exchanges.remove(exchange.index());
        self.nodes.remove(record.root);
        // Those that every virtual host begins with are counted with it.
        if !is_system_name(&record.name) {
            let bytes = record.name.len() + record.arguments.len();
            self.give_share_back(Declared::Exchange, (record.vhost, record.declarer), bytes);
            self.declared_exchanges -= 1;
        }
        self.let_go_of_vhost(record.vhost);
    }

    /// Whether a connection may bind, or unbind, a destination to a source.
    pub(super) fn check_bind(
        &self,
        connection: ConnectionId,
        vhost: VhostId,
        destination: Thing<'_>,
        spec: &BindingSpec<'_>,
    ) -> Result<(), Fault> {
        self.check(connection, vhost, Right::Write, destination)?;
        if let Thing::Exchange(name) = destination {
            refuse_default(name)?;
        }
        refuse_default(spec.source)?;
        self.check(connection, vhost, Right::Read, Thing::Exchange(spec.source))?;
        match self.find_exchange(vhost, spec.source) {
            Some(source) => self.check_topic(connection, source, Right::Read, spec.routing_key.as_bytes()),
            None => Ok(()),
        }
    }

    /// exchange.bind and queue.bind, once the destination is known.
    pub(super) fn bind(
        &mut self,
        source: ExchangeId,
        destination: Destination,
        spec: &BindingSpec<'_>,
    ) -> Result<Outcome, Fault> {
        let kind = self.exchanges[source.index()].kind;
        if kind == Kind::Headers {
            check_x_match(Table::trusted(spec.arguments))?;
        }
        if let Some(binding) = self.find_binding(source, destination, spec) {
            if self.bindings[binding.index()].stored {
                self.await_others();
            }
            return Ok(Outcome::Done);
        }
        if self.is_stored_binding(source.index(), destination) {
            self.version_for(true)?;
        }
        let binding = self.add_binding(source, destination, spec)?;
        self.say_binding(binding, true);
        Ok(Outcome::Done)
    }

    /// Unbinding what is not there is fine, whatever of it is missing.
    pub(super) fn unbind_exchange(
        &mut self,
        vhost: VhostId,
        destination: &str,
        spec: &BindingSpec<'_>,
    ) -> Result<(), Fault> {
        if let Some(source) = self.find_exchange(vhost, spec.source)
            && let Some(destination) = self.find_exchange(vhost, destination)
            && let Some(found) = self.find_binding(source, Destination::Exchange(destination), spec)
        {
            self.check_deletable(self.bindings[found.index()].stored)?;
            self.remove_binding(found.index());
        } else {
            self.await_others();
        }
        Ok(())
    }

    /// Puts a binding on everything it hangs on.
    pub(super) fn add_binding(
        &mut self,
        source: ExchangeId,
        destination: Destination,
        spec: &BindingSpec<'_>,
    ) -> Result<usize, Fault> {
        let kind = self.exchanges[source.index()].kind;
        let bytes = binding_bytes(kind, spec.routing_key, spec.arguments);
        let declared = declared_binding(kind, spec.arguments);
        let vhost = self.exchanges[source.index()].vhost;
        let declarer = self.take_share(declared, vhost, bytes)?;
        let missing = self.missing_nodes(source, kind, spec.routing_key.as_bytes());
        if let Err(fault) = self.take_nodes(vhost, declarer, missing) {
            self.give_share_back(declared, (vhost, declarer), bytes);
            return Err(fault);
        }
        let user = declarer.map_or(0, |declarer| declarer.user);
        let node = self.node_for(source, kind, spec.routing_key.as_bytes(), user);
        Ok(self.insert_binding(source, destination, spec, (node, declarer)))
    }

    fn insert_binding(
        &mut self,
        source: ExchangeId,
        destination: Destination,
        spec: &BindingSpec<'_>,
        (node, declarer): (usize, Option<Declarer>),
    ) -> usize {
        let record = Binding {
            source,
            destination,
            key: spec.routing_key.into(),
            arguments: spec.arguments.into(),
            stored: self.is_stored_binding(source.index(), destination),
            declarer,
            node,
            hook: None,
            source_links: Links::default(),
            destination_links: Links::default(),
            node_links: Links::default(),
        };
        let index = self.bindings.insert(record).expect("there was room");
        self.binding_table.insert((source, destination, spec.routing_key, spec.arguments), index);
        let outgoing = &mut self.exchanges[source.index()].bindings;
        outgoing.push_back(&mut self.bindings, index, |binding| &mut binding.source_links);
        let incoming = match destination {
            Destination::Queue(queue) => &mut self.queues[queue.index()].bindings,
            Destination::Exchange(exchange) => &mut self.exchanges[exchange.index()].incoming,
        };
        incoming.push_back(&mut self.bindings, index, |binding| &mut binding.destination_links);
        let arguments = Table::trusted(spec.arguments);
        if hangs_on_node(self.exchanges[source.index()].kind, arguments) {
            let list = &mut self.nodes[node].bindings;
            list.push_back(&mut self.bindings, index, |binding| &mut binding.node_links);
        } else {
            let (hook, count) = self.pairs.hang(source, index, arguments);
            self.bindings[index].hook = hook;
            self.exchanges[source.index()].pairs += count;
        }
        self.topology += 1;
        index
    }

    pub(super) fn find_binding(
        &self,
        source: ExchangeId,
        destination: Destination,
        spec: &BindingSpec<'_>,
    ) -> Option<BindingId> {
        let key = (source, destination, spec.routing_key, spec.arguments);
        let is_it = |index: usize| {
            let binding = &self.bindings[index];
            (binding.source, binding.destination, &*binding.key, &*binding.arguments) == key
        };
        self.binding_table.find(key, is_it).map(BindingId::from_index)
    }

    /// Takes a binding off everything it hangs on. An auto-delete source goes with its last binding.
    pub(super) fn remove_binding(&mut self, index: usize) {
        if !self.is_bound_anew(index) {
            self.say_binding(index, false);
        }
        let Binding { source, destination, node, hook, .. } = self.bindings[index];
        let outgoing = &mut self.exchanges[source.index()].bindings;
        outgoing.remove(&mut self.bindings, index, |binding| &mut binding.source_links);
        let incoming = match destination {
            Destination::Queue(queue) => &mut self.queues[queue.index()].bindings,
            Destination::Exchange(exchange) => &mut self.exchanges[exchange.index()].incoming,
        };
        incoming.remove(&mut self.bindings, index, |binding| &mut binding.destination_links);
        let kind = self.exchanges[source.index()].kind;
        if hangs_on_node(kind, Table::trusted(&self.bindings[index].arguments)) {
            let list = &mut self.nodes[node].bindings;
            list.remove(&mut self.bindings, index, |binding| &mut binding.node_links);
        }
        self.exchanges[source.index()].pairs -= self.pairs.take_off(hook);
        let binding = self.bindings.remove(index);
        self.binding_table.remove((source, destination, &*binding.key, &*binding.arguments), index);
        let bytes = binding_bytes(kind, &binding.key, &binding.arguments);
        let vhost = self.exchanges[source.index()].vhost;
        let declared = declared_binding(kind, &binding.arguments);
        self.give_share_back(declared, (vhost, binding.declarer), bytes);
        self.prune(node, vhost);
        self.topology += 1;
        let record = &self.exchanges[source.index()];
        if record.auto_delete && !record.dying && record.bindings.is_empty() {
            self.retire_exchange(source);
            self.queue_job(Job::Exchange(source));
        }
    }

    /// Whether an end of it was deleted, and things of the same names are bound the same way by now: to the
    /// log that is one binding, and it exists.
    fn is_bound_anew(&self, index: usize) -> bool {
        let binding = &self.bindings[index];
        let source = &self.exchanges[binding.source.index()];
        let (is_dying, destination) = match binding.destination {
            Destination::Queue(queue) => {
                let record = &self.queues[queue.index()];
                (record.dying, self.find_queue(record.vhost, &record.name).map(Destination::Queue))
            }
            Destination::Exchange(exchange) => {
                let record = &self.exchanges[exchange.index()];
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
        anew.is_some_and(|anew| self.bindings[anew.index()].stored)
    }

    /// How many nodes there are to be made for a binding with this key.
    fn missing_nodes(&self, source: ExchangeId, kind: Kind, key: &[u8]) -> usize {
        let mut at = Some(self.exchanges[source.index()].root);
        let mut is_missing = |word: &[u8]| {
            at = at.and_then(|parent| topic::child(&self.nodes, &self.node_table, parent, word));
            at.is_none()
        };
        match kind {
            Kind::Fanout | Kind::Headers | Kind::Default => 0,
            Kind::Direct => usize::from(is_missing(key)),
            Kind::Topic => topic::words(key).filter(|word| is_missing(word)).count(),
        }
    }

    /// The node where a binding with this key hangs; the caller made sure of room for those that are missing.
    fn node_for(&mut self, source: ExchangeId, kind: Kind, key: &[u8], user: u32) -> usize {
        let root = self.exchanges[source.index()].root;
        match kind {
            Kind::Fanout | Kind::Headers | Kind::Default => root,
            Kind::Direct => self.child_or_new(root, key, user),
            Kind::Topic => topic::words(key).fold(root, |at, word| self.child_or_new(at, word, user)),
        }
    }

    fn child_or_new(&mut self, parent: usize, word: &[u8], user: u32) -> usize {
        if let Some(child) = topic::child(&self.nodes, &self.node_table, parent, word) {
            return child;
        }
        let child = self.insert_node(Some(parent), word, user);
        self.node_table.insert((parent as u32, word), child);
        let record = &mut self.nodes[parent];
        record.children += 1;
        match word {
            b"*" => record.star = Some(child),
            b"#" => record.hash = Some(child),
            _ => {}
        }
        child
    }

    fn insert_node(&mut self, parent: Option<usize>, word: &[u8], user: u32) -> usize {
        let node = Node {
            parent,
            word: word.into(),
            bindings: List::default(),
            children: 0,
            user,
            star: None,
            hash: None,
            reached_at: 0,
        };
        self.nodes.insert(node).expect("the caller made sure of room")
    }

    /// Removes a node that serves nothing any more, and its parents likewise.
    fn prune(&mut self, node: usize, vhost: VhostId) {
        let mut at = node;
        while let Some(parent) = self.nodes[at].parent {
            if self.nodes[at].children > 0 || !self.nodes[at].bindings.is_empty() {
                return;
            }
            let record = self.nodes.remove(at);
            self.give_node_back(vhost, record.user);
            self.node_table.remove((parent as u32, &*record.word), at);
            let above = &mut self.nodes[parent];
            above.children -= 1;
            match &*record.word {
                b"*" => above.star = None,
                b"#" => above.hash = None,
                _ => {}
            }
            at = parent;
        }
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

/// A binding that is found by any of several pairs takes a place for each.
fn declared_binding(kind: Kind, arguments: &[u8]) -> Declared {
    Declared::Binding(if kind == Kind::Headers { headers::places(Table::trusted(arguments)) } else { 1 })
}

/// Whether a binding hangs on its node, or is found by its pairs.
fn hangs_on_node(kind: Kind, arguments: Table<'_>) -> bool {
    kind != Kind::Headers || headers::takes_everything(arguments)
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

fn check_x_match(arguments: Table<'_>) -> Result<(), Fault> {
    let fault = |what: core::fmt::Arguments<'_>| {
        Err(Fault::new(ReplyCode::PreconditionFailed, format_args!("Invalid x-match field {what}")))
    };
    match headers::invalid_match(arguments) {
        None => Ok(()),
        Some(Value::LongStr(text)) => {
            fault(format_args!("value {}; expected all, any, all-with-x, or any-with-x", ErlangBinary(text)))
        }
        Some(value) => {
            fault(format_args!("type {} (value {}); expected longstr", value.type_name(), ErlangTerm(value)))
        }
    }
}
