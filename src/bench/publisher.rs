//! A publisher: a thread that sends messages as fast as the broker reads them, or at a rate.
//!
//! A message body:
//!
//! ```text
//!    0           2          8            16                  size
//!    +-----------+----------+------------+- - - - - - - - - -+
//!    | publisher |  number  | send time  |      filler       |
//!    +-----------+----------+------------+- - - - - - - - - -+
//!     16 bits     48 bits    64 bits, ns
//! ```
//!
//! The number counts the messages of the publisher to the queue. Publisher and number are the identity of a message.
//! At a rate, the send time is the time when the message was due, even if it was sent later.
//!
//! # Invariants
//! When [`Publisher::run`] succeeds, the broker has handled each message: it confirmed it, or it answered
//! `connection.close` after it.

use std::collections::VecDeque;
use std::iter;
use std::mem;
use std::num::NonZeroU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::Result;
use super::connection::{Connection, read_method};
use super::options::{HEAD_LEN, Workload};
use super::report::Histogram;
use super::run::{Progress, Tally, queue_name, queues_of};
use leveret_amqp::{
    ContentHeader, FRAME_HEADER_LEN, FRAME_OVERHEAD, FrameKind, Full, Method, Properties, Writer,
};

const CHANNEL: u16 = 1;
/// Messages are written in pieces of this size, or one at a time.
const WRITE_BYTES: usize = 64 << 10;
/// Property flags of the delivery mode alone, and the delivery mode of persistent messages.
const PERSISTENT: [u8; 3] = [0x10, 0, 2];
/// Offset of the routing key in the frame of a `basic.publish` with an empty exchange name.
const KEY_AT: usize = FRAME_HEADER_LEN + 8;

/// A publisher with its connection.
pub(crate) struct Publisher {
    connection: Connection,
    workload: Workload,
    id: u64,
    batch: Batch,
}

impl Publisher {
    pub(crate) fn new(workload: &Workload, mut connection: Connection, id: u64) -> Result<Self> {
        connection.call(CHANNEL, &Method::ChannelOpen {})?;
        if workload.confirms > 0 {
            connection.call(CHANNEL, &Method::ConfirmSelect { no_wait: false })?;
        }
        let batch = Batch::new(workload, id, connection.frame_max).map_err(|Full| "a message is too long")?;
        Ok(Self { connection, workload: workload.clone(), id, batch })
    }

    /// Sends all messages and waits for their confirms.
    pub(crate) fn run(self, progress: &Progress) -> Result<Tally> {
        let Self { mut connection, workload, id, mut batch } = self;
        let Workload { messages, publishers, rate, time, .. } = workload;
        let messages_max = messages / publishers + u64::from(id < messages % publishers);
        let pace = (rate > 0).then(|| RateLimit::new(rate, id, publishers));
        if pace.is_some() {
            // Waits end at the nanosecond, not up to 50 µs later. Without permission, latency is higher.
            let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
        }
        let (mut window, mut tally) = (Window::new(workload.confirms), Tally::default());
        loop {
            let now = progress.epoch.elapsed();
            let left = if now < time { messages_max - tally.count } else { 0 };
            let sendable = left.min(window.free());
            let due = pace.as_ref().map_or(u64::MAX, |pace| pace.due_count(tally.count, now));
            let due_ns = |number| pace.as_ref().map_or(nanos(now), |pace| pace.due_ns(number));
            if sendable > 0 && due > 0 {
                let count = sendable.min(due).min(batch.capacity());
                window.send(count, now);
                connection.write(batch.messages(count, &mut tally, due_ns))?;
                progress.steps.fetch_add(1, Relaxed);
                continue;
            }
            if sendable == 0 && window.sent_ns.is_empty() {
                break;
            }
            let wait = Duration::from_nanos(due_ns(tally.count).saturating_sub(nanos(now)));
            if sendable > 0 && !connection.wait_readable(wait.min(time - now)) {
                continue;
            }
            connection.read(|frame, now| match read_method(frame)? {
                Some(Method::BasicAck { delivery_tag, multiple }) => {
                    progress.steps.fetch_add(1, Relaxed);
                    window.confirm(delivery_tag, multiple, now.duration_since(progress.epoch))
                }
                Some(Method::BasicNack { delivery_tag, .. }) => {
                    Err(format!("the broker refused message {delivery_tag} (basic.nack)").into())
                }
                _ => Ok(()),
            })?;
        }
        connection.close()?;
        (tally.ended, tally.times) = (progress.epoch.elapsed(), window.times);
        Ok(tally)
    }
}

