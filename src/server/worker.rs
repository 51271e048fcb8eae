//! What a helper is asked to do that would take too long here, and what came of it, as values.
//!
//! Always true: each kind of job has a bounded line of its own, and the lines take turns.

use std::collections::VecDeque;

use leveret_config::Config;
use leveret_core::command::{ConnectionId, Outcome};
use leveret_core::journal::Batch;
use leveret_core::limits::{Limits, MANAGEMENT_CLIENTS_MOST};
use leveret_core::log_limiter::LogKind;
use leveret_core::password::PasswordCheck;
use leveret_core::time::{Deadline, Now};
use leveret_tls::{CertificateStore, Handshake, KnownTime, Shaken};

use super::operators::IDLE_MS;
use super::password_checks::{Login, PasswordChecks};
use super::peer::{Ending, Peer, PeerId, Session, Waiting};
use super::platform::Platform;
use super::state::Shared;

/// Something to be done elsewhere.
#[derive(Debug)]
pub enum WorkerJob {
    /// Check a password.
    Password(Login),
    /// Make a step of a handshake of TLS.
    Handshake(Shake),
    /// Read configuration and certificates again.
    Reload(Box<Config>),
    /// Read the certificates again if their files have changed.
    Certificates,
    /// Write down what of bridges is to outlive a restart.
    Note(String),
}

/// A step of a handshake that waits to be made.
pub struct Shake {
    pub(super) peer: PeerId,
    pub(super) ticket: u64,
    /// Since when the peer has been waiting for us.
    pub(super) since: Now,
    pub(super) handshake: Box<Handshake>,
}

/// A step that has been made: of which peer and ticket, since when it waited, and how it goes on.
pub struct Step {
    pub(super) peer: PeerId,
    pub(super) ticket: u64,
    pub(super) since: Now,
    pub(super) shaken: Shaken,
}

/// What came of a job.
#[derive(Debug)]
pub enum WorkerResult {
    /// Whether it was right.
    Password(Login, bool),
    /// How the handshake goes on.
    Handshake(Step),
    /// What the configuration says now, or why that cannot be.
    Reload(Box<Result<Config, String>>),
    /// The files of the certificates were looked at.
    Certificates,
    /// The note is written, or why not.
    Note(Result<(), String>),
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
    pub fn step(self, certificates: Option<&mut CertificateStore>, known: &mut KnownTime) -> WorkerResult {
        let Self { peer, ticket, since, handshake } = self;
        let shaken = handshake.step(certificates, known);
        WorkerResult::Handshake(Step { peer, ticket, since, shaken })
    }
}

impl core::fmt::Debug for Shake {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Shake").field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl core::fmt::Debug for Step {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Step").field("peer", &self.peer).finish_non_exhaustive()
    }
}

/// What is to be known of the certificates of `[tls]`.
#[derive(Clone, Copy, Default, Debug)]
pub struct CertificateState {
    /// Nobody comes in by TLS, for the files cannot be used.
    pub is_shut: bool,
    /// When the first of them ends, in seconds since 1970; 0 without any.
    pub end_s: u64,
}

impl CertificateState {
    /// What the certificates of a store are good for, if there is one.
    pub fn of(store: Option<&CertificateStore>) -> Self {
        store.map_or_else(Self::default, |store| Self { is_shut: store.is_shut(), end_s: store.end_s() })
    }
}

/// Who waits for the worker.
pub(super) struct WorkerQueue {
    pub(super) is_busy: bool,
    pub(super) certificates: CertificateState,
    /// When the job under way was given out.
    pub(super) given: Now,
    pub(super) tickets: u64,
    /// Logins that wait for the check of their password.
    pub(super) checks: PasswordChecks,
    /// Handshakes of TLS, first come first served.
    pub(super) shakes: VecDeque<Shake>,
    /// What of bridges is to be written down.
    pub(super) note: Option<String>,
    /// What is to be read again.
    pub(super) reload: Option<Box<Config>>,
    /// What came of that.
    pub(super) reloaded: Option<Box<Result<Config, String>>>,
    /// The files of the certificates are to be looked at.
    pub(super) are_certificates_due: bool,
    /// The next job is a handshake, if there is one.
    pub(super) shakes_next: bool,
}

impl WorkerQueue {
    /// A queue for whom nobody waits yet.
    pub(super) fn new(
        limits: &Limits,
        with_tls: bool,
        (certificates, tls_others): (CertificateState, usize),
    ) -> Self {
        let shakes_max = tls_others + if with_tls { limits.tls_handshakes_max as usize } else { 0 };
        Self {
            is_busy: false,
            certificates,
            given: Now::default(),
            tickets: 0,
            checks: PasswordChecks::new(limits.handshakes_max as usize + MANAGEMENT_CLIENTS_MOST),
            shakes: VecDeque::with_capacity(shakes_max),
            reload: None,
            note: None,
            are_certificates_due: false,
            reloaded: None,
            shakes_next: false,
        }
    }

