//! What a shovel's messages get besides a bridge's marks: RabbitMQ's headers of shovels, and properties that
//! were asked for.
//!
//! | header | what it says |
//! |--------|--------------|
//! | `x-shovelled` | an array of tables: by which shovels, from where to where; the last one first |
//! | `x-shovelled-timestamp` | when, in seconds since 1970 |
//!
//! Always true: what is not asked for stays octet by octet.

use leveret_amqp::props::{PROPERTIES, PropertyKind};
use leveret_amqp::{Full, Properties, Table, TableWriter, Value, Writer};
use leveret_config::shovel::{End, Property, Shovel};

const SHOVELLED: &str = "x-shovelled";
const TIMESTAMP: &str = "x-shovelled-timestamp";

/// Writes a message's properties as a shovel wants them; `way`: places in the shovel's two lists of addresses,
/// over which it goes; `scratch` is room for its headers.
///
/// # Errors
/// They do not fit.
pub fn shovelled(
    properties: Properties<'_>,
    shovel: &Shovel,
    (way, unix_s, by): ((usize, usize), u64, &str),
    scratch: &mut [u8],
    writer: &mut Writer<'_>,
) -> Result<(), Full> {
    let mut table = Writer::new(scratch);
    let has_more = shovel.adds_headers || shovel.adds_timestamp;
    if has_more {
        let headers = properties.headers().unwrap_or(Table::EMPTY);
        table.table(|table| write_headers(headers, shovel, (way, unix_s, by), table))?;
    }
    let headers = has_more.then(|| Table::trusted(table.written().get(4..).unwrap_or_default()));
    let has = |name: &str, flag, kind| {
        shovel.properties.contains_key(name)
            || (kind == PropertyKind::Headers && headers.is_some())
            || properties.by_flag(flag, kind).is_some()
    };
    let flags = PROPERTIES.iter().filter(|(name, flag, kind)| has(name, *flag, *kind));
    let start = writer.at();
    let mut write = || {
        writer.write_u16(flags.clone().fold(0, |all, (_, flag, _)| all | flag))?;
        for (name, flag, kind) in flags.clone() {
            let own = properties.by_flag(*flag, *kind);
            write_property(*kind, shovel.properties.get(*name), own, headers, writer)?;
        }
        Ok(())
    };
    let written: Result<(), Full> = write();
    if written.is_err() {
        writer.rewind(start);
    }
    written
}

/// Writes one property: what is wanted, or else its own.
fn write_property(
    kind: PropertyKind,
    wanted: Option<&Property>,
    own: Option<Value<'_>>,
    headers: Option<Table<'_>>,
    writer: &mut Writer<'_>,
) -> Result<(), Full> {
    let number = |own: Option<u64>| match wanted {
        Some(Property::Number(number)) => *number,
        _ => own.unwrap_or(0),
    };
    let integer = own.and_then(|own| own.as_integer()).and_then(|own| u64::try_from(own).ok());
    match kind {
        PropertyKind::Text => {
            let own = own.and_then(|own| own.as_bytes()).unwrap_or_default();
            writer.write_short_str(if let Some(Property::Text(text)) = wanted {
                text.as_bytes()
            } else {
                own
            })
        }
        PropertyKind::Headers => {
            let own = own.and_then(|own| own.as_table()).unwrap_or(Table::EMPTY);
            writer.write_table(headers.unwrap_or(own))
        }
        PropertyKind::Octet => writer.write_u8(number(integer).min(u8::MAX.into()) as u8),
        PropertyKind::Timestamp => match own {
            Some(Value::Timestamp(own)) => writer.write_u64(number(Some(own))),
            _ => writer.write_u64(number(None)),
        },
    }
}

fn write_headers(
    headers: Table<'_>,
    shovel: &Shovel,
    ((from, to), unix_s, by): ((usize, usize), u64, &str),
    table: &mut TableWriter<'_, '_>,
) -> Result<(), Full> {
    let before = headers.get(SHOVELLED).and_then(|value| value.as_array());
    for (name, value) in headers.iter() {
        let is_anew = name == SHOVELLED.as_bytes() && shovel.adds_headers
            || name == TIMESTAMP.as_bytes() && shovel.adds_timestamp;
        if !is_anew {
            table.value(name, value)?;
        }
    }
    if shovel.adds_headers {
        table.array(SHOVELLED, |array| {
            array.table(|table| {
                let said = [("shovelled-by", by), ("shovel-type", "dynamic")];
                said.iter().try_for_each(|(name, text)| table.text(name, text))?;
                table.text("shovel-name", &shovel.name)?;
                table.text("shovel-vhost", &shovel.vhost)?;
                write_end("src", &shovel.source, from, table)?;
                write_end("dest", &shovel.destination, to, table)
            })?;
            before.into_iter().flatten().try_for_each(|value| array.value(value))
        })?;
    }
    if shovel.adds_timestamp { table.long(TIMESTAMP, unix_s as i64) } else { Ok(()) }
}

