//! Logins that wait for their password to be checked, and how many may be wrong.
//!
//! Why it exists: a check takes long on purpose (80 ms of a Pi Zero), so whoever sends wrong passwords could
//! keep the thread that makes them busy for ever, or use up what an honest neighbour at the same address is
//! allowed. Token buckets bound the wrong ones; a right one takes no token.
//!
//! ```text
//! (address, user) that logged in lately ── a bucket of its own ──────────────────────┐
//! all else of an address ── one bucket; who failed lately only gets its upper half ──┼→ turns → one check
//! all that is not proven, together ── one more bucket ───────────────────────────────┘
//! ```
//!
//! Always true: a login waits here until its check begins or its connection is gone; buckets take turns, so
//! nobody waits for another address but for one check of each; within a bucket those come first whose user
//! did not fail lately, mostly the oldest and now and then the newest, so neither a standing crowd nor a
//! stream of newcomers keeps anybody out for ever; a password that was wrong a moment ago is not checked
//! again; every table has a fixed size; whether there is a user of a name makes no difference here.

use std::collections::VecDeque;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

use crate::password::{PASSWORD_BYTES_MAX, PasswordCheck};
use crate::time::{Deadline, Now};
use crate::token_bucket::{NS_PER_MS, TokenBucket};

use super::address::{PeerAddress, Source};
use super::peer_id::PeerId;

/// Buckets kept beside those that somebody waits in.
const BUCKETS_KEPT: usize = 128;
/// Pairs of address and user that failed lately, and passwords that were wrong lately.
const FAILURES_KEPT: usize = 64;
/// Wrong passwords of one bucket: `burst` at once, one each `refill_ms` for ever; after a check of t ms the bucket rests
/// `rest_times` × t ms, so that on a small board all of an address take a quarter of its processor.
const WRONG: Rate = Rate { burst: 10, refill_ms: 100, rest_times: 4 };
/// Wrong passwords of all addresses together, but for users who have logged in from theirs lately.
const UNPROVEN: Rate = Rate { burst: 20, refill_ms: 50, rest_times: 2 };
/// Tokens that must be left for who failed lately: the rest is kept for its neighbours.
const SUSPECT_TOKENS: u32 = WRONG.burst / 2;
/// One in so many checks is the newest login's of its bucket, the others its oldest's.
const NEWEST_EACH: u64 = 4;
/// A failure is forgotten after this time.
const FORGET_MS: u64 = 60_000;

/// What one waiting login takes, its bucket included.
pub(super) const LOGIN_BYTES: usize =
    size_of::<Login>() + size_of::<PasswordCheck>() + PASSWORD_BYTES_MAX + size_of::<Bucket>();
/// What the tables take whoever waits.
pub(super) const TABLES_BYTES: usize =
    BUCKETS_KEPT * size_of::<Bucket>() + FAILURES_KEPT * (size_of::<Suspect>() + size_of::<u64>());

/// A login that waits.
#[derive(Debug)]
pub struct Login {
    pub(super) peer: PeerId,
    pub(super) from: PeerAddress,
    /// The peer's id may be another's by the time of the result; this is not.
    pub(super) ticket: u64,
    pub(super) check: Box<PasswordCheck>,
    pair: Pair,
    bucket: usize,
    /// The pair of address and user failed lately.
    is_suspect: bool,
}

/// An address and a user, as a keyed hash: nobody outside can make two of them meet.
type Pair = u64;

/// What buckets of a kind give: so many tokens at once, one more after each of so many milliseconds, and how many times
/// as long as a check took it rests after that.
#[derive(Clone, Copy, Debug)]
struct Rate {
    burst: u32,
    refill_ms: u64,
    rest_times: u32,
}

impl Rate {
    const fn cost_ns(self, tokens: u32) -> u64 {
        self.refill_ms * NS_PER_MS * tokens as u64
    }

    /// When there are so many tokens in a bucket of this kind.
    const fn due(self, bucket: TokenBucket, tokens: u32) -> Deadline {
        bucket.due(self.cost_ns(tokens), self.cost_ns(self.burst))
    }

