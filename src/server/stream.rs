//! The byte stream of a peer: readiness of its socket, input backlog, TLS, and unsent output.
//!
//! Readiness is a remembered flag. The kernel reports a change once (edge-triggered). A socket that was not read or
//! written at that moment gets no second event. A flag is therefore cleared only when the socket returns
//! `WouldBlock`, or fewer bytes than were asked for.
//!
//! Input is read in one of three ways, see [`Reading`]. Usually all available input is taken, and what cannot be
//! handled yet is kept in the peer's *input backlog*. When backlog capacity or message memory is scarce, the input is
//! only peeked at, and exactly what was handled is taken afterwards. The bytes of a blocked publisher then stay in
//! its own socket buffer. From a peer that has not logged in, at most [`FRAME_BYTES_MIN`] bytes are taken, the minimum
//! of AMQP for `frame_max`. Data behind its login therefore also stays there.
//!
//! Over TLS everything is taken, but at most one record when plain input would only be peeked at. Decrypted data
//! cannot go back to the socket, so every TLS connection has memory reserved for one record:
//!
//! ```text
//!   reserved, per TLS connection | encrypted output not sent | input: frames, and an encrypted record
//!   input backlog, shared        | input that waits, beyond what is reserved for its connection
//!   output, shared               | output not sent: 1 KiB reserved per connection, and more while it is free
//! ```
//!
//! Output that the socket does not take is copied and kept, and nothing more is written for that connection until it
//! has been sent. The kept output is therefore at most the rest of one write. The permitted size of a write follows
//! from how much of the shared pool is free ([`Buffers::output_bytes`]), so the rest always fits.
//!
//! # Invariants
//! - A peer that has not logged in holds at most [`FRAME_BYTES_MIN`] bytes of the shared input backlog. All such peers
//!   together hold at most half of it.
//! - A TLS connection needs nothing of the shared input backlog to have one record decrypted.
//! - A peer that needs input backlog states how much ([`Stream::missing`]), and is read again when that is free.
//! - No further record is encrypted before the rest of the last one has been sent.

use std::io;

use leveret_config::bridge::UpstreamTls;
use leveret_core::limits::{FRAME_BYTES_MIN, Limits, OUTPUT_BYTES_MIN};
use leveret_core::mem::{ByteChain, BytePool, PAGE_BYTES};

use leveret_tls::{
    Handshake, HandshakeOutput, HandshakeResult, PLAIN_BYTES_MAX, RECORD_BYTES_MAX, SEALED_BYTES_MAX,
    Session, Tls,
};

use super::platform::Socket;

/// How input is read from the socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reading {
    /// Input is taken from the socket, and the rest goes to the input backlog.
    Take,
    /// Input is peeked at. Only what was handled is taken from the socket, and the beginning of a frame.
    Peek,
    /// The peer has not logged in: at most its largest frame is taken, and only if that can be kept.
    Unauthenticated,
}

/// The result of a read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Input {
    /// Number of bytes at the start of the buffer. Bytes from the input backlog come first.
    pub(super) len: usize,
    /// Whether the end of the input follows them.
    pub(super) end: bool,
}

/// The memory that all streams share.
#[derive(Debug)]
pub(super) struct Buffers {
    /// Input backlogs of all peers.
    backlogs: BytePool,
    /// Bytes of `backlogs` kept for unfinished frames, never for input that waits behind other input.
    frame_reserve_bytes: usize,
    /// Memory reserved for TLS connections, [`Self::RESERVED_BYTES`] each.
    reserved: BytePool,
    /// Where records are decrypted and encrypted; empty if TLS is not used.
    scratch: Box<[u8]>,
    /// Output that sockets did not take.
    output: BytePool,
    /// Bytes of `output` kept free for connections, [`OUTPUT_BYTES_MIN`] each.
    output_reserve: usize,
}

