//! Builds commit jobs from the pending commit, and applies their results.
//!
//! [`PendingCommit`] collects the records of the next commit. [`ActiveSegment`] is the segment that it is written to.
//!
//! # Invariants
//! - A commit that does not fit into the active segment goes to a new segment, whose header lists every
//!   segment of the log.
//! - The file of a removed segment is reused only after the commit that records the removal is durable.

use std::io;

use leveret_core::definition::is_access;
use leveret_core::time::Now;

use super::access::{DIGEST_RECORD_BYTES, UpdateResult, access_locations};
use super::commit::{self, BLOCK_BYTES, COMMIT_HEADER_BYTES, CommitHeader, Owner, padded};
use super::disk::Disk;
use super::disk_jobs::{CommitDone, CommitJob, EndJob, Outcome, Seal, SegmentWrite, WrittenPart};
use super::footer::{Footer, Trailer};
use super::log::LogPosition;
use super::log::{Failed, InFlight, Log};
use super::parts::BodyPart;
use super::queue_names;
use super::record::Record;
use super::segment::{SegmentHeader, SegmentRef};
use super::space::SlotUse;
use super::space::Space;

/// What [`Log::step`] has done.
pub(super) enum StepResult {
    /// A part of a segment was prepared.
    Prepared,
    /// A commit was written.
    Committed,
    /// There was nothing to do, or no space for it.
    Nothing,
}

impl Log {
    /// Returns the job of the next commit. Returns `None` if a commit is in flight or none is due. A commit is due if
    /// a publisher waits, a window has passed, or the pending records free space that is needed.
    pub fn next_commit(&mut self, now: Now) -> Option<CommitJob> {
        self.next_job(now, false)
    }

    /// Returns the job of the next commit, which is made even without records if it `may_be_empty`.
    fn next_job(&mut self, now: Now, may_be_empty: bool) -> Option<CommitJob> {
        if self.is_postponed() {
            return self.next_postponed(now);
        }
        if !self.is_due(now, may_be_empty) {
            return None;
        }
        self.yield_backup_pin();
        let most = self.commit_bytes_max()?;
        let end = if self.access.has_digest() { most - DIGEST_RECORD_BYTES } else { most };
        self.repeat_access_deletions(end);
        let settled_from = self.pending.len();
        let mut in_flight = InFlight {
            position: self.durable,
            settled_from,
            seals: 0,
            rewritten: core::mem::take(&mut self.compactor.buffers.rewritten),
            drained: Vec::new(),
            postponed: None,
        };
        if self.space.is_scarce() {
            // Settlements that a segment to be removed still contains are written first, because this frees the
            // segment.
            self.rewrite_settlements(&mut in_flight, end);
            in_flight.position = self.append_settlements(end);
        } else {
            in_flight.position = self.append_settlements(end);
            self.rewrite_settlements(&mut in_flight, end);
        }
        if !self.has_pending_records() && !may_be_empty && !self.must_commit() {
            self.compactor.buffers.rewritten = in_flight.rewritten;
            return None;
        }
        self.access.append_digest(&mut self.pending, &self.index, most);
        let job = self.build(&mut in_flight, now)?;
        self.counters.commits += 1;
        self.in_flight = Some(in_flight);
        self.after_handing_out(now);
        Some(job)
    }

    /// Returns an empty commit for a clean stop.
    ///
    /// A commit proves that the commit before it was complete. With the closing commit, recovery recognises later
    /// damage to the last commit with records. Otherwise such damage would look like a commit that a power cut left
    /// half written.
    ///
    /// Returns `None` if the commit would open a segment or take space that the next start may need. Also returns
    /// `None` if this epoch has written only its first commit, which repeats the last commit of the epoch before.
    pub fn closing_commit(&mut self, now: Now) -> Option<CommitJob> {
        if self.counters.commits < 2 || self.space.is_scarce() || !self.space.fits_active(BLOCK_BYTES) {
            return None;
        }
        self.empty_commit(now)
    }

