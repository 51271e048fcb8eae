//! The model after a start: what was found is compared with what is promised.
//!
//! Always true: afterwards the model is what was found, and all of it is promised.

use std::collections::{BTreeMap, BTreeSet};

use crate::journal::Batch;

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
}

/// After a start.
impl Model {
    /// Compares what was found with what is promised, and goes on from what was found.
    pub(super) fn recover(&mut self, found: &Found) {
        self.check_definitions(found);
        let mut numbers: BTreeSet<Number> = found.queues.values().copied().collect();
        numbers.extend(found.contents.keys());
        for number in numbers {
            self.check_queue(number, found.contents.get(&number).map_or(&[], Vec::as_slice));
        }
        self.check_transactions(found);
        self.begin(found);
    }

    /// Goes on from what was found, whatever it is: the store was damaged.
    pub(super) fn accept(&mut self, found: &Found) {
        self.is_lenient = true;
        self.begin(found);
    }

    fn check_definitions(&mut self, found: &Found) {
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
            if !history[known..].iter().any(|said| said.value == value) {
                let what = format!("{key:?} is {value:?} after the start, and should be {history:?}");
                self.complaints.push(what);
            }
        }
    }

    fn check_queue(&mut self, number: Number, contents: &[u64]) {
        let durable = self.durable;
        let Some(queue) = self.queues.get_mut(&number) else {
            if !contents.is_empty() {
                self.complain(format!("messages {contents:?} in a queue {number} that never was"));
            }
            return;
        };
        let mut complaints = Vec::new();
        let mut last = 0;
        let mut there = BTreeSet::new();
        for content in contents {
            let Some(arrival) = queue.by_content.get(content).copied() else {
                complaints.push(format!("message {content} is invented, or was settled for good"));
                continue;
            };
            if !there.insert(arrival) {
                complaints.push(format!("message {content} is there twice"));
            }
            if arrival < last {
                complaints.push(format!("message {content} has changed its place"));
            }
            last = last.max(arrival);
            if queue.copies.get(&arrival).is_some_and(|copy| copy.logged.is_none()) {
                complaints.push(format!("message {content} was not for the log"));
            }
        }
        for (arrival, copy) in &queue.copies {
            let Some(batch) = copy.logged else { continue };
            if copy.state == State::Done || copy.droppable || there.contains(arrival) {
                continue;
            }
            if batch <= durable {
                complaints.push(format!("message {} was durable and is lost", copy.content));
            } else if *arrival < last && !queue.gone {
                complaints.push(format!("message {} is missing before later ones", copy.content));
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
        *self = Self { next, is_strict, is_lenient, complaints, ..Self::default() };
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
