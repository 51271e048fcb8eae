//! From what gathers to a commit job, and from its outcome to "durable".
//!
//! Always true: a commit that does not fit goes to a new segment, whose header lists every segment of the
//! log; the file of a segment is free for use only when the commit that says it left is durable. The same
//! walk over records feeds the index in life and at recovery.

use std::io;

use leveret_core::time::Now;

use super::access_digest::DIGEST_RECORD_BYTES;
use super::access_file::Updated;
use super::access_state::access_places;
use super::commit::{BLOCK_BYTES, COMMIT_HEADER_BYTES, CommitHeader, Owner, padded};
use super::disk::Disk;
use super::footer::Trailer;
use super::jobs::{CommitDone, CommitJob, EndJob, Outcome, Reached, Seal, Write};
use super::log::{Failed, InFlight, Log};
use super::names;
use super::place::Position;
use super::record_walk::apply_records;
use super::report::Step;
use super::segment::{SegmentHeader, SegmentRef};
use super::slots::Slot;
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
        let names_bytes = names::room_kept(&self.index, self.settings.segment_bytes);
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
