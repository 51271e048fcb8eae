//! Property flags and lists.
#![no_main]

use leveret_test_support::amqp_checks::check_any_properties;

libfuzzer_sys::fuzz_target!(|octets: &[u8]| check_any_properties(octets));
