//! Moves messages of a queue, and shows the route of a message.
//!
//! ```text
//! POST /api/leveret/queues/V/Q/messages/move
//! {"ids":["…"],"to":{"queue":"name"},"copy":false}          ids as browsing shows them
//! {"count":50,"to":{"exchange":"name","routing_key":"key"}} the first messages; without a key each keeps its own
//! → {"moved":N,"gone":M}                                    gone: no longer ready in the queue
//!
//! POST /api/leveret/exchanges/V/X/route
//! {"routing_key":"a.b","headers":{}}
//! → {"queues":["name",…],"exchanges":["name",…],"queue_count":N,"exchange_count":M}
//! ```
//!
//! # Invariants
//! - A request moves all its messages that are still ready, or none.
//! - A request that waits for the disk holds only the messages that were read for it.

use leveret_amqp::field::Table;
use leveret_broker::Broker;
use leveret_broker::{MoveOutcome, MoveRequest, MoveTarget, QueueRef, ShownRoute};
use leveret_core::error::{Fault, ReplyCode};
use leveret_json::{Fields, Value, items};
use leveret_queues::{BROWSED_MAX, Browsed, BrowsedMessage, LogRun, MessageKey};

use super::actions::fields;
use super::definitions::table_of;
use super::http::Status;
use super::json::Json;
use super::management::nested;
use super::publishing::NAMES_TOO_LONG;
use super::request::RequestContext;
use super::request::{Answer, Answered, Call, bad, bad_request, body, default_named, not_found, refusal};

/// A request whose messages are being read from the disk.
#[derive(Debug)]
pub struct PendingMove {
    order: MoveOrder,
    /// The number of the read in progress, and its run.
    reading: Option<(u64, LogRun)>,
    /// The messages that were read.
    read: Vec<BrowsedMessage>,
}

/// A parsed request to move messages.
#[derive(Debug)]
struct MoveOrder {
    user: Box<str>,
    vhost: Box<str>,
    queue: Box<str>,
    target: Target,
    is_copy: bool,
    keys: Vec<MessageKey>,
}

/// Where messages are moved to.
#[derive(Debug)]
enum Target {
    Queue(String),
    Exchange(String, Option<String>),
}

/// Which messages are moved.
enum Selection {
    Keys(Vec<MessageKey>),
    First(u32),
}

/// Moves or copies selected messages of a queue, or its first ones.
pub(super) fn move_messages(call: &Call<'_>, context: &mut RequestContext<'_>) -> Answered {
    let user = call.user.ok_or_else(|| not_found("Not Found"))?;
    let (vhost, queue) = (call.name("vhost"), call.name("queue"));
    let mut fields = fields(call.request)?;
    let target = target(&fields.value("to"))?;
    let is_copy = match fields.value("copy") {
        Value::Null => false,
        Value::Bool(is_copy) => is_copy,
        other => return Err(bad_request(&format!("`copy` must be true or false, not {other}"))),
    };
    let keys = match selection(&mut fields)? {
        Selection::Keys(keys) => keys,
        Selection::First(count) => {
            let (broker, mut context) = context.broker();
            let keys =
                broker.first_message_keys(&mut context, &user.name, QueueRef { vhost, name: queue }, count);
            keys.map_err(|fault| refusal(&fault))?
        }
    };
    let (user, vhost, queue) = (user.name.as_str().into(), vhost.into(), queue.into());
    let order = MoveOrder { user, vhost, queue, target, is_copy, keys };
    let mut pending = PendingMove { order, reading: None, read: Vec::new() };
    Ok(pending.step(context).unwrap_or_else(|| Answer::Move(Box::new(pending))))
}

/// Reads where messages are moved to.
fn target(to: &Value<'_>) -> Result<Target, Answer> {
    if to.is_null() {
        return Err(bad_request("missing field `to`"));
    }
    let mut to = Fields::of(to).map_err(bad)?;
    let mut text = |name| to.text_if_said(name).map_err(bad);
    let (queue, exchange, key) = (text("queue")?, text("exchange")?, text("routing_key")?);
    let texts = [&queue, &exchange, &key];
    if texts.into_iter().flatten().any(|text| text.len() > 255) {
        return Err(bad_request(NAMES_TOO_LONG));
    }
    match (queue, exchange) {
        (Some(queue), None) => Ok(Target::Queue(queue)),
        (None, Some(exchange)) => Ok(Target::Exchange(default_named(&exchange).to_string(), key)),
        _ => Err(bad_request("`to` must have either `queue` or `exchange`")),
    }
}

/// Reads which messages are moved.
fn selection(fields: &mut Fields<'_>) -> Result<Selection, Answer> {
    let too_many = || bad_request(&format!("at most {BROWSED_MAX} messages can be moved at once"));
    match (fields.value("ids"), fields.value("count")) {
        (Value::Array(list), Value::Null) => {
            let mut keys = Vec::new();
            for id in items(list) {
                let key = match id.map_err(bad)? {
                    Value::String(text) => text.parse::<MessageKey>().ok(),
                    _ => None,
                };
                keys.push(key.ok_or_else(|| bad_request("`ids` must be ids of browsed messages"))?);
                if keys.len() > BROWSED_MAX as usize {
                    return Err(too_many());
                }
            }
            keys.sort_unstable();
            keys.dedup();
            Ok(Selection::Keys(keys))
        }
        (Value::Null, count) => match count.as_u64() {
            Some(count) if count > u64::from(BROWSED_MAX) => Err(too_many()),
            Some(count) => Ok(Selection::First(count as u32)),
            None => Err(bad_request("`ids` must be a list of texts, or `count` a whole number")),
        },
        _ => Err(bad_request("give either `ids` as a list or `count`")),
    }
}

