//! The random parameters of a run: sizes, limits, habits and faults.
//!
//! A mistake is found where two rare events meet, and they seldom meet in a run with all kinds of events. So
//! each run omits most kinds of events and has the remaining ones often. Its pools and its store are so small
//! that they are full most of the time.
//!
//! # Invariants
//! - A plan follows only from its seed.

use super::deaths::CHAINS;
use leveret_core::limits::Limits;
use leveret_core::mem::{COMMAND_EXTENTS, EXTENT_BYTES, FifoPool};
use leveret_storage::Settings;
use leveret_test_support::random::Random;

/// Virtual hosts, and the user that works in each.
pub const VHOSTS: [&str; 2] = ["/", "w"];
/// Number of queues, including priority levels, that always have capacity.
pub const QUEUES_ROOMY: u32 = 64;
pub const USERS: [&str; 2] = ["guest", "ann"];

/// Enough for all messages of a run.
pub const INDEX_BYTES: usize = 2 << 20;

/// The parameters of one run.
#[derive(Clone, Debug)]
pub struct Plan {
    pub limits: Limits,
    /// Extents of the memory for clients, definitions and messages; `None` if only the limits bound the pools.
    pub extents: Option<[usize; 3]>,
    pub settings: Settings,
    pub persist_all: bool,
    /// Each helper takes less than this many milliseconds.
    pub slowness_ms: u64,
    /// Maximum number of bytes by which a body exceeds one chunk; 0: no such bodies.
    pub large_bytes: u32,
    /// Size of the largest body in one chunk.
    pub body_bytes_max: u32,
    /// Maximum number of simultaneous connections.
    pub actors_max: usize,
    /// Connections have a fault in one of this many chances; 0: never.
    pub link_trouble_one_in: u64,
    pub latency_ms: u64,
    /// In seconds; 0: none.
    pub heartbeat_s: u16,
    /// Offsets sometimes advance by large steps without messages.
    pub has_strides: bool,
    /// The process sometimes pauses for some seconds.
    pub has_pauses: bool,
    pub hazards: Hazards,
}

/// Faults of the disk and the power. A field `…one_in` of 0 means never.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hazards {
    /// Lives end with a kill in the middle of a write, after which the page cache stays.
    pub kills_one_in: u64,
    /// Starts are cut soon after such an end.
    pub hits_starts: bool,
    /// The file system has space for this many segments.
    pub segments_room: Option<u32>,
    /// Synced blocks are damaged between lives.
    pub damage_one_in: u64,
    /// Kills come after the deletion of a segment is written, before it is synced.
    pub kills_as_left: bool,
    /// Power cuts come right after a settlement is durable.
    pub cuts_as_settled: bool,
    /// Syncs find the file system full, as with delayed allocation.
    pub has_full_syncs: bool,
    /// Reads fail for some time.
    pub has_read_spells: bool,
    /// Reads during a start fail for some time.
    pub has_unread_starts: bool,
    /// From some call of a start on, the file system is read-only.
    pub has_unwritable_starts: bool,
    /// Some blocks become permanently unreadable.
    pub wears: bool,
    /// Power cuts damage synced blocks beside the one being written.
    pub hits_neighbours: bool,
    /// The device does one in this many syncs, which a power cut reveals; 0: all of them.
    pub lies_one_in: u64,
    /// The most frequent actions of clients, whatever the mood of a life.
    pub habit: Habit,
    /// A client does this many things at a time, and seldom rests.
    pub haste: u64,
}

/// The most frequent actions of clients.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Habit {
    /// Anything.
    #[default]
    Any,
    /// They acknowledge most deliveries in any order, which leaves holes.
    Sieve,
    /// They acknowledge nearly everything, and the rest stays: segments have few live messages.
    Leave,
    /// They publish to several queues, some of which are not consumed.
    Copies,
    /// They publish bodies in chunks. Messages next to them are consumed soon, and some bodies stay.
    Pieces,
    /// One queue grows as long as it can.
    Deep,
    /// Their transactions are larger than a commit and settle deliveries.
    Transactions,
    /// One queue keeps every other message, and the messages between them are consumed soon.
    Holes,
    /// They reject and requeue messages until these are dead-lettered, in this pair of queues.
    Deaths(usize),
}

