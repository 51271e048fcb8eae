//! The record of what clients saw in all lives of the broker, and what follows from it.
//!
//! The broker is judged only by what a client is told over its connection, and by what the next start finds
//! on the disk. The ledger knows nothing about the internal state of the broker.
//!
//! ```text
//! sent ──────────── may be in its queues
//! confirmed ─────── is in every queue that was bound for certain since it was sent (`Promise`)
//! delivered ─────── is at one channel; when delivered again, it is marked as redelivered
//! settled ────────→ sent → applied, when a later request was answered → durable, when a commit was answered
//! the next start ── promised messages are on the disk, durably settled ones are not, and there are no others
//! ```
//!
//! # Invariants
//! - An event that only may have happened never causes a complaint.
//! - After a start the ledger equals the content of the disk, and all of it is promised.

use std::collections::{BTreeMap, BTreeSet};

use super::content::Content;
use super::deaths::{DYING, Deaths, Delivery, Fates, is_dying, other_of};
use super::fact::LogEntry;
use super::operator::Accesses;
use super::policies::Policies;
use super::topology::{self, BINDINGS};

/// A counter of everything that clients send and receive, over the whole run.
pub type Tick = u64;

/// A queue: virtual host and name.
pub type Key = (&'static str, String);

/// A channel that holds messages.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Holder {
    pub connection: u64,
    pub channel: u16,
}

/// How certain it is that a message is in a queue.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Promise {
    #[default]
    None,
    /// Until the end of this life.
    Life,
    Durable,
}

/// The progress of a settlement.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Settled {
    #[default]
    No,
    Sent,
    Applied,
    Durable,
}

/// A message in a queue.
#[derive(Clone, Debug, Default)]
pub struct Entry {
    pub promise: Promise,
    /// A client had it in an earlier life.
    pub(super) seen_before: bool,
    /// An earlier life had reason to mark it as redelivered, and the mark is permanent.
    pub(super) was_marked: bool,
    /// Connections that received it in this life, and when.
    pub(super) heard: Vec<(u64, Tick)>,
    /// The channel that holds it.
    pub(super) out: Option<Holder>,
    /// The channel that held it last.
    pub(super) holder: Option<Holder>,
    pub(super) settled: Settled,
    /// It may be gone: purged, deleted, or dropped by the length limit of the queue.
    pub(super) vanishes: bool,
}

/// A queue.
#[derive(Clone, Debug, Default)]
pub struct Queue {
    pub fact: LogEntry,
    pub(super) entries: BTreeMap<u64, Entry>,
    /// Contents that have left the queue.
    pub(super) past: BTreeSet<u64>,
    /// In this life something may have been requeued without a client knowing.
    pub(super) may_have_returned: bool,
    /// Number of unanswered purges.
    pub(super) purges: u32,
    /// When its last deletion was answered, or the last client stopped waiting for an answer.
    pub(super) gone_at: Tick,
    /// When it was last created or deleted, or may have been. Answers to earlier requests may be outdated.
    pub(super) changed_at: Tick,
}

/// A transaction whose commit was requested.
#[derive(Clone, Debug, Default)]
pub(super) struct Asked {
    /// Each with the deletion count of its queue at the time of the request.
    pub(super) published: Vec<(Key, u64, u32)>,
    pub(super) settled: Vec<(Key, u64, u32)>,
    /// Entries of `settled` that were certainly in their queues and at no channel when the life ended.
    ///
    /// If they are gone after the start, the transaction has happened.
    pub(super) witnesses: Vec<(Key, u64, u32)>,
}

/// A message that two channels hold or held until they ended. One of them must have ended first.
#[derive(Clone, Debug)]
pub(super) struct Contest {
    /// Each with whether it is known to have existed since then.
    pub(super) holders: [(Holder, bool); 2],
    pub(super) since: Tick,
    pub(super) place: (Key, u64),
    pub(super) what: String,
}

