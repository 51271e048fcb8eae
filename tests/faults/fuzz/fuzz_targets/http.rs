//! The management API and the engine: the octets are instructions to up to three clients.
#![no_main]

#[path = "../../../simulation/world/mod.rs"]
mod world;

libfuzzer_sys::fuzz_target!(|octets: &[u8]| world::hostile_http::check_any_requests(octets));
