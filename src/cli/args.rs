//! The command line of `leveret`: commands, options, and flags that override keys of the configuration.
//!
//! A flag has the name of its configuration key, with hyphens, and accepts the same values.

use crate::plan::Plan;
use std::error::Error;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;

use leveret_config::units::ListenAddress;
use leveret_config::{Config, Layer, describe_unknown};
use leveret_core::version::{build_version, set_build_version};
use leveret_daemon::{StartError, logging};
use lexopt::Arg;

use crate::completions::{self, CompletedOption};
use crate::{check, ctl, drop_in, inspect, restore};

/// The command to run.
#[derive(Debug)]
pub enum CommandLine {
    /// Run the broker.
    Serve(ConfigArguments),
    /// Show the configuration and the memory table.
    Check(ConfigArguments),
    /// Inspect a data directory; `None`: print the help.
    Inspect(Option<inspect::Options>),
    /// Create a store from a backup.
    Restore(PathBuf, ConfigArguments),
    /// Run a command of `leveretctl` with these arguments.
    Ctl(Vec<OsString>),
    /// Print the completion script of a shell.
    Completions(String),
    /// Print the version.
    Version,
    /// Print help for the program or a command.
    Help(HelpPage),
}

/// The sources of the configuration on the command line.
#[derive(Debug, Default)]
pub struct ConfigArguments {
    /// The file named by `--config`.
    pub file: Option<PathBuf>,
    /// The flags.
    pub flags: Layer,
    /// `leveret check` connects to the upstreams of bridges.
    pub connects: bool,
    /// `leveret check` only prints a drop-in for the systemd unit.
    pub is_drop_in: bool,
    /// The plant that `leveret check` compares with the configuration.
    pub plan: Option<Plan>,
}

/// A page of the help.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HelpPage {
    /// The page of the program.
    Program,
    /// The page of a command.
    Command(&'static CommandRow),
}

impl HelpPage {
    /// Returns the text of the page.
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

/// The column of the descriptions of commands in the help.
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
    /// The options of the command; an empty list stands for all.
    options: &'static [&'static str],
}

static COMMANDS: [CommandRow; 6] = [
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
        about: "print the resulting configuration and the memory that it\n\
                needs; the exit code is 0 if the broker would start",
        options: &[],
    },
    CommandRow {
        name: "inspect",
        usage: "inspect DIR",
        about: "show the content and the damage of a data directory, and save\n\
                messages from a damaged one; see leveret inspect --help",
        options: &[],
    },
    CommandRow {
        name: "ctl",
        usage: "ctl COMMAND",
        about: "query and control a running broker, like rabbitmqctl; also as\n\
                leveretctl; leveret ctl help lists the commands",
        options: &[],
    },
    CommandRow {
        name: "restore",
        usage: "restore FILE",
        about: "make a store in --data-dir from a file of leveret ctl backup",
        options: &["--config", "--data-dir", "--help"],
    },
    CommandRow {
        name: "completions",
        usage: "completions SHELL",
        about: "print the completions of the command line for bash, zsh or fish, such as\n\
                source <(leveret completions bash)",
        options: &["--help"],
    },
];

