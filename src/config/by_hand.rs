//! What the limits follow from: what stands in the profile, and what a person set over it.

use super::layer::{Layer, LimitsLayer, Said};
use super::read::put;
use leveret_core::limits::Limits;

/// The memory of the whole process when nothing is said, in bytes.
pub(super) const MEMORY_LIMIT_BYTES_DEFAULT: u64 = 128_000_000;

/// What stands in a profile, beside what a person sets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// Its limits.
    pub limits: Limits,
    /// Its `memory_limit`, in bytes.
    pub memory_limit_bytes: u64,
}

impl Default for Profile {
    fn default() -> Self {
        Self { limits: Limits::default(), memory_limit_bytes: MEMORY_LIMIT_BYTES_DEFAULT }
    }
}

/// What a person set of the limits, in the file or by flags.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ByHand {
    limits: LimitsLayer,
    pub(super) frame_max: Option<u32>,
}

/// The key that is set besides those of `[limits]` and costs memory.
pub(super) const FRAME_MAX: &str = "frame_max";
/// The key that follows from how many bridges are said.
pub(super) const BRIDGES_MAX: &str = "bridges_max";

impl ByHand {
    /// What a layer says, over what was said before.
    pub(super) fn add(&mut self, layer: &Layer) {
        self.limits.take_over(&layer.limits);
        self.frame_max = layer.frame_max.map(|bytes| bytes.0).or(self.frame_max);
    }

    /// Bridges that there is to be room for.
    pub(super) fn bridges_max(&self) -> usize {
        let mut limits = Limits { bridges_max: 0, ..Limits::default() };
        self.limits.lay_over(&mut limits);
        limits.bridges_max as usize
    }

    pub(super) fn lay_over(&self, limits: &mut Limits) {
        self.limits.lay_over(limits);
        put(&mut limits.frame_max, self.frame_max);
    }

    pub(super) fn has(&self, key: &str) -> bool {
        if key == FRAME_MAX { self.frame_max.is_some() } else { self.limits.has(key) }
    }

    pub(super) fn without(&self, key: &str) -> Self {
        let frame_max = self.frame_max.filter(|_| key != FRAME_MAX);
        Self { limits: self.limits.without(key), frame_max }
    }
}
