//! The two frames that come before the body of every delivery, written in one go.
//!
//! Why it exists: `basic.deliver` and its content header are the octets we write most. Their lengths are
//! known before the first is written, so one look at the room is enough; and names are taken as octets, as
//! the broker keeps them, instead of being looked through for UTF-8 again. What always holds: the octets
//! are those of [`Method::BasicDeliver`](super::Method) and [`ContentHeader`](super::ContentHeader), whole
//! or not at all.
//!
//! ```text
//!    +-----------+-------------------------------------------------------------+----+
//!    | 1 ch size | 60 60 | consumer-tag | delivery-tag | redelivered | exchange | CE |
//!    |           |       |              |              |             | key      |    |
//!    +-----------+-------------------------------------------------------------+----+
//!    +-----------+-------------------------------------------------------------+----+
//!    | 2 ch size | 60 0 | body size | property flags and list                  | CE |
//!    +-----------+-------------------------------------------------------------+----+
//! ```

use super::{BASIC_CLASS, FRAME_END, FRAME_OVERHEAD, FrameHeader, FrameKind, Full, Properties, Writer};

const DELIVER_ID: [u8; 4] = [0, 60, 0, 60];

/// Octets of a `basic.deliver` payload besides its three strings: method number, tag, flag, string lengths.
const DELIVER_FIXED: usize = 4 + 8 + 1 + 3;

/// Octets of a header frame's payload before the properties.
const HEADER_FIXED: usize = 12;

/// What a consumer is told about a message before its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeliveryHead<'a> {
    /// The consumer's channel.
    pub channel: u16,
    /// The consumer, at most 255 octets; so are the two names.
    pub consumer_tag: &'a [u8],
    /// The number the consumer acknowledges the message by.
    pub delivery_tag: u64,
    /// Whether it was delivered before.
    pub redelivered: bool,
    /// Where it was published to.
    pub exchange: &'a [u8],
    /// With which key.
    pub routing_key: &'a [u8],
    /// Its properties.
    pub properties: Properties<'a>,
    /// Octets of body that follow in body frames.
    pub body_len: u64,
}

impl DeliveryHead<'_> {
    /// Octets that [`DeliveryHead::emit`] writes.
    #[inline]
    pub fn encoded_len(&self) -> usize {
        self.deliver_len() + self.header_len() + 2 * FRAME_OVERHEAD
    }

    /// Writes both frames.
    ///
    /// # Errors
    /// [`Full`]: nothing of them is in the buffer then.
    #[inline]
    pub fn emit(&self, w: &mut Writer<'_>) -> Result<(), Full> {
        let start = w.at();
        let out = w.claim(self.encoded_len())?;
        let complete = self.fill(out);
        complete.ok_or(Full).inspect_err(|_| w.rewind(start))
    }

    #[inline]
    fn deliver_len(&self) -> usize {
        DELIVER_FIXED + self.consumer_tag.len() + self.exchange.len() + self.routing_key.len()
    }

    #[inline]
    fn header_len(&self) -> usize {
        HEADER_FIXED + self.properties.as_bytes().len()
    }

    /// `None` when a string is too long for its length.
    #[inline]
    fn fill(&self, out: &mut [u8]) -> Option<()> {
        let out = put(out, self.frame_header(FrameKind::Method, self.deliver_len())?)?;
        let out = put(out, DELIVER_ID)?;
        let out = put_short(out, self.consumer_tag)?;
        let out = put(out, self.delivery_tag.to_be_bytes())?;
        let out = put(out, [u8::from(self.redelivered)])?;
        let out = put_short(out, self.exchange)?;
        let out = put_short(out, self.routing_key)?;
        let out = put(out, [FRAME_END])?;

        let [class_high, class_low] = BASIC_CLASS.to_be_bytes();
        let out = put(out, self.frame_header(FrameKind::Header, self.header_len())?)?;
        let out = put(out, [class_high, class_low, 0, 0])?;
        let out = put(out, self.body_len.to_be_bytes())?;
        let out = put_slice(out, self.properties.as_bytes())?;
        put(out, [FRAME_END])?;
        Some(())
    }

    #[inline]
    fn frame_header(&self, kind: FrameKind, payload_len: usize) -> Option<[u8; 7]> {
        let size = u32::try_from(payload_len).ok()?;
        Some(FrameHeader { raw_kind: kind as u8, channel: self.channel, size }.to_bytes())
    }
}

/// Puts octets at the start of `out` and gives what is behind them.
#[inline]
fn put<const N: usize>(out: &mut [u8], octets: [u8; N]) -> Option<&mut [u8]> {
    let (head, tail) = out.split_first_chunk_mut()?;
    *head = octets;
    Some(tail)
}

#[inline]
fn put_slice<'o>(out: &'o mut [u8], octets: &[u8]) -> Option<&'o mut [u8]> {
    let (head, tail) = out.split_at_mut_checked(octets.len())?;
    head.copy_from_slice(octets);
    Some(tail)
}

#[inline]
fn put_short<'o>(out: &'o mut [u8], octets: &[u8]) -> Option<&'o mut [u8]> {
    let out = put(out, [u8::try_from(octets.len()).ok()?])?;
    put_slice(out, octets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{ContentHeader, Method};

    fn head<'a>(consumer_tag: &'a str, routing_key: &'a [u8], properties: &'a [u8]) -> DeliveryHead<'a> {
        DeliveryHead {
            channel: 0x0203,
            consumer_tag: consumer_tag.as_bytes(),
            delivery_tag: u64::MAX - 1,
            redelivered: true,
            exchange: b"amq.topic",
            routing_key,
            properties: Properties::parse(properties).expect("sound"),
            body_len: 1 << 40,
        }
    }

    #[test]
    fn the_octets_are_those_of_the_method_and_the_header() {
        for (tag, key) in [("", &b""[..]), ("ctag1.x", b"a.b.\xff"), ("t", &[b'k'; 255])] {
            let head = head(tag, key, b"\x90\0\x01a\x02");
            let (mut one, mut other) = ([0; 700], [0; 700]);
            let mut fast = Writer::new(&mut one);
            head.emit(&mut fast).expect("fits");
            let mut plain = Writer::new(&mut other);
            let deliver = Method::BasicDeliver {
                consumer_tag: tag,
                delivery_tag: head.delivery_tag,
                redelivered: true,
                exchange: "amq.topic",
                routing_key: key,
            };
            deliver.emit_frame(head.channel, &mut plain).expect("fits");
            ContentHeader::new(head.body_len, head.properties)
                .emit_frame(head.channel, &mut plain)
                .expect("fits");
            assert_eq!(fast.written(), plain.written());
            assert_eq!(fast.at(), head.encoded_len());
        }
    }

    #[test]
    fn it_is_whole_or_not_there() {
        let head_that_fits = head("tag", b"key", &[0, 0]);
        let mut buf = [0; 1000];
        for room in 0..head_that_fits.encoded_len() {
            let mut w = Writer::new(&mut buf[..room]);
            assert_eq!(head_that_fits.emit(&mut w), Err(Full));
            assert_eq!(w.at(), 0);
        }
        let mut w = Writer::new(&mut buf);
        assert_eq!(head("tag", &[b'k'; 256], &[0, 0]).emit(&mut w), Err(Full));
        assert_eq!(w.at(), 0);
    }
}
