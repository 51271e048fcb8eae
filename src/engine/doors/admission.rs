//! Who gets the next handshake place, and who has to give one up.
//!
//! Why it exists: anybody on the network can open sockets, and what a handshake takes is scarce: a board has
//! 8 to 512 places, over TLS 2 to 32. As sshd's MaxStartups and PerSourceMaxStartups, but with nothing left
//! to chance: one address has at most half, and when there is no place left, the address that holds most
//! gives one up, by the peer that has been silent longest; one place is for addresses from which somebody has
//! logged in lately.
//!
//! How long the holder of a place is safe, counted in its own time:
//!
//! | who asks | who holds | safe for |
//! |---|---|---|
//! | anybody | waits for us, or is logged in | ever |
//! | an address that holds fewer places, by two or more | has said nothing that counts | [`YIELD_MS`] |
//! | an equal: it would hold as many afterwards | is of the younger half of the silent | [`YIELD_MS`] |
//! | an equal | is of the older half, or unspent while the other is not | [`PATIENCE_MS`] |
//! | its own address, at its share | has said nothing that counts | [`PATIENCE_MS`] |
//! | its own address, at its share | waits for wrong passwords of its own user | [`YIELD_MS`] |
//! | another address that has wasted no turn lately | has a login that waits for wrong passwords | not at all |
//! | another address | has a login that waits for wrong passwords | [`YIELD_MS`] |
//! | anybody | was refused, or is being closed | not at all |
//!
//! Always true: pure, no socket and no clock; without anybody else wanting in, nobody is evicted; the older
//! half is there so that a crowd of slow devices does not evict each other for ever; a decision takes steps
//! in proportion to the places.

use core::cell::OnceCell;
use core::cmp::Reverse;

use crate::command::ConnectionId;
use crate::mem::sort_by_key;

use crate::address::Source;

/// How long a silent peer keeps its place, of its own time, when an address wants in that holds fewer places.
pub(super) const YIELD_MS: u64 = 500;
/// How long it keeps its place when an address wants in that holds as many.
pub(super) const PATIENCE_MS: u64 = 5_000;
/// Of so many places one is kept for addresses from which somebody has logged in lately.
const KEPT_OF: u32 = 8;
/// Places of an address that sends wrong passwords as fast as it may.
pub(super) const EXHAUSTED_PLACES: u32 = 8;

/// What a newcomer takes until it has logged in; each is contained in the one before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Resource {
    /// A connection and one of `handshakes_max`.
    Handshake,
    /// A place of `tls_connections_max`.
    TlsConnection,
    /// A place of `tls_handshakes_max`.
    TlsHandshake,
}

/// How the holder of a place stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Standing {
    /// The connection waits for the broker, or has logged in.
    Kept,
    /// The connection has not logged in, and so many milliseconds of that were its own.
    Silent(u64),
    /// The login of the connection waits, so long already, because its address sent wrong passwords.
    Delayed {
        /// Milliseconds.
        ms: u64,
        /// The address sent wrong passwords for this user, too.
        is_suspect: bool,
    },
    /// The connection was refused, or is being closed.
    Over,
}

/// One that is held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place {
    pub(super) connection: ConnectionId,
    pub(super) source: Source,
    /// The last of what it takes.
    pub(super) takes: Resource,
    pub(super) standing: Standing,
    /// The address of the connection has wasted no handshake place lately.
    pub(super) is_unspent: bool,
}

/// What a newcomer asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Request {
    pub(super) source: Source,
    pub(super) with_tls: bool,
    /// As that of a [`Place`].
    pub(super) is_unspent: bool,
    /// Somebody has logged in from its address lately.
    pub(super) is_proven: bool,
    /// The most places its address may hold; lower after wrong passwords.
    pub(super) places_max: u32,
}

/// Of one resource.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Room {
    pub(super) free: u32,
    pub(super) max: u32,
}

/// Of each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Rooms {
    pub(super) handshakes: Room,
    pub(super) tls_connections: Room,
    pub(super) tls_handshakes: Room,
}

