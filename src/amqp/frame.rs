//! Frames, and the protocol header that precedes the first frame.
//!
//! All data of a connection is sent in frames. The size of a frame is checked before its payload is read, so
//! a wrong size affects only the connection that sent it.
//!
//! ```text
//!    0      1         3             7                size+7    size+8
//!    +------+---------+-------------+ +--------------+ +-----------+
//!    | type | channel |    size     | |   payload    | | frame-end |      §2.3.5, §4.2.3
//!    +------+---------+-------------+ +--------------+ +-----------+
//!     octet    short        long        size octets      octet 0xCE
//! ```

use super::{Full, Writer};

/// The protocol header that a client sends first: `AMQP` 0 0 9 1 (§4.2.2). If a client sends another header,
/// the server sends this one.
pub const PROTOCOL_HEADER: [u8; 8] = *b"AMQP\x00\x00\x09\x01";

/// The octet that ends every frame.
pub const FRAME_END: u8 = 0xCE;

/// Octets of a frame before its payload.
pub const FRAME_HEADER_LEN: usize = 7;

/// Octets of a frame that are not payload: its header and its end.
pub const FRAME_OVERHEAD: usize = FRAME_HEADER_LEN + 1;

/// A complete heartbeat frame (§4.2.7), which is always on channel 0 and has no payload.
pub const HEARTBEAT_FRAME: [u8; 8] = [FrameKind::Heartbeat as u8, 0, 0, 0, 0, 0, 0, FRAME_END];

/// The type of a frame, which determines its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// A method and its arguments.
    Method = 1,
    /// Class, body length and properties of a content.
    Header = 2,
    /// A part of a body.
    Body = 3,
    /// No payload: the frame only shows that the peer is alive.
    Heartbeat = 8,
}

impl FrameKind {
    /// Returns the frame type with this type octet, if there is one.
    #[inline]
    pub fn from_octet(octet: u8) -> Option<Self> {
        match octet {
            1 => Some(Self::Method),
            2 => Some(Self::Header),
            3 => Some(Self::Body),
            8 => Some(Self::Heartbeat),
            _ => None,
        }
    }
}

/// The seven octets before a payload, as received: any type, channel and size are possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// The type octet; see [`FrameHeader::kind`].
    pub raw_kind: u8,
    /// The channel; 0 for frames about the connection itself.
    pub channel: u16,
    /// Number of octets of the payload.
    pub size: u32,
}

impl FrameHeader {
    /// Reads a frame header.
    #[inline]
    pub fn parse(octets: &[u8; FRAME_HEADER_LEN]) -> Self {
        let [raw_kind, c0, c1, s0, s1, s2, s3] = *octets;
        Self { raw_kind, channel: u16::from_be_bytes([c0, c1]), size: u32::from_be_bytes([s0, s1, s2, s3]) }
    }

    /// Reads the frame header at the start of `input`; `None` if there are fewer than seven octets.
    #[inline]
    pub fn peek(input: &[u8]) -> Option<Self> {
        input.first_chunk().map(Self::parse)
    }

    /// Returns the header as octets.
    #[inline]
    pub fn to_bytes(self) -> [u8; FRAME_HEADER_LEN] {
        let [c0, c1] = self.channel.to_be_bytes();
        let [s0, s1, s2, s3] = self.size.to_be_bytes();
        [self.raw_kind, c0, c1, s0, s1, s2, s3]
    }

    /// Returns the type of the frame, or `None` for a type octet that AMQP does not define.
    #[inline]
    pub fn kind(&self) -> Option<FrameKind> {
        FrameKind::from_octet(self.raw_kind)
    }
}

/// One whole frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The frame header.
    pub header: FrameHeader,
    /// The payload of `header.size` octets.
    pub payload: &'a [u8],
}

impl Frame<'_> {
    /// Returns the number of octets of the whole frame in the input.
    #[inline]
    pub fn input_len(&self) -> usize {
        self.payload.len() + FRAME_OVERHEAD
    }
}

/// Why input is not a sequence of frames. Both errors have the reply code 501 FRAME_ERROR, and no later input can be
/// parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// The header announces a larger payload than the reader accepts.
    TooLarge(FrameHeader),
    /// The octet after the payload is not [`FRAME_END`].
    BadEnd {
        /// The frame's header.
        header: FrameHeader,
        /// The octet in place of the frame end.
        found: u8,
    },
}

