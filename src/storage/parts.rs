//! Parts of footers. A part contains the locations of one queue's messages in a segment, and can be found and read
//! without the other parts.
//!
//! ```text
//! part    | block, 1 KiB | block, 1 KiB | ... | last block, as long as needed |
//!
//! block   | CRC32C u32 | length u16, top bit: the next block is of the same queue | queue varint
//!         | first offset varint | entry | entry | ... | zeros if another block follows |
//!
//! entry   | flags | [1: offsets skipped] | [2: bytes between the records, signed] | [not 4: bytes]
//!         | [8: a byte that is ignored] | [16: targets of the record] | [32: id of the body, which is chunked] |
//! ```
//!
//! Numbers are varints. An entry contains the differences to the previous entry. For the first entry of a block, the
//! previous entry is taken to have the offset before `first offset`, and an empty record at byte 0 of the
//! segment. With steady traffic a message takes one byte. The CRC covers everything except itself. It starts from the
//! store's seed and the segment's sequence.
//!
//! # Invariants
//! - The entries of a queue are ascending by offset, each offset once.
//! - Each block can be decoded without the others, so a few of a million messages are found by reading a few
//!   blocks.

use leveret_core::mem::sort;

use super::commit_builder::ResizeZeroed;
use super::varint::{self, Input};

/// Bytes of each block of a part except the last.
pub(super) const PART_BLOCK_BYTES: usize = 1024;
/// Maximum bytes of the head of a block.
const HEAD_BYTES_MAX: usize = 26;
/// Maximum bytes of an entry.
const ENTRY_BYTES_MAX: usize = 48;
const FOLLOWED: u16 = 0x8000;

const HAS_GAP: u8 = 1;
const HAS_PLACE: u8 = 2;
const SAME_BYTES: u8 = 4;
/// A byte follows that is ignored. It is never written.
const HAS_IGNORED: u8 = 8;
const IS_SHARED: u8 = 16;
const IS_CHUNKED: u8 = 32;

/// The location in the segment of a queue's part of the footer. `bytes` is 0 if the location is unknown.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BodyPart {
    pub(super) at: u32,
    pub(super) bytes: u32,
}

/// One message in one queue, as listed in a footer. The order of the fields makes entries sort in the order of a
/// footer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct MessageEntry {
    pub queue: u64,
    pub offset: u64,
    /// Offset of the record in the segment.
    pub at: u32,
    /// Bytes of the record.
    pub bytes: u32,
    /// Number of queues that share the record.
    pub targets: u32,
    pub is_chunked: bool,
    /// The id of the body if `is_chunked`; otherwise 0.
    pub body: u64,
}

impl MessageEntry {
    /// Returns the share of the record's bytes that counts for this queue.
    pub(super) const fn share(&self) -> u32 {
        self.bytes / self.targets
    }
}

/// Collects the `most` smallest of all items pushed, in memory for twice this number.
#[derive(Debug, Default)]
pub(super) struct Smallest<T> {
    items: Vec<T>,
    most: usize,
    /// Whether items were left out. They are larger than all items kept.
    pub is_cut: bool,
}

impl<T: Ord + Copy> Smallest<T> {
    /// Creates a collector of `most` items in the memory of `items`, which is cleared.
    pub(super) fn new(mut items: Vec<T>, most: usize) -> Self {
        items.clear();
        Self { items, most, is_cut: false }
    }

    pub(super) fn push(&mut self, item: T) {
        if self.items.len() >= 2 * self.most {
            self.cut();
        }
        self.items.push(item);
    }

    /// Removes all items except the smallest.
    fn cut(&mut self) {
        if self.items.len() > self.most {
            // Not sorted, because selecting takes only linear time, and items in random order cause many cuts.
            self.items.select_nth_unstable(self.most);
            self.items.truncate(self.most);
            self.is_cut = true;
        }
    }

    /// Returns the collected items in ascending order, and whether items were left out.
    pub(super) fn sorted(mut self) -> (Vec<T>, bool) {
        self.cut();
        sort(&mut self.items);
        (self.items, self.is_cut)
    }
}

