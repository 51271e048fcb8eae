//! The byte stream of a peer: readiness of its socket, input backlog, TLS, WebSocket, and unsent output.
//!
//! The stream stores in two flags whether its socket is readable and writable. The kernel reports readiness
//! only when it begins (edge-triggered), and not again if the socket is not read or written then. A flag is
//! therefore cleared only when the socket returns `WouldBlock`, or fewer bytes than requested.
//!
//! There are three ways of reading, see [`ReadMode`]. Usually all available input is taken from the socket,
//! and what cannot be handled yet is kept in the peer's *input backlog*. When backlog capacity or message
//! memory is scarce, the input is only peeked at, and afterwards only the handled part is taken. The
//! remaining bytes of a blocked publisher then stay in the kernel's socket buffer. From a peer that has not
//! logged in, at most [`FRAME_BYTES_MIN`] bytes are taken (AMQP's minimum for `frame_max`), or a whole CONNECT of MQTT. Data
//! that follows its login stays in the socket buffer too.
//!
//! Over TLS, input is always taken, because decrypted data cannot be left in the socket. When input without
//! TLS would only be peeked at, at most one record is taken. Every TLS connection has memory reserved for one
//! record:
//!
//! ```text
//!   reserved, per TLS connection | encrypted output not sent | input: an unfinished frame, and a record
//!   input backlog, shared        | input not yet handled, beyond the memory reserved for its connection
//!   output, shared               | output not sent: 1 KiB reserved per connection, and more while it is free
//! ```
//!
//! Frames of WebSocket are decoded in place, after TLS, so the backlog contains only their payload. Input that was
//! only peeked at is decoded with a copy of the state. The handled part is then taken, and decoded again.
//!
//! Output that the socket does not take is copied and kept. No more output is produced for the connection
//! until the kept output has been sent, so it is at most the rest of one write. A write is at most as large
//! as the free part of the shared pool permits ([`Buffers::output_bytes`]), so there is always memory for the
//! rest.
//!
//! # Invariants
//! - A peer that has not logged in uses at most [`FRAME_BYTES_MIN`] bytes of the shared input backlog, or
//!   [`CONNECT_BYTES_MAX`](leveret_core::limits::CONNECT_BYTES_MAX) with MQTT, and a record more over TLS. All such peers
//!   together use at most half of it.
//! - One record of a TLS connection can be decrypted without the shared input backlog.
//! - A peer that needs input backlog stores the number of bytes ([`Stream::missing`]), and is read again when they
//!   are free.
//! - No record is encrypted before the rest of the previous one has been sent.

use std::io;

use leveret_config::bridge::UpstreamTls;
use leveret_core::limits::{FRAME_BYTES_MIN, Limits, OUTPUT_BYTES_MIN};
use leveret_core::mem::{ByteChain, BytePool, PAGE_BYTES};

use leveret_tls::{
    Handshake, HandshakeOutput, HandshakeResult, PLAIN_BYTES_MAX, RECORD_BYTES_MAX, SEALED_BYTES_MAX,
    Session, Tls,
};

use super::platform::Socket;
use super::websocket::{CloseCode, WebSocket};

/// How input is read from the socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ReadMode {
    /// Input is taken from the socket. The part that cannot be handled is kept in the input backlog.
    Take,
    /// Input is peeked at. Afterwards only the handled part, and the beginning of an unfinished frame, is
    /// taken from the socket.
    Peek,
    /// The peer has not logged in: at most this many bytes are taken, and only if they can be kept.
    Unauthenticated { bytes_max: usize },
}

/// The result of a read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Input {
    /// Number of bytes in the buffer. Those from the input backlog come first.
    pub(super) len: usize,
    /// The end of the input follows these bytes.
    pub(super) is_end: bool,
}

/// The memory that all streams share.
#[derive(Debug)]
pub(super) struct Buffers {
    /// Input backlogs of all peers.
    backlogs: BytePool,
    /// Bytes of `backlogs` that are used only for unfinished frames, not for other input.
    frame_reserve_bytes: usize,
    /// Memory reserved for TLS connections, [`Self::RESERVED_BYTES`] each.
    reserved: BytePool,
    /// The buffer in which records are decrypted and encrypted; empty if TLS is not used.
    scratch: Box<[u8]>,
    /// Output that sockets did not take.
    output: BytePool,
    /// Bytes of `output` that are reserved for connections, [`OUTPUT_BYTES_MIN`] each.
    output_reserve: usize,
}

