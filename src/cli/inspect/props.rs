//! Properties as JSON, under the names that RabbitMQ's management API gives them.
//!
//! Always true: nothing is lost. JSON has fewer types than a header table, and only text; so beside the
//! decoded headers stand the octets as they were published, from which the message can be made again.

use crate::json::Object;
use leveret_amqp::field::{Array, Table, Value};
use leveret_amqp::props::Properties;
use leveret_management::json::Json;

/// Writes `properties`, and `properties_base64` where the first does not tell all.
pub(super) fn write(object: &mut Object<'_, '_>, bytes: &[u8]) {
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

/// Nesting is bounded, for the table was checked.
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
        // Finite, or the table would not have been taken.
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

    fn written(bytes: &[u8]) -> String {
        let mut out = Vec::new();
        crate::json::write_to(&mut out, |json| {
            let mut object = Object::open(json);
            write(&mut object, bytes);
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