const OPTIONS: Table<ConfigArguments> = Table(&[Section {
    heading: "Options:",
    rows: &[
        OptionRow::new(
            "--config",
            "FILE",
            "read this TOML file; flags override its values",
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
             port 0 selects a free one; without an address: 127.0.0.1",
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
            "listen here with TLS, on port 5671 by default; [tls] in the\n\
             configuration file names certificate and key",
            |said, given| given.value().map(|at| said.flags.listen_tls.get_or_insert_default().push(at)),
        ),
        OptionRow::new(
            "--listen-unix",
            "PATH",
            "listen on a Unix socket, for programs on this machine",
            |said, given| given.path().map(|path| said.flags.listen_unix = Some(path)),
        ),
        OptionRow::new(
            "--mqtt",
            "ADDR[:PORT]",
            "listen here for MQTT, on port 1883 by default; may be given several times",
            |said, given| given.value().map(|at| said.flags.mqtt.get_or_insert_default().push(at)),
        ),
        OptionRow::new(
            "--mqtt-tls",
            "ADDR[:PORT]",
            "the same with TLS, on port 8883 by default; [tls] in the configuration file\n\
             names certificate and key",
            |said, given| given.value().map(|at| said.flags.mqtt_tls.get_or_insert_default().push(at)),
        ),
        OptionRow::new(
            "--management",
            "ADDR:PORT",
            "serve the web page and the management API here; without a file and\n\
             without addresses at 127.0.0.1:15672",
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
        OptionRow::new(
            "--data-dir",
            "DIR",
            "store all data that must survive a restart here",
            |said, given| given.path().map(|folder| said.flags.data_dir = Some(folder)),
        ),
        OptionRow::new(
            "--memory-limit",
            "SIZE",
            "the memory of the whole process, such as 64MB or 128MiB",
            |said, given| given.value().map(|bytes| said.flags.memory_limit = Some(bytes)),
        ),
        OptionRow::new(
            "--log-level",
            "LEVEL",
            "error, warn, info (the default), debug, trace or off",
            |said, given| given.value().map(|level| said.flags.log_level = Some(level)),
        ),
        OptionRow::new(
            "--connect",
            "",
            "of check: connect to every upstream of a [[bridge]] once, and report\n\
             what works there",
            |said, _| {
                said.connects = true;
                Ok(())
            },
        ),
        OptionRow::new(
            "--drop-in",
            "",
            "of check: print a drop-in for the systemd unit instead, with MemoryMax= and the paths\n\
             for this configuration",
            |said, _| {
                said.is_drop_in = true;
                Ok(())
            },
        ),
        OptionRow::new(
            "--plan",
            "PLANT",
            "of check: whether a plant fits, such as mqtt=500,tls,users=500,queues=20 or\n\
             amqp=20,backlog=100000x200; the guide explains all parts",
            |said, given| given.value().map(|plan| said.plan = Some(plan)),
        ),
        OptionRow::help(),
        OptionRow::version(),
    ],
}]);

/// If the program is called by this name, it runs `leveret ctl`.
const CTL_NAME: &str = "leveretctl";

/// A command that users may expect in this program; it is in another one.
const BENCH: &str = "bench";

/// Parses all arguments, beginning with the program's name.
///
/// # Errors
/// The first invalid argument, and what was probably meant.
pub fn parse_all(arguments: impl IntoIterator<Item = OsString>) -> Result<CommandLine, BadArguments> {
    let mut arguments = arguments.into_iter();
    let name = arguments.next();
    if name.is_some_and(|name| Path::new(&name).file_name().is_some_and(|name| name == CTL_NAME)) {
        return Ok(CommandLine::Ctl(arguments.collect()));
    }
    parse(arguments)
}

/// Parses the arguments after the program's name.
///
/// # Errors
/// The first invalid argument, and what was probably meant.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<CommandLine, BadArguments> {
    let mut parser = lexopt::Parser::from_args(arguments);
    let mut said = ConfigArguments::default();
    let mut command: Option<String> = None;
    let mut file = None;
    loop {
        let word = match OPTIONS.next(&mut said, &mut parser)? {
            NextArgument::End => break,
            NextArgument::Help => {
                return Ok(CommandLine::Help(command.as_deref().map_or(HelpPage::Program, page_of)));
            }
            NextArgument::Version => return Ok(CommandLine::Version),
            NextArgument::Option => continue,
            NextArgument::Word(word) => word,
        };
        match (command.as_deref(), word.to_str()) {
            // These commands have separate options.
            (None, Some(BENCH)) => return Err(unknown_command(BENCH)),
            (None, Some("inspect")) => {
                let asked = inspect::parse(&mut parser).map(CommandLine::Inspect);
                return asked.map_err(|bad| BadArguments { exit_code: inspect::CANNOT_INSPECT, ..bad });
            }
            (None, Some("ctl")) => return Ok(CommandLine::Ctl(parser.raw_args()?.collect())),
            (None, Some("help")) => return help_on(parser.value().ok()),
            (None, Some("version")) => return Ok(CommandLine::Version),
            (None, _) => command = Some(word.to_string_lossy().into_owned()),
            (Some("restore" | "completions"), _) if file.is_none() => file = Some(PathBuf::from(word)),
            (Some(_), _) => return Err(BadArguments::one_too_many(&word)),
        }
    }
    for (is_said, option) in
        [(said.connects, "--connect"), (said.is_drop_in, "--drop-in"), (said.plan.is_some(), "--plan")]
    {
        if is_said && command.as_deref() != Some("check") {
            return Err(BadArguments::new(format!("{option} is an option of leveret check")));
        }
    }
    match command.as_deref() {
        None | Some("serve") => Ok(CommandLine::Serve(said)),
        Some("check") => Ok(CommandLine::Check(said)),
        Some("restore") => match file {
            Some(file) => Ok(CommandLine::Restore(file, said)),
            None => Err(BadArguments::new("leveret restore FILE: name the backup".to_string())),
        },
        Some("completions") => {
            let shell = file.map_or_else(String::new, |shell| shell.display().to_string());
            match completions::script(&shell) {
                Some(script) => Ok(CommandLine::Completions(script)),
                None => Err(BadArguments::new(format!(
                    "leveret completions SHELL: name one of {}",
                    completions::SHELLS.join(", ")
                ))),
            }
        }
        Some(other) => Err(unknown_command(other)),
    }
}

