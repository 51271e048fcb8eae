//! The disk as files of one directory.
//!
//! # Invariants
//! - Reads and writes are positional; files have no cursor. Nothing is memory-mapped.
//! - Segments are synced with `fdatasync` only, never by syncing the file system.
//! - The lock is held as long as the disk object exists. A read-only disk creates, changes and locks nothing.
//! - The path of the directory is resolved once, and files are opened relative to that directory. In it, links are
//!   not followed, and only regular files are accepted, because root may work in directories into which other users
//!   can place links, pipes or sockets.
//! - A file that cannot be opened counts as damaged and is recorded. The access files have a second name for this
//!   case, because a file with a damaged inode cannot be deleted either.
//! - At most [`FileDisk::DESCRIPTORS_MAX`] descriptors are open, for any number of segments. A file with unsynced
//!   bytes is never closed to open another file: if the bytes were lost, a sync after opening the file again might
//!   not report the loss.

use core::fmt;
use std::fs::{DirBuilder, File, TryLockError};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io, thread};

use leveret_core::error::is_out_of_descriptors;
use rustix::fs::{
    AtFlags, Dir, FallocateFlags, FlockOperation, IFlags, Mode, OFlags, fallocate, fchown, flock, fstatfs,
    fstatvfs, ioctl_getflags, ioctl_setflags, major, minor, open, openat, unlinkat,
};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::damage::is_about_a_block;
use super::disk::{ACCESS_SLOTS, Disk, NEWEST_SLOT, REPAIR_SLOT, UnopenedFile};

/// The file in the data directory that a writing process locks.
pub const LOCK_NAME: &str = "lock";
const SUFFIX: &str = ".seg";
const NEWEST_NAME: &str = "newest";
const REPAIR_NAME: &str = "mending";
const ACCESS_NAMES: [&str; 2] = ["access.a", "access.b"];
/// Names of the access files when those with the first names cannot be opened.
const ACCESS_SPARE_NAMES: [&str; 2] = ["access.c", "access.d"];
const ZEROS: [u8; 16 << 10] = [0; 16 << 10];
/// Number of segment files kept open: two for commits, one for the compactor, and others for the fetches of a few
/// queues. If more are needed, opening a file again is cheap compared with a sync.
const OPEN_MAX: usize = 16;
/// Interval between attempts to open a file while the process has no descriptors left.
const DESCRIPTOR_WAIT: Duration = Duration::from_millis(20);

/// Makes btrfs overwrite prepared blocks in place.
///
/// Without this flag, prepared space would be useless on btrfs: on a full file system no commit could be written, not
/// even one that frees space. The flag has an effect only while the file is empty and not compressed, because
/// compressed zeros reserve no space. Other file systems refuse the flag. Some of those (f2fs, UBIFS) write changed
/// blocks to another place as well, but reserve space for that. [`not_in_place`] reports file systems that do not
/// write in place.
fn write_in_place(file: &File) {
    if let Ok(flags) = ioctl_getflags(file) {
        // Two separate calls, because a compressed file cannot be marked.
        let plain = flags - IFlags::COMPRESSED;
        if plain != flags {
            let _refused = ioctl_setflags(file, plain);
        }
        let _refused = ioctl_setflags(file, plain | IFlags::NOCOW);
    }
}

/// Permissions of a store's directory: owner only, regardless of the umask. It contains messages and password
/// hashes.
const DIRECTORY_MODE: u32 = 0o700;

/// Creates a directory and makes its name durable. Otherwise a power cut could remove the directory with its content.
///
/// # Errors
/// The directory cannot be created, or its parent cannot be synced.
pub fn make_directory(directory: &Path) -> io::Result<()> {
    DirBuilder::new().mode(DIRECTORY_MODE).create(directory)?;
    let parent = directory.parent().filter(|parent| !parent.as_os_str().is_empty());
    match File::open(parent.unwrap_or(Path::new("."))) {
        Ok(parent) => parent.sync_all(),
        // A process that may create a directory may lack permission to read its parent.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        Err(error) => Err(error),
    }
}

/// A disk in the form of files in a directory.
#[derive(Debug)]
pub struct FileDisk {
    directory: PathBuf,
    /// The directory, once it was opened.
    folder: Option<Arc<OwnedFd>>,
    /// Open segment files; the most recently used one is last.
    open: Vec<OpenFile>,
    lock: Option<File>,
    only_reads: bool,
    unopened: Vec<UnopenedFile>,
}

