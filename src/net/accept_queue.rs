//! Connections that are accepted and have no handshake place yet.
//!
//! ```text
//! listen queue ─accept→ queue: until its first words are there, and a place ─→ a connection in its handshake
//!                         │ nothing said in handshake_timeout, or too many of its address
//!                         ▼
//!                       closed
//! ```
//!
//! Why it exists: the kernel's listen queue is first come, first served, so a thousand silent sockets in
//! front would keep an honest client waiting, whatever is done behind it. Here up to [`QUEUE_PLACES`] are
//! accepted, [`ACCEPTS_PER_TURN`] in a turn of each door, and who said nothing yet costs a descriptor and an
//! entry, no place, no record, no buffer of TLS.
//!
//! The next place goes to the address that
//!
//! 1. holds fewest places,
//! 2. had its last wasted turn longest ago: one without a login after it,
//! 3. and of its newcomers mostly to the oldest, every fourth time to the newest.
//!
//! Always true: what was said stays in the socket (it is only looked at) until there is a place; who waits
//! for something that only TLS needs holds up nobody without TLS; nobody waits here for ever; when the queue
//! is full, the address that fills it gives way, and when none does, or all connections are logged in, nobody
//! more is accepted.

use mio::{Interest, Token};

use crate::command::ConnectionId;
use crate::log_limiter::{LogKind, LogLimiter, LogSource};
use crate::session::Stage;
use crate::time::{Deadline, Now};
use crate::wire::{Opening, classify_opening};

use super::admission::{self, EXHAUSTED_PLACES, Place, Request, Resource, Room, Rooms, Standing, Verdict};
use super::house::House;
use super::listen::Visitor;
use super::login_throttle::Turn;
use super::peer::{Ending, Peer, Waiting};
use super::socket::{Socket, Source};

/// So many may wait here, if there are descriptors for them; more wait in the listen queue.
pub(super) const QUEUE_PLACES: usize = 256;
/// An address that has more than this part of the queue gives way when that is full.
const CROWD_PART: usize = 8;
/// Accepted in one turn, so that a crowd at the door does not hold up those inside.
const ACCEPTS_PER_TURN: usize = 64;
/// Addresses that are looked at for a place in one go, of those with TLS and of those without, and how long
/// until the next when none was to be had but may be.
const SOURCES_PER_TURN: usize = 8;
const RETRY_MS: u64 = 20;
/// Who has spoken waits so many times `handshake_timeout` for a place: programs give up sooner.
const SPOKEN_TIMES: u64 = 6;
/// So much of a first record of TLS has to be there: all of it, mostly.
const OPENING_BYTES: usize = 1024;
/// One in so many places goes to the newest of an address, the others to its oldest.
const NEWEST_EACH: u64 = 4;
/// Addresses whose last turn is known.
const TURNS_KEPT: usize = 64;
/// The token of the first; there are as many.
pub(super) const FIRST_QUEUED: usize = 1 << 15;

/// Bytes of the queue.
pub(super) const QUEUE_BYTES: usize = QUEUE_PLACES * (size_of::<Option<Newcomer>>() + size_of::<Claim>())
    + TURNS_KEPT * size_of::<(Source, u64)>();
/// Bytes for each handshake place.
pub(super) const PLACE_BYTES: usize =
    size_of::<Place>() + size_of::<ConnectionId>() + size_of::<admission::AgeKey>();

/// One that waits.
#[derive(Debug)]
struct Newcomer {
    visitor: Visitor,
    source: Source,
    since: Now,
    /// They are numbered in the order of their coming.
    number: u64,
    /// Its first words are there.
    has_spoken: bool,
    is_registered: bool,
}

/// One that wants a place.
#[derive(Clone, Copy, Debug)]
struct Claim {
    slot: usize,
    source: Source,
    with_tls: bool,
    /// Places that its address holds.
    held: u32,
    /// When its address had its last turn.
    turn: u64,
    /// Smaller is earlier.
    order: u64,
}

