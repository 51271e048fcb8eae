//! From what gathers to a commit job, and from its outcome to "durable".
//!
//! Always true: a commit that does not fit goes to a new segment, whose header lists every segment of the
//! log; the file of a segment is free for use only when the commit that says it left is durable. The same
//! walk over records feeds the index in life and at recovery.

use std::io;

use leveret_core::journal::definition::is_access;
use leveret_core::time::Now;

use super::access::{DIGEST_RECORD_BYTES, Updated, access_places};
use super::commit::{self, BLOCK_BYTES, COMMIT_HEADER_BYTES, CommitHeader, Owner, padded};
use super::disk::Disk;
use super::footer::{Footer, Trailer};
use super::jobs::{CommitDone, CommitJob, EndJob, Outcome, Reached, Seal, Write};
use super::log::Position;
use super::log::{Failed, InFlight, Log};
use super::parts::BodyPart;
use super::queue_names;
use super::reader::apply_records;
use super::record::Record;
use super::recovery::Step;
use super::segment::{SegmentHeader, SegmentRef};
use super::space::Slot;
use super::space::Space;

impl Log {
    /// The next commit, when the helper is free and one is due: somebody waits, a window is over, or what
    /// gathers must make room.
    pub fn next_commit(&mut self, now: Now) -> Option<CommitJob> {
        if self.is_postponed() {
            return self.next_postponed(now);
        }
        if !self.is_due(now) {
            return None;
        }
        self.yield_backup_pin();
        let most = self.commit_bytes_max()?;
        let end = if self.access.has_digest() { most - DIGEST_RECORD_BYTES } else { most };
        self.gather_deletions_again(end);
        let settled_from = self.gathering.len();
        let mut in_flight = InFlight {
            position: self.durable,
            at: self.space.active.tail(),
            settled_from,
            opens: None,
            seals: 0,
            carried: core::mem::take(&mut self.cleaner.spares.carried),
            drained: Vec::new(),
            postponed: None,
        };
        if self.space.is_short() {
            // What frees a segment comes first.
            self.gather_carried(&mut in_flight, end);
            in_flight.position = self.gather_settlements(end);
        } else {
            in_flight.position = self.gather_settlements(end);
            self.gather_carried(&mut in_flight, end);
        }
        if !self.has_gathered() && !self.must_commit() {
            self.cleaner.spares.carried = in_flight.carried;
            return None;
        }
        self.access.gather_digest(&mut self.gathering, &self.index, most);
        let job = self.build(&mut in_flight, now)?;
        self.counters.commits += 1;
        self.in_flight = Some(in_flight);
        self.after_handing_out(now);
        Some(job)
    }

    /// An empty commit for a clean stop: what lies behind a commit proves that it was whole, so that damage
    /// to it is not taken for a commit that a power cut left half written. `None` where it would open a
    /// segment or take room that the next start may need, and where this life has written nothing but its
    /// first commit, which repeats another.
    pub fn closing_commit(&mut self, now: Now) -> Option<CommitJob> {
        if self.counters.commits < 2 || self.space.is_short() || !self.space.fits_active(BLOCK_BYTES) {
            return None;
        }
        self.empty_commit(now)
    }

    /// A commit that says nothing but how late it is; `None` where it would open a segment that is kept for
    /// what makes room, or the cleaner is at the last of those. A log that is full of what has to expire is
    /// told how late it is, or it would be as full in its next life.
    pub(super) fn empty_commit(&mut self, now: Now) -> Option<CommitJob> {
        let fits_beside = self.space.leaves_reserve_alone() && self.space.fits_active(BLOCK_BYTES);
        if self.space.is_short() && !fits_beside {
            return None;
        }
        self.schedule.set_closing(true);
        self.hurry();
        let job = self.next_commit(now);
        self.schedule.set_closing(false);
        job
    }

    /// The last thing of a clean stop: which commit is the last is noted where damage to the end of the log
    /// does not reach.
    pub(super) fn end(&self) -> Option<EndJob> {
        let owner = Owner { identity: self.writer.identity, segment_bytes: self.settings.segment_bytes };
        let said_nothing = self.counters.commits < 2;
        let job = EndJob { owner, number: self.writer.number, said_nothing };
        (self.access.keeps_files() && !self.failed && self.writer.number > 0).then_some(job)
    }

