//! Queue names in footers: the footer of a segment repeats the names of the queues whose messages it contains.
//!
//! A flash card may lose both copies of a queue's definition. Messages contain only the incarnation of their queue,
//! so without the definition the name of the queue would be unknown. A footer is the cheapest place for a third copy
//! of the name: it is written anyway, far from the definitions, and is removed together with the messages.
//!
//! ```text
//! payload | incarnation varint | key of the definition |        of a record of the kind 129
//! ```
//!
//! Names take at most 1/[`NAMES_DIVISOR`] of a segment's bytes. If all names need more, each footer continues after
//! the last name of the previous footer. If a queue's messages extend over several segments, one of their footers
//! therefore contains its name.
//!
//! A footer also repeats the definitions that its segment contains, with their values. If no copy of a
//! definition can be read, it is read from a footer.
//!
//! # Invariants
//! - Names never take space that another part of a footer needs.
//! - Names are read only when a definition is missing, so a start with an undamaged store reads none.
//! - A name is only a hint for rebuilding a queue. It is ignored if the queue has a definition.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Bound;

use leveret_core::definition::incarnation_in;

use super::commit::BLOCK_BYTES;
use super::commit_builder::ActiveSegment;
use super::damage::is_about_a_block;
use super::disk::Disk;
use super::footer::{self, Footer, Lengths};
use super::index::DefinitionIndex;
use super::index::Index;
use super::record::Record;
use super::segment::NAMED;
use super::varint::{self, Input};

/// Names take at most this fraction (1/128) of a segment's bytes.
const NAMES_DIVISOR: usize = 128;
/// Maximum bytes of a name in addition to its key: kind, place, length, checksum and incarnation.
pub(super) const NAME_OVERHEAD_BYTES: usize = 24;

/// The keys of the definitions of queues, by incarnation.
pub type Names = BTreeMap<u64, Box<[u8]>>;

/// Parses the payload of a name's record; returns the incarnation and the key.
fn parse(payload: &[u8]) -> Option<(u64, &[u8])> {
    let mut input = Input::new(payload);
    Some((input.varint()?, input.rest()))
}

/// Returns the number of bytes that a footer reserves for names.
pub(super) fn room_kept(index: &Index, segment_bytes: u32) -> usize {
    let most = segment_bytes as usize / NAMES_DIVISOR;
    let mut bytes = 0;
    for (key, _) in index.definitions().iter().filter(|(_, definition)| definition.names_queue()) {
        bytes += key.len() + NAME_OVERHEAD_BYTES;
        if bytes >= most {
            return most;
        }
    }
    bytes
}

/// The progress of writing names into footers.
#[derive(Debug, Default)]
pub(super) struct NameProgress {
    /// The key that was written last; the next footer continues after it.
    after: Vec<u8>,
    payload: Vec<u8>,
}

impl NameProgress {
    /// Adds the names of the queues with messages in the active segment to its footer, as far as there is
    /// space.
    pub(super) fn note(
        &mut self,
        footer: &mut Footer,
        index: &Index,
        active: &ActiveSegment,
        segment_bytes: u32,
    ) {
        let segment_bytes = segment_bytes as usize;
        let room = footer.room_for_names(segment_bytes - active.tail() as usize);
        let mut left = room.min(segment_bytes / NAMES_DIVISOR);
        let (segment, Self { after, payload }) = (active.sequence(), self);
        let definitions = index.definitions();
        let behind = definitions.range::<[u8], _>((Bound::Excluded(&**after), Bound::Unbounded));
        let again = definitions.range::<[u8], _>((Bound::Unbounded, Bound::Included(&**after)));
        let mut last = None;
        for (key, definition) in behind.chain(again).filter(|(_, definition)| definition.names_queue()) {
            // The active segment is the newest, so a queue with messages in it has them in its last segment.
            let is_there =
                |queue: &super::QueueIndex| queue.segments_between().is_some_and(|(_, last)| last == segment);
            if !index.queues().get(&definition.queue).is_some_and(|queue| is_there(queue)) {
                continue;
            }
            let Some(rest) = left.checked_sub(key.len() + NAME_OVERHEAD_BYTES) else { break };
            left = rest;
            payload.clear();
            varint::put(payload, definition.queue);
            payload.extend_from_slice(key);
            footer.note_name(&Record::Optional { kind: NAMED, payload });
            last = Some(key);
        }
        if let Some(last) = last {
            after.clear();
            after.extend_from_slice(last);
        }
    }
}

