//! When the connections of lost clients and of waiting publishers are closed.
//!
//! A client may send messages and exit while there is no capacity for them. Its connection is then lost: it keeps its
//! record and its unread input until nothing was handled for [`LOST_MS`], so that the messages can still be published.
//! It counts neither for `connections_max` nor for the limits of its user and virtual host. If another connection needs
//! the record, the lost one is closed at once (`admission`).
//!
//! The end of a client is not seen if it lost its power or its network, or if its FIN waits behind messages that are not
//! read. Such a client looks like one that waits for a confirm. So when a limit of connections is reached and a client
//! logs in, a publisher is closed that waits for capacity and has sent nothing for [`SILENT_MS`].

use std::io;

use leveret_core::command::ConnectionId;
use leveret_core::error::{Advice, Fault, ReplyCode};
use leveret_core::limits::{CONNECTIONS_SPARE, TLS_CONNECTIONS_SPARE};
use leveret_core::log_limiter::LogKind;
use leveret_core::time::{Deadline, Now};

use super::blocked_publishers::BlockedOn;
use super::peer::{CloseStage, Peer, PeerId, Session, WaitReason};
use super::platform::{Platform, Socket};
use super::state::Shared;
use super::stream::ReadMode;

/// A lost client that has exclusive queues or unacknowledged deliveries is closed after this time, in milliseconds.
/// Others need these, and its own unhandled input may be waiting for them.
const HOLDER_MS: u64 = 5_000;
/// Any other lost client is closed if none of its input could be handled for this time, in milliseconds.
const LOST_MS: u64 = 30_000;
/// A publisher that waits for capacity may be closed for a client that logs in if it has sent nothing for this time, in
/// milliseconds. It is short, because a device that gets no confirm often connects again after some seconds.
const SILENT_MS: u64 = 5_000;
const MEMORY_KEY: &str = "memory_limit";
/// Maximum number of reads in which the dropped messages of one connection are counted: it bounds the work of a close.
const COUNTED_READS_MAX: usize = 16;

/// A client whose input has ended, or to which writing failed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lost {
    pub(super) since: Now,
    /// Number of bytes of its input that were handled when its deadline was set.
    handled_bytes: u64,
}

/// Whether a client that logs in may open its connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    /// Fewer connections are open than may be.
    Free,
    /// It may if this publisher is closed.
    Of(ConnectionId),
    /// It may not.
    None(ReachedLimit),
}

/// A limit of open connections that is reached: its configuration key, and its value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct ReachedLimit {
    pub(super) key: &'static str,
    pub(super) value: u32,
}

impl ReachedLimit {
    /// Returns the fault for the refused client: RabbitMQ's text for its limit of connections of a node.
    pub(super) fn fault(self) -> Fault {
        let text = format_args!("connection refused: node connection limit ({}) is reached", self.value);
        let advice = match self.key {
            MEMORY_KEY => Advice::RaiseMemory,
            _ => Advice::RaiseConnections,
        };
        Fault { advice, ..Fault::connection(ReplyCode::ConnectionLimit, text) }
    }
}

impl<S: Socket> Peer<S> {
    /// Returns whether this is an open connection of a client, which counts for `connections_max`.
    pub(super) fn is_open_client(&self) -> bool {
        matches!(self.session, Session::Client(_))
            && !self.is_opening
            && self.ending == CloseStage::No
            && self.lost.is_none()
    }

    /// Returns whether this is a publisher that waits for capacity, and whose client is not lost.
    pub(super) fn is_blocked(&self) -> bool {
        self.waiting == WaitReason::Capacity && self.ending == CloseStage::No && self.lost.is_none()
    }
}

impl<P: Platform> Shared<P> {
    /// Handles the end of a peer's input. AMQP has no half-closed connections, so a peer that has shut down
    /// writing is treated like a lost one.
    ///
    /// While a peer waits, its input is not read to the end. An operator client, however, may shut down writing and wait
    /// for its reply.
    pub(super) fn note_read_closed(&mut self, id: PeerId) {
        let (Some(peer), Some(connection)) = (self.peers.get_mut(id), id.connection()) else { return };
        if peer.session.is_bridge() {
            // Messages that the link has not acknowledged remain in the upstream, so a waiting link can be
            // closed. In other states its remaining input is read first, for example a TLS alert at the end
            // of a handshake.
            if !matches!(peer.waiting, WaitReason::No | WaitReason::Handshake(_)) {
                self.close_at_turn_end(id);
            }
            return;
        }
        if let WaitReason::PasswordCheck(_) = peer.waiting {
            // The client would not receive the reply, and its slot may be needed.
            return self.close_at_turn_end(id);
        }
        if peer.lost.is_none() {
            peer.lost = Some(Lost { since: self.now, handled_bytes: peer.traffic.received_bytes });
            self.broker.note_lost(connection);
            self.set_lost_deadline(connection);
        }
    }

