//! Where log lines go and what they look like: standard error, in the shape its reader wants.
//!
//! A person gets level and text. The journal gets the level as `<n>` in front, which it takes off, and stamps
//! the time itself. Anything else, a file say, gets the time too. `RUST_LOG` goes before the configuration.
//!
//! Always true: one record is one line, and no control character gets into it, for texts contain what peers
//! sent: nobody forges an entry or speaks to the terminal that shows it.

use std::fmt;
use std::fs;
use std::io::{self, IsTerminal, Write as _};
use std::os::unix::fs::MetadataExt;

use env_logger::Builder;
use env_logger::fmt::Formatter as Line;
use log::{Level, LevelFilter, Record};

/// Starts logging; later calls change nothing.
pub fn start(level: LevelFilter) {
    let mut builder = Builder::new();
    // What is let through is set beside it, so that it can be changed; RUST_LOG goes before it.
    builder.filter_level(if is_fixed() { level } else { LevelFilter::Trace }).parse_default_env();
    if is_journal() {
        builder.format(write_for_journal);
    } else if io::stderr().is_terminal() {
        builder.format(write_for_person);
    } else {
        builder.format(write_for_file);
    }
    // It fails only when there is a logger already, and then there is nothing to do.
    drop(builder.try_init());
    set_level(level);
}

/// Changes how much is logged, unless RUST_LOG says it.
pub fn set_level(level: LevelFilter) {
    if !is_fixed() {
        log::set_max_level(level);
    }
}

fn is_fixed() -> bool {
    std::env::var_os("RUST_LOG").is_some()
}

/// Says why the program ends, whether logging was started or not.
pub fn say_fatal(error: &dyn std::error::Error) {
    let mark = if is_journal() { "<3>" } else { "leveret: " };
    // Nobody is left to be told when standard error is closed.
    let _ = writeln!(io::stderr(), "{mark}{error}");
}

/// Whether standard error is the very stream that systemd connected to the journal.
fn is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    fs::metadata("/proc/self/fd/2").is_ok_and(|file| stream == format!("{}:{}", file.dev(), file.ino()))
}

fn write_for_journal(out: &mut Line, record: &Record<'_>) -> io::Result<()> {
    writeln!(out, "<{}>{}", priority(record.level()), Printable(record.args()))
}

fn write_for_person(out: &mut Line, record: &Record<'_>) -> io::Result<()> {
    writeln!(out, "{:5} {}", record.level(), Printable(record.args()))
}

fn write_for_file(out: &mut Line, record: &Record<'_>) -> io::Result<()> {
    writeln!(out, "{} {:5} {}", out.timestamp_millis(), record.level(), Printable(record.args()))
}

/// A text with its control characters escaped.
struct Printable<'a>(&'a fmt::Arguments<'a>);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::write(&mut Escaping(f), *self.0)
    }
}

struct Escaping<'a, 'f>(&'a mut fmt::Formatter<'f>);

impl fmt::Write for Escaping<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for piece in text.split_inclusive(char::is_control) {
            match piece.char_indices().next_back() {
                Some((at, last)) if last.is_control() => {
                    write!(self.0, "{}{}", &piece[..at], last.escape_default())?;
                }
                _ => self.0.write_str(piece)?,
            }
        }
        Ok(())
    }
}

/// The syslog priority of a level.
const fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}
