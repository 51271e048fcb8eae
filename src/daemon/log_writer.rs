//! Writes log lines to standard error on a thread of its own, so that whoever logs never waits.
//!
//! Standard error may be a pipe that nobody reads, a serial line, or a journal that is being restarted; each
//! of them can keep a writer for ever.
//!
//! ```text
//! whoever logs ─append→ ring of LOG_RING_BYTES ─→ this thread ─write→ standard error
//!                │ no room
//!                ▼
//!             the oldest lines go; their number is written in their place
//! ```
//!
//! Always true: the lock is held to copy a line or a piece, and never over a call that can wait; a line is in
//! the ring whole or not at all, in the order of coming, and the last ones are always there. Whoever logs
//! allocates nothing here, and nobody wakes up while nothing is logged.

use std::cell::RefCell;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use leveret_core::limits::{HELPER_STACK_BYTES, LOG_RING_BYTES};

/// Bytes written at once.
const PIECE_BYTES: usize = 4096;

/// The one there is: there is but one standard error.
pub(super) static WRITER: LogWriter = LogWriter::new();

thread_local! {
    /// What the thread that writes has to say itself; `None` in all others.
    static OWN_LINES: RefCell<Option<Vec<u8>>> = const { RefCell::new(None) };
}

/// The ring, and those who wait for it.
pub(super) struct LogWriter {
    ring: Mutex<Ring>,
    /// Signalled when there is something to write.
    filled: Condvar,
    /// Signalled when there is nothing left to write.
    drained: Condvar,
}

struct Ring {
    bytes: [u8; LOG_RING_BYTES],
    start: usize,
    len: usize,
    /// Lines that made room for later ones and were not told of yet.
    dropped: u64,
    /// What was taken out last is not written yet.
    is_writing: bool,
    is_started: bool,
}

impl Ring {
    const fn is_drained(&self) -> bool {
        self.len == 0 && self.dropped == 0 && !self.is_writing
    }

    /// Puts a line behind the others.
    fn push(&mut self, line: &[u8]) {
        debug_assert!(line.len() <= PIECE_BYTES && line.ends_with(b"\n"), "a line goes out in one piece");
        while line.len() > LOG_RING_BYTES - self.len {
            self.drop_oldest();
        }
        // An empty one begins anew, so that it takes no more memory than is needed.
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

    /// Takes out the whole lines that fit into `piece`.
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

    /// What lies before the end of the room, and what lies at its beginning.
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

    /// Whether lines are taken.
    pub(super) fn is_started(&self) -> bool {
        self.ring().is_started
    }

    /// Takes a line, which ends with its line break.
    pub(super) fn append(&self, line: &[u8]) {
        // What the writing thread logs itself is written ahead of the lines that it is about to write.
        let is_own = OWN_LINES.with_borrow_mut(|own| own.as_mut().map(|own| own.extend_from_slice(line)));
        if is_own.is_none() {
            self.ring().push(line);
            self.filled.notify_one();
        }
    }

    /// Waits until everything is written, but not beyond `deadline`.
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
                log::warn!("{dropped} lines are missing here: nobody took them from standard error in time");
                write_all(&OWN_LINES.replace(Some(Vec::new())).unwrap_or_default());
            }
            write_all(&piece[..count]);
        }
    }

    /// Waits for lines; so many are missing before the first, and so many bytes are in `piece`.
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

    /// Nobody panics while he holds it; were it so, what is in it would be as good as before.
    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes past the standard library's lock, for who panics takes that. What standard error refuses is lost:
/// there is no other place to say so.
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes out in pieces of `bytes`.
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
