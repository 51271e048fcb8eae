//! The built program as its users meet it: its commands, its log.

#[path = "../../support/home/mod.rs"]
mod home;
#[path = "../../simulation/sim_disk/mod.rs"]
mod sim_disk;
#[path = "../../component/store_formats/mod.rs"]
mod stores;

mod bench;
mod flight;
mod formats;
mod inspect;
mod log_writer;
mod program;
mod report;
mod start;
