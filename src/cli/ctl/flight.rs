//! Prints the last events of a broker from the file of its flight recorder. The file is read directly,
//! because often the broker does not reply any more.
//!
//! # Invariants
//! - The file is only read, even while a broker writes to it.
//! - Texts are escaped, because clients choose parts of them and could forge a line or control a terminal.
//! - Missing events are reported.

use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

use leveret_core::flight::{self, Event, EventKind, FILE_BYTES};
use leveret_daemon::logging::Printable;
use leveret_management::bridges::day_of;

/// Formats the events, grouped by process.
pub(super) fn shown(path: &Path) -> io::Result<String> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let mut file = File::options().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    let mut bytes = Vec::new();
    Read::by_ref(&mut file).take(FILE_BYTES as u64).read_to_end(&mut bytes)?;
    let events = flight::read(&bytes).map_err(|foreign| io::Error::other(foreign.to_string()))?;
    // A running broker has the lock, even while it is suspended. This attempt to take the lock does not wait.
    let is_running = flock(&file, FlockOperation::NonBlockingLockShared) == Err(Errno::WOULDBLOCK);
    drop(file);
    let mut text = String::new();
    for run in events.chunk_by(|one, next| one.stamp.run == next.stamp.run) {
        // Writing into a String cannot fail.
        let _ = write!(text, "{}", RunEvents { events: run, is_last: is_last(run, &events), is_running });
    }
    if text.is_empty() {
        text.push_str("(none)\n");
    }
    Ok(text)
}

fn is_last(run: &[Event], events: &[Event]) -> bool {
    run.last().map(|event| event.stamp.run) == events.last().map(|event| event.stamp.run)
}

/// The events of one process.
struct RunEvents<'e> {
    events: &'e [Event],
    is_last: bool,
    is_running: bool,
}

impl fmt::Display for RunEvents<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Some(first), Some(last)) = (self.events.first(), self.events.last()) else { return Ok(()) };
        let end = match last.kind {
            EventKind::Ended => "it ended by itself",
            _ if self.is_last && self.is_running => "it goes on",
            _ => "it ended without a record: by a signal, the watchdog or a fault",
        };
        writeln!(f, "Run {}, {} events; {end}", first.stamp.run, self.events.len())?;
        if first.kind != EventKind::Started {
            writeln!(f, "  (earlier events are overwritten)")?;
        }
        let mut expected = first.stamp.number;
        for event in self.events {
            let missing = event.stamp.number.saturating_sub(expected);
            if missing > 0 {
                writeln!(f, "  ({missing} events are overwritten or damaged)")?;
            }
            expected = event.stamp.number.saturating_add(1);
            writeln!(f, "  {}", EventLine(event))?;
        }
        Ok(())
    }
}

/// An event, formatted as a line.
struct EventLine<'e>(&'e Event);

impl fmt::Display for EventLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Event { stamp, kind, text, is_cut } = self.0;
        let since_start = format!("+{}.{:03}", stamp.run_ms / 1000, stamp.run_ms % 1000);
        write!(f, "{} {since_start:>10} {:5} {}", Date(stamp.unix_ms), kind.word(), Printable(text))?;
        if *is_cut { f.write_str("...") } else { Ok(()) }
    }
}

/// Milliseconds since 1970, formatted as a date and a time in UTC.
struct Date(u64);

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (s, ms) = (self.0 / 1000, self.0 % 1000);
        let (year, month, day) = day_of(s / 86_400);
        let (hour, minute) = (s / 3600 % 24, s / 60 % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{:02}.{ms:03}Z", s % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (s, shown) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (951_868_799, "2000-02-29T23:59:59.000Z"),
            (1_709_251_200, "2024-03-01T00:00:00.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(Date(s * 1000).to_string(), shown);
        }
        // A number in a damaged file must not cause a panic.
        assert!(Date(u64::MAX).to_string().ends_with('Z'));
    }
}
