//! Records: the entries of the log.
//!
//! ```text
//! record       | type u8 | length varint | CRC32C u32 | payload: length bytes |
//!                the CRC covers type, length and payload; type 0 is padding and ends a commit
//!
//! 1 message    | flags | targets n | n × (queue, offset, a byte that is 0 and ignored) | enqueued ms | [expiration ms]
//!              | exchange | key | properties | body: the rest, or (body id, chunks, bytes) when chunked
//! 2 chunk      | body id | index | bytes: the rest
//! 3 settled    | queue | n | n × (gap since the end of the previous range, length)
//! 4 gone       | queue                            the queue is deleted, all its offsets are settled
//! 5 defined    | version | flags | key | value: the rest        flag 1: deleted, there is no value
//! 6 watermark  | queue | offset                   everything below may have been delivered
//! 7 left       | segment                          this segment is no longer part of the log
//! 8 reset      | queue | offset | watermark       clean stop: from this offset to that watermark nothing was delivered
//! 129 named    | a queue's name, in footers only (`queue_names`)
//! 130          | commit: stands for lost ones; the repair that wrote it found no commit behind that number
//! 128 and up   | records of a later version that this one may ignore
//! ```
//!
//! Numbers are varints. Exchange, key, properties and a definition's key are preceded by their length.
//!
//! # Invariants
//! - [`Record::parse`] returns exactly what an encoder wrote. Malformed bytes give an error, never a panic.
//! - The records may be applied in any order, and any record twice, with the same result. Messages and settlements
//!   form sets. Of two definitions with the same key, the one with the higher version counts. Of two watermarks, the
//!   one with the higher offset counts.
//! - A watermark reset counts only if the log contains no watermark above the one in the reset.

use super::commit_builder::ResizeZeroed;
use super::segment::OPTIONAL;
use super::varint::{self, Input};

/// Maximum bytes of an inline body and of a chunk. Larger bodies are stored in chunks.
pub const CHUNK_BODY_BYTES: usize = 64 << 10;
/// Maximum bytes of a record in addition to its body, names and properties.
pub const RECORD_OVERHEAD_BYTES_MAX: usize = 128;
/// Maximum bytes of a target in a record.
pub(super) const TARGET_BYTES_MAX: usize = 21;
/// Maximum bytes of a settled range in a record.
pub(super) const RANGE_BYTES_MAX: usize = 20;

const MESSAGE: u8 = 1;
const CHUNK: u8 = 2;
const SETTLED: u8 = 3;
const GONE: u8 = 4;
const DEFINED: u8 = 5;
const DELIVERED_WATERMARK: u8 = 6;
const LEFT: u8 = 7;
const WATERMARK_RESET: u8 = 8;

const HAS_EXPIRATION: u8 = 1;
const IS_CHUNKED: u8 = 2;

/// The reason why bytes are not a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RecordError {
    /// Padding, or the end of the bytes: there are no more records.
    End,
    /// The record is incomplete, or its fields contradict each other.
    Malformed,
    /// The checksum does not match.
    Damaged,
    /// A type that this version does not know and may not ignore.
    Unknown(u8),
}

/// A queue that a message was routed to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Target {
    /// The queue's incarnation, which no other queue ever gets.
    pub queue: u64,
    /// The message's offset in the queue. Each message gets the next higher offset.
    pub offset: u64,
}

/// Targets to encode, or encoded in a record.
#[derive(Clone, Copy, Debug)]
pub enum Targets<'a> {
    /// Targets to be encoded.
    List(&'a [Target]),
    /// Encoded targets, validated by the parser.
    Encoded {
        /// Number of targets.
        count: usize,
        /// The encoded targets.
        bytes: &'a [u8],
    },
}

impl<'a> Targets<'a> {
    /// Returns the number of targets.
    pub const fn len(&self) -> usize {
        match self {
            Self::List(list) => list.len(),
            Self::Encoded { count, .. } => *count,
        }
    }

    /// Returns whether there are no targets.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Iterates over the targets.
    pub fn iter(&self) -> impl Iterator<Item = Target> + use<'a> {
        let (list, bytes): (&'a [Target], &'a [u8]) = match self {
            Self::List(list) => (list, &[]),
            Self::Encoded { bytes, .. } => (&[], bytes),
        };
        let mut input = Input::new(bytes);
        list.iter().copied().chain(core::iter::from_fn(move || read_target(&mut input)))
    }
}