impl PendingMove {
    /// Returns whether no read is in progress.
    pub(super) fn is_done(&self, broker: &Broker) -> bool {
        self.reading.is_none_or(|(number, _)| broker.queues().browses().is_done(number))
    }

    /// Moves the messages, or requests the next of them from the log and returns `None`.
    pub(super) fn step(&mut self, context: &mut RequestContext<'_>) -> Option<Answer> {
        let done = self.try_step(context);
        if !matches!(done, Ok(None)) {
            for browsed in self.read.drain(..) {
                context.messages.release(browsed.message);
            }
        }
        done.unwrap_or_else(|fault| Some(refusal(&fault)))
    }

    fn try_step(&mut self, context: &mut RequestContext<'_>) -> Result<Option<Answer>, Fault> {
        let last = self.reading.take();
        let (broker, mut context) = context.broker();
        if let Some((number, _)) = last {
            self.read.extend(broker.queues_mut().browses_mut().take(context.messages, number));
        }
        let order = &self.order;
        let target = match &order.target {
            Target::Queue(queue) => MoveTarget::Queue(queue),
            Target::Exchange(exchange, key) => {
                MoveTarget::Exchange(exchange, key.as_ref().map(String::as_bytes))
            }
        };
        let request = MoveRequest {
            user: &order.user,
            vhost: &order.vhost,
            queue: &order.queue,
            target,
            is_copy: order.is_copy,
        };
        match broker.move_messages(&mut context, &request, &order.keys, &self.read)? {
            MoveOutcome::Moved(moved) => {
                let gone = order.keys.len() as u64 - u64::from(moved);
                let answer = body(|json| nested(json, &[("moved", moved.into()), ("gone", gone)]));
                Ok(Some(Answer::Durable(context.awaited, Status::Ok, answer)))
            }
            MoveOutcome::Read(run) if last.is_some_and(|(_, last)| last == run) => {
                let why = format_args!("no memory now to read these messages back, or they cannot be read");
                Err(Fault::new(ReplyCode::ResourceError, why))
            }
            MoveOutcome::Read(run) => {
                let number = broker.queues_mut().browses_mut().want(context.messages, &[Browsed::InLog(run)]);
                self.reading = Some((number, run));
                Ok(None)
            }
        }
    }

    /// Ends the request, because the client disconnected.
    pub(super) fn abandon(self, broker: &mut Broker, context: &mut leveret_broker::Context<'_>) {
        let reading =
            self.reading.map(|(number, _)| broker.queues_mut().browses_mut().take(context.messages, number));
        for browsed in self.read.into_iter().chain(reading.into_iter().flatten()) {
            context.messages.release(browsed.message);
        }
    }
}

/// The bytes of an answer that are kept free for the counts, and for one name.
const COUNTS_BYTES: usize = 2 << 10;

/// Shows which queues a message would reach, and which exchanges it would pass.
pub(super) fn route(call: &Call<'_>, context: &mut RequestContext<'_>) -> Answered {
    let (vhost, exchange) = (call.name("vhost"), default_named(call.name("exchange")));
    let mut fields = fields(call.request)?;
    let key = fields.text_if_said("routing_key").map_err(bad)?.unwrap_or_default();
    if key.len() > 255 {
        return Err(bad_request(NAMES_TOO_LONG));
    }
    let headers = table_of(&fields.value("headers")).map_err(bad)?;
    let (broker, mut context) = context.broker();
    let route = broker.show_route(&mut context, vhost, exchange, key.as_bytes(), Table::trusted(&headers));
    let ShownRoute { queues, exchanges } = route.map_err(|fault| refusal(&fault))?;
    let answer = body(|json| {
        let names_bytes = json.room_bytes().saturating_sub(COUNTS_BYTES) / 2;
        json.raw(b"{\"queues\":");
        put_names(json, &queues, names_bytes);
        json.raw(b",\"exchanges\":");
        put_names(json, &exchanges, names_bytes);
        let counts = [("queue_count", queues.len() as u64), ("exchange_count", exchanges.len() as u64)];
        super::management::numbers(json, &mut false, &counts);
        json.raw(b"}");
    });
    Ok(Answer::Now(Status::Ok, answer))
}

/// Writes a list of names, as many as fit into this many bytes.
fn put_names(json: &mut Json<'_>, names: &[Box<str>], bytes_max: usize) {
    let end = json.room_bytes().saturating_sub(bytes_max);
    let mut is_first = true;
    json.raw(b"[");
    for name in names {
        // Each byte may be an escape of six.
        if json.room_bytes() < end + 6 * name.len() + 3 {
            break;
        }
        json.comma(&mut is_first);
        json.text(name);
    }
    json.raw(b"]");
}
