//! A distribution of times.

/// Each power of two is divided into `1 << PART_BITS` buckets, so a quantile is at most 1/32 too high.
const PART_BITS: u32 = 5;
const PARTS: usize = 1 << PART_BITS;
const BUCKETS: usize = (64 - PART_BITS as usize + 1) * PARTS;

/// Counts times in nanoseconds.
#[derive(Clone, Debug)]
pub(crate) struct Histogram(Box<[u64; BUCKETS]>);

impl Default for Histogram {
    fn default() -> Self {
        Self(Box::new([0; BUCKETS]))
    }
}

impl Histogram {
    /// Counts a time.
    #[inline]
    pub(crate) fn record(&mut self, ns: u64) {
        self.0[bucket(ns)] += 1;
    }

    /// Adds the counts of another histogram.
    pub(crate) fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0.iter()).for_each(|(count, more)| *count += more);
    }

    /// Returns the time that is not exceeded by this share of all times; `None` without any.
    pub(crate) fn quantile(&self, share: f64) -> Option<u64> {
        let count: u64 = self.0.iter().sum();
        let rank = ((count as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        let found = self.0.iter().position(|count| {
            seen += count;
            seen >= rank
        });
        found.map(bucket_end)
    }
}

/// Returns the bucket of a time: one for each time below 32, then 32 for each power of two.
#[inline]
const fn bucket(ns: u64) -> usize {
    let shift = (u64::BITS - ns.leading_zeros()).saturating_sub(PART_BITS + 1);
    shift as usize * PARTS + (ns >> shift) as usize
}

/// Returns the longest time of a bucket.
const fn bucket_end(bucket: usize) -> u64 {
    let shift = (bucket / PARTS).saturating_sub(1);
    let part = (bucket - shift * PARTS) as u64;
    ((part + 1) << shift).wrapping_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_have_no_gaps() {
        let mut previous = 0;
        for at in 0..BUCKETS {
            let end = bucket_end(at);
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
        assert_eq!(all.quantile(0.5), None);
        (1..=1000).for_each(|ns| all.record(ns * 1000));
        all.add(&all.clone());
        for (share, exact) in [(0.5, 500_000), (0.99, 990_000), (1.0, 1_000_000)] {
            let found = all.quantile(share).expect("times");
            assert!((exact..=exact + exact / 32).contains(&found), "{share}: {found}");
        }
    }
}
