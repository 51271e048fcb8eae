//! Who takes from one queue, and in which order they have their turn.
//!
//! Always true: with a single active consumer that one is the first; eligible are those that can take a message now,
//! the highest priority first and, of one priority, whoever was served longest ago.

use crate::mem::List;

/// The consumers of one queue.
#[derive(Debug, Default)]
pub(crate) struct Audience {
    pub(super) all: List,
    pub(super) eligible: List,
    /// One of them is exclusive.
    pub(super) has_exclusive: bool,
    /// One takes everything, the others wait until it has gone.
    pub(super) is_single_active: bool,
}

impl Audience {
    /// Nobody yet; `is_single_active`: there is to be one at a time who takes messages.
    pub(crate) fn new(is_single_active: bool) -> Self {
        Self { is_single_active, ..Self::default() }
    }

    /// Whether there is to be one at a time who takes messages, from now on.
    pub(crate) const fn set_single_active(&mut self, is_single_active: bool) {
        self.is_single_active = is_single_active;
    }

    /// How many there are.
    pub(crate) const fn len(&self) -> u32 {
        self.all.len()
    }

    /// Whether there are none.
    pub(crate) const fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// One of them.
    pub(crate) const fn first(&self) -> Option<usize> {
        self.all.front()
    }

    /// Whether one of them has the queue for itself.
    pub(crate) const fn has_exclusive(&self) -> bool {
        self.has_exclusive
    }

    /// Whether a consumer that wants the queue for itself cannot have it.
    pub(crate) const fn is_taken(&self) -> bool {
        !self.all.is_empty() || self.is_single_active
    }

    /// Whether one of them can take a message now.
    #[inline]
    pub(crate) const fn is_ready(&self) -> bool {
        !self.eligible.is_empty()
    }

    /// Who is to have the next message.
    #[inline]
    pub(crate) const fn next(&self) -> Option<usize> {
        self.eligible.front()
    }

    /// The one consumer that may take messages, where there is to be one at a time.
    pub(crate) const fn single_active(&self) -> Option<usize> {
        if self.is_single_active { self.all.front() } else { None }
    }

    /// Whether a consumer has to wait until the active one has gone.
    pub(crate) fn keeps_waiting(&self, consumer: usize) -> bool {
        self.is_single_active && self.all.front() != Some(consumer)
    }
}
