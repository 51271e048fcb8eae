//! Reads a file of definitions in the order in which objects depend on each other.
//!
//! The lists of a file come in any order; RabbitMQ sorts them by name, bindings first. A file may also be larger than
//! a board's free memory. So the file is scanned once from its beginning to its end, with one object in memory at a
//! time. Then each list is read again from where it begins.
//!
//! ```text
//! file   | "bindings": [ … ] | "queues": [ … ] | "users": [ … ] |
//! 1      ────────────────────────────────────────────────────────→  every object is checked
//! 2                                              ─────────────→     users are returned,
//! 3                           ───────────────→                      then queues,
//! 4        ─────────────────→                                       then bindings
//! ```
//!
//! # Invariants
//! - The first object is taken after the syntax of the whole file was checked.

use core::fmt;
use std::io::{self, Read, Seek, SeekFrom};

use leveret_json::{BYTE_ORDER_MARK, Value};

/// Maximum size of a definition file in bytes.
pub const FILE_BYTES_MAX: u64 = 16 << 20;

/// Maximum length of an object of a file in bytes.
const OBJECT_BYTES_MAX: usize = 128 << 10;
/// Bytes of a file that are read at once.
const PIECE_BYTES: usize = 8 << 10;

/// The position of an object in a file: its list, and its index there from 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct At {
    /// The name of the list.
    pub section: &'static str,
    /// The index in the list.
    pub index: usize,
}

impl fmt::Display for At {
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

/// The lists whose objects belong to a virtual host.
const OF_VHOST: [&str; 5] = ["parameters", "policies", "exchanges", "queues", "bindings"];

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

/// Passes every object of a file to `take`, each after the objects it depends on.
///
/// # Errors
/// The file cannot be read to its end, or `take` returns an error.
pub fn read<E>(
    file: &mut (impl Read + Seek),
    mut take: impl FnMut(At, &str) -> Result<(), E>,
) -> Result<(), ReadError<E>> {
    if file.seek(SeekFrom::End(0)).map_err(ReadError::System)? > FILE_BYTES_MAX {
        return Err(ReadError::TooLong);
    }
    let mut reader = DefinitionReader::new(0, None, false, OBJECT_BYTES_MAX);
    loop {
        let step = reader.step(|at, buffer| {
            file.seek(SeekFrom::Start(at))?;
            file.read(buffer)
        });
        match step.map_err(|error| match error {
            StepError::System(error) => ReadError::System(error),
            StepError::Malformed(why) => ReadError::Malformed(why),
        })? {
            Step::Nothing => {}
            Step::Object { at, text, is_checked: false } => {
                Value::parse(text.as_bytes()).map_err(|why| ReadError::Malformed(format!("{at}: {why}")))?;
            }
            Step::Object { at, text, .. } => take(at, &text).map_err(ReadError::Stopped)?,
            Step::End => return Ok(()),
        }
    }
}

/// The result of a step of a [`DefinitionReader`].
#[derive(Debug)]
pub enum Step {
    /// Some bytes were read, and no object is complete.
    Nothing,
    /// An object.
    Object {
        /// Its position.
        at: At,
        /// The object as JSON. Only its brackets and quotation marks were checked.
        text: String,
        /// Whether the whole file was checked. Each object is returned once before that, in the order of the file, and
        /// once after that, in the order of [`SECTIONS`].
        is_checked: bool,
    },
    /// All objects were returned.
    End,
}

/// Why a step failed.
#[derive(Debug)]
pub enum StepError {
    /// The bytes could not be read.
    System(io::Error),
    /// The content is malformed; the text says where and why.
    Malformed(String),
}

/// Reads a file in steps.
#[derive(Debug)]
pub struct DefinitionReader {
    scanner: Scanner,
    object_bytes_max: usize,
    /// The position of the file's first byte in the source.
    begin: u64,
    /// The position behind the file's last byte; `None` if the file ends where the source does.
    end: Option<u64>,
    /// The position of the scanner.
    at: u64,
    /// The bytes from `at` on.
    piece: Vec<u8>,
    /// The number of bytes of `piece` that were scanned.
    scanned: usize,
    /// The line that the scanner is in, from 1, and where the line begins.
    line: u64,
    line_begin: u64,
    is_of_vhost: bool,
    /// The positions of the first object of each list.
    lists: [Option<u64>; SECTIONS.len()],
    /// The list that the scanner is in, if it is one of [`SECTIONS`], and the number of its objects up to now.
    list: Option<usize>,
    index: usize,
    /// The list that is read again; `None` while the file is being checked.
    second_pass: Option<usize>,
}

impl DefinitionReader {
    /// Creates a reader of the bytes from `begin` to `end` of a source. With `is_of_vhost`, only objects that belong to a
    /// virtual host are returned. An object may have at most `object_bytes_max` bytes.
    pub fn new(begin: u64, end: Option<u64>, is_of_vhost: bool, object_bytes_max: usize) -> Self {
        Self {
            scanner: Scanner::new(Expect::Object, object_bytes_max),
            object_bytes_max,
            begin,
            end,
            at: begin,
            piece: Vec::new(),
            scanned: 0,
            line: 1,
            line_begin: begin,
            is_of_vhost,
            lists: [None; SECTIONS.len()],
            list: None,
            index: 0,
            second_pass: None,
        }
    }

