//! What one connection may take of what all of them share.
//!
//! Why it exists: a cap alone protects the board, not the neighbours: one peer that declares until it is
//! refused would leave nothing for anybody else.
//!
//! Always true: what comes and goes with a connection (channels, consumers, deliveries and the memory of
//! their messages) it may hold as much of as it leaves to others, and one delivery always; of half of the
//! memory for messages its open transactions may hold as much as they leave to those of others; of what it
//! declares (queues, exchanges, bindings, their names) it may hold fifteen times what it leaves, for usually
//! one program sets everything up. What a lost connection declared, or what was there at the start, is no
//! connection's; virtual hosts and users have shares of their own (`holders`), also
//! of the nodes that bindings hang on, among which the root of each exchange that may still come is not.

use crate::command::{ConnectionId, QueueId, VhostId};
use crate::error::{Fault, ReplyCode};
use crate::mem::{MessageId, Messages};

use super::divisions::{Held, Holder};
use super::holdings::{Declared, Declarer, Holdings};
use super::state::SLOT_BYTES;
use super::{Broker, Context};

/// Of what is declared, a connection may hold so many times what it leaves to others.
const DECLARED_TIMES: usize = 15;

impl Broker {
    /// Counts something that is about to be declared, with its names; says who answers for it.
    ///
    /// # Errors
    /// There is no more room, or the connection, its virtual host or its user has its share.
    pub(super) fn take_share(
        &mut self,
        cx: &mut Context<'_>,
        declared: Declared,
        vhost: VhostId,
        names_bytes: usize,
    ) -> Result<Option<Declarer>, Fault> {
        let room = match declared {
            Declared::Queue => self.queues.room(),
            Declared::Exchange => self.settings.exchanges_max - self.declared_exchanges,
            Declared::Binding(_) => self.settings.binding_places_max - self.binding_places,
        };
        let places = declared.places();
        let names_room = self.settings.names_bytes_max.saturating_sub(self.names_bytes);
        if places > room {
            return Err(self.out_of(declared.key()));
        }
        if names_bytes > names_room {
            return Err(self.out_of("names_bytes_max"));
        }
        let declarer = cx.declarer;
        let holder = self.holder_of(vhost, declarer);
        // What was there before a start comes back whatever the shares are, and an operator knows best.
        if declarer.is_some() {
            let held: fn(&Held) -> u32 = match declared {
                Declared::Queue => |held| held.declared.queues,
                Declared::Exchange => |held| held.declared.exchanges,
                Declared::Binding(_) => |held| held.declared.bindings,
            };
            self.check_holder(holder, (room, places), held, declared.key())?;
            let names = (names_room, names_bytes);
            self.check_holder(holder, names, |held| held.declared.names_bytes, "names_bytes_max")?;
        }
        if let Some(holdings) = declarer.and_then(|declarer| self.holdings(declarer)) {
            let held = *holdings.of(declared) as usize;
            let names_held = holdings.names_bytes as usize;
            if held + places - 1 > DECLARED_TIMES * (room - places) {
                return Err(has_its_share(declared.key()));
            }
            if names_held + names_bytes > DECLARED_TIMES * (names_room - names_bytes) {
                return Err(has_its_share("names_bytes_max"));
            }
            holdings.take(declared, names_bytes);
        }
        self.count_for(holder, |held| held.declared.take(declared, names_bytes));
        self.names_bytes += names_bytes;
        if let Declared::Binding(places) = declared {
            self.binding_places += places as usize;
        }
        Ok(declarer)
    }

    /// Counts more names of something that no connection answers for.
    ///
    /// # Errors
    /// There is no room for them.
    pub(super) fn take_names(&mut self, vhost: VhostId, names_bytes: usize) -> Result<(), Fault> {
        if names_bytes > self.settings.names_bytes_max.saturating_sub(self.names_bytes) {
            return Err(self.out_of("names_bytes_max"));
        }
        self.names_bytes += names_bytes;
        let holder = self.holder_of(vhost, None);
        self.count_for(holder, |held| held.declared.names_bytes += names_bytes as u32);
        Ok(())
    }

    /// It exists no more.
    pub(super) fn give_share_back(
        &mut self,
        declared: Declared,
        (vhost, declarer): (VhostId, Option<Declarer>),
        names_bytes: usize,
    ) {
        self.names_bytes -= names_bytes;
        if let Declared::Binding(places) = declared {
            self.binding_places -= places as usize;
        }
        if let Some(holdings) = declarer.and_then(|declarer| self.holdings(declarer)) {
            holdings.give_back(declared, names_bytes);
        }
        let holder = self.holder_of(vhost, declarer);
        self.count_for(holder, |held| held.declared.give_back(declared, names_bytes));
    }

    /// Counts nodes that are about to be made for a binding.
    ///
    /// # Errors
    /// There is no more room, or the virtual host or the user has its share.
    pub(super) fn take_nodes(
        &mut self,
        vhost: VhostId,
        declarer: Option<Declarer>,
        count: usize,
    ) -> Result<(), Fault> {
        if count == 0 {
            return Ok(());
        }
        let room = self.routing.node_room();
        if count > room {
            return Err(self.out_of("bindings_max"));
        }
        let holder = self.holder_of(vhost, declarer);
        if declarer.is_some() {
            self.check_holder(holder, (room, count), |held| held.declared.nodes, "bindings_max")?;
        }
        self.count_for(holder, |held| held.declared.nodes += count as u32);
        Ok(())
    }

    /// One of them is gone, which was made for a user of this number.
    pub(super) fn give_node_back(&mut self, vhost: VhostId, user: u32) {
        let holder = Holder { vhost: Some(vhost), user: self.access.user_with_life(user) };
        self.count_for(holder, |held| held.declared.nodes -= 1);
    }

