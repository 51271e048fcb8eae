//! Looking at a store without touching it: what it holds, and whether that is as it was written.
//!
//! A start wants to serve soon: it trusts footers and gives up what it cannot read. This reads everything,
//! commit by commit, and tells what is damaged, what that cost, and what of it can still be read. It takes
//! no lock and writes nothing, so it works beside a broker that writes, on a card that can only be read,
//! and for a user who may only read.
//!
//! | file | what it is for |
//! |------|----------------|
//! | `event` | what a walk is given and tells |
//! | `found` | what is found |
//! | `layout` | which files are the log |
//! | `scan` | all of it read, counted and judged |
//! | `walk` | one segment taken apart |
//! | `salvage` | what can be read where a commit is damaged |
//! | `repair` | what is damaged written over, when that is asked for |
//!
//! Always true: what is told as whole is whole; what is damaged is told, as far as a checksum can show it.
//! Beside a broker that writes, a scan is what the files were one after the other, not at one instant; what
//! is wrong in one look and not in the next was being written.

mod event;
mod found;
mod layout;
mod repair;
mod salvage;
mod scan;
mod walk;

use std::collections::BTreeMap;

use crate::disk::Disk;
use crate::names::{Footers, Names};
use crate::place::Place;
use crate::read_around::ReadAround;
use crate::record::Record;
use event::Event;
use layout::read_around;

use crate::zeroes::ResizeZeroed;

pub use event::{Tail, Trust};
pub use found::{Damage, DamageKind, FoundRecord, FsckError, NO_SLOT, Scan, SegmentLook, Spare, Volume};

impl Scan {
    /// Reads the whole store.
    ///
    /// # Errors
    /// It is none, or is not to be read by this version or this user.
    pub fn of<D: Disk>(disk: &mut D) -> Result<Self, FsckError> {
        scan::scan(disk)
    }

    /// Writes over what is damaged, keeping what of it can be read; the one thing here that writes. The look
    /// must be of this store, and the disk must have its lock. Gives a scan of what is left; what is in its
    /// damage could not be dropped.
    ///
    /// # Errors
    /// The disk refused something; another try may go on where this one ended.
    pub fn drop_set_aside<D: Disk>(&self, disk: &mut D) -> Result<Self, FsckError> {
        repair::drop_set_aside(self, disk)
    }

    /// Nothing is wrong with it.
    pub const fn is_good(&self) -> bool {
        self.damage.is_empty() && self.tail.is_none()
    }

    /// Walks over every record that can be read, oldest segment first, dead ones too. Returns the segments
    /// that were used again since the look was taken.
    ///
    /// # Errors
    /// The first error of `each`, which is not called again then.
    pub fn for_each<D: Disk, E>(
        &self,
        disk: &mut D,
        mut each: impl FnMut(&FoundRecord<'_>) -> Result<(), E>,
    ) -> Result<Vec<u64>, E> {
        let (mut bytes, mut recycled) = (vec![0; self.segment_bytes as usize], Vec::new());
        for (at, segment) in self.segments.iter().chain(&self.tail_only).enumerate() {
            let Some(length) = self.read_segment(disk, segment, &mut bytes) else {
                recycled.push(segment.sequence);
                continue;
            };
            let is_newest = at + 1 >= self.segments.len();
            let walk = segment.walk(&bytes[..length], self.segment_bytes, self.seed, is_newest);
            let (mut chain, mut outcome) = (segment.before, Ok(()));
            walk.run(&mut chain, &mut |event| {
                let Event::Record { place, record, commit, trust } = event else { return };
                if outcome.is_ok() {
                    let (commit, life) = commit.map_or((0, 0), |header| (header.number, header.life));
                    outcome = each(&FoundRecord { place, commit, life, trust, record: *record });
                }
            });
            outcome?;
        }
        Ok(recycled)
    }

    /// Reads a segment of the look; `None` when its file is something else by now.
    fn read_segment<D: Disk>(&self, disk: &mut D, segment: &SegmentLook, bytes: &mut [u8]) -> Option<usize> {
        let (length, _) = read_around(disk, segment.slot, bytes).ok()?;
        segment.is_still(disk, &bytes[..length]).then_some(length)
    }

    /// Queues with messages that nothing defines, as `is_defined` knows, and the keys under which footers say
    /// that they were defined, as far as they do.
    pub fn orphans<D: Disk>(
        &self,
        disk: &mut D,
        is_defined: impl Fn(u64) -> bool,
    ) -> BTreeMap<u64, Option<Box<[u8]>>> {
        let mut queues = self.index.queues_with_messages();
        queues.retain(|queue| !is_defined(*queue));
        let mut names = Names::new();
        if !queues.is_empty()
            && let Some(seed) = self.seed
        {
            let footers = Footers { index: &self.index, segment_bytes: self.segment_bytes, seed };
            names = footers.read_names(&mut ReadAround::at_any_price(disk), &queues).unwrap_or_default();
        }
        let mut orphans = BTreeMap::new();
        orphans.extend(queues.into_iter().map(|queue| (queue, names.remove(&queue))));
        orphans
    }

    /// Reads one record again, checked; `None` when it cannot be had any more.
    pub fn read_record<'b, D: Disk>(
        &self,
        disk: &mut D,
        place: Place,
        bytes: &'b mut Vec<u8>,
    ) -> Option<Record<'b>> {
        let segment = self.segments.iter().find(|segment| segment.sequence == place.segment)?;
        bytes.clear();
        bytes.resize_zeroed(place.bytes as usize);
        let count = disk.read(segment.slot, place.at.into(), bytes).ok()?;
        Record::parse(&bytes[..count]).ok().map(|(record, _)| record)
    }
}
