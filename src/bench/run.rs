//! What the threads of one run share: the clock, the counts, and whether it is still worth going on.
//!
//! Always true: every counter only grows; a queue's expected count is [`UNKNOWN`] until all its publishers
//! have finished.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::error::BenchError;

const UNKNOWN: u64 = u64::MAX;

/// One run, from the moment everybody is connected.
#[derive(Debug)]
pub(super) struct Run {
    epoch: Instant,
    given_up: AtomicBool,
    queues: Vec<QueueCount>,
}

#[derive(Debug)]
struct QueueCount {
    received: AtomicU64,
    expected: AtomicU64,
}

impl Run {
    pub(super) fn new(queues: u32) -> Self {
        let count = || QueueCount { received: AtomicU64::new(0), expected: AtomicU64::new(UNKNOWN) };
        Self {
            epoch: Instant::now(),
            given_up: AtomicBool::new(false),
            queues: (0..queues).map(|_| count()).collect(),
        }
    }

    /// Time since the start.
    #[inline]
    pub(super) fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    #[inline]
    pub(super) fn now_ns(&self) -> u64 {
        nanos(self.now())
    }

    /// A publisher or consumer failed: everybody stops.
    pub(super) fn give_up(&self) {
        self.given_up.store(true, Ordering::Relaxed);
    }

    /// An error once somebody failed.
    #[inline]
    pub(super) fn check(&self) -> Result<(), BenchError> {
        if self.given_up.load(Ordering::Relaxed) { Err(BenchError::GivenUp) } else { Ok(()) }
    }

    /// All publishers of a queue have finished.
    pub(super) fn set_due(&self, queue: u32, count: u64) {
        self.queues[queue as usize].expected.store(count, Ordering::Relaxed);
    }

    pub(super) fn received(&self, queue: u32, more: u64) {
        self.queues[queue as usize].received.fetch_add(more, Ordering::Relaxed);
    }

    /// Whether everything has come out of a queue.
    pub(super) fn is_drained(&self, queue: u32) -> bool {
        let count = &self.queues[queue as usize];
        count.received.load(Ordering::Relaxed) >= count.expected.load(Ordering::Relaxed)
    }

    /// How many came out of a queue, and how many must; `None` while it is not known.
    pub(super) fn missing(&self, queue: u32) -> Option<(u64, u64)> {
        let count = &self.queues[queue as usize];
        let expected = count.expected.load(Ordering::Relaxed);
        (expected != UNKNOWN).then(|| (count.received.load(Ordering::Relaxed), expected))
    }
}

/// A duration as 64 bits of nanoseconds: 584 years.
#[inline]
pub(super) fn nanos(duration: Duration) -> u64 {
    duration.as_nanos() as u64
}
