//! MQTT sessions and retained messages as shown to operators.

use leveret_amqp::field::Table;
use leveret_amqp::props::Properties;
use leveret_core::command::{ConnectionId, Name, QueueId, SessionId};
use leveret_core::topic::exchange_separators;

use super::Views;
use crate::objects::{Objects, objects};
use crate::sessions::filter_of;

/// An MQTT session as shown to operators.
#[derive(Clone, Copy, Debug)]
pub struct SessionView<'a> {
    /// The session's virtual host.
    pub vhost: &'a str,
    /// The client identifier.
    pub client_id: &'a str,
    /// The user that opened the session last. `None`: it was deleted, or the broker was started since.
    pub user: Option<&'a str>,
    /// When the client was last connected, or the broker was started, in milliseconds of broker time. Not meant for a
    /// client that is connected.
    pub seen_ms: u64,
    /// The number of the queue, for [`Views::session_topics`].
    pub queue_id: Option<QueueId>,
    /// The connection; `None` if the client is not connected.
    pub connection: Option<ConnectionId>,
    /// How long the session is kept after its connection, in seconds; 0: it ends with it.
    pub expiry_s: u32,
    /// The name of its queue. A session without subscriptions may have none.
    pub queue: Option<&'a str>,
    /// Number of subscriptions.
    pub subscriptions: u32,
    /// Number of messages that are not sent yet.
    pub messages_ready: u32,
    /// Number of messages that the client has not acknowledged.
    pub messages_unacknowledged: u32,
    /// Number of messages with QoS 2 that the client has published and not released.
    pub messages_unreleased: u32,
    /// Number of messages that were dropped since the start: the session had too many, or the client accepts no such
    /// large packet.
    pub messages_dropped: u32,
    /// The client has a will, which is not published yet.
    pub has_will: bool,
}

/// A retained message as shown to operators.
#[derive(Clone, Copy, Debug)]
pub struct RetainedView<'a> {
    /// The message's virtual host.
    pub vhost: &'a str,
    /// The routing key of the topic; see [`leveret_core::topic`].
    pub routing_key: &'a str,
    /// The QoS with which it was published.
    pub qos: u8,
    /// Bytes of the payload.
    pub payload_bytes: u32,
    /// The AMQP properties and the payload; `None` if only the log has them.
    pub content: Option<(Properties<'a>, &'a [u8])>,
    /// Whether it expires.
    pub has_expiry: bool,
    /// When it was published, or the broker was started, in milliseconds of broker time.
    pub arrived_ms: u64,
}

impl RetainedView<'_> {
    /// Returns the topic.
    pub fn topic(&self) -> Name {
        exchange_separators(self.routing_key).unwrap_or_default()
    }
}

