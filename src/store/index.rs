//! What the log holds, as far as memory must know it: which segment holds which part of each queue.
//!
//! One [`Index::apply`] serves life (when a commit is durable) and recovery. It does not care for order:
//! a message is live when it was seen and not settled, of two copies the one seen last is its place, of two
//! definitions the higher version holds.
//!
//! A queue's messages come in *runs*: offsets without a gap in one segment, so a queue costs a run per
//! segment however many messages it has. Messages copied forward by the cleaner are kept one by one.
//!
//! Always true: a segment's `live` is the number of message targets, definitions and chunks whose place it
//! is; a segment is left out of the log only when that is 0 and every settlement or deletion in it that
//! still kills a record elsewhere was written again.

use std::collections::BTreeMap;

use super::ranges::RangeSet;
use super::record::{Body, Message, Range, Record};

/// Where a record lies.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Place {
    /// The segment's sequence.
    pub segment: u64,
    /// Its first byte in the segment.
    pub at: u32,
    /// Its length in bytes.
    pub bytes: u32,
}

/// A segment that is part of the log.
#[derive(Clone, Debug)]
pub struct Segment {
    /// Its file.
    pub slot: u32,
    /// Targets, definitions and chunks whose place it is.
    pub live: u64,
    /// All of those that were ever put there.
    pub total: u64,
    /// Bytes in use, header included.
    pub bytes: u32,
    /// The cleaner could not read all that is live in it.
    pub stuck: bool,
}

/// Offsets without a gap whose records lie in one segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// The offsets.
    pub offsets: Range,
    /// The segment.
    pub segment: u64,
    /// Bytes of the records.
    pub bytes: u64,
}

/// What is known of one queue.
#[derive(Clone, Debug)]
pub struct QueueIndex {
    /// Where its messages were first written, rising.
    pub runs: Vec<Run>,
    /// Live messages that were copied since: offset and segment.
    pub moved: BTreeMap<u64, u64>,
    /// Settled offsets.
    pub settled: RangeSet,
    /// Live messages.
    pub live: u64,
    /// The first offset that surely was not delivered; 0 when there is no mark.
    pub delivered_through: u64,
    /// The queue is deleted.
    pub gone: bool,
    /// Settlements and marks lie in this segment and later ones.
    pub(super) settled_since: u64,
    /// Segments with copies, dead ones included.
    copies: Vec<u64>,
    /// Live messages whose bodies are chunks.
    large: BTreeMap<u64, u64>,
    next_offset: u64,
}

impl Default for QueueIndex {
    fn default() -> Self {
        Self {
            runs: Vec::new(),
            moved: BTreeMap::new(),
            settled: RangeSet::default(),
            live: 0,
            delivered_through: 0,
            gone: false,
            settled_since: u64::MAX,
            copies: Vec::new(),
            large: BTreeMap::new(),
            next_offset: 0,
        }
    }
}

impl QueueIndex {
    /// The offset that the next message may take: no message, settlement or delivery ever had it.
    pub fn next_offset(&self) -> u64 {
        self.next_offset.max(self.settled.end()).max(self.delivered_through)
    }

    /// Whether any record of this queue, dead or alive, lies in a segment that `counts`.
    pub(super) fn is_held_by(&self, counts: impl Fn(u64) -> bool) -> bool {
        self.runs.iter().any(|run| counts(run.segment)) || self.copies.iter().any(|segment| counts(*segment))
    }

    fn run_of(&self, offset: u64) -> Option<&Run> {
        let at = self.runs.partition_point(|run| run.offsets.end <= offset);
        self.runs.get(at).filter(|run| run.offsets.start <= offset)
    }

    /// The segment that holds a live message.
    pub fn segment_of(&self, offset: u64) -> Option<u64> {
        if self.gone || self.settled.contains(offset) {
            return None;
        }
        self.moved.get(&offset).copied().or_else(|| self.run_of(offset).map(|run| run.segment))
    }
}

/// The newest state of one definition.
#[derive(Clone, Debug)]
pub struct DefinitionIndex {
    /// Its version.
    pub version: u64,
    /// Where it lies.
    pub place: Place,
    /// It is a deletion.
    pub deleted: bool,
    /// Segments with records of this key.
    segments: Vec<u64>,
}

