//! Visitors of the management API that are accepted and wait for a place.
//!
//! Why it exists: the kernel's listen queue is first come, first served; who it is that waits is known only
//! of those who are accepted, and the next place is to go to the address that has fewest, and of such to
//! another than the last one did.
//!
//! Always true: there are at most [`VISITORS_MAX`], in the order of their coming; an address with one of them
//! is never the one that has to go.

use super::address::Source;
use super::platform::Visitor;

/// So many may wait; more wait in the listen queue.
pub const VISITORS_MAX: usize = 5;

/// Somebody who waits.
#[derive(Debug)]
pub(super) struct WaitingVisitor<S> {
    pub(super) visitor: Visitor<S>,
    /// He came to where there is nothing but metrics.
    pub(super) is_for_metrics: bool,
}

/// Those who wait.
#[derive(Debug)]
pub(super) struct WaitingVisitors<S> {
    visitors: heapless::Vec<WaitingVisitor<S>, VISITORS_MAX>,
    /// The address of the one that had a place last.
    last: Option<Source>,
}

impl<S> WaitingVisitors<S> {
    pub(super) const fn new() -> Self {
        Self { visitors: heapless::Vec::new(), last: None }
    }

    pub(super) fn is_full(&self) -> bool {
        self.visitors.is_full()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.visitors.is_empty()
    }

    pub(super) fn clear(&mut self) {
        self.visitors.clear();
    }

    /// The addresses of those who wait.
    pub(super) fn sources(&self) -> impl Iterator<Item = Source> {
        self.visitors.iter().map(|waiting| waiting.visitor.address.origin())
    }

    /// Whether it was one of this address that had a place last.
    pub(super) fn was_last(&self, source: Source) -> bool {
        self.last == Some(source)
    }

    /// Takes one out for a place, by his place among [`Self::sources`].
    pub(super) fn take(&mut self, at: usize) -> WaitingVisitor<S> {
        let waiting = self.visitors.remove(at);
        self.last = Some(waiting.visitor.address.origin());
        waiting
    }

    /// Lets one wait, for whom there is room. If it is full then, the one who came last of the address that
    /// has most here and of the places, as `held` says, has to go, unless all are of different addresses.
    pub(super) fn push(
        &mut self,
        waiting: WaitingVisitor<S>,
        held: impl Fn(Source) -> usize,
    ) -> Option<Visitor<S>> {
        let is_in = self.visitors.push(waiting).is_ok();
        assert!(is_in, "nobody is accepted for whom there is no room");
        if !self.is_full() {
            return None;
        }
        let here = |source| self.sources().filter(|other| *other == source).count();
        let crowd = self.sources().enumerate().filter(|(_, source)| here(*source) > 1);
        let last = crowd.max_by_key(|(at, source)| (here(*source) + held(*source), *at));
        last.map(|(at, _)| at).map(|at| self.visitors.remove(at).visitor)
    }
}
