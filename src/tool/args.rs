//! The command line: what is asked for, and the flags as a configuration layer.
//!
//! A flag has the name of its key with hyphens and takes the same spellings; `config::units` reads both.

use std::error::Error;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use lexopt::Arg;

use crate::config::transports::TlsAddress;
use crate::config::units::ListenAddress;
use crate::config::{Layer, describe_unknown};
use crate::{bench, inspect};

/// What a person wants of the program.
#[derive(Debug)]
pub enum Ask {
    /// Be a broker.
    Serve(Said),
    /// Show the configuration and the memory it adds up to.
    Check(Said),
    /// Measure a broker; `None`: say how.
    Bench(Option<bench::options::Options>),
    /// Look at a data directory; `None`: say how.
    Inspect(Option<inspect::options::Options>),
    /// Make a store of a backup.
    Restore(PathBuf, Said),
    /// Bring a store to the newest version of its format.
    UpgradeStore(PathBuf),
    /// Speak to a running broker; the arguments are its own.
    Ctl(Vec<OsString>),
    /// Run the simulator, in builds that have it: the first seed, how many, and how far apart.
    #[cfg(debug_assertions)]
    Sim(u64, u64, u64),
    /// Say which version this is.
    Version,
    /// Say how to use it.
    Help,
}

/// Where the configuration comes from.
#[derive(Debug, Default)]
pub struct Said {
    /// The file named by `--config`.
    pub file: Option<PathBuf>,
    /// The flags.
    pub flags: Layer,
}

/// What `--help` prints.
pub const HELP: &str = "\
Leveret: a small RabbitMQ-compatible AMQP 0-9-1 broker.

Usage: leveret [serve] [OPTIONS]    start the broker; without a configuration: on
                                    127.0.0.1:5672 and [::1]:5672, user guest, password guest
       leveret check [OPTIONS]      print the configuration that results and the memory it adds
                                    up to; the exit code says whether the broker would start
       leveret bench [OPTIONS]      measure a broker; leveret bench --help says more
       leveret inspect DIR          what a data directory holds and whether it is whole; save messages
                                    from a damaged one; leveret inspect --help says more
       leveret ctl COMMAND          ask or tell a running broker, as rabbitmqctl does; also by the name
                                    leveretctl; leveret ctl help lists the commands
       leveret restore FILE         make a store of what leveret ctl backup wrote, in --data-dir
       leveret upgrade-store DIR    bring a stopped broker's data directory to the newest format, once
                                    nobody wants to go back to an older version of Leveret

Options:
  --config FILE         read this TOML file; flags go before what it says
  --board NAME          start from a board's profile: generic, router-64, router-128, pi-zero-w, pi-3,
                        pi-4, pi-5, a file's path, or auto: the one that fits this machine
  --listen ADDR:PORT    listen here, such as 0.0.0.0:5672 or [::]:5672; may be given several times;
                        port 0 takes a free one
  --listen-tls ADDR[:PORT]  listen here with TLS, on port 5671 if none is named; [tls] in the
                        configuration file names certificate and key
  --listen-unix PATH    listen on a Unix socket, for programs of this machine
  --data-dir DIR        keep here what outlives the process
  --memory-limit SIZE   the memory of the whole process, such as 64MB or 128MiB
  --log-level LEVEL     error, warn, info (as it is by default), debug, trace or off
  -h, --help            print this
  -V, --version         print the version

SIGTERM and SIGINT end the broker cleanly; SIGHUP reads configuration and certificates again.
";

const COMMANDS: [&str; 7] = ["serve", "check", "bench", "inspect", "ctl", "restore", "upgrade-store"];

const OPTIONS: [&str; 10] = [
    "--config",
    "--board",
    "--listen",
    "--listen-tls",
    "--listen-unix",
    "--data-dir",
    "--memory-limit",
    "--log-level",
    "--help",
    "--version",
];

/// The name by which the program is `leveret ctl`.
const CTL_NAME: &str = "leveretctl";

/// Reads the arguments, the program's own name first.
///
/// # Errors
/// The first argument that makes no sense, and what was probably meant.
pub fn parse_all(arguments: impl IntoIterator<Item = OsString>) -> Result<Ask, BadArguments> {
    let mut arguments = arguments.into_iter();
    let name = arguments.next();
    if name.is_some_and(|name| Path::new(&name).file_name().is_some_and(|name| name == CTL_NAME)) {
        return Ok(Ask::Ctl(arguments.collect()));
    }
    parse(arguments)
}

