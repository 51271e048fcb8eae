//! What would hold the loop up, done by a thread of its own, one thing at a time.
//!
//! ```text
//! Errand::Password ──┐                                      ┌─ Done::Password → the answer to a login
//! Errand::Handshake ─┼→ the helper, when it is free, does → ┼─ Done::Handshake → the next step of TLS
//! Errand::Reload ────┘                                      └─ Done::Reload → what is live at once
//! ```
//!
//! Always true: the loop never waits for an errand; whoever waits for one is not read and has a ticket, so a
//! result never reaches another connection that has the same id by now; each kind has a bounded line of its
//! own, and the lines take turns.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use mio::Waker;

use crate::command::{ConnectionId, Outcome};
use crate::config::Config;
use crate::journal::Batch;
use crate::limits::Limits;
use crate::log_limiter::LogKind;
use crate::time::{Deadline, Now};

use super::helper::Helper;
use super::house::House;
use super::login_throttle::{Login, LoginThrottle};
use super::peer::{Ending, Waiting};
use crate::tls::{CertificateStore, Handshake, Shaken};

/// Something to be done elsewhere.
pub(super) enum Errand {
    /// Check a password.
    Password(Login),
    /// Make a step of a handshake of TLS.
    Handshake(Shake),
    /// Read configuration and certificates again.
    Reload(Box<Config>),
}

/// A step of a handshake that waits to be made.
pub(super) struct Shake {
    pub(super) connection: ConnectionId,
    pub(super) ticket: u64,
    /// So long its peer has been waiting for us.
    pub(super) since: Now,
    pub(super) handshake: Box<Handshake>,
}

/// What came of it.
pub(super) enum Done {
    /// Whether it was right.
    Password(Login, bool),
    /// Of which connection and ticket, since when it waited, and how it goes on.
    Handshake(ConnectionId, u64, Now, Shaken),
    /// What the configuration says now, or why that cannot be.
    Reload(Box<Result<Config, String>>),
}

impl Errand {
    /// In the helper, which has the certificates.
    fn run(self, certificates: Option<&mut CertificateStore>) -> Done {
        match self {
            Self::Handshake(Shake { connection, ticket, since, handshake }) => {
                Done::Handshake(connection, ticket, since, handshake.step(certificates))
            }
            Self::Reload(config) => Done::Reload(Box::new(reload(&config, certificates))),
            Self::Password(login) => {
                let is_right = login.check.is_right();
                Done::Password(login, is_right)
            }
        }
    }
}

/// Reads the configuration again, and of one that can be the certificates.
fn reload(before: &Config, certificates: Option<&mut CertificateStore>) -> Result<Config, String> {
    let mut config = before.again().map_err(|error| error.to_string())?;
    config.fit(super::record_sizes).map_err(|error| config.blame(&error).to_string())?;
    if let Some(certificates) = certificates
        && !certificates.reload(&config.tls)
    {
        config.tls.clone_from(&before.tls);
    }
    Ok(config)
}

/// Errands as the loop has them.
pub(super) struct Errands {
    /// With what was done comes whether nobody can come in by TLS.
    helper: Helper<Errand, (Done, bool)>,
    is_busy: bool,
    /// Nobody comes in by TLS, for the files of `[tls]` cannot be used.
    pub(super) is_tls_shut: bool,
    /// When the one under way was given out.
    given: Now,
    tickets: u64,
    pub(super) throttle: LoginThrottle,
    /// Handshakes of TLS, first come first served.
    pub(super) shakes: VecDeque<Shake>,
    /// What is to be read again.
    pub(super) reload: Option<Box<Config>>,
    /// The next errand is a handshake, if there is one.
    shakes_next: bool,
}

impl Errands {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system starts no more threads.
    pub(super) fn start(
        waker: Arc<Waker>,
        limits: &Limits,
        mut certificates: Option<CertificateStore>,
    ) -> io::Result<Self> {
        let shakes_max = if certificates.is_some() { limits.tls_handshakes_max as usize } else { 0 };
        let is_tls_shut = certificates.as_ref().is_some_and(CertificateStore::is_shut);
        let work = move |errand: Errand| {
            let done = errand.run(certificates.as_mut());
            (done, certificates.as_ref().is_some_and(CertificateStore::is_shut))
        };
        Ok(Self {
            helper: Helper::start("errands", waker, work)?,
            is_busy: false,
            is_tls_shut,
            given: Now::default(),
            tickets: 0,
            throttle: LoginThrottle::new(limits.handshakes_max as usize),
            shakes: VecDeque::with_capacity(shakes_max),
            reload: None,
            shakes_next: false,
        })
    }

