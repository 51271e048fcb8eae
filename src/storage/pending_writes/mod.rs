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
//! | file | content |
//! |------|---------|
//! | `messages` | messages that wait, or are in a commit that is not durable |
//! | `entries` | log entries: definitions, deleted queues, watermarks |
//! | `settlements` | settlements, and watermarks of early deliveries |
//! | `groups` | what becomes durable together or not at all, such as a transaction |
//! | `splits` | definitions that are too long for one record |
//! | `batches` | the open batch, the last durable one, and the urgency of the next commit |
//! | `capacity` | how much the buffer and the log may take, and what is reserved |
//! | `latency` | how long publishers wait for the disk |
//!
//! # Invariants
//! - A log entry is written before, or in the same commit as, messages that were appended after it.
//! - Batches become durable in order.
//! - Access definitions (users, virtual hosts, permissions, limits) are written in two consecutive commits,
//!   and count as durable with the second. So a single damaged block can neither remove a permission nor
//!   restore a removed one.
//! - The buffer does no I/O and reads no clock.

mod batches;
mod capacity;
mod entries;
mod groups;
mod latency;
mod messages;
mod settlements;
mod splits;
#[cfg(test)]
mod tests;

use leveret_core::batch::Batch;
use leveret_core::definition::Definition;
use leveret_core::mem::{MessageId, Messages};

use batches::Batches;
use capacity::{Capacity, pending_max, pending_with_transactions_max};
use entries::{ENTRIES_MAX, ENTRY_BYTES_MAX, Entries};
use groups::{GROUPS_MAX, Groups};
use messages::PendingMessages;
use settlements::{Settlements, settles_max};
use splits::Splits;

use crate::record::{CHUNK_BODY_BYTES, TARGET_BYTES_MAX, Target};

pub use batches::Urgency;
pub use capacity::{IndexCapacity, NoCapacity};
pub use entries::LogEntry;
pub(crate) use groups::Group;
pub use groups::is_group;
pub use latency::{LATENCY_BOUNDS_MS, LatencyHistogram};
pub(crate) use messages::{Cursor, Front};
pub use settlements::Settled;
pub use splits::{PART_BYTES, SplitDefinition};
pub(crate) use splits::{SplitCursor, SplitRecord};

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

/// The flag of incarnations of transient messages. They are in the log only because memory was short.
const TRANSIENT: u64 = 1 << 63;

