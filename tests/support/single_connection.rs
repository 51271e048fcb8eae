//! One connection in memory, with simple counterparts.
//!
//! The client is a byte string, the broker is a table of rules, and the socket accepts as much as the test
//! says.
//!
//! # Invariants
//! - The broker here is the simplest one that obeys the contract of `command.rs`. So a failed test indicates
//!   an error of the connection.
//! - Time stands still unless a test advances it.

use std::collections::VecDeque;

use leveret_amqp::{ContentHeader, FrameKind, Method, Properties, Table, Writer, next_frame};
use leveret_connection::{
    Connection, Context, Identity, InputStep, Names, Peer, Pools, Settings, Suspension, Timeout,
};
use leveret_core::batch::Batch;
use leveret_core::command::{
    Answer, ChannelAnswer, ChannelCommand, ChannelId, Command, ConnectionId, DefinitionAnswer,
    DefinitionCommand, Delivery, DeliveryKind, GetAnswer, LoginCommand, Name, OpenChannel, OpenVhost, Outbox,
    PublishAnswer, PublishCommand, ReplyOrder,
};
use leveret_core::error::{Fault, ReplyCode};
use leveret_core::limits::Limits;
use leveret_core::log_limiter::{LogLimiter, LogSource};
use leveret_core::mem::{MessageFlags, MessageId, Messages, PoolFull, Share};
use leveret_core::password::Secret;
use leveret_core::time::Now;

/// The pools and settings around connections.
pub struct Environment {
    pub limits: Limits,
    pub settings: Settings,
    pub pools: Pools,
    pub messages: Messages,
    pub log: LogLimiter,
    pub names: Names,
    pub now: Now,
    pub share: Share,
    /// Everything up to this batch is durable.
    pub durable: Batch,
}

impl Environment {
    pub fn new(limits: Limits) -> Self {
        let identity = Identity { product: "Leveret".into(), version: "0.1.0".into(), ..Identity::default() };
        Self {
            settings: Settings::new(&limits, &identity),
            pools: Pools::new(&limits),
            log: LogLimiter::default(),
            messages: Messages::new(limits.message_limits()),
            names: Names::default(),
            now: Now::from_ms(1_000),
            share: Share::Ordinary,
            durable: Batch::NONE,
            limits,
        }
    }

    /// Returns what a connection gets with each call.
    pub fn context(&mut self) -> Context<'_> {
        self.context_and_names().0
    }

    /// Returns what a connection gets with each call, and the names that it parses into.
    pub fn context_and_names(&mut self) -> (Context<'_>, &mut Names) {
        let context = Context {
            withholds_answers: false,
            now: self.now,
            broker_time_ms: self.now.as_ms(),
            pools: &mut self.pools,
            messages: &mut self.messages,
            settings: &self.settings,
            share: self.share,
            durable: self.durable,
            last_delivery: 0,
            log: &mut self.log,
        };
        (context, &mut self.names)
    }
}

/// Limits small enough to be reached in a test.
pub fn small_limits() -> Limits {
    Limits {
        connections_max: 8,
        channels_max: 4096,
        messages_max: 4096,
        body_bytes_max: 4 << 20,
        assembly_bytes_max: 2 << 20,
        message_size_max: 1 << 20,
        ..Limits::default()
    }
}

/// A delivery that waits to be written.
pub struct Waiting {
    pub sequence: u64,
    pub channel: u16,
    pub kind: Kind,
    pub tag: u64,
    pub message: MessageId,
    pub is_withdrawn: bool,
    pub delivery_count: Option<u16>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Deliver,
    GetOk(u32),
    Return,
}

/// A broker of rules: the routing key defines the outcome.
///
/// | key | outcome |
/// |---|---|
/// | `refuse` | a nack |
/// | `missing` | 404 |
/// | `wait` | no memory while `is_full` |
/// | `deliver` | delivered to consumer "ctag" on the same channel |
/// | `return` | returned when mandatory |
/// | anything else | taken |
#[derive(Default)]
pub struct Rules {
    pub log: Vec<String>,
    pub outbox: VecDeque<Waiting>,
    pub sequence: u64,
    pub channels: Vec<Option<u16>>,
    pub is_full: bool,
    /// Deliveries contain a delivery count.
    pub tells_counts: bool,
    /// Messages for gets, per key.
    stock: VecDeque<MessageId>,
    /// The batch that confirms of publishes wait for.
    pub batch: Batch,
    tags: u64,
}

