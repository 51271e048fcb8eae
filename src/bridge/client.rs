//! The client's side of one connection to an upstream: from the first octet to confirms and deliveries, with a
//! channel for each rule.
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
//!   of each rule, whenever it is asked for, see `channel`
//!                              <-     channel.open, …
//!   …-ok                       ->     Event::Ready
//! ```
//!
//! Always true: what the upstream sends ends the link, or a channel, or leads to one event; the end of one
//! channel is nothing to the others; what is to be said besides messages fits into a buffer of fixed size, and
//! what does not fit now is said when there is room; no password is shown.

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

/// Room for what is said besides messages: the longest is connection.start-ok.
const OUT_BYTES: usize = 2048;
/// A frame of basic.ack or basic.nack, rounded up.
const SETTLE_BYTES_MAX: usize = 32;
/// How long it may take from connecting until the connection is open, and then a channel, in milliseconds.
const OPENING_MS: u64 = 30_000;

/// How far a connection is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// Nothing was heard yet.
    Start,
    /// connection.start-ok was sent.
    Login,
    /// connection.open was sent.
    Opening,
    /// Channels can be opened.
    Open,
    /// It is over.
    Over,
}

/// What becomes of a message that the upstream has delivered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It is ours, and with `true` all before it on its channel as well.
    Taken(bool),
    /// It goes to the dead letters of its queue there, if that has any, or nowhere.
    Dead,
}

/// What a link says of itself and who it is for.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// Whom it connects to, and as whom.
    pub upstream: Upstream,
    /// What it is called in the upstream's list of connections.
    pub name: String,
    /// What this broker calls itself.
    pub version: String,
}

/// One connection.
#[derive(Debug)]
pub struct Client {
    stage: Stage,
    credentials: Credentials,
    origin: Origin,
    frame_max: u32,
    heartbeat_ms: u64,
    heard: Now,
    is_unheard: bool,
    /// Octets of input that were not handled at the last look.
    unread: usize,
    wrote: Now,
    opening_due: Deadline,
    out: Vec<u8>,
    is_blocked: bool,
    /// One for each rule, on channel 1 and up.
    channels: Vec<Channel>,
}

impl Client {
    /// One whose socket is connected or about to be, with so many rules; frames of at most `frame_max` bytes
    /// are taken.
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

    /// How far it is.
    pub const fn stage(&self) -> Stage {
        self.stage
    }

    /// Bytes of a frame at most; agreed upon once it is open.
    pub const fn frame_max(&self) -> u32 {
        self.frame_max
    }

    /// The upstream takes no messages for now.
    pub const fn is_blocked(&self) -> bool {
        self.is_blocked
    }

    // ---- rules

    /// The channel that a rule has, or would have.
    pub const fn channel_of(rule: usize) -> u16 {
        rule as u16 + 1
    }

    /// Whether the channel of a rule is closed on both sides, so that it can be opened.
    pub fn is_closed(&self, rule: usize) -> bool {
        self.channels[rule].is_closed()
    }

    /// Opens the channel of a rule, which is closed, after what is needed was seen to: to consume this queue with
    /// so many messages ahead, or to publish.
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

    /// Closes the channel of a rule; what still comes on it is read over.
    pub fn close_channel(&mut self, now: Now, rule: usize) {
        self.channels[rule].close(now.after_ms(OPENING_MS));
        self.talk();
    }

    /// Ends the consumer of a rule: what was delivered until then still comes, and behind it
    /// [`Event::Cancelled`].
    pub fn cancel(&mut self, now: Now, rule: usize) {
        self.channels[rule].cancel(now.after_ms(OPENING_MS));
        self.talk();
    }

    /// The upstream is to send a rule's messages so many ahead from now on.
    pub fn widen(&mut self, rule: usize, prefetch_count: u16) {
        self.channels[rule].widen(prefetch_count);
        self.talk();
    }

    /// Whether the upstream has paused a rule by channel.flow: no message of it may begin.
    pub fn is_stopped(&self, rule: usize) -> bool {
        self.channels[rule].is_stopped()
    }

    /// Notes whether a message of a rule is begun and not whole.
    pub fn note_message(&mut self, rule: usize, is_cut: bool) {
        if self.channels[rule].note_message(is_cut) {
            self.talk();
        }
    }

    // ---- time

    /// When [`Self::keep_time`] wants to be called; while nothing is read, nothing can be heard.
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

