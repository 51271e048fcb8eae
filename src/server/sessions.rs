//! The work after a call of a session: putting a peer that has output on the list, flushing, closing.
//!
//! # Invariants
//! - Code that calls a session calls [`Shared::after_session`] afterwards.
//! - A connection is closed only at the end of a turn, or when it is evicted.

use std::borrow::Cow;

use leveret_connection::Stage;
use leveret_core::batch::Batch;
use leveret_core::command::{Answer, ConnectionId};
use leveret_core::log_limiter::LogKind;
use leveret_core::time::Deadline;

use super::peer::PeerId;
use super::peer::{CloseStage, Peer, Session, WaitReason};
use super::platform::{Platform, Readiness};
use super::state::Shared;

/// How long a peer may take to close its side of a finished connection, in milliseconds.
pub(super) const DRAIN_MS: u64 = 1_000;

impl<P: Platform> Shared<P> {
    /// Handles an event of the poll about a peer.
    pub(super) fn note_peer(&mut self, id: PeerId, seen: Readiness) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        if seen.is_readable || seen.is_read_closed || seen.is_error {
            peer.stream.is_readable = true;
            peer.stream.is_read_closed |= seen.is_read_closed || seen.is_error;
            peer.heard_at = self.now;
            self.list_to_read(id);
        }
        if seen.is_error || seen.is_read_closed {
            self.note_read_closed(id);
        }
        if seen.is_error || seen.is_read_closed && seen.is_write_closed {
            // The client receives nothing more. Its earlier input is still handled, but no more messages are
            // delivered to it, because other consumers would not get them until the client is closed.
            self.note_write_closed(id);
        } else if seen.is_writable
            && let Some(peer) = self.peers.get_mut(id)
            && !peer.stream.is_writable
            && !peer.stream.is_write_closed
        {
            // Each event of a socket also reports whether the socket is writable. If the peer was writable
            // before and has output, it is on the list already.
            peer.stream.is_writable = true;
            self.list_to_write(id);
        }
    }

    /// Updates lists and deadlines after a session was called.
    pub(super) fn after_session(&mut self, id: PeerId) {
        match id.connection() {
            Some(connection) => self.after_client(connection),
            None => self.after_operator(id),
        }
        let Some(peer) = self.peers.get_mut(id) else { return };
        self.lists.deadlines.lower(id, peer.deadline());
        if peer.session.awaits_disk() || matches!(peer.waiting, WaitReason::Disk(_)) {
            self.lists.for_disk.push(id);
        }
        if peer.session.waits_for_get() {
            self.lists.for_jobs.push(id);
        }
        if peer.session.has_output() || peer.stream.has_output() || peer.ending == CloseStage::Flushing {
            self.list_to_write(id);
        }
    }

    /// Handles that an AMQP session has opened its virtual host, or has ended.
    fn after_client(&mut self, id: ConnectionId) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        let Session::Client(session) = &mut peer.session else { return };
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

    /// Puts an operator client on the list to be read if it has more input or requests, and closes it if it is
    /// done.
    pub(super) fn after_operator(&mut self, id: PeerId) {
        let Some(Peer { stream, session: Session::Operator(client), ending, .. }) = self.peers.get_mut(id)
        else {
            return;
        };
        if *ending != CloseStage::No {
            return;
        }
        if client.is_done() && !stream.has_unsent() {
            self.close_at_turn_end(id);
        } else if client.session.is_ending() {
            *ending = CloseStage::Flushing;
        } else if client.session.has_request()
            || stream.has_more() && client.session.input_capacity_bytes() > 0
        {
            self.list_to_read(id);
        }
    }

    /// Updates lists and deadlines after a write. `has_moved`: the socket took bytes, or replies or
    /// deliveries were written.
    pub(super) fn after_write(&mut self, id: PeerId, has_moved: bool) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        // Over WebSocket, the output may be only a PONG, which is no reply to a login and must not delay an eviction.
        // So no output over WebSocket counts as a reply.
        if peer.is_opening && has_moved && !peer.stream.is_websocket() {
            (peer.is_past_first_contact, peer.last_reply_at) = (true, self.now);
        }
        if peer.waiting == WaitReason::Replies && has_moved {
            self.resume(id);
        }
        let Some(peer) = self.peers.get_mut(id) else { return };
        // Nothing of the session is written after CLOSE of WebSocket.
        let is_session_open = !peer.stream.is_websocket_closing();
        let has_session_output = peer.session.has_output() || peer.session.has_remainder();
        let mut more = is_session_open && has_session_output || peer.stream.has_output();
        if peer.ending == CloseStage::Flushing && !more {
            peer.stream.close_websocket();
            more = peer.stream.has_output();
        }
        if peer.ending == CloseStage::Flushing && !more {
            peer.stream.shut_down_writing(&mut self.buffers);
            let until = self.now.after_ms(DRAIN_MS);
            peer.ending = CloseStage::Draining(until);
            peer.stream.assume_readable();
            self.lists.deadlines.lower(id, until);
            self.list_to_read(id);
        } else if peer.stream.is_writable && has_moved && (more || self.has_deliveries(id)) {
            self.list_to_write(id);
        }
        self.after_session(id);
    }

    fn has_deliveries(&self, id: PeerId) -> bool {
        id.connection().is_some_and(|connection| self.broker.has_output(connection))
    }

    /// Resumes a connection to which the broker has sent `connection.close`, so that its
    /// `connection.close-ok` is read.
    pub(super) fn resume_closed(&mut self, id: ConnectionId) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        peer.deferred_reply = None;
        let waited = core::mem::replace(&mut peer.waiting, WaitReason::No);
        match waited {
            WaitReason::Capacity => self.lists.for_capacity.remove(id),
            WaitReason::Job | WaitReason::LongAnswer(_) => self.lists.for_jobs.remove(id),
            WaitReason::PasswordCheck(_) => self.worker.checks.remove(id.into()),
            WaitReason::No | WaitReason::Replies | WaitReason::Handshake(_) | WaitReason::Disk(_) => {}
        }
        self.resume(id);
        self.after_session(id.into());
    }

    /// Sends the deferred reply, and resumes the connection.
    pub(super) fn send_deferred_reply(&mut self, id: ConnectionId) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        let session = peer.session.client();
        if let Some((answer, order)) = peer.deferred_reply.take()
            && session.expects_answer()
        {
            let mut context = self.resources.context(self.now, &self.broker, &self.pending_writes, id);
            session.answer(&mut context, answer, order, Batch::NONE);
        }
        if self.broker.is_busy(id) {
            peer.waiting = WaitReason::Job;
            self.lists.for_jobs.push(id);
        } else {
            self.resume(id);
        }
        // There may be output that must follow the reply, such as the cancellation of a consumer.
        if self.broker.has_output(id) {
            self.list_to_write(id);
        }
    }

    /// Returns whether a peer that waited for memory for a long answer can go on. A connection that is closed frees memory after
    /// [`Self::resume_after_jobs`].
    pub(super) fn may_resume_long_answer(&self) -> bool {
        self.lists.for_jobs.iter().any(|id| match self.peers.get(id).map(|peer| peer.waiting) {
            Some(WaitReason::LongAnswer(bytes)) => {
                let is_busy = id.connection().is_some_and(|id| self.broker.is_busy(id));
                !is_busy && self.resources.pools.has_long_answer_room(bytes)
            }
            _ => false,
        })
    }

    /// Resumes peers whose job at the broker is done, or that waited for memory for a long answer. Called after
    /// everything in a turn that applies commands, because a command may end another connection's job.
    pub(super) fn resume_after_jobs(&mut self) {
        for _ in 0..self.lists.for_jobs.len() {
            let Some(peer) = self.lists.for_jobs.pop() else { break };
            let Some(id) = peer.connection() else {
                self.resume_operator(peer);
                continue;
            };
            let lacks_answer_room = match self.peers.get(id).map(|peer| peer.waiting) {
                Some(WaitReason::LongAnswer(bytes)) => !self.resources.pools.has_long_answer_room(bytes),
                _ => false,
            };
            if self.broker.is_busy(id) || lacks_answer_room {
                self.lists.for_jobs.push(peer);
                continue;
            }
            if let Some((answer, order)) = self.broker.take_late_get(id)
                && let Some(peer) = self.peers.get_mut(id)
            {
                peer.deferred_reply = Some((answer.map(Answer::Get), order));
                self.send_deferred_reply(id);
                self.after_session(id.into());
            } else {
                self.resume(id);
            }
        }
    }

    /// Resumes an operator client if the broker has finished the work for which the client waits.
    pub(super) fn resume_operator(&mut self, id: PeerId) {
        let Some(Peer { session: Session::Operator(client), .. }) = self.peers.get(id) else { return };
        match client.session.awaits_messages(&self.broker) {
            true => self.lists.for_jobs.push(id),
            false => self.list_to_write(id),
        }
    }

    /// Handles the deadline of an operator client: closes it if it has been idle, or its request or reply has
    /// been incomplete, for too long. Time during which it waited for the broker, its disk or its worker is not
    /// counted.
    pub(super) fn handle_operator_deadline(&mut self, id: PeerId) {
        let now = self.now;
        let Some(Peer { session: Session::Operator(client), waiting, .. }) = self.peers.get_mut(id) else {
            return;
        };
        let is_delay_ours = client.session.awaits_disk() || client.session.awaits_read_back();
        if is_delay_ours || *waiting != WaitReason::No {
            client.note_progress(now);
            client.phase_deadline = Deadline::NEVER;
        } else if client.deadline().is_due(now) {
            return self.close_at_turn_end(id);
        }
        self.lists.deadlines.lower(id, client.deadline());
    }

    /// Logs how a connection ended, if it had opened a virtual host.
    pub(super) fn log_closed(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        let websocket_error = peer.stream.websocket().and_then(|websocket| websocket.error());
        let Session::Client(session) = &peer.session else { return };
        let how = match (session.stage(), websocket_error) {
            (Stage::Open, Some(code)) => {
                Cow::from(format!("closed, because it sent an invalid WebSocket frame (close code {code})"))
            }
            (Stage::Open, None) => Cow::from("the client disconnected without closing its connection"),
            (Stage::Over, _) => Cow::from("connection closed"),
            (Stage::Unauthenticated | Stage::LoggedIn, _) => return,
        };
        if !peer.is_opening {
            let caller = session.caller();
            let (source, text) = (caller.peer.source, format_args!("{caller}: {how}"));
            self.resources.log.log(self.now, log::Level::Info, source, LogKind::ConnectionLifecycle, text);
        }
    }
}
