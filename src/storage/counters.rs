//! What the store has done since the process began, for whoever watches over a card.
//!
//! Always true: counts only rise; "for messages" is what commits, headers and footers wrote, copies of the
//! cleaner included, and zeros that prepare a segment are counted apart.

use core::fmt;

use leveret_core::limits::Megabytes;

/// Powers of two of microseconds that sync times are counted by: the last holds all above 4 seconds.
const BUCKETS: usize = 24;

/// Counters since start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Commits handed out.
    pub commits: u64,
    /// Syncs asked of the disk.
    pub syncs: u64,
    /// Bytes written by commits, headers and footers.
    pub bytes_written: u64,
    /// Bytes of key, properties and body of messages appended.
    pub payload_bytes: u64,
    /// Bytes of records copied forward.
    pub bytes_copied: u64,
    /// Bytes of definitions copied so that they lie twice.
    pub bytes_doubled: u64,
    /// Bytes read to copy them.
    pub bytes_read_to_copy: u64,
    /// Bytes of zeros written to prepare segments.
    pub bytes_zeroed: u64,
    /// Bytes that the lives before this one wrote, zeros too.
    pub written_before: u64,
    /// Segments whose file is used again.
    pub segments_recycled: u64,
}

/// How long commits took on the disk: a histogram by powers of two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SyncTimes {
    buckets: [u64; BUCKETS],
}

impl SyncTimes {
    /// Counts one that took so many microseconds.
    pub fn add(&mut self, took_us: u64) {
        let bucket = (u64::BITS - took_us.leading_zeros()) as usize;
        self.buckets[bucket.min(BUCKETS - 1)] += 1;
    }

    /// How many took less than each power of two of microseconds, from 1 on.
    pub const fn buckets(&self) -> &[u64; BUCKETS] {
        &self.buckets
    }

    /// A time in microseconds that so many per mille did not exceed, rounded up to a power of two.
    pub fn quantile_us(&self, per_mille: u64) -> u64 {
        let all: u64 = self.buckets.iter().sum();
        let mut left = (all * per_mille).div_ceil(1000);
        for (bucket, count) in self.buckets.iter().enumerate() {
            if left <= *count {
                return 1 << bucket;
            }
            left -= count;
        }
        1 << BUCKETS
    }
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} commits, {} syncs, {} written for {} of messages",
            self.commits,
            self.syncs,
            Megabytes(self.bytes_written),
            Megabytes(self.payload_bytes)
        )?;
        if self.payload_bytes > 0 {
            let ratio = self.bytes_written as f64 / self.payload_bytes as f64;
            write!(f, " ({ratio:.3} bytes a byte)")?;
        }
        write!(
            f,
            "; {} of it copied by the cleaner; {} of zeros; {} segments used again",
            Megabytes(self.bytes_copied),
            Megabytes(self.bytes_zeroed),
            self.segments_recycled
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_upper_bounds() {
        let mut times = SyncTimes::default();
        for took_us in [3, 100, 100, 100, 100, 100, 100, 100, 100, 5_000] {
            times.add(took_us);
        }
        assert_eq!([0, 100, 500, 900, 1000].map(|at| times.quantile_us(at)), [1, 4, 128, 128, 8192]);
        times.add(u64::MAX);
        assert_eq!(times.buckets()[BUCKETS - 1], 1);
    }

    #[test]
    fn the_ratio_is_told_when_there_is_one() {
        let none = Counters::default().to_string();
        assert!(!none.contains("a byte"), "{none}");
        let some = Counters { bytes_written: 1_100, payload_bytes: 1_000, ..Counters::default() };
        assert!(some.to_string().contains("(1.100 bytes a byte)"), "{some}");
    }
}
