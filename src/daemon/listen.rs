//! Listening and accepting, on the network and on Unix sockets.
//!
//! # Invariants
//! - When there is no free file descriptor, the next connection is accepted and closed, so that the event
//!   loop continues.
//! - The address of a socket passed by systemd must be in the configuration, which determines the protocol.
//!   Otherwise the start fails, because no client of such a socket would be served.

use core::fmt;
use std::fs::{self, File, Permissions};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use leveret_config::Config;
use leveret_config::units::ListenAddress;
use leveret_core::error::is_out_of_descriptors;
use leveret_core::limits::Limits;
use leveret_core::log_limiter::{LogKind, LogLimiter, LogSource};
use leveret_core::time::Now;
use leveret_server::{AcceptFailure, Accepted, PeerAddress};
use mio::net::{TcpListener, TcpStream, UnixListener};
use mio::{Interest, Poll, Token};
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid, chownat, fstat, open};
use rustix::io::Errno;
use rustix::net::netdevice::name_to_index;
use rustix::net::sockopt;
use rustix::process::geteuid;
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket as RawSocket, TcpKeepalive, Type};

use super::socket::{BufferSize, Socket, Stream};
use super::start::StartError;
use super::systemd;

/// Maximum number of listeners of the management API and for metrics.
pub(super) const MANAGEMENT_LISTENERS_MAX: usize = 16;
/// Interval at which an address is retried whose address family, interface or certificate is missing, in
/// milliseconds.
pub(super) const LISTEN_AGAIN_MS: u64 = 2_000;
/// Maximum number of connections in the kernel's queue of a listener.
const BACKLOG: i32 = 1024;
/// Maximum number of bytes that the kernel accepts from a bridge and has not sent yet. They take two seconds
/// at 64 kbit/s, and suffice for a fast link between two turns.
const UNSENT_BYTES_MAX: u32 = 16 << 10;
/// Idle time after which the kernel sends keepalive probes to a peer, and the interval between probes.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// A peer that acknowledges no probe, or no data, for this time is disconnected; for consumer_stall_timeout
/// if that is longer. The time is long because the kernel cannot distinguish an unreachable peer from a
/// program that does not read for minutes. Heartbeats detect unreachable peers sooner.
const USER_TIMEOUT: Duration = Duration::from_secs(600);

/// The protocol of a listener.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ListenerProtocol {
    Amqp,
    Mqtt,
    /// The management API and metrics.
    Http,
}

/// A configured address to listen on.
#[derive(Clone, Copy, Debug)]
pub(super) struct WantedListener {
    listen: ListenAddress,
    protocol: ListenerProtocol,
    with_tls: bool,
}

/// One listening socket.
#[derive(Debug)]
pub(super) struct Listener {
    listener: ListeningSocket,
    /// The address as shown in the log.
    pub(super) address: ListenerAddress,
    pub(super) protocol: ListenerProtocol,
    /// Clients use TLS.
    pub(super) with_tls: bool,
    /// The kernel accepts connections. A listener with TLS does not listen while there is no certificate.
    is_listening: bool,
}

#[derive(Debug)]
enum ListeningSocket {
    Tcp(TcpListener),
    Local(LocalListener),
    /// There is no socket, because the address family or the interface is missing.
    Absent(ListenAddress),
}

/// The address of a listener.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum ListenerAddress {
    /// A network address.
    Network(SocketAddr),
    /// An address on an interface, as configured.
    Interface(ListenAddress),
    /// A Unix socket.
    Local(PathBuf),
}

impl fmt::Display for ListenerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(address) => address.fmt(f),
            Self::Interface(listen) => listen.fmt(f),
            Self::Local(path) => path.display().fmt(f),
        }
    }
}

impl ListeningSocket {
    fn accept(&self) -> io::Result<(Socket, PeerAddress)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, address) = listener.accept()?;
                Ok((Socket::new(Stream::Tcp(stream)), PeerAddress::Network(address)))
            }
            Self::Local(listener) => listener.accept(),
            Self::Absent(_) => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

