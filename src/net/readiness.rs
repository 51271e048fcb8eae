//! Whether somebody may be waiting in the kernel's queue of a listening socket.
//!
//! Why it exists: the kernel tells once, when somebody comes, so whoever is forgotten there sleeps until
//! somebody else comes. And accepting fails in three ways: nobody is there; the newcomer's own network is at
//! fault, and the next may be there; the system has nothing left to accept anybody with.
//!
//! Always true: only "nobody is there" ends the readiness; after any other failure the socket is asked again,
//! at once where that took a newcomer out of the queue, else after [`RETRY_MS`], so that a shortage does not
//! keep the processor busy.

use std::io;

use rustix::io::Errno;

use crate::time::{Deadline, Now};

/// How long until accepting is tried again when the system could not.
const RETRY_MS: u64 = 100;

/// Of one listening socket.
#[derive(Debug)]
pub(super) struct Readiness {
    is_ready: bool,
    retry: Deadline,
}

/// Why nobody could be accepted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum AcceptFailure {
    /// Nobody is there.
    Nobody,
    /// The newcomer has gone, or cannot be reached.
    Newcomer,
    /// The system cannot.
    System,
}

impl Readiness {
    /// Who came before anybody listened to events is there, too.
    pub(super) const fn new() -> Self {
        Self { is_ready: true, retry: Deadline::NEVER }
    }

    /// Somebody came.
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
            *self = Self::new();
        }
    }

    /// Accepting failed.
    pub(super) fn note_failure(&mut self, error: &io::Error, now: Now) -> AcceptFailure {
        let failure = failure_of(error);
        match failure {
            AcceptFailure::Nobody => self.is_ready = false,
            AcceptFailure::Newcomer => {}
            AcceptFailure::System => (self.is_ready, self.retry) = (false, now.after_ms(RETRY_MS)),
        }
        failure
    }
}

/// On Linux accept() also says what has become of the connection meanwhile, which it takes out of the queue.
fn failure_of(error: &io::Error) -> AcceptFailure {
    match Errno::from_io_error(error) {
        Some(Errno::WOULDBLOCK) => AcceptFailure::Nobody,
        Some(
            Errno::INTR
            | Errno::CONNABORTED
            | Errno::CONNRESET
            | Errno::TIMEDOUT
            | Errno::PROTO
            | Errno::NOPROTOOPT
            | Errno::NETDOWN
            | Errno::NETUNREACH
            | Errno::HOSTDOWN
            | Errno::HOSTUNREACH
            | Errno::NONET,
        ) => AcceptFailure::Newcomer,
        _ => AcceptFailure::System,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_nobody_is_forgotten() {
        let mut readiness = Readiness::new();
        let now = Now::from_ms(1_000);
        let fail = |readiness: &mut Readiness, errno: Errno| readiness.note_failure(&errno.into(), now);
        assert_eq!(fail(&mut readiness, Errno::PROTO), AcceptFailure::Newcomer);
        assert!(readiness.is_ready(), "the next may be there");
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::PERM] {
            assert_eq!(fail(&mut readiness, errno), AcceptFailure::System);
            assert!(!readiness.is_ready(), "not at once");
            assert_eq!(readiness.deadline(), now.after_ms(RETRY_MS));
            readiness.keep_time(now);
            assert!(!readiness.is_ready());
            readiness.keep_time(Now::from_ms(1_000 + RETRY_MS));
            assert!(readiness.is_ready() && readiness.deadline() == Deadline::NEVER);
        }
        assert_eq!(fail(&mut readiness, Errno::AGAIN), AcceptFailure::Nobody);
        readiness.keep_time(Now::from_ms(1_000_000));
        assert!(!readiness.is_ready(), "until somebody comes");
        readiness.note_event();
        assert!(readiness.is_ready());
    }
}
