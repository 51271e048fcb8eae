//! The built program as its users meet it: its commands, its log, what other people's clients make of it.

#[path = "../home/mod.rs"]
mod home;
#[path = "../sim_disk/mod.rs"]
mod sim_disk;

mod bench;
mod flight;
mod inspect;
mod log_writer;
mod program;
mod report;
mod rust_clients;
