//! Describes what a start could not read, and reads around blocks that the disk refuses to read.
//!
//! The damage is described in sentences for the operator. They are written into the log before a damaged segment is
//! removed, so that no loss goes unreported.

use std::fmt::Write as _;
use std::io;

use crate::pending_writes::Urgency;
use crate::reported_damage::ReportedDamage;
use leveret_core::definition::DAMAGE_KEY;
use leveret_core::mem::sort_by_key;
use leveret_core::time::Now;
use rustix::io::Errno;

use super::commit::BLOCK_BYTES;
use super::disk::{Disk, UnopenedFile};
use super::log::Log;
use super::record::Record;
use super::recovery::{Report, SetAside};

/// Maximum number of ranges per segment in a sentence.
const RANGES_MAX: usize = 4;

impl Report {
    /// Describes what could not be read. The sentences are the same at every start as long as the damage is
    /// the same.
    pub fn describe_damage(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if self.is_lost {
            lines.push(
                "the store is lost: no queue and no message can be read; a new store was created".to_string(),
            );
        }
        if self.newest_missing {
            lines.push(
                "the newest segment file and the file newest are missing: if this is a copy of a store, it is \
                 incomplete"
                    .to_string(),
            );
        }
        self.describe_files(&mut lines);
        self.describe_parts(&mut lines);
        if lines.is_empty() && self.commits_missing > 0 {
            lines.push("commits of the log are missing".to_string());
        }
        if self.groups_damaged > 0 {
            lines.push("a large transaction that a power cut interrupted is damaged".to_string());
        }
        if self.has_unfinished_repair {
            lines.push(
                "the file mending is left of a repair that an older version of Leveret did not finish: its segment may \
                 be damaged; remove the file"
                    .to_string(),
            );
        }
        lines
    }

    /// Describes the files that cannot be opened, and the blocks that cannot be read.
    fn describe_files(&self, lines: &mut Vec<String>) {
        for unopened in &self.unopened {
            lines.push(format!(
                "the file {} cannot be opened ({})",
                unopened.name.escape_debug(),
                unopened.why.escape_debug()
            ));
        }
        for blocks in self.refused.chunk_by(|a, b| a.0 == b.0) {
            let (slot, most) = (blocks[0].0, REFUSED_IN_FILE_MAX);
            let count = match blocks.len() {
                1 => "1 block".to_string(),
                count if count > most => format!("more than {most} blocks"),
                count => format!("{count} blocks"),
            };
            lines.push(format!("the disk refuses to read {count} of {slot:08}.seg"));
        }
    }

    /// Describes the parts of the log that were set aside, by segment.
    fn describe_parts(&self, lines: &mut Vec<String>) {
        let mut parts: Vec<&SetAside> = self.set_aside.iter().collect();
        sort_by_key(&mut parts, |part| (part.segment, part.slot, part.from, part.to));
        parts.dedup();
        for of_segment in parts.chunk_by(|a, b| (a.segment, a.slot) == (b.segment, b.slot)) {
            let SetAside { segment, slot, .. } = *of_segment[0];
            if segment == 0 {
                lines.push(format!("{slot:08}.seg: not a readable segment of this store; it is not used"));
                continue;
            }
            let mut ranges: Vec<(u32, u32)> = Vec::new();
            for part in of_segment.iter().filter(|part| part.from < part.to) {
                match ranges.last_mut().filter(|(_, to)| part.from <= *to) {
                    Some((_, to)) => *to = part.to.max(*to),
                    None => ranges.push((part.from, part.to)),
                }
            }
            let mut line = format!("segment {segment} ({slot:08}.seg)");
            for (at, (from, to)) in ranges.iter().take(RANGES_MAX).enumerate() {
                let _ = write!(line, "{} {from} to {to}", if at == 0 { ": bytes" } else { "," });
            }
            if ranges.len() > RANGES_MAX {
                let _ = write!(
                    line,
                    " and {} more ranges up to {}",
                    ranges.len() - RANGES_MAX,
                    ranges[ranges.len() - 1].1
                );
            }
            line.push_str(" cannot be read");
            lines.push(line);
        }
    }
}

impl Log {
    /// Adds the damage that this start found to the damage that earlier starts wrote into the log.
    pub(super) fn merge_damage<D: Disk>(&mut self, disk: &mut D, report: &mut Report) -> io::Result<()> {
        let mut bytes = Vec::new();
        let written = match self.index.definitions().get(&DAMAGE_KEY[..]) {
            Some(definition) if !definition.deleted => {
                let value = self.read_definition(disk, &DAMAGE_KEY, definition, &mut bytes)?;
                value.map_or_else(ReportedDamage::default, |(value, _)| ReportedDamage::parse(value))
            }
            _ => ReportedDamage::default(),
        };
        report.reported_damage = written.clone();
        report.reported_damage.merge(&report.describe_damage());
        report.has_new_damage = report.reported_damage != written;
        Ok(())
    }

