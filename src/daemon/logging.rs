//! Log lines on standard error: their format, and the thread that writes them.
//!
//! On a terminal a line has level and text. For systemd's journal it begins with the priority `<n>`, which
//! the journal removes; the journal adds the time. For any other destination the line also has the time.
//! `RUST_LOG` overrides the configured level.
//!
//! If the flight recorder is on, it records lines of level `info` and higher, even if the log has a higher
//! level. The level of the log may be higher to avoid wear of a flash card; the flight recorder does not use
//! the card.
//!
//! # Invariants
//! - One log call writes one line with at most `LINE_BYTES_MAX` bytes of text. Unprintable characters are
//!   escaped, because texts contain data from clients: otherwise a client could forge a line or control a
//!   terminal.
//! - Logging does not block. At its end, the program waits at most a second until the last lines are written.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::cell::RefCell;
use std::fmt::{self, Write as _};
use std::io::{self, IsTerminal, Write as _};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::panic::{self, PanicHookInfo};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{fs, thread};

use env_logger::fmt::Formatter as Line;
use env_logger::{Builder, Target};
use leveret_core::flight::EventKind;
use leveret_core::limits::{HELPER_STACK_BYTES, LOG_RING_BYTES};
use leveret_core::log_limiter::RECORDED_ONLY;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::flight_recorder;

/// Maximum length of a line's text in bytes. A longer text is truncated and marked.
const LINE_BYTES_MAX: usize = 1024;
/// The mark at the end of a truncated text.
const TRUNCATION_MARK: &str = "... [cut]";
/// Time limit for writing the last lines at the end of the program.
const LAST_LINES: Duration = Duration::from_millis(900);

/// The maximum level of printed lines.
static PRINTED: AtomicUsize = AtomicUsize::new(log::LevelFilter::Off as usize);

/// Starts logging, and the flight recorder if `recorder` is its file. Later calls change nothing.
///
/// # Errors
/// The system starts no more threads.
pub fn start(level: log::LevelFilter, recorder: Option<&Path>) -> io::Result<()> {
    WRITER.start()?;
    let mut builder = Builder::new();
    // The logger accepts all levels, and `PRINTED` has the level, so that it can be changed at run time.
    // RUST_LOG overrides it.
    builder
        .filter_level(if is_level_from_environment() { level } else { log::LevelFilter::Trace })
        .parse_default_env();
    if is_journal() {
        builder.format(write_for_journal);
    } else if io::stderr().is_terminal() {
        builder.format(write_for_person);
    } else {
        builder.format(write_for_file);
    }
    builder.target(Target::Pipe(Box::new(Out)));
    let printer = builder.build();
    let level = if is_level_from_environment() { printer.filter() } else { level };
    // This fails only if there is a logger already.
    drop(log::set_boxed_logger(Box::new(Lines(printer))));
    let recorded = recorder.map(|file| (file, flight_recorder::start(file)));
    set_printed_level(level);
    panic::set_hook(Box::new(log_panic));
    match recorded {
        None | Some((_, Ok(false))) => {}
        Some((_, Ok(true))) => log::warn!(
            "the previous run of the broker ended without a record (by a signal, the watchdog or a fault): \
             leveretctl report shows its last events"
        ),
        Some((file, Err(error))) => log::warn!(
            "flight_recorder {} cannot be used: {error}; the broker runs without it",
            file.display()
        ),
    }
    Ok(())
}

/// Changes the level of the log, unless RUST_LOG sets it.
pub fn set_level(level: log::LevelFilter) {
    if !is_level_from_environment() {
        set_printed_level(level);
    }
}

fn set_printed_level(level: log::LevelFilter) {
    PRINTED.store(level as usize, Ordering::Relaxed);
    let recorded = if flight_recorder::is_on() { log::LevelFilter::Info } else { log::LevelFilter::Off };
    log::set_max_level(level.max(recorded));
}

/// The logger: records and prints lines.
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
        if let Some(kind) = EventKind::of(record.level()) {
            flight_recorder::record(kind, *record.args());
        }
        if Self::is_printed(record.metadata()) {
            self.0.log(record);
        }
    }

    fn flush(&self) {}
}

fn is_level_from_environment() -> bool {
    std::env::var_os("RUST_LOG").is_some()
}

/// Logs why the program ends, whether logging was started or not.
pub fn log_fatal(error: &dyn std::error::Error) {
    if WRITER.is_started() {
        return log_last_words(Instant::now() + LAST_LINES, format_args!("{error}"));
    }
    // If standard error is closed, the failure cannot be reported anywhere.
    let _ = writeln!(io::stderr(), "{}{error}", mark_of_last());
}

/// Waits until the last lines are written, at most 900 ms.
pub fn finish() {
    flight_recorder::record(EventKind::Ended, format_args!("the process ends"));
    WRITER.flush(Instant::now() + LAST_LINES);
}