    /// The commit for which there was no room, when it is time to try it again.
    fn next_postponed(&mut self, now: Now) -> Option<CommitJob> {
        self.schedule.note_asked(now);
        if self.failed || !self.space.slots.may_ask(now) {
            return None;
        }
        let gives = self.space.slots.to_give();
        let postponed = self.in_flight.as_mut().and_then(|commit| commit.postponed.take());
        postponed.map(|job| CommitJob { gives, ..job })
    }

    /// Takes the outcome of a commit; returns up to where everything is durable now. When the file system had
    /// no room for it, nothing more is, and [`Log::next_commit`] hands the same commit out again in time.
    ///
    /// # Errors
    /// The disk failed: nothing more will become durable, and the process must end.
    pub fn commit_done(&mut self, mut done: CommitDone) -> Result<Position, Failed> {
        let given = done.job.given.take();
        if let Some(slot) = given {
            self.space.slots.set(slot, Slot::Unusable);
            self.space.note_no_commit_room(self.schedule.asked_at());
        }
        match done.outcome {
            Outcome::Durable => {}
            Outcome::NoRoom => {
                self.space.note_no_commit_room(self.schedule.asked_at());
                let Some(in_flight) = &mut self.in_flight else {
                    panic!("a commit is done that was not handed out")
                };
                in_flight.postponed = Some(done.job);
                return Ok(self.durable);
            }
            Outcome::Failed(error) => return Err(self.fail(error)),
        }
        if given.is_none() && self.space.is_file_system_full() {
            self.space.note_commit_room();
        }
        if done.job.keeps_access {
            self.access.set_files_lost(done.job.access.is_lost);
        }
        let Some(in_flight) = self.in_flight.take() else {
            panic!("a commit is done that was not handed out")
        };
        self.counters.bytes_written += done.bytes() as u64;
        self.counters.syncs += done.syncs();
        let CommitJob { seal, header, commit, .. } = done.job;
        let changes_segments = in_flight.opens.is_some() || !in_flight.drained.is_empty();
        if let Some((opened, header_bytes)) = in_flight.opens {
            self.index.add_segment(opened.sequence, opened.slot, header_bytes);
        }
        // What is settled comes first: so messages that nobody needs any more leave no trace in the index.
        let (segment, settled_from) = (self.space.active.sequence(), in_flight.settled_from);
        let (at, first) = (in_flight.at, COMMIT_HEADER_BYTES);
        let (records, settled) = (&commit.bytes[first..settled_from], &commit.bytes[settled_from..]);
        apply_records(&mut self.index, settled, segment, at + settled_from as u32, |_| true);
        apply_records(&mut self.index, records, segment, at + first as u32, |_| true);
        self.index.set_bytes(self.space.active.sequence(), self.space.active.tail());
        let mut carried = in_flight.carried;
        for (queue, since) in carried.drain(..) {
            self.index.settled_again(queue, since);
        }
        self.cleaner.spares.carried = carried;
        if !in_flight.drained.is_empty() {
            self.free(in_flight.drained);
        }
        if self.space.is_short() {
            self.index.forget_pending();
            for (queue, settled) in self.settling.iter() {
                settled.iter().for_each(|range| self.index.note_pending(queue, *range));
            }
        }
        self.durable = self.durable.max(in_flight.position);
        self.cleaner.may_clean = true;
        self.index.end_dropped(self.durable);
        self.gathering.give_back(commit.bytes);
        self.space.spares.header =
            header.map_or_else(|| core::mem::take(&mut self.space.spares.header), |write| write.bytes);
        if let Some(seal) = seal {
            self.index.set_parts(seal.trailer.sequence, seal.at, &seal.parts);
            self.space.spares.seal = (seal.noted, seal.bytes, seal.parts);
        }
        let is_stale = self.space.weight.is_stale(&self.index);
        if changes_segments || is_stale || self.space.weight.is_tight() || self.cleaner.cleaning.is_some() {
            self.weigh_index();
        }
        self.cleaner.doubling.is_due |= changes_segments | self.index.take_defined();
        self.find_drain();
        Ok(self.durable)
    }

