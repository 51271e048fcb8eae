//! From what gathers to a commit job, and from its outcome to "durable".
//!
//! Always true: a commit that does not fit goes to a new segment, whose header lists every segment of the
//! log but those whose leaving is prepared; their files are free for use only when that header, and
//! the commit behind it, are durable. The same walk over records feeds the index in life and at recovery.

use crate::time::Now;

use super::clean::Drain;
use super::commit::{self, BLOCK_BYTES, COMMIT_HEADER_BYTES, CommitHeader, padded};
use super::footer::Trailer;
use super::index::{Index, Place};
use super::jobs::{CommitDone, CommitJob, Seal, Write};
use super::log::{Failed, InFlight, Log, Position, SEGMENTS_RESERVED, Slot};
use super::record::Record;
use super::segment::{SegmentHeader, SegmentRef};

impl Log {
    /// The next commit, when the helper is free and one is due: somebody waits, a window is over, or what
    /// gathers must make room.
    pub fn next_commit(&mut self, now: Now) -> Option<CommitJob> {
        if !self.is_due(now) {
            return None;
        }
        if self.segments_free() == 0 && !self.fits_active(self.settings.commit_bytes as usize) {
            return None;
        }
        if self.should_spare_the_last() {
            return None;
        }
        let settled_from = self.gather.len();
        let position = self.gather_settlements();
        let mut in_flight = InFlight {
            position,
            at: self.tail,
            settled_from,
            opens: None,
            seals: 0,
            carried: Vec::new(),
            drained: None,
        };
        self.gather_carried(&mut in_flight);
        if self.gathered == 0 && !self.is_starting {
            return self.end_empty(in_flight);
        }
        let job = self.build(&mut in_flight, now)?;
        self.counters.commits += 1;
        self.in_flight = Some(in_flight);
        self.after_handing_out(now);
        Some(job)
    }

    /// Takes the outcome of a commit; returns up to where everything is durable now.
    ///
    /// # Errors
    /// The disk failed: nothing more will become durable, and the process must end.
    pub fn commit_done(&mut self, done: CommitDone) -> Result<Position, Failed> {
        if let Err(error) = done.outcome {
            return Err(self.fail(error));
        }
        let Some(in_flight) = self.in_flight.take() else {
            return Ok(self.durable);
        };
        self.counters.bytes_written += done.bytes() as u64;
        self.counters.syncs += done.syncs();
        let CommitJob { seal, header, commit, .. } = done.job;
        if let Some((opened, header_bytes)) = in_flight.opens {
            self.index.add_segment(opened.sequence, opened.slot, header_bytes);
        }
        // What is settled comes first: so messages that nobody needs any more leave no trace in the index.
        let (segment, settled_from) = (self.active.sequence, in_flight.settled_from);
        let (at, first) = (in_flight.at, COMMIT_HEADER_BYTES);
        let (records, settled) = (&commit.bytes[first..settled_from], &commit.bytes[settled_from..]);
        apply_records(&mut self.index, settled, segment, at + settled_from as u32, |_| true);
        apply_records(&mut self.index, records, segment, at + first as u32, |_| true);
        self.index.set_bytes(self.active.sequence, self.tail);
        for (queue, since) in in_flight.carried {
            self.index.settled_again(queue, since);
        }
        if in_flight.opens.is_some() {
            self.free_left_out();
        }
        self.leaving.extend(in_flight.drained);
        self.durable = self.durable.max(in_flight.position);
        self.spare = commit.bytes;
        self.header_spare =
            header.map_or_else(|| core::mem::take(&mut self.header_spare), |write| write.bytes);
        if let Some(seal) = seal {
            self.index.set_parts(seal.trailer.sequence, seal.at, &seal.parts);
            self.seal_spare = (seal.noted, seal.bytes, seal.parts);
        }
        self.find_drain();
        Ok(self.durable)
    }

    /// A drain may turn out to have nothing to write: its segment leaves at once.
    fn end_empty(&mut self, in_flight: InFlight) -> Option<CommitJob> {
        self.leaving.extend(in_flight.drained);
        self.find_drain();
        None
    }

    /// Settlements that nobody waits for open the last free segment only when that empties another one, or
    /// when opening it frees one; until then they stay in memory and merge.
    fn should_spare_the_last(&self) -> bool {
        self.segments_free() < SEGMENTS_RESERVED
            && self.leaving.is_empty()
            && self.has_only_lazy_settlements()
            && !self.fits_active(padded(self.gather.len() + self.settle_share()))
            && !self.index.would_empty_a_segment(&self.settling)
    }

