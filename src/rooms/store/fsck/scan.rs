//! All of a store read, counted and judged.
//!
//! Always true: a scan goes over every byte of the log once, oldest segment first; a message counts as lost
//! only when it was live and no other copy of it can be read.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use super::event::Salvaged;
use super::event::{End, Event, Gap, Trust};
use super::found::{Damage, DamageKind, FsckError, NO_SLOT, Scan, SegmentLook, Spare, Volume};
use super::layout::{Layout, Listed, ListedHeader, read_around};
use super::salvage;
use crate::access_file;
use crate::chain::{Chain, CommitWalk};
use crate::commit::{BLOCK_BYTES, COMMIT_HEADER_BYTES, Commit};
use crate::disk::Disk;
use crate::footer::Lengths;
use crate::identity::Identity;
use crate::index::Index;
use crate::place::Place;
use crate::ranges::RangeSet;
use crate::read_around::ReadAround;
use crate::record::{Body, Message, Range, Record, Target};
use crate::segment::{FoundFile, HeaderRead, SegmentRef};
use crate::sync_proof::{proven_by_next, synced_by_headers, synced_by_heads};

/// What is known of what lies behind a segment.
#[derive(Clone, Copy)]
enum Behind {
    /// Another one, and how many commits its header says were synced before it.
    Segment(SegmentRef, Option<u64>),
    /// It is the newest; so many commits were synced by what is noted elsewhere.
    Nothing(u64),
}

/// A scan that is being taken.
struct Taking {
    scan: Scan,
    chain: Chain,
    slot: u32,
    /// Targets of all messages seen.
    seen: BTreeMap<u64, RangeSet>,
    /// Messages that footers know and nobody can read, since the last gap.
    missed: Vec<Target>,
    /// The same, each with the damage that it belongs to.
    lost: Vec<(usize, Target)>,
    /// A gap at the end of a segment, which the next one may fill, and its messages.
    pending: Option<(Gap, SegmentRef, Vec<Target>)>,
    /// The newest segment, its end, and the newest commit that was surely synced, by what lies behind that.
    newest: Option<(SegmentRef, u32, u64)>,
    /// The same for a file that is newer, and the bytes of its header.
    newer: Option<(SegmentRef, u32, u64)>,
    /// Messages with chunks: each target, the body and the number of chunks.
    large: Vec<(Target, u64, u32)>,
}

pub(super) fn scan<D: Disk>(disk: &mut D) -> Result<Scan, FsckError> {
    // Before the log is read: beside a broker that stops, it has no less by then.
    let had_one = access_file::is_there(disk);
    let layout = Layout::of(disk)?;
    let noted = layout.identity.map_or(0, |identity| access_file::read_end_of(disk, &identity));
    let mut taking = Taking::new(&layout);
    let mut bytes = vec![0; layout.segment_bytes as usize];
    for listed in &layout.log {
        taking.take_settlements(disk, listed, &mut bytes);
    }
    let synced = synced_by_headers(&layout.headers().collect::<Vec<_>>()).max(noted);
    for (at, listed) in layout.log.iter().enumerate() {
        let behind = match layout.log.get(at + 1) {
            Some(next) => Behind::Segment(next.segment, layout.commits_before(next.segment.sequence)),
            None => Behind::Nothing(synced),
        };
        taking.take_segment(disk, listed, behind, &mut bytes).map_err(FsckError::Unreadable)?;
    }
    taking.end_pending(None);
    taking.note_gone(&layout);
    for found in &layout.found {
        if !layout.is_in_log(found.slot) {
            taking.take_other(disk, &layout, found, &mut bytes).map_err(FsckError::Unreadable)?;
        }
    }
    // The first start makes one file only before there is a log.
    if layout.log.is_empty() && (had_one || taking.scan.spare.free > 1) {
        taking.note_lost_log(noted);
    }
    taking.note_lost_end(synced);
    Ok(taking.finish())
}

