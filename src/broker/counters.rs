//! Counters of events since the start, each counted once, where it happens.
//!
//! Why it exists: whoever watches a broker reads rates from counters; metrics and the management API both
//! show them, so there is one counter for each event.
//!
//! Always true: counts only rise; a message that has to be published again, because there was no room for it,
//! counts once; what the broker moves by itself (dead letters, messages read back) is neither received nor
//! delivered.

use super::letters::Reason;

/// Counters since the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Messages published by clients.
    pub received: u64,
    /// Messages published in confirm mode, in a transaction, or mandatory.
    pub received_confirm: u64,
    /// Queues that published messages were routed to; a message counts once for each.
    pub routed: u64,
    /// Messages that reached no queue and were dropped.
    pub unroutable_dropped: u64,
    /// Messages that reached no queue and were returned (mandatory).
    pub unroutable_returned: u64,
    /// Messages written to consumers that acknowledge.
    pub delivered_manual: u64,
    /// Messages written to consumers with automatic acknowledgement.
    pub delivered_auto: u64,
    /// Messages written for basic.get, to be acknowledged.
    pub get_manual: u64,
    /// Messages written for basic.get with automatic acknowledgement.
    pub get_auto: u64,
    /// Times that basic.get found no message.
    pub get_empty: u64,
    /// Messages written that were marked as redelivered.
    pub redelivered: u64,
    /// Messages acknowledged by clients.
    pub acknowledged: u64,
    /// Messages dead-lettered because a consumer rejected them.
    pub dead_lettered_rejected: u64,
    /// Messages dead-lettered because they expired.
    pub dead_lettered_expired: u64,
    /// Messages dead-lettered because their queue was over its length limit.
    pub dead_lettered_max_length: u64,
    /// Messages dead-lettered because they were over the delivery limit.
    pub dead_lettered_delivery_limit: u64,
    /// Channels opened.
    pub channels_opened: u64,
    /// Declarations of queues, existing ones included.
    pub queues_declared: u64,
    /// Queues made by declarations.
    pub queues_created: u64,
    /// Queues deleted.
    pub queues_deleted: u64,
}

impl Counters {
    /// Counts a message that is dead-lettered for this reason. Messages that bridges park are none.
    pub(crate) const fn note_dead_lettered(&mut self, reason: Reason) {
        match reason {
            Reason::Rejected => self.dead_lettered_rejected += 1,
            Reason::Expired => self.dead_lettered_expired += 1,
            Reason::MaxLength => self.dead_lettered_max_length += 1,
            Reason::DeliveryLimit => self.dead_lettered_delivery_limit += 1,
            Reason::Parked(_) => {}
        }
    }

    /// Messages written for basic.get and to consumers.
    pub const fn delivered(&self) -> u64 {
        self.delivered_manual + self.delivered_auto + self.get_manual + self.get_auto
    }
}

/// Counters of one channel since it was opened, modulo 2³².
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ChannelCounters {
    /// Messages published.
    pub published: u32,
    /// Those of them that were taken in confirm mode.
    pub confirmed: u32,
    /// Messages returned.
    pub returned: u32,
    /// Messages that reached no queue and were dropped.
    pub dropped: u32,
    /// Messages written to consumers that acknowledge.
    pub delivered_manual: u32,
    /// Messages written to consumers with automatic acknowledgement.
    pub delivered_auto: u32,
    /// Messages written for basic.get, to be acknowledged.
    pub get_manual: u32,
    /// Messages written for basic.get with automatic acknowledgement.
    pub get_auto: u32,
    /// Times that basic.get found no message.
    pub get_empty: u32,
    /// Messages written that were marked as redelivered.
    pub redelivered: u32,
    /// Messages acknowledged.
    pub acknowledged: u32,
}

impl ChannelCounters {
    /// Messages written for basic.get and to consumers.
    pub const fn delivered(&self) -> u32 {
        self.delivered_manual
            .wrapping_add(self.delivered_auto)
            .wrapping_add(self.get_manual)
            .wrapping_add(self.get_auto)
    }
}

/// Counts one more, modulo 2³².
#[inline]
pub(crate) const fn count_up(counter: &mut u32) {
    *counter = counter.wrapping_add(1);
}
