//! The jobs of the helper threads. The event loop sends a job to a helper thread as a value, and receives it back
//! with the result.
//!
//! # Invariants
//! - A job owns its buffers and returns them with the result, even on failure.
//! - Jobs of one kind never overlap. The writes of a finished commit job are therefore durable before the
//!   next job is created.
//! - A failed write or sync is not retried, because the state of the disk is unknown after a failure. There are two
//!   exceptions. If the file system had no space for a write, the same bytes are written to the same place when there
//!   is space; nothing was synced in between. An access file beside the log that cannot be written is deleted and
//!   created again, once (`access`).

use std::io;

use super::access::{self, DefinitionLocations, UpdateResult};
use super::commit::{self, COMMIT_HEADER_BYTES, CommitHeader, Owner, padded, verified_length};
use super::commit_builder::ResizeZeroed;
use super::disk::{ACCESS_SLOTS, Disk, is_full};
use super::footer::{Footer, Trailer};
use super::parts::BodyPart;
use super::recovery::header_copy;

/// Writes a commit. If the commit opens a segment, the footer of the previous segment and the new header are
/// written first.
#[derive(Debug)]
pub struct CommitJob {
    pub(super) seal: Option<Seal>,
    /// The header of the segment that this commit opens.
    pub(super) segment_header: Option<SegmentWrite>,
    /// The pending records. The helper adds the commit header, so that the event loop does not compute the checksum.
    pub(super) commit: SegmentWrite,
    pub(super) commit_header: CommitHeader,
    pub(super) owner: Owner,
    /// Whether the access files beside the log must be updated after this commit, because it may change users or
    /// permissions.
    pub(super) updates_access_files: bool,
    /// Locations of all access definitions in the log, if the access files beside the log were lost.
    pub(super) access_locations: Option<Vec<DefinitionLocations>>,
    /// Result of updating the access files.
    pub(super) access: UpdateResult,
    /// Bytes written to the header copy beside the log, if the commit opens a segment; otherwise 0.
    pub(super) header_copy_bytes: usize,
    /// The last part of the job that is durable.
    pub(super) done: WrittenPart,
    /// The file that may be deleted to make space. Each retry of the job gets another one.
    pub(super) deletable: DeletableFile,
}

/// The last durable part of a commit job, in the order of writing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum WrittenPart {
    Nothing,
    /// The footer of the previous segment, or there was none to write.
    Seal,
    /// The header of the new segment, or there was none to write.
    Header,
}

/// How a commit job ended.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Everything that was written is durable.
    Durable,
    /// The file system had no space for a write. The job is run again later.
    NoCapacity,
    /// The disk failed.
    Failed(io::Error),
}

/// Bytes and the location to write them to.
#[derive(Debug)]
pub(super) struct SegmentWrite {
    pub(super) slot: u32,
    pub(super) at: u32,
    pub(super) bytes: Vec<u8>,
}

/// A free segment file that may be deleted if the file system has no space for a write.
#[derive(Debug)]
pub(super) struct DeletableFile {
    /// The file's slot; `None` if no file may be deleted, or after an attempt to delete it.
    pub(super) slot: Option<u32>,
    /// The file's slot, if it was deleted.
    pub(super) deleted_slot: Option<u32>,
}

impl DeletableFile {
    /// Writes and syncs. If the file system is full, deletes the file and tries once more.
    fn put(&mut self, disk: &mut impl Disk, slot: u32, at: u32, bytes: &[u8]) -> Result<(), Outcome> {
        let mut written = disk.write(slot, at.into(), bytes);
        if written.as_ref().is_err_and(is_full)
            && let Some(deletable) = self.slot.take()
            && disk.remove(deletable).is_ok()
        {
            self.deleted_slot = Some(deletable);
            written = disk.write(slot, at.into(), bytes);
        }
        match written {
            Err(error) if is_full(&error) => Err(Outcome::NoCapacity),
            Err(error) => Err(Outcome::Failed(error)),
            Ok(()) => disk.sync(slot).map_err(Outcome::Failed),
        }
    }
}

