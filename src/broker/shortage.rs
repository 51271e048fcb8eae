//! Why a publisher waits.
//!
//! Why it exists: which pool lacks room is known where a message is refused, and nowhere else; guessing it
//! later from how full the pools are names the wrong one. So it is noted there.
//!
//! Always true: each cause that can make a publisher wait is here.

use leveret_core::command::QueueId;
use leveret_core::mem::PoolFull;

/// A pool of memory that publishers take from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pool {
    /// Messages in memory.
    Messages,
    /// The bodies and properties of messages in memory.
    Bodies,
    /// Messages whose content is still coming in.
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
    /// As many messages wait to be written as may.
    Commit,
    /// The store cannot be written.
    Unwritable,
    /// The log has reached `disk_limit`.
    DiskLimit,
    /// The index of the log in memory is as large as it may be.
    Index,
    /// The file system has no room, although the log is within `disk_limit`.
    FileSystem,
    /// A queue has used up its share of the log.
    QueueDisk(QueueId),
}

/// Publishers that wait for one thing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Waiters {
    /// The thing that they wait for.
    pub shortage: Shortage,
    /// How many publishers wait; 0 for none yet.
    pub count: u32,
    /// How long the first of them has waited, in ms.
    pub for_ms: u64,
    /// How many other publishers wait for something else.
    pub others: u32,
}

impl Pool {
    /// The configuration key that makes the pool larger.
    pub const fn key(self) -> &'static str {
        match self {
            Self::Messages => "messages_max",
            Self::Bodies => "body_bytes_max",
            Self::Assembly => "assembly_bytes_max",
            Self::Entries => "queue_entries_max",
            Self::Unacknowledged => "unacknowledged_max",
        }
    }
}

impl From<PoolFull> for Pool {
    fn from(full: PoolFull) -> Self {
        match full {
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
    /// Whether the log is what lacks room, so that nothing comes in before somebody makes some.
    pub const fn is_of_disk(self) -> bool {
        matches!(self, Self::DiskLimit | Self::Index | Self::FileSystem | Self::QueueDisk(_))
    }

    /// The word that the text for this shortage begins with.
    pub(crate) const fn kind(self) -> &'static str {
        match self {
            Self::Pool(_) | Self::QueueMemory(_) => "memory",
            Self::Returns | Self::Commit => "room",
            Self::Unwritable => "store",
            _ => "disk",
        }
    }
}

impl Waiters {
    /// A shortage for which no publisher waits yet.
    pub const fn expected(shortage: Shortage) -> Self {
        Self { shortage, count: 0, for_ms: 0, others: 0 }
    }
}
