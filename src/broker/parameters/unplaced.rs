//! Parameters that the log has, and for which there was no place at the start.
//!
//! Why it exists: a start under a lower `parameters_max` leaves some parameters in the log only; they can
//! still be cleared, and components must not take them for cleared.
//!
//! Always true: the list of such parameters is bounded, and takes memory only if there are some; those beyond
//! it, or not readable, may be anything.

use core::hash::BuildHasher;

use foldhash::quality::FixedState;

use super::views::ParameterName;

/// Parameters without a place that can still be cleared.
const UNPLACED_MAX: usize = 64;

/// The parameters without a place.
#[derive(Debug)]
pub(super) struct Unplaced {
    /// Hashes of the parameters' virtual hosts, components and names.
    hashes: Vec<u64>,
    /// The log may have further parameters without a place.
    is_in_doubt: bool,
    hasher: FixedState,
}

impl Unplaced {
    pub(super) const fn new(seed: u64) -> Self {
        Self { hashes: Vec::new(), is_in_doubt: false, hasher: FixedState::with_seed(seed) }
    }

    /// Notes that the log may have parameters that cannot be read.
    pub(super) const fn doubt(&mut self) {
        self.is_in_doubt = true;
    }

    /// Notes that there was no place for a parameter.
    pub(super) fn add(&mut self, name: ParameterName<'_>) {
        if self.hashes.len() < UNPLACED_MAX {
            self.hashes.push(self.hasher.hash_one(name));
        } else {
            self.doubt();
        }
    }

    /// Notes that a parameter has a place now, or is gone.
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
