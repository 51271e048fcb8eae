//! One socket: what the kernel told us about it, and input that has to wait.
//!
//! Readiness is a remembered flag. The kernel reports a change once (edge-triggered), and a socket that was
//! not read or written at that moment gets no second report, so a flag is cleared only when the socket
//! itself says "would block", or has given less than was asked for.
//!
//! Input is read in one of two ways. Usually everything there is: what cannot be handled yet is *stashed*.
//! When stash room or message memory is short, the input is only *looked at*, and exactly what was handled
//! is taken afterwards: then a waiting publisher's bytes stay in its own socket buffer.

use std::io::{self, Read, Write};
use std::net::Shutdown;

use mio::net::TcpStream;

use crate::mem::{ByteChain, BytePool};

/// How input is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reading {
    /// Taken; the rest is stashed.
    Take,
    /// Looked at; only what was handled is taken.
    Look,
}

/// What reading brought.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Input {
    /// Bytes at the start of the buffer, stashed ones first.
    pub(super) len: usize,
    /// Nothing will come after them.
    pub(super) end: bool,
}

/// A connected socket.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) socket: TcpStream,
    /// Reading may bring something.
    pub(super) readable: bool,
    /// Writing may take something.
    pub(super) writable: bool,
    /// The kernel said that the peer has closed its side: what is still there is the rest.
    pub(super) read_closed: bool,
    /// Everything the peer sent has been seen.
    ended: bool,
    stash: ByteChain,
    /// Bytes at the start of the last input that came from the stash.
    from_stash: usize,
    reading: Reading,
}

impl Stream {
    pub(super) fn new(socket: TcpStream) -> Self {
        Self {
            socket,
            readable: true,
            writable: true,
            read_closed: false,
            ended: false,
            stash: ByteChain::default(),
            from_stash: 0,
            reading: Reading::Take,
        }
    }

    /// Reads once: stashed bytes first, then what the socket has.
    ///
    /// An error is an end: what was received before it is still handed out first.
    pub(super) fn read(&mut self, pool: &BytePool, buffer: &mut [u8], reading: Reading) -> Input {
        self.reading = reading;
        self.from_stash = self.stash.len().min(buffer.len());
        self.stash.copy_front(pool, &mut buffer[..self.from_stash]);
        let mut count = 0;
        if self.readable && self.from_stash < buffer.len() {
            count = self.receive(&mut buffer[self.from_stash..], reading);
        }
        Input { len: self.from_stash + count, end: self.ended }
    }

    fn receive(&mut self, room: &mut [u8], reading: Reading) -> usize {
        let result = match reading {
            Reading::Take => self.socket.read(room),
            Reading::Look => self.socket.peek(room),
        };
        match result {
            Ok(count) => {
                // Less than asked for means the socket is empty: more will be reported anew, and an end
                // that was reported has been reached.
                self.readable = count == room.len();
                self.ended = count == 0 || self.read_closed && count < room.len();
                count
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                0
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => {
                log::debug!("reading failed: {error}");
                self.readable = false;
                self.ended = true;
                0
            }
        }
    }

    /// The first `handled` bytes of the last input are done with; the rest is kept for later: in the socket
    /// when it was only looked at, unless nothing of it could be handled although nobody `waits`. `false`:
    /// the stash has no room for it.
    #[must_use]
    pub(super) fn keep(
        &mut self,
        pool: &mut BytePool,
        buffer: &mut [u8],
        got: usize,
        handled: usize,
        waits: bool,
    ) -> bool {
        let from_stash = handled.min(self.from_stash);
        self.stash.consume(pool, from_stash);
        match self.reading {
            Reading::Take => {
                let start = handled.max(self.from_stash);
                self.stash.append(pool, &buffer[start..got])
            }
            // A frame that is not complete may be larger than what the kernel holds for a socket.
            Reading::Look if handled == 0 && !waits && pool.bytes_free() > 2 * got => {
                let start = self.from_stash;
                self.socket.read_exact(&mut buffer[start..got]).is_ok()
                    && self.stash.append(pool, &buffer[start..got])
            }
            Reading::Look => {
                let taken = handled.saturating_sub(self.from_stash);
                taken == 0 || self.socket.read_exact(&mut buffer[..taken]).is_ok()
            }
        }
    }

    /// There may be input that was only looked at, and that the kernel will not report again.
    pub(super) const fn look_again(&mut self) {
        self.readable = true;
    }

    /// Writes what the socket takes of `bytes`.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.socket.write(bytes) {
            Ok(count) => {
                self.writable = count == bytes.len();
                Ok(count)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.writable = false;
                Ok(0)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Says that we send no more. A peer that is gone needs no telling.
    pub(super) fn shut_down_writing(&self) {
        let _ = self.socket.shutdown(Shutdown::Write);
    }

    /// Reads and forgets; `true` when there is nothing more to come.
    pub(super) fn drain(&mut self, buffer: &mut [u8]) -> bool {
        match self.socket.read(buffer) {
            Ok(0) => true,
            Ok(_) => false,
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        }
    }

    /// Gives the stash back.
    pub(super) fn release(&mut self, pool: &mut BytePool) {
        self.stash.clear(pool);
    }
}