impl PartialEq for Targets<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

#[inline]
fn read_target(input: &mut Input<'_>) -> Option<Target> {
    let target = Target { queue: input.varint()?, offset: input.varint()? };
    input.byte()?;
    (target.offset < u64::MAX).then_some(target)
}

/// A range of offsets; the end is exclusive.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Range {
    /// The first offset.
    pub start: u64,
    /// The offset after the last.
    pub end: u64,
}

impl Range {
    /// Returns whether the range contains no offset.
    pub const fn is_empty(&self) -> bool {
        self.end <= self.start
    }
}

/// Ranges to encode (ascending, disjoint), or encoded in a record.
#[derive(Clone, Copy, Debug)]
pub enum Ranges<'a> {
    /// Ranges to be encoded.
    List(&'a [Range]),
    /// Encoded ranges, validated by the parser.
    Encoded(&'a [u8]),
}

impl<'a> Ranges<'a> {
    /// Iterates over the ranges in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = Range> + use<'a> {
        let (list, bytes): (&'a [Range], &'a [u8]) = match self {
            Self::List(list) => (list, &[]),
            Self::Encoded(bytes) => (&[], bytes),
        };
        let mut input = Input::new(bytes);
        let mut end = 0;
        list.iter().copied().chain(core::iter::from_fn(move || {
            let range = read_range(&mut input, end)?;
            end = range.end;
            Some(range)
        }))
    }
}

impl PartialEq for Ranges<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

/// Returns how many of `ranges`, from the first on, fit into a settlement record of `bytes`.
pub(super) fn ranges_fitting(ranges: &[Range], bytes: usize) -> usize {
    let (mut end, mut left) = (0, bytes.saturating_sub(RECORD_OVERHEAD_BYTES_MAX));
    let fits = |range: &&Range| {
        let bytes = varint::bytes(range.start - end) + varint::bytes(range.end - range.start);
        end = range.end;
        let fits = bytes <= left;
        left = left.saturating_sub(bytes);
        fits
    };
    ranges.iter().take_while(fits).count()
}

fn read_range(input: &mut Input<'_>, previous_end: u64) -> Option<Range> {
    let start = previous_end.checked_add(input.varint()?)?;
    let end = start.checked_add(input.varint()?)?;
    (end > start).then_some(Range { start, end })
}

/// The body of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Body<'a> {
    /// The whole body.
    Inline(&'a [u8]),
    /// In chunk records that precede the message.
    Chunked {
        /// The common id of the chunks.
        body: u64,
        /// Number of chunks.
        chunks: u32,
        /// Bytes of all chunks.
        bytes: u64,
    },
}

/// A message with all its durable targets.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Message<'a> {
    /// The message's queues and offsets; never empty.
    pub targets: Targets<'a>,
    /// Broker time of its arrival, in milliseconds.
    pub enqueued_ms: u64,
    /// The expiration of this message in milliseconds, if it has one.
    pub expiration_ms: Option<u64>,
    /// The exchange: a name or an id, chosen by the caller.
    pub exchange: &'a [u8],
    /// The routing key.
    pub key: &'a [u8],
    /// The properties as received.
    pub properties: &'a [u8],
    /// The body.
    pub body: Body<'a>,
}

/// One record, borrowed from the log's bytes or from data to be logged.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Record<'a> {
    /// A message.
    Message(Message<'a>),
    /// A part of a large body. It is live only if a message references the body's id.
    Chunk {
        /// The body's id.
        body: u64,
        /// Index of the chunk, from 0.
        index: u32,
        /// Its bytes.
        bytes: &'a [u8],
    },
    /// These offsets of a queue are settled: every copy of their messages is dead.
    Settled {
        /// The queue's incarnation.
        queue: u64,
        /// The offsets.
        ranges: Ranges<'a>,
    },
    /// The queue is deleted.
    Gone {
        /// The queue's incarnation.
        queue: u64,
    },
    /// A definition, opaque to the store.
    Defined {
        /// Version, which rises with every change.
        version: u64,
        /// Key of the object.
        key: &'a [u8],
        /// The new value; `None` if the object is deleted.
        value: Option<&'a [u8]>,
    },
    /// Messages of the queue below `offset` may have been delivered.
    DeliveredWatermark {
        /// The queue's incarnation.
        queue: u64,
        /// The first offset that was certainly not delivered.
        offset: u64,
    },
    /// Written at a clean stop: messages from `offset` on were never delivered, although there is a higher watermark.
    WatermarkReset {
        /// The queue's incarnation.
        queue: u64,
        /// The first offset that was certainly not delivered.
        offset: u64,
        /// The highest watermark at the clean stop. The record is void if the log contains a higher watermark.
        watermark: u64,
    },
    /// A segment is removed from the log: none of its records is live, and its settlements were written again.
    SegmentRemoved {
        /// The segment's sequence.
        segment: u64,
    },
    /// A record of a later version that this one may ignore.
    Optional {
        /// Its kind, with the bit `OPTIONAL` set.
        kind: u8,
        /// The payload, which this version does not understand.
        payload: &'a [u8],
    },
}

