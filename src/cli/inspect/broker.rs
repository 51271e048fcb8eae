//! Whether a broker has the directory, found out without touching its lock.
//!
//! Trying to take the lock would tell, but a broker that starts in that moment would be turned away. The
//! kernel lists all locks for everybody to read.

use std::fmt;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// How often the list is read before a lock is believed not to be there.
const READS: u32 = 3;
/// Room for more locks than any board holds.
const LIST_BYTES: usize = 64 << 10;

/// Who has the directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Broker {
    /// No broker has the directory open.
    No,
    /// A process; 0 when it is none that can be seen from here.
    Process(u32),
    /// The kernel does not say.
    Unknown,
}

impl Broker {
    /// Who has `directory`.
    pub(super) fn of(directory: &Path) -> Self {
        // The lock's file may be damaged; of older versions a broker locks nothing else.
        let locked = [fs::metadata(directory), fs::metadata(directory.join("lock"))];
        let inodes: Vec<u64> = locked.iter().flatten().map(MetadataExt::ino).collect();
        for _ in 0..READS {
            let Ok(locks) = read_at_once("/proc/locks") else {
                return Self::Unknown;
            };
            if let Some(process) = inodes.iter().find_map(|inode| holder(&locks, *inode)) {
                return Self::Process(process);
            }
        }
        Self::No
    }
}

/// The kernel counts lines between two reads of its list: a lock given up meanwhile makes it leave one out.
/// So as few reads as it takes, and again before "nobody" is believed.
fn read_at_once(file: &str) -> io::Result<String> {
    let mut bytes = Vec::with_capacity(LIST_BYTES);
    fs::File::open(file)?.take(LIST_BYTES as u64).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

impl fmt::Display for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::No => f.write_str("none has the directory"),
            Self::Process(0) => f.write_str("one has the directory and may be writing"),
            Self::Process(id) => write!(f, "process {id} has the directory and may be writing"),
            Self::Unknown => f.write_str("not known: /proc/locks cannot be read"),
        }
    }
}

/// Who has a file locked by `flock`: `1: FLOCK ADVISORY WRITE 4711 b3:02:1234 0 EOF`. The device is not
/// compared, for some file systems tell another one here.
fn holder(locks: &str, inode: u64) -> Option<u32> {
    locks.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        // A process that waits for a lock has an arrow before it.
        let is_held = words.next()? == "FLOCK";
        let (_, _, process, file) = (words.next()?, words.next()?, words.next()?, words.next()?);
        let is_file = file.rsplit(':').next()?.parse() == Ok(inode);
        (is_held && is_file).then(|| process.parse().unwrap_or(0))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_list_is_read() {
        let locks = "1: POSIX  ADVISORY  WRITE 77 00:19:5 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 4711 b3:02:1234 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 99 b3:02:88 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE -1 b3:02:9 0 EOF\n";
        assert_eq!(holder(locks, 1234), Some(4711));
        assert_eq!(holder(locks, 9), Some(0));
        assert_eq!((holder(locks, 5), holder(locks, 88), holder(locks, 12)), (None, None, None));
    }
}
