//! An in-memory disk with the faults of real disks.
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

mod damage;
mod disk;
mod mutant;
mod trouble;

pub use damage::Damaged;
pub use disk::{Counts as DiskCounts, SimDisk};
pub use mutant::Mutant;
pub use trouble::{LASTING, Trouble};
