//! How long things took: counts in buckets that grow with the time.
//!
//! Always true: a time read back is at most 1/32 above the one recorded; recording is a few instructions and
//! takes no memory.

/// Each power of two is divided into so many buckets.
const PARTS_BITS: u32 = 5;
const PARTS: usize = 1 << PARTS_BITS;
const BUCKETS: usize = (64 - PARTS_BITS as usize + 1) * PARTS;

/// A distribution of times in nanoseconds.
#[derive(Clone, Debug)]
pub(super) struct Histogram {
    counts: Box<[u64]>,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS].into_boxed_slice(), max: 0 }
    }
}

impl Histogram {
    #[inline]
    pub(super) fn record(&mut self, ns: u64) {
        if let Some(count) = self.counts.get_mut(bucket(ns)) {
            *count += 1;
        }
        self.max = self.max.max(ns);
    }

    pub(super) fn add(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.max = self.max.max(other.max);
    }

    pub(super) fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    pub(super) const fn max(&self) -> u64 {
        self.max
    }

    /// The time that `share` of all took at most.
    pub(super) fn quantile(&self, share: f64) -> u64 {
        let rank = (self.count() as f64 * share).ceil() as u64;
        let mut seen = 0;
        for (at, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank && seen > 0 {
                return upper_end(at).min(self.max);
            }
        }
        self.max
    }
}

/// The bucket of a time: below 32 one for each, then 32 for each power of two.
#[inline]
const fn bucket(ns: u64) -> usize {
    let bits = u64::BITS - ns.leading_zeros();
    let shift = bits.saturating_sub(PARTS_BITS + 1);
    shift as usize * PARTS + (ns >> shift) as usize
}

/// The largest time in a bucket.
const fn upper_end(bucket: usize) -> u64 {
    let shift = (bucket / PARTS).saturating_sub(1);
    let part = (bucket - shift * PARTS) as u64;
    ((part + 1) << shift).wrapping_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_each_other_without_a_gap() {
        let mut previous = 0;
        for at in 0..BUCKETS {
            let end = upper_end(at);
            assert_eq!(bucket(end), at);
            assert!(at == 0 || bucket(previous + 1) == at);
            assert!(end - previous <= 1 + previous / PARTS as u64);
            previous = end;
        }
        assert_eq!(previous, u64::MAX);
    }

    #[test]
    fn quantiles_are_close() {
        let mut all = Histogram::default();
        assert_eq!((all.quantile(0.5), all.max()), (0, 0));
        (1..=1000).for_each(|ns| all.record(ns * 1000));
        let near = |found: u64, exact: u64| found >= exact && found <= exact + exact / 32;
        assert!(near(all.quantile(0.5), 500_000) && near(all.quantile(0.99), 990_000));
        assert_eq!((all.quantile(1.0), all.count(), all.max()), (1_000_000, 1000, 1_000_000));
        let mut twice = all.clone();
        twice.add(&all);
        assert_eq!((twice.count(), twice.quantile(0.5)), (2000, all.quantile(0.5)));
    }
}
