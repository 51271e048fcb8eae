//! File format of the flight recorder: the last events of the broker, of this run and of earlier ones.
//!
//! After a broker was killed, looped without end or was stopped by the watchdog, the log on the board seldom
//! shows the cause. So each event is also written to a small file in a RAM file system, which remains when
//! the process ends.
//!
//! ```text
//! file    │ header │ record │ record │ ...                       2,048 records of one size
//!
//! header  │ "LVFLIGHT" │ version 1 │ 0 ...
//!         0            8           9
//! record  │ crc32c │ number │ run │ ms since 1970 │ ms of this run │ kind │ bytes │ text        │
//!         0        4        8     12              20               28     29      30          256
//! ```
//!
//! Numbers are little endian. The checksum covers the rest of the record. The text is stored without
//! escaping, so the reader must escape it before it is displayed.
//!
//! ```text
//! records after the start of a run      │ events of this run, from here ─→ ...  │ events of earlier runs            │
//! when the part of this run is full     │ its own oldest events are overwritten │ the last KEPT_EVENTS of them stay │
//! ```
//!
//! # Invariants
//! - Records are numbered through all runs, from 1.
//! - A record with a wrong checksum is ignored: it was not written completely, or not by the broker.
//! - A run never overwrites the last `KEPT_EVENTS` events of earlier runs. When its part of the file is full,
//!   it overwrites its own oldest events.

use core::fmt::{self, Write as _};

use crate::mem::sort_by_key;

/// Number of events in the file.
pub const EVENTS_MAX: usize = 2048;
/// Number of events of earlier runs that a run never overwrites.
const KEPT_EVENTS: usize = 512;
/// Bytes of a record, and of the header.
pub const RECORD_BYTES: usize = 256;
/// Bytes of the file.
pub const FILE_BYTES: usize = (1 + EVENTS_MAX) * RECORD_BYTES;
/// The reason for which nothing is recorded, if no file is configured.
pub const NOT_CONFIGURED: &str = "flight_recorder is not set";

const MAGIC: &[u8; 8] = b"LVFLIGHT";
const VERSION: u8 = 1;
const TEXT_AT: usize = 30;
/// Flag in the byte of the kind: the text was truncated.
const TRUNCATED: u8 = 0x80;

/// The kind of an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EventKind {
    /// A run begins; the text identifies the program.
    Started,
    /// A run ends as intended, or with an error that was logged.
    Ended,
    /// A log line of level error.
    Error,
    /// A log line of level warning.
    Warn,
    /// A log line of level info.
    Info,
}

impl EventKind {
    const ALL: [Self; 5] = [Self::Started, Self::Ended, Self::Error, Self::Warn, Self::Info];

    /// Returns the kind for a log level; `None` if lines of this level are not recorded.
    pub const fn of(level: log::Level) -> Option<Self> {
        match level {
            log::Level::Error => Some(Self::Error),
            log::Level::Warn => Some(Self::Warn),
            log::Level::Info => Some(Self::Info),
            log::Level::Debug | log::Level::Trace => None,
        }
    }

    /// Returns the word that is displayed for the kind.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Started => "START",
            Self::Ended => "END",
            Self::Error => "ERROR",
            Self::Warn => "WARN",
            Self::Info => "INFO",
        }
    }
}

/// The number and time of an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stamp {
    /// The number of the event, counted through all runs.
    pub number: u32,
    /// The run, counted from 1.
    pub run: u32,
    /// Milliseconds since 1970 by the system clock.
    pub unix_ms: u64,
    /// Milliseconds since the start of the run.
    pub run_ms: u64,
}

/// An event that was read from the file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event {
    /// Number and time of the event.
    pub stamp: Stamp,
    /// The kind of the event.
    pub kind: EventKind,
    /// The text, not escaped. It may contain parts that clients chose.
    pub text: String,
    /// The text was truncated.
    pub is_cut: bool,
}

