//! The report of a start.

use core::ops::Range;
use std::io;

use leveret_core::definition::ACCESS_STORED_KEY;

use crate::disk::UnopenedFile;
use crate::reported_damage::ReportedDamage;
use crate::segment::SegmentRef;

/// The result of reading the store at a start.
#[derive(Debug, Default)]
pub struct Report {
    /// Whether the disk was empty and was formatted.
    pub is_new: bool,
    /// Damaged parts in the middle of the log.
    pub set_aside: Vec<SetAside>,
    /// Number of commits missing from the middle of the log.
    pub commits_missing: u64,
    /// Number of full segments with a bad footer. Commits may be missing at the ends of these segments. A power cut
    /// right after a crash may damage a footer without any loss of commits.
    pub footers_missing: u32,
    /// Number of commits lost at the end of the log. No later commit repeats their content.
    pub commits_lost_at_end: u64,
    /// Whether the newest file of the log, and perhaps others, are missing: the store is incomplete.
    pub newest_missing: bool,
    /// Blocks that the disk refuses to read: file and offset.
    pub refused: Vec<(u32, u32)>,
    /// Number of parts in `set_aside` that are missing because a segment file is too short.
    pub files_truncated: usize,
    /// Files that cannot be opened.
    pub unopened: Vec<UnopenedFile>,
    /// Whether there was a log, and no part of it can be read any more.
    pub is_lost: bool,
    /// Whether the log is lost, and no file contains any part of it: the files were moved or deleted, or another file
    /// system is mounted.
    pub has_no_files: bool,
    /// Whether the file of an unfinished repair by an older version of Leveret exists. The segment that was being
    /// repaired may be damaged.
    pub has_unfinished_repair: bool,
    /// Damage found by this start and earlier ones, until an operator acknowledges it.
    pub reported_damage: ReportedDamage,
    /// Whether this start has added a sentence to `reported_damage`.
    pub has_new_damage: bool,
    /// Number of unfinished large transactions that cannot be read. Some of their messages may have been
    /// kept.
    pub groups_damaged: u32,
    /// Number of unfinished large transactions that were undone completely.
    pub groups_undone: u32,
    /// The state of users and permissions.
    pub access: AccessReport,
    /// Whether the file system is full.
    pub is_full: bool,
    /// Whether the first commits of the start wait for space. Until they are written, records that the start found
    /// may exist only in the page cache.
    pub is_pending: bool,
    /// The error if the store can be read but not written, so that nothing can become durable.
    pub unwritable: Option<io::Error>,
}

impl Report {
    pub(super) fn set_part_aside(&mut self, segment: SegmentRef, part: Range<u32>) {
        let SegmentRef { sequence, slot } = segment;
        self.set_aside.push(SetAside { slot, segment: sequence, from: part.start, to: part.end });
    }

    /// Returns whether part of the log is certainly missing.
    pub fn is_damaged(&self) -> bool {
        !self.set_aside.is_empty() || self.commits_missing > 0
    }

    /// Returns whether the only damage is that segment files are too short.
    pub fn is_only_truncated(&self) -> bool {
        self.commits_missing == 0 && self.set_aside.len() == self.files_truncated
    }
}

/// A part of the log that could not be read and was set aside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SetAside {
    /// The file.
    pub slot: u32,
    /// Sequence of the segment; 0 if it is unknown.
    pub segment: u64,
    /// First byte of the part.
    pub from: u32,
    /// End of the part (exclusive).
    pub to: u32,
}

/// The state of the users and permissions in a store.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Access {
    /// There was no store.
    #[default]
    New,
    /// The store is undamaged, and users were never written to it.
    Silent,
    /// All access definitions were found in their newest version.
    Whole,
    /// An access definition is missing or may be missing. Contains the reason.
    InDoubt(&'static str),
}

/// The access definitions that a start found.
#[derive(Debug, Default)]
pub struct AccessReport {
    /// Whether the definitions are complete.
    pub access: Access,
    /// Keys of definitions that cannot be read.
    pub unreadable: Vec<Box<[u8]>>,
    /// Whether some definition has only one readable copy and should be written again.
    pub is_thin: bool,
    /// Definitions that the log had lost, had in an older version, or still had although they were deleted.
    pub restored: Vec<AccessCorrection>,
    /// All access definitions, ascending by key. They are kept here so that they are read only once: if the disk
    /// refused a second read, users would be locked out.
    pub definitions: Vec<AccessDefinition>,
}

impl AccessReport {
    /// Applies `restored` to `definitions`. If access is whole, also adds the definition [`ACCESS_STORED_KEY`], which
    /// the log may have lost. Without this definition, the default user of a new store would be created.
    pub(crate) fn take_restored(&mut self) {
        for AccessCorrection { key, value } in &self.restored {
            let place = self.definitions.binary_search_by(|known| known.key.cmp(key));
            match (place, value.clone()) {
                (Ok(at), Some(value)) => self.definitions[at].value = value,
                (Ok(at), None) => drop(self.definitions.remove(at)),
                (Err(at), Some(value)) => {
                    self.definitions.insert(at, AccessDefinition { key: key.clone(), value });
                }
                (Err(_), None) => {}
            }
        }
        let is_recorded = self.definitions.first().is_some_and(|first| *first.key == ACCESS_STORED_KEY);
        if self.access == Access::Whole && !is_recorded {
            let (key, value) = (ACCESS_STORED_KEY.into(), [].into());
            self.definitions.insert(0, AccessDefinition { key, value });
        }
    }
}

/// A definition in which the log differs from the copies beside it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AccessCorrection {
    /// Its key.
    pub key: Box<[u8]>,
    /// The value that the log must have; `None` if the definition is deleted.
    pub value: Option<Box<[u8]>>,
}

/// A definition of a user, a permission or the like.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AccessDefinition {
    /// Its key.
    pub key: Box<[u8]>,
    /// Its value.
    pub value: Box<[u8]>,
}
