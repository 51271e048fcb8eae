//! Footers: the content of a sealed segment without message bodies, so that a start need not read the bodies.
//!
//! ```text
//! ... unused | part | part | ... | entries | zeros | trailer 44 bytes | end of the segment
//!
//! trailer | magic "LVF3" | CRC32C u32 | entries length u32 | parts length u32 | epoch u32 | sequence u64
//!         | last commit u64 | time u64 |
//!
//! entry   | kind | 1: an offset follows | [at varint; absent: right behind the previous one] | bytes varint
//!         | content, by kind:
//! chunk   | body id | index
//! others  | the record itself
//! ```
//!
//! The last entries are queue names, which are only in footers: see `queue_names`.
//!
//! The footer begins at the start of a block. The *entries* are all records except messages, in the order of the
//! segment; `kind` is the type of the record. Messages are listed by queue: each queue has one *part* (layout in
//! `parts`), so that reading the messages of a queue needs only its own part. The CRC covers the rest of the trailer
//! and then the entries; parts have CRCs of their own.
//!
//! While a segment is active, its messages are recorded in memory in the order of the segment, in the following
//! layout. The helper that writes the footer groups them by queue.
//!
//! ```text
//! message | flags: 8 = an offset follows, 16 = the next offset of the same queue,
//!         |        32 = the body is chunked
//!         | [at] | bytes | [n, n × (queue, offset, 0 u8)] | [body id]
//! ```
//!
//! # Invariants
//! - Space for the footer is reserved while the segment is active.
//! - The footer is synced before the header of the next segment is written.
//! - A segment whose footer is damaged, or did not fit, is read commit by commit.

use super::commit::padded;
use super::commit_builder::ResizeZeroed;
use super::log::RecordLocation;
use super::parts::{self, BodyPart, BodyPartWriter, MessageEntry, PreviousEntry, Smallest, part_seed};
use super::record::{Body, Message, Record, Target, Targets};
use super::segment::{FOOTER_MAGIC, NAMED};
use super::varint::{self, Input};

/// Bytes of the trailer at the very end of a sealed segment.
pub(super) const TRAILER_BYTES: usize = 44;
/// Number of messages grouped at once. A segment with more needs several passes.
const GROUP_ENTRIES: usize = 4096;
/// The recorded messages of a segment take at most this fraction (1/8) of its bytes: three bytes for a record of at
/// least 24 bytes.
pub(super) const RECORDED_DIVISOR: usize = 8;
/// The other records of a segment take at most this fraction (1/16) of its bytes in a footer, or the bytes of one commit.
/// They are in the footer as they are, so a segment full of definitions would need half of its bytes in memory.
const ENTRIES_DIVISOR: usize = 16;
/// A footer with this many bytes of such records gets a buffer of its exact size. Others let it grow.
const EXACT_FROM_BYTES: usize = 64 << 10;
/// Binary logarithm of the number of queues whose newest entry is known while a segment is active.
const SEEN_QUEUES_LOG2: u32 = 11;
/// Maximum bytes of an entry before its record: kind, flags, offset and length.
const ENTRY_OVERHEAD_BYTES_MAX: usize = 2 + 2 * varint::BYTES_MAX;
/// Overhead of the blocks in parts: this fraction (1/10) of the parts' bytes, plus [`BLOCKS_BYTES_MIN`].
const BLOCKS_DIVISOR: usize = 10;
const BLOCKS_BYTES_MIN: usize = 64;

const MESSAGE: u8 = 1;
const CHUNK: u8 = 2;
const ENTRY_HAS_OFFSET: u8 = 1;
const HAS_PLACE: u8 = 8;
const IS_NEXT: u8 = 16;
const IS_CHUNKED: u8 = 32;

