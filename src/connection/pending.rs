//! The command that the broker is being asked, and what its answer becomes.
//!
//! Always true: there is one at most in a connection; it knows what its reply needs, so that nothing else has
//! to be kept of the method that led to it.

use super::channel::{NONE, Slot};

/// How a client logs in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mechanism {
    Plain,
    AmqPlain,
    /// The transport vouches for the user.
    External,
}

impl Mechanism {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::AmqPlain => "AMQPLAIN",
            Self::External => "EXTERNAL",
        }
    }
}

/// What a command was for: what its answer becomes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Nothing,
    Login(Mechanism),
    OpenVhost,
    OpenChannel,
    /// By the client.
    CloseChannel,
    /// After a fault: the peer was told already.
    Release,
    Publish,
    /// No reply whatever the outcome, but for faults.
    Silent,
    /// The method's plain "ok".
    Plain,
    ConfirmSelect,
    QueueDeclare,
    /// Purge and delete.
    Count,
    Consume,
    Cancel,
    Get,
}

/// The command that the broker is being asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pending {
    pub(super) kind: Kind,
    /// Class and method, for the text of a close and for the "ok".
    pub(super) id: (u16, u16),
    pub(super) slot: Slot,
    pub(super) no_wait: bool,
}

impl Pending {
    pub(super) const NOTHING: Self = Self::on_connection(Kind::Nothing, (0, 0));

    pub(super) const fn on_connection(kind: Kind, id: (u16, u16)) -> Self {
        Self { kind, id, slot: NONE, no_wait: false }
    }

    pub(super) fn is_something(self) -> bool {
        self.kind != Kind::Nothing
    }

    pub(super) fn is_login(self, mechanism: Mechanism) -> bool {
        self.kind == Kind::Login(mechanism)
    }

    pub(super) const fn on_channel(kind: Kind, id: (u16, u16), slot: Slot, no_wait: bool) -> Self {
        Self { kind, id, slot, no_wait }
    }
}