    /// Appends the sentences about all reported damage to the pending commit, if this start has added one. Returns
    /// `false` if the commit has no space for them. Then the caller must not remove segments before the sentences are
    /// written.
    pub(super) fn append_damage(&mut self, report: &Report, now: Now) -> bool {
        if !report.has_new_damage {
            return true;
        }
        let (version, value) = (self.version_of_epoch(), report.reported_damage.value());
        let record = Record::Defined { version, key: &DAMAGE_KEY, value: value.as_deref() };
        self.append_reserved(&record, Urgency::Awaited, now).is_ok()
    }
}

/// Maximum number of times that a start reads the store, if the disk refuses to read a part of it.
pub(super) const READ_ATTEMPTS_MAX: u32 = 3;
/// Number of refused blocks after which the rest of a file counts as refused.
pub(super) const REFUSED_IN_FILE_MAX: usize = 16;
/// Number of refused blocks above which the disk counts as broken.
const REFUSED_MAX: usize = 256;
/// The byte with which a refused block is filled.
const REFUSED: u8 = 0xFF;

/// A disk wrapper that reads around blocks which the disk refuses.
///
/// A worn flash card refuses single sectors, permanently or until the next attempt. The records in these sectors are
/// damaged; all other records must still be usable.
///
/// # Invariants
/// - A refused read is repeated block by block. A refused block is recorded and reads as 0xFF, which is no
///   header, no commit and no empty block.
/// - A block is requested only once. After [`REFUSED_IN_FILE_MAX`] refused blocks of a file, no further block
///   of it is requested, because each refusal can take a second.
/// - If the disk refuses more than [`REFUSED_MAX`] blocks, the whole disk counts as broken, and its error is
///   returned.
/// - A file that cannot be opened reads as empty; [`Disk::unopened`] lists these files.
pub(super) struct ReadAround<'d, D> {
    disk: &'d mut D,
    /// File and offset of each refused block, ascending, without duplicates.
    pub(super) refused: Vec<(u32, u32)>,
}

impl<'d, D: Disk> ReadAround<'d, D> {
    pub(super) fn new(disk: &'d mut D) -> Self {
        Self { disk, refused: Vec::new() }
    }

    /// Returns whether a slot's file cannot be opened.
    pub(super) fn is_unopened(&self, slot: u32) -> bool {
        self.disk.unopened().iter().any(|file| file.slot == Some(slot))
    }

    #[cold]
    #[inline(never)]
    fn read_blocks(&mut self, slot: u32, at: u64, bytes: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < bytes.len() {
            let from = at + done as u64;
            let to_next = BLOCK_BYTES - from as usize % BLOCK_BYTES;
            let most = to_next.min(bytes.len() - done);
            let piece = &mut bytes[done..done + most];
            let block = (slot, (from / BLOCK_BYTES as u64) as u32 * BLOCK_BYTES as u32);
            done += most;
            if self.is_given_up(block) {
                piece.fill(REFUSED);
                continue;
            }
            match self.disk.read(slot, from, piece) {
                Ok(length) if length < most => return Ok(done - most + length),
                Ok(_) => {}
                Err(error) => {
                    piece.fill(REFUSED);
                    let place = self.refused.partition_point(|other| *other < block);
                    self.refused.insert(place, block);
                    if self.refused.len() > REFUSED_MAX {
                        return Err(error);
                    }
                }
            }
        }
        Ok(done)
    }

    /// Returns whether a block is not requested again.
    fn is_given_up(&self, block: (u32, u32)) -> bool {
        self.refused.binary_search(&block).is_ok() || self.is_file_given_up(block.0)
    }

    /// Returns whether the unread blocks of a file count as refused too.
    pub(super) fn is_file_given_up(&self, slot: u32) -> bool {
        self.refused_of(slot).len() > REFUSED_IN_FILE_MAX
    }

    /// Returns the refused blocks of a file.
    fn refused_of(&self, slot: u32) -> &[(u32, u32)] {
        let from = self.refused.partition_point(|(other, _)| *other < slot);
        let to = self.refused.partition_point(|(other, _)| *other <= slot);
        &self.refused[from..to]
    }

