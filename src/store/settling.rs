//! Settlements that wait for a commit: a set of offsets for each queue, in the order of the queues' first.
//!
//! Always true: a queue is listed when its set is not empty; what was taken once is kept for the next, so
//! steady traffic allocates nothing.

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::ranges::RangeSet;
use super::record::Range;

/// Ranges that an emptied set keeps room for.
const RANGES_KEPT: usize = 256;

/// What waits.
#[derive(Debug, Default)]
pub(super) struct Settling {
    order: Vec<u64>,
    sets: HashMap<u64, RangeSet, FixedState>,
    spare: Vec<RangeSet>,
}

impl Settling {
    pub(super) const fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Adds offsets of a queue; calls `fresh` with those that were not waiting already.
    pub(super) fn insert(&mut self, queue: u64, range: Range, fresh: impl FnMut(Range)) {
        let (order, spare) = (&mut self.order, &mut self.spare);
        let set = self.sets.entry(queue).or_insert_with(|| {
            order.push(queue);
            spare.pop().unwrap_or_default()
        });
        set.insert(range, fresh);
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
                set.shrink_to(RANGES_KEPT);
                self.spare.push(set);
            }
        }
        self.order.drain(..done);
    }
}
