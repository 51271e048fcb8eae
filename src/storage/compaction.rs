//! The cleaner: how segments leave the log.
//!
//! A segment leaves in two steps, the first durable before the second: its live records are *copied* behind
//! the tail (when it has any); the settlements and deletions that may lie in it are *carried*, that is
//! written again, and with the last of them a record says that it has left. The first step reads the segment
//! from its start to its last live record, each part of it once; the second needs no reading, for the index
//! has all that is settled. While there is room, all segments with nothing live in them leave together, with
//! a sync that the budget has left or a commit that is made anyway: so a deep queue that is deleted costs few
//! commits.
//!
//! Always true: a copy keeps its identity, and what is in it but for queues that are done with it; a segment
//! is drained only when nothing in it is live, so not before its copies are durable; nothing is carried that
//! kills nothing any more; segments that leave together leave in one commit, for what is settled in one may
//! lie in another; no copying is begun whose end may find no room.

use leveret_core::journal::Urgency;
use leveret_core::journal::definition::{ACCESS_WRITTEN_KEY, is_access};
use leveret_core::mem::sort;

use super::commit::{BLOCK_BYTES, COMMIT_HEADER_BYTES, Commit, claimed_length, padded};
use super::commit_builder::CleanerSpares;
use super::commit_builder::ResizeZeroed;
use super::index::Index;
use super::index::Segment;
use super::jobs::{ReadDone, ReadJob};
use super::log::Settings;
use super::log::{InFlight, Log};
use super::log::{Place, Position};
use super::reader::{self, Served};
use super::record::{
    Message, RECORD_OVERHEAD_BYTES_MAX, Range, Ranges, Record, Target, Targets, ranges_fitting,
};
use super::space::SEGMENTS_RESERVED;

/// The cleaner starts when no more than this many segments are free beside the reserved ones.
const CLEAN_BELOW_FREE: usize = 1;
/// Once it has started, it goes on until one in so many segments more is free: what it copies in one go lies
/// together, apart from what is published meanwhile, and what has lived for long mostly lives on.
const CLEAN_AHEAD_PART: usize = 16;
/// At most so many, so that publishers are held back for seconds only.
const CLEAN_AHEAD_MAX: usize = 8;
/// A segment is worth copying when what must be written for it takes at most so many percent of its bytes.
const WRITTEN_PERCENT_MAX: u64 = 96;
/// The same while it goes on though segments are not short any more.
const WRITTEN_AHEAD_PERCENT_MAX: u64 = 75;
/// The same with the last room there is: what gives less may not give enough for the next one.
const WRITTEN_LAST_PERCENT_MAX: u64 = 50;
/// While the cleaner is at work, what is new takes one of so many parts of a commit: so what has lived for
/// long lies together, apart from what may die soon.
const FRESH_PART: usize = 32;
/// About what a settled range takes when it is written again, in bytes.
const RANGE_BYTES: usize = 5;
/// Room in a commit that makes carrying worth while, in bytes.
const CARRY_BYTES_MIN: usize = 2 * RECORD_OVERHEAD_BYTES_MAX;
/// Ranges in a record that carries them: unpacked they lie on the stack.
const CARRY_RANGES: usize = 256;
/// The most bytes that are read at once, but for a longer commit; beyond `commit_bytes` only for one that its
/// checksum has proven.
const READ_BYTES_MAX: usize = 128 << 10;

impl Log {
    /// Whether the cleaner is to look for a segment to clean: something has changed since it last did.
    pub fn looks_for_work(&self) -> bool {
        self.cleaner.may_clean
            && !self.cleaner.is_cleaning()
            && !self.failed
            && !self.cleaner.buffer.is_empty()
    }

    /// Whether new messages of so many bytes should be left to the next commit, though this one may have
    /// room: the cleaner is at work and what is new has had its part, or they would not fit into the segment
    /// that the commit fills up. Never true of the first ones of a commit. Who appends all the same is
    /// served.
    pub fn yields(&mut self, bytes: usize) -> bool {
        let has_had_its_part = self.cleaner.is_cleaning()
            && self.gathering.fresh_bytes() + bytes > self.settings.commit_bytes as usize / FRESH_PART;
        let yields = self.gathering.fresh_bytes() > 0 && (has_had_its_part || self.overfills(bytes));
        if yields {
            self.hurry();
        }
        yields
    }

    /// Whether what gathers fills the active segment up, and would not fit with so many bytes more.
    #[inline]
    fn overfills(&self, bytes: usize) -> bool {
        let room = self.space.filling_room();
        self.gathering.len() <= room && self.gathering.len() + bytes + self.space.settle_share() > room
    }

