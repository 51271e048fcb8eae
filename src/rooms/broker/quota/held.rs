//! The holdings of a connection, a user or a virtual host, as values.

use crate::command::{ConnectionId, VhostId};
use crate::mem::Owner;

/// Who declared something: a connection, by its number, which no other has had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Declarer {
    connection: ConnectionId,
    /// The number of the connection.
    life: u32,
    /// The number of the connection's user; 0 for one that is gone.
    user: u32,
}

impl Declarer {
    /// The declarer of things that were restored at a start, or whose connection is gone: only their virtual
    /// host answers for them.
    pub(crate) fn nobody() -> Self {
        Self { connection: ConnectionId::from_index(0), life: 0, user: 0 }
    }

    pub(super) const fn new(connection: ConnectionId, life: u32, user: u32) -> Self {
        Self { connection, life, user }
    }

    pub(super) const fn connection(self) -> (ConnectionId, u32) {
        (self.connection, self.life)
    }

    /// The number of the user, which a node of the topology keeps.
    pub(crate) const fn user(self) -> u32 {
        self.user
    }
}

/// A kind of thing that can be declared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Declared {
    Queue,
    Exchange,
    /// A binding, with the places that it takes.
    Binding(u32),
}

impl Declared {
    pub(super) const fn places(self) -> usize {
        match self {
            Self::Queue | Self::Exchange => 1,
            Self::Binding(places) => places as usize,
        }
    }

    pub(super) const fn key(self) -> &'static str {
        match self {
            Self::Queue => "queues_max",
            Self::Exchange => "exchanges_max",
            Self::Binding(_) => "bindings_max",
        }
    }
}

/// The things that were declared and still exist.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Holdings {
    pub(super) queues: u32,
    pub(super) exchanges: u32,
    pub(super) bindings: u32,
    pub(super) names_bytes: u32,
    /// Nodes made for routing keys and patterns; counted for virtual hosts and users only.
    pub(super) nodes: u32,
}

impl Holdings {
    pub(super) const fn of(&self, declared: Declared) -> u32 {
        match declared {
            Declared::Queue => self.queues,
            Declared::Exchange => self.exchanges,
            Declared::Binding(_) => self.bindings,
        }
    }

    const fn of_mut(&mut self, declared: Declared) -> &mut u32 {
        match declared {
            Declared::Queue => &mut self.queues,
            Declared::Exchange => &mut self.exchanges,
            Declared::Binding(_) => &mut self.bindings,
        }
    }

    pub(super) const fn take(&mut self, declared: Declared, names_bytes: usize) {
        *self.of_mut(declared) += declared.places() as u32;
        self.names_bytes += names_bytes as u32;
    }

    pub(super) const fn give_back(&mut self, declared: Declared, names_bytes: usize) {
        *self.of_mut(declared) -= declared.places() as u32;
        self.names_bytes -= names_bytes as u32;
    }
}

/// Memory for messages that clients keep by unsettled deliveries and open transactions.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Pinned {
    /// Bytes of blocks of the messages of unsettled deliveries.
    pub(crate) unsettled_bytes: u64,
    /// Messages in open transactions.
    pub(crate) open_messages: u32,
    /// Bytes of blocks of messages in open transactions.
    pub(crate) open_bytes: u64,
}

/// Pools whose records come and go with connections.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Pool {
    Channels,
    Consumers,
}

/// The holdings of one virtual host, or one user.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Held {
    pub(super) declared: Holdings,
    pub(super) connections: u32,
    pub(super) channels: u32,
    pub(super) consumers: u32,
    /// Unsettled deliveries; only while pools are divided.
    pub(super) unsettled: u64,
    /// Messages in open transactions; only while pools are divided.
    pub(super) open_messages: u64,
    /// Bytes of blocks of messages in open transactions; only while pools are divided.
    pub(super) open_bytes: u64,
}

impl Held {
    pub(super) const fn of_mut(&mut self, pool: Pool) -> &mut u32 {
        match pool {
            Pool::Channels => &mut self.channels,
            Pool::Consumers => &mut self.consumers,
        }
    }

    /// Sets the holdings by deliveries and open transactions to 0, to be counted anew.
    pub(super) const fn forget_pinned(&mut self) {
        (self.unsettled, self.open_messages, self.open_bytes) = (0, 0, 0);
    }
}

/// The virtual host and the user for whom something is held.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Holder {
    pub(super) vhost: Option<VhostId>,
    pub(super) user: Option<usize>,
}

/// The owner of memory for messages of a virtual host that no connection sends, such as dead letters.
#[inline]
pub(crate) const fn owner_of(vhost: VhostId) -> Owner {
    Owner::of_vhost(vhost.index())
}
