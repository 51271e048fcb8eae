//! An in-memory TCP connection, with the buffers of both kernels and the network between them.
//!
//! ```text
//!   client ─ write ─> [ under way ] ─ arrive: a fragment a round ─> [ received ] ─ read ─> broker
//!   client <─ read ─ [ down: the broker's send buffer and the client's window ] <─ write ─ broker
//! ```
//!
//! # Invariants
//! - Bytes keep their order, and none are invented.
//! - Readiness is reported once per change, like an edge-triggered poll. So an event loop that loses a flag
//!   hangs here as in production.
//! - A line with a cut lets exactly the given number of bytes through.

use std::collections::VecDeque;

/// The events that a poll would report.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Edges {
    pub readable: bool,
    pub writable: bool,
    /// The other side sends nothing more.
    pub closed: bool,
    /// The connection is broken.
    pub error: bool,
}

/// Result of a call on the broker's socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Io {
    Bytes(usize),
    WouldBlock,
    Reset,
}

/// Sizes of buffers and fragments, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Maximum number of bytes that arrive at the broker at once.
    pub up_fragment: usize,
    /// Maximum number of bytes on the way to the broker before the client's write blocks.
    pub up_room: usize,
    /// Maximum number of bytes that the broker's socket accepts in one write.
    pub down_fragment: usize,
    /// Maximum number of unread bytes for the client before the broker's write blocks.
    pub down_room: usize,
}

impl Shape {
    pub const WIDE: Self =
        Self { up_fragment: 1 << 20, up_room: 4 << 20, down_fragment: 1 << 20, down_room: 4 << 20 };

    /// Returns a shape with fragments of this many bytes.
    pub const fn fragments(bytes: usize) -> Self {
        Self { up_fragment: bytes, down_fragment: bytes, ..Self::WIDE }
    }
}

/// State of the connection, as the network sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Alive,
    /// The client has shut down sending; it still reads.
    HungUp,
    /// The connection is gone: unread data is lost, and writing fails.
    Lost,
}

/// The connection.
#[derive(Debug)]
pub struct Line {
    pub shape: Shape,
    under_way: VecDeque<u8>,
    received: VecDeque<u8>,
    down: VecDeque<u8>,
    /// The bytes of the broker's last write that the line did not accept. The broker keeps them, or they are
    /// lost with the connection.
    refused: Vec<u8>,
    state: State,
    /// The broker has shut down its side or closed the socket.
    pub broker_is_done: bool,
    /// The broker has the connection: it waits to be accepted, or has not been closed.
    pub is_held: bool,
    wants_space: bool,
    edges: Edges,
    /// The line breaks after this many bytes in one direction.
    pub cut_up: Option<u64>,
    pub cut_down: Option<u64>,
    sent_up: u64,
    sent_down: u64,
}

impl Line {
    pub fn new(shape: Shape) -> Self {
        Self {
            shape,
            under_way: VecDeque::new(),
            received: VecDeque::new(),
            down: VecDeque::new(),
            refused: Vec::new(),
            state: State::Alive,
            broker_is_done: false,
            is_held: false,
            wants_space: false,
            edges: Edges { writable: true, ..Edges::default() },
            cut_up: None,
            cut_down: None,
            sent_up: 0,
            sent_down: 0,
        }
    }

    // ---- the client's end

    /// Writes as many bytes as the line accepts. Returns how many it accepted.
    pub fn write_up(&mut self, bytes: &[u8]) -> usize {
        if self.state != State::Alive {
            return bytes.len();
        }
        let room = self.shape.up_room.saturating_sub(self.under_way.len() + self.received.len());
        let count = bytes.len().min(room);
        self.under_way.extend(&bytes[..count]);
        count
    }

    /// Reads at most `most` bytes.
    pub fn read_down(&mut self, most: usize, into: &mut Vec<u8>) -> usize {
        let count = most.min(self.down.len());
        into.extend(self.down.drain(..count));
        if count > 0 && core::mem::take(&mut self.wants_space) {
            self.edges.writable = true;
        }
        count
    }

    /// Returns the bytes that the broker still had to send when it dropped the connection.
    pub fn take_refused(&mut self) -> Vec<u8> {
        core::mem::take(&mut self.refused)
    }

