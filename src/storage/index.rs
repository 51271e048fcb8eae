//! What the log holds, as far as memory must know it: which segment holds which part of each queue.
//!
//! One [`Index::apply`] serves life (when a commit is durable) and recovery. It does not care for order:
//! a message is live when it was seen and not settled, of two copies the one seen last is its place, of two
//! definitions the higher version holds.
//!
//! Always true: a segment's `live` is the number of message targets, definitions and chunks whose place it
//! is; a segment is left out of the log only when that is 0 and every settlement or deletion in it that
//! still kills a record elsewhere was written again.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use leveret_core::journal::definition::{ACCESS_WRITTEN_KEY, incarnation_in};
use leveret_core::journal::{is_group, is_transient};

use super::access::Digest;
use super::commit::BLOCK_BYTES;
use super::log::{Place, Position, Settings};
use super::parts::{BodyPart, Entry};
use super::queue_index::{ALLOCATION_BYTES, Lost, QueueIndex, Seen, WatermarkReset, tree_bytes};
use super::record::{Body, CHUNK_BODY_BYTES, Message, Range, Record, Target};
use super::settled::Spans;

/// What the log holds: segments, queues, large bodies and definitions.
#[derive(Clone, Debug, Default)]
pub struct Index {
    segments: BTreeMap<u64, Segment>,
    // In boxes, for a tree is little more than half full when its keys rise.
    queues: BTreeMap<u64, Box<QueueIndex>>,
    definitions: BTreeMap<Box<[u8]>, Box<DefinitionIndex>>,
    bodies: BTreeMap<u64, LargeBody>,
    next_body: u64,
    /// Runs of all queues.
    runs: usize,
    /// Of the live definitions of access.
    access: Digest,
    /// Segments whose records are being written again, to leave the log: cleaned, drained.
    leaving: [u64; 2],
    /// Something was defined.
    has_defined: bool,
    /// How often a queue or a definition was deleted since the last segment was added.
    deleted_in_last: usize,
    /// The memory of those of a segment that has left, for the next.
    spare_spans: Spans,
    /// Bodies that no message will name, and what was appended when that was said.
    dropped: Vec<(u64, Position)>,
}

impl Index {
    /// The segments of the log by sequence.
    pub const fn segments(&self) -> &BTreeMap<u64, Segment> {
        &self.segments
    }

    /// The queues by incarnation, deleted ones included as long as the log holds records of theirs.
    pub const fn queues(&self) -> &BTreeMap<u64, Box<QueueIndex>> {
        &self.queues
    }

    /// The definitions by key, deleted ones included.
    pub const fn definitions(&self) -> &BTreeMap<Box<[u8]>, Box<DefinitionIndex>> {
        &self.definitions
    }

    /// The queues that have messages, but for what the log alone knows them by, and transient ones.
    pub fn queues_with_messages(&self) -> BTreeSet<u64> {
        let is_queue = |incarnation: u64, queue: &QueueIndex| {
            queue.live > 0 && !queue.gone && !is_transient(incarnation) && !is_group(incarnation)
        };
        // One by one, for they come in order: collecting would bring a sort of its own.
        let mut found = BTreeSet::new();
        found.extend(self.queues.iter().filter(|(at, queue)| is_queue(**at, queue)).map(|(at, _)| *at));
        found
    }

    /// Whether what a key defines was deleted after this queue had begun to exist.
    pub fn is_deleted_since(&self, key: &[u8], queue: u64) -> bool {
        self.definitions.get(key).is_some_and(|definition| definition.deleted && definition.version > queue)
    }

    /// The version of the newest definition of each queue.
    pub fn versions_of_queues(&self) -> BTreeMap<u64, u64> {
        let mut newest = BTreeMap::new();
        for definition in self.definitions.values().filter(|definition| definition.names_queue()) {
            let version = newest.entry(definition.queue).or_default();
            *version = definition.version.max(*version);
        }
        newest
    }

    /// Bytes of the largest body that some queue has, rather too many; 0 when there is no message.
    pub fn largest_body_bytes(&self) -> u64 {
        let wanted = self.bodies.values().filter(|body| !body.dead);
        let in_one_piece = self.queues.values().any(|queue| queue.live > 0);
        let least = if in_one_piece { CHUNK_BODY_BYTES as u64 } else { 0 };
        wanted.map(LargeBody::bytes).max().unwrap_or(0).max(least)
    }

    /// The digest of the live definitions of access.
    pub(super) const fn access(&self) -> Digest {
        self.access
    }

