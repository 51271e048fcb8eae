//! What the helper threads do: jobs are values, handed out and handed back with their outcome.
//!
//! Always true: a job owns its buffers and gives them back whatever happens; jobs of one kind never
//! overlap, so what a finished commit job wrote is durable before the next one is made; nothing is tried
//! twice, for a disk that failed once has an unknown state.

use std::io;

use super::access_file;
use super::commit::{self, COMMIT_HEADER_BYTES, CommitHeader, Owner};
use super::disk::{ACCESS_SLOTS, Disk};
use super::footer::{Footer, Trailer};
use super::parts::Part;

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
    /// Bytes written for that.
    pub(super) access_bytes: usize,
}

/// Bytes for a place.
#[derive(Debug)]
pub(super) struct Write {
    pub(super) slot: u32,
    pub(super) at: u32,
    pub(super) bytes: Vec<u8>,
}

impl Write {
    /// Writes and syncs.
    fn run(&self, disk: &mut impl Disk) -> io::Result<()> {
        disk.write(self.slot, self.at.into(), &self.bytes)?;
        disk.sync(self.slot)
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
    pub(super) parts: Vec<(u64, Part)>,
    pub(super) at: u32,
}

impl Seal {
    fn run(&mut self, disk: &mut impl Disk) -> io::Result<()> {
        self.noted.finish(&self.trailer, self.seed, &mut self.bytes, &mut self.parts);
        let room = (self.segment_bytes - self.tail) as usize;
        if self.bytes.len() > room {
            // The segment will be read commit by commit.
            self.bytes.clear();
            self.parts.clear();
            return Ok(());
        }
        self.at = self.segment_bytes - self.bytes.len() as u32;
        disk.write(self.slot, self.at.into(), &self.bytes)?;
        disk.sync(self.slot)
    }
}

/// A commit job that was run.
#[derive(Debug)]
pub struct CommitDone {
    pub(super) job: CommitJob,
    pub(super) outcome: io::Result<()>,
}

impl CommitJob {
    /// Does it; blocks. Everything is durable when the outcome is good.
    pub fn run(mut self, disk: &mut impl Disk) -> CommitDone {
        let outcome = self.write(disk);
        CommitDone { job: self, outcome }
    }

    /// Each part is durable before the next is begun: so a header proves the footer, a commit the header.
    fn write(&mut self, disk: &mut impl Disk) -> io::Result<()> {
        if let Some(seal) = &mut self.seal {
            seal.run(disk)?;
        }
        if let Some(header) = &self.header {
            header.run(disk)?;
        }
        commit::finish(&mut self.commit.bytes, &self.commit_header, &self.owner);
        self.commit.run(disk)?;
        if self.keeps_access {
            self.access_bytes =
                access_file::update(disk, &self.owner, &self.commit.bytes[COMMIT_HEADER_BYTES..])?;
        }
        Ok(())
    }
}

impl CommitDone {
    /// Syncs that it did.
    pub fn syncs(&self) -> u64 {
        let access = if self.job.access_bytes > 0 { ACCESS_SLOTS.len() as u64 } else { 0 };
        1 + u64::from(self.job.seal.is_some()) + u64::from(self.job.header.is_some()) + access
    }

    /// Bytes that it wrote.
    pub fn bytes(&self) -> usize {
        let footer = self.job.seal.as_ref().map_or(0, |seal| seal.bytes.len());
        let header = self.job.header.as_ref().map_or(0, |header| header.bytes.len());
        footer + header + self.job.commit.bytes.len() + self.job.access_bytes
    }
}

/// Reads a part of a segment.
#[derive(Debug)]
pub struct ReadJob {
    pub(super) slot: u32,
    pub(super) at: u32,
    pub(super) buffer: Vec<u8>,
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
        let outcome = disk.read(self.slot, self.at.into(), &mut self.buffer);
        ReadDone { buffer: self.buffer, outcome }
    }
}

/// Makes one more segment ready, or a part of one: small and synced, so that it never holds up a commit.
#[derive(Debug)]
pub struct PrepareJob {
    pub(super) slot: u32,
    pub(super) create: bool,
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
        PrepareDone { job: self, outcome }
    }

    fn prepare(&self, disk: &mut impl Disk) -> io::Result<()> {
        if self.create {
            disk.create(self.slot)?;
        }
        disk.zero(self.slot, self.from.into(), self.bytes)?;
        disk.sync(self.slot)?;
        if self.last { disk.sync_directory() } else { Ok(()) }
    }
}
