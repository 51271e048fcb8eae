//! What a helper is asked to do that would take too long here, and what came of it, as values.
//!
//! Always true: each kind of job has a bounded line of its own, and the lines take turns.

use std::collections::VecDeque;

use super::password_checks::{Login, PasswordChecks};
use super::peer_id::PeerId;
use leveret_config::Config;
use leveret_core::limits::{Limits, MANAGEMENT_CLIENTS_MOST};
use leveret_core::time::Now;
use leveret_tls::{CertificateStore, Handshake, KnownTime, Shaken};

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
