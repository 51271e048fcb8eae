//! The compactor: copies live records and removes segments from the log.
//!
//! A segment is removed in two steps. The second begins when the first is durable:
//!
//! 1. The live records of the segment are *copied* to the end of the log. The compactor reads the segment once, from
//!    its start to its last live record. Only a commit that a read cuts off is read again. If live records are left that
//!    no whole commit contains, it reads the segment a second time and copies them from damaged commits.
//! 2. The segment is *drained*: settlements and deletions that it may contain are written again to the end of the log.
//!    The last of these commits records that the segment is removed. This step does not read the segment, because the
//!    index has all settlements.
//!
//! While many segments are free, all segments without live records are removed together: when the sync budget allows a
//! commit for that, or with a commit that is written anyway. So the deletion of a long queue costs few commits.
//!
//! The file also contains [`DefinitionReplication`], which keeps two copies of each definition.
//!
//! # Invariants
//! - A copy of a record has the same identity and content, except that target queues in which the message is settled are
//!   left out.
//! - A segment is drained only when none of its records is live. So the copies of its records are durable.
//! - A settlement is rewritten only while it still settles a record in the log.
//! - Segments that are removed together are removed by the same commit, because one may contain settlements of messages
//!   in another.
//! - Copying starts only if there is space for all copies.

use crate::pending_writes::Urgency;
use leveret_core::definition::{ACCESS_STORED_KEY, is_access};
use leveret_core::mem::sort;

use super::commit::{BLOCK_BYTES, COMMIT_HEADER_BYTES, Commit, CommitHeader, claimed_length, padded};
use super::commit_builder::CompactorBuffers;
use super::commit_builder::ResizeZeroed;
use super::damaged_commit::{DamagedCommit, read_damaged_commit};
use super::disk_jobs::{ReadDone, ReadJob};
use super::index::Index;
use super::index::Segment;
use super::log::Settings;
use super::log::{InFlight, Log};
use super::log::{LogPosition, RecordLocation};
use super::record::{
    Message, RECORD_OVERHEAD_BYTES_MAX, Range, Ranges, Record, Target, Targets, ranges_fitting,
};
use super::space::SEGMENTS_RESERVED;

/// The compactor starts when at most this number of segments is free in addition to the reserved ones.
const COMPACT_BELOW_FREE: usize = 1;
/// Once started, the compactor continues until another 1/16 of all segments is free. A longer pass is better because the
/// copies, which are old records and mostly stay live, are then in the same segments, separate from new messages.
const COMPACT_AHEAD_DIVISOR: usize = 16;
/// Maximum number of these additional segments, so that publishers are throttled for seconds only.
const COMPACT_AHEAD_MAX: usize = 8;
/// A segment is compacted if at most this percentage of its bytes must be written for that.
const WRITTEN_PERCENT_MAX: u64 = 96;
/// The limit while the compactor continues although enough segments are free.
const WRITTEN_AHEAD_PERCENT_MAX: u64 = 75;
/// The limit when no segment is free and none can be created: compacting a fuller segment might not free enough space
/// to compact the next one.
const WRITTEN_LAST_PERCENT_MAX: u64 = 50;
/// While the compactor is active, new messages take at most 1/32 of a commit. So old records are in segments of their
/// own, separate from new messages, which may soon be consumed.
const FRESH_DIVISOR: usize = 32;
/// Approximate bytes of a rewritten settled range.
const RANGE_BYTES: usize = 5;
/// Minimum space in a commit for rewriting settlements, in bytes.
const REWRITE_BYTES_MIN: usize = 2 * RECORD_OVERHEAD_BYTES_MAX;
/// Maximum number of ranges in a rewriting record. They are unpacked on the stack.
const REWRITE_RANGES: usize = 256;
/// Maximum number of ranges of repeated commits that a compaction remembers. A segment has one for each start of the
/// broker that lost commits in it.
const REPEATED_MAX: usize = 16;
/// Maximum number of bytes that the compactor reads at once, unless a commit is longer. More than `commit_bytes` is read
/// only for a commit whose checksum was verified before.
const READ_BYTES_MAX: usize = 128 << 10;

impl Log {
    /// Returns whether the compactor should choose a segment: it is idle, and records were settled or written since it
    /// last found no segment worth compacting.
    pub fn wants_compaction(&self) -> bool {
        self.compactor.may_have_work
            && !self.compactor.is_active()
            && !self.failed
            && !self.compactor.buffer.is_empty()
    }

    /// Returns whether new messages of `bytes` should wait for the next commit, even if the pending one has space for
    /// them, and if so makes the pending commit due.
    ///
    /// They should wait if the compactor is active and new messages have used up their part of the commit, or if the
    /// commit fills up the active segment and would not fit into it with them. The first new messages of a commit never
    /// wait. A caller may append the messages nevertheless.
    pub fn should_defer(&mut self, bytes: usize) -> bool {
        let is_part_used_up = self.compactor.is_active()
            && self.pending.fresh_bytes + bytes > self.settings.commit_bytes as usize / FRESH_DIVISOR;
        let defers = self.pending.fresh_bytes > 0 && (is_part_used_up || self.overfills(bytes));
        if defers {
            self.make_due();
        }
        defers
    }

    /// Returns whether the pending commit still fits into the active segment, but would not with `bytes` more.
    #[inline]
    fn overfills(&self, bytes: usize) -> bool {
        let room = self.space.filling_room();
        self.pending.len() <= room && self.pending.len() + bytes + self.space.settle_share() > room
    }

