//! What would hold the loop up, done by a thread of its own, one thing at a time.
//!
//! ```text
//! WorkerJob::Password ──┐                                   ┌─ WorkerResult::Password → a login is answered
//! WorkerJob::Handshake ─┼→ the worker, when free, does it → ┼─ WorkerResult::Handshake → TLS goes on
//! WorkerJob::Reload ────┘                                   └─ WorkerResult::Reload → what is live at once
//! ```
//!
//! Always true: the loop never waits for the worker; whoever waits for it is not read and has a ticket, so a
//! result never reaches another connection that has the same id by now; each kind has a bounded line of its
//! own, and the lines take turns.

use std::collections::VecDeque;

use crate::command::{ConnectionId, Outcome};
use crate::config::Config;
use crate::journal::Batch;
use crate::limits::Limits;
use crate::log_limiter::LogKind;
use crate::time::{Deadline, Now};
use crate::tls::{CertificateStore, Handshake, Shaken};

use super::login_throttle::{Login, LoginThrottle};
use super::peer::{Ending, Waiting};
use super::platform::Platform;
use super::state::Engine;

/// Something to be done elsewhere.
#[derive(Debug)]
pub enum WorkerJob {
    /// Check a password.
    Password(Login),
    /// Make a step of a handshake of TLS.
    Handshake(Shake),
    /// Read configuration and certificates again.
    Reload(Box<Config>),
}

/// A step of a handshake that waits to be made.
pub struct Shake {
    pub(super) connection: ConnectionId,
    pub(super) ticket: u64,
    /// So long its peer has been waiting for us.
    pub(super) since: Now,
    pub(super) handshake: Box<Handshake>,
}

/// A step that has been made: of which connection and ticket, since when it waited, and how it goes on.
pub struct Step {
    connection: ConnectionId,
    ticket: u64,
    since: Now,
    shaken: Shaken,
}

/// What came of it.
#[derive(Debug)]
pub enum WorkerResult {
    /// Whether it was right.
    Password(Login, bool),
    /// How the handshake goes on.
    Handshake(Step),
    /// What the configuration says now, or why that cannot be.
    Reload(Box<Result<Config, String>>),
}

impl Login {
    /// Checks the password. This takes long, on purpose.
    pub fn check(self) -> WorkerResult {
        let is_right = self.check.is_right();
        WorkerResult::Password(self, is_right)
    }
}

impl Shake {
    /// Makes the step. This may take long.
    pub fn step(self, certificates: Option<&mut CertificateStore>) -> WorkerResult {
        let Self { connection, ticket, since, handshake } = self;
        WorkerResult::Handshake(Step { connection, ticket, since, shaken: handshake.step(certificates) })
    }
}

impl core::fmt::Debug for Shake {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Shake").field("connection", &self.connection).finish_non_exhaustive()
    }
}

impl core::fmt::Debug for Step {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Step").field("connection", &self.connection).finish_non_exhaustive()
    }
}

/// Who waits for the worker.
pub(super) struct WorkerQueue {
    is_busy: bool,
    /// Nobody comes in by TLS, for the files of `[tls]` cannot be used.
    pub(super) is_tls_shut: bool,
    /// When the job under way was given out.
    given: Now,
    tickets: u64,
    pub(super) throttle: LoginThrottle,
    /// Handshakes of TLS, first come first served.
    pub(super) shakes: VecDeque<Shake>,
    /// What is to be read again.
    reload: Option<Box<Config>>,
    /// What came of that.
    reloaded: Option<Box<Result<Config, String>>>,
    /// The next job is a handshake, if there is one.
    shakes_next: bool,
}

