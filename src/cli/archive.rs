//! Archives of backups in a minimal tar format, their checksums, and the safe creation of folders and files.
//!
//! An archive contains only regular files with short names, so every `tar` program can read it.
//!
//! ```text
//! file  | header 512 bytes | content | zeros to the next 512 |
//! end   | 1024 zeros |
//!
//! header | name 100 | mode 8 | uid 8 | gid 8 | size 12 | mtime 12 | checksum 8 | type 1 | link 100
//!        | "ustar\0" "00" | ...          numbers are octal digits with a NUL behind them
//! ```

use ring::digest::{Context, SHA256};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, fstat, fsync, mkdirat, openat, readlinkat, renameat,
    renameat_with, statat, unlinkat,
};
use rustix::io::Errno;
use rustix::process::geteuid;
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read, Write};
use std::mem;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

/// Files are padded to a multiple of this size in bytes.
pub(super) const BLOCK_BYTES: usize = 512;
const SIZE_AT: core::ops::Range<usize> = 124..136;
const SUM_AT: core::ops::Range<usize> = 148..156;
const TYPE_AT: usize = 156;
const MAGIC_AT: usize = 257;
const MAGIC: &[u8] = b"ustar";

/// A file in an archive.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct ArchiveEntry {
    /// The name of the file.
    pub(super) name: String,
    /// Length of the content in bytes.
    pub(super) bytes: u64,
    /// The entry is a regular file.
    pub(super) is_file: bool,
}

/// Writes the header of a file. The content of `bytes` bytes and [`pad`] must follow.
pub(super) fn begin(out: &mut impl Write, name: &str, bytes: u64, unix_s: u64) -> io::Result<()> {
    let mut head = [0; BLOCK_BYTES];
    let mut put = |at: usize, text: &str| head[at..at + text.len()].copy_from_slice(text.as_bytes());
    debug_assert!(name.len() < 100, "a short name");
    put(0, name);
    put(100, "0000600");
    put(108, "0000000");
    put(116, "0000000");
    put(SIZE_AT.start, &format!("{bytes:011o}"));
    put(136, &format!("{unix_s:011o}"));
    put(SUM_AT.start, "        ");
    put(TYPE_AT, "0");
    put(MAGIC_AT, "ustar\u{0}00");
    let sum = sum_of(&head);
    head[SUM_AT].copy_from_slice(format!("{sum:06o}\u{0} ").as_bytes());
    out.write_all(&head)
}

/// Writes the padding after a content of `bytes` bytes.
pub(super) fn pad(out: &mut impl Write, bytes: u64) -> io::Result<()> {
    out.write_all(&[0; BLOCK_BYTES][..padding(bytes)])
}

/// Writes a file that is in memory.
pub(super) fn add(out: &mut impl Write, name: &str, content: &[u8], unix_s: u64) -> io::Result<()> {
    begin(out, name, content.len() as u64, unix_s)?;
    out.write_all(content)?;
    pad(out, content.len() as u64)
}

/// Writes the end of the archive.
pub(super) fn end(out: &mut impl Write) -> io::Result<()> {
    out.write_all(&[0; 2 * BLOCK_BYTES])
}

/// Reads the header of the next file; `None` at the end. The caller must then read the content and call
/// [`skip_padding`].
pub(super) fn next(archive: &mut impl Read) -> io::Result<Option<ArchiveEntry>> {
    let mut head = [0; BLOCK_BYTES];
    archive.read_exact(&mut head)?;
    if head == [0; BLOCK_BYTES] {
        return Ok(None);
    }
    if !has_checksum(&head) {
        return Err(damaged());
    }
    let name = head[..100].split(|byte| *byte == 0).next().unwrap_or_default();
    let name = core::str::from_utf8(name).map_err(|_| damaged())?.to_string();
    let bytes = octal(&head[SIZE_AT]).ok_or_else(damaged)?;
    Ok(Some(ArchiveEntry { name, bytes, is_file: matches!(head[TYPE_AT], b'0' | 0) }))
}

/// Returns whether a file may be a tar archive, by its first [`BLOCK_BYTES`] bytes. The checksum detects archives older
/// than the magic number; the magic number detects archives whose header is damaged or cut.
pub(super) fn is_header(head: &[u8]) -> bool {
    head.get(MAGIC_AT..).is_some_and(|rest| rest.starts_with(MAGIC))
        || head.try_into().is_ok_and(has_checksum)
}

/// Returns whether the checksum of a header holds.
fn has_checksum(head: &[u8; BLOCK_BYTES]) -> bool {
    let mut blank = *head;
    blank[SUM_AT].fill(b' ');
    octal(&head[SUM_AT]) == Some(u64::from(sum_of(&blank)))
}

/// Skips the padding after a content of `bytes` bytes.
pub(super) fn skip_padding(archive: &mut impl Read, bytes: u64) -> io::Result<()> {
    let mut zeros = [0; BLOCK_BYTES];
    archive.read_exact(&mut zeros[..padding(bytes)])?;
    all_zeros(&zeros)
}

