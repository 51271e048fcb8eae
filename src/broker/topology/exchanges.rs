//! Creates, finds, compares, stores and deletes exchanges; checks the fields of `exchange.declare`.
//!
//! Besides its record, an exchange has a root in the trie, a place under its name, a definition in the
//! log and a number in the quota. All of them end with it.
//!
//! # Invariants
//! - Only an exchange with a version is in the log.
//! - A repeated declaration is compared with the first one, whatever policies are applied.
//! - The name of a deleted exchange is freed first, and the record when nothing is bound any more.

use core::fmt;
use std::sync::Arc;

use leveret_amqp::field::{Table, Value};
use leveret_core::command::{ExchangeId, QueueId, VhostId};
use leveret_core::error::{Fault, ReplyCode};
use leveret_core::mem::List;
use leveret_core::pending_writes::{Batch, Definition};

use super::{DELAYED, Exchange, ExchangeKind, Topology, find_exchange};
use crate::arguments::{self, inequivalent_flag};
use crate::policy::Applied;
use crate::quota::{Declared, Declarer, Quota};
use crate::reply_text::ExchangeText;
use crate::{Access, Context};

/// The fields of a new exchange.
pub(crate) struct NewExchange<'a> {
    pub(crate) vhost: VhostId,
    pub(crate) declaration: ExchangeDeclaration<'a>,
    /// Version of the exchange, never reused; 0 when it is not in the log.
    pub(crate) version: u64,
    pub(crate) declarer: Option<Declarer>,
    /// The hidden queue of a delayed exchange, where messages wait for their delay.
    pub(crate) delayed_queue: Option<QueueId>,
}

impl Topology {
    pub(crate) fn find_exchange(&self, vhost: VhostId, name: &str) -> Option<ExchangeId> {
        find_exchange(&self.exchanges, &self.exchange_table, vhost, name)
    }

    /// Returns the exchange of this name.
    ///
    /// # Errors
    /// There is no such exchange.
    pub(crate) fn require_exchange(
        &self,
        access: &Access,
        vhost: VhostId,
        name: &str,
    ) -> Result<ExchangeId, Fault> {
        self.find_exchange(vhost, name).ok_or_else(|| {
            Fault::new(ReplyCode::NotFound, format_args!("no {}", exchange_text(access, vhost, name)))
        })
    }

    pub(crate) fn exchange(&self, exchange: ExchangeId) -> &Exchange {
        &self.exchanges[exchange.index()]
    }

    /// Counts a message that was published to an exchange and routed to this many queues.
    #[inline]
    pub(crate) fn count_published(&mut self, exchange: ExchangeId, queues: u32) {
        let [published, routed] = &mut self.exchanges[exchange.index()].published;
        (*published, *routed) = (published.wrapping_add(1), routed.wrapping_add(queues));
    }

    /// Returns the number of places of exchanges ever used.
    pub(crate) const fn exchange_places(&self) -> usize {
        self.exchanges.places()
    }

    /// Returns the exchange in a place, if it is not retired.
    pub(crate) fn exchange_at(&self, place: usize) -> Option<&Exchange> {
        self.exchanges.get(place).filter(|record| !record.is_deleted)
    }

