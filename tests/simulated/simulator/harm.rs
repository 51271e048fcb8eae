//! What damage may cost: what lay in the blocks that it touched, and nothing else.
//!
//! ```text
//! the store before ── look ──→ where each message and each settlement lies
//! the damage ─────── blocks ─→ which of those have no copy any more that is whole
//! the next start ── found ───→ nothing else is missing, nothing else is there again, and it is told
//! ```
//!
//! Always true: a commit counts as touched with each block of it, and a file that cannot be opened with all
//! its commits; what has another copy in a commit that was not touched is to be there.

use std::collections::{BTreeMap, BTreeSet};

use leveret_core::journal::definition::is_access;
use leveret_storage::{BLOCK_BYTES, Body, Log, Range, RangeSet, Record, Report};

use super::content::number_of;
use super::world::sim_disk::{Damaged, SimDisk};

/// Bytes before the first record of a commit.
const COMMIT_HEADER_BYTES: u32 = 76;

/// A record of a message or a settlement, and whether its commit was touched.
struct Copy {
    segment: u64,
    commit: u64,
    is_touched: bool,
    /// Its segment is not sealed, so that a start reads it commit by commit.
    is_read: bool,
    says: Says,
}

/// What counts of a record.
enum Says {
    Message { targets: Vec<(u64, u64)>, body: Result<u64, u64> },
    Chunk { body: u64, index: u32, content: Option<u64> },
    Settled { queue: u64, ranges: Vec<(u64, u64)> },
    Defined,
    Left,
    Other,
}

/// What some damage may have cost.
#[derive(Debug, Default)]
pub struct Harm {
    /// No start has come behind it.
    pub is_fresh: bool,
    /// Anything may be missing or be there again.
    pub is_unbounded: bool,
    /// Contents with a place none of whose copies is whole, and whether a start can notice that.
    lost: BTreeMap<u64, bool>,
    /// Every content that the log knew.
    known: BTreeSet<u64>,
    /// Contents whose settlement is in no commit that is whole.
    returned: BTreeSet<u64>,
    /// Definitions were touched.
    has_definitions: bool,
    /// Settlements were touched.
    has_settlements: bool,
    /// That a segment has left was touched: all that it held may be there again.
    has_left: bool,
}

impl Harm {
    /// What damage to these blocks may cost; `disk` is as it was before.
    pub fn of(disk: &mut SimDisk, damaged: &Damaged) -> Self {
        let Ok((log, _)) = Log::read_only(disk) else {
            return Self { is_fresh: true, is_unbounded: true, ..Self::default() };
        };
        let copies = copies(&log, disk, damaged);
        let whole = copies.iter().filter(|copy| !copy.is_touched).map(|copy| copy.commit).max().unwrap_or(0);
        let mut harm = Self { is_fresh: true, ..Self::default() };
        harm.note_lost(&copies, whole);
        harm.note_returned(&copies);
        // Who says behind a gap that a segment has left is not believed: what was copied may be in the gap.
        let first_touched = copies.iter().filter(|copy| copy.is_touched).map(|copy| copy.commit).min();
        let is_behind = |copy: &Copy| first_touched.is_some_and(|first| copy.commit > first);
        let is_doubted = |copy: &Copy| matches!(copy.says, Says::Left) && is_behind(copy);
        harm.has_left = damaged.has_files() || copies.iter().any(is_doubted);
        for copy in copies.iter().filter(|copy| copy.is_touched) {
            harm.has_definitions |= matches!(copy.says, Says::Defined);
            harm.has_settlements |= matches!(copy.says, Says::Settled { .. });
            harm.has_left |= matches!(copy.says, Says::Left);
        }
        harm
    }

    fn note_lost(&mut self, copies: &[Copy], whole: u64) {
        let (mut chunks, mut contents) = (BTreeMap::new(), BTreeMap::new());
        for copy in copies {
            if let Says::Chunk { body, index, content } = &copy.says {
                // As with messages: what is copied may leave the log where it was.
                let last = chunks.entry((*body, *index)).or_insert((copy.segment, false));
                if copy.segment > last.0 {
                    *last = (copy.segment, false);
                }
                last.1 |= copy.segment == last.0 && !copy.is_touched;
                contents.extend(content.map(|content| (*body, content)));
            }
        }
        let broken: BTreeSet<u64> =
            chunks.iter().filter(|(_, (_, is_whole))| !is_whole).map(|((body, _), _)| *body).collect();
        // By place: its content, the segment of its last copy, whether one there is whole, and whether one
        // lies before a commit that is. What is copied may leave the log where it was.
        let mut places: BTreeMap<(u64, u64), (u64, u64, bool, bool)> = BTreeMap::new();
        for copy in copies {
            let Says::Message { targets, body } = &copy.says else { continue };
            let content = body.or_else(|body| contents.get(&body).copied().ok_or(body));
            let is_broken = body.is_err_and(|body| broken.contains(&body));
            let Ok(content) = content else { continue };
            self.known.insert(content);
            for target in targets {
                let place = places.entry(*target).or_insert((content, copy.segment, false, false));
                if copy.segment > place.1 {
                    *place = (content, copy.segment, false, false);
                }
                place.2 |= copy.segment == place.1 && !copy.is_touched && !is_broken;
                place.3 |= copy.commit < whole && copy.is_read && copy.is_touched;
            }
        }
        for (content, _, is_whole, is_proven) in places.into_values() {
            if !is_whole {
                *self.lost.entry(content).or_insert(false) |= is_proven;
            }
        }
    }

