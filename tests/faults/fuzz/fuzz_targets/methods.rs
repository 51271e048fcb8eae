//! Payloads of method frames.
#![no_main]

use leveret_test_support::amqp_checks::check_any_method;

libfuzzer_sys::fuzz_target!(|octets: &[u8]| check_any_method(octets));
