//! `leveret ctl`: the commands of `rabbitmqctl` for a running broker, over its control socket.
//!
//! | file | content |
//! |------|---------|
//! | `commands` | the table of all commands, parsing of arguments, finding the control socket, advice for unknown commands |
//! | `listings`, `changes`, `operations`, `access`, `limits`, `policies`, `shovels`, `definitions`, `backup` | the commands |
//! | `checks` | checks for scripts |
//! | `client` | requests to the broker; errors and exit codes |
//! | `template` | fills the templates of paths and texts in the table of commands |
//! | `flight` | the last events, from the file of the flight recorder |
//! | `format` | formats of rows; `report` |
//!
//! # Invariants
//! - Commands that rabbitmqctl 3.10 has too have its columns, texts and exit codes. Other commands are from later
//!   versions of rabbitmqctl or Leveret's own (for example `backup`). Commands that only rabbitmqctl has are refused
//!   like unknown ones.
//! - No password is printed.

mod access;
mod backup;
mod changes;
mod checks;
mod client;
mod commands;
mod definitions;
mod flight;
mod format;
mod limits;
mod listings;
mod operations;
mod policies;
mod shovels;
mod template;

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use leveret_config::nearest::nearest;

use crate::completions::CompletedOption;

pub use client::Failure;
use client::{USAGE, misused};
use commands::COMMANDS;
use commands::Call;

/// Runs the command.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let done = run_command(commands::parse(arguments));
    let failure = match done.and_then(|()| io::stdout().flush().map_err(Failure::from)) {
        Ok(()) => return ExitCode::SUCCESS,
        Err(failure) => failure,
    };
    // A closed standard error leaves no place to report to.
    if !failure.text.is_empty() {
        let _ = writeln!(io::stderr(), "{}", failure.text);
    }
    ExitCode::from(failure.code)
}

fn run_command(mut call: Call) -> Result<(), Failure> {
    if call.command.is_empty() && call.help {
        return commands::help(&call);
    }
    let Some(command) = COMMANDS.iter().find(|command| command.name == call.command) else {
        return Err(unknown(&call.command));
    };
    if call.help {
        return commands::help_for(command);
    }
    call.usage = command.usage;
    if let Some(why) = &call.bad {
        return Err(misused(&call, &format!("Invalid options for this command:\n{why}")));
    }
    if call.args.len() < command.args.0 {
        return Err(misused(&call, "not enough arguments."));
    }
    if call.args.len() > command.args.1 {
        return Err(misused(&call, "too many arguments."));
    }
    command.run(&call)
}

/// Returns whether there is a command of this name.
pub(crate) fn has_command(name: &str) -> bool {
    COMMANDS.iter().any(|command| command.name == name)
}

/// Returns the failure `Command 'x' not found`, with a suggestion.
fn unknown(name: &str) -> Failure {
    if name.is_empty() {
        return Failure::new(USAGE, commands::overview());
    }
    let by_words = commands::listing_of(name);
    let meant = by_words.or_else(|| nearest(name, COMMANDS.iter().map(|command| command.name)));
    let text = match meant.filter(|_| commands::find(name).is_none()) {
        Some(meant) => format!("\nCommand '{name}' not found. \nDid you mean '{meant}'? \n"),
        None => format!("\nCommand '{name}' not found. \n{}", commands::advice(name)),
    };
    Failure::new(USAGE, text)
}
/// Returns the names of all commands, and the options of all of them.
pub(crate) fn completed() -> (Vec<&'static str>, Vec<CompletedOption>) {
    let options = commands::GENERAL_OPTIONS.iter().map(|(names, value, about)| CompletedOption {
        names: names.split(", ").map(str::to_string).collect(),
        value,
        about: about.to_string(),
    });
    (COMMANDS.iter().map(|command| command.name).collect(), options.collect())
}