    /// Of three copies, one in such a segment is given up; 0 for none.
    pub(super) const fn set_cleaned(&mut self, segment: u64) {
        self.leaving[0] = segment;
    }

    /// See [`Self::set_cleaned`].
    pub(super) const fn set_drained(&mut self, segment: u64) {
        self.leaving[1] = segment;
    }

    /// Bytes that all of it takes in memory, about and rather too many.
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

    /// Of [`Self::bytes`], what stays however much is consumed: definitions, and queues that have nothing.
    pub(super) fn standing_bytes(&self) -> usize {
        let definitions = self.definitions.iter().filter(|(_, definition)| !definition.deleted);
        let bytes = |key: &[u8], definition: &DefinitionIndex| {
            let itself = definition.heap_bytes().min(DefinitionIndex::USUAL_BYTES);
            key.len() + ALLOCATION_BYTES + tree_bytes::<Box<[u8]>, Box<DefinitionIndex>>(1) + itself
        };
        definitions.map(|(key, definition)| bytes(key, definition)).sum::<usize>()
            + self.queues.values().filter(|queue| !queue.gone).count() * QUEUE_STANDING_BYTES
    }

    /// Of [`Self::bytes`], what goes with the segments that it lies in, and needs no copy for that: how many deleted
    /// queues and definitions there are, and their bytes.
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

    /// How often a queue or a definition was deleted since the last segment was added, which is the active one.
    pub(super) const fn deleted_in_last(&self) -> usize {
        self.deleted_in_last
    }

    /// Gives back what is kept to be used again.
    pub(super) fn give_back(&mut self) {
        self.queues.values_mut().for_each(|queue| queue.give_back());
        self.spare_spans = Spans::default();
    }

    /// Runs of all queues.
    pub const fn runs(&self) -> usize {
        self.runs
    }

    /// An id for a large body that no other ever had.
    pub const fn take_body_id(&mut self) -> u64 {
        self.next_body += 1;
        self.next_body
    }

    pub(super) fn add_segment(&mut self, sequence: u64, slot: u32, bytes: u32) {
        let (live, live_bytes, pending, pending_bytes) = (0, 0, 0, 0);
        let (stuck, spans) = (false, Spans::default());
        let segment = Segment { slot, live, live_bytes, pending, pending_bytes, bytes, stuck, spans };
        let known = self.segments.insert(sequence, segment);
        // What counts for the one before would never be counted out of this one.
        assert!(known.is_none(), "a segment of the log is added twice");
        self.deleted_in_last = 0;
    }

    pub(super) fn set_bytes(&mut self, sequence: u64, bytes: u32) {
        if let Some(segment) = self.segments.get_mut(&sequence) {
            segment.bytes = bytes;
        }
    }

    /// The cleaner has copied what it could: when it has read the segment to its end, what is live now could
    /// not be read.
    pub(super) fn end_copying(&mut self, sequence: u64, was_read_to_its_end: bool) {
        if let Some(segment) = self.segments.get_mut(&sequence) {
            segment.stuck = segment.live > 0 && was_read_to_its_end;
        }
    }