    /// Returns a commit that only records the broker time.
    ///
    /// Returns `None` if the commit would open a reserved segment, or if a reserved segment is already in use. A full
    /// log of expiring messages needs this commit: without the recorded time, no message would be closer to its expiry
    /// after the next start.
    pub(super) fn empty_commit(&mut self, now: Now) -> Option<CommitJob> {
        let fits_beside = self.space.has_whole_reserve() && self.space.fits_active(BLOCK_BYTES);
        if self.space.is_scarce() && !fits_beside {
            return None;
        }
        self.make_due();
        self.next_job(now, true)
    }

    /// Returns the job that ends a clean stop. It records the last commit's number in files beside the log,
    /// where damage to the end of the log does not reach.
    pub(super) fn end(&self) -> Option<EndJob> {
        let owner = Owner { identity: self.writer.identity, segment_bytes: self.settings.segment_bytes };
        let only_repeated = self.counters.commits < 2;
        let job = EndJob { owner, number: self.writer.number, only_repeated };
        (self.access.keeps_files() && !self.failed && self.writer.number > 0).then_some(job)
    }

    /// Returns the postponed commit, for which the file system had no space, if it is time to retry. Returns `None`
    /// otherwise.
    fn next_postponed(&mut self, now: Now) -> Option<CommitJob> {
        self.schedule.requested_at = now;
        if self.failed || !self.space.slots.may_ask(now) {
            return None;
        }
        let deletable = self.space.slots.deletable_file();
        let postponed = self.in_flight.as_mut().and_then(|commit| commit.postponed.take());
        postponed.map(|job| CommitJob { deletable, ..job })
    }

    /// Applies the result of a commit and returns the position up to which everything is durable.
    ///
    /// If the file system had no space for the commit, the position does not change. [`Log::next_commit`]
    /// then returns the same commit again later.
    ///
    /// # Errors
    /// The disk failed: nothing more becomes durable, and the process must end.
    pub fn commit_done(&mut self, done: CommitDone) -> Result<LogPosition, Failed> {
        let deleted_slot = done.job.deletable.deleted_slot;
        if let Some(slot) = deleted_slot {
            self.space.slots.set(slot, SlotUse::Unusable);
            self.space.note_no_commit_room(self.schedule.requested_at);
        }
        match done.outcome {
            Outcome::Durable => {}
            Outcome::NoCapacity => {
                self.space.note_no_commit_room(self.schedule.requested_at);
                let Some(in_flight) = &mut self.in_flight else {
                    panic!("the result of a commit that was not handed out")
                };
                in_flight.postponed = Some(done.job);
                return Ok(self.durable);
            }
            Outcome::Failed(error) => return Err(self.fail(error)),
        }
        if deleted_slot.is_none() && self.space.is_file_system_full() {
            self.space.note_commit_room();
        }
        if done.job.updates_access_files {
            self.access.set_files_lost(done.job.access.is_lost);
        }
        let Some(in_flight) = self.in_flight.take() else {
            panic!("the result of a commit that was not handed out")
        };
        self.counters.bytes_written += done.bytes() as u64;
        self.counters.syncs += done.syncs();
        self.apply_commit(in_flight, done.job);
        self.start_drain();
        Ok(self.durable)
    }

