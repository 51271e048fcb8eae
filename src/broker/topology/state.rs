//! All exchanges and bindings, with the tables to find them, and their sizes.
//!
//! Why it exists: the cost of a message must not depend on what was declared before it, so the tables are
//! sized once.
//!
//! Always true: whatever can change a route raises the revision; there are as many nodes as all exchanges and bindings
//! that fit may have on average, and the quota counts them.

use super::headers;
use super::pairs::Pairs;
use super::records::{Binding, Exchange};
use super::trie::Trie;
use crate::names::IndexTable;
use crate::work::Work;
use leveret_core::command::{ExchangeId, VhostId};
use leveret_core::mem::Slab;

/// Nodes of the tries per binding: a topic pattern of that many words on average.
const NODES_PER_BINDING: usize = 2;
/// Units of work that routing one message may take for each binding there may be: a key of eight words gets
/// to every node of a topic exchange, whatever is bound.
const UNITS_PER_BINDING: u32 = 16;
/// Units of work that routing one message may take at least, however few bindings there may be: room for
/// thousands of routing keys.
const UNITS_MIN: u32 = 1 << 16;

/// Exchanges, bindings, and how to get from exchanges along bindings to queues.
#[derive(Debug)]
pub(crate) struct Topology {
    pub(super) exchanges: Slab<Exchange>,
    pub(super) exchange_table: IndexTable,
    pub(super) bindings: Slab<Binding>,
    pub(super) binding_table: IndexTable,
    pub(super) pairs: Pairs,
    pub(super) trie: Trie,
    pub(super) header_names: headers::Names,
    /// Exchanges still to be visited for the message that is being routed.
    pub(super) to_visit: Vec<ExchangeId>,
    /// How many messages were routed, which numbers the routes.
    pub(super) routes: u64,
    /// Rises whenever a route or a right may have changed.
    revision: u64,
    /// Units of work that routing one message may take.
    units_max: u32,
}

impl Topology {
    /// Bytes of memory that an exchange takes, with its root node.
    pub(crate) const EXCHANGE_BYTES: usize = Slab::<Exchange>::record_bytes()
        + IndexTable::ENTRY_BYTES
        + size_of::<ExchangeId>()
        + Trie::NODE_BYTES;
    /// Bytes of memory that a binding takes, with its nodes, or its pairs.
    pub(crate) const BINDING_BYTES: usize = Slab::<Binding>::record_bytes()
        + Pairs::BYTES_EACH
        + IndexTable::ENTRY_BYTES
        + NODES_PER_BINDING * Trie::NODE_BYTES;
    /// Nodes of the tries per binding, to each of which the allocator adds something.
    pub(crate) const NODES_PER_BINDING: usize = NODES_PER_BINDING;

    /// Bytes of memory that looking into the headers of a message takes.
    pub(crate) const fn header_names_bytes(frame_max: usize) -> usize {
        headers::Names::bytes(frame_max)
    }

    pub(crate) fn with_capacity(exchanges: usize, bindings: usize, frame_max: usize, seed: u64) -> Self {
        let nodes = exchanges + bindings * NODES_PER_BINDING;
        Self {
            exchanges: Slab::with_capacity(exchanges),
            exchange_table: IndexTable::with_capacity(exchanges, seed),
            bindings: Slab::with_capacity(bindings),
            binding_table: IndexTable::with_capacity(bindings, seed),
            pairs: Pairs::with_capacity(bindings, seed),
            trie: Trie::with_capacity(nodes, seed),
            header_names: headers::Names::for_frames(frame_max, seed),
            to_visit: Vec::with_capacity(exchanges),
            routes: 0,
            revision: 1,
            units_max: (bindings as u32).saturating_mul(UNITS_PER_BINDING).max(UNITS_MIN),
        }
    }

    /// Limits the routing work from here on to that of this many messages.
    pub(crate) const fn limit_routing(&self, work: &mut Work, messages: u32) {
        work.limit(self.units_max.saturating_mul(messages));
    }

    /// The number that rises whenever a route may have changed: a remembered route holds while it stays.
    #[inline]
    pub(crate) const fn revision(&self) -> u64 {
        self.revision
    }

    /// Notes that routes and rights may have changed.
    pub(crate) const fn revise(&mut self) {
        self.revision += 1;
    }

    /// Bytes that the topology does not use and the system holds memory for, about.
    pub(crate) const fn idle_bytes(&self) -> usize {
        self.bindings.idle_bytes() + self.pairs.idle_bytes() + self.trie.idle_bytes()
    }

    /// Gives idle memory back to the system.
    pub(crate) fn trim(&mut self) {
        self.bindings.trim();
        self.pairs.trim();
        self.trie.trim();
    }
}

/// The exchange of this name, while other fields of the topology are lent.
pub(super) fn find_exchange(
    exchanges: &Slab<Exchange>,
    table: &IndexTable,
    vhost: VhostId,
    name: &str,
) -> Option<ExchangeId> {
    let is_it = |index: usize| exchanges[index].vhost == vhost && &*exchanges[index].name == name;
    table.find((vhost, name), is_it).map(ExchangeId::from_index)
}
