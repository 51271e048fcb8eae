//! What follows when something was done with a peer: it has more to say, is written to its end, or is gone.
//!
//! Always true: whoever had a session do something calls this afterwards; a connection is closed between two pieces of
//! work: at the end of a turn, or when another one gets its place.

use std::io;

use leveret_connection::Stage;
use leveret_core::command::ConnectionId;
use leveret_core::journal::Batch;
use leveret_core::log_limiter::LogKind;
use leveret_core::time::Deadline;

use super::peer::PeerId;
use super::peer::{Ending, Peer, Session, Waiting};
use super::platform::{Platform, Readiness};
use super::state::Shared;

/// How long the last input of a client that is gone may wait to be taken while the client holds what others need:
/// exclusive queues, deliveries, or output that nobody will read. The input may wait for exactly that.
const LOST_HOLDER_MS: u64 = 5_000;
/// How long the last input of any other client that is gone may wait to be taken: what programs sent before they
/// ended counts.
const LOST_MS: u64 = 600_000;
/// How long a connection that is over may take to hang up.
const DRAIN_MS: u64 = 1_000;

impl<P: Platform> Shared<P> {
    /// The poll reports what became possible with a peer, or what happened to it.
    pub(super) fn note_peer(&mut self, id: PeerId, seen: Readiness) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        if seen.is_readable || seen.is_read_closed || seen.is_error {
            peer.stream.readable = true;
            peer.stream.read_closed |= seen.is_read_closed || seen.is_error;
            self.list_to_read(id);
        }
        if seen.is_error || seen.is_read_closed {
            self.note_loss(id);
        }
        if seen.is_error || seen.is_read_closed && seen.is_write_closed {
            // Nobody reads there any more. What was sent before is still read, as soon as it can be, but no
            // message may go where it would only be lost sight of.
            self.note_deaf(id);
        } else if seen.is_writable
            && let Some(peer) = self.peers.get_mut(id)
            && !peer.stream.writable
            && !peer.stream.write_closed
        {
            // The system says so with whatever else it reports. Who could be written to before is on the list
            // if there is something to write.
            peer.stream.writable = true;
            self.list_to_write(id);
        }
    }

    /// The peer is gone, or will say nothing more, which is the same: AMQP has no half of a connection. One
    /// that waits is not read to its end, so it would keep what it holds (its place among the connections,
    /// an exclusive queue, the messages in that) for as long as nobody makes room. An operator's client may
    /// say its last and wait for the answer.
    fn note_loss(&mut self, id: PeerId) {
        let (Some(peer), Some(connection)) = (self.peers.get_mut(id), id.connection()) else { return };
        if peer.session.is_bridge() {
            // Whatever it sent before and was not taken is the upstream's still; what it has to say is read.
            // Its last words in a handshake, an alert maybe, are read when the step under way is done.
            if !matches!(peer.waiting, Waiting::No | Waiting::Handshake(_)) {
                self.end_now(id);
            }
            return;
        }
        if let Waiting::Worker(_) = peer.waiting {
            // Nobody is left to be told, and somebody else may want its place.
            return self.end_now(id);
        }
        if peer.lost == Deadline::NEVER {
            let ms = if self.broker.holds_for_others(connection) { LOST_HOLDER_MS } else { LOST_MS };
            peer.lost = self.now.after_ms(ms);
            self.lists.deadlines.lower(id, peer.lost);
        }
    }

    /// What may have changed whenever a session was asked to do something.
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

    /// What follows when a session of AMQP was asked to do something: its handshake may be over, or all of it.
    fn after_amqp(&mut self, id: ConnectionId) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        let Session::Amqp(session) = &mut peer.session else { return };
        if peer.shaking_hands && session.stage() == Stage::Open {
            peer.shaking_hands = false;
            self.admission.note_opened(id);
            session.set_names(self.broker.views().user_of(id), self.broker.views().vhost_of(id));
            let (caller, log) = (session.caller(), &mut self.supplies.log);
            let (source, text) = (caller.peer.source, format_args!("{caller}: connection opened"));
            log.log(self.now, log::Level::Info, source, LogKind::Visit, text);
        }
        if session.is_over() {
            let (broker, mut context) = self.broker_mut();
            broker.disconnect(&mut context, id);
        }
    }

    /// What may have changed for a client: there is more to read or to handle, or it is over.
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
        } else if client.session.has_request() || stream.has_more() && client.session.room() > 0 {
            self.list_to_read(id);
        }
    }

    /// Goes on after a write; `has_moved`: the socket took something, or replies or deliveries were written.
    pub(super) fn after_write(&mut self, id: PeerId, has_moved: bool) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        if peer.shaking_hands && has_moved {
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
            peer.stream.look_again();
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

    /// The peer takes nothing any more. What it sent before still counts and is read to its end.
    pub(super) fn lose_writing(&mut self, id: PeerId, error: &io::Error) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        log::debug!("{}: writing failed: {error}", peer.address);
        peer.stream.read_closed = true;
        peer.stream.look_again();
        self.note_deaf(id);
        self.list_to_read(id);
    }

    /// Nothing that is written reaches the peer any more: who waits until its replies have left would wait
    /// until its last deadline, with all that it holds.
    pub(super) fn note_deaf(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        (peer.stream.write_closed, peer.stream.writable) = (true, false);
        let is_waiting_for_writing = peer.waiting == Waiting::Replies || peer.ending == Ending::Flushing;
        if peer.lost != Deadline::NEVER && (peer.session.has_output() || peer.stream.has_unsent()) {
            peer.lost = peer.lost.min(self.now.after_ms(LOST_HOLDER_MS));
            self.lists.deadlines.lower(id, peer.lost);
        }
        let connection = id.connection();
        if let Some(connection) = connection {
            let (broker, mut context) = self.broker_mut();
            broker.set_writable(&mut context, connection, false);
        }
        // Who has no record at the broker came for answers, and nothing else.
        if is_waiting_for_writing || connection.is_none() {
            self.end_now(id);
        }
    }

    /// What we closed is read again, for its answer.
    pub(super) fn resume_closed(&mut self, id: ConnectionId) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        peer.held = None;
        let waited = core::mem::replace(&mut peer.waiting, Waiting::No);
        match waited {
            Waiting::Room => self.lists.for_room.remove(id),
            Waiting::Job => self.lists.for_jobs.remove(id),
            Waiting::Worker(_) => self.worker.checks.remove(id.into()),
            Waiting::No | Waiting::Replies | Waiting::Handshake(_) | Waiting::Disk(_) => {}
        }
        self.resume(id);
        self.after_session(id.into());
    }

    /// Gives the answer that had to wait, and lets the connection go on.
    pub(super) fn answer_held(&mut self, id: ConnectionId) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        let session = peer.session.amqp();
        if let Some((outcome, order)) = peer.held.take()
            && session.expects_answer()
        {
            let mut context = self.supplies.context(self.now, &self.broker, &self.journal, id);
            session.answer(&mut context, outcome, order, Batch::NONE);
        }
        if self.broker.is_busy(id) {
            peer.waiting = Waiting::Job;
            self.lists.for_jobs.push(id);
        } else {
            self.resume(id);
        }
        // What had to stand behind the answer: the end of a consumer, say.
        if self.broker.has_output(id) {
            self.list_to_write(id);
        }
    }

    /// After everything in a turn that applies commands, for a command may end the job of another.
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

    /// The broker may have done for a client what that waits for.
    pub(super) fn resume_operator(&mut self, id: PeerId) {
        let Some(Peer { session: Session::Operator(client), .. }) = self.peers.get(id) else { return };
        match client.session.is_held_up(&self.broker) {
            true => self.lists.for_jobs.push(id),
            false => self.list_to_write(id),
        }
    }

    /// Ends an operator's client that has been still for long; one that waits for the disk waits for the broker.
    pub(super) fn call_operator(&mut self, id: PeerId) {
        let now = self.now;
        let Some(Peer { session: Session::Operator(client), waiting, .. }) = self.peers.get_mut(id) else {
            return;
        };
        let is_ours = client.session.awaits_disk() || client.session.waits();
        if is_ours || *waiting != Waiting::No {
            client.note_progress(now);
            client.exchange_at = Deadline::NEVER;
        } else if client.deadline().is_due(now) {
            return self.end_now(id);
        }
        self.lists.deadlines.lower(id, client.deadline());
    }

    /// Says how a connection ended that had been opened.
    pub(super) fn log_leaving(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get(id) else { return };
        let Session::Amqp(session) = &peer.session else { return };
        let how = match session.stage() {
            Stage::Open => "gone without closing its connection",
            Stage::Over => "connection closed",
            Stage::Unproven | Stage::LoggedIn => return,
        };
        if !peer.shaking_hands {
            let caller = session.caller();
            let (source, text) = (caller.peer.source, format_args!("{caller}: {how}"));
            self.supplies.log.log(self.now, log::Level::Info, source, LogKind::Visit, text);
        }
    }
}
