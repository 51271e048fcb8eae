//! The log as the loop's thread sees it: facts go in, jobs come out, results go in, "durable" comes out.
//!
//! ```text
//! append, settle → gathered (memory) → next_commit → CommitJob ~ helper ~ CommitDone → commit_done → Durable
//! ```
//!
//! Always true: at most one commit is on its way; what is gathered keeps its order; the index changes only
//! by what is durable; a failure is final: nothing more is handed out and nothing becomes durable.

use std::io;

use leveret_core::journal::Urgency;
use leveret_core::time::{Deadline, Now};

use super::access_state::AccessState;
use super::active_segment::ActiveSegment;
use super::cleaning::Cleaner;
use super::commit::{BLOCK_BYTES, padded};
use super::counters::Counters;
use super::footer::Footer;
use super::gathering::Gathering;
use super::identity::Identity;
use super::index::Index;
use super::jobs::CommitJob;
use super::names::Footers;
use super::pins::Pins;
use super::place::Position;
use super::read_back::Scratch;
use super::record::{self, Message, Range, Ranges, Record};
use super::schedule::Schedule;
use super::segment::SegmentRef;
use super::settings::Settings;
use super::settling::Settling;
use super::slots::{Slot, Slots};
use super::space::Space;

/// Why something is not appended now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// The commit that gathers is full; ask again when the next one has been handed out.
    Gathering,
    /// `disk_limit` is reached; ask again when segments have become free.
    Disk,
    /// It fits into no commit.
    TooLarge,
}

/// The store's disk failed; the process must end. Carries what the system said.
#[derive(Debug)]
pub struct Failed(pub io::Error);

/// A commit on its way.
#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) position: Position,
    pub(super) at: u32,
    /// Where in its bytes the gathered settlements begin.
    pub(super) settled_from: usize,
    pub(super) opens: Option<(SegmentRef, u32)>,
    /// The segment that it seals, 0 for none.
    pub(super) seals: u64,
    /// Queues whose settlements are completely written again with this commit, and since which segment.
    pub(super) carried: Vec<(u64, u64)>,
    /// The segments that it says have left.
    pub(super) drained: Vec<u64>,
    /// The commit itself, while it waits for room on the file system.
    pub(super) postponed: Option<CommitJob>,
}

/// Who writes, and how far this life of the store has come: what heads of segments and commits say.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) identity: Identity,
    /// Which start of the broker this is, from 1.
    pub(super) life: u32,
    /// The number of the newest commit, over all lives.
    pub(super) number: u64,
    /// Broker time when this life began, in milliseconds.
    pub(super) time_base_ms: u64,
    /// How many commits before it the next one repeats.
    pub(super) covers: u32,
}

/// What is kept for whoever reads messages back, or copies the files.
#[derive(Debug)]
pub(super) struct Reading {
    /// The buffers for the next fetch.
    pub(super) spare: Option<Scratch>,
    pub(super) pins: Pins,
}

/// The log.
#[derive(Debug)]
pub struct Log {
    pub(super) settings: Settings,
    pub(super) writer: Writer,
    pub(super) index: Index,
    /// The files, and who may use the last of them.
    pub(super) space: Space,
    pub(super) gathering: Gathering,
    /// Settlements that wait beside what gathers.
    pub(super) settling: Settling,
    pub(super) durable: Position,
    pub(super) in_flight: Option<InFlight>,
    pub(super) schedule: Schedule,
    pub(super) cleaner: Cleaner,
    pub(super) reading: Reading,
    pub(super) counters: Counters,
    pub(super) failed: bool,
    /// This start could not read all of it.
    pub(super) is_damaged: bool,
    /// Files of which this start could not read some blocks: their segments stay in the log, for a later start may read them.
    pub(super) refused_files: Vec<u32>,
    /// Since this start the disk has refused to read something.
    pub(super) has_refused_reads: bool,
    pub(super) access: AccessState,
}

/// What a log starts from.
pub(super) struct Start {
    pub(super) settings: Settings,
    pub(super) writer: Writer,
    pub(super) index: Index,
    pub(super) slots: Vec<Slot>,
    /// Those of the log that are shorter than a segment, or gone.
    pub(super) cut: Vec<u32>,
    pub(super) active: SegmentRef,
    pub(super) had_access: bool,
    pub(super) tail: u32,
    pub(super) sequence_max: u64,
    pub(super) written_before: u64,
    pub(super) footer: Footer,
    /// Records of the last accepted commit, to be written again.
    pub(super) again: Vec<u8>,
    pub(super) again_records: u32,
}

