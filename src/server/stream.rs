//! One connection's octets: what was reported of its socket, and input that has to wait.
//!
//! Readiness is a remembered flag. The kernel reports a change once (edge-triggered), and a socket that was
//! not read or written at that moment gets no second report, so a flag is cleared only when the socket
//! itself says "would block", or has given less than was asked for.
//!
//! Input is read in one of two ways. Usually everything there is: what cannot be handled yet is *stashed*.
//! When stash room or message memory is short, the input is only *looked at*, and exactly what was handled is
//! taken afterwards: then a waiting publisher's bytes stay in its own socket buffer. Of a stranger no more is
//! taken than the smallest frame that AMQP knows, so that what it sends behind its login stays there, too.
//!
//! Over TLS everything is taken, but no more than one record when plain input would only be looked at. What
//! was opened cannot go back to the socket, so every connection over TLS has room of its own for a record:
//!
//! ```text
//! reserved, per connection over TLS   | sealed output not sent | input: frames, and a sealed record |
//! stashes, shared                     | input that waits, beyond what is its connection's own      |
//! output, shared                      | output not sent: 1 KiB for each connection, and more       |
//! ```
//!
//! Output that the socket does not take is copied and kept, and nothing more is written for that connection before it
//! has left. So it is the rest of one buffer at most. How large that buffer may be follows from how much of the shared
//! part is free ([`Buffers::output_bytes`]), so the rest always finds room.
//!
//! Always true: of what is shared a stranger holds no more than one frame of the smallest size that AMQP
//! knows takes, and all of them together no more than half; nobody over TLS needs any of it to have a record
//! opened; who does need some says how much ([`Stream::missing`]), and is read again when there is so much.
//! nothing more is sealed before the rest of the last record has gone.

use std::io;

use leveret_config::bridge::UpstreamTls;
use leveret_core::limits::{FRAME_BYTES_MIN, Limits, OUTPUT_BYTES_MIN};
use leveret_core::mem::{ByteChain, BytePool, PAGE_BYTES};

use leveret_tls::{
    Handshake, Next, PLAIN_BYTES_MAX, RECORD_BYTES_MAX, SEALED_BYTES_MAX, Session, Shaken, Tls,
};

use super::platform::Socket;

/// How input is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reading {
    /// Taken; the rest is stashed.
    Take,
    /// Looked at; only what was handled is taken, and the beginning of a frame.
    Look,
    /// The peer has not logged in: no more is taken than its largest frame, as long as there is room to keep
    /// that.
    Stranger,
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
    /// Input that waits, of everybody who logged in.
    stashes: BytePool,
    /// Of these, so many bytes are for unfinished frames, and never for what waits behind others.
    stash_reserve: usize,
    /// What every connection over TLS has for itself: [`Self::RESERVED_BYTES`].
    reserved: BytePool,
    /// Where records are opened and sealed; empty when nobody speaks TLS.
    scratch: Box<[u8]>,
    /// Output that sockets did not take.
    output: BytePool,
    /// Bytes of `output` that are kept free for connections with [`OUTPUT_BYTES_MIN`] each.
    output_reserve: usize,
}

/// An unfinished frame of a handshake, and a record: opened, or sealed and not all there.
const INPUT_BYTES: usize = (RECORD_BYTES_MAX + FRAME_BYTES_MIN as usize).next_multiple_of(PAGE_BYTES);
/// With so much input of its own waiting, a connection has room for another record.
const SPARE_BYTES: usize = INPUT_BYTES - RECORD_BYTES_MAX;
/// More at once would only make others wait.
const SCRATCH_BYTES_MAX: usize = 64 << 10;

impl Buffers {
    /// Reserves them, those for TLS only if it is spoken: `with_tls` by clients, and by so many others.
    pub(super) fn new(limits: &Limits, with_tls: bool, tls_others: usize) -> Self {
        let connections = tls_others + if with_tls { limits.tls_connections_max as usize } else { 0 };
        let scratch = if connections > 0 { Self::scratch_bytes(limits) } else { 0 };
        Self {
            stashes: BytePool::with_bytes(limits.stash_bytes_max as usize),
            stash_reserve: limits.stash_bytes_max as usize / 4,
            reserved: BytePool::with_bytes(connections * Self::RESERVED_BYTES),
            scratch: vec![0; scratch].into_boxed_slice(),
            output: BytePool::with_bytes(limits.unsent_pool_bytes()),
            output_reserve: limits.unsent_reserve_bytes(),
        }
    }

