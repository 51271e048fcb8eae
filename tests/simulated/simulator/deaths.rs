//! Messages that die and live on: what a queue gives up another one has, as often as that happens.
//!
//! ```text
//! published ──→ s0 ── rejected, or back too often ──→ m0 ── rejected ──→ s0 ── … until somebody acknowledges
//! published ──→ jN ── rejected ──→ wN ── waited long enough, or rejected ──→ jN ── … until somebody acknowledges
//! ```
//!
//! How long a message waits in `wN`, and where it goes then, arguments say (`w0`), a policy (`w2`), or one the
//! one and one the other (`w1`). Some are published to `wN`, and some to `jN` with a time of their own: those
//! are dropped when it is over twice and nobody has rejected them in between, as in RabbitMQ.
//!
//! Why a model of its own: in which of the two a message is depends on what became of each of its rejections,
//! which a power cut may undo until somebody has what came of it; so nothing is said of one queue here, and
//! everything of both.
//!
//! Always true: a message that was promised and not acknowledged is in one of the two, and never in both; its
//! headers count one death more where it was published than in the other queue while it is in that one, and
//! as many while it is where it was published; the last of them is of the queue that it is not in; of
//! its deaths by rejection in each queue there are no more than clients asked for, and they grow; what had
//! the same number of deaths when somebody had it comes as redelivered.

use std::collections::{BTreeMap, BTreeSet};

use leveret_amqp::Table;

use super::ledger::{Promise, Tick};

/// Pairs of queues: where messages are published that may die, and where they are then.
pub const CHAINS: [[&str; 2]; 4] = [["s0", "m0"], ["j0", "w0"], ["j1", "w1"], ["j2", "w2"]];
/// The first queue of all that messages die in.
pub const DYING: &str = CHAINS[0][0];
/// How often a message may come back to `s0` before it dies of that.
pub const DELIVERY_LIMIT: i64 = 2;
/// The flag of headers, in the first octet of the properties.
const HAS_HEADERS: u8 = 0x20;

/// The pair that a queue is of, and which of the two it is.
pub fn place_of(queue: &str) -> Option<(usize, usize)> {
    let side_in = |pair: &[&str; 2]| pair.iter().position(|name| *name == queue);
    CHAINS.iter().enumerate().find_map(|(chain, pair)| Some((chain, side_in(pair)?)))
}

/// A queue whose messages die.
pub fn is_dying(queue: &str) -> bool {
    place_of(queue).is_some()
}

/// Where the messages of a queue live on.
pub fn other_of(queue: &str) -> Option<&'static str> {
    place_of(queue).map(|(chain, side)| CHAINS[chain][1 - side])
}

/// A queue in which messages wait until they may go back.
pub fn is_waiting(queue: &str) -> bool {
    place_of(queue).is_some_and(|(chain, side)| chain > 0 && side == 1)
}

/// Properties without what deaths have put in, and the deaths, of a message that was published to `home` with
/// this time of its own; `None`: they are none that it can have.
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
            // Its own time goes with its first death.
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
    /// In each of the two queues.
    of: [u64; 2],
    /// Of all these, because somebody rejected it.
    rejected: [u64; 2],
    /// Of all these, because its time was over.
    expired: [u64; 2],
    /// In which of the two it died last.
    last: Option<usize>,
}

impl Deaths {
    pub const fn all(&self) -> u64 {
        self.of[0] + self.of[1]
    }

    /// Whether it has waited to the end in the queue that is for that.
    pub const fn has_waited(&self) -> bool {
        self.expired[1] > 0
    }

    /// Whether a message with these that was published to `home` is in this queue of the two.
    fn fits(&self, side: usize, home: usize) -> bool {
        let is_balanced = self.of[home] == self.of[1 - home] + u64::from(side != home);
        let came_from_there = self.last.is_none_or(|last| last != side);
        // What goes round by itself is dropped.
        let was_called = side == 1 || self.expired[0] == 0 || self.rejected[1] > 0;
        is_balanced && came_from_there && was_called
    }
}

