//! A consumer: one connection, one thread, a channel for each of its queues.
//!
//! The channel says which queue a message comes from, so queues need no look-up. Always true: when
//! [`Consumer::run`] returns, everything that was published to its queues has come out of them, to it or to
//! another, and what came to it was checked.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::body::{Checker, Incoming, Lane, Tally};
use super::error::BenchError;
use super::histogram::Histogram;
use super::link::{Link, PATIENCE, first_frame, read_method};
use super::options::{Ack, Options};
use super::plan::Plan;
use super::run::Run;
use crate::wire::{Frame, FrameKind, Method, Reader, Table, Writer};

const TAG: &str = "c";
const BASIC_DELIVER: [u8; 4] = [0, 60, 0, 60];
const BASIC_PUBLISH: [u8; 4] = [0, 60, 0, 40];
/// Octets of a content header's payload before the body's length.
const BODY_LEN_AT: usize = 4;
/// Octets of a basic.ack frame.
const ACK_FRAME_LEN: usize = 21;
/// Room for the acknowledgements of what one read usually brings.
const ACKS_BYTES: usize = 64 << 10;

/// One consumer, connected and subscribed.
#[derive(Debug)]
pub(super) struct Consumer {
    link: Link,
    queues: Vec<u32>,
    intake: Intake,
}

/// What a consumer received.
#[derive(Debug)]
pub(super) struct Consumed {
    pub(super) count: u64,
    /// When the last one came.
    pub(super) ended: Duration,
    /// From being sent to being received, in nanoseconds.
    pub(super) times: Histogram,
    pub(super) queues: Vec<u32>,
    /// All publishers of its first queue, then of its second, and so on.
    pub(super) tallies: Vec<Tally>,
}

impl Consumer {
    pub(super) fn connect(
        options: &Options,
        plan: &Plan,
        mut link: Link,
        id: u16,
    ) -> Result<Self, BenchError> {
        let queues = plan.consumed_by(id);
        for (channel, queue) in (1..).zip(&queues) {
            link.open_channel(channel)?;
            subscribe(&mut link, channel, &plan.queue(*queue), options)?;
        }
        let intake = Intake::new(options, plan, &queues);
        Ok(Self { link, queues, intake })
    }

    /// At the far end of the bare relay: the same work, without a broker.
    pub(super) fn of_relay(options: &Options, plan: &Plan, link: Link) -> Self {
        let queues = vec![0];
        let intake = Intake::new(options, plan, &queues);
        Self { link, queues, intake }
    }

    /// A handle to cut the connection by.
    pub(super) fn socket(&self) -> Result<TcpStream, BenchError> {
        self.link.socket()
    }

    /// Consumes until the queues are drained.
    pub(super) fn run(mut self, run: &Run) -> Result<(Consumed, Link), BenchError> {
        let mut count = 0;
        let mut ended = Duration::ZERO;
        let mut last_sign = Instant::now();
        while !self.queues.iter().all(|queue| run.is_drained(*queue)) {
            run.check()?;
            if !self.link.fill()? {
                if last_sign.elapsed() > PATIENCE {
                    return Err(self.nothing_comes(run));
                }
                continue;
            }
            let now = run.now();
            let received = self.take_in(run, now)?;
            if received > 0 {
                (last_sign, ended) = (Instant::now(), now);
                count += received;
            }
        }
        let tallies = self.intake.checker.lanes.iter().map(|lane| lane.tally).collect();
        let consumed = Consumed { count, ended, times: self.intake.times, queues: self.queues, tallies };
        Ok((consumed, self.link))
    }

    /// Takes in what was read; gives the number of whole messages.
    fn take_in(&mut self, run: &Run, now: Duration) -> Result<u64, BenchError> {
        let Self { link, intake, queues } = self;
        let octets = link.pending();
        let mut at = 0;
        intake.now_ns = super::run::nanos(now);
        while let Some(frame) = first_frame(&octets[at..])? {
            intake.frame(&frame)?;
            at += frame.input_len();
        }
        link.consume(at);
        intake.acknowledge_rest();
        if !intake.acks.is_empty() {
            link.write(&intake.acks)?;
            intake.acks.clear();
        }
        let mut received = 0;
        for (channel, queue) in intake.channels.iter_mut().zip(queues) {
            if channel.received > 0 {
                run.received(*queue, channel.received);
                received += std::mem::take(&mut channel.received);
            }
        }
        Ok(received)
    }

    fn nothing_comes(&self, run: &Run) -> BenchError {
        let seconds = PATIENCE.as_secs();
        let missing = self.queues.iter().filter_map(|queue| run.missing(*queue));
        match missing.reduce(|sum, more| (sum.0 + more.0, sum.1 + more.1)) {
            Some((received, expected)) if received < expected => BenchError::Wrong(format!(
                "nothing has come for {seconds} s, and {} of {expected} messages are missing",
                expected - received
            )),
            _ => BenchError::Silent(format!("nothing has come for {seconds} s")),
        }
    }
}

fn subscribe(link: &mut Link, channel: u16, queue: &str, options: &Options) -> Result<(), BenchError> {
    let no_ack = options.ack == Ack::Auto;
    if !no_ack {
        let qos = Method::BasicQos { prefetch_size: 0, prefetch_count: options.prefetch, global: false };
        link.call(channel, &qos, "basic.qos-ok", |method| matches!(method, Method::BasicQosOk {}))?;
    }
    let consume = Method::BasicConsume {
        queue,
        consumer_tag: TAG,
        no_local: false,
        no_ack,
        exclusive: false,
        no_wait: false,
        arguments: Table::EMPTY,
    };
    link.call(channel, &consume, "basic.consume-ok", |method| matches!(method, Method::BasicConsumeOk { .. }))
}

