//! The client of the control socket, and errors with their exit codes.
//!
//! # Invariants
//! - The length of a line, and of a small reply, is bounded.
//! - If the broker does not reply within the caller's time limit, the request fails.
//! - Rows are passed to the caller one by one, so their number is not limited.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, BufRead, BufReader, IsTerminal, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use leveret_daemon::logging::Printable;
use serde_json::{Value, json};

use super::commands::{Call, NODE};
use super::format::Formatter;
use super::operations::overview;

/// Maximum length of a line or a small reply in bytes.
const LINE_BYTES_MAX: u64 = 1 << 20;

/// A connection to the broker.
#[derive(Debug)]
pub(super) struct Client {
    stream: BufReader<UnixStream>,
}

/// A small reply.
#[derive(Debug)]
pub(super) struct Reply {
    /// The HTTP status.
    pub(super) status: u16,
    /// The body; `Null` if there is none.
    pub(super) body: Value,
}

impl Reply {
    /// Returns the name of the error.
    pub(super) fn error(&self) -> &str {
        self.body.get("error").and_then(Value::as_str).unwrap_or_default()
    }

    /// Returns the reason of the error.
    pub(super) fn reason(&self) -> &str {
        self.body.get("reason").and_then(Value::as_str).unwrap_or("the broker gave no reason")
    }

    /// Returns the value of a name in a template: `reason`, or `messages`, the number of affected messages.
    pub(super) fn template_value(&self, name: &str) -> Option<String> {
        match name {
            "reason" => Some(self.reason().to_string()),
            "messages" => Some(self.body.get(name)?.to_string()),
            _ => None,
        }
    }
}

impl Client {
    /// Connects to the socket, with a time limit for replies.
    ///
    /// # Errors
    /// The error of the system.
    pub(super) fn connect(socket: &Path, timeout: Option<Duration>) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(timeout)?;
        stream.set_write_timeout(timeout)?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Sends a request and returns a small reply.
    ///
    /// # Errors
    /// The broker cannot be reached.
    pub(super) fn ask(
        &mut self,
        verb: &str,
        path: &str,
        headers: &str,
        body: &str,
    ) -> Result<Reply, Failure> {
        self.send(verb, path, headers, body)?;
        let mut text = Vec::new();
        let status = self.receive(&mut |line| {
            text.extend_from_slice(line);
            Ok(())
        })?;
        Ok(Reply { status, body: if text.is_empty() { Value::Null } else { parse(&text)? } })
    }

    /// Requests rows and calls `row` with each. Returns the reply if the broker refuses the request, else
    /// `None`.
    ///
    /// # Errors
    /// The broker cannot be reached, or `row` fails.
    pub(super) fn rows(
        &mut self,
        path: &str,
        row: &mut dyn FnMut(Value) -> Result<(), Failure>,
    ) -> Result<Option<Reply>, Failure> {
        self.send("GET", path, "", "")?;
        let mut refusal = Vec::new();
        let status = self.receive(&mut |line| {
            let line = line.trim_ascii_end();
            let line = line.strip_suffix(b",").unwrap_or(line);
            match line {
                b"" | b"[" | b"]" => Ok(()),
                line if line.starts_with(b"{\"error\"") => {
                    refusal = line.to_vec();
                    Ok(())
                }
                line => row(parse(line)?),
            }
        })?;
        if status == 200 { Ok(None) } else { Ok(Some(Reply { status, body: parse(&refusal)? })) }
    }

    /// Sends a request and copies a long reply to `out`.
    ///
    /// # Errors
    /// The broker cannot be reached or refuses, or the output fails.
    pub(super) fn copy(&mut self, path: &str, out: &mut dyn Write) -> Result<(), Failure> {
        self.send("GET", path, "", "")?;
        let status = self.receive(&mut |line| {
            out.write_all(line)?;
            if line.is_empty() { Ok(()) } else { out.write_all(b"\n").map_err(Failure::from) }
        })?;
        if status == 200 { Ok(()) } else { Err(Failure::new(UNAVAILABLE, format!("Error: status {status}"))) }
    }

    /// Waits until the broker closes the connection.
    pub(super) fn wait_for_end(&mut self) {
        let mut rest = [0; 256];
        while matches!(self.stream.read(&mut rest), Ok(count) if count > 0) {}
    }

