//! Jobs that take too long for the event loop, done by the worker thread one at a time.
//!
//! ```text
//!   WorkerJob::Password ──┐                                    ┌─ WorkerResult::Password → the login is answered
//!   WorkerJob::Handshake ─┼→ the worker carries out the job → ─┼─ WorkerResult::Handshake → TLS continues
//!   WorkerJob::Reload ────┘                                    └─ WorkerResult::Reload → the new configuration
//! ```
//!
//! # Invariants
//! - The loop never blocks for the worker.
//! - A peer that waits for the worker is not read and has a ticket. A result therefore never reaches another peer
//!   that has got the same id since.
//! - Each kind of job has a bounded queue of its own. Handshakes and logins alternate, and the other kinds come
//!   first.

use std::collections::VecDeque;

use leveret_config::Config;
use leveret_core::command::{ConnectionId, Outcome};
use leveret_core::limits::{Limits, MANAGEMENT_CLIENTS_UPPER_BOUND};
use leveret_core::log_limiter::LogKind;
use leveret_core::password::PasswordCheck;
use leveret_core::pending_writes::Batch;
use leveret_core::time::{Deadline, Now};
use leveret_tls::{CertificateStore, Handshake, HandshakeOutput, KnownTime};

use super::operators::IDLE_MS;
use super::password_checks::{Login, PasswordChecks};
use super::peer::{Ending, Peer, PeerId, Session, Waiting};
use super::platform::Platform;
use super::state::Shared;

/// A job for the worker.
#[derive(Debug)]
pub enum WorkerJob {
    /// Check a password.
    Password(Login),
    /// Carry out one step of a TLS handshake.
    Handshake(HandshakeJob),
    /// Read configuration and certificates again. Contains the configuration in use, which names its file and flags.
    Reload(Box<Config>),
    /// Read the certificates again if their files have changed.
    Certificates,
    /// Write the state of the bridges that outlives a restart.
    BridgeState(String),
}

/// A step of a TLS handshake that is to be carried out.
pub struct HandshakeJob {
    pub(super) peer: PeerId,
    pub(super) ticket: u64,
    /// Since when the peer has been waiting for the worker.
    pub(super) since: Now,
    pub(super) handshake: Box<Handshake>,
}

/// The result of a step of a TLS handshake.
pub struct HandshakeStep {
    pub(super) peer: PeerId,
    pub(super) ticket: u64,
    pub(super) since: Now,
    pub(super) output: HandshakeOutput,
}

/// The result of a job.
#[derive(Debug)]
pub enum WorkerResult {
    /// The login, and whether its password was right.
    Password(Login, bool),
    /// The handshake after its step.
    Handshake(HandshakeStep),
    /// The new configuration, or why it cannot be used.
    Reload(Box<Result<Config, String>>),
    /// The files of the certificates were checked.
    Certificates,
    /// Whether the state of the bridges was written, or why not.
    BridgeState(Result<(), String>),
}

impl Login {
    /// Checks the password. The hash is slow on purpose.
    pub fn check(self) -> WorkerResult {
        let is_right = self.check.is_right();
        WorkerResult::Password(self, is_right)
    }
}

impl HandshakeJob {
    /// Carries out the step. This may take long.
    pub fn step(self, certificates: Option<&mut CertificateStore>, known: &mut KnownTime) -> WorkerResult {
        let Self { peer, ticket, since, handshake } = self;
        let output = handshake.step(certificates, known);
        WorkerResult::Handshake(HandshakeStep { peer, ticket, since, output })
    }
}

impl core::fmt::Debug for HandshakeJob {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("HandshakeJob").field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl core::fmt::Debug for HandshakeStep {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("HandshakeStep").field("peer", &self.peer).finish_non_exhaustive()
    }
}

/// The state of the certificates of `[tls]`.
#[derive(Clone, Copy, Default, Debug)]
pub struct CertificateState {
    /// Whether no client can connect over TLS because the files cannot be used.
    pub is_unavailable: bool,
    /// When the first certificate expires, in seconds since 1970; 0 without certificates.
    pub end_s: u64,
}

impl CertificateState {
    /// Returns the state of the certificates in a store, if there is one.
    pub fn of(store: Option<&CertificateStore>) -> Self {
        store.map_or_else(Self::default, |store| Self {
            is_unavailable: store.is_unavailable(),
            end_s: store.expiry_s(),
        })
    }
}

/// The jobs that wait for the worker.
pub(super) struct WorkerQueue {
    pub(super) is_busy: bool,
    pub(super) certificates: CertificateState,
    /// When the current job was started.
    pub(super) started_at: Now,
    pub(super) tickets: u64,
    /// Logins that wait for the check of their password.
    pub(super) checks: PasswordChecks,
    /// Steps of TLS handshakes, in the order of their arrival.
    pub(super) handshakes: VecDeque<HandshakeJob>,
    /// State of the bridges that is to be written.
    pub(super) bridge_state_due: Option<String>,
    /// The configuration in use, if it is to be read again.
    pub(super) reload: Option<Box<Config>>,
    /// Result of the last reload.
    pub(super) reloaded: Option<Box<Result<Config, String>>>,
    /// Whether the files of the certificates are to be checked.
    pub(super) are_certificates_due: bool,
    /// Whether the last turn preferred a handshake. The next turn then prefers a login.
    pub(super) was_handshake_turn: bool,
}