/// What happened at the doors since the start.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Refusals {
    /// Handshakes ended because others wanted in.
    pub(super) evicted: u64,
    /// Hung up on because their address had filled the queue, or because there was no place for too long.
    pub(super) dropped: u64,
    /// Hung up on because they said nothing.
    pub(super) silent: u64,
}

/// The queue.
#[derive(Debug)]
pub(super) struct AcceptQueue {
    waiting: Vec<Option<Newcomer>>,
    count: usize,
    numbers: u64,
    /// Nobody is to be hung up on before.
    overdue: Deadline,
    /// Somebody may get a place who could not before.
    is_changed: bool,
    retry: Deadline,
    turns: Vec<(Source, u64)>,
    turn: u64,
    claims: Vec<Claim>,
    places: Vec<Place>,
    pub(super) refusals: Refusals,
}

/// Whether who cannot be served now may be served later although nothing happens until then.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct MayRetry(bool);

/// What a look at a newcomer's socket brings.
#[derive(PartialEq, Eq)]
enum Look {
    Silent,
    Spoken,
    Gone,
}

impl AcceptQueue {
    pub(super) fn new(handshakes_max: usize, queue_places: usize) -> Self {
        Self {
            waiting: (0..queue_places).map(|_| None).collect(),
            count: 0,
            numbers: 0,
            overdue: Deadline::NEVER,
            is_changed: false,
            retry: Deadline::NEVER,
            turns: Vec::with_capacity(TURNS_KEPT),
            turn: 0,
            claims: Vec::with_capacity(QUEUE_PLACES),
            places: Vec::with_capacity(handshakes_max),
            refusals: Refusals::default(),
        }
    }

    /// When there is something to do here if nothing else happens.
    pub(super) fn deadline(&self) -> Deadline {
        self.overdue.earlier(self.retry)
    }

    /// A place may have become free.
    pub(super) const fn note_change(&mut self) {
        self.is_changed = true;
    }

    /// Whether another can be taken in, with somebody else hung up on if need be.
    pub(super) fn has_room(&self) -> bool {
        self.count < self.waiting.len() || self.who_gives_way().is_some()
    }

    /// Of the address that has most here, if those are a crowd: the silent one that came first, else the
    /// newcomer that came last.
    fn who_gives_way(&self) -> Option<usize> {
        let source = self.crowd()?;
        let entries = self.waiting.iter().enumerate();
        let own = entries.filter_map(|(slot, entry)| entry.as_ref().map(|entry| (slot, entry)));
        let own = own.filter(|(_, entry)| entry.source == source);
        let first = own.min_by_key(|(_, entry)| {
            (entry.has_spoken, if entry.has_spoken { u64::MAX - entry.number } else { entry.number })
        });
        first.map(|(slot, _)| slot)
    }

    /// The address that has most here, if that is too much. Sorted to be counted, for a crowd makes this be
    /// asked for each of its connections.
    fn crowd(&self) -> Option<Source> {
        let mut sources: heapless::Vec<Source, QUEUE_PLACES> =
            self.waiting.iter().flatten().map(|one| one.source).collect();
        sources.sort_unstable();
        let largest = sources.chunk_by(|one, next| one == next).max_by_key(|all| all.len())?;
        (largest.len() > self.waiting.len() / CROWD_PART).then_some(largest[0])
    }

    /// Takes one in; hands back who had to give way.
    fn push(&mut self, visitor: Visitor, now: Now, patience_ms: u64) -> Option<Newcomer> {
        let gone = if self.count < self.waiting.len() { None } else { self.who_gives_way() };
        let gone = gone.and_then(|slot| self.take(slot));
        self.refusals.dropped += u64::from(gone.is_some());
        let look = look(&visitor);
        if let Some(place) = self.waiting.iter_mut().find(|place| place.is_none())
            && look != Look::Gone
        {
            self.numbers += 1;
            let (source, has_spoken) = (visitor.address.origin(), look == Look::Spoken);
            self.is_changed |= has_spoken;
            self.overdue = self.overdue.earlier(now.after_ms(patience_ms));
            let number = self.numbers;
            *place = Some(Newcomer { visitor, source, since: now, number, has_spoken, is_registered: false });
            self.count += 1;
        }
        gone
    }