    /// Does what is due.
    ///
    /// # Errors
    /// The upstream has said nothing for too long, or has not answered.
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
            // What waits to be written is as good as a heartbeat.
            if self.out.is_empty() {
                self.out.extend_from_slice(&HEARTBEAT_FRAME);
            }
        }
        Ok(())
    }

    // ---- what is said

    /// What is to be written besides messages.
    pub fn pending(&self) -> &[u8] {
        &self.out
    }

    /// So many octets of it were written.
    pub fn note_written(&mut self, now: Now, count: usize) {
        if count > 0 {
            self.wrote = now;
            self.out.drain(..count.min(self.out.len()));
            self.talk();
        }
    }

    /// Octets of messages were written.
    pub const fn note_sent(&mut self, now: Now) {
        self.wrote = now;
    }

    /// So many octets of input are there: how many more than were left, if any was heard.
    pub const fn note_input(&mut self, now: Now, len: usize) -> usize {
        let more = len.saturating_sub(self.unread);
        if more > 0 {
            (self.heard, self.is_unheard) = (now, false);
        }
        more
    }

    /// So many octets of input were not handled.
    pub const fn note_left(&mut self, len: usize) {
        self.unread = len;
    }

    /// Whether a content has begun to come, and is not all there.
    pub fn is_in_content(&self) -> bool {
        self.channels.iter().any(Channel::is_in_content)
    }

    /// Whether nothing at all was heard yet.
    pub const fn is_unheard(&self) -> bool {
        self.is_unheard
    }

    /// Whether there is room to settle a delivery; if not, there is when something was written.
    pub fn can_settle(&self) -> bool {
        OUT_BYTES - self.out.len() >= SETTLE_BYTES_MAX
    }

    /// Settles a delivery of a rule, for which there is room.
    pub fn settle(&mut self, rule: usize, delivery_tag: u64, verdict: Verdict) {
        let method = match verdict {
            Verdict::Taken(multiple) => Method::BasicAck { delivery_tag, multiple },
            Verdict::Dead => Method::BasicReject { delivery_tag, requeue: false },
        };
        let is_said = self.try_say(Self::channel_of(rule), &method);
        assert!(is_said, "whoever settles has asked for room");
    }

    /// The content header of a rule's last event comes again, for there was no room for its message.
    pub fn take_header_back(&mut self, rule: usize) {
        self.channels[rule].take_header_back();
    }

    /// Ends the connection, as far as that can be said.
    #[cold]
    pub fn close(&mut self) {
        if self.stage == Stage::Open {
            let close =
                Method::ConnectionClose { reply_code: 200, reply_text: "Goodbye", class_id: 0, method_id: 0 };
            // Where there is no room for a word the end of the socket says it as well.
            let _ = self.try_say(0, &close);
        }
        self.stage = Stage::Over;
    }

    /// Says what the channels have to say, as far as there is room.
    fn talk(&mut self) {
        if self.stage != Stage::Open {
            return;
        }
        let mut channels = core::mem::take(&mut self.channels);
        for (rule, channel) in channels.iter_mut().enumerate() {
            while let Some(method) = channel.next_method(&tag_of(rule)) {
                if !self.try_say(Self::channel_of(rule), &method) {
                    // The rest follows when something was written.
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
        let is_said = method.emit_frame(channel, &mut writer).is_ok();
        self.out.extend_from_slice(writer.written());
        is_said
    }

    /// Says something during the opening, where every step waits for its answer.
    fn say<'i>(&mut self, method: &Method<'_>, stage: Stage) -> Option<Event<'i>> {
        self.stage = stage;
        match self.try_say(0, method) {
            true => None,
            false => Some(lost(format_args!("its names are too long to be said: {}", method.name()))),
        }
    }

    // ---- what is heard

    /// Handles the input from `at` on, up to the next event.
    pub fn next<'i>(&mut self, input: &'i [u8], at: &mut usize) -> Event<'i> {
        if self.stage == Stage::Start
            && let Some(stranger) = stranger(&input[*at..])
        {
            return stranger;
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
                // It hears that the end was heard, if there is room for that.
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
        // A minute at most is what others take for granted; what was set was chosen for the link.
        let heartbeat = (self.heartbeat_ms / 1000) as u16;
        let tune_ok = Method::ConnectionTuneOk { channel_max, frame_max: self.frame_max, heartbeat };
        let vhost = core::mem::take(&mut self.credentials.upstream.vhost);
        let open = Method::ConnectionOpen { virtual_host: &vhost };
        self.say(&tune_ok, Stage::Opening).or_else(|| self.say(&open, Stage::Opening))
    }
}

