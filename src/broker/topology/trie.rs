//! Keys and patterns as a trie: which nodes have the bindings, and which nodes a routing key reaches.
//!
//! ```text
//! root ─ "kern" ─ "*"        direct: one node per routing key, below the root
//!      └ "#"                 topic: one node per word of a pattern
//!                            fanout, and headers that take everything: the root itself
//! ```
//!
//! Topic matching walks all words of the key once with the set of nodes reached so far, each node at most
//! once per word. A hostile pattern like `#.a.#.a.#` therefore costs words times nodes and never grows
//! exponentially. Recursion is no deeper than a chain of `#.#.#`, which collapses into one step per node.
//! Words times nodes can still be much, because a key in a CC header may be as long as a frame. The caller
//! therefore limits the walk.
//!
//! # Invariants
//! - Except for roots, every node has bindings or children.

use crate::state::IndexTable;
use leveret_core::mem::{List, Slab};

use super::{Binding, ExchangeKind};

/// A routing key or a word of one.
#[derive(Debug)]
struct Node {
    /// The node above this one; `None` for a root.
    parent: Option<usize>,
    word: Box<[u8]>,
    bindings: List,
    children: u32,
    /// The child with the word `*`, if there is one.
    star: Option<usize>,
    /// The child with the word `#`, if there is one.
    hash: Option<usize>,
    /// The step of a topic match that last reached this node.
    reached_at: u64,
}

/// The tries of all exchanges, one below each root.
#[derive(Debug)]
pub(super) struct Trie {
    nodes: Slab<Node>,
    table: IndexTable,
    /// The set of nodes reached so far in a match; like `next`, it is sized once for the maximum number of
    /// nodes.
    reached: Vec<usize>,
    /// The set of nodes reached with the next word of a match.
    next: Vec<usize>,
    step: u64,
}

impl Trie {
    /// Bytes of memory per node: its record, its place in the table and in both sets of a match.
    pub(super) const NODE_BYTES: usize =
        Slab::<Node>::record_bytes() + IndexTable::ENTRY_BYTES + 2 * size_of::<usize>();

    pub(super) fn with_capacity(nodes_max: usize, seed: u64) -> Self {
        Self {
            nodes: Slab::with_capacity(nodes_max),
            table: IndexTable::with_capacity(nodes_max, seed),
            reached: Vec::with_capacity(nodes_max),
            next: Vec::with_capacity(nodes_max),
            step: 0,
        }
    }

    /// Returns how many nodes may still be created.
    pub(super) fn room(&self) -> usize {
        self.nodes.room()
    }

    /// Creates the root of a new exchange. The caller has checked the capacity.
    pub(super) fn add_root(&mut self) -> usize {
        self.insert(None, b"")
    }

    /// Removes the root of an exchange that has no bindings.
    pub(super) fn remove_root(&mut self, root: usize) {
        self.nodes.remove(root);
    }

    /// Returns how many nodes have to be created for a binding with this routing key.
    pub(super) fn missing(&self, root: usize, kind: ExchangeKind, key: &[u8]) -> usize {
        let mut at = Some(root);
        let mut is_missing = |word: &[u8]| {
            at = at.and_then(|parent| self.child(parent, word));
            at.is_none()
        };
        match kind {
            ExchangeKind::Fanout | ExchangeKind::Headers | ExchangeKind::Default => 0,
            ExchangeKind::Direct => usize::from(is_missing(key)),
            ExchangeKind::Topic => words(key).filter(|word| is_missing(word)).count(),
        }
    }

    /// Finds or creates the node for a binding with this routing key. The caller has checked the capacity for
    /// new nodes.
    pub(super) fn place(&mut self, root: usize, kind: ExchangeKind, key: &[u8]) -> usize {
        match kind {
            ExchangeKind::Fanout | ExchangeKind::Headers | ExchangeKind::Default => root,
            ExchangeKind::Direct => self.child_or_new(root, key),
            ExchangeKind::Topic => words(key).fold(root, |at, word| self.child_or_new(at, word)),
        }
    }

    /// Puts a binding on the list of a node.
    pub(super) fn insert_binding(&mut self, bindings: &mut Slab<Binding>, node: usize, binding: usize) {
        self.nodes[node].bindings.push_back(bindings, binding, |binding| &mut binding.node_links);
    }