impl Listener {
    /// Binds to an address without accepting connections yet; port 0 stands for any free port. Options are
    /// set on the listening socket, because accepted connections inherit them. This saves system calls for
    /// each connection.
    fn open(wanted: WantedListener, limits: &Limits, passed: &mut Passed) -> io::Result<Self> {
        let WantedListener { listen, protocol, with_tls } = wanted;
        let address = address_with_scope(listen)?;
        let (socket, is_listening) = match passed.take(address) {
            Some(socket) => (socket, true),
            None => (bound(ListenAddress { socket: address, ..listen })?, false),
        };
        socket.set_nonblocking(true)?;
        set_options(&socket, limits)?;
        let listener = TcpListener::from_std(socket.into());
        let socket = listener.local_addr()?;
        let address = match listen.zone {
            Some(_) => ListenerAddress::Interface(ListenAddress { socket, ..listen }),
            None => ListenerAddress::Network(socket),
        };
        Ok(Self { listener: ListeningSocket::Tcp(listener), address, protocol, with_tls, is_listening })
    }

    /// Opens a listener. If the address family or interface is missing, or an optional address cannot be used, returns
    /// one without a socket, which is retried later.
    ///
    /// # Errors
    /// Any other error of the system.
    fn open_or_wait(wanted: WantedListener, limits: &Limits, passed: &mut Passed) -> io::Result<Self> {
        let WantedListener { listen, protocol, with_tls } = wanted;
        match Self::open(wanted, limits, passed) {
            Err(error) if listen.if_available || is_absent(&error) => {
                let is_in_use = error.kind() == io::ErrorKind::AddrInUse;
                // Many machines have no IPv6: that is no problem for an optional address.
                let level =
                    if listen.if_available && !is_in_use { log::Level::Info } else { log::Level::Warn };
                log::log!(
                    level,
                    "not listening on {listen} now: {}; retried every {} s; the other listeners work",
                    why_absent(&error),
                    LISTEN_AGAIN_MS / 1000
                );
                let address = ListenerAddress::Interface(listen);
                let listener = ListeningSocket::Absent(listen);
                Ok(Self { listener, address, protocol, with_tls, is_listening: false })
            }
            opened => opened,
        }
    }

    /// Makes the kernel accept connections. This is the last step of the start: when a script can connect,
    /// everything else works too, including `leveret ctl`.
    ///
    /// # Errors
    /// Another program listens on the address.
    pub(super) fn listen(&mut self) -> Result<(), StartError> {
        match (&self.listener, &self.address) {
            (ListeningSocket::Absent(_), _) => return Ok(()),
            (ListeningSocket::Local(listener), _) => listener
                .listen(BACKLOG)
                .map_err(|why| StartError::ListenLocal(listener.path().to_path_buf(), why))?,
            (ListeningSocket::Tcp(listener), address) => {
                SockRef::from(listener).listen(BACKLOG).map_err(|why| {
                    let listen = match address {
                        ListenerAddress::Network(address) => ListenAddress::required(*address),
                        ListenerAddress::Interface(listen) => *listen,
                        ListenerAddress::Local(path) => return StartError::ListenLocal(path.clone(), why),
                    };
                    StartError::Listen(listen, why)
                })?;
            }
        }
        self.is_listening = true;
        Ok(())
    }

    /// Logs that clients can connect to this address.
    pub(super) fn log_open(&self) {
        let with_tls = if self.with_tls { "with TLS " } else { "" };
        log::info!("listening {with_tls}on {}{}", self.address, self.log_suffix());
    }

