//! Where log lines go and what they look like: standard error, in the shape its reader wants.
//!
//! A person gets level and text. The journal gets the level as `<n>` in front, which it takes off, and stamps
//! the time itself. Anything else, a file say, gets the time too. `RUST_LOG` goes before the configuration.
//!
//! Always true: one record is one line of at most [`LINE_BYTES_MAX`] bytes of text, and nothing unprintable
//! gets into it, for texts contain what peers sent: nobody forges an entry or speaks to the terminal that
//! shows it. Whoever logs does not wait ([`super::log_writer`]); who ends the program waits for the last
//! lines, a second at most.
//!
//! What is logged is recorded as well ([`super::flight_recorder`]), where that is wanted, and from `info` on
//! whatever the level of the log: lines cost a card, records do not. So a line is made in one place.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt;
use std::fs;
use std::io::{self, IsTerminal, Write as _};
use std::os::unix::fs::MetadataExt;
use std::panic::{self, PanicHookInfo};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use env_logger::fmt::Formatter as Line;
use env_logger::{Builder, Target};

use super::flight_recorder;
use super::log_writer::WRITER;
use super::printable::Escaping;
use leveret_core::flight::Kind;
use leveret_core::log_limiter::RECORDED_ONLY;

/// Bytes of a line's text; what is longer is cut, and marked so.
const LINE_BYTES_MAX: usize = 1024;
/// What stands behind a text that was cut.
const CUT_MARK: &str = "... [cut]";
/// How long the end of the program waits for standard error to take the last lines.
const LAST_LINES: Duration = Duration::from_millis(900);

/// Up to which level lines are printed.
static PRINTED: AtomicUsize = AtomicUsize::new(log::LevelFilter::Off as usize);

/// Starts logging, and recording where a file is named for it; later calls change nothing.
///
/// # Errors
/// The system starts no more threads.
pub fn start(level: log::LevelFilter, recorder: Option<&Path>) -> io::Result<()> {
    WRITER.start()?;
    let mut builder = Builder::new();
    // What is let through is set beside it, so that it can be changed; RUST_LOG goes before it.
    builder.filter_level(if is_fixed() { level } else { log::LevelFilter::Trace }).parse_default_env();
    if is_journal() {
        builder.format(write_for_journal);
    } else if io::stderr().is_terminal() {
        builder.format(write_for_person);
    } else {
        builder.format(write_for_file);
    }
    builder.target(Target::Pipe(Box::new(Out)));
    let printer = builder.build();
    let level = if is_fixed() { printer.filter() } else { level };
    // It fails only when there is a logger already, and then there is nothing to do.
    drop(log::set_boxed_logger(Box::new(Lines(printer))));
    let recorded = recorder.map(|file| (file, flight_recorder::start(file)));
    show_up_to(level);
    panic::set_hook(Box::new(log_panic));
    match recorded {
        None | Some((_, Ok(false))) => {}
        Some((_, Ok(true))) => log::warn!(
            "the broker before this one was ended without a word (by a signal, the watchdog or a fault): \
             leveretctl report shows what happened last"
        ),
        Some((file, Err(error))) => log::warn!(
            "nothing is recorded in flight_recorder, {}: {error}; the broker runs on without",
            file.display()
        ),
    }
    Ok(())
}

/// Changes how much is logged, unless RUST_LOG says it.
pub fn set_level(level: log::LevelFilter) {
    if !is_fixed() {
        show_up_to(level);
    }
}

fn show_up_to(level: log::LevelFilter) {
    PRINTED.store(level as usize, Ordering::Relaxed);
    let recorded = if flight_recorder::is_on() { log::LevelFilter::Info } else { log::LevelFilter::Off };
    log::set_max_level(level.max(recorded));
}

/// What is made of a line: it is recorded, printed, or both.
struct Lines(env_logger::Logger);

impl Lines {
    fn is_printed(metadata: &log::Metadata<'_>) -> bool {
        metadata.level() as usize <= PRINTED.load(Ordering::Relaxed) && metadata.target() != RECORDED_ONLY
    }
}

impl log::Log for Lines {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        match metadata.target() {
            RECORDED_ONLY => flight_recorder::is_on(),
            _ => Self::is_printed(metadata) && self.0.enabled(metadata),
        }
    }

    fn log(&self, record: &log::Record<'_>) {
        if let Some(kind) = Kind::of(record.level()) {
            flight_recorder::record(kind, *record.args());
        }
        if Self::is_printed(record.metadata()) {
            self.0.log(record);
        }
    }

    fn flush(&self) {}
}

fn is_fixed() -> bool {
    std::env::var_os("RUST_LOG").is_some()
}

