//! The lists of a file of definitions, out of pieces of it, one thing at a time.
//!
//! # Invariants
//! - One thing is held at a time, and it has at most [`THING_BYTES_MAX`] bytes.
//! - What is handed on is one JSON value by its brackets and quotation marks; whoever reads it finds out the rest.

/// The longest thing of a list, or member that is no list, in bytes.
const THING_BYTES_MAX: usize = 64 << 10;
/// How deep lists and objects may be nested in a thing.
const DEPTH_MAX: u32 = 128;

/// What was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Found {
    /// All bytes were used, and there is nothing to tell yet.
    Nothing,
    /// A list of this name begins.
    List(String),
    /// A thing of the list.
    Thing(String),
    /// The list ends.
    EndOfList,
    /// A member of this name that is no list, and its value.
    Member(String, String),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Expect {
    Object,
    NameOrEnd,
    Name,
    Colon,
    Value,
    ThingOrEnd,
    Thing,
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
            Self::Value | Self::Thing => "a value",
            Self::ThingOrEnd => "a value or `]`",
            Self::CommaOrEndOfList => "`,` or `]`",
            Self::CommaOrEnd => "`,` or `}`",
            Self::Nothing => "nothing more",
        }
    }
}

/// Goes through a file.
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
    /// Goes through the things of a list, from behind its bracket on.
    pub fn of_list() -> Self {
        Self::expecting(Expect::ThingOrEnd)
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

    /// Whether the file may end here.
    ///
    /// # Errors
    /// What is missing.
    pub fn end(&self) -> Result<(), String> {
        match self.expect {
            Expect::Nothing => Ok(()),
            expect => Err(format!("the definitions end where there must be {}", expect.shown())),
        }
    }

    /// Reads some of these bytes, and returns how many; all of them if nothing was found.
    ///
    /// # Errors
    /// It is no file of definitions.
    pub fn take(&mut self, bytes: &[u8]) -> Result<(usize, Found), String> {
        let mut at = 0;
        while let Some(byte) = bytes.get(at).copied() {
            if self.value.is_empty() && matches!(byte, b' ' | b'\t' | b'\r' | b'\n') {
                at += 1;
                continue;
            }
            let is_value = matches!(
                self.expect,
                Expect::NameOrEnd | Expect::Name | Expect::Value | Expect::ThingOrEnd | Expect::Thing
            );
            let found = match (self.expect, byte) {
                (Expect::Value, b'[') if self.value.is_empty() => {
                    self.expect = Expect::ThingOrEnd;
                    Some(Found::List(core::mem::take(&mut self.name)))
                }
                (Expect::ThingOrEnd, b']') if self.value.is_empty() => {
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
                        (Expect::CommaOrEndOfList, b',') => Expect::Thing,
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
        format!("there must be {} where there is `{}`", self.expect.shown(), byte.escape_ascii())
    }

    /// Takes a byte of a value; returns whether it is one of it, and whether the value is whole.
    fn read(&mut self, byte: u8) -> Result<(bool, bool), String> {
        if self.value.len() >= THING_BYTES_MAX {
            return Err(format!("a definition may have at most {THING_BYTES_MAX} bytes"));
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
            // Of a number or a word nothing but what follows shows its end.
            b',' | b'}' | b']' | b' ' | b'\t' | b'\r' | b'\n' if self.depth == 0 && !is_first => {
                return Ok((false, true));
            }
            b',' | b'}' | b']' | b':' if is_first => return Err(self.unexpected(byte)),
            _ => {}
        }
        self.value.push(byte);
        Ok((true, false))
    }

    /// A value is whole: what that means.
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
                Some(Found::Thing(text))
            }
        })
    }
}

#[cfg(test)]
mod tests {
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
    fn things_are_found_in_their_order_however_a_file_is_cut() {
        let text =
            r#" {"v" : 1, "e":[ ],"q":[{"a":"]\"}","b":[{}]} , 3,"x,\\" ],"w":{"y":[1]},"\u0061":true} "#;
        let member = |name: &str, value: &str| Found::Member(name.into(), value.into());
        let thing = |text: &str| Found::Thing(text.into());
        let wanted = [
            member("v", "1"),
            Found::List("e".into()),
            Found::EndOfList,
            Found::List("q".into()),
            thing(r#"{"a":"]\"}","b":[{}]}"#),
            thing("3"),
            thing(r#""x,\\""#),
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
    fn what_is_no_file_of_definitions_is_refused() {
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
        assert!(found(&long(THING_BYTES_MAX - 2), 1000).is_ok());
        assert!(found(&long(THING_BYTES_MAX - 1), 1000).unwrap_err().contains("65536 bytes"));
    }
}
