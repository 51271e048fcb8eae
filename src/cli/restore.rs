//! `leveret restore FILE`: creates a store from a backup.
//!
//! ```text
//! FOLDER/restore.part/*.seg   written, synced and checked
//! FOLDER/access.a, access.b   copies of an older store are invalidated, and synced
//! FOLDER/NEWEST.seg           gets its name, and the folder is synced
//! FOLDER/*.seg                get their names, and the folder is synced
//! ```
//!
//! # Invariants
//! - Nothing is changed in a folder with a store, or in one that a broker uses.
//! - Only segment files are unpacked, with their original names.
//! - If the backup cannot be restored completely, no file is left. Completeness is checked with the checksums
//!   in the last file of the archive. So a store that was already damaged when it was backed up is restored
//!   as it was.
//! - After a power cut at any time, a start finds one of three things: the previous content; the whole
//!   backup; or a store whose newest segment shows that others are missing. In the last case no login is
//!   accepted.
//! - The folder may belong to another user, who may create links there. So it is opened only once. Every file
//!   is created in it exclusively, and given to that user over its open descriptor.

use std::error::Error;
use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Gid, Mode, OFlags, Stat, Uid, fchown, fstat, fsync, mkdirat, openat, renameat, unlinkat,
};
use rustix::io::Errno;
use rustix::process::geteuid;

use crate::archive::{self, Checksums};
use crate::inspect::report::Inspection;
use crate::progress::{Counted, Progress, Total};
use leveret_daemon::RESTORE_PART;
use leveret_storage::{
    Disk, FileDisk, LOCK_NAME, OpenError, REPAIR_SLOT, invalidate_access_copies, invalidate_header_copy,
};

/// Maximum size of a segment in bytes.
const SEGMENT_BYTES_MAX: u64 = 256 << 20;

/// Why a backup cannot be restored.
#[derive(Debug)]
pub enum NotRestored {
    /// A file or folder cannot be used.
    File(PathBuf, io::Error),
    /// The folder contains a store.
    HasStore(PathBuf),
    /// A broker uses the folder.
    InUse(PathBuf),
    /// The file is no archive that `leveretctl backup` wrote.
    NoBackup(PathBuf, String),
    /// The archive contains no store, or not the one that was backed up.
    NoStore(PathBuf, String),
}

impl fmt::Display for NotRestored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path, error) => write!(f, "{}: {error}", path.display()),
            Self::HasStore(folder) => write!(
                f,
                "{} contains a store already: move it away first (mv {0} {0}.old), or name another folder with \
                 --data-dir",
                folder.display()
            ),
            Self::InUse(folder) => {
                write!(f, "{}: a broker uses it; stop that broker first", folder.display())
            }
            Self::NoBackup(path, why) => write!(
                f,
                "{} is no backup: {why}; nothing was restored. Backups are made by leveretctl backup FILE",
                path.display()
            ),
            Self::NoStore(path, why) => write!(f, "{}: {why}; nothing was restored", path.display()),
        }
    }
}

impl Error for NotRestored {}

/// Restores the archive into a folder, which is created if necessary. Returns a description of the store.
///
/// # Errors
/// See [`NotRestored`]. The folder is then unchanged.
pub fn run(archive: &Path, folder: &Path) -> Result<String, NotRestored> {
    let of = |path: &Path| {
        let path = path.to_path_buf();
        move |error| NotRestored::File(path, error)
    };
    let file = File::open(archive).map_err(of(archive))?;
    let no_backup = |why: &str| NotRestored::NoBackup(archive.to_path_buf(), why.to_string());
    let metadata = file.metadata().map_err(of(archive))?;
    if metadata.is_dir() {
        return Err(no_backup("it is a directory"));
    }
    // A pipe has no length.
    let length = metadata.len();
    let mut source = BufReader::new(file);
    // The head is kept and read again with the rest, because a pipe cannot be read twice.
    let mut head = Vec::with_capacity(archive::BLOCK_BYTES);
    source.by_ref().take(archive::BLOCK_BYTES as u64).read_to_end(&mut head).map_err(of(archive))?;
    if let Some(why) = why_no_archive(&head) {
        return Err(no_backup(why));
    }
    let has_note = head.starts_with(archive::NOTE_NAME.as_bytes());
    let mut source = head.as_slice().chain(source);
    let mut progress = Progress::start("Restore", Total::Bytes(length));
    let (target, new) = archive::open_or_make(folder).map_err(of(folder))?;
    let restored = restore(&mut source, &Archive { path: archive, has_note }, folder, target, &mut progress);
    if restored.is_err() {
        new.remove(LOCK_NAME);
    }
    restored
}

