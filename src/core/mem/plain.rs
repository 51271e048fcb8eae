//! Plain data in a pool that is sized once: message slots, chunks of queue entries.
//!
//! Always true: the lowest free place is taken first; taking never allocates; places whose neighbours are all
//! free go back to the system, and read as zeros when they are taken again.

use bytemuck::Pod;

use super::give_back::{give_back, untouched};
use super::places::Places;

/// Places are given back so many bytes at a time: the largest page of the boards we know.
const GROUP_BYTES: usize = 64 << 10;
/// Groups looked at in one step of giving back.
const TRIM_GROUPS: usize = 256;

/// A pool of plain values.
#[derive(Debug)]
pub(super) struct Plain<T> {
    places: Places,
    data: Box<[T]>,
    /// The system holds memory for the group.
    resident: Box<[bool]>,
    resident_groups: usize,
    /// Where the search for idle groups goes on.
    trim_at: usize,
}

impl<T: Pod> Plain<T> {
    const GROUP: usize = GROUP_BYTES / size_of::<T>();

    /// Reserves room for `max` values without touching it.
    pub(super) fn new(max: usize) -> Self {
        const { assert!(Self::GROUP.is_multiple_of(64), "groups are whole words of places") };
        Self {
            places: Places::new(max),
            data: untouched(max),
            resident: vec![false; max.div_ceil(Self::GROUP)].into_boxed_slice(),
            resident_groups: 0,
            trim_at: 0,
        }
    }

    /// How many places are in use.
    #[inline]
    pub(super) const fn used(&self) -> usize {
        self.places.used()
    }

    /// How often a place was given back.
    pub(super) const fn given(&self) -> u64 {
        self.places.given()
    }

    /// How many places there are.
    pub(super) const fn max(&self) -> usize {
        self.places.max()
    }

    /// Takes a place; what is in it is left from before, or zeros.
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

    /// Bytes that nobody uses and the system holds memory for, about.
    pub(super) const fn idle_bytes(&self) -> usize {
        (self.resident_groups * Self::GROUP).saturating_sub(self.places.used()) * size_of::<T>()
    }

    /// Gives idle groups back to the system, neighbours together, a bounded part at a time; says whether it
    /// came to the end.
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

impl<T> core::ops::Index<usize> for Plain<T> {
    type Output = T;

    #[inline]
    fn index(&self, place: usize) -> &T {
        &self.data[place]
    }
}

impl<T> core::ops::IndexMut<usize> for Plain<T> {
    #[inline]
    fn index_mut(&mut self, place: usize) -> &mut T {
        &mut self.data[place]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_groups_that_nobody_uses_go_back_and_their_neighbours_stay() {
        let mut pool = Plain::<[u64; 16]>::new(4_000);
        let mut places: Vec<usize> = (0..4_000).map_while(|_| pool.take()).collect();
        assert_eq!((places.len(), pool.take()), (4_000, None));
        places.iter().for_each(|&place| pool[place] = [place as u64; 16]);
        // One straggler in the fourth group, one near the end.
        let stragglers = [3 * 512 + 5, 3_999];
        places.retain(|place| !stragglers.contains(place));
        places.iter().for_each(|&place| pool.give(place));
        while !pool.trim() {}
        assert_eq!(pool.idle_bytes() / 128, 2 * 512 - 2, "two groups stay, for two places in use");
        stragglers.iter().for_each(|&place| assert_eq!(pool[place], [place as u64; 16]));
        assert_eq!((pool.take(), pool[512]), (Some(0), [0; 16]), "the lowest; the second group went back");
    }
}