    /// Returns whether the disk has already refused a block with some of these bytes.
    fn has_refused(&self, slot: u32, at: u64, length: usize) -> bool {
        let end = at + length as u64;
        let is_within = |block: u32| u64::from(block) < end && at < u64::from(block) + BLOCK_BYTES as u64;
        self.is_file_given_up(slot) || self.refused_of(slot).iter().any(|(_, block)| is_within(*block))
    }
}

/// Returns whether an error is about a part of a file: a bad sector, or a wrong checksum in a file system with
/// checksums. Other errors, such as a lack of memory or a missing file, are no sign of a bad block.
pub(super) fn is_about_a_block(error: &io::Error) -> bool {
    match Errno::from_io_error(error) {
        Some(errno) => {
            [Errno::IO, Errno::BADMSG, Errno::UCLEAN, Errno::NODATA, Errno::ILSEQ, Errno::REMOTEIO]
                .contains(&errno)
        }
        None => error.kind() == io::ErrorKind::Other,
    }
}

impl<D: Disk> Disk for ReadAround<'_, D> {
    fn lock(&mut self) -> io::Result<()> {
        self.disk.lock()
    }

    fn unopened(&self) -> &[UnopenedFile] {
        self.disk.unopened()
    }

    fn slots(&mut self) -> io::Result<Vec<u32>> {
        self.disk.slots()
    }

    fn create(&mut self, slot: u32) -> io::Result<()> {
        self.disk.create(slot)
    }

    fn reserve(&mut self, slot: u32, bytes: u64) -> io::Result<()> {
        self.disk.reserve(slot, bytes)
    }

    #[inline(never)]
    fn read(&mut self, slot: u32, at: u64, bytes: &mut [u8]) -> io::Result<usize> {
        if !self.refused.is_empty() && self.has_refused(slot, at, bytes.len()) {
            return self.read_blocks(slot, at, bytes);
        }
        match self.disk.read(slot, at, bytes) {
            Err(_) if self.is_unopened(slot) => Ok(0),
            Err(error) if is_about_a_block(&error) => self.read_blocks(slot, at, bytes),
            read => read,
        }
    }

    fn write(&mut self, slot: u32, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.disk.write(slot, at, bytes)
    }

    fn zero(&mut self, slot: u32, at: u64, bytes: u32) -> io::Result<()> {
        self.disk.zero(slot, at, bytes)
    }

    fn sync(&mut self, slot: u32) -> io::Result<()> {
        self.disk.sync(slot)
    }

    fn remove(&mut self, slot: u32) -> io::Result<()> {
        self.disk.remove(slot)
    }

    fn sync_directory(&mut self) -> io::Result<()> {
        self.disk.sync_directory()
    }
}

#[cfg(test)]
mod read_around_tests {
    use super::*;

    /// A disk that refuses every block, and counts the requests.
    struct Dead {
        asked: usize,
    }

    impl Disk for Dead {
        fn lock(&mut self) -> io::Result<()> {
            Ok(())
        }

        fn slots(&mut self) -> io::Result<Vec<u32>> {
            Ok(vec![0, 1])
        }

        fn create(&mut self, _: u32) -> io::Result<()> {
            Ok(())
        }

        fn read(&mut self, _: u32, _: u64, _: &mut [u8]) -> io::Result<usize> {
            self.asked += 1;
            Err(io::Error::from(Errno::IO))
        }

        fn write(&mut self, _: u32, _: u64, _: &[u8]) -> io::Result<()> {
            Ok(())
        }

        fn zero(&mut self, _: u32, _: u64, _: u32) -> io::Result<()> {
            Ok(())
        }

        fn sync(&mut self, _: u32) -> io::Result<()> {
            Ok(())
        }

        fn sync_directory(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Each refusal can take a second, so a dead card must not delay a start by an hour.
    #[test]
    fn a_file_with_many_refused_blocks_is_given_up() {
        let mut dead = Dead { asked: 0 };
        let mut disk = ReadAround::new(&mut dead);
        let mut bytes = vec![0; 1000 * BLOCK_BYTES];
        for slot in [0, 1] {
            for _ in 0..3 {
                let known = disk.read(slot, 0, &mut bytes).expect("it reads around");
                assert_eq!((known, bytes.iter().all(|byte| *byte == REFUSED)), (bytes.len(), true));
            }
            assert!(disk.is_file_given_up(slot));
        }
        assert_eq!(disk.refused.len(), 2 * (REFUSED_IN_FILE_MAX + 1));
        let is_broken = (2..100).any(|slot| disk.read(slot, 0, &mut bytes).is_err());
        assert!(is_broken && disk.refused.len() == REFUSED_MAX + 1);
        assert!(dead.asked < REFUSED_MAX + 20, "{}", dead.asked);
    }
}
