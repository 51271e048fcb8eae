//! What is to be written down: the broker says what happened, the store fetches it when it makes a commit.
//!
//! ```text
//! broker ── publish, settle, define, mark ──→ Journal ── front, facts, settles ──→ store ──→ commit
//!    ↑                                           │  durable(batch)                           │
//!    └──────────── confirms, replies, pages ─────┴───────────────────────────────────────────┘
//! ```
//!
//! Why it exists: a message that waits for its commit is held by reference, not as bytes. What is consumed
//! and acknowledged before its commit is begun leaves the journal again and is never written; and neither
//! room needs to know the other.
//!
//! Everything said belongs to a [`Batch`]: what becomes durable together. Whoever waits for something waits
//! for its batch. A batch is closed when a commit takes all of it, or when it is as large as a commit.
//!
//! Always true: facts about what exists are written no later than messages that were said after them;
//! batches become durable in order; nothing here knows a disk or a clock; what says who may do what goes into
//! two commits, one after the other, and counts as durable with the second, so that a damaged block takes
//! nobody's access and brings none back.

mod damage;
pub mod definition;
mod groups;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use definition::is_access;
use groups::{GROUPS_MAX, Groups};

use crate::mem::{MessageFlags, MessageId, Messages, sort, sort_by_key};

pub use damage::{ReportedDamage, UNDELIVERED};
pub use definition::{Definition, DestinationName, VhostMetadata};
pub use groups::{Cursor, Group, is_group};

/// A message on its way into queues: the journal has its record, or it is none for the journal.
///
/// A queue takes no new message without one, and only the journal makes one: so what is to be durable is in
/// no queue before the journal has it. It cannot be made up:
///
/// ```compile_fail,E0451
/// use leveret_core::journal::{Appended, Batch};
/// use leveret_core::mem::MessageId;
///
/// fn appended(message: MessageId) -> Appended {
///     Appended { message, targets: 1, batch: Batch::NONE }
/// }
/// ```
///
/// That it is its fields which forbid it is shown by the same program without that line, which compiles:
///
/// ```
/// use leveret_core::journal::{Appended, Batch};
/// use leveret_core::mem::MessageId;
///
/// fn appended(message: MessageId) -> Appended {
///     unreachable!("only the journal makes one for {message:?}, in {:?}", Batch::NONE)
/// }
/// ```
#[derive(Debug)]
#[must_use = "a message that the journal has belongs into its queues"]
pub struct Appended {
    message: MessageId,
    targets: u32,
    batch: Batch,
}

impl Appended {
    /// The message.
    pub const fn message(&self) -> MessageId {
        self.message
    }

    /// So many queues of the log have it.
    pub const fn targets(&self) -> u32 {
        self.targets
    }

    /// With this its record is durable; nothing to wait for if it has none.
    pub const fn batch(&self) -> Batch {
        self.batch
    }
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    message: MessageId,
    targets: u32,
    /// Targets not settled; at 0 the message is not held any more and nothing is written.
    live: u32,
    bytes: u32,
    batch: Batch,
}

/// Settlements kept before they are put in order and merged.
const SETTLES_MAX: usize = 8192;
/// Facts that wait, and bytes of them, beyond which no more should be asked of the broker.
const FACTS_MAX: usize = 1024;
const FACT_BYTES_MAX: usize = 64 << 10;
/// What a record takes beyond names, properties and body, per message and per target, in bytes at most.
const RECORD_BYTES: u64 = 48;
const TARGET_BYTES: u64 = 21;
/// Below so much room on the disk nothing new is defined.
const DEFINITION_ROOM_BYTES: u64 = 256 << 10;

/// Publishers leave dead letters one part in so many of the log at most.
const LETTERS_LOG_PART: u64 = 8;

/// How much is left of the memory for what is known of the log.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum IndexRoom {
    /// For everybody.
    Enough,
    /// For dead letters, without which what has expired would never go.
    Last,
    /// For nobody.
    None,
}