    fn build(&mut self, in_flight: &mut InFlight, now: Now) -> Option<CommitJob> {
        let length = padded(self.gathering.len());
        self.space.active.note(self.gathering.record_bytes());
        let (mut header, mut seal) = (None, None);
        let is_full = self.space.ends_active_early() || !self.space.active.holds_with_footer(length);
        let slot = if is_full { self.space.slots.take_free() } else { None };
        if slot.is_none() && !self.space.active.holds(length) {
            self.space.active.undo();
            return None;
        }
        if let Some(slot) = slot {
            self.space.active.undo();
            in_flight.seals = self.space.active.sequence();
            seal = self.seal(now);
            let (opened, write) = self.open_segment(slot, now);
            in_flight.opens = Some((opened, write.bytes.len() as u32));
            in_flight.at = self.space.active.tail();
            header = Some(write);
            self.space.active.note(self.gathering.record_bytes());
        }
        self.writer.number += 1;
        let keeps_access = self.access.note_built(self.gathering.has_access());
        let gathered = self.gathering.take();
        self.schedule.note_built(now);
        let commit_header = CommitHeader {
            life: self.writer.life,
            number: self.writer.number,
            segment: self.space.active.sequence(),
            time_ms: self.time_ms(now),
            records: gathered.records,
            covers: core::mem::take(&mut self.writer.covers),
            has_group: gathered.has_group,
        };
        let commit =
            Write { slot: self.space.active.slot(), at: self.space.active.tail(), bytes: gathered.bytes };
        self.space.active.advance(length);
        let owner = Owner { identity: self.writer.identity, segment_bytes: self.settings.segment_bytes };
        let (done, gives) = (Reached::Nothing, self.space.slots.to_give());
        Some(CommitJob {
            seal,
            header,
            commit,
            commit_header,
            owner,
            keeps_access,
            access_places: (keeps_access && self.access.are_files_lost()).then(|| access_places(&self.index)),
            access: Updated::default(),
            noted: 0,
            done,
            gives,
            given: None,
        })
    }

    /// The footer of the active segment, unless it was sealed by another life. A segment of which the disk refused to read a
    /// block at this start gets none: the footer would leave out what lies in the block, and a later start, which may
    /// read the block, goes by the footer.
    fn seal(&mut self, now: Now) -> Option<Seal> {
        if self.space.active.is_sealed() || self.refused_files.contains(&self.space.active.slot()) {
            return None;
        }
        let trailer = Trailer {
            life: self.writer.life,
            sequence: self.space.active.sequence(),
            number: self.number_synced(),
            time_ms: self.time_ms(now),
        };
        let (empty, bytes, parts) = core::mem::take(&mut self.space.spares.seal);
        let mut noted = self.space.active.replace_footer(empty);
        let Space { naming, active, .. } = &mut self.space;
        naming.note(&mut noted, &self.index, active, self.settings.segment_bytes);
        Some(Seal {
            slot: self.space.active.slot(),
            segment_bytes: self.settings.segment_bytes,
            tail: self.space.active.tail(),
            trailer,
            seed: self.writer.identity.seed(),
            noted,
            bytes,
            parts,
            at: 0,
        })
    }

    /// The newest commit that is surely durable: what a start found last may be in the page cache only, and
    /// so may be what that repeats, when lives before this one were killed at once.
    const fn number_synced(&self) -> u64 {
        if self.schedule.is_starting() {
            self.writer.number.saturating_sub(self.writer.covers as u64)
        } else {
            self.writer.number
        }
    }