/// Returns the frame at the start of `input`; `None` if the frame is not complete yet.
///
/// `payload_max` is in octets. RabbitMQ accepts a payload of `frame_max` octets, although such a frame, with its
/// overhead of eight octets, is larger than `frame_max`.
///
/// # Errors
/// The input is not a valid frame. A size that is too large is reported as soon as the frame header is
/// complete.
#[inline]
pub fn next_frame(input: &[u8], payload_max: u32) -> Result<Option<Frame<'_>>, FrameError> {
    let Some((octets, rest)) = input.split_first_chunk() else {
        return Ok(None);
    };
    let header = FrameHeader::parse(octets);
    if header.size > payload_max {
        return Err(FrameError::TooLarge(header));
    }
    let Some((payload, rest)) =
        usize::try_from(header.size).ok().and_then(|size| rest.split_at_checked(size))
    else {
        return Ok(None);
    };
    match rest.first() {
        None => Ok(None),
        Some(&FRAME_END) => Ok(Some(Frame { header, payload })),
        Some(&found) => Err(FrameError::BadEnd { header, found }),
    }
}

/// The protocol of a client, recognised by its first octets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// AMQP 0-9-1: a header of eight octets, after which frames follow.
    Amqp091,
    /// More octets are needed to recognise the protocol.
    NeedMore,
    /// AMQP of another version.
    OtherAmqp,
    /// An HTTP request line: a browser or a health check uses the AMQP port.
    Http,
    /// A TLS ClientHello: the client uses `amqps://` with a port without TLS.
    Tls,
    /// An MQTT CONNECT.
    Mqtt,
    /// An unknown protocol.
    Unknown,
}

/// Recognises the protocol of a client by the first octets that it sent. Eight octets are always enough.
pub fn classify_opening(input: &[u8]) -> Opening {
    // Some old clients send the header of AMQP 0-9. RabbitMQ accepts it as 0-9-1.
    const AMQP_0_9_HEADER: [u8; 8] = *b"AMQP\x01\x01\x00\x09";
    const HTTP_METHODS: [&[u8]; 8] =
        [b"GET ", b"HEAD ", b"POST ", b"PUT ", b"DELETE ", b"OPTIONS ", b"PATCH ", b"CONNECT "];
    const TLS_HANDSHAKE: &[u8] = b"\x16\x03";

    if input.starts_with(&PROTOCOL_HEADER) || input.starts_with(&AMQP_0_9_HEADER) {
        return Opening::Amqp091;
    }
    if input.len() >= 8 && input.starts_with(b"AMQP") {
        return Opening::OtherAmqp;
    }
    if input.starts_with(TLS_HANDSHAKE) {
        return Opening::Tls;
    }
    if HTTP_METHODS.iter().any(|method| input.starts_with(method)) {
        return Opening::Http;
    }
    // An MQTT CONNECT: the type, the length in one or two octets, and the protocol name, which begins with
    // its own length.
    if input.first() == Some(&0x10) {
        let is_named = |at: usize| {
            input.get(at..).is_some_and(|name| name.starts_with(b"\0\x04MQ") || name.starts_with(b"\0\x06MQ"))
        };
        return match input.len() {
            0..7 => Opening::NeedMore,
            _ if is_named(2) || is_named(3) => Opening::Mqtt,
            _ => Opening::Unknown,
        };
    }
    let undecided = |known: &[u8]| known.starts_with(input);
    if (input.len() < 8 && (input.starts_with(b"AMQP") || undecided(b"AMQP")))
        || undecided(TLS_HANDSHAKE)
        || HTTP_METHODS.into_iter().any(undecided)
    {
        return Opening::NeedMore;
    }
    Opening::Unknown
}