/// Input memory reserved per TLS connection: an unfinished frame of the AMQP handshake, and a record, either
/// decrypted or encrypted and incomplete.
const INPUT_BYTES: usize = (RECORD_BYTES_MAX + FRAME_BYTES_MIN as usize).next_multiple_of(PAGE_BYTES);
/// If the backlog has at most this size, another record fits into the reserved memory.
const SPARE_BYTES: usize = INPUT_BYTES - RECORD_BYTES_MAX;
/// Maximum size of the buffer for records. More bytes per read would only delay other peers.
const SCRATCH_BYTES_MAX: usize = 64 << 10;

impl Buffers {
    /// Reserves the memory. TLS memory is reserved only if AMQP clients use TLS (`with_tls`), or `tls_others`
    /// (the number of other peers with TLS) is not 0.
    pub(super) fn new(limits: &Limits, with_tls: bool, tls_others: usize) -> Self {
        let connections = tls_others + if with_tls { limits.connection_places() as usize } else { 0 };
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

    /// Returns the maximum number of bytes of a write to one connection. If its socket does not take them, the output
    /// pool can keep them. The number is a quarter of the free pool, at least [`OUTPUT_BYTES_MIN`], at most `most`.
    pub(super) fn output_bytes(&self, most: usize) -> usize {
        let free = self.output.bytes_free().saturating_sub(self.output_reserve);
        (free / 4).max(OUTPUT_BYTES_MIN).min(most)
    }

    /// Returns whether the input of a read of `bytes` bytes could be kept.
    pub(super) const fn can_take(&self, bytes: usize) -> bool {
        self.backlogs.bytes_free() >= bytes + self.frame_reserve_bytes
    }

    /// Returns whether `bytes` bytes from a peer that has not logged in can be kept. All such peers together
    /// may use only half of the shared input backlog.
    const fn has_unauthenticated_capacity(&self, bytes: usize) -> bool {
        self.backlogs.bytes_free() >= self.unauthenticated_bytes(bytes)
    }

    /// Returns how much of the shared input backlog must be free to keep `bytes` bytes from a peer that has
    /// not logged in.
    const fn unauthenticated_bytes(&self, bytes: usize) -> usize {
        2 * self.frame_reserve_bytes + bytes + PAGE_BYTES
    }

    /// Returns the number of bytes of input and output that are kept.
    pub(super) const fn bytes_used(&self) -> usize {
        self.backlogs.bytes_used() + self.reserved.bytes_used() + self.output.bytes_used()
    }

    /// Returns the number of bytes of unused memory that could be returned to the system.
    pub(super) const fn idle_bytes(&self) -> usize {
        self.backlogs.idle_bytes() + self.reserved.idle_bytes() + self.output.idle_bytes()
    }

    /// Returns a part of the unused memory to the system. Returns whether it was the last part.
    pub(super) fn trim(&mut self) -> bool {
        let parts = [self.backlogs.trim(), self.reserved.trim(), self.output.trim()];
        parts.into_iter().all(|is_done| is_done)
    }

    /// Bytes reserved per TLS connection, in whole pages: for an encrypted record to be sent, and for input.
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
    /// A read may return bytes, or the end of the input.
    pub(super) is_readable: bool,
    /// A write may take bytes.
    pub(super) is_writable: bool,
    /// The kernel reported that the peer sends nothing more. Only buffered input is left.
    pub(super) is_read_closed: bool,
    /// The peer receives nothing more.
    pub(super) is_write_closed: bool,
    /// Everything that the peer sent has been read.
    has_reached_end: bool,
    /// A part of a TLS record could not be kept for lack of memory, so the peer must be closed.
    pub(super) has_lost_record: bool,
    backlog: ByteChain,
    /// The backlog is in the memory reserved for this connection, not in the shared input backlog.
    is_reserved: bool,
    /// How many bytes of the last input came from the backlog.
    from_backlog: usize,
    reading: ReadMode,
    /// The state of TLS; `None` if the connection does not use TLS.
    tls: Option<Tls>,
    /// The state of WebSocket; `None` if the connection does not use it.
    websocket: Option<Box<WebSocket>>,
    /// How many octets of WebSocket frames the last input contained, if they were only peeked at.
    peeked: u32,
    /// The last input was taken from the socket, not only peeked at.
    is_taken: bool,
    /// The rest of an encrypted record that the socket did not take.
    unsent_record: ByteChain,
    /// Output that was neither encrypted nor taken by the socket.
    unsent: ByteChain,
    /// Octets received from and sent to the socket since the last call of `take_octets`.
    octets_passed: [u32; 2],
    /// Number of decrypted TLS records and of WebSocket frames without payload since the last `take_records`.
    records: u32,
    /// Bytes of the shared input backlog that must be free before a read can make progress; 0 if it can now.
    missing: usize,
}

impl<S: Socket> Stream<S> {
    /// Creates a stream without TLS; see [`Self::begin_tls`].
    pub(super) fn new(socket: S) -> Self {
        Self {
            socket,
            is_readable: true,
            is_writable: true,
            is_read_closed: false,
            is_write_closed: false,
            has_reached_end: false,
            has_lost_record: false,
            backlog: ByteChain::default(),
            is_reserved: false,
            from_backlog: 0,
            reading: ReadMode::Take,
            is_taken: false,
            tls: None,
            websocket: None,
            peeked: 0,
            unsent_record: ByteChain::default(),
            unsent: ByteChain::default(),
            octets_passed: [0; 2],
            records: 0,
            missing: 0,
        }
    }

