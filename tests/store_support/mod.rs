//! A disk for simulation: it loses, tears and reorders what was not synced, fails when told to, and counts.
//!
//! The fault model: a write goes to the page cache. A sync makes the cached sectors of one file durable. A
//! power cut keeps or loses every unsynced sector by itself, and now and then leaves one as garbage; files
//! whose directory was not synced may vanish. A kill leaves the cache as it is. A sync that fails leaves
//! its sectors looking clean, so that no later sync writes them. Bits of blocks long synced may flip.
//!
//! Always true: a run is a function of its seed; after the cut every call fails until the power is back.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::rc::Rc;

use leveret::store::{BLOCK_BYTES, Disk, Identity, Record};

const SECTOR: usize = 512;

/// Numbers from a seed (xorshift).
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self((seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x5DEE_CE66_D1CE_4E5B) | 1)
    }

    pub(crate) fn below(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) % below
    }

    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// A mistake put between the store and the disk, to prove that the checks see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mutant {
    None,
    /// Syncs say that they are done and do nothing.
    SyncLeftOut,
    /// Settlements are not written again when the segment that has them leaves the log.
    SettlementDropped,
    /// Every commit and header says life 1.
    NoLife,
    /// The first write of a life is not made.
    LastCommitNotRewritten,
    /// Each commit writes the block before it once more.
    BlockRewritten,
}

/// What happens at which call, counted from now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Trouble {
    Never,
    /// The power goes.
    Cut(u64),
    /// A sync fails; so many syncs from now.
    FailedSync(u64),
    /// The file system is full for zeros from this call on.
    Full(u64),
}

#[derive(Clone, Debug, Default)]
struct File {
    cache: Vec<u8>,
    media: Vec<u8>,
    dirty: BTreeSet<usize>,
    is_durable: bool,
    /// Blocks synced since the file was recycled.
    synced: BTreeSet<usize>,
    unsynced: BTreeSet<usize>,
}

#[derive(Debug)]
struct Inner {
    files: BTreeMap<u32, File>,
    random: Random,
    trouble: Trouble,
    off: bool,
    mutant: Mutant,
    first_write: bool,
    violations: Vec<String>,
    settled: BTreeMap<u64, BTreeSet<u64>>,
    identity: Identity,
    counts: Counts,
}

/// What was asked of the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) writes: u64,
    pub(crate) bytes: u64,
    pub(crate) syncs: u64,
    pub(crate) zeros: u64,
    pub(crate) reads: u64,
    pub(crate) read_bytes: u64,
}

/// The disk; clones are the same disk.
#[derive(Clone, Debug)]
pub(crate) struct SimDisk(Rc<RefCell<Inner>>);

impl SimDisk {
    pub(crate) fn new(seed: u64, mutant: Mutant, identity: Identity) -> Self {
        Self(Rc::new(RefCell::new(Inner {
            files: BTreeMap::new(),
            random: Random::new(seed),
            trouble: Trouble::Never,
            off: false,
            mutant,
            first_write: false,
            violations: Vec::new(),
            settled: BTreeMap::new(),
            identity,
            counts: Counts::default(),
        })))
    }

    pub(crate) fn counts(&self) -> Counts {
        self.0.borrow().counts
    }

    pub(crate) fn violations(&self) -> Vec<String> {
        self.0.borrow().violations.clone()
    }

    pub(crate) fn is_off(&self) -> bool {
        self.0.borrow().off
    }

    /// A process starts; so much trouble is ahead of it.
    pub(crate) fn start(&self, trouble: Trouble) {
        let mut inner = self.0.borrow_mut();
        inner.trouble = trouble;
        inner.first_write = inner.files.len() > 2;
    }

