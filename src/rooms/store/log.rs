//! The log as the loop's thread sees it: facts go in, jobs come out, results go in, "durable" comes out.
//!
//! ```text
//! append, settle → gathered (memory) → next_commit → CommitJob ~ helper ~ CommitDone → commit_done → Durable
//! ```
//!
//! Always true: at most one commit is on its way; what is gathered keeps its order; the index changes only
//! by what is durable; a failure is final: nothing more is handed out and nothing becomes durable.

use std::io;

use crate::journal::Urgency;
use crate::time::Now;

use super::access_state::AccessState;
use super::active_segment::ActiveSegment;
use super::cleaning::{Cleaning, Drain};
use super::commit::{self, BLOCK_BYTES, padded};
use super::counters::Counters;
use super::doubling::Doubling;
use super::footer::Footer;
use super::format::Format;
use super::gathering::Gathering;
use super::identity::Identity;
use super::index::Index;
use super::index_weight::IndexWeight;
use super::jobs::CommitJob;
use super::pins::Pins;
use super::place::Position;
use super::read_back::Scratch;
use super::reckoning::Reckoning;
use super::record::{self, Message, Range, Ranges, Record};
use super::schedule::Schedule;
use super::segment::SegmentRef;
use super::settings::Settings;
use super::settling::Settling;
use super::slots::{Slot, Slots};
use super::spares::Spares;

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
}

/// The log.
#[derive(Debug)]
pub struct Log {
    pub(super) settings: Settings,
    pub(super) identity: Identity,
    pub(super) life: u32,
    pub(super) number: u64,
    pub(super) time_base_ms: u64,
    pub(super) index: Index,
    pub(super) index_weight: IndexWeight,
    pub(super) slots: Slots,
    pub(super) active: ActiveSegment,
    pub(super) gathering: Gathering,
    /// Bytes of new messages and chunks in all commits so far.
    pub(super) fresh_bytes: u64,
    pub(super) spares: Spares,
    pub(super) settling: Settling,
    settling_first: Position,
    pub(super) appended: Position,
    pub(super) durable: Position,
    pub(super) in_flight: Option<InFlight>,
    /// The commit on its way, while it waits for room on the file system.
    pub(super) postponed: Option<CommitJob>,
    pub(super) schedule: Schedule,
    pub(super) drain: Option<Drain>,
    pub(super) cleaning: Option<Cleaning>,
    pub(super) doubling: Doubling,
    /// The cleaner has started, and goes on until some more segments are free.
    pub(super) cleans_ahead: bool,
    /// What the cleaner's looks came to.
    pub(super) reckoning: Reckoning,
    /// Something has changed since the cleaner looked for work.
    pub(super) may_clean: bool,
    /// Segments that are kept for others than those who wait for room.
    pub(super) segments_kept: usize,
    pub(super) read_spare: Vec<u8>,
    /// The buffers for the next fetch.
    pub(super) fetch_spare: Option<Scratch>,
    pub(super) pins: Pins,
    /// Bodies that no message will name, and what was appended when that was said.
    dropped: Vec<(u64, Position)>,
    pub(super) counters: Counters,
    pub(super) failed: bool,
    /// Since this start something of it was found to be missing, or the disk has refused to read.
    pub(super) is_damaged: bool,
    /// How many commits before it the next one repeats.
    pub(super) covers: u32,
    pub(super) access: AccessState,
}

/// What a log starts from.
pub(super) struct Start {
    pub(super) settings: Settings,
    pub(super) identity: Identity,
    pub(super) life: u32,
    pub(super) number: u64,
    pub(super) time_base_ms: u64,
    pub(super) index: Index,
    pub(super) slots: Vec<Slot>,
    /// Those of the log that are shorter than a segment, or gone.
    pub(super) cut: Vec<u32>,
    pub(super) active: SegmentRef,
    pub(super) format: Format,
    pub(super) wants: Format,
    pub(super) had_access: bool,
    pub(super) tail: u32,
    pub(super) sequence_max: u64,
    pub(super) written_before: u64,
    pub(super) footer: Footer,
    /// Records of the last accepted commit, to be written again.
    pub(super) again: Vec<u8>,
    pub(super) again_records: u32,
    /// How many commits the first one repeats.
    pub(super) covers: u32,
}

