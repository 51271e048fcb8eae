//! OWNS SOCKETS, CLOCKS AND THREADS. The only room that reads a clock for the loop, and one that sees all
//! others. What is decided is decided in `engine`; here is the system that it runs on.
//!
//! | file | what it holds |
//! |------|---------------|
//! | `event_loop` | the poll, the clock, and the engine's turns between |
//! | `start` | everything that runs, made and reserved |
//! | `system` | what the engine asks of the world outside, by `mio` and threads |
//! | `socket` | a socket of the network or of this machine |
//! | `listen`, `local` | listening and accepting |
//! | `buffers` | the kernel's buffers for programs of this machine |
//! | `descriptors` | how many there may be |
//! | `directory` | whether the data directory is what it was set up to be |
//! | `disk` | opening the store |
//! | `helper` | threads that wait for what takes long |
//! | `logging`, `log_writer` | the log, and the thread that writes it |
//! | `printable` | what a terminal may be sent |
//! | `worker` | passwords, handshakes and configuration, on such a thread |
//! | `defined` | what a file says there is to be at a start |
//! | `signals` | being asked to stop, or to read the configuration again |
//! | `rehearse` | whether a start would come to its end |
//! | `reload` | what of a changed configuration can be had without a restart |
//!
//! Always true: one thread decides; nothing here blocks but the poll.

mod buffers;
mod defined;
mod descriptors;
mod directory;
mod disk;
mod event_loop;
mod helper;
mod listen;
mod local;
mod log_writer;
pub mod logging;
pub mod printable;
mod rehearse;
mod reload;
mod signals;
mod socket;
mod start;
mod system;
mod worker;

use core::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::config::transports::ClientCertificates;
use crate::config::{Config, ConfigError};
use crate::limits::{LimitsError, MemoryTable, RecordSizes};
use crate::mem;
use crate::store::OpenError;
use crate::{broker, engine, session, store, tls};

pub use crate::tls::TlsError;
pub use directory::RESTORE_PART;
pub use event_loop::EventLoop;
pub use rehearse::rehearse;
pub use system::SOCKET_NAME;

use socket::Socket;

/// Why the broker cannot start, as one sentence that says what to change.
#[derive(Debug)]
pub enum StartError {
    /// An address cannot be listened on.
    Listen(SocketAddr, io::Error),
    /// An address is named twice.
    ListenTwice(SocketAddr),
    /// A Unix socket cannot be listened on.
    ListenLocal(PathBuf, io::Error),
    /// The certificates cannot be used.
    Tls(TlsError),
    /// No address at all could be listened on.
    NowhereToListen,
    /// The data directory is not as it must be: what it is, what is wrong, what to type.
    Directory(PathBuf, String),
    /// The store must not be touched.
    Store(PathBuf, OpenError),
    /// The file of definitions cannot be used, and why.
    Definitions(PathBuf, String),
    /// The limits do not fit the memory or each other.
    Limits(ConfigError),
    /// The system refused something every program gets.
    System(&'static str, io::Error),
    /// The system does not let the memory be locked.
    MemoryLock(io::Error),
    /// The system allows so few file descriptors, and that many are wanted.
    Descriptors {
        /// File descriptors that the system allows.
        allowed: u64,
        /// File descriptors that the configuration needs.
        wanted: u64,
    },
    /// The limits leave no room for what a broker needs at least.
    TooSmall(crate::error::Fault),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listen(address, error) if error.kind() == io::ErrorKind::AddrInUse => write!(
                f,
                "cannot listen on {address}: another program already does; stop it, or choose another \
                 address with --listen or `listen`"
            ),
            Self::Listen(address, error) if error.kind() == io::ErrorKind::PermissionDenied => write!(
                f,
                "cannot listen on {address}: not permitted; choose a port from 1024 on, or give the program \
                 CAP_NET_BIND_SERVICE"
            ),
            Self::Listen(address, error) => write!(
                f,
                "cannot listen on {address} ({error}); choose an address of this machine with --listen or \
                 `listen`"
            ),
            Self::ListenTwice(address) => {
                write!(f, "{address} is named twice to listen on; name it once in `listen` or `listen_tls`")
            }
            Self::ListenLocal(path, error) => write!(
                f,
                "cannot listen on {} ({error}); choose another path with `listen_unix`, in a folder that the \
                 broker may write to",
                path.display()
            ),
            Self::Tls(error) => error.fmt(f),
            Self::NowhereToListen => {
                f.write_str("there is no address to listen on; name one with --listen or `listen`")
            }
            Self::Definitions(file, why) => {
                write!(f, "load_definitions: {}: {why}; mend the file, or name another", file.display())
            }
            Self::Directory(directory, why) => write!(f, "the data directory {}: {why}", directory.display()),
            Self::Store(directory, error) => write!(f, "{}: {error}", directory.display()),
            Self::Limits(error) => error.fmt(f),
            Self::System(what, error) => write!(f, "cannot {what}: {error}"),
            Self::MemoryLock(error) => write!(
                f,
                "memory_lock = true, but the system does not let the memory be locked ({error}); allow \
                 it with LimitMEMLOCK=infinity in the systemd unit (or `ulimit -l unlimited`, or \
                 CAP_IPC_LOCK), or leave memory_lock out"
            ),
            Self::Descriptors { allowed, wanted } => write!(
                f,
                "the system allows {allowed} file descriptors, too few for a single connection; raise the \
                 limit to {wanted} with LimitNOFILE in the systemd unit, or `ulimit -n`"
            ),
            Self::TooSmall(fault) => write!(f, "the limits are too small: {}", fault.text),
        }
    }
}

