//! Footers: what a sealed segment holds, without the bodies, so that a start need not read them.
//!
//! ```text
//! ... unused | zeros | entries: length bytes | trailer 40 bytes | end of the segment
//!
//! trailer | magic "LVF1" | CRC32C u32 | length u32 | life u32 | sequence u64 | last commit u64 | time u64 |
//!
//! entry   | flags: kind (3 bits), 8 = a place follows, 16 = the next offset of the same queue and lane,
//!         |        32 = the body is chunks
//!         | [at varint: else right behind the record before] | bytes varint
//! message | [n, n × (queue, offset, lane)] | [body id]
//! chunk   | body id | index
//! defined | version | deleted u8 | key with its length
//! others  | the record itself
//! ```
//!
//! Entries have the kinds of records and their order, so a footer reads as the same facts as the segment.
//! In steady traffic a message takes three bytes. The CRC covers length to the end of the trailer and then
//! the entries; it starts from the store's seed.
//!
//! Always true: room for the footer is kept while the segment fills; it is synced before the header of the
//! next segment is written; a segment whose footer is not good is read commit by commit instead.

use super::commit::padded;
use super::index::Place;
use super::record::{Body, Message, Record, Target, Targets};
use super::varint::{self, Input};

const MAGIC: [u8; 4] = *b"LVF1";
/// Bytes at the very end of a sealed segment.
pub(super) const TRAILER_BYTES: usize = 40;

const KIND: u8 = 7;
const HAS_PLACE: u8 = 8;
const IS_NEXT: u8 = 16;
const IS_CHUNKED: u8 = 32;

/// The footer of the segment that is being filled.
#[derive(Clone, Debug, Default)]
pub(super) struct Footer {
    entries: Vec<u8>,
    end: u32,
    last: Option<Target>,
    mark: (usize, u32, Option<Target>),
}

/// What a trailer says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Trailer {
    pub(super) life: u32,
    pub(super) sequence: u64,
    pub(super) number: u64,
    pub(super) time_ms: u64,
}

impl Footer {
    /// Bytes of the footer as it stands.
    pub(super) const fn bytes_max(&self) -> usize {
        self.entries.len() + TRAILER_BYTES
    }

    /// The most that a commit of so many bytes can add: no entry is longer than its record.
    pub(super) const fn bytes_max_of(commit_bytes: usize) -> usize {
        commit_bytes
    }

    /// Adds the records of a commit whose first record lies at `at`.
    pub(super) fn note_records(&mut self, mut records: &[u8], mut at: u32) {
        self.mark = (self.entries.len(), self.end, self.last);
        while let Ok((record, bytes)) = Record::parse(records) {
            self.note(&record, &records[..bytes], at);
            records = &records[bytes..];
            at += bytes as u32;
        }
    }

    /// Takes the last [`Footer::note_records`] back.
    pub(super) fn undo(&mut self) {
        self.entries.truncate(self.mark.0);
        (self.end, self.last) = (self.mark.1, self.mark.2);
    }

    pub(super) fn clear(&mut self) {
        self.entries.clear();
        (self.end, self.last) = (0, None);
    }

    fn note(&mut self, record: &Record<'_>, raw: &[u8], at: u32) {
        let place = if at == self.end { 0 } else { HAS_PLACE };
        self.end = at + raw.len() as u32;
        let start = self.entries.len();
        self.entries.push(raw[0] | place);
        if place != 0 {
            varint::put(&mut self.entries, at.into());
        }
        varint::put(&mut self.entries, raw.len() as u64);
        match record {
            Record::Message(message) => self.note_message(message, start),
            Record::Chunk { body, index, .. } => {
                varint::put(&mut self.entries, *body);
                varint::put(&mut self.entries, (*index).into());
            }
            Record::Defined { version, key, value } => {
                varint::put(&mut self.entries, *version);
                self.entries.push(value.is_none().into());
                varint::put(&mut self.entries, key.len() as u64);
                self.entries.extend_from_slice(key);
            }
            Record::Settled { .. } | Record::Gone { .. } | Record::Marked { .. } => {
                self.entries.extend_from_slice(raw);
            }
        }
    }

    fn note_message(&mut self, message: &Message<'_>, start: usize) {
        let mut targets = message.targets.iter();
        let only = if message.targets.len() == 1 { targets.next() } else { None };
        if only.is_some() && only == self.last.and_then(next_of) {
            self.entries[start] |= IS_NEXT;
        } else {
            varint::put(&mut self.entries, message.targets.len() as u64);
            for target in message.targets.iter() {
                varint::put(&mut self.entries, target.queue);
                varint::put(&mut self.entries, target.offset);
                self.entries.push(target.lane);
            }
        }
        self.last = only;
        if let Body::Chunked { body, .. } = message.body {
            self.entries[start] |= IS_CHUNKED;
            varint::put(&mut self.entries, body);
        }
    }

