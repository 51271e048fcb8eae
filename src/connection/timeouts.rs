//! The deadlines of a connection: heartbeats, handshake timeout, incomplete messages, closing.
//!
//! The event loop sleeps until the earliest deadline of all connections, and calls the connections whose deadline
//! has passed.
//!
//! # Invariants
//! - While the broker does not read from a client, the timeouts for input do not run.
//! - After a deadline was handled, [`Connection::deadline`] returns a later one. Otherwise the event loop
//!   would never sleep.

use super::channel::NONE;
use super::connection::Context;
use super::connection::{Connection, Phase};
use super::input::hard_fault;
use super::publish::Content;
use leveret_core::log_limiter::LogKind;
use leveret_core::time::{Deadline, Now};

/// Delay in milliseconds before a refused client is disconnected, which slows down guessing passwords.
pub(super) const REFUSAL_DELAY_MS: u64 = 1_000;
/// Time limit for the check of a password in milliseconds.
pub(super) const LOGIN_TIMEOUT_MS: u64 = 60_000;
/// Time limit for connection.close-ok in milliseconds, unless the heartbeat interval is shorter.
const CLOSE_OK_TIMEOUT_MS: u64 = 30_000;

/// If the broker checks a deadline at least this many milliseconds late, the process was paused or the board
/// was too busy. The client may then have sent something in time.
pub(super) const PAUSE_MS_MIN: u64 = 1_000;

/// Time in milliseconds for which a publisher must have been unblocked before `connection.unblocked` is sent.
const UNBLOCKED_AFTER_MS: u64 = 100;

/// What the caller of [`Connection::handle_timeout`] has to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Timeout {
    /// The connection continues. There may be output to send.
    GoOn,
    /// Close the socket at once: the client has missed a deadline, or the connection has ended.
    Close,
}

impl Connection {
    /// Returns when [`Self::handle_timeout`] must be called. Every other call can change the result.
    pub fn deadline(&self) -> Deadline {
        match self.phase {
            Phase::Header { due } | Phase::Start { due } | Phase::Tune { due } => due,
            Phase::Opening { due } => due.earlier(self.heartbeat_deadline()),
            Phase::Refused { until, .. }
            | Phase::Closing { until, .. }
            | Phase::Ending { until }
            | Phase::Finished { until } => until,
            Phase::Open => {
                self.heartbeat_deadline().earlier(self.content_deadline()).earlier(self.blocked_deadline())
            }
        }
    }

    /// Returns the earliest deadline that received input postpones.
    ///
    /// The caller must read the socket before it handles this deadline: after a pause of the process, input that
    /// arrived in time may still be unread.
    pub fn input_deadline(&self) -> Deadline {
        match self.phase {
            Phase::Header { due } | Phase::Start { due } | Phase::Tune { due } => due,
            Phase::Opening { due } => due.earlier(self.silence_deadline()),
            Phase::Closing { until, .. } => until,
            Phase::Open => self.silence_deadline().earlier(self.content_deadline()),
            Phase::Refused { .. } | Phase::Ending { .. } | Phase::Finished { .. } => Deadline::NEVER,
        }
    }

    /// Extends deadlines that passed more than `PAUSE_MS_MIN` ago, because the machine was probably paused and the client
    /// perhaps with it. The handshake gets `handshake_ms` again, an incomplete message `content_ms`, and a silent client
    /// one heartbeat interval, as in RabbitMQ.
    pub fn extend_after_pause(&mut self, now: Now, handshake_ms: u64, content_ms: u64) {
        let is_late = |due: Deadline| due.later_ms(PAUSE_MS_MIN).is_due(now);
        if let Phase::Header { due } | Phase::Start { due } | Phase::Tune { due } | Phase::Opening { due } =
            &mut self.phase
            && is_late(*due)
        {
            *due = now.after_ms(handshake_ms);
        }
        if is_late(self.silence_deadline()) {
            self.timing.last_received =
                Now::from_ms(now.as_ms().saturating_sub(self.negotiated.heartbeat_ms.into()));
        }
        if is_late(self.content_deadline()) {
            (self.timing.resumed, self.timing.content_due) = (now, now.after_ms(content_ms));
        }
    }

