//! The kernel's buffers of sockets: as small as a profile says, and large enough for this machine's programs.
//!
//! The loopback's segments are 64 KiB. A buffer of less than two of them is full with one that is not whole,
//! and its receiver acknowledges that one after 40 ms only. So connections from this machine get larger
//! buffers, as many as `limits` has added up; when those are taken, listeners ask for segments of which
//! several fit into the small ones, which costs some speed but no waiting. On a real link they are shorter.
//!
//! Always true: never more connections than `socket_local_buffers_max` have the large buffers.

use socket2::SockRef;

use leveret_core::limits::Limits;

use super::buffer_size::BufferSize;
use super::listen::Listener;
use super::socket::{Socket, Stream};

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
