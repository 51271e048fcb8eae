//! The pending-write buffer: messages, settlements and log entries that wait for their commit.
//!
//! The broker appends to the [`PendingWrites`]. The storage fetches from it when it builds a commit, and reports when
//! that commit is durable.
//!
//! ```text
//! broker ── append, settle, define ──────────→ PendingWrites ── messages, entries, settlements ──→ storage ──→ commit
//!    ↑                                            │  durable(batch)                                  │
//!    └──────────── confirms, replies, reads ──────┴──────────────────────────────────────────────────┘
//! ```
//!
//! A pending message is held by reference, not as bytes. If it is consumed and acknowledged before its commit
//! begins, it leaves the buffer and is never written. The log does not depend on the broker: the broker appends, and the log
//! knows only messages and entries.
//!
//! Everything that is appended belongs to a [`Batch`], which becomes durable as a whole. A confirm or a reply
//! waits for a batch. A batch is closed when all of it is in a commit, or when it is as large as a commit may
//! be.
//!
//! # Invariants
//! - A log entry is written before, or in the same commit as, messages that were appended after it.
//! - Batches become durable in order.
//! - Access definitions (users, virtual hosts, permissions, limits) are written in two consecutive commits,
//!   and count as durable with the second. So a single damaged block can neither remove a permission nor
//!   restore a removed one.
//! - The buffer does no I/O and reads no clock.

mod groups;
mod latency;
mod splits;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use leveret_core::batch::Batch;
use leveret_core::definition::{Definition, is_access};
use leveret_core::mem::{MessageFlags, MessageId, Messages, sort, sort_by_key};

use groups::{GROUPS_MAX, Groups};
use latency::LatencyMeter;

use crate::record::{CHUNK_BODY_BYTES, TARGET_BYTES_MAX, Target};

pub use groups::is_group;
pub(crate) use groups::{Cursor, Group};
pub use latency::{LATENCY_BOUNDS_MS, LatencyHistogram};
use splits::Splits;
pub use splits::{PART_BYTES, SplitDefinition};
pub(crate) use splits::{SplitCursor, SplitRecord};

/// How long a change may wait for its commit.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Urgency {
    /// A confirm or a reply waits for the change: it is written at once.
    Awaited,
    /// No client waits for the change: it is written within the commit window.
    Window,
    /// The change may be lost: it is written within the settle window.
    Lazy,
}

/// Whether the buffer is in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// There is no store: nothing becomes durable, and clients do not wait for the disk.
    Off,
    /// Everything appended becomes durable.
    On,
    /// The store cannot be written: persistent messages wait and definitions are refused.
    Unwritable,
}

/// Why a message cannot be appended now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NoCapacity {
    /// Too many messages wait for their commit, or the store cannot be written.
    Commit,
    /// The disk limit is reached, or the file system is full.
    Disk,
}

/// The flag of incarnations of transient messages. They are in the log only because memory was short.
const TRANSIENT: u64 = 1 << 63;

/// Returns whether an incarnation is that of transient messages, which recovery discards.
pub const fn is_transient(incarnation: u64) -> bool {
    incarnation & TRANSIENT != 0
}

/// A range of settled offsets of a queue, from `start` to `end` (excluded).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settled {
    /// The queue's incarnation.
    pub queue: u64,
    /// The first offset.
    pub start: u64,
    /// The offset after the last.
    pub end: u64,
}

/// The message to be written next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Front {
    /// The message. It stays in memory until [`self::PendingWrites::stored`].
    pub message: MessageId,
    /// The number of the message, counted since the start. Unlike its id it is never used again.
    pub number: u64,
}

/// A log entry: the change of a definition, the deletion of a queue, or a watermark of delivered messages.
///
/// There may be several entries about an object. The last one applies, or the one with the highest version.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LogEntry {
    /// A definition was created, changed, or (without a value) deleted.
    Defined {
        /// Of several definitions with this key, the one with the highest version applies.
        version: u64,
        /// The key of the definition; see [`leveret_core::definition`].
        key: Box<[u8]>,
        /// The value of the definition; `None` if it is deleted.
        value: Option<Box<[u8]>>,
    },
    /// The queue is deleted with all its messages.
    Gone {
        /// Its incarnation.
        queue: u64,
    },
    /// Messages below the offset may have been delivered.
    DeliveredWatermark {
        /// The queue's incarnation.
        queue: u64,
        /// The first message that was certainly not delivered.
        offset: u64,
    },
    /// At a clean stop: messages from this offset on were never delivered, although some of them are below a
    /// watermark.
    WatermarkReset {
        /// The queue's incarnation.
        queue: u64,
        /// The first message that was certainly not delivered.
        offset: u64,
        /// The highest watermark at this time. A higher watermark that is written later cancels this entry.
        watermark: u64,
    },
}

impl LogEntry {
    /// Returns whether this is an access definition, which is written twice.
    fn is_access(&self) -> bool {
        matches!(self, Self::Defined { key, .. } if is_access(key))
    }

    /// Returns whether both entries set the same definition, so that only `next` needs to be written.
    fn can_be_replaced_by(&self, next: &Self) -> bool {
        matches!(
            (self, next),
            (Self::Defined { key, value: Some(_), .. }, Self::Defined { key: next, value: Some(_), .. }) if key == next
        )
    }

