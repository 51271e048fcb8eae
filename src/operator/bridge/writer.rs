//! A message as the frames of a publish, from any octet of them on.
//!
//! ```text
//! | basic.publish | content header | body frame | body frame | last body frame |
//! 0                                head                                      total
//! ```
//!
//! Why it exists: a socket takes as much as it likes, and the rest is kept as a number. Always true: the same
//! message gives the same octets every time.

use crate::mem::{MessageId, Messages};
use crate::wire::{
    ContentHeader, FRAME_END, FRAME_HEADER_LEN, FRAME_OVERHEAD, FrameHeader, FrameKind, Full, Method,
    Properties, Writer,
};

/// Octets of a publish that have gone, of so many.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress {
    /// So many have gone.
    pub sent: u64,
    /// So many there are.
    pub total: u64,
}

/// Writes the method and the header of a publish on channel 1; says how long they are.
///
/// # Errors
/// They do not fit, or the header is larger than a frame may be.
pub fn write_head(
    (exchange, key): (&str, &[u8]),
    properties: Properties<'_>,
    body_len: u32,
    frame_max: u32,
    out: &mut [u8],
) -> Result<usize, Full> {
    let mut writer = Writer::new(out);
    let method = Method::BasicPublish { exchange, routing_key: key, mandatory: true, immediate: false };
    method.emit_frame(1, &mut writer)?;
    let header_at = writer.at();
    ContentHeader::new(body_len.into(), properties).emit_frame(1, &mut writer)?;
    if writer.at() - header_at > frame_max as usize {
        return Err(Full);
    }
    Ok(writer.at())
}

/// Writes on from octet `sent` of a publish whose head is this, as much as fits; says where it stands then,
/// and how much was written.
pub fn write_publish(
    messages: &Messages,
    message: MessageId,
    head: &[u8],
    frame_max: u32,
    sent: u64,
    out: &mut [u8],
) -> (Progress, usize) {
    let body_len = messages.body_len(message);
    let payload_max = frame_max - FRAME_OVERHEAD as u32;
    let frames = body_len.div_ceil(payload_max);
    let total = head.len() as u64 + u64::from(body_len) + u64::from(frames) * FRAME_OVERHEAD as u64;
    let mut writer = Body { messages, message, body_len, payload_max, cursor: None, out, at: 0 };
    let mut sent = sent;
    while sent < total && writer.at < writer.out.len() {
        let written = match sent.checked_sub(head.len() as u64) {
            None => writer.copy(&head[sent as usize..]),
            Some(into) => writer.write(into, frame_max),
        };
        sent += written as u64;
    }
    (Progress { sent, total }, writer.at)
}

/// Body frames.
struct Body<'w> {
    messages: &'w Messages,
    message: MessageId,
    body_len: u32,
    payload_max: u32,
    /// Where reading stands: the offset in the body, and the place.
    cursor: Option<(u32, crate::mem::Cursor)>,
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

    /// Writes some of the frame that octet `into` of all body frames lies in.
    fn write(&mut self, into: u64, frame_max: u32) -> usize {
        let (frame, within) = (into / u64::from(frame_max), (into % u64::from(frame_max)) as usize);
        let offset = frame as u32 * self.payload_max;
        let size = (self.body_len - offset).min(self.payload_max);
        let end_at = FRAME_HEADER_LEN + size as usize;
        if within < FRAME_HEADER_LEN {
            let header = FrameHeader { raw_kind: FrameKind::Body as u8, channel: 1, size };
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
