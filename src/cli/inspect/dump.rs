//! Prints every record as a line of `name=value` words, for `grep`; writes properties of messages as JSON.
//!
//! Data from clients is escaped, so that a record is one line. Bodies are truncated, so that lines are short.

use std::fmt::{self, Write as _};
use std::io::{self, Write};

use leveret_amqp::field::{Array, Table, Value};
use leveret_amqp::props::Properties;
use leveret_core::definition::Definition;
use leveret_management::json::Json;
use leveret_storage::{Body, Disk, FoundRecord, Log, Message, Record, Targets};

use super::names::{Defined, Quoted};
use crate::json::Object;

/// Maximum number of bytes of a body or a definition that are shown.
const SHOWN_BYTES_MAX: usize = 48;
/// Maximum number of targets or ranges that are shown.
const SHOWN_PARTS_MAX: usize = 8;

/// Writes a line for each record of readable commits.
pub(super) fn write<D: Disk>(out: &mut dyn Write, log: &Log, disk: &mut D) -> io::Result<()> {
    log.for_each_record(disk, |found| writeln!(out, "{}", RecordLine { found, log })).map(|_| ())
}

/// A record, formatted as a line.
struct RecordLine<'a> {
    found: &'a FoundRecord<'a>,
    log: &'a Log,
}

impl fmt::Display for RecordLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let FoundRecord { place, commit, epoch, is_of_damaged_commit, record } = self.found;
        write!(f, "record segment={} at={} bytes={}", place.segment, place.at, place.bytes)?;
        write!(f, " commit={commit} epoch={epoch}")?;
        if *is_of_damaged_commit {
            f.write_str(" commit_damaged")?;
        }
        match record {
            Record::Message(message) => self.message(f, message),
            Record::Chunk { body, index, bytes } => {
                write!(f, " chunk body={body} index={index} data={} {}", bytes.len(), Cut(bytes))
            }
            Record::Settled { queue, ranges } => {
                write!(f, " settled queue={queue} offsets=")?;
                let shown = ranges.iter().map(|range| match range.end - range.start {
                    1 => range.start.to_string(),
                    _ => format!("{}-{}", range.start, range.end - 1),
                });
                parts(f, shown)
            }
            Record::Gone { queue } => write!(f, " gone queue={queue}"),
            Record::Defined { version, key, value: Some(value) } => {
                if let Some(definition) = Definition::parse(key, value) {
                    return write!(f, " defined version={version} {}", Defined(definition));
                }
                let (key, shown) = (Quoted(key), Cut(value));
                write!(f, " defined version={version} key={key} value={} {shown}", value.len())
            }
            Record::Defined { version, key, value: None } => {
                write!(f, " undefined version={version} key={}", Quoted(key))
            }
            Record::DeliveredWatermark { queue, offset } => {
                write!(f, " marked queue={queue} delivered_below={offset}")
            }
            Record::WatermarkReset { queue, offset, watermark } => {
                write!(f, " rested queue={queue} delivered_below={offset} watermark={watermark}")
            }
            Record::SegmentRemoved { segment } => write!(f, " left segment={segment}"),
            Record::Optional { kind, payload } => write!(f, " kind={kind} bytes={}", payload.len()),
        }
    }
}

impl RecordLine<'_> {
    fn message(&self, f: &mut fmt::Formatter<'_>, message: &Message<'_>) -> fmt::Result {
        write!(f, " message live={}/{} to=", self.live(message.targets), message.targets.len())?;
        let shown = message.targets.iter().map(|target| format!("{}:{}", target.queue, target.offset));
        parts(f, shown)?;
        let (exchange, key) = (Quoted(message.exchange), Quoted(message.key));
        write!(f, " exchange={exchange} key={key} enqueued_ms={}", message.enqueued_ms)?;
        if let Some(expiration) = message.expiration_ms {
            write!(f, " expiration_ms={expiration}")?;
        }
        write!(f, " properties={}", message.properties.len())?;
        match message.body {
            Body::Inline(body) => write!(f, " body={} {}", body.len(), Cut(body)),
            Body::Chunked { body, chunks, bytes } => {
                write!(f, " body={bytes} in={body} chunks={chunks}")
            }
        }
    }

    /// Returns how many queues still have the message and read it from this segment.
    fn live(&self, targets: Targets<'_>) -> usize {
        let segment = self.found.place.segment;
        targets.iter().filter(|target| self.log.is_live_in(target, segment)).count()
    }
}

/// Writes the first parts, and how many more there are.
fn parts(f: &mut fmt::Formatter<'_>, mut all: impl Iterator<Item = String>) -> fmt::Result {
    for (at, part) in all.by_ref().take(SHOWN_PARTS_MAX).enumerate() {
        if at > 0 {
            f.write_char(',')?;
        }
        f.write_str(&part)?;
    }
    match all.count() {
        0 => Ok(()),
        more => write!(f, ",+{more}"),
    }
}

/// The start of some bytes, escaped.
struct Cut<'a>(&'a [u8]);

impl fmt::Display for Cut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.len() <= SHOWN_BYTES_MAX {
            return Quoted(self.0).fmt(f);
        }
        // Text is truncated only between characters.
        let mut end = SHOWN_BYTES_MAX;
        while end > SHOWN_BYTES_MAX - 3 && self.0[end] & 0xc0 == 0x80 {
            end -= 1;
        }
        write!(f, "{}...", Quoted(&self.0[..end]))
    }
}