    /// Returns approximately how many bytes of heap memory the entry takes.
    fn bytes(&self) -> usize {
        match self {
            Self::Defined { key, value, .. } => key.len() + value.as_ref().map_or(0, |value| value.len()),
            Self::Gone { .. } | Self::DeliveredWatermark { .. } | Self::WatermarkReset { .. } => 0,
        }
    }
}

/// Proof that a message was appended to the pending-write buffer, or that it needs no record in the log.
///
/// A message can be added to a queue only with an `Appended`, and only [`PendingWrites`] creates one. So
/// every persistent message is in the buffer before it is in a queue. Other packages cannot construct an
/// `Appended`:
///
/// ```compile_fail,E0451
/// use leveret_core::batch::Batch;
/// use leveret_storage::Appended;
/// use leveret_core::mem::MessageId;
///
/// fn appended(message: MessageId) -> Appended {
///     Appended { message, targets: 1, batch: Batch::NONE }
/// }
/// ```
///
/// Without the constructor, the program compiles. So the first one fails only because the fields are private:
///
/// ```
/// use leveret_core::batch::Batch;
/// use leveret_storage::Appended;
/// use leveret_core::mem::MessageId;
///
/// fn appended(message: MessageId) -> Appended {
///     unreachable!("only the pending writes make one for {message:?}, in {:?}", Batch::NONE)
/// }
/// ```
#[derive(Debug)]
#[must_use = "an appended message must be put into its queues"]
pub struct Appended {
    message: MessageId,
    targets: u32,
    batch: Batch,
}

impl Appended {
    /// Returns the message.
    pub const fn message(&self) -> MessageId {
        self.message
    }

    /// Returns the number of queues for which the message has a place in the log; 0 if it has no record.
    pub const fn targets(&self) -> u32 {
        self.targets
    }

    /// Returns the batch that makes the record durable; [`Batch::NONE`] if the message has no record.
    pub const fn batch(&self) -> Batch {
        self.batch
    }
}

/// How much memory is left for the index of the log, from least to most.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum IndexCapacity {
    /// None.
    Exhausted,
    /// At most 1/8, which is reserved for dead letters. Otherwise expired messages could not leave their queues.
    DeadLettersOnly,
    /// Enough for all messages.
    Enough,
}

/// Maximum number of settlements before they are sorted and merged.
const SETTLES_MAX: usize = 8192;
/// Number and bytes of pending log entries above which [`PendingWrites::is_crowded`] returns `true`.
const ENTRIES_MAX: usize = 1024;
const ENTRY_BYTES_MAX: usize = 64 << 10;
/// Upper bound of the bytes of a message's record without targets, names, properties and body.
const RECORD_BYTES: u64 = 48;
/// With less free disk space than this, no new definitions are accepted.
const DEFINITION_FREE_BYTES_MIN: u64 = 256 << 10;

/// At most this fraction (1/8) of the log's limit is reserved for dead letters.
const DEAD_LETTER_LOG_DIVISOR: u64 = 8;

/// A message that waits for its commit.
#[derive(Clone, Copy, Debug)]
struct Pending {
    message: MessageId,
    /// Number of its targets in `PendingWrites::targets`.
    targets: u32,
    /// Number of targets that are not settled. At 0 the buffer has released the message and does not write
    /// it.
    live: u32,
    /// Upper bound of the bytes of its record.
    bytes: u32,
    batch: Batch,
}

/// The pending-write buffer: everything that waits for a commit.
#[derive(Debug)]
pub struct PendingWrites {
    mode: Mode,
    /// Broker time in milliseconds: the sum of the uptime over all epochs of the store.
    time_ms: u64,
    /// The last version that was returned.
    last_version: u64,
    /// Messages that wait for their commit.
    pending: VecDeque<Pending>,
    /// Number of pending messages at which publishers have to wait.
    pending_max: usize,
    /// Maximum number of pending messages. Only transactions, which are appended whole or not at all, may exceed
    /// `pending_max`.
    pending_capacity: usize,
    /// Bytes of the records of all pending messages.
    pending_bytes: u64,
    /// Number of pending messages that still have unsettled targets.
    live: usize,
    /// Number of the first pending message, counted since the start.
    first_number: u64,
    /// The targets of all pending messages, in their order.
    targets: VecDeque<Target>,
    /// Number of targets removed since the start.
    targets_removed: u64,
    groups: Groups,
    /// Messages in a commit that is not durable yet.
    in_commit: VecDeque<MessageId>,
    /// Messages that must not be delivered until the batch is durable; see `end_group`.
    withheld: VecDeque<(Batch, MessageId)>,
    /// Log entries that wait for their commit.
    entries: VecDeque<(Batch, LogEntry)>,
    /// Access definitions that are in one commit and must be written in a second one, each with its log entry number.
    /// The first `repeats_ready` of them were in an earlier commit than the one being built.
    repeats: VecDeque<(Batch, u64, LogEntry)>,
    repeats_ready: usize,
    /// Heap memory of `entries`, `repeats` and the definitions of waiting groups in bytes.
    entry_bytes: usize,
    splits: Splits,
    /// Batch of the last log entry.
    last_entry_batch: Batch,
    /// Number of log entries that were appended since the start.
    entries_appended: u64,
    /// Number of log entries that are durable, since the start.
    entries_durable: u64,
    /// Number of log entries that are durable, since the start. An access definition, and all entries after it, count
    /// only when its second commit is durable.
    entries_safe: u64,
    /// Settlements that wait for their commit, without those of groups.
    settles: Vec<Settled>,
    /// Some settlements are those of messages in the log.
    has_stored_settles: bool,
    /// The first batch whose confirm or reply waits for settlements.
    settles_awaited: Option<Batch>,
    /// Watermarks (queue, offset) for messages that were delivered before their commit. They are written in
    /// the next commit.
    piggybacked: Vec<(u64, u64)>,
    /// Deleted queues, each with the number of the first message that was appended after the deletion.
    deleted_queues: VecDeque<(u64, u64)>,
    /// The highest urgency of the changes since [`Self::take_urgency`].
    urgency: Option<Urgency>,
    change_count: u64,
    /// The open batch, to which changes are added, and the bytes of its messages.
    open_batch: Batch,
    open_bytes: u64,
    /// The open batch contains something that must be written.
    is_open_used: bool,
    batch_bytes_max: u64,
    /// The last durable batch.
    durable: Batch,
    /// Bytes that may still be written, without subtracting pending messages; and the same for an empty log.
    log_free_bytes: u64,
    disk_bytes_max: u64,
    is_file_system_full: bool,
    /// How much memory is left for the index of the log. It may be used up before the disk limit is reached.
    index_capacity: IndexCapacity,
    /// Rises whenever the buffer gains capacity.
    capacity_freed: u64,
    /// Rises with everything that frees bytes of the log, now or with the next compaction.
    freed_count: u64,
    latency: LatencyMeter,
}