    /// How many bytes may be written to one connection at once, at most `most`: a quarter of what is free, or what is
    /// reserved for each. What its socket does not take of them can be kept.
    pub(super) fn output_bytes(&self, most: usize) -> usize {
        let free = self.output.bytes_free().saturating_sub(self.output_reserve);
        (free / 4).max(OUTPUT_BYTES_MIN).min(most)
    }

    /// Whether everything that may come in one reading of `bytes` can be kept.
    pub(super) const fn can_take(&self, bytes: usize) -> bool {
        self.stashes.bytes_free() >= bytes + self.stash_reserve
    }

    /// Whether so many bytes can be kept for one who has not logged in: strangers leave half of the stashes
    /// to those who did.
    const fn has_stranger_room(&self, bytes: usize) -> bool {
        self.stashes.bytes_free() >= self.stranger_bytes(bytes)
    }

    /// How much of the stashes has to be free for a stranger to keep so many bytes.
    const fn stranger_bytes(&self, bytes: usize) -> usize {
        2 * self.stash_reserve + bytes + PAGE_BYTES
    }

    /// Bytes of input and of output that wait.
    pub(super) const fn bytes_used(&self) -> usize {
        self.stashes.bytes_used() + self.reserved.bytes_used() + self.output.bytes_used()
    }

    /// Bytes of memory that nothing lies in, and that could be given back.
    pub(super) const fn idle_bytes(&self) -> usize {
        self.stashes.idle_bytes() + self.reserved.idle_bytes() + self.output.idle_bytes()
    }

    /// Gives some of it back; `true` when there is no more to give.
    pub(super) fn trim(&mut self) -> bool {
        let parts = [self.stashes.trim(), self.reserved.trim(), self.output.trim()];
        parts.into_iter().all(|is_done| is_done)
    }

    /// A sealed record on its way out, and input, in whole pages.
    pub(super) const RESERVED_BYTES: usize = SEALED_BYTES_MAX.next_multiple_of(PAGE_BYTES) + INPUT_BYTES;

    /// Bytes to open and seal records in.
    pub(super) fn scratch_bytes(limits: &Limits) -> usize {
        SCRATCH_BYTES_MAX.min(limits.input_buffer_bytes as usize).max(SEALED_BYTES_MAX)
    }
}

/// One connection's octets.
#[derive(Debug)]
pub(super) struct Stream<S> {
    pub(super) socket: S,
    /// Reading may bring something.
    pub(super) readable: bool,
    /// Writing may take something.
    pub(super) writable: bool,
    /// The kernel said that the peer has closed its side: what is still there is the rest.
    pub(super) read_closed: bool,
    /// Nothing that is written reaches the peer any more.
    pub(super) write_closed: bool,
    /// Everything the peer sent has been seen.
    ended: bool,
    /// The peer ends because there was no room to keep the rest of a record of TLS.
    pub(super) has_lost_record: bool,
    stash: ByteChain,
    /// The stash lies in what is this connection's own.
    is_reserved: bool,
    /// Bytes at the start of the last input that came from the stash.
    from_stash: usize,
    reading: Reading,
    /// `None`: what is sent is sent as it is.
    tls: Option<Tls>,
    /// What was read is no longer in the socket, whichever way it was read.
    is_taken: bool,
    /// The rest of a record of TLS that the socket did not take.
    sealed: ByteChain,
    /// Output that is written, and that was neither sealed nor taken by the socket.
    unsent: ByteChain,
    /// Octets that the socket gave and took since this was last asked.
    passed: [u32; 2],
    /// Records of TLS opened since this was last asked.
    records: u32,
    /// Bytes of the stashes that have to be free before reading leads to anything; 0 if it does.
    missing: usize,
}

impl<S: Socket> Stream<S> {
    /// Speaks plainly at first; see [`Self::begin_tls`].
    pub(super) fn new(socket: S) -> Self {
        Self {
            socket,
            readable: true,
            writable: true,
            read_closed: false,
            write_closed: false,
            ended: false,
            has_lost_record: false,
            stash: ByteChain::default(),
            is_reserved: false,
            from_stash: 0,
            reading: Reading::Take,
            is_taken: false,
            tls: None,
            sealed: ByteChain::default(),
            unsent: ByteChain::default(),
            passed: [0; 2],
            records: 0,
            missing: 0,
        }
    }

    /// Speaks TLS from the first octet on.
    pub(super) fn begin_tls(&mut self) {
        self.tls = Some(Tls::from_client());
    }

