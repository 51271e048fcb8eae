//! Everything that runs, reserved at once; what is done with it stands in `turn`, `receive` and `send`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use mio::net::UnixStream;
use mio::{Events, Poll, Token, Waker};
use rustix::mm::{MlockAllFlags, mlockall};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::admin::systemd;
use crate::broker::Broker;
use crate::command::ConnectionId;
use crate::config::Config;
use crate::journal::Batch;
use crate::limits::{Limits, Megabytes, MemoryTable};
use crate::log_limiter::LogLimiter;
use crate::mem::{MessageLimits, Messages};
use crate::session::{Context, Identity, Marks, Names, Pools, Settings};
use crate::time::{Deadline, Now};
use crate::tool::check::show_table;

use super::StartError;
use super::accept_queue::AcceptQueue;
use super::buffers::LocalBuffers;
use super::control::Control;
use super::deadlines::Deadlines;
use super::defined;
use super::descriptors;
use super::disk::Disk;
use super::errands::Errands;
use super::listen::{self, Door, SpareDescriptor};
use super::peer::Peer;
use super::signals;
use super::stream::Buffers;
use super::turn::TRIM_AFTER_MS;
use crate::tls::CertificateStore;

const EVENTS_PER_POLL: usize = 256;
/// The token of the signals' pipe.
pub(super) const SIGNAL: Token = Token(usize::MAX - 1);
/// The token of the helpers.
pub(super) const HELPERS: Token = Token(usize::MAX - 2);
/// The token of the pipe of SIGHUP.
pub(super) const HANGUP: Token = Token(usize::MAX - 3);
/// Tokens below are doors, from here on peers.
pub(super) const FIRST_PEER: usize = 1 << 16;

/// What sessions are lent while they work.
#[derive(Debug)]
pub(super) struct Supplies {
    pub(super) settings: Settings,
    pub(super) pools: Pools,
    pub(super) messages: Messages,
    /// What is logged of peers goes through it.
    pub(super) log: LogLimiter,
}

impl Supplies {
    #[inline]
    pub(super) fn context(&mut self, now: Now, broker: &Broker, id: ConnectionId) -> Context<'_> {
        Context {
            now,
            pools: &mut self.pools,
            messages: &mut self.messages,
            settings: &self.settings,
            share: broker.content_share(id),
            owner: broker.owner(id),
            durable: broker.journal().durable(),
            log: &mut self.log,
        }
    }
}

/// Everything that runs: doors, peers, sessions' pools, messages, broker.
pub struct House {
    pub(super) limits: Limits,
    /// As it was read last.
    pub(super) config: Config,
    pub(super) started: Instant,
    pub(super) now: Now,
    pub(super) poll: Poll,
    pub(super) events: Events,
    pub(super) doors: Vec<Door>,
    pub(super) spare: SpareDescriptor,
    pub(super) signals: UnixStream,
    pub(super) hangups: UnixStream,
    /// By connection id.
    pub(super) peers: Vec<Option<Peer>>,
    pub(super) peers_count: u32,
    /// Connections that ever came in.
    pub(super) connections_made: u64,
    /// Those that have not opened a virtual host yet: each holds a handshake place.
    pub(super) handshaking: Vec<ConnectionId>,
    pub(super) accept_queue: AcceptQueue,
    pub(super) local_buffers: LocalBuffers,
    /// Peers over TLS.
    pub(super) tls_peers: u32,
    /// Those of them whose handshake of TLS is not over.
    pub(super) tls_handshakes: u32,
    pub(super) deadlines: Deadlines,
    pub(super) supplies: Supplies,
    pub(super) broker: Broker,
    /// The store, unless it cannot be used at all.
    pub(super) disk: Option<Disk>,
    pub(super) errands: Errands,
    /// Messages may leave memory in the next turn.
    pub(super) spills: bool,
    /// Connections with confirms or answers that wait for the disk.
    pub(super) for_disk: VecDeque<ConnectionId>,
    /// What they have been told of.
    pub(super) durable_seen: Batch,
    pub(super) buffers: Buffers,
    pub(super) input: Box<[u8]>,
    pub(super) output: Box<[u8]>,
    pub(super) marks: Marks,
    pub(super) names: Names,
    pub(super) to_read: VecDeque<ConnectionId>,
    pub(super) to_write: VecDeque<ConnectionId>,
    pub(super) to_close: Vec<ConnectionId>,
    /// Publishers that wait for room, first come first served.
    pub(super) for_room: VecDeque<ConnectionId>,
    /// Those whose input needs more of the stashes than is free.
    pub(super) for_stash: VecDeque<ConnectionId>,
    /// What [`Self::room_made`] said when they last tried.
    pub(super) room_seen: u64,
    /// So many of them have not tried since then.
    pub(super) retries_left: usize,
    /// The claim of a content that waits for others to be complete, and when they have had their time.
    pub(super) crowded: Option<(u64, Deadline)>,
    pub(super) for_jobs: VecDeque<ConnectionId>,
    /// Bytes read from all peers in this turn.
    pub(super) bytes_read: usize,
    /// The broker's steps for them.
    pub(super) effort: u32,
    /// Nothing is read in this turn, because the last one left something to write.
    pub(super) holds_back: bool,
    pub(super) watchdog: Option<(u64, Deadline)>,
    /// All memory is locked: nothing is given back.
    pub(super) is_locked: bool,
    /// When to give back what a burst left idle, or the start.
    pub(super) trim_due: Deadline,
    /// The start's code is still mapped.
    pub(super) is_fresh: bool,
    /// Idle bytes that were left when that was done last.
    pub(super) idle_left: usize,
    pub(super) stopping: Option<Deadline>,
    pub(super) control: Control,
}