/// Says why the program ends, whether logging was started or not.
pub fn log_fatal(error: &dyn std::error::Error) {
    if WRITER.is_started() {
        return log_last_words(Instant::now() + LAST_LINES, format_args!("{error}"));
    }
    // Nobody is left to be told when standard error is closed.
    let _ = writeln!(io::stderr(), "{}{error}", mark_of_last());
}

/// Waits until the last lines are out, a second at most.
pub fn finish() {
    flight_recorder::record(Kind::Ended, format_args!("the process ends"));
    WRITER.flush(Instant::now() + LAST_LINES);
}

/// Says how a thread panicked: as the standard library does, but it would wait for standard error.
fn log_panic(panicked: &PanicHookInfo<'_>) {
    let thread = thread::current();
    let name = thread.name().unwrap_or("?");
    let payload = panicked.payload();
    let text =
        payload.downcast_ref::<&str>().copied().or(payload.downcast_ref::<String>().map(|text| &**text));
    let text = text.unwrap_or("something that is no text");
    let place = panicked.location().map(ToString::to_string).unwrap_or_default();
    let deadline = Instant::now() + LAST_LINES;
    log_last_words(deadline, format_args!("thread '{name}' panicked at {place}: {text}"));
    // What is shipped has neither names nor the tables by which a stack is walked.
    let trace = if cfg!(debug_assertions) { Backtrace::capture() } else { Backtrace::disabled() };
    if trace.status() == BacktraceStatus::Captured {
        for line in trace.to_string().lines() {
            log_last_words(deadline, format_args!("{line}"));
        }
    }
}

/// Puts a line behind all others, whatever the level that is logged, and waits until it is out.
fn log_last_words(deadline: Instant, text: fmt::Arguments<'_>) {
    flight_recorder::record(Kind::Error, text);
    WRITER.append(format!("{}{}\n", mark_of_last(), Text(text)).as_bytes());
    WRITER.flush(deadline);
}

fn mark_of_last() -> &'static str {
    if is_journal() { "<3>" } else { "leveret: " }
}

/// Whether standard error is the very stream that systemd connected to the journal.
fn is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    fs::metadata("/proc/self/fd/2").is_ok_and(|file| stream == format!("{}:{}", file.dev(), file.ino()))
}

fn write_for_journal(out: &mut Line, record: &log::Record<'_>) -> io::Result<()> {
    writeln!(out, "<{}>{}", priority(record.level()), Text(*record.args()))
}

fn write_for_person(out: &mut Line, record: &log::Record<'_>) -> io::Result<()> {
    writeln!(out, "{:5} {}", record.level(), Text(*record.args()))
}

fn write_for_file(out: &mut Line, record: &log::Record<'_>) -> io::Result<()> {
    writeln!(out, "{} {:5} {}", out.timestamp_millis(), record.level(), Text(*record.args()))
}

/// Where the logger's lines go, each in one piece.
struct Out;

impl io::Write for Out {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        WRITER.append(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A text as it is shown in a line.
struct Text<'a>(fmt::Arguments<'a>);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut cutting = Cutting { out: f, left: LINE_BYTES_MAX, is_cut: false };
        let written = fmt::write(&mut Escaping(&mut cutting), self.0);
        if cutting.is_cut { f.write_str(CUT_MARK) } else { written }
    }
}

/// Lets so many bytes through, whole characters; then it fails, so that nobody goes on for nothing.
struct Cutting<'a, 'f> {
    out: &'a mut fmt::Formatter<'f>,
    left: usize,
    is_cut: bool,
}

impl fmt::Write for Cutting<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut fitting = text.len().min(self.left);
        while !text.is_char_boundary(fitting) {
            fitting -= 1;
        }
        self.is_cut |= fitting < text.len();
        // What would come behind a line that was cut is cut as well.
        self.left = if self.is_cut { 0 } else { self.left - fitting };
        self.out.write_str(&text[..fitting])?;
        if self.is_cut { Err(fmt::Error) } else { Ok(()) }
    }
}

/// The syslog priority of a level.
const fn priority(level: log::Level) -> u8 {
    match level {
        log::Level::Error => 3,
        log::Level::Warn => 4,
        log::Level::Info => 6,
        log::Level::Debug | log::Level::Trace => 7,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_cut_between_characters_and_marked() {
        for (text, shown) in [("a", 1024), ("ä", 1024), ("日", 1023), ("😀", 1024), ("\n", 1024)] {
            let line = Text(format_args!("{}", text.repeat(3000))).to_string();
            assert_eq!(line.len(), shown + CUT_MARK.len(), "{text}");
            assert!(line.ends_with(CUT_MARK), "{text}");
        }
        let text = "x".repeat(LINE_BYTES_MAX);
        assert_eq!(Text(format_args!("{text}")).to_string(), text);
    }
}
