//! Going through a file of definitions: once per kind, in the order in which things need each other.
//!
//! Why it exists: the lists of a file come in any order (RabbitMQ's come sorted by name, bindings first), and
//! a file may be larger than what a board has memory for. So it is read several times, and one thing of it
//! is in memory at a time.

use core::fmt;
use std::io::{self, BufReader, Read, Seek, SeekFrom};

use serde::de::{Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use leveret_json::BYTE_ORDER_MARK;

/// The longest file that is read, in bytes.
pub const FILE_BYTES_MAX: u64 = 16 << 20;

/// The longest thing of a file, or what else stands in one piece, in bytes.
const PIECE_BYTES_MAX: usize = 128 << 10;
/// How deep lists and objects may be nested in a file.
const NESTED_MAX: usize = 128;

/// Where a thing stands in a file: its kind, and its place among those from 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct At<'a> {
    /// The name of the list.
    pub section: &'a str,
    /// The place in it.
    pub index: usize,
}

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]", self.section, self.index)
    }
}

/// The lists, each after those it needs.
pub const SECTIONS: [&str; 10] = [
    "vhosts",
    "users",
    "permissions",
    "topic_permissions",
    "parameters",
    "policies",
    "exchanges",
    "queues",
    "bindings",
    "global_parameters",
];

/// What keeps a file from being read.
#[derive(Debug)]
pub enum ReadError<E> {
    /// The system does not give it.
    System(io::Error),
    /// The text is longer than a definition may be.
    TooLong,
    /// It is not what it should be: where, and why.
    Malformed(String),
    /// Whoever takes the things does not want any more.
    Stopped(E),
}

impl<E: fmt::Display> fmt::Display for ReadError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System(error) => error.fmt(f),
            Self::TooLong => write!(f, "it is longer than {} MiB", FILE_BYTES_MAX >> 20),
            Self::Malformed(why) => f.write_str(why),
            Self::Stopped(why) => why.fmt(f),
        }
    }
}

/// A file, or what else can be gone through more than once.
pub trait Source: Read + Seek {}

impl<T: Read + Seek> Source for T {}

/// Hands on everything in a file, in an order in which it can be made.
///
/// # Errors
/// The file cannot be read to its end, or `take` has an error.
pub fn read<E>(
    file: &mut dyn Source,
    mut take: impl FnMut(At<'_>, &str, &str) -> Result<(), E>,
) -> Result<(), ReadError<E>> {
    let length = file.seek(SeekFrom::End(0)).map_err(ReadError::System)?;
    if length > FILE_BYTES_MAX {
        return Err(ReadError::TooLong);
    }
    file.rewind().map_err(ReadError::System)?;
    let mut beginning = Vec::new();
    Read::take(&mut *file, BYTE_ORDER_MARK.len() as u64)
        .read_to_end(&mut beginning)
        .map_err(ReadError::System)?;
    let start = if beginning == BYTE_ORDER_MARK { BYTE_ORDER_MARK.len() as u64 } else { 0 };
    for section in SECTIONS {
        file.seek(SeekFrom::Start(start)).map_err(ReadError::System)?;
        let mut stopped = None;
        let mut index = 0;
        let done = go_through(file, section, &mut |thing| {
            let at = At { section, index };
            index += 1;
            take(at, section, thing).map_err(|error| stopped = Some(error)).is_ok()
        });
        if let Some(error) = stopped {
            return Err(ReadError::Stopped(error));
        }
        if let Err(error) = done {
            // A text that is no JSON at all, such as TOML, may begin like a value that is not expected.
            file.seek(SeekFrom::Start(start)).map_err(ReadError::System)?;
            let error = check_syntax(file).err().filter(|other| !other.is_io()).unwrap_or(error);
            return Err(malformed(error, section, index));
        }
    }
    Ok(())
}

/// Who is handed the things of a list, and says whether to go on.
type Take<'t> = &'t mut dyn FnMut(&str) -> bool;

/// Once through the file for one of its lists.
fn go_through(file: &mut dyn Source, wanted: &str, take: Take<'_>) -> serde_json::Result<()> {
    let mut json = serde_json::Deserializer::from_reader(BufReader::new(Pieces::of(file)));
    Whole { wanted, take }.deserialize(&mut json)?;
    json.end()
}

/// Once through the file, whatever values are in it.
fn check_syntax(file: &mut dyn Source) -> serde_json::Result<()> {
    let mut json = serde_json::Deserializer::from_reader(BufReader::new(Pieces::of(file)));
    IgnoredAny::deserialize(&mut json)?;
    json.end()
}

fn malformed<E>(error: serde_json::Error, section: &str, index: usize) -> ReadError<E> {
    if error.is_io() {
        return ReadError::System(error.into());
    }
    if error.classify() == serde_json::error::Category::Data {
        return ReadError::Malformed(format!("after {section}[{index}]: {error}"));
    }
    ReadError::Malformed(format!("it is not JSON: {error}"))
}

/// A file, no piece of which is too long to be held: whoever reads JSON holds a text, a number or a thing whole.
struct Pieces<'f> {
    file: io::Take<&'f mut dyn Source>,
    /// Lists and objects that are open.
    depth: usize,
    is_in_text: bool,
    is_escaped: bool,
    /// Bytes of the piece so far.
    bytes: usize,
    /// Why no more is read.
    refused: Option<String>,
}