    /// A peer is gone, and waits in no line any more.
    pub(super) fn leave(&mut self, id: PeerId) {
        self.checks.remove(id);
        self.shakes.retain(|shake| shake.peer != id);
    }

    pub(super) fn has_next(&self, now: Now) -> bool {
        self.are_certificates_due
            || self.reload.is_some()
            || self.note.is_some()
            || !self.shakes.is_empty()
            || self.checks.deadline().is_due(now)
    }

    /// A number that no job had before.
    pub(super) const fn ticket(&mut self) -> u64 {
        self.tickets += 1;
        self.tickets
    }
}

// What would hold the loop up, done by a thread of its own, one thing at a time.
//
// ```text
// WorkerJob::Password ──┐                                   ┌─ WorkerResult::Password → a login is answered
// WorkerJob::Handshake ─┼→ the worker, when free, does it → ┼─ WorkerResult::Handshake → TLS goes on
// WorkerJob::Reload ────┘                                   └─ WorkerResult::Reload → what is live at once
// ```
//
// Always true: the loop never waits for the worker; whoever waits for it is not read and has a ticket, so a
// result never reaches another connection that has the same id by now; each kind has a bounded line of its
// own, and the lines take turns.

impl<P: Platform> Shared<P> {
    /// Whether a job can be given out now.
    pub(super) fn has_job(&self) -> bool {
        !self.worker.is_busy && self.worker.has_next(self.now)
    }

    /// When one can be that has to wait until then.
    pub(super) fn job_deadline(&self) -> Deadline {
        if self.worker.is_busy { Deadline::NEVER } else { self.worker.checks.deadline() }
    }

    pub(super) fn next_job(&mut self) -> Option<WorkerJob> {
        if let Some(config) = self.worker.reload.take() {
            return Some(WorkerJob::Reload(config));
        }
        if core::mem::take(&mut self.worker.are_certificates_due) {
            return Some(WorkerJob::Certificates);
        }
        if let Some(notes) = self.worker.note.take() {
            return Some(WorkerJob::Note(notes));
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
            if self.awaits(shake.peer, Waiting::Handshake(shake.ticket)) {
                return Some(WorkerJob::Handshake(shake));
            }
        }
        None
    }

    fn next_login(&mut self) -> Option<WorkerJob> {
        while let Some(login) = self.worker.checks.next(self.now) {
            // Another of the same user may have been checked while this one waited.
            if !self.broker.access().is_remembered(&login.check) {
                return Some(WorkerJob::Password(login));
            }
            self.finish_login(&login, true);
        }
        None
    }

    /// Answers a login.
    pub(super) fn finish_login(&mut self, login: &Login, is_right: bool) {
        if !is_right {
            let (from, check_ms) = (login.from, self.now.ms_since(self.worker.given));
            self.worker.checks.note_wrong(self.now, login, check_ms);
            if !self.worker.checks.has_tokens(self.now, from.origin()) {
                let text = format_args!(
                    "{from}: its logins wait after many wrong passwords: look there for a program with an old password"
                );
                self.supplies.log.warn(self.now, from.source(), LogKind::Login, text);
            }
        }
        if !self.awaits(login.peer, Waiting::Worker(login.ticket)) {
            if is_right {
                // Whoever lost its place meanwhile is known when it comes again.
                let _ = self.broker.access_mut().note_checked(&login.check, true);
            }
            return;
        }
        let Some(connection) = login.peer.connection() else {
            return self.answer_management_login(login.peer, &login.check, is_right);
        };
        let outcome = self.broker.checked(&self.journal, connection, &login.check, is_right);
        self.answer_login(connection, outcome);
    }

    /// Whether a connection still waits for this.
    pub(super) fn awaits(&self, id: impl Into<PeerId>, awaited: Waiting) -> bool {
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

    /// Has a password checked that a request came with, unless it is known to be wrong.
    pub(super) fn begin_management_login(&mut self, id: PeerId, check: Box<PasswordCheck>) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        if self.worker.checks.is_known_wrong(&check) {
            return self.answer_management_login(id, &check, false);
        }
        let ticket = self.worker.ticket();
        peer.waiting = Waiting::Worker(ticket);
        self.worker.checks.push(Login { peer: id, from: peer.address, ticket, check });
    }

    /// The password that a request came with has been checked: the request is looked at again.
    pub(super) fn answer_management_login(&mut self, id: PeerId, check: &PasswordCheck, is_right: bool) {
        let noted = self.broker.access_mut().note_checked(check, is_right);
        let Some(Peer { session: Session::Operator(client), address, .. }) = self.peers.get_mut(id) else {
            return;
        };
        if let Err(fault) = &noted {
            let text = format_args!("{address}: management login refused: {}", fault.text);
            self.supplies.log.warn(self.now, address.source(), LogKind::Login, text);
        }
        client.session.note_login(noted.is_ok());
        client.idle_at = self.now.after_ms(IDLE_MS);
        self.lists.deadlines.lower(id, client.idle_at);
        self.resume(id);
    }
}
