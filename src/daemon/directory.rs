//! Whether the data directory is what it was set up to be.
//!
//! Why it exists: a mistake in setting up (a folder that is not there, that another user owns) is not a
//! broken disk. The one is told to whoever made it, with what to type, and ends the start; with the other the
//! broker runs, as far as that goes without a disk. A broker that took a mistake for a broken disk would run
//! for years without keeping anything.
//!
//! Always true: nothing is made but the last folder of the path, and by a rehearsal not even that.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{Access, FsWord, PROC_SUPER_MAGIC, statfs};
use rustix::io::Errno;

use leveret_config::Config;
use leveret_storage::{Disk, FileDisk, OpenError, make_directory};

use super::start_error::StartError;

/// Where `leveret restore` puts everything until it is whole.
pub const RESTORE_PART: &str = "restore.part";

/// `SYSFS_MAGIC` of linux/magic.h.
const SYSFS_MAGIC: FsWord = 0x6265_6572;

/// What stands where the data directory belongs.
enum DirectoryState {
    Directory,
    Nothing,
    /// The disk says something against looking.
    Bad(io::Error),
}

/// Makes the directory if it is not there. Within the result: what the disk says against it.
///
/// # Errors
/// It, or something in it, is not what it must be.
pub(super) fn prepare(config: &Config, files: &mut FileDisk) -> Result<io::Result<()>, StartError> {
    match find(config)? {
        DirectoryState::Directory => {}
        DirectoryState::Nothing => {
            if let Err(error) = make_directory(&config.data_dir) {
                return judge(config, error).map(Err);
            }
        }
        DirectoryState::Bad(error) => return Ok(Err(error)),
    }
    // Before anything is made in it: an empty mount point stays empty.
    expect_store(config, files)
}

/// Whether there is a store where there must be one, or at least no half of one.
fn expect_store(config: &Config, files: &mut FileDisk) -> Result<io::Result<()>, StartError> {
    match files.slots() {
        Ok(slots) if slots.is_empty() && config.store.require_store => {
            Err(StartError::Store(config.data_dir.clone(), OpenError::NoStore))
        }
        Ok(slots) if slots.is_empty() && fs::symlink_metadata(config.data_dir.join(RESTORE_PART)).is_ok() => {
            let part = config.data_dir.join(RESTORE_PART);
            let why = format!(
                "a restore into it was cut short, and a broker would begin a new store with a new store's \
                 users: remove what it left (rm -r {}), and restore again",
                part.display()
            );
            Err(StartError::Directory(config.data_dir.clone(), why))
        }
        Ok(_) => Ok(Ok(())),
        Err(error) => judge(config, error).map(Err),
    }
}

/// Whether [`prepare`] would find what it needs, with nothing made or changed.
///
/// # Errors
/// As of [`prepare`].
pub(super) fn rehearse(config: &Config) -> Result<io::Result<()>, StartError> {
    let directory = config.data_dir.as_path();
    let to_be_written = match find(config)? {
        DirectoryState::Directory => directory,
        DirectoryState::Nothing => parent(directory),
        DirectoryState::Bad(error) => return Ok(Err(error)),
    };
    let may = Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK;
    if let Err(error) = rustix::fs::access(to_be_written, may) {
        return judge(config, error.into()).map(Err);
    }
    if to_be_written == directory { expect_store(config, &mut FileDisk::new(directory)) } else { Ok(Ok(())) }
}

fn find(config: &Config) -> Result<DirectoryState, StartError> {
    let directory = &config.data_dir;
    match fs::metadata(directory) {
        Ok(found) if !found.is_dir() => {
            let why = "it is no directory; move it away, or name another with data_dir (or --data-dir)";
            Err(StartError::Directory(directory.clone(), why.to_string()))
        }
        Ok(_) => expect_files(config, directory).map(|()| DirectoryState::Directory),
        Err(error) if error.kind() == io::ErrorKind::NotFound && !config.store.require_store => {
            expect_files(config, parent(directory)).map(|()| DirectoryState::Nothing)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(StartError::Store(directory.clone(), OpenError::NoStore))
        }
        Err(error) => judge(config, error).map(DirectoryState::Bad),
    }
}

/// Whether the file system of `place` is one in which files can be made. What the kernel shows of itself lets
/// root ask for that, and refuses it when it comes to it.
fn expect_files(config: &Config, place: &Path) -> Result<(), StartError> {
    let kind = statfs(place).map(|found| found.f_type);
    if kind.is_ok_and(|kind| kind == PROC_SUPER_MAGIC || kind == SYSFS_MAGIC) {
        let why = "nobody can make files there, for it shows the kernel's own; name another with data_dir \
                   (or --data-dir)";
        return Err(StartError::Directory(config.data_dir.clone(), why.to_string()));
    }
    Ok(())
}

fn parent(directory: &Path) -> &Path {
    let parent = directory.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.unwrap_or(Path::new("."))
}

/// The error again, if it is the disk's.
///
/// # Errors
/// The directory is not as it has to be, with what is to be changed.
pub(super) fn judge(config: &Config, error: io::Error) -> Result<io::Error, StartError> {
    let directory = &config.data_dir;
    let why = match error.kind() {
        io::ErrorKind::PermissionDenied => forbidden(directory, &error),
        io::ErrorKind::NotFound => {
            let parent = parent(directory).display();
            format!("{parent} is not there; make it (mkdir -p {parent}), or mount what belongs there")
        }
        io::ErrorKind::NotADirectory => {
            "something on the way to it is no directory; see to the path".to_string()
        }
        io::ErrorKind::AlreadyExists => "it is a link that leads nowhere; mount what it leads to".to_string(),
        _ if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => {
            "the links on the way to it go in circles; see to the path".to_string()
        }
        io::ErrorKind::IsADirectory => "a directory stands where a file of the store belongs".to_string(),
        io::ErrorKind::InvalidFilename => "the path is too long".to_string(),
        _ => return Ok(error),
    };
    Err(StartError::Directory(directory.clone(), why))
}

/// What to type so that the broker may use it.
fn forbidden(directory: &Path, error: &io::Error) -> String {
    let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
    if fs::metadata(directory).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
        return format!(
            "it is not there, and the broker runs as {0}:{1} and may not make it: {error}; make it for the \
             broker (as root: mkdir {2} && chown {0}:{1} {2}), or name another with data_dir (or --data-dir)",
            user.as_raw(),
            group.as_raw(),
            directory.display()
        );
    }
    // It cannot even be looked at: the folder it is in, or one above, is closed.
    let closed = directory.ancestors().skip(1).find(|above| fs::metadata(above).is_ok());
    if let (Err(_), Some(above)) = (fs::metadata(directory), closed) {
        return format!(
            "the broker runs as {0}:{1} and may not look into {2}: {error}; let it (chmod o+x {2}), or name \
             another directory with data_dir (or --data-dir)",
            user.as_raw(),
            group.as_raw(),
            above.display(),
        );
    }
    let owner = fs::metadata(directory)
        .map_or_else(|_| String::new(), |found| format!(" (it belongs to {}:{})", found.uid(), found.gid()));
    format!(
        "the broker runs as {0}:{1} and may not use it, or a file in it: {error}{owner}; give it to the \
         broker (chown -R {0}:{1} {2}), or start the broker as another user",
        user.as_raw(),
        group.as_raw(),
        directory.display()
    )
}
