//! Logins that wait for the check of their password, and the limit on failed logins.
//!
//! A check is deliberately slow: 80 ms on a Raspberry Pi Zero. The worker thread makes one check at a time.
//! Each address has a token bucket for wrong passwords: 10 at once, then 10 per second; fewer if a check takes
//! more than 25 ms. Logins from an address without tokens wait. A correct password costs no token.
//!
//! # Invariants
//! - The next check is that of the oldest login from the address with the most tokens.
//! - The last [`WRONG_KEPT`] wrong passwords are stored as digests. If one of them is sent again for the same
//!   user, it is refused without a check.
//! - Logins of users that do not exist take the same steps as others.
//! - Every table has a fixed size.

use std::collections::VecDeque;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

use leveret_core::password::{PASSWORD_BYTES_MAX, PasswordCheck};
use leveret_core::time::{Deadline, Now};
use leveret_core::token_bucket::{NS_PER_MS, TokenBucket};

use super::peer::PeerId;
use super::peer::{PeerAddress, PeerOrigin};

/// Maximum number of addresses with a stored bucket. When another is needed, the bucket with the most tokens
/// is removed.
const ADDRESSES_KEPT: usize = 128;
/// Number of wrong passwords that are refused without a check.
const WRONG_KEPT: usize = 64;
/// Number of wrong passwords of one address that are checked without a delay, if a check takes at most 25 ms.
const BURST: u64 = 10;
/// Minimum cost of a wrong password, in nanoseconds of refill: the time until its address may send one more.
const TOKEN_NS: u64 = 100 * NS_PER_MS;
/// A wrong password costs this multiple of the time that its check took, at most the whole bucket. In the long
/// run one address therefore uses at most a quarter of a processor core while a check takes at most 250 ms.
const WAIT_PER_CHECK_TIME: u64 = 4;
const BUCKET_CAPACITY_NS: u64 = BURST * TOKEN_NS;

/// Bytes of memory of a waiting login.
pub(super) const LOGIN_BYTES: usize = size_of::<Login>() + size_of::<PasswordCheck>() + PASSWORD_BYTES_MAX;
/// Bytes of memory of the tables of addresses and of wrong passwords.
pub(super) const TABLES_BYTES: usize =
    ADDRESSES_KEPT * size_of::<(PeerOrigin, TokenBucket)>() + WRONG_KEPT * size_of::<u64>();

/// A login that waits for the check of its password.
#[derive(Debug)]
pub struct Login {
    pub(super) peer: PeerId,
    pub(super) from: PeerAddress,
    /// Ticket of the job; see `WaitReason::PasswordCheck`. It distinguishes the peer from a later one with the
    /// same id.
    pub(super) ticket: u64,
    pub(super) check: Box<PasswordCheck>,
}

/// The waiting logins, the token buckets of addresses, and the last wrong passwords.
#[derive(Debug)]
pub(super) struct PasswordChecks {
    /// The waiting logins in the order of their arrival; at most one per peer.
    queue: VecDeque<Login>,
    /// The token buckets of addresses that sent a wrong password. Other addresses have a full bucket.
    buckets: Vec<(PeerOrigin, TokenBucket)>,
    /// Digests of the last wrong passwords: keyed hashes of the user name, the password and the user's
    /// password hash.
    wrong: VecDeque<u64>,
    keys: RandomState,
}

impl PasswordChecks {
    /// Creates an empty queue with capacity for `logins_max` logins.
    pub(super) fn new(logins_max: usize) -> Self {
        Self {
            queue: VecDeque::with_capacity(logins_max),
            buckets: Vec::with_capacity(ADDRESSES_KEPT),
            wrong: VecDeque::with_capacity(WRONG_KEPT),
            keys: RandomState::new(),
        }
    }

    /// Returns whether this password is one of the last wrong ones for this user, and the user's password was
    /// not changed since.
    pub(super) fn is_known_wrong(&self, check: &PasswordCheck) -> bool {
        self.wrong.contains(&self.digest(check))
    }

    /// Appends a login.
    pub(super) fn push(&mut self, login: Login) {
        self.queue.push_back(login);
    }

    /// Removes and returns the login whose password is checked next; `None` if none may be checked now.
    pub(super) fn next(&mut self, now: Now) -> Option<Login> {
        let ready = self.queue.iter().enumerate().filter(|(_, login)| self.due(login).is_due(now));
        // Buckets are ordered by when they are full, so the smallest has the most tokens.
        let (at, _) = ready.min_by_key(|(at, login)| (self.bucket(login.from.origin()), *at))?;
        self.queue.remove(at)
    }

    /// Returns when the next password can be checked.
    pub(super) fn deadline(&self) -> Deadline {
        self.queue.iter().map(|login| self.due(login)).min().unwrap_or(Deadline::NEVER)
    }

    /// Returns whether the next password from an address can be checked now.
    pub(super) fn has_tokens(&self, now: Now, origin: PeerOrigin) -> bool {
        self.bucket(origin).has(now, TOKEN_NS, BUCKET_CAPACITY_NS)
    }

    /// Notes a wrong password, whose check took `check_ms` milliseconds.
    pub(super) fn note_wrong(&mut self, now: Now, login: &Login, check_ms: u64) {
        let digest = self.digest(&login.check);
        if self.wrong.len() == WRONG_KEPT {
            self.wrong.pop_front();
        }
        self.wrong.push_back(digest);
        let origin = login.from.origin();
        let cost_ns =
            (check_ms.saturating_mul(WAIT_PER_CHECK_TIME * NS_PER_MS)).clamp(TOKEN_NS, BUCKET_CAPACITY_NS);
        if let Some((_, bucket)) = self.buckets.iter_mut().find(|(other, _)| *other == origin) {
            return bucket.take(now, cost_ns);
        }
        if self.buckets.len() == ADDRESSES_KEPT {
            // Buckets are ordered by when they are full, so the smallest has the most tokens.
            let fullest = self.buckets.iter().enumerate().min_by_key(|(_, (_, bucket))| *bucket);
            fullest.map(|(at, _)| at).map(|at| self.buckets.swap_remove(at));
        }
        let mut bucket = TokenBucket::default();
        bucket.take(now, cost_ns);
        self.buckets.push((origin, bucket));
    }

