//! A folder found by its path, where nobody but root and the caller could say what the path leads to.
//!
//! Why it exists: root restores into a folder of another user, who may own the folders above it as well, and
//! put a link into one of them that leads elsewhere.
//!
//! Always true: the path is walked one name at a time, each in the folder that is open; a link is followed
//! only if it and the folder it lies in belong to root or to the caller; the last name is never a link.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::mem;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, fstat, fsync, mkdirat, openat, readlinkat, statat, unlinkat,
};
use rustix::io::Errno;
use rustix::process::geteuid;

/// So many links a path may lead through.
const LINKS_MAX: usize = 40;
/// What a folder is made with that is not there.
const FOLDER_MODE: u32 = 0o755;

/// The folders that had to be made, each with the one that it is in, the outermost first.
pub(super) struct Made(Vec<(OwnedFd, OsString)>);

impl Made {
    /// Removes them again, with this file in the innermost; one with anything else in it stays.
    pub(super) fn remove(self, file: &str) {
        if let Some(Ok(innermost)) = self.0.last().map(|(above, name)| open_way(above, name)) {
            let _ = unlinkat(&innermost, file, AtFlags::empty());
        }
        for (above, name) in self.0.iter().rev() {
            let _ = unlinkat(above, name, AtFlags::REMOVEDIR);
        }
    }
}

/// Opens the folder, which is made if need be, with those above it; tells which were made.
///
/// # Errors
/// It cannot be opened or made, or somebody else's link is on the way.
pub(super) fn open_or_make(path: &Path) -> io::Result<(OwnedFd, Made)> {
    let mut made = Vec::new();
    let mut names: VecDeque<OsString> = names_of(path);
    let mut walked = PathBuf::from(if path.is_absolute() { "/" } else { "." });
    let mut folder = open_way(CWD, walked.as_os_str())?;
    let mut links = 0;
    while let Some(name) = names.pop_front() {
        let is_last = names.is_empty();
        walked.push(&name);
        if kind_of(&folder, &name)? == Some(FileType::Symlink) {
            let why = if is_last {
                Some("it is a link; name the folder that it leads to".to_string())
            } else {
                stranger_of(&folder, &name)?.map(|owner| {
                    format!(
                        "{} is a link that user {owner} may have lead anywhere; name the folder behind it",
                        walked.display()
                    )
                })
            };
            if let Some(why) = why {
                return Err(io::Error::other(why));
            }
            links += 1;
            if links > LINKS_MAX {
                return Err(Errno::LOOP.into());
            }
            let target = readlinkat(&folder, &name, Vec::new())?.into_bytes();
            let target = PathBuf::from(OsString::from_vec(target));
            walked.pop();
            if target.is_absolute() {
                walked = PathBuf::from("/");
                folder = open_way(CWD, walked.as_os_str())?;
            }
            for name in names_of(&target).into_iter().rev() {
                names.push_front(name);
            }
            continue;
        }
        let is_made = match mkdirat(&folder, &name, Mode::from_raw_mode(FOLDER_MODE)) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            // A file system that can only be read, or somebody who may only look: it may be there.
            Err(_) if kind_of(&folder, &name)?.is_some() => false,
            Err(error) => return Err(error.into()),
        };
        let inner = open_way(&folder, &name)?;
        let above = mem::replace(&mut folder, inner);
        if is_made {
            sync_names(&above)?;
            made.push((above, name));
        }
    }
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
    Ok((openat(&folder, ".", flags, Mode::empty())?, Made(made)))
}

/// A folder that was made is there after a power cut, as far as the caller may look what is there.
fn sync_names(folder: &OwnedFd) -> io::Result<()> {
    match openat(folder, ".", OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(folder) => Ok(fsync(folder)?),
        Err(Errno::ACCESS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn names_of(path: &Path) -> VecDeque<OsString> {
    let names = path.components().filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir));
    names.map(|part| part.as_os_str().to_owned()).collect()
}

/// A folder on the way, in which nothing need be read.
fn open_way(at: impl std::os::fd::AsFd, name: &std::ffi::OsStr) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(at, name, flags, Mode::empty())?)
}

fn kind_of(folder: &OwnedFd, name: &OsString) -> io::Result<Option<FileType>> {
    match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) => Ok(Some(FileType::from_raw_mode(found.st_mode))),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whose link it is, or whose folder it lies in, if that is neither root nor the caller.
fn stranger_of(folder: &OwnedFd, name: &OsString) -> io::Result<Option<u32>> {
    let owners = [statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?.st_uid, fstat(folder)?.st_uid];
    Ok(owners.into_iter().find(|owner| *owner != 0 && *owner != geteuid().as_raw()))
}
