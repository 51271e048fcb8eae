//! What a run is made of: sizes, limits, habits and faults, each by chance.
//!
//! Why a run has only some of them: a mistake is found where two rare things meet, and they meet seldom where
//! everything happens. So each run leaves most things out and does what is left often, in a store so small
//! that it is full, or nearly dead, most of the time.
//!
//! Always true: a plan follows from its seed and nothing else.

use crate::limits::Limits;
use crate::store::{Format, Settings};

use super::cargo::Cargo;
use super::random::Random;

/// What one run is made of.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) limits: Limits,
    pub(super) settings: Settings,
    pub(super) persist_all: bool,
    pub(super) spill_transient: bool,
    /// What came back is delivered in its old order.
    pub(super) is_strict: bool,
    /// Helpers take at most so long.
    pub(super) slowness_ms: u64,
    /// Bodies may be so much larger than what goes into one piece; 0 for none.
    pub(super) large_bytes: u32,
    /// The largest body that is in one piece.
    pub(super) body_bytes_max: u32,
    /// How far offsets advance now and then without a message that is written; nothing for most runs.
    pub(super) strides: Option<Random>,
    pub(super) hazards: Hazards,
}

/// What may go wrong in a run, beyond what does in every one. An `one_in` of 0 is never.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Hazards {
    /// Lives end by a kill in the middle of a write, and the page cache stays.
    pub(super) kills_one_in: u64,
    /// Starts are cut soon after such an end.
    pub(super) hits_starts: bool,
    /// The file system has room for so many segments.
    pub(super) segments_room: Option<u32>,
    /// What clients mostly do, whatever the mood of a life.
    pub(super) habit: Habit,
    /// Blocks that were synced are damaged between lives.
    pub(super) damage_one_in: u64,
    /// Kills come just when a segment has left, before that is synced.
    pub(super) kills_as_left: bool,
    /// Syncs find the file system full, for what is allocated late.
    pub(super) has_full_syncs: bool,
    /// Reads fail for a while.
    pub(super) has_read_spells: bool,
    /// Of so many syncs the device makes only one, and a power cut shows it; 0 for an honest device.
    pub(super) lies_one_in: u64,
    /// A turn has so many times the actions.
    pub(super) haste: u64,
    /// What most messages are.
    pub(super) cargo: Cargo,
}

/// What clients mostly do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Habit {
    /// Anything.
    #[default]
    Any,
    /// They take most of what they were sent, in any order, and leave holes.
    Sieve,
    /// They take nearly everything, and the rest stays: segments are nearly dead.
    Leave,
}

impl Plan {
    pub(super) fn of(seed: u64, random: &mut Random) -> Self {
        let mut plan = Self::first(seed, random);
        // Seeds that found something long ago go on meaning what they meant.
        if seed % 4 != 3 {
            plan.vary(&mut Random::new(seed ^ 0x5_3A97));
        }
        if seed % 4 != 3 {
            plan.trouble(&mut Random::new(seed ^ 0xFAB));
        }
        if seed % 4 == 2 {
            plan.single_out(&mut Random::new(seed ^ 0x0DD));
        }
        plan
    }

