//! Which files there are, whose they are, and which of them are the log.
//!
//! The rule is that of a start: the newest header with a commit behind it has the list of the log, but for
//! what commits since then say has left. Where a start would give a file up, this looks a little further: a
//! store whose every header is damaged is still somebody's messages.
//!
//! Always true: nothing is written; a block that cannot be read counts as zeros and is told.

use std::io;

use super::event::Walk;
use super::found::FsckError;
use crate::mem::{sort, sort_by_key};
use crate::store::commit::{BLOCK_BYTES, Commit, Owner, whole_commits};
use crate::store::disk::Disk;
use crate::store::headless::{Headless, segments_of};
use crate::store::identity::Identity;
use crate::store::newest_note::{self, Note};
use crate::store::read_around::ReadAround;
use crate::store::segment::{HeaderRead, SEGMENT_BYTES_MAX, SegmentHeader, SegmentRef};
use crate::store::sync_proof::said_most;
use crate::store::zeroes::ResizeZeroed;

/// The most bytes a header is read with.
const HEADER_BYTES_MAX: usize = 1 << 20;

/// One file.
pub(super) struct FoundFile {
    pub(super) slot: u32,
    pub(super) header: HeaderRead,
    /// Its first block could not be read.
    pub(super) is_unreadable: bool,
}

/// A segment of the log, and what its file's header was like.
#[derive(Clone, Copy)]
pub(super) struct Listed {
    pub(super) segment: SegmentRef,
    /// Where the first commit begins.
    pub(super) first: u32,
    pub(super) header: ListedHeader,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ListedHeader {
    /// As it should be; opened by this life.
    Good { life: u32 },
    /// Not readable.
    Damaged,
    /// That of another segment.
    Other { sequence: u64 },
    /// There is no file.
    NoFile,
}

/// Every file of the store, and which of them are the log.
pub(super) struct Layout {
    pub(super) found: Vec<FoundFile>,
    pub(super) identity: Option<Identity>,
    pub(super) segment_bytes: u32,
    /// The log, oldest first.
    pub(super) log: Vec<Listed>,
    /// There is a good note beside the log.
    pub(super) has_note: bool,
}

/// Reads a file from its start, as much as there is and fits, around what the disk refuses. Returns the
/// length and the refused blocks.
pub(super) fn read_around<D: Disk>(
    disk: &mut D,
    slot: u32,
    bytes: &mut [u8],
) -> io::Result<(usize, Vec<u32>)> {
    let mut disk = ReadAround::at_any_price(disk);
    let length = disk.read(slot, 0, bytes)?;
    Ok((length, disk.refused.iter().map(|(_, at)| *at).collect()))
}

impl Layout {
    pub(super) fn of<D: Disk>(disk: &mut D) -> Result<Self, FsckError> {
        let found = read_headers(&mut ReadAround::at_any_price(disk))?;
        if found.is_empty() {
            return Err(FsckError::NoStore);
        }
        let mut layout = Self { found, identity: None, segment_bytes: 0, log: Vec::new(), has_note: true };
        let newest = layout.headers().next();
        let known = newest.map(|(_, _, header)| (header.identity, header.segment_bytes));
        let known = match known {
            Some(known) => Some(known),
            None => layout.owner(disk).map_err(FsckError::Unreadable)?,
        };
        layout.identity = known.map(|(identity, _)| identity);
        layout.segment_bytes = match known {
            Some((_, segment_bytes)) => segment_bytes,
            None => layout.longest(disk).map_err(FsckError::Unreadable)?,
        };
        let mut bytes = vec![0; layout.segment_bytes as usize];
        layout.find_log(disk, &mut bytes).map_err(FsckError::Unreadable)?;
        Ok(layout)
    }

    /// How many commits were synced before a segment, when its header is good.
    pub(super) fn commits_before(&self, sequence: u64) -> Option<u64> {
        self.headers().find(|(_, _, header)| header.sequence == sequence).map(|(_, _, header)| header.commits)
    }

