//! Damages synced blocks of the simulated disk, as cheap flash cards do.
//!
//! ```text
//! one block    a bit flipped, zeros, ones, another block's bytes, an older version of the block,
//!              reads refused until the block is written again, reads refused permanently
//! several      the neighbouring blocks of a write, the rest of a file from one block on, a file that cannot
//!              be opened, the newest segment header together with its copy
//! ```
//!
//! # Invariants
//! - Each function that damages blocks returns which blocks it damaged.
//! - Data that is only in the page cache stays unchanged.

use std::collections::BTreeSet;

use leveret_storage::{ACCESS_SLOTS, BLOCK_BYTES, NEWEST_SLOT, is_beside_the_log};

use super::disk::{File, Inner, SECTOR, SimDisk};
use crate::random::Random;

/// Maximum number of blocks that a card loses on one side of the block that it was writing.
const NEIGHBOURS_MAX: u64 = 6;

/// The blocks and files that were damaged.
#[derive(Clone, Debug, Default)]
pub struct Damaged {
    blocks: BTreeSet<(u32, usize)>,
    files: BTreeSet<u32>,
    /// A file of users and permissions has an older content, which its checksums cannot reveal.
    pub has_old_access: bool,
}

impl Damaged {
    /// Returns a damage of `blocks` alone.
    pub fn of(blocks: BTreeSet<(u32, usize)>) -> Self {
        Self { blocks, ..Self::default() }
    }

    /// Returns whether nothing is damaged.
    pub fn is_nothing(&self) -> bool {
        self.files.is_empty() && self.blocks.is_empty()
    }

    /// Returns whether a whole file is lost.
    pub fn has_files(&self) -> bool {
        !self.files.is_empty()
    }

    /// Returns the slots of all files with damage, some of them several times.
    pub fn slots(&self) -> impl Iterator<Item = u32> {
        self.blocks.iter().map(|(slot, _)| *slot).chain(self.files.iter().copied())
    }

    /// Returns whether one of `blocks` in the file `slot` is damaged.
    pub fn touches(&self, slot: u32, blocks: core::ops::RangeInclusive<usize>) -> bool {
        self.files.contains(&slot)
            || self.blocks.range((slot, *blocks.start())..=(slot, *blocks.end())).next().is_some()
    }
}

impl SimDisk {
    /// Returns an independent disk with the same bytes, without planned faults.
    pub fn copy(&self) -> Self {
        let copy = Self(std::rc::Rc::new(std::cell::RefCell::new(self.0.borrow().clone())), Vec::new());
        copy.revive();
        copy
    }

    /// Reverts some sectors after a power cut: those whose syncs the device acknowledged without doing them.
    pub fn lose_owed(&self) -> Damaged {
        let mut inner = self.0.borrow_mut();
        let Inner { files, seed, starts, cuts, .. } = &mut *inner;
        let keep = Random::of(*seed, "owed", &[*starts, *cuts]).below(3);
        let mut damaged = Damaged::default();
        for (slot, file) in files {
            let mut random = Random::of(*seed, "owed of a file", &[*starts, *cuts, (*slot).into()]);
            for (sector, old) in core::mem::take(&mut file.owed) {
                if keep == 0 || !random.once_in(keep) {
                    continue;
                }
                let from = sector * SECTOR;
                for side in [&mut file.media, &mut file.cache] {
                    let to = (from + SECTOR).min(side.len());
                    if let Some(place) = side.get_mut(from..to) {
                        place.copy_from_slice(&old[..to - from]);
                    }
                }
                file.synced.clear();
                damaged.blocks.insert((*slot, from / BLOCK_BYTES));
            }
        }
        damaged
    }

    /// Makes a random synced block permanently unreadable. Writes do not repair it.
    pub fn wear_out(&self) {
        let mut inner = self.0.borrow_mut();
        let mut random = inner.next_damage();
        let files = &mut inner.files;
        let places: Vec<(u32, usize)> =
            files.iter().flat_map(|(slot, file)| file.synced.iter().map(|block| (*slot, *block))).collect();
        if places.is_empty() {
            return;
        }
        let (slot, block) = random.one_of(&places);
        if let Some(file) = files.get_mut(&slot) {
            file.worn.insert(block);
        }
    }

    /// Returns the blocks that stay unreadable whatever is written there.
    ///
    /// Called before a start. The start may take such a block for a torn commit and overwrite it, so the
    /// blocks of these files no longer count as synced.
    pub fn worn(&self) -> Damaged {
        let mut inner = self.0.borrow_mut();
        inner.files.values_mut().filter(|file| !file.worn.is_empty()).for_each(|file| file.synced.clear());
        let worn = inner.files.iter().flat_map(|(slot, file)| file.worn.iter().map(|block| (*slot, *block)));
        Damaged::of(worn.collect())
    }