    /// Returns what follows the address in log lines: the protocol, unless it is AMQP.
    const fn log_suffix(&self) -> &'static str {
        match self.protocol {
            ListenerProtocol::Mqtt => " for MQTT",
            ListenerProtocol::Amqp | ListenerProtocol::Http => "",
        }
    }

    /// Returns whether the kernel accepts connections.
    pub(super) const fn is_listening(&self) -> bool {
        self.is_listening
    }

    /// Returns whether the socket is bound to its address but does not accept connections yet.
    pub(super) const fn is_closed(&self) -> bool {
        !self.is_listening && !matches!(self.listener, ListeningSocket::Absent(_))
    }

    /// Retries listening: the missing address family or interface may exist now, or the port may be free now.
    /// With `is_tls_unavailable` an address with TLS is not retried, because no certificate can be used.
    pub(super) fn try_again(&mut self, poll: &Poll, token: Token, limits: &Limits, is_tls_unavailable: bool) {
        if self.with_tls && is_tls_unavailable {
            return;
        }
        if self.is_closed() && self.listen().is_ok() {
            return self.log_open();
        }
        let ListeningSocket::Absent(listen) = self.listener else { return };
        let wanted = WantedListener { listen, protocol: self.protocol, with_tls: self.with_tls };
        let opened = Self::open(wanted, limits, &mut Passed(Vec::new())).and_then(|mut opened| {
            opened.listen().map_err(io::Error::other)?;
            opened.register(poll, token)?;
            Ok(opened)
        });
        match opened {
            Ok(opened) => {
                *self = opened;
                log::info!("listening on {}{} now", self.address, self.log_suffix());
            }
            Err(error) => log::debug!("still not listening on {listen}: {error}"),
        }
    }

    fn register(&mut self, poll: &Poll, token: Token) -> io::Result<()> {
        match &mut self.listener {
            ListeningSocket::Tcp(listener) => poll.registry().register(listener, token, Interest::READABLE),
            ListeningSocket::Local(listener) => listener.register(poll, token),
            ListeningSocket::Absent(_) => Ok(()),
        }
    }

    /// Limits the segment size of future connections to `bytes`; 0 for no limit.
    pub(super) fn limit_segments(&self, bytes: u32) {
        if let ListeningSocket::Tcp(listener) = &self.listener
            && let Err(error) = SockRef::from(listener).set_tcp_mss(bytes)
        {
            log::debug!("{}: segments cannot be limited to {bytes} bytes: {error}", self.address);
        }
    }

    /// Accepts the next connection.
    pub(super) fn accept(
        &mut self,
        spare: &mut SpareDescriptor,
        limiter: &mut LogLimiter,
        now: Now,
    ) -> Result<Accepted<Socket>, AcceptFailure> {
        if !self.is_listening {
            // epoll reports an event (a hang-up) for a TCP socket that does not listen.
            return Err(AcceptFailure::Empty);
        }
        let error = match self.listener.accept() {
            Ok((socket, address)) => return Ok(Accepted { socket, address }),
            Err(error) => error,
        };
        if is_out_of_descriptors(&error) {
            let hint = "raise the limit (LimitNOFILE)";
            let text = format_args!("no file descriptor for a new connection ({error}): {hint}");
            limiter.warn(now, LogSource::Unknown, LogKind::Shortage, text);
            // This is logged even if no connection waits, because that is not known here.
            let turned_away = spare.accept_and_close(&self.listener);
            return Err(turned_away.map_or_else(|error| failure_of(&error), |()| AcceptFailure::Connection));
        }
        let failure = failure_of(&error);
        if failure == AcceptFailure::System {
            let text = format_args!("accepting on {} failed: {error}", self.address);
            limiter.warn(now, LogSource::Unknown, LogKind::Shortage, text);
        }
        Err(failure)
    }
}

/// The sockets that systemd passed to this process.
pub(super) struct Passed(Vec<RawSocket>);

impl Passed {
    /// # Errors
    /// The environment variables are invalid.
    pub(super) fn take_from_systemd() -> Result<Self, StartError> {
        let failed = |error| StartError::System("take over leveret.socket", io::Error::other(error));
        let sockets = systemd::passed_sockets().map_err(failed)?;
        Ok(Self(sockets.into_iter().map(RawSocket::from).collect()))
    }

    /// Removes and returns the socket with this address.
    fn take(&mut self, address: SocketAddr) -> Option<RawSocket> {
        let is_it = |socket: &RawSocket| address_of(socket) == Some(address);
        self.0.iter().position(is_it).map(|place| self.0.swap_remove(place))
    }

    /// # Errors
    /// There is a socket left whose address is not in the configuration.
    pub(super) fn check_none_left(self) -> Result<(), StartError> {
        self.0.first().map_or(Ok(()), |socket| Err(StartError::Passed(address_of(socket))))
    }
}