/// Writes the footer of a full segment. The helper thread groups the footer's messages by queue, because this would
/// delay the event loop.
#[derive(Debug)]
pub(super) struct Seal {
    pub(super) slot: u32,
    pub(super) segment_bytes: u32,
    /// End of the segment's commits.
    pub(super) tail: u32,
    pub(super) trailer: Trailer,
    /// Initial value of the store's checksums.
    pub(super) seed: u32,
    pub(super) footer: Footer,
    /// The encoded footer; empty if the segment has no space for it.
    pub(super) bytes: Vec<u8>,
    /// Location of each queue's part, relative to `at`.
    pub(super) parts: Vec<(u64, BodyPart)>,
    pub(super) at: u32,
}

impl Seal {
    fn run(&mut self, disk: &mut impl Disk, deletable: &mut DeletableFile) -> Result<(), Outcome> {
        self.footer.finish(&self.trailer, self.seed, &mut self.bytes, &mut self.parts);
        let room = (self.segment_bytes - self.tail) as usize;
        if self.bytes.len() > room {
            // Without a footer, a start reads the segment commit by commit.
            self.bytes.clear();
            self.parts.clear();
            return Ok(());
        }
        self.at = self.segment_bytes - self.bytes.len() as u32;
        deletable.put(disk, self.slot, self.at, &self.bytes)
    }
}

/// The result of a commit job.
#[derive(Debug)]
pub struct CommitDone {
    pub(super) job: CommitJob,
    pub(super) outcome: Outcome,
}

impl CommitJob {
    /// Runs the job or continues it; blocks. Everything is durable if the outcome is `Durable`.
    pub fn run(mut self, disk: &mut impl Disk) -> CommitDone {
        let outcome = self.write(disk).err().unwrap_or(Outcome::Durable);
        CommitDone { job: self, outcome }
    }

    /// Writes the parts of the commit in their order. Each part is synced before the next is written. A header
    /// therefore proves that the footer before it is durable, and a commit proves the header.
    fn write(&mut self, disk: &mut impl Disk) -> Result<(), Outcome> {
        self.write_log(disk)?;
        if self.updates_access_files {
            let records = &self.commit.bytes[COMMIT_HEADER_BYTES..];
            let (number, known_locations) = (self.commit_header.number, self.access_locations.as_deref());
            let updated = access::update(disk, &self.owner, number, records, known_locations);
            self.access = updated.map_err(Outcome::Failed)?;
        }
        Ok(())
    }

    /// Writes the parts of the log; the access files are not included.
    fn write_log(&mut self, disk: &mut impl Disk) -> Result<(), Outcome> {
        if self.done == WrittenPart::Nothing {
            if let Some(seal) = &mut self.seal {
                seal.run(disk, &mut self.deletable)?;
            }
            self.done = WrittenPart::Seal;
        }
        if self.done == WrittenPart::Seal {
            if let Some(header) = &self.segment_header {
                self.deletable.put(disk, header.slot, header.at, &header.bytes)?;
                self.header_copy_bytes = write_header_copy(disk, header);
            }
            commit::finish(&mut self.commit.bytes, &self.commit_header, &self.owner);
            self.done = WrittenPart::Header;
        }
        let SegmentWrite { slot, at, bytes } = &self.commit;
        self.deletable.put(disk, *slot, *at, bytes)
    }
}

/// Writes the header copy and returns the number of bytes written; 0 on an error. The error is not fatal: without the
/// header copy, damage to the newest header is only detected less reliably.
fn write_header_copy(disk: &mut impl Disk, header: &SegmentWrite) -> usize {
    header_copy::write(disk, header.slot, &header.bytes).unwrap_or_else(|error| {
        log::warn!(
            "`newest`, the copy of the newest segment's header, cannot be written ({error}): damage at the end of the \
             log may not be noticed at the next start"
        );
        0
    })
}

impl CommitDone {
    /// Returns the number of syncs. Syncs of the directory and of an access file that could not be written are not
    /// counted.
    pub fn syncs(&self) -> u64 {
        let access = if self.job.access.bytes > 0 { ACCESS_SLOTS.len() as u64 } else { 0 };
        let header_copy = u64::from(self.job.header_copy_bytes > 0);
        1 + u64::from(self.job.seal.is_some())
            + u64::from(self.job.segment_header.is_some())
            + header_copy
            + access
    }

