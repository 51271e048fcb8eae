//! A run: one disk, and the lives of the broker on it, each ended by some fault. A life is one broker
//! process.
//!
//! # Invariants
//! - Everything in a run follows from its seed.
//! - Each random decision has random numbers of its own ([`Random::of`]). So a change of the broker affects
//!   only what its clients and its disk see of it, and a seed keeps its meaning everywhere else.

use std::collections::BTreeSet;

use leveret_core::time::Now;
use leveret_storage::{ACCESS_SLOTS, Disk, Log, is_beside_the_log};

use super::harm::Harm;
use super::ledger::Ledger;
use super::life::{Ended, Life};
use super::plan::{INDEX_BYTES, Plan, QUEUES_ROOMY};
use super::start::IDENTITY;
use leveret_test_support::random::Random;
use leveret_test_support::simulated_disk::{Damaged, Mutant, SimDisk, Trouble};

/// Minimum number of power cuts in a run.
const CUTS: u64 = 6;
/// Maximum number of live bytes in the log after everything was deleted: users, permissions, virtual hosts.
const LEFT_BYTES_MAX: u64 = 4 << 10;
/// Maximum number of lives in a run.
const LIVES: u64 = 16;

/// Counters of a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub cuts: u64,
    /// Those of the `cuts` that came while the store was being opened.
    pub cuts_at_start: u64,
    pub lives: u64,
    pub stops: u64,
    pub connections: u64,
    pub requests: u64,
    pub published: u64,
    pub confirmed: u64,
    pub delivered: u64,
    pub commits: u64,
    pub reads: u64,
    /// Moments at which all clients and the broker slept, and none of them could have proceeded.
    pub rests: u64,
    /// Lives on a store that could not be written.
    pub unwritable: u64,
    pub damaged: u64,
    /// Changes of users, permissions and virtual hosts.
    pub operated: u64,
    /// Changes of policies.
    pub policed: u64,
    /// Deliveries of messages that had expired in a waiting queue.
    pub waited: u64,
    /// Highest number of live bytes in a log of which everything was deleted.
    pub left_bytes_max: u64,
}

impl Counts {
    /// Checks that `seeds` runs did enough. Otherwise a change of the broker has silently made them
    /// ineffective.
    pub fn check_work(&self, seeds: u64) {
        assert!(self.cuts >= 5 * seeds && self.lives > 5 * seeds, "cut too seldom: {self:?}");
        assert!(self.confirmed > 150 * seeds && self.delivered > 250 * seeds, "too little: {self:?}");
        assert!(self.commits > 120 * seeds && self.reads > 40 * seeds, "too few disk operations: {self:?}");
        assert!(20 * self.unwritable > seeds, "no store was unwritable: {self:?}");
        assert!(
            self.operated > 20 * seeds && self.rests > 40 * seeds,
            "too few operator changes or rests: {self:?}"
        );
        assert!(
            self.policed > seeds && self.waited > seeds,
            "too few policies or waiting messages: {self:?}"
        );
    }

    pub const fn add(&mut self, other: &Self) {
        self.cuts += other.cuts;
        self.cuts_at_start += other.cuts_at_start;
        self.lives += other.lives;
        self.stops += other.stops;
        self.connections += other.connections;
        self.requests += other.requests;
        self.published += other.published;
        self.confirmed += other.confirmed;
        self.delivered += other.delivered;
        self.commits += other.commits;
        self.reads += other.reads;
        self.rests += other.rests;
        self.damaged += other.damaged;
        self.unwritable += other.unwritable;
        self.operated += other.operated;
        self.policed += other.policed;
        self.waited += other.waited;
        if other.left_bytes_max > self.left_bytes_max {
            self.left_bytes_max = other.left_bytes_max;
        }
    }
}

/// The state that outlives a life.
pub struct Run {
    pub seed: u64,
    /// Number of the current life, counting also lives whose start failed.
    pub life: u64,
    pub disk: SimDisk,
    pub ledger: Ledger,
    pub plan: Plan,
    pub is_damaged: bool,
    /// All damage of the run, for debugging.
    damages: Vec<String>,
    /// The possible losses by each damage.
    pub harms: Vec<Harm>,
    /// A start since the last damage has reported it.
    pub is_told: bool,
    /// A file of users and permissions may have old bytes: the device lost an acknowledged sync or returned
    /// older data, and no start has followed.
    pub may_have_old_access: bool,
    /// The log was damaged while no file beside it had the users: there was no space for them, or they were damaged as
    /// well.
    pub was_access_bare: bool,
    /// The files that were damaged since the last start.
    pub damaged_slots: BTreeSet<u32>,
    /// The file system may have less space than the settings say.
    pub is_full: bool,
    /// The previous life was killed in the middle of a write.
    was_killed: bool,
    /// No more faults are planned.
    pub is_last: bool,
    pub next_connection: u64,
    pub counts: Counts,
}

