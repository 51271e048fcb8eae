//! Properties of `leveret-amqp` that hold for any input, for property tests and fuzz targets.
//!
//! A fuzzer that only waits for a panic misses a parser that accepts what it cannot read later, or writes
//! something else than it read. Each check takes any bytes and asserts both.

use leveret_amqp::{
    Array, ContentHeader, Full, Method, MethodError, Opening, Properties, PropertyEdit, Table, Value, Writer,
    classify_opening, method_id_of, next_frame,
};

const ROOM: usize = 64 * 1024;

/// What `write` writes.
pub fn written(write: impl FnOnce(&mut Writer<'_>) -> Result<(), Full>) -> Vec<u8> {
    let mut buf = vec![0; ROOM];
    let mut w = Writer::new(&mut buf);
    write(&mut w).expect("room enough");
    w.written().to_vec()
}

fn visit_table(table: Table<'_>) -> usize {
    table.iter().map(|(_, value)| 1 + visit_value(value)).sum()
}

fn visit_value(value: Value<'_>) -> usize {
    match value {
        Value::Table(table) => visit_table(table),
        Value::Array(array) => array.iter().map(|value| 1 + visit_value(value)).sum(),
        Value::LongStr(octets) | Value::Binary(octets) => octets.len(),
        _ => 0,
    }
}

/// A table that was accepted is iterated to its end, and never yields more than it has octets for.
pub fn check_any_table(octets: &[u8]) {
    if let Ok(table) = Table::parse(octets) {
        assert_eq!(table.as_bytes(), octets);
        assert!(visit_table(table) <= octets.len());
        let mut entries = table.iter();
        while entries.next().is_some() {}
        assert!(entries.rest().is_empty(), "an accepted table stops short");
    }
    if let Ok(array) = Array::parse(octets) {
        assert_eq!(array.as_bytes(), octets);
        assert!(array.iter().map(visit_value).sum::<usize>() <= octets.len());
    }
    // Unchecked bytes must do no harm either. Nested tables are read with attention to the depth.
    let _ = Table::trusted(octets).iter().count();
}

/// Properties that were accepted have every property their flags promise, and are written back as they were.
pub fn check_any_properties(octets: &[u8]) {
    let look = |p: Properties<'_>| {
        let strings = [
            p.content_type(),
            p.content_encoding(),
            p.correlation_id(),
            p.reply_to(),
            p.expiration(),
            p.message_id(),
            p.kind(),
            p.user_id(),
            p.app_id(),
            p.cluster_id(),
        ];
        let found = strings.iter().flatten().count()
            + usize::from(p.delivery_mode().is_some())
            + usize::from(p.priority().is_some())
            + usize::from(p.timestamp().is_some())
            + usize::from(p.headers().is_some());
        assert_eq!(p.is_persistent(), p.delivery_mode() == Some(2));
        found
    };
    look(Properties::trusted(octets));
    let Ok(properties) = Properties::parse(octets) else {
        return;
    };
    assert_eq!(properties.as_bytes(), octets);
    let flags = u16::from_be_bytes([octets[0], octets[1]]);
    assert_eq!(look(properties), flags.count_ones() as usize, "every flag stands for a property");
    assert_eq!(written(|w| properties.write_with(PropertyEdit::default(), w)), octets);
}

/// A method that was accepted is the same after being written and read again; an error names the right
/// method.
pub fn check_any_method(octets: &[u8]) {
    match Method::parse(octets) {
        Ok(method) => {
            assert_eq!(method_id_of(octets), Some(method.id()));
            let again = written(|w| method.emit(w));
            assert_eq!(Method::parse(&again), Ok(method));
            assert_eq!(written(|w| method.emit(w)), again);
        }
        Err(MethodError::NoId) => assert!(octets.len() < 4),
        Err(
            MethodError::Unknown { class_id, method_id } | MethodError::Malformed { class_id, method_id, .. },
        ) => {
            assert_eq!(method_id_of(octets), Some((class_id, method_id)));
        }
    }
}

/// Reads input as a connection does: an opening, then frames until one is invalid.
pub fn check_any_frames(mut input: &[u8]) {
    const PAYLOAD_MAX: u32 = 4096;
    if classify_opening(input) == Opening::NeedMore {
        assert!(input.len() < 8);
    }
    while let Ok(Some(frame)) = next_frame(input, PAYLOAD_MAX) {
        let (whole, rest) = input.split_at(frame.input_len());
        assert!(frame.payload.len() <= PAYLOAD_MAX as usize);
        assert_eq!(next_frame(&whole[..whole.len() - 1], PAYLOAD_MAX), Ok(None), "it needs its last octet");
        if let Some(kind) = frame.header.kind() {
            let again = written(|w| w.frame(kind, frame.header.channel, |w| w.write_raw(frame.payload)));
            assert_eq!(again, whole);
        }
        check_any_method(frame.payload);
        check_any_header(frame.payload);
        input = rest;
    }
}

/// A content header that was accepted is written back as it was.
pub fn check_any_header(octets: &[u8]) {
    if let Ok(header) = ContentHeader::parse(octets) {
        assert_eq!(written(|w| header.emit(w)), octets);
    }
}
