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
use crate::limits::SEGMENTS_MIN;
use crate::time::{Deadline, Now};

use super::access_digest::Vouch;
use super::cleaning::{Cleaning, Drain, Reckoning};
use super::commit::{self, BLOCK_BYTES, padded};
use super::counters::Counters;
use super::doubling::Doubling;
use super::footer::Footer;
use super::format::Format;
use super::identity::Identity;
use super::index::Index;
use super::jobs::CommitJob;
use super::parts::BodyPart;
use super::place::Position;
use super::read_back::Scratch;
use super::record::{self, Message, Range, Ranges, Record};
use super::report::Restored;
use super::segment::SegmentRef;
use super::settling::Settling;
use super::slots::{Slot, Slots};
use super::sync_budget::SyncBudget;

/// How a store behaves. Sizes hold for a new store; an old one keeps its segment size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Bytes of a segment: a multiple of 4 KiB, from 64 KiB; best a multiple of the card's erase block.
    pub segment_bytes: u32,
    /// The largest commit in bytes, a multiple of 4 KiB: at least 4 KiB, at most a third of a segment.
    pub commit_bytes: u32,
    /// `disk_limit` in segments of `segment_bytes`, at least 4.
    pub segments_max: u32,
    /// The most memory that the index may take, in bytes: what is above it is not written any more.
    pub index_bytes: usize,
    /// How long persistent messages that nobody awaits may gather, in milliseconds.
    pub commit_window_ms: u64,
    /// How long awaited ones gather once the sync budget is used up, in milliseconds.
    pub confirm_window_ms: u64,
    /// How long settlements alone may gather, in milliseconds.
    pub settle_window_ms: u64,
    /// Syncs a second that the card may do for ever; 0 is without limit.
    pub syncs_per_s: u32,
    /// Syncs that may be done at once after a rest.
    pub sync_burst: u32,
    /// Where there is no store, a new one is begun.
    pub may_begin: bool,
    /// An old store is brought to the newest version of the format.
    pub upgrade: bool,
    /// The version of a new store.
    pub format: Format,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            segment_bytes: 4 << 20,
            commit_bytes: 512 << 10,
            segments_max: 64,
            index_bytes: 2 << 20,
            commit_window_ms: 1_000,
            confirm_window_ms: 50,
            settle_window_ms: 5_000,
            syncs_per_s: 0,
            sync_burst: 200,
            may_begin: true,
            upgrade: false,
            format: Format::NEWEST,
        }
    }
}