    /// A connection is gone, and waits in no line any more.
    pub(super) fn leave(&mut self, id: ConnectionId) {
        self.throttle.leave(id);
        self.shakes.retain(|shake| shake.connection != id);
    }

    fn has_next(&self, now: Now) -> bool {
        self.reload.is_some() || !self.shakes.is_empty() || self.throttle.has_next(now)
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
        !self.errands.is_busy && self.errands.has_next(self.now)
    }

    /// When one can be that has to wait until then.
    pub(super) fn errand_deadline(&self) -> Deadline {
        if self.errands.is_busy { Deadline::NEVER } else { self.errands.throttle.deadline() }
    }

    /// Takes what was done, and gives out what is next.
    pub(super) fn run_errands(&mut self) {
        if let Some((done, is_tls_shut)) = self.errands.helper.take() {
            (self.errands.is_busy, self.errands.is_tls_shut) = (false, is_tls_shut);
            match done {
                Done::Password(login, is_right) => self.finish_login(&login, is_right),
                Done::Handshake(connection, ticket, since, shaken) => {
                    if self.awaits(connection, Waiting::Handshake(ticket)) {
                        self.take_shaken(connection, since, shaken);
                    }
                }
                Done::Reload(again) => self.take_reloaded(*again),
            }
        }
        if !self.errands.is_busy
            && let Some(errand) = self.next_errand()
        {
            (self.errands.is_busy, self.errands.given) = (true, self.now);
            self.errands.helper.give(errand);
        }
    }

    fn next_errand(&mut self) -> Option<Errand> {
        if let Some(config) = self.errands.reload.take() {
            return Some(Errand::Reload(config));
        }
        self.errands.shakes_next = !self.errands.shakes_next;
        if self.errands.shakes_next {
            self.next_shake().or_else(|| self.next_login())
        } else {
            self.next_login().or_else(|| self.next_shake())
        }
    }

    /// The handshake that waits longest; of those whose peers have gone there is nothing to be had.
    fn next_shake(&mut self) -> Option<Errand> {
        while let Some(shake) = self.errands.shakes.pop_front() {
            if self.awaits(shake.connection, Waiting::Handshake(shake.ticket)) {
                return Some(Errand::Handshake(shake));
            }
        }
        None
    }

    fn next_login(&mut self) -> Option<Errand> {
        while let Some(login) = self.errands.throttle.next(self.now) {
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
        let check_ms = self.now.ms_since(self.errands.given);
        self.errands.throttle.finish(self.now, login, is_right, check_ms);
        let is_exhausted = self.errands.throttle.is_exhausted(self.now, login.from.origin());
        if !is_right && is_exhausted {
            let from = login.from;
            let text = format_args!("{from}: so many wrong passwords that its logins have to wait");
            self.supplies.log.warn(self.now, from.source(), LogKind::Login, text);
        }
        if !self.awaits(login.connection, Waiting::Errand(login.ticket)) {
            return;
        }
        let outcome = self.broker.checked(login.connection, &login.check, is_right);
        self.give_errand_answer(login.connection, outcome);
    }

    /// Whether a connection still waits for this errand.
    fn awaits(&self, id: ConnectionId, errand: Waiting) -> bool {
        let peer = self.peers.get(id.index()).and_then(Option::as_ref);
        peer.is_some_and(|peer| peer.waiting == errand && peer.ending == Ending::No)
    }

    /// Gives the answer that had to wait for an errand, and lets the connection go on.
    fn give_errand_answer(&mut self, id: ConnectionId, outcome: Outcome) {
        let Some(peer) = self.peers[id.index()].as_mut() else { return };
        peer.silent_since = self.now;
        if peer.session.expects_answer() {
            let mut context = self.supplies.context(self.now, &self.broker, id);
            peer.session.answer(&mut context, outcome, 0, Batch::NONE);
        }
        self.resume(id);
        self.after_session(id);
    }
}
