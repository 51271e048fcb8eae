//! Getting messages from a queue, browsing a queue, and messages as JSON.
//!
//! `POST queues/V/Q/get` takes messages from a queue like a client, and requeues them if that was requested:
//!
//! ```text
//! get one ─→ waiting for the disk ─→ its head, its payload piece by piece ─→ the next
//! none is left ─→ requeue ─→ end
//! ```
//!
//! `GET /api/leveret/queues/V/Q/messages` shows messages of a queue without taking them:
//!
//! ```text
//! ?position=0&count=50&truncate=1000&encoding=auto
//! {"ready":N,"position":0,"messages":[…],"next":50}      `next` is null after the last message
//! each message: {"id":"…","position":0,"redelivered":false,"exchange":"","routing_key":"","payload":"",…}
//! ```
//!
//! # Invariants
//! - Messages are taken over a connection of the user, under its permissions and limits.
//! - They are requeued when the client disconnects, unless their removal was requested.
//! - A step takes at most [`GETS_PER_STEP`] messages.
//! - An answer to browsing is bounded, however long messages are, and contains the position of the next message.
//! - A request that waits for the disk holds only what is read for it.
//! - A step examines at most [`CHECKED_BYTES`] of a payload and writes at most the bytes it was allowed to.
//! - A payload is shown as text only if everything that is shown of it is UTF-8.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use leveret_amqp::field::Value;
use leveret_amqp::props::{PROPERTIES, Properties};
use leveret_broker::{Broker, QueueRef};
use leveret_core::command::{
    ChannelCommand, ChannelId, ConnectionId, DeliveryKind, GetAnswer, GetCommand, Outbox, Settlement,
};
use leveret_core::error::{Fault, ReplyCode};
use leveret_core::mem::{MessageId, Messages};
use leveret_queues::{BROWSED_MAX, BrowseResult, Browsed, BrowsedMessage};

use super::http::Request;
use super::json::{Json, Tables};
use super::request::RequestContext;

/// The most messages taken in one step.
const GETS_PER_STEP: usize = 32;

/// The settlement of taken messages. `None`: each is removed as soon as it is taken.
pub(super) type AckMode = Option<Settlement>;

/// The request.
#[derive(Debug)]
pub struct QueueGet {
    pub(super) user: Box<str>,
    pub(super) vhost: Box<str>,
    pub(super) queue: Box<str>,
    /// Number of messages still to be taken.
    pub(super) left: u32,
    pub(super) mode: AckMode,
    pub(super) payloads: PayloadOptions,
}

/// A request in progress.
#[derive(Debug)]
pub(super) struct Getting {
    get: QueueGet,
    own: Option<(ConnectionId, ChannelId)>,
    payload: Option<PayloadWriter>,
    /// The delivery tag of the last taken message.
    last_tag: u64,
    /// Whether the response has begun.
    pub(super) is_begun: bool,
    /// Whether the result of the last get is still open. The broker has it when the connection is no longer busy.
    is_waiting: bool,
}

/// The progress of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Progress {
    GoOn,
    Waiting,
    Done,
}

impl Getting {
    pub(super) const fn new(get: QueueGet) -> Self {
        Self { get, own: None, payload: None, last_tag: 0, is_begun: false, is_waiting: false }
    }

    /// Returns the connection whose get is still open.
    pub(super) fn waits_for(&self) -> Option<ConnectionId> {
        self.own.filter(|_| self.is_waiting).map(|own| own.0)
    }

