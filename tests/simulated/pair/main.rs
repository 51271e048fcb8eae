//! The engine in one world with its clients, under a clock that jumps: what no socket can be made
//! to do at will.
//!
//! | file      | what it is about |
//! |-----------|------------------|
//! | `alarms`  | each cause that makes a publisher wait, and what an operator is told of it |
//! | `time`    | heartbeats, half-open peers, idleness |
//! | `bytes`   | fragments, frames out of place, a peer lost at every byte |
//! | `lives`   | random lives of several connections, and what every run must keep |
//! | `memory`  | who waits, who is refused, and that nobody hangs, when pools are full |
//! | `bridge`  | a bridge whose upstream is a line in memory |
//! | `bridge_crossed` | what crosses on a bridge's line, and writes that take less than was there |
//! | `bridge_day` | the bytes of a day of a bridge |
//! | `bridge_fetch` | what is fetched finds no room, stands still, or means harm |
//! | `bridge_line` | a bridge on a slow line: what is urgent first, what is large all the same |
//! | `bridge_rest` | a bridge that connects on demand |
//! | `bridge_strict` | random lives of a bridge that forwards, with an upstream that hears to the letter |
//! | `bridge_strict_fetch` | random lives of one that fetches, from an upstream that keeps accounts |
//! | `bridge_strict_link` | that upstream's end of a connection |
//! | `bridge_wait` | what is refused waits alone |
//! | `admission` | logins while other connections are silent, slow or send wrong passwords |
//! | `fleet` | ten thousand devices whose upstream returns, on paper |
//! | `management` | clients of the management API |
//! | `management_changes` | what users change by the management API |
//! | `management_metrics` | those who come for metrics without a login |
//! | `management_fields` | what stands in its answers |
//! | `management_rights` | who may ask it for what, and what deceives it |
//! | `management_uploads` | requests whose body is longer than a request buffer |
//! | `operators` | the operator's clients, as peers among the others |
//! | `shovels` | shovels that parameters define |
//! | `mass`    | one command that means a lot of work |
//!
//! Always true: no test here waits; a world that is stuck has come to rest without what was expected, and
//! the assertion says so.

#[path = "../world/mod.rs"]
mod world;

mod admission;
mod alarms;
mod bridge;
mod bridge_crossed;
mod bridge_day;
mod bridge_fetch;
mod bridge_line;
mod bridge_rest;
mod bridge_strict;
mod bridge_strict_fetch;
mod bridge_strict_link;
mod bridge_wait;
mod bytes;
mod fleet;
mod lives;
mod management;
mod management_changes;
mod management_fields;
mod management_metrics;
mod management_rights;
mod management_uploads;
mod mass;
mod memory;
mod operators;
mod shovels;
mod time;
