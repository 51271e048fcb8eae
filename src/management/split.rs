//! A JSON object as it arrives, divided into the text of one member and everything else.
//!
//! # Invariants
//! - Everything else is bounded; the text of the member is handed on and not kept.
//! - The text is decoded by the reader that short requests are read with, so both accept and refuse the same.

/// What [`Splitter::take`] made of some bytes.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// How many bytes were used; never 0 unless there were none.
    pub(super) bytes: usize,
    /// The next part of the member's text.
    pub(super) text: String,
    /// The member's text begins with these bytes; an earlier one is void, as of two members with one name the
    /// last counts.
    pub(super) begins: bool,
}

/// Divides one object.
#[derive(Debug)]
pub(super) struct Splitter {
    member: &'static str,
    /// The object with an empty text for the member.
    rest: Vec<u8>,
    rest_bytes_max: usize,
    depth: usize,
    state: State,
    /// Where the text that was read last begins in `rest`.
    text_from: usize,
    /// That text was the member's name; and so was the text before the colon that was read last.
    is_name: bool,
    is_value_next: bool,
    /// Bytes of an escape or a letter that is not complete: at most eleven.
    carry: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Outside,
    /// In a text that stays in `rest`; behind a backslash or not.
    InText {
        is_escaped: bool,
    },
    InMember,
}

impl Splitter {
    /// Divides an object that has at most `rest_bytes_max` bytes beside the member's text.
    pub(super) const fn new(member: &'static str, rest_bytes_max: usize) -> Self {
        Self {
            member,
            rest: Vec::new(),
            rest_bytes_max,
            depth: 0,
            state: State::Outside,
            text_from: 0,
            is_name: false,
            is_value_next: false,
            carry: Vec::new(),
        }
    }

    /// Returns the object with an empty text for the member, once all of it was taken.
    ///
    /// # Errors
    /// The object ends within the member's text.
    pub(super) fn rest(&self) -> Result<&[u8], String> {
        if self.state == State::InMember {
            return Err(format!("the request ends within `{}`", self.member));
        }
        Ok(&self.rest)
    }

    /// Takes some of these bytes.
    ///
    /// # Errors
    /// The member's text is none, or the rest is too long.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<Taken, String> {
        if self.state == State::InMember {
            return self.take_text(bytes);
        }
        for (at, byte) in bytes.iter().enumerate() {
            if self.rest.len() >= self.rest_bytes_max {
                let (member, most) = (self.member, self.rest_bytes_max);
                return Err(format!("all of the request but `{member}` may have at most {most} bytes"));
            }
            self.rest.push(*byte);
            if self.outside(*byte) {
                self.rest.push(b'"');
                self.state = State::InMember;
                return Ok(Taken { bytes: at + 1, begins: true, ..Taken::default() });
            }
        }
        Ok(Taken { bytes: bytes.len(), ..Taken::default() })
    }

    /// Notes a byte of `rest`; returns whether the member's text begins behind it.
    fn outside(&mut self, byte: u8) -> bool {
        match (self.state, byte) {
            (State::InText { is_escaped: false }, b'"') => {
                let text = &self.rest[self.text_from..self.rest.len() - 1];
                self.is_name = self.depth == 1 && text == self.member.as_bytes();
                self.state = State::Outside;
            }
            (State::InText { is_escaped }, byte) => {
                self.state = State::InText { is_escaped: !is_escaped && byte == b'\\' };
            }
            (_, b'"') if self.is_value_next => {
                (self.is_value_next, self.is_name) = (false, false);
                return true;
            }
            (_, b'"') => {
                (self.text_from, self.state) = (self.rest.len(), State::InText { is_escaped: false })
            }
            (_, b' ' | b'\t' | b'\r' | b'\n') => {}
            (_, b':') => self.is_value_next = core::mem::take(&mut self.is_name),
            (_, byte) => {
                (self.is_value_next, self.is_name) = (false, false);
                match byte {
                    b'{' | b'[' => self.depth += 1,
                    b'}' | b']' => self.depth = self.depth.saturating_sub(1),
                    _ => {}
                }
            }
        }
        false
    }

    fn take_text(&mut self, bytes: &[u8]) -> Result<Taken, String> {
        let carried = self.carry.len();
        let mut all = core::mem::take(&mut self.carry);
        all.extend_from_slice(bytes);
        let (mut end, is_closed) = text_end(&all);
        if let Err(error) = core::str::from_utf8(&all[..end])
            && error.error_len().is_none()
            && !is_closed
        {
            end = error.valid_up_to();
        }
        let text = core::str::from_utf8(&all[..end]).map_err(|error| error.to_string())?;
        let text: String = serde_json::from_str(&format!("\"{text}\"")).map_err(|error| error.to_string())?;
        if is_closed {
            self.state = State::Outside;
            return Ok(Taken { bytes: end + 1 - carried, text, begins: false });
        }
        self.carry = all.split_off(end);
        Ok(Taken { bytes: bytes.len(), text, begins: false })
    }
}

