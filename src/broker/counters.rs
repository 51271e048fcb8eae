//! Counters since the start, of the broker and of each channel.

use leveret_queues::Reason;

/// Counters since the start. Metrics and the management API both show them.
///
/// # Invariants
/// - Counters only rise. Each event is counted once.
/// - A message that is published again after `PublishAnswer::Wait` counts once.
/// - Messages that the broker itself moves (dead letters, messages read back from the log) count neither as
///   received nor as delivered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Messages published by clients.
    pub received: u64,
    /// Messages published in confirm mode, in a transaction, or mandatory.
    pub received_confirm: u64,
    /// The number of queues to which published messages were routed; a message counts once per queue.
    pub routed: u64,
    /// Messages that reached no queue and were dropped.
    pub unroutable_dropped: u64,
    /// Messages that reached no queue and were returned (mandatory).
    pub unroutable_returned: u64,
    /// Wills of MQTT clients that a queue did not get: it had used its share, or too many wills waited for capacity.
    pub wills_dropped: u64,
    /// Messages written to consumers with manual acknowledgement.
    pub delivered_manual: u64,
    /// Messages written to consumers with automatic acknowledgement.
    pub delivered_auto: u64,
    /// Messages written for `basic.get` with manual acknowledgement.
    pub get_manual: u64,
    /// Messages written for `basic.get` with automatic acknowledgement.
    pub get_auto: u64,
    /// Number of times that `basic.get` found no message.
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
    /// Copies of messages with shortened headers, because the headers of the broker did not fit into a frame with those
    /// of the message.
    pub headers_shortened: u64,
    /// Channels opened.
    pub channels_opened: u64,
    /// Declarations of queues, existing ones included.
    pub queues_declared: u64,
    /// Queues created by declarations.
    pub queues_created: u64,
    /// Queues deleted.
    pub queues_deleted: u64,
}

impl Counters {
    /// Counts a message that is dead-lettered for this reason. Messages moved to a parking queue are not
    /// counted.
    pub(crate) const fn note_dead_lettered(&mut self, reason: Reason) {
        match reason {
            Reason::Rejected => self.dead_lettered_rejected += 1,
            Reason::Expired => self.dead_lettered_expired += 1,
            Reason::MaxLength => self.dead_lettered_max_length += 1,
            Reason::DeliveryLimit => self.dead_lettered_delivery_limit += 1,
            Reason::Parked(_) => {}
        }
    }

    /// Returns the number of messages written for `basic.get` and to consumers.
    pub const fn delivered(&self) -> u64 {
        self.delivered_manual + self.delivered_auto + self.get_manual + self.get_auto
    }
}

/// Counters of one channel since it was opened, modulo 2³².
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ChannelCounters {
    /// Published messages.
    pub published: u32,
    /// Published messages that were accepted in confirm mode.
    pub confirmed: u32,
    /// Messages returned.
    pub returned: u32,
    /// Messages that reached no queue and were dropped.
    pub dropped: u32,
    /// Messages written to consumers with manual acknowledgement.
    pub delivered_manual: u32,
    /// Messages written to consumers with automatic acknowledgement.
    pub delivered_auto: u32,
    /// Messages written for `basic.get` with manual acknowledgement.
    pub get_manual: u32,
    /// Messages written for `basic.get` with automatic acknowledgement.
    pub get_auto: u32,
    /// Number of times that `basic.get` found no message.
    pub get_empty: u32,
    /// Messages written that were marked as redelivered.
    pub redelivered: u32,
    /// Messages acknowledged.
    pub acknowledged: u32,
}

impl ChannelCounters {
    /// Returns the number of messages written for `basic.get` and to consumers.
    pub const fn delivered(&self) -> u32 {
        self.delivered_manual
            .wrapping_add(self.delivered_auto)
            .wrapping_add(self.get_manual)
            .wrapping_add(self.get_auto)
    }
}

/// Adds 1, modulo 2³².
#[inline]
pub(crate) const fn count_up(counter: &mut u32) {
    *counter = counter.wrapping_add(1);
}