    /// The segments with nothing live in them start to leave. While room is needed it is the oldest alone,
    /// for which the least is to be written again; and one with a deletion that must be is the only such one.
    pub(super) fn find_drain(&mut self) {
        if self.cleaner.drain.is_some()
            || self.in_flight.as_ref().is_some_and(|commit| !commit.drained.is_empty())
        {
            return;
        }
        let most = if self.space.needs_room() {
            1
        } else {
            Drain::segments_max(self.settings.commit_bytes as usize)
        };
        let cleaning = self.cleaner.cleaning.as_ref().map(|cleaning| cleaning.segment);
        let found = self.index.segments().iter().filter(|&(sequence, segment)| {
            segment.live == 0
                && *sequence != self.space.active.sequence()
                && cleaning != Some(*sequence)
                && !self.refused_files.contains(&segment.slot)
        });
        let mut leaving = core::mem::take(&mut self.cleaner.spares.drained);
        leaving.clear();
        for (&sequence, _) in found {
            if leaving.is_empty() || self.index.deletions_to_carry(sequence).next().is_none() {
                leaving.push(sequence);
            }
            if leaving.len() >= most {
                break;
            }
        }
        let Some(first) = leaving.first() else {
            self.cleaner.spares.drained = leaving;
            return;
        };
        self.index.set_drained(*first);
        self.cleaner.drain =
            Some(Drain::of(leaving, &self.index, core::mem::take(&mut self.cleaner.spares.draining)));
        self.hurry_to_leave();
    }

    /// Writes again what is settled in queues that the draining segment may speak of, as far as it fits.
    pub(super) fn gather_carried(&mut self, in_flight: &mut InFlight, end: usize) {
        let Some(mut drain) = self.cleaner.drain.take() else {
            return;
        };
        while let Some((key, version)) = drain.deletions.last() {
            let record = Record::Defined { version: *version, key, value: None };
            if self.gathering.len() + record.bytes_max() > end {
                self.cleaner.drain = Some(drain);
                return;
            }
            self.gathering.add(&record);
            if let Some((key, version)) = drain.deletions.pop_if(|(key, _)| is_access(key)) {
                self.access.carry_again(key, version);
            } else {
                drain.deletions.pop();
            }
        }
        while let Some(&queue) = drain.queues.last() {
            if !self.carry_queue(queue, &mut drain, in_flight, end) {
                self.cleaner.drain = Some(drain);
                return;
            }
            drain.queues.pop();
        }
        if self.gathering.len() + drain.segments.len() * LEFT_BYTES_MAX > end {
            self.cleaner.drain = Some(drain);
            return;
        }
        for &segment in &drain.segments {
            self.gathering.add(&Record::Left { segment });
        }
        in_flight.drained = drain.segments;
        self.cleaner.spares.draining = drain.queues;
    }

    /// Writes all that is settled in one queue; false when the commit was full before that.
    fn carry_queue(&mut self, queue: u64, drain: &mut Drain, in_flight: &mut InFlight, end: usize) -> bool {
        let Some(entry) = self.index.queues().get(&queue) else {
            return true;
        };
        let room = end.saturating_sub(self.gathering.len() + RECORD_OVERHEAD_BYTES_MAX);
        if room < CARRY_BYTES_MIN {
            return false;
        }
        let (mut from, since) = drain.half.take().unwrap_or((0, self.space.active.sequence()));
        if entry.gone {
            self.gathering.add(&Record::Gone { queue });
            in_flight.carried.push((queue, since));
            return true;
        }
        loop {
            let room = end.saturating_sub(self.gathering.len() + RECORD_OVERHEAD_BYTES_MAX);
            let mut part = heapless::Vec::<Range, CARRY_RANGES>::new();
            part.extend(entry.settled.iter_from(from).take(CARRY_RANGES));
            let fitting = &part[..ranges_fitting(&part, room)];
            if let Some(last) = fitting.last() {
                self.gathering.add(&Record::Settled { queue, ranges: Ranges::List(fitting) });
                from = last.end;
            }
            if fitting.len() < part.len() {
                drain.half = Some((from, since));
                return false;
            }
            if part.len() < CARRY_RANGES {
                break;
            }
        }
        if entry.delivered_through > 0 {
            self.gathering.add(&Record::DeliveredWatermark { queue, offset: entry.delivered_through });
        }
        if entry.delivered_below() < entry.delivered_through {
            let (offset, watermark) = (entry.delivered_below(), entry.delivered_through);
            self.gathering.add(&Record::WatermarkReset { queue, offset, watermark });
        }
        in_flight.carried.push((queue, since));
        true
    }