/// Returns the commands of the program, and its options.
pub(crate) fn completed() -> (Vec<&'static str>, Vec<CompletedOption>) {
    let options = OPTIONS.rows().map(|row| CompletedOption {
        names: row
            .letter
            .map(|letter| format!("-{letter}"))
            .into_iter()
            .chain([row.name.to_string()])
            .collect(),
        value: row.value.split(['[', ':']).next().unwrap_or_default(),
        about: row.about.replace('\n', " "),
    });
    (COMMANDS.iter().map(|command| command.name).collect(), options.collect())
}

/// Returns the error for an unknown command.
fn unknown_command(name: &str) -> BadArguments {
    if name == BENCH {
        return BadArguments::new("leveret-bench is the program that measures a broker".to_string());
    }
    if ctl::has_command(name) {
        let sentence = format!("unknown command {name}; did you mean leveret ctl {name}?");
        return BadArguments::new(sentence);
    }
    BadArguments::new(describe_unknown("command", name, &COMMANDS.each_ref().map(|command| command.name)))
}

/// Returns the page of a command, or that of the program for an unknown name.
fn page_of(name: &str) -> HelpPage {
    COMMANDS.iter().find(|command| command.name == name).map_or(HelpPage::Program, HelpPage::Command)
}

/// Handles `leveret help` and `leveret help COMMAND`.
fn help_on(command: Option<OsString>) -> Result<CommandLine, BadArguments> {
    let Some(command) = command else { return Ok(CommandLine::Help(HelpPage::Program)) };
    match command.to_string_lossy().as_ref() {
        "inspect" => Ok(CommandLine::Inspect(None)),
        "ctl" => Ok(CommandLine::Ctl(vec!["help".into()])),
        name => match page_of(name) {
            HelpPage::Program => Err(unknown_command(name)),
            page => Ok(CommandLine::Help(page)),
        },
    }
}

/// The column of the descriptions of options in the help.
const ABOUT_COLUMN: usize = 24;

/// An option of a command line whose values are stored in a `T`.
pub struct OptionRow<T> {
    /// The name, for example `--config`.
    pub name: &'static str,
    /// The short name.
    pub letter: Option<char>,
    /// The name of the value in the help; empty if the option has no value.
    pub value: &'static str,
    /// The description in the help.
    pub about: &'static str,
    /// The effect of the option.
    pub action: Action<T>,
}

/// The effect of an option.
pub enum Action<T> {
    /// The option sets something in the `T`.
    Take(fn(&mut T, &mut Given<'_>) -> Result<(), BadArguments>),
    /// The option requests the help.
    Help,
    /// The option requests the version.
    Version,
}

/// The next item of a command line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NextArgument {
    /// An option, which was handled.
    Option,
    /// A word that is not an option.
    Word(OsString),
    /// The help is requested.
    Help,
    /// The version is requested.
    Version,
    /// The end.
    End,
}

/// Options with a common heading in the help.
pub struct Section<T: 'static> {
    /// The heading.
    pub heading: &'static str,
    /// The options.
    pub rows: &'static [OptionRow<T>],
}

/// All options of a command line. Parsing, help and error texts use this table, so they are consistent.
pub struct Table<T: 'static>(pub &'static [Section<T>]);

/// An option on the command line, with access to its value.
pub struct Given<'p> {
    name: &'static str,
    parser: &'p mut lexopt::Parser,
}

impl<T> OptionRow<T> {
    /// Returns an option with a value.
    pub const fn new(
        name: &'static str,
        value: &'static str,
        about: &'static str,
        take: fn(&mut T, &mut Given<'_>) -> Result<(), BadArguments>,
    ) -> Self {
        Self { name, letter: None, value, about, action: Action::Take(take) }
    }

    /// Returns the option `-h`, `--help`.
    pub const fn help() -> Self {
        Self { name: "--help", letter: Some('h'), value: "", about: "print this", action: Action::Help }
    }

    /// Returns the option `-V`, `--version`.
    pub const fn version() -> Self {
        Self {
            name: "--version",
            letter: Some('V'),
            value: "",
            about: "print the version",
            action: Action::Version,
        }
    }
}

impl<T> Table<T> {
    fn rows(&self) -> impl Iterator<Item = &'static OptionRow<T>> {
        self.0.iter().flat_map(|section| section.rows)
    }

