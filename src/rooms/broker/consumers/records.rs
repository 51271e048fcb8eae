//! The records of things that come and go with peers: connections, channels, consumers.
//!
//! Always true: a record is freed only when nothing refers to it any more. A consumer that was cancelled
//! stays until its last unacknowledged message is settled, for it remembers which queue the message came
//! from; a channel that was closed stays until everything it held has gone back.

use crate::command::{ChannelId, ConnectionId, ExchangeId, Name, QueueId, VhostId};
use crate::mem::{Links, List, MessageId};

use crate::broker::access::Identity;
use crate::broker::topology::RouteCache;

/// What the broker knows of a connection.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) identity: Identity,
    pub(crate) vhost: Option<VhostId>,
    /// Why it is to be closed by force.
    pub(super) forced: Option<Box<str>>,
    pub(super) channels: List,
    pub(crate) exclusive_queues: List,
    /// Deliveries assigned and not completely written, in the order they will be written.
    pub(crate) outbox: List,
    pub(crate) outbox_bytes: u64,
    /// The sequence of the last delivery put into the outbox.
    pub(crate) sequence: u64,
    /// The socket takes more: no remainder stands before it.
    pub(crate) writable: bool,
    /// Consumers that would be eligible if this connection could take more.
    pub(super) parked: List,
    /// Consumers that the client must be told are gone (basic.cancel).
    pub(super) cancelled: List,
    /// The queue that had its share when it was last made to wait.
    pub(crate) waits_for: Option<FullQueue>,
    /// Transactions open with something in them.
    pub(crate) open_transactions: u32,
    /// Jobs begun by its last command; its input stands until they are done.
    pub(crate) jobs: u32,
    /// On the list of connections whose output the turn should look at.
    pub(super) noted: bool,
    /// On the list of connections with a consumer that waits for their share of deliveries.
    pub(super) waits_for_share: bool,
    /// The peer is gone; what it held is being given back.
    pub(crate) dying: bool,
    /// Everything was given back.
    pub(crate) cleared: bool,
    /// The socket is closed: the id may be given to another.
    pub(crate) released: bool,
}

impl Connection {
    /// Channels, closed ones included.
    pub(crate) const fn channels_len(&self) -> u32 {
        self.channels.len()
    }

    pub(super) fn new() -> Self {
        Self {
            identity: Identity::default(),
            vhost: None,
            forced: None,
            channels: List::default(),
            exclusive_queues: List::default(),
            outbox: List::default(),
            outbox_bytes: 0,
            sequence: 0,
            writable: true,
            parked: List::default(),
            cancelled: List::default(),
            waits_for: None,
            open_transactions: 0,
            jobs: 0,
            noted: false,
            waits_for_share: false,
            dying: false,
            cleared: false,
            released: false,
        }
    }
}

/// A queue that has its share, as a publisher to it found it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FullQueue {
    pub(crate) queue: QueueId,
    /// What tells it from those that had its id before.
    pub(crate) serial: u64,
    /// Of the routes at that time: by others a message may not come to it.
    pub(crate) revision: u64,
}

/// What the broker knows of a channel.
#[derive(Debug)]
pub(crate) struct Channel {
    pub(crate) number: u16,
    pub(crate) connection: ConnectionId,
    pub(crate) vhost: VhostId,
    /// Deliveries waiting for acknowledgement in the order of their tags; those not yet written are last.
    pub(crate) unacknowledged: List,
    pub(crate) last_tag: u64,
    /// The tag of the last delivery that was written: where "everything so far" ends.
    pub(crate) last_sent: u64,
    /// Consumers, cancelled ones with unsettled messages and the stand-ins of gets included.
    pub(crate) consumers: List,
    /// basic.qos for consumers started from now on; 0 is unlimited.
    pub(crate) prefetch_count: u16,
    /// basic.qos global=true: for all consumers of the channel together; 0 is unlimited.
    pub(crate) global_prefetch_count: u16,
    /// Unsettled deliveries to consumers that acknowledge.
    pub(crate) consumer_unsettled: u32,
    pub(crate) mode: Mode,
    pub(crate) route_cache: RouteCache,
    /// The exchange that this channel may publish to, until the topology changes.
    pub(crate) may_write: Option<ExchangeId>,
    pub(crate) may_write_until: u64,
    /// Something was published on it.
    pub(crate) has_published: bool,
    /// Deliveries of this channel still in the outbox, and the sequence of the last one.
    pub(crate) outbox_len: u32,
    pub(crate) outbox_last: u64,
    /// Closed: nothing new starts, and what it held is going back.
    pub(crate) closing: bool,
    /// Everything went back: the record goes when the outbox no longer refers to it.
    pub(crate) cleared: bool,
    pub(super) links: Links,
}

impl Channel {
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
            closing: false,
            cleared: false,
            links: Links::default(),
        }
    }
}

/// Confirms and transactions exclude each other.
#[derive(Debug)]
pub(crate) enum Mode {
    Plain,
    Confirm,
    Transaction(Transaction),
}

/// What tx.commit will do.
#[derive(Debug, Default)]
pub(crate) struct Transaction {
    /// Messages in order, each with its route behind it if it has one, linked through their slots.
    pub(crate) first: Option<MessageId>,
    pub(crate) last: Option<MessageId>,
    /// Messages that were published.
    pub(crate) messages: u32,
    /// Slots of messages and routes together.
    pub(crate) held: u32,
    /// Bytes of blocks that they occupy.
    pub(crate) bytes: u64,
    /// When something was added last, in seconds since the start of the process.
    pub(crate) touched_s: u32,
    /// Deliveries whose settlement is decided.
    pub(crate) settlements: List,
}

impl Transaction {
    pub(crate) const fn is_empty(&self) -> bool {
        self.messages == 0 && self.settlements.is_empty()
    }
}

/// A consumer's life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ConsumerState {
    /// It takes messages.
    Active,
    /// It takes no more, but still has unsettled ones.
    Cancelled,
    /// Not a consumer: stands for the gets of a channel from one queue.
    Get,
}

/// What the broker knows of a consumer.
#[derive(Debug)]
pub(crate) struct Consumer {
    pub(crate) tag: Name,
    pub(crate) channel: ChannelId,
    pub(crate) queue: QueueId,
    pub(crate) state: ConsumerState,
    pub(crate) no_ack: bool,
    pub(crate) exclusive: bool,
    pub(crate) priority: i32,
    /// 0 is unlimited.
    pub(crate) prefetch_count: u16,
    /// Deliveries not settled; for a consumer without acknowledgements, not yet written.
    pub(crate) unsettled: u32,
    /// On its queue's list of consumers that can take a message now.
    pub(super) eligible: bool,
    /// On its connection's list of consumers waiting for room in the output.
    pub(super) parked: bool,
    /// On its connection's list of cancellations to tell.
    pub(crate) to_tell: bool,
    /// Counted in its queue's `returning`: its messages are on their way back.
    pub(crate) returning: bool,
    pub(super) channel_links: Links,
    pub(super) queue_links: Links,
    pub(super) eligible_links: Links,
    /// The connection's list of parked or of cancelled consumers; it is never on both.
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
            eligible: false,
            parked: false,
            to_tell: false,
            returning: false,
            channel_links: Links::default(),
            queue_links: Links::default(),
            eligible_links: Links::default(),
            connection_links: Links::default(),
        }
    }
}
