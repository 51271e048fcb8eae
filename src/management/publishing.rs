//! Publishes a message for the management API, however long its payload is.
//!
//! [`Splitter`] divides the JSON object of the request, as it arrives, into the text of its `payload` and everything
//! else.
//!
//! # Invariants
//! - A long payload is kept in the message pool, and decoded one piece a step.
//! - A message is published for its user, over a connection that is closed afterwards.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use leveret_amqp::props::{PROPERTIES, Properties, PropertyKind};
use leveret_amqp::{Full, Writer};
use leveret_core::command::{ChannelCommand, PublishAnswer, PublishCommand};
use leveret_core::mem::{MessageId, MessageNames, Messages, PoolFull, Share};
use leveret_json::{Fields, Value};
use zeroize::Zeroizing;

use super::definitions::table_of;
use super::http::{REQUEST_BYTES_MAX, Status};
use super::request::RequestContext;
use super::request::{
    Answer, Answered, Upload, bad, bad_request, body, pool_full, problem, refusal, too_large,
};
use super::uploads::Spool;

/// The longest properties of a message, in bytes: the length limit of a request.
const PROPERTIES_BYTES_MAX: usize = 64 << 10;

/// Answers that a payload is longer than a message may be.
#[cold]
pub(super) fn payload_too_large(size_max: u32) -> Answer {
    too_large(&format!("the payload is longer than message_size_max ({size_max} bytes)"))
}

/// A publish in progress.
#[derive(Debug)]
pub(super) struct Publishing {
    user: String,
    vhost: String,
    exchange: String,
    share: Share,
    split: Splitter,
    /// The payload as the request has it, without JSON's escapes.
    payload: Spool,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Receiving,
    /// Decoding base64; the number of the next piece, and what the pieces before it left.
    Decoding(usize, MessageFields, Base64Decoder),
    /// Copying into the message; the number of the next piece.
    Copying(usize, MessageId),
}

impl Publishing {
    pub(super) fn new(user: &str, vhost: &str, exchange: &str, share: Share) -> Self {
        Self {
            user: user.into(),
            vhost: vhost.into(),
            exchange: exchange.into(),
            share,
            split: Splitter::new("payload", REQUEST_BYTES_MAX),
            payload: Spool::default(),
            stage: Stage::Receiving,
        }
    }

    /// Returns the length limit of the text of a payload of `size_max` bytes. Base64 has four characters for three bytes,
    /// and line ends after 64 of them or more.
    const fn text_bytes_max(size_max: u32) -> usize {
        size_max as usize / 2 * 3 + 4
    }

    /// Returns the length limit of a request for a payload of `size_max` bytes. Each byte may be an escape of six
    /// characters.
    pub(super) const fn request_bytes_max(size_max: u32) -> usize {
        (size_max as usize).saturating_mul(6).saturating_add(REQUEST_BYTES_MAX)
    }
}

impl Upload for Publishing {
    fn take(
        &mut self,
        mut bytes: &[u8],
        mut left: usize,
        context: &mut RequestContext<'_>,
    ) -> Result<(), Answer> {
        let size_max = context.process.message_size_max;
        while !bytes.is_empty() {
            let taken = self.split.take(bytes).map_err(bad)?;
            bytes = &bytes[taken.bytes..];
            if taken.begins {
                self.payload.release(context.messages);
            }
            if self.payload.len() + taken.text.len() > Self::text_bytes_max(size_max) {
                return Err(payload_too_large(size_max));
            }
            let text = taken.text.as_bytes();
            self.payload
                .push(context.messages, self.share, text, left.max(text.len()))
                .map_err(|_| pool_full())?;
            left -= taken.bytes;
        }
        Ok(())
    }

    fn bytes_max(&self, context: &RequestContext<'_>) -> usize {
        Self::request_bytes_max(context.process.message_size_max)
    }