struct View<'b> {
    outbox: &'b VecDeque<Waiting>,
    at: usize,
}

impl Outbox for View<'_> {
    fn peek(&self) -> Option<Delivery<'_>> {
        let waiting = self.outbox.get(self.at)?;
        let kind = match waiting.kind {
            Kind::Deliver => DeliveryKind::Deliver { consumer_tag: "ctag" },
            Kind::GetOk(message_count) => DeliveryKind::GetOk { message_count },
            Kind::Return => DeliveryKind::Return(ReplyCode::NoRoute),
        };
        Some(Delivery {
            sequence: waiting.sequence,
            channel: waiting.channel,
            kind,
            delivery_tag: waiting.tag,
            redelivered: false,
            delivery_count: waiting.delivery_count,
            message: waiting.message,
            is_withdrawn: waiting.is_withdrawn,
            batch: Batch::NONE,
        })
    }

    fn advance(&mut self) {
        self.at += 1;
    }
}

pub fn name(text: &str) -> Name {
    Name::try_from(text).unwrap()
}

impl Rules {
    pub fn put(&mut self, channel: u16, kind: Kind, message: MessageId) {
        self.sequence += 1;
        self.tags += u64::from(kind != Kind::Return);
        let tag = if kind == Kind::Return { 0 } else { self.tags };
        self.outbox.push_back(Waiting {
            sequence: self.sequence,
            channel,
            kind,
            tag,
            message,
            is_withdrawn: false,
            delivery_count: (self.tells_counts && kind != Kind::Return).then_some(tag as u16),
        });
    }

    /// Returns the order of a reply on a channel: after the deliveries that wait there.
    fn order(&self, channel: Option<u16>) -> ReplyOrder {
        let last = self.outbox.iter().rfind(|waiting| Some(waiting.channel) == channel);
        last.map_or(0, |waiting| waiting.sequence)
    }

    pub fn apply(
        &mut self,
        messages: &mut Messages,
        command: Command<'_>,
    ) -> (Result<Answer, Fault>, ReplyOrder) {
        let (channel, shown) = match &command {
            Command::Login(command) => (None, format!("{command:?}")),
            Command::OpenVhost(command) => (None, format!("{command:?}")),
            Command::OpenChannel(command) => (None, format!("{command:?}")),
            Command::OpenSession(command) => (None, format!("{command:?}")),
            Command::Publish(channel, _) => (Some(*channel), String::new()),
            Command::Channel(channel, command) => (Some(*channel), format!("{command:?}")),
            Command::Get(channel, command) => (Some(*channel), format!("{command:?}")),
            Command::Definition(channel, command) => (Some(*channel), format!("{command:?}")),
            Command::Mqtt(channel, command) => (Some(*channel), format!("{command:?}")),
        };
        let number = channel.and_then(|id| self.channels[id.index()]);
        let answer = self.answer(messages, number, command);
        if !shown.is_empty() {
            self.log.push(format!("{number:?} {shown}"));
        }
        (answer, self.order(number))
    }

