//! A connected socket, of the network or of this machine, and who is at its other end.
//!
//! Why it exists: above this file nobody cares which of the two it is. Always true: a socket does not block;
//! [`Socket::peek`] leaves what it shows where it is.

use core::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr};

use mio::event::Source as EventSource;
use mio::net::{TcpStream, UnixStream};
use mio::{Interest, Registry, Token};
use rustix::net::RecvFlags;

use crate::log_limiter::LogSource;

/// A connected socket.
#[derive(Debug)]
pub(super) enum Socket {
    /// Of the network.
    Tcp(TcpStream),
    /// Of this machine.
    Unix(UnixStream),
}

impl Socket {
    /// Looks at what there is to read without taking it.
    pub(super) fn peek(&self, room: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(socket) => socket.peek(room),
            Self::Unix(socket) => {
                let (count, _) = rustix::net::recv(socket, room, RecvFlags::PEEK)?;
                Ok(count)
            }
        }
    }

    /// Says that we send no more. A peer that is gone needs no telling.
    pub(super) fn shut_down_writing(&self) {
        let _ = match self {
            Self::Tcp(socket) => socket.shutdown(Shutdown::Write),
            Self::Unix(socket) => socket.shutdown(Shutdown::Write),
        };
    }

    fn source(&mut self) -> &mut dyn EventSource {
        match self {
            Self::Tcp(socket) => socket,
            Self::Unix(socket) => socket,
        }
    }
}

impl Read for Socket {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(socket) => socket.read(room),
            Self::Unix(socket) => socket.read(room),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(socket) => socket.write(bytes),
            Self::Unix(socket) => socket.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl EventSource for Socket {
    fn register(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        self.source().register(registry, token, interests)
    }

    fn reregister(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        self.source().reregister(registry, token, interests)
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        self.source().deregister(registry)
    }
}

/// Who is at the other end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum PeerAddress {
    /// Somewhere on the network, or on this machine by way of it.
    Network(SocketAddr),
    /// A process of this machine, as the kernel names it.
    Local {
        /// Its process; 0 when the kernel does not say.
        pid: i32,
        /// Its user.
        uid: u32,
    },
}

impl PeerAddress {
    /// Whether it is on this very machine.
    pub(super) fn is_loopback(self) -> bool {
        self.ip().is_none_or(|ip| ip.is_loopback())
    }

    /// On whose budget a line about it in the log is.
    pub(super) fn source(self) -> LogSource {
        match self {
            Self::Network(address) => LogSource::Address(address.ip()),
            Self::Local { uid, .. } => LogSource::User(uid),
        }
    }

    /// What is counted as one peer when peers share something out.
    pub(super) fn origin(self) -> Source {
        match self {
            Self::Network(address) => Source::of(address.ip()),
            Self::Local { uid, .. } => Source::of_user(uid),
        }
    }

    /// Its address, the same for IPv4 whichever way it came; `None` for a process of this machine.
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
    /// Of the network.
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
        let mapped = IpAddr::V6(std::net::Ipv4Addr::new(127, 0, 0, 1).to_ipv6_mapped());
        assert_eq!(v4(1), Source::of(mapped), "whichever way it came");
        let user = |uid| PeerAddress::Local { pid: 7, uid }.origin();
        assert_eq!(user(1), PeerAddress::Local { pid: 8, uid: 1 }.origin());
        assert_ne!(user(1), user(2));
        assert_ne!(user(1), v4(1));
    }
}