    /// Takes what a check costs that took so long: one token at least, and all at most.
    fn take(self, bucket: &mut TokenBucket, now: Now, check_ms: u64) {
        let rest_ns = check_ms.saturating_mul(self.rest_times.into()).saturating_mul(NS_PER_MS);
        bucket.take(now, rest_ns.clamp(self.cost_ns(1), self.cost_ns(self.burst)));
    }
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    source: Source,
    /// `None`: of all at this address that have none of their own.
    pair: Option<Pair>,
    tokens: TokenBucket,
    /// Logins in it that wait or are being checked.
    waiting: u32,
    /// The number of its last check.
    served: u64,
    used: Now,
}

#[derive(Clone, Copy, Debug)]
struct Suspect {
    pair: Pair,
    failed: Now,
}

/// How a login in the line stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Turn {
    /// The login waits for nothing but its turn.
    Next,
    /// The login waits because its address failed too often.
    Delayed {
        /// The login's own user failed from that address.
        is_suspect: bool,
    },
}

/// What logins from an address came to lately.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Reputation {
    /// So many passwords of the address were wrong that what it sends now must wait.
    pub(super) is_exhausted: bool,
    /// One was right.
    pub(super) is_proven: bool,
}

/// Logins that wait, and the tables.
#[derive(Debug)]
pub(super) struct LoginThrottle {
    line: VecDeque<Login>,
    buckets: Vec<Bucket>,
    buckets_max: usize,
    unproven: TokenBucket,
    suspects: VecDeque<Suspect>,
    /// Keyed hashes of user, password and what that was compared with.
    wrong: VecDeque<u64>,
    keys: RandomState,
    checks: u64,
}

impl LoginThrottle {
    /// With room for as many logins as there are handshakes.
    pub(super) fn new(handshakes_max: usize) -> Self {
        let buckets_max = handshakes_max + BUCKETS_KEPT;
        Self {
            line: VecDeque::with_capacity(handshakes_max),
            buckets: Vec::with_capacity(buckets_max),
            buckets_max,
            unproven: TokenBucket::default(),
            suspects: VecDeque::with_capacity(FAILURES_KEPT),
            wrong: VecDeque::with_capacity(FAILURES_KEPT),
            keys: RandomState::new(),
            checks: 0,
        }
    }

    /// Whether this very password was wrong for this user a moment ago, and cannot have become right since.
    pub(super) fn is_known_wrong(&self, check: &PasswordCheck) -> bool {
        self.wrong.contains(&self.digest(check))
    }

    /// Puts a login into the line.
    pub(super) fn enter(
        &mut self,
        now: Now,
        peer: impl Into<PeerId>,
        ticket: u64,
        from: PeerAddress,
        check: Box<PasswordCheck>,
    ) {
        let pair = self.pair(from.origin(), check.user());
        let is_suspect = self.is_suspect(now, pair);
        let own = self.find(from.origin(), Some(pair));
        let bucket = own.unwrap_or_else(|| self.bucket(now, from.origin(), None));
        self.buckets[bucket].waiting += 1;
        self.buckets[bucket].used = now;
        self.line.push_back(Login { peer: peer.into(), from, ticket, check, pair, bucket, is_suspect });
    }

    /// The login to check next.
    pub(super) fn next(&mut self, now: Now) -> Option<Login> {
        let newest = self.checks.is_multiple_of(NEWEST_EACH);
        let ready = self.line.iter().enumerate().filter(|(_, login)| self.due(login).is_due(now));
        let order = |at: usize| if newest { usize::MAX - at } else { at };
        let next =
            ready.min_by_key(|(at, login)| (self.buckets[login.bucket].served, login.is_suspect, order(*at)));
        let (at, login) = next?;
        let bucket = login.bucket;
        self.checks += 1;
        self.buckets[bucket].served = self.checks;
        self.line.remove(at)
    }

    /// Whether somebody can be checked now.
    pub(super) fn has_next(&self, now: Now) -> bool {
        self.line.iter().any(|login| self.due(login).is_due(now))
    }

