//! Dropping what is set aside: damaged parts are written over by what of them can still be read.
//!
//! The one place where a synced block is written again: nobody else has the store meanwhile, and what is
//! written over is what nobody can read. Where commits are missing, one takes their place: it has the records
//! of theirs that are whole, settles the messages that are lost, so that their offsets are never used again,
//! says how many commits it stands for, and bears a mark where it has room for one: what the lost ones copied of older
//! segments is not there, so a start keeps those as it did before the repair (`listing`). Then the footer, if there was
//! one, and the header, which bears the same mark, are made again.
//!
//! Always true: whole commits are not touched; a segment is as it was or as it is to be, wherever the power
//! goes (`mending`), so a start finds no less than before, and is in doubt about users if it was, for that is
//! noted before anything is written over; where it has left no damage, it does nothing when it is done again. What is in
//! a commit of a newer version stays, and so does the commit at the end, which the next start cuts.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use super::event::{Event, FoundFooter, Gap, Trust, Walk};
use super::found::{Damage, DamageKind, FsckError, Scan, SegmentLook};
use super::layout::{Layout, Listed, ListedHeader, read_around};
use super::scan;
use crate::chain::Chain;
use crate::commit::{self, BLOCK_BYTES, COMMIT_HEADER_BYTES, Commit, CommitHeader, Owner};
use crate::disk::Disk;
use crate::footer::{Footer, Trailer};
use crate::format::{Format, STANDS_FOR_LOST};
use crate::identity::Identity;
use crate::journal::definition::is_access;
use crate::log::Log;
use crate::mem::{sort, sort_by_key};
use crate::mending;
use crate::names::NAME_OVERHEAD_BYTES;
use crate::newest_note;
use crate::ranges::RangeSet;
use crate::record::{Range, Ranges, Record, Target};
use crate::record_walk::for_each_record;
use crate::recover::OpenError;
use crate::segment::{SegmentHeader, SegmentRef};
use crate::varint;

/// A commit that takes the place of those that are missing.
struct Patch {
    from: u32,
    /// Where the whole commits go on.
    to: u32,
    /// The last good commit before the damage.
    after: CommitHeader,
    /// The number of the last one it stands for.
    number: Option<u64>,
    records: Vec<u8>,
    count: u32,
    missed: Vec<Target>,
}

/// What tells messages in their queues, chunks and definitions from others of their kind.
fn names_of(record: &Record<'_>) -> Vec<(u64, u64, Vec<u8>)> {
    match record {
        Record::Message(message) => {
            message.targets.iter().map(|target| (target.queue, target.offset, Vec::new())).collect()
        }
        Record::Chunk { body, index, .. } => vec![(*body, (*index).into(), b"chunk".to_vec())],
        Record::Defined { version, key, .. } => vec![(*version, 0, [b"key ", *key].concat())],
        _ => Vec::new(),
    }
}

/// The records that can be read of a damaged segment.
struct Remains {
    /// The records of whole commits, and where they lie.
    whole: Vec<(u32, Vec<u8>)>,
    patches: Vec<Patch>,
    /// The last whole commit; of an older segment if there is none, without a number if nothing is known.
    last: CommitHeader,
    /// The number of the last commit before the segment, as far as that is known.
    before: u64,
    trailer: Option<(Trailer, u32)>,
    /// The names in its footer.
    names: Vec<Vec<u8>>,
    tail: u32,
    /// Records of a commit at the end that is not whole.
    end: (Vec<u8>, u32),
}

impl Remains {
    /// Where the chain of commits stands behind it.
    const fn chain(&self, segment: u64) -> Chain {
        let CommitHeader { format, life, number, time_ms, .. } = self.last;
        Chain { format, segment, life, number, time_ms, covers: 0 }
    }
}

struct Repair<'l> {
    scan: &'l Scan,
    identity: Identity,
    /// The segments that stay, rising.
    log: Vec<SegmentRef>,
}

/// Writes over what is damaged. The store must be locked. Tells what the store is like afterwards.
pub(super) fn drop_set_aside<D: Disk>(scan: &Scan, disk: &mut D) -> Result<Scan, FsckError> {
    if mending::finish(disk).map_err(FsckError::Unreadable)? {
        return drop_set_aside(&scan::scan(disk)?, disk);
    }
    let layout = Layout::of(disk)?;
    if let Some(identity) = layout.identity.filter(|_| !scan.damage.is_empty()) {
        Log::note_doubt_found(disk, identity).map_err(|error| match error {
            OpenError::Unreadable(error) => FsckError::Unreadable(error),
            error => FsckError::Unreadable(io::Error::other(error.to_string())),
        })?;
        let stays = layout.log.iter().filter(|listed| is_there(listed) && !scan.misses(listed.segment));
        let mut repair = Repair { scan, identity, log: stays.map(|listed| listed.segment).collect() };
        let newer = repair.newer(&layout).map(|listed| listed.segment);
        repair.log.extend(newer);
        repair.run(disk, &layout).map_err(FsckError::Unreadable)?;
    }
    scan::scan(disk)
}

