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

use crate::command::{ConnectionId, Outcome};
use crate::config::Config;
use crate::journal::Batch;
use crate::log_limiter::LogKind;
use crate::time::Deadline;

use super::login_throttle::Login;
use super::peer::{Ending, Waiting};
use super::peer_id::PeerId;
use super::platform::Platform;
use super::state::Engine;
use super::worker_job::{Step, WorkerJob, WorkerResult};

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
        if let Some((result, certificates)) = self.platform.take_worked() {
            (self.worker.is_busy, self.worker.certificates) = (false, certificates);
            match result {
                WorkerResult::Password(login, is_right) => self.finish_login(&login, is_right),
                WorkerResult::Handshake(Step { peer, ticket, since, shaken }) => {
                    if self.awaits(peer, Waiting::Handshake(ticket)) {
                        self.take_shaken(peer, since, shaken);
                    }
                }
                WorkerResult::Reload(again) => self.worker.reloaded = Some(again),
                WorkerResult::Note(noted) => self.take_noted(noted),
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
        while let Some(login) = self.worker.throttle.next(self.now) {
            // Another of the same user may have been checked while this one waited.
            if !self.broker.access().is_remembered(&login.check) {
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
        if !is_right {
            self.doors.note_wrong(login.from.origin());
        }
        let is_exhausted = self.worker.throttle.is_exhausted(self.now, login.from.origin());
        if !is_right && is_exhausted {
            let from = login.from;
            let text = format_args!("{from}: so many wrong passwords that its logins have to wait");
            self.supplies.log.warn(self.now, from.source(), LogKind::Login, text);
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
    fn awaits(&self, id: impl Into<PeerId>, awaited: Waiting) -> bool {
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
        self.lists.resume(&mut self.peers, id);
        self.after_session(id.into());
    }
}