    /// Makes the stream use TLS from the first octet on, as the server.
    pub(super) fn begin_tls(&mut self) {
        self.tls = Some(Tls::from_client());
    }

    /// Makes the stream use TLS from the first octet on, as a client of the upstream at `host`.
    pub(super) fn begin_tls_to(&mut self, host: &str, tls: &UpstreamTls) {
        self.tls = Some(Tls::to_upstream(host, tls));
    }

    /// Returns why TLS ended: the peer reported an error or violated the protocol. `None` otherwise.
    pub(super) fn tls_fault(&self) -> Option<String> {
        match &self.tls {
            Some(Tls::Open(session)) => session.fault(),
            _ => None,
        }
    }

    /// Reads once: returns the backlog, followed by input from the socket.
    ///
    /// An error of the socket is treated as the end of the input, after all input that arrived before.
    pub(super) fn read(&mut self, buffers: &mut Buffers, buffer: &mut [u8], reading: ReadMode) -> Input {
        self.reading = reading;
        self.is_taken = reading == ReadMode::Take;
        self.missing = 0;
        self.from_backlog = self.backlog.len();
        let (backlog, room) = buffer.split_at_mut(self.from_backlog);
        self.backlog
            .copy_front(if self.is_reserved { &buffers.reserved } else { &buffers.backlogs }, backlog);
        let count = match self.tls {
            None if self.is_readable && !room.is_empty() => self.receive_plain(buffers, room),
            None | Some(Tls::Away | Tls::Over) => 0,
            Some(Tls::Shaking(_)) => {
                self.receive_handshake(buffers);
                0
            }
            Some(Tls::Open(_)) => self.receive_sealed(buffers, backlog, room),
        };
        let (count, is_end) = self.decode_frames(&mut room[..count]);
        Input { len: self.from_backlog + count, is_end: self.has_reached_end || is_end }
    }

    /// Decodes the WebSocket frames in input that has just arrived, if the connection uses WebSocket. Returns the number
    /// of bytes of payload, and whether the client has ended the connection with them.
    fn decode_frames(&mut self, input: &mut [u8]) -> (usize, bool) {
        let Some(websocket) = &mut self.websocket else { return (input.len(), false) };
        if !self.is_taken {
            self.peeked = input.len() as u32;
            let mut preview = websocket.clone();
            let decoded = preview.decode(input, usize::MAX);
            return (decoded.payload, preview.has_ended());
        }
        let decoded = websocket.decode(input, usize::MAX);
        self.records += decoded.empty_frames;
        (decoded.payload, websocket.has_ended())
    }

