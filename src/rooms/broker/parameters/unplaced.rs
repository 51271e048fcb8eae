//! Parameters that the log has, and for which there was no place at the start.
//!
//! Why it exists: a start under a lower `parameters_max` leaves some of them where they are; they can still be
//! cleared, and whoever goes by parameters is not to take them for cleared.
//!
//! Always true: what is known is bounded, and takes memory only if there is some; what is beyond that, or could
//! not be read, may be anything.

use core::hash::BuildHasher;

use foldhash::quality::FixedState;

use super::views::ParameterName;

/// Parameters without a place that can still be cleared.
const UNPLACED_MAX: usize = 64;

/// What is known of parameters without a place.
#[derive(Debug)]
pub(super) struct Unplaced {
    /// Hashes of their virtual hosts, components and names.
    hashes: Vec<u64>,
    /// The log may have others.
    is_in_doubt: bool,
    hasher: FixedState,
}

impl Unplaced {
    pub(super) const fn new(seed: u64) -> Self {
        Self { hashes: Vec::new(), is_in_doubt: false, hasher: FixedState::with_seed(seed) }
    }

    /// The log may have parameters that nobody can read.
    pub(super) const fn doubt(&mut self) {
        self.is_in_doubt = true;
    }

    /// There was no place for a parameter.
    pub(super) fn add(&mut self, name: ParameterName<'_>) {
        if self.hashes.len() < UNPLACED_MAX {
            self.hashes.push(self.hasher.hash_one(name));
        } else {
            self.doubt();
        }
    }

    /// A parameter has a place now, or is gone.
    pub(super) fn remove(&mut self, name: ParameterName<'_>) {
        let hash = self.hasher.hash_one(name);
        self.hashes.retain(|other| *other != hash);
    }

    /// Whether a parameter is known to be without a place.
    pub(super) fn has(&self, name: ParameterName<'_>) -> bool {
        self.hashes.contains(&self.hasher.hash_one(name))
    }

    /// Whether a parameter is without a place, or may be.
    pub(super) fn may_have(&self, name: ParameterName<'_>) -> bool {
        self.is_in_doubt || self.has(name)
    }
}