    fn take(&mut self, slot: usize) -> Option<Newcomer> {
        let taken = self.waiting.get_mut(slot)?.take();
        self.count -= usize::from(taken.is_some());
        taken
    }

    /// Something happened at the socket of one.
    pub(super) fn note_event(&mut self, slot: usize, is_closed: bool) {
        let Some(newcomer) = self.waiting.get_mut(slot).and_then(Option::as_mut) else { return };
        match look(&newcomer.visitor) {
            _ if is_closed => drop(self.take(slot)),
            Look::Gone => drop(self.take(slot)),
            Look::Spoken if !newcomer.has_spoken => {
                newcomer.has_spoken = true;
                self.is_changed = true;
            }
            Look::Spoken | Look::Silent => {}
        }
    }

    /// Hangs up on everybody.
    pub(super) fn clear(&mut self) {
        self.waiting.iter_mut().for_each(|place| *place = None);
        self.count = 0;
        (self.overdue, self.retry) = (Deadline::NEVER, Deadline::NEVER);
    }

    /// Hangs up on those that said nothing for so long, and on those that spoke and waited much longer.
    fn drop_overdue(&mut self, now: Now, patience_ms: u64, limiter: &mut LogLimiter) {
        if !self.overdue.is_due(now) {
            return;
        }
        self.overdue = Deadline::NEVER;
        for slot in 0..self.waiting.len() {
            let Some(newcomer) = self.waiting[slot].as_ref() else { continue };
            let times = if newcomer.has_spoken { SPOKEN_TIMES } else { 1 };
            let due = newcomer.since.after_ms(times * patience_ms);
            if !due.is_due(now) {
                self.overdue = self.overdue.earlier(due);
                continue;
            }
            let address = newcomer.visitor.address;
            if newcomer.has_spoken {
                let keys = "connections_max, handshakes_max, tls_connections_max, tls_handshakes_max";
                let text =
                    format_args!("{address}: hung up on: there was no place for it for too long ({keys})");
                limiter.warn(now, address.source(), LogKind::Shortage, text);
                self.refusals.dropped += 1;
            } else {
                log::debug!("{address}: it came in and said nothing");
                self.refusals.silent += 1;
            }
            self.take(slot);
        }
    }

    /// Those that want a place, in the order in which they are to have one.
    fn gather_claims(&mut self) {
        self.claims.clear();
        let newest = self.turn.is_multiple_of(NEWEST_EACH);
        let entries = self.waiting.iter().enumerate();
        let spoken = entries.filter_map(|(slot, entry)| entry.as_ref().map(|entry| (slot, entry)));
        self.claims.extend(spoken.filter(|(_, entry)| entry.has_spoken).map(|(slot, entry)| Claim {
            slot,
            source: entry.source,
            with_tls: entry.visitor.with_tls,
            held: 0,
            turn: 0,
            order: if newest { u64::MAX - entry.number } else { entry.number },
        }));
        // One of each address, before anything is looked up for it.
        self.claims.sort_unstable_by_key(|claim| (claim.source, claim.with_tls, claim.order));
        self.claims.dedup_by_key(|claim| (claim.source, claim.with_tls));
        for claim in &mut self.claims {
            let turn = self.turns.iter().find(|(source, _)| *source == claim.source);
            claim.turn = turn.map_or(0, |(_, turn)| *turn);
            claim.held = admission::held(&self.places, Resource::Handshake, claim.source);
        }
        self.claims.sort_unstable_by_key(|claim| (claim.held, claim.turn, claim.source, claim.with_tls));
    }

