//! A simulated disk: it loses, tears and reorders unsynced writes, fails on demand, and counts calls.
//!
//! The fault model:
//! - A write goes to the page cache. A sync makes the cached sectors of one file durable.
//! - A power cut keeps or loses each unsynced sector independently. Sometimes it leaves garbage in one.
//! - Files whose directory was not synced may vanish in a power cut.
//! - A kill of the process leaves the page cache as it is.
//! - A failed sync leaves its sectors clean, so no later sync writes them.
//! - Synced blocks can be damaged (`damage`).
//!
//! # Invariants
//! - A run is a function of its seed.
//! - After a power cut, every call fails until the power is back.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::rc::Rc;

use leveret_storage::{
    ACCESS_SLOTS, BLOCK_BYTES, Disk, Identity, REPAIR_SLOT, RangeSet, UnopenedFile, is_beside_the_log,
};

use super::damage::Damaged;
use super::mutant::{Mutant, SELDOM};
use super::trouble::{Spell, Trouble, Troubles};
use crate::random::Random;

pub(super) const SECTOR: usize = 512;

#[derive(Clone, Debug, Default)]
pub(super) struct File {
    pub cache: Vec<u8>,
    pub media: Vec<u8>,
    dirty: BTreeSet<usize>,
    pub is_durable: bool,
    /// Blocks that cannot be read until they are written again.
    pub refused: BTreeSet<usize>,
    /// Blocks that stay unreadable whatever is written there.
    pub worn: BTreeSet<usize>,
    /// Blocks synced since the file was recycled.
    pub synced: BTreeSet<usize>,
    unsynced: BTreeSet<usize>,
    /// The file cannot be opened.
    pub is_lost: bool,
    /// Bytes of each block before its last write.
    pub stale: BTreeMap<usize, Vec<u8>>,
    /// Old bytes of the sectors whose sync the device acknowledged but did not do, since its last real sync.
    pub owed: BTreeMap<usize, Vec<u8>>,
}

#[derive(Clone, Debug)]
pub(super) struct Inner {
    pub files: BTreeMap<u32, File>,
    pub seed: u64,
    /// Number of starts; and since the last start: calls that a cut can hit, cuts, and damages.
    pub starts: u64,
    pub calls: u64,
    pub cuts: u64,
    pub damages: u64,
    troubles: Troubles,
    /// The device does one in this many syncs and ignores the others; 0 if it does all of them.
    pub lies_one_in: u64,
    /// Removed files, until the directory is synced.
    pub removed: BTreeMap<u32, File>,
    pub off: bool,
    /// The process was killed while the power stayed on.
    pub killed: bool,
    /// Maximum size of all files together, in bytes.
    pub room: Option<u64>,
    pub mutant: Mutant,
    first_write: bool,
    pub has_failed_sync: bool,
    /// A read has failed since the last start.
    pub has_failed_read: bool,
    /// Blocks that a read failed on since [`SimDisk::end_failed_reads`] was last called.
    pub unread: BTreeSet<(u32, usize)>,
    pub violations: Vec<String>,
    pub settled: BTreeMap<u64, RangeSet>,
    pub identity: Identity,
    pub counts: Counts,
    /// Slot and byte offset of each write to the log.
    pub written: Vec<(u32, usize)>,
}

/// Counters of disk operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Number of writes.
    pub writes: u64,
    /// Bytes written.
    pub bytes: u64,
    /// Number of file syncs.
    pub syncs: u64,
    /// Zero bytes written.
    pub zeros: u64,
    /// Number of reads.
    pub reads: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Largest number of bytes requested by one read.
    pub read_bytes_max: u64,
}

/// A handle of the disk, and the files that could not be opened through it. Clones share the same disk.
#[derive(Clone, Debug)]
pub struct SimDisk(pub(super) Rc<RefCell<Inner>>, pub Vec<UnopenedFile>);

impl SimDisk {
    /// Creates an empty disk.
    pub fn new(seed: u64, mutant: Mutant, identity: Identity) -> Self {
        let inner = Inner {
            files: BTreeMap::new(),
            seed,
            starts: 0,
            calls: 0,
            cuts: 0,
            damages: 0,
            troubles: Troubles::default(),
            lies_one_in: 0,
            removed: BTreeMap::new(),
            off: false,
            killed: false,
            room: None,
            mutant,
            first_write: false,
            has_failed_sync: false,
            has_failed_read: false,
            unread: BTreeSet::new(),
            violations: Vec::new(),
            settled: BTreeMap::new(),
            identity,
            counts: Counts::default(),
            written: Vec::new(),
        };
        Self(Rc::new(RefCell::new(inner)), Vec::new())
    }

