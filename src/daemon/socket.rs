//! A connected socket (TCP or Unix), and the choice of its kernel buffers.
//!
//! Sockets do not block.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};

use leveret_core::limits::Limits;
use mio::event::Source as EventSource;
use mio::net::{TcpStream, UnixStream};
use mio::{Interest, Registry, Token};
use rustix::net::RecvFlags;
use socket2::SockRef;

use super::listen::Listener;

/// A connected socket.
#[derive(Debug)]
pub(super) struct Socket {
    pub(super) stream: Stream,
    /// The socket is registered with the poll.
    is_registered: bool,
    /// The size of the socket's kernel buffers.
    pub(super) buffer_size: BufferSize,
}

#[derive(Debug)]
pub(super) enum Stream {
    /// A connection over TCP.
    Tcp(TcpStream),
    /// A Unix socket.
    Unix(UnixStream),
}

impl Socket {
    pub(super) const fn new(stream: Stream) -> Self {
        Self { stream, is_registered: false, buffer_size: BufferSize::Usual }
    }

    /// Registers the socket with the poll under this token.
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

/// The size of a connection's kernel buffers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum BufferSize {
    /// For a connection over the network.
    Usual,
    /// For a connection from this machine.
    Local,
}

impl BufferSize {
    /// Sets the sizes; 0 keeps the system's default.
    pub(super) fn set(self, socket: &SockRef<'_>, limits: &Limits) -> io::Result<()> {
        let [receive, send] = match self {
            Self::Usual => [limits.socket_receive_buffer_bytes, limits.socket_send_buffer_bytes],
            Self::Local => [limits.socket_local_buffer_bytes; 2],
        };
        if receive > 0 {
            socket.set_recv_buffer_size(receive as usize)?;
        }
        if send > 0 {
            socket.set_send_buffer_size(send as usize)?;
        }
        Ok(())
    }
}

/// Buffers of at least this size cause no delays, because two segments of the loopback interface fit into
/// them.
const ENOUGH_BYTES: u32 = 128 << 10;
/// Number of segments that fit into a small buffer.
const SEGMENTS_PER_BUFFER: u32 = 4;
/// The segment size is never limited to less than Ethernet's.
const SEGMENT_BYTES_MIN: u32 = 1460;

/// Segments of at least this size in bytes occur only on the loopback interface.
const LOCAL_SEGMENT_BYTES_MIN: u32 = 16 << 10;

/// Counts the connections with large kernel buffers, and decides which new ones get them.
///
/// Segments of the loopback interface have 64 KiB. If less than two of them fit into a buffer, a segment that
/// is not full fills it, and its receiver acknowledges such a segment only after 40 ms. Connections from this
/// machine therefore get larger buffers, for up to `socket_local_buffers_max` connections (the memory table
/// includes them). When all are in use, listeners request smaller segments of which several fit into a small
/// buffer. This costs some speed but causes no delays. On real links segments are smaller anyway.
///
/// # Invariants
/// - At most `socket_local_buffers_max` connections have large buffers.
#[derive(Debug)]
pub(super) struct LocalBuffers {
    used: u32,
    max: u32,
    /// The limit of the segment size for new connections in bytes; 0 for no limit.
    segment_bytes: u32,
}

impl LocalBuffers {
    pub(super) fn new(limits: &Limits, listeners: &[Listener]) -> Self {
        let usual = [limits.socket_receive_buffer_bytes, limits.socket_send_buffer_bytes];
        let smallest = usual.into_iter().filter(|bytes| *bytes > 0).min();
        let is_needed = smallest.filter(|bytes| *bytes < ENOUGH_BYTES);
        let segment_bytes = is_needed.map_or(0, |bytes| (bytes / SEGMENTS_PER_BUFFER).max(SEGMENT_BYTES_MIN));
        let max = if limits.socket_local_buffer_bytes > 0 { limits.socket_local_buffers_max } else { 0 };
        let buffers = Self { used: 0, max, segment_bytes };
        buffers.limit_segments(listeners);
        buffers
    }

    /// Chooses the buffers of a new connection, and counts large ones.
    pub(super) fn take(&mut self, socket: &Socket, listeners: &[Listener]) -> BufferSize {
        if self.used >= self.max || !is_local(socket) {
            return BufferSize::Usual;
        }
        self.used += 1;
        if self.used == self.max {
            self.limit_segments(listeners);
        }
        BufferSize::Local
    }

    /// Subtracts a closed connection.
    pub(super) fn give_back(&mut self, size: BufferSize, listeners: &[Listener]) {
        if size == BufferSize::Local {
            self.used -= 1;
            if self.used + 1 == self.max {
                self.limit_segments(listeners);
            }
        }
    }

    fn limit_segments(&self, listeners: &[Listener]) {
        if self.segment_bytes > 0 {
            let bytes = if self.used < self.max { 0 } else { self.segment_bytes };
            listeners.iter().for_each(|listener| listener.limit_segments(bytes));
        }
    }
}

fn is_local(socket: &Socket) -> bool {
    match &socket.stream {
        Stream::Tcp(stream) => {
            SockRef::from(stream).tcp_mss().is_ok_and(|bytes| bytes >= LOCAL_SEGMENT_BYTES_MIN)
        }
        Stream::Unix(_) => true,
    }
}