/// Writes `properties` with the names of RabbitMQ's management API. JSON has fewer types than a header table;
/// if something is lost, also writes `properties_base64`, from which the original can be restored.
pub(super) fn write_properties(object: &mut Object<'_, '_>, bytes: &[u8]) {
    let parsed = Properties::parse(bytes);
    if let Ok(properties) = parsed {
        write_decoded(object.field("properties"), &properties);
    }
    if parsed.map_or(true, |properties| properties.has_headers()) {
        object.base64("properties_base64", bytes);
    }
}

fn write_decoded(json: &mut Json<'_>, properties: &Properties<'_>) {
    let mut object = Object::open(json);
    let texts = [
        ("content_type", properties.content_type()),
        ("content_encoding", properties.content_encoding()),
        ("correlation_id", properties.correlation_id()),
        ("reply_to", properties.reply_to()),
        ("expiration", properties.expiration()),
        ("message_id", properties.message_id()),
        ("type", properties.kind()),
        ("user_id", properties.user_id()),
        ("app_id", properties.app_id()),
        ("cluster_id", properties.cluster_id()),
    ];
    let numbers = [
        ("delivery_mode", properties.delivery_mode().map(u64::from)),
        ("priority", properties.priority().map(u64::from)),
        ("timestamp", properties.timestamp()),
    ];
    for (name, octets) in texts {
        if let Some(octets) = octets {
            object.bytes(name, octets);
        }
    }
    for (name, number) in numbers {
        if let Some(number) = number {
            object.number(name, number);
        }
    }
    if let Some(headers) = properties.headers() {
        write_table(object.field("headers"), headers);
    }
    object.close();
}

/// The table was checked, so nesting is bounded.
fn write_table(json: &mut Json<'_>, table: Table<'_>) {
    let mut object = Object::open(json);
    for (name, value) in table {
        write_value(object.field(&String::from_utf8_lossy(name)), value);
    }
    object.close();
}

fn write_array(json: &mut Json<'_>, array: Array<'_>) {
    json.raw(b"[");
    let mut is_first = true;
    for value in array.iter() {
        json.comma(&mut is_first);
        write_value(json, value);
    }
    json.raw(b"]");
}

fn write_value(json: &mut Json<'_>, value: Value<'_>) {
    match value {
        Value::LongStr(octets) | Value::Binary(octets) => match std::str::from_utf8(octets) {
            Ok(text) => json.text(text),
            Err(_) => {
                let mut object = Object::open(json);
                object.base64("base64", octets);
                object.close();
            }
        },
        Value::Timestamp(seconds) => json.number(seconds),
        // The number is finite, because a table with other values is refused.
        Value::Float(number) => json.shown_raw(format_args!("{number:?}")),
        Value::Double(number) => json.shown_raw(format_args!("{number:?}")),
        Value::Decimal { scale, value } => json.shown_raw(format_args!("{value}e-{scale}")),
        Value::Bool(truth) => json.truth(truth),
        Value::Table(table) => write_table(json, table),
        Value::Array(array) => write_array(json, array),
        other => match other.as_integer() {
            Some(number) => json.number(number),
            None => json.raw(b"null"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_cut_and_escaped() {
        assert_eq!(Cut(b"a\n\"\x1b[1m").to_string(), r#""a\n\"\u{1b}[1m""#);
        assert_eq!(Cut(b"\xff\0").to_string(), r#""\xff\x00""#);
        assert_eq!(Cut("é".repeat(30).as_bytes()).to_string(), format!("\"{}\"...", "é".repeat(24)));
        let odd = format!("x{}", "é".repeat(30));
        assert_eq!(Cut(odd.as_bytes()).to_string(), format!("\"x{}\"...", "é".repeat(23)));
    }
}

#[cfg(test)]
mod props_tests {
    use super::*;

    fn written(bytes: &[u8]) -> String {
        let mut out = Vec::new();
        crate::json::write_to(&mut out, |json| {
            let mut object = Object::open(json);
            write_properties(&mut object, bytes);
            object.close();
        })
        .unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn properties_have_the_names_of_the_management_api() {
        assert_eq!(written(&[0, 0]), r#"{"properties":{}}"#);
        let bytes = b"\x98\xc0\x0atext/plain\x02\x05\x02id\0\0\0\0\0\0\0\x09";
        let shown = written(bytes);
        assert_eq!(
            shown,
            "{\"properties\":{\"content_type\":\"text/plain\",\"message_id\":\"id\",\
             \"delivery_mode\":2,\"priority\":5,\"timestamp\":9}}"
        );
    }

    #[test]
    fn headers_are_shown_and_kept() {
        let table =
            b"\x01aI\xff\xff\xff\xfe\x01bS\0\0\0\x01\xff\x01cD\x02\0\0\x01\x3a\x01dV\x01eA\0\0\0\x02t\x01";
        let mut bytes = b"\x20\0".to_vec();
        bytes.extend_from_slice(&(table.len() as u32).to_be_bytes());
        bytes.extend_from_slice(table);
        assert!(Properties::parse(&bytes).is_ok(), "{:?}", Properties::parse(&bytes));
        let shown = written(&bytes);
        let headers = r#"{"a":-2,"b":{"base64":"/w=="},"c":314e-2,"d":null,"e":[true]}"#;
        assert!(shown.starts_with(&format!("{{\"properties\":{{\"headers\":{headers}}}")), "{shown}");
        assert!(shown.contains("\"properties_base64\":\"IAAAAA"), "{shown}");
    }

    #[test]
    fn what_is_no_properties_is_kept_as_it_is() {
        assert_eq!(written(b"\x80\0\x09no"), r#"{"properties_base64":"gAAJbm8="}"#);
    }
}
