//! The wire room against an independent reader and writer of AMQP 0-9-1, the `amq-protocol` crate.
//!
//! Why it exists: a reader and a writer made from the same table agree with each other even where both are
//! wrong. So every method, random tables, properties and frames go through both encoders, which must give
//! the same octets, and through both readers, which must give the same values.

mod methods;

use self::methods::{Draw, every_method};
use amq_protocol::frame::{
    AMQPContentHeader, AMQPFrame, GenError, ProtocolVersion, WriteContext, gen_frame, parse_frame,
};
use amq_protocol::protocol::basic::{AMQPProperties, gen_properties, parse_properties};
use amq_protocol::protocol::{constants, gen_class, parse_class};
use amq_protocol::types::generation::gen_field_table;
use amq_protocol::types::parsing::parse_field_table;
use amq_protocol::types::{AMQPValue, DecimalValue, FieldArray, FieldTable, ShortString};
use leveret_amqp::{
    Array, ArrayWriter, ContentHeader, Edit, FRAME_END, Frame, FrameHeader, FrameKind, Full, HEARTBEAT_FRAME,
    HeadersEdit, Method, PROTOCOL_HEADER, Properties, PropertyEdit, Table, TableWriter, Value, Writer,
    method_name, next_frame,
};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;

// ---- both encoders, as functions to octets ----------------------------------------------------------------

const ROOM: usize = 256 * 1024;

type Out = WriteContext<Vec<u8>>;

fn ours(write: impl FnOnce(&mut Writer<'_>) -> Result<(), Full>) -> Vec<u8> {
    let mut buf = vec![0; ROOM];
    let mut w = Writer::new(&mut buf);
    write(&mut w).expect("room enough");
    w.written().to_vec()
}

fn theirs(write: impl FnOnce(Out) -> Result<Out, GenError>) -> Vec<u8> {
    write(WriteContext::from(Vec::new())).expect("a Vec has room").into_inner().0
}

/// A table's octets as the other crate writes them, without the length.
fn table_octets(table: &FieldTable) -> Vec<u8> {
    theirs(gen_field_table(table)).split_off(4)
}

// ---- random values, in the other crate's types ------------------------------------------------------------

fn short() -> impl Strategy<Value = ShortString> {
    "\\PC{0,20}".prop_map(ShortString::from)
}

fn value() -> impl Strategy<Value = AMQPValue> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(AMQPValue::Boolean),
        any::<i8>().prop_map(AMQPValue::ShortShortInt),
        any::<u8>().prop_map(AMQPValue::ShortShortUInt),
        any::<i16>().prop_map(AMQPValue::ShortInt),
        any::<u16>().prop_map(AMQPValue::ShortUInt),
        any::<i32>().prop_map(AMQPValue::LongInt),
        any::<u32>().prop_map(AMQPValue::LongUInt),
        any::<i64>().prop_map(AMQPValue::LongLongInt),
        (-1e30f32..1e30).prop_map(AMQPValue::Float),
        (-1e300f64..1e300).prop_map(AMQPValue::Double),
        any::<(u8, u32)>().prop_map(|(scale, value)| AMQPValue::DecimalValue(DecimalValue { scale, value })),
        vec(any::<u8>(), 0..40).prop_map(|octets| AMQPValue::LongString(octets.into())),
        any::<u64>().prop_map(AMQPValue::Timestamp),
        vec(any::<u8>(), 0..40).prop_map(|octets| AMQPValue::ByteArray(octets.into())),
        Just(AMQPValue::Void),
    ];
    leaf.prop_recursive(5, 40, 6, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..6).prop_map(|values| AMQPValue::FieldArray(values.into())),
            btree_map(short(), inner, 0..6).prop_map(|entries| AMQPValue::FieldTable(entries.into())),
        ]
    })
}

fn table() -> impl Strategy<Value = FieldTable> {
    btree_map(short(), value(), 0..6).prop_map(FieldTable::from)
}

fn draw() -> impl Strategy<Value = Draw> {
    let strings = ([short(), short(), short()], [vec(any::<u8>(), 0..50), vec(any::<u8>(), 0..50)]);
    let numbers = any::<(u64, [u32; 2], [u16; 3], [u8; 2], [bool; 5])>();
    (strings, numbers, table()).prop_map(
        |((names, octets), (longlong, longs, shorts, small, bits), table)| Draw {
            names,
            octets,
            longlong,
            longs,
            shorts,
            small,
            bits,
            table,
        },
    )
}

