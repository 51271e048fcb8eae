//! What goes wrong with a disk, and at which call.
//!
//! Always true: what is ahead is counted in calls, so that a run stays a function of its seed; a fault that
//! passes is over after so many calls of its kind, one that lasts is there until the next start.

use leveret_storage::Record;

/// Bytes before the first record of a commit.
pub const COMMIT_HEADER_BYTES: usize = 76;
/// So many calls of a kind are all that a life makes.
pub const LASTING: u64 = u64::MAX;

/// What happens at which call, counted from now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trouble {
    /// Nothing.
    Never,
    /// The power goes.
    Cut(u64),
    /// The process is killed, and what it wrote stays in the page cache.
    Kill(u64),
    /// The process is killed between the write of a commit which says that a segment has left, and its sync;
    /// so many such commits from now.
    KillAsLeft(u64),
    /// The power goes between the sync of a commit that settles something and whatever comes next; so many
    /// such commits from now.
    CutAsSettled(u64),
    /// A sync fails; so many syncs from now. What it was for is on the media in part.
    FailedSync(u64),
    /// The file system is full for zeros from this call on.
    Full(u64),
    /// The file system is full after so many writes and zeros, for so many; then it has room again.
    NoRoom(u64, u64),
    /// Writes are refused after so many, and so many of them.
    FailedWrite(u64, u64),
    /// Whatever would change the disk is refused after so many such calls, until the next start: the file
    /// system is one that is only read by then.
    ReadOnly(u64),
    /// Reads are refused after so many, and so many of them.
    FailedRead(u64, u64),
    /// Syncs find the file system full after so many, and so many of them.
    FullSync(u64, u64),
}

/// Calls of a kind that fail: so many after so many.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spell {
    after: u64,
    count: u64,
}

impl Spell {
    /// Counts a call; whether it is one of those that fail.
    pub const fn hits(&mut self) -> bool {
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

/// What is ahead.
#[derive(Clone, Copy, Debug, Default)]
pub struct Troubles {
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
    pub const fn foresee(&mut self, trouble: Trouble) {
        match trouble {
            Trouble::Never => {}
            Trouble::Cut(after) => self.cut = Spell { after, count: 1 },
            Trouble::Kill(after) => self.kill = Spell { after, count: 1 },
            Trouble::KillAsLeft(after) => self.kill_as_left = Spell { after, count: 1 },
            Trouble::CutAsSettled(after) => self.cut_as_settled = Spell { after, count: 1 },
            Trouble::FailedSync(after) => self.sync = Spell { after, count: 1 },
            Trouble::Full(after) => self.full = Spell { after, count: LASTING },
            Trouble::NoRoom(after, count) => self.no_room = Spell { after, count },
            Trouble::FailedWrite(after, count) => self.write = Spell { after, count },
            Trouble::ReadOnly(after) => self.read_only = Spell { after, count: LASTING },
            Trouble::FailedRead(after, count) => self.read = Spell { after, count },
            Trouble::FullSync(after, count) => self.full_sync = Spell { after, count },
        }
    }

    /// After a write: a kill may be due at the call behind it, a cut at the one behind its sync.
    pub fn note_write(&mut self, bytes: &[u8]) {
        let is_left = |record: &Record<'_>| matches!(record, Record::Left { .. });
        if self.kill_as_left.count > 0 && says(bytes, is_left) && self.kill_as_left.hits() {
            self.kill = Spell { after: 0, count: 1 };
        }
        let is_settled = |record: &Record<'_>| matches!(record, Record::Settled { .. });
        if self.cut_as_settled.count > 0 && says(bytes, is_settled) && self.cut_as_settled.hits() {
            self.cut = Spell { after: 1, count: 1 };
        }
    }
}

/// Whether these bytes are a commit that has such a record.
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
