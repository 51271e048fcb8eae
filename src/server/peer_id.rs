//! A peer's name in the loop's lists: its place among all peers.
//!
//! ```text
//! 0 .. APART_MAX          peers without a record at the broker: clients of the control socket, then those
//!                         of the management API
//! APART_MAX ..            connections of the broker, each at APART_MAX + its id
//! ```
//!
//! Why it exists: the loop's lists, budgets and deadlines are the same for every kind of peer, so they need
//! one name for all of them; and the broker's ids have to lead to their peers without a table.
//!
//! Always true: a place and a record of the broker lead to each other.

use leveret_core::command::ConnectionId;
use leveret_core::limits::{CONTROL_CLIENTS_MAX, MANAGEMENT_CLIENTS_MOST};

/// Peers that there may be without a record at the broker.
pub(super) const APART_MAX: usize = CONTROL_CLIENTS_MAX + MANAGEMENT_CLIENTS_MOST;

/// A peer's place among all peers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PeerId(u32);

impl PeerId {
    /// The peer in the place `index`, counted from 0.
    pub const fn from_index(index: usize) -> Self {
        assert!(index <= u32::MAX as usize, "there are fewer places than 2^32");
        Self(index as u32)
    }

    /// The place of the peer, counted from 0.
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// The broker's record of it, if it is of a kind that has one.
    #[inline]
    pub fn connection(self) -> Option<ConnectionId> {
        self.index().checked_sub(APART_MAX).map(ConnectionId::from_index)
    }
}

impl From<ConnectionId> for PeerId {
    #[inline]
    fn from(id: ConnectionId) -> Self {
        Self::from_index(APART_MAX + id.index())
    }
}
