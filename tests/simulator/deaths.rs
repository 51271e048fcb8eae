//! Messages that die and live on: what a queue gives up another one has, as often as that happens.
//!
//! ```text
//! published ──→ s0 ── rejected, or back too often ──→ m0 ── rejected ──→ s0 ── … until somebody acknowledges
//! ```
//!
//! Why a model of its own: in which of the two a message is depends on what became of each of its rejections,
//! which a power cut may undo until somebody has what came of it; so nothing is said of one queue here, and
//! everything of both.
//!
//! Always true: a message that was promised and not acknowledged is in one of the two, and never in both; its
//! headers count one death more in `s0` than in `m0` where it is in `m0`, and as many where it is in `s0`; of
//! its deaths by rejection there are no more than clients asked for, and they grow; what had
//! the same number of deaths when somebody had it comes as redelivered.

use std::collections::{BTreeMap, BTreeSet};

use leveret::wire::Table;

use super::ledger::{Promise, Tick};

/// Where messages are published that may die, and where they are then.
pub const DYING: [&str; 2] = ["s0", "m0"];
/// How often a message may come back to `s0` before it dies of that.
pub const DELIVERY_LIMIT: i64 = 2;
/// The flag of headers, in the first octet of the properties.
const HAS_HEADERS: u8 = 0x20;

/// A queue whose messages die.
pub fn is_dying(queue: &str) -> bool {
    DYING.contains(&queue)
}

/// Properties without what deaths have put in, and the deaths.
pub fn without_deaths(properties: &[u8]) -> Option<(Vec<u8>, Deaths)> {
    let mut plain = properties.to_vec();
    if properties.first()? & HAS_HEADERS == 0 {
        return Some((plain, Deaths::default()));
    }
    let length = u32::from_be_bytes(*properties.get(2..)?.first_chunk()?) as usize;
    let headers = Table::parse(properties.get(6..6 + length)?).ok()?;
    plain.drain(2..6 + length);
    plain[0] &= !HAS_HEADERS;
    let mut deaths = Deaths::default();
    let entries = headers.get("x-death").map(|value| value.as_array());
    for death in entries.into_iter().flat_map(|entries| entries.into_iter().flat_map(|it| it.iter())) {
        let death = death.as_table()?;
        let count = u64::try_from(death.get("count")?.as_integer()?).ok()?;
        let queue = death.get("queue")?.as_str()?.to_string();
        match (queue.as_str(), death.get("reason")?.as_str()?) {
            ("s0" | "m0", "rejected") => deaths.rejected += count,
            ("s0", "delivery_limit") => {}
            _ => return None,
        }
        deaths.of[usize::from(queue == DYING[1])] += count;
    }
    let came_back = headers.get("x-delivery-count").map_or(0, |value| value.as_integer().unwrap_or(-1));
    let first = headers.get("x-first-death-queue").map(|value| value.as_str());
    let is_right = if deaths.all() > 0 { first == Some(Some(DYING[0])) } else { first.is_none() };
    (is_right && (0..=DELIVERY_LIMIT).contains(&came_back)).then_some((plain, deaths))
}

/// How often a message has died.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Deaths {
    /// In each of the two queues.
    of: [u64; 2],
    /// Of all these, because somebody rejected it.
    rejected: u64,
}

impl Deaths {
    const fn all(&self) -> u64 {
        self.of[0] + self.of[1]
    }

    /// Whether a message with these is in this queue.
    fn fits(&self, queue: &str) -> bool {
        self.of[0] == self.of[1] + u64::from(queue == DYING[1])
    }
}

/// What is known of one message.
#[derive(Clone, Debug, Default)]
struct Fate {
    promise: Promise,
    /// Somebody has acknowledged it, or may have.
    vanishes: bool,
    /// So it was in this life or an earlier one: its client may have forgotten it, and reject it with others.
    was_let_go: bool,
    /// So many rejections were asked for.
    rejected: u64,
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
    /// It is published.
    pub fn publish(&mut self, vhost: &'static str, number: u64) {
        self.0.insert((vhost, number), Fate { is_there: true, ..Fate::default() });
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

    /// A client has rejected it, or is about to when its transaction ends.
    pub fn reject(&mut self, vhost: &'static str, number: u64) {
        self.change(vhost, number, |fate| fate.rejected += 1);
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
        let all = deaths.all();
        let Delivery { connection, since, now, redelivered, no_ack } = *delivery;
        // What another connection heard may be younger than what is on its way to this one.
        let is_older = |by: u64, at: Tick| by == connection || at < since;
        let is_again = |&(died, by, at): &(u64, u64, Tick)| died == all && is_older(by, at);
        let had_more = |&(died, by, at): &(u64, u64, Tick)| died > all && is_older(by, at);
        let wrong = if !deaths.fits(queue) {
            Some("has deaths that do not lead there")
        } else if deaths.rejected > fate.rejected && !fate.was_let_go {
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

    /// After a start that has found these in the two queues of a virtual host, which are both there if
    /// `are_there`; what is wrong.
    pub fn begin(&mut self, vhost: &'static str, found: [&[u64]; 2], are_there: bool) -> Vec<String> {
        let [one, other] = found.map(|contents| contents.iter().copied().collect::<BTreeSet<u64>>());
        let mut wrong = Vec::new();
        for number in one.intersection(&other) {
            wrong.push(format!("message {number} died and is in both queues"));
        }
        for ((_, number), fate) in self.0.iter_mut().filter(|((of, _), _)| *of == vhost) {
            fate.is_there = one.contains(number) || other.contains(number);
            if fate.promise == Promise::Durable && !fate.vanishes && !fate.is_there && are_there {
                wrong.push(format!("message {number} was durable and is in neither queue: {fate:?}"));
            }
            fate.vanishes = !fate.is_there;
            fate.promise = if fate.is_there { Promise::Durable } else { Promise::None };
        }
        wrong
    }

    /// Both queues were emptied: what was promised has been taken.
    pub fn left(&self) -> Option<String> {
        let mut left = self.0.iter().filter(|(_, fate)| fate.promise > Promise::None && !fate.vanishes);
        left.next().map(|(at, fate)| format!("message {at:?} was promised and never came: {fate:?}"))
    }
}
