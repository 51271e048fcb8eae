//! Reading a store without changing it: for `leveret check`, `inspect`, `restore`, tests, and the definitions at a start.
//!
//! An inspection reads the store with the same code as a start, so it finds what a start would find. It takes no lock
//! and writes nothing. It therefore works while a broker uses the store, on a file system mounted read-only, and for
//! a user without write permission. While a broker writes, an inspection may read a half-written block and report it
//! as damage. Damage is certain only if two consecutive inspections report it.

use std::collections::BTreeSet;
use std::io;

use leveret_core::definition::{DAMAGE_KEY, is_access};

use super::access::FoundAt;
use super::commit::{BLOCK_BYTES, COMMIT_HEADER_BYTES, Commit};
use super::commit_builder::ResizeZeroed;
use super::damage::{ReadAround, is_about_a_block};
use super::damaged_commit::read_damaged_commit;
use super::disk::Disk;
use super::footer;
use super::log::Log;
use super::log::RecordLocation;
use super::log::Settings;
use super::queue_names::Names;
use super::read_back::FETCH_BYTES;
use super::record::{Message, Range, Record, Target};
use super::recovery::OpenError;
use super::recovery::Report;
use super::segment::Identity;

/// A record found in a segment.
#[derive(Clone, Copy, Debug)]
pub struct FoundRecord<'a> {
    /// Location of the record.
    pub place: RecordLocation,
    /// Number of the commit that contains the record.
    pub commit: u64,
    /// Epoch that wrote the commit.
    pub epoch: u32,
    /// Whether the commit is damaged: its checksum is wrong, although the checksum of this record is right.
    pub is_of_damaged_commit: bool,
    /// The record.
    pub record: Record<'a>,
}

/// The content of one segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SegmentSummary {
    /// Its sequence.
    pub sequence: u64,
    /// The slot of its file.
    pub slot: u32,
    /// Number of whole commits.
    pub commits: u64,
    /// Number of records in whole commits and of readable records in damaged commits.
    pub records: u64,
    /// Bytes up to the end of the last commit.
    pub used_bytes: u32,
    /// Whether the segment is full and has a footer.
    pub is_sealed: bool,
}

impl Log {
    /// Reads the values of all definitions in the order of their keys, and returns the number of damaged ones. `each`
    /// receives the key, the value, and whether only a footer still contains the definition.
    ///
    /// Access definitions and the reported damage are excluded; they are in the report of the start
    /// ([`Report::access`], [`Report::reported_damage`]).
    ///
    /// # Errors
    /// The disk cannot be read.
    pub fn read_definitions<D: Disk>(
        &self,
        disk: &mut D,
        mut each: impl FnMut(&[u8], &[u8], bool),
    ) -> io::Result<u64> {
        let (mut bytes, mut damaged) = (Vec::new(), 0);
        let definitions =
            self.index.definitions().iter().filter(|(key, _)| !is_access(key) && ***key != DAMAGE_KEY);
        for (key, definition) in definitions.filter(|(_, definition)| !definition.deleted) {
            match self.read_definition(disk, key, definition, &mut bytes)? {
                Some((value, place)) => each(key, value, place == FoundAt::Footer),
                None => damaged += 1,
            }
        }
        Ok(damaged)
    }

    /// Reads and verifies one record; returns `None` if it is damaged, or the disk refuses to read it.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read_record<'b, D: Disk>(
        &self,
        disk: &mut D,
        place: RecordLocation,
        bytes: &'b mut Vec<u8>,
    ) -> io::Result<Option<Record<'b>>> {
        let Some(segment) = self.index.segments().get(&place.segment) else {
            return Ok(None);
        };
        bytes.clear();
        bytes.resize_zeroed(place.bytes as usize);
        match disk.read(segment.slot, place.at.into(), bytes) {
            Err(error) if is_about_a_block(&error) => return Ok(None),
            read => read?,
        };
        Ok(Record::parse(bytes).ok().map(|(record, _)| record))
    }

    /// Returns where a message found in the log is still live: queues (incarnations), each with the message's offset.
    pub fn live_targets(&self, message: &Message<'_>) -> impl Iterator<Item = (u64, u64)> {
        message.targets.iter().filter_map(|target| {
            let queue = self.index.queues().get(&target.queue)?;
            queue.segment_of(target.offset).map(|_| (target.queue, target.offset))
        })
    }

    /// Returns the names that the footers contain for these queues. If the footers contain two names for the same
    /// queue, the newer one counts.
    ///
    /// # Errors
    /// The disk cannot be read.
    pub fn read_names<D: Disk>(&self, disk: &mut D, queues: &BTreeSet<u64>) -> io::Result<Names> {
        self.footers().read_names(disk, queues)
    }
}

impl Log {
    /// Reads the store as a start does. The log must not be appended to.
    ///
    /// # Errors
    /// As for [`Log::open`]. Also if there is no store.
    pub fn read_only<D: Disk>(disk: &mut D) -> Result<(Self, Report), OpenError> {
        Self::read(disk, false)
    }

    /// Reads the store as a start does, and additionally verifies every commit. The log must not be appended
    /// to.
    ///
    /// # Errors
    /// As for [`Log::open`]. Also if there is no store.
    pub fn inspect<D: Disk>(disk: &mut D) -> Result<(Self, Report), OpenError> {
        Self::read(disk, true)
    }

