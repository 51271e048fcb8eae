//! Properties of the AMQP parser that need no second implementation.
//!
//! Parsed data is written back unchanged. No input makes a parser panic, read beyond its end or change its
//! result.

use leveret_amqp::{
    BASIC_CLASS, ContentHeader, Edit, HeadersEdit, Opening, Properties, PropertyEdit, Table, WireError,
    Writer, classify_opening,
};
use leveret_test_support::amqp_checks::{
    check_any_frames, check_any_header, check_any_method, check_any_properties, check_any_table, written,
};
use proptest::collection::vec;
use proptest::prelude::*;

// ---- random bytes that are nearly valid -------------------------------------------------------------------

/// One encoded value of any type that RabbitMQ accepts, in any encoding: `L`, true values other than 1, and
/// so on.
fn raw_value() -> impl Strategy<Value = Vec<u8>> {
    fn tagged(tag: u8, len: usize) -> BoxedStrategy<Vec<u8>> {
        vec(any::<u8>(), len).prop_map(move |payload| [&[tag][..], &payload].concat()).boxed()
    }
    fn long(tag: u8, payload: Vec<u8>) -> Vec<u8> {
        [&[tag][..], &u32::try_from(payload.len()).expect("small").to_be_bytes(), &payload].concat()
    }
    let numbers =
        [(b't', 1), (b'b', 1), (b'B', 1), (b's', 2), (b'u', 2), (b'I', 4), (b'i', 4), (b'l', 8), (b'L', 8)];
    let others = [(b'D', 5), (b'T', 8), (b'V', 0)];
    let fixed = numbers.into_iter().chain(others).map(|(tag, len)| tagged(tag, len)).collect::<Vec<_>>();
    let leaf = prop_oneof![
        3 => proptest::strategy::Union::new(fixed),
        1 => any::<i16>().prop_map(|n| [&b"f"[..], &f32::from(n).to_be_bytes()].concat()),
        1 => any::<i32>().prop_map(|n| [&b"d"[..], &f64::from(n).to_be_bytes()].concat()),
        1 => vec(any::<u8>(), 0..30).prop_map(|octets| long(b'S', octets)),
        1 => vec(any::<u8>(), 0..30).prop_map(|octets| long(b'x', octets)),
    ];
    leaf.prop_recursive(5, 30, 5, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..5).prop_map(|values| long(b'A', values.concat())),
            vec((raw_short(), inner), 0..5).prop_map(|entries| long(
                b'F',
                entries.into_iter().flat_map(|(n, v)| [n, v].concat()).collect()
            )),
        ]
    })
}

/// A short string of any bytes.
fn raw_short() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..12)
        .prop_map(|octets| [&[u8::try_from(octets.len()).expect("small")][..], &octets].concat())
}

/// The entries of a table; names may be any bytes and may repeat.
fn raw_table() -> impl Strategy<Value = Vec<u8>> {
    vec((raw_short(), raw_value()), 0..6)
        .prop_map(|entries| entries.into_iter().flat_map(|(name, value)| [name, value].concat()).collect())
}

/// Valid properties with every combination of flags.
fn raw_properties() -> impl Strategy<Value = Vec<u8>> {
    (any::<u16>(), vec(raw_short(), 14), raw_table(), any::<u64>()).prop_map(
        |(flags, strings, table, number)| {
            let flags = flags & !3;
            let mut octets = flags.to_be_bytes().to_vec();
            for (place, string) in strings.iter().enumerate() {
                match 0x8000 >> place {
                    flag if flags & flag == 0 => {}
                    0x2000 => {
                        octets.extend(u32::try_from(table.len()).expect("small").to_be_bytes());
                        octets.extend(&table);
                    }
                    0x1000 | 0x0800 => octets.push(number.to_be_bytes()[7]),
                    0x0040 => octets.extend(number.to_be_bytes()),
                    _ => octets.extend(string),
                }
            }
            octets
        },
    )
}

/// A method number that exists, followed by arbitrary bytes.
fn nearly_a_method() -> impl Strategy<Value = Vec<u8>> {
    let class =
        prop_oneof![Just(10u16), Just(20), Just(30), Just(40), Just(50), Just(60), Just(85), Just(90)];
    let method = prop_oneof![(1u16..13).prop_map(|n| n * 10), (1u16..13).prop_map(|n| n * 10 + 1), Just(72)];
    let arguments = vec(prop_oneof![3 => 0..4u8, 1 => any::<u8>(), 1 => Just(b'S')], 0..60);
    (class, method, arguments)
        .prop_map(|(class, method, rest)| [&class.to_be_bytes()[..], &method.to_be_bytes(), &rest].concat())
}

