//! An in-memory disk with the faults of real disks, and random numbers from a seed.
//!
//! The store accesses a disk only through the trait [`leveret_storage::Disk`]. So a test can cause, at any call
//! and repeatably, faults that take years to occur on cheap cards.
//!
//! | file | contents |
//! |------|----------|
//! | `disk` | the files, the page cache, the media; power cuts and kills |
//! | `trouble` | which disk calls fail |
//! | `damage` | damage to synced blocks |
//! | `mutant` | deliberate mistakes between the store and the disk |
//!
//! # Invariants
//! - A run is a function of its seed.

#![allow(dead_code, unused_imports, missing_docs, unreachable_pub, reason = "each test uses its part")]

#[path = "../../support/random/mod.rs"]
pub mod random;

mod damage;
mod disk;
mod mutant;
mod trouble;

pub use damage::Damaged;
pub use disk::{Counts as DiskCounts, SimDisk};
pub use mutant::Mutant;
pub use random::Random;
pub use trouble::{LASTING, Trouble};
