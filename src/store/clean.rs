//! The cleaner: how segments leave the log.
//!
//! A segment leaves in three steps, each durable before the next: its live records are *copied* behind the
//! tail (when it has any), the settlements and deletions that may lie in it are *carried*, that is written
//! again, and the next header that is written leaves it out. The first step reads one commit at a time
//! through the read helper; the second needs no reading, for the index has all that is settled.
//!
//! Always true: a copy keeps its identity and its bytes; a segment is drained only when nothing in it is
//! live, so not before its copies are durable; nothing is carried that kills nothing any more.

use super::commit::{BLOCK_BYTES, COMMIT_HEADER_BYTES, Commit};
use super::index::Index;
use super::jobs::{ReadDone, ReadJob};
use super::log::{InFlight, Log, Position, SEGMENTS_RESERVED};
use super::record::{RECORD_OVERHEAD_BYTES_MAX, Ranges, Record};

/// The cleaner starts when no more than this many segments are free beside the reserved ones.
const CLEAN_BELOW_FREE: usize = 1;
/// A segment is worth copying when at most so many of 8 parts of its records are live.
const LIVE_EIGHTHS_MAX: u64 = 6;
/// The cleaner stops at so many runs of all queues: its copies may cut runs in two, and each takes memory.
const RUNS_MAX: usize = 32 << 10;
/// Room for ranges that makes carrying worth while.
const CARRY_RANGES_MIN: usize = 8;

/// A segment on its way out whose settlements are being carried.
#[derive(Debug)]
pub(super) struct Drain {
    segment: u64,
    /// Queues to carry, last first.
    queues: Vec<u64>,
    deletions: Vec<(Box<[u8]>, u64)>,
    /// The queue that is half carried: the end of its last range written, and the segment of its first.
    half: Option<(u64, u64)>,
}

impl Drain {
    pub(super) fn of(segment: u64, index: &Index, leaving: &[u64]) -> Self {
        let deletions = index.deletions_to_carry(segment, leaving);
        Self {
            segment,
            queues: index.queues_to_carry(segment, leaving).collect(),
            deletions: deletions.map(|(key, version)| (key.into(), version)).collect(),
            half: None,
        }
    }
}

/// A segment whose live records are being copied.
#[derive(Debug)]
pub(super) struct Cleaning {
    pub(super) segment: u64,
    slot: u32,
    /// The commit to read next, and the bytes of its records that are done.
    at: u32,
    skip: usize,
    /// The segment was read to its end; its copies are durable with this position.
    copied: Option<Position>,
    reading: bool,
}

impl Log {
    pub(super) fn is_cleaning_done_copying(&self) -> bool {
        self.cleaning.as_ref().is_some_and(|cleaning| cleaning.copied.is_some())
    }

    /// Writes again what is settled in queues that the draining segment may speak of, as far as it fits.
    pub(super) fn gather_carried(&mut self, in_flight: &mut InFlight) {
        let Some(mut drain) = self.drain.take() else {
            return;
        };
        while let Some((key, version)) = drain.deletions.last() {
            let record = Record::Defined { version: *version, key, value: None };
            if self.gather.len() + record.bytes_max() > self.settings.commit_bytes as usize {
                self.drain = Some(drain);
                return;
            }
            record.encode(&mut self.gather);
            self.gathered += 1;
            drain.deletions.pop();
        }
        while let Some(&queue) = drain.queues.last() {
            if !self.carry_queue(queue, &mut drain, in_flight) {
                self.drain = Some(drain);
                return;
            }
            drain.queues.pop();
        }
        in_flight.drained = Some(drain.segment);
    }

    /// Writes all that is settled in one queue; false when the commit was full before that.
    fn carry_queue(&mut self, queue: u64, drain: &mut Drain, in_flight: &mut InFlight) -> bool {
        let Some(entry) = self.index.queues().get(&queue) else {
            return true;
        };
        let end = self.settings.commit_bytes as usize;
        let room = end.saturating_sub(self.gather.len() + 2 * RECORD_OVERHEAD_BYTES_MAX) / 20;
        if room < CARRY_RANGES_MIN {
            return false;
        }
        let (from, since) = drain.half.take().unwrap_or((0, self.active.sequence));
        if entry.gone {
            Record::Gone { queue }.encode(&mut self.gather);
            self.gathered += 1;
            in_flight.carried.push((queue, since));
            return true;
        }
        let ranges = entry.settled.ranges();
        let ranges = &ranges[ranges.partition_point(|range| range.end <= from)..];
        let part = &ranges[..ranges.len().min(room)];
        if !part.is_empty() {
            Record::Settled { queue, ranges: Ranges::List(part) }.encode(&mut self.gather);
            self.gathered += 1;
        }
        if part.len() < ranges.len() {
            drain.half = Some((part.last().map_or(from, |range| range.end), since));
            return false;
        }
        if entry.delivered_through > 0 {
            Record::Marked { queue, offset: entry.delivered_through }.encode(&mut self.gather);
            self.gathered += 1;
        }
        in_flight.carried.push((queue, since));
        true
    }