impl Log {
    pub(super) fn start(start: Start) -> Self {
        let settings = start.settings;
        let commit_bytes = (settings.commit_bytes as usize).max(padded(start.again.len() + BLOCK_BYTES));
        let slots = Slots::new(&start.slots, settings.segments_max, start.active.slot, start.cut);
        let active = ActiveSegment::new(
            (start.active, settings.segment_bytes),
            (start.tail, start.footer),
            start.sequence_max,
        );
        Self {
            writer: start.writer,
            space: Space::new(&settings, slots, active, &start.index),
            index: start.index,
            gathering: Gathering::new(commit_bytes, &start.again, start.again_records),
            settling: Settling::default(),
            durable: Position(0),
            in_flight: None,
            schedule: Schedule::new(&settings),
            cleaner: Cleaner::new(settings.commit_bytes as usize),
            reading: Reading { spare: Some(Scratch::new(settings.segment_bytes)), pins: Pins::default() },
            counters: Counters { written_before: start.written_before, ..Counters::default() },
            failed: false,
            is_damaged: false,
            refused_files: Vec::new(),
            has_refused_reads: false,
            access: AccessState::new(start.had_access),
            settings,
        }
    }

    /// Broker time in milliseconds: time added up over all lives.
    pub const fn time_ms(&self, now: Now) -> u64 {
        self.writer.time_base_ms + now.as_ms()
    }

    /// Everything up to this is durable.
    pub const fn durable(&self) -> Position {
        self.durable
    }

    /// What the log holds, as far as it is durable.
    pub const fn index(&self) -> &Index {
        &self.index
    }

    /// An id for the chunks of a large body.
    pub const fn take_body_id(&mut self) -> u64 {
        self.index.take_body_id()
    }

    /// What tells this store from others; may be shown and sent.
    pub const fn id(&self) -> [u8; 16] {
        self.writer.identity.id
    }

    /// This start's number, from 1.
    pub const fn life(&self) -> u32 {
        self.writer.life
    }

    /// The store's identity.
    pub const fn identity(&self) -> &Identity {
        &self.writer.identity
    }

    /// Whether this start could not read all of it.
    pub const fn is_damaged(&self) -> bool {
        self.is_damaged
    }

    /// Whether the disk has refused to read something since this start.
    pub const fn has_refused_reads(&self) -> bool {
        self.has_refused_reads
    }

