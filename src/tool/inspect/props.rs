//! Properties as JSON, under the names that RabbitMQ's management API gives them.
//!
//! Always true: nothing is lost. JSON has fewer types than a header table, and only text; so beside the
//! decoded headers stand the octets as they were published, from which the message can be made again.

use std::io::{self, Write};

use super::json::{self, Object};
use crate::wire::field::{Array, Table, Value};
use crate::wire::props::Properties;

/// Writes `properties`, and `properties_base64` where the first does not tell all.
pub(super) fn write(object: &mut Object<'_>, bytes: &[u8]) -> io::Result<()> {
    let parsed = Properties::parse(bytes);
    if let Ok(properties) = parsed {
        write_decoded(object.field("properties")?, &properties)?;
    }
    if parsed.map_or(true, |properties| properties.has_headers()) {
        object.base64("properties_base64", bytes)?;
    }
    Ok(())
}

fn write_decoded(out: &mut dyn Write, properties: &Properties<'_>) -> io::Result<()> {
    let mut object = Object::open(out)?;
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
        octets.map_or(Ok(()), |octets| object.bytes(name, octets))?;
    }
    for (name, number) in numbers {
        number.map_or(Ok(()), |number| object.number(name, number))?;
    }
    if let Some(headers) = properties.headers() {
        write_table(object.field("headers")?, headers)?;
    }
    object.close()
}

/// Nesting is bounded, for the table was checked.
fn write_table(out: &mut dyn Write, table: Table<'_>) -> io::Result<()> {
    let mut object = Object::open(out)?;
    for (name, value) in table {
        write_value(object.field(&String::from_utf8_lossy(name))?, value)?;
    }
    object.close()
}

fn write_array(out: &mut dyn Write, array: Array<'_>) -> io::Result<()> {
    out.write_all(b"[")?;
    for (at, value) in array.iter().enumerate() {
        if at > 0 {
            out.write_all(b",")?;
        }
        write_value(out, value)?;
    }
    out.write_all(b"]")
}

fn write_value(out: &mut dyn Write, value: Value<'_>) -> io::Result<()> {
    if let Some(number) = value.as_integer() {
        return write!(out, "{number}");
    }
    match value {
        Value::LongStr(octets) | Value::Binary(octets) => match std::str::from_utf8(octets) {
            Ok(text) => json::text(out, text),
            Err(_) => {
                let mut object = Object::open(out)?;
                object.base64("base64", octets)?;
                object.close()
            }
        },
        Value::Timestamp(seconds) => write!(out, "{seconds}"),
        // Finite, or the table would not have been taken.
        Value::Float(number) => write!(out, "{number:?}"),
        Value::Double(number) => write!(out, "{number:?}"),
        Value::Decimal { scale, value } => write!(out, "{value}e-{scale}"),
        Value::Bool(truth) => write!(out, "{truth}"),
        Value::Table(table) => write_table(out, table),
        Value::Array(array) => write_array(out, array),
        _ => out.write_all(b"null"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(bytes: &[u8]) -> String {
        let mut out = Vec::new();
        let mut object = Object::open(&mut out).unwrap();
        write(&mut object, bytes).unwrap();
        object.close().unwrap();
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