/// The footer of the active segment.
#[derive(Clone, Debug, Default)]
pub(super) struct Footer {
    messages: RecordedEntries,
    entries: RecordedEntries,
    /// Maximum bytes of `entries`; `None` while a start reads a segment.
    entries_bytes_max: Option<usize>,
    /// Records were left out, because `entries` had its maximum bytes: the segment gets no footer.
    is_incomplete: bool,
    /// The newest entries of some queues, to estimate the bytes of their next entries.
    seen: Vec<Option<(u64, PreviousEntry)>>,
    parts_bytes: usize,
    /// Bytes reserved for queue names.
    names_bytes: usize,
    /// The state before the records of the last commit were added, for [`Self::undo`].
    before_last: FooterMark,
}

#[derive(Clone, Copy, Debug, Default)]
struct FooterMark {
    messages: Mark,
    entries: Mark,
    parts_bytes: usize,
    is_incomplete: bool,
}

/// Records of a segment, encoded in the order of their offsets.
#[derive(Clone, Debug, Default)]
struct RecordedEntries {
    bytes: Vec<u8>,
    end: u32,
    last: Option<Target>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Mark {
    bytes: usize,
    end: u32,
    last: Option<Target>,
}

impl RecordedEntries {
    const fn mark(&self) -> Mark {
        Mark { bytes: self.bytes.len(), end: self.end, last: self.last }
    }

    fn undo(&mut self, mark: Mark) {
        self.bytes.truncate(mark.bytes);
        (self.end, self.last) = (mark.end, mark.last);
    }

    fn begin_message(&mut self, at: u32, bytes: u32) {
        let place = if at == self.end { 0 } else { HAS_PLACE };
        self.bytes.push(MESSAGE | place);
        self.put_place(at, bytes);
    }

    fn begin_entry(&mut self, kind: u8, at: u32, bytes: u32) {
        self.bytes.extend([kind, u8::from(at != self.end) * ENTRY_HAS_OFFSET]);
        self.put_place(at, bytes);
    }

    #[inline]
    fn put_place(&mut self, at: u32, bytes: u32) {
        if at != self.end {
            varint::put(&mut self.bytes, at.into());
        }
        self.end = at + bytes;
        varint::put(&mut self.bytes, bytes.into());
    }
}

/// The content of a trailer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Trailer {
    pub(super) epoch: u32,
    pub(super) sequence: u64,
    pub(super) number: u64,
    pub(super) time_ms: u64,
}

impl Footer {
    /// Returns an upper bound of the bytes that the footer takes.
    pub(super) const fn bytes_max(&self) -> usize {
        self.entries.bytes.len()
            + self.names_bytes
            + self.parts_bytes
            + self.parts_bytes / BLOCKS_DIVISOR
            + BLOCKS_BYTES_MIN
            + TRAILER_BYTES
    }

    /// Returns the maximum bytes that a commit of `commit_bytes` usually adds to the footer. If many tiny records for
    /// many queues add more, the segment may remain without a footer.
    pub(super) const fn bytes_max_of(commit_bytes: usize) -> usize {
        commit_bytes
    }

    /// Returns the maximum memory of footers in bytes: two footers with their recorded messages, the encoded form of
    /// one footer, and the entries being sorted.
    pub(super) const fn bytes(segment_bytes: usize, commit_bytes: usize) -> usize {
        let seen = size_of::<Option<(u64, PreviousEntry)>>() << SEEN_QUEUES_LOG2;
        let each = segment_bytes / RECORDED_DIVISOR + Self::entries_bytes_max(segment_bytes, commit_bytes);
        3 * each + 2 * seen + 2 * GROUP_ENTRIES * size_of::<MessageEntry>()
    }

    const fn entries_bytes_max(segment_bytes: usize, commit_bytes: usize) -> usize {
        let part = segment_bytes / ENTRIES_DIVISOR;
        if part > commit_bytes { part } else { commit_bytes }
    }