    /// Compares an existing exchange with another declaration of it; the answer waits until its definition is
    /// durable.
    ///
    /// # Errors
    /// The exchange was declared with other properties.
    pub(crate) fn compare_exchange(
        &self,
        cx: &mut Context<'_>,
        access: &Access,
        exchange: ExchangeId,
        declaration: &ExchangeDeclaration<'_>,
    ) -> Result<(), Fault> {
        let record = self.exchange(exchange);
        let words = exchange_text(access, record.vhost, declaration.exchange);
        // As in RabbitMQ's plug-in, `x-delayed-type` is not compared.
        if declaration.kind != record.type_name() {
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
        Ok(())
    }

    /// Adds an exchange under its name. The caller has checked its declaration and the capacity, and has
    /// counted it unless it is predeclared.
    pub(crate) fn insert_exchange(&mut self, new: &NewExchange<'_>) -> ExchangeId {
        let declaration = &new.declaration;
        assert!(
            declaration.is_delayed() == new.delayed_queue.is_some(),
            "a delayed exchange has its hidden queue"
        );
        assert!(declaration.durable || new.version == 0, "only what is durable is in the log");
        let kind = match declaration.exchange {
            "" => ExchangeKind::Default,
            _ => declaration.new_kind().expect("the caller checked how it chooses"),
        };
        let alternate = Table::trusted(declaration.arguments).get("alternate-exchange");
        let record = Exchange {
            vhost: new.vhost,
            name: declaration.exchange.into(),
            kind,
            version: new.version,
            defined: Batch::NONE,
            durable: declaration.durable,
            auto_delete: declaration.auto_delete,
            internal: declaration.internal,
            arguments: declaration.arguments.into(),
            declarer: new.declarer,
            delayed_queue: new.delayed_queue,
            alternate: alternate.and_then(|value| value.as_str()).map(Into::into),
            applied: Applied::default(),
            root: self.trie.add_root(),
            bindings: List::default(),
            incoming: List::default(),
            pairs: 0,
            routed_at: 0,
            // The revision rises with every exchange.
            serial: self.revision() + 1,
            published: [0; 2],
            is_deleted: false,
        };
        let index = self.exchanges.insert(record).expect("there was room");
        self.exchange_table.insert((new.vhost, declaration.exchange), index);
        self.revise();
        ExchangeId::from_index(index)
    }

    /// Sets which policies apply to an exchange, and their alternate exchange, unless the exchange was
    /// declared with one.
    pub(crate) fn apply_policies(
        &mut self,
        exchange: ExchangeId,
        applied: Applied,
        alternate: Option<Arc<str>>,
    ) {
        let record = &mut self.exchanges[exchange.index()];
        record.applied = applied;
        let is_own = Table::trusted(&record.arguments).get("alternate-exchange").is_some();
        if !is_own && record.alternate != alternate {
            record.alternate = alternate;
            self.revise();
        }
    }

    /// Appends to the log that an exchange exists, or is deleted.
    pub(crate) fn append_exchange(
        &mut self,
        cx: &mut Context<'_>,
        access: &Access,
        exchange: ExchangeId,
        exists: bool,
    ) {
        let record = &mut self.exchanges[exchange.index()];
        if record.version == 0 {
            return;
        }
        let definition = Definition::Exchange {
            vhost: access.vhost_name(record.vhost),
            name: &record.name,
            version: record.version,
            kind: record.type_name(),
            auto_delete: record.auto_delete,
            internal: record.internal,
            arguments: &record.arguments,
        };
        record.defined = cx.pending_writes.define(definition.key(), exists.then(|| definition.value()));
        cx.await_batch(record.defined);
    }

    /// Frees the name of a deleted exchange, in the log too; the record stays until its bindings are
    /// removed.
    pub(crate) fn retire_exchange(&mut self, cx: &mut Context<'_>, access: &Access, exchange: ExchangeId) {
        self.append_exchange(cx, access, exchange, false);
        let record = &mut self.exchanges[exchange.index()];
        assert!(!record.is_deleted, "an exchange is retired once");
        record.is_deleted = true;
        self.exchange_table.remove((record.vhost, &*record.name), exchange.index());
        self.revise();
    }

    /// Frees the record of a retired exchange without bindings. Returns its virtual host.
    pub(crate) fn free_exchange(&mut self, quota: &mut Quota, exchange: ExchangeId) -> VhostId {
        let record = self.exchanges.remove(exchange.index());
        assert!(record.is_deleted && record.bindings.is_empty() && record.incoming.is_empty());
        self.trie.remove_root(record.root);
        // Predeclared exchanges are counted with their virtual host.
        if !is_system_name(&record.name) {
            let bytes = record.name.len() + record.arguments.len();
            quota.undeclare(Declared::Exchange, bytes, record.declarer);
        }
        record.vhost
    }

    /// Returns whether the exchange is the source of a binding.
    pub(crate) fn is_source(&self, exchange: ExchangeId) -> bool {
        !self.exchanges[exchange.index()].bindings.is_empty()
    }
}

/// Exchange types that plug-ins or later versions of RabbitMQ add. The fault names the missing plug-in;
/// RabbitMQ without it says only that the type is unknown.
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

/// The fields of `exchange.declare`.
///
/// The checks are separate, in RabbitMQ's order: a client that declares an existing exchange first learns
/// what is wrong with the type, and of the rest only what differs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ExchangeDeclaration<'a> {
    pub(crate) exchange: &'a str,
    pub(crate) kind: &'a str,
    pub(crate) durable: bool,
    pub(crate) auto_delete: bool,
    pub(crate) internal: bool,
    pub(crate) arguments: &'a [u8],
}