/// An open segment file.
#[derive(Debug)]
struct OpenFile {
    slot: u32,
    file: File,
    /// Whether bytes were written that are not synced yet.
    is_unsynced: bool,
}

impl FileDisk {
    /// Maximum file descriptors of one disk: its segments, its lock, and the directory.
    pub const DESCRIPTORS_MAX: usize = OPEN_MAX + 2;

    /// Creates the disk over `directory`, which must exist.
    pub fn new(directory: &Path) -> Self {
        Self {
            directory: directory.to_path_buf(),
            folder: None,
            open: Vec::new(),
            lock: None,
            only_reads: false,
            unopened: Vec::new(),
        }
    }

    /// Creates the disk over an open directory. Missing files are created in this directory.
    pub fn within(folder: OwnedFd) -> Self {
        Self { folder: Some(Arc::new(folder)), ..Self::new(Path::new("")) }
    }

    /// Creates a read-only disk over `directory`, which another process may be writing to. No file is created
    /// or opened for writing, and nothing is locked.
    pub fn open_read_only(directory: &Path) -> Self {
        Self { only_reads: true, ..Self::new(directory) }
    }

    fn may_write(&self) -> io::Result<()> {
        if self.only_reads { Err(io::ErrorKind::PermissionDenied.into()) } else { Ok(()) }
    }

    /// Returns the directory; resolves its path once.
    fn open_folder(&mut self) -> io::Result<Arc<OwnedFd>> {
        if let Some(folder) = &self.folder {
            return Ok(folder.clone());
        }
        let directory = self.directory.clone();
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let found = self.open_with_retry(|| Ok(rustix::fs::open(&directory, flags, Mode::empty())?))?;
        Ok(self.folder.insert(Arc::new(found)).clone())
    }

    /// Opens a file of the directory.
    fn open_at(&mut self, name: &str, flags: OFlags) -> io::Result<File> {
        let folder = self.open_folder()?;
        self.open_with_retry(|| open_plain(&folder, name, flags))
    }

