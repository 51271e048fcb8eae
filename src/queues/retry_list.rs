//! A list of requests that wait for a change and are then retried, for example `basic.get`s.
//!
//! # Invariants
//! - Waiters are retried after every change that may let them succeed, and only then.

use std::collections::VecDeque;

/// A list of waiting requests ("waiters"), and whether they must be retried.
#[derive(Debug)]
pub struct RetryList<T> {
    list: VecDeque<T>,
    is_due: bool,
}

impl<T> RetryList<T> {
    /// Creates an empty list with capacity for this many waiters.
    pub fn with_capacity(most: usize) -> Self {
        Self { list: VecDeque::with_capacity(most), is_due: false }
    }

    /// Adds a waiter.
    pub fn push(&mut self, waiter: T) {
        self.list.push_back(waiter);
    }

    /// Notes a change after which a waiter may succeed: the waiters must be retried.
    #[inline]
    pub fn note_change(&mut self) {
        self.is_due |= !self.list.is_empty();
    }

    /// Returns whether the waiters must be retried.
    #[inline]
    pub const fn is_due(&self) -> bool {
        self.is_due
    }

    /// Returns whether the waiters must be retried, and clears that mark. The caller retries them.
    #[inline]
    pub const fn take_due(&mut self) -> bool {
        core::mem::replace(&mut self.is_due, false)
    }

    /// Returns the number of waiters.
    pub fn waiter_count(&self) -> usize {
        self.list.len()
    }

    /// Removes and returns the waiter that has waited longest.
    pub fn pop(&mut self) -> Option<T> {
        self.list.pop_front()
    }

    /// Returns the waiters, the one that has waited longest first.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.list.iter()
    }

    /// Returns the waiter at this position.
    pub fn at(&mut self, at: usize) -> &mut T {
        &mut self.list[at]
    }

    /// Removes and returns the first waiter for which `is_selected` is true.
    pub fn remove(&mut self, is_selected: impl FnMut(&T) -> bool) -> Option<T> {
        let found = self.list.iter().position(is_selected)?;
        self.list.remove(found)
    }

    /// Removes the waiters for which `is_kept` is false.
    pub fn retain(&mut self, is_kept: impl FnMut(&T) -> bool) {
        self.list.retain(is_kept);
    }
}