#[derive(Clone, Debug, Default)]
pub struct Ledger {
    pub now: Tick,
    pub life: u32,
    pub persist_all: bool,
    /// A priority may lack capacity for a level of its own; its messages then wait in another level.
    pub may_lack_levels: bool,
    /// Maximum number of unacknowledged messages.
    pub unacknowledged_max: usize,
    /// The store was damaged, so missing data is no complaint.
    pub is_lenient: bool,
    /// The store cannot be written in this life.
    pub is_unwritable: bool,
    /// A dead letter had no memory for its x-death: what a message's headers tell of its deaths is no complaint.
    pub lacks_deaths: bool,
    pub contents: BTreeMap<u64, Content>,
    pub queues: BTreeMap<Key, Queue>,
    pub exchanges: BTreeMap<(&'static str, &'static str), LogEntry>,
    pub bindings: BTreeMap<(&'static str, usize), LogEntry>,
    /// Number of requests that remove a binding or an exchange.
    pub(super) unbound: u32,
    pub(super) asked: Vec<Asked>,
    /// Messages of transactions whose commit was never answered, and that no start has found so far.
    ///
    /// A start without capacity to finish such a transaction hides it, and a later start finishes it.
    pub(super) undecided: BTreeSet<u64>,
    /// The newest message of a stream that one connection received for the first time, by level of a queue.
    pub(super) last_new: BTreeMap<(u64, Key, u8, Holder), u64>,
    pub(super) contests: Vec<Contest>,
    /// Messages marked as redelivered although nothing is known to have been requeued to their queues.
    pub(super) suspects: Vec<(Key, u64)>,
    pub accesses: Accesses,
    /// State of the messages that may be dead-lettered.
    pub(super) fates: Fates,
    pub policies: Policies,
    /// Queues whose messages have all expired, so that none may be left.
    pub waited_out: BTreeSet<Key>,
    pub complaints: Vec<String>,
    pub confirmed: u64,
    pub delivered: u64,
    /// Number of delivered messages that had expired in a waiting queue before.
    pub waited: u64,
}

impl Ledger {
    pub fn complain(&mut self, what: String) {
        self.complaints.push(what);
    }

    /// Complains about something that damage to the disk could explain.
    pub fn miss(&mut self, what: String) {
        if !self.is_lenient {
            self.complaints.push(what);
        }
    }

    pub const fn tick(&mut self) -> Tick {
        self.now += 1;
        self.now
    }

    pub fn queue(&mut self, key: &Key) -> &mut Queue {
        self.queues
            .entry(key.clone())
            .or_insert_with(|| Queue { fact: LogEntry::known(false), ..Queue::default() })
    }

    pub fn exchange(&mut self, vhost: &'static str, name: &'static str) -> &mut LogEntry {
        self.exchanges.entry((vhost, name)).or_insert_with(|| LogEntry::known(false))
    }

    pub fn binding(&mut self, vhost: &'static str, at: usize) -> &mut LogEntry {
        self.bindings.entry((vhost, at)).or_insert_with(|| LogEntry::known(false))
    }

    // ---- definitions

    /// Notes that a declaration was answered or never will be.
    pub fn end_declaration(&mut self, key: &Key, is_answered: bool) {
        let now = self.tick();
        let queue = self.queue(key);
        if queue.fact.is_there != Some(true) {
            queue.changed_at = now;
        }
        queue.fact.settle(is_answered);
    }

    /// Notes what an answer to a request of `asked_at` says about the existence of a queue.
    pub fn learn(&mut self, key: &Key, asked_at: Tick, is_there: bool) {
        let queue = self.queue(key);
        if queue.changed_at < asked_at {
            queue.fact.learn(is_there);
        }
    }