    /// Returns the open file of a slot; opens it if necessary.
    fn file(&mut self, slot: u32) -> io::Result<&mut OpenFile> {
        if let Some(at) = self.open.iter().position(|open| open.slot == slot) {
            self.open[at..].rotate_left(1);
        } else {
            self.make_room();
            let file = self.open_segment(slot)?;
            self.open.push(OpenFile { slot, file, is_unsynced: false });
        }
        self.open.last_mut().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Closes the least recently used synced file if the maximum number is open.
    fn make_room(&mut self) {
        if self.open.len() >= OPEN_MAX
            && let Some(at) = self.open.iter().position(|open| !open.is_unsynced)
        {
            self.open.remove(at);
        }
    }

    /// Calls `open`, and retries while the process has no descriptors left, after closing this disk's synced files.
    /// The lack of descriptors is temporary and no failure of the disk. A read-only disk returns the error instead.
    fn open_with_retry<T>(&mut self, open: impl Fn() -> io::Result<T>) -> io::Result<T> {
        let mut is_reported = self.only_reads;
        loop {
            match open() {
                Err(error) if is_out_of_descriptors(&error) => {
                    if !self.open.iter().all(|open| open.is_unsynced) {
                        self.open.retain(|open| open.is_unsynced);
                        continue;
                    }
                    if self.only_reads {
                        return Err(error);
                    }
                    if !core::mem::replace(&mut is_reported, true) {
                        log::error!(
                            "the store waits for a file descriptor ({error}): raise the limit (LimitNOFILE)"
                        );
                    }
                    thread::sleep(DESCRIPTOR_WAIT);
                }
                done => return done,
            }
        }
    }

    /// Opens the file of a slot, and records it if that is impossible.
    fn open_slot(&mut self, slot: u32, flags: OFlags) -> io::Result<File> {
        let name = self.name_of(slot);
        let error = match self.open_at(&name, flags) {
            Err(error) if is_no_file(&error) || is_about_a_block(&error) => error,
            opened => return opened,
        };
        self.note_unopened(&name, Some(slot), &error);
        if self.name_of(slot) != name {
            return self.open_slot(slot, flags);
        }
        Err(io::Error::other(format!("the file {name} of the store cannot be opened: {error}")))
    }

    fn note_unopened(&mut self, name: &str, slot: Option<u32>, error: &io::Error) {
        if self.unopened.iter().all(|other| other.name != name) {
            self.unopened.push(UnopenedFile { name: name.into(), slot, why: error.to_string() });
        }
    }

    /// Returns the file name of a slot. A small file uses its second name if the first one cannot be opened.
    fn name_of(&self, slot: u32) -> String {
        if slot == NEWEST_SLOT {
            return NEWEST_NAME.into();
        }
        if slot == REPAIR_SLOT {
            return REPAIR_NAME.into();
        }
        let Some(at) = ACCESS_SLOTS.iter().position(|other| *other == slot) else {
            return format!("{slot:08}{SUFFIX}");
        };
        let is_lost = self.unopened.iter().any(|other| other.name == ACCESS_NAMES[at]);
        if is_lost { ACCESS_SPARE_NAMES[at].into() } else { ACCESS_NAMES[at].into() }
    }

    /// Removes the access file with the second name when the one with the first name can be opened again: its content
    /// is outdated then.
    fn remove_spare_name(&mut self, slot: u32) -> io::Result<()> {
        let Some(at) = ACCESS_SLOTS.iter().position(|other| *other == slot) else { return Ok(()) };
        if self.name_of(slot) == ACCESS_NAMES[at] {
            let folder = self.open_folder()?;
            match unlinkat(folder, ACCESS_SPARE_NAMES[at], AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => log::warn!("cannot remove {}: {error}", ACCESS_SPARE_NAMES[at]),
            }
        }
        Ok(())
    }

    /// Opens a segment for writing, or for reading only if that fails: a worn card, or a card image under inspection,
    /// may be read-only.
    fn open_segment(&mut self, slot: u32) -> io::Result<File> {
        if !self.only_reads {
            match self.open_slot(slot, OFlags::RDWR) {
                Err(error) if !is_out_of_descriptors(&error) && !is_about_a_block(&error) => {}
                opened => return opened,
            }
        }
        self.open_slot(slot, OFlags::RDONLY)
    }

    /// Returns the reason why a file could not be opened for writing, instead of the error of the failed
    /// write.
    fn write_open_error(&mut self, slot: u32, error: io::Error) -> io::Error {
        self.open_slot(slot, OFlags::WRONLY).err().unwrap_or(error)
    }

    /// Locks the lock file in addition to the directory, because other versions of Leveret lock only the file.
    fn lock_file(&mut self) -> io::Result<()> {
        // On a read-only card the lock file cannot be opened for writing, but the messages must still be delivered.
        let file = match self.open_at(LOCK_NAME, OFlags::WRONLY | OFlags::CREATE) {
            Err(error) if !is_out_of_descriptors(&error) => {
                self.open_at(LOCK_NAME, OFlags::RDONLY).map_err(|_| error)?
            }
            opened => opened?,
        };
        self.give_to_owner(&file)?;
        match file.try_lock() {
            Ok(()) => {
                self.lock = Some(file);
                Ok(())
            }
            Err(TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Gives a file that root has created to the owner of the directory, because the broker of that user could not
    /// open the file otherwise. Files with a second hard link are left alone, because they may belong to another
    /// user.
    fn give_to_owner(&self, file: &File) -> io::Result<()> {
        let Some(folder) = &self.folder else { return Ok(()) };
        let (owner, found) = (rustix::fs::fstat(folder)?, file.metadata()?);
        if geteuid().is_root() && found.uid() == 0 && owner.st_uid != 0 && found.nlink() == 1 {
            let (user, group) =
                (rustix::fs::Uid::from_raw(owner.st_uid), rustix::fs::Gid::from_raw(owner.st_gid));
            fchown(file, Some(user), Some(group))?;
        }
        Ok(())
    }
}

/// Returns whether the error means that an object with this name is no regular file, but for example a link,
/// a directory, a pipe or a socket.
fn is_no_file(error: &io::Error) -> bool {
    let is_known_error = Errno::from_io_error(error)
        .is_some_and(|errno| [Errno::LOOP, Errno::ISDIR, Errno::NXIO, Errno::NODEV].contains(&errno));
    is_known_error || error.kind() == io::ErrorKind::InvalidInput
}

/// Returns whether the broker may run without the lock file after this error, because the directory itself is locked.
/// It may not if another process has locked the file, or if a permission is missing, which is a mistake of the
/// installation.
fn may_run_without_lock_file(error: &io::Error) -> bool {
    !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::PermissionDenied)
}

/// Opens a regular file, or creates it with permissions for its owner only, because it contains messages and
/// password hashes.
fn open_plain(folder: &OwnedFd, name: &str, flags: OFlags) -> io::Result<File> {
    // `NONBLOCK`: do not wait for the other end of a pipe.
    let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(openat(folder, name, flags, Mode::RUSR | Mode::WUSR)?);
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a file"))
    }
}

// `inline(never)`: the generic code that calls these functions is compiled in each package. Inlined there,
// the system calls would only enlarge the program.
impl Disk for FileDisk {
    fn lock(&mut self) -> io::Result<()> {
        self.may_write()?;
        let folder = self.open_folder()?;
        // The directory is locked in addition to the lock file, so that all brokers lock the same object even if one
        // of them cannot use the lock file.
        let by_folder = match flock(folder, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => return Err(io::ErrorKind::WouldBlock.into()),
            locked => locked,
        };
        match self.lock_file() {
            Err(error) if by_folder.is_ok() && may_run_without_lock_file(&error) => {
                self.note_unopened(LOCK_NAME, None, &error);
                Ok(())
            }
            locked => locked,
        }
    }

    fn unopened(&self) -> &[UnopenedFile] {
        &self.unopened
    }

    fn slots(&mut self) -> io::Result<Vec<u32>> {
        let mut slots = Vec::new();
        let folder = self.open_folder()?;
        for entry in self.open_with_retry(|| Ok(Dir::read_from(&folder)?))? {
            let entry = entry?;
            let name = entry.file_name();
            let number = name.to_str().ok().and_then(|name| name.strip_suffix(SUFFIX));
            // Files with other names, or with numbers above the highest slot of any store, do not belong to the
            // store.
            slots.extend(number.and_then(|number| number.parse::<u32>().ok()).filter(|slot| *slot < 1 << 20));
        }
        Ok(slots)
    }

    #[inline(never)]
    fn create(&mut self, slot: u32) -> io::Result<()> {
        self.may_write()?;
        self.remove_spare_name(slot)?;
        let file = self.open_slot(slot, OFlags::WRONLY | OFlags::CREATE)?;
        write_in_place(&file);
        self.give_to_owner(&file)
    }

    /// Keeps the file's length, because the length shows how much of the file is prepared. If the file system cannot
    /// reserve space, checks the free space instead, so that a full file system is not filled with zeros repeatedly.
    #[inline(never)]
    fn reserve(&mut self, slot: u32, bytes: u64) -> io::Result<()> {
        let file = &self.file(slot)?.file;
        match fallocate(file, FallocateFlags::KEEP_SIZE, 0, bytes) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                let found = fstatvfs(file)?;
                let is_room = found.f_bavail.saturating_mul(found.f_frsize) >= bytes;
                if is_room { Ok(()) } else { Err(io::ErrorKind::StorageFull.into()) }
            }
            taken => Ok(taken?),
        }
    }