    /// Of the first of the claims the one that can be served; and whether that may change with time if none
    /// can. Those with TLS and those without are counted apart: nobody waits for what only others need.
    fn choose(
        &self,
        rooms: &Rooms,
        is_exhausted: impl Fn(Source) -> bool,
    ) -> Result<(usize, Verdict), MayRetry> {
        let mut may_retry = false;
        let mut looked_at = [0; 2];
        for claim in &self.claims {
            let count = &mut looked_at[usize::from(claim.with_tls)];
            *count += 1;
            if *count > SOURCES_PER_TURN {
                continue;
            }
            let places_max = if is_exhausted(claim.source) { EXHAUSTED_PLACES } else { u32::MAX };
            let (source, with_tls, is_unspent) = (claim.source, claim.with_tls, claim.turn == 0);
            let request = Request { source, with_tls, is_unspent, places_max };
            match admission::decide(&self.places, rooms, &request) {
                Verdict::Wait(resource) => {
                    may_retry |= admission::may_come_with_time(&self.places, resource);
                }
                verdict => return Ok((claim.slot, verdict)),
            }
        }
        Err(MayRetry(may_retry))
    }

    /// A newcomer has a place, which comes to lie among those of its address.
    fn hold_place(&mut self, place: Place) {
        let at = self.places.partition_point(|other| other.source < place.source);
        self.places.insert(at, place);
    }

    /// What an address did with its last turn was a login: it need not wait for those that waste theirs.
    pub(super) fn forgive_turn(&mut self, source: Source) {
        self.turns.retain(|(other, _)| *other != source);
        self.is_changed = true;
    }

    /// An address has its turn; says whether it has wasted none lately.
    fn note_turn(&mut self, source: Source) -> bool {
        self.turn += 1;
        let known = self.turns.len();
        self.turns.retain(|(other, _)| *other != source);
        let is_unspent = self.turns.len() == known;
        if self.turns.len() == TURNS_KEPT {
            self.turns.remove(0);
        }
        self.turns.push((source, self.turn));
        is_unspent
    }
}

/// Whether enough is there to begin with. What is no AMQP and no TLS is, for it will be answered.
fn look(visitor: &Visitor) -> Look {
    let mut room = [0; OPENING_BYTES];
    let count = match visitor.socket.peek(&mut room) {
        Ok(0) => return Look::Gone,
        Ok(count) => count,
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Look::Silent,
        Err(error) if error.kind() == std::io::ErrorKind::Interrupted => return Look::Silent,
        Err(_) => return Look::Gone,
    };
    let is_enough = match (classify_opening(&room[..count]), visitor.with_tls) {
        (Opening::NeedMore, _) => false,
        (Opening::Tls, true) => match room[..count] {
            [_, _, _, high, low, ..] => {
                let record = 5 + usize::from(u16::from_be_bytes([high, low]));
                count >= record.min(OPENING_BYTES)
            }
            _ => false,
        },
        _ => true,
    };
    if is_enough { Look::Spoken } else { Look::Silent }
}

impl House {
    /// Whether somebody at a door can be accepted: not when every connection is logged in, for then nobody
    /// can make place.
    pub(super) fn may_accept(&self, with_tls: bool) -> bool {
        let in_handshake = self.handshaking.len() as u32;
        self.stopping.is_none()
            && self.peers_count - in_handshake < self.limits.connections_max
            && (!with_tls || self.has_tls_connection_to_offer())
            && self.accept_queue.has_room()
    }

    fn has_tls_connection_to_offer(&self) -> bool {
        let max = self.limits.tls_connections_max;
        let is_tls =
            |id: &&ConnectionId| self.peers[id.index()].as_ref().is_some_and(|peer| peer.stream.is_tls());
        self.tls_peers < max || self.handshaking.iter().any(|id| is_tls(&id))
    }

    /// Accepts who is there, and gives places to those that spoke.
    pub(super) fn let_in(&mut self) {
        let patience_ms = self.limits.handshake_timeout_ms.into();
        for door in 0..self.doors.len() {
            self.doors[door].readiness.keep_time(self.now);
            for _ in 0..ACCEPTS_PER_TURN {
                if !self.doors[door].readiness.is_ready() || !self.may_accept(self.doors[door].with_tls) {
                    break;
                }
                let Some(visitor) =
                    self.doors[door].accept(&mut self.spare, &mut self.supplies.log, self.now)
                else {
                    break;
                };
                if let Some(gone) = self.accept_queue.push(visitor, self.now, patience_ms) {
                    let address = gone.visitor.address;
                    let text = format_args!(
                        "{address}: hung up on before it began: its address has filled the queue of \
                         those that wait to come in"
                    );
                    self.supplies.log.warn(self.now, address.source(), LogKind::Shortage, text);
                }
            }
        }
        self.accept_queue.drop_overdue(self.now, patience_ms, &mut self.supplies.log);
        if self.accept_queue.retry.is_due(self.now)
            || self.accept_queue.is_changed && self.accept_queue.retry == Deadline::NEVER
        {
            self.admit();
        }
        self.watch_queue();
    }

