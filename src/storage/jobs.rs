//! What the helper threads do: jobs are values, handed out and handed back with their outcome.
//!
//! Always true: a job owns its buffers and gives them back whatever happens; jobs of one kind never
//! overlap, so what a finished commit job wrote is durable before the next one is made; nothing is tried
//! twice, for a disk that failed once has an unknown state. The exceptions are a write, before its sync, for
//! which the file system has no room: it is made again, at its place, when there is some; and the files
//! beside the log, which are read again, and made anew once (`access_file`).

use std::io;

use super::access::{self, Known, Updated};
use super::commit::{self, COMMIT_HEADER_BYTES, CommitHeader, Owner, padded, proven_length};
use super::commit_builder::ResizeZeroed;
use super::disk::{ACCESS_SLOTS, Disk, is_full};
use super::footer::{Footer, Trailer};
use super::newest_segment;
use super::parts::BodyPart;

/// Writes a commit, and when it opens a segment, the footer of the one before and its own header first.
#[derive(Debug)]
pub struct CommitJob {
    pub(super) seal: Option<Seal>,
    pub(super) header: Option<Write>,
    /// The gathered records; the helper completes them, so that the loop need not checksum them again.
    pub(super) commit: Write,
    pub(super) commit_header: CommitHeader,
    pub(super) owner: Owner,
    /// It may change who may do what, which is kept beside the log, too.
    pub(super) keeps_access: bool,
    /// Where the log has all of it, when the files beside it were lost.
    pub(super) access_places: Option<Vec<Known>>,
    /// What became of them.
    pub(super) access: Updated,
    /// Bytes of the note beside the log about the segment that it opens.
    pub(super) noted: usize,
    /// What of it is durable.
    pub(super) done: Reached,
    /// A file that is ready to be a segment, to be given up when the file system has no room for a write.
    pub(super) gives: Option<u32>,
    /// It was given up.
    pub(super) given: Option<u32>,
}

/// The parts of a commit job, one after the other.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Reached {
    Nothing,
    Seal,
    Header,
}

/// How a commit job ended.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Everything that was written is durable.
    Durable,
    /// There was no room for a write; it is to be run again.
    NoRoom,
    /// The disk failed.
    Failed(io::Error),
}

/// Bytes for a place.
#[derive(Debug)]
pub(super) struct Write {
    pub(super) slot: u32,
    pub(super) at: u32,
    pub(super) bytes: Vec<u8>,
}

/// A file that is given up for the room it takes.
#[derive(Default)]
struct Reserve {
    file: Option<u32>,
    given: Option<u32>,
}

impl Reserve {
    /// Writes and syncs.
    fn put(&mut self, disk: &mut impl Disk, (slot, at): (u32, u32), bytes: &[u8]) -> Result<(), Outcome> {
        let mut written = disk.write(slot, at.into(), bytes);
        if written.as_ref().is_err_and(is_full)
            && let Some(file) = self.file.take()
            && disk.remove(file).is_ok()
        {
            self.given = Some(file);
            written = disk.write(slot, at.into(), bytes);
        }
        match written {
            Err(error) if is_full(&error) => Err(Outcome::NoRoom),
            Err(error) => Err(Outcome::Failed(error)),
            Ok(()) => disk.sync(slot).map_err(Outcome::Failed),
        }
    }
}

/// A segment to be sealed. Grouping what its footer says takes time, so it is left to the helper.
#[derive(Debug)]
pub(super) struct Seal {
    pub(super) slot: u32,
    pub(super) segment_bytes: u32,
    /// The end of the segment's commits.
    pub(super) tail: u32,
    pub(super) trailer: Trailer,
    pub(super) seed: u32,
    pub(super) noted: Footer,
    /// The footer; empty when there is no room for it.
    pub(super) bytes: Vec<u8>,
    /// Where each queue's part lies, counted from `at`.
    pub(super) parts: Vec<(u64, BodyPart)>,
    pub(super) at: u32,
}

impl Seal {
    fn run(&mut self, disk: &mut impl Disk, reserve: &mut Reserve) -> Result<(), Outcome> {
        self.noted.finish(&self.trailer, self.seed, &mut self.bytes, &mut self.parts);
        let room = (self.segment_bytes - self.tail) as usize;
        if self.bytes.len() > room {
            // The segment will be read commit by commit.
            self.bytes.clear();
            self.parts.clear();
            return Ok(());
        }
        self.at = self.segment_bytes - self.bytes.len() as u32;
        reserve.put(disk, (self.slot, self.at), &self.bytes)
    }
}

/// A commit job that was run.
#[derive(Debug)]
pub struct CommitDone {
    pub(super) job: CommitJob,
    pub(super) outcome: Outcome,
}

impl CommitJob {
    /// Does it, or goes on with it; blocks. Everything is durable when the outcome is good.
    pub fn run(mut self, disk: &mut impl Disk) -> CommitDone {
        let outcome = self.write(disk).err().unwrap_or(Outcome::Durable);
        CommitDone { job: self, outcome }
    }