    #[inline(never)]
    fn read(&mut self, slot: u32, at: u64, bytes: &mut [u8]) -> io::Result<usize> {
        let file = match self.file(slot) {
            Ok(open) => &open.file,
            // A deleted file is treated as damage: it reads as empty, and the other segments stay readable.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            Err(error) => return Err(error),
        };
        let mut done = 0;
        while done < bytes.len() {
            match file.read_at(&mut bytes[done..], at + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    #[inline(never)]
    fn write(&mut self, slot: u32, at: u64, bytes: &[u8]) -> io::Result<()> {
        let open = self.file(slot)?;
        open.is_unsynced = true;
        let written = open.file.write_all_at(bytes, at);
        written.map_err(|error| self.write_open_error(slot, error))
    }

    fn zero(&mut self, slot: u32, at: u64, bytes: u32) -> io::Result<()> {
        let open = self.file(slot)?;
        open.is_unsynced = true;
        let (mut at, end) = (at, at + u64::from(bytes));
        while at < end {
            let step = (end - at).min(ZEROS.len() as u64);
            open.file.write_all_at(&ZEROS[..step as usize], at)?;
            at += step;
        }
        Ok(())
    }

    #[inline(never)]
    fn sync(&mut self, slot: u32) -> io::Result<()> {
        let open = self.file(slot)?;
        open.file.sync_data()?;
        // A deleted file disappears when this process ends, even if its content was synced.
        if rustix::fs::fstat(&open.file)?.st_nlink == 0 {
            return Err(io::Error::other(
                "a file of the store was removed while in use; do not change files in the data directory",
            ));
        }
        open.is_unsynced = false;
        Ok(())
    }

    fn remove(&mut self, slot: u32) -> io::Result<()> {
        self.open.retain(|open| open.slot != slot);
        let folder = self.open_folder()?;
        Ok(unlinkat(folder, self.name_of(slot), AtFlags::empty())?)
    }

    fn sync_directory(&mut self) -> io::Result<()> {
        Ok(rustix::fs::fsync(self.open_folder()?)?)
    }
}

/// The unit of `/sys` in bytes.
const SECTOR_BYTES: u64 = 512;

/// A partition that does not begin at an erase block boundary of the flash.
///
/// A flash card erases in large blocks. If a partition begins within such a block, every segment spans one block more
/// than necessary. That wears the card, and a power cut may destroy neighbouring data. Only the operator can align
/// the partition, so the misalignment is reported once, before much data is stored. It can be detected only if `/sys`
/// contains the start of the partition and the size of an erase block, as it does for SD cards and eMMC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Misaligned {
    /// Start of the partition, in bytes.
    pub start_bytes: u64,
    /// Size of an erase block, in bytes.
    pub erase_bytes: u64,
}

impl fmt::Display for Misaligned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { start_bytes, erase_bytes } = self;
        write!(
            f,
            "the partition begins at byte {start_bytes} of the card, which is not a multiple of its erase block \
             of {erase_bytes} bytes: this wears the card; align the partition when the card is set up again"
        )
    }
}