/// Everything that waits to be written.
#[derive(Debug)]
pub struct Journal {
    mode: Mode,
    /// Broker time in milliseconds: added up over lives.
    time_ms: u64,
    version: u64,
    pending: VecDeque<Pending>,
    /// So many pending messages make publishers wait.
    pending_max: usize,
    /// So many there may be with those of transactions, which are taken whole or not at all.
    pending_room: usize,
    pending_bytes: u64,
    /// Pending messages that are still wanted.
    live: usize,
    /// The number of the first pending message since start.
    first: u64,
    targets: VecDeque<Target>,
    /// How many targets have left since start.
    targets_before: u64,
    groups: Groups,
    handed: VecDeque<MessageId>,
    /// Held until this batch is durable: messages that came to be with the end of others.
    moving: VecDeque<(Batch, MessageId)>,
    facts: VecDeque<(Batch, Fact)>,
    /// Facts that went into a commit once and are to go into the next one too, with their numbers; so many of
    /// them may.
    repeats: VecDeque<(Batch, u64, Fact)>,
    repeats_ready: usize,
    fact_bytes: usize,
    /// The batch of the last fact.
    facts_batch: Batch,
    /// How many facts were said, went into a commit, and are durable.
    facts_numbered: u64,
    facts_handed: u64,
    facts_stored: u64,
    /// How many are durable, in two commits where they must be.
    facts_safe: u64,
    settles: Vec<Settled>,
    /// Some of them are of messages that were written.
    settles_matter: bool,
    settles_awaited: Option<Batch>,
    /// Delivered before their commit: watermarks that go along with it.
    riding: Vec<(u64, u64)>,
    /// Queues that went, and the number of the first message that surely does not name them.
    gone: VecDeque<(u64, u64)>,
    urgency: Option<Urgency>,
    said: u64,
    open: Batch,
    open_bytes: u64,
    /// Something belongs to the open batch.
    is_open_used: bool,
    batch_bytes_max: u64,
    durable: Batch,
    disk_room_bytes: u64,
    disk_bytes_max: u64,
    is_file_system_full: bool,
    /// Whether what memory may know of the log, not the disk limit, leaves no more room.
    index_room: IndexRoom,
    room_made: u64,
    /// Rises with everything that frees bytes of the log, or will with the next compaction.
    freed: u64,
    latency: LatencyMeter,
}

impl Journal {
    /// A journal for messages of a pool of so many; off until [`Self::start`].
    pub fn new(messages_max: usize) -> Self {
        let pending_max = Self::pending_max(messages_max);
        let pending_room = pending_max + Self::transaction_max(messages_max);
        Self {
            mode: Mode::Off,
            time_ms: 0,
            version: 0,
            pending: VecDeque::with_capacity(pending_room),
            pending_max,
            pending_room,
            pending_bytes: 0,
            live: 0,
            first: 0,
            targets: VecDeque::with_capacity(pending_room),
            targets_before: 0,
            groups: Groups::new(settles_max(pending_max)),
            handed: VecDeque::with_capacity(pending_room),
            moving: VecDeque::with_capacity(pending_room),
            facts: VecDeque::with_capacity(64),
            repeats: VecDeque::new(),
            repeats_ready: 0,
            fact_bytes: 0,
            facts_batch: Batch::NONE,
            facts_numbered: 0,
            facts_handed: 0,
            facts_stored: 0,
            facts_safe: 0,
            settles: Vec::with_capacity(settles_max(pending_max)),
            settles_matter: false,
            settles_awaited: None,
            riding: Vec::with_capacity(256),
            gone: VecDeque::new(),
            urgency: None,
            said: 0,
            open: Batch::numbered(1),
            open_bytes: 0,
            is_open_used: false,
            batch_bytes_max: u64::MAX,
            durable: Batch::NONE,
            disk_room_bytes: u64::MAX,
            disk_bytes_max: 0,
            is_file_system_full: false,
            index_room: IndexRoom::Enough,
            room_made: 0,
            freed: 0,
            latency: LatencyMeter::new(),
        }
    }

    /// Returns how long messages waited for the disk whose publishers wait for it.
    pub const fn latency(&self) -> LatencyHistogram {
        self.latency.histogram()
    }

    /// Returns a count that rises when a message in the log is settled, its queue is deleted, or the log gets room.
    pub const fn freed(&self) -> u64 {
        self.freed
    }

    const fn pending_max(messages_max: usize) -> usize {
        let share = messages_max / 8;
        if share < 256 {
            256
        } else if share > 8192 {
            8192
        } else {
            share
        }
    }

    /// Places that only transactions use.
    const fn transaction_max(messages_max: usize) -> usize {
        messages_max / 16
    }

    /// Bytes that a journal for so many messages takes, for the memory table. What is asked of the broker at
    /// once, and adds facts before anybody looks, is at most `input_bytes` of commands; a fact takes up to
    /// four times its command.
    pub const fn bytes(messages_max: usize, input_bytes: usize) -> usize {
        let pending = Self::pending_max(messages_max);
        let each = size_of::<Pending>()
            + size_of::<Target>()
            + size_of::<MessageId>()
            + size_of::<(Batch, MessageId)>();
        // Those of single messages, and those of groups.
        let settles = 2 * settles_max(pending) * size_of::<Settled>();
        let facts = size_of::<(Batch, Fact)>() + size_of::<(Batch, u64, Fact)>();
        let facts = FACTS_MAX * facts + FACT_BYTES_MAX + 4 * input_bytes;
        let groups = GROUPS_MAX * size_of::<Group>();
        (pending + Self::transaction_max(messages_max)) * each + settles + facts + groups
    }

    /// From now on everything is written, in life number `life` of the store; or, when the store cannot be
    /// written, is made to wait. A commit takes `batch_bytes_max`.
    pub fn start(&mut self, life: u32, is_writable: bool, batch_bytes_max: u64) {
        self.mode = if is_writable { Mode::On } else { Mode::Unwritable };
        // So the versions that another life of the broker gave are never given again.
        self.version = u64::from(life) << 32;
        self.batch_bytes_max = batch_bytes_max;
    }

