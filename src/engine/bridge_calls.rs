//! What the engine tells its bridges, and what it lends them for it.
//!
//! Always true: a bridge is told of everything that happens to the peers that are its links, and of output for
//! the connections of its own that consume here; whatever else is to be known of it stands in `bridges`.

use crate::bridge::Origin;
use crate::command::ConnectionId;
use crate::config::bridge::Bridge as Config;
use crate::log_limiter::{LogKind, LogSource};

use super::bridges::{Bridges, Call, Yard};
use super::platform::Platform;
use super::state::Engine;

impl<P: Platform> Engine<P> {
    /// The bridges, and what they are lent.
    const fn bridges_and_yard(&mut self) -> (&mut Bridges, Yard<'_, P>) {
        let yard = Yard {
            now: self.now,
            is_stopping: self.stopping.is_some(),
            limits: &self.limits,
            node: self.admin.process.node.as_str(),
            platform: &mut self.platform,
            peers: &mut self.peers,
            lists: &mut self.lists,
            supplies: &mut self.supplies,
            broker: &mut self.broker,
            journal: &mut self.journal,
            worker: &mut self.worker,
            buffers: &mut self.buffers,
            scratch: &mut self.scratch,
            budget: &mut self.budget,
        };
        (&mut self.bridges, yard)
    }

    /// Something has happened to a link of a bridge, or to a connection of its own; says how many octets were
    /// written.
    pub(super) fn tell_bridge(&mut self, id: ConnectionId, call: Call<'_>) -> usize {
        let (bridges, mut yard) = self.bridges_and_yard();
        bridges.handle(&mut yard, id, call)
    }

    /// A link reads once.
    pub(super) fn read_bridge(&mut self, id: ConnectionId) {
        self.tell_bridge(id, Call::Read);
        self.after_session(id.into());
    }

    /// A link writes once.
    pub(super) fn write_bridge(&mut self, id: ConnectionId) {
        let count = self.tell_bridge(id, Call::Write);
        self.after_write(id.into(), count);
    }

    /// The socket of a link is about to be closed.
    #[cold]
    pub(super) fn forget_bridge(&mut self, id: ConnectionId) {
        let (bridges, mut yard) = self.bridges_and_yard();
        bridges.note_closed(&mut yard, id);
    }

    /// Once in every turn.
    pub(super) fn poll_bridges(&mut self) {
        let (bridges, mut yard) = self.bridges_and_yard();
        bridges.poll(&mut yard);
    }

    /// Whether a poll would get on now.
    pub(super) fn has_bridge_work(&self) -> bool {
        let (has_room, is_stopping) = (self.lists.for_room.is_empty(), self.stopping.is_some());
        self.bridges.is_ready(&self.broker, self.now, (has_room, is_stopping))
    }

    /// Does what an operator wants of a bridge.
    #[cold]
    pub(super) fn order_bridge(&mut self, name: &str, order: crate::admin::request_context::BridgeOrder) {
        let (bridges, mut yard) = self.bridges_and_yard();
        bridges.follow_order(&mut yard, name, order);
    }

    /// What of bridges outlives a restart was written down, or could not be.
    #[cold]
    pub(super) fn take_noted(&mut self, noted: Result<(), String>) {
        if let Err(why) = noted {
            let text = format_args!("what was done with bridges cannot be written down: {why}");
            self.supplies.log.warn(self.now, LogSource::Anybody, LogKind::Bridge, text);
        }
    }

    // ---- for whoever runs the engine

    /// Whether there is one.
    pub const fn has_bridges(&self) -> bool {
        !self.bridges.is_empty()
    }

    /// Sets whose messages leave this broker: those of a store, in one of its lives.
    pub const fn set_origin(&mut self, store: [u8; 16], life: u32) {
        self.bridges.set_origin(Origin { store, life });
    }

    /// These bridges of the configuration are to be there from now on, beside those of parameters: those that
    /// are there as they are stay as they are.
    #[cold]
    pub fn set_bridges(&mut self, said: &[Config]) {
        let (bridges, mut yard) = self.bridges_and_yard();
        bridges.set(&mut yard, said);
    }

    /// What of bridges is to be written down; `None`: there are none.
    #[cold]
    pub fn bridge_notes(&mut self) -> Option<String> {
        let (bridges, yard) = self.bridges_and_yard();
        bridges.notes(&yard)
    }

    /// Takes up what was written down; the bridges are there already, and nothing has been done with them.
    #[cold]
    pub fn restore_bridges(&mut self, notes: &str) {
        self.bridges.restore(notes, self.now);
    }
}