/// Returns the network address to which a socket is bound; `None` for a Unix socket.
fn address_of(socket: &RawSocket) -> Option<SocketAddr> {
    socket.local_addr().ok()?.as_socket()
}

/// Returns the socket address, with the number of its interface if it has one.
///
/// # Errors
/// There is no such interface now.
fn address_with_scope(listen: ListenAddress) -> io::Result<SocketAddr> {
    let mut address = listen.socket;
    if let (Some(zone), SocketAddr::V6(address)) = (listen.zone, &mut address) {
        let socket = RawSocket::new(Domain::IPV6, Type::DGRAM, None)?;
        address.set_scope_id(name_to_index(&socket, zone.name())?);
    }
    Ok(address)
}

/// Returns whether an error means that the kernel does not have the address family or the interface.
fn is_absent(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::AFNOSUPPORT | Errno::NODEV))
}

fn why_absent(error: &io::Error) -> &'static str {
    match Errno::from_io_error(error) {
        Some(Errno::NODEV) => "there is no such interface",
        Some(Errno::ADDRINUSE) => "another program has the port: stop it, or name another address",
        Some(Errno::ADDRNOTAVAIL) => "no interface has this address",
        _ => "the kernel has no such address family (is it booted with ipv6.disable=1?)",
    }
}

/// Returns a new socket that is bound to an address.
fn bound(listen: ListenAddress) -> io::Result<RawSocket> {
    let address = listen.socket;
    let socket = RawSocket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // So that listeners for 0.0.0.0 and :: do not conflict.
        socket.set_only_v6(true)?;
    }
    bind(&socket, listen)?;
    Ok(socket)
}

/// Binds to an address. No interface need have the address yet, because the broker may start before the
/// network.
fn bind(socket: &RawSocket, listen: ListenAddress) -> io::Result<()> {
    let address = listen.socket;
    match socket.bind(&address.into()) {
        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable && !listen.if_available => {
            match address {
                SocketAddr::V4(_) => sockopt::set_ip_freebind(socket, true)?,
                SocketAddr::V6(_) => sockopt::set_ipv6_freebind(socket, true)?,
            }
            socket.bind(&address.into())?;
            log::warn!(
                "no interface has the address of {address} now: connections are accepted as soon as one has it; \
                 check the address"
            );
            Ok(())
        }
        done => done,
    }
}

/// Returns the addresses to listen on for AMQP, then those for MQTT; of each protocol those without TLS come first.
///
/// # Errors
/// There is neither an address nor a Unix socket, or an address occurs twice.
pub(super) fn wanted(config: &Config) -> Result<Vec<WantedListener>, StartError> {
    let wanted =
        |protocol, with_tls| move |listen: ListenAddress| WantedListener { listen, protocol, with_tls };
    let amqp = config.listen.iter().copied().map(wanted(ListenerProtocol::Amqp, false));
    let amqp_tls = config.listen_tls.iter().map(|listen| listen.0).map(wanted(ListenerProtocol::Amqp, true));
    let mqtt = config.mqtt.iter().map(|listen| listen.0).map(wanted(ListenerProtocol::Mqtt, false));
    let mqtt_tls = config.mqtt_tls.iter().map(|listen| listen.0).map(wanted(ListenerProtocol::Mqtt, true));
    let wanted: Vec<_> = amqp.chain(amqp_tls).chain(mqtt).chain(mqtt_tls).collect();
    if wanted.is_empty() && config.unix.path.is_none() {
        return Err(StartError::NowhereToListen);
    }
    for (at, WantedListener { listen, .. }) in wanted.iter().enumerate() {
        let is_same =
            |other: &WantedListener| (other.listen.socket, other.listen.zone) == (listen.socket, listen.zone);
        if listen.socket.port() != 0 && wanted[..at].iter().any(is_same) {
            return Err(StartError::ListenTwice(*listen));
        }
    }
    Ok(wanted)
}

/// Returns how many of these listeners are for AMQP; those for MQTT come after them.
pub(super) fn amqp_count(listeners: &[Listener]) -> usize {
    listeners.partition_point(|listener| listener.protocol == ListenerProtocol::Amqp)
}

