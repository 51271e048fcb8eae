//! A disk in memory that fails as real ones do, and numbers from a seed.
//!
//! | file | what it holds |
//! |------|---------------|
//! | `disk` | the files, the page cache, the media; power cuts and kills |
//! | `trouble` | what goes wrong with it at which call |
//! | `damage` | what happens to blocks that were synced |
//! | `mutant` | mistakes to put in front of it |
//!
//! Why it exists: the store sees a disk only through the trait [`leveret_storage::Disk`], so what takes
//! years of cheap cards to happen can be had here at any call, again and again. Always true: a run is a
//! function of its seed.

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
