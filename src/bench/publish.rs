//! A publisher: one connection, one thread, messages out as fast as the broker takes them or at a rate.
//!
//! Always true: when [`Publisher::run`] returns a count, the broker has handled every one of these messages,
//! for it confirmed them, or agreed to close after them.

use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::batch::{Batch, CHANNEL};
use super::error::BenchError;
use super::histogram::Histogram;
use super::link::{Link, PATIENCE, read_method};
use super::options::Options;
use super::pace::{Pace, wake_on_time};
use super::plan::Plan;
use super::run::Run;
use super::window::Window;
use crate::wire::{FrameKind, Method};

/// One publisher, connected.
#[derive(Debug)]
pub(super) struct Publisher {
    link: Link,
    sender: Sender,
    window: Option<Window>,
}

/// What a publisher did.
#[derive(Debug, Default)]
pub(super) struct Published {
    pub(super) count: u64,
    /// When the broker had taken the last, or confirmed it.
    pub(super) ended: Duration,
    /// From writing to confirm, in nanoseconds.
    pub(super) confirm_times: Histogram,
}

impl Publisher {
    pub(super) fn connect(
        options: &Options,
        plan: &Plan,
        mut link: Link,
        id: u16,
    ) -> Result<Self, BenchError> {
        link.open_channel(CHANNEL)?;
        if options.confirms.is_some() {
            link.call(CHANNEL, &Method::ConfirmSelect { no_wait: false }, "confirm.select-ok", |method| {
                matches!(method, Method::ConfirmSelectOk {})
            })?;
        }
        let sender = Sender::new(options, plan, id, link.frame_max())?;
        Ok(Self { link, sender, window: options.confirms.map(Window::new) })
    }

    /// A handle to cut the connection by.
    pub(super) fn socket(&self) -> Result<TcpStream, BenchError> {
        self.link.socket()
    }

    /// Publishes everything.
    pub(super) fn run(self, run: &Run) -> Result<Published, BenchError> {
        let Self { link, sender, window } = self;
        match window {
            None => run_unconfirmed(link, sender, run),
            Some(window) if sender.pace.is_none() => run_confirmed(link, sender, &window, run),
            Some(window) => run_confirmed_at_a_rate(link, sender, &window, run),
        }
    }
}

fn run_unconfirmed(mut link: Link, mut sender: Sender, run: &Run) -> Result<Published, BenchError> {
    sender.send_unconfirmed(&mut link, run)?;
    link.close()?;
    let ended = run.now();
    Ok(Published { count: sender.sent, ended, confirm_times: Histogram::default() })
}

/// One thread writes, and reads confirms when the window is full: the fastest way.
fn run_confirmed(
    mut link: Link,
    mut sender: Sender,
    window: &Window,
    run: &Run,
) -> Result<Published, BenchError> {
    let mut confirms = Confirms::default();
    while let Some(due) = sender.due(run)? {
        match due.min(window.room()) {
            0 => confirms.read(&mut link, window, run)?,
            count => sender.send(count, Some(window), run, &mut |octets| link.write(octets))?,
        }
    }
    while !window.is_empty() {
        confirms.read(&mut link, window, run)?;
    }
    link.close()?;
    Ok(Published { count: sender.sent, ended: confirms.last, confirm_times: confirms.times })
}

/// A second thread reads the confirms, so that their times are right while the first sleeps.
fn run_confirmed_at_a_rate(
    link: Link,
    mut sender: Sender,
    window: &Window,
    run: &Run,
) -> Result<Published, BenchError> {
    let mut socket = link.socket()?;
    let all_sent = AtomicBool::new(false);
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let confirms = Confirms::read_all(link, window, run, &all_sent);
            if confirms.is_err() {
                // The writer waits for room that only confirms make.
                run.give_up();
            }
            confirms
        });
        let written = sender.send_all(window, run, &mut |octets| {
            socket.write_all(octets).map_err(BenchError::io("writing to the broker"))
        });
        if written.is_err() {
            run.give_up();
        }
        all_sent.store(true, Ordering::Release);
        // Its trouble comes first: it holds what the broker said.
        let confirms = reader.join().unwrap_or(Err(BenchError::GivenUp));
        match (confirms, written) {
            (Ok(confirms), Ok(())) => {
                Ok(Published { count: sender.sent, ended: confirms.last, confirm_times: confirms.times })
            }
            (Err(BenchError::GivenUp) | Ok(_), Err(trouble)) | (Err(trouble), _) => Err(trouble),
        }
    })
}

/// What a publisher still has to send.
#[derive(Debug)]
pub(super) struct Sender {
    batch: Batch,
    quota: u64,
    until: Option<Duration>,
    pace: Option<Pace>,
    sent: u64,
}