/// Opens all listeners for AMQP, then those for MQTT. Of each protocol, those without TLS come first. Optional
/// addresses that are missing are left out. `token` returns a listener's token from its index and the number of
/// listeners for AMQP.
pub(super) fn open_listeners(
    poll: &mut Poll,
    config: &Config,
    token: fn(usize, usize) -> Token,
    passed: &mut Passed,
) -> Result<Vec<Listener>, StartError> {
    let mut listeners: Vec<Listener> = Vec::new();
    for wanted in wanted(config)? {
        let listen = wanted.listen;
        if listen.if_available {
            match Listener::open(wanted, &config.limits, passed) {
                Ok(listener) => listeners.push(listener),
                Err(error) => log::info!("not listening on {listen}: {error}"),
            }
            continue;
        }
        let opened = Listener::open_or_wait(wanted, &config.limits, passed);
        listeners.push(opened.map_err(|error| StartError::Listen(listen, error))?);
    }
    if let Some(path) = &config.unix.path {
        let listener = LocalListener::bind(path, FolderUse::Shared, config.unix.mode.0);
        let listener =
            listener.map(ListeningSocket::Local).map_err(|why| StartError::ListenLocal(path.clone(), why))?;
        let listener = Listener {
            listener,
            address: ListenerAddress::Local(path.clone()),
            protocol: ListenerProtocol::Amqp,
            with_tls: false,
            is_listening: false,
        };
        listeners.insert(amqp_count(&listeners), listener);
    }
    let amqp_count = amqp_count(&listeners);
    for (place, listener) in listeners.iter_mut().enumerate() {
        let failed = |error| StartError::System("wait for connections", error);
        listener.register(poll, token(place, amqp_count)).map_err(failed)?;
    }
    if listeners.is_empty() { Err(StartError::NowhereToListen) } else { Ok(listeners) }
}

/// Opens the listeners of the management API without TLS, then those with TLS, then those for metrics.
pub(super) fn open_management(
    poll: &Poll,
    config: &Config,
    token: fn(usize) -> Token,
    passed: &mut Passed,
) -> Result<Vec<Listener>, StartError> {
    let mut listeners: Vec<Listener> = Vec::new();
    let wanted = [(&config.management, false), (&config.management_tls, true), (&config.metrics, false)];
    let wanted =
        wanted.into_iter().flat_map(|(listen, with_tls)| listen.iter().map(move |at| (at, with_tls)));
    if wanted.clone().count() > MANAGEMENT_LISTENERS_MAX {
        let why = io::Error::other("there may be 16 of them");
        return Err(StartError::System("listen on so many addresses of management and metrics", why));
    }
    for (listen, with_tls) in wanted {
        // A listener without a socket keeps its place in the list, because listeners are identified by their
        // place.
        let wanted = WantedListener { listen: *listen, protocol: ListenerProtocol::Http, with_tls };
        let opened = Listener::open_or_wait(wanted, &config.limits, passed);
        let mut listener = opened.map_err(|error| StartError::Listen(*listen, error))?;
        let failed = |error| StartError::System("wait for connections", error);
        listener.register(poll, token(listeners.len())).map_err(failed)?;
        listeners.push(listener);
    }
    Ok(listeners)
}

/// A spare file descriptor. When there is no other, it is used to accept a connection and close it at once.
/// Otherwise the connection would stay in the queue and wake the event loop again and again.
#[derive(Debug)]
pub(super) struct SpareDescriptor(Option<File>);

impl SpareDescriptor {
    pub(super) fn new() -> Self {
        Self(File::open("/dev/null").ok())
    }

    /// # Errors
    /// No connection waits, or there is no spare descriptor.
    fn accept_and_close(&mut self, listener: &ListeningSocket) -> io::Result<()> {
        drop(self.0.take());
        let accepted = listener.accept().map(drop);
        *self = Self::new();
        accepted
    }
}

/// Sets the kernel buffers of a new connection.
pub(super) fn prepare(socket: &Socket, limits: &Limits, size: BufferSize) -> io::Result<()> {
    match &socket.stream {
        Stream::Tcp(stream) => size.set(&SockRef::from(stream), limits),
        Stream::Unix(stream) => size.set(&SockRef::from(stream), limits),
    }
}

