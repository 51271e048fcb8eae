//! `leveret ctl`: the words of `rabbitmqctl`, spoken to a running broker over its socket.
//!
//! | file | what it holds |
//! |------|---------------|
//! | `args` | the command, its arguments and options |
//! | `commands` | all commands, with their usage |
//! | `listings`, `operations`, `access`, `definitions`, `backup` | what they do |
//! | `client` | requests to the broker |
//! | `find` | which socket is the broker's |
//! | `format` | rows as they are printed |
//!
//! Always true: words, columns and exit codes are those of rabbitmqctl 3.10; what only rabbitmqctl can do is
//! refused like any unknown command; no password is printed.

mod access;
mod args;
mod backup;
mod client;
mod commands;
mod definitions;
mod find;
mod format;
mod limits;
mod listings;
mod operations;

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use crate::config::nearest::nearest;

use args::Call;
use client::{Client, Reply};
use commands::{COMMANDS, Command};

/// The command line makes no sense.
const USAGE: u8 = 64;
/// An argument makes no sense.
const BAD_DATA: u8 = 65;
/// There is no such user.
const NO_USER: u8 = 67;
/// There is no broker, or it could not do it.
const UNAVAILABLE: u8 = 69;
/// Something that should not have happened; also that a user exists already.
const SOFTWARE: u8 = 70;
/// The broker took too long.
const TIMED_OUT: u8 = 75;
/// The socket is not for this user.
const NOT_PERMITTED: u8 = 77;

/// Why a command failed, in words for standard error.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    text: String,
}

impl Failure {
    #[cold]
    fn new(code: u8, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }

    /// `Error:` and what is wrong, as rabbitmqctl puts it.
    #[cold]
    fn error(code: u8, what: impl core::fmt::Display) -> Self {
        Self::new(code, format!("Error:\n{what}"))
    }

    /// What the broker refused.
    #[cold]
    fn refused(reply: &Reply) -> Self {
        let code = if reply.status == 404 { BAD_DATA } else { UNAVAILABLE };
        Self::error(code, reply.reason())
    }
}

impl core::fmt::Display for Failure {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::new(SOFTWARE, format!("Error: standard output: {error}"))
    }
}

/// Does what the arguments say.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let call = args::parse(arguments);
    let done = do_it(&call);
    let failure = match done.and_then(|()| io::stdout().flush().map_err(Failure::from)) {
        Ok(()) => return ExitCode::SUCCESS,
        Err(failure) => failure,
    };
    // Nobody is left to be told when standard error is closed.
    let _ = writeln!(io::stderr(), "{}", failure.text);
    ExitCode::from(failure.code)
}

fn do_it(call: &Call) -> Result<(), Failure> {
    if call.command.is_empty() && call.help {
        return commands::help(call);
    }
    let Some(command) = COMMANDS.iter().find(|command| command.name == call.command) else {
        return Err(unknown(&call.command));
    };
    if call.help {
        return commands::help_for(command);
    }
    if let Some(why) = &call.bad {
        return Err(misused(call, command, &format!("Invalid options for this command:\n{why}")));
    }
    if call.args.len() < command.args.0 {
        return Err(misused(call, command, "not enough arguments."));
    }
    if call.args.len() > command.args.1 {
        return Err(misused(call, command, "too many arguments."));
    }
    (command.run)(call)
}

/// `Command 'x' not found`, and what was probably meant.
fn unknown(name: &str) -> Failure {
    if name.is_empty() {
        return Failure::new(USAGE, commands::overview());
    }
    let meant = nearest(name, COMMANDS.iter().map(|command| command.name));
    let text = match meant {
        Some(meant) => format!("\nCommand '{name}' not found. \nDid you mean '{meant}'? \n"),
        None => format!("\nCommand '{name}' not found. \n\n{}", commands::overview()),
    };
    Failure::new(USAGE, text)
}

/// An argument that makes no sense, with the usage.
fn misused(call: &Call, command: &Command, why: &str) -> Failure {
    misused_as(USAGE, call, command.usage, why)
}

#[cold]
fn misused_as(code: u8, call: &Call, usage: &str, why: &str) -> Failure {
    let text = format!(
        "Error (argument validation): {why}\nArguments given:\n\t{}\n\n{}\n\nleveretctl {usage}",
        call.given,
        commands::heading("Usage"),
    );
    Failure::new(code, text)
}

/// Connects to the broker that is meant.
fn connect(call: &Call) -> Result<Client, Failure> {
    find::connect(call)
}

/// Says what is being done, to those who want to know.
fn tell(call: &Call, text: &str) -> Result<(), Failure> {
    if call.talks() {
        writeln!(io::stdout(), "{text}")?;
    }
    Ok(())
}