/// Reads the arguments, the program's own name left out.
///
/// # Errors
/// The first argument that makes no sense, and what was probably meant.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Ask, BadArguments> {
    let mut parser = lexopt::Parser::from_args(arguments);
    let mut said = Said::default();
    let mut command: Option<String> = None;
    let mut file = None;
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Short('h') | Arg::Long("help") => return Ok(Ask::Help),
            Arg::Short('V') | Arg::Long("version") => return Ok(Ask::Version),
            // Its options are its own.
            Arg::Value(word) if word == "bench" && command.is_none() => {
                return bench::options::parse(&mut parser).map(Ask::Bench);
            }
            Arg::Value(word) if word == "inspect" && command.is_none() => {
                let asked = inspect::options::parse(&mut parser).map(Ask::Inspect);
                return asked.map_err(|bad| BadArguments { exit_code: inspect::CANNOT, ..bad });
            }
            Arg::Value(word) if word == "ctl" && command.is_none() => {
                return Ok(Ask::Ctl(parser.raw_args()?.collect()));
            }
            #[cfg(debug_assertions)]
            Arg::Value(word) if word == "sim" && command.is_none() => return sim(&mut parser),
            Arg::Value(word)
                if matches!(command.as_deref(), Some("restore" | "upgrade-store")) && file.is_none() =>
            {
                file = Some(PathBuf::from(word));
            }
            Arg::Value(word) if command.is_none() => command = Some(word.to_string_lossy().into_owned()),
            Arg::Value(word) => return Err(BadArguments::new(format!("{word:?} is one argument too many"))),
            Arg::Short(letter) => return Err(unknown_option(&format!("-{letter}"))),
            Arg::Long(name) => {
                let name = format!("--{name}");
                said.take_flag(&name, &mut parser)?;
            }
        }
    }
    match command.as_deref() {
        None | Some("serve") => Ok(Ask::Serve(said)),
        Some("check") => Ok(Ask::Check(said)),
        Some("restore") => match file {
            Some(file) => Ok(Ask::Restore(file, said)),
            None => Err(BadArguments::new("leveret restore FILE: name the backup".to_string())),
        },
        Some("upgrade-store") => match file {
            Some(directory) => Ok(Ask::UpgradeStore(directory)),
            None => Err(BadArguments::new("leveret upgrade-store DIR: name the data directory".to_string())),
        },
        Some(other) => Err(BadArguments::new(describe_unknown("command", other, &COMMANDS))),
    }
}

impl Said {
    fn take_flag(&mut self, name: &str, parser: &mut lexopt::Parser) -> Result<(), BadArguments> {
        match name {
            "--config" => self.file = Some(parser.value()?.into()),
            "--data-dir" => self.flags.data_dir = Some(parser.value()?.into()),
            "--board" => self.flags.board = Some(value(name, parser)?),
            "--memory-limit" => self.flags.memory_limit = Some(value(name, parser)?),
            "--log-level" => self.flags.log_level = Some(value(name, parser)?),
            "--listen-unix" => self.flags.listen_unix = Some(parser.value()?.into()),
            "--listen-tls" => {
                let address: TlsAddress = value(name, parser)?;
                self.flags.listen_tls.get_or_insert_default().push(address);
            }
            "--listen" => {
                let address: ListenAddress = value(name, parser)?;
                self.flags.listen.get_or_insert_default().push(address);
            }
            _ => return Err(unknown_option(name)),
        }
        Ok(())
    }
}

/// `leveret sim --seed N --runs M --step S`.
#[cfg(debug_assertions)]
fn sim(parser: &mut lexopt::Parser) -> Result<Ask, BadArguments> {
    let (mut seed, mut runs, mut step) = (1, 1_000, 1);
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("seed") => seed = value("--seed", parser)?,
            Arg::Long("runs") => runs = value("--runs", parser)?,
            Arg::Long("step") => step = value("--step", parser)?,
            _ => return Err(BadArguments::new("leveret sim takes --seed N, --runs M and --step S".into())),
        }
    }
    Ok(Ask::Sim(seed, runs, step))
}

