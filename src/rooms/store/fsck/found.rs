//! What a look at a store finds: its segments, its volume, and what of it is not as it was written.

use std::collections::BTreeMap;
use std::io;

use super::event::{Tail, Trust, Walk};
use crate::chain::Chain;
use crate::commit::BLOCK_BYTES;
use crate::disk::Disk;
use crate::format::Format;
use crate::index::Index;
use crate::place::Place;
use crate::record::Record;
use crate::segment::{HeaderRead, SegmentHeader};

/// Why a directory cannot be looked at.
#[derive(Debug)]
pub enum FsckError {
    /// There is no segment in it.
    NoStore,
    /// A newer version of Leveret wrote it.
    Newer {
        /// The file that says so.
        slot: u32,
        /// The version, as the character it is written with.
        version: u8,
    },
    /// It cannot be read at all.
    Unreadable(io::Error),
}

impl core::fmt::Display for FsckError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NoStore => write!(f, "there is no store: not one segment file (such as 00000000.seg)"),
            Self::Newer { slot, version } => write!(
                f,
                "{slot:08}.seg is of format {}, this version of Leveret knows those up to {}: take a newer \
                 one",
                char::from(*version).escape_default(),
                Format::NEWEST.number()
            ),
            Self::Unreadable(error) => write!(f, "the store cannot be read: {error}"),
        }
    }
}

impl core::error::Error for FsckError {}

/// Of which file it is, is not known.
pub const NO_SLOT: u32 = u32::MAX;

/// A part of the store that is not as it was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Damage {
    /// What kind of damage it is.
    pub kind: DamageKind,
    /// The file; [`NO_SLOT`] when that is not known.
    pub slot: u32,
    /// Its place in the log; 0 when that is not known.
    pub segment: u64,
    /// Bytes of the file, the end not included.
    pub from: u32,
    /// See `from`.
    pub to: u32,
    /// Commits that are not whole or not there, if that is known.
    pub commits: Option<u64>,
    /// Records of theirs that can be read.
    pub records_read: u64,
    /// Records of theirs that cannot, if that is known.
    pub records_lost: Option<u64>,
    /// Those among them of which nobody knows what they were.
    pub records_unknown: u64,
    /// Messages among those that were live and are nowhere else, each queue counted.
    pub messages_lost: u64,
}

impl Damage {
    /// Whether `other` is of the same segment and kind.
    pub fn is_alike(&self, other: &Self) -> bool {
        (self.kind, self.slot, self.segment) == (other.kind, other.slot, other.segment)
    }

    /// Whether `other` is the same thing at the same place.
    pub fn is_same_place(&self, other: &Self) -> bool {
        let place = |damage: &Self| (damage.kind, damage.slot, damage.segment, damage.from, damage.to);
        place(self) == place(other)
    }
}

/// What is damaged.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum DamageKind {
    /// Nothing of the log is there, though there was one.
    Log,
    /// The header of a segment; its commits were found nevertheless.
    Header,
    /// Commits.
    Commits,
    /// The footer of a segment that is full.
    Footer,
    /// The file is shorter than a segment.
    Short,
    /// The disk refuses blocks.
    Unreadable,
    /// The file of a segment is not there.
    NoFile,
    /// The newest segment is full, and no file is there that came after it.
    Gone,
    /// A file that cannot be opened: its inode is damaged, or it is no file.
    Unopened,
    /// The file of a segment holds another one.
    Replaced,
    /// A file that is of no use to this store: another one's, or nothing that is known.
    Foreign,
    /// Records that this version does not understand.
    Strange,
}

impl DamageKind {
    /// There is no file of the segment that could be mended.
    pub(super) const fn is_of_no_file(self) -> bool {
        matches!(self, Self::Log | Self::NoFile | Self::Gone | Self::Unopened | Self::Replaced)
    }
}

/// A segment of the log.
#[derive(Clone, Copy, Debug)]
pub struct SegmentLook {
    /// Its place in the log.
    pub sequence: u64,
    /// Its file.
    pub slot: u32,
    /// It is full and closed.
    pub sealed: bool,
    /// Commits that are whole.
    pub commits: u64,
    /// Records in those.
    pub records: u64,
    /// Bytes up to the end of its last commit, and those of its footer.
    pub used_bytes: u32,
    pub(super) first: u32,
    pub(super) opened_by: Option<u32>,
    pub(super) before: Chain,
    pub(super) proven: u64,
}