/// The previous entry, to which the next one is relative.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PreviousEntry {
    next: u64,
    end: u32,
    bytes: u32,
}

impl PreviousEntry {
    /// Returns the state to which the entry after `entry` is relative.
    pub(super) const fn after(entry: &MessageEntry) -> Self {
        Self { next: entry.offset + 1, end: entry.at + entry.bytes, bytes: entry.bytes }
    }
}

/// Encodes an entry relative to the previous one.
fn encode(entry: &MessageEntry, before: PreviousEntry) -> heapless::Vec<u8, ENTRY_BYTES_MAX> {
    let mut out = heapless::Vec::new();
    let mut flags = 0;
    let _ = out.push(0);
    if entry.offset > before.next {
        flags |= HAS_GAP;
        put(&mut out, entry.offset - before.next);
    }
    if entry.at != before.end {
        flags |= HAS_PLACE;
        put(&mut out, varint::zigzag(i64::from(entry.at) - i64::from(before.end)));
    }
    if entry.bytes == before.bytes {
        flags |= SAME_BYTES;
    } else {
        put(&mut out, entry.bytes.into());
    }
    if entry.targets > 1 {
        flags |= IS_SHARED;
        put(&mut out, entry.targets.into());
    }
    if entry.is_chunked {
        flags |= IS_CHUNKED;
        put(&mut out, entry.body);
    }
    out[0] = flags;
    out
}

fn put(out: &mut heapless::Vec<u8, ENTRY_BYTES_MAX>, value: u64) {
    let (bytes, length) = varint::encode(value);
    let _ = out.extend_from_slice(&bytes[..length]);
}

/// Writes parts one after the other. Entries must be pushed in the order of a footer: by queue and offset.
#[derive(Debug)]
pub(super) struct BodyPartWriter<'a> {
    out: &'a mut Vec<u8>,
    /// Queue and location of each part, relative to the start of `out`.
    parts: &'a mut Vec<(u64, BodyPart)>,
    seed: u32,
    block: usize,
    before: PreviousEntry,
}

/// Returns the initial value of the checksums of a segment's parts.
pub(super) fn part_seed(seed: u32, sequence: u64) -> u32 {
    crc32c::crc32c_append(seed, &sequence.to_le_bytes())
}

impl<'a> BodyPartWriter<'a> {
    /// Creates a writer into cleared buffers; `seed` is the result of [`part_seed`].
    pub(super) fn new(out: &'a mut Vec<u8>, parts: &'a mut Vec<(u64, BodyPart)>, seed: u32) -> Self {
        out.clear();
        parts.clear();
        Self { out, parts, seed, block: 0, before: PreviousEntry::default() }
    }

    pub(super) fn push(&mut self, entry: &MessageEntry) {
        if self.parts.last().is_none_or(|(queue, _)| *queue != entry.queue) {
            self.end_part();
            self.parts.push((entry.queue, BodyPart { at: self.out.len() as u32, bytes: 0 }));
            self.begin_block(entry);
        }
        let (start, before) = (self.out.len(), self.before);
        self.put(entry);
        if self.out.len() - self.block > PART_BLOCK_BYTES {
            self.out.truncate(start);
            self.before = before;
            self.end_block(FOLLOWED);
            self.begin_block(entry);
            self.put(entry);
        }
    }

    /// Completes the last part.
    pub(super) fn finish(mut self) {
        self.end_part();
    }

    fn begin_block(&mut self, entry: &MessageEntry) {
        self.block = self.out.len();
        self.out.extend_from_slice(&[0; 6]);
        varint::put(self.out, entry.queue);
        varint::put(self.out, entry.offset);
        self.before = PreviousEntry { next: entry.offset, ..PreviousEntry::default() };
    }

    #[inline]
    fn put(&mut self, entry: &MessageEntry) {
        self.out.extend_from_slice(&encode(entry, self.before));
        self.before = PreviousEntry::after(entry);
    }