    /// Writes deletions in access that the last commit carried once more, for two commits are to have them.
    pub(super) fn gather_deletions_again(&mut self, end: usize) {
        let gathering = &mut self.gathering;
        while let Some((key, version)) =
            self.access.next_again(|record| gathering.len() + record.bytes_max() <= end)
        {
            gathering.add(&Record::Defined { version, key: &key, value: None });
        }
    }

    /// What the cleaner wants to read, if it has work and the read helper is free.
    pub fn next_clean_read(&mut self) -> Option<ReadJob> {
        if self.failed || self.cleaner.buffer.is_empty() {
            return None;
        }
        if let Some(job) = self.next_double() {
            return Some(job);
        }
        if self.cleaner.cleaning.is_none() {
            self.cleaner.cleaning = self.choose_victim();
            self.index.set_cleaned(self.cleaner.cleaning.as_ref().map_or(0, |cleaning| cleaning.segment));
        }
        let is_crowded = self.space.weight.is_crowded();
        // Settlements may wait for room that they cannot have before the cleaner goes on.
        let is_all_written = !self.has_gathered() && self.in_flight.is_none();
        let cleaning = self.cleaner.cleaning.as_mut()?;
        if let Some(position) = cleaning.copied {
            if position <= self.durable || is_all_written {
                let (segment, is_whole) = (cleaning.segment, cleaning.left > 0);
                self.cleaner.cleaning = None;
                self.give_buffer_back();
                self.index.set_cleaned(0);
                self.index.end_copying(segment, is_whole);
                self.find_drain();
            }
            return None;
        }
        if cleaning.reading || is_crowded || cleaning.waits_for == self.writer.number + 1 {
            return None;
        }
        // What had no room in one commit may be in the buffer still.
        self.copy_on();
        let cleaning = self.cleaner.cleaning.as_mut()?;
        if cleaning.copied.is_some() || cleaning.waits_for == self.writer.number + 1 {
            return None;
        }
        cleaning.reading = true;
        let (slot, at, wanted) = (cleaning.slot, cleaning.at, cleaning.wanted);
        self.give_buffer_back();
        let mut buffer = core::mem::take(&mut self.cleaner.buffer);
        let most = self.settings.commit_bytes as usize;
        buffer.resize_zeroed(wanted.min(most));
        Some(ReadJob {
            slot,
            at,
            buffer,
            longer: (wanted > most).then(|| (wanted, self.writer.identity.seed())),
        })
    }

    /// A commit may be longer than those of today, for settings change: then the buffer is, for that one.
    fn give_buffer_back(&mut self) {
        let most = self.settings.commit_bytes as usize;
        if self.cleaner.buffer.capacity() > most {
            self.cleaner.buffer = vec![0; most];
        }
    }

    /// Takes what was read and copies what is live in it, as far as there is room. What cannot be read
    /// stays where it is: it counts as live, so its segment stays too.
    pub fn clean_read_done(&mut self, done: ReadDone) {
        self.cleaner.buffer = done.buffer;
        if self.double_done(done.outcome.as_ref().map_or(0, |known| *known)) {
            return;
        }
        let Some(mut cleaning) = self.cleaner.cleaning.take().filter(|cleaning| cleaning.reading) else {
            panic!("a read is done that nobody asked for")
        };
        cleaning.reading = false;
        self.has_refused_reads |= done.outcome.is_err();
        let known = done.outcome.unwrap_or(0);
        self.counters.bytes_read_to_copy += known as u64;
        (cleaning.read, cleaning.asked) = ((cleaning.at, known), cleaning.wanted);
        if known < BLOCK_BYTES {
            if cleaning.is_careful {
                // Half of it may be copied already, when it could be read a moment ago.
                cleaning.skip = 0;
                cleaning.at += BLOCK_BYTES as u32;
            }
            cleaning.is_careful = true;
        }
        self.cleaner.cleaning = Some(cleaning);
        self.copy_on();
    }

    /// Bytes that the cleaner reads at once: an eighth of a segment, so that small segments are read in parts
    /// like large ones; never more than a commit has, which is what there is memory for.
    fn read_bytes(&self) -> usize {
        let Settings { segment_bytes, commit_bytes, .. } = self.settings;
        READ_BYTES_MAX.min(segment_bytes as usize / 8).min(commit_bytes as usize)
    }

