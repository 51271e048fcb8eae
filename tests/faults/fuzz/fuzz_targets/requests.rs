//! Requests to the management API, and definitions files. Any input is a complete, an incomplete or a refused
//! request. A complete one takes no more bytes than there are, and is the same whatever follows. Definitions are
//! read or refused.

#![no_main]

use std::io::Cursor;

use leveret_management::definitions;
use leveret_management::http::{Parsed, decode, encode, parse};

const BYTES_MAX: usize = 4096;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let bytes = &bytes[..bytes.len().min(BYTES_MAX)];
    if let Parsed::Request(request, end) = parse(bytes, BYTES_MAX) {
        assert!(end <= bytes.len() && request.body.len() <= end);
        for segment in &request.segments {
            assert_eq!(decode(&encode(segment)).as_deref(), Some(&**segment));
        }
        for shorter in 0..end {
            assert!(matches!(parse(&bytes[..shorter], BYTES_MAX), Parsed::NeedMore | Parsed::NeedBody { .. } | Parsed::Refused(_)));
        }
        let Parsed::Request(_, again) = parse(&bytes[..end], BYTES_MAX) else { panic!("it was whole") };
        assert_eq!(again, end);
    }
    let _ = definitions::read::<()>(&mut Cursor::new(bytes), |at, value| {
        let _ = definitions::parse(at.section, value);
        Ok(())
    });
});