    /// Reserves memory for the usual content of a segment of `segment_bytes`, so that nothing is allocated while
    /// messages are appended, and limits the memory of the footer for commits of `commit_bytes`.
    pub(super) fn with_room(mut self, segment_bytes: u32, commit_bytes: u32) -> Self {
        self.messages.bytes.reserve(segment_bytes as usize / 16);
        self.entries.bytes.reserve(segment_bytes as usize / 64);
        self.entries_bytes_max = Some(Self::entries_bytes_max(segment_bytes as usize, commit_bytes as usize));
        self
    }

    /// Returns whether records were left out, so that the segment gets no footer.
    pub(super) const fn is_incomplete(&self) -> bool {
        self.is_incomplete
    }

    /// Returns how many bytes the records that are no messages may take in the footer.
    pub(super) fn records_bytes_max(&self) -> usize {
        self.entries_bytes_max.unwrap_or(usize::MAX)
    }

    /// Returns whether the last [`Footer::note_records`] was the first to leave records out.
    pub(super) const fn became_incomplete(&self) -> bool {
        self.is_incomplete && !self.before_last.is_incomplete
    }

    /// Returns the messages recorded so far, in their order, for [`for_each_message`].
    pub(super) fn messages(&self) -> &[u8] {
        &self.messages.bytes
    }

    /// Returns the messages recorded so far except those of the last commit, which may still be in flight.
    pub(super) fn messages_before_last(&self) -> &[u8] {
        &self.messages.bytes[..self.before_last.messages.bytes]
    }

    /// Adds the records of a commit. The first record is at offset `at`.
    pub(super) fn note_records(&mut self, mut records: &[u8], mut at: u32) {
        self.before_last = FooterMark {
            messages: self.messages.mark(),
            entries: self.entries.mark(),
            parts_bytes: self.parts_bytes,
            is_incomplete: self.is_incomplete,
        };
        while let Ok((record, bytes)) = Record::parse_known(records) {
            self.note(&record, &records[..bytes], at);
            records = &records[bytes..];
            at += bytes as u32;
        }
    }

    /// Undoes the last [`Footer::note_records`].
    pub(super) fn undo(&mut self) {
        self.messages.undo(self.before_last.messages);
        self.entries.undo(self.before_last.entries);
        (self.parts_bytes, self.is_incomplete) =
            (self.before_last.parts_bytes, self.before_last.is_incomplete);
        self.seen.fill(None);
    }

    pub(super) fn clear(&mut self) {
        self.messages.undo(Mark::default());
        self.entries.undo(Mark::default());
        (self.parts_bytes, self.names_bytes, self.is_incomplete) = (0, 0, false);
        self.seen.fill(None);
        // A start reads a segment without a limit.
        if let Some(bytes_max) = self.entries_bytes_max {
            self.entries.bytes.shrink_to(bytes_max);
        }
    }

    /// Reserves this number of bytes for queue names.
    pub(super) const fn keep_room_for_names(&mut self, bytes: usize) {
        self.names_bytes = bytes;
    }

    /// Returns the maximum bytes of names if the footer may take `footer_bytes`.
    pub(super) const fn room_for_names(&self, footer_bytes: usize) -> usize {
        footer_bytes.saturating_sub(self.bytes_max() - self.names_bytes)
    }

    /// Adds a name behind all other entries.
    pub(super) fn note_name(&mut self, record: &Record<'_>) {
        let entries = &mut self.entries.bytes;
        let start = entries.len();
        record.encode(entries);
        let bytes = entries.len() - start;
        entries.extend([NAMED, 0]);
        varint::put(entries, bytes as u64);
        entries[start..].rotate_left(bytes);
    }

    /// Returns this footer, which is to be written, and puts an empty one with the buffers of `spare` in its place.
    pub(super) fn replace(&mut self, spare: Self) -> Self {
        let mut full = core::mem::replace(self, spare);
        self.seen = core::mem::take(&mut full.seen);
        self.clear();
        full
    }

