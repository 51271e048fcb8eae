//! Writes a message as the frames of a publish, from any byte on.
//!
//! ```text
//! | basic.publish | content header | body frame | body frame | last body frame |
//! 0                                head                                      total
//! ```
//!
//! A socket may take only a part, and the rest is remembered as a position. Body frames are short, because a
//! message of another channel may be sent between two of them. The same message always gives the same bytes.

use leveret_amqp::{
    ContentHeader, FRAME_END, FRAME_HEADER_LEN, FRAME_OVERHEAD, FrameHeader, FrameKind, Full, Method,
    Properties, Writer,
};
use leveret_core::mem::{MessageId, Messages};

/// Maximum size of a body frame in bytes: the minimum frame size of AMQP, half a second at 64 kbit/s.
pub const BODY_FRAME_BYTES: u32 = leveret_core::limits::FRAME_BYTES_MIN;
/// Maximum payload of a body frame in bytes.
const PAYLOAD_BYTES: u32 = BODY_FRAME_BYTES - FRAME_OVERHEAD as u32;

/// Writes the method and the header of a publish, and returns their length.
///
/// # Errors
/// They do not fit, or the header exceeds the frame size.
pub fn write_head(
    channel: u16,
    (exchange, key): (&str, &[u8]),
    properties: Properties<'_>,
    (body_len, frame_max): (u32, u32),
    out: &mut [u8],
) -> Result<usize, Full> {
    let mut writer = Writer::new(out);
    let method = Method::BasicPublish { exchange, routing_key: key, mandatory: true, immediate: false };
    method.emit_frame(channel, &mut writer)?;
    let header_at = writer.at();
    ContentHeader::new(body_len.into(), properties).emit_frame(channel, &mut writer)?;
    if writer.at() - header_at > frame_max as usize {
        return Err(Full);
    }
    Ok(writer.at())
}

/// Returns the length of all frames of a publish with this length of head and body.
pub fn publish_len(head: usize, body_len: u32) -> u64 {
    let frames = u64::from(body_len.div_ceil(PAYLOAD_BYTES));
    head as u64 + u64::from(body_len) + frames * FRAME_OVERHEAD as u64
}

/// Returns the bytes from position `sent` to the end of its frame; 0 between two frames. Method and header count
/// as one frame.
pub fn left_of_frame(head: usize, total: u64, sent: u64) -> u64 {
    let frame = u64::from(BODY_FRAME_BYTES);
    match sent.checked_sub(head as u64) {
        None if sent == 0 => 0,
        None => head as u64 - sent,
        Some(into) if into % frame == 0 || sent == total => 0,
        Some(into) => (frame - into % frame).min(total - sent),
    }
}

/// Writes a publish from position `sent` on, as far as it fits, and returns the number of bytes written.
pub fn write_publish(
    messages: &Messages,
    message: MessageId,
    (channel, head): (u16, &[u8]),
    mut sent: u64,
    out: &mut [u8],
) -> usize {
    let body_len = messages.body_len(message);
    let total = publish_len(head.len(), body_len);
    let mut writer = Body { messages, message, channel, body_len, cursor: None, out, at: 0 };
    while sent < total && writer.at < writer.out.len() {
        let written = match sent.checked_sub(head.len() as u64) {
            None => writer.copy(&head[sent as usize..]),
            Some(into) => writer.write(into),
        };
        sent += written as u64;
    }
    writer.at
}

/// Writes body frames.
struct Body<'w> {
    messages: &'w Messages,
    message: MessageId,
    channel: u16,
    body_len: u32,
    /// The position in the body: offset and cursor.
    cursor: Option<(u32, leveret_core::mem::Cursor)>,
    out: &'w mut [u8],
    at: usize,
}

impl Body<'_> {
    fn copy(&mut self, piece: &[u8]) -> usize {
        let take = piece.len().min(self.out.len() - self.at);
        self.out[self.at..self.at + take].copy_from_slice(&piece[..take]);
        self.at += take;
        take
    }

    /// Writes a part of the frame that contains position `into` of the body frames.
    fn write(&mut self, into: u64) -> usize {
        let frame_bytes = u64::from(BODY_FRAME_BYTES);
        let (frame, within) = (into / frame_bytes, (into % frame_bytes) as usize);
        let offset = frame as u32 * PAYLOAD_BYTES;
        let size = (self.body_len - offset).min(PAYLOAD_BYTES);
        let end_at = FRAME_HEADER_LEN + size as usize;
        if within < FRAME_HEADER_LEN {
            let header = FrameHeader { raw_kind: FrameKind::Body as u8, channel: self.channel, size };
            self.copy(&header.to_bytes()[within..])
        } else if within < end_at {
            self.payload(offset + (within - FRAME_HEADER_LEN) as u32, end_at - within)
        } else {
            self.copy(&[FRAME_END])
        }
    }

    fn payload(&mut self, offset: u32, len: usize) -> usize {
        let take = len.min(self.out.len() - self.at);
        let mut cursor = match self.cursor {
            Some((at, cursor)) if at == offset => cursor,
            _ => self.messages.body_cursor(self.message, offset),
        };
        self.messages.read(self.message, &mut cursor, &mut self.out[self.at..self.at + take]);
        self.cursor = Some((offset + take as u32, cursor));
        self.at += take;
        take
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_ends_where_its_octets_say() {
        let (head, body_len) = (100, 2 * PAYLOAD_BYTES + 5);
        let total = publish_len(head, body_len);
        assert_eq!(total, 100 + 2 * u64::from(BODY_FRAME_BYTES) + 13);
        let frame = u64::from(BODY_FRAME_BYTES);
        for (sent, left) in [
            (0, 0),
            (1, 99),
            (100, 0),
            (101, frame - 1),
            (100 + frame, 0),
            (100 + 2 * frame - 1, 1),
            (100 + 2 * frame + 1, 12),
            (total, 0),
        ] {
            assert_eq!(left_of_frame(head, total, sent), left, "octet {sent}");
        }
    }
}
