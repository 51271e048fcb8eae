//! A run: one disk and one life after the other on it, each ended by something worse.
//!
//! Always true: everything in a run follows from its seed.

use std::collections::BTreeMap;

use crate::broker::{Context, Gauges};
use crate::journal::Batch;
use crate::store::Format;

use super::access::Accesses;
use super::client::Content;
use super::damage::Damaged;
use super::disk::SimDisk;
use super::harm::Harm;
use super::life::{Ended, Life};
use super::model::Model;
use super::mutant::Mutant;
use super::plan::Plan;
use super::random::Random;
use super::start::identity;
use super::traffic::Mood;
use super::trouble::Trouble;

/// Power cuts in a run, at least.
const CUTS: u64 = 6;
/// Lives in a run, at most.
const LIVES: u64 = 24;
/// Turns in which everything must come to rest.
const CALM_TURNS: u64 = 40_000;

/// What a run did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Power cuts.
    pub cuts: u64,
    /// Those of them that came while the store was being opened.
    pub cuts_at_start: u64,
    /// Lives that began.
    pub lives: u64,
    /// Commits.
    pub commits: u64,
    /// Jobs that read.
    pub reads: u64,
    /// Messages on their way to clients.
    pub delivered: u64,
    /// Confirms.
    pub confirmed: u64,
    /// Publishers that waited for room.
    pub waits: u64,
    /// Lives in which the disk limit was reached.
    pub full: u64,
    /// Messages whose memory was given up.
    pub spilled: u64,
    /// Transient ones that were to be written for that.
    pub spilled_transient: u64,
    /// Those of them that had been delivered.
    pub absent: u64,
    /// Refusals.
    pub refused: u64,
    /// Changes of who may do what.
    pub administered: u64,
    /// Times that something synced was damaged.
    pub damaged: u64,
}

impl Counts {
    pub(super) const fn add(&mut self, other: &Self) {
        self.cuts += other.cuts;
        self.cuts_at_start += other.cuts_at_start;
        self.lives += other.lives;
        self.commits += other.commits;
        self.reads += other.reads;
        self.delivered += other.delivered;
        self.confirmed += other.confirmed;
        self.waits += other.waits;
        self.full += other.full;
        self.spilled += other.spilled;
        self.spilled_transient += other.spilled_transient;
        self.absent += other.absent;
        self.refused += other.refused;
        self.administered += other.administered;
        self.damaged += other.damaged;
    }
}

/// Everything that outlives a life.
pub(super) struct World {
    pub(super) seed: u64,
    pub(super) random: Random,
    /// For faults that came later, so that seeds go on meaning what they meant.
    faults: Random,
    pub(super) disk: SimDisk,
    pub(super) model: Model,
    pub(super) accesses: Accesses,
    pub(super) contents: BTreeMap<u64, Content>,
    pub(super) next_content: u64,
    pub(super) plan: Plan,
    /// What clients are at in this life.
    pub(super) mood: Mood,
    pub(super) strides: Option<Random>,
    pub(super) is_damaged: bool,
    /// All damage of the run, for whoever looks into it.
    damages: Vec<String>,
    /// What all of it may have cost.
    pub(super) harms: Vec<Harm>,
    /// A start since then has told of damage.
    pub(super) is_told: bool,
    /// The device has lost something that it said it had synced, and no start has come behind it.
    pub(super) has_broken_promises: bool,
    /// The file system has less room than the settings say.
    pub(super) is_full: bool,
    /// From this life on the store's format is to be the newest.
    upgraded_in: Option<u64>,
    /// The life before was killed in the middle of a write.
    was_killed: bool,
    pub(super) life: u32,
    /// What the answer to the last command waits for.
    pub(super) awaited: Batch,
    pub(super) counts: Counts,
}

impl World {
    pub(super) fn new(seed: u64, mutant: Mutant) -> Self {
        let mut random = Random::new(seed);
        let mut older = Random::new(seed ^ 0xF0_12);
        let is_old = older.one_in(3);
        let mut plan = Plan::of(seed, &mut random);
        let disk = SimDisk::new(seed ^ 0xD15C, mutant, identity());
        let room = plan.hazards.segments_room;
        disk.set_room(room.map(|segments| u64::from(segments) * u64::from(plan.settings.segment_bytes)));
        plan.settings.format = if is_old { Format::One } else { Format::NEWEST };
        Self {
            seed,
            disk,
            model: Model::new(plan.is_strict),
            accesses: Accesses::default(),
            contents: BTreeMap::new(),
            next_content: seed << 24,
            strides: plan.strides.clone().filter(|_| mutant == Mutant::None),
            plan,
            mood: Mood::Mixed,
            is_damaged: false,
            damages: Vec::new(),
            harms: Vec::new(),
            is_told: false,
            has_broken_promises: false,
            is_full: room.is_some(),
            was_killed: false,
            faults: Random::new(seed ^ 0xFA_0175),
            upgraded_in: older.one_in(2).then(|| older.below(LIVES / 2)),
            life: 0,
            awaited: Batch::NONE,
            counts: Counts::default(),
            random,
        }
    }

