//! Faults: protocol errors and refused requests, with the reply code and text that RabbitMQ would send.
//!
//! A [`Fault`] ends a channel or a connection. Bugs of the broker are assertions, never faults. A disk failure is
//! not a fault either, because no client can correct it.
//!
//! `ReplyCode::row` has the table of codes, names and scopes.

use core::fmt::{self, Write as _};
use std::io;

/// Maximum length of a reply text in bytes (AMQP short string).
pub const REPLY_TEXT_BYTES_MAX: usize = 255;

/// A reply text as it is sent: `NOT_FOUND - no queue 'q' in vhost '/'`.
type ReplyText = heapless::String<REPLY_TEXT_BYTES_MAX>;

/// Why the broker refuses or ends something. Each cause has a reply code of AMQP 0-9-1 (specification 1.2 "constants") and
/// a reason code of MQTT 5 (§2.4).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReplyCode {
    /// Normal close.
    ReplySuccess,
    /// A mandatory message reached no queue.
    NoRoute,
    /// The operator closes the connection, or the client does not read.
    ConnectionForced,
    /// The broker stops; clients reconnect.
    ShuttingDown,
    /// Another connection of the same MQTT client has its session now.
    SessionTakenOver,
    /// Wrong credentials, or missing permissions.
    AccessRefused,
    /// No such exchange, queue or binding.
    NotFound,
    /// A queue belongs to another connection.
    ResourceLocked,
    /// The request contradicts the existing object.
    PreconditionFailed,
    /// The bytes are not a frame.
    FrameError,
    /// The content of a frame cannot be parsed.
    SyntaxError,
    /// A method that is not allowed in this state.
    CommandInvalid,
    /// A channel that is not open, or already is.
    ChannelError,
    /// An unexpected frame.
    UnexpectedFrame,
    /// A limit of this broker was reached.
    ResourceError,
    /// Not permitted in this virtual host or by the negotiated limits.
    NotAllowed,
    /// A limit of open connections was reached: of the broker, the virtual host or the user.
    ConnectionLimit,
    /// A part of AMQP that Leveret does not implement.
    NotImplemented,
}

/// The scope of a fault: what it closes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// The channel; the connection stays open.
    Channel,
    /// The whole connection.
    Connection,
}

impl ReplyCode {
    /// Returns AMQP's number, the name that begins every reply text, what the code closes, and MQTT's reason code.
    ///
    /// The scopes are RabbitMQ's soft and hard errors, except 506: a channel that exceeds a limit of this board is no
    /// reason to close the connection's other channels.
    const fn row(self) -> (u16, &'static str, Scope, u8) {
        match self {
            Self::ReplySuccess => (200, "OK", Scope::Connection, 0x00),
            Self::NoRoute => (312, "NO_ROUTE", Scope::Channel, 0x10),
            Self::ConnectionForced => (320, "CONNECTION_FORCED", Scope::Connection, 0x98),
            Self::ShuttingDown => (320, "CONNECTION_FORCED", Scope::Connection, 0x8B),
            Self::SessionTakenOver => (320, "CONNECTION_FORCED", Scope::Connection, 0x8E),
            Self::AccessRefused => (403, "ACCESS_REFUSED", Scope::Channel, 0x87),
            Self::NotFound => (404, "NOT_FOUND", Scope::Channel, 0x80),
            Self::ResourceLocked => (405, "RESOURCE_LOCKED", Scope::Channel, 0x83),
            Self::PreconditionFailed => (406, "PRECONDITION_FAILED", Scope::Channel, 0x83),
            Self::FrameError => (501, "FRAME_ERROR", Scope::Connection, 0x81),
            Self::SyntaxError => (502, "SYNTAX_ERROR", Scope::Connection, 0x81),
            Self::CommandInvalid => (503, "COMMAND_INVALID", Scope::Connection, 0x82),
            Self::ChannelError => (504, "CHANNEL_ERROR", Scope::Connection, 0x82),
            Self::UnexpectedFrame => (505, "UNEXPECTED_FRAME", Scope::Connection, 0x82),
            Self::ResourceError => (506, "RESOURCE_ERROR", Scope::Channel, 0x97),
            Self::NotAllowed => (530, "NOT_ALLOWED", Scope::Connection, 0x87),
            Self::ConnectionLimit => (530, "NOT_ALLOWED", Scope::Connection, 0x97),
            Self::NotImplemented => (540, "NOT_IMPLEMENTED", Scope::Connection, 0x83),
        }
    }

    /// Returns the number that AMQP clients get.
    pub const fn code(self) -> u16 {
        self.row().0
    }

    /// Returns the upper-case name; clients split reply texts at it.
    pub const fn name(self) -> &'static str {
        self.row().1
    }

    /// Returns what this code closes unless the fault says otherwise.
    pub const fn scope(self) -> Scope {
        self.row().2
    }

    /// Returns the reason code that MQTT clients get.
    pub const fn mqtt_reason(self) -> u8 {
        self.row().3
    }
}

/// Advice to the operator about a fault. It is only logged, because the text for the client is RabbitMQ's.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Advice {
    /// No advice.
    #[default]
    None,
    /// The message exceeds the size limit.
    RaiseMessageSize,
    /// `connections_max` is reached.
    RaiseConnections,
    /// Raise `memory_limit`.
    RaiseMemory,
    /// Which permission pattern matches the default exchange, whose name is empty.
    MatchDefaultExchange,
}

