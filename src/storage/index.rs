//! The in-memory index of the log: which segment holds which part of each queue.
//!
//! [`Index::apply`] is used both when a commit becomes durable and in recovery. It does not depend on the order of
//! records. A message is live if the index contains it and it is not settled. If a message has several copies, its
//! *place* is the copy applied last. If a definition has several versions, the highest version counts.
//!
//! # Invariants
//! - A segment's `live` is the number of message targets, definitions and chunks whose place is in the
//!   segment.
//! - A segment is removed only when its `live` is 0, and its settlements and deletions that still affect records in
//!   other segments were written again.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use crate::pending_writes::{is_group, is_transient};
use leveret_core::definition::{ACCESS_STORED_KEY, incarnation_in, is_retained_message};

use super::access::Digest;
use super::commit::BLOCK_BYTES;
use super::log::{LogPosition, RecordLocation, Settings};
use super::parts::{BodyPart, MessageEntry};
use super::queue_index::{
    ALLOCATION_BYTES, AddOutcome, QueueIndex, SettleEffect, WatermarkReset, tree_bytes,
};
use super::record::{Body, CHUNK_BODY_BYTES, Message, Range, Record, Target, for_each_record};
use super::settled::Spans;

/// The index of segments, queues, large bodies and definitions.
#[derive(Clone, Debug, Default)]
pub struct Index {
    segments: BTreeMap<u64, Segment>,
    // Boxed, because the nodes of a tree with ascending keys are little more than half full, and unused space in a
    // node should be small.
    queues: BTreeMap<u64, Box<QueueIndex>>,
    definitions: BTreeMap<Box<[u8]>, Box<DefinitionIndex>>,
    bodies: BTreeMap<u64, LargeBody>,
    next_body: u64,
    /// Number of runs of all queues.
    runs: usize,
    /// Digest of the live access definitions.
    access: Digest,
    /// The segment that is being compacted, and the segment that is being drained; 0 for none.
    leaving: [u64; 2],
    /// Whether a definition was added since the last `take_defined`.
    has_defined: bool,
    /// Number of queues and definitions deleted since the last segment was added.
    deleted_in_last: usize,
    /// Memory of a removed segment's spans, for reuse.
    spare_spans: Spans,
    /// Ids of bodies that no message will reference. Some of their chunks may still be in flight, up to the given
    /// position.
    dropped: Vec<(u64, LogPosition)>,
}

impl Index {
    /// Returns the segments of the log by sequence.
    pub const fn segments(&self) -> &BTreeMap<u64, Segment> {
        &self.segments
    }

    /// Returns the queues by incarnation. Deleted queues are included as long as the log holds records of
    /// them.
    pub const fn queues(&self) -> &BTreeMap<u64, Box<QueueIndex>> {
        &self.queues
    }

    /// Returns the definitions by key, deleted ones included.
    pub const fn definitions(&self) -> &BTreeMap<Box<[u8]>, Box<DefinitionIndex>> {
        &self.definitions
    }

    /// Returns the incarnations of the queues that have live messages. Transient queues and queues that represent
    /// groups are excluded.
    pub fn queues_with_messages(&self) -> BTreeSet<u64> {
        let is_queue = |incarnation: u64, queue: &QueueIndex| {
            queue.live > 0 && !queue.gone && !is_transient(incarnation) && !is_group(incarnation)
        };
        // Inserted one by one, because the queues are already in order, and `collect` would add code for sorting.
        let mut found = BTreeSet::new();
        found.extend(self.queues.iter().filter(|(at, queue)| is_queue(**at, queue)).map(|(at, _)| *at));
        found
    }

    /// Returns whether the object defined by `key` was deleted after the queue with incarnation `queue` was created.
    pub fn is_deleted_since(&self, key: &[u8], queue: u64) -> bool {
        self.definitions.get(key).is_some_and(|definition| definition.deleted && definition.version > queue)
    }

    /// Returns, for each queue with a definition, the version of its newest definition by incarnation.
    pub fn versions_of_queues(&self) -> BTreeMap<u64, u64> {
        let mut newest = BTreeMap::new();
        for definition in self.definitions.values().filter(|definition| definition.names_queue()) {
            let version = newest.entry(definition.queue).or_default();
            *version = definition.version.max(*version);
        }
        newest
    }

    /// Returns a high estimate of the bytes of the largest live body; 0 if there is no message.
    pub fn largest_body_bytes(&self) -> u64 {
        let wanted = self.bodies.values().filter(|body| !body.dead);
        let in_one_piece = self.queues.values().any(|queue| queue.live > 0);
        let least = if in_one_piece { CHUNK_BODY_BYTES as u64 } else { 0 };
        wanted.map(LargeBody::bytes).max().unwrap_or(0).max(least)
    }

    /// Returns the digest of the live access definitions.
    pub(super) const fn access(&self) -> Digest {
        self.access
    }

    /// Sets the segment that is being compacted; 0 for none. If a definition has three copies, the index stops
    /// counting the one in this segment.
    pub(super) const fn set_compacting(&mut self, segment: u64) {
        self.leaving[0] = segment;
    }

    /// Sets the segment that is being drained; see [`Self::set_compacting`].
    pub(super) const fn set_draining(&mut self, segment: u64) {
        self.leaving[1] = segment;
    }

    /// Returns a high estimate of the memory of the index in bytes.
    pub fn bytes(&self) -> usize {
        let queues = self.queues.values().map(|queue| queue.heap_bytes()).sum::<usize>();
        let keys = self.definitions.keys().map(|key| key.len() + ALLOCATION_BYTES).sum::<usize>();
        let definitions = self.definitions.values().map(|definition| definition.heap_bytes()).sum::<usize>();
        tree_bytes::<u64, Segment>(self.segments.len())
            + self.segments.values().map(|s| s.spans.heap_bytes() + ALLOCATION_BYTES).sum::<usize>()
            + tree_bytes::<u64, Box<QueueIndex>>(self.queues.len())
            + tree_bytes::<Box<[u8]>, Box<DefinitionIndex>>(self.definitions.len())
            + tree_bytes::<u64, LargeBody>(self.bodies.len())
            + self.bodies.values().map(LargeBody::heap_bytes).sum::<usize>()
            + queues
            + keys
            + definitions
    }

