//! CPU time and memory of a process on this machine, as `/proc` shows them.

use std::fs;
use std::time::Duration;

/// Linux counts CPU time in `/proc` in hundredths of a second.
const TICK: Duration = Duration::from_millis(10);
/// The state LISTEN in `/proc/net/tcp`.
const LISTEN: &str = "0A";

/// Returns the user and system time of a process.
pub(crate) fn cpu_time(pid: u32) -> Option<Duration> {
    parse_cpu_time(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Adds the 14th and the 15th field of `/proc/PID/stat`.
fn parse_cpu_time(stat: &str) -> Option<Duration> {
    // The second field is a name in parentheses that can contain spaces and parentheses.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u32>().ok();
    Some(TICK * (ticks()? + ticks()?))
}

/// Returns the resident memory of a process in bytes.
pub(crate) fn resident_bytes(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

/// Returns the process that listens on a TCP port of this machine. Only root finds a process of another user.
pub(crate) fn listener(port: u16) -> Option<u32> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| fs::read_to_string(path).unwrap_or_default());
    let sockets: Vec<String> =
        tables.iter().flat_map(|table| table.lines()).filter_map(|line| listening(line, port)).collect();
    let has_socket = |pid: &u32| {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let mut targets = descriptors.filter_map(|descriptor| fs::read_link(descriptor.path()).ok());
        targets.any(|target| sockets.iter().any(|socket| target.as_os_str() == socket.as_str()))
    };
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).find(has_socket)
}

/// Returns the socket of a line of `/proc/net/tcp` that listens on a port, as `/proc/PID/fd` shows it.
fn listening(line: &str, port: u16) -> Option<String> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
    let is_it = local.ends_with(&format!(":{port:04X}")) && *state == LISTEN;
    is_it.then(|| format!("socket:[{inode}]"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn this_process_is_found() {
        let socket = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let me = std::process::id();
        assert_eq!(listener(socket.local_addr().expect("bound").port()), Some(me));
        assert!(cpu_time(me).is_some());
        assert!(resident_bytes(me).is_some_and(|bytes| bytes > 1 << 20));
    }

    #[test]
    fn process_names_can_contain_parentheses() {
        let stat = "7 (a) b (c) S 1 1 1 0 -1 4194304 100 0 0 0 250 5 0 0 20 0";
        assert_eq!(parse_cpu_time(stat), Some(Duration::from_millis(2550)));
        assert_eq!(parse_cpu_time("7 (a) S 1"), None);
    }
}
