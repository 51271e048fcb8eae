//! Computes which messages and settlements a damage of the disk may lose.
//!
//! ```text
//! the store before ── read ──→ where each message and each settlement is stored
//! the damage ─────── blocks ─→ which of them have no intact copy left
//! the next start ── found ───→ nothing else is missing or back, and the start reports the damage
//! ```
//!
//! # Invariants
//! - A commit counts as damaged if any of its blocks is. A file that cannot be opened damages all its
//!   commits.
//! - What has another copy in an undamaged commit must be found.

use std::collections::{BTreeMap, BTreeSet};

use leveret_core::definition::is_access;
use leveret_storage::{BLOCK_BYTES, Body, Log, Range, RangeSet, Record, Report};

use super::content::number_of;
use leveret_test_support::simulated_disk::{Damaged, SimDisk};

/// Bytes of a commit before its first record.
const COMMIT_HEADER_BYTES: u32 = 76;

/// A record of a message or a settlement, and whether its commit was damaged.
struct Copy {
    segment: u64,
    commit: u64,
    is_touched: bool,
    /// Its segment is not sealed, so that a start reads it commit by commit.
    is_read: bool,
    says: Says,
}

/// The part of a record that matters here.
enum Says {
    Message { targets: Vec<(u64, u64)>, body: Result<u64, u64> },
    Chunk { body: u64, index: u32, content: Option<u64> },
    Settled { queue: u64, ranges: Vec<(u64, u64)> },
    Defined,
    Left,
    Other,
}

/// The possible losses by one damage.
#[derive(Debug, Default)]
pub struct Harm {
    /// No start has followed the damage.
    pub is_fresh: bool,
    /// Any message may be missing or back.
    pub is_unbounded: bool,
    /// Contents with a target that has no intact copy, and whether a start can notice the loss.
    lost: BTreeMap<u64, bool>,
    /// All contents in the log.
    known: BTreeSet<u64>,
    /// Contents without an intact commit that contains their settlement.
    returned: BTreeSet<u64>,
    /// Contents whose settlement is in damaged commits only. They are back until a start can read it again.
    unsettled: BTreeSet<u64>,
    /// Definitions were damaged.
    has_definitions: bool,
    /// Settlements were damaged.
    has_settlements: bool,
    /// The record of a deleted segment was damaged: all messages of that segment may be back.
    has_left: bool,
}

impl Harm {
    /// Computes what a damage to these blocks may cost; `disk` is the state before.
    pub fn of(disk: &mut SimDisk, damaged: &Damaged) -> Self {
        let Ok((log, _)) = Log::read_only(disk) else {
            return Self { is_fresh: true, is_unbounded: true, ..Self::default() };
        };
        let copies = copies(&log, disk, damaged);
        let whole = copies.iter().filter(|copy| !copy.is_touched).map(|copy| copy.commit).max().unwrap_or(0);
        let mut harm = Self { is_fresh: true, ..Self::default() };
        harm.note_lost(&copies, whole);
        harm.note_returned(&copies);
        // Behind a gap, a record of a deleted segment is not trusted: the gap may have contained the
        // segment's copies.
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
                // As with messages: once copied, a chunk's old segment may be deleted.
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
        // By target: its content, the segment of its last copy, whether a copy there is intact, and whether a
        // damaged copy precedes an intact commit. Once a message is copied, its old segment may be deleted.
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
        let mut intact: BTreeMap<u64, RangeSet> = BTreeMap::new();
        let mut damaged: BTreeMap<u64, RangeSet> = BTreeMap::new();
        for copy in copies {
            if let Says::Settled { queue, ranges } = &copy.says {
                let settled = if copy.is_touched { &mut damaged } else { &mut intact };
                let set = settled.entry(*queue).or_default();
                ranges.iter().for_each(|(start, end)| set.insert(Range { start: *start, end: *end }, |_| {}));
            }
        }
        let has = |settled: &BTreeMap<u64, RangeSet>, (queue, offset): &(u64, u64)| {
            settled.get(queue).is_some_and(|set| set.contains(*offset))
        };
        for copy in copies {
            let Says::Message { targets, body: Ok(content) } = &copy.says else { continue };
            if !targets.iter().all(|target| has(&intact, target)) {
                self.returned.insert(*content);
            }
            if targets.iter().any(|target| has(&damaged, target) && !has(&intact, target)) {
                self.unsettled.insert(*content);
            }
        }
    }

