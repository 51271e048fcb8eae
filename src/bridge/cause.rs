//! Why a link or a rule of a bridge does not work.

use core::fmt::{self, Write as _};
use std::io;

/// Maximum length of a [`Cause`] in bytes.
const TEXT_BYTES_MAX: usize = 200;

/// Why a link or rule does not work: one sentence for the operator, of at most 200 bytes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Cause(heapless::String<TEXT_BYTES_MAX>);

impl Cause {
    /// Makes a cause from `text`. The text may quote the upstream, so each control character is replaced by `?`: it
    /// could be a terminal escape sequence.
    pub fn new(text: fmt::Arguments<'_>) -> Self {
        let mut writer = CauseWriter(heapless::String::new());
        // Never fails: text that does not fit is cut.
        let _ = writer.write_fmt(text);
        Self(writer.0)
    }

    /// Describes an error of writing to the upstream's socket.
    #[cold]
    pub fn of_write_error(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::new(format_args!("the upstream had closed the connection")),
            io::ErrorKind::ConnectionReset => Self::new(format_args!(
                "the connection was reset by the upstream, which may have restarted, or by a device in between"
            )),
            io::ErrorKind::TimedOut => Self::new(format_args!(
                "the upstream, or the network in between, did not acknowledge sent data in time"
            )),
            _ => Self::new(format_args!("writing to the upstream failed: {error}")),
        }
    }

    /// Returns the sentence.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A writer that keeps the first `TEXT_BYTES_MAX` bytes of a text, and replaces control characters by `?`.
struct CauseWriter(heapless::String<TEXT_BYTES_MAX>);

impl fmt::Write for CauseWriter {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            if self.0.push(if character.is_control() { '?' } else { character }).is_err() {
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
    fn write_errors_are_explained() {
        // EPIPE, ECONNRESET, ETIMEDOUT, and EIO as an example of an error without a text of its own.
        for (number, part) in [(32, "had closed"), (104, "was reset"), (110, "in time"), (5, "failed")] {
            let cause = Cause::of_write_error(&io::Error::from_raw_os_error(number));
            assert!(cause.as_str().contains(part), "{cause}");
            assert_eq!(cause.as_str().contains("os error"), number == 5, "{cause}");
        }
    }

    #[test]
    fn a_cause_is_cut_between_characters_and_contains_no_control_characters() {
        let long = "ü".repeat(500);
        let cause = Cause::new(format_args!("a\x1b[2J\n{long}"));
        assert!(cause.as_str().starts_with("a?[2J?üü") && cause.as_str().len() <= TEXT_BYTES_MAX);
    }
}