    /// Copies what is live in the buffer, as far as there is room; says what to read next.
    fn copy_on(&mut self) {
        let Some(mut cleaning) = self.cleaner.cleaning.take() else { panic!("there is nothing to copy") };
        let bytes = core::mem::take(&mut self.cleaner.buffer);
        let end = self.index.segments().get(&cleaning.segment).map_or(0, |segment| segment.bytes);
        cleaning.waits_for = 0;
        while cleaning.left > 0 && cleaning.at < end && cleaning.waits_for == 0 {
            let (from, known) = cleaning.read;
            let known = bytes.get((cleaning.at - from) as usize..known).unwrap_or_default();
            let rest = (end - cleaning.at) as usize;
            let most = if cleaning.is_careful { BLOCK_BYTES } else { self.read_bytes().min(rest) };
            if known.len() < BLOCK_BYTES {
                cleaning.wanted = most;
                break;
            }
            let claimed = claimed_length(known).map_or(0, padded);
            let was_asked_for = cleaning.at == from && cleaning.asked >= claimed;
            if claimed > known.len() && claimed <= rest && !was_asked_for {
                cleaning.wanted = claimed.max(most);
                break;
            }
            self.copy_commit(&mut cleaning, known);
        }
        self.cleaner.buffer = bytes;
        if cleaning.waits_for == 0 && (cleaning.left == 0 || cleaning.at >= end) {
            cleaning.copied = Some(self.gathering.appended);
            self.hurry();
        }
        self.cleaner.cleaning = Some(cleaning);
    }

    fn copy_commit(&mut self, cleaning: &mut Cleaning, bytes: &[u8]) {
        let commit = Commit::parse(bytes, self.writer.identity.seed());
        let Some(commit) = commit.filter(|commit| commit.header.segment == cleaning.segment) else {
            match reader::served(bytes, self.writer.identity.seed(), cleaning.segment) {
                Some(served) => self.copy_served(cleaning, bytes, &served),
                None => {
                    // Half of it may be copied already, when it could be read a moment ago.
                    cleaning.skip = 0;
                    cleaning.at += BLOCK_BYTES as u32;
                }
            }
            return;
        };
        cleaning.is_careful = false;
        let mut rest = &commit.records[cleaning.skip..];
        while let Ok((record, length)) = Record::parse(rest) {
            if !self.copy_live(&record, &rest[..length], cleaning) {
                cleaning.skip = commit.records.len() - rest.len();
                return;
            }
            rest = &rest[length..];
        }
        cleaning.at += commit.bytes() as u32;
        cleaning.skip = 0;
        debug_assert!(commit.bytes() >= COMMIT_HEADER_BYTES, "commits are whole blocks");
    }

    /// Copies what is live of the good records of a damaged commit; then goes on block by block.
    fn copy_served(&mut self, cleaning: &mut Cleaning, bytes: &[u8], served: &Served) {
        for &(from, length) in &served.records {
            let skip = from - COMMIT_HEADER_BYTES;
            let Some(raw) = bytes.get(from..from + length).filter(|_| skip >= cleaning.skip) else {
                continue;
            };
            let Ok((record, _)) = Record::parse(raw) else { continue };
            if !self.copy_live(&record, raw, cleaning) {
                cleaning.skip = skip;
                return;
            }
        }
        cleaning.at += BLOCK_BYTES as u32;
        cleaning.skip = 0;
    }

    /// Copies a record as far as it is live; `false` when there is no room for it now.
    fn copy_live(&mut self, record: &Record<'_>, raw: &[u8], cleaning: &mut Cleaning) -> bool {
        let live = self.index.live_in(record, cleaning.segment);
        if live == 0 {
            return true;
        }
        let overfills = self.gathering.has_copies() && self.overfills(raw.len());
        if overfills || !self.has_room(raw.len()) || self.gathering.has_copy_of(record) {
            self.hurry();
            cleaning.waits_for = self.writer.number + 1;
            return false;
        }
        self.copy_record(record, raw, cleaning);
        cleaning.left = cleaning.left.saturating_sub(live);
        true
    }

    /// A copy is for those queues only that still need it here: else it would be as large as before for the
    /// sake of one, and look worth copying again.
    fn copy_record(&mut self, record: &Record<'_>, raw: &[u8], cleaning: &mut Cleaning) {
        if let Record::Defined { key, .. } = record
            && **key == ACCESS_WRITTEN_KEY
            && self.access.has_digest()
        {
            // The next commit has it anyway.
            self.access.note_digest_due();
            self.gathering.appended.0 += 1;
            return;
        }
        if let Record::Defined { .. } = record {
            self.gathering.note_access();
        }
        let copied = match record {
            Record::Message(message) if message.targets.len() > 1 => {
                cleaning.targets.clear();
                let live = message.targets.iter().filter(|to| self.index.is_held_in(to, cleaning.segment));
                cleaning.targets.extend(live);
                let targets = Targets::List(&cleaning.targets);
                self.gathering.add(&Record::Message(Message { targets, ..*message }))
            }
            _ => self.gathering.add_with(|bytes| bytes.extend_from_slice(raw)),
        };
        self.gathering.appended.0 += 1;
        self.gathering.note_copied(copied);
        self.counters.bytes_copied += copied as u64;
    }