    fn note_returned(&mut self, copies: &[Copy]) {
        let mut settled: BTreeMap<u64, RangeSet> = BTreeMap::new();
        for copy in copies.iter().filter(|copy| !copy.is_touched) {
            if let Says::Settled { queue, ranges } = &copy.says {
                let set = settled.entry(*queue).or_default();
                ranges.iter().for_each(|(start, end)| set.insert(Range { start: *start, end: *end }, |_| {}));
            }
        }
        for copy in copies {
            let Says::Message { targets, body: Ok(content) } = &copy.says else { continue };
            let is_settled =
                |(queue, offset): &(u64, u64)| settled.get(queue).is_some_and(|set| set.contains(*offset));
            if !targets.iter().all(is_settled) {
                self.returned.insert(*content);
            }
        }
    }

    /// Whether this content may be missing.
    pub fn may_lose(&self, content: u64) -> bool {
        self.is_unbounded || self.lost.contains_key(&content) || !self.known.contains(&content)
    }

    /// Whether this content may be there again.
    pub fn may_return(&self, content: u64) -> bool {
        self.is_unbounded || self.has_left || self.has_settlements || self.returned.contains(&content)
    }

    /// Whether this content was missing for it, and may be there again by now: what was refused is read.
    pub fn may_come_back(&self, content: u64) -> bool {
        !self.is_fresh && self.lost.contains_key(&content)
    }

    /// Whether a definition may be another, or none.
    pub fn may_change(&self) -> bool {
        self.is_unbounded || self.has_left || self.has_definitions
    }

    /// Whether the loss of this content is to be told at the start: something behind it proves that it was
    /// durable, and its segment is read commit by commit.
    pub fn must_tell(&self, content: u64) -> bool {
        !self.is_unbounded && self.lost.get(&content) == Some(&true)
    }
}

/// Every record of the log.
fn copies(log: &Log, disk: &mut SimDisk, damaged: &Damaged) -> Vec<Copy> {
    // From the first byte of the first record of a commit to the last of its last.
    let mut spans: BTreeMap<(u64, u64, u32), (u32, u32)> = BTreeMap::new();
    let mut found = Vec::new();
    let walked = log.for_each_record(disk, |record| {
        let place = record.place;
        let key = (place.segment, record.commit, record.life);
        let span = spans.entry(key).or_insert((place.at, place.at + place.bytes));
        *span = (span.0.min(place.at), span.1.max(place.at + place.bytes));
        found.push((key, says(&record.record)));
        Ok(())
    });
    let segments = walked.unwrap_or_default();
    let slots: BTreeMap<u64, (u32, bool)> =
        segments.iter().map(|segment| (segment.sequence, (segment.slot, segment.is_sealed))).collect();
    let is_touched = |key: &(u64, u64, u32)| {
        let (from, to) = spans[key];
        let blocks = (from.saturating_sub(COMMIT_HEADER_BYTES)) as usize / BLOCK_BYTES
            ..=(to as usize - 1) / BLOCK_BYTES;
        slots.get(&key.0).is_none_or(|(slot, _)| damaged.touches(*slot, blocks))
    };
    let copy = |(key, says): ((u64, u64, u32), Says)| Copy {
        segment: key.0,
        commit: key.1,
        is_touched: is_touched(&key),
        is_read: slots.get(&key.0).is_some_and(|(_, is_sealed)| !is_sealed),
        says,
    };
    found.into_iter().map(copy).collect()
}

fn says(record: &Record<'_>) -> Says {
    match record {
        Record::Message(message) => Says::Message {
            targets: message.targets.iter().map(|target| (target.queue, target.offset)).collect(),
            body: match message.body {
                Body::Inline(bytes) => Ok(number_of(bytes)),
                Body::Chunked { body, .. } => Err(body),
            },
        },
        Record::Chunk { body, index, bytes } => {
            Says::Chunk { body: *body, index: *index, content: (*index == 0).then(|| number_of(bytes)) }
        }
        Record::Settled { queue, ranges } => Says::Settled {
            queue: *queue,
            ranges: ranges.iter().map(|range| (range.start, range.end)).collect(),
        },
        Record::Gone { queue } => Says::Settled { queue: *queue, ranges: vec![(0, u64::MAX)] },
        // What is said of access is in every commit, and vouched for elsewhere.
        Record::Defined { key, .. } if !is_access(key) => Says::Defined,
        Record::Left { .. } => Says::Left,
        _ => Says::Other,
    }
}

/// Whether a start has told of damage.
pub fn is_told(report: &Report) -> bool {
    report.is_damaged()
        || report.is_lost
        || report.commits_lost_at_end > 0
        || report.groups_damaged > 0
        || !report.refused.is_empty()
        || !report.unopened.is_empty()
}
