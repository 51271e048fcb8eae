//! All that the broker holds, and how it begins.
//!
//! What is done with it stands in the files above; each part that has rules of its own keeps them itself
//! (`routing`, `access`, `deliveries`, `queue`).

use std::cell::Cell;
use std::collections::VecDeque;

use crate::command::{ConnectionId, QueueId};
use crate::error::{Fault, ReplyCode};
use crate::journal::{Batch, Journal};
use crate::limits::Limits;
use crate::mem::{FifoPool, List, MESSAGE_SLOT_BYTES, MessageId, Messages, Owner, Slab};

use super::access::{Access, PREDECLARED_EXCHANGES};
use super::counters::Counters;
use super::death::Parking;
use super::deliveries::Deliveries;
use super::expiry::Expiry;
use super::job::Begun;
use super::left_out::LeftOut;
use super::looks::Looks;
use super::names::{Entropy, IndexTable};
use super::orphans::Orphans;
use super::paging::Paging;
use super::parameters::Parameters;
use super::policy::Policies;
use super::queue::Queue;
use super::quota::{self, LogShares, Quota};
use super::records::{Channel, Connection, Consumer, Getting, Promised};
use super::returns::ReturnsDue;
use super::routing::Routing;
use super::shedding::Shedding;
use super::shortage::Shortage;
use super::sleepers::Sleepers;
use super::traced::Firehose;
use super::waiters::Waiters;
use super::watch::Watch;

/// The pseudo-queue of direct reply-to, and the prefix of its tokens.
pub(super) const REPLY_TO: &str = "amq.rabbitmq.reply-to";
pub(super) const SLOT_BYTES: u64 = MESSAGE_SLOT_BYTES as u64;

/// Bytes of blocks that a message takes: what it takes beyond its slot.
#[inline]
pub(super) fn block_bytes(messages: &Messages, message: MessageId) -> u64 {
    u64::from(messages.footprint_bytes(message)) - SLOT_BYTES
}

/// Space for looking into properties; it is taken out while in use.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    pub(super) properties: Box<[u8]>,
    pub(super) rewritten: Box<[u8]>,
}

/// The numbers the broker goes by at run time.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) output_budget_bytes: u64,
    /// Bytes of a frame.
    pub(super) frame_max: usize,
    /// Chunks of queue entries that ordinary publishers leave.
    pub(super) chunks_reserve: usize,
    /// Bytes of the log that publishers leave to dead letters, of those that there are at most.
    pub(super) letters_log_bytes: u64,
    /// Every message to a durable queue is persistent, whatever it says.
    pub(super) persist_all: bool,
    /// Slots and bytes of blocks that ordinary publishers may use.
    pub(super) messages: u32,
    pub(super) body_bytes: u64,
}

/// What is in the pools at the moment: everything is 0 when everything was drained and closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Gauges {
    /// Connections, lost ones included that are still being cleared away.
    pub connections: usize,
    /// Channels.
    pub channels: usize,
    /// Consumers.
    pub consumers: usize,
    /// Queues.
    pub queues: usize,
    /// Exchanges that somebody declared.
    pub exchanges: usize,
    /// Bindings.
    pub bindings: usize,
    /// Deliveries not settled.
    pub deliveries: usize,
    /// Chunks of queue entries.
    pub chunks: usize,
    /// Bytes of names and arguments.
    pub names_bytes: usize,
    /// Jobs not done.
    pub jobs: usize,
    /// Bytes of blocks of messages that are delivered and not settled.
    pub unsettled_bytes: u64,
    /// Messages in open transactions, and their bytes of blocks.
    pub open_messages: u32,
    /// See above.
    pub open_bytes: u64,
    /// Transient messages that the log has, or will have, because memory was short.
    pub spilled_messages: u64,
    /// Messages delivered, or back in their queues, that only the log has.
    pub absent: u32,
    /// Virtual hosts and users that hold some of what their connections share with others, or declared it.
    pub holders: usize,
}