impl<'a> Record<'a> {
    /// Parses and verifies the record at the start of `bytes`; returns the record and its length.
    ///
    /// # Errors
    /// The bytes are padding, or no complete and undamaged record.
    pub fn parse(bytes: &'a [u8]) -> Result<(Self, usize), RecordError> {
        let (kind, sum, payload, length) = split(bytes)?;
        let head = length - payload.len() - 4;
        if crc32c::crc32c_append(crc32c::crc32c(&bytes[..head]), payload) != sum {
            return Err(RecordError::Damaged);
        }
        Ok((Self::parse_payload(kind, payload)?, length))
    }

    /// Parses a record without verifying its checksum, for bytes that were verified before or written by this
    /// process.
    #[inline]
    pub(super) fn parse_known(bytes: &'a [u8]) -> Result<(Self, usize), RecordError> {
        let (kind, _, payload, length) = split(bytes)?;
        Ok((Self::parse_payload(kind, payload)?, length))
    }

    fn parse_payload(kind: u8, payload: &'a [u8]) -> Result<Self, RecordError> {
        let mut input = Input::new(payload);
        let record = match kind {
            MESSAGE => parse_message(&mut input),
            CHUNK => parse_chunk(&mut input),
            SETTLED => parse_settled(&mut input),
            GONE => input.varint().map(|queue| Self::Gone { queue }),
            DEFINED => parse_defined(&mut input),
            DELIVERED_WATERMARK => parse_delivered_watermark(&mut input),
            WATERMARK_RESET => parse_watermark_reset(&mut input),
            LEFT => input.varint().map(|segment| Self::SegmentRemoved { segment }),
            OPTIONAL.. => return Ok(Self::Optional { kind, payload }),
            _ => return Err(RecordError::Unknown(kind)),
        };
        record.filter(|_| input.is_empty()).ok_or(RecordError::Malformed)
    }

    /// Appends the record to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Message(message) => {
                let body = match message.body {
                    Body::Inline(bytes) => bytes,
                    Body::Chunked { .. } => &[],
                };
                encode_message(message, body.len(), out, |room| room.copy_from_slice(body));
            }
            Self::Chunk { body, index, bytes } => encode_with(out, CHUNK, |out| {
                varint::put(out, *body);
                varint::put(out, (*index).into());
                out.extend_from_slice(bytes);
            }),
            Self::Settled { queue, ranges } => encode_with(out, SETTLED, |out| {
                varint::put(out, *queue);
                let mut end = 0;
                varint::put(out, ranges.iter().count() as u64);
                for range in ranges.iter() {
                    varint::put(out, range.start - end);
                    varint::put(out, range.end - range.start);
                    end = range.end;
                }
            }),
            Self::Gone { queue } => encode_with(out, GONE, |out| varint::put(out, *queue)),
            Self::Defined { version, key, value } => encode_with(out, DEFINED, |out| {
                varint::put(out, *version);
                out.push(u8::from(value.is_none()));
                put_counted(out, key);
                out.extend_from_slice(value.unwrap_or_default());
            }),
            Self::DeliveredWatermark { queue, offset } => encode_with(out, DELIVERED_WATERMARK, |out| {
                varint::put(out, *queue);
                varint::put(out, *offset);
            }),
            Self::WatermarkReset { queue, offset, watermark } => encode_with(out, WATERMARK_RESET, |out| {
                [*queue, *offset, *watermark].into_iter().for_each(|number| varint::put(out, number));
            }),
            Self::SegmentRemoved { segment } => encode_with(out, LEFT, |out| varint::put(out, *segment)),
            Self::Optional { kind, payload } => {
                encode_with(out, *kind, |out| out.extend_from_slice(payload));
            }
        }
    }

    /// Returns an upper bound of the bytes that [`Record::encode`] writes.
    pub fn bytes_max(&self) -> usize {
        let own = match self {
            Self::Message(message) => {
                let body = if let Body::Inline(bytes) = message.body { bytes.len() } else { 0 };
                let names = message.exchange.len() + message.key.len() + message.properties.len();
                TARGET_BYTES_MAX * message.targets.len() + names + body
            }
            Self::Chunk { bytes, .. } | Self::Optional { payload: bytes, .. } => bytes.len(),
            Self::Settled { ranges, .. } => RANGE_BYTES_MAX * ranges.iter().count(),
            Self::Defined { key, value, .. } => key.len() + value.map_or(0, <[u8]>::len),
            Self::Gone { .. }
            | Self::DeliveredWatermark { .. }
            | Self::WatermarkReset { .. }
            | Self::SegmentRemoved { .. } => 0,
        };
        own + RECORD_OVERHEAD_BYTES_MAX
    }
}