    /// Starts removing segments without live records.
    ///
    /// While free segments are scarce, only the oldest one is removed, because that requires the least rewriting. At
    /// most one of the segments contains a deletion that must be rewritten.
    pub(super) fn start_drain(&mut self) {
        if self.compactor.drain.is_some()
            || self.in_flight.as_ref().is_some_and(|commit| !commit.drained.is_empty())
        {
            return;
        }
        let needs_room = self.space.needs_room();
        let most = if needs_room { 1 } else { Drain::segments_max(self.settings.commit_bytes as usize) };
        // Deletions that fill more than half of a footer would end the active segment when they are written again. It would be
        // removed next, with the same deletions, and so on without end.
        let mut kept = core::mem::take(&mut self.compactor.kept_for_deletions);
        let rewritten_bytes_max = match needs_room {
            true => {
                kept.clear();
                usize::MAX
            }
            false => self.space.active.footer().records_bytes_max() / 2,
        };
        let compaction = self.compactor.compaction.as_ref().map(|compaction| compaction.segment);
        let found = self.index.segments().iter().filter(|&(sequence, segment)| {
            segment.live == 0
                && *sequence != self.space.active.sequence()
                && compaction != Some(*sequence)
                && !self.refused_files.contains(&segment.slot)
        });
        let mut segments = core::mem::take(&mut self.compactor.buffers.drain_segments);
        segments.clear();
        for (&sequence, _) in found {
            if kept.contains(&sequence) {
                continue;
            }
            let mut deletions = self.index.deletions_to_rewrite(sequence);
            if !segments.is_empty() {
                segments.extend(deletions.next().is_none().then_some(sequence));
            } else if bytes_of_deletions(deletions) <= rewritten_bytes_max {
                segments.push(sequence);
            } else {
                kept.push(sequence);
            }
            if segments.len() >= most {
                break;
            }
        }
        self.compactor.kept_for_deletions = kept;
        let Some(first) = segments.first() else {
            self.compactor.buffers.drain_segments = segments;
            return;
        };
        self.index.set_draining(*first);
        self.compactor.drain =
            Some(Drain::of(segments, &self.index, core::mem::take(&mut self.compactor.buffers.drain_queues)));
        self.schedule_removal();
    }

    /// Rewrites the settlements that the draining segments may contain, as far as they fit.
    pub(super) fn rewrite_settlements(&mut self, in_flight: &mut InFlight, end: usize) {
        let Some(mut drain) = self.compactor.drain.take() else {
            return;
        };
        while let Some((key, version)) = drain.deletions.last() {
            let record = Record::Defined { version: *version, key, value: None };
            if self.pending.len() + record.bytes_max() > end {
                self.compactor.drain = Some(drain);
                return;
            }
            self.pending.add(&record);
            if let Some((key, version)) = drain.deletions.pop_if(|(key, _)| is_access(key)) {
                self.access.repeat_deletion(key, version);
            } else {
                drain.deletions.pop();
            }
        }
        while let Some(&queue) = drain.queues.last() {
            if !self.rewrite_queue(queue, &mut drain, in_flight, end) {
                self.compactor.drain = Some(drain);
                return;
            }
            drain.queues.pop();
        }
        if self.pending.len() + drain.segments.len() * REMOVED_BYTES_MAX > end {
            self.compactor.drain = Some(drain);
            return;
        }
        for &segment in &drain.segments {
            self.pending.add(&Record::SegmentRemoved { segment });
        }
        in_flight.drained = drain.segments;
        self.compactor.buffers.drain_queues = drain.queues;
    }

    /// Rewrites all settlements of one queue. Returns `false` if the commit is full before that.
    fn rewrite_queue(&mut self, queue: u64, drain: &mut Drain, in_flight: &mut InFlight, end: usize) -> bool {
        let Some(entry) = self.index.queues().get(&queue) else {
            return true;
        };
        let room = end.saturating_sub(self.pending.len() + RECORD_OVERHEAD_BYTES_MAX);
        if room < REWRITE_BYTES_MIN {
            return false;
        }
        let (mut from, since) = drain.partial_queue.take().unwrap_or((0, self.space.active.sequence()));
        if entry.gone {
            self.pending.add(&Record::Gone { queue });
            in_flight.rewritten.push((queue, since));
            return true;
        }
        loop {
            let room = end.saturating_sub(self.pending.len() + RECORD_OVERHEAD_BYTES_MAX);
            let mut part = heapless::Vec::<Range, REWRITE_RANGES>::new();
            part.extend(entry.settled.iter_from(from).take(REWRITE_RANGES));
            let fitting = &part[..ranges_fitting(&part, room)];
            if let Some(last) = fitting.last() {
                self.pending.add(&Record::Settled { queue, ranges: Ranges::List(fitting) });
                from = last.end;
            }
            if fitting.len() < part.len() {
                drain.partial_queue = Some((from, since));
                return false;
            }
            if part.len() < REWRITE_RANGES {
                break;
            }
        }
        if entry.watermark > 0 {
            self.pending.add(&Record::DeliveredWatermark { queue, offset: entry.watermark });
        }
        if entry.delivered_below() < entry.watermark {
            let (offset, watermark) = (entry.delivered_below(), entry.watermark);
            self.pending.add(&Record::WatermarkReset { queue, offset, watermark });
        }
        in_flight.rewritten.push((queue, since));
        true
    }

    /// Writes again the access deletions that the last commit rewrote, because each must be in two commits.
    pub(super) fn repeat_access_deletions(&mut self, end: usize) {
        let pending = &mut self.pending;
        while let Some((key, version)) =
            self.access.next_repeated_deletion(|record| pending.len() + record.bytes_max() <= end)
        {
            pending.add(&Record::Defined { version, key: &key, value: None });
        }
    }

