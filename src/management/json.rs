//! Writes JSON into a buffer with a size limit.
//!
//! Rows go directly from the broker's records into the client's output. Building values first would hold everything
//! twice in memory.
//!
//! # Invariants
//! - Nothing is written beyond the limit, and [`Json::is_full`] tells the caller.
//! - What was written completely is valid JSON.

use core::fmt::Write;

use leveret_amqp::field::{Array, Table, Value};

/// Writes JSON values one after the other.
#[derive(Debug)]
pub struct Json<'o> {
    out: Out<'o>,
    is_full: bool,
}

#[derive(Debug)]
enum Out<'o> {
    Bounded { bytes: &'o mut Vec<u8>, bytes_max: usize },
    Endless(&'o mut dyn Sink),
}

/// A destination of JSON without a size limit.
pub trait Sink: core::fmt::Debug {
    /// Takes bytes. Returns `false` if it refused them; then it is not called again.
    fn put(&mut self, bytes: &[u8]) -> bool;
}

/// How field tables are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tables {
    /// As objects, as in the management API.
    Plain,
    /// As lists of name, type and value, as in rabbitmqctl.
    Typed,
    /// Not at all, because they do not fit.
    LeftOut,
}

impl<'o> Json<'o> {
    /// Writes after the contents of `out`, up to `bytes_max` in all.
    pub const fn new(bytes: &'o mut Vec<u8>, bytes_max: usize) -> Self {
        Self { out: Out::Bounded { bytes, bytes_max }, is_full: false }
    }

    /// Writes as much as the sink takes.
    pub const fn without_bound(sink: &'o mut dyn Sink) -> Self {
        Self { out: Out::Endless(sink), is_full: false }
    }

    /// Returns whether something did not fit, so that the JSON is incomplete.
    pub const fn is_full(&self) -> bool {
        self.is_full
    }

    /// Returns how many bytes still fit.
    pub const fn room_bytes(&self) -> usize {
        match &self.out {
            Out::Bounded { bytes, bytes_max } => bytes_max.saturating_sub(bytes.len()),
            Out::Endless(_) => usize::MAX,
        }
    }

    /// Writes bytes that are JSON already.
    #[inline(never)]
    pub fn raw(&mut self, bytes: &[u8]) {
        if self.is_full {
            return;
        }
        match &mut self.out {
            Out::Bounded { bytes: out, bytes_max } if out.len() + bytes.len() <= *bytes_max => {
                out.extend_from_slice(bytes);
            }
            Out::Bounded { .. } => self.is_full = true,
            Out::Endless(sink) => self.is_full = !sink.put(bytes),
        }
    }

    /// Writes a text with its quotes.
    #[inline(never)]
    pub fn text(&mut self, text: &str) {
        self.raw(b"\"");
        self.text_part(text.as_bytes());
        self.raw(b"\"");
    }

    /// Writes the inside of a text, or part of it.
    pub fn text_part(&mut self, bytes: &[u8]) {
        let mut from = 0;
        for (at, &byte) in bytes.iter().enumerate() {
            let escape: &[u8] = match byte {
                b'"' => b"\\\"",
                b'\\' => b"\\\\",
                b'\n' => b"\\n",
                b'\r' => b"\\r",
                b'\t' => b"\\t",
                0..0x20 | 0x7f => &[b'\\', b'u', b'0', b'0', hex(byte >> 4), hex(byte & 15)],
                _ => continue,
            };
            self.raw(&bytes[from..at]);
            self.raw(escape);
            from = at + 1;
        }
        self.raw(&bytes[from..]);
    }

    /// Writes a value's `Display` output in quotes.
    pub fn shown(&mut self, value: impl core::fmt::Display) {
        self.text(&value.to_string());
    }

    /// Writes a value's `Display` output, which must be JSON.
    pub fn shown_raw(&mut self, json: impl core::fmt::Display) {
        self.raw(json.to_string().as_bytes());
    }

    /// Writes a number.
    pub fn number(&mut self, number: impl Into<i128>) {
        let mut digits = heapless::String::<40>::new();
        // Forty bytes hold every value of the type.
        let _ = write!(digits, "{}", number.into());
        self.raw(digits.as_bytes());
    }

    /// Writes `true` or `false`.
    pub fn truth(&mut self, truth: bool) {
        self.raw(if truth { b"true" } else { b"false" });
    }

    /// Writes a name and its colon, after a comma unless it is the first.
    pub fn name(&mut self, name: &str, is_first: &mut bool) {
        self.comma(is_first);
        self.text(name);
        self.raw(b":");
    }

    /// Writes a comma, except before the first element.
    pub fn comma(&mut self, is_first: &mut bool) {
        if !core::mem::replace(is_first, false) {
            self.raw(b",");
        }
    }

    /// Writes a list of texts.
    pub fn texts(&mut self, texts: impl IntoIterator<Item: AsRef<str>>) {
        self.raw(b"[");
        let mut is_first = true;
        for text in texts {
            self.comma(&mut is_first);
            self.text(text.as_ref());
        }
        self.raw(b"]");
    }