    fn step(&mut self, context: &mut RequestContext<'_>) -> Result<Option<Answer>, Answer> {
        let size_max = context.process.message_size_max;
        match core::mem::replace(&mut self.stage, Stage::Receiving) {
            Stage::Receiving => {
                let fields = MessageFields::parse(self.split.rest().map_err(bad)?)?;
                let first = if fields.is_base64 { 0 } else { usize::MAX };
                self.stage = Stage::Decoding(first, fields, Base64Decoder::default());
            }
            Stage::Decoding(number, fields, mut decoder) if number < self.payload.pieces() => {
                let text = self.payload.piece(context.messages, number);
                let is_last = number + 1 == self.payload.pieces();
                let decoded = decoder.decode(&text, is_last)?;
                let replaced = self.payload.replace(context.messages, self.share, number, &decoded);
                replaced.map_err(|_| pool_full())?;
                self.stage = Stage::Decoding(number + 1, fields, decoder);
            }
            Stage::Decoding(_, fields, _) => {
                let len = u32::try_from(self.payload.len()).unwrap_or(u32::MAX);
                if len > size_max {
                    return Err(payload_too_large(size_max));
                }
                let (exchange, routing_key) = (&*self.exchange, fields.routing_key.as_bytes());
                let names = MessageNames { exchange, routing_key };
                let message = begin_message(context.messages, names, &fields.properties, len, self.share)
                    .map_err(|_| pool_full())?;
                self.stage = Stage::Copying(0, message);
            }
            Stage::Copying(number, message) if number < self.payload.pieces() => {
                self.stage = Stage::Copying(number + 1, message);
                let bytes = self.payload.piece(context.messages, number);
                context.messages.append_body(message, &bytes);
                self.payload.free(context.messages, number);
            }
            Stage::Copying(_, message) => {
                return publish_as(context, &self.user, &self.vhost, message).map(Some);
            }
        }
        Ok(None)
    }

    fn release(&mut self, messages: &mut Messages) {
        self.payload.release(messages);
        if let Stage::Copying(_, message) = core::mem::replace(&mut self.stage, Stage::Receiving) {
            messages.release(message);
        }
    }
}

/// Decodes base64 in pieces. White space is ignored, as in RabbitMQ: encoders break lines.
#[derive(Debug, Default)]
pub(super) struct Base64Decoder {
    /// Up to three characters that the pieces before left.
    rest: Vec<u8>,
    /// Whether padding was seen, which ends the text.
    is_ended: bool,
}

impl Base64Decoder {
    /// Decodes the next piece.
    ///
    /// # Errors
    /// The text is not valid base64.
    pub(super) fn decode(&mut self, text: &[u8], is_last: bool) -> Result<Zeroizing<Vec<u8>>, Answer> {
        let mut all = Zeroizing::new(core::mem::take(&mut self.rest));
        all.extend(text.iter().filter(|byte| !byte.is_ascii_whitespace()));
        let is_valid = !self.is_ended || all.is_empty();
        // A group of four, padding included, may cross the end of a piece.
        if !is_last {
            let whole_len = all.len() / 4 * 4;
            self.rest = all.split_off(whole_len);
        }
        self.is_ended |= all.contains(&b'=');
        let decoded = BASE64.decode(&*all).ok().filter(|_| is_valid);
        decoded.map(Zeroizing::new).ok_or_else(|| bad_request("the payload is not valid base64"))
    }
}

pub(super) const NAMES_TOO_LONG: &str = "the name of an exchange and a routing key have 255 bytes at most";

/// The fields of a request.
#[derive(Debug)]
pub(super) struct MessageFields {
    pub(super) properties: Vec<u8>,
    pub(super) routing_key: String,
    pub(super) payload: String,
    pub(super) is_base64: bool,
}

impl MessageFields {
    /// Parses the body of a request.
    ///
    /// # Errors
    /// The body is not a valid publish.
    pub(super) fn parse(body: &[u8]) -> Result<Self, Answer> {
        let mut fields =
            if body.is_empty() { Fields::default() } else { Fields::parse(body).map_err(bad)? };
        let properties = properties_of(&fields.value("properties"))?;
        let routing_key = fields.text("routing_key").map_err(bad)?;
        let payload = fields.text("payload").map_err(bad)?;
        let is_base64 = match fields.text("payload_encoding").map_err(bad)?.as_str() {
            "string" => false,
            "base64" => true,
            other => {
                return Err(bad_request(&format!("Unsupported encoding: {other}. Use string or base64.")));
            }
        };
        if routing_key.len() > 255 {
            return Err(bad_request(NAMES_TOO_LONG));
        }
        Ok(Self { properties, routing_key, payload, is_base64 })
    }
}

/// Begins a message to which a body of `len` bytes is to be appended.
///
/// # Errors
/// The pool is full.
pub(super) fn begin_message(
    messages: &mut Messages,
    names: MessageNames<'_>,
    properties: &[u8],
    len: u32,
    share: Share,
) -> Result<MessageId, PoolFull> {
    let MessageNames { exchange, routing_key } = names;
    let message = messages.begin(exchange, routing_key, share)?;
    let flags = Properties::trusted(properties).message_flags();
    if let Err(full) = messages.reserve_whole(message, properties, flags, len, share) {
        messages.release(message);
        return Err(full);
    }
    Ok(message)
}

