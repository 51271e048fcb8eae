//! All peers, of whatever kind, by their places.
//!
//! Always true: memory is touched only as far as there were ever so many connections at once.

use core::ops::Range;

use super::peer::Peer;
use super::peer_id::{APART_MAX, PeerId};

/// The peers.
pub(super) struct Peers<S> {
    places: Vec<Option<Peer<S>>>,
    /// Peers that came in as connections of the broker.
    connections: u32,
    /// Connections of the broker that ever came in.
    connections_made: u64,
}

impl<S> Peers<S> {
    pub(super) fn with_capacity(connections_max: usize) -> Self {
        let places = Vec::with_capacity(Self::places_max(connections_max));
        Self { places, connections: 0, connections_made: 0 }
    }

    /// Places for peers of all kinds.
    pub(super) const fn places_max(connections_max: usize) -> usize {
        APART_MAX + connections_max
    }

    /// Places of the broker's connections that were ever used.
    pub(super) fn connections_seen(&self) -> usize {
        self.places.len().saturating_sub(APART_MAX)
    }

    /// Connections of the broker that came in, and are there.
    pub(super) const fn connections(&self) -> u32 {
        self.connections
    }

    /// Connections of the broker that ever came in.
    pub(super) const fn connections_made(&self) -> u64 {
        self.connections_made
    }

    /// Puts a connection of the broker that came in into its place, and numbers it.
    pub(super) fn put_connection(&mut self, id: impl Into<PeerId>, mut peer: Peer<S>) {
        self.connections_made += 1;
        peer.number = self.connections_made;
        self.put(id, peer);
        self.connections += 1;
    }

    /// Notes that a connection of the broker that came in is gone.
    pub(super) const fn note_connection_gone(&mut self) {
        self.connections -= 1;
    }

    /// `None` when the peer has gone since, which whoever holds an id over several steps of a turn may meet:
    /// a socket dies when it likes.
    #[inline]
    pub(super) fn get(&self, id: impl Into<PeerId>) -> Option<&Peer<S>> {
        self.places.get(id.into().index())?.as_ref()
    }

    /// See [`Self::get`].
    #[inline]
    pub(super) fn get_mut(&mut self, id: impl Into<PeerId>) -> Option<&mut Peer<S>> {
        self.places.get_mut(id.into().index())?.as_mut()
    }

    /// Puts a peer into its place, which is empty.
    pub(super) fn put(&mut self, id: impl Into<PeerId>, peer: Peer<S>) {
        let id = id.into();
        while self.places.len() <= id.index() {
            self.places.push(None);
        }
        let before = self.places[id.index()].replace(peer);
        assert!(before.is_none(), "the place of a new peer is empty");
    }

    pub(super) fn take(&mut self, id: impl Into<PeerId>) -> Option<Peer<S>> {
        self.places.get_mut(id.into().index())?.take()
    }

    /// An empty one of these places for peers without a record at the broker.
    pub(super) fn place_apart(&self, mut places: Range<usize>) -> Option<PeerId> {
        debug_assert!(places.end <= APART_MAX, "places apart");
        places.by_ref().map(PeerId::from_index).find(|id| self.get(*id).is_none())
    }

    /// The ids of all there are.
    #[cfg(debug_assertions)]
    pub(super) fn ids(&self) -> impl Iterator<Item = PeerId> {
        (0..self.places.len()).map(PeerId::from_index).filter(|id| self.get(*id).is_some())
    }

    /// Everybody.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Peer<S>> {
        self.places.iter().flatten()
    }
}