impl<'b> Views<'b> {
    /// Returns all sessions.
    pub fn sessions(self) -> impl Objects<SessionView<'b>> {
        objects(self.sessions.places(), move |place| self.session_at(place))
    }

    fn session_at(self, place: usize) -> Option<SessionView<'b>> {
        let session: SessionId = self.sessions.id_at(place)?;
        let status = self.sessions.status(session);
        let queue = status.queue.map(|queue| (queue, self.queues.at(queue)));
        let records = self.queues.records();
        Some(SessionView {
            vhost: self.access.vhost_name(status.vhost),
            client_id: status.client_id,
            user: status.user.and_then(|(user, serial)| self.access.name_of_serial(user, serial)),
            seen_ms: status.seen_ms,
            queue_id: status.queue,
            connection: status.connection,
            expiry_s: status.expiry_s,
            queue: queue.map(|(_, record)| &*record.name),
            subscriptions: queue.map_or(0, |(_, record)| record.bindings.len()),
            messages_ready: queue.map_or(0, |(queue, _)| records.ready_in(queue)),
            messages_unacknowledged: queue.map_or(0, |(_, record)| record.unsettled.count),
            messages_unreleased: status.unreleased_count,
            messages_dropped: {
                let in_queue = queue.map_or(0, |(_, record)| record.dropped_count);
                in_queue.wrapping_add(status.oversized_count)
            },
            has_will: status.has_will,
        })
    }

    /// Returns the topic filters of a session, with `$share` and the group of a shared subscription.
    pub fn session_topics(self, session: &SessionView<'_>) -> impl Iterator<Item = String> {
        let queue = session.queue_id.and_then(|queue| self.queues.records().get(queue.index()));
        let bindings = queue.into_iter().flat_map(|queue| self.topology.bindings_of_queue(&queue.bindings));
        bindings.map(move |binding| {
            let record = self.topology.binding(binding);
            match filter_of(&record.key, Table::trusted(&record.arguments)) {
                (filter, Some(group)) => format!("$share/{group}/{filter}"),
                (filter, None) => filter.as_str().to_string(),
            }
        })
    }

    /// Returns the number of sessions, and how many of them have no client.
    pub fn session_counts(self) -> (u64, u64) {
        let sessions = (0..self.sessions.places()).filter_map(|place| self.sessions.id_at(place));
        sessions.fold((0, 0), |(all, disconnected), session| {
            (all + 1, disconnected + u64::from(self.sessions.status(session).connection.is_none()))
        })
    }

    /// Returns the limit of kept sessions if clients were refused because of it, and would be refused now.
    pub fn refusing_session_limit(self) -> Option<usize> {
        self.sessions.refusing_limit()
    }

    /// Returns the first session that drops messages because its connected client was behind for too long, and the number of
    /// such sessions. While memory is not scarce, a session with few large messages may have dropped none.
    pub fn dropping_session(self) -> Option<(SessionView<'b>, usize)> {
        let has_dropped = |queue: &QueueId| self.queues.at(*queue).dropped_count > 0;
        let dropping = || self.queues.dropping_queues().filter(has_dropped);
        let session = self.queues.at(dropping().next()?).session()?;
        let place = session.index();
        Some((self.session_at(place)?, dropping().count()))
    }

    /// Returns the number of connected clients that take their messages more slowly than they arrive.
    pub fn slow_clients_count(self) -> usize {
        self.queues.slow_clients_count()
    }

    /// Returns the number of messages that were dropped in sessions since the start.
    pub const fn session_messages_dropped(self) -> u64 {
        self.queues.session_messages_dropped() + self.sessions.oversized_total()
    }

    /// Returns all retained messages.
    pub fn retained(self) -> impl Objects<RetainedView<'b>> {
        objects(self.retained.places(), move |place| {
            let (vhost, routing_key, content) = self.retained.at(place)?;
            Some(RetainedView {
                vhost: self.access.vhost_name(vhost),
                routing_key,
                qos: content.qos(),
                payload_bytes: content.payload_len(),
                content: content
                    .in_memory()
                    .map(|(properties, payload)| (Properties::trusted(properties), payload)),
                has_expiry: content.has_expiry(),
                arrived_ms: content.arrived_ms(),
            })
        })
    }

    /// Returns the virtual host and the topic whose retained message could not be updated last, and the limit that the update
    /// exceeds, as a text. `None` if the topic has had an update that fits, or was deleted.
    pub fn refused_retained(self) -> Option<(&'b str, Name, &'static str)> {
        let (vhost, key, limit) = self.retained.refused_update()?;
        let topic = exchange_separators(key).unwrap_or_default();
        Some((self.access.vhost_name(vhost), topic, limit))
    }

    /// Returns the number of updates of retained messages that were refused since the start.
    pub const fn retained_refused(self) -> u64 {
        self.retained.refused_count()
    }

    /// Returns the number of messages in all queues, unacknowledged ones included, and the bytes of their bodies.
    pub fn stored_messages(self) -> (u64, u64) {
        let queues = self.queues.records().iter().map(|(_, queue)| queue);
        queues.filter(|queue| !queue.is_deleted()).fold((0, 0), |(count, bytes), queue| {
            let (ready, unsettled) = (&queue.backlog, &queue.unsettled);
            let in_queue = u64::from(ready.ready()) + u64::from(unsettled.count);
            (count + in_queue, bytes + ready.body_bytes() + unsettled.body_bytes)
        })
    }

    /// Returns the number of retained messages, and the bytes of their topics, properties and payloads.
    pub const fn retained_counts(self) -> (usize, u64) {
        self.retained.counts()
    }
}
