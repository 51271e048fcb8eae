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
//!   for each rule (see `channel`):
//!                              <-     channel.open, …
//!   …-ok                       ->     Event::Answered
//! ```
//!
//! # Invariants
//! - Each frame of the upstream causes at most one event. Invalid input ends the link.
//! - The end of one channel does not affect the others.
//! - Methods other than `basic.publish` are written to a buffer of fixed size. While the buffer has no space for a
//!   method, the method waits for the next write to the socket.
//! - No event, error or log line contains a password.

use leveret_amqp::{
    ContentHeader, Frame, FrameKind, HEARTBEAT_FRAME, Method, Opening, PROTOCOL_HEADER, Properties, Table,
    Writer, classify_opening, next_frame,
};
use leveret_config::upstream::Upstream;
use leveret_core::limits::FRAME_BYTES_MIN;
use leveret_core::time::{Deadline, Now};

use super::cause::Cause;
use super::channel::{Channel, Request};

/// Size in bytes of the buffer for methods other than `basic.publish`. The longest is `connection.start-ok`.
const OUT_BYTES: usize = 2048;
/// Size of a frame of `basic.ack` or `basic.reject` in bytes, rounded up.
const SETTLE_BYTES_MAX: usize = 32;
/// Time limit in milliseconds for each of these:
/// - from connecting until the connection is open;
/// - between two frames of a channel that has an unanswered request;
/// - from [`Client::close`] until `connection.close` is written.
const ANSWER_TIMEOUT_MS: u64 = 30_000;

/// The stage of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// Waits for `connection.start`.
    Start,
    /// `connection.start-ok` was sent; waits for `connection.tune`.
    Login,
    /// `connection.open` was sent; waits for `connection.open-ok`.
    Opening,
    /// Channels can be opened.
    Open,
    /// The connection has ended.
    Over,
}

/// The upstream's address and user, and the names by which the upstream lists the connection.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// The address and the user.
    pub upstream: Upstream,
    /// The connection name that the upstream's management lists (`connection_name`).
    pub name: String,
    /// The version of this broker.
    pub version: String,
}

/// One connection to an upstream.
#[derive(Debug)]
pub struct Client {
    stage: Stage,
    credentials: Credentials,
    frame_max: u32,
    heartbeat_ms: u64,
    /// When bytes were last received.
    last_received: Now,
    has_received_nothing: bool,
    /// Number of bytes at the end of the last input that [`Self::next`] did not consume; set by
    /// [`Self::note_unhandled`].
    unhandled_bytes: usize,
    /// When bytes were last written to the socket.
    last_written: Now,
    /// When the connection must be open; after [`Self::close`], when `connection.close` must be written.
    stage_deadline: Deadline,
    /// Encoded methods that are not written to the socket yet.
    out: Vec<u8>,
    is_blocked: bool,
    /// One channel for each rule, from channel 1 on.
    channels: Vec<Channel>,
}

impl Client {
    /// Creates the client side of a connection with a channel for each of `rules` rules. The socket is connected or
    /// connecting. `frame_max` is in bytes and may be lowered by the upstream. `heartbeat_s` is in seconds and is not
    /// negotiated; 0 means none.
    pub fn new(now: Now, rules: usize, credentials: Credentials, frame_max: u32, heartbeat_s: u16) -> Self {
        let mut out = Vec::with_capacity(OUT_BYTES);
        out.extend_from_slice(&PROTOCOL_HEADER);
        Self {
            stage: Stage::Start,
            credentials,
            frame_max,
            heartbeat_ms: u64::from(heartbeat_s) * 1000,
            last_received: now,
            has_received_nothing: true,
            unhandled_bytes: 0,
            last_written: now,
            stage_deadline: now.after_ms(ANSWER_TIMEOUT_MS),
            out,
            is_blocked: false,
            channels: (0..rules).map(|_| Channel::default()).collect(),
        }
    }

    /// Returns the stage of the connection.
    pub const fn stage(&self) -> Stage {
        self.stage
    }

    /// Returns the maximum size of a frame in bytes: the proposed one, and after `connection.tune` the negotiated one.
    pub const fn frame_max(&self) -> u32 {
        self.frame_max
    }