    /// When somebody can be checked who has to wait until then.
    pub(super) fn deadline(&self) -> Deadline {
        self.line.iter().map(|login| self.due(login)).min().unwrap_or(Deadline::NEVER)
    }

    /// When the buckets let a login be checked.
    fn due(&self, login: &Login) -> Deadline {
        let bucket = &self.buckets[login.bucket];
        let own = WRONG.due(bucket.tokens, if login.is_suspect { SUSPECT_TOKENS } else { 1 });
        if bucket.pair.is_some() { own } else { own.max(UNPROVEN.due(self.unproven, 1)) }
    }

    /// How the login of a peer stands that waits for one.
    pub(super) fn turn(&self, now: Now, peer: impl Into<PeerId>) -> Turn {
        let peer = peer.into();
        match self.line.iter().find(|login| login.peer == peer) {
            Some(login) if !self.due(login).is_due(now) => Turn::Delayed { is_suspect: login.is_suspect },
            _ => Turn::Next,
        }
    }

    /// Whether an address has sent so many wrong passwords that what it sends now must wait.
    pub(super) fn is_exhausted(&self, now: Now, source: Source) -> bool {
        let bucket = self.find(source, None);
        bucket.is_some_and(|at| !WRONG.due(self.buckets[at].tokens, 1).is_due(now))
    }

    /// What is known of an address.
    pub(super) fn reputation(&self, now: Now, source: Source) -> Reputation {
        let is_proven = self.buckets.iter().any(|bucket| bucket.source == source && bucket.pair.is_some());
        Reputation { is_exhausted: self.is_exhausted(now, source), is_proven }
    }

    /// Takes the result of a check that took so long.
    pub(super) fn finish(&mut self, now: Now, login: &Login, is_right: bool, check_ms: u64) {
        let bucket = &mut self.buckets[login.bucket];
        bucket.waiting -= 1;
        if is_right {
            return self.prove(now, login.from.origin(), login.check.user());
        }
        WRONG.take(&mut bucket.tokens, now, check_ms);
        if bucket.pair.is_none() {
            UNPROVEN.take(&mut self.unproven, now, check_ms);
        }
        let digest = self.digest(&login.check);
        push_bounded(&mut self.wrong, digest);
        self.suspects.retain(|suspect| suspect.pair != login.pair);
        push_bounded(&mut self.suspects, Suspect { pair: login.pair, failed: now });
        for other in self.line.iter_mut().filter(|other| other.pair == login.pair) {
            other.is_suspect = true;
        }
    }

    /// A user has logged in from here, whichever way its password was known to be right.
    pub(super) fn prove(&mut self, now: Now, source: Source, user: &str) {
        let pair = self.pair(source, user);
        self.suspects.retain(|suspect| suspect.pair != pair);
        let bucket = self.bucket(now, source, Some(pair));
        self.buckets[bucket].used = now;
    }

    /// A peer is gone.
    pub(super) fn leave(&mut self, peer: impl Into<PeerId>) {
        let peer = peer.into();
        if let Some(at) = self.line.iter().position(|login| login.peer == peer)
            && let Some(login) = self.line.remove(at)
        {
            self.buckets[login.bucket].waiting -= 1;
        }
    }

    fn is_suspect(&self, now: Now, pair: Pair) -> bool {
        self.suspects.iter().any(|suspect| suspect.pair == pair && now.ms_since(suspect.failed) < FORGET_MS)
    }

    fn pair(&self, source: Source, user: &str) -> Pair {
        self.keys.hash_one((source, user))
    }

    fn digest(&self, check: &PasswordCheck) -> u64 {
        self.keys.hash_one((check.user(), check.password(), &check.hash().to_bytes()[..]))
    }

    fn find(&self, source: Source, pair: Option<Pair>) -> Option<usize> {
        self.buckets.iter().position(|bucket| bucket.source == source && bucket.pair == pair)
    }

