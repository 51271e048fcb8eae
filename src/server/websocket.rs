//! WebSocket frames (RFC 6455): decodes the frames of a client in place, and writes the frames of the server.
//!
//! MQTT over WebSocket is a stream of bytes in binary frames. Frames and MQTT packets begin and end independently of
//! each other, so the payload is passed on as it arrives, and a frame of any length needs no buffer. Only the payload of
//! a control frame is stored, at most [`CONTROL_BYTES_MAX`] bytes.
//!
//! ```text
//!   octets of the client → WebSocket::decode → payload of binary frames
//!                              ↓ PING, CLOSE
//!   octets of the server ← WebSocket::write_control, write_header ← payload of binary frames
//! ```
//!
//! # Invariants
//! - How the octets are divided among calls of `decode` does not change the payload or the replies.
//! - After CLOSE, or an error, no further payload is returned. The reply is due when the caller has handled the payload
//!   and calls [`WebSocket::close`].
//! - At most one PONG and one CLOSE wait to be written. PONG replies to the most recent PING, as the RFC permits.

use core::mem;

/// Maximum payload of a control frame in bytes, as the RFC defines.
const CONTROL_BYTES_MAX: usize = 125;
/// Maximum length of the header of a frame of a client: 2 bytes, a length of 8 bytes, the mask.
const CLIENT_HEADER_BYTES_MAX: usize = 14;
/// Bytes that a data frame of the server needs in front of its payload, see [`write_header`].
pub(super) const HEADER_BYTES: usize = 4;
/// Maximum payload of a frame of the server in bytes: that of a header with [`HEADER_BYTES`].
pub(super) const FRAME_BYTES_MAX: usize = u16::MAX as usize;
/// Maximum bytes that [`WebSocket::write_control`] writes: PONG and CLOSE.
pub(super) const CONTROL_OUTPUT_BYTES_MAX: usize = 2 + CONTROL_BYTES_MAX + 4;

const FIN: u8 = 0x80;
const RESERVED_BITS: u8 = 0x70;
const MASKED: u8 = 0x80;

/// The status code in CLOSE.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct CloseCode(u16);

impl CloseCode {
    /// The connection ended as its protocol intends.
    pub(super) const NORMAL: Self = Self(1000);
    const PROTOCOL_ERROR: Self = Self(1002);
    const UNSUPPORTED_DATA: Self = Self(1003);
    const INVALID_TEXT: Self = Self(1007);

    /// Returns the code, if a frame may contain it.
    const fn from_frame(code: u16) -> Option<Self> {
        match code {
            1000..=1003 | 1007..=1014 | 3000..=4999 => Some(Self(code)),
            _ => None,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Opcode {
    Continuation,
    Binary,
    Close,
    Ping,
    Pong,
}

impl Opcode {
    const fn parse(bits: u8) -> Result<Self, CloseCode> {
        match bits {
            0 => Ok(Self::Continuation),
            1 => Err(CloseCode::UNSUPPORTED_DATA),
            2 => Ok(Self::Binary),
            8 => Ok(Self::Close),
            9 => Ok(Self::Ping),
            10 => Ok(Self::Pong),
            _ => Err(CloseCode::PROTOCOL_ERROR),
        }
    }

    const fn bits(self) -> u8 {
        match self {
            Self::Continuation => 0,
            Self::Binary => 2,
            Self::Close => 8,
            Self::Ping => 9,
            Self::Pong => 10,
        }
    }

    const fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }
}

/// The mask of a frame, and the position in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Mask {
    key: [u8; 4],
    at: u8,
}

impl Mask {
    fn apply(&mut self, bytes: &mut [u8]) {
        self.key.rotate_left(usize::from(self.at));
        // The loop over whole chunks is vectorized.
        let (chunks, rest) = bytes.as_chunks_mut::<4>();
        for chunk in chunks {
            *chunk = (u32::from_ne_bytes(*chunk) ^ u32::from_ne_bytes(self.key)).to_ne_bytes();
        }
        rest.iter_mut().zip(self.key).for_each(|(byte, key)| *byte ^= key);
        self.at = rest.len() as u8;
    }
}

/// The header of a frame of a client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Header {
    opcode: Opcode,
    is_last: bool,
    len: u64,
    mask: Mask,
}

