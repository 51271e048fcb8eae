//! The implementation of the server's platform with `mio` and threads.
//!
//! # Invariants
//! - Every socket has a unique token, from which its owner is known.
//! - A helper thread wakes the poll when it has a result.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use leveret_config::Config;
use leveret_core::flight::Event;
use leveret_core::limits::Limits;
use leveret_core::log_limiter::{LogKind, LogLimiter, LogSource};
use leveret_core::small_file;
use leveret_core::time::Now;
use leveret_management::request::Machine;
use leveret_server::{
    AcceptFailure, Accepted, CertificateState, FoundAddresses, ListenerId, NameLookup, PeerId, Platform,
    WorkerJob, WorkerResult,
};
use leveret_storage::{Read, ReadOutcome, Write, WriteDone};
use mio::{Interest, Poll, Token};

use super::disk::Threads;
use super::flight_recorder;
use super::helpers::{Helper, Resolver};
use super::listen::{
    self, FolderUse, Listener, ListenerAddress, ListenerProtocol, LocalListener, MANAGEMENT_LISTENERS_MAX,
    SpareDescriptor, failure_of,
};
use super::socket::{BufferSize, Socket, SocketBuffers};
use super::start::StartError;

/// The name of the control socket in the data directory.
pub const SOCKET_NAME: &str = "ctl.sock";
/// Maximum number of clients in the kernel's queue of the control socket.
const CONTROL_BACKLOG: i32 = 64;

/// The token of the pipe for SIGTERM and SIGINT.
pub(super) const SIGNAL: Token = Token(usize::MAX - 1);
/// The token of the helper threads.
pub(super) const HELPERS: Token = Token(usize::MAX - 2);
/// The token of the pipe for SIGHUP.
pub(super) const HANGUP: Token = Token(usize::MAX - 3);
/// The token of the first listener for MQTT; lower tokens are those of listeners for AMQP.
const FIRST_MQTT: usize = 1 << 15;
/// The token of the control socket's listener.
const CONTROL: usize = usize::MAX - 16;
/// The token of the first listener of the management API.
const FIRST_MANAGEMENT: usize = CONTROL - MANAGEMENT_LISTENERS_MAX;
/// The first token of a connection; lower tokens are those of listeners.
const FIRST_PEER: usize = 1 << 16;

/// The owner of a token.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum TokenOwner {
    Listener(ListenerId),
    Peer(PeerId),
}

/// Returns the owner of a socket's token.
pub(super) fn owner_of(Token(token): Token) -> TokenOwner {
    match token {
        CONTROL => TokenOwner::Listener(ListenerId::Control),
        token if (FIRST_MANAGEMENT..CONTROL).contains(&token) => {
            TokenOwner::Listener(ListenerId::Management(token - FIRST_MANAGEMENT))
        }
        token if token < FIRST_MQTT => TokenOwner::Listener(ListenerId::Amqp(token)),
        token if token < FIRST_PEER => TokenOwner::Listener(ListenerId::Mqtt(token - FIRST_MQTT)),
        token => TokenOwner::Peer(PeerId::from_index(token - FIRST_PEER)),
    }
}

/// Returns the token of a listener for AMQP or MQTT with this index; `amqp_count` of them are for AMQP.
pub(super) const fn client_token(place: usize, amqp_count: usize) -> Token {
    Token(if place < amqp_count { place } else { FIRST_MQTT + place - amqp_count })
}

/// Returns the token of a listener of the management API.
pub(super) const fn management_token(place: usize) -> Token {
    Token(FIRST_MANAGEMENT + place)
}

const fn token_of(peer: PeerId) -> Token {
    Token(FIRST_PEER + peer.index())
}

/// The platform of the server.
pub(super) struct System {
    pub(super) poll: Poll,
    /// Listeners for AMQP, followed by those for MQTT.
    pub(super) listeners: Vec<Listener>,
    /// Number of `listeners` that are for AMQP.
    amqp_count: usize,
    pub(super) management: Vec<Listener>,
    /// No certificate can be used, so listeners with TLS do not listen.
    pub(super) is_tls_unavailable: bool,
    control_listener: Option<LocalListener>,
    control_path: PathBuf,
    spare: SpareDescriptor,
    socket_buffers: SocketBuffers,
    limits: Limits,
    /// The disk threads, if there is a store.
    pub(super) disk: Option<Threads>,
    worker: Helper<WorkerJob, (WorkerResult, CertificateState)>,
    /// The name look-up, if there may be bridges.
    pub(super) resolver: Option<Resolver>,
}

