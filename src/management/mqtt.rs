//! MQTT sessions and retained messages: their columns, and the requests that show or delete one. RabbitMQ has no such
//! requests.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use leveret_broker::{Context, Objects, RetainedView, SessionView};
use leveret_core::error::Fault;
use leveret_core::topic::exchange_separators;

use super::columns::{Column, ListedKind};
use super::http::Status;
use super::json::{Json, Tables};
use super::listing::Audience;
use super::messages::put_properties;
use super::request::{
    Answer, Answered, Call, OUTPUT_BYTES_MAX, ReadContext, RequestContext, not_found, refused,
};

/// The lengths to which the payload of a retained message is shortened until the answer fits.
const PAYLOAD_BYTES_SHOWN: [usize; 3] = [32 << 10, 4 << 10, 0];

/// The most topic filters of a session that the list shows.
const TOPICS_SHOWN: usize = 100;
/// The length of the start of a retained payload that the list shows.
const PREVIEW_BYTES: usize = 64;

/// MQTT sessions.
#[derive(Debug)]
pub struct MqttSessions;

impl ListedKind for MqttSessions {
    type View<'a> = SessionView<'a>;

    const ORDER: &'static str = "vhost,client_id";
    const AUDIENCE: Audience = Audience::MembersAndMonitors;
    const HAS_PAGES: bool = true;
    const COLUMNS: &'static [Column<Self>] = &[
        ("client_id", |session, writer| writer.json.text(session.client_id)),
        ("vhost", |session, writer| writer.json.text(session.vhost)),
        ("user", |session, writer| writer.json.text(session.user.unwrap_or_default())),
        ("connection", |session, writer| writer.connection(session.connection)),
        ("state", |session, writer| {
            writer.json.text(if session.connection.is_some() { "connected" } else { "disconnected" });
        }),
        ("expiry", |session, writer| writer.json.number(session.expiry_s)),
        ("queue", |session, writer| writer.json.text(session.queue.unwrap_or_default())),
        ("subscriptions", |session, writer| writer.json.number(session.subscriptions)),
        ("messages_ready", |session, writer| writer.json.number(session.messages_ready)),
        ("messages_unacknowledged", |session, writer| writer.json.number(session.messages_unacknowledged)),
        ("messages_unreleased", |session, writer| writer.json.number(session.messages_unreleased)),
        ("messages_dropped", |session, writer| writer.json.number(session.messages_dropped)),
        ("has_will", |session, writer| writer.json.truth(session.has_will)),
        // Seconds since the client was last connected, or since the start of the broker. A board may have no clock.
        ("last_seen", |session, writer| {
            let seen_ms = if session.connection.is_some() { writer.context.time_ms } else { session.seen_ms };
            writer.json.number(writer.context.time_ms.saturating_sub(seen_ms) / 1_000);
        }),
        ("topics", |session, writer| {
            let topics = writer.context.broker.views().session_topics(session);
            writer.json.texts(topics.take(TOPICS_SHOWN));
        }),
    ];

    fn name(view: &Self::View<'_>) -> Option<String> {
        Some(view.client_id.to_string())
    }

    fn objects<'c>(context: ReadContext<'c>) -> impl Objects<Self::View<'c>> {
        context.broker.views().sessions()
    }

    fn vhost<'a>(view: &Self::View<'a>) -> Option<&'a str> {
        Some(view.vhost)
    }

    fn user<'a>(view: &Self::View<'a>) -> Option<&'a str> {
        view.user
    }
}

/// Retained messages of MQTT. The list does not show their payloads.
#[derive(Debug)]
pub struct RetainedMessages;

impl ListedKind for RetainedMessages {
    type View<'a> = RetainedView<'a>;

    const ORDER: &'static str = "vhost,topic";
    const HAS_PAGES: bool = true;
    const COLUMNS: &'static [Column<Self>] = &[
        ("topic", |message, writer| writer.json.text(&message.topic())),
        ("vhost", |message, writer| writer.json.text(message.vhost)),
        ("routing_key", |message, writer| writer.json.text(message.routing_key)),
        ("qos", |message, writer| writer.json.number(message.qos)),
        ("payload_bytes", |message, writer| writer.json.number(message.payload_bytes)),
        ("in_memory", |message, writer| writer.json.truth(message.content.is_some())),
        ("expires", |message, writer| writer.json.truth(message.has_expiry)),
        // Seconds since it was published, or since the start of the broker.
        ("age", |message, writer| {
            writer.json.number(writer.context.time_ms.saturating_sub(message.arrived_ms) / 1_000);
        }),
        // As the whole payload, only administrators see its start, and only while it is in memory.
        ("preview", |message, writer| match (writer.viewer, message.content) {
            (None, Some((_, payload))) => writer.json.text(&preview(payload)),
            (Some(_), _) | (None, None) => writer.json.text(""),
        }),
    ];

    fn name(view: &Self::View<'_>) -> Option<String> {
        Some(view.topic().to_string())
    }

    fn objects<'c>(context: ReadContext<'c>) -> impl Objects<Self::View<'c>> {
        context.broker.views().retained()
    }

    fn vhost<'a>(view: &Self::View<'a>) -> Option<&'a str> {
        Some(view.vhost)
    }
}

