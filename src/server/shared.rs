//! What every part of the engine is lent: the peers and their lists, the broker and what it works with, budgets.
//!
//! The parts are the sessions of peers, the worker's jobs, bridges, operators and the disk. One of them runs at a time,
//! and has all of this for as long.
//!
//! Always true: nothing here knows of bridges, operators or the disk: what concerns more than one part is done by
//! [`Engine`](super::state::Engine), which has them.

use leveret_broker::Broker;
use leveret_core::journal::Journal;
use leveret_core::limits::Limits;
use leveret_core::time::{Deadline, Now};

use super::admission::Admission;
use super::lists::Lists;
use super::peer_id::PeerId;
use super::peers::Peers;
use super::platform::Platform;
use super::stream::Buffers;
use super::supplies::{Scratch, Supplies};
use super::work_units::TurnBudget;
use super::worker_job::WorkerQueue;

/// What every part is lent.
pub(super) struct Shared<P: Platform> {
    pub(super) limits: Limits,
    pub(super) now: Now,
    /// By when everybody must have gone, once it is to stop.
    pub(super) stopping: Option<Deadline>,
    /// The world outside.
    pub(super) platform: P,
    pub(super) admission: Admission<P::Socket>,
    /// Whoever is connected, of whatever kind.
    pub(super) peers: Peers<P::Socket>,
    /// Who of them is to be read, written to, closed or called, and who waits for what.
    pub(super) lists: Lists,
    pub(super) supplies: Supplies,
    pub(super) broker: Broker,
    /// What the broker has said that is to be written.
    pub(super) journal: Journal,
    /// What the worker is to do.
    pub(super) worker: WorkerQueue,
    pub(super) buffers: Buffers,
    pub(super) scratch: Scratch,
    /// What this turn has read and done so far.
    pub(super) budget: TurnBudget,
}

impl<P: Platform> Shared<P> {
    pub(super) const fn is_stopping(&self) -> bool {
        self.stopping.is_some()
    }

    /// The broker, and what its calls are lent: journal, messages, and the turn's budget of work.
    pub(super) const fn broker_mut(&mut self) -> (&mut Broker, leveret_broker::Context<'_>) {
        let context = leveret_broker::Context::new(
            &mut self.journal,
            &mut self.supplies.messages,
            &mut self.budget.work,
        );
        (&mut self.broker, context)
    }

    /// Has a peer read in the next turn, unless it waits for something.
    pub(super) fn list_to_read(&mut self, id: impl Into<PeerId>) {
        self.lists.list_to_read(&self.peers, id);
    }

    /// Has a peer written to in this turn, or the next.
    pub(super) fn list_to_write(&mut self, id: impl Into<PeerId>) {
        self.lists.list_to_write(id);
    }

    /// A peer waits for nothing any more.
    pub(super) fn resume(&mut self, id: impl Into<PeerId>) {
        self.lists.resume(&mut self.peers, id);
    }

    /// Closes a peer at the end of the turn.
    pub(super) fn end_now(&mut self, id: impl Into<PeerId>) {
        self.lists.end_now(&mut self.peers, id);
    }
}
