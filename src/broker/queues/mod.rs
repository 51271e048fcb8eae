//! Messages go into queues, through them, out of memory and back, and are given up.
//!
//! Why it exists: everything that is done with a message while it is in a queue is decided here, over the records of
//! `queue`; who gets it, and where its dead letter goes, is decided outside.
//!
//! | file | what |
//! |---|---|
//! | `state` | all of it; queues get other settings, and end |
//! | `push` | is there room for one more, on which level; a message comes in |
//! | `head`, `gets` | what stands first, whether it may go, what becomes of it; gets that wait |
//! | `shed`, `shedding` | what a queue gives up: what is too much, expired, rejected or purged; when to ask it again |
//! | `schedules`, `expiry` | when to look at which queue, and what for |
//! | `delayed`, `delay_wheel` | what delayed exchanges keep until its time; when that is |
//! | `spill`, `page_in`, `fetch`, `paging`, `read_back_room` | queues deeper than memory: the way out, the way in, what is read for it, who waits, the room for it |
//! | `browses` | messages read for somebody who looks at them |
//!
//! Always true: a queue with something to give up, to read back or to expire is on the list that says so; a message is
//! counted where it is, in the queue, among the deliveries or among what only the log has, and nowhere else.

mod browses;
mod delay_wheel;
mod delayed;
mod expiry;
mod fetch;
mod gets;
mod head;
mod page_in;
mod paging;
mod push;
mod read_back_room;
mod schedules;
mod shed;
mod shedding;
mod spill;
mod state;
#[cfg(test)]
mod tests;

pub(super) use delay_wheel::{DelayWheel, Held, NARROWEST_PUBLISHED, Next, Slot, delay_ms};
pub(super) use expiry::Expiry;
pub(super) use gets::Getting;
pub(super) use push::{Claim, Hindrance, LevelChoice};
pub(super) use shed::Patience;
pub(super) use shedding::take_step;
pub(super) use state::Scratch;

pub use browses::Browses;
pub use fetch::{Fetch, FetchFrom, Page, PageIn};
pub use push::disk_shortage;
pub use state::Queues;