impl Sender {
    pub(super) fn new(options: &Options, plan: &Plan, id: u16, frame_max: u32) -> Result<Self, BenchError> {
        let of = u64::from(options.publishers);
        let part = |count: u64| count / of + u64::from(u64::from(id) < count % of);
        Ok(Self {
            batch: Batch::new(options, plan, id, frame_max)?,
            quota: options.volume.messages.map_or(u64::MAX, part),
            until: options.volume.time(),
            pace: options.rate.map(|rate| Pace::new(rate, id, options.publishers)),
            sent: 0,
        })
    }

    /// How many messages may be sent at once now, which may be none; `None` when it is enough.
    fn due(&self, run: &Run) -> Result<Option<usize>, BenchError> {
        run.check()?;
        if self.sent >= self.quota || self.until.is_some_and(|until| run.now() >= until) {
            return Ok(None);
        }
        let left = usize::try_from(self.quota - self.sent).unwrap_or(usize::MAX);
        let due = self.pace.as_ref().map_or(usize::MAX, |pace| pace.wait(run, self.sent));
        Ok(Some(due.min(left).min(self.batch.capacity())))
    }

    fn send(
        &mut self,
        count: usize,
        window: Option<&Window>,
        run: &Run,
        write: &mut dyn FnMut(&[u8]) -> Result<(), BenchError>,
    ) -> Result<(), BenchError> {
        if count == 0 {
            return Ok(());
        }
        let now_ns = run.now_ns();
        if let Some(window) = window {
            window.send(count, now_ns);
        }
        let pace = self.pace.as_ref();
        let sent_ns = |number| pace.map_or(now_ns, |pace| pace.sent_ns(number, now_ns));
        write(self.batch.octets(self.sent, count, sent_ns))?;
        self.sent += count as u64;
        if let Some(pace) = &mut self.pace {
            pace.wrote(run);
        }
        Ok(())
    }

    /// Sends everything, and nobody confirms it.
    pub(super) fn send_unconfirmed(&mut self, link: &mut Link, run: &Run) -> Result<(), BenchError> {
        if self.pace.is_some() {
            wake_on_time();
        }
        while let Some(count) = self.due(run)? {
            self.send(count, None, run, &mut |octets| link.write(octets))?;
        }
        Ok(())
    }

    /// Messages sent so far.
    pub(super) const fn sent(&self) -> u64 {
        self.sent
    }

    /// Sends everything while somebody else reads the confirms.
    fn send_all(
        &mut self,
        window: &Window,
        run: &Run,
        write: &mut dyn FnMut(&[u8]) -> Result<(), BenchError>,
    ) -> Result<(), BenchError> {
        const WHILE_FULL: Duration = Duration::from_micros(20);
        wake_on_time();
        while let Some(due) = self.due(run)? {
            let room = window.room();
            if room == 0 {
                thread::sleep(WHILE_FULL);
            }
            self.send(due.min(room), Some(window), run, write)?;
        }
        Ok(())
    }
}

/// What the broker said about our messages.
#[derive(Debug, Default)]
struct Confirms {
    times: Histogram,
    last: Duration,
    waiting_since: Option<Instant>,
}

impl Confirms {
    /// Reads until everything is sent and confirmed.
    fn read_all(
        mut link: Link,
        window: &Window,
        run: &Run,
        all_sent: &AtomicBool,
    ) -> Result<Self, BenchError> {
        let mut confirms = Self::default();
        while !(all_sent.load(Ordering::Acquire) && window.is_empty()) {
            confirms.read(&mut link, window, run)?;
        }
        link.close().map(|()| confirms)
    }

    /// Reads once from the socket and takes in what came.
    fn read(&mut self, link: &mut Link, window: &Window, run: &Run) -> Result<(), BenchError> {
        run.check()?;
        if !link.fill()? {
            return self.wait_on(window);
        }
        self.waiting_since = None;
        self.last = run.now();
        let now_ns = run.now_ns();
        while let Some(frame) = link.frame()? {
            let len = frame.input_len();
            if frame.header.kind() == Some(FrameKind::Method) {
                self.take(&read_method(&frame)?, window, now_ns)?;
            }
            link.consume(len);
        }
        Ok(())
    }

    fn take(&mut self, method: &Method<'_>, window: &Window, now_ns: u64) -> Result<(), BenchError> {
        match *method {
            Method::BasicAck { delivery_tag, multiple } => {
                window.confirm(delivery_tag, multiple, now_ns, &mut self.times)
            }
            Method::BasicNack { delivery_tag, .. } => Err(BenchError::Wrong(format!(
                "the broker would not take message {delivery_tag} (basic.nack)"
            ))),
            _ => Ok(()),
        }
    }

    fn wait_on(&mut self, window: &Window) -> Result<(), BenchError> {
        let since = *self.waiting_since.get_or_insert_with(Instant::now);
        if window.is_empty() || since.elapsed() < PATIENCE {
            return Ok(());
        }
        let seconds = PATIENCE.as_secs();
        Err(BenchError::Silent(format!("the broker has confirmed nothing for {seconds} s")))
    }
}