impl WorkerQueue {
    /// A queue for whom nobody waits yet.
    pub(super) fn new(limits: &Limits, with_tls: bool, is_tls_shut: bool) -> Self {
        let shakes_max = if with_tls { limits.tls_handshakes_max as usize } else { 0 };
        Self {
            is_busy: false,
            is_tls_shut,
            given: Now::default(),
            tickets: 0,
            throttle: LoginThrottle::new(limits.handshakes_max as usize),
            shakes: VecDeque::with_capacity(shakes_max),
            reload: None,
            reloaded: None,
            shakes_next: false,
        }
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

impl<P: Platform> Engine<P> {
    /// Whether a job can be given out now.
    pub(super) fn has_job(&self) -> bool {
        !self.worker.is_busy && self.worker.has_next(self.now)
    }

    /// When one can be that has to wait until then.
    pub(super) fn job_deadline(&self) -> Deadline {
        if self.worker.is_busy { Deadline::NEVER } else { self.worker.throttle.deadline() }
    }

    /// Takes what was done, and gives out what is next.
    pub(super) fn run_worker(&mut self) {
        if let Some((result, is_tls_shut)) = self.platform.take_worked() {
            (self.worker.is_busy, self.worker.is_tls_shut) = (false, is_tls_shut);
            match result {
                WorkerResult::Password(login, is_right) => self.finish_login(&login, is_right),
                WorkerResult::Handshake(Step { connection, ticket, since, shaken }) => {
                    if self.awaits(connection, Waiting::Handshake(ticket)) {
                        self.take_shaken(connection, since, shaken);
                    }
                }
                WorkerResult::Reload(again) => self.worker.reloaded = Some(again),
            }
        }
        if !self.worker.is_busy
            && let Some(job) = self.next_job()
        {
            (self.worker.is_busy, self.worker.given) = (true, self.now);
            self.platform.start_work(job);
        }
    }

    /// Has the configuration read again, and its certificates with it.
    pub fn reload(&mut self, config: Box<Config>) {
        self.worker.reload = Some(config);
    }

    /// What the configuration says that was read again, or why it cannot be used.
    pub fn take_reloaded(&mut self) -> Option<Result<Config, String>> {
        self.worker.reloaded.take().map(|again| *again)
    }

    fn next_job(&mut self) -> Option<WorkerJob> {
        if let Some(config) = self.worker.reload.take() {
            return Some(WorkerJob::Reload(config));
        }
        self.worker.shakes_next = !self.worker.shakes_next;
        if self.worker.shakes_next {
            self.next_shake().or_else(|| self.next_login())
        } else {
            self.next_login().or_else(|| self.next_shake())
        }
    }

    /// The handshake that waits longest; of those whose peers have gone there is nothing to be had.
    fn next_shake(&mut self) -> Option<WorkerJob> {
        while let Some(shake) = self.worker.shakes.pop_front() {
            if self.awaits(shake.connection, Waiting::Handshake(shake.ticket)) {
                return Some(WorkerJob::Handshake(shake));
            }
        }
        None
    }

    fn next_login(&mut self) -> Option<WorkerJob> {
        while let Some(login) = self.worker.throttle.next(self.now) {
            // Another of the same user may have been checked while this one waited.
            if !self.broker.is_remembered(&login.check) {
                return Some(WorkerJob::Password(login));
            }
            self.finish_login(&login, true);
        }
        None
    }

    /// Answers a login.
    fn finish_login(&mut self, login: &Login, is_right: bool) {
        let check_ms = self.now.ms_since(self.worker.given);
        self.worker.throttle.finish(self.now, login, is_right, check_ms);
        let is_exhausted = self.worker.throttle.is_exhausted(self.now, login.from.origin());
        if !is_right && is_exhausted {
            let from = login.from;
            let text = format_args!("{from}: so many wrong passwords that its logins have to wait");
            self.supplies.log.warn(self.now, from.source(), LogKind::Login, text);
        }
        if !self.awaits(login.connection, Waiting::Worker(login.ticket)) {
            return;
        }
        let outcome = self.broker.checked(&self.journal, login.connection, &login.check, is_right);
        self.answer_login(login.connection, outcome);
    }

    /// Whether a connection still waits for this.
    fn awaits(&self, id: ConnectionId, awaited: Waiting) -> bool {
        self.peers.get(id).is_some_and(|peer| peer.waiting == awaited && peer.ending == Ending::No)
    }

    /// Gives the answer that had to wait for the worker, and lets the connection go on.
    fn answer_login(&mut self, id: ConnectionId, outcome: Outcome) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        peer.silent_since = self.now;
        let session = peer.session.amqp();
        if session.expects_answer() {
            let mut context = self.supplies.context(self.now, &self.broker, &self.journal, id);
            session.answer(&mut context, outcome, 0, Batch::NONE);
        }
        self.resume(id);
        self.after_session(id.into());
    }
}