    /// Takes WebSocket frames from the socket that were only peeked at: all of them, or as many as contain `payload`
    /// bytes of payload. Returns `false` if the socket does not return them any more.
    fn take_frames(&mut self, buffer: &mut [u8], is_all: bool, payload: usize) -> bool {
        let Some(mut websocket) = self.websocket.take() else { return true };
        let mut left = core::mem::take(&mut self.peeked) as usize;
        let mut payload_left = if is_all { usize::MAX } else { payload };
        while left > 0 && payload_left > 0 {
            let most = left.min(buffer.len());
            let count = match self.socket.peek(&mut buffer[..most]) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => break,
            };
            let decoded = websocket.decode(&mut buffer[..count], payload_left);
            if decoded.taken == 0 || self.socket.read_exact(&mut buffer[..decoded.taken]).is_err() {
                break;
            }
            self.count_octets(0, decoded.taken);
            self.records += decoded.empty_frames;
            left -= decoded.taken;
            payload_left -= decoded.payload;
        }
        self.websocket = Some(websocket);
        left == 0 || payload_left == 0
    }

    fn receive_plain(&mut self, buffers: &Buffers, room: &mut [u8]) -> usize {
        let ReadMode::Unauthenticated { bytes_max } = self.reading else { return self.receive(room) };
        let own = bytes_max.saturating_sub(self.from_backlog).min(room.len());
        self.is_taken = own > 0 && buffers.has_unauthenticated_capacity(own);
        self.receive(if self.is_taken { &mut room[..own] } else { room })
    }

