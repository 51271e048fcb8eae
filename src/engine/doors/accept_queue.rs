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
//! accepted, [`ACCEPTS_PER_TURN`] in a turn of each listener; a client that has said nothing yet costs a
//! descriptor and an entry, and no place, record or buffer of TLS.
//!
//! The next place goes to the address that
//!
//! 1. holds fewest places,
//! 2. had its last wasted turn longest ago: one without a login after it,
//! 3. came in with TLS or without, by turns: a crowd of one kind holds up nobody of the other,
//! 4. and of its newcomers of that kind mostly to the oldest, every fourth time to the newest.
//!
//! Always true: what was said stays in the socket (it is only looked at) until there is a place; who waits
//! for something that only TLS needs holds up nobody without TLS; nobody waits here for ever; when the queue
//! is full, the address that fills it gives way at the door where it has most, or one that sent a wrong
//! password; when there is none such, or all connections are logged in, nobody more is accepted.

use crate::command::ConnectionId;
use crate::log_limiter::{LogKind, LogLimiter, LogSource};
use crate::mem::{sort, sort_by_key};
use crate::time::{Deadline, Now};
use crate::wire::{Opening, classify_opening};

use super::admission::{self, EXHAUSTED_PLACES, Place, Request, Resource, Rooms, Verdict};
use crate::address::Source;
use crate::login_throttle::Reputation;
use crate::platform::{Interest, Platform, Socket, Visitor};

/// Newcomers that may wait here, if there are descriptors for them; more wait in the listen queue.
pub const QUEUE_PLACES: usize = 256;
/// An address that has more than this part of the queue gives way when that is full.
const CROWD_PART: usize = 8;
/// Accepted in one turn, so that a crowd at the door does not hold up those inside.
pub(super) const ACCEPTS_PER_TURN: usize = 64;
/// Addresses that are looked at for a place in one go, of those with TLS and of those without, and how long
/// until the next when none was to be had but may be.
const SOURCES_PER_TURN: usize = 8;
const RETRY_MS: u64 = 20;
/// Who has spoken waits so many times `handshake_timeout` for a place: programs give up sooner.
const SPOKEN_TIMES: u64 = 3;
/// So much of a first record of TLS has to be there: all of it, mostly.
const OPENING_BYTES: usize = 1024;
/// Addresses whose last turn is known: as many as can wait, or a crowd of that many would be taken for
/// strangers, each of whom goes first.
const TURNS_KEPT: usize = QUEUE_PLACES;

/// Bytes of the queue.
pub(crate) const fn queue_bytes<S>() -> usize {
    QUEUE_PLACES * (size_of::<Option<Newcomer<S>>>() + size_of::<Claim>())
        + TURNS_KEPT * size_of::<LastTurn>()
}
/// Bytes for each handshake place.
pub(crate) const PLACE_BYTES: usize =
    size_of::<Place>() + size_of::<ConnectionId>() + size_of::<admission::AgeKey>();

/// One that waits.
#[derive(Debug)]
pub(super) struct Newcomer<S> {
    pub(super) visitor: Visitor<S>,
    pub(super) with_tls: bool,
    pub(super) source: Source,
    since: Now,
    /// The newcomer's number in the order of coming.
    number: u64,
    /// The first words of the newcomer are there.
    has_spoken: bool,
    /// The poll reports when something can be read from it.
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

/// What is known of an address that has not logged in since its last turn.
#[derive(Clone, Copy, Debug)]
struct LastTurn {
    source: Source,
    number: u64,
    /// The newcomer's address came with a wrong password.
    was_wrong: bool,
}

/// What happened at the doors since the start.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Refusals {
    /// Handshakes ended because others wanted in.
    pub(crate) evicted: u64,
    /// Hung up on because their address had filled the queue, or because there was no place for too long.
    pub(crate) dropped: u64,
    /// Hung up on because they said nothing.
    pub(crate) silent: u64,
}

/// The queue.
#[derive(Debug)]
pub(super) struct AcceptQueue<S> {
    waiting: Vec<Option<Newcomer<S>>>,
    count: usize,
    numbers: u64,
    /// Nobody is to be hung up on before.
    overdue: Deadline,
    /// Somebody may get a place who could not before.
    is_changed: bool,
    retry: Deadline,
    /// In the order of the addresses.
    turns: Vec<LastTurn>,
    turn: u64,
    claims: Vec<Claim>,
    places: Vec<Place>,
    pub(super) refusals: Refusals,
}

/// Whether who cannot be served now may be served later although nothing happens until then.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct MayRetry(pub(super) bool);

