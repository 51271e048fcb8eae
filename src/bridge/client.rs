//! One AMQP connection to an upstream, from the client's side, with a channel for each rule.
//!
//! ```text
//!   upstream                          here
//!                              <-     AMQP 0 0 9 1
//!   connection.start           ->
//!                              <-     connection.start-ok
//!   connection.tune            ->
//!                              <-     connection.tune-ok, connection.open
//!   connection.open-ok         ->     Event::Open
//!
//!   for each rule, when it is opened (see `channel`):
//!                              <-     channel.open, …
//!   …-ok                       ->     Event::Ready
//! ```
//!
//! # Invariants
//! - What the upstream sends ends the link or a channel, or leads to one event.
//! - The end of one channel does not affect the others.
//! - Methods other than publishes fit into a buffer of fixed size. A method that does not fit now is sent when
//!   there is space.
//! - No password is shown.

use core::fmt::{self, Write as _};
use std::io;

use leveret_amqp::{
    ContentHeader, Frame, FrameKind, HEARTBEAT_FRAME, Method, Opening, PROTOCOL_HEADER, Properties, Table,
    Writer, classify_opening, next_frame,
};
use leveret_config::upstream::Upstream;
use leveret_core::limits::FRAME_BYTES_MIN;
use leveret_core::time::{Deadline, Now};

use super::channel::Channel;
use super::channel::Preparation;
use super::headers::{Origin, OwnId};

/// Size of the buffer for methods other than publishes. The longest is connection.start-ok.
const OUT_BYTES: usize = 2048;
/// Size of a frame of basic.ack or basic.nack, rounded up.
const SETTLE_BYTES_MAX: usize = 32;
/// Time limit from connecting until the connection is open, and then for each step of a channel, in milliseconds.
const OPENING_MS: u64 = 30_000;

/// The stage of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// Nothing was received yet.
    Start,
    /// connection.start-ok was sent.
    Login,
    /// connection.open was sent.
    Opening,
    /// Channels can be opened.
    Open,
    /// The connection has ended.
    Over,
}

/// How a message that the upstream delivered is settled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Acknowledged; with `true` all messages before it on its channel as well.
    Taken(bool),
    /// Refused without requeue: the upstream dead-letters or drops it.
    Dead,
}

/// The upstream, and how the bridge identifies itself there.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// The address and the user.
    pub upstream: Upstream,
    /// The name in the upstream's list of connections.
    pub name: String,
    /// The version of this broker.
    pub version: String,
}

/// One connection to an upstream.
#[derive(Debug)]
pub struct Client {
    stage: Stage,
    credentials: Credentials,
    origin: Origin,
    frame_max: u32,
    heartbeat_ms: u64,
    heard: Now,
    is_unheard: bool,
    /// Number of bytes of input that were not handled at the last call.
    unread: usize,
    wrote: Now,
    opening_due: Deadline,
    out: Vec<u8>,
    is_blocked: bool,
    /// One channel for each rule, from channel 1 on.
    channels: Vec<Channel>,
}

impl Client {
    /// Starts a connection for `rules` rules, whose socket is connected or connecting. Frames of at most `frame_max`
    /// bytes are accepted.
    pub fn new(
        now: Now,
        rules: usize,
        credentials: Credentials,
        origin: Origin,
        (frame_max, heartbeat_s): (u32, u16),
    ) -> Self {
        let mut out = Vec::with_capacity(OUT_BYTES);
        out.extend_from_slice(&PROTOCOL_HEADER);
        Self {
            stage: Stage::Start,
            credentials,
            origin,
            frame_max,
            heartbeat_ms: u64::from(heartbeat_s) * 1000,
            heard: now,
            is_unheard: true,
            unread: 0,
            wrote: now,
            opening_due: now.after_ms(OPENING_MS),
            out,
            is_blocked: false,
            channels: (0..rules).map(|_| Channel::default()).collect(),
        }
    }

    /// Returns the stage of the connection.
    pub const fn stage(&self) -> Stage {
        self.stage
    }

    /// Returns the maximum size of a frame in bytes, as negotiated once the connection is open.
    pub const fn frame_max(&self) -> u32 {
        self.frame_max
    }

    /// Returns whether the upstream accepts no messages for now (`connection.blocked`).
    pub const fn is_blocked(&self) -> bool {
        self.is_blocked
    }