    pub(super) fn run(&mut self) {
        for life in 0..LIVES {
            if self.counts.cuts >= CUTS || !self.model.complaints.is_empty() {
                break;
            }
            self.plan_trouble(life);
            self.live();
        }
        if self.model.complaints.is_empty() {
            self.model.complaints.extend(self.disk.violations());
        }
        if self.model.complaints.is_empty() {
            self.last_life();
        }
        if !self.model.complaints.is_empty() {
            self.model.complaints.append(&mut self.damages);
        }
    }

    fn plan_trouble(&mut self, life: u64) {
        self.plan.settings.upgrade = self.upgraded_in.is_some_and(|first| life >= first);
        let calls = match self.random.below(6) {
            // In the midst of the start.
            0 if life > 0 => self.random.below(8),
            0 | 1 => self.random.below(60),
            _ => self.random.below(400),
        };
        self.disk.start(Trouble::Never);
        self.disk.set_lies(self.plan.hazards.lies_one_in);
        self.is_full = self.plan.hazards.segments_room.is_some();
        if self.plan.hazards.has_full_syncs && self.faults.one_in(3) {
            self.disk.foresee(Trouble::FullSync(self.faults.below(80), 1));
        }
        if core::mem::take(&mut self.was_killed) && self.plan.hazards.hits_starts {
            let calls = if self.plan.hazards.kills_as_left { 6 } else { 12 };
            return self.disk.foresee(Trouble::Cut(self.random.below(calls)));
        }
        if self.plan.hazards.kills_one_in > 0 && self.random.one_in(self.plan.hazards.kills_one_in) {
            return self.disk.foresee(Trouble::Kill(calls));
        }
        if self.plan.hazards.kills_as_left && self.random.one_in(2) {
            return self.disk.foresee(Trouble::KillAsLeft(self.random.below(3)));
        }
        match self.random.below(10) {
            0 => {}
            1 => self.disk.foresee(Trouble::FailedSync(calls / 3)),
            2 => self.disk.foresee(Trouble::FailedWrite(calls / 3, 1)),
            3 => {
                self.is_full = true;
                self.disk.foresee(Trouble::Full(self.random.below(5)));
                self.disk.foresee(Trouble::Cut(calls));
            }
            4 => {
                let (after, count) = (self.random.below(40), 1 + self.random.below(12));
                self.disk.foresee(Trouble::NoRoom(after, count));
                self.disk.foresee(Trouble::Cut(calls));
            }
            _ => self.disk.foresee(Trouble::Cut(calls)),
        }
    }

    /// One life, and what ends it.
    fn live(&mut self) {
        self.mood = self.random.one_of(&[Mood::Mixed, Mood::Mixed, Mood::Flood, Mood::Ebb]);
        let turns = 20 + self.random.below(400);
        let ends_well = self.random.one_in(5);
        let is_started = self.start().is_some_and(|mut life| {
            life.w.counts.lives += 1;
            if life.w.random.one_in(4) {
                let reads = life.w.random.below(30);
                let is_long = life.w.plan.hazards.has_read_spells;
                let count = if is_long { 1 + life.w.faults.below(3) } else { 1 };
                life.w.disk.foresee(Trouble::FailedRead(reads, count));
            }
            let ended = life.settle_in().and_then(|()| (0..turns).try_for_each(|_| life.turn()));
            if ended.is_ok() && ends_well {
                life.stop();
            }
            life.w.counts.full += u64::from(life.was_full);
            true
        });
        if !is_started {
            self.model.rest(false);
        }
        // A kill keeps the page cache; most ends do not.
        if self.disk.is_killed() {
            self.disk.revive();
            self.was_killed = true;
        } else if self.disk.is_off() || self.random.below(4) > 0 {
            self.disk.power_cut();
            self.counts.cuts += 1;
            self.counts.cuts_at_start += u64::from(!is_started);
            self.break_promises();
        }
        let one_in = self.plan.hazards.damage_one_in;
        if one_in > 0 && self.random.one_in(one_in) {
            self.damage();
        }
    }

    /// The device has lost some of what it only said that it had synced.
    fn break_promises(&mut self) {
        let before = self.disk.copy();
        let lost = self.disk.lose_owed();
        if !lost.is_nothing() {
            self.note_damage(before, &lost);
            self.has_broken_promises = true;
        }
    }

    /// Something that was synced is damaged.
    fn damage(&mut self) {
        let before = self.disk.copy();
        let damaged = self.disk.damage();
        self.note_damage(before, &damaged);
    }

    fn note_damage(&mut self, mut before: SimDisk, damaged: &Damaged) {
        self.damages.push(format!("before life {}: {damaged:?}", self.life + 1));
        self.harms.push(Harm::of(&mut before, damaged));
        (self.is_damaged, self.model.is_lenient) = (true, true);
        self.counts.damaged += 1;
    }

