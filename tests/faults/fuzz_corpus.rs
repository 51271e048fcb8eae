//! The fuzz targets without a fuzzer: with the corpus that fuzzing has found, and with random input that has
//! hostile lengths.
//!
//! A fuzzer needs a toolchain that most machines lack, and 64 bits. This program runs with the tests, also on 32
//! bits with overflow checks (`tests/system/pointer_width_32`). Without a corpus every run uses the same inputs.

use std::io::ErrorKind;
use std::path::Path;
use std::{env, fs};

use leveret_test_support::random::Random;

// The targets name the macro by the fuzzer's crate; here that is this one.
extern crate self as libfuzzer_sys;

/// A target is a function of octets.
#[macro_export]
macro_rules! fuzz_target {
    (|$octets:ident: &[u8]| $body:expr) => {
        pub fn try_octets($octets: &[u8]) {
            $body
        }
    };
}

macro_rules! targets {
    ($($name:ident $file:literal $noises:literal)*) => {$(
        #[allow(
            unused_attributes, missing_docs, unreachable_pub,
            reason = "it is a program of its own elsewhere"
        )]
        // The targets lie in the workspace of the fuzzer, where each is a program of its own.
        #[path = $file]
        mod $name;

        #[test]
        fn $name() {
            try_all(stringify!($name), $noises, $name::try_octets);
        }
    )*};
}

// How many noises depends on what one costs.
targets! {
    frames "fuzz/fuzz_targets/frames.rs" 20_000
    methods "fuzz/fuzz_targets/methods.rs" 20_000
    properties "fuzz/fuzz_targets/properties.rs" 20_000
    tables "fuzz/fuzz_targets/tables.rs" 20_000
    records "fuzz/fuzz_targets/records.rs" 20_000
    requests "fuzz/fuzz_targets/requests.rs" 300
    log "fuzz/fuzz_targets/log.rs" 100
    connection "fuzz/fuzz_targets/connection.rs" 300
    http "fuzz/fuzz_targets/http.rs" 300
    mqtt "fuzz/fuzz_targets/mqtt.rs" 20_000
}

/// Maximum number of files of each target's corpus, so that the test takes seconds.
const FILES_MAX: usize = 2_000;

/// Prefixes of random input: lengths of -1, the largest and smallest signed numbers, one, and beginnings that get
/// an input past the first checks.
const PIECES: [&[u8]; 14] = [
    &[0xff; 4],
    &[0xff; 8],
    &[0xff, 0xff, 0xff, 0xfe],
    &[0x7f, 0xff, 0xff, 0xff],
    &[0x80, 0, 0, 0],
    &[0, 0, 0, 1],
    &[0xff, 0xff, 0xff, 0xff, 0x0f],
    &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
    b"AMQP\0\0\x09\x01",
    b"\x01\0\x01\xff\xff\xff\xff",
    b"\0\x3c\0\x28",
    b"\x02\x10\xff\x01\0\x04MQTT\x05\xc6\0\x3c",
    b"\x02\x32\x20\0\x03a/b\0\x01",
    b"GET /api/queues/%2F HTTP/1.1\r\ncontent-length: 4294967295\r\n\r\n",
];

fn try_all(name: &str, noises: u64, try_octets: impl Fn(&[u8])) {
    // The corpus differs between machines, so it is used only on request.
    let corpus = env::var_os("LEVERET_CORPUS").map(|folder| Path::new(&folder).join(name));
    let files = corpus.and_then(|folder| fs::read_dir(folder).ok());
    let mut files: Vec<_> = files.into_iter().flatten().flatten().collect();
    files.sort_unstable_by_key(fs::DirEntry::file_name);
    for file in files.iter().take(FILES_MAX) {
        match fs::read(file.path()) {
            Ok(octets) => try_octets(&octets),
            // The fuzzer may run beside this, and puts a shorter input in the place of a longer one.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => panic!("{}: {error}", file.path().display()),
        }
    }
    println!("{name}: {} files of the corpus, {noises} noises", files.len().min(FILES_MAX));
    let mut random = Random::new(0);
    let mut below = |bound: u64| random.below(bound);
    for _ in 0..noises {
        let mut octets = Vec::new();
        for _ in 0..below(12) {
            match below(3) {
                0 => octets.extend_from_slice(PIECES[below(PIECES.len() as u64) as usize]),
                1 => octets.extend((0..below(24)).map(|_| below(256) as u8)),
                // Small numbers are the likeliest to mean something.
                _ => octets.extend((0..below(24)).map(|_| below(20) as u8)),
            }
        }
        try_octets(&octets);
    }
}