/// Publishes a complete message for a user, over a connection that is closed afterwards.
///
/// # Errors
/// The message is refused with this answer.
pub(super) fn publish_as(
    context: &mut RequestContext<'_>,
    user: &str,
    vhost: &str,
    message: MessageId,
) -> Answered {
    let (broker, mut context) = context.broker();
    context.messages.finish(message);
    let (connection, channel) = match broker.connect_user(&mut context, user, vhost) {
        Ok(own) => own,
        Err(fault) => {
            context.messages.release(message);
            return Err(refusal(&fault));
        }
    };
    let publish = PublishCommand::Publish { message, mandatory: true };
    let answer = broker
        .apply_on_channel(&mut context, connection, channel, ChannelCommand::ConfirmSelect)
        .and_then(|_| broker.apply_on_channel(&mut context, connection, channel, publish));
    let batch = context.awaited;
    let published = match answer {
        Ok(PublishAnswer::Published) => {
            let is_returned = broker.has_returned(connection);
            if is_returned {
                broker.sent(&mut context, connection, 1);
            }
            Ok((!is_returned, batch))
        }
        Ok(PublishAnswer::PublishedNowhere | PublishAnswer::NotRetained { .. }) => Ok((false, batch)),
        Ok(PublishAnswer::Refused) => {
            Err(bad_request("rejected Unable to publish message. Check queue limits."))
        }
        Ok(PublishAnswer::Wait | PublishAnswer::NotPublished) => {
            context.messages.release(message);
            let why = "no message can be accepted now, because publishers are blocked; try again later";
            Err(Answer::Now(Status::Unavailable, problem("unavailable", why)))
        }
        Err(fault) => Err(bad_request(&format!("{} {}", fault.code.code(), fault.text))),
    };
    broker.release(&mut context, connection);
    let (is_routed, batch) = published?;
    let answer = body(|json| {
        json.raw(b"{\"routed\":");
        json.truth(is_routed);
        json.raw(b"}");
    });
    Ok(Answer::Durable(batch, Status::Ok, answer))
}

/// Reads the properties of a message from an object with their names. Unknown names are ignored, as in RabbitMQ.
fn properties_of(value: &Value<'_>) -> Result<Vec<u8>, Answer> {
    let mut fields = match value {
        // Some clients send an empty list instead of an empty object.
        Value::Array(_) if !value.holds_something() => return Ok(vec![0, 0]),
        Value::Null => return Err(bad_request("missing field `properties`")),
        value => Fields::of(value).map_err(bad)?,
    };
    let mut present = Vec::new();
    for (name, flag, kind) in PROPERTIES {
        match fields.value(name) {
            Value::Null => {}
            value => present.push((flag, kind, value, name)),
        }
    }
    let mut bytes = vec![0; PROPERTIES_BYTES_MAX];
    let mut writer = Writer::new(&mut bytes);
    let flags = present.iter().fold(0, |flags, (flag, ..)| flags | flag);
    writer.write_u16(flags).map_err(properties_too_large)?;
    for (_, kind, value, name) in present {
        let unfit = |wanted: &str| bad_request(&format!("property `{name}` must be {wanted}"));
        match (kind, value) {
            (PropertyKind::Text, Value::String(text)) if text.len() <= 255 => {
                writer.write_short_str(text.as_bytes())
            }
            (PropertyKind::Text, _) => return Err(unfit("a text of 255 bytes at most")),
            (PropertyKind::Headers, value) => {
                let table = table_of(&value).map_err(bad)?;
                writer.write_u32(table.len() as u32).and_then(|()| writer.write_raw(&table))
            }
            (PropertyKind::Octet, value) => {
                let octet = value.as_u64().and_then(|number| u8::try_from(number).ok());
                writer.write_u8(octet.ok_or_else(|| unfit("a number up to 255"))?)
            }
            (PropertyKind::Timestamp, value) => {
                writer.write_u64(value.as_u64().ok_or_else(|| unfit("a number of seconds"))?)
            }
        }
        .map_err(properties_too_large)?;
    }
    Ok(writer.written().to_vec())
}

fn properties_too_large(_: Full) -> Answer {
    bad_request("the properties are too large")
}

/// The result of [`Splitter::take`].
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// How many bytes were used. It is 0 only if there were none.
    pub(super) bytes: usize,
    /// The next part of the member's text.
    pub(super) text: String,
    /// Whether the member's text begins with these bytes. An earlier text is void: of two members with one name the
    /// last is valid.
    pub(super) begins: bool,
}

