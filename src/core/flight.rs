//! The flight recorder's bytes: the last events of a broker and of its lives before, for whoever has to find
//! out what happened.
//!
//! Why it exists: what led to a kill, to a loop that stands still or to the watchdog is seldom in the log
//! that is left on a board. So each event is written into a small file in memory, which the kernel keeps
//! whatever becomes of the process. This is what stands in that file.
//!
//! ```text
//! file    │ header │ record │ record │ ...                       so many records of one size
//!
//! header  │ "LVFLIGHT" │ version 1 │ 0 ...
//!         0            8           9
//! record  │ crc32c │ number │ life │ ms since 1970 │ ms of this life │ kind │ bytes │ text        │
//!         0        4        8      12              20                28     29      30          256
//! ```
//!
//! All numbers are little-endian, and the checksum is over all that follows it. The text is what was logged,
//! as it was logged: it is made fit to be shown when somebody reads it.
//!
//! ```text
//! at a start      │ 1st of the new life ─→            ...  │ the last of the lives before │
//! once around     │ over its own oldest, from the first place again │ those stay          │
//! ```
//!
//! Always true: records are numbered through all lives, from 1 on; a record that was not written whole, or
//! not by us, is no event; a life overwrites its own events before it touches the last [`KEPT`] before it.

use core::fmt::{self, Write as _};

use crate::mem::sort_by_key;

/// How many events the file holds.
pub const EVENTS_MAX: usize = 2048;
/// How many of the lives before a life leaves alone, however much happens in it.
const KEPT: usize = 512;
/// Bytes of a record, and of the header.
pub const RECORD_BYTES: usize = 256;
/// Bytes of the file.
pub const FILE_BYTES: usize = (1 + EVENTS_MAX) * RECORD_BYTES;

const MAGIC: &[u8; 8] = b"LVFLIGHT";
const VERSION: u8 = 1;
const TEXT_AT: usize = 30;
/// Beside the kind of an event: its text went on.
const CUT: u8 = 0x80;

/// What an event is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A life begins; the text is who.
    Started,
    /// It ends as it should, or has said why not.
    Ended,
    /// An error of the log.
    Error,
    /// A warning.
    Warn,
    /// News.
    Info,
}

impl Kind {
    const ALL: [Self; 5] = [Self::Started, Self::Ended, Self::Error, Self::Warn, Self::Info];

    /// What a line of the log is here; `None`: none of the events.
    pub const fn of(level: log::Level) -> Option<Self> {
        match level {
            log::Level::Error => Some(Self::Error),
            log::Level::Warn => Some(Self::Warn),
            log::Level::Info => Some(Self::Info),
            log::Level::Debug | log::Level::Trace => None,
        }
    }

    /// A word for it.
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

/// Where and when an event happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stamp {
    /// Its number, through all lives.
    pub number: u32,
    /// The life, from 1 on.
    pub life: u32,
    /// Milliseconds since 1970, as far as the machine knew.
    pub unix_ms: u64,
    /// Milliseconds of this life.
    pub life_ms: u64,
}

/// An event as it is read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event {
    /// Where and when.
    pub stamp: Stamp,
    /// What.
    pub kind: Kind,
    /// In its words; strangers may have chosen some.
    pub text: String,
    /// There were more words.
    pub is_cut: bool,
}

/// The record of an event.
pub fn record(stamp: Stamp, kind: Kind, text: fmt::Arguments<'_>) -> [u8; RECORD_BYTES] {
    let mut bytes = [0; RECORD_BYTES];
    bytes[4..8].copy_from_slice(&stamp.number.to_le_bytes());
    bytes[8..12].copy_from_slice(&stamp.life.to_le_bytes());
    bytes[12..20].copy_from_slice(&stamp.unix_ms.to_le_bytes());
    bytes[20..28].copy_from_slice(&stamp.life_ms.to_le_bytes());
    let mut words = Words { room: &mut bytes[TEXT_AT..], len: 0 };
    // It fails where the room ends, and then the rest is not even put into words.
    let is_cut = words.write_fmt(text).is_err();
    let len = words.len;
    bytes[28] = kind as u8 | if is_cut { CUT } else { 0 };
    bytes[29] = len as u8;
    let sum = crc32c::crc32c(&bytes[4..]);
    bytes[..4].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// Takes whole characters as far as there is room.
struct Words<'r> {
    room: &'r mut [u8],
    len: usize,
}

