//! The records of exchanges and bindings, and how they refer to each other.
//!
//! Why it exists: an exchange and a binding are read all over the broker, and changed in this folder alone.
//!
//! Always true: a binding is on its source's list, on its destination's list and, unless it is found by its
//! pairs (`pairs`), on its node's list; bindings of a headers exchange that take everything are on the list of its root.

use std::sync::Arc;

use crate::policy::Applied;
use crate::quota::Declarer;
use leveret_core::command::{ExchangeId, QueueId, VhostId};
use leveret_core::journal::Batch;
use leveret_core::mem::{Links, List};

/// The type of delayed exchanges, which keep a message for its delay before they route it.
pub(crate) const DELAYED: &str = "x-delayed-message";

/// How an exchange routes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// The default exchange: the routing key is a queue's name.
    Default,
    /// The routing key equals the binding key.
    Direct,
    /// Every message goes to every binding.
    Fanout,
    /// Words of the routing key against patterns with `*` and `#`.
    Topic,
    /// Message headers against binding arguments.
    Headers,
}

impl Kind {
    /// The name of the type on the wire.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Default | Self::Direct => "direct",
            Self::Fanout => "fanout",
            Self::Topic => "topic",
            Self::Headers => "headers",
        }
    }

    /// The kind for a type's name as clients give it.
    pub(super) fn from_name(name: &str) -> Option<Self> {
        [Self::Direct, Self::Fanout, Self::Topic, Self::Headers].into_iter().find(|kind| kind.name() == name)
    }
}

/// One exchange.
#[derive(Debug)]
pub(crate) struct Exchange {
    pub(crate) vhost: VhostId,
    pub(crate) name: Box<str>,
    pub(crate) kind: Kind,
    /// The version of the exchange, which no other ever has; 0 when it is not in the log.
    pub(crate) version: u64,
    /// The batch with which the definition of the exchange is durable.
    pub(crate) defined: Batch,
    pub(crate) durable: bool,
    pub(crate) auto_delete: bool,
    pub(crate) internal: bool,
    pub(crate) arguments: Box<[u8]>,
    /// In whose share of the quotas the exchange is.
    pub(super) declarer: Option<Declarer>,
    /// The hidden queue of a delayed exchange, where messages wait for their delay.
    pub(crate) delayed_queue: Option<QueueId>,
    /// The alternate exchange, for messages that match no binding.
    pub(super) alternate: Option<Arc<str>>,
    /// The policies that apply to the exchange.
    pub(crate) applied: Applied,
    /// The root of the exchange's trie.
    pub(super) root: usize,
    /// Bindings whose source is the exchange.
    pub(super) bindings: List,
    /// Bindings whose destination is the exchange.
    pub(super) incoming: List,
    /// How many pairs bindings from the exchange are found by.
    pub(super) pairs: u32,
    /// The number of the route that came to the exchange last.
    pub(super) routed_at: u64,
    /// The number of the exchange, which no other exchange of this process has.
    pub(crate) serial: u64,
    /// Messages published to the exchange, and queues that those went to, modulo 2³².
    pub(crate) published: [u32; 2],
    /// The exchange is deleted: its record goes with its last binding.
    pub(crate) dying: bool,
}

impl Exchange {
    /// The name of the exchange's type on the wire.
    pub(crate) const fn type_name(&self) -> &'static str {
        if self.delayed_queue.is_some() { DELAYED } else { self.kind.name() }
    }
}

/// The destination of a binding.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub(crate) enum Destination {
    Queue(QueueId),
    Exchange(ExchangeId),
}

/// One binding.
#[derive(Debug)]
pub(crate) struct Binding {
    pub(crate) source: ExchangeId,
    pub(crate) destination: Destination,
    pub(crate) key: Box<str>,
    pub(crate) arguments: Box<[u8]>,
    /// Whether the log has it.
    pub(crate) stored: bool,
    /// In whose share of the quotas the binding is.
    pub(super) declarer: Option<Declarer>,
    /// The node of the trie for the routing key.
    pub(super) node: usize,
    /// The first of the pairs that the binding is found by, if any.
    pub(super) hook: Option<u32>,
    pub(super) source_links: Links,
    pub(super) destination_links: Links,
    pub(super) node_links: Links,
}

impl Binding {
    pub(super) fn found(&self) -> FoundBinding<'_> {
        FoundBinding {
            source: self.source,
            destination: self.destination,
            routing_key: &self.key,
            arguments: &self.arguments,
        }
    }
}

/// The fields of a binding as a client names them.
pub(crate) struct BindingSpec<'a> {
    pub(crate) source: &'a str,
    pub(crate) routing_key: &'a str,
    pub(crate) arguments: &'a [u8],
}

impl<'a> BindingSpec<'a> {
    /// The binding with these fields, once source and destination are found.
    pub(crate) const fn between(&self, source: ExchangeId, destination: Destination) -> FoundBinding<'a> {
        FoundBinding { source, destination, routing_key: self.routing_key, arguments: self.arguments }
    }
}

/// What identifies a binding, with its source and destination found.
#[derive(PartialEq, Eq, Hash)]
pub(crate) struct FoundBinding<'a> {
    pub(super) source: ExchangeId,
    pub(super) destination: Destination,
    pub(super) routing_key: &'a str,
    pub(super) arguments: &'a [u8],
}