    /// Whether anything is written.
    pub const fn mode(&self) -> Mode {
        self.mode
    }

    /// Broker time, in milliseconds over all lives of the store.
    pub const fn time_ms(&self) -> u64 {
        self.time_ms
    }

    /// The time of this turn.
    pub const fn set_time(&mut self, time_ms: u64) {
        self.time_ms = time_ms;
    }

    /// A number higher than every one before, over all lives.
    pub const fn next_version(&mut self) -> u64 {
        self.version += 1;
        self.version
    }

    /// So many of these numbers, the first of which this is.
    pub const fn next_versions(&mut self, count: u64) -> u64 {
        let first = self.version + 1;
        self.version += count;
        first
    }

    /// Everything up to this batch is durable.
    pub const fn durable(&self) -> Batch {
        self.durable
    }

    /// The batch that what is said now belongs to.
    pub const fn batch(&self) -> Batch {
        self.open
    }

    /// Rises with everything that is to be written.
    pub const fn said(&self) -> u64 {
        self.said
    }

    /// Bytes that may still be written before the disk limit, without what waits here.
    pub const fn disk_room(&self) -> u64 {
        self.disk_room_bytes.saturating_sub(self.pending_bytes)
    }

    /// What that is at most, when the log is empty; 0 while there is no limit.
    pub const fn disk_bytes_max(&self) -> u64 {
        self.disk_bytes_max
    }

    /// Rises with everything that makes room here.
    pub const fn room_made(&self) -> u64 {
        self.room_made
    }

    /// Whether so much waits that no more should be asked of the broker for now.
    pub fn is_crowded(&self) -> bool {
        self.fact_bytes > FACT_BYTES_MAX
            || self.facts.len() + self.repeats.len() > FACTS_MAX
            || self.groups.is_crowded()
    }

    /// Messages that wait for their commit.
    pub fn len(&self) -> usize {
        self.pending.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        let has_facts = !self.facts.is_empty() || !self.repeats.is_empty();
        self.live == 0 && !has_facts && !self.settles_matter && self.groups.is_empty()
    }

    // ---- what the broker says

    /// Whether a message of `bytes` for so many queues is taken now.
    ///
    /// # Errors
    /// What it would have to wait for.
    pub fn admit(&self, bytes: u64, targets: usize) -> Result<(), NoRoom> {
        let bytes = bytes + RECORD_BYTES + TARGET_BYTES * targets as u64;
        match self.mode {
            Mode::Unwritable => Err(NoRoom::Commit),
            // Before the commit: a transaction does not wait for that, and needs room on the disk all the same.
            _ if self.pending_bytes + bytes > self.disk_room_bytes => Err(NoRoom::Disk),
            _ if self.pending.len() >= self.pending_max => Err(NoRoom::Commit),
            _ => Ok(()),
        }
    }

    /// Whether a message of so many bytes, `body_bytes` of them its body, fits into a commit for so many
    /// queues, a large body chunk by chunk; within a part of a group, too.
    pub const fn fits_commit(&self, bytes: u64, body_bytes: u64, targets: usize) -> bool {
        let part = if body_bytes < CHUNK_BYTES { body_bytes } else { CHUNK_BYTES };
        let bytes = bytes - body_bytes + part + 6 * RECORD_BYTES + TARGET_BYTES * targets as u64;
        matches!(self.mode, Mode::Unwritable) || bytes <= self.batch_bytes_max
    }

    /// Whether so many messages of one transaction are taken now, over what makes publishers wait.
    pub fn fits_transaction(&self, messages: usize) -> bool {
        self.mode != Mode::On || self.pending.len() + messages <= self.pending_room
    }

    /// Whether the disk has room for what would exist from now on; what is to exist no longer needs none.
    pub const fn has_room_to_define(&self) -> bool {
        self.disk_room_bytes > DEFINITION_ROOM_BYTES
    }

    /// Whether the file system has less room than the disk limit.
    pub const fn is_file_system_full(&self) -> bool {
        self.is_file_system_full
    }

