//! Headers that a bridge or shovel adds to a message, and the identifier of a message across brokers.
//!
//! | header | content |
//! |--------|---------|
//! | `x-bridge-id` | identifier, set by the first bridge that forwards the message; the same in a repeated transfer |
//! | `x-bridge-via` | identifier set by the last bridge, if that forwards and `x-bridge-id` was set before |
//! | `x-bridge-hops` | number of bridges that the message has crossed |
//! | `x-bridge-repeat` | present if the message may have been sent before |
//! | `x-bridge-cc` | the original `CC` header: its routing keys apply only at the broker of the publisher |
//! | `x-bridge-user-id` | the original property `user_id`, which only the broker of the publisher has verified |
//! | `x-shovelled` | an array with a table of source and destination for each shovel, the latest first |
//! | `x-shovelled-timestamp` | when the shovel moved the message, in seconds since 1970 |
//!
//! # Invariants
//! - All other properties and headers are copied unchanged, except `BCC` and `x-parked-*`, which are removed. A shovel
//!   also replaces the properties in `publish-properties`.
//! - A message from a bridge is not routed by its `CC` header. It has no `user_id`, unless a shovel is configured to
//!   set one.

use core::fmt::Write as _;

use leveret_amqp::props::{PROPERTIES, PropertyKind};
use leveret_amqp::{Edit, Full, Properties, PropertyEdit, Table, TableWriter, Value, Writer};
use leveret_config::shovels::{Property, Shovel, ShovelEnd};

const ID: &str = "x-bridge-id";
const VIA: &str = "x-bridge-via";
const HOPS: &str = "x-bridge-hops";
const REPEAT: &str = "x-bridge-repeat";
const ORIGINAL_CC: &str = "x-bridge-cc";
const ORIGINAL_USER_ID: &str = "x-bridge-user-id";
/// The header with routing keys by which RabbitMQ routes a message in addition to its own routing key.
const CC: &str = "CC";

/// Headers that are not copied. A bridge sets some of them again. Those with `x-parked-` were added when a bridge parked
/// the message.
const NOT_COPIED: [&str; 9] = [
    VIA,
    HOPS,
    REPEAT,
    CC,
    "x-parked-cause",
    "x-parked-bridge",
    "x-parked-queue",
    "x-parked-time",
    "x-parked-count",
];

/// The values of the headers that a bridge adds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BridgeHeaders {
    /// This broker.
    pub origin: Origin,
    /// The identifier by which this broker recognises the message if it is returned; `None` for a fetched message.
    pub id: Option<OwnId>,
    /// Whether the message may have been sent before.
    pub is_repeat: bool,
}

/// Returns the number of bridges that a message has crossed, from its headers; 0 if the header is missing or invalid.
pub fn hops_of(properties: Properties<'_>) -> u64 {
    let hops =
        properties.headers().and_then(|headers| headers.get(HOPS)).and_then(|value| value.as_integer());
    hops.and_then(|hops| u64::try_from(hops).ok()).unwrap_or(0)
}

/// Returns the identifier in a message's headers; `None` if it is missing or was set by another broker.
pub fn own_id_of(properties: Properties<'_>, origin: Origin) -> Option<OwnId> {
    let headers = properties.headers()?;
    let id = headers.get(VIA).or_else(|| headers.get(ID))?;
    OwnId::parse(id.as_bytes()?, origin)
}

/// Writes a message's properties with the headers of a bridge to `writer`.
///
/// # Errors
/// The properties do not fit into `writer`.
pub fn marked(properties: Properties<'_>, added: BridgeHeaders, writer: &mut Writer<'_>) -> Result<(), Full> {
    let headers = properties.headers().unwrap_or(Table::EMPTY);
    let has_id = headers.get(ID).is_some();
    let hops = hops_of(properties).saturating_add(1).min(i64::MAX as u64);
    let is_repeat = added.is_repeat || headers.get(REPEAT).is_some();
    let edit = PropertyEdit { user_id: Edit::Remove, ..PropertyEdit::default() };
    properties.write_with_other_headers(
        edit,
        &NOT_COPIED,
        &mut |table| {
            if let Some(id) = added.id {
                table.text(if has_id { VIA } else { ID }, &id.text(added.origin))?;
            }
            table.long(HOPS, hops as i64)?;
            if is_repeat {
                table.bool(REPEAT, true)?;
            }
            // If an earlier bridge has set these headers, they were copied above and stay as they are.
            if let Some(keys) = headers.get(CC).filter(|_| headers.get(ORIGINAL_CC).is_none()) {
                table.value(ORIGINAL_CC.as_bytes(), keys)?;
            }
            match properties.user_id().filter(|_| headers.get(ORIGINAL_USER_ID).is_none()) {
                Some(user) => table.value(ORIGINAL_USER_ID.as_bytes(), Value::LongStr(user)),
                None => Ok(()),
            }
        },
        writer,
    )
}