impl PendingWrites {
    /// Returns an empty buffer for a pool of `messages_max` messages. Its mode is `Off` until
    /// [`Self::start`].
    pub fn new(messages_max: usize) -> Self {
        let pending_max = Self::pending_max(messages_max);
        let pending_capacity = pending_max + Self::transaction_extra(messages_max);
        Self {
            mode: Mode::Off,
            time_ms: 0,
            last_version: 0,
            pending: VecDeque::with_capacity(pending_capacity),
            pending_max,
            pending_capacity,
            pending_bytes: 0,
            live: 0,
            first_number: 0,
            targets: VecDeque::with_capacity(pending_capacity),
            targets_removed: 0,
            groups: Groups::new(settles_max(pending_max)),
            in_commit: VecDeque::with_capacity(pending_capacity),
            withheld: VecDeque::with_capacity(pending_capacity),
            entries: VecDeque::with_capacity(64),
            repeats: VecDeque::new(),
            repeats_ready: 0,
            entry_bytes: 0,
            splits: Splits::default(),
            last_entry_batch: Batch::NONE,
            entries_appended: 0,
            entries_durable: 0,
            entries_safe: 0,
            settles: Vec::with_capacity(settles_max(pending_max)),
            has_stored_settles: false,
            settles_awaited: None,
            piggybacked: Vec::with_capacity(256),
            deleted_queues: VecDeque::new(),
            urgency: None,
            change_count: 0,
            open_batch: Batch::numbered(1),
            open_bytes: 0,
            is_open_used: false,
            batch_bytes_max: u64::MAX,
            durable: Batch::NONE,
            log_free_bytes: u64::MAX,
            disk_bytes_max: 0,
            is_file_system_full: false,
            index_capacity: IndexCapacity::Enough,
            capacity_freed: 0,
            freed_count: 0,
            latency: LatencyMeter::new(),
        }
    }

    /// Returns how long publishers waited for the disk until their messages were durable.
    pub const fn latency(&self) -> LatencyHistogram {
        self.latency.histogram()
    }

    /// Returns a count that rises when a message is settled, a queue is deleted, the log has more free bytes, or its
    /// limit changes.
    pub const fn freed(&self) -> u64 {
        self.freed_count
    }

    /// Returns the number of pending messages at which publishers have to wait.
    const fn pending_max(messages_max: usize) -> usize {
        let share = messages_max / 16;
        if share < 256 {
            256
        } else if share > 8192 {
            8192
        } else {
            share
        }
    }

    /// Returns the number of additional pending messages that only transactions may use.
    const fn transaction_extra(messages_max: usize) -> usize {
        let share = messages_max / 16;
        if share > TRANSACTION_EXTRA_MAX { TRANSACTION_EXTRA_MAX } else { share }
    }

    /// Returns the memory of a buffer for `messages_max` messages, in bytes, for the memory table.
    ///
    /// Between two checks of [`Self::is_crowded`] the broker handles at most `input_bytes` of commands. Their log
    /// entries take up to four times that size.
    pub const fn bytes(messages_max: usize, input_bytes: usize) -> usize {
        let pending = Self::pending_max(messages_max);
        let each = size_of::<Pending>()
            + size_of::<Target>()
            + size_of::<MessageId>()
            + size_of::<(Batch, MessageId)>();
        // Once for single settlements, once for those of groups.
        let settles = 2 * settles_max(pending) * size_of::<Settled>();
        let entries = size_of::<(Batch, LogEntry)>() + size_of::<(Batch, u64, LogEntry)>();
        let entries = ENTRIES_MAX * entries + ENTRY_BYTES_MAX + 4 * input_bytes;
        // A definition of a group takes less than other log entries, even if the group is for it alone.
        const { assert!(size_of::<LogEntry>() + size_of::<Group>() <= 2 * size_of::<(Batch, LogEntry)>() + 8) };
        let groups = GROUPS_MAX * size_of::<Group>();
        (pending + Self::transaction_extra(messages_max)) * each + settles + entries + groups
    }