/// The broker.
pub struct Broker {
    pub(super) settings: Settings,
    pub(super) entropy: Entropy,
    pub(super) access: Access,
    pub(super) policies: Policies,
    pub(super) parameters: Parameters,
    /// Why bridges set messages aside, and where those go.
    pub(super) parkings: Vec<Parking>,
    pub(super) routing: Routing,
    pub(super) queues: Slab<Queue>,
    pub(super) queue_table: IndexTable,
    pub(super) consumers: Slab<Consumer>,
    pub(super) consumer_table: IndexTable,
    pub(super) channels: Slab<Channel>,
    pub(super) connections: Slab<Connection>,
    pub(super) deliveries: Deliveries,
    pub(super) left_out: LeftOut,
    pub(super) orphans: Orphans,
    /// What the publish waits for that was answered last with a wait.
    pub(super) shortage: Shortage,
    /// In which minute it was last said that a dead letter was dropped.
    pub(super) dropped_logged_minute: Option<u32>,
    /// In which minute it was last said that there was no room for a priority of a queue.
    pub(super) no_level_logged_minute: Option<u32>,
    /// Quorum queues of which it is to be written how often their messages came back.
    pub(super) returns_due: ReturnsDue,
    /// Watermarks that were asked for, in the order of their batches: queue, incarnation, through.
    pub(super) watermarks_pending: VecDeque<(u64, QueueId, u64, u64)>,
    /// Queues whose first message is moving, and what was durable when somebody asked for it.
    pub(super) moves_awaited: Vec<(Batch, QueueId)>,
    pub(super) paging: Paging,
    /// What somebody waits to look at.
    pub(super) looks: Looks,
    /// Gets that wait for their message.
    pub(super) getting: Waiters<Getting>,
    pub(super) fifo_pool: FifoPool,
    /// Queues with something to deliver now.
    pub(super) ready: List,
    pub(super) jobs: VecDeque<Begun>,
    /// Connections whose outbox was empty and is not any more.
    pub(super) noted: VecDeque<ConnectionId>,
    /// Room for the queues of a message; it is taken out while one is routed and pushed.
    pub(super) targets_buffer: Vec<QueueId>,
    /// The same for a dead letter, which may be under way at the same time.
    pub(super) letter_targets: Vec<QueueId>,
    /// Queues of the log whose dead letters go on.
    pub(super) buriers: u32,
    /// Queues that have to give up something.
    pub(super) shedding: Shedding,
    /// When to look at which queue for what has expired.
    pub(super) expiry: Expiry,
    /// What delayed exchanges keep.
    pub(super) sleepers: Sleepers,
    /// There was something that may expire.
    pub(super) minds_time: bool,
    /// Seconds since 1970 when this second began: what dead letters say about when.
    pub(super) unix_s: u64,
    pub(super) scratch: Scratch,
    pub(super) watch: Watch,
    /// What connections, users and virtual hosts take of what all share, and what they may.
    pub(super) quota: Quota,
    pub(super) log_shares: LogShares,
    /// Counts messages that left memory or an outbox; whoever waits for room asks again when it rises.
    pub(super) releases: u64,
    /// What the commit that is being carried out may still need.
    pub(super) promised: Promised,
    /// Connections with a consumer that was refused because they have their share of deliveries.
    pub(super) over_share: Waiters<ConnectionId>,
    /// Levels of queues with priorities that were walked through and are not charged yet.
    pub(super) levels_walked: Cell<u32>,
    pub(super) counters: Counters,
    pub(super) firehose: Firehose,
}

impl core::fmt::Debug for Broker {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Broker").field("gauges", &self.gauges()).finish_non_exhaustive()
    }
}