impl Header {
    /// Parses the header at the start of `bytes`; `None` if it is incomplete. A wrong header is an error as soon as the
    /// wrong byte is there.
    fn parse(bytes: &[u8]) -> Result<Option<Self>, CloseCode> {
        let Some(first) = bytes.first() else { return Ok(None) };
        if first & RESERVED_BITS != 0 {
            return Err(CloseCode::PROTOCOL_ERROR);
        }
        let (opcode, is_last) = (Opcode::parse(first & 0x0f)?, first & FIN != 0);
        if opcode.is_control() && !is_last {
            return Err(CloseCode::PROTOCOL_ERROR);
        }
        let Some(second) = bytes.get(1) else { return Ok(None) };
        let short_len = second & !MASKED;
        if second & MASKED == 0 || opcode.is_control() && usize::from(short_len) > CONTROL_BYTES_MAX {
            return Err(CloseCode::PROTOCOL_ERROR);
        }
        let rest = &bytes[2..];
        let (len, len_min, rest) = match short_len {
            126 => {
                let Some((len, rest)) = rest.split_first_chunk() else { return Ok(None) };
                (u64::from(u16::from_be_bytes(*len)), 126, rest)
            }
            127 => {
                let Some((len, rest)) = rest.split_first_chunk() else { return Ok(None) };
                (u64::from_be_bytes(*len), 1 << 16, rest)
            }
            len => (u64::from(len), 0, rest),
        };
        // The RFC requires the shortest encoding, and the highest bit must be 0.
        if len < len_min || len >> 63 != 0 {
            return Err(CloseCode::PROTOCOL_ERROR);
        }
        let key = rest.first_chunk().copied();
        Ok(key.map(|key| Self { opcode, is_last, len, mask: Mask { key, at: 0 } }))
    }
}

/// What the next byte of the client is.
#[derive(Clone, Debug)]
enum Expected {
    /// A part of a header, of which these bytes have arrived.
    Header(heapless::Vec<u8, CLIENT_HEADER_BYTES_MAX>),
    /// The payload of a data frame, of which this many bytes are missing.
    Data { missing: u64, mask: Mask },
    /// The payload of a control frame, of which this many bytes are missing.
    Control { opcode: Opcode, missing: usize, mask: Mask },
    /// Nothing: the client has sent CLOSE, or what it sent was wrong. The server replies with this code.
    Nothing { reply: Option<CloseCode> },
}

impl Expected {
    const HEADER: Self = Self::Header(heapless::Vec::new());
}

/// The CLOSE frame of the server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum CloseFrame {
    /// The connection is open.
    No,
    /// It must be written, with this code if there is one.
    Due(Option<CloseCode>),
    /// It was written.
    Written,
}

/// The result of [`WebSocket::decode`].
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Decoded {
    /// Number of bytes decoded.
    pub(super) taken: usize,
    /// Number of bytes of payload, which are now at the start of the input.
    pub(super) payload: usize,
    /// Number of frames that ended without payload for the caller.
    pub(super) empty_frames: u32,
}

/// The state of a WebSocket connection, on the side of the server.
#[derive(Clone, Debug)]
pub(super) struct WebSocket {
    expected: Expected,
    /// A data frame has arrived that was not the last one of its message.
    is_in_message: bool,
    /// The payload of the control frame that is being received, or of the PONG that is due.
    control: heapless::Vec<u8, CONTROL_BYTES_MAX>,
    is_pong_due: bool,
    close: CloseFrame,
    /// The close code for invalid input of the client.
    error: Option<CloseCode>,
}

impl WebSocket {
    /// Creates the state after the HTTP response.
    pub(super) const fn new() -> Self {
        Self {
            expected: Expected::HEADER,
            is_in_message: false,
            control: heapless::Vec::new(),
            is_pong_due: false,
            close: CloseFrame::No,
            error: None,
        }
    }

    /// Returns whether no more payload follows, because the client has sent CLOSE, or because what it sent was wrong.
    pub(super) const fn has_ended(&self) -> bool {
        matches!(self.expected, Expected::Nothing { .. })
    }

