//! The operator's socket: the few clients there may be at once.
//!
//! Always true: only root and the user the broker runs as get in, by the file's mode and by what the kernel
//! says of the peer; there are never more clients than [`CLIENTS_MAX`]; each has one reading, one step and
//! one writing a turn; who makes no progress for [`IDLE_MS`] is hung up on.

use std::io;

use crate::admin::scene::{Ends, Files, Orders, Process, Scene, SocketView, Sockets};
use crate::admin::talk::Talk;
use crate::command::ConnectionId;
use crate::limits::CONTROL_CLIENTS_MAX as CLIENTS_MAX;
use crate::log_limiter::{LogKind, LogLimiter};
use crate::store::Log;
use crate::time::{Deadline, Now};

use super::address::PeerAddress;
use super::listener::Listener;
use super::peer::{Ending, Peer, Waiting};
use super::platform::{Interest, ListenerId, Platform, Readiness, Socket, Visitor};
use super::state::Engine;

/// A client that neither says nor takes anything for so long is gone.
const IDLE_MS: u64 = 60_000;
/// Bytes taken from a client in one turn.
const READ_BYTES: usize = 16 << 10;

/// The socket and who is there.
pub(super) struct AdminSocket<S> {
    is_open: bool,
    /// Whether somebody may be waiting outside.
    pub(super) listener: Listener,
    clients: [Option<Client<S>>; CLIENTS_MAX],
    process: Process,
    own_uid: u32,
    orders: Orders,
    /// The client for whom the store's files are held still.
    holder: Option<usize>,
}

/// One client.
struct Client<S> {
    socket: S,
    talk: Talk,
    readable: bool,
    writable: bool,
    /// It will say nothing more; what it said is still answered.
    has_ended: bool,
    /// It has hung up.
    is_gone: bool,
    idle_at: Deadline,
}

impl<S: Socket> AdminSocket<S> {
    /// Nobody gets in yet.
    pub(super) fn closed(process: Process, own_uid: u32) -> Self {
        Self {
            is_open: false,
            listener: Listener::new(false),
            clients: [const { None }; CLIENTS_MAX],
            process,
            own_uid,
            orders: Orders::default(),
            holder: None,
        }
    }

    pub(super) fn note_readiness(&mut self, place: usize, seen: Readiness) {
        if let Some(client) = self.clients.get_mut(place).and_then(Option::as_mut) {
            client.readable |= seen.is_readable || seen.is_read_closed;
            client.writable |= seen.is_writable;
            client.is_gone |= seen.is_error || seen.is_read_closed && seen.is_write_closed;
        }
    }

    /// Whether a turn would get on here.
    pub(super) fn has_work(&self, is_crowded: bool) -> bool {
        self.may_let_in() && self.listener.is_ready()
            || self.clients.iter().flatten().any(|client| client.has_work(is_crowded))
    }

    pub(super) fn deadline(&self) -> Deadline {
        let idle = self.clients.iter().flatten().map(|client| client.idle_at);
        idle.fold(self.listener.deadline(), Deadline::earlier)
    }

    fn may_let_in(&self) -> bool {
        self.is_open && self.clients.iter().any(Option::is_none)
    }

    fn let_in(&mut self, platform: &mut impl Platform<Socket = S>, limiter: &mut LogLimiter, now: Now) {
        self.listener.keep_time(now);
        while self.is_open
            && self.listener.is_ready()
            && let Some(place) = self.clients.iter().position(Option::is_none)
        {
            match platform.accept(ListenerId::Admin, limiter, now) {
                Ok(visitor) => self.clients[place] = self.welcome(platform, visitor, place, limiter, now),
                Err(failure) => self.listener.note_failure(failure, now),
            }
        }
    }

    /// Lets somebody in who may come in.
    fn welcome(
        &self,
        platform: &mut impl Platform<Socket = S>,
        visitor: Visitor<S>,
        place: usize,
        limiter: &mut LogLimiter,
        now: Now,
    ) -> Option<Client<S>> {
        let Visitor { mut socket, address } = visitor;
        let ours = self.own_uid;
        match address {
            PeerAddress::Local { uid, .. } if uid == 0 || uid == ours => {}
            who => {
                let text = format_args!("leveret ctl is for root and user {ours} only, and not for {who}");
                limiter.warn(now, who.source(), LogKind::Control, text);
                return None;
            }
        }
        if let Err(error) = platform.register(&mut socket, Interest::Admin(place)) {
            let text = format_args!("a ctl client could not be set up: {error}");
            limiter.warn(now, address.source(), LogKind::Shortage, text);
            return None;
        }
        Some(Client {
            socket,
            talk: Talk::default(),
            readable: true,
            writable: true,
            has_ended: false,
            is_gone: false,
            idle_at: now.after_ms(IDLE_MS),
        })
    }
}

impl<S: Socket> Client<S> {
    fn has_work(&self, is_crowded: bool) -> bool {
        self.is_gone
            || self.is_done()
            || !is_crowded && self.talk.has_work()
            || self.readable && self.talk.room() > 0
            || self.writable && !self.talk.output().is_empty()
    }

    /// Whether everything is said, by us and by it.
    fn is_done(&self) -> bool {
        let is_answered = self.talk.output().is_empty() && !self.talk.has_work() && !self.talk.awaits_disk();
        self.talk.is_over() || self.has_ended && is_answered
    }