/// Begins to connect to an upstream.
pub(super) fn connect(address: SocketAddr, limits: &Limits) -> io::Result<Socket> {
    let socket = RawSocket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    set_options(&socket, limits)?;
    limit_unsent(&socket)?;
    match socket.connect(&address.into()) {
        Err(error) if Errno::from_io_error(&error) != Some(Errno::INPROGRESS) => return Err(error),
        _ => {}
    }
    let mut socket = Socket::new(Stream::Tcp(TcpStream::from_std(socket.into())));
    socket.is_link = true;
    Ok(socket)
}

/// Limits the amount of unsent data in the kernel. The bridge cannot put urgent data before it, and does not
/// know how much it is.
fn limit_unsent(socket: &RawSocket) -> io::Result<()> {
    socket.set_tcp_notsent_lowat(UNSENT_BYTES_MAX)
}

/// Sets the options of a socket: no delay of small writes, because the event loop collects them, and
/// detection of unreachable peers.
fn set_options(socket: &RawSocket, limits: &Limits) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_AFTER).with_interval(KEEPALIVE_INTERVAL);
    socket.set_tcp_keepalive(&keepalive)?;
    if limits.consumer_stall_timeout_ms == 0 {
        return Ok(());
    }
    // A little longer than the server's own timeout, so that the server can close the connection with a
    // reason first.
    let stall = Duration::from_millis(limits.consumer_stall_timeout_ms.into());
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT.max(stall) + Duration::from_secs(5)))
}

/// Converts an error of accept(). On Linux it may be an error of the accepted connection, which is then
/// removed from the queue.
pub(super) fn failure_of(error: &io::Error) -> AcceptFailure {
    match Errno::from_io_error(error) {
        Some(Errno::WOULDBLOCK) => AcceptFailure::Empty,
        Some(
            Errno::INTR
            | Errno::CONNABORTED
            | Errno::CONNRESET
            | Errno::TIMEDOUT
            | Errno::PROTO
            | Errno::NOPROTOOPT
            | Errno::NETDOWN
            | Errno::NETUNREACH
            | Errno::HOSTDOWN
            | Errno::HOSTUNREACH
            | Errno::NONET,
        ) => AcceptFailure::Connection,
        _ => AcceptFailure::System,
    }
}

/// Which processes may use the folder of a Unix socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum FolderUse {
    /// Any process may listen there.
    Shared,
    /// Only this process, because it has locked the folder.
    Locked,
}

/// A listening Unix socket.
///
/// # Invariants
/// - A stale socket, on which no process listens, is replaced. A socket on which another process listens, and
///   a file that is not a socket, are never removed. The broker's own socket is removed at the end.
/// - In a folder that this process has locked, no other process listens. A socket there to which this process
///   may not connect is stale and belongs to another user.
/// - If root creates a socket in a folder that belongs to another user, the socket is given to that user. The
///   broker can then run as that user later.
#[derive(Debug)]
pub(super) struct LocalListener {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode number of the socket's file, to recognise it before it is removed.
    file: (u64, u64),
}

impl LocalListener {
    /// Creates the socket and listens. Clients may connect if they may write to a file with this mode.
    pub(super) fn open(path: &Path, folder: FolderUse, mode: u32, backlog: i32) -> io::Result<Self> {
        let bound = Self::bind(path, folder, mode)?;
        bound.listen(backlog).map(|()| bound)
    }

