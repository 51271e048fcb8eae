//! The operator's clients: a kind of peer that the broker has no record of.
//!
//! ```text
//! read ─→ AdminSession::handle, one request ─→ its answer ┐
//!                  what waited for the disk, rows ┴─ AdminSession::fill ─→ write
//! ```
//!
//! Always true: only root and the user the broker runs as get in, by the file's mode and by what the kernel
//! says of the peer; there are never more clients than places apart; each has at most one reading, one
//! request and one writing a turn; who makes no progress for
//! a minute is hung up on.

use crate::admin::admin_session::AdminSession;
use crate::admin::columns::name_of;
use crate::admin::request_context::{Ends, Files, RequestContext, SocketView, Sockets, StoreView};
use crate::admin::samples::Outside;
use crate::command::ConnectionId;
use crate::limits::CONTROL_CLIENTS_MAX;
use crate::log_limiter::LogKind;
use crate::password::PasswordCheck;
use crate::store::Log;
use crate::time::{Deadline, Now};

use super::address::PeerAddress;
use super::admin_socket::{AdminConnection, IDLE_MS};
use super::bridges::ShownBridges;
use super::peer::{Ending, Peer, Session, Waiting};
use super::peer_id::PeerId;
use super::peers::Peers;
use super::platform::{Interest, ListenerId, Platform, Socket, Visitor};
use super::room_awaited::Need;
use super::state::Engine;
use super::stream::Reading;
use super::worker_job::CertificateState;

/// Bytes taken from a client in one turn.
const READ_BYTES: usize = 16 << 10;

impl<P: Platform> Engine<P> {
    /// Lets the operator's clients in from now on.
    pub const fn open_admin_socket(&mut self) {
        self.admin.is_open = true;
    }

    /// What an operator is told of the configuration from now on.
    pub fn set_environment(&mut self, shown: String) {
        self.admin.process.environment = shown;
    }

    /// Whether one of the operator's clients is there to be let in, and can be.
    pub(super) fn may_let_operator_in(&self) -> bool {
        self.admin.is_open && self.admin.listener.is_ready() && self.operator_place().is_some()
    }

    fn operator_place(&self) -> Option<PeerId> {
        self.peers.place_apart(0..CONTROL_CLIENTS_MAX)
    }

    pub(super) fn let_operators_in(&mut self) {
        self.admin.listener.keep_time(self.now);
        while self.may_let_operator_in()
            && let Some(id) = self.operator_place()
        {
            match self.platform.accept(ListenerId::Admin, &mut self.supplies.log, self.now) {
                Ok(visitor) => self.welcome_operator(id, visitor),
                Err(failure) => self.admin.listener.note_failure(failure, self.now),
            }
        }
    }

    /// Lets somebody in who may come in.
    fn welcome_operator(&mut self, id: PeerId, visitor: Visitor<P::Socket>) {
        let Visitor { mut socket, address } = visitor;
        let ours = self.admin.own_uid;
        match address {
            PeerAddress::Local { uid, .. } if uid == 0 || uid == ours => {}
            who => {
                let text = format_args!("leveret ctl is for root and user {ours} only, and not for {who}");
                return self.supplies.log.warn(self.now, who.source(), LogKind::Control, text);
            }
        }
        if let Err(error) = self.platform.register(&mut socket, Interest::Peer(id)) {
            let text = format_args!("a ctl client could not be set up: {error}");
            return self.supplies.log.warn(self.now, address.source(), LogKind::Shortage, text);
        }
        let client = AdminConnection::new(AdminSession::default(), self.now);
        self.lists.deadlines.lower(id, client.deadline());
        self.peers.put(id, Peer::new(socket, address, Session::Admin(client), self.now));
        self.lists.list_to_read(&self.peers, id);
    }

    /// Reads once, and handles one request.
    pub(super) fn read_operator(&mut self, id: PeerId) {
        let Some(Peer { stream, session: Session::Admin(client), address, .. }) = self.peers.get_mut(id)
        else {
            return;
        };
        let now = self.now;
        let room = client.session.room();
        let most = stream.reach(room.min(READ_BYTES)).min(self.scratch.input.len());
        if room > 0 {
            let got = stream.read(&mut self.buffers, &mut self.scratch.input[..most], Reading::Take);
            self.budget.note_read(got.len);
            self.budget.charge_records(stream.take_records());
            if stream.is_shaking_hands() {
                return self.shake_hands(id, got.end);
            }
            let taken = room.min(got.len);
            client.session.take(&self.scratch.input[..taken]);
            client.has_ended |= got.end && taken == got.len;
            if taken > 0 {
                client.note_progress(now);
            }
            client.keep_exchange_time(now);
            if !stream.keep(&mut self.buffers, &mut self.scratch.input, got.len, taken, taken < got.len)
                || stream.has_lost_record
            {
                let text = format_args!(
                    "{}: no room to keep the rest of its request; raise stash_bytes_max",
                    address
                );
                self.supplies.log.warn(now, address.source(), LogKind::Shortage, text);
                return self.lists.end_now(&mut self.peers, id);
            }
        }
        if client.session.has_request() {
            self.serve_operator(id, AdminSession::handle);
            self.budget.charge_work();
            if let Some(Peer { session: Session::Admin(client), .. }) = self.peers.get_mut(id) {
                client.keep_exchange_time(now);
            }
            // An answer that waits for the disk may have nothing to wait for: no commit would wake it.
            self.lists.list_to_write(id);
        }
        if let Some(Peer { session: Session::Admin(client), .. }) = self.peers.get_mut(id)
            && let Some(check) = client.session.take_check()
        {
            self.begin_management_login(id, check);
        }
        self.after_session(id);
    }