    /// The most percent of a segment that may have to be written for it, when it is time to clean: while
    /// segments are short nearly all, else less until some more are free, and with the last room. A full
    /// index alone must not have what lies densely written again and again.
    fn percent_worth_writing(&mut self) -> Option<u64> {
        let spare = self.space.slots.spare();
        let low = SEGMENTS_RESERVED + CLEAN_BELOW_FREE;
        let high = low + (self.space.slots.most() / CLEAN_AHEAD_PART).min(CLEAN_AHEAD_MAX);
        let is_short = spare <= low;
        self.cleaner.cleans_ahead =
            is_short || self.space.weight.is_full() || self.cleaner.cleans_ahead && spare <= high;
        let percent = match spare {
            0 => WRITTEN_LAST_PERCENT_MAX,
            _ if is_short || self.space.weight.is_full_of_deleted() => WRITTEN_PERCENT_MAX,
            _ => WRITTEN_AHEAD_PERCENT_MAX,
        };
        self.cleaner
            .cleans_ahead
            .then_some(percent.min(WRITTEN_PERCENT_MAX - self.cleaner.reckoning.caution_percent()))
    }

    /// What the log has taken so far, in bytes: ends of segments that stay unused too, but no new messages.
    const fn taken_besides_new(&self) -> u64 {
        let segments = self.space.active.sequence() * self.settings.segment_bytes as u64;
        (segments + self.space.active.tail() as u64).saturating_sub(self.gathering.fresh_bytes_before())
    }

    /// The sealed segment that gives the most room for what is written for it, if there is one to be cleaned.
    fn choose_victim(&mut self) -> Option<Cleaning> {
        if self.cleaner.drain.is_some() {
            return None;
        }
        if !core::mem::take(&mut self.cleaner.may_clean) {
            return None;
        }
        let taken = self.taken_besides_new();
        self.cleaner.reckoning.learn(taken, self.settings.segment_bytes, self.space.active.sequence());
        if self.cleaner.reckoning.has_been_through(self.index.segments().len()) {
            return None;
        }
        let percent = self.percent_worth_writing()?;
        let (room, carries) = (
            self.space.room_to_clean() as u64,
            self.index.carries(core::mem::take(&mut self.cleaner.spares.since)),
        );
        let worth = |(&sequence, segment): (&u64, &Segment)| {
            let is_barren = self.cleaner.reckoning.is_barren(sequence);
            if sequence == self.space.active.sequence() || segment.live == 0 || segment.stuck || is_barren {
                return None;
            }
            let (ranges, segments) = carries.before(sequence);
            let carried = (ranges * RANGE_BYTES) as u64;
            let copied = self.space.copies_bytes(segment.live_bytes);
            let written = copied + carried / segments;
            let is_worth = written * 100 <= u64::from(segment.bytes) * percent;
            let has_room = copied + carried <= room;
            (is_worth && has_room).then(|| (written * 10_000 / u64::from(segment.bytes), sequence))
        };
        let best = self.index.segments().iter().filter_map(worth).min();
        self.cleaner.spares.since = carries.into_since();
        let (_, segment) = best?;
        self.cleaner.reckoning.note_chosen(taken);
        let found = self.index.segments().get(&segment)?;
        // The header's length is not known here; blocks that are no commit are passed over one by one.
        Some(Cleaning {
            segment,
            slot: found.slot,
            at: BLOCK_BYTES as u32,
            skip: 0,
            read: (BLOCK_BYTES as u32, 0),
            asked: 0,
            wanted: self.read_bytes(),
            is_careful: false,
            left: found.live,
            copied: None,
            reading: false,
            waits_for: 0,
            targets: Vec::new(),
        })
    }