    /// Writes the whole footer, whole blocks, over `out`; it belongs at the very end of its segment.
    pub(super) fn finish(&self, trailer: &Trailer, seed: u32, out: &mut Vec<u8>) {
        let used = self.entries.len() + TRAILER_BYTES;
        out.clear();
        out.resize(padded(used) - used, 0);
        out.extend_from_slice(&self.entries);
        let start = out.len();
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&(self.entries.len() as u32).to_le_bytes());
        out.extend_from_slice(&trailer.life.to_le_bytes());
        out.extend_from_slice(&trailer.sequence.to_le_bytes());
        out.extend_from_slice(&trailer.number.to_le_bytes());
        out.extend_from_slice(&trailer.time_ms.to_le_bytes());
        let sum = crc32c::crc32c_append(crc32c::crc32c_append(seed, &out[start + 8..]), &self.entries);
        out[start + 4..start + 8].copy_from_slice(&sum.to_le_bytes());
    }
}

fn next_of(target: Target) -> Option<Target> {
    Some(Target { offset: target.offset.checked_add(1)?, ..target })
}

/// The bytes of entries before a trailer, if the last bytes of a segment look like one.
pub(super) fn claimed_length(end: &[u8]) -> Option<usize> {
    let trailer = end.get(end.len().checked_sub(TRAILER_BYTES)?..)?;
    let mut input = Input::new(trailer);
    let magic = input.take(4)?;
    input.u32()?;
    let length = input.u32()? as usize;
    (magic == MAGIC).then_some(length)
}

/// Checks a footer, entries and trailer; gives both.
pub(super) fn parse(bytes: &[u8], seed: u32) -> Option<(Trailer, &[u8])> {
    let length = claimed_length(bytes)?;
    let trailer = &bytes[bytes.len() - TRAILER_BYTES..];
    let end = bytes.len() - TRAILER_BYTES;
    let entries = &bytes[end.checked_sub(length)?..end];
    let mut input = Input::new(&trailer[4..]);
    let sum = input.u32()?;
    if crc32c::crc32c_append(crc32c::crc32c_append(seed, input.rest()), entries) != sum {
        return None;
    }
    input.u32()?;
    let trailer =
        Trailer { life: input.u32()?, sequence: input.u64()?, number: input.u64()?, time_ms: input.u64()? };
    Some((trailer, entries))
}

/// Calls `each` with the facts of a footer: records without bodies, and their places. `None` when the
/// entries make no sense, which a checked footer of this version never does.
pub(super) fn for_each(entries: &[u8], segment: u64, mut each: impl FnMut(&Record<'_>, Place)) -> Option<()> {
    let mut input = Input::new(entries);
    let (mut end, mut last) = (0_u32, None);
    while !input.is_empty() {
        let flags = input.byte()?;
        let at = if flags & HAS_PLACE != 0 { u32::try_from(input.varint()?).ok()? } else { end };
        let bytes = u32::try_from(input.varint()?).ok()?;
        end = at.checked_add(bytes)?;
        let place = Place { segment, at, bytes };
        match flags & KIND {
            1 => read_message(&mut input, flags, &mut last, |record| each(record, place))?,
            2 => {
                let (body, index) = (input.varint()?, u32::try_from(input.varint()?).ok()?);
                each(&Record::Chunk { body, index, bytes: &[] }, place);
            }
            5 => {
                let (version, deleted, key) = (input.varint()?, input.byte()?, input.counted()?);
                each(&Record::Defined { version, key, value: (deleted == 0).then_some(&[]) }, place);
            }
            _ => {
                let (record, _) = Record::parse(input.take(bytes as usize)?).ok()?;
                each(&record, place);
            }
        }
    }
    Some(())
}

fn read_message(
    input: &mut Input<'_>,
    flags: u8,
    last: &mut Option<Target>,
    mut each: impl FnMut(&Record<'_>),
) -> Option<()> {
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
        let bytes = &start[..start.len() - input.rest().len()];
        (count > 0).then_some(Targets::Encoded { count, bytes })?
    };
    *last = if targets.len() == 1 { targets.iter().next() } else { None };
    let body = if flags & IS_CHUNKED != 0 {
        Body::Chunked { body: input.varint()?, chunks: 0, bytes: 0 }
    } else {
        Body::Inline(&[])
    };
    each(&Record::Message(Message {
        targets,
        enqueued_ms: 0,
        expiration_ms: None,
        exchange: &[],
        key: &[],
        properties: &[],
        body,
    }));
    Some(())
}