    /// Continues, and writes up to about `enough` bytes.
    ///
    /// # Errors
    /// The request failed; nothing was written.
    pub(super) fn step(
        &mut self,
        context: &mut RequestContext<'_>,
        out: &mut Vec<u8>,
        enough: usize,
    ) -> Result<Progress, Fault> {
        for _ in 0..GETS_PER_STEP {
            if let Some(payload) = &mut self.payload {
                if !payload.write(context.messages, out, enough) {
                    return Ok(Progress::GoOn);
                }
                self.payload.take().into_iter().for_each(|payload| payload.release(context.messages));
            }
            if out.len() >= enough {
                return Ok(Progress::GoOn);
            }
            match self.next(context) {
                Ok(GetAnswer::Queued) => self.show(context, out),
                Ok(GetAnswer::Later) => return Ok(Progress::Waiting),
                Err(fault) if !self.is_begun => {
                    self.end(context);
                    return Err(fault);
                }
                // The queue is empty, or no more messages can be unacknowledged: the response ends here.
                Ok(GetAnswer::Empty) | Err(_) => {
                    out.extend_from_slice(if self.is_begun { b"]" } else { b"[]" });
                    self.end(context);
                    return Ok(Progress::Done);
                }
            }
        }
        Ok(Progress::GoOn)
    }

    /// Takes the next message, or returns the result of the get in progress.
    fn next(&mut self, context: &mut RequestContext<'_>) -> Result<GetAnswer, Fault> {
        let (broker, mut context) = context.broker();
        let (connection, channel) = match self.own {
            Some(own) => own,
            None => *self.own.insert(broker.connect_user(&mut context, &self.get.user, &self.get.vhost)?),
        };
        let answer = if self.is_waiting {
            if broker.is_busy(connection) {
                return Ok(GetAnswer::Later);
            }
            broker.take_late_get(connection).map_or(Ok(GetAnswer::Empty), |reply| reply.0)
        } else if self.get.left == 0 {
            Ok(GetAnswer::Empty)
        } else {
            self.get.left -= 1;
            let get = GetCommand { queue: &self.get.queue, no_ack: self.get.mode.is_none() };
            broker.apply_on_channel(&mut context, connection, channel, get)
        };
        self.is_waiting = answer == Ok(GetAnswer::Later);
        answer
    }

    /// Writes the JSON of the taken message up to its payload.
    fn show(&mut self, context: &mut RequestContext<'_>, out: &mut Vec<u8>) {
        let Some((connection, _)) = self.own else { return };
        let seen = context.broker.outbox(connection).peek().map(|delivery| {
            let count = match delivery.kind {
                DeliveryKind::GetOk { message_count } => message_count,
                DeliveryKind::Deliver { .. } | DeliveryKind::Return(_) | DeliveryKind::Publish(_) => 0,
            };
            (delivery.message, delivery.delivery_tag, delivery.redelivered, count)
        });
        let Some((message, tag, redelivered, count)) = seen else {
            debug_assert!(false, "what was taken stands in the outbox");
            return;
        };
        out.extend_from_slice(if core::mem::replace(&mut self.is_begun, true) { b"," } else { b"[" });
        write_head(out, context.messages, message, &|json| {
            json.raw(b"\"redelivered\":");
            json.truth(redelivered);
            json.raw(b",\"message_count\":");
            json.number(count);
        });
        self.payload = Some(PayloadWriter::new(context.messages, message, self.get.payloads));
        self.last_tag = tag;
        let (broker, mut context) = context.broker();
        broker.sent(&mut context, connection, 1);
    }

    fn end(&mut self, context: &mut RequestContext<'_>) {
        let (broker, mut context) = context.broker();
        self.settle_and_leave(broker, &mut context);
    }

    fn settle_and_leave(&mut self, broker: &mut Broker, context: &mut leveret_broker::Context<'_>) {
        let Some((connection, channel)) = self.own.take() else { return };
        if let Some(settlement) = self.get.mode.filter(|_| self.last_tag > 0) {
            let command = ChannelCommand::Settle { delivery_tag: self.last_tag, multiple: true, settlement };
            // The messages are requeued if this fails, because the connection is released.
            let _ = broker.apply_on_channel(context, connection, channel, command);
        }
        broker.release(context, connection);
    }

