//! The model after a start: what was found is compared with what is promised.
//!
//! Always true: afterwards the model is what was found, and all of it is promised.

use std::collections::{BTreeMap, BTreeSet};

use crate::journal::Batch;

use super::harm::Harm;
use super::model::{Binding, End, Exchange, Key, Model, Number, Said, State};
use super::topology::{AUTO_DELETE_EXCHANGE, kind_of};

/// What a start found.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) queues: BTreeMap<String, Number>,
    pub(super) exchanges: BTreeMap<String, Number>,
    pub(super) bindings: BTreeSet<Binding>,
    /// Contents of each queue, in order.
    pub(super) contents: BTreeMap<Number, Vec<u64>>,
    /// Where each of them stands in its queue.
    pub(super) offsets: BTreeMap<(Number, u64), u64>,
    /// Where the next message of each queue will.
    pub(super) next_offsets: BTreeMap<Number, u64>,
    /// How many of each queue the log counts and nobody can read.
    pub(super) unreadable: BTreeMap<Number, u64>,
}

/// After a start.
impl Model {
    /// Compares what was found with what is promised, and goes on from what was found. What damage costs may
    /// be seen later than at the first start behind it, when a footer knows of a copy that cannot be read;
    /// it is told by the first one.
    pub(super) fn recover(&mut self, found: &Found, harms: &[Harm], is_told: bool) {
        self.dig_up(found);
        self.check_definitions(found, harms);
        let mut numbers: BTreeSet<Number> = found.queues.values().copied().collect();
        numbers.extend(found.contents.keys());
        for number in numbers {
            let contents = found.contents.get(&number).map_or(&[][..], Vec::as_slice);
            self.check_queue(number, contents, harms, is_told);
        }
        if !harms.iter().any(|harm| harm.is_fresh) {
            self.check_transactions(found);
        }
        self.begin(found);
    }

    /// Queues that damage has brought back.
    fn dig_up(&mut self, found: &Found) {
        for number in found.queues.values() {
            if let Some(queue) = self.graves.remove(number) {
                self.queues.insert(*number, queue);
            }
        }
    }

    fn check_definitions(&mut self, found: &Found, harms: &[Harm]) {
        let mut here: BTreeMap<Key, Number> = BTreeMap::new();
        here.extend(found.exchanges.iter().map(|(name, number)| (Key::Exchange(name.clone()), *number)));
        here.extend(found.queues.iter().map(|(name, number)| (Key::Queue(name.clone()), *number)));
        here.extend(found.bindings.iter().map(|binding| (Key::Binding(binding.clone()), 1)));
        let keys: BTreeSet<Key> = self.history.keys().chain(here.keys()).cloned().collect();
        for key in keys {
            let value = here.get(&key).copied();
            if let Key::Binding(binding) = &key
                && value.is_none()
                && !has_ends(found, binding)
            {
                continue;
            }
            let none = vec![Said { serial: 0, batch: Batch::NONE, value: None }];
            let history = self.history.get(&key).unwrap_or(&none);
            let known = history.iter().rposition(|said| said.batch <= self.durable).unwrap_or(0);
            let may_change = harms.iter().any(Harm::may_change);
            if !may_change && !history[known..].iter().any(|said| said.value == value) {
                let what = format!("{key:?} is {value:?} after the start, and should be {history:?}");
                self.complaints.push(what);
            }
        }
    }

    fn check_queue(&mut self, number: Number, contents: &[u64], harms: &[Harm], is_told: bool) {
        let (durable, is_lenient) = (self.durable, self.is_lenient);
        let has_fresh = harms.iter().any(|harm| harm.is_fresh);
        let Some(queue) = self.queues.get_mut(&number) else {
            // The queue of messages whose definition is lost is not known.
            if !contents.is_empty() && !is_lenient {
                self.complain(format!("messages {contents:?} in a queue {number} that never was"));
            }
            return;
        };
        let mut complaints = Vec::new();
        let mut last = 0;
        let mut there = BTreeSet::new();
        for content in contents {
            if queue.past.contains_key(content) && !queue.by_content.contains_key(content) && is_lenient {
                // What was lost may be found again, in any life; what was settled only where that was hit.
                if has_fresh && !harms.iter().any(|harm| harm.may_return(*content)) {
                    complaints.push(format!("message {content} is back, and nothing of it was hit"));
                }
                queue.bring_back(*content);
            }
            let Some(arrival) = queue.by_content.get(content).copied() else {
                complaints.push(format!("message {content} is invented, or was settled for good"));
                continue;
            };
            if !there.insert(arrival) {
                complaints.push(format!("message {content} is there twice"));
            }
            if arrival < last && !is_lenient {
                complaints.push(format!("message {content} has changed its place"));
            }
            last = last.max(arrival);
            if queue.copies.get(&arrival).is_some_and(|copy| copy.logged.is_none()) {
                complaints.push(format!("message {content} was not for the log"));
            }
        }
        let is_queue_hit = harms.iter().any(Harm::may_change);
        for (arrival, copy) in &queue.copies {
            let Some(batch) = copy.logged else { continue };
            if copy.state == State::Done || copy.droppable || there.contains(arrival) || is_queue_hit {
                continue;
            }
            let content = copy.content;
            if batch > durable {
                if *arrival < last && !queue.gone && !has_fresh {
                    complaints.push(format!("message {content} is missing before later ones"));
                }
            } else if !harms.iter().any(|harm| harm.may_lose(content)) {
                complaints.push(format!("message {content} was durable and is lost"));
            } else if !is_told && harms.iter().any(|harm| harm.is_fresh && harm.must_tell(content)) {
                complaints.push(format!("message {content} was hit and is lost, and nobody is told"));
            }
        }
        let name = queue.name.clone();
        self.complaints.extend(complaints.into_iter().map(|what| format!("queue {name} ({number}): {what}")));
    }

