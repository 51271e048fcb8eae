//! A consumer: a thread that receives, checks and acknowledges messages, on a channel for each of its queues.
//!
//! # Invariants
//! When [`Consumer::run`] succeeds, as many messages as were sent have been received by all consumers together. Those
//! that this one received had the right length and content and came in order.

use std::mem;
use std::sync::atomic::Ordering::Relaxed;

use super::Result;
use super::connection::{Connection, read_method};
use super::options::{HEAD_LEN, Workload};
use super::publisher::{filler, nanos};
use super::run::{Progress, Tally, queue_name, queues_of};
use leveret_amqp::{Frame, FrameKind, Method, Reader, Table, Writer};

const BASIC_DELIVER: [u8; 4] = [0, 60, 0, 60];
/// Octets of a content header before the length of the body.
const BODY_LEN_AT: usize = 4;
/// Octets of a `basic.ack` frame.
const ACK_FRAME_LEN: usize = 21;

/// A consumer that has subscribed to its queues.
pub(crate) struct Consumer {
    connection: Connection,
    /// Channel 1 is first.
    channels: Vec<Channel>,
    workload: Workload,
}

impl Consumer {
    pub(crate) fn new(workload: &Workload, mut connection: Connection, id: u64) -> Result<Self> {
        let mut channels = Vec::new();
        for (number, queue) in (1..).zip(queues_of(id, workload.consumers, workload.queues)) {
            connection.call(number, &Method::ChannelOpen {})?;
            if workload.has_acks {
                let prefetch_count = workload.prefetch as u16;
                connection
                    .call(number, &Method::BasicQos { prefetch_size: 0, prefetch_count, global: false })?;
            }
            let consume = Method::BasicConsume {
                queue: &queue_name(queue),
                consumer_tag: "c",
                no_local: false,
                no_ack: !workload.has_acks,
                exclusive: false,
                no_wait: false,
                arguments: Table::EMPTY,
            };
            connection.call(number, &consume)?;
            channels.push(Channel::new(workload));
        }
        Ok(Self { connection, channels, workload: workload.clone() })
    }

    /// Consumes until all messages of the workload were received.
    pub(crate) fn run(mut self, progress: &Progress) -> Result<Tally> {
        let (mut tally, mut acks) = (Tally::default(), Vec::new());
        while progress.missing.load(Relaxed) > 0 {
            let count_before = tally.count;
            self.connection.read(|frame, now| {
                let number = frame.header.channel;
                let Some(channel) = self.channels.get_mut(usize::from(number).wrapping_sub(1)) else {
                    return read_method(frame).map(drop);
                };
                let Some((identity, sent_ns)) = channel.handle(frame)? else { return Ok(()) };
                tally.count_message(identity);
                if self.workload.has_latency() {
                    let received_ns = nanos(now.duration_since(progress.epoch));
                    tally.times.record(received_ns.saturating_sub(sent_ns));
                }
                if self.workload.has_acks {
                    let ack = Method::BasicAck { delivery_tag: channel.delivery_tag, multiple: false };
                    let mut frame = [0; ACK_FRAME_LEN];
                    // The frame has exactly this length.
                    let _ = ack.emit_frame(number, &mut Writer::new(&mut frame));
                    acks.extend_from_slice(&frame);
                }
                Ok(())
            })?;
            if tally.count > count_before {
                tally.ended = progress.epoch.elapsed();
                progress.missing.fetch_sub((tally.count - count_before) as i64, Relaxed);
                self.connection.write(&acks)?;
                acks.clear();
            }
        }
        self.connection.close()?;
        Ok(tally)
    }
}

/// A channel of a consumer, with the message that it receives.
struct Channel {
    /// The body of each message apart from its head.
    filler: Vec<u8>,
    /// For each publisher, the lowest number that may come next.
    next: Vec<u64>,
    /// Whether other consumers receive from the queue too, and numbers are missing here.
    is_shared: bool,
    delivery_tag: u64,
    /// The beginning of a body that comes in several frames.
    body: Vec<u8>,
}

impl Channel {
    fn new(workload: &Workload) -> Self {
        Self {
            filler: filler(workload.size as usize),
            next: vec![0; workload.publishers as usize],
            is_shared: workload.consumers > workload.queues,
            delivery_tag: 0,
            body: Vec::new(),
        }
    }