    /// Applies a durable commit to the index, and takes the buffers of its job back.
    fn apply_commit(&mut self, in_flight: InFlight, job: CommitJob) {
        let CommitJob { seal, segment_header, commit, .. } = job;
        // A commit is written to the active segment, which stays the same until the commit is done.
        let segment = self.space.active.sequence();
        let changes_segments = segment_header.is_some() || !in_flight.drained.is_empty();
        if let Some(header) = &segment_header {
            self.index.add_segment(segment, header.slot, header.bytes.len() as u32);
        }
        // Settlements are applied before messages, so that a message settled in the same commit leaves no trace in
        // the index.
        let (first, settled_from) = (COMMIT_HEADER_BYTES, in_flight.settled_from);
        let (records, settled) = (&commit.bytes[first..settled_from], &commit.bytes[settled_from..]);
        self.index.apply_records(settled, segment, commit.at + settled_from as u32, |_| true);
        self.index.apply_records(records, segment, commit.at + first as u32, |_| true);
        self.index.set_bytes(segment, self.space.active.tail());
        let mut rewritten = in_flight.rewritten;
        for (queue, since) in rewritten.drain(..) {
            self.index.note_rewritten(queue, since);
        }
        self.compactor.buffers.rewritten = rewritten;
        if !in_flight.drained.is_empty() {
            self.free(in_flight.drained);
        }
        if self.space.is_scarce() {
            self.index.forget_pending();
            for (queue, settled) in self.settlements.iter() {
                settled.iter().for_each(|range| self.index.note_pending(queue, *range));
            }
        }
        self.durable = self.durable.max(in_flight.position);
        self.compactor.may_have_work = true;
        self.index.end_dropped(self.durable);
        self.pending.reuse_buffer(commit.bytes);
        self.space.buffers.header = segment_header
            .map_or_else(|| core::mem::take(&mut self.space.buffers.header), |write| write.bytes);
        if let Some(seal) = seal {
            self.index.set_parts(seal.trailer.sequence, seal.at, &seal.parts);
            self.space.buffers.seal = (seal.footer, seal.bytes, seal.parts);
        }
        let is_stale = self.space.index_memory.is_stale(&self.index);
        if changes_segments
            || is_stale
            || self.space.index_memory.has_only_last_eighth()
            || self.compactor.compaction.is_some()
        {
            self.measure_index();
        }
        self.compactor.replication.is_due |= changes_segments | self.index.take_defined();
    }

    /// Builds the commit from everything pending. Returns `None` if there is no segment with space for it.
    fn build(&mut self, in_flight: &mut InFlight, now: Now) -> Option<CommitJob> {
        let length = padded(self.pending.len());
        self.space.active.note(self.pending.record_bytes());
        let (mut segment_header, mut seal) = (None, None);
        let is_full = self.space.ends_active_early()
            || self.space.footer_ends_active()
            || !self.space.active.holds_with_footer(length);
        let slot = if is_full { self.space.slots.take_free() } else { None };
        if slot.is_none() && !self.space.active.holds(length) {
            self.space.active.undo();
            return None;
        }
        if let Some(slot) = slot {
            self.space.active.undo();
            in_flight.seals = self.space.active.sequence();
            seal = self.seal(now);
            segment_header = Some(self.open_segment(slot, now));
            self.space.active.note(self.pending.record_bytes());
        }
        self.writer.number += 1;
        let updates_access_files = self.access.note_built(self.pending.has_access);
        self.schedule.note_built(now);
        let commit_header = CommitHeader {
            epoch: self.writer.epoch,
            number: self.writer.number,
            segment: self.space.active.sequence(),
            time_ms: self.time_ms(now),
            records: self.pending.records(),
            repeats: core::mem::take(&mut self.writer.repeats),
            has_group: self.pending.has_group,
        };
        let commit = SegmentWrite {
            slot: self.space.active.slot(),
            at: self.space.active.tail(),
            bytes: self.pending.take(),
        };
        self.space.active.advance(length);
        let owner = Owner { identity: self.writer.identity, segment_bytes: self.settings.segment_bytes };
        Some(CommitJob {
            seal,
            segment_header,
            commit,
            commit_header,
            owner,
            updates_access_files,
            access_locations: (updates_access_files && self.access.are_files_lost())
                .then(|| access_locations(&self.index)),
            access: UpdateResult::default(),
            header_copy_bytes: 0,
            done: WrittenPart::Nothing,
            deletable: self.space.slots.deletable_file(),
        })
    }

