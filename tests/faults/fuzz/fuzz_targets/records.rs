//! Records whose checksum is right and whose contents are anything: parsing ends, and what it accepts reads
//! back the same.
#![no_main]

use leveret_storage::Record;

/// A record of this kind with this payload, its checksum included.
fn sealed(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut head = vec![kind];
    let mut rest = payload.len();
    while rest >= 0x80 {
        head.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    head.push(rest as u8);
    let sum = crc32c::crc32c_append(crc32c::crc32c(&head), payload);
    [&head, &sum.to_le_bytes()[..], payload].concat()
}

libfuzzer_sys::fuzz_target!(|octets: &[u8]| {
    let _ = Record::parse(octets);
    let Some((kind, payload)) = octets.split_first() else { return };
    let bytes = sealed(kind % 9, payload);
    if let Ok((record, length)) = Record::parse(&bytes) {
        assert_eq!(length, bytes.len());
        let mut again = Vec::new();
        record.encode(&mut again);
        assert_eq!(Record::parse(&again).map(|(record, _)| record), Ok(record));
    }
});
