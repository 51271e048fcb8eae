//! All that the broker holds, and how it begins.
//!
//! What is done with it stands in the files above; each part that has rules of its own keeps them itself
//! (`topology`, `access`, `deliveries`, `queue`).

use std::collections::VecDeque;

use crate::command::{ChannelId, ConnectionId, QueueId};
use crate::error::Fault;
use crate::journal::Journal;
use crate::limits::Limits;
use crate::mem::{Owner, Slab};

use super::Context;
use super::access::{Access, PREDECLARED_EXCHANGES};
use super::counters::Counters;
use super::death::Parking;
use super::job::Begun;
use super::left_out::LeftOut;
use super::names::{Entropy, IndexTable};
use super::orphans::Orphans;
use super::parameters::Parameters;
use super::policy::Policies;
use super::queues::Queues;
use super::quota::Quota;
use super::records::{Channel, Connection, Consumer, Promised};
use super::shortage::Shortage;
use super::topology::Topology;
use super::traced::Firehose;
use super::waiters::Waiters;
use super::watch::Watch;

/// The pseudo-queue of direct reply-to, and the prefix of its tokens.
pub(super) const REPLY_TO: &str = "amq.rabbitmq.reply-to";

/// Connections that the loop is to look at.
#[derive(Debug)]
pub(super) struct Noted {
    /// The outbox of each was empty and is not any more.
    pub(super) output: VecDeque<ConnectionId>,
    /// Each is to be closed by force.
    pub(super) forced: VecDeque<ConnectionId>,
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
    pub(super) entropy: Entropy,
    pub(super) access: Access,
    pub(super) policies: Policies,
    pub(super) parameters: Parameters,
    /// Why bridges set messages aside, and where those go.
    pub(super) parkings: Vec<Parking>,
    pub(super) topology: Topology,
    pub(super) queues: Queues,
    pub(super) consumers: Slab<Consumer>,
    pub(super) consumer_table: IndexTable,
    pub(super) channels: Slab<Channel>,
    pub(super) connections: Slab<Connection>,
    pub(super) left_out: LeftOut,
    pub(super) orphans: Orphans,
    /// What the publish waits for that was answered last with a wait.
    pub(super) shortage: Shortage,
    /// In which minute it was last said that a dead letter was dropped.
    pub(super) dropped_logged_minute: Option<u32>,
    pub(super) jobs: VecDeque<Begun>,
    /// Connections that the loop is to look at.
    pub(super) noted: Noted,
    /// Room for the queues of a message; it is taken out while one is routed and pushed.
    pub(super) targets_buffer: Vec<QueueId>,
    /// The same for a dead letter, which may be under way at the same time.
    pub(super) letter_targets: Vec<QueueId>,
    /// Seconds since 1970 when this second began: what dead letters say about when.
    pub(super) unix_s: u64,
    pub(super) watch: Watch,
    /// What connections, users and virtual hosts take of what all share, and what they may.
    pub(super) quota: Quota,
    /// What the commit that is being carried out may still need.
    pub(super) promised: Promised,
    /// Connections with a consumer that was refused because they have their share of deliveries.
    pub(super) over_share: Waiters<ConnectionId>,
    pub(super) counters: Counters,
    pub(super) firehose: Firehose,
}

impl core::fmt::Debug for Broker {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Broker").field("gauges", &self.gauges()).finish_non_exhaustive()
    }
}

impl Broker {
    /// Queues, what waits in them and what is delivered.
    pub const fn queues(&self) -> &Queues {
        &self.queues
    }

    /// What the store and operators do with queues on which nothing else hangs.
    pub const fn queues_mut(&mut self) -> &mut Queues {
        &mut self.queues
    }