    fn read<D: Disk>(disk: &mut D, checks_all: bool) -> Result<(Self, Report), OpenError> {
        let unused = Identity { id: [0; 16], secret: 0 };
        let (mut log, mut report) = Self::read_store(disk, Settings::default(), unused, checks_all)?;
        if report.is_new {
            return Err(OpenError::NoStore);
        }
        log.merge_damage(disk, &mut report).map_err(OpenError::Unreadable)?;
        // A failed log refuses to append, and reads the newest segment from the disk, not from memory.
        log.failed = true;
        Ok((log, report))
    }

    /// Calls `each` with every readable live message of a queue, ascending by offset. Messages are read in the same
    /// way as for a delivery.
    ///
    /// # Errors
    /// The first error of `each`.
    pub fn for_each_message<D: Disk>(
        &mut self,
        disk: &mut D,
        queue: u64,
        mut each: impl FnMut(&Self, u64, &Message<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut from = 0;
        while from < u64::MAX {
            let Some(job) = self.fetch(queue, Range { start: from, end: u64::MAX }, FETCH_BYTES as u32)
            else {
                panic!("a fetch is refused although none is in flight")
            };
            let done = job.run(disk);
            let called = done.messages().try_for_each(|(offset, message)| each(self, offset, &message));
            from = self.fetch_done(done, |_, _| {}).through;
            called?;
        }
        Ok(())
    }

    /// Calls `each` with every readable record, segment by segment, live or not. A start writes the last
    /// commit again, so the records of such a commit appear twice.
    ///
    /// # Errors
    /// The disk cannot be read, or `each` failed: the first error.
    pub fn for_each_record<D: Disk>(
        &self,
        disk: &mut D,
        mut each: impl FnMut(&FoundRecord<'_>) -> io::Result<()>,
    ) -> io::Result<Vec<SegmentSummary>> {
        let mut bytes = vec![0; self.settings.segment_bytes as usize];
        let mut disk = ReadAround::new(disk);
        let mut segments = Vec::with_capacity(self.index.segments().len());
        for (&sequence, segment) in self.index.segments() {
            let slot = segment.slot;
            let mut found = SegmentSummary { sequence, slot, ..SegmentSummary::default() };
            let length = disk.read(slot, 0, &mut bytes)?;
            bytes[length..].fill(0);
            found.is_sealed = footer::of_segment(&bytes, sequence, self.writer.identity.seed()).is_some();
            self.walk_records(&bytes[..length], &mut found, &mut each)?;
            segments.push(found);
        }
        Ok(segments)
    }

    /// Calls `each` with the records of one segment.
    fn walk_records(
        &self,
        bytes: &[u8],
        found: &mut SegmentSummary,
        each: &mut impl FnMut(&FoundRecord<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        let (seed, segment) = (self.writer.identity.seed(), found.sequence);
        let mut at = BLOCK_BYTES;
        while at < bytes.len() {
            let rest = &bytes[at..];
            let whole = Commit::parse(rest, seed).filter(|commit| commit.header.segment == segment);
            let (header, records, step) = match whole {
                Some(commit) => {
                    found.commits += 1;
                    let first = COMMIT_HEADER_BYTES;
                    let records =
                        records_of(commit.records).map(|(from, length)| (first + from, length)).collect();
                    (commit.header, records, commit.bytes())
                }
                None => match read_damaged_commit(rest, seed, segment) {
                    Some(damaged) => (damaged.header, damaged.records, BLOCK_BYTES),
                    None => {
                        at += BLOCK_BYTES;
                        continue;
                    }
                },
            };
            for (from, length) in records {
                let Ok((record, _)) = Record::parse(&rest[from..from + length]) else { continue };
                let place = RecordLocation { segment, at: (at + from) as u32, bytes: length as u32 };
                let (commit, epoch) = (header.number, header.epoch);
                found.records += 1;
                each(&FoundRecord { place, commit, epoch, is_of_damaged_commit: whole.is_none(), record })?;
            }
            at += step;
            found.used_bytes = at as u32;
        }
        Ok(())
    }

    /// Returns the bytes of a segment.
    pub const fn segment_bytes(&self) -> u32 {
        self.settings.segment_bytes
    }

    /// Returns whether a message is live in the queue and at the offset of `target`, and its newest copy is in
    /// `segment`.
    pub fn is_live_in(&self, target: &Target, segment: u64) -> bool {
        self.index.is_message_live_in(target, segment)
    }

    /// Reads a chunk of a large body into `bytes`; returns `None` if it cannot be read.
    pub fn read_chunk<'b, D: Disk>(
        &self,
        disk: &mut D,
        body: u64,
        index: u32,
        bytes: &'b mut Vec<u8>,
    ) -> Option<&'b [u8]> {
        let place = self.index.place_of_chunk(body, index)?;
        match self.read_record(disk, place, bytes) {
            Ok(Some(Record::Chunk { body: id, index: number, bytes })) if (id, number) == (body, index) => {
                Some(bytes)
            }
            _ => None,
        }
    }

    /// Calls `each` with all live messages and chunks, segment by segment. A record of the commit that this
    /// epoch repeated may appear twice.
    ///
    /// # Errors
    /// The disk cannot be read.
    pub fn read_live<D: Disk>(&self, disk: &mut D, mut each: impl FnMut(&Record<'_>)) -> io::Result<()> {
        let walked = self.for_each_record(disk, |found| {
            if self.index.is_live_in(&found.record, found.place.segment) {
                each(&found.record);
            }
            Ok(())
        });
        walked.map(|_| ())
    }
}

/// Returns the offset and length of each record in the records of a whole commit.
fn records_of(records: &[u8]) -> impl Iterator<Item = (usize, usize)> {
    let mut at = 0;
    core::iter::from_fn(move || {
        let (_, length) = Record::parse(records.get(at..)?).ok()?;
        at += length;
        Some((at - length, length))
    })
}
