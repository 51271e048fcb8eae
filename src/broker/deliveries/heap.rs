//! The requeued messages of one queue, in the order of their offsets.
//!
//! Always true: a record is in one heap at most, and on no list that needs it elsewhere; the first is the one with the
//! lowest offset.

use super::records::{Delivered, Deliveries, HeapLinks};
use leveret_core::mem::{Slab, sort_by_key};

/// Requeued messages of one queue, lowest offset first: a leftist heap through the records, so that
/// requeueing and taking the first are both logarithmic whatever the order.
#[derive(Debug, Default)]
pub(crate) struct RequeuedHeap {
    root: u32,
    len: u32,
}

impl RequeuedHeap {
    pub(crate) const fn len(&self) -> u32 {
        self.len
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The returned delivery with the lowest offset.
    pub(crate) fn first(&self) -> Option<usize> {
        (self.root != 0).then(|| self.root as usize - 1)
    }

    pub(crate) fn insert(&mut self, pool: &mut Deliveries, index: usize) {
        pool.slab[index].returned = true;
        pool.slab[index].heap = HeapLinks { left: 0, right: 0, rank: 1 };
        self.root = merge(&mut pool.slab, self.root, index as u32 + 1);
        self.len += 1;
        pool.returned += 1;
    }

    /// All requeued deliveries of the heap, lowest offset first.
    pub(crate) fn in_order(&self, pool: &Deliveries) -> Vec<usize> {
        let (mut found, mut open) = (Vec::with_capacity(self.len as usize), vec![self.root]);
        while let Some(place) = open.pop() {
            if place > 0 {
                let index = place as usize - 1;
                let HeapLinks { left, right, .. } = pool.slab[index].heap;
                found.push(index);
                open.extend([left, right]);
            }
        }
        sort_by_key(&mut found, |index| pool.slab[*index].offset);
        found
    }

    /// Takes the delivery with the lowest offset.
    pub(crate) fn pop(&mut self, pool: &mut Deliveries) -> Option<usize> {
        let first = self.first()?;
        let HeapLinks { left, right, .. } = core::mem::take(&mut pool.slab[first].heap);
        self.root = merge(&mut pool.slab, left, right);
        self.len -= 1;
        pool.returned -= 1;
        Some(first)
    }
}

/// Merges two heaps along their right spines, each at most log2(n) + 1 long, so the recursion is shallow.
fn merge(slab: &mut Slab<Delivered>, one: u32, two: u32) -> u32 {
    if one == 0 || two == 0 {
        return one.max(two);
    }
    let in_order = slab[one as usize - 1].offset <= slab[two as usize - 1].offset;
    let (upper, lower) = if in_order { (one, two) } else { (two, one) };
    let right = merge(slab, slab[upper as usize - 1].heap.right, lower);
    let left = slab[upper as usize - 1].heap.left;
    let (left_rank, right_rank) = (rank(slab, left), rank(slab, right));
    let links = &mut slab[upper as usize - 1].heap;
    (links.left, links.right) = if left_rank >= right_rank { (left, right) } else { (right, left) };
    links.rank = left_rank.min(right_rank) + 1;
    upper
}

fn rank(slab: &Slab<Delivered>, heap: u32) -> u16 {
    match heap {
        0 => 0,
        above => slab[above as usize - 1].heap.rank,
    }
}
