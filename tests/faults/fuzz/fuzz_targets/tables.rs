//! Field tables and arrays.
#![no_main]

use leveret_test_support::amqp_checks::check_any_table;

libfuzzer_sys::fuzz_target!(|octets: &[u8]| check_any_table(octets));