    fn set_lost_deadline(&mut self, id: ConnectionId) {
        let ms = if self.broker.blocks_others(id) { HOLDER_MS } else { LOST_MS };
        if let Some(peer) = self.peers.get_mut(id) {
            peer.lost_deadline = self.now.after_ms(ms);
            self.lists.deadlines.lower(id.into(), peer.lost_deadline);
        }
    }

    /// Handles a failed write. Input that the peer sent before is still read and handled.
    pub(super) fn note_write_failed(&mut self, id: PeerId, error: &io::Error) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        log::debug!("{}: writing failed: {error}", peer.address);
        // The read side is expected to end; what is buffered is still read until then.
        peer.stream.is_read_closed = true;
        peer.stream.assume_readable();
        self.note_read_closed(id);
        self.note_write_closed(id);
        self.list_to_read(id);
    }

    /// Handles that the peer receives nothing more. Closes a peer that waits for its replies to be written,
    /// which would otherwise keep its resources until a deadline.
    pub(super) fn note_write_closed(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        (peer.stream.is_write_closed, peer.stream.is_writable) = (true, false);
        let is_waiting_for_writing =
            peer.waiting == WaitReason::Replies || peer.ending == CloseStage::Flushing;
        if peer.lost_deadline != Deadline::NEVER && (peer.session.has_output() || peer.stream.has_unsent()) {
            peer.lost_deadline = peer.lost_deadline.min(self.now.after_ms(HOLDER_MS));
            self.lists.deadlines.lower(id, peer.lost_deadline);
        }
        let connection = id.connection();
        if let Some(connection) = connection {
            let (broker, mut context) = self.broker_mut();
            broker.set_writable(&mut context, connection, false);
        }
        // An operator client needs the connection only to receive its reply.
        if is_waiting_for_writing || connection.is_none() {
            self.close_at_turn_end(id);
        }
    }

    /// Closes a lost peer whose deadline is due, unless some of its input was handled since the deadline was set.
    pub(super) fn end_lost(&mut self, id: PeerId) {
        let (Some(peer), Some(connection)) = (self.peers.get_mut(id), id.connection()) else {
            return self.close_at_turn_end(id);
        };
        let handled_bytes = peer.traffic.received_bytes;
        match &mut peer.lost {
            Some(lost) if lost.handled_bytes < handled_bytes && !self.broker.blocks_others(connection) => {
                lost.handled_bytes = handled_bytes;
                self.set_lost_deadline(connection);
            }
            _ => self.drop_lost(connection, "there was no capacity for them"),
        }
    }

    /// Closes a lost connection. Counts and logs the messages that it had sent and that are dropped with it, because of
    /// `why`.
    pub(super) fn drop_lost(&mut self, id: ConnectionId, why: &str) {
        let messages = self.drop_unhandled(id);
        if let Some(Peer { session: Session::Client(session), address, lost: Some(lost), .. }) =
            self.peers.get(id)
            && messages > 0
        {
            let (caller, seconds) = (session.caller(), self.now.ms_since(lost.since) / 1000);
            let text = format_args!(
                "{caller}: {messages} unconfirmed messages are dropped {seconds} s after the client disconnected: {why}"
            );
            self.resources.log.warn(self.now, address.source(), LogKind::Connection, text);
        }
        self.close_at_turn_end(id);
    }

    /// Reads and drops what a client has sent and the broker has not handled. Returns the number of messages in it; the
    /// last one may be incomplete.
    fn drop_unhandled(&mut self, id: ConnectionId) -> u64 {
        let Some(peer) = self.peers.get_mut(id) else { return 0 };
        let Session::Client(session) = &peer.session else { return 0 };
        if peer.waiting != WaitReason::Capacity {
            return 0;
        }
        let (mut messages, mut is_first) = (u64::from(session.held_messages()), true);
        for _ in 0..COUNTED_READS_MAX {
            if !peer.stream.may_peek(&self.buffers) {
                break;
            }
            peer.stream.assume_readable();
            let got = peer.stream.read(&mut self.buffers, &mut self.scratch.input, ReadMode::Take);
            let found =
                session.count_messages(&self.scratch.input[..got.len], core::mem::take(&mut is_first));
            messages += u64::from(found.messages);
            let is_kept =
                peer.stream.keep(&mut self.buffers, &mut self.scratch.input, got.len, found.bytes, true);
            if found.bytes == 0 || !is_kept {
                break;
            }
        }
        self.admission.note_dropped_messages(messages);
        messages
    }

    /// Returns whether a client may open its connection, over TLS or not.
    pub(super) fn place_for(&self, is_tls: bool) -> Place {
        let limits = &self.limits;
        let all = ReachedLimit { key: "connections_max", value: limits.connections_max };
        // Counting visits all peers, so it is only done when the limit may be reached.
        let is_reached = || {
            let may_be = self.peers.connections() >= all.value;
            may_be && self.peers.iter().filter(|peer| peer.is_open_client()).count() >= all.value as usize
        };
        let is_tls_short = is_tls && self.admission.tls_connections_free() < TLS_CONNECTIONS_SPARE as usize;
        // A few records are kept for connections that are told why they are refused.
        let is_short = is_tls_short || self.broker.lacks_memory_for_connections(CONNECTIONS_SPARE as usize);
        if !is_short && !is_reached() {
            return Place::Free;
        }
        match self.silent_publishers(is_tls_short).min() {
            Some((_, id)) => Place::Of(id),
            None if is_short => {
                Place::None(ReachedLimit { key: MEMORY_KEY, value: self.peers.connections() })
            }
            None => Place::None(all),
        }
    }

    /// Returns whether another client could open a connection although a client was refused because of this limit.
    pub(super) fn has_place(&self, refused: ReachedLimit) -> bool {
        // A client over TLS needs more memory.
        let is_tls = refused.key == MEMORY_KEY && self.admission.tls_connections() > 0;
        !matches!(self.place_for(is_tls), Place::None(limit) if limit.key == refused.key)
    }

    /// Returns the waiting publisher of the same user that has been silent longest. It may be an earlier connection of the
    /// client that is refused because of the user's limit.
    pub(super) fn silent_publisher_of(&self, id: ConnectionId) -> Option<ConnectionId> {
        let user = self.broker.views().user_of(id);
        let is_own = |other: &ConnectionId| self.broker.views().user_of(*other) == user;
        self.silent_publishers(false).filter(|(_, other)| is_own(other)).min().map(|(_, other)| other)
    }

    /// Returns the open publishers that wait for capacity and are silent, and since when.
    fn silent_publishers(&self, only_tls: bool) -> impl Iterator<Item = (Now, ConnectionId)> {
        let ids = (0..self.peers.connections_seen()).map(ConnectionId::from_index);
        ids.filter_map(move |id| {
            let peer = self.peers.get(id).filter(|peer| peer.is_open_client() && peer.is_blocked())?;
            let is_silent = peer.heard_at.after_ms(SILENT_MS).is_due(self.now);
            (is_silent && (!only_tls || peer.stream.is_tls())).then_some((peer.heard_at, id))
        })
    }

    /// Counts and logs the messages of a waiting publisher that is closed although its client is not lost. Only messages
    /// in the first input buffer are counted: the rest is not read.
    pub(super) fn count_waiting_messages(&mut self, id: ConnectionId) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        let Session::Client(session) = &peer.session else { return };
        if peer.waiting != WaitReason::Capacity || !peer.stream.may_peek(&self.buffers) {
            return;
        }
        peer.stream.assume_readable();
        let got = peer.stream.read(&mut self.buffers, &mut self.scratch.input, ReadMode::Peek);
        let found = session.count_messages(&self.scratch.input[..got.len], true);
        let messages = session.held_messages() + found.messages;
        let caller = session.caller();
        let text = format_args!(
            "{caller}: {messages} unconfirmed messages are dropped, because the connection is closed"
        );
        self.resources.log.warn(self.now, peer.address.source(), LogKind::Connection, text);
        self.admission.note_dropped_messages(messages.into());
        let is_kept = peer.stream.keep(&mut self.buffers, &mut self.scratch.input, got.len, 0, true);
        peer.stream.assume_readable();
        if !is_kept {
            self.close_at_turn_end(id);
        }
    }

    /// Returns what each publisher waits for whose client is not lost.
    pub(super) fn blocked_publishers(&self) -> impl Iterator<Item = BlockedOn> {
        let peers = self.lists.for_capacity.iter().filter_map(|id| self.peers.get(id));
        peers.filter(|peer| peer.lost.is_none()).map(|peer| peer.blocked_on)
    }

    /// Closes a publisher that waits for capacity, because a limit of connections is reached and another client logs in.
    /// The publisher gets the reason if its socket takes it at once.
    pub(super) fn end_waiting(&mut self, id: ConnectionId) {
        let messages = self.drop_unhandled(id);
        let Some(Peer { session: Session::Client(session), .. }) = self.peers.get_mut(id) else { return };
        let fault = Fault::connection(
            ReplyCode::ConnectionForced,
            format_args!(
                "it waited for capacity and was silent while a limit of connections was reached and another client \
                 logged in; {messages} unconfirmed messages are dropped: connect and publish them again"
            ),
        );
        let mut context = self.resources.context(self.now, &self.broker, &self.pending_writes, id);
        session.close(&mut context, &fault);
        self.write_client(id);
        self.close_at_turn_end(id);
    }
}