    /// Notes a request to delete a queue: all its messages and all bindings to it may go.
    pub fn ask_deletion(&mut self, key: &Key) {
        self.unbound += 1;
        let queue = self.queue(key);
        queue.fact.ask(false);
        queue.entries.values_mut().for_each(|entry| entry.vanishes = true);
        for (at, (_, _, name)) in BINDINGS.iter().enumerate() {
            if *name == key.1 {
                self.binding(key.0, at).ask(false);
            }
        }
    }

    pub fn end_deletion(&mut self, key: &Key, is_answered: bool) {
        let now = self.tick();
        let queue = self.queue(key);
        queue.fact.settle(is_answered);
        (queue.gone_at, queue.changed_at) = (now, now);
        if queue.fact.is_there == Some(false) {
            let gone = core::mem::take(&mut queue.entries);
            queue.past.extend(gone.into_keys());
        }
        for (at, (_, _, name)) in BINDINGS.iter().enumerate() {
            if *name == key.1 {
                self.binding(key.0, at).settle(is_answered);
            }
        }
    }

    pub fn ask_unbinding(&mut self, vhost: &'static str, at: usize) {
        self.unbound += 1;
        self.binding(vhost, at).ask(false);
    }

    pub fn ask_exchange_deletion(&mut self, vhost: &'static str, name: &'static str) {
        self.unbound += 1;
        self.exchange(vhost, name).ask(false);
        for (at, (source, ..)) in BINDINGS.iter().enumerate() {
            if *source == name {
                self.binding(vhost, at).ask(false);
            }
        }
    }

    pub fn end_exchange_deletion(&mut self, vhost: &'static str, name: &'static str, is_answered: bool) {
        self.exchange(vhost, name).settle(is_answered);
        for (at, (source, ..)) in BINDINGS.iter().enumerate() {
            if *source == name {
                self.binding(vhost, at).settle(is_answered);
            }
        }
    }

    pub fn ask_purge(&mut self, key: &Key) {
        let queue = self.queue(key);
        queue.entries.values_mut().for_each(|entry| entry.vanishes = true);
        queue.fact.epoch += 1;
        queue.purges += 1;
    }

    pub fn end_purge(&mut self, key: &Key) {
        let queue = self.queue(key);
        queue.purges = queue.purges.saturating_sub(1);
    }

    // ---- publishing

    /// Notes a message that is about to be published.
    pub fn publish(&mut self, number: u64, mut content: Content) {
        let vhost = content.vhost;
        let mut names: Vec<String> = Vec::new();
        if content.exchange.is_empty() {
            names.push(content.key.clone());
        } else if self.exchange(vhost, content.exchange).is_sure() {
            for at in topology::bindings_for(content.exchange, &content.key.clone()) {
                if self.binding(vhost, at).is_sure() {
                    names.push(BINDINGS[at].2.into());
                }
            }
        }
        names.sort_unstable();
        names.dedup();
        content.unbound = self.unbound;
        if is_dying(&content.key) {
            let is_mortal = topology::is_mortal(&content.key, content.len);
            self.fates.publish(vhost, number, &content.key, is_mortal);
        }
        for name in names {
            let key = (vhost, name);
            // Without a queue for its dead letters, nothing is promised for messages that die there.
            if !self.has_sure_letters(&key) {
                continue;
            }
            let queue = self.queue(&key);
            if queue.fact.is_sure() && queue.purges == 0 && !topology::may_go(&key.1) {
                content.targets.push((key, queue.fact.epoch));
            }
        }
        self.contents.insert(number, content);
    }

    /// Returns whether messages that die in a queue are certainly dead-lettered.
    ///
    /// The target queue must exist, and the policy with the target too, if one is needed. For queues whose
    /// messages wait as long as a policy says, the same policy also defines the target.
    fn has_sure_letters(&mut self, key: &Key) -> bool {
        let Some(other) = other_of(&key.1) else { return true };
        let is_said = key.1 != "j2" || self.policies.is_sure(key);
        is_said && self.queue(&(key.0, other.into())).fact.is_sure()
    }

