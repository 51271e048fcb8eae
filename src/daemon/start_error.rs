//! Why a broker cannot start.
//!
//! Always true: each is one sentence that says what to change.

use core::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use leveret_config::ConfigError;
use leveret_config::units::ListenAddress;
use leveret_storage::OpenError;
use leveret_tls::TlsError;

/// Why the broker cannot start, as one sentence that says what to change.
#[derive(Debug)]
pub enum StartError {
    /// An address cannot be listened on.
    Listen(ListenAddress, io::Error),
    /// An address is named twice.
    ListenTwice(ListenAddress),
    /// systemd passed a socket that the configuration does not name: its address, if it is one of TCP.
    Passed(Option<SocketAddr>),
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
    TooSmall(leveret_core::error::Fault),
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
            Self::Listen(address, _) if is_link_local(address) && address.zone.is_none() => write!(
                f,
                "cannot listen on {address}: an IPv6 link-local address is one of an interface; name that as well, \
                 such as [fe80::1%eth0]:5672"
            ),
            Self::Listen(address, error) => write!(
                f,
                "cannot listen on {address} ({error}); choose an address of this machine with --listen or \
                 `listen`"
            ),
            Self::ListenTwice(address) => {
                write!(f, "{address} is named twice to listen on; name it once in `listen` or `listen_tls`")
            }
            Self::Passed(address) => write!(
                f,
                "systemd listens on {} for it, where the configuration has no listener: name it in `listen`, \
                 `listen_tls`, `management`, `management_tls` or `metrics`, or take it out of leveret.socket",
                address.map_or_else(|| "what is no address".to_string(), |address| address.to_string())
            ),
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

fn is_link_local(listen: &ListenAddress) -> bool {
    matches!(listen.socket.ip(), IpAddr::V6(address) if address.is_unicast_link_local())
}

impl core::error::Error for StartError {}