    /// Returns the next read of the compactor, if it has work and the read helper is free.
    pub fn next_compaction_read(&mut self) -> Option<ReadJob> {
        if self.failed || self.compactor.buffer.is_empty() {
            return None;
        }
        if let Some(job) = self.next_replication_read() {
            return Some(job);
        }
        if self.compactor.compaction.is_none() {
            self.compactor.compaction = self.choose_segment();
            self.index.set_compacting(
                self.compactor.compaction.as_ref().map_or(0, |compaction| compaction.segment),
            );
        }
        let pauses_compaction = self.space.index_memory.pauses_compaction();
        // Settlements may wait for space that exists only after the compactor has continued, so the position counts as
        // reached when nothing is pending or in flight.
        let is_all_written = !self.has_pending_records() && self.in_flight.is_none();
        let read_bytes = self.read_bytes();
        let compaction = self.compactor.compaction.as_mut()?;
        if let Some(position) = compaction.copied {
            if position > self.durable && !is_all_written {
                return None;
            }
            // Copying ends with records left only at the end of the segment.
            let was_read_to_its_end = compaction.left > 0;
            if was_read_to_its_end && compaction.has_damaged && !compaction.copies_damaged {
                compaction.rewind(read_bytes);
                (compaction.copies_damaged, compaction.copied) = (true, None);
            } else {
                let segment = compaction.segment;
                self.compactor.compaction = None;
                self.shrink_buffer();
                self.index.set_compacting(0);
                self.index.end_compaction(segment, was_read_to_its_end);
                self.start_drain();
                return None;
            }
        }
        if compaction.reading || pauses_compaction || compaction.waits_for_commit == self.writer.number + 1 {
            return None;
        }
        // The buffer may still hold records that did not fit into a commit.
        self.copy_on();
        let compaction = self.compactor.compaction.as_mut()?;
        if compaction.copied.is_some() || compaction.waits_for_commit == self.writer.number + 1 {
            return None;
        }
        compaction.reading = true;
        let (slot, at, next_read_bytes) = (compaction.slot, compaction.at, compaction.next_read_bytes);
        self.shrink_buffer();
        let mut buffer = core::mem::take(&mut self.compactor.buffer);
        let most = self.settings.commit_bytes as usize;
        buffer.resize_zeroed(next_read_bytes.min(most));
        Some(ReadJob {
            slot,
            at,
            buffer,
            longer: (next_read_bytes > most).then(|| (next_read_bytes, self.writer.identity.seed())),
        })
    }

    /// Shrinks the buffer after it has grown for one commit longer than `commit_bytes`: it was written before this
    /// setting was lowered.
    fn shrink_buffer(&mut self) {
        let most = self.settings.commit_bytes as usize;
        if self.compactor.buffer.capacity() > most {
            self.compactor.buffer = vec![0; most];
        }
    }

    /// Takes the result of a read and copies the live records in it, as far as there is space. Records that
    /// cannot be read count as live, so that their segment stays.
    pub fn compaction_read_done(&mut self, done: ReadDone) {
        self.compactor.buffer = done.buffer;
        if self.replication_read_done(done.outcome.as_ref().map_or(0, |read_bytes| *read_bytes)) {
            return;
        }
        let Some(mut compaction) = self.compactor.compaction.take().filter(|compaction| compaction.reading)
        else {
            panic!("the result of a read that was not requested")
        };
        compaction.reading = false;
        self.has_refused_reads |= done.outcome.is_err();
        let read_bytes = done.outcome.unwrap_or(0);
        self.counters.bytes_read_to_copy += read_bytes as u64;
        (compaction.read, compaction.requested_bytes) =
            ((compaction.at, read_bytes), compaction.next_read_bytes);
        if read_bytes < BLOCK_BYTES {
            if compaction.reads_single_blocks {
                // `skip` may be set: a part of this commit was copied when it could still be read. It does
                // not apply to the next block.
                compaction.skip = 0;
                compaction.at += BLOCK_BYTES as u32;
            }
            compaction.reads_single_blocks = true;
        }
        self.compactor.compaction = Some(compaction);
        self.copy_on();
    }

    /// Returns the bytes that the compactor reads at once: 1/8 of a segment, so that small segments are read in parts
    /// like large ones, but at most [`READ_BYTES_MAX`] and `commit_bytes`, the size of the buffer.
    fn read_bytes(&self) -> usize {
        let Settings { segment_bytes, commit_bytes, .. } = self.settings;
        READ_BYTES_MAX.min(segment_bytes as usize / 8).min(commit_bytes as usize)
    }

    /// Copies the live records in the buffer, as far as there is space, and determines the next read.
    fn copy_on(&mut self) {
        let Some(mut compaction) = self.compactor.compaction.take() else {
            panic!("there is nothing to copy")
        };
        let bytes = core::mem::take(&mut self.compactor.buffer);
        let end = self.index.segments().get(&compaction.segment).map_or(0, |segment| segment.bytes);
        compaction.waits_for_commit = 0;
        while compaction.left > 0 && compaction.at < end && compaction.waits_for_commit == 0 {
            let (from, read_bytes) = compaction.read;
            let unread = bytes.get((compaction.at - from) as usize..read_bytes).unwrap_or_default();
            let rest = (end - compaction.at) as usize;
            let most = if compaction.reads_single_blocks { BLOCK_BYTES } else { self.read_bytes().min(rest) };
            if unread.len() < BLOCK_BYTES {
                compaction.next_read_bytes = most;
                break;
            }
            let claimed = claimed_length(unread).map_or(0, padded);
            let was_asked_for = compaction.at == from && compaction.requested_bytes >= claimed;
            if claimed > unread.len() && claimed <= rest && !was_asked_for {
                compaction.next_read_bytes = claimed.max(most);
                break;
            }
            self.copy_commit(&mut compaction, unread);
        }
        self.compactor.buffer = bytes;
        if compaction.waits_for_commit == 0 && (compaction.left == 0 || compaction.at >= end) {
            compaction.copied = Some(self.pending.appended);
            self.make_due();
        }
        self.compactor.compaction = Some(compaction);
    }