    /// Requeues the messages, because the client disconnected.
    pub(super) fn abandon(mut self, broker: &mut Broker, context: &mut leveret_broker::Context<'_>) {
        if let Some(payload) = self.payload.take() {
            payload.release(context.messages);
        }
        if let Some((connection, _)) = self.own.take() {
            broker.release(context, connection);
        }
    }
}

/// The most bytes of a payload that are shown; also the default.
const PAYLOAD_BYTES_MAX: u32 = 4 << 10;
const PAYLOAD_BYTES_DEFAULT: u32 = 1 << 10;
const COUNT_DEFAULT: u32 = 20;
/// No more messages are added to an answer that has this many bytes.
const ENOUGH: usize = 16 << 10;

/// Browsing that waits for the disk.
#[derive(Debug)]
pub struct PendingBrowse {
    number: u64,
    position: u32,
    ready: u32,
    payloads: PayloadOptions,
}

/// The result of starting to browse.
#[derive(Debug)]
pub(super) enum BrowseAnswer {
    /// The answer is complete.
    Now(Vec<u8>),
    /// Messages must be read from the disk first.
    Later(PendingBrowse),
}

/// Starts browsing for a user.
///
/// # Errors
/// The request is invalid, or the user lacks permissions.
pub(super) fn browse(
    request: &Request<'_>,
    context: &mut RequestContext<'_>,
    user: &str,
    queue: QueueRef<'_>,
) -> Result<BrowseAnswer, Fault> {
    let number = |key, default: u32| match request.query_value(key) {
        None | Some("") => Ok(default),
        Some(text) => text.parse().map_err(|_| {
            let text = format_args!("`{key}` must be a whole number");
            Fault::new(ReplyCode::PreconditionFailed, text)
        }),
    };
    let (position, count) = (number("position", 0)?, number("count", COUNT_DEFAULT)?);
    let truncate = number("truncate", PAYLOAD_BYTES_DEFAULT)?;
    let is_base64 = request.query_value("encoding") == Some("base64");
    let payloads = PayloadOptions { is_base64, bytes_max: truncate.min(PAYLOAD_BYTES_MAX) };
    let (broker, mut broker_context) = context.broker();
    let count = count.clamp(1, BROWSED_MAX);
    let BrowseResult { ready, seen } =
        broker.browse_queue(&mut broker_context, user, queue, position, count)?;
    if seen.iter().any(|seen| matches!(seen, Browsed::InLog(_))) {
        let number = broker.queues_mut().browses_mut().want(broker_context.messages, &seen);
        return Ok(BrowseAnswer::Later(PendingBrowse { number, position, ready, payloads }));
    }
    let found = seen.iter().filter_map(|seen| match seen {
        Browsed::InMemory(browsed) => Some(*browsed),
        Browsed::InLog(_) => None,
    });
    let found: Vec<_> = found.collect();
    Ok(BrowseAnswer::Now(shown(context.messages, ready, position, &found, payloads)))
}

impl PendingBrowse {
    /// Returns whether the awaited messages have been read.
    pub(super) fn is_done(&self, broker: &Broker) -> bool {
        broker.queues().browses().is_done(self.number)
    }

    /// Returns the answer with the messages that were read.
    ///
    /// # Errors
    /// The messages could not be read.
    pub(super) fn take(&self, context: &mut RequestContext<'_>) -> Result<Vec<u8>, Fault> {
        let (broker, context) = context.broker();
        let messages = context.messages;
        let found = broker.queues_mut().browses_mut().take(messages, self.number);
        let answer = match found.is_empty() {
            true => {
                let why = format_args!("no memory now to read these messages back, or they cannot be read");
                Err(Fault::new(ReplyCode::ResourceError, why))
            }
            false => Ok(shown(messages, self.ready, self.position, &found, self.payloads)),
        };
        found.into_iter().for_each(|browsed| messages.release(browsed.message));
        answer
    }

