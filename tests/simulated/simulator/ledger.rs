//! What clients saw, over all lives of the broker, and what follows from it.
//!
//! Why it exists: the broker is judged by what a program at the other end of a socket is told, and by what
//! the disk holds when the next start reads it. Nothing here knows how far the broker is.
//!
//! ```text
//! sent ──────────── may be in its queues
//! confirmed ─────── is in every queue that was surely bound from the one to the other (`Promise`)
//! delivered ─────── is out, at one channel; whoever had it once finds it redelivered
//! settled ────────→ sent → applied, when the channel answered something later → durable, when a commit did
//! the next start ── what was promised is on the disk, what was settled durably is not, nothing else is there
//! ```
//!
//! Always true: what only may have happened is never a complaint; after a start the ledger is what the disk
//! held, and all of that is promised.

use std::collections::{BTreeMap, BTreeSet};

use super::content::Content;
use super::deaths::{Deaths, Delivery, Fates, is_dying, other_of};
use super::fact::Fact;
use super::operator::Accesses;
use super::policies::Policies;
use super::topology::{self, BINDINGS};

/// Counts what clients send and hear, over the whole run.
pub type Tick = u64;

/// A queue: its virtual host and its name.
pub type Key = (&'static str, String);

/// A channel that has something.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Holder {
    pub connection: u64,
    pub channel: u16,
}

/// How sure it is that a message is in a queue.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Promise {
    #[default]
    None,
    /// As long as the broker lives.
    Life,
    Durable,
}

/// How far a settlement is.
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
    /// A client had it, in an earlier life.
    pub(super) seen_before: bool,
    /// An earlier life had reason to call it redelivered, which stays.
    pub(super) was_marked: bool,
    /// Connections that had it in this life, and when they heard of it.
    pub(super) heard: Vec<(u64, Tick)>,
    /// Who has it.
    pub(super) out: Option<Holder>,
    /// Who had it last.
    pub(super) holder: Option<Holder>,
    pub(super) settled: Settled,
    /// It may be gone: purged, dropped for the queue's length, deleted.
    pub(super) vanishes: bool,
}

/// A queue.
#[derive(Clone, Debug, Default)]
pub struct Queue {
    pub fact: Fact,
    pub(super) entries: BTreeMap<u64, Entry>,
    /// Contents that were in it and are not any more.
    pub(super) past: BTreeSet<u64>,
    /// In this life something may have gone back to it that nobody saw.
    pub(super) may_have_returned: bool,
    /// Purges without an answer.
    pub(super) purges: u32,
    /// When its last deletion was answered, or nobody waited for that any more.
    pub(super) gone_at: Tick,
    /// When it was last made or deleted, or may have been: what was asked before may have an older answer.
    pub(super) changed_at: Tick,
}

/// A transaction whose end was asked for.
#[derive(Clone, Debug, Default)]
pub(super) struct Asked {
    /// With how often each queue was about to lose what it has.
    pub(super) published: Vec<(Key, u64, u32)>,
    pub(super) settled: Vec<(Key, u64, u32)>,
    /// Those of them that were surely in their queues, and in nobody's hands any more, when the life ended:
    /// where they are gone, it has happened.
    pub(super) witnesses: Vec<(Key, u64, u32)>,
}