    /// Returns whether the upstream has sent `connection.blocked` and no `connection.unblocked` since then.
    pub const fn is_blocked(&self) -> bool {
        self.is_blocked
    }

    // ---- rules

    /// Returns the channel number of a rule.
    pub const fn channel_of(rule: usize) -> u16 {
        rule as u16 + 1
    }

    /// Returns whether the channel of a rule is closed on both sides. Only then may it be opened.
    pub fn is_closed(&self, rule: usize) -> bool {
        self.channels[rule].is_closed()
    }

    /// Sends these requests on the channel of a rule, each after the answer to the one before. Earlier requests that were
    /// not sent yet are dropped. The answer to the last request causes [`Event::Answered`]; if it has none,
    /// there is no event.
    pub fn request(&mut self, now: Now, rule: usize, requests: impl IntoIterator<Item = Request>) {
        self.channels[rule].request(now.after_ms(ANSWER_TIMEOUT_MS), requests);
        self.encode_channel_methods();
    }

    /// Closes the channel of a rule. Input on the channel is ignored until the upstream has confirmed the close.
    pub fn close_channel(&mut self, now: Now, rule: usize) {
        self.channels[rule].close(now.after_ms(ANSWER_TIMEOUT_MS));
        self.encode_channel_methods();
    }

    /// Returns whether the upstream has paused a rule by `channel.flow`. Then no new message of the rule may be begun.
    pub fn is_paused(&self, rule: usize) -> bool {
        self.channels[rule].is_paused()
    }

    /// Records whether only a part of a rule's current message has been written. `channel.flow-ok` waits for the rest
    /// of the message. The caller must not begin to close the channel before that.
    pub fn note_message(&mut self, rule: usize, is_incomplete: bool) {
        if self.channels[rule].note_message(is_incomplete) {
            self.encode_channel_methods();
        }
    }

    // ---- time

    /// Returns when [`Self::handle_timeout`] must be called next. `is_reading` is whether this broker reads the socket
    /// now.
    ///
    /// While it does not, an open connection has no timeout for replies or heartbeats, because they cannot arrive. The
    /// timeouts of opening and closing the connection always run.
    pub fn deadline(&self, is_reading: bool) -> Deadline {
        if self.stage != Stage::Open {
            return self.stage_deadline;
        }
        let channels = self.channels.iter().map(Channel::deadline).filter(|_| is_reading);
        let channels = channels.fold(Deadline::NEVER, Deadline::earlier);
        if self.heartbeat_ms == 0 {
            return channels;
        }
        let silence_limit =
            if is_reading { self.last_received.after_ms(2 * self.heartbeat_ms) } else { Deadline::NEVER };
        self.last_written.after_ms(self.heartbeat_ms / 2).earlier(silence_limit).earlier(channels)
    }

    /// Queues a heartbeat if nothing was written for half the heartbeat interval, and checks timeouts. `is_reading` is as
    /// in [`Self::deadline`].
    ///
    /// # Errors
    /// The upstream sent nothing for two heartbeat intervals, or it did not answer or did not read `connection.close` within
    /// `ANSWER_TIMEOUT_MS`.
    pub fn handle_timeout(&mut self, now: Now, is_reading: bool) -> Result<(), Cause> {
        let timed_out =
            |what| Err(Cause::new(format_args!("the upstream did not {what} within {ANSWER_TIMEOUT_MS} ms")));
        let expected = match self.stage {
            Stage::Start => Some("send connection.start"),
            Stage::Login => Some("send the answer to the login (connection.tune)"),
            Stage::Opening => Some("send the answer to opening the virtual host (connection.open-ok)"),
            Stage::Open => None,
            Stage::Over => Some("read connection.close"),
        };
        if let Some(expected) = expected {
            return if self.stage_deadline.is_due(now) { timed_out(expected) } else { Ok(()) };
        }
        if is_reading && self.channels.iter().any(|channel| channel.deadline().is_due(now)) {
            return timed_out("send the answer to a method of a channel");
        }
        if self.heartbeat_ms == 0 {
            return Ok(());
        }
        if is_reading && self.last_received.after_ms(2 * self.heartbeat_ms).is_due(now) {
            let ms = 2 * self.heartbeat_ms;
            return Err(Cause::new(format_args!(
                "the upstream sent nothing for {ms} ms, not even a heartbeat"
            )));
        }
        if self.last_written.after_ms(self.heartbeat_ms / 2).is_due(now) {
            self.last_written = now;
            // Unsent bytes in `out` are traffic, too, and replace the heartbeat.
            if self.out.is_empty() {
                self.out.extend_from_slice(&HEARTBEAT_FRAME);
            }
        }
        Ok(())
    }