    /// Copies the live records of the commit at the start of `bytes`.
    fn copy_commit(&mut self, compaction: &mut Compaction, bytes: &[u8]) {
        let commit = Commit::parse(bytes, self.writer.identity.seed());
        let Some(commit) = commit.filter(|commit| commit.header.segment == compaction.segment) else {
            match read_damaged_commit(bytes, self.writer.identity.seed(), compaction.segment) {
                Some(damaged) if compaction.copies_damaged && !compaction.is_repeated(&damaged.header) => {
                    self.copy_damaged_commit(compaction, bytes, &damaged);
                }
                damaged => {
                    compaction.has_damaged |= damaged.is_some();
                    // `skip` may be set: a part of this commit was copied when it could still be read. It does
                    // not apply to the next block.
                    compaction.skip = 0;
                    compaction.at += BLOCK_BYTES as u32;
                }
            }
            return;
        };
        compaction.reads_single_blocks = false;
        compaction.note_repeated(&commit.header);
        let mut rest = &commit.records[compaction.skip..];
        while let Ok((record, length)) = Record::parse(rest) {
            if !self.copy_live(&record, &rest[..length], compaction) {
                compaction.skip = commit.records.len() - rest.len();
                return;
            }
            rest = &rest[length..];
        }
        compaction.at += commit.bytes() as u32;
        compaction.skip = 0;
        debug_assert!(commit.bytes() >= COMMIT_HEADER_BYTES, "commits are whole blocks");
    }

    /// Copies the live records of a damaged commit that can still be served, then continues block by block.
    fn copy_damaged_commit(&mut self, compaction: &mut Compaction, bytes: &[u8], damaged: &DamagedCommit) {
        for &(from, length) in &damaged.records {
            let skip = from - COMMIT_HEADER_BYTES;
            let Some(raw) = bytes.get(from..from + length).filter(|_| skip >= compaction.skip) else {
                continue;
            };
            let Ok((record, _)) = Record::parse(raw) else { continue };
            if !self.copy_live(&record, raw, compaction) {
                compaction.skip = skip;
                return;
            }
        }
        compaction.at += BLOCK_BYTES as u32;
        compaction.skip = 0;
    }

    /// Copies a record as far as it is live. Returns `false` if there is no space for it now.
    fn copy_live(&mut self, record: &Record<'_>, raw: &[u8], compaction: &mut Compaction) -> bool {
        let live = self.index.live_count_in(record, compaction.segment);
        if live == 0 {
            return true;
        }
        let overfills = self.pending.has_copies() && self.overfills(raw.len());
        if overfills || !self.has_room(raw.len()) || self.pending.has_copy_of(record) {
            self.make_due();
            compaction.waits_for_commit = self.writer.number + 1;
            return false;
        }
        self.copy_record(record, raw, compaction);
        compaction.left = compaction.left.saturating_sub(live);
        true
    }

    /// Copies a record, and in a message keeps only the queues whose live message this record is. With all its
    /// queues, the copy for a single live queue would be as large as the original, and would look worth compacting
    /// again.
    fn copy_record(&mut self, record: &Record<'_>, raw: &[u8], compaction: &mut Compaction) {
        if let Record::Defined { key, .. } = record
            && **key == ACCESS_STORED_KEY
            && self.access.has_digest()
        {
            // The next commit contains the digest anyway.
            self.access.note_digest_due();
            self.pending.appended.0 += 1;
            return;
        }
        if let Record::Defined { .. } = record {
            self.pending.has_access = true;
        }
        let copied = match record {
            Record::Message(message) if message.targets.len() > 1 => {
                compaction.targets.clear();
                let live =
                    message.targets.iter().filter(|to| self.index.is_message_live_in(to, compaction.segment));
                compaction.targets.extend(live);
                let targets = Targets::List(&compaction.targets);
                self.pending.add(&Record::Message(Message { targets, ..*message }))
            }
            _ => self.pending.add_with(|bytes| bytes.extend_from_slice(raw)),
        };
        self.pending.appended.0 += 1;
        self.pending.note_copied(copied);
        self.counters.bytes_copied += copied as u64;
    }

