//! Why a publisher waits.
//!
//! Why it exists: what lacks room is known where a message is not taken, and nowhere else; who guesses it
//! later from how full the pools are names the wrong one. So it is noted there.
//!
//! Always true: each cause that can make a publisher wait is here.

use crate::command::{QueueId, VhostId};
use crate::mem::PoolFull;

/// A pool of memory that publishers take from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pool {
    /// Messages in memory.
    Messages,
    /// What they hold.
    Bodies,
    /// Messages that are still coming in.
    Assembly,
    /// Places in queues.
    Entries,
    /// Deliveries that are not settled.
    Unacknowledged,
}

/// Why a publisher waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shortage {
    /// A pool is used up.
    Pool(Pool),
    /// A virtual host has its share of a pool.
    VhostMemory(Pool, VhostId),
    /// The user in this place has its share of a pool.
    UserMemory(Pool, u32),
    /// A queue has its share of the memory for messages.
    QueueMemory(QueueId),
    /// It does not read what is returned to it.
    Returns,
    /// As much waits to be written as may.
    Commit,
    /// The store cannot be written.
    Unwritable,
    /// The log is as large as it may be.
    DiskLimit,
    /// What memory knows of the log is as large as it may be.
    Index,
    /// The file system has no room, though `disk_limit` has.
    FileSystem,
    /// A queue has its share of the log.
    QueueDisk(QueueId),
    /// A virtual host has its share of the log.
    VhostDisk(VhostId),
}

/// Those who wait for one thing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Waiters {
    /// What for.
    pub shortage: Shortage,
    /// How many; nobody yet is 0.
    pub count: u32,
    /// How long the first of them has.
    pub for_ms: u64,
    /// How many more wait for something else.
    pub others: u32,
}

impl Pool {
    /// The configuration's key that makes it larger.
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

impl Shortage {
    /// Room for the log is missing, and nothing comes in before somebody makes some.
    pub const fn is_of_disk(self) -> bool {
        matches!(
            self,
            Self::DiskLimit | Self::Index | Self::FileSystem | Self::QueueDisk(_) | Self::VhostDisk(_)
        )
    }

    /// The word that its text begins with.
    pub(crate) const fn kind(self) -> &'static str {
        match self {
            Self::Pool(_) | Self::VhostMemory(..) | Self::UserMemory(..) | Self::QueueMemory(_) => "memory",
            Self::Returns | Self::Commit => "room",
            Self::Unwritable => "store",
            _ => "disk",
        }
    }
}

impl Waiters {
    /// Nobody waits for it yet, and whoever comes will.
    pub const fn expected(shortage: Shortage) -> Self {
        Self { shortage, count: 0, for_ms: 0, others: 0 }
    }
}
