//! OWNS MEANING. What exchanges, queues, consumers and acknowledgements mean; deterministic, without I/O.
//!
//! | file | what it holds |
//! |------|---------------|
//! | `access` | users, virtual hosts, permissions, and what an operator changes about them |
//! | `routing` | what is bound to what, and from an exchange and keys to queues |
//! | `exchanges` | exchanges and bindings: declaring, binding, deleting |
//! | `queue`, `queues`, `arguments` | records of queues; declaring, purging, deleting; queue arguments |
//! | `context` | what is lent for one call: journal, messages, work; what came of it besides its answer |
//! | `route`, `work` | the targets of a message; what finding them may cost |
//! | `publish` | a message comes in, all or nothing |
//! | `deliveries` | messages between queue and acknowledgement |
//! | `front` | what stands first in a queue, and whether it may go |
//! | `deliver` | from queues to outboxes |
//! | `pages` | queues deeper than memory |
//! | `stored`, `left_out` | what outlives the broker, and a start; what a start does not declare again |
//! | `orphans` | messages whose queue no definition is left of |
//! | `settle`, `transaction` | acknowledgements; tx |
//! | `consume`, `records` | consumers, channels, connections |
//! | `overdue` | who settles nothing for too long |
//! | `jobs` | what would take too long in one go |
//! | `tidy` | memory that a burst left idle |
//! | `views`, `changes` | what there is, for those who run the broker; what they change |
//! | `shares` | what one connection may take of what all share |
//! | `holders` | the same for a virtual host, and for a user, with all of its connections |
//! | `names` | name tables |
//! | `words` | things as reply texts show them |
//!
//! The life of a command: [`Broker::apply`] changes the state and answers at once. What happens later, in
//! the turn's order: [`Broker::run_jobs`], [`Broker::deliver`], then per connection [`Broker::outbox`] and
//! [`Broker::sent`].
//!
//! Always true: the same commands in the same order give the same state; nothing here knows a socket or a
//! clock; everything lives in pools that were sized at start, and what does not fit is refused by name.

mod access;
mod arguments;
mod changes;
mod consume;
mod context;
mod deliver;
mod deliveries;
mod exchanges;
mod front;
mod holders;
mod jobs;
mod left_out;
mod log_shares;
mod names;
mod orphans;
mod overdue;
mod pages;
mod publish;
mod queue;
mod queues;
mod records;
mod route;
mod routing;
mod settle;
mod shares;
mod spill;
mod stored;
mod tidy;
mod transaction;
mod views;
mod words;
mod work;

use std::collections::VecDeque;

use crate::command::{ChannelId, Command, ConnectionId, Outcome, QueueId, ReplyOrder};
use crate::error::{Fault, ReplyCode};
use crate::journal::{Batch, Journal};
use crate::limits::Limits;
use crate::mem::{FifoPool, List, MESSAGE_SLOT_BYTES, Share, Slab};

use access::{Access, Right, Thing};
use consume::ConsumeRequest;
use deliver::Getting;
use deliveries::Deliveries;
use exchanges::ExchangeDeclaration;
use jobs::{Begun, Job};
use left_out::LeftOut;
use names::IndexTable;
use orphans::Orphans;
use overdue::Watch;
use queue::Queue;
use queues::QueueDeclaration;
use records::{Channel, Connection, Consumer};
use routing::{BindingSpec, Destination, Routing};
use shares::Pinned;

pub use access::{
    OperatorFault, PATTERN_BYTES_MAX, PermissionView, TopicPermissionView, UserLimits, UserView, VhostLimits,
    VhostView,
};
pub use changes::Declared;
pub use context::Context;
pub use deliver::OutboxView;
pub use orphans::Orphan;
pub use overdue::Overdue;
pub use pages::{Fetch, Page, PageIn};
pub use stored::{Contents, Restored};
pub use views::{BindingView, ChannelView, ConnectionView, ConsumerView, ExchangeView, QueueView};
pub use work::Work;

