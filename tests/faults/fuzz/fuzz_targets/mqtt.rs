//! A stream of MQTT packets.
#![no_main]

use leveret_test_support::mqtt_checks::check_any_packets;

libfuzzer_sys::fuzz_target!(|octets: &[u8]| check_any_packets(octets));