impl Writer<'_> {
    /// Writes one complete frame (§2.3.5): the header, the payload that `payload` writes, and the end octet.
    ///
    /// # Errors
    /// [`Full`] if the frame does not fit. The buffer is then unchanged.
    #[inline]
    pub fn frame(
        &mut self,
        kind: FrameKind,
        channel: u16,
        payload: impl FnOnce(&mut Self) -> Result<(), Full>,
    ) -> Result<(), Full> {
        self.undo_on_error(|w| {
            w.write_u8(kind as u8)?;
            w.write_u16(channel)?;
            w.with_length(payload)?;
            w.write_u8(FRAME_END)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_there_when_its_end_is() {
        let input = b"\x03\x00\x07\x00\x00\x00\x02hi\xce\x01";
        for len in 0..10 {
            assert_eq!(next_frame(&input[..len], 100), Ok(None), "{len} octets");
        }
        let frame = next_frame(input, 100).expect("a frame").expect("whole");
        assert_eq!(frame.header, FrameHeader { raw_kind: 3, channel: 7, size: 2 });
        assert_eq!(frame.header.kind(), Some(FrameKind::Body));
        assert_eq!((frame.payload, frame.input_len()), (&b"hi"[..], 10));
        assert_eq!(frame.header.to_bytes(), input[..FRAME_HEADER_LEN]);
    }

    #[test]
    fn a_size_that_is_too_large_is_seen_at_once() {
        let header = FrameHeader { raw_kind: 1, channel: 0, size: 101 };
        assert_eq!(next_frame(&header.to_bytes(), 100), Err(FrameError::TooLarge(header)));
        assert_eq!(next_frame(&header.to_bytes(), 101), Ok(None));
        assert_eq!(FrameHeader::peek(&header.to_bytes()), Some(header));
        assert_eq!(FrameHeader::peek(&header.to_bytes()[1..]), None);
    }

    #[test]
    fn a_wrong_end_is_told_with_what_is_there() {
        let header = FrameHeader { raw_kind: 8, channel: 0, size: 0 };
        let input = [&header.to_bytes()[..], b"A"].concat();
        assert_eq!(next_frame(&input, 100), Err(FrameError::BadEnd { header, found: b'A' }));
    }

    #[test]
    fn kinds_are_those_of_the_specification() {
        let kinds: Vec<u8> = (0..=255).filter(|octet| FrameKind::from_octet(*octet).is_some()).collect();
        assert_eq!(kinds, [1, 2, 3, 8]);
        let heartbeat = next_frame(&HEARTBEAT_FRAME, 0).expect("a frame").expect("whole");
        assert_eq!(heartbeat.header, FrameHeader { raw_kind: 8, channel: 0, size: 0 });
    }

    #[test]
    fn openings() {
        let cases: [(&[u8], Opening); 23] = [
            (b"", Opening::NeedMore),
            (b"AMQP", Opening::NeedMore),
            (b"AMQP\0\0\x09", Opening::NeedMore),
            (b"AMQP\0\0\x09\x01", Opening::Amqp091),
            (b"AMQP\0\0\x09\x01\x01", Opening::Amqp091),
            (b"AMQP\x01\x01\0\x09", Opening::Amqp091),
            (b"AMQP\0\x01\0\0", Opening::OtherAmqp),
            (b"AMQP\x03\x01\0\0", Opening::OtherAmqp),
            (b"AMQP\x01\x01\x08\0", Opening::OtherAmqp),
            (b"GE", Opening::NeedMore),
            (b"GET / HTTP/1.1\r\n", Opening::Http),
            (b"HEAD ", Opening::Http),
            (b"OPTIONS", Opening::NeedMore),
            (b"OPTIONS * HTTP/1.1", Opening::Http),
            (b"\x16", Opening::NeedMore),
            (b"\x16\x03\x01\x02\0", Opening::Tls),
            (b"\x16\x02", Opening::Unknown),
            (b"MQTT", Opening::Unknown),
            (b"AMQX", Opening::Unknown),
            (b"\x10\x0c\0\x04MQTT", Opening::Mqtt),
            (b"\x10\x8c\x01\0\x06MQIsdp", Opening::Mqtt),
            (b"\x10\x0c\0\x04M", Opening::NeedMore),
            (b"\x10\x0c\0\x04AMQP", Opening::Unknown),
        ];
        for (input, opening) in cases {
            assert_eq!(classify_opening(input), opening, "{:?}", input.escape_ascii().to_string());
        }
    }
}