/// Error: the file is not that of a flight recorder.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Foreign;

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("it is not a flight recorder file")
    }
}

/// Returns the events in a file, in order. None are returned for an empty file or one of another format
/// version.
///
/// # Errors
/// The file is not that of a flight recorder.
pub fn read(file: &[u8]) -> Result<Vec<Event>, Foreign> {
    Ok(valid_records(file)?.into_iter().filter_map(|(_, record)| parse_event(record)).collect())
}

/// The beginning of a run: where its events are written, and what must be written before the first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Begun {
    /// The run, counted from 1.
    pub run: u32,
    /// The number of the run's first event.
    pub first: u32,
    /// There was a previous run, and it has no event of kind `Ended`.
    pub ended_unexpectedly: bool,
    /// The header, to be written at the start of the file.
    pub header: [u8; RECORD_BYTES],
    /// All events of earlier runs that the file has, to be written at its end. The last `KEPT_EVENTS` of them are never
    /// overwritten by this run.
    pub before: Vec<u8>,
}

/// Begins a run, given the present content of the file.
///
/// # Errors
/// The file is not that of a flight recorder.
pub fn begin(file: &[u8]) -> Result<Begun, Foreign> {
    let found = valid_records(file)?;
    let last = found.last().and_then(|(_, record)| parse_event(record));
    let mut header = [0; RECORD_BYTES];
    header[..MAGIC.len()].copy_from_slice(MAGIC);
    header[MAGIC.len()] = VERSION;
    Ok(Begun {
        run: last.as_ref().map_or(0, |event| event.stamp.run).saturating_add(1),
        first: last.as_ref().map_or(0, |event| event.stamp.number).saturating_add(1),
        ended_unexpectedly: last.is_some_and(|event| event.kind != EventKind::Ended),
        header,
        before: found.into_iter().flat_map(|(_, record)| record).copied().collect(),
    })
}

/// Returns the offset of an event in the file, in bytes; `first` is the number of its run's first event.
pub const fn place(first: u32, number: u32) -> u64 {
    let nth = number.wrapping_sub(first) as usize % (EVENTS_MAX - KEPT_EVENTS);
    ((1 + nth) * RECORD_BYTES) as u64
}

