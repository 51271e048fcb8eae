//! The command line: what is asked for, and the flags as a configuration layer.
//!
//! A flag has the name of its key with hyphens and takes the same spellings; `config::units` reads both.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use crate::options::{BadArguments, Next, OptionRow, Section, Table};
use crate::{ctl, inspect};
use leveret_config::units::ListenAddress;
use leveret_config::{Layer, describe_unknown};

/// What a person wants of the program.
#[derive(Debug)]
pub enum Ask {
    /// Be a broker.
    Serve(Said),
    /// Show the configuration and the memory it adds up to.
    Check(Said),
    /// Look at a data directory; `None`: say how.
    Inspect(Option<inspect::options::Options>),
    /// Make a store of a backup.
    Restore(PathBuf, Said),
    /// Speak to a running broker; the arguments are its own.
    Ctl(Vec<OsString>),
    /// Say which version this is.
    Version,
    /// Say how to use it, or one command of it.
    Help(Page),
}

/// Where the configuration comes from.
#[derive(Debug, Default)]
pub struct Said {
    /// The file named by `--config`.
    pub file: Option<PathBuf>,
    /// The flags.
    pub flags: Layer,
    /// `leveret check` is to connect to the upstreams of bridges.
    pub connects: bool,
    /// `leveret check` is to print a drop-in for the systemd unit, and nothing else.
    pub is_drop_in: bool,
}

/// What help is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Page {
    /// All of it.
    Program,
    /// One of [`COMMANDS`] that has no help of its own.
    Command(&'static CommandRow),
}

impl Page {
    /// What is printed.
    pub fn text(self) -> String {
        match self {
            Self::Program => {
                let mut calls = String::new();
                for (number, command) in COMMANDS.iter().enumerate() {
                    let left = format!(
                        "{}leveret {}",
                        if number == 0 { "Usage: " } else { "       " },
                        command.usage
                    );
                    let about = command.about.replace('\n', &format!("\n{:USAGE_COLUMN$}", ""));
                    calls += &format!("{left:USAGE_COLUMN$}{about}\n");
                }
                format!("{WHAT_IT_IS}\n{calls}\n{}{AFTER_OPTIONS}", OPTIONS.help(|_| true))
            }
            Self::Command(command) => {
                let options =
                    OPTIONS.help(|name| command.options.is_empty() || command.options.contains(&name));
                format!("Usage: leveret {}\n\n{}\n\n{options}", command.usage, command.about)
            }
        }
    }
}

const WHAT_IT_IS: &str = "Leveret: a small RabbitMQ-compatible AMQP 0-9-1 broker.\n";

/// The column at which the help says what a command does.
const USAGE_COLUMN: usize = 36;

const AFTER_OPTIONS: &str = "\
SIGTERM and SIGINT end the broker cleanly; SIGHUP reads configuration and certificates again.
";

/// A command of the program.
#[derive(PartialEq, Eq, Debug)]
pub struct CommandRow {
    name: &'static str,
    usage: &'static str,
    about: &'static str,
    /// The options that have an effect on it; all of them where none is named.
    options: &'static [&'static str],
}

static COMMANDS: [CommandRow; 5] = [
    CommandRow {
        name: "serve",
        usage: "[serve] [OPTIONS]",
        about: "start the broker; without a configuration: on\n\
                127.0.0.1:5672 and [::1]:5672, user guest, password guest",
        options: &[],
    },
    CommandRow {
        name: "check",
        usage: "check [OPTIONS]",
        about: "print the configuration that results and the memory it adds\n\
                up to; the exit code says whether the broker would start",
        options: &[],
    },
    CommandRow {
        name: "inspect",
        usage: "inspect DIR",
        about: "what a data directory holds and whether it is whole; save messages\n\
                from a damaged one; leveret inspect --help says more",
        options: &[],
    },
    CommandRow {
        name: "ctl",
        usage: "ctl COMMAND",
        about: "ask or tell a running broker, as rabbitmqctl does; also by the name\n\
                leveretctl; leveret ctl help lists the commands",
        options: &[],
    },
    CommandRow {
        name: "restore",
        usage: "restore FILE",
        about: "make a store of what leveret ctl backup wrote, in --data-dir",
        options: &["--config", "--data-dir", "--help"],
    },
];