    /// Returns the close code for invalid input of the client; `None` if all was valid.
    pub(super) fn error(&self) -> Option<u16> {
        self.error.map(|CloseCode(code)| code)
    }

    /// Returns whether [`Self::write_control`] has something to write.
    pub(super) const fn has_control_output(&self) -> bool {
        self.is_pong_due || matches!(self.close, CloseFrame::Due(_))
    }

    /// Returns whether CLOSE is due or written. No other frame may follow.
    pub(super) const fn is_closing(&self) -> bool {
        !matches!(self.close, CloseFrame::No)
    }

    /// Makes CLOSE due, if it is neither due nor written. After the end of the input it contains the code of the reply,
    /// otherwise `code`. The caller has handled all payload before.
    pub(super) const fn close(&mut self, code: CloseCode) {
        if let CloseFrame::No = self.close {
            self.close = CloseFrame::Due(match self.expected {
                Expected::Nothing { reply } => reply,
                _ => Some(code),
            });
        }
    }

    /// Decodes `input` in place until it has returned `payload_max` bytes of payload. The payload moves to the start of
    /// `input`. Control frames in front of it are handled, and so are those after it if `payload_max` is not reached.
    pub(super) fn decode(&mut self, input: &mut [u8], payload_max: usize) -> Decoded {
        let mut decoded = Decoded::default();
        while decoded.taken < input.len() && decoded.payload < payload_max {
            match self.step(input, payload_max, &mut decoded) {
                Ok(()) => {}
                Err(code) => {
                    self.expected = Expected::Nothing { reply: Some(code) };
                    self.is_pong_due = false;
                    self.error = Some(code);
                }
            }
        }
        decoded
    }

    fn step(&mut self, input: &mut [u8], payload_max: usize, decoded: &mut Decoded) -> Result<(), CloseCode> {
        match &mut self.expected {
            Expected::Header(bytes) => {
                // The header is at most as long as its buffer, so there is space for one more byte.
                let _ = bytes.push(input[decoded.taken]);
                decoded.taken += 1;
                if let Some(header) = Header::parse(bytes)? {
                    self.begin_frame(header)?;
                    decoded.empty_frames += u32::from(header.len == 0 || header.opcode.is_control());
                }
            }
            Expected::Data { missing, mask } => {
                let available = (input.len() - decoded.taken).min(payload_max - decoded.payload);
                let len = usize::try_from(*missing).unwrap_or(usize::MAX).min(available);
                let from = decoded.taken;
                mask.apply(&mut input[from..from + len]);
                input.copy_within(from..from + len, decoded.payload);
                decoded.taken += len;
                decoded.payload += len;
                *missing -= len as u64;
                if *missing == 0 {
                    self.expected = Expected::HEADER;
                }
            }
            Expected::Control { opcode, missing, mask } => {
                let end = input.len().min(decoded.taken + *missing);
                let bytes = &mut input[decoded.taken..end];
                mask.apply(bytes);
                *missing -= bytes.len();
                decoded.taken = end;
                if *opcode != Opcode::Pong {
                    // The length was checked with the header.
                    let _ = self.control.extend_from_slice(bytes);
                }
                if *missing == 0 {
                    let opcode = *opcode;
                    self.end_control_frame(opcode)?;
                }
            }
            Expected::Nothing { .. } => decoded.taken = input.len(),
        }
        Ok(())
    }

    fn begin_frame(&mut self, header: Header) -> Result<(), CloseCode> {
        let Header { opcode, is_last, len, mask } = header;
        if opcode.is_control() {
            if opcode != Opcode::Pong {
                self.control.clear();
                self.is_pong_due = false;
            }
            self.expected = Expected::Control { opcode, missing: len as usize, mask };
            return if len == 0 { self.end_control_frame(opcode) } else { Ok(()) };
        }
        let begins_message = opcode == Opcode::Binary;
        if begins_message == self.is_in_message {
            return Err(CloseCode::PROTOCOL_ERROR);
        }
        self.is_in_message = !is_last;
        self.expected = if len == 0 { Expected::HEADER } else { Expected::Data { missing: len, mask } };
        Ok(())
    }

