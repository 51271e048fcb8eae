//! Why a link is not up, as one sentence.
//!
//! Always true: it is short, and whoever reads it can tell who has to do something.

use core::fmt::{self, Write as _};

/// The longest, in bytes.
const TEXT_BYTES_MAX: usize = 200;

/// One sentence, cut where it is too long.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Cause(heapless::String<TEXT_BYTES_MAX>);

impl Cause {
    /// With these words; what an upstream says of itself may be among them, so what no terminal should be
    /// sent is left out.
    pub fn new(words: fmt::Arguments<'_>) -> Self {
        let mut cut = Cut(heapless::String::new());
        // It never fails: what does not fit is cut.
        let _ = cut.write_fmt(words);
        Self(cut.0)
    }

    /// The sentence.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Takes as much as fits.
struct Cut(heapless::String<TEXT_BYTES_MAX>);

impl fmt::Write for Cut {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for letter in text.chars() {
            if self.0.push(if letter.is_control() { '?' } else { letter }).is_err() {
                break;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_cut_between_letters_and_shows_no_control_characters() {
        let long = "ü".repeat(500);
        let cause = Cause::new(format_args!("a\x1b[2J\n{long}"));
        assert!(cause.as_str().starts_with("a?[2J?üü") && cause.as_str().len() <= TEXT_BYTES_MAX);
    }
}