// ---- tables, compared and written -------------------------------------------------------------------------

fn same_table(ours: Table<'_>, theirs: &FieldTable) -> bool {
    ours.iter().count() == theirs.inner().len()
        && ours.iter().zip(theirs).all(|((name, value), (their_name, their_value))| {
            name == their_name.as_str().as_bytes() && same_value(value, their_value)
        })
}

fn same_array(ours: Array<'_>, theirs: &FieldArray) -> bool {
    ours.iter().count() == theirs.as_slice().len()
        && ours.iter().zip(theirs.as_slice()).all(|(value, their_value)| same_value(value, their_value))
}

fn same_value(ours: Value<'_>, theirs: &AMQPValue) -> bool {
    match (ours, theirs) {
        (Value::LongStr(a), AMQPValue::LongString(b)) => a == b.as_bytes(),
        (Value::Timestamp(a), AMQPValue::Timestamp(b)) => a == *b,
        (Value::Byte(a), AMQPValue::ShortShortInt(b)) => a == *b,
        (Value::UnsignedByte(a), AMQPValue::ShortShortUInt(b)) => a == *b,
        (Value::Short(a), AMQPValue::ShortInt(b)) => a == *b,
        (Value::UnsignedShort(a), AMQPValue::ShortUInt(b)) => a == *b,
        (Value::Int(a), AMQPValue::LongInt(b)) => a == *b,
        (Value::UnsignedInt(a), AMQPValue::LongUInt(b)) => a == *b,
        (Value::Long(a), AMQPValue::LongLongInt(b)) => a == *b,
        (Value::Float(a), AMQPValue::Float(b)) => a == *b,
        (Value::Double(a), AMQPValue::Double(b)) => a == *b,
        (Value::Decimal { scale, value }, AMQPValue::DecimalValue(b)) => scale == b.scale && value == b.value,
        (Value::Bool(a), AMQPValue::Boolean(b)) => a == *b,
        (Value::Table(a), AMQPValue::FieldTable(b)) => same_table(a, b),
        (Value::Array(a), AMQPValue::FieldArray(b)) => same_array(a, b),
        (Value::Void, AMQPValue::Void) => true,
        (Value::Binary(a), AMQPValue::ByteArray(b)) => a == b.as_slice(),
        _ => false,
    }
}

/// Writes a table with Leveret's writer: with typed methods where they exist, or else as received.
fn build_table(t: &mut TableWriter<'_, '_>, table: &FieldTable) -> Result<(), Full> {
    for (name, value) in table {
        let name = name.as_str();
        match value {
            AMQPValue::Boolean(truth) => t.bool(name, *truth)?,
            AMQPValue::LongInt(number) => t.int(name, *number)?,
            AMQPValue::LongLongInt(number) => t.long(name, *number)?,
            AMQPValue::Double(number) => t.double(name, *number)?,
            AMQPValue::Timestamp(seconds) => t.timestamp(name, *seconds)?,
            AMQPValue::LongString(octets) => t.long_str(name, octets.as_bytes())?,
            AMQPValue::Void => t.void(name)?,
            AMQPValue::FieldTable(inner) => t.table(name, |t| build_table(t, inner))?,
            AMQPValue::FieldArray(inner) => t.array(name, |a| build_array(a, inner))?,
            other => t.value(name.as_bytes(), foreign(other))?,
        }
    }
    Ok(())
}

fn build_array(a: &mut ArrayWriter<'_, '_>, array: &FieldArray) -> Result<(), Full> {
    for value in array.as_slice() {
        match value {
            AMQPValue::Boolean(truth) => a.bool(*truth)?,
            AMQPValue::LongInt(number) => a.int(*number)?,
            AMQPValue::LongLongInt(number) => a.long(*number)?,
            AMQPValue::Double(number) => a.double(*number)?,
            AMQPValue::Timestamp(seconds) => a.timestamp(*seconds)?,
            AMQPValue::LongString(octets) => a.long_str(octets.as_bytes())?,
            AMQPValue::Void => a.void()?,
            AMQPValue::FieldTable(inner) => a.table(|t| build_table(t, inner))?,
            AMQPValue::FieldArray(inner) => a.array(|a| build_array(a, inner))?,
            other => a.value(foreign(other))?,
        }
    }
    Ok(())
}