    /// Makes the kernel accept connections.
    pub(super) fn listen(&self, backlog: i32) -> io::Result<()> {
        SockRef::from(&self.listener).listen(backlog)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Creates the socket, which accepts no connections yet.
    pub(super) fn bind(path: &Path, folder: FolderUse, mode: u32) -> io::Result<Self> {
        remove_stale(path, folder)?;
        let socket = RawSocket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.bind(&SockAddr::unix(path)?)?;
        fs::set_permissions(path, Permissions::from_mode(mode))?;
        if folder == FolderUse::Locked {
            give_to_owner(path)?;
        }
        let found = fs::symlink_metadata(path)?;
        let listener = UnixListener::from_std(socket.into());
        Ok(Self { listener, path: path.to_path_buf(), file: (found.dev(), found.ino()) })
    }

    pub(super) fn register(&mut self, poll: &Poll, token: Token) -> io::Result<()> {
        poll.registry().register(&mut self.listener, token, Interest::READABLE)
    }

    pub(super) fn accept(&self) -> io::Result<(Socket, PeerAddress)> {
        let (stream, _) = self.listener.accept()?;
        // The process id is 0 if the client is in another process namespace, for example in a container.
        let who = getsockopt(&stream, PeerCredentials)?;
        let address = PeerAddress::Local { pid: who.pid(), uid: who.uid() };
        Ok((Socket::new(Stream::Unix(stream)), address))
    }
}

impl Drop for LocalListener {
    fn drop(&mut self) {
        let is_ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|found| found.file_type().is_socket() && (found.dev(), found.ino()) == self.file);
        if is_ours && let Err(error) = fs::remove_file(&self.path) {
            log::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// If root has created a socket in a folder that belongs to another user, gives it to that user. The change
/// is made over a descriptor, so that the owner of the folder cannot redirect it to another file.
fn give_to_owner(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let owner = fs::metadata(folder.unwrap_or(Path::new(".")))?;
    if !geteuid().is_root() || owner.uid() == 0 {
        return Ok(());
    }
    let made = open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let found = fstat(&made)?;
    let is_socket = FileType::from_raw_mode(found.st_mode) == FileType::Socket;
    if is_socket && found.st_uid == 0 && found.st_nlink == 1 {
        let (user, group) = (Uid::from_raw(owner.uid()), Gid::from_raw(owner.gid()));
        chownat(&made, "", Some(user), Some(group), AtFlags::EMPTY_PATH)?;
    }
    Ok(())
}

/// Removes a stale socket.
fn remove_stale(path: &Path, folder: FolderUse) -> io::Result<()> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !found.file_type().is_socket() {
        return Err(io::Error::other("a file of that name exists, and it is not a socket"));
    }
    let probe = RawSocket::new(Domain::UNIX, Type::STREAM, None)?;
    probe.set_nonblocking(true)?;
    match probe.connect(&SockAddr::unix(path)?) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && folder == FolderUse::Locked => {
            fs::remove_file(path)
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(error),
        _ => Err(io::Error::other("another program listens there")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_in_has_the_options_of_the_door() {
        let limits = Limits::default();
        let wanted = WantedListener {
            listen: "127.0.0.1:0".parse().unwrap(),
            protocol: ListenerProtocol::Amqp,
            with_tls: false,
        };
        let mut listener = Listener::open(wanted, &limits, &mut Passed(Vec::new())).unwrap();
        listener.listen().unwrap();
        let ListenerAddress::Network(address) = listener.address else { panic!("it is one of the network") };
        let _client = std::net::TcpStream::connect(address).unwrap();
        let (socket, _) = listener.listener.accept().unwrap();
        let Stream::Tcp(stream) = &socket.stream else { panic!("it is one of the network") };
        let socket = SockRef::from(stream);
        assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
        let times = (socket.tcp_keepalive_time().unwrap(), socket.tcp_keepalive_interval().unwrap());
        assert_eq!(times, (KEEPALIVE_AFTER, KEEPALIVE_INTERVAL));
        assert!(socket.tcp_user_timeout().unwrap() >= Some(USER_TIMEOUT));
    }

    #[test]
    fn addresses_for_mqtt_come_after_those_for_amqp_and_differ_from_them() {
        let config =
            |text: &str| Config::gather(None, leveret_config::Layer::parse("", text).unwrap()).unwrap();
        let wanted_by = |text: &str| {
            wanted(&config(text)).map(|wanted| {
                let shown = wanted.iter().map(|one| (one.listen.to_string(), one.protocol, one.with_tls));
                shown.collect::<Vec<_>>()
            })
        };
        let text = "mqtt_tls = [\"127.0.0.1\"]\nmqtt = [\"127.0.0.1\"]\nlisten_tls = [\"127.0.0.1\"]\n\
                    listen = [\"127.0.0.1:5672\"]\n";
        let in_order = [
            ("127.0.0.1:5672".to_string(), ListenerProtocol::Amqp, false),
            ("127.0.0.1:5671".to_string(), ListenerProtocol::Amqp, true),
            ("127.0.0.1:1883".to_string(), ListenerProtocol::Mqtt, false),
            ("127.0.0.1:8883".to_string(), ListenerProtocol::Mqtt, true),
        ];
        assert_eq!(wanted_by(text).unwrap(), in_order);
        assert_eq!(wanted_by("listen = []\nmqtt = [\"127.0.0.1\"]\n").unwrap(), in_order[2..3]);
        for twice in [
            "listen = [\"127.0.0.1:1883\"]\nmqtt = [\"127.0.0.1\"]\n",
            "listen_tls = [\"127.0.0.1:8883\"]\nmqtt_tls = [\"127.0.0.1\"]\n",
            "mqtt = [\"127.0.0.1:8883\"]\nmqtt_tls = [\"127.0.0.1\"]\n",
        ] {
            let why = wanted_by(twice).unwrap_err().to_string();
            assert!(why.contains(" is named twice to listen on; name it once in `listen`"), "{why}");
        }
        assert!(wanted_by("mqtt = [\"127.0.0.1:0\", \"127.0.0.1:0\"]\n").is_ok(), "each has a free port");
    }

    #[test]
    fn the_unix_socket_comes_before_the_listeners_for_mqtt() {
        let path = std::env::temp_dir().join(format!("leveret-order-{}.sock", std::process::id()));
        let text = format!(
            "listen = [\"127.0.0.1:0\"]\nlisten_unix = {path:?}\nmqtt = [\"127.0.0.1:0\"]\n\
             mqtt_tls = [\"127.0.0.1:0\"]\n"
        );
        let config = Config::gather(None, leveret_config::Layer::parse("", &text).unwrap()).unwrap();
        let mut poll = Poll::new().unwrap();
        let token = super::super::system::client_token;
        let listeners = open_listeners(&mut poll, &config, token, &mut Passed(Vec::new())).unwrap();
        assert_eq!(amqp_count(&listeners), 2);
        let shown: Vec<String> = listeners.iter().map(super::super::system::shown).collect();
        for (shown, protocol) in shown.iter().zip(["amqp ", "amqp/local ", "mqtt ", "mqtt/ssl "]) {
            assert!(shown.starts_with(protocol), "{shown}");
        }
    }

    #[test]
    fn a_shortage_is_no_sign_that_nobody_is_there() {
        let of = |errno: Errno| failure_of(&errno.into());
        assert_eq!(of(Errno::AGAIN), AcceptFailure::Empty);
        assert_eq!(of(Errno::PROTO), AcceptFailure::Connection);
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::PERM] {
            assert_eq!(of(errno), AcceptFailure::System);
        }
    }
}

#[cfg(test)]
mod local_tests {
    use super::*;

    #[test]
    fn a_socket_left_behind_makes_place_and_nothing_else_does() {
        let folder = std::env::temp_dir().join(format!("leveret-local-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("amqp.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "it was left behind");
        let listener = LocalListener::open(&path, FolderUse::Shared, 0o600, 8).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let refused = LocalListener::open(&path, FolderUse::Shared, 0o600, 8).unwrap_err().to_string();
        assert_eq!(refused, "another program listens there");
        let client = std::os::unix::net::UnixStream::connect(&path).unwrap();
        // The first connection is the probe of the second listener.
        listener.accept().unwrap();
        let (_, address) = listener.accept().unwrap();
        assert_eq!(address.to_string(), format!("process {} of user {}", std::process::id(), uid()));
        assert!(address.is_loopback());
        drop((listener, client));
        assert!(!path.exists(), "it is removed at the end");
        fs::write(&path, "a file").unwrap();
        assert!(LocalListener::open(&path, FolderUse::Shared, 0o600, 8).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"a file");
        fs::remove_dir_all(&folder).unwrap();
    }

    fn uid() -> u32 {
        fs::metadata("/proc/self").unwrap().uid()
    }
}