/// What is to be done for a newcomer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// The newcomer has a handshake place.
    Admit,
    /// It has one when these connections are closed: another's, for what all share, and maybe one of its own
    /// address besides, for its share.
    Evict(ConnectionId, Option<ConnectionId>),
    /// Not now: there is none of this for it.
    Wait(Resource),
}

impl Place {
    fn holds(&self, resource: Resource) -> bool {
        match resource {
            Resource::Handshake => true,
            Resource::TlsConnection => self.takes != Resource::Handshake,
            Resource::TlsHandshake => self.takes == Resource::TlsHandshake,
        }
    }

    /// Milliseconds that it has been holding its place for nothing.
    const fn idle_ms(&self) -> Option<u64> {
        match self.standing {
            Standing::Kept => None,
            Standing::Silent(ms) | Standing::Delayed { ms, .. } => Some(ms),
            Standing::Over => Some(u64::MAX),
        }
    }
}

impl Rooms {
    const fn of(&self, resource: Resource) -> Room {
        match resource {
            Resource::Handshake => self.handshakes,
            Resource::TlsConnection => self.tls_connections,
            Resource::TlsHandshake => self.tls_handshakes,
        }
    }
}

/// What one address may hold of so many.
fn share(max: u32) -> u32 {
    (max / 2).max(1)
}

/// Decides about a newcomer. Places lie in the order of their sources.
pub(super) fn decide(places: &[Place], rooms: &Rooms, request: &Request) -> Verdict {
    let needed = [Resource::TlsHandshake, Resource::TlsConnection, Resource::Handshake];
    let (mut own, mut others): (Option<&Place>, Option<&Place>) = (None, None);
    for resource in needed.into_iter().skip(if request.with_tls { 0 } else { 2 }) {
        let room = rooms.of(resource);
        let held = held(places, resource, request.source);
        let is_kept = resource == Resource::Handshake && room.max >= KEPT_OF && !request.is_proven;
        let kept = u32::from(is_kept);
        let most = if resource == Resource::Handshake { request.places_max } else { u32::MAX };
        // Whoever goes for the scarcer gives back this as well.
        let victim = if held >= share(room.max).min(most) && own.is_none() {
            own = own_victim(places, resource, request.source);
            own
        } else if room.free <= kept && own.or(others).is_none() {
            others = victim_of_others(places, resource, request, held);
            others
        } else {
            continue;
        };
        if victim.is_none() {
            return Verdict::Wait(resource);
        }
    }
    match (others, own) {
        (None, None) => Verdict::Admit,
        (Some(place), None) | (None, Some(place)) => Verdict::Evict(place.connection, None),
        (Some(other), Some(own)) => Verdict::Evict(other.connection, Some(own.connection)),
    }
}

/// Whether one that waits for this may have it some time later although nothing happens: those who hold it
/// before their login are safe for a while only.
pub(super) fn may_come_with_time(places: &[Place], resource: Resource) -> bool {
    places.iter().any(|place| place.holds(resource))
}

/// What an address holds.
pub(super) fn held(places: &[Place], resource: Resource, source: Source) -> u32 {
    of(places, source).iter().filter(|place| place.holds(resource)).count() as u32
}

/// The places of an address, which lie together.
fn of(places: &[Place], source: Source) -> &[Place] {
    let behind = &places[places.partition_point(|place| place.source < source)..];
    &behind[..behind.partition_point(|place| place.source == source)]
}

/// How old a silent one is; of those that came at once the first is the oldest.
pub(super) type AgeKey = (u64, Reverse<ConnectionId>);

fn age_key(place: &Place) -> Option<AgeKey> {
    match place.standing {
        Standing::Silent(ms) => Some((ms, Reverse(place.connection))),
        _ => None,
    }
}

/// Of the newcomer's own address.
fn own_victim(places: &[Place], resource: Resource, source: Source) -> Option<&Place> {
    let own = of(places, source).iter().filter(|place| place.holds(resource));
    let may_go = |place: &&Place| match place.standing {
        Standing::Kept | Standing::Delayed { is_suspect: false, .. } => false,
        Standing::Silent(ms) => ms >= PATIENCE_MS,
        Standing::Delayed { ms, is_suspect: true } => ms >= YIELD_MS,
        Standing::Over => true,
    };
    own.filter(may_go).max_by_key(|place| place.idle_ms())
}