    /// Returns the queues that certainly have a message, if the broker accepted it.
    fn sure_targets(&mut self, number: u64) -> Vec<Key> {
        let Some(content) = self.contents.get(&number).cloned() else { return Vec::new() };
        let is_routed_still = content.exchange.is_empty() || content.unbound == self.unbound;
        let mut sure = Vec::new();
        for (key, epoch) in content.targets.into_iter().filter(|_| is_routed_still) {
            if self.queue(&key).fact.epoch == epoch {
                sure.push(key);
            }
        }
        sure
    }

    /// Notes a confirm.
    pub fn confirm(&mut self, number: u64) {
        self.confirmed += 1;
        let Some(content) = self.contents.get(&number) else { return };
        let is_persistent = content.persistent || self.persist_all;
        for key in self.sure_targets(number) {
            // `DYING` is a quorum queue, in which all messages are persistent.
            let is_logged = is_persistent || key.1 == DYING;
            if self.is_unwritable && is_logged && topology::is_durable(&key.1) {
                self.complain(format!("message {number} is confirmed although the store cannot be written"));
            }
            let promise =
                if is_logged && topology::is_durable(&key.1) { Promise::Durable } else { Promise::Life };
            if is_dying(&key.1) {
                self.fates.promise(key.0, number, promise);
                continue;
            }
            let drops = topology::drops(&key.1);
            let queue = self.queue(&key);
            if queue.past.contains(&number) {
                continue;
            }
            let entry = queue.entries.entry(number).or_default();
            entry.promise = entry.promise.max(promise);
            entry.vanishes |= drops;
        }
    }

    /// Notes the answer to a commit. It does not tell which messages of the transaction were rejected.
    pub fn confirm_committed(&mut self, number: u64) {
        self.confirm(number);
        self.undecided.remove(&number);
        for (key, queue) in &mut self.queues {
            if topology::refuses(&key.1)
                && let Some(entry) = queue.entries.get_mut(&number)
            {
                entry.vanishes = true;
            }
        }
    }

    /// Notes a message returned as unroutable.
    pub fn take_return(&mut self, number: u64) {
        let Some(content) = self.contents.get(&number) else {
            return self.complain(format!("message {number} was returned but never sent"));
        };
        if !content.mandatory {
            self.complain(format!("message {number} was returned but was not mandatory"));
        }
        let targets = self.sure_targets(number);
        if let Some(target) = targets.first() {
            self.miss(format!("message {number} was returned as unroutable, but {target:?} existed"));
        }
    }

    /// Notes a negative confirm.
    pub fn refuse(&mut self, number: u64) {
        let Some(content) = self.contents.get(&number).cloned() else { return };
        let may_refuse = |name: &&str| topology::may_route(content.exchange, &content.key, name);
        if !topology::QUEUES.iter().filter(|name| topology::refuses(name)).any(may_refuse) {
            self.complain(format!("message {number} was rejected, but goes to no queue that rejects any"));
        }
    }

    /// Notes that a client acknowledged or rejected a message, and whether it requeued it.
    pub fn note_verdict(&mut self, (key, number): &(Key, u64), (is_ack, gives_back): (bool, bool)) {
        match (is_ack, gives_back) {
            _ if !is_dying(&key.1) => {}
            (true, _) => self.fates.let_go(key.0, *number),
            (false, false) => {
                // The policy of `w2` may be deleted at any time.
                let is_safe = key.1 != "w2" && self.has_sure_letters(key);
                self.fates.reject((key.0, &key.1, *number), is_safe);
            }
            (false, true) => {}
        }
    }

