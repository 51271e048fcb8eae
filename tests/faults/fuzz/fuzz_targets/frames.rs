//! A stream of frames, and all that may be in them.
#![no_main]

use leveret_test_support::amqp_checks::check_any_frames;

libfuzzer_sys::fuzz_target!(|octets: &[u8]| check_any_frames(octets));
