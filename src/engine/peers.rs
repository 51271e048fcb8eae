//! All peers, of whatever kind, by their places.
//!
//! Always true: memory is touched only as far as there were ever so many connections at once.

use core::ops::Range;

use super::peer::Peer;
use super::peer_id::{APART_MAX, PeerId};

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

    /// `None` when the peer has gone since, which whoever holds an id over several steps of a turn may meet:
    /// a socket dies when it likes.
    #[inline]
    pub(super) fn get(&self, id: impl Into<PeerId>) -> Option<&Peer<S>> {
        self.0.get(id.into().index())?.as_ref()
    }

    /// See [`Self::get`].
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

    /// An empty one of these places for peers without a record at the broker.
    pub(super) fn place_apart(&self, mut places: Range<usize>) -> Option<PeerId> {
        debug_assert!(places.end <= APART_MAX, "places apart");
        places.by_ref().map(PeerId::from_index).find(|id| self.get(*id).is_none())
    }

    /// The ids of all there are.
    #[cfg(debug_assertions)]
    pub(super) fn ids(&self) -> impl Iterator<Item = PeerId> {
        (0..self.0.len()).map(PeerId::from_index).filter(|id| self.get(*id).is_some())
    }

    /// Everybody.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Peer<S>> {
        self.0.iter().flatten()
    }
}
