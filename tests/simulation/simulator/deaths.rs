//! Checks messages that are dead-lettered, repeatedly, between the two queues of a pair.
//!
//! ```text
//! published ──→ s0 ── rejected, or delivery limit ──→ m0 ── rejected ──→ s0 ── … until acknowledged
//! published ──→ jN ── rejected ──→ wN ── expired, or rejected ──→ jN ── … until acknowledged
//! ```
//!
//! How long a message waits in `wN`, and where it goes then, is defined by arguments (`w0`), by a policy
//! (`w2`), or by one of each (`w1`). Some messages are published to `wN`, and some to `jN` with an
//! expiration. The latter are dropped when they expire twice without a rejection in between, as in RabbitMQ.
//!
//! Such messages need a model of their own: which queue of the pair has a message depends on the outcome of
//! each rejection. A power cut may undo a rejection until a client has seen its result. So the model makes no
//! statement about one queue alone, only about both together.
//!
//! # Invariants
//! - A promised, unacknowledged message is in exactly one of the two queues.
//! - While it is in the queue that it was published to, its headers count equally many deaths in both queues.
//! - While it is in the other queue, they count one death more in the queue that it was published to.
//! - Its last death was in the queue that it is not in now.
//! - In each queue its deaths by rejection are at most the rejections that clients requested, and they grow.
//! - A message that a client has received with the same number of deaths is marked as redelivered.

use std::collections::{BTreeMap, BTreeSet};

use leveret_amqp::Table;

use super::ledger::{Promise, Tick};

/// Pairs of queues: messages are published to the first, and dead-lettered to the second.
pub const CHAINS: [[&str; 2]; 4] = [["s0", "m0"], ["j0", "w0"], ["j1", "w1"], ["j2", "w2"]];
/// The first queue of all with dead letters.
pub const DYING: &str = CHAINS[0][0];
/// Delivery limit of `s0`.
pub const DELIVERY_LIMIT: i64 = 2;
/// Flag for the presence of headers, in the first byte of the properties.
const HAS_HEADERS: u8 = 0x20;

/// Returns the pair that a queue belongs to, and its position in the pair.
pub fn place_of(queue: &str) -> Option<(usize, usize)> {
    let side_in = |pair: &[&str; 2]| pair.iter().position(|name| *name == queue);
    CHAINS.iter().enumerate().find_map(|(chain, pair)| Some((chain, side_in(pair)?)))
}

/// Returns whether messages of a queue are dead-lettered.
pub fn is_dying(queue: &str) -> bool {
    place_of(queue).is_some()
}

/// Returns the queue that dead letters of a queue go to.
pub fn other_of(queue: &str) -> Option<&'static str> {
    place_of(queue).map(|(chain, side)| CHAINS[chain][1 - side])
}

/// Returns whether messages wait in this queue for a delayed return.
pub fn is_waiting(queue: &str) -> bool {
    place_of(queue).is_some_and(|(chain, side)| chain > 0 && side == 1)
}

/// Removes what deaths have added to the properties, and returns both parts.
///
/// The message was published to `home` with this `expiration`. Returns `None` if its deaths are impossible.
pub fn without_deaths(properties: &[u8], home: &str, expiration: Option<&[u8]>) -> Option<(Vec<u8>, Deaths)> {
    let (chain, home_side) = place_of(home)?;
    let mut plain = properties.to_vec();
    if properties.first()? & HAS_HEADERS == 0 {
        return Some((plain, Deaths::default()));
    }
    let length = u32::from_be_bytes(*properties.get(2..)?.first_chunk()?) as usize;
    let headers = Table::parse(properties.get(6..6 + length)?).ok()?;
    plain.drain(2..6 + length);
    plain[0] &= !HAS_HEADERS;
    let mut deaths = Deaths::default();
    let first_reason = headers.get("x-first-death-reason").and_then(|value| value.as_str());
    let mut seen = BTreeSet::new();
    let entries = headers.get("x-death").map(|value| value.as_array());
    for death in entries.into_iter().flat_map(|entries| entries.into_iter().flat_map(|it| it.iter())) {
        let death = death.as_table()?;
        let count = u64::try_from(death.get("count")?.as_integer()?).ok().filter(|count| *count > 0)?;
        let (of, side) = place_of(death.get("queue")?.as_str()?)?;
        let reason = death.get("reason")?.as_str()?;
        let is_first = side == home_side && first_reason == Some(reason);
        match (reason, side) {
            ("rejected", _) => deaths.rejected[side] += count,
            ("delivery_limit", 0) if chain == 0 => {}
            ("expired", 1) if chain > 0 => deaths.expired[1] += count,
            // The first death removes the expiration.
            ("expired", 0) if chain > 0 && expiration.is_some() && is_first && count == 1 => {
                deaths.expired[0] += 1;
            }
            _ => return None,
        }
        let original = death.get("original-expiration").and_then(|value| value.as_bytes());
        if of != chain || !seen.insert((side, reason)) || original != expiration.filter(|_| is_first) {
            return None;
        }
        deaths.last.get_or_insert(side);
        deaths.of[side] += count;
    }
    let came_back = headers.get("x-delivery-count").map_or(0, |value| value.as_integer().unwrap_or(-1));
    let first = headers.get("x-first-death-queue").map(|value| value.as_str());
    let is_right = match (deaths.all(), first_reason) {
        (0, reason) => first.is_none() && reason.is_none(),
        (_, None) => false,
        (_, Some(reason)) => first == Some(Some(home)) && seen.contains(&(home_side, reason)),
    };
    (is_right && (0..=DELIVERY_LIMIT).contains(&came_back)).then_some((plain, deaths))
}