    /// Returns the part of [`Self::bytes`] that does not depend on messages: the bytes for definitions and queues
    /// without messages.
    pub(super) fn fixed_index_bytes(&self) -> usize {
        let definitions = self.definitions.iter().filter(|(_, definition)| !definition.deleted);
        let bytes = |key: &[u8], definition: &DefinitionIndex| {
            let itself = definition.heap_bytes().min(DefinitionIndex::USUAL_BYTES);
            key.len() + ALLOCATION_BYTES + tree_bytes::<Box<[u8]>, Box<DefinitionIndex>>(1) + itself
        };
        definitions.map(|(key, definition)| bytes(key, definition)).sum::<usize>()
            + self.queues.values().filter(|queue| !queue.gone).count() * EMPTY_QUEUE_BYTES
    }

    /// Returns the number of deleted queues and definitions, and their part of [`Self::bytes`]. The index forgets
    /// them when their segments are removed, and nothing must be copied before.
    pub(super) fn deleted(&self) -> (usize, usize) {
        let queues = self.queues.values().filter(|queue| queue.gone);
        let definitions = self.definitions.iter().filter(|(_, definition)| definition.deleted);
        let (in_tree, key_in_tree) =
            (tree_bytes::<u64, Box<QueueIndex>>(1), tree_bytes::<Box<[u8]>, Box<DefinitionIndex>>(1));
        let queues = queues.map(|queue| queue.heap_bytes() + in_tree);
        let definitions = definitions
            .map(|(key, definition)| key.len() + ALLOCATION_BYTES + definition.heap_bytes() + key_in_tree);
        queues.chain(definitions).fold((0, 0), |(count, sum), bytes| (count + 1, sum + bytes))
    }

    /// Returns the number of queues and definitions deleted since the active segment was added.
    pub(super) const fn deleted_in_last(&self) -> usize {
        self.deleted_in_last
    }

    /// Frees memory that is kept for reuse.
    pub(super) fn release_memory(&mut self) {
        self.queues.values_mut().for_each(|queue| queue.release_memory());
        self.spare_spans = Spans::default();
    }

    /// Returns the number of runs of all queues.
    pub const fn runs(&self) -> usize {
        self.runs
    }

    /// Returns an unused id for a large body.
    pub const fn take_body_id(&mut self) -> u64 {
        self.next_body += 1;
        self.next_body
    }

    /// Adds an empty segment, which becomes the active one.
    pub(super) fn add_segment(&mut self, sequence: u64, slot: u32, bytes: u32) {
        let (live, live_bytes, pending, pending_bytes) = (0, 0, 0, 0);
        let (stuck, spans) = (false, Spans::default());
        let segment = Segment { slot, live, live_bytes, pending, pending_bytes, bytes, stuck, spans };
        let known = self.segments.insert(sequence, segment);
        // Replacing a segment would lose the counts of its live records.
        assert!(known.is_none(), "a segment of the log is added twice");
        self.deleted_in_last = 0;
    }

    /// Sets the number of bytes of a segment that are in use.
    pub(super) fn set_bytes(&mut self, sequence: u64, bytes: u32) {
        if let Some(segment) = self.segments.get_mut(&sequence) {
            segment.bytes = bytes;
        }
    }

    /// Ends the compaction of a segment. If the segment was read to its end and still has live records, these are
    /// unreadable, and the segment is marked as stuck.
    pub(super) fn end_compaction(&mut self, sequence: u64, was_read_to_its_end: bool) {
        if let Some(segment) = self.segments.get_mut(&sequence) {
            segment.stuck = segment.live > 0 && was_read_to_its_end;
        }
    }

    /// Returns the number of segments with live records that the compactor could not read.
    pub(super) fn stuck(&self) -> usize {
        self.segments.values().filter(|segment| segment.stuck).count()
    }