/// What is known of one message.
#[derive(Clone, Debug, Default)]
struct Fate {
    /// Of which pair its queues are, and to which of the two it was published.
    chain: usize,
    home: usize,
    /// It may go round by itself, and is dropped then.
    is_mortal: bool,
    promise: Promise,
    /// Somebody has acknowledged it, or may have.
    vanishes: bool,
    /// So it was in this life or an earlier one: its client may have forgotten it, and reject it with others.
    was_let_go: bool,
    /// So many rejections were asked for, in each of the two queues.
    rejected: [u64; 2],
    /// With how many deaths who had it, and when.
    heard: Vec<(u64, u64, Tick)>,
    /// The disk had it when this life began, or it is of this life.
    is_there: bool,
}

/// A delivery: who has it, since when its consumer is there, whether it is called so and needs no answer.
pub struct Delivery {
    pub connection: u64,
    pub since: Tick,
    pub now: Tick,
    pub redelivered: bool,
    pub no_ack: bool,
}

/// All of them, by virtual host and content.
#[derive(Clone, Debug, Default)]
pub struct Fates(BTreeMap<(&'static str, u64), Fate>);

impl Fates {
    /// It is published to this queue; `is_mortal`: it may go round by itself.
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

    /// Its publisher was told that it has arrived.
    pub fn promise(&mut self, vhost: &'static str, number: u64, promise: Promise) {
        self.change(vhost, number, |fate| fate.promise = fate.promise.max(promise));
    }

    /// A client has rejected it in this queue, or is about to when its transaction ends; `is_safe`: what dies
    /// there surely goes on.
    pub fn reject(&mut self, (vhost, queue, number): (&'static str, &str, u64), is_safe: bool) {
        let Some((_, side)) = place_of(queue) else { return };
        self.change(vhost, number, |fate| {
            fate.rejected[side] += 1;
            fate.vanishes |= !is_safe;
        });
    }

    /// It may be gone.
    pub fn let_go(&mut self, vhost: &'static str, number: u64) {
        self.change(vhost, number, |fate| (fate.vanishes, fate.was_let_go) = (true, true));
    }

    /// Each of them may be.
    pub fn doubt(&mut self, vhost: &'static str) {
        let here = self.0.iter_mut().filter(|((of, _), _)| *of == vhost);
        here.for_each(|(_, fate)| (fate.vanishes, fate.was_let_go) = (true, true));
    }

    /// A client has it from this queue; what is wrong with that.
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
        // What another connection heard may be younger than what is on its way to this one.
        let is_older = |by: u64, at: Tick| by == connection || at < since;
        let is_again = |&(died, by, at): &(u64, u64, Tick)| died == all && is_older(by, at);
        let had_more = |&(died, by, at): &(u64, u64, Tick)| died > all && is_older(by, at);
        let wrong = if chain != fate.chain || !deaths.fits(side, fate.home) {
            Some("has deaths that do not lead there")
        } else if rejections.into_iter().any(|(says, asked)| *says > asked) && !fate.was_let_go {
            Some("was rejected less often than it says")
        } else if fate.heard.iter().any(had_more) {
            Some("had more deaths before")
        } else if fate.heard.iter().any(is_again) && !redelivered {
            Some("was delivered before and is called new")
        } else if !fate.is_there {
            Some("is of an earlier life, and the disk did not have it")
        } else {
            None
        };
        fate.heard.push((all, connection, now));
        fate.vanishes |= no_ack;
        wrong.map(|why| format!("message {number} in {queue} {why}: {deaths:?}, {fate:?}"))
    }

    /// After a start that has found these in the two queues of a pair, which are both there if `are_there`;
    /// what is wrong.
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
            // Without the other queue nothing is promised of what is about to die.
            let is_promised = fate.is_there && (are_there || chain == 0);
            fate.promise = if is_promised { Promise::Durable } else { Promise::None };
        }
        wrong
    }

    /// Both queues were emptied: what was promised has been taken.
    pub fn left(&self) -> Option<String> {
        let mut left = self.0.iter().filter(|(_, fate)| fate.promise > Promise::None && !fate.vanishes);
        left.next().map(|(at, fate)| format!("message {at:?} was promised and never came: {fate:?}"))
    }
}