    /// The configuration's key that leaves no more room when there is none: what an operator can raise.
    pub const fn room_key(&self) -> &'static str {
        let has_disk = self.disk_room() > self.disk_bytes_max / LETTERS_LOG_PART;
        match self.index_room {
            IndexRoom::None => "index_bytes_max",
            IndexRoom::Last if has_disk => "index_bytes_max",
            IndexRoom::Last | IndexRoom::Enough => "disk_limit",
        }
    }

    /// How much of `index_bytes_max` is left to what is known of the log in memory.
    pub fn set_index_room(&mut self, room: IndexRoom) {
        self.room_made += u64::from(room < self.index_room);
        self.index_room = room;
    }

    /// Of the room on the disk, what publishers leave to dead letters, which want `bytes` of it: one part of it at
    /// most, but all of it while the last room of the index is used.
    pub const fn kept_for_letters(&self, bytes: u64) -> u64 {
        let part = self.disk_bytes_max / LETTERS_LOG_PART;
        match self.index_room {
            IndexRoom::Last | IndexRoom::None => self.disk_room_bytes,
            IndexRoom::Enough if bytes < part => bytes,
            IndexRoom::Enough => part,
        }
    }

    /// A message that is not to be kept, and goes into its queues without a record.
    #[inline]
    pub const fn transient(message: MessageId) -> Appended {
        Appended { message, targets: 0, batch: Batch::NONE }
    }

    /// Takes a message for these queues of the log. For none of them there is nothing to be written.
    pub fn append(
        &mut self,
        messages: &mut Messages,
        message: MessageId,
        targets: impl Iterator<Item = Target>,
        urgency: Urgency,
    ) -> Appended {
        let before = self.targets.len();
        self.targets.extend(targets);
        let targets = (self.targets.len() - before) as u32;
        if targets == 0 {
            return Appended { message, targets, batch: Batch::NONE };
        }
        self.push_pending(messages, message, targets, urgency)
    }

    fn push_pending(
        &mut self,
        messages: &mut Messages,
        message: MessageId,
        targets: u32,
        urgency: Urgency,
    ) -> Appended {
        let bytes = messages.stream_len(message) as u64 + RECORD_BYTES + TARGET_BYTES * u64::from(targets);
        if self.open_bytes > 0 && self.open_bytes + bytes > self.batch_bytes_max {
            self.close_batch();
        }
        self.open_bytes += bytes;
        self.pending_bytes += bytes;
        messages.retain(message);
        messages.set_mark(message, mark_of(self.first + self.pending.len() as u64));
        let bytes = bytes.min(u64::from(u32::MAX)) as u32;
        let batch = self.open;
        if urgency == Urgency::Awaited {
            self.latency.note_awaited(batch, self.time_ms);
        }
        self.pending.push_back(Pending { message, targets, live: targets, bytes, batch });
        self.live += 1;
        self.note(urgency);
        Appended { message, targets, batch: self.open }
    }

    /// Whether the message, to be kept, has not gone into a commit yet.
    #[inline]
    pub fn is_gathering(&self, messages: &Messages, message: MessageId) -> bool {
        self.find_waiting(messages, message).is_some()
    }

    /// Somebody waits for room here: whatever waits is written at once.
    pub fn hurry(&mut self) {
        if self.mode == Mode::On && self.live > 0 {
            self.note(Urgency::Awaited);
        }
    }

    fn await_open(&mut self) -> Batch {
        self.expect_open(Urgency::Awaited)
    }

    fn expect_open(&mut self, urgency: Urgency) -> Batch {
        if self.mode != Mode::On {
            return Batch::NONE;
        }
        self.note(urgency);
        self.open
    }

    /// Somebody waits for everything said so far.
    pub fn await_all(&mut self) -> Batch {
        if self.is_empty() { Batch::NONE } else { self.await_settles() }
    }

    /// A message is delivered before its commit: the commit says so too.
    pub fn piggyback(&mut self, queue: u64, offset: u64) {
        match self.riding.last_mut().filter(|last| last.0 == queue) {
            Some(last) => last.1 = last.1.max(offset),
            None => {
                if self.riding.len() == self.riding.capacity() {
                    self.merge_riding();
                }
                self.riding.push((queue, offset));
            }
        }
    }

    fn merge_riding(&mut self) {
        sort(&mut self.riding);
        self.riding.dedup_by(|next, kept| {
            let same = next.0 == kept.0;
            if same {
                kept.1 = kept.1.max(next.1);
            }
            same
        });
    }

    fn note(&mut self, urgency: Urgency) {
        self.is_open_used |= urgency != Urgency::Lazy;
        self.said += 1;
        self.urgency = Some(self.urgency.map_or(urgency, |noted| noted.min(urgency)));
    }

    #[inline]
    fn find_waiting(&self, messages: &Messages, message: MessageId) -> Option<usize> {
        let mark = messages.mark(message);
        if mark == 0 {
            return None;
        }
        let at = marks_between(mark_of(self.first), mark) as usize;
        // Marks come again after four billion messages, so what is found there may be another message.
        let found = self.pending.get(at).filter(|pending| pending.message == message && pending.live > 0);
        found.map(|_| at)
    }
}

/// Settlements kept when so many messages may wait for a commit.
const fn settles_max(pending_max: usize) -> usize {
    if SETTLES_MAX < 4 * pending_max { SETTLES_MAX } else { 4 * pending_max }
}

/// The mark of the message with this number; never 0.
const fn mark_of(number: u64) -> u32 {
    (number % (u32::MAX as u64)) as u32 + 1
}

/// How far the number of one mark lies behind that of another, less than four billion.
const fn marks_between(first: u32, mark: u32) -> u32 {
    // Marks go round and leave 0 out.
    let apart = mark.wrapping_sub(first);
    if mark < first { apart - 1 } else { apart }
}