    // ---- sending

    /// Returns the encoded methods that are to be written to the socket. Published messages are not among them: the
    /// caller writes them itself.
    pub fn pending(&self) -> &[u8] {
        &self.out
    }

    /// Records that the first `count` bytes of [`Self::pending`] were written, and removes them.
    pub fn note_methods_written(&mut self, now: Now, count: usize) {
        if count > 0 {
            self.last_written = now;
            self.out.drain(..count.min(self.out.len()));
            self.encode_channel_methods();
        }
    }

    /// Records that bytes of published messages were written, which postpones the next heartbeat.
    pub const fn note_messages_written(&mut self, now: Now) {
        self.last_written = now;
    }

    /// Records that the input, including bytes left from before, has `len` bytes. Returns how many of them are new.
    pub const fn note_input(&mut self, now: Now, len: usize) -> usize {
        let new_bytes = len.saturating_sub(self.unhandled_bytes);
        if new_bytes > 0 {
            (self.last_received, self.has_received_nothing) = (now, false);
        }
        new_bytes
    }

    /// Records how many bytes of the input [`Self::next`] has not consumed. They are passed in again with the next
    /// input.
    pub const fn note_unhandled(&mut self, len: usize) {
        self.unhandled_bytes = len;
    }

    /// Returns whether the header or a part of the body of a delivered or returned message is still to come.
    pub fn is_in_content(&self) -> bool {
        self.channels.iter().any(Channel::is_in_content)
    }

    /// Returns whether no byte was received yet.
    pub const fn has_received_nothing(&self) -> bool {
        self.has_received_nothing
    }

    /// Returns whether the output buffer has space for one more settlement. If it has none, the next write to the
    /// socket makes space.
    pub fn can_settle(&self) -> bool {
        OUT_BYTES - self.out.len() >= SETTLE_BYTES_MAX
    }

    /// Acknowledges a delivery of a rule, with `multiple` also all earlier ones. The caller has checked
    /// [`Self::can_settle`].
    pub fn acknowledge(&mut self, rule: usize, delivery_tag: u64, multiple: bool) {
        self.settle(rule, &Method::BasicAck { delivery_tag, multiple });
    }

    /// Rejects a delivery of a rule without requeue: the upstream dead-letters or drops the message. The caller has checked
    /// [`Self::can_settle`].
    pub fn reject(&mut self, rule: usize, delivery_tag: u64) {
        self.settle(rule, &Method::BasicReject { delivery_tag, requeue: false });
    }

    fn settle(&mut self, rule: usize, method: &Method<'_>) {
        let is_sent = encode(&mut self.out, Self::channel_of(rule), method);
        assert!(is_sent, "deliveries are settled only while can_settle returns true");
    }

    /// Undoes the last event of a rule, [`Event::Header`]. The caller had no memory for the message, and will pass the
    /// frame of the header in again.
    pub fn expect_header_again(&mut self, rule: usize) {
        self.channels[rule].expect_header_again();
    }

    /// Ends the connection. Queues `connection.close` if the connection is open and the output buffer has space for it.
    ///
    /// The caller closes the socket as soon as the output is written, or at the latest after a timeout
    /// ([`Self::handle_timeout`]).
    #[cold]
    pub fn close(&mut self, now: Now) {
        if self.stage == Stage::Open {
            let close =
                Method::ConnectionClose { reply_code: 200, reply_text: "Goodbye", class_id: 0, method_id: 0 };
            let _ = encode(&mut self.out, 0, &close);
        }
        (self.stage, self.stage_deadline) = (Stage::Over, now.after_ms(ANSWER_TIMEOUT_MS));
    }

