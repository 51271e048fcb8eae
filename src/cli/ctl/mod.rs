//! `leveret ctl`: the words of `rabbitmqctl`, spoken to a running broker over its socket.
//!
//! | file | what it holds |
//! |------|---------------|
//! | `args` | the command, its arguments and options |
//! | `commands` | all commands, with their usage |
//! | `listings`, `operations`, `access`, `limits`, `policies`, `parameters`, `definitions`, `backup`, `report` | what they do |
//! | `checks` | what scripts ask before they go on |
//! | `client` | requests to the broker |
//! | `flight` | the last events, from the file of the flight recorder |
//! | `find` | which socket is the broker's |
//! | `format` | rows as they are printed |
//! | `failure` | why a command failed |
//! | `elsewhere` | what people look for here that is done in another way |
//!
//! Always true: words, columns and exit codes are those of rabbitmqctl 3.10; what only rabbitmqctl can do is
//! refused like any unknown command; no password is printed.

mod access;
mod backup;
mod checks;
mod client;
mod commands;
mod definitions;
mod flight;
mod format;
mod limits;
mod listings;
mod operations;
mod parameters;
mod policies;

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use leveret_config::nearest::nearest;

pub use client::Failure;
use client::{USAGE, misused};
use commands::COMMANDS;
use commands::Call;

/// Does what the arguments say.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let done = do_it(commands::parse(arguments));
    let failure = match done.and_then(|()| io::stdout().flush().map_err(Failure::from)) {
        Ok(()) => return ExitCode::SUCCESS,
        Err(failure) => failure,
    };
    // Nobody is left to be told when standard error is closed.
    if !failure.text.is_empty() {
        let _ = writeln!(io::stderr(), "{}", failure.text);
    }
    ExitCode::from(failure.code)
}

fn do_it(mut call: Call) -> Result<(), Failure> {
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
    (command.run)(&call)
}

/// Whether there is a command of this name.
pub(crate) fn has_command(name: &str) -> bool {
    COMMANDS.iter().any(|command| command.name == name)
}

/// `Command 'x' not found`, and what was probably meant.
fn unknown(name: &str) -> Failure {
    if name.is_empty() {
        return Failure::new(USAGE, commands::overview());
    }
    let meant = nearest(name, COMMANDS.iter().map(|command| command.name));
    let text = match meant.filter(|_| commands::find(name).is_none()) {
        Some(meant) => format!("\nCommand '{name}' not found. \nDid you mean '{meant}'? \n"),
        None => format!("\nCommand '{name}' not found. \n{}", commands::advice(name)),
    };
    Failure::new(USAGE, text)
}
