//! The progress of long work, as one line on a terminal that is overwritten: amount, rate and time left.
//!
//! # Invariants
//! - Nothing is written unless standard error is a terminal.
//! - Nothing is written in the first half second, and at most four lines a second.
//! - The line is removed before the work ends, so that it does not mix with other output.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Read, Write};
use std::time::{Duration, Instant};

use leveret_core::limits::{Megabytes, grouped};

/// Work that takes less time shows no progress.
const QUIET_FOR: Duration = Duration::from_millis(500);
const UPDATE_INTERVAL: Duration = Duration::from_millis(250);
/// The width of a terminal that does not tell its own.
const COLUMNS_DEFAULT: usize = 80;

/// The whole of the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Total {
    /// Bytes; 0 if their number is not known.
    Bytes(u64),
    /// Messages. Their bytes are shown, too.
    Messages(u64),
}

/// Counts finished work, and writes the line about it.
pub(crate) struct Progress {
    /// Such as "Backup".
    title: &'static str,
    total: Total,
    bytes: u64,
    messages: u64,
    started: Instant,
    /// When the line may be written next; `None` if standard error is no terminal.
    next: Option<Instant>,
    /// Number of characters of the line on the terminal.
    shown: usize,
}

impl Progress {
    /// Begins to measure the time.
    pub(crate) fn start(title: &'static str, total: Total) -> Self {
        let started = Instant::now();
        let next = io::stderr().is_terminal().then(|| started + QUIET_FOR);
        Self { title, total, bytes: 0, messages: 0, started, next, shown: 0 }
    }

    /// Like [`Self::start`], for work whose output goes to standard output. If that is a terminal, no progress is shown,
    /// because it would stand between the output.
    pub(crate) fn beside_output(title: &'static str, total: Total) -> Self {
        let mut progress = Self::start(title, total);
        if io::stdout().is_terminal() {
            progress.next = None;
        }
        progress
    }

    /// Whether the progress may be shown. A total that is costly to find is needed only then.
    pub(crate) const fn is_shown(&self) -> bool {
        self.next.is_some()
    }

    /// Sets the total.
    pub(crate) const fn expect(&mut self, total: Total) {
        self.total = total;
    }

    /// Adds work that is done, and updates the line if it is time.
    pub(crate) fn add(&mut self, bytes: u64, messages: u64) {
        self.bytes += bytes;
        self.messages += messages;
        let Some(next) = self.next else { return };
        let now = Instant::now();
        if now >= next {
            self.next = Some(now + UPDATE_INTERVAL);
            let line = self.line(now - self.started);
            self.show(&line);
        }
    }

    /// Shows what happens to the whole, such as "syncing". Nothing is shown in the first half second.
    pub(crate) fn step(&mut self, text: &str) {
        if self.next.is_some() && self.started.elapsed() >= QUIET_FOR {
            self.show(&format!("{}: {text} ...", self.title));
        }
    }

    /// Removes the line, so that another one can be printed.
    pub(crate) fn clear(&mut self) {
        if self.shown > 0 {
            // A terminal that is gone is no reason to end the work.
            let _ = write!(io::stderr(), "\r{:1$}\r", "", self.shown);
            self.shown = 0;
        }
    }

    fn show(&mut self, line: &str) {
        // A line that wraps could not be overwritten.
        // Serial consoles say that they have 0 columns.
        let said = rustix::termios::tcgetwinsize(io::stderr()).map_or(0, |size| usize::from(size.ws_col));
        let columns = if said == 0 { COLUMNS_DEFAULT } else { said };
        let line: String = line.chars().take(columns - 1).collect();
        let length = line.chars().count();
        // Blanks remove the rest of a longer line. Not every terminal knows an escape sequence for that.
        let _ = write!(io::stderr(), "\r{line:0$}", self.shown.min(columns - 1));
        self.shown = length;
    }

    /// Returns the line after this time.
    fn line(&self, elapsed: Duration) -> String {
        let seconds = elapsed.as_secs_f64();
        let rate = if seconds > 0.0 { (self.bytes as f64 / seconds) as u64 } else { 0 };
        let (done, total) = match self.total {
            Total::Bytes(total) => (self.bytes, total),
            Total::Messages(total) => (self.messages, total),
        };
        let mut line = match self.total {
            Total::Bytes(0) => format!("{}: {}", self.title, Megabytes(self.bytes)),
            Total::Bytes(total) => {
                format!("{}: {} of {}", self.title, Megabytes(self.bytes), Megabytes(total))
            }
            Total::Messages(total) => {
                let (done, total) = (grouped(self.messages), grouped(total));
                format!("{}: {done} of {total} messages, {}", self.title, Megabytes(self.bytes))
            }
        };
        // Writing into a String cannot fail.
        let _ = write!(line, ", {}/s", Megabytes(rate));
        if done > 0 && total > done {
            let left = seconds / done as f64 * (total - done) as f64;
            let _ = write!(line, ", {} left", clock(left.round() as u64));
        }
        line
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Formats a duration as minutes and seconds, or with hours in front.
fn clock(seconds: u64) -> String {
    let (hours, minutes, seconds) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
}

/// A reader that adds the bytes that were read.
pub(crate) struct Counted<'p, R> {
    inner: R,
    progress: &'p mut Progress,
}

impl<'p, R: Read> Counted<'p, R> {
    pub(crate) const fn new(inner: R, progress: &'p mut Progress) -> Self {
        Self { inner, progress }
    }
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.progress.add(count as u64, 0);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(total: Total, bytes: u64, messages: u64, seconds: u64) -> String {
        let mut progress = Progress::start("Backup", total);
        (progress.bytes, progress.messages) = (bytes, messages);
        progress.line(Duration::from_secs(seconds))
    }

    #[test]
    fn a_line_has_amount_rate_and_time_left() {
        let found = line(Total::Bytes(40_000_000), 10_000_000, 0, 5);
        assert_eq!(found, "Backup: 10.0 MB of 40.0 MB, 2.0 MB/s, 0:15 left");
        let found = line(Total::Messages(3_000_000), 5_000_000, 1_000, 2);
        assert_eq!(found, "Backup: 1,000 of 3,000,000 messages, 5.0 MB, 2.5 MB/s, 1:39:58 left");
        // The end of work whose total was estimated too low has no time left.
        assert_eq!(line(Total::Bytes(5), 10_000_000, 0, 10), "Backup: 10.0 MB of 0.1 MB, 1.0 MB/s");
        assert_eq!(line(Total::Bytes(0), 10_000_000, 0, 10), "Backup: 10.0 MB, 1.0 MB/s");
        assert_eq!(line(Total::Bytes(10), 0, 0, 0), "Backup: 0.0 MB of 0.1 MB, 0.0 MB/s");
    }
}