/// Skips the zeros after the end. Their number depends on the program that wrote the archive.
pub(super) fn skip_end(archive: &mut impl Read) -> io::Result<()> {
    let mut rest = [0; BLOCK_BYTES];
    archive.read_exact(&mut rest)?;
    loop {
        all_zeros(&rest)?;
        match archive.read(&mut rest)? {
            0 => return Ok(()),
            count => rest[count..].fill(0),
        }
    }
}

fn all_zeros(bytes: &[u8]) -> io::Result<()> {
    if bytes.iter().all(|byte| *byte == 0) { Ok(()) } else { Err(damaged()) }
}

fn damaged() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "it is not a tar archive, or it is damaged")
}

const fn padding(bytes: u64) -> usize {
    (BLOCK_BYTES - bytes as usize % BLOCK_BYTES) % BLOCK_BYTES
}

fn sum_of(head: &[u8; BLOCK_BYTES]) -> u32 {
    head.iter().map(|byte| u32::from(*byte)).sum()
}

fn octal(field: &[u8]) -> Option<u64> {
    let text = core::str::from_utf8(field).ok()?.trim_matches([' ', '\0']);
    u64::from_str_radix(text, 8).ok()
}

/// Maximum number of symbolic links in a path.
const LINKS_MAX: usize = 40;
/// The permissions of a created folder.
const FOLDER_MODE: u32 = 0o755;

/// The folders that were created, each with its parent, the outermost first.
pub(super) struct CreatedFolders(Vec<(OwnedFd, OsString)>);

impl CreatedFolders {
    /// Removes the folders, and `file` in the innermost one. A folder with other content stays.
    pub(super) fn remove(self, file: &str) {
        if let Some(Ok(innermost)) = self.0.last().map(|(above, name)| open_path_folder(above, name)) {
            let _ = unlinkat(&innermost, file, AtFlags::empty());
        }
        for (above, name) in self.0.iter().rev() {
            let _ = unlinkat(above, name, AtFlags::REMOVEDIR);
        }
    }
}

