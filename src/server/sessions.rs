//! Follow-up work after a session was called: a peer has output, is flushed, or is closed.
//!
//! # Invariants
//! - Code that calls a session calls [`Shared::after_session`] afterwards.
//! - A connection is closed only at the end of a turn, or when another connection is admitted in its slot.

use std::io;

use leveret_connection::Stage;
use leveret_core::command::ConnectionId;
use leveret_core::log_limiter::LogKind;
use leveret_core::pending_writes::Batch;
use leveret_core::time::Deadline;

use super::peer::PeerId;
use super::peer::{Ending, Peer, Session, Waiting};
use super::platform::{Platform, Readiness};
use super::state::Shared;

/// How long the last input of a lost client may wait to be handled while the client holds what others need. That is
/// exclusive queues, deliveries, or output that will not be read. The input may be waiting for exactly that.
const LOST_HOLDER_MS: u64 = 5_000;
/// How long the last input of any other lost client may wait to be handled. Messages that programs sent before they
/// ended count.
const LOST_MS: u64 = 600_000;
/// How long the peer of a finished connection may take to close it.
const DRAIN_MS: u64 = 1_000;

impl<P: Platform> Shared<P> {
    /// Records what the poll reported about a peer.
    pub(super) fn note_peer(&mut self, id: PeerId, seen: Readiness) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        if seen.is_readable || seen.is_read_closed || seen.is_error {
            peer.stream.readable = true;
            peer.stream.read_closed |= seen.is_read_closed || seen.is_error;
            self.list_to_read(id);
        }
        if seen.is_error || seen.is_read_closed {
            self.note_read_closed(id);
        }
        if seen.is_error || seen.is_read_closed && seen.is_write_closed {
            // The client reads no more. Its earlier input is still read as soon as possible, but messages are no
            // longer delivered to it: they would only be lost from view.
            self.note_write_closed(id);
        } else if seen.is_writable
            && let Some(peer) = self.peers.get_mut(id)
            && !peer.stream.writable
            && !peer.stream.write_closed
        {
            // The system reports this with every other event. A peer that was writable before is on the list if it
            // has output.
            peer.stream.writable = true;
            self.list_to_write(id);
        }
    }

    /// Handles that a peer is lost, or has shut down its writing side. AMQP has no half-closed connections, so both
    /// are the same.
    ///
    /// A waiting peer is not read to the end of its input. Without a deadline it would keep its connection record,
    /// its exclusive queues and their messages until capacity becomes free. An operator's client may shut down
    /// writing and wait for the answer.
    fn note_read_closed(&mut self, id: PeerId) {
        let (Some(peer), Some(connection)) = (self.peers.get_mut(id), id.connection()) else { return };
        if peer.session.is_bridge() {
            // Messages that the link has not taken still belong to the upstream. Its remaining input is
            // read: the last data of a handshake, such as a TLS alert, when the step under way is done.
            if !matches!(peer.waiting, Waiting::No | Waiting::Handshake(_)) {
                self.end_now(id);
            }
            return;
        }
        if let Waiting::PasswordCheck(_) = peer.waiting {
            // The client cannot be told the result, and its slot may be needed.
            return self.end_now(id);
        }
        if peer.lost_deadline == Deadline::NEVER {
            let ms = if self.broker.blocks_others(connection) { LOST_HOLDER_MS } else { LOST_MS };
            peer.lost_deadline = self.now.after_ms(ms);
            self.lists.deadlines.lower(id, peer.lost_deadline);
        }
    }

    /// Updates lists and deadlines after a session was called.
    pub(super) fn after_session(&mut self, id: PeerId) {
        match id.connection() {
            Some(connection) => self.after_amqp(connection),
            None => self.after_operator(id),
        }
        let Some(peer) = self.peers.get_mut(id) else { return };
        self.lists.deadlines.lower(id, peer.deadline());
        if peer.session.awaits_disk() || matches!(peer.waiting, Waiting::Disk(_)) {
            self.lists.for_disk.push(id);
        }
        if peer.session.waits_for_get() {
            self.lists.for_jobs.push(id);
        }
        if peer.session.has_output() || peer.stream.has_unsent() || peer.ending == Ending::Flushing {
            self.list_to_write(id);
        }
    }

    /// Handles that a session of AMQP has opened or has ended.
    fn after_amqp(&mut self, id: ConnectionId) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        let Session::Amqp(session) = &mut peer.session else { return };
        if peer.is_opening && session.stage() == Stage::Open {
            peer.is_opening = false;
            self.admission.note_opened(id);
            session.set_names(self.broker.views().user_of(id), self.broker.views().vhost_of(id));
            let (caller, log) = (session.caller(), &mut self.resources.log);
            let (source, text) = (caller.peer.source, format_args!("{caller}: connection opened"));
            log.log(self.now, log::Level::Info, source, LogKind::ConnectionLifecycle, text);
        }
        if session.may_leave_broker() {
            let (broker, mut context) = self.broker_mut();
            broker.disconnect(&mut context, id);
        }
    }

    /// Lists an operator's client to be read if it has more input or requests, and closes it if it is done.
    pub(super) fn after_operator(&mut self, id: PeerId) {
        let Some(Peer { stream, session: Session::Operator(client), ending, .. }) = self.peers.get_mut(id)
        else {
            return;
        };
        if *ending != Ending::No {
            return;
        }
        if client.is_done() && !stream.has_unsent() {
            self.end_now(id);
        } else if client.session.is_ending() {
            *ending = Ending::Flushing;
        } else if client.session.has_request()
            || stream.has_more() && client.session.input_capacity_bytes() > 0
        {
            self.list_to_read(id);
        }
    }

    /// Continues after a write. `has_moved`: the socket took bytes, or replies or deliveries were written.
    pub(super) fn after_write(&mut self, id: PeerId, has_moved: bool) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        if peer.is_opening && has_moved {
            (peer.has_sent, peer.silent_since) = (true, self.now);
        }
        if peer.waiting == Waiting::Replies && has_moved {
            self.resume(id);
        }
        let Some(peer) = self.peers.get_mut(id) else { return };
        let more = peer.session.has_output() || peer.session.has_remainder() || peer.stream.has_unsent();
        if peer.ending == Ending::Flushing && !more {
            peer.stream.shut_down_writing(&mut self.buffers);
            let until = self.now.after_ms(DRAIN_MS);
            peer.ending = Ending::Draining(until);
            peer.stream.assume_readable();
            self.lists.deadlines.lower(id, until);
            self.list_to_read(id);
        } else if peer.stream.writable && has_moved && (more || self.has_deliveries(id)) {
            self.list_to_write(id);
        }
        self.after_session(id);
    }

    fn has_deliveries(&self, id: PeerId) -> bool {
        id.connection().is_some_and(|connection| self.broker.has_output(connection))
    }

    /// Handles a failed write. Input that the peer sent before still counts and is read to its end.
    pub(super) fn note_write_failed(&mut self, id: PeerId, error: &io::Error) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        log::debug!("{}: writing failed: {error}", peer.address);
        peer.stream.read_closed = true;
        peer.stream.assume_readable();
        self.note_write_closed(id);
        self.list_to_read(id);
    }

    /// Handles that no output reaches the peer any more. A peer that waits until its replies have been sent would
    /// otherwise keep its resources until its last deadline.
    pub(super) fn note_write_closed(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        (peer.stream.write_closed, peer.stream.writable) = (true, false);
        let is_waiting_for_writing = peer.waiting == Waiting::Replies || peer.ending == Ending::Flushing;
        if peer.lost_deadline != Deadline::NEVER && (peer.session.has_output() || peer.stream.has_unsent()) {
            peer.lost_deadline = peer.lost_deadline.min(self.now.after_ms(LOST_HOLDER_MS));
            self.lists.deadlines.lower(id, peer.lost_deadline);
        }
        let connection = id.connection();
        if let Some(connection) = connection {
            let (broker, mut context) = self.broker_mut();
            broker.set_writable(&mut context, connection, false);
        }
        // A client without a record at the broker exists only for answers.
        if is_waiting_for_writing || connection.is_none() {
            self.end_now(id);
        }
    }

    /// Ends the waiting of a connection that we closed, so that its `connection.close-ok` is read.
    pub(super) fn resume_closed(&mut self, id: ConnectionId) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        peer.held = None;
        let waited = core::mem::replace(&mut peer.waiting, Waiting::No);
        match waited {
            Waiting::Capacity => self.lists.for_capacity.remove(id),
            Waiting::Job => self.lists.for_jobs.remove(id),
            Waiting::PasswordCheck(_) => self.worker.checks.remove(id.into()),
            Waiting::No | Waiting::Replies | Waiting::Handshake(_) | Waiting::Disk(_) => {}
        }
        self.resume(id);
        self.after_session(id.into());
    }

    /// Sends the deferred answer, and resumes the connection.
    pub(super) fn answer_held(&mut self, id: ConnectionId) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        let session = peer.session.amqp();
        if let Some((outcome, order)) = peer.held.take()
            && session.expects_answer()
        {
            let mut context = self.resources.context(self.now, &self.broker, &self.pending_writes, id);
            session.answer(&mut context, outcome, order, Batch::NONE);
        }
        if self.broker.is_busy(id) {
            peer.waiting = Waiting::Job;
            self.lists.for_jobs.push(id);
        } else {
            self.resume(id);
        }
        // Output that must follow the answer, such as the cancellation of a consumer.
        if self.broker.has_output(id) {
            self.list_to_write(id);
        }
    }

    /// Resumes peers whose job at the broker is done. Called after everything in a turn that applies commands,
    /// because a command may end another connection's job.
    pub(super) fn resume_after_jobs(&mut self) {
        for _ in 0..self.lists.for_jobs.len() {
            let Some(peer) = self.lists.for_jobs.pop() else { break };
            let Some(id) = peer.connection() else {
                self.resume_operator(peer);
                continue;
            };
            if self.broker.is_busy(id) {
                self.lists.for_jobs.push(peer);
                continue;
            }
            if let Some(later) = self.broker.take_later(id)
                && let Some(peer) = self.peers.get_mut(id)
            {
                peer.held = Some(later);
                self.answer_held(id);
                self.after_session(id.into());
            } else {
                self.resume(id);
            }
        }
    }

    /// Resumes an operator's client if the broker has finished the work for which the client waits.
    pub(super) fn resume_operator(&mut self, id: PeerId) {
        let Some(Peer { session: Session::Operator(client), .. }) = self.peers.get(id) else { return };
        match client.session.awaits_messages(&self.broker) {
            true => self.lists.for_jobs.push(id),
            false => self.list_to_write(id),
        }
    }

    /// Closes an operator's client that has been idle for too long. Time spent waiting for the disk or the broker
    /// does not count.
    pub(super) fn call_operator(&mut self, id: PeerId) {
        let now = self.now;
        let Some(Peer { session: Session::Operator(client), waiting, .. }) = self.peers.get_mut(id) else {
            return;
        };
        let is_ours = client.session.awaits_disk() || client.session.awaits_read_back();
        if is_ours || *waiting != Waiting::No {
            client.note_progress(now);
            client.exchange_at = Deadline::NEVER;
        } else if client.deadline().is_due(now) {
            return self.end_now(id);
        }
        self.lists.deadlines.lower(id, client.deadline());
    }

    /// Logs how a connection ended that had been opened.
    pub(super) fn log_closed(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get(id) else { return };
        let Session::Amqp(session) = &peer.session else { return };
        let how = match session.stage() {
            Stage::Open => "the client disconnected without closing its connection",
            Stage::Over => "connection closed",
            Stage::Unauthenticated | Stage::LoggedIn => return,
        };
        if !peer.is_opening {
            let caller = session.caller();
            let (source, text) = (caller.peer.source, format_args!("{caller}: {how}"));
            self.resources.log.log(self.now, log::Level::Info, source, LogKind::ConnectionLifecycle, text);
        }
    }
}
