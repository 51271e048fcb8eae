//! Which part does it: a peer that is to be read, written to, called or closed is a connection, a link of a bridge or an
//! operator's client.
//!
//! Always true: a peer is read and written to once in a turn at most, and not read while it waits; a bridge is told of
//! everything that happens to the peers that are its links.

use leveret_connection::Timeout;
use leveret_core::command::ConnectionId;
use leveret_core::error::Fault;
use leveret_core::time::Now;
use leveret_tls::Shaken;

use super::bridges::Call;
use super::peer::{Ending, Peer, Session, Waiting};
use super::peer_id::PeerId;
use super::platform::Platform;
use super::state::Engine;

impl<P: Platform> Engine<P> {
    /// Reads about as much as leaves again, or a backlog builds up that is cold when it is delivered: one
    /// buffer's worth over all peers, and with something left to write only every other turn.
    pub(super) fn read(&mut self) {
        let may_read = self.shared.budget.begin(!self.shared.lists.to_write.is_empty());
        if !may_read || self.shared.journal.is_crowded() {
            return;
        }
        for _ in 0..self.shared.lists.to_read.len() {
            if self.shared.budget.bytes_read() >= self.shared.scratch.input.len()
                || self.shared.budget.is_over()
            {
                break;
            }
            let Some(id) = self.shared.lists.to_read.pop() else { break };
            self.read_from(id);
        }
    }

    pub(super) fn read_from(&mut self, id: PeerId) {
        let Some(peer) = self.shared.peers.get_mut(id) else { return };
        if let Ending::Draining(_) = peer.ending {
            return match peer.stream.drain(&mut self.shared.scratch.input) {
                Some(0) => self.shared.end_now(id),
                // The end may stand behind it, and the kernel tells of both at once.
                Some(count) => {
                    self.shared.budget.note_read(count);
                    self.shared.list_to_read(id);
                }
                None => {}
            };
        }
        if peer.waiting != Waiting::No || peer.ending != Ending::No {
            return;
        }
        peer.read_at = self.shared.now;
        match id.connection() {
            Some(connection) if peer.session.is_bridge() => self.read_bridge(connection),
            Some(connection) => self.shared.read_amqp(connection),
            None => self.read_operator(id),
        }
    }

    pub(super) fn write(&mut self) {
        while let Some(id) = self.shared.broker.next_noted() {
            // A connection of a bridge's own has no socket: its link has.
            let is_own = self.shared.peers.get(id).is_none();
            let peer = if is_own { self.bridges.peer_of(id) } else { Some(id) };
            peer.into_iter().for_each(|peer| self.shared.list_to_write(peer));
        }
        for _ in 0..self.shared.lists.to_write.len() {
            let Some(id) = self.shared.lists.to_write.pop() else { break };
            self.write_to(id);
        }
    }

    pub(super) fn write_to(&mut self, id: PeerId) {
        let Some(peer) = self.shared.peers.get(id) else { return };
        let is_bridge = peer.session.is_bridge();
        let is_over = matches!(peer.ending, Ending::Draining(_) | Ending::Now);
        match (id.connection(), peer.stream.writable) {
            (Some(connection), true) if !is_over && is_bridge => self.write_bridge(connection),
            (Some(connection), true) if !is_over => self.shared.write_amqp(connection),
            (Some(connection), false) if !is_bridge => self.shared.note_stall(connection, 0),
            (None, true) if !is_over => self.write_operator(id),
            _ => {}
        }
    }

    pub(super) fn call_at_deadline(&mut self, id: PeerId) {
        let Some(peer) = self.shared.peers.get_mut(id) else { return };
        if let Ending::Draining(until) = peer.ending {
            if until.is_due(self.shared.now) {
                self.shared.end_now(id);
            } else {
                self.shared.lists.deadlines.lower(id, until);
            }
            return;
        }
        if let Waiting::Handshake(_) = peer.waiting {
            // It is told when it comes back, and then has all the time that it waited for us.
            return;
        }
        if peer.lost.is_due(self.shared.now) {
            return self.shared.end_now(id);
        }
        if let Session::Amqp(session) = &mut peer.session {
            let limits = &self.shared.limits;
            let (handshake_ms, content_ms) = (limits.handshake_timeout_ms, limits.content_timeout_ms);
            session.extend_after_pause(self.shared.now, handshake_ms.into(), content_ms.into());
        }
        if peer.must_read_first(self.shared.now) {
            // After a pause of the process, what came in time is still unread. Reading sets the deadline anew.
            peer.stream.look_again();
            return self.shared.list_to_read(id);
        }
        let Some(connection) = id.connection() else { return self.shared.call_operator(id) };
        if peer.session.is_bridge() {
            self.tell_bridge(connection, Call::Time);
            return;
        }
        if peer.write_stall.is_due(self.shared.now) {
            self.shared.end_if_stalled(connection);
        }
        self.shared.look_for_leave(connection);
        let Some(peer) = self.shared.peers.get_mut(id) else { return };
        let mut context = self.shared.supplies.context(
            self.shared.now,
            &self.shared.broker,
            &self.shared.journal,
            connection,
        );
        if peer.session.amqp().handle_timeout(&mut context) == Timeout::Close {
            return self.shared.end_now(id);
        }
        // Time may have let the session go on with input it had left standing, or finish.
        if let Some(peer) = self.shared.peers.get_mut(id) {
            peer.stream.look_again();
        }
        self.shared.list_to_read(id);
        self.shared.after_session(id);
    }