    fn note(&mut self, record: &Record<'_>, raw: &[u8], at: u32) {
        let bytes = raw.len() as u32;
        if let Record::Message(message) = record {
            self.note_message(message, at, bytes);
            return;
        }
        let entries = &mut self.entries;
        let stored_bytes = match record {
            Record::Chunk { .. } => 2 * varint::BYTES_MAX,
            _ => raw.len(),
        };
        if let Some(bytes_max) = self.entries_bytes_max {
            let (len, capacity) = (entries.bytes.len(), entries.bytes.capacity());
            let needed = len + ENTRY_OVERHEAD_BYTES_MAX + stored_bytes;
            if self.is_incomplete || needed > bytes_max {
                self.is_incomplete = true;
                return;
            }
            if needed > capacity {
                entries.bytes.reserve_exact(needed.max((2 * capacity).min(bytes_max)) - len);
            }
        }
        entries.begin_entry(raw[0], at, bytes);
        match record {
            Record::Chunk { body, index, .. } => {
                varint::put(&mut entries.bytes, *body);
                varint::put(&mut entries.bytes, (*index).into());
            }
            _ => entries.bytes.extend_from_slice(raw),
        }
    }

    fn note_message(&mut self, message: &Message<'_>, at: u32, bytes: u32) {
        let recorded = &mut self.messages;
        let start = recorded.bytes.len();
        recorded.begin_message(at, bytes);
        let only = if message.targets.len() == 1 { message.targets.iter().next() } else { None };
        if only.is_some() && only == recorded.last.and_then(next_of) {
            recorded.bytes[start] |= IS_NEXT;
        } else {
            varint::put(&mut recorded.bytes, message.targets.len() as u64);
            for target in message.targets.iter() {
                varint::put(&mut recorded.bytes, target.queue);
                varint::put(&mut recorded.bytes, target.offset);
                recorded.bytes.push(0);
            }
        }
        recorded.last = only;
        let body = if let Body::Chunked { body, .. } = message.body { Some(body) } else { None };
        if let Some(body) = body {
            recorded.bytes[start] |= IS_CHUNKED;
            varint::put(&mut recorded.bytes, body);
        }
        for target in message.targets.iter() {
            self.count_entry(&entry_of(target, message.targets.len(), body, at, bytes));
        }
    }

    /// Adds an estimate of the bytes of an entry in its part.
    fn count_entry(&mut self, entry: &MessageEntry) {
        self.seen.resize(1 << SEEN_QUEUES_LOG2, None);
        // Spreads consecutive numbers evenly.
        let hash = entry.queue.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let place = (hash >> (u64::BITS - SEEN_QUEUES_LOG2)) as usize;
        let before = self.seen[place].filter(|(queue, _)| *queue == entry.queue).map(|(_, before)| before);
        self.parts_bytes += parts::bytes_max(entry, before);
        self.seen[place] = Some((entry.queue, PreviousEntry::after(entry)));
    }