    /// Returns the job that writes the footer of the active segment, or `None` if an earlier epoch sealed the
    /// segment.
    ///
    /// A segment with a block that the disk refused to read at this start gets no footer. The footer would lack the
    /// records in that block. A later start may be able to read the block, but would read the incomplete footer
    /// instead. An incomplete footer is not written either: a start then reads the whole segment.
    fn seal(&mut self, now: Now) -> Option<Seal> {
        let active = &self.space.active;
        if active.is_sealed()
            || active.footer().is_incomplete()
            || self.refused_files.contains(&active.slot())
        {
            return None;
        }
        let trailer = Trailer {
            epoch: self.writer.epoch,
            sequence: self.space.active.sequence(),
            number: self.number_synced(),
            time_ms: self.time_ms(now),
        };
        let (empty, bytes, parts) = core::mem::take(&mut self.space.buffers.seal);
        let mut footer = self.space.active.replace_footer(empty);
        let Space { naming, active, .. } = &mut self.space;
        naming.note(&mut footer, &self.index, active, self.settings.segment_bytes);
        Some(Seal {
            slot: self.space.active.slot(),
            segment_bytes: self.settings.segment_bytes,
            tail: self.space.active.tail(),
            trailer,
            seed: self.writer.identity.seed(),
            footer,
            bytes,
            parts,
            at: 0,
        })
    }

    /// Returns the number of the newest commit that is certainly durable.
    ///
    /// The last commit that a start found may exist only in the page cache. The same is true for the commits that it
    /// repeats, if several earlier epochs were killed right after their start.
    const fn number_synced(&self) -> u64 {
        if self.schedule.is_starting {
            self.writer.number.saturating_sub(self.writer.repeats as u64)
        } else {
            self.writer.number
        }
    }

    /// Opens a segment in the file `slot` and returns the write of its header.
    fn open_segment(&mut self, slot: u32, now: Now) -> SegmentWrite {
        let mut live = core::mem::take(&mut self.space.buffers.live);
        live.clear();
        let segments = self.index.segments().iter();
        live.extend(segments.map(|(&sequence, segment)| SegmentRef { sequence, slot: segment.slot }));
        self.space.active.open(slot);
        let header = SegmentHeader {
            has_access: self.access.is_there(),
            identity: self.writer.identity,
            segment_bytes: self.settings.segment_bytes,
            epoch: self.writer.epoch,
            sequence: self.space.active.sequence(),
            time_ms: self.time_ms(now),
            commits: self.number_synced(),
            written: self.bytes_written_total(),
            live,
        };
        let mut bytes = core::mem::take(&mut self.space.buffers.header);
        header.encode(&mut bytes);
        self.space.buffers.live = header.live;
        let names_bytes = queue_names::room_kept(&self.index, self.settings.segment_bytes);
        self.space.active.begin(bytes.len(), names_bytes);
        SegmentWrite { slot, at: 0, bytes }
    }

    /// Releases the files of segments whose removal from the log is durable.
    fn free(&mut self, left: Vec<u64>) {
        for segment in left.iter().filter_map(|sequence| self.index.segments().get(sequence)) {
            if self.reading.pins.has(segment.slot) {
                self.space.slots.set(segment.slot, SlotUse::Pinned);
            } else {
                self.space.slots.release(segment.slot);
            }
            self.counters.segments_recycled += 1;
        }
        self.compactor.kept_for_deletions.clear();
        self.index.remove_segments(&left);
        self.compactor.buffers.drain_segments = left;
        self.yield_backup_pin();
    }

    /// Runs the next job on the calling thread, because a start has no helper threads. Blocks.
    pub(super) fn step<D: Disk>(&mut self, disk: &mut D, now: Now) -> io::Result<StepResult> {
        if self.space.segments_free() == 0
            && let Some(job) = self.next_prepare()
        {
            self.prepare_done(job.run(disk)).map_err(|failed| failed.0)?;
            return Ok(StepResult::Prepared);
        }
        let Some(job) = self.next_commit(now) else { return Ok(StepResult::Nothing) };
        self.commit_done(job.run(disk)).map_err(|failed| failed.0)?;
        Ok(if self.is_postponed() { StepResult::Nothing } else { StepResult::Committed })
    }
}

const _: () = assert!(BLOCK_BYTES > COMMIT_HEADER_BYTES);

/// A commit that fills the segment up must have at least this fraction (1/8) of the largest commit's bytes to
/// be worth its sync.
const FILLING_DIVISOR: usize = 8;