    /// Ends browsing, because the client disconnected.
    pub(super) fn abandon(&self, broker: &mut Broker, context: &mut leveret_broker::Context<'_>) {
        let found = broker.queues_mut().browses_mut().take(context.messages, self.number);
        found.into_iter().for_each(|browsed| context.messages.release(browsed.message));
    }
}

fn shown(
    messages: &mut Messages,
    ready: u32,
    position: u32,
    found: &[BrowsedMessage],
    payloads: PayloadOptions,
) -> Vec<u8> {
    let mut out = format!("{{\"ready\":{ready},\"position\":{position},\"messages\":[").into_bytes();
    let mut next = position;
    for BrowsedMessage { message, is_redelivered, key } in found {
        if out.len() >= ENOUGH {
            break;
        }
        if next > position {
            out.push(b',');
        }
        write_head(&mut out, messages, *message, &|json| {
            json.raw(b"\"position\":");
            json.number(next);
            json.raw(b",\"redelivered\":");
            json.truth(*is_redelivered);
            json.raw(b",\"id\":");
            json.text(&key.to_string());
        });
        let mut payload = PayloadWriter::new(messages, *message, payloads);
        // A payload of this length is examined in one step.
        let is_whole = payload.write(messages, &mut out, usize::MAX);
        debug_assert!(is_whole && out.len() < ENOUGH + HEAD_BYTES_MAX + 7 * PAYLOAD_BYTES_MAX as usize);
        payload.release(messages);
        next += 1;
    }
    let is_last = next >= ready || found.is_empty();
    let next = if is_last { "null".to_string() } else { next.to_string() };
    out.extend_from_slice(format!("],\"next\":{next}}}").as_bytes());
    out
}

/// The most bytes of a payload that one step examines.
const CHECKED_BYTES: u32 = 64 << 10;
/// Bytes of a payload that are written at once: a multiple of three, for base64.
const PIECE_BYTES: usize = 1536;
/// The most bytes of a message's JSON without its payload. A longer one omits the headers.
pub(super) const HEAD_BYTES_MAX: usize = 20 << 10;

/// How payloads are shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct PayloadOptions {
    /// Whether all payloads are shown in base64.
    pub(super) is_base64: bool,
    /// The most bytes of a payload that are shown.
    pub(super) bytes_max: u32,
}

#[derive(Debug)]
enum Phase {
    /// It is not known yet whether the payload is text. The bytes are the beginning of an incomplete character.
    Checking(heapless::Vec<u8, 3>),
    Text,
    Base64,
}

/// A payload that is being written.
#[derive(Debug)]
pub(super) struct PayloadWriter {
    message: MessageId,
    at: u32,
    end: u32,
    phase: Phase,
}