/// The pseudo-queue of direct reply-to, and the prefix of its tokens.
const REPLY_TO: &str = "amq.rabbitmq.reply-to";
const SLOT_BYTES: u64 = MESSAGE_SLOT_BYTES as u64;

/// Fills a buffer with random bytes, for names that nobody may guess.
pub type Entropy = Box<dyn FnMut(&mut [u8])>;

/// Space for looking into properties; it is taken out while in use.
#[derive(Debug, Default)]
struct Scratch {
    properties: Box<[u8]>,
    rewritten: Box<[u8]>,
}

/// The numbers the broker goes by at run time.
#[derive(Debug)]
struct Settings {
    output_budget_bytes: u64,
    names_bytes_max: usize,
    /// Slots and bytes of blocks that ordinary publishers may use.
    messages: u32,
    body_bytes: u64,
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
    pub shed: u64,
    /// Messages delivered, or back in their queues, that only the log has.
    pub absent: u32,
}

/// The broker.
pub struct Broker {
    settings: Settings,
    entropy: Entropy,
    access: Access,
    routing: Routing,
    /// Places that bindings take, of `binding_places_max`; most take one.
    binding_places: usize,
    binding_places_max: usize,
    queues: Slab<Queue>,
    queue_table: IndexTable,
    consumers: Slab<Consumer>,
    consumer_table: IndexTable,
    channels: Slab<Channel>,
    connections: Slab<Connection>,
    deliveries: Deliveries,
    left_out: LeftOut,
    orphans: Orphans,
    /// Every message to a durable queue is persistent, whatever it says.
    persist_all: bool,
    spill_transient: bool,
    /// When it was last said that there is no room on the disk.
    full_said_ms: Option<u64>,
    /// Marks that were asked for, in the order of their batches: queue, incarnation, through.
    marking: VecDeque<(u64, QueueId, u64, u64)>,
    /// Queues whose front is to be read back.
    wants: VecDeque<QueueId>,
    /// Those for which there was no memory, and what the count of frees was then.
    hungry: VecDeque<QueueId>,
    hungry_since: u64,
    /// Where the search for what may leave memory goes on.
    spill_hand: usize,
    /// What is kept free to read back what only the log has.
    read_back: spill::ReadBackRoom,
    /// Gets that wait for their message.
    getting: VecDeque<Getting>,
    /// One of them may find its message now.
    gets_due: bool,
    fifo_pool: FifoPool,
    chunks_reserve: usize,
    /// Queues with something to deliver now.
    ready: List,
    jobs: VecDeque<Begun>,
    /// Connections whose outbox was empty and is not any more.
    noted: VecDeque<ConnectionId>,
    /// Room for the queues of a message; it is taken out while one is routed and pushed.
    targets_buffer: Vec<QueueId>,
    scratch: Scratch,
    names_bytes: usize,
    /// What all connections keep of the memory for messages.
    pinned: Pinned,
    watch: Watch,
    exchanges_max: usize,
    /// Exchanges that somebody declared.
    declared_exchanges: usize,
    /// How pools are divided among virtual hosts and among users.
    divisions: holders::Divisions,
    log_shares: log_shares::LogShares,
    /// Connections there have been.
    lives: u32,
    /// Counts messages that left memory or an outbox; whoever waits for room asks again when it rises.
    releases: u64,
    /// Connections with a consumer that was refused because they have their share of deliveries.
    starving: VecDeque<ConnectionId>,
    recheck_starving: bool,
}

impl core::fmt::Debug for Broker {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Broker").field("gauges", &self.gauges()).finish_non_exhaustive()
    }
}

/// Sizes of the broker's records with their places in tables and on lists, for the memory table.
pub const CONNECTION_BYTES: usize =
    Slab::<Connection>::record_bytes() + 3 * size_of::<ConnectionId>() + 2 * size_of::<Begun>();