/// Divides a JSON object, as it arrives, into the text of one member and everything else.
///
/// # Invariants
/// - Everything else is bounded. The text of the member is handed on and not kept.
/// - The text is decoded by the parser of short requests, so both accept and refuse the same.
#[derive(Debug)]
pub(super) struct Splitter {
    member: &'static str,
    /// The object with an empty text for the member.
    rest: Vec<u8>,
    rest_bytes_max: usize,
    depth: usize,
    state: State,
    /// Where the text that was read last begins in `rest`.
    text_from: usize,
    /// Whether that text was the member's name, and whether the text before the last colon was.
    is_name: bool,
    is_value_next: bool,
    /// Bytes of an incomplete escape or character: at most eleven.
    carry: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    LoopCounters,
    /// In a text that stays in `rest`; the flag says whether the last byte was a backslash.
    InText {
        is_escaped: bool,
    },
    InMember,
}

impl Splitter {
    /// Divides an object that has at most `rest_bytes_max` bytes beside the member's text.
    pub(super) const fn new(member: &'static str, rest_bytes_max: usize) -> Self {
        Self {
            member,
            rest: Vec::new(),
            rest_bytes_max,
            depth: 0,
            state: State::LoopCounters,
            text_from: 0,
            is_name: false,
            is_value_next: false,
            carry: Vec::new(),
        }
    }

    /// Returns the object with an empty text for the member, once all of it was taken.
    ///
    /// # Errors
    /// The object ends within the member's text.
    pub(super) fn rest(&self) -> Result<&[u8], String> {
        if self.state == State::InMember {
            return Err(format!("the request ends within `{}`", self.member));
        }
        Ok(&self.rest)
    }

    /// Takes some of these bytes.
    ///
    /// # Errors
    /// The member's value is not a valid text, or the rest is too long.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<Taken, String> {
        if self.state == State::InMember {
            return self.take_text(bytes);
        }
        for (at, byte) in bytes.iter().enumerate() {
            if self.rest.len() >= self.rest_bytes_max {
                let (member, most) = (self.member, self.rest_bytes_max);
                return Err(format!("all of the request but `{member}` may have at most {most} bytes"));
            }
            self.rest.push(*byte);
            if self.outside(*byte) {
                self.rest.push(b'"');
                self.state = State::InMember;
                return Ok(Taken { bytes: at + 1, begins: true, ..Taken::default() });
            }
        }
        Ok(Taken { bytes: bytes.len(), ..Taken::default() })
    }

    /// Appends a byte to `rest`. Returns whether the member's text begins after it.
    fn outside(&mut self, byte: u8) -> bool {
        match (self.state, byte) {
            (State::InText { is_escaped: false }, b'"') => {
                let text = &self.rest[self.text_from..self.rest.len() - 1];
                self.is_name = self.depth == 1 && text == self.member.as_bytes();
                self.state = State::LoopCounters;
            }
            (State::InText { is_escaped }, byte) => {
                self.state = State::InText { is_escaped: !is_escaped && byte == b'\\' };
            }
            (_, b'"') if self.is_value_next => {
                (self.is_value_next, self.is_name) = (false, false);
                return true;
            }
            (_, b'"') => {
                (self.text_from, self.state) = (self.rest.len(), State::InText { is_escaped: false })
            }
            (_, b' ' | b'\t' | b'\r' | b'\n') => {}
            (_, b':') => self.is_value_next = core::mem::take(&mut self.is_name),
            (_, byte) => {
                (self.is_value_next, self.is_name) = (false, false);
                match byte {
                    b'{' | b'[' => self.depth += 1,
                    b'}' | b']' => self.depth = self.depth.saturating_sub(1),
                    _ => {}
                }
            }
        }
        false
    }

    fn take_text(&mut self, bytes: &[u8]) -> Result<Taken, String> {
        let carried = self.carry.len();
        let mut all = core::mem::take(&mut self.carry);
        all.extend_from_slice(bytes);
        let (mut end, is_closed) = text_end(&all);
        if let Err(error) = core::str::from_utf8(&all[..end])
            && error.error_len().is_none()
            && !is_closed
        {
            end = error.valid_up_to();
        }
        let text = core::str::from_utf8(&all[..end]).map_err(|error| error.to_string())?;
        let text: String = serde_json::from_str(&format!("\"{text}\"")).map_err(|error| error.to_string())?;
        if is_closed {
            self.state = State::LoopCounters;
            return Ok(Taken { bytes: end + 1 - carried, text, begins: false });
        }
        self.carry = all.split_off(end);
        Ok(Taken { bytes: bytes.len(), text, begins: false })
    }
}