/// Prepared frames of messages, in which only queue, number and time are replaced.
struct Batch {
    octets: Vec<u8>,
    /// Octets of a message with its frames.
    message_len: usize,
    /// Offset of the body in a message.
    body_at: usize,
    publisher: u64,
    /// The names of the publisher's queues, of equal length. Messages go to each in turn.
    queues: Vec<String>,
}

impl Batch {
    fn new(workload: &Workload, publisher: u64, frame_max: u32) -> std::result::Result<Self, Full> {
        let queues = queues_of(publisher, workload.publishers, workload.queues);
        let queues: Vec<String> = queues.into_iter().map(queue_name).collect();
        let payload_max = (frame_max as usize).saturating_sub(FRAME_OVERHEAD).max(1);
        let body = filler(workload.size as usize);
        let mut octets = vec![0; 1024 + body.len() + body.len().div_ceil(payload_max) * FRAME_OVERHEAD];
        let mut writer = Writer::new(&mut octets);
        Method::BasicPublish {
            exchange: "",
            routing_key: queues[0].as_bytes(),
            mandatory: false,
            immediate: false,
        }
        .emit_frame(CHANNEL, &mut writer)?;
        let properties =
            if workload.is_persistent { Properties::trusted(&PERSISTENT) } else { Properties::EMPTY };
        ContentHeader::new(body.len() as u64, properties).emit_frame(CHANNEL, &mut writer)?;
        let body_at = writer.at() + FRAME_HEADER_LEN;
        for piece in body.chunks(payload_max) {
            writer.frame(FrameKind::Body, CHANNEL, |writer| writer.write_raw(piece))?;
        }
        let message_len = writer.at();
        octets.truncate(message_len);
        let octets = octets.repeat((WRITE_BYTES / message_len).max(1));
        Ok(Self { octets, message_len, body_at, publisher, queues })
    }

    /// Returns the maximum number of messages for one call of `messages`.
    fn capacity(&self) -> u64 {
        (self.octets.len() / self.message_len) as u64
    }

    /// Returns the frames of the next `count` messages after those in `tally`, and adds them to it.
    fn messages(&mut self, count: u64, tally: &mut Tally, sent_ns: impl Fn(u64) -> u64) -> &[u8] {
        let queues = self.queues.len() as u64;
        let octets = &mut self.octets[..count as usize * self.message_len];
        for message in octets.chunks_exact_mut(self.message_len) {
            let at = tally.count;
            let mut identity = self.publisher << 48 | at;
            if queues > 1 {
                let key = &self.queues[(at % queues) as usize];
                message[KEY_AT..][..key.len()].copy_from_slice(key.as_bytes());
                identity = self.publisher << 48 | (at / queues);
            }
            let head = u128::from(identity) << 64 | u128::from(sent_ns(at));
            message[self.body_at..][..HEAD_LEN].copy_from_slice(&head.to_be_bytes());
            tally.count_message(identity);
        }
        octets
    }
}

/// Returns the body of a message before its head is written.
pub(crate) fn filler(size: usize) -> Vec<u8> {
    // The period is prime, so a shift by a power of two changes the content.
    (0..251).cycle().take(size).collect()
}

/// Returns a duration in nanoseconds. 64 bits are enough for 584 years.
#[inline]
pub(crate) const fn nanos(duration: Duration) -> u64 {
    duration.as_nanos() as u64
}

/// When each message of a publisher is due.
struct RateLimit {
    interval_ns: f64,
    /// When the first message is due, as a number of intervals.
    offset: f64,
}

impl RateLimit {
    /// Divides a rate among publishers, which send in turn.
    fn new(rate: u64, publisher: u64, publishers: u64) -> Self {
        let interval_ns = 1e9 / rate as f64 * publishers as f64;
        Self { interval_ns, offset: publisher as f64 / publishers as f64 }
    }

    fn due_ns(&self, number: u64) -> u64 {
        ((number as f64 + self.offset) * self.interval_ns) as u64
    }

    /// Returns the number of messages that are due after `sent` messages.
    fn due_count(&self, sent: u64, now: Duration) -> u64 {
        ((nanos(now) as f64 / self.interval_ns - self.offset + 1.0) as u64).saturating_sub(sent)
    }
}

/// The unconfirmed messages of a publisher.
struct Window {
    /// 0 is without publisher confirms.
    messages_max: u64,
    /// Delivery tag of the oldest unconfirmed message.
    first_tag: u64,
    /// Send times by delivery tag, from `first_tag` on; 0 if the message is confirmed.
    sent_ns: VecDeque<u64>,
    times: Histogram,
}

impl Window {
    fn new(messages_max: u64) -> Self {
        Self { messages_max, first_tag: 1, sent_ns: VecDeque::new(), times: Histogram::default() }
    }