    /// Returns when a heartbeat must be sent, or the client has been silent for too long, whichever is earlier.
    fn heartbeat_deadline(&self) -> Deadline {
        if self.negotiated.heartbeat_ms == 0 || self.output.is_heartbeat_due {
            return self.silence_deadline();
        }
        self.timing.last_written.after_ms(self.send_after_ms()).earlier(self.silence_deadline())
    }

    /// Returns when the client has been silent for two heartbeat intervals; [`Deadline::NEVER`] while the
    /// broker does not read from it.
    fn silence_deadline(&self) -> Deadline {
        if self.negotiated.heartbeat_ms == 0 || self.input.is_suspended {
            return Deadline::NEVER;
        }
        self.timing.last_received.after_ms(self.lost_after_ms())
    }

    /// Returns the deadline until which more of an incomplete message or frame must arrive;
    /// [`Deadline::NEVER`] while the broker does not read.
    const fn content_deadline(&self) -> Deadline {
        if self.input.is_suspended { Deadline::NEVER } else { self.timing.content_due }
    }

    /// Returns when `connection.unblocked` may be sent; [`Deadline::NEVER`] if it is not pending.
    const fn blocked_deadline(&self) -> Deadline {
        match self.blocked {
            blocked if blocked.is_stable || !blocked.differs() => Deadline::NEVER,
            blocked => blocked.since.after_ms(UNBLOCKED_AFTER_MS),
        }
    }

    /// Returns after how many milliseconds without output a heartbeat is sent.
    const fn send_after_ms(&self) -> u64 {
        self.negotiated.heartbeat_ms as u64 / 2
    }

    /// Returns after how many milliseconds without input the connection is closed.
    const fn lost_after_ms(&self) -> u64 {
        self.negotiated.heartbeat_ms as u64 * 2
    }

    /// Handles the deadlines that have passed at `context.now`.
    pub fn handle_timeout(&mut self, context: &mut Context<'_>) -> Timeout {
        let now = context.now;
        if !self.deadline().is_due(now) {
            return Timeout::GoOn;
        }
        match self.phase {
            Phase::Refused { answer: Some(mechanism), .. } => {
                self.send_refusal(context, mechanism);
                Timeout::GoOn
            }
            Phase::Opening { due } if !due.is_due(now) => self.handle_heartbeats(context),
            Phase::Open => match self.handle_heartbeats(context) {
                Timeout::GoOn => {
                    self.blocked.is_stable |= self.blocked_deadline().is_due(now);
                    // While the broker does not read, an incomplete message cannot continue.
                    if !self.input.is_suspended {
                        self.check_contents(context);
                    }
                    Timeout::GoOn
                }
                Timeout::Close => Timeout::Close,
            },
            Phase::Refused { .. } | Phase::Ending { .. } | Phase::Finished { .. } => Timeout::Close,
            Phase::Header { .. } => self.close_without(context, "the protocol header"),
            Phase::Start { .. } => self.close_without(context, "connection.start-ok"),
            Phase::Tune { .. } => self.close_without(context, "connection.tune-ok"),
            Phase::Opening { .. } => self.close_without(context, "connection.open"),
            Phase::Closing { .. } => self.close_without(context, "connection.close-ok"),
        }
    }

    /// Logs what the client has not sent in time.
    #[cold]
    fn close_without(&self, context: &mut Context<'_>, awaited: &str) -> Timeout {
        self.warn(
            context,
            LogKind::Timeout,
            format_args!(": closed, because {awaited} did not arrive in time"),
        );
        Timeout::Close
    }

