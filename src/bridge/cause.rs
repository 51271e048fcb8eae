//! Why a link is not up, as one sentence.
//!
//! Always true: it is short, and whoever reads it can tell who has to do something.

use core::fmt::{self, Write as _};
use std::io;

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

    /// Writing to an upstream has failed.
    #[cold]
    pub fn of_writing(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::new(format_args!("it had closed the connection")),
            io::ErrorKind::ConnectionReset => Self::new(format_args!(
                "the connection was cut: it crashed, was restarted, or something on the way did that"
            )),
            io::ErrorKind::TimedOut => {
                Self::new(format_args!("what was sent was never received: it, or the way to it, is gone"))
            }
            _ => Self::new(format_args!("writing to it failed: {error}")),
        }
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
    fn what_the_system_says_of_writing_is_said_in_words() {
        // EPIPE, ECONNRESET, ETIMEDOUT, and one that no word is kept for: EIO.
        for (number, part) in [(32, "had closed"), (104, "was cut"), (110, "never received"), (5, "failed")] {
            let said = Cause::of_writing(&io::Error::from_raw_os_error(number));
            assert!(said.as_str().contains(part), "{said}");
            assert_eq!(said.as_str().contains("os error"), number == 5, "{said}");
        }
    }

    #[test]
    fn it_is_cut_between_letters_and_shows_no_control_characters() {
        let long = "ü".repeat(500);
        let cause = Cause::new(format_args!("a\x1b[2J\n{long}"));
        assert!(cause.as_str().starts_with("a?[2J?üü") && cause.as_str().len() <= TEXT_BYTES_MAX);
    }
}