impl fmt::Write for Words<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut fitting = text.len().min(self.room.len() - self.len);
        while !text.is_char_boundary(fitting) {
            fitting -= 1;
        }
        self.room[self.len..self.len + fitting].copy_from_slice(&text.as_bytes()[..fitting]);
        self.len += fitting;
        if fitting < text.len() { Err(fmt::Error) } else { Ok(()) }
    }
}

/// The event of a record, if it is one.
fn event(bytes: &[u8]) -> Option<Event> {
    let word = |at: usize| bytes[at..at + 4].try_into().map_or(0, u32::from_le_bytes);
    let long = |at: usize| bytes[at..at + 8].try_into().map_or(0, u64::from_le_bytes);
    let stamp = Stamp { number: word(4), life: word(8), unix_ms: long(12), life_ms: long(20) };
    let kind = Kind::ALL.into_iter().find(|kind| *kind as u8 == bytes[28] & !CUT)?;
    let text = bytes[TEXT_AT..].get(..bytes[29].into())?;
    (word(0) == crc32c::crc32c(&bytes[4..]) && stamp.number > 0).then(|| Event {
        stamp,
        kind,
        text: String::from_utf8_lossy(text).into_owned(),
        is_cut: bytes[28] & CUT != 0,
    })
}

/// What a file that is no flight recorder is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Foreign;

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("it is no flight recorder")
    }
}

/// The events in a file, in their order. One of another version has none, and neither has an empty one.
///
/// # Errors
/// It is something else.
pub fn read(file: &[u8]) -> Result<Vec<Event>, Foreign> {
    Ok(places(file)?.into_iter().filter_map(|(_, record)| event(record)).collect())
}

/// The records that are events, by their numbers.
fn places(file: &[u8]) -> Result<Vec<(u32, &[u8])>, Foreign> {
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
        records.filter_map(|record| event(record).map(|event| (event.stamp.number, record))).collect();
    sort_by_key(&mut found, |(number, _)| *number);
    // What was moved at a start stands there twice until it is written over.
    found.dedup_by_key(|(number, _)| *number);
    Ok(found)
}

/// A life that begins: where its events go, and what is to be written before the first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Begun {
    /// The life, from 1 on.
    pub life: u32,
    /// The number of its first event.
    pub first: u32,
    /// Whether the life before, if any, ended without a word.
    pub is_sudden: bool,
    /// The header, which stands at the start of the file.
    pub header: [u8; RECORD_BYTES],
    /// The events of the lives before, which stand at its end.
    pub before: Vec<u8>,
}

/// Begins a life in a file that lives before may have left.
///
/// # Errors
/// It is something else.
pub fn begin(file: &[u8]) -> Result<Begun, Foreign> {
    let found = places(file)?;
    let last = found.last().and_then(|(_, record)| event(record));
    let mut header = [0; RECORD_BYTES];
    header[..MAGIC.len()].copy_from_slice(MAGIC);
    header[MAGIC.len()] = VERSION;
    Ok(Begun {
        life: last.as_ref().map_or(0, |event| event.stamp.life).saturating_add(1),
        first: last.as_ref().map_or(0, |event| event.stamp.number).saturating_add(1),
        is_sudden: last.is_some_and(|event| event.kind != Kind::Ended),
        header,
        before: found.into_iter().flat_map(|(_, record)| record).copied().collect(),
    })
}