    /// Returns the counters since the disk was created, or since [`Self::forget_reads`] for reads.
    pub fn counts(&self) -> Counts {
        self.0.borrow().counts
    }

    /// Resets the counters of reads.
    pub fn forget_reads(&self) {
        let counts = &mut self.0.borrow_mut().counts;
        (counts.reads, counts.read_bytes, counts.read_bytes_max) = (0, 0, 0);
    }

    /// Returns slot and byte offset of each write to the log.
    pub fn written(&self) -> Vec<(u32, usize)> {
        self.0.borrow().written.clone()
    }

    /// Makes the block at `at` unreadable until it is written again.
    pub fn refuse(&self, slot: u32, at: usize) {
        if let Some(file) = self.0.borrow_mut().files.get_mut(&slot) {
            file.refused.insert(at / BLOCK_BYTES);
        }
    }

    /// Makes the block at `at` readable again.
    pub fn relent(&self, slot: u32, at: usize) {
        if let Some(file) = self.0.borrow_mut().files.get_mut(&slot) {
            file.refused.remove(&(at / BLOCK_BYTES));
        }
    }

    /// Makes every block readable again.
    pub fn heal(&self) {
        for file in self.0.borrow_mut().files.values_mut() {
            file.refused.clear();
            file.worn.clear();
        }
    }

    /// Makes every block readable again, except the worn ones.
    pub fn relent_all(&self) {
        self.0.borrow_mut().files.values_mut().for_each(|file| file.refused.clear());
    }

    /// Sets whether a file cannot be opened.
    pub fn lose_file(&self, slot: u32, is_lost: bool) {
        if let Some(file) = self.0.borrow_mut().files.get_mut(&slot) {
            file.is_lost = is_lost;
        }
    }

    /// Simulates opening a file; fails if the file is lost.
    fn open(&mut self, slot: u32) -> io::Result<()> {
        if !self.0.borrow().files.get(&slot).is_some_and(|file| file.is_lost) {
            return Ok(());
        }
        let file = UnopenedFile { name: format!("file {slot}"), slot: Some(slot), why: "it is lost".into() };
        if !self.1.contains(&file) {
            self.1.push(file);
        }
        Err(io::Error::other("the file cannot be opened"))
    }

    /// Flips a bit at `at`, on the media and in the page cache.
    pub fn flip(&self, slot: u32, at: usize) {
        if let Some(file) = self.0.borrow_mut().files.get_mut(&slot) {
            file.media[at] ^= 1;
            file.cache[at] = file.media[at];
        }
    }

    /// Returns slot and byte offset of each copy of some bytes on the media.
    pub fn find(&self, bytes: &[u8]) -> Vec<(u32, usize)> {
        let mut found = Vec::new();
        for (slot, file) in &self.0.borrow().files {
            let is_copy = |(at, window): (usize, &[u8])| (window == bytes).then_some((*slot, at));
            found.extend(file.media.windows(bytes.len()).enumerate().filter_map(is_copy));
        }
        found
    }

    /// Describes each write to a block that was already synced.
    pub fn violations(&self) -> Vec<String> {
        self.0.borrow().violations.clone()
    }

    /// Returns whether a sync has ever failed. After that, a file may be shorter on the media than in the
    /// cache.
    pub fn has_failed_sync(&self) -> bool {
        self.0.borrow().has_failed_sync
    }

    /// Returns whether a read has failed since the last start.
    pub fn has_failed_read(&self) -> bool {
        self.0.borrow().has_failed_read
    }

    /// Returns whether the process was killed.
    pub fn is_killed(&self) -> bool {
        let inner = self.0.borrow();
        inner.off && inner.killed
    }

    /// Returns whether the power is off or the process was killed.
    pub fn is_off(&self) -> bool {
        self.0.borrow().off
    }

    /// Starts a process and plans `trouble` for it.
    pub fn start(&self, trouble: Trouble) {
        let mut inner = self.0.borrow_mut();
        inner.troubles = Troubles::default();
        (inner.starts, inner.calls, inner.cuts, inner.damages) = (inner.starts + 1, 0, 0, 0);
        inner.has_failed_read = false;
        inner.first_write = inner.files.len() > 2;
        drop(inner);
        self.foresee(trouble);
    }

    /// Ends the planned read failures, and returns the blocks that a read failed on.
    pub fn end_failed_reads(&self) -> Damaged {
        let mut inner = self.0.borrow_mut();
        inner.troubles.read = Spell::default();
        Damaged::of(core::mem::take(&mut inner.unread))
    }

