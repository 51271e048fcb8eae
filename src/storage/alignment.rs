//! Whether the partition begins where an erase block of the card does.
//!
//! Why it exists: a card erases in large blocks. Where a partition begins in the midst of one, every segment
//! lies across one block more than it must: that wears the card, and a power cut may take the neighbours of
//! what is written with it. Nothing here can mend it, so it is told once, before there is much to move.
//!
//! Always true: it is told only where the system says both where the partition begins and how large an erase
//! block is, which it does for SD cards and eMMC.

use core::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{major, minor};

/// What `/sys` counts in, in bytes.
const SECTOR_BYTES: u64 = 512;

/// A partition that does not begin with an erase block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Misaligned {
    /// Where it begins, in bytes.
    pub start_bytes: u64,
    /// An erase block, in bytes.
    pub erase_bytes: u64,
}

impl fmt::Display for Misaligned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { start_bytes, erase_bytes } = self;
        write!(
            f,
            "the partition begins at byte {start_bytes} of the card, which is no multiple of its erase block \
             of {erase_bytes} bytes: this wears the card; let it begin at one when the card is made anew"
        )
    }
}

/// Whether the partition that a directory lies on is misaligned; `None` too where that is not known.
pub fn misaligned(directory: &Path) -> Option<Misaligned> {
    let device = fs::metadata(directory).ok()?.dev();
    let name = format!("{}:{}", major(device), minor(device));
    misaligned_in(&Path::new("/sys/dev/block").join(name))
}

fn misaligned_in(partition: &Path) -> Option<Misaligned> {
    let number = |name: &str| fs::read_to_string(partition.join(name)).ok()?.trim().parse::<u64>().ok();
    let start_bytes = number("start")?.checked_mul(SECTOR_BYTES)?;
    let erase_bytes = number("../device/preferred_erase_size").filter(|bytes| *bytes > 0)?;
    (!start_bytes.is_multiple_of(erase_bytes)).then_some(Misaligned { start_bytes, erase_bytes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    /// A card with one partition, as `/sys` shows it: the partition's folder.
    fn card(name: &str, start: &str, erase_size: Option<&str>) -> PathBuf {
        let card = std::env::temp_dir().join(format!("leveret-card-{}-{name}", std::process::id()));
        fs::create_dir_all(card.join("device")).unwrap();
        fs::create_dir_all(card.join("part")).unwrap();
        fs::write(card.join("part/start"), start).unwrap();
        if let Some(size) = erase_size {
            fs::write(card.join("device/preferred_erase_size"), size).unwrap();
        }
        card.join("part")
    }

    #[test]
    fn it_is_told_only_where_both_are_known_and_do_not_fit() {
        let cases = [
            ("fits", "8192\n", Some("4194304\n"), None),
            (
                "does-not",
                "63\n",
                Some("4194304\n"),
                Some(Misaligned { start_bytes: 32_256, erase_bytes: 4 << 20 }),
            ),
            ("unknown", "63\n", None, None),
            ("none", "63\n", Some("0\n"), None),
            ("strange", "x\n", Some("4194304\n"), None),
            ("huge", "18446744073709551615\n", Some("4194304\n"), None),
        ];
        for (name, start, erase_size, expected) in cases {
            let part = card(name, start, erase_size);
            assert_eq!(misaligned_in(&part), expected, "{name}");
            fs::remove_dir_all(part.parent().unwrap()).unwrap();
        }
        assert_eq!(misaligned_in(Path::new("/nowhere")), None);
    }
}
