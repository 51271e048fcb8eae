//! Payloads of method frames.
#![no_main]

#[path = "../../../support/wire_checks/mod.rs"]
mod wire_checks;

libfuzzer_sys::fuzz_target!(|octets: &[u8]| wire_checks::check_any_method(octets));
