//! The lists of peers: peers that must be read, written, closed or called at a deadline, and peers that wait
//! for capacity or a result.
//!
//! # Invariants
//! - A peer is on each list at most once. A peer on `to_read` has [`WaitReason::No`].
//! - A closed peer is on no list.

use std::collections::VecDeque;

use leveret_core::batch::Batch;

use super::deadlines::Deadlines;
use super::peer::{CloseStage, Peer, PeerId, Peers, WaitReason};
use super::platform::Socket;

/// Returns the bytes of memory that this package needs per peer: its record, its list entries, its deadline.
pub(super) const fn peer_bytes<S>() -> usize {
    size_of::<Option<Peer<S>>>()
        + 6 * WaitList::ENTRY_BYTES
        + 2 * size_of::<PeerId>()
        + Deadlines::ENTRY_BYTES
}

/// The lists that peers are on.
#[derive(Debug)]
pub(super) struct Lists {
    /// Deadlines of peers.
    pub(super) deadlines: Deadlines,
    pub(super) to_read: WaitList,
    pub(super) to_write: WaitList,
    pub(super) to_close: Vec<PeerId>,
    /// Peers with confirms or replies that wait for the disk.
    pub(super) for_disk: WaitList,
    /// The newest durable batch of which the peers on `for_disk` were notified.
    pub(super) durable_announced: Batch,
    /// Publishers that wait for capacity, in the order of their arrival.
    pub(super) for_capacity: WaitList,
    /// Peers that need more input backlog than is free.
    pub(super) for_backlog: WaitList,
    /// Peers whose last command began a job of the broker that is not done.
    pub(super) for_jobs: WaitList,
}

impl Lists {
    pub(super) fn with_capacity(peers_max: usize) -> Self {
        let list = || WaitList::with_capacity(peers_max);
        Self {
            deadlines: Deadlines::with_capacity(peers_max),
            to_read: list(),
            to_write: list(),
            to_close: Vec::with_capacity(peers_max),
            for_disk: list(),
            durable_announced: Batch::NONE,
            for_capacity: list(),
            for_backlog: list(),
            for_jobs: list(),
        }
    }

    /// Lists a peer for the next read step, in this turn or the next, unless the peer waits.
    pub(super) fn list_to_read<S: Socket>(&mut self, peers: &Peers<S>, id: impl Into<PeerId>) {
        let id = id.into();
        if peers.get(id).is_some_and(|peer| peer.waiting == WaitReason::No) {
            self.to_read.push(id);
        }
    }

    /// Lists a peer to be written to in this turn or the next.
    pub(super) fn list_to_write(&mut self, id: impl Into<PeerId>) {
        self.to_write.push(id);
    }

    /// Lists a peer to be closed at the end of the turn.
    pub(super) fn close_at_turn_end<S: Socket>(&mut self, peers: &mut Peers<S>, id: impl Into<PeerId>) {
        let id = id.into();
        if let Some(peer) = peers.get_mut(id)
            && peer.ending != CloseStage::AtTurnEnd
        {
            peer.ending = CloseStage::AtTurnEnd;
            self.to_close.push(id);
        }
    }

    /// Ends the waiting of a peer and lists it to be read.
    pub(super) fn resume<S: Socket>(&mut self, peers: &mut Peers<S>, id: impl Into<PeerId>) {
        let id = id.into();
        if let Some(peer) = peers.get_mut(id) {
            peer.waiting = WaitReason::No;
            peer.stream.assume_readable();
            self.list_to_read(peers, id);
        }
    }

    /// Removes all closed peers from all lists. Called before their slots are used again.
    pub(super) fn remove_closed<S: Socket>(&mut self, peers: &Peers<S>) {
        let waiting = [&mut self.for_capacity, &mut self.for_backlog, &mut self.for_jobs, &mut self.for_disk];
        for list in waiting.into_iter().chain([&mut self.to_read, &mut self.to_write]) {
            list.retain(|id| peers.get(id).is_some());
        }
    }
}

/// A list of peers in the order of their arrival.
///
/// # Invariants
/// - The flag of a peer is set if and only if the peer is on the list.
/// - Nothing allocates after construction.
#[derive(Debug)]
pub(super) struct WaitList {
    queue: VecDeque<PeerId>,
    /// One bit per peer: whether it is on the list.
    flags: Box<[u64]>,
}