    /// Starts the buffer for this epoch of the store. `batch_bytes_max` is the maximum size of a commit.
    ///
    /// If the store is not writable, the mode becomes `Unwritable`.
    pub fn start(&mut self, epoch: u32, is_writable: bool, batch_bytes_max: u64) {
        self.mode = if is_writable { Mode::On } else { Mode::Unwritable };
        // Versions of this epoch are higher than those of all earlier epochs.
        self.last_version = u64::from(epoch) << 32;
        self.batch_bytes_max = batch_bytes_max;
    }

    /// Returns whether the buffer is in use.
    pub const fn mode(&self) -> Mode {
        self.mode
    }

    /// Returns broker time in milliseconds: the sum of the uptime over all epochs of the store.
    pub const fn time_ms(&self) -> u64 {
        self.time_ms
    }

    /// Sets the time of this turn of the event loop.
    pub const fn set_time(&mut self, time_ms: u64) {
        self.time_ms = time_ms;
    }

    /// Returns a version: a number higher than all before, over all epochs.
    pub const fn next_version(&mut self) -> u64 {
        self.last_version += 1;
        self.last_version
    }

    /// Reserves `count` versions and returns the first.
    pub const fn next_versions(&mut self, count: u64) -> u64 {
        let first = self.last_version + 1;
        self.last_version += count;
        first
    }

    /// Returns the last batch that is durable.
    pub const fn durable(&self) -> Batch {
        self.durable
    }

    /// Returns the open batch, to which a change made now belongs.
    pub const fn batch(&self) -> Batch {
        self.open_batch
    }

    /// Returns a count that rises with each change that must be written.
    pub const fn change_count(&self) -> u64 {
        self.change_count
    }

    /// Returns the bytes that may still be written before the disk limit, pending messages subtracted.
    pub const fn log_free_bytes(&self) -> u64 {
        self.log_free_bytes.saturating_sub(self.pending_bytes + self.splits.bytes_left())
    }

    /// Returns the bytes that may be written while the log is empty; 0 without a limit.
    pub const fn disk_bytes_max(&self) -> u64 {
        self.disk_bytes_max
    }

    /// Returns a count that rises whenever the buffer gains capacity.
    pub const fn capacity_freed(&self) -> u64 {
        self.capacity_freed
    }

    /// Returns whether the broker should pause because too many log entries, or settlements of groups, wait. Other
    /// settlements request a commit themselves.
    pub fn is_crowded(&self) -> bool {
        self.entry_bytes > ENTRY_BYTES_MAX
            || self.entries.len() + self.repeats.len() + self.groups.entries.len() > ENTRIES_MAX
            || self.groups.is_crowded()
    }

    /// Returns whether the waiting messages fill a commit, or publishers must wait for one. Delaying such a commit would
    /// save no sync.
    pub(crate) fn fills_commit(&self) -> bool {
        self.pending_bytes + self.splits.bytes_left() >= self.batch_bytes_max
            || self.pending.len() >= self.pending_max
    }

    /// Returns the number of messages that wait for their commit.
    pub fn len(&self) -> usize {
        self.pending.len()
    }

    /// Returns whether nothing requires a commit. Settlements of messages that were never written, and watermarks of
    /// early deliveries, do not count: they are written with a later commit.
    pub fn is_empty(&self) -> bool {
        let has_entries = !self.entries.is_empty() || !self.repeats.is_empty();
        let has_definitions = has_entries || !self.splits.is_empty();
        self.live == 0 && !has_definitions && !self.has_stored_settles && self.groups.is_empty()
    }

    /// Checks whether a message of `bytes` bytes for `targets` queues can be appended now.
    ///
    /// # Errors
    /// What the message would have to wait for.
    pub fn admit(&self, bytes: u64, targets: usize) -> Result<(), NoCapacity> {
        let bytes = bytes + RECORD_BYTES + (TARGET_BYTES_MAX * targets) as u64;
        match self.mode {
            Mode::Unwritable => Err(NoCapacity::Commit),
            // The disk is checked first: a transaction does not wait for a commit, but it needs disk space as well.
            _ if bytes > self.log_free_bytes() => Err(NoCapacity::Disk),
            _ if self.pending.len() >= self.pending_max => Err(NoCapacity::Commit),
            _ => Ok(()),
        }
    }

    /// Returns whether a message for `targets` queues fits into one commit, and into one part of a group.
    ///
    /// `bytes` includes the body's `body_bytes`. A large body is written in chunks, so only one chunk counts.
    pub const fn fits_commit(&self, bytes: u64, body_bytes: u64, targets: usize) -> bool {
        let chunk_bytes = CHUNK_BODY_BYTES as u64;
        let part = if body_bytes < chunk_bytes { body_bytes } else { chunk_bytes };
        let bytes = bytes - body_bytes + part + 6 * RECORD_BYTES + (TARGET_BYTES_MAX * targets) as u64;
        matches!(self.mode, Mode::Unwritable) || bytes <= self.batch_bytes_max
    }