/// Frames in, checked messages counted, acknowledgements out.
#[derive(Debug)]
struct Intake {
    /// Channel 1 first.
    channels: Vec<Channel>,
    checker: Checker,
    ack: Ack,
    acks: Vec<u8>,
    /// Whether messages carry the time they were sent.
    stamped: bool,
    now_ns: u64,
    times: Histogram,
}

/// What is on its way in on a channel.
#[derive(Debug, Default)]
struct Channel {
    incoming: Incoming,
    delivery_tag: u64,
    /// Of the last message that came whole.
    whole_tag: u64,
    /// Whole messages since the others were last told.
    received: u64,
}

impl Intake {
    fn new(options: &Options, plan: &Plan, queues: &[u32]) -> Self {
        let stamped = options.rate.is_some();
        let lanes = queues.iter().flat_map(|queue| {
            (0..options.publishers).map(|publisher| {
                // A lane that nothing goes through begins where no number can be.
                let (next, step) = plan.share(publisher, *queue).map_or((u64::MAX, 1), |s| (s.first, s.step));
                Lane { next, step, tally: Tally::default() }
            })
        });
        let alone = plan.consumers_are_alone();
        let publishers = usize::from(options.publishers);
        Self {
            channels: queues.iter().map(|_| Channel::default()).collect(),
            checker: Checker::new(options.size, stamped, lanes.collect(), publishers, alone),
            ack: options.ack,
            acks: Vec::with_capacity(ACKS_BYTES),
            stamped,
            now_ns: 0,
            times: Histogram::default(),
        }
    }

    #[inline]
    fn frame(&mut self, frame: &Frame<'_>) -> Result<(), BenchError> {
        let at = usize::from(frame.header.channel).wrapping_sub(1);
        match frame.header.kind() {
            Some(FrameKind::Body) => self.body(at, frame.payload),
            Some(FrameKind::Header) => self.header(at, frame.payload),
            Some(FrameKind::Method) => self.method(at, frame),
            _ => Ok(()),
        }
    }

    #[inline]
    fn method(&mut self, at: usize, frame: &Frame<'_>) -> Result<(), BenchError> {
        if let Some(arguments) = frame.payload.strip_prefix(&BASIC_DELIVER) {
            let mut reader = Reader::new(arguments);
            let delivery_tag = reader.short_str().and_then(|_| reader.u64()).map_err(|_| out_of_place())?;
            self.channel(at)?.delivery_tag = delivery_tag;
            return Ok(());
        }
        if frame.payload.starts_with(&BASIC_PUBLISH) {
            return Ok(());
        }
        read_method(frame).map(drop)
    }

    #[inline]
    fn header(&mut self, at: usize, payload: &[u8]) -> Result<(), BenchError> {
        let body_len = payload.get(BODY_LEN_AT..).and_then(|rest| rest.first_chunk());
        let body_len = u64::from_be_bytes(*body_len.ok_or_else(out_of_place)?);
        self.channel(at)?.incoming = self.checker.begin(body_len)?;
        if body_len == 0 { self.complete(at) } else { Ok(()) }
    }

    #[inline]
    fn body(&mut self, at: usize, payload: &[u8]) -> Result<(), BenchError> {
        let channel = self.channels.get_mut(at).ok_or_else(out_of_place)?;
        if self.checker.piece(&mut channel.incoming, payload)? { self.complete(at) } else { Ok(()) }
    }

    #[inline]
    fn complete(&mut self, at: usize) -> Result<(), BenchError> {
        let channel = self.channels.get_mut(at).ok_or_else(out_of_place)?;
        let sent_ns = self.checker.complete(at, &channel.incoming)?;
        channel.received += 1;
        channel.whole_tag = channel.delivery_tag;
        if self.ack == Ack::Each {
            acknowledge(&mut self.acks, at, channel.delivery_tag, false);
        }
        if self.stamped {
            self.times.record(self.now_ns.saturating_sub(sent_ns));
        }
        Ok(())
    }

    /// With multiple acknowledgements: everything that came since the last.
    fn acknowledge_rest(&mut self) {
        if self.ack != Ack::Multiple {
            return;
        }
        for (at, channel) in self.channels.iter_mut().enumerate().filter(|(_, channel)| channel.received > 0)
        {
            acknowledge(&mut self.acks, at, channel.whole_tag, true);
        }
    }

    #[inline]
    fn channel(&mut self, at: usize) -> Result<&mut Channel, BenchError> {
        self.channels.get_mut(at).ok_or_else(out_of_place)
    }
}

fn acknowledge(acks: &mut Vec<u8>, at: usize, delivery_tag: u64, multiple: bool) {
    let mut frame = [0; ACK_FRAME_LEN];
    // The frame has exactly this length.
    let _ =
        Method::BasicAck { delivery_tag, multiple }.emit_frame(at as u16 + 1, &mut Writer::new(&mut frame));
    acks.extend_from_slice(&frame);
}

#[cold]
fn out_of_place() -> BenchError {
    BenchError::Strange("a frame out of place".to_string())
}