/// Input memory reserved per TLS connection: an unfinished frame of the AMQP handshake, and a record, either
/// decrypted or encrypted and incomplete.
const INPUT_BYTES: usize = (RECORD_BYTES_MAX + FRAME_BYTES_MIN as usize).next_multiple_of(PAGE_BYTES);
/// With a backlog of at most this size, the reserved memory can hold another record.
const SPARE_BYTES: usize = INPUT_BYTES - RECORD_BYTES_MAX;
/// More bytes per read would only delay other peers.
const SCRATCH_BYTES_MAX: usize = 64 << 10;

impl Buffers {
    /// Reserves the memory. TLS memory is reserved only if TLS is used: by AMQP clients (`with_tls`), or by
    /// `tls_others` other peers.
    pub(super) fn new(limits: &Limits, with_tls: bool, tls_others: usize) -> Self {
        let connections = tls_others + if with_tls { limits.tls_connections_max as usize } else { 0 };
        let scratch = if connections > 0 { Self::scratch_bytes(limits) } else { 0 };
        Self {
            backlogs: BytePool::with_bytes(limits.input_backlog_bytes_max as usize),
            frame_reserve_bytes: limits.input_backlog_bytes_max as usize / 4,
            reserved: BytePool::with_bytes(connections * Self::RESERVED_BYTES),
            scratch: vec![0; scratch].into_boxed_slice(),
            output: BytePool::with_bytes(limits.unsent_pool_bytes()),
            output_reserve: limits.unsent_reserve_bytes(),
        }
    }

    /// Returns how many bytes may be written to one connection at once, at most `most`: a quarter of what is free, or
    /// the amount reserved per connection. Output that its socket does not take can always be kept.
    pub(super) fn output_bytes(&self, most: usize) -> usize {
        let free = self.output.bytes_free().saturating_sub(self.output_reserve);
        (free / 4).max(OUTPUT_BYTES_MIN).min(most)
    }

    /// Returns whether everything that one read of `bytes` may return can be kept.
    pub(super) const fn can_take(&self, bytes: usize) -> bool {
        self.backlogs.bytes_free() >= bytes + self.frame_reserve_bytes
    }

    /// Returns whether `bytes` of a peer that has not logged in can be kept. Such peers leave half of the shared
    /// input backlog to others.
    const fn has_unauthenticated_capacity(&self, bytes: usize) -> bool {
        self.backlogs.bytes_free() >= self.unauthenticated_bytes(bytes)
    }

    /// Returns how much of the shared input backlog must be free to keep `bytes` of a peer that has not logged in.
    const fn unauthenticated_bytes(&self, bytes: usize) -> usize {
        2 * self.frame_reserve_bytes + bytes + PAGE_BYTES
    }

    /// Returns the number of bytes of input and output that wait.
    pub(super) const fn bytes_used(&self) -> usize {
        self.backlogs.bytes_used() + self.reserved.bytes_used() + self.output.bytes_used()
    }

    /// Returns the number of bytes of unused memory that could be returned to the system.
    pub(super) const fn idle_bytes(&self) -> usize {
        self.backlogs.idle_bytes() + self.reserved.idle_bytes() + self.output.idle_bytes()
    }

    /// Returns some of the unused memory to the system. Returns `true` when all was returned.
    pub(super) fn trim(&mut self) -> bool {
        let parts = [self.backlogs.trim(), self.reserved.trim(), self.output.trim()];
        parts.into_iter().all(|is_done| is_done)
    }

    /// Memory reserved per TLS connection, in whole pages: an encrypted record to be sent, and input.
    pub(super) const RESERVED_BYTES: usize = SEALED_BYTES_MAX.next_multiple_of(PAGE_BYTES) + INPUT_BYTES;

    /// Returns the size of the buffer in which records are decrypted and encrypted.
    pub(super) fn scratch_bytes(limits: &Limits) -> usize {
        SCRATCH_BYTES_MAX.min(limits.input_buffer_bytes as usize).max(SEALED_BYTES_MAX)
    }
}