    /// Writes once: answers that waited, or rows of a listing, as much as the client takes.
    pub(super) fn write_operator(&mut self, id: PeerId) {
        self.serve_operator(id, AdminSession::fill);
        let Some(Peer { stream, session: Session::Admin(client), .. }) = self.peers.get_mut(id) else {
            return;
        };
        match stream.write(&mut self.buffers, client.session.output()) {
            Ok(count) => {
                client.session.wrote(count);
                if count > 0 {
                    client.note_progress(self.now);
                }
                client.keep_exchange_time(self.now);
                self.after_write(id, count);
            }
            Err(error) => self.lose_writing(id, &error),
        }
    }

    /// Ends an operator's client that has been still for long; one that waits for the disk waits for the broker.
    pub(super) fn call_operator(&mut self, id: PeerId) {
        let now = self.now;
        let Some(Peer { session: Session::Admin(client), waiting, .. }) = self.peers.get_mut(id) else {
            return;
        };
        let is_ours = client.session.awaits_disk() || client.session.waits();
        if is_ours || *waiting != Waiting::No {
            client.note_progress(now);
            client.exchange_at = Deadline::NEVER;
        } else if client.deadline().is_due(now) {
            return self.lists.end_now(&mut self.peers, id);
        }
        self.lists.deadlines.lower(id, client.deadline());
    }

    /// The broker may have done for a client what that waits for.
    pub(super) fn resume_operator(&mut self, id: PeerId) {
        let Some(Peer { session: Session::Admin(client), .. }) = self.peers.get(id) else { return };
        match client.session.is_held_up(&self.broker) {
            true => self.lists.for_jobs.push(id),
            false => self.lists.list_to_write(id),
        }
    }

    /// Counts for rates and histories, if it is time.
    #[cold]
    pub(super) fn take_sample(&mut self) {
        let now_ms = self.now.as_ms();
        if !self.admin.samples.is_due(now_ms) {
            return;
        }
        let counters = self.store.as_mut().map(|store| store.log_mut().counters()).unwrap_or_default();
        let outside = Outside {
            confirmed: self.supplies.pools.confirmed(),
            connections: (self.peers.connections_made(), self.peers.connections().into()),
            disk: (counters.bytes_written + counters.bytes_zeroed, counters.syncs),
        };
        self.admin.samples.take((now_ms, self.platform.unix_ms()), &self.broker, outside);
    }