/// The footers of a log.
pub(super) struct FooterView<'l> {
    pub(super) index: &'l Index,
    pub(super) segment_bytes: u32,
    pub(super) seed: u32,
}

impl FooterView<'_> {
    /// See [`Log::read_names`](super::log::Log::read_names).
    pub(super) fn read_names<D: Disk>(&self, disk: &mut D, queues: &BTreeSet<u64>) -> io::Result<Names> {
        let mut names = Names::new();
        for &segment in self.index.segments().keys() {
            let Some(entries) = self.read_entries(disk, segment)? else { continue };
            let mut note = |queue: u64, key: &[u8]| {
                if queues.contains(&queue) {
                    names.insert(queue, key.into());
                }
            };
            for_each_name(&entries, &mut note);
            // A verified footer is well formed.
            let _ = footer::for_each_entry(&entries, segment, |record, _| {
                if let Record::Defined { key, value: Some(value), .. } = record
                    && let Some(queue) = incarnation_in(key, value)
                {
                    note(queue, key);
                }
            });
        }
        Ok(names)
    }

    /// Reads a definition with no readable copy from a footer that repeats it.
    pub(super) fn read_repeated<D: Disk>(
        &self,
        disk: &mut D,
        key: &[u8],
        definition: &DefinitionIndex,
        bytes: &mut Vec<u8>,
    ) -> io::Result<bool> {
        for segment in definition.segments() {
            let Some(entries) = self.read_entries(disk, *segment)? else { continue };
            let mut is_found = false;
            // A verified footer is well formed.
            let _ = footer::for_each_entry(&entries, *segment, |record, _| {
                if let Record::Defined { version, key: found, value: Some(_) } = record
                    && (*version, *found) == (definition.version, key)
                {
                    bytes.clear();
                    record.encode(bytes);
                    is_found = true;
                }
            });
            if is_found {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Returns the encoded entries of a segment's footer, if the footer is undamaged.
    fn read_entries<D: Disk>(&self, disk: &mut D, sequence: u64) -> io::Result<Option<Vec<u8>>> {
        let Some(segment) = self.index.segments().get(&sequence) else { return Ok(None) };
        let (slot, end) = (segment.slot, self.segment_bytes as usize);
        let mut block = [0; BLOCK_BYTES];
        if !read_all(disk, slot, end - BLOCK_BYTES, &mut block)? {
            return Ok(None);
        }
        let Some(lengths) = Lengths::claimed(&block, end) else { return Ok(None) };
        let mut entries = vec![0; lengths.entries];
        if !read_all(disk, slot, end - lengths.footer() + lengths.parts, &mut entries)? {
            return Ok(None);
        }
        let trailer = footer::parse(&entries, &block, self.seed);
        let trailer = trailer.filter(|trailer| trailer.sequence == sequence);
        Ok(trailer.map(|_| entries))
    }
}

/// Calls `each` with the names in a verified footer.
pub(super) fn for_each_name(entries: &[u8], mut each: impl FnMut(u64, &[u8])) {
    // A verified footer is well formed.
    let _ = footer::for_each_name(entries, |record| {
        if let Ok((Record::Optional { payload, .. }, _)) = Record::parse(record)
            && let Some((queue, key)) = parse(payload)
        {
            each(queue, key);
        }
    });
}

/// Fills `bytes` from offset `at` of a file; returns whether all of them could be read.
fn read_all<D: Disk>(disk: &mut D, slot: u32, at: usize, bytes: &mut [u8]) -> io::Result<bool> {
    match disk.read(slot, at as u64, bytes) {
        Err(error) if is_about_a_block(&error) => Ok(false),
        read => Ok(read? == bytes.len()),
    }
}