    /// Returns the names of all options as in the help.
    pub fn names(&self) -> Vec<&'static str> {
        self.rows().map(|row| row.name).collect()
    }

    /// Parses the next item, and the value if it is an option.
    ///
    /// # Errors
    /// The option is unknown, or its value is invalid.
    pub fn next(&self, options: &mut T, parser: &mut lexopt::Parser) -> Result<NextArgument, BadArguments> {
        let asked = match parser.next()? {
            None => return Ok(NextArgument::End),
            Some(Arg::Value(word)) => return Ok(NextArgument::Word(word)),
            Some(Arg::Short(letter)) => format!("-{letter}"),
            Some(Arg::Long(name)) => format!("--{name}"),
        };
        let is_letter = |letter: char| asked == format!("-{letter}");
        let Some(row) = self.rows().find(|row| asked == row.name || row.letter.is_some_and(is_letter)) else {
            return Err(BadArguments::new(describe_unknown("option", &asked, &self.names())));
        };
        match row.action {
            Action::Help => return Ok(NextArgument::Help),
            Action::Version => return Ok(NextArgument::Version),
            Action::Take(take) => take(options, &mut Given { name: row.name, parser })?,
        }
        Ok(NextArgument::Option)
    }

    /// Formats the help for the options for whose names `is_shown` returns `true`.
    pub fn help(&self, is_shown: impl Fn(&str) -> bool) -> String {
        let mut text = String::new();
        for section in self.0 {
            text += &format!("{}\n", section.heading);
            for row in section.rows.iter().filter(|row| is_shown(row.name)) {
                let mut left = match row.letter {
                    Some(letter) => format!("  -{letter}, {}", row.name),
                    None => format!("  {}", row.name),
                };
                if !row.value.is_empty() {
                    left += &format!(" {}", row.value);
                }
                // The description begins at least two spaces after the option.
                let width = ABOUT_COLUMN.max(left.len() + 2);
                let about = row.about.replace('\n', &format!("\n{:ABOUT_COLUMN$}", ""));
                text += &format!("{left:width$}{about}\n");
            }
            text.push('\n');
        }
        text
    }
}

impl Given<'_> {
    /// Returns the value as a path.
    ///
    /// # Errors
    /// The value is missing.
    pub fn path(&mut self) -> Result<PathBuf, BadArguments> {
        Ok(self.parser.value()?.into())
    }

    /// Returns the parsed value.
    ///
    /// # Errors
    /// The value is missing or invalid.
    pub fn value<V: FromStr<Err: fmt::Display>>(&mut self) -> Result<V, BadArguments> {
        let text = self.parser.value()?;
        let text = text.to_str().ok_or_else(|| self.bad(format_args!("{text:?} is not UTF-8")))?;
        text.parse().map_err(|error| self.bad(format_args!("{error}")))
    }

    /// Returns the value as an integer from `min` to `max`.
    ///
    /// # Errors
    /// The value is missing, or not such a number.
    pub fn number<N>(&mut self, min: N, max: N) -> Result<N, BadArguments>
    where
        N: FromStr + PartialOrd + fmt::Display,
    {
        let text: String = self.value()?;
        match text.parse() {
            Ok(number) if min <= number && number <= max => Ok(number),
            _ => Err(self.bad(format_args!("{text:?} is not a whole number from {min} to {max}"))),
        }
    }

    /// Returns an error for the value.
    pub fn bad(&self, why: fmt::Arguments<'_>) -> BadArguments {
        BadArguments::new(format!("{}: {why}", self.name))
    }
}

/// Why the arguments are invalid: one sentence.
#[derive(Debug, PartialEq, Eq)]
pub struct BadArguments {
    /// The error text.
    pub sentence: String,
    /// The exit code.
    pub exit_code: u8,
    /// The program whose help lists the arguments.
    pub program: &'static str,
}

impl BadArguments {
    /// Returns an error with exit code 1, that of `leveret`.
    pub const fn new(sentence: String) -> Self {
        Self { sentence, exit_code: 1, program: "leveret" }
    }

