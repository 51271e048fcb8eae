//! Which disk calls fail, and how.
//!
//! # Invariants
//! - Faults are planned by numbers of calls, so that a run stays a function of its seed.
//! - A temporary fault ends after a given number of calls of its kind. A lasting one ends at the next start.

use leveret_storage::Record;

/// Bytes of a commit before its first record.
pub(super) const COMMIT_HEADER_BYTES: usize = 76;
/// As the number of failing calls: all calls of this kind until the next start fail.
pub const LASTING: u64 = u64::MAX;

/// A fault and the number of calls before it, counted from now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trouble {
    /// No fault.
    Never,
    /// The power fails.
    Cut(u64),
    /// The process is killed; its writes stay in the page cache.
    Kill(u64),
    /// The process is killed between the write and the sync of a commit that records a deleted segment. The
    /// number counts such commits.
    KillAsLeft(u64),
    /// The power fails after the sync of a commit that contains a settlement, before any other change. The
    /// number counts such commits.
    CutAsSettled(u64),
    /// A sync fails, and only some of its sectors reach the media. The number counts syncs.
    FailedSync(u64),
    /// From this call on, writing zeros fails because the file system is full.
    Full(u64),
    /// The file system is full: the calls to skip, then the writes and zero fills that fail.
    NoCapacity(u64, u64),
    /// Writes fail: the calls to skip, then the number that fail.
    FailedWrite(u64, u64),
    /// The file system becomes read-only until the next start. The number counts calls that change the disk.
    ReadOnly(u64),
    /// Reads fail: the calls to skip, then the number that fail.
    FailedRead(u64, u64),
    /// Syncs find the file system full: the calls to skip, then the number that fail.
    FullSync(u64, u64),
}

/// Skips `after` calls of a kind, then lets `count` of them fail.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Spell {
    after: u64,
    count: u64,
}

impl Spell {
    /// Counts a call. Returns whether it fails.
    pub(super) const fn hits(&mut self) -> bool {
        if self.count == 0 {
            return false;
        }
        if self.after > 0 {
            self.after -= 1;
            return false;
        }
        if self.count < LASTING {
            self.count -= 1;
        }
        true
    }
}

/// The planned faults, by kind of call.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Troubles {
    pub cut: Spell,
    pub kill: Spell,
    pub kill_as_left: Spell,
    pub cut_as_settled: Spell,
    pub sync: Spell,
    pub full: Spell,
    pub no_room: Spell,
    pub write: Spell,
    pub read_only: Spell,
    pub read: Spell,
    pub full_sync: Spell,
}

impl Troubles {
    pub(super) const fn foresee(&mut self, trouble: Trouble) {
        match trouble {
            Trouble::Never => {}
            Trouble::Cut(after) => self.cut = Spell { after, count: 1 },
            Trouble::Kill(after) => self.kill = Spell { after, count: 1 },
            Trouble::KillAsLeft(after) => self.kill_as_left = Spell { after, count: 1 },
            Trouble::CutAsSettled(after) => self.cut_as_settled = Spell { after, count: 1 },
            Trouble::FailedSync(after) => self.sync = Spell { after, count: 1 },
            Trouble::Full(after) => self.full = Spell { after, count: LASTING },
            Trouble::NoCapacity(after, count) => self.no_room = Spell { after, count },
            Trouble::FailedWrite(after, count) => self.write = Spell { after, count },
            Trouble::ReadOnly(after) => self.read_only = Spell { after, count: LASTING },
            Trouble::FailedRead(after, count) => self.read = Spell { after, count },
            Trouble::FullSync(after, count) => self.full_sync = Spell { after, count },
        }
    }

    /// Notes a write. It may schedule a kill for the next call, or a power cut for the call after the next
    /// sync.
    pub(super) fn note_write(&mut self, bytes: &[u8]) {
        let is_left = |record: &Record<'_>| matches!(record, Record::SegmentRemoved { .. });
        if self.kill_as_left.count > 0 && says(bytes, is_left) && self.kill_as_left.hits() {
            self.kill = Spell { after: 0, count: 1 };
        }
        let is_settled = |record: &Record<'_>| matches!(record, Record::Settled { .. });
        if self.cut_as_settled.count > 0 && says(bytes, is_settled) && self.cut_as_settled.hits() {
            self.cut = Spell { after: 1, count: 1 };
        }
    }
}

/// Returns whether `bytes` are a commit that contains a record for which `is_such` is true.
fn says(bytes: &[u8], is_such: impl Fn(&Record<'_>) -> bool) -> bool {
    let mut rest = bytes.get(COMMIT_HEADER_BYTES..).filter(|_| bytes.starts_with(b"LVC")).unwrap_or_default();
    while let Ok((record, length)) = Record::parse(rest) {
        if is_such(&record) {
            return true;
        }
        rest = &rest[length..];
    }
    false
}
