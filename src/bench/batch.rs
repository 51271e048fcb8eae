//! Messages ready to be sent, so that sending is little more than a write.
//!
//! A batch is the same message over and over, frames and all, made once. Before each write only what
//! differs is put in: number, time, and the digits of the queue. Always true: what [`Batch::octets`] gives
//! is whole messages, each `basic.publish` with its content.
//!
//! ```text
//!    +---------+----------+--------+---------+----------+--------+--
//!    | publish | header   | body   | publish | header   | body   |  ...  as many as make a good write
//!    |     key |          | head   |     key |          | head   |
//!    +---------+----------+--------+---------+----------+--------+--
//!          `-- digits       `-- publisher, number, time
//! ```

use super::body::{NUMBERED_SIZE_MIN, filler, pack};
use super::error::BenchError;
use super::options::{Options, QUEUE_DIGITS};
use super::plan::Plan;
use crate::wire::{
    ContentHeader, FRAME_HEADER_LEN, FRAME_OVERHEAD, FrameKind, Full, Method, Properties, Writer,
};

/// The channel publishers use.
pub(super) const CHANNEL: u16 = 1;

/// A write of this size costs little per message, and its messages are not old when they leave.
const WRITE_BYTES: usize = 64 << 10;

/// Property flags with nothing but the delivery mode, and the mode that means persistent.
const PERSISTENT: [u8; 3] = [0x10, 0, 2];

/// Octets of a publish method's payload before the exchange's name, and of a string's length.
const PUBLISH_FIXED: usize = 6;

/// Messages of one publisher.
#[derive(Debug)]
pub(super) struct Batch {
    octets: Vec<u8>,
    /// Octets of one message with its frames.
    unit: usize,
    publisher: u16,
    numbered: bool,
    stamped: bool,
    /// Where in a unit the body begins.
    body_at: usize,
    /// Where in a unit the key's digits are.
    digits_at: usize,
    /// The digits of the queues it addresses in turn.
    digits: Vec<[u8; QUEUE_DIGITS]>,
}

impl Batch {
    pub(super) fn new(
        options: &Options,
        plan: &Plan,
        publisher: u16,
        frame_max: u32,
    ) -> Result<Self, BenchError> {
        let queues = plan.addressed_by(publisher);
        let key = plan.routing_key(queues.first().copied().unwrap_or_default());
        let exchange = plan.exchange();
        let payload_max = (frame_max as usize).saturating_sub(FRAME_OVERHEAD).max(1);
        let method = Method::BasicPublish {
            exchange,
            routing_key: key.as_bytes(),
            mandatory: false,
            immediate: false,
        };
        let properties =
            if options.persistent { Properties::trusted(&PERSISTENT) } else { Properties::EMPTY };
        let body = filler(options.size);
        let frames = options.size.div_ceil(payload_max);
        let mut octets = vec![0; 1024 + options.size + frames * FRAME_OVERHEAD];
        let mut writer = Writer::new(&mut octets);
        let header_end = write_message(&mut writer, &method, properties, &body, payload_max)
            .map_err(|Full| BenchError::Strange("a name is too long to be sent".to_string()))?;
        let unit = writer.at();
        let copies = (WRITE_BYTES / unit).max(1);
        octets.truncate(unit);
        Ok(Self {
            octets: octets.repeat(copies),
            unit,
            publisher,
            numbered: options.is_numbered(),
            stamped: options.rate.is_some(),
            body_at: header_end + FRAME_HEADER_LEN,
            digits_at: FRAME_HEADER_LEN + PUBLISH_FIXED + exchange.len() + key.len() + 2 - QUEUE_DIGITS,
            digits: queues.into_iter().map(digits_of).collect(),
        })
    }

    /// Messages it has room for.
    pub(super) const fn capacity(&self) -> usize {
        self.octets.len() / self.unit
    }