    /// Encodes the next methods of all channels into the output buffer, as far as its space allows.
    fn encode_channel_methods(&mut self) {
        if self.stage != Stage::Open {
            return;
        }
        for (rule, channel) in self.channels.iter_mut().enumerate() {
            let mut send = |method: &Method<'_>| encode(&mut self.out, Self::channel_of(rule), method);
            while channel.send_next(&tag_of(rule), &mut send) {}
        }
    }

    /// Encodes a method of the connection's opening and enters `stage`. Returns an event only if the method is too long
    /// for the output buffer.
    ///
    /// The buffer contains at most a short `connection.tune-ok`: the upstream has answered everything before.
    fn send_opening<'i>(&mut self, method: &Method<'_>, stage: Stage) -> Option<Event<'i>> {
        self.stage = stage;
        match encode(&mut self.out, 0, method) {
            true => None,
            false => Some(link_lost(format_args!(
                "user, password or names of the bridge are too long for {}",
                method.name()
            ))),
        }
    }

    // ---- receiving

    /// Handles complete frames of `input` from `at` on, up to the first that causes an event, and moves `at` behind
    /// them. Returns [`Event::NeedMore`] when no complete frame is left.
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
                Err(_) => return link_lost(format_args!("the upstream sent an invalid AMQP 0-9-1 frame")),
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
        if let Some(rule) = rule {
            self.channels[rule].note_input(self.last_received.after_ms(ANSWER_TIMEOUT_MS));
        }
        match (frame.header.kind(), rule) {
            (Some(FrameKind::Heartbeat), _) => None,
            (Some(FrameKind::Method), rule) => match (Method::parse(frame.payload), rule) {
                (Ok(method), None) if number == 0 => self.handle_connection(method),
                (Ok(method), Some(rule)) => {
                    let event = self.channels[rule].handle_method(rule, &method, &tag_of(rule));
                    self.encode_channel_methods();
                    event
                }
                (Ok(method), None) => Some(unexpected_method(&method)),
                (Err(_), _) => Some(link_lost(format_args!("the upstream sent a malformed method"))),
            },
            (Some(FrameKind::Header), Some(rule)) => match ContentHeader::parse(frame.payload) {
                Ok(header) => self.channels[rule].handle_header(rule, header),
                Err(_) => Some(link_lost(format_args!("the upstream sent a malformed content header"))),
            },
            (Some(FrameKind::Body), Some(rule)) => self.channels[rule].handle_body(rule, frame.payload),
            (Some(FrameKind::Header | FrameKind::Body), None) => Some(link_lost(format_args!(
                "the upstream sent message content on a channel that is not open"
            ))),
            (None, _) => Some(link_lost(format_args!("the upstream sent an invalid AMQP 0-9-1 frame"))),
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
                    (Stage::Login, 403) => "the upstream refused the login",
                    (Stage::Opening, 530) => "the upstream refused the virtual host",
                    _ => "the upstream closed the connection",
                };
                // Without space the answer is left out: the socket is closed anyway.
                let _ = encode(&mut self.out, 0, &Method::ConnectionCloseOk {});
                Some(link_lost(format_args!("{what}: {reply_code} {reply_text}")))
            }
            _ => Some(unexpected_method(&method)),
        }
    }

    /// Answers `connection.start`, which offers these mechanisms. Returns an event on failure.
    #[cold]
    fn log_in<'i>(&mut self, mechanisms: &[u8]) -> Option<Event<'i>> {
        if !mechanisms.split(|octet| *octet == b' ').any(|mechanism| mechanism == b"PLAIN") {
            return Some(link_lost(format_args!(
                "the upstream does not offer PLAIN, the mechanism for passwords"
            )));
        }
        let Credentials { upstream, name, version } = &self.credentials;
        let password = upstream.password.as_ref().map_or("guest", |secret| &secret.0);
        let response = [b"\0", upstream.user.as_bytes(), b"\0", password.as_bytes()].concat();
        let mut buffer = [0; 512];
        let mut properties = Writer::new(&mut buffer);
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
            return Some(link_lost(format_args!(
                "the name of the bridge is too long for connection.start-ok"
            )));
        }
        let client_properties = Table::trusted(properties.written().get(4..).unwrap_or_default());
        let mechanism = "PLAIN";
        let locale = "en_US";
        let start_ok =
            Method::ConnectionStartOk { client_properties, mechanism, response: &response, locale };
        self.send_opening(&start_ok, Stage::Login)
    }

    /// Answers `connection.tune`, whose limits are 0 for "no limit". Returns an event on failure.
    #[cold]
    fn tune<'i>(&mut self, upstream_channel_max: u16, upstream_frame_max: u32) -> Option<Event<'i>> {
        if upstream_frame_max != 0 {
            self.frame_max = self.frame_max.min(upstream_frame_max);
        }
        if self.frame_max < FRAME_BYTES_MIN {
            return Some(link_lost(format_args!(
                "the upstream limits frames to {upstream_frame_max} bytes; AMQP requires at least {FRAME_BYTES_MIN}"
            )));
        }
        let channel_max = self.channels.len() as u16;
        if upstream_channel_max != 0 && upstream_channel_max < channel_max {
            return Some(link_lost(format_args!(
                "the upstream allows {upstream_channel_max} channels; the bridge needs {channel_max}, one per rule"
            )));
        }
        // The upstream's heartbeat proposal is ignored: the configured interval was chosen for this link.
        let heartbeat = (self.heartbeat_ms / 1000) as u16;
        let tune_ok = Method::ConnectionTuneOk { channel_max, frame_max: self.frame_max, heartbeat };
        let vhost = core::mem::take(&mut self.credentials.upstream.vhost);
        let open = Method::ConnectionOpen { virtual_host: &vhost };
        self.send_opening(&tune_ok, Stage::Opening).or_else(|| self.send_opening(&open, Stage::Opening))
    }
}