    /// Applies one record.
    pub(super) fn apply(&mut self, record: &Record<'_>, place: RecordLocation) {
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
                let queue = self.queue(*queue);
                let is_newly_gone = !queue.gone;
                queue.note_gone(place.segment);
                self.deleted_in_last += usize::from(is_newly_gone);
            }
            Record::Defined { version, key, value } => {
                let queue = value.and_then(|value| incarnation_in(key, value)).unwrap_or(0);
                self.apply_defined(*version, key, value.is_none(), queue, place);
            }
            Record::DeliveredWatermark { queue, offset } => {
                self.note_settlement(*queue, place);
                let queue = self.queue(*queue);
                queue.watermark = queue.watermark.max(*offset);
            }
            Record::WatermarkReset { queue, offset, watermark } => {
                self.note_settlement(*queue, place);
                let reset = WatermarkReset { watermark: *watermark, offset: *offset };
                let queue = self.queue(*queue);
                queue.watermark_reset = queue.watermark_reset.max(reset);
            }
            // These records do not change the index. The code that writes or reads the log handles them.
            Record::SegmentRemoved { .. } | Record::Optional { .. } => {}
        }
    }

    fn queue(&mut self, queue: u64) -> &mut QueueIndex {
        self.queues.entry(queue).or_default()
    }

    /// Records that a segment contains settlements or watermarks of a queue.
    fn note_settlement(&mut self, queue: u64, place: RecordLocation) {
        let queue = self.queue(queue);
        queue.settled_since = queue.settled_since.min(place.segment);
    }

    /// Forgets all watermark resets. Called when a part of the log is missing, because that part may contain a higher
    /// watermark, which would make the reset void.
    pub(super) fn forget_watermark_resets(&mut self) {
        self.queues.values_mut().for_each(|queue| queue.watermark_reset = WatermarkReset::default());
    }

    /// Records that all settlements of the queue were written again, in `segment` and later ones.
    pub(super) fn note_rewritten(&mut self, queue: u64, segment: u64) {
        if let Some(queue) = self.queues.get_mut(&queue) {
            queue.settled_since = segment;
        }
    }

    // A record may belong to a segment that is not in the log any more, because of damage. Such records are not
    // counted.
    fn gain(&mut self, segment: u64, count: u64, bytes: u64) {
        if let Some(segment) = self.segments.get_mut(&segment) {
            segment.live += count;
            segment.live_bytes += bytes;
        }
    }

    /// Subtracts a live record from its segment.
    fn lose(&mut self, segment: u64, bytes: u64) {
        if let Some(segment) = self.segments.get_mut(&segment) {
            segment.lose(1, bytes);
        }
    }

    /// Applies those records of a commit for which `is_wanted` is true. The first record is at offset `at` of its
    /// segment. Returns the number of all records.
    pub(super) fn apply_records(
        &mut self,
        records: &[u8],
        segment: u64,
        at: u32,
        is_wanted: impl Fn(&Record<'_>) -> bool,
    ) -> u32 {
        for_each_record(records, at, |record, (at, bytes)| {
            if is_wanted(record) {
                self.apply(record, RecordLocation { segment, at, bytes });
            }
        })
    }

    fn apply_message(&mut self, message: &Message<'_>, place: RecordLocation) {
        let body = if let Body::Chunked { body, .. } = message.body { Some(body) } else { None };
        let share = place.bytes / message.targets.len() as u32;
        for target in message.targets.iter() {
            self.apply_target(target.queue, target.offset, body, share, place.segment);
        }
        // If all queues of the message have settled it already, no later settlement will free the chunks of its body.
        if let Some(large) = body.and_then(|body| self.bodies.get_mut(&body)).filter(|l| l.live_messages == 0)
        {
            large.mark_dead(&mut self.segments);
        }
    }

    /// Applies an entry of a footer: a message in one of its queues.
    pub(super) fn apply_entry(&mut self, entry: &MessageEntry, segment: u64) {
        let body = entry.is_chunked.then_some(entry.body);
        self.apply_target(entry.queue, entry.offset, body, entry.share(), segment);
    }

    /// Applies messages of one queue, ascending by offset. Contiguous messages that are certainly new are added in
    /// one step, because a start applies all messages of the log and should be fast.
    pub(super) fn apply_entries(
        &mut self,
        queue: u64,
        entries: impl Iterator<Item = MessageEntry>,
        segment: u64,
    ) {
        let first_new_offset = self.queues.get(&queue).map_or(0, |queue| queue.first_new_offset());
        let mut entries = entries.peekable();
        while let Some(entry) = entries.next() {
            if entry.is_chunked || entry.offset < first_new_offset {
                self.apply_entry(&entry, segment);
                continue;
            }
            let mut offsets = Range { start: entry.offset, end: entry.offset + 1 };
            let mut bytes = entry.share();
            while let Some(next) = entries.next_if(|next| next.offset == offsets.end && !next.is_chunked) {
                offsets.end += 1;
                bytes += next.share();
            }
            let entry = self.queues.entry(queue).or_default();
            let runs = entry.runs.len();
            entry.add_new(offsets, segment, bytes);
            self.runs = self.runs + entry.runs.len() - runs;
            self.gain(segment, offsets.end - offsets.start, bytes.into());
        }
    }

    /// Applies a message in one of its queues; `body` is the id of its chunked body.
    fn apply_target(&mut self, queue: u64, offset: u64, body: Option<u64>, bytes: u32, segment: u64) {
        if let Some(body) = body {
            self.next_body = self.next_body.max(body);
            self.bodies.entry(body).or_default();
        }
        let entry = self.queues.entry(queue).or_default();
        let runs = entry.runs.len();
        let seen = entry.add(offset, segment, bytes);
        self.runs = self.runs + entry.runs.len() - runs;
        match seen {
            AddOutcome::Again | AddOutcome::Dead => {}
            AddOutcome::Moved(old, lost) => {
                self.lose(old, lost.into());
                self.gain(segment, 1, bytes.into());
            }
            AddOutcome::New => {
                if let Some(body) = body {
                    let large = self.bodies.entry(body).or_default();
                    large.live_messages += 1;
                    entry.add_large(offset, body, large.bytes());
                }
                self.gain(segment, 1, bytes.into());
            }
        }
    }

    /// Sets the locations of the queues' parts in the footer of a sealed segment, relative to `base`.
    pub(super) fn set_parts(&mut self, segment: u64, base: u32, parts: &[(u64, BodyPart)]) {
        if let Some(segment) = self.segments.get_mut(&segment) {
            segment.spans = Spans::of(base, parts, core::mem::take(&mut self.spare_spans));
        }
    }

    /// Returns the approximate location of a queue's part in a sealed segment's footer ([`Spans`]); empty if it is
    /// unknown.
    pub(super) fn span_of(&self, segment: u64, queue: u64) -> BodyPart {
        self.segments.get(&segment).map_or(BodyPart::default(), |segment| segment.spans.find(queue))
    }

    /// Returns the location of a chunk of a large body; `None` if the index has no such chunk.
    pub(super) fn place_of_chunk(&self, body: u64, index: u32) -> Option<RecordLocation> {
        self.bodies.get(&body)?.chunks.get(&index).copied()
    }

    /// Returns the file and the offset of the block in which a chunk of a large body begins; `None` if the index has
    /// no such chunk.
    pub(super) fn block_of_chunk(&self, body: u64, index: u32) -> Option<(u32, u32)> {
        let place = self.place_of_chunk(body, index)?;
        let block = BLOCK_BYTES as u32;
        Some((self.segments.get(&place.segment)?.slot, place.at / block * block))
    }

    fn apply_chunk(&mut self, body: u64, index: u32, place: RecordLocation) {
        self.next_body = self.next_body.max(body);
        let entry = self.bodies.entry(body).or_default();
        let old = entry.chunks.insert(index, place);
        if entry.dead || old.is_some_and(|old| old.segment == place.segment) {
            return;
        }
        if let Some(old) = old {
            self.lose(old.segment, old.bytes.into());
        }
        self.gain(place.segment, 1, place.bytes.into());
    }

    /// Applies a definition. `queue` is the incarnation of the queue that it defines, or 0 if it defines another
    /// object.
    fn apply_defined(&mut self, version: u64, key: &[u8], deleted: bool, queue: u64, place: RecordLocation) {
        self.has_defined |= has_two_copies(key);
        let Some(old) = self.definitions.get_mut(key) else {
            let segments = SegmentList::Few([place.segment, 0]);
            let second = NO_LOCATION;
            let fresh = DefinitionIndex { version, place, second, deleted, queue, segments };
            self.definitions.insert(key.into(), Box::new(fresh));
            self.deleted_in_last += usize::from(deleted);
            if !deleted {
                self.access.add(key, version);
                self.gain(place.segment, 1, place.bytes.into());
            }
            return;
        };
        if *key != ACCESS_STORED_KEY {
            // [`ACCESS_STORED_KEY`] is excluded: it is in every commit and is never deleted.
            old.segments.note(place.segment);
        }
        if old.version > version {
            return;
        }
        if old.version == version && old.deleted == deleted {
            old.queue = old.queue.max(queue);
            if place != old.place {
                self.apply_again(key, place);
            }
            return;
        }
        let lost = [Some(old.place), old.second()].map(|place| place.filter(|_| !old.deleted));
        if !old.deleted {
            self.access.remove(key, old.version);
            self.deleted_in_last += usize::from(deleted);
        }
        if !deleted {
            self.access.add(key, version);
        }
        let counts_second = has_two_copies(key);
        (old.version, old.place, old.second, old.deleted) = (version, place, NO_LOCATION, deleted);
        old.queue = queue;
        for lost in lost.into_iter().take(if counts_second { 2 } else { 1 }).flatten() {
            self.lose(lost.segment, lost.bytes.into());
        }
        if !deleted {
            self.gain(place.segment, 1, place.bytes.into());
        }
    }

    /// Applies another copy of a known definition.
    ///
    /// Only two copies count as live. Of three copies, one stops counting: preferably one in a segment that is being
    /// removed, otherwise one in the segment of the newest copy, otherwise the oldest. Of a definition without two
    /// copies ([`has_two_copies`]), only the newest copy counts.
    fn apply_again(&mut self, key: &[u8], place: RecordLocation) {
        let leaving = self.leaving;
        let Some(definition) = self.definitions.get_mut(key) else {
            panic!("the definition is not in the index")
        };
        let is_deleted = definition.deleted;
        let lost = if !has_two_copies(key) {
            definition.second = definition.place;
            Some(core::mem::replace(&mut definition.place, place))
        } else {
            match definition.second() {
                // The compactor has copied the only copy. If the original still counted, its segment could not be
                // removed.
                None if leaving.contains(&definition.place.segment) => {
                    Some(core::mem::replace(&mut definition.place, place))
                }
                None => {
                    definition.second = core::mem::replace(&mut definition.place, place);
                    None
                }
                Some(second) if second == place => return,
                Some(second) => {
                    let first = core::mem::replace(&mut definition.place, place);
                    let order = |at: &RecordLocation| {
                        (!leaving.contains(&at.segment), at.segment != place.segment, *at)
                    };
                    let [lost, kept] =
                        if order(&first) < order(&second) { [first, second] } else { [second, first] };
                    definition.second = kept;
                    Some(lost)
                }
            }
        };
        if is_deleted {
            return;
        }
        if let Some(lost) = lost {
            self.lose(lost.segment, lost.bytes.into());
        }
        self.gain(place.segment, 1, place.bytes.into());
    }

    /// Returns whether this offset of the queue is settled or has a live message.
    pub(super) fn has_known(&self, target: &Target) -> bool {
        let queue = self.queues.get(&target.queue);
        queue.is_some_and(|q| q.settled.contains(target.offset) || q.segment_of(target.offset).is_some())
    }

    /// Returns whether the log contains the deletion of a queue.
    pub(super) fn is_gone(&self, queue: u64) -> bool {
        self.queues.get(&queue).is_some_and(|queue| queue.gone)
    }

    /// Settles offsets of a queue and subtracts their records from their segments.
    pub(super) fn settle(&mut self, queue: u64, range: Range) {
        let Self { queues, segments, bodies, runs, .. } = self;
        let entry = queues.entry(queue).or_default();
        let before = entry.runs.len();
        let mut mark_dead = |entry: &mut QueueIndex, fresh: Range, segments: &mut BTreeMap<u64, Segment>| {
            loop {
                let Some((offset, body)) = entry.large_in(fresh).next() else { break };
                let body_bytes = bodies.get(&body).map_or(0, LargeBody::bytes);
                entry.remove_large(offset, body_bytes);
                let Some(large) = bodies.get_mut(&body) else { continue };
                large.live_messages -= 1;
                if large.live_messages == 0 {
                    large.mark_dead(segments);
                }
            }
        };
        entry.settle(range, |entry, lost| match lost {
            SettleEffect::Live(segment, count, bytes) => {
                if let Some(segment) = segments.get_mut(&segment) {
                    segment.lose(count.into(), bytes.into());
                }
            }
            SettleEffect::Offsets(fresh) => mark_dead(entry, fresh, segments),
        });
        *runs = *runs + entry.runs.len() - before;
    }

    /// Adds settlements that are not durable yet to the pending counts of their segments.
    pub(super) fn note_pending(&mut self, queue: u64, range: Range) {
        let Self { queues, segments, bodies, .. } = self;
        // The queue is not in the index if its only messages were settled before they were written.
        let Some(entry) = queues.get(&queue) else { return };
        let mut note = |segment, count: u32, bytes: u32| {
            if let Some(segment) = segments.get_mut(&segment) {
                segment.pending += u64::from(count);
                segment.pending_bytes += u64::from(bytes);
            }
        };
        entry.for_each_live_part(range, &mut note);
        for (_, body) in entry.large_in(range) {
            let Some(large) = bodies.get_mut(&body) else { continue };
            large.pending += 1;
            if large.pending == large.live_messages {
                large.chunks.values().for_each(|at| note(at.segment, 1, at.bytes));
            }
        }
    }

    /// Forgets all pending settlements.
    pub(super) fn forget_pending(&mut self) {
        for segment in self.segments.values_mut() {
            (segment.pending, segment.pending_bytes) = (0, 0);
        }
        self.bodies.values_mut().for_each(|large| large.pending = 0);
    }

    /// Returns whether `is_worth` holds for some segment when the pending settlements are durable. `is_worth`
    /// receives the live bytes and the used bytes of a segment. It is called for segments with pending settlements,
    /// and for the segment `active` in any case.
    pub(super) fn would_leave(&self, active: u64, is_worth: impl Fn(u64, u32) -> bool) -> bool {
        self.segments.iter().any(|(sequence, segment)| {
            // The bytes of settled messages are estimates, so only the count shows that no live record is left.
            let is_empty = segment.pending >= segment.live;
            let bytes = segment.live_bytes.saturating_sub(segment.pending_bytes);
            let left = if is_empty { 0 } else { bytes.max(1) };
            (*sequence == active || segment.pending > 0) && is_worth(left, segment.bytes)
        })
    }

    /// Marks the chunks of a body as dead, because no message will reference it.
    pub(super) fn drop_body(&mut self, body: u64) {
        if let Some(large) = self.bodies.get_mut(&body) {
            large.mark_dead(&mut self.segments);
        }
    }

    /// Marks the chunks of a body as dead, because no message will reference it, including chunks that are still in
    /// flight. `appended` is the position of the last chunk appended.
    pub(super) fn drop_body_on_its_way(&mut self, body: u64, appended: LogPosition) {
        self.drop_body(body);
        self.dropped.push((body, appended));
    }

    /// Marks in-flight chunks of dropped bodies as dead when they have become durable.
    pub(super) fn end_dropped(&mut self, durable: LogPosition) {
        let mut dropped = core::mem::take(&mut self.dropped);
        dropped.retain(|(body, position)| {
            let has_arrived = *position <= durable;
            if has_arrived {
                self.drop_body(*body);
            }
            !has_arrived
        });
        self.dropped = dropped;
    }

    /// Ends recovery: marks chunks without a message as dead, and forgets deletions that no longer affect a
    /// record.
    ///
    /// Bodies in `named` are referenced by an unfinished group and stay. `None` means that a group cannot be read;
    /// then all bodies stay, because the group may reference any of them.
    pub(super) fn end_recovery(&mut self, named: Option<&[u64]>) {
        for (body, large) in &mut self.bodies {
            if large.live_messages == 0 && named.is_some_and(|named| !named.contains(body)) {
                large.mark_dead(&mut self.segments);
            }
        }
        self.forget_gone();
    }

    /// Removes segments (ascending) whose removal from the log is durable.
    pub(super) fn remove_segments(&mut self, left: &[u64]) {
        let has_left = |segment: &u64| left.binary_search(segment).is_ok();
        for segment in left {
            if let Some(segment) = self.segments.remove(segment) {
                self.spare_spans = segment.spans;
            }
        }
        self.queues.values_mut().for_each(|queue| queue.forget_segments(has_left));
        for definition in self.definitions.values_mut() {
            definition.segments.retain(|segment| !has_left(segment));
            let second = definition.second().filter(|place| !has_left(&place.segment));
            definition.second = second.unwrap_or(NO_LOCATION);
            if let Some(second) = second.filter(|_| has_left(&definition.place.segment)) {
                (definition.place, definition.second) = (second, NO_LOCATION);
            }
        }
        self.definitions.retain(|_, definition| !definition.deleted || !definition.segments().is_empty());
        for large in self.bodies.values_mut() {
            large.chunks.retain(|_, place| !has_left(&place.segment));
        }
        self.bodies.retain(|_, large| !large.dead || !large.chunks.is_empty());
        self.forget_gone();
    }

    /// Forgets deleted queues without records in the log.
    fn forget_gone(&mut self) {
        let segments = &self.segments;
        self.queues.retain(|_, queue| !queue.gone || segments_of(segments, queue).next().is_some());
        self.runs = self.queues.values().map(|queue| queue.runs.len()).sum();
    }

    /// Returns whether the message is live in this queue and its place is in `segment`.
    pub(super) fn is_message_live_in(&self, target: &Target, segment: u64) -> bool {
        self.queues.get(&target.queue).and_then(|queue| queue.segment_of(target.offset)) == Some(segment)
    }

    /// Returns whether `record`, which was found in `segment`, must be copied before the segment can be removed.
    pub(super) fn is_live_in(&self, record: &Record<'_>, segment: u64) -> bool {
        self.live_count_in(record, segment) > 0
    }

    /// Returns the number by which a record, which was found in `segment`, contributes to the segment's `live`.
    pub(super) fn live_count_in(&self, record: &Record<'_>, segment: u64) -> u64 {
        let is_live = match record {
            Record::Message(message) => {
                return message.targets.iter().filter(|to| self.is_message_live_in(to, segment)).count()
                    as u64;
            }
            Record::Chunk { body, index, .. } => self.bodies.get(body).is_some_and(|large| {
                !large.dead && large.chunks.get(index).is_some_and(|p| p.segment == segment)
            }),
            Record::Defined { version, key, .. } => self.definitions.get(*key).is_some_and(|definition| {
                !definition.deleted && definition.version == *version && definition.lies_in(key, segment)
            }),
            Record::Settled { .. }
            | Record::Gone { .. }
            | Record::DeliveredWatermark { .. }
            | Record::WatermarkReset { .. }
            | Record::SegmentRemoved { .. }
            | Record::Optional { .. } => false,
        };
        is_live.into()
    }

    /// Returns whether a definition was added since the last call.
    pub(super) const fn take_defined(&mut self) -> bool {
        core::mem::replace(&mut self.has_defined, false)
    }

    /// Returns the first definition after the key `after` that has a single copy, or two copies in one sealed
    /// segment. Deletions are included if another segment contains a record of the deleted object.
    pub(super) fn next_with_one_copy(&self, after: &[u8], active: u64) -> Option<(&[u8], &DefinitionIndex)> {
        let behind = (Bound::Excluded(after), Bound::Unbounded);
        let mut definitions = self.definitions.range::<[u8], _>(behind);
        let found =
            definitions.find(|(key, definition)| has_two_copies(key) && definition.has_one_copy(active));
        found.map(|(key, definition)| (&**key, &**definition))
    }

    /// Returns the first queue after `after` whose deletion is recorded in a single sealed segment only.
    pub(super) fn next_deletion_with_one_copy(&self, after: u64, active: u64) -> Option<u64> {
        let mut queues = self.queues.range((Bound::Excluded(after), Bound::Unbounded));
        let has_one_copy = |queue: &QueueIndex| {
            let only = queue.only_deletion_segment(active);
            only.is_some_and(|only| segments_of(&self.segments, queue).any(|segment| segment != only))
        };
        queues.find(|(_, queue)| has_one_copy(queue)).map(|(queue, _)| *queue)
    }

    /// Returns the queues whose settlements must be written again before these segments (ascending) may be
    /// removed, each with the number of its ranges.
    pub(super) fn queues_to_rewrite(&self, leaving: &[u64]) -> impl Iterator<Item = (u64, usize)> {
        let last = leaving.last().copied().unwrap_or(0);
        self.queues.iter().filter_map(move |(&queue, entry)| {
            let stays = |segment: u64| leaving.binary_search(&segment).is_err();
            let mut segments = segments_of(&self.segments, entry);
            let is_needed = entry.settled_since <= last && (!entry.gone || segments.any(stays));
            is_needed.then(|| (queue, entry.settled.len()))
        })
    }

    /// Returns key and version of the deleted definitions whose record must be written again before `segment` may be
    /// removed.
    pub(super) fn deletions_to_rewrite(&self, segment: u64) -> impl Iterator<Item = (&[u8], u64)> {
        self.definitions.iter().filter_map(move |(key, definition)| {
            let deletes_elsewhere = definition.segments().iter().any(|other| *other != segment);
            (definition.deleted && definition.lies_in(key, segment) && deletes_elsewhere)
                .then_some((&**key, definition.version))
        })
    }
}