/// The segment that is being written: the offset of its next commit, and the content of its footer.
///
/// # Invariants
/// - Commits lie back to back from the header on, and the next one goes to the tail.
/// - The footer covers the commits before the tail. In addition it covers the records last passed to
///   [`ActiveSegment::note`], until [`ActiveSegment::undo`] or [`ActiveSegment::advance`].
#[derive(Debug)]
pub(super) struct ActiveSegment {
    segment: SegmentRef,
    segment_bytes: u32,
    /// Offset of the next commit; the segment's size when it is sealed.
    tail: u32,
    footer: Footer,
    /// The highest sequence of any segment so far.
    sequence_max: u64,
}

impl ActiveSegment {
    /// Creates the active segment from the state that a start found. No segment had a sequence above `sequence_max`.
    pub(super) fn new(
        segment: SegmentRef,
        segment_bytes: u32,
        tail: u32,
        footer: Footer,
        sequence_max: u64,
    ) -> Self {
        Self { segment, segment_bytes, tail, footer, sequence_max }
    }

    /// Returns the segment's sequence and file.
    pub(super) const fn segment(&self) -> SegmentRef {
        self.segment
    }

    /// Returns the segment's sequence; 0 if there is no segment yet.
    pub(super) const fn sequence(&self) -> u64 {
        self.segment.sequence
    }

    /// Returns the slot of the segment's file.
    pub(super) const fn slot(&self) -> u32 {
        self.segment.slot
    }

    /// Returns the offset of the next commit.
    pub(super) const fn tail(&self) -> u32 {
        self.tail
    }

    /// Returns the content of the segment's footer so far.
    pub(super) const fn footer(&self) -> &Footer {
        &self.footer
    }

    /// Returns whether an earlier epoch sealed the segment, or there is no segment yet.
    pub(super) const fn is_sealed(&self) -> bool {
        self.tail == self.segment_bytes || self.segment.sequence == 0
    }

    /// Adds the records of the next commit, which is written at the tail, to the footer.
    pub(super) fn note(&mut self, records: &[u8]) {
        self.footer.note_records(records, self.tail + COMMIT_HEADER_BYTES as u32);
    }

    /// Undoes the last [`Self::note`], because the commit is written to another segment.
    pub(super) fn undo(&mut self) {
        self.footer.undo();
    }

    /// Moves the tail behind a commit of `bytes`, padding included.
    pub(super) const fn advance(&mut self, bytes: usize) {
        self.tail += bytes as u32;
    }

    /// Returns the footer to be written, and puts `empty` in its place for the next segment.
    pub(super) fn replace_footer(&mut self, empty: Footer) -> Footer {
        self.footer.replace(empty)
    }

    /// Starts the next segment in the file `slot`. [`Self::begin`] is called when the size of the header is known.
    pub(super) const fn open(&mut self, slot: u32) {
        self.sequence_max += 1;
        self.segment = SegmentRef { sequence: self.sequence_max, slot };
    }

    /// Sets the tail behind the header, and reserves `names_bytes` of the footer for queue names.
    pub(super) fn begin(&mut self, header_bytes: usize, names_bytes: usize) {
        self.tail = header_bytes as u32;
        self.footer.clear();
        self.footer.keep_room_for_names(names_bytes);
    }

    /// Returns the bytes behind the tail.
    const fn bytes_left(&self) -> usize {
        (self.segment_bytes - self.tail) as usize
    }

    /// Returns whether `commit_bytes` fit if the segment gets no footer.
    pub(super) const fn holds(&self, commit_bytes: usize) -> bool {
        commit_bytes <= self.bytes_left()
    }

    /// Returns whether `commit_bytes` and the footer fit. The commit's records are already in the footer.
    pub(super) const fn holds_with_footer(&self, commit_bytes: usize) -> bool {
        commit_bytes + padded(self.footer.bytes_max()) <= self.bytes_left()
    }

    /// Returns whether `commit_bytes` and the footer fit. The commit's records are not yet in the footer.
    pub(super) fn fits(&self, commit_bytes: usize) -> bool {
        let footer = padded(self.footer.bytes_max() + Footer::bytes_max_of(commit_bytes));
        commit_bytes + footer <= self.bytes_left()
    }