    /// Plans another fault.
    pub fn foresee(&self, trouble: Trouble) {
        self.0.borrow_mut().troubles.foresee(trouble);
    }

    /// Makes the device do only one in `one_in` syncs, by chance; 0 makes it do all of them.
    pub fn set_lies(&self, one_in: u64) {
        self.0.borrow_mut().lies_one_in = one_in;
    }

    /// Limits the size of all log files to `bytes`; `None` removes the limit.
    pub fn set_room(&self, bytes: Option<u64>) {
        self.0.borrow_mut().room = bytes;
    }

    /// Restarts after a kill: written data stays in the page cache.
    pub fn revive(&self) {
        let mut inner = self.0.borrow_mut();
        inner.off = false;
        inner.troubles = Troubles::default();
        // The next process did not write these blocks, so it may overwrite them.
        inner.files.values_mut().for_each(|file| file.unsynced.clear());
    }

    /// Cuts the power and restores it.
    pub fn power_cut(&self) {
        let mut inner = self.0.borrow_mut();
        inner.cuts += 1;
        let Inner { files, removed, seed, starts, cuts, .. } = &mut *inner;
        let of_file = |what: &str, slot: u32| Random::of(*seed, what, &[*starts, *cuts, slot.into()]);
        // A removal is durable only once the directory is synced.
        for (slot, file) in core::mem::take(removed) {
            if of_file("cut undoes removal", slot).once_in(2) && file.is_durable {
                files.entry(slot).or_insert(file);
            }
        }
        let keep = Random::of(*seed, "cut", &[*starts, *cuts]).below(4);
        files.retain(|slot, file| {
            let kept = file.is_durable || of_file("cut leaves file", *slot).once_in(2);
            file.is_durable = kept;
            kept
        });
        for (slot, file) in files {
            file.lose(&mut of_file("cut leaves sectors", *slot), keep);
        }
        inner.off = false;
        inner.troubles = Troubles::default();
    }

    /// Removes the files of users and permissions beside the log.
    pub fn lose_access_files(&self) {
        self.0.borrow_mut().files.retain(|slot, _| !ACCESS_SLOTS.contains(slot));
    }
}

impl File {
    fn grow(&mut self, length: usize) {
        if self.cache.len() < length {
            self.cache.resize(length, 0);
        }
    }

    fn write(&mut self, at: usize, bytes: &[u8]) {
        self.grow(at + bytes.len());
        self.cache[at..at + bytes.len()].copy_from_slice(bytes);
        self.dirty.extend(at / SECTOR..(at + bytes.len()).div_ceil(SECTOR));
        self.unsynced.extend(at / BLOCK_BYTES..(at + bytes.len()).div_ceil(BLOCK_BYTES));
        let written = at / BLOCK_BYTES..(at + bytes.len()).div_ceil(BLOCK_BYTES);
        self.refused.retain(|block| !written.contains(block));
    }

    fn persist(&mut self, sector: usize) {
        let (from, to) = (sector * SECTOR, ((sector + 1) * SECTOR).min(self.cache.len()));
        if self.media.len() < to {
            self.media.resize(to, 0);
        }
        if sector.is_multiple_of(BLOCK_BYTES / SECTOR) && self.media.len() >= from + BLOCK_BYTES {
            self.stale.insert(from / BLOCK_BYTES, self.media[from..from + BLOCK_BYTES].to_vec());
        }
        self.media[from..to].copy_from_slice(&self.cache[from..to]);
    }

    fn sync(&mut self) {
        for sector in std::mem::take(&mut self.dirty) {
            self.persist(sector);
        }
        self.synced.append(&mut self.unsynced);
        self.owed.clear();
    }

    /// Simulates a sync that the device acknowledges without doing it: a power cut may bring back the old
    /// bytes.
    fn owe(&mut self) {
        for sector in &self.dirty {
            let mut old: Vec<u8> = self.media.iter().skip(sector * SECTOR).take(SECTOR).copied().collect();
            old.resize(SECTOR, 0);
            self.owed.entry(*sector).or_insert(old);
        }
        let owed = core::mem::take(&mut self.owed);
        self.sync();
        self.owed = owed;
    }

    /// Simulates a failed sync: some sectors reach the media, and no later sync writes the others.
    fn fail_sync(&mut self, random: &mut Random) {
        for sector in core::mem::take(&mut self.dirty) {
            if random.once_in(2) {
                self.persist(sector);
            }
        }
        self.unsynced.clear();
    }