    /// Writes a field table.
    pub fn table(&mut self, table: Table<'_>, how: Tables) {
        self.table_but(table, "", how);
    }

    /// Writes a field table without the entries of one name.
    pub fn table_but(&mut self, table: Table<'_>, without: &str, how: Tables) {
        let mut is_first = true;
        match how {
            Tables::LeftOut => self.text("too large to show"),
            Tables::Plain => {
                self.raw(b"{");
                let is_shown =
                    |(name, _): &(&[u8], Value<'_>)| without.is_empty() || *name != without.as_bytes();
                for (name, value) in table.iter().filter(is_shown) {
                    self.name(&String::from_utf8_lossy(name), &mut is_first);
                    self.value(value, how);
                }
                self.raw(b"}");
            }
            Tables::Typed => {
                self.raw(b"[");
                for (name, value) in table.iter() {
                    self.comma(&mut is_first);
                    self.raw(b"[");
                    self.text(&String::from_utf8_lossy(name));
                    self.raw(b",");
                    self.typed(value);
                    self.raw(b"]");
                }
                self.raw(b"]");
            }
        }
    }

    fn array(&mut self, array: Array<'_>, how: Tables) {
        self.raw(b"[");
        let mut is_first = true;
        for value in array.iter() {
            self.comma(&mut is_first);
            if how == Tables::Typed {
                self.raw(b"[");
                self.typed(value);
                self.raw(b"]");
            } else {
                self.value(value, how);
            }
        }
        self.raw(b"]");
    }

    /// Writes the name of the type and the value.
    fn typed(&mut self, value: Value<'_>) {
        self.text(value.type_name());
        self.raw(b",");
        self.value(value, Tables::Typed);
    }

    /// Writes a value of a field table.
    pub fn value(&mut self, value: Value<'_>, how: Tables) {
        // A table that does not fit is not processed to its end.
        if self.is_full {
            return;
        }
        match value {
            Value::LongStr(bytes) | Value::Binary(bytes) => self.text(&String::from_utf8_lossy(bytes)),
            Value::Bool(truth) => self.truth(truth),
            Value::Timestamp(seconds) => self.number(seconds),
            Value::Float(number) => self.raw(format!("{number:?}").as_bytes()),
            Value::Double(number) => self.raw(format!("{number:?}").as_bytes()),
            Value::Table(table) => self.table(table, how),
            Value::Array(array) => self.array(array, how),
            other => match other.as_integer() {
                Some(number) => self.number(number),
                None => self.raw(b"null"),
            },
        }
    }
}

const fn hex(digit: u8) -> u8 {
    b"0123456789abcdef"[digit as usize]
}

#[cfg(test)]
mod tests {
    use super::*;
    use leveret_amqp::{TableWriter, Writer};

    fn written(write: impl FnOnce(&mut Json<'_>)) -> String {
        let mut out = Vec::new();
        let mut json = Json::new(&mut out, 4096);
        write(&mut json);
        assert!(!json.is_full());
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn all_texts_survive_writing_and_parsing() {
        let text: String = (0..0x100).filter_map(char::from_u32).chain(['é', '😀']).collect();
        let written = written(|json| json.text(&text));
        assert_eq!(serde_json::from_str::<String>(&written).unwrap(), text);
        assert!(!written.contains('\u{7f}'));
    }

    #[test]
    fn nothing_is_written_beyond_the_limit() {
        for room in 0..20 {
            let mut out = Vec::new();
            let mut json = Json::new(&mut out, room);
            json.texts(["one", "two\n", "three"]);
            assert_eq!(json.is_full(), room < 22, "{room}");
            assert!(out.len() <= room);
        }
    }

    #[test]
    fn tables_are_objects_or_name_type_and_value() {
        let mut bytes = [0; 256];
        let mut writer = Writer::new(&mut bytes);
        let fill = |table: &mut TableWriter<'_, '_>| {
            table.int("x-max-length", 10)?;
            table.text("x-overflow", "reject-publish")?;
            table.table("t", |inner| inner.bool("a", true))?;
            table.array("l", |array| {
                array.int(1)?;
                array.text("two")
            })?;
            table.double("d", 1.0)?;
            table.void("v")
        };
        writer.table(fill).unwrap();
        let end = writer.at();
        let table = Table::parse(&bytes[4..end]).unwrap();
        assert_eq!(
            written(|json| json.table(table, Tables::Plain)),
            r#"{"x-max-length":10,"x-overflow":"reject-publish","t":{"a":true},"#.to_string()
                + r#""l":[1,"two"],"d":1.0,"v":null}"#
        );
        assert_eq!(
            written(|json| json.table(table, Tables::Typed)),
            r#"[["x-max-length","signedint",10],["x-overflow","longstr","reject-publish"],"#.to_string()
                + r#"["t","table",[["a","bool",true]]],["l","array",[["signedint",1],["longstr","two"]]],"#
                + r#"["d","double",1.0],["v","void",null]]"#
        );
    }
}