    fn answer(
        &mut self,
        messages: &mut Messages,
        number: Option<u16>,
        command: Command<'_>,
    ) -> Result<Answer, Fault> {
        Ok(match command {
            Command::Login(LoginCommand::Password { user: "guest", password: Secret(b"guest"), .. }) => {
                Answer::LoggedIn
            }
            Command::Login(LoginCommand::Password { .. }) => return fault(ReplyCode::AccessRefused, "wrong"),
            Command::Login(LoginCommand::External { .. }) => Answer::LoggedIn,
            Command::OpenVhost(OpenVhost { vhost: "/" }) => Answer::OpenVhost,
            Command::OpenVhost(OpenVhost { vhost }) => {
                let text = format_args!("vhost {vhost} not found");
                return Err(Fault::connection(ReplyCode::NotAllowed, text));
            }
            Command::OpenChannel(OpenChannel { number }) => {
                self.channels.push(Some(number));
                Answer::OpenChannel(ChannelId::from_index(self.channels.len() - 1))
            }
            Command::Publish(_, PublishCommand::Publish { message, mandatory }) => {
                let number = number.expect("publish is on a channel");
                Answer::Publish(self.publish(messages, number, message, mandatory)?)
            }
            Command::Channel(channel, command) => Answer::Channel(match command {
                ChannelCommand::CloseChannel => {
                    self.close(messages, channel, number);
                    ChannelAnswer::Closed
                }
                ChannelCommand::Consume { tag, .. } => {
                    ChannelAnswer::Consuming { tag: if tag.is_empty() { "amq.ctag-1" } else { tag }.into() }
                }
                ChannelCommand::Cancel { .. } => ChannelAnswer::Cancelled,
                ChannelCommand::ConfirmSelect => ChannelAnswer::ConfirmsSelected,
                _ => ChannelAnswer::Done,
            }),
            Command::Get(..) => Answer::Get(match (self.stock.pop_front(), number) {
                (Some(message), Some(number)) => {
                    self.put(number, Kind::GetOk(self.stock.len() as u32), message);
                    GetAnswer::Queued
                }
                _ => GetAnswer::Empty,
            }),
            Command::Definition(_, command) => Answer::Definition(match command {
                DefinitionCommand::QueueDeclare { queue, .. } => {
                    let queue = if queue.is_empty() { "amq.gen-1" } else { queue }.into();
                    DefinitionAnswer::QueueDeclared { queue, message_count: 7, consumer_count: 3 }
                }
                DefinitionCommand::QueuePurge { .. } => DefinitionAnswer::QueuePurged(5),
                DefinitionCommand::QueueDelete { .. } => DefinitionAnswer::QueueDeleted(5),
                DefinitionCommand::QueueBind { exchange: "missing", .. } => {
                    return fault(ReplyCode::NotFound, "no exchange");
                }
                _ => DefinitionAnswer::Done,
            }),
            Command::Publish(..) | Command::OpenSession(_) | Command::Mqtt(..) => {
                panic!("no AMQP connection passes {command:?}")
            }
        })
    }

    fn close(&mut self, messages: &mut Messages, channel: ChannelId, number: Option<u16>) {
        self.channels[channel.index()] = None;
        let mut place = 0;
        self.outbox.retain(|waiting| {
            place += 1;
            let stays = Some(waiting.channel) != number || waiting.kind != Kind::Deliver;
            if !stays && place > 1 {
                messages.release(waiting.message);
            }
            stays || place == 1
        });
        if let Some(front) = self.outbox.front_mut() {
            front.is_withdrawn |= Some(front.channel) == number && front.kind == Kind::Deliver;
        }
    }

    fn publish(
        &mut self,
        messages: &mut Messages,
        number: u16,
        id: MessageId,
        mandatory: bool,
    ) -> Result<PublishAnswer, Fault> {
        let key = String::from_utf8_lossy(messages.routing_key(id)).into_owned();
        if key == "wait" && self.is_full {
            return Ok(PublishAnswer::Wait);
        }
        let body = body_of(messages, id);
        self.log.push(format!(
            "{number} publish {}/{key} {mandatory} {:?} {}:{:x}",
            messages.exchange(id),
            messages.flags(id),
            body.len(),
            checksum(&body)
        ));
        match key.as_str() {
            "deliver" => self.put(number, Kind::Deliver, id),
            "return" if mandatory => self.put(number, Kind::Return, id),
            _ => messages.release(id),
        }
        match key.as_str() {
            "refuse" => Ok(PublishAnswer::Refused),
            "missing" => fault(ReplyCode::NotFound, "no exchange 'missing' in vhost '/'"),
            _ => Ok(PublishAnswer::Published),
        }
    }
}

fn fault<T>(code: ReplyCode, text: &str) -> Result<T, Fault> {
    Err(Fault::new(code, format_args!("{text}")))
}

pub fn body_of(messages: &Messages, id: MessageId) -> Vec<u8> {
    let mut body = vec![0; messages.body_len(id) as usize];
    let mut cursor = messages.body_cursor(id, 0);
    messages.read(id, &mut cursor, &mut body);
    body
}