    /// Removes a binding from the list of its node, which stays until it is pruned.
    pub(super) fn remove_binding(&mut self, bindings: &mut Slab<Binding>, node: usize, binding: usize) {
        self.nodes[node].bindings.remove(bindings, binding, |binding| &mut binding.node_links);
    }

    /// Returns the first binding of a node.
    pub(super) fn first_binding(&self, node: usize) -> Option<usize> {
        self.nodes[node].bindings.front()
    }

    /// Removes a node without bindings and children. Returns its parent, which is to be pruned next.
    pub(super) fn prune(&mut self, node: usize) -> Option<usize> {
        let record = &self.nodes[node];
        let parent = record.parent?;
        if record.children > 0 || !record.bindings.is_empty() {
            return None;
        }
        let record = self.nodes.remove(node);
        self.table.remove((parent as u32, &*record.word), node);
        let above = &mut self.nodes[parent];
        above.children -= 1;
        match &*record.word {
            b"*" => above.star = None,
            b"#" => above.hash = None,
            _ => {}
        }
        Some(parent)
    }

    /// Returns the child of `parent` with this word.
    pub(super) fn child(&self, parent: usize, word: &[u8]) -> Option<usize> {
        if self.nodes[parent].children == 0 {
            return None;
        }
        self.table.find((parent as u32, word), |index| {
            self.nodes[index].parent == Some(parent) && *self.nodes[index].word == *word
        })
    }

    /// Finds the nodes whose pattern matches `key`, to be read with [`Self::matched`]. Returns how many nodes
    /// were visited.
    ///
    /// Beyond `visits_max` the walk stops, and none matches.
    pub(super) fn match_topic(&mut self, root: usize, key: &[u8], visits_max: usize) -> usize {
        self.step += 1;
        self.reached.clear();
        enter(&mut self.nodes, root, self.step, &mut self.reached);
        let mut visits = 0;
        for word in words(key) {
            self.step += 1;
            visits += self.reached.len();
            if visits > visits_max {
                self.reached.clear();
                return visits;
            }
            self.next.clear();
            for at in 0..self.reached.len() {
                let at = self.reached[at];
                if *self.nodes[at].word == *b"#" && self.nodes[at].parent.is_some() {
                    enter(&mut self.nodes, at, self.step, &mut self.next);
                }
                if let Some(star) = self.nodes[at].star {
                    enter(&mut self.nodes, star, self.step, &mut self.next);
                }
                if let Some(child) = self.child(at, word) {
                    enter(&mut self.nodes, child, self.step, &mut self.next);
                }
            }
            core::mem::swap(&mut self.reached, &mut self.next);
        }
        visits
    }

    /// Returns the node at this place among those that the last match found.
    pub(super) fn matched(&self, place: usize) -> Option<usize> {
        self.reached.get(place).copied()
    }

    fn child_or_new(&mut self, parent: usize, word: &[u8]) -> usize {
        if let Some(child) = self.child(parent, word) {
            return child;
        }
        let child = self.insert(Some(parent), word);
        self.table.insert((parent as u32, word), child);
        let record = &mut self.nodes[parent];
        record.children += 1;
        match word {
            b"*" => record.star = Some(child),
            b"#" => record.hash = Some(child),
            _ => {}
        }
        child
    }

    fn insert(&mut self, parent: Option<usize>, word: &[u8]) -> usize {
        let node = Node {
            parent,
            word: word.into(),
            bindings: List::default(),
            children: 0,
            star: None,
            hash: None,
            reached_at: 0,
        };
        self.nodes.insert(node).expect("the caller made sure of room")
    }

    /// Returns roughly the unused bytes of nodes for which the system holds memory.
    pub(super) const fn idle_bytes(&self) -> usize {
        self.nodes.idle_bytes()
    }

    /// Returns unused memory to the system.
    pub(super) fn trim(&mut self) {
        self.nodes.trim();
    }
}

/// Returns the words of a routing key or pattern; an empty one has none.
fn words(key: &[u8]) -> impl Iterator<Item = &[u8]> {
    let count = if key.is_empty() { 0 } else { usize::MAX };
    key.split(|byte| *byte == b'.').take(count)
}

/// Reaches a node, and every `#` below it, which also matches zero words.
fn enter(nodes: &mut Slab<Node>, from: usize, step: u64, reached: &mut Vec<usize>) {
    let mut at = Some(from);
    while let Some(index) = at {
        if nodes[index].reached_at == step {
            return;
        }
        nodes[index].reached_at = step;
        reached.push(index);
        at = nodes[index].hash;
    }
}
