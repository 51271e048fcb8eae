//! A connected socket, of the network or of this machine.
//!
//! Why it exists: above this file nobody cares which of the two it is. Always true: a socket does not block;
//! peeking leaves what it shows where it is.

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

// The kernel's buffers of one connection.

/// Which buffers a connection has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum BufferSize {
    /// Of a connection over the network.
    Usual,
    /// Of a connection from this machine.
    Local,
}

impl BufferSize {
    /// Sets them; 0 leaves it to the system.
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

// The kernel's buffers of sockets: as small as a profile says, and large enough for this machine's programs.
//
// The loopback's segments are 64 KiB. A buffer of less than two of them is full with one that is not whole,
// and its receiver acknowledges that one after 40 ms only. So connections from this machine get larger
// buffers, as many as `limits` has added up; when those are taken, listeners ask for segments of which
// several fit into the small ones, which costs some speed but no waiting. On a real link they are shorter.
//
// Always true: never more connections than `socket_local_buffers_max` have the large buffers.

/// With buffers from here on up nobody waits: two segments of the loopback.
const ENOUGH_BYTES: u32 = 128 << 10;
/// So many segments fit into a small buffer.
const SEGMENTS_PER_BUFFER: u32 = 4;
/// No segment is asked to be shorter: Ethernet's.
const SEGMENT_BYTES_MIN: u32 = 1460;

/// No network's segments are so long, in bytes; the loopback's are, whichever of our addresses it was.
const LOCAL_SEGMENT_BYTES_MIN: u32 = 16 << 10;

/// How many have the large buffers.
#[derive(Debug)]
pub(super) struct LocalBuffers {
    used: u32,
    max: u32,
    /// What segments are limited to when there are no more, in bytes; 0 where that is not needed.
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

    /// The buffers for somebody who came in.
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

    /// A connection that held a buffer size is gone.
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
