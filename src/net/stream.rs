//! One connection's octets: what the kernel told us about its socket, and input that has to wait.
//!
//! Readiness is a remembered flag. The kernel reports a change once (edge-triggered), and a socket that was
//! not read or written at that moment gets no second report, so a flag is cleared only when the socket
//! itself says "would block", or has given less than was asked for.
//!
//! Input is read in one of two ways. Usually everything there is: what cannot be handled yet is *stashed*.
//! When stash room or message memory is short, the input is only *looked at*, and exactly what was handled
//! is taken afterwards: then a waiting publisher's bytes stay in its own socket buffer.
//!
//! Over TLS the same, a record at a time when it is only looked at; a record that was opened is stashed as
//! far as it cannot be handled. Sealed output cannot be taken back: what of one record the socket did not
//! take waits here, and nothing more is sealed before that has gone.

use std::io::{self, Read, Write};

use crate::limits::Limits;
use crate::mem::{ByteChain, BytePool};

use super::socket::Socket;
use super::tls::{
    Handshake, Next, PLAIN_BYTES_MAX, RECORD_BYTES_MAX, SEALED_BYTES_MAX, Session, Shaken, Tls,
};

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

/// What all streams share.
#[derive(Debug)]
pub(super) struct Buffers {
    /// Input that waits.
    pub(super) stashes: BytePool,
    /// Sealed output that waits: a record per connection over TLS.
    unsent: BytePool,
    /// Where records are opened and sealed; empty when nobody speaks TLS.
    scratch: Box<[u8]>,
}

/// More at once would only make others wait.
const SCRATCH_BYTES_MAX: usize = 64 << 10;

impl Buffers {
    /// Reserves them, those for TLS only if it is spoken.
    pub(super) fn new(limits: &Limits, with_tls: bool) -> Self {
        let connections = if with_tls { limits.tls_connections_max as usize } else { 0 };
        let scratch = if with_tls { Self::scratch_bytes(limits) } else { 0 };
        Self {
            stashes: BytePool::with_bytes(limits.stash_bytes_max as usize),
            unsent: BytePool::with_bytes(connections * Self::UNSENT_BYTES),
            scratch: vec![0; scratch].into_boxed_slice(),
        }
    }

    /// Bytes of memory that nothing lies in, and that could be given back.
    pub(super) const fn idle_bytes(&self) -> usize {
        self.stashes.idle_bytes() + self.unsent.idle_bytes()
    }

    /// Gives some of it back; `true` when there is no more to give.
    pub(super) fn trim(&mut self) -> bool {
        let parts = [self.stashes.trim(), self.unsent.trim()];
        parts.into_iter().all(|is_done| is_done)
    }

    /// A sealed record, in whole blocks.
    pub(super) const UNSENT_BYTES: usize = SEALED_BYTES_MAX.next_multiple_of(4096);

    /// Bytes to open and seal records in.
    pub(super) fn scratch_bytes(limits: &Limits) -> usize {
        SCRATCH_BYTES_MAX.min(limits.input_buffer_bytes as usize).max(SEALED_BYTES_MAX)
    }
}

/// One connection's octets.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) socket: Socket,
    /// Reading may bring something.
    pub(super) readable: bool,
    /// Writing may take something.
    pub(super) writable: bool,
    /// The kernel said that the peer has closed its side: what is still there is the rest.
    pub(super) read_closed: bool,
    /// Everything the peer sent has been seen.
    ended: bool,
    /// It ends because there was no room to keep the rest of a record of TLS.
    pub(super) has_lost_record: bool,
    stash: ByteChain,
    /// Bytes at the start of the last input that came from the stash.
    from_stash: usize,
    reading: Reading,
    /// `None`: what is sent is sent as it is.
    tls: Option<Tls>,
    /// Sealed, and not taken by the socket.
    unsent: ByteChain,
    /// The last reading found no room to open a record in.
    starved: bool,
}

impl Stream {
    pub(super) fn new(socket: Socket, with_tls: bool) -> Self {
        Self {
            socket,
            readable: true,
            writable: true,
            read_closed: false,
            ended: false,
            has_lost_record: false,
            stash: ByteChain::default(),
            from_stash: 0,
            reading: Reading::Take,
            tls: with_tls.then(Tls::new),
            unsent: ByteChain::default(),
            starved: false,
        }
    }