/// Returns for every third seed a memory in which the pools cannot reach their limits.
fn extents_of(limits: &Limits, random: &mut Random) -> Option<[usize; 3]> {
    let bytes = limits.message_limits().bytes() + FifoPool::bytes(limits.queue_entries_max as usize);
    let messages = bytes / EXTENT_BYTES * (4 + random.below(5) as usize) / 8;
    let [clients, definitions] = [(); 2].map(|()| COMMAND_EXTENTS + 64 + random.below(96) as usize);
    random.once_in(3).then_some([clients, definitions, messages.max(12)])
}

impl Plan {
    pub fn of(seed: u64) -> Self {
        let random = &mut Random::of(seed, "plan", &[]);
        let is_large = random.once_in(4);
        let (segment, commit) = if is_large { (256 << 10, 84 << 10) } else { (64 << 10, 20 << 10) };
        // A few incomplete frames fill the capacity for them.
        let is_starving = random.once_in(3);
        let is_tight = random.once_in(4);
        let limits = Limits {
            connections_max: if random.once_in(4) { 8 } else { 24 },
            handshakes_max: 4,
            channels_max: if random.once_in(5) { 12 } else { 64 },
            consumers_max: 64,
            queues_max: if random.once_in(8) { 14 } else { QUEUES_ROOMY },
            exchanges_max: 32,
            bridges_max: 0,
            bindings_max: 64,
            messages_max: random.one_of(&[48, 96, 400, 400]),
            queue_entries_max: if is_tight { 600 } else { 4_000 },
            unacknowledged_max: if is_tight { 64 } else { 1_024 },
            body_bytes_max: if is_large { 1 << 20 } else { random.one_of(&[64 << 10, 256 << 10]) },
            assembly_bytes_max: if is_large { 512 << 10 } else { 64 << 10 },
            message_size_max: if is_large { 256 << 10 } else { 32 << 10 },
            frame_max: if is_starving { 8_192 } else { 4_096 },
            heartbeat_s: 0,
            input_buffer_bytes: 16 << 10,
            output_buffer_bytes: 16 << 10,
            input_backlog_bytes_max: if is_starving { 32 << 10 } else { 128 << 10 },
            ..Limits::default()
        };
        let settings = Settings {
            segment_bytes: segment,
            commit_bytes: commit,
            segments_max: 8 + random.below(6) as u32,
            commit_window_ms: 20,
            confirm_window_ms: 5,
            settle_window_ms: 50,
            syncs_per_s: if random.once_in(4) { 200 } else { 0 },
            index_bytes: INDEX_BYTES,
            fixed_index_bytes: if Random::of(seed, "standing", &[]).once_in(4) { 4 << 10 } else { 256 << 10 },
            sync_burst: 10,
            may_create_store: true,
        };
        // Takes the random number of a removed setting, so that every seed keeps its meaning.
        random.once_in(3);
        let mut plan = Self {
            extents: extents_of(&limits, &mut Random::of(seed, "memory", &[])),
            limits,
            settings,
            persist_all: {
                let persist_all = random.once_in(8);
                // Takes the random number of a removed setting, so that every seed keeps its meaning.
                random.once_in(2);
                persist_all
            },
            slowness_ms: random.one_of(&[0, 1, 4, 12, 300]),
            large_bytes: if is_large { 100_000 } else { 0 },
            body_bytes_max: 6_000,
            actors_max: 2 + random.below(6) as usize,
            link_trouble_one_in: random.one_of(&[0, 10, 40]),
            latency_ms: random.one_of(&[0, 0, 3, 40]),
            heartbeat_s: random.one_of(&[0, 0, 2]),
            has_strides: random.once_in(6),
            has_pauses: Random::of(seed, "pauses", &[]).once_in(4),
            hazards: Hazards::default(),
        };
        plan.endanger(random);
        plan.choose_chain(&mut Random::of(seed, "chain", &[]));
        if matches!(plan.hazards.habit, Habit::Deaths(_)) {
            // Copies leave much of a one-block commit unused, so no segment that is half live is compacted. A log full
            // of dead letters would stay full. The configuration does not allow such small commits.
            plan.settings.commit_bytes = plan.settings.commit_bytes.max(12 << 10);
        }
        plan
    }