    /// A life without trouble, in which everything is brought to an end; or damage, which must be survived.
    fn last_life(&mut self) {
        if self.random.one_in(4) {
            self.disk.power_cut();
            self.damage();
            if self.random.one_in(2) {
                // Again, in the midst of mending.
                self.disk.start(Trouble::Cut(self.random.below(30)));
                let _ = self.start();
                self.disk.power_cut();
            }
        }
        self.disk.start(Trouble::Never);
        self.disk.set_lies(0);
        self.disk.set_room(None);
        self.is_full = false;
        let Some(mut life) = self.start() else {
            return self.model.complain("the last start failed".into());
        };
        life.w.counts.lives += 1;
        if life.w.is_damaged {
            // Whatever is delivered is as it was sent.
            let _ = life.consume_all();
            return;
        }
        let ended = (0..100).try_for_each(|_| life.turn()).and_then(|()| life.wind_up());
        if ended == Err(Ended::Disk) {
            life.w.model.complain("the disk failed by itself".into());
        }
    }
}

impl Life<'_> {
    /// Turns without anything new until everything is at rest.
    fn calm_down(&mut self, what: &str) -> Result<(), Ended> {
        self.is_calm = true;
        for at in 0..self.clients.len() {
            self.broker.set_writable(
                &mut Context::new(&mut self.journal, &mut self.messages, &mut self.work),
                self.clients[at].id,
                true,
            );
        }
        for _ in 0..CALM_TURNS {
            self.turn()?;
            if self.restless().is_empty() {
                return Ok(());
            }
            // At the disk limit nothing moves while nobody consumes, and no room ever comes on a disk that is
            // smaller than was promised.
            if self.driver.is_stuck() && (self.w.is_full || self.clients.is_empty()) {
                return Err(Ended::Disk);
            }
            if !self.would_turn() {
                break;
            }
        }
        let waiting: Vec<String> =
            self.clients.iter().map(|client| format!("{:?}", client.waiting)).collect();
        let unconfirmed: usize = self
            .clients
            .iter()
            .flat_map(|client| &client.channels)
            .map(|channel| channel.unconfirmed.len())
            .sum();
        let (restless, journal) = (self.restless(), self.journal.len());
        self.w.model.complain(format!(
            "{what}: not at rest: {restless}, {journal} messages unwritten, {unconfirmed} confirms missing, \
             {waiting:?}"
        ));
        Err(Ended::Complaint)
    }

    /// A clean stop: everything said is durable afterwards.
    fn stop(&mut self) {
        while !self.clients.is_empty() {
            self.disconnect(0);
        }
        let now = crate::time::Now::from_ms(self.now);
        self.driver.flush(now);
        if self.calm_down("a clean stop").is_ok() {
            self.w.model.sync_all();
            let is_said = self.broker.reset_watermarks(&mut self.journal);
            self.driver.close(now);
            // If it cannot be written, it is as if it had not been said.
            let is_known = self.calm_down("what rested").is_ok() || !is_said;
            self.w.model.rest(is_known);
        }
    }

    /// Everything is delivered to one client.
    fn consume_all(&mut self) -> Result<(), Ended> {
        self.is_calm = true;
        self.connect();
        if self.clients.is_empty() {
            self.w.model.complain("there is no room for one client".into());
            return Err(Ended::Complaint);
        }
        self.open_channel(0);
        let names: Vec<String> = self.w.model.queue_names.keys().cloned().collect();
        for name in &names {
            self.consume_from(0, 1, name, true);
        }
        self.calm_down("consuming everything")
    }

    /// Everything is consumed and deleted; then nothing may be left anywhere.
    fn wind_up(&mut self) -> Result<(), Ended> {
        while !self.clients.is_empty() {
            self.disconnect(0);
        }
        let names: Vec<String> = self.w.model.queue_names.keys().cloned().collect();
        self.consume_all()?;
        for (name, number) in self.w.model.queue_names.clone() {
            self.w.model.check_count(number, 0, &format!("{name} was consumed"));
        }
        for name in names {
            self.delete_queue_named(0, 1, &name);
            self.calm_down("deleting a queue")?;
        }
        let exchanges: Vec<String> = self.w.model.exchange_names.keys().cloned().collect();
        for name in exchanges.iter().filter(|name| !name.starts_with("amq.")) {
            self.delete_exchange_named(0, 1, name);
            self.calm_down("deleting an exchange")?;
        }
        self.disconnect(0);
        self.calm_down("the end")?;
        let (gauges, used) = (self.broker.gauges(), self.messages.messages_used());
        if gauges != Gauges::default() || used > 0 {
            self.w.model.complain(format!("something is left in the pools: {gauges:?}, {used} messages"));
            return Err(Ended::Complaint);
        }
        Ok(())
    }
}