/// Usual bytes of a key: two names and the arguments of a binding.
const KEY_BYTES: usize = 48;
/// Memory of one definition in the index.
pub const DEFINITION_BYTES: usize = tree_bytes::<Box<[u8]>, Box<DefinitionIndex>>(1)
    + DefinitionIndex::USUAL_BYTES
    + KEY_BYTES
    + ALLOCATION_BYTES;
/// Memory of a queue without messages in the index, in addition to its definition.
pub const EMPTY_QUEUE_BYTES: usize = tree_bytes::<u64, Box<QueueIndex>>(1) + QueueIndex::EMPTY_HEAP_BYTES;

/// Returns the segments that may contain records of a queue.
fn segments_of(segments: &BTreeMap<u64, Segment>, queue: &QueueIndex) -> impl Iterator<Item = u64> {
    let between = queue.segments_between().map(|(first, last)| segments.range(first..=last));
    between.into_iter().flatten().map(|(sequence, _)| *sequence)
}

/// An ascending list of segments. Most lists have one or two, and then need no memory of their own.
#[derive(Clone, Debug)]
enum SegmentList {
    /// Up to two segments; 0 for none, which only other zeros follow.
    Few([u64; 2]),
    Many(Box<[u64]>),
}

impl SegmentList {
    fn of(segments: &[u64]) -> Self {
        match *segments {
            [] => Self::Few([0; 2]),
            [only] => Self::Few([only, 0]),
            [first, second] => Self::Few([first, second]),
            _ => Self::Many(segments.into()),
        }
    }