/// A channel.
pub const CHANNEL_BYTES: usize = Slab::<Channel>::record_bytes() + 2 * size_of::<Getting>();
/// A consumer.
pub const CONSUMER_BYTES: usize = Slab::<Consumer>::record_bytes() + IndexTable::ENTRY_BYTES;
/// A queue, with its place among the targets of a message, on the lists of jobs, marks and reads (which grow
/// by doubling), and what the allocator adds to its two names.
pub const QUEUE_BYTES: usize = Slab::<Queue>::record_bytes()
    + IndexTable::ENTRY_BYTES
    + size_of::<QueueId>()
    + size_of::<Begun>()
    + 2 * (size_of::<(u64, QueueId, u64, u64)>() + 2 * size_of::<QueueId>() + 2 * size_of::<(u64, u64)>())
    + LeftOut::ENTRY_BYTES
    + 2 * ALLOCATION_BYTES;
/// An exchange with its root node.
pub const EXCHANGE_BYTES: usize =
    Routing::EXCHANGE_BYTES + size_of::<Begun>() + LeftOut::ENTRY_BYTES + 4 * ALLOCATION_BYTES;
/// A binding with its nodes, or its pairs.
pub const BINDING_BYTES: usize = Routing::BINDING_BYTES + (2 + Routing::NODES_PER_BINDING) * ALLOCATION_BYTES;
/// A virtual host with the exchanges it begins with, and its place among the jobs.
pub const VHOST_BYTES: usize =
    access::VHOST_BYTES + access::PREDECLARED_EXCHANGES * EXCHANGE_BYTES + size_of::<Begun>();
/// A user.
pub const USER_BYTES: usize = access::USER_BYTES;
/// A permission without its patterns.
pub const PERMISSION_BYTES: usize = access::PERMISSION_BYTES;
/// A delivery.
pub const DELIVERY_BYTES: usize = deliver::DELIVERY_BYTES;
/// What the allocator adds to each piece it hands out, about.
const ALLOCATION_BYTES: usize = 16;

/// Buffers that are there once, for frames of so many bytes.
pub const fn buffer_bytes(frame_max: usize) -> usize {
    2 * frame_max + 256 + Routing::header_names_bytes(frame_max) + orphans::ORPHANS_BYTES
}

impl Broker {
    /// Reserves everything and declares what exists from the start.
    ///
    /// # Errors
    /// The limits leave no room for the predeclared exchanges.
    pub fn new(limits: &Limits, mut entropy: Entropy) -> Result<Self, Fault> {
        let seed = draw_seed(&mut entropy);
        let vhosts = limits.vhosts_max as usize;
        let exchanges = limits.exchanges_max as usize + vhosts * access::PREDECLARED_EXCHANGES;
        let fifo_pool = FifoPool::with_entries(limits.queue_entries_max as usize, vhosts);
        let (queues, connections) = (limits.queues_max as usize, limits.connections_max as usize);
        let frame = limits.frame_max as usize;
        let access = Access::new(limits, &mut entropy, seed);
        let mut broker = Self {
            settings: Settings {
                output_budget_bytes: u64::from(limits.output_buffer_bytes),
                names_bytes_max: limits.names_bytes_max as usize,
                messages: limits.messages_max - limits.messages_max / 16,
                body_bytes: limits.body_bytes_max - limits.body_bytes_max / 16,
            },
            entropy,
            access,
            routing: Routing::with_capacity(exchanges, limits.bindings_max as usize, frame, seed),
            binding_places: 0,
            binding_places_max: limits.bindings_max as usize,
            queues: Slab::with_capacity(queues),
            queue_table: IndexTable::with_capacity(queues, seed),
            consumers: Slab::with_capacity(limits.consumers_max as usize),
            consumer_table: IndexTable::with_capacity(limits.consumers_max as usize, seed),
            channels: Slab::with_capacity(limits.channels_max as usize),
            connections: Slab::with_capacity(connections),
            deliveries: Deliveries::with_capacity(limits.unacknowledged_max as usize),
            chunks_reserve: fifo_pool.chunks_max() / 16,
            left_out: LeftOut::new(queues + limits.exchanges_max as usize, seed),
            orphans: Orphans::default(),
            persist_all: false,
            spill_transient: false,
            full_said_ms: None,
            marking: VecDeque::with_capacity(64),
            wants: VecDeque::with_capacity(64),
            hungry: VecDeque::new(),
            hungry_since: 0,
            spill_hand: 0,
            read_back: spill::ReadBackRoom::new(limits),
            getting: VecDeque::new(),
            gets_due: false,
            fifo_pool,
            ready: List::default(),
            jobs: VecDeque::with_capacity(queues + exchanges + 2 * connections + vhosts + 16),
            noted: VecDeque::with_capacity(connections),
            targets_buffer: Vec::with_capacity(queues),
            scratch: Scratch {
                properties: vec![0; frame].into_boxed_slice(),
                rewritten: vec![0; frame + 256].into_boxed_slice(),
            },
            names_bytes: 0,
            pinned: Pinned::default(),
            watch: Watch::new(limits.consumer_timeout_ms),
            exchanges_max: limits.exchanges_max as usize,
            declared_exchanges: 0,
            divisions: holders::Divisions::default(),
            log_shares: log_shares::LogShares::default(),
            lives: 0,
            releases: 0,
            starving: VecDeque::with_capacity(connections),
            recheck_starving: false,
        };
        broker.begin_access()?;
        Ok(broker)
    }