impl Broker {
    /// Reserves everything and declares what exists from the start.
    ///
    /// # Errors
    /// The limits leave no room for the predeclared exchanges.
    pub fn new(limits: &Limits, mut entropy: Entropy) -> Result<Self, Fault> {
        let seed = draw_seed(&mut entropy);
        let vhosts = limits.vhosts_max as usize;
        let exchanges = limits.exchanges_max as usize + vhosts * PREDECLARED_EXCHANGES;
        let fifo_pool = FifoPool::with_entries(limits.queue_entries_max as usize, vhosts);
        let (queues, connections) = (limits.queues_max as usize, limits.connection_records());
        let frame = limits.frame_max as usize;
        let access = Access::new(limits, &mut entropy, seed);
        let mut broker = Self {
            settings: Settings {
                output_budget_bytes: u64::from(limits.output_buffer_bytes),
                frame_max: frame,
                chunks_reserve: fifo_pool.chunks_max() / 16,
                letters_log_bytes: limits.segment_bytes.into(),
                persist_all: false,
                messages: limits.messages_max - limits.messages_max / 16,
                body_bytes: limits.body_bytes_max - limits.body_bytes_max / 16,
            },
            entropy,
            access,
            policies: Policies::with_capacity(limits.policies_max as usize),
            parameters: Parameters::with_capacity(limits.parameters_max as usize, seed),
            parkings: Vec::new(),
            routing: Routing::with_capacity(exchanges, limits.bindings_max as usize, frame, seed),
            queues: Slab::with_capacity(queues),
            queue_table: IndexTable::with_capacity(queues, seed),
            consumers: Slab::with_capacity(limits.consumers_max as usize),
            consumer_table: IndexTable::with_capacity(limits.consumers_max as usize, seed),
            channels: Slab::with_capacity(
                limits.channels_max as usize + limits.bridge_links() + limits.bridges_max as usize,
            ),
            connections: Slab::with_capacity(connections),
            deliveries: Deliveries::with_capacity(limits.unacknowledged_max as usize),
            left_out: LeftOut::new(queues + limits.exchanges_max as usize, seed),
            orphans: Orphans::default(),
            shortage: Shortage::Commit,
            dropped_logged_minute: None,
            no_level_logged_minute: None,
            returns_due: ReturnsDue::default(),
            watermarks_pending: VecDeque::with_capacity(64),
            moves_awaited: Vec::with_capacity(64),
            paging: Paging::new(limits),
            looks: Looks::default(),
            getting: Waiters::with_capacity(0),
            fifo_pool,
            ready: List::default(),
            jobs: VecDeque::with_capacity(queues + exchanges + 2 * connections + vhosts + 16),
            noted: VecDeque::with_capacity(connections),
            targets_buffer: Vec::with_capacity(queues),
            letter_targets: Vec::with_capacity(queues),
            expiry: Expiry::with_capacity(queues),
            sleepers: Sleepers::new(queues, limits.messages_max as usize),
            minds_time: false,
            buriers: 0,
            shedding: Shedding::with_capacity(queues),
            unix_s: 0,
            scratch: Scratch {
                properties: vec![0; frame].into_boxed_slice(),
                rewritten: vec![0; frame + 256].into_boxed_slice(),
            },
            watch: Watch::new(limits.consumer_timeout_ms),
            quota: Quota::new(limits),
            log_shares: LogShares::with_capacity(vhosts),
            releases: 0,
            promised: Promised::default(),
            over_share: Waiters::with_capacity(connections),
            levels_walked: Cell::new(0),
            counters: Counters::default(),
            firehose: Firehose::default(),
        };
        broker.begin_access()?;
        Ok(broker)
    }

    /// Any number.
    pub fn chance(&mut self) -> u64 {
        draw_seed(&mut self.entropy)
    }

    /// Whose memory the messages of a connection take.
    #[inline]
    pub fn owner(&self, connection: ConnectionId) -> Owner {
        self.quota.owner(connection)
    }

    /// Whether exclusive queues live as long as this connection.
    pub fn owns_queues(&self, connection: ConnectionId) -> bool {
        !self.connection(connection).exclusive_queues.is_empty()
    }

    /// Rises with everything here that a publisher may wait for: places for entries and deliveries, which
    /// their pools count themselves, what a queue has of its share, what waits in an outbox, what is kept of
    /// the log for others, and where a message goes: in other queues there may be room.
    pub const fn room_made(&self) -> u64 {
        let given = self.fifo_pool.given() + self.deliveries.given();
        given + self.releases + self.log_shares.room_made() + self.routing.revision()
    }

    /// What the pools hold.
    pub fn gauges(&self) -> Gauges {
        let pinned = self.quota.pinned();
        Gauges {
            connections: self.connections.len(),
            channels: self.channels.len(),
            consumers: self.consumers.len(),
            queues: self.queues.len(),
            exchanges: self.quota.exchanges(),
            bindings: self.routing.bindings_len(),
            deliveries: self.deliveries.len(),
            chunks: self.fifo_pool.chunks_used(),
            names_bytes: self.quota.names_bytes(),
            jobs: self.jobs.len(),
            unsettled_bytes: pinned.unsettled_bytes,
            open_messages: pinned.open_messages,
            open_bytes: pinned.open_bytes,
            absent: self
                .queues
                .iter()
                .map(|(_, queue)| queue.unsettled_absent + queue.backlog.returned_absent())
                .sum(),
            spilled_messages: self.queues.iter().map(|(_, queue)| queue.spilled.count()).sum(),
            holders: self.quota.holders(),
        }
    }

    #[inline]
    pub(super) fn connection(&self, connection: ConnectionId) -> &Connection {
        &self.connections[connection.index()]
    }

    /// 506: this board's configuration has no room for that; the key says what to raise.
    pub(super) fn out_of_disk(&self, journal: &Journal) -> Fault {
        if journal.is_file_system_full() {
            return Fault::new(
                ReplyCode::ResourceError,
                format_args!("the file system of this broker's data directory is full: make room there"),
            );
        }
        self.out_of(journal.room_key())
    }

    pub(super) fn out_of(&self, key: &str) -> Fault {
        quota::out_of(key)
    }
}

fn draw_seed(entropy: &mut Entropy) -> u64 {
    let mut seed = [0; 8];
    entropy(&mut seed);
    u64::from_ne_bytes(seed)
}