/// Appends a message with an inline body of `body_len` bytes. `fill` writes the body into the zeroed space for it.
pub(super) fn encode_message(
    message: &Message<'_>,
    body_len: usize,
    out: &mut Vec<u8>,
    fill: impl FnOnce(&mut [u8]),
) {
    encode_with(out, MESSAGE, |out| {
        let chunked = matches!(message.body, Body::Chunked { .. });
        let flags =
            u8::from(message.expiration_ms.is_some()) * HAS_EXPIRATION + u8::from(chunked) * IS_CHUNKED;
        out.push(flags);
        varint::put(out, message.targets.len() as u64);
        for target in message.targets.iter() {
            varint::put(out, target.queue);
            varint::put(out, target.offset);
            out.push(0);
        }
        varint::put(out, message.enqueued_ms);
        if let Some(expiration) = message.expiration_ms {
            varint::put(out, expiration);
        }
        put_counted(out, message.exchange);
        put_counted(out, message.key);
        put_counted(out, message.properties);
        if let Body::Chunked { body, chunks, bytes } = message.body {
            varint::put(out, body);
            varint::put(out, chunks.into());
            varint::put(out, bytes);
        } else {
            let start = out.len();
            out.resize_zeroed(start + body_len);
            fill(&mut out[start..]);
        }
    });
}

/// Appends a chunk whose content `fill` appends; returns the number of bytes of the content. If `fill` appends
/// nothing, no chunk is appended.
pub(super) fn encode_part(
    body: u64,
    index: u32,
    out: &mut Vec<u8>,
    fill: impl FnOnce(&mut Vec<u8>),
) -> usize {
    let (start, mut bytes) = (out.len(), 0);
    encode_with(out, CHUNK, |out| {
        varint::put(out, body);
        varint::put(out, index.into());
        let from = out.len();
        fill(out);
        bytes = out.len() - from;
    });
    if bytes == 0 {
        out.truncate(start);
    }
    bytes
}

