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
//! The number counts the messages of the publisher to the queue. Below 8 octets there is only filler. The send time
//! is there if [`Workload::is_stamped`].
//!
//! # Invariants
//! When [`Publisher::run`] succeeds, the broker has handled each message: it confirmed it, or it answered
//! `connection.close` after it.

use std::collections::VecDeque;
use std::iter;
use std::mem;
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use super::Result;
use super::connection::{Connection, TIMEOUT, read_method};
use super::histogram::Histogram;
use super::options::{NUMBERED_SIZE_MIN, QUEUE_DIGITS, STAMPED_SIZE_MIN, Workload};
use super::run::{Tally, hash, queue_name, queues_of};
use crate::wire::{
    ContentHeader, FRAME_HEADER_LEN, FRAME_OVERHEAD, FrameKind, Full, Method, Properties, Writer,
};

const CHANNEL: u16 = 1;
/// Messages are written in pieces of this size, or one at a time.
const WRITE_BYTES: usize = 64 << 10;
/// Property flags of the delivery mode alone, and the delivery mode of persistent messages.
const PERSISTENT: [u8; 3] = [0x10, 0, 2];
/// Octets of `basic.publish` before its routing key, with an empty exchange name.
const BEFORE_KEY: usize = 7;

/// A publisher with its connection.
pub(crate) struct Publisher {
    pub(crate) connection: Connection,
    batch: Batch,
    messages_max: u64,
    until: Duration,
    pace: Option<Pace>,
    window: Option<Window>,
    sent: u64,
}

impl Publisher {
    pub(crate) fn new(workload: &Workload, mut connection: Connection, id: u16) -> Result<Self> {
        connection.call(CHANNEL, &Method::ChannelOpen {})?;
        if workload.confirms.is_some() {
            connection.call(CHANNEL, &Method::ConfirmSelect { no_wait: false })?;
        }
        let publishers = u64::from(workload.publishers);
        let share = |messages| messages / publishers + u64::from(u64::from(id) < messages % publishers);
        Ok(Self {
            batch: Batch::new(workload, id, connection.frame_max).map_err(|Full| "a message is too long")?,
            connection,
            messages_max: workload.messages.map_or(u64::MAX, share),
            until: workload.time.unwrap_or(Duration::MAX),
            pace: workload.rate.map(|rate| Pace::new(rate, id, workload.publishers)),
            window: workload.confirms.map(Window::new),
            sent: 0,
        })
    }

    /// Sends all messages and waits for their confirms. Times are those since `epoch`.
    pub(crate) fn run(mut self, epoch: Instant) -> Result<Tally> {
        if self.pace.is_some() {
            // Waits end at the nanosecond, not up to 50 µs later. Without permission the rate is less even.
            let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
        }
        loop {
            let now = epoch.elapsed();
            let left = if now < self.until { self.messages_max - self.sent } else { 0 };
            let free = self.window.as_ref().map_or(u64::MAX, Window::free);
            if left > 0 && free > 0 {
                match self.pace.as_ref().map_or(Ok(u64::MAX), |pace| pace.due_count(self.sent, now)) {
                    Ok(due) => self.send(left.min(free).min(due), now, epoch)?,
                    Err(wait) if self.connection.wait_readable(wait.min(self.until - now)) => {
                        self.read_confirms(epoch)?;
                    }
                    Err(_) => {}
                }
            } else if self.window.as_ref().is_some_and(|window| !window.sent_ns.is_empty()) {
                self.read_confirms(epoch)?;
            } else {
                break;
            }
        }
        self.connection.close()?;
        let (ended, times) = match self.window {
            Some(window) => (window.last_confirm, window.times),
            None => (epoch.elapsed(), Histogram::default()),
        };
        Ok(Tally { count: self.sent, hash_sum: self.batch.hash_sum, ended, times })
    }