    /// Returns whether this content may be missing.
    ///
    /// An earlier start may have brought it back, because the disk refused to read its settlement, which a later start
    /// can read again.
    pub fn may_lose(&self, content: u64) -> bool {
        let may_be_settled_again = !self.is_fresh && self.unsettled.contains(&content);
        self.is_unbounded
            || self.lost.contains_key(&content)
            || !self.known.contains(&content)
            || may_be_settled_again
    }

    /// Returns whether this content may be back.
    pub fn may_return(&self, content: u64) -> bool {
        self.is_unbounded || self.has_left || self.has_settlements || self.returned.contains(&content)
    }

    /// Returns whether this content was missing because of this damage and may be back: the disk reads it
    /// again.
    pub fn may_come_back(&self, content: u64) -> bool {
        !self.is_fresh && self.lost.contains_key(&content)
    }

    /// Returns whether definitions may have changed or disappeared.
    pub fn may_change(&self) -> bool {
        self.is_unbounded || self.has_left || self.has_definitions
    }

    /// Returns whether the start must report the loss of this content.
    ///
    /// That is so if a later commit proves that it was durable, and its segment is read commit by commit.
    pub fn must_tell(&self, content: u64) -> bool {
        !self.is_unbounded && self.lost.get(&content) == Some(&true)
    }
}

/// Reads every record of the log.
fn copies(log: &Log, disk: &mut SimDisk, damaged: &Damaged) -> Vec<Copy> {
    // By commit: from the first byte of its first record to the last byte of its last record.
    let mut spans: BTreeMap<(u64, u64, u32), (u32, u32)> = BTreeMap::new();
    let mut found = Vec::new();
    let walked = log.for_each_record(disk, |record| {
        let place = record.place;
        let key = (place.segment, record.commit, record.epoch);
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
        // Every commit contains the access definitions, and their copies are checked elsewhere.
        Record::Defined { key, .. } if !is_access(key) => Says::Defined,
        Record::SegmentRemoved { .. } => Says::Left,
        _ => Says::Other,
    }
}

/// Returns whether a start has reported damage.
pub fn is_told(report: &Report) -> bool {
    report.is_damaged()
        || report.is_lost
        || report.commits_lost_at_end > 0
        || report.groups_damaged > 0
        || !report.refused.is_empty()
        || !report.unopened.is_empty()
}

#[cfg(test)]
mod tests {
    use leveret_core::time::Now;
    use leveret_storage::{Message, Settings, Target, Targets, Urgency};
    use leveret_test_support::simulated_disk::{Mutant, Trouble};

    use super::super::content::body_of;
    use super::super::start::IDENTITY;
    use super::*;

    const NOW: Now = Now::from_ms(1);

    /// Writes the pending commit. Returns its block.
    fn commit(log: &mut Log, disk: &mut SimDisk) -> (u32, usize) {
        while let Some(job) = log.next_prepare() {
            log.prepare_done(job.run(disk)).expect("the disk is well");
        }
        let job = log.next_commit(NOW).expect("a commit is awaited");
        log.commit_done(job.run(disk)).expect("the disk is well");
        let (slot, at) = disk.written().last().copied().expect("it was written");
        (slot, at / BLOCK_BYTES)
    }

    /// A start that cannot read a settlement brings the message back. A later start may read it again.
    #[test]
    fn a_settlement_that_can_be_read_again_may_settle_its_message_again() {
        let mut disk = SimDisk::new(1, Mutant::None, IDENTITY);
        disk.start(Trouble::Never);
        let settings = Settings { segment_bytes: 64 << 10, commit_bytes: 12 << 10, ..Settings::default() };
        let (mut log, _) = Log::open(&mut disk, settings, IDENTITY, NOW).expect("it opens");
        for number in [1, 2] {
            let message = Message {
                targets: Targets::List(&[Target { queue: 1, offset: number }]),
                enqueued_ms: 0,
                expiration_ms: None,
                exchange: b"",
                key: b"key",
                properties: b"",
                body: Body::Inline(&body_of(number, 20)),
            };
            log.append(&Record::Message(message), Urgency::Awaited, NOW).expect("there is room");
            commit(&mut log, &mut disk);
        }
        log.settle(1, Range { start: 1, end: 2 }, Urgency::Awaited, NOW);
        let settled = commit(&mut log, &mut disk);
        let mut harm = Harm::of(&mut disk.copy(), &Damaged::of([settled].into()));
        assert!(harm.may_return(1) && !harm.may_lose(1) && !harm.may_lose(2), "{harm:?}");
        harm.is_fresh = false;
        assert!(harm.may_lose(1), "it was settled before: {harm:?}");
        assert!(!harm.may_lose(2), "it never was: {harm:?}");
    }
}