    /// Removes the login of a closed peer, if there is one.
    pub(super) fn remove(&mut self, peer: PeerId) {
        self.queue.retain(|login| login.peer != peer);
    }

    fn due(&self, login: &Login) -> Deadline {
        self.bucket(login.from.origin()).due(TOKEN_NS, BUCKET_CAPACITY_NS)
    }

    fn bucket(&self, origin: PeerOrigin) -> TokenBucket {
        let found = self.buckets.iter().find(|(other, _)| *other == origin);
        found.map_or_else(TokenBucket::default, |(_, bucket)| *bucket)
    }

    fn digest(&self, check: &PasswordCheck) -> u64 {
        self.keys.hash_one((check.user(), check.password(), &check.hash().to_bytes()[..]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use leveret_core::command::{ConnectionId, Name};
    use leveret_core::password::PasswordHash;

    fn check(user: &str, password: &str) -> Box<PasswordCheck> {
        let user = Name::try_from(user).unwrap();
        Box::new(PasswordCheck::new(user, password.as_bytes(), PasswordHash::NoPassword, false))
    }

    fn push(checks: &mut PasswordChecks, index: usize, last: u8) {
        let peer = ConnectionId::from_index(index).into();
        let from = PeerAddress::Network(([192, 0, 2, last], 7).into());
        checks.push(Login { peer, from, ticket: 0, check: check("u", &index.to_string()) });
    }

    /// Makes the checks that can be made at `now`. Each finds a wrong password after `check_ms`.
    fn run_wrong(checks: &mut PasswordChecks, now: Now, check_ms: u64) -> Vec<usize> {
        let logins = core::iter::from_fn(|| {
            let login = checks.next(now)?;
            checks.note_wrong(now, &login, check_ms);
            Some(login.peer.connection().unwrap().index())
        });
        logins.collect()
    }

    #[test]
    fn right_passwords_cost_nothing_and_wrong_ones_a_token_each() {
        let (mut checks, now) = (PasswordChecks::new(64), Now::from_ms(5_000));
        (0..40).for_each(|index| push(&mut checks, index, 1));
        assert_eq!(core::iter::from_fn(|| checks.next(now)).count(), 40);
        (0..40).for_each(|index| push(&mut checks, index, 1));
        assert_eq!(run_wrong(&mut checks, now, 0), (0..10).collect::<Vec<_>>());
        let origin = PeerAddress::Network(([192, 0, 2, 1], 9).into()).origin();
        assert!(!checks.has_tokens(now, origin));
        assert_eq!(checks.deadline(), now.after_ms(100));
        assert_eq!(run_wrong(&mut checks, Now::from_ms(5_100), 0), [10]);
    }

    #[test]
    fn an_address_without_tokens_delays_no_other() {
        let (mut checks, now) = (PasswordChecks::new(64), Now::from_ms(0));
        (0..20).for_each(|index| push(&mut checks, index, 1));
        run_wrong(&mut checks, now, 0);
        push(&mut checks, 50, 2);
        assert_eq!(checks.next(now).map(|login| login.peer.connection().unwrap().index()), Some(50));
        // The address without wrong passwords also goes first while the other has tokens.
        let later = Now::from_ms(5_000);
        push(&mut checks, 51, 2);
        assert_eq!(checks.next(later).map(|login| login.peer.connection().unwrap().index()), Some(51));
    }

    #[test]
    fn slow_checks_of_wrong_passwords_take_a_quarter_of_the_time() {
        let mut checks = PasswordChecks::new(1_000);
        (0..1_000).for_each(|index| push(&mut checks, index, 1));
        let count: usize =
            (0..20_000).step_by(80).map(|ms| run_wrong(&mut checks, Now::from_ms(ms), 80).len()).sum();
        assert!((60..=67).contains(&count), "{count} checks of 80 ms in 20 s");
    }

    #[test]
    fn a_wrong_password_is_checked_once() {
        let (mut checks, now) = (PasswordChecks::new(8), Now::from_ms(0));
        push(&mut checks, 5, 1);
        run_wrong(&mut checks, now, 0);
        assert!(checks.is_known_wrong(&check("u", "5")));
        assert!(!checks.is_known_wrong(&check("u", "6")));
        assert!(!checks.is_known_wrong(&check("u5", "")));
        let hash = PasswordHash::RabbitSha256 { salt: [1; 4], digest: [2; 32] };
        let changed = PasswordCheck::new(Name::try_from("u").unwrap(), b"5", hash, false);
        assert!(!checks.is_known_wrong(&changed), "the password of the user was changed");
    }

    #[test]
    fn the_tables_have_a_fixed_size_and_forget_the_address_with_most_tokens() {
        let (mut checks, now) = (PasswordChecks::new(64), Now::from_ms(0));
        (0..10).for_each(|index| push(&mut checks, index, 255));
        run_wrong(&mut checks, now, 0);
        for last in 0..200 {
            push(&mut checks, 20, last);
            run_wrong(&mut checks, now, 0);
        }
        assert_eq!((checks.buckets.len(), checks.wrong.len()), (ADDRESSES_KEPT, WRONG_KEPT));
        let busiest = PeerAddress::Network(([192, 0, 2, 255], 9).into()).origin();
        assert!(!checks.has_tokens(now, busiest));
    }
}