/// Logs a panic in the format of the standard library. The standard library's own function would block if
/// standard error blocks.
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
    // A release build has no symbols and no unwind tables, so a backtrace would be empty.
    let trace = if cfg!(debug_assertions) { Backtrace::capture() } else { Backtrace::disabled() };
    if trace.status() == BacktraceStatus::Captured {
        for line in trace.to_string().lines() {
            log_last_words(deadline, format_args!("{line}"));
        }
    }
}

/// Appends a line at any level of the log, and waits until it is written, at most until `deadline`.
fn log_last_words(deadline: Instant, text: fmt::Arguments<'_>) {
    flight_recorder::record(EventKind::Error, text);
    WRITER.append(format!("{}{}\n", mark_of_last(), LogText(text)).as_bytes());
    WRITER.flush(deadline);
}

fn mark_of_last() -> &'static str {
    if is_journal() { "<3>" } else { "leveret: " }
}

/// Returns whether systemd has connected standard error to the journal.
fn is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    fs::metadata("/proc/self/fd/2").is_ok_and(|file| stream == format!("{}:{}", file.dev(), file.ino()))
}

fn write_for_journal(out: &mut Line, record: &log::Record<'_>) -> io::Result<()> {
    writeln!(out, "<{}>{}", priority(record.level()), LogText(*record.args()))
}

fn write_for_person(out: &mut Line, record: &log::Record<'_>) -> io::Result<()> {
    writeln!(out, "{:5} {}", record.level(), LogText(*record.args()))
}

fn write_for_file(out: &mut Line, record: &log::Record<'_>) -> io::Result<()> {
    writeln!(out, "{} {:5} {}", out.timestamp_millis(), record.level(), LogText(*record.args()))
}

/// The destination of the logger's lines. Each call of `write` has one complete line.
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

/// A log text, truncated to [`LINE_BYTES_MAX`] and with unprintable characters escaped.
struct LogText<'a>(fmt::Arguments<'a>);

impl fmt::Display for LogText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut cutting = Truncating { out: f, left: LINE_BYTES_MAX, is_truncated: false };
        let written = fmt::write(&mut Escaping(&mut cutting), self.0);
        if cutting.is_truncated { f.write_str(TRUNCATION_MARK) } else { written }
    }
}

/// Writes at most `left` bytes, only complete characters. Then it returns an error, so that formatting stops.
struct Truncating<'a, 'f> {
    out: &'a mut fmt::Formatter<'f>,
    left: usize,
    is_truncated: bool,
}

impl fmt::Write for Truncating<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut fitting = text.len().min(self.left);
        while !text.is_char_boundary(fitting) {
            fitting -= 1;
        }
        self.is_truncated |= fitting < text.len();
        // After the text was truncated, nothing more is written.
        self.left = if self.is_truncated { 0 } else { self.left - fitting };
        self.out.write_str(&text[..fitting])?;
        if self.is_truncated { Err(fmt::Error) } else { Ok(()) }
    }
}

/// Returns the syslog priority of a level.
const fn priority(level: log::Level) -> u8 {
    match level {
        log::Level::Error => 3,
        log::Level::Warn => 4,
        log::Level::Info => 6,
        log::Level::Debug | log::Level::Trace => 7,
    }
}

/// Maximum number of bytes per write to standard error.
const PIECE_BYTES: usize = 4096;

/// The writer of standard error.
pub(super) static WRITER: LogWriter = LogWriter::new();

thread_local! {
    /// In the writing thread: the lines that this thread itself logs. `None` in all other threads.
    static OWN_LINES: RefCell<Option<Vec<u8>>> = const { RefCell::new(None) };
}

/// Writes log lines to standard error in a separate thread, so that logging does not block. Standard error
/// may be a pipe that is not read, a serial line, or a journal that is being restarted. A write to any of
/// these may block for any time.
///
/// ```text
/// logging thread ─append→ ring of LOG_RING_BYTES ─→ writing thread ─write→ standard error
///                 │ full
///                 ▼
///              the oldest lines are dropped; their number is written instead
/// ```
///
/// # Invariants
/// - The lock is held only to copy a line, never during a call that can block.
/// - The ring contains only complete lines, in their order. If it is full, the oldest lines are dropped,
///   never the newest.
/// - Appending a line allocates no memory. The thread sleeps while nothing is logged.
pub(super) struct LogWriter {
    ring: Mutex<Ring>,
    /// Signalled when a line was appended.
    filled: Condvar,
    /// Signalled when all lines are written.
    drained: Condvar,
}