    /// Returns the bytes written.
    pub fn bytes(&self) -> usize {
        let footer = self.job.seal.as_ref().map_or(0, |seal| seal.bytes.len());
        let header = self.job.segment_header.as_ref().map_or(0, |header| header.bytes.len());
        footer + header + self.job.header_copy_bytes + self.job.commit.bytes.len() + self.job.access.bytes
    }
}

/// Records beside the log which commit is the last of this epoch.
#[derive(Debug)]
pub struct EndJob {
    pub(super) owner: Owner,
    pub(super) number: u64,
    /// Whether this epoch's only commit is the one that repeats the last commit that its start found.
    pub(super) only_repeated: bool,
}

impl EndJob {
    /// Runs the job; blocks. A failed write is not fatal: damage at the end of the log is then only detected less
    /// reliably.
    pub fn run(self, disk: &mut impl Disk) {
        let Self { owner, number, only_repeated } = self;
        if let Err(error) = access::note_end(disk, &owner, number, only_repeated) {
            log::warn!(
                "access.a and access.b cannot be written ({error}): damage at the end of the log may not be noticed at \
                 the next start"
            );
        }
    }
}

/// Reads a part of a segment.
#[derive(Debug)]
pub struct ReadJob {
    pub(super) slot: u32,
    pub(super) at: u32,
    pub(super) buffer: Vec<u8>,
    /// If the commit at this offset may be longer than the buffer: the size to which the buffer may grow, and the
    /// store's seed. The buffer grows only if the commit's checksum is right.
    pub(super) longer: Option<(usize, u32)>,
}

/// The result of a read job.
#[derive(Debug)]
pub struct ReadDone {
    pub(super) buffer: Vec<u8>,
    /// Number of bytes read.
    pub(super) outcome: io::Result<usize>,
}

impl ReadJob {
    /// Runs the job; blocks.
    pub fn run(mut self, disk: &mut impl Disk) -> ReadDone {
        if let Some((bytes, seed)) = self.longer
            && let Ok(Some(length)) = verified_length(disk, self.slot, self.at.into(), seed)
        {
            self.buffer.resize_zeroed(padded(length).min(bytes));
        }
        let outcome = disk.read(self.slot, self.at.into(), &mut self.buffer);
        ReadDone { buffer: self.buffer, outcome }
    }
}

/// Writes zeros to a range of a new segment file and syncs it. A commit that becomes due meanwhile waits for this job,
/// so the range is at most 256 KiB (`PREPARE_STEP_BYTES`).
#[derive(Debug)]
pub struct PrepareJob {
    pub(super) slot: u32,
    /// Size of the segment if the file is still to be created.
    pub(super) create: Option<u32>,
    pub(super) from: u32,
    pub(super) bytes: u32,
    /// Whether this step completes the segment.
    pub(super) last: bool,
}

/// The result of a prepare job.
#[derive(Debug)]
pub struct PrepareDone {
    pub(super) job: PrepareJob,
    pub(super) outcome: io::Result<()>,
}

impl PrepareJob {
    /// Runs the job; blocks.
    pub fn run(self, disk: &mut impl Disk) -> PrepareDone {
        let outcome = self.prepare(disk);
        if outcome.as_ref().is_err_and(is_full) {
            // A file that could not be prepared must not take space. If it cannot be deleted either, the next attempt
            // prepares it again.
            let _ = disk.remove(self.slot);
        }
        PrepareDone { job: self, outcome }
    }

    fn prepare(&self, disk: &mut impl Disk) -> io::Result<()> {
        if let Some(bytes) = self.create {
            disk.create(self.slot)?;
            disk.reserve(self.slot, bytes.into())?;
        }
        disk.zero(self.slot, self.from.into(), self.bytes)?;
        disk.sync(self.slot)?;
        if self.last { disk.sync_directory() } else { Ok(()) }
    }
}