    /// Whoever declares something until further notice does it for this connection.
    pub(super) fn declare_for(&mut self, cx: &mut Context<'_>, connection: ConnectionId) {
        let record = &self.connections[connection.index()];
        let (life, user) = (record.life, self.access.life_of(record.user_index));
        cx.declarer = Some(Declarer { connection, life, user });
    }

    fn holdings(&mut self, declarer: Declarer) -> Option<&mut Holdings> {
        let record = self.connections.get_mut(declarer.connection.index())?;
        (record.life == declarer.life).then_some(&mut record.holdings)
    }

    /// Whether the connection leaves as many channels to others as it has itself.
    pub(super) fn within_channel_share(&self, connection: ConnectionId) -> bool {
        (self.connection(connection).channels.len() as usize) < self.channels.room()
    }

    /// The same for consumers; the stand-ins of gets count.
    pub(super) fn within_consumer_share(&self, connection: ConnectionId) -> bool {
        (self.connection(connection).consumers as usize) < self.consumers.room()
    }

    /// The same for unsettled deliveries, so that a newcomer always finds some, and for the memory of their
    /// messages, so that what nobody settles does not keep everybody from publishing.
    pub(super) fn within_delivery_share(&self, connection: ConnectionId) -> bool {
        (self.connection(connection).unsettled as usize) < self.deliveries.room()
            && self.within_bytes_share(connection)
            && self.may_hold_delivery(connection)
    }

    #[inline]
    fn within_bytes_share(&self, connection: ConnectionId) -> bool {
        let held = self.connection(connection).pinned.unsettled_bytes;
        held == 0 || held < self.settings.body_bytes.saturating_sub(self.pinned.unsettled_bytes)
    }

    /// 506 for a get beyond [`Self::within_delivery_share`].
    pub(super) fn has_its_deliveries(&self, connection: ConnectionId) -> Fault {
        let key = if self.within_bytes_share(connection) { "unacknowledged_max" } else { "body_bytes_max" };
        self.out_of(key)
    }

    /// A message is delivered: until it is settled its memory counts for the connection, and for the queue.
    pub(super) fn pin(
        &mut self,
        messages: &Messages,
        connection: ConnectionId,
        queue: Option<QueueId>,
        message: MessageId,
    ) {
        let bytes = u64::from(messages.footprint_bytes(message)) - SLOT_BYTES;
        if bytes == 0 {
            return;
        }
        self.connections[connection.index()].pinned.unsettled_bytes += bytes;
        self.pinned.unsettled_bytes += bytes;
        if let Some(queue) = queue {
            self.queues[queue.index()].unsettled_bytes += bytes;
        }
    }

    /// It is settled, or back in its queue, or only the log has it.
    pub(super) fn unpin(
        &mut self,
        messages: &Messages,
        connection: ConnectionId,
        queue: Option<QueueId>,
        message: MessageId,
    ) {
        let bytes = u64::from(messages.footprint_bytes(message)) - SLOT_BYTES;
        if bytes == 0 {
            return;
        }
        self.connections[connection.index()].pinned.unsettled_bytes -= bytes;
        self.pinned.unsettled_bytes -= bytes;
        self.over_share.note_change();
        if let Some(queue) = queue {
            self.queues[queue.index()].unsettled_bytes -= bytes;
        }
    }

    /// Counts so many slots and bytes for an open transaction of the connection.
    ///
    /// # Errors
    /// Its transactions would hold more than they leave to those of others, and not only this; or all of
    /// them more than half of what there is.
    pub(super) fn take_open_share(
        &mut self,
        connection: ConnectionId,
        slots: u32,
        bytes: u64,
    ) -> Result<(), Fault> {
        let all = self.pinned;
        let own = self.connections[connection.index()].pinned;
        let left = u64::from(self.settings.messages / 2).checked_sub(u64::from(all.open_messages + slots));
        if left.is_none_or(|left| own.open_messages > 0 && u64::from(own.open_messages + slots) > left) {
            return Err(open_share_is_used_up("messages_max"));
        }
        let left = (self.settings.body_bytes / 2).checked_sub(all.open_bytes + bytes);
        if left.is_none_or(|left| own.open_bytes > 0 && own.open_bytes + bytes > left) {
            return Err(open_share_is_used_up("body_bytes_max"));
        }
        self.may_hold_open(connection, slots.into(), bytes).map_err(open_share_is_used_up)?;
        let own = &mut self.connections[connection.index()].pinned;
        own.open_messages += slots;
        own.open_bytes += bytes;
        self.hold_open(connection, slots.into(), bytes);
        self.pinned.open_messages += slots;
        self.pinned.open_bytes += bytes;
        Ok(())
    }

    /// A transaction is over.
    pub(super) fn give_open_share_back(&mut self, connection: ConnectionId, messages: u32, bytes: u64) {
        self.let_open_go(connection, messages.into(), bytes);
        for pinned in [&mut self.pinned, &mut self.connections[connection.index()].pinned] {
            pinned.open_messages -= messages;
            pinned.open_bytes -= bytes;
        }
    }
}

/// 506: transactions may be forgotten, and what they hold nobody else can have.
fn open_share_is_used_up(key: &str) -> Fault {
    Fault::new(
        ReplyCode::ResourceError,
        format_args!(
            "open transactions hold their share of {key}, the rest is for others: commit more often, or \
             raise it in the configuration"
        ),
    )
}

/// 506: what is left is for others.
pub(super) fn has_its_share(key: &str) -> Fault {
    Fault::new(
        ReplyCode::ResourceError,
        format_args!(
            "this connection has its share of {key}, the rest is for others: raise it in the configuration"
        ),
    )
}