/// How often a message has died.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Deaths {
    /// Deaths in each queue of the pair.
    of: [u64; 2],
    /// Deaths in each queue caused by rejection.
    rejected: [u64; 2],
    /// Deaths in each queue caused by expiration.
    expired: [u64; 2],
    /// Position in the pair of the queue of its last death.
    last: Option<usize>,
}

impl Deaths {
    pub const fn all(&self) -> u64 {
        self.of[0] + self.of[1]
    }

    /// Returns whether it has expired in the queue in which messages wait.
    pub const fn has_waited(&self) -> bool {
        self.expired[1] > 0
    }

    /// Returns whether a message with these deaths, published to `home`, can be in the queue at `side`.
    fn fits(&self, side: usize, home: usize) -> bool {
        let is_balanced = self.of[home] == self.of[1 - home] + u64::from(side != home);
        let came_from_there = self.last.is_none_or(|last| last != side);
        // A message that completes a cycle without a rejection is dropped.
        let was_called = side == 1 || self.expired[0] == 0 || self.rejected[1] > 0;
        is_balanced && came_from_there && was_called
    }
}

/// The known facts about one message.
#[derive(Clone, Debug, Default)]
struct Fate {
    /// Number of its pair of queues; and, in `home`, the position of the queue that it was published to.
    chain: usize,
    home: usize,
    /// It may complete a cycle without a rejection, and is dropped then.
    is_mortal: bool,
    promise: Promise,
    /// It has been acknowledged, or may have been.
    vanishes: bool,
    /// As `vanishes`, in this life or an earlier one. Its client may have forgotten it, and reject it with
    /// others.
    was_let_go: bool,
    /// Number of rejections requested in each of the two queues.
    rejected: [u64; 2],
    /// Deliveries: the number of deaths, the connection, and the tick.
    heard: Vec<(u64, u64, Tick)>,
    /// The disk had it when this life began, or it was published in this life.
    is_there: bool,
}

/// A delivery: connection, tick at which its consumer began, redelivered flag, and acknowledgement mode.
pub struct Delivery {
    pub connection: u64,
    pub since: Tick,
    pub now: Tick,
    pub redelivered: bool,
    pub no_ack: bool,
}