impl Advice {
    const fn text(self) -> &'static str {
        match self {
            Self::None => "",
            Self::RaiseMessageSize => "; the key is message_size_max",
            Self::RaiseConnections => "; close some (list_connections) or raise connections_max",
            Self::RaiseMemory => {
                "; there is no memory for more: close some (list_connections) or raise memory_limit"
            }
            Self::MatchDefaultExchange => "; the user's write pattern has to match amq.default",
        }
    }
}

/// A client's mistake, with the reply for the client.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    /// The reply code.
    pub code: ReplyCode,
    /// Whether the fault closes the channel or the connection.
    pub scope: Scope,
    /// The advice that is logged with the fault.
    pub advice: Advice,
    /// The whole reply text, including the name of the code; at most [`REPLY_TEXT_BYTES_MAX`] bytes. It is
    /// boxed to keep `Outcome` small, because faults are rare.
    pub text: Box<str>,
}

impl Fault {
    /// Returns a fault with the scope of its code. A text that is too long is truncated as in RabbitMQ: to
    /// 252 bytes, followed by three dots.
    #[cold]
    pub fn new(code: ReplyCode, explanation: fmt::Arguments<'_>) -> Self {
        Self { code, scope: code.scope(), advice: Advice::None, text: reply_text(code.name(), explanation) }
    }

    /// Returns a fault that closes the connection, whatever the scope of its code. During the handshake this
    /// is the case for 403 and 404 too.
    #[cold]
    pub fn connection(code: ReplyCode, explanation: fmt::Arguments<'_>) -> Self {
        Self { scope: Scope::Connection, ..Self::new(code, explanation) }
    }

    /// Returns the fault with advice to the operator.
    #[cold]
    pub fn advising(self, advice: Advice) -> Self {
        Self { advice, ..self }
    }

    /// Returns the formatter of the fault for the log.
    pub const fn logged(&self) -> Logged<'_> {
        Logged(self)
    }
}

/// Formats a fault for the log: the text for the client, and the advice to the operator.
#[derive(Clone, Copy, Debug)]
pub struct Logged<'f>(&'f Fault);

impl fmt::Display for Logged<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.0, self.0.advice.text())
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.code.code(), self.text)
    }
}

fn reply_text(name: &str, explanation: fmt::Arguments<'_>) -> Box<str> {
    let mut writer = TruncatingWriter { text: ReplyText::new(), is_truncated: false };
    // Neither writing to `TruncatingWriter` nor formatting names and numbers fails.
    let _ = write!(writer, "{name} - {explanation}");
    writer.finish().as_str().into()
}

/// A writer that keeps as much text as fits, and notes if the text was longer.
struct TruncatingWriter {
    text: ReplyText,
    is_truncated: bool,
}

impl TruncatingWriter {
    fn finish(mut self) -> ReplyText {
        if self.is_truncated {
            truncate_at_char(&mut self.text, REPLY_TEXT_BYTES_MAX - 3);
            let _ = self.text.push_str("...");
        }
        self.text
    }
}

impl fmt::Write for TruncatingWriter {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        if self.is_truncated {
            return Ok(());
        }
        for character in part.chars() {
            if self.text.push(character).is_err() {
                self.is_truncated = true;
                break;
            }
        }
        Ok(())
    }
}

fn truncate_at_char(text: &mut ReplyText, bytes: usize) {
    let mut end = bytes.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
}

/// Returns whether an error means that the process or the system has no free file descriptor. Such an error
/// is temporary and has no relation to the file or socket that was to be opened.
pub fn is_out_of_descriptors(error: &io::Error) -> bool {
    use rustix::io::Errno;
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE))
}

/// Returns 506: the limit of this configuration key is reached.
pub fn out_of(key: &str) -> Fault {
    Fault::new(
        ReplyCode::ResourceError,
        format_args!("this broker has reached its limit: raise {key} in its configuration"),
    )
}

/// Returns 506: the memory has no space for this.
pub fn no_memory_for(what: &str) -> Fault {
    Fault::new(
        ReplyCode::ResourceError,
        format_args!(
            "this broker has no memory for {what}: delete what is not needed, or raise memory_limit"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_begins_with_the_name() {
        let fault = Fault::new(ReplyCode::NotFound, format_args!("no queue '{}' in vhost '{}'", "q", "/"));
        assert_eq!(&*fault.text, "NOT_FOUND - no queue 'q' in vhost '/'");
        assert_eq!((fault.code.code(), fault.scope), (404, Scope::Channel));
    }

    #[test]
    fn a_long_text_is_cut_at_252_bytes_and_three_dots() {
        let long = "x".repeat(300);
        let fault = Fault::new(ReplyCode::NotFound, format_args!("{long}"));
        assert_eq!(fault.text.len(), 255);
        assert!(fault.text.ends_with("xxx..."));
    }

    #[test]
    fn a_text_of_exactly_255_bytes_is_not_cut() {
        let exact = "x".repeat(255 - "NOT_FOUND - ".len());
        let fault = Fault::new(ReplyCode::NotFound, format_args!("{exact}"));
        assert!(fault.text.ends_with("xxxxxx") && fault.text.len() == 255);
    }

    #[test]
    fn a_cut_never_splits_a_character() {
        let long = "é".repeat(200);
        let fault = Fault::new(ReplyCode::NotFound, format_args!("{long}"));
        assert!(fault.text.len() <= 255 && fault.text.ends_with("..."));
    }
}