/// Returns why a file with this head, its first 512 bytes, is not a backup; `None` if it may be one, possibly a damaged
/// one.
fn why_no_archive(head: &[u8]) -> Option<&'static str> {
    let text = head.strip_prefix(leveret_config::BYTE_ORDER_MARK).unwrap_or(head).trim_ascii_start();
    match head {
        [] => Some("it is empty"),
        [0x1f, 0x8b, ..] => {
            Some("it is compressed with gzip; if a backup is in it, unpack it first (gunzip)")
        }
        [0xfd, b'7', b'z', b'X', b'Z', ..] => {
            Some("it is compressed with xz; if a backup is in it, unpack it first (unxz)")
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            Some("it is compressed with zstd; if a backup is in it, unpack it first (unzstd)")
        }
        _ if archive::is_header(head) || head.starts_with(archive::NOTE_NAME.as_bytes()) => None,
        _ if text.starts_with(b"{") => Some(
            "it looks like definitions in JSON; leveretctl import_definitions FILE imports them into a running broker",
        ),
        _ => Some("it is not a tar archive, or its start is damaged"),
    }
}

/// The file from which a store is restored.
struct Archive<'a> {
    path: &'a Path,
    /// It starts with the note that only backups have.
    has_note: bool,
}

fn restore(
    source: &mut impl Read,
    archive: &Archive<'_>,
    folder: &Path,
    target: OwnedFd,
    progress: &mut Progress,
) -> Result<String, NotRestored> {
    let Archive { path: archive, has_note } = *archive;
    let of = |path: &Path| {
        let path = path.to_path_buf();
        move |error| NotRestored::File(path, error)
    };
    let mut disk = FileDisk::within(target.try_clone().map_err(of(folder))?);
    disk.lock().map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => NotRestored::InUse(folder.to_path_buf()),
        _ => NotRestored::File(folder.to_path_buf(), error),
    })?;
    if !disk.slots().map_err(of(folder))?.is_empty() {
        return Err(NotRestored::HasStore(folder.to_path_buf()));
    }
    let mut made = RestoredFiles::begin(target).map_err(of(&folder.join(RESTORE_PART)))?;
    let sums = unpack(&mut Counted::new(source, progress), &mut made);
    let is_backup = has_note || !made.files.is_empty();
    let sums = sums.map_err(|error| not_unpacked(archive, is_backup, error))?;
    if !is_backup {
        let why = "it is a tar archive of other files that contains no store";
        return Err(NotRestored::NoBackup(archive.to_path_buf(), why.to_string()));
    }
    progress.step("checking");
    let mut part = FileDisk::within(made.part.try_clone().map_err(of(folder))?);
    let inspection = Inspection::of(&mut part).map_err(|error| {
        let why = match error {
            OpenError::NoStore => "it contains no store: no segment file".to_string(),
            error => error.to_string(),
        };
        NotRestored::NoStore(archive.to_path_buf(), why)
    })?;
    if let Some(why) = why_not_intact(&sums, inspection.is_whole()) {
        return Err(NotRestored::NoStore(archive.to_path_buf(), why));
    }
    // The folder may have copies of users and permissions of a removed store. They must not be used with the
    // backup, even if they are newer.
    invalidate_access_copies(&mut disk).map_err(of(folder))?;
    invalidate_header_copy(&mut disk).map_err(of(folder))?;
    if disk.read(REPAIR_SLOT, 0, &mut [0]).is_ok_and(|length| length > 0) {
        disk.remove(REPAIR_SLOT).map_err(of(folder))?;
    }
    let newest = inspection.newest_slot().map(segment_name);
    made.finish(newest.as_deref()).map_err(of(folder))?;
    let (folder, count) = (folder.display(), made.files.len());
    if inspection.is_whole() {
        return Ok(format!("{folder}: {count} segment files restored, every checksum holds\n"));
    }
    Ok(format!(
        "{folder}: {count} segment files restored; some were already damaged at the time of the backup: their \
         intact parts are served; `leveret inspect {folder}` lists the damage\n"
    ))
}

/// Returns why an archive could not be unpacked. `is_backup`: it has files of a store.
fn not_unpacked(archive: &Path, is_backup: bool, error: io::Error) -> NotRestored {
    let no_backup = |why: &str| NotRestored::NoBackup(archive.to_path_buf(), why.to_string());
    match error.kind() {
        io::ErrorKind::UnexpectedEof if is_backup => {
            let why = "it is incomplete; copy it again, or use another backup";
            NotRestored::NoStore(archive.to_path_buf(), why.to_string())
        }
        io::ErrorKind::UnexpectedEof => no_backup("it is an incomplete tar archive of other files"),
        io::ErrorKind::InvalidData if !is_backup => {
            no_backup("it is a damaged tar archive, or one of other files")
        }
        _ => NotRestored::File(archive.to_path_buf(), error),
    }
}