/// The bytes with one of them changed, or with the end removed.
fn damaged(octets: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    (octets, any::<prop::sample::Index>(), any::<u8>(), any::<bool>()).prop_map(
        |(mut octets, at, octet, cut)| {
            if octets.is_empty() {
                return vec![octet];
            }
            let at = at.index(octets.len());
            if cut {
                octets.truncate(at);
            } else {
                octets[at] = octet;
            }
            octets
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn tables_are_kept_as_received(octets in raw_table()) {
        let table = Table::parse(&octets).expect("a sound table");
        check_any_table(&octets);
        prop_assert_eq!(&written(|w| w.table(|t| t.entries(table))).split_off(4), &octets);
    }

    #[test]
    fn a_value_taken_out_is_written_as_it_was_but_for_spelling(octets in raw_table()) {
        let table = Table::parse(&octets).expect("a sound table");
        let again = written(|w| w.table(|t| table.iter().try_for_each(|(name, value)| t.value(name, value))));
        let reread = Table::parse(&again[4..]).expect("a sound table");
        prop_assert!(table.iter().eq(reread.iter()));
    }

    #[test]
    fn properties_are_kept_as_received(octets in raw_properties()) {
        Properties::parse(&octets).expect("sound properties");
        check_any_properties(&octets);
        let payload = written(|w| ContentHeader::new(7, Properties::trusted(&octets)).emit(w));
        let header = ContentHeader::parse(&payload).expect("a header");
        prop_assert_eq!((header.class_id, header.weight, header.body_len), (BASIC_CLASS, 0, 7));
        prop_assert_eq!(header.properties.as_bytes(), &octets);
    }

    #[test]
    fn an_edit_and_its_reverse_leave_no_trace(octets in raw_properties()) {
        let properties = Properties::parse(&octets).expect("sound properties");
        let back = PropertyEdit {
            headers: properties.headers().map_or(HeadersEdit::Remove, HeadersEdit::Set),
            reply_to: properties.reply_to().map_or(Edit::Remove, Edit::Set),
            expiration: properties.expiration().map_or(Edit::Remove, Edit::Set),
            user_id: properties.user_id().map_or(Edit::Remove, Edit::Set),
        };
        let away = PropertyEdit {
            headers: HeadersEdit::Set(Table::EMPTY),
            reply_to: Edit::Set(b"elsewhere"),
            expiration: Edit::Remove,
            user_id: Edit::Remove,
        };
        let edited = written(|w| properties.write_with(away, w));
        let edited = Properties::parse(&edited).expect("sound properties");
        prop_assert_eq!(edited.headers(), Some(Table::EMPTY));
        prop_assert_eq!(edited.reply_to(), Some(&b"elsewhere"[..]));
        prop_assert_eq!((edited.expiration(), edited.user_id()), (None, None));
        prop_assert_eq!(written(|w| edited.write_with(back, w)), octets.clone());
    }

    #[test]
    fn without_space_nothing_is_written(octets in raw_properties(), room in 0..200usize) {
        let properties = Properties::parse(&octets).expect("sound properties");
        let mut buf = vec![0; room];
        let mut w = Writer::new(&mut buf);
        let fits = properties.write_with(PropertyEdit::default(), &mut w);
        prop_assert_eq!(fits.is_ok(), octets.len() <= room);
        prop_assert_eq!(w.at(), if fits.is_ok() { octets.len() } else { 0 });
    }

    #[test]
    fn any_octets_are_survived(octets in vec(any::<u8>(), 0..300)) {
        check_any_table(&octets);
        check_any_properties(&octets);
        check_any_method(&octets);
        check_any_frames(&octets);
        check_any_header(&octets);
    }

    #[test]
    fn damaged_octets_are_survived(
        table in damaged(raw_table()),
        properties in damaged(raw_properties()),
        method in nearly_a_method(),
    ) {
        check_any_table(&table);
        check_any_properties(&properties);
        check_any_method(&method);
    }

    #[test]
    fn an_opening_is_decided_by_eight_octets_for_good(
        octets in vec(any::<u8>(), 0..20),
        start in 0..4usize,
    ) {
        let starts: [&[u8]; 4] = [b"", b"AMQP", b"GET ", b"\x16\x03\x01"];
        let input = [starts[start], &octets].concat();
        let mut decided = None;
        for len in 0..=input.len() {
            match (classify_opening(&input[..len]), decided) {
                (Opening::NeedMore, before) => {
                    prop_assert!(before.is_none(), "{before:?} was taken back");
                    prop_assert!(len < 8);
                }
                (opening, None) => decided = Some(opening),
                (opening, Some(before)) => prop_assert_eq!(opening, before),
            }
        }
    }
}

#[test]
fn nesting_is_bounded_whatever_the_size() {
    let mut table = Vec::new();
    for _ in 0..2000 {
        let len = u32::try_from(table.len()).expect("small").to_be_bytes();
        table = [&b"\0F"[..], &len, &table].concat();
    }
    assert_eq!(Table::parse(&table), Err(WireError::TableTooDeep));
}
