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

use leveret_core::command::{ConnectionId, Outcome};
use leveret_core::journal::Batch;
use leveret_core::log_limiter::LogKind;
use leveret_core::password::PasswordCheck;
use leveret_core::time::Deadline;

use super::operator_client::IDLE_MS;
use super::password_checks::Login;
use super::peer::{Ending, Peer, Session, Waiting};
use super::peer_id::PeerId;
use super::platform::Platform;
use super::shared::Shared;
use super::worker_job::WorkerJob;

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