    fn receive(&mut self, room: &mut [u8]) -> usize {
        let result = if self.is_taken { self.socket.read(room) } else { self.socket.peek(room) };
        match result {
            Ok(count) => {
                // Fewer bytes than requested mean that the socket is empty. The kernel will report further
                // input. If it has reported the end of the input, that has been reached.
                self.is_readable = count == room.len();
                self.has_reached_end = count == 0 || self.is_read_closed && count < room.len();
                if self.is_taken {
                    self.count_octets(0, count);
                }
                count
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.is_readable = false;
                0
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => {
                log::debug!("reading failed: {error}");
                self.is_readable = false;
                self.has_reached_end = true;
                0
            }
        }
    }

    /// Reads input of a TLS handshake.
    fn receive_handshake(&mut self, buffers: &mut Buffers) {
        let Some(Tls::Shaking(mut handshake)) = self.tls.take() else { return };
        let room = handshake.room().min(buffers.scratch.len());
        self.is_taken = true;
        if self.is_readable && room > 0 {
            let count = self.receive(&mut buffers.scratch[..room]);
            handshake.append_input(&buffers.scratch[..count]);
        }
        self.tls = Some(Tls::Shaking(handshake));
    }

    /// Returns whether the content of another record can be kept. `backlog` is the backlog's content. If the
    /// reserved memory is too small for both, moves the backlog to the shared input backlog.
    fn can_open(&mut self, buffers: &mut Buffers, backlog: &[u8]) -> bool {
        if backlog.len() <= SPARE_BYTES {
            return true;
        }
        // A chain may take up to one page more than its bytes.
        let moving = if self.is_reserved { backlog.len() + PAGE_BYTES } else { 0 };
        let needed = match self.reading {
            ReadMode::Unauthenticated { .. } => buffers.unauthenticated_bytes(moving + RECORD_BYTES_MAX),
            ReadMode::Take | ReadMode::Peek => moving + RECORD_BYTES_MAX + PAGE_BYTES,
        };
        if buffers.backlogs.bytes_free() < needed {
            self.missing = needed;
            return false;
        }
        !self.is_reserved || self.move_backlog_to_shared(buffers, backlog)
    }

    /// Moves the backlog to shared memory, with `bytes` as its content. Returns `false` if there is no
    /// capacity.
    fn move_backlog_to_shared(&mut self, buffers: &mut Buffers, bytes: &[u8]) -> bool {
        self.backlog.clear(&mut buffers.reserved);
        self.is_reserved = false;
        self.backlog.append(&mut buffers.backlogs, bytes)
    }

    /// Receives and decrypts the available records. Returns the number of decrypted bytes.
    fn receive_sealed(&mut self, buffers: &mut Buffers, backlog: &[u8], room: &mut [u8]) -> usize {
        self.is_taken = true;
        if !self.can_open(buffers, backlog) {
            return 0;
        }
        let Some(Tls::Open(mut session)) = self.tls.take() else { return 0 };
        let plain = self.decrypt_records(&mut session, buffers, room);
        self.tls = Some(Tls::Open(session));
        plain
    }

    fn decrypt_records(&mut self, session: &mut Session, buffers: &mut Buffers, room: &mut [u8]) -> usize {
        let Buffers { reserved, scratch, .. } = buffers;
        let held = session.incomplete_record.len();
        // All parts of a record must be taken from the socket, because the kernel's buffer may be too small
        // for a whole record.
        let takes_all = self.reading == ReadMode::Take && self.from_backlog <= SPARE_BYTES;
        let limit = scratch.len().min(room.len()).min(if takes_all { usize::MAX } else { RECORD_BYTES_MAX });
        if limit <= held {
            return 0;
        }
        session.incomplete_record.copy_front(reserved, &mut scratch[..held]);
        let count = if self.is_readable { self.receive(&mut scratch[held..limit]) } else { 0 };
        let total = held + count;
        let unsealed = session.unseal(&mut scratch[..total], room, &mut self.unsent_record, reserved);
        self.has_reached_end |= unsealed.end;
        self.records += unsealed.records;
        session.incomplete_record.clear(reserved);
        if !session.incomplete_record.append(reserved, &scratch[unsealed.taken..total]) {
            self.has_lost_record = true;
            self.has_reached_end = true;
        }
        unsealed.plain
    }

    /// Keeps the rest of the last input, after the first `handled` of its `got` bytes were handled.
    ///
    /// If the input was only peeked at and `more` of it can be handled later, the rest stays in the socket.
    /// Otherwise it is the beginning of a frame, which is taken and kept. Without capacity for it, it stays in the
    /// socket too ([`Self::lacks_backlog`]). Returns `false` if input that was taken cannot be kept, or if the socket
    /// does not return peeked input any more.
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
            if self.websocket.is_none() {
                if end > backlog && self.socket.read_exact(&mut buffer[backlog..end]).is_err() {
                    return false;
                }
                self.count_octets(0, end - backlog);
            }
        }
        let pool = if self.is_reserved { &mut buffers.reserved } else { &mut buffers.backlogs };
        self.backlog.consume(pool, handled.min(backlog));
        self.append_to_backlog(buffers, &buffer[handled..end], end - handled.max(backlog))
            && (self.is_taken || self.take_frames(&mut buffer[backlog..], end == got, end - backlog))
    }

    /// Returns whether the beginning of a frame, of `bytes` bytes, can be kept.
    ///
    /// It should not stay in the socket. A few octets can fill the kernel's receive buffer, and the rest of the frame
    /// then never arrives. All peers that have not logged in may together use only half of the shared input backlog.
    fn may_keep_unfinished(&mut self, buffers: &Buffers, bytes: usize) -> bool {
        if bytes == 0 {
            return true;
        }
        let needed = match self.reading {
            ReadMode::Unauthenticated { .. } => buffers.unauthenticated_bytes(bytes),
            ReadMode::Take | ReadMode::Peek => 2 * bytes + PAGE_BYTES,
        };
        if buffers.backlogs.bytes_free() < needed {
            self.missing = needed;
        }
        self.missing == 0
    }

    /// Makes `bytes` the content of the backlog. All but the last `fresh` bytes are in it already.
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

    /// Returns whether a read may return more input.
    pub(super) const fn has_more(&self) -> bool {
        self.is_readable || !self.backlog.is_empty()
    }

    /// Returns how large the input buffer must be so that `wanted` bytes can be handled. Over TLS it must
    /// have space for a whole record, because no part of a record can stay in the socket.
    pub(super) fn buffer_bytes_for(&self, wanted: usize) -> usize {
        let backlog = self.backlog.len();
        if self.is_tls() && backlog < wanted {
            wanted.max(backlog + RECORD_BYTES_MAX)
        } else {
            wanted.max(backlog)
        }
    }

    /// Returns whether input may be read without handling any of it. Over TLS this requires memory for the
    /// content of a record.
    pub(super) fn may_peek(&self, buffers: &Buffers) -> bool {
        match self.tls {
            None => true,
            Some(Tls::Open(_)) => {
                self.backlog.len() < RECORD_BYTES_MAX && buffers.can_take(2 * RECORD_BYTES_MAX)
            }
            Some(Tls::Shaking(_) | Tls::Away | Tls::Over) => false,
        }
    }

    /// Marks the socket as readable. It may have input that was only peeked at, which the kernel will not
    /// report again.
    pub(super) const fn assume_readable(&mut self) {
        self.is_readable = true;
    }

    /// Returns whether the last read could not take or keep input for lack of shared input backlog.
    pub(super) const fn lacks_backlog(&self) -> bool {
        self.missing > 0
    }

    /// Returns whether as much shared input backlog is free now as was missing at the last read.
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

    /// Returns the number of decrypted TLS records and of WebSocket frames without payload since the last call.
    pub(super) const fn take_records(&mut self) -> u32 {
        core::mem::replace(&mut self.records, 0)
    }

    // ---- TLS

    /// Returns whether the connection uses TLS.
    pub(super) const fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Returns whether a step of the TLS handshake is with the worker.
    pub(super) const fn is_handshake_with_worker(&self) -> bool {
        matches!(self.tls, Some(Tls::Away))
    }

    /// Returns whether the TLS handshake has not ended.
    pub(super) const fn is_in_tls_handshake(&self) -> bool {
        matches!(self.tls, Some(Tls::Shaking(_) | Tls::Away))
    }

    /// Returns the first bytes that the peer sent, while no part of the TLS handshake has been processed;
    /// `None` afterwards.
    pub(super) fn first_bytes(&self) -> Option<&[u8]> {
        match &self.tls {
            Some(Tls::Shaking(handshake)) => handshake.opening(),
            _ => None,
        }
    }

    /// Removes and returns the TLS handshake if it can make a step. The caller passes the result of the step
    /// to [`Self::finish_handshake_step`].
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

    /// Continues after a step of the TLS handshake. After the last step, returns the user name in the
    /// client's certificate (if any) and a description of the negotiated protocol; before, `None`.
    ///
    /// # Errors
    /// The handshake failed; the error is the reason.
    pub(super) fn finish_handshake_step(
        &mut self,
        buffers: &mut Buffers,
        shaken: HandshakeOutput,
    ) -> Result<Option<(Option<String>, String)>, String> {
        self.assume_readable();
        self.tls = Some(Tls::Over);
        if !self.unsent_record.append(&mut buffers.reserved, &shaken.outgoing) {
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

    /// Abandons the TLS handshake, if it has not ended.
    pub(super) fn end_tls_handshake(&mut self) {
        if self.is_in_tls_handshake() {
            self.tls = Some(Tls::Over);
        }
    }

    /// Writes to a peer without encryption, even if its listener uses TLS. These are the first bytes to the
    /// peer, so its socket normally has space for them; otherwise they are dropped.
    pub(super) fn write_unencrypted(&mut self, bytes: &[u8]) {
        let _ = self.socket.write(bytes);
    }

    // ---- WebSocket

    /// Makes the stream use WebSocket from now on. All earlier input has been handled.
    pub(super) fn begin_websocket(&mut self) {
        self.websocket = Some(Box::new(WebSocket::new()));
    }

    /// Returns the state of WebSocket; `None` if the connection does not use it.
    pub(super) fn websocket(&mut self) -> Option<&mut WebSocket> {
        self.websocket.as_deref_mut()
    }

    /// Returns whether the connection uses WebSocket.
    pub(super) const fn is_websocket(&self) -> bool {
        self.websocket.is_some()
    }

    /// Returns whether a CLOSE frame is due or written, after which nothing may be written.
    pub(super) fn is_websocket_closing(&self) -> bool {
        self.websocket.as_ref().is_some_and(|websocket| websocket.is_closing())
    }

    /// Makes a CLOSE frame due, if the connection uses WebSocket and none is due or written. All input has been handled.
    pub(super) fn close_websocket(&mut self) {
        if let Some(websocket) = &mut self.websocket {
            websocket.close(CloseCode::NORMAL);
        }
    }

    // ---- writing

    /// Returns whether there is output besides that of the session: kept output, or control frames of WebSocket.
    pub(super) fn has_output(&self) -> bool {
        self.has_unsent() || self.websocket.as_ref().is_some_and(|websocket| websocket.has_control_output())
    }

    /// Returns whether there is kept output that the socket did not take.
    pub(super) const fn has_unsent(&self) -> bool {
        !self.unsent_record.is_empty() || !self.unsent.is_empty()
    }

    /// Writes `bytes`, and keeps the part that the socket does not take. Returns how many bytes the socket
    /// took. There must be no kept output ([`Self::flush_output`]), and at most [`Buffers::output_bytes`]
    /// bytes may be written.
    pub(super) fn write_all(&mut self, buffers: &mut Buffers, bytes: &[u8]) -> io::Result<usize> {
        assert!(self.unsent.is_empty(), "earlier output is written first");
        let sent = self.write(buffers, bytes)?;
        let is_kept = self.unsent.append(&mut buffers.output, &bytes[sent..]);
        assert!(is_kept, "the capacity for the output was checked before it was written");
        Ok(sent)
    }

    /// Writes kept output until the socket takes no more. Returns the number of bytes that it took. `scratch`
    /// must be as large as the largest possible kept output.
    pub(super) fn flush_output(&mut self, buffers: &mut Buffers, scratch: &mut [u8]) -> io::Result<usize> {
        let scratch = &mut scratch[..self.unsent.len()];
        self.unsent.copy_front(&buffers.output, scratch);
        let sent = self.write(buffers, scratch)?;
        self.unsent.consume(&mut buffers.output, sent);
        Ok(sent)
    }

    /// Writes to the socket, encrypted if TLS is used. Returns how many of `bytes` were written.
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
            if !self.unsent_record.is_empty() || !self.is_writable {
                break;
            }
            let len = session.seal(piece, &mut buffers.scratch)?;
            let sent = match self.send(&buffers.scratch[..len]) {
                Ok(sent) => sent,
                // Records before this one were sent and count as written. The next attempt to write will
                // return the error again.
                Err(_) if written > 0 => 0,
                Err(error) => return Err(error),
            };
            if !self.unsent_record.append(&mut buffers.reserved, &buffers.scratch[sent..len]) {
                return Err(io::Error::other("no memory for an encrypted record"));
            }
            written += piece.len();
        }
        Ok(written)
    }

    /// Writes the rest of an encrypted record.
    fn flush(&mut self, buffers: &mut Buffers) -> io::Result<()> {
        while self.is_writable && !self.unsent_record.is_empty() {
            let front = self.unsent_record.front(&buffers.reserved);
            let sent = match self.socket.write(front) {
                Ok(sent) => sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            self.is_writable = sent == front.len();
            self.count_octets(1, sent);
            self.unsent_record.consume(&mut buffers.reserved, sent);
        }
        Ok(())
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.socket.write(bytes) {
            Ok(count) => {
                self.is_writable = count == bytes.len();
                self.count_octets(1, count);
                Ok(count)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.is_writable = false;
                Ok(0)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Ends the output: sends TLS's `close_notify` and shuts down writing. Errors are ignored, because the
    /// connection is being closed.
    pub(super) fn shut_down_writing(&mut self, buffers: &mut Buffers) {
        if let Some(Tls::Open(session)) = &mut self.tls {
            let len = session.seal_close_notify(&mut buffers.scratch);
            let _ = self.socket.write(&buffers.scratch[..len]);
        }
        self.socket.shut_down_writing();
    }

    /// Reads and discards input. Returns the number of bytes, 0 at the end of the input, `None` if no input
    /// has arrived.
    pub(super) fn drain(&mut self, buffer: &mut [u8]) -> Option<usize> {
        match self.socket.read(buffer) {
            Ok(count) => Some(count),
            Err(error) => (error.kind() != io::ErrorKind::WouldBlock).then_some(0),
        }
    }

    /// Returns all memory of the stream to the pools.
    pub(super) fn release(&mut self, buffers: &mut Buffers) {
        self.backlog.clear(if self.is_reserved { &mut buffers.reserved } else { &mut buffers.backlogs });
        self.unsent_record.clear(&mut buffers.reserved);
        self.unsent.clear(&mut buffers.output);
        if let Some(Tls::Open(session)) = &mut self.tls {
            session.incomplete_record.clear(&mut buffers.reserved);
        }
    }
}
