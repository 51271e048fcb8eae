//! The deadlines of peers: a heap with one entry per peer.
//!
//! Deadlines mostly move later: each received byte postpones the heartbeat timeout. The heap is updated only
//! when a deadline moves earlier. When an entry is due, the caller computes the deadline of the peer again,
//! and often it is later. This costs one additional check per heartbeat interval instead of one heap
//! operation per read.
//!
//! # Invariants
//! - A peer has at most one entry.
//! - Nothing allocates after construction.

use leveret_core::time::{Deadline, Now};

use super::peer::PeerId;

/// The position of a peer without an entry. Zeros, so that the array is not filled at start.
const ABSENT: u32 = 0;

/// A heap of deadlines with an index by peer.
#[derive(Debug)]
pub(super) struct Deadlines {
    heap: Vec<(Deadline, PeerId)>,
    /// Position of each peer's entry in the heap, plus 1.
    positions: Box<[u32]>,
}

impl Deadlines {
    /// Bytes of memory per peer.
    pub(super) const ENTRY_BYTES: usize = size_of::<(Deadline, PeerId)>() + size_of::<u32>();

    pub(super) fn with_capacity(peers_max: usize) -> Self {
        Self { heap: Vec::with_capacity(peers_max), positions: vec![ABSENT; peers_max].into_boxed_slice() }
    }

    /// Returns the number of peers with a deadline.
    pub(super) fn len(&self) -> usize {
        self.heap.len()
    }

    /// Returns the earliest deadline.
    pub(super) fn next(&self) -> Deadline {
        self.heap.first().map_or(Deadline::NEVER, |entry| entry.0)
    }

    /// Sets the deadline of a peer, unless it has an earlier one.
    pub(super) fn lower(&mut self, peer: PeerId, deadline: Deadline) {
        if deadline == Deadline::NEVER {
            return;
        }
        match self.positions[peer.index()] {
            ABSENT => {
                self.heap.push((deadline, peer));
                self.positions[peer.index()] = self.heap.len() as u32;
                self.sift_up(self.heap.len() - 1);
            }
            above if self.heap[above as usize - 1].0 > deadline => {
                self.heap[above as usize - 1].0 = deadline;
                self.sift_up(above as usize - 1);
            }
            _ => {}
        }
    }

    /// Removes the entry with the earliest deadline if it is due, and returns its peer.
    pub(super) fn pop_due(&mut self, now: Now) -> Option<PeerId> {
        let &(deadline, peer) = self.heap.first()?;
        deadline.is_due(now).then(|| {
            self.remove(peer);
            peer
        })
    }

    /// Removes the entry of a peer.
    pub(super) fn remove(&mut self, peer: PeerId) {
        let position = core::mem::replace(&mut self.positions[peer.index()], ABSENT);
        if position == ABSENT {
            return;
        }
        let position = position as usize - 1;
        self.heap.swap_remove(position);
        if position < self.heap.len() {
            self.positions[self.heap[position].1.index()] = position as u32 + 1;
            self.sift_up(position);
            self.sift_down(position);
        }
    }

    fn sift_up(&mut self, mut position: usize) {
        while position > 0 {
            let parent = (position - 1) / 2;
            if self.heap[parent].0 <= self.heap[position].0 {
                return;
            }
            self.swap(parent, position);
            position = parent;
        }
    }

    fn sift_down(&mut self, mut position: usize) {
        loop {
            let children = [2 * position + 1, 2 * position + 2];
            let earliest = children.into_iter().filter(|&child| child < self.heap.len());
            let Some(child) = earliest.min_by_key(|&child| self.heap[child].0) else { return };
            if self.heap[position].0 <= self.heap[child].0 {
                return;
            }
            self.swap(child, position);
            position = child;
        }
    }

    fn swap(&mut self, one: usize, two: usize) {
        self.heap.swap(one, two);
        self.positions[self.heap[one].1.index()] = one as u32 + 1;
        self.positions[self.heap[two].1.index()] = two as u32 + 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn due_entries_come_out_earliest_first_and_each_once() {
        let mut deadlines = Deadlines::with_capacity(100);
        let start = Now::from_ms(0);
        for index in 0..100_usize {
            let id = PeerId::from_index(index);
            deadlines.lower(id, start.after_ms((index as u64 * 37) % 101 + 500));
            deadlines.lower(id, start.after_ms((index as u64 * 37) % 101));
            deadlines.lower(id, start.after_ms(9_000));
        }
        for index in (0..100).step_by(7) {
            deadlines.remove(PeerId::from_index(index));
        }
        let mut last = 0;
        let mut seen = 0;
        while let Some(id) = deadlines.pop_due(Now::from_ms(200)) {
            let at = (id.index() as u64 * 37) % 101;
            assert!(at >= last && id.index() % 7 != 0);
            last = at;
            seen += 1;
        }
        assert_eq!((seen, deadlines.next()), (85, Deadline::NEVER));
    }
}