    /// Encodes the whole footer into `out` as whole blocks, to be written to the very end of the segment. Stores the
    /// location of each queue's part, relative to the start of the footer, in `parts`.
    pub(super) fn finish(
        &self,
        trailer: &Trailer,
        seed: u32,
        out: &mut Vec<u8>,
        parts: &mut Vec<(u64, BodyPart)>,
    ) {
        if self.entries.bytes.len() >= EXACT_FROM_BYTES {
            out.reserve_exact(padded(self.bytes_max()));
        }
        self.group(BodyPartWriter::new(out, parts, part_seed(seed, trailer.sequence)));
        let parts_bytes = out.len();
        out.extend_from_slice(&self.entries.bytes);
        let facts_bytes = out.len() - parts_bytes;
        out.resize_zeroed(padded(out.len() + TRAILER_BYTES) - TRAILER_BYTES);
        let start = out.len();
        out.extend_from_slice(&FOOTER_MAGIC);
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&(facts_bytes as u32).to_le_bytes());
        out.extend_from_slice(&(parts_bytes as u32).to_le_bytes());
        out.extend_from_slice(&trailer.epoch.to_le_bytes());
        out.extend_from_slice(&trailer.sequence.to_le_bytes());
        out.extend_from_slice(&trailer.number.to_le_bytes());
        out.extend_from_slice(&trailer.time_ms.to_le_bytes());
        let entries = &out[parts_bytes..parts_bytes + facts_bytes];
        let sum = crc32c::crc32c_append(crc32c::crc32c_append(seed, &out[start + 8..]), entries);
        out[start + 4..start + 8].copy_from_slice(&sum.to_le_bytes());
    }

    /// Passes the messages to `writer`, grouped by queue, each offset once. If two records have the same offset, the
    /// later one counts.
    fn group(&self, mut writer: BodyPartWriter<'_>) {
        let (mut done, mut held): (Option<MessageEntry>, Option<MessageEntry>) = (None, None);
        let mut is_cut = true;
        // No entry takes less than three bytes.
        let mut items = Vec::with_capacity((self.messages.bytes.len() / 3 + 1).min(2 * GROUP_ENTRIES));
        while is_cut {
            let mut batch = Smallest::new(items, GROUP_ENTRIES);
            // Entries in memory are well formed.
            let _ = for_each_message(&self.messages.bytes, |entry| {
                if done.is_none_or(|done| *entry > done) {
                    batch.push(*entry);
                }
            });
            (items, is_cut) = batch.sorted();
            for entry in &items {
                if let Some(held) = held.filter(|h| (h.queue, h.offset) != (entry.queue, entry.offset)) {
                    writer.push(&held);
                }
                held = Some(*entry);
            }
            done = held;
        }
        if let Some(held) = held {
            writer.push(&held);
        }
        writer.finish();
    }
}

fn entry_of(target: Target, targets: usize, body: Option<u64>, at: u32, bytes: u32) -> MessageEntry {
    let Target { queue, offset } = target;
    let (is_chunked, body) = (body.is_some(), body.unwrap_or(0));
    MessageEntry { queue, offset, at, bytes, targets: targets as u32, is_chunked, body }
}

fn next_of(target: Target) -> Option<Target> {
    Some(Target { offset: target.offset.checked_add(1)?, ..target })
}

/// The lengths that a trailer claims.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Lengths {
    pub(super) entries: usize,
    pub(super) parts: usize,
}

impl Lengths {
    /// Returns the bytes of the whole footer, rounded up to whole blocks.
    pub(super) const fn footer(&self) -> usize {
        padded(self.entries + self.parts + TRAILER_BYTES)
    }

    /// Returns the lengths claimed by the last bytes of a segment, if they look like a trailer and fit into
    /// the segment.
    pub(super) fn claimed(end: &[u8], segment_bytes: usize) -> Option<Self> {
        let trailer = end.get(end.len().checked_sub(TRAILER_BYTES)?..)?;
        let mut input = Input::new(trailer);
        let magic = input.take(4)?;
        input.u32()?;
        let lengths = Self { entries: input.u32()? as usize, parts: input.u32()? as usize };
        let fits = lengths.entries < segment_bytes && lengths.parts < segment_bytes;
        (*magic == FOOTER_MAGIC && fits && lengths.footer() <= segment_bytes).then_some(lengths)
    }
}

/// Verifies a footer's entries and its trailer, which is at the end of `end`. Returns the trailer, or `None` if the
/// checksum is wrong.
pub(super) fn parse(entries: &[u8], end: &[u8], seed: u32) -> Option<Trailer> {
    let trailer = end.get(end.len().checked_sub(TRAILER_BYTES)?..)?;
    if trailer[..4] != FOOTER_MAGIC {
        return None;
    }
    let mut input = Input::new(&trailer[4..]);
    let sum = input.u32()?;
    if crc32c::crc32c_append(crc32c::crc32c_append(seed, input.rest()), entries) != sum {
        return None;
    }
    input.take(8)?;
    let (epoch, sequence) = (input.u32()?, input.u64()?);
    Some(Trailer { epoch, sequence, number: input.u64()?, time_ms: input.u64()? })
}

