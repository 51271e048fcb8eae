//! Exchanges and queues that the store has and the start did not declare again.
//!
//! Why it exists: a start under lower limits has no room for some of them, and an older version does not know
//! the type of others. They stay in the store, and come back when they can: so what seems to belong to
//! nothing (their bindings) must not be taken for what a deletion left behind. And nobody may declare another
//! of the same name meanwhile: the log has one definition for a name, so the messages of the first would
//! belong to nobody, and take room for ever. Whoever is told so may raise the limit or delete the first.
//!
//! Always true: nothing comes in here but at a start; there are at most as many entries as limits allow
//! queues and exchanges together, and when more is left out, anything may be.

use core::hash::BuildHasher;

use foldhash::quality::FixedState;

use crate::command::VhostId;
use crate::error::{Fault, ReplyCode};
use crate::journal::{Definition, DestinationName};

use super::{Broker, Context};

/// Which they are.
#[derive(Debug)]
pub(super) struct LeftOut {
    /// Hashes of their virtual hosts, kinds and names, in order, each with its version or incarnation.
    entries: Vec<(u64, u64)>,
    entries_max: usize,
    /// There are more.
    has_more: bool,
    hasher: FixedState,
}

impl LeftOut {
    /// Bytes of one.
    pub(super) const ENTRY_BYTES: usize = size_of::<(u64, u64)>();

    /// None yet; memory for them is taken when there are some.
    pub(super) const fn new(entries_max: usize, seed: u64) -> Self {
        Self { entries: Vec::new(), entries_max, has_more: false, hasher: FixedState::with_seed(seed) }
    }

    /// It was not declared again.
    pub(super) fn add(&mut self, vhost: &str, name: DestinationName<'_>, version: u64) {
        if self.entries.len() == self.entries_max {
            self.has_more = true;
            return;
        }
        let hash = self.hasher.hash_one((vhost, name));
        let at = self.entries.partition_point(|(other, _)| *other < hash);
        self.entries.reserve_exact(1);
        self.entries.insert(at, (hash, version));
    }

    /// Whether what has this name and version may only be missing because it was left out.
    pub(super) fn may_have(&self, vhost: &str, name: DestinationName<'_>, version: u64) -> bool {
        self.has_more || self.find(vhost, name).is_some_and(|at| self.entries[at].1 == version)
    }

    /// The version of what was left out and has this name.
    fn version_of(&self, vhost: &str, name: DestinationName<'_>) -> Option<u64> {
        self.find(vhost, name).map(|at| self.entries[at].1)
    }

    fn remove(&mut self, vhost: &str, name: DestinationName<'_>) {
        if let Some(at) = self.find(vhost, name) {
            self.entries.remove(at);
        }
    }

    fn find(&self, vhost: &str, name: DestinationName<'_>) -> Option<usize> {
        let hash = self.hasher.hash_one((vhost, name));
        self.entries.binary_search_by_key(&hash, |(other, _)| *other).ok()
    }
}

impl Broker {
    /// Whether something of this name may be declared: not while the store has one that the start left out.
    ///
    /// # Errors
    /// It has, or it may have, and what is to be declared is durable, too.
    pub(super) fn check_not_left_out(
        &self,
        vhost: VhostId,
        name: DestinationName<'_>,
        durable: bool,
    ) -> Result<(), Fault> {
        let is_left_out = self.left_out.version_of(self.vhost_name(vhost), name).is_some();
        if is_left_out || durable && self.left_out.has_more {
            Err(self.is_left_out(vhost, name))
        } else {
            Ok(())
        }
    }

    /// Deletes what the start left out, a queue with its messages, and orphans of that name; `false` when
    /// there is no such thing.
    ///
    /// # Errors
    /// The store cannot be written; or it is to be deleted under a condition of which nothing is known.
    pub(super) fn delete_left_out(
        &mut self,
        cx: &mut Context<'_>,
        vhost: VhostId,
        name: DestinationName<'_>,
        is_conditional: bool,
    ) -> Result<bool, Fault> {
        let Some(version) = self.left_out.version_of(self.vhost_name(vhost), name) else {
            return match name {
                DestinationName::Queue(name) if !is_conditional => self.delete_orphan_of(cx, vhost, name),
                _ => Ok(false),
            };
        };
        if is_conditional {
            return Err(self.is_left_out(vhost, name));
        }
        self.check_deletable(cx.journal, true)?;
        let vhost = self.vhost_name(vhost);
        let (auto_delete, is_rebuilt, arguments) = (false, false, &[][..]);
        let (key, incarnation) = match name {
            DestinationName::Exchange(name) => {
                let (kind, internal) = ("", false);
                let definition =
                    Definition::Exchange { vhost, name, version, kind, auto_delete, internal, arguments };
                (definition.key(), None)
            }
            DestinationName::Queue(name) => {
                let definition = Definition::Queue {
                    vhost,
                    name,
                    incarnation: version,
                    auto_delete,
                    is_rebuilt,
                    arguments,
                };
                (definition.key(), Some(version))
            }
        };
        let vhost: Box<str> = vhost.into();
        self.left_out.remove(&vhost, name);
        if let Some(incarnation) = incarnation {
            cx.journal.queue_gone(incarnation);
        }
        let batch = cx.journal.define(key, None);
        cx.await_batch(batch);
        Ok(true)
    }

    fn is_left_out(&self, vhost: VhostId, name: DestinationName<'_>) -> Fault {
        let remedy = "raise that and start again, or delete it";
        match name {
            DestinationName::Exchange(name) => Fault::new(
                ReplyCode::ResourceError,
                format_args!(
                    "{} is in the store, but the start did not know its type or exchanges_max had no room \
                     for it: {remedy}",
                    self.exchange_in_words(vhost, name)
                ),
            ),
            DestinationName::Queue(name) => Fault::new(
                ReplyCode::ResourceError,
                format_args!(
                    "{} is in the store with its messages, but queues_max had no room for it at the start: \
                     {remedy}",
                    self.queue_in_words(vhost, name)
                ),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_much_to_be_remembered_may_be_anything() {
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
}