impl core::fmt::Debug for House {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("House").field("peers", &self.peers_count).finish_non_exhaustive()
    }
}

impl House {
    /// Reserves everything, listens, and says so.
    ///
    /// # Errors
    /// What keeps it from starting.
    pub fn open(config: &Config) -> Result<Self, StartError> {
        let mut config = config.clone();
        let table = fit(&mut config)?;
        let config = &config;
        let mut limits = config.limits.clone();
        let queue_places;
        (limits.connections_max, queue_places) = descriptors::connections(config)?;
        let mut poll = Poll::new().map_err(|error| StartError::System("create an epoll instance", error))?;
        let signals = signals::open(&mut poll, SIGNAL, &[SIGTERM, SIGINT])?;
        let hangups = signals::open(&mut poll, HANGUP, &[SIGHUP])?;
        let with_tls = !config.listen_tls.is_empty();
        let certificates = with_tls.then(|| open_certificates(config)).transpose()?;
        let doors = listen::open_doors(&mut poll, config)?;
        tell_limits(config, &table);
        let connections = limits.connections_max as usize;
        let mut broker = Broker::new(&limits, Box::new(entropy)).map_err(StartError::TooSmall)?;
        broker.set_loopback_users(&config.loopback_users);
        let no_thread = |error| StartError::System("start a thread", error);
        let waker = Arc::new(Waker::new(poll.registry(), HELPERS).map_err(no_thread)?);
        let errands = Errands::start(waker.clone(), &limits, certificates).map_err(no_thread)?;
        let mut house = Self {
            started: Instant::now(),
            now: Now::from_ms(0),
            poll,
            events: Events::with_capacity(EVENTS_PER_POLL),
            local_buffers: LocalBuffers::new(&limits, &doors),
            doors,
            spare: SpareDescriptor::new(),
            signals,
            hangups,
            peers: Vec::with_capacity(connections),
            peers_count: 0,
            connections_made: 0,
            handshaking: Vec::with_capacity(limits.handshakes_max as usize),
            accept_queue: AcceptQueue::new(limits.handshakes_max as usize, queue_places),
            tls_peers: 0,
            tls_handshakes: 0,
            deadlines: Deadlines::with_capacity(connections),
            supplies: Supplies {
                settings: Settings::new(&limits, &identity(config)),
                pools: Pools::new(&limits),
                messages: Messages::new(message_limits(&limits)),
                log: LogLimiter::default(),
            },
            broker,
            disk: None,
            errands,
            spills: false,
            for_disk: VecDeque::with_capacity(connections),
            durable_seen: Batch::NONE,
            buffers: Buffers::new(&limits, with_tls),
            input: vec![0; limits.input_buffer_bytes as usize].into_boxed_slice(),
            output: vec![0; limits.output_buffer_bytes as usize].into_boxed_slice(),
            marks: Marks::for_output_bytes(limits.output_buffer_bytes as usize),
            names: Names::default(),
            to_read: VecDeque::with_capacity(connections),
            to_write: VecDeque::with_capacity(connections),
            to_close: Vec::with_capacity(connections),
            for_room: VecDeque::with_capacity(connections),
            for_stash: VecDeque::with_capacity(connections),
            room_seen: 0,
            retries_left: 0,
            crowded: None,
            for_jobs: VecDeque::with_capacity(connections),
            bytes_read: 0,
            effort: 0,
            holds_back: false,
            watchdog: systemd::watchdog_interval_ms().map(|ms| (ms, Now::from_ms(0).after_ms(ms))),
            is_locked: config.memory_lock,
            trim_due: Now::from_ms(0).after_ms(TRIM_AFTER_MS),
            is_fresh: true,
            idle_left: 0,
            stopping: None,
            config: config.clone(),
            control: Control::closed(config),
            limits,
        };
        house.begin(config, waker)?;
        Ok(house)
    }

