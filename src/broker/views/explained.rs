//! The text that explains why publishers wait.
//!
//! The log, the command line, the management API and the status page print the same text. It names the pool
//! or queue, the numbers, and the one remedy. Every key that it names is a configuration key.

use core::fmt;

use leveret_core::command::QueueId;
use leveret_core::limits::Megabytes;
use leveret_core::mem::{ENTRIES_PER_CHUNK, Messages};
use leveret_core::pending_writes::PendingWrites;

use super::Views;
use crate::queue_records::Queue;
use crate::shortage::{Pool, Shortage, Waiters};

impl<'b> Views<'b> {
    /// Returns the text for waiting publishers: how many, since when, for what, and the remedy.
    pub const fn explain(
        self,
        (pending_writes, messages): (&'b PendingWrites, &'b Messages),
        waiters: Waiters,
        disk: DiskFacts,
    ) -> Explained<'b> {
        Explained { views: self, pending_writes, messages, waiters, disk }
    }
}

/// Facts about the disk for the text that the broker does not know.
#[derive(Clone, Copy, Default, Debug)]
pub struct DiskFacts {
    /// `disk_limit` in bytes; 0 when it is not shown.
    pub limit_bytes: u64,
    /// The file system has no free inodes.
    pub has_no_inodes: bool,
}

/// The text that explains why publishers wait.
#[derive(Debug)]
pub struct Explained<'a> {
    pub(super) views: Views<'a>,
    pub(super) pending_writes: &'a PendingWrites,
    pub(super) messages: &'a Messages,
    pub(super) waiters: Waiters,
    pub(super) disk: DiskFacts,
}

impl fmt::Display for Explained<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shortage = self.waiters.shortage;
        write!(f, "{}: ", shortage.kind())?;
        match shortage {
            Shortage::Pool(pool) => self.pool(f, pool),
            Shortage::QueueMemory(queue) => self.queue_memory(f, queue),
            Shortage::Returns => {
                f.write_str("a publisher does not read the messages that are returned to it")?;
                self.deed(f, format_args!("have it read from its connection"))
            }
            Shortage::Commit => {
                let count = self.pending_writes.len();
                write!(f, "{count} messages wait to be written, and the disk is slower than publishers")?;
                self.deed(
                    f,
                    format_args!("wait, it goes on by itself; if it lasts, publish less persistently"),
                )
            }
            Shortage::Unwritable => {
                f.write_str("it cannot be written, so nothing new is durable")?;
                self.deed(f, format_args!("see to the disk and start again"))
            }
            Shortage::DiskLimit => {
                f.write_str("disk_limit is reached, so publishers of persistent messages wait")?;
                self.disk_used(f)?;
                self.free_log(f, "disk_limit")
            }
            Shortage::Index => {
                f.write_str("index_bytes_max is reached, so publishers of persistent messages wait")?;
                self.free_log(f, "index_bytes_max")
            }
            Shortage::FileSystem if self.disk.has_no_inodes => {
                f.write_str(
                    "the file system of the data directory has no free inodes, whatever its free bytes",
                )?;
                self.deed(f, format_args!("delete files there, small ones too"))
            }
            Shortage::FileSystem => {
                f.write_str("the file system of the data directory is full before disk_limit is reached")?;
                self.deed(f, format_args!("make room there"))
            }
            Shortage::QueueDisk(queue) => {
                self.queue(f, queue)?;
                let bytes = self.sum_over_levels(queue, Queue::log_bytes);
                let (bytes, most) =
                    (Megabytes(bytes), Megabytes(self.views.queues.queue_log_bytes_max(self.pending_writes)));
                let (of, deed) = self.disk();
                write!(f, " has its share of {of}, {bytes} of {most}")?;
                self.with_messages(f, self.sum_over_levels(queue, |record| record.logged.count()))?;
                f.write_str(" (at most four times what is free)")?;
                self.limit(f)?;
                self.deed(f, format_args!("consume or purge that queue, or {deed}"))
            }
        }
    }
}

