//! exchange.declare's fields, and whether an exchange can be made of them.
//!
//! Why it exists: a client who declares an existing exchange is told first what is wrong with the type, and
//! of the rest only what differs; so each check stands by itself, in RabbitMQ's words.
//!
//! Always true: a declaration is checked without being changed, and a check that succeeded once succeeds again.

use core::fmt;

use super::records::{DELAYED, Kind};
use crate::Access;
use crate::words::ExchangeInWords;
use leveret_amqp::field::{Table, Value};
use leveret_core::command::VhostId;
use leveret_core::error::{Fault, ReplyCode};

/// Exchange types that plug-ins or later versions of RabbitMQ add. The client is told which plug-in is
/// missing; RabbitMQ without it says only that the type is unknown.
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
    /// Whether the exchange is a delayed one.
    pub(crate) fn is_delayed(&self) -> bool {
        self.kind == DELAYED
    }

    /// Bytes that the names of the exchange count for.
    pub(crate) const fn bytes(&self) -> usize {
        self.exchange.len() + self.arguments.len()
    }

    /// The first check, whether the exchange exists or not: its type is known, and it is not the default one.
    /// `x-delayed-type` is checked only for a new exchange.
    pub(crate) fn check_askable(&self) -> Result<(), Fault> {
        if !self.is_delayed() {
            kind_named(self.kind)?;
        }
        refuse_default(self.exchange)
    }

    /// The kind of a new exchange, by which it routes.
    ///
    /// # Errors
    /// There is no such type, or `x-delayed-type` is missing or wrong.
    pub(crate) fn new_kind(&self) -> Result<Kind, Fault> {
        if !self.is_delayed() {
            return kind_named(self.kind);
        }
        let said = Table::trusted(self.arguments).get("x-delayed-type").and_then(|value| value.as_str());
        // A message delayed by a delayed type would never be routed.
        let said = said.filter(|kind| *kind != DELAYED).ok_or_else(|| {
            Fault::new(
                ReplyCode::PreconditionFailed,
                format_args!("Invalid argument, 'x-delayed-type' must be an existing exchange type"),
            )
        });
        said.and_then(kind_named)
    }

    /// Checks whether clients may give an exchange this name: `amq.` is reserved.
    pub(crate) fn check_name(&self) -> Result<(), Fault> {
        let name = self.exchange;
        let words = format_args!("exchange name '{name}' contains reserved prefix 'amq.*'");
        refuse_if(name.starts_with("amq."), words)
    }

    /// The alternate exchange that the arguments name.
    ///
    /// # Errors
    /// The argument is there, but names no exchange.
    pub(crate) fn alternate(&self, access: &Access, vhost: VhostId) -> Result<Option<&'a str>, Fault> {
        match Table::trusted(self.arguments).get("alternate-exchange") {
            None => Ok(None),
            Some(value @ Value::LongStr(_)) => Ok(Some(value.as_str().unwrap_or_default())),
            Some(other) => Err(Fault::new(
                ReplyCode::PreconditionFailed,
                format_args!(
                    "invalid type '{}' for arg 'alternate-exchange' in {}",
                    other.type_name(),
                    exchange_in_words(access, vhost, self.exchange)
                ),
            )),
        }
    }
}

/// The kind that a type's name stands for.
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

/// An exchange's name and virtual host as reply texts show them.
pub(crate) fn exchange_in_words<'a>(
    access: &'a Access,
    vhost: VhostId,
    name: &'a str,
) -> ExchangeInWords<'a> {
    ExchangeInWords { name, vhost: access.vhost_name(vhost) }
}

/// Refuses to declare, bind or delete the default exchange.
pub(crate) fn refuse_default(name: &str) -> Result<(), Fault> {
    refuse_if(name.is_empty(), format_args!("operation not permitted on the default exchange"))
}

/// Checks whether an exchange of this name may be deleted: the predeclared ones stay.
pub(crate) fn check_deletable_name(access: &Access, vhost: VhostId, name: &str) -> Result<(), Fault> {
    refuse_default(name)?;
    let words = exchange_in_words(access, vhost, name);
    refuse_if(is_system_name(name), format_args!("deletion of system {words} not allowed"))
}

/// Whether the name is one that only predeclared exchanges have.
pub(super) fn is_system_name(name: &str) -> bool {
    name.is_empty() || name.starts_with("amq.")
}

fn refuse_if(is_so: bool, words: fmt::Arguments<'_>) -> Result<(), Fault> {
    if is_so { Err(Fault::new(ReplyCode::AccessRefused, words)) } else { Ok(()) }
}
