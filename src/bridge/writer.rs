//! Writes a message as the frames of `basic.publish`, from any byte position on.
//!
//! ```text
//! | basic.publish | content header | body frame | body frame | last body frame |
//! 0                                head                                      total
//! ```
//!
//! A socket may accept only a part of the frames. The caller then stores the position and continues there: the same
//! message always gives the same bytes. Body frames are short, so that a message of another channel can be sent between
//! two of them.

use leveret_amqp::{
    ContentHeader, FRAME_END, FRAME_HEADER_LEN, FRAME_OVERHEAD, FrameHeader, FrameKind, Full, Method,
    Properties, Writer,
};
use leveret_core::mem::{MessageId, Messages};

/// Maximum size of a body frame in bytes: the smallest `frame_max` that AMQP allows. Sending it takes half a second at
/// 64 kbit/s.
pub const BODY_FRAME_BYTES: u32 = leveret_core::limits::FRAME_BYTES_MIN;
/// Maximum payload of a body frame in bytes.
const PAYLOAD_BYTES: u32 = BODY_FRAME_BYTES - FRAME_OVERHEAD as u32;

/// Writes the *head* of a publish to `out`: the frames of `basic.publish` and of the content header. Returns the head's
/// length in bytes.
///
/// # Errors
/// The head does not fit into `out`, or the header's frame exceeds `frame_max`.
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

/// Returns the length in bytes of all frames of a publish, given the lengths of its head and body.
pub fn publish_len(head_len: usize, body_len: u32) -> u64 {
    let frames = u64::from(body_len.div_ceil(PAYLOAD_BYTES));
    head_len as u64 + u64::from(body_len) + frames * FRAME_OVERHEAD as u64
}

/// Returns the number of bytes from position `sent` to the end of the frame at that position; 0 if `sent` is between two
/// frames. The head counts as one frame. `total` is the result of [`publish_len`].
pub fn left_of_frame(head_len: usize, total: u64, sent: u64) -> u64 {
    let frame = u64::from(BODY_FRAME_BYTES);
    match sent.checked_sub(head_len as u64) {
        None if sent == 0 => 0,
        None => head_len as u64 - sent,
        Some(into) if into % frame == 0 || sent == total => 0,
        Some(into) => (frame - into % frame).min(total - sent),
    }
}

/// Writes a publish from position `sent` on to `out`, as far as the space in `out` allows. Returns the number of bytes
/// written. `head` is the output of [`write_head`].
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

/// Writes the body frames of a message.
struct Body<'w> {
    messages: &'w Messages,
    message: MessageId,
    channel: u16,
    body_len: u32,
    /// The position after the last piece that was read from the body: its offset and a cursor.
    cursor: Option<(u32, leveret_core::mem::Cursor)>,
    out: &'w mut [u8],
    at: usize,
}

impl Body<'_> {
    /// Copies as much of `piece` as fits, and returns its length.
    fn copy(&mut self, piece: &[u8]) -> usize {
        let take = piece.len().min(self.out.len() - self.at);
        self.out[self.at..self.at + take].copy_from_slice(&piece[..take]);
        self.at += take;
        take
    }

    /// Writes the next part of the frame at position `into`, counted from the first body frame: a part of the frame's
    /// header, payload or end. Returns its length.
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

    /// Writes up to `len` bytes of the body from `offset` on, and returns their number.
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
    fn the_rest_of_a_frame_is_computed_from_the_position() {
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
