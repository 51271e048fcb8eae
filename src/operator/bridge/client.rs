//! The client's side of one connection to an upstream: from the first octet to confirms and deliveries.
//!
//! ```text
//!   upstream                          here
//!                              <-     AMQP 0 0 9 1
//!   connection.start           ->
//!                              <-     connection.start-ok
//!   connection.tune            ->
//!                              <-     connection.tune-ok, connection.open
//!   connection.open-ok         ->
//!                              <-     channel.open
//!   channel.open-ok            ->
//!                              <-     what the preparations ask for
//!                              <-     confirm.select, or basic.qos and basic.consume for each queue
//!   …-ok                       ->     Event::Ready
//! ```
//!
//! Always true: what the upstream sends ends the link or leads to one event; what is to be said besides
//! messages fits into a buffer of fixed size; no password is shown.

use crate::config::bridge::Rule;
use crate::config::upstream::Upstream;
use crate::time::{Deadline, Now};
use crate::wire::{
    ContentHeader, Frame, FrameKind, HEARTBEAT_FRAME, Method, PROTOCOL_HEADER, Table, Writer, next_frame,
};

use super::cause::Cause;
use super::content::Content;
use super::event::Event;
use super::marks::own_id_of;
use super::own_id::Origin;
use super::preparation::{Preparation, Preparations};
use super::stranger::{lost, stranger};

/// Room for what is said besides messages: the longest is connection.start-ok.
const OUT_BYTES: usize = 2048;
/// A frame of basic.ack, rounded up.
const ACK_BYTES_MAX: usize = 32;
/// How long it may take from connecting until everything is ready, in milliseconds.
const OPENING_MS: u64 = 30_000;
/// The one channel.
const CHANNEL: u16 = 1;
/// The least that AMQP knows, in bytes.
const FRAME_BYTES_MIN: u32 = crate::limits::FRAME_BYTES_MIN;
/// What begins the tags of consumers; the number of their rule follows.
const TAG_PREFIX: &str = "bridge-";

/// What a link is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// It publishes upstream.
    Forward,
    /// It consumes there, with so many messages ahead of each queue.
    Fetch(u16),
}

/// How far a link is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// Nothing was heard yet.
    Start,
    /// connection.start-ok was sent.
    Login,
    /// connection.open was sent.
    Open,
    /// channel.open was sent.
    Channel,
    /// Something that is needed there was asked for.
    Prepare,
    /// confirm.select was sent, or basic.qos.
    Select,
    /// basic.consume was sent for the queue of this place.
    Consume(usize),
    /// Messages flow.
    Ready,
    /// It is over.
    Over,
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
    role: Role,
    stage: Stage,
    credentials: Credentials,
    queues: Vec<String>,
    origin: Origin,
    frame_max: u32,
    heartbeat_ms: u64,
    /// Heartbeats that went or came since this was last asked.
    heartbeats: u32,
    heard: Now,
    is_unheard: bool,
    /// Octets of input that were not handled at the last look.
    unread: usize,
    wrote: Now,
    opening_due: Deadline,
    out: Vec<u8>,
    content: Content,
    /// The code of a return whose content is being read.
    returning: Option<u16>,
    is_blocked: bool,
    /// Rules that are not to consume there, those that do, or were asked to, and those of them that are not
    /// known to do yet; a bit for each.
    held: u8,
    consumed: u8,
    asked: u8,
    preparations: Preparations,
    /// Messages that were in the queue that was asked for last.
    depth: u32,
}

impl Client {
    /// One whose socket is connected or about to be; frames of at most `frame_max` bytes are taken.
    pub fn new(
        now: Now,
        (role, rules): (Role, &[Rule]),
        credentials: Credentials,
        origin: Origin,
        (frame_max, heartbeat_s): (u32, u16),
    ) -> Self {
        let mut out = Vec::with_capacity(OUT_BYTES);
        out.extend_from_slice(&PROTOCOL_HEADER);
        Self {
            role,
            stage: Stage::Start,
            credentials,
            queues: rules.iter().map(|rule| rule.queue.clone()).collect(),
            origin,
            frame_max,
            heartbeat_ms: u64::from(heartbeat_s) * 1000,
            heartbeats: 0,
            heard: now,
            is_unheard: true,
            unread: 0,
            wrote: now,
            opening_due: now.after_ms(OPENING_MS),
            out,
            content: Content::None,
            returning: None,
            is_blocked: false,
            held: 0,
            consumed: 0,
            asked: 0,
            preparations: Preparations::default(),
            depth: 0,
        }
    }