struct Ring {
    bytes: [u8; LOG_RING_BYTES],
    start: usize,
    len: usize,
    /// Number of lines that were dropped and not reported yet.
    dropped: u64,
    /// Lines were removed from the ring and are not written yet.
    is_writing: bool,
    is_started: bool,
}

impl Ring {
    const fn is_drained(&self) -> bool {
        self.len == 0 && self.dropped == 0 && !self.is_writing
    }

    /// Appends a line.
    fn push(&mut self, line: &[u8]) {
        debug_assert!(line.len() <= PIECE_BYTES && line.ends_with(b"\n"), "a line goes out in one piece");
        while line.len() > LOG_RING_BYTES - self.len {
            self.drop_oldest();
        }
        // An empty ring starts again at its beginning, so that no more of its pages are used than necessary.
        self.start = if self.len == 0 { 0 } else { self.start };
        let at = (self.start + self.len) % LOG_RING_BYTES;
        let (first, rest) = line.split_at(line.len().min(LOG_RING_BYTES - at));
        self.bytes[at..at + first.len()].copy_from_slice(first);
        self.bytes[..rest.len()].copy_from_slice(rest);
        self.len += line.len();
    }

    fn drop_oldest(&mut self) {
        let (first, rest) = self.halves();
        let end = first.iter().chain(rest).position(|byte| *byte == b'\n').map_or(self.len, |at| at + 1);
        self.advance(end);
        self.dropped += 1;
    }

    /// Moves as many complete lines as fit to `piece`. Returns their number of bytes.
    fn pop(&mut self, piece: &mut [u8]) -> usize {
        let (first, rest) = self.halves();
        let first = &first[..first.len().min(piece.len())];
        let rest = &rest[..rest.len().min(piece.len() - first.len())];
        piece[..first.len()].copy_from_slice(first);
        piece[first.len()..][..rest.len()].copy_from_slice(rest);
        let fitting = first.len() + rest.len();
        let count = piece[..fitting].iter().rposition(|byte| *byte == b'\n').map_or(fitting, |at| at + 1);
        self.advance(count);
        count
    }

    /// Returns the content in two parts: the one before the end of the buffer, and the one that continues at
    /// its beginning.
    fn halves(&self) -> (&[u8], &[u8]) {
        let first = self.len.min(LOG_RING_BYTES - self.start);
        (&self.bytes[self.start..self.start + first], &self.bytes[..self.len - first])
    }

    const fn advance(&mut self, count: usize) {
        self.start = (self.start + count) % LOG_RING_BYTES;
        self.len -= count;
    }
}

impl LogWriter {
    const fn new() -> Self {
        let ring = Ring {
            bytes: [0; LOG_RING_BYTES],
            start: 0,
            len: 0,
            dropped: 0,
            is_writing: false,
            is_started: false,
        };
        Self { ring: Mutex::new(ring), filled: Condvar::new(), drained: Condvar::new() }
    }

    /// Starts the thread, unless it runs already.
    ///
    /// # Errors
    /// The system starts no more threads.
    pub(super) fn start(&'static self) -> io::Result<()> {
        if core::mem::replace(&mut self.ring().is_started, true) {
            return Ok(());
        }
        let builder = thread::Builder::new().name("log".to_string()).stack_size(HELPER_STACK_BYTES);
        let started = builder.spawn(|| self.run()).map(drop);
        self.ring().is_started = started.is_ok();
        started
    }

    /// Returns whether the thread runs.
    pub(super) fn is_started(&self) -> bool {
        self.ring().is_started
    }

    /// Appends a line, including its line break.
    pub(super) fn append(&self, line: &[u8]) {
        // Lines that the writing thread itself logs are collected separately, and written before the lines
        // from the ring.
        let is_own = OWN_LINES.with_borrow_mut(|own| own.as_mut().map(|own| own.extend_from_slice(line)));
        if is_own.is_none() {
            self.ring().push(line);
            self.filled.notify_one();
        }
    }

    /// Waits until all lines are written, at most until `deadline`.
    pub(super) fn flush(&self, deadline: Instant) {
        if OWN_LINES.with_borrow(Option::is_some) {
            return;
        }
        let mut ring = self.ring();
        while ring.is_started && !ring.is_drained() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                return;
            }
            let waited = self.drained.wait_timeout(ring, left);
            ring = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn run(&self) {
        OWN_LINES.set(Some(Vec::new()));
        let mut piece = [0; PIECE_BYTES];
        loop {
            let (dropped, count) = self.next(&mut piece);
            if dropped > 0 {
                log::warn!("{dropped} lines were dropped here, because standard error was not read in time");
                write_all(&OWN_LINES.replace(Some(Vec::new())).unwrap_or_default());
            }
            write_all(&piece[..count]);
        }
    }

