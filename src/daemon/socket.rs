//! A connected socket, of the network or of this machine.
//!
//! Why it exists: above this file nobody cares which of the two it is. Always true: a socket does not block;
//! peeking leaves what it shows where it is.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};

use mio::event::Source as EventSource;
use mio::net::{TcpStream, UnixStream};
use mio::{Interest, Registry, Token};
use rustix::net::RecvFlags;

use super::buffer_size::BufferSize;

/// A connected socket.
#[derive(Debug)]
pub(super) struct Socket {
    pub(super) stream: Stream,
    /// The poll reports what happens to it.
    is_registered: bool,
    /// The kernel's buffers it was given.
    pub(super) buffer_size: BufferSize,
}

#[derive(Debug)]
pub(super) enum Stream {
    /// A connection over TCP.
    Tcp(TcpStream),
    /// Of this machine.
    Unix(UnixStream),
}

impl Socket {
    pub(super) const fn new(stream: Stream) -> Self {
        Self { stream, is_registered: false, buffer_size: BufferSize::Usual }
    }

    /// Lets the poll report what happens, under this token and no other.
    pub(super) fn register(
        &mut self,
        registry: &Registry,
        token: Token,
        interest: Interest,
    ) -> io::Result<()> {
        if self.is_registered {
            return registry.reregister(self.source(), token, interest);
        }
        registry.register(self.source(), token, interest)?;
        self.is_registered = true;
        Ok(())
    }

    fn source(&mut self) -> &mut dyn EventSource {
        match &mut self.stream {
            Stream::Tcp(socket) => socket,
            Stream::Unix(socket) => socket,
        }
    }
}

impl leveret_server::Socket for Socket {
    #[inline]
    fn peek(&self, room: &mut [u8]) -> io::Result<usize> {
        match &self.stream {
            Stream::Tcp(socket) => socket.peek(room),
            Stream::Unix(socket) => {
                let (count, _) = rustix::net::recv(socket, room, RecvFlags::PEEK)?;
                Ok(count)
            }
        }
    }

    fn shut_down_writing(&mut self) {
        let _ = match &self.stream {
            Stream::Tcp(socket) => socket.shutdown(Shutdown::Write),
            Stream::Unix(socket) => socket.shutdown(Shutdown::Write),
        };
    }

    fn take_error(&self) -> Option<io::Error> {
        match &self.stream {
            Stream::Tcp(socket) => socket.take_error().unwrap_or_else(Some),
            Stream::Unix(_) => None,
        }
    }

    fn local_address(&self) -> Option<SocketAddr> {
        match &self.stream {
            Stream::Tcp(socket) => socket.local_addr().ok(),
            Stream::Unix(_) => None,
        }
    }
}

impl Read for Socket {
    #[inline]
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        match &mut self.stream {
            Stream::Tcp(socket) => socket.read(room),
            Stream::Unix(socket) => socket.read(room),
        }
    }
}

impl Write for Socket {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.stream {
            Stream::Tcp(socket) => socket.write(bytes),
            Stream::Unix(socket) => socket.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