    /// Gives places to those that spoke, in their order, as long as there are any to be had.
    fn admit(&mut self) {
        (self.accept_queue.is_changed, self.accept_queue.retry) = (false, Deadline::NEVER);
        self.look_at_places();
        for _ in 0..ACCEPTS_PER_TURN {
            self.accept_queue.gather_claims();
            let throttle = &self.errands.throttle;
            let is_exhausted = |source| throttle.is_exhausted(self.now, source);
            let (slot, verdict) = match self.accept_queue.choose(&self.rooms(), is_exhausted) {
                Ok(chosen) => chosen,
                Err(MayRetry(may_retry)) => {
                    if may_retry || self.is_clearing_away() {
                        self.accept_queue.retry = self.now.after_ms(RETRY_MS);
                    }
                    return;
                }
            };
            if let Verdict::Evict(one, other) = verdict {
                self.evict(one);
                other.into_iter().for_each(|other| self.evict(other));
            }
            let Some(newcomer) = self.accept_queue.take(slot) else { break };
            let is_unspent = self.accept_queue.note_turn(newcomer.source);
            match self.welcome(newcomer.visitor, newcomer.is_registered, is_unspent) {
                Ok(id) => {
                    if let Some(place) = self.place_of(id) {
                        self.accept_queue.hold_place(place);
                    }
                }
                Err(error) => {
                    let text = format_args!("a connection could not be set up: {error}");
                    self.supplies.log.warn(self.now, LogSource::Anybody, LogKind::Shortage, text);
                }
            }
        }
        // There may be more.
        self.accept_queue.retry = self.now.after_ms(RETRY_MS);
    }

    /// Whether the broker still clears away what a closed connection held, and with it its record.
    fn is_clearing_away(&self) -> bool {
        self.broker.connections_room() < self.limits.connections_max.saturating_sub(self.peers_count) as usize
    }

    fn rooms(&self) -> Rooms {
        let limits = &self.limits;
        let room = |max: u32, taken: u32| Room { free: max.saturating_sub(taken), max };
        let handshakes = room(limits.handshakes_max, self.handshaking.len() as u32);
        let mut connections = room(limits.connections_max, self.peers_count);
        connections.free = connections.free.min(self.broker.connections_room() as u32);
        Rooms {
            handshakes: Room { free: handshakes.free.min(connections.free), max: handshakes.max },
            tls_connections: room(limits.tls_connections_max, self.tls_peers),
            tls_handshakes: room(limits.tls_handshakes_max, self.tls_handshakes),
        }
    }

    /// Who holds which place, and how it stands.
    fn look_at_places(&mut self) {
        let mut places = core::mem::take(&mut self.accept_queue.places);
        places.clear();
        places.extend(self.handshaking.iter().filter_map(|id| self.place_of(*id)));
        places.sort_unstable_by_key(|place| place.source);
        self.accept_queue.places = places;
    }

    fn place_of(&self, id: ConnectionId) -> Option<Place> {
        let peer = self.peers[id.index()].as_ref()?;
        let takes = match (peer.stream.is_tls(), peer.stream.is_shaking_hands()) {
            (false, _) => Resource::Handshake,
            (true, false) => Resource::TlsConnection,
            (true, true) => Resource::TlsHandshake,
        };
        let standing = match standing(peer, self.now) {
            Standing::Silent(ms) if matches!(peer.waiting, Waiting::Errand(_)) => {
                match self.errands.throttle.turn(self.now, id) {
                    Turn::Next => Standing::Kept,
                    Turn::Delayed { is_suspect } => Standing::Delayed { ms, is_suspect },
                }
            }
            other => other,
        };
        let (source, is_unspent) = (peer.address.origin(), peer.is_unspent);
        Some(Place { connection: id, source, takes, standing, is_unspent })
    }