    /// The good headers of this store with their slots and lengths, newest first.
    pub(super) fn headers(&self) -> impl Iterator<Item = (u32, u32, &SegmentHeader)> {
        let mut headers: Vec<_> = self
            .found
            .iter()
            .filter_map(|found| match &found.header {
                HeaderRead::Good(header, bytes) => Some((found.slot, *bytes, header)),
                _ => None,
            })
            .collect();
        sort_by_key(&mut headers, |(slot, _, header)| (core::cmp::Reverse(header.sequence), *slot));
        // One of another store may be the newest.
        let identity = said_most(headers.iter().map(|(_, _, header)| header.identity));
        headers.into_iter().filter(move |(_, _, header)| Some(header.identity) == identity)
    }

    /// Whose store it is when no header says so: what the commits in most files say.
    fn owner<D: Disk>(&self, disk: &mut D) -> io::Result<Option<(Identity, u32)>> {
        let mut bytes = vec![0; self.longest(disk)? as usize];
        let mut said = Vec::new();
        for found in &self.found {
            let (length, _) = read_around(disk, found.slot, &mut bytes)?;
            said.extend(owner_in(&bytes[..length]));
        }
        Ok(said_most(said).map(|owner| (owner.identity, owner.segment_bytes)))
    }

    fn longest<D: Disk>(&self, disk: &mut D) -> io::Result<u32> {
        let (mut longest, mut block) = (0, [0; BLOCK_BYTES]);
        for found in &self.found {
            // Where nothing lies, only a disk refuses to read that is gone as a whole.
            if disk.read(found.slot, SEGMENT_BYTES_MAX.into(), &mut block).is_err() {
                continue;
            }
            // A length can only be felt for.
            let (mut low, mut high) = (0_u64, u64::from(SEGMENT_BYTES_MAX) / BLOCK_BYTES as u64);
            while low < high {
                let middle = u64::midpoint(low, high);
                match disk.read(found.slot, middle * BLOCK_BYTES as u64, &mut block) {
                    Ok(0) => high = middle,
                    _ => low = middle + 1,
                }
            }
            longest = longest.max(low as u32);
        }
        Ok(longest * BLOCK_BYTES as u32)
    }

    fn find_log<D: Disk>(&mut self, disk: &mut D, bytes: &mut [u8]) -> io::Result<()> {
        let mut proven = None;
        for (slot, first, header) in self.headers() {
            let (length, _) = read_around(disk, slot, bytes)?;
            let segment = SegmentRef { sequence: header.sequence, slot };
            if self.walk(&bytes[..length], segment, first).has_begun(header) {
                proven = Some((segment, header.live.clone()));
                break;
            }
        }
        // A start goes by the note beside the log where the newest segment has lost its header.
        let mut missed = None;
        let note = newest_note::read(disk).filter(|note| Some(note.header.identity) == self.identity);
        self.has_note = note.is_some();
        if let Some(note) = note.filter(|note| self.is_missed(note)) {
            let length = read_around(disk, note.segment.slot, bytes).map_or(0, |(length, _)| length);
            if self.walk(&bytes[..length], note.segment, note.header_bytes).has_begun(&note.header) {
                proven = Some((note.segment, note.header.live));
            } else {
                missed = Some(note.segment);
            }
        }
        let (newest, mut list) = proven.unwrap_or((SegmentRef { sequence: 0, slot: 0 }, Vec::new()));
        if newest.sequence > 0 {
            list.push(newest);
        }
        let headless = self.find_headless(disk, bytes, newest.sequence)?;
        // A file that is one of those was another segment before; that has left the log.
        list.retain(|segment| headless.iter().all(|newer| newer.slot != segment.slot));
        list.extend(headless);
        list.extend(missed);
        let (mut left, mut last) = (Vec::new(), None);
        for segment in list.iter().filter(|segment| segment.sequence >= newest.sequence) {
            if let Ok((length, _)) = read_around(disk, segment.slot, bytes) {
                let found = self.walk(&bytes[..length], *segment, BLOCK_BYTES as u32).left();
                left.extend(found.0);
                last = last.max(found.1);
            }
        }
        self.log = list.into_iter().map(|segment| self.listed(segment)).collect();
        self.log.retain(|listed| {
            let by = left.iter().find(|(segment, _)| *segment == listed.segment.sequence);
            // What the last commit says a start does not rely on, unless the file is used again already, or
            // was given up.
            let is_replaced = matches!(listed.header, ListedHeader::Other { .. } | ListedHeader::NoFile);
            by.is_none_or(|(_, number)| Some(*number) == last && !is_replaced)
        });
        Ok(())
    }

