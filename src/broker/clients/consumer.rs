//! The record of a consumer.

use leveret_core::command::{ChannelId, Name, QueueId};
use leveret_core::mem::Links;

/// The state of a consumer record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ConsumerState {
    /// The consumer takes messages.
    Active,
    /// The consumer takes no more messages, but still has unsettled deliveries.
    Cancelled,
    /// Not a consumer: the record counts the deliveries by `basic.get` of a channel from one queue.
    Get,
}

/// One consumer.
#[derive(Debug)]
pub(crate) struct Consumer {
    pub(crate) tag: Name,
    pub(crate) channel: ChannelId,
    pub(crate) queue: QueueId,
    pub(crate) state: ConsumerState,
    pub(crate) no_ack: bool,
    pub(crate) exclusive: bool,
    pub(crate) priority: i32,
    /// The consumer's prefetch; 0 is unlimited.
    pub(crate) prefetch_count: u16,
    /// Number of unsettled deliveries. With automatic acknowledgement a delivery is settled when it is
    /// written.
    pub(crate) unsettled: u32,
    /// Number of unsettled deliveries that the client must acknowledge: those that the prefetch limits.
    pub(crate) unacknowledged: u32,
    /// The consumer of an MQTT session gets no message, because too many exchanges of packets are not complete.
    pub(crate) is_held: bool,
    /// The consumer is on its queue's list of eligible consumers.
    pub(super) is_eligible: bool,
    /// The consumer is on its connection's list of paused consumers.
    pub(super) is_paused: bool,
    /// The consumer is on its connection's list of cancelled consumers for which the client must get a
    /// `basic.cancel`.
    pub(crate) needs_cancel_notice: bool,
    /// The consumer's messages are being requeued. Its queue counts this in `blocking_jobs`.
    pub(crate) is_requeueing: bool,
    pub(super) channel_links: Links,
    pub(super) queue_links: Links,
    pub(super) eligible_links: Links,
    /// Links in the connection's list of paused or of cancelled consumers; never of both.
    pub(super) connection_links: Links,
}

impl Consumer {
    pub(super) fn new(channel: ChannelId, queue: QueueId, state: ConsumerState) -> Self {
        Self {
            tag: Name::new(),
            channel,
            queue,
            state,
            no_ack: false,
            exclusive: false,
            priority: 0,
            prefetch_count: 0,
            unsettled: 0,
            unacknowledged: 0,
            is_held: false,
            is_eligible: false,
            is_paused: false,
            needs_cancel_notice: false,
            is_requeueing: false,
            channel_links: Links::default(),
            queue_links: Links::default(),
            eligible_links: Links::default(),
            connection_links: Links::default(),
        }
    }
}

/// The properties of a consumer to be started.
pub(crate) struct NewConsumer {
    pub(crate) tag: Name,
    pub(crate) priority: i32,
    pub(crate) no_ack: bool,
    pub(crate) exclusive: bool,
}