    fn begin(&mut self, config: &Config, waker: Arc<Waker>) -> Result<(), StartError> {
        // Last: what it needs for a moment is given back, and nothing comes to lie behind it.
        self.disk = Disk::open(config, &mut self.broker, waker)?;
        if let Some(file) = &config.load_definitions {
            defined::load(file, &mut self.broker)?;
        }
        self.broker.warn_of_guest();
        self.control.open(&self.poll, &self.doors);
        if config.memory_lock {
            lock_memory()?;
        }
        // Said no earlier: whoever waits for this line takes it for a start that worked.
        for door in &self.doors {
            log::info!("listening {}on {}", if door.with_tls { "with TLS " } else { "" }, door.address);
        }
        Ok(())
    }
}

/// Makes the limits of it, and says what is to be known of them.
fn fit(config: &mut Config) -> Result<MemoryTable, StartError> {
    let table = super::fit(config).map_err(|error| StartError::Limits(config.blame(&error)))?;
    if let Some(remark) = config.tell_of_machine() {
        log::warn!("{remark}");
    }
    Ok(table)
}

fn open_certificates(config: &Config) -> Result<CertificateStore, StartError> {
    let (certificates, trouble) = read_certificates(config)?;
    trouble.iter().for_each(|trouble| log::error!("{trouble}"));
    Ok(certificates)
}

/// The certificates. Beside them: what is to be told, if they cannot be used and there are other doors.
pub(super) fn read_certificates(config: &Config) -> Result<(CertificateStore, Option<String>), StartError> {
    let has_other_door = !config.listen.is_empty() || config.unix.path.is_some();
    let opened = match has_other_door {
        true => CertificateStore::open_or_wait(&config.tls),
        false => CertificateStore::open(&config.tls).map(|certificates| (certificates, None)),
    };
    opened.map_err(StartError::Tls)
}

const fn message_limits(limits: &Limits) -> MessageLimits {
    MessageLimits {
        messages_max: limits.messages_max as usize,
        body_bytes_max: limits.body_bytes_max as usize,
        assembly_bytes_max: limits.assembly_bytes_max as usize,
        owners_max: limits.vhosts_max as usize,
    }
}

fn tell_limits(config: &Config, table: &MemoryTable) {
    for line in show_table(table, config.memory_limit_bytes).lines() {
        log::debug!("{line}");
    }
    log::info!(
        "the pools add up to {} of memory_limit {}; `leveret check` shows every line",
        Megabytes(table.bytes()),
        Megabytes(config.memory_limit_bytes)
    );
    if let Some(why) = &config.board_why {
        log::info!("board {}: {why}", config.board);
    }
}

/// Touches and locks all that is reserved, and what comes later, so that nothing here ever waits for a page.
fn lock_memory() -> Result<(), StartError> {
    let all = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE;
    mlockall(all).map_err(|error| StartError::MemoryLock(error.into()))?;
    log::info!("all memory is locked");
    Ok(())
}

fn identity(config: &Config) -> Identity {
    Identity {
        product: config.product.name.clone(),
        version: config.product.version.clone(),
        platform: format!("Rust {}", std::env::consts::ARCH),
        copyright: "Copyright the Leveret authors".to_string(),
        information: "Licensed under MIT or Apache-2.0".to_string(),
        cluster_name: "leveret".to_string(),
    }
}

/// Random bytes for names. Without any the process cannot keep its promises, but a board early in its boot
/// may block here for a moment, and then goes on.
pub(super) fn entropy(bytes: &mut [u8]) {
    if let Err(error) = getrandom::fill(bytes) {
        panic!("the system gives no random bytes: {error}");
    }
}
