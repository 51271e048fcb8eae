//! The consumers of one queue, and the order in which they are served.
//!
//! Always true: the single active consumer is the first on the list; eligible are the consumers that can take
//! a message now, the highest priority first and, within one priority, whoever was served longest ago.

use leveret_core::mem::List;

/// The consumers of one queue.
#[derive(Debug, Default)]
pub(crate) struct QueueConsumers {
    pub(super) all: List,
    pub(super) eligible: List,
    /// One consumer is exclusive.
    pub(super) has_exclusive: bool,
    /// The queue has a single active consumer: the others wait until it has gone.
    pub(super) is_single_active: bool,
}

impl QueueConsumers {
    /// An audience without consumers; `is_single_active`: the queue has a single active consumer.
    pub(crate) fn new(is_single_active: bool) -> Self {
        Self { is_single_active, ..Self::default() }
    }

    /// Sets whether the queue has a single active consumer.
    pub(crate) const fn set_single_active(&mut self, is_single_active: bool) {
        self.is_single_active = is_single_active;
    }

    /// How many consumers the queue has.
    pub(crate) const fn len(&self) -> u32 {
        self.all.len()
    }

    /// Whether the queue has no consumers.
    pub(crate) const fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// The first consumer on the list.
    pub(crate) const fn first(&self) -> Option<usize> {
        self.all.front()
    }

    /// Whether an exclusive consumer has the queue.
    pub(crate) const fn has_exclusive(&self) -> bool {
        self.has_exclusive
    }

    /// Whether the queue refuses an exclusive consumer: it has consumers, or a single active one at a time.
    pub(crate) const fn is_taken(&self) -> bool {
        !self.all.is_empty() || self.is_single_active
    }

    /// Whether some consumer can take a message now.
    #[inline]
    pub(crate) const fn is_ready(&self) -> bool {
        !self.eligible.is_empty()
    }

    /// The consumer that is to have the next message.
    #[inline]
    pub(crate) const fn next(&self) -> Option<usize> {
        self.eligible.front()
    }

    /// The single active consumer, in a queue that has one at a time.
    pub(crate) const fn single_active(&self) -> Option<usize> {
        if self.is_single_active { self.all.front() } else { None }
    }

    /// Whether a consumer has to wait until the single active one has gone.
    pub(crate) fn keeps_waiting(&self, consumer: usize) -> bool {
        self.is_single_active && self.all.front() != Some(consumer)
    }
}
