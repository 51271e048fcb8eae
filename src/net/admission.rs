//! Who gets the next handshake place, and who has to give one up.
//!
//! Why it exists: anybody on the network can open sockets, and what a handshake takes is scarce: a board has
//! 8 to 512 places, over TLS 2 to 32. As sshd's MaxStartups and PerSourceMaxStartups, but with nothing left
//! to chance: one address has at most half, and when there is no place left, the address that holds most
//! gives one up, by the peer that has been silent longest.
//!
//! Always true: pure, no socket and no clock; who waits for us is never evicted for that, unless its address
//! is made to wait for its wrong passwords; a peer has [`YIELD_MS`] of its own before another address can
//! take its place, and [`PATIENCE_MS`] against its own; the same against equals if it is of the older half of
//! the silent ones, so that a crowd of slow devices does not evict each other for ever, or if its address has
//! wasted no place yet and the other has; without anybody else wanting in, nobody is evicted.

use crate::command::ConnectionId;

use super::socket::Source;

/// So long a silent peer keeps its place when an address wants in that holds fewer, in its own time.
pub(super) const YIELD_MS: u64 = 500;
/// So long against its equals.
pub(super) const PATIENCE_MS: u64 = 5_000;
/// Places of an address that sends wrong passwords as fast as it may.
pub(super) const EXHAUSTED_PLACES: u32 = 8;

/// What a newcomer takes until it has logged in; each is contained in the one before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Resource {
    /// A connection and one of `handshakes_max`.
    Handshake,
    /// One of `tls_connections_max`.
    TlsConnection,
    /// One of `tls_handshakes_max`.
    TlsHandshake,
}

/// How the holder of a place stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Standing {
    /// It waits for us, or has logged in.
    Kept,
    /// It has not logged in, and so many milliseconds of that were its own.
    Silent(u64),
    /// Its login waits, so long already, because its address sent wrong passwords.
    Delayed {
        /// Milliseconds.
        ms: u64,
        /// And for this user.
        is_suspect: bool,
    },
    /// It was refused, or is being closed.
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
    /// It is no other place's successor: its address has had none lately that it made nothing of.
    pub(super) is_first: bool,
}

/// What a newcomer asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Request {
    pub(super) source: Source,
    pub(super) with_tls: bool,
    /// As that of a [`Place`].
    pub(super) is_first: bool,
    /// What its address may hold for other reasons than its share.
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
    /// It has a place.
    Admit,
    /// It has one when this connection is closed.
    Evict(ConnectionId),
    /// Not now.
    Wait,
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
    let mut verdict = Verdict::Admit;
    for resource in needed.into_iter().skip(if request.with_tls { 0 } else { 2 }) {
        let room = rooms.of(resource);
        let held = held(places, resource, request.source);
        let most = if resource == Resource::Handshake { request.places_max } else { u32::MAX };
        let victim = if held >= share(room.max).min(most) {
            own_victim(places, resource, request.source)
        } else if room.free == 0 {
            victim_of_others(places, resource, request, held)
        } else {
            continue;
        };
        match victim {
            None => return Verdict::Wait,
            Some(place) if verdict == Verdict::Admit => verdict = Verdict::Evict(place.connection),
            Some(_) => {}
        }
    }
    verdict
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
    let silent = others().filter(|place| matches!(place.standing, Standing::Silent(_))).count();
    let may_go = |place: &Place, held: u32| match place.standing {
        Standing::Kept => false,
        Standing::Over => true,
        _ if held <= held_own => false,
        Standing::Silent(ms) if held == held_own + 1 && ms < PATIENCE_MS => {
            if place.is_first && !request.is_first {
                return false;
            }
            let key = |place: &Place, ms: u64| (ms, core::cmp::Reverse(place.connection));
            let is_older = |other: &&Place| match other.standing {
                Standing::Silent(age) => key(other, age) > key(place, ms),
                _ => false,
            };
            ms >= YIELD_MS && others().filter(is_older).count() >= silent / 2
        }
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
        Source::of(std::net::IpAddr::from([192, 0, 2, last]))
    }

    fn place(index: usize, last: u8, takes: Resource, standing: Standing) -> Place {
        Place {
            connection: ConnectionId::from_index(index),
            source: source(last),
            takes,
            standing,
            is_first: false,
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
        Request { source: source(last), with_tls, is_first: false, places_max }
    }

    fn evicts(index: usize) -> Verdict {
        Verdict::Evict(ConnectionId::from_index(index))
    }

    #[test]
    fn one_address_has_at_most_half_and_who_is_alone_is_not_evicted() {
        let places: Vec<_> = (0..4).map(|at| plain(at, 1, Standing::Silent(4_000))).collect();
        assert_eq!(decide(&places[..3], &rooms(5, 8), &ask(1, false, u32::MAX)), Verdict::Admit);
        assert_eq!(decide(&places, &rooms(4, 8), &ask(1, false, u32::MAX)), Verdict::Wait);
        assert_eq!(decide(&places, &rooms(4, 8), &ask(2, false, u32::MAX)), Verdict::Admit);
        assert_eq!(decide(&places[..2], &rooms(6, 8), &ask(1, false, 2)), Verdict::Wait);
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
        assert_eq!(decide(&young, &full, &ask(3, false, u32::MAX)), Verdict::Wait, "each has its time");
    }

    #[test]
    fn who_waits_for_us_stays_and_who_was_refused_goes_first() {
        let mut places: Vec<_> = (0..4).map(|at| plain(at, 1, Standing::Kept)).collect();
        assert_eq!(decide(&places, &rooms(0, 4), &ask(2, false, u32::MAX)), Verdict::Wait);
        places[3].standing = Standing::Delayed { ms: 600, is_suspect: false };
        assert_eq!(decide(&places, &rooms(0, 4), &ask(2, false, u32::MAX)), evicts(3));
        assert_eq!(decide(&places, &rooms(0, 4), &ask(1, false, u32::MAX)), Verdict::Wait);
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
        assert_eq!(decide([4_000, 3_000, 200, 100]), Verdict::Wait);
        assert_eq!(decide([700; 4]), evicts(3), "also when they came at once");
        assert_eq!(decide([5_000, 3_000, 200, 100]), evicts(0));
        // Nobody who has wasted a place takes that of one who has not.
        let mut two = [plain(0, 1, Standing::Silent(900)), plain(1, 2, Standing::Silent(800))];
        two[1].is_first = true;
        let full = rooms(0, 2);
        assert_eq!(super::decide(&two, &full, &ask(3, false, u32::MAX)), Verdict::Wait);
        let first = Request { is_first: true, ..ask(3, false, u32::MAX) };
        assert_eq!(super::decide(&two, &full, &first), evicts(1));
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
        assert_eq!(decide(&places[..1], &rooms, &ask(1, true, u32::MAX)), Verdict::Wait);
    }
}
