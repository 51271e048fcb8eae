//! Lists of connections or gets that wait for a change, and whether they must be retried.
//!
//! # Invariants
//! - A waiter is not retried without a reason, and no waiter misses a reason.

use std::collections::VecDeque;

/// A list of waiters, and whether they must be retried.
#[derive(Debug)]
pub(crate) struct RetryList<T> {
    list: VecDeque<T>,
    is_due: bool,
}

impl<T> RetryList<T> {
    /// Creates an empty list with capacity for this many waiters.
    pub(crate) fn with_capacity(most: usize) -> Self {
        Self { list: VecDeque::with_capacity(most), is_due: false }
    }

    /// Adds a waiter.
    pub(crate) fn push(&mut self, one: T) {
        self.list.push_back(one);
    }

    /// Notes a change that the waiters may wait for.
    #[inline]
    pub(crate) fn note_change(&mut self) {
        self.is_due |= !self.list.is_empty();
    }

    /// Returns whether the waiters must be retried.
    #[inline]
    pub(crate) const fn is_due(&self) -> bool {
        self.is_due
    }

    /// Returns whether the waiters must be retried; the caller does so now.
    #[inline]
    pub(crate) const fn take_due(&mut self) -> bool {
        core::mem::replace(&mut self.is_due, false)
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    /// Takes out the waiter that has waited longest.
    pub(crate) fn pop(&mut self) -> Option<T> {
        self.list.pop_front()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.list.iter()
    }

    pub(crate) fn at(&mut self, at: usize) -> &mut T {
        &mut self.list[at]
    }

    /// Takes out the first waiter for which `is_it` holds.
    pub(crate) fn remove(&mut self, is_it: impl FnMut(&T) -> bool) -> Option<T> {
        let found = self.list.iter().position(is_it)?;
        self.list.remove(found)
    }

    /// Keeps the waiters for which `stays` holds.
    pub(crate) fn retain(&mut self, stays: impl FnMut(&T) -> bool) {
        self.list.retain(stays);
    }
}
