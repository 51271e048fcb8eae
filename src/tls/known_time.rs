//! The last time that is known to have been, in a file of the data directory.
//!
//! Why it exists: on a board whose clock starts in 1970, an expired certificate of an upstream would be good
//! again after every power cut. Whenever an upstream's certificate is found good by the clock alone, the
//! clock is right enough to be written down. Always true: what is written down never becomes earlier; it is
//! written at most once a day, for the sake of the flash.

use std::path::{Path, PathBuf};

use leveret_core::small_file;

use super::clock::Clock;

/// In the data directory.
const FILE_NAME: &str = "last-known-time";
/// A time that is so much later is worth writing down, in seconds.
const WORTH_S: u64 = 86_400;
/// A number of seconds has no more digits.
const DIGITS_MAX: u64 = 20;

/// The last time that is known.
#[derive(Debug, Default)]
pub struct KnownTime {
    /// `None`: it is not kept.
    file: Option<PathBuf>,
    /// Seconds since 1970; `None`: the file was not read yet.
    seconds: Option<u64>,
}

impl KnownTime {
    /// Kept in this folder, which need not be there yet.
    pub fn kept_in(folder: &Path) -> Self {
        Self { file: Some(folder.join(FILE_NAME)), seconds: None }
    }

    /// Seconds since 1970; 0: nothing is known.
    pub(super) fn seconds(&mut self) -> u64 {
        let file = self.file.as_deref();
        *self.seconds.get_or_insert_with(|| file.map_or(0, read))
    }

    /// By the clock a certificate was found good.
    pub(super) fn note(&mut self, clock: Clock) {
        let now_s = clock.now_s();
        if clock.is_behind() || now_s < self.seconds() + WORTH_S {
            return;
        }
        self.seconds = Some(now_s);
        let Some(file) = &self.file else { return };
        if let Err(error) = small_file::write(file, &format!("{now_s}\n")) {
            let shown = file.display();
            log::warn!(
                "{shown} cannot be written ({error}): after a restart without a clock the time is not known"
            );
        }
    }
}

/// What a file says; 0 when there is none, or it says nothing of use.
fn read(file: &Path) -> u64 {
    small_file::read(file, DIGITS_MAX + 1).and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::clock::system_s;
    use super::*;

    #[test]
    fn it_is_kept_over_a_restart_and_never_becomes_earlier() {
        let folder = std::env::temp_dir().join(format!("leveret-known-time-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let mut known = KnownTime::kept_in(&folder);
        assert_eq!(known.seconds(), 0, "nothing is known at first");
        known.note(Clock { not_before_s: 0 });
        let noted = known.seconds();
        assert!(noted > 1_700_000_000);
        assert_eq!(KnownTime::kept_in(&folder).seconds(), noted, "it outlives the process");
        let file = folder.join(FILE_NAME);
        // A day has to pass before it is written again.
        fs::remove_file(&file).unwrap();
        known.note(Clock { not_before_s: 0 });
        assert!(!file.exists());
        // A clock that is surely wrong says nothing.
        let mut before = KnownTime::kept_in(&folder);
        before.note(Clock { not_before_s: system_s() + 1_000 });
        assert!(!file.exists() && before.seconds() == 0);
        for text in ["", "-1", "soon", "99999999999999999999999999"] {
            fs::write(&file, text).unwrap();
            assert_eq!(KnownTime::kept_in(&folder).seconds(), 0, "{text}");
        }
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(KnownTime::default().seconds(), 0);
    }
}