    fn end_control_frame(&mut self, opcode: Opcode) -> Result<(), CloseCode> {
        self.expected = Expected::HEADER;
        match opcode {
            Opcode::Ping => self.is_pong_due = !self.is_closing(),
            Opcode::Close => {
                self.expected = Expected::Nothing { reply: self.received_close_code()? };
            }
            Opcode::Pong | Opcode::Continuation | Opcode::Binary => {}
        }
        Ok(())
    }

    /// Returns the code of the CLOSE that has arrived, which may have none.
    fn received_close_code(&self) -> Result<Option<CloseCode>, CloseCode> {
        let Some((code, reason)) = self.control.split_first_chunk() else {
            return if self.control.is_empty() { Ok(None) } else { Err(CloseCode::PROTOCOL_ERROR) };
        };
        let code = CloseCode::from_frame(u16::from_be_bytes(*code)).ok_or(CloseCode::PROTOCOL_ERROR)?;
        core::str::from_utf8(reason).map_err(|_| CloseCode::INVALID_TEXT)?;
        Ok(Some(code))
    }

    /// Writes the control frames that are due to the start of `out`, which must have space for
    /// [`CONTROL_OUTPUT_BYTES_MAX`] bytes. Returns their length.
    pub(super) fn write_control(&mut self, out: &mut [u8]) -> usize {
        let mut len = 0;
        let mut write = |opcode: Opcode, payload: &[u8]| {
            let frame = &mut out[len..len + 2 + payload.len()];
            frame[..2].copy_from_slice(&[FIN | opcode.bits(), payload.len() as u8]);
            frame[2..].copy_from_slice(payload);
            len += frame.len();
        };
        if mem::take(&mut self.is_pong_due) {
            write(Opcode::Pong, &self.control);
        }
        if let CloseFrame::Due(code) = self.close {
            match code {
                Some(CloseCode(code)) => write(Opcode::Close, &code.to_be_bytes()),
                None => write(Opcode::Close, &[]),
            }
            self.close = CloseFrame::Written;
        }
        len
    }
}