    /// Returns the maximum bytes of a commit in this segment. If `is_last`, no other segment is available, and the
    /// commit may use the space of the footer.
    pub(super) fn commit_room(&self, is_last: bool) -> usize {
        if is_last {
            return self.bytes_left();
        }
        let room = self.bytes_left().saturating_sub(padded(self.footer.bytes_max()));
        room / 2 / BLOCK_BYTES * BLOCK_BYTES
    }

    /// Returns about the maximum bytes of a commit that fills the segment up and leaves space for the footer.
    ///
    /// Returns 0 if such a commit is too small to be worth its sync. A commit of this size leaves little of the
    /// segment unused.
    #[inline]
    pub(super) fn filling_room(&self, commit_bytes_max: usize) -> usize {
        let (tail, footer) = (self.tail as usize, self.footer.bytes_max());
        let room = (self.segment_bytes as usize).saturating_sub(tail + footer);
        let commit =
            (room as u64 * tail as u64 / (tail + footer) as u64) as usize / BLOCK_BYTES * BLOCK_BYTES;
        let commit = commit.saturating_sub(BLOCK_BYTES);
        if commit * FILLING_DIVISOR < commit_bytes_max { 0 } else { commit }
    }

    /// Returns a low estimate of the bytes that still fit.
    pub(super) fn room_bytes(&self, commit_bytes_max: u32) -> u64 {
        let used = u64::from(self.tail) + self.footer.bytes_max() as u64 + 2 * u64::from(commit_bytes_max);
        u64::from(self.segment_bytes).saturating_sub(used)
    }
}

/// The pending commit: records that wait to be written together.
///
/// The buffer begins with space for the commit header and contains whole records from there on, so that a
/// commit only lacks its header.
#[derive(Debug)]
pub(super) struct PendingCommit {
    bytes: Vec<u8>,
    /// Number of records in `bytes`.
    records: u32,
    /// Bytes of new messages and chunks in this commit.
    pub(super) fresh_bytes: usize,
    /// Bytes of new messages and chunks in all commits before.
    pub(super) fresh_bytes_before: u64,
    /// The position of everything appended so far, settlements included.
    pub(super) appended: LogPosition,
    /// Bytes of copies made by the compactor.
    copied_bytes: usize,
    /// Whether some of the records form a group.
    pub(super) has_group: bool,
    /// Whether the commit contains definitions of users or permissions.
    pub(super) has_access: bool,
    /// Whether a record deletes a queue, which frees space.
    pub(super) frees_space: bool,
    /// Length of `bytes` right after the digest of access definitions was added; 0 if it was not added.
    digest_at: usize,
    /// The buffer of the last finished commit, for reuse.
    spare: Vec<u8>,
}

impl PendingCommit {
    /// Creates a buffer of `commit_bytes`, with the encoded records that a start writes again.
    pub(super) fn new(commit_bytes: usize, repeated_bytes: &[u8], repeated_count: u32) -> Self {
        let mut bytes = Vec::with_capacity(commit_bytes);
        commit::begin(&mut bytes);
        bytes.extend_from_slice(repeated_bytes);
        Self {
            bytes,
            records: repeated_count,
            fresh_bytes: 0,
            fresh_bytes_before: 0,
            appended: LogPosition(1),
            copied_bytes: 0,
            has_group: repeated_count > 0,
            has_access: repeated_count > 0,
            frees_space: false,
            digest_at: 0,
            spare: Vec::with_capacity(commit_bytes),
        }
    }

    /// Returns the number of bytes so far, the header included.
    pub(super) const fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Returns the number of records.
    pub(super) const fn records(&self) -> u32 {
        self.records
    }

    /// Returns the encoded records.
    pub(super) fn record_bytes(&self) -> &[u8] {
        &self.bytes[COMMIT_HEADER_BYTES..]
    }

    /// Appends a record and returns the number of bytes added.
    pub(super) fn add(&mut self, record: &Record<'_>) -> usize {
        self.add_with(|bytes| record.encode(bytes))
    }

