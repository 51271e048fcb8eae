//! What must be true: every queue with its messages, every definition, and what of it is promised.
//!
//! Why it exists: the broker is compared with something so simple that it cannot have the same mistakes. The
//! model is told of every command that was taken, and knows of each thing the batch with which it is promised
//! to be durable; after a start it is compared with what was found, and goes on from there.
//!
//! Always true: what is promised (its batch is durable, or a peer was told) must be found; what is not, may
//! be found or not; anything else must not.

use std::collections::{BTreeMap, BTreeSet};

use crate::journal::Batch;

pub(super) use super::queue::{Copy, Queue, State};

/// A queue or an exchange; the same name declared again is another.
pub(super) type Number = u64;
/// In the order of arrival, over all queues.
pub(super) type Arrival = u64;

/// The exchanges that are there from the start.
pub(super) const PREDECLARED: [(&str, Kind); 3] =
    [("amq.direct", Kind::Direct), ("amq.fanout", Kind::Fanout), ("amq.topic", Kind::Topic)];

/// How an exchange routes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Direct,
    Fanout,
    Topic,
}

/// So many messages behind the last one that was on its way to a client, or next, may be called redelivered
/// after a start, and one more for each life.
const FALSELY_REDELIVERED_MAX: u64 = 256 + 24;

