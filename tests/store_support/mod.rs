//! The simulated disk, for the tests of the store alone.
//!
//! It lives with the rest of the simulator, in builds that check themselves; all that is here is its name.

#[allow(unused_imports, reason = "each test of the store uses a part of it")]
pub(crate) use leveret::sim::{Mutant, Random, SimDisk, Trouble};
