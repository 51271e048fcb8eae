//! Who is at the other end of a connection, and whose budget that counts on.

use core::fmt;
use core::net::{IpAddr, SocketAddr};

use leveret_core::log_limiter::LogSource;

/// Who is at the other end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PeerAddress {
    /// Somewhere on the network, or on this machine by way of it.
    Network(SocketAddr),
    /// A process of this machine, as the kernel names it.
    Local {
        /// The process at the other end; 0 when the kernel does not say.
        pid: i32,
        /// The user whom that process runs as.
        uid: u32,
    },
}

impl PeerAddress {
    /// Whether it is on this very machine.
    pub fn is_loopback(self) -> bool {
        self.ip().is_none_or(|ip| ip.is_loopback())
    }

    /// On whose budget a line about it in the log is.
    pub(super) fn source(self) -> LogSource {
        match self {
            Self::Network(address) => LogSource::Address(address.ip()),
            Self::Local { uid, .. } => LogSource::User(uid),
        }
    }

    /// What a session is to know of it.
    pub(super) fn peer(self) -> leveret_connection::Peer {
        let port = match self {
            Self::Network(address) => address.port(),
            Self::Local { .. } => 0,
        };
        leveret_connection::Peer { from_loopback: self.is_loopback(), source: self.source(), port }
    }

    /// What is counted as one peer when peers share something out.
    pub(super) fn origin(self) -> Source {
        match self {
            Self::Network(address) => Source::of(address.ip()),
            Self::Local { uid, .. } => Source::of_user(uid),
        }
    }

    /// The IP address, the same for IPv4 whichever way a peer came; `None` for a process of this machine.
    const fn ip(self) -> Option<IpAddr> {
        match self {
            Self::Network(address) => Some(address.ip().to_canonical()),
            Self::Local { .. } => None,
        }
    }
}

/// Where peers come from as far as it can be told apart: an IPv4 address, the first half of an IPv6 one, for
/// nobody has fewer, or a user of this machine.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Source([u8; 8]);

impl Source {
    /// The origin of a peer that came over the network.
    pub(super) fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            // No IPv6 address of anybody begins like this.
            IpAddr::V4(address) => Self::tagged(0, u32::from(address)),
            IpAddr::V6(address) => {
                let octets = address.octets();
                Self([0, 1, 2, 3, 4, 5, 6, 7].map(|at: usize| octets[at]))
            }
        }
    }

    /// A user of this machine, by way of a Unix socket.
    fn of_user(uid: u32) -> Self {
        // Multicast, from which nobody connects.
        Self::tagged(0xff, uid)
    }

    const fn tagged(tag: u8, number: u32) -> Self {
        let [a, b, c, d] = number.to_be_bytes();
        Self([tag, 0, 0, 0, a, b, c, d])
    }
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(address) => address.fmt(f),
            Self::Local { pid, uid } => write!(f, "process {pid} of user {uid}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_network_is_one_source_and_every_user_is_another() {
        let v6 = |last: u8| Source::of(IpAddr::from([1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, last]));
        assert_eq!(v6(1), v6(2));
        let v4 = |last: u8| Source::of(IpAddr::from([127, 0, 0, last]));
        assert_ne!(v4(1), v4(2));
        let mapped = IpAddr::V6(core::net::Ipv4Addr::new(127, 0, 0, 1).to_ipv6_mapped());
        assert_eq!(v4(1), Source::of(mapped), "whichever way it came");
        let user = |uid| PeerAddress::Local { pid: 7, uid }.origin();
        assert_eq!(user(1), PeerAddress::Local { pid: 8, uid: 1 }.origin());
        assert_ne!(user(1), user(2));
        assert_ne!(user(1), v4(1));
    }
}