/// Of the address that holds most, if that is more than the newcomer's.
fn victim_of_others<'p>(
    places: &'p [Place],
    resource: Resource,
    request: &Request,
    held_own: u32,
) -> Option<&'p Place> {
    let others = || places.iter().filter(|place| place.source != request.source && place.holds(resource));
    // Looked for at most once: a search for each candidate would take the square of the places.
    let youngest_of_older = OnceCell::new();
    let is_of_younger_half = |key: AgeKey| {
        let least = youngest_of_older.get_or_init(|| {
            let mut keys: Vec<AgeKey> = others().filter_map(age_key).collect();
            sort_by_key(&mut keys, |key| Reverse(*key));
            keys.get(keys.len() / 2).copied()
        });
        least.is_none_or(|least| key <= least)
    };
    let may_go = |place: &Place, held: u32| match place.standing {
        Standing::Kept => false,
        Standing::Over => true,
        _ if held <= held_own => false,
        Standing::Silent(ms) if held == held_own + 1 && ms < PATIENCE_MS => {
            let is_protected = place.is_unspent && !request.is_unspent;
            ms >= YIELD_MS && !is_protected && age_key(place).is_some_and(&is_of_younger_half)
        }
        // Whoever comes for the first time would be held up by those that guess.
        Standing::Delayed { .. } if request.is_unspent => true,
        Standing::Silent(ms) | Standing::Delayed { ms, .. } => ms >= YIELD_MS,
    };
    // Counted once for each address, for this is asked for every newcomer.
    let addresses = places.chunk_by(|one, next| one.source == next.source);
    let addresses = addresses.filter(|all| all[0].source != request.source);
    let with_held = addresses.flat_map(|all| {
        let held = held(all, resource, all[0].source);
        all.iter().filter(|place| place.holds(resource)).map(move |place| (place, held))
    });
    let candidates = with_held.filter(|(place, held)| may_go(place, *held));
    let weight = |(place, held): &(&Place, u32)| (place.standing == Standing::Over, *held, place.idle_ms());
    candidates.max_by_key(weight).map(|(place, _)| place)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(last: u8) -> Source {
        Source::of(core::net::IpAddr::from([192, 0, 2, last]))
    }

    fn place(index: usize, last: u8, takes: Resource, standing: Standing) -> Place {
        Place {
            connection: ConnectionId::from_index(index),
            source: source(last),
            takes,
            standing,
            is_unspent: false,
        }
    }

    fn plain(index: usize, last: u8, standing: Standing) -> Place {
        place(index, last, Resource::Handshake, standing)
    }

    fn rooms(free: u32, max: u32) -> Rooms {
        let room = Room { free, max };
        Rooms { handshakes: room, tls_connections: room, tls_handshakes: room }
    }

    fn ask(last: u8, with_tls: bool, places_max: u32) -> Request {
        Request { source: source(last), with_tls, is_unspent: false, is_proven: false, places_max }
    }

    fn evicts(index: usize) -> Verdict {
        Verdict::Evict(ConnectionId::from_index(index), None)
    }

    #[test]
    fn one_address_has_at_most_half_and_who_is_alone_is_not_evicted() {
        let places: Vec<_> = (0..4).map(|at| plain(at, 1, Standing::Silent(4_000))).collect();
        assert_eq!(decide(&places[..3], &rooms(5, 8), &ask(1, false, u32::MAX)), Verdict::Admit);
        assert_eq!(
            decide(&places, &rooms(4, 8), &ask(1, false, u32::MAX)),
            Verdict::Wait(Resource::Handshake)
        );
        assert_eq!(decide(&places, &rooms(4, 8), &ask(2, false, u32::MAX)), Verdict::Admit);
        assert_eq!(decide(&places[..2], &rooms(6, 8), &ask(1, false, 2)), Verdict::Wait(Resource::Handshake));
        // The least there can be is one place for everybody.
        assert_eq!(decide(&[], &rooms(1, 1), &ask(1, true, u32::MAX)), Verdict::Admit);
    }

    #[test]
    fn the_oldest_silent_one_of_the_address_that_holds_most_goes() {
        let places = [
            plain(0, 1, Standing::Silent(900)),
            plain(1, 2, Standing::Silent(600)),
            plain(2, 2, Standing::Silent(700)),
            plain(3, 2, Standing::Silent(100)),
            plain(4, 2, Standing::Kept),
        ];
        let full = rooms(0, 10);
        assert_eq!(decide(&places, &full, &ask(3, false, u32::MAX)), evicts(2));
        assert_eq!(decide(&places, &full, &ask(1, false, u32::MAX)), evicts(2));
        let young = places.map(|place| match place.standing {
            Standing::Silent(ms) => Place { standing: Standing::Silent(ms.min(YIELD_MS - 1)), ..place },
            _ => place,
        });
        assert_eq!(
            decide(&young, &full, &ask(3, false, u32::MAX)),
            Verdict::Wait(Resource::Handshake),
            "each has its time"
        );
    }

    #[test]
    fn who_waits_for_us_stays_and_who_was_refused_goes_first() {
        let mut places: Vec<_> = (0..4).map(|at| plain(at, 1, Standing::Kept)).collect();
        assert_eq!(
            decide(&places, &rooms(0, 4), &ask(2, false, u32::MAX)),
            Verdict::Wait(Resource::Handshake)
        );
        places[3].standing = Standing::Delayed { ms: 600, is_suspect: false };
        assert_eq!(decide(&places, &rooms(0, 4), &ask(2, false, u32::MAX)), evicts(3));
        assert_eq!(
            decide(&places, &rooms(0, 4), &ask(1, false, u32::MAX)),
            Verdict::Wait(Resource::Handshake)
        );
        places[2].standing = Standing::Over;
        for newcomer in [1, 2] {
            assert_eq!(decide(&places, &rooms(0, 4), &ask(newcomer, false, u32::MAX)), evicts(2));
        }
    }

    #[test]
    fn among_equals_the_older_half_is_left_alone_for_seconds() {
        let places = |ages: [u64; 4]| [0, 1, 2, 3].map(|at| plain(at, at as u8, Standing::Silent(ages[at])));
        let decide = |ages| decide(&places(ages), &rooms(0, 4), &ask(9, false, u32::MAX));
        assert_eq!(decide([4_000, 3_000, 2_000, 1_000]), evicts(2));
        assert_eq!(decide([4_000, 3_000, 200, 100]), Verdict::Wait(Resource::Handshake));
        assert_eq!(decide([700; 4]), evicts(3), "also when they came at once");
        assert_eq!(decide([5_000, 3_000, 200, 100]), evicts(0));
        // Nobody who has wasted a place takes that of one who has not.
        let mut two = [plain(0, 1, Standing::Silent(900)), plain(1, 2, Standing::Silent(800))];
        two[1].is_unspent = true;
        let full = rooms(0, 2);
        assert_eq!(super::decide(&two, &full, &ask(3, false, u32::MAX)), Verdict::Wait(Resource::Handshake));
        let first = Request { is_unspent: true, ..ask(3, false, u32::MAX) };
        assert_eq!(super::decide(&two, &full, &first), evicts(1));
    }

    #[test]
    fn who_comes_for_the_first_time_does_not_wait_for_those_that_guess() {
        let waits = |ms| Standing::Delayed { ms, is_suspect: true };
        let places: Vec<_> = (0..8).map(|at| plain(at, at as u8, waits(100 + at as u64))).collect();
        let full = rooms(0, 8);
        let again = ask(9, false, u32::MAX);
        assert_eq!(decide(&places, &full, &again), Verdict::Wait(Resource::Handshake));
        assert_eq!(decide(&places, &full, &Request { is_unspent: true, ..again }), evicts(7));
    }

    #[test]
    fn the_last_place_is_for_who_has_logged_in_lately() {
        let stranger = ask(9, false, u32::MAX);
        let known = Request { is_proven: true, ..stranger };
        let places: Vec<_> = (0..7).map(|at| plain(at, at as u8, Standing::Kept)).collect();
        assert_eq!(decide(&places, &rooms(1, 8), &stranger), Verdict::Wait(Resource::Handshake));
        assert_eq!(decide(&places, &rooms(1, 8), &known), Verdict::Admit);
        assert_eq!(decide(&places[..3], &rooms(1, 4), &stranger), Verdict::Admit, "of few none is kept");
    }

    #[test]
    fn over_tls_the_scarcest_decides_and_nobody_is_evicted_in_vain() {
        let places = [
            place(0, 1, Resource::TlsHandshake, Standing::Silent(700)),
            place(1, 2, Resource::TlsConnection, Standing::Silent(900)),
            place(2, 2, Resource::TlsConnection, Standing::Silent(800)),
        ];
        let mut rooms = rooms(5, 8);
        rooms.tls_handshakes = Room { free: 0, max: 1 };
        assert_eq!(decide(&places, &rooms, &ask(3, true, u32::MAX)), evicts(0));
        assert_eq!(decide(&places, &rooms, &ask(3, false, u32::MAX)), Verdict::Admit);
        rooms.tls_handshakes.free = 1;
        rooms.tls_connections.free = 0;
        assert_eq!(decide(&places, &rooms, &ask(3, true, u32::MAX)), evicts(1));
        rooms.tls_handshakes.free = 0;
        rooms.handshakes = Room { free: 0, max: 2 };
        assert_eq!(
            decide(&places[..1], &rooms, &ask(1, true, u32::MAX)),
            Verdict::Wait(Resource::TlsHandshake)
        );
    }

    /// Its share of handshakes is used up by plain ones, and the one place for TLS is another's.
    #[test]
    fn who_needs_two_places_takes_both_and_keeps_to_its_half() {
        let silent = |at: usize| Standing::Silent(9_000 - at as u64);
        let mut places: Vec<_> = (0..2).map(|at| plain(at, 1, silent(at))).collect();
        places.extend((2..5).map(|at| place(at, 2, Resource::TlsHandshake, silent(at))));
        let mut rooms = rooms(0, 4);
        (rooms.tls_handshakes, rooms.tls_connections) = (Room { free: 0, max: 3 }, Room { free: 5, max: 8 });
        let decided = decide(&places, &rooms, &ask(1, true, u32::MAX));
        let [other, own] = [2, 0].map(ConnectionId::from_index);
        assert_eq!(decided, Verdict::Evict(other, Some(own)));
        places[0].standing = Standing::Kept;
        places[1].standing = Standing::Kept;
        let decided = decide(&places, &rooms, &ask(1, true, u32::MAX));
        assert_eq!(decided, Verdict::Wait(Resource::Handshake), "and nobody is evicted in vain");
    }

    /// The same in the obvious way.
    fn is_of_younger_half(places: &[Place], newcomer: Source, place: &Place) -> bool {
        let keys = places.iter().filter(|other| other.source != newcomer).filter_map(age_key);
        let older = keys.clone().filter(|key| Some(*key) > age_key(place)).count();
        older >= keys.count() / 2
    }

    #[test]
    fn the_younger_half_is_the_same_however_it_is_found() {
        let mut state = 1_u64;
        let mut below = |bound: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % bound
        };
        for _ in 0..2_000 {
            // Each of an address of its own, so all are equals.
            let count = 1 + below(12) as usize;
            let places: Vec<_> =
                (0..count).map(|at| plain(at, at as u8, Standing::Silent(400 + below(6) * 50))).collect();
            let full = rooms(0, count as u32 + 2);
            let oldest = |place: &&Place| age_key(place).map(|(ms, _)| ms);
            let young = places.iter().filter(|place| is_of_younger_half(&places, source(99), place));
            let most =
                young.filter(|place| oldest(place) >= Some(YIELD_MS)).map(|place| oldest(&place)).max();
            match decide(&places, &full, &ask(99, false, u32::MAX)) {
                Verdict::Evict(id, None) => assert_eq!(oldest(&&places[id.index()]), most.flatten()),
                verdict => {
                    assert_eq!((verdict, most), (Verdict::Wait(Resource::Handshake), None));
                }
            }
        }
    }
}