#[derive(Clone, Debug)]
pub(super) struct Exchange {
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) durable: bool,
    pub(super) auto_delete: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum End {
    Exchange(Number),
    Queue(Number),
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Binding {
    pub(super) source: Number,
    pub(super) to: End,
    pub(super) key: String,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Key {
    Exchange(String),
    Queue(String),
    Binding(Binding),
}

/// What was said of a definition, oldest first.
pub(super) type History = Vec<Said>;

#[derive(Clone, Copy, Debug)]
pub(super) struct Said {
    /// Rises.
    pub(super) serial: u64,
    pub(super) batch: Batch,
    /// Which instance it is since, if it is there at all.
    pub(super) value: Option<Number>,
}

#[derive(Debug, Default)]
pub(super) struct Model {
    pub(super) queues: BTreeMap<Number, Queue>,
    pub(super) queue_names: BTreeMap<String, Number>,
    pub(super) exchanges: BTreeMap<Number, Exchange>,
    pub(super) exchange_names: BTreeMap<String, Number>,
    pub(super) bindings: BTreeSet<Binding>,
    pub(super) history: BTreeMap<Key, History>,
    pub(super) next: u64,
    /// What came back is delivered in its old order; when deliveries are scarce it is not.
    pub(super) is_strict: bool,
    /// The store was damaged: anything may be missing, or be there again.
    pub(super) is_lenient: bool,
    /// Everything said in this life so far is durable up to this batch.
    pub(super) durable: Batch,
    /// Transactions of this life.
    pub(super) asked: Vec<Asked>,
    pub(super) complaints: Vec<String>,
    /// Queues that are gone: damage may bring them back.
    pub(super) graves: BTreeMap<Number, Queue>,
}

/// A transaction that was asked for: what of it a start can find, or find missing, by queue and content.
#[derive(Debug, Default)]
pub(super) struct Asked {
    /// Messages for the log.
    pub(super) published: Vec<(Number, u64)>,
    /// Messages that were durable and are settled.
    pub(super) settled: Vec<(Number, u64)>,
}

impl Model {
    pub(super) fn new(is_strict: bool) -> Self {
        let mut model = Self { next: 1, is_strict, ..Self::default() };
        model.predeclare();
        model
    }

    pub(super) fn predeclare(&mut self) {
        for (at, (name, kind)) in PREDECLARED.into_iter().enumerate() {
            // Numbers that no other exchange has.
            let number = u64::MAX - at as u64;
            self.exchange_names.insert(name.into(), number);
            self.exchanges
                .insert(number, Exchange { name: name.into(), kind, durable: true, auto_delete: false });
        }
    }

    pub(super) fn complain(&mut self, what: String) {
        self.complaints.push(what);
    }

    /// Something is missing, or there again.
    pub(super) fn miss(&mut self, what: String) {
        if !self.is_lenient {
            self.complaints.push(what);
        }
    }

    pub(super) const fn next_number(&mut self) -> Number {
        self.next += 1;
        self.next
    }

    pub(super) fn queue(&self, name: &str) -> Option<(Number, &Queue)> {
        let number = *self.queue_names.get(name)?;
        Some((number, self.queues.get(&number)?))
    }

    fn say(&mut self, key: Key, batch: Batch, value: Option<Number>) {
        self.next += 1;
        let serial = self.next;
        let nothing = || vec![Said { serial: 0, batch: Batch::NONE, value: None }];
        self.history.entry(key).or_insert_with(nothing).push(Said { serial, batch, value });
    }

    /// A definition as it is now, to be claimed later.
    pub(super) fn serial(&self, key: &Key) -> u64 {
        self.history.get(key).and_then(|history| history.last()).map_or(0, |said| said.serial)
    }

    /// A peer was told: what was true of this then is durable.
    pub(super) fn claim(&mut self, key: &Key, serial: u64) {
        if let Some(history) = self.history.get_mut(key) {
            history.retain(|said| said.serial >= serial);
            if let Some(first) = history.first_mut().filter(|first| first.serial == serial) {
                first.batch = Batch::NONE;
            }
        }
    }

    // ---- definitions

    pub(super) fn declare_queue(&mut self, number: Number, queue: Queue, batch: Batch) {
        if queue.stored {
            self.say(Key::Queue(queue.name.clone()), batch, Some(number));
        }
        self.queue_names.insert(queue.name.clone(), number);
        self.queues.insert(number, queue);
    }

    pub(super) fn declare_exchange(&mut self, number: Number, exchange: Exchange, batch: Batch) {
        if exchange.durable {
            self.say(Key::Exchange(exchange.name.clone()), batch, Some(number));
        }
        self.exchange_names.insert(exchange.name.clone(), number);
        self.exchanges.insert(number, exchange);
    }

    pub(super) fn is_stored(&self, binding: &Binding) -> bool {
        let source = self.exchanges.get(&binding.source).is_some_and(|exchange| exchange.durable);
        source
            && match binding.to {
                End::Exchange(number) => self.exchanges.get(&number).is_some_and(|exchange| exchange.durable),
                End::Queue(number) => self.queues.get(&number).is_some_and(|queue| queue.stored),
            }
    }

    pub(super) fn bind(&mut self, binding: Binding, batch: Batch) {
        if self.bindings.contains(&binding) {
            return;
        }
        if self.is_stored(&binding) {
            self.say(Key::Binding(binding.clone()), batch, Some(1));
        }
        self.bindings.insert(binding);
    }

    /// An auto-delete source goes with its last binding.
    pub(super) fn unbind(&mut self, binding: &Binding, batch: Batch) {
        if !self.bindings.remove(binding) {
            return;
        }
        if self.is_stored(binding) {
            self.say(Key::Binding(binding.clone()), batch, None);
        }
        let source = binding.source;
        let is_used = self.bindings.iter().any(|other| other.source == source);
        if self.exchanges.get(&source).is_some_and(|exchange| exchange.auto_delete) && !is_used {
            self.delete_exchange(source, batch);
        }
    }

    pub(super) fn delete_exchange(&mut self, number: Number, batch: Batch) {
        let Some(exchange) = self.exchanges.get_mut(&number) else { return };
        exchange.auto_delete = false;
        let (name, durable) = (exchange.name.clone(), exchange.durable);
        if self.exchange_names.get(&name) == Some(&number) {
            self.exchange_names.remove(&name);
        }
        if durable {
            self.say(Key::Exchange(name), batch, None);
        }
        self.unbind_all(batch, |binding| binding.source == number || binding.to == End::Exchange(number));
        self.exchanges.remove(&number);
    }

    fn unbind_all(&mut self, batch: Batch, is_meant: impl Fn(&Binding) -> bool) {
        let bindings: Vec<Binding> =
            self.bindings.iter().filter(|binding| is_meant(binding)).cloned().collect();
        for binding in bindings {
            self.unbind(&binding, batch);
        }
    }

    pub(super) fn delete_queue(&mut self, number: Number, batch: Batch) {
        let Some(queue) = self.queues.get_mut(&number) else { return };
        queue.gone = true;
        let (name, stored) = (queue.name.clone(), queue.stored);
        self.queue_names.remove(&name);
        if stored {
            self.say(Key::Queue(name), batch, None);
        }
        self.unbind_all(batch, |binding| binding.to == End::Queue(number));
        if !stored {
            self.queues.remove(&number);
        }
    }

    pub(super) fn add_consumer(&mut self, number: Number) {
        if let Some(queue) = self.queues.get_mut(&number) {
            queue.consumers += 1;
        }
    }

    pub(super) fn drop_consumer(&mut self, number: Number, batch: Batch) {
        let Some(queue) = self.queues.get_mut(&number).filter(|queue| !queue.gone) else { return };
        queue.consumers -= 1;
        if queue.auto_delete && queue.consumers == 0 {
            self.delete_queue(number, batch);
        }
    }

    // ---- messages

    /// A turn is over: what is first in a queue now may have been marked as on its way.
    pub(super) fn note_first(&mut self) {
        for queue in self.queues.values_mut() {
            let first = queue.ready.first().and_then(|arrival| queue.copies.get(arrival));
            queue.out_through = queue.out_through.max(first.map_or(0, |copy| copy.ordinal));
        }
    }

    /// Offsets pass in every queue.
    pub(super) fn stride(&mut self, count: u64) {
        self.queues.values_mut().for_each(|queue| queue.pushed += count);
    }

    /// The queues that a message goes to.
    pub(super) fn route(&self, exchange: &str, key: &str) -> BTreeSet<Number> {
        let mut targets = BTreeSet::new();
        if exchange.is_empty() {
            targets.extend(self.queue_names.get(key));
            return targets;
        }
        let mut to_visit: Vec<Number> = self.exchange_names.get(exchange).copied().into_iter().collect();
        let mut visited = BTreeSet::new();
        while let Some(source) = to_visit.pop() {
            let Some(kind) = self.exchanges.get(&source).map(|exchange| exchange.kind) else { continue };
            if !visited.insert(source) {
                continue;
            }
            for binding in self.bindings.iter().filter(|binding| binding.source == source) {
                let fits = match kind {
                    Kind::Direct => binding.key == key,
                    Kind::Fanout => true,
                    Kind::Topic => topic_fits(&binding.key, key),
                };
                match binding.to {
                    _ if !fits => {}
                    End::Exchange(number) => to_visit.push(number),
                    End::Queue(number) => {
                        targets.insert(number);
                    }
                }
            }
        }
        targets
    }

    /// Whether the queue's own policy refuses one more; `None` where damage leaves it open how many it has.
    pub(super) fn refuses(&self, number: Number) -> Option<bool> {
        self.queues.get(&number).map_or(Some(false), Queue::refuses)
    }

    /// Nobody knows whether the queue took this message.
    pub(super) fn doubt(&mut self, number: Number, content: u64) {
        if let Some(arrival) = self.arrival(number, content)
            && let Some(copy) = self.copy(number, arrival)
        {
            copy.droppable = true;
        }
    }

    pub(super) fn push(&mut self, number: Number, content: u64, logged: Option<Batch>) {
        self.next += 1;
        let arrival = self.next;
        let Some(queue) = self.queues.get_mut(&number) else { return };
        let logged = logged.filter(|_| queue.stored);
        queue.pushed += 1;
        queue.copies.insert(
            arrival,
            Copy {
                content,
                state: State::Ready,
                logged,
                seen: false,
                was_out: false,
                was_ever_out: false,
                ordinal: queue.pushed,
                is_old: false,
                has_rested: false,
                droppable: false,
            },
        );
        queue.by_content.insert(content, arrival);
        queue.ready.insert(arrival);
        queue.note_length(self.is_strict);
    }

    /// A publisher was told that its message is safe.
    pub(super) fn confirm(&mut self, content: u64) {
        for queue in self.queues.values_mut() {
            if let Some(arrival) = queue.by_content.get(&content)
                && let Some(copy) = queue.copies.get_mut(arrival)
                && copy.logged.is_some()
            {
                copy.logged = Some(Batch::NONE);
            }
        }
    }

    /// Where a content stands in a queue.
    pub(super) fn arrival(&self, number: Number, content: u64) -> Option<Arrival> {
        self.queues.get(&number)?.by_content.get(&content).copied()
    }

    /// A message is on its way to a client.
    pub(super) fn take(&mut self, number: Number, arrival: Arrival, redelivered: bool) {
        let strict = self.is_strict;
        let Some(queue) = self.queues.get_mut(&number) else { return };
        let mut wrong = Vec::new();
        while let Some(first) = queue.ready.first().copied().filter(|first| *first < arrival) {
            let Some(copy) = queue.copies.get_mut(&first) else { break };
            if !copy.droppable || !strict {
                if strict || !copy.was_out && !copy.droppable {
                    wrong.push(format!("overtakes {}", copy.content));
                }
                break;
            }
            copy.state = State::Done;
            queue.ready.remove(&first);
        }
        let Some(copy) = queue.copies.get_mut(&arrival) else { return };
        if copy.state != State::Ready {
            wrong.push(format!("is delivered while it is {:?}", copy.state));
        }
        if !redelivered && (copy.seen || copy.was_out) {
            wrong.push("was delivered before and is called new".into());
        }
        if redelivered && !copy.was_out && !copy.is_old {
            wrong.push("is called redelivered and never was".into());
        }
        if redelivered && !copy.was_ever_out && copy.ordinal > queue.out_through + FALSELY_REDELIVERED_MAX {
            wrong.push(format!("is called redelivered, {} behind", copy.ordinal - queue.out_through));
        }
        copy.state = State::Out;
        (copy.was_out, copy.was_ever_out) = (true, true);
        queue.out_through = queue.out_through.max(copy.ordinal);
        queue.ready.remove(&arrival);
        let (content, name) = (copy.content, queue.name.clone());
        wrong.into_iter().for_each(|what| self.miss(format!("message {content} of {name} {what}")));
    }

    pub(super) fn see(&mut self, number: Number, arrival: Arrival) {
        if let Some(copy) = self.copy(number, arrival) {
            copy.seen = true;
        }
    }

    fn copy(&mut self, number: Number, arrival: Arrival) -> Option<&mut Copy> {
        self.queues.get_mut(&number)?.copies.get_mut(&arrival)
    }

    pub(super) fn requeue(&mut self, number: Number, arrival: Arrival) {
        let Some(queue) = self.queues.get_mut(&number) else { return };
        if let Some(copy) = queue.copies.get_mut(&arrival) {
            copy.state = State::Ready;
            queue.ready.insert(arrival);
            queue.note_length(self.is_strict);
        }
    }

    pub(super) fn finish(&mut self, number: Number, arrival: Arrival) {
        if let Some(copy) = self.copy(number, arrival) {
            copy.state = State::Done;
        }
    }

    /// A peer was told that a settlement is safe.
    pub(super) fn forget(&mut self, number: Number, arrival: Arrival) {
        let Some(queue) = self.queues.get_mut(&number) else { return };
        if queue.copies.get(&arrival).is_some_and(|copy| copy.state == State::Done) {
            queue.forget(arrival);
        }
    }

    /// Notes a transaction, before what it settles is finished.
    pub(super) fn ask(&mut self, contents: &[u64], places: &[(Number, Arrival)]) {
        let mut asked = Asked::default();
        for (number, queue) in &self.queues {
            for content in contents {
                let at = queue.by_content.get(content).and_then(|arrival| queue.copies.get(arrival));
                if at.is_some_and(|copy| copy.logged.is_some()) {
                    asked.published.push((*number, *content));
                }
            }
        }
        for (number, arrival) in places {
            let copy = self.queues.get(number).and_then(|queue| queue.copies.get(arrival));
            let durable = copy.filter(|copy| copy.logged.is_some_and(|batch| batch <= self.durable));
            asked.settled.extend(durable.map(|copy| (*number, copy.content)));
        }
        if asked.published.len() + asked.settled.len() > 1 {
            self.asked.push(asked);
        }
    }

    /// All that is ready is dropped.
    pub(super) fn purge(&mut self, number: Number) {
        let Some(queue) = self.queues.get_mut(&number) else { return };
        for arrival in core::mem::take(&mut queue.ready) {
            if let Some(copy) = queue.copies.get_mut(&arrival) {
                copy.state = State::Done;
                queue.out_through = queue.out_through.max(copy.ordinal);
            }
        }
    }

    /// The queue says that it has so many ready; what it may drop explains a difference.
    pub(super) fn check_count(&mut self, number: Number, count: u64, what: &str) {
        let strict = self.is_strict;
        let Some(queue) = self.queues.get_mut(&number) else { return };
        let most = queue.ready.len() as u64;
        let droppable = |at: &&Arrival| queue.copies.get(at).is_some_and(|copy| copy.droppable);
        let dropped: Vec<Arrival> = queue.ready.iter().filter(droppable).copied().collect();
        let (least, name) = (most - dropped.len() as u64, queue.name.clone());
        if strict {
            for arrival in dropped.into_iter().take(most.saturating_sub(count) as usize) {
                queue.ready.remove(&arrival);
                if let Some(copy) = queue.copies.get_mut(&arrival) {
                    copy.state = State::Done;
                }
            }
        }
        if count < least || count > most {
            self.miss(format!("{what}: queue {name} says {count} messages, not {least} to {most}"));
        }
    }

    /// A life was stopped, and where its deliveries ended is written down; or that was lost on the way.
    pub(super) fn rest(&mut self, is_known: bool) {
        for copy in self.queues.values_mut().flat_map(|queue| queue.copies.values_mut()) {
            copy.has_rested = is_known && copy.state == State::Ready && !copy.was_out && !copy.is_old;
        }
    }

    /// Everything said is durable.
    pub(super) fn sync_all(&mut self) {
        let (gone, left) = core::mem::take(&mut self.queues).into_iter().partition(|(_, queue)| queue.gone);
        self.queues = left;
        let mut gone: BTreeMap<Number, Queue> = gone;
        self.graves.append(&mut gone);
        for queue in self.queues.values_mut() {
            let done: Vec<Arrival> = queue
                .copies
                .iter()
                .filter(|(_, copy)| copy.state == State::Done)
                .map(|(at, _)| *at)
                .collect();
            done.into_iter().for_each(|arrival| queue.forget(arrival));
            for copy in queue.copies.values_mut().filter(|copy| copy.logged.is_some()) {
                copy.logged = Some(Batch::NONE);
            }
        }
        for history in self.history.values_mut() {
            history.drain(..history.len() - 1);
            history[0].batch = Batch::NONE;
        }
        self.history.retain(|_, history| history[0].value.is_some());
    }
}

/// Words between dots; `*` is one word, `#` any number.
fn topic_fits(pattern: &str, key: &str) -> bool {
    fn fits(pattern: &[&str], key: &[&str]) -> bool {
        match (pattern, key) {
            ([], []) => true,
            (["#", rest @ ..], _) => {
                fits(rest, key) || key.split_first().is_some_and(|(_, key)| fits(pattern, key))
            }
            ([word, pattern @ ..], [first, key @ ..]) => {
                (*word == "*" || word == first) && fits(pattern, key)
            }
            _ => false,
        }
    }
    let (pattern, key): (Vec<&str>, Vec<&str>) = (pattern.split('.').collect(), key.split('.').collect());
    fits(&pattern, &key)
}