    /// Reads up to the end of the next object, but at most 8 KiB. `read_at` reads bytes of the source from a position on,
    /// and returns their number; 0 at the end.
    ///
    /// # Errors
    /// `read_at` failed, or the file is malformed.
    pub fn step(
        &mut self,
        mut read_at: impl FnMut(u64, &mut [u8]) -> io::Result<usize>,
    ) -> Result<Step, StepError> {
        if let (Some(list), None) = (self.second_pass, self.list) {
            return Ok(self.begin_list(list));
        }
        if self.scanned == self.piece.len() {
            let left = self.end.map_or(u64::MAX, |end| end.saturating_sub(self.at));
            self.piece.resize(PIECE_BYTES.min(usize::try_from(left).unwrap_or(PIECE_BYTES)), 0);
            let mut count = 0;
            // A source may return fewer bytes than it has. A byte order mark must not be split.
            while count < self.piece.len() {
                let at = self.at + count as u64;
                match read_at(at, &mut self.piece[count..]).map_err(StepError::System)? {
                    0 => break,
                    more => count += more,
                }
            }
            self.piece.truncate(count);
            self.scanned = 0;
            if self.at == self.begin && self.piece.starts_with(BYTE_ORDER_MARK) {
                self.pass(BYTE_ORDER_MARK.len());
                self.line_begin = self.at;
            }
            if count == 0 {
                self.scanner.end().map_err(|why| self.malformed(self.at, &why))?;
                self.second_pass = Some(0);
                return Ok(Step::Nothing);
            }
        }
        let (count, found) = self
            .scanner
            .scan(&self.piece[self.scanned..])
            .map_err(|(count, why)| self.malformed_behind(count, &why))?;
        self.pass(count);
        self.handle(found).map_err(StepError::Malformed)
    }

    /// Moves the position behind scanned bytes.
    fn pass(&mut self, count: usize) {
        for (at, byte) in self.piece[self.scanned..][..count].iter().enumerate() {
            if *byte == b'\n' {
                (self.line, self.line_begin) = (self.line + 1, self.at + at as u64 + 1);
            }
        }
        self.scanned += count;
        self.at += count as u64;
    }

    /// Returns the error about the byte that follows `count` more bytes.
    fn malformed_behind(&mut self, count: usize, why: &str) -> StepError {
        self.pass(count);
        self.malformed(self.at + 1, why)
    }

    fn malformed(&self, end: u64, why: &str) -> StepError {
        // The file may have changed since it was checked.
        let (line, column) = (self.line, end.saturating_sub(self.line_begin));
        StepError::Malformed(format!("it is not JSON: {why} at line {line} column {column}"))
    }