#[derive(Clone, Debug, Default)]
struct LargeBody {
    /// Segment by index.
    chunks: BTreeMap<u32, u64>,
    holders: u64,
    dead: bool,
}

/// Everything.
#[derive(Clone, Debug, Default)]
pub struct Index {
    segments: BTreeMap<u64, Segment>,
    queues: BTreeMap<u64, QueueIndex>,
    definitions: BTreeMap<Box<[u8]>, DefinitionIndex>,
    bodies: BTreeMap<u64, LargeBody>,
    next_body: u64,
}

impl Index {
    /// The segments of the log by sequence.
    pub const fn segments(&self) -> &BTreeMap<u64, Segment> {
        &self.segments
    }

    /// The queues by incarnation, deleted ones included as long as the log holds records of theirs.
    pub const fn queues(&self) -> &BTreeMap<u64, QueueIndex> {
        &self.queues
    }

    /// The definitions by key, deleted ones included.
    pub const fn definitions(&self) -> &BTreeMap<Box<[u8]>, DefinitionIndex> {
        &self.definitions
    }

    /// An id for a large body that no other ever had.
    pub const fn take_body_id(&mut self) -> u64 {
        self.next_body += 1;
        self.next_body
    }

    pub(super) fn add_segment(&mut self, sequence: u64, slot: u32, bytes: u32) {
        self.segments.insert(sequence, Segment { slot, live: 0, total: 0, bytes, stuck: false });
    }

    pub(super) fn set_bytes(&mut self, sequence: u64, bytes: u32) {
        if let Some(segment) = self.segments.get_mut(&sequence) {
            segment.bytes = bytes;
        }
    }

    /// The cleaner has copied what it could: what is live now could not be read.
    pub(super) fn end_copying(&mut self, sequence: u64) {
        if let Some(segment) = self.segments.get_mut(&sequence) {
            segment.stuck = segment.live > 0;
        }
    }

    /// Takes note of one record.
    pub(super) fn apply(&mut self, record: &Record<'_>, place: Place) {
        match record {
            Record::Message(message) => self.apply_message(message, place),
            Record::Chunk { body, index, .. } => self.apply_chunk(*body, *index, place),
            Record::Settled { queue, ranges } => {
                self.note_settlement(*queue, place);
                ranges.iter().for_each(|range| self.settle(*queue, range));
            }
            Record::Gone { queue } => {
                self.note_settlement(*queue, place);
                self.settle(*queue, Range { start: 0, end: u64::MAX });
                self.queue(*queue).gone = true;
            }
            Record::Defined { version, key, value } => {
                self.apply_defined(*version, key, value.is_none(), place)
            }
            Record::Marked { queue, offset } => {
                self.note_settlement(*queue, place);
                let queue = self.queue(*queue);
                queue.delivered_through = queue.delivered_through.max(*offset);
            }
        }
    }

    fn queue(&mut self, queue: u64) -> &mut QueueIndex {
        self.queues.entry(queue).or_default()
    }

    fn note_settlement(&mut self, queue: u64, place: Place) {
        let queue = self.queue(queue);
        queue.settled_since = queue.settled_since.min(place.segment);
    }

    /// Everything settled in the queue was written again, in `segment` and later ones.
    pub(super) fn settled_again(&mut self, queue: u64, segment: u64) {
        if let Some(queue) = self.queues.get_mut(&queue) {
            queue.settled_since = segment;
        }
    }

    fn gain(&mut self, segment: u64) {
        if let Some(segment) = self.segments.get_mut(&segment) {
            segment.live += 1;
            segment.total += 1;
        }
    }

    fn lose(&mut self, segment: u64, count: u64) {
        if let Some(segment) = self.segments.get_mut(&segment) {
            segment.live -= count;
        }
    }

    fn apply_message(&mut self, message: &Message<'_>, place: Place) {
        let body = match message.body {
            Body::Inline(_) => None,
            Body::Chunked { body, .. } => Some(body),
        };
        if let Some(body) = body {
            self.next_body = self.next_body.max(body);
            self.bodies.entry(body).or_default();
        }
        let share = u64::from(place.bytes) / message.targets.len() as u64;
        for target in message.targets.iter() {
            self.apply_target(target.queue, target.offset, body, share, place.segment);
        }
    }

