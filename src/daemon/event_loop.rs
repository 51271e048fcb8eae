//! The poll, the clock, signals, and the server's turns after each poll.
//!
//! ```text
//! sleep until an event or a deadline ─ set_now ─ pass events to the engine ─ turn ─┐
//!   ↑                                                                              │
//!   └──────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! # Invariants
//! - While the engine has work left after a turn, the poll does not sleep.
//! - The result of a helper thread wakes the poll, and is handled in the next turn.
//! - The clock is read once after each sleep, and once before it to compute how long to sleep.

use std::io;
use std::time::{Duration, Instant};

use mio::net::UnixStream;
use mio::{Events, Token};

use leveret_config::Config;
use leveret_core::time::{Deadline, Now};
use leveret_server::{Engine, Readiness};

use super::listen::LISTEN_AGAIN_MS;
use super::start::StartError;
use super::system::{HANGUP, HELPERS, SIGNAL, System, TokenOwner, owner_of};
use super::systemd;
use super::{signals, system};

const EVENTS_PER_POLL: usize = 256;
/// A turn that takes at least this time is logged, in milliseconds.
const LONG_TURN_MS: u64 = 250;

/// The server on this machine: sockets, clock, threads and signals.
pub struct EventLoop {
    pub(super) engine: Engine<System>,
    /// The configuration as it was last read.
    pub(super) config: Config,
    events: Events,
    started: Instant,
    signals: UnixStream,
    pub(super) hangups: UnixStream,
    /// The interval at which the service manager expects a watchdog message, and the next deadline.
    watchdog: Option<(u64, Deadline)>,
    /// When unavailable listen addresses are retried.
    listen_again: Deadline,
    has_notified_stopping: bool,
}

impl core::fmt::Debug for EventLoop {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("EventLoop").field("engine", &self.engine).finish_non_exhaustive()
    }
}

impl EventLoop {
    /// Creates the event loop of an engine.
    pub(super) fn new(
        engine: Engine<System>,
        config: Config,
        signals: UnixStream,
        hangups: UnixStream,
    ) -> Self {
        Self {
            engine,
            config,
            events: Events::with_capacity(EVENTS_PER_POLL),
            started: Instant::now(),
            signals,
            hangups,
            watchdog: systemd::watchdog_interval_ms().map(|ms| (ms, Now::from_ms(0).after_ms(ms))),
            listen_again: Deadline::NEVER,
            has_notified_stopping: false,
        }
    }

    /// Runs turns until SIGTERM or SIGINT arrives.
    ///
    /// # Errors
    /// The poll or the disk has failed.
    pub fn run(&mut self) -> Result<(), StartError> {
        systemd::notify_ready();
        let stopped = self.run_until_stopped();
        self.engine.log_suppressed();
        stopped?;
        log::info!("stopped");
        Ok(())
    }

    fn run_until_stopped(&mut self) -> Result<(), StartError> {
        // The clock is read again, so that the time of the start is not counted as part of the first turn.
        let now = self.clock();
        self.engine.set_now(now);
        if self.engine.platform().has_closed_listener() {
            self.listen_again = now.after_ms(LISTEN_AGAIN_MS);
        }
        while !self.engine.is_stopped() {
            self.wait()?;
            self.engine.turn().map_err(disk_failed)?;
            self.follow_up();
        }
        let goes_on = self.engine.begin_flush();
        self.flush(goes_on)?;
        let goes_on = self.engine.close_store();
        self.flush(goes_on)?;
        self.engine.log_counters();
        if let Some(text) = self.engine.bridge_state_text()
            && let Err(error) = system::write(&self.config.data_dir, &text)
        {
            log::warn!("the state of the bridges cannot be written: {error}");
        }
        Ok(())
    }

    fn flush(&mut self, mut goes_on: bool) -> Result<(), StartError> {
        while goes_on {
            let deadline = self.engine.flush_deadline();
            self.wait_until(deadline)?;
            goes_on = self.engine.flush().map_err(disk_failed)?;
        }
        Ok(())
    }