    fn lose(&mut self, random: &mut Random, keep: u64) {
        for sector in std::mem::take(&mut self.dirty) {
            let kept = match keep {
                0 => false,
                1 => true,
                _ => random.once_in(2),
            };
            if kept {
                self.persist(sector);
            } else if random.once_in(16) {
                let end = ((sector + 1) * SECTOR).min(self.cache.len());
                self.cache[sector * SECTOR..end].fill(0xA5);
                self.persist(sector);
            }
        }
        self.unsynced.clear();
        self.cache = self.media.clone();
    }
}

impl Inner {
    /// Returns the random numbers for one purpose in the current call.
    fn chance(&self, purpose: &str) -> Random {
        Random::of(self.seed, purpose, &[self.starts, self.calls])
    }

    /// Returns the random numbers for the next damage.
    pub(super) fn next_damage(&mut self) -> Random {
        self.damages += 1;
        Random::of(self.seed, "damage of blocks", &[self.starts, self.damages])
    }

    /// Counts a call that a cut can hit. Returns true when the power fails during this call.
    fn call(&mut self) -> io::Result<bool> {
        if self.off {
            return Err(io::Error::other("the power is off"));
        }
        self.calls += 1;
        self.killed = self.troubles.kill.hits();
        self.off = self.killed || self.troubles.cut.hits();
        Ok(self.off)
    }

    /// Fails if the file system has become read-only.
    fn change(&mut self) -> io::Result<()> {
        if self.troubles.read_only.hits() { Err(io::ErrorKind::ReadOnlyFilesystem.into()) } else { Ok(()) }
    }

    /// Returns whether a file of `end` bytes would exceed the limit for all files.
    fn is_beyond_room(&self, slot: u32, end: u64) -> bool {
        let others = self.files.iter().filter(|(other, _)| **other != slot && !is_beside_the_log(**other));
        let bytes: u64 = others.map(|(_, file)| file.cache.len() as u64).sum();
        let have = self.files.get(&slot).map_or(0, |file| file.cache.len() as u64);
        end > have && self.room.is_some_and(|room| bytes + end > room)
    }

    /// Returns whether the device ignores this sync.
    fn ignores_sync(&self) -> bool {
        self.lies_one_in > 0 && !self.chance("lie").once_in(self.lies_one_in)
    }