    fn open_segment(&mut self, slot: u32, now: Now) -> (SegmentRef, Write) {
        let mut live = core::mem::take(&mut self.space.spares.live);
        live.clear();
        let segments = self.index.segments().iter();
        live.extend(segments.map(|(&sequence, segment)| SegmentRef { sequence, slot: segment.slot }));
        self.space.active.open(slot);
        let header = SegmentHeader {
            has_access: self.access.is_there(),
            identity: self.writer.identity,
            segment_bytes: self.settings.segment_bytes,
            life: self.writer.life,
            sequence: self.space.active.sequence(),
            time_ms: self.time_ms(now),
            commits: self.number_synced(),
            written: self.written_ever(),
            live,
        };
        let mut bytes = core::mem::take(&mut self.space.spares.header);
        header.encode(&mut bytes);
        self.space.spares.live = header.live;
        let names_bytes = queue_names::room_kept(&self.index, self.settings.segment_bytes);
        self.space.active.begin(bytes.len(), names_bytes);
        (self.space.active.segment(), Write { slot, at: 0, bytes })
    }

    /// That segments have left the log is durable: their files may be used again.
    fn free(&mut self, left: Vec<u64>) {
        for segment in left.iter().filter_map(|sequence| self.index.segments().get(sequence)) {
            if self.reading.pins.has(segment.slot) {
                self.space.slots.set(segment.slot, Slot::Pinned);
            } else {
                self.space.slots.release(segment.slot);
            }
            self.counters.segments_recycled += 1;
        }
        self.index.remove_segments(&left);
        self.cleaner.spares.drained = left;
        self.yield_backup_pin();
    }

    /// Does what a helper would do next. Blocks.
    pub(super) fn step<D: Disk>(&mut self, disk: &mut D, now: Now) -> io::Result<Step> {
        if self.space.segments_free() == 0
            && let Some(job) = self.next_prepare()
        {
            self.prepare_done(job.run(disk)).map_err(|failed| failed.0)?;
            return Ok(Step::Prepared);
        }
        let Some(job) = self.next_commit(now) else { return Ok(Step::Nothing) };
        self.commit_done(job.run(disk)).map_err(|failed| failed.0)?;
        Ok(if self.is_postponed() { Step::Nothing } else { Step::Committed })
    }
}

const _: () = assert!(BLOCK_BYTES > COMMIT_HEADER_BYTES);

// The segment that is written: where its next commit goes, and what is noted of it for its footer.
//
// Always true: commits lie one behind the other from the header on, and the next one goes to the tail; what
// the footer notes lies before the tail, but for what [`ActiveSegment::note`] was told last, which is undone
// or followed by [`ActiveSegment::advance`].

/// A commit that fills a segment up is worth its sync from one in so many parts of the largest on.
const FILLING_PART: usize = 8;

/// The segment that is written.
#[derive(Debug)]
pub(super) struct ActiveSegment {
    segment: SegmentRef,
    segment_bytes: u32,
    /// The next commit goes here; the segment's size when it is sealed.
    tail: u32,
    footer: Footer,
    sequence_max: u64,
}

impl ActiveSegment {
    /// What a start found; none has had a sequence above `sequence_max`.
    pub(super) fn new(
        (segment, segment_bytes): (SegmentRef, u32),
        (tail, footer): (u32, Footer),
        sequence_max: u64,
    ) -> Self {
        let footer = footer.with_room(segment_bytes);
        Self { segment, segment_bytes, tail, footer, sequence_max }
    }

    /// Which it is, and its file.
    pub(super) const fn segment(&self) -> SegmentRef {
        self.segment
    }

    /// Which it is; 0 when there is none yet.
    pub(super) const fn sequence(&self) -> u64 {
        self.segment.sequence
    }

    /// Its file.
    pub(super) const fn slot(&self) -> u32 {
        self.segment.slot
    }

    /// Where the next commit goes, in bytes from its start.
    pub(super) const fn tail(&self) -> u32 {
        self.tail
    }

    /// What is noted of it.
    pub(super) const fn footer(&self) -> &Footer {
        &self.footer
    }

    /// Whether it was sealed by another life, or there is none yet.
    pub(super) const fn is_sealed(&self) -> bool {
        self.tail == self.segment_bytes || self.segment.sequence == 0
    }