impl WorkerQueue {
    /// Creates an empty queue. `other_tls_peers_max` is the maximum number of TLS peers that are not AMQP clients:
    /// links of bridges and management clients.
    pub(super) fn new(
        limits: &Limits,
        with_tls: bool,
        certificates: CertificateState,
        other_tls_peers_max: usize,
    ) -> Self {
        let handshakes_max =
            other_tls_peers_max + if with_tls { limits.tls_handshakes_max as usize } else { 0 };
        Self {
            is_busy: false,
            certificates,
            started_at: Now::default(),
            tickets: 0,
            checks: PasswordChecks::new(limits.handshakes_max as usize + MANAGEMENT_CLIENTS_UPPER_BOUND),
            handshakes: VecDeque::with_capacity(handshakes_max),
            reload: None,
            bridge_state_due: None,
            are_certificates_due: false,
            reloaded: None,
            was_handshake_turn: false,
        }
    }

    /// Removes the jobs of a closed peer.
    pub(super) fn remove_peer(&mut self, id: PeerId) {
        self.checks.remove(id);
        self.handshakes.retain(|job| job.peer != id);
    }

    pub(super) fn has_next(&self, now: Now) -> bool {
        self.are_certificates_due
            || self.reload.is_some()
            || self.bridge_state_due.is_some()
            || !self.handshakes.is_empty()
            || self.checks.deadline().is_due(now)
    }

    /// Returns a new ticket.
    pub(super) const fn ticket(&mut self) -> u64 {
        self.tickets += 1;
        self.tickets
    }
}

impl<P: Platform> Shared<P> {
    /// Returns whether a job can be started now.
    pub(super) fn has_job(&self) -> bool {
        !self.worker.is_busy && self.worker.has_next(self.now)
    }

    /// Returns when the next waiting login may be checked; never while the worker is busy.
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
        if let Some(text) = self.worker.bridge_state_due.take() {
            return Some(WorkerJob::BridgeState(text));
        }
        self.worker.was_handshake_turn = !self.worker.was_handshake_turn;
        if self.worker.was_handshake_turn {
            self.next_handshake().or_else(|| self.next_login())
        } else {
            self.next_login().or_else(|| self.next_handshake())
        }
    }

    /// Returns the handshake that has waited longest. Those of closed peers are dropped.
    fn next_handshake(&mut self) -> Option<WorkerJob> {
        while let Some(job) = self.worker.handshakes.pop_front() {
            if self.awaits(job.peer, Waiting::Handshake(job.ticket)) {
                return Some(WorkerJob::Handshake(job));
            }
        }
        None
    }

    fn next_login(&mut self) -> Option<WorkerJob> {
        while let Some(login) = self.worker.checks.next(self.now) {
            // Another login with the same password may have been checked while this one waited.
            if !self.broker.access().is_remembered(&login.check) {
                return Some(WorkerJob::Password(login));
            }
            self.finish_login(&login, true);
        }
        None
    }

    /// Handles the result of a password check.
    pub(super) fn finish_login(&mut self, login: &Login, is_right: bool) {
        if !is_right {
            let (from, check_ms) = (login.from, self.now.ms_since(self.worker.started_at));
            self.worker.checks.note_wrong(self.now, login, check_ms);
            if !self.worker.checks.has_tokens(self.now, from.origin()) {
                let text = format_args!(
                    "{from}: its logins are delayed after many wrong passwords: look for a program with an old \
                     password there"
                );
                self.resources.log.warn(self.now, from.source(), LogKind::Login, text);
            }
        }
        if !self.awaits(login.peer, Waiting::PasswordCheck(login.ticket)) {
            if is_right {
                // The client has gone meanwhile. Its password is remembered as correct for when it connects again.
                let _ = self.broker.access_mut().note_checked(&login.check, true);
            }
            return;
        }
        let Some(connection) = login.peer.connection() else {
            return self.answer_management_login(login.peer, &login.check, is_right);
        };
        let outcome = self.broker.checked(&self.pending_writes, connection, &login.check, is_right);
        self.answer_login(connection, outcome);
    }

    /// Returns whether a peer still waits for `awaited`.
    pub(super) fn awaits(&self, id: impl Into<PeerId>, awaited: Waiting) -> bool {
        self.peers.get(id).is_some_and(|peer| peer.waiting == awaited && peer.ending == Ending::No)
    }

    /// Sends the answer that waited for the worker, and resumes the connection.
    fn answer_login(&mut self, id: ConnectionId, outcome: Outcome) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        peer.silent_since = self.now;
        let session = peer.session.amqp();
        if session.expects_answer() {
            let mut context = self.resources.context(self.now, &self.broker, &self.pending_writes, id);
            session.answer(&mut context, outcome, 0, Batch::NONE);
        }
        self.resume(id);
        self.after_session(id.into());
    }

    /// Lets the worker check the password of a management request, or answers at once if it is known to be wrong.
    pub(super) fn begin_management_login(&mut self, id: PeerId, check: Box<PasswordCheck>) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        if self.worker.checks.is_known_wrong(&check) {
            return self.answer_management_login(id, &check, false);
        }
        let ticket = self.worker.ticket();
        peer.waiting = Waiting::PasswordCheck(ticket);
        self.worker.checks.push(Login { peer: id, from: peer.address, ticket, check });
    }

    /// Handles the result of the check of a management request's password: the request is examined again.
    pub(super) fn answer_management_login(&mut self, id: PeerId, check: &PasswordCheck, is_right: bool) {
        let noted = self.broker.access_mut().note_checked(check, is_right);
        let Some(Peer { session: Session::Operator(client), address, .. }) = self.peers.get_mut(id) else {
            return;
        };
        if let Err(fault) = &noted {
            let text = format_args!("{address}: management login refused: {}", fault.text);
            self.resources.log.warn(self.now, address.source(), LogKind::Login, text);
        }
        client.session.note_login(noted.is_ok());
        client.idle_at = self.now.after_ms(IDLE_MS);
        self.lists.deadlines.lower(id, client.idle_at);
        self.resume(id);
    }
}