impl Run {
    pub fn new(seed: u64, mutant: Mutant) -> Self {
        let mut plan = Plan::of(seed);
        // The mutants of settlements do not work when offsets advance by large steps.
        plan.has_strides &= matches!(mutant, Mutant::None | Mutant::SyncSeldomLeftOut);
        let disk = SimDisk::new(seed, mutant, IDENTITY);
        let room = plan.hazards.segments_room;
        disk.set_room(room.map(|segments| u64::from(segments) * u64::from(plan.settings.segment_bytes)));
        let unacknowledged_max = plan.limits.unacknowledged_max as usize;
        let may_lack_levels = plan.limits.queues_max < QUEUES_ROOMY;
        let persist_all = plan.persist_all;
        let ledger = Ledger { persist_all, unacknowledged_max, may_lack_levels, ..Ledger::default() };
        Self {
            seed,
            life: 0,
            disk,
            ledger,
            is_damaged: false,
            damages: Vec::new(),
            harms: Vec::new(),
            is_told: false,
            may_have_old_access: false,
            was_access_bare: false,
            damaged_slots: BTreeSet::new(),
            is_full: room.is_some(),
            was_killed: false,
            is_last: false,
            next_connection: 1,
            counts: Counts::default(),
            plan,
        }
    }

    /// Returns the random numbers for one purpose in this life.
    pub fn chance(&self, purpose: &str) -> Random {
        Random::of(self.seed, purpose, &[self.life])
    }

    pub fn run(&mut self) {
        for life in 0..LIVES {
            if self.counts.cuts >= CUTS || !self.ledger.complaints.is_empty() {
                break;
            }
            self.life = life;
            self.plan_trouble(life);
            self.live();
        }
        if self.ledger.complaints.is_empty() {
            self.ledger.complaints.extend(self.disk.violations());
        }
        if self.ledger.complaints.is_empty() {
            self.last_life();
        }
        if !self.ledger.complaints.is_empty() {
            self.ledger.complaints.append(&mut self.damages);
        }
        (self.counts.confirmed, self.counts.delivered) = (self.ledger.confirmed, self.ledger.delivered);
        self.counts.waited = self.ledger.waited;
    }

    fn plan_trouble(&mut self, life: u64) {
        let (hazards, mut random) = (self.plan.hazards, self.chance("trouble"));
        let calls = match random.below(6) {
            // During the start.
            0 if life > 0 => random.below(8),
            0 | 1 => random.below(60),
            _ => random.below(400),
        };
        self.disk.start(Trouble::Never);
        self.disk.set_lies(hazards.lies_one_in);
        self.is_full = hazards.segments_room.is_some();
        if hazards.has_full_syncs && random.once_in(3) {
            self.is_full = true;
            self.disk.foresee(Trouble::FullSync(random.below(80), 1));
        }
        if hazards.has_unwritable_starts && random.once_in(4) {
            return self.disk.foresee(Trouble::ReadOnly(random.below(12)));
        }
        if core::mem::take(&mut self.was_killed) && hazards.hits_starts {
            let calls = if hazards.kills_as_left { 6 } else { 12 };
            return self.disk.foresee(Trouble::Cut(random.below(calls)));
        }
        if hazards.kills_one_in > 0 && random.once_in(hazards.kills_one_in) {
            return self.disk.foresee(Trouble::Kill(calls));
        }
        if hazards.kills_as_left && random.once_in(2) {
            return self.disk.foresee(Trouble::KillAsLeft(random.below(3)));
        }
        if hazards.cuts_as_settled && random.once_in(2) {
            return self.disk.foresee(Trouble::CutAsSettled(random.below(12)));
        }
        match random.below(10) {
            0 => {}
            1 => self.disk.foresee(Trouble::FailedSync(calls / 3)),
            2 => self.disk.foresee(Trouble::FailedWrite(calls / 3, 1)),
            3 => {
                self.is_full = true;
                self.disk.foresee(Trouble::Full(random.below(5)));
                self.disk.foresee(Trouble::Cut(calls));
            }
            4 => {
                self.is_full = true;
                let (after, count) = (random.below(40), 1 + random.below(12));
                self.disk.foresee(Trouble::NoCapacity(after, count));
                self.disk.foresee(Trouble::Cut(calls));
            }
            _ => self.disk.foresee(Trouble::Cut(calls)),
        }
    }

    /// Runs one life until it ends.
    fn live(&mut self) {
        let mut random = self.chance("life");
        let steps = 60 + random.below(700);
        let ends_well = random.once_in(5);
        let (has_failed_reads, reads, count) = (random.once_in(4), random.below(30), 1 + random.below(3));
        let engine = self.start();
        let is_started = engine.is_some();
        if let Some(engine) = engine {
            self.counts.lives += 1;
            if has_failed_reads {
                let count = if self.plan.hazards.has_read_spells { count } else { 1 };
                self.disk.foresee(Trouble::FailedRead(reads, count));
            }
            let mut life = Life::new(self, engine);
            let ended = life.run(steps);
            if ended.is_ok() && ends_well {
                life.stop();
            }
            life.end();
        }
        // A kill keeps the page cache; most ends are power cuts.
        if self.disk.is_killed() {
            self.disk.revive();
            self.was_killed = true;
        } else if self.disk.is_off() || self.chance("end").below(4) > 0 {
            self.disk.power_cut();
            self.counts.cuts += 1;
            self.counts.cuts_at_start += u64::from(!is_started);
            self.break_promises();
            if self.plan.hazards.hits_neighbours && self.chance("neighbours").once_in(3) {
                let before = self.disk.copy();
                let damaged = self.disk.damage_neighbours();
                self.note_damage(before, &damaged);
            }
        }
        let one_in = self.plan.hazards.damage_one_in;
        if one_in > 0 && self.chance("harm").once_in(one_in) {
            self.damage();
        }
    }