fn write_end(which: &str, end: &End, uri: usize, table: &mut TableWriter<'_, '_>) -> Result<(), Full> {
    let parts = [
        ("uri", end.uris.get(uri).map(String::as_str)),
        ("exchange", end.exchange.as_deref()),
        ("exchange-key", end.key.as_deref()),
        ("queue", end.queue.as_deref()),
    ];
    let mut said = parts.iter().filter_map(|(name, text)| Some((name, (*text)?)));
    said.try_for_each(|(name, text)| table.text(&format!("{which}-{name}"), text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use leveret_config::shovel::DeleteAfter;

    fn shovel() -> Shovel {
        let end =
            |queue: &str| End { uris: vec!["amqp://".into()], queue: Some(queue.into()), ..End::default() };
        Shovel {
            name: "s".into(),
            vhost: "/".into(),
            source: end("a"),
            destination: end("b"),
            delete_after: DeleteAfter::Never,
            is_tried_once: false,
            adds_headers: true,
            adds_timestamp: true,
            properties: std::collections::BTreeMap::new(),
        }
    }

    fn written(properties: &[u8], shovel: &Shovel) -> Vec<u8> {
        let (mut scratch, mut out) = ([0; 1000], [0; 1000]);
        let mut writer = Writer::new(&mut out);
        let properties = Properties::parse(properties).expect("sound");
        shovelled(properties, shovel, ((0, 0), 77, "here"), &mut scratch, &mut writer).expect("it fits");
        let written = writer.written().to_vec();
        Properties::parse(&written).expect("what is written is sound");
        written
    }

    #[test]
    fn each_shovel_says_where_it_moved_a_message_the_last_one_first() {
        let once = written(b"\xb0\x00\x01t\x00\x00\x00\x0b\x01aL\0\0\0\0\0\0\0\x01\x02", &shovel());
        let twice = written(&once, &Shovel { name: "second".into(), ..shovel() });
        let headers = Properties::trusted(&twice).headers().expect("there are headers");
        let all = headers.get(SHOVELLED).and_then(|value| value.as_array()).expect("an array");
        let tables: Vec<Table<'_>> = all.iter().filter_map(|value| value.as_table()).collect();
        let text = |table: &Table<'_>, name: &str| {
            table.get(name).and_then(|value| value.as_str()).map(str::to_string)
        };
        assert_eq!(
            tables.iter().map(|it| text(it, "shovel-name").unwrap()).collect::<Vec<_>>(),
            ["second", "s"]
        );
        assert_eq!(text(&tables[0], "src-queue").as_deref(), Some("a"));
        assert_eq!(text(&tables[0], "dest-uri").as_deref(), Some("amqp://"));
        assert_eq!(headers.get(TIMESTAMP).and_then(|value| value.as_integer()), Some(77));
        assert_eq!(headers.get("a").and_then(|value| value.as_integer()), Some(1));
        assert_eq!(Properties::trusted(&twice).content_type(), Some(&b"t"[..]));
        assert!(Properties::trusted(&twice).is_persistent());
    }

    #[test]
    fn properties_that_are_asked_for_come_instead_and_others_stay() {
        let mut wanted = Shovel { adds_headers: false, adds_timestamp: false, ..shovel() };
        assert_eq!(written(b"\xb0\x00\x01t\0\0\0\0\x02", &wanted), b"\xb0\x00\x01t\0\0\0\0\x02");
        for (name, value) in [
            ("delivery_mode", Property::Number(1)),
            ("app_id", Property::Text("x".into())),
            ("timestamp", Property::Number(9)),
        ] {
            wanted.properties.insert(name, value);
        }
        let bytes = written(b"\xb0\x00\x01t\0\0\0\0\x02", &wanted);
        let got = Properties::trusted(&bytes);
        assert_eq!((got.content_type(), got.app_id()), (Some(&b"t"[..]), Some(&b"x"[..])));
        assert_eq!((got.delivery_mode(), got.timestamp(), got.has_headers()), (Some(1), Some(9), true));
    }
}