    /// Returns the percentage of a segment's bytes that may be written for compacting it, or `None` if the
    /// compactor should not run.
    ///
    /// The percentage is [`WRITTEN_PERCENT_MAX`] while free segments are scarce, [`WRITTEN_AHEAD_PERCENT_MAX`] while
    /// the compactor continues although enough are free, and [`WRITTEN_LAST_PERCENT_MAX`] when none is free. A full
    /// index alone does not raise the percentage, because dense segments would be rewritten repeatedly.
    fn percent_worth_writing(&mut self) -> Option<u64> {
        let available = self.space.slots.available();
        let low = SEGMENTS_RESERVED + COMPACT_BELOW_FREE;
        let high = low + (self.space.slots.most() / COMPACT_AHEAD_DIVISOR).min(COMPACT_AHEAD_MAX);
        let are_free_scarce = available <= low;
        self.compactor.runs_ahead = are_free_scarce
            || self.space.index_memory.is_full()
            || self.compactor.runs_ahead && available <= high;
        let percent = match available {
            0 => WRITTEN_LAST_PERCENT_MAX,
            _ if are_free_scarce || self.space.index_memory.is_full_of_deleted() => WRITTEN_PERCENT_MAX,
            _ => WRITTEN_AHEAD_PERCENT_MAX,
        };
        self.compactor.runs_ahead.then_some(
            percent.min(WRITTEN_PERCENT_MAX - self.compactor.history.threshold_reduction_percent()),
        )
    }

    /// Returns the bytes that the log has used so far, without new messages. Unused ends of segments count.
    const fn used_bytes_without_new(&self) -> u64 {
        let segments = self.space.active.sequence() * self.settings.segment_bytes as u64;
        (segments + self.space.active.tail() as u64).saturating_sub(self.pending.fresh_bytes_before)
    }

    /// Returns a compaction of the sealed segment that costs the fewest written bytes per byte of the segment.
    /// Returns `None` if no segment is worth compacting now.
    fn choose_segment(&mut self) -> Option<Compaction> {
        if self.compactor.drain.is_some() {
            return None;
        }
        if !core::mem::take(&mut self.compactor.may_have_work) {
            return None;
        }
        let used_bytes = self.used_bytes_without_new();
        self.compactor.history.evaluate(
            used_bytes,
            self.settings.segment_bytes,
            self.space.active.sequence(),
        );
        if self.compactor.history.is_pass_complete(self.index.segments().len()) {
            return None;
        }
        let percent = self.percent_worth_writing()?;
        let (room, cost) = (
            self.space.room_to_compact() as u64,
            self.index.rewrite_cost(core::mem::take(&mut self.compactor.buffers.ranges_up_to)),
        );
        let worth = |(&sequence, segment): (&u64, &Segment)| {
            let is_unprofitable = self.compactor.history.is_unprofitable(sequence);
            if sequence == self.space.active.sequence()
                || segment.live == 0
                || segment.stuck
                || is_unprofitable
            {
                return None;
            }
            let (ranges, segments) = cost.before(sequence);
            let rewritten = (ranges * RANGE_BYTES) as u64;
            let copied = self.space.copies_bytes(segment.live_bytes);
            let written = copied + rewritten / segments;
            let is_worth = written * 100 <= u64::from(segment.bytes) * percent;
            let has_room = copied + rewritten <= room;
            (is_worth && has_room).then(|| (written * 10_000 / u64::from(segment.bytes), sequence))
        };
        let best = self.index.segments().iter().filter_map(worth).min();
        self.compactor.buffers.ranges_up_to = cost.into_buffer();
        let (_, segment) = best?;
        self.compactor.history.note_chosen(used_bytes);
        let found = self.index.segments().get(&segment)?;
        Some(Compaction::new(segment, found, self.read_bytes()))
    }

    /// Returns a job that reads the next definition that needs a second copy. Returns `None` if there is no such
    /// definition, or if replication must wait.
    pub(super) fn next_replication_read(&mut self) -> Option<ReadJob> {
        // Copies would take the last space of a full file system, even if `disk_limit` allows more.
        let is_scarce = self.space.is_scarce() && self.space.is_file_system_full();
        if self.compactor.compaction.is_some() || self.compactor.drain.is_some() || is_scarce {
            return None;
        }
        if !self.compactor.replication.is_running {
            // Until the copies of the last pass are durable, the index does not contain them, and a new pass would
            // copy the same definitions again.
            if !self.compactor.replication.is_due || self.compactor.replication.copied > self.durable {
                return None;
            }
            (self.compactor.replication.is_due, self.compactor.replication.is_running) = (false, true);
            self.compactor.replication.key.clear();
        }
        loop {
            let Some((key, definition)) =
                self.index.next_with_one_copy(&self.compactor.replication.key, self.space.active.sequence())
            else {
                self.compactor.replication.is_running = false;
                self.replicate_deletions();
                return None;
            };
            let (version, place, is_deleted) = (definition.version, definition.place, definition.deleted);
            let slot = self.index.segments().get(&place.segment)?.slot;
            let key = key.to_vec();
            if self.admit(place.bytes as usize).is_err() {
                return None;
            }
            self.compactor.replication.key.clone_from(&key);
            if is_deleted {
                self.append_second_copy(&Record::Defined { version, key: &key, value: None });
                continue;
            }
            self.compactor.replication.reading = Some((version, place));
            let mut buffer = core::mem::take(&mut self.compactor.buffer);
            buffer.resize_zeroed(place.bytes as usize);
            return Some(ReadJob { slot, at: place.at, buffer, longer: None });
        }
    }

    /// Copies deletions of queues whose messages lie in other segments. If the only segment with the deletion
    /// were lost, those messages would reappear under the queue's name.
    fn replicate_deletions(&mut self) {
        let mut last = 0;
        while let Some(queue) = self.index.next_deletion_with_one_copy(last, self.space.active.sequence()) {
            if self.admit(RECORD_OVERHEAD_BYTES_MAX).is_err() {
                self.compactor.replication.is_due = true;
                return;
            }
            self.append_second_copy(&Record::Gone { queue });
            last = queue;
        }
    }