const OPTIONS: Table<Said> = Table(&[Section {
    heading: "Options:",
    rows: &[
        OptionRow::new(
            "--config",
            "FILE",
            "read this TOML file; flags go before what it says",
            |said, given| given.path().map(|file| said.file = Some(file)),
        ),
        OptionRow::new(
            "--board",
            "NAME",
            "start from a board's profile: generic, router-64, router-128, pi-zero-w, pi-zero-2-w,\n\
             pi-3, pi-4, pi-5, beaglebone-black, imx8, qemu-virt, a file's path, or auto: the one\n\
             that fits this machine",
            |said, given| given.value().map(|board| said.flags.board = Some(board)),
        ),
        OptionRow::new(
            "--listen",
            "ADDR:PORT",
            "listen here, such as 0.0.0.0:5672 or [::]:5672; may be given several times;\n\
             port 0 takes a free one; a port alone is one of 127.0.0.1",
            |said, given| given.value().map(|at| said.flags.listen.get_or_insert_default().push(at)),
        ),
        OptionRow {
            letter: Some('p'),
            ..OptionRow::new("--port", "PORT", "the same as --listen 127.0.0.1:PORT", |said, given| {
                let socket = SocketAddr::from((Ipv4Addr::LOCALHOST, given.number(0, u16::MAX)?));
                said.flags.listen.get_or_insert_default().push(ListenAddress::required(socket));
                Ok(())
            })
        },
        OptionRow::new(
            "--listen-tls",
            "ADDR[:PORT]",
            "listen here with TLS, on port 5671 if none is named; [tls] in the\n\
             configuration file names certificate and key",
            |said, given| given.value().map(|at| said.flags.listen_tls.get_or_insert_default().push(at)),
        ),
        OptionRow::new(
            "--listen-unix",
            "PATH",
            "listen on a Unix socket, for programs of this machine",
            |said, given| given.path().map(|path| said.flags.listen_unix = Some(path)),
        ),
        OptionRow::new(
            "--management",
            "ADDR:PORT",
            "serve the management API here, such as 127.0.0.1:15672",
            |said, given| given.value().map(|at| said.flags.management.get_or_insert_default().push(at)),
        ),
        OptionRow::new(
            "--management-tls",
            "ADDR:PORT",
            "the same with TLS, such as 0.0.0.0:15671; [tls] in the configuration\n\
             file names certificate and key",
            |said, given| given.value().map(|at| said.flags.management_tls.get_or_insert_default().push(at)),
        ),
        OptionRow::new(
            "--metrics",
            "ADDR:PORT",
            "serve metrics for Prometheus here without a login, such as\n127.0.0.1:15692",
            |said, given| given.value().map(|at| said.flags.metrics.get_or_insert_default().push(at)),
        ),
        OptionRow::new("--data-dir", "DIR", "keep here what outlives the process", |said, given| {
            given.path().map(|folder| said.flags.data_dir = Some(folder))
        }),
        OptionRow::new(
            "--memory-limit",
            "SIZE",
            "the memory of the whole process, such as 64MB or 128MiB",
            |said, given| given.value().map(|bytes| said.flags.memory_limit = Some(bytes)),
        ),
        OptionRow::new(
            "--log-level",
            "LEVEL",
            "error, warn, info (as it is by default), debug, trace or off",
            |said, given| given.value().map(|level| said.flags.log_level = Some(level)),
        ),
        OptionRow::new(
            "--connect",
            "",
            "of check: connect to every upstream of a [[bridge]] once, and say what\n\
             works there and what does not",
            |said, _| {
                said.connects = true;
                Ok(())
            },
        ),
        OptionRow::new(
            "--drop-in",
            "",
            "of check: print a drop-in for the systemd unit instead, with MemoryMax= as this\n\
             configuration needs it",
            |said, _| {
                said.is_drop_in = true;
                Ok(())
            },
        ),
        OptionRow::help(),
        OptionRow::version(),
    ],
}]);

/// The name by which the program is `leveret ctl`.
const CTL_NAME: &str = "leveretctl";

/// What people ask for here, and another program does.
const BENCH: &str = "bench";

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
    loop {
        let word = match OPTIONS.next(&mut said, &mut parser)? {
            Next::End => break,
            Next::Help => return Ok(Ask::Help(command.as_deref().map_or(Page::Program, page_of))),
            Next::Version => return Ok(Ask::Version),
            Next::Option => continue,
            Next::Word(word) => word,
        };
        match (command.as_deref(), word.to_str()) {
            // Their options are their own.
            (None, Some(BENCH)) => return Err(unknown_command(BENCH)),
            (None, Some("inspect")) => {
                let asked = inspect::options::parse(&mut parser).map(Ask::Inspect);
                return asked.map_err(|bad| BadArguments { exit_code: inspect::CANNOT, ..bad });
            }
            (None, Some("ctl")) => return Ok(Ask::Ctl(parser.raw_args()?.collect())),
            (None, Some("help")) => return help_on(parser.value().ok()),
            (None, Some("version")) => return Ok(Ask::Version),
            (None, _) => command = Some(word.to_string_lossy().into_owned()),
            (Some("restore"), _) if file.is_none() => file = Some(PathBuf::from(word)),
            (Some(_), _) => return Err(BadArguments::one_too_many(&word)),
        }
    }
    for (is_said, option) in [(said.connects, "--connect"), (said.is_drop_in, "--drop-in")] {
        if is_said && command.as_deref() != Some("check") {
            return Err(BadArguments::new(format!("{option} goes with leveret check")));
        }
    }
    match command.as_deref() {
        None | Some("serve") => Ok(Ask::Serve(said)),
        Some("check") => Ok(Ask::Check(said)),
        Some("restore") => match file {
            Some(file) => Ok(Ask::Restore(file, said)),
            None => Err(BadArguments::new("leveret restore FILE: name the backup".to_string())),
        },
        Some(other) => Err(unknown_command(other)),
    }
}