    /// Sometimes chooses a pair of queues in which messages wait before they return, as long as arguments or
    /// policies say. It uses separate random numbers, so that all other seeds keep their meaning.
    fn choose_chain(&mut self, random: &mut Random) {
        let hazards = &mut self.hazards;
        if hazards.habit == Habit::Any && random.once_in(3) {
            hazards.habit = Habit::Deaths(1 + random.below(CHAINS.len() as u64 - 1) as usize);
            hazards.cuts_as_settled = !random.once_in(3);
        }
    }

    fn endanger(&mut self, random: &mut Random) {
        let hazards = &mut self.hazards;
        hazards.habit = random.one_of(&[
            Habit::Any,
            Habit::Any,
            Habit::Any,
            Habit::Sieve,
            Habit::Leave,
            Habit::Copies,
            Habit::Deep,
            Habit::Transactions,
            if self.large_bytes > 0 { Habit::Pieces } else { Habit::Any },
        ]);
        hazards.haste = random.one_of(&[1, 1, 2, 4, 6]);
        if random.once_in(2) {
            hazards.kills_one_in = 3;
            hazards.hits_starts = random.once_in(2);
        }
        if random.once_in(3) {
            hazards.segments_room = Some(4 + random.below(5) as u32);
        }
        if random.once_in(4) {
            hazards.damage_one_in = 3;
        }
        hazards.has_full_syncs = random.once_in(4);
        hazards.has_read_spells = random.once_in(4);
        if hazards.damage_one_in > 0 && random.once_in(3) {
            hazards.lies_one_in = 1 + random.below(4);
        }
        if self.large_bytes == 0 && random.once_in(2) {
            self.settings.commit_bytes = random.one_of(&[4 << 10, 8 << 10, 12 << 10]);
            self.body_bytes_max = self.settings.commit_bytes / 3;
        }
        if random.once_in(12) {
            self.settings.index_bytes = 16_000 + random.below(30_000) as usize;
        }
        if random.once_in(6) {
            // Few and large commits: one third of them opens a segment, including that of a start.
            (hazards.kills_as_left, hazards.hits_starts) = (true, true);
            (hazards.segments_room, hazards.damage_one_in, hazards.lies_one_in) = (None, 0, 0);
            let window_ms = 20 + random.below(200);
            (self.settings.commit_window_ms, self.settings.confirm_window_ms) = (window_ms, window_ms);
            self.settings.settle_window_ms = window_ms;
            hazards.haste = 4 + random.below(4);
        }
        if hazards.damage_one_in > 0 {
            hazards.has_unread_starts = random.once_in(3);
            hazards.wears = random.once_in(3);
            hazards.hits_neighbours = random.once_in(3);
        }
        if self.large_bytes == 0 && random.once_in(12) {
            // Settlements need more space than a commit has besides published messages.
            hazards.habit = Habit::Holes;
            hazards.haste = 6;
            (hazards.damage_one_in, hazards.lies_one_in) = (0, 0);
            (self.settings.commit_bytes, self.body_bytes_max) = (4 << 10, 1_300);
            (self.limits.messages_max, self.limits.unacknowledged_max) = (2_000, 2_000);
            self.limits.queue_entries_max = 4_000;
            self.settings.segments_max = 12 + random.below(12) as u32;
        }
        if hazards.habit == Habit::Deep {
            // With small messages and few of them unacknowledged, it shows how far ahead messages are marked.
            (self.limits.messages_max, self.limits.unacknowledged_max) = (2_000, 64);
            self.limits.queue_entries_max = 4_000;
            hazards.haste = 4;
        }
        hazards.has_unwritable_starts = random.once_in(4);
        if hazards.habit == Habit::Any && random.once_in(5) {
            hazards.habit = Habit::Deaths(0);
        }
        // A message that moves between queues is in both or in none after such a cut, if ever.
        hazards.cuts_as_settled =
            matches!(hazards.habit, Habit::Transactions | Habit::Deaths(_)) && !random.once_in(3);
    }
}
