//! Holding still what a copy is made of, while the log goes on.
//!
//! Why it exists: a copy of the files is a store only if none of them is used again before it is copied. What
//! is durable at one moment lies in the live segments, in the active one up to its tail; those files are not
//! given to new segments until the copy is done, though they may leave the log meanwhile.
//!
//! Always true: a hold never costs anybody a confirm: when room gets short it is given up, and whoever copies
//! is told so.

use super::log::Log;
use super::segment_index::Segment;
use super::slots::Slot;

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

impl Log {
    /// What a copy is made of: everything durable at this moment. `None` while a commit is on its way; ask
    /// again when it is done. Ends a hold before it.
    pub fn pin_for_backup(&mut self) -> Option<Vec<PinnedFile>> {
        if self.in_flight.is_some() || self.failed || self.schedule.is_starting() {
            return None;
        }
        self.release_backup_pin();
        let of = |(sequence, segment): (&u64, &Segment)| PinnedFile {
            slot: segment.slot,
            length: self.settings.segment_bytes,
            bytes: if *sequence == self.active.sequence() {
                self.active.tail()
            } else {
                self.settings.segment_bytes
            },
        };
        let held: Vec<PinnedFile> = self.index.segments().iter().map(of).collect();
        self.pins.set_copied(held.iter().map(|held| held.slot));
        Some(held)
    }

    /// Whether what was held is still as it was.
    pub const fn is_pinned_for_backup(&self) -> bool {
        self.pins.is_copying()
    }

    /// The files may be used again.
    pub fn release_backup_pin(&mut self) {
        for slot in self.pins.take_copied() {
            if self.slots.get(slot) == Slot::Pinned && !self.pins.has(slot) {
                self.slots.release(slot);
            }
        }
    }

    /// Gives a hold up when it takes room that somebody needs.
    pub(super) fn yield_backup_pin(&mut self) {
        if self.is_pinned_for_backup() && self.is_short() {
            log::warn!("the disk is nearly full: a backup under way is given up to make room");
            self.release_backup_pin();
        }
    }
}
