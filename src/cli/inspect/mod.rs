//! `leveret inspect`: the content of a data directory, its damage, and its messages as JSON.
//!
//! The store is read as by a start; in addition, every commit is checked.
//!
//! | file     | content                                                                      |
//! |----------|------------------------------------------------------------------------------|
//! | `names`  | names of queues; whether a broker uses the directory                         |
//! | `report` | the inspection, and its tables                                               |
//! | `dump`   | every record, one per line; properties of messages as JSON                   |
//! | `export` | every live message, one per line                                             |
//!
//! # Invariants
//! - Nothing is written and no lock is taken, so a broker may be writing meanwhile.
//! - Exported messages are byte for byte those that were published.

mod dump;
mod export;
mod names;
pub(crate) mod report;

use crate::args::{BadArguments, NextArgument, OptionRow, Section, Table};
use export::Exported;
use leveret_storage::{Access, FileDisk, OpenError};
use names::{Broker, QueueNames};
use report::Inspection;
use std::error::Error;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use std::{fmt, thread};

/// The exit code when a directory could not be inspected, or the arguments are invalid.
pub const CANNOT_INSPECT: u8 = 3;
/// How long data that a broker is writing may look damaged.
const UNFINISHED_FOR: Duration = Duration::from_millis(300);
/// Maximum number of inspections of a store while a broker writes.
const INSPECTIONS_MAX: usize = 4;

/// Runs `leveret inspect` on standard output.
///
/// # Errors
/// The directory cannot be inspected, or output cannot be written.
pub fn run(options: &Options) -> Result<ExitCode, InspectError> {
    let stdout = io::stdout().lock();
    let outcome = match options.export {
        // If messages are exported to standard output, the report is written to standard error.
        Some(ExportTo::StandardOutput) => {
            inspect(options, &mut io::stderr().lock(), &mut BufWriter::new(stdout))
        }
        _ => inspect(options, &mut BufWriter::new(stdout), &mut io::sink()),
    };
    match outcome {
        Ok(verdict) => Ok(ExitCode::from(verdict.code())),
        // The reader of the pipe has closed it.
        Err(InspectError::Output(why)) if why.kind() == io::ErrorKind::BrokenPipe => {
            Ok(ExitCode::from(CANNOT_INSPECT))
        }
        Err(trouble) => Err(trouble),
    }
}

/// Writes the report to `out`, and the export to `messages` if it goes there.
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
    let mut disk = FileDisk::open_read_only(directory);
    let broker = Broker::of(directory);
    let (mut inspection, changing) = inspect_store(&mut disk, directory, broker).map_err(trouble)?;
    let names =
        QueueNames::of(&inspection.log, &mut disk).map_err(|why| trouble(OpenError::Unreadable(why)))?;
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

/// Inspects the store. While a broker uses the directory, the store is inspected up to [`INSPECTIONS_MAX`]
/// times. Only damage that all inspections find is reported, because data that is being written may look
/// damaged. Also returns how many places only looked damaged.
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
        // The broker may have created new files.
        *disk = FileDisk::open_read_only(directory);
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
        writeln!(out, "           {unreadable} messages cannot be read and were not exported")?;
    }
    Ok(())
}

/// Returns the text of `leveret inspect --help`.
pub fn help() -> String {
    format!("{BEFORE_OPTIONS}\n{}{AFTER_OPTIONS}", OPTIONS.help(|_| true))
}

const BEFORE_OPTIONS: &str = "\
Shows the content of a data directory, and whether all of it can be read.

Usage: leveret inspect DIR [OPTIONS]

The directory is only read: a broker may be using it, it may be read-only, and read permission is enough. What looks
damaged while a broker writes is read again, and the report says so.
";

const AFTER_OPTIONS: &str = "\
An exported line has exchange, routing_key, properties and payload named as rabbitmqadmin names them;
queues has the offset of the message in each queue. The payload is text (payload_encoding string) if it is UTF-8, else
base64; other values that are not UTF-8 have names that end in _base64. The lines are in the order of the log: sort
them by offset for the order of a queue.

Exit code: 0 everything can be read; 2 something is damaged, users may be wrong, or messages have no queue;
3 DIR could not be inspected.
";

const OPTIONS: Table<Options> = Table(&[Section {
    heading: "Options:",
    rows: &[
        OptionRow::new("--details", "", "also print the log's segments", |options, _| {
            options.details = true;
            Ok(())
        }),
        OptionRow::new(
            "--records",
            "",
            "also print every record, one per line; bodies are escaped and cut",
            |options, _| {
                options.records = true;
                Ok(())
            },
        ),
        OptionRow::new(
            "--export",
            "FILE",
            "write every live message that can be read to FILE, which must not exist yet,\none JSON object per \
             line; - is standard output, and the report goes to standard\nerror",
            |options, given| {
                let file = given.path()?;
                let is_stdout = file.as_os_str() == "-";
                options.export =
                    Some(if is_stdout { ExportTo::StandardOutput } else { ExportTo::File(file) });
                Ok(())
            },
        ),
        OptionRow::help(),
    ],
}]);

