//! What follows when something was done with a peer: it has more to say, is written to its end, or is gone.
//!
//! Always true: whoever had a session do something calls this afterwards; a connection is closed between two pieces of
//! work: at the end of a turn, or when a newcomer is given its place.

use std::io;

use crate::broker;
use crate::command::ConnectionId;
use crate::error::Fault;
use crate::log_limiter::LogKind;
use crate::session::Stage;

use super::bridges::Call;
use super::peer::{Ending, Peer, Session, Waiting};
use super::peer_id::PeerId;
use super::platform::Platform;
use super::state::Engine;

/// How long a connection that is over may take to hang up.
const DRAIN_MS: u64 = 1_000;

impl<P: Platform> Engine<P> {
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
            self.lists.list_to_write(id);
        }
    }

    /// How far a connection of the broker has come: its handshake is over, or all of it.
    fn after_amqp(&mut self, id: ConnectionId) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        let Session::Amqp(session) = &mut peer.session else { return };
        if peer.shaking_hands && session.stage() == Stage::Open {
            peer.shaking_hands = false;
            let source = peer.address.origin();
            self.worker.throttle.prove(self.now, source, self.broker.views().user_of(id));
            self.doors.note_opened(id, source);
            session.set_names(self.broker.views().user_of(id), self.broker.views().vhost_of(id));
            let (caller, log) = (session.caller(), &mut self.supplies.log);
            let (source, text) = (caller.peer.source, format_args!("{caller}: connection opened"));
            log.log(self.now, log::Level::Info, source, LogKind::Visit, text);
        }
        if session.is_over() {
            let context = &mut broker::Context::new(
                &mut self.journal,
                &mut self.supplies.messages,
                &mut self.budget.work,
            );
            self.broker.disconnect(context, id);
        }
    }

    /// What may have changed for a client: there is more to read or to handle, or it is over.
    pub(super) fn after_operator(&mut self, id: PeerId) {
        let Some(Peer { stream, session: Session::Admin(client), ending, .. }) = self.peers.get_mut(id)
        else {
            return;
        };
        if *ending != Ending::No {
            return;
        }
        if client.is_done() && !stream.has_unsent() {
            self.lists.end_now(&mut self.peers, id);
        } else if client.session.is_ending() {
            *ending = Ending::Flushing;
        } else if client.session.has_request() || stream.has_more() && client.session.room() > 0 {
            self.lists.list_to_read(&self.peers, id);
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

    /// Nothing that is written reaches the peer any more: who waits until its replies have left would wait
    /// until its last deadline, with all that it holds.
    pub(super) fn note_deaf(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        peer.stream.write_closed = true;
        let is_waiting_for_writing = peer.waiting == Waiting::Replies || peer.ending == Ending::Flushing;
        let connection = id.connection();
        if let Some(connection) = connection {
            let (broker, mut context) = self.broker_mut();
            broker.set_writable(&mut context, connection, false);
        }
        // Who has no record at the broker came for answers, and nothing else.
        if is_waiting_for_writing || connection.is_none() {
            self.lists.end_now(&mut self.peers, id);
        }
    }

    // ---- put out

    /// Closes a connection from our side, whatever it waits for.
    pub(super) fn put_one_out(&mut self, id: ConnectionId, fault: &Fault) {
        let Some(peer) = self.peers.get_mut(id).filter(|peer| !peer.session.is_bridge()) else {
            self.tell_bridge(id, Call::PutOut(&fault.text));
            return;
        };
        if peer.stream.is_shaking_hands() {
            return self.lists.end_now(&mut self.peers, id);
        }
        let mut context = self.supplies.context(self.now, &self.broker, &self.journal, id);
        peer.session.amqp().close(&mut context, fault);
        self.resume_closed(id);
    }

    /// What we closed is read again, for its answer.
    pub(super) fn resume_closed(&mut self, id: ConnectionId) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        peer.held = None;
        let waited = core::mem::replace(&mut peer.waiting, Waiting::No);
        match waited {
            Waiting::Room => self.lists.for_room.remove(id),
            Waiting::Job => self.lists.for_jobs.remove(id),
            Waiting::Worker(_) => self.worker.throttle.leave(id),
            Waiting::No | Waiting::Replies | Waiting::Handshake(_) | Waiting::Disk(_) => {}
        }
        self.lists.resume(&mut self.peers, id);
        self.after_session(id.into());
    }

    // ---- closed

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

    /// A client is gone, and what was held still for it may move.
    pub(super) fn forget_operator(&mut self, id: PeerId, peer: &mut Peer<P::Socket>) {
        if let Session::Admin(client) = &mut peer.session {
            let session = core::mem::take(&mut client.session);
            let (broker, mut context) = self.broker_mut();
            session.abandon(broker, &mut context);
        }
        self.worker.leave(id);
        if self.admin.holder == Some(id) {
            self.admin.holder = None;
            if let Some(store) = &mut self.store {
                store.log_mut().release_backup_pin();
            }
            self.recall_operators();
        }
    }

    /// The store's files are free again: whoever waits for them looks once more.
    pub(super) fn recall_operators(&mut self) {
        for id in self.lists.for_disk.iter().filter(|id| id.connection().is_none()) {
            self.lists.to_write.push(id);
        }
    }
}
