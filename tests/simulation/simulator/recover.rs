//! The ledger after a start: compares the content of the disk with what was promised.
//!
//! # Invariants
//! - Afterwards the ledger equals what was found, and all of it is promised.

use core::ops::Range;
use std::collections::{BTreeMap, BTreeSet};

use super::deaths::{CHAINS, DYING, is_dying};
use super::harm::Harm;
use super::ledger::{Entry, Holder, Key, Ledger, Promise, Queue, Settled};
use super::policies::Said;
use super::topology::{self, BINDINGS};

/// Maximum number of messages behind the last delivered one that may be marked as redelivered after a start.
///
/// Each life may add one. Messages that were on their way and that no client has read come on top.
const MARKED_AHEAD_MAX: usize = 256 + 24;

/// The content of the disk at a start.
#[derive(Debug, Default)]
pub struct Found {
    /// Contents of each defined queue, by level, and in order within a level.
    pub queues: BTreeMap<(String, String), Vec<u64>>,
    /// The ranges of `queues` that will be marked as redelivered: in each level, a number of its first
    /// messages.
    pub marked: BTreeMap<(String, String), Vec<Range<usize>>>,
    pub exchanges: BTreeSet<(String, String)>,
    /// By virtual host, source, routing key and queue.
    pub bindings: BTreeSet<(String, String, String, String)>,
    pub policies: Said,
}

/// The checks after a start.
impl Ledger {
    /// Resets the ledger after a start that found this on the disk.
    pub fn begin(&mut self, life: u32, found: &Found, harms: &[Harm], is_told: bool) {
        self.life = life;
        self.last_new.clear();
        self.contests.clear();
        self.suspects.clear();
        self.check_definitions(found, harms);
        let mut keys: Vec<Key> = self.queues.keys().cloned().collect();
        for (vhost, name) in found.queues.keys() {
            let vhost = super::plan::VHOSTS.into_iter().find(|known| known == vhost);
            match vhost {
                Some(vhost) => keys.push((vhost, name.clone())),
                None => self.miss(format!("queue {name} is in a virtual host that no client created")),
            }
        }
        keys.sort_unstable();
        keys.dedup();
        if !harms.iter().any(|harm| harm.is_fresh) {
            self.check_transactions(found);
        }
        self.asked.clear();
        self.begin_dying(found);
        for key in keys {
            let contents = found.queues.get(&(key.0.to_string(), key.1.clone()));
            let contents = contents.map(Vec::as_slice);
            let marked = self.check_marks(&key, found);
            self.begin_queue(&key, contents, harms, is_told);
            let queue = self.queue(&key);
            for number in marked {
                queue.entries.entry(number).or_default().was_marked = true;
            }
        }
        for number in found.queues.values().flatten() {
            self.undecided.remove(number);
        }
    }

    fn check_definitions(&mut self, found: &Found, harms: &[Harm]) {
        let may_change = harms.iter().any(Harm::may_change);
        let mut wrong = Vec::new();
        for ((vhost, name), fact) in &mut self.exchanges {
            fact.forget_requests();
            let is_there = found.exchanges.contains(&(vhost.to_string(), name.to_string()));
            if fact.is_there.is_some_and(|was| was != is_there) && !may_change {
                wrong.push(format!("exchange {name} of {vhost}: {:?} before, {is_there} now", fact.is_there));
            }
            fact.is_there = Some(is_there);
        }
        for ((vhost, at), fact) in &mut self.bindings {
            fact.forget_requests();
            let (source, key, queue) = BINDINGS[*at];
            let (vhost, source) = (vhost.to_string(), source.to_string());
            let is_there = found.bindings.contains(&(vhost, source, key.into(), queue.into()));
            let is_stored = topology::is_durable(queue);
            let is_known = is_stored && fact.is_there.is_some_and(|was| was != is_there);
            if (is_known || is_there && !is_stored) && !may_change {
                wrong
                    .push(format!("binding {:?}: {:?} before, {is_there} now", BINDINGS[*at], fact.is_there));
            }
            fact.is_there = Some(is_there);
        }
        wrong.extend(self.policies.begin(&found.policies, may_change));
        wrong.into_iter().for_each(|what| self.complain(what));
    }