    /// The octets of `count` messages from `first` on; `sent_ns` says when each counts as sent.
    pub(super) fn octets(&mut self, first: u64, count: usize, sent_ns: impl Fn(u64) -> u64) -> &[u8] {
        let len = count * self.unit;
        for (number, unit) in (first..).zip(self.octets[..len].chunks_exact_mut(self.unit)) {
            if self.digits.len() > 1 {
                let digits = &self.digits[(number % self.digits.len() as u64) as usize];
                unit[self.digits_at..][..QUEUE_DIGITS].copy_from_slice(digits);
            }
            if self.numbered {
                let head = &mut unit[self.body_at..];
                head[..NUMBERED_SIZE_MIN].copy_from_slice(&pack(self.publisher, number));
                if self.stamped {
                    head[NUMBERED_SIZE_MIN..][..8].copy_from_slice(&sent_ns(number).to_be_bytes());
                }
            }
        }
        &self.octets[..len]
    }
}

/// Writes one message; gives where its header frame ends.
fn write_message(
    writer: &mut Writer<'_>,
    method: &Method<'_>,
    properties: Properties<'_>,
    body: &[u8],
    payload_max: usize,
) -> Result<usize, Full> {
    method.emit_frame(CHANNEL, writer)?;
    ContentHeader::new(body.len() as u64, properties).emit_frame(CHANNEL, writer)?;
    let header_end = writer.at();
    for piece in body.chunks(payload_max) {
        writer.frame(FrameKind::Body, CHANNEL, |w| w.write_raw(piece))?;
    }
    Ok(header_end)
}

fn digits_of(queue: u32) -> [u8; QUEUE_DIGITS] {
    let mut rest = queue;
    let mut digits = [b'0'; QUEUE_DIGITS];
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    digits
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Kind;
    use crate::wire::next_frame;

    /// What the frames of a batch say: keys and bodies.
    fn read(octets: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut messages: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        let mut at = 0;
        while let Some(frame) = next_frame(&octets[at..], 1 << 20).expect("frames") {
            at += frame.input_len();
            match frame.header.kind() {
                Some(FrameKind::Method) => {
                    let Ok(Method::BasicPublish { routing_key, .. }) = Method::parse(frame.payload) else {
                        panic!("{frame:?}")
                    };
                    messages.push((routing_key.to_vec(), Vec::new()));
                }
                Some(FrameKind::Header) => {
                    assert!(ContentHeader::parse(frame.payload).is_ok_and(|h| h.properties.is_persistent()));
                }
                _ => messages.last_mut().expect("a method first").1.extend(frame.payload),
            }
        }
        assert_eq!(at, octets.len());
        messages
    }

    #[test]
    fn messages_are_whole_and_numbered() {
        for (size, exchange) in [(16, None), (10_000, Some(Kind::Topic)), (100, Some(Kind::Direct))] {
            let options =
                Options { size, exchange, queues: 3, persistent: true, rate: Some(1), ..Options::default() };
            let plan = Plan::new(&options);
            let mut batch = Batch::new(&options, &plan, 0, 4096).expect("short names");
            assert!(batch.capacity() >= 6);
            let messages = read(batch.octets(7, 3, |number| number * 10));
            assert_eq!(messages.len(), 3);
            for (number, (key, body)) in (7_u64..).zip(messages) {
                assert_eq!(key, plan.routing_key((number % 3) as u32).into_bytes());
                assert_eq!(body[..8], pack(0, number));
                assert_eq!(body[8..16], (number * 10).to_be_bytes());
                assert_eq!(body[16..], filler(size)[16..]);
            }
        }
    }

    #[test]
    fn a_body_may_be_empty() {
        let options = Options { size: 0, persistent: true, ..Options::default() };
        let mut batch = Batch::new(&options, &Plan::new(&options), 0, 4096).expect("short names");
        assert_eq!(read(batch.octets(0, 2, |_| 0)).len(), 2);
    }
}