    fn build(&mut self, in_flight: &mut InFlight, now: Now) -> Option<CommitJob> {
        let length = padded(self.gather.len());
        let first = COMMIT_HEADER_BYTES as u32;
        self.footer.note_records(&self.gather[COMMIT_HEADER_BYTES..], self.tail + first);
        let (mut header, mut seal) = (None, None);
        if self.tail as usize + length + padded(self.footer.bytes_max())
            > self.settings.segment_bytes as usize
        {
            self.footer.undo();
            let slot = self.slots.iter().position(|slot| *slot == Slot::Free)? as u32;
            in_flight.seals = self.active.sequence;
            seal = self.seal(now);
            let (opened, write) = self.open_segment(slot, now);
            in_flight.opens = Some((opened, write.bytes.len() as u32));
            in_flight.at = self.tail;
            header = Some(write);
            self.footer.note_records(&self.gather[COMMIT_HEADER_BYTES..], self.tail + first);
        }
        self.number += 1;
        self.is_starting = false;
        let commit_header = CommitHeader {
            life: self.life,
            number: self.number,
            segment: self.active.sequence,
            time_ms: self.time_ms(now),
            records: core::mem::take(&mut self.gathered),
            covers: core::mem::take(&mut self.covers),
        };
        let bytes = core::mem::replace(&mut self.gather, core::mem::take(&mut self.spare));
        commit::begin(&mut self.gather);
        let commit = Write { slot: self.active.slot, at: self.tail, bytes };
        self.tail += length as u32;
        Some(CommitJob { seal, header, commit, commit_header, seed: self.identity.seed() })
    }

    /// The footer of the active segment, unless it was sealed by another life.
    fn seal(&mut self, now: Now) -> Option<Seal> {
        if self.tail == self.settings.segment_bytes || self.active.sequence == 0 {
            return None;
        }
        let trailer = Trailer {
            life: self.life,
            sequence: self.active.sequence,
            number: self.number,
            time_ms: self.time_ms(now),
        };
        let (empty, bytes, parts) = core::mem::take(&mut self.seal_spare);
        Some(Seal {
            slot: self.active.slot,
            segment_bytes: self.settings.segment_bytes,
            tail: self.tail,
            trailer,
            seed: self.identity.seed(),
            noted: self.footer.replace(empty),
            bytes,
            parts,
            at: 0,
        })
    }

    fn open_segment(&mut self, slot: u32, now: Now) -> (SegmentRef, Write) {
        let live = self.index.segments().iter().filter(|(sequence, _)| !self.leaving.contains(sequence));
        let live = live.map(|(&sequence, segment)| SegmentRef { sequence, slot: segment.slot }).collect();
        self.sequence_max += 1;
        self.active = SegmentRef { sequence: self.sequence_max, slot };
        self.slots[slot as usize] = Slot::Live;
        let header = SegmentHeader {
            identity: self.identity,
            segment_bytes: self.settings.segment_bytes,
            life: self.life,
            sequence: self.active.sequence,
            time_ms: self.time_ms(now),
            live,
        };
        let mut bytes = core::mem::take(&mut self.header_spare);
        header.encode(&mut bytes);
        self.tail = bytes.len() as u32;
        self.footer.clear();
        (self.active, Write { slot, at: 0, bytes })
    }

    /// The header that leaves them out is durable: their files may be used again.
    fn free_left_out(&mut self) {
        for sequence in core::mem::take(&mut self.leaving) {
            if let Some(segment) = self.index.segments().get(&sequence) {
                let is_pinned = self.pinned == Some(segment.slot);
                self.slots[segment.slot as usize] = if is_pinned { Slot::Pinned } else { Slot::Free };
                self.counters.segments_recycled += 1;
            }
            self.index.remove_segment(sequence);
        }
    }

    /// The oldest segment with nothing live in it starts to leave.
    pub(super) fn find_drain(&mut self) {
        if self.drain.is_some() {
            return;
        }
        let cleaning = self.cleaning.as_ref().map(|cleaning| cleaning.segment);
        let found = self.index.segments().iter().find(|&(sequence, segment)| {
            segment.live == 0
                && *sequence != self.active.sequence
                && cleaning != Some(*sequence)
                && !self.leaving.contains(sequence)
        });
        self.drain = found.map(|(&sequence, _)| Drain::of(sequence, &self.index, &self.leaving));
    }
}

/// Feeds those records of a commit that are wanted to the index; the first lies at byte `at` of its segment.
pub(super) fn apply_records(
    index: &mut Index,
    mut records: &[u8],
    segment: u64,
    mut at: u32,
    is_wanted: impl Fn(&Record<'_>) -> bool,
) {
    while let Ok((record, bytes)) = Record::parse_known(records) {
        if is_wanted(&record) {
            index.apply(&record, Place { segment, at, bytes: bytes as u32 });
        }
        records = &records[bytes..];
        at += bytes as u32;
    }
}

const _: () = assert!(BLOCK_BYTES > COMMIT_HEADER_BYTES);
