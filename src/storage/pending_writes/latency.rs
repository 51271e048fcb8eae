//! How long publishers wait for the disk.

use std::collections::VecDeque;

use leveret_core::batch::Batch;

/// Upper bounds of the buckets of [`LatencyHistogram`], in milliseconds. The last bucket counts longer times.
pub const LATENCY_BOUNDS_MS: [u64; 12] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 5_000, 30_000];
/// Maximum number of batches that are measured at the same time. Others are not measured.
const BATCHES_MAX: usize = 64;

/// How long publishers waited for the disk until their messages were durable, since the start.
#[derive(Clone, Copy, Default, Debug)]
pub struct LatencyHistogram {
    /// Number of messages by waiting time: a bucket for each of [`LATENCY_BOUNDS_MS`], and one for all longer times.
    pub counts: [u64; LATENCY_BOUNDS_MS.len() + 1],
    /// The sum of all waiting times, in milliseconds.
    pub sum_ms: u64,
}

/// Measures the time from a batch's first awaited message until the batch is durable.
#[derive(Debug)]
pub(super) struct LatencyMeter {
    histogram: LatencyHistogram,
    /// Batch, the time of its first awaited message in milliseconds, and the number of awaited messages.
    waiting: VecDeque<(Batch, u64, u64)>,
}

impl LatencyMeter {
    pub(super) fn new() -> Self {
        Self { histogram: LatencyHistogram::default(), waiting: VecDeque::with_capacity(BATCHES_MAX) }
    }

    /// Notes a message of this batch whose publisher waits for the disk.
    #[inline]
    pub(super) fn note_awaited(&mut self, batch: Batch, now_ms: u64) {
        if let Some((_, _, count)) = self.waiting.back_mut().filter(|(last, ..)| *last == batch) {
            *count += 1;
        } else if self.waiting.len() < BATCHES_MAX {
            self.waiting.push_back((batch, now_ms, 1));
        }
    }

    /// Notes that everything up to this batch is durable.
    pub(super) fn note_durable(&mut self, durable: Batch, now_ms: u64) {
        while let Some(&(_, since_ms, count)) = self.waiting.front().filter(|(batch, ..)| *batch <= durable) {
            self.waiting.pop_front();
            let ms = now_ms.saturating_sub(since_ms);
            let bucket = LATENCY_BOUNDS_MS.partition_point(|bound| *bound < ms);
            self.histogram.counts[bucket] += count;
            self.histogram.sum_ms += ms * count;
        }
    }

    pub(super) const fn histogram(&self) -> LatencyHistogram {
        self.histogram
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_count_with_the_time_from_the_first_message_of_their_batch_until_it_is_durable() {
        let mut meter = LatencyMeter::new();
        let first = Batch::NONE.after();
        let second = first.after();
        meter.note_awaited(first, 100);
        meter.note_awaited(first, 103);
        meter.note_awaited(second, 104);
        meter.note_durable(Batch::NONE, 104);
        assert_eq!(meter.histogram().sum_ms, 0);
        meter.note_durable(first, 105);
        meter.note_durable(second, 60_000);
        let LatencyHistogram { counts, sum_ms } = meter.histogram();
        assert_eq!((counts[2], counts[12], sum_ms), (2, 1, 2 * 5 + 59_896));
        assert_eq!(counts.iter().sum::<u64>(), 3);
    }
}