    /// Segments that the cleaner has given up.
    pub(super) fn stuck(&self) -> usize {
        self.segments.values().filter(|segment| segment.stuck).count()
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
                let queue = self.queue(*queue);
                let is_news = !queue.gone;
                queue.note_gone(place.segment);
                self.deleted_in_last += usize::from(is_news);
            }
            Record::Defined { version, key, value } => {
                let queue = value.and_then(|value| incarnation_in(key, value)).unwrap_or(0);
                self.apply_defined(*version, key, (value.is_none(), queue), place);
            }
            Record::DeliveredWatermark { queue, offset } => {
                self.note_settlement(*queue, place);
                let queue = self.queue(*queue);
                queue.delivered_through = queue.delivered_through.max(*offset);
            }
            Record::WatermarkReset { queue, offset, watermark } => {
                self.note_settlement(*queue, place);
                let reset = WatermarkReset { watermark: *watermark, offset: *offset };
                let queue = self.queue(*queue);
                queue.watermark_reset = queue.watermark_reset.max(reset);
            }
            // Who writes or reads the log sees to it.
            Record::Left { .. } | Record::Optional { .. } => {}
        }
    }

    fn queue(&mut self, queue: u64) -> &mut QueueIndex {
        self.queues.entry(queue).or_default()
    }

    fn note_settlement(&mut self, queue: u64, place: Place) {
        let queue = self.queue(queue);
        queue.settled_since = queue.settled_since.min(place.segment);
    }

    /// Something is missing from the log, a mark perhaps: so what rested does not count.
    pub(super) fn forget_watermark_resets(&mut self) {
        self.queues.values_mut().for_each(|queue| queue.watermark_reset = WatermarkReset::default());
    }

    /// Everything settled in the queue was written again, in `segment` and later ones.
    pub(super) fn settled_again(&mut self, queue: u64, segment: u64) {
        if let Some(queue) = self.queues.get_mut(&queue) {
            queue.settled_since = segment;
        }
    }

    // What is damaged may name a segment that is in the log no more: it counts for none.
    fn gain(&mut self, segment: u64, count: u64, bytes: u64) {
        if let Some(segment) = self.segments.get_mut(&segment) {
            segment.live += count;
            segment.live_bytes += bytes;
        }
    }

    fn lose(&mut self, segment: u64, bytes: u64) {
        if let Some(segment) = self.segments.get_mut(&segment) {
            segment.lose(1, bytes);
        }
    }

    fn apply_message(&mut self, message: &Message<'_>, place: Place) {
        let body = if let Body::Chunked { body, .. } = message.body { Some(body) } else { None };
        let share = place.bytes / message.targets.len() as u32;
        for target in message.targets.iter() {
            self.apply_target(target.queue, target.offset, body, share, place.segment);
        }
        // All its queues may be done with it already; then nothing will end its chunks later.
        if let Some(large) = body.and_then(|body| self.bodies.get_mut(&body)).filter(|l| l.holders == 0) {
            large.bury(&mut self.segments);
        }
    }

    /// Takes note of a message in one of its queues, as a footer tells it.
    pub(super) fn apply_entry(&mut self, entry: &Entry, segment: u64) {
        let body = entry.is_chunked.then_some(entry.body);
        self.apply_target(entry.queue, entry.offset, body, entry.share(), segment);
    }

    /// Takes note of messages of one queue, rising by offset. Those that are surely new and lie one behind
    /// the other are noted together, for a start goes over all that there are.
    pub(super) fn apply_entries(&mut self, queue: u64, entries: impl Iterator<Item = Entry>, segment: u64) {
        let new_from = self.queues.get(&queue).map_or(0, |queue| queue.new_from());
        let mut entries = entries.peekable();
        while let Some(entry) = entries.next() {
            if entry.is_chunked || entry.offset < new_from {
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
            Seen::Again | Seen::Dead => {}
            Seen::Moved(old, lost) => {
                self.lose(old, lost.into());
                self.gain(segment, 1, bytes.into());
            }
            Seen::New => {
                if let Some(body) = body {
                    let large = self.bodies.entry(body).or_default();
                    large.holders += 1;
                    entry.large.insert(offset, body);
                    entry.large_bytes += large.bytes();
                }
                self.gain(segment, 1, bytes.into());
            }
        }
    }

    /// Where the parts of the footer of a sealed segment lie, counted from byte `base` of the segment.
    pub(super) fn set_parts(&mut self, segment: u64, base: u32, parts: &[(u64, BodyPart)]) {
        if let Some(segment) = self.segments.get_mut(&segment) {
            segment.spans = Spans::of(base, parts, core::mem::take(&mut self.spare_spans));
        }
    }

    /// Where in a sealed segment's footer the part of a queue is to be looked for; no bytes when that is not
    /// known.
    pub(super) fn span_of(&self, segment: u64, queue: u64) -> BodyPart {
        self.segments.get(&segment).map_or(BodyPart::default(), |segment| segment.spans.find(queue))
    }

    /// Where a chunk of a large body lies.
    pub(super) fn place_of_chunk(&self, body: u64, index: u32) -> Option<Place> {
        self.bodies.get(&body)?.chunks.get(&index).copied()
    }

    /// The file and the first byte of the block in which a chunk of a large body begins.
    pub(super) fn block_of_chunk(&self, body: u64, index: u32) -> Option<(u32, u32)> {
        let place = self.place_of_chunk(body, index)?;
        let block = BLOCK_BYTES as u32;
        Some((self.segments.get(&place.segment)?.slot, place.at / block * block))
    }

    fn apply_chunk(&mut self, body: u64, index: u32, place: Place) {
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

    fn apply_defined(&mut self, version: u64, key: &[u8], (deleted, queue): (bool, u64), place: Place) {
        self.has_defined |= is_twice(key);
        let Some(old) = self.definitions.get_mut(key) else {
            let segments = vec![place.segment];
            let fresh = DefinitionIndex { version, place, second: None, deleted, queue, segments };
            self.definitions.insert(key.into(), Box::new(fresh));
            self.deleted_in_last += usize::from(deleted);
            if !deleted {
                self.access.add(key, version);
                self.gain(place.segment, 1, place.bytes.into());
            }
            return;
        };
        if *key != ACCESS_WRITTEN_KEY {
            // That one is in every commit, and never deleted.
            note(&mut old.segments, place.segment);
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
        let lost = [Some(old.place), old.second].map(|place| place.filter(|_| !old.deleted));
        if !old.deleted {
            self.access.remove(key, old.version);
            self.deleted_in_last += usize::from(deleted);
        }
        if !deleted {
            self.access.add(key, version);
        }
        let counts_second = is_twice(key);
        (old.version, old.place, old.second, old.deleted) = (version, place, None, deleted);
        old.queue = queue;
        for lost in lost.into_iter().take(if counts_second { 2 } else { 1 }).flatten() {
            self.lose(lost.segment, lost.bytes.into());
        }
        if !deleted {
            self.gain(place.segment, 1, place.bytes.into());
        }
    }

    /// A definition is seen at another place. Two count, and of three one is given up: one that is to leave,
    /// or lies in the segment of the newest, or is the oldest. Of what is in every commit the newest alone
    /// counts.
    fn apply_again(&mut self, key: &[u8], place: Place) {
        let leaving = self.leaving;
        let Some(definition) = self.definitions.get_mut(key) else { panic!("it is not known yet") };
        let is_deleted = definition.deleted;
        let lost = if !is_twice(key) {
            definition.second = Some(definition.place);
            Some(core::mem::replace(&mut definition.place, place))
        } else {
            match definition.second {
                // The cleaner has copied the only one: it would stay for that one's sake.
                None if leaving.contains(&definition.place.segment) => {
                    Some(core::mem::replace(&mut definition.place, place))
                }
                None => {
                    definition.second = Some(core::mem::replace(&mut definition.place, place));
                    None
                }
                Some(second) if second == place => return,
                Some(second) => {
                    let first = core::mem::replace(&mut definition.place, place);
                    let order =
                        |at: &Place| (!leaving.contains(&at.segment), at.segment != place.segment, *at);
                    let [lost, kept] =
                        if order(&first) < order(&second) { [first, second] } else { [second, first] };
                    definition.second = Some(kept);
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

    /// Whether a message was ever seen in this queue, or settled there.
    pub(super) fn has_known(&self, target: &Target) -> bool {
        let queue = self.queues.get(&target.queue);
        queue.is_some_and(|q| q.settled.contains(target.offset) || q.segment_of(target.offset).is_some())
    }

    /// Whether it is known that a queue was deleted.
    pub(super) fn is_gone(&self, queue: u64) -> bool {
        self.queues.get(&queue).is_some_and(|queue| queue.gone)
    }

    pub(super) fn settle(&mut self, queue: u64, range: Range) {
        let Self { queues, segments, bodies, runs, .. } = self;
        let entry = queues.entry(queue).or_default();
        let before = entry.runs.len();
        let mut buried = |entry: &mut QueueIndex, fresh: Range, segments: &mut BTreeMap<u64, Segment>| {
            while let Some((&offset, &body)) = entry.large.range(fresh.start..fresh.end).next() {
                entry.large.remove(&offset);
                let Some(large) = bodies.get_mut(&body) else { continue };
                entry.large_bytes = entry.large_bytes.saturating_sub(large.bytes());
                large.holders -= 1;
                if large.holders == 0 {
                    large.bury(segments);
                }
            }
        };
        entry.settle(range, |entry, lost| match lost {
            Lost::Live(segment, count, bytes) => {
                if let Some(segment) = segments.get_mut(&segment) {
                    segment.lose(count.into(), bytes.into());
                }
            }
            Lost::Offsets(fresh) => buried(entry, fresh, segments),
        });
        *runs = *runs + entry.runs.len() - before;
    }

    /// Offsets are settled that are not durably so yet: what their segments are going to lose.
    pub(super) fn note_pending(&mut self, queue: u64, range: Range) {
        let Self { queues, segments, bodies, .. } = self;
        // What is settled before its message was written may be all that was ever said of the queue.
        let Some(entry) = queues.get(&queue) else { return };
        let mut note = |segment, count: u32, bytes: u32| {
            if let Some(segment) = segments.get_mut(&segment) {
                segment.pending += u64::from(count);
                segment.pending_bytes += u64::from(bytes);
            }
        };
        entry.for_each_held(range, &mut note);
        for body in entry.large.range(range.start..range.end).map(|(_, body)| body) {
            let Some(large) = bodies.get_mut(body) else { continue };
            large.pending += 1;
            if large.pending == large.holders {
                large.chunks.values().for_each(|at| note(at.segment, 1, at.bytes));
            }
        }
    }

    pub(super) fn forget_pending(&mut self) {
        for segment in self.segments.values_mut() {
            (segment.pending, segment.pending_bytes) = (0, 0);
        }
        self.bodies.values_mut().for_each(|large| large.pending = 0);
    }

    /// Whether what is pending leaves some segment, or the active one is so anyway, that it `is_worth`
    /// copying, by its live bytes and all that it takes.
    pub(super) fn would_leave(&self, active: u64, is_worth: impl Fn(u64, u32) -> bool) -> bool {
        self.segments.iter().any(|(sequence, segment)| {
            // Bytes are shares, so only the count tells that nothing is left.
            let is_empty = segment.pending >= segment.live;
            let bytes = segment.live_bytes.saturating_sub(segment.pending_bytes);
            let left = if is_empty { 0 } else { bytes.max(1) };
            (*sequence == active || segment.pending > 0) && is_worth(left, segment.bytes)
        })
    }

    /// Chunks whose message will never come.
    pub(super) fn drop_body(&mut self, body: u64) {
        if let Some(large) = self.bodies.get_mut(&body) {
            large.bury(&mut self.segments);
        }
    }

    /// The same, where some of them may still be on their way: everything up to this was appended.
    pub(super) fn drop_body_on_its_way(&mut self, body: u64, appended: Position) {
        self.drop_body(body);
        self.dropped.push((body, appended));
    }

    /// Chunks that were on their way when their body was dropped have arrived: they are dead too.
    pub(super) fn end_dropped(&mut self, durable: Position) {
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

    /// Ends recovery: chunks without a message are dead, but for those of the bodies that a group names, and
    /// what kills nothing any more is forgotten. `None`: a group cannot be read, so it may name any body.
    pub(super) fn end_recovery(&mut self, named: Option<&[u64]>) {
        for (body, large) in &mut self.bodies {
            if large.holders == 0 && named.is_some_and(|named| !named.contains(body)) {
                large.bury(&mut self.segments);
            }
        }
        self.forget_gone();
    }

    /// Takes segments out, rising, that have left the log durably.
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
            definition.second = definition.second.filter(|place| !has_left(&place.segment));
            if has_left(&definition.place.segment) {
                definition.place = definition.second.take().unwrap_or(definition.place);
            }
        }
        self.definitions.retain(|_, definition| !definition.deleted || !definition.segments.is_empty());
        for large in self.bodies.values_mut() {
            large.chunks.retain(|_, place| !has_left(&place.segment));
        }
        self.bodies.retain(|_, large| !large.dead || !large.chunks.is_empty());
        self.forget_gone();
    }

    fn forget_gone(&mut self) {
        let segments = &self.segments;
        self.queues.retain(|_, queue| !queue.gone || segments_of(segments, queue).next().is_some());
        self.runs = self.queues.values().map(|queue| queue.runs.len()).sum();
    }

    /// Whether a message still waits in this queue and `segment` is its place.
    pub(super) fn is_held_in(&self, target: &Target, segment: u64) -> bool {
        self.queues.get(&target.queue).and_then(|queue| queue.segment_of(target.offset)) == Some(segment)
    }

    /// Whether `record`, found in `segment`, must be copied before the segment can be left out.
    pub(super) fn is_live_in(&self, record: &Record<'_>, segment: u64) -> bool {
        self.live_in(record, segment) > 0
    }

    /// For how much of what is live in `segment` this record counts, when it is found there.
    pub(super) fn live_in(&self, record: &Record<'_>, segment: u64) -> u64 {
        let is_live = match record {
            Record::Message(message) => {
                return message.targets.iter().filter(|to| self.is_held_in(to, segment)).count() as u64;
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
            | Record::Left { .. }
            | Record::Optional { .. } => false,
        };
        is_live.into()
    }

    /// Whether something was defined since the last question.
    pub(super) const fn take_defined(&mut self) -> bool {
        core::mem::replace(&mut self.has_defined, false)
    }

    /// The first definition behind a key that lies at one place only, or in one sealed segment only; and
    /// deletions, as long as they kill something elsewhere.
    pub(super) fn next_thin(&self, after: &[u8], active: u64) -> Option<(&[u8], &DefinitionIndex)> {
        let behind = (Bound::Excluded(after), Bound::Unbounded);
        let mut definitions = self.definitions.range::<[u8], _>(behind);
        let found = definitions.find(|(key, definition)| is_twice(key) && definition.is_thin(active));
        found.map(|(key, definition)| (&**key, &**definition))
    }

    /// The first queue behind `after` of whose deletion one full segment alone knows.
    pub(super) fn next_gone_once(&self, after: u64, active: u64) -> Option<u64> {
        let mut queues = self.queues.range((Bound::Excluded(after), Bound::Unbounded));
        let is_gone_once = |queue: &QueueIndex| {
            let only = queue.gone_only_in(active);
            only.is_some_and(|only| segments_of(&self.segments, queue).any(|segment| segment != only))
        };
        queues.find(|(_, queue)| is_gone_once(queue)).map(|(queue, _)| *queue)
    }

    /// Queues whose settlements must be written again before these segments, rising, may be left out, and in
    /// how many ranges.
    pub(super) fn queues_to_carry(&self, leaving: &[u64]) -> impl Iterator<Item = (u64, usize)> {
        let last = leaving.last().copied().unwrap_or(0);
        self.queues.iter().filter_map(move |(&queue, entry)| {
            let stays = |segment: u64| leaving.binary_search(&segment).is_err();
            let mut held = segments_of(&self.segments, entry);
            let is_needed = entry.settled_since <= last && (!entry.gone || held.any(stays));
            is_needed.then(|| (queue, entry.settled.len()))
        })
    }

    /// Deleted definitions whose record must be written again before `segment` may be left out.
    pub(super) fn deletions_to_carry(&self, segment: u64) -> impl Iterator<Item = (&[u8], u64)> {
        self.definitions.iter().filter_map(move |(key, definition)| {
            let kills = definition.segments.iter().any(|other| *other != segment);
            (definition.deleted && definition.lies_in(key, segment) && kills)
                .then_some((&**key, definition.version))
        })
    }
}

/// The usual length of a key: two names and what a binding says.
const KEY_BYTES: usize = 48;
/// What memory knows of a definition in the log.
pub const DEFINITION_BYTES: usize = tree_bytes::<Box<[u8]>, Box<DefinitionIndex>>(1)
    + DefinitionIndex::USUAL_BYTES
    + KEY_BYTES
    + ALLOCATION_BYTES;
/// What memory knows of a queue in the log that has no messages any more, beside its definition.
pub const QUEUE_STANDING_BYTES: usize = tree_bytes::<u64, Box<QueueIndex>>(1) + QueueIndex::STANDING_BYTES;

/// The segments of the log among which those are that have records of a queue.
fn segments_of(segments: &BTreeMap<u64, Segment>, queue: &QueueIndex) -> impl Iterator<Item = u64> {
    let between = queue.held_between().map(|(first, last)| segments.range(first..=last));
    between.into_iter().flatten().map(|(sequence, _)| *sequence)
}

fn note(list: &mut Vec<u64>, segment: u64) {
    if let Err(at) = list.binary_search(&segment) {
        // Two are the rule, and a list that doubles has room for four.
        list.reserve_exact(usize::from(list.len() == list.capacity()));
        list.insert(at, segment);
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
                let place = Place { segment: 1, at: 0, bytes: 9 };
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
                        Entry {
                            queue: *queue, offset, at, bytes: 60 + kind, targets, lane: 0, is_chunked, body,
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

    /// The segment stayed in the log for good once, for the sake of the place that had just been copied.
    #[test]
    fn the_only_place_of_a_definition_counts_no_more_when_the_cleaner_has_copied_it() {
        let mut index = Index::default();
        (1..=2).for_each(|sequence| index.add_segment(sequence, sequence as u32, 64 << 10));
        let record = Record::Defined { version: 1, key: b"key", value: Some(b"value") };
        index.apply(&record, Place { segment: 1, at: 4096, bytes: 20 });
        index.set_cleaned(1);
        index.apply(&record, Place { segment: 2, at: 8192, bytes: 20 });
        let live: Vec<u64> = index.segments().values().map(|segment| segment.live).collect();
        assert_eq!(live, [0, 1]);
    }
}

// What memory knows of one segment of the log.

/// A segment that is part of the log.
#[derive(Clone, Debug)]
pub struct Segment {
    /// Its file.
    pub slot: u32,
    /// Targets, definitions and chunks whose place it is.
    pub live: u64,
    /// Their bytes; a message for several queues is shared by them.
    pub live_bytes: u64,
    /// Those that are settled, but not durably, and about how many bytes they have.
    pub(super) pending: u64,
    pub(super) pending_bytes: u64,
    /// Bytes in use, header included.
    pub bytes: u32,
    /// The cleaner could not read all that is live in it.
    pub stuck: bool,
    /// Where the queues' parts of its footer lie.
    pub(super) spans: Spans,
}

impl Segment {
    pub(super) const fn lose(&mut self, count: u64, bytes: u64) {
        assert!(self.live >= count, "a segment loses more than it has");
        self.live -= count;
        self.live_bytes = self.live_bytes.saturating_sub(bytes);
    }
}

// Where a definition lies: the newest state of one key, at two places as a rule.
//
// Always true: of all states that the log has of a key this is the one with the highest version.

/// The newest state of one definition.
#[derive(Clone, Debug)]
pub struct DefinitionIndex {
    /// Its version.
    pub version: u64,
    /// The place of the record in the log.
    pub place: Place,
    /// Where it lies too, in another commit, and soon in another segment.
    pub second: Option<Place>,
    /// Whether the record says that the object was deleted.
    pub deleted: bool,
    /// The incarnation of the queue that it defines; 0 when it defines none, or one that a footer of version
    /// 1 does not tell.
    pub queue: u64,
    /// Segments with records of this key.
    pub(super) segments: Vec<u64>,
}

impl DefinitionIndex {
    /// Whether damage to one block, or to one sealed segment, may take it. A deletion is no loss when what it
    /// kills goes with it; a sealed segment's footer has both, the active one's blocks go one by one.
    pub(super) fn is_thin(&self, active: u64) -> bool {
        let first = self.place.segment;
        let is_alone = self.second.is_none_or(|second| second.segment == first && first != active);
        let second = self.second.map_or(first, |second| second.segment);
        let kills = || self.segments.iter().any(|segment| *segment != first && *segment != second);
        is_alone && (!self.deleted || first == active || kills())
    }

    /// Whether there is a name in it for messages.
    pub(super) const fn names_queue(&self) -> bool {
        self.queue != 0 && !self.deleted
    }

    /// Bytes it takes on the heap as a rule, itself included: there are records of it in two segments.
    pub(super) const USUAL_BYTES: usize = size_of::<Self>() + 2 * size_of::<u64>() + 2 * ALLOCATION_BYTES;

    /// Bytes it takes on the heap, itself included.
    pub(super) const fn heap_bytes(&self) -> usize {
        size_of::<Self>() + self.segments.capacity() * size_of::<u64>() + 2 * ALLOCATION_BYTES
    }

    /// Segments with records of its key.
    pub(super) fn segments(&self) -> &[u64] {
        &self.segments
    }

    /// Whether a segment has a place of it that counts.
    pub(super) fn lies_in(&self, key: &[u8], segment: u64) -> bool {
        self.place.segment == segment
            || is_twice(key) && self.second.is_some_and(|place| place.segment == segment)
    }
}

/// Whether both places of a definition count: those of what every commit repeats do not.
pub(super) fn is_twice(key: &[u8]) -> bool {
    *key != ACCESS_WRITTEN_KEY
}

// Where the pieces of a large body lie, and who still needs it.
//
// Always true: it is dead from when nobody needs it any more, and goes when the last segment with a piece of
// it has left the log.

/// A body over 64 KiB.
#[derive(Clone, Debug, Default)]
pub(super) struct LargeBody {
    /// Place by index.
    pub(super) chunks: BTreeMap<u32, Place>,
    /// Messages in queues that have it.
    pub(super) holders: u64,
    /// Those of them that are done with it, but not durably.
    pub(super) pending: u64,
    /// Whether no live message needs the body.
    pub(super) dead: bool,
}

impl LargeBody {
    /// Bytes of all that is known of it, in the log.
    pub(super) fn bytes(&self) -> u64 {
        self.chunks.values().map(|place| u64::from(place.bytes)).sum()
    }

    /// Bytes that it takes in memory beside its own record.
    pub(super) fn heap_bytes(&self) -> usize {
        tree_bytes::<u32, Place>(self.chunks.len())
    }

    /// Nobody needs it any more: its segments lose its pieces.
    pub(super) fn bury(&mut self, segments: &mut BTreeMap<u64, Segment>) {
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

// What memory knows of the log, held against what it may take.
//
// What definitions and empty queues take holds no publisher back. It has room of its own, for as many as the
// other limits allow; what they take beyond that, with very long names, counts too, so that the memory of
// both is bounded. Deleted definitions and queues count until their segments have left the log. The active
// segment does not leave, so it ends early when it has much of what is deleted while the index is full.
//
// Always true: it is weighed after every change of segments, at each commit once it is nearly full, and at the
// latest when [`DELETED_PER_WEIGHING`] queues and definitions were deleted; so what is written beyond the
// limit is one segment at most.

/// While no more than one of so many parts of the limit is left, it is left to what makes room by being written:
/// dead letters.
const LAST_PART: usize = 8;
/// Between two weighings so many queues and definitions are deleted at most, each some hundred bytes.
const DELETED_PER_WEIGHING: usize = 256;
/// The active segment ends early when what is deleted in it takes one of so many parts of the limit.
const DELETED_PART: usize = 8;

/// Bytes of the index, as they were weighed last.
#[derive(Debug)]
pub(super) struct IndexWeight {
    /// Beside what stands.
    bytes: usize,
    /// Of those, deleted queues and definitions.
    deleted_bytes: usize,
    /// How often one was deleted in the active segment.
    deleted_in_active: usize,
    bytes_max: usize,
    /// The room of what stands.
    standing_max: usize,
    /// At so many, beside what is deleted, the cleaner waits: its copies may cut runs in pieces, and each takes
    /// memory.
    crowded_bytes: usize,
    is_full: bool,
    ends_active: bool,
    overflow: Option<usize>,
}

impl IndexWeight {
    /// What a start found.
    pub(super) fn new(index: &Index, settings: &Settings) -> Self {
        let mut weight = Self {
            bytes: 0,
            deleted_bytes: 0,
            deleted_in_active: 0,
            bytes_max: settings.index_bytes,
            standing_max: settings.standing_bytes,
            crowded_bytes: 0,
            is_full: false,
            ends_active: false,
            overflow: None,
        };
        weight.set(index);
        weight.crowded_bytes = weight.bytes.max(weight.bytes_max) / 4 * 5;
        weight.overflow = None;
        weight
    }

    /// It is like this now.
    pub(super) fn set(&mut self, index: &Index) {
        let was_full = self.is_full;
        let (deleted, deleted_bytes) = index.deleted();
        self.bytes = index.bytes() - index.standing_bytes().min(self.standing_max);
        self.deleted_bytes = deleted_bytes;
        self.deleted_in_active = index.deleted_in_last();
        self.is_full = self.bytes > self.bytes_max;
        // One that is made and deleted again and again lies there once.
        let in_active_bytes = deleted_bytes / deleted.max(1) * self.deleted_in_active.min(deleted);
        self.ends_active = self.is_full && in_active_bytes > self.bytes_max / DELETED_PART;
        if self.is_full && !was_full {
            self.overflow = Some(self.bytes);
        }
    }

    /// Whether so much was deleted since it was weighed that it should be weighed again.
    pub(super) const fn is_stale(&self, index: &Index) -> bool {
        index.deleted_in_last() >= self.deleted_in_active + DELETED_PER_WEIGHING
    }

    /// Whether it takes as much as it may.
    pub(super) const fn is_full(&self) -> bool {
        self.is_full
    }

    /// Whether the last of it is used, or all.
    pub(super) const fn is_tight(&self) -> bool {
        self.bytes > self.bytes_max - self.bytes_max / LAST_PART
    }

    /// Whether it would not be full without what is deleted.
    pub(super) const fn is_full_of_deleted(&self) -> bool {
        self.is_full && self.bytes.saturating_sub(self.deleted_bytes) <= self.bytes_max
    }

    /// Whether the active segment should end, so that what is deleted in it can leave.
    pub(super) const fn ends_active(&self) -> bool {
        self.ends_active
    }

    /// Whether it takes so much that the cleaner waits; not for what is deleted, for only the cleaner makes that leave.
    pub(super) const fn is_crowded(&self) -> bool {
        self.bytes.saturating_sub(self.deleted_bytes) >= self.crowded_bytes
    }

    /// How many bytes it took when it became full, once each time.
    pub(super) const fn take_overflow(&mut self) -> Option<usize> {
        self.overflow.take()
    }
}