/// Returns the misalignment of a directory's partition; `None` if it is aligned or unknown.
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

/// Copy-on-write file systems, by the magic numbers of `statfs`.
const COPY_ON_WRITE_FILE_SYSTEMS: [(u32, &str); 6] = [
    (0xF2F5_2010, "f2fs"),
    (0x2405_1905, "UBIFS"),
    (0x2FC1_2FC1, "ZFS"),
    (0xCA45_1A4E, "bcachefs"),
    (0x3434, "NILFS"),
    (0x72B6, "JFFS2"),
];
/// btrfs overwrites in place only in files with the flag `NOCOW`.
const BTRFS: u32 = 0x9123_683E;

/// The reason why prepared space may not be usable on a full file system.
///
/// Prepared space is useful only if the file system overwrites blocks in place. Otherwise a full file system may have
/// no space for a commit. The store then deletes a free segment file; in addition the operator should keep some space
/// free. The reason is reported once at a start, and by every inspection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotInPlace {
    /// The file system writes overwritten blocks elsewhere. Contains its name.
    Elsewhere(&'static str),
    /// The file system compresses the store's files.
    Compressed,
}

impl fmt::Display for NotInPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Elsewhere(name) => {
                write!(f, "the file system ({name}) writes changed blocks to another place")?
            }
            Self::Compressed => f.write_str("the file system compresses the files of the store")?,
        }
        f.write_str(
            ", so preallocated space may not be usable when it is full: leave some free (a lower disk_limit)",
        )
    }
}

/// Returns why the segments in a directory are not overwritten in place; `None` if they are, or if that is unknown.
pub fn not_in_place(directory: &Path) -> Option<NotInPlace> {
    let is_segment = |path: &Path| path.extension().is_some_and(|extension| extension == "seg");
    let mut paths = fs::read_dir(directory).ok()?.flatten().map(|entry| entry.path());
    // In directories of other users an object that is no regular file may have the name of a segment.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let segment = open(paths.find(|path| is_segment(path))?, flags, Mode::empty()).ok()?;
    not_in_place_reason(
        fstatfs(&segment).ok()?.f_type as u32,
        ioctl_getflags(&segment).unwrap_or(IFlags::empty()),
    )
}

/// Returns why a file with these flags on this file system is not overwritten in place.
fn not_in_place_reason(file_system: u32, flags: IFlags) -> Option<NotInPlace> {
    let is_known = |(number, name): &(u32, &'static str)| (*number == file_system).then_some(*name);
    if flags.contains(IFlags::COMPRESSED) {
        return Some(NotInPlace::Compressed);
    }
    if file_system == BTRFS && !flags.contains(IFlags::NOCOW) {
        return Some(NotInPlace::Elsewhere("btrfs"));
    }
    COPY_ON_WRITE_FILE_SYSTEMS.iter().find_map(is_known).map(NotInPlace::Elsewhere)
}

#[cfg(test)]
mod alignment_tests {
    use super::*;
    use std::path::PathBuf;

    /// Creates a card with one partition as `/sys` shows it; returns the partition's directory.
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

#[cfg(test)]
mod in_place_tests {
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
            assert_eq!(not_in_place_reason(file_system, flags), expected, "{file_system:#x} {flags:?}");
        }
        assert_eq!(not_in_place(Path::new("/nowhere")), None);
    }
}