    fn send(&mut self, count_max: u64, now: Duration, epoch: Instant) -> Result<()> {
        let count = self.batch.capacity().min(usize::try_from(count_max).unwrap_or(usize::MAX));
        if let Some(window) = &mut self.window {
            window.send(count, now);
        }
        let pace = self.pace.as_ref();
        let sent_ns = |number| pace.map_or(nanos(now), |pace| pace.sent_ns(number, now));
        self.connection.write(self.batch.messages(self.sent, count, sent_ns))?;
        self.sent += count as u64;
        if let Some(pace) = &mut self.pace {
            pace.write_ended_ns = nanos(epoch.elapsed());
        }
        Ok(())
    }

    /// Reads once from the broker and handles the confirms that came.
    fn read_confirms(&mut self, epoch: Instant) -> Result<()> {
        let is_filled = self.connection.fill()?;
        let now = epoch.elapsed();
        let window = &mut self.window;
        self.connection.for_each_frame(|frame| match (frame.header.kind(), window.as_mut()) {
            (Some(FrameKind::Method), Some(window)) => match read_method(frame)? {
                Method::BasicAck { delivery_tag, multiple } => window.confirm(delivery_tag, multiple, now),
                Method::BasicNack { delivery_tag, .. } => {
                    Err(format!("the broker refused message {delivery_tag} (basic.nack)").into())
                }
                _ => Ok(()),
            },
            (Some(FrameKind::Method), None) => read_method(frame).map(drop),
            _ => Ok(()),
        })?;
        match &self.window {
            Some(window) if !is_filled && now > window.changed + TIMEOUT => {
                Err(format!("the broker has confirmed nothing for {} s", TIMEOUT.as_secs()).into())
            }
            _ => Ok(()),
        }
    }
}

/// Prepared frames of messages, in which only queue, number and time are replaced.
struct Batch {
    octets: Vec<u8>,
    /// Octets of a message with its frames.
    message_len: usize,
    /// Offset in a message of the digits of its queue, and of its body.
    digits_at: usize,
    body_at: usize,
    publisher: u16,
    is_numbered: bool,
    is_stamped: bool,
    is_shared: bool,
    /// The queues of the publisher with their digits. Messages go to each in turn.
    queues: Vec<(u32, Vec<u8>)>,
    /// See [`Tally`].
    hash_sum: u64,
}

impl Batch {
    fn new(workload: &Workload, publisher: u16, frame_max: u32) -> std::result::Result<Self, Full> {
        let queues = queues_of(publisher, workload.publishers, workload.queues);
        let key = queue_name(0);
        let payload_max = (frame_max as usize).saturating_sub(FRAME_OVERHEAD).max(1);
        let body = filler(workload.size);
        let mut octets = vec![0; 1024 + body.len() + body.len().div_ceil(payload_max) * FRAME_OVERHEAD];
        let mut writer = Writer::new(&mut octets);
        Method::BasicPublish {
            exchange: "",
            routing_key: key.as_bytes(),
            mandatory: false,
            immediate: false,
        }
        .emit_frame(CHANNEL, &mut writer)?;
        let properties =
            if workload.persistent { Properties::trusted(&PERSISTENT) } else { Properties::EMPTY };
        ContentHeader::new(body.len() as u64, properties).emit_frame(CHANNEL, &mut writer)?;
        let body_at = writer.at() + FRAME_HEADER_LEN;
        for piece in body.chunks(payload_max) {
            writer.frame(FrameKind::Body, CHANNEL, |writer| writer.write_raw(piece))?;
        }
        let message_len = writer.at();
        octets.truncate(message_len);
        let key_digits_at = key.len() - QUEUE_DIGITS;
        let with_digits = |queue| (queue, queue_name(queue).as_bytes()[key_digits_at..].to_vec());
        Ok(Self {
            octets: octets.repeat((WRITE_BYTES / message_len).max(1)),
            message_len,
            digits_at: FRAME_HEADER_LEN + BEFORE_KEY + 1 + key_digits_at,
            body_at,
            publisher,
            is_numbered: workload.is_numbered(),
            is_stamped: workload.is_stamped(),
            is_shared: workload.is_shared(),
            queues: queues.into_iter().map(with_digits).collect(),
            hash_sum: 0,
        })
    }