fn put_counted(out: &mut Vec<u8>, bytes: &[u8]) {
    varint::put(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Appends a record whose payload is written by `payload`. Two bytes are left for the length field. If it needs
/// another number of bytes, the payload is moved.
fn encode_with(out: &mut Vec<u8>, kind: u8, payload: impl FnOnce(&mut Vec<u8>)) {
    const GUESS: usize = 2;
    let start = out.len();
    out.extend_from_slice(&[kind, 0, 0, 0, 0, 0, 0]);
    let payload_start = out.len();
    payload(out);
    let length = out.len() - payload_start;
    let mut head = heapless::Vec::<u8, 16>::new();
    let _ = head.push(kind);
    let mut rest = length as u64;
    while rest >= 0x80 {
        let _ = head.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    let _ = head.push(rest as u8);
    let grown = head.len() as isize - 1 - GUESS as isize;
    if grown != 0 {
        let moved_to = payload_start.wrapping_add_signed(grown);
        if grown > 0 {
            out.resize_zeroed(out.len() + grown as usize);
        }
        out.copy_within(payload_start..payload_start + length, moved_to);
        out.truncate(moved_to + length);
    }
    let payload_start = start + head.len() + 4;
    let sum = crc32c::crc32c_append(crc32c::crc32c(&head), &out[payload_start..]);
    out[start..start + head.len()].copy_from_slice(&head);
    out[payload_start - 4..payload_start].copy_from_slice(&sum.to_le_bytes());
}

/// Returns type, checksum, payload and total length of the record at the start of `bytes`.
#[inline]
fn split(bytes: &[u8]) -> Result<(u8, u32, &[u8], usize), RecordError> {
    let mut input = Input::new(bytes);
    let kind = input.byte().filter(|kind| *kind != 0).ok_or(RecordError::End)?;
    let length = input.varint().and_then(|length| usize::try_from(length).ok());
    let length = length.ok_or(RecordError::Malformed)?;
    let sum = input.u32().ok_or(RecordError::Malformed)?;
    let payload = input.take(length).ok_or(RecordError::Malformed)?;
    Ok((kind, sum, payload, bytes.len() - input.rest().len()))
}

fn parse_message<'a>(input: &mut Input<'a>) -> Option<Record<'a>> {
    let flags = input.byte()?;
    let count = usize::try_from(input.varint()?).ok()?;
    let targets = input.rest();
    for _ in 0..count {
        read_target(input)?;
    }
    let bytes = &targets[..targets.len() - input.rest().len()];
    let enqueued_ms = input.varint()?;
    let expiration_ms = if flags & HAS_EXPIRATION != 0 { Some(input.varint()?) } else { None };
    let (exchange, key, properties) = (input.counted()?, input.counted()?, input.counted()?);
    let body = if flags & IS_CHUNKED != 0 {
        let (body, chunks, bytes) = (input.varint()?, input.varint()?, input.varint()?);
        Body::Chunked { body, chunks: u32::try_from(chunks).ok()?, bytes }
    } else {
        Body::Inline(input.take(input.rest().len())?)
    };
    let targets = Targets::Encoded { count, bytes };
    let message = Message { targets, enqueued_ms, expiration_ms, exchange, key, properties, body };
    (count > 0 && flags & !(HAS_EXPIRATION | IS_CHUNKED) == 0).then_some(Record::Message(message))
}

fn parse_chunk<'a>(input: &mut Input<'a>) -> Option<Record<'a>> {
    let body = input.varint()?;
    let index = u32::try_from(input.varint()?).ok()?;
    Some(Record::Chunk { body, index, bytes: input.take(input.rest().len())? })
}

fn parse_settled<'a>(input: &mut Input<'a>) -> Option<Record<'a>> {
    let queue = input.varint()?;
    let count = input.varint()?;
    let bytes = input.rest();
    let mut end = 0;
    for _ in 0..count {
        end = read_range(input, end)?.end;
    }
    Some(Record::Settled { queue, ranges: Ranges::Encoded(bytes) })
}

fn parse_defined<'a>(input: &mut Input<'a>) -> Option<Record<'a>> {
    let (version, flags, key) = (input.varint()?, input.byte()?, input.counted()?);
    let value = input.take(input.rest().len())?;
    match flags {
        0 => Some(Record::Defined { version, key, value: Some(value) }),
        1 if value.is_empty() => Some(Record::Defined { version, key, value: None }),
        _ => None,
    }
}

fn parse_delivered_watermark<'a>(input: &mut Input<'a>) -> Option<Record<'a>> {
    Some(Record::DeliveredWatermark { queue: input.varint()?, offset: input.varint()? })
}

fn parse_watermark_reset<'a>(input: &mut Input<'a>) -> Option<Record<'a>> {
    let (queue, offset, watermark) = (input.varint()?, input.varint()?, input.varint()?);
    Some(Record::WatermarkReset { queue, offset, watermark })
}

