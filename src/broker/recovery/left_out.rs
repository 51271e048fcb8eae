//! Exchanges and queues that the store has and the start did not declare again.
//!
//! Why it exists: a start under lower limits has no room for some exchanges and queues, and an older version
//! does not know the type of others. They stay in the store, and come back when they can: so their bindings
//! must not be taken for what a deletion left behind. And nobody may declare another of the same name
//! meanwhile: the log has one definition for a name, so the messages of the first would belong to nobody, and
//! take room for ever. A client that is refused so may have the limit raised or the first deleted.
//!
//! Always true: nothing is added here but at a start; there are at most as many entries as limits allow
//! queues and exchanges together, and when more is left out, anything may be. Levels for which there is no
//! place become orphans when their queue is deleted: shown, and nobody's.

use core::hash::BuildHasher;

use foldhash::quality::FixedState;

use leveret_core::journal::DestinationName;

/// Exchanges and queues that were left out, by kind and name.
#[derive(Debug)]
pub(crate) struct LeftOut {
    /// Hashes of virtual host, kind and name, in order, each with the version or incarnation.
    pub(super) entries: Vec<(u64, u64)>,
    /// Incarnations of queues with priorities that were left out, each with that of a level in the log.
    levels: Vec<(u64, u64)>,
    /// The most entries and levels together.
    pub(super) entries_max: usize,
    /// More were left out than are known here.
    pub(super) has_more: bool,
    hasher: FixedState,
}

impl LeftOut {
    /// Bytes of one entry.
    pub(crate) const ENTRY_BYTES: usize = size_of::<(u64, u64)>();

    /// An empty list; memory is taken when there are entries.
    pub(super) const fn new(entries_max: usize, seed: u64) -> Self {
        let hasher = FixedState::with_seed(seed);
        Self { entries: Vec::new(), levels: Vec::new(), entries_max, has_more: false, hasher }
    }

    /// Adds an exchange or queue that was not declared again.
    pub(super) fn add(&mut self, vhost: &str, name: DestinationName<'_>, version: u64) {
        if self.entries.len() == self.entries_max {
            self.has_more = true;
            return;
        }
        self.levels.truncate(self.entries_max - self.entries.len() - 1);
        let hash = self.hasher.hash_one((vhost, name));
        let at = self.entries.partition_point(|(other, _)| *other < hash);
        self.entries.reserve_exact(1);
        self.entries.insert(at, (hash, version));
    }

    /// Adds the levels of the queue with this incarnation.
    pub(super) fn add_levels(&mut self, incarnation: u64, levels: &[u64]) {
        let room = self.entries_max - self.entries.len() - self.levels.len();
        let levels = &levels[..levels.len().min(room)];
        self.levels.reserve_exact(levels.len());
        self.levels.extend(levels.iter().map(|level| (incarnation, *level)));
    }

    /// Takes out the levels of the queue with this incarnation, which is deleted.
    pub(super) fn take_levels(&mut self, incarnation: u64) -> impl Iterator<Item = u64> {
        self.levels.extract_if(.., move |(queue, _)| *queue == incarnation).map(|(_, level)| level)
    }

    /// Whether a thing of this name and version may only be missing because it was left out.
    pub(super) fn may_have(&self, vhost: &str, name: DestinationName<'_>, version: u64) -> bool {
        self.has_more || self.find(vhost, name).is_some_and(|at| self.entries[at].1 == version)
    }

    /// The version of the exchange or queue of this name that was left out.
    pub(super) fn version_of(&self, vhost: &str, name: DestinationName<'_>) -> Option<u64> {
        self.find(vhost, name).map(|at| self.entries[at].1)
    }

    pub(super) fn remove(&mut self, vhost: &str, name: DestinationName<'_>) {
        if let Some(at) = self.find(vhost, name) {
            self.entries.remove(at);
        }
    }

    pub(super) fn find(&self, vhost: &str, name: DestinationName<'_>) -> Option<usize> {
        let hash = self.hasher.hash_one((vhost, name));
        self.entries.binary_search_by_key(&hash, |(other, _)| *other).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    pub(super) fn what_is_too_much_to_be_remembered_may_be_anything() {
        let mut left_out = LeftOut::new(2, 1);
        for (name, version) in [("a", 1), ("b", 2)] {
            left_out.add("/", DestinationName::Queue(name), version);
        }
        assert!(left_out.may_have("/", DestinationName::Queue("a"), 1));
        assert!(!left_out.may_have("/", DestinationName::Queue("a"), 2));
        assert!(!left_out.may_have("/", DestinationName::Exchange("a"), 1));
        assert!(!left_out.may_have("v", DestinationName::Queue("a"), 1));
        left_out.add("/", DestinationName::Queue("c"), 3);
        assert!(left_out.may_have("v", DestinationName::Queue("z"), 9));
    }

    #[test]
    fn levels_leave_room_for_what_they_are_of() {
        let mut left_out = LeftOut::new(4, 1);
        left_out.add("/", DestinationName::Queue("a"), 1);
        left_out.add_levels(1, &[11, 12]);
        left_out.add("/", DestinationName::Queue("b"), 2);
        left_out.add_levels(2, &[21]);
        assert_eq!(left_out.take_levels(2).count(), 0, "there is no place");
        left_out.add("/", DestinationName::Queue("c"), 3);
        assert_eq!(left_out.take_levels(1).collect::<Vec<_>>(), [11], "a queue goes before a level");
        assert_eq!(left_out.take_levels(1).count(), 0);
        left_out.add_levels(3, &[31]);
        left_out.add("/", DestinationName::Queue("d"), 4);
        assert_eq!(left_out.take_levels(3).count(), 0);
        assert!(!left_out.has_more);
    }
}