/// The byte stream of one peer.
#[derive(Debug)]
pub(super) struct Stream<S> {
    pub(super) socket: S,
    /// Whether a read may return something.
    pub(super) readable: bool,
    /// Whether a write may take something.
    pub(super) writable: bool,
    /// The kernel reported that the peer has closed its side: only buffered input is left.
    pub(super) read_closed: bool,
    /// Whether output no longer reaches the peer.
    pub(super) write_closed: bool,
    /// Whether everything that the peer sent has been read.
    ended: bool,
    /// The peer is closed because there was no memory for the rest of a TLS record.
    pub(super) has_lost_record: bool,
    backlog: ByteChain,
    /// Whether the backlog is stored in the memory reserved for this connection.
    is_reserved: bool,
    /// Number of bytes at the start of the last input that came from the backlog.
    from_backlog: usize,
    reading: Reading,
    /// `None`: the connection does not use TLS.
    tls: Option<Tls>,
    /// Whether the last input was taken from the socket, not peeked at.
    is_taken: bool,
    /// The rest of an encrypted record that the socket did not take.
    sealed: ByteChain,
    /// Output that was written, but neither encrypted nor taken by the socket.
    unsent: ByteChain,
    /// Octets received from and sent to the socket since the last call of `take_octets`.
    octets_passed: [u32; 2],
    /// Number of TLS records decrypted since the last call of `take_records`.
    records: u32,
    /// Bytes of the shared input backlog that must be free before a read can make progress; 0 if it can now.
    missing: usize,
}

impl<S: Socket> Stream<S> {
    /// Makes a stream without TLS; see [`Self::begin_tls`].
    pub(super) fn new(socket: S) -> Self {
        Self {
            socket,
            readable: true,
            writable: true,
            read_closed: false,
            write_closed: false,
            ended: false,
            has_lost_record: false,
            backlog: ByteChain::default(),
            is_reserved: false,
            from_backlog: 0,
            reading: Reading::Take,
            is_taken: false,
            tls: None,
            sealed: ByteChain::default(),
            unsent: ByteChain::default(),
            octets_passed: [0; 2],
            records: 0,
            missing: 0,
        }
    }

    /// Uses TLS from the first octet on.
    pub(super) fn begin_tls(&mut self) {
        self.tls = Some(Tls::from_client());
    }

    /// Uses TLS from the first octet on, as the client of an upstream at `host`.
    pub(super) fn begin_tls_to(&mut self, host: &str, tls: &UpstreamTls) {
        self.tls = Some(Tls::to_upstream(host, tls));
    }

    /// Returns why TLS ended, if the peer reported an error or violated the protocol.
    pub(super) fn tls_fault(&self) -> Option<String> {
        match &self.tls {
            Some(Tls::Open(session)) => session.fault(),
            _ => None,
        }
    }

    /// Reads once: first the backlog, then the socket.
    ///
    /// An error counts as the end of the input. Earlier input is returned first.
    pub(super) fn read(&mut self, buffers: &mut Buffers, buffer: &mut [u8], reading: Reading) -> Input {
        self.reading = reading;
        self.is_taken = reading == Reading::Take;
        self.missing = 0;
        self.from_backlog = self.backlog.len();
        let (backlog, room) = buffer.split_at_mut(self.from_backlog);
        self.backlog
            .copy_front(if self.is_reserved { &buffers.reserved } else { &buffers.backlogs }, backlog);
        let count = match self.tls {
            None if self.readable && !room.is_empty() => self.receive_plain(buffers, room),
            None | Some(Tls::Away | Tls::Over) => 0,
            Some(Tls::Shaking(_)) => {
                self.gather(buffers);
                0
            }
            Some(Tls::Open(_)) => self.receive_sealed(buffers, backlog, room),
        };
        Input { len: self.from_backlog + count, end: self.ended }
    }

