//! Sessions and broker: the octets are instructions to up to three guests.
#![no_main]

#[path = "../../../simulation/world/mod.rs"]
mod world;

libfuzzer_sys::fuzz_target!(|octets: &[u8]| world::hostile::check_any_session(octets));