    // ---- rules

    /// Returns the channel number of a rule.
    pub const fn channel_of(rule: usize) -> u16 {
        rule as u16 + 1
    }

    /// Returns whether the channel of a rule is closed on both sides, so that it can be opened.
    pub fn is_closed(&self, rule: usize) -> bool {
        self.channels[rule].is_closed()
    }

    /// Opens the closed channel of a rule after the declarations in `preparation`: to consume a queue with a prefetch
    /// count, or to publish.
    pub fn open(
        &mut self,
        now: Now,
        rule: usize,
        consumes: Option<(String, u16)>,
        needed: Option<Preparation>,
    ) {
        self.channels[rule].open(now.after_ms(OPENING_MS), consumes, needed);
        self.talk();
    }

    /// Closes the channel of a rule. What still arrives on it is ignored.
    pub fn close_channel(&mut self, now: Now, rule: usize) {
        self.channels[rule].close(now.after_ms(OPENING_MS));
        self.talk();
    }

    /// Ends the consumer of a rule. Messages delivered before still arrive, followed by [`Event::Cancelled`].
    pub fn cancel(&mut self, now: Now, rule: usize) {
        self.channels[rule].cancel(now.after_ms(OPENING_MS));
        self.talk();
    }

    /// Raises the prefetch count of a rule's consumer.
    pub fn widen(&mut self, rule: usize, prefetch_count: u16) {
        self.channels[rule].widen(prefetch_count);
        self.talk();
    }

    /// Returns whether the upstream has paused a rule by channel.flow. No message of the rule may begin then.
    pub fn is_stopped(&self, rule: usize) -> bool {
        self.channels[rule].is_stopped()
    }

    /// Records whether a message of a rule has begun and is not complete.
    pub fn note_message(&mut self, rule: usize, is_cut: bool) {
        if self.channels[rule].note_message(is_cut) {
            self.talk();
        }
    }

    // ---- time

    /// Returns when [`Self::keep_time`] must be called. While the socket is not read, the upstream's silence does not
    /// count.
    pub fn deadline(&self, is_read: bool) -> Deadline {
        if self.stage != Stage::Open {
            return self.opening_due;
        }
        let channels = self.channels.iter().map(Channel::deadline).filter(|_| is_read);
        let channels = channels.fold(Deadline::NEVER, Deadline::earlier);
        if self.heartbeat_ms == 0 {
            return channels;
        }
        let lost = if is_read { self.heard.after_ms(2 * self.heartbeat_ms) } else { Deadline::NEVER };
        self.wrote.after_ms(self.heartbeat_ms / 2).earlier(lost).earlier(channels)
    }

    /// Sends heartbeats and checks timeouts.
    ///
    /// # Errors
    /// The upstream has sent nothing for too long, or has not answered.
    pub fn keep_time(&mut self, now: Now, is_read: bool) -> Result<(), Cause> {
        let in_vain = |waited_for| {
            Err(Cause::new(format_args!("it was waited {OPENING_MS} ms for {waited_for}, in vain")))
        };
        if self.stage != Stage::Open {
            return match (self.opening_due.is_due(now), self.stage) {
                (false, _) => Ok(()),
                (true, Stage::Start) => in_vain("the beginning of AMQP"),
                (true, Stage::Login) => in_vain("the answer to its login"),
                (true, _) => in_vain("its virtual host to open"),
            };
        }
        if is_read && self.channels.iter().any(|channel| channel.deadline().is_due(now)) {
            return in_vain("the answer of a channel");
        }
        if self.heartbeat_ms == 0 {
            return Ok(());
        }
        if is_read && self.heard.after_ms(2 * self.heartbeat_ms).is_due(now) {
            let ms = 2 * self.heartbeat_ms;
            return Err(Cause::new(format_args!("nothing was heard from it for {ms} ms: the link is dead")));
        }
        if self.wrote.after_ms(self.heartbeat_ms / 2).is_due(now) {
            self.wrote = now;
            // Bytes that wait to be written will serve as a heartbeat.
            if self.out.is_empty() {
                self.out.extend_from_slice(&HEARTBEAT_FRAME);
            }
        }
        Ok(())
    }

    // ---- sending

    /// Returns the bytes to be written, publishes excepted.
    pub fn pending(&self) -> &[u8] {
        &self.out
    }