    /// Schedules a heartbeat if nothing was sent for half an interval. Returns [`Timeout::Close`] if the client was
    /// silent for two intervals.
    fn handle_heartbeats(&mut self, context: &mut Context<'_>) -> Timeout {
        let now = context.now;
        if self.negotiated.heartbeat_ms == 0 {
            return Timeout::GoOn;
        }
        if !self.input.is_suspended && self.timing.last_received.after_ms(self.lost_after_ms()).is_due(now) {
            let seconds = self.negotiated.heartbeat_ms / 1000;
            let text = format_args!(": missed heartbeats from client, timeout: {seconds}s");
            self.warn(context, LogKind::Timeout, text);
            return Timeout::Close;
        }
        if self.timing.last_written.after_ms(self.send_after_ms()).is_due(now) {
            self.output.is_heartbeat_due = true;
        }
        Timeout::GoOn
    }

    /// Closes the connection if a message or frame has not continued for `content_timeout_ms`. Otherwise computes the
    /// next deadline for that.
    fn check_contents(&mut self, context: &mut Context<'_>) {
        if !self.timing.content_due.is_due(context.now) {
            return;
        }
        let timeout_ms = context.settings.content_timeout_ms;
        let mut oldest =
            (self.timing.unhandled_bytes > 0).then_some(self.timing.unhandled_since.max(self.timing.resumed));
        let mut slot = if self.channels.contents > 0 { self.channels.first } else { NONE };
        while slot != NONE {
            let record = &context.pools.channels[slot];
            if record.content.has_message() {
                let since = record.progress.max(self.timing.resumed);
                oldest = Some(oldest.map_or(since, |oldest| oldest.min(since)));
            }
            slot = context.pools.channels.next(slot);
        }
        self.timing.content_due = oldest.map_or(Deadline::NEVER, |since| since.after_ms(timeout_ms));
        if self.timing.content_due.is_due(context.now) {
            self.timing.content_due = Deadline::NEVER;
            let text = format_args!("a message or frame was begun and did not go on for {timeout_ms} ms");
            let fault = hard_fault(leveret_core::error::ReplyCode::ResourceError, text);
            self.close_connection(context, &fault, (0, 0));
        }
    }

    /// Returns whether a message body began to arrive at least `ms` milliseconds ago and is still incomplete.
    pub fn has_body_for(&self, context: &Context<'_>, ms: u64) -> bool {
        let mut slot = if self.channels.contents > 0 { self.channels.first } else { NONE };
        while slot != NONE {
            let record = &context.pools.channels[slot];
            let is_body = matches!(record.content, Content::Body { message: Some(_), .. });
            if is_body && record.body_begun.after_ms(ms).is_due(context.now) {
                return true;
            }
            slot = context.pools.channels.next(slot);
        }
        false
    }

    /// Notes that there are `octets` bytes of unhandled input. The client has sent something only if these
    /// are more than at the last call.
    #[inline]
    pub(super) fn note_input(&mut self, now: Now, octets: usize) {
        if self.input.is_suspended {
            self.input.is_suspended = false;
            self.timing.resumed = now;
            self.timing.last_received = now;
        }
        if octets > self.timing.unhandled_bytes as usize {
            self.timing.last_received = now;
        }
    }

    /// Notes that all complete frames were handled, and that `unhandled` bytes of an incomplete frame are
    /// left. Sets the deadline for the rest of an incomplete frame or message. `has_handled` means that
    /// frames were handled since the last call.
    #[inline]
    pub(super) fn note_progress(&mut self, context: &Context<'_>, has_handled: bool, unhandled: usize) {
        let unhandled = unhandled as u32;
        if has_handled || unhandled != self.timing.unhandled_bytes {
            self.timing.unhandled_since = context.now;
            self.timing.unhandled_bytes = unhandled;
        }
        if unhandled == 0 && self.channels.contents == 0 {
            self.timing.content_due = Deadline::NEVER;
        } else if self.timing.content_due == Deadline::NEVER {
            self.timing.content_due = context.now.after_ms(context.settings.content_timeout_ms);
        }
    }

    /// Returns the time limit for connection.close-ok in milliseconds.
    pub(super) const fn close_ok_timeout_ms(&self) -> u64 {
        match self.negotiated.heartbeat_ms as u64 {
            ms if ms > 0 && ms < CLOSE_OK_TIMEOUT_MS => ms,
            _ => CLOSE_OK_TIMEOUT_MS,
        }
    }
}
