//! All peers, of whatever kind, by their places.
//!
//! ```text
//! 0 .. APART_MAX          peers without a record at the broker: the operator's clients
//! APART_MAX ..            connections of the broker, each at APART_MAX + its id
//! ```
//!
//! Why it exists: the loop's lists, budgets and deadlines are the same for every kind of peer, so they need
//! one name for all of them; and the broker's ids have to lead to their peers without a table.
//!
//! Always true: memory is touched only as far as there were ever so many connections at once.

use crate::command::ConnectionId;
use crate::limits::CONTROL_CLIENTS_MAX;

use super::peer::Peer;

/// Peers that there may be without a record at the broker.
pub(super) const APART_MAX: usize = CONTROL_CLIENTS_MAX;

/// A peer's place among all peers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PeerId(u32);

impl PeerId {
    /// The peer in the place `index`, counted from 0.
    pub const fn from_index(index: usize) -> Self {
        assert!(index <= u32::MAX as usize, "there are fewer places than 2^32");
        Self(index as u32)
    }

    /// Its place, counted from 0.
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

/// The peers.
pub(super) struct Peers<S>(Vec<Option<Peer<S>>>);

impl<S> Peers<S> {
    pub(super) fn with_capacity(connections_max: usize) -> Self {
        Self(Vec::with_capacity(Self::places_max(connections_max)))
    }

    /// Places for peers of all kinds.
    pub(super) const fn places_max(connections_max: usize) -> usize {
        APART_MAX + connections_max
    }

    /// Places of the broker's connections that were ever used.
    pub(super) fn connections_seen(&self) -> usize {
        self.0.len().saturating_sub(APART_MAX)
    }

    #[inline]
    pub(super) fn get(&self, id: impl Into<PeerId>) -> Option<&Peer<S>> {
        self.0.get(id.into().index())?.as_ref()
    }

    #[inline]
    pub(super) fn get_mut(&mut self, id: impl Into<PeerId>) -> Option<&mut Peer<S>> {
        self.0.get_mut(id.into().index())?.as_mut()
    }

    /// Puts a peer into its place, which is empty.
    pub(super) fn put(&mut self, id: impl Into<PeerId>, peer: Peer<S>) {
        let id = id.into();
        while self.0.len() <= id.index() {
            self.0.push(None);
        }
        let before = self.0[id.index()].replace(peer);
        assert!(before.is_none(), "the place of a newcomer is empty");
    }

    pub(super) fn take(&mut self, id: impl Into<PeerId>) -> Option<Peer<S>> {
        self.0.get_mut(id.into().index())?.take()
    }

    /// An empty place for a peer without a record at the broker.
    pub(super) fn place_apart(&self) -> Option<PeerId> {
        (0..APART_MAX).map(PeerId::from_index).find(|id| self.get(*id).is_none())
    }

    /// Everybody.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Peer<S>> {
        self.0.iter().flatten()
    }
}