    /// Handles a finished read if it was requested by definition replication. `known` is the number of bytes read.
    /// Appends a second copy of the definition that was read; a definition that cannot be read gets no second copy
    /// now. Returns `false` if the read was requested by the compactor.
    pub(super) fn replication_read_done(&mut self, known: usize) -> bool {
        let Some((version, place)) = self.compactor.replication.reading.take() else { return false };
        let (bytes, key) = (
            core::mem::take(&mut self.compactor.buffer),
            core::mem::take(&mut self.compactor.replication.key),
        );
        let is_there = self.index.definitions().get(&*key).is_some_and(|definition| {
            !definition.deleted && definition.version == version && definition.place == place
        });
        if let Some(Ok((record, _))) = bytes.get(..known).map(Record::parse)
            && let Record::Defined { version: found, key: of, value: Some(_) } = record
            && (found, of, is_there) == (version, &*key, true)
        {
            if self.admit(place.bytes as usize).is_ok() && !self.pending.has_copy_of(&record) {
                self.append_second_copy(&record);
            } else {
                self.compactor.replication.is_due = true;
            }
        }
        (self.compactor.buffer, self.compactor.replication.key) = (bytes, key);
        true
    }

    /// Appends the second copy of a definition or of a deletion.
    fn append_second_copy(&mut self, record: &Record<'_>) {
        self.counters.bytes_replicated += self.pending.add(record) as u64;
        if let Record::Defined { key, .. } = record
            && is_access(key)
        {
            self.pending.has_access = true;
        }
        self.compactor.replication.copied = self.note_appended(Urgency::Lazy, self.schedule.requested_at);
        // A second copy is not counted as an entry that makes compaction worthwhile. Otherwise compaction and
        // replication would cause each other forever.
        self.compactor.history.note_copied();
    }
}

/// Maximum bytes of a record that removes a segment.
pub(super) const REMOVED_BYTES_MAX: usize = 16;

/// Returns the bytes of the records that delete these definitions.
fn bytes_of_deletions<'k>(deletions: impl Iterator<Item = (&'k [u8], u64)>) -> usize {
    deletions.map(|(key, version)| Record::Defined { version, key, value: None }.bytes_max()).sum()
}

/// The state of the compactor.
#[derive(Debug)]
pub(super) struct Compactor {
    /// Segments that are being removed.
    pub(super) drain: Option<Drain>,
    /// The segment whose live records are being copied.
    pub(super) compaction: Option<Compaction>,
    /// The copying of definitions that need a second copy.
    pub(super) replication: DefinitionReplication,
    /// Whether the compactor has started because free segments were short or the index was full, and continues until
    /// 1/16 of all segments is free in addition ([`COMPACT_AHEAD_DIVISOR`]).
    pub(super) runs_ahead: bool,
    /// The results of past compactions.
    pub(super) history: CompactionHistory,
    /// Segments without live records that stay because of the deletions in them, until there is need of space or another
    /// segment was removed.
    pub(super) kept_for_deletions: Vec<u64>,
    /// Whether records were settled or written since the compactor last looked for a segment.
    pub(super) may_have_work: bool,
    /// Bytes read from the segment; empty while a read is in flight.
    pub(super) buffer: Vec<u8>,
    pub(super) buffers: CompactorBuffers,
}

impl Compactor {
    /// Creates a compactor that reads at most `buffer_bytes` at once.
    pub(super) fn new(buffer_bytes: usize) -> Self {
        Self {
            drain: None,
            compaction: None,
            replication: DefinitionReplication::due(),
            runs_ahead: false,
            history: CompactionHistory::default(),
            kept_for_deletions: Vec::new(),
            may_have_work: true,
            buffer: vec![0; buffer_bytes],
            buffers: CompactorBuffers::default(),
        }
    }

    /// Returns whether a segment is being compacted or removed.
    pub(super) const fn is_active(&self) -> bool {
        self.drain.is_some() || self.compaction.is_some()
    }

    /// Returns whether all live records of a segment have been copied. The segment is removed when the copies are
    /// durable.
    pub(super) fn is_done_copying(&self) -> bool {
        self.compaction.as_ref().is_some_and(|compaction| compaction.copied.is_some())
    }
}

/// Segments that are being removed, while their settlements are being rewritten.
#[derive(Debug)]
pub(super) struct Drain {
    /// Ascending.
    pub(super) segments: Vec<u64>,
    /// Queues whose settlements are still to be rewritten, in descending order.
    pub(super) queues: Vec<u64>,
    /// Deletions of definitions that are still to be rewritten: key and version.
    pub(super) deletions: Vec<(Box<[u8]>, u64)>,
    /// Progress in a partially rewritten queue: the end of the last range written, and the segment of the
    /// first.
    pub(super) partial_queue: Option<(u64, u64)>,
}

impl Drain {
    /// Starts removing `segments`. Only the first of them may have a deletion that must be rewritten.
    pub(super) fn of(segments: Vec<u64>, index: &Index, mut queues: Vec<u64>) -> Self {
        let first = segments.first().copied().unwrap_or(0);
        let deletions = index.deletions_to_rewrite(first);
        let deletions = deletions.map(|(key, version)| (key.into(), version)).collect();
        queues.clear();
        queues.extend(index.queues_to_rewrite(&segments).map(|(queue, _)| queue));
        Self { segments, queues, deletions, partial_queue: None }
    }

    /// Returns the maximum number of segments removed with one commit of `commit_bytes`.
    pub(super) const fn segments_max(commit_bytes: usize) -> usize {
        commit_bytes / 8 / REMOVED_BYTES_MAX
    }
}