    /// Waits for lines. Returns the number of lines dropped before the first one, and the number of bytes in `piece`.
    fn next(&self, piece: &mut [u8]) -> (u64, usize) {
        let mut ring = self.ring();
        ring.is_writing = false;
        if ring.is_drained() {
            self.drained.notify_all();
        }
        let waited = self.filled.wait_while(ring, |ring| ring.is_drained());
        let mut ring = waited.unwrap_or_else(PoisonError::into_inner);
        ring.is_writing = true;
        (core::mem::take(&mut ring.dropped), ring.pop(piece))
    }

    /// No code panics while it has the lock, so the lock is never poisoned. Even if it were, the content
    /// would be valid.
    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes to standard error without the standard library's lock, because a panicking thread may have that.
/// Errors are ignored, because they could not be reported anywhere.
fn write_all(mut bytes: &[u8]) {
    let stderr = io::stderr();
    while !bytes.is_empty() {
        match rustix::io::write(stderr.as_fd(), bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let _ = poll(&mut [PollFd::new(&stderr, PollFlags::OUT)], None);
            }
            Err(_) => return,
        }
    }
}

/// Characters without width that belong to no script. With them, two different names could look the same.
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

/// Returns whether a character is shown without escaping. Control characters, invisible characters and
/// characters that change the writing direction are escaped, because they could forge a line, control the
/// terminal, or make a name look like another. Characters of all scripts are shown.
pub fn is_printable(letter: char) -> bool {
    if letter.is_ascii() {
        return !letter.is_ascii_control();
    }
    // The standard library's `escape_debug` is used for a string with another letter before the character. It
    // then escapes controls, formats, separators, private and unassigned code points, but not combining
    // marks.
    let mut room = [b'a'; 5];
    let len = 1 + letter.encode_utf8(&mut room[1..]).len();
    let is_shaped = str::from_utf8(&room[..len]).is_ok_and(|pair| pair.escape_debug().count() == 2);
    is_shaped && !INVISIBLE.iter().any(|(first, last)| (*first..=*last).contains(&letter))
}

/// Formats a value with all unprintable characters escaped.
pub struct Printable<T>(pub T);

impl<T: fmt::Display> fmt::Display for Printable<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escaping(f), "{}", self.0)
    }
}

/// A writer that escapes unprintable characters.
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
    fn a_long_text_is_cut_between_characters_and_marked() {
        for (text, shown) in [("a", 1024), ("ä", 1024), ("日", 1023), ("😀", 1024), ("\n", 1024)] {
            let line = LogText(format_args!("{}", text.repeat(3000))).to_string();
            assert_eq!(line.len(), shown + TRUNCATION_MARK.len(), "{text}");
            assert!(line.ends_with(TRUNCATION_MARK), "{text}");
        }
        let text = "x".repeat(LINE_BYTES_MAX);
        assert_eq!(LogText(format_args!("{text}")).to_string(), text);
    }
}

#[cfg(test)]
mod log_writer_tests {
    use super::*;

    /// Takes lines out of the ring in pieces of `bytes`.
    fn taken(ring: &mut Ring, bytes: usize) -> Vec<u8> {
        let mut piece = vec![0; bytes];
        let count = ring.pop(&mut piece);
        piece.truncate(count);
        piece
    }

    #[test]
    fn lines_come_out_as_they_went_in_whatever_the_place() {
        let writer = LogWriter::new();
        let mut ring = writer.ring();
        let (mut came_in, mut came_out) = (Vec::new(), Vec::new());
        for number in 0..20_000 {
            let line = format!("{number}{}\n", "x".repeat(number % 700)).into_bytes();
            while line.len() > LOG_RING_BYTES - ring.len {
                came_out.extend(taken(&mut ring, PIECE_BYTES));
                assert!(came_out.ends_with(b"\n"), "whole lines");
            }
            ring.push(&line);
            came_in.extend(line);
        }
        while ring.len > 0 {
            came_out.extend(taken(&mut ring, 900));
        }
        assert!(came_in == came_out);
        assert_eq!(ring.dropped, 0);
    }

    #[test]
    fn the_oldest_lines_make_room_and_are_counted() {
        let writer = LogWriter::new();
        for number in 0..5000 {
            writer.append(format!("{number} {}\n", "x".repeat(number % 90)).as_bytes());
        }
        let mut ring = writer.ring();
        let mut left = Vec::new();
        while ring.len > 0 {
            left.extend(taken(&mut ring, PIECE_BYTES));
        }
        let left = String::from_utf8(left).unwrap();
        let numbers: Vec<u64> =
            left.lines().map(|line| line.split(' ').next().unwrap().parse().unwrap()).collect();
        assert_eq!(numbers, (ring.dropped..5000).collect::<Vec<_>>(), "the last ones, all of them");
        assert!(left.len() > LOG_RING_BYTES - 200);
    }
}

#[cfg(test)]
mod printable_tests {
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
