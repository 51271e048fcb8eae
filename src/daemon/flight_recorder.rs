//! The flight recorder: writes the events of this process to a file that remains when the process has ended.
//!
//! The file is in a RAM file system, so writing an event takes one system call and does not wear a flash
//! card. A reader needs only the name of the file. Shared memory, or a descriptor passed to another process,
//! would be more complex.
//!
//! # Invariants
//! - A file that is not in a RAM file system is refused. Only one process writes to the file.
//! - Recording an event does not block.
//! - A failure is logged once, and the broker continues.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, OFlags, flock, statfs};
use rustix::io::Errno;

use super::system::unix_ms;
use leveret_core::flight::{self, Begun, Event, EventKind, FILE_BYTES, RECORD_BYTES, Stamp};
use leveret_core::version::build_version;

/// The `f_type` of RAM file systems in `statfs`.
const TMPFS: u64 = 0x0102_1994;
const RAMFS: u64 = 0x8584_58f6;

/// Number of attempts to lock the file, and the delay between them. Together they take longer than a reader
/// keeps the lock.
const LOCK_TRIES: u32 = 50;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// The flight recorder. It is global like the log.
static RECORDER: OnceLock<FlightRecorder> = OnceLock::new();
/// Why the configured file is not used.
static REFUSAL: OnceLock<String> = OnceLock::new();

struct FlightRecorder {
    file: File,
    run: u32,
    /// The number of the first event of this process.
    first: u32,
    next: AtomicU32,
    started: Instant,
    /// A failure was logged, and further ones are not.
    has_failed: AtomicBool,
}

/// Starts recording in a file. Returns whether the previous process ended unexpectedly. Later calls change nothing.
pub(super) fn start(path: &Path) -> io::Result<bool> {
    let begun = begin(path);
    if let Err(error) = &begun {
        drop(REFUSAL.set(format!("{} cannot be used: {error}", path.display())));
    }
    begun
}

fn begin(path: &Path) -> io::Result<bool> {
    let (file, begun) = open(path)?;
    let first = AtomicU32::new(begun.first);
    let (started, has_failed) = (Instant::now(), AtomicBool::new(false));
    let recorder =
        FlightRecorder { file, run: begun.run, first: begun.first, next: first, started, has_failed };
    let who = format_args!("leveret {}, process {}", build_version(), process::id());
    recorder.append(EventKind::Started, who)?;
    drop(RECORDER.set(recorder));
    Ok(begun.ended_unexpectedly)
}

/// Returns whether events are recorded.
pub(super) fn is_on() -> bool {
    RECORDER.get().is_some()
}

/// Records an event, if recording is on.
pub(super) fn record(kind: EventKind, text: fmt::Arguments<'_>) {
    let Some(recorder) = RECORDER.get() else { return };
    if let Err(error) = recorder.append(kind, text)
        && !recorder.has_failed.swap(true, Ordering::Relaxed)
    {
        log::warn!("the flight recorder could not write an event: {error}");
    }
}

/// Returns the newest events of this process with numbers above `after`, at most `count`.
///
/// # Errors
/// Nothing is recorded; the text says why.
pub(super) fn events(after: u32, count: usize) -> Result<Vec<Event>, &'static str> {
    let Some(recorder) = RECORDER.get() else {
        return Err(REFUSAL.get().map_or(flight::NOT_CONFIGURED, String::as_str));
    };
    let numbers = flight::newest(recorder.first, recorder.next.load(Ordering::Relaxed), after, count);
    let mut record = [0; RECORD_BYTES];
    let read = |number| {
        recorder.file.read_exact_at(&mut record, flight::place(recorder.first, number)).ok()?;
        // The record may have been overwritten by a newer one.
        flight::parse_event(&record).filter(|event| event.stamp.number == number)
    };
    Ok(numbers.filter_map(read).collect())
}

impl FlightRecorder {
    fn append(&self, kind: EventKind, text: fmt::Arguments<'_>) -> io::Result<()> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let run_ms = self.started.elapsed().as_millis() as u64;
        let stamp = Stamp { number, run: self.run, unix_ms: unix_ms(), run_ms };
        self.file.write_all_at(&flight::record(stamp, kind, text), flight::place(self.first, number))
    }
}

/// Locks the file for this process. Retries, because a reader may have the lock for a moment.
fn lock(file: &File) -> io::Result<()> {
    for _ in 0..LOCK_TRIES {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => thread::sleep(LOCK_PAUSE),
            done => return Ok(done?),
        }
    }
    Err(io::Error::other("another broker has it"))
}

/// Opens the file and begins the events of this process.
fn open(path: &Path) -> io::Result<(File, Begun)> {
    if !path.is_absolute() {
        return Err(io::Error::other("it must be an absolute path"));
    }
    let folder = path.parent().unwrap_or(path);
    // `f_type` has different widths on different architectures.
    #[allow(clippy::unnecessary_cast, clippy::cast_sign_loss)]
    let kind = statfs(folder)?.f_type as u64 & 0xffff_ffff;
    if kind != TMPFS && kind != RAMFS {
        return Err(io::Error::other(format!(
            "{} is not a tmpfs, so the many small writes would wear a disk: name a file below /run",
            folder.display()
        )));
    }
    // With these flags a symbolic link is refused, and opening a pipe without a reader fails instead of
    // blocking.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(flags);
    let mut file = options.open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    lock(&file)?;
    let mut bytes = Vec::new();
    Read::by_ref(&mut file).take(FILE_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    let begun = match bytes.len() {
        0..=FILE_BYTES => flight::begin(&bytes),
        _ => Err(flight::Foreign),
    };
    let begun = begun.map_err(|foreign| io::Error::other(foreign.to_string()))?;
    file.write_all_at(&begun.header, 0)?;
    file.set_len(FILE_BYTES as u64)?;
    file.write_all_at(&begun.before, (FILE_BYTES - begun.before.len()) as u64)?;
    Ok((file, begun))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_not_used_is_the_reason_why_there_are_no_events() {
        assert_eq!(events(0, 1).err(), Some(flight::NOT_CONFIGURED));
        assert!(start(Path::new("flight")).is_err());
        assert_eq!(events(0, 1).err(), Some("flight cannot be used: it must be an absolute path"));
    }
}