    /// Speaks TLS from the first octet on, as the client of an upstream at this host.
    pub(super) fn begin_tls_to(&mut self, host: &str, tls: &UpstreamTls) {
        self.tls = Some(Tls::to_upstream(host, tls));
    }

    /// Why TLS is over, if the peer said why or broke its rules.
    pub(super) fn tls_fault(&self) -> Option<String> {
        match &self.tls {
            Some(Tls::Open(session)) => session.fault(),
            _ => None,
        }
    }

    /// Reads once: stashed bytes first, then what the socket has.
    ///
    /// An error is an end: what was received before it is still handed out first.
    pub(super) fn read(&mut self, buffers: &mut Buffers, buffer: &mut [u8], reading: Reading) -> Input {
        self.reading = reading;
        self.is_taken = reading == Reading::Take;
        self.missing = 0;
        self.from_stash = self.stash.len();
        let (stashed, room) = buffer.split_at_mut(self.from_stash);
        self.stash.copy_front(if self.is_reserved { &buffers.reserved } else { &buffers.stashes }, stashed);
        let count = match self.tls {
            None if self.readable && !room.is_empty() => self.receive_plain(buffers, room),
            None | Some(Tls::Away | Tls::Over) => 0,
            Some(Tls::Shaking(_)) => {
                self.gather(buffers);
                0
            }
            Some(Tls::Open(_)) => self.receive_sealed(buffers, stashed, room),
        };
        Input { len: self.from_stash + count, end: self.ended }
    }

    fn receive_plain(&mut self, buffers: &Buffers, room: &mut [u8]) -> usize {
        let own = (FRAME_BYTES_MIN as usize).saturating_sub(self.from_stash).min(room.len());
        self.is_taken |= self.reading == Reading::Stranger && own > 0 && buffers.has_stranger_room(own);
        match self.reading {
            Reading::Stranger if self.is_taken => self.receive(&mut room[..own]),
            _ => self.receive(room),
        }
    }