impl Settings {
    /// The same for a store whose segments are of another size: its limit is one of bytes.
    pub(super) fn with_segments_of(self, segment_bytes: u32) -> Self {
        if segment_bytes == self.segment_bytes {
            return self;
        }
        let limit = u64::from(self.segments_max) * u64::from(self.segment_bytes);
        let segments = (limit / u64::from(segment_bytes)).max(SEGMENTS_MIN);
        Self {
            segment_bytes,
            segments_max: u32::try_from(segments).unwrap_or(u32::MAX),
            commit_bytes: self.commit_bytes.min(segment_bytes / 3 / BLOCK_BYTES as u32 * BLOCK_BYTES as u32),
            ..self
        }
    }
}

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
    /// The index takes as much memory as it may.
    pub(super) is_index_full: bool,
    /// What it took when it was weighed last, and at what the cleaner waits, in bytes.
    pub(super) index_weight: usize,
    pub(super) index_weight_max: usize,
    /// It has become full, which nobody was told yet.
    pub(super) index_overflow: Option<usize>,
    pub(super) slots: Slots,
    pub(super) active: SegmentRef,
    /// The version of the format that the active segment is written in.
    pub(super) format: Format,
    /// The version of the next one.
    pub(super) wants: Format,
    /// The next commit goes here; the segment's size when it is sealed.
    pub(super) tail: u32,
    pub(super) sequence_max: u64,
    pub(super) footer: Footer,
    pub(super) gather: Vec<u8>,
    pub(super) gathered: u32,
    /// Bytes of messages and chunks that gather: new ones, and those that the cleaner has copied.
    pub(super) gathered_fresh: usize,
    pub(super) gathered_copies: usize,
    /// Bytes of new messages and chunks in all commits so far.
    pub(super) fresh_bytes: u64,
    pub(super) spare: Vec<u8>,
    pub(super) header_spare: Vec<u8>,
    pub(super) live_spare: Vec<SegmentRef>,
    pub(super) drain_spare: Vec<u64>,
    pub(super) drained_spare: Vec<u64>,
    pub(super) carried_spare: Vec<(u64, u64)>,
    pub(super) seal_spare: (Footer, Vec<u8>, Vec<(u64, BodyPart)>),
    pub(super) settling: Settling,
    settling_first: Position,
    pub(super) appended: Position,
    pub(super) durable: Position,
    pub(super) in_flight: Option<InFlight>,
    /// The commit on its way, while it waits for room on the file system.
    pub(super) postponed: Option<CommitJob>,
    pub(super) due_at: Deadline,
    /// The time when a commit was last asked for.
    pub(super) asked_at: Now,
    pub(super) awaited: bool,
    pub(super) budget: SyncBudget,
    pub(super) drain: Option<Drain>,
    pub(super) cleaning: Option<Cleaning>,
    pub(super) doubling: Doubling,
    /// The cleaner has started, and goes on until some more segments are free.
    pub(super) cleans_ahead: bool,
    /// It is content with so many percent less: segments gave no room of late.
    pub(super) caution_percent: u64,
    /// What came of it.
    pub(super) reckoning: Reckoning,
    /// For [`Index::carries`].
    pub(super) since_spare: Vec<(u64, usize)>,
    /// Something has changed since the cleaner looked for work.
    pub(super) may_clean: bool,
    /// Segments that are kept for others than those who wait for room.
    pub(super) segments_kept: usize,
    pub(super) read_spare: Vec<u8>,
    /// The buffers for the next fetch, and the file that the present one reads.
    pub(super) fetch_spare: Option<Scratch>,
    pub(super) pinned: Option<u32>,
    /// Files that somebody copies.
    pub(super) held: Vec<u32>,
    /// What gathers deletes a queue, which makes room.
    pub(super) frees: bool,
    /// Bodies that no message will name, and what was appended when that was said.
    dropped: Vec<(u64, Position)>,
    pub(super) counters: Counters,
    pub(super) failed: bool,
    /// Since this start something of it was found to be missing, or the disk has refused to read.
    pub(super) is_damaged: bool,
    /// The first commit of this life is still to come; it is made even if it is empty.
    pub(super) is_starting: bool,
    /// The next commit is made even if it is empty: the last of this life, or one that says how late it is.
    pub(super) is_closing: bool,
    /// When a commit last said that.
    pub(super) said_at: Now,
    /// How many commits before it the next one repeats.
    pub(super) covers: u32,
    /// It was said before this start who there is.
    pub(super) had_access: bool,
    /// What each commit says of access, once something was said.
    pub(super) vouch: Option<Vouch>,
    /// The files beside the log follow what is written. During a start they are what vouches, and stay.
    pub(super) keeps_access: bool,
    /// There is no good one of them any more.
    pub(super) is_access_lost: bool,
    /// What the files beside the log say of access, and could not be written into it; rising by the keys.
    pub(super) unwritten_access: Vec<Restored>,
    /// What gathers has records that belong together; definitions of access.
    pub(super) gathers_group: bool,
    pub(super) gathers_access: bool,
    /// Where what gathers ends with a digest.
    pub(super) digest_at: usize,
    /// Deletions in access that were carried once, for the next commit.
    pub(super) deletions_again: Vec<(Box<[u8]>, u64)>,
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
        let mut gather = Vec::with_capacity(commit_bytes);
        commit::begin(&mut gather);
        gather.extend_from_slice(&start.again);
        let (weight, most) = (start.index.bytes(), start.settings.index_bytes);
        Self {
            identity: start.identity,
            life: start.life,
            number: start.number,
            time_base_ms: start.time_base_ms,
            is_index_full: weight > most,
            index_weight: weight,
            index_weight_max: weight.max(most) / 4 * 5,
            index_overflow: None,
            index: start.index,
            slots: Slots::new(&start.slots, start.settings.segments_max, start.active.slot, start.cut),
            active: start.active,
            format: start.format,
            wants: start.wants,
            had_access: start.had_access,
            tail: start.tail,
            sequence_max: start.sequence_max,
            footer: start.footer.with_room(start.settings.segment_bytes),
            gather,
            gathered: start.again_records,
            gathered_fresh: 0,
            gathered_copies: 0,
            fresh_bytes: 0,
            spare: Vec::with_capacity(commit_bytes),
            header_spare: Vec::new(),
            live_spare: Vec::new(),
            drain_spare: Vec::new(),
            drained_spare: Vec::new(),
            carried_spare: Vec::new(),
            seal_spare: (Footer::default().with_room(start.settings.segment_bytes), Vec::new(), Vec::new()),
            settling: Settling::default(),
            settling_first: Position(0),
            appended: Position(1),
            durable: Position(0),
            in_flight: None,
            postponed: None,
            due_at: Now::default().after_ms(0),
            asked_at: Now::default(),
            awaited: true,
            budget: SyncBudget::new(start.settings.syncs_per_s, start.settings.sync_burst),
            drain: None,
            cleaning: None,
            doubling: Doubling::due(),
            cleans_ahead: false,
            caution_percent: 0,
            reckoning: Reckoning::default(),
            since_spare: Vec::new(),
            may_clean: true,
            segments_kept: 0,
            read_spare: vec![0; start.settings.commit_bytes as usize],
            fetch_spare: Some(Scratch::new(start.settings.segment_bytes)),
            pinned: None,
            held: Vec::new(),
            frees: false,
            dropped: Vec::new(),
            counters: Counters { written_before: start.written_before, ..Counters::default() },
            failed: false,
            is_damaged: false,
            is_starting: true,
            is_closing: false,
            said_at: Now::from_ms(0),
            covers: start.covers,
            vouch: None,
            keeps_access: false,
            is_access_lost: false,
            unwritten_access: Vec::new(),
            gathers_group: start.again_records > 0,
            gathers_access: start.again_records > 0,
            digest_at: 0,
            deletions_again: Vec::new(),
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
        self.format
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
        let start = self.gather.len();
        record.encode(&mut self.gather);
        self.gathered_fresh += self.gather.len() - start;
        if let Record::Message(message) = record {
            self.count_payload(
                message,
                if let record::Body::Inline(body) = message.body { body.len() } else { 0 },
            );
        } else if let Record::Chunk { bytes, .. } = record {
            self.counters.payload_bytes += bytes.len() as u64;
        }
        Ok(self.appended_one(urgency, now))
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
        let start = self.gather.len();
        record::encode_message(&message, body_bytes, &mut self.gather, fill);
        self.gathered_fresh += self.gather.len() - start;
        self.count_payload(&message, body_bytes);
        Ok(self.appended_one(urgency, now))
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
            return Ok(self.appended_already(urgency, now));
        }
        record.encode(&mut self.gather);
        self.frees |= matches!(record, Record::Gone { .. });
        Ok(self.appended_one(urgency, now))
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
        let taken = self.gather.len() + self.settle_share() + record::RECORD_OVERHEAD_BYTES_MAX;
        let room = self.gather_bytes_max().saturating_sub(taken);
        if !self.has_disk_room(padded(taken + room)) {
            return false;
        }
        let bytes = record::encode_part(body, index, &mut self.gather, |out| fill(out, room));
        if bytes == 0 {
            // What gathers is in its way.
            self.hurry();
            return false;
        }
        self.counters.payload_bytes += bytes as u64;
        self.appended_one(Urgency::Awaited, now);
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
        record.encode(&mut self.gather);
        self.appended_one(Urgency::Lazy, now);
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
        self.appended_already(urgency, now)
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

    pub(super) fn appended_one(&mut self, urgency: Urgency, now: Now) -> Position {
        self.gathered += 1;
        self.appended_already(urgency, now)
    }

    fn appended_already(&mut self, urgency: Urgency, now: Now) -> Position {
        self.reckoning.said += 1;
        self.appended.0 += 1;
        self.note(urgency, now);
        self.appended
    }

    /// Room for `bytes` in the commit that gathers, a share for settlements left free.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        self.gather.len() + bytes + self.settle_share() <= self.gather_bytes_max()
    }

    /// Bytes of each commit that only settlements use.
    pub(super) const fn settle_share(&self) -> usize {
        self.settings.commit_bytes as usize / 8
    }

    /// Whether records of so many bytes are taken now.
    pub(super) fn admit(&mut self, bytes: usize) -> Result<(), Refused> {
        self.admit_to_commit(bytes)?;
        let commit = padded(self.gather.len() + bytes + self.settle_share());
        if self.has_disk_room(commit) { Ok(()) } else { Err(Refused::Disk) }
    }

    /// The most bytes that one record may have: an old store's segments may be smaller than those of today.
    pub const fn record_bytes_max(&self) -> usize {
        self.settings.commit_bytes as usize - self.settle_share() - commit::COMMIT_HEADER_BYTES
    }

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
        let is_due = self.vouch.is_some_and(|vouch| vouch.is_due);
        self.gathered > 0 || is_due || !self.deletions_again.is_empty()
    }

    /// Puts the gathered settlements behind the gathered records, as many as fit; tells up to where
    /// everything is in the commit.
    pub(super) fn gather_settlements(&mut self, end: usize) -> Position {
        let (gather, gathered) = (&mut self.gather, &mut self.gathered);
        self.settling.drain(|queue, ranges| {
            let count = record::ranges_fitting(ranges, end.saturating_sub(gather.len()));
            if count > 0 {
                Record::Settled { queue, ranges: Ranges::List(&ranges[..count]) }.encode(gather);
                *gathered += 1;
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
