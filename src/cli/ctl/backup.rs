//! `backup FILE`: a consistent copy of the store of a running broker.
//!
//! ```text
//! leveretctl                       broker
//! hold ────────────────────────→   waits until everything is durable, between two commits
//!      ←──── files and lengths ──  does not reuse these files
//! copy; a request after each file → reply: still held?
//! done ────────────────────────→   may reuse these files
//! ```
//!
//! # Invariants
//! - The file gets its name only when it is complete and synced. If the copy is interrupted, or the broker had to
//!   reuse a file because its disk was full, no file is left.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{Mode, OFlags, openat};
use serde_json::Value;

use crate::archive::{self, Checksums, ExistingFile, NewFile};
use crate::progress::{Counted, Progress, Total};

use super::client::{BAD_DATA, Client, Failure, UNAVAILABLE, print_info};
use super::commands::{Call, connect};

const TITLE: &str = "Backup";
const NOTE: &str = "\
The store of a Leveret broker as it was at one moment. To bring it back, on the machine that is to have it:

    systemctl stop leveret
    mv /var/lib/leveret /var/lib/leveret.old
    leveret restore THIS-FILE --data-dir /var/lib/leveret
    systemctl start leveret

or unpack it with tar into an empty folder that belongs to the broker's user. It holds messages and password
hashes: keep it as you would keep those. Run one broker from it, not two: both would take themselves for the
same store.
";

pub(super) fn backup(call: &Call) -> Result<(), Failure> {
    let target = Path::new(&call.args[0]);
    let mut client = connect(call)?;
    if target == Path::new("-") {
        let stdout = io::stdout().lock();
        let mut progress = Progress::beside_output(TITLE, Total::Bytes(0));
        return copy(&mut client, &mut BufWriter::new(stdout), &mut progress).map(drop);
    }
    print_info(call, &format!("Copying the store to {} ...", target.display()))?;
    if fs::symlink_metadata(target).is_ok() {
        let why = format!("Error: {} exists already: name a new file", target.display());
        return Err(Failure::new(BAD_DATA, why));
    }
    let part = NewFile::create(target).map_err(|error| unwritable(target, &error))?;
    let mut out = BufWriter::new(&part.file);
    let mut progress = Progress::start(TITLE, Total::Bytes(0));
    let bytes = copy(&mut client, &mut out, &mut progress)?;
    out.flush().map_err(|error| unwritable(target, &error))?;
    drop(out);
    let file_bytes = part.file.metadata().map_err(|error| unwritable(target, &error))?.len();
    progress.step("syncing");
    part.finish(ExistingFile::Kept).map_err(|error| unwritable(target, &error))?;
    drop(progress);
    print_info(call, &format!("Done: a file of {file_bytes} bytes, {bytes} of them the store's"))
}

/// Opens a segment. The folder belongs to the broker's user, so a symbolic link there is not followed when root
/// makes a backup.
fn open_segment(folder: &OwnedFd, name: &str) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(openat(folder, name, flags, Mode::empty())?);
    let found = file.metadata()?;
    if found.is_file() && found.nlink() == 1 {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file, or has another hard link"))
    }
}

fn unreadable(path: &Path, error: io::Error) -> Failure {
    Failure::new(UNAVAILABLE, format!("Error: {} cannot be read: {error}", path.display()))
}

fn unwritable(path: &Path, error: &io::Error) -> Failure {
    Failure::new(BAD_DATA, format!("Error: {} cannot be written: {error}", path.display()))
}

/// Copies the held files; returns the number of bytes.
fn copy(client: &mut Client, out: &mut impl Write, progress: &mut Progress) -> Result<u64, Failure> {
    let reply = client.ask("POST", "/api/ctl/backup", "", "")?;
    if reply.status != 200 {
        return Err(Failure::refused(&reply));
    }
    let nonsense = || Failure::new(UNAVAILABLE, "Error: the broker did not list the files to copy");
    let folder = reply.body.get("data_dir").and_then(Value::as_str).map(Path::new).ok_or_else(nonsense)?;
    let files = reply.body.get("files").and_then(Value::as_array).ok_or_else(nonsense)?;
    let opened =
        rustix::fs::open(folder, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    let opened = opened.map_err(|error| unreadable(folder, error.into()))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let wrote =
        |error: io::Error| Failure::new(BAD_DATA, format!("Error: the copy cannot be written: {error}"));
    let mut sums = Checksums::default();
    let note = ArchivedFile { name: archive::NOTE_NAME, bytes: NOTE.len() as u64, unix_s: now };
    add(out, &mut sums, &note, &mut NOTE.as_bytes()).map_err(wrote)?;
    let lengths = files.iter().filter_map(|file| file.get(2).and_then(Value::as_u64));
    progress.expect(Total::Bytes(lengths.fold(0, u64::saturating_add)));
    let mut copied = 0;
    for file in files {
        let number = |at: usize| file.get(at).and_then(Value::as_u64).ok_or_else(nonsense);
        let (slot, bytes, length) = (number(0)?, number(1)?, number(2)?);
        let name = format!("{slot:08}.seg");
        let source = open_segment(&opened, &name).map_err(|error| unreadable(&folder.join(&name), error))?;
        // Bytes after this length were written later and do not belong to the backup.
        let mut content = source.take(bytes).chain(io::repeat(0));
        let mut content = Counted::new(&mut content, progress);
        let segment = ArchivedFile { name: &name, bytes: length, unix_s: now };
        add(out, &mut sums, &segment, &mut content).map_err(wrote)?;
        copied += bytes;
        // The request after each file prevents the idle timeout, and its reply shows whether the files are
        // still held.
        if client.ask("GET", "/api/ctl/backup", "", "")?.status != 204 {
            let why =
                "Error: the broker's disk became full, so it cancelled the backup; free space and try again";
            return Err(Failure::new(UNAVAILABLE, why));
        }
    }
    archive::add(out, archive::NAME, sums.text(), now).map_err(wrote)?;
    archive::end(out).and_then(|()| out.flush()).map_err(wrote)?;
    client.ask("DELETE", "/api/ctl/backup", "", "")?;
    Ok(copied)
}

/// A file in the archive.
struct ArchivedFile<'a> {
    name: &'a str,
    bytes: u64,
    /// Time of its last change in seconds since 1970.
    unix_s: u64,
}

fn add(
    out: &mut impl Write,
    sums: &mut Checksums,
    file: &ArchivedFile<'_>,
    content: &mut impl Read,
) -> io::Result<()> {
    let ArchivedFile { name, bytes, unix_s } = *file;
    archive::begin(out, name, bytes, unix_s)?;
    if sums.copy(name, &mut content.take(bytes), out)? < bytes {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            format!("{name} is shorter than it should be"),
        ));
    }
    archive::pad(out, bytes)
}