    fn end_block(&mut self, followed: u16) {
        let length = self.out.len() - self.block;
        let length_field = length as u16 | followed;
        self.out[self.block + 4..self.block + 6].copy_from_slice(&length_field.to_le_bytes());
        let sum = crc32c::crc32c_append(self.seed, &self.out[self.block + 4..]);
        self.out[self.block..self.block + 4].copy_from_slice(&sum.to_le_bytes());
        if followed != 0 {
            self.out.resize_zeroed(self.block + PART_BLOCK_BYTES);
        }
    }

    fn end_part(&mut self) {
        if self.parts.is_empty() {
            return;
        }
        self.end_block(0);
        if let Some((_, part)) = self.parts.last_mut() {
            part.bytes = self.out.len() as u32 - part.at;
        }
    }
}

/// A block with a verified checksum.
#[derive(Clone, Copy, Debug)]
pub(super) struct BodyPartBlock<'a> {
    pub queue: u64,
    pub first: u64,
    /// Distance in bytes to the start of the next block, which may be of another queue.
    pub stride: usize,
    entries: Input<'a>,
}

impl<'a> BodyPartBlock<'a> {
    /// Parses the block at the start of `bytes`; returns `None` if it is damaged or no block.
    pub(super) fn parse(bytes: &'a [u8], seed: u32) -> Option<Self> {
        let mut input = Input::new(bytes);
        let sum = input.u32()?;
        let length_field = u16::from_le_bytes(input.take(2)?.try_into().ok()?);
        let (length, is_followed) = (usize::from(length_field & !FOLLOWED), length_field & FOLLOWED != 0);
        if length > PART_BLOCK_BYTES || crc32c::crc32c_append(seed, bytes.get(4..length)?) != sum {
            return None;
        }
        let mut entries = Input::new(bytes.get(6..length)?);
        let (queue, first) = (entries.varint()?, entries.varint()?);
        let stride = if is_followed { PART_BLOCK_BYTES } else { length };
        Some(Self { queue, first, stride, entries })
    }

    /// Iterates over the entries of the block in ascending order.
    pub(super) fn entries(&self) -> impl Iterator<Item = MessageEntry> + use<'a> {
        let (mut input, queue) = (self.entries, self.queue);
        let mut before = PreviousEntry { next: self.first, ..PreviousEntry::default() };
        core::iter::from_fn(move || read_entry(&mut input, queue, &mut before))
    }
}

fn read_entry(input: &mut Input<'_>, queue: u64, before: &mut PreviousEntry) -> Option<MessageEntry> {
    let flags = input.byte()?;
    let gap = if flags & HAS_GAP != 0 { input.varint()? } else { 0 };
    let offset = before.next.checked_add(gap).filter(|offset| *offset < u64::MAX)?;
    let moved = if flags & HAS_PLACE != 0 { varint::unzigzag(input.varint()?) } else { 0 };
    let at = u32::try_from(i64::from(before.end).checked_add(moved)?).ok()?;
    let bytes = if flags & SAME_BYTES != 0 { before.bytes } else { u32::try_from(input.varint()?).ok()? };
    if flags & HAS_IGNORED != 0 {
        input.byte()?;
    }
    let targets = if flags & IS_SHARED != 0 { u32::try_from(input.varint()?).ok()? } else { 1 };
    let is_chunked = flags & IS_CHUNKED != 0;
    let body = if is_chunked { input.varint()? } else { 0 };
    *before = PreviousEntry { next: offset + 1, end: at.checked_add(bytes)?, bytes };
    Some(MessageEntry { queue, offset, at, bytes, targets: targets.max(1), is_chunked, body })
}