    /// Applies one command and says where a reply to it stands among the connection's deliveries.
    pub fn apply(
        &mut self,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        channel: Option<ChannelId>,
        command: Command<'_>,
    ) -> (Outcome, ReplyOrder) {
        cx.awaited = Batch::NONE;
        let answers_at_once = matches!(command, Command::Cancel { .. } | Command::CloseChannel);
        let result = match channel {
            None => self.apply_to_connection(cx.journal, connection, command),
            Some(channel) => self.apply_to_channel(cx, connection, channel, command),
        };
        if answers_at_once || result.is_err() {
            cx.awaited = Batch::NONE;
        }
        let outcome = result.unwrap_or_else(Outcome::Fault);
        (outcome, self.reply_order(connection, channel))
    }

    /// The part of the pools a connection's publishes may come from: who holds what others wait for must
    /// not be made to wait.
    #[inline]
    fn publish_share(&self, connection: ConnectionId) -> Share {
        let record = &self.connections[connection.index()];
        if record.unsettled > 0 || record.open_transactions > 0 { Share::Reserve } else { Share::Ordinary }
    }

    /// The part of the pools that the content of its next publish may come from: transactions can be
    /// forgotten, so they leave some of the reserve to others.
    #[inline]
    pub fn content_share(&self, connection: ConnectionId) -> Share {
        let record = &self.connections[connection.index()];
        if record.open_transactions > 0 { Share::Transaction } else { self.publish_share(connection) }
    }

    /// Whether exclusive queues live as long as this connection.
    pub fn owns_queues(&self, connection: ConnectionId) -> bool {
        !self.connection(connection).exclusive_queues.is_empty()
    }

    /// The next connection whose outbox got something since this was last asked.
    pub fn next_noted(&mut self) -> Option<ConnectionId> {
        let connection = self.noted.pop_front()?;
        if let Some(record) = self.connections.get_mut(connection.index()) {
            record.noted = false;
        }
        Some(connection)
    }

    /// Whether a turn would find something to do here without anything new from outside: jobs, deliveries
    /// that became possible, connections with something new to send.
    pub fn has_work(&self, journal: &Journal) -> bool {
        self.gets_due
            || !self.jobs.is_empty() && !journal.is_crowded()
            || !self.ready.is_empty()
            || !self.noted.is_empty()
            || self.recheck_starving
            || self.divisions.changed
    }

    /// Rises with everything here that a publisher may wait for: places for entries and deliveries, which
    /// their pools count themselves, what a queue has of its share, and what waits in an outbox.
    pub const fn room_made(&self) -> u64 {
        self.fifo_pool.given() + self.deliveries.slab.given() + self.releases
    }