    /// The footers of its segments, for whoever looks names and definitions up in them.
    pub(super) fn footers(&self) -> Footers<'_> {
        let (segment_bytes, seed) = (self.settings.segment_bytes, self.writer.identity.seed());
        Footers { index: &self.index, segment_bytes, seed }
    }

    /// Returns the number of awaited commits that waited for the sync budget, since the start, and when the last of
    /// them was handed out.
    pub const fn over_budget(&self) -> (u64, Now) {
        self.schedule.over_budget()
    }

    /// The files, and how much may be written to them.
    pub const fn space(&self) -> &Space {
        &self.space
    }

    /// Counters since start.
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// Bytes that all lives of the store wrote to the disk, zeros that prepare files included. What was
    /// written behind a kill to other files than the newest is not in it.
    pub const fn written_ever(&self) -> u64 {
        let Counters { written_before, bytes_written, bytes_zeroed, .. } = self.counters;
        written_before.saturating_add(bytes_written + bytes_zeroed)
    }

    /// Appends a message, a chunk, a definition or a mark to what gathers.
    ///
    /// # Errors
    /// There is no room now; nothing was changed.
    pub fn append(&mut self, record: &Record<'_>, urgency: Urgency, now: Now) -> Result<Position, Refused> {
        self.admit(record.bytes_max())?;
        let bytes = self.gathering.add(record);
        self.gathering.note_fresh(bytes);
        if let Record::Message(message) = record {
            self.count_payload(
                message,
                if let record::Body::Inline(body) = message.body { body.len() } else { 0 },
            );
        } else if let Record::Chunk { bytes, .. } = record {
            self.counters.payload_bytes += bytes.len() as u64;
        }
        Ok(self.note_appended(urgency, now))
    }

    /// Appends a message whose inline body `fill` copies into place; `message.body` is not looked at.
    ///
    /// # Errors
    /// There is no room now; nothing was changed.
    pub fn append_message(
        &mut self,
        message: &Message<'_>,
        body_bytes: usize,
        urgency: Urgency,
        now: Now,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<Position, Refused> {
        let message = Message { body: record::Body::Inline(&[]), ..*message };
        self.admit(Record::Message(message).bytes_max() + body_bytes)?;
        let bytes = self.gathering.add_with(|out| record::encode_message(&message, body_bytes, out, fill));
        self.gathering.note_fresh(bytes);
        self.count_payload(&message, body_bytes);
        Ok(self.note_appended(urgency, now))
    }

    /// Appends a fact that must find room even at the disk limit: what is deleted, what is marked.
    ///
    /// # Errors
    /// The commit that gathers is full; nothing was changed.
    pub fn append_reserved(
        &mut self,
        record: &Record<'_>,
        urgency: Urgency,
        now: Now,
    ) -> Result<Position, Refused> {
        self.admit_to_commit(record.bytes_max())?;
        if !self.access.note(record, &mut self.gathering) {
            return Ok(self.note_appended(urgency, now));
        }
        self.gathering.add(record);
        if let Record::Gone { .. } = record {
            self.gathering.note_frees();
        }
        Ok(self.note_appended(urgency, now))
    }

    /// Appends a part of a group: a chunk with the records that `fill` puts there, in so many bytes; `false`
    /// when it puts none, or the disk has no room now.
    pub(super) fn append_part(
        &mut self,
        body: u64,
        index: u32,
        now: Now,
        fill: impl FnOnce(&mut Vec<u8>, usize),
    ) -> bool {
        let taken = self.gathering.len() + self.space.settle_share() + record::RECORD_OVERHEAD_BYTES_MAX;
        let room = self.space.gather_bytes_max().saturating_sub(taken);
        if !self.space.has_disk_room(padded(taken + room)) {
            return false;
        }
        let mut bytes = 0;
        self.gathering.add_with(|out| bytes = record::encode_part(body, index, out, |out| fill(out, room)));
        if bytes == 0 {
            // What gathers is in its way.
            self.hurry();
            return false;
        }
        self.counters.payload_bytes += bytes as u64;
        self.note_appended(Urgency::Awaited, now);
        true
    }

    /// Appends settlements (rising, apart) to what gathers, without remembering them; `false` when they are
    /// better remembered ([`Log::settle`]), because room is scarce and they may merge with others.
    pub fn append_settled(&mut self, queue: u64, ranges: &[Range], now: Now) -> bool {
        let record = Record::Settled { queue, ranges: Ranges::List(ranges) };
        let is_scarce = self.space.is_short() || !self.settling.is_empty();
        if is_scarce || !self.has_room(record.bytes_max()) {
            return false;
        }
        self.gathering.add(&record);
        self.note_appended(Urgency::Lazy, now);
        true
    }

    /// Notes that offsets of a queue are done with. Always taken; written with one of the next commits.
    pub fn settle(&mut self, queue: u64, range: Range, urgency: Urgency, now: Now) -> Position {
        if range.is_empty() {
            return self.gathering.appended;
        }
        let (is_short, index) = (self.space.is_short(), &mut self.index);
        self.settling.insert(queue, range, self.gathering.appended, |fresh| {
            if is_short {
                index.note_pending(queue, fresh);
            }
        });
        self.note_appended(urgency, now)
    }

    /// Forgets chunks whose message will never be appended.
    pub fn drop_body(&mut self, body: u64) {
        self.index.drop_body_on_its_way(body, self.gathering.appended);
    }

    fn count_payload(&mut self, message: &Message<'_>, body_bytes: usize) {
        self.counters.payload_bytes += (message.key.len() + message.properties.len() + body_bytes) as u64;
    }

    pub(super) fn note_appended(&mut self, urgency: Urgency, now: Now) -> Position {
        self.cleaner.reckoning.note_said();
        self.gathering.appended.0 += 1;
        self.note(urgency, now);
        self.gathering.appended
    }

    /// Room for `bytes` in the commit that gathers, a share for settlements left free.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        self.gathering.len() + bytes + self.space.settle_share() <= self.space.gather_bytes_max()
    }

    /// Whether records of so many bytes are taken now.
    pub(super) fn admit(&mut self, bytes: usize) -> Result<(), Refused> {
        self.admit_to_commit(bytes)?;
        let commit = padded(self.gathering.len() + bytes + self.space.settle_share());
        if self.space.has_disk_room(commit) { Ok(()) } else { Err(Refused::Disk) }
    }

    #[inline]
    fn admit_to_commit(&mut self, bytes: usize) -> Result<(), Refused> {
        if bytes > self.space.record_bytes_max() {
            return Err(Refused::TooLarge);
        }
        if !self.has_room(bytes) {
            // What gathers should not wait for its window when others wait for it.
            self.hurry();
            return Err(Refused::Gathering);
        }
        Ok(())
    }

    /// Whether nothing can be written any more.
    pub const fn has_failed(&self) -> bool {
        self.failed
    }

    /// Whether a commit is on its way.
    pub const fn is_busy(&self) -> bool {
        self.in_flight.is_some()
    }

    /// Whether a commit waits for room; it is on its way nevertheless.
    pub fn is_postponed(&self) -> bool {
        self.in_flight.as_ref().is_some_and(|commit| commit.postponed.is_some())
    }

    /// Whether settlements wait that had no room in the last commit.
    pub fn has_settlements(&self) -> bool {
        !self.settling.is_empty()
    }

    /// Whether there is something for the next commit but settlements.
    pub(super) fn has_gathered(&self) -> bool {
        self.gathering.records() > 0 || self.access.is_due()
    }

    /// Puts the gathered settlements behind the gathered records, as many as fit; tells up to where
    /// everything is in the commit.
    pub(super) fn gather_settlements(&mut self, end: usize) -> Position {
        let gathering = &mut self.gathering;
        self.settling.drain(|queue, ranges| {
            let count = record::ranges_fitting(ranges, end.saturating_sub(gathering.len()));
            if count > 0 {
                gathering.add(&Record::Settled { queue, ranges: Ranges::List(&ranges[..count]) });
            }
            count
        });
        self.settling.said_through(self.gathering.appended)
    }

    pub(super) fn fail(&mut self, error: io::Error) -> Failed {
        self.failed = true;
        Failed(error)
    }

    /// Makes the next commit due at once, for a clean stop.
    pub fn flush(&mut self, now: Now) {
        if !self.is_idle() {
            self.schedule.set_due(now);
        }
    }

    /// Whether nothing is gathered and nothing is on its way.
    pub fn is_idle(&self) -> bool {
        self.in_flight.is_none() && !self.has_gathered() && self.settling.is_empty()
    }

    /// When [`Log::next_commit`] should be asked again if nothing else happens.
    pub fn deadline(&self) -> Deadline {
        if self.in_flight.is_some() || self.failed { Deadline::NEVER } else { self.schedule.due_at() }
    }

    /// Something of this urgency waits elsewhere to be appended when the next commit is made.
    pub fn note(&mut self, urgency: Urgency, now: Now) {
        self.schedule.note(urgency, now);
    }

    /// When the log should say how late it is, for those who wait for that over restarts.
    pub const fn time_deadline(&self) -> Deadline {
        self.schedule.time_deadline()
    }

    /// Nothing waits after all.
    pub const fn rest(&mut self) {
        self.schedule.rest();
    }

    /// Nothing may gather for long: the cleaner waits for room.
    pub(super) const fn hurry(&mut self) {
        self.schedule.hurry();
    }

    /// Segments that the cleaner has given up, for some of what is live in them cannot be read.
    pub fn segments_stuck(&self) -> usize {
        self.index.stuck()
    }

    /// How many bytes the index took when it became full, once each time.
    pub const fn take_index_overflow(&mut self) -> Option<usize> {
        self.space.weight.take_overflow()
    }

    /// When a full file system is to be asked for room again.
    pub fn ask_deadline(&self) -> Deadline {
        if self.failed { Deadline::NEVER } else { self.space.ask_deadline() }
    }
}
