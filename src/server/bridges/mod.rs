//! Bridges: federation and shovels, which move messages between this broker and others.
//!
//! ```text
//!   event loop ── Bridges::handle: an event of a link ─────────────┐
//!              ── Bridges::poll: once per turn ────────────────────┤→ both work on `Shared`
//!              ── Bridges::deadline, is_ready: when to poll again  ┘
//! ```
//!
//! | file | contents |
//! |------|----------|
//! | `own_connections` | the connections of bridges in this broker, their commands and queues, their log lines |
//! | `state` | the state of bridges, links and rules, and the part that outlives a restart |
//! | `links` | when links are connected, how they end, and how parked messages are retried |
//! | `traffic` | a link with a socket: reading, writing, timers, and what each rule does over it |
//! | `forward`, `fetch` | messages to and from the upstream |
//! | `demand` | the daily byte budget, and links that connect only on demand |
//! | `views` | what operators see of bridges, and their orders |
//! | `shovels` | bridges that runtime parameters define |
//!
//! A bridge has one link per direction: messages that are fetched may have to wait for memory here, and forwarded
//! messages must not wait with them. Over a link, each rule has a channel at the upstream and a window of its own. A
//! *flow* is what one rule has on an open link (`Flow`): the channel there and the messages under way. A link that
//! connects only on demand *rests* while it is disconnected because it had nothing to do.
//!
//! # Invariants
//! - A bridge consumes and publishes as a client, both of this broker and of the upstream. Only its queues and bindings
//!   here are declared as by an operator.
//! - A failure of one bridge does not affect other bridges, and a failure of one rule does not affect other rules.
//! - A link is identified by its [`LinkId`]. [`LinkTask::update_link`] runs after each change that can affect a
//!   connected link: it updates the link's flows, deadlines and status.
//! - The other files of this package know only the public items of this module and
//!   [`LinkStatus`](super::peer::LinkStatus). By that a link states what it waits for.

mod demand;
mod fetch;
mod forward;
mod links;
mod own_connections;
mod shovels;
mod state;
mod traffic;
mod views;

use leveret_amqp::{Full, Properties, Writer};
use leveret_bridge::{BridgeHeaders, Origin, Transfer, marked, shovelled};
use leveret_config::bridge::{Bridge as Config, RULES_MAX};
use leveret_core::command::ConnectionId;
use leveret_core::limits::Limits;
use leveret_core::time::Deadline;
use state::RuleState;
use state::{Bridge, BridgeState, Link, LinkId, Phase};
use traffic::LinkTask;
use traffic::{Flow, OpenLink};

use crate::lists::peer_bytes;
use crate::platform::Platform;
use crate::state::Shared;

pub(super) use traffic::LinkEvent;
pub(super) use views::ShownBridges;

/// Maximum interval at which counters are written, in milliseconds.
const STORE_INTERVAL_MAX_MS: u64 = 3_600_000;
/// Memory of a link's client for commands and names, in bytes.
const CLIENT_BYTES: usize = 8 << 10;

/// Sizes of what a bridge uses of other packages, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct BridgeSizes {
    /// A thread that looks up the address of an upstream.
    pub lookup_bytes: usize,
    /// A link that uses TLS.
    pub tls_link_bytes: usize,
}

/// Returns the memory of a bridge in bytes, for sockets of type `S` and frames of `frame_max` bytes. Includes the peer
/// records of its connections, but not their records in the broker.
const fn bridge_bytes<S>(frame_max: usize, window: usize) -> usize {
    let rules = 2 * RULES_MAX * (size_of::<Flow>() + size_of::<RuleState>());
    let links = 2 * (size_of::<OpenLink>() + CLIENT_BYTES) + (3 + RULES_MAX) * peer_bytes::<S>();
    let windows = RULES_MAX * leveret_bridge::window_bytes(window);
    links + rules + windows + size_of::<Bridge>() + Scratch::bytes(frame_max)
}

/// All bridges.
pub(crate) struct Bridges {
    places: Vec<Bridge>,
    /// The bridges of the configuration file. Parameters define others.
    file_bridges: Vec<Config>,
    /// The version of the parameters that was last examined.
    parameters_seen: u64,
    max: usize,
    frame_max: usize,
    sizes: BridgeSizes,
    has_shovels: bool,
    /// Bytes of the smallest bridge that was not started for lack of memory; 0 if all were started.
    refused_bytes: usize,
    last_serial: u64,
    /// Interval until counters are written again, in milliseconds.
    store_interval_ms: u64,
    /// The text that was last written.
    stored_text: Option<String>,
    common: Common,
}

impl Bridges {
    /// Creates the list without bridges. Each takes its memory when it is added. `seed` may be any number.
    pub(crate) fn new(limits: &Limits, common: Common, sizes: BridgeSizes, has_shovels: bool) -> Self {
        Self {
            places: Vec::new(),
            file_bridges: Vec::new(),
            parameters_seen: 0,
            max: limits.bridges_max as usize,
            frame_max: limits.frame_max as usize,
            sizes,
            has_shovels,
            refused_bytes: 0,
            last_serial: 0,
            store_interval_ms: STORE_INTERVAL_MAX_MS,
            stored_text: None,
            common,
        }
    }

