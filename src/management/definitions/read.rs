//! Reads definition files: once per kind, in the order in which objects depend on each other.
//!
//! The lists of a file come in any order; RabbitMQ sorts them by name, bindings first. A file may also be larger than
//! a board's free memory. So the file is read several times, with one object in memory at a time.

use core::fmt;
use std::io::{self, BufReader, Read, Seek, SeekFrom};

use leveret_json::BYTE_ORDER_MARK;
use serde::de::{Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// The longest file that is read, in bytes.
pub const FILE_BYTES_MAX: u64 = 16 << 20;

/// The longest object of a file, or other part that is held whole, in bytes.
const PIECE_BYTES_MAX: usize = 128 << 10;
/// The deepest nesting of lists and objects in a file.
const NESTED_MAX: usize = 128;

/// The position of an object in a file: its list, and its index there from 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct At<'a> {
    /// The name of the list.
    pub section: &'a str,
    /// The index in the list.
    pub index: usize,
}

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]", self.section, self.index)
    }
}

/// The names of the lists, each after the lists it depends on.
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

/// Why a file cannot be read.
#[derive(Debug)]
pub enum ReadError<E> {
    /// The operating system reported an error.
    System(io::Error),
    /// The file is longer than permitted.
    TooLong,
    /// The content is malformed; the text says where and why.
    Malformed(String),
    /// The function that takes the objects returned an error.
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

/// A file, or another source that can be read more than once.
pub trait DefinitionSource: Read + Seek {}

impl<T: Read + Seek> DefinitionSource for T {}

/// Passes every object of a file to `take`, each after the objects it depends on.
///
/// # Errors
/// The file cannot be read to its end, or `take` returns an error.
pub fn read<E>(
    file: &mut dyn DefinitionSource,
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
        let done = go_through(file, section, &mut |object| {
            let at = At { section, index };
            index += 1;
            take(at, section, object).map_err(|error| stopped = Some(error)).is_ok()
        });
        if let Some(error) = stopped {
            return Err(ReadError::Stopped(error));
        }
        if let Err(error) = done {
            // A text that is not JSON, such as TOML, may begin like an unexpected value.
            file.seek(SeekFrom::Start(start)).map_err(ReadError::System)?;
            let error = check_syntax(file).err().filter(|other| !other.is_io()).unwrap_or(error);
            return Err(malformed(error, section, index));
        }
    }
    Ok(())
}

/// Takes the objects of a list, and returns whether to continue.
type Take<'t> = &'t mut dyn FnMut(&str) -> bool;

/// Reads the file once for one of its lists.
fn go_through(file: &mut dyn DefinitionSource, wanted: &str, take: Take<'_>) -> serde_json::Result<()> {
    let mut json = serde_json::Deserializer::from_reader(BufReader::new(PartLimiter::of(file)));
    Whole { wanted, take }.deserialize(&mut json)?;
    json.end()
}

/// Reads the file once and checks its syntax only.
fn check_syntax(file: &mut dyn DefinitionSource) -> serde_json::Result<()> {
    let mut json = serde_json::Deserializer::from_reader(BufReader::new(PartLimiter::of(file)));
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

/// A file whose parts are checked for length, because a JSON parser holds each text, number or object in memory.
struct PartLimiter<'f> {
    file: io::Take<&'f mut dyn DefinitionSource>,
    /// Number of open lists and objects.
    depth: usize,
    is_in_text: bool,
    is_escaped: bool,
    /// Bytes of the current part.
    bytes: usize,
    /// Why reading was stopped.
    refused: Option<String>,
}

impl<'f> PartLimiter<'f> {
    fn of(file: &'f mut dyn DefinitionSource) -> Self {
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
        // The position is in the file's object, or between two objects of a list.
        if self.depth <= 2 && !self.is_in_text {
            self.bytes = 0;
        }
    }
}

impl Read for PartLimiter<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(why) = self.refused.take() {
            return Err(io::Error::other(why));
        }
        let count = self.file.read(buffer)?;
        for (at, &byte) in buffer.iter().take(count).enumerate() {
            self.pass(byte);
            let why = if self.bytes > PIECE_BYTES_MAX {
                format!("an object or a text in it is longer than {} KiB: split it", PIECE_BYTES_MAX >> 10)
            } else if self.depth > NESTED_MAX {
                format!("it is nested more than {NESTED_MAX} deep")
            } else {
                continue;
            };
            // An earlier part may have another error, which is reported first.
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
        while let Some(object) = list.next_element::<Box<RawValue>>()? {
            if !(self.0)(object.get()) {
                return Err(serde::de::Error::custom("stopped"));
            }
        }
        Ok(())
    }
}

/// The longest object of a list, or member that is not a list, in bytes.
const OBJECT_BYTES_MAX: usize = 64 << 10;
/// The deepest nesting of lists and objects in an object.
const DEPTH_MAX: u32 = 128;

