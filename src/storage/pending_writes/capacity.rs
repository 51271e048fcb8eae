//! How much the buffer and the log may take, and what is reserved.

/// Why a message cannot be appended now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NoCapacity {
    /// Too many messages wait for their commit, or the store cannot be written.
    Commit,
    /// The disk limit is reached, or the file system is full.
    Disk,
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

/// With less free disk space than this, no new definitions are accepted.
const DEFINITION_FREE_BYTES_MIN: u64 = 256 << 10;
/// At most this fraction (1/8) of the log's limit is reserved for dead letters.
const DEAD_LETTER_LOG_DIVISOR: u64 = 8;
/// Largest number of additional pending messages that only transactions may use.
const TRANSACTION_EXTRA_MAX: usize = 8192;

/// The limits of the buffer and of the log.
#[derive(Debug)]
pub(super) struct Capacity {
    /// Number of pending messages at which publishers have to wait.
    pending_max: usize,
    /// Maximum number of pending messages. Only transactions, which are appended whole or not at all, may exceed
    /// `pending_max`.
    pending_with_transactions_max: usize,
    /// Bytes that may still be written. Pending messages are not subtracted.
    pub(super) log_free_bytes: u64,
    /// `log_free_bytes` of an empty log.
    pub(super) disk_bytes_max: u64,
    pub(super) is_file_system_full: bool,
    /// How much memory is left for the index of the log. It may be used up before the disk limit is reached.
    index: IndexCapacity,
    /// Rises whenever the buffer gains capacity, except by a removed message.
    pub(super) freed_count: u64,
    /// Rises with everything that frees bytes of the log, now or with the next compaction.
    pub(super) log_freed_count: u64,
}

impl Capacity {
    /// Returns the limits for a pool of `messages_max` messages.
    pub(super) const fn new(messages_max: usize) -> Self {
        Self {
            pending_max: pending_max(messages_max),
            pending_with_transactions_max: pending_with_transactions_max(messages_max),
            log_free_bytes: u64::MAX,
            disk_bytes_max: 0,
            is_file_system_full: false,
            index: IndexCapacity::Enough,
            freed_count: 0,
            log_freed_count: 0,
        }
    }

    /// Returns whether publishers have to wait while this number of messages is pending.
    pub(super) const fn is_full(&self, pending: usize) -> bool {
        pending >= self.pending_max
    }

    /// Returns whether transactions may make this number of messages pending.
    pub(super) const fn fits_transactions(&self, pending: usize) -> bool {
        pending <= self.pending_with_transactions_max
    }

    pub(super) const fn can_define(&self) -> bool {
        self.log_free_bytes > DEFINITION_FREE_BYTES_MIN
    }

    /// Returns whether the memory for the index limits the log, and not the disk. `free_bytes` is the free part of the
    /// log, pending messages subtracted.
    pub(super) const fn is_index_exhausted(&self, free_bytes: u64) -> bool {
        match self.index {
            IndexCapacity::Exhausted => true,
            IndexCapacity::DeadLettersOnly => free_bytes > self.disk_bytes_max / DEAD_LETTER_LOG_DIVISOR,
            IndexCapacity::Enough => false,
        }
    }

    pub(super) fn set_index(&mut self, capacity: IndexCapacity) {
        self.freed_count += u64::from(capacity > self.index);
        self.index = capacity;
    }

    /// See [`super::PendingWrites::reserved_for_dead_letters`].
    pub(super) const fn reserved_for_dead_letters(&self, bytes: u64) -> u64 {
        let part = self.disk_bytes_max / DEAD_LETTER_LOG_DIVISOR;
        match self.index {
            IndexCapacity::DeadLettersOnly | IndexCapacity::Exhausted => self.log_free_bytes,
            IndexCapacity::Enough if bytes < part => bytes,
            IndexCapacity::Enough => part,
        }
    }

    /// See [`super::PendingWrites::set_log_free_bytes`].
    pub(super) const fn set_log_free_bytes(&mut self, bytes: u64, bytes_max: u64, is_file_system_full: bool) {
        // If the total changes, so do the reserves of virtual hosts.
        let is_total_changed = bytes_max != self.disk_bytes_max;
        if bytes > self.log_free_bytes || is_total_changed {
            self.freed_count += 1;
            self.log_freed_count += 1;
        }
        self.is_file_system_full = is_file_system_full;
        self.disk_bytes_max = bytes_max;
        self.log_free_bytes = bytes;
    }
}

/// Returns the number of pending messages at which publishers have to wait, in a pool of `messages_max` messages.
pub(super) const fn pending_max(messages_max: usize) -> usize {
    let share = messages_max / 16;
    if share < 256 {
        256
    } else if share > 8192 {
        8192
    } else {
        share
    }
}

/// Returns the maximum number of pending messages, those included that only transactions may use.
pub(super) const fn pending_with_transactions_max(messages_max: usize) -> usize {
    let share = messages_max / 16;
    let extra = if share > TRANSACTION_EXTRA_MAX { TRANSACTION_EXTRA_MAX } else { share };
    pending_max(messages_max) + extra
}
