//! What a start tells of the store that it found.

use std::io;

use leveret_core::journal::ReportedDamage;
use leveret_core::journal::definition::ACCESS_WRITTEN_KEY;

use super::disk::Unopened;

/// Part of the log that could not be read and was set aside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SetAside {
    /// The file.
    pub slot: u32,
    /// Its place in the log; 0 when that is not known.
    pub segment: u64,
    /// Bytes of the file, the end not included.
    pub from: u32,
    /// See `from`.
    pub to: u32,
}

/// What a start found.
#[derive(Debug, Default)]
pub struct Report {
    /// It was empty and was formatted.
    pub is_new: bool,
    /// Damage in the middle.
    pub set_aside: Vec<SetAside>,
    /// Commits that are missing from the middle.
    pub commits_missing: u64,
    /// Full segments whose footer is not good: nobody knows whether commits are missing at their ends. A
    /// power cut right after a crash may do that without harm.
    pub footers_missing: u32,
    /// Commits that are missing from the end: whatever they said, nothing behind them repeats it.
    pub commits_lost_at_end: u64,
    /// The newest file of the log is not there, and perhaps others: this is a part of a store.
    pub newest_gone: bool,
    /// Blocks that the disk refuses to read: file, and first byte.
    pub refused: Vec<(u32, u32)>,
    /// Parts set aside that are not there, for the file of a segment ends too early.
    pub files_cut: usize,
    /// Files that cannot be opened.
    pub unopened: Vec<Unopened>,
    /// There was a log, but nothing of it can be read any more.
    pub is_lost: bool,
    /// So it is, and no file has anything of it: the files were moved or deleted, or another file system is
    /// mounted.
    pub is_gone: bool,
    /// The file of a repair is there that an older version did not finish: the segment that it was at may be damaged.
    pub has_unfinished_repair: bool,
    /// What this start and earlier ones could not read, until an operator acknowledges it.
    pub reported_damage: ReportedDamage,
    /// This start has added a sentence to `reported_damage`.
    pub has_new_damage: bool,
    /// Large transactions that did not come to their end and cannot be read: some of their messages may be
    /// there.
    pub groups_damaged: u32,
    /// Large transactions that did not come to their end: nothing of them is there.
    pub groups_undone: u32,
    /// What can be said of users and permissions.
    pub access: AccessReport,
    /// The file system is full.
    pub is_full: bool,
    /// What a start writes waits for room, too: until then, what was found may be in the page cache only.
    pub is_pending: bool,
    /// The store can be read but not written: nothing can become durable.
    pub unwritable: Option<io::Error>,
}

impl Report {
    /// Whether something that was written is surely missing.
    pub fn is_damaged(&self) -> bool {
        !self.set_aside.is_empty() || self.commits_missing > 0
    }

    /// Whether all that is wrong is that files of segments end too early.
    pub fn is_cut_short(&self) -> bool {
        self.commits_missing == 0 && self.set_aside.len() == self.files_cut
    }
}

/// What can be said of the users and permissions in a store.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Access {
    /// There was no store.
    #[default]
    New,
    /// A sound store in which nobody ever wrote who there is.
    Silent,
    /// Everything that was written last is there.
    Whole,
    /// Something is missing, or may be; and why it is said.
    InDoubt(&'static str),
}

/// A definition as the files beside the log have it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Restored {
    /// Its key.
    pub key: Box<[u8]>,
    /// Its value; `None`: it was deleted.
    pub value: Option<Box<[u8]>>,
}

/// A definition of access.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AccessDefinition {
    /// Its key.
    pub key: Box<[u8]>,
    /// Its value.
    pub value: Box<[u8]>,
}

/// What a start reads of access.
#[derive(Debug, Default)]
pub struct AccessReport {
    /// Whether it can be relied on.
    pub access: Access,
    /// Keys of definitions that cannot be read.
    pub unreadable: Vec<Box<[u8]>>,
    /// Some definition can be read from one place only: it is time to write them again.
    pub is_thin: bool,
    /// Definitions that the log had lost, or had not as they were written last, and the files beside it have.
    pub restored: Vec<Restored>,
    /// All there is of access, rising by the keys. It is read once, for a disk that refuses to read it a second time must
    /// not lock anybody out.
    pub definitions: Vec<AccessDefinition>,
}

impl AccessReport {
    /// Takes in what the log is told to say, and, where all of it is there, that somebody has said so: the log may have
    /// lost that, too, and without it a new store's user would be there.
    pub(super) fn take_restored(&mut self) {
        for Restored { key, value } in &self.restored {
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
        let is_said = self.definitions.first().is_some_and(|first| *first.key == ACCESS_WRITTEN_KEY);
        if self.access == Access::Whole && !is_said {
            let (key, value) = (ACCESS_WRITTEN_KEY.into(), [].into());
            self.definitions.insert(0, AccessDefinition { key, value });
        }
    }
}

/// What was done while a store is opened.
pub(super) enum Step {
    /// A part of a segment.
    Prepared,
    /// A commit.
    Committed,
    /// There was nothing to do, or no room for it.
    Nothing,
}