/// A message that two channels have, or had to their end: one of them is to have ended before.
#[derive(Clone, Debug)]
pub(super) struct Contest {
    /// With whether it is known to have been there since.
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
    /// There may be no room for a priority, whose messages then wait among others.
    pub may_lack_levels: bool,
    /// Messages that may be on their way to clients at once.
    pub unacknowledged_max: usize,
    /// The store was damaged.
    pub is_lenient: bool,
    /// The store of this life cannot be written.
    pub is_unwritable: bool,
    pub contents: BTreeMap<u64, Content>,
    pub queues: BTreeMap<Key, Queue>,
    pub exchanges: BTreeMap<(&'static str, &'static str), Fact>,
    pub bindings: BTreeMap<(&'static str, usize), Fact>,
    /// How often a binding, or an exchange, was about to go.
    pub(super) unbound: u32,
    pub(super) asked: Vec<Asked>,
    /// Published in transactions whose end was asked for and never answered, and found by no start yet: one
    /// that has no room to finish such a transaction hides it, and a later one finishes it.
    pub(super) undecided: BTreeSet<u64>,
    /// The last message of a stream that came out of a level of a queue for the first time, as one connection
    /// saw it.
    pub(super) last_new: BTreeMap<(u64, Key, u8, Holder), u64>,
    pub(super) contests: Vec<Contest>,
    /// Called redelivered, though nothing of their queues is known to have gone back.
    pub(super) suspects: Vec<(Key, u64)>,
    pub accesses: Accesses,
    /// What became of messages that may die.
    pub(super) fates: Fates,
    pub policies: Policies,
    /// Queues whose messages have all waited long enough, so that none may be there any more.
    pub waited_out: BTreeSet<Key>,
    pub complaints: Vec<String>,
    pub confirmed: u64,
    pub delivered: u64,
    /// Those of them that had waited for their time before.
    pub waited: u64,
}

impl Ledger {
    pub fn complain(&mut self, what: String) {
        self.complaints.push(what);
    }

    /// Something that damage to the disk could explain.
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
            .or_insert_with(|| Queue { fact: Fact::known(false), ..Queue::default() })
    }

    pub fn exchange(&mut self, vhost: &'static str, name: &'static str) -> &mut Fact {
        self.exchanges.entry((vhost, name)).or_insert_with(|| Fact::known(false))
    }

    pub fn binding(&mut self, vhost: &'static str, at: usize) -> &mut Fact {
        self.bindings.entry((vhost, at)).or_insert_with(|| Fact::known(false))
    }

    // ---- definitions

    /// A declaration has its answer, or will have none.
    pub fn end_declaration(&mut self, key: &Key, is_answered: bool) {
        let now = self.tick();
        let queue = self.queue(key);
        if queue.fact.is_there != Some(true) {
            queue.changed_at = now;
        }
        queue.fact.settle(is_answered);
    }

    /// Somebody who asked at that time was told whether a queue is there.
    pub fn learn(&mut self, key: &Key, asked_at: Tick, is_there: bool) {
        let queue = self.queue(key);
        if queue.changed_at < asked_at {
            queue.fact.learn(is_there);
        }
    }

    /// A queue is about to be deleted: all that is in it may go, with every binding to it.
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

    /// Notes what is about to be published.
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
            // Without a place for its letters nothing is promised of what dies there.
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

    /// Whether what dies in a queue surely goes on: there is where it goes, and a policy that says so, if any
    /// has to. Of a queue in which messages wait for as long as a policy says, that one says where to as well.
    fn has_sure_letters(&mut self, key: &Key) -> bool {
        let Some(other) = other_of(&key.1) else { return true };
        let is_said = key.1 != "j2" || self.policies.is_sure(key);
        is_said && self.queue(&(key.0, other.into())).fact.is_sure()
    }

    /// The queues that surely have a content, if the broker took it.
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