    /// Returns whether a transaction with `messages` messages can be appended now. Transactions may exceed the number
    /// of pending messages at which publishers have to wait.
    pub fn fits_transaction(&self, messages: usize) -> bool {
        self.mode != Mode::On || self.pending.len() + messages <= self.pending_capacity
    }

    /// Returns whether there is disk space for a new definition. Removing a definition needs none.
    pub const fn can_define(&self) -> bool {
        self.log_free_bytes > DEFINITION_FREE_BYTES_MIN
    }

    /// Returns whether the file system is full before the disk limit is reached.
    pub const fn is_file_system_full(&self) -> bool {
        self.is_file_system_full
    }

    /// Returns the configuration key that limits the log at present.
    pub const fn exhausted_limit_key(&self) -> &'static str {
        if self.is_index_exhausted() { "memory_limit" } else { "disk_limit" }
    }

    /// Returns whether the memory for the index of the log is what limits the log at present, and not the disk.
    pub const fn is_index_exhausted(&self) -> bool {
        let has_disk = self.log_free_bytes() > self.disk_bytes_max / DEAD_LETTER_LOG_DIVISOR;
        match self.index_capacity {
            IndexCapacity::Exhausted => true,
            IndexCapacity::DeadLettersOnly => has_disk,
            IndexCapacity::Enough => false,
        }
    }

    /// Sets how much is left of the memory for the index of the log in memory.
    pub(crate) fn set_index_capacity(&mut self, capacity: IndexCapacity) {
        self.capacity_freed += u64::from(capacity > self.index_capacity);
        self.index_capacity = capacity;
    }

    /// Returns the bytes of disk space that publishers may not use, so that there is space for `bytes` bytes
    /// of dead letters.
    ///
    /// Returns at most 1/8 of the log's limit. While at most 1/8 of the index memory is left, returns all free bytes.
    pub const fn reserved_for_dead_letters(&self, bytes: u64) -> u64 {
        let part = self.disk_bytes_max / DEAD_LETTER_LOG_DIVISOR;
        match self.index_capacity {
            IndexCapacity::DeadLettersOnly | IndexCapacity::Exhausted => self.log_free_bytes,
            IndexCapacity::Enough if bytes < part => bytes,
            IndexCapacity::Enough => part,
        }
    }

    /// Returns the proof for a transient message, which goes into its queues without a record.
    #[inline]
    pub const fn transient(message: MessageId) -> Appended {
        Appended { message, targets: 0, batch: Batch::NONE }
    }

    /// Appends a message with these targets. Without targets, nothing is written.
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
        let bytes =
            messages.stream_len(message) as u64 + RECORD_BYTES + TARGET_BYTES_MAX as u64 * u64::from(targets);
        if self.open_bytes > 0 && self.open_bytes + bytes > self.batch_bytes_max {
            self.close_batch();
        }
        self.open_bytes += bytes;
        self.pending_bytes += bytes;
        messages.retain(message);
        messages.set_mark(message, mark_of(self.first_number + self.pending.len() as u64));
        let bytes = bytes.min(u64::from(u32::MAX)) as u32;
        let batch = self.open_batch;
        if urgency == Urgency::Awaited {
            self.latency.note_awaited(batch, self.time_ms);
        }
        self.pending.push_back(Pending { message, targets, live: targets, bytes, batch });
        self.live += 1;
        self.note_change(urgency);
        Appended { message, targets, batch }
    }

    /// Returns whether a persistent message is not in a commit yet.
    #[inline]
    pub fn is_pending_write(&self, messages: &Messages, message: MessageId) -> bool {
        self.position_of(messages, message).is_some()
    }

    /// Requests a commit at once, because a client waits for capacity in the buffer.
    pub fn request_commit_now(&mut self) {
        if self.mode == Mode::On && self.live > 0 {
            self.note_change(Urgency::Awaited);
        }
    }

    /// Requests a commit of the open batch with this urgency. Returns that batch.
    fn request_commit(&mut self, urgency: Urgency) -> Batch {
        if self.mode != Mode::On {
            return Batch::NONE;
        }
        self.note_change(urgency);
        self.open_batch
    }

    /// Requests a commit of everything appended so far. Returns the batch to wait for.
    pub fn request_commit_of_all(&mut self) -> Batch {
        if self.is_empty() { Batch::NONE } else { self.await_settles() }
    }

    /// Notes that a message is delivered before its commit. The commit will contain a watermark for it.
    pub fn note_delivered_early(&mut self, queue: u64, offset: u64) {
        match self.piggybacked.last_mut().filter(|last| last.0 == queue) {
            Some(last) => last.1 = last.1.max(offset),
            None => {
                if self.piggybacked.len() == self.piggybacked.capacity() {
                    self.merge_piggybacked();
                }
                self.piggybacked.push((queue, offset));
            }
        }
    }

    /// Keeps only the highest watermark of each queue.
    fn merge_piggybacked(&mut self) {
        sort(&mut self.piggybacked);
        self.piggybacked.dedup_by(|next, kept| {
            let same = next.0 == kept.0;
            if same {
                kept.1 = kept.1.max(next.1);
            }
            same
        });
    }

    /// Counts a change and raises the urgency to at least this one.
    fn note_change(&mut self, urgency: Urgency) {
        self.is_open_used |= urgency != Urgency::Lazy;
        self.change_count += 1;
        self.urgency = Some(self.urgency.map_or(urgency, |noted| noted.min(urgency)));
    }

    /// Returns the index in `pending` of a message that has unsettled targets.
    #[inline]
    fn position_of(&self, messages: &Messages, message: MessageId) -> Option<usize> {
        let mark = messages.mark(message);
        if mark == 0 {
            return None;
        }
        let at = marks_between(mark_of(self.first_number), mark) as usize;
        // Marks repeat after four billion messages, so the message at this position may be another one.
        let found = self.pending.get(at).filter(|pending| pending.message == message && pending.live > 0);
        found.map(|_| at)
    }
}

