//! `leveret inspect`: what a data directory holds, whether it is whole, and what of it can be saved.
//!
//! It is run by somebody who worries about messages, often on another machine than the board they came
//! from, so it reads what it can, says what it could not, and never makes anything worse: it only reads,
//! unless it was told to drop what is set aside. Always true: it takes no lock to read, so a broker may be
//! writing meanwhile; what is exported is what was published, byte for byte, or it is not exported.
//!
//! | file      | what it is for                                                       |
//! |-----------|----------------------------------------------------------------------|
//! | `options` | the command line                                                     |
//! | `report`  | the tables                                                           |
//! | `verdict` | what an inspection comes to                                          |
//! | `names`   | what queues are called                                               |
//! | `dump`    | every record, one a line                                             |
//! | `export`  | every live message, one a line; `json` writes it, `props` decodes it |
//! | `broker`  | whether a broker has the directory                                   |

mod broker;
mod dump;
mod export;
mod names;
pub mod options;
mod props;
mod report;
mod verdict;

use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use crate::store::fsck::{FsckError, Scan};
use crate::store::{Access, Disk, FileDisk, Log};
use broker::Broker;
use export::Exported;
use names::Names;
use options::{ExportTo, Options};
pub use verdict::{InspectError, Verdict};

/// The exit code when a directory could not be inspected, or the command line makes no sense.
pub const CANNOT: u8 = 3;
/// How long what a broker is writing may look unfinished.
const UNFINISHED_FOR: Duration = Duration::from_millis(300);

/// Does what is asked, on standard output.
///
/// # Errors
/// The directory cannot be inspected, or something cannot be written.
pub fn run(options: &Options) -> Result<ExitCode, InspectError> {
    let stdout = io::stdout().lock();
    let outcome = match options.export {
        // The messages have standard output for themselves.
        Some(ExportTo::StandardOutput) => {
            inspect(options, &mut io::stderr().lock(), &mut BufWriter::new(stdout))
        }
        _ => inspect(options, &mut BufWriter::new(stdout), &mut io::sink()),
    };
    match outcome {
        Ok(verdict) => Ok(ExitCode::from(verdict.code())),
        // Whoever read it has seen enough.
        Err(InspectError::Output(why)) if why.kind() == io::ErrorKind::BrokenPipe => {
            Ok(ExitCode::from(CANNOT))
        }
        Err(trouble) => Err(trouble),
    }
}

/// Does what is asked: reports to `out`, exports to `messages` if that is where they go.
///
/// # Errors
/// See [`run`].
pub fn inspect(
    options: &Options,
    out: &mut dyn Write,
    messages: &mut dyn Write,
) -> Result<Verdict, InspectError> {
    let directory = &options.directory;
    let mut disk = FileDisk::only_reading(directory);
    let broker = Broker::of(directory);
    let (scan, changing) = look_at(&mut disk, directory, broker)?;
    let names = names_of(&scan, &mut disk, directory, broker)?;
    let access = access_of(directory, broker)?;
    let mut verdict = Verdict::of(&scan, &names, access);
    report::write_verdict(out, verdict, &scan)?;
    report::write_access(out, access)?;
    let subject = report::Subject { directory, broker, changing, scan: &scan, names: &names };
    report::write(out, &subject)?;
    if options.details {
        report::write_details(out, &scan)?;
    }
    if options.records {
        let recycled = dump::write(out, &scan, &mut disk)?;
        report::write_recycled(out, &recycled, "not dumped")?;
    }
    if let Some(target) = &options.export {
        let exported = export::run(&scan, directory, target, messages)?;
        write_exported(out, target, &exported)?;
    }
    if options.drop_set_aside {
        let scan = drop_set_aside(directory, out)?;
        let names = Names::of(&scan, &mut FileDisk::only_reading(directory));
        report::write_orphans(out, &scan, &names)?;
        verdict = Verdict::of(&scan, &names, access_of(directory, broker)?);
        report::write_verdict(out, verdict, &scan)?;
    }
    out.flush()?;
    Ok(verdict)
}