/// Writes the JSON up to the payload: it begins with `{` and ends after a member.
pub(super) fn write_head(
    out: &mut Vec<u8>,
    messages: &Messages,
    message: MessageId,
    first: &dyn Fn(&mut Json<'_>),
) {
    let mut scratch = vec![0; messages.properties_len(message) as usize];
    let properties = Properties::trusted(messages.properties(message, &mut scratch));
    let start = out.len();
    for how in [Tables::Plain, Tables::LeftOut] {
        out.truncate(start);
        let mut json = Json::new(out, start + HEAD_BYTES_MAX);
        json.raw(b"{\"payload_bytes\":");
        json.number(messages.body_len(message));
        json.raw(b",");
        first(&mut json);
        json.raw(b",\"exchange\":");
        json.text(messages.exchange(message));
        json.raw(b",\"routing_key\":");
        json.text(&String::from_utf8_lossy(messages.routing_key(message)));
        json.raw(b",\"properties\":");
        put_properties(&mut json, properties, how);
        if !json.is_full() {
            return;
        }
    }
    debug_assert!(false, "a message without its headers fits");
}

/// Without properties RabbitMQ shows an empty list.
pub(super) fn put_properties(json: &mut Json<'_>, properties: Properties<'_>, how: Tables) {
    if PROPERTIES.iter().all(|(_, flag, kind)| properties.by_flag(*flag, *kind).is_none()) {
        return json.raw(b"[]");
    }
    json.raw(b"{");
    let mut is_first = true;
    for (name, flag, kind) in PROPERTIES {
        if let Some(value) = properties.by_flag(flag, kind) {
            json.name(name, &mut is_first);
            match value {
                Value::Table(table) => json.table_but(table, "BCC", how),
                value => json.value(value, how),
            }
        }
    }
    json.raw(b"}");
}

impl PayloadWriter {
    /// Starts to write the payload. Holds the message until [`Self::write`] is complete or it is released.
    pub(super) fn new(messages: &mut Messages, message: MessageId, payloads: PayloadOptions) -> Self {
        messages.retain(message);
        let end = messages.body_len(message).min(payloads.bytes_max);
        let phase = if payloads.is_base64 { Phase::Base64 } else { Phase::Checking(heapless::Vec::new()) };
        Self { message, at: 0, end, phase }
    }

    /// Releases the message.
    pub(super) fn release(self, messages: &mut Messages) {
        messages.release(self.message);
    }

    /// Writes on, until the output has about `enough` bytes. Returns whether the payload and the closing `}` are
    /// complete.
    pub(super) fn write(&mut self, messages: &Messages, out: &mut Vec<u8>, enough: usize) -> bool {
        if let Phase::Checking(begun) = &mut self.phase {
            let is_text = check(messages, self.message, &mut self.at, self.end, begun);
            let Some(is_text) = is_text else { return false };
            self.phase = if is_text { Phase::Text } else { Phase::Base64 };
            self.at = 0;
        }
        if self.at == 0 {
            out.extend_from_slice(b",\"payload\":\"");
        }
        let mut cursor = messages.body_cursor(self.message, self.at);
        let mut bytes = [0; PIECE_BYTES];
        while self.at < self.end {
            if out.len() >= enough && self.at > 0 {
                return false;
            }
            let piece = &mut bytes[..(self.end - self.at).min(PIECE_BYTES as u32) as usize];
            messages.read(self.message, &mut cursor, piece);
            match self.phase {
                Phase::Text => Json::new(out, usize::MAX).text_part(piece),
                _ => out.extend_from_slice(BASE64.encode(&*piece).as_bytes()),
            }
            self.at += piece.len() as u32;
        }
        out.extend_from_slice(match self.phase {
            Phase::Text => b"\",\"payload_encoding\":\"string\"}",
            _ => b"\",\"payload_encoding\":\"base64\"}",
        });
        true
    }
}

/// Examines the next part of a payload. Returns `None` while it is not known whether it is text.
fn check(
    messages: &Messages,
    message: MessageId,
    at: &mut u32,
    end: u32,
    begun: &mut heapless::Vec<u8, 3>,
) -> Option<bool> {
    let mut cursor = messages.body_cursor(message, *at);
    let stop = end.min(*at + CHECKED_BYTES);
    let mut piece = [0; PIECE_BYTES];
    while *at < stop {
        let held = begun.len();
        piece[..held].copy_from_slice(begun);
        let take = ((stop - *at) as usize).min(PIECE_BYTES - held);
        messages.read(message, &mut cursor, &mut piece[held..held + take]);
        *at += take as u32;
        begun.clear();
        match core::str::from_utf8(&piece[..held + take]) {
            Ok(_) => {}
            Err(error) if error.error_len().is_none() => {
                // An incomplete character at the end has at most three bytes.
                *begun = heapless::Vec::from_slice(&piece[error.valid_up_to()..held + take]).ok()?;
            }
            Err(_) => return Some(false),
        }
    }
    (*at == end).then_some(begun.is_empty())
}