// Log entries.

impl PendingWrites {
    /// Returns the batch that makes all log entries appended so far durable.
    pub fn last_entry_batch(&self) -> Batch {
        if self.last_entry_batch > self.durable { self.last_entry_batch } else { Batch::NONE }
    }

    /// Appends that a definition was created, changed or (without a value) deleted; see [`Definition`]. Returns
    /// the batch to wait for.
    ///
    /// If the last entry sets the same definition and is not in a commit yet, this change replaces it. So the state of
    /// a session is written once when its client acknowledges many messages at once.
    pub fn define(&mut self, key: Box<[u8]>, value: Option<Box<[u8]>>) -> Batch {
        let version = self.next_version();
        let entry = LogEntry::Defined { version, key, value };
        if let Some((batch, last)) = self.entries.back_mut()
            && *batch == self.open_batch
            && last.can_be_replaced_by(&entry)
        {
            self.entry_bytes -= last.bytes();
            self.entry_bytes += entry.bytes();
            *last = entry;
            return self.request_commit(Urgency::Awaited);
        }
        self.append_entry(entry)
    }

    /// Appends a definition, or its deletion unless it `exists`. Returns the batch to wait for; see [`Self::define`].
    pub fn write_definition(&mut self, definition: &Definition<'_>, exists: bool) -> Batch {
        self.define(definition.key(), exists.then(|| definition.value()))
    }

    /// Appends that a queue is deleted with all its messages. Pending messages of the queue are no longer written.
    ///
    /// The publishers of these messages receive their confirms when the deletion is durable. Otherwise, after
    /// a power cut, the queue could exist again without confirmed messages.
    pub fn append_queue_deleted(&mut self, queue: u64) -> Batch {
        self.freed_count += 1;
        if self.mode == Mode::On && !self.pending.is_empty() {
            self.deleted_queues.push_back((queue, self.first_number + self.pending.len() as u64));
        }
        let batch = self.append_entry(LogEntry::Gone { queue });
        if let (Some(first), Some((entry_batch, _))) = (self.pending.front(), self.entries.back_mut()) {
            // The deletion belongs to the batch of the first pending message, so that no batch of a pending
            // message becomes durable before it.
            *entry_batch = first.batch;
        }
        batch
    }

    /// Appends that messages below `offset` may have been delivered. The entry must be durable before any of
    /// them is delivered.
    ///
    /// Returns the value that [`Self::entries_durable`] must reach for that. Waiting for a batch would be
    /// wrong, because it also contains messages that were appended earlier. On a full disk these messages
    /// wait for space that only deliveries can free.
    pub fn set_delivered_watermark(&mut self, queue: u64, offset: u64) -> u64 {
        self.append_entry(LogEntry::DeliveredWatermark { queue, offset });
        self.entries_appended
    }

    /// Appends, at a clean stop, that no message from `offset` on was delivered, although some of them are
    /// below `watermark`.
    pub fn reset_watermark(&mut self, queue: u64, offset: u64, watermark: u64) {
        self.append_entry(LogEntry::WatermarkReset { queue, offset, watermark });
    }

    /// Returns how many log entries are durable.
    pub const fn entries_durable(&self) -> u64 {
        self.entries_durable
    }

    /// Returns the number of log entries appended since the start. A caller may wait until [`Self::entries_durable`]
    /// reaches this number. A batch would also contain messages, which wait for space on a full disk.
    pub const fn entries_appended(&self) -> u64 {
        self.entries_appended
    }

    /// Returns how many log entries are durable in one commit, or for access definitions in two.
    pub const fn entries_safe(&self) -> u64 {
        self.entries_safe
    }

    /// Returns the number of log entries that are in a commit, since the start. An access definition counts from its first
    /// commit on.
    fn entries_in_commit(&self) -> u64 {
        self.entries_appended - self.entries.len() as u64
    }

    /// Appends a log entry to the open batch. Returns the batch to wait for.
    fn append_entry(&mut self, entry: LogEntry) -> Batch {
        if self.mode != Mode::On {
            return Batch::NONE;
        }
        self.entry_bytes += entry.bytes();
        self.entries_appended += 1;
        self.entries.push_back((self.open_batch, entry));
        self.last_entry_batch = self.open_batch;
        self.request_commit(Urgency::Awaited)
    }
}

// Settlements, and messages that need not be written any more.