    /// Returns the error for a superfluous word.
    pub fn one_too_many(word: &OsStr) -> Self {
        Self::new(format!("unexpected argument {word:?}"))
    }
}

impl From<lexopt::Error> for BadArguments {
    fn from(error: lexopt::Error) -> Self {
        Self::new(error.to_string())
    }
}

impl fmt::Display for BadArguments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (see {} --help)", self.sentence, self.program)
    }
}

impl Error for BadArguments {}

/// Runs the program with the arguments of the process and returns the exit code.
pub fn main(version: &'static str) -> ExitCode {
    set_build_version(version);
    let code = run().unwrap_or_else(|error| {
        logging::log_fatal(error.as_ref());
        super::exit_code(error.as_ref())
    });
    logging::finish();
    code
}

fn run() -> Result<ExitCode, Box<dyn Error>> {
    match parse_all(std::env::args_os())? {
        CommandLine::Help(page) => print(&page.text())?,
        CommandLine::Inspect(None) => print(&inspect::help())?,
        CommandLine::Inspect(Some(options)) => return Ok(inspect::run(&options)?),
        CommandLine::Restore(archive, said) => {
            let config = Config::gather(said.file.as_deref(), said.flags)?;
            print(&restore::run(&archive, &config.data_dir)?)?;
        }
        CommandLine::Ctl(arguments) => return Ok(ctl::run(arguments)),
        CommandLine::Completions(script) => print(&script)?,
        CommandLine::Version => print(&format!("leveret {}\n", build_version()))?,
        CommandLine::Check(said) => {
            let config = Config::gather(said.file.as_deref(), said.flags)?;
            if said.is_drop_in {
                print(&drop_in::drop_in(config)?)?;
                return Ok(ExitCode::SUCCESS);
            }
            let found = said.connects.then(|| config.clone());
            let (report, verdict) = check::check(config, said.plan.as_ref());
            print(&report)?;
            if !verdict? {
                return Ok(ExitCode::FAILURE);
            }
            if let Some(config) = found {
                let (found, is_good) = leveret_daemon::try_upstreams(&config);
                print(&found)?;
                if !is_good {
                    return Ok(ExitCode::FAILURE);
                }
            }
        }
        CommandLine::Serve(said) => {
            let config = Config::gather(said.file.as_deref(), said.flags)?;
            let no_thread = |error| StartError::System("start the thread that writes the log", error);
            logging::start(config.log_level, config.flight_recorder.as_deref()).map_err(no_thread)?;
            leveret_daemon::serve(&config)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints to standard output. A closed pipe, as by `head`, is not an error.
fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use leveret_config::units::Bytes;

    fn parsed(line: &str) -> Result<CommandLine, BadArguments> {
        parse(line.split_whitespace().map(OsString::from))
    }

    #[track_caller]
    fn refused(line: &str, sentence: &str) {
        assert_eq!(parsed(line).unwrap_err().sentence, sentence);
    }

    #[test]
    fn the_command_is_serve_unless_said_otherwise() {
        assert!(matches!(parsed(""), Ok(CommandLine::Serve(_))));
        assert!(matches!(parsed("serve --board pi-4"), Ok(CommandLine::Serve(_))));
        assert!(matches!(parsed("--board pi-4 check"), Ok(CommandLine::Check(_))));
        assert!(matches!(parsed("-h"), Ok(CommandLine::Help(HelpPage::Program))));
        assert!(matches!(parsed("-V"), Ok(CommandLine::Version)));
        assert!(matches!(parsed("ctl -q list_queues"), Ok(CommandLine::Ctl(rest)) if rest.len() == 2));
        let by_name = parse_all(["/usr/bin/leveretctl", "ping"].map(OsString::from));
        assert!(
            matches!(parsed("restore f --data-dir d"), Ok(CommandLine::Restore(file, _)) if file == Path::new("f"))
        );
        refused("restore", "leveret restore FILE: name the backup");
        assert!(matches!(by_name, Ok(CommandLine::Ctl(rest)) if rest == ["ping"]));
    }

    #[test]
    fn flags_become_a_layer() {
        let line = "--listen 127.0.0.1:0 --listen=[::1]:7 --data-dir d --memory-limit 64MB --config c";
        let Ok(CommandLine::Serve(said)) = parsed(line) else { panic!("{line}") };
        assert_eq!(said.file, Some("c".into()));
        assert_eq!(said.flags.data_dir, Some("d".into()));
        assert_eq!(said.flags.memory_limit, Some(Bytes(64_000_000)));
        let ports = said.flags.listen.unwrap_or_default().into_iter().map(|listen| listen.socket.port());
        assert_eq!(ports.collect::<Vec<_>>(), [0, 7]);
        let line = "--mqtt 127.0.0.1 --mqtt=[::1]:7 --mqtt-tls 0.0.0.0";
        let Ok(CommandLine::Serve(said)) = parsed(line) else { panic!("{line}") };
        let plain = said.flags.mqtt.unwrap_or_default().into_iter().map(|listen| listen.0.to_string());
        assert_eq!(plain.collect::<Vec<_>>(), ["127.0.0.1:1883", "[::1]:7"]);
        let with_tls = said.flags.mqtt_tls.unwrap_or_default().into_iter().map(|listen| listen.0.to_string());
        assert_eq!(with_tls.collect::<Vec<_>>(), ["0.0.0.0:8883"]);
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        refused("--lisen 127.0.0.1:1", "unknown option --lisen; did you mean --listen?");
        refused("--memory_limit 1", "unknown option --memory_limit; did you mean --memory-limit?");
        refused(
            "-x",
            "unknown option -x; there are --config, --board, --listen, --port, --listen-tls, --listen-unix, \
                 --mqtt, --mqtt-tls, --management, --management-tls, --metrics, --data-dir, --memory-limit, --log-level, --connect, --drop-in, --plan, \
                 --help, --version",
        );
        assert_eq!(parsed("inspect").unwrap_err().exit_code, 3);
        assert_eq!(parsed("inspect d --no").unwrap_err().exit_code, 3);
        refused("--connect", "--connect is an option of leveret check");
        refused("serve --drop-in", "--drop-in is an option of leveret check");
        assert!(matches!(parsed("check --drop-in"), Ok(CommandLine::Check(said)) if said.is_drop_in));
        assert!(matches!(parsed("check --connect"), Ok(CommandLine::Check(said)) if said.connects));
        refused("chek", "unknown command chek; did you mean check?");
        refused("status", "unknown command status; did you mean leveret ctl status?");
        for line in ["bench --size 16", "help bench"] {
            refused(line, "leveret-bench is the program that measures a broker");
        }
        refused("serve check", "unexpected argument \"check\"");
        refused("--config", "missing argument for option '--config'");
        refused(
            "--log-level loud",
            "--log-level: \"loud\" is not a log level: error, warn, info, debug, trace or off",
        );
    }

    #[test]
    fn the_help_names_every_option_and_command() {
        let help = HelpPage::Program.text();
        let commands = COMMANDS.each_ref().map(|command| command.name);
        for word in OPTIONS.names().iter().chain(&commands) {
            assert!(help.contains(word), "{word}");
        }
    }

    #[test]
    fn every_command_has_a_page_by_every_habit() {
        for line in ["help restore", "restore --help", "--data-dir d restore -h"] {
            let Ok(CommandLine::Help(page)) = parsed(line) else { panic!("{line}") };
            let text = page.text();
            assert!(text.starts_with("Usage: leveret restore FILE\n"), "{text}");
            assert!(text.contains("--data-dir") && !text.contains("--listen"), "{text}");
        }
        for name in ["serve", "check"] {
            let Ok(CommandLine::Help(page)) = parsed(&format!("{name} --help")) else { panic!("{name}") };
            assert!(page.text().contains("--memory-limit"));
        }
        assert!(matches!(parsed("help"), Ok(CommandLine::Help(HelpPage::Program))));
        assert!(matches!(parsed("help inspect"), Ok(CommandLine::Inspect(None))));
        assert!(matches!(parsed("help ctl"), Ok(CommandLine::Ctl(rest)) if rest == ["help"]));
        assert!(matches!(parsed("version"), Ok(CommandLine::Version)));
        refused("help chek", "unknown command chek; did you mean check?");
    }

    #[test]
    fn a_port_alone_is_one_of_this_machine() {
        for line in ["-p 25001", "--port 25001", "--listen 25001", "--listen localhost:25001"] {
            let Ok(CommandLine::Serve(said)) = parsed(line) else { panic!("{line}") };
            let sockets = said.flags.listen.unwrap_or_default().into_iter().map(|listen| listen.socket);
            assert_eq!(sockets.collect::<Vec<_>>(), ["127.0.0.1:25001".parse().unwrap()], "{line}");
        }
        refused("--port 65536", "--port: \"65536\" is not a whole number from 0 to 65535");
    }
}