    /// What the pools hold.
    pub fn gauges(&self) -> Gauges {
        Gauges {
            connections: self.connections.len(),
            channels: self.channels.len(),
            consumers: self.consumers.len(),
            queues: self.queues.len(),
            exchanges: self.declared_exchanges,
            bindings: self.routing.bindings_len(),
            deliveries: self.deliveries.slab.len(),
            chunks: self.fifo_pool.chunks_used(),
            names_bytes: self.names_bytes,
            jobs: self.jobs.len(),
            unsettled_bytes: self.pinned.unsettled_bytes,
            open_messages: self.pinned.open_messages,
            open_bytes: self.pinned.open_bytes,
            absent: self.queues.iter().map(|(_, queue)| queue.unsettled_absent + queue.returned_absent).sum(),
            shed: self.queues.iter().map(|(_, queue)| queue.shed.count).sum(),
        }
    }

    fn apply_to_connection(
        &mut self,
        journal: &Journal,
        connection: ConnectionId,
        command: Command<'_>,
    ) -> Result<Outcome, Fault> {
        match command {
            Command::Login { user, password, from_loopback } => {
                self.login(journal, connection, user, password.0, from_loopback)
            }
            Command::LoginExternal { user, from_loopback } => {
                self.login_external(journal, connection, user, from_loopback)
            }
            Command::OpenVhost { vhost } => self.open_vhost(connection, vhost),
            Command::OpenChannel { number } => self.open_channel(connection, number),
            _ => Err(out_of_place()),
        }
    }

    fn apply_to_channel(
        &mut self,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        channel: ChannelId,
        command: Command<'_>,
    ) -> Result<Outcome, Fault> {
        match command {
            Command::Publish { message, mandatory } => self.publish(cx, channel, message, mandatory),
            Command::Settle { delivery_tag, multiple, settlement } => {
                self.settle(cx, channel, delivery_tag, multiple, settlement)
            }
            Command::CloseChannel => {
                self.close_channel(cx, connection, channel);
                Ok(Outcome::Done)
            }
            Command::Recover => {
                self.recover(cx, channel);
                Ok(Outcome::Done)
            }
            Command::Qos { prefetch_count, global } => {
                self.set_prefetch(cx, channel, prefetch_count, global);
                Ok(Outcome::Done)
            }
            Command::ConfirmSelect => self.select_confirms(channel),
            Command::TxSelect => self.select_transactions(channel),
            Command::TxCommit => self.commit(cx, channel),
            Command::TxRollback => self.rollback(cx.messages, channel),
            Command::Cancel { tag } => {
                self.cancel(cx, channel, tag);
                self.run_jobs(cx);
                Ok(Outcome::Done)
            }
            _ => {
                self.declare_for(cx, connection);
                let result = self.apply_definition(cx, connection, channel, command);
                cx.declarer = None;
                result
            }
        }
    }