/// What the definitions say. Beside a broker, what has no definition twice has none: it may have moved.
fn names_of(
    scan: &Scan,
    disk: &mut FileDisk,
    directory: &Path,
    broker: Broker,
) -> Result<Names, InspectError> {
    let mut names = Names::of(scan, disk);
    if !names.orphans.is_empty() && broker != Broker::No {
        thread::sleep(UNFINISHED_FOR);
        let mut disk = FileDisk::only_reading(directory);
        let trouble = |why| InspectError::Directory { path: directory.to_path_buf(), why };
        let again = Names::of(&Scan::of(&mut disk).map_err(trouble)?, &mut disk);
        names.orphans.retain(|queue, _| again.orphans.contains_key(queue));
    }
    Ok(names)
}

/// What a start would say of users and permissions. Beside a broker, what is in doubt twice is in doubt.
fn access_of(directory: &Path, broker: Broker) -> Result<Access, InspectError> {
    let read = || {
        Log::access_of_files(&mut FileDisk::only_reading(directory)).map_err(|why| InspectError::Directory {
            path: directory.to_path_buf(),
            why: FsckError::Unreadable(io::Error::other(why.to_string())),
        })
    };
    match read()? {
        Access::InDoubt(_) if broker != Broker::No => {
            thread::sleep(UNFINISHED_FOR);
            read()
        }
        access => Ok(access),
    }
}

/// Writes over what is damaged; a scan of what is left.
fn drop_set_aside(directory: &Path, out: &mut dyn Write) -> Result<Scan, InspectError> {
    let mut disk = FileDisk::new(directory);
    let path = || directory.to_path_buf();
    disk.lock().map_err(|why| match why.kind() {
        io::ErrorKind::WouldBlock => InspectError::InUse(path()),
        _ => InspectError::NotDropped { path: path(), why: FsckError::Unreadable(why) },
    })?;
    // What was looked at before may be old by now.
    let before = Scan::of(&mut disk).map_err(|why| InspectError::Directory { path: path(), why })?;
    let after =
        before.drop_set_aside(&mut disk).map_err(|why| InspectError::NotDropped { path: path(), why })?;
    report::write_dropped(out, &before, &after)?;
    Ok(after)
}

/// A scan of the store. Beside a broker, what looks wrong twice is wrong; what does not was being written.
/// Tells too how many such places there were.
fn look_at(disk: &mut FileDisk, directory: &Path, broker: Broker) -> Result<(Scan, usize), InspectError> {
    let trouble = |why| InspectError::Directory { path: directory.to_path_buf(), why };
    let first = Scan::of(disk).map_err(trouble)?;
    if first.is_good() || broker == Broker::No {
        return Ok((first, 0));
    }
    thread::sleep(UNFINISHED_FOR);
    // Files may have come since.
    *disk = FileDisk::only_reading(directory);
    let mut scan = Scan::of(disk).map_err(trouble)?;
    let places = scan.damage.len() + usize::from(scan.tail.is_some());
    scan.damage.retain(|damage| first.damage.iter().any(|before| before.is_same_place(damage)));
    scan.tail = scan.tail.filter(|tail| first.tail.as_ref() == Some(tail));
    let changing = places - scan.damage.len() - usize::from(scan.tail.is_some());
    Ok((scan, changing))
}

fn write_exported(out: &mut dyn Write, target: &ExportTo, exported: &Exported) -> io::Result<()> {
    let Exported { messages, bytes, salvaged, broken, recycled } = exported;
    writeln!(out, "exported   {messages} messages with {bytes} bytes of body to {target}")?;
    if *salvaged > 0 {
        writeln!(out, "           {salvaged} of them from damaged commits, marked \"salvaged\"")?;
    }
    if *broken > 0 {
        writeln!(out, "           {broken} more not, for a part of their body cannot be read")?;
    }
    report::write_recycled(out, recycled, "what it still held is not exported")
}