/// The byte at which an event stands, when `first` was the first of its life.
pub const fn place(first: u32, number: u32) -> u64 {
    let nth = number.wrapping_sub(first) as usize % (EVENTS_MAX - KEPT);
    ((1 + nth) * RECORD_BYTES) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file as a process would have it, with what a life writes.
    #[derive(Default)]
    struct File {
        bytes: Vec<u8>,
        life: u32,
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
            (self.life, self.first, self.next) = (begun.life, begun.first, begun.first);
            begun.is_sudden
        }

        fn add(&mut self, kind: Kind, text: &str) {
            let stamp = Stamp { number: self.next, life: self.life, unix_ms: 7, life_ms: 9 };
            let at = place(self.first, self.next) as usize;
            self.bytes[at..at + RECORD_BYTES].copy_from_slice(&record(stamp, kind, format_args!("{text}")));
            self.next += 1;
        }

        fn numbers(&self, life: u32) -> Vec<u32> {
            let events = read(&self.bytes).unwrap().into_iter();
            events.filter(|event| event.stamp.life == life).map(|event| event.stamp.number).collect()
        }
    }

    #[test]
    fn an_event_is_read_as_it_was_written_and_cut_between_characters() {
        let stamp = Stamp { number: 3, life: 2, unix_ms: u64::MAX, life_ms: 1 };
        let hostile = "a\n\u{1b}[2J\0";
        let found = event(&record(stamp, Kind::Warn, format_args!("{hostile}"))).unwrap();
        assert_eq!(found, Event { stamp, kind: Kind::Warn, text: hostile.to_string(), is_cut: false });
        for (text, bytes) in [("x", 226), ("ä", 226), ("日", 225)] {
            let found = event(&record(stamp, Kind::Info, format_args!("{}{}", text.repeat(300), 7))).unwrap();
            assert_eq!((found.text.len(), found.is_cut), (bytes, true), "{text}");
        }
        let fits = "x".repeat(RECORD_BYTES - TEXT_AT);
        assert!(!event(&record(stamp, Kind::Info, format_args!("{fits}"))).unwrap().is_cut);
    }

    #[test]
    fn a_torn_record_is_no_event_and_the_others_are() {
        let mut file = File::default();
        file.begin();
        for text in ["one", "two", "three"] {
            file.add(Kind::Info, text);
        }
        let whole = file.bytes.clone();
        for bit in 0..RECORD_BYTES * 8 {
            file.bytes[2 * RECORD_BYTES + bit / 8] ^= 1 << (bit % 8);
            assert_eq!(file.numbers(1), [1, 3], "bit {bit}");
            file.bytes.clone_from(&whole);
        }
        assert_eq!(read(&whole[..2 * RECORD_BYTES + 100]).unwrap().len(), 1, "a file that was cut");
        file.bytes[MAGIC.len()] = VERSION + 1;
        assert_eq!(read(&file.bytes).unwrap(), [], "another version");
        assert_eq!(read(b"#!/bin/sh\n"), Err(Foreign));
        assert_eq!(begin(b"LVFLIGH"), Err(Foreign));
    }

    #[test]
    fn a_life_goes_around_in_its_own_part_and_leaves_the_last_events_before_it() {
        let mut file = File::default();
        assert!(!file.begin(), "there was no life before");
        for _ in 0..5_000 {
            file.add(Kind::Info, "first");
        }
        let ring = (EVENTS_MAX - KEPT) as u32;
        assert_eq!(file.numbers(1), (5_001 - ring..=5_000).collect::<Vec<_>>());
        assert!(file.begin(), "it ended without a word");
        assert_eq!(file.numbers(1), (5_001 - ring..=5_000).collect::<Vec<_>>(), "nothing is lost by a start");
        for _ in 0..9_999 {
            file.add(Kind::Info, "second");
        }
        file.add(Kind::Ended, "");
        assert_eq!(file.numbers(1), (5_001 - KEPT as u32..=5_000).collect::<Vec<_>>());
        assert_eq!(file.numbers(2), (15_001 - ring..=15_000).collect::<Vec<_>>());
        assert!(!file.begin(), "it ended in order");
        assert_eq!(file.life, 3);
    }

    #[test]
    fn many_short_lives_leave_each_other_alone_as_long_as_there_is_room() {
        let mut file = File::default();
        for _ in 0..100 {
            file.begin();
            for _ in 0..15 {
                file.add(Kind::Error, "cannot listen");
            }
        }
        assert_eq!(file.numbers(1).len(), 15);
        assert_eq!(read(&file.bytes).unwrap().len(), 1_500);
    }
}
