//! Looking at a store without touching it: what it holds, and whether that is as it was written.
//!
//! A start wants to serve soon: it trusts footers and gives up what it cannot read. This reads everything,
//! commit by commit, and tells what is damaged, what that cost, and what of it can still be read. It takes
//! no lock and writes nothing, so it works beside a broker that writes, on a card that can only be read,
//! and for a user who may only read.
//!
//! | file | what it is for |
//! |------|----------------|
//! | `layout` | which files are the log |
//! | `scan` | all of it read, counted and judged |
//! | `walk` | one segment taken apart |
//! | `salvage` | what can be read where a commit is damaged |
//! | `repair` | what is damaged written over, when that is asked for |
//!
//! Always true: what is told as whole is whole; what is damaged is told, as far as a checksum can show it.
//! Beside a broker that writes, a scan is what the files were one after the other, not at one instant; what
//! is wrong in one look and not in the next was being written.

mod layout;
mod repair;
mod salvage;
mod scan;
mod walk;

use std::collections::BTreeMap;
use std::io;

use crate::store::commit::BLOCK_BYTES;
use crate::store::disk::Disk;
use crate::store::format::Format;
use crate::store::index::{Index, Place};
use crate::store::names::{Footers, Names};
use crate::store::read_around::ReadAround;
use crate::store::record::Record;
use crate::store::segment::{HeaderRead, SegmentHeader};
use layout::read_around;
use walk::{Chain, Event, Walk};

pub use walk::{Tail, Trust};

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

/// A part of the store that is not as it was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Damage {
    /// What kind of damage it is.
    pub kind: DamageKind,
    /// The file.
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
    const fn is_of_no_file(self) -> bool {
        matches!(self, Self::Log | Self::NoFile | Self::Unopened | Self::Replaced)
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
    first: u32,
    opened_by: Option<u32>,
    before: Chain,
    proven: u64,
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
    seed: Option<u32>,
    /// A segment that is not in the log yet but for the tail that lies in it.
    tail_only: Option<SegmentLook>,
}

impl SegmentLook {
    fn walk<'a>(&self, bytes: &'a [u8], segment_bytes: u32, seed: Option<u32>, is_newest: bool) -> Walk<'a> {
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
    fn is_still<D: Disk>(&self, disk: &mut D, bytes: &[u8]) -> bool {
        let mut block = [0; BLOCK_BYTES];
        let count = disk.read(self.slot, 0, &mut block).unwrap_or(0);
        self.has_header(bytes) && (count == 0 || self.has_header(&block[..count]))
    }

    fn has_header(&self, block: &[u8]) -> bool {
        match SegmentHeader::parse(block) {
            HeaderRead::Good(header, _) => header.sequence == self.sequence,
            HeaderRead::Longer(_) => true,
            // A header that is damaged says nothing.
            HeaderRead::OtherVersion | HeaderRead::Empty | HeaderRead::Bad => self.opened_by.is_none(),
        }
    }
}

impl Scan {
    /// Reads the whole store.
    ///
    /// # Errors
    /// It is none, or is not to be read by this version or this user.
    pub fn of<D: Disk>(disk: &mut D) -> Result<Self, FsckError> {
        scan::scan(disk)
    }

    /// Writes over what is damaged, keeping what of it can be read; the one thing here that writes. The look
    /// must be of this store, and the disk must have its lock. Gives a scan of what is left; what is in its
    /// damage could not be dropped.
    ///
    /// # Errors
    /// The disk refused something; another try may go on where this one ended.
    pub fn drop_set_aside<D: Disk>(&self, disk: &mut D) -> Result<Self, FsckError> {
        repair::drop_set_aside(self, disk)
    }

    /// Nothing is wrong with it.
    pub const fn is_good(&self) -> bool {
        self.damage.is_empty() && self.tail.is_none()
    }

    /// Walks over every record that can be read, oldest segment first, dead ones too. Returns the segments
    /// that were used again since the look was taken.
    ///
    /// # Errors
    /// The first error of `each`, which is not called again then.
    pub fn for_each<D: Disk, E>(
        &self,
        disk: &mut D,
        mut each: impl FnMut(&FoundRecord<'_>) -> Result<(), E>,
    ) -> Result<Vec<u64>, E> {
        let (mut bytes, mut recycled) = (vec![0; self.segment_bytes as usize], Vec::new());
        for (at, segment) in self.segments.iter().chain(&self.tail_only).enumerate() {
            let Some(length) = self.read_segment(disk, segment, &mut bytes) else {
                recycled.push(segment.sequence);
                continue;
            };
            let is_newest = at + 1 >= self.segments.len();
            let walk = segment.walk(&bytes[..length], self.segment_bytes, self.seed, is_newest);
            let (mut chain, mut outcome) = (segment.before, Ok(()));
            walk.run(&mut chain, &mut |event| {
                let Event::Record { place, record, commit, trust } = event else { return };
                if outcome.is_ok() {
                    let (commit, life) = commit.map_or((0, 0), |header| (header.number, header.life));
                    outcome = each(&FoundRecord { place, commit, life, trust, record: *record });
                }
            });
            outcome?;
        }
        Ok(recycled)
    }

    /// Reads a segment of the look; `None` when its file is something else by now.
    fn read_segment<D: Disk>(&self, disk: &mut D, segment: &SegmentLook, bytes: &mut [u8]) -> Option<usize> {
        let (length, _) = read_around(disk, segment.slot, bytes).ok()?;
        segment.is_still(disk, &bytes[..length]).then_some(length)
    }

    /// Queues with messages that nothing defines, as `is_defined` knows, and the keys under which footers say
    /// that they were defined, as far as they do.
    pub fn orphans<D: Disk>(
        &self,
        disk: &mut D,
        is_defined: impl Fn(u64) -> bool,
    ) -> BTreeMap<u64, Option<Box<[u8]>>> {
        let mut queues = self.index.queues_with_messages();
        queues.retain(|queue| !is_defined(*queue));
        let mut names = Names::new();
        if !queues.is_empty()
            && let Some(seed) = self.seed
        {
            let footers = Footers { index: &self.index, segment_bytes: self.segment_bytes, seed };
            names = footers.read_names(&mut ReadAround::at_any_price(disk), &queues).unwrap_or_default();
        }
        queues.into_iter().map(|queue| (queue, names.remove(&queue))).collect()
    }

    /// Reads one record again, checked; `None` when it cannot be had any more.
    pub fn read_record<'b, D: Disk>(
        &self,
        disk: &mut D,
        place: Place,
        bytes: &'b mut Vec<u8>,
    ) -> Option<Record<'b>> {
        let segment = self.segments.iter().find(|segment| segment.sequence == place.segment)?;
        bytes.clear();
        bytes.resize(place.bytes as usize, 0);
        let count = disk.read(segment.slot, place.at.into(), bytes).ok()?;
        Record::parse(&bytes[..count]).ok().map(|(record, _)| record)
    }
}