/// Returns where a text ends, or where its first incomplete escape begins, and whether a quotation mark closes it.
fn text_end(text: &[u8]) -> (usize, bool) {
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        match byte {
            b'"' => return (at, true),
            b'\\' => {
                let rest = &text[at..];
                // The two halves of a letter stay together.
                let is_high_half =
                    matches!(rest, [_, b'u', b'd' | b'D', b'8' | b'9' | b'a' | b'b' | b'A' | b'B', ..]);
                let len = match rest {
                    [_, b'u', ..] if is_high_half && rest.get(6).is_none_or(|next| *next == b'\\') => 12,
                    [_, b'u', ..] => 6,
                    _ => 2,
                };
                if rest.len() < len {
                    return (at, false);
                }
                at += len;
            }
            _ => at += 1,
        }
    }
    (at, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The member's text and the rest, out of pieces of so many bytes.
    fn divided(object: &str, piece: usize) -> Result<(String, String), String> {
        let (mut splitter, mut text) = (Splitter::new("payload", 1000), String::new());
        for mut bytes in object.as_bytes().chunks(piece) {
            while !bytes.is_empty() {
                let taken = splitter.take(bytes)?;
                if taken.begins {
                    text.clear();
                }
                text += &taken.text;
                bytes = &bytes[taken.bytes..];
            }
        }
        Ok((text, String::from_utf8(splitter.rest()?.to_vec()).unwrap()))
    }

    #[test]
    fn the_text_of_a_member_is_what_a_reader_of_json_finds_however_it_is_cut() {
        for object in [
            r#"{"a":"payload","payload" : "x\n\"\\\u00e9ä€𝄞\ud834\udd1e","b":{"payload":"in\"ner"},"c":["payload"]}"#,
            r#"{"payload":"first","payload":"","d":1}"#,
            r#"{"payload":null,"payload":"second \\"}"#,
            r#"{"\"payload":"no","payload":"yes"}"#,
        ] {
            let mut tree: serde_json::Value = object.parse().unwrap();
            for piece in 1..object.len() {
                let (text, rest) = divided(object, piece).unwrap();
                assert_eq!(text, tree["payload"].as_str().unwrap(), "{object} by {piece}");
                let rest: serde_json::Value = rest.parse().unwrap();
                let mut wanted = tree.clone();
                wanted["payload"] = "".into();
                assert_eq!(rest, wanted, "{object} by {piece}");
            }
            tree["payload"].take();
        }
        let without = r#"{"payload":[1,"payload"],"x":"payload"}"#;
        assert_eq!(divided(without, 3).unwrap(), (String::new(), without.to_string()));
    }

    #[test]
    fn what_is_no_text_is_refused_however_it_is_cut() {
        for object in [
            r#"{"payload":"\ud834"}"#,
            r#"{"payload":"\ud834\n"}"#,
            r#"{"payload":"\x"}"#,
            "{\"payload\":\"\n\"}",
            r#"{"payload":"ends"#,
        ] {
            for piece in 1..object.len() {
                assert!(divided(object, piece).is_err(), "{object} by {piece}");
            }
        }
        let mut splitter = Splitter::new("payload", 1000);
        splitter.take(b"{\"payload\":\"").unwrap();
        assert!(splitter.take(b"a\xff\"").is_err(), "no UTF-8");
        assert!(
            divided(&format!("{{\"x\":\"{}\"}}", "a".repeat(2000)), 100).unwrap_err().contains("1000 bytes")
        );
    }
}