    fn file(&mut self, slot: u32) -> io::Result<&mut File> {
        self.files.get_mut(&slot).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Disk for SimDisk {
    fn lock(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn unopened(&self) -> &[UnopenedFile] {
        &self.1
    }

    fn slots(&mut self) -> io::Result<Vec<u32>> {
        let mut inner = self.0.borrow_mut();
        inner.call()?;
        Ok(inner.files.keys().copied().filter(|slot| !is_beside_the_log(*slot)).collect())
    }

    fn create(&mut self, slot: u32) -> io::Result<()> {
        self.open(slot)?;
        let mut inner = self.0.borrow_mut();
        inner.call()?;
        inner.change()?;
        inner.files.entry(slot).or_default();
        Ok(())
    }

    fn read(&mut self, slot: u32, at: u64, bytes: &mut [u8]) -> io::Result<usize> {
        self.open(slot)?;
        let mut inner = self.0.borrow_mut();
        if inner.off {
            return Err(io::Error::other("the power is off"));
        }
        // The check for an interrupted repair looks into the directory, so a failing medium does not affect
        // it.
        if slot == REPAIR_SLOT && !inner.files.contains_key(&slot) {
            return Ok(0);
        }
        if inner.troubles.read.hits() {
            inner.has_failed_read = true;
            if bytes.len() <= BLOCK_BYTES {
                inner.unread.insert((slot, at as usize / BLOCK_BYTES));
            }
            return Err(io::Error::other("the read failed"));
        }
        // As on a real disk, a missing file reads as an empty one.
        let Some(File { cache, refused, worn, .. }) = inner.files.get(&slot) else { return Ok(0) };
        let from = (at as usize).min(cache.len());
        let count = bytes.len().min(cache.len() - from);
        let blocks = from / BLOCK_BYTES..(from + count).div_ceil(BLOCK_BYTES);
        if refused.range(blocks.clone()).chain(worn.range(blocks)).next().is_some() {
            return Err(io::Error::other("the block cannot be read"));
        }
        bytes[..count].copy_from_slice(&cache[from..from + count]);
        inner.counts.reads += 1;
        inner.counts.read_bytes += count as u64;
        inner.counts.read_bytes_max = inner.counts.read_bytes_max.max(bytes.len() as u64);
        Ok(count)
    }

    fn write(&mut self, slot: u32, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.open(slot)?;
        let mut inner = self.0.borrow_mut();
        let cut = inner.call()?;
        inner.change()?;
        inner.counts.writes += 1;
        inner.counts.bytes += bytes.len() as u64;
        if inner.troubles.write.hits() {
            return Err(io::Error::other("the write failed"));
        }
        if std::mem::take(&mut inner.first_write) && inner.mutant == Mutant::LastCommitNotRewritten && at > 0
        {
            return Ok(());
        }
        let at = at as usize;
        if !is_beside_the_log(slot) {
            inner.written.push((slot, at));
        }
        let mut bytes = inner.mutate(at, bytes);
        inner.troubles.note_write(&bytes);
        let is_full = !cut && inner.troubles.no_room.hits();
        if cut || is_full {
            let length = inner.chance("torn write").below(bytes.len() as u64 + 1) as usize;
            bytes.truncate(length);
        }
        let rewrite = inner.mutant == Mutant::BlockRewritten && at > BLOCK_BYTES;
        let file = inner.file(slot)?;
        if at == 0 {
            file.synced.clear();
            file.unsynced.clear();
        }
        let from = if rewrite { at - BLOCK_BYTES } else { at };
        let mut all = if rewrite { file.cache[from..at].to_vec() } else { Vec::new() };
        all.extend_from_slice(&bytes);
        let blocks = from / BLOCK_BYTES..(from + all.len()).div_ceil(BLOCK_BYTES);
        let broken: Vec<usize> = blocks.filter(|block| file.synced.contains(block)).collect();
        file.write(from, &all);
        if is_full {
            // The commit is incomplete, so the next writer may overwrite it.
            file.unsynced.retain(|block| !(from / BLOCK_BYTES..).contains(block));
        }
        for block in broken {
            inner.violations.push(format!("block {block} of slot {slot} was synced and is written again"));
        }
        match (cut, is_full) {
            (true, _) => Err(io::Error::other("the power went")),
            (false, true) => Err(io::ErrorKind::StorageFull.into()),
            (false, false) => Ok(()),
        }
    }

    fn remove(&mut self, slot: u32) -> io::Result<()> {
        let mut inner = self.0.borrow_mut();
        inner.call()?;
        inner.change()?;
        let file = inner.files.remove(&slot).ok_or(io::ErrorKind::NotFound)?;
        inner.removed.insert(slot, file);
        Ok(())
    }

    fn zero(&mut self, slot: u32, at: u64, bytes: u32) -> io::Result<()> {
        self.open(slot)?;
        let mut inner = self.0.borrow_mut();
        let cut = inner.call()?;
        inner.change()?;
        let end = at + u64::from(bytes);
        let is_full = inner.troubles.full.hits();
        if is_full || !cut && (inner.troubles.no_room.hits() || inner.is_beyond_room(slot, end)) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        inner.counts.zeros += u64::from(bytes);
        let file = inner.file(slot)?;
        file.synced.clear();
        file.write(at as usize, &vec![0; bytes as usize]);
        file.unsynced.clear();
        if cut { Err(io::Error::other("the power went")) } else { Ok(()) }
    }

    fn sync(&mut self, slot: u32) -> io::Result<()> {
        let mut inner = self.0.borrow_mut();
        let cut = inner.call()?;
        inner.counts.syncs += 1;
        if cut {
            return Err(io::Error::other("the power went"));
        }
        let is_full = inner.troubles.full_sync.hits();
        if inner.troubles.sync.hits() || is_full {
            inner.has_failed_sync = true;
            let mut random = inner.chance("failed sync");
            inner.file(slot)?.fail_sync(&mut random);
            return Err(if is_full {
                io::ErrorKind::StorageFull.into()
            } else {
                io::Error::other("a sync failed")
            });
        }
        let left_out = match inner.mutant {
            Mutant::SyncLeftOut => true,
            Mutant::SyncSeldomLeftOut => inner.chance("seldom").once_in(SELDOM),
            _ => false,
        };
        let lies = inner.ignores_sync();
        let file = inner.file(slot)?;
        match () {
            () if left_out => {}
            () if lies => file.owe(),
            () => file.sync(),
        }
        Ok(())
    }

    fn sync_directory(&mut self) -> io::Result<()> {
        let mut inner = self.0.borrow_mut();
        if inner.call()? {
            return Err(io::Error::other("the power went"));
        }
        inner.files.values_mut().for_each(|file| file.is_durable = true);
        inner.removed.clear();
        Ok(())
    }
}