/// Returns the lengths and the trailer of the footer in the segment `bytes`, if the footer is undamaged and belongs
/// to segment `sequence`.
pub(super) fn of_segment(bytes: &[u8], sequence: u64, seed: u32) -> Option<(Lengths, Trailer)> {
    let lengths = Lengths::claimed(bytes, bytes.len())?;
    let entries = bytes.len() - lengths.footer() + lengths.parts;
    let trailer = parse(&bytes[entries..entries + lengths.entries], bytes, seed)?;
    (trailer.sequence == sequence).then_some((lengths, trailer))
}

/// Calls `each` with the entries of a footer and their locations. Chunks are passed without their bytes. Returns
/// `None` if the entries are malformed, which never happens in a verified footer.
pub(super) fn for_each_entry(
    entries: &[u8],
    segment: u64,
    mut each: impl FnMut(&Record<'_>, RecordLocation),
) -> Option<()> {
    let mut input = Input::new(entries);
    let mut end = 0_u32;
    while !input.is_empty() {
        let (kind, has_place) = read_kind(&mut input)?;
        let (at, bytes) = read_place(&mut input, has_place, end)?;
        end = at.checked_add(bytes)?;
        let place = RecordLocation { segment, at, bytes };
        match kind {
            // Queue names are only in footers, so they have no location in a commit.
            NAMED => {
                input.take(bytes as usize)?;
            }
            CHUNK => {
                let (body, index) = (input.varint()?, u32::try_from(input.varint()?).ok()?);
                each(&Record::Chunk { body, index, bytes: &[] }, place);
            }
            _ => {
                let (record, _) = Record::parse(input.take(bytes as usize)?).ok()?;
                each(&record, place);
            }
        }
    }
    Some(())
}

/// Calls `each` with the records of the queue names in a footer.
pub(super) fn for_each_name(entries: &[u8], mut each: impl FnMut(&[u8])) -> Option<()> {
    let mut input = Input::new(entries);
    while !input.is_empty() {
        let (kind, has_place) = read_kind(&mut input)?;
        let (_, bytes) = read_place(&mut input, has_place, 0)?;
        if kind == CHUNK {
            input.varint()?;
            input.varint()?;
            continue;
        }
        let record = input.take(bytes as usize)?;
        if kind == NAMED {
            each(record);
        }
    }
    Some(())
}

/// Reads the kind of an entry, and whether its offset follows.
fn read_kind(input: &mut Input<'_>) -> Option<(u8, bool)> {
    Some((input.byte()?, input.byte()? & ENTRY_HAS_OFFSET != 0))
}

#[inline]
fn read_place(input: &mut Input<'_>, has_place: bool, end: u32) -> Option<(u32, u32)> {
    let at = if has_place { u32::try_from(input.varint()?).ok()? } else { end };
    Some((at, u32::try_from(input.varint()?).ok()?))
}

/// Calls `each` with every target of the messages recorded in a [`Footer`], in their order.
pub(super) fn for_each_message(recorded: &[u8], mut each: impl FnMut(&MessageEntry)) -> Option<()> {
    let mut input = Input::new(recorded);
    let (mut end, mut last) = (0_u32, None);
    while !input.is_empty() {
        let flags = input.byte()?;
        let (at, bytes) = read_place(&mut input, flags & HAS_PLACE != 0, end)?;
        end = at.checked_add(bytes)?;
        let next;
        let targets = if flags & IS_NEXT != 0 {
            next = [last.and_then(next_of)?];
            Targets::List(&next)
        } else {
            let count = usize::try_from(input.varint()?).ok()?;
            let start = input.rest();
            for _ in 0..count {
                input.varint()?;
                input.varint()?;
                input.byte()?;
            }
            Targets::Encoded { count, bytes: &start[..start.len() - input.rest().len()] }
        };
        last = if targets.len() == 1 { targets.iter().next() } else { None };
        let body = if flags & IS_CHUNKED != 0 { Some(input.varint()?) } else { None };
        for target in targets.iter() {
            each(&entry_of(target, targets.len(), body, at, bytes));
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parts::BodyPartBlock;
    use crate::record::{Range, Ranges};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// Records messages with these targets, one behind the other; returns the expected entries.
    fn note(footer: &mut Footer, messages: &[(Vec<u64>, usize)]) -> Vec<MessageEntry> {
        let mut next: BTreeMap<u64, u64> = BTreeMap::new();
        let (mut bytes, mut expected) = (Vec::new(), Vec::new());
        for (queues, body) in messages {
            let mut targets: Vec<Target> = Vec::new();
            for queue in queues {
                if targets.iter().all(|target| target.queue != *queue) {
                    let offset = next.entry(*queue).or_insert(100 * queue);
                    targets.push(Target { queue: *queue, offset: *offset });
                    *offset += 1;
                }
            }
            let at = 4096 + bytes.len() as u32;
            let body = vec![0; *body];
            Record::Message(Message {
                targets: Targets::List(&targets),
                enqueued_ms: 1,
                expiration_ms: None,
                exchange: b"",
                key: b"",
                properties: b"",
                body: Body::Inline(&body),
            })
            .encode(&mut bytes);
            let length = 4096 + bytes.len() as u32 - at;
            expected.extend(targets.iter().map(|target| entry_of(*target, targets.len(), None, at, length)));
        }
        footer.note_records(&bytes, 4096);
        expected.sort_unstable();
        expected
    }

    proptest! {
        #[test]
        fn messages_are_grouped_and_take_no_more_than_was_kept_free(
            messages in prop::collection::vec(
                (prop::collection::vec(0_u64..1500, 1..4), 0_usize..20), 0..600),
            few in any::<bool>(),
        ) {
            let mut messages = messages;
            if few {
                messages.iter_mut().flat_map(|(queues, _)| queues).for_each(|queue| *queue %= 3);
            }
            let mut footer = Footer::default();
            let expected = note(&mut footer, &messages);
            let trailer = Trailer { epoch: 1, sequence: 2, number: 3, time_ms: 4 };
            let (mut out, mut parts) = (Vec::new(), Vec::new());
            footer.finish(&trailer, 9, &mut out, &mut parts);
            prop_assert!(out.len() <= padded(footer.bytes_max()), "{} {}", out.len(), footer.bytes_max());
            let lengths = Lengths::claimed(&out, out.len()).expect("a trailer");
            prop_assert_eq!(lengths.footer(), out.len());
            let entries = &out[lengths.parts..lengths.parts + lengths.entries];
            prop_assert_eq!(parse(entries, &out, 9), Some(trailer));
            let (mut found, mut at) = (Vec::new(), 0);
            while at < lengths.parts {
                let block = BodyPartBlock::parse(&out[at..lengths.parts], part_seed(9, 2)).expect("a block");
                found.extend(block.entries());
                at += block.stride;
            }
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn facts_of_every_kind_read_back() {
        let ranges = [Range { start: 1, end: 3 }];
        let records = [
            Record::Settled { queue: 1, ranges: Ranges::List(&ranges) },
            Record::WatermarkReset { queue: 1, offset: 2, watermark: 300 },
            Record::WatermarkReset { queue: 2, offset: 2, watermark: 300 },
            Record::Defined { version: 7, key: b"key", value: Some(b"value") },
            Record::Chunk { body: 1, index: 2, bytes: b"bytes" },
            Record::Gone { queue: 4 },
        ];
        let mut bytes = Vec::new();
        records.iter().for_each(|record| record.encode(&mut bytes));
        {
            let mut footer = Footer::default();
            footer.note_records(&bytes, 4172);
            let trailer = Trailer { epoch: 1, sequence: 2, number: 3, time_ms: 4 };
            let (mut out, mut parts) = (Vec::new(), Vec::new());
            footer.finish(&trailer, 9, &mut out, &mut parts);
            let lengths = Lengths::claimed(&out, out.len()).expect("a trailer");
            let read = |out: &[u8]| parse(&out[lengths.parts..][..lengths.entries], out, 9);
            assert_eq!(read(&out), Some(trailer));
            let entries = lengths.parts..lengths.parts + lengths.entries;
            for at in entries.chain(out.len() - TRAILER_BYTES..out.len()) {
                let mut damaged = out.clone();
                damaged[at] ^= 0x80;
                assert_eq!(read(&damaged), None, "a bit of byte {at} is another");
            }
            let (mut found, mut end) = (Vec::new(), 4172);
            for_each_entry(&out[lengths.parts..][..lengths.entries], 2, |record, place| {
                assert_eq!(place.at, end);
                end += place.bytes;
                let mut bytes = Vec::new();
                record.encode(&mut bytes);
                found.push(bytes);
            })
            .expect("it makes sense");
            let expected = records.map(|record| {
                let mut bytes = Vec::new();
                match record {
                    Record::Chunk { body, index, .. } => {
                        Record::Chunk { body, index, bytes: &[] }.encode(&mut bytes);
                    }
                    record => record.encode(&mut bytes),
                }
                bytes
            });
            assert_eq!((found, end as usize), (expected.to_vec(), 4172 + bytes.len()));
        }
    }

    #[test]
    fn records_beyond_the_limit_are_left_out_until_they_are_undone() {
        let mut footer = Footer::default().with_room(128 << 10, 4 << 10);
        let commit_of = |count: u64| {
            let mut bytes = Vec::new();
            for version in 0..count {
                Record::Defined { version, key: b"key", value: Some(&[7; 100]) }.encode(&mut bytes);
            }
            bytes
        };
        footer.note_records(&commit_of(50), 4096);
        assert!(!footer.is_incomplete());
        let complete = footer.entries.bytes.clone();
        footer.note_records(&commit_of(50), 20_000);
        assert!(footer.is_incomplete() && footer.became_incomplete());
        // A sixteenth of the segment, which is more than a commit.
        assert!(footer.entries.bytes.capacity() <= 8 << 10, "{}", footer.entries.bytes.capacity());
        footer.undo();
        assert!(!footer.is_incomplete() && footer.entries.bytes == complete);
        footer.note_records(&commit_of(100), 20_000);
        footer.note_records(&commit_of(1), 40_000);
        assert!(footer.is_incomplete() && !footer.became_incomplete());
        footer.clear();
        assert!(!footer.is_incomplete());
    }

    #[test]
    fn a_segment_full_of_tiny_messages_is_grouped_in_many_rounds() {
        let messages: Vec<(Vec<u64>, usize)> = (0..40_000_u64).map(|n| (vec![n * 7919 % 1000], 1)).collect();
        let mut footer = Footer::default();
        let expected = note(&mut footer, &messages);
        let (mut out, mut parts) = (Vec::new(), Vec::new());
        let trailer = Trailer { epoch: 1, sequence: 2, number: 3, time_ms: 4 };
        footer.finish(&trailer, 9, &mut out, &mut parts);
        assert_eq!((parts.len(), expected.len()), (1000, 40_000));
        let used = out.len() as f64 / 40_000.0;
        let kept = footer.bytes_max() as f64 / 40_000.0;
        println!("{used:.2} bytes a message, {kept:.2} kept free");
        assert!(used < 6.0 && kept < 2.0 * used);
    }
}
