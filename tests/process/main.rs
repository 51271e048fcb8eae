//! The built program as its users meet it: its commands, its log, what other people's clients make of it.

// `inspect` is tried on stores of the simulated disk, which is there only in builds that check themselves.
#![cfg(debug_assertions)]

#[path = "../home/mod.rs"]
mod home;

mod bench;
mod inspect;
mod log_writer;
mod program;
mod rust_clients;