/// The result of scanning some bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Found {
    /// All bytes were used and nothing was completed.
    Nothing,
    /// A list of this name begins.
    List(String),
    /// An object of the list.
    Element(String),
    /// The list ends.
    EndOfList,
    /// A member of this name that is not a list, and its value.
    Member(String, String),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Expect {
    Object,
    NameOrEnd,
    Name,
    Colon,
    Value,
    ElementOrEnd,
    Element,
    CommaOrEndOfList,
    CommaOrEnd,
    Nothing,
}

impl Expect {
    const fn shown(self) -> &'static str {
        match self {
            Self::Object => "an object",
            Self::NameOrEnd => "a name or `}`",
            Self::Name => "a name",
            Self::Colon => "`:`",
            Self::Value | Self::Element => "a value",
            Self::ElementOrEnd => "a value or `]`",
            Self::CommaOrEndOfList => "`,` or `]`",
            Self::CommaOrEnd => "`,` or `}`",
            Self::Nothing => "nothing more",
        }
    }
}

/// Splits a definition file that arrives in parts into its objects.
///
/// # Invariants
/// - One object is held at a time, and it has at most `OBJECT_BYTES_MAX` bytes.
/// - Each result is one JSON value judging by its brackets and quotation marks. Its parser checks everything else.
#[derive(Debug)]
pub struct Scanner {
    expect: Expect,
    /// The value that is being read.
    value: Vec<u8>,
    depth: u32,
    is_in_text: bool,
    is_escaped: bool,
    /// The member that is being read.
    name: String,
}

impl Default for Scanner {
    fn default() -> Self {
        Self::expecting(Expect::Object)
    }
}

impl Scanner {
    /// Creates a scanner of the objects of a list, which starts after the opening bracket.
    pub fn of_list() -> Self {
        Self::expecting(Expect::ElementOrEnd)
    }

    const fn expecting(expect: Expect) -> Self {
        Self {
            expect,
            value: Vec::new(),
            depth: 0,
            is_in_text: false,
            is_escaped: false,
            name: String::new(),
        }
    }

    /// Checks that the file may end here.
    ///
    /// # Errors
    /// The text says what is missing.
    pub fn end(&self) -> Result<(), String> {
        match self.expect {
            Expect::Nothing => Ok(()),
            expect => Err(format!("the definitions end where {} is expected", expect.shown())),
        }
    }

    /// Scans some of these bytes and returns how many: all of them if nothing was completed.
    ///
    /// # Errors
    /// The bytes are no definition file.
    pub fn take(&mut self, bytes: &[u8]) -> Result<(usize, Found), String> {
        let mut at = 0;
        while let Some(byte) = bytes.get(at).copied() {
            if self.value.is_empty() && matches!(byte, b' ' | b'\t' | b'\r' | b'\n') {
                at += 1;
                continue;
            }
            let is_value = matches!(
                self.expect,
                Expect::NameOrEnd | Expect::Name | Expect::Value | Expect::ElementOrEnd | Expect::Element
            );
            let found = match (self.expect, byte) {
                (Expect::Value, b'[') if self.value.is_empty() => {
                    self.expect = Expect::ElementOrEnd;
                    Some(Found::List(core::mem::take(&mut self.name)))
                }
                (Expect::ElementOrEnd, b']') if self.value.is_empty() => {
                    self.expect = Expect::CommaOrEnd;
                    Some(Found::EndOfList)
                }
                (Expect::NameOrEnd, b'}') if self.value.is_empty() => {
                    self.expect = Expect::Nothing;
                    None
                }
                _ if is_value => {
                    let (is_used, is_whole) = self.read(byte)?;
                    at += usize::from(is_used);
                    if !is_whole {
                        continue;
                    }
                    match self.whole()? {
                        Some(found) => return Ok((at, found)),
                        None => continue,
                    }
                }
                (expect, byte) => {
                    self.expect = match (expect, byte) {
                        (Expect::Object, b'{') => Expect::NameOrEnd,
                        (Expect::Colon, b':') => Expect::Value,
                        (Expect::CommaOrEndOfList, b',') => Expect::Element,
                        (Expect::CommaOrEnd, b',') => Expect::Name,
                        (Expect::CommaOrEnd, b'}') => Expect::Nothing,
                        (Expect::CommaOrEndOfList, b']') => {
                            self.expect = Expect::CommaOrEnd;
                            return Ok((at + 1, Found::EndOfList));
                        }
                        _ => return Err(self.unexpected(byte)),
                    };
                    None
                }
            };
            at += 1;
            if let Some(found) = found {
                return Ok((at, found));
            }
        }
        Ok((at, Found::Nothing))
    }

    #[cold]
    fn unexpected(&self, byte: u8) -> String {
        format!("{} is expected instead of `{}`", self.expect.shown(), byte.escape_ascii())
    }

