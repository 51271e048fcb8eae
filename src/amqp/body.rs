//! The body frames of a message, written from any byte on.
//!
//! ```text
//!   | header, payload_max bytes, end | header, payload_max bytes, end | header, the rest, end |
//!   0                                                                                     total
//! ```
//!
//! A socket may accept only a part of the frames. The caller then stores the position and continues there: the same
//! message always gives the same bytes.

use leveret_core::mem::{Cursor, MessageId, Messages};

use crate::frame::{FRAME_END, FRAME_HEADER_LEN, FRAME_OVERHEAD, FrameHeader, FrameKind};

/// The body frames of one message. Positions count bytes from the first body frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BodyFrames {
    /// The number of the channel.
    pub channel: u16,
    /// Length of the body in bytes.
    pub body_len: u32,
    /// Maximum payload of a frame in bytes, at least 1.
    pub payload_max: u32,
}

impl BodyFrames {
    /// Returns the length of all frames in bytes.
    #[inline]
    pub const fn total(self) -> u64 {
        // Most bodies fit into one frame, and a division takes long on ARMv6.
        let frames = if self.body_len <= self.payload_max {
            (self.body_len > 0) as u64
        } else {
            self.body_len.div_ceil(self.payload_max) as u64
        };
        self.body_len as u64 + frames * FRAME_OVERHEAD as u64
    }

    /// Returns the size of a frame with the maximum payload.
    const fn full_frame_bytes(self) -> u64 {
        self.payload_max as u64 + FRAME_OVERHEAD as u64
    }

    /// Returns the end of the frame that contains byte `at`, or `at` if a frame begins there.
    pub fn frame_end(self, at: u64) -> u64 {
        (at.div_ceil(self.full_frame_bytes()) * self.full_frame_bytes()).min(self.total())
    }

    /// Writes from byte `at` on to `out`, as far as it has space. Returns the number of bytes written.
    ///
    /// `body_at` is an offset of the body and the cursor there; `None` at first. A call that continues there needs no
    /// search.
    pub fn write(
        self,
        messages: &Messages,
        id: MessageId,
        at: u64,
        body_at: &mut Option<(u32, Cursor)>,
        out: &mut [u8],
    ) -> usize {
        let mut written = 0;
        while written < out.len() && at + (written as u64) < self.total() {
            let (at, out) = (at + written as u64, &mut out[written..]);
            let (frame, within) = (at / self.full_frame_bytes(), (at % self.full_frame_bytes()) as usize);
            let offset = frame as u32 * self.payload_max;
            let size = (self.body_len - offset).min(self.payload_max);
            let end_at = FRAME_HEADER_LEN + size as usize;
            written += if within < FRAME_HEADER_LEN {
                let header = FrameHeader { raw_kind: FrameKind::Body as u8, channel: self.channel, size };
                copy(&header.to_bytes()[within..], out)
            } else if within < end_at {
                let offset = offset + (within - FRAME_HEADER_LEN) as u32;
                let take = (end_at - within).min(out.len());
                let mut cursor = match *body_at {
                    Some((at, cursor)) if at == offset => cursor,
                    _ => messages.body_cursor(id, offset),
                };
                messages.read(id, &mut cursor, &mut out[..take]);
                *body_at = Some((offset + take as u32, cursor));
                take
            } else {
                copy(&[FRAME_END], out)
            };
        }
        written
    }
}

/// Copies as much of `piece` as fits into `out`, and returns the number of bytes copied.
fn copy(piece: &[u8], out: &mut [u8]) -> usize {
    let take = piece.len().min(out.len());
    out[..take].copy_from_slice(&piece[..take]);
    take
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_frame_is_computed_from_the_position() {
        let frames = BodyFrames { channel: 1, body_len: 205, payload_max: 100 };
        assert_eq!(frames.total(), 2 * 108 + 13);
        for (at, end) in [(0, 0), (1, 108), (108, 108), (109, 216), (215, 216), (217, 229), (229, 229)] {
            assert_eq!(frames.frame_end(at), end, "byte {at}");
        }
        let empty = BodyFrames { body_len: 0, ..frames };
        assert_eq!((empty.total(), empty.frame_end(0)), (0, 0));
    }
}