    /// Shuts down sending; reading continues.
    pub fn hang_up(&mut self) {
        if self.state == State::Alive {
            self.state = State::HungUp;
        }
    }

    /// Breaks the line: nothing arrives any more, in either direction.
    pub fn lose(&mut self) {
        self.state = State::Lost;
        self.under_way.clear();
        self.received.clear();
        self.edges = Edges { readable: true, writable: true, closed: true, error: true };
    }

    pub fn is_lost(&self) -> bool {
        self.state == State::Lost
    }

    pub const fn sent_up(&self) -> u64 {
        self.sent_up
    }

    pub const fn sent_down(&self) -> u64 {
        self.sent_down
    }

    /// Returns the number of bytes that the broker has not read yet.
    pub fn waiting_up(&self) -> usize {
        self.under_way.len() + self.received.len()
    }

    // ---- the network

    /// Lets the next fragment arrive. Returns whether anything did.
    pub fn arrive(&mut self) -> bool {
        let left = self.cut_up.map_or(u64::MAX, |cut| cut - self.sent_up);
        let count = self.under_way.len().min(self.shape.up_fragment).min(left as usize);
        if count > 0 {
            self.received.extend(self.under_way.drain(..count));
            self.sent_up += count as u64;
            self.edges.readable = true;
        } else if left == 0 && self.state == State::Alive {
            // Data that arrived before the break counts.
            self.state = State::HungUp;
            self.under_way.clear();
        }
        if self.under_way.is_empty() && self.state == State::HungUp && !self.edges.closed {
            self.edges.closed = true;
            return true;
        }
        self.offer_space();
        count > 0
    }

    /// Reports the line as writable if it has space again. A fragment may have been smaller than the space.
    pub fn offer_space(&mut self) {
        if self.wants_space && self.down.len() < self.shape.down_room {
            self.wants_space = false;
            self.edges.writable = true;
        }
    }

    /// Returns whether something is still on its way to the broker.
    pub fn has_to_arrive(&self) -> bool {
        !self.under_way.is_empty() || self.state == State::HungUp && !self.edges.closed
    }

    /// Returns the number of bytes that the broker wrote and the client has not read.
    pub fn unread(&self) -> usize {
        self.down.len()
    }

    /// Reports existing data and space again, as if they had just changed.
    pub fn tell_again(&mut self) {
        self.edges.readable |= !self.received.is_empty();
        self.edges.writable = true;
    }

    /// Returns the changes since the last call. A closed side is also reported once.
    pub fn take_edges(&mut self, closed_told: &mut bool) -> Edges {
        let closed = self.edges.closed && !core::mem::replace(closed_told, self.edges.closed);
        let edges = Edges { closed, ..self.edges };
        (self.edges.readable, self.edges.writable, self.edges.error) = (false, false, false);
        edges
    }

    // ---- the broker's end

    /// Reads into `room`; with `peek` the bytes stay.
    pub fn receive(&mut self, room: &mut [u8], peek: bool) -> Io {
        if self.state == State::Lost {
            return Io::Reset;
        }
        if self.received.is_empty() {
            let ended = self.state == State::HungUp && self.under_way.is_empty();
            return if ended { Io::Bytes(0) } else { Io::WouldBlock };
        }
        let count = room.len().min(self.received.len());
        for (to, from) in room.iter_mut().zip(&self.received) {
            *to = *from;
        }
        if !peek {
            self.received.drain(..count);
        }
        Io::Bytes(count)
    }

    /// Accepts as many bytes as the line has space for.
    pub fn transmit(&mut self, bytes: &[u8]) -> Io {
        if self.state == State::Lost {
            self.refused = bytes.to_vec();
            return Io::Reset;
        }
        let room = self.shape.down_room.saturating_sub(self.down.len());
        let left = self.cut_down.map_or(u64::MAX, |cut| cut - self.sent_down);
        let count = bytes.len().min(room).min(self.shape.down_fragment).min(left as usize);
        self.down.extend(&bytes[..count]);
        self.refused = bytes[count..].to_vec();
        self.sent_down += count as u64;
        self.wants_space |= count < bytes.len();
        if left == count as u64 {
            self.lose();
        }
        if count == 0 { Io::WouldBlock } else { Io::Bytes(count) }
    }
}