    /// Appends the record that `encode` writes and returns the number of bytes added. If `encode` writes nothing, no
    /// record is counted.
    pub(super) fn add_with(&mut self, encode: impl FnOnce(&mut Vec<u8>)) -> usize {
        let start = self.bytes.len();
        encode(&mut self.bytes);
        let added = self.bytes.len() - start;
        self.records += u32::from(added > 0);
        added
    }

    /// Counts bytes of copies made by the compactor.
    pub(super) const fn note_copied(&mut self, bytes: usize) {
        self.copied_bytes += bytes;
    }

    /// Returns whether the compactor has added copies.
    pub(super) const fn has_copies(&self) -> bool {
        self.copied_bytes > 0
    }

    /// Returns whether all records are copies made by the compactor.
    pub(super) const fn has_only_copies(&self) -> bool {
        self.has_copies() && COMMIT_HEADER_BYTES + self.copied_bytes == self.bytes.len()
    }

    /// Returns whether this version of this access definition is pending already. A second copy must then wait,
    /// because the two copies of a definition belong in different commits.
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

    /// Marks the record added last as the digest of all access definitions.
    pub(super) const fn note_digest(&mut self) {
        self.digest_at = self.bytes.len();
    }

    /// Returns whether nothing was added after the digest.
    pub(super) const fn ends_with_digest(&self) -> bool {
        self.digest_at == self.bytes.len()
    }

    /// Returns the space for the header and the records behind it, and starts an empty commit for later records.
    pub(super) fn take(&mut self) -> Vec<u8> {
        let mut empty = core::mem::take(&mut self.spare);
        commit::begin(&mut empty);
        let bytes = core::mem::replace(&mut self.bytes, empty);
        self.fresh_bytes_before += self.fresh_bytes as u64;
        (self.records, self.fresh_bytes, self.copied_bytes, self.digest_at) = (0, 0, 0, 0);
        (self.has_group, self.has_access, self.frees_space) = (false, false, false);
        bytes
    }

    /// Keeps the buffer of a finished commit for reuse.
    pub(super) fn reuse_buffer(&mut self, buffer: Vec<u8>) {
        self.spare = buffer;
    }
}

/// Buffers of finished jobs that open and seal segments. They are reused, so that writing the log allocates
/// nothing.
#[derive(Debug)]
pub(super) struct SegmentBuffers {
    /// For the header of a segment.
    pub(super) header: Vec<u8>,
    /// For the list of segments in the header.
    pub(super) live: Vec<SegmentRef>,
    /// For the footer job of a segment.
    pub(super) seal: (Footer, Vec<u8>, Vec<(u64, BodyPart)>),
}

impl SegmentBuffers {
    pub(super) fn new(segment_bytes: u32, commit_bytes: u32) -> Self {
        let seal = (Footer::default().with_room(segment_bytes, commit_bytes), Vec::new(), Vec::new());
        Self { header: Vec::new(), live: Vec::new(), seal }
    }
}

/// Buffers for the removal of segments. They are reused, so that the compactor allocates nothing.
#[derive(Debug, Default)]
pub(super) struct CompactorBuffers {
    /// Buffer for [`super::compaction::Drain::queues`].
    pub(super) drain_queues: Vec<u64>,
    /// Buffer for [`InFlight::rewritten`].
    pub(super) rewritten: Vec<(u64, u64)>,
    /// Buffer for [`super::compaction::Drain::segments`].
    pub(super) drain_segments: Vec<u64>,
    /// For [`super::Index::rewrite_cost`].
    pub(super) ranges_up_to: Vec<(u64, usize)>,
}

/// A buffer of zeros, copied as often as necessary.
const ZEROES: [u8; 1024] = [0; 1024];

/// Resizing with zeros, faster than `Vec::resize`, which writes byte by byte when compiled for size. Every
/// stored message, block and read buffer is resized.
pub(super) trait ResizeZeroed {
    /// Sets the length to `len`: truncates, or appends zeros.
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
