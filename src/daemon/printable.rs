//! Texts that strangers chose, made fit to be shown.
//!
//! Always true: no control character, nothing invisible and nothing that turns the direction of writing gets
//! through, so nobody forges a line, speaks to the terminal, or makes a name look like another. Everything
//! else is shown as it is, in whatever script.

use std::fmt::{self, Write as _};

/// Marks without width that are part of no script's letters: they make two names look alike.
const INVISIBLE: [(char, char); 8] = [
    ('\u{34f}', '\u{34f}'),
    ('\u{115f}', '\u{1160}'),
    ('\u{17b4}', '\u{17b5}'),
    ('\u{180b}', '\u{180f}'),
    ('\u{3164}', '\u{3164}'),
    ('\u{fe00}', '\u{fe0f}'),
    ('\u{ffa0}', '\u{ffa0}'),
    ('\u{e0100}', '\u{e01ef}'),
];

/// Whether a character may be shown as it is.
pub fn is_printable(letter: char) -> bool {
    if letter.is_ascii() {
        return !letter.is_ascii_control();
    }
    // Behind another letter the standard library escapes what has no shape of its own (controls, formats,
    // separators, private and unassigned places), and leaves marks that combine.
    let mut room = [b'a'; 5];
    let len = 1 + letter.encode_utf8(&mut room[1..]).len();
    let is_shaped = str::from_utf8(&room[..len]).is_ok_and(|pair| pair.escape_debug().count() == 2);
    is_shaped && !INVISIBLE.iter().any(|(first, last)| (*first..=*last).contains(&letter))
}

/// A text with everything escaped that is not printable.
pub struct Printable<T>(pub T);

impl<T: fmt::Display> fmt::Display for Printable<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escaping(f), "{}", self.0)
    }
}

/// Escapes what passes through.
pub(super) struct Escaping<'w, W>(pub(super) &'w mut W);

impl<W: fmt::Write> fmt::Write for Escaping<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some(at) = rest.find(|letter| !is_printable(letter)) {
            self.0.write_str(&rest[..at])?;
            let mut letters = rest[at..].chars();
            if let Some(letter) = letters.next() {
                write!(self.0, "{}", letter.escape_default())?;
            }
            rest = letters.as_str();
        }
        self.0.write_str(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_turns_hides_or_separates_is_escaped() {
        let cases = [
            ("evil\u{202e}gpj.exe", "evil\\u{202e}gpj.exe"),
            ("\u{202a}\u{202b}\u{202c}\u{202d}", "\\u{202a}\\u{202b}\\u{202c}\\u{202d}"),
            ("\u{2066}\u{2067}\u{2068}\u{2069}", "\\u{2066}\\u{2067}\\u{2068}\\u{2069}"),
            ("\u{200e}\u{200f}\u{61c}", "\\u{200e}\\u{200f}\\u{61c}"),
            ("\u{200b}\u{200c}\u{200d}\u{2060}\u{feff}", "\\u{200b}\\u{200c}\\u{200d}\\u{2060}\\u{feff}"),
            ("a\u{2028}b\u{2029}c\u{85}d", "a\\u{2028}b\\u{2029}c\\u{85}d"),
            ("\u{e000}\u{f8ff}\u{10fffd}", "\\u{e000}\\u{f8ff}\\u{10fffd}"),
            ("\u{378}\u{ffff}\u{fdd0}", "\\u{378}\\u{ffff}\\u{fdd0}"),
            ("\u{ad}\u{a0}\u{3000}\u{180e}", "\\u{ad}\\u{a0}\\u{3000}\\u{180e}"),
            ("\u{e0041}\u{1d173}\u{fff9}", "\\u{e0041}\\u{1d173}\\u{fff9}"),
            ("\u{34f}\u{3164}\u{fe0f}\u{e0100}", "\\u{34f}\\u{3164}\\u{fe0f}\\u{e0100}"),
            ("a\x1b[2J\r\n\t\0\x7f", "a\\u{1b}[2J\\r\\n\\t\\u{0}\\u{7f}"),
        ];
        for (text, shown) in cases {
            assert_eq!(Printable(text).to_string(), shown);
        }
    }

    #[test]
    fn every_script_is_shown_as_it_is() {
        for text in [
            "it's \"q\\1\" {#}",
            "Grüße, Ελλάδα, Москва",
            "हिन्दी ภาษาไทย e\u{301}",
            "日本語 한국어 😀 ½ €",
            "עברית عربية",
        ] {
            assert_eq!(Printable(text).to_string(), text);
        }
    }
}