/// Returns whether an incarnation is that of transient messages, which recovery discards.
pub const fn is_transient(incarnation: u64) -> bool {
    incarnation & TRANSIENT != 0
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

/// Upper bound of the bytes of a message's record without targets, names, properties and body.
const RECORD_BYTES: u64 = 48;

/// The pending-write buffer: everything that waits for a commit.
#[derive(Debug)]
pub struct PendingWrites {
    mode: Mode,
    /// Broker time in milliseconds: the sum of the uptime over all epochs of the store.
    time_ms: u64,
    /// The last version that was returned.
    last_version: u64,
    messages: PendingMessages,
    entries: Entries,
    settlements: Settlements,
    groups: Groups,
    splits: Splits,
    batches: Batches,
    capacity: Capacity,
}

impl PendingWrites {
    /// Returns an empty buffer for a pool of `messages_max` messages. Its mode is `Off` until
    /// [`Self::start`].
    pub fn new(messages_max: usize) -> Self {
        let settles_max = settles_max(pending_max(messages_max));
        Self {
            mode: Mode::Off,
            time_ms: 0,
            last_version: 0,
            messages: PendingMessages::new(pending_with_transactions_max(messages_max)),
            entries: Entries::new(),
            settlements: Settlements::new(settles_max),
            groups: Groups::new(settles_max),
            splits: Splits::default(),
            batches: Batches::new(),
            capacity: Capacity::new(messages_max),
        }
    }

    /// Returns how long publishers waited for the disk until their messages were durable.
    pub const fn latency(&self) -> LatencyHistogram {
        self.batches.latency.histogram()
    }

    /// Returns a count that rises when a message is settled, a queue is deleted, the log has more free bytes, or its
    /// limit changes.
    pub const fn freed(&self) -> u64 {
        self.capacity.log_freed_count
    }

    /// Returns the memory of a buffer for `messages_max` messages, in bytes, for the memory table.
    ///
    /// Between two checks of [`Self::is_crowded`] the broker handles at most `input_bytes` of commands. Their log
    /// entries take up to four times that size.
    pub const fn bytes(messages_max: usize, input_bytes: usize) -> usize {
        let messages = pending_with_transactions_max(messages_max) * PendingMessages::EACH_BYTES;
        // Once for single settlements, once for those of groups.
        let settles = 2 * settles_max(pending_max(messages_max)) * size_of::<Settled>();
        let entries = ENTRIES_MAX * Entries::EACH_BYTES + ENTRY_BYTES_MAX + 4 * input_bytes;
        // A definition of a group takes less than other log entries, even if the group is for it alone.
        const { assert!(size_of::<LogEntry>() + size_of::<Group>() <= 2 * size_of::<(Batch, LogEntry)>() + 8) };
        let groups = GROUPS_MAX * size_of::<Group>();
        messages + settles + entries + groups
    }

    /// Starts the buffer for this epoch of the store. `batch_bytes_max` is the maximum size of a commit.
    ///
    /// If the store is not writable, the mode becomes `Unwritable`.
    pub fn start(&mut self, epoch: u32, is_writable: bool, batch_bytes_max: u64) {
        self.mode = if is_writable { Mode::On } else { Mode::Unwritable };
        // Versions of this epoch are higher than those of all earlier epochs.
        self.last_version = u64::from(epoch) << 32;
        self.batches.bytes_max = batch_bytes_max;
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
        self.batches.durable
    }

    /// Returns the open batch, to which a change made now belongs.
    pub const fn batch(&self) -> Batch {
        self.batches.open
    }

    /// Returns a count that rises with each change that must be written.
    pub const fn change_count(&self) -> u64 {
        self.batches.change_count
    }

    /// Returns the bytes that may still be written before the disk limit, pending messages subtracted.
    pub const fn log_free_bytes(&self) -> u64 {
        self.capacity.log_free_bytes.saturating_sub(self.messages.bytes + self.splits.bytes_left())
    }

    /// Returns the bytes that may be written while the log is empty; 0 without a limit.
    pub const fn disk_bytes_max(&self) -> u64 {
        self.capacity.disk_bytes_max
    }

    /// Returns a count that rises whenever the buffer gains capacity.
    pub const fn capacity_freed(&self) -> u64 {
        // Each message that is removed gives capacity, too.
        self.capacity.freed_count + self.messages.first_number
    }

    /// Returns whether the broker should pause because too many log entries, or settlements of groups, wait. Other
    /// settlements request a commit themselves.
    pub fn is_crowded(&self) -> bool {
        self.entries.bytes + self.groups.entry_bytes > ENTRY_BYTES_MAX
            || self.entries.len() + self.groups.entries.len() > ENTRIES_MAX
            || self.groups.is_crowded()
    }

    /// Returns whether the waiting messages fill a commit, or publishers must wait for one. Delaying such a commit would
    /// save no sync.
    pub(crate) fn fills_commit(&self) -> bool {
        self.messages.bytes + self.splits.bytes_left() >= self.batches.bytes_max
            || self.capacity.is_full(self.messages.len())
    }

    /// Returns the number of messages that wait for their commit.
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// Returns whether nothing requires a commit. Settlements of messages that were never written, and watermarks of
    /// early deliveries, do not count: they are written with a later commit.
    pub fn is_empty(&self) -> bool {
        let has_definitions = !self.entries.is_empty() || !self.splits.is_empty();
        let has_changes = self.messages.live > 0 || has_definitions || self.settlements.has_stored;
        !has_changes && self.groups.is_empty()
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
            _ if self.capacity.is_full(self.messages.len()) => Err(NoCapacity::Commit),
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
        matches!(self.mode, Mode::Unwritable) || bytes <= self.batches.bytes_max
    }

    /// Returns whether a transaction with `messages` messages can be appended now. Transactions may exceed the number
    /// of pending messages at which publishers have to wait.
    pub fn fits_transaction(&self, messages: usize) -> bool {
        self.mode != Mode::On || self.capacity.fits_transactions(self.messages.len() + messages)
    }

    /// Returns whether there is disk space for a new definition. Removing a definition needs none.
    pub const fn can_define(&self) -> bool {
        self.capacity.can_define()
    }

    /// Returns whether the file system is full before the disk limit is reached.
    pub const fn is_file_system_full(&self) -> bool {
        self.capacity.is_file_system_full
    }

    /// Returns the configuration key that limits the log at present.
    pub const fn exhausted_limit_key(&self) -> &'static str {
        if self.is_index_exhausted() { "memory_limit" } else { "disk_limit" }
    }

    /// Returns whether the memory for the index of the log is what limits the log at present, and not the disk.
    pub const fn is_index_exhausted(&self) -> bool {
        self.capacity.is_index_exhausted(self.log_free_bytes())
    }

    /// Sets how much is left of the memory for the index of the log in memory.
    pub(crate) fn set_index_capacity(&mut self, capacity: IndexCapacity) {
        self.capacity.set_index(capacity);
    }

    /// Returns the bytes of disk space that publishers may not use, so that there is space for `bytes` bytes
    /// of dead letters.
    ///
    /// Returns at most 1/8 of the log's limit. While at most 1/8 of the index memory is left, returns all free bytes.
    pub const fn reserved_for_dead_letters(&self, bytes: u64) -> u64 {
        self.capacity.reserved_for_dead_letters(bytes)
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
        let targets = self.messages.push_targets(targets);
        if targets == 0 {
            return Appended { message, targets, batch: Batch::NONE };
        }
        let bytes =
            messages.stream_len(message) as u64 + RECORD_BYTES + TARGET_BYTES_MAX as u64 * u64::from(targets);
        let batch = self.batches.add_message(bytes, urgency, self.time_ms);
        self.messages.push(messages, message, targets, bytes, batch);
        self.batches.note_change(urgency);
        Appended { message, targets, batch }
    }

    /// Returns whether a persistent message is not in a commit yet.
    #[inline]
    pub fn is_pending_write(&self, messages: &Messages, message: MessageId) -> bool {
        self.messages.is_waiting(messages, message)
    }

    /// Requests a commit at once, because a client waits for capacity in the buffer.
    pub fn request_commit_now(&mut self) {
        if self.mode == Mode::On && self.messages.live > 0 {
            self.batches.note_change(Urgency::Awaited);
        }
    }

    /// Requests a commit of the open batch with this urgency. Returns that batch.
    fn request_commit(&mut self, urgency: Urgency) -> Batch {
        if self.mode != Mode::On {
            return Batch::NONE;
        }
        self.batches.note_change(urgency);
        self.batches.open
    }

    /// Requests a commit of everything appended so far. Returns the batch to wait for.
    pub fn request_commit_of_all(&mut self) -> Batch {
        if self.is_empty() { Batch::NONE } else { self.await_settles() }
    }

    /// Notes that a message is delivered before its commit. The commit will contain a watermark for it.
    pub fn note_delivered_early(&mut self, queue: u64, offset: u64) {
        self.settlements.note_delivered_early(queue, offset);
    }
}