/// What a look at a newcomer's socket brings.
#[derive(PartialEq, Eq)]
enum Look {
    Silent,
    Spoken,
    Gone,
}

impl<S: Socket> AcceptQueue<S> {
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

    /// Of the address that has most here, if those are a crowd, and of the door where it has most: the silent
    /// one that came first, else the newcomer that came last.
    fn who_gives_way(&self) -> Option<usize> {
        let source = self.crowd()?;
        let own = || self.entries().filter(|(_, entry)| entry.source == source);
        let over_tls = own().filter(|(_, entry)| entry.with_tls).count();
        let is_over_tls = over_tls > own().count() - over_tls;
        let crowd = own().filter(|(_, entry)| entry.with_tls == is_over_tls);
        let first = crowd.min_by_key(|(_, entry)| {
            (entry.has_spoken, if entry.has_spoken { u64::MAX - entry.number } else { entry.number })
        });
        first.map(|(slot, _)| slot)
    }

    fn entries(&self) -> impl Iterator<Item = (usize, &Newcomer<S>)> {
        let entries = self.waiting.iter().enumerate();
        entries.filter_map(|(slot, entry)| entry.as_ref().map(|entry| (slot, entry)))
    }

    /// The address that has most here, if that is too much, else of those that sent wrong passwords the one
    /// that has most. Sorted to be counted, for a crowd makes this be asked for each of its connections.
    fn crowd(&self) -> Option<Source> {
        let mut sources: heapless::Vec<Source, QUEUE_PLACES> =
            self.waiting.iter().flatten().map(|one| one.source).collect();
        sort(&mut sources);
        let addresses = || sources.chunk_by(|one, next| one == next);
        let largest = addresses().max_by_key(|all| all.len())?;
        let is_crowd = largest.len() > self.waiting.len() / CROWD_PART;
        let guessing = || addresses().filter(|all| self.was_wrong(all[0])).max_by_key(|all| all.len());
        if is_crowd { Some(largest[0]) } else { guessing().map(|all| all[0]) }
    }

    /// Takes one in; hands back who had to give way.
    pub(super) fn push(
        &mut self,
        visitor: Visitor<S>,
        with_tls: bool,
        now: Now,
        patience_ms: u64,
    ) -> Option<Newcomer<S>> {
        let gone = if self.count < self.waiting.len() { None } else { self.who_gives_way() };
        let gone = gone.and_then(|slot| self.take(slot));
        self.refusals.dropped += u64::from(gone.is_some());
        let look = look(&visitor.socket, with_tls);
        if let Some(place) = self.waiting.iter_mut().find(|place| place.is_none())
            && look != Look::Gone
        {
            self.numbers += 1;
            let (source, has_spoken) = (visitor.address.origin(), look == Look::Spoken);
            self.is_changed |= has_spoken;
            self.overdue = self.overdue.earlier(now.after_ms(patience_ms));
            let number = self.numbers;
            let is_registered = false;
            *place =
                Some(Newcomer { visitor, with_tls, source, since: now, number, has_spoken, is_registered });
            self.count += 1;
        }
        gone
    }

    pub(super) fn take(&mut self, slot: usize) -> Option<Newcomer<S>> {
        let taken = self.waiting.get_mut(slot)?.take();
        self.count -= usize::from(taken.is_some());
        taken
    }

