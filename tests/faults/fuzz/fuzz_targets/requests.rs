//! Requests to the management API, and definitions files. Any input is a complete, an incomplete or a refused
//! request. A complete one takes no more bytes than there are, and is the same whatever follows. A chunked body is the
//! same however it arrives. Definitions are read or refused.

#![no_main]

use std::io::Cursor;

use leveret_management::definitions;
use leveret_management::http::{ChunkDecoder, Parsed, decode, encode, parse};

const BYTES_MAX: usize = 4096;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let bytes = &bytes[..bytes.len().min(BYTES_MAX)];
    let whole = decoded(bytes, bytes.len().max(1));
    for piece in [1, 2, 7, 64] {
        assert_eq!(decoded(bytes, piece), whole, "in pieces of {piece} bytes");
    }
    if let Parsed::Request(request, end) = parse(bytes, BYTES_MAX, None) {
        assert!(end <= bytes.len() && request.body.len() <= end);
        for segment in &request.segments {
            assert_eq!(decode(&encode(segment)).as_deref(), Some(&**segment));
        }
        for shorter in 0..end {
            assert!(matches!(parse(&bytes[..shorter], BYTES_MAX, None), Parsed::NeedMore | Parsed::NeedBody { .. } | Parsed::Refused(_)));
        }
        let Parsed::Request(_, again) = parse(&bytes[..end], BYTES_MAX, None) else { panic!("it was whole") };
        assert_eq!(again, end);
    }
    let _ = definitions::read::<()>(&mut Cursor::new(bytes), |at, value| {
        let _ = definitions::parse(at.section, value);
        Ok(())
    });
});

/// Returns the content of a chunked body that arrives in pieces, and the number of bytes behind it; `None` if it is refused.
fn decoded(bytes: &[u8], piece: usize) -> Option<(Vec<u8>, usize)> {
    let (mut decoder, mut content, mut rest) = (ChunkDecoder::default(), Vec::new(), 0);
    for bytes in bytes.chunks(piece) {
        let mut bytes = bytes.to_vec();
        let (len, taken) = decoder.decode(&mut bytes).ok()?;
        assert!(len <= taken && taken <= bytes.len());
        assert!(taken == bytes.len() || decoder.is_done(), "all bytes before the end are decoded");
        content.extend_from_slice(&bytes[..len]);
        rest += bytes.len() - taken;
    }
    Some((content, rest))
}
