//! The engine in one world with its clients, under a clock that jumps: what no socket can be made
//! to do at will.
//!
//! | file      | what it is about |
//! |-----------|------------------|
//! | `time`    | heartbeats, half-open peers, idleness |
//! | `bytes`   | fragments, frames out of place, a peer lost at every byte |
//! | `lives`   | random lives of several connections, and what every run must keep |
//! | `memory`  | who waits, who is refused, and that nobody hangs, when pools are full |
//! | `bridge`  | a bridge whose upstream is a line in memory |
//! | `bridge_day` | the bytes of a day of a bridge |
//! | `management` | clients of the management API |
//! | `operators` | the operator's clients, as peers among the others |
//! | `mass`    | one command that means a lot of work |
//!
//! Always true: no test here waits; a world that is stuck has come to rest without what was expected, and
//! the assertion says so.

#[path = "../world/mod.rs"]
mod world;

mod bridge;
mod bridge_day;
mod bridge_rest;
mod bytes;
mod lives;
mod management;
mod management_changes;
mod mass;
mod memory;
mod operators;
mod time;
