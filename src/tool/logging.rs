//! Where log lines go and what they look like: standard error, in the shape its reader wants.
//!
//! A person gets level and text. The journal gets the level as `<n>` in front, which it takes off, and stamps
//! the time itself. Anything else, a file say, gets the time too. `RUST_LOG` goes before the configuration.

use std::fs;
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::MetadataExt;

use env_logger::Builder;
use env_logger::fmt::Formatter;
use log::{Level, LevelFilter, Record};

/// Starts logging; later calls change nothing.
pub fn start(level: LevelFilter) {
    let mut builder = Builder::new();
    builder.filter_level(level).parse_default_env();
    if is_journal() {
        builder.format(write_for_journal);
    } else if io::stderr().is_terminal() {
        builder.format(write_for_person);
    } else {
        builder.format(write_for_file);
    }
    // It fails only when there is a logger already, and then there is nothing to do.
    drop(builder.try_init());
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

fn write_for_journal(out: &mut Formatter, record: &Record<'_>) -> io::Result<()> {
    // A line end in a text would start an entry of its own, without its level.
    let text = record.args().to_string();
    for line in text.lines() {
        writeln!(out, "<{}>{line}", priority(record.level()))?;
    }
    Ok(())
}

fn write_for_person(out: &mut Formatter, record: &Record<'_>) -> io::Result<()> {
    writeln!(out, "{:5} {}", record.level(), record.args())
}

fn write_for_file(out: &mut Formatter, record: &Record<'_>) -> io::Result<()> {
    writeln!(out, "{} {:5} {}", out.timestamp_millis(), record.level(), record.args())
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