impl WaitList {
    /// Bytes of memory per peer; its bit counts as one byte.
    pub(super) const ENTRY_BYTES: usize = size_of::<PeerId>() + 1;

    pub(super) fn with_capacity(peers_max: usize) -> Self {
        Self {
            queue: VecDeque::with_capacity(peers_max),
            flags: vec![0; peers_max.div_ceil(64)].into_boxed_slice(),
        }
    }

    const fn bit(id: PeerId) -> (usize, u64) {
        (id.index() / 64, 1 << (id.index() % 64))
    }

    /// Returns whether a peer is on the list.
    #[inline]
    pub(super) fn contains(&self, id: PeerId) -> bool {
        let (word, bit) = Self::bit(id);
        self.flags[word] & bit != 0
    }

    /// Appends a peer, unless it is on the list.
    #[inline]
    pub(super) fn push(&mut self, id: impl Into<PeerId>) {
        let id = id.into();
        let (word, bit) = Self::bit(id);
        if self.flags[word] & bit == 0 {
            self.flags[word] |= bit;
            self.queue.push_back(id);
        }
    }

    /// Removes and returns the first peer.
    #[inline]
    pub(super) fn pop(&mut self) -> Option<PeerId> {
        let id = self.queue.pop_front()?;
        let (word, bit) = Self::bit(id);
        self.flags[word] &= !bit;
        Some(id)
    }

    /// Returns the peer at position `at`.
    pub(super) fn get(&self, at: usize) -> Option<PeerId> {
        self.queue.get(at).copied()
    }

    /// Removes and returns the peer at position `at`, which must exist.
    pub(super) fn take(&mut self, at: usize) -> PeerId {
        let id = self.queue.remove(at).expect("the position is in the list");
        let (word, bit) = Self::bit(id);
        self.flags[word] &= !bit;
        id
    }

    /// Moves the last peer to position `at`, which must be on the list.
    pub(super) fn move_last_to(&mut self, at: usize) {
        if at + 1 < self.queue.len()
            && let Some(id) = self.queue.pop_back()
        {
            self.queue.insert(at, id);
        }
    }

    /// Returns the last peer.
    pub(super) fn last(&self) -> Option<PeerId> {
        self.queue.back().copied()
    }

    /// Removes a peer from the list, if it is there.
    pub(super) fn remove(&mut self, id: impl Into<PeerId>) {
        let id = id.into();
        if self.contains(id) {
            let (word, bit) = Self::bit(id);
            self.flags[word] &= !bit;
            self.queue.retain(|other| *other != id);
        }
    }

    /// Removes the peers for which `keep` returns `false`.
    pub(super) fn retain(&mut self, keep: impl Fn(PeerId) -> bool) {
        let flags = &mut self.flags;
        self.queue.retain(|id| {
            let keep = keep(*id);
            let (word, bit) = Self::bit(*id);
            flags[word] &= if keep { u64::MAX } else { !bit };
            keep
        });
    }

    /// Removes all peers.
    pub(super) fn clear(&mut self) {
        self.queue.clear();
        self.flags.fill(0);
    }

    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = PeerId> + '_ {
        self.queue.iter().copied()
    }
}

#[cfg(test)]
mod wait_list_tests {
    use super::*;

    fn id(index: usize) -> PeerId {
        PeerId::from_index(index)
    }

    #[test]
    fn a_peer_is_on_the_list_once_and_its_flag_says_so() {
        let mut list = WaitList::with_capacity(130);
        for index in [129, 3, 64, 3, 129] {
            list.push(id(index));
        }
        assert_eq!(list.iter().collect::<Vec<_>>(), [id(129), id(3), id(64)]);
        list.move_last_to(0);
        assert_eq!((list.get(0), list.last()), (Some(id(64)), Some(id(3))));
        list.remove(id(3));
        list.remove(id(3));
        assert!(!list.contains(id(3)) && list.contains(id(129)));
        list.push(id(3));
        assert_eq!([list.take(1), list.take(0)], [id(129), id(64)]);
        assert_eq!((list.pop(), list.pop(), list.contains(id(3))), (Some(id(3)), None, false));
        list.push(id(3));
        list.push(id(4));
        list.retain(|other| other != id(3));
        assert!(list.contains(id(4)) && !list.contains(id(3)));
        list.push(id(3));
        list.clear();
        assert!(list.is_empty() && !list.contains(id(3)));
        list.push(id(3));
        assert_eq!(list.len(), 1);
    }
}