// Log entries.

impl PendingWrites {
    /// Returns the batch that makes all log entries appended so far durable.
    pub fn last_entry_batch(&self) -> Batch {
        let last = self.entries.last_batch;
        if last > self.batches.durable { last } else { Batch::NONE }
    }

    /// Appends that a definition was created, changed or (without a value) deleted; see [`Definition`]. Returns
    /// the batch to wait for.
    ///
    /// If the last entry sets the same definition and is not in a commit yet, this change replaces it. So the state of
    /// a session is written once when its client acknowledges many messages at once.
    pub fn define(&mut self, key: Box<[u8]>, value: Option<Box<[u8]>>) -> Batch {
        let version = self.next_version();
        let entry = LogEntry::Defined { version, key, value };
        match self.entries.replace_last(self.batches.open, entry) {
            Ok(()) => self.request_commit(Urgency::Awaited),
            Err(entry) => self.append_entry(entry),
        }
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
        self.capacity.log_freed_count += 1;
        if self.mode == Mode::On {
            self.messages.note_queue_deleted(queue);
        }
        let batch = self.append_entry(LogEntry::Gone { queue });
        if let Some(first) = self.messages.first_batch() {
            // The deletion belongs to the batch of the first pending message, so that no batch of a pending
            // message becomes durable before it.
            self.entries.move_last_to(first);
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
        self.entries.appended
    }

    /// Appends, at a clean stop, that no message from `offset` on was delivered, although some of them are
    /// below `watermark`.
    pub fn reset_watermark(&mut self, queue: u64, offset: u64, watermark: u64) {
        self.append_entry(LogEntry::WatermarkReset { queue, offset, watermark });
    }

    /// Returns how many log entries are durable.
    pub const fn entries_durable(&self) -> u64 {
        self.entries.durable
    }

    /// Returns the number of log entries appended since the start. A caller may wait until [`Self::entries_durable`]
    /// reaches this number. A batch would also contain messages, which wait for space on a full disk.
    pub const fn entries_appended(&self) -> u64 {
        self.entries.appended
    }

    /// Returns how many log entries are durable in one commit, or for access definitions in two.
    pub const fn entries_safe(&self) -> u64 {
        self.entries.safe
    }

    /// Appends a log entry to the open batch. Returns the batch to wait for.
    fn append_entry(&mut self, entry: LogEntry) -> Batch {
        if self.mode != Mode::On {
            return Batch::NONE;
        }
        self.entries.push(self.batches.open, entry);
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
        let is_dropped = self.messages.drop_target(messages, message);
        if is_dropped {
            self.capacity.freed_count += 1;
        }
        is_dropped
    }

    /// Settles a range of offsets of messages that are in the log.
    pub fn settle_stored(&mut self, settled: Settled) {
        if self.groups.is_open() {
            self.groups.settle(settled);
        } else if self.mode == Mode::On {
            self.settlements.has_stored = true;
            self.batches.note_change(Urgency::Lazy);
            self.settle_range(settled);
        }
    }

    #[inline]
    fn settle_range(&mut self, settled: Settled) {
        self.capacity.log_freed_count += 1;
        if self.settlements.add(settled) {
            self.batches.note_change(Urgency::Awaited);
        }
    }

    /// Requests a commit of all settlements so far. Returns the batch to wait for.
    pub fn await_settles(&mut self) -> Batch {
        if self.mode == Mode::On {
            self.settlements.note_awaited(self.batches.open);
        }
        self.request_commit(Urgency::Awaited)
    }
}

// Used by the storage: what goes into a commit, and what is durable.

impl PendingWrites {
    /// Returns the highest urgency of the changes since the last call; `None` if there were none.
    pub fn take_urgency(&mut self) -> Option<Urgency> {
        self.batches.urgency.take()
    }

