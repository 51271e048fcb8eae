//! Why a command failed, and with which exit code; what else a person is told beside the answer.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, IsTerminal, Write};

use leveret_daemon::printable::Printable;

use super::args::Call;

/// The command line makes no sense.
pub(super) const USAGE: u8 = 64;
/// An argument makes no sense.
pub(super) const BAD_DATA: u8 = 65;
/// A file cannot be read.
pub(super) const NO_INPUT: u8 = 66;
/// There is no such user.
pub(super) const NO_USER: u8 = 67;
/// There is no broker, or it could not do it.
pub(super) const UNAVAILABLE: u8 = 69;
/// Something that should not have happened; also that a user exists already.
pub(super) const SOFTWARE: u8 = 70;
/// The broker took too long.
pub(super) const TIMED_OUT: u8 = 75;
/// The socket is not for this user.
pub(super) const NOT_PERMITTED: u8 = 77;

/// Why a command failed, in words for standard error.
#[derive(Debug)]
pub struct Failure {
    pub(super) code: u8,
    pub(super) text: String,
}

impl Failure {
    #[cold]
    pub(super) fn new(code: u8, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }

    /// `Error:` and what is wrong, as rabbitmqctl puts it.
    #[cold]
    pub(super) fn error(code: u8, what: impl fmt::Display) -> Self {
        Self::new(code, format!("Error:\n{what}"))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        // The reader of a pipe has seen enough, such as `head`: that is no failure.
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::new(0, "");
        }
        Self::new(SOFTWARE, format!("Error: standard output: {error}"))
    }
}

/// An argument that makes no sense, with the usage.
pub(super) fn misused(call: &Call, why: &str) -> Failure {
    misused_as(USAGE, call, why)
}

/// The same with another exit code.
#[cold]
pub(super) fn misused_as(code: u8, call: &Call, why: &str) -> Failure {
    let text = format!(
        "Error (argument validation): {why}\nArguments given:\n\t{}\n\n{}\n\nleveretctl {}",
        call.given,
        heading("Usage"),
        call.usage,
    );
    Failure::new(code, text)
}

/// Says what is being done, to those who want to know.
pub(super) fn tell(call: &Call, text: &str) -> Result<(), Failure> {
    if call.talks() {
        writeln!(io::stdout(), "{text}")?;
    }
    Ok(())
}

/// Tells on standard error what does not keep the command from its work.
pub(super) fn warn(text: &str) {
    // Nobody is left to be told when standard error is closed.
    let _ = writeln!(io::stderr(), "{text}");
}

/// A user who is not there, in rabbitmqctl's words and in plain ones.
pub(super) fn no_such_user(user: &str) -> Failure {
    Failure::error(UNAVAILABLE, format_args!("{{:no_such_user, {user:?}}}\nThere is no user {user:?}"))
}

/// An argument that is no JSON, in rabbitmqctl's words and in plain ones.
pub(super) fn no_json(what: &str, error: &serde_json::Error) -> Failure {
    let text = format_args!("JSON decoding error. Reason: badarg\nThe {what} is not JSON: {error}");
    Failure::error(UNAVAILABLE, text)
}

/// A line of an answer as it is shown: in a report nothing gets out of it that a peer chose.
pub(super) fn shown<'t>(call: &Call, line: &'t str) -> Cow<'t, str> {
    if call.in_report { Printable(line).to_string().into() } else { line.into() }
}

/// A heading: bold for a person.
pub(super) fn heading(title: &str) -> String {
    if io::stdout().is_terminal() { format!("\x1b[1m{title}\x1b[0m") } else { title.to_string() }
}