    fn as_slice(&self) -> &[u64] {
        match self {
            Self::Few(few) => &few[..few.iter().take_while(|segment| **segment != 0).count()],
            Self::Many(many) => many,
        }
    }

    /// Adds a segment, unless the list contains it.
    fn note(&mut self, segment: u64) {
        let segments = self.as_slice();
        if let Err(at) = segments.binary_search(&segment) {
            let (before, behind) = segments.split_at(at);
            *self = match (before, behind) {
                ([], []) => Self::Few([segment, 0]),
                (&[first], []) => Self::Few([first, segment]),
                ([], &[last]) => Self::Few([segment, last]),
                _ => Self::Many([before, &[segment], behind].concat().into()),
            };
        }
    }

    /// Removes the segments for which `stays` returns `false`.
    fn retain(&mut self, stays: impl Fn(&u64) -> bool) {
        if self.as_slice().iter().all(&stays) {
            return;
        }
        let mut left = self.as_slice().to_vec();
        left.retain(stays);
        *self = Self::of(&left);
    }

    const fn heap_bytes(&self) -> usize {
        match self {
            Self::Few(_) => 0,
            Self::Many(many) => size_of_val::<[u64]>(many) + ALLOCATION_BYTES,
        }
    }
}

/// The location of a copy that does not exist. No segment has the sequence 0.
const NO_LOCATION: RecordLocation = RecordLocation { segment: 0, at: 0, bytes: 0 };