    /// Removes `count` bytes that were written.
    pub fn note_written(&mut self, now: Now, count: usize) {
        if count > 0 {
            self.wrote = now;
            self.out.drain(..count.min(self.out.len()));
            self.talk();
        }
    }

    /// Records that bytes of messages were written.
    pub const fn note_sent(&mut self, now: Now) {
        self.wrote = now;
    }

    /// Records the length of the input, and returns how many bytes of it are new.
    pub const fn note_input(&mut self, now: Now, len: usize) -> usize {
        let more = len.saturating_sub(self.unread);
        if more > 0 {
            (self.heard, self.is_unheard) = (now, false);
        }
        more
    }

    /// Records how many bytes of input were not handled.
    pub const fn note_left(&mut self, len: usize) {
        self.unread = len;
    }

    /// Returns whether a content has begun to arrive and is not complete.
    pub fn is_in_content(&self) -> bool {
        self.channels.iter().any(Channel::is_in_content)
    }

    /// Returns whether nothing was received yet.
    pub const fn is_unheard(&self) -> bool {
        self.is_unheard
    }

    /// Returns whether there is space to settle a delivery. If not, there is after the next write.
    pub fn can_settle(&self) -> bool {
        OUT_BYTES - self.out.len() >= SETTLE_BYTES_MAX
    }

    /// Settles a delivery of a rule. The caller has checked [`Self::can_settle`].
    pub fn settle(&mut self, rule: usize, delivery_tag: u64, verdict: Verdict) {
        let method = match verdict {
            Verdict::Taken(multiple) => Method::BasicAck { delivery_tag, multiple },
            Verdict::Dead => Method::BasicReject { delivery_tag, requeue: false },
        };
        let is_sent = self.try_say(Self::channel_of(rule), &method);
        assert!(is_sent, "whoever settles has asked for room");
    }

    /// Makes the content header of a rule's last event arrive again, because there was no memory for its message.
    pub fn take_header_back(&mut self, rule: usize) {
        self.channels[rule].take_header_back();
    }

    /// Closes the connection. If there is no space for connection.close, the end of the socket has to suffice.
    #[cold]
    pub fn close(&mut self) {
        if self.stage == Stage::Open {
            let close =
                Method::ConnectionClose { reply_code: 200, reply_text: "Goodbye", class_id: 0, method_id: 0 };
            let _ = self.try_say(0, &close);
        }
        self.stage = Stage::Over;
    }

    /// Writes the pending methods of the channels, as far as there is space.
    fn talk(&mut self) {
        if self.stage != Stage::Open {
            return;
        }
        let mut channels = core::mem::take(&mut self.channels);
        for (rule, channel) in channels.iter_mut().enumerate() {
            while let Some(method) = channel.next_method(&tag_of(rule)) {
                if !self.try_say(Self::channel_of(rule), &method) {
                    // The rest follows after the next write.
                    break;
                }
                channel.note_said();
            }
        }
        self.channels = channels;
    }

    fn try_say(&mut self, channel: u16, method: &Method<'_>) -> bool {
        let mut frame = [0; OUT_BYTES];
        let room = OUT_BYTES - self.out.len();
        let mut writer = Writer::new(&mut frame[..room]);
        let is_sent = method.emit_frame(channel, &mut writer).is_ok();
        self.out.extend_from_slice(writer.written());
        is_sent
    }

