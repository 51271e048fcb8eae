//! Pools of plain data, sized once: message slots and chunks of queue entries.
//!
//! # Invariants
//! - The lowest free place is taken first.
//! - Taking a place never allocates.
//! - Places are grouped. A group without used places can be returned to the system and reads as zeros afterwards.

use bytemuck::Pod;

use super::give_back::{give_back, lazy_zeroed};
use super::places::FreePlaces;

/// Bytes of a group: the largest page size of supported boards.
const GROUP_BYTES: usize = 64 << 10;
/// Number of groups checked in one step of returning memory.
const TRIM_GROUPS: usize = 256;

/// A pool of plain values.
#[derive(Debug)]
pub(super) struct PlainPool<T> {
    places: FreePlaces,
    data: Box<[T]>,
    /// Per group: whether it may be resident in memory.
    resident: Box<[bool]>,
    resident_groups: usize,
    /// The group at which the next step of returning memory begins.
    trim_at: usize,
}

impl<T: Pod> PlainPool<T> {
    const GROUP: usize = GROUP_BYTES / size_of::<T>();

    /// Reserves memory for `max` values without touching it.
    pub(super) fn new(max: usize) -> Self {
        const { assert!(Self::GROUP.is_multiple_of(64), "groups are whole words of FreePlaces") };
        Self {
            places: FreePlaces::new(max),
            data: lazy_zeroed(max),
            resident: vec![false; max.div_ceil(Self::GROUP)].into_boxed_slice(),
            resident_groups: 0,
            trim_at: 0,
        }
    }

    /// Returns the number of places in use.
    #[inline]
    pub(super) const fn used(&self) -> usize {
        self.places.used()
    }

    /// Returns how many places were given back since the start.
    pub(super) const fn given(&self) -> u64 {
        self.places.given()
    }

    /// Returns the number of places.
    pub(super) const fn max(&self) -> usize {
        self.places.max()
    }

    /// Takes a place. Its value is an earlier one or zeros.
    #[inline]
    pub(super) fn take(&mut self) -> Option<usize> {
        let place = self.places.take()?;
        let resident = &mut self.resident[place / Self::GROUP];
        if !*resident {
            *resident = true;
            self.resident_groups += 1;
        }
        Some(place)
    }

    /// Gives a place back.
    #[inline]
    pub(super) fn give(&mut self, place: usize) {
        self.places.give(place);
    }

    /// Returns about how many unused bytes are resident in memory.
    pub(super) const fn idle_bytes(&self) -> usize {
        (self.resident_groups * Self::GROUP).saturating_sub(self.places.used()) * size_of::<T>()
    }

    /// Returns idle groups to the system, one bounded part per call. Returns whether it reached the end.
    pub(super) fn trim(&mut self) -> bool {
        self.places.shrink();
        let groups = self.resident.len();
        let start = if self.trim_at < groups { self.trim_at } else { 0 };
        let end = (start + TRIM_GROUPS).min(groups);
        self.trim_at = end;
        let mut run = start..start;
        for group in start..end {
            let from = group * Self::GROUP;
            if self.resident[group] && self.places.are_free(from..from + Self::GROUP) {
                run.end = group + 1;
            } else {
                self.give_back(run);
                run = group + 1..group + 1;
            }
        }
        self.give_back(run);
        end == groups
    }

    fn give_back(&mut self, run: core::ops::Range<usize>) {
        if run.is_empty() {
            return;
        }
        let top = (run.end * Self::GROUP).min(self.data.len());
        give_back(bytemuck::cast_slice_mut(&mut self.data[run.start * Self::GROUP..top]));
        self.resident_groups -= run.len();
        self.resident[run].fill(false);
    }
}

impl<T> core::ops::Index<usize> for PlainPool<T> {
    type Output = T;

    #[inline]
    fn index(&self, place: usize) -> &T {
        &self.data[place]
    }
}

impl<T> core::ops::IndexMut<usize> for PlainPool<T> {
    #[inline]
    fn index_mut(&mut self, place: usize) -> &mut T {
        &mut self.data[place]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unused_groups_are_returned_to_the_system_and_their_neighbours_stay() {
        let mut pool = PlainPool::<[u64; 16]>::new(4_000);
        let mut places: Vec<usize> = (0..4_000).map_while(|_| pool.take()).collect();
        assert_eq!((places.len(), pool.take()), (4_000, None));
        places.iter().for_each(|&place| pool[place] = [place as u64; 16]);
        // Two places stay in use: one in the fourth group, one near the end.
        let stragglers = [3 * 512 + 5, 3_999];
        places.retain(|place| !stragglers.contains(place));
        places.iter().for_each(|&place| pool.give(place));
        while !pool.trim() {}
        assert_eq!(pool.idle_bytes() / 128, 2 * 512 - 2, "two groups stay, for two places in use");
        stragglers.iter().for_each(|&place| assert_eq!(pool[place], [place as u64; 16]));
        assert_eq!((pool.take(), pool[512]), (Some(0), [0; 16]), "the lowest; the second group went back");
    }
}
