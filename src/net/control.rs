//! The operator's socket: `data_dir/ctl.sock`, and the few clients there may be at once.
//!
//! Always true: only root and the user the broker runs as get in, by the file's mode and by what the kernel
//! says of the peer; there are never more clients than [`CLIENTS_MAX`]; each has one reading, one step and
//! one writing a turn; who makes no progress for [`IDLE_MS`] is hung up on.

use std::io::{self, Read, Write};
use std::path::{self, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use mio::{Interest, Poll, Token};

use crate::admin::scene::{Ends, Files, Orders, Process, Scene, SocketView, Sockets};
use crate::admin::talk::Talk;
use crate::command::ConnectionId;
use crate::config::Config;
use crate::limits::CONTROL_CLIENTS_MAX as CLIENTS_MAX;
use crate::log_limiter::{LogKind, LogLimiter, LogSource};
use crate::store::Log;
use crate::time::{Deadline, Now};

use super::house::House;
use super::listen::{Door, DoorAddress};
use super::local::{Folder, LocalDoor};
use super::peer::{Ending, Peer, Waiting};
use super::readiness::{AcceptFailure, Readiness};
use super::socket::{PeerAddress, Socket};

/// The socket's name in the data directory.
pub const SOCKET_NAME: &str = "ctl.sock";
/// Token of the door; those of the clients follow downwards.
const DOOR: usize = usize::MAX - 16;
/// A client that neither says nor takes anything for so long is gone.
const IDLE_MS: u64 = 60_000;
/// Clients that may wait outside.
const BACKLOG: i32 = 64;
/// Bytes taken from a client in one turn.
const READ_BYTES: usize = 16 << 10;

/// The socket and who is there.
pub(super) struct Control {
    door: Option<LocalDoor>,
    path: PathBuf,
    /// Whether somebody may be waiting outside.
    readiness: Readiness,
    clients: [Option<Client>; CLIENTS_MAX],
    process: Process,
    orders: Orders,
    /// The client for whom the store's files are held still.
    holder: Option<usize>,
}

/// One client.
struct Client {
    stream: Socket,
    talk: Talk,
    readable: bool,
    writable: bool,
    /// It will say nothing more; what it said is still answered.
    has_ended: bool,
    /// It has hung up.
    is_gone: bool,
    idle_at: Deadline,
}

impl Control {
    /// Nobody gets in yet.
    pub(super) fn closed(config: &Config) -> Self {
        Self {
            door: None,
            path: config.data_dir.join(SOCKET_NAME),
            readiness: Readiness::new(),
            clients: [const { None }; CLIENTS_MAX],
            process: process(config),
            orders: Orders::default(),
            holder: None,
        }
    }

    /// Listens in the data directory, which is ours by now. A broker that cannot is a broker without this
    /// socket, and says so.
    pub(super) fn open(&mut self, poll: &Poll, doors: &[Door]) {
        self.process.listeners = doors.iter().map(shown).collect();
        // Whoever comes in is asked who he is besides.
        let opened = LocalDoor::open(&self.path, Folder::Ours, 0o600, BACKLOG);
        match opened.and_then(|mut door| door.register(poll, Token(DOOR)).map(|()| door)) {
            Ok(door) => self.door = Some(door),
            Err(error) => {
                let path = self.path.display();
                log::error!("leveret ctl cannot reach this broker, for there is no socket {path}: {error}");
            }
        }
    }

    /// What an operator is told of the configuration from now on.
    pub(super) fn tell_config(&mut self, config: &Config) {
        self.process.environment = config.shown();
    }

    /// Whether the event is for a socket here.
    pub(super) fn takes(&mut self, event: &mio::event::Event) -> bool {
        let Some(place) = DOOR.checked_sub(event.token().0).filter(|place| *place <= CLIENTS_MAX) else {
            return false;
        };
        match place.checked_sub(1) {
            None => self.readiness.note_event(),
            Some(place) => {
                if let Some(client) = &mut self.clients[place] {
                    client.readable |= event.is_readable() || event.is_read_closed();
                    client.writable |= event.is_writable();
                    client.is_gone |= event.is_error() || event.is_read_closed() && event.is_write_closed();
                }
            }
        }
        true
    }

    /// Whether a turn would get on here.
    pub(super) fn has_work(&self, is_crowded: bool) -> bool {
        self.may_let_in() && self.readiness.is_ready()
            || self.clients.iter().flatten().any(|client| client.has_work(is_crowded))
    }

    pub(super) fn deadline(&self) -> Deadline {
        let idle = self.clients.iter().flatten().map(|client| client.idle_at);
        idle.fold(self.readiness.deadline(), Deadline::earlier)
    }

    fn may_let_in(&self) -> bool {
        self.door.is_some() && self.clients.iter().any(Option::is_none)
    }

    fn let_in(&mut self, poll: &Poll, limiter: &mut LogLimiter, now: Now) {
        self.readiness.keep_time(now);
        while self.readiness.is_ready()
            && let Some(place) = self.clients.iter().position(Option::is_none)
            && let Some(door) = &self.door
        {
            match door.accept() {
                Ok((stream, who)) => {
                    self.clients[place] = welcome(poll, stream, who, place, limiter, now);
                }
                Err(error) => {
                    if self.readiness.note_failure(&error, now) == AcceptFailure::System {
                        let text = format_args!("accepting on {} failed: {error}", self.path.display());
                        limiter.warn(now, LogSource::Anybody, LogKind::Shortage, text);
                    }
                }
            }
        }
    }
}

impl Client {
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
        match self.stream.read(&mut buffer[..most]) {
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
        match self.stream.write(self.talk.output()) {
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

impl House {
    /// Serves the operator's clients: one reading, one step, one writing each.
    pub(super) fn serve_control(&mut self) {
        self.control.let_in(&self.poll, &mut self.supplies.log, self.now);
        for place in 0..CLIENTS_MAX {
            let Some(mut client) = self.control.clients[place].take() else { continue };
            if self.serve_client(place, &mut client) {
                self.control.clients[place] = Some(client);
                continue;
            }
            if self.control.holder == Some(place) {
                self.control.holder = None;
                if let Some(disk) = &mut self.disk {
                    disk.log_mut().release_hold();
                }
            }
            if let Err(error) = self.poll.registry().deregister(&mut client.stream) {
                log::debug!("a ctl client: deregistering failed: {error}");
            }
        }
        self.follow_orders();
    }

    /// `false`: it is over.
    fn serve_client(&mut self, place: usize, client: &mut Client) -> bool {
        if client.is_gone || !client.read(&mut self.input, self.now) {
            return false;
        }
        if client.talk.awaits_disk() {
            client.idle_at = self.now.after_ms(IDLE_MS);
        }
        let process = &mut self.control.process;
        process.uptime_ms = self.now.as_ms();
        process.connections = self.peers_count;
        let refusals = self.accept_queue.refusals;
        process.handshakes_evicted = refusals.evicted;
        process.newcomers_dropped = refusals.dropped + refusals.silent;
        process.is_store_damaged = self.disk.as_mut().is_some_and(|disk| disk.log_mut().is_damaged());
        process.is_tls_shut = self.errands.is_tls_shut;
        process.waiting_publishers = self.for_room.len() as u32;
        let peers = Peers { peers: &self.peers, now: self.now };
        let holder = &mut self.control.holder;
        let mut files = self.disk.as_mut().map(|disk| Copied { log: disk.log_mut(), holder, place });
        let mut scene = Scene {
            broker: &mut self.broker,
            messages: &mut self.supplies.messages,
            sockets: &peers,
            process,
            files: files.as_mut().map(|files| files as &mut dyn Files),
            orders: &mut self.control.orders,
        };
        // What is defined waits for the disk; no more of it until that has caught up.
        if !scene.broker.journal().is_crowded() {
            client.talk.step(&mut scene);
        }
        client.write(self.now) && !client.is_done() && !client.idle_at.is_due(self.now)
    }

    fn follow_orders(&mut self) {
        if core::mem::take(&mut self.control.orders).stop {
            self.begin_stop("by leveret ctl");
        }
    }
}

/// Lets somebody in who may come in.
fn welcome(
    poll: &Poll,
    mut stream: Socket,
    who: PeerAddress,
    place: usize,
    limiter: &mut LogLimiter,
    now: Now,
) -> Option<Client> {
    let ours = rustix::process::geteuid().as_raw();
    match who {
        PeerAddress::Local { uid, .. } if uid == 0 || uid == ours => {}
        who => {
            let text = format_args!("leveret ctl is for root and user {ours} only, and not for {who}");
            limiter.warn(now, who.source(), LogKind::Control, text);
            return None;
        }
    }
    let token = Token(DOOR - 1 - place);
    if let Err(error) = poll.registry().register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)
    {
        let text = format_args!("a ctl client could not be set up: {error}");
        limiter.warn(now, who.source(), LogKind::Shortage, text);
        return None;
    }
    let idle_at = now.after_ms(IDLE_MS);
    Some(Client {
        stream,
        talk: Talk::default(),
        readable: true,
        writable: true,
        has_ended: false,
        is_gone: false,
        idle_at,
    })
}

/// What is spoken at a door, and where it is.
fn shown(door: &Door) -> String {
    let protocol = match (&door.address, door.with_tls) {
        (DoorAddress::Local(_), _) => "amqp/local",
        (DoorAddress::Network(_), true) => "amqp/ssl",
        (DoorAddress::Network(_), false) => "amqp",
    };
    format!("{protocol} {}", door.address)
}

fn process(config: &Config) -> Process {
    Process {
        environment: config.shown(),
        // It may not be there yet.
        data_dir: path::absolute(&config.data_dir)
            .unwrap_or_else(|_| config.data_dir.clone())
            .display()
            .to_string(),
        listeners: Vec::new(),
        product: (config.product.name.clone(), config.product.version.clone()),
        memory_limit_bytes: config.memory_limit_bytes,
        uptime_ms: 0,
        connections: 0,
        handshakes_evicted: 0,
        newcomers_dropped: 0,
        is_store_damaged: false,
        is_tls_shut: false,
        waiting_publishers: 0,
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
struct Peers<'p> {
    peers: &'p [Option<Peer>],
    now: Now,
}

impl Sockets for Peers<'_> {
    fn places(&self) -> usize {
        self.peers.len()
    }

    fn at(&self, connection: ConnectionId) -> Option<SocketView> {
        let peer = self.peers.get(connection.index())?.as_ref()?;
        let negotiated = peer.session.negotiated();
        let since_1970 =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64);
        let ends = match (&peer.stream.socket, peer.address) {
            (_, PeerAddress::Local { pid, uid }) => Ends::Local { pid, uid },
            (Socket::Tcp(socket), PeerAddress::Network(peer)) => {
                Ends::Network { host: socket.local_addr().unwrap_or(peer), peer }
            }
            (Socket::Unix(_), PeerAddress::Network(peer)) => Ends::Network { host: peer, peer },
        };
        Some(SocketView {
            number: peer.number,
            ends,
            is_tls: peer.stream.is_tls(),
            connected_at_ms: since_1970.saturating_sub(self.now.ms_since(peer.since)),
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