    /// Ends a handshake, for somebody else to have its place at once.
    fn evict(&mut self, id: ConnectionId) {
        self.accept_queue.refusals.evicted += 1;
        if let Some(peer) = self.peers[id.index()].as_ref() {
            let address = peer.address;
            let text = format_args!(
                "{address}: hung up on before its login, for others want in and its address holds most of \
                 the handshakes (handshakes_max, tls_handshakes_max, tls_connections_max)"
            );
            self.supplies.log.warn(self.now, address.source(), LogKind::Shortage, text);
        }
        self.end_now(id);
        self.close();
        self.accept_queue.places.retain(|place| self.peers[place.connection.index()].is_some());
    }

    /// Those that have to wait are heard when they speak.
    fn watch_queue(&mut self) {
        let queue = &mut self.accept_queue;
        if queue.count == 0 {
            return;
        }
        for (slot, place) in queue.waiting.iter_mut().enumerate() {
            let Some(newcomer) = place.as_mut().filter(|newcomer| !newcomer.is_registered) else { continue };
            let token = Token(FIRST_QUEUED + slot);
            let socket: &mut Socket = &mut newcomer.visitor.socket;
            match self.poll.registry().register(socket, token, Interest::READABLE) {
                Ok(()) => newcomer.is_registered = true,
                Err(error) => {
                    let text = format_args!("a connection could not be set up: {error}");
                    self.supplies.log.warn(self.now, LogSource::Anybody, LogKind::Shortage, text);
                    *place = None;
                    queue.count -= 1;
                }
            }
        }
    }
}

/// How a peer in its handshake stands, but for logins that wait.
fn standing(peer: &Peer, now: Now) -> Standing {
    match (peer.ending, peer.session.stage(), peer.waiting) {
        (Ending::No, Stage::LoggedIn | Stage::Open, _) | (Ending::No, _, Waiting::Handshake(_)) => {
            Standing::Kept
        }
        (Ending::No, Stage::Unproven, _) => Standing::Silent(now.ms_since(peer.silent_since)),
        _ => Standing::Over,
    }
}

#[cfg(test)]
mod tests {
    use mio::net::UnixStream;

    use super::super::socket::PeerAddress;
    use super::*;

    /// A queue that users of this machine have come into, in this order, and their ends.
    fn queue(places: usize, users: &[u32]) -> (AcceptQueue, Vec<UnixStream>) {
        let (mut queue, mut ends) = (AcceptQueue::new(8, places), Vec::new());
        for user in users {
            assert!(push(&mut queue, &mut ends, *user).is_none());
        }
        (queue, ends)
    }

    fn push(queue: &mut AcceptQueue, ends: &mut Vec<UnixStream>, uid: u32) -> Option<u64> {
        let (near, far) = UnixStream::pair().unwrap();
        ends.push(far);
        let address = PeerAddress::Local { pid: 1, uid };
        let visitor = Visitor { socket: Socket::Unix(near), address, with_tls: false };
        queue.push(visitor, Now::from_ms(0), 1_000).map(|gone| gone.number)
    }

    #[test]
    fn the_address_that_fills_the_queue_gives_way_its_oldest_silent_one_first() {
        let users: Vec<u32> = (0..16).map(|at| if at % 4 == 0 { at } else { 99 }).collect();
        let (mut queue, mut ends) = queue(16, &users);
        assert!(queue.has_room());
        assert_eq!(push(&mut queue, &mut ends, 7), Some(2), "the first of 99, whoever comes");
        for newcomer in &mut queue.waiting.iter_mut().flatten() {
            newcomer.has_spoken = true;
        }
        assert_eq!(push(&mut queue, &mut ends, 7), Some(16), "of those that spoke the last");
        assert_eq!(queue.count, 16);
    }

