//! Whether somebody may be waiting in the kernel's queue of a listening socket.
//!
//! Why it exists: the kernel tells once, when somebody comes, so whoever is forgotten there sleeps until
//! somebody else comes. And accepting fails in three ways: nobody is there; the newcomer's own network is at
//! fault, and the next may be there; the system has nothing left to accept anybody with.
//!
//! Always true: only "nobody is there" ends the readiness; after any other failure the socket is asked again,
//! at once where that took a newcomer out of the queue, else after [`RETRY_MS`], so that a shortage does not
//! keep the processor busy.

use crate::time::{Deadline, Now};

use super::platform::AcceptFailure;

/// How long until accepting is tried again when the system could not.
const RETRY_MS: u64 = 100;

/// What is known of one listening socket.
#[derive(Debug)]
pub(super) struct Listener {
    /// Whoever comes in here speaks TLS.
    pub(super) with_tls: bool,
    is_ready: bool,
    retry: Deadline,
}

impl Listener {
    /// Who came before anybody listened to events is there, too.
    pub(super) const fn new(with_tls: bool) -> Self {
        Self { with_tls, is_ready: true, retry: Deadline::NEVER }
    }

    /// The poll reported that somebody may be accepted.
    pub(super) const fn note_event(&mut self) {
        self.is_ready = true;
    }

    /// Whether accepting is to be tried.
    pub(super) const fn is_ready(&self) -> bool {
        self.is_ready
    }

    /// When it is to be tried again.
    pub(super) const fn deadline(&self) -> Deadline {
        self.retry
    }

    /// Tries again what failed for lack of something, when its time has come.
    pub(super) const fn keep_time(&mut self, now: Now) {
        if self.retry.is_due(now) {
            (self.is_ready, self.retry) = (true, Deadline::NEVER);
        }
    }

    /// Accepting failed.
    pub(super) const fn note_failure(&mut self, failure: AcceptFailure, now: Now) {
        match failure {
            AcceptFailure::Nobody => self.is_ready = false,
            AcceptFailure::Newcomer => {}
            AcceptFailure::System => (self.is_ready, self.retry) = (false, now.after_ms(RETRY_MS)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_nobody_is_forgotten() {
        let mut listener = Listener::new(false);
        let now = Now::from_ms(1_000);
        listener.note_failure(AcceptFailure::Newcomer, now);
        assert!(listener.is_ready(), "the next may be there");
        listener.note_failure(AcceptFailure::System, now);
        assert!(!listener.is_ready(), "not at once");
        assert_eq!(listener.deadline(), now.after_ms(RETRY_MS));
        listener.keep_time(now);
        assert!(!listener.is_ready());
        listener.keep_time(Now::from_ms(1_000 + RETRY_MS));
        assert!(listener.is_ready() && listener.deadline() == Deadline::NEVER);
        listener.note_failure(AcceptFailure::Nobody, now);
        listener.keep_time(Now::from_ms(1_000_000));
        assert!(!listener.is_ready(), "until somebody comes");
        listener.note_event();
        assert!(listener.is_ready());
    }
}
