//! A connected socket, of the network or of this machine, and who is at its other end.
//!
//! Why it exists: above this file nobody cares which of the two it is. Always true: a socket does not block;
//! [`Socket::peek`] leaves what it shows where it is.

use core::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr};

use mio::event::Source;
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

    fn source(&mut self) -> &mut dyn Source {
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

impl Source for Socket {
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

    /// Where it is: all processes of this machine are in one place.
    pub(super) fn place(self) -> IpAddr {
        self.ip().unwrap_or(IpAddr::V6(Ipv6Addr::LOCALHOST))
    }

    /// On whose budget a line about it in the log is.
    pub(super) fn source(self) -> LogSource {
        match self {
            Self::Network(address) => LogSource::Address(address.ip()),
            Self::Local { uid, .. } => LogSource::User(uid),
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

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(address) => address.fmt(f),
            Self::Local { pid, uid } => write!(f, "process {pid} of user {uid}"),
        }
    }
}