    /// Returns whether something changed since the last call of [`Self::take_urgency`].
    pub const fn has_changes(&self) -> bool {
        self.batches.urgency.is_some()
    }

    /// Returns the next log entry for a commit. Entries that must be written a second time come first.
    pub fn next_entry(&self) -> Option<&LogEntry> {
        self.entries.front()
    }

    /// Removes the entry that [`Self::next_entry`] returned: it is in a commit.
    pub fn pop_entry(&mut self) {
        self.entries.pop();
        self.capacity.freed_count += 1;
    }

    /// Calls `each` with all settlements, merged and sorted, and removes them.
    pub fn drain_settles(&mut self, each: impl FnMut(Settled)) {
        self.settlements.drain(each);
    }

    /// Calls `each` with the watermarks for early deliveries, one per queue, until it returns `false` for
    /// lack of space. Returns whether all were written.
    pub(crate) fn drain_piggybacked(&mut self, each: impl FnMut(u64, u64) -> bool) -> bool {
        self.settlements.drain_watermarks(each)
    }

    /// Returns the next message to write, and puts its targets into `targets`.
    pub fn front(&mut self, messages: &mut Messages, targets: &mut Vec<Target>) -> Option<Front> {
        self.messages.front(messages, targets)
    }

    /// Notes that the message that [`Self::front`] returned is in a commit.
    pub fn move_front_to_commit(&mut self, messages: &mut Messages) {
        self.messages.move_front_to_commit(messages);
    }

    /// Ends the commit that contains everything taken from the buffer since the last call. Returns the last batch that
    /// is durable when this commit is.
    ///
    /// `settles_left` means that some settlements did not fit into the commit.
    pub fn cover(&mut self, settles_left: bool) -> Batch {
        self.settlements.end_commit(settles_left);
        self.messages.drop_settled();
        let message = self.messages.first_batch();
        let (entry, group) = (self.entries.end_commit(), self.groups.batch());
        let first = [message, entry, group, self.settlements.awaited].into_iter().flatten().min();
        self.batches.end_commit(first)
    }

    /// Marks everything up to `batch`, and all messages and log entries in commits, as durable.
    pub fn stored(&mut self, messages: &mut Messages, batch: Batch) {
        self.messages.note_durable(messages);
        self.note_durable(messages, batch);
        self.splits.note_durable();
        self.entries.note_durable();
        self.capacity.freed_count += 1;
    }

    /// Marks everything up to `batch` as durable. Returns whether the durable batch changed.
    fn note_durable(&mut self, messages: &mut Messages, batch: Batch) -> bool {
        let is_changed = self.batches.note_durable(batch, self.time_ms);
        self.messages.release_withheld(messages, self.batches.durable);
        is_changed
    }

    /// Advances the durable batch without a commit, past batches that need none any more because their messages were
    /// settled. Called while no commit is being written. Returns whether the durable batch changed.
    pub(crate) fn advance(&mut self, messages: &mut Messages) -> bool {
        if self.mode != Mode::On || !self.messages.in_commit.is_empty() {
            return false;
        }
        let settles_left = self.settlements.awaited.is_some();
        let batch = self.cover(settles_left);
        let is_advanced = self.note_durable(messages, batch);
        if is_advanced {
            self.capacity.freed_count += 1;
        }
        is_advanced
    }

    /// Sets the bytes that may still be written, and those that may be written to an empty log.
    ///
    /// `is_file_system_full` means that the file system is full before the disk limit is reached.
    pub const fn set_log_free_bytes(&mut self, bytes: u64, bytes_max: u64, is_file_system_full: bool) {
        self.capacity.set_log_free_bytes(bytes, bytes_max, is_file_system_full);
    }
}