    /// The publisher was told that a message has arrived.
    pub fn confirm(&mut self, number: u64) {
        self.confirmed += 1;
        let Some(content) = self.contents.get(&number) else { return };
        let is_logged = content.persistent || self.persist_all;
        for key in self.sure_targets(number) {
            if self.is_unwritable && is_logged && topology::is_durable(&key.1) {
                self.complain(format!("message {number} is confirmed by a store that cannot be written"));
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

    /// The publisher was told that its transaction has happened. Which of its messages were refused nobody
    /// says.
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

    /// A message came back as not routable.
    pub fn take_return(&mut self, number: u64) {
        let Some(content) = self.contents.get(&number) else {
            return self.complain(format!("message {number} came back and was never sent"));
        };
        if !content.mandatory {
            self.complain(format!("message {number} came back and was not mandatory"));
        }
        let targets = self.sure_targets(number);
        if let Some(target) = targets.first() {
            self.miss(format!("message {number} came back as unroutable, and {target:?} was there"));
        }
    }

    /// A message was refused.
    pub fn refuse(&mut self, number: u64) {
        let Some(content) = self.contents.get(&number).cloned() else { return };
        let may_refuse = |name: &&str| topology::may_route(content.exchange, &content.key, name);
        if !topology::QUEUES.iter().filter(|name| topology::refuses(name)).any(may_refuse) {
            self.complain(format!("message {number} was refused, and goes to no queue that refuses any"));
        }
    }

    /// A client has answered for a message, with an ack or not, and gives it back or not.
    pub fn note_verdict(&mut self, (key, number): &(Key, u64), (is_ack, gives_back): (bool, bool)) {
        match (is_ack, gives_back) {
            _ if !is_dying(&key.1) => {}
            (true, _) => self.fates.let_go(key.0, *number),
            (false, false) => {
                // The policy of this one may be taken away at any time.
                let is_safe = key.1 != "w2" && self.has_sure_letters(key);
                self.fates.reject((key.0, &key.1, *number), is_safe);
            }
            (false, true) => {}
        }
    }

    /// A client has a message from a queue whose messages die; `since` when it consumes there.
    pub fn deliver_dying(&mut self, key: &Key, number: u64, deaths: Deaths, delivery: Delivery) {
        self.delivered += 1;
        self.waited += u64::from(deaths.has_waited());
        if self.waited_out.contains(key) {
            self.miss(format!("message {number} waits in {key:?}, and its time was over long ago"));
        }
        let now = self.tick();
        let wrong = self.fates.deliver((key.0, &key.1, number), deaths, &Delivery { now, ..delivery });
        wrong.into_iter().for_each(|what| self.miss(what));
    }

    // ---- deliveries

    /// A client has a message. Its queue is where it consumes, or gets, `since` then.
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
            // It was on its way when its queue was deleted.
            return;
        }
        if queue.past.contains(&number) && queue.fact.is_quiet() && !is_lenient {
            wrong.push("was gone for good and is delivered".to_string());
        }
        if content.life < life && !queue.entries.contains_key(&number) && !is_lenient {
            wrong.push("is of an earlier life, and the disk did not have it".into());
        }
        let has_returned = queue.may_have_returned;
        let entry = queue.entries.entry(number).or_default();
        entry.vanishes |= drops;
        let other = entry.holder.filter(|_| entry.out.is_some() || entry.settled >= Settled::Sent);
        let had = (entry.out, entry.settled);
        let is_later = |(connection, at): &(u64, Tick)| *connection == holder.connection || *at < since;
        if (entry.seen_before || entry.heard.iter().any(is_later)) && !redelivered {
            wrong.push("was delivered before and is called new".into());
        }
        let is_suspect = redelivered && content.life == life && entry.heard.is_empty() && !has_returned;
        entry.heard.push((holder.connection, now));
        (entry.out, entry.settled) =
            if no_ack { (None, Settled::Applied) } else { (Some(holder), Settled::No) };
        entry.holder = Some(holder);
        if let Some(other) = other {
            // Both may be so if the broker has ended one of the channels and its client has not heard of it;
            // nobody knows which came first.
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
                wrong.push(format!("comes behind {last}, which was sent later"));
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

    /// A channel was there still when it was asked for something at that time.
    pub fn note_alive(&mut self, holder: Holder, at: Tick) {
        for contest in self.contests.iter_mut().filter(|contest| contest.since < at) {
            let its = contest.holders.iter_mut().filter(|(other, _)| *other == holder);
            its.for_each(|(_, is_alive)| *is_alive = true);
        }
        let is_wrong = |contest: &mut Contest| contest.holders.iter().all(|(_, is_alive)| *is_alive);
        let wrong: Vec<_> = self.contests.extract_if(.., is_wrong).collect();
        wrong.into_iter().for_each(|contest| self.miss(contest.what));
    }

    /// A channel is no more, whoever ended it.
    pub fn note_ended(&mut self, holder: Holder) {
        let has_part = |contest: &Contest| contest.holders.iter().any(|(other, _)| *other == holder);
        self.contests.retain(|contest| !has_part(contest));
    }

    /// Nothing is on its way to anybody: whoever thinks that it has a channel has one.
    pub fn check_contests(&mut self) {
        let wrong = core::mem::take(&mut self.contests);
        wrong.into_iter().for_each(|contest| self.miss(contest.what));
        for (key, number) in core::mem::take(&mut self.suspects) {
            if !self.queue(&key).may_have_returned {
                let why = "is called redelivered, and nothing of its queue ever went back";
                self.miss(format!("message {number} of {key:?} {why}"));
            }
        }
    }

    fn entry(&mut self, place: &(Key, u64)) -> Option<&mut Entry> {
        self.queues.get_mut(&place.0)?.entries.get_mut(&place.1)
    }

    /// Its client has asked for its end.
    pub fn settle(&mut self, place: &(Key, u64), by: Holder) {
        if let Some(entry) = self.entry(place).filter(|entry| entry.holder == Some(by)) {
            (entry.out, entry.settled) = (None, entry.settled.max(Settled::Sent));
        }
    }

    /// What was asked has happened: `settled` says how surely.
    pub fn note_settled(&mut self, place: &(Key, u64), by: Holder, settled: Settled) {
        if let Some(entry) = self.entry(place)
            && entry.holder == Some(by)
            && entry.out.is_none()
            && entry.settled != Settled::No
        {
            entry.settled = entry.settled.max(settled);
        }
    }

    /// It goes back to its queue, or may do so.
    pub fn give_back(&mut self, place: &(Key, u64), from: Holder) {
        let has_part = |contest: &Contest| contest.holders.iter().any(|(other, _)| *other == from);
        self.contests.retain(|contest| !has_part(contest) || contest.place != *place);
        // Somebody else may have it by now.
        if let Some(entry) = self.entry(place).filter(|entry| entry.holder == Some(from)) {
            entry.out = None;
            if entry.settled == Settled::Sent {
                entry.settled = Settled::No;
                // It was perhaps taken all the same.
                entry.vanishes = true;
            }
        }
        self.note_return(&place.0);
    }

    /// It was written to a client that never read it, and needs no acknowledgement.
    pub fn lose(&mut self, place: &(Key, u64)) {
        if is_dying(&place.0.1) {
            return self.fates.let_go(place.0.0, place.1);
        }
        self.dismiss_witnesses(|(key, number, _)| *key == place.0 && *number == place.1);
        self.queue(&place.0).entries.entry(place.1).or_default().vanishes = true;
    }

    /// These messages may be gone without the transaction that settles them: its channel was closed, and they went to
    /// somebody who need not acknowledge them.
    fn dismiss_witnesses(&mut self, are_gone: impl Fn(&(Key, u64, u32)) -> bool) {
        self.asked.iter_mut().for_each(|asked| asked.witnesses.retain(|place| !are_gone(place)));
    }

    /// Nobody knows what of this queue is there still.
    pub fn doubt(&mut self, key: &Key) {
        if is_dying(&key.1) {
            return self.fates.doubt(key.0);
        }
        self.dismiss_witnesses(|(of, ..)| of == key);
        self.queue(key).entries.values_mut().for_each(|entry| entry.vanishes = true);
    }

    /// A client had it while it had asked for everything back: it went back, or a settlement of what came
    /// later is for it as well.
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

    /// What nobody saw may have gone back as well.
    pub fn note_return(&mut self, key: &Key) {
        self.queue(key).may_have_returned = true;
    }

    /// A transaction is about to end: all of it happens, or nothing.
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
            // What dies goes from one queue to the other and back, whatever becomes of the transaction.
            if !is_dying(&place.0.1) && self.entry(place).is_some_and(is_its_own) {
                let epoch = self.queue(&place.0).fact.epoch;
                asked.settled.push((place.0.clone(), place.1, epoch));
            }
        }
        self.asked.push(asked);
    }

    // ---- lives

    /// The process is about to be gone, and nobody knows yet what becomes of what is under way.
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

    /// The broker has stopped in good order, and everything it was told is on the disk.
    pub fn stop(&mut self) {
        for entry in self.queues.values_mut().flat_map(|queue| queue.entries.values_mut()) {
            if entry.settled == Settled::Applied {
                entry.settled = Settled::Durable;
            }
        }
    }

    /// Everything was consumed that there is: what was promised has been seen.
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
