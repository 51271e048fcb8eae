//! Jobs that take too long for the event loop, done by the worker thread one at a time.
//!
//! ```text
//!   WorkerJob::Password ──┐                                    ┌─ WorkerResult::Password → the login succeeds or fails
//!   WorkerJob::Handshake ─┼→ the worker carries out the job → ─┼─ WorkerResult::Handshake → TLS continues
//!   WorkerJob::Reload ────┘                                    └─ WorkerResult::Reload → the new configuration
//! ```
//!
//! # Invariants
//! - The loop never blocks for the worker.
//! - A peer that waits for the worker is not read. It has the ticket of its job. A result whose ticket
//!   differs is dropped, so it cannot reach a later peer with the same id.
//! - Each kind of job has a separate, bounded queue. Handshakes and logins alternate; the other kinds are
//!   started before them.

use std::collections::VecDeque;

use leveret_config::Config;
use leveret_core::batch::Batch;
use leveret_core::command::{Answer, ConnectionId};
use leveret_core::error::Fault;
use leveret_core::limits::{Limits, MANAGEMENT_CLIENTS_UPPER_BOUND};
use leveret_core::log_limiter::LogKind;
use leveret_core::password::PasswordCheck;
use leveret_core::time::{Deadline, Now};
use leveret_tls::{CertificateStore, Handshake, HandshakeOutput, KnownTime};

use super::operators::IDLE_MS;
use super::password_checks::{Login, PasswordChecks};
use super::peer::{CloseStage, Peer, PeerId, Session, WaitReason};
use super::platform::Platform;
use super::state::Shared;

/// A job for the worker.
#[derive(Debug)]
pub enum WorkerJob {
    /// Checks a password.
    Password(Login),
    /// Carries out one step of a TLS handshake.
    Handshake(HandshakeJob),
    /// Read configuration and certificates again. Contains the configuration in use, which names its file and flags.
    Reload(Box<Config>),
    /// Reads the certificates again if their files have changed.
    Certificates,
    /// Writes the state of the bridges to the disk, from which the next start restores it.
    BridgeState(String),
}

/// A step of a TLS handshake to be carried out.
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
    /// The login, and whether its password was correct.
    Password(Login, bool),
    /// The handshake after its step.
    Handshake(HandshakeStep),
    /// The new configuration, or why it cannot be used.
    Reload(Box<Result<Config, String>>),
    /// The files of the certificates were checked.
    Certificates,
    /// The state of the bridges was written, or the reason why not.
    BridgeState(Result<(), String>),
}

impl Login {
    /// Checks the password. This is slow, because computing the hash is deliberately slow.
    pub fn check(self) -> WorkerResult {
        let is_correct = self.check.is_correct();
        WorkerResult::Password(self, is_correct)
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
    /// No client can connect over TLS, because the certificate files cannot be used.
    pub is_unavailable: bool,
    /// When the first of the certificates expires, in seconds since 1970; 0 without certificates.
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

/// The jobs that wait for the worker, and the results that wait to be taken.
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
    /// The state of the bridges to be written, if any.
    pub(super) bridge_state: Option<String>,
    /// The present configuration, if it must be read again.
    pub(super) reload: Option<Box<Config>>,
    /// The result of the last reload, until it is taken.
    pub(super) reloaded: Option<Box<Result<Config, String>>>,
    /// The certificate files must be checked.
    pub(super) are_certificates_due: bool,
    /// The last choice of a job preferred a handshake, so the next one prefers a login.
    pub(super) was_handshake_turn: bool,
}

impl WorkerQueue {
    /// Creates an empty queue.
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
            bridge_state: None,
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
            || self.bridge_state.is_some()
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
        if let Some(text) = self.worker.bridge_state.take() {
            return Some(WorkerJob::BridgeState(text));
        }
        self.worker.was_handshake_turn = !self.worker.was_handshake_turn;
        if self.worker.was_handshake_turn {
            self.next_handshake().or_else(|| self.next_login())
        } else {
            self.next_login().or_else(|| self.next_handshake())
        }
    }

    /// Removes and returns the handshake that has waited longest. Handshakes of closed peers are dropped.
    fn next_handshake(&mut self) -> Option<WorkerJob> {
        while let Some(shake) = self.worker.handshakes.pop_front() {
            if self.awaits(shake.peer, WaitReason::Handshake(shake.ticket)) {
                return Some(WorkerJob::Handshake(shake));
            }
        }
        None
    }

    fn next_login(&mut self) -> Option<WorkerJob> {
        while let Some(login) = self.worker.checks.next(self.now) {
            // While this login waited, another one with the same user and password may have been checked.
            if !self.broker.access().is_remembered(&login.check) {
                return Some(WorkerJob::Password(login));
            }
            self.finish_login(&login, true);
        }
        None
    }

    /// Handles the result of a password check.
    pub(super) fn finish_login(&mut self, login: &Login, is_correct: bool) {
        if !is_correct {
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
        if !self.awaits(login.peer, WaitReason::PasswordCheck(login.ticket)) {
            if is_correct {
                // The client may be disconnected already. Its password is then recognized when it connects
                // again.
                let _ = self.broker.access_mut().note_check_result(&login.check, true);
            }
            return;
        }
        let Some(connection) = login.peer.connection() else {
            return self.answer_management_login(login.peer, &login.check, is_correct);
        };
        let answer = self.broker.checked(&self.pending_writes, connection, &login.check, is_correct);
        self.answer_login(connection, answer);
    }

    /// Returns whether a peer still has the wait reason `awaited`.
    pub(super) fn awaits(&self, id: impl Into<PeerId>, awaited: WaitReason) -> bool {
        self.peers.get(id).is_some_and(|peer| peer.waiting == awaited && peer.ending == CloseStage::No)
    }

    /// Sends the reply that waited for the worker, and resumes the connection.
    fn answer_login(&mut self, id: ConnectionId, answer: Result<Answer, Fault>) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        peer.last_reply_at = self.now;
        let session = peer.session.client();
        if session.expects_answer() {
            let mut context = self.resources.context(self.now, &self.broker, &self.pending_writes, id);
            session.answer(&mut context, answer, 0, Batch::NONE);
        }
        self.resume(id);
        self.after_session(id.into());
    }

    /// Begins the check of the password of a management request, unless the password is known to be wrong.
    pub(super) fn begin_management_login(&mut self, id: PeerId, check: Box<PasswordCheck>) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        if self.worker.checks.is_known_wrong(&check) {
            return self.answer_management_login(id, &check, false);
        }
        let ticket = self.worker.ticket();
        peer.waiting = WaitReason::PasswordCheck(ticket);
        self.worker.checks.push(Login { peer: id, from: peer.address, ticket, check });
    }

    /// Handles the result of the check of a management request's password: the request is handled again.
    pub(super) fn answer_management_login(&mut self, id: PeerId, check: &PasswordCheck, is_correct: bool) {
        let noted = self.broker.access_mut().note_check_result(check, is_correct);
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