    /// A bucket that is there, or a new one instead of the one that is needed least: nothing is lost with a
    /// full one.
    fn bucket(&mut self, now: Now, source: Source, pair: Option<Pair>) -> usize {
        if let Some(at) = self.find(source, pair) {
            return at;
        }
        let tokens = TokenBucket::default();
        let fresh = Bucket { source, pair, tokens, waiting: 0, served: 0, used: now };
        if self.buckets.len() < self.buckets_max {
            self.buckets.push(fresh);
            return self.buckets.len() - 1;
        }
        // There are more buckets than logins can wait, so nobody waits in one of them.
        let idle = self.buckets.iter().enumerate().filter(|(_, bucket)| bucket.waiting == 0);
        let least = idle.min_by_key(|(_, bucket)| {
            let is_full = WRONG.due(bucket.tokens, WRONG.burst).is_due(now);
            (!is_full, bucket.pair.is_some(), bucket.used)
        });
        let Some((at, _)) = least else { panic!("more logins wait than there are buckets") };
        self.buckets[at] = fresh;
        at
    }
}

/// The oldest makes place.
fn push_bounded<T>(list: &mut VecDeque<T>, item: T) {
    if list.len() == FAILURES_KEPT {
        list.pop_front();
    }
    list.push_back(item);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{ConnectionId, Name};
    use crate::password::PasswordHash;

    fn check(user: &str, password: &str) -> Box<PasswordCheck> {
        let user = Name::try_from(user).unwrap();
        Box::new(PasswordCheck::new(user, password.as_bytes(), PasswordHash::Nobodys, false))
    }

    fn peer(last: u8) -> PeerAddress {
        PeerAddress::Network(([192, 0, 2, last], 7).into())
    }

    fn id(index: usize) -> ConnectionId {
        ConnectionId::from_index(index)
    }

    fn enter(throttle: &mut LoginThrottle, now: Now, index: usize, last: u8, user: &str) {
        throttle.enter(now, id(index), 0, peer(last), check(user, &index.to_string()));
    }

    /// Checks what can be checked at `now`, each in no time; the connections in order.
    fn run(throttle: &mut LoginThrottle, now: Now, is_right: impl Fn(&Login) -> bool) -> Vec<usize> {
        let mut order = Vec::new();
        while let Some(login) = throttle.next(now) {
            let is_right = is_right(&login);
            throttle.finish(now, &login, is_right, 0);
            order.push(login.peer.connection().expect("one of the broker").index());
        }
        order
    }

    #[test]
    fn addresses_take_turns() {
        let (mut throttle, now) = (LoginThrottle::new(8), Now::from_ms(0));
        for (index, last) in [1, 1, 1, 2, 3].into_iter().enumerate() {
            enter(&mut throttle, now, index, last, "u");
        }
        let order = run(&mut throttle, now, |_| true);
        assert!(order[..3].contains(&3) && order[..3].contains(&4), "one of each address first: {order:?}");
    }

    #[test]
    fn right_ones_cost_nothing_and_wrong_ones_a_token_each() {
        let (mut throttle, now) = (LoginThrottle::new(64), Now::from_ms(0));
        for index in 0..40 {
            enter(&mut throttle, now, index, 1, &format!("user-{index}"));
        }
        assert_eq!(run(&mut throttle, now, |_| true).len(), 40);
        for index in 0..40 {
            enter(&mut throttle, now, index, 2, &format!("user-{index}"));
        }
        assert_eq!(run(&mut throttle, now, |_| false).len(), WRONG.burst as usize);
        assert!(throttle.is_exhausted(now, peer(2).origin()) && !throttle.has_next(now));
        assert_eq!(throttle.turn(now, id(20)), Turn::Delayed { is_suspect: false });
        let later = Now::from_ms(throttle.deadline().ms_left(now).unwrap());
        assert_eq!(run(&mut throttle, later, |_| false).len(), 1);
        // A check that takes long on a slow board is followed by a rest.
        let login = throttle.next(Now::from_ms(1_000)).unwrap();
        throttle.finish(Now::from_ms(60_000), &login, false, 80);
        let mut checked = 0;
        for ms in (60_000..70_000).step_by(10) {
            while let Some(login) = throttle.next(Now::from_ms(ms)) {
                throttle.finish(Now::from_ms(ms), &login, false, 80);
                checked += 1;
            }
        }
        assert!(checked <= 29, "{checked} checks of 80 ms");
    }

    #[test]
    fn one_users_failures_leave_half_for_its_neighbours() {
        let (mut throttle, now) = (LoginThrottle::new(64), Now::from_ms(0));
        for index in 0..40 {
            enter(&mut throttle, now, index, 1, "meter");
        }
        let looked_at = run(&mut throttle, now, |_| false).len();
        assert_eq!(looked_at, 1 + (WRONG.burst - SUSPECT_TOKENS) as usize);
        enter(&mut throttle, now, 50, 1, "honest");
        assert_eq!(run(&mut throttle, now, |login| login.check.user() == "honest"), [50]);
    }

    #[test]
    fn a_proven_pair_does_not_wait_for_the_rest_of_its_address() {
        let (mut throttle, now) = (LoginThrottle::new(64), Now::from_ms(0));
        throttle.prove(now, peer(1).origin(), "known");
        for index in 0..30 {
            enter(&mut throttle, now, index, 1, &format!("name-{index}"));
            enter(&mut throttle, now, 100 + index, 2, &format!("name-{index}"));
        }
        run(&mut throttle, now, |_| false);
        enter(&mut throttle, now, 50, 1, "known");
        assert_eq!(run(&mut throttle, now, |_| true), [50]);
        // And what it does wrong is its own matter.
        for index in 60..90 {
            enter(&mut throttle, now, index, 1, "known");
        }
        let own = run(&mut throttle, now, |_| false).len();
        assert!(own <= WRONG.burst as usize, "{own}");
        assert!(throttle.has_next(Now::from_ms(60_000)));
    }

    #[test]
    fn among_names_without_end_a_first_login_has_its_turn() {
        let mut throttle = LoginThrottle::new(64);
        let mut now = Now::from_ms(0);
        for index in 0..20 {
            enter(&mut throttle, now, index, 1, &format!("name-{index}"));
        }
        run(&mut throttle, now, |_| false);
        enter(&mut throttle, now, 1_000, 1, "honest");
        let mut next = 100;
        let mut rounds = 0;
        loop {
            now = Now::from_ms(now.as_ms() + 100);
            let order = run(&mut throttle, now, |_| false);
            if order.contains(&1_000) {
                break;
            }
            // Each that was refused comes again, with another name.
            for _ in order {
                enter(&mut throttle, now, next, 1, &format!("name-{next}"));
                next += 1;
            }
            rounds += 1;
            assert!(rounds < 40, "it never has its turn");
        }
    }

    #[test]
    fn a_wrong_password_is_checked_once() {
        let (mut throttle, now) = (LoginThrottle::new(8), Now::from_ms(0));
        throttle.enter(now, id(0), 0, peer(1), check("meter", "old"));
        run(&mut throttle, now, |_| false);
        assert!(throttle.is_known_wrong(&check("meter", "old")));
        assert!(!throttle.is_known_wrong(&check("meter", "new")));
        assert!(!throttle.is_known_wrong(&check("metero", "ld")));
        let hash = PasswordHash::RabbitSha256 { salt: [1; 4], digest: [2; 32] };
        let changed = PasswordCheck::new(Name::try_from("meter").unwrap(), b"old", hash, false);
        assert!(!throttle.is_known_wrong(&changed), "its user's password is another by now");
    }

    #[test]
    fn the_tables_have_a_fixed_size_and_lose_no_bucket_that_is_waited_in() {
        let (mut throttle, now) = (LoginThrottle::new(4), Now::from_ms(0));
        enter(&mut throttle, now, 0, 255, "u");
        for round in 0..400_u64 {
            let now = Now::from_ms(round * 1_000);
            let source =
                Source::of(core::net::IpAddr::from([10, 0, (round / 200) as u8, (round % 200) as u8]));
            throttle.prove(now, source, "u");
        }
        assert_eq!(throttle.buckets.len(), 4 + BUCKETS_KEPT);
        let bucket = throttle.line[0].bucket;
        assert_eq!(throttle.buckets[bucket].source, peer(255).origin());
        throttle.leave(id(0));
        assert_eq!(throttle.buckets[bucket].waiting, 0);
    }
}