    /// Handles a frame. Returns the identity and the send time of the message that it completes.
    #[inline]
    fn handle(&mut self, frame: &Frame<'_>) -> Result<Option<(u64, u64)>> {
        let len = self.filler.len();
        match frame.header.kind() {
            Some(FrameKind::Body) if frame.payload.len() == len => {
                return self.check(frame.payload).map(Some);
            }
            Some(FrameKind::Body) => {
                self.body.extend_from_slice(frame.payload);
                if self.body.len() >= len {
                    let body = mem::take(&mut self.body);
                    let head = self.check(&body)?;
                    self.body = body;
                    return Ok(Some(head));
                }
            }
            Some(FrameKind::Header) => {
                let found = frame.payload.get(BODY_LEN_AT..).and_then(|rest| rest.first_chunk());
                let found = found.map_or(u64::MAX, |octets| u64::from_be_bytes(*octets));
                if found != len as u64 {
                    return Err(format!("a message of {len} octets came with {found}").into());
                }
                self.body.clear();
            }
            _ => match frame.payload.strip_prefix(&BASIC_DELIVER) {
                Some(arguments) => {
                    let mut reader = Reader::new(arguments);
                    self.delivery_tag = reader.short_str().and_then(|_| reader.u64())?;
                }
                None => drop(read_method(frame)?),
            },
        }
        Ok(None)
    }

    /// Checks the content and the number of a message. Returns its identity and its send time.
    #[inline]
    fn check(&mut self, body: &[u8]) -> Result<(u64, u64)> {
        let head = body.split_first_chunk::<HEAD_LEN>().filter(|(_, rest)| *rest == &self.filler[HEAD_LEN..]);
        let head = head.map_or(u128::MAX, |(head, _)| u128::from_be_bytes(*head));
        let (identity, sent_ns) = ((head >> 64) as u64, head as u64);
        let (publisher, number) = (identity >> 48, identity & ((1 << 48) - 1));
        let Some(next) = self.next.get_mut(publisher as usize) else {
            return Err("a message came with another content".into());
        };
        if number < *next || number > *next && !self.is_shared {
            let what = if number > *next { "one is lost" } else { "it is repeated or late" };
            return Err(
                format!("message {number} of publisher {publisher} came instead of {next}: {what}").into()
            );
        }
        *next = number + 1;
        Ok((identity, sent_ns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{self, Command};
    use leveret_amqp::{FRAME_HEADER_LEN, FrameHeader};

    /// Returns the channel of a consumer.
    fn channel(line: &str) -> Channel {
        match options::parse(line.split_whitespace().map(Into::into)).expect(line) {
            Command::Measure(options) => Channel::new(&options.workloads[0]),
            other => panic!("{other:?}"),
        }
    }

    fn body(size: usize, publisher: u64, number: u64) -> Vec<u8> {
        let mut body = filler(size);
        body[..8].copy_from_slice(&(publisher << 48 | number).to_be_bytes());
        body[8..16].copy_from_slice(&9_u64.to_be_bytes());
        body
    }

    /// Lets a channel receive a message whose body comes in pieces.
    fn receive(channel: &mut Channel, body: &[u8], piece_len: usize) -> Result<Option<(u64, u64)>> {
        let mut handle = |kind: FrameKind, payload: &[u8]| {
            let mut octets = [0; FRAME_HEADER_LEN];
            octets[0] = kind as u8;
            channel.handle(&Frame { header: FrameHeader::parse(&octets), payload })
        };
        let mut message =
            handle(FrameKind::Header, &[&[0; BODY_LEN_AT][..], &(body.len() as u64).to_be_bytes()].concat())?;
        for piece in body.chunks(piece_len) {
            assert_eq!(message, None);
            message = handle(FrameKind::Body, piece)?;
        }
        Ok(message)
    }

    #[test]
    fn bodies_may_come_in_pieces() {
        for size in [16, 17, 300] {
            for piece_len in [1, 7, 8, 9, 300] {
                let mut channel = channel(&format!("--publishers 2 --size {size}"));
                for number in 0..3 {
                    let message = receive(&mut channel, &body(size, 1, number), piece_len).expect("as sent");
                    assert_eq!(message, Some((1 << 48 | number, 9)));
                }
                assert_eq!(channel.next, [0, 3]);
            }
        }
    }

    #[test]
    fn a_wrong_message_is_an_error() {
        let mut changed = body(17, 0, 5);
        changed[16] ^= 1;
        for (line, wrong, error) in [
            ("", body(17, 0, 6), "message 6 of publisher 0 came instead of 5: one is lost"),
            (
                "--consumers 2",
                body(17, 0, 4),
                "message 4 of publisher 0 came instead of 5: it is repeated or late",
            ),
            ("", body(17, 2, 5), "a message came with another content"),
            ("", body(16, 0, 5), "a message of 17 octets came with 16"),
            ("", changed, "a message came with another content"),
        ] {
            let mut channel = channel(&format!("--size 17 {line}"));
            for number in 0..5 {
                receive(&mut channel, &body(17, 0, number), 99).expect("as sent");
            }
            assert_eq!(receive(&mut channel, &wrong, 99).expect_err(error).to_string(), error);
        }
    }

    #[test]
    fn consumers_of_one_queue_receive_rising_numbers() {
        for numbers in [[0, 2, 3], [1, 4, 5]] {
            let mut channel = channel("--consumers 2");
            for number in numbers {
                receive(&mut channel, &body(16, 0, number), 16).expect("in order");
            }
        }
    }
}