    /// The power goes and comes back.
    pub(crate) fn power_cut(&self) {
        let mut inner = self.0.borrow_mut();
        let Inner { files, random, .. } = &mut *inner;
        let keep = random.below(4);
        files.retain(|_, file| {
            let kept = file.is_durable || random.one_in(2);
            file.is_durable = kept;
            kept
        });
        for file in files.values_mut() {
            file.lose(random, keep);
        }
        inner.off = false;
        inner.trouble = Trouble::Never;
    }

    /// Flips a bit in one of the blocks that were synced.
    pub(crate) fn damage(&self) {
        let mut inner = self.0.borrow_mut();
        let Inner { files, random, .. } = &mut *inner;
        let places: Vec<(u32, usize)> =
            files.iter().flat_map(|(slot, file)| file.synced.iter().map(|block| (*slot, *block))).collect();
        if places.is_empty() {
            return;
        }
        let (slot, block) = places[random.below(places.len() as u64) as usize];
        let at = block * BLOCK_BYTES + random.below(BLOCK_BYTES as u64) as usize;
        if let Some(file) = files.get_mut(&slot) {
            file.media[at] ^= 1 << random.below(8);
            file.cache[at] = file.media[at];
        }
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
    }

    fn persist(&mut self, sector: usize) {
        let (from, to) = (sector * SECTOR, ((sector + 1) * SECTOR).min(self.cache.len()));
        if self.media.len() < to {
            self.media.resize(to, 0);
        }
        self.media[from..to].copy_from_slice(&self.cache[from..to]);
    }

    fn sync(&mut self) {
        for sector in std::mem::take(&mut self.dirty) {
            self.persist(sector);
        }
        self.synced.append(&mut self.unsynced);
    }

    fn lose(&mut self, random: &mut Random, keep: u64) {
        for sector in std::mem::take(&mut self.dirty) {
            let kept = match keep {
                0 => false,
                1 => true,
                _ => random.one_in(2),
            };
            if kept {
                self.persist(sector);
            } else if random.one_in(16) {
                self.cache[sector * SECTOR..(sector + 1) * SECTOR].fill(0xA5);
                self.persist(sector);
            }
        }
        self.unsynced.clear();
        self.cache = self.media.clone();
    }
}

impl Inner {
    /// Counts down; true when the power goes with this call.
    fn call(&mut self) -> io::Result<bool> {
        if self.off {
            return Err(io::Error::other("the power is off"));
        }
        if let Trouble::Cut(left) = &mut self.trouble {
            if *left == 0 {
                self.off = true;
                return Ok(true);
            }
            *left -= 1;
        }
        Ok(false)
    }