    /// Checks that each transaction is complete or missing. Messages deleted since then prove nothing.
    fn check_transactions(&mut self, found: &Found) {
        let is_there = |(key, number, _): &(Key, u64, u32)| {
            let contents = found.queues.get(&(key.0.to_string(), key.1.clone()));
            contents.is_some_and(|contents| contents.contains(number))
        };
        let mut wrong = Vec::new();
        for asked in &self.asked {
            let entry = |(key, number, epoch): &(Key, u64, u32)| {
                let is_same =
                    |queue: &&Queue| queue.fact.is_there == Some(true) && queue.fact.epoch == *epoch;
                let queue = self.queues.get(key).filter(is_same)?;
                Some(queue.entries.get(number).cloned().unwrap_or_default())
            };
            // Routes are looked up at the commit, when a binding may no longer exist.
            let is_routed_still = |number: &u64| {
                let content = self.contents.get(number);
                content.is_none_or(|it| it.exchange.is_empty() || it.unbound == self.unbound)
            };
            // A message that left its queue in another way is no proof that it was never published.
            let is_missing = |place: &&(Key, u64, u32)| {
                let is_plain =
                    |entry: Entry| entry.settled == Settled::No && !entry.has_been_out() && !entry.vanishes;
                entry(place).is_some_and(is_plain) && !is_there(place) && is_routed_still(&place.1)
            };
            let is_settled = |place: &&(Key, u64, u32)| entry(place).is_some() && !is_there(place);
            let is_left = |place: &&(Key, u64, u32)| entry(place).is_some() && is_there(place);
            // A consumer receives messages of a transaction only when all of it is durable.
            let was_seen = |place: &&(Key, u64, u32)| entry(place).is_some_and(|entry| entry.has_been_out());
            let came = asked.published.iter().find(|place| is_there(place));
            let came = came.or_else(|| asked.published.iter().find(was_seen));
            let happened = came.or_else(|| asked.witnesses.iter().find(is_settled));
            let missing = asked.published.iter().find(is_missing);
            let has_not = missing.or_else(|| asked.settled.iter().find(is_left));
            if let Some((happened, has_not)) = happened.zip(has_not) {
                wrong.push(format!("partial transaction: {happened:?} happened, {has_not:?} did not"));
            }
        }
        wrong.into_iter().for_each(|what| self.complain(what));
    }

    /// Checks that messages without a delivery are marked as redelivered only as far as the broker marks
    /// ahead.
    ///
    /// Returns the messages that are marked with reason.
    fn check_marks(&mut self, key: &Key, found: &Found) -> Vec<u64> {
        let name = (key.0.to_string(), key.1.clone());
        let (Some(levels), Some(contents)) = (found.marked.get(&name), found.queues.get(&name)) else {
            return Vec::new();
        };
        levels.iter().flat_map(|level| self.check_level(key, &contents[level.clone()]).to_vec()).collect()
    }