/// Returns an upper bound of the bytes that `entry` takes in its part, without the overhead of blocks. `before` is
/// the state after the newest entry of the queue, if it is known.
pub(super) fn bytes_max(entry: &MessageEntry, before: Option<PreviousEntry>) -> usize {
    let head =
        if before.is_some() { 0 } else { 6 + varint::bytes(entry.queue) + varint::bytes(entry.offset) };
    let exact = before.filter(|before| before.next == entry.offset);
    head + exact.map_or_else(
        || {
            let farthest = PreviousEntry { next: 0, end: u32::MAX, bytes: u32::MAX };
            encode(entry, farthest).len()
        },
        |before| encode(entry, before).len(),
    )
}

const _: () = assert!(HEAD_BYTES_MAX + 2 * ENTRY_BYTES_MAX < PART_BLOCK_BYTES);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entries() -> impl Strategy<Value = Vec<MessageEntry>> {
        let entry = (0_u64..4, 0_u64..6, 0_u32..4 << 20, 1_u32..90_000, 0_u8..12, any::<u64>());
        prop::collection::vec(entry, 0..900).prop_map(|entries| {
            let (mut last, mut end) = (None, 0);
            let mut made: Vec<MessageEntry> = Vec::new();
            for (queue, gap, at, bytes, kind, body) in entries {
                let queue = last.map_or(queue, |(last, _)| last + u64::from(queue == 3 && gap == 5));
                let first = last.is_none_or(|(last, _)| last != queue);
                let offset =
                    if first { body >> 3 } else { last.map_or(0, |(_, at)| at + 1) } + gap / 5 * body % 999;
                let at = if kind < 8 { end } else { at };
                let bytes = if kind % 2 == 0 { 300 } else { bytes };
                let targets = 1 + u32::from(kind == 9) * (bytes % 50);
                made.push(MessageEntry { queue, offset, at, bytes, targets, is_chunked: kind == 7, body });
                made.last_mut().expect("just pushed").body *= u64::from(kind == 7);
                (last, end) = (Some((queue, offset)), at + bytes);
            }
            made
        })
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back_block_by_block(entries in entries()) {
            let (mut out, mut parts) = (Vec::new(), Vec::new());
            let mut writer = BodyPartWriter::new(&mut out, &mut parts, 77);
            entries.iter().for_each(|entry| writer.push(entry));
            writer.finish();
            let mut found = Vec::new();
            for (queue, part) in &parts {
                let bytes = &out[part.at as usize..][..part.bytes as usize];
                let mut at = 0;
                while at < bytes.len() {
                    let block = BodyPartBlock::parse(&bytes[at..], 77).expect("a block");
                    prop_assert!(block.queue == *queue && at % PART_BLOCK_BYTES == 0);
                    prop_assert_eq!(block.entries().next().map(|entry| entry.offset), Some(block.first));
                    found.extend(block.entries());
                    at += block.stride;
                }
            }
            prop_assert_eq!(found, entries);
        }

        #[test]
        fn hostile_and_damaged_blocks_never_panic(
            payload in prop::collection::vec(any::<u8>(), 0..200),
            at in 0_usize..200,
        ) {
            let mut bytes = vec![0; 6];
            bytes.extend_from_slice(&payload);
            let length = bytes.len() as u16;
            bytes[4..6].copy_from_slice(&length.to_le_bytes());
            let sum = crc32c::crc32c_append(5, &bytes[4..]);
            bytes[..4].copy_from_slice(&sum.to_le_bytes());
            if let Some(block) = BodyPartBlock::parse(&bytes, 5) {
                block.entries().for_each(drop);
            }
            let at = at % bytes.len();
            bytes[at] ^= 1;
            prop_assert!(BodyPartBlock::parse(&bytes, 5).is_none() || at == 5);
        }

        #[test]
        fn the_smallest_are_kept(items in prop::collection::vec(0_u32..1000, 0..200), most in 1_usize..40) {
            let mut smallest = Smallest::new(vec![9], most);
            items.iter().for_each(|item| smallest.push(*item));
            let (kept, is_cut) = smallest.sorted();
            let mut sorted = items.clone();
            sorted.sort_unstable();
            sorted.truncate(most);
            prop_assert_eq!((kept, is_cut), (sorted, items.len() > most));
        }
    }
}