    /// Notes the records of the next commit, which goes to the tail.
    pub(super) fn note(&mut self, records: &[u8]) {
        self.footer.note_records(records, self.tail + COMMIT_HEADER_BYTES as u32);
    }

    /// What was noted last goes elsewhere.
    pub(super) fn undo(&mut self) {
        self.footer.undo();
    }

    /// A commit of so many bytes, whole blocks, was put at the tail.
    pub(super) const fn advance(&mut self, bytes: usize) {
        self.tail += bytes as u32;
    }

    /// Takes what is noted, for the footer is to be written, and an empty one for the next segment.
    pub(super) fn replace_footer(&mut self, empty: Footer) -> Footer {
        self.footer.replace(empty)
    }

    /// The next segment begins in this file; its header follows with [`Self::begin`].
    pub(super) const fn open(&mut self, slot: u32) {
        self.sequence_max += 1;
        self.segment = SegmentRef { sequence: self.sequence_max, slot };
    }

    /// Its header takes so many bytes, and so many of its footer are kept for the names of queues.
    pub(super) fn begin(&mut self, header_bytes: usize, names_bytes: usize) {
        self.tail = header_bytes as u32;
        self.footer.clear();
        self.footer.keep_room_for_names(names_bytes);
    }

    // ---- room

    /// Bytes behind the tail.
    const fn rest(&self) -> usize {
        (self.segment_bytes - self.tail) as usize
    }

    /// Whether so many bytes are left, its footer left out.
    pub(super) const fn holds(&self, commit_bytes: usize) -> bool {
        commit_bytes <= self.rest()
    }

    /// Whether its footer, of which what is to be written is noted already, still has its place behind it.
    pub(super) const fn holds_with_footer(&self, commit_bytes: usize) -> bool {
        commit_bytes + padded(self.footer.bytes_max()) <= self.rest()
    }

    /// Whether a commit of so many bytes, of which nothing is noted yet, leaves room for the footer.
    pub(super) fn fits(&self, commit_bytes: usize) -> bool {
        let footer = padded(self.footer.bytes_max() + Footer::bytes_max_of(commit_bytes));
        commit_bytes + footer <= self.rest()
    }

    /// The most bytes of a commit that goes into it; where it is the last there is, its footer gives way.
    pub(super) fn commit_room(&self, is_last: bool) -> usize {
        if is_last {
            return self.rest();
        }
        let room = self.rest().saturating_sub(padded(self.footer.bytes_max()));
        room / 2 / BLOCK_BYTES * BLOCK_BYTES
    }

    /// About the most bytes of a commit that fills it up, and leaves room for its footer: so little of it
    /// stays unused. 0 when a commit of so few is not worth its sync.
    #[inline]
    pub(super) fn filling_room(&self, commit_bytes_max: usize) -> usize {
        let (tail, footer) = (self.tail as usize, self.footer.bytes_max());
        let room = (self.segment_bytes as usize).saturating_sub(tail + footer);
        let commit =
            (room as u64 * tail as u64 / (tail + footer) as u64) as usize / BLOCK_BYTES * BLOCK_BYTES;
        let commit = commit.saturating_sub(BLOCK_BYTES);
        if commit * FILLING_PART < commit_bytes_max { 0 } else { commit }
    }

    /// Bytes that may still go into it, roughly and rather too few.
    pub(super) fn room_bytes(&self, commit_bytes_max: u32) -> u64 {
        let used = u64::from(self.tail) + self.footer.bytes_max() as u64 + 2 * u64::from(commit_bytes_max);
        u64::from(self.segment_bytes).saturating_sub(used)
    }
}

// What gathers for the next commit: its records, and what is to be known of them when it is made.
//
// Always true: the bytes begin with the room for a commit's header, and are whole records from there on, as
// many as are counted; so what is handed out needs a header and nothing else.

/// Records that wait for their commit.
#[derive(Debug)]
pub(super) struct Gathering {
    bytes: Vec<u8>,
    records: u32,
    fresh_bytes: usize,
    /// Of those before it.
    fresh_bytes_before: u64,
    /// Everything that was said so far, settlements too.
    pub(super) appended: Position,
    copied_bytes: usize,
    has_group: bool,
    has_access: bool,
    frees: bool,
    digest_at: usize,
    /// The buffer of the last commit, for the one after the next.
    spare: Vec<u8>,
}