    fn check_level<'f>(&mut self, key: &Key, marked: &'f [u64]) -> &'f [u64] {
        let ahead_max = MARKED_AHEAD_MAX + self.unacknowledged_max;
        let Some(queue) = self.queues.get(key) else { return &[] };
        let may_have_been_out = |number: &u64| {
            let may = |entry: &Entry| entry.has_been_out() || entry.vanishes || entry.was_marked;
            queue.entries.get(number).is_none_or(may)
        };
        let last_out = marked.iter().rposition(may_have_been_out).map_or(0, |at| at + 1);
        let falsely = marked.len() - last_out;
        if falsely > ahead_max && !self.is_lenient {
            self.complain(format!(
                "queue {key:?}: {falsely} messages without a delivery are marked as redelivered"
            ));
        }
        &marked[..last_out]
    }

    /// Checks that each message that may be dead-lettered is in one of its two queues.
    fn begin_dying(&mut self, found: &Found) {
        let pairs = |vhost| CHAINS.into_iter().enumerate().map(move |(chain, pair)| (vhost, chain, pair));
        for (vhost, chain, pair) in super::plan::VHOSTS.into_iter().flat_map(pairs) {
            let contents = pair.map(|name| found.queues.get(&(vhost.to_string(), name.to_string())));
            let are_there = contents.iter().all(Option::is_some);
            let contents = contents.map(|contents| contents.map_or(&[][..], Vec::as_slice));
            for what in self.fates.begin((vhost, chain), contents, are_there) {
                self.miss(what);
            }
        }
    }

    fn begin_queue(&mut self, key: &Key, contents: Option<&[u64]>, harms: &[Harm], is_told: bool) {
        let may_change = harms.iter().any(Harm::may_change);
        let has_fresh = harms.iter().any(|harm| harm.is_fresh);
        let is_lenient = self.is_lenient;
        let mut queue = core::mem::take(self.queue(key));
        queue.fact.forget_requests();
        let mut wrong = Vec::new();
        let is_stored = topology::is_durable(&key.1);
        let was_there = if is_stored { queue.fact.is_there } else { Some(false) };
        if was_there.is_some_and(|was| was != contents.is_some()) && !may_change {
            wrong.push(format!("its definition: there before: {was_there:?}, now: {}", contents.is_some()));
        }
        let there: BTreeSet<u64> = contents.unwrap_or_default().iter().copied().collect();
        let lacks_levels = self.may_lack_levels && topology::has_levels(&key.1);
        let mut last: BTreeMap<(Holder, u8), u64> = BTreeMap::new();
        for number in contents.unwrap_or_default() {
            let Some(content) = self.contents.get(number) else {
                wrong.push(format!("message {number} is invented"));
                continue;
            };
            if !topology::may_route(content.exchange, &content.key, &key.1) || content.vhost != key.0 {
                wrong.push(format!("message {number} cannot have come here"));
            }
            // What was in a quorum queue is persistent in its other queues as well, and as a dead letter.
            let may_be_in_quorum_queue = topology::may_route(content.exchange, &content.key, DYING);
            if !content.persistent && !self.persist_all && !may_be_in_quorum_queue {
                wrong.push(format!("message {number} was transient and is on the disk"));
            }
            let level = topology::level(&key.1, content.priority());
            let before = last.entry((content.stream, level)).or_insert(0);
            if *before >= *number && !is_lenient && !lacks_levels && !is_dying(&key.1) {
                wrong.push(format!("message {number} is stored after {before}"));
            }
            *before = (*before).max(*number);
            let entry = queue.entries.get(number);
            let is_settled = entry.is_some_and(|entry| entry.settled == Settled::Durable);
            // A dead-lettered message may be back in the same queue.
            let was_gone = entry.is_none() && queue.past.contains(number);
            let is_gone = is_settled || was_gone && !self.undecided.contains(number);
            if is_gone && !is_dying(&key.1) {
                let may_return = |harm: &Harm| harm.may_return(*number) || harm.may_come_back(*number);
                if !(is_lenient && (!has_fresh || harms.iter().any(may_return))) {
                    wrong.push(format!("message {number} was durably settled and is back"));
                }
            }
        }
        // A dead-lettered message may be back in the same queue. Damage may have destroyed the record that it
        // had left its earlier position there.
        let may_be_twice = is_lenient && is_dying(&key.1);
        if there.len() < contents.unwrap_or_default().len() && !may_be_twice {
            wrong.push("a message is there twice".into());
        }
        for (number, entry) in &queue.entries {
            let is_wanted =
                entry.promise == Promise::Durable && entry.settled == Settled::No && !entry.vanishes;
            if !is_wanted || there.contains(number) || was_there != Some(true) || may_change {
                continue;
            }
            if !harms.iter().any(|harm| harm.may_lose(*number)) {
                wrong.push(format!("message {number} was durable and is lost"));
            } else if !is_told && harms.iter().any(|harm| harm.is_fresh && harm.must_tell(*number)) {
                wrong
                    .push(format!("message {number} was damaged and lost, but the start does not report it"));
            }
        }
        let old = core::mem::take(&mut queue.entries);
        queue.past.extend(old.keys().filter(|number| !there.contains(number)));
        for number in there.iter().filter(|_| !is_dying(&key.1)) {
            queue.past.remove(number);
            let seen_before = old.get(number).is_some_and(Entry::has_been_out);
            let vanishes = topology::drops(&key.1);
            let entry = Entry { promise: Promise::Durable, seen_before, vanishes, ..Entry::default() };
            queue.entries.insert(*number, entry);
        }
        queue.fact.is_there = Some(contents.is_some());
        (queue.may_have_returned, queue.purges) = (false, 0);
        self.queues.insert(key.clone(), queue);
        wrong.into_iter().for_each(|what| self.complain(format!("queue {key:?}: {what}")));
    }
}