/// All messages with a model of deaths, by virtual host and content.
#[derive(Clone, Debug, Default)]
pub struct Fates(BTreeMap<(&'static str, u64), Fate>);

impl Fates {
    /// Notes a message published to `queue`. `is_mortal`: it may complete a cycle without a rejection.
    pub fn publish(&mut self, vhost: &'static str, number: u64, queue: &str, is_mortal: bool) {
        let Some((chain, home)) = place_of(queue) else { return };
        let fate = Fate { chain, home, is_mortal, vanishes: is_mortal, is_there: true, ..Fate::default() };
        self.0.insert((vhost, number), fate);
    }

    fn change(&mut self, vhost: &'static str, number: u64, change: impl FnOnce(&mut Fate)) {
        if let Some(fate) = self.0.get_mut(&(vhost, number)) {
            change(fate);
        }
    }

    /// Notes that its publisher has been told of its arrival.
    pub fn promise(&mut self, vhost: &'static str, number: u64, promise: Promise) {
        self.change(vhost, number, |fate| fate.promise = fate.promise.max(promise));
    }

    /// Notes a rejection in this queue, or one that takes effect with a transaction.
    ///
    /// `is_safe`: what dies there is certainly dead-lettered.
    pub fn reject(&mut self, (vhost, queue, number): (&'static str, &str, u64), is_safe: bool) {
        let Some((_, side)) = place_of(queue) else { return };
        self.change(vhost, number, |fate| {
            fate.rejected[side] += 1;
            fate.vanishes |= !is_safe;
        });
    }

    /// Notes that the message may be gone.
    pub fn let_go(&mut self, vhost: &'static str, number: u64) {
        self.change(vhost, number, |fate| (fate.vanishes, fate.was_let_go) = (true, true));
    }

    /// Notes that each message of a virtual host may be gone.
    pub fn doubt(&mut self, vhost: &'static str) {
        let here = self.0.iter_mut().filter(|((of, _), _)| *of == vhost);
        here.for_each(|(_, fate)| (fate.vanishes, fate.was_let_go) = (true, true));
    }

    /// Notes a delivery from this queue. Returns what is wrong with it.
    pub fn deliver(
        &mut self,
        (vhost, queue, number): (&'static str, &str, u64),
        deaths: Deaths,
        delivery: &Delivery,
    ) -> Option<String> {
        let fate = self.0.get_mut(&(vhost, number))?;
        let (chain, side) = place_of(queue)?;
        let rejections = deaths.rejected.iter().zip(fate.rejected);
        let all = deaths.all();
        let Delivery { connection, since, now, redelivered, no_ack } = *delivery;
        // A delivery to another connection may be newer than one that is still on its way to this connection.
        let is_older = |by: u64, at: Tick| by == connection || at < since;
        let is_again = |&(died, by, at): &(u64, u64, Tick)| died == all && is_older(by, at);
        let had_more = |&(died, by, at): &(u64, u64, Tick)| died > all && is_older(by, at);
        let wrong = if chain != fate.chain || !deaths.fits(side, fate.home) {
            Some("has deaths that are impossible in this queue")
        } else if rejections.into_iter().any(|(says, asked)| *says > asked) && !fate.was_let_go {
            Some("was rejected less often than its headers count")
        } else if fate.heard.iter().any(had_more) {
            Some("had more deaths before")
        } else if fate.heard.iter().any(is_again) && !redelivered {
            Some("was delivered before and is not marked as redelivered")
        } else if !fate.is_there {
            Some("is from an earlier life and was not on the disk")
        } else {
            None
        };
        fate.heard.push((all, connection, now));
        fate.vanishes |= no_ack;
        wrong.map(|why| format!("message {number} in {queue} {why}: {deaths:?}, {fate:?}"))
    }

    /// Resets the model after a start that found these messages in the queues of a pair. Returns what is
    /// wrong.
    ///
    /// `are_there`: both queues exist.
    pub fn begin(
        &mut self,
        (vhost, chain): (&'static str, usize),
        found: [&[u64]; 2],
        are_there: bool,
    ) -> Vec<String> {
        let [one, other] = found.map(|contents| contents.iter().copied().collect::<BTreeSet<u64>>());
        let mut wrong = Vec::new();
        for number in one.intersection(&other) {
            wrong.push(format!("message {number} died and is in both queues"));
        }
        let is_of = |of: &str, fate: &Fate| of == vhost && fate.chain == chain;
        for ((_, number), fate) in self.0.iter_mut().filter(|((of, _), fate)| is_of(of, fate)) {
            fate.is_there = one.contains(number) || other.contains(number);
            if fate.promise == Promise::Durable && !fate.vanishes && !fate.is_there && are_there {
                wrong.push(format!("message {number} was durable and is in neither queue: {fate:?}"));
            }
            fate.vanishes = !fate.is_there || fate.is_mortal;
            // Without the other queue, a message that is about to die has no guarantee.
            let is_promised = fate.is_there && (are_there || chain == 0);
            fate.promise = if is_promised { Promise::Durable } else { Promise::None };
        }
        wrong
    }

    /// Returns a promised message that never came, after both queues were consumed completely.
    pub fn left(&self) -> Option<String> {
        let mut left = self.0.iter().filter(|(_, fate)| fate.promise > Promise::None && !fate.vanishes);
        left.next().map(|(at, fate)| format!("message {at:?} was promised and never came: {fate:?}"))
    }
}