    /// Whether no file has as new a header as the one that is noted.
    fn is_missed(&self, note: &Note) -> bool {
        self.headers().all(|(_, _, header)| header.sequence < note.segment.sequence)
    }

    /// Whether no file is there that came after this segment, nor a good note beside the log: then it is not
    /// full, or files are gone.
    pub(super) fn ends_with(&self, sequence: u64) -> bool {
        !self.has_note && self.headers().all(|(_, _, header)| header.sequence <= sequence)
    }

    /// Segments whose header cannot be read but whose commits are newer than every header that can.
    fn find_headless<D: Disk>(
        &mut self,
        disk: &mut D,
        bytes: &mut [u8],
        newest: u64,
    ) -> io::Result<Vec<SegmentRef>> {
        let others = self.found.iter().filter(|found| !matches!(found.header, HeaderRead::Good(..)));
        let slots: Vec<u32> = others.map(|found| found.slot).collect();
        let seed = self.identity.as_ref().map(Identity::seed);
        let mut found = Vec::new();
        for &slot in &slots {
            let (length, _) = read_around(disk, slot, bytes)?;
            let commits = seed.map(|seed| whole_commits(&bytes[..length], BLOCK_BYTES, seed));
            let said = commits.into_iter().flatten().map(|(_, commit)| commit.header.segment);
            found.push(Headless::of(slot, said.filter(|sequence| *sequence > newest)));
        }
        Ok(segments_of(found))
    }

    fn listed(&self, segment: SegmentRef) -> Listed {
        let found = self.found.iter().find(|found| found.slot == segment.slot);
        let (first, header) = match found.map(|found| &found.header) {
            Some(HeaderRead::Good(header, first))
                if header.sequence == segment.sequence && Some(header.identity) == self.identity =>
            {
                (*first, ListedHeader::Good { life: header.life })
            }
            Some(HeaderRead::Good(header, first)) => {
                (*first, ListedHeader::Other { sequence: header.sequence })
            }
            Some(_) => (BLOCK_BYTES as u32, ListedHeader::Damaged),
            None => (BLOCK_BYTES as u32, ListedHeader::NoFile),
        };
        Listed { segment, first, header }
    }

    /// A walk through the bytes of a file as a segment of this store.
    pub(super) fn walk<'a>(&self, bytes: &'a [u8], segment: SegmentRef, first: u32) -> Walk<'a> {
        Walk {
            bytes,
            slot: segment.slot,
            sequence: segment.sequence,
            first,
            segment_bytes: self.segment_bytes,
            seed: self.identity.as_ref().map(Identity::seed),
            is_newest: false,
            opened_by: None,
            proven: 0,
        }
    }

    pub(super) fn is_in_log(&self, slot: u32) -> bool {
        self.log.iter().any(|listed| listed.segment.slot == slot)
    }
}

/// Reads the headers of all files.
fn read_headers<D: Disk>(disk: &mut D) -> Result<Vec<FoundFile>, FsckError> {
    let mut slots = disk.slots().map_err(FsckError::Unreadable)?;
    sort(&mut slots);
    let mut found = Vec::with_capacity(slots.len());
    let mut bytes = vec![0; BLOCK_BYTES];
    for slot in slots {
        bytes.resize_zeroed(BLOCK_BYTES);
        let read = disk.read(slot, 0, &mut bytes);
        let length = match read {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Err(FsckError::Unreadable(error));
            }
            Err(_) => {
                found.push(FoundFile { slot, header: HeaderRead::Bad, is_unreadable: true });
                continue;
            }
        };
        let mut header = SegmentHeader::parse(&bytes[..length]);
        if let HeaderRead::Longer(needed) = header {
            bytes.resize_zeroed(needed.min(HEADER_BYTES_MAX));
            let length = disk.read(slot, 0, &mut bytes).unwrap_or(0);
            header = SegmentHeader::parse(&bytes[..length]);
        }
        if header == HeaderRead::OtherVersion {
            return Err(FsckError::Newer { slot, version: bytes[7] });
        }
        found.push(FoundFile { slot, header, is_unreadable: false });
    }
    Ok(found)
}

/// Whose the first whole commit in a file says that it is.
fn owner_in(bytes: &[u8]) -> Option<Owner> {
    (BLOCK_BYTES..bytes.len()).step_by(BLOCK_BYTES).find_map(|at| Commit::owner(&bytes[at..]))
}
