//! Whether the file system writes over what is there, or elsewhere.
//!
//! Why it exists: room that was made ready is room only where a file system writes in place. Where it does
//! not (f2fs, UBIFS, what compresses), a full one may have none for a commit: the store gives up a file for
//! it then, and whoever runs it should leave some room free. So it is told once, and by every inspection.
//!
//! Always true: what cannot be found out is not told; nothing is written.

use core::fmt;
use std::fs;
use std::path::Path;

use rustix::fs::{IFlags, Mode, OFlags, fstatfs, ioctl_getflags, open};

/// File systems that write elsewhere, by the numbers that `statfs` gives them.
const ELSEWHERE: [(u32, &str); 6] = [
    (0xF2F5_2010, "f2fs"),
    (0x2405_1905, "UBIFS"),
    (0x2FC1_2FC1, "ZFS"),
    (0xCA45_1A4E, "bcachefs"),
    (0x3434, "NILFS"),
    (0x72B6, "JFFS2"),
];
/// Writes in place what is marked so.
const BTRFS: u32 = 0x9123_683E;

/// Why room that was made ready may not be there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotInPlace {
    /// The file system writes elsewhere.
    Elsewhere(&'static str),
    /// It compresses the files of the store.
    Compressed,
}

impl fmt::Display for NotInPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Elsewhere(name) => {
                write!(f, "the file system ({name}) writes elsewhere what is written over")?
            }
            Self::Compressed => f.write_str("the file system compresses the files of the store")?,
        }
        f.write_str(
            ", so room that was made ready may be none when it is full: leave some free (a lower disk_limit)",
        )
    }
}

/// Whether the segments in a directory are not written in place; `None` too where that is not known.
pub fn not_in_place(directory: &Path) -> Option<NotInPlace> {
    let is_segment = |path: &Path| path.extension().is_some_and(|extension| extension == "seg");
    let mut paths = fs::read_dir(directory).ok()?.flatten().map(|entry| entry.path());
    // Something else may stand there, in a folder that belongs to others.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let segment = open(paths.find(|path| is_segment(path))?, flags, Mode::empty()).ok()?;
    judge(fstatfs(&segment).ok()?.f_type as u32, ioctl_getflags(&segment).unwrap_or(IFlags::empty()))
}

fn judge(file_system: u32, flags: IFlags) -> Option<NotInPlace> {
    let is_known = |(number, name): &(u32, &'static str)| (*number == file_system).then_some(*name);
    if flags.contains(IFlags::COMPRESSED) {
        return Some(NotInPlace::Compressed);
    }
    if file_system == BTRFS && !flags.contains(IFlags::NOCOW) {
        return Some(NotInPlace::Elsewhere("btrfs"));
    }
    ELSEWHERE.iter().find_map(is_known).map(NotInPlace::Elsewhere)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_follows_from_the_file_system_and_its_flags() {
        let cases = [
            (0xEF53, IFlags::empty(), None),
            (0xEF53, IFlags::COMPRESSED, Some(NotInPlace::Compressed)),
            (BTRFS, IFlags::NOCOW, None),
            (BTRFS, IFlags::empty(), Some(NotInPlace::Elsewhere("btrfs"))),
            (BTRFS, IFlags::COMPRESSED, Some(NotInPlace::Compressed)),
            (0xF2F5_2010, IFlags::empty(), Some(NotInPlace::Elsewhere("f2fs"))),
            (0x2405_1905, IFlags::empty(), Some(NotInPlace::Elsewhere("UBIFS"))),
        ];
        for (file_system, flags, expected) in cases {
            assert_eq!(judge(file_system, flags), expected, "{file_system:#x} {flags:?}");
        }
        assert_eq!(not_in_place(Path::new("/nowhere")), None);
    }
}