impl core::error::Error for StartError {}

/// What each thing that peers can make costs with this configuration, and what the rooms need once, for the
/// memory table.
pub fn record_sizes(config: &Config) -> RecordSizes {
    let limits = &config.limits;
    let output = limits.output_buffer_bytes as usize;
    // What is larger than any segment is refused by the rules of `Limits`; until then no sum may wrap.
    let [frame, segment, commit] = [limits.frame_max, limits.segment_bytes, limits.commit_bytes_max]
        .map(|bytes| bytes.min(store::SEGMENT_BYTES_MAX) as usize);
    let if_tls = |bytes| if config.listen_tls.is_empty() { 0 } else { bytes };
    let shows_certificate = config.tls.client_certificates != ClientCertificates::None;
    let chain = if shows_certificate { tls::CLIENT_CHAIN_BYTES_MAX } else { 0 };
    let connections = limits.tls_connections_max.max(1) as usize;
    let reserved = engine::tls_reserved_bytes(connections);
    RecordSizes {
        scratch_bytes: broker::buffer_bytes(frame) + session::WritePlan::bytes(output),
        store_bytes: store::buffer_bytes(segment, commit, frame),
        tls_session_bytes: if_tls(tls::SESSION_BYTES + chain + reserved),
        tls_handshake_bytes: if_tls(tls::HANDSHAKE_BYTES),
        tls_record_bytes: if_tls(engine::tls_scratch_bytes(limits)),
        tls_crl_bytes: if_tls(if config.tls.crls.is_empty() { 0 } else { tls::CRL_BYTES }),
        connection_bytes: engine::peer_bytes::<Socket>() + broker::CONNECTION_BYTES,
        channel_bytes: session::Pools::channel_record_bytes() + broker::CHANNEL_BYTES,
        consumer_bytes: broker::CONSUMER_BYTES,
        queue_bytes: broker::QUEUE_BYTES,
        exchange_bytes: broker::EXCHANGE_BYTES,
        binding_bytes: broker::BINDING_BYTES,
        vhost_bytes: broker::VHOST_BYTES,
        user_bytes: broker::USER_BYTES,
        permission_bytes: broker::PERMISSION_BYTES,
        login_bytes: engine::LOGIN_BYTES,
        newcomers_bytes: engine::newcomers_bytes::<Socket>(),
        unacknowledged_bytes: broker::DELIVERY_BYTES,
        control_bytes: crate::admin::admin_session::ADMIN_SESSION_BYTES + engine::peer_bytes::<Socket>(),
    }
}

/// Makes the limits follow from the memory, and finds out whether the system gives it: a pool that it does
/// not give would end the process in the middle of its start.
///
/// # Errors
/// The key to change.
pub fn fit(config: &mut Config) -> Result<MemoryTable, LimitsError> {
    let table = config.fit(record_sizes)?;
    if mem::would_be_given(table.lines.iter().map(crate::limits::MemoryLine::bytes)) {
        return Ok(table);
    }
    Err(LimitsError::NotGiven { sum: table.bytes(), memory_limit: config.memory_limit_bytes })
}

/// Serves until a signal says to stop.
///
/// # Errors
/// What keeps it from starting, or from going on.
pub fn serve(config: &Config) -> Result<(), StartError> {
    EventLoop::open(config)?.run()
}
