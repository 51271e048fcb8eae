//! Everything that runs, reserved at once; what is done with it stands in `turn`, `receive` and `send`.

use crate::admin::request_context::Process;
use crate::admin::samples::Samples;
use crate::broker::{self, Broker};
use crate::journal::{Batch, Journal};
use crate::limits::Limits;
use crate::log_limiter::LogLimiter;
use crate::mem::{MessageLimits, Messages};
use crate::session::{Identity, Names, Pools, Settings, WritePlan};
use crate::time::{Deadline, Now};

use super::admin_socket::AdminSocket;
use super::bridges::{self, Bridges};
use super::deadlines::Deadlines;
use super::doors::{Doors, Listeners};
use super::peer_id::PeerId;
use super::peers::Peers;
use super::platform::Platform;
use super::room_awaited::RoomAwaited;
use super::store_driver::StoreDriver;
use super::stream::Buffers;
use super::supplies::Supplies;
use super::wait_list::WaitList;
use super::worker_job::{CertificateState, WorkerQueue};

/// How long memory lies idle before it is given back: the next burst may be near.
pub(super) const TRIM_AFTER_MS: u64 = 1_000;

/// What an engine is made from.
#[derive(Clone, Debug)]
pub struct Setup {
    /// How much there may be of everything; all of it is reserved.
    pub limits: Limits,
    /// What peers are told of the broker.
    pub identity: Identity,
    /// Connections that may wait for a handshake place.
    pub queue_places: usize,
    /// Listeners for AMQP, by their places: whether whoever comes in there speaks TLS.
    pub listeners: Vec<bool>,
    /// Listeners of the management API and behind them those for metrics, by their places: whether whoever comes in
    /// there speaks TLS.
    pub management_listeners: Vec<bool>,
    /// How many of them are for metrics without a login.
    pub metrics_listeners: usize,
    /// What our certificates are good for as things stand.
    pub certificates: CertificateState,
    /// Links of bridges that may speak TLS at once.
    pub tls_links: usize,
    /// All memory is locked: nothing is given back.
    pub is_memory_locked: bool,
    /// What an operator is told of the process.
    pub process: Process,
    /// The user that the process runs as; besides root, the only one who gets at the operator's socket.
    pub own_uid: u32,
}

/// Everything that runs but for the system: peers, sessions' pools, messages, broker, store.
pub struct Engine<P: Platform> {
    pub(super) limits: Limits,
    pub(super) now: Now,
    /// The world outside.
    pub platform: P,
    pub(super) doors: Doors<P::Socket>,
    /// Whoever is connected, of whatever kind.
    pub(super) peers: Peers<P::Socket>,
    /// Those of them that are connections of the broker.
    pub(super) connections_count: u32,
    /// Connections of the broker that ever came in.
    pub(super) connections_made: u64,
    pub(super) deadlines: Deadlines,
    pub(super) supplies: Supplies,
    pub(super) broker: Broker,
    /// What the broker has said that is to be written.
    pub(super) journal: Journal,
    /// What the broker's last calls cost.
    pub(super) work: broker::Work,
    /// The store, unless it cannot be used at all.
    pub(super) store: Option<StoreDriver>,
    pub(super) worker: WorkerQueue,
    /// Messages may leave memory in the next turn.
    pub(super) spills: bool,
    /// Peers with confirms or answers that wait for the disk.
    pub(super) for_disk: WaitList,
    /// What they have been told of.
    pub(super) durable_seen: Batch,
    pub(super) buffers: Buffers,
    pub(super) input: Box<[u8]>,
    pub(super) output: Box<[u8]>,
    pub(super) write_plan: WritePlan,
    pub(super) names: Names,
    pub(super) to_read: WaitList,
    pub(super) to_write: WaitList,
    pub(super) to_close: Vec<PeerId>,
    /// Publishers that wait for room, first come first served.
    pub(super) for_room: WaitList,
    /// Since when some of them have been waiting, and whether that is in the log.
    pub(super) room_awaited: RoomAwaited,
    /// When it was told last that some of them wait for room on the disk.
    pub(super) disk_told: Option<Now>,
    /// Those whose input needs more of the stashes than is free.
    pub(super) for_stash: WaitList,
    /// What [`Self::room_made`] said when they last tried.
    pub(super) room_seen: u64,
    /// So many of them have not tried since then.
    pub(super) retries_left: usize,
    /// The claim of a content that waits for others to be complete, and when they have had their time.
    pub(super) crowded: Option<(u64, Deadline)>,
    pub(super) for_jobs: WaitList,
    /// Bytes read from all peers in this turn.
    pub(super) bytes_read: usize,
    /// The broker's steps for them.
    pub(super) work_units: u32,
    /// Nothing is read in this turn, because the last one left something to write.
    pub(super) holds_back: bool,
    /// All memory is locked: nothing is given back.
    pub(super) is_locked: bool,
    /// When to give back what a burst left idle, or the start.
    pub(super) trim_due: Deadline,
    /// The start's code is still mapped.
    pub(super) is_fresh: bool,
    /// Idle bytes that were left when that was done last.
    pub(super) idle_left: usize,
    pub(super) stopping: Option<Deadline>,
    pub(super) admin: AdminSocket,
    pub(super) bridges: Bridges,
}

impl<P: Platform> core::fmt::Debug for Engine<P> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let waiting: Vec<_> = self.peers.iter().map(|peer| (peer.waiting, peer.ending)).collect();
        f.debug_struct("Engine")
            .field("now", &self.now)
            .field("peers", &waiting)
            .field("to_read", &self.to_read)
            .field("to_write", &self.to_write)
            .field("for_room", &self.for_room)
            .field("for_stash", &self.for_stash)
            .field("for_jobs", &self.for_jobs)
            .field("for_disk", &self.for_disk)
            .field("broker_has_work", &self.broker.has_work(&self.journal))
            .field("has_room_to_offer", &self.has_room_to_offer())
            .field("has_job", &self.has_job())
            .field("next_deadline", &self.next_deadline())
            .finish_non_exhaustive()
    }
}