    /// Writes a method of the opening, in which every step waits for an answer.
    fn say<'i>(&mut self, method: &Method<'_>, stage: Stage) -> Option<Event<'i>> {
        self.stage = stage;
        match self.try_say(0, method) {
            true => None,
            false => Some(lost(format_args!("its names are too long to be said: {}", method.name()))),
        }
    }

    // ---- receiving

    /// Handles the input from `at` on, up to the next event.
    pub fn next<'i>(&mut self, input: &'i [u8], at: &mut usize) -> Event<'i> {
        if self.stage == Stage::Start
            && let Some(other_protocol) = other_protocol(&input[*at..])
        {
            return other_protocol;
        }
        loop {
            let frame = match next_frame(&input[*at..], self.frame_max) {
                Ok(Some(frame)) => frame,
                Ok(None) => return Event::NeedMore,
                Err(_) => return lost(format_args!("it sends what is no frame of AMQP 0-9-1")),
            };
            *at += frame.input_len();
            if let Some(event) = self.handle(frame) {
                if matches!(event, Event::Lost(_)) {
                    self.stage = Stage::Over;
                }
                return event;
            }
        }
    }

    fn handle<'i>(&mut self, frame: Frame<'i>) -> Option<Event<'i>> {
        let number = frame.header.channel;
        let is_open = self.stage == Stage::Open;
        let rule = usize::from(number).checked_sub(1).filter(|rule| is_open && *rule < self.channels.len());
        match (frame.header.kind(), rule) {
            (Some(FrameKind::Heartbeat), _) => None,
            (Some(FrameKind::Method), rule) => match (Method::parse(frame.payload), rule) {
                (Ok(method), None) if number == 0 => self.handle_connection(method),
                (Ok(method), Some(rule)) => {
                    let event = self.channels[rule].hear(rule, &method, &tag_of(rule));
                    self.talk();
                    event
                }
                (Ok(method), None) => Some(misplaced(&method)),
                (Err(_), _) => Some(lost(format_args!("it sends a method that cannot be read"))),
            },
            (Some(FrameKind::Header), Some(rule)) => match ContentHeader::parse(frame.payload) {
                Ok(header) => self.channels[rule].take_header(rule, header, self.origin),
                Err(_) => Some(lost(format_args!("it sends a content header that cannot be read"))),
            },
            (Some(FrameKind::Body), Some(rule)) => self.channels[rule].take_body(rule, frame.payload),
            (Some(FrameKind::Header | FrameKind::Body), None) => {
                Some(lost(format_args!("a content where it has no place")))
            }
            (None, _) => Some(lost(format_args!("it sends what is no frame of AMQP 0-9-1"))),
        }
    }

    #[cold]
    fn handle_connection<'i>(&mut self, method: Method<'i>) -> Option<Event<'i>> {
        match method {
            Method::ConnectionStart { mechanisms, .. } if self.stage == Stage::Start => {
                self.log_in(mechanisms)
            }
            Method::ConnectionTune { channel_max, frame_max, .. } if self.stage == Stage::Login => {
                self.tune(channel_max, frame_max)
            }
            Method::ConnectionOpenOk {} if self.stage == Stage::Opening => {
                self.stage = Stage::Open;
                Some(Event::Open)
            }
            Method::ConnectionBlocked { .. } => {
                self.is_blocked = true;
                None
            }
            Method::ConnectionUnblocked {} => {
                self.is_blocked = false;
                None
            }
            Method::ConnectionClose { reply_code, reply_text, .. } => {
                let what = match (self.stage, reply_code) {
                    (Stage::Login, 403) => "it refused the login",
                    (Stage::Opening, 530) => "it refused the virtual host",
                    _ => "it closed the connection",
                };
                // Acknowledges connection.close if there is space.
                let _ = self.try_say(0, &Method::ConnectionCloseOk {});
                Some(lost(format_args!("{what}: {reply_code} {reply_text}")))
            }
            _ => Some(misplaced(&method)),
        }
    }

    #[cold]
    fn log_in<'i>(&mut self, mechanisms: &[u8]) -> Option<Event<'i>> {
        if !mechanisms.split(|octet| *octet == b' ').any(|mechanism| mechanism == b"PLAIN") {
            return Some(lost(format_args!("it takes no passwords: PLAIN is not among its mechanisms")));
        }
        let Credentials { upstream, name, version } = &self.credentials;
        let password = upstream.password.as_ref().map_or("guest", |secret| &secret.0);
        let response = [b"\0", upstream.user.as_bytes(), b"\0", password.as_bytes()].concat();
        let mut room = [0; 512];
        let mut properties = Writer::new(&mut room);
        let written = properties.table(|table| {
            table.text("product", "Leveret")?;
            table.text("version", version)?;
            table.text("connection_name", name)?;
            table.table("capabilities", |table| {
                for capability in [
                    "publisher_confirms",
                    "basic.nack",
                    "consumer_cancel_notify",
                    "connection.blocked",
                    "authentication_failure_close",
                ] {
                    table.bool(capability, true)?;
                }
                Ok(())
            })
        });
        if written.is_err() {
            return Some(lost(format_args!("its names are too long to be said")));
        }
        let client_properties = Table::trusted(properties.written().get(4..).unwrap_or_default());
        let mechanism = "PLAIN";
        let locale = "en_US";
        let start_ok =
            Method::ConnectionStartOk { client_properties, mechanism, response: &response, locale };
        self.say(&start_ok, Stage::Login)
    }

    #[cold]
    fn tune<'i>(&mut self, channels: u16, theirs: u32) -> Option<Event<'i>> {
        if theirs != 0 {
            self.frame_max = self.frame_max.min(theirs);
        }
        if self.frame_max < FRAME_BYTES_MIN {
            return Some(lost(format_args!("it takes frames of {theirs} bytes at most, which AMQP forbids")));
        }
        let channel_max = self.channels.len() as u16;
        if channels != 0 && channels < channel_max {
            return Some(lost(format_args!(
                "it takes {channels} channels, and the bridge needs {channel_max}: one for each rule"
            )));
        }
        // A heartbeat of one minute at most is common. A configured value was chosen for this link.
        let heartbeat = (self.heartbeat_ms / 1000) as u16;
        let tune_ok = Method::ConnectionTuneOk { channel_max, frame_max: self.frame_max, heartbeat };
        let vhost = core::mem::take(&mut self.credentials.upstream.vhost);
        let open = Method::ConnectionOpen { virtual_host: &vhost };
        self.say(&tune_ok, Stage::Opening).or_else(|| self.say(&open, Stage::Opening))
    }
}