impl Explained<'_> {
    /// Writes how many publishers wait, and the remedy.
    fn deed(&self, f: &mut fmt::Formatter<'_>, deed: fmt::Arguments<'_>) -> fmt::Result {
        let Waiters { count, for_ms, others, .. } = self.waiters;
        let seconds = for_ms / 1000;
        match count {
            0 => f.write_str("; no publisher waits yet")?,
            1 => write!(f, "; 1 publisher has waited for {seconds} s")?,
            _ => write!(f, "; {count} publishers have waited, the first for {seconds} s")?,
        }
        match others {
            0 => {}
            1 => f.write_str(", and 1 other for something else")?,
            _ => write!(f, ", and {others} others for something else")?,
        }
        write!(f, "; {deed}")
    }

    /// Returns the total that shares of the disk refer to, and how to enlarge it. A full file system leaves
    /// less than `disk_limit`, and raising that would not help.
    const fn disk(&self) -> (&'static str, &'static str) {
        match self.pending_writes.is_file_system_full() {
            true => ("what the full file system leaves", "make room there"),
            false => ("disk_limit", "raise disk_limit"),
        }
    }

    fn pool(&self, f: &mut fmt::Formatter<'_>, pool: Pool) -> fmt::Result {
        let key = pool.key();
        match pool {
            Pool::Messages | Pool::Bodies | Pool::Entries => write!(f, "{key} is used up")?,
            Pool::Assembly => write!(f, "messages that are still coming in use up {key}")?,
            Pool::Unacknowledged => write!(f, "deliveries that nobody has acknowledged use up {key}")?,
        }
        self.used(f, pool)?;
        let Some(()) = self.most_by(f, pool)? else {
            return match pool {
                Pool::Assembly => {
                    self.deed(f, format_args!("have publishers send whole messages, or raise {key}"))
                }
                _ => self.deed(f, format_args!("raise {key}")),
            };
        };
        match pool {
            Pool::Unacknowledged => {
                self.deed(f, format_args!("have its consumers acknowledge, or raise {key}"))
            }
            _ => self.deed(f, format_args!("consume or purge that queue, or raise {key}")),
        }
    }

    /// Writes the queue that uses most of a pool; `None` if none does.
    fn most_by(&self, f: &mut fmt::Formatter<'_>, pool: Pool) -> Result<Option<()>, fmt::Error> {
        let much = |queue: &Queue| match pool {
            Pool::Messages => queue.resident_messages(),
            Pool::Bodies => queue.backlog.bytes() + queue.unsettled.bytes,
            Pool::Entries => queue.backlog.ready().into(),
            Pool::Unacknowledged => queue.unsettled.count.into(),
            Pool::Assembly => 0,
        };
        let Some((queue, much)) = self.views.queues.records().fullest(much) else { return Ok(None) };
        f.write_str(", most by ")?;
        self.queue(f, queue)?;
        match pool {
            Pool::Bodies => write!(f, ", {}", Megabytes(much))?,
            _ => write!(f, ", {much}")?,
        }
        Ok(Some(()))
    }

    /// Writes how much of a pool is used, and its size.
    fn used(&self, f: &mut fmt::Formatter<'_>, pool: Pool) -> fmt::Result {
        let (views, messages) = (self.views, self.messages);
        let bytes = |used: usize, most: usize| (Megabytes(used as u64), Megabytes(most as u64));
        let (used, most) = match pool {
            Pool::Bodies => {
                let (used, most) = bytes(messages.body_bytes_used(), messages.body_bytes_max());
                return write!(f, ", {used} of {most}");
            }
            Pool::Assembly => {
                let (used, most) = bytes(messages.assembly_bytes_used(), messages.assembly_bytes_max());
                return write!(f, ", {used} of {most}");
            }
            Pool::Messages => (messages.messages_used(), messages.messages_max()),
            Pool::Entries => {
                let chunks = views.queues.entries();
                (chunks.chunks_used() * ENTRIES_PER_CHUNK, chunks.chunks_max() * ENTRIES_PER_CHUNK)
            }
            Pool::Unacknowledged => (
                views.queues.deliveries().len(),
                views.queues.deliveries().len() + views.queues.deliveries().room(),
            ),
        };
        write!(f, ", {used} of {most}")
    }

    fn queue_memory(&self, f: &mut fmt::Formatter<'_>, queue: QueueId) -> fmt::Result {
        self.queue(f, queue)?;
        if self.views.queues.records().get(queue.index()).is_none() {
            return self.deed(f, format_args!("wait, it goes on by itself"));
        }
        let free = self.views.queues.free_memory(self.messages);
        let (pool, used) = self.views.queues.records().fullest_pool(free, queue);
        let key = pool.key();
        write!(f, " has its share of {key}, ")?;
        match pool {
            Pool::Bodies => {
                let most = self.messages.body_bytes_max() as u64;
                write!(f, "{} of {}", Megabytes(used), Megabytes(most))?;
                self.with_messages(f, self.sum_over_levels(queue, Queue::resident_messages))?;
            }
            Pool::Entries => {
                let most = self.views.queues.entries().chunks_max() * ENTRIES_PER_CHUNK;
                write!(f, "{used} of {most}")?;
            }
            _ => write!(f, "{used} of {}", self.messages.messages_max())?,
        }
        f.write_str(" (at most twice what is free)")?;
        self.deed(f, format_args!("consume or purge that queue, or raise {key}"))
    }

    /// Writes the remedy when the log has no space: the queue that uses most of it, and the key.
    fn free_log(&self, f: &mut fmt::Formatter<'_>, key: &str) -> fmt::Result {
        match self.most_in_log(f)? {
            None => self.deed(f, format_args!("raise {key}")),
            Some(()) => self.deed(f, format_args!("consume or purge that queue, or raise {key}")),
        }
    }

    /// Writes the queue that uses most of the log; `None` if none does.
    fn most_in_log(&self, f: &mut fmt::Formatter<'_>) -> Result<Option<()>, fmt::Error> {
        let Some((queue, bytes)) = self.views.queues.records().fullest(Queue::log_bytes) else {
            return Ok(None);
        };
        f.write_str(", most by ")?;
        self.queue(f, queue)?;
        write!(f, ", {}", Megabytes(bytes))?;
        Ok(Some(()))
    }

    /// Writes how much the log uses, and how much of the limit it can use.
    fn disk_used(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let usable = self.pending_writes.disk_bytes_max();
        let used = usable.saturating_sub(self.pending_writes.log_free_bytes());
        write!(f, ", {} of {} usable", Megabytes(used), Megabytes(usable))?;
        self.limit(f)
    }

    fn limit(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.disk.limit_bytes {
            0 => Ok(()),
            limit => write!(f, " (disk_limit is {})", Megabytes(limit)),
        }
    }

    fn with_messages(&self, f: &mut fmt::Formatter<'_>, count: u64) -> fmt::Result {
        let s = if count == 1 { "" } else { "s" };
        write!(f, " in {count} message{s}")
    }

    /// Writes the name of a queue, escaped because clients choose names.
    fn queue(&self, f: &mut fmt::Formatter<'_>, queue: QueueId) -> fmt::Result {
        let Some(record) = self.views.queues.records().get(queue.index()) else {
            return f.write_str("a queue");
        };
        let vhost = self.views.access.vhost_name(record.vhost).escape_debug();
        write!(f, "queue '{}' (virtual host '{vhost}')", record.name.escape_debug())
    }

    /// Returns the sum over a queue and its levels; 0 for a deleted queue.
    fn sum_over_levels(&self, queue: QueueId, much: impl Fn(&Queue) -> u64) -> u64 {
        let is_there = self.views.queues.records().get(queue.index()).is_some();
        if is_there { self.views.queues.records().sum_over_levels(queue, much) } else { 0 }
    }
}
