//! What one holder has of what all share, and who declared something.
//!
//! Always true: what is taken is given back as the same thing with as many bytes of names.

use crate::command::ConnectionId;

/// Who declared something: a connection, by the number that no other has had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Declarer {
    pub(super) connection: ConnectionId,
    pub(super) life: u32,
    /// The number of its user; 0 for one that is gone.
    pub(super) user: u32,
}

impl Declarer {
    /// Who was there at the start, or is gone: its virtual host alone answers for what comes of it now.
    pub(super) fn nobody() -> Self {
        Self { connection: ConnectionId::from_index(0), life: 0, user: 0 }
    }
}

/// What a connection declared and what still exists of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Holdings {
    pub(super) queues: u32,
    pub(super) exchanges: u32,
    pub(super) bindings: u32,
    pub(super) names_bytes: u32,
    /// Of virtual hosts and users: nodes made for keys and patterns.
    pub(super) nodes: u32,
}

/// What is kept of the memory for messages by those who may settle or commit at any time, or never.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Pinned {
    /// Bytes of blocks of messages that are delivered and not settled.
    pub(super) unsettled_bytes: u64,
    /// Messages in open transactions.
    pub(super) open_messages: u32,
    /// Their bytes of blocks.
    pub(super) open_bytes: u64,
}

/// What can be declared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Declared {
    Queue,
    Exchange,
    /// One that takes so many places among the bindings.
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

impl Holdings {
    pub(super) const fn of(&mut self, declared: Declared) -> &mut u32 {
        match declared {
            Declared::Queue => &mut self.queues,
            Declared::Exchange => &mut self.exchanges,
            Declared::Binding(_) => &mut self.bindings,
        }
    }

    pub(super) const fn take(&mut self, declared: Declared, names_bytes: usize) {
        *self.of(declared) += declared.places() as u32;
        self.names_bytes += names_bytes as u32;
    }

    pub(super) const fn give_back(&mut self, declared: Declared, names_bytes: usize) {
        *self.of(declared) -= declared.places() as u32;
        self.names_bytes -= names_bytes as u32;
    }
}