    /// Reserves everything and declares what exists from the start.
    ///
    /// # Errors
    /// The limits leave no room for the predeclared exchanges.
    pub fn new(limits: &Limits, mut entropy: Entropy) -> Result<Self, Fault> {
        let seed = draw_seed(&mut entropy);
        let vhosts = limits.vhosts_max as usize;
        let exchanges = limits.exchanges_max as usize + vhosts * PREDECLARED_EXCHANGES;
        let (queues, connections) = (limits.queues_max as usize, limits.connection_records());
        let frame = limits.frame_max as usize;
        let access = Access::new(limits, &mut entropy, seed);
        let mut broker = Self {
            entropy,
            access,
            policies: Policies::with_capacity(limits.policies_max as usize),
            parameters: Parameters::with_capacity(limits.parameters_max as usize, seed),
            parkings: Vec::new(),
            topology: Topology::with_capacity(exchanges, limits.bindings_max as usize, frame, seed),
            queues: Queues::new(limits, seed),
            consumers: Slab::with_capacity(limits.consumers_max as usize),
            consumer_table: IndexTable::with_capacity(limits.consumers_max as usize, seed),
            channels: Slab::with_capacity(
                limits.channels_max as usize + limits.bridge_links() + limits.bridges_max as usize,
            ),
            connections: Slab::with_capacity(connections),
            left_out: LeftOut::new(queues + limits.exchanges_max as usize, seed),
            orphans: Orphans::default(),
            shortage: Shortage::Commit,
            dropped_logged_minute: None,
            jobs: VecDeque::with_capacity(queues + exchanges + 2 * connections + vhosts + 16),
            noted: Noted {
                output: VecDeque::with_capacity(connections),
                forced: VecDeque::with_capacity(limits.connections_max as usize),
            },
            targets_buffer: Vec::with_capacity(queues),
            letter_targets: Vec::with_capacity(queues),
            unix_s: 0,
            watch: Watch::new(limits.consumer_timeout_ms),
            quota: Quota::new(limits),
            promised: Promised::default(),
            over_share: Waiters::with_capacity(connections),
            counters: Counters::default(),
            firehose: Firehose::default(),
        };
        broker.begin_access()?;
        Ok(broker)
    }

    /// Takes a bounded number of messages out of memory that the log has, if memory is short; says whether
    /// it is worth while to go on.
    pub fn spill(&mut self, cx: &mut Context<'_>) -> bool {
        let before = self.quota.pinned().unsettled_bytes;
        let channels = &self.channels;
        let connection_of = |channel: ChannelId| channels[channel.index()].connection;
        let goes_on = self.queues.spill(cx, &mut self.quota, connection_of);
        if self.quota.pinned().unsettled_bytes < before {
            self.over_share.note_change();
        }
        goes_on
    }

    /// The last thing before a clean stop, when all else is written: what the log says of queues ahead of time is set
    /// right. Says whether there was anything to write.
    pub fn reset_watermarks(&mut self, journal: &mut Journal) -> bool {
        self.queues.reset_watermarks(journal, &self.access)
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
        self.queues.room_made() + self.quota.room_made() + self.revision()
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
            bindings: self.topology.bindings_len(),
            deliveries: self.queues.deliveries.len(),
            chunks: self.queues.pool.chunks_used(),
            names_bytes: self.quota.names_bytes(),
            jobs: self.jobs.len(),
            unsettled_bytes: pinned.unsettled_bytes,
            open_messages: pinned.open_messages,
            open_bytes: pinned.open_bytes,
            absent: self.queues.absent(),
            spilled_messages: self.queues.spilled_messages(),
            holders: self.quota.holders(),
        }
    }

    #[inline]
    pub(super) fn connection(&self, connection: ConnectionId) -> &Connection {
        &self.connections[connection.index()]
    }

    /// Rises with whatever may change where a message goes, or who may do what.
    #[inline]
    pub(super) const fn revision(&self) -> u64 {
        self.topology.revision() + self.access.revision()
    }
}

fn draw_seed(entropy: &mut Entropy) -> u64 {
    let mut seed = [0; 8];
    entropy(&mut seed);
    u64::from_ne_bytes(seed)
}