    /// Returns the maximum number of shovels beside the bridges of the configuration file.
    pub(crate) const fn shovels_max(&self) -> usize {
        if self.has_shovels { self.max.saturating_sub(self.file_bridges.len()) } else { 0 }
    }

    /// Returns the memory of the smallest bridge in bytes.
    pub(crate) const fn least_bytes<S>(&self) -> usize {
        bridge_bytes::<S>(self.frame_max, 1) + self.sizes.lookup_bytes
    }

    /// Returns the memory of a bridge in bytes.
    fn bytes_of<S>(&self, config: &Config) -> usize {
        let tls =
            if config.has_tls() { 2 * (self.sizes.tls_link_bytes + crate::tls_reserved_bytes(1)) } else { 0 };
        bridge_bytes::<S>(self.frame_max, config.window.into()) + self.sizes.lookup_bytes + tls
    }

    /// Returns whether there is no bridge.
    pub(crate) const fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Returns whether a link has a socket.
    pub(crate) fn is_connected(&self) -> bool {
        self.places.iter().any(Bridge::is_connected)
    }

    /// Sets the origin that outgoing messages carry: the id of the store and its epoch.
    pub(crate) const fn set_origin(&mut self, origin: Origin) {
        self.common.origin = origin;
    }

    /// Returns the peer of the link whose rule consumes over `own`, one of our own connections.
    pub(crate) fn peer_of(&self, own: ConnectionId) -> Option<ConnectionId> {
        self.links().find(|(_, link)| link.has_own(own)).and_then(|(_, link)| link.peer())
    }

    /// Handles an event of a link. Returns the number of octets written.
    pub(crate) fn handle<P: Platform>(
        &mut self,
        shared: &mut Shared<P>,
        connection: ConnectionId,
        event: LinkEvent<'_>,
    ) -> usize {
        let is_linked = |link: &Link| link.peer() == Some(connection) || link.has_own(connection);
        let Some(id) = self.find(is_linked) else {
            if let LinkEvent::Close(why) = event {
                self.end_closed_retry(shared, connection, why);
            }
            return 0;
        };
        self.with_link(id, shared, |task| task.handle(event)).unwrap_or(0)
    }

    /// Handles that the socket of a link is about to be closed.
    #[cold]
    pub(crate) fn note_closed<P: Platform>(&mut self, shared: &mut Shared<P>, connection: ConnectionId) {
        if let Some(id) = self.find(|link| link.peer() == Some(connection)) {
            self.end_link(shared, id);
        }
    }

    /// Does the due work of all bridges, and opens links that can be opened.
    pub(crate) fn poll<P: Platform>(&mut self, shared: &mut Shared<P>) {
        if self.has_parameter_change(&shared.broker) {
            self.take_parameters(shared);
        }
        if self.places.is_empty() {
            return;
        }
        self.take_lookups(shared);
        self.store_state(shared);
        self.retry_parked(shared);
        self.log_parked(shared);
        self.end_days(shared);
        self.retry_rules(shared);
        self.evaluate_demands(shared);
        self.drop_ended(shared);
        if !shared.is_stopping() {
            self.retry_queues(shared);
            self.try_links(shared);
        }
    }

    /// Returns whether [`Self::poll`] would make progress now, without an event and without time passing.
    pub(crate) fn is_ready<P: Platform>(&self, shared: &Shared<P>) -> bool {
        let is_ready =
            |bridge: &Bridge| bridge.state.has_budget_change() || bridge.must_evaluate_demand(shared);
        self.has_parameter_change(&shared.broker)
            || self.has_retry_work(&shared.broker)
            || !shared.is_stopping() && self.places.iter().any(is_ready)
    }

    /// Returns when to poll if no event happens.
    pub(crate) fn deadline(&self) -> Deadline {
        let store = if self.places.is_empty() { Deadline::NEVER } else { self.common.store_due };
        self.places.iter().map(Bridge::deadline).fold(store, Deadline::earlier)
    }

    // ---- inside

    fn links(&self) -> impl Iterator<Item = (LinkId, &Link)> {
        self.places.iter().enumerate().flat_map(|(place, bridge)| {
            bridge.links.iter().enumerate().map(move |(link, it)| (LinkId { place, link }, it))
        })
    }

    /// Returns the first link for which `is_linked` is true.
    fn find(&self, is_linked: impl Fn(&Link) -> bool) -> Option<LinkId> {
        self.links().find(|(_, link)| is_linked(link)).map(|(id, _)| id)
    }

    fn get_mut(&mut self, id: LinkId) -> (&mut BridgeState, &mut Link) {
        let bridge = &mut self.places[id.place];
        (&mut bridge.state, &mut bridge.links[id.link])
    }