    /// The next definition to read because it lies at one place only.
    pub(super) fn next_double(&mut self) -> Option<ReadJob> {
        // A full file system may not have the room that the limit promises.
        let is_scarce = self.space.is_short() && self.space.is_file_system_full();
        if self.cleaner.cleaning.is_some() || self.cleaner.drain.is_some() || is_scarce {
            return None;
        }
        if !self.cleaner.doubling.is_going {
            // Copies that are on their way are not known to be there yet.
            if !self.cleaner.doubling.is_due || self.cleaner.doubling.copied > self.durable {
                return None;
            }
            (self.cleaner.doubling.is_due, self.cleaner.doubling.is_going) = (false, true);
            self.cleaner.doubling.key.clear();
        }
        loop {
            let Some((key, definition)) =
                self.index.next_thin(&self.cleaner.doubling.key, self.space.active.sequence())
            else {
                self.cleaner.doubling.is_going = false;
                self.double_deletions();
                return None;
            };
            let (version, place, is_deleted) = (definition.version, definition.place, definition.deleted);
            let slot = self.index.segments().get(&place.segment)?.slot;
            let key = key.to_vec();
            if self.admit(place.bytes as usize).is_err() {
                return None;
            }
            self.cleaner.doubling.key.clone_from(&key);
            if is_deleted {
                self.copy_double(&Record::Defined { version, key: &key, value: None });
                continue;
            }
            self.cleaner.doubling.reading = Some((version, place));
            let mut buffer = core::mem::take(&mut self.cleaner.buffer);
            buffer.resize_zeroed(place.bytes as usize);
            return Some(ReadJob { slot, at: place.at, buffer, longer: None });
        }
    }

    /// Copies that queues are deleted, where messages of theirs lie elsewhere: those would come back with
    /// their names when the one segment that knows better is lost.
    fn double_deletions(&mut self) {
        let mut last = 0;
        while let Some(queue) = self.index.next_gone_once(last, self.space.active.sequence()) {
            if self.admit(RECORD_OVERHEAD_BYTES_MAX).is_err() {
                self.cleaner.doubling.is_due = true;
                return;
            }
            self.copy_double(&Record::Gone { queue });
            last = queue;
        }
    }

    /// Whether what was read is a definition, and copies it then. What cannot be read stays where it is.
    pub(super) fn double_done(&mut self, known: usize) -> bool {
        let Some((version, place)) = self.cleaner.doubling.reading.take() else { return false };
        let (bytes, key) =
            (core::mem::take(&mut self.cleaner.buffer), core::mem::take(&mut self.cleaner.doubling.key));
        let is_there = self.index.definitions().get(&*key).is_some_and(|definition| {
            !definition.deleted && definition.version == version && definition.place == place
        });
        if let Some(Ok((record, _))) = bytes.get(..known).map(Record::parse)
            && let Record::Defined { version: found, key: of, value: Some(_) } = record
            && (found, of, is_there) == (version, &*key, true)
        {
            if self.admit(place.bytes as usize).is_ok() && !self.gathering.has_copy_of(&record) {
                self.copy_double(&record);
            } else {
                self.cleaner.doubling.is_due = true;
            }
        }
        (self.cleaner.buffer, self.cleaner.doubling.key) = (bytes, key);
        true
    }

    fn copy_double(&mut self, record: &Record<'_>) {
        self.counters.bytes_doubled += self.gathering.add(record) as u64;
        if let Record::Defined { key, .. } = record
            && is_access(key)
        {
            self.gathering.note_access();
        }
        self.cleaner.doubling.copied = self.note_appended(Urgency::Lazy, self.schedule.asked_at());
        // What is written a second time is no news: the cleaner and this would keep each other busy for ever.
        self.cleaner.reckoning.note_no_news();
    }
}

// What the cleaner remembers of its work: the segments on their way out, and the one that it copies.

/// The most that a record takes that says that a segment has left, in bytes.
pub(super) const LEFT_BYTES_MAX: usize = 16;

/// Where the cleaner stands.
#[derive(Debug)]
pub(super) struct Cleaner {
    /// Segments that leave, and the one that is copied.
    pub(super) drain: Option<Drain>,
    pub(super) cleaning: Option<Cleaning>,
    /// Definitions that are copied because they lie at one place only.
    pub(super) doubling: Doubling,
    /// The cleaner has started, and goes on until some more segments are free.
    pub(super) cleans_ahead: bool,
    /// What the cleaner learned from the segments that it has cleaned.
    pub(super) reckoning: Reckoning,
    /// Something has changed since the cleaner looked for work.
    pub(super) may_clean: bool,
    /// What was read; empty while a read is on its way.
    pub(super) buffer: Vec<u8>,
    pub(super) spares: CleanerSpares,
}

impl Cleaner {
    /// A cleaner that has not looked for work yet, and reads so many bytes at once at most.
    pub(super) fn new(buffer_bytes: usize) -> Self {
        Self {
            drain: None,
            cleaning: None,
            doubling: Doubling::due(),
            cleans_ahead: false,
            reckoning: Reckoning::default(),
            may_clean: true,
            buffer: vec![0; buffer_bytes],
            spares: CleanerSpares::default(),
        }
    }