/// The value of an option, understood.
pub(super) fn value<T: FromStr<Err: fmt::Display>>(
    name: &str,
    parser: &mut lexopt::Parser,
) -> Result<T, BadArguments> {
    let text = parser.value()?;
    let text = text.to_str().ok_or_else(|| BadArguments::new(format!("{name}: {text:?} is not UTF-8")))?;
    text.parse().map_err(|error| BadArguments::new(format!("{name}: {error}")))
}

fn unknown_option(name: &str) -> BadArguments {
    BadArguments::new(describe_unknown("option", name, &OPTIONS))
}

/// Why the arguments make no sense, as one sentence.
#[derive(Debug, PartialEq, Eq)]
pub struct BadArguments {
    sentence: String,
    exit_code: u8,
}

impl BadArguments {
    pub(super) const fn new(sentence: String) -> Self {
        Self { sentence, exit_code: 1 }
    }

    pub(super) const fn exit_code(&self) -> u8 {
        self.exit_code
    }
}

impl From<lexopt::Error> for BadArguments {
    fn from(error: lexopt::Error) -> Self {
        Self::new(error.to_string())
    }
}

impl fmt::Display for BadArguments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (leveret --help lists what there is)", self.sentence)
    }
}

impl Error for BadArguments {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::units::Bytes;

    fn parsed(line: &str) -> Result<Ask, BadArguments> {
        parse(line.split_whitespace().map(OsString::from))
    }

    #[track_caller]
    fn refused(line: &str, sentence: &str) {
        assert_eq!(parsed(line).unwrap_err().sentence, sentence);
    }

    #[test]
    fn the_command_is_serve_unless_said_otherwise() {
        assert!(matches!(parsed(""), Ok(Ask::Serve(_))));
        assert!(matches!(parsed("serve --board pi-4"), Ok(Ask::Serve(_))));
        assert!(matches!(parsed("--board pi-4 check"), Ok(Ask::Check(_))));
        assert!(matches!(parsed("check --help"), Ok(Ask::Help)));
        assert!(matches!(parsed("-V"), Ok(Ask::Version)));
        assert!(matches!(parsed("ctl -q list_queues"), Ok(Ask::Ctl(rest)) if rest.len() == 2));
        let by_name = parse_all(["/usr/bin/leveretctl", "ping"].map(OsString::from));
        assert!(matches!(parsed("upgrade-store d"), Ok(Ask::UpgradeStore(of)) if of == Path::new("d")));
        refused("upgrade-store", "leveret upgrade-store DIR: name the data directory");
        assert!(
            matches!(parsed("restore f --data-dir d"), Ok(Ask::Restore(file, _)) if file == Path::new("f"))
        );
        refused("restore", "leveret restore FILE: name the backup");
        assert!(matches!(by_name, Ok(Ask::Ctl(rest)) if rest == ["ping"]));
    }

    #[test]
    fn flags_become_a_layer() {
        let line = "--listen 127.0.0.1:0 --listen=[::1]:7 --data-dir d --memory-limit 64MB --config c";
        let Ok(Ask::Serve(said)) = parsed(line) else { panic!("{line}") };
        assert_eq!(said.file, Some("c".into()));
        assert_eq!(said.flags.data_dir, Some("d".into()));
        assert_eq!(said.flags.memory_limit, Some(Bytes(64_000_000)));
        let ports = said.flags.listen.unwrap_or_default().into_iter().map(|listen| listen.socket.port());
        assert_eq!(ports.collect::<Vec<_>>(), [0, 7]);
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        refused("--lisen 127.0.0.1:1", "unknown option --lisen; did you mean --listen?");
        refused("--memory_limit 1", "unknown option --memory_limit; did you mean --memory-limit?");
        refused(
            "-x",
            "unknown option -x; there are --config, --board, --listen, --listen-tls, --listen-unix, \
                 --data-dir, --memory-limit, --log-level, --help, --version",
        );
        assert_eq!(parsed("inspect").unwrap_err().exit_code, 3);
        assert_eq!(parsed("inspect d --no").unwrap_err().exit_code, 3);
        refused("chek", "unknown command chek; did you mean check?");
        refused("serve check", "\"check\" is one argument too many");
        refused("--config", "missing argument for option '--config'");
        refused(
            "--log-level loud",
            "--log-level: \"loud\" is not a log level: error, warn, info, debug, trace or off",
        );
    }

    #[test]
    fn the_help_names_every_option_and_command() {
        for word in OPTIONS.iter().chain(&COMMANDS) {
            assert!(HELP.contains(word), "{word}");
        }
    }
}
