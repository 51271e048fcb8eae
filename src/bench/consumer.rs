//! A consumer: a thread that receives, checks and acknowledges messages, on a channel for each of its queues.
//!
//! # Invariants
//! When [`Consumer::run`] succeeds, as many messages as were sent have been received by all consumers together. Those
//! that this one received had the right length and content and came in order.

use std::error::Error;
use std::mem;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::Result;
use super::connection::{Connection, TIMEOUT, read_method};
use super::histogram::Histogram;
use super::options::{Ack, NUMBERED_SIZE_MIN, STAMPED_SIZE_MIN, Workload};
use super::publisher::{filler, nanos, unpack};
use super::run::{Tally, hash, queue_name, queues_of};
use crate::wire::{Frame, FrameKind, Method, Reader, Table, Writer};

const BASIC_DELIVER: [u8; 4] = [0, 60, 0, 60];
/// Octets of a content header before the length of the body.
const BODY_LEN_AT: usize = 4;
/// Octets of a `basic.ack` frame.
const ACK_FRAME_LEN: usize = 21;

/// A count of messages that all consumers of a run share.
pub(crate) struct Progress {
    pub(crate) epoch: Instant,
    received: AtomicU64,
    /// `u64::MAX` until all publishers have ended.
    expected: AtomicU64,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self { epoch: Instant::now(), received: AtomicU64::new(0), expected: AtomicU64::new(u64::MAX) }
    }

    /// Sets the number of messages that were published.
    pub(crate) fn expect(&self, count: u64) {
        self.expected.store(count, Ordering::Relaxed);
    }

    fn missing(&self) -> u64 {
        self.expected.load(Ordering::Relaxed).saturating_sub(self.received.load(Ordering::Relaxed))
    }
}

/// A consumer that has subscribed to its queues.
pub(crate) struct Consumer {
    pub(crate) connection: Connection,
    /// Channel 1 is first.
    channels: Vec<Channel>,
    check: Check,
    ack: Ack,
    /// Frames to send.
    acks: Vec<u8>,
    latencies: Histogram,
}

impl Consumer {
    pub(crate) fn new(workload: &Workload, mut connection: Connection, id: u16) -> Result<Self> {
        let mut channels = Vec::new();
        for (number, queue) in (1..).zip(queues_of(id, workload.consumers, workload.queues)) {
            connection.call(number, &Method::ChannelOpen {})?;
            let no_ack = workload.ack == Ack::Auto;
            if !no_ack {
                let prefetch_count = workload.prefetch;
                connection
                    .call(number, &Method::BasicQos { prefetch_size: 0, prefetch_count, global: false })?;
            }
            let consume = Method::BasicConsume {
                queue: &queue_name(queue),
                consumer_tag: "c",
                no_local: false,
                no_ack,
                exclusive: false,
                no_wait: false,
                arguments: Table::EMPTY,
            };
            connection.call(number, &consume)?;
            channels.push(Channel::new(queue, workload));
        }
        Ok(Self {
            connection,
            channels,
            check: Check::new(workload),
            ack: workload.ack,
            acks: Vec::new(),
            latencies: Histogram::default(),
        })
    }

    /// Consumes until all messages of the workload were received.
    pub(crate) fn run(mut self, progress: &Progress) -> Result<Tally> {
        let (mut count, mut ended) = (0, Duration::ZERO);
        let (mut missing, mut since) = (u64::MAX, Instant::now());
        while progress.missing() > 0 {
            if self.connection.fill()? {
                let now = progress.epoch.elapsed();
                let received = self.handle_input(now)?;
                if received > 0 {
                    ended = now;
                    count += received;
                    progress.received.fetch_add(received, Ordering::Relaxed);
                }
            } else if missing != progress.missing() {
                (missing, since) = (progress.missing(), Instant::now());
            } else if since.elapsed() > TIMEOUT {
                let seconds = TIMEOUT.as_secs();
                return Err(match progress.expected.load(Ordering::Relaxed) {
                    u64::MAX => format!("no message has come for {seconds} s"),
                    sent => format!("{missing} of {sent} messages are lost: none has come for {seconds} s"),
                }
                .into());
            }
        }
        self.connection.close()?;
        let hash_sum = self.channels.iter().fold(0, |sum: u64, channel| sum.wrapping_add(channel.hash_sum));
        Ok(Tally { count, hash_sum, ended, times: self.latencies })
    }