/// A segment of the log.
#[derive(Clone, Debug)]
pub struct Segment {
    /// The slot of its file.
    pub slot: u32,
    /// Number of message targets, definitions and chunks whose place is in the segment.
    pub live: u64,
    /// Bytes of those records. The bytes of a message with several targets are divided among the targets.
    pub live_bytes: u64,
    /// Number of live records that are settled, but whose settlement is not durable yet.
    pub(super) pending: u64,
    /// Approximate bytes of the pending records.
    pub(super) pending_bytes: u64,
    /// Bytes in use, header included.
    pub bytes: u32,
    /// Whether the compactor could not read all its live records.
    pub stuck: bool,
    /// Locations of the queues' parts of its footer.
    pub(super) spans: Spans,
}

impl Segment {
    /// Subtracts live records.
    pub(super) const fn lose(&mut self, count: u64, bytes: u64) {
        assert!(self.live >= count, "a segment loses more than it has");
        self.live -= count;
        self.live_bytes = self.live_bytes.saturating_sub(bytes);
    }
}

/// The newest state of one definition: the one with the highest version in the log.
#[derive(Clone, Debug)]
pub struct DefinitionIndex {
    /// Version of the definition.
    pub version: u64,
    /// Location of the record in the log.
    pub place: RecordLocation,
    /// See [`Self::second`]; [`NO_LOCATION`] if there is no second copy. An `Option` would take eight bytes more.
    second: RecordLocation,
    /// Whether the record deletes the object.
    pub deleted: bool,
    /// Incarnation of the queue that it defines; 0 if it defines no queue, or if it was read from a footer of version
    /// 1, which contains no incarnations.
    pub queue: u64,
    /// Segments with records of this key.
    segments: SegmentList,
}