impl<'f> Pieces<'f> {
    fn of(file: &'f mut dyn Source) -> Self {
        let file = file.take(FILE_BYTES_MAX);
        Self { file, depth: 0, is_in_text: false, is_escaped: false, bytes: 0, refused: None }
    }

    fn pass(&mut self, byte: u8) {
        self.bytes += 1;
        if self.is_in_text {
            self.is_in_text = self.is_escaped || byte != b'"';
            self.is_escaped = !self.is_escaped && byte == b'\\';
            return;
        }
        match byte {
            b'"' => self.is_in_text = true,
            b'[' | b'{' => self.depth += 1,
            b']' | b'}' => self.depth = self.depth.saturating_sub(1),
            b',' | b':' | b' ' | b'\t' | b'\r' | b'\n' => {}
            _ => return,
        }
        // In the file's object, or between the things of a list of it.
        if self.depth <= 2 && !self.is_in_text {
            self.bytes = 0;
        }
    }
}

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(why) = self.refused.take() {
            return Err(io::Error::other(why));
        }
        let count = self.file.read(buffer)?;
        for (at, &byte) in buffer.iter().take(count).enumerate() {
            self.pass(byte);
            let why = if self.bytes > PIECE_BYTES_MAX {
                format!(
                    "a thing or a text in it is longer than {} KiB: make several of it",
                    PIECE_BYTES_MAX >> 10
                )
            } else if self.depth > NESTED_MAX {
                format!("it is nested more than {NESTED_MAX} deep")
            } else {
                continue;
            };
            // What stands before may be wrong in another way, and that is told first.
            self.refused = Some(why);
            return if at == 0 { self.read(buffer) } else { Ok(at) };
        }
        Ok(count)
    }
}

/// The whole file, of which one list is wanted.
struct Whole<'w> {
    wanted: &'w str,
    take: Take<'w>,
}

impl<'de> DeserializeSeed<'de> for Whole<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Whole<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with lists of definitions, as RabbitMQ exports it")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<std::borrow::Cow<'_, str>>()? {
            if key == self.wanted {
                map.next_value_seed(List(self.take))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

/// The list that is wanted.
struct List<'l>(Take<'l>);

impl<'de> DeserializeSeed<'de> for List<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for List<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while let Some(thing) = list.next_element::<Box<RawValue>>()? {
            if !(self.0)(thing.get()) {
                return Err(serde::de::Error::custom("stopped"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn order(text: &str) -> Result<Vec<String>, String> {
        let mut found = Vec::new();
        let read = read::<String>(&mut Cursor::new(text), |at, _, thing| {
            found.push(format!("{at} {thing}"));
            if thing == "\"stop\"" { Err("enough".to_string()) } else { Ok(()) }
        });
        read.map(|()| found).map_err(|error| error.to_string())
    }

    #[test]
    fn things_come_after_what_they_need() {
        let text = r#"{"bindings":[1],"queues":[2,3],"rabbit_version":"3.10.8","policies":[4],"users":[5]}"#;
        assert_eq!(
            order(text).unwrap(),
            ["users[0] 5", "policies[0] 4", "queues[0] 2", "queues[1] 3", "bindings[0] 1"]
        );
    }

    #[test]
    fn a_byte_order_mark_is_skipped_once_and_only_at_the_beginning() {
        assert_eq!(
            order("\u{feff}{\"bindings\":[1],\"users\":[5]}").unwrap(),
            ["users[0] 5", "bindings[0] 1"]
        );
        for text in ["\u{feff}", "\u{feff}\u{feff}{}", "{}\u{feff}", "{\u{feff}}"] {
            order(text).unwrap_err();
        }
    }

    #[test]
    fn mistakes_say_where() {
        for (text, why) in [
            (r#"{"users":[{"name":"q"}"#, "EOF while parsing"),
            (r#"{"users":3}"#, "after users[0]: invalid type: integer `3`, expected a list"),
            ("[]", "an object with lists of definitions"),
            ("[store]\nqueues = 1\n", "it is not JSON: expected value at line 1 column 2"),
            ("queues_max = 1\n", "it is not JSON: expected value at line 1 column 1"),
            ("\0\0", "it is not JSON: expected value at line 1 column 1"),
            (r#"{"users":[]} x"#, "trailing characters"),
            (r#"{"queues":["stop"]}"#, "enough"),
            ("", "EOF"),
        ] {
            let error = order(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
        let deep = format!("{{\"users\":[{}{}]}}", "[".repeat(1000), "]".repeat(1000));
        assert!(order(&deep).unwrap_err().contains("nested more than 128 deep"));
        let long = format!("{{\"users\":[\"{}\"]}}", "x".repeat(FILE_BYTES_MAX as usize));
        assert!(order(&long).unwrap_err().contains("longer than 16 MiB"));
    }
}