    fn receive(&mut self, room: &mut [u8]) -> usize {
        let result = if self.is_taken { self.socket.read(room) } else { self.socket.peek(room) };
        match result {
            Ok(count) => {
                // Less than asked for means the socket is empty: more will be reported anew, and an end
                // that was reported has been reached.
                self.readable = count == room.len();
                self.ended = count == 0 || self.read_closed && count < room.len();
                if self.is_taken {
                    self.note_passed(0, count);
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

    /// Input of a handshake.
    fn gather(&mut self, buffers: &mut Buffers) {
        let Some(Tls::Shaking(mut handshake)) = self.tls.take() else { return };
        let room = handshake.room().min(buffers.scratch.len());
        self.is_taken = true;
        if self.readable && room > 0 {
            let count = self.receive(&mut buffers.scratch[..room]);
            handshake.take_in(&buffers.scratch[..count]);
        }
        self.tls = Some(Tls::Shaking(handshake));
    }

    /// Whether what another record holds can be kept. `stashed` is what waits already; if that is too much to
    /// have it beside, it makes way.
    fn can_open(&mut self, buffers: &mut Buffers, stashed: &[u8]) -> bool {
        if stashed.len() <= SPARE_BYTES {
            return true;
        }
        // A chain takes up to a page more than it has bytes.
        let moving = if self.is_reserved { stashed.len() + PAGE_BYTES } else { 0 };
        let needed = moving + RECORD_BYTES_MAX + PAGE_BYTES;
        if buffers.stashes.bytes_free() < needed {
            self.missing = needed;
            return false;
        }
        !self.is_reserved || self.share_stash(buffers, stashed)
    }

    /// Lets the stash, which is to hold these bytes, lie in what is shared.
    fn share_stash(&mut self, buffers: &mut Buffers, bytes: &[u8]) -> bool {
        self.stash.clear(&mut buffers.reserved);
        self.is_reserved = false;
        self.stash.append(&mut buffers.stashes, bytes)
    }

    /// Opens the records that are there; says how many bytes they hold.
    fn receive_sealed(&mut self, buffers: &mut Buffers, stashed: &[u8], room: &mut [u8]) -> usize {
        self.is_taken = true;
        if !self.can_open(buffers, stashed) {
            return 0;
        }
        let Some(Tls::Open(mut session)) = self.tls.take() else { return 0 };
        let plain = self.unseal(&mut session, buffers, room);
        self.tls = Some(Tls::Open(session));
        plain
    }

    fn unseal(&mut self, session: &mut Session, buffers: &mut Buffers, room: &mut [u8]) -> usize {
        let Buffers { reserved, scratch, .. } = buffers;
        let held = session.held.len();
        // Of a record that was begun nothing stays in the socket: the kernel may hold no more of it.
        let takes_all = self.reading == Reading::Take && self.from_stash <= SPARE_BYTES;
        let limit = scratch.len().min(room.len()).min(if takes_all { usize::MAX } else { RECORD_BYTES_MAX });
        if limit <= held {
            return 0;
        }
        session.held.copy_front(reserved, &mut scratch[..held]);
        let count = if self.readable { self.receive(&mut scratch[held..limit]) } else { 0 };
        let total = held + count;
        let unsealed = session.unseal(&mut scratch[..total], room, (&mut self.sealed, reserved));
        self.ended |= unsealed.end;
        self.records += unsealed.records;
        session.held.clear(reserved);
        if !session.held.append(reserved, &scratch[unsealed.taken..total]) {
            self.has_lost_record = true;
            self.ended = true;
        }
        unsealed.plain
    }

    /// The first `handled` bytes of the last input are done with; the rest is kept for later: if it was only
    /// looked at, in the socket, as long as `more` of it could be handled another time; but not the beginning
    /// of a frame. `false`: the stash has no room for it.
    #[must_use]
    pub(super) fn keep(
        &mut self,
        buffers: &mut Buffers,
        buffer: &mut [u8],
        got: usize,
        handled: usize,
        more: bool,
    ) -> bool {
        let stashed = self.from_stash;
        let mut end = got;
        if !self.is_taken {
            let is_left = more || !self.may_keep_unfinished(buffers, got - handled);
            end = if is_left { handled.max(stashed) } else { got };
            if end > stashed && self.socket.read_exact(&mut buffer[stashed..end]).is_err() {
                return false;
            }
            self.note_passed(0, end - stashed);
        }
        let pool = if self.is_reserved { &mut buffers.reserved } else { &mut buffers.stashes };
        self.stash.consume(pool, handled.min(stashed));
        self.stash_away(buffers, &buffer[handled..end], end - handled.max(stashed))
    }

    /// Whether the beginning of a frame, of so many bytes, can be kept. It must not stay in the socket: there
    /// a few octets may cost the kernel so much that it takes no more, and the rest never comes. Strangers
    /// leave half of the stashes to those who logged in.
    fn may_keep_unfinished(&mut self, buffers: &Buffers, bytes: usize) -> bool {
        if bytes == 0 {
            return true;
        }
        let needed = match self.reading {
            Reading::Stranger => buffers.stranger_bytes(bytes),
            Reading::Take | Reading::Look => 2 * bytes + PAGE_BYTES,
        };
        if buffers.stashes.bytes_free() < needed {
            self.missing = needed;
        }
        self.missing == 0
    }

    /// Stashes the last `fresh` of `bytes`; the others are there already.
    fn stash_away(&mut self, buffers: &mut Buffers, bytes: &[u8], fresh: usize) -> bool {
        if fresh == 0 {
            return true;
        }
        let held = match &self.tls {
            Some(Tls::Open(session)) => session.held.len(),
            _ => 0,
        };
        let fits = self.is_tls() && bytes.len() + held <= INPUT_BYTES;
        if self.stash.is_empty() {
            self.is_reserved = fits;
        }
        if !self.is_reserved {
            return self.stash.append(&mut buffers.stashes, &bytes[bytes.len() - fresh..]);
        }
        fits && self.stash.append(&mut buffers.reserved, &bytes[bytes.len() - fresh..])
            || self.share_stash(buffers, bytes)
    }

    /// Whether reading may bring something that was not handed out before.
    pub(super) const fn has_more(&self) -> bool {
        self.readable || !self.stash.is_empty()
    }

    /// How large a buffer is to be for whoever takes `wanted` bytes of what is read: no part of a record of TLS can
    /// stay in the socket, so it has room for one; what is not taken then fits into what is this connection's own.
    pub(super) fn reach(&self, wanted: usize) -> usize {
        let stashed = self.stash.len();
        if self.is_tls() && stashed < wanted {
            wanted.max(stashed + RECORD_BYTES_MAX)
        } else {
            wanted.max(stashed)
        }
    }

    /// Whether what came in may be looked at without taking it: of a record of TLS a copy has to be kept.
    pub(super) fn may_look(&self, buffers: &Buffers) -> bool {
        match self.tls {
            None => true,
            Some(Tls::Open(_)) => {
                self.stash.len() < RECORD_BYTES_MAX && buffers.can_take(2 * RECORD_BYTES_MAX)
            }
            Some(Tls::Shaking(_) | Tls::Away | Tls::Over) => false,
        }
    }

    /// There may be input that was only looked at, and that the kernel will not report again.
    pub(super) const fn look_again(&mut self) {
        self.readable = true;
    }

    /// Whether the last reading led to nothing because too little of the stashes was free.
    pub(super) const fn is_starved(&self) -> bool {
        self.missing > 0
    }

    /// Whether so much is free now as was missing.
    pub(super) const fn can_go_on(&self, buffers: &Buffers) -> bool {
        buffers.stashes.bytes_free() >= self.missing
    }

    const fn note_passed(&mut self, way: usize, octets: usize) {
        self.passed[way] = self.passed[way].saturating_add(octets as u32);
    }

    /// Octets that the socket gave, and that it took, since this was last asked.
    pub(super) fn take_passed(&mut self) -> [u32; 2] {
        core::mem::take(&mut self.passed)
    }

    /// How many records of TLS were opened since this was last asked.
    pub(super) const fn take_records(&mut self) -> u32 {
        core::mem::replace(&mut self.records, 0)
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
        if !self.sealed.append(&mut buffers.reserved, &shaken.outgoing) {
            return Err("no room for what is to be sent".into());
        }
        match shaken.next {
            Next::More(handshake) => {
                self.tls = Some(Tls::Shaking(handshake));
                Ok(None)
            }
            Next::Open(mut opened) => {
                let found = (opened.login.take(), core::mem::take(&mut opened.spoken));
                let session = Session::begin(*opened, &mut buffers.reserved, &mut self.stash);
                let session = session.ok_or("no room for what it has sent")?;
                self.is_reserved = true;
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

    /// Whether output waits that was not taken by the socket.
    pub(super) const fn has_unsent(&self) -> bool {
        !self.sealed.is_empty() || !self.unsent.is_empty()
    }

    /// Writes all of `bytes`, which are at most [`Buffers::output_bytes`]; keeps what the socket does not take. Returns
    /// how many bytes the socket took. Nothing may be kept from before: [`Self::flush_output`].
    pub(super) fn write_all(&mut self, buffers: &mut Buffers, bytes: &[u8]) -> io::Result<usize> {
        assert!(self.unsent.is_empty(), "output is written in its order");
        let sent = self.write(buffers, bytes)?;
        let is_kept = self.unsent.append(&mut buffers.output, &bytes[sent..]);
        assert!(is_kept, "the room for the output of a connection was asked for before it was written");
        Ok(sent)
    }

    /// Writes what was kept, as far as the socket takes it. Returns how many bytes that are; `scratch` is as large as
    /// the most that can be kept.
    pub(super) fn flush_output(&mut self, buffers: &mut Buffers, scratch: &mut [u8]) -> io::Result<usize> {
        let scratch = &mut scratch[..self.unsent.len()];
        self.unsent.copy_front(&buffers.output, scratch);
        let sent = self.write(buffers, scratch)?;
        self.unsent.consume(&mut buffers.output, sent);
        Ok(sent)
    }

    /// Writes what the socket takes of `bytes`, and returns how many that are.
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
                // The records before this one may reach the peer: they are written, and the error comes again
                // when this one is tried again.
                Err(_) if written > 0 => 0,
                Err(error) => return Err(error),
            };
            if !self.sealed.append(&mut buffers.reserved, &buffers.scratch[sent..len]) {
                return Err(io::Error::other("no room for a sealed record"));
            }
            written += piece.len();
        }
        Ok(written)
    }

    /// Writes what was sealed before.
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
            self.note_passed(1, sent);
            self.sealed.consume(&mut buffers.reserved, sent);
        }
        Ok(())
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.socket.write(bytes) {
            Ok(count) => {
                self.writable = count == bytes.len();
                self.note_passed(1, count);
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

    /// Reads and forgets: how much, 0 when nothing more is to come; `None`: nothing is there now.
    pub(super) fn drain(&mut self, buffer: &mut [u8]) -> Option<usize> {
        match self.socket.read(buffer) {
            Ok(count) => Some(count),
            Err(error) => (error.kind() != io::ErrorKind::WouldBlock).then_some(0),
        }
    }

    /// Gives back what it has in pools.
    pub(super) fn release(&mut self, buffers: &mut Buffers) {
        self.stash.clear(if self.is_reserved { &mut buffers.reserved } else { &mut buffers.stashes });
        self.sealed.clear(&mut buffers.reserved);
        self.unsent.clear(&mut buffers.output);
        if let Some(Tls::Open(session)) = &mut self.tls {
            session.held.clear(&mut buffers.reserved);
        }
    }
}
