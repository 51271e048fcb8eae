//! Deadlines of a connection: heartbeats, handshake, contents, closing.
//!
//! The event loop sleeps until the earliest deadline of all connections, and calls the connections whose deadline
//! has passed.
//!
//! # Invariants
//! - Time during which the broker itself keeps a client waiting does not count against the client.
//! - A deadline that has fired does not fire again before something changed, so no connection keeps the loop
//!   busy.

use super::channel::NONE;
use super::connection::Context;
use super::connection::{Connection, Phase};
use super::input::hard_fault;
use super::publish::Content;
use leveret_core::log_limiter::LogKind;
use leveret_core::time::{Deadline, Now};

/// Delay before a refused client is disconnected, which slows down guessing passwords.
pub(super) const REFUSAL_DELAY_MS: u64 = 1_000;
/// Time limit for the check of a password.
pub(super) const LOGIN_PATIENCE_MS: u64 = 60_000;
/// Time limit for the answer to connection.close, unless the heartbeat is shorter.
const CLOSE_OK_MS: u64 = 30_000;

/// A deadline that is judged this many milliseconds late was missed by the broker, not by the client: the process
/// was paused, or the board was too busy.
const LATE_MS: u64 = 1_000;

/// A publisher must have been unblocked for this long before it gets connection.unblocked.
const UNBLOCKED_AFTER_MS: u64 = 100;

/// The result of a deadline that has passed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Timeout {
    /// The connection continues; it may have output now.
    GoOn,
    /// The client is gone or does not read: close the socket at once.
    Close,
}

impl Connection {
    /// Returns when [`Self::handle_timeout`] must be called. It changes with every other call.
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

    /// Returns the earliest deadline that input can still move.
    ///
    /// Before one of these is judged, the socket must be read: after a pause of the process the input that
    /// came in time may not have been read yet.
    pub fn input_deadline(&self) -> Deadline {
        match self.phase {
            Phase::Header { due } | Phase::Start { due } | Phase::Tune { due } => due,
            Phase::Opening { due } => due.earlier(self.silence_deadline()),
            Phase::Closing { until, .. } => until,
            Phase::Open => self.silence_deadline().earlier(self.content_deadline()),
            Phase::Refused { .. } | Phase::Ending { .. } | Phase::Finished { .. } => Deadline::NEVER,
        }
    }

    /// Gives the client more time if a deadline is judged more than `LATE_MS` late: the whole `handshake_ms`, the
    /// whole `content_ms`, or one heartbeat interval, as in RabbitMQ. A pause of the machine may have stopped the client
    /// as well.
    pub fn extend_after_pause(&mut self, now: Now, handshake_ms: u64, content_ms: u64) {
        let is_late = |due: Deadline| due.later_ms(LATE_MS).is_due(now);
        if let Phase::Header { due } | Phase::Start { due } | Phase::Tune { due } | Phase::Opening { due } =
            &mut self.phase
            && is_late(*due)
        {
            *due = now.after_ms(handshake_ms);
        }
        if is_late(self.silence_deadline()) {
            self.timing.heard = Now::from_ms(now.as_ms().saturating_sub(self.negotiated.heartbeat_ms.into()));
        }
        if is_late(self.content_deadline()) {
            (self.timing.resumed, self.timing.content_due) = (now, now.after_ms(content_ms));
        }
    }

    fn heartbeat_deadline(&self) -> Deadline {
        if self.negotiated.heartbeat_ms == 0 || self.output.is_heartbeat_due {
            return self.silence_deadline();
        }
        self.timing.wrote.after_ms(self.send_after_ms()).earlier(self.silence_deadline())
    }

    /// Returns when a client that stays silent counts as gone.
    fn silence_deadline(&self) -> Deadline {
        if self.negotiated.heartbeat_ms == 0 || self.input.is_suspended {
            return Deadline::NEVER;
        }
        self.timing.heard.after_ms(self.lost_after_ms())
    }

    const fn content_deadline(&self) -> Deadline {
        if self.input.is_suspended { Deadline::NEVER } else { self.timing.content_due }
    }

    const fn blocked_deadline(&self) -> Deadline {
        match self.blocked {
            blocked if blocked.lasts || !blocked.differs() => Deadline::NEVER,
            blocked => blocked.since.after_ms(UNBLOCKED_AFTER_MS),
        }
    }

    const fn send_after_ms(&self) -> u64 {
        self.negotiated.heartbeat_ms as u64 / 2
    }

    const fn lost_after_ms(&self) -> u64 {
        self.negotiated.heartbeat_ms as u64 * 2
    }