    /// Damages the blocks before the last written one, as a power cut during a write can.
    pub fn damage_neighbours(&self) -> Damaged {
        let mut inner = self.0.borrow_mut();
        let mut random = inner.next_damage();
        let Inner { files, written, .. } = &mut *inner;
        let Some((slot, at)) = written.last().copied() else { return Damaged::default() };
        let block = at / BLOCK_BYTES;
        let first = block.saturating_sub(1 + random.below(NEIGHBOURS_MAX) as usize);
        let byte = random.one_of(&[0, 0xFF, 0xA5]);
        let Some(file) = files.get_mut(&slot) else { return Damaged::default() };
        file.synced.clear();
        Damaged::of(file.wipe(first..block, byte).map(|block| (slot, block)).collect())
    }

    /// Wipes the header of the newest segment, and the copy of this header beside the log.
    pub fn damage_newest(&self) -> Damaged {
        let mut inner = self.0.borrow_mut();
        let newest = inner.written.last().map(|(slot, _)| *slot);
        let mut damaged = Damaged::default();
        for slot in newest.into_iter().chain([NEWEST_SLOT]) {
            let Some(file) = inner.files.get_mut(&slot) else { continue };
            file.synced.clear();
            damaged.blocks.extend(file.wipe(0..1, 0).map(|block| (slot, block)));
        }
        damaged
    }

    /// Damages something that was synced, in a random way.
    pub fn damage(&self) -> Damaged {
        let mut inner = self.0.borrow_mut();
        let inner = &mut *inner;
        let places: Vec<(u32, usize)> = inner
            .files
            .iter()
            .flat_map(|(slot, file)| file.synced.iter().map(|block| (*slot, *block)))
            .collect();
        let mut damaged = Damaged::default();
        if places.is_empty() {
            return damaged;
        }
        let random = &mut inner.next_damage();
        // A segment header is one block among many, but it describes the whole segment. So the header of the
        // newest segment is chosen more often.
        let last_written = inner.written.last().map(|(slot, _)| (*slot, 0));
        let newest = last_written.filter(|place| random.once_in(8) && places.contains(place));
        let (slot, block) = newest.unwrap_or_else(|| random.one_of(&places));
        let other = random.one_of(&places);
        let misplaced = inner.files[&other.0].block(other.1);
        let Some(file) = inner.files.get_mut(&slot) else { return damaged };
        let last = file.media.len() / BLOCK_BYTES;
        let is_zeroed = newest.is_some() && random.once_in(3);
        let blocks = match if is_zeroed { 3 } else { random.below(9) } {
            0 => {
                (block..last).for_each(|block| file.put(block, &[0xA5; BLOCK_BYTES]));
                block..last
            }
            // The files beside the log cannot be lost this way: a real disk falls back to their other name.
            1 if !is_beside_the_log(slot) => {
                file.is_lost = true;
                damaged.files.insert(slot);
                return damaged;
            }
            2 => {
                file.refused.insert(block);
                block..block + 1
            }
            3 => file.wipe(block..block + 1, 0),
            4 => file.wipe(block..block + 1, 0xFF),
            5 => {
                damaged.has_old_access = [slot, other.0].iter().all(|slot| ACCESS_SLOTS.contains(slot));
                file.put(block, &misplaced);
                block..block + 1
            }
            6 if file.stale.contains_key(&block) => {
                damaged.has_old_access = ACCESS_SLOTS.contains(&slot);
                let stale = file.stale[&block].clone();
                file.put(block, &stale);
                block..block + 1
            }
            7 => {
                let first = block.saturating_sub(random.below(NEIGHBOURS_MAX) as usize);
                let byte = random.one_of(&[0, 0xFF, 0xA5]);
                file.wipe(first..(block + random.below(NEIGHBOURS_MAX) as usize).min(last), byte)
            }
            _ => file.flip(block, random),
        };
        // The next start may overwrite a damaged commit, because it looks like a torn one.
        file.synced.clear();
        damaged.blocks.extend(blocks.map(|block| (slot, block)));
        damaged
    }
}

impl File {
    fn block(&self, block: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> =
            self.media.iter().skip(block * BLOCK_BYTES).take(BLOCK_BYTES).copied().collect();
        bytes.resize(BLOCK_BYTES, 0);
        bytes
    }

    /// Overwrites a block on the media and in the page cache, without marking it as written.
    fn put(&mut self, block: usize, bytes: &[u8]) {
        let from = block * BLOCK_BYTES;
        for side in [&mut self.media, &mut self.cache] {
            if let Some(place) = side.get_mut(from..from + BLOCK_BYTES) {
                place.copy_from_slice(bytes);
            }
        }
    }

    fn wipe(&mut self, blocks: core::ops::Range<usize>, byte: u8) -> core::ops::Range<usize> {
        blocks.clone().for_each(|block| self.put(block, &[byte; BLOCK_BYTES]));
        blocks
    }

    fn flip(&mut self, block: usize, random: &mut Random) -> core::ops::Range<usize> {
        let mut bytes = self.block(block);
        bytes[random.below(BLOCK_BYTES as u64) as usize] ^= 1 << random.below(8);
        self.put(block, &bytes);
        block..block + 1
    }
}