impl Taking {
    fn new(layout: &Layout) -> Self {
        let scan = Scan {
            id: layout.identity.map(|identity| identity.id),
            format: layout.headers().map(|(_, _, header)| header.format).max().unwrap_or_default(),
            segment_bytes: layout.segment_bytes,
            last: (0, 0, 0),
            segments: Vec::new(),
            spare: Spare::default(),
            index: Index::default(),
            tail: None,
            damage: Vec::new(),
            volume: Volume::default(),
            bodies_broken: 0,
            chunks: BTreeMap::new(),
            seed: layout.identity.as_ref().map(Identity::seed),
            tail_only: None,
        };
        Self {
            scan,
            chain: Chain::default(),
            slot: 0,
            seen: BTreeMap::new(),
            missed: Vec::new(),
            lost: Vec::new(),
            pending: None,
            newest: None,
            newer: None,
            large: Vec::new(),
        }
    }

    fn take_segment<D: Disk>(
        &mut self,
        disk: &mut D,
        listed: &Listed,
        behind: Behind,
        bytes: &mut [u8],
    ) -> io::Result<()> {
        let SegmentRef { sequence, slot } = listed.segment;
        let is_newest = matches!(behind, Behind::Nothing(_));
        self.slot = slot;
        let mut segment = SegmentLook::begin(listed, self.chain);
        let kind = match listed.header {
            ListedHeader::NoFile => Some(DamageKind::NoFile),
            ListedHeader::Other { .. } => Some(DamageKind::Replaced),
            ListedHeader::Good { .. } | ListedHeader::Damaged => None,
        };
        let end = self.scan.segment_bytes;
        if let Some(kind) = kind {
            self.note(kind, sequence, 0, end);
            return Ok(());
        }
        if is_unopened(disk, slot) {
            let damage = self.note(DamageKind::Unopened, sequence, 0, end);
            (damage.commits, damage.records_lost) = (None, None);
            return Ok(());
        }
        let (length, refused) = match read_around(disk, slot, bytes) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.note(DamageKind::NoFile, sequence, 0, end);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        if !segment.is_still(disk, &bytes[..length]) {
            self.note(DamageKind::Replaced, sequence, 0, end);
            return Ok(());
        }
        self.note_reading(&segment, length, &refused, is_newest);
        segment.proven = self.proven(disk, &segment, behind, &bytes[..length]);
        let walk = segment.walk(&bytes[..length], end, self.scan.seed, is_newest);
        let mut chain = self.chain;
        let found = walk.run(&mut chain, &mut |event| self.note_event(event, &mut segment));
        self.chain = chain;
        if is_newest {
            let (tail, seed) = (found.tail as usize, self.scan.seed);
            let heads = synced_by_heads(&bytes[..length], tail, sequence, &chain, seed);
            self.newest = Some((listed.segment, found.tail, heads));
        }
        self.note_end(&mut segment, &found);
        Ok(())
    }

    /// See [`Walk::proven`](super::walk::Walk::proven): as a start finds it.
    fn proven<D: Disk>(&self, disk: &mut D, segment: &SegmentLook, behind: Behind, bytes: &[u8]) -> u64 {
        let (whole, Some(seed)) = (self.scan.segment_bytes, self.scan.seed) else { return 0 };
        if segment.walk(bytes, whole, Some(seed), false).footer().is_some() {
            return 0;
        }
        let (sequence, mut chain) = (segment.sequence, self.chain);
        let tail = CommitWalk::new(sequence, seed, segment.first).run(bytes, &mut chain) as usize;
        match behind {
            Behind::Nothing(synced) => synced_by_heads(bytes, tail, sequence, &chain, Some(seed)).max(synced),
            Behind::Segment(next, told) => {
                let disk = &mut ReadAround::at_any_price(disk);
                let (known, next) = ((sequence, &chain, 0), Some((next, told)));
                proven_by_next(disk, known, next, seed, &mut vec![0; whole as usize]).unwrap_or(0)
            }
        }
    }