    /// What the cleaner wants to read, if it has work and the read helper is free.
    pub fn next_clean_read(&mut self) -> Option<ReadJob> {
        if self.failed || self.read_spare.is_empty() {
            return None;
        }
        if self.cleaning.is_none() {
            self.cleaning = self.choose_victim();
        }
        let is_crowded = self.index.runs() >= RUNS_MAX;
        let cleaning = self.cleaning.as_mut()?;
        if let Some(position) = cleaning.copied {
            if position <= self.durable {
                let segment = cleaning.segment;
                self.cleaning = None;
                self.index.end_copying(segment);
                self.find_drain();
            }
            return None;
        }
        if cleaning.reading || is_crowded {
            return None;
        }
        cleaning.reading = true;
        Some(ReadJob { slot: cleaning.slot, at: cleaning.at, buffer: core::mem::take(&mut self.read_spare) })
    }

    /// Takes what was read and copies what is live in it, as far as there is room. What cannot be read
    /// stays where it is: it counts as live, so its segment stays too.
    pub fn clean_read_done(&mut self, done: ReadDone) {
        self.read_spare = done.buffer;
        let Some(mut cleaning) = self.cleaning.take() else {
            return;
        };
        cleaning.reading = false;
        let bytes = core::mem::take(&mut self.read_spare);
        let known = done.outcome.unwrap_or(0);
        self.copy_commit(&mut cleaning, &bytes[..known]);
        self.read_spare = bytes;
        let end = self.index.segments().get(&cleaning.segment).map_or(0, |segment| segment.bytes);
        if cleaning.at >= end && cleaning.copied.is_none() {
            cleaning.copied = Some(self.appended);
        }
        self.cleaning = Some(cleaning);
    }

    fn copy_commit(&mut self, cleaning: &mut Cleaning, bytes: &[u8]) {
        let commit = Commit::parse(bytes, self.identity.seed());
        let Some(commit) = commit.filter(|commit| commit.header.segment == cleaning.segment) else {
            cleaning.at += BLOCK_BYTES as u32;
            return;
        };
        let mut rest = &commit.records[cleaning.skip..];
        while let Ok((record, length)) = Record::parse(rest) {
            if self.index.is_live_in(&record, cleaning.segment) {
                if !self.has_room(length) {
                    self.hurry();
                    cleaning.skip = commit.records.len() - rest.len();
                    return;
                }
                self.gather.extend_from_slice(&rest[..length]);
                self.gathered += 1;
                self.appended.0 += 1;
                self.counters.bytes_copied += length as u64;
            }
            rest = &rest[length..];
        }
        cleaning.at += commit.bytes() as u32;
        cleaning.skip = 0;
        debug_assert!(commit.bytes() >= COMMIT_HEADER_BYTES, "commits are whole blocks");
    }

    /// The sealed segment with the smallest live part, when segments are short and it is small enough.
    fn choose_victim(&self) -> Option<Cleaning> {
        let free = self.segments_free() + self.leaving.len();
        let can_grow = self.slots.len() < self.settings.segments_max as usize;
        if self.drain.is_some() || can_grow || free > SEGMENTS_RESERVED + CLEAN_BELOW_FREE {
            return None;
        }
        let sealed = self.index.segments().iter().filter(|&(sequence, segment)| {
            *sequence != self.active.sequence
                && !self.leaving.contains(sequence)
                && segment.live > 0
                && !segment.stuck
                && segment.live * 8 <= segment.total * LIVE_EIGHTHS_MAX
        });
        let (&segment, found) =
            sealed.min_by_key(|(_, segment)| segment.live * 1000 / segment.total.max(1))?;
        // The header's length is not known here; blocks that are no commit are passed over one by one.
        let at = BLOCK_BYTES as u32;
        Some(Cleaning { segment, slot: found.slot, at, skip: 0, copied: None, reading: false })
    }
}