// Facts come in, and how many of them are durable.

impl Journal {
    /// The batch with which all facts said so far are durable.
    pub fn await_facts(&self) -> Batch {
        if self.facts_batch > self.durable { self.facts_batch } else { Batch::NONE }
    }

    /// Notes that something exists, has changed or (without a value) is no more; see [`self::Definition`].
    /// Returns the batch to wait for.
    pub fn define(&mut self, key: Box<[u8]>, value: Option<Box<[u8]>>) -> Batch {
        let version = self.next_version();
        self.append_fact(Fact::Defined { version, key, value })
    }

    /// Notes that a queue is gone with all its messages. Those that wait are not written any more, and their
    /// publishers hear that they are safe when the deletion is: else the queue might come back without them.
    pub fn queue_gone(&mut self, queue: u64) -> Batch {
        self.freed += 1;
        if self.mode == Mode::On && !self.pending.is_empty() {
            self.gone.push_back((queue, self.first + self.pending.len() as u64));
        }
        let batch = self.append_fact(Fact::Gone { queue });
        if let (Some(first), Some((said, _))) = (self.pending.front(), self.facts.back_mut()) {
            *said = first.batch;
        }
        batch
    }

    /// Asks that it be written, before any of them is, that messages below `offset` may have been delivered.
    /// Returns how many facts must be durable for that. Not a batch, which would include the messages said
    /// before: on a full disk they wait for room that only deliveries can make.
    pub fn set_delivered_watermark(&mut self, queue: u64, offset: u64) -> u64 {
        self.append_fact(Fact::DeliveredWatermark { queue, offset });
        self.facts_numbered
    }

    /// Says before a clean stop that nothing from `offset` on was delivered, although `watermark` says so.
    pub fn reset_watermark(&mut self, queue: u64, offset: u64, watermark: u64) {
        self.append_fact(Fact::WatermarkReset { queue, offset, watermark });
    }

    /// How many facts are durable.
    pub const fn facts_stored(&self) -> u64 {
        self.facts_stored
    }

    /// How many facts were said. Whoever waits for all of them need not wait for messages that were said
    /// before them, which on a full disk wait for room.
    pub const fn facts_said(&self) -> u64 {
        self.facts_numbered
    }

    /// How many facts are as durable as they are to be: what says who may do what is in two commits.
    pub const fn facts_safe(&self) -> u64 {
        self.facts_safe
    }

    fn append_fact(&mut self, fact: Fact) -> Batch {
        if self.mode != Mode::On {
            return Batch::NONE;
        }
        self.fact_bytes += fact.bytes();
        self.facts_numbered += 1;
        self.facts.push_back((self.open, fact));
        self.facts_batch = self.open;
        self.await_open()
    }
}

// What is done with: settlements, and messages that need not be written any more.
//
// Always true: what was not written when its last place is settled never is, but for what a group settles;
// settlements of a group are kept apart (`group`), all others are merged before they are fetched.

impl Journal {
    /// A place of a message is done with. If that was its last one and it was not written, it never will be,
    /// unless a group settles it.
    pub fn settle(&mut self, messages: &mut Messages, target: Target, message: MessageId) {
        if self.mode != Mode::On {
            return;
        }
        if self.groups.is_open() {
            let settled = Settled { queue: target.queue, start: target.offset, end: target.offset + 1 };
            return self.groups.settle(settled);
        }
        if !self.forsake(messages, message) {
            self.settles_matter = true;
            self.note(Urgency::Lazy);
        }
        self.settle_range(Settled { queue: target.queue, start: target.offset, end: target.offset + 1 });
    }

    /// A place of a message is gone with its queue; says whether the message will not be written at all.
    pub fn forsake(&mut self, messages: &mut Messages, message: MessageId) -> bool {
        let Some(at) = self.find_waiting(messages, message) else { return false };
        let pending = &mut self.pending[at];
        pending.live -= 1;
        if pending.live > 0 {
            return false;
        }
        self.pending_bytes -= u64::from(pending.bytes);
        self.live -= 1;
        self.room_made += 1;
        messages.set_mark(message, 0);
        messages.release(message);
        true
    }

    /// Offsets that were written long ago are done with, all at once.
    pub fn settle_stored(&mut self, settled: Settled) {
        if self.groups.is_open() {
            self.groups.settle(settled);
        } else if self.mode == Mode::On {
            self.settles_matter = true;
            self.note(Urgency::Lazy);
            self.settle_range(settled);
        }
    }

    #[inline]
    fn settle_range(&mut self, settled: Settled) {
        self.freed += 1;
        if let Some(last) = self.settles.last_mut().filter(|last| last.queue == settled.queue) {
            if last.end == settled.start {
                last.end = settled.end;
                return;
            }
            if settled.end == last.start {
                last.start = settled.start;
                return;
            }
        }
        if self.settles.len() == self.settles.capacity() {
            self.merge_settles();
            if self.settles.len() > self.settles.capacity() / 2 {
                self.note(Urgency::Awaited);
            }
        }
        self.settles.push(settled);
    }