/// Returns the consumer tag of a rule.
fn tag_of(rule: usize) -> heapless::String<16> {
    let mut tag = heapless::String::new();
    let is_written = core::fmt::Write::write_fmt(&mut tag, format_args!("bridge-{rule}"));
    debug_assert!(is_written.is_ok(), "rules have short numbers");
    tag
}

/// Maximum length in bytes.
const TEXT_BYTES_MAX: usize = 200;

/// Why a link is not up: one sentence that tells who has to act, cut at `TEXT_BYTES_MAX`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Cause(heapless::String<TEXT_BYTES_MAX>);

impl Cause {
    /// Makes a cause from `words`. They may contain text of the upstream, so characters that a terminal must not get
    /// are removed.
    pub fn new(words: fmt::Arguments<'_>) -> Self {
        let mut cut = Cut(heapless::String::new());
        // Never fails: text that does not fit is cut.
        let _ = cut.write_fmt(words);
        Self(cut.0)
    }

    /// Describes an error of writing to an upstream.
    #[cold]
    pub fn of_writing(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::new(format_args!("it had closed the connection")),
            io::ErrorKind::ConnectionReset => Self::new(format_args!(
                "the connection was cut: it crashed, was restarted, or something on the way did that"
            )),
            io::ErrorKind::TimedOut => {
                Self::new(format_args!("what was sent was never received: it, or the way to it, is gone"))
            }
            _ => Self::new(format_args!("writing to it failed: {error}")),
        }
    }

    /// Returns the sentence.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Accepts as much text as fits.
struct Cut(heapless::String<TEXT_BYTES_MAX>);

impl fmt::Write for Cut {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for letter in text.chars() {
            if self.0.push(if letter.is_control() { '?' } else { letter }).is_err() {
                break;
            }
        }
        Ok(())
    }
}

/// Recognises by the first bytes an upstream that does not speak AMQP 0-9-1. Returns `None` while it may still
/// turn out to.
#[cold]
pub(super) fn other_protocol<'i>(input: &[u8]) -> Option<Event<'i>> {
    if input.starts_with(b"AMQP") {
        return Some(match input {
            [_, _, _, _, id, major, minor, revision, ..] => {
                lost(format_args!("it speaks AMQP {id}-{major}-{minor}-{revision}, not 0-9-1"))
            }
            _ => Event::NeedMore,
        });
    }
    if input.starts_with(b"HTTP/") || classify_opening(input) == Opening::Http {
        return Some(lost(format_args!("it speaks HTTP, not AMQP: is this address meant for it?")));
    }
    match input {
        [] | [1, ..] => None,
        [0x15 | 0x16, 3, ..] => Some(lost(format_args!("it speaks TLS on this port: write amqps://"))),
        _ => Some(lost(format_args!("it does not speak AMQP"))),
    }
}