impl Log {
    pub(super) fn start(start: Start) -> Self {
        let commit_bytes =
            (start.settings.commit_bytes as usize).max(padded(start.again.len() + BLOCK_BYTES));
        Self {
            identity: start.identity,
            life: start.life,
            number: start.number,
            time_base_ms: start.time_base_ms,
            index_weight: IndexWeight::new(&start.index, &start.settings),
            index: start.index,
            slots: Slots::new(&start.slots, start.settings.segments_max, start.active.slot, start.cut),
            active: ActiveSegment::new(
                (start.active, start.settings.segment_bytes),
                (start.tail, start.footer),
                (start.format, start.wants),
                start.sequence_max,
            ),
            gathering: Gathering::new(commit_bytes, &start.again, start.again_records),
            fresh_bytes: 0,
            spares: Spares::new(start.settings.segment_bytes),
            settling: Settling::default(),
            settling_first: Position(0),
            appended: Position(1),
            durable: Position(0),
            in_flight: None,
            postponed: None,
            schedule: Schedule::new(&start.settings),
            drain: None,
            cleaning: None,
            doubling: Doubling::due(),
            cleans_ahead: false,
            reckoning: Reckoning::default(),
            may_clean: true,
            segments_kept: 0,
            read_spare: vec![0; start.settings.commit_bytes as usize],
            fetch_spare: Some(Scratch::new(start.settings.segment_bytes)),
            pins: Pins::default(),
            dropped: Vec::new(),
            counters: Counters { written_before: start.written_before, ..Counters::default() },
            failed: false,
            is_damaged: false,
            covers: start.covers,
            access: AccessState::new(start.had_access),
            settings: start.settings,
        }
    }

    /// Broker time in milliseconds: time added up over all lives.
    pub const fn time_ms(&self, now: Now) -> u64 {
        self.time_base_ms + now.as_ms()
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
        self.identity.id
    }

    /// This start's number, from 1.
    pub const fn life(&self) -> u32 {
        self.life
    }

    /// The version of the format that is written.
    pub const fn format(&self) -> Format {
        self.active.format()
    }

    /// The store's identity.
    pub const fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Whether, at this start or since, parts of it were found to be missing or could not be read.
    pub const fn is_damaged(&self) -> bool {
        self.is_damaged
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
        if !self.note_access(record) {
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
        let taken = self.gathering.len() + self.settle_share() + record::RECORD_OVERHEAD_BYTES_MAX;
        let room = self.gather_bytes_max().saturating_sub(taken);
        if !self.has_disk_room(padded(taken + room)) {
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
        let is_scarce = self.is_short() || !self.settling.is_empty();
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
            return self.appended;
        }
        if self.settling.is_empty() {
            self.settling_first = self.appended;
        }
        let (is_short, index) = (self.is_short(), &mut self.index);
        self.settling.insert(queue, range, |fresh| {
            if is_short {
                index.note_pending(queue, fresh);
            }
        });
        self.note_appended(urgency, now)
    }

    /// Forgets chunks whose message will never be appended.
    pub fn drop_body(&mut self, body: u64) {
        self.index.drop_body(body);
        self.dropped.push((body, self.appended));
    }

    /// Chunks that were on their way when their body was dropped have arrived: they are dead too.
    pub(super) fn end_dropped(&mut self) {
        let (durable, index) = (self.durable, &mut self.index);
        self.dropped.retain(|(body, position)| {
            let has_arrived = *position <= durable;
            if has_arrived {
                index.drop_body(*body);
            }
            !has_arrived
        });
    }

    fn count_payload(&mut self, message: &Message<'_>, body_bytes: usize) {
        self.counters.payload_bytes += (message.key.len() + message.properties.len() + body_bytes) as u64;
    }

    pub(super) fn note_appended(&mut self, urgency: Urgency, now: Now) -> Position {
        self.reckoning.note_said();
        self.appended.0 += 1;
        self.note(urgency, now);
        self.appended
    }

    /// Room for `bytes` in the commit that gathers, a share for settlements left free.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        self.gathering.len() + bytes + self.settle_share() <= self.gather_bytes_max()
    }

    /// Bytes of each commit that only settlements use.
    pub(super) const fn settle_share(&self) -> usize {
        self.settings.commit_bytes as usize / 8
    }

    /// Whether records of so many bytes are taken now.
    pub(super) fn admit(&mut self, bytes: usize) -> Result<(), Refused> {
        self.admit_to_commit(bytes)?;
        let commit = padded(self.gathering.len() + bytes + self.settle_share());
        if self.has_disk_room(commit) { Ok(()) } else { Err(Refused::Disk) }
    }

    /// The most bytes that one record may have: an old store's segments may be smaller than those of today.
    pub const fn record_bytes_max(&self) -> usize {
        self.settings.commit_bytes as usize - self.settle_share() - commit::COMMIT_HEADER_BYTES
    }

    #[inline]
    fn admit_to_commit(&mut self, bytes: usize) -> Result<(), Refused> {
        if bytes > self.record_bytes_max() {
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
        if self.settling.is_empty() { self.appended } else { self.settling_first }
    }

    pub(super) fn fail(&mut self, error: io::Error) -> Failed {
        self.failed = true;
        Failed(error)
    }
}