pub fn checksum(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// A connection between a client's bytes and [`Rules`].
pub struct Host {
    pub connection: Connection,
    pub rules: Rules,
    /// Input that was not consumed.
    pub stash: Vec<u8>,
    /// Everything that the socket accepted.
    pub output: Vec<u8>,
    pub out_bytes: usize,
    /// Bytes that were filled and not accepted by the socket.
    pub unsent: Vec<u8>,
    pub is_finished: bool,
}

impl Host {
    pub fn new(environment: &Environment) -> Self {
        let id = ConnectionId::from_index(0);
        Self::with_id(environment, id)
    }

    pub fn with_id(environment: &Environment, id: ConnectionId) -> Self {
        let peer = Peer { from_loopback: true, source: LogSource::Unknown, port: 0 };
        Self {
            connection: Connection::new(environment.now, id, peer, &environment.settings),
            rules: Rules::default(),
            stash: Vec::new(),
            output: Vec::new(),
            out_bytes: 64 << 10,
            unsent: Vec::new(),
            is_finished: false,
        }
    }

    /// Passes bytes to the connection and handles them as far as possible.
    pub fn feed(&mut self, environment: &mut Environment, bytes: &[u8]) -> Option<Suspension> {
        self.stash.extend_from_slice(bytes);
        let input = core::mem::take(&mut self.stash);
        let mut at = 0;
        let suspended = loop {
            let (mut context, names) = environment.context_and_names();
            match self.connection.next(&mut context, names, &input, &mut at) {
                InputStep::NeedMore => break None,
                InputStep::Suspended(suspension) => break Some(suspension),
                InputStep::Finished => {
                    self.is_finished = true;
                    break None;
                }
                InputStep::Command(command) => {
                    let (answer, order) = self.rules.apply(context.messages, command);
                    let is_wait = answer == Ok(Answer::Publish(PublishAnswer::Wait));
                    let batch = self.rules.batch;
                    self.connection.answer(&mut context, answer, order, batch);
                    if is_wait {
                        break Some(Suspension::ContentRoom(PoolFull::Messages));
                    }
                }
            }
        };
        self.stash = input[at..].to_vec();
        suspended
    }

    /// Writes the remaining bytes, or one fill if there are none. The socket accepts what `accept` returns,
    /// and the rest is kept. Returns how many bytes there were to write.
    pub fn flush_once(
        &mut self,
        environment: &mut Environment,
        accept: impl FnOnce(usize) -> usize,
    ) -> usize {
        if self.unsent.is_empty() {
            self.unsent = vec![0; self.out_bytes];
            let mut view = View { outbox: &self.rules.outbox, at: 0 };
            let mut context = environment.context();
            let filled = self.connection.fill(&mut context, &mut self.unsent, &mut view);
            self.unsent.truncate(filled.bytes);
            for _ in 0..filled.deliveries {
                let waiting = self.rules.outbox.pop_front().expect("no more is sent than waits");
                environment.messages.release(waiting.message);
            }
        }
        let len = self.unsent.len();
        let took = accept(len);
        self.output.extend(self.unsent.drain(..took));
        len
    }

    /// Writes everything.
    pub fn flush(&mut self, environment: &mut Environment) {
        for _ in 0..100_000 {
            if self.flush_once(environment, |filled| filled) == 0 {
                return;
            }
        }
        panic!("a connection that always has something to write");
    }

    /// Feeds, flushes and resumes until nothing moves.
    pub fn run(&mut self, environment: &mut Environment, bytes: &[u8]) {
        let mut suspended = self.feed(environment, bytes);
        loop {
            let before = (self.output.len(), self.stash.len(), self.rules.log.len());
            self.flush(environment);
            if suspended.is_some() {
                suspended = self.feed(environment, &[]);
                self.flush(environment);
            }
            if before == (self.output.len(), self.stash.len(), self.rules.log.len()) {
                return;
            }
        }
    }

    /// Returns what was written since the last call as text, one line per method, header or body.
    pub fn said(&mut self) -> Vec<String> {
        let output = core::mem::take(&mut self.output);
        show(&output)
    }

    pub fn timeout(&mut self, environment: &mut Environment) -> Timeout {
        self.connection.handle_timeout(&mut environment.context())
    }

    /// Advances the clock and handles what is due.
    pub fn later(&mut self, environment: &mut Environment, ms: u64) -> Timeout {
        environment.now = Now::from_ms(environment.now.as_ms() + ms);
        self.timeout(environment)
    }

    /// Advances the clock to the connection's next deadline and handles it.
    pub fn pass_time(&mut self, environment: &mut Environment) -> Timeout {
        let left = self.connection.deadline().ms_left(environment.now).expect("there is a deadline");
        environment.now = Now::from_ms(environment.now.as_ms() + left);
        self.timeout(environment)
    }

    /// Closes a channel without a request of its client.
    pub fn close_channel(&mut self, environment: &mut Environment, number: u16, text: &str) -> bool {
        let fault = Fault::new(ReplyCode::PreconditionFailed, format_args!("{text}"));
        self.connection.close_channel(&mut environment.context(), number, &fault)
    }

    /// Frees everything, and checks that the pools are complete again.
    pub fn end(mut self, environment: &mut Environment) {
        self.connection.teardown(&mut environment.context());
        for waiting in self.rules.outbox.drain(..) {
            environment.messages.release(waiting.message);
        }
        for message in self.rules.stock.drain(..) {
            environment.messages.release(message);
        }
        assert_eq!(environment.pools.channels_used(), 0);
        assert_eq!(environment.pools.reply_bytes_used(), 0);
        assert_eq!(
            (
                environment.messages.messages_used(),
                environment.messages.body_bytes_used(),
                environment.messages.assembly_bytes_used()
            ),
            (0, 0, 0)
        );
    }
}

/// Returns an open connection.
pub fn open(environment: &mut Environment) -> Host {
    open_with(environment, 0, &CAPABLE)
}

pub const CAPABLE: [&str; 3] =
    ["authentication_failure_close", "consumer_cancel_notify", "connection.blocked"];

pub fn open_with(environment: &mut Environment, heartbeat: u16, capabilities: &[&str]) -> Host {
    let mut host = Host::new(environment);
    let script = handshake(capabilities, b"\0guest\0guest", environment.limits.frame_max, heartbeat);
    host.run(environment, &script);
    let said = host.said();
    assert_eq!(said.len(), 3, "{said:?}");
    assert!(said[2].starts_with("0 ConnectionOpenOk"), "{said:?}");
    host.rules.log.clear();
    host
}

pub fn handshake(capabilities: &[&str], credentials: &[u8], frame_max: u32, heartbeat: u16) -> Vec<u8> {
    let mut script = b"AMQP\0\0\x09\x01".to_vec();
    script.extend(start_ok("PLAIN", credentials, capabilities));
    script.extend(method(0, &Method::ConnectionTuneOk { channel_max: 2047, frame_max, heartbeat }));
    script.extend(method(0, &Method::ConnectionOpen { virtual_host: "/" }));
    script
}

pub fn start_ok(mechanism: &str, response: &[u8], capabilities: &[&str]) -> Vec<u8> {
    let mut bytes = vec![0; 1024];
    let mut writer = Writer::new(&mut bytes);
    writer
        .table(|table| {
            table.table("capabilities", |inner| {
                capabilities.iter().try_for_each(|capability| inner.bool(capability, true))
            })
        })
        .unwrap();
    let properties = writer.written()[4..].to_vec();
    let start_ok = Method::ConnectionStartOk {
        client_properties: Table::trusted(&properties),
        mechanism,
        response,
        locale: "en_US",
    };
    method(0, &start_ok)
}

pub fn method(channel: u16, method: &Method<'_>) -> Vec<u8> {
    let mut bytes = vec![0; 8192];
    let mut writer = Writer::new(&mut bytes);
    method.emit_frame(channel, &mut writer).unwrap();
    writer.written().to_vec()
}

pub fn open_channel(channel: u16) -> Vec<u8> {
    method(channel, &Method::ChannelOpen {})
}

pub fn frame(kind: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend(channel.to_be_bytes());
    bytes.extend((payload.len() as u32).to_be_bytes());
    bytes.extend(payload);
    bytes.push(0xCE);
    bytes
}

pub fn header(channel: u16, body_len: u64, properties: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 8192];
    let mut writer = Writer::new(&mut bytes);
    ContentHeader::new(body_len, Properties::trusted(properties)).emit_frame(channel, &mut writer).unwrap();
    writer.written().to_vec()
}

