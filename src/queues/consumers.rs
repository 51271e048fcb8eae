//! The lists of a queue's consumers.

use leveret_core::mem::List;

/// The consumers of one queue, in the order in which they are served.
#[derive(Debug, Default)]
pub struct QueueConsumers {
    /// All consumers. In a queue with a single active consumer, the first one is active.
    pub all: List,
    /// The consumers that can take a message now, by priority, and then by how long they wait.
    pub eligible: List,
    /// The queue has an exclusive consumer.
    pub has_exclusive: bool,
    /// The queue was declared with `x-single-active-consumer`: only the first consumer is active.
    pub(crate) is_single_active: bool,
}

impl QueueConsumers {
    /// Creates an empty list. `is_single_active` is whether the queue has a single active consumer.
    pub fn new(is_single_active: bool) -> Self {
        Self { is_single_active, ..Self::default() }
    }

    /// Sets whether the queue has a single active consumer.
    pub(crate) const fn set_single_active(&mut self, is_single_active: bool) {
        self.is_single_active = is_single_active;
    }

    /// Returns the number of consumers of the queue.
    pub const fn len(&self) -> u32 {
        self.all.len()
    }

    /// Returns whether the queue has no consumers.
    pub const fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Returns the first consumer on the list.
    pub const fn first(&self) -> Option<usize> {
        self.all.front()
    }

    /// Returns whether the queue has an exclusive consumer.
    pub const fn has_exclusive(&self) -> bool {
        self.has_exclusive
    }

    /// Returns whether the queue refuses an exclusive consumer, because it has consumers, or was declared
    /// with a single active consumer.
    pub const fn refuses_exclusive(&self) -> bool {
        !self.all.is_empty() || self.is_single_active
    }

    /// Returns whether any consumer can take a message now.
    #[inline]
    pub const fn is_ready(&self) -> bool {
        !self.eligible.is_empty()
    }

    /// Returns the consumer that gets the next message.
    #[inline]
    pub const fn next(&self) -> Option<usize> {
        self.eligible.front()
    }

    /// Returns the active consumer of a queue that was declared with a single active consumer; otherwise
    /// `None`.
    pub const fn single_active(&self) -> Option<usize> {
        if self.is_single_active { self.all.front() } else { None }
    }

    /// Returns whether a consumer gets no messages until the single active consumer ends.
    pub fn keeps_waiting(&self, consumer: usize) -> bool {
        self.is_single_active && self.all.front() != Some(consumer)
    }
}