    fn apply_target(&mut self, queue: u64, offset: u64, body: Option<u64>, bytes: u64, segment: u64) {
        let entry = self.queue(queue);
        let range = Range { start: offset, end: offset + 1 };
        let is_dead = entry.gone || entry.settled.contains(offset);
        if !is_dead && let Some(old) = entry.segment_of(offset) {
            if old != segment {
                entry.moved.insert(offset, segment);
                note(&mut entry.copies, segment);
                self.lose(old, 1);
                self.gain(segment);
            }
            return;
        }
        if is_dead || offset < entry.next_offset {
            note(&mut entry.copies, segment);
            if !is_dead {
                entry.moved.insert(offset, segment);
            }
        } else if let Some(run) =
            entry.runs.last_mut().filter(|run| run.segment == segment && run.offsets.end == offset)
        {
            run.offsets.end += 1;
            run.bytes += bytes;
        } else {
            entry.runs.push(Run { offsets: range, segment, bytes });
        }
        entry.next_offset = entry.next_offset.max(offset + 1);
        if is_dead {
            return;
        }
        entry.live += 1;
        if let Some(body) = body {
            entry.large.insert(offset, body);
            self.bodies.entry(body).or_default().holders += 1;
        }
        self.gain(segment);
    }

    fn apply_chunk(&mut self, body: u64, index: u32, place: Place) {
        self.next_body = self.next_body.max(body);
        let entry = self.bodies.entry(body).or_default();
        let old = entry.chunks.insert(index, place.segment);
        if entry.dead || old == Some(place.segment) {
            return;
        }
        if let Some(old) = old {
            self.lose(old, 1);
        }
        self.gain(place.segment);
    }

    fn apply_defined(&mut self, version: u64, key: &[u8], deleted: bool, place: Place) {
        let fresh = DefinitionIndex { version, place, deleted, segments: vec![place.segment] };
        let Some(old) = self.definitions.get_mut(key) else {
            self.definitions.insert(key.into(), fresh);
            if !deleted {
                self.gain(place.segment);
            }
            return;
        };
        note(&mut old.segments, place.segment);
        if old.version > version {
            return;
        }
        let lost = (!old.deleted).then_some(old.place.segment);
        (old.version, old.place, old.deleted) = (version, place, deleted);
        if let Some(lost) = lost {
            self.lose(lost, 1);
        }
        if !deleted {
            self.gain(place.segment);
        }
    }

    fn settle(&mut self, queue: u64, range: Range) {
        let mut fresh = heapless::Deque::<Range, 4>::new();
        let mut spilled = Vec::new();
        self.queue(queue).settled.insert(range, |part| {
            if fresh.push_back(part).is_err() {
                spilled.push(part);
            }
        });
        for part in fresh.into_iter().chain(spilled) {
            self.settle_part(queue, part);
        }
    }

    /// Offsets that were not settled before.
    fn settle_part(&mut self, queue: u64, part: Range) {
        let Some(entry) = self.queues.get_mut(&queue) else {
            return;
        };
        let first = entry.runs.partition_point(|run| run.offsets.end <= part.start);
        for run in entry.runs[first..].iter().take_while(|run| run.offsets.start < part.end) {
            let (start, end) = (run.offsets.start.max(part.start), run.offsets.end.min(part.end));
            let away = entry.moved.range(start..end).count() as u64;
            let count = end - start - away;
            entry.live -= count;
            if let Some(segment) = self.segments.get_mut(&run.segment) {
                segment.live -= count;
            }
        }
        while let Some((&offset, &segment)) = entry.moved.range(part.start..part.end).next() {
            entry.moved.remove(&offset);
            entry.live -= 1;
            if let Some(segment) = self.segments.get_mut(&segment) {
                segment.live -= 1;
            }
        }
        while let Some((&offset, &body)) = entry.large.range(part.start..part.end).next() {
            entry.large.remove(&offset);
            let Some(large) = self.bodies.get_mut(&body) else { continue };
            large.holders -= 1;
            if large.holders == 0 {
                bury(large, &mut self.segments);
            }
        }
    }