    fn merge_settles(&mut self) {
        merge(&mut self.settles);
    }

    /// Somebody waits until all that is settled so far is written; returns the batch to wait for.
    pub fn await_settles(&mut self) -> Batch {
        if self.mode == Mode::On && self.settles_matter {
            self.settles_awaited.get_or_insert(self.open);
        }
        self.await_open()
    }
}

// The store's side of the journal: what it fetches for a commit, and what it says when that is durable.
//
// Always true: what is fetched comes in the order in which it was said; a batch is covered only when nothing
// of it is left here.

impl Journal {
    /// How urgent what was said since the last question is.
    pub fn take_urgency(&mut self) -> Option<Urgency> {
        self.urgency.take()
    }

    /// Whether something was said since the last question.
    pub const fn has_news(&self) -> bool {
        self.urgency.is_some()
    }

    /// The next fact; first those that the last commit has.
    pub fn fact(&self) -> Option<&Fact> {
        if self.repeats_ready > 0 {
            return self.repeats.front().map(|(_, _, fact)| fact);
        }
        self.facts.front().map(|(_, fact)| fact)
    }

    /// The fact went into a commit.
    pub fn pop_fact(&mut self) {
        if let Some(ready) = self.repeats_ready.checked_sub(1) {
            self.repeats_ready = ready;
            if let Some((_, _, fact)) = self.repeats.pop_front() {
                self.fact_bytes -= fact.bytes();
            }
        } else if let Some((batch, fact)) = self.facts.pop_front() {
            self.facts_handed += 1;
            if fact.is_access() {
                self.repeats.push_back((batch, self.facts_handed, fact));
            } else {
                self.fact_bytes -= fact.bytes();
            }
        }
        self.room_made += 1;
    }

    /// Gives all settlements, merged and in order.
    pub fn drain_settles(&mut self, each: impl FnMut(Settled)) {
        self.merge_settles();
        self.settles_matter = false;
        self.settles.drain(..).for_each(each);
    }

    /// Hands out the watermarks that go along, one for each queue, until `each` has no room for one; says
    /// whether all of them are handed out.
    pub fn drain_riding(&mut self, mut each: impl FnMut(u64, u64) -> bool) -> bool {
        self.merge_riding();
        while let Some(&(queue, offset)) = self.riding.last() {
            if !each(queue, offset) {
                return false;
            }
            self.riding.pop();
        }
        true
    }

    /// The next message to write, with its places in `targets`.
    pub fn front(&mut self, messages: &mut Messages, targets: &mut Vec<Target>) -> Option<Front> {
        loop {
            self.pop_dead();
            let pending = *self.pending.front()?;
            let number = self.first;
            self.places(number, 0..pending.targets as usize, targets);
            if targets.is_empty() {
                self.pending_bytes -= u64::from(pending.bytes);
                self.live -= 1;
                messages.set_mark(pending.message, 0);
                messages.release(pending.message);
                self.pop();
                continue;
            }
            return Some(Front { message: pending.message, number });
        }
    }

    /// The places of message `number` that still exist; it has those in `range` of all that wait.
    fn places(&self, number: u64, range: core::ops::Range<usize>, targets: &mut Vec<Target>) {
        targets.clear();
        targets.extend(self.targets.range(range).filter(|target| {
            !self.gone.iter().any(|(queue, before)| *queue == target.queue && number < *before)
        }));
    }

    /// Forgets messages at the front that nobody wants any more.
    #[inline]
    fn pop_dead(&mut self) {
        while self.pending.front().is_some_and(|pending| pending.live == 0) {
            self.pop();
        }
    }

    /// The front message went into a commit.
    pub fn hand_over(&mut self, messages: &mut Messages) {
        if let Some(pending) = self.pending.front().copied().filter(|pending| pending.live > 0) {
            messages.set_mark(pending.message, 0);
            self.pending_bytes -= u64::from(pending.bytes);
            self.live -= 1;
            self.handed.push_back(pending.message);
            self.pop();
        }
    }

    fn pop(&mut self) {
        if let Some(pending) = self.pending.pop_front() {
            self.targets.drain(..pending.targets as usize);
            self.targets_before += u64::from(pending.targets);
            self.first += 1;
            self.room_made += 1;
            let first = self.first;
            while self.gone.front().is_some_and(|(_, before)| *before <= first) {
                self.gone.pop_front();
            }
        }
    }