    /// Has a client go on with all there is for it to look at.
    fn serve_operator(&mut self, id: PeerId, step: fn(&mut AdminSession, &mut RequestContext<'_>)) {
        // Out of its place for the while, for it may be shown who else is connected.
        let Some(Peer { session: Session::Admin(client), .. }) = self.peers.get_mut(id) else { return };
        let mut session = core::mem::take(&mut client.session);
        let process = &mut self.admin.process;
        if session.is_of_network() {
            process.machine = self.platform.machine();
        }
        process.uptime_ms = self.now.as_ms();
        process.connections = self.peers.connections();
        process.connections_made = self.peers.connections_made();
        process.confirmed = self.supplies.pools.confirmed();
        let refusals = self.doors.refusals();
        process.handshakes_evicted = refusals.evicted;
        process.newcomers_dropped = refusals.dropped + refusals.silent;
        process.is_store_damaged = self.store.as_mut().is_some_and(|store| store.log_mut().is_damaged());
        let CertificateState { is_shut, end_s } = self.worker.certificates;
        process.is_tls_shut = is_shut;
        process.certificates_end = (end_s > 0).then(|| (end_s, self.platform.unix_ms() / 1000));
        process.waiting_publishers = self.lists.for_room.len() as u32;
        let needs = self.lists.for_room.iter().filter_map(|id| self.peers.get(id)).map(|peer| peer.need);
        process.waiters = Need::most_awaited(needs, self.now);
        if let Some(store) = &mut self.store {
            let log = store.log_mut();
            let counters = log.counters();
            process.store = StoreView {
                written_bytes: counters.bytes_written + counters.bytes_zeroed,
                written_ever_bytes: log.written_ever(),
                syncs: counters.syncs,
                bytes_max: log.most_bytes(),
                room_bytes: log.room_bytes(),
            };
        }
        let held_before = self.admin.holder.is_some();
        let peers = Connections { peers: &self.peers, now: self.now, unix_ms: self.platform.unix_ms() };
        let disk_room = self.store.as_ref().map(|_| self.journal.disk_room());
        let unix_ms = self.platform.unix_ms();
        let bridges = ShownBridges { bridges: &self.bridges, disk_room, now: self.now, unix_ms };
        let holder = &mut self.admin.holder;
        let mut files = self.store.as_mut().map(|disk| Copied { log: disk.log_mut(), holder, client: id });
        let mut context = RequestContext {
            broker: &mut self.broker,
            journal: &mut self.journal,
            messages: &mut self.supplies.messages,
            work: &mut self.budget.work,
            sockets: &peers,
            bridges: &bridges,
            process,
            files: files.as_mut().map(|files| files as &mut dyn Files),
            orders: &mut self.admin.orders,
            tokens: &mut self.admin.tokens,
            samples: &self.admin.samples,
        };
        step(&mut session, &mut context);
        let is_released = held_before && self.admin.holder.is_none();
        if let Some(Peer { session: Session::Admin(client), .. }) = self.peers.get_mut(id) {
            client.session = session;
        }
        if is_released {
            self.recall_operators();
        }
    }

    /// Does what the operator wants of the loop itself.
    pub(super) fn follow_orders(&mut self) {
        let orders = core::mem::take(&mut self.admin.orders);
        if let Some((bridge, order)) = orders.bridge {
            self.order_bridge(&bridge, order);
        }
        if orders.stop {
            self.begin_stop("by leveret ctl");
        }
    }
}

/// The store's files for one client.
struct Copied<'c> {
    log: &'c mut Log,
    holder: &'c mut Option<PeerId>,
    client: PeerId,
}

impl Files for Copied<'_> {
    fn pin_for_backup(&mut self) -> Option<Vec<(u32, u32, u32)>> {
        if self.holder.is_some_and(|holder| holder != self.client) {
            return None;
        }
        let held = self.log.pin_for_backup()?;
        *self.holder = Some(self.client);
        Some(held.iter().map(|file| (file.slot, file.bytes, file.length)).collect())
    }

    fn is_pinned_for_backup(&self) -> bool {
        *self.holder == Some(self.client) && self.log.is_pinned_for_backup()
    }

    fn release(&mut self) {
        if *self.holder == Some(self.client) {
            *self.holder = None;
            self.log.release_backup_pin();
        }
    }
}

impl<P: Platform> Engine<P> {
    /// Names a connection for the firehose.
    #[cold]
    pub(super) fn name_traced(&mut self, connection: ConnectionId) {
        let peers = Connections { peers: &self.peers, now: self.now, unix_ms: 0 };
        if let Some(socket) = peers.at(connection) {
            self.broker.name_traced(connection, &name_of(&socket));
        }
    }

    // ---- logins

    /// Has a password checked that a request came with, unless it is known to be wrong.
    pub(super) fn begin_management_login(&mut self, id: PeerId, check: Box<PasswordCheck>) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        if self.worker.throttle.is_known_wrong(&check) {
            return self.answer_management_login(id, &check, false);
        }
        let ticket = self.worker.ticket();
        peer.waiting = Waiting::Worker(ticket);
        self.worker.throttle.enter(self.now, id, ticket, peer.address, check);
    }

    /// The password that a request came with has been checked: the request is looked at again.
    pub(super) fn answer_management_login(&mut self, id: PeerId, check: &PasswordCheck, is_right: bool) {
        let noted = self.broker.access_mut().note_checked(check, is_right);
        let Some(Peer { session: Session::Admin(client), address, .. }) = self.peers.get_mut(id) else {
            return;
        };
        if let Err(fault) = &noted {
            let text = format_args!("{address}: management login refused: {}", fault.text);
            self.supplies.log.warn(self.now, address.source(), LogKind::Login, text);
        }
        client.session.note_login(noted.is_ok());
        client.idle_at = self.now.after_ms(IDLE_MS);
        self.lists.deadlines.lower(id, client.idle_at);
        self.lists.resume(&mut self.peers, id);
    }
}

/// The broker's connections as an operator is told of them.
struct Connections<'p, S> {
    peers: &'p Peers<S>,
    now: Now,
    unix_ms: u64,
}

impl<S: Socket> Sockets for Connections<'_, S> {
    fn places(&self) -> usize {
        self.peers.connections_seen()
    }

    fn at(&self, connection: ConnectionId) -> Option<SocketView> {
        let peer = self.peers.get(connection)?;
        let Session::Amqp(session) = &peer.session else { return None };
        let negotiated = session.negotiated();
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
            mechanism: session.mechanism(),
            client: session.client(),
            received: (peer.traffic.received_bytes, peer.traffic.reads),
            sent: (peer.traffic.sent_bytes, peer.traffic.writes),
        })
    }
}
