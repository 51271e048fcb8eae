//! The record of a channel, with its transaction.

use leveret_core::command::{ConnectionId, ExchangeId, VhostId};
use leveret_core::mem::{Links, List, MessageId};
use leveret_routing::RouteCache;

use crate::counters::ChannelCounters;

/// One channel.
#[derive(Debug)]
pub(crate) struct Channel {
    pub(crate) number: u16,
    pub(crate) connection: ConnectionId,
    pub(crate) vhost: VhostId,
    /// Deliveries waiting for acknowledgement, in the order of their tags; those not yet written are last.
    pub(crate) unacknowledged: List,
    pub(crate) last_tag: u64,
    /// Tag of the last delivery that was written. An acknowledgement of all deliveries (tag 0, multiple) ends
    /// there.
    pub(crate) last_sent: u64,
    /// Consumers of the channel, including cancelled ones with unsettled deliveries and the records for
    /// `basic.get`s.
    pub(crate) consumers: List,
    /// The prefetch from `basic.qos` for consumers that are started later; 0 is unlimited.
    pub(crate) prefetch_count: u16,
    /// The prefetch from `basic.qos` with global=true, for all consumers of the channel together; 0 is
    /// unlimited.
    pub(crate) global_prefetch_count: u16,
    /// Number of unsettled deliveries to consumers with manual acknowledgement.
    pub(crate) consumer_unsettled: u32,
    pub(crate) mode: Mode,
    pub(crate) route_cache: RouteCache,
    /// The exchange to which this channel was last allowed to publish. Valid while the revision is
    /// `may_write_until`.
    pub(crate) may_write: Option<ExchangeId>,
    /// The revision for which `may_write` is valid.
    pub(crate) may_write_until: u64,
    /// A message was published on the channel.
    pub(crate) has_published: bool,
    /// Number of deliveries of the channel still in the outbox.
    pub(crate) outbox_len: u32,
    /// Sequence number of the channel's last delivery in the outbox.
    pub(crate) outbox_last: u64,
    pub(crate) state: ChannelState,
    /// Number of the channel, unique among all channels ever opened.
    pub(crate) serial: u64,
    pub(crate) counters: ChannelCounters,
    pub(super) links: Links,
}

impl Channel {
    /// Returns whether the channel is closed, cleared or not.
    pub(crate) const fn is_closed(&self) -> bool {
        !matches!(self.state, ChannelState::Open)
    }

    pub(super) fn new(number: u16, connection: ConnectionId, vhost: VhostId) -> Self {
        Self {
            number,
            connection,
            vhost,
            unacknowledged: List::default(),
            last_tag: 0,
            last_sent: 0,
            consumers: List::default(),
            prefetch_count: 0,
            global_prefetch_count: 0,
            consumer_unsettled: 0,
            mode: Mode::Plain,
            route_cache: RouteCache::default(),
            may_write: None,
            may_write_until: 0,
            has_published: false,
            outbox_len: 0,
            outbox_last: 0,
            state: ChannelState::Open,
            serial: 0,
            counters: ChannelCounters::default(),
            links: Links::default(),
        }
    }
}

/// The state of a channel's record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ChannelState {
    /// The channel is open.
    Open,
    /// The channel is closed. It accepts no commands, and a job requeues its deliveries.
    Closing,
    /// The channel's deliveries are all requeued: the record is freed when the outbox no longer refers to it.
    Cleared,
}

/// The mode of a channel: confirms and transactions exclude each other.
#[derive(Debug)]
pub(crate) enum Mode {
    Plain,
    Confirm,
    Transaction(Transaction),
}

/// An open transaction.
#[derive(Debug, Default)]
pub(crate) struct Transaction {
    /// The first published message. Each message is linked to its route, if it has one, and that to the next
    /// message.
    pub(crate) first: Option<MessageId>,
    pub(crate) last: Option<MessageId>,
    /// Number of messages that were published.
    pub(crate) messages: u32,
    /// Number of message slots that the messages and their routes occupy.
    pub(crate) slots: u32,
    /// Bytes of blocks that messages and their routes occupy.
    pub(crate) bytes: u64,
    /// When a message or settlement was last added, in seconds since the start of the process.
    pub(crate) touched_s: u32,
    /// Deliveries whose settlement is part of the transaction.
    pub(crate) settlements: List,
}

impl Transaction {
    pub(crate) const fn is_empty(&self) -> bool {
        self.messages == 0 && self.settlements.is_empty()
    }
}