    fn file(&mut self, slot: u32) -> io::Result<&mut File> {
        self.files.get_mut(&slot).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn seed(&self) -> u32 {
        crc32c::crc32c_append(crc32c::crc32c(&self.identity.secret.to_le_bytes()), &self.identity.id)
    }

    /// What the mutant makes of a write.
    fn mutate(&mut self, at: usize, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        let is_commit = bytes.starts_with(b"LVC1");
        match self.mutant {
            Mutant::NoLife if is_commit => {
                bytes[12..16].copy_from_slice(&1_u32.to_le_bytes());
                self.seal_commit(&mut bytes);
            }
            Mutant::NoLife if at == 0 => {
                let length = u32::from_le_bytes(bytes[12..16].try_into().unwrap()) as usize;
                bytes[20..24].copy_from_slice(&1_u32.to_le_bytes());
                let sum = crc32c::crc32c(&bytes[12..length]);
                bytes[8..12].copy_from_slice(&sum.to_le_bytes());
            }
            Mutant::SettlementDropped if is_commit => self.drop_settlements(&mut bytes),
            _ => {}
        }
        bytes
    }

    fn seal_commit(&self, bytes: &mut [u8]) {
        let length = u32::from_le_bytes(bytes[8..12].try_into().unwrap()) as usize;
        let sum = crc32c::crc32c_append(self.seed(), &bytes[8..length]);
        bytes[4..8].copy_from_slice(&sum.to_le_bytes());
    }

    /// Takes out of a commit all settlements that say nothing new.
    fn drop_settlements(&mut self, bytes: &mut Vec<u8>) {
        let (padded, mut kept) = (bytes.len(), bytes[..48].to_vec());
        let mut rest = &bytes[48..];
        while let Ok((record, length)) = Record::parse(rest) {
            let mut is_new = true;
            if let Record::Settled { queue, ranges } = &record {
                let known = self.settled.entry(*queue).or_default();
                is_new = ranges
                    .iter()
                    .flat_map(|range| range.start..range.end)
                    .filter(|at| known.insert(*at))
                    .count()
                    > 0;
            }
            if is_new {
                kept.extend_from_slice(&rest[..length]);
            }
            rest = &rest[length..];
        }
        let length = kept.len() as u32;
        kept[8..12].copy_from_slice(&length.to_le_bytes());
        kept.resize(padded, 0);
        *bytes = kept;
        self.seal_commit(bytes);
    }
}

impl Disk for SimDisk {
    fn lock(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn slots(&mut self) -> io::Result<Vec<u32>> {
        let mut inner = self.0.borrow_mut();
        inner.call()?;
        Ok(inner.files.keys().copied().collect())
    }

    fn create(&mut self, slot: u32) -> io::Result<()> {
        let mut inner = self.0.borrow_mut();
        inner.call()?;
        inner.files.entry(slot).or_default();
        Ok(())
    }

    fn read(&mut self, slot: u32, at: u64, bytes: &mut [u8]) -> io::Result<usize> {
        let mut inner = self.0.borrow_mut();
        if inner.off {
            return Err(io::Error::other("the power is off"));
        }
        let cache = &inner.file(slot)?.cache;
        let from = (at as usize).min(cache.len());
        let count = bytes.len().min(cache.len() - from);
        bytes[..count].copy_from_slice(&cache[from..from + count]);
        inner.counts.reads += 1;
        inner.counts.read_bytes += count as u64;
        Ok(count)
    }

    fn write(&mut self, slot: u32, at: u64, bytes: &[u8]) -> io::Result<()> {
        let mut inner = self.0.borrow_mut();
        let cut = inner.call()?;
        inner.counts.writes += 1;
        inner.counts.bytes += bytes.len() as u64;
        if std::mem::take(&mut inner.first_write) && inner.mutant == Mutant::LastCommitNotRewritten && at > 0
        {
            return Ok(());
        }
        let at = at as usize;
        let mut bytes = inner.mutate(at, bytes);
        if cut {
            let length = inner.random.below(bytes.len() as u64 + 1) as usize;
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
        for block in broken {
            inner.violations.push(format!("block {block} of slot {slot} was synced and is written again"));
        }
        if cut { Err(io::Error::other("the power went")) } else { Ok(()) }
    }

    fn zero(&mut self, slot: u32, at: u64, bytes: u32) -> io::Result<()> {
        let mut inner = self.0.borrow_mut();
        let cut = inner.call()?;
        if let Trouble::Full(left) = &mut inner.trouble {
            if *left == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            *left -= 1;
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
        if let Trouble::FailedSync(left) = &mut inner.trouble {
            if *left == 0 {
                inner.trouble = Trouble::Never;
                let file = inner.file(slot)?;
                file.dirty.clear();
                file.unsynced.clear();
                return Err(io::Error::other("the sync failed"));
            }
            *left -= 1;
        }
        let left_out = inner.mutant == Mutant::SyncLeftOut;
        let file = inner.file(slot)?;
        if !left_out {
            file.sync();
        }
        Ok(())
    }

    fn sync_directory(&mut self) -> io::Result<()> {
        let mut inner = self.0.borrow_mut();
        if inner.call()? {
            return Err(io::Error::other("the power went"));
        }
        inner.files.values_mut().for_each(|file| file.is_durable = true);
        Ok(())
    }
}