    /// Scans a byte of a value. Returns whether the byte belongs to the value, and whether the value is complete.
    fn read(&mut self, byte: u8) -> Result<(bool, bool), String> {
        if self.value.len() >= OBJECT_BYTES_MAX {
            return Err(format!("a definition may have at most {OBJECT_BYTES_MAX} bytes"));
        }
        let is_first = self.value.is_empty();
        if self.is_in_text {
            self.value.push(byte);
            if !core::mem::take(&mut self.is_escaped) {
                self.is_escaped = byte == b'\\';
                self.is_in_text = byte != b'"';
            }
            return Ok((true, !self.is_in_text && self.depth == 0));
        }
        match byte {
            b'"' if is_first || self.depth > 0 => self.is_in_text = true,
            b'{' | b'[' if is_first || self.depth > 0 => {
                self.depth += 1;
                if self.depth > DEPTH_MAX {
                    return Err(format!(
                        "lists and objects may be nested at most {DEPTH_MAX} deep in a definition"
                    ));
                }
            }
            b'}' | b']' if self.depth > 0 => {
                self.depth -= 1;
                self.value.push(byte);
                return Ok((true, self.depth == 0));
            }
            // The end of a number or a word shows only in the byte after it.
            b',' | b'}' | b']' | b' ' | b'\t' | b'\r' | b'\n' if self.depth == 0 && !is_first => {
                return Ok((false, true));
            }
            b',' | b'}' | b']' | b':' if is_first => return Err(self.unexpected(byte)),
            _ => {}
        }
        self.value.push(byte);
        Ok((true, false))
    }

    /// Handles a complete value.
    fn whole(&mut self) -> Result<Option<Found>, String> {
        let text = String::from_utf8(core::mem::take(&mut self.value)).map_err(|error| error.to_string())?;
        Ok(match self.expect {
            Expect::NameOrEnd | Expect::Name => {
                self.name = serde_json::from_str(&text).map_err(|error| error.to_string())?;
                self.expect = Expect::Colon;
                None
            }
            Expect::Value => {
                self.expect = Expect::CommaOrEnd;
                Some(Found::Member(core::mem::take(&mut self.name), text))
            }
            _ => {
                self.expect = Expect::CommaOrEndOfList;
                Some(Found::Element(text))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn order(text: &str) -> Result<Vec<String>, String> {
        let mut found = Vec::new();
        let read = read::<String>(&mut Cursor::new(text), |at, _, object| {
            found.push(format!("{at} {object}"));
            if object == "\"stop\"" { Err("enough".to_string()) } else { Ok(()) }
        });
        read.map(|()| found).map_err(|error| error.to_string())
    }

    #[test]
    fn objects_come_after_their_dependencies() {
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
    fn errors_contain_their_position() {
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

#[cfg(test)]
mod scan_tests {
    use super::*;

    fn found(text: &str, piece: usize) -> Result<Vec<Found>, String> {
        let (mut scanner, mut all) = (Scanner::default(), Vec::new());
        for mut bytes in text.as_bytes().chunks(piece) {
            while !bytes.is_empty() {
                let (count, one) = scanner.take(bytes)?;
                bytes = &bytes[count..];
                all.extend((one != Found::Nothing).then_some(one));
            }
        }
        scanner.end().map(|()| all)
    }

    #[test]
    fn objects_are_found_in_order_however_a_file_is_split() {
        let text =
            r#" {"v" : 1, "e":[ ],"q":[{"a":"]\"}","b":[{}]} , 3,"x,\\" ],"w":{"y":[1]},"\u0061":true} "#;
        let member = |name: &str, value: &str| Found::Member(name.into(), value.into());
        let element = |text: &str| Found::Element(text.into());
        let wanted = [
            member("v", "1"),
            Found::List("e".into()),
            Found::EndOfList,
            Found::List("q".into()),
            element(r#"{"a":"]\"}","b":[{}]}"#),
            element("3"),
            element(r#""x,\\""#),
            Found::EndOfList,
            member("w", r#"{"y":[1]}"#),
            member("a", "true"),
        ];
        for piece in 1..text.len() {
            assert_eq!(found(text, piece).unwrap(), wanted, "{piece}");
        }
        assert_eq!(found("{}", 1).unwrap(), []);
    }

    #[test]
    fn files_without_definitions_are_refused() {
        for text in [
            "",
            "[]",
            "{",
            "{\"a\"",
            "{\"a\":",
            "{\"a\":[",
            "{\"a\":[1",
            "{\"a\":[1 2]}",
            "{\"a\":[1,]}",
            "{\"a\":1,}",
        ] {
            assert!(found(text, 3).is_err(), "{text}");
        }
        for text in
            ["{} {}", "{a:1}", "{\"a\" 1}", "{\"a\":}", "{\"a\":[,1]}", "{,}", "{\"a\":1 \"b\":2}", "{1:2}"]
        {
            assert!(found(text, 3).is_err(), "{text}");
        }
        let long = |letters: usize| format!("{{\"a\":[\"{}\"]}}", "x".repeat(letters));
        assert!(found(&long(OBJECT_BYTES_MAX - 2), 1000).is_ok());
        assert!(found(&long(OBJECT_BYTES_MAX - 1), 1000).unwrap_err().contains("65536 bytes"));
    }
}