    /// Whether a segment is on its way out.
    pub(super) const fn is_cleaning(&self) -> bool {
        self.drain.is_some() || self.cleaning.is_some()
    }

    /// Whether a segment was read to its end, and leaves when its copies are durable.
    pub(super) fn is_done_copying(&self) -> bool {
        self.cleaning.as_ref().is_some_and(|cleaning| cleaning.copied.is_some())
    }
}

/// Segments on their way out whose settlements are being carried.
#[derive(Debug)]
pub(super) struct Drain {
    /// Rising.
    pub(super) segments: Vec<u64>,
    /// Queues to carry, last first.
    pub(super) queues: Vec<u64>,
    pub(super) deletions: Vec<(Box<[u8]>, u64)>,
    /// The queue that is half carried: the end of its last range written, and the segment of its first.
    pub(super) half: Option<(u64, u64)>,
}

impl Drain {
    /// But for the first, no segment has a deletion that must be written again.
    pub(super) fn of(segments: Vec<u64>, index: &Index, mut queues: Vec<u64>) -> Self {
        let first = segments.first().copied().unwrap_or(0);
        let deletions = index.deletions_to_carry(first);
        let deletions = deletions.map(|(key, version)| (key.into(), version)).collect();
        queues.clear();
        queues.extend(index.queues_to_carry(&segments).map(|(queue, _)| queue));
        Self { segments, queues, deletions, half: None }
    }

    /// How many segments may leave with one commit of so many bytes.
    pub(super) const fn segments_max(commit_bytes: usize) -> usize {
        commit_bytes / 8 / LEFT_BYTES_MAX
    }
}

/// A segment whose live records are being copied.
#[derive(Debug)]
pub(super) struct Cleaning {
    pub(super) segment: u64,
    pub(super) slot: u32,
    /// The commit to copy next, and the bytes of its records that are done.
    pub(super) at: u32,
    pub(super) skip: usize,
    /// What of the segment is in the buffer: so many bytes from this one on.
    pub(super) read: (u32, usize),
    /// How many were asked for.
    pub(super) asked: usize,
    /// Bytes to read next.
    pub(super) wanted: usize,
    /// The disk has refused to read here: no more is read at once than one commit.
    pub(super) is_careful: bool,
    /// Live records that are not copied yet, and perhaps some that are settled meanwhile.
    pub(super) left: u64,
    /// The segment was read to its end; its copies are durable with this position.
    pub(super) copied: Option<Position>,
    pub(super) reading: bool,
    /// There was no room any more in what gathered for the commit of this number.
    pub(super) waits_for: u64,
    pub(super) targets: Vec<Target>,
}

// What the cleaner has learned from the segments that it has cleaned: nothing must be copied for nothing
// again and again, and wear the card of a board on which nothing happens.
//
// Always true: without news the log is gone over once at most, for what is dead in it is gone by then; once
// a segment gave no room, what has been written since then is left alone, until one gives some or there is
// news.

/// A segment that took as much to clean as it gave lowers what is worth copying by so many percent for the
/// next ones, by so many at most, and one that gave room raises it by one again.
const CAUTION_STEP_PERCENT: u64 = 5;
const CAUTION_MAX_PERCENT: u64 = 46;

/// What came of the cleaner's work so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Reckoning {
    /// What the log had taken when the last one was chosen, what is new left out, in bytes.
    taken_before: Option<u64>,
    /// The first of those written since one gave no room.
    barren_from: Option<u64>,
    /// How often something was said, new or of what is done with; and how often by then.
    said: u64,
    said_then: u64,
    /// Segments cleaned since then.
    cleaned: usize,
    /// It is content with so many percent less: segments gave no room of late.
    caution_percent: u64,
}

impl Reckoning {
    /// Something was said, new or of what is done with.
    pub(super) const fn note_said(&mut self) {
        self.said += 1;
    }

    /// What was said last is no news: it was there before.
    pub(super) const fn note_no_news(&mut self) {
        self.said -= 1;
    }