    /// Goes to the beginning of a list that is read again.
    fn begin_list(&mut self, list: usize) -> Step {
        match self.lists.get(list) {
            None => return Step::End,
            Some(None) => self.second_pass = Some(list + 1),
            Some(Some(begin)) => {
                (self.at, self.list, self.index) = (*begin, Some(list), 0);
                (self.piece, self.scanned) = (Vec::new(), 0);
                self.scanner = Scanner::new(Expect::ElementOrEnd, self.object_bytes_max);
            }
        }
        Step::Nothing
    }

    fn handle(&mut self, found: Found) -> Result<Step, String> {
        match found {
            Found::Nothing => {}
            Found::List(name) => {
                (self.list, self.index) = (self.position_of(&name), 0);
                if let Some(list) = self.list
                    && self.lists[list].replace(self.at).is_some()
                {
                    return Err(format!("`{name}` occurs twice"));
                }
            }
            Found::EndOfList => {
                self.list = None;
                self.second_pass = self.second_pass.map(|list| list + 1);
            }
            Found::Member(name, text) => {
                let is_null = Value::parse(text.as_bytes())?.is_null();
                if self.position_of(&name).is_some() && !is_null {
                    return Err(format!("`{name}` must be a list"));
                }
            }
            Found::Element(text) => {
                let Some(list) = self.list else {
                    return Value::parse(text.as_bytes()).map(|_| Step::Nothing);
                };
                let at = At { section: SECTIONS[list], index: self.index };
                self.index += 1;
                return Ok(Step::Object { at, text, is_checked: self.second_pass.is_some() });
            }
        }
        Ok(Step::Nothing)
    }

