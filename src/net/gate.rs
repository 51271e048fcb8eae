//! Logins that wait for their password to be checked.
//!
//! Why it exists: a check takes long on purpose, and one address could keep the thread that makes them busy
//! for ever. So addresses take turns, and one that failed waits the longer the more often it did. What always
//! holds: a login is in the line until its check begins or its connection is gone; nobody waits for another
//! address but for the one check under way and one of each other address; an address that keeps failing has
//! few places in the line, and the rest of its connections is closed, so that they are not in others' way.
//!
//! An address is an IPv4 address or the first half of an IPv6 one, for nobody has fewer.

use std::collections::VecDeque;
use std::net::IpAddr;

use crate::command::ConnectionId;
use crate::password::{PASSWORD_BYTES_MAX, PasswordCheck};
use crate::time::{Deadline, Now};

/// Addresses remembered beside those that wait.
const OFFENDERS: usize = 64;
/// How long an address waits after its first failure; twice as long after each further one.
const DELAY_MS: u64 = 100;
/// But no longer than this.
const DELAY_MS_MAX: u64 = 3_000;
/// An address that behaved for so long begins anew.
const FORGET_MS: u64 = 60_000;
/// From so many failures on an address has few places in the line.
const FAILURES_MANY: u32 = 4;
/// So few.
const PLACES_FEW: u32 = 4;

/// What one waiting login takes, its address included.
pub(super) const LOGIN_BYTES: usize =
    size_of::<Login>() + size_of::<PasswordCheck>() + PASSWORD_BYTES_MAX + size_of::<Address>();

/// A login in the line.
#[derive(Debug)]
pub(super) struct Login {
    pub(super) connection: ConnectionId,
    pub(super) from: IpAddr,
    /// The connection's id may be another's by the time of the result; this is not.
    pub(super) ticket: u64,
    pub(super) check: Box<PasswordCheck>,
    address: usize,
}

/// What is known of an address.
#[derive(Clone, Copy, Debug)]
struct Address {
    key: [u8; 8],
    /// Its logins in the line or under way.
    waiting: u32,
    /// The number of its last check.
    served: u64,
    failures: u32,
    failed: Now,
    not_before: Deadline,
}

/// The line.
#[derive(Debug)]
pub(super) struct Gate {
    line: VecDeque<Login>,
    addresses: Vec<Address>,
    addresses_max: usize,
    checks: u64,
}

impl Gate {
    /// With room for as many logins as there are handshakes.
    pub(super) fn new(handshakes_max: usize) -> Self {
        let addresses_max = handshakes_max + OFFENDERS;
        Self {
            line: VecDeque::with_capacity(handshakes_max),
            addresses: Vec::with_capacity(addresses_max),
            addresses_max,
            checks: 0,
        }
    }

    /// Puts a login into the line. `false`: its address failed too often to have another place.
    pub(super) fn enter(
        &mut self,
        now: Now,
        connection: ConnectionId,
        ticket: u64,
        from: IpAddr,
        check: Box<PasswordCheck>,
    ) -> bool {
        let address = self.find_address(now, key_of(from));
        let record = &mut self.addresses[address];
        if record.is_over() {
            return false;
        }
        record.waiting += 1;
        self.line.push_back(Login { connection, from, ticket, check, address });
        true
    }

    /// The login to check next: of the addresses that need not wait, that which was served longest ago.
    pub(super) fn next(&mut self, now: Now) -> Option<Login> {
        let waiting = self.line.iter().enumerate();
        let ready = waiting.filter(|(_, login)| self.addresses[login.address].not_before.is_due(now));
        let (at, login) = ready.min_by_key(|(_, login)| self.addresses[login.address].served)?;
        self.checks += 1;
        self.addresses[login.address].served = self.checks;
        self.line.remove(at)
    }

    /// Whether somebody can be checked now.
    pub(super) fn has_next(&self, now: Now) -> bool {
        self.line.iter().any(|login| self.addresses[login.address].not_before.is_due(now))
    }

    /// When somebody can be checked who has to wait until then.
    pub(super) fn deadline(&self) -> Deadline {
        let times = self.line.iter().map(|login| self.addresses[login.address].not_before);
        times.min().unwrap_or(Deadline::NEVER)
    }

    /// Takes the result of a check. `Some` after a failure: how many there were, and for how many
    /// milliseconds the address waits now.
    pub(super) fn checked(&mut self, now: Now, login: &Login, is_right: bool) -> Option<(u32, u64)> {
        let record = &mut self.addresses[login.address];
        record.waiting -= 1;
        if is_right {
            return None;
        }
        record.forget(now);
        let delay_ms = DELAY_MS.checked_shl(record.failures).map_or(DELAY_MS_MAX, |ms| ms.min(DELAY_MS_MAX));
        record.failures = (record.failures + 1).min(u32::BITS);
        record.failed = now;
        record.not_before = now.after_ms(delay_ms);
        Some((record.failures, delay_ms))
    }

    /// The last login in the line of an address that failed too often to have so many there.
    pub(super) fn turn_away(&mut self, like: &Login) -> Option<ConnectionId> {
        let record = &mut self.addresses[like.address];
        if record.failures < FAILURES_MANY || record.waiting <= PLACES_FEW {
            return None;
        }
        let at = self.line.iter().rposition(|login| login.address == like.address)?;
        record.waiting -= 1;
        self.line.remove(at).map(|login| login.connection)
    }

