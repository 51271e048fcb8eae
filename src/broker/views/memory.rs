//! The shared memory as shown to operators: its classes, and what uses most of each.

use leveret_core::command::ConnectionId;
use leveret_core::mem::{Class, EXTENT_BYTES};

use crate::retained::Retained;
use crate::state::{BINDING_BYTES, EXCHANGE_BYTES, QUEUE_BYTES};
use crate::views::Views;

/// A class of the shared memory.
#[derive(Clone, Debug)]
pub struct ClassView<'b> {
    /// `clients`, `definitions` or `messages`.
    pub name: &'static str,
    /// Bytes of the extents that its pools hold.
    pub used_bytes: u64,
    /// Bytes that its pools could hold if the other classes stay as they are.
    pub bytes_max: u64,
    /// Bytes that only this class can take.
    pub floor_bytes: u64,
    /// What uses most of the class; `None` if nothing does.
    pub largest: Option<Holder<'b>>,
}

/// What uses memory of a class, with its bytes. Gaps in extents are not counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Holder<'b> {
    /// A connection with its channels, consumers and unsettled deliveries.
    Connection(ConnectionId, u64),
    /// All definitions of one kind, with their number.
    Definitions {
        /// The kind, in plural.
        kind: &'static str,
        /// Number of definitions.
        count: u64,
        /// Bytes of all of them.
        bytes: u64,
    },
    /// A queue with the messages that it has in memory, unsettled ones included.
    Queue {
        /// The virtual host.
        vhost: &'b str,
        /// The name of the queue.
        name: &'b str,
        /// Bytes of the messages.
        bytes: u64,
    },
}

impl<'b> Views<'b> {
    /// Returns the classes of the shared memory in the order clients, definitions, messages.
    pub fn classes(self) -> [ClassView<'b>; 3] {
        let memory = &self.quota.memory;
        let class = |class, name, largest| ClassView {
            name,
            used_bytes: memory.class_used_bytes(class),
            bytes_max: memory.class_bytes(class),
            floor_bytes: (memory.class_floor(class) * EXTENT_BYTES) as u64,
            largest,
        };
        [
            class(
                Class::Clients,
                "clients",
                self.quota
                    .largest_connection()
                    .map(|(connection, bytes)| Holder::Connection(connection, bytes)),
            ),
            class(Class::Definitions, "definitions", self.largest_kind_of_definitions()),
            class(Class::Messages, "messages", self.largest_queue()),
        ]
    }

    fn largest_kind_of_definitions(self) -> Option<Holder<'b>> {
        let (retained_count, retained_bytes) = self.retained.counts();
        let records = |kind, count: usize, bytes: usize| (kind, count, count * bytes);
        let [(bindings, _), (exchanges, _), _] = self.quota.fills();
        let kinds = [
            records("queues", self.queues.records().len(), QUEUE_BYTES),
            records("exchanges", exchanges, EXCHANGE_BYTES),
            records("bindings", bindings, BINDING_BYTES),
            ("retained messages", retained_count, retained_count * Retained::RECORD_BYTES + retained_bytes),
        ];
        let (kind, count, bytes) = kinds.into_iter().max_by_key(|(_, _, bytes)| *bytes)?;
        (count > 0).then_some(Holder::Definitions { kind, count: count as u64, bytes: bytes as u64 })
    }

    fn largest_queue(self) -> Option<Holder<'b>> {
        let records = self.queues.records();
        let (queue, bytes) =
            records.queue_with_largest_sum(|queue| queue.backlog.bytes() + queue.unsettled.bytes)?;
        let record = records.get(queue.index())?;
        Some(Holder::Queue { vhost: self.access.vhost_name(record.vhost), name: &record.name, bytes })
    }
}
