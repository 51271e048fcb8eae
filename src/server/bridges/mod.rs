//! BRIDGES: what moves messages between this broker and others, as a part of its own.
//!
//! ```text
//! engine ── Bridges::handle: something happened to a link ─────────┐
//!        ── Bridges::poll: once in every turn ─────────────────────┤→ all is done with what is shared
//!        ── Bridges::deadline, is_ready: when to poll again        ┘
//! ```
//!
//! | file | what it holds |
//! |------|---------------|
//! | `own_connections` | what is done at the broker here, by connections of their own |
//! | `state` | what is known of bridges and of their links |
//! | `course` | how a rule goes on: waiting, or trying with one message |
//! | `links` | when links are tried, and what becomes of those that end |
//! | `registry` | all of them: what the engine asks |
//! | `contact` | a link while it has a socket, and what each rule holds over it |
//! | `task`, `traffic` | what is done with a contact: time, lanes; reading and writing |
//! | `forward`, `fetch` | messages there, and from there |
//! | `message` | what is shared: room for one message |
//! | `queues` | the queues here, made before the first link is up |
//! | `demand` | the bytes of a day; links that are there only on demand |
//! | `retry` | what was set aside goes back to where it was on its way to |
//! | `notes` | what outlives a restart |
//! | `views` | what an operator is told, and does |
//! | `shovels` | bridges that runtime parameters define, and their end |
//!
//! A bridge has a link for each direction, for what is fetched may have to wait for room here and what is
//! forwarded must not; over a link each rule has a channel there and a window of its own.
//!
//! Always true: what a bridge does it does as a client, of the broker here and of the one there; one bridge's
//! trouble is no other's, and one rule's no other rule's; nothing of it stands in the engine's other files but
//! the calls of what is public here, and [`Needs`](super::peer::Needs), by which a link says what it waits for.

mod demand;
mod fetch;
mod forward;
mod links;
mod own_connections;
mod shovels;
mod state;
mod traffic;
mod views;

use fetch::{Common, Scratch};
use leveret_bridge::Origin;
use leveret_broker::Broker;
use leveret_config::bridge::{Bridge as Config, RULES_MAX};
use leveret_core::command::ConnectionId;
use leveret_core::time::{Deadline, Now};
use state::Course;
use state::{Bridge, Head, Link, LinkId, Phase};
use traffic::Task;
use traffic::{Contact, Lane};

use crate::lists::peer_bytes;
use crate::platform::Platform;
use crate::state::Shared;

pub(super) use shovels::check;
pub(super) use traffic::Call;
pub(super) use views::ShownBridges;

// All bridges, and what the engine asks of them.
//
// Always true: a link is found by its number and direction, and is worked with only through a [`Task`], which
// settles what follows.

/// How often what was counted is written down, in milliseconds.
const NOTED_EVERY_MS: u64 = 3_600_000;
/// What a client says besides messages, and the names that it knows, in bytes.
const CLIENT_BYTES: usize = 8 << 10;

/// Bytes that a bridge takes here beside its connections, with sockets of this kind and frames of so many
/// bytes.
pub const fn bridge_bytes<S>(frame_max: usize, window: usize) -> usize {
    let rules = 2 * RULES_MAX * (size_of::<Lane>() + size_of::<Course>());
    let links = 2 * (size_of::<Contact>() + CLIENT_BYTES) + (3 + RULES_MAX) * peer_bytes::<S>();
    let windows = RULES_MAX * leveret_bridge::window_bytes(window);
    links + rules + windows + size_of::<Bridge>() + Scratch::bytes(frame_max)
}

/// All bridges.
pub(crate) struct Bridges {
    places: Vec<Bridge>,
    /// The bridges that the configuration says; parameters say others.
    said: Vec<Config>,
    /// The version of the parameters that were looked at.
    parameters_seen: u64,
    max: usize,
    /// Links may speak TLS: there is memory for it.
    has_tls_room: bool,
    serials: u64,
    /// What was counted is written down again so long after the last time, in milliseconds.
    note_pause_ms: u64,
    /// What was written last.
    noted: Option<String>,
    common: Common,
}

impl Bridges {
    /// There may be so many, with frames of so many bytes; `seed` is any number.
    pub(crate) fn new(
        max: usize,
        frame_max: usize,
        (node, version): (&str, &str),
        seed: u64,
        has_tls_room: bool,
    ) -> Self {
        Self {
            places: Vec::with_capacity(max),
            said: Vec::new(),
            parameters_seen: 0,
            max,
            has_tls_room,
            serials: 0,
            note_pause_ms: NOTED_EVERY_MS,
            noted: None,
            common: Common::new(max, frame_max, (node, version), seed),
        }
    }

    /// Whether there is one.
    pub(crate) const fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Whether a link has a socket.
    pub(crate) fn is_connected(&self) -> bool {
        self.places.iter().any(Bridge::is_connected)
    }

    /// Sets whose messages leave this broker: those of a store, in one of its lives.
    pub(crate) const fn set_origin(&mut self, origin: Origin) {
        self.common.origin = origin;
    }

