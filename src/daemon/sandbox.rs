//! Detects paths that the systemd unit makes read-only or hides. A file system that the kernel has made read-only refuses a
//! write with the same error, and needs another repair.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::{env, fs, path};

/// The folders that `ProtectHome=` hides.
const HOMES: [&str; 3] = ["/home", "/root", "/run/user"];

/// How the unit denies access to a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Denial {
    /// `ProtectSystem=strict`: the mount is read-only, its file system is not.
    ReadOnly,
    /// `ProtectHome=`: an empty folder is mounted above the path.
    Hidden,
}

/// Returns how the unit of this process denies access to a path, which need not exist. Returns `None` if systemd did not
/// start the process: then an administrator has made the mount read-only.
pub(super) fn denial(path: &Path) -> Option<Denial> {
    env::var_os("INVOCATION_ID")?;
    // Not /proc/mounts, which does not distinguish the flags of a mount from those of its file system.
    let mounts = fs::read("/proc/self/mountinfo").ok()?;
    denial_in(&String::from_utf8_lossy(&mounts), &resolved(path))
}

/// Returns the absolute path, with the links resolved in the part that exists.
fn resolved(path: &Path) -> PathBuf {
    let whole = path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let known = whole.ancestors().find_map(|above| Some((fs::canonicalize(above).ok()?, above)));
    match known {
        Some((real, above)) => {
            whole.strip_prefix(above).map_or_else(|_| whole.clone(), |rest| real.join(rest))
        }
        None => whole,
    }
}

/// A line of `/proc/self/mountinfo`.
struct Mount<'a> {
    id: &'a str,
    parent: &'a str,
    root: &'a str,
    point: PathBuf,
    is_read_only: bool,
    kind: &'a str,
    is_file_system_read_only: bool,
}

impl<'a> Mount<'a> {
    /// Reads a line (proc_pid_mountinfo(5)): a variable number of fields ends with a hyphen.
    fn read(line: &'a str) -> Option<Self> {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut fields = mount.split(' ');
        let (id, parent, _, root) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        let (point, flags) = (unescaped(fields.next()?), fields.next()?);
        let mut fields = file_system.split(' ');
        let kind = fields.next()?;
        Some(Self {
            id,
            parent,
            root,
            point,
            is_read_only: is_read_only(flags),
            kind,
            is_file_system_read_only: is_read_only(fields.nth(1)?),
        })
    }
}

fn is_read_only(flags: &str) -> bool {
    flags.split(',').any(|flag| flag == "ro")
}

/// Reads a path in which the kernel has written blanks and backslashes as `\040` and `\134`.
fn unescaped(text: &str) -> PathBuf {
    let mut octets = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let digits = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        let code = digits.filter(|_| *first == b'\\').and_then(|digits| u8::from_str_radix(digits, 8).ok());
        octets.push(code.unwrap_or(*first));
        rest = if code.is_some() { &after[3..] } else { after };
    }
    OsString::from_vec(octets).into()
}

fn denial_in(mounts: &str, path: &Path) -> Option<Denial> {
    let mounts: Vec<Mount<'_>> = mounts.lines().filter_map(Mount::read).collect();
    let is_root =
        |mount: &&Mount<'_>| mounts.iter().all(|other| other.id != mount.parent || other.id == mount.id);
    let mut at = mounts.iter().find(is_root)?;
    // The walk starts at the root, because a mount above a path hides mounts below it, and both are listed. Among the
    // mounts in one mount, the walk meets the shortest path first. The number of steps is bounded by that of mounts.
    for _ in 0..mounts.len() {
        let inside = mounts.iter().filter(|mount| mount.parent == at.id && mount.id != at.id);
        let next = inside
            .filter(|mount| path.starts_with(&mount.point))
            .min_by_key(|mount| mount.point.as_os_str().len());
        match next {
            Some(mount) => at = mount,
            None => break,
        }
    }
    let is_home = HOMES.iter().any(|home| at.point == Path::new(home));
    let is_inaccessible = at.root.ends_with("/systemd/inaccessible/dir");
    match at {
        _ if is_inaccessible || (is_home && at.kind == "tmpfs" && at.is_read_only) => Some(Denial::Hidden),
        Mount { is_read_only: true, is_file_system_read_only: false, .. } => Some(Denial::ReadOnly),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The mounts of a service with `ProtectSystem=strict` and `ReadWritePaths="/srv/a b"`; `/media` is a card that the
    /// kernel has made read-only.
    const STRICT: &str = "\
        300 200 179:2 / / ro,noatime shared:1 master:2 - ext4 /dev/root rw\n\
        301 300 179:2 /srv/a\\040b /srv/a\\040b rw,noatime - ext4 /dev/root rw\n\
        302 300 0:20 / /run rw,nosuid - tmpfs tmpfs rw,size=1k\n\
        303 300 179:3 / /media ro,noatime - ext4 /dev/sda1 ro\n";

    fn found(more: &str, path: &str) -> Option<Denial> {
        denial_in(&format!("{STRICT}{more}"), Path::new(path))
    }

    #[test]
    fn a_read_only_mount_of_a_writable_file_system_is_the_unit() {
        assert_eq!(found("", "/srv/leveret"), Some(Denial::ReadOnly));
        assert_eq!(found("", "/srv/a b/leveret"), None);
        assert_eq!(found("", "/srv/a bc"), Some(Denial::ReadOnly));
        assert_eq!(found("", "/run/leveret"), None);
        assert_eq!(found("", "/media/leveret"), None, "the disk must be repaired");
        assert_eq!(denial_in("", Path::new("/srv")), None);
        assert_eq!(denial_in("1 1 0:1 / / rw - tmpfs none rw\nx\n", Path::new("/srv")), None);
    }

    #[test]
    fn a_hidden_home_is_the_unit() {
        let data = "310 300 8:1 / /home/pi/data rw - ext4 /dev/sda1 rw\n";
        let yes =
            "311 300 0:20 /systemd/inaccessible/dir /home ro,nosuid master:9 - tmpfs tmpfs rw,mode=755\n";
        assert_eq!(found(&format!("{data}{yes}"), "/home/pi/data"), Some(Denial::Hidden));
        assert_eq!(found(data, "/home/pi/data"), None);
        let tmpfs = "311 300 0:30 / /home ro,nodev - tmpfs tmpfs ro,mode=755\n";
        assert_eq!(found(tmpfs, "/home/pi/data"), Some(Denial::Hidden));
        let bound = "312 311 8:1 /data /home/pi/data rw - ext4 /dev/sda1 rw\n";
        assert_eq!(found(&format!("{tmpfs}{bound}"), "/home/pi/data"), None);
    }
}