    /// Notes a delivery from a queue with dead letters.
    pub fn deliver_dying(&mut self, key: &Key, number: u64, deaths: Deaths, delivery: Delivery) {
        self.delivered += 1;
        self.waited += u64::from(deaths.has_waited());
        if self.waited_out.contains(key) {
            self.miss(format!("message {number} waits in {key:?} long after it has expired"));
        }
        let now = self.tick();
        let wrong = self.fates.deliver((key.0, &key.1, number), deaths, &Delivery { now, ..delivery });
        let wrong = wrong.filter(|_| !self.lacks_deaths);
        wrong.into_iter().for_each(|what| self.miss(what));
    }

    // ---- deliveries

    /// Notes a delivery. The client has consumed from this queue, or sent its get, at `since`.
    pub fn deliver(
        &mut self,
        key: &Key,
        number: u64,
        holder: Holder,
        (redelivered, no_ack): (bool, bool),
        since: Tick,
    ) {
        self.delivered += 1;
        let Some(content) = self.contents.get(&number).cloned() else {
            return self.complain(format!("message {number} in {key:?} was never published"));
        };
        if content.vhost != key.0 || !topology::may_route(content.exchange, &content.key, &key.1) {
            return self.complain(format!("message {number} cannot have come to {key:?}"));
        }
        let now = self.tick();
        let (life, drops, is_lenient) = (self.life, topology::drops(&key.1), self.is_lenient);
        let lacks_levels = self.may_lack_levels && topology::has_levels(&key.1);
        let queue = self.queue(key);
        let mut wrong = Vec::new();
        if queue.past.contains(&number) && since < queue.gone_at {
            // The message was on its way when its queue was deleted.
            return;
        }
        if queue.past.contains(&number) && queue.fact.is_quiet() && !is_lenient {
            wrong.push("was durably settled and is delivered".to_string());
        }
        if content.life < life && !queue.entries.contains_key(&number) && !is_lenient {
            wrong.push("is from an earlier life and was not on the disk".into());
        }
        let has_returned = queue.may_have_returned;
        let entry = queue.entries.entry(number).or_default();
        entry.vanishes |= drops;
        let other = entry.holder.filter(|_| entry.out.is_some() || entry.settled >= Settled::Sent);
        let had = (entry.out, entry.settled);
        let is_later = |(connection, at): &(u64, Tick)| *connection == holder.connection || *at < since;
        if (entry.seen_before || entry.heard.iter().any(is_later)) && !redelivered {
            wrong.push("was delivered before and is not marked as redelivered".into());
        }
        let is_suspect = redelivered && content.life == life && entry.heard.is_empty() && !has_returned;
        entry.heard.push((holder.connection, now));
        (entry.out, entry.settled) =
            if no_ack { (None, Settled::Applied) } else { (Some(holder), Settled::No) };
        entry.holder = Some(holder);
        if let Some(other) = other {
            // Both can be true if the broker has ended one of the channels and its client does not know yet.
            // The order of the two deliveries is unknown.
            (entry.out, entry.settled, entry.vanishes) = (None, Settled::No, true);
            let what = format!("message {number} of {key:?} is delivered to {holder:?}; {other:?}: {had:?}");
            let is_final = had.1 >= Settled::Applied;
            let (place, since) = ((key.clone(), number), now);
            self.contests.push(Contest { holders: [(other, is_final), (holder, false)], since, place, what });
        }
        if !redelivered {
            let level = topology::level(&key.1, content.priority());
            let place = (holder.connection, key.clone(), level, content.stream);
            let last = self.last_new.entry(place).or_insert(0);
            if number < *last && !lacks_levels {
                wrong.push(format!("comes after {last}, which was sent later"));
            }
            *last = number;
        }
        if is_suspect {
            self.suspects.push((key.clone(), number));
        }
        for what in wrong {
            self.miss(format!("message {number} of {key:?} {what}"));
        }
    }