    /// A commit is made of everything fetched: the batch up to which it covers everything.
    /// `settles_left` says that some settlements had no room in it.
    pub fn cover(&mut self, settles_left: bool) -> Batch {
        self.repeats_ready = self.repeats.len();
        if !settles_left && !self.settles_matter {
            self.settles_awaited = None;
        }
        self.pop_dead();
        let message = self.pending.front().map(|pending| pending.batch);
        let fact = self.facts.iter().map(|(batch, _)| *batch).min();
        let repeat = self.repeats.front().map(|(batch, _, _)| *batch);
        let group = self.groups.batch();
        let first = [message, fact, repeat, group, self.settles_awaited].into_iter().flatten().min();
        match first {
            Some(batch) => batch.before(),
            None => {
                if self.is_open_used {
                    self.close_batch();
                }
                self.open.before()
            }
        }
    }

    /// Everything up to `batch` is durable; so is every message and every fact that was handed over.
    pub fn stored(&mut self, messages: &mut Messages, batch: Batch) {
        while let Some(message) = self.handed.pop_front() {
            messages.add_flags(message, MessageFlags::STORED);
            messages.release(message);
        }
        self.durable = self.durable.max(batch);
        self.latency.note_durable(self.durable, self.time_ms);
        self.release_moved(messages);
        self.facts_stored = self.facts_handed;
        self.facts_safe = self.repeats.front().map_or(self.facts_handed, |(_, number, _)| number - 1);
        self.room_made += 1;
    }

    /// Nothing is on its way to the disk: what left the journal again is waited for no longer.
    pub fn advance(&mut self, messages: &mut Messages) -> bool {
        if self.mode != Mode::On || !self.handed.is_empty() {
            return false;
        }
        let before = self.durable;
        let settles_left = self.settles_awaited.is_some();
        self.durable = self.durable.max(self.cover(settles_left));
        self.latency.note_durable(self.durable, self.time_ms);
        self.release_moved(messages);
        self.durable > before
    }

    /// So many bytes may still be written of so many when the log is empty; what says so is the disk limit, or a
    /// file system that is full before that.
    pub const fn set_disk_room(&mut self, (bytes, bytes_max): (u64, u64), is_file_system_full: bool) {
        // Of less in all, less is kept for others, too.
        let is_divided_anew = bytes_max != self.disk_bytes_max;
        if bytes > self.disk_room_bytes || is_divided_anew {
            self.room_made += 1;
            self.freed += 1;
        }
        self.is_file_system_full = is_file_system_full;
        self.disk_bytes_max = bytes_max;
        self.disk_room_bytes = bytes;
    }

    const fn close_batch(&mut self) {
        self.open = self.open.after();
        self.open_bytes = 0;
        self.is_open_used = false;
    }
}

// What is said about things other than messages, and when that is durable.
//
// Always true: facts only add up; of two about the same thing the later one, or the higher version, holds.

/// What is said about things other than messages.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fact {
    /// Something exists, has changed, or (without a value) exists no more.
    Defined {
        /// Of two the higher holds.
        version: u64,
        /// What is defined; see [`self::definition`].
        key: Box<[u8]>,
        /// Its value.
        value: Option<Box<[u8]>>,
    },
    /// The queue is gone with everything in it.
    Gone {
        /// Its incarnation.
        queue: u64,
    },
    /// Offsets below may have been delivered before.
    DeliveredWatermark {
        /// The queue's incarnation.
        queue: u64,
        /// The first that surely was not.
        offset: u64,
    },
    /// At a clean stop: offsets from this one on were never delivered, although a mark ran ahead.
    WatermarkReset {
        /// The queue's incarnation.
        queue: u64,
        /// The first that surely was not.
        offset: u64,
        /// The highest mark there is; a higher one makes this void.
        watermark: u64,
    },
}

impl Fact {
    /// Whether it says who may do what.
    fn is_access(&self) -> bool {
        matches!(self, Self::Defined { key, .. } if is_access(key))
    }

    /// What it takes here, roughly.
    fn bytes(&self) -> usize {
        match self {
            Self::Defined { key, value, .. } => key.len() + value.as_ref().map_or(0, |value| value.len()),
            Self::Gone { .. } | Self::DeliveredWatermark { .. } | Self::WatermarkReset { .. } => 0,
        }
    }
}

// The words that journal, broker and store have in common: batches, places of messages, settlements.

/// The most of a body that is in one record.
const CHUNK_BYTES: u64 = 64 << 10;

/// What becomes durable together; rises. [`Batch::NONE`] is durable from the start.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Batch(u64);

impl Batch {
    /// A batch that is always durable: there is nothing to wait for.
    pub const NONE: Self = Self(0);

    /// The batch with this number; batches are numbered from 1.
    pub const fn numbered(number: u64) -> Self {
        Self(number)
    }

    const fn before(self) -> Self {
        Self(self.0 - 1)
    }

    const fn after(self) -> Self {
        Self(self.0 + 1)
    }

    /// Whether there is nothing to wait for.
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }
}

/// How long something may wait for its commit.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Urgency {
    /// A confirm or an answer waits for the write.
    Awaited,
    /// Nobody does: the commit window.
    Window,
    /// It may be lost: the settle window.
    Lazy,
}

