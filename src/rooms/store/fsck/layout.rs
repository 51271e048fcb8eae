//! Which files there are, whose they are, and which of them are the log.
//!
//! The log is listed as a start lists it. Of files that are nobody's it can be said how long they are.
//!
//! Always true: nothing is written; a block that cannot be read counts as zeros and is told.

use std::io;

use super::found::FsckError;
use crate::commit::{BLOCK_BYTES, Owner};
use crate::disk::Disk;
use crate::identity::Identity;
use crate::listing::{Lister, own_headers, read_headers, take_noted};
use crate::newest_note;
use crate::read_around::ReadAround;
use crate::segment::{FoundFile, FoundHeader, HeaderRead, SEGMENT_BYTES_MAX, SegmentRef};
use crate::sync_proof::owner_of;

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
    /// Files whose first block could not be read.
    unreadable: Vec<u32>,
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
        let disk = &mut ReadAround::at_any_price(disk);
        let found = read_headers(disk).map_err(FsckError::Unreadable)?;
        if found.is_empty() {
            return Err(FsckError::NoStore);
        }
        if let Some(file) = found.iter().find(|file| file.header == HeaderRead::OtherVersion) {
            let mut magic = [0; 8];
            disk.read(file.slot, 0, &mut magic).map_err(FsckError::Unreadable)?;
            return Err(FsckError::Newer { slot: file.slot, version: magic[7] });
        }
        let unreadable = disk.refused.iter().filter(|(_, at)| *at == 0).map(|(slot, _)| *slot).collect();
        let mut layout =
            Self { found, unreadable, identity: None, segment_bytes: 0, log: Vec::new(), has_note: true };
        layout.find_log(disk).map_err(FsckError::Unreadable)?;
        Ok(layout)
    }

    /// Finds out whose it is, and lists the log as a start does.
    fn find_log<D: Disk>(&mut self, disk: &mut ReadAround<'_, D>) -> io::Result<()> {
        let note = newest_note::read(disk);
        let mut headers = own_headers(&self.found);
        let owner = match headers.first() {
            Some((_, _, header)) => {
                Some(Owner { identity: header.identity, segment_bytes: header.segment_bytes })
            }
            None => owner_of(disk, &self.found)?,
        };
        let Some(Owner { identity, segment_bytes }) = owner else {
            self.has_note = false;
            self.segment_bytes = self.longest(disk)?;
            return Ok(());
        };
        let note = note.filter(|note| note.header.identity == identity);
        let is_noted_only = note.as_ref().is_some_and(|note| take_noted(&mut headers, note));
        let mut bytes = vec![0; segment_bytes as usize];
        let mut listing = Lister { disk, bytes: &mut bytes, identity }.list(&mut headers, &self.found)?;
        // A start misses the newest segment, too, that is noted and has nothing any more that it could read.
        let missed = note.as_ref().map(|note| note.segment).filter(|_| is_noted_only);
        listing.segments.extend(missed.filter(|missed| !listing.segments.contains(missed)));
        let log = listing.segments.iter().map(|segment| self.listed(*segment, identity, &listing.misplaced));
        // The file of one that is about to leave may be used again already, or was given up.
        let is_gone = |listed: &Listed| {
            listing.leaving.contains(&listed.segment.sequence)
                && matches!(listed.header, ListedHeader::Other { .. } | ListedHeader::NoFile)
        };
        self.log = log.filter(|listed| !is_gone(listed)).collect();
        (self.has_note, self.identity, self.segment_bytes) = (note.is_some(), Some(identity), segment_bytes);
        Ok(())
    }

    /// How many commits were synced before a segment, when its header is good.
    pub(super) fn commits_before(&self, sequence: u64) -> Option<u64> {
        self.headers().find(|(_, _, header)| header.sequence == sequence).map(|(_, _, header)| header.commits)
    }

    /// The good headers of this store, newest first.
    pub(super) fn headers(&self) -> impl Iterator<Item = FoundHeader<'_>> {
        own_headers(&self.found).into_iter()
    }

    /// Whether the first block of a file could not be read.
    pub(super) fn is_unreadable(&self, slot: u32) -> bool {
        self.unreadable.contains(&slot)
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

    /// Whether no file is there that came after this segment, nor a good note beside the log: then it is not
    /// full, or files are gone.
    pub(super) fn ends_with(&self, sequence: u64) -> bool {
        !self.has_note && self.headers().all(|(_, _, header)| header.sequence <= sequence)
    }

    fn listed(&self, segment: SegmentRef, identity: Identity, misplaced: &[u32]) -> Listed {
        let found = self.found.iter().find(|found| found.slot == segment.slot);
        let (first, header) = match found.map(|found| &found.header) {
            Some(HeaderRead::Good(..)) if misplaced.contains(&segment.slot) => {
                (BLOCK_BYTES as u32, ListedHeader::Damaged)
            }
            Some(HeaderRead::Good(header, first))
                if header.sequence == segment.sequence && header.identity == identity =>
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

    pub(super) fn is_in_log(&self, slot: u32) -> bool {
        self.log.iter().any(|listed| listed.segment.slot == slot)
    }
}
