//! The built program as its users meet it: its commands, its log.

mod bench;
mod flight;
mod formats;
mod inspect;
mod log_writer;
mod program;
mod report;
mod start;