/// Returns why a backup must not be used; `None` if it is intact.
fn why_not_intact(sums: &ChecksumResult, is_whole: bool) -> Option<String> {
    match sums {
        // The archive is complete. If the store in it is damaged, it was so before the backup, and the backup
        // may be the only copy that is left.
        ChecksumResult::Agree => None,
        _ if !is_whole => Some("the store in it is damaged".to_string()),
        ChecksumResult::Differ => Some(format!(
            "it is damaged: the checksums in {0} at its end do not match its files (unpack it with tar; sha256sum \
             --check {0} names them); copy it again, or use another backup",
            archive::NAME
        )),
        ChecksumResult::Missing => Some(format!(
            "it is incomplete or damaged: it does not end with {}, the list of its checksums (backups of older \
             versions have none: unpack such a backup with tar)",
            archive::NAME
        )),
    }
}

/// Files that are removed again unless all of them are complete.
struct RestoredFiles {
    folder: OwnedFd,
    part: OwnedFd,
    files: Vec<String>,
    /// Number of files that have their names.
    named: usize,
    is_finished: bool,
}

impl RestoredFiles {
    /// Creates an empty folder for incomplete files. If the rest of an interrupted restore exists, this
    /// fails: it is not removed automatically, because the owner of the folder may have created something
    /// else there.
    fn begin(folder: OwnedFd) -> io::Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
        match unlinkat(&folder, RESTORE_PART, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => {
                let why = format!(
                    "it exists already ({error}); if an interrupted restore left it, remove it (rm -r)"
                );
                return Err(io::Error::other(why));
            }
        }
        mkdirat(&folder, RESTORE_PART, Mode::RWXU)?;
        let part = openat(&folder, RESTORE_PART, flags, Mode::empty())?;
        Ok(Self { folder, part, files: Vec::new(), named: 0, is_finished: false })
    }

    /// Gives the files their names. The newest segment gets its name first, because it contains which other
    /// segments exist.
    fn finish(&mut self, newest: Option<&str>) -> io::Result<()> {
        if let Some(at) = self.files.iter().position(|file| Some(&**file) == newest) {
            self.files.swap(0, at);
        }
        fsync(&self.part)?;
        for file in &self.files {
            renameat(&self.part, &**file, &self.folder, &**file)?;
            self.named += 1;
            if self.named == 1 {
                fsync(&self.folder)?;
            }
        }
        fsync(&self.folder)?;
        self.is_finished = true;
        Ok(())
    }
}

impl Drop for RestoredFiles {
    fn drop(&mut self) {
        // Failures are ignored, because the next attempt reports them. The newest segment is removed last,
        // because it got its name first.
        if !self.is_finished {
            for file in &self.files[self.named..] {
                let _ = unlinkat(&self.part, &**file, AtFlags::empty());
            }
            for file in self.files[..self.named].iter().rev() {
                let _ = unlinkat(&self.folder, &**file, AtFlags::empty());
            }
        }
        let _ = unlinkat(&self.folder, RESTORE_PART, AtFlags::REMOVEDIR);
    }
}

/// The result of comparing checksums.
enum ChecksumResult {
    /// The checksums are equal.
    Agree,
    /// The checksums differ.
    Differ,
    /// The last file of the archive is not the one with the checksums.
    Missing,
}

/// Unpacks all files.
fn unpack(archive: &mut impl Read, made: &mut RestoredFiles) -> io::Result<ChecksumResult> {
    let owner = fstat(&made.folder)?;
    let (mut sums, mut told) = (Checksums::default(), ChecksumResult::Missing);
    while let Some(entry) = archive::next(archive)? {
        let mut content = archive.take(entry.bytes);
        let name = &*entry.name;
        told = match entry.is_file && name == archive::NAME {
            true if sums.agree(&mut content)? => ChecksumResult::Agree,
            true => ChecksumResult::Differ,
            false => ChecksumResult::Missing,
        };
        if entry.is_file && is_segment(name) && entry.bytes <= SEGMENT_BYTES_MAX {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mut file = File::from(openat(&made.part, name, flags, Mode::RUSR | Mode::WUSR)?);
            made.files.push(entry.name.clone());
            if sums.copy(name, &mut content, &mut file)? < entry.bytes {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            give(&file, &owner)?;
            file.sync_all()?;
        } else {
            sums.copy(name, &mut content, &mut io::sink())?;
            if content.limit() > 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        archive::skip_padding(archive, entry.bytes)?;
    }
    archive::skip_end(archive)?;
    Ok(told)
}

/// Gives an open file to the folder's owner, which is the broker's user. The descriptor is used, because the
/// name may refer to another file now.
fn give(file: &File, owner: &Stat) -> io::Result<()> {
    if geteuid().is_root() {
        fchown(file, Some(Uid::from_raw(owner.st_uid)), Some(Gid::from_raw(owner.st_gid)))?;
    }
    Ok(())
}

fn segment_name(slot: u32) -> String {
    format!("{slot:08}.seg")
}

fn is_segment(name: &str) -> bool {
    name.strip_suffix(".seg")
        .is_some_and(|number| number.len() == 8 && number.bytes().all(|b| b.is_ascii_digit()))
}