    /// Reads once: stashed bytes first, then what the socket has.
    ///
    /// An error is an end: what was received before it is still handed out first.
    pub(super) fn read(&mut self, buffers: &mut Buffers, buffer: &mut [u8], reading: Reading) -> Input {
        self.reading = reading;
        self.starved = false;
        self.from_stash = self.stash.len().min(buffer.len());
        self.stash.copy_front(&buffers.stashes, &mut buffer[..self.from_stash]);
        let room = &mut buffer[self.from_stash..];
        let count = match &mut self.tls {
            None if self.readable && !room.is_empty() => self.receive(room, reading),
            None | Some(Tls::Away | Tls::Over) => 0,
            Some(Tls::Shaking(_)) => {
                self.gather(buffers);
                0
            }
            Some(Tls::Open(_)) => self.receive_sealed(buffers, room, reading),
        };
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

    /// Input of a handshake.
    fn gather(&mut self, buffers: &mut Buffers) {
        let Some(Tls::Shaking(mut handshake)) = self.tls.take() else { return };
        let room = handshake.room().min(buffers.scratch.len());
        if self.readable && room > 0 {
            let count = self.receive(&mut buffers.scratch[..room], Reading::Take);
            handshake.take_in(&buffers.scratch[..count]);
        }
        self.tls = Some(Tls::Shaking(handshake));
    }

    /// Opens the records that are there; says how many bytes they hold.
    fn receive_sealed(&mut self, buffers: &mut Buffers, room: &mut [u8], reading: Reading) -> usize {
        let Some(Tls::Open(mut session)) = self.tls.take() else { return 0 };
        let plain = self.unseal(&mut session, buffers, room, reading);
        self.tls = Some(Tls::Open(session));
        // What was opened is no longer in the socket, whichever way it was read.
        self.reading = Reading::Take;
        plain
    }

    fn unseal(
        &mut self,
        session: &mut Session,
        buffers: &mut Buffers,
        room: &mut [u8],
        reading: Reading,
    ) -> usize {
        let Buffers { stashes, unsent, scratch } = buffers;
        let held = session.held.len();
        let mut limit = scratch.len().min(room.len());
        if reading == Reading::Look {
            limit = limit.min(RECORD_BYTES_MAX);
            self.starved = stashes.bytes_free() < 3 * RECORD_BYTES_MAX;
        }
        if limit <= held || self.starved {
            return 0;
        }
        session.held.copy_front(stashes, &mut scratch[..held]);
        let count = if self.readable { self.receive(&mut scratch[held..limit], reading) } else { 0 };
        let total = held + count;
        let unsealed = session.unseal(&mut scratch[..total], room, (&mut self.unsent, unsent));
        self.ended |= unsealed.end;
        let taken = unsealed.taken;
        let is_kept = if reading == Reading::Take || taken == 0 {
            // A record may be larger than what the kernel holds for a socket: what has been looked at of it
            // is taken.
            let is_taken = reading == Reading::Take || self.take_looked_at(&mut scratch[held..total]);
            session.held.clear(stashes);
            is_taken && session.held.append(stashes, &scratch[taken..total])
        } else {
            session.held.consume(stashes, held.min(taken));
            self.take_looked_at(&mut scratch[..taken.saturating_sub(held)])
        };
        if !is_kept {
            self.has_lost_record = true;
            self.ended = true;
        }
        unsealed.plain
    }

    /// Takes so much that was only looked at.
    fn take_looked_at(&mut self, bytes: &mut [u8]) -> bool {
        bytes.is_empty() || self.socket.read_exact(bytes).is_ok()
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

    /// Whether the last reading found no room to open a record in: it is to be tried again when there is
    /// some.
    pub(super) const fn is_starved(&self) -> bool {
        self.starved
    }

    // ---- TLS

    /// Whether it speaks TLS.
    pub(super) const fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Whether a step of its handshake is being made elsewhere.
    pub(super) const fn is_away(&self) -> bool {
        matches!(self.tls, Some(Tls::Away))
    }

    /// Whether its handshake of TLS is not over.
    pub(super) const fn is_shaking_hands(&self) -> bool {
        matches!(self.tls, Some(Tls::Shaking(_) | Tls::Away))
    }

    /// What the peer has said so far, as long as nothing of its handshake has been looked at.
    pub(super) fn opening(&self) -> Option<&[u8]> {
        match &self.tls {
            Some(Tls::Shaking(handshake)) => handshake.opening(),
            _ => None,
        }
    }

    /// The handshake, if it can make a step: it has to come back by [`Self::shaken`].
    pub(super) fn take_handshake(&mut self) -> Option<Box<Handshake>> {
        let is_ready = matches!(&self.tls, Some(Tls::Shaking(handshake)) if handshake.is_ready());
        match self.tls.take_if(|_| is_ready)? {
            Tls::Shaking(handshake) => {
                self.tls = Some(Tls::Away);
                Some(handshake)
            }
            other => {
                self.tls = Some(other);
                None
            }
        }
    }

    /// Goes on after a step of the handshake. When that was the last: the user name in the client's
    /// certificate, and what is spoken.
    ///
    /// # Errors
    /// Why the handshake has failed.
    pub(super) fn shaken(
        &mut self,
        buffers: &mut Buffers,
        shaken: Shaken,
    ) -> Result<Option<(Option<String>, String)>, String> {
        self.look_again();
        self.tls = Some(Tls::Over);
        if !self.unsent.append(&mut buffers.unsent, &shaken.outgoing) {
            return Err("no room for what is to be sent".into());
        }
        match shaken.next {
            Next::More(handshake) => {
                self.tls = Some(Tls::Shaking(handshake));
                Ok(None)
            }
            Next::Open(mut opened) => {
                let found = (opened.login.take(), core::mem::take(&mut opened.spoken));
                let session = Session::begin(*opened, &mut buffers.stashes, &mut self.stash);
                let session = session.ok_or("no room for what it has sent; raise stash_bytes_max")?;
                self.tls = Some(Tls::Open(Box::new(session)));
                Ok(Some(found))
            }
            Next::Failed(why) => Err(why),
        }
    }

    /// Nothing will come of its handshake, if it is in one.
    pub(super) fn give_up_tls(&mut self) {
        if self.is_shaking_hands() {
            self.tls = Some(Tls::Over);
        }
    }

    /// Writes something to a peer that does not speak TLS, whatever it should speak. It is its first, so the
    /// socket has room; otherwise it does without.
    pub(super) fn answer_plainly(&mut self, bytes: &[u8]) {
        let _ = self.socket.write(bytes);
    }

    // ---- writing

    /// Whether something sealed waits to be written.
    pub(super) const fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Writes what the socket takes of `bytes`.
    pub(super) fn write(&mut self, buffers: &mut Buffers, bytes: &[u8]) -> io::Result<usize> {
        if self.tls.is_none() {
            return if bytes.is_empty() { Ok(0) } else { self.send(bytes) };
        }
        self.flush(buffers)?;
        let Some(Tls::Open(mut session)) = self.tls.take_if(|tls| matches!(tls, Tls::Open(_))) else {
            return Ok(0);
        };
        let written = self.write_sealed(&mut session, buffers, bytes);
        self.tls = Some(Tls::Open(session));
        written
    }

    fn write_sealed(
        &mut self,
        session: &mut Session,
        buffers: &mut Buffers,
        bytes: &[u8],
    ) -> io::Result<usize> {
        let mut written = 0;
        for piece in bytes.chunks(PLAIN_BYTES_MAX) {
            if self.has_unsent() || !self.writable {
                break;
            }
            let len = session.seal(piece, &mut buffers.scratch)?;
            let sent = self.send(&buffers.scratch[..len])?;
            if !self.unsent.append(&mut buffers.unsent, &buffers.scratch[sent..len]) {
                return Err(io::Error::other("no room for a sealed record"));
            }
            written += piece.len();
        }
        Ok(written)
    }

    /// Writes what was sealed before.
    fn flush(&mut self, buffers: &mut Buffers) -> io::Result<()> {
        while self.writable && self.has_unsent() {
            let front = self.unsent.front(&buffers.unsent);
            let sent = match self.socket.write(front) {
                Ok(sent) => sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            self.writable = sent == front.len();
            self.unsent.consume(&mut buffers.unsent, sent);
        }
        Ok(())
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
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

    /// Says that we send no more. A peer that is gone, or takes nothing now, needs no telling.
    pub(super) fn shut_down_writing(&mut self, buffers: &mut Buffers) {
        if let Some(Tls::Open(session)) = &mut self.tls {
            let len = session.farewell(&mut buffers.scratch);
            let _ = self.socket.write(&buffers.scratch[..len]);
        }
        self.socket.shut_down_writing();
    }

    /// Reads and forgets; `true` when there is nothing more to come.
    pub(super) fn drain(&mut self, buffer: &mut [u8]) -> bool {
        match self.socket.read(buffer) {
            Ok(0) => true,
            Ok(_) => false,
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        }
    }

    /// Gives back what it has in pools.
    pub(super) fn release(&mut self, buffers: &mut Buffers) {
        self.stash.clear(&mut buffers.stashes);
        self.unsent.clear(&mut buffers.unsent);
        if let Some(Tls::Open(session)) = &mut self.tls {
            session.held.clear(&mut buffers.stashes);
        }
    }
}
