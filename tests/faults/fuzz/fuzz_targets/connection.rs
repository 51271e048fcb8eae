//! Sessions and broker: the octets are instructions to up to three guests.
#![no_main]

use leveret_test_support::simulated_server::hostile::check_any_session;

libfuzzer_sys::fuzz_target!(|octets: &[u8]| check_any_session(octets));
