//! Orphans: messages that the store has for a queue of which no definition is left.
//!
//! Why it exists: definitions lie twice, and a card may lose both. Messages are left then, with a number for
//! their queue. Where something still tells the name of that queue, it is rebuilt at the start, as a plain
//! durable one: better a queue without its arguments than messages that nobody can reach. The next
//! declaration gives the queue its arguments. Messages of whose queue nobody knows a name, or one that cannot
//! be had, are orphans, until an operator gives them a queue or deletes them, or somebody declares a queue of
//! their name.
//!
//! Always true: orphans come with a start and never later, and only as many are listed as there is room for.

use leveret_core::command::QueueId;

use crate::restored::Contents;

/// The most orphans listed; others wait in the store.
const ORPHANS_MAX: usize = 256;
/// The most bytes of orphans' names; further orphans are known by their number alone.
const NAMES_BYTES_MAX: usize = 16 << 10;
/// Bytes of memory that orphans take, for the memory table.
pub(crate) const ORPHANS_BYTES: usize = ORPHANS_MAX * (size_of::<Orphan>() + 32) + NAMES_BYTES_MAX;

/// Messages whose queue has no definition.
#[derive(Debug)]
pub struct Orphan {
    /// The number that the store knows the queue by.
    pub incarnation: u64,
    /// The messages that the store has of the queue.
    pub contents: Contents,
    /// The virtual host and name of the queue, if something tells them.
    pub name: Option<(Box<str>, Box<str>)>,
}

impl Orphan {
    pub(super) fn is_of(&self, vhost: &str, queue: &str) -> bool {
        self.name.as_ref().is_some_and(|(host, name)| (&**host, &**name) == (vhost, queue))
    }
}

/// A queue that has adopted an orphan whose messages do not stand in it yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Adoption {
    /// The number that the store knows the queue by.
    pub(super) incarnation: u64,
    pub(super) queue: QueueId,
    /// Messages of the orphan.
    pub(super) count: u64,
    /// The queue was purged meanwhile: the messages are to go as soon as they stand in it.
    pub(super) is_purged: bool,
}

/// All orphans, and queues made of orphans.
#[derive(Debug, Default)]
pub(super) struct Orphans {
    pub(super) entries: Vec<Orphan>,
    pub(super) names_bytes: usize,
    /// Orphans that are not listed.
    pub(super) unlisted: u64,
    /// Queues that adopted an orphan whose messages do not stand in them yet.
    pub(super) adopted: Vec<Adoption>,
    /// Rebuilt queues that nobody has declared since.
    pub(super) rebuilt: u32,
}

impl Orphans {
    pub(super) fn add(&mut self, mut orphan: Orphan) {
        if self.entries.len() == ORPHANS_MAX {
            self.unlisted += 1;
            return;
        }
        let bytes = orphan.name.as_ref().map_or(0, |(vhost, name)| vhost.len() + name.len());
        if self.names_bytes + bytes > NAMES_BYTES_MAX {
            orphan.name = None;
        } else {
            self.names_bytes += bytes;
        }
        self.entries.push(orphan);
    }

    pub(super) fn take(&mut self, at: usize) -> Orphan {
        let orphan = self.entries.remove(at);
        self.names_bytes -= orphan.name.as_ref().map_or(0, |(vhost, name)| vhost.len() + name.len());
        orphan
    }

    /// Messages that a queue has adopted and that do not stand in it yet, those of a purge left out.
    pub(super) fn adopted_by(&self, queue: QueueId) -> u32 {
        let by = self.adopted.iter().find(|adoption| adoption.queue == queue && !adoption.is_purged);
        by.map_or(0, |adoption| u32::try_from(adoption.count).unwrap_or(u32::MAX))
    }
}
