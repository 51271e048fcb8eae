//! The way out: writing, and how connections end.
//!
//! Always true: a turn writes to a socket once; what the socket did not take is not kept here; a connection
//! is closed between two pieces of work: at the end of a turn, or when a newcomer is given its place.

use std::io;

use crate::broker;
use crate::command::ConnectionId;
use crate::error::{Fault, ReplyCode};
use crate::log_limiter::LogKind;
use crate::session::Stage;
use crate::time::Deadline;

use super::peer::{Ending, Peer, Session, Waiting};
use super::peer_id::PeerId;
use super::platform::Platform;
use super::state::Engine;

/// How long a connection that is over may take to hang up.
const DRAIN_MS: u64 = 1_000;

impl<P: Platform> Engine<P> {
    pub(super) fn write(&mut self) {
        while let Some(id) = self.broker.next_noted() {
            // A connection of a bridge's own has no socket: its link has.
            let is_own = self.peers.get(id).is_none();
            let peer = if is_own { self.bridges.peer_of(id) } else { Some(id) };
            peer.into_iter().for_each(|peer| self.lists.list_to_write(peer));
        }
        for _ in 0..self.lists.to_write.len() {
            let Some(id) = self.lists.to_write.pop() else { break };
            self.write_to(id);
        }
    }

    pub(super) fn write_to(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get(id) else { return };
        let is_bridge = peer.session.is_bridge();
        let is_over = matches!(peer.ending, Ending::Draining(_) | Ending::Now);
        match (id.connection(), peer.stream.writable) {
            (Some(connection), true) if !is_over && is_bridge => self.write_bridge(connection),
            (Some(connection), true) if !is_over => self.write_amqp(connection),
            (Some(connection), false) if !is_bridge => self.note_stall(connection, 0),
            (None, true) if !is_over => self.write_operator(id),
            _ => {}
        }
    }

    /// Writes once: what the session says, then deliveries.
    fn write_amqp(&mut self, id: ConnectionId) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        let session = peer.session.amqp();
        let mut context = self.supplies.context(self.now, &self.broker, &self.journal, id);
        while let Some((channel, tag, order)) = self.broker.next_cancelled(id) {
            if !session.server_cancel(&mut context, channel, tag, order) {
                break;
            }
            self.broker.told_cancelled(id);
        }
        let mut outbox = self.broker.outbox(id);
        let filled =
            session.fill(&mut context, &mut self.scratch.output, &mut self.scratch.write_plan, &mut outbox);
        let taken = peer.stream.write(&mut self.buffers, &self.scratch.output[..filled]);
        let count = *taken.as_ref().unwrap_or(&0);
        peer.traffic.sent(count);
        let sent = session.written(&mut context, count, &self.scratch.write_plan);
        let context =
            &mut broker::Context::new(&mut self.journal, &mut self.supplies.messages, &mut self.budget.work);
        if sent.is_first_unseen {
            self.broker.unseen(context, id);
        }
        self.broker.sent(context, id, sent.deliveries - u32::from(sent.is_first_unseen));
        self.broker.set_writable(context, id, !session.has_remainder() && !peer.stream.has_unsent());
        self.note_stall(id, count);
        match taken {
            Ok(_) => self.after_write(id.into(), count),
            Err(error) => self.lose_writing(id.into(), &error),
        }
    }

    /// A consumer whose socket takes nothing while deliveries wait has so much time and no more: what waits
    /// for it waits in memory.
    fn note_stall(&mut self, id: ConnectionId, count: usize) {
        let patience = self.limits.consumer_stall_timeout_ms;
        let Some(peer) = self.peers.get_mut(id) else { return };
        let is_cut = peer.session.amqp().has_begun_delivery() || peer.stream.has_unsent();
        let waits = is_cut || self.broker.has_output(id);
        if peer.stream.writable || !waits || patience == 0 {
            peer.write_stall = Deadline::NEVER;
        } else if count > 0 || peer.write_stall == Deadline::NEVER {
            peer.write_stall = self.now.after_ms(patience.into());
            self.lists.deadlines.lower(id.into(), peer.write_stall);
        }
    }

    /// It had its time. But the kernel reports room only when a third of its buffer is free, so one that
    /// reads slowly is asked once more.
    pub(super) fn end_if_stalled(&mut self, id: ConnectionId) {
        let patience = self.limits.consumer_stall_timeout_ms;
        let Some(peer) = self.peers.get_mut(id) else { return };
        peer.stream.writable = true;
        self.write_to(id.into());
        let Some(peer) = self.peers.get_mut(id) else { return };
        if !peer.write_stall.is_due(self.now) {
            return;
        }
        peer.write_stall = Deadline::NEVER;
        let fault = Fault::connection(
            ReplyCode::ConnectionForced,
            format_args!(
                "nothing was read from this connection for {patience} ms while deliveries waited: read \
                 faster, or raise consumer_stall_timeout"
            ),
        );
        let mut context = self.supplies.context(self.now, &self.broker, &self.journal, id);
        let session = peer.session.amqp();
        session.close(&mut context, &fault);
        if session.has_begun_delivery() {
            // Behind half a frame the peer can be told nothing; the log has the sentence.
            self.lists.end_now(&mut self.peers, id);
        }
    }

    pub(super) fn after_write(&mut self, id: PeerId, count: usize) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        if peer.waiting == Waiting::Replies && count > 0 {
            self.lists.resume(&mut self.peers, id);
        }
        let Some(peer) = self.peers.get_mut(id) else { return };
        let more = peer.session.has_output() || peer.session.has_remainder() || peer.stream.has_unsent();
        if peer.ending == Ending::Flushing && !more {
            peer.stream.shut_down_writing(&mut self.buffers);
            let until = self.now.after_ms(DRAIN_MS);
            peer.ending = Ending::Draining(until);
            peer.stream.look_again();
            self.lists.deadlines.lower(id, until);
            self.lists.list_to_read(&self.peers, id);
        } else if peer.stream.writable && count > 0 && (more || self.has_deliveries(id)) {
            self.lists.list_to_write(id);
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
        peer.stream.writable = false;
        peer.stream.read_closed = true;
        peer.stream.look_again();
        self.note_deaf(id);
        self.lists.list_to_read(&self.peers, id);
    }

    pub(super) fn close(&mut self) {
        if self.lists.to_close.is_empty() {
            return;
        }
        while let Some(id) = self.lists.to_close.pop() {
            self.log_leaving(id);
            let Some(mut peer) = self.peers.take(id) else { continue };
            match id.connection() {
                Some(connection) => self.forget_connection(connection, &mut peer),
                None => self.forget_operator(id, &mut peer),
            }
            peer.stream.release(&mut self.buffers);
            self.lists.deadlines.remove(id);
            self.platform.close(peer.stream.socket);
        }
        self.doors.note_change();
        self.lists.forget_gone(&self.peers);
    }

    /// Says how a connection ended that had been opened.
    fn log_leaving(&mut self, id: PeerId) {
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

    /// A connection of the broker is gone.
    fn forget_connection(&mut self, id: ConnectionId, peer: &mut Peer<P::Socket>) {
        if peer.session.is_bridge() {
            return self.forget_bridge(id);
        }
        let mut context = self.supplies.context(self.now, &self.broker, &self.journal, id);
        peer.session.amqp().teardown(&mut context);
        let context =
            &mut broker::Context::new(&mut self.journal, &mut self.supplies.messages, &mut self.budget.work);
        self.broker.release(context, id);
        self.worker.leave(id.into());
        self.peers.note_connection_gone();
        self.doors.note_gone(id, peer.stream.is_tls());
    }
}