/// Appends the frame of a method to an output buffer. Returns `false`, with the buffer unchanged, if the buffer would
/// exceed `OUT_BYTES`.
fn encode(out: &mut Vec<u8>, channel: u16, method: &Method<'_>) -> bool {
    let len = out.len();
    out.resize(OUT_BYTES, 0);
    let mut writer = Writer::new(&mut out[len..]);
    let is_sent = method.emit_frame(channel, &mut writer).is_ok();
    let written = writer.at();
    out.truncate(len + written);
    is_sent
}

/// Returns the consumer tag of a rule.
fn tag_of(rule: usize) -> heapless::String<16> {
    let mut tag = heapless::String::new();
    let is_written = core::fmt::Write::write_fmt(&mut tag, format_args!("bridge-{rule}"));
    debug_assert!(is_written.is_ok(), "the tag has space for any rule number");
    tag
}

/// Recognises by the first bytes that an upstream does not speak AMQP 0-9-1. Returns `None` if the bytes may begin an
/// AMQP 0-9-1 frame, [`Event::NeedMore`] if more bytes are needed to decide, and else [`Event::Lost`].
#[cold]
pub(super) fn other_protocol<'i>(input: &[u8]) -> Option<Event<'i>> {
    if input.starts_with(b"AMQP") {
        return Some(match input {
            [_, _, _, _, id, major, minor, revision, ..] => {
                link_lost(format_args!("the upstream speaks AMQP {id}-{major}-{minor}-{revision}, not 0-9-1"))
            }
            _ => Event::NeedMore,
        });
    }
    if input.starts_with(b"HTTP/") || classify_opening(input) == Opening::Http {
        return Some(link_lost(format_args!("the peer speaks HTTP, not AMQP: check address and port")));
    }
    match input {
        [] | [1, ..] => None,
        [0x15 | 0x16, 3, ..] => {
            Some(link_lost(format_args!("the upstream speaks TLS on this port: write amqps://")))
        }
        _ => Some(link_lost(format_args!("the peer does not speak AMQP: check address and port"))),
    }
}

/// Recognises by the first bytes that an upstream does not speak TLS, and describes what it speaks instead. Returns
/// `None` if the bytes may begin a TLS record.
#[cold]
pub fn not_tls(input: &[u8]) -> Option<Cause> {
    match input {
        [] | [0x15 | 0x16] | [0x15 | 0x16, 3, ..] => None,
        [b'A', ..] => Some(Cause::new(format_args!(
            "the upstream speaks AMQP without TLS on this port: write amqp://, or the port for TLS"
        ))),
        [b'H', ..] => Some(Cause::new(format_args!("the peer speaks HTTP, not TLS: check address and port"))),
        _ => Some(Cause::new(format_args!("the peer does not speak TLS on this port"))),
    }
}