impl PendingWrites {
    /// Settles one target of a message. If it was the last one and the message is not in a commit, the message is
    /// never written, unless a group settles it.
    pub fn settle(&mut self, messages: &mut Messages, target: Target, message: MessageId) {
        if self.mode != Mode::On {
            return;
        }
        let settled = Settled { queue: target.queue, start: target.offset, end: target.offset + 1 };
        if !self.groups.is_open() && self.drop_target(messages, message) {
            self.settle_range(settled);
        } else {
            self.settle_stored(settled);
        }
    }

    /// Removes one target of a message that was settled, or whose queue was deleted. Returns `true` if no target is left,
    /// so that the message will not be written.
    pub fn drop_target(&mut self, messages: &mut Messages, message: MessageId) -> bool {
        let Some(at) = self.position_of(messages, message) else { return false };
        let pending = &mut self.pending[at];
        pending.live -= 1;
        if pending.live > 0 {
            return false;
        }
        let pending = *pending;
        self.subtract_pending(messages, pending);
        self.capacity_freed += 1;
        messages.release(message);
        true
    }

    /// Subtracts a message from the counts of pending messages, and clears its mark.
    fn subtract_pending(&mut self, messages: &mut Messages, pending: Pending) {
        self.pending_bytes -= u64::from(pending.bytes);
        self.live -= 1;
        messages.set_mark(pending.message, 0);
    }

    /// Settles a range of offsets of messages that are in the log.
    pub fn settle_stored(&mut self, settled: Settled) {
        if self.groups.is_open() {
            self.groups.settle(settled);
        } else if self.mode == Mode::On {
            self.has_stored_settles = true;
            self.note_change(Urgency::Lazy);
            self.settle_range(settled);
        }
    }

    /// Adds a settlement and merges it with the last one if they are adjacent.
    #[inline]
    fn settle_range(&mut self, settled: Settled) {
        self.freed_count += 1;
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
            merge_settles(&mut self.settles);
            if self.settles.len() > self.settles.capacity() / 2 {
                self.note_change(Urgency::Awaited);
            }
        }
        self.settles.push(settled);
    }

    /// Requests a commit of all settlements so far. Returns the batch to wait for.
    pub fn await_settles(&mut self) -> Batch {
        if self.mode == Mode::On && self.has_stored_settles {
            self.settles_awaited.get_or_insert(self.open_batch);
        }
        self.request_commit(Urgency::Awaited)
    }
}

// Used by the storage: what goes into a commit, and what is durable.

impl PendingWrites {
    /// Returns the highest urgency of the changes since the last call; `None` if there were none.
    pub fn take_urgency(&mut self) -> Option<Urgency> {
        self.urgency.take()
    }

    /// Returns whether something changed since the last call of [`Self::take_urgency`].
    pub const fn has_changes(&self) -> bool {
        self.urgency.is_some()
    }

    /// Returns the next log entry for a commit. Entries that must be written a second time come first.
    pub fn next_entry(&self) -> Option<&LogEntry> {
        if self.repeats_ready > 0 {
            return self.repeats.front().map(|(_, _, entry)| entry);
        }
        self.entries.front().map(|(_, entry)| entry)
    }

    /// Removes the entry that [`Self::next_entry`] returned: it is in a commit.
    pub fn pop_entry(&mut self) {
        if let Some(ready) = self.repeats_ready.checked_sub(1) {
            self.repeats_ready = ready;
            if let Some((_, _, entry)) = self.repeats.pop_front() {
                self.entry_bytes -= entry.bytes();
            }
        } else if let Some((batch, entry)) = self.entries.pop_front() {
            if entry.is_access() {
                self.repeats.push_back((batch, self.entries_in_commit(), entry));
            } else {
                self.entry_bytes -= entry.bytes();
            }
        }
        self.capacity_freed += 1;
    }

    /// Calls `each` with all settlements, merged and sorted, and removes them.
    pub fn drain_settles(&mut self, each: impl FnMut(Settled)) {
        merge_settles(&mut self.settles);
        self.has_stored_settles = false;
        self.settles.drain(..).for_each(each);
    }

    /// Calls `each` with the watermarks for early deliveries, one per queue, until it returns `false` for
    /// lack of space. Returns whether all were written.
    pub(crate) fn drain_piggybacked(&mut self, mut each: impl FnMut(u64, u64) -> bool) -> bool {
        self.merge_piggybacked();
        while let Some(&(queue, offset)) = self.piggybacked.last() {
            if !each(queue, offset) {
                return false;
            }
            self.piggybacked.pop();
        }
        true
    }

    /// Returns the next message to write, and puts its targets into `targets`.
    pub fn front(&mut self, messages: &mut Messages, targets: &mut Vec<Target>) -> Option<Front> {
        loop {
            self.drop_settled();
            let pending = *self.pending.front()?;
            let number = self.first_number;
            self.targets_of(number, 0..pending.targets as usize, targets);
            if targets.is_empty() {
                self.subtract_pending(messages, pending);
                messages.release(pending.message);
                self.pop();
                continue;
            }
            return Some(Front { message: pending.message, number });
        }
    }

    /// Puts the targets of message `number` whose queues were not deleted into `targets`. `range` is the place of all
    /// its targets in `PendingWrites::targets`.
    fn targets_of(&self, number: u64, range: core::ops::Range<usize>, targets: &mut Vec<Target>) {
        targets.clear();
        targets.extend(self.targets.range(range).filter(|target| {
            !self.deleted_queues.iter().any(|(queue, before)| *queue == target.queue && number < *before)
        }));
    }