    /// All of a transaction is there, or nothing. What was consumed since, or deleted, says nothing.
    fn check_transactions(&mut self, found: &Found) {
        let is_there = |(number, content): &(Number, u64)| {
            found.contents.get(number).is_some_and(|contents| contents.contains(content))
        };
        let queue = |number: &Number| {
            let is_known = found.queues.values().any(|other| other == number);
            self.queues.get(number).filter(|queue| is_known && !queue.gone)
        };
        let mut complaints = Vec::new();
        for asked in &self.asked {
            let is_lost = |(number, content): &(Number, u64)| {
                let Some(queue) = queue(number) else { return false };
                let copy = queue.by_content.get(content).and_then(|arrival| queue.copies.get(arrival));
                let is_wanted = copy.is_some_and(|copy| copy.state != State::Done && !copy.droppable);
                is_wanted && !is_there(&(*number, *content))
            };
            let is_settled = |place: &(Number, u64)| queue(&place.0).is_some() && !is_there(place);
            let has_happened = asked.published.iter().any(is_there) || asked.settled.iter().any(is_settled);
            let has_not = asked.published.iter().any(is_lost) || asked.settled.iter().any(is_there);
            if has_happened && has_not {
                complaints.push(format!("half of a transaction is there: {asked:?}"));
            }
        }
        self.complaints.extend(complaints);
    }

    fn begin(&mut self, found: &Found) {
        let (old_queues, old_exchanges) =
            (core::mem::take(&mut self.queues), core::mem::take(&mut self.exchanges));
        let (next, is_strict, is_lenient) = (self.next, self.is_strict, self.is_lenient);
        let complaints = core::mem::take(&mut self.complaints);
        let mut graves = core::mem::take(&mut self.graves);
        let is_there = |number: &Number| found.queues.values().any(|other| other == number);
        graves
            .extend(old_queues.iter().filter(|(number, _)| !is_there(number)).map(|(n, q)| (*n, q.clone())));
        *self = Self { next, is_strict, is_lenient, complaints, graves, ..Self::default() };
        self.predeclare();
        for (name, number) in &found.exchanges {
            if let Some(exchange) = old_exchanges.get(number) {
                let mut exchange = exchange.clone();
                // A deletion that was begun took it away.
                exchange.auto_delete = exchange.name == AUTO_DELETE_EXCHANGE;
                self.exchange_names.insert(name.clone(), *number);
                self.exchanges.insert(*number, exchange);
            } else {
                let (kind, auto_delete) = kind_of(name);
                self.exchange_names.insert(name.clone(), *number);
                self.exchanges
                    .insert(*number, Exchange { name: name.clone(), kind, durable: true, auto_delete });
            }
            self.found(Key::Exchange(name.clone()), Some(*number));
        }
        for (name, number) in &found.queues {
            let Some(mut queue) = old_queues.get(number).cloned() else { continue };
            queue.start_again(found.contents.get(number).map_or(&[], Vec::as_slice), is_strict);
            let next = found.next_offsets.get(number).copied().unwrap_or(0);
            queue.count_again(next, |content| found.offsets.get(&(*number, content)).copied().unwrap_or(0));
            queue.unreadable = found.unreadable.get(number).copied().unwrap_or(0);
            self.queue_names.insert(name.clone(), *number);
            self.queues.insert(*number, queue);
            self.found(Key::Queue(name.clone()), Some(*number));
        }
        for binding in &found.bindings {
            self.bindings.insert(binding.clone());
            self.found(Key::Binding(binding.clone()), Some(1));
        }
    }
}

impl Model {
    fn found(&mut self, key: Key, value: Option<Number>) {
        self.history.insert(key, vec![Said { serial: 0, batch: Batch::NONE, value }]);
    }
}

fn has_ends(found: &Found, binding: &Binding) -> bool {
    let is_exchange = |number: Number| {
        number > u64::MAX / 2 || found.exchanges.values().any(|exchange| *exchange == number)
    };
    is_exchange(binding.source)
        && match binding.to {
            End::Exchange(number) => is_exchange(number),
            End::Queue(number) => found.queues.values().any(|queue| *queue == number),
        }
}