    /// What it is to see to before messages flow.
    pub fn prepare(&mut self, list: Vec<Preparation>) {
        self.preparations = Preparations::new(list);
    }

    /// Messages that were in the last of the queues that it saw to.
    pub const fn depth(&self) -> u32 {
        self.depth
    }

    /// How far it is.
    pub const fn stage(&self) -> Stage {
        self.stage
    }

    /// Bytes of a frame at most; agreed upon once it is ready.
    pub const fn frame_max(&self) -> u32 {
        self.frame_max
    }

    /// The upstream takes no messages for now.
    pub const fn is_blocked(&self) -> bool {
        self.is_blocked
    }

    // ---- time

    /// When [`Self::keep_time`] wants to be called; while nothing is read, nothing can be heard.
    pub fn deadline(&self, is_read: bool) -> Deadline {
        if self.stage != Stage::Ready {
            return self.opening_due;
        }
        if self.heartbeat_ms == 0 {
            return Deadline::NEVER;
        }
        let lost = if is_read { self.heard.after_ms(2 * self.heartbeat_ms) } else { Deadline::NEVER };
        self.wrote.after_ms(self.heartbeat_ms / 2).earlier(lost)
    }

    /// Does what is due.
    ///
    /// # Errors
    /// The upstream has said nothing for too long.
    pub fn keep_time(&mut self, now: Now, is_read: bool) -> Result<(), Cause> {
        if self.stage != Stage::Ready {
            return match self.opening_due.is_due(now) {
                true => Err(self.overdue()),
                false => Ok(()),
            };
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
                self.heartbeats += 1;
            }
        }
        Ok(())
    }

    #[cold]
    fn overdue(&self) -> Cause {
        let waited_for = match self.stage {
            Stage::Start => "the beginning of AMQP",
            Stage::Login => "the answer to its login",
            Stage::Open => "its virtual host to open",
            Stage::Channel | Stage::Prepare | Stage::Select => "its channel to open",
            Stage::Consume(_) => "its consumer to start",
            Stage::Ready | Stage::Over => "nothing",
        };
        Cause::new(format_args!("it was waited {OPENING_MS} ms for {waited_for}, in vain"))
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
        }
        self.out.drain(..count.min(self.out.len()));
        self.keep_consumers();
    }

    /// Octets of messages were written.
    pub const fn note_sent(&mut self, now: Now) {
        self.wrote = now;
    }

    /// Bytes of heartbeats that went or came since this was last asked.
    pub fn take_heartbeat_bytes(&mut self) -> u64 {
        u64::from(core::mem::take(&mut self.heartbeats)) * HEARTBEAT_FRAME.len() as u64
    }

    /// So many octets of input are there: how many more than were left, if any was heard.
    pub const fn note_input(&mut self, now: Now, len: usize) -> usize {
        let more = len.saturating_sub(self.unread);
        if more > 0 {
            (self.heard, self.is_unheard) = (now, false);
        }
        more
    }

    /// Rules, a bit for each, that are not to take anything there from now on; all others are.
    pub fn hold(&mut self, held: u8) {
        self.held = held;
        self.keep_consumers();
    }

    /// Begins and ends consumers there, as far as there is room to say so; the rest follows when something
    /// was written.
    fn keep_consumers(&mut self) {
        if self.stage != Stage::Ready {
            return;
        }
        for at in 0..self.queues.len() {
            let bit = 1 << at;
            if (self.held ^ self.consumed) & bit != 0 {
                continue;
            }
            let queue = core::mem::take(&mut self.queues[at]);
            let tag = tag_of(at);
            let is_said = self.try_say(&match self.held & bit {
                0 => consume_of(&queue, &tag),
                _ => Method::BasicCancel { consumer_tag: &tag, no_wait: true },
            });
            self.queues[at] = queue;
            if !is_said {
                return;
            }
            self.consumed ^= bit;
            self.asked = (self.asked & !bit) | (self.consumed & bit);
        }
    }

    /// So many octets of input were not handled.
    pub const fn note_left(&mut self, len: usize) {
        self.unread = len;
    }

    /// Whether a content has begun to come, and is not all there.
    pub fn is_in_content(&self) -> bool {
        self.content != Content::None
    }

    /// Whether nothing at all was heard yet.
    pub const fn is_unheard(&self) -> bool {
        self.is_unheard
    }

    /// Whether there is room for an acknowledgement; if not, there is when something was written.
    pub fn can_acknowledge(&self) -> bool {
        OUT_BYTES - self.out.len() >= ACK_BYTES_MAX
    }

    /// Acknowledges this tag, and with `multiple` all before it, for which there is room.
    pub fn acknowledge(&mut self, tag: u64, multiple: bool) {
        let is_said = self.try_say(&Method::BasicAck { delivery_tag: tag, multiple });
        assert!(is_said, "whoever acknowledges has asked for room");
    }

    /// The content header of the last event comes again, for there was no room for its message.
    pub const fn take_header_back(&mut self) {
        self.content = Content::Header;
    }

    /// Ends the connection, as far as that can be said.
    #[cold]
    pub fn close(&mut self) {
        if self.stage == Stage::Ready {
            let close =
                Method::ConnectionClose { reply_code: 200, reply_text: "Goodbye", class_id: 0, method_id: 0 };
            // Where there is no room for a word the end of the socket says it as well.
            let _ = self.try_say_on(0, &close);
        }
        self.stage = Stage::Over;
    }

    fn try_say(&mut self, method: &Method<'_>) -> bool {
        self.try_say_on(CHANNEL, method)
    }

    fn try_say_on(&mut self, channel: u16, method: &Method<'_>) -> bool {
        let mut frame = [0; OUT_BYTES];
        let room = OUT_BYTES - self.out.len();
        let mut writer = Writer::new(&mut frame[..room]);
        let is_said = method.emit_frame(channel, &mut writer).is_ok();
        self.out.extend_from_slice(writer.written());
        is_said
    }

    /// Says something during the opening, where every step waits for its answer.
    fn say<'i>(&mut self, channel: u16, method: &Method<'_>, stage: Stage) -> Option<Event<'i>> {
        self.stage = stage;
        match self.try_say_on(channel, method) {
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
        match frame.header.kind() {
            Some(FrameKind::Heartbeat) => {
                self.heartbeats += 1;
                None
            }
            Some(FrameKind::Method) => match Method::parse(frame.payload) {
                Ok(method) => self.handle_method(frame.header.channel, method),
                Err(_) => Some(lost(format_args!("it sends a method that cannot be read"))),
            },
            Some(FrameKind::Header) => Some(self.handle_header(frame.payload)),
            Some(FrameKind::Body) => self.handle_body(frame.payload),
            None => Some(lost(format_args!("it sends what is no frame of AMQP 0-9-1"))),
        }
    }

    fn handle_method<'i>(&mut self, channel: u16, method: Method<'i>) -> Option<Event<'i>> {
        if channel == 0 && self.content == Content::None {
            return self.handle_connection(method);
        }
        if channel != CHANNEL || self.content != Content::None {
            return Some(lost(format_args!("{} where it has no place", method.name())));
        }
        match method {
            Method::ChannelOpenOk {} if self.stage == Stage::Channel => self.go_on_preparing(),
            Method::QueueDeclareOk { queue, message_count, .. } if self.stage == Stage::Prepare => {
                self.depth = message_count;
                if self.preparations.note_declared(queue)
                    && let Some(first) = self.queues.first_mut()
                {
                    *first = queue.to_string();
                }
                self.go_on_preparing()
            }
            Method::QueueBindOk {} if self.stage == Stage::Prepare => {
                self.preparations.note_bound();
                self.go_on_preparing()
            }
            Method::ChannelClose { reply_code, .. }
                if self.stage == Stage::Prepare && self.preparations.is_missing(reply_code) =>
            {
                self.say(CHANNEL, &Method::ChannelCloseOk {}, Stage::Channel)
                    .or_else(|| self.say(CHANNEL, &Method::ChannelOpen {}, Stage::Channel))
            }
            Method::ConfirmSelectOk {} if self.stage == Stage::Select => self.ready(),
            Method::BasicQosOk {} if self.stage == Stage::Select => self.consume(0),
            Method::BasicConsumeOk { consumer_tag } => match (self.stage, rule_of(consumer_tag)) {
                (Stage::Consume(at), _) => {
                    self.asked = 0;
                    self.consume(at + 1)
                }
                (Stage::Ready, Some(at)) if at < self.queues.len() => {
                    self.asked &= !(1 << at);
                    Some(Event::Consuming(at))
                }
                _ => Some(lost(format_args!("{} where it has no place", method.name()))),
            },
            Method::BasicAck { delivery_tag, multiple } if self.role == Role::Forward => {
                Some(Event::Confirm { number: delivery_tag, multiple, is_taken: true })
            }
            Method::BasicNack { delivery_tag, multiple, .. } if self.role == Role::Forward => {
                Some(Event::Confirm { number: delivery_tag, multiple, is_taken: false })
            }
            Method::BasicReturn { reply_code, .. } if self.role == Role::Forward => {
                self.returning = Some(reply_code);
                self.begin_content()
            }
            Method::BasicDeliver { consumer_tag, delivery_tag, redelivered, exchange, routing_key } => {
                self.deliver(consumer_tag, (delivery_tag, redelivered), exchange, routing_key)
            }
            Method::BasicCancel { consumer_tag, .. } => Some(self.cancelled(consumer_tag)),
            Method::ChannelFlow { active } => {
                let is_said = self.try_say(&Method::ChannelFlowOk { active });
                (!is_said).then(|| lost(format_args!("it asks more than it reads answers to")))
            }
            Method::ChannelClose { reply_code, reply_text, class_id, method_id } => {
                self.stage = Stage::Over;
                let cause = Cause::new(format_args!("it closed the channel: {reply_code} {reply_text}"));
                Some(match (class_id, method_id) {
                    (60, 40) => Event::PublishRefused(reply_code, cause),
                    // They are begun in their order, so it is the first of those that are not known to have.
                    (60, 20) if self.asked != 0 => {
                        Event::QueueRefused(self.asked.trailing_zeros() as usize, cause)
                    }
                    _ => Event::Lost(cause),
                })
            }
            _ => Some(lost(format_args!("{} where it has no place", method.name()))),
        }
    }

    #[cold]
    fn handle_connection<'i>(&mut self, method: Method<'i>) -> Option<Event<'i>> {
        match method {
            Method::ConnectionStart { mechanisms, .. } if self.stage == Stage::Start => {
                self.log_in(mechanisms)
            }
            Method::ConnectionTune { frame_max, .. } if self.stage == Stage::Login => self.tune(frame_max),
            Method::ConnectionOpenOk {} if self.stage == Stage::Open => {
                self.say(CHANNEL, &Method::ChannelOpen {}, Stage::Channel)
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
                    (Stage::Open, 530) => "it refused the virtual host",
                    _ => "it closed the connection",
                };
                // It hears that the end was heard, if there is room for that.
                let _ = self.try_say_on(0, &Method::ConnectionCloseOk {});
                Some(lost(format_args!("{what}: {reply_code} {reply_text}")))
            }
            _ => Some(lost(format_args!("{} where it has no place", method.name()))),
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
        self.say(0, &start_ok, Stage::Login)
    }

    #[cold]
    fn tune<'i>(&mut self, theirs: u32) -> Option<Event<'i>> {
        if theirs != 0 {
            self.frame_max = self.frame_max.min(theirs);
        }
        if self.frame_max < FRAME_BYTES_MIN {
            return Some(lost(format_args!("it takes frames of {theirs} bytes at most, which AMQP forbids")));
        }
        // A minute at most is what others take for granted; what was set was chosen for the link.
        let heartbeat = (self.heartbeat_ms / 1000) as u16;
        let tune_ok = Method::ConnectionTuneOk { channel_max: 1, frame_max: self.frame_max, heartbeat };
        let vhost = core::mem::take(&mut self.credentials.upstream.vhost);
        let open = Method::ConnectionOpen { virtual_host: &vhost };
        self.say(0, &tune_ok, Stage::Open).or_else(|| self.say(0, &open, Stage::Open))
    }

    #[cold]
    fn consume<'i>(&mut self, at: usize) -> Option<Event<'i>> {
        let at = at + self.held.checked_shr(at as u32).map_or(0, u8::trailing_ones) as usize;
        let Some(queue) = self.queues.get_mut(at).map(core::mem::take) else { return self.ready() };
        let tag = tag_of(at);
        let said = self.say(CHANNEL, &consume_of(&queue, &tag), Stage::Consume(at));
        self.consumed |= 1 << at;
        self.asked = 1 << at;
        if let Some(place) = self.queues.get_mut(at) {
            *place = queue;
        }
        said
    }

    /// Asks for what is needed next; with everything there, the channel is made what it is for.
    #[cold]
    fn go_on_preparing<'i>(&mut self) -> Option<Event<'i>> {
        let preparations = core::mem::take(&mut self.preparations);
        let said = match (preparations.method(), self.role) {
            (Some(method), _) => self.say(CHANNEL, &method, Stage::Prepare),
            (None, Role::Forward) => {
                self.say(CHANNEL, &Method::ConfirmSelect { no_wait: false }, Stage::Select)
            }
            (None, Role::Fetch(prefetch_count)) => {
                let qos = Method::BasicQos { prefetch_size: 0, prefetch_count, global: false };
                self.say(CHANNEL, &qos, Stage::Select)
            }
        };
        self.preparations = preparations;
        said
    }

    fn ready<'i>(&mut self) -> Option<Event<'i>> {
        self.stage = Stage::Ready;
        // Some may have been held, or not any more, while others began.
        self.keep_consumers();
        Some(Event::Ready)
    }

    #[cold]
    fn cancelled<'i>(&mut self, tag: &str) -> Event<'i> {
        let Some(at) = rule_of(tag).filter(|at| *at < self.queues.len()) else {
            return lost(format_args!("it cancels a consumer that it was not asked for"));
        };
        // A rule that was held in the meantime has no consumer to lose.
        self.consumed &= !(1 << at);
        Event::QueueGone(
            at,
            Cause::new(format_args!("its queue '{}' was deleted, or moved", self.queues[at])),
        )
    }

    // ---- contents

    fn begin_content<'i>(&mut self) -> Option<Event<'i>> {
        let is_placed = self.content.begin();
        (!is_placed).then(|| lost(format_args!("a content within another")))
    }

    fn deliver<'i>(
        &mut self,
        consumer_tag: &str,
        (tag, redelivered): (u64, bool),
        exchange: &'i str,
        key: &'i [u8],
    ) -> Option<Event<'i>> {
        let may_come = match self.stage {
            Stage::Ready => true,
            Stage::Consume(at) => rule_of(consumer_tag).is_some_and(|rule| rule < at),
            _ => false,
        };
        let rule = rule_of(consumer_tag).filter(|at| *at < self.queues.len() && self.role != Role::Forward);
        let rule = rule.filter(|_| may_come);
        let Some(rule) = rule else { return Some(lost(format_args!("a delivery that was not asked for"))) };
        self.begin_content().or(Some(Event::Deliver { tag, redelivered, rule, exchange, key }))
    }

    fn handle_header<'i>(&mut self, payload: &'i [u8]) -> Event<'i> {
        let Ok(header) = ContentHeader::parse(payload) else {
            return lost(format_args!("it sends a content header that cannot be read"));
        };
        if !self.content.take_header(header.body_len) {
            return lost(format_args!("a content header where it has no place"));
        }
        match self.returning {
            Some(code) => {
                let id = own_id_of(header.properties, self.origin);
                if header.body_len == 0 {
                    self.returning = None;
                }
                Event::Returned { code, id }
            }
            None => Event::Header { properties: header.properties, body_len: header.body_len },
        }
    }

    fn handle_body<'i>(&mut self, payload: &'i [u8]) -> Option<Event<'i>> {
        if !self.content.take_body(payload.len()) {
            return Some(lost(format_args!("a content body where it has no place")));
        }
        if self.returning.is_none() {
            return Some(Event::Body(payload));
        }
        if self.content == Content::None {
            self.returning = None;
        }
        None
    }
}

const fn consume_of<'m>(queue: &'m str, consumer_tag: &'m str) -> Method<'m> {
    let (no_local, no_ack, exclusive, no_wait, arguments) = (false, false, false, false, Table::EMPTY);
    Method::BasicConsume { queue, consumer_tag, no_local, no_ack, exclusive, no_wait, arguments }
}

/// The tag of the consumer of a rule, here and there.
pub fn tag_of(rule: usize) -> String {
    format!("{TAG_PREFIX}{rule}")
}

/// Which rule's consumer has this tag.
pub fn rule_of(tag: &str) -> Option<usize> {
    tag.strip_prefix(TAG_PREFIX)?.parse().ok()
}