/// The types we hand on but never choose ourselves.
fn foreign(value: &AMQPValue) -> Value<'_> {
    match value {
        AMQPValue::ShortShortInt(n) => Value::Byte(*n),
        AMQPValue::ShortShortUInt(n) => Value::UnsignedByte(*n),
        AMQPValue::ShortInt(n) => Value::Short(*n),
        AMQPValue::ShortUInt(n) => Value::UnsignedShort(*n),
        AMQPValue::LongUInt(n) => Value::UnsignedInt(*n),
        AMQPValue::Float(n) => Value::Float(*n),
        AMQPValue::DecimalValue(d) => Value::Decimal { scale: d.scale, value: d.value },
        AMQPValue::ByteArray(octets) => Value::Binary(octets.as_slice()),
        other => unreachable!("{other:?} has a method of its own"),
    }
}

// ---- properties -------------------------------------------------------------------------------------------

fn properties() -> impl Strategy<Value = AMQPProperties> {
    type Setter = fn(AMQPProperties, ShortString) -> AMQPProperties;
    const STRINGS: [Setter; 10] = [
        AMQPProperties::with_content_type,
        AMQPProperties::with_content_encoding,
        AMQPProperties::with_correlation_id,
        AMQPProperties::with_reply_to,
        AMQPProperties::with_expiration,
        AMQPProperties::with_message_id,
        AMQPProperties::with_type,
        AMQPProperties::with_user_id,
        AMQPProperties::with_app_id,
        AMQPProperties::with_cluster_id,
    ];
    let strings = vec(option::of(short()), STRINGS.len());
    (strings, option::of(table()), any::<[Option<u8>; 2]>(), any::<Option<u64>>()).prop_map(
        |(strings, headers, [mode, priority], timestamp)| {
            let mut properties = AMQPProperties::default();
            for (setter, string) in STRINGS.iter().zip(strings) {
                if let Some(string) = string {
                    properties = setter(properties, string);
                }
            }
            if let Some(headers) = headers {
                properties = properties.with_headers(headers);
            }
            if let Some(mode) = mode {
                properties = properties.with_delivery_mode(mode);
            }
            if let Some(priority) = priority {
                properties = properties.with_priority(priority);
            }
            if let Some(timestamp) = timestamp {
                properties = properties.with_timestamp(timestamp);
            }
            properties
        },
    )
}

fn octets_of(string: &Option<ShortString>) -> Option<&[u8]> {
    string.as_ref().map(|string| string.as_str().as_bytes())
}

fn assert_same_properties(ours: Properties<'_>, theirs: &AMQPProperties) {
    assert_eq!(ours.content_type(), octets_of(theirs.content_type()));
    assert_eq!(ours.content_encoding(), octets_of(theirs.content_encoding()));
    assert_eq!(ours.correlation_id(), octets_of(theirs.correlation_id()));
    assert_eq!(ours.reply_to(), octets_of(theirs.reply_to()));
    assert_eq!(ours.expiration(), octets_of(theirs.expiration()));
    assert_eq!(ours.message_id(), octets_of(theirs.message_id()));
    assert_eq!(ours.kind(), octets_of(theirs.kind()));
    assert_eq!(ours.user_id(), octets_of(theirs.user_id()));
    assert_eq!(ours.app_id(), octets_of(theirs.app_id()));
    assert_eq!(ours.cluster_id(), octets_of(theirs.cluster_id()));
    assert_eq!(ours.delivery_mode(), *theirs.delivery_mode());
    assert_eq!(ours.is_persistent(), *theirs.delivery_mode() == Some(2));
    assert_eq!(ours.priority(), *theirs.priority());
    assert_eq!(ours.timestamp(), *theirs.timestamp());
    assert_eq!(ours.has_headers(), theirs.headers().is_some());
    match (ours.headers(), theirs.headers()) {
        (None, None) => {}
        (Some(ours), Some(theirs)) => assert!(same_table(ours, theirs), "{ours:?} is not {theirs:?}"),
        (ours, theirs) => panic!("{ours:?} is not {theirs:?}"),
    }
}