/// What the bytes of the log are, from the headers of its segments to their footers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Volume {
    /// Headers of segments.
    pub header_bytes: u64,
    /// Headers of commits.
    pub commit_bytes: u64,
    /// Zeros between commits.
    pub padding_bytes: u64,
    /// Footers.
    pub footer_bytes: u64,
    /// Messages and chunks seen for the first time, what the log adds to them included.
    pub message_bytes: u64,
    /// Messages and chunks seen again: copied by the cleaner, or repeated by a start.
    pub copy_bytes: u64,
    /// Settlements, deletions of queues, marks.
    pub settled_bytes: u64,
    /// Definitions.
    pub defined_bytes: u64,
    /// Body, properties and key of the messages in `message_bytes`.
    pub payload_bytes: u64,
    /// Messages seen for the first time.
    pub messages: u64,
}

impl Volume {
    /// All bytes.
    pub const fn written_bytes(&self) -> u64 {
        self.header_bytes
            + self.commit_bytes
            + self.padding_bytes
            + self.footer_bytes
            + self.message_bytes
            + self.copy_bytes
            + self.settled_bytes
            + self.defined_bytes
    }
}

/// What the files that are not in the log are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spare {
    /// Ready to become segments.
    pub free: u64,
    /// Shorter than a segment: being prepared.
    pub preparing: u64,
}

/// A record that a walk over a store found.
#[derive(Clone, Copy, Debug)]
pub struct FoundRecord<'a> {
    /// The place in the log.
    pub place: Place,
    /// The number of its commit; 0 when that is not known.
    pub commit: u64,
    /// The life of its commit; 0 when that is not known.
    pub life: u32,
    /// How far it can be trusted.
    pub trust: Trust,
    /// The record.
    pub record: Record<'a>,
}

/// What a store holds.
#[derive(Debug)]
pub struct Scan {
    /// The store's identity; `None` when no header has it any more.
    pub id: Option<[u8; 16]>,
    /// The newest version of the format among its segments.
    pub format: Format,
    /// Bytes of each segment.
    pub segment_bytes: u32,
    /// The last life, commit number and broker time (in milliseconds) found.
    pub last: (u32, u64, u64),
    /// The log, oldest first.
    pub segments: Vec<SegmentLook>,
    /// Files that are no part of the log: free ones, and those being prepared.
    pub spare: Spare,
    /// Everything that can be read, [`Trust::Tail`] left out.
    pub index: Index,
    /// The commit at the end, if it is not whole.
    pub tail: Option<Tail>,
    /// Everything that is not as it was written.
    pub damage: Vec<Damage>,
    /// How many bytes messages, settlements, definitions and padding take.
    pub volume: Volume,
    /// Live messages with a body of which a part cannot be read.
    pub bodies_broken: u64,
    /// The place of each chunk of a large body.
    pub chunks: BTreeMap<(u64, u32), Place>,
    pub(super) seed: Option<u32>,
    /// A segment that is not in the log yet but for the tail that lies in it.
    pub(super) tail_only: Option<SegmentLook>,
}

impl SegmentLook {
    pub(super) fn walk<'a>(
        &self,
        bytes: &'a [u8],
        segment_bytes: u32,
        seed: Option<u32>,
        is_newest: bool,
    ) -> Walk<'a> {
        Walk {
            bytes,
            slot: self.slot,
            sequence: self.sequence,
            first: self.first,
            segment_bytes,
            seed,
            is_newest,
            opened_by: self.opened_by,
            proven: self.proven,
        }
    }

    /// Whether `bytes`, just read from its file, are all of this segment. The file may have been written
    /// over while it was read: then its header is another one by now.
    pub(super) fn is_still<D: Disk>(&self, disk: &mut D, bytes: &[u8]) -> bool {
        let mut block = [0; BLOCK_BYTES];
        let count = disk.read(self.slot, 0, &mut block).unwrap_or(0);
        self.has_header(bytes) && (count == 0 || self.has_header(&block[..count]))
    }

    pub(super) fn has_header(&self, block: &[u8]) -> bool {
        match SegmentHeader::parse(block) {
            HeaderRead::Good(header, _) => header.sequence == self.sequence,
            HeaderRead::Longer(_) => true,
            // A header that is damaged says nothing.
            HeaderRead::OtherVersion | HeaderRead::Empty | HeaderRead::Bad => self.opened_by.is_none(),
        }
    }
}