    /// Something happened at the socket of one.
    pub(super) fn note_event(&mut self, slot: usize, is_closed: bool) {
        let Some(newcomer) = self.waiting.get_mut(slot).and_then(Option::as_mut) else { return };
        match look(&newcomer.visitor.socket, newcomer.with_tls) {
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
    pub(super) fn drop_overdue(&mut self, now: Now, patience_ms: u64, limiter: &mut LogLimiter) {
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
    pub(super) fn gather_claims(&mut self) {
        self.claims.clear();
        let (tls_first, newest) = (is_tls_first(self.turn), is_newest_first(self.turn));
        let entries = self.waiting.iter().enumerate();
        let spoken = entries.filter_map(|(slot, entry)| entry.as_ref().map(|entry| (slot, entry)));
        self.claims.extend(spoken.filter(|(_, entry)| entry.has_spoken).map(|(slot, entry)| Claim {
            slot,
            source: entry.source,
            with_tls: entry.with_tls,
            held: 0,
            turn: 0,
            order: if newest { u64::MAX - entry.number } else { entry.number },
        }));
        // One of each address, before anything is looked up for it.
        sort_by_key(&mut self.claims, |claim| (claim.source, claim.with_tls, claim.order));
        self.claims.dedup_by_key(|claim| (claim.source, claim.with_tls));
        for claim in &mut self.claims {
            let at = self.turns.binary_search_by_key(&claim.source, |turn| turn.source);
            claim.turn = at.map_or(0, |at| self.turns[at].number);
            claim.held = admission::held(&self.places, Resource::Handshake, claim.source);
        }
        sort_by_key(&mut self.claims, |claim| {
            (claim.held, claim.turn, claim.source, claim.with_tls != tls_first)
        });
    }

    /// Of the first of the claims the one that can be served; and whether that may change with time if none
    /// can. Those with TLS and those without are counted apart: nobody waits for what only others need.
    pub(super) fn choose(
        &self,
        rooms: &Rooms,
        reputation: impl Fn(Source) -> Reputation,
    ) -> Result<(usize, Verdict), MayRetry> {
        let mut may_retry = false;
        let mut looked_at = [0; 2];
        for claim in &self.claims {
            let count = &mut looked_at[usize::from(claim.with_tls)];
            *count += 1;
            if *count > SOURCES_PER_TURN {
                continue;
            }
            let (source, with_tls, is_unspent) = (claim.source, claim.with_tls, claim.turn == 0);
            let Reputation { is_exhausted, is_proven } = reputation(source);
            let places_max = if is_exhausted { EXHAUSTED_PLACES } else { u32::MAX };
            let request = Request { source, with_tls, is_unspent, is_proven, places_max };
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
    pub(super) fn hold_place(&mut self, place: Place) {
        let at = self.places.partition_point(|other| other.source < place.source);
        self.places.insert(at, place);
    }

    /// Whether it is time to give places: somebody may have one who could not before.
    pub(super) fn is_time(&self, now: Now) -> bool {
        self.retry.is_due(now) || self.is_changed && self.retry == Deadline::NEVER
    }

    /// Whether it is time to give places, and somebody is there to have one.
    pub(super) fn has_news(&self, now: Now) -> bool {
        self.count > 0 && self.is_time(now)
    }

    /// Places are given now; hands over room for a list of those that are held.
    pub(super) fn begin_round(&mut self) -> Vec<Place> {
        (self.is_changed, self.retry) = (false, Deadline::NEVER);
        self.places.clear();
        core::mem::take(&mut self.places)
    }

    /// Sets the handshake places that are taken.
    pub(super) fn set_places(&mut self, mut places: Vec<Place>) {
        sort_by_key(&mut places, |place| place.source);
        self.places = places;
    }

    /// They are to be given again soon.
    pub(super) const fn retry_soon(&mut self, now: Now) {
        self.retry = now.after_ms(RETRY_MS);
    }

    /// Places whose holders are gone are held no longer.
    pub(super) fn retain_places(&mut self, is_held: impl Fn(ConnectionId) -> bool) {
        self.places.retain(|place| is_held(place.connection));
    }

    /// Those that have to wait are heard when they speak.
    pub(super) fn watch(
        &mut self,
        platform: &mut impl Platform<Socket = S>,
        now: Now,
        limiter: &mut LogLimiter,
    ) {
        if self.count == 0 {
            return;
        }
        for (slot, place) in self.waiting.iter_mut().enumerate() {
            let Some(newcomer) = place.as_mut().filter(|newcomer| !newcomer.is_registered) else { continue };
            match platform.register(&mut newcomer.visitor.socket, Interest::Newcomer(slot)) {
                Ok(()) => newcomer.is_registered = true,
                Err(error) => {
                    let text = format_args!("a connection could not be set up: {error}");
                    limiter.warn(now, LogSource::Anybody, LogKind::Shortage, text);
                    *place = None;
                    self.count -= 1;
                }
            }
        }
    }

    /// What an address did with its last turn was a login: it need not wait for those that waste theirs.
    pub(super) fn forgive_turn(&mut self, source: Source) {
        self.turns.retain(|turn| turn.source != source);
        self.is_changed = true;
    }

    /// An address has its turn; says whether it has wasted none lately.
    pub(super) fn note_turn(&mut self, source: Source) -> bool {
        self.turn += 1;
        let number = self.turn;
        let known = self.turns.binary_search_by_key(&source, |turn| turn.source);
        if let Ok(at) = known {
            self.turns[at].number = number;
            return false;
        }
        if self.turns.len() == TURNS_KEPT {
            let oldest = self.turns.iter().enumerate().min_by_key(|(_, turn)| turn.number);
            oldest.map(|(at, _)| at).map(|at| self.turns.remove(at));
        }
        let at = self.turns.partition_point(|turn| turn.source < source);
        self.turns.insert(at, LastTurn { source, number, was_wrong: false });
        true
    }

    /// A password that came from this address was wrong.
    pub(super) fn note_wrong(&mut self, source: Source) {
        if let Ok(at) = self.turns.binary_search_by_key(&source, |turn| turn.source) {
            self.turns[at].was_wrong = true;
        }
    }

    /// Whether this address has sent a wrong password since its last login.
    fn was_wrong(&self, source: Source) -> bool {
        let known = self.turns.binary_search_by_key(&source, |turn| turn.source);
        known.is_ok_and(|at| self.turns[at].was_wrong)
    }
}

/// A turn's number with its bits scattered: addresses and doors that take turns in some rhythm meet every
/// value (the golden ratio's multiples lie evenly, whatever the step).
const fn scattered(turn: u64) -> u64 {
    turn.wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

/// Whether the next place of an address goes to the door of TLS, if somebody waits at both: one in two does.
const fn is_tls_first(turn: u64) -> bool {
    scattered(turn) >> 63 == 1
}

/// Whether it goes to the newest there, and not to the oldest: one in four does.
const fn is_newest_first(turn: u64) -> bool {
    (scattered(turn) >> 61) & 3 == 3
}

/// Whether enough is there to begin with. What is no AMQP and no TLS is, for it will be answered.
fn look(socket: &impl Socket, with_tls: bool) -> Look {
    let mut room = [0; OPENING_BYTES];
    let count = match socket.peek(&mut room) {
        Ok(0) => return Look::Gone,
        Ok(count) => count,
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Look::Silent,
        Err(error) if error.kind() == std::io::ErrorKind::Interrupted => return Look::Silent,
        Err(_) => return Look::Gone,
    };
    let is_enough = match (classify_opening(&room[..count]), with_tls) {
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

#[cfg(test)]
mod tests {
    use std::io::{self, Read, Write};

    use super::super::admission::{Room, Standing};
    use super::*;
    use crate::address::PeerAddress;

    /// Somebody who says nothing.
    #[derive(Debug)]
    struct Mute;

    impl Read for Mute {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::WouldBlock.into())
        }
    }

    impl Write for Mute {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Socket for Mute {
        fn peek(&self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::WouldBlock.into())
        }

        fn shut_down_writing(&mut self) {}

        fn local_address(&self) -> Option<core::net::SocketAddr> {
            None
        }
    }

    /// A queue that users of this machine have come into, in this order.
    fn queue(places: usize, users: &[u32]) -> AcceptQueue<Mute> {
        let mut queue = AcceptQueue::new(8, places);
        for user in users {
            assert!(push(&mut queue, *user).is_none());
        }
        queue
    }

    fn push(queue: &mut AcceptQueue<Mute>, uid: u32) -> Option<u64> {
        let visitor = Visitor { socket: Mute, address: PeerAddress::Local { pid: 1, uid } };
        queue.push(visitor, false, Now::from_ms(0), 1_000).map(|gone| gone.number)
    }

    #[test]
    fn the_address_that_fills_the_queue_gives_way_its_oldest_silent_one_first() {
        let users: Vec<u32> = (0..16).map(|at| if at % 4 == 0 { at } else { 99 }).collect();
        let mut queue = queue(16, &users);
        assert!(queue.has_room());
        assert_eq!(push(&mut queue, 7), Some(2), "the first of 99, whoever comes");
        for newcomer in &mut queue.waiting.iter_mut().flatten() {
            newcomer.has_spoken = true;
        }
        assert_eq!(push(&mut queue, 7), Some(16), "of those that spoke the last");
        assert_eq!(queue.count, 16);
    }

    #[test]
    fn a_queue_that_no_address_fills_takes_nobody_more() {
        let users: Vec<u32> = (0..16).map(|at| at / 2).collect();
        let queue = queue(16, &users);
        assert!(!queue.has_room(), "an eighth is no crowd");
    }

    #[test]
    fn in_a_full_queue_who_sent_a_wrong_password_gives_way() {
        let users: Vec<u32> = (0..16).map(|at| at / 2).collect();
        let mut queue = queue(16, &users);
        let source = PeerAddress::Local { pid: 1, uid: 3 }.origin();
        assert!(queue.note_turn(source));
        assert!(!queue.has_room(), "its turn is not over");
        queue.note_wrong(source);
        assert!(queue.has_room());
        assert_eq!(push(&mut queue, 9), Some(7), "its first");
        queue.forgive_turn(source);
        assert!(!queue.has_room(), "it has logged in");
    }

    #[test]
    fn claims_are_one_of_each_address_those_first_that_hold_fewest_places() {
        let mut queue = queue(16, &[5, 5, 6, 6, 7]);
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
        assert!(!is_newest_first(queue.turn));
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
        let mut queue = queue(16, &users);
        for newcomer in queue.waiting.iter_mut().flatten() {
            newcomer.has_spoken = true;
            newcomer.with_tls = newcomer.number <= 10;
        }
        let room = |free| Room { free, max: 8 };
        let mut rooms = Rooms { handshakes: room(8), tls_connections: room(0), tls_handshakes: room(8) };
        queue.gather_claims();
        let plain = queue.waiting.iter().position(|one| one.as_ref().is_some_and(|one| one.number == 11));
        assert_eq!(queue.choose(&rooms, |_| Reputation::default()), Ok((plain.unwrap(), Verdict::Admit)));
        queue.take(plain.unwrap());
        queue.gather_claims();
        assert_eq!(
            queue.choose(&rooms, |_| Reputation::default()),
            Err(MayRetry(false)),
            "until one of them is closed"
        );
        // One that has not logged in yet can be made to go when it has had its time.
        queue.hold_place(Place {
            connection: ConnectionId::from_index(0),
            source: PeerAddress::Local { pid: 1, uid: 20 }.origin(),
            takes: Resource::TlsConnection,
            standing: Standing::Silent(0),
            is_unspent: false,
        });
        assert_eq!(queue.choose(&rooms, |_| Reputation::default()), Err(MayRetry(true)));
        rooms.tls_connections = room(1);
        assert!(matches!(queue.choose(&rooms, |_| Reputation::default()), Ok((_, Verdict::Admit))));
    }

    /// One address fills the queue at one door; at the other somebody of the same address comes.
    #[test]
    fn a_crowd_at_one_door_holds_up_nobody_of_its_address_at_the_other() {
        for crowd_over_tls in [false, true] {
            let mut queue = queue(32, &[9; 32]);
            for newcomer in queue.waiting.iter_mut().flatten() {
                (newcomer.has_spoken, newcomer.with_tls) = (true, crowd_over_tls);
            }
            assert_eq!(push(&mut queue, 9), Some(32), "of the crowd the last gives way");
            let honest = queue.numbers;
            let newcomer = queue.waiting.iter_mut().flatten().find(|one| one.number == honest).unwrap();
            (newcomer.has_spoken, newcomer.with_tls) = (true, !crowd_over_tls);
            // Whatever else took how many turns before.
            for turn in 0..1_000 {
                queue.turn = turn;
                let is_next = |queue: &mut AcceptQueue<Mute>| {
                    queue.gather_claims();
                    let first = queue.claims[0].slot;
                    queue.turn += 1;
                    queue.waiting[first].as_ref().unwrap().number == honest
                };
                assert!((0..4).any(|_| is_next(&mut queue)), "after {turn} turns");
            }
            // The crowd comes again and again, and the one at the other door is not who gives way.
            for number in 0..64 {
                let gone = push(&mut queue, 9);
                assert!(gone.is_some_and(|gone| gone != honest), "{gone:?}");
                for newcomer in queue.waiting.iter_mut().flatten().filter(|one| one.number > honest) {
                    (newcomer.has_spoken, newcomer.with_tls) = (true, crowd_over_tls);
                }
                assert_eq!(queue.count, 32, "{number}");
            }
        }
    }

    /// Whoever takes turns in whatever rhythm: each step meets both doors, the oldest and the newest.
    #[test]
    fn no_rhythm_of_turns_leaves_a_door_or_the_newest_out() {
        for step in 1..=16 {
            let turns = |from: u64| (0..64).map(move |at| from + at * step);
            for from in 0..step {
                assert!(
                    turns(from).any(|turn| is_tls_first(turn) && is_newest_first(turn)),
                    "{from} + {step}"
                );
                assert!(
                    turns(from).any(|turn| !is_tls_first(turn) && is_newest_first(turn)),
                    "{from} + {step}"
                );
                assert!(
                    turns(from).any(|turn| is_tls_first(turn) && !is_newest_first(turn)),
                    "{from} + {step}"
                );
            }
        }
    }

    #[test]
    fn nobody_waits_for_ever() {
        let mut queue = queue(16, &[1, 2]);
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
        queue.drop_overdue(Now::from_ms(SPOKEN_TIMES * 1_000 - 1), 1_000, &mut limiter);
        assert_eq!(queue.count, 1);
        assert_eq!(queue.deadline(), Now::from_ms(0).after_ms(SPOKEN_TIMES * 1_000));
        queue.drop_overdue(Now::from_ms(SPOKEN_TIMES * 1_000), 1_000, &mut limiter);
        assert_eq!((queue.count, queue.refusals.dropped), (0, 1));
        assert_eq!(queue.deadline(), Deadline::NEVER);
    }
}
