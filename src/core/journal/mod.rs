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

mod append;
mod damage;
pub mod definition;
mod fact;
mod fetch;
mod group;
mod groups;
mod latency;
mod records;
mod settle;

use std::collections::VecDeque;

use crate::mem::{MessageId, Messages, sort};

pub use damage::{ReportedDamage, UNDELIVERED};
pub use definition::{Definition, DestinationName, VhostMetadata};
pub use fact::Fact;
pub use groups::{Cursor, Group, is_group};
pub use latency::{LATENCY_BOUNDS_MS, LatencyHistogram};
pub use records::{Batch, Front, Mode, NoRoom, Settled, Target, Urgency, is_transient};

use groups::{GROUPS_MAX, Groups};
use latency::LatencyMeter;
use records::CHUNK_BYTES;

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

#[cfg(test)]
mod tests;