    /// Handles all complete frames, and returns the number of complete messages.
    fn handle_input(&mut self, now: Duration) -> Result<u64> {
        let Self { connection, channels, check, ack, acks, latencies } = self;
        connection.for_each_frame(|frame| {
            let number = frame.header.channel;
            let Some(channel) = channels.get_mut(usize::from(number).wrapping_sub(1)) else {
                // On channel 0, a method closes the connection, and anything else can be ignored.
                let is_method = frame.header.kind() == Some(FrameKind::Method);
                return if is_method { read_method(frame).map(drop) } else { Ok(()) };
            };
            if channel.handle(frame, check)? {
                if *ack == Ack::Each {
                    acknowledge(acks, number, channel.last_tag, false);
                }
                if check.is_stamped {
                    latencies.record(nanos(now).saturating_sub(channel.sent_ns()));
                }
            }
            Ok(())
        })?;
        let mut received = 0;
        for (channel, number) in self.channels.iter_mut().zip(1..).filter(|(channel, _)| channel.received > 0)
        {
            received += mem::take(&mut channel.received);
            if self.ack == Ack::Multiple {
                acknowledge(&mut self.acks, number, channel.last_tag, true);
            }
        }
        if !self.acks.is_empty() {
            self.connection.write(&self.acks)?;
            self.acks.clear();
        }
        Ok(received)
    }
}

fn acknowledge(acks: &mut Vec<u8>, channel: u16, delivery_tag: u64, multiple: bool) {
    let mut frame = [0; ACK_FRAME_LEN];
    // The frame has exactly this length.
    let _ = Method::BasicAck { delivery_tag, multiple }.emit_frame(channel, &mut Writer::new(&mut frame));
    acks.extend_from_slice(&frame);
}

/// What each message of a workload must be like.
struct Check {
    filler: Vec<u8>,
    /// Number of octets at the beginning of a body that are not filler.
    head_len: usize,
    is_stamped: bool,
    is_shared: bool,
}

impl Check {
    fn new(workload: &Workload) -> Self {
        let is_stamped = workload.is_stamped();
        let head_len = match workload.is_numbered() {
            true if is_stamped => STAMPED_SIZE_MIN,
            true => NUMBERED_SIZE_MIN,
            false => 0,
        };
        Self { filler: filler(workload.size), head_len, is_stamped, is_shared: workload.is_shared() }
    }
}

/// The state of a channel and of the message that it receives.
struct Channel {
    queue: u32,
    /// For each publisher, the lowest number that may come next.
    next: Vec<u64>,
    /// See [`Tally`].
    hash_sum: u64,
    /// Number of octets of the body that have come, and the first of them.
    body_len: usize,
    head: [u8; STAMPED_SIZE_MIN],
    delivery_tag: u64,
    /// Delivery tag of the last complete message.
    last_tag: u64,
    /// Number of complete messages since the last read.
    received: u64,
}

impl Channel {
    fn new(queue: u32, workload: &Workload) -> Self {
        Self {
            queue,
            next: vec![0; usize::from(workload.publishers)],
            hash_sum: 0,
            body_len: 0,
            head: [0; STAMPED_SIZE_MIN],
            delivery_tag: 0,
            last_tag: 0,
            received: 0,
        }
    }

    /// Handles a frame, and returns whether it completes a message.
    #[inline]
    fn handle(&mut self, frame: &Frame<'_>, check: &Check) -> Result<bool> {
        let len = check.filler.len();
        match frame.header.kind() {
            Some(FrameKind::Method) => {
                let Some(arguments) = frame.payload.strip_prefix(&BASIC_DELIVER) else {
                    return read_method(frame).map(|_| false);
                };
                let mut reader = Reader::new(arguments);
                self.delivery_tag = reader.short_str().and_then(|_| reader.u64())?;
                return Ok(false);
            }
            Some(FrameKind::Header) => {
                let found = frame.payload.get(BODY_LEN_AT..).and_then(|rest| rest.first_chunk());
                let found = found.map_or(u64::MAX, |octets| u64::from_be_bytes(*octets));
                if found != len as u64 {
                    return Err(format!("a message of {len} octets came with {found}").into());
                }
                self.body_len = 0;
            }
            Some(FrameKind::Body) => self.add_piece(frame.payload, check)?,
            _ => return Ok(false),
        }
        if self.body_len < len {
            return Ok(false);
        }
        if check.head_len > 0 {
            self.count(check)?;
        }
        self.received += 1;
        self.last_tag = self.delivery_tag;
        Ok(true)
    }

    #[inline]
    fn add_piece(&mut self, piece: &[u8], check: &Check) -> Result<()> {
        let at = self.body_len;
        self.body_len += piece.len();
        let head_len = check.head_len.saturating_sub(at).min(piece.len());
        let (head, rest) = piece.split_at(head_len);
        self.head[at.min(STAMPED_SIZE_MIN)..][..head_len].copy_from_slice(head);
        if check.filler.get(at + head_len..self.body_len) == Some(rest) {
            return Ok(());
        }
        Err(format!("a message was changed between octets {at} and {}", self.body_len).into())
    }