    /// After a turn: handles a reload, listening again, and the watchdog.
    fn follow_up(&mut self) {
        if self.engine.is_stopping() && !core::mem::replace(&mut self.has_notified_stopping, true) {
            systemd::notify_stopping();
        }
        if let Some(again) = self.engine.take_reload_result() {
            self.take_reload_result(again);
        }
    }

    fn wait(&mut self) -> Result<(), StartError> {
        let watchdog = self.watchdog.map_or(Deadline::NEVER, |(_, at)| at);
        let deadline = self.engine.sleep_deadline().map(|deadline| deadline.earlier(watchdog));
        self.wait_until(deadline.map(|deadline| deadline.earlier(self.listen_again)))?;
        self.listen_again();
        if let Some((interval_ms, at)) = self.watchdog {
            let now = self.engine.now();
            if at.is_due(now) {
                systemd::notify_watchdog();
                self.watchdog = Some((interval_ms, now.after_ms(interval_ms)));
            }
        }
        Ok(())
    }

    /// Retries unavailable addresses and unusable certificates, every [`LISTEN_AGAIN_MS`].
    fn listen_again(&mut self) {
        let now = self.engine.now();
        if self.listen_again.is_due(now) {
            if self.engine.platform().is_tls_unavailable {
                self.engine.check_certificates();
            }
            self.engine.platform_mut().listen_again();
            let is_any_left = self.engine.platform().has_closed_listener();
            self.listen_again = if is_any_left { now.after_ms(LISTEN_AGAIN_MS) } else { Deadline::NEVER };
        }
    }

    /// Waits for events until `deadline`, and passes them to the engine. With `None`, does not wait.
    fn wait_until(&mut self, deadline: Option<Deadline>) -> Result<(), StartError> {
        // Without a sleep, the clock need not be read before the poll: it is read directly after it.
        let (timeout, slept_from) = match deadline {
            None => (Some(Duration::ZERO), None),
            Some(deadline) => {
                let now = self.clock();
                (deadline.ms_left(now).map(Duration::from_millis), Some(now))
            }
        };
        match self.engine.platform_mut().poll.poll(&mut self.events, timeout) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                return Err(StartError::System("wait for events", error));
            }
            _ => {}
        }
        let now = self.clock();
        let took_ms = slept_from.unwrap_or(now).ms_since(self.engine.now());
        if took_ms >= LONG_TURN_MS {
            self.engine.note_long_turn(took_ms);
        }
        self.engine.set_now(now);
        let (mut is_stop_wanted, mut is_reload_wanted) = (false, false);
        for event in &self.events {
            match event.token() {
                SIGNAL => is_stop_wanted = true,
                HANGUP => is_reload_wanted = true,
                // This only wakes the loop: every turn takes the results of helper threads.
                HELPERS => {}
                token => report(&mut self.engine, token, event),
            }
        }
        self.events.clear();
        if is_stop_wanted {
            signals::drain(&mut self.signals);
            self.engine.begin_stop("by a signal");
        }
        if is_reload_wanted {
            self.take_hangup();
        }
        Ok(())
    }

    fn clock(&self) -> Now {
        Now::from_ms(self.started.elapsed().as_millis() as u64)
    }
}

#[inline]
fn report(engine: &mut Engine<System>, token: Token, event: &mio::event::Event) {
    let readiness = Readiness {
        is_readable: event.is_readable(),
        is_writable: event.is_writable(),
        is_read_closed: event.is_read_closed(),
        is_write_closed: event.is_write_closed(),
        is_error: event.is_error(),
    };
    match owner_of(token) {
        TokenOwner::Peer(id) => engine.note_peer(id, readiness),
        TokenOwner::Listener(listener) => engine.note_listener(listener),
    }
}

fn disk_failed(error: io::Error) -> StartError {
    StartError::System("write to the data directory any more", error)
}