/// What is handed out as one commit.
#[derive(Debug)]
pub(super) struct Gathered {
    /// Room for a header, and the records.
    pub(super) bytes: Vec<u8>,
    pub(super) records: u32,
    /// Some of the records belong together.
    pub(super) has_group: bool,
}

impl Gathering {
    /// With so much room, and the records that a start writes again.
    pub(super) fn new(commit_bytes: usize, again: &[u8], again_records: u32) -> Self {
        let mut bytes = Vec::with_capacity(commit_bytes);
        commit::begin(&mut bytes);
        bytes.extend_from_slice(again);
        Self {
            bytes,
            records: again_records,
            fresh_bytes: 0,
            fresh_bytes_before: 0,
            appended: Position(1),
            copied_bytes: 0,
            has_group: again_records > 0,
            has_access: again_records > 0,
            frees: false,
            digest_at: 0,
            spare: Vec::with_capacity(commit_bytes),
        }
    }

    /// Bytes so far, the room for the header included.
    pub(super) const fn len(&self) -> usize {
        self.bytes.len()
    }

    /// How many records there are.
    pub(super) const fn records(&self) -> u32 {
        self.records
    }

    /// The records, one behind the other.
    pub(super) fn record_bytes(&self) -> &[u8] {
        &self.bytes[COMMIT_HEADER_BYTES..]
    }

    /// Puts a record behind the others; the bytes that it takes.
    pub(super) fn add(&mut self, record: &Record<'_>) -> usize {
        self.add_with(|bytes| record.encode(bytes))
    }

    /// Puts the one record there that `encode` appends; the bytes that it takes. None is no record.
    pub(super) fn add_with(&mut self, encode: impl FnOnce(&mut Vec<u8>)) -> usize {
        let start = self.bytes.len();
        encode(&mut self.bytes);
        let added = self.bytes.len() - start;
        self.records += u32::from(added > 0);
        added
    }

    /// So many of the bytes are of new messages and chunks.
    pub(super) const fn note_fresh(&mut self, bytes: usize) {
        self.fresh_bytes += bytes;
    }

    /// How many they are by now.
    pub(super) const fn fresh_bytes(&self) -> usize {
        self.fresh_bytes
    }

    /// How many they were in all commits before.
    pub(super) const fn fresh_bytes_before(&self) -> u64 {
        self.fresh_bytes_before
    }

    /// So many of the bytes are copies that the cleaner made.
    pub(super) const fn note_copied(&mut self, bytes: usize) {
        self.copied_bytes += bytes;
    }

    /// Whether the cleaner has made copies.
    pub(super) const fn has_copies(&self) -> bool {
        self.copied_bytes > 0
    }

    /// Whether there is nothing else.
    pub(super) const fn has_only_copies(&self) -> bool {
        self.has_copies() && COMMIT_HEADER_BYTES + self.copied_bytes == self.bytes.len()
    }

    /// Some of the records belong together.
    pub(super) const fn note_group(&mut self) {
        self.has_group = true;
    }

    /// There are definitions of access.
    pub(super) const fn note_access(&mut self) {
        self.has_access = true;
    }

    /// Whether there are.
    pub(super) const fn has_access(&self) -> bool {
        self.has_access
    }

    /// Whether a definition of access with this version is among them already: its copies belong into two commits.
    pub(super) fn has_copy_of(&self, record: &Record<'_>) -> bool {
        let Record::Defined { version, key, .. } = record else { return false };
        let mut records = self.record_bytes();
        while is_access(key)
            && let Ok((other, bytes)) = Record::parse_known(records)
        {
            if matches!(other, Record::Defined { version: v, key: k, .. } if (v, k) == (*version, *key)) {
                return true;
            }
            records = &records[bytes..];
        }
        false
    }