/// The sockets that accept connections.
pub(super) struct ListeningSockets {
    /// Those for AMQP and MQTT.
    pub(super) listeners: Vec<Listener>,
    /// Those for the management API.
    pub(super) management: Vec<Listener>,
}

impl System {
    /// Returns whether a listener is closed because its address family, its interface or a certificate is missing.
    pub(super) fn has_closed_listener(&self) -> bool {
        self.is_tls_unavailable
            || self.listeners.iter().chain(&self.management).any(|listener| !listener.is_listening())
    }

    /// Makes the kernel accept connections at all listeners; at those with TLS only if there is a
    /// certificate.
    ///
    /// # Errors
    /// See [`Listener::listen`].
    pub(super) fn listen(&mut self) -> Result<(), StartError> {
        for listener in self.listeners.iter_mut().chain(&mut self.management) {
            match listener.with_tls && self.is_tls_unavailable {
                true if listener.is_listening() => log::error!(
                    "connections with TLS to {} are closed until the files of [tls] can be used",
                    listener.address
                ),
                true => log::error!(
                    "not listening with TLS on {} until the files of [tls] can be used",
                    listener.address
                ),
                false => listener.listen()?,
            }
        }
        Ok(())
    }

    /// Retries listeners that do not listen.
    pub(super) fn listen_again(&mut self) {
        let Self { poll, limits, is_tls_unavailable, amqp_count, .. } = self;
        for (place, listener) in self.listeners.iter_mut().enumerate() {
            listener.try_again(poll, client_token(place, *amqp_count), limits, *is_tls_unavailable);
        }
        for (place, listener) in self.management.iter_mut().enumerate() {
            listener.try_again(poll, management_token(place), limits, *is_tls_unavailable);
        }
    }

    pub(super) fn new(
        poll: Poll,
        sockets: ListeningSockets,
        worker: Helper<WorkerJob, (WorkerResult, CertificateState)>,
        config: &Config,
        limits: Limits,
    ) -> Self {
        let ListeningSockets { listeners, management } = sockets;
        Self {
            poll,
            socket_buffers: SocketBuffers::new(&limits, &listeners),
            amqp_count: listen::amqp_count(&listeners),
            listeners,
            management,
            is_tls_unavailable: false,
            control_listener: None,
            control_path: config.data_dir.join(SOCKET_NAME),
            spare: SpareDescriptor::new(),
            limits,
            disk: None,
            worker,
            resolver: None,
        }
    }

    /// Opens the control socket in the data directory, which this process has locked. If this fails, logs the
    /// reason and returns `false`; the broker runs without the control socket then.
    pub(super) fn open_control_listener(&mut self) -> bool {
        // The file mode permits only root and the broker's user to connect. In addition, the engine checks
        // the user of each client that the kernel reports.
        let opened = LocalListener::open(&self.control_path, FolderUse::Locked, 0o600, CONTROL_BACKLOG);
        match opened.and_then(|mut listener| listener.register(&self.poll, Token(CONTROL)).map(|()| listener))
        {
            Ok(listener) => self.control_listener = Some(listener),
            Err(error) => {
                let path = self.control_path.display();
                log::error!("leveret ctl cannot reach this broker, for there is no socket {path}: {error}");
            }
        }
        self.control_listener.is_some()
    }

    fn accept_control(&self, limiter: &mut LogLimiter, now: Now) -> Result<Accepted<Socket>, AcceptFailure> {
        let Some(listener) = &self.control_listener else { return Err(AcceptFailure::Empty) };
        listener.accept().map(|(socket, address)| Accepted { socket, address }).map_err(|error| {
            let failure = failure_of(&error);
            if failure == AcceptFailure::System {
                let text = format_args!("accepting on {} failed: {error}", self.control_path.display());
                limiter.warn(now, LogSource::Unknown, LogKind::Shortage, text);
            }
            failure
        })
    }