/// Returns the record of an event.
pub fn record(stamp: Stamp, kind: EventKind, text: fmt::Arguments<'_>) -> [u8; RECORD_BYTES] {
    let mut bytes = [0; RECORD_BYTES];
    bytes[4..8].copy_from_slice(&stamp.number.to_le_bytes());
    bytes[8..12].copy_from_slice(&stamp.run.to_le_bytes());
    bytes[12..20].copy_from_slice(&stamp.unix_ms.to_le_bytes());
    bytes[20..28].copy_from_slice(&stamp.run_ms.to_le_bytes());
    let mut writer = TextWriter { buffer: &mut bytes[TEXT_AT..], len: 0 };
    // An error means that the buffer is full. The rest of the text is then not formatted.
    let is_cut = writer.write_fmt(text).is_err();
    let len = writer.len;
    bytes[28] = kind as u8 | if is_cut { TRUNCATED } else { 0 };
    bytes[29] = len as u8;
    let checksum = crc32c::crc32c(&bytes[4..]);
    bytes[..4].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

/// Returns the valid records with their numbers, in order.
fn valid_records(file: &[u8]) -> Result<Vec<(u32, &[u8])>, Foreign> {
    if file.is_empty() {
        return Ok(Vec::new());
    }
    if !file.starts_with(MAGIC) {
        return Err(Foreign);
    }
    if file.get(MAGIC.len()) != Some(&VERSION) {
        return Ok(Vec::new());
    }
    let records = file.chunks_exact(RECORD_BYTES).skip(1).take(EVENTS_MAX);
    let mut found: Vec<_> =
        records.filter_map(|record| parse_event(record).map(|event| (event.stamp.number, record))).collect();
    sort_by_key(&mut found, |(number, _)| *number);
    // Records that a start moved to the end of the file exist twice until the old ones are overwritten.
    found.dedup_by_key(|(number, _)| *number);
    Ok(found)
}

/// Returns the numbers of the newest events of a run that its part of the file still has, at most `count`, and only
/// above `after`. `first` is the number of the run's first event, `next` that of its next one.
pub fn newest(first: u32, next: u32, after: u32, count: usize) -> core::ops::Range<u32> {
    let count = count.min(EVENTS_MAX - KEPT_EVENTS) as u32;
    // A number above the last is that of another run of the broker, so all events are new.
    let after = if after < next { after } else { 0 };
    first.max(next.saturating_sub(count)).max(after.saturating_add(1)).min(next)..next
}

/// Returns the event of a record of [`RECORD_BYTES`], if the record is valid.
pub fn parse_event(bytes: &[u8]) -> Option<Event> {
    if bytes.len() != RECORD_BYTES {
        return None;
    }
    let word = |at: usize| bytes[at..at + 4].try_into().map_or(0, u32::from_le_bytes);
    let long = |at: usize| bytes[at..at + 8].try_into().map_or(0, u64::from_le_bytes);
    let stamp = Stamp { number: word(4), run: word(8), unix_ms: long(12), run_ms: long(20) };
    let kind = EventKind::ALL.into_iter().find(|kind| *kind as u8 == bytes[28] & !TRUNCATED)?;
    let text = bytes[TEXT_AT..].get(..bytes[29].into())?;
    (word(0) == crc32c::crc32c(&bytes[4..]) && stamp.number > 0).then(|| Event {
        stamp,
        kind,
        text: String::from_utf8_lossy(text).into_owned(),
        is_cut: bytes[28] & TRUNCATED != 0,
    })
}

/// A writer of complete characters into a buffer. It returns an error when the buffer is full.
struct TextWriter<'r> {
    buffer: &'r mut [u8],
    len: usize,
}

