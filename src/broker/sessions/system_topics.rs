//! `$SYS` topics: values of the broker for MQTT clients that subscribe to them.
//!
//! The messages go to the queues of the sessions directly, and not through `amq.topic`. So neither AMQP consumers nor clients
//! that subscribe to `#` get them, and they need no routing.

use leveret_amqp::field::Table;
use leveret_core::command::{BindingId, QueueId, SessionId};

use super::{Sessions, TOPIC_EXCHANGE, matches};
use crate::{Broker, Context};

/// How the filters of `$SYS` topics begin.
const FILTER_PREFIX: &str = "$SYS/";
/// How their binding keys begin.
const KEY_PREFIX: &str = "$SYS.";

/// Sessions, subscriptions and values that are examined in a turn.
const EXAMINED_MAX: usize = 4096;
/// The number of filters of `$SYS` topics of a session that count. More would only repeat values.
const FILTERS_MAX: usize = 32;
/// The number of comparisons that count as one unit of work.
const EXAMINED_PER_UNIT: usize = 8;

impl Broker {
    /// Notes that `$SYS` topics are offered.
    pub const fn offer_system_topics(&mut self) {
        self.sessions.has_system_topics = true;
    }

    /// Returns whether clients have subscribed to `$SYS` topics that were not sent to them yet.
    pub fn has_new_system_subscribers(&self) -> bool {
        !self.sessions.new_system_subscribers.is_empty()
    }

    /// Notes that a session has subscribed to a filter.
    pub(super) fn note_system_subscriber(&mut self, session: SessionId, filter: &str) {
        let new = &mut self.sessions.new_system_subscribers;
        if self.sessions.has_system_topics && filter.starts_with(FILTER_PREFIX) && !new.contains(&session) {
            new.push_back(session);
        }
    }

    /// Sends values to clients that have subscribed to their topics since the last call, as retained messages. Each value has a
    /// routing key and a payload. A client without capacity does not get them. If there are many clients, the next turn continues.
    pub fn send_to_new_system_subscribers<'v>(
        &mut self,
        cx: &mut Context<'_>,
        values: impl Iterator<Item = (&'v str, &'v str)> + Clone,
    ) {
        let mut examined_left = EXAMINED_MAX;
        while examined_left > 0 {
            let Some(session) = self.sessions.new_system_subscribers.pop_front() else { return };
            self.send_to_session(cx, session, values.clone(), "", &mut examined_left);
        }
    }

    /// Sends values to all clients that subscribe to their topics, from the session in this place on. Returns the place with which
    /// the next turn continues; `None` if all clients have them.
    pub fn send_system_topics<'v>(
        &mut self,
        cx: &mut Context<'_>,
        values: impl Iterator<Item = (&'v str, &'v str)> + Clone,
        place: usize,
    ) -> Option<usize> {
        let mut examined_left = EXAMINED_MAX;
        for place in place..self.sessions.places() {
            if examined_left == 0 {
                return Some(place);
            }
            examined_left -= 1;
            if let Some(session) = self.sessions.id_at(place) {
                self.send_to_session(cx, session, values.clone(), TOPIC_EXCHANGE, &mut examined_left);
            }
        }
        None
    }

    fn send_to_session<'v>(
        &mut self,
        cx: &mut Context<'_>,
        session: SessionId,
        values: impl Iterator<Item = (&'v str, &'v str)>,
        exchange: &str,
        examined_left: &mut usize,
    ) {
        let Some(queue) = self.sessions.connected_queue(session) else { return };
        if self.queues.records().is_of_slow_client(queue) {
            return;
        }
        let mut filters = heapless::Vec::<BindingId, FILTERS_MAX>::new();
        let mut examined = 0;
        for binding in self.topology.bindings_of_queue(&self.queues.at(queue).bindings) {
            examined += 1;
            if self.topology.binding(binding).key.starts_with(KEY_PREFIX) && filters.push(binding).is_err() {
                break;
            }
        }
        for (key, payload) in values {
            examined += filters.len();
            let is_match = |binding: &BindingId| {
                let binding = self.topology.binding(*binding);
                matches(&binding.key, Table::trusted(&binding.arguments), key)
            };
            if !filters.iter().any(is_match) {
                continue;
            }
            let message = self.message_for_session(cx, exchange, key, payload.as_bytes());
            if message.is_none_or(|message| !self.push_to_session(cx, queue, message)) {
                break;
            }
        }
        cx.work.charge(examined / EXAMINED_PER_UNIT);
        *examined_left = examined_left.saturating_sub(examined);
    }
}

impl Sessions {
    /// Returns the queue of a session whose client is connected; `None` also if the session has ended.
    fn connected_queue(&self, session: SessionId) -> Option<QueueId> {
        let record = self.slab.get(session.index())?;
        record.queue.filter(|_| record.attached.is_some())
    }
}