/// Returns the start of a payload. Octets that are no text are shown as `\xNN`.
fn preview(payload: &[u8]) -> String {
    let mut text = String::new();
    let part = &payload[..payload.len().min(PREVIEW_BYTES)];
    for chunk in part.utf8_chunks() {
        text.push_str(chunk.valid());
        let is_cut =
            chunk.invalid().len() < 4 && part.ends_with(chunk.invalid()) && part.len() < payload.len();
        if !is_cut {
            chunk.invalid().iter().for_each(|octet| text.push_str(&format!("\\x{octet:02x}")));
        }
    }
    if part.len() < payload.len() {
        text.push('…');
    }
    text
}

/// Shows a retained message, with its properties and its payload if they are in memory. `payload_bytes` is the length of the whole payload. A
/// payload that does not fit into the answer is shortened.
pub(super) fn retained_message(call: &Call<'_>, context: &RequestContext<'_>) -> Answer {
    let (vhost, key) = (call.name("vhost"), exchange_separators(call.name("topic")));
    let context = context.context();
    let found = RetainedMessages::objects(context)
        .find(|message| message.vhost == vhost && key.as_deref() == Some(message.routing_key));
    let Some(message) = found else { return not_found("Not Found") };
    for (payload_bytes, tables) in PAYLOAD_BYTES_SHOWN
        .into_iter()
        .flat_map(|payload_bytes| [(payload_bytes, Tables::Plain), (payload_bytes, Tables::LeftOut)])
    {
        let mut out = Vec::new();
        let mut json = Json::new(&mut out, OUTPUT_BYTES_MAX);
        write_retained(&mut json, &message, tables, payload_bytes);
        if !json.is_full() {
            return Answer::Now(Status::Ok, out);
        }
    }
    not_found("Not Found")
}

fn write_retained(json: &mut Json<'_>, message: &RetainedView<'_>, tables: Tables, payload_bytes: usize) {
    let mut is_first = true;
    json.raw(b"{");
    let texts =
        [("topic", &*message.topic()), ("vhost", message.vhost), ("routing_key", message.routing_key)];
    for (name, text) in texts {
        json.name(name, &mut is_first);
        json.text(text);
    }
    for (name, number) in [("qos", u32::from(message.qos)), ("payload_bytes", message.payload_bytes)] {
        json.name(name, &mut is_first);
        json.number(number);
    }
    json.name("in_memory", &mut is_first);
    json.truth(message.content.is_some());
    let Some((properties, payload)) = message.content else {
        json.raw(b"}");
        return;
    };
    json.name("properties", &mut is_first);
    put_properties(json, properties, tables);
    let shown = &payload[..payload.len().min(payload_bytes)];
    // The last character of a payload that was shortened may be incomplete.
    let text = match core::str::from_utf8(shown) {
        Ok(text) => Some(text),
        Err(error) if error.error_len().is_none() && shown.len() < payload.len() => {
            core::str::from_utf8(&shown[..error.valid_up_to()]).ok()
        }
        Err(_) => None,
    };
    json.name("payload", &mut is_first);
    match text {
        Some(text) => json.text(text),
        None => json.text(&BASE64.encode(shown)),
    }
    json.name("payload_encoding", &mut is_first);
    json.text(if text.is_some() { "string" } else { "base64" });
    json.raw(b"}");
}

/// Ends a session, and disconnects its client.
pub(super) fn delete_session(call: &Call<'_>, context: &mut RequestContext<'_>) -> Answered {
    let (broker, mut context) = context.broker();
    let deleted = broker.operator_delete_session(&mut context, call.name("vhost"), call.name("client_id"));
    answer_deleted(&context, deleted)
}

/// Deletes the retained message of a topic.
pub(super) fn delete_retained(call: &Call<'_>, context: &mut RequestContext<'_>) -> Answered {
    let (broker, mut context) = context.broker();
    let deleted = broker.operator_delete_retained(&mut context, call.name("vhost"), call.name("topic"));
    answer_deleted(&context, deleted)
}

fn answer_deleted(context: &Context<'_>, deleted: Result<(), Fault>) -> Answered {
    deleted.map_err(|fault| refused(&fault))?;
    Ok(Answer::Durable(context.awaited, Status::NoContent, Vec::new()))
}
