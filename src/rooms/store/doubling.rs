//! How far what is defined has been written a second time, and which names footers have repeated.

use super::place::{Place, Position};

/// How far the definitions have been gone through.
#[derive(Debug, Default)]
pub(super) struct Doubling {
    /// Something was defined or a segment was opened since they were gone through.
    pub(super) is_due: bool,
    /// They are being gone through.
    pub(super) is_going: bool,
    /// The key that was looked at last.
    pub(super) key: Vec<u8>,
    /// What is being read: its version, and where it lies.
    pub(super) reading: Option<(u64, Place)>,
    /// The copies made so far are durable with this.
    pub(super) copied: Position,
    /// What is written of definitions besides.
    pub(super) naming: Naming,
}

impl Doubling {
    /// Nobody knows yet what lies at one place only.
    pub(super) fn due() -> Self {
        Self { is_due: true, ..Self::default() }
    }
}

/// Which names were written last.
#[derive(Debug, Default)]
pub(super) struct Naming {
    /// The key that was read last; reading goes on behind it.
    pub(super) after: Vec<u8>,
    pub(super) payload: Vec<u8>,
}