    fn threads(&mut self) -> &mut Threads {
        match &mut self.disk {
            Some(threads) => threads,
            None => unreachable!("a store comes with its threads"),
        }
    }

    fn give_back(&mut self, socket: &Socket) {
        self.socket_buffers.give_back(socket.buffer_size, &self.listeners);
    }
}

impl Platform for System {
    type Socket = Socket;

    fn accept(
        &mut self,
        listener: ListenerId,
        log: &mut LogLimiter,
        now: Now,
    ) -> Result<Accepted<Socket>, AcceptFailure> {
        match listener {
            ListenerId::Amqp(place) => self.listeners[place].accept(&mut self.spare, log, now),
            ListenerId::Mqtt(place) => {
                self.listeners[self.amqp_count + place].accept(&mut self.spare, log, now)
            }
            ListenerId::Control => self.accept_control(log, now),
            ListenerId::Management(place) => self.management[place].accept(&mut self.spare, log, now),
        }
    }

    fn register(&mut self, socket: &mut Socket, peer: PeerId) -> io::Result<()> {
        let token = token_of(peer);
        let both = Interest::READABLE | Interest::WRITABLE;
        if peer.connection().is_none() || socket.is_link {
            listen::prepare(socket, &self.limits, BufferSize::Uncounted)?;
            return socket.register(self.poll.registry(), token, both);
        }
        socket.buffer_size = self.socket_buffers.take(socket, &self.listeners);
        let prepared = listen::prepare(socket, &self.limits, socket.buffer_size)
            .and_then(|()| socket.register(self.poll.registry(), token, both));
        if prepared.is_err() {
            self.give_back(socket);
            socket.buffer_size = BufferSize::Uncounted;
        }
        prepared
    }

    fn connect(&mut self, address: SocketAddr) -> io::Result<Socket> {
        listen::connect(address, &self.limits)
    }

    fn start_lookup(&mut self, lookup: NameLookup) {
        match &mut self.resolver {
            Some(resolver) => resolver.give(lookup),
            None => unreachable!("where there are bridges there is somebody to look names up"),
        }
    }

    fn take_lookup(&mut self) -> Option<FoundAddresses> {
        self.resolver.as_mut()?.take()
    }

    fn close(&mut self, socket: Socket) {
        self.give_back(&socket);
        // The descriptor has no duplicate, so closing it also removes it from the poll.
        drop(socket);
    }

    fn stop_listening(&mut self) {
        self.listeners.clear();
        self.management.clear();
    }

    fn start_write(&mut self, job: Write) {
        self.threads().writer.give(job);
    }

    fn take_write_result(&mut self) -> Option<(WriteDone, u64)> {
        self.disk.as_mut()?.writer.take()
    }

    fn start_read(&mut self, job: Read) {
        self.threads().reader.give(job);
    }

    fn take_read_result(&mut self) -> Option<ReadOutcome> {
        self.disk.as_mut()?.reader.take()
    }

    fn start_work(&mut self, job: WorkerJob) {
        self.worker.give(job);
    }

    fn take_work_result(&mut self) -> Option<(WorkerResult, CertificateState)> {
        let worked = self.worker.take();
        if let Some((_, certificates)) = &worked
            && self.is_tls_unavailable
            && !certificates.is_unavailable
        {
            self.is_tls_unavailable = false;
            self.listen_again();
            for listener in
                self.listeners.iter().chain(&self.management).filter(|listener| listener.is_closed())
            {
                log::error!(
                    "not listening with TLS on {}: another program has the port; stop that program, or name \
                     another port; retried every {} s",
                    listener.address,
                    listen::LISTEN_AGAIN_MS / 1000
                );
            }
        }
        worked
    }