    /// Calls a function with a link. Returns `None` if the link has no socket.
    fn with_link<P: Platform, T>(
        &mut self,
        id: LinkId,
        shared: &mut Shared<P>,
        work: impl FnOnce(&mut LinkTask<'_, P>) -> T,
    ) -> Option<T> {
        let Bridge { state: bridge, links } = &mut self.places[id.place];
        let Link { direction, phase: Phase::Connected(open_link), state } = &mut links[id.link] else {
            return None;
        };
        let (direction, common) = (*direction, &mut self.common);
        let mut task = LinkTask { direction, bridge, state, open_link, common, shared };
        let done = work(&mut task);
        task.update_link();
        if task.has_moved_last_message() {
            shared.end_shovel(bridge);
        }
        Some(done)
    }

    /// Lets the links of a bridge take over its changed state.
    fn update_links<P: Platform>(&mut self, shared: &mut Shared<P>, place: usize) {
        for link in 0..self.places[place].links.len() {
            self.with_link(LinkId { place, link }, shared, |_| ());
        }
    }

    /// Lets rules retry that have waited long enough.
    fn retry_rules<P: Platform>(&mut self, shared: &mut Shared<P>) {
        for place in 0..self.places.len() {
            if self.places[place].links.iter().any(|link| link.rule_deadline().is_due(shared.now)) {
                self.update_links(shared, place);
            }
        }
    }

    /// Declares queues of bridges that could not be declared before.
    fn retry_queues<P: Platform>(&mut self, shared: &mut Shared<P>) {
        for bridge in &mut self.places {
            if !bridge.state.is_leaving && bridge.state.queues_due.is_due(shared.now) {
                shared.declare_queues(&mut bridge.state);
            }
        }
    }
}

impl Link {
    /// Returns whether a rule of the link consumes over `own`, one of our own connections.
    fn has_own(&self, own: ConnectionId) -> bool {
        self.open_link().is_some_and(|open_link| open_link.forwards().any(|flow| flow.own.connection == own))
    }
}

/// Upper bound of the headers that a bridge adds and of the names in a publish, in bytes.
const ADDED_BYTES_MAX: usize = 2048;

/// The state that all bridges share.
pub(crate) struct Common {
    origin: Origin,
    version: String,
    /// Name of this broker's node.
    node: String,
    /// Buffers for the head and the headers of a message. Allocated with the first bridge, and used only within one call.
    scratch: Scratch,
    /// When the state of the bridges is written.
    store_due: Deadline,
    random: u64,
}

impl Common {
    pub(crate) fn new(node: &str, version: &str, seed: u64) -> Self {
        let mut common = Self {
            origin: Origin::default(),
            version: version.to_string(),
            node: node.to_string(),
            scratch: Scratch::default(),
            store_due: Deadline::NEVER,
            random: seed | 1,
        };
        // Without a store, a random number stands for this process.
        let numbers = [common.random(), common.random()].map(u64::to_be_bytes);
        common.origin.store = core::array::from_fn(|at| numbers[at / 8][at % 8]);
        common
    }

    /// Returns a random number.
    const fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
}

/// Buffers for the head and the headers of one message.
#[derive(Default)]
struct Scratch {
    headers: Box<[u8]>,
    properties: Box<[u8]>,
    edited: Box<[u8]>,
    head: Box<[u8]>,
}

impl Scratch {
    /// Allocates the buffers, if they are not there yet.
    fn grow(&mut self, frame_max: usize) {
        if !self.head.is_empty() {
            return;
        }
        let room = |bytes: usize| vec![0; bytes].into_boxed_slice();
        *self = Self {
            headers: room(frame_max + ADDED_BYTES_MAX),
            properties: room(frame_max),
            edited: room(frame_max + ADDED_BYTES_MAX),
            head: room(frame_max + ADDED_BYTES_MAX),
        };
    }

    /// Returns the size of all buffers in bytes.
    const fn bytes(frame_max: usize) -> usize {
        4 * frame_max + 3 * ADDED_BYTES_MAX
    }
}

/// Buffers for the properties that a bridge sends.
struct PropertyBuffers<'r, 'h> {
    headers: &'h mut [u8],
    edited: &'r mut [u8],
    again: &'r mut [u8],
}

/// Returns the properties of a message that crosses a bridge, with the bridge's headers, and with those of its shovel if
/// it is one.
///
/// The three buffers are for the headers of a shovel, for the properties with the headers of the bridge, and for those
/// that the shovel changes.
///
/// # Errors
/// The properties do not fit into a buffer.
fn bridged_properties<'r>(
    own: Properties<'_>,
    added: BridgeHeaders,
    transfer: Option<Transfer<'_>>,
    buffers: PropertyBuffers<'r, '_>,
) -> Result<Properties<'r>, Full> {
    let PropertyBuffers { headers, edited, again } = buffers;
    let mut writer = Writer::new(edited);
    marked(own, added, &mut writer)?;
    let len = writer.at();
    let marked = Properties::trusted(&edited[..len]);
    let Some(transfer) = transfer else { return Ok(marked) };
    let mut writer = Writer::new(again);
    shovelled(marked, transfer, headers, &mut writer)?;
    let len = writer.at();
    Ok(Properties::trusted(&again[..len]))
}
