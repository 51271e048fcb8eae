//! Quotas of unsettled deliveries and open transactions, whose clients may settle or commit at any time, or
//! never.
//!
//! Always true: a connection may hold as many deliveries that are not settled, and as much memory of their
//! messages, as it leaves to others, and one delivery always; all open transactions together hold at most
//! half of the memory for messages, and those of one connection at most half of what the others leave of
//! that.

use crate::command::ConnectionId;
use crate::error::{Fault, ReplyCode};
use crate::mem::MESSAGE_SLOT_BYTES;

use super::held::Pinned;
use super::state::Quota;

impl Quota {
    /// Whether a connection may have one more delivery of a pool with this much room: a new connection always
    /// finds some, and unsettled messages do not keep everybody from publishing.
    #[inline]
    pub(crate) fn may_take_delivery(&self, connection: ConnectionId, room: usize) -> bool {
        let share = self.connections.of(connection);
        (share.unsettled as usize) < room
            && self.leaves_bytes(share.pinned.unsettled_bytes)
            && (!self.tenants.is_divided() || self.is_delivery_left_for(connection, room))
    }

    /// Whether a connection has unsettled deliveries.
    pub(crate) fn has_deliveries(&self, connection: ConnectionId) -> bool {
        self.connections.of(connection).unsettled > 0
    }

    /// The configuration key of the pool of which a connection has used up its share, so that it may have no
    /// more deliveries.
    pub(crate) fn key_of_deliveries(&self, connection: ConnectionId) -> &'static str {
        let held = self.connections.of(connection).pinned.unsettled_bytes;
        if self.leaves_bytes(held) { "unacknowledged_max" } else { "body_bytes_max" }
    }

    /// Whether a connection that holds this many bytes of messages leaves as many to others.
    #[inline]
    const fn leaves_bytes(&self, held: u64) -> bool {
        held == 0 || held < self.sizes.body_bytes.saturating_sub(self.pinned.unsettled_bytes)
    }

    #[inline(never)]
    fn is_delivery_left_for(&self, connection: ConnectionId, room: usize) -> bool {
        self.tenants.may_take_delivery(self.connections.holder(connection), room)
    }

    /// Counts a new delivery of a connection, whose message has this many bytes of blocks.
    #[inline]
    pub(crate) fn take_delivery(&mut self, connection: ConnectionId, bytes: u64) {
        let share = self.connections.of_mut(connection);
        share.unsettled += 1;
        share.pinned.unsettled_bytes += bytes;
        self.pinned.unsettled_bytes += bytes;
        if self.tenants.is_divided() {
            self.count_delivery(connection);
        }
    }

    #[inline(never)]
    fn count_delivery(&mut self, connection: ConnectionId) {
        self.tenants.take_delivery(self.connections.holder(connection));
    }

    /// Counts out a settled delivery of a connection, whose message counted with this many bytes.
    #[inline]
    pub(crate) fn give_delivery_back(&mut self, connection: ConnectionId, bytes: u64) {
        let share = self.connections.of_mut(connection);
        share.unsettled -= 1;
        share.pinned.unsettled_bytes -= bytes;
        self.pinned.unsettled_bytes -= bytes;
        if self.tenants.is_divided() {
            self.count_delivery_back(connection);
        }
    }

    #[inline(never)]
    fn count_delivery_back(&mut self, connection: ConnectionId) {
        self.tenants.give_delivery_back(self.connections.holder(connection));
    }

    /// Counts out the bytes of a delivery whose message left memory; the delivery still counts.
    #[inline]
    pub(crate) fn give_delivered_bytes_back(&mut self, connection: ConnectionId, bytes: u64) {
        self.connections.of_mut(connection).pinned.unsettled_bytes -= bytes;
        self.pinned.unsettled_bytes -= bytes;
    }

    /// Returns the bytes of the log that all open transactions need at most when they are committed.
    pub(crate) fn open_log_bytes(&self) -> u64 {
        log_bytes_of(self.pinned)
    }

    /// Returns the bytes of the log that the open transactions of a connection need at most.
    pub(crate) fn open_log_bytes_of(&self, connection: ConnectionId) -> u64 {
        log_bytes_of(self.connections.of(connection).pinned)
    }

    /// Counts slots and bytes for an open transaction of the connection.
    ///
    /// # Errors
    /// The connection's transactions would hold more than they leave to others', and hold something already;
    /// or all transactions would hold more than half of the pool.
    pub(crate) fn take_open(
        &mut self,
        connection: ConnectionId,
        slots: u32,
        bytes: u64,
    ) -> Result<(), Fault> {
        let all = self.pinned;
        let own = self.connections.of(connection).pinned;
        let (messages, body_bytes) = (u64::from(self.sizes.messages / 2), self.sizes.body_bytes / 2);
        let left = messages.checked_sub(u64::from(all.open_messages + slots));
        if left.is_none_or(|left| own.open_messages > 0 && u64::from(own.open_messages + slots) > left) {
            return Err(open_share_is_used_up("messages_max"));
        }
        let left = body_bytes.checked_sub(all.open_bytes + bytes);
        if left.is_none_or(|left| own.open_bytes > 0 && own.open_bytes + bytes > left) {
            return Err(open_share_is_used_up("body_bytes_max"));
        }
        if self.tenants.is_divided() {
            let holder = self.connections.holder(connection);
            let of_messages = (messages.saturating_sub(all.open_messages.into()), slots.into());
            let of_bytes = (body_bytes.saturating_sub(all.open_bytes), bytes);
            self.tenants.check_open(holder, of_messages, of_bytes).map_err(open_share_is_used_up)?;
            self.tenants.take_open(holder, slots.into(), bytes);
        }
        for pinned in [&mut self.pinned, &mut self.connections.of_mut(connection).pinned] {
            pinned.open_messages += slots;
            pinned.open_bytes += bytes;
        }
        Ok(())
    }

    /// Counts out the slots and bytes of a transaction that is over.
    pub(crate) fn give_open_back(&mut self, connection: ConnectionId, slots: u32, bytes: u64) {
        if self.tenants.is_divided() {
            self.tenants.give_open_back(self.connections.holder(connection), slots.into(), bytes);
        }
        for pinned in [&mut self.pinned, &mut self.connections.of_mut(connection).pinned] {
            pinned.open_messages -= slots;
            pinned.open_bytes -= bytes;
        }
    }
}

/// Bytes of the log that messages of open transactions take at most.
fn log_bytes_of(pinned: Pinned) -> u64 {
    u64::from(pinned.open_messages) * MESSAGE_SLOT_BYTES as u64 + pinned.open_bytes
}

/// 506: open transactions have used up their share; they may be forgotten, and nobody else can have what they
/// hold.
fn open_share_is_used_up(key: &str) -> Fault {
    Fault::new(
        ReplyCode::ResourceError,
        format_args!(
            "open transactions hold their share of {key}, the rest is for others: commit more often, or raise it in \
             the configuration"
        ),
    )
}