    /// The peer of the link whose rule consumes here by this connection of our own.
    pub(crate) fn peer_of(&self, own: ConnectionId) -> Option<ConnectionId> {
        self.links().find(|(_, link)| link.has_own(own)).and_then(|(_, link)| link.peer())
    }

    /// Something has happened to a link; says how many octets were written.
    pub(crate) fn handle<P: Platform>(
        &mut self,
        shared: &mut Shared<P>,
        connection: ConnectionId,
        call: Call<'_>,
    ) -> usize {
        let is_it = |link: &Link| link.peer() == Some(connection) || link.has_own(connection);
        let Some(id) = self.find(is_it) else {
            if let Call::PutOut(why) = call {
                self.put_retry_out(shared, connection, why);
            }
            return 0;
        };
        self.with(id, shared, |task| task.handle(call)).unwrap_or(0)
    }

    /// The socket of a link is about to be closed.
    #[cold]
    pub(crate) fn note_closed<P: Platform>(&mut self, shared: &mut Shared<P>, connection: ConnectionId) {
        if let Some(id) = self.find(|link| link.peer() == Some(connection)) {
            self.end_link(shared, id);
        }
    }

    /// Does what is due, and begins what can be begun.
    pub(crate) fn poll<P: Platform>(&mut self, shared: &mut Shared<P>) {
        if self.has_parameter_news(&shared.broker) {
            self.take_parameters(shared);
        }
        if self.places.is_empty() {
            return;
        }
        self.take_lookups(shared);
        self.write_notes(shared);
        self.retry_parked(shared);
        self.tell_parked(shared);
        self.keep_days(shared);
        self.keep_courses(shared);
        self.keep_demands(shared);
        self.drop_left(shared);
        if !shared.is_stopping() {
            self.keep_queues(shared);
            self.try_links(shared);
        }
    }

    /// Whether [`Self::poll`] would get on now, with nothing reported and no time passing; `has_room`: no
    /// publisher here waits for room.
    pub(crate) fn is_ready(&self, broker: &Broker, now: Now, (has_room, is_stopping): (bool, bool)) -> bool {
        let is_ready =
            |bridge: &Bridge| bridge.head.is_to_turn() || bridge.has_demand_news(broker, has_room, now);
        self.has_parameter_news(broker)
            || self.has_retry_work(broker)
            || !is_stopping && self.places.iter().any(is_ready)
    }

    /// When to poll if nothing else happens.
    pub(crate) fn deadline(&self) -> Deadline {
        let notes = if self.places.is_empty() { Deadline::NEVER } else { self.common.note_due };
        self.places.iter().map(Bridge::deadline).fold(notes, Deadline::earlier)
    }

    // ---- inside

    fn links(&self) -> impl Iterator<Item = (LinkId, &Link)> {
        self.places.iter().enumerate().flat_map(|(place, bridge)| {
            bridge.links.iter().enumerate().map(move |(link, it)| (LinkId { place, link }, it))
        })
    }

    /// The first link of which this holds.
    fn find(&self, is_it: impl Fn(&Link) -> bool) -> Option<LinkId> {
        self.links().find(|(_, link)| is_it(link)).map(|(id, _)| id)
    }

    fn get_mut(&mut self, id: LinkId) -> (&mut Head, &mut Link) {
        let bridge = &mut self.places[id.place];
        (&mut bridge.head, &mut bridge.links[id.link])
    }

    /// Does something with a link that has a socket; `None`: it has none.
    fn with<P: Platform, T>(
        &mut self,
        id: LinkId,
        shared: &mut Shared<P>,
        work: impl FnOnce(&mut Task<'_, P>) -> T,
    ) -> Option<T> {
        let Bridge { head, links } = &mut self.places[id.place];
        let Link { direction, phase: Phase::Connected(contact), state } = &mut links[id.link] else {
            return None;
        };
        let (direction, common) = (*direction, &mut self.common);
        let mut task = Task { direction, head, state, contact, common, shared };
        let done = work(&mut task);
        task.settle();
        if task.is_over() {
            shared.end_shovel(head);
        }
        Some(done)
    }

    /// What has changed of a bridge is taken up by its links.
    fn settle<P: Platform>(&mut self, shared: &mut Shared<P>, place: usize) {
        for link in 0..self.places[place].links.len() {
            self.with(LinkId { place, link }, shared, |_| ());
        }
    }

    /// Lets rules try that have waited long enough.
    fn keep_courses<P: Platform>(&mut self, shared: &mut Shared<P>) {
        for place in 0..self.places.len() {
            if self.places[place].links.iter().any(|link| link.course_deadline().is_due(shared.now)) {
                self.settle(shared, place);
            }
        }
    }

    /// Makes the queues of bridges that could not be made before.
    fn keep_queues<P: Platform>(&mut self, shared: &mut Shared<P>) {
        for bridge in &mut self.places {
            if !bridge.head.is_leaving && bridge.head.queues_due.is_due(shared.now) {
                shared.make_queues(&mut bridge.head);
            }
        }
    }
}

impl Link {
    /// Whether a rule of it consumes here by this connection of our own.
    fn has_own(&self, own: ConnectionId) -> bool {
        self.contact().is_some_and(|contact| contact.forwards().any(|lane| lane.own.connection == own))
    }
}