/// Returns basic.publish with its content, in body frames of `piece` bytes.
pub fn publish_in(channel: u16, key: &str, mandatory: bool, body: &[u8], piece: usize) -> Vec<u8> {
    let publish =
        Method::BasicPublish { exchange: "x", routing_key: key.as_bytes(), mandatory, immediate: false };
    let mut bytes = method(channel, &publish);
    bytes.extend(header(channel, body.len() as u64, &[0, 0]));
    for piece in body.chunks(piece) {
        bytes.extend(frame(3, channel, piece));
    }
    bytes
}

pub fn publish(channel: u16, key: &str, body: &[u8]) -> Vec<u8> {
    publish_in(channel, key, false, body, 131_064)
}

/// Returns frames as text.
pub fn show(mut bytes: &[u8]) -> Vec<String> {
    let mut shown = Vec::new();
    if let Some(rest) = bytes.strip_prefix(b"AMQP\0\0\x09\x01") {
        shown.push("AMQP".to_string());
        bytes = rest;
    }
    while !bytes.is_empty() {
        let frame = next_frame(bytes, 1 << 24).expect("we write frames").expect("whole frames");
        bytes = &bytes[frame.input_len()..];
        let channel = frame.header.channel;
        shown.push(match frame.header.kind().expect("of a known kind") {
            FrameKind::Method => match Method::parse(frame.payload).expect("methods") {
                Method::ConnectionStart { mechanisms, .. } => {
                    format!("{channel} ConnectionStart {}", String::from_utf8_lossy(mechanisms))
                }
                method => format!("{channel} {method:?}"),
            },
            FrameKind::Header => {
                let header = ContentHeader::parse(frame.payload).expect("content headers");
                format!("{channel} header {}", header.body_len)
            }
            FrameKind::Body => format!("{channel} body {}", frame.payload.len()),
            FrameKind::Heartbeat => format!("{channel} heartbeat"),
        });
    }
    shown
}

