//! What `leveret inspect` is asked to do: its command line, understood.

use std::fmt;
use std::path::PathBuf;

use crate::options::{BadArguments, Next, OptionRow, Section, Table};

/// What `leveret inspect --help` prints.
pub fn help() -> String {
    format!("{BEFORE_OPTIONS}\n{}{AFTER_OPTIONS}", OPTIONS.help(|_| true))
}

const BEFORE_OPTIONS: &str = "\
What a data directory holds, and whether all of it can be read.

Usage: leveret inspect DIR [OPTIONS]

It only reads: a broker may be using the directory, and a card or a user that can only read will do. Beside a broker that writes it reads again what looks wrong, and says so.
";

const AFTER_OPTIONS: &str = "\
An exported line has exchange, routing_key, properties and payload named as rabbitmqadmin names them;
queues with the place of the message in each; the payload as text (payload_encoding string) when it is
UTF-8, else as base64; what is not UTF-8 elsewhere under a name that ends in _base64. Lines come as the
messages lie on the disk: sort by offset for the order of a queue.

Exit code: 0 everything can be read; 2 something cannot, or users are in doubt, or messages have no queue;
3 DIR could not be inspected.
";

const OPTIONS: Table<Options> = Table(&[Section {
    heading: "Options:",
    rows: &[
        OptionRow::new("--details", "", "the log's segments too", |options, _| {
            options.details = true;
            Ok(())
        }),
        OptionRow::new(
            "--records",
            "",
            "print every record too, one a line; bodies escaped and cut",
            |options, _| {
                options.records = true;
                Ok(())
            },
        ),
        OptionRow::new(
            "--export",
            "FILE",
            "write every live message that can be read to FILE, which must not be there yet,\n\
             one JSON object a line; - is standard output, and the report goes to standard\n\
             error",
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

/// Everything a run depends on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// The data directory.
    pub directory: PathBuf,
    /// Print what the log consists of.
    pub details: bool,
    /// Print every record.
    pub records: bool,
    /// Where live messages go.
    pub export: Option<ExportTo>,
}

/// Where messages are written to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExportTo {
    /// A file that is not there yet.
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

/// Reads what comes after `leveret inspect`; `None` when help was asked for.
///
/// # Errors
/// The first argument that makes no sense, or that the directory is not named.
pub fn parse(parser: &mut lexopt::Parser) -> Result<Option<Options>, BadArguments> {
    let mut options = Options::default();
    let mut directory = None;
    loop {
        match OPTIONS.next(&mut options, parser)? {
            Next::End | Next::Version => break,
            Next::Help => return Ok(None),
            Next::Option => {}
            Next::Word(word) if directory.is_none() => directory = Some(PathBuf::from(word)),
            Next::Word(word) => return Err(BadArguments::one_too_many(&word)),
        }
    }
    options.directory = directory.ok_or_else(|| {
        BadArguments::new("inspect: name the data directory, as in leveret inspect /var/lib/leveret".into())
    })?;
    Ok(Some(options))
}

#[cfg(test)]
mod tests {
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
        assert!(refused("d e").starts_with("\"e\" is one argument too many"));
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