    /// Learns from what the segment that was cleaned last has taken until it had left. `taken_bytes` is what
    /// the log has taken so far, but for what is new in it; `active` is the segment that is written.
    pub(super) fn learn(&mut self, taken_bytes: u64, segment_bytes: u32, active: u64) {
        if self.said_then != self.said {
            (self.said_then, self.barren_from, self.cleaned) = (self.said, None, 0);
        }
        let Some(before) = self.taken_before.take() else { return };
        if taken_bytes.saturating_sub(before) < segment_bytes.into() {
            self.barren_from = None;
            self.caution_percent = self.caution_percent.saturating_sub(1);
        } else {
            self.barren_from.get_or_insert(active);
            self.caution_percent = (self.caution_percent + CAUTION_STEP_PERCENT).min(CAUTION_MAX_PERCENT);
        }
    }

    /// Whether each of so many segments was cleaned since the last news.
    pub(super) const fn has_been_through(&self, segments: usize) -> bool {
        self.cleaned > segments
    }

    /// By how many percent less than otherwise may have to be written for a segment.
    pub(super) const fn caution_percent(&self) -> u64 {
        self.caution_percent
    }

    /// Whether a segment is of those that are left alone.
    pub(super) fn is_barren(&self, sequence: u64) -> bool {
        self.barren_from.is_some_and(|barren| sequence >= barren)
    }

    /// A segment was chosen.
    pub(super) const fn note_chosen(&mut self, taken_bytes: u64) {
        self.taken_before = Some(taken_bytes);
        self.cleaned += 1;
    }
}

// What a segment that leaves has written again: what the cleaner reckons with when it chooses one.
//
// Always true: nothing is reckoned too low, for it is the room that must be there.

impl Index {
    /// What is settled, to know at once what a segment that leaves has written again; in the memory of
    /// `since`.
    pub(super) fn carries(&self, mut since: Vec<(u64, usize)>) -> Carries {
        let settled = self.queues().values().filter(|queue| queue.settled_since != u64::MAX);
        since.clear();
        since.extend(settled.map(|queue| (queue.settled_since, 1 + queue.settled.len())));
        sort(&mut since);
        let mut ranges = 0;
        for (_, sum) in &mut since {
            ranges += *sum;
            *sum = ranges;
        }
        let oldest = since.first().map_or(u64::MAX, |(oldest, _)| *oldest);
        Carries { since, segments: self.segments().range(oldest..).count().max(1) as u64 }
    }
}

/// What is settled, by the oldest segment that tells of it.
pub(super) struct Carries {
    /// Segments, rising, and in how many ranges is settled what they and those before them are the first to
    /// tell of.
    since: Vec<(u64, usize)>,
    /// Segments that may tell of any: when it was written again, none of them does any more.
    segments: u64,
}

impl Carries {
    /// How many ranges, about and rather too many, are written again before `segment` leaves, and for how
    /// many segments at once.
    pub(super) fn before(&self, segment: u64) -> (usize, u64) {
        let end = self.since.partition_point(|(since, _)| *since <= segment);
        let ranges = end.checked_sub(1).map_or(0, |last| self.since[last].1);
        (ranges, self.segments)
    }

    pub(super) fn into_since(self) -> Vec<(u64, usize)> {
        self.since
    }
}

// Definitions lie twice, in different erase blocks: what exists must not hang on one block of a card.
//
// ```text
// declared           | N: definition |                      one block of the segment that fills
// as soon as may be  | N: definition, copy |                two blocks of it
// N is sealed        | N: copy | N + 1: copy |              two segments; the oldest counts no more
// ```
//
// A checkpoint of everything at each segment would cost what all definitions take, for ever. This costs two
// copies of what is defined, once, and one more when the cleaner has brought both into one segment: nothing
// beside the messages that it is for. Deletions are copied as well, as long as they kill something that lies
// elsewhere; that of a queue, as long as messages of it do.
//
// Always true: one definition is read at a time, by the helper; nobody waits for a copy, and it rides along
// with what is written within the settle window; copies get the room that publishers get and leave the
// reserve alone, but they come before the next segment is cleaned, which may bring both copies into one: so
// a limit that is nearly full for years has them in two as well; nothing is copied while the cleaner copies,
// which has the buffer; a copy is made of what is durable, so it lies in another commit than that.

/// How far the definitions have been gone through.
#[derive(Debug, Default)]
pub(super) struct Doubling {
    /// Something was defined or a segment was opened since they were gone through.
    pub(super) is_due: bool,
    /// They are being gone through.
    pub(super) is_going: bool,
    /// The key that was looked at last.
    pub(super) key: Vec<u8>,
    /// What is being read: its version, and where it lies.
    pub(super) reading: Option<(u64, Place)>,
    /// The copies made so far are durable with this.
    pub(super) copied: Position,
}

impl Doubling {
    /// Nobody knows yet what lies at one place only.
    pub(super) fn due() -> Self {
        Self { is_due: true, ..Self::default() }
    }
}
