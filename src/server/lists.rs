//! The lists of peers: who is to be read, written to, closed or called at some time, and who waits for what.
//!
//! Always true: a peer is on each list at most once, and on that of those to be read only while it waits for nothing;
//! who is closed is on none of them any more.

use super::deadlines::Deadlines;
use super::peer::{Ending, Peer, Waiting};
use super::peer_id::PeerId;
use super::peers::Peers;
use super::platform::Socket;
use super::wait_list::WaitList;
use leveret_core::journal::Batch;

/// Bytes per peer in this room: the record, its places on the lists, its deadline.
pub(super) const fn peer_bytes<S>() -> usize {
    size_of::<Option<Peer<S>>>()
        + 6 * WaitList::ENTRY_BYTES
        + 2 * size_of::<PeerId>()
        + Deadlines::ENTRY_BYTES
}

/// The lists that peers are on.
#[derive(Debug)]
pub(super) struct Lists {
    /// Who wants to be called when.
    pub(super) deadlines: Deadlines,
    pub(super) to_read: WaitList,
    pub(super) to_write: WaitList,
    pub(super) to_close: Vec<PeerId>,
    /// Peers with confirms or answers that wait for the disk.
    pub(super) for_disk: WaitList,
    /// What the peers that wait for the disk have been told of.
    pub(super) durable_told: Batch,
    /// Publishers that wait for room, first come first served.
    pub(super) for_room: WaitList,
    /// Peers whose input needs more of the stashes than is free.
    pub(super) for_stash: WaitList,
    /// Peers whose last command is still being carried out.
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
            durable_told: Batch::NONE,
            for_room: list(),
            for_stash: list(),
            for_jobs: list(),
        }
    }

    /// Has a peer read in the next turn, unless it waits for something.
    pub(super) fn list_to_read<S: Socket>(&mut self, peers: &Peers<S>, id: impl Into<PeerId>) {
        let id = id.into();
        if peers.get(id).is_some_and(|peer| peer.waiting == Waiting::No) {
            self.to_read.push(id);
        }
    }

    /// Has a peer written to in this turn, or the next.
    pub(super) fn list_to_write(&mut self, id: impl Into<PeerId>) {
        self.to_write.push(id);
    }

    /// Has a peer closed at the end of the turn.
    pub(super) fn end_now<S: Socket>(&mut self, peers: &mut Peers<S>, id: impl Into<PeerId>) {
        let id = id.into();
        if let Some(peer) = peers.get_mut(id)
            && peer.ending != Ending::Now
        {
            peer.ending = Ending::Now;
            self.to_close.push(id);
        }
    }

    /// A peer waits for nothing any more.
    pub(super) fn resume<S: Socket>(&mut self, peers: &mut Peers<S>, id: impl Into<PeerId>) {
        let id = id.into();
        if let Some(peer) = peers.get_mut(id) {
            peer.waiting = Waiting::No;
            peer.stream.look_again();
            self.list_to_read(peers, id);
        }
    }

    /// Takes everybody off who is gone: once for all that were closed, and before anybody else gets one of their
    /// places.
    pub(super) fn forget_gone<S: Socket>(&mut self, peers: &Peers<S>) {
        let waiting = [&mut self.for_room, &mut self.for_stash, &mut self.for_jobs, &mut self.for_disk];
        for list in waiting.into_iter().chain([&mut self.to_read, &mut self.to_write]) {
            list.retain(|id| peers.get(id).is_some());
        }
    }
}
