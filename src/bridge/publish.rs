//! The frames of `basic.publish`, written from any byte on.
//!
//! ```text
//! | basic.publish | content header | body frame | body frame | last body frame |
//! 0                                head                                      total
//! ```
//!
//! Body frames are short, so that a message of another channel can be sent between two of them.

use leveret_amqp::{BodyFrames, ContentHeader, FRAME_OVERHEAD, Full, Method, Properties, Writer};
use leveret_core::limits::FRAME_BYTES_MIN;
use leveret_core::mem::{MessageId, Messages};

/// Maximum payload of a body frame in bytes, for frames of the smallest size that AMQP allows. Sending one takes half a
/// second at 64 kbit/s.
const PAYLOAD_BYTES: u32 = FRAME_BYTES_MIN - FRAME_OVERHEAD as u32;

/// What the frames before a body contain.
#[derive(Clone, Copy, Debug)]
pub struct PublishHead<'a> {
    /// The exchange.
    pub exchange: &'a str,
    /// The routing key.
    pub routing_key: &'a [u8],
    /// The properties.
    pub properties: Properties<'a>,
    /// Length of the body in bytes.
    pub body_len: u32,
}

/// Writes the *head* of a publish to `out`: the frames of `basic.publish` and of the content header, in frames of at most
/// `frame_max` bytes. Returns the head's length in bytes. The message is mandatory:
/// the upstream returns it if it routes it to no queue.
///
/// # Errors
/// The head does not fit into `out`, or the header's frame exceeds `frame_max`.
pub fn write_head(
    channel: u16,
    head: &PublishHead<'_>,
    frame_max: u32,
    out: &mut [u8],
) -> Result<usize, Full> {
    let PublishHead { exchange, routing_key, properties, body_len } = *head;
    let mut writer = Writer::new(out);
    let method = Method::BasicPublish { exchange, routing_key, mandatory: true, immediate: false };
    method.emit_frame(channel, &mut writer)?;
    let header_at = writer.at();
    ContentHeader::new(body_len.into(), properties).emit_frame(channel, &mut writer)?;
    if writer.at() - header_at > frame_max as usize {
        return Err(Full);
    }
    Ok(writer.at())
}

/// All frames of a publish. Positions count bytes from the beginning of the head.
#[derive(Clone, Copy, Debug)]
pub struct PublishFrames<'h> {
    head: &'h [u8],
    body: BodyFrames,
}

impl<'h> PublishFrames<'h> {
    /// Returns the frames of a publish with a body of `body_len` bytes. `head` is the output of [`write_head`].
    pub const fn new(channel: u16, head: &'h [u8], body_len: u32) -> Self {
        Self { head, body: BodyFrames { channel, body_len, payload_max: PAYLOAD_BYTES } }
    }

    /// Returns the length of all frames in bytes.
    pub const fn total(&self) -> u64 {
        self.head.len() as u64 + self.body.total()
    }

    /// Returns the end of the frame that contains byte `at`, or `at` if a frame begins there. The head counts as one
    /// frame.
    pub fn frame_end(&self, at: u64) -> u64 {
        match at.checked_sub(self.head.len() as u64) {
            None if at == 0 => 0,
            None => self.head.len() as u64,
            Some(into) => self.head.len() as u64 + self.body.frame_end(into),
        }
    }

    /// Writes from byte `at` on to `out`, as far as it has space. Returns the number of bytes written.
    pub fn write(&self, messages: &Messages, message: MessageId, at: u64, out: &mut [u8]) -> usize {
        let rest = self.head.get(at as usize..).unwrap_or_default();
        let head = rest.len().min(out.len());
        out[..head].copy_from_slice(&rest[..head]);
        let into = (at + head as u64).saturating_sub(self.head.len() as u64);
        head + self.body.write(messages, message, into, &mut None, &mut out[head..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_counts_as_one_frame() {
        let frames = PublishFrames::new(1, &[0; 100], 2 * PAYLOAD_BYTES + 5);
        let frame = u64::from(FRAME_BYTES_MIN);
        assert_eq!(frames.total(), 100 + 2 * frame + 13);
        for (at, end) in
            [(0, 0), (1, 100), (100, 100), (101, 100 + frame), (100 + 2 * frame + 1, 113 + 2 * frame)]
        {
            assert_eq!(frames.frame_end(at), end, "byte {at}");
        }
    }
}
