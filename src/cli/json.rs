//! Writing JSON objects field by field, through the management API's writer.
//!
//! The output is valid JSON in UTF-8 on one line. Bytes that are not UTF-8 are never replaced: they are
//! written as base64, with another field name.

use std::fmt;
use std::io::{self, Write};

use base64::engine::general_purpose::{GeneralPurpose, STANDARD};
use base64::write::EncoderWriter;

use leveret_management::json::{Json, Sink};

/// Writes JSON of any length to a file or a stream.
///
/// # Errors
/// The error of the stream.
pub fn write_to(out: &mut dyn Write, write: impl FnOnce(&mut Json<'_>)) -> io::Result<()> {
    let mut stream = Stream { out, failure: None };
    write(&mut Json::without_bound(&mut stream));
    stream.failure.map_or(Ok(()), Err)
}

struct Stream<'o> {
    out: &'o mut dyn Write,
    failure: Option<io::Error>,
}

impl fmt::Debug for Stream<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("failure", &self.failure).finish_non_exhaustive()
    }
}

impl Sink for Stream<'_> {
    fn put(&mut self, bytes: &[u8]) -> bool {
        if let Err(error) = self.out.write_all(bytes) {
            self.failure = Some(error);
        }
        self.failure.is_none()
    }
}

/// Writes the fields of an object.
pub struct Object<'j, 'o> {
    json: &'j mut Json<'o>,
    is_first: bool,
}

impl<'j, 'o> Object<'j, 'o> {
    /// Opens an object.
    pub fn open(json: &'j mut Json<'o>) -> Self {
        json.raw(b"{");
        Self { json, is_first: true }
    }

    /// Closes the object.
    pub fn close(self) {
        self.json.raw(b"}");
    }

    /// Writes a field's name. Returns the writer for the value.
    pub fn field(&mut self, name: &str) -> &mut Json<'o> {
        self.json.name(name, &mut self.is_first);
        self.json
    }

    /// Writes an integer field.
    pub fn number(&mut self, name: &str, number: u64) {
        self.field(name).number(number);
    }

    /// Writes a Boolean field.
    pub fn truth(&mut self, name: &str, truth: bool) {
        self.field(name).truth(truth);
    }

    /// Writes a string field.
    pub fn text(&mut self, name: &str, text: &str) {
        self.field(name).text(text);
    }

    /// Writes a string field if the bytes are UTF-8; else a base64 field with another name.
    pub fn bytes(&mut self, name: &str, bytes: &[u8]) {
        match std::str::from_utf8(bytes) {
            Ok(found) => self.text(name, found),
            Err(_) => self.base64(&format!("{name}_base64"), bytes),
        }
    }

    /// Writes a base64 field.
    pub fn base64(&mut self, name: &str, bytes: &[u8]) {
        let mut base64 = Base64::open(self.field(name));
        base64.put(bytes);
        base64.close();
    }
}

/// A base64 string that is written in pieces.
pub(crate) struct Base64<'j, 'o>(EncoderWriter<'static, GeneralPurpose, Raw<'j, 'o>>);

/// A writer of characters that need no escaping.
struct Raw<'j, 'o>(&'j mut Json<'o>);

impl Write for Raw<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.raw(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'j, 'o> Base64<'j, 'o> {
    /// Opens the string.
    pub(crate) fn open(json: &'j mut Json<'o>) -> Self {
        json.raw(b"\"");
        Self(EncoderWriter::new(Raw(json), &STANDARD))
    }

    /// Appends bytes.
    pub(crate) fn put(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).expect("writing JSON keeps its failures to itself");
    }

    /// Closes the string.
    pub(crate) fn close(mut self) {
        let json = self.0.finish().expect("writing JSON keeps its failures to itself").0;
        json.raw(b"\"");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut Json<'_>)) -> String {
        let mut out = Vec::new();
        write_to(&mut out, write).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn base64_is_that_of_the_rfc_however_it_is_cut() {
        let cases = [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")];
        for (plain, coded) in cases {
            for cut in 0..=plain.len() {
                let shown = written(|json| {
                    let mut base64 = Base64::open(json);
                    base64.put(&plain.as_bytes()[..cut]);
                    base64.put(&plain.as_bytes()[cut..]);
                    base64.close();
                });
                assert_eq!(shown, format!("\"{coded}\""));
            }
        }
    }

    #[test]
    fn objects_have_their_commas() {
        let shown = written(|json| {
            let mut object = Object::open(json);
            object.bytes("a", b"x");
            object.bytes("b", b"\xff");
            object.number("c", 7);
            object.truth("d", true);
            object.close();
        });
        assert_eq!(shown, r#"{"a":"x","b_base64":"/w==","c":7,"d":true}"#);
        assert_eq!(written(|json| Object::open(json).close()), "{}");
    }

    #[test]
    fn a_stream_that_takes_no_more_is_told_of() {
        let mut room = [0; 4];
        let failed = write_to(&mut room.as_mut_slice(), |json| json.texts(["one", "two"]));
        assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::WriteZero);
    }
}