    #[test]
    fn a_queue_that_no_address_fills_takes_nobody_more() {
        let users: Vec<u32> = (0..16).map(|at| at / 2).collect();
        let (queue, _ends) = queue(16, &users);
        assert!(!queue.has_room(), "an eighth is no crowd");
    }

    #[test]
    fn claims_are_one_of_each_address_those_first_that_hold_fewest_places() {
        let (mut queue, _ends) = queue(16, &[5, 5, 6, 6, 7]);
        queue.turn = 1;
        let source = |uid| PeerAddress::Local { pid: 1, uid }.origin();
        for newcomer in queue.waiting.iter_mut().flatten() {
            newcomer.has_spoken = true;
        }
        for (index, uid) in [(0, 6), (1, 5), (2, 6)] {
            queue.hold_place(Place {
                connection: ConnectionId::from_index(index),
                source: source(uid),
                takes: Resource::Handshake,
                standing: Standing::Kept,
                is_unspent: false,
            });
        }
        assert!(queue.places.is_sorted_by_key(|place| place.source));
        queue.gather_claims();
        let claims: Vec<_> = queue.claims.iter().map(|claim| (claim.source, claim.held)).collect();
        assert_eq!(claims, [(source(7), 0), (source(5), 1), (source(6), 2)]);
        assert_eq!(queue.claims[1].slot, 0, "the oldest of its address");
    }

    /// All connections over TLS are logged in, ten addresses wait for one, and a program without TLS comes
    /// whose address is sorted behind them.
    #[test]
    fn who_waits_for_tls_holds_up_nobody_else_and_nothing_is_tried_in_vain() {
        let users: Vec<u32> = (1..=11).collect();
        let (mut queue, _ends) = queue(16, &users);
        for newcomer in queue.waiting.iter_mut().flatten() {
            newcomer.has_spoken = true;
            newcomer.visitor.with_tls = newcomer.number <= 10;
        }
        let room = |free| Room { free, max: 8 };
        let mut rooms = Rooms { handshakes: room(8), tls_connections: room(0), tls_handshakes: room(8) };
        queue.gather_claims();
        let plain = queue.waiting.iter().position(|one| one.as_ref().is_some_and(|one| one.number == 11));
        assert_eq!(queue.choose(&rooms, |_| false), Ok((plain.unwrap(), Verdict::Admit)));
        queue.take(plain.unwrap());
        queue.gather_claims();
        assert_eq!(queue.choose(&rooms, |_| false), Err(MayRetry(false)), "until one of them is closed");
        // One that has not logged in yet can be made to go when it has had its time.
        queue.hold_place(Place {
            connection: ConnectionId::from_index(0),
            source: PeerAddress::Local { pid: 1, uid: 20 }.origin(),
            takes: Resource::TlsConnection,
            standing: Standing::Silent(0),
            is_unspent: false,
        });
        assert_eq!(queue.choose(&rooms, |_| false), Err(MayRetry(true)));
        rooms.tls_connections = room(1);
        assert!(matches!(queue.choose(&rooms, |_| false), Ok((_, Verdict::Admit))));
    }

    #[test]
    fn nobody_waits_for_ever() {
        let (mut queue, _ends) = queue(16, &[1, 2]);
        let mut limiter = LogLimiter::default();
        if let Some(newcomer) = &mut queue.waiting[0] {
            newcomer.has_spoken = true;
        }
        queue.drop_overdue(Now::from_ms(1_000), 1_000, &mut limiter);
        assert_eq!(
            (queue.count, queue.refusals.silent),
            (1, 1),
            "who says nothing has the time of a handshake"
        );
        queue.drop_overdue(Now::from_ms(5_999), 1_000, &mut limiter);
        assert_eq!(queue.count, 1);
        assert_eq!(queue.deadline(), Now::from_ms(0).after_ms(6_000));
        queue.drop_overdue(Now::from_ms(6_000), 1_000, &mut limiter);
        assert_eq!((queue.count, queue.refusals.dropped), (0, 1));
        assert_eq!(queue.deadline(), Deadline::NEVER);
    }
}