    /// A connection is gone.
    pub(super) fn leave(&mut self, connection: ConnectionId) {
        if let Some(at) = self.line.iter().position(|login| login.connection == connection)
            && let Some(login) = self.line.remove(at)
        {
            self.addresses[login.address].waiting -= 1;
        }
    }

    /// The record of an address, a new one instead of the one that is needed least.
    fn find_address(&mut self, now: Now, key: [u8; 8]) -> usize {
        if let Some(at) = self.addresses.iter().position(|address| address.key == key) {
            self.addresses[at].forget(now);
            return at;
        }
        let fresh =
            Address { key, waiting: 0, served: 0, failures: 0, failed: now, not_before: now.after_ms(0) };
        if self.addresses.len() < self.addresses_max {
            self.addresses.push(fresh);
            return self.addresses.len() - 1;
        }
        // There are more records than logins can wait, so one of them has none.
        let idle = self.addresses.iter().enumerate().filter(|(_, address)| address.waiting == 0);
        let at =
            idle.min_by_key(|(_, address)| (address.failures > 0, address.failed)).map_or(0, |(at, _)| at);
        self.addresses[at] = fresh;
        at
    }
}

impl Address {
    fn forget(&mut self, now: Now) {
        if now.ms_since(self.failed) > FORGET_MS {
            self.failures = 0;
        }
    }

    const fn is_over(&self) -> bool {
        self.failures >= FAILURES_MANY && self.waiting >= PLACES_FEW
    }
}

fn key_of(from: IpAddr) -> [u8; 8] {
    match from.to_canonical() {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            // No IPv6 address of anybody begins like this.
            [0, 0, 0, 0, a, b, c, d]
        }
        IpAddr::V6(address) => {
            let mut key = [0; 8];
            key.copy_from_slice(&address.octets()[..8]);
            key
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Name;
    use crate::password::PasswordHash;

    fn check() -> Box<PasswordCheck> {
        Box::new(PasswordCheck::new(Name::new(), b"x", PasswordHash::Nobodys, false))
    }

    fn address(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    fn id(index: usize) -> ConnectionId {
        ConnectionId::from_index(index)
    }

    #[test]
    fn addresses_take_turns() {
        let (mut gate, now) = (Gate::new(8), Now::from_ms(0));
        for (index, last) in [1, 1, 1, 2, 3].into_iter().enumerate() {
            assert!(gate.enter(now, id(index), 0, address(last), check()));
        }
        let order: Vec<_> = core::iter::from_fn(|| gate.next(now)).map(|login| login.connection).collect();
        assert_eq!(order, [0, 3, 4, 1, 2].map(id));
    }

    #[test]
    fn who_fails_waits_the_longer_and_nobody_else_does() {
        let mut gate = Gate::new(8);
        let mut now = Now::from_ms(0);
        let mut waits = Vec::new();
        for _ in 0..8 {
            assert!(gate.enter(now, id(0), 0, address(1), check()));
            let at = gate.deadline().ms_left(now).unwrap();
            waits.push(at);
            now = Now::from_ms(now.as_ms() + at);
            let login = gate.next(now).unwrap();
            gate.checked(now, &login, false);
        }
        assert_eq!(waits, [0, 100, 200, 400, 800, 1600, 3000, 3000]);
        assert!(gate.enter(now, id(0), 0, address(1), check()));
        assert!(gate.next(now).is_none() && !gate.has_next(now));
        assert!(gate.enter(now, id(1), 0, address(2), check()));
        assert!(gate.next(now).is_some_and(|login| login.connection == id(1)));
        // A minute of peace, and it is as before.
        gate.leave(id(0));
        now = Now::from_ms(now.as_ms() + FORGET_MS + 1);
        assert!(gate.enter(now, id(0), 0, address(1), check()) && gate.has_next(now));
    }

    #[test]
    fn an_address_that_keeps_failing_has_few_places() {
        let mut gate = Gate::new(32);
        let mut now = Now::from_ms(0);
        for index in 0..20 {
            assert!(gate.enter(now, id(index), 0, address(1), check()));
        }
        let mut turned_away = Vec::new();
        for _ in 0..FAILURES_MANY {
            now = Now::from_ms(now.as_ms() + DELAY_MS_MAX);
            let login = gate.next(now).unwrap();
            gate.checked(now, &login, false);
            turned_away.extend(core::iter::from_fn(|| gate.turn_away(&login)));
        }
        assert_eq!(turned_away.len(), 20 - (FAILURES_MANY + PLACES_FEW) as usize);
        assert_eq!(turned_away[0], id(19), "the last to come go");
        assert!(!gate.enter(now, id(30), 0, address(1), check()));
        assert!(gate.enter(now, id(31), 0, address(2), check()));
    }

    #[test]
    fn a_record_that_is_waited_with_is_never_taken() {
        let mut gate = Gate::new(4);
        let now = Now::from_ms(0);
        for last in 0..200 {
            assert!(gate.enter(now, id(0), 0, address(last), check()));
            let login = gate.next(now).unwrap();
            gate.checked(now, &login, false);
        }
        assert_eq!(gate.addresses.len(), 4 + OFFENDERS);
        let (one, two) =
            (IpAddr::from([1; 16]), IpAddr::from([1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2]));
        assert_eq!(key_of(one), key_of(two), "a whole network is one address");
    }
}
