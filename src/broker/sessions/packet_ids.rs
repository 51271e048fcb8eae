//! A set of packet identifiers, stored as ranges.

use core::num::NonZeroU16;

/// Maximum number of ranges. They are enough for a client of MQTT 5 that keeps to the announced Receive Maximum of 64.
pub(super) const RANGES_MAX: usize = 64;
/// Bytes of a range in the log: its first and its last identifier.
pub(super) const RANGE_BYTES: usize = 4;

/// A set of packet identifiers. Most clients number their messages consecutively and release them in order, so that
/// thousands of identifiers are few ranges. Between messages of other QoS, each identifier is a range of its own.
///
/// # Invariants
/// - The ranges are ascending. They do not overlap, and are not adjacent.
/// - There are at most [`RANGES_MAX`].
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct PacketIds {
    /// The first and the last identifier of each range.
    ranges: Vec<(u16, u16)>,
}

/// The set would have more than [`RANGES_MAX`] ranges.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct TooManyRanges;

impl PacketIds {
    /// The most bytes of the ranges. Their vector grows by doubling.
    pub(super) const BYTES_MAX: usize = RANGES_MAX.next_power_of_two() * size_of::<(u16, u16)>();

    /// Returns the position of the range that contains an identifier, or the position before which its range would be.
    fn find(&self, id: u16) -> Result<usize, usize> {
        let at = self.ranges.partition_point(|(_, last)| *last < id);
        if self.ranges.get(at).is_some_and(|(first, _)| *first <= id) { Ok(at) } else { Err(at) }
    }

    pub(super) fn contains(&self, id: NonZeroU16) -> bool {
        self.find(id.get()).is_ok()
    }

    /// Returns the number of identifiers.
    pub(super) fn count(&self) -> u32 {
        self.ranges.iter().map(|(first, last)| u32::from(last - first) + 1).sum()
    }

    /// Adds an identifier, which may be there already.
    pub(super) fn insert(&mut self, id: NonZeroU16) -> Result<(), TooManyRanges> {
        let id = id.get();
        let Err(at) = self.find(id) else { return Ok(()) };
        let is_after_previous = at > 0 && self.ranges[at - 1].1 + 1 == id;
        let is_before_next = self.ranges.get(at).is_some_and(|(first, _)| *first == id + 1);
        match (is_after_previous, is_before_next) {
            (true, true) => {
                self.ranges[at - 1].1 = self.ranges[at].1;
                self.ranges.remove(at);
            }
            (true, false) => self.ranges[at - 1].1 = id,
            (false, true) => self.ranges[at].0 = id,
            (false, false) if self.ranges.len() == RANGES_MAX => return Err(TooManyRanges),
            (false, false) => self.ranges.insert(at, (id, id)),
        }
        Ok(())
    }

    /// Removes an identifier. Returns `false` if it was not there.
    pub(super) fn remove(&mut self, id: NonZeroU16) -> Result<bool, TooManyRanges> {
        let id = id.get();
        let Ok(at) = self.find(id) else { return Ok(false) };
        let (first, last) = self.ranges[at];
        match (first == id, last == id) {
            (true, true) => {
                self.ranges.remove(at);
            }
            (true, false) => self.ranges[at].0 = id + 1,
            (false, true) => self.ranges[at].1 = id - 1,
            (false, false) if self.ranges.len() == RANGES_MAX => return Err(TooManyRanges),
            (false, false) => {
                self.ranges[at].1 = id - 1;
                self.ranges.insert(at + 1, (id + 1, last));
            }
        }
        Ok(true)
    }

    /// Returns the ranges as they are in the log.
    pub(super) fn encoded(&self) -> impl Iterator<Item = [u8; RANGE_BYTES]> {
        self.ranges.iter().map(|(first, last)| {
            let ([a, b], [c, d]) = (first.to_be_bytes(), last.to_be_bytes());
            [a, b, c, d]
        })
    }

    /// Reads what [`Self::encoded`] returned. Leaves out what is not valid.
    pub(super) fn decode(octets: &[u8]) -> Self {
        let mut ranges: Vec<(u16, u16)> = Vec::new();
        for [a, b, c, d] in octets.as_chunks::<RANGE_BYTES>().0 {
            let (first, last) = (u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d]));
            let is_after = ranges.last().map_or(first > 0, |(_, last)| first > *last && first - last > 1);
            if is_after && first <= last && ranges.len() < RANGES_MAX {
                ranges.push((first, last));
            }
        }
        Self { ranges }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn id(number: u16) -> NonZeroU16 {
        NonZeroU16::new(number).unwrap()
    }

    #[test]
    fn the_set_behaves_like_a_btree_set() {
        let (mut ids, mut model) = (PacketIds::default(), BTreeSet::new());
        let mut state = 1_u32;
        for step in 0..20_000 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // Few different identifiers, at both ends of their range.
            let number = match (state >> 16) as u16 % 40 {
                low @ 0..20 => 1 + low,
                high => u16::MAX - (high - 20),
            };
            if step % 2 == 0 {
                ids.insert(id(number)).unwrap();
                model.insert(number);
            } else {
                assert_eq!(ids.remove(id(number)), Ok(model.remove(&number)));
            }
            assert_eq!(ids.count() as usize, model.len());
            assert!(
                (1..=u16::MAX)
                    .step_by(1 + (step % 7))
                    .take(30)
                    .all(|number| { ids.contains(id(number)) == model.contains(&number) })
            );
            let octets: Vec<u8> = ids.encoded().flatten().collect();
            assert_eq!(PacketIds::decode(&octets), ids);
        }
    }

    #[test]
    fn consecutive_identifiers_take_one_range_and_scattered_ones_have_a_limit() {
        let mut ids = PacketIds::default();
        (1..=u16::MAX).for_each(|number| ids.insert(id(number)).unwrap());
        assert_eq!((ids.ranges.len(), ids.count()), (1, 65_535));
        // Each removal from the middle makes one more range.
        for number in 1..RANGES_MAX as u16 {
            assert_eq!(ids.remove(id(number * 10)), Ok(true));
        }
        assert_eq!(ids.remove(id(30_000)), Err(TooManyRanges));
        assert_eq!(
            (ids.remove(id(1)), ids.remove(id(1)), ids.remove(id(u16::MAX))),
            (Ok(true), Ok(false), Ok(true))
        );

        let mut ids = PacketIds::default();
        (1..=RANGES_MAX as u16).for_each(|number| ids.insert(id(2 * number)).unwrap());
        assert_eq!(ids.insert(id(30_000)), Err(TooManyRanges));
        // Neither one that is there nor a neighbour needs another range.
        assert_eq!((ids.insert(id(2)), ids.insert(id(3))), (Ok(()), Ok(())));
        assert_eq!(ids.ranges.len(), RANGES_MAX - 1);
    }

    #[test]
    fn invalid_ranges_of_the_log_are_left_out() {
        let valid = [0, 5, 0, 9];
        // Identifier 0, a range that ends before it begins, one that overlaps, an adjacent one, and half a range.
        for wrong in [&[0, 0, 0, 3][..], &[0, 3, 0, 2], &[0, 7, 0, 8], &[0, 10, 0, 11], &[0, 20]] {
            let octets = [&valid[..], wrong].concat();
            assert_eq!(PacketIds::decode(&octets).ranges, [(5, 9)], "{wrong:?}");
        }
        assert_eq!(PacketIds::decode(&[0, 0, 0, 3]).ranges, []);
    }
}
