//! The records of exchanges and bindings, and how they refer to each other.
//!
//! Of a headers exchange the bindings that take everything hang on the root of its trie; the others are found
//! by their pairs (`pairs`).
//!
//! Always true: a binding is on its source's list, on its destination's list and, unless it is found by its
//! pairs, on its node's list. What links a record to others is seen in this room only.

use std::sync::Arc;

use crate::broker::policy::Applied;
use crate::broker::quota::Declarer;
use crate::command::{ExchangeId, QueueId, VhostId};
use crate::journal::Batch;
use crate::mem::{Links, List};

/// The type of exchanges that keep a message for as long as it says, and choose then.
pub(in crate::broker) const DELAYED: &str = "x-delayed-message";

/// How an exchange chooses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::broker) enum Kind {
    /// The nameless exchange: the routing key is a queue's name.
    Default,
    /// Routing key equals binding key.
    Direct,
    /// Every message goes to everything that is bound.
    Fanout,
    /// Words with `*` and `#`.
    Topic,
    /// Message headers against binding arguments.
    Headers,
}

impl Kind {
    /// The type's name on the wire.
    pub(in crate::broker) const fn name(self) -> &'static str {
        match self {
            Self::Default | Self::Direct => "direct",
            Self::Fanout => "fanout",
            Self::Topic => "topic",
            Self::Headers => "headers",
        }
    }

    pub(in crate::broker) fn from_name(name: &str) -> Option<Self> {
        [Self::Direct, Self::Fanout, Self::Topic, Self::Headers].into_iter().find(|kind| kind.name() == name)
    }
}

/// One exchange.
#[derive(Debug)]
pub(in crate::broker) struct Exchange {
    pub(in crate::broker) vhost: VhostId,
    pub(in crate::broker) name: Box<str>,
    pub(in crate::broker) kind: Kind,
    /// Never used again for another exchange; 0 when it is not in the log.
    pub(in crate::broker) version: u64,
    /// What says that it exists is durable with this.
    pub(in crate::broker) defined: Batch,
    pub(in crate::broker) durable: bool,
    pub(in crate::broker) auto_delete: bool,
    pub(in crate::broker) internal: bool,
    pub(in crate::broker) arguments: Box<[u8]>,
    /// In whose share it is.
    pub(in crate::broker) declarer: Option<Declarer>,
    /// Where its messages wait that say so, when it is a delayed one.
    pub(in crate::broker) sleepers: Option<QueueId>,
    /// Where messages go that match nothing.
    pub(in crate::broker) alternate: Option<Arc<str>>,
    /// The policies that apply to it.
    pub(in crate::broker) applied: Applied,
    pub(super) root: usize,
    /// Bindings from here.
    pub(super) bindings: List,
    /// Bindings that lead here.
    pub(super) incoming: List,
    /// Pairs that bindings from here are found by.
    pub(super) pairs: u32,
    pub(super) routed_at: u64,
    /// Its name is gone; the record goes with its last binding.
    pub(in crate::broker) dying: bool,
}

impl Exchange {
    /// The type's name on the wire.
    pub(in crate::broker) const fn type_name(&self) -> &'static str {
        if self.sleepers.is_some() { DELAYED } else { self.kind.name() }
    }
}

/// Where a binding leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub(in crate::broker) enum Destination {
    Queue(QueueId),
    Exchange(ExchangeId),
}

/// One binding.
#[derive(Debug)]
pub(in crate::broker) struct Binding {
    pub(in crate::broker) source: ExchangeId,
    pub(in crate::broker) destination: Destination,
    pub(in crate::broker) key: Box<str>,
    pub(in crate::broker) arguments: Box<[u8]>,
    /// Whether the log has it.
    pub(in crate::broker) stored: bool,
    /// In whose share it is.
    pub(in crate::broker) declarer: Option<Declarer>,
    pub(super) node: usize,
    /// The first of the pairs that it is found by.
    pub(super) hook: Option<u32>,
    pub(super) source_links: Links,
    pub(super) destination_links: Links,
    pub(super) node_links: Links,
}
