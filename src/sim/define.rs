//! What simulated clients declare, bind, purge and delete.
//!
//! Always true: as in `traffic`: the model is told of what the broker took; an answer is what makes it a
//! promise.

use crate::command::{Command, Outcome};
use crate::error::ReplyCode;

use super::life::Life;
use super::model::{Binding, End, Exchange, Key, Queue};
use super::topology::{EXCHANGES, LENGTH_MAX, PATTERNS, SOURCES, arguments, is_durable_exchange, kind_of};

/// Source, exchange or else queue, key; and the binding when both are there.
pub(super) type Between = (String, Result<String, String>, String, Option<Binding>);

impl Life<'_> {
    pub(super) fn define(&mut self, at: usize, number: u16) {
        match self.w.random.below(20) {
            0..7 => {
                let queue = self.some_queue(at);
                self.declare_queue(at, number, &queue);
            }
            7..11 => self.declare_exchange(at, number),
            11..16 => self.bind(at, number),
            16 => self.unbind(at, number),
            17 => self.purge(at, number),
            18 => self.delete_queue(at, number),
            _ => self.delete_exchange(at, number),
        }
    }

    pub(super) fn declare_queue(&mut self, at: usize, number: u16, name: &str) {
        let id = self.clients[at].id;
        let Some(channel_id) = self.channel_id(at, number) else { return };
        let (exclusive, durable) = (name.starts_with('x'), !name.starts_with('t'));
        let instance = self.w.model.next_number();
        let arguments = arguments(name, instance);
        let existing = self.w.model.queue(name).map(|(number, _)| number);
        let command = Command::QueueDeclare {
            queue: name,
            passive: false,
            durable,
            exclusive,
            auto_delete: name.starts_with('a'),
            arguments: &arguments,
        };
        let (outcome, _) = self.apply(id, Some(channel_id), command);
        let batch = self.batch();
        let Outcome::QueueDeclared { message_count, .. } = outcome else {
            return self.refused(at, number, &outcome, &[]);
        };
        if let Some(existing) = existing {
            self.w.model.check_count(existing, message_count.into(), "queue.declare");
        } else {
            let mut queue = Queue::new(name, durable && !exclusive);
            queue.auto_delete = name.starts_with('a');
            queue.max_length = name.starts_with(['l', 'r']).then_some(LENGTH_MAX);
            queue.rejects = name.starts_with('r');
            self.w.model.declare_queue(instance, queue, batch);
        }
        self.defined(at, Key::Queue(name.into()));
    }

    pub(super) fn declare_exchange(&mut self, at: usize, number: u16) {
        let id = self.clients[at].id;
        let Some(channel_id) = self.channel_id(at, number) else { return };
        let name = self.w.random.one_of(&EXCHANGES);
        let ((kind, auto_delete), durable) = (kind_of(name), is_durable_exchange(name));
        let instance = self.w.model.next_number();
        let command = Command::ExchangeDeclare {
            exchange: name,
            kind: kind.name(),
            passive: false,
            durable,
            auto_delete,
            internal: false,
            arguments: &arguments(name, instance),
        };
        let (outcome, _) = self.apply(id, Some(channel_id), command);
        let batch = self.batch();
        if outcome != Outcome::Done {
            return self.refused(at, number, &outcome, &[]);
        }
        if !self.w.model.exchange_names.contains_key(name) {
            let exchange = Exchange { name: name.into(), kind, durable, auto_delete };
            self.w.model.declare_exchange(instance, exchange, batch);
        }
        self.defined(at, Key::Exchange(name.into()));
    }

    /// A binding between what there is, as far as it is there.
    fn some_binding(&mut self, at: usize) -> Between {
        let mut source = self.w.random.one_of(&SOURCES);
        if !self.w.model.exchange_names.contains_key(source) && !self.w.random.one_in(10) {
            source = "amq.topic";
        }
        let key = self.w.random.one_of(&PATTERNS);
        let to = match self.w.random.one_in(4) {
            true => Ok(self.w.random.one_of(&EXCHANGES).to_string()),
            false => Err(self.some_real_queue(at)),
        };
        let end = match &to {
            Ok(exchange) => self.w.model.exchange_names.get(exchange).map(|number| End::Exchange(*number)),
            Err(queue) => self.w.model.queue_names.get(queue).map(|number| End::Queue(*number)),
        };
        let from = self.w.model.exchange_names.get(source).copied();
        let binding = from.zip(end).map(|(source, to)| Binding { source, to, key: key.into() });
        (source.into(), to, key.into(), binding)
    }

    pub(super) fn bind(&mut self, at: usize, number: u16) {
        let binding = self.some_binding(at);
        self.bind_to(at, number, binding);
    }

    pub(super) fn bind_to(&mut self, at: usize, number: u16, between: Between) {
        let id = self.clients[at].id;
        let Some(channel_id) = self.channel_id(at, number) else { return };
        let (source, to, routing_key, binding) = between;
        let (source, routing_key, arguments): (&str, &str, &[u8]) = (&source, &routing_key, &[]);
        let command = match &to {
            Ok(destination) => Command::ExchangeBind { destination, source, routing_key, arguments },
            Err(queue) => Command::QueueBind { queue, exchange: source, routing_key, arguments },
        };
        let (outcome, _) = self.apply(id, Some(channel_id), command);
        let batch = self.batch();
        match (outcome, binding) {
            (Outcome::Done, Some(binding)) => {
                self.w.model.bind(binding.clone(), batch);
                self.defined(at, Key::Binding(binding));
            }
            (outcome, binding) => {
                let allowed: &[ReplyCode] = if binding.is_some() { &[] } else { &[ReplyCode::NotFound] };
                self.refused(at, number, &outcome, allowed);
            }
        }
    }

    fn unbind(&mut self, at: usize, number: u16) {
        let id = self.clients[at].id;
        let Some(channel_id) = self.channel_id(at, number) else { return };
        let (source, to, routing_key, binding) = self.some_binding(at);
        let (source, routing_key, arguments): (&str, &str, &[u8]) = (&source, &routing_key, &[]);
        let command = match &to {
            Ok(destination) => Command::ExchangeUnbind { destination, source, routing_key, arguments },
            Err(queue) => Command::QueueUnbind { queue, exchange: source, routing_key, arguments },
        };
        let (outcome, _) = self.apply(id, Some(channel_id), command);
        let batch = self.batch();
        if outcome != Outcome::Done {
            return self.refused(at, number, &outcome, &[]);
        }
        if let Some(binding) = binding {
            self.w.model.unbind(&binding, batch);
            self.defined(at, Key::Binding(binding));
        }
    }

    fn purge(&mut self, at: usize, number: u16) {
        let id = self.clients[at].id;
        let Some(channel_id) = self.channel_id(at, number) else { return };
        let name = self.some_real_queue(at);
        let found = self.w.model.queue(&name).map(|(number, _)| number);
        let (outcome, _) = self.apply(id, Some(channel_id), Command::QueuePurge { queue: &name });
        match (outcome, found) {
            (Outcome::MessageCount(count), Some(found)) => {
                self.w.model.check_count(found, count.into(), "queue.purge");
                self.w.model.purge(found);
            }
            (outcome, found) => {
                let allowed: &[ReplyCode] = if found.is_some() { &[] } else { &[ReplyCode::NotFound] };
                self.refused(at, number, &outcome, allowed);
            }
        }
    }

    fn delete_queue(&mut self, at: usize, number: u16) {
        let name = self.some_queue(at);
        self.delete_queue_named(at, number, &name);
    }

    pub(super) fn delete_queue_named(&mut self, at: usize, number: u16, name: &str) {
        let id = self.clients[at].id;
        let Some(channel_id) = self.channel_id(at, number) else { return };
        let found = self.w.model.queue(name).map(|(number, _)| number);
        let command = Command::QueueDelete { queue: name, if_unused: false, if_empty: false };
        let (outcome, _) = self.apply(id, Some(channel_id), command);
        let batch = self.batch();
        let Outcome::MessageCount(count) = outcome else {
            return self.refused(at, number, &outcome, &[]);
        };
        if let Some(found) = found {
            self.w.model.check_count(found, count.into(), "queue.delete");
            self.w.model.delete_queue(found, batch);
        }
        self.defined(at, Key::Queue(name.into()));
    }

    fn delete_exchange(&mut self, at: usize, number: u16) {
        let name = self.w.random.one_of(&EXCHANGES);
        self.delete_exchange_named(at, number, name);
    }

    pub(super) fn delete_exchange_named(&mut self, at: usize, number: u16, name: &str) {
        let id = self.clients[at].id;
        let Some(channel_id) = self.channel_id(at, number) else { return };
        let command = Command::ExchangeDelete { exchange: name, if_unused: false };
        let (outcome, _) = self.apply(id, Some(channel_id), command);
        let batch = self.batch();
        if outcome != Outcome::Done {
            return self.refused(at, number, &outcome, &[]);
        }
        if let Some(found) = self.w.model.exchange_names.get(name).copied() {
            self.w.model.delete_exchange(found, batch);
        }
        self.defined(at, Key::Exchange(name.into()));
    }
}