    /// A queue is deleted, which makes room.
    pub(super) const fn note_frees(&mut self) {
        self.frees = true;
    }

    /// Whether something makes room.
    pub(super) const fn frees(&self) -> bool {
        self.frees
    }

    /// The record that was added last is the digest of all that is there with it.
    pub(super) const fn note_digest(&mut self) {
        self.digest_at = self.bytes.len();
    }

    /// Whether nothing was added since.
    pub(super) const fn ends_with_digest(&self) -> bool {
        self.digest_at == self.bytes.len()
    }

    /// Hands out what has gathered; what is added from now on gathers for the next commit.
    pub(super) fn take(&mut self) -> Gathered {
        let mut empty = core::mem::take(&mut self.spare);
        commit::begin(&mut empty);
        let gathered = Gathered {
            bytes: core::mem::replace(&mut self.bytes, empty),
            records: self.records,
            has_group: self.has_group,
        };
        self.fresh_bytes_before += self.fresh_bytes as u64;
        (self.records, self.fresh_bytes, self.copied_bytes, self.digest_at) = (0, 0, 0, 0);
        (self.has_group, self.has_access, self.frees) = (false, false, false);
        gathered
    }

    /// The buffer of a commit that is done comes back.
    pub(super) fn give_back(&mut self, buffer: Vec<u8>) {
        self.spare = buffer;
    }
}

// Buffers that go round: what a job has brought back serves the next one, so that nothing is allocated while
// the log is written.
//
// Always true: what lies here is empty, or is emptied by whoever takes it.

/// For the segment that is opened, and the one that is sealed.
#[derive(Debug)]
pub(super) struct SegmentSpares {
    /// For the header of a segment, and its list of segments.
    pub(super) header: Vec<u8>,
    pub(super) live: Vec<SegmentRef>,
    /// For the seal of a segment.
    pub(super) seal: (Footer, Vec<u8>, Vec<(u64, BodyPart)>),
}

impl SegmentSpares {
    /// For segments of so many bytes.
    pub(super) fn new(segment_bytes: u32) -> Self {
        let seal = (Footer::default().with_room(segment_bytes), Vec::new(), Vec::new());
        Self { header: Vec::new(), live: Vec::new(), seal }
    }
}

/// For segments on their way out.
#[derive(Debug, Default)]
pub(super) struct CleanerSpares {
    /// Queues that are carried, and those that were.
    pub(super) draining: Vec<u64>,
    pub(super) carried: Vec<(u64, u64)>,
    /// The segments.
    pub(super) drained: Vec<u64>,
    /// For [`super::Index::carries`].
    pub(super) since: Vec<(u64, usize)>,
}

// Buffers that grow by zeroes.
//
// Why it exists: the standard library's `resize` writes them byte by byte in code that is made small, and
// every stored message, block and read buffer grows by them.

/// As many as are copied at once.
const ZEROES: [u8; 1024] = [0; 1024];

/// A buffer that can be made longer by zeroes.
pub(super) trait ResizeZeroed {
    /// Makes it so many bytes long: what is too much is cut off, what is missing is zeroes.
    fn resize_zeroed(&mut self, len: usize);
}

impl ResizeZeroed for Vec<u8> {
    fn resize_zeroed(&mut self, len: usize) {
        self.truncate(len);
        self.reserve(len - self.len());
        while self.len() < len {
            let more = ZEROES.len().min(len - self.len());
            self.extend_from_slice(&ZEROES[..more]);
        }
    }
}

#[cfg(test)]
mod zeroes_tests {
    use super::*;

    #[test]
    fn it_is_as_long_as_asked_for_and_what_is_new_is_zeroes() {
        for (before, after) in [(0, 0), (0, 1), (7, 3), (7, 1031), (5, 5000), (4096, 4096), (5000, 1)] {
            let mut buffer = vec![7; before];
            buffer.resize_zeroed(after);
            let kept = before.min(after);
            assert_eq!(buffer.len(), after);
            assert!(
                buffer[..kept].iter().all(|byte| *byte == 7) && buffer[kept..].iter().all(|byte| *byte == 0)
            );
        }
    }
}