    /// Returns the maximum number of messages for one call of `messages`.
    fn capacity(&self) -> usize {
        self.octets.len() / self.message_len
    }

    /// Returns the frames of `count` messages, of which the first is the `first`th of the publisher.
    fn messages(&mut self, first: u64, count: usize, sent_ns: impl Fn(u64) -> u64) -> &[u8] {
        let queues = self.queues.len() as u64;
        let octets = &mut self.octets[..count * self.message_len];
        for (at, message) in (first..).zip(octets.chunks_exact_mut(self.message_len)) {
            let (number, queue) = if queues > 1 { (at / queues, at % queues) } else { (at, 0) };
            let (queue, digits) = &self.queues[queue as usize];
            message[self.digits_at..][..QUEUE_DIGITS].copy_from_slice(digits);
            if !self.is_numbered {
                continue;
            }
            let body = &mut message[self.body_at..];
            body[..NUMBERED_SIZE_MIN].copy_from_slice(&pack(self.publisher, number));
            if self.is_stamped {
                body[NUMBERED_SIZE_MIN..STAMPED_SIZE_MIN].copy_from_slice(&sent_ns(at).to_be_bytes());
            }
            if self.is_shared {
                self.hash_sum = self.hash_sum.wrapping_add(hash(*queue, self.publisher, number));
            }
        }
        octets
    }
}

/// Returns the body of a message without number and time.
pub(crate) fn filler(size: usize) -> Vec<u8> {
    // The period is prime, so a shift by a power of two changes the content.
    (0..251).cycle().take(size).collect()
}

/// Returns the first octets of a body.
#[inline]
fn pack(publisher: u16, number: u64) -> [u8; NUMBERED_SIZE_MIN] {
    (u64::from(publisher) << 48 | number).to_be_bytes()
}

/// Returns the publisher and number in the first octets of a body.
#[inline]
pub(crate) const fn unpack(octets: [u8; NUMBERED_SIZE_MIN]) -> (u16, u64) {
    let both = u64::from_be_bytes(octets);
    ((both >> 48) as u16, both & ((1 << 48) - 1))
}

/// Returns a duration in nanoseconds. 64 bits are enough for 584 years.
#[inline]
pub(crate) const fn nanos(duration: Duration) -> u64 {
    duration.as_nanos() as u64
}

/// When each message of a publisher is due.
struct Pace {
    first_ns: u64,
    interval_ns: f64,
    /// When the last write ended.
    write_ended_ns: u64,
}

impl Pace {
    /// Divides a rate among publishers, which send in turn.
    fn new(rate: u64, publisher: u16, publishers: u16) -> Self {
        let interval_ns = 1e9 / rate as f64;
        Self {
            first_ns: (interval_ns * f64::from(publisher)) as u64,
            interval_ns: interval_ns * f64::from(publishers),
            write_ended_ns: 0,
        }
    }

    fn due_ns(&self, number: u64) -> u64 {
        self.first_ns + (self.interval_ns * number as f64) as u64
    }

    /// Returns the number of messages that are due after `sent` messages.
    ///
    /// # Errors
    /// None is due: the time until the next one is.
    fn due_count(&self, sent: u64, now: Duration) -> std::result::Result<u64, Duration> {
        let (now_ns, due_ns) = (nanos(now), self.due_ns(sent));
        if now_ns < due_ns {
            return Err(Duration::from_nanos(due_ns - now_ns));
        }
        Ok((((now_ns - self.first_ns) as f64 / self.interval_ns) as u64 + 1).saturating_sub(sent).max(1))
    }

