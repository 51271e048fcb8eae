//! Queues: their messages, in memory and out of it, the order of delivery, and the unsettled deliveries.
//!
//! Why it exists: everything that happens to a message in a queue (priorities, limits, expiry, short memory,
//! the log) is decided here; who gets it, and where its dead letter goes, is decided outside.
//!
//! | file | what |
//! |---|---|
//! | `state` | all of it |
//! | `queue` | the record of one queue |
//! | `levels`, `ranks` | queues with priorities: a level for each; how levels are made and chosen |
//! | `schedules` | when to look at which queue, and what for |
//! | `reserve`, `push`, `routes` | whether there is room for one more; a message comes in; the queues of one that waits for its commit |
//! | `head`, `ready`, `gets` | what stands first, and whether it may go; queues begin, end and take back; gets that wait |
//! | `fullness`, `shed`, `shedding` | how full a queue is; what it gives up; when to ask it again |
//! | `expire`, `expiry` | when what stands first expires, and unused queues go; when to look |
//! | `delayed`, `slots`, `sleepers` | what delayed exchanges keep until its time; which level has which time; when that is |
//! | `backlog`, `lanes`, `place` | what waits in a queue; what the log has of it; what stands at one place of it |
//! | `deliveries` | messages between queue and acknowledgement |
//! | `paging`, `read_back_room`, `page_in`, `spill` | queues deeper than memory: who waits for what, the way in, the way out |
//! | `look`, `looks` | messages looked at in their queue; what somebody waits to look at |
//! | `definitions`, `returns` | how queues are written down, and how often messages of quorum queues came back |
//!
//! Always true: offsets rise with arrival and stay with a message for life, so requeued messages go before
//! everything that has not been delivered yet, in their old order (in that of their return once half of all
//! delivery records serve such messages); a message is in one place of one queue, or in one delivery of it.

mod backlog;
mod definitions;
mod delayed;
mod deliveries;
mod expire;
mod expiry;
mod fullness;
mod gets;
mod head;
mod lanes;
mod levels;
mod look;
mod looks;
mod page_in;
mod paging;
mod place;
mod push;
mod queue;
mod ranks;
mod read_back_room;
mod ready;
mod reserve;
mod returns;
mod routes;
mod schedules;
mod shed;
mod shedding;
mod sleepers;
mod slots;
mod spill;
mod state;
#[cfg(test)]
mod tests;

pub(super) use backlog::{Purged, SLOT_BYTES, Taken, block_bytes};
pub(super) use deliveries::{Carrier, Deliveries, NewDelivery};
pub(super) use expire::Patience;
pub(super) use expiry::Expiry;
pub(super) use gets::Getting;
pub(super) use lanes::Logged;
pub(super) use queue::{Front, Peeked, Queue, Rank};
pub(super) use ranks::{LevelChoice, first_rank};
pub(super) use reserve::{Claim, Hindrance};
pub(super) use returns::Returns;
pub(super) use routes::Targets;
pub(super) use shedding::take_step;
pub(super) use sleepers::{Held, Next, PLAIN, SLOTS, Sleepers, Slot, delay_ms};
pub(super) use state::Scratch;

pub use look::{LOOKED_MAX, Looked, Seen};
pub use looks::LogRun;
pub use page_in::{Fetch, FetchFrom, Page, PageIn};
pub use ranks::levels_of;
pub use reserve::disk_shortage;
pub use state::Queues;
