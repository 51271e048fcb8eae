//! What has happened since the start, counted once, where it happens.
//!
//! Why it exists: whoever watches a broker reads rates from counters; metrics and the management API say
//! them both, so there is one of each.
//!
//! Always true: counts only rise; a message that has to be published again, because there was no room for it,
//! counts once; what the broker moves by itself (dead letters, messages read back) is neither received nor
//! delivered.

/// Counters since the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Messages that publishers gave us.
    pub received: u64,
    /// Those of them for which something is told back: in confirm mode, in a transaction, or mandatory.
    pub received_confirm: u64,
    /// Queues that those messages were for, one after the other.
    pub routed: u64,
    /// Messages that no queue was for, and nobody was to be told.
    pub unroutable_dropped: u64,
    /// Messages that no queue was for, and that were returned.
    pub unroutable_returned: u64,
    /// Messages written to who consumes and acknowledges.
    pub delivered_manual: u64,
    /// Messages written to who consumes and does not acknowledge.
    pub delivered_auto: u64,
    /// Messages written to who asked for one and acknowledges.
    pub get_manual: u64,
    /// Messages written to who asked for one and does not acknowledge.
    pub get_auto: u64,
    /// How often there was none to be had.
    pub get_empty: u64,
    /// Messages written that had been delivered before.
    pub redelivered: u64,
    /// Messages acknowledged, and not rejected.
    pub acknowledged: u64,
    /// Channels opened.
    pub channels_opened: u64,
    /// Declarations of queues, of those that were there already too.
    pub queues_declared: u64,
    /// Queues that were made by them.
    pub queues_created: u64,
    /// Queues that are gone.
    pub queues_deleted: u64,
}

impl Counters {
    /// Messages written in answer to a request for one, and to consumers.
    pub const fn delivered(&self) -> u64 {
        self.delivered_manual + self.delivered_auto + self.get_manual + self.get_auto
    }
}