    /// Returns the send time of a message that is written now.
    ///
    /// This is the time it was due, if the broker blocked the previous write until later: the latency then includes
    /// the wait. A delay of this thread itself is not part of the latency.
    fn sent_ns(&self, number: u64, now: Duration) -> u64 {
        let due_ns = self.due_ns(number);
        if due_ns < self.write_ended_ns { due_ns } else { nanos(now) }
    }
}

/// The unconfirmed messages of a publisher.
struct Window {
    messages_max: usize,
    /// Delivery tag of the oldest unconfirmed message.
    first_tag: u64,
    /// Send times by delivery tag, from `first_tag` on; 0 if the message is confirmed.
    sent_ns: VecDeque<u64>,
    /// When a message was last sent or confirmed.
    changed: Duration,
    last_confirm: Duration,
    times: Histogram,
}

impl Window {
    fn new(messages_max: usize) -> Self {
        Self {
            messages_max,
            first_tag: 1,
            sent_ns: VecDeque::new(),
            changed: Duration::ZERO,
            last_confirm: Duration::ZERO,
            times: Histogram::default(),
        }
    }

    /// Returns the number of messages that may be sent.
    fn free(&self) -> u64 {
        (self.messages_max - self.sent_ns.len()) as u64
    }

    fn send(&mut self, count: usize, now: Duration) {
        self.sent_ns.extend(iter::repeat_n(nanos(now).max(1), count));
        self.changed = now;
    }

    /// Handles a confirm.
    fn confirm(&mut self, tag: u64, multiple: bool, now: Duration) -> Result<()> {
        let at = tag.checked_sub(self.first_tag).and_then(|at| usize::try_from(at).ok());
        let at = at.filter(|at| self.sent_ns.get(*at).is_some_and(|sent_ns| *sent_ns > 0));
        let Some(at) = at else {
            return Err(format!("the broker confirmed message {tag} twice, or before it was sent").into());
        };
        for sent_ns in self.sent_ns.range_mut(if multiple { 0 } else { at }..=at) {
            let sent_ns = mem::take(sent_ns);
            if sent_ns > 0 {
                self.times.record(nanos(now).saturating_sub(sent_ns));
            }
        }
        while self.sent_ns.front() == Some(&0) {
            self.sent_ns.pop_front();
            self.first_tag += 1;
        }
        (self.changed, self.last_confirm) = (now, now);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{self, Command};
    use crate::wire::next_frame;

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
            for (at, (key, body)) in (7_u64..).zip(parsed(batch.messages(7, 3, |at| at * 10))) {
                assert_eq!(key, queue_name((at % 3) as u32));
                assert_eq!(body[..8], pack(0, at / 3));
                assert_eq!(body[8..16], (at * 10).to_be_bytes());
                assert_eq!(body[16..], filler(size)[16..]);
            }
        }
        let mut empty = Batch::new(&workload("--size 0 --persistent"), 0, 4096).expect("it fits");
        assert_eq!(parsed(empty.messages(0, 2, |_| 0)).len(), 2);
    }

    #[test]
    fn publishers_send_in_turn() {
        let pace = |publisher| Pace::new(1000, publisher, 4);
        assert_eq!([pace(0).due_ns(0), pace(1).due_ns(0), pace(3).due_ns(2)], [0, 1_000_000, 11_000_000]);
        assert_eq!(pace(1).due_count(0, Duration::ZERO), Err(Duration::from_millis(1)));
        assert_eq!(pace(0).due_count(1, Duration::from_millis(9)), Ok(2));
    }

    #[test]
    fn latency_includes_the_time_the_broker_blocks_and_no_other() {
        let mut pace = Pace::new(1000, 0, 1);
        let at = Duration::from_micros;
        assert_eq!(pace.sent_ns(5, at(5_700)), 5_700_000);
        pace.write_ended_ns = 7_500_000;
        assert_eq!(pace.sent_ns(6, at(7_600)), 6_000_000);
        assert_eq!(pace.sent_ns(8, at(8_100)), 8_100_000);
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
        assert_eq!((window.free(), window.last_confirm), (4, at(300)));
    }
}
