//! Those who wait for what many can bring about, and whether they are to be asked again.
//!
//! Always true: nobody is asked again without a reason, and nobody who waits misses one.

use std::collections::VecDeque;

/// A list of those who wait, and whether it is to be gone through.
#[derive(Debug)]
pub(crate) struct Waiters<T> {
    list: VecDeque<T>,
    is_due: bool,
}

impl<T> Waiters<T> {
    /// Nobody yet, with room for so many.
    pub(crate) fn with_capacity(most: usize) -> Self {
        Self { list: VecDeque::with_capacity(most), is_due: false }
    }

    /// One more waits.
    pub(crate) fn push(&mut self, one: T) {
        self.list.push_back(one);
    }

    /// Something happened that they may wait for.
    #[inline]
    pub(crate) fn note_change(&mut self) {
        self.is_due |= !self.list.is_empty();
    }

    /// Whether they are to be asked again.
    #[inline]
    pub(crate) const fn is_due(&self) -> bool {
        self.is_due
    }

    /// Whether they are to be asked again, which is done now.
    #[inline]
    pub(crate) const fn take_due(&mut self) -> bool {
        core::mem::replace(&mut self.is_due, false)
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    /// Who has waited longest, who waits no more with that.
    pub(crate) fn pop(&mut self) -> Option<T> {
        self.list.pop_front()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.list.iter()
    }

    pub(crate) fn at(&mut self, at: usize) -> &mut T {
        &mut self.list[at]
    }

    /// Takes out the first of whom this is true.
    pub(crate) fn remove(&mut self, is_it: impl FnMut(&T) -> bool) -> Option<T> {
        let found = self.list.iter().position(is_it)?;
        self.list.remove(found)
    }

    /// Keeps those of whom this is true.
    pub(crate) fn retain(&mut self, stays: impl FnMut(&T) -> bool) {
        self.list.retain(stays);
    }
}