/// Maximum length of an identifier in bytes.
pub(super) const ID_BYTES_MAX: usize = 32 + 2 + 8 + 2 * 17;

/// The broker that gives identifiers to messages: its store, and the store's epoch, which is the number of its starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Origin {
    /// The identifier of the store.
    pub store: [u8; 16],
    /// The current epoch of the store.
    pub epoch: u32,
}

/// The identifier of a message in a queue of this broker.
///
/// ```text
/// 0123…cdef-5-1a2        durable queue: store, incarnation of the queue, offset in the queue
/// 0123…cdef-t9-5-1a2     transient queue: store, epoch, number of the queue in the epoch, offset in the queue
/// ```
///
/// All numbers are hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OwnId {
    /// The number of the queue: unique in the epoch for a transient queue, and in the store for a durable one.
    pub queue: u64,
    /// The offset of the message in the queue: a later message has a higher one.
    pub offset: u64,
    /// Whether the identifier is valid only in the current epoch.
    pub is_transient: bool,
}

impl OwnId {
    /// Formats the identifier as the value of a header.
    pub(super) fn text(self, origin: Origin) -> heapless::String<ID_BYTES_MAX> {
        let mut text = heapless::String::new();
        let Self { queue, offset, is_transient } = self;
        let store = u128::from_be_bytes(origin.store);
        let written = match is_transient {
            false => write!(text, "{store:032x}-{queue:x}-{offset:x}"),
            true => write!(text, "{store:032x}-t{:x}-{queue:x}-{offset:x}", origin.epoch),
        };
        debug_assert!(written.is_ok(), "ID_BYTES_MAX is the length of the longest identifier");
        text
    }

    /// Parses the value of a header; `None` if it is not an identifier of this broker.
    pub(super) fn parse(text: &[u8], origin: Origin) -> Option<Self> {
        let text = core::str::from_utf8(text).ok()?;
        let mut last = text.rsplit('-').map(|part| u64::from_str_radix(part, 16).ok());
        let (offset, queue) = (last.next()??, last.next()??);
        let id = Self { queue, offset, is_transient: text.contains("-t") };
        (id.text(origin) == text).then_some(id)
    }
}

const SHOVELLED: &str = "x-shovelled";
const TIMESTAMP: &str = "x-shovelled-timestamp";

/// A transfer of a message by a shovel, for the headers that describe it.
#[derive(Clone, Copy, Debug)]
pub struct Transfer<'n> {
    /// The shovel.
    pub shovel: &'n Shovel,
    /// Indices of the source's and the destination's address in the shovel's two lists.
    pub addresses: (usize, usize),
    /// The time of the transfer in seconds since 1970.
    pub unix_s: u64,
    /// The name of this broker's node, the value of `shovelled-by`.
    pub node: &'n str,
}

/// Writes a message's properties with a shovel's headers and configured properties to `writer`. `scratch` is a buffer
/// for the headers.
///
/// # Errors
/// The headers do not fit into `scratch`, or the properties not into `writer`.
pub fn shovelled(
    properties: Properties<'_>,
    transfer: Transfer<'_>,
    scratch: &mut [u8],
    writer: &mut Writer<'_>,
) -> Result<(), Full> {
    let shovel = transfer.shovel;
    let mut table = Writer::new(scratch);
    let adds_any = shovel.adds_headers || shovel.adds_timestamp;
    if adds_any {
        let headers = properties.headers().unwrap_or(Table::EMPTY);
        table.table(|table| write_headers(headers, transfer, table))?;
    }
    let headers = adds_any.then(|| Table::trusted(table.written().get(4..).unwrap_or_default()));
    // A configured property comes before that of the message.
    let value_of = |(name, flag, kind): &(&str, u16, PropertyKind)| {
        let value = match (kind, shovel.properties.get(*name)) {
            (PropertyKind::Text, Some(Property::Text(text))) => Value::LongStr(text.as_bytes()),
            (PropertyKind::Octet, Some(Property::Number(octet))) => {
                Value::UnsignedByte((*octet).min(u8::MAX.into()) as u8)
            }
            (PropertyKind::Timestamp, Some(Property::Number(seconds))) => Value::Timestamp(*seconds),
            (PropertyKind::Headers, _) => Value::Table(headers.or(properties.headers())?),
            _ => properties.by_flag(*flag, *kind)?,
        };
        Some((*flag, value))
    };
    let values = PROPERTIES.iter().filter_map(value_of);
    let start = writer.at();
    let mut write = || {
        writer.write_u16(values.clone().fold(0, |all, (flag, _)| all | flag))?;
        values.clone().try_for_each(|(_, value)| match value {
            Value::LongStr(text) => writer.write_short_str(text),
            Value::Table(table) => writer.write_table(table),
            Value::UnsignedByte(octet) => writer.write_u8(octet),
            Value::Timestamp(seconds) => writer.write_u64(seconds),
            _ => unreachable!("a property has one of these types"),
        })
    };
    let written = write();
    if written.is_err() {
        writer.rewind(start);
    }
    written
}

