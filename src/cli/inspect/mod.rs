//! `leveret inspect`: what a data directory holds, whether it is whole, and its messages as JSON.
//!
//! It runs the reader that a start runs, checks every commit besides, and counts. Always true: nothing is written and no
//! lock is taken, so a broker may be writing meanwhile; what is exported is what was published, byte for byte.
//!
//! | file         | what it is for                                                       |
//! |--------------|----------------------------------------------------------------------|
//! | `options`    | the command line                                                     |
//! | `inspection` | the store as a start reads it, and which messages cannot be read     |
//! | `report`     | the tables                                                           |
//! | `verdict`    | what an inspection comes to                                          |
//! | `names`      | what queues are called                                               |
//! | `dump`       | every record, one a line                                             |
//! | `export`     | every live message, one a line; `json` writes it, `props` decodes it |
//! | `broker`     | whether a broker has the directory                                   |

mod broker;
mod dump;
mod export;
pub(crate) mod inspection;
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

use broker::Broker;
use export::Exported;
use inspection::Inspection;
use leveret_storage::{Access, FileDisk, OpenError};
use names::Names;
use options::{ExportTo, Options};
pub use verdict::{InspectError, Verdict};

/// The exit code when a directory could not be inspected, or the command line makes no sense.
pub const CANNOT: u8 = 3;
/// How long what a broker is writing may look unfinished.
const UNFINISHED_FOR: Duration = Duration::from_millis(300);
/// How often a store is read beside a broker that writes.
const INSPECTIONS_MAX: usize = 4;

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
    let trouble = |why: OpenError| InspectError::Directory { path: directory.clone(), why };
    let mut disk = FileDisk::only_reading(directory);
    let broker = Broker::of(directory);
    let (mut inspection, changing) = inspect_store(&mut disk, directory, broker).map_err(trouble)?;
    let names = Names::of(&inspection.log, &mut disk).map_err(|why| trouble(OpenError::Unreadable(why)))?;
    let verdict = Verdict::of(&inspection, &names);
    report::write_verdict(out, verdict, &inspection)?;
    report::write_access(out, inspection.report.access.access)?;
    let subject = report::Subject { directory, broker, changing, inspection: &inspection, names: &names };
    report::write(out, &subject)?;
    if options.details {
        let segments = inspection.log.for_each_record(&mut disk, |_| Ok(()))?;
        report::write_details(out, &inspection, &segments)?;
    }
    if options.records {
        dump::write(out, &inspection.log, &mut disk)?;
    }
    if let Some(target) = &options.export {
        let exported = export::run(&mut inspection, directory, target, messages)?;
        write_exported(out, target, &exported)?;
    }
    out.flush()?;
    Ok(verdict)
}

/// Inspects the store. While a broker has the directory, up to [`INSPECTIONS_MAX`] times: what all of them find damaged is
/// damaged, and users are in doubt when all of them find so. Also returns how many places were being written.
fn inspect_store(
    disk: &mut FileDisk,
    directory: &Path,
    broker: Broker,
) -> Result<(Inspection, usize), OpenError> {
    let (mut inspection, mut changing) = (Inspection::of(disk), 0);
    for _ in 1..INSPECTIONS_MAX {
        let is_in_doubt =
            |inspection: &Inspection| matches!(inspection.report.access.access, Access::InDoubt(_));
        let is_done =
            inspection.as_ref().is_ok_and(|inspection| inspection.is_whole() && !is_in_doubt(inspection));
        if is_done || broker == Broker::No {
            break;
        }
        thread::sleep(UNFINISHED_FOR);
        // Files may have come since.
        *disk = FileDisk::only_reading(directory);
        let mut again = Inspection::of(disk);
        if let (Ok(again), Ok(earlier)) = (&mut again, &inspection) {
            changing += again.keep_damage_of(earlier);
        }
        inspection = again;
    }
    Ok((inspection?, changing))
}

fn write_exported(out: &mut dyn Write, target: &ExportTo, exported: &Exported) -> io::Result<()> {
    let Exported { messages, bytes, unreadable } = exported;
    writeln!(out, "exported   {messages} messages with {bytes} bytes of body to {target}")?;
    if *unreadable > 0 {
        writeln!(out, "           {unreadable} more not, for they cannot be read")?;
    }
    Ok(())
}