/// A segment whose live records are being copied.
#[derive(Debug)]
pub(super) struct Compaction {
    pub(super) segment: u64,
    pub(super) slot: u32,
    /// Offset of the commit to copy next.
    pub(super) at: u32,
    /// Bytes of that commit's records that are copied already.
    pub(super) skip: usize,
    /// Offset and length of the part of the segment that is in the buffer.
    pub(super) read: (u32, usize),
    /// Number of bytes that were requested for the buffer.
    pub(super) requested_bytes: usize,
    /// Bytes to read next.
    pub(super) next_read_bytes: usize,
    /// Whether the disk has refused a read of this segment. The compactor then reads single blocks.
    pub(super) reads_single_blocks: bool,
    /// Whether damaged commits were found.
    has_damaged: bool,
    /// Whether damaged commits are copied, because all whole commits that could be read are. A power cut after a failed
    /// sync can bring back a part of a lost commit whose offsets later messages of the same segment have. So a record of
    /// a damaged commit is copied only if no whole commit has it.
    copies_damaged: bool,
    /// The ranges of commits that a start of the broker lost and wrote again, from the whole commits of the segment that
    /// say so. A damaged commit in such a range is not copied, and recovery does not use it either: its records may be
    /// those of lost messages. Beyond [`REPEATED_MAX`] ranges, its records are copied if no whole commit has their
    /// offsets.
    repeated: heapless::Vec<(u64, u64), REPEATED_MAX>,
    /// Number of live records still to be copied. It may include some that were settled meanwhile.
    pub(super) left: u64,
    /// The copies are durable when the log is durable up to this position. `None` until the segment was read to its
    /// end.
    pub(super) copied: Option<LogPosition>,
    pub(super) reading: bool,
    /// Number of the commit that must be built before more records can be copied, because it has no more space; 0 if
    /// the compactor need not wait.
    pub(super) waits_for_commit: u64,
    pub(super) targets: Vec<Target>,
}

impl Compaction {
    /// Creates the compaction of a segment that begins with a read of `read_bytes` bytes.
    fn new(segment: u64, found: &Segment, read_bytes: usize) -> Self {
        let mut compaction = Self {
            segment,
            slot: found.slot,
            at: 0,
            skip: 0,
            read: (0, 0),
            requested_bytes: 0,
            next_read_bytes: 0,
            reads_single_blocks: false,
            has_damaged: false,
            copies_damaged: false,
            repeated: heapless::Vec::new(),
            left: found.live,
            copied: None,
            reading: false,
            waits_for_commit: 0,
            targets: Vec::new(),
        };
        compaction.rewind(read_bytes);
        compaction
    }

    /// Notes the numbers of the commits that a whole commit repeats.
    fn note_repeated(&mut self, header: &CommitHeader) {
        let range = (header.number.saturating_sub(header.repeats.into()), header.number);
        if header.repeats > 0 && !self.copies_damaged {
            let _ = self.repeated.push(range);
        }
    }

    /// Returns whether a whole commit repeats the damaged commit with this header.
    fn is_repeated(&self, header: &CommitHeader) -> bool {
        self.repeated.iter().any(|(from, to)| (*from..*to).contains(&header.number))
    }

    /// Continues at the start of the segment, with a read of `read_bytes` bytes.
    const fn rewind(&mut self, read_bytes: usize) {
        // The length of the segment's header is not known here, so the compaction begins at the second block. Blocks
        // that contain no commit are skipped.
        (self.at, self.skip, self.read) = (BLOCK_BYTES as u32, 0, (BLOCK_BYTES as u32, 0));
        (self.requested_bytes, self.next_read_bytes) = (0, read_bytes);
        self.reads_single_blocks = false;
    }
}

/// A compaction that frees no space lowers the threshold for the next compactions by this many percentage points. A
/// compaction that frees space raises the threshold by 1 again.
const THRESHOLD_STEP_PERCENT: u64 = 5;
/// The threshold is lowered by at most this many percentage points.
const THRESHOLD_REDUCTION_MAX_PERCENT: u64 = 46;

/// The results of past compactions, which stop the compactor when it would only wear the flash.
///
/// Compacting a segment copies its live records to the end of the log and then removes the segment. If the
/// copies take as much space as the removal frees, the log merely rotates.
///
/// # Invariants
/// - While nothing is appended, each segment is compacted at most once.
/// - After a compaction that freed no space, segments written since then are left alone until a later
///   compaction frees space or something is appended.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct CompactionHistory {
    /// Bytes of the log, without new messages, when the current segment was chosen.
    used_bytes_before: Option<u64>,
    /// First segment that was written after a compaction freed no space.
    unprofitable_from: Option<u64>,
    /// Number of entries appended since the start that can make compaction worthwhile.
    appended: u64,
    /// Value of `appended` when the current pass over the log began.
    appended_at_pass_start: u64,
    /// Number of segments compacted in the current pass.
    compacted: usize,
    /// Percentage points by which the threshold is lowered at the moment.
    threshold_reduction_percent: u64,
}

impl CompactionHistory {
    /// Counts an entry that can make compaction worthwhile: a new record, or the end of an old one.
    pub(super) const fn note_appended(&mut self) {
        self.appended += 1;
    }

    /// Undoes the last [`Self::note_appended`], because the appended entry was a copy of an entry that the log
    /// already had.
    pub(super) const fn note_copied(&mut self) {
        self.appended -= 1;
    }