    /// Notes that a channel still existed when it sent a request at that time.
    pub fn note_alive(&mut self, holder: Holder, at: Tick) {
        for contest in self.contests.iter_mut().filter(|contest| contest.since < at) {
            let its = contest.holders.iter_mut().filter(|(other, _)| *other == holder);
            its.for_each(|(_, is_alive)| *is_alive = true);
        }
        let is_wrong = |contest: &mut Contest| contest.holders.iter().all(|(_, is_alive)| *is_alive);
        let wrong: Vec<_> = self.contests.extract_if(.., is_wrong).collect();
        wrong.into_iter().for_each(|contest| self.miss(contest.what));
    }

    /// Notes the end of a channel, from either side.
    pub fn note_ended(&mut self, holder: Holder) {
        let has_part = |contest: &Contest| contest.holders.iter().any(|(other, _)| *other == holder);
        self.contests.retain(|contest| !has_part(contest));
    }

    /// Checks the contests. Nothing is under way, so each channel that a client believes to be open is open.
    pub fn check_contests(&mut self) {
        let wrong = core::mem::take(&mut self.contests);
        wrong.into_iter().for_each(|contest| self.miss(contest.what));
        for (key, number) in core::mem::take(&mut self.suspects) {
            if !self.queue(&key).may_have_returned {
                let why = "is marked as redelivered, but its queue never had a requeued message";
                self.miss(format!("message {number} of {key:?} {why}"));
            }
        }
    }

    fn entry(&mut self, place: &(Key, u64)) -> Option<&mut Entry> {
        self.queues.get_mut(&place.0)?.entries.get_mut(&place.1)
    }

    /// Notes that its client has acknowledged or rejected it.
    pub fn settle(&mut self, place: &(Key, u64), by: Holder) {
        if let Some(entry) = self.entry(place).filter(|entry| entry.holder == Some(by)) {
            (entry.out, entry.settled) = (None, entry.settled.max(Settled::Sent));
        }
    }

    /// Notes the progress of a settlement.
    pub fn note_settled(&mut self, place: &(Key, u64), by: Holder, settled: Settled) {
        if let Some(entry) = self.entry(place)
            && entry.holder == Some(by)
            && entry.out.is_none()
            && entry.settled != Settled::No
        {
            entry.settled = entry.settled.max(settled);
        }
    }

    /// Notes that a message is or may be requeued.
    pub fn give_back(&mut self, place: &(Key, u64), from: Holder) {
        let has_part = |contest: &Contest| contest.holders.iter().any(|(other, _)| *other == from);
        self.contests.retain(|contest| !has_part(contest) || contest.place != *place);
        // Another channel may hold it already.
        if let Some(entry) = self.entry(place).filter(|entry| entry.holder == Some(from)) {
            entry.out = None;
            if entry.settled == Settled::Sent {
                entry.settled = Settled::No;
                // The settlement may have been applied nevertheless.
                entry.vanishes = true;
            }
        }
        self.note_return(&place.0);
    }

    /// Notes a message that was written with `no_ack` to a client that never read it.
    pub fn lose(&mut self, place: &(Key, u64)) {
        if is_dying(&place.0.1) {
            return self.fates.let_go(place.0.0, place.1);
        }
        self.dismiss_witnesses(|(key, number, _)| *key == place.0 && *number == place.1);
        self.queue(&place.0).entries.entry(place.1).or_default().vanishes = true;
    }

    /// Removes witnesses that may be gone without the transaction that settles them: their channel was
    /// closed, and they were delivered to a consumer with `no_ack`.
    fn dismiss_witnesses(&mut self, are_gone: impl Fn(&(Key, u64, u32)) -> bool) {
        self.asked.iter_mut().for_each(|asked| asked.witnesses.retain(|place| !are_gone(place)));
    }

    /// Notes that any message of a queue may be gone.
    pub fn doubt(&mut self, key: &Key) {
        if is_dying(&key.1) {
            return self.fates.doubt(key.0);
        }
        self.dismiss_witnesses(|(of, ..)| of == key);
        self.queue(key).entries.values_mut().for_each(|entry| entry.vanishes = true);
    }