/// The options of `leveret inspect`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// The data directory.
    pub directory: PathBuf,
    /// Prints the structure of the log.
    pub details: bool,
    /// Prints every record.
    pub records: bool,
    /// The destination of live messages.
    pub export: Option<ExportTo>,
}

/// The destination of an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExportTo {
    /// A new file.
    File(PathBuf),
    /// Standard output.
    StandardOutput,
}

impl fmt::Display for ExportTo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::StandardOutput => f.write_str("standard output"),
        }
    }
}

/// Parses the arguments after `leveret inspect`; `None` if help was requested.
///
/// # Errors
/// The first invalid argument, or the directory is missing.
pub fn parse(parser: &mut lexopt::Parser) -> Result<Option<Options>, BadArguments> {
    let mut options = Options::default();
    let mut directory = None;
    loop {
        match OPTIONS.next(&mut options, parser)? {
            NextArgument::End | NextArgument::Version => break,
            NextArgument::Help => return Ok(None),
            NextArgument::Option => {}
            NextArgument::Word(word) if directory.is_none() => directory = Some(PathBuf::from(word)),
            NextArgument::Word(word) => return Err(BadArguments::one_too_many(&word)),
        }
    }
    options.directory = directory.ok_or_else(|| {
        BadArguments::new("inspect: name the data directory, as in leveret inspect /var/lib/leveret".into())
    })?;
    Ok(Some(options))
}

/// Why there is no result: one sentence.
#[derive(Debug)]
pub enum InspectError {
    /// The directory cannot be read.
    Directory {
        /// The path.
        path: PathBuf,
        /// The reason.
        why: OpenError,
    },
    /// The file for the export cannot be written.
    Export {
        /// The path.
        path: PathBuf,
        /// The error of the system.
        why: io::Error,
    },
    /// The output cannot be written.
    Output(io::Error),
}

impl fmt::Display for InspectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory { path, why: OpenError::NoStore } => {
                write!(f, "{}: there is no store: no segment file (such as 00000000.seg)", path.display())
            }
            Self::Directory { path, why } => write!(f, "{}: {why}", path.display()),
            Self::Export { path, why } if why.kind() == io::ErrorKind::AlreadyExists => {
                write!(f, "{} exists already: name a new file", path.display())
            }
            Self::Export { path, why } => write!(f, "{} cannot be written: {why}", path.display()),
            Self::Output(why) => write!(f, "the report cannot be written: {why}"),
        }
    }
}

impl Error for InspectError {}

impl From<io::Error> for InspectError {
    fn from(why: io::Error) -> Self {
        Self::Output(why)
    }
}

/// The result of an inspection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Every checksum is right.
    Good,
    /// A part cannot be read.
    Damaged,
    /// Everything can be read, but there are messages whose queue has no definition.
    Orphans,
    /// Everything can be read, but users and permissions are, or may be, incomplete.
    AccessInDoubt,
}

impl Verdict {
    /// Returns the exit code.
    pub const fn code(self) -> u8 {
        match self {
            Self::Good => 0,
            Self::Damaged | Self::AccessInDoubt | Self::Orphans => 2,
        }
    }

    fn of(inspection: &Inspection, names: &QueueNames) -> Self {
        if !inspection.is_whole() {
            Self::Damaged
        } else if matches!(inspection.report.access.access, Access::InDoubt(_)) {
            Self::AccessInDoubt
        } else if !names.orphans.is_empty() {
            Self::Orphans
        } else {
            Self::Good
        }
    }
}

#[cfg(test)]
mod options_tests {
    use super::*;

    fn parsed(line: &str) -> Result<Option<Options>, String> {
        parse(&mut lexopt::Parser::from_args(line.split_whitespace())).map_err(|bad| bad.to_string())
    }

    #[test]
    fn options_are_understood() {
        let plain = Options { directory: "d".into(), ..Options::default() };
        assert_eq!(parsed("d"), Ok(Some(plain.clone())));
        let file = Some(ExportTo::File("f".into()));
        assert_eq!(
            parsed("--records d --export f"),
            Ok(Some(Options { records: true, export: file, ..plain.clone() }))
        );
        let stdout = Some(ExportTo::StandardOutput);
        assert_eq!(parsed("d --export -"), Ok(Some(Options { export: stdout, ..plain.clone() })));
        assert_eq!(parsed("d --details"), Ok(Some(Options { details: true, ..plain })));
        assert_eq!(parsed("d --help"), Ok(None));
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let refused = |line: &str| parsed(line).unwrap_err();
        assert!(refused("").starts_with("inspect: name the data directory"));
        assert!(refused("d e").starts_with("unexpected argument \"e\""));
        assert!(refused("d --record").starts_with("unknown option --record; did you mean --records?"));
        assert!(refused("d --export").starts_with("missing argument for option '--export'"));
    }

    #[test]
    fn the_help_names_every_option() {
        for word in OPTIONS.names() {
            assert!(help().contains(word), "{word}");
        }
    }
}
