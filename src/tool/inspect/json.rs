//! Just enough JSON to write a message: no library, and nothing is held but the line's fields.
//!
//! Always true: what is written is valid JSON in UTF-8 on one line; bytes that are no text become base64
//! under a name that says so, and are never replaced.

use std::io::{self, Write};

const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const HEX: &[u8; 16] = b"0123456789abcdef";

/// Writes a text with its quotes.
pub(super) fn text(out: &mut dyn Write, text: &str) -> io::Result<()> {
    out.write_all(b"\"")?;
    let (bytes, mut from) = (text.as_bytes(), 0);
    for (at, &byte) in bytes.iter().enumerate() {
        let escape: &[u8] = match byte {
            b'"' => b"\\\"",
            b'\\' => b"\\\\",
            b'\n' => b"\\n",
            b'\r' => b"\\r",
            b'\t' => b"\\t",
            // A terminal acts upon DEL as upon those below a space.
            0..0x20 | 0x7f => {
                &[b'\\', b'u', b'0', b'0', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]
            }
            _ => continue,
        };
        out.write_all(&bytes[from..at])?;
        out.write_all(escape)?;
        from = at + 1;
    }
    out.write_all(&bytes[from..])?;
    out.write_all(b"\"")
}

/// The fields of an object, one after the other.
pub(super) struct Object<'o> {
    out: &'o mut dyn Write,
    is_empty: bool,
}

impl<'o> Object<'o> {
    /// Opens an object.
    pub(super) fn open(out: &'o mut dyn Write) -> io::Result<Self> {
        out.write_all(b"{")?;
        Ok(Self { out, is_empty: true })
    }

    /// Closes it.
    pub(super) fn close(self) -> io::Result<()> {
        self.out.write_all(b"}")
    }

    /// Writes a field's name; what it returns is for the value.
    pub(super) fn field(&mut self, name: &str) -> io::Result<&mut dyn Write> {
        if !self.is_empty {
            self.out.write_all(b",")?;
        }
        self.is_empty = false;
        text(self.out, name)?;
        self.out.write_all(b":")?;
        Ok(self.out)
    }

    /// A field that is a number.
    pub(super) fn number(&mut self, name: &str, number: u64) -> io::Result<()> {
        write!(self.field(name)?, "{number}")
    }

    /// A field that is true or false.
    pub(super) fn truth(&mut self, name: &str, truth: bool) -> io::Result<()> {
        write!(self.field(name)?, "{truth}")
    }

    /// A field that is text if its bytes are, and else in base64 under a name of its own.
    pub(super) fn bytes(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        match std::str::from_utf8(bytes) {
            Ok(found) => text(self.field(name)?, found),
            Err(_) => self.base64(&format!("{name}_base64"), bytes),
        }
    }

    /// A field in base64.
    pub(super) fn base64(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut base64 = Base64::open(self.field(name)?)?;
        base64.put(bytes)?;
        base64.close()
    }
}

/// A text in base64, written in pieces.
pub(super) struct Base64<'o> {
    out: &'o mut dyn Write,
    /// Bytes that do not make three yet.
    left: heapless::Vec<u8, 3>,
}

impl<'o> Base64<'o> {
    /// Opens the text.
    pub(super) fn open(out: &'o mut dyn Write) -> io::Result<Self> {
        out.write_all(b"\"")?;
        Ok(Self { out, left: heapless::Vec::new() })
    }

    /// Adds bytes.
    pub(super) fn put(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !self.left.is_empty() {
            let Some((&byte, rest)) = bytes.split_first() else { return Ok(()) };
            bytes = rest;
            // It is emptied when it is full.
            let _ = self.left.push(byte);
            if self.left.is_full() {
                self.out.write_all(&quartet(&self.left))?;
                self.left.clear();
            }
        }
        let mut groups = bytes.chunks_exact(3);
        let mut quartets = heapless::Vec::<u8, 1024>::new();
        for group in &mut groups {
            if quartets.extend_from_slice(&quartet(group)).is_err() {
                self.out.write_all(&quartets)?;
                quartets.clear();
                let _ = quartets.extend_from_slice(&quartet(group));
            }
        }
        self.out.write_all(&quartets)?;
        let _ = self.left.extend_from_slice(groups.remainder());
        Ok(())
    }

    /// Closes the text.
    pub(super) fn close(self) -> io::Result<()> {
        if !self.left.is_empty() {
            self.out.write_all(&quartet(&self.left))?;
        }
        self.out.write_all(b"\"")
    }
}

/// Up to three bytes as four letters.
fn quartet(bytes: &[u8]) -> [u8; 4] {
    let byte = |at: usize| u32::from(bytes.get(at).copied().unwrap_or(0));
    let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
    let letter = |at: usize| {
        if at > bytes.len() { b'=' } else { BASE64[(bits >> (18 - 6 * at)) as usize & 63] }
    };
    [letter(0), letter(1), letter(2), letter(3)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> String {
        let mut out = Vec::new();
        write(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn texts_are_escaped() {
        let shown = written(|out| text(out, "a\"b\\c\n\r\t\0\u{1b}\u{7f}é🐇"));
        assert_eq!(shown, r#""a\"b\\c\n\r\t\u0000\u001b\u007fé🐇""#);
    }

    #[test]
    fn base64_is_that_of_the_rfc_however_it_is_cut() {
        let cases = [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")];
        for (plain, coded) in cases {
            for cut in 0..=plain.len() {
                let shown = written(|out| {
                    let mut base64 = Base64::open(out)?;
                    base64.put(&plain.as_bytes()[..cut])?;
                    base64.put(&plain.as_bytes()[cut..])?;
                    base64.close()
                });
                assert_eq!(shown, format!("\"{coded}\""));
            }
        }
        let long = written(|out| {
            let mut base64 = Base64::open(out)?;
            (0..10_000).try_for_each(|_| base64.put(b"foobar"))?;
            base64.put(&b"foobar".repeat(1000))?;
            base64.close()
        });
        assert_eq!(long, format!("\"{}\"", "Zm9vYmFy".repeat(11_000)));
    }

    #[test]
    fn objects_have_their_commas() {
        let shown = written(|out| {
            let mut object = Object::open(out)?;
            object.bytes("a", b"x")?;
            object.bytes("b", b"\xff")?;
            object.number("c", 7)?;
            object.truth("d", true)?;
            object.close()
        });
        assert_eq!(shown, r#"{"a":"x","b_base64":"/w==","c":7,"d":true}"#);
        assert_eq!(written(|out| Object::open(out)?.close()), "{}");
    }
}