/// The tag of the consumer of a rule.
fn tag_of(rule: usize) -> heapless::String<16> {
    let mut tag = heapless::String::new();
    let is_written = core::fmt::Write::write_fmt(&mut tag, format_args!("bridge-{rule}"));
    debug_assert!(is_written.is_ok(), "rules have short numbers");
    tag
}

// Why a link is not up, as one sentence.
//
// Always true: it is short, and whoever reads it can tell who has to do something.

/// The longest, in bytes.
const TEXT_BYTES_MAX: usize = 200;

/// One sentence, cut where it is too long.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Cause(heapless::String<TEXT_BYTES_MAX>);

impl Cause {
    /// With these words; what an upstream says of itself may be among them, so what no terminal should be
    /// sent is left out.
    pub fn new(words: fmt::Arguments<'_>) -> Self {
        let mut cut = Cut(heapless::String::new());
        // It never fails: what does not fit is cut.
        let _ = cut.write_fmt(words);
        Self(cut.0)
    }

    /// Writing to an upstream has failed.
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

    /// The sentence.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Takes as much as fits.
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

// Upstreams that are none: what they are instead, as far as their first octets tell.
//
// Always true: whoever may still turn out to speak AMQP is not called a stranger.

/// An upstream that does not speak AMQP, or not yet enough to tell.
#[cold]
pub(super) fn stranger<'i>(input: &[u8]) -> Option<Event<'i>> {
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

/// Why an upstream that should speak TLS does not, as far as its first octets tell.
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

// What an upstream said, as the engine is told of it. A rule is named by its place in its direction.

/// What input led to.
#[derive(Debug)]
pub enum Event<'i> {
    /// Every whole frame was handled.
    NeedMore,
    /// The connection is open: channels can be opened.
    Open,
    /// Messages of a rule can flow; so many were in its queue there, if that was asked.
    Ready {
        /// Which rule.
        rule: usize,
        /// Messages that were in the queue there.
        depth: u32,
    },
    /// The upstream confirms, or refuses, what it was sent.
    Confirm {
        /// On the channel of which rule.
        rule: usize,
        /// The number of the message.
        number: u64,
        /// And all before it.
        multiple: bool,
        /// It is taken over.
        is_taken: bool,
    },
    /// A message came back: it reaches no queue there.
    Returned {
        /// On the channel of which rule.
        rule: usize,
        /// The code.
        code: u16,
        /// What it is known by, if it is one of ours.
        id: Option<OwnId>,
    },
    /// A message comes in; its header and body follow.
    Deliver {
        /// For which rule.
        rule: usize,
        /// Its tag there.
        tag: u64,
        /// It may have been delivered before.
        redelivered: bool,
        /// The exchange it was published to.
        exchange: &'i str,
        /// The key it was published with.
        key: &'i [u8],
    },
    /// The header of what comes in.
    Header {
        /// For which rule.
        rule: usize,
        /// Its properties.
        properties: Properties<'i>,
        /// So many octets of body follow.
        body_len: u64,
    },
    /// Some of the body of what comes in.
    Body(usize, &'i [u8]),
    /// The consumer of a rule is over, as was asked: nothing more comes in for it.
    Cancelled(usize),
    /// The upstream takes messages of a rule again, after a pause that it has asked for.
    Resumed(usize),
    /// The upstream has closed the channel of a rule, with this code, over a publish or over something else.
    Closed {
        /// Which rule.
        rule: usize,
        /// The code.
        code: u16,
        /// It was over a publish.
        over_publish: bool,
        /// In words.
        cause: Cause,
    },
    /// A rule's consumer there has ended, for its queue was deleted or moved; its channel is still there.
    QueueGone(usize, Cause),
    /// The link is over.
    Lost(Cause),
}

/// The link is over, for this reason.
#[cold]
pub(super) fn lost<'i>(words: core::fmt::Arguments<'_>) -> Event<'i> {
    Event::Lost(Cause::new(words))
}

/// The link is over, for the upstream has said this where it may not.
#[cold]
pub(super) fn misplaced<'i>(method: &Method<'_>) -> Event<'i> {
    lost(format_args!("{} where it has no place", method.name()))
}

#[cfg(test)]
mod cause_tests {
    use super::*;

    #[test]
    fn what_the_system_says_of_writing_is_said_in_words() {
        // EPIPE, ECONNRESET, ETIMEDOUT, and one that no word is kept for: EIO.
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