    /// A step of a handshake of TLS has been made.
    pub(super) fn take_shaken(&mut self, id: PeerId, since: Now, shaken: Shaken) {
        let is_bridge = self.shared.peers.get(id).is_some_and(|peer| peer.session.is_bridge());
        match id.connection().filter(|_| is_bridge) {
            Some(link) => drop(self.tell_bridge(link, Call::Shaken(shaken))),
            None => self.shared.take_shaken(id, since, shaken),
        }
    }

    /// Closes a connection from our side, whatever it waits for.
    pub(super) fn put_one_out(&mut self, id: ConnectionId, fault: &Fault) {
        let Some(peer) = self.shared.peers.get_mut(id).filter(|peer| !peer.session.is_bridge()) else {
            self.tell_bridge(id, Call::PutOut(&fault.text));
            return;
        };
        if peer.stream.is_shaking_hands() {
            return self.shared.end_now(id);
        }
        let mut context =
            self.shared.supplies.context(self.shared.now, &self.shared.broker, &self.shared.journal, id);
        peer.session.amqp().close(&mut context, fault);
        self.shared.resume_closed(id);
    }

    pub(super) fn close(&mut self) {
        if self.shared.lists.to_close.is_empty() {
            return;
        }
        while let Some(id) = self.shared.lists.to_close.pop() {
            self.shared.log_leaving(id);
            let Some(mut peer) = self.shared.peers.take(id) else { continue };
            match id.connection() {
                Some(connection) => self.forget_connection(connection, &mut peer),
                None => self.forget_operator(id, &mut peer),
            }
            peer.stream.release(&mut self.shared.buffers);
            self.shared.lists.deadlines.remove(id);
            self.shared.platform.close(peer.stream.socket);
        }
        self.shared.lists.forget_gone(&self.shared.peers);
    }

    /// A connection of the broker is gone.
    fn forget_connection(&mut self, id: ConnectionId, peer: &mut Peer<P::Socket>) {
        if peer.session.is_bridge() {
            return self.forget_bridge(id);
        }
        let mut context =
            self.shared.supplies.context(self.shared.now, &self.shared.broker, &self.shared.journal, id);
        peer.session.amqp().teardown(&mut context);
        let (broker, mut context) = self.shared.broker_mut();
        broker.release(&mut context, id);
        self.shared.worker.leave(id.into());
        self.shared.peers.note_connection_gone();
        self.shared.admission.note_closed(id, peer.stream.is_tls());
    }

    /// A client is gone, and what was held still for it may move.
    pub(super) fn forget_operator(&mut self, id: PeerId, peer: &mut Peer<P::Socket>) {
        if let Session::Operator(client) = &mut peer.session {
            let session = core::mem::take(&mut client.session);
            let (broker, mut context) = self.shared.broker_mut();
            session.abandon(broker, &mut context);
        }
        self.shared.worker.leave(id);
        if self.operators.holder == Some(id) {
            self.operators.holder = None;
            if let Some(store) = &mut self.store {
                store.keeper.log_mut().release_backup_pin();
            }
            self.recall_operators();
        }
    }

    /// Something has happened to a link of a bridge, or to a connection of its own; says how many octets were
    /// written.
    pub(super) fn tell_bridge(&mut self, id: ConnectionId, call: Call<'_>) -> usize {
        self.bridges.handle(&mut self.shared, id, call)
    }

    /// A link of a bridge reads once.
    pub(super) fn read_bridge(&mut self, id: ConnectionId) {
        self.tell_bridge(id, Call::Read);
        self.shared.after_session(id.into());
    }

    /// A link of a bridge writes once.
    pub(super) fn write_bridge(&mut self, id: ConnectionId) {
        let count = self.tell_bridge(id, Call::Write);
        self.shared.after_write(id.into(), count > 0);
    }

    /// The socket of a link of a bridge is about to be closed.
    #[cold]
    pub(super) fn forget_bridge(&mut self, id: ConnectionId) {
        self.bridges.note_closed(&mut self.shared, id);
    }

    /// Bridges do what is due, once in every turn.
    pub(super) fn poll_bridges(&mut self) {
        self.bridges.poll(&mut self.shared);
    }

    /// Whether bridges would get on now.
    pub(super) fn has_bridge_work(&self) -> bool {
        let (has_room, is_stopping) = (self.shared.lists.for_room.is_empty(), self.shared.stopping.is_some());
        self.bridges.is_ready(&self.shared.broker, self.shared.now, (has_room, is_stopping))
    }

    /// Does what an operator wants of a bridge.
    #[cold]
    pub(super) fn order_bridge(
        &mut self,
        name: &str,
        order: leveret_management::request_context::BridgeOrder,
    ) {
        self.bridges.follow_order(&mut self.shared, name, order);
    }
}
