//! Settlements that wait for a commit: a set of offsets for each queue, in the order of the queues' first.
//!
//! Always true: a queue is listed when its set is not empty; what was taken once is kept for the next, so
//! steady traffic allocates nothing.

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::place::Position;
use super::ranges::RangeSet;
use super::record::Range;

/// Ranges that an emptied set keeps room for, and all of them together.
const RANGES_KEPT: usize = 256;
const SPARE_RANGES_MAX: usize = 2048;

/// Settlements that wait to be written together.
#[derive(Debug, Default)]
pub(super) struct Settling {
    order: Vec<u64>,
    sets: HashMap<u64, RangeSet, FixedState>,
    /// What was appended when the first of them came.
    first: Position,
    spare: Vec<RangeSet>,
    /// Bytes that those in `spare` keep.
    spare_bytes: usize,
}

impl Settling {
    pub(super) const fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Adds offsets of a queue, when so much was appended; calls `fresh` with those that were not waiting already.
    pub(super) fn insert(&mut self, queue: u64, range: Range, appended: Position, fresh: impl FnMut(Range)) {
        if self.is_empty() {
            self.first = appended;
        }
        let (order, spare, spare_bytes) = (&mut self.order, &mut self.spare, &mut self.spare_bytes);
        let set = self.sets.entry(queue).or_insert_with(|| {
            order.push(queue);
            let set = spare.pop().unwrap_or_default();
            *spare_bytes -= set.heap_bytes();
            set
        });
        set.insert(range, fresh);
    }

    /// Up to where everything was said, when `appended` is all: up to the first that waits.
    pub(super) fn said_through(&self, appended: Position) -> Position {
        if self.is_empty() { appended } else { self.first }
    }

    /// All of it, queue by queue.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &[Range])> {
        self.order.iter().filter_map(|queue| Some((*queue, self.sets.get(queue)?.ranges())))
    }

    /// Hands over queue by queue; `take` says how many of the ranges it took. Ends with the first queue of
    /// which something is left.
    pub(super) fn drain(&mut self, mut take: impl FnMut(u64, &[Range]) -> usize) {
        let mut done = 0;
        for &queue in &self.order {
            let Some(set) = self.sets.get_mut(&queue) else { continue };
            set.drop_first(take(queue, set.ranges()));
            if !set.is_empty() {
                break;
            }
            done += 1;
            if let Some(mut set) = self.sets.remove(&queue) {
                let room = (SPARE_RANGES_MAX * size_of::<Range>()).saturating_sub(self.spare_bytes);
                set.shrink_to(RANGES_KEPT.min(room / size_of::<Range>()));
                self.spare_bytes += set.heap_bytes();
                self.spare.push(set);
            }
        }
        self.order.drain(..done);
    }
}