/// What is said about a command that is not there.
fn unknown_command(name: &str) -> BadArguments {
    if name == BENCH {
        return BadArguments::new(
            "to measure a broker there is a program of its own, leveret-bench".to_string(),
        );
    }
    if ctl::has_command(name) {
        let sentence = format!("unknown command {name}; did you mean leveret ctl {name}?");
        return BadArguments::new(sentence);
    }
    BadArguments::new(describe_unknown("command", name, &COMMANDS.each_ref().map(|command| command.name)))
}

/// The page of a command; that of the program where the name is of none.
fn page_of(name: &str) -> Page {
    COMMANDS.iter().find(|command| command.name == name).map_or(Page::Program, Page::Command)
}

/// `leveret help`, and `leveret help COMMAND`.
fn help_on(command: Option<OsString>) -> Result<Ask, BadArguments> {
    let Some(command) = command else { return Ok(Ask::Help(Page::Program)) };
    match command.to_string_lossy().as_ref() {
        "inspect" => Ok(Ask::Inspect(None)),
        "ctl" => Ok(Ask::Ctl(vec!["help".into()])),
        name => match page_of(name) {
            Page::Program => Err(unknown_command(name)),
            page => Ok(Ask::Help(page)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use leveret_config::units::Bytes;

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
        assert!(matches!(parsed("-h"), Ok(Ask::Help(Page::Program))));
        assert!(matches!(parsed("-V"), Ok(Ask::Version)));
        assert!(matches!(parsed("ctl -q list_queues"), Ok(Ask::Ctl(rest)) if rest.len() == 2));
        let by_name = parse_all(["/usr/bin/leveretctl", "ping"].map(OsString::from));
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
            "unknown option -x; there are --config, --board, --listen, --port, --listen-tls, --listen-unix, \
                 --management, --management-tls, --metrics, --data-dir, --memory-limit, --log-level, --connect, --drop-in, \
                 --help, --version",
        );
        assert_eq!(parsed("inspect").unwrap_err().exit_code, 3);
        assert_eq!(parsed("inspect d --no").unwrap_err().exit_code, 3);
        refused("--connect", "--connect goes with leveret check");
        refused("serve --drop-in", "--drop-in goes with leveret check");
        assert!(matches!(parsed("check --drop-in"), Ok(Ask::Check(said)) if said.is_drop_in));
        assert!(matches!(parsed("check --connect"), Ok(Ask::Check(said)) if said.connects));
        refused("chek", "unknown command chek; did you mean check?");
        refused("status", "unknown command status; did you mean leveret ctl status?");
        for line in ["bench --size 16", "help bench"] {
            refused(line, "to measure a broker there is a program of its own, leveret-bench");
        }
        refused("serve check", "\"check\" is one argument too many");
        refused("--config", "missing argument for option '--config'");
        refused(
            "--log-level loud",
            "--log-level: \"loud\" is not a log level: error, warn, info, debug, trace or off",
        );
    }

    #[test]
    fn the_help_names_every_option_and_command() {
        let help = Page::Program.text();
        let commands = COMMANDS.each_ref().map(|command| command.name);
        for word in OPTIONS.names().iter().chain(&commands) {
            assert!(help.contains(word), "{word}");
        }
    }

    #[test]
    fn every_command_has_a_page_by_every_habit() {
        for line in ["help restore", "restore --help", "--data-dir d restore -h"] {
            let Ok(Ask::Help(page)) = parsed(line) else { panic!("{line}") };
            let text = page.text();
            assert!(text.starts_with("Usage: leveret restore FILE\n"), "{text}");
            assert!(text.contains("--data-dir") && !text.contains("--listen"), "{text}");
        }
        for name in ["serve", "check"] {
            let Ok(Ask::Help(page)) = parsed(&format!("{name} --help")) else { panic!("{name}") };
            assert!(page.text().contains("--memory-limit"));
        }
        assert!(matches!(parsed("help"), Ok(Ask::Help(Page::Program))));
        assert!(matches!(parsed("help inspect"), Ok(Ask::Inspect(None))));
        assert!(matches!(parsed("help ctl"), Ok(Ask::Ctl(rest)) if rest == ["help"]));
        assert!(matches!(parsed("version"), Ok(Ask::Version)));
        refused("help chek", "unknown command chek; did you mean check?");
    }

    #[test]
    fn a_port_alone_is_one_of_this_machine() {
        for line in ["-p 25001", "--port 25001", "--listen 25001", "--listen localhost:25001"] {
            let Ok(Ask::Serve(said)) = parsed(line) else { panic!("{line}") };
            let sockets = said.flags.listen.unwrap_or_default().into_iter().map(|listen| listen.socket);
            assert_eq!(sockets.collect::<Vec<_>>(), ["127.0.0.1:25001".parse().unwrap()], "{line}");
        }
        refused("--port 65536", "--port: \"65536\" is not a whole number from 0 to 65535");
    }
}