    /// Takes note of what is settled, before any message: so messages that nobody needs any more leave no
    /// trace in the index. A footer tells it, or all of the segment.
    fn take_settlements<D: Disk>(&mut self, disk: &mut D, listed: &Listed, bytes: &mut [u8]) {
        let SegmentRef { sequence, slot } = listed.segment;
        if matches!(listed.header, ListedHeader::NoFile | ListedHeader::Other { .. }) {
            return;
        }
        self.scan.index.add_segment(sequence, slot, listed.first);
        let segment = SegmentLook::begin(listed, self.chain);
        let seed = self.scan.seed;
        let index = &mut self.scan.index;
        let mut apply = |record: &Record<'_>, place: Place| {
            if matches!(
                record,
                Record::Settled { .. } | Record::Gone { .. } | Record::DeliveredWatermark { .. }
            ) {
                index.apply(record, place);
            }
        };
        if read_footer(disk, slot, bytes) {
            let walk = segment.walk(bytes, bytes.len() as u32, seed, false);
            if let Some(footer) = walk.footer() {
                // This version wrote it, so it makes sense.
                let _ = footer.for_each_fact(sequence, apply);
                return;
            }
        }
        let Ok((length, _)) = read_around(disk, slot, bytes) else { return };
        let walk = segment.walk(&bytes[..length], self.scan.segment_bytes, seed, false);
        walk.run(&mut self.chain.clone(), &mut |event| {
            if let Event::Record { place, record, trust: Trust::Whole, .. } = event {
                apply(record, place);
            }
        });
    }

    fn note(&mut self, kind: DamageKind, segment: u64, from: u32, to: u32) -> &mut Damage {
        let is_whole_file = matches!(kind, DamageKind::NoFile | DamageKind::Replaced | DamageKind::Foreign);
        let known = (!is_whole_file).then_some(0);
        let damage = Damage {
            kind,
            slot: self.slot,
            segment,
            from,
            to,
            commits: known,
            records_read: 0,
            records_lost: known,
            records_unknown: 0,
            messages_lost: 0,
        };
        let damages = &mut self.scan.damage;
        damages.push(damage);
        let last = damages.len() - 1;
        &mut damages[last]
    }

    /// What reading the file was like.
    fn note_reading(&mut self, segment: &SegmentLook, length: usize, refused: &[u32], is_newest: bool) {
        // The commits around it tell what is missing, but for the end of the log.
        let known = (!is_newest).then_some(0);
        self.note_refused(segment.sequence, refused, known);
        let end = self.scan.segment_bytes;
        if length < end as usize {
            self.note(DamageKind::Short, segment.sequence, length as u32, end).records_lost = known;
        }
        if segment.opened_by.is_none() {
            self.note(DamageKind::Header, segment.sequence, 0, segment.first);
        }
    }

    fn note_refused(&mut self, segment: u64, refused: &[u32], known: Option<u64>) {
        for run in refused.chunk_by(|a, b| a + BLOCK_BYTES as u32 == *b) {
            let (from, to) = (run[0], run[run.len() - 1] + BLOCK_BYTES as u32);
            self.note(DamageKind::Unreadable, segment, from, to).records_lost = known;
        }
    }

    fn note_event(&mut self, event: Event<'_>, segment: &mut SegmentLook) {
        match event {
            Event::Commit(at, commit) => self.note_commit(at, commit, segment),
            Event::Record { place, record, trust, .. } => {
                if trust == Trust::Whole {
                    segment.records += 1;
                }
                if trust != Trust::Tail {
                    self.note_record(record, place, trust);
                }
            }
            Event::Strange(place) => {
                let end = place.at + place.bytes;
                let damage = self.note(DamageKind::Strange, place.segment, place.at, end);
                (damage.records_lost, damage.records_unknown) = (Some(1), 1);
            }
            Event::Lost(targets) => self.missed.extend_from_slice(targets),
            Event::Gap(gap) => self.note_gap(gap, segment),
            Event::Tail(tail) => self.scan.tail = Some(tail),
        }
    }

    fn note_commit(&mut self, at: u32, commit: &Commit<'_>, segment: &mut SegmentLook) {
        if segment.commits == 0 {
            self.end_pending(Some((commit, at == segment.first)));
        }
        segment.commits += 1;
        let volume = &mut self.scan.volume;
        volume.commit_bytes += COMMIT_HEADER_BYTES as u64;
        volume.padding_bytes += (commit.bytes() - COMMIT_HEADER_BYTES - commit.records.len()) as u64;
        let header = &commit.header;
        self.scan.last = (header.life, header.number, self.scan.last.2.max(header.time_ms));
    }

    fn note_record(&mut self, record: &Record<'_>, place: Place, trust: Trust) {
        let bytes = u64::from(place.bytes);
        let (mut volume, mut is_first) = (Volume::default(), true);
        match record {
            Record::Message(message) => {
                is_first = self.is_first(message);
                volume.messages = 1;
                volume.payload_bytes = payload_bytes(message);
                volume.message_bytes = bytes;
                if let Body::Chunked { body, chunks, .. } = message.body {
                    self.large.extend(message.targets.iter().map(|target| (target, body, chunks)));
                }
            }
            Record::Chunk { body, index, bytes: part } => {
                is_first = self.scan.chunks.insert((*body, *index), place).is_none();
                volume.payload_bytes = part.len() as u64;
                volume.message_bytes = bytes;
            }
            Record::Settled { .. }
            | Record::Gone { .. }
            | Record::DeliveredWatermark { .. }
            | Record::WatermarkReset { .. }
            | Record::Left { .. }
            | Record::Optional { .. } => volume.settled_bytes = bytes,
            Record::Defined { .. } => volume.defined_bytes = bytes,
        }
        self.scan.index.apply(record, place);
        if !is_first {
            volume = Volume { copy_bytes: bytes, ..Volume::default() };
        }
        if trust == Trust::Whole {
            self.scan.volume.add(&volume);
        }
    }

    /// Whether a message was not seen before.
    fn is_first(&mut self, message: &Message<'_>) -> bool {
        let mut is_first = false;
        // A copy may be for fewer queues.
        for target in message.targets.iter() {
            let range = Range { start: target.offset, end: target.offset + 1 };
            self.seen.entry(target.queue).or_default().insert(range, |_| is_first = true);
        }
        is_first
    }

    fn note_gap(&mut self, mut gap: Gap, segment: &SegmentLook) {
        let missed = core::mem::take(&mut self.missed);
        if gap.covered {
            return;
        }
        let at = SegmentRef { sequence: segment.sequence, slot: segment.slot };
        if gap.trailing {
            self.pending = Some((gap, at, missed));
        } else if self.pending.is_none() || gap.from < gap.to {
            if let Some((before, ..)) = &self.pending {
                // Some of what is missing was at the end of the segment before.
                gap.commits = gap.commits.map(|commits| commits.saturating_sub(before.salvaged.commits));
            }
            self.note_missing(&gap, at, missed);
        }
    }

    fn note_missing(&mut self, gap: &Gap, at: SegmentRef, missed: Vec<Target>) {
        self.slot = at.slot;
        let damage = self.note(DamageKind::Commits, at.sequence, gap.from, gap.to);
        let Salvaged { read, lost, unknown, .. } = gap.salvaged;
        (damage.commits, damage.records_read, damage.records_lost) = (gap.commits, read, lost);
        damage.records_unknown = unknown;
        if gap.salvaged.commits > 0 && gap.commits.is_some_and(|commits| commits > gap.salvaged.commits) {
            // Of the others nothing is left that would say what was in them.
            damage.records_lost = None;
        }
        let number = self.scan.damage.len() - 1;
        self.lost.extend(missed.into_iter().map(|target| (number, target)));
    }

    /// The segment after the one with a gap at its end has `next` as its first whole commit, perhaps right at
    /// its start, or the log is at its end.
    fn end_pending(&mut self, next: Option<(&Commit<'_>, bool)>) {
        let Some((mut gap, at, missed)) = self.pending.take() else { return };
        let header = next.map(|(next, is_first)| (&next.header, is_first));
        if let Some((header, is_first)) = header.filter(|(next, _)| next.segment == at.sequence + 1) {
            let missing = header.number.saturating_sub(gap.after + 1);
            if missing <= u64::from(header.covers) {
                return;
            }
            let commits = if is_first { missing } else { missing.min(gap.salvaged.commits.max(1)) };
            gap.commits = (gap.after > 0).then_some(commits);
        }
        let slot = self.slot;
        self.note_missing(&gap, at, missed);
        self.slot = slot;
    }

    fn note_end(&mut self, segment: &mut SegmentLook, end: &End) {
        let whole = self.scan.segment_bytes;
        let is_known = self.pending.as_ref().is_some_and(|(_, at, _)| at.sequence == segment.sequence)
            || self
                .scan
                .damage
                .last()
                .is_some_and(|d| d.segment == segment.sequence && d.kind == DamageKind::Commits);
        if segment.commits == 0 && !is_known {
            // It would not be part of the log if it had none.
            let damage = self.note(DamageKind::Commits, segment.sequence, segment.first, whole);
            (damage.commits, damage.records_lost) = (None, None);
        }
        if end.is_footer_damaged {
            let bytes = end.footer_bytes.unwrap_or(BLOCK_BYTES as u32);
            self.note(DamageKind::Footer, segment.sequence, whole - bytes, whole);
        }
        segment.sealed = end.footer_bytes.is_some();
        segment.used_bytes = end.tail + end.footer_bytes.unwrap_or(0);
        self.scan.index.set_bytes(segment.sequence, end.tail);
        self.scan.volume.header_bytes += u64::from(segment.first);
        self.scan.volume.footer_bytes += u64::from(end.footer_bytes.unwrap_or(0));
        self.scan.segments.push(*segment);
    }

    /// A file that is not in the log.
    fn take_other<D: Disk>(
        &mut self,
        disk: &mut D,
        layout: &Layout,
        found: &FoundFile,
        bytes: &mut [u8],
    ) -> io::Result<()> {
        self.slot = found.slot;
        if is_unopened(disk, found.slot) {
            let damage = self.note(DamageKind::Unopened, 0, 0, layout.segment_bytes);
            (damage.commits, damage.records_lost) = (None, None);
            return Ok(());
        }
        let (length, refused) = read_around(disk, found.slot, bytes)?;
        let is_ours = match &found.header {
            HeaderRead::Good(header, _) => Some(header.identity) == layout.identity,
            HeaderRead::Empty => true,
            // A header that was cut while it was written, over a file that was free.
            _ => layout.identity.is_some() || bytes[BLOCK_BYTES.min(length)..length].iter().all(|b| *b == 0),
        };
        if !is_ours || layout.is_unreadable(found.slot) {
            let kind =
                if layout.is_unreadable(found.slot) { DamageKind::Unreadable } else { DamageKind::Foreign };
            self.note(kind, 0, 0, length as u32);
            return Ok(());
        }
        let newer = match &found.header {
            HeaderRead::Good(header, _) if header.sequence > self.chain.segment => header.sequence,
            _ => 0,
        };
        self.note_refused(newer, &refused, (newer == 0).then_some(0));
        if length < layout.segment_bytes as usize {
            self.scan.spare.preparing += 1;
            // Only what is prepared to its end gets a header.
            if newer > 0 {
                let damage = self.note(DamageKind::Short, newer, length as u32, layout.segment_bytes);
                damage.records_lost = None;
            }
        } else {
            self.scan.spare.free += 1;
        }
        if self.scan.tail.is_none() {
            self.look_for_tail(found, &bytes[..length]);
        }
        Ok(())
    }

    /// The last commit may have opened a segment, and be damaged: then its header proves nothing.
    fn look_for_tail(&mut self, found: &FoundFile, bytes: &[u8]) {
        let (sequence, first, opened_by) = match &found.header {
            HeaderRead::Good(header, first) if header.sequence > self.chain.segment => {
                (header.sequence, *first, Some(header.life))
            }
            HeaderRead::Good(..) => return,
            _ => match salvage::newer_at(bytes, BLOCK_BYTES, &self.chain) {
                Some(sequence) => (sequence, BLOCK_BYTES as u32, None),
                None => return,
            },
        };
        let segment = SegmentLook {
            sequence,
            slot: found.slot,
            sealed: false,
            commits: 0,
            records: 0,
            used_bytes: 0,
            first,
            opened_by,
            before: self.chain,
            proven: 0,
        };
        let walk = segment.walk(bytes, self.scan.segment_bytes, self.scan.seed, true);
        let mut chain = self.chain;
        let mut tail = None;
        walk.run(&mut chain, &mut |event| {
            if let Event::Tail(found) = event {
                tail = Some(found);
            }
        });
        self.scan.tail_only = tail.map(|_| segment);
        self.scan.tail = tail;
        if opened_by.is_some() {
            let (first_at, seed) = (first as usize, self.scan.seed);
            let heads = synced_by_heads(bytes, first_at, sequence, &self.chain, seed);
            self.newer = Some((SegmentRef { sequence, slot: found.slot }, first, heads));
        }
    }

    /// As a start finds it: see `find_gone` there.
    fn note_gone(&mut self, layout: &Layout) {
        let Some(newest) = self.scan.segments.last().filter(|newest| newest.sealed).copied() else { return };
        if !layout.ends_with(newest.sequence) {
            return;
        }
        self.slot = NO_SLOT;
        let damage = self.note(DamageKind::Gone, newest.sequence + 1, 0, 0);
        (damage.commits, damage.records_lost) = (None, None);
    }

    /// There was a log, and nothing is left of it.
    fn note_lost_log(&mut self, noted: u64) {
        self.slot = 0;
        let damage = self.note(DamageKind::Log, 0, 0, 0);
        damage.commits = Some(noted).filter(|noted| *noted > 0);
        damage.records_lost = None;
    }

    /// Whether commits at the end of the log are missing that were durable: then it is damaged, not cut.
    fn note_lost_end(&mut self, synced: u64) {
        let read = self.scan.tail.map(|tail| (tail.segment, tail.records_read));
        let mut number = self.chain.number;
        let ends = [(self.newest, synced), (self.newer, 0)];
        for ((segment, from, heads), synced) in ends.into_iter().filter_map(|(end, n)| Some((end?, n))) {
            let missing = heads.max(synced).saturating_sub(number);
            if missing > 0 {
                number += missing;
                self.slot = segment.slot;
                let end = self.scan.segment_bytes;
                let damage = self.note(DamageKind::Commits, segment.sequence, from, end);
                (damage.commits, damage.records_lost) = (Some(missing), None);
                damage.records_read =
                    read.map_or(0, |(of, read)| if of == segment.sequence { read } else { 0 });
            }
        }
    }

    fn finish(mut self) -> Scan {
        self.scan.index.end_recovery(&[]);
        let index = &self.scan.index;
        let is_live = |target: &Target| {
            index.queues().get(&target.queue).is_some_and(|queue| queue.segment_of(target.offset).is_some())
        };
        let is_dead = |target: &Target| {
            let queue = index.queues().get(&target.queue);
            queue.is_some_and(|queue| queue.gone || queue.settled.contains(target.offset))
        };
        let mut counted = BTreeSet::new();
        for (number, target) in &self.lost {
            let is_new = counted.insert((target.queue, target.offset));
            if is_new && !is_dead(target) && !is_live(target) {
                self.scan.damage[*number].messages_lost += 1;
            }
        }
        let mut broken = BTreeSet::new();
        for (target, body, chunks) in &self.large {
            let is_whole = (0..*chunks).all(|index| self.scan.chunks.contains_key(&(*body, index)));
            // The index has given up some of them by now.
            if !is_whole && !is_dead(target) {
                broken.insert(*body);
            }
        }
        self.scan.bodies_broken = broken.len() as u64;
        self.scan
    }
}