impl DefinitionIndex {
    /// Returns the location of the second copy, if there is one. It lies in another commit, and definition replication
    /// soon writes it to another segment.
    pub fn second(&self) -> Option<RecordLocation> {
        (self.second != NO_LOCATION).then_some(self.second)
    }

    /// Returns whether damage to one block of the active segment, or to one sealed segment, may lose the definition.
    ///
    /// A deletion needs no second copy if all records that it deletes lie in its own segment, because damage loses
    /// them together. Two copies in a sealed segment count as one, because both are read from the segment's footer.
    /// Two copies in the active segment count as two, because they lie in different blocks.
    pub(super) fn has_one_copy(&self, active: u64) -> bool {
        let first = self.place.segment;
        let is_alone = self.second().is_none_or(|second| second.segment == first && first != active);
        let second = self.second().map_or(first, |second| second.segment);
        let deletes_elsewhere =
            || self.segments().iter().any(|segment| *segment != first && *segment != second);
        is_alone && (!self.deleted || first == active || deletes_elsewhere())
    }

    /// Returns whether it names a queue that may have messages.
    pub(super) const fn names_queue(&self) -> bool {
        self.queue != 0 && !self.deleted
    }

    /// Usual heap bytes of a definition, itself included: it has records in at most two segments.
    pub(super) const USUAL_BYTES: usize = size_of::<Self>() + ALLOCATION_BYTES;

    /// Returns the heap bytes, itself included.
    pub(super) const fn heap_bytes(&self) -> usize {
        size_of::<Self>() + self.segments.heap_bytes() + ALLOCATION_BYTES
    }

    /// Returns the segments with records of its key.
    pub(super) fn segments(&self) -> &[u64] {
        self.segments.as_slice()
    }

    /// Returns whether one of the copies that count as live is in `segment`.
    pub(super) fn lies_in(&self, key: &[u8], segment: u64) -> bool {
        self.place.segment == segment
            || has_two_copies(key) && self.second().is_some_and(|place| place.segment == segment)
    }
}

/// Returns whether two copies of a definition count as live. This is false for the definition that every commit
/// repeats, and for retained messages, which are written once like other messages.
pub(super) fn has_two_copies(key: &[u8]) -> bool {
    *key != ACCESS_STORED_KEY && !is_retained_message(key)
}

/// A body over 64 KiB: the locations of its chunks, and the number of messages that use it.
///
/// A body is dead when no live message references it any more. The index removes it when the last segment with one of
/// its chunks has been removed.
#[derive(Clone, Debug, Default)]
pub(super) struct LargeBody {
    /// Location of each chunk by its index.
    pub(super) chunks: BTreeMap<u32, RecordLocation>,
    /// Number of live messages that have this body.
    pub(super) live_messages: u64,
    /// Number of those messages that are settled, but whose settlement is not durable yet.
    pub(super) pending: u64,
    /// Whether no live message needs the body.
    pub(super) dead: bool,
}

impl LargeBody {
    /// Returns the bytes of all chunks in the index.
    pub(super) fn bytes(&self) -> u64 {
        self.chunks.values().map(|place| u64::from(place.bytes)).sum()
    }

    /// Returns its heap bytes.
    pub(super) fn heap_bytes(&self) -> usize {
        tree_bytes::<u32, RecordLocation>(self.chunks.len())
    }

    /// Marks the body as dead and subtracts its chunks from their segments.
    pub(super) fn mark_dead(&mut self, segments: &mut BTreeMap<u64, Segment>) {
        if core::mem::replace(&mut self.dead, true) {
            return;
        }
        for place in self.chunks.values() {
            if let Some(segment) = segments.get_mut(&place.segment) {
                segment.lose(1, place.bytes.into());
            }
        }
    }
}

/// The last 1/8 of the limit is reserved for dead letters, because writing a dead letter frees space.
const LAST_CAPACITY_DIVISOR: usize = 8;
/// Maximum number of queues and definitions deleted between two measurements, each a few hundred bytes.
const DELETED_PER_MEASUREMENT: usize = 256;
/// The active segment ends early when deleted objects in it take this fraction (1/8) of the limit.
const DELETED_DIVISOR: usize = 8;

/// The memory use of the index, as last measured, and its limit.
///
/// Definitions and empty queues have a separate limit, which suffices for the number that the broker's limits allow.
/// Within that limit they do not block publishers. With very long names they may exceed it; the excess counts against
/// the limit for messages, so that the total memory is bounded. Deleted definitions and queues count until their
/// segments have been removed. The active segment cannot be removed, so it ends early if it contains many deletions
/// while the index is full.
///
/// # Invariants
/// - The index is measured after every change of segments, at each commit once it is nearly full, and after
///   [`DELETED_PER_MEASUREMENT`] deletions of queues and definitions.
/// - At most one segment is therefore written beyond the limit.
#[derive(Debug)]
pub(super) struct IndexMemory {
    /// Bytes used, without definitions and empty queues within their own limit.
    bytes: usize,
    /// The part of `bytes` for deleted queues and definitions.
    deleted_bytes: usize,
    /// Number of queues and definitions deleted in the active segment.
    deleted_in_active: usize,
    bytes_max: usize,
    /// Separate limit of definitions and empty queues.
    fixed_bytes_max: usize,
    /// The compactor pauses while the index takes at least this many bytes, deleted objects excluded. The reason: its
    /// copies may split runs, and each run takes memory.
    compaction_pause_bytes: usize,
    is_full: bool,
    ends_active: bool,
    overflow: Option<usize>,
}