/// Returns the expected result of an edit, made with the other crate. It can only append, so everything is
/// appended anew.
fn edited(
    old: &AMQPProperties,
    headers: Option<FieldTable>,
    reply_to: Option<ShortString>,
) -> AMQPProperties {
    fn add<T>(new: &mut AMQPProperties, set: fn(AMQPProperties, T) -> AMQPProperties, value: Option<T>) {
        if let Some(value) = value {
            *new = set(std::mem::take(new), value);
        }
    }
    let mut new = AMQPProperties::default();
    add(&mut new, AMQPProperties::with_content_type, old.content_type().clone());
    add(&mut new, AMQPProperties::with_content_encoding, old.content_encoding().clone());
    add(&mut new, AMQPProperties::with_headers, headers);
    add(&mut new, AMQPProperties::with_delivery_mode, *old.delivery_mode());
    add(&mut new, AMQPProperties::with_priority, *old.priority());
    add(&mut new, AMQPProperties::with_correlation_id, old.correlation_id().clone());
    add(&mut new, AMQPProperties::with_reply_to, reply_to);
    add(&mut new, AMQPProperties::with_message_id, old.message_id().clone());
    add(&mut new, AMQPProperties::with_timestamp, *old.timestamp());
    add(&mut new, AMQPProperties::with_type, old.kind().clone());
    add(&mut new, AMQPProperties::with_user_id, old.user_id().clone());
    add(&mut new, AMQPProperties::with_app_id, old.app_id().clone());
    add(&mut new, AMQPProperties::with_cluster_id, old.cluster_id().clone());
    new
}

// ---- the tests --------------------------------------------------------------------------------------------

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn every_method_is_the_same_for_both(draw in draw()) {
        let table = table_octets(&draw.table);
        let table = Table::parse(&table).expect("a table");
        for (method, class) in every_method(&draw, table) {
            let octets = ours(|w| method.emit(w));
            prop_assert_eq!(&octets, &theirs(gen_class(&class)), "written: {:?}", method);
            prop_assert_eq!(Method::parse(&octets), Ok(method));
            let (rest, read) = parse_class(octets.as_slice()).expect("the other crate reads it");
            prop_assert!(rest.is_empty());
            prop_assert_eq!(read, class);
        }
    }

    #[test]
    fn tables_are_the_same_for_both(table in table()) {
        let octets = ours(|w| w.table(|t| build_table(t, &table)));
        prop_assert_eq!(&octets, &theirs(gen_field_table(&table)));
        let (rest, read) = parse_field_table(octets.as_slice()).expect("the other crate reads it");
        prop_assert!(rest.is_empty());
        prop_assert_eq!(&read, &table);
        let entries = &octets[4..];
        let parsed = Table::parse(entries).expect("we read it");
        prop_assert!(same_table(parsed, &table));
        prop_assert_eq!(parsed.as_bytes(), entries);
        for (name, value) in &table {
            prop_assert!(parsed.get(name.as_str()).is_some_and(|ours| same_value(ours, value)));
        }
    }

    #[test]
    fn properties_are_the_same_for_both(properties in properties()) {
        let octets = theirs(gen_properties(&properties));
        let parsed = Properties::parse(&octets).expect("we read it");
        assert_same_properties(parsed, &properties);
        let again = ours(|w| parsed.write_with(PropertyEdit::default(), w));
        prop_assert_eq!(&again, &octets);
        let (rest, read) = parse_properties(again.as_slice()).expect("the other crate reads it");
        prop_assert!(rest.is_empty());
        prop_assert_eq!(read, properties);
    }

    #[test]
    fn edited_properties_are_what_was_asked_for(
        properties in properties(),
        new_headers in table(),
        reply_to in option::of(option::of(short())),
    ) {
        let octets = theirs(gen_properties(&properties));
        let parsed = Properties::parse(&octets).expect("we read it");
        let headers_octets = table_octets(&new_headers);

        let reply_edit = match &reply_to {
            None => Edit::Keep,
            Some(None) => Edit::Remove,
            Some(Some(text)) => Edit::Set(text.as_str().as_bytes()),
        };
        let expected_reply = reply_to.clone().unwrap_or_else(|| properties.reply_to().clone());

        let mut without_first = properties.headers().clone();
        let first = without_first
            .as_ref()
            .and_then(|table| table.inner().keys().next().cloned())
            .unwrap_or_else(|| "BCC".into());
        if let Some(table) = &mut without_first {
            let mut entries = table.inner().clone();
            entries.remove(first.as_str());
            *table = entries.into();
        }

        let cases = [
            (HeadersEdit::Keep, properties.headers().clone()),
            (HeadersEdit::Remove, None),
            (HeadersEdit::Set(Table::trusted(&headers_octets)), Some(new_headers)),
            (HeadersEdit::Without(first.as_str()), without_first),
        ];
        for (headers, expected_headers) in cases {
            let edit = PropertyEdit { headers, reply_to: reply_edit, expiration: Edit::Remove, ..PropertyEdit::default() };
            let octets = ours(|w| parsed.write_with(edit, w));
            let expected = edited(&properties, expected_headers, expected_reply.clone());
            prop_assert_eq!(&octets, &theirs(gen_properties(&expected)));
            assert_same_properties(Properties::parse(&octets).expect("we read it"), &expected);
        }
    }

    #[test]
    fn frames_are_the_same_for_both(
        channel in any::<u16>(),
        draw in draw(),
        properties in properties(),
        body in vec(any::<u8>(), 0..300),
        body_len in any::<u64>(),
    ) {
        let table = table_octets(&draw.table);
        let methods = every_method(&draw, Table::parse(&table).expect("a table"));
        let (method, class) = methods[usize::from(draw.small[0]) % methods.len()].clone();
        let property_octets = theirs(gen_properties(&properties));
        let header = ContentHeader::new(body_len, Properties::parse(&property_octets).expect("we read it"));

        let octets = ours(|w| {
            method.emit_frame(channel, w)?;
            header.emit_frame(channel, w)?;
            w.frame(FrameKind::Body, channel, |w| w.write_raw(&body))?;
            w.write_raw(&HEARTBEAT_FRAME)
        });
        let content = AMQPContentHeader { class_id: 60, body_size: body_len, properties };
        let frames = [
            AMQPFrame::Method(channel, class),
            AMQPFrame::Header(channel, 60, Box::new(content)),
            AMQPFrame::Body(channel, body.clone()),
            AMQPFrame::Heartbeat(0),
        ];
        let their_octets: Vec<u8> = frames.iter().flat_map(|frame| theirs(gen_frame(frame))).collect();
        prop_assert_eq!(&octets, &their_octets);

        let mut input = octets.as_slice();
        for expected in frames {
            let frame = next_frame(input, u32::MAX).expect("a frame").expect("a whole one");
            let (rest, read) = parse_frame(input).expect("the other crate reads it");
            prop_assert_eq!(&read, &expected);
            prop_assert_eq!(rest.len(), input.len() - frame.input_len());
            assert_same_frame(frame, &expected, &method, &header);
            input = rest;
        }
        prop_assert!(input.is_empty());
    }
}

