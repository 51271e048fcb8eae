//! A queue of the model: its messages, how far each is, and what may be said of them after a start.
//!
//! Always true: every message that it ever had is in `copies` or in `past`.

use std::collections::{BTreeMap, BTreeSet};

use crate::journal::Batch;

use super::model::Arrival;

/// How far a message in a queue is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    Ready,
    /// On its way to a client, or there.
    Out,
    /// Settled, purged, dropped: it may come back until that is durable.
    Done,
}

/// A message in a queue.
#[derive(Clone, Debug)]
pub(super) struct Copy {
    pub(super) content: u64,
    pub(super) state: State,
    /// It outlives a cut once this batch is durable.
    pub(super) logged: Option<Batch>,
    /// A client had it, in whatever life.
    pub(super) seen: bool,
    /// It was on its way to a client in this life.
    pub(super) was_out: bool,
    /// It was on its way to a client in some life.
    pub(super) was_ever_out: bool,
    /// How many the queue had before it, with offsets that passed.
    pub(super) ordinal: u64,
    /// It came in another life, and may have been on its way there.
    pub(super) is_old: bool,
    /// It never was on its way when the life that it was in was stopped.
    pub(super) has_rested: bool,
    /// Its queue may have dropped it for its length.
    pub(super) droppable: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Queue {
    pub(super) name: String,
    /// It outlives a cut.
    pub(super) stored: bool,
    pub(super) auto_delete: bool,
    pub(super) max_length: Option<u64>,
    /// Over its length it refuses instead of dropping.
    pub(super) rejects: bool,
    pub(super) consumers: u32,
    /// Its deletion may not be durable yet.
    pub(super) gone: bool,
    pub(super) copies: BTreeMap<Arrival, Copy>,
    pub(super) ready: BTreeSet<Arrival>,
    pub(super) by_content: BTreeMap<u64, Arrival>,
    /// What was in it once: damage may bring it back.
    pub(super) past: BTreeMap<u64, Arrival>,
    /// Messages and passed offsets that it ever had, and that number for the last one that was on its way to
    /// a client, or the first of its queue.
    pub(super) pushed: u64,
    pub(super) out_through: u64,
    /// Messages that the log counts and that cannot be read: they go when they are to be.
    pub(super) unreadable: u64,
}

impl Queue {
    pub(super) fn new(name: &str, stored: bool) -> Self {
        Self {
            name: name.into(),
            stored,
            auto_delete: false,
            max_length: None,
            rejects: false,
            consumers: 0,
            gone: false,
            copies: BTreeMap::new(),
            ready: BTreeSet::new(),
            by_content: BTreeMap::new(),
            past: BTreeMap::new(),
            pushed: 0,
            out_through: 0,
            unreadable: 0,
        }
    }

    /// From now on places are counted as the log does: what was not durable has left no gaps.
    pub(super) fn count_again(&mut self, next: u64, offset: impl Fn(u64) -> u64) {
        let behind = self.copies.values().filter(|copy| copy.ordinal >= self.out_through);
        let through = behind.map(|copy| offset(copy.content)).min().unwrap_or(next);
        let out =
            self.copies.values().filter(|copy| copy.was_ever_out).map(|copy| offset(copy.content)).max();
        (self.pushed, self.out_through) = (next, out.unwrap_or(0).max(through));
        self.copies.values_mut().for_each(|copy| copy.ordinal = offset(copy.content));
    }

    pub(super) fn refuses(&self) -> Option<bool> {
        let Some(most) = self.max_length.filter(|_| self.rejects) else { return Some(false) };
        let is_sure = |at: &&Arrival| self.copies.get(at).is_none_or(|copy| !copy.droppable);
        let least = self.ready.iter().filter(is_sure).count() as u64;
        match most {
            most if most <= least => Some(true),
            most if most > self.ready.len() as u64 + self.unreadable => Some(false),
            _ => None,
        }
    }

    /// A message that was there once is there again.
    pub(super) fn bring_back(&mut self, content: u64) {
        let Some(arrival) = self.past.remove(&content) else { return };
        let copy = Copy {
            content,
            state: State::Done,
            logged: Some(Batch::NONE),
            seen: false,
            was_out: false,
            was_ever_out: true,
            ordinal: 0,
            is_old: true,
            has_rested: false,
            droppable: false,
        };
        self.copies.insert(arrival, copy);
        self.by_content.insert(content, arrival);
    }

    /// Marks what the queue may drop because it is too long.
    pub(super) fn note_length(&mut self, strict: bool) {
        let Some(most) = self.max_length.filter(|_| !self.rejects) else { return };
        let over = (self.ready.len() as u64).saturating_sub(most) as usize;
        for (at, arrival) in self.ready.iter().enumerate().filter(|_| over > 0) {
            if let Some(copy) = self.copies.get_mut(arrival) {
                copy.droppable |= at < over || !strict && copy.was_out;
            }
        }
    }

    pub(super) fn forget(&mut self, arrival: Arrival) {
        if let Some(copy) = self.copies.remove(&arrival) {
            self.by_content.remove(&copy.content);
            self.past.insert(copy.content, arrival);
        }
    }

    /// Only these are left, all of them ready.
    pub(super) fn start_again(&mut self, contents: &[u64], strict: bool) {
        let wanted: BTreeSet<u64> = contents.iter().copied().collect();
        let gone = self.by_content.iter().filter(|(content, _)| !wanted.contains(content));
        self.past.extend(gone.map(|(content, arrival)| (*content, *arrival)));
        self.copies.retain(|_, copy| wanted.contains(&copy.content));
        self.by_content.retain(|content, _| wanted.contains(content));
        self.ready = self.copies.keys().copied().collect();
        self.consumers = 0;
        self.gone = false;
        for copy in self.copies.values_mut() {
            copy.state = State::Ready;
            copy.logged = Some(Batch::NONE);
            copy.was_out = false;
            copy.is_old = !core::mem::take(&mut copy.has_rested);
            copy.droppable = false;
        }
        self.note_length(strict);
    }
}