/// Returns where a text ends, or where its first incomplete escape begins, and whether a quotation mark closes it.
fn text_end(text: &[u8]) -> (usize, bool) {
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        match byte {
            b'"' => return (at, true),
            b'\\' => {
                let rest = &text[at..];
                // The two halves of a surrogate pair stay together.
                let is_high_half =
                    matches!(rest, [_, b'u', b'd' | b'D', b'8' | b'9' | b'a' | b'b' | b'A' | b'B', ..]);
                let len = match rest {
                    [_, b'u', ..] if is_high_half && rest.get(6).is_none_or(|next| *next == b'\\') => 12,
                    [_, b'u', ..] => 6,
                    _ => 2,
                };
                if rest.len() < len {
                    return (at, false);
                }
                at += len;
            }
            _ => at += 1,
        }
    }
    (at, false)
}

#[cfg(test)]
mod split_tests {
    use super::*;

    /// Returns the member's text and the rest, fed in pieces of `piece` bytes.
    fn divided(object: &str, piece: usize) -> Result<(String, String), String> {
        let (mut splitter, mut text) = (Splitter::new("payload", 1000), String::new());
        for mut bytes in object.as_bytes().chunks(piece) {
            while !bytes.is_empty() {
                let taken = splitter.take(bytes)?;
                if taken.begins {
                    text.clear();
                }
                text += &taken.text;
                bytes = &bytes[taken.bytes..];
            }
        }
        Ok((text, String::from_utf8(splitter.rest()?.to_vec()).unwrap()))
    }

    #[test]
    fn the_member_text_equals_that_of_a_json_parser_however_it_is_split() {
        for object in [
            r#"{"a":"payload","payload" : "x\n\"\\\u00e9ä€𝄞\ud834\udd1e","b":{"payload":"in\"ner"},"c":["payload"]}"#,
            r#"{"payload":"first","payload":"","d":1}"#,
            r#"{"payload":null,"payload":"second \\"}"#,
            r#"{"\"payload":"no","payload":"yes"}"#,
        ] {
            let mut tree: serde_json::Value = object.parse().unwrap();
            for piece in 1..object.len() {
                let (text, rest) = divided(object, piece).unwrap();
                assert_eq!(text, tree["payload"].as_str().unwrap(), "{object} by {piece}");
                let rest: serde_json::Value = rest.parse().unwrap();
                let mut wanted = tree.clone();
                wanted["payload"] = "".into();
                assert_eq!(rest, wanted, "{object} by {piece}");
            }
            tree["payload"].take();
        }
        let without = r#"{"payload":[1,"payload"],"x":"payload"}"#;
        assert_eq!(divided(without, 3).unwrap(), (String::new(), without.to_string()));
    }

    #[test]
    fn invalid_texts_are_refused_however_they_are_split() {
        for object in [
            r#"{"payload":"\ud834"}"#,
            r#"{"payload":"\ud834\n"}"#,
            r#"{"payload":"\x"}"#,
            "{\"payload\":\"\n\"}",
            r#"{"payload":"ends"#,
        ] {
            for piece in 1..object.len() {
                assert!(divided(object, piece).is_err(), "{object} by {piece}");
            }
        }
        let mut splitter = Splitter::new("payload", 1000);
        splitter.take(b"{\"payload\":\"").unwrap();
        assert!(splitter.take(b"a\xff\"").is_err(), "no UTF-8");
        assert!(
            divided(&format!("{{\"x\":\"{}\"}}", "a".repeat(2000)), 100).unwrap_err().contains("1000 bytes")
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(text: &[u8], split: usize) -> Option<Vec<u8>> {
        let (mut decoder, (first, last)) = (Base64Decoder::default(), text.split_at(split));
        let mut bytes = decoder.decode(first, false).ok()?.to_vec();
        bytes.extend_from_slice(&decoder.decode(last, true).ok()?);
        Some(bytes)
    }

    #[test]
    fn base64_may_be_divided_anywhere() {
        for (text, wanted) in [
            ("QUJD\nREVG\r\nRw==\n", Some("ABCDEFG")),
            ("QUJD REVGR0g=", Some("ABCDEFGH")),
            (" Q U J D ", Some("ABC")),
            ("", Some("")),
            ("QQ==QUJD", None),
            ("QQ==\nQQ==", None),
            ("QUJ", None),
            ("QUJD=", None),
            ("QQ=", None),
            ("QU*D", None),
        ] {
            for split in 0..=text.len() {
                let found = decoded(text.as_bytes(), split);
                assert_eq!(found.as_deref(), wanted.map(str::as_bytes), "{text:?} at {split}");
            }
        }
    }
}
