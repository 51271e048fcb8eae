//! A message as JSON, written piece by piece: it may be larger than all that may wait for a client.
//!
//! Always true: a step looks at no more than [`CHECKED_BYTES`] of a payload and writes no more than it was
//! given room for; a payload is shown as text only where all that is shown of it is UTF-8.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use leveret_amqp::field::Value;
use leveret_amqp::props::{PROPERTIES, Properties};
use leveret_core::mem::{MessageId, Messages};

use super::json::{Json, Tables};

/// Bytes of a payload that one step looks at.
const CHECKED_BYTES: u32 = 64 << 10;
/// Bytes of a payload that are written at once: a multiple of three, for base64.
const PIECE_BYTES: usize = 1536;
/// Bytes of JSON that a message without its payload takes at most; with more, its headers are left out.
pub(super) const HEAD_BYTES_MAX: usize = 20 << 10;

/// What is shown of each payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Payloads {
    /// In base64, whatever it is.
    pub(super) is_base64: bool,
    /// Bytes of it at most.
    pub(super) bytes_max: u32,
}

#[derive(Debug)]
enum Phase {
    /// Whether it is text is still to be seen; so many bytes of a letter have begun.
    Checking(heapless::Vec<u8, 3>),
    Text,
    Base64,
}

/// The payload of a message, as far as it is written.
#[derive(Debug)]
pub(super) struct ShownPayload {
    message: MessageId,
    at: u32,
    end: u32,
    phase: Phase,
}

/// Writes what stands before a payload, beginning with `{` and ending behind a member.
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

/// RabbitMQ shows a list where there is none.
fn put_properties(json: &mut Json<'_>, properties: Properties<'_>, how: Tables) {
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

impl ShownPayload {
    /// Nothing of it is written yet; it holds the message until [`Self::write`] is done, or it is released.
    pub(super) fn new(messages: &mut Messages, message: MessageId, payloads: Payloads) -> Self {
        messages.retain(message);
        let end = messages.body_len(message).min(payloads.bytes_max);
        let phase = if payloads.is_base64 { Phase::Base64 } else { Phase::Checking(heapless::Vec::new()) };
        Self { message, at: 0, end, phase }
    }

    /// Lets go of the message.
    pub(super) fn release(self, messages: &mut Messages) {
        messages.release(self.message);
    }

    /// Writes some more, up to about `enough` in all; says whether that was all, the `}` behind it included.
    pub(super) fn write(&mut self, messages: &Messages, out: &mut Vec<u8>, enough: usize) -> bool {
        if let Phase::Checking(begun) = &mut self.phase {
            let is_text = check(messages, self.message, (&mut self.at, self.end), begun);
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
                Phase::Text => Json::new(out, usize::MAX).letters(piece),
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

/// Looks at some more of a payload; `None`: whether it is text is not known yet.
fn check(
    messages: &Messages,
    message: MessageId,
    (at, end): (&mut u32, u32),
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
                // Of a letter at the end some is still to come: three bytes at most.
                *begun = heapless::Vec::from_slice(&piece[error.valid_up_to()..held + take]).ok()?;
            }
            Err(_) => return Some(false),
        }
    }
    (*at == end).then_some(begun.is_empty())
}