    /// Checks and counts the number of a complete message.
    #[inline]
    fn count(&mut self, check: &Check) -> Result<()> {
        let [octets @ .., _, _, _, _, _, _, _, _] = self.head;
        let (publisher, number) = unpack(octets);
        let Some(next) = self.next.get_mut(usize::from(publisher)) else {
            return Err(
                format!("a message has the number of publisher {publisher}, which does not exist").into()
            );
        };
        if number < *next || number > *next && !check.is_shared {
            return Err(out_of_order(publisher, number, *next));
        }
        *next = number + 1;
        if check.is_shared {
            self.hash_sum = self.hash_sum.wrapping_add(hash(self.queue, publisher, number));
        }
        Ok(())
    }

    /// Returns the send time of a complete message in nanoseconds.
    fn sent_ns(&self) -> u64 {
        let [_, _, _, _, _, _, _, _, octets @ ..] = self.head;
        u64::from_be_bytes(octets)
    }
}

#[cold]
fn out_of_order(publisher: u16, number: u64, next: u64) -> Box<dyn Error + Send + Sync> {
    let what = if number > next { "one is lost" } else { "it is repeated or late" };
    format!("message {number} of publisher {publisher} came instead of {next}: {what}").into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{self, Command};
    use crate::wire::{FRAME_HEADER_LEN, FrameHeader};

    /// Returns the check of a workload, and a channel of one of its consumers.
    fn start(line: &str) -> (Check, Channel) {
        match options::parse(line.split_whitespace().map(Into::into)).expect(line) {
            Command::Measure(options) => {
                let workload = &options.workloads[0];
                (Check::new(workload), Channel::new(0, workload))
            }
            other => panic!("{other:?}"),
        }
    }

    fn body(size: usize, publisher: u16, number: u64) -> Vec<u8> {
        let mut body = filler(size);
        body[..8].copy_from_slice(&(u64::from(publisher) << 48 | number).to_be_bytes());
        body
    }

    /// Lets a channel receive a message whose body comes in pieces.
    fn receive((check, channel): &mut (Check, Channel), body: &[u8], piece_len: usize) -> Result<bool> {
        let mut handle = |kind: FrameKind, payload: &[u8]| {
            let mut octets = [0; FRAME_HEADER_LEN];
            octets[0] = kind as u8;
            channel.handle(&Frame { header: FrameHeader::parse(&octets), payload }, check)
        };
        let mut is_complete =
            handle(FrameKind::Header, &[&[0; BODY_LEN_AT][..], &(body.len() as u64).to_be_bytes()].concat())?;
        for piece in body.chunks(piece_len) {
            is_complete = handle(FrameKind::Body, piece)?;
        }
        Ok(is_complete)
    }

    #[test]
    fn bodies_may_come_in_pieces() {
        for size in [8, 15, 16, 17, 300] {
            for piece_len in [1, 7, 8, 9, 300] {
                let mut channel = start(&format!("--publishers 2 --size {size}"));
                for number in 0..3 {
                    assert!(receive(&mut channel, &body(size, 1, number), piece_len).expect("as sent"));
                }
                assert_eq!(channel.1.next, [0, 3]);
            }
        }
        assert!(receive(&mut start("--size 0"), b"", 1).expect("an empty message"));
    }

    #[test]
    fn a_wrong_message_is_an_error() {
        let mut changed = body(16, 0, 5);
        changed[15] ^= 1;
        for (line, body, error) in [
            ("", body(16, 0, 6), "message 6 of publisher 0 came instead of 5: one is lost"),
            (
                "--consumers 2",
                body(16, 0, 4),
                "message 4 of publisher 0 came instead of 5: it is repeated or late",
            ),
            ("", body(16, 2, 5), "a message has the number of publisher 2, which does not exist"),
            ("", body(15, 0, 5), "a message of 16 octets came with 15"),
            ("", changed, "a message was changed between octets 0 and 16"),
        ] {
            let mut channel = start(&format!("--size 16 {line}"));
            for number in 0..5 {
                receive(&mut channel, &super::tests::body(16, 0, number), 99).expect("as sent");
            }
            assert_eq!(receive(&mut channel, &body, 99).expect_err(error).to_string(), error);
        }
    }

    #[test]
    fn consumers_of_one_queue_add_up() {
        let mut sum = 0_u64;
        for numbers in [[0, 2, 3], [1, 4, 5]] {
            let mut channel = start("--consumers 2");
            for number in numbers {
                receive(&mut channel, &body(16, 0, number), 16).expect("in order");
            }
            sum = sum.wrapping_add(channel.1.hash_sum);
        }
        let sum_of = |numbers: [u64; 6]| {
            numbers.into_iter().fold(0, |sum: u64, number| sum.wrapping_add(hash(0, 0, number)))
        };
        assert_eq!(sum, sum_of([0, 1, 2, 3, 4, 5]));
        assert_ne!(sum, sum_of([0, 1, 2, 3, 3, 6]));
    }
}