/// Whether anything is written at all.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// There is no store: nothing is durable, and nobody waits for that.
    Off,
    /// What is said becomes durable.
    On,
    /// The store cannot be written: what would have to be durable waits or is refused.
    Unwritable,
}

/// Why a message is not taken now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NoRoom {
    /// Too much waits for its commit already, or the store cannot be written.
    Commit,
    /// The disk limit is reached, or the file system is full.
    Disk,
}

/// A durable place of a message: a queue's incarnation and an offset in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Target {
    /// The queue's incarnation: never used again for another queue.
    pub queue: u64,
    /// The message's place in it.
    pub offset: u64,
}

/// Incarnations with this bit are of messages that are in the log only to be out of memory.
const TRANSIENT: u64 = 1 << 63;

/// Whether this is the incarnation of messages that the next life throws away.
pub const fn is_transient(incarnation: u64) -> bool {
    incarnation & TRANSIENT != 0
}

/// Offsets that are done with, the end not included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settled {
    /// The queue's incarnation.
    pub queue: u64,
    /// The first offset.
    pub start: u64,
    /// The one after the last.
    pub end: u64,
}

/// Puts settlements in order and those that touch together. No offset is settled twice: a record that says
/// so could not be read again.
fn merge(settles: &mut Vec<Settled>) {
    sort_by_key(settles, |settled| (settled.queue, settled.start));
    settles.dedup_by(|next, kept| {
        assert!(next.queue != kept.queue || next.start >= kept.end, "{next:?} is settled twice: {kept:?}");
        let touches = next.queue == kept.queue && next.start == kept.end;
        if touches {
            kept.end = next.end;
        }
        touches
    });
}

/// The message to be written next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Front {
    /// The message; held until [`self::Journal::stored`].
    pub message: MessageId,
    /// Its number since start: ids of messages are used again, this is not.
    pub number: u64,
}

// How long confirms wait for the disk, as a histogram.

/// Upper bounds of the buckets, in milliseconds; what takes longer is counted in the last bucket alone.
pub const LATENCY_BOUNDS_MS: [u64; 12] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 5_000, 30_000];
/// Batches that may wait at once. Beyond that no more are measured.
const BATCHES_MAX: usize = 64;

/// The waiting times of messages whose publishers wait for the disk, since the start.
#[derive(Clone, Copy, Default, Debug)]
pub struct LatencyHistogram {
    /// Messages by their waiting time: a bucket for each of [`LATENCY_BOUNDS_MS`], and one for all longer ones.
    pub counts: [u64; LATENCY_BOUNDS_MS.len() + 1],
    /// The sum of all waiting times, in milliseconds.
    pub sum_ms: u64,
}

/// Measures how long batches take from their first awaited message until they are durable.
#[derive(Debug)]
struct LatencyMeter {
    histogram: LatencyHistogram,
    /// Batch, the time of its first awaited message in milliseconds, and the number of awaited messages.
    waiting: VecDeque<(Batch, u64, u64)>,
}

impl LatencyMeter {
    fn new() -> Self {
        Self { histogram: LatencyHistogram::default(), waiting: VecDeque::with_capacity(BATCHES_MAX) }
    }

    /// Notes a message of this batch whose publisher waits for the disk.
    #[inline]
    fn note_awaited(&mut self, batch: Batch, now_ms: u64) {
        if let Some((_, _, count)) = self.waiting.back_mut().filter(|(last, ..)| *last == batch) {
            *count += 1;
        } else if self.waiting.len() < BATCHES_MAX {
            self.waiting.push_back((batch, now_ms, 1));
        }
    }

    /// Notes that everything up to this batch is durable.
    fn note_durable(&mut self, durable: Batch, now_ms: u64) {
        while let Some(&(_, since_ms, count)) = self.waiting.front().filter(|(batch, ..)| *batch <= durable) {
            self.waiting.pop_front();
            let ms = now_ms.saturating_sub(since_ms);
            let bucket = LATENCY_BOUNDS_MS.partition_point(|bound| *bound < ms);
            self.histogram.counts[bucket] += count;
            self.histogram.sum_ms += ms * count;
        }
    }

    const fn histogram(&self) -> LatencyHistogram {
        self.histogram
    }
}

#[cfg(test)]
mod latency_tests {
    use super::*;

    #[test]
    fn messages_count_with_the_time_from_the_first_of_their_batch_to_its_sync() {
        let mut meter = LatencyMeter::new();
        let first = Batch::NONE.after();
        let second = first.after();
        meter.note_awaited(first, 100);
        meter.note_awaited(first, 103);
        meter.note_awaited(second, 104);
        meter.note_durable(Batch::NONE, 104);
        assert_eq!(meter.histogram().sum_ms, 0);
        meter.note_durable(first, 105);
        meter.note_durable(second, 60_000);
        let LatencyHistogram { counts, sum_ms } = meter.histogram();
        assert_eq!((counts[2], counts[12], sum_ms), (2, 1, 2 * 5 + 59_896));
        assert_eq!(counts.iter().sum::<u64>(), 3);
    }
}
