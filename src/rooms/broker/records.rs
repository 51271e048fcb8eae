//! The records of things that come and go with peers: connections, channels, consumers.
//!
//! Always true: a record is freed only when nothing refers to it any more. A consumer that was cancelled
//! stays until its last unacknowledged message is settled, for it remembers which queue the message came
//! from; a channel that was closed stays until everything it held has gone back.

use crate::command::{ChannelId, ConnectionId, ConsumerId, ExchangeId, Name, QueueId, VhostId};
use crate::mem::{Links, List, MessageId};

use super::access::Identity;
use super::topology::RouteCache;

/// What the broker knows of a connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) identity: Identity,
    pub(super) vhost: Option<VhostId>,
    /// Why it is to be closed by force.
    pub(super) forced: Option<Box<str>>,
    pub(super) channels: List,
    pub(super) exclusive_queues: List,
    /// Deliveries assigned and not completely written, in the order they will be written.
    pub(super) outbox: List,
    pub(super) outbox_bytes: u64,
    /// The sequence of the last delivery put into the outbox.
    pub(super) sequence: u64,
    /// The socket takes more: no remainder stands before it.
    pub(super) writable: bool,
    /// Consumers that would be eligible if this connection could take more.
    pub(super) parked: List,
    /// Consumers that the client must be told are gone (basic.cancel).
    pub(super) cancelled: List,
    /// The queue that had its share when it was last made to wait.
    pub(super) waits_for: Option<FullQueue>,
    /// Transactions open with something in them.
    pub(super) open_transactions: u32,
    /// Jobs begun by its last command; its input stands until they are done.
    pub(super) jobs: u32,
    /// On the list of connections whose output the turn should look at.
    pub(super) noted: bool,
    /// On the list of connections with a consumer that waits for their share of deliveries.
    pub(super) starves: bool,
    /// The peer is gone; what it held is being given back.
    pub(super) dying: bool,
    /// Everything was given back.
    pub(super) cleared: bool,
    /// The socket is closed: the id may be given to another.
    pub(super) released: bool,
}

impl Connection {
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
            starves: false,
            dying: false,
            cleared: false,
            released: false,
        }
    }
}

/// A queue that has its share, as a publisher to it found it.
#[derive(Clone, Copy, Debug)]
pub(super) struct FullQueue {
    pub(super) queue: QueueId,
    /// What tells it from those that had its id before.
    pub(super) serial: u64,
    /// Of the routes at that time: by others a message may not come to it.
    pub(super) revision: u64,
}

/// What the broker knows of a channel.
#[derive(Debug)]
pub(super) struct Channel {
    pub(super) number: u16,
    pub(super) connection: ConnectionId,
    pub(super) vhost: VhostId,
    /// Deliveries waiting for acknowledgement in the order of their tags; those not yet written are last.
    pub(super) unacknowledged: List,
    pub(super) last_tag: u64,
    /// The tag of the last delivery that was written: where "everything so far" ends.
    pub(super) last_sent: u64,
    /// Consumers, cancelled ones with unsettled messages and the stand-ins of gets included.
    pub(super) consumers: List,
    /// basic.qos for consumers started from now on; 0 is unlimited.
    pub(super) prefetch_count: u16,
    /// basic.qos global=true: for all consumers of the channel together; 0 is unlimited.
    pub(super) global_prefetch_count: u16,
    /// Unsettled deliveries to consumers that acknowledge.
    pub(super) consumer_unsettled: u32,
    pub(super) mode: Mode,
    pub(super) route_cache: RouteCache,
    /// The exchange that this channel may publish to, until the topology changes.
    pub(super) may_write: Option<ExchangeId>,
    pub(super) may_write_until: u64,
    /// Something was published on it.
    pub(super) has_published: bool,
    /// Deliveries of this channel still in the outbox, and the sequence of the last one.
    pub(super) outbox_len: u32,
    pub(super) outbox_last: u64,
    /// Closed: nothing new starts, and what it held is going back.
    pub(super) closing: bool,
    /// Everything went back: the record goes when the outbox no longer refers to it.
    pub(super) cleared: bool,
    pub(super) links: Links,
}

/// Confirms and transactions exclude each other.
#[derive(Debug)]
pub(super) enum Mode {
    Plain,
    Confirm,
    Transaction(Transaction),
}

/// What tx.commit will do.
#[derive(Debug, Default)]
pub(super) struct Transaction {
    /// Messages in order, each with its route behind it if it has one, linked through their slots.
    pub(super) first: Option<MessageId>,
    pub(super) last: Option<MessageId>,
    /// Messages that were published.
    pub(super) messages: u32,
    /// Slots of messages and routes together.
    pub(super) held: u32,
    /// Bytes of blocks that they occupy.
    pub(super) bytes: u64,
    /// When something was added last, in seconds since the start of the process.
    pub(super) touched_s: u32,
    /// Deliveries whose settlement is decided.
    pub(super) settlements: List,
}

impl Transaction {
    pub(super) const fn is_empty(&self) -> bool {
        self.messages == 0 && self.settlements.is_empty()
    }
}

/// A consumer's life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ConsumerState {
    /// It takes messages.
    Active,
    /// It takes no more, but still has unsettled ones.
    Cancelled,
    /// Not a consumer: stands for the gets of a channel from one queue.
    Get,
}

/// What the broker knows of a consumer.
#[derive(Debug)]
pub(super) struct Consumer {
    pub(super) tag: Name,
    pub(super) channel: ChannelId,
    pub(super) queue: QueueId,
    pub(super) state: ConsumerState,
    pub(super) no_ack: bool,
    pub(super) exclusive: bool,
    pub(super) priority: i32,
    /// 0 is unlimited.
    pub(super) prefetch_count: u16,
    /// Deliveries not settled; for a consumer without acknowledgements, not yet written.
    pub(super) unsettled: u32,
    /// On its queue's list of consumers that can take a message now.
    pub(super) eligible: bool,
    /// On its connection's list of consumers waiting for room in the output.
    pub(super) parked: bool,
    /// On its connection's list of cancellations to tell.
    pub(super) to_tell: bool,
    /// Counted in its queue's `returning`: its messages are on their way back.
    pub(super) returning: bool,
    pub(super) channel_links: Links,
    pub(super) queue_links: Links,
    pub(super) eligible_links: Links,
    /// The connection's list of parked or of cancelled consumers; it is never on both.
    pub(super) connection_links: Links,
}

impl Consumer {
    pub(super) fn id(index: usize) -> ConsumerId {
        ConsumerId::from_index(index)
    }
}

/// What a commit that goes on has been found to need at most: what is given up meanwhile leaves that much, or
/// the commit would end half-way.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Promised {
    /// Chunks for entries.
    pub(super) chunks: usize,
    /// Messages for the log.
    pub(super) logged: usize,
}