    fn machine(&self) -> Machine {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let files = std::fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count() as u64);
        let disk = self.control_path.parent().and_then(|folder| rustix::fs::statvfs(folder).ok());
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let heat = std::fs::read_to_string("/sys/class/thermal/thermal_zone0/temp").ok();
        Machine {
            has_no_inodes: disk.as_ref().is_some_and(|disk| disk.f_files > 0 && disk.f_favail == 0),
            cpu_ms: cpu_ms(&stat, rustix::param::clock_ticks_per_second()),
            temperature_mc: heat.and_then(|text| text.trim().parse().ok()),
            resident_bytes: status_bytes(&status, "VmRSS:"),
            resident_bytes_peak: status_bytes(&status, "VmHWM:"),
            files_open: files,
            files_max: rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(0),
            disk_free_bytes: disk.map_or(0, |disk| disk.f_bavail.saturating_mul(disk.f_frsize)),
        }
    }

    fn recorded_events(&self, after: u32, count: usize) -> Result<Vec<Event>, &str> {
        flight_recorder::events(after, count)
    }

    fn unix_ms(&self) -> u64 {
        unix_ms()
    }
}

/// Returns a size from the text of `/proc/PID/status`, in bytes; 0 if the text has none.
fn status_bytes(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// Returns the processor time of the process (user and system mode) in milliseconds, from the text of
/// `/proc/PID/stat`; 0 if the text has none.
fn cpu_ms(stat: &str, ticks_per_s: u64) -> u64 {
    // The name of the program is in parentheses and may contain spaces; utime and stime are fields 14 and 15.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks: u64 =
        fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    ticks * 1000 / ticks_per_s.max(1)
}

/// Returns the milliseconds since 1970 on the machine's clock.
pub(super) fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64)
}

/// Formats protocol and address of a listener.
pub(super) fn shown(listener: &Listener) -> String {
    let protocol = match (&listener.address, listener.protocol, listener.with_tls) {
        (ListenerAddress::Local(_), ..) => "amqp/local",
        (_, ListenerProtocol::Amqp, true) => "amqp/ssl",
        (_, ListenerProtocol::Amqp, false) => "amqp",
        (_, ListenerProtocol::Mqtt, true) => "mqtt/ssl",
        (_, ListenerProtocol::Mqtt, false) => "mqtt",
        (_, ListenerProtocol::Http, true) => "https",
        (_, ListenerProtocol::Http, false) => "http",
    };
    format!("{protocol} {}", listener.address)
}

/// Fills `bytes` with random bytes. Early in the boot of a board this may block for a moment. A failure ends
/// the process, because the broker cannot work without random bytes.
pub(super) fn entropy(bytes: &mut [u8]) {
    if let Err(error) = getrandom::fill(bytes) {
        panic!("the system returns no random bytes: {error}");
    }
}

/// The name of the file in the data directory with the state of the bridges, from which the next start
/// restores it.
const NAME: &str = "bridges";
/// Maximum length of the file in bytes.
const BYTES_MAX: u64 = 256 << 10;

/// Returns the text of the file; empty if it cannot be read.
pub(super) fn read(folder: &Path) -> String {
    small_file::read(&folder.join(NAME), BYTES_MAX).unwrap_or_default()
}

/// Replaces the file by one with this text.
///
/// # Errors
/// The error of the system.
pub(super) fn write(folder: &Path, text: &str) -> io::Result<()> {
    small_file::write(&folder.join(NAME), text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_read_behind_a_name_with_spaces() {
        let stat = "7 (a b) c) S 1 7 7 0 -1 4194304 1 0 0 0 250 50 0 0 20 0 6 0 1 2 3";
        assert_eq!((cpu_ms(stat, 100), cpu_ms("", 100)), (3_000, 0));
    }

    #[test]
    fn a_token_says_whose_it_is() {
        for peer in [0, 65_535].map(PeerId::from_index) {
            assert_eq!(owner_of(token_of(peer)), TokenOwner::Peer(peer));
        }
        assert_eq!(owner_of(client_token(3, 4)), TokenOwner::Listener(ListenerId::Amqp(3)));
        assert_eq!(owner_of(client_token(4, 4)), TokenOwner::Listener(ListenerId::Mqtt(0)));
        assert_eq!(owner_of(client_token(2, 0)), TokenOwner::Listener(ListenerId::Mqtt(2)));
        assert_eq!(owner_of(Token(CONTROL)), TokenOwner::Listener(ListenerId::Control));
        for place in [0, MANAGEMENT_LISTENERS_MAX - 1] {
            assert_eq!(
                owner_of(management_token(place)),
                TokenOwner::Listener(ListenerId::Management(place))
            );
        }
    }
}