impl IndexMemory {
    /// Creates the state at a start and measures the index.
    pub(super) fn new(index: &Index, settings: &Settings) -> Self {
        let mut index_memory = Self {
            bytes: 0,
            deleted_bytes: 0,
            deleted_in_active: 0,
            bytes_max: settings.index_bytes,
            fixed_bytes_max: settings.fixed_index_bytes,
            compaction_pause_bytes: 0,
            is_full: false,
            ends_active: false,
            overflow: None,
        };
        index_memory.set(index);
        index_memory.compaction_pause_bytes = index_memory.bytes.max(index_memory.bytes_max) / 4 * 5;
        index_memory.overflow = None;
        index_memory
    }

    /// Measures the index.
    pub(super) fn set(&mut self, index: &Index) {
        let was_full = self.is_full;
        let (deleted, deleted_bytes) = index.deleted();
        self.bytes = index.bytes() - index.fixed_index_bytes().min(self.fixed_bytes_max);
        self.deleted_bytes = deleted_bytes;
        self.deleted_in_active = index.deleted_in_last();
        self.is_full = self.bytes > self.bytes_max;
        // An object that is created and deleted repeatedly is counted once per deletion, but is in the index only
        // once.
        let in_active_bytes = deleted_bytes / deleted.max(1) * self.deleted_in_active.min(deleted);
        self.ends_active = self.is_full && in_active_bytes > self.bytes_max / DELETED_DIVISOR;
        if self.is_full && !was_full {
            self.overflow = Some(self.bytes);
        }
    }

    /// Returns whether enough was deleted since the last measurement to measure again.
    pub(super) const fn is_stale(&self, index: &Index) -> bool {
        index.deleted_in_last() >= self.deleted_in_active + DELETED_PER_MEASUREMENT
    }

    /// Returns whether the index exceeds its limit.
    pub(super) const fn is_full(&self) -> bool {
        self.is_full
    }

    /// Returns whether at most 1/8 of the limit is left.
    pub(super) const fn has_only_last_eighth(&self) -> bool {
        self.bytes > self.bytes_max - self.bytes_max / LAST_CAPACITY_DIVISOR
    }

    /// Returns whether the index is full, but would not be without deleted objects.
    pub(super) const fn is_full_of_deleted(&self) -> bool {
        self.is_full && self.bytes.saturating_sub(self.deleted_bytes) <= self.bytes_max
    }

    /// Returns whether the active segment should end, so that deleted objects in it can be removed.
    pub(super) const fn ends_active(&self) -> bool {
        self.ends_active
    }

    /// Returns whether the compactor should pause. Deleted objects do not count, because only the compactor can
    /// remove them.
    pub(super) const fn pauses_compaction(&self) -> bool {
        self.bytes.saturating_sub(self.deleted_bytes) >= self.compaction_pause_bytes
    }

    /// Returns the bytes that the index took when it became full. Returns `None` if it has not become full since the
    /// last call.
    pub(super) const fn take_overflow(&mut self) -> Option<usize> {
        self.overflow.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Ranges;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn messages_noted_together_are_noted_as_one_by_one(
            blocks in prop::collection::vec(
                (1_u64..4, 0_u64..150, prop::collection::vec((0_u64..9, 0_u32..30), 0..40)), 1..9),
            settled in prop::collection::vec((1_u64..4, 0_u64..200), 0..6),
            gone in 1_u64..20,
        ) {
            let mut indexes = [Index::default(), Index::default()];
            for (index, is_together) in indexes.iter_mut().zip([false, true]) {
                let place = RecordLocation { segment: 1, at: 0, bytes: 9 };
                (1..10).for_each(|segment| index.add_segment(segment, segment as u32, 1 << 20));
                index.apply(&Record::Gone { queue: gone }, place);
                for &(queue, start) in &settled {
                    let ranges = [Range { start, end: start + 7 }];
                    index.apply(&Record::Settled { queue, ranges: Ranges::List(&ranges) }, place);
                }
                for (segment, (queue, first, steps)) in (1..).zip(&blocks) {
                    let mut offset = *first;
                    let entries = steps.iter().map(|&(gap, kind)| {
                        offset += 1 + gap / 7 * gap;
                        let (targets, is_chunked) = (1 + kind % 2, kind == 29);
                        let (at, body) = (offset as u32, u64::from(is_chunked) * (1 << 20 | offset));
                        MessageEntry {
                            queue: *queue, offset, at, bytes: 60 + kind, targets, is_chunked, body,
                        }
                    });
                    if is_together {
                        index.apply_entries(*queue, entries, segment);
                    } else {
                        entries.for_each(|entry| index.apply_entry(&entry, segment));
                    }
                }
            }
            prop_assert_eq!(format!("{:?}", indexes[0]), format!("{:?}", indexes[1]));
        }
    }

    /// Such a segment once stayed in the log forever, because of the copy that had just been copied.
    #[test]
    fn the_only_place_of_a_definition_counts_no_more_when_the_cleaner_has_copied_it() {
        let mut index = Index::default();
        (1..=2).for_each(|sequence| index.add_segment(sequence, sequence as u32, 64 << 10));
        let record = Record::Defined { version: 1, key: b"key", value: Some(b"value") };
        index.apply(&record, RecordLocation { segment: 1, at: 4096, bytes: 20 });
        index.set_compacting(1);
        index.apply(&record, RecordLocation { segment: 2, at: 8192, bytes: 20 });
        let live: Vec<u64> = index.segments().values().map(|segment| segment.live).collect();
        assert_eq!(live, [0, 1]);
    }
}