    /// Reads once; `false` when there is nobody any more.
    fn read(&mut self, buffer: &mut [u8], now: Now) -> bool {
        let most = self.talk.room().min(READ_BYTES).min(buffer.len());
        if !self.readable || most == 0 {
            return true;
        }
        match self.socket.read(&mut buffer[..most]) {
            Ok(0) => (self.readable, self.has_ended) = (false, true),
            Ok(count) => {
                self.talk.take(&buffer[..count]);
                self.idle_at = now.after_ms(IDLE_MS);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
        true
    }

    /// Writes once; `false` when there is nobody any more.
    fn write(&mut self, now: Now) -> bool {
        if !self.writable || self.talk.output().is_empty() {
            return true;
        }
        match self.socket.write(self.talk.output()) {
            Ok(count) => {
                self.talk.wrote(count);
                self.idle_at = now.after_ms(IDLE_MS);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
        true
    }
}

impl<P: Platform> Engine<P> {
    /// Lets the operator's clients in from now on.
    pub const fn open_admin_socket(&mut self) {
        self.admin.is_open = true;
    }

    /// What an operator is told of the configuration from now on.
    pub fn set_environment(&mut self, shown: String) {
        self.admin.process.environment = shown;
    }

    /// Serves the operator's clients: one reading, one step, one writing each.
    pub(super) fn serve_admin(&mut self) {
        self.admin.let_in(&mut self.platform, &mut self.supplies.log, self.now);
        for place in 0..CLIENTS_MAX {
            let Some(mut client) = self.admin.clients[place].take() else { continue };
            if self.serve_client(place, &mut client) {
                self.admin.clients[place] = Some(client);
                continue;
            }
            if self.admin.holder == Some(place) {
                self.admin.holder = None;
                if let Some(store) = &mut self.store {
                    store.log_mut().release_hold();
                }
            }
            self.platform.close(client.socket);
        }
        self.follow_orders();
    }

    /// `false`: it is over.
    fn serve_client(&mut self, place: usize, client: &mut Client<P::Socket>) -> bool {
        if client.is_gone || !client.read(&mut self.input, self.now) {
            return false;
        }
        if client.talk.awaits_disk() {
            client.idle_at = self.now.after_ms(IDLE_MS);
        }
        let process = &mut self.admin.process;
        process.uptime_ms = self.now.as_ms();
        process.connections = self.peers_count;
        let refusals = self.accept_queue.refusals;
        process.handshakes_evicted = refusals.evicted;
        process.newcomers_dropped = refusals.dropped + refusals.silent;
        process.is_store_damaged = self.store.as_mut().is_some_and(|store| store.log_mut().is_damaged());
        process.is_tls_shut = self.worker.is_tls_shut;
        process.waiting_publishers = self.for_room.len() as u32;
        let peers = Peers { peers: &self.peers, now: self.now, unix_ms: self.platform.unix_ms() };
        let holder = &mut self.admin.holder;
        let mut files = self.store.as_mut().map(|disk| Copied { log: disk.log_mut(), holder, place });
        let mut scene = Scene {
            broker: &mut self.broker,
            messages: &mut self.supplies.messages,
            sockets: &peers,
            process,
            files: files.as_mut().map(|files| files as &mut dyn Files),
            orders: &mut self.admin.orders,
        };
        // What is defined waits for the disk; no more of it until that has caught up.
        if !scene.broker.journal().is_crowded() {
            client.talk.step(&mut scene);
        }
        client.write(self.now) && !client.is_done() && !client.idle_at.is_due(self.now)
    }

    fn follow_orders(&mut self) {
        if core::mem::take(&mut self.admin.orders).stop {
            self.begin_stop("by leveret ctl");
        }
    }
}

/// The store's files for the client in a place.
struct Copied<'c> {
    log: &'c mut Log,
    holder: &'c mut Option<usize>,
    place: usize,
}

impl Files for Copied<'_> {
    fn hold(&mut self) -> Option<Vec<(u32, u32, u32)>> {
        if self.holder.is_some_and(|holder| holder != self.place) {
            return None;
        }
        let held = self.log.hold()?;
        *self.holder = Some(self.place);
        Some(held.iter().map(|file| (file.slot, file.bytes, file.length)).collect())
    }

    fn is_held(&self) -> bool {
        *self.holder == Some(self.place) && self.log.is_held()
    }

    fn release(&mut self) {
        if *self.holder == Some(self.place) {
            *self.holder = None;
            self.log.release_hold();
        }
    }
}

/// The peers as an operator is told of them.
struct Peers<'p, S> {
    peers: &'p [Option<Peer<S>>],
    now: Now,
    unix_ms: u64,
}

impl<S: Socket> Sockets for Peers<'_, S> {
    fn places(&self) -> usize {
        self.peers.len()
    }

    fn at(&self, connection: ConnectionId) -> Option<SocketView> {
        let peer = self.peers.get(connection.index())?.as_ref()?;
        let negotiated = peer.session.negotiated();
        let ends = match peer.address {
            PeerAddress::Local { pid, uid } => Ends::Local { pid, uid },
            PeerAddress::Network(other) => {
                Ends::Network { host: peer.stream.socket.local_address().unwrap_or(other), peer: other }
            }
        };
        Some(SocketView {
            number: peer.number,
            ends,
            is_tls: peer.stream.is_tls(),
            connected_at_ms: self.unix_ms.saturating_sub(self.now.ms_since(peer.since)),
            state: match (peer.ending, peer.waiting) {
                (Ending::No, Waiting::Room) => "blocked",
                (Ending::No, _) => "running",
                _ => "closing",
            },
            frame_max: negotiated.frame_max,
            channel_max: negotiated.channel_max,
            heartbeat_s: negotiated.heartbeat_ms / 1000,
        })
    }
}