    /// Evaluates the compaction that has just finished.
    ///
    /// `used_bytes` is the size of the log now, without new messages; `active` is the segment being written.
    pub(super) fn evaluate(&mut self, used_bytes: u64, segment_bytes: u32, active: u64) {
        if self.appended_at_pass_start != self.appended {
            (self.appended_at_pass_start, self.unprofitable_from, self.compacted) = (self.appended, None, 0);
        }
        let Some(before) = self.used_bytes_before.take() else { return };
        if used_bytes.saturating_sub(before) < segment_bytes.into() {
            self.unprofitable_from = None;
            self.threshold_reduction_percent = self.threshold_reduction_percent.saturating_sub(1);
        } else {
            self.unprofitable_from.get_or_insert(active);
            self.threshold_reduction_percent = (self.threshold_reduction_percent + THRESHOLD_STEP_PERCENT)
                .min(THRESHOLD_REDUCTION_MAX_PERCENT);
        }
    }

    /// Returns whether all of `segments` have been compacted since something was last appended.
    pub(super) const fn is_pass_complete(&self, segments: usize) -> bool {
        self.compacted > segments
    }

    /// Returns the percentage points by which the threshold is lowered.
    pub(super) const fn threshold_reduction_percent(&self) -> u64 {
        self.threshold_reduction_percent
    }

    /// Returns whether `sequence` is left alone because compacting its predecessors freed nothing.
    pub(super) fn is_unprofitable(&self, sequence: u64) -> bool {
        self.unprofitable_from.is_some_and(|first| sequence >= first)
    }

    /// Records that a segment was chosen for compaction.
    pub(super) const fn note_chosen(&mut self, used_bytes: u64) {
        self.used_bytes_before = Some(used_bytes);
        self.compacted += 1;
    }
}

impl Index {
    /// Returns the cost of removing segments. The vector `ranges_up_to` is reused.
    pub(super) fn rewrite_cost(&self, mut ranges_up_to: Vec<(u64, usize)>) -> RewriteCost {
        let settled = self.queues().values().filter(|queue| queue.settled_since != u64::MAX);
        ranges_up_to.clear();
        ranges_up_to.extend(settled.map(|queue| (queue.settled_since, 1 + queue.settled.len())));
        sort(&mut ranges_up_to);
        let mut ranges = 0;
        for (_, sum) in &mut ranges_up_to {
            ranges += *sum;
            *sum = ranges;
        }
        let oldest = ranges_up_to.first().map_or(u64::MAX, |(oldest, _)| *oldest);
        RewriteCost { ranges_up_to, sharing_segments: self.segments().range(oldest..).count().max(1) as u64 }
    }
}

/// The cost of removing a segment: settlements that it may contain must be written again first. Never an
/// underestimate, because the compactor reserves this space.
pub(super) struct RewriteCost {
    /// Per segment, ascending: cumulative number of settled ranges first recorded in it or in an older
    /// segment.
    ranges_up_to: Vec<(u64, usize)>,
    /// Number of segments whose removal shares one rewrite of these ranges.
    sharing_segments: u64,
}

impl RewriteCost {
    /// Returns a high estimate of the number of ranges rewritten before `segment` is removed, and the number
    /// of segments that share this rewrite.
    pub(super) fn before(&self, segment: u64) -> (usize, u64) {
        let end = self.ranges_up_to.partition_point(|(recorded_in, _)| *recorded_in <= segment);
        let ranges = end.checked_sub(1).map_or(0, |last| self.ranges_up_to[last].1);
        (ranges, self.sharing_segments)
    }

    /// Returns the vector for reuse.
    pub(super) fn into_buffer(self) -> Vec<(u64, usize)> {
        self.ranges_up_to
    }
}

/// Keeps two copies of each definition in different erase blocks, so that one bad block of the flash does not
/// lose it. A retained message has one copy ([`has_two_copies`](super::index::has_two_copies)).
///
/// ```text
/// declared           | N: definition |                      one block of the active segment
/// soon after         | N: definition, copy |                two blocks of it
/// N is sealed        | N: copy | N + 1: copy |              two segments; the oldest copy does not count any more
/// ```
///
/// A checkpoint of all definitions in every segment would cost their full size for every segment. Replication costs
/// two copies per definition, and one more whenever compaction has moved both copies into one segment. A deletion is
/// copied as well, as long as another segment contains a record of the deleted object. The deletion of a queue is
/// copied as long as other segments contain messages of the queue.
///
/// # Invariants
/// - One definition is read at a time, by the read helper. A copy delays no other write, because it is only due
///   within the settle window.
/// - Copies use the space available to publishers, not the reserve.
/// - All copies are made before the next segment is compacted, because that compaction may move both copies of a
///   definition into one segment. A definition therefore gets two copies even if the log is nearly full for years.
/// - Nothing is replicated during compaction, because both use the same read buffer.
/// - Only durable records are copied, so a copy never lies in the commit of its original.
#[derive(Debug, Default)]
pub(super) struct DefinitionReplication {
    /// Whether a definition was written or a segment was opened since the last pass.
    pub(super) is_due: bool,
    /// Whether a pass over the definitions is in progress.
    pub(super) is_running: bool,
    /// The key of the definition that this pass examined last.
    pub(super) key: Vec<u8>,
    /// Version and location of the definition that is being read.
    pub(super) reading: Option<(u64, RecordLocation)>,
    /// The copies made so far are durable when the log is durable up to this position.
    pub(super) copied: LogPosition,
}

impl DefinitionReplication {
    /// Creates the state at a start. A pass is due, because the index has not been searched yet.
    pub(super) fn due() -> Self {
        Self { is_due: true, ..Self::default() }
    }
}