    /// Reverts some of the sectors whose syncs the device acknowledged without doing them.
    fn break_promises(&mut self) {
        let before = self.disk.copy();
        let lost = self.disk.lose_owed();
        if !lost.is_nothing() {
            self.note_damage(before, &lost);
            self.may_have_old_access = true;
        }
    }

    /// Damages something that was synced.
    fn damage(&mut self) {
        let mut random = self.chance("damage");
        if self.plan.hazards.wears && random.once_in(2) {
            // The cost of a worn block is determined at each start.
            self.disk.wear_out();
            (self.is_damaged, self.ledger.is_lenient) = (true, true);
            self.counts.damaged += 1;
            return;
        }
        if random.once_in(2) {
            self.disk.relent_all();
        }
        let before = self.disk.copy();
        let damaged = if random.once_in(12) { self.disk.damage_newest() } else { self.disk.damage() };
        self.note_damage(before, &damaged);
    }

    /// Notes a damage. `before` is the disk before it, from which follows what the damage may cost.
    pub fn note_damage(&mut self, mut before: SimDisk, damaged: &Damaged) {
        self.damages.push(format!("before life {}: {damaged:?}", self.ledger.life + 1));
        self.damaged_slots.extend(damaged.slots());
        let is_log_damaged = self.damaged_slots.iter().any(|slot| !is_beside_the_log(*slot));
        let is_lost =
            |slot: &u32| self.damaged_slots.contains(slot) || !has_magic(&mut self.disk.copy(), *slot);
        self.was_access_bare |= is_log_damaged && ACCESS_SLOTS.iter().all(is_lost);
        self.was_access_bare |= !ACCESS_SLOTS.into_iter().any(|slot| has_magic(&mut before, slot));
        self.may_have_old_access |= damaged.has_old_access;
        self.harms.push(Harm::of(&mut before, damaged));
        (self.is_damaged, self.ledger.is_lenient) = (true, true);
        self.counts.damaged += 1;
    }

    /// Damages the disk before the last life, and sometimes cuts the power during the repair.
    fn damage_last(&mut self) {
        self.disk.power_cut();
        self.damage();
        let mut random = self.chance("mending");
        if random.once_in(2) {
            self.disk.start(Trouble::Cut(random.below(30)));
            drop(self.start());
            self.disk.power_cut();
        }
    }

    /// Runs a life without faults that brings everything to its end.
    fn last_life(&mut self) {
        self.life = LIVES;
        if self.plan.hazards.damage_one_in > 0 && self.chance("last").once_in(4) {
            self.damage_last();
        }
        self.life += 1;
        self.is_last = true;
        self.disk.start(Trouble::Never);
        self.disk.set_lies(0);
        self.disk.set_room(None);
        // A full index blocks publishers until a consumer frees entries. In the last life all clients have to
        // finish.
        self.plan.settings.index_bytes = INDEX_BYTES;
        self.is_full = false;
        let Some(engine) = self.start() else {
            return self.ledger.complain("the last start failed".into());
        };
        self.counts.lives += 1;
        let mut life = Life::new(self, engine);
        let ended = life.run(100).and_then(|()| life.wind_up());
        if ended.is_ok() {
            life.stop();
        }
        life.end();
        if ended == Err(Ended::Disk) {
            self.ledger.complain("the disk failed by itself".into());
        }
        // In a damaged store it is unknown what can be deleted.
        if ended.is_ok() && !self.is_damaged {
            self.check_reclaimed();
        }
    }

    /// Checks that only users and the most recent deletions use space, after all messages were consumed.
    fn check_reclaimed(&mut self) {
        self.disk.start(Trouble::Never);
        let opened = Log::open(&mut self.disk, self.plan.settings.clone(), IDENTITY, Now::from_ms(0));
        let Ok((log, _)) = opened else {
            return self.ledger.complain("the store cannot be opened after the end".into());
        };
        let live: u64 = log.index().segments().values().map(|segment| segment.live_bytes).sum();
        let messages: u64 = log.index().queues().values().map(|queue| queue.live).sum();
        self.counts.left_bytes_max = self.counts.left_bytes_max.max(live);
        if live > LEFT_BYTES_MAX || messages > 0 {
            self.ledger.complain(format!("{messages} messages and {live} bytes are left in the log"));
        }
    }
}

/// Returns whether the file has users.
fn has_magic(disk: &mut SimDisk, slot: u32) -> bool {
    let mut magic = [0; 7];
    disk.read(slot, 0, &mut magic).is_ok() && magic == *b"LEVERET"
}
