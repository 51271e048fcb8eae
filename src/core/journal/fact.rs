//! What is said about things other than messages, and when that is durable.
//!
//! Always true: facts only add up; of two about the same thing the later one, or the higher version, holds.

use super::definition::is_access;

/// What is said about things other than messages.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fact {
    /// Something exists, has changed, or (without a value) exists no more.
    Defined {
        /// Of two the higher holds.
        version: u64,
        /// What is defined; see [`super::definition`].
        key: Box<[u8]>,
        /// Its value.
        value: Option<Box<[u8]>>,
    },
    /// The queue is gone with everything in it.
    Gone {
        /// Its incarnation.
        queue: u64,
    },
    /// Offsets below may have been delivered before.
    DeliveredWatermark {
        /// The queue's incarnation.
        queue: u64,
        /// The first that surely was not.
        offset: u64,
    },
    /// At a clean stop: offsets from this one on were never delivered, although a mark ran ahead.
    WatermarkReset {
        /// The queue's incarnation.
        queue: u64,
        /// The first that surely was not.
        offset: u64,
        /// The highest mark there is; a higher one makes this void.
        watermark: u64,
    },
}

impl Fact {
    /// Whether it says who may do what.
    pub(super) fn is_access(&self) -> bool {
        matches!(self, Self::Defined { key, .. } if is_access(key))
    }

    /// What it takes here, roughly.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Defined { key, value, .. } => key.len() + value.as_ref().map_or(0, |value| value.len()),
            Self::Gone { .. } | Self::DeliveredWatermark { .. } | Self::WatermarkReset { .. } => 0,
        }
    }
}