    /// Returns the position in [`SECTIONS`] of a list whose objects are returned.
    fn position_of(&self, name: &str) -> Option<usize> {
        let is_wanted = !self.is_of_vhost || OF_VHOST.contains(&name);
        SECTIONS.iter().position(|section| *section == name).filter(|_| is_wanted)
    }
}

/// The deepest nesting of lists and objects in an object.
const DEPTH_MAX: u32 = 128;

/// The result of scanning some bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Found {
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

/// The token that the scanner expects next.
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
/// - One object is held at a time, and its length is bounded.
/// - Each result is one JSON value judging by its brackets and quotation marks. Its parser checks everything else.
#[derive(Debug)]
struct Scanner {
    expect: Expect,
    /// Maximum length of an object of a list, or of a member that is not a list, in bytes.
    object_bytes_max: usize,
    /// The value that is being read.
    value: Vec<u8>,
    depth: u32,
    is_in_text: bool,
    is_escaped: bool,
    /// The member that is being read.
    name: String,
}

impl Scanner {
    const fn new(expect: Expect, object_bytes_max: usize) -> Self {
        Self {
            expect,
            object_bytes_max,
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
    fn end(&self) -> Result<(), String> {
        match self.expect {
            Expect::Nothing => Ok(()),
            expect => Err(format!("the definitions end where {} is expected", expect.shown())),
        }
    }

    /// Scans bytes until something is found. Returns the number of scanned bytes: all bytes, if the result is
    /// [`Found::Nothing`].
    ///
    /// # Errors
    /// The index of the first unexpected byte, and the reason.
    fn scan(&mut self, bytes: &[u8]) -> Result<(usize, Found), (usize, String)> {
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
                (Expect::ElementOrEnd | Expect::CommaOrEndOfList, b']') if self.value.is_empty() => {
                    self.expect = Expect::CommaOrEnd;
                    Some(Found::EndOfList)
                }
                (Expect::NameOrEnd, b'}') if self.value.is_empty() => {
                    self.expect = Expect::Nothing;
                    None
                }
                _ if is_value => {
                    let (is_used, is_whole) = self.scan_value(byte).map_err(|why| (at, why))?;
                    at += usize::from(is_used);
                    if !is_whole {
                        continue;
                    }
                    match self.end_value().map_err(|why| (at, why))? {
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
                        _ => return Err((at, self.unexpected(byte))),
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
    fn scan_value(&mut self, byte: u8) -> Result<(bool, bool), String> {
        if self.value.len() >= self.object_bytes_max {
            return Err(format!("a definition may have at most {} bytes", self.object_bytes_max));
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
    fn end_value(&mut self) -> Result<Option<Found>, String> {
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
        let read = read::<String>(&mut Cursor::new(text), |at, object| {
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

    /// A file that returns one byte at each call.
    struct OneByteFile(Cursor<&'static str>);

    impl Read for OneByteFile {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let len = buffer.len().min(1);
            self.0.read(&mut buffer[..len])
        }
    }

    impl Seek for OneByteFile {
        fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
            self.0.seek(to)
        }
    }

    #[test]
    fn a_byte_order_mark_is_recognised_if_a_file_is_read_byte_by_byte() {
        let mut file = OneByteFile(Cursor::new("\u{feff}{\"bindings\":[1],\"users\":[5]}"));
        let mut found = Vec::new();
        read::<String>(&mut file, |at, object| {
            found.push(format!("{at} {object}"));
            Ok(())
        })
        .unwrap();
        assert_eq!(found, ["users[0] 5", "bindings[0] 1"]);
    }

    #[test]
    fn no_object_is_taken_from_a_file_with_an_error_at_its_end() {
        for text in [r#"{"users":[1]} x"#, r#"{"users":[1]"#, r#"{"users":[1],"queues":[{a}]}"#] {
            let mut count = 0;
            read::<String>(&mut Cursor::new(text), |_, _| {
                count += 1;
                Ok(())
            })
            .unwrap_err();
            assert_eq!(count, 0, "{text}");
        }
    }

    #[test]
    fn errors_contain_their_position() {
        for (text, why) in [
            (r#"{"users":[{"name":"q"}"#, "end where `,` or `]` is expected at line 1 column 22"),
            (r#"{"users":3}"#, "`users` must be a list"),
            (r#"{"users":[],"users":[]}"#, "`users` occurs twice"),
            (r#"{"users":[{a}],"queues":["stop"]}"#, "users[0]: "),
            (r#"{"more":[{a}],"queues":["stop"]}"#, "key must be a string"),
            ("[]", "it is not JSON: an object is expected instead of `[` at line 1 column 1"),
            ("[store]\nqueues = 1\n", "an object is expected instead of `[` at line 1 column 1"),
            ("{\n  \"users\": [1 2]}", "`,` or `]` is expected instead of `2` at line 2 column 15"),
            ("\u{feff}{]", "instead of `]` at line 1 column 2"),
            (r#"{"users":[]} x"#, "nothing more is expected instead of `x` at line 1 column 14"),
            (r#"{"queues":["stop"]}"#, "enough"),
            ("", "the definitions end where an object is expected at line 1 column 0"),
        ] {
            let error = order(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
        let deep = format!("{{\"users\":[{}{}]}}", "[".repeat(1000), "]".repeat(1000));
        assert!(order(&deep).unwrap_err().contains("nested at most 128 deep"));
        let long = format!("{{\"users\":[\"{}\"]}}", "x".repeat(FILE_BYTES_MAX as usize));
        assert!(order(&long).unwrap_err().contains("longer than 16 MiB"));
    }
}

#[cfg(test)]
mod scan_tests {
    use super::*;

    const OBJECT_BYTES_MAX: usize = 64 << 10;

    fn found(text: &str, piece: usize) -> Result<Vec<Found>, String> {
        let (mut scanner, mut all) = (Scanner::new(Expect::Object, OBJECT_BYTES_MAX), Vec::new());
        for mut bytes in text.as_bytes().chunks(piece) {
            while !bytes.is_empty() {
                let (count, one) = scanner.scan(bytes).map_err(|(_, why)| why)?;
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