    /// Notes a delivery to a client with an unanswered recover: the message was requeued, or a settlement of
    /// a later one includes it.
    pub fn pass_by(&mut self, key: &Key, number: u64, connection: u64) {
        let now = self.tick();
        if is_dying(&key.1) {
            return self.fates.let_go(key.0, number);
        }
        let queue = self.queue(key);
        queue.may_have_returned = true;
        let entry = queue.entries.entry(number).or_default();
        entry.heard.push((connection, now));
        entry.vanishes = true;
    }

    /// Notes that messages may have been requeued which no client saw.
    pub fn note_return(&mut self, key: &Key) {
        self.queue(key).may_have_returned = true;
    }

    /// Notes a commit request: either the whole transaction happens or nothing.
    pub fn ask_commit(&mut self, by: Holder, published: &[u64], settled: &[(Key, u64)]) {
        let mut asked = Asked::default();
        self.undecided.extend(published);
        for number in published {
            let is_logged = self.contents.get(number).is_some_and(|content| content.persistent);
            if is_logged || self.persist_all {
                let keys = self.sure_targets(*number).into_iter();
                let kept = keys.filter(|key| {
                    let may_lack = topology::drops(&key.1) || topology::refuses(&key.1) || is_dying(&key.1);
                    topology::is_durable(&key.1) && !may_lack
                });
                let kept: Vec<Key> = kept.collect();
                for key in kept {
                    let epoch = self.queue(&key).fact.epoch;
                    asked.published.push((key, *number, epoch));
                }
            }
        }
        for place in settled {
            let is_its_own = |entry: &mut Entry| entry.out == Some(by) && !entry.vanishes;
            // A dead-lettered message moves between two queues, whatever happens to the transaction.
            if !is_dying(&place.0.1) && self.entry(place).is_some_and(is_its_own) {
                let epoch = self.queue(&place.0).fact.epoch;
                asked.settled.push((place.0.clone(), place.1, epoch));
            }
        }
        self.asked.push(asked);
    }

    // ---- lives of the broker

    /// Chooses the witnesses of unanswered commits. The process is about to end.
    pub fn call_witnesses(&mut self) {
        let mut all = core::mem::take(&mut self.asked);
        for asked in &mut all {
            let is_sure = |place: &&(Key, u64, u32)| {
                let entry = self.queues.get(&place.0).and_then(|queue| queue.entries.get(&place.1));
                entry.is_some_and(|entry| {
                    entry.promise == Promise::Durable && entry.settled >= Settled::Sent && !entry.vanishes
                })
            };
            asked.witnesses = asked.settled.iter().filter(is_sure).cloned().collect();
        }
        self.asked = all;
    }

    /// Notes a clean stop: everything that the broker was told is on the disk.
    pub fn stop(&mut self) {
        for entry in self.queues.values_mut().flat_map(|queue| queue.entries.values_mut()) {
            if entry.settled == Settled::Applied {
                entry.settled = Settled::Durable;
            }
        }
    }

    /// Checks, once everything was consumed, that each promised message was seen.
    pub fn check_all_seen(&mut self) {
        let mut wrong: Vec<String> = self.fates.left().into_iter().collect();
        for (key, queue) in &self.queues {
            if queue.fact.is_there != Some(true) || topology::may_go(&key.1) {
                continue;
            }
            for (number, entry) in &queue.entries {
                let is_wanted = entry.promise >= Promise::Life && !entry.vanishes;
                if is_wanted && entry.settled == Settled::No && entry.heard.is_empty() {
                    wrong.push(format!("message {number} of {key:?} was promised and never came"));
                }
            }
        }
        wrong.into_iter().for_each(|what| self.miss(what));
    }
}

impl Entry {
    pub(super) fn has_been_out(&self) -> bool {
        self.seen_before || !self.heard.is_empty()
    }
}
