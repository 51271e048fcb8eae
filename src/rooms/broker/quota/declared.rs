//! Quotas of declared things: queues, exchanges, bindings, their names and arguments, and the nodes of
//! bindings in tries.
//!
//! Always true: a connection may hold fifteen times as many declared things as it leaves to others, for
//! usually one program sets everything up. A declared thing counts for its virtual host for as long as it
//! exists, over restarts too, and for the user that declared it while the broker runs and the user exists;
//! things restored at a start count for no user. The root nodes of exchanges do not count, even of those that
//! may still come.

use crate::command::VhostId;
use crate::error::Fault;

use super::held::{Declared, Declarer, Held, Holder};
use super::refused::has_its_share;
use super::state::Quota;
use crate::faults::out_of;

/// A connection may hold this many times the declared things that it leaves to others.
const DECLARED_TIMES: usize = 15;

/// The room left for declared things that the quota does not count itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    /// Queues that still fit.
    pub(crate) queues: usize,
}

impl Quota {
    /// Counts something that is about to be declared, with its names.
    ///
    /// # Errors
    /// There is no more room, or the connection, its virtual host or its user has used up its share.
    pub(crate) fn declare(
        &mut self,
        declared: Declared,
        names_bytes: usize,
        (vhost, declarer): (VhostId, Option<Declarer>),
        room: Room,
    ) -> Result<(), Fault> {
        let room = match declared {
            Declared::Queue => room.queues,
            Declared::Exchange => self.sizes.exchanges - self.exchanges,
            Declared::Binding(_) => self.sizes.binding_places - self.binding_places,
        };
        let places = declared.places();
        let names_room = self.names_room();
        if places > room {
            return Err(out_of(declared.key()));
        }
        if names_bytes > names_room {
            return Err(out_of("names_bytes_max"));
        }
        let holder = self.holder_of(vhost, declarer);
        // Durable things come back at a start whatever the shares are, and an operator is not limited.
        if declarer.is_some() {
            let held: fn(&Held) -> u32 = match declared {
                Declared::Queue => |held| held.declared.queues,
                Declared::Exchange => |held| held.declared.exchanges,
                Declared::Binding(_) => |held| held.declared.bindings,
            };
            self.tenants.check(holder, (room, places), held, declared.key())?;
            let names = (names_room, names_bytes);
            self.tenants.check(holder, names, |held| held.declared.names_bytes, "names_bytes_max")?;
        }
        if let Some(share) = declarer.and_then(|declarer| self.connections.of_declarer(declarer)) {
            let held = share.holdings.of(declared) as usize;
            let names_held = share.holdings.names_bytes as usize;
            if held + places - 1 > DECLARED_TIMES * (room - places) {
                return Err(has_its_share("connection", declared.key()));
            }
            if names_held + names_bytes > DECLARED_TIMES * (names_room - names_bytes) {
                return Err(has_its_share("connection", "names_bytes_max"));
            }
            share.holdings.take(declared, names_bytes);
        }
        self.tenants.count(holder, |held| held.declared.take(declared, names_bytes));
        self.names_bytes += names_bytes;
        match declared {
            Declared::Queue => {}
            Declared::Exchange => self.exchanges += 1,
            Declared::Binding(places) => self.binding_places += places as usize,
        }
        Ok(())
    }

    /// Counts out something declared that exists no more, with its names.
    pub(crate) fn undeclare(
        &mut self,
        declared: Declared,
        names_bytes: usize,
        (vhost, declarer): (VhostId, Option<Declarer>),
    ) {
        self.names_bytes -= names_bytes;
        match declared {
            Declared::Queue => {}
            Declared::Exchange => self.exchanges -= 1,
            Declared::Binding(places) => self.binding_places -= places as usize,
        }
        if let Some(share) = declarer.and_then(|declarer| self.connections.of_declarer(declarer)) {
            share.holdings.give_back(declared, names_bytes);
        }
        let holder = self.holder_of(vhost, declarer);
        self.tenants.count(holder, |held| held.declared.give_back(declared, names_bytes));
    }

    /// Counts more names of something that no connection answers for.
    ///
    /// # Errors
    /// There is no room for the names.
    pub(crate) fn take_names(&mut self, vhost: VhostId, names_bytes: usize) -> Result<(), Fault> {
        if names_bytes > self.names_room() {
            return Err(out_of("names_bytes_max"));
        }
        self.names_bytes += names_bytes;
        let holder = Holder { vhost: Some(vhost), user: None };
        self.tenants.count(holder, |held| held.declared.names_bytes += names_bytes as u32);
        Ok(())
    }

    /// Counts out names of something that no connection answers for.
    pub(crate) fn give_names_back(&mut self, vhost: VhostId, names_bytes: usize) {
        self.names_bytes -= names_bytes;
        let holder = Holder { vhost: Some(vhost), user: None };
        self.tenants.count(holder, |held| held.declared.names_bytes -= names_bytes as u32);
    }

    /// Counts nodes of a trie that are about to be made for a binding; `room`: how many fit.
    ///
    /// # Errors
    /// There is no more room, or the virtual host or the user has used up its share.
    pub(crate) fn take_nodes(
        &mut self,
        count: usize,
        (vhost, declarer): (VhostId, Option<Declarer>),
        room: usize,
    ) -> Result<(), Fault> {
        if count == 0 {
            return Ok(());
        }
        if count > room {
            return Err(out_of("bindings_max"));
        }
        let holder = self.holder_of(vhost, declarer);
        if declarer.is_some() {
            self.tenants.check(holder, (room, count), |held| held.declared.nodes, "bindings_max")?;
        }
        self.tenants.count(holder, |held| held.declared.nodes += count as u32);
        Ok(())
    }

    /// Counts out a node of a trie that was made for the user of this number.
    pub(crate) fn give_node_back(&mut self, vhost: VhostId, user: u32) {
        let holder = Holder { vhost: Some(vhost), user: self.tenants.user_with_life(user) };
        self.tenants.count(holder, |held| held.declared.nodes -= 1);
    }

    /// Bytes of names that still fit.
    pub(crate) const fn names_room(&self) -> usize {
        self.sizes.names_bytes.saturating_sub(self.names_bytes)
    }

    /// The virtual host that something declared counts for, and the user if he still exists.
    fn holder_of(&self, vhost: VhostId, declarer: Option<Declarer>) -> Holder {
        let user = declarer.and_then(|declarer| self.tenants.user_with_life(declarer.user()));
        Holder { vhost: Some(vhost), user }
    }
}