    fn receive_plain(&mut self, buffers: &Buffers, room: &mut [u8]) -> usize {
        let own = (FRAME_BYTES_MIN as usize).saturating_sub(self.from_backlog).min(room.len());
        self.is_taken |=
            self.reading == Reading::Unauthenticated && own > 0 && buffers.has_unauthenticated_capacity(own);
        match self.reading {
            Reading::Unauthenticated if self.is_taken => self.receive(&mut room[..own]),
            _ => self.receive(room),
        }
    }

    fn receive(&mut self, room: &mut [u8]) -> usize {
        let result = if self.is_taken { self.socket.read(room) } else { self.socket.peek(room) };
        match result {
            Ok(count) => {
                // Fewer bytes than asked for means that the socket is empty. Further input will be reported anew, and
                // an end that was reported has been reached.
                self.readable = count == room.len();
                self.ended = count == 0 || self.read_closed && count < room.len();
                if self.is_taken {
                    self.count_octets(0, count);
                }
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

    /// Reads input of a TLS handshake.
    fn gather(&mut self, buffers: &mut Buffers) {
        let Some(Tls::Shaking(mut handshake)) = self.tls.take() else { return };
        let room = handshake.room().min(buffers.scratch.len());
        self.is_taken = true;
        if self.readable && room > 0 {
            let count = self.receive(&mut buffers.scratch[..room]);
            handshake.append_input(&buffers.scratch[..count]);
        }
        self.tls = Some(Tls::Shaking(handshake));
    }

    /// Returns whether the content of another record can be kept. `backlog` holds the bytes that wait already. If the
    /// reserved memory cannot hold both, they are moved to the shared input backlog.
    fn can_open(&mut self, buffers: &mut Buffers, backlog: &[u8]) -> bool {
        if backlog.len() <= SPARE_BYTES {
            return true;
        }
        // A chain takes up to one page more than its bytes.
        let moving = if self.is_reserved { backlog.len() + PAGE_BYTES } else { 0 };
        let needed = moving + RECORD_BYTES_MAX + PAGE_BYTES;
        if buffers.backlogs.bytes_free() < needed {
            self.missing = needed;
            return false;
        }
        !self.is_reserved || self.move_backlog_to_shared(buffers, backlog)
    }

    /// Moves the backlog, which must then hold `bytes`, to shared memory.
    fn move_backlog_to_shared(&mut self, buffers: &mut Buffers, bytes: &[u8]) -> bool {
        self.backlog.clear(&mut buffers.reserved);
        self.is_reserved = false;
        self.backlog.append(&mut buffers.backlogs, bytes)
    }

    /// Decrypts the available records. Returns the number of decrypted bytes.
    fn receive_sealed(&mut self, buffers: &mut Buffers, backlog: &[u8], room: &mut [u8]) -> usize {
        self.is_taken = true;
        if !self.can_open(buffers, backlog) {
            return 0;
        }
        let Some(Tls::Open(mut session)) = self.tls.take() else { return 0 };
        let plain = self.unseal(&mut session, buffers, room);
        self.tls = Some(Tls::Open(session));
        plain
    }

    fn unseal(&mut self, session: &mut Session, buffers: &mut Buffers, room: &mut [u8]) -> usize {
        let Buffers { reserved, scratch, .. } = buffers;
        let held = session.incomplete_record.len();
        // No part of a record may stay in the socket, because the kernel may not buffer more of it.
        let takes_all = self.reading == Reading::Take && self.from_backlog <= SPARE_BYTES;
        let limit = scratch.len().min(room.len()).min(if takes_all { usize::MAX } else { RECORD_BYTES_MAX });
        if limit <= held {
            return 0;
        }
        session.incomplete_record.copy_front(reserved, &mut scratch[..held]);
        let count = if self.readable { self.receive(&mut scratch[held..limit]) } else { 0 };
        let total = held + count;
        let unsealed = session.unseal(&mut scratch[..total], room, (&mut self.sealed, reserved));
        self.ended |= unsealed.end;
        self.records += unsealed.records;
        session.incomplete_record.clear(reserved);
        if !session.incomplete_record.append(reserved, &scratch[unsealed.taken..total]) {
            self.has_lost_record = true;
            self.ended = true;
        }
        unsealed.plain
    }

    /// Records that the first `handled` bytes of the last input are done with, and keeps the rest.
    ///
    /// If the input was only peeked at, the rest stays in the socket as long as `more` of it can be handled later.
    /// The beginning of a frame is taken and kept. Returns `false` if the backlog has no capacity for it.
    #[must_use]
    pub(super) fn keep(
        &mut self,
        buffers: &mut Buffers,
        buffer: &mut [u8],
        got: usize,
        handled: usize,
        more: bool,
    ) -> bool {
        let backlog = self.from_backlog;
        let mut end = got;
        if !self.is_taken {
            let is_left = more || !self.may_keep_unfinished(buffers, got - handled);
            end = if is_left { handled.max(backlog) } else { got };
            if end > backlog && self.socket.read_exact(&mut buffer[backlog..end]).is_err() {
                return false;
            }
            self.count_octets(0, end - backlog);
        }
        let pool = if self.is_reserved { &mut buffers.reserved } else { &mut buffers.backlogs };
        self.backlog.consume(pool, handled.min(backlog));
        self.append_to_backlog(buffers, &buffer[handled..end], end - handled.max(backlog))
    }

    /// Returns whether the beginning of a frame, `bytes` long, can be kept.
    ///
    /// It must not stay in the socket. There, a few octets can occupy enough kernel memory that it accepts no
    /// more, and the rest never arrives. Peers that have not logged in leave half of the shared input backlog to
    /// others.
    fn may_keep_unfinished(&mut self, buffers: &Buffers, bytes: usize) -> bool {
        if bytes == 0 {
            return true;
        }
        let needed = match self.reading {
            Reading::Unauthenticated => buffers.unauthenticated_bytes(bytes),
            Reading::Take | Reading::Peek => 2 * bytes + PAGE_BYTES,
        };
        if buffers.backlogs.bytes_free() < needed {
            self.missing = needed;
        }
        self.missing == 0
    }

    /// Appends the last `fresh` of `bytes` to the backlog, which already has the others.
    fn append_to_backlog(&mut self, buffers: &mut Buffers, bytes: &[u8], fresh: usize) -> bool {
        if fresh == 0 {
            return true;
        }
        let held = match &self.tls {
            Some(Tls::Open(session)) => session.incomplete_record.len(),
            _ => 0,
        };
        let fits = self.is_tls() && bytes.len() + held <= INPUT_BYTES;
        if self.backlog.is_empty() {
            self.is_reserved = fits;
        }
        if !self.is_reserved {
            return self.backlog.append(&mut buffers.backlogs, &bytes[bytes.len() - fresh..]);
        }
        fits && self.backlog.append(&mut buffers.reserved, &bytes[bytes.len() - fresh..])
            || self.move_backlog_to_shared(buffers, bytes)
    }

    /// Returns whether a read may return something new.
    pub(super) const fn has_more(&self) -> bool {
        self.readable || !self.backlog.is_empty()
    }

    /// Returns how large a buffer must be to take `wanted` bytes of input. No part of a TLS record can stay in the
    /// socket, so it must hold a record. The rest then fits into the memory reserved for this connection.
    pub(super) fn reach(&self, wanted: usize) -> usize {
        let backlog = self.backlog.len();
        if self.is_tls() && backlog < wanted {
            wanted.max(backlog + RECORD_BYTES_MAX)
        } else {
            wanted.max(backlog)
        }
    }

    /// Returns whether input may be peeked at without taking it. Over TLS, a copy of a record must be kept.
    pub(super) fn may_peek(&self, buffers: &Buffers) -> bool {
        match self.tls {
            None => true,
            Some(Tls::Open(_)) => {
                self.backlog.len() < RECORD_BYTES_MAX && buffers.can_take(2 * RECORD_BYTES_MAX)
            }
            Some(Tls::Shaking(_) | Tls::Away | Tls::Over) => false,
        }
    }

    /// Marks the socket as readable: there may be input that was only peeked at, which the kernel will not report
    /// again.
    pub(super) const fn assume_readable(&mut self) {
        self.readable = true;
    }

    /// Returns whether the last read made no progress because too little of the shared input backlog was free.
    pub(super) const fn lacks_backlog(&self) -> bool {
        self.missing > 0
    }

    /// Returns whether as much is free now as was missing.
    pub(super) const fn can_resume(&self, buffers: &Buffers) -> bool {
        buffers.backlogs.bytes_free() >= self.missing
    }

    const fn count_octets(&mut self, way: usize, octets: usize) {
        self.octets_passed[way] = self.octets_passed[way].saturating_add(octets as u32);
    }

    /// Returns the octets received from and sent to the socket since the last call.
    pub(super) fn take_octets(&mut self) -> [u32; 2] {
        core::mem::take(&mut self.octets_passed)
    }

    /// Returns the number of TLS records decrypted since the last call.
    pub(super) const fn take_records(&mut self) -> u32 {
        core::mem::replace(&mut self.records, 0)
    }

    // ---- TLS

    /// Returns whether the connection uses TLS.
    pub(super) const fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Returns whether the worker is carrying out a step of the handshake.
    pub(super) const fn is_handshake_with_worker(&self) -> bool {
        matches!(self.tls, Some(Tls::Away))
    }

    /// Returns whether the TLS handshake is not over.
    pub(super) const fn is_in_tls_handshake(&self) -> bool {
        matches!(self.tls, Some(Tls::Shaking(_) | Tls::Away))
    }

    /// Returns the first bytes that the peer sent, as long as none of its handshake has been processed.
    pub(super) fn opening(&self) -> Option<&[u8]> {
        match &self.tls {
            Some(Tls::Shaking(handshake)) => handshake.opening(),
            _ => None,
        }
    }

    /// Returns the handshake if it can make a step. It must be given back to [`Self::finish_handshake_step`].
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

    /// Continues after a step of the handshake. After the last step, returns the user name in the client's
    /// certificate, and a description of the negotiated protocol.
    ///
    /// # Errors
    /// Returns why the handshake failed.
    pub(super) fn finish_handshake_step(
        &mut self,
        buffers: &mut Buffers,
        shaken: HandshakeOutput,
    ) -> Result<Option<(Option<String>, String)>, String> {
        self.assume_readable();
        self.tls = Some(Tls::Over);
        if !self.sealed.append(&mut buffers.reserved, &shaken.outgoing) {
            return Err("no memory for TLS output".into());
        }
        match shaken.next {
            HandshakeResult::More(handshake) => {
                self.tls = Some(Tls::Shaking(handshake));
                Ok(None)
            }
            HandshakeResult::Open(mut opened) => {
                let found = (opened.login.take(), core::mem::take(&mut opened.version_and_cipher));
                let session = Session::begin(*opened, &mut buffers.reserved, &mut self.backlog);
                let session = session.ok_or("no memory for TLS input")?;
                self.is_reserved = true;
                self.tls = Some(Tls::Open(Box::new(session)));
                Ok(Some(found))
            }
            HandshakeResult::Failed(why) => Err(why),
        }
    }

    /// Ends the TLS handshake, if one is under way.
    pub(super) fn end_tls_handshake(&mut self) {
        if self.is_in_tls_handshake() {
            self.tls = Some(Tls::Over);
        }
    }

    /// Writes unencrypted to a peer, although its listener may use TLS. These are the first bytes to the peer, so the
    /// socket has space for them. If it does not, they are dropped.
    pub(super) fn write_unencrypted(&mut self, bytes: &[u8]) {
        let _ = self.socket.write(bytes);
    }

    // ---- writing

    /// Returns whether output waits that the socket did not take.
    pub(super) const fn has_unsent(&self) -> bool {
        !self.sealed.is_empty() || !self.unsent.is_empty()
    }

    /// Writes all of `bytes`, at most [`Buffers::output_bytes`], and keeps what the socket does not take. Returns how
    /// many bytes the socket took. No earlier output may be left: see [`Self::flush_output`].
    pub(super) fn write_all(&mut self, buffers: &mut Buffers, bytes: &[u8]) -> io::Result<usize> {
        assert!(self.unsent.is_empty(), "earlier output is written first");
        let sent = self.write(buffers, bytes)?;
        let is_kept = self.unsent.append(&mut buffers.output, &bytes[sent..]);
        assert!(is_kept, "the capacity for the output was checked before it was written");
        Ok(sent)
    }

    /// Writes kept output, as far as the socket takes it. Returns the number of bytes taken. `scratch` must be as
    /// large as the most that can be kept.
    pub(super) fn flush_output(&mut self, buffers: &mut Buffers, scratch: &mut [u8]) -> io::Result<usize> {
        let scratch = &mut scratch[..self.unsent.len()];
        self.unsent.copy_front(&buffers.output, scratch);
        let sent = self.write(buffers, scratch)?;
        self.unsent.consume(&mut buffers.output, sent);
        Ok(sent)
    }

    /// Writes to the socket, and returns how many of `bytes` it took.
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
            if !self.sealed.is_empty() || !self.writable {
                break;
            }
            let len = session.seal(piece, &mut buffers.scratch)?;
            let sent = match self.send(&buffers.scratch[..len]) {
                Ok(sent) => sent,
                // Earlier records may have reached the peer and count as written. The error is returned again when
                // this record is tried again.
                Err(_) if written > 0 => 0,
                Err(error) => return Err(error),
            };
            if !self.sealed.append(&mut buffers.reserved, &buffers.scratch[sent..len]) {
                return Err(io::Error::other("no memory for an encrypted record"));
            }
            written += piece.len();
        }
        Ok(written)
    }

    /// Writes records that were encrypted before.
    fn flush(&mut self, buffers: &mut Buffers) -> io::Result<()> {
        while self.writable && !self.sealed.is_empty() {
            let front = self.sealed.front(&buffers.reserved);
            let sent = match self.socket.write(front) {
                Ok(sent) => sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            self.writable = sent == front.len();
            self.count_octets(1, sent);
            self.sealed.consume(&mut buffers.reserved, sent);
        }
        Ok(())
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.socket.write(bytes) {
            Ok(count) => {
                self.writable = count == bytes.len();
                self.count_octets(1, count);
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

    /// Ends the output. Errors are ignored: a peer that is gone or takes nothing now need not be told.
    pub(super) fn shut_down_writing(&mut self, buffers: &mut Buffers) {
        if let Some(Tls::Open(session)) = &mut self.tls {
            let len = session.seal_close_notify(&mut buffers.scratch);
            let _ = self.socket.write(&buffers.scratch[..len]);
        }
        self.socket.shut_down_writing();
    }

    /// Reads and discards input. Returns the number of bytes, 0 at the end of the input, or `None` if nothing has
    /// arrived.
    pub(super) fn drain(&mut self, buffer: &mut [u8]) -> Option<usize> {
        match self.socket.read(buffer) {
            Ok(count) => Some(count),
            Err(error) => (error.kind() != io::ErrorKind::WouldBlock).then_some(0),
        }
    }

    /// Returns all memory of the stream to the pools.
    pub(super) fn release(&mut self, buffers: &mut Buffers) {
        self.backlog.clear(if self.is_reserved { &mut buffers.reserved } else { &mut buffers.backlogs });
        self.sealed.clear(&mut buffers.reserved);
        self.unsent.clear(&mut buffers.output);
        if let Some(Tls::Open(session)) = &mut self.tls {
            session.incomplete_record.clear(&mut buffers.reserved);
        }
    }
}