    /// Each part is durable before the next is begun: so a header proves the footer, a commit the header.
    fn write(&mut self, disk: &mut impl Disk) -> Result<(), Outcome> {
        let mut reserve = Reserve { file: self.gives.take(), given: None };
        let written = self.write_log(disk, &mut reserve);
        self.given = reserve.given;
        written?;
        if self.keeps_access {
            let records = &self.commit.bytes[COMMIT_HEADER_BYTES..];
            let (number, lost) = (self.commit_header.number, self.access_places.as_deref());
            let updated = access::update(disk, &self.owner, number, records, lost);
            self.access = updated.map_err(Outcome::Failed)?;
        }
        Ok(())
    }

    fn write_log(&mut self, disk: &mut impl Disk, reserve: &mut Reserve) -> Result<(), Outcome> {
        if self.done == Reached::Nothing {
            if let Some(seal) = &mut self.seal {
                seal.run(disk, reserve)?;
            }
            self.done = Reached::Seal;
        }
        if self.done == Reached::Seal {
            if let Some(header) = &self.header {
                reserve.put(disk, (header.slot, header.at), &header.bytes)?;
                self.noted = note_newest(disk, header);
            }
            commit::finish(&mut self.commit.bytes, &self.commit_header, &self.owner);
            self.done = Reached::Header;
        }
        let Write { slot, at, bytes } = &self.commit;
        reserve.put(disk, (*slot, *at), bytes)
    }
}

/// What cannot be noted is only told less surely when it is destroyed, so it ends nothing.
fn note_newest(disk: &mut impl Disk, header: &Write) -> usize {
    newest_segment::write(disk, header.slot, &header.bytes).unwrap_or_else(|error| {
        log::warn!("the file newest cannot be written ({error}): the end of the log is not noted");
        0
    })
}

impl CommitDone {
    /// Syncs that it did, but for those of the directory and of a copy of access that was given up.
    pub fn syncs(&self) -> u64 {
        let access = if self.job.access.bytes > 0 { ACCESS_SLOTS.len() as u64 } else { 0 };
        let noted = u64::from(self.job.noted > 0);
        1 + u64::from(self.job.seal.is_some()) + u64::from(self.job.header.is_some()) + noted + access
    }

    /// Bytes that it wrote.
    pub fn bytes(&self) -> usize {
        let footer = self.job.seal.as_ref().map_or(0, |seal| seal.bytes.len());
        let header = self.job.header.as_ref().map_or(0, |header| header.bytes.len());
        footer + header + self.job.noted + self.job.commit.bytes.len() + self.job.access.bytes
    }
}

/// Notes beside the log which commit is the last of this life.
#[derive(Debug)]
pub struct EndJob {
    pub(super) owner: Owner,
    pub(super) number: u64,
    /// That commit only repeats what was there.
    pub(super) said_nothing: bool,
}

impl EndJob {
    /// Does it; blocks. A disk that refuses it loses nothing: what is then destroyed at the end of the log is
    /// told less surely.
    pub fn run(self, disk: &mut impl Disk) {
        let Self { owner, number, said_nothing } = self;
        if let Err(error) = access::note_end(disk, &owner, number, said_nothing) {
            log::warn!("access.a and access.b cannot be written ({error}): the end of the log is not noted");
        }
    }
}

/// Reads a part of a segment.
#[derive(Debug)]
pub struct ReadJob {
    pub(super) slot: u32,
    pub(super) at: u32,
    pub(super) buffer: Vec<u8>,
    /// The buffer may grow to so many bytes for a commit that is longer, of the store with this seed, once
    /// its checksum has proven it.
    pub(super) longer: Option<(usize, u32)>,
}

/// A read job that was run.
#[derive(Debug)]
pub struct ReadDone {
    pub(super) buffer: Vec<u8>,
    /// Bytes that were there.
    pub(super) outcome: io::Result<usize>,
}

impl ReadJob {
    /// Does it; blocks.
    pub fn run(mut self, disk: &mut impl Disk) -> ReadDone {
        if let Some((bytes, seed)) = self.longer
            && let Ok(Some(length)) = proven_length(disk, self.slot, self.at.into(), seed)
        {
            self.buffer.resize_zeroed(padded(length).min(bytes));
        }
        let outcome = disk.read(self.slot, self.at.into(), &mut self.buffer);
        ReadDone { buffer: self.buffer, outcome }
    }
}

/// Makes one more segment ready, or a part of one: small and synced, so that it never holds up a commit.
#[derive(Debug)]
pub struct PrepareJob {
    pub(super) slot: u32,
    /// The file is still to be made, for a segment of so many bytes.
    pub(super) create: Option<u32>,
    pub(super) from: u32,
    pub(super) bytes: u32,
    /// The segment is complete with this.
    pub(super) last: bool,
}

/// A prepare job that was run.
#[derive(Debug)]
pub struct PrepareDone {
    pub(super) job: PrepareJob,
    pub(super) outcome: io::Result<()>,
}

impl PrepareJob {
    /// Does it; blocks.
    pub fn run(self, disk: &mut impl Disk) -> PrepareDone {
        let outcome = self.prepare(disk);
        if outcome.as_ref().is_err_and(is_full) {
            // A file that is of no use is not to be what fills the file system. A disk may keep it.
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
