//! Files that are read or copied now, and so must not be used again although their segments may have left.
//!
//! Why files are held still for a copy: it is a store only if none of them is used again before it is copied. What is
//! durable at one moment lies in the live segments, in the active one up to its tail; those files are not given to new
//! segments until the copy is done, though they may leave the log meanwhile.
//!
//! Always true: one file at most is read, for there is one buffer to read into; a copy never costs anybody a confirm:
//! when room gets short it is given up, and whoever copies is told so.

/// A file to be copied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PinnedFile {
    /// Its number.
    pub slot: u32,
    /// So many bytes of it, from its start; what lies behind them is zeros in the copy.
    pub bytes: u32,
    /// The file's length in bytes.
    pub length: u32,
}

/// Slots that somebody needs as they are.
#[derive(Debug, Default)]
pub(super) struct Pins {
    read: Option<u32>,
    copied: Vec<u32>,
}

impl Pins {
    /// Whether the slot's file is to stay as it is.
    pub(super) fn has(&self, slot: u32) -> bool {
        self.read == Some(slot) || self.copied.contains(&slot)
    }

    /// This file is read, or none any more.
    pub(super) const fn set_read(&mut self, slot: Option<u32>) {
        self.read = slot;
    }

    /// These files are copied.
    pub(super) fn set_copied(&mut self, slots: impl Iterator<Item = u32>) {
        self.copied.clear();
        self.copied.extend(slots);
    }

    /// Whether files are copied.
    pub(super) const fn is_copying(&self) -> bool {
        !self.copied.is_empty()
    }

    /// No file is copied any more; those that were.
    pub(super) fn take_copied(&mut self) -> Vec<u32> {
        core::mem::take(&mut self.copied)
    }
}