impl<P: Platform> Engine<P> {
    /// Reserves everything. Nobody can come in before the first turn; a store comes by [`Self::set_store`].
    pub fn new(setup: Setup, broker: Broker, platform: P) -> Self {
        let limits = setup.limits;
        let connections = limits.connection_records();
        let (bridges_max, frame_max) = (limits.bridges_max as usize, limits.frame_max as usize);
        let mut broker = broker;
        // Those of the file take theirs when they are known, see `set_bridges`.
        broker.set_shovel_places(bridges_max);
        broker.set_parameter_check(bridges::check);
        let has_tls_room = setup.tls_links > 0;
        let version = &setup.identity.version;
        let bridges = Bridges::new(bridges_max, frame_max, version, broker.chance(), has_tls_room);
        let peers = Peers::<P::Socket>::places_max(connections);
        let listeners = Listeners {
            amqp: setup.listeners,
            management: setup.management_listeners,
            metrics: setup.metrics_listeners,
        };
        let with_tls = listeners.amqp.contains(&true);
        let manages_tls = listeners.management.contains(&true);
        let tls_others =
            setup.tls_links + if manages_tls { limits.management_clients_max as usize } else { 0 };
        let has_api = listeners.management.len() > listeners.metrics;
        let samples = if has_api { Samples::new(limits.queues_max as usize) } else { Samples::default() };
        // Of locked memory nothing is given back, so nothing is due for it.
        let trim_due = match setup.is_memory_locked {
            true => Deadline::NEVER,
            false => Now::from_ms(0).after_ms(TRIM_AFTER_MS),
        };
        Self {
            now: Now::from_ms(0),
            platform,
            doors: Doors::new(&listeners, &limits, setup.queue_places),
            peers: Peers::with_capacity(connections),
            connections_count: 0,
            connections_made: 0,
            deadlines: Deadlines::with_capacity(peers),
            supplies: Supplies {
                settings: Settings::new(&limits, &setup.identity),
                pools: Pools::new(&limits),
                messages: Messages::new(message_limits(&limits)),
                log: LogLimiter::default(),
            },
            broker,
            journal: Journal::new(limits.messages_max as usize),
            work: broker::Work::default(),
            store: None,
            worker: WorkerQueue::new(&limits, with_tls, (setup.certificates, tls_others)),
            spills: false,
            for_disk: WaitList::with_capacity(peers),
            durable_seen: Batch::NONE,
            buffers: Buffers::new(&limits, with_tls, tls_others),
            input: vec![0; limits.input_buffer_bytes as usize].into_boxed_slice(),
            output: vec![0; limits.output_buffer_bytes as usize].into_boxed_slice(),
            write_plan: WritePlan::for_output_bytes(limits.output_buffer_bytes as usize),
            names: Names::default(),
            to_read: WaitList::with_capacity(peers),
            to_write: WaitList::with_capacity(peers),
            to_close: Vec::with_capacity(peers),
            for_room: WaitList::with_capacity(peers),
            room_awaited: RoomAwaited::No,
            disk_told: None,
            for_stash: WaitList::with_capacity(peers),
            room_seen: 0,
            retries_left: 0,
            crowded: None,
            for_jobs: WaitList::with_capacity(peers),
            bytes_read: 0,
            work_units: 0,
            holds_back: false,
            is_locked: setup.is_memory_locked,
            trim_due,
            is_fresh: true,
            idle_left: 0,
            stopping: None,
            admin: AdminSocket::closed(setup.process, setup.own_uid, samples),
            bridges,
            limits,
        }
    }

    /// What is durable goes there from now on; the broker knows already what it holds.
    pub fn set_store(&mut self, mut store: StoreDriver) {
        let disk_limit = &mut self.admin.process.disk_limit_bytes;
        if *disk_limit == 0 {
            *disk_limit = store.log_mut().limit_bytes();
        }
        self.store = Some(store);
    }

    /// What is durable is there, if there is a disk.
    pub const fn store(&self) -> Option<&StoreDriver> {
        self.store.as_ref()
    }

    /// The broker and what it works with, for a start that declares what there is to be, and for whoever
    /// looks.
    pub const fn broker_mut(&mut self) -> (&mut Broker, broker::Context<'_>) {
        let context = broker::Context::new(&mut self.journal, &mut self.supplies.messages, &mut self.work);
        (&mut self.broker, context)
    }

    /// The broker.
    pub const fn broker(&self) -> &Broker {
        &self.broker
    }

    /// What the broker has said that is to be written.
    pub const fn journal(&self) -> &Journal {
        &self.journal
    }

    /// All messages in memory.
    pub const fn messages(&self) -> &Messages {
        &self.supplies.messages
    }

    /// What the sessions share.
    pub const fn pools(&self) -> &Pools {
        &self.supplies.pools
    }

    /// Bytes of input that wait, of all peers.
    pub const fn input_bytes_waiting(&self) -> usize {
        self.buffers.bytes_used()
    }

    /// What was last set by `set_now`.
    pub const fn now(&self) -> Now {
        self.now
    }
}

const fn message_limits(limits: &Limits) -> MessageLimits {
    MessageLimits {
        messages_max: limits.messages_max as usize,
        body_bytes_max: limits.body_bytes_max as usize,
        assembly_bytes_max: limits.assembly_bytes_max as usize,
        vhosts_max: limits.vhosts_max as usize,
        users_max: limits.users_max as usize,
    }
}