pub fn message(environment: &mut Environment, body: &[u8]) -> MessageId {
    let id = environment.messages.begin("x", b"key", Share::Reserve).unwrap();
    environment
        .messages
        .reserve_content(id, &[0, 0], MessageFlags::NONE, body.len() as u32, Share::Reserve)
        .unwrap();
    environment.messages.append_body(id, body);
    environment.messages.finish(id);
    id
}

pub fn close(code: u16, text: &str, id: (u16, u16)) -> String {
    let close =
        Method::ConnectionClose { reply_code: code, reply_text: text, class_id: id.0, method_id: id.1 };
    format!("0 {close:?}")
}

pub fn channel_close(channel: u16, code: u16, text: &str, id: (u16, u16)) -> String {
    let close = Method::ChannelClose { reply_code: code, reply_text: text, class_id: id.0, method_id: id.1 };
    format!("{channel} {close:?}")
}

pub fn client_closes(channel: u16) -> Vec<u8> {
    method(channel, &Method::ChannelClose { reply_code: 200, reply_text: "", class_id: 0, method_id: 0 })
}

pub fn ack(channel: u16, delivery_tag: u64, multiple: bool) -> String {
    format!("{channel} {:?}", Method::BasicAck { delivery_tag, multiple })
}

pub fn select(channel: u16) -> Vec<u8> {
    method(channel, &Method::ConfirmSelect { no_wait: false })
}

pub fn get(channel: u16) -> Vec<u8> {
    method(channel, &Method::BasicGet { queue: "q", no_ack: true })
}

/// Length of the method frame of a publish with a one-letter key; and with an empty header in addition.
pub const METHOD: usize = 19;
pub const HEAD: usize = METHOD + 22;

/// Returns a connection with these channels open.
pub fn open_channels(environment: &mut Environment, channels: &[u16]) -> Host {
    let mut host = open(environment);
    for channel in channels {
        host.run(environment, &open_channel(*channel));
    }
    host.said();
    host.rules.log.clear();
    host
}

pub fn declare(queue: &str) -> Method<'_> {
    Method::QueueDeclare {
        queue,
        passive: false,
        durable: false,
        exclusive: false,
        auto_delete: false,
        no_wait: false,
        arguments: Table::EMPTY,
    }
}
