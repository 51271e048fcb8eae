//! The management API and the engine: the octets are instructions to up to three clients.
#![no_main]

use leveret_test_support::simulated_server::hostile_http::check_any_requests;

libfuzzer_sys::fuzz_target!(|octets: &[u8]| check_any_requests(octets));