    fn send(&mut self, verb: &str, path: &str, headers: &str, body: &str) -> Result<(), Failure> {
        let head = format!(
            "{verb} {path} HTTP/1.1\r\nhost: leveret\r\n{headers}content-length: {}\r\n\r\n",
            body.len()
        );
        let stream = self.stream.get_mut();
        // Writing the request may fail, because the broker closes a connection that it refuses without a reply.
        let sent = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes()));
        sent.map_err(|error| connection_failure(&error))
    }

    /// Reads a reply, calls `line` with each line, and returns the status.
    fn receive(&mut self, line: &mut dyn FnMut(&[u8]) -> Result<(), Failure>) -> Result<u16, Failure> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if self.read_line(&mut head)? == 0 {
                return Err(connection_failure(&io::ErrorKind::UnexpectedEof.into()));
            }
        }
        let mut headers = [httparse::EMPTY_HEADER; 16];
        let mut response = httparse::Response::new(&mut headers);
        let is_whole = response.parse(&head).is_ok_and(|parsed| parsed.is_complete());
        let status = response.code.filter(|_| is_whole).ok_or_else(invalid_reply)?;
        let header = |name: &str| {
            let found = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
            found.and_then(|header| core::str::from_utf8(header.value).ok())
        };
        if header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
            self.receive_chunks(line)?;
        } else if let Some(length) = header("content-length") {
            let length: u64 = length.parse().map_err(|_| invalid_reply())?;
            let mut body = vec![0; length.min(LINE_BYTES_MAX) as usize];
            self.stream.read_exact(&mut body).map_err(|error| connection_failure(&error))?;
            line(&body)?;
        }
        Ok(status)
    }

    fn receive_chunks(&mut self, line: &mut dyn FnMut(&[u8]) -> Result<(), Failure>) -> Result<(), Failure> {
        let mut pending = Vec::new();
        loop {
            let mut head = Vec::new();
            if self.read_line(&mut head)? == 0 {
                return Err(connection_failure(&io::ErrorKind::UnexpectedEof.into()));
            }
            let digits = core::str::from_utf8(head.trim_ascii()).map_err(|_| invalid_reply())?;
            let length =
                usize::from_str_radix(digits, 16).ok().filter(|length| *length as u64 <= LINE_BYTES_MAX);
            let length = length.ok_or_else(invalid_reply)?;
            let start = pending.len();
            pending.resize(start + length + 2, 0);
            self.stream.read_exact(&mut pending[start..]).map_err(|error| connection_failure(&error))?;
            pending.truncate(start + length);
            if length == 0 {
                return line(&pending);
            }
            while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
                line(&pending[..end])?;
                pending.drain(..=end);
            }
            if pending.len() as u64 > LINE_BYTES_MAX {
                return Err(invalid_reply());
            }
        }
    }

    fn read_line(&mut self, into: &mut Vec<u8>) -> Result<usize, Failure> {
        let mut limited = (&mut self.stream).take(LINE_BYTES_MAX);
        limited.read_until(b'\n', into).map_err(|error| connection_failure(&error))
    }
}

fn parse(text: &[u8]) -> Result<Value, Failure> {
    let text = core::str::from_utf8(text).map_err(|_| invalid_reply())?;
    text.parse().map_err(|_| invalid_reply())
}

#[cold]
fn connection_failure(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            Failure::new(TIMED_OUT, "Error: the broker did not answer in time (-t sets the time limit)")
        }
        io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
            Failure::new(
                UNAVAILABLE,
                "Error: the broker closed the connection: it is stopping, this command was idle for 8 s while other \
                 clients waited for a connection, or you are neither root nor the user that the broker runs as",
            )
        }
        _ => Failure::new(UNAVAILABLE, format!("Error: the connection to the broker failed: {error}")),
    }
}

#[cold]
fn invalid_reply() -> Failure {
    Failure::new(SOFTWARE, "Error: the answer is not from a Leveret of this version")
}

impl Failure {
    /// Returns the failure for a request that the broker refused.
    #[cold]
    pub(super) fn refused(reply: &Reply) -> Self {
        let code = if reply.status == 404 { BAD_DATA } else { UNAVAILABLE };
        Self::error(code, reply.reason())
    }
}