    /// Whether some segment would have nothing live left if these offsets were settled.
    pub(super) fn would_empty_a_segment(&self, settling: &BTreeMap<u64, RangeSet>) -> bool {
        let mut lost: BTreeMap<u64, u64> = BTreeMap::new();
        for (queue, set) in settling {
            let Some(entry) = self.queues.get(queue) else { continue };
            for part in set.ranges() {
                let runs = entry.runs.iter().filter(|run| run.offsets.start < part.end);
                for run in runs.filter(|run| run.offsets.end > part.start) {
                    let count = run.offsets.end.min(part.end) - run.offsets.start.max(part.start);
                    *lost.entry(run.segment).or_default() += count;
                }
                for segment in entry.moved.range(part.start..part.end).map(|(_, segment)| segment) {
                    *lost.entry(*segment).or_default() += 1;
                }
            }
        }
        lost.iter().any(|(segment, lost)| self.segments.get(segment).is_some_and(|found| found.live <= *lost))
    }

    /// Chunks whose message will never come.
    pub(super) fn drop_body(&mut self, body: u64) {
        if let Some(large) = self.bodies.get_mut(&body) {
            bury(large, &mut self.segments);
        }
    }

    /// Ends recovery: chunks without a message are dead, and what kills nothing any more is forgotten.
    pub(super) fn end_recovery(&mut self) {
        for large in self.bodies.values_mut().filter(|large| large.holders == 0) {
            bury(large, &mut self.segments);
        }
        self.forget_gone();
    }

    /// Takes segments that a durable header left out of the log.
    pub(super) fn remove_segment(&mut self, sequence: u64) {
        self.segments.remove(&sequence);
        for queue in self.queues.values_mut() {
            queue.runs.retain(|run| run.segment != sequence);
            queue.copies.retain(|segment| *segment != sequence);
        }
        for definition in self.definitions.values_mut() {
            definition.segments.retain(|segment| *segment != sequence);
        }
        self.definitions.retain(|_, definition| !definition.deleted || !definition.segments.is_empty());
        for large in self.bodies.values_mut() {
            large.chunks.retain(|_, segment| *segment != sequence);
        }
        self.bodies.retain(|_, large| !large.dead || !large.chunks.is_empty());
        self.forget_gone();
    }

    fn forget_gone(&mut self) {
        self.queues.retain(|_, queue| !queue.gone || queue.is_held_by(|_| true));
    }

    /// Whether `record`, found in `segment`, must be copied before the segment can be left out.
    pub(super) fn is_live_in(&self, record: &Record<'_>, segment: u64) -> bool {
        match record {
            Record::Message(message) => message.targets.iter().any(|target| {
                self.queues.get(&target.queue).and_then(|queue| queue.segment_of(target.offset))
                    == Some(segment)
            }),
            Record::Chunk { body, index, .. } => self
                .bodies
                .get(body)
                .is_some_and(|large| !large.dead && large.chunks.get(index) == Some(&segment)),
            Record::Defined { version, key, .. } => self.definitions.get(*key).is_some_and(|definition| {
                !definition.deleted && definition.version == *version && definition.place.segment == segment
            }),
            Record::Settled { .. } | Record::Gone { .. } | Record::Marked { .. } => false,
        }
    }

    /// Queues whose settlements must be written again before `segment` may be left out together with the
    /// segments that are `leaving` already.
    pub(super) fn queues_to_carry(&self, segment: u64, leaving: &[u64]) -> impl Iterator<Item = u64> {
        self.queues.iter().filter_map(move |(&queue, entry)| {
            let stays = |other: u64| other != segment && !leaving.contains(&other);
            (entry.settled_since <= segment && (!entry.gone || entry.is_held_by(stays))).then_some(queue)
        })
    }

    /// Deleted definitions whose record must be written again before `segment` may be left out.
    pub(super) fn deletions_to_carry(
        &self,
        segment: u64,
        leaving: &[u64],
    ) -> impl Iterator<Item = (&[u8], u64)> {
        self.definitions.iter().filter_map(move |(key, definition)| {
            let stays = |other: &u64| *other != segment && !leaving.contains(other);
            let kills = definition.segments.iter().any(stays);
            (definition.deleted && definition.place.segment == segment && kills)
                .then_some((&**key, definition.version))
        })
    }
}

fn note(list: &mut Vec<u64>, segment: u64) {
    if let Err(at) = list.binary_search(&segment) {
        list.insert(at, segment);
    }
}

fn bury(large: &mut LargeBody, segments: &mut BTreeMap<u64, Segment>) {
    if large.dead {
        return;
    }
    large.dead = true;
    for segment in large.chunks.values() {
        if let Some(segment) = segments.get_mut(segment) {
            segment.live -= 1;
        }
    }
}
