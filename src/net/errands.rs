//! What would hold the loop up, done by a thread of its own, one thing at a time.
//!
//! ```text
//! Errand::Password ─┐                                      ┌─ Done::Password → the answer to a login
//!    (one variant   ├→ the helper, when it is free, does → ┤
//!     per kind)     ┘                                      └─ ...
//! ```
//!
//! Always true: the loop never waits for an errand; whoever waits for one is not read and has a ticket, so a
//! result never reaches another connection that has the same id by now; each kind has a bounded line of its
//! own.

use std::io;
use std::sync::Arc;

use mio::Waker;

use crate::command::{ConnectionId, Outcome};
use crate::journal::Batch;
use crate::time::Deadline;

use super::gate::{Gate, Login};
use super::helper::Helper;
use super::house::House;
use super::peer::{Ending, Waiting};

/// Something to be done elsewhere.
pub(super) enum Errand {
    /// Check a password.
    Password(Login),
}

/// What came of it.
pub(super) enum Done {
    /// Whether it was right.
    Password(Login, bool),
}

impl Errand {
    /// In the helper.
    fn run(self) -> Done {
        match self {
            Self::Password(login) => {
                let is_right = login.check.is_right();
                Done::Password(login, is_right)
            }
        }
    }
}

/// Errands as the loop has them.
pub(super) struct Errands {
    helper: Helper<Errand, Done>,
    is_busy: bool,
    tickets: u64,
    pub(super) gate: Gate,
}

impl Errands {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system starts no more threads.
    pub(super) fn start(waker: Arc<Waker>, handshakes_max: usize) -> io::Result<Self> {
        Ok(Self {
            helper: Helper::start("errands", waker, Errand::run)?,
            is_busy: false,
            tickets: 0,
            gate: Gate::new(handshakes_max),
        })
    }

    /// A number that no errand had before.
    pub(super) const fn ticket(&mut self) -> u64 {
        self.tickets += 1;
        self.tickets
    }
}

impl House {
    /// Whether an errand can be given out now.
    pub(super) fn has_errand(&self) -> bool {
        !self.errands.is_busy && self.errands.gate.has_next(self.now)
    }

    /// When one can be that has to wait until then.
    pub(super) fn errand_deadline(&self) -> Deadline {
        if self.errands.is_busy { Deadline::NEVER } else { self.errands.gate.deadline() }
    }

    /// Takes what was done, and gives out what is next.
    pub(super) fn run_errands(&mut self) {
        if let Some(done) = self.errands.helper.take() {
            self.errands.is_busy = false;
            match done {
                Done::Password(login, is_right) => self.finish_login(&login, is_right),
            }
        }
        if !self.errands.is_busy
            && let Some(errand) = self.next_errand()
        {
            self.errands.is_busy = true;
            self.errands.helper.give(errand);
        }
    }

    fn next_errand(&mut self) -> Option<Errand> {
        while let Some(login) = self.errands.gate.next(self.now) {
            // Another of the same user may have been checked while this one waited.
            if !self.broker.is_remembered(&login.check) {
                return Some(Errand::Password(login));
            }
            self.finish_login(&login, true);
        }
        None
    }

    /// Answers a login.
    fn finish_login(&mut self, login: &Login, is_right: bool) {
        if let Some((failures, delay_ms)) = self.errands.gate.checked(self.now, login, is_right) {
            let from = login.from;
            log::warn!("{from}: {failures} wrong logins so far; its next waits for {delay_ms} ms");
        }
        while let Some(other) = self.errands.gate.turn_away(login) {
            self.end_now(other);
        }
        if !self.awaits(login.connection, login.ticket) {
            return;
        }
        let outcome = self.broker.checked(login.connection, &login.check, is_right);
        self.give_errand_answer(login.connection, outcome);
    }

    /// Whether a connection still waits for the errand with this ticket.
    fn awaits(&self, id: ConnectionId, ticket: u64) -> bool {
        let peer = self.peers.get(id.index()).and_then(Option::as_ref);
        peer.is_some_and(|peer| peer.waiting == Waiting::Errand(ticket) && peer.ending == Ending::No)
    }

    /// Gives the answer that had to wait for an errand, and lets the connection go on.
    fn give_errand_answer(&mut self, id: ConnectionId, outcome: Outcome) {
        let Some(peer) = self.peers[id.index()].as_mut() else { return };
        if peer.session.expects_answer() {
            let mut context = self.supplies.context(self.now, &self.broker, id);
            peer.session.answer(&mut context, outcome, 0, Batch::NONE);
        }
        self.resume(id);
        self.after_session(id);
    }
}
