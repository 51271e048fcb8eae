//! The shared memory as shown to operators: its classes, and what uses most of each.

use leveret_core::command::ConnectionId;
use leveret_core::mem::{Class, EXTENT_BYTES};
use leveret_queues::Queue;

use crate::retained::Retained;
use crate::state::{BINDING_BYTES, CLIENT_RECORD_BYTES, EXCHANGE_BYTES, QUEUE_BYTES};
use crate::views::Views;

/// A class of the shared memory.
#[derive(Clone, Copy, Debug)]
pub struct ClassView {
    /// `clients`, `definitions` or `messages`.
    pub name: &'static str,
    /// For [`Views::largest_holder`].
    pub class: Class,
    /// Bytes of the extents that its pools hold, with those that single pools can always have.
    pub used_bytes: u64,
    /// Bytes that its pools could hold if the other classes stay as they are.
    pub bytes_max: u64,
    /// Bytes that only this class can take.
    pub floor_bytes: u64,
}

/// The connection, kind of definitions or queue that uses most memory of a class, with its bytes. Gaps in extents are not
/// counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Holder<'b> {
    /// A connection with its channels, consumers and unsettled deliveries.
    Connection(ConnectionId, u64),
    /// All definitions of a kind, which is in plural.
    Definitions(&'static str, u64),
    /// A queue with the messages that it has in memory, unsettled ones included.
    Queue {
        /// The virtual host.
        vhost: &'b str,
        /// The name of the queue.
        name: &'b str,
        /// Bytes of the messages and their entries.
        bytes: u64,
    },
}

impl<'b> Views<'b> {
    /// Returns the classes of the shared memory.
    pub fn classes(self) -> [ClassView; 3] {
        let class = |class, name| ClassView {
            name,
            class,
            used_bytes: self.memory.class_used_bytes(class),
            bytes_max: self.memory.class_bytes(class),
            floor_bytes: (self.memory.class_floor(class) * EXTENT_BYTES) as u64,
        };
        [
            class(Class::Clients, "clients"),
            class(Class::Definitions, "definitions"),
            class(Class::Messages, "messages"),
        ]
    }

    /// Returns the largest holder of a class; `None` if there is none. Compares all connections or queues.
    pub fn largest_holder(self, class: Class) -> Option<Holder<'b>> {
        match class {
            Class::Clients => {
                let (connection, bytes) = self.quota.largest_connection(CLIENT_RECORD_BYTES)?;
                Some(Holder::Connection(connection, bytes))
            }
            Class::Definitions => self.largest_kind_of_definitions(),
            Class::Messages => self.largest_queue(),
        }
    }

    fn largest_kind_of_definitions(self) -> Option<Holder<'b>> {
        let (retained_count, retained_bytes) = self.retained.counts_in_memory();
        let [(binding_places, _), (exchanges, _), _] = self.quota.fills();
        // The index of the log has a second copy of names and arguments.
        let kinds = [
            ("queues", self.queues.records().queue_count() * QUEUE_BYTES),
            ("exchanges", exchanges * EXCHANGE_BYTES),
            ("bindings", binding_places * BINDING_BYTES),
            ("names and arguments", self.quota.names_bytes() * 2),
            ("retained messages", retained_count * Retained::RECORD_BYTES + retained_bytes),
            ("users", self.access.users_bytes()),
        ];
        let (kind, bytes) = kinds.into_iter().max_by_key(|(_, bytes)| *bytes)?;
        Some(Holder::Definitions(kind, bytes as u64))
    }

    fn largest_queue(self) -> Option<Holder<'b>> {
        let records = self.queues.records();
        let (queue, bytes) = records.queue_with_largest_sum(Queue::memory_bytes)?;
        let record = records.get(queue.index())?;
        Some(Holder::Queue { vhost: self.access.vhost_name(record.vhost), name: &record.name, bytes })
    }
}
