//! What a process or a thread has cost, as the kernel tells it in `/proc`.
//!
//! Always true: what cannot be found out is `None`, never a guess.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Linux tells user space its times in hundredths of a second, whatever its own clock does.
const TICK: Duration = Duration::from_millis(10);
/// The state LISTEN in `/proc/net/tcp`.
const LISTEN: &str = "0A";

/// CPU time, of all threads if it is a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct CpuTime {
    pub(super) user: Duration,
    pub(super) system: Duration,
}

impl CpuTime {
    pub(super) fn total(self) -> Duration {
        self.user + self.system
    }

    pub(super) fn since(self, earlier: Self) -> Self {
        Self {
            user: self.user.saturating_sub(earlier.user),
            system: self.system.saturating_sub(earlier.system),
        }
    }

    pub(super) fn of_process(id: u32) -> Option<Self> {
        Self::read(&Path::new("/proc").join(id.to_string()))
    }

    /// Of the thread that asks.
    pub(super) fn of_this_thread() -> Option<Self> {
        Self::read(Path::new("/proc/thread-self"))
    }

    fn read(folder: &Path) -> Option<Self> {
        parse_stat(&fs::read_to_string(folder.join("stat")).ok()?)
    }
}

/// User and system time of a line of `stat`: its 14th and 15th field.
fn parse_stat(stat: &str) -> Option<CpuTime> {
    // The second field is a name in parentheses that may hold anything.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let mut time = || Some(TICK * fields.next()?.parse().ok()?);
    Some(CpuTime { user: time()?, system: time()? })
}

/// The most memory a process has had resident, in bytes.
pub(super) fn peak_memory_bytes(id: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// The process on this machine that listens there; one of another user is seen only by root.
pub(super) fn find_listener(address: SocketAddr) -> Option<u32> {
    let inodes: Vec<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .into_iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .flat_map(|table| listening_inodes(&table, address.port()))
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    processes().find(|id| {
        let descriptors = fs::read_dir(format!("/proc/{id}/fd")).into_iter().flatten().flatten();
        let mut targets = descriptors.filter_map(|descriptor| fs::read_link(descriptor.path()).ok());
        targets.any(|target: PathBuf| inodes.iter().any(|inode| target.as_os_str() == inode.as_str()))
    })
}

fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The sockets in a table of the kernel's that listen on a port.
fn listening_inodes(table: &str, port: u16) -> Vec<String> {
    let suffix = format!(":{port:04X}");
    let rows = table.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    rows.filter(|row| row.get(1).is_some_and(|local| local.ends_with(&suffix)))
        .filter(|row| row.get(3) == Some(&LISTEN))
        .filter_map(|row| row.get(9).map(ToString::to_string))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn we_find_ourselves() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        assert_eq!(find_listener(address), Some(std::process::id()));
        assert!(CpuTime::of_process(std::process::id()).is_some());
        assert!(CpuTime::of_this_thread().is_some());
        assert!(peak_memory_bytes(std::process::id()).is_some_and(|bytes| bytes > 1 << 20));
    }

    #[test]
    fn names_may_hold_anything() {
        let stat = "7 (a) b (c) S 1 1 1 0 -1 4194304 100 0 0 0 250 5 0 0 20 0";
        let time = CpuTime { user: Duration::from_millis(2500), system: Duration::from_millis(50) };
        assert_eq!(parse_stat(stat), Some(time));
        assert_eq!(parse_stat("7 (a) S 1"), None);
    }
}
