//! Topic matching over the trie of words.
//!
//! All words of the key are walked once with the set of nodes reached so far, each node at most once per
//! word. So a hostile pattern like `#.a.#.a.#` costs words times nodes and never explodes, and nothing
//! recurses deeper than a chain of `#.#.#`, which collapses into one step per node. Words times nodes can
//! still be much, for a copy's key may be as long as a frame: so the walk ends where the caller says.

use crate::mem::Slab;

use super::exchange::Node;
use super::names::IndexTable;

/// Scratch for the two sets, sized once for all nodes there can be.
#[derive(Debug)]
pub(super) struct Walk {
    reached: Vec<usize>,
    next: Vec<usize>,
    step: u64,
    /// Nodes reached for the last key, over all its words.
    visits: usize,
}

impl Walk {
    pub(super) fn with_capacity(nodes_max: usize) -> Self {
        Self {
            reached: Vec::with_capacity(nodes_max),
            next: Vec::with_capacity(nodes_max),
            step: 0,
            visits: 0,
        }
    }

    /// How many nodes the last key reached on its way.
    pub(super) const fn visits(&self) -> usize {
        self.visits
    }

    /// The nodes whose pattern matches `key`; none if finding them out takes more visits than `visits_max`,
    /// and then [`Self::visits`] says more than that.
    pub(super) fn nodes(
        &mut self,
        nodes: &mut Slab<Node>,
        table: &IndexTable,
        root: usize,
        key: &[u8],
        visits_max: usize,
    ) -> &[usize] {
        self.step += 1;
        self.reached.clear();
        enter(nodes, root, self.step, &mut self.reached);
        self.visits = 0;
        for word in words(key) {
            self.step += 1;
            self.visits += self.reached.len();
            if self.visits > visits_max {
                return &[];
            }
            self.next.clear();
            for &at in &self.reached {
                if *nodes[at].word == *b"#" && nodes[at].parent.is_some() {
                    enter(nodes, at, self.step, &mut self.next);
                }
                if let Some(star) = nodes[at].star {
                    enter(nodes, star, self.step, &mut self.next);
                }
                if let Some(child) = child(nodes, table, at, word) {
                    enter(nodes, child, self.step, &mut self.next);
                }
            }
            core::mem::swap(&mut self.reached, &mut self.next);
        }
        &self.reached
    }
}

/// The words of a key or pattern; an empty one has none.
pub(super) fn words(key: &[u8]) -> impl Iterator<Item = &[u8]> {
    let count = if key.is_empty() { 0 } else { usize::MAX };
    key.split(|byte| *byte == b'.').take(count)
}

/// The child of `parent` with this word.
pub(super) fn child(nodes: &Slab<Node>, table: &IndexTable, parent: usize, word: &[u8]) -> Option<usize> {
    if nodes[parent].children == 0 {
        return None;
    }
    table.find((parent as u32, word), |index| {
        nodes[index].parent == Some(parent) && *nodes[index].word == *word
    })
}

/// Reaches a node, and with it every `#` below it, which matches no word at all as well.
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