/// Recognises by the first bytes why an upstream does not speak TLS as expected.
#[cold]
pub fn not_tls(input: &[u8]) -> Option<Cause> {
    match input {
        [] | [0x15 | 0x16] | [0x15 | 0x16, 3, ..] => None,
        [b'A', ..] => Some(Cause::new(format_args!(
            "it speaks AMQP without TLS on this port: write amqp://, or its port for TLS"
        ))),
        [b'H', ..] => {
            Some(Cause::new(format_args!("it speaks HTTP, not TLS: is this address meant for it?")))
        }
        _ => Some(Cause::new(format_args!("it does not speak TLS on this port"))),
    }
}

/// The result of handling input. A rule is named by its index among the rules of its direction.
#[derive(Debug)]
pub enum Event<'i> {
    /// Every complete frame was handled.
    NeedMore,
    /// The connection is open: channels can be opened.
    Open,
    /// The channel of a rule is ready for messages.
    Ready {
        /// The rule.
        rule: usize,
        /// Number of messages in the upstream queue, if that was asked.
        depth: u32,
    },
    /// The upstream confirms or refuses published messages.
    Confirm {
        /// The rule.
        rule: usize,
        /// The publish number.
        number: u64,
        /// Whether all messages before it are confirmed as well.
        multiple: bool,
        /// Confirmed (basic.ack) instead of refused (basic.nack).
        is_taken: bool,
    },
    /// A message was returned: it reaches no queue at the upstream.
    Returned {
        /// The rule.
        rule: usize,
        /// The reply code.
        code: u16,
        /// The identifier of the message, if it is one of this bridge.
        id: Option<OwnId>,
    },
    /// A message arrives; its header and body follow.
    Deliver {
        /// The rule.
        rule: usize,
        /// Its delivery tag at the upstream.
        tag: u64,
        /// It may have been delivered before.
        redelivered: bool,
        /// The exchange it was published to.
        exchange: &'i str,
        /// The routing key it was published with.
        key: &'i [u8],
    },
    /// The content header of the arriving message.
    Header {
        /// The rule.
        rule: usize,
        /// Its properties.
        properties: Properties<'i>,
        /// Length of the body in bytes.
        body_len: u64,
    },
    /// A part of the body of the arriving message.
    Body(usize, &'i [u8]),
    /// The consumer of a rule has ended as requested: no more messages arrive for it.
    Cancelled(usize),
    /// The upstream accepts messages of a rule again after channel.flow.
    Resumed(usize),
    /// The upstream has closed the channel of a rule.
    Closed {
        /// The rule.
        rule: usize,
        /// The reply code.
        code: u16,
        /// Whether a publish was the reason.
        over_publish: bool,
        /// The reason as text.
        cause: Cause,
    },
    /// The consumer of a rule was cancelled because its queue was deleted or moved. The channel is still open.
    QueueGone(usize, Cause),
    /// The link has ended.
    Lost(Cause),
}

/// Ends the link with this reason.
#[cold]
pub(super) fn lost<'i>(words: core::fmt::Arguments<'_>) -> Event<'i> {
    Event::Lost(Cause::new(words))
}

/// Ends the link because the upstream sent this method where it is not allowed.
#[cold]
pub(super) fn misplaced<'i>(method: &Method<'_>) -> Event<'i> {
    lost(format_args!("{} where it has no place", method.name()))
}

#[cfg(test)]
mod cause_tests {
    use super::*;

    #[test]
    fn what_the_system_says_of_writing_is_said_in_words() {
        // EPIPE, ECONNRESET, ETIMEDOUT, and EIO as an example of an error without a text of its own.
        for (number, part) in [(32, "had closed"), (104, "was cut"), (110, "never received"), (5, "failed")] {
            let said = Cause::of_writing(&io::Error::from_raw_os_error(number));
            assert!(said.as_str().contains(part), "{said}");
            assert_eq!(said.as_str().contains("os error"), number == 5, "{said}");
        }
    }

    #[test]
    fn it_is_cut_between_letters_and_shows_no_control_characters() {
        let long = "ü".repeat(500);
        let cause = Cause::new(format_args!("a\x1b[2J\n{long}"));
        assert!(cause.as_str().starts_with("a?[2J?üü") && cause.as_str().len() <= TEXT_BYTES_MAX);
    }
}
