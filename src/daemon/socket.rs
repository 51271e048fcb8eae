//! A connected socket (TCP or Unix), and the choice of its kernel buffers.
//!
//! Sockets do not block.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};

use leveret_core::limits::{Limits, SOCKET_BUFFER_BYTES_MIN, kernel_socket_bytes};
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
    /// This side connected: the socket is a link of a bridge.
    pub(super) is_link: bool,
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
        Self { stream, is_registered: false, buffer_size: BufferSize::Uncounted, is_link: false }
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
    /// For any connection when the budget for larger ones is used up.
    Smallest,
    /// As `Usual`, for a client of the management API or a link of a bridge, of which there are few. It is not counted.
    Uncounted,
}

impl BufferSize {
    /// Returns the values of SO_RCVBUF and SO_SNDBUF in bytes; 0 keeps the system's default.
    const fn bytes(self, limits: &Limits) -> [u32; 2] {
        match self {
            Self::Usual | Self::Uncounted => {
                [limits.socket_receive_buffer_bytes, limits.socket_send_buffer_bytes]
            }
            Self::Local => [limits.socket_local_buffer_bytes; 2],
            Self::Smallest => [SOCKET_BUFFER_BYTES_MIN; 2],
        }
    }

    /// Sets the sizes.
    pub(super) fn set(self, socket: &SockRef<'_>, limits: &Limits) -> io::Result<()> {
        let [receive, send] = self.bytes(limits);
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

/// Decides which new connections get large kernel buffers, and counts the bytes that the kernel may use for them.
///
/// Every connection can have the smallest buffers within the budget. The rest of the budget goes to the connections that come
/// first, because a board with few clients should not be slower for the many that it could have.
///
/// Segments of the loopback interface have 64 KiB. If less than two of them fit into a buffer, a segment that
/// is not full fills it, and its receiver acknowledges such a segment only after 40 ms. Connections from this
/// machine therefore get larger buffers, as far as half of that rest. When it is used, listeners request smaller segments of
/// which several fit into a small buffer. This costs some speed but causes no delays. On real links segments are smaller
/// anyway.
///
/// # Invariants
/// - The kernel uses at most [`Limits::large_socket_bytes`] for buffers that are not the smallest.
#[derive(Debug)]
pub(super) struct SocketBuffers {
    limits: Limits,
    /// Number of connections with buffers of the usual size.
    usual_count: u64,
    /// Number of connections with the buffers for this machine.
    local_count: u64,
    /// The segment size that listeners request, in bytes; 0 for no limit.
    segment_bytes: u32,
}

impl SocketBuffers {
    pub(super) fn new(limits: &Limits, listeners: &[Listener]) -> Self {
        let mut buffers = Self { limits: limits.clone(), usual_count: 0, local_count: 0, segment_bytes: 0 };
        buffers.update_segments(listeners);
        buffers
    }

    /// Chooses the buffers of a new connection.
    pub(super) fn take(&mut self, socket: &Socket, listeners: &[Listener]) -> BufferSize {
        let size = self.choose(is_local(socket));
        self.update_segments(listeners);
        size
    }

    fn choose(&mut self, is_local: bool) -> BufferSize {
        if is_local && self.has_local() {
            self.local_count += 1;
            BufferSize::Local
        } else if self.has_usual() {
            self.usual_count += 1;
            BufferSize::Usual
        } else {
            BufferSize::Smallest
        }
    }

    /// Subtracts a closed connection.
    pub(super) fn give_back(&mut self, size: BufferSize, listeners: &[Listener]) {
        match size {
            BufferSize::Smallest | BufferSize::Uncounted => return,
            BufferSize::Usual => self.usual_count -= 1,
            BufferSize::Local => self.local_count -= 1,
        }
        self.update_segments(listeners);
    }

    /// Returns the bytes that the kernel may use for so many connections with buffers of this size.
    const fn bytes_of(&self, size: BufferSize, count: u64) -> u64 {
        count * kernel_socket_bytes(size.bytes(&self.limits))
    }

    /// Returns whether the budget has enough for another connection from this machine.
    const fn has_local(&self) -> bool {
        let most = self.limits.large_socket_bytes();
        let local = self.bytes_of(BufferSize::Local, self.local_count + 1);
        local > 0 && local <= most / 2 && local + self.bytes_of(BufferSize::Usual, self.usual_count) <= most
    }

    /// Returns whether the budget has enough for another connection over the network, or the system decides.
    const fn has_usual(&self) -> bool {
        let is_systems =
            self.limits.socket_receive_buffer_bytes == 0 || self.limits.socket_send_buffer_bytes == 0;
        let usual = self.bytes_of(BufferSize::Usual, self.usual_count + 1);
        is_systems
            || usual + self.bytes_of(BufferSize::Local, self.local_count) <= self.limits.large_socket_bytes()
    }

    /// Lets listeners request segments that fit into the buffers of the next connection from this machine.
    fn update_segments(&mut self, listeners: &[Listener]) {
        let next = if self.has_usual() { BufferSize::Usual } else { BufferSize::Smallest };
        let smallest = next.bytes(&self.limits).into_iter().filter(|bytes| *bytes > 0).min();
        let bytes = match smallest.filter(|bytes| *bytes < ENOUGH_BYTES) {
            Some(bytes) if !self.has_local() => (bytes / SEGMENTS_PER_BUFFER).max(SEGMENT_BYTES_MIN),
            _ => 0,
        };
        if core::mem::replace(&mut self.segment_bytes, bytes) != bytes {
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

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: fn() -> Limits = || Limits {
        connections_max: 92,
        socket_receive_buffer_bytes: 64 << 10,
        socket_send_buffer_bytes: 64 << 10,
        socket_local_buffer_bytes: 128 << 10,
        // The smallest buffers of 100 connections, and 8 MiB for larger ones.
        socket_budget_bytes: (1600 << 10) + (8 << 20),
        ..Limits::default()
    };

    #[test]
    fn the_first_connections_get_large_buffers_and_all_together_stay_within_the_budget() {
        let limits = LIMITS();
        let mut buffers = SocketBuffers::new(&limits, &[]);
        let sizes: Vec<BufferSize> = (0..100).map(|number| buffers.choose(number % 2 == 0)).collect();
        let count = |size| sizes.iter().filter(|found| **found == size).count();
        // Half of 8 MiB for 512 KiB each, the other half for 256 KiB each.
        assert_eq!([BufferSize::Local, BufferSize::Usual].map(count), [8, 16]);
        let bytes: u64 = sizes.iter().map(|size| kernel_socket_bytes(size.bytes(&limits))).sum();
        assert!(bytes <= limits.socket_budget_bytes, "{bytes}");
        buffers.give_back(BufferSize::Smallest, &[]);
        assert_eq!(buffers.choose(false), BufferSize::Smallest);
        buffers.give_back(BufferSize::Local, &[]);
        assert_eq!(
            [(); 3].map(|()| buffers.choose(false)),
            [BufferSize::Usual, BufferSize::Usual, BufferSize::Smallest]
        );
        sizes
            .into_iter()
            .filter(|size| *size == BufferSize::Usual)
            .for_each(|size| buffers.give_back(size, &[]));
        assert_eq!(buffers.choose(true), BufferSize::Local);
    }

    #[test]
    fn buffers_that_the_system_sizes_are_never_made_smaller() {
        let limits = Limits { socket_receive_buffer_bytes: 0, socket_local_buffer_bytes: 0, ..LIMITS() };
        let mut buffers = SocketBuffers::new(&limits, &[]);
        assert!((0..1_000).all(|number| buffers.choose(number % 2 == 0) == BufferSize::Usual));
    }
}