/// Writes the header of a binary frame into the [`HEADER_BYTES`] in front of its payload, which has `len` bytes, from 1
/// to [`FRAME_BYTES_MAX`]. Returns where in `bytes` the header begins.
pub(super) fn write_header(bytes: &mut [u8; HEADER_BYTES], len: usize) -> usize {
    let [high, low] = (len as u16).to_be_bytes();
    if len < 126 {
        [bytes[2], bytes[3]] = [FIN | Opcode::Binary.bits(), low];
        return 2;
    }
    *bytes = [FIN | Opcode::Binary.bits(), 126, high, low];
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a frame of a client.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let key = [0x11, 0xa2, 0x73, 0xf4];
        let mut frame = vec![first];
        match payload.len() {
            len @ 0..126 => frame.push(MASKED | len as u8),
            len @ 126..=0xffff => {
                frame.push(MASKED | 126);
                frame.extend_from_slice(&(len as u16).to_be_bytes());
            }
            len => {
                frame.push(MASKED | 127);
                frame.extend_from_slice(&(len as u64).to_be_bytes());
            }
        }
        frame.extend_from_slice(&key);
        frame.extend(payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
        frame
    }

    fn control_output(socket: &mut WebSocket) -> Vec<u8> {
        let mut out = [0; CONTROL_OUTPUT_BYTES_MAX];
        let len = socket.write_control(&mut out);
        out[..len].to_vec()
    }

    /// Returns the payload and the control frames of the server, if `input` arrives in these parts.
    fn decode_parts<'a>(parts: impl Iterator<Item = &'a [u8]>) -> (Vec<u8>, Vec<u8>, WebSocket) {
        let mut socket = WebSocket::new();
        let mut payload = Vec::new();
        for part in parts {
            let mut part = part.to_vec();
            let decoded = socket.decode(&mut part, usize::MAX);
            assert_eq!(decoded.taken, part.len());
            payload.extend_from_slice(&part[..decoded.payload]);
        }
        if socket.has_ended() {
            assert!(!socket.has_control_output(), "CLOSE waits until the payload is handled");
            socket.close(CloseCode::NORMAL);
        }
        let out = control_output(&mut socket);
        (payload, out, socket)
    }

    /// Decodes the input at once, byte by byte, and split at each byte.
    fn decode(input: &[u8]) -> (Vec<u8>, Vec<u8>, bool) {
        let (payload, out, socket) = decode_parts(core::iter::once(input));
        let whole = (payload, out, socket.has_ended());
        let (payload, out, socket) = decode_parts(input.chunks(1));
        assert_eq!((payload, out, socket.has_ended()), whole, "byte by byte");
        for at in 0..input.len().min(400) {
            let (payload, out, socket) = decode_parts([&input[..at], &input[at..]].into_iter());
            assert_eq!((payload, out, socket.has_ended()), whole, "split at {at}");
        }
        whole
    }

    /// The guide names this size.
    #[test]
    fn the_state_takes_two_hundred_bytes() {
        assert!(size_of::<WebSocket>() <= 200, "{}", size_of::<WebSocket>());
    }

    #[test]
    fn payload_of_any_length_is_unmasked() {
        for len in [0, 1, 2, 3, 4, 5, 125, 126, 127, 300, 65_535, 65_536, 70_000] {
            let payload: Vec<u8> = (0..len).map(|at| at as u8).collect();
            assert_eq!(decode(&frame(0x82, &payload)), (payload, Vec::new(), false), "{len}");
        }
    }

    #[test]
    fn frames_and_packets_begin_and_end_independently() {
        let input = [
            frame(0x02, b"ab"),
            frame(0x89, b"ping"),
            frame(0x00, b""),
            frame(0x00, b"cd"),
            frame(0x8a, b"pong"),
            frame(0x80, b"e"),
            frame(0x82, b""),
            frame(0x82, b"fgh"),
        ];
        let pong = b"\x8a\x04ping".to_vec();
        let (payload, out, has_ended) = decode(&input[..4].concat());
        assert_eq!((payload, out, has_ended), (b"abcd".to_vec(), pong.clone(), false));
        assert_eq!(decode(&input.concat()), (b"abcdefgh".to_vec(), pong, false));
    }

    #[test]
    fn the_most_recent_ping_is_answered_once() {
        let (_, out, mut socket) = decode_parts([&*frame(0x89, &[7; 125]), &frame(0x89, b"x")].into_iter());
        assert_eq!(out, b"\x8a\x01x");
        assert!(!socket.has_control_output() && control_output(&mut socket).is_empty());
        let (_, out, _) = decode_parts([&*frame(0x89, &[7; 125])].into_iter());
        assert_eq!((out.len(), &out[..2]), (127, &b"\x8a\x7d"[..]));
    }

    #[test]
    fn close_is_echoed_and_nothing_follows() {
        for (payload, echo) in [
            (&b""[..], &b"\x88\x00"[..]),
            (b"\x03\xe8", b"\x88\x02\x03\xe8"),
            (b"\x03\xe9going away", b"\x88\x02\x03\xe9"),
            (b"\x0f\xa0private", b"\x88\x02\x0f\xa0"),
            // One byte, codes that must not be sent, and a reason that is no UTF-8.
            (b"\x03", b"\x88\x02\x03\xea"),
            (b"\x03\xed", b"\x88\x02\x03\xea"),
            (b"\x00\x00", b"\x88\x02\x03\xea"),
            (b"\x13\x88", b"\x88\x02\x03\xea"),
            (b"\x03\xe8\xff", b"\x88\x02\x03\xef"),
        ] {
            let input = [frame(0x82, b"a"), frame(0x88, payload), frame(0x82, b"b"), frame(0x89, b"")];
            assert_eq!(decode(&input.concat()), (b"a".to_vec(), echo.to_vec(), true), "{payload:?}");
        }
    }

    #[test]
    fn wrong_frames_end_the_connection_with_their_code() {
        let unmasked = vec![0x82, 1, b'x'];
        let with_length = |bytes: &[u8]| [&[0x82][..], bytes, &[0; 4]].concat();
        for (what, wrong, code) in [
            ("text", frame(0x81, b"x"), 1003),
            ("a part of a text", frame(0x01, b"x"), 1003),
            ("unmasked", unmasked, 1002),
            ("a reserved bit", frame(0xc2, b"x"), 1002),
            ("a reserved bit", frame(0x92, b"x"), 1002),
            ("a reserved data opcode", frame(0x83, b"x"), 1002),
            ("a reserved control opcode", frame(0x8b, b""), 1002),
            ("a control frame in parts", frame(0x09, b"x"), 1002),
            ("an oversized control frame", frame(0x89, &[0; 126]), 1002),
            ("a continuation of nothing", frame(0x80, b"x"), 1002),
            ("a message in a message", [frame(0x02, b""), frame(0x82, b"x")].concat(), 1002),
            ("a long encoding", with_length(&[MASKED | 126, 0, 125]), 1002),
            ("a long encoding", with_length(&[MASKED | 127, 0, 0, 0, 0, 0, 0, 0xff, 0xff]), 1002),
            ("a length of 64 bits", with_length(&[MASKED | 127, 0x80, 0, 0, 0, 0, 0, 0, 0]), 1002),
        ] {
            let close = [&[0x88, 2][..], &u16::to_be_bytes(code)].concat();
            let input = [frame(0x82, b"good"), wrong, frame(0x82, b"bad")].concat();
            assert_eq!(decode(&input), (b"good".to_vec(), close, true), "{what}");
        }
    }

    /// The largest frame begins like any other. Its length alone costs nothing.
    #[test]
    fn a_huge_frame_is_passed_on_as_it_arrives() {
        let header = [&[0x82, MASKED | 127, 0x7f][..], &[0xff; 7], &[0; 4], b"abc"].concat();
        assert_eq!(decode(&header), (b"abc".to_vec(), Vec::new(), false));
    }

    #[test]
    fn decoding_stops_after_the_wanted_payload() {
        let mut input = [frame(0x82, b"abc"), frame(0x89, b"p"), frame(0x82, b"de")].concat();
        let mut socket = WebSocket::new();
        let first = socket.decode(&mut input, 2);
        assert_eq!((first.taken, first.payload, &input[..2]), (8, 2, &b"ab"[..]));
        let second = socket.decode(&mut input[8..], 1);
        assert_eq!((second.taken, second.payload, input[8]), (1, 1, b'c'));
        assert!(!socket.has_control_output(), "the PING is behind the payload");
        let third = socket.decode(&mut input[9..], 1);
        assert_eq!((third.payload, third.empty_frames, input[9]), (1, 1, b'd'));
        assert_eq!(control_output(&mut socket), b"\x8a\x01p");
    }

    #[test]
    fn the_server_closes_once() {
        let mut socket = WebSocket::new();
        socket.close(CloseCode::NORMAL);
        assert!(socket.has_control_output() && socket.is_closing() && !socket.has_ended());
        assert_eq!(control_output(&mut socket), b"\x88\x02\x03\xe8");
        socket.decode(&mut frame(0x89, b"late"), usize::MAX);
        socket.decode(&mut frame(0x88, b"\x03\xe8"), usize::MAX);
        socket.close(CloseCode::NORMAL);
        assert!(socket.has_ended() && !socket.has_control_output());
    }

    #[test]
    fn headers_of_the_server_are_as_short_as_possible() {
        for (len, wanted) in [
            (1, &[0x82, 1][..]),
            (125, &[0x82, 125]),
            (126, &[0x82, 126, 0, 126]),
            (FRAME_BYTES_MAX, &[0x82, 126, 0xff, 0xff]),
        ] {
            let mut bytes = [0; HEADER_BYTES];
            let from = write_header(&mut bytes, len);
            assert_eq!(&bytes[from..], wanted);
        }
    }

    /// Any octets are decoded without a panic, in the same way however they are split.
    #[test]
    fn random_octets_are_decoded_alike_however_they_are_split() {
        let mut state = 7_u32;
        let mut random = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        for _ in 0..300 {
            let mut input = Vec::new();
            for _ in 0..random() % 6 {
                let payload: Vec<u8> = (0..random() % 140).map(|_| random()).collect();
                let first = [0x82, 0x02, 0x80, 0x00, 0x89, 0x8a, 0x88, 0x82][usize::from(random() % 8)];
                input.extend(frame(first, &payload));
            }
            if random() < 60 && !input.is_empty() {
                let at = usize::from(random()) % input.len();
                input[at] ^= 1 << (random() % 8);
            }
            decode(&input);
        }
    }
}