impl fmt::Write for TextWriter<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut fitting = text.len().min(self.buffer.len() - self.len);
        while !text.is_char_boundary(fitting) {
            fitting -= 1;
        }
        self.buffer[self.len..self.len + fitting].copy_from_slice(&text.as_bytes()[..fitting]);
        self.len += fitting;
        if fitting < text.len() { Err(fmt::Error) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A flight recorder file in memory, and the state of the run that writes to it.
    #[derive(Default)]
    struct File {
        bytes: Vec<u8>,
        run: u32,
        first: u32,
        next: u32,
    }

    impl File {
        fn begin(&mut self) -> bool {
            let begun = begin(&self.bytes).unwrap();
            self.bytes.resize(FILE_BYTES, 0);
            self.bytes[..RECORD_BYTES].copy_from_slice(&begun.header);
            let at = FILE_BYTES - begun.before.len();
            self.bytes[at..].copy_from_slice(&begun.before);
            (self.run, self.first, self.next) = (begun.run, begun.first, begun.first);
            begun.ended_unexpectedly
        }

        fn add(&mut self, kind: EventKind, text: &str) {
            let stamp = Stamp { number: self.next, run: self.run, unix_ms: 7, run_ms: 9 };
            let at = place(self.first, self.next) as usize;
            self.bytes[at..at + RECORD_BYTES].copy_from_slice(&record(stamp, kind, format_args!("{text}")));
            self.next += 1;
        }

        fn numbers(&self, run: u32) -> Vec<u32> {
            let events = read(&self.bytes).unwrap().into_iter();
            events.filter(|event| event.stamp.run == run).map(|event| event.stamp.number).collect()
        }
    }

    #[test]
    fn an_event_is_read_as_written_and_truncated_between_characters() {
        let stamp = Stamp { number: 3, run: 2, unix_ms: u64::MAX, run_ms: 1 };
        let hostile = "a\n\u{1b}[2J\0";
        let found = parse_event(&record(stamp, EventKind::Warn, format_args!("{hostile}"))).unwrap();
        assert_eq!(found, Event { stamp, kind: EventKind::Warn, text: hostile.to_string(), is_cut: false });
        for (text, bytes) in [("x", 226), ("ä", 226), ("日", 225)] {
            let found =
                parse_event(&record(stamp, EventKind::Info, format_args!("{}{}", text.repeat(300), 7)))
                    .unwrap();
            assert_eq!((found.text.len(), found.is_cut), (bytes, true), "{text}");
        }
        let fits = "x".repeat(RECORD_BYTES - TEXT_AT);
        assert!(!parse_event(&record(stamp, EventKind::Info, format_args!("{fits}"))).unwrap().is_cut);
    }

    #[test]
    fn the_newest_events_are_those_that_the_file_has() {
        assert_eq!(newest(5, 5, 0, 100), 5..5, "there is none");
        assert_eq!(newest(5, 9, 0, 100), 5..9, "earlier runs are not shown");
        assert_eq!(newest(5, 9, 0, 2), 7..9);
        assert_eq!(newest(5, 9, 7, 100), 8..9, "only those above a number");
        assert_eq!(newest(5, 9, 8, 100), 9..9);
        assert_eq!(newest(5, 9, 700, 100), 5..9, "the number is of another run");
        assert_eq!(newest(1, 9_000, 0, usize::MAX), 9_000 - 1536..9_000, "older ones are overwritten");
    }

    #[test]
    fn a_damaged_record_is_skipped_and_the_others_are_read() {
        let mut file = File::default();
        file.begin();
        for text in ["one", "two", "three"] {
            file.add(EventKind::Info, text);
        }
        let whole = file.bytes.clone();
        for bit in 0..RECORD_BYTES * 8 {
            file.bytes[2 * RECORD_BYTES + bit / 8] ^= 1 << (bit % 8);
            assert_eq!(file.numbers(1), [1, 3], "bit {bit}");
            file.bytes.clone_from(&whole);
        }
        assert_eq!(read(&whole[..2 * RECORD_BYTES + 100]).unwrap().len(), 1, "a truncated file");
        file.bytes[MAGIC.len()] = VERSION + 1;
        assert_eq!(read(&file.bytes).unwrap(), [], "another version");
        assert_eq!(read(b"#!/bin/sh\n"), Err(Foreign));
        assert_eq!(begin(b"LVFLIGH"), Err(Foreign));
    }

    #[test]
    fn a_run_overwrites_its_own_events_and_keeps_the_last_events_before_it() {
        let mut file = File::default();
        assert!(!file.begin(), "there was no earlier run");
        for _ in 0..5_000 {
            file.add(EventKind::Info, "first");
        }
        let ring = (EVENTS_MAX - KEPT_EVENTS) as u32;
        assert_eq!(file.numbers(1), (5_001 - ring..=5_000).collect::<Vec<_>>());
        assert!(file.begin(), "the first run has no event `Ended`");
        assert_eq!(file.numbers(1), (5_001 - ring..=5_000).collect::<Vec<_>>(), "a start loses no event");
        for _ in 0..9_999 {
            file.add(EventKind::Info, "second");
        }
        file.add(EventKind::Ended, "");
        assert_eq!(file.numbers(1), (5_001 - KEPT_EVENTS as u32..=5_000).collect::<Vec<_>>());
        assert_eq!(file.numbers(2), (15_001 - ring..=15_000).collect::<Vec<_>>());
        assert!(!file.begin(), "it ended in order");
        assert_eq!(file.run, 3);
    }

    #[test]
    fn many_short_runs_keep_all_events_while_they_fit() {
        let mut file = File::default();
        for _ in 0..100 {
            file.begin();
            for _ in 0..15 {
                file.add(EventKind::Error, "cannot listen");
            }
        }
        assert_eq!(file.numbers(1).len(), 15);
        assert_eq!(read(&file.bytes).unwrap().len(), 1_500);
    }
}
