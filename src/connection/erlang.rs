//! Formats bytes in error texts as RabbitMQ does.
//!
//! Clients and their users compare error texts. RabbitMQ's texts contain parts of the invalid frame in
//! Erlang's notation, including its line breaks.
//!
//! # Invariants
//! - Nothing here fails or allocates.
//! - Bytes of a client appear unescaped in a text only if they are printable ASCII.

use core::fmt::{self, Display, Formatter, Write as _};

/// A refused frame, as in `type 1, first 16 octets = <<0,60,0,40,...>>`.
pub(super) struct FrameSnippet<'a> {
    pub(super) raw_kind: u8,
    pub(super) payload: &'a [u8],
}

/// A refused frame followed by `: {invalid_frame_end_marker,0}`.
pub(super) struct BadEnd<'a> {
    pub(super) snippet: FrameSnippet<'a>,
    pub(super) found: u8,
}

/// Bytes as numbers, as in `<<0,60,0,40>>`.
pub(super) struct Numbers<'a>(pub(super) &'a [u8]);

const SNIPPET_BYTES: usize = 16;
/// The column at which Erlang's pretty printer breaks lines.
const COLUMNS: usize = 80;

impl Display for FrameSnippet<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.write(f).map(|_| ())
    }
}

impl FrameSnippet<'_> {
    /// Writes the frame. Returns the column after it.
    fn write(&self, f: &mut Formatter<'_>) -> Result<usize, fmt::Error> {
        let (which, shown) = match self.payload.get(..SNIPPET_BYTES) {
            Some(first) if self.payload.len() > SNIPPET_BYTES => ("first 16", first),
            _ => ("all", self.payload),
        };
        write!(f, "type {}, {which} octets = <<", self.raw_kind)?;
        let column = "type , ".len() + digits(self.raw_kind) + which.len() + " octets = <<".len();
        let column = if !shown.is_empty() && shown.iter().all(|octet| is_printable(*octet)) {
            write_text(f, shown, column)?
        } else {
            write_numbers(f, shown, column)?
        };
        f.write_str(">>")?;
        Ok(column + 2)
    }
}

impl Display for BadEnd<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let column = self.snippet.write(f)? + 2;
        f.write_str(": {invalid_frame_end_marker,")?;
        // The tuple stays on one line if it fits; Erlang breaks before its second element.
        let unbroken_columns = "{invalid_frame_end_marker,}".len() + digits(self.found);
        if column + unbroken_columns >= COLUMNS {
            write!(f, "\n{:indent$}", "", indent = column + 1)?;
        }
        write!(f, "{}}}", self.found)
    }
}

impl Display for Numbers<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("<<")?;
        for (index, octet) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{octet}")?;
        }
        f.write_str(">>")
    }
}

fn write_numbers(f: &mut Formatter<'_>, octets: &[u8], start: usize) -> Result<usize, fmt::Error> {
    let mut column = start;
    for (index, octet) in octets.iter().enumerate() {
        let is_last = index + 1 == octets.len();
        let width = digits(*octet) + usize::from(!is_last);
        if column + width >= COLUMNS {
            write!(f, "\n{:start$}", "")?;
            column = start;
        }
        write!(f, "{octet}{}", if is_last { "" } else { "," })?;
        column += width;
    }
    Ok(column)
}

fn write_text(f: &mut Formatter<'_>, octets: &[u8], start: usize) -> Result<usize, fmt::Error> {
    let mut column = start + 2;
    f.write_char('"')?;
    for octet in octets {
        let escaped = match octet {
            b'"' => '"',
            b'\\' => '\\',
            b'\n' => 'n',
            b'\r' => 'r',
            b'\t' => 't',
            0x08 => 'b',
            0x0B => 'v',
            0x0C => 'f',
            0x1B => 'e',
            _ => {
                f.write_char(char::from(*octet))?;
                column += 1;
                continue;
            }
        };
        write!(f, "\\{escaped}")?;
        column += 2;
    }
    f.write_char('"')?;
    Ok(column)
}

/// Returns whether an octet is written as a character. Erlang also prints the upper half of Latin-1, but a
/// reply text is UTF-8, so these octets are written as numbers.
fn is_printable(octet: u8) -> bool {
    matches!(octet, 0x20..=0x7E | 0x08..=0x0D | 0x1B)
}

fn digits(octet: u8) -> usize {
    match octet {
        0..=9 => 1,
        10..=99 => 2,
        _ => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bad_end(raw_kind: u8, payload: &[u8], found: u8) -> String {
        BadEnd { snippet: FrameSnippet { raw_kind, payload }, found }.to_string()
    }

    #[test]
    fn snippets_are_as_erlang_prints_them() {
        let snippet = |raw_kind, payload| FrameSnippet { raw_kind, payload }.to_string();
        assert_eq!(snippet(3, b""), "type 3, all octets = <<>>");
        assert_eq!(snippet(3, b"abcdefghijklmnop"), "type 3, all octets = <<\"abcdefghijklmnop\">>");
        assert_eq!(snippet(3, b"abcdefghijklmnopq"), "type 3, first 16 octets = <<\"abcdefghijklmnop\">>");
        assert_eq!(
            snippet(3, b"\x08\t\n\x0b\x0c\r\x1b\"\\"),
            "type 3, all octets = <<\"\\b\\t\\n\\v\\f\\r\\e\\\"\\\\\">>"
        );
        assert_eq!(snippet(1, b"hel\x7f"), "type 1, all octets = <<104,101,108,127>>");
    }

    #[test]
    fn lines_break_where_erlang_breaks_them() {
        assert_eq!(
            bad_end(1, &[7; 11], 206),
            "type 1, all octets = <<7,7,7,7,7,7,7,7,7,7,7>>: {invalid_frame_end_marker,206}"
        );
        assert_eq!(
            bad_end(1, &[7; 12], 206),
            format!(
                "type 1, all octets = <<7,7,7,7,7,7,7,7,7,7,7,7>>: {{invalid_frame_end_marker,\n{}206}}",
                " ".repeat(51)
            )
        );
        assert_eq!(
            bad_end(1, &[128; 17], 0),
            format!(
                "type 1, first 16 octets = <<{}\n{}128,128,128,128>>: {{invalid_frame_end_marker,0}}",
                "128,".repeat(12),
                " ".repeat(28)
            )
        );
        let mut six = [128; 17];
        six[..6].fill(7);
        assert_eq!(
            bad_end(1, &six, 0),
            format!(
                "type 1, first 16 octets = <<{}{}128>>: {{invalid_frame_end_marker,\n{}0}}",
                "7,".repeat(6),
                "128,".repeat(9),
                " ".repeat(84)
            )
        );
    }
}