fn assert_same_frame(frame: Frame<'_>, theirs: &AMQPFrame, method: &Method<'_>, header: &ContentHeader<'_>) {
    let FrameHeader { channel, size, .. } = frame.header;
    assert_eq!(size as usize, frame.payload.len());
    match (frame.header.kind(), theirs) {
        (Some(FrameKind::Method), AMQPFrame::Method(on, _)) => {
            assert_eq!(channel, *on);
            assert_eq!(Method::parse(frame.payload).as_ref(), Ok(method));
        }
        (Some(FrameKind::Header), AMQPFrame::Header(on, _, _)) => {
            assert_eq!(channel, *on);
            assert_eq!(ContentHeader::parse(frame.payload).as_ref(), Ok(header));
        }
        (Some(FrameKind::Body), AMQPFrame::Body(on, body)) => {
            assert_eq!(channel, *on);
            assert_eq!(frame.payload, body);
        }
        (Some(FrameKind::Heartbeat), AMQPFrame::Heartbeat(0)) => assert!(frame.payload.is_empty()),
        (kind, theirs) => panic!("{kind:?} is not {theirs:?}"),
    }
}

#[test]
fn the_list_of_methods_is_complete() {
    let draw = Draw::default();
    let listed = every_method(&draw, Table::EMPTY);
    let mut listed: Vec<_> = listed.iter().map(|(method, _)| (method.id(), method.name())).collect();
    listed.sort_unstable();
    let ids = (0..=100).flat_map(|class| (0..=130).map(move |method| (class, method)));
    let known: Vec<_> = ids.filter_map(|id| method_name(id.0, id.1).map(|name| (id, name))).collect();
    assert_eq!(listed, known);
}

#[test]
fn the_protocol_header_is_the_same_for_both() {
    let header = AMQPFrame::ProtocolHeader(ProtocolVersion::amqp_0_9_1());
    assert_eq!(theirs(gen_frame(&header)), PROTOCOL_HEADER);
    assert_eq!(FRAME_END, constants::FRAME_END);
}
