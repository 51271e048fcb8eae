//! The causes why publishers wait.
//!
//! The code that refuses a message notes the cause, because only this code has checked which pool lacks
//! capacity. When the cause is reported later, another pool may be fuller. Every cause that can make a
//! publisher wait is in [`Shortage`].

use leveret_core::command::QueueId;
use leveret_core::mem::PoolFull;

/// The memory, or a pool of it, that publishers use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pool {
    /// All memory that messages can have.
    Memory,
    /// Messages in memory.
    Messages,
    /// The bodies and properties of messages in memory.
    Bodies,
    /// Messages whose content is still being received.
    Assembly,
    /// Entries of queues.
    Entries,
    /// Unsettled deliveries.
    Unacknowledged,
}

/// Why a publisher waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shortage {
    /// A pool is full.
    Pool(Pool),
    /// A queue has used up its share of the memory for messages.
    QueueMemory(QueueId),
    /// The client does not read messages that are returned to it.
    Returns,
    /// The next commit of the log is full: the maximum number of messages is waiting to be written.
    Commit,
    /// The storage cannot be written.
    Unwritable,
    /// The log has reached `disk_limit`.
    DiskLimit,
    /// The index of the log in memory has reached its maximum size.
    Index,
    /// The file system is full, although the log is within `disk_limit`.
    FileSystem,
    /// A queue has used up its share of the log.
    QueueDisk(QueueId),
}

/// The publishers that wait for the same reason.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WaitingPublishers {
    /// The cause why they wait.
    pub shortage: Shortage,
    /// Number of publishers that wait for this reason; 0 if none waits yet.
    pub count: u32,
    /// Waiting time of the publisher that has waited longest, in milliseconds.
    pub for_ms: u64,
    /// Number of publishers that wait for other reasons of the same kind.
    pub others: u32,
}

/// Number of kinds of shortages ([`Shortage::kind`]).
pub const SHORTAGE_KINDS: usize = 4;

/// The most frequent reason of each kind of shortage for which publishers wait.
pub type WaitingByKind = heapless::Vec<WaitingPublishers, SHORTAGE_KINDS>;

impl Pool {
    /// Returns what uses up its part of the memory, as words for a text.
    pub const fn what(self) -> &'static str {
        match self {
            Self::Memory | Self::Messages => "messages",
            Self::Bodies => "bodies of messages",
            Self::Assembly => "messages that are still being received",
            Self::Entries => "entries of queues",
            Self::Unacknowledged => "unacknowledged deliveries",
        }
    }
}

impl From<PoolFull> for Pool {
    fn from(full: PoolFull) -> Self {
        match full {
            PoolFull::Memory => Self::Memory,
            PoolFull::Messages => Self::Messages,
            PoolFull::Bodies => Self::Bodies,
            PoolFull::Assembly => Self::Assembly,
        }
    }
}

impl From<PoolFull> for Shortage {
    fn from(full: PoolFull) -> Self {
        Self::Pool(full.into())
    }
}

impl Shortage {
    /// Returns whether the cause is a lack of space in the log, for all persistent messages or (`QueueDisk`)
    /// for those to one queue. It lasts until an operator or a consumer frees space.
    pub const fn is_log_full(self) -> bool {
        matches!(self, Self::DiskLimit | Self::Index | Self::FileSystem | Self::QueueDisk(_))
    }

    /// Returns the kind of the shortage, one of [`SHORTAGE_KINDS`]: the word with which its text begins, and the name
    /// of its alarm.
    pub const fn kind(self) -> &'static str {
        match self {
            Self::Pool(_) | Self::QueueMemory(_) => "memory",
            Self::Returns | Self::Commit => "room",
            Self::Unwritable => "store",
            _ => "disk",
        }
    }
}

impl WaitingPublishers {
    /// Returns the entry of a shortage for which no publisher waits yet.
    pub const fn none_for(shortage: Shortage) -> Self {
        Self { shortage, count: 0, for_ms: 0, others: 0 }
    }
}