    /// Removes messages at the front whose targets are all settled.
    #[inline]
    fn drop_settled(&mut self) {
        while self.pending.front().is_some_and(|pending| pending.live == 0) {
            self.pop();
        }
    }

    /// Notes that the message that [`Self::front`] returned is in a commit.
    pub fn move_front_to_commit(&mut self, messages: &mut Messages) {
        if let Some(pending) = self.pending.front().copied().filter(|pending| pending.live > 0) {
            self.subtract_pending(messages, pending);
            self.in_commit.push_back(pending.message);
            self.pop();
        }
    }

    /// Removes the first pending message with its targets.
    fn pop(&mut self) {
        if let Some(pending) = self.pending.pop_front() {
            self.targets.drain(..pending.targets as usize);
            self.targets_removed += u64::from(pending.targets);
            self.first_number += 1;
            self.capacity_freed += 1;
            let first = self.first_number;
            while self.deleted_queues.front().is_some_and(|(_, before)| *before <= first) {
                self.deleted_queues.pop_front();
            }
        }
    }

    /// Ends the commit that contains everything taken from the buffer since the last call. Returns the last batch that
    /// is durable when this commit is.
    ///
    /// `settles_left` means that some settlements did not fit into the commit.
    pub fn cover(&mut self, settles_left: bool) -> Batch {
        self.repeats_ready = self.repeats.len();
        if !settles_left && !self.has_stored_settles {
            self.settles_awaited = None;
        }
        self.drop_settled();
        let message = self.pending.front().map(|pending| pending.batch);
        let entry = self.entries.iter().map(|(batch, _)| *batch).min();
        let repeat = self.repeats.front().map(|(batch, _, _)| *batch);
        let group = self.groups.batch();
        let first = [message, entry, repeat, group, self.settles_awaited].into_iter().flatten().min();
        match first {
            Some(batch) => batch.before(),
            None => {
                if self.is_open_used {
                    self.close_batch();
                }
                self.open_batch.before()
            }
        }
    }

    /// Marks everything up to `batch`, and all messages and log entries in commits, as durable.
    pub fn stored(&mut self, messages: &mut Messages, batch: Batch) {
        while let Some(message) = self.in_commit.pop_front() {
            messages.add_flags(message, MessageFlags::STORED);
            messages.release(message);
        }
        self.durable = self.durable.max(batch);
        self.latency.note_durable(self.durable, self.time_ms);
        self.release_withheld(messages);
        self.splits.note_durable();
        self.entries_durable = self.entries_in_commit();
        self.entries_safe = self.repeats.front().map_or(self.entries_durable, |(_, number, _)| number - 1);
        self.capacity_freed += 1;
    }

    /// Advances the durable batch without a commit, past batches that need none any more because their messages were
    /// settled. Called while no commit is being written. Returns whether the durable batch changed.
    pub(crate) fn advance(&mut self, messages: &mut Messages) -> bool {
        if self.mode != Mode::On || !self.in_commit.is_empty() {
            return false;
        }
        let before = self.durable;
        let settles_left = self.settles_awaited.is_some();
        self.durable = self.durable.max(self.cover(settles_left));
        self.latency.note_durable(self.durable, self.time_ms);
        self.release_withheld(messages);
        let is_advanced = self.durable > before;
        self.capacity_freed += u64::from(is_advanced);
        is_advanced
    }

    /// Sets the bytes that may still be written, and those that may be written to an empty log.
    ///
    /// `is_file_system_full` means that the file system is full before the disk limit is reached.
    pub const fn set_log_free_bytes(&mut self, (bytes, bytes_max): (u64, u64), is_file_system_full: bool) {
        // If the total changes, so do the reserves of virtual hosts.
        let is_total_changed = bytes_max != self.disk_bytes_max;
        if bytes > self.log_free_bytes || is_total_changed {
            self.capacity_freed += 1;
            self.freed_count += 1;
        }
        self.is_file_system_full = is_file_system_full;
        self.disk_bytes_max = bytes_max;
        self.log_free_bytes = bytes;
    }

    /// Begins a new batch.
    const fn close_batch(&mut self) {
        self.open_batch = self.open_batch.after();
        self.open_bytes = 0;
        self.is_open_used = false;
    }
}

/// Sorts settlements and merges adjacent ones.
///
/// No offset may be settled twice: recovery would reject the record.
fn merge_settles(settles: &mut Vec<Settled>) {
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

/// Largest number of additional pending messages that only transactions may use.
const TRANSACTION_EXTRA_MAX: usize = 8192;

/// Returns the number of settlements kept when `pending_max` messages may wait for a commit.
const fn settles_max(pending_max: usize) -> usize {
    if SETTLES_MAX < 4 * pending_max { SETTLES_MAX } else { 4 * pending_max }
}

/// Returns the mark of the message with this number; never 0.
const fn mark_of(number: u64) -> u32 {
    (number % (u32::MAX as u64)) as u32 + 1
}

/// Returns the distance between the numbers of two marks, less than four billion.
const fn marks_between(first: u32, mark: u32) -> u32 {
    // Marks wrap around and omit 0.
    let apart = mark.wrapping_sub(first);
    if mark < first { apart - 1 } else { apart }
}
