//! Visitors of the management API that are accepted and wait for a place.
//!
//! Why it exists: the kernel's listen queue is first come, first served; who it is that waits is known only
//! of those who are accepted, and the next place is to go to the address that has fewest, and of such to
//! another than the last one did. What they say can be looked at before it is read, so whoever has a login that
//! is known goes before strangers, however many of them wait at the same address.
//!
//! Always true: there are at most [`VISITORS_MAX`], in the order of their coming, and where there are
//! listeners of both kinds, those of each wait in seats of their own; an address with one of them is never
//! the one that has to go, and of a crowd strangers go first.

use core::cmp::Reverse;

use crate::address::Source;
use crate::platform::Visitor;

/// Visitors that may wait; more wait in the listen queue.
pub const VISITORS_MAX: usize = 12;
/// Visitors of the listeners of metrics that may wait, if there are other listeners.
const METRICS_SEATS: usize = 2;

/// What somebody came in by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ListenerKind {
    /// With a login.
    Api,
    /// Without one, and to nothing but metrics.
    Metrics,
}

/// Somebody who waits.
#[derive(Debug)]
pub(crate) struct WaitingVisitor<S> {
    pub(crate) visitor: Visitor<S>,
    pub(crate) listener: ListenerKind,
    /// The visitor speaks TLS, so nobody knows what he says before he has a place.
    pub(crate) with_tls: bool,
    /// What he says first comes with a login that is known, as far as that was looked at.
    pub(super) is_known: bool,
}

impl<S> WaitingVisitor<S> {
    /// Who it is, as far as that is known.
    pub(super) fn origin(&self) -> (ListenerKind, Source) {
        (self.listener, self.visitor.address.origin())
    }

    /// Whether what he says may still tell that his login is known.
    pub(super) fn may_become_known(&self) -> bool {
        self.listener == ListenerKind::Api && !self.with_tls && !self.is_known
    }
}

/// Visitors of the management API and of metrics who wait for a place.
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

    /// Whether nobody more of this listener may wait; `is_only`: there is no other kind.
    pub(super) fn is_full(&self, listener: ListenerKind, is_only: bool) -> bool {
        let seats = match (is_only, listener) {
            (true, _) => VISITORS_MAX,
            (false, ListenerKind::Metrics) => METRICS_SEATS,
            (false, ListenerKind::Api) => VISITORS_MAX - METRICS_SEATS,
        };
        self.visitors.iter().filter(|waiting| waiting.listener == listener).count() >= seats
    }

    pub(super) fn is_empty(&self) -> bool {
        self.visitors.is_empty()
    }

    pub(super) fn clear(&mut self) {
        self.visitors.clear();
    }

    /// The visitors who wait, in the order in which they came.
    pub(super) fn iter(&self) -> impl Iterator<Item = &WaitingVisitor<S>> {
        self.visitors.iter()
    }

    /// Looks who of the API's has a login that is known.
    pub(super) fn look(&mut self, mut is_known: impl FnMut(&Visitor<S>) -> bool) {
        for waiting in self.visitors.iter_mut().filter(|it| it.may_become_known()) {
            waiting.is_known = is_known(&waiting.visitor);
        }
    }

    /// The listeners and addresses of those who wait.
    fn origins(&self) -> impl Iterator<Item = (ListenerKind, Source)> {
        self.visitors.iter().map(WaitingVisitor::origin)
    }

    /// Whether it was one of this address that had a place last.
    pub(super) fn was_last(&self, source: Source) -> bool {
        self.last == Some(source)
    }

    /// Takes one out for a place, by his place among [`Self::iter`].
    pub(super) fn take(&mut self, at: usize) -> WaitingVisitor<S> {
        let waiting = self.visitors.remove(at);
        self.last = Some(waiting.visitor.address.origin());
        waiting
    }

    /// Lets one wait, for whom there is room. If its listener's seats are taken then, one of the address that has
    /// most of them and of the places, as `held` says, has to go, unless all are of different addresses: a
    /// stranger if it has one, which `is_known` says once more, and the one who waits longest, for those after
    /// him may still be about to say who they are.
    pub(super) fn push(
        &mut self,
        waiting: WaitingVisitor<S>,
        is_only: bool,
        held: impl Fn(ListenerKind, Source) -> usize,
        mut is_known: impl FnMut(&Visitor<S>) -> bool,
    ) -> Option<Visitor<S>> {
        let listener = waiting.listener;
        let is_in = self.visitors.push(waiting).is_ok();
        assert!(is_in, "nobody is accepted for whom there is no room");
        if !self.is_full(listener, is_only) {
            return None;
        }
        loop {
            let here = |origin| self.origins().filter(|other| *other == origin).count();
            let crowd = self
                .visitors
                .iter()
                .enumerate()
                .filter(|(_, waiting)| waiting.listener == listener && here(waiting.origin()) > 1);
            let rank = |at: usize, waiting: &WaitingVisitor<S>| {
                let (door, source) = waiting.origin();
                (here((door, source)) + held(door, source), !waiting.is_known, Reverse(at))
            };
            let (at, _) = crowd.max_by_key(|(at, waiting)| rank(*at, waiting))?;
            let chosen = &mut self.visitors[at];
            if chosen.may_become_known() && is_known(&chosen.visitor) {
                chosen.is_known = true;
                continue;
            }
            return Some(self.visitors.remove(at).visitor);
        }
    }
}