/// Whether a slot's file could not be opened when its header was to be read.
fn is_unopened<D: Disk>(disk: &D, slot: u32) -> bool {
    disk.unopened().iter().any(|file| file.slot == Some(slot))
}

/// Without the chunks, which count when they are found.
fn payload_bytes(message: &Message<'_>) -> u64 {
    let body = match message.body {
        Body::Inline(bytes) => bytes.len(),
        Body::Chunked { .. } => 0,
    };
    (message.key.len() + message.properties.len() + body) as u64
}

/// Reads the footer of a file to its place in `bytes`, whose other bytes mean nothing then.
fn read_footer<D: Disk>(disk: &mut D, slot: u32, bytes: &mut [u8]) -> bool {
    let end = bytes.len();
    let Some(last) = end.checked_sub(BLOCK_BYTES) else { return false };
    let mut is_read =
        |from: usize| disk.read(slot, from as u64, &mut bytes[from..]).is_ok_and(|n| n == end - from);
    if !is_read(last) {
        return false;
    }
    let Some(lengths) = Lengths::claimed(&bytes[last..], end) else { return false };
    disk.read(slot, (end - lengths.footer()) as u64, &mut bytes[end - lengths.footer()..]).is_ok()
}

impl SegmentLook {
    pub(super) fn begin(listed: &Listed, before: Chain) -> Self {
        let SegmentRef { sequence, slot } = listed.segment;
        let opened_by = if let ListedHeader::Good { life } = listed.header { Some(life) } else { None };
        let (commits, records, used_bytes) = (0, 0, 0);
        let first = listed.first;
        Self {
            sequence,
            slot,
            sealed: false,
            commits,
            records,
            used_bytes,
            first,
            opened_by,
            before,
            proven: 0,
        }
    }
}

impl Volume {
    fn add(&mut self, other: &Self) {
        self.message_bytes += other.message_bytes;
        self.copy_bytes += other.copy_bytes;
        self.settled_bytes += other.settled_bytes;
        self.defined_bytes += other.defined_bytes;
        self.payload_bytes += other.payload_bytes;
        self.messages += other.messages;
    }
}