    /// Sizes that suit a store of every day.
    fn first(seed: u64, random: &mut Random) -> Self {
        // Large bodies need large commits, and those large segments.
        let is_large = random.one_in(4);
        let (segment, commit) = if is_large { (256 << 10, 84 << 10) } else { (64 << 10, 20 << 10) };
        let is_tight = random.one_in(5);
        let limits = Limits {
            connections_max: 16,
            channels_max: 64,
            consumers_max: 128,
            queues_max: 64,
            exchanges_max: 32,
            bindings_max: 256,
            messages_max: if random.one_in(3) { 96 } else { 400 },
            queue_entries_max: 4_000,
            unacknowledged_max: if is_tight { 64 } else { 1_024 },
            body_bytes_max: if is_large { 1 << 20 } else { 256 << 10 },
            assembly_bytes_max: 512 << 10,
            message_size_max: 256 << 10,
            frame_max: 4_096,
            ..Limits::default()
        };
        let settings = Settings {
            segment_bytes: segment,
            commit_bytes: commit,
            segments_max: 8 + random.below(6) as u32,
            commit_window_ms: 20,
            confirm_window_ms: 5,
            settle_window_ms: 50,
            syncs_per_s: if random.one_in(4) { 200 } else { 0 },
            index_bytes: 2 << 20,
            sync_burst: 10,
            may_begin: true,
            upgrade: false,
            format: Format::NEWEST,
        };
        let persist_all = random.one_in(8);
        Self {
            limits,
            settings,
            persist_all,
            spill_transient: Random::new(seed ^ 0x5E_D5).one_in(2),
            is_strict: !is_tight,
            slowness_ms: random.one_of(&[1, 4, 12, 12, 300]),
            large_bytes: if is_large { 100_000 } else { 0 },
            body_bytes_max: 7_000,
            strides: seed.is_multiple_of(4).then(|| Random::new(seed ^ 0x57_21DE)),
            hazards: Hazards::default(),
        }
    }

    /// Makes the run one of a kind.
    fn vary(&mut self, random: &mut Random) {
        let hazards = &mut self.hazards;
        hazards.habit = random.one_of(&[Habit::Any, Habit::Any, Habit::Sieve, Habit::Leave]);
        if random.one_in(2) {
            hazards.kills_one_in = 3;
            hazards.hits_starts = random.one_in(2);
        }
        if random.one_in(2) {
            hazards.segments_room = Some(4 + random.below(5) as u32);
        }
        if random.one_in(3) {
            hazards.damage_one_in = 3;
        }
        if self.large_bytes == 0 && random.one_in(2) {
            self.settings.commit_bytes = random.one_of(&[4 << 10, 8 << 10, 12 << 10]);
            self.body_bytes_max = self.settings.commit_bytes / 3;
        }
        if random.one_in(12) {
            self.settings.index_bytes = 16_000 + random.below(30_000) as usize;
        }
    }

    /// Faults that came later.
    fn trouble(&mut self, random: &mut Random) {
        let hazards = &mut self.hazards;
        hazards.has_full_syncs = random.one_in(3);
        hazards.has_read_spells = random.one_in(3);
        if hazards.damage_one_in > 0 && random.one_in(3) {
            hazards.lies_one_in = 1 + random.below(4);
        }
    }

    /// Makes the run search for one thing: where segments leave, and what has to be written again for that.
    fn single_out(&mut self, random: &mut Random) {
        (self.hazards.damage_one_in, self.hazards.lies_one_in) = (0, 0);
        self.hazards.haste = 1 + random.below(4);
        if self.is_strict {
            // In haste more comes back at once, and what finds no record loses its place.
            self.limits.unacknowledged_max = 8_192;
        }
        self.settings.segments_max = 8 + random.below(3) as u32;
        match random.below(4) {
            0 | 1 => {
                // Few and large commits: each third opens a segment, that of a start as well.
                self.hazards.kills_as_left = true;
                self.hazards.hits_starts = true;
                self.hazards.segments_room = None;
                self.hazards.haste = 4 + random.below(4);
                self.widen(20 + random.below(200));
            }
            2 => {
                self.hazards.cargo = Cargo::Copies;
                self.hazards.haste = 2 + random.below(4);
            }
            _ => {
                self.hazards.cargo = Cargo::Pieces;
                // Without it, transient messages may fill the memory that the large one before them needs.
                self.spill_transient = true;
                self.hazards.habit = Habit::Any;
                (self.settings.segment_bytes, self.settings.commit_bytes) = (256 << 10, 84 << 10);
                (self.large_bytes, self.body_bytes_max) = (100_000, 7_000);
                self.limits.body_bytes_max = 1 << 20;
            }
        }
    }

    /// Commits are made that seldom, so that they are large.
    fn widen(&mut self, window_ms: u64) {
        let settings = &mut self.settings;
        (settings.commit_window_ms, settings.confirm_window_ms) = (window_ms, window_ms);
        settings.settle_window_ms = window_ms;
    }
}
