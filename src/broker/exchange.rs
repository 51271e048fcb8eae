//! Exchanges and bindings: their records, and how bindings hang on them.
//!
//! ```text
//! exchange ─ root node ─ "kern" ─ "*"        direct: one node per routing key, below the root
//!                      └ "#"                 topic: one node per word of a pattern
//! node ─ bindings that end here              fanout: all bindings on the root
//! ```
//!
//! Of a headers exchange the bindings that take everything hang on the root; the others are found by their
//! pairs (`pairs`).
//!
//! Always true: a binding is on its source's list, on its destination's list and, unless it is found by its
//! pairs, on its node's list; a node with neither bindings nor children does not exist, but for roots.

use crate::command::{ExchangeId, QueueId, VhostId};
use crate::journal::Batch;
use crate::mem::{Links, List};

use super::shares::Declarer;

/// How an exchange chooses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// The nameless exchange: the routing key is a queue's name.
    Default,
    /// Routing key equals binding key.
    Direct,
    /// Everything bound.
    Fanout,
    /// Words with `*` and `#`.
    Topic,
    /// Message headers against binding arguments.
    Headers,
}

impl Kind {
    /// The type's name on the wire.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Default | Self::Direct => "direct",
            Self::Fanout => "fanout",
            Self::Topic => "topic",
            Self::Headers => "headers",
        }
    }

    pub(super) fn from_name(name: &str) -> Option<Self> {
        [Self::Direct, Self::Fanout, Self::Topic, Self::Headers].into_iter().find(|kind| kind.name() == name)
    }
}

/// One exchange.
#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) vhost: VhostId,
    pub(super) name: Box<str>,
    pub(super) kind: Kind,
    /// Never used again for another exchange; 0 when it is not in the log.
    pub(super) version: u64,
    /// What says that it exists is durable with this.
    pub(super) defined: Batch,
    pub(super) durable: bool,
    pub(super) auto_delete: bool,
    pub(super) internal: bool,
    pub(super) arguments: Box<[u8]>,
    /// In whose share it is.
    pub(super) declarer: Option<Declarer>,
    /// Where messages go that match nothing.
    pub(super) alternate: Option<Box<str>>,
    pub(super) root: usize,
    /// Bindings from here.
    pub(super) bindings: List,
    /// Bindings that lead here.
    pub(super) incoming: List,
    /// Pairs that bindings from here are found by.
    pub(super) pairs: u32,
    pub(super) routed_at: u64,
    /// Its name is gone; the record goes with its last binding.
    pub(super) dying: bool,
}

/// Where a binding leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub(super) enum Destination {
    Queue(QueueId),
    Exchange(ExchangeId),
}

/// One binding.
#[derive(Debug)]
pub(super) struct Binding {
    pub(super) source: ExchangeId,
    pub(super) destination: Destination,
    pub(super) key: Box<str>,
    pub(super) arguments: Box<[u8]>,
    /// It is in the log.
    pub(super) stored: bool,
    /// In whose share it is.
    pub(super) declarer: Option<Declarer>,
    pub(super) node: usize,
    /// The first of the pairs that it is found by.
    pub(super) hook: Option<u32>,
    pub(super) source_links: Links,
    pub(super) destination_links: Links,
    pub(super) node_links: Links,
}

/// A routing key or a word of one.
#[derive(Debug)]
pub(super) struct Node {
    /// Its parent; none for a root.
    pub(super) parent: Option<usize>,
    pub(super) word: Box<[u8]>,
    pub(super) bindings: List,
    pub(super) children: u32,
    /// The number of the user for whose binding it was made; 0 for nobody's.
    pub(super) user: u32,
    /// The child `*`, if there is one.
    pub(super) star: Option<usize>,
    /// The child `#`, if there is one.
    pub(super) hash: Option<usize>,
    /// Step of a topic match that last reached this node.
    pub(super) reached_at: u64,
}