    /// What names queues or exchanges.
    fn apply_definition(
        &mut self,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        channel: ChannelId,
        command: Command<'_>,
    ) -> Result<Outcome, Fault> {
        let vhost = self.channels[channel.index()].vhost;
        match command {
            Command::ExchangeDeclare { exchange, passive: true, .. } => {
                self.check_exchange_exists(cx, vhost, exchange)
            }
            Command::ExchangeDeclare {
                exchange, kind, durable, auto_delete, internal, arguments, ..
            } => {
                let declaration =
                    ExchangeDeclaration { exchange, kind, durable, auto_delete, internal, arguments };
                self.declare_exchange(cx, connection, vhost, &declaration)
            }
            Command::ExchangeDelete { exchange, if_unused } => {
                if let Some(exchange) =
                    self.delete_exchange_by_name(cx, connection, vhost, exchange, if_unused)?
                {
                    self.start_job(cx, connection, Job::Exchange(exchange));
                }
                Ok(Outcome::Done)
            }
            Command::ExchangeBind { destination, source, routing_key, arguments } => {
                let spec = BindingSpec { source, routing_key, arguments };
                self.check_bind(connection, vhost, Thing::Exchange(destination), &spec)?;
                let source_id = self.require_exchange(vhost, source)?;
                let destination = Destination::Exchange(self.require_exchange(vhost, destination)?);
                self.bind(cx, source_id, destination, &spec)
            }
            Command::ExchangeUnbind { destination, source, routing_key, arguments } => {
                let spec = BindingSpec { source, routing_key, arguments };
                self.check_bind(connection, vhost, Thing::Exchange(destination), &spec)?;
                self.unbind_exchange(cx, vhost, destination, &spec)?;
                self.run_jobs(cx);
                Ok(Outcome::Done)
            }
            Command::QueueDeclare { queue, passive: true, .. } => {
                self.check_queue_exists(cx, connection, vhost, queue)
            }
            Command::QueueDeclare { queue, durable, exclusive, auto_delete, arguments, .. } => {
                let declaration = QueueDeclaration { queue, durable, exclusive, auto_delete, arguments };
                self.declare_queue(cx, connection, vhost, &declaration)
            }
            Command::QueueBind { queue, exchange, routing_key, arguments } => {
                let spec = BindingSpec { source: exchange, routing_key, arguments };
                self.bind_queue(cx, connection, vhost, queue, &spec)
            }
            Command::QueueUnbind { queue, exchange, routing_key, arguments } => {
                let spec = BindingSpec { source: exchange, routing_key, arguments };
                let outcome = self.unbind_queue(cx, connection, vhost, queue, &spec);
                self.run_jobs(cx);
                outcome
            }
            Command::QueuePurge { queue } => self.purge_queue(cx, connection, vhost, queue),
            Command::QueueDelete { queue, if_unused, if_empty } => {
                self.delete_queue_by_name(cx, connection, vhost, queue, (if_unused, if_empty))
            }
            Command::Consume { queue, tag, no_ack, exclusive, arguments } => {
                let request = ConsumeRequest { queue, tag, no_ack, exclusive, arguments };
                self.consume(cx, connection, channel, &request)
            }
            Command::Get { queue, no_ack } => {
                self.check(connection, vhost, Right::Read, Thing::Queue(queue))?;
                let queue = self.require_queue(connection, vhost, queue)?;
                self.get(cx, channel, queue, no_ack)
            }
            _ => Err(out_of_place()),
        }
    }

    /// A reply on a channel follows the deliveries that were put into the outbox for it before.
    fn reply_order(&self, connection: ConnectionId, channel: Option<ChannelId>) -> ReplyOrder {
        let Some(channel) = channel else { return 0 };
        match self.channels.get(channel.index()) {
            Some(record) if record.connection == connection && record.outbox_len > 0 => record.outbox_last,
            _ => 0,
        }
    }

    fn connection(&self, connection: ConnectionId) -> &Connection {
        &self.connections[connection.index()]
    }

    /// The turn should look at this connection's output.
    fn note_output(&mut self, connection: ConnectionId) {
        let record = &mut self.connections[connection.index()];
        if !core::mem::replace(&mut record.noted, true) {
            self.noted.push_back(connection);
        }
    }

    /// 506: this board's configuration has no room for that; the key says what to raise.
    fn out_of_disk(&self, journal: &Journal) -> Fault {
        if journal.is_file_system_full() {
            return Fault::new(
                ReplyCode::ResourceError,
                format_args!("the file system of this broker's data directory is full: make room there"),
            );
        }
        self.out_of(journal.room_key())
    }

    fn out_of(&self, key: &str) -> Fault {
        Fault::new(
            ReplyCode::ResourceError,
            format_args!("this broker has no more room for that: raise {key} in its configuration"),
        )
    }
}

fn draw_seed(entropy: &mut Entropy) -> u64 {
    let mut seed = [0; 8];
    entropy(&mut seed);
    u64::from_ne_bytes(seed)
}

/// A command in a place where the session never sends it.
fn out_of_place() -> Fault {
    Fault::connection(ReplyCode::CommandInvalid, format_args!("unexpected method"))
}