const fn is_there(listed: &Listed) -> bool {
    matches!(listed.header, ListedHeader::Good { .. } | ListedHeader::Damaged)
}

/// Puts bytes into a segment, where they fit.
fn put(image: &mut [u8], at: u32, bytes: &[u8]) {
    image[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
}

impl Scan {
    /// Whether the file of a segment is gone or another one's.
    fn misses(&self, segment: SegmentRef) -> bool {
        self.damage.iter().any(|damage| damage.segment == segment.sequence && damage.kind.is_of_no_file())
    }

    fn damage_of(&self, segment: u64) -> impl Iterator<Item = &Damage> {
        self.damage.iter().filter(move |damage| damage.segment == segment)
    }
}

impl Repair<'_> {
    fn run<D: Disk>(&self, disk: &mut D, layout: &Layout) -> io::Result<()> {
        let (mut bytes, mut chain) = (vec![0; self.scan.segment_bytes as usize], Chain::default());
        let listed: Vec<Listed> = layout.log.iter().chain(&self.newer(layout)).copied().collect();
        for (at, this) in listed.iter().enumerate() {
            if !self.log.contains(&this.segment) {
                continue;
            }
            let next = listed.get(at + 1).filter(|next| next.segment.sequence == this.segment.sequence + 1);
            let next = next.and_then(|next| self.first_commit(disk, next, &mut bytes));
            self.mend(disk, this, next.as_ref(), &mut chain, &mut bytes)?;
        }
        for damage in
            self.scan.damage.iter().filter(|damage| !listed.iter().any(|l| l.segment.slot == damage.slot))
        {
            if damage.kind.is_of_no_file() {
                continue;
            }
            // The commit at the end may lie in it, and is not ours to drop.
            let has_tail = self.scan.tail.is_some_and(|tail| tail.slot == damage.slot);
            let (from, to) = if has_tail { (damage.from, damage.to) } else { (0, self.scan.segment_bytes) };
            disk.zero(damage.slot, from.into(), to - from)?;
            disk.sync(damage.slot)?;
        }
        // What was noted of files that are gone is dropped with them.
        if let Some(newest) = self.log.last() {
            newest_note::renew(disk, *newest)?;
        }
        disk.sync_directory()
    }

    /// The file of a segment whose first commits are all damaged, though they were durable.
    fn newer(&self, layout: &Layout) -> Option<Listed> {
        let SegmentLook { sequence, slot, first, opened_by, .. } = self.scan.tail_only?;
        let is_damaged = |damage: &Damage| damage.kind == DamageKind::Commits;
        let life = opened_by.filter(|_| self.scan.damage_of(sequence).any(is_damaged))?;
        let segment = SegmentRef { sequence, slot };
        (!layout.is_in_log(slot)).then_some(Listed { segment, first, header: ListedHeader::Good { life } })
    }

    /// A segment whose own parts are damaged, or behind whose end commits are missing, or whose header lists
    /// what is not there.
    fn is_to_mend(&self, listed: &Listed) -> bool {
        let sequence = listed.segment.sequence;
        let is_cut = |damage: &Damage| damage.kind == DamageKind::Commits && damage.from == damage.to;
        self.scan.damage_of(sequence).next().is_some()
            || self.scan.damage_of(sequence + 1).any(is_cut)
            || self.lists_too_much(listed)
    }

    fn lists_too_much(&self, listed: &Listed) -> bool {
        let is_newest = self.log.last() == Some(&listed.segment);
        is_newest && self.scan.damage.iter().any(|damage| damage.kind.is_of_no_file())
    }

    /// The header of the first commit of a segment, if that is whole. If not, what is missing before the
    /// first that is counts as missing there.
    fn first_commit<D: Disk>(&self, disk: &mut D, listed: &Listed, bytes: &mut [u8]) -> Option<CommitHeader> {
        let (length, _) = read_around(disk, listed.segment.slot, bytes).ok()?;
        let walk = SegmentLook::begin(listed, Chain::default()).walk(
            &bytes[..length],
            self.scan.segment_bytes,
            Some(self.identity.seed()),
            false,
        );
        let mut first = None;
        walk.run(&mut Chain::default(), &mut |event| {
            if let Event::Commit(at, commit) = event {
                first.get_or_insert((at, commit.header));
            }
        });
        first.filter(|(at, _)| *at == listed.first).map(|(_, header)| header)
    }

    fn mend<D: Disk>(
        &self,
        disk: &mut D,
        listed: &Listed,
        next: Option<&CommitHeader>,
        chain: &mut Chain,
        bytes: &mut [u8],
    ) -> io::Result<()> {
        let SegmentRef { sequence, slot } = listed.segment;
        let mut known = self.scan.segments.iter().chain(&self.scan.tail_only);
        let Some(segment) = known.find(|known| known.sequence == sequence) else {
            return Ok(());
        };
        let is_newest = self.log.last() == Some(&listed.segment);
        // Blocks that the disk refuses are written again with the rest.
        let (length, _) = read_around(disk, slot, bytes)?;
        let walk =
            segment.walk(&bytes[..length], self.scan.segment_bytes, Some(self.identity.seed()), is_newest);
        let mut remains = self.remains(&walk, *chain);
        let is_incomplete = walk.footer().is_some_and(|footer| self.leaves_out(&footer, sequence, &remains));
        if !is_incomplete && !self.is_to_mend(listed) {
            *chain = remains.chain(sequence);
            return Ok(());
        }
        self.find_lost_end(&mut remains, sequence, next, is_newest);
        let mut image = bytes.to_vec();
        image[length..].fill(0);
        let is_footer_damaged = self.scan.damage_of(sequence).any(|damage| damage.kind == DamageKind::Footer);
        let is_patched = self.put_patches(&mut image, sequence, &mut remains);
        let is_new = is_patched || is_footer_damaged || is_incomplete || length < bytes.len();
        if is_new && (!is_newest || remains.trailer.is_some()) {
            self.put_footer(&mut image, sequence, &remains);
        }
        if listed.header == ListedHeader::Damaged || self.lists_too_much(listed) {
            self.put_header(&mut image, listed, &remains);
        }
        *chain = remains.chain(sequence);
        mending::replace(disk, slot, &image)
    }

    /// What of a segment can be read.
    fn remains(&self, walk: &Walk<'_>, before: Chain) -> Remains {
        let Chain { format, life, number, time_ms, segment, .. } = before;
        let start =
            CommitHeader { format, life, number, segment, time_ms, records: 0, covers: 0, has_group: true };
        let (whole, patches) = (Vec::new(), Vec::new());
        let mut remains = Remains {
            whole,
            patches,
            last: start,
            before: number,
            trailer: None,
            names: Vec::new(),
            tail: 0,
            end: (Vec::new(), 0),
        };
        let (mut records, mut count, mut missed) = (Vec::new(), 0, Vec::new());
        let mut chain = before;
        let end = walk.run(&mut chain, &mut |event| match event {
            Event::Commit(at, Commit { header, records }) => {
                if let Some(patch) = remains.patches.last_mut().filter(|patch| patch.number.is_none()) {
                    patch.number = Some(header.number - 1);
                }
                remains.last = *header;
                remains.whole.push((at + COMMIT_HEADER_BYTES as u32, records.to_vec()));
            }
            // A segment that is still there is worth more than word that it may go.
            Event::Record {
                record: Record::Left { segment }, trust: Trust::Salvaged | Trust::Tail, ..
            } if self.log.iter().any(|known| known.sequence == *segment) => {}
            Event::Record { record, trust: Trust::Salvaged | Trust::Tail, .. } => {
                record.encode(&mut records);
                count += 1;
            }
            Event::Lost(targets) => missed.extend_from_slice(targets),
            Event::Gap(Gap { from, to, covered, .. }) => {
                let after = remains.last;
                let records = core::mem::take(&mut records);
                let (count, missed) = (core::mem::take(&mut count), core::mem::take(&mut missed));
                if !covered {
                    remains.patches.push(Patch { from, to, after, number: None, records, count, missed });
                }
            }
            Event::Record { .. } | Event::Strange(_) | Event::Tail(_) => {}
        });
        (remains.tail, remains.end) = (end.tail, (records, count));
        let footer = walk.footer();
        remains.names = footer.as_ref().map_or_else(Vec::new, FoundFooter::names);
        remains.trailer = footer.map(|footer| (footer.trailer, footer.from));
        remains
    }

    /// Whether a footer leaves out something that is live. The last commit that a start finds is not in its
    /// segment's footer, for it is written again; but what was written again may be what is lost.
    fn leaves_out(&self, footer: &FoundFooter<'_>, sequence: u64, remains: &Remains) -> bool {
        let mut told = BTreeSet::new();
        // Parts that are damaged tell nothing, and are written again anyway.
        let _ = footer.messages(|entry| {
            told.insert((entry.queue, entry.offset, Vec::new()));
        });
        let _ = footer.for_each_fact(sequence, |fact, _| told.extend(names_of(fact)));
        let mut leaves_out = false;
        for (at, records) in &remains.whole {
            for_each_record(records, *at, |record, _| {
                let is_told = names_of(record).iter().all(|name| told.contains(name));
                leaves_out |= !is_told && self.scan.index.is_live_in(record, sequence);
            });
        }
        leaves_out
    }

    /// Commits may be missing at the end, where nothing is left of them but that others know.
    fn find_lost_end(
        &self,
        remains: &mut Remains,
        sequence: u64,
        next: Option<&CommitHeader>,
        is_newest: bool,
    ) {
        let after = remains.last;
        let is_end = |damage: &&Damage| damage.kind == DamageKind::Commits && damage.from == remains.tail;
        let lost = self.scan.damage_of(sequence).find(is_end).and_then(|damage| damage.commits);
        let of_trailer = remains.trailer.map(|(trailer, _)| trailer.number);
        let known = of_trailer.or(next.map(|next| next.number - 1));
        // How many there were matters at the end only. Elsewhere one is enough; the rest is left to others.
        let is_end =
            is_newest || self.log.iter().all(|other| other.sequence <= sequence + 1) && next.is_none();
        let most = if is_end { u64::MAX } else { u64::from(known.is_none()) };
        let number = known.unwrap_or(0).max(after.number + lost.unwrap_or(0).min(most));
        let is_covered =
            next.is_some_and(|next| u64::from(next.covers) >= next.number.saturating_sub(after.number + 1));
        let to = remains.trailer.map_or(self.scan.segment_bytes, |(_, from)| from);
        let last = remains.patches.last_mut().filter(|patch| patch.number.is_none());
        match last {
            _ if is_covered => remains.patches.retain(|patch| patch.number.is_some()),
            Some(patch) => (patch.number, patch.to) = (Some(number.max(after.number + 1)), to),
            // A segment of the log has a commit, or its header proves nothing.
            None if number > after.number || (remains.whole.is_empty() && !is_newest) => {
                let (from, number) = (remains.tail, Some(number.max(after.number + 1)));
                let (records, count) = core::mem::take(&mut remains.end);
                remains.patches.push(Patch { from, to, after, number, records, count, missed: Vec::new() });
            }
            None => {}
        }
    }

    /// Puts commits where some are missing, as far as there is room; tells whether there are any.
    fn put_patches(&self, image: &mut [u8], sequence: u64, remains: &mut Remains) -> bool {
        let mut is_patched = false;
        for patch in core::mem::take(&mut remains.patches) {
            let Some((header, bytes)) = self.commit(&patch, sequence) else { continue };
            is_patched = true;
            let end = patch.from + bytes.len() as u32;
            put(image, patch.from, &bytes);
            image[end as usize..patch.to as usize].fill(0);
            if patch.from >= remains.tail {
                (remains.tail, remains.last) = (end, header);
            }
            let length = commit::Claim::read(&bytes).map_or(COMMIT_HEADER_BYTES, |claim| claim.length);
            let first = patch.from + COMMIT_HEADER_BYTES as u32;
            remains.whole.push((first, bytes[COMMIT_HEADER_BYTES..length].to_vec()));
        }
        sort_by_key(&mut remains.whole, |(at, _)| *at);
        is_patched
    }

    /// The commit for a patch, if it fits.
    fn commit(&self, patch: &Patch, sequence: u64) -> Option<(CommitHeader, Vec<u8>)> {
        let number = patch.number?;
        let settled = self.settled(&patch.missed);
        let room = patch.to.saturating_sub(patch.from) as usize;
        let owner = Owner { identity: self.identity, segment_bytes: self.scan.segment_bytes };
        let covers = u32::try_from(number.checked_sub(patch.after.number + 1)?).unwrap_or(u32::MAX);
        let (mut mark, mut number_found) = (Vec::new(), Vec::new());
        varint::put(&mut number_found, self.scan.last.1);
        let CommitHeader { format, life, time_ms, .. } = patch.after;
        // A program that knows version 1 alone has no records that it passes over.
        if format >= Format::Two {
            Record::Optional { kind: STANDS_FOR_LOST, payload: &number_found }.encode(&mut mark);
        }
        let make = |mark: &[u8], settled: &[Vec<u8>]| {
            let mut bytes = Vec::new();
            commit::begin(&mut bytes);
            bytes.extend_from_slice(mark);
            bytes.extend_from_slice(&patch.records);
            settled.iter().for_each(|record| bytes.extend_from_slice(record));
            let records = u32::from(!mark.is_empty()) + patch.count + settled.len() as u32;
            let life = life.max(1);
            let header = CommitHeader {
                format,
                life,
                number,
                segment: sequence,
                time_ms,
                records,
                covers,
                has_group: true,
            };
            commit::finish(&mut bytes, &header, &owner);
            (bytes.len() <= room).then_some((header, bytes))
        };
        // What can be read of the lost ones may fill their blocks: it is worth more than the mark.
        let marked = make(&mark, &settled).or_else(|| make(&mark, &[]));
        marked.or_else(|| make(&[], &settled)).or_else(|| make(&[], &[]))
    }

    /// Settlements of the messages that are lost.
    fn settled(&self, missed: &[Target]) -> Vec<Vec<u8>> {
        let mut sets: BTreeMap<u64, RangeSet> = BTreeMap::new();
        let mut missed: Vec<(u64, u64)> = missed.iter().map(|target| (target.queue, target.offset)).collect();
        sort(&mut missed);
        missed.dedup();
        for (queue, offset) in missed {
            let known = self.scan.index.queues().get(&queue);
            let is_known = known.is_some_and(|known| {
                known.gone || known.settled.contains(offset) || known.segment_of(offset).is_some()
            });
            if !is_known {
                sets.entry(queue).or_default().insert(Range { start: offset, end: offset + 1 }, |_| {});
            }
        }
        let encode = |(queue, set): (&u64, &RangeSet)| {
            let mut bytes = Vec::new();
            Record::Settled { queue: *queue, ranges: Ranges::List(set.ranges()) }.encode(&mut bytes);
            bytes
        };
        sets.iter().map(encode).collect()
    }

    fn put_footer(&self, image: &mut [u8], sequence: u64, remains: &Remains) {
        let last = remains.last;
        let mut footer = Footer::default();
        for (at, records) in &remains.whole {
            footer.note_records(records, *at);
        }
        let CommitHeader { format, life, number, time_ms, .. } = last;
        let room = (self.scan.segment_bytes - remains.tail) as usize;
        for bytes in remains.names.iter().filter(|_| format >= Format::Two) {
            if bytes.len() + NAME_OVERHEAD_BYTES <= footer.room_for_names(room)
                && let Ok((record, _)) = Record::parse(bytes)
            {
                footer.note_name(&record);
            }
        }
        let trailer = Trailer { format, life, sequence, number, time_ms };
        let trailer = match remains.trailer {
            Some((old, _)) => Trailer { life: old.life, time_ms: old.time_ms, ..trailer },
            None => trailer,
        };
        let (mut bytes, mut parts) = (Vec::new(), Vec::new());
        footer.finish(&trailer, self.identity.seed(), &mut bytes, &mut parts);
        let end = self.scan.segment_bytes;
        if remains.tail as usize + bytes.len() > end as usize {
            // Without one the segment is read commit by commit.
            image[end as usize - BLOCK_BYTES..end as usize].fill(0);
        } else {
            put(image, end - bytes.len() as u32, &bytes);
        }
    }

    fn put_header(&self, image: &mut [u8], listed: &Listed, remains: &Remains) {
        let sequence = listed.segment.sequence;
        let last = remains.last;
        let life = if let ListedHeader::Good { life } = listed.header { life } else { last.life };
        let has_access = self.scan.index.definitions().keys().any(|key| is_access(key));
        let header = SegmentHeader {
            format: last.format,
            has_access,
            identity: self.identity,
            segment_bytes: self.scan.segment_bytes,
            life,
            sequence,
            time_ms: last.time_ms,
            commits: remains.before,
            written: 0,
            // What it lists and what is said to have left behind it was kept for a gap.
            repaired: self.scan.last.1,
            live: self.log.iter().filter(|other| other.sequence < sequence).copied().collect(),
        };
        let mut bytes = Vec::new();
        header.encode(&mut bytes);
        if bytes.len() <= listed.first as usize {
            put(image, 0, &bytes);
        }
    }
}