/// The command line is invalid.
pub(super) const USAGE: u8 = 64;
/// An argument is invalid.
pub(super) const BAD_DATA: u8 = 65;
/// A file cannot be read.
pub(super) const NO_INPUT: u8 = 66;
/// The user does not exist.
pub(super) const NO_USER: u8 = 67;
/// There is no broker, or it could not carry out the request.
pub(super) const UNAVAILABLE: u8 = 69;
/// An internal error; also used if a user exists already.
pub(super) const SOFTWARE: u8 = 70;
/// The broker did not reply in time.
pub(super) const TIMED_OUT: u8 = 75;
/// The user may not use the socket.
pub(super) const NOT_PERMITTED: u8 = 77;

/// Why a command failed: a text for standard error, and an exit code.
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

    /// Returns a failure whose text begins with `Error:`, as in rabbitmqctl.
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
        // The reader of the pipe (for example `head`) has closed it. This is not a failure.
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::new(0, "");
        }
        Self::new(SOFTWARE, format!("Error: standard output: {error}"))
    }
}

/// Returns the failure for an invalid argument, with the usage.
pub(super) fn misused(call: &Call, why: &str) -> Failure {
    misused_as(USAGE, call, why)
}

/// Like [`misused`], with another exit code.
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

/// Prints an informational message unless it is suppressed.
pub(super) fn print_info(call: &Call, text: &str) -> Result<(), Failure> {
    if call.talks() {
        writeln!(io::stdout(), "{text}")?;
    }
    Ok(())
}

/// Prints a line that is the result of a command; `{"message": …}` with `--formatter json`.
pub(super) fn print_message(call: &Call, text: &str) -> Result<(), Failure> {
    match call.formatter() {
        Formatter::Json => print_json(&json!({ "message": text })),
        _ => Ok(writeln!(io::stdout(), "{}", shown(call, text))?),
    }
}

/// Prints the value that a command returns, with `--formatter json` as a member of an object.
pub(super) fn print_value(call: &Call, text: &str) -> Result<(), Failure> {
    match call.formatter() {
        Formatter::Json => print_json(&json!({"node": node(call), "result": "ok", "value": text})),
        _ => Ok(writeln!(io::stdout(), "{}", shown(call, text))?),
    }
}

/// Ends a command without a result. Only `--formatter json` prints something: scripts parse it.
pub(super) fn print_done(call: &Call) -> Result<(), Failure> {
    match call.formatter() {
        Formatter::Json => print_json(&json!({"node": node(call), "result": "ok"})),
        _ => Ok(()),
    }
}

/// Prints a JSON value in a line.
pub(super) fn print_json(value: &Value) -> Result<(), Failure> {
    Ok(writeln!(io::stdout(), "{value}")?)
}

/// Returns the broker's node name, or the default one if the broker no longer answers.
pub(super) fn node(call: &Call) -> String {
    let overview = overview(call).unwrap_or_default();
    overview.get("node").and_then(Value::as_str).unwrap_or(NODE).to_string()
}

/// Prints a warning to standard error.
pub(super) fn warn(text: &str) {
    // If standard error is closed, the failure cannot be reported anywhere.
    let _ = writeln!(io::stderr(), "{text}");
}

/// Returns the failure for an unknown user, with rabbitmqctl's text and a plain one.
pub(super) fn no_such_user(user: &str) -> Failure {
    Failure::error(UNAVAILABLE, format_args!("{{:no_such_user, {user:?}}}\nThere is no user {user:?}"))
}

/// Returns the failure for invalid JSON, with rabbitmqctl's text and a plain one.
pub(super) fn no_json(what: &str, error: &serde_json::Error) -> Failure {
    let text = format_args!("JSON decoding error. Reason: badarg\nThe {what} is not JSON: {error}");
    Failure::error(UNAVAILABLE, text)
}

/// Returns a line of a reply for printing. In a report, unprintable characters are escaped.
pub(super) fn shown<'t>(call: &Call, line: &'t str) -> Cow<'t, str> {
    if call.in_report { Printable(line).to_string().into() } else { line.into() }
}

/// Formats a heading: bold on a terminal.
pub(super) fn heading(title: &str) -> String {
    if io::stdout().is_terminal() { format!("\x1b[1m{title}\x1b[0m") } else { title.to_string() }
}