    /// Returns the number of messages that may be sent.
    fn free(&self) -> u64 {
        if self.messages_max > 0 { self.messages_max - self.sent_ns.len() as u64 } else { u64::MAX }
    }

    fn send(&mut self, count: u64, now: Duration) {
        if self.messages_max > 0 {
            self.sent_ns.extend(iter::repeat_n(nanos(now).max(1), count as usize));
        }
    }

    /// Handles a confirm.
    fn confirm(&mut self, tag: u64, multiple: bool, now: Duration) -> Result<()> {
        let at = usize::try_from(tag.wrapping_sub(self.first_tag)).unwrap_or(usize::MAX);
        if self.sent_ns.get(at).is_none_or(|sent_ns| *sent_ns == 0) {
            return Err(format!("the broker confirmed message {tag} twice, or before it was sent").into());
        }
        let tagged = self.sent_ns.range_mut(if multiple { 0 } else { at }..=at);
        for sent_ns in tagged.filter(|sent_ns| **sent_ns > 0) {
            self.times.record(nanos(now).saturating_sub(mem::take(sent_ns)));
        }
        while self.sent_ns.front() == Some(&0) {
            self.sent_ns.pop_front();
            self.first_tag += 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{self, Command};
    use leveret_amqp::next_frame;

    fn workload(line: &str) -> Workload {
        match options::parse(line.split_whitespace().map(Into::into)).expect(line) {
            Command::Measure(options) => options.workloads[0].clone(),
            other => panic!("{other:?}"),
        }
    }

    /// Returns routing keys and bodies.
    fn parsed(mut octets: &[u8]) -> Vec<(String, Vec<u8>)> {
        let mut messages: Vec<(String, Vec<u8>)> = Vec::new();
        while let Some(frame) = next_frame(octets, 1 << 20).expect("frames") {
            octets = &octets[frame.input_len()..];
            match frame.header.kind() {
                Some(FrameKind::Method) => {
                    let Ok(Method::BasicPublish { routing_key, .. }) = Method::parse(frame.payload) else {
                        panic!("{frame:?}")
                    };
                    messages.push((String::from_utf8_lossy(routing_key).into_owned(), Vec::new()));
                }
                Some(FrameKind::Header) => {
                    assert!(
                        ContentHeader::parse(frame.payload)
                            .is_ok_and(|header| header.properties.is_persistent())
                    );
                }
                _ => messages.last_mut().expect("a method first").1.extend(frame.payload),
            }
        }
        assert_eq!(octets, b"");
        messages
    }

    #[test]
    fn messages_have_queue_number_and_time() {
        for size in [16, 10_000] {
            let workload = workload(&format!("--size {size} --queues 3 --persistent --rate 1"));
            let mut batch = Batch::new(&workload, 0, 4096).expect("it fits");
            assert!(batch.capacity() >= 6);
            let mut tally = Tally { count: 7, ..Tally::default() };
            for (at, (key, body)) in (7_u64..).zip(parsed(batch.messages(3, &mut tally, |at| at * 10))) {
                assert_eq!(key, queue_name(at % 3));
                assert_eq!(body[..8], (at / 3).to_be_bytes());
                assert_eq!(body[8..16], (at * 10).to_be_bytes());
                assert_eq!(body[16..], filler(size)[16..]);
            }
            assert_eq!(tally.count, 10);
        }
    }

    #[test]
    fn publishers_send_in_turn() {
        let pace = |publisher| RateLimit::new(1000, publisher, 4);
        assert_eq!([pace(0).due_ns(0), pace(1).due_ns(0), pace(3).due_ns(2)], [0, 1_000_000, 11_000_000]);
        assert_eq!(pace(1).due_count(0, Duration::from_micros(999)), 0);
        assert_eq!(pace(1).due_count(0, Duration::from_millis(1)), 1);
        assert_eq!(pace(0).due_count(1, Duration::from_millis(9)), 2);
    }

    #[test]
    fn confirms_come_in_any_order_and_once() {
        let at = Duration::from_nanos;
        let mut window = Window::new(4);
        window.send(4, at(100));
        window.confirm(2, false, at(150)).expect("out of order");
        assert_eq!(window.free(), 0);
        window.confirm(3, true, at(160)).expect("multiple");
        assert_eq!(window.free(), 3);
        window.send(3, at(200));
        for wrong in [0, 2, 3, 8] {
            assert!(window.confirm(wrong, false, at(250)).is_err(), "{wrong}");
        }
        window.confirm(7, true, at(300)).expect("all");
        assert_eq!((window.free(), window.sent_ns.len()), (4, 0));
    }
}
