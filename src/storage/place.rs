//! Where a record lies, and where something stands in the order of everything appended.

/// Where a record lies.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Place {
    /// The segment's sequence.
    pub segment: u64,
    /// Its first byte in the segment.
    pub at: u32,
    /// Its length in bytes.
    pub bytes: u32,
}

/// A place in the order of everything appended; durable when [`Log::durable`] has reached it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Position(pub u64);