/// The result of handling input. A rule is identified by its index among the bridge's rules of the same direction.
#[derive(Debug)]
pub enum Event<'i> {
    /// Every complete frame was handled: more input is needed.
    NeedMore,
    /// The connection is open: channels can be opened.
    Open,
    /// The last request on the channel of a rule was answered.
    Answered {
        /// The rule.
        rule: usize,
        /// Number of messages in the upstream queue, as `queue.declare-ok` reported it; 0 without a declaration.
        depth: u32,
    },
    /// The upstream confirms or refuses published messages.
    Confirm {
        /// The rule.
        rule: usize,
        /// The publish number: the first message of a channel has 1.
        number: u64,
        /// Whether the event is about all earlier unconfirmed messages, too.
        multiple: bool,
        /// `true` for `basic.ack`, `false` for `basic.nack`.
        is_accepted: bool,
    },
    /// A published message was returned: it was routed to no queue at the upstream.
    Returned {
        /// The rule.
        rule: usize,
        /// The reply code.
        code: u16,
        /// The properties of the message. Its headers identify it.
        properties: Properties<'i>,
    },
    /// `basic.deliver`: a message follows, as one `Header` and any number of `Body`.
    Deliver {
        /// The rule.
        rule: usize,
        /// The delivery tag at the upstream.
        tag: u64,
        /// Whether the upstream may have delivered the message before.
        redelivered: bool,
        /// The exchange that the message was published to.
        exchange: &'i str,
        /// The routing key that the message was published with.
        key: &'i [u8],
    },
    /// The content header of the arriving message.
    Header {
        /// The rule.
        rule: usize,
        /// The properties of the message.
        properties: Properties<'i>,
        /// Length of the body in bytes.
        body_len: u64,
    },
    /// A part of the body of the arriving message, for this rule.
    Body(usize, &'i [u8]),
    /// The upstream has ended the pause of a rule (`channel.flow` with `active`).
    Resumed(usize),
    /// The upstream has closed the channel of a rule.
    Closed {
        /// The rule.
        rule: usize,
        /// The reply code.
        code: u16,
        /// Whether `basic.publish` caused the error.
        is_publish_error: bool,
        /// The reason as text.
        cause: Cause,
    },
    /// The consumer of a rule was cancelled because its queue was deleted or moved. The channel is still open.
    QueueGone(usize),
    /// The link has ended.
    Lost(Cause),
}

/// Returns the event that ends the link with this reason.
#[cold]
pub(super) fn link_lost<'i>(text: core::fmt::Arguments<'_>) -> Event<'i> {
    Event::Lost(Cause::new(text))
}

/// Returns the event that ends the link because the upstream sent a method that the current stage does not allow.
#[cold]
pub(super) fn unexpected_method<'i>(method: &Method<'_>) -> Event<'i> {
    link_lost(format_args!("the upstream sent an unexpected {}", method.name()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opening_and_closing_a_connection_have_time_limits() {
        let at = Now::from_ms;
        let upstream = Upstream::parse("amqp://host").expect("it is an address");
        let credentials = Credentials { upstream, name: String::new(), version: String::new() };
        let mut client = Client::new(at(0), 1, credentials, 4096, 10);
        let assert_limit = |client: &mut Client, begun_ms, text: &str| {
            let limit = at(begun_ms + ANSWER_TIMEOUT_MS);
            assert_eq!(client.deadline(true), limit.after_ms(0));
            assert!(client.handle_timeout(at(begun_ms + ANSWER_TIMEOUT_MS - 1), true).is_ok());
            let cause = client.handle_timeout(limit, true).expect_err("the upstream does nothing");
            assert!(cause.as_str().contains(text), "{cause}");
        };
        assert_limit(&mut client, 0, "did not send connection.start");
        client.close(at(70_000));
        assert_limit(&mut client, 70_000, "did not read connection.close");
    }
}