/// Writes the message's `headers` and those of the shovel. The table of this shovel comes first in `x-shovelled`.
fn write_headers(
    headers: Table<'_>,
    transfer: Transfer<'_>,
    table: &mut TableWriter<'_, '_>,
) -> Result<(), Full> {
    let Transfer { shovel, addresses: (from, to), unix_s, node } = transfer;
    let before = headers.get(SHOVELLED).and_then(|value| value.as_array());
    for (name, value) in headers.iter() {
        let is_replaced = name == SHOVELLED.as_bytes() && shovel.adds_headers
            || name == TIMESTAMP.as_bytes() && shovel.adds_timestamp;
        if !is_replaced {
            table.value(name, value)?;
        }
    }
    if shovel.adds_headers {
        table.array(SHOVELLED, |array| {
            array.table(|table| {
                let constants = [("shovelled-by", node), ("shovel-type", "dynamic")];
                constants.iter().try_for_each(|(name, text)| table.text(name, text))?;
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

/// Writes the configured parts of a shovel's source (`which` is "src") or destination ("dest").
fn write_end(which: &str, end: &ShovelEnd, uri: usize, table: &mut TableWriter<'_, '_>) -> Result<(), Full> {
    let parts = [
        ("uri", end.uris.get(uri).map(String::as_str)),
        ("exchange", end.exchange.as_deref()),
        ("exchange-key", end.key.as_deref()),
        ("queue", end.queue.as_deref()),
    ];
    let mut configured = parts.iter().filter_map(|(name, text)| Some((name, (*text)?)));
    configured.try_for_each(|(name, text)| table.text(&format!("{which}-{name}"), text))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORIGIN: Origin = Origin { store: [0xab; 16], epoch: 3 };
    const OWN: OwnId = OwnId { queue: 5, offset: 0x1a2, is_transient: false };

    fn written(properties: &[u8], write: impl FnOnce(Properties<'_>, &mut Writer<'_>)) -> Vec<u8> {
        let mut out = [0; 1000];
        let mut writer = Writer::new(&mut out);
        write(Properties::parse(properties).expect("sound"), &mut writer);
        let written = writer.written().to_vec();
        Properties::parse(&written).expect("what is written is sound");
        written
    }

    fn with_marks(properties: &[u8], marks: BridgeHeaders) -> Vec<u8> {
        written(properties, |properties, writer| {
            marked(properties, marks, writer).expect("it fits");
        })
    }

    fn names(properties: &[u8]) -> Vec<String> {
        let headers = Properties::trusted(properties).headers().expect("there are headers");
        headers.iter().map(|(name, _)| String::from_utf8_lossy(name).into_owned()).collect()
    }

    #[test]
    fn the_first_bridge_sets_the_id_and_later_ones_set_via() {
        let marks = BridgeHeaders { origin: ORIGIN, id: Some(OWN), is_repeat: false };
        // A content type, a header of an unusual type, and persistent.
        let properties = b"\xb0\x00\x01t\x00\x00\x00\x0b\x01aL\0\0\0\0\0\0\0\x01\x02";
        let once = with_marks(properties, marks);
        assert_eq!(names(&once), ["a", "x-bridge-id", "x-bridge-hops"]);
        let sent = Properties::trusted(&once);
        assert_eq!((sent.content_type(), sent.is_persistent()), (Some(&b"t"[..]), true));
        assert_eq!(own_id_of(sent, ORIGIN), Some(OWN));
        assert_eq!(hops_of(sent), 1);
        let second = Origin { store: [1; 16], epoch: 1 };
        let via = written(&once, |properties, writer| {
            let other = OwnId { queue: 9, offset: 9, is_transient: true };
            let marks = BridgeHeaders { origin: second, id: Some(other), is_repeat: true };
            marked(properties, marks, writer).expect("it fits");
            let mut out = [0; 1000];
            let mut twice = Writer::new(&mut out);
            marked(properties, marks, &mut twice).expect("it fits");
            assert_eq!(own_id_of(Properties::trusted(twice.written()), second), Some(other));
        });
        assert_eq!(names(&via), ["a", "x-bridge-id", "x-bridge-via", "x-bridge-hops", "x-bridge-repeat"]);
        assert_eq!(hops_of(Properties::trusted(&via)), 2);
        let headers = Properties::trusted(&via).headers().expect("there are headers");
        let expected = "abababababababababababababababab-5-1a2";
        assert_eq!(headers.get(ID).and_then(|value| value.as_str()), Some(expected), "the first one's stays");
        assert_eq!(headers.as_bytes().get(..11), Some(&b"\x01aL\0\0\0\0\0\0\0\x01"[..]), "octet by octet");
        let third = with_marks(&via, BridgeHeaders { origin: ORIGIN, id: None, is_repeat: false });
        assert!(names(&third).contains(&REPEAT.to_string()), "a repeat stays one");
    }

    #[test]
    fn parking_headers_are_not_forwarded() {
        let parked = b"\x20\0\0\0\0\x19\x0ex-parked-causeS\0\0\0\x05full!";
        let sent = with_marks(parked, BridgeHeaders { origin: ORIGIN, id: Some(OWN), is_repeat: false });
        assert_eq!(names(&sent), ["x-bridge-id", "x-bridge-hops"]);
    }

    /// If these headers took effect at the other broker, a sensor that may write to only one exchange here could send
    /// messages to a queue of an actuator there.
    #[test]
    fn keys_and_users_of_the_other_side_are_kept_as_data_and_decide_nothing() {
        // The headers `CC` and `BCC`, each with one key, and the property `user_id`.
        let list = |name: &str| {
            let mut entry = vec![name.len() as u8];
            entry.extend_from_slice(name.as_bytes());
            entry.extend_from_slice(b"A\0\0\0\x08S\0\0\0\x03key");
            entry
        };
        let table = [list("CC"), list("BCC")].concat();
        let length = (table.len() as u32).to_be_bytes();
        let properties = [b"\x20\x10", &length[..], &table, b"\x04evil"].concat();
        let once = with_marks(&properties, BridgeHeaders { origin: ORIGIN, id: Some(OWN), is_repeat: false });
        assert_eq!(names(&once), ["x-bridge-id", "x-bridge-hops", "x-bridge-cc", "x-bridge-user-id"]);
        let sent = Properties::trusted(&once);
        let headers = sent.headers().expect("there are headers");
        assert_eq!(sent.user_id(), None);
        assert_eq!(headers.get(ORIGINAL_USER_ID).and_then(|value| value.as_str()), Some("evil"));
        assert!(headers.get(ORIGINAL_CC).is_some_and(|value| value.as_array().is_some()));
        assert_eq!(
            names(&with_marks(&once, BridgeHeaders { origin: ORIGIN, id: None, is_repeat: false })).len(),
            4,
            "the second bridge adds no further headers of this kind"
        );
    }

    #[test]
    fn properties_that_do_not_fit_are_refused() {
        let mut out = [0; 20];
        let marks = BridgeHeaders { origin: ORIGIN, id: Some(OWN), is_repeat: false };
        let mut writer = Writer::new(&mut out);
        assert_eq!(marked(Properties::EMPTY, marks, &mut writer), Err(Full));
        assert_eq!(writer.at(), 0);
    }
}

#[cfg(test)]
mod own_id_tests {
    use super::*;

    #[test]
    fn an_id_is_parsed_only_by_the_broker_that_wrote_it() {
        let origin = Origin { store: *b"\0a store's own i", epoch: u32::MAX };
        for is_transient in [false, true] {
            for number in [0, 1, 255, u64::MAX] {
                let id = OwnId { queue: number, offset: u64::MAX - number, is_transient };
                let text = id.text(origin);
                assert_eq!(OwnId::parse(text.as_bytes(), origin), Some(id), "{text}");
                let other = Origin { store: [7; 16], ..origin };
                assert_eq!(OwnId::parse(text.as_bytes(), other), None);
                let later = Origin { epoch: 1, ..origin };
                assert_eq!(OwnId::parse(text.as_bytes(), later).is_none(), is_transient);
                let longer = format!("{text}-0");
                assert_eq!(OwnId::parse(longer.as_bytes(), origin), None);
            }
        }
        for nonsense in [&b""[..], b"-", b"\xff", b"00000000000000000000000000000000"] {
            assert_eq!(OwnId::parse(nonsense, Origin::default()), None);
        }
    }
}

#[cfg(test)]
mod shovelled_tests {
    use super::*;
    use leveret_config::shovels::DeleteAfter;

    fn shovel() -> Shovel {
        let end = |queue: &str| ShovelEnd {
            uris: vec!["amqp://".into()],
            queue: Some(queue.into()),
            ..ShovelEnd::default()
        };
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
        let transfer = Transfer { shovel, addresses: (0, 0), unix_s: 77, node: "here" };
        shovelled(properties, transfer, &mut scratch, &mut writer).expect("it fits");
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
    fn configured_properties_replace_those_of_the_message() {
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
