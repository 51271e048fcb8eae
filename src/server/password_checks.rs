//! Logins that wait for the check of their password, and the limit on failed logins.
//!
//! A check is slow on purpose: 80 ms on a Raspberry Pi Zero. The worker thread makes one at a time. Each address has
//! a token bucket for wrong passwords: 10 at once, then 10 per second, and fewer where a check takes long. Logins of
//! an address without tokens wait. A right password costs no token.
//!
//! # Invariants
//! - The address with the most tokens has the next check, and of its logins the oldest.
//! - If one of the last [`WRONG_KEPT`] wrong passwords is sent again for its user, it is refused without a check.
//! - Whether a user exists makes no difference here.
//! - Every table has a fixed size.

use std::collections::VecDeque;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

use leveret_core::password::{PASSWORD_BYTES_MAX, PasswordCheck};
use leveret_core::time::{Deadline, Now};
use leveret_core::token_bucket::{NS_PER_MS, TokenBucket};

use super::peer::PeerId;
use super::peer::{PeerAddress, Source};

/// Maximum number of addresses with a bucket. When there are more, the one with the most tokens is removed.
const ADDRESSES_KEPT: usize = 128;
/// Number of wrong passwords that are refused without a check.
const WRONG_KEPT: usize = 64;
/// Number of wrong passwords of one address that are checked without a delay.
const BURST: u64 = 10;
/// Time until an address may send one more wrong password, in nanoseconds.
const TOKEN_NS: u64 = 100 * NS_PER_MS;
/// After a wrong password whose check took `t` ms, its address waits at least this many times `t` ms. One address
/// therefore takes at most a fifth of a processor core.
const REST_TIMES: u64 = 4;
const CAPACITY_NS: u64 = BURST * TOKEN_NS;

/// Bytes of one login that waits.
pub(super) const LOGIN_BYTES: usize = size_of::<Login>() + size_of::<PasswordCheck>() + PASSWORD_BYTES_MAX;
/// Bytes of the tables of addresses and wrong passwords.
pub(super) const TABLES_BYTES: usize =
    ADDRESSES_KEPT * size_of::<(Source, TokenBucket)>() + WRONG_KEPT * size_of::<u64>();

/// A login that waits.
#[derive(Debug)]
pub struct Login {
    pub(super) peer: PeerId,
    pub(super) from: PeerAddress,
    /// Distinguishes the peer from a later one with the same id.
    pub(super) ticket: u64,
    pub(super) check: Box<PasswordCheck>,
}

/// The queue of logins, and the last wrong passwords.
#[derive(Debug)]
pub(super) struct PasswordChecks {
    /// In the order of arrival, at most one per peer.
    queue: VecDeque<Login>,
    /// Addresses that have sent a wrong password.
    buckets: Vec<(Source, TokenBucket)>,
    /// Keyed hashes of user, password and the password hash that it was compared with.
    wrong: VecDeque<u64>,
    keys: RandomState,
}

impl PasswordChecks {
    /// Makes an empty queue for `logins_max` peers.
    pub(super) fn new(logins_max: usize) -> Self {
        Self {
            queue: VecDeque::with_capacity(logins_max),
            buckets: Vec::with_capacity(ADDRESSES_KEPT),
            wrong: VecDeque::with_capacity(WRONG_KEPT),
            keys: RandomState::new(),
        }
    }

    /// Returns whether this password is one of the last wrong ones, compared with the same hash of the same user.
    pub(super) fn is_known_wrong(&self, check: &PasswordCheck) -> bool {
        self.wrong.contains(&self.digest(check))
    }

    /// Appends a login.
    pub(super) fn push(&mut self, login: Login) {
        self.queue.push_back(login);
    }

    /// Takes the login to check next.
    pub(super) fn next(&mut self, now: Now) -> Option<Login> {
        let ready = self.queue.iter().enumerate().filter(|(_, login)| self.due(login).is_due(now));
        let (at, _) = ready.min_by_key(|(at, login)| (self.bucket(login.from.origin()), *at))?;
        self.queue.remove(at)
    }

    /// Returns when the next login can be checked.
    pub(super) fn deadline(&self) -> Deadline {
        self.queue.iter().map(|login| self.due(login)).min().unwrap_or(Deadline::NEVER)
    }

    /// Returns whether an address may have another password checked now.
    pub(super) fn has_tokens(&self, now: Now, source: Source) -> bool {
        self.bucket(source).has(now, TOKEN_NS, CAPACITY_NS)
    }

    /// Records that a password was wrong, and how long its check took.
    pub(super) fn note_wrong(&mut self, now: Now, login: &Login, check_ms: u64) {
        let digest = self.digest(&login.check);
        if self.wrong.len() == WRONG_KEPT {
            self.wrong.pop_front();
        }
        self.wrong.push_back(digest);
        let source = login.from.origin();
        let cost_ns = (check_ms.saturating_mul(REST_TIMES * NS_PER_MS)).clamp(TOKEN_NS, CAPACITY_NS);
        if let Some((_, bucket)) = self.buckets.iter_mut().find(|(other, _)| *other == source) {
            return bucket.take(now, cost_ns);
        }
        if self.buckets.len() == ADDRESSES_KEPT {
            let fullest = self.buckets.iter().enumerate().min_by_key(|(_, (_, bucket))| *bucket);
            fullest.map(|(at, _)| at).map(|at| self.buckets.swap_remove(at));
        }
        let mut bucket = TokenBucket::default();
        bucket.take(now, cost_ns);
        self.buckets.push((source, bucket));
    }

    /// Removes the login of a closed peer.
    pub(super) fn remove(&mut self, peer: PeerId) {
        self.queue.retain(|login| login.peer != peer);
    }

    fn due(&self, login: &Login) -> Deadline {
        self.bucket(login.from.origin()).due(TOKEN_NS, CAPACITY_NS)
    }

    fn bucket(&self, source: Source) -> TokenBucket {
        let found = self.buckets.iter().find(|(other, _)| *other == source);
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
        let source = PeerAddress::Network(([192, 0, 2, 1], 9).into()).origin();
        assert!(!checks.has_tokens(now, source));
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
    fn slow_checks_of_wrong_passwords_take_a_fifth_of_the_time() {
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