    /// Does what is due at `context.now`.
    pub fn handle_timeout(&mut self, context: &mut Context<'_>) -> Timeout {
        let now = context.now;
        if !self.deadline().is_due(now) {
            return Timeout::GoOn;
        }
        match self.phase {
            Phase::Refused { tell: Some(mechanism), .. } => {
                self.send_refusal(context, mechanism);
                Timeout::GoOn
            }
            Phase::Opening { due } if !due.is_due(now) => self.handle_heartbeats(context),
            Phase::Open => match self.handle_heartbeats(context) {
                Timeout::GoOn => {
                    self.blocked.lasts |= self.blocked_deadline().is_due(now);
                    // If the broker has stopped reading, the client has as much time as that takes.
                    if !self.input.is_suspended {
                        self.check_contents(context);
                    }
                    Timeout::GoOn
                }
                Timeout::Close => Timeout::Close,
            },
            Phase::Refused { .. } | Phase::Ending { .. } | Phase::Finished { .. } => Timeout::Close,
            phase => {
                self.warn(context, LogKind::Timeout, format_args!(": closed, time is up: {phase:?}"));
                Timeout::Close
            }
        }
    }

    fn handle_heartbeats(&mut self, context: &mut Context<'_>) -> Timeout {
        let now = context.now;
        if self.negotiated.heartbeat_ms == 0 {
            return Timeout::GoOn;
        }
        if !self.input.is_suspended && self.timing.heard.after_ms(self.lost_after_ms()).is_due(now) {
            let seconds = self.negotiated.heartbeat_ms / 1000;
            let text = format_args!(": missed heartbeats from client, timeout: {seconds}s");
            self.warn(context, LogKind::Timeout, text);
            return Timeout::Close;
        }
        if self.timing.wrote.after_ms(self.send_after_ms()).is_due(now) {
            self.output.is_heartbeat_due = true;
        }
        Timeout::GoOn
    }

    /// Looks for a content without progress, and sets the time of the next look.
    fn check_contents(&mut self, context: &mut Context<'_>) {
        if !self.timing.content_due.is_due(context.now) {
            return;
        }
        let patience = context.settings.content_timeout_ms;
        let mut oldest =
            (self.timing.unread > 0).then_some(self.timing.unread_since.max(self.timing.resumed));
        let mut slot = if self.channels.contents > 0 { self.channels.first } else { NONE };
        while slot != NONE {
            let record = &context.pools.channels[slot];
            if record.content.holds_message() {
                let since = record.progress.max(self.timing.resumed);
                oldest = Some(oldest.map_or(since, |oldest| oldest.min(since)));
            }
            slot = context.pools.channels.next(slot);
        }
        self.timing.content_due = oldest.map_or(Deadline::NEVER, |since| since.after_ms(patience));
        if self.timing.content_due.is_due(context.now) {
            self.timing.content_due = Deadline::NEVER;
            let text = format_args!("a message or frame was begun and did not go on for {patience} ms");
            let fault = hard_fault(leveret_core::error::ReplyCode::ResourceError, text);
            self.close_connection(context, &fault, (0, 0));
        }
    }

    /// Returns whether a body has been arriving for `ms` milliseconds.
    pub fn has_body_for(&self, context: &Context<'_>, ms: u64) -> bool {
        let mut slot = if self.channels.contents > 0 { self.channels.first } else { NONE };
        while slot != NONE {
            let record = &context.pools.channels[slot];
            let is_body = matches!(record.content, Content::Body { message: Some(_), .. });
            if is_body && record.begun.after_ms(ms).is_due(context.now) {
                return true;
            }
            slot = context.pools.channels.next(slot);
        }
        false
    }

    /// Records the length of the input. Bytes left over from the last time are no sign of life.
    #[inline]
    pub(super) fn note_input(&mut self, now: Now, octets: usize) {
        if self.input.is_suspended {
            self.input.is_suspended = false;
            self.timing.resumed = now;
            self.timing.heard = now;
        }
        if octets > self.timing.unread as usize {
            self.timing.heard = now;
        }
    }

    /// Records that all complete frames were handled: an incomplete frame must continue in time.
    #[inline]
    pub(super) fn note_progress(&mut self, context: &Context<'_>, has_moved: bool, unread: usize) {
        let unread = unread as u32;
        if has_moved || unread != self.timing.unread {
            self.timing.unread_since = context.now;
            self.timing.unread = unread;
        }
        if unread == 0 && self.channels.contents == 0 {
            self.timing.content_due = Deadline::NEVER;
        } else if self.timing.content_due == Deadline::NEVER {
            self.timing.content_due = context.now.after_ms(context.settings.content_timeout_ms);
        }
    }

    /// Returns how long to wait for connection.close-ok.
    pub(super) const fn close_patience_ms(&self) -> u64 {
        match self.negotiated.heartbeat_ms as u64 {
            ms if ms > 0 && ms < CLOSE_OK_MS => ms,
            _ => CLOSE_OK_MS,
        }
    }
}