impl<'a> ExchangeDeclaration<'a> {
    /// Returns whether the exchange is a delayed one.
    pub(crate) fn is_delayed(&self) -> bool {
        self.kind == DELAYED
    }

    /// Returns the bytes that the names of the exchange count for.
    pub(crate) const fn bytes(&self) -> usize {
        self.exchange.len() + self.arguments.len()
    }

    /// Checks, whether the exchange exists or not, that its type is known and that it is not the default
    /// exchange. `x-delayed-type` is checked only for a new exchange.
    pub(crate) fn check_askable(&self) -> Result<(), Fault> {
        if !self.is_delayed() {
            kind_named(self.kind)?;
        }
        refuse_default(self.exchange)
    }

    /// Returns how a new exchange routes.
    ///
    /// # Errors
    /// There is no such type, or `x-delayed-type` is missing or wrong.
    pub(crate) fn new_kind(&self) -> Result<ExchangeKind, Fault> {
        if !self.is_delayed() {
            return kind_named(self.kind);
        }
        let declaration =
            Table::trusted(self.arguments).get("x-delayed-type").and_then(|value| value.as_str());
        // A message delayed by a delayed type would never be routed.
        let declaration = declaration.filter(|kind| *kind != DELAYED).ok_or_else(|| {
            Fault::new(
                ReplyCode::PreconditionFailed,
                format_args!("Invalid argument, 'x-delayed-type' must be an existing exchange type"),
            )
        });
        declaration.and_then(kind_named)
    }

    /// Checks whether clients may give an exchange this name: `amq.` is reserved.
    pub(crate) fn check_name(&self) -> Result<(), Fault> {
        let name = self.exchange;
        let words = format_args!("exchange name '{name}' contains reserved prefix 'amq.*'");
        refuse_if(name.starts_with("amq."), words)
    }

    /// Returns the alternate exchange that the arguments name.
    ///
    /// # Errors
    /// The argument exists, but names no exchange.
    pub(crate) fn alternate(&self, access: &Access, vhost: VhostId) -> Result<Option<&'a str>, Fault> {
        match Table::trusted(self.arguments).get("alternate-exchange") {
            None => Ok(None),
            Some(value @ Value::LongStr(_)) => Ok(Some(value.as_str().unwrap_or_default())),
            Some(other) => Err(Fault::new(
                ReplyCode::PreconditionFailed,
                format_args!(
                    "invalid type '{}' for arg 'alternate-exchange' in {}",
                    other.type_name(),
                    exchange_text(access, vhost, self.exchange)
                ),
            )),
        }
    }
}

/// Returns the kind for a type's name.
fn kind_named(kind: &str) -> Result<ExchangeKind, Fault> {
    ExchangeKind::from_name(kind).ok_or_else(|| {
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

/// Returns an exchange's name and virtual host as reply texts show them.
pub(crate) fn exchange_text<'a>(access: &'a Access, vhost: VhostId, name: &'a str) -> ExchangeText<'a> {
    ExchangeText { name, vhost: access.vhost_name(vhost) }
}

/// Refuses to declare, bind or delete the default exchange.
pub(crate) fn refuse_default(name: &str) -> Result<(), Fault> {
    refuse_if(name.is_empty(), format_args!("operation not permitted on the default exchange"))
}

/// Checks whether an exchange of this name may be deleted: the predeclared ones stay.
pub(crate) fn check_deletable_name(access: &Access, vhost: VhostId, name: &str) -> Result<(), Fault> {
    refuse_default(name)?;
    let words = exchange_text(access, vhost, name);
    refuse_if(is_system_name(name), format_args!("deletion of system {words} not allowed"))
}

/// Returns whether only predeclared exchanges have such a name.
pub(super) fn is_system_name(name: &str) -> bool {
    name.is_empty() || name.starts_with("amq.")
}

fn refuse_if(is_so: bool, words: fmt::Arguments<'_>) -> Result<(), Fault> {
    if is_so { Err(Fault::new(ReplyCode::AccessRefused, words)) } else { Ok(()) }
}