/// Opens a folder, and creates it and its parents if necessary. Returns which folders were created.
///
/// Root may restore into a folder of another user, who may have created a symbolic link in a folder above it.
/// The names of the path are therefore opened one after the other, each in its open parent folder. A link is
/// followed only if the link and its folder belong to root or to the caller. The last name must not be a
/// link.
///
/// # Errors
/// The folder cannot be opened or created, or the path contains a link of another user.
pub(super) fn open_or_make(path: &Path) -> io::Result<(OwnedFd, CreatedFolders)> {
    let mut made = Vec::new();
    let mut names: VecDeque<OsString> = names_of(path);
    let mut walked = PathBuf::from(if path.is_absolute() { "/" } else { "." });
    let mut folder = open_path_folder(CWD, walked.as_os_str())?;
    let mut links = 0;
    while let Some(name) = names.pop_front() {
        let is_last = names.is_empty();
        walked.push(&name);
        if kind_of(&folder, &name)? == Some(FileType::Symlink) {
            let why = if is_last {
                Some("it is a link; name the folder that it leads to".to_string())
            } else {
                foreign_owner_of(&folder, &name)?.map(|owner| {
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
                folder = open_path_folder(CWD, walked.as_os_str())?;
            }
            for name in names_of(&target).into_iter().rev() {
                names.push_front(name);
            }
            continue;
        }
        let is_made = match mkdirat(&folder, &name, Mode::from_raw_mode(FOLDER_MODE)) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            // In a read-only file system, or without write permission, the folder may exist.
            Err(_) if kind_of(&folder, &name)?.is_some() => false,
            Err(error) => return Err(error.into()),
        };
        let inner = open_path_folder(&folder, &name)?;
        let above = mem::replace(&mut folder, inner);
        if is_made {
            sync_names(&above)?;
            made.push((above, name));
        }
    }
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
    Ok((openat(&folder, ".", flags, Mode::empty())?, CreatedFolders(made)))
}

/// Syncs a folder so that created folders survive a power cut, if the caller may read it.
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

/// Opens a folder of the path. The caller needs no permission to read it.
fn open_path_folder(at: impl std::os::fd::AsFd, name: &std::ffi::OsStr) -> io::Result<OwnedFd> {
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

/// Returns the owner of a link or of its folder, if that is neither root nor the caller.
fn foreign_owner_of(folder: &OwnedFd, name: &OsString) -> io::Result<Option<u32>> {
    let owners = [statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?.st_uid, fstat(folder)?.st_uid];
    Ok(owners.into_iter().find(|owner| *owner != 0 && *owner != geteuid().as_raw()))
}

/// A new file that gets its name only when it is complete.
///
/// Root writes exports and backups into folders of other users, who may create links there. So the path of
/// the folder is resolved only once, and the file is created in it exclusively, with a random name, without
/// following links, and readable only by its owner. The file is synced before it gets its name. An incomplete
/// file is removed.
#[derive(Debug)]
pub(super) struct NewFile {
    /// The open file.
    pub(super) file: File,
    folder: OwnedFd,
    part: String,
    name: OsString,
    is_finished: bool,
}

/// How an existing file of the same name is handled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ExistingFile {
    /// The existing file is replaced. A link that appears while the new file is written is replaced itself.
    Replaced,
    /// The existing file stays, and the new one is removed.
    Kept,
}

impl NewFile {
    /// Creates a file for `target`.
    ///
    /// # Errors
    /// The folder is missing, or no file can be created in it.
    pub(super) fn create(target: &Path) -> io::Result<Self> {
        let name = target.file_name().ok_or(io::ErrorKind::IsADirectory)?.to_owned();
        let folder = target.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(folder, flags, Mode::empty())?;
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(io::Error::other)?;
        let part = format!(".leveret-{:016x}.part", u64::from_le_bytes(random));
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = File::from(openat(&folder, &*part, flags, Mode::RUSR | Mode::WUSR)?);
        Ok(Self { file, folder, part, name, is_finished: false })
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// The file cannot be synced or renamed.
    pub(super) fn finish(mut self, old: ExistingFile) -> io::Result<()> {
        self.file.sync_all()?;
        let (folder, part, name): (_, _, &OsStr) = (&self.folder, &*self.part, &self.name);
        match old {
            ExistingFile::Replaced => renameat(folder, part, folder, name)?,
            ExistingFile::Kept => match renameat_with(folder, part, folder, name, RenameFlags::NOREPLACE) {
                // Some file systems do not support this flag, for example FAT on a USB stick.
                Err(Errno::INVAL | Errno::NOSYS) => {
                    if rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
                        return Err(io::ErrorKind::AlreadyExists.into());
                    }
                    renameat(folder, part, folder, name)?;
                }
                named => named?,
            },
        }
        self.is_finished = true;
        Ok(rustix::fs::fsync(&self.folder)?)
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.is_finished {
            // A failure is ignored: nothing can be done about it, and the name of the file shows that it is
            // incomplete.
            let _ = unlinkat(&self.folder, &*self.part, AtFlags::empty());
        }
    }
}

/// The name of the file with the checksums.
pub(super) const NAME: &str = "SHA256SUMS";
/// The name of the first file of a backup, which explains the archive.
pub(super) const NOTE_NAME: &str = "README.leveret-backup";
/// Number of bytes copied at a time.
const STEP_BYTES: usize = 64 << 10;
/// Maximum size of the file with the checksums in bytes.
const TEXT_BYTES_MAX: u64 = 8 << 20;

/// SHA-256 checksums of the files of an archive, in the format of `sha256sum`. They are in the last file of
/// the archive.
///
/// If a USB stick is removed too early, the end of the archive may be zeros. A store that ends in zeros looks
/// like one after a power cut, so without checksums nobody would notice that its last commits (perhaps the
/// deletion of a user) are missing.
#[derive(Default)]
pub(super) struct Checksums {
    text: String,
}

impl Checksums {
    /// Copies a file's content, adds its checksum, and returns its length in bytes.
    pub(super) fn copy(&mut self, name: &str, from: &mut impl Read, to: &mut impl Write) -> io::Result<u64> {
        let (mut context, mut buffer, mut copied) = (Context::new(&SHA256), vec![0; STEP_BYTES], 0);
        loop {
            let count = match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            context.update(&buffer[..count]);
            to.write_all(&buffer[..count])?;
            copied += count as u64;
        }
        for byte in context.finish().as_ref() {
            // Writing into a String cannot fail.
            let _ = write!(self.text, "{byte:02x}");
        }
        let _ = writeln!(self.text, "  {name}");
        Ok(copied)
    }

    /// Returns the content of the file with the checksums.
    pub(super) fn text(&self) -> &[u8] {
        self.text.as_bytes()
    }

    /// Returns whether the checksums in `file` are those of the copied files.
    pub(super) fn agree(&self, file: &mut impl Read) -> io::Result<bool> {
        let mut told = Vec::new();
        file.take(TEXT_BYTES_MAX).read_to_end(&mut told)?;
        Ok(told == self.text())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        let mut archive = Vec::new();
        for (name, content) in [("00000000.seg", &b"hello"[..]), ("00000001.seg", &[7; 1024])] {
            begin(&mut archive, name, content.len() as u64, 1_700_000_000).unwrap();
            archive.extend_from_slice(content);
            pad(&mut archive, content.len() as u64).unwrap();
        }
        end(&mut archive).unwrap();
        assert!(archive.len().is_multiple_of(BLOCK_BYTES));
        let mut rest = &archive[..];
        for (name, content) in [("00000000.seg", &b"hello"[..]), ("00000001.seg", &[7; 1024])] {
            let entry = next(&mut rest).unwrap().unwrap();
            assert_eq!((entry.name.as_str(), entry.bytes, entry.is_file), (name, content.len() as u64, true));
            let mut read = vec![0; content.len()];
            rest.read_exact(&mut read).unwrap();
            assert_eq!(read, content);
            skip_padding(&mut rest, entry.bytes).unwrap();
        }
        assert_eq!(next(&mut rest).unwrap(), None);
        archive[0] ^= 1;
        assert!(next(&mut &archive[..]).is_err());
    }
}