/// Calls `each` with the records of a verified commit and their offsets and lengths. The first record is at
/// offset `at`. Returns the number of records.
pub(super) fn for_each_record(
    mut records: &[u8],
    mut at: u32,
    mut each: impl FnMut(&Record<'_>, (u32, u32)),
) -> u32 {
    let mut count = 0;
    while let Ok((record, bytes)) = Record::parse_known(records) {
        each(&record, (at, bytes as u32));
        records = &records[bytes..];
        at += bytes as u32;
        count += 1;
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn round_trip(record: &Record<'_>) {
        let mut bytes = vec![7];
        record.encode(&mut bytes);
        bytes.push(0xee);
        let (parsed, length) = Record::parse(&bytes[1..]).unwrap();
        assert_eq!((parsed, length), (*record, bytes.len() - 2));
        assert!(length <= record.bytes_max());
    }

    fn ranges() -> impl Strategy<Value = Vec<Range>> {
        prop::collection::vec((1_u64..1 << 40, 1_u64..1 << 20), 0..40).prop_map(|parts| {
            let mut end = 0;
            let next = |(gap, length)| {
                let range = Range { start: end + gap, end: end + gap + length };
                end = range.end;
                range
            };
            parts.into_iter().map(next).collect()
        })
    }

    #[test]
    fn the_byte_after_a_target_is_ignored() {
        let targets = Targets::Encoded { count: 2, bytes: &[7, 3, 0, 8, 4, 9] };
        let read: Vec<(u64, u64)> = targets.iter().map(|target| (target.queue, target.offset)).collect();
        assert_eq!(read, [(7, 3), (8, 4)]);
    }

    proptest! {
        #[test]
        fn messages_read_back(
            targets in prop::collection::vec((any::<u64>(), 0..u64::MAX), 1..6),
            times in (any::<u64>(), any::<Option<u64>>()),
            names in prop::array::uniform3(prop::collection::vec(any::<u8>(), 0..300)),
            body in prop::collection::vec(any::<u8>(), 0..40_000),
            chunked in any::<Option<(u64, u32, u64)>>(),
        ) {
            let targets: Vec<Target> =
                targets.into_iter().map(|(queue, offset)| Target { queue, offset }).collect();
            let body = match chunked {
                Some((body, chunks, bytes)) => Body::Chunked { body, chunks, bytes },
                None => Body::Inline(&body),
            };
            round_trip(&Record::Message(Message {
                targets: Targets::List(&targets),
                enqueued_ms: times.0,
                expiration_ms: times.1,
                exchange: &names[0],
                key: &names[1],
                properties: &names[2],
                body,
            }));
        }

        #[test]
        fn the_others_read_back(
            numbers in any::<(u64, u32, u64)>(),
            bytes in prop::collection::vec(any::<u8>(), 0..70_000),
            ranges in ranges(),
        ) {
            let (queue, index, offset) = numbers;
            round_trip(&Record::Chunk { body: queue, index, bytes: &bytes });
            round_trip(&Record::Settled { queue, ranges: Ranges::List(&ranges) });
            let room = 128 + bytes.len() / 100;
            let fitting = &ranges[..ranges_fitting(&ranges, room)];
            let mut encoded = Vec::new();
            Record::Settled { queue, ranges: Ranges::List(fitting) }.encode(&mut encoded);
            prop_assert!(encoded.len() <= room);
            round_trip(&Record::Gone { queue });
            round_trip(&Record::Defined { version: offset, key: &bytes, value: Some(&bytes) });
            round_trip(&Record::Defined { version: offset, key: &bytes, value: None });
            round_trip(&Record::DeliveredWatermark { queue, offset });
            round_trip(&Record::WatermarkReset { queue, offset, watermark: index.into() });
            round_trip(&Record::SegmentRemoved { segment: queue });
            round_trip(&Record::Optional { kind: index as u8 | OPTIONAL, payload: &bytes });
        }

        #[test]
        fn hostile_bytes_never_panic(
            kind in any::<u8>(),
            payload in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let _ = Record::parse(&payload);
            let mut bytes = Vec::new();
            encode_with(&mut bytes, kind, |out| out.extend_from_slice(&payload));
            if let Ok((Record::Message(message), _)) = Record::parse(&bytes) {
                prop_assert_eq!(message.targets.iter().count(), message.targets.len());
            }
        }

        #[test]
        fn a_flipped_bit_is_noticed(at in 0_usize..1000, bit in 0_u8..8) {
            let mut bytes = Vec::new();
            Record::Chunk { body: 1, index: 2, bytes: &[9; 300] }.encode(&mut bytes);
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            prop_assert!(Record::parse(&bytes).is_err());
        }
    }
}
