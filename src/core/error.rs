//! Who is at fault, and what the peer is told.
//!
//! A [`Fault`] is something a peer did or asked for that cannot be; it ends a channel or a connection and
//! carries the reply code and text that RabbitMQ would send. Our own mistakes are assertions, never faults;
//! a disk's failure is not a fault either, for no peer can mend it.
//!
//! The one table from code to name and scope is [`ReplyCode::row`].

use core::fmt::{self, Write as _};
use std::io;

/// The longest reply text in bytes: an AMQP short string.
pub const REPLY_TEXT_BYTES_MAX: usize = 255;

/// A reply text as it goes on the wire, `NOT_FOUND - no queue 'q' in vhost '/'`.
type ReplyText = heapless::String<REPLY_TEXT_BYTES_MAX>;

/// Whether the process or the system has no file descriptor left: that passes, and says nothing of what was
/// to be opened.
pub fn is_out_of_descriptors(error: &io::Error) -> bool {
    use rustix::io::Errno;
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE))
}

/// Reply codes of AMQP 0-9-1 (specification 1.2 "constants") that Leveret sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum ReplyCode {
    /// Normal close.
    ReplySuccess = 200,
    /// A mandatory message reached no queue.
    NoRoute = 312,
    /// The operator closes the connection, or the broker stops; clients reconnect.
    ConnectionForced = 320,
    /// Credentials or permissions do not suffice.
    AccessRefused = 403,
    /// No such exchange, queue or binding.
    NotFound = 404,
    /// A queue belongs to another connection.
    ResourceLocked = 405,
    /// The request contradicts what is there.
    PreconditionFailed = 406,
    /// The bytes are not a frame.
    FrameError = 501,
    /// A frame whose content cannot be read.
    SyntaxError = 502,
    /// A method that makes no sense here.
    CommandInvalid = 503,
    /// A channel that is not open, or already is.
    ChannelError = 504,
    /// A frame out of place.
    UnexpectedFrame = 505,
    /// A cap of this broker was reached.
    ResourceError = 506,
    /// Not permitted in this virtual host or by the negotiated limits.
    NotAllowed = 530,
    /// Part of AMQP that Leveret leaves out.
    NotImplemented = 540,
}

/// What a fault ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// The channel; the connection goes on.
    Channel,
    /// The whole connection.
    Connection,
}

impl ReplyCode {
    /// The one table: the name that begins every reply text, and what the code ends.
    ///
    /// RabbitMQ's division into soft and hard errors, but for 506: a channel that asked for more than this
    /// board has is no reason to take the connection's other channels down.
    const fn row(self) -> (&'static str, Scope) {
        match self {
            Self::ReplySuccess => ("OK", Scope::Connection),
            Self::NoRoute => ("NO_ROUTE", Scope::Channel),
            Self::ConnectionForced => ("CONNECTION_FORCED", Scope::Connection),
            Self::AccessRefused => ("ACCESS_REFUSED", Scope::Channel),
            Self::NotFound => ("NOT_FOUND", Scope::Channel),
            Self::ResourceLocked => ("RESOURCE_LOCKED", Scope::Channel),
            Self::PreconditionFailed => ("PRECONDITION_FAILED", Scope::Channel),
            Self::FrameError => ("FRAME_ERROR", Scope::Connection),
            Self::SyntaxError => ("SYNTAX_ERROR", Scope::Connection),
            Self::CommandInvalid => ("COMMAND_INVALID", Scope::Connection),
            Self::ChannelError => ("CHANNEL_ERROR", Scope::Connection),
            Self::UnexpectedFrame => ("UNEXPECTED_FRAME", Scope::Connection),
            Self::ResourceError => ("RESOURCE_ERROR", Scope::Channel),
            Self::NotAllowed => ("NOT_ALLOWED", Scope::Connection),
            Self::NotImplemented => ("NOT_IMPLEMENTED", Scope::Connection),
        }
    }

    /// The number on the wire.
    pub const fn code(self) -> u16 {
        self as u16
    }

    /// The upper-case name; clients split reply texts on it.
    pub const fn name(self) -> &'static str {
        self.row().0
    }

    /// What this code ends unless the fault says otherwise.
    pub const fn scope(self) -> Scope {
        self.row().1
    }
}

/// What an operator could do about a fault: in the log, beside what the peer is told, for that is RabbitMQ's.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Advice {
    /// Nothing that the text does not say.
    #[default]
    None,
    /// The message is larger than messages may be here.
    RaiseMessageSize,
    /// The default exchange has no name that a pattern could be thought of for.
    MatchDefaultExchange,
}

impl Advice {
    const fn text(self) -> &'static str {
        match self {
            Self::None => "",
            Self::RaiseMessageSize => "; the key is message_size_max",
            Self::MatchDefaultExchange => "; the user's write pattern has to match amq.default",
        }
    }
}

/// A peer's mistake, ready to be told to it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    /// The code on the wire.
    pub code: ReplyCode,
    /// What the fault ends: the channel or the connection.
    pub scope: Scope,
    /// What the log says besides.
    pub advice: Advice,
    /// The whole text, name included, at most [`REPLY_TEXT_BYTES_MAX`] bytes. Not inline: a fault travels in
    /// the answer to every command, and hardly any answer is one.
    pub text: Box<str>,
}

impl Fault {
    /// A fault with the scope that belongs to its code. The text is cut as RabbitMQ cuts it: 252 bytes and
    /// three dots.
    #[cold]
    pub fn new(code: ReplyCode, explanation: fmt::Arguments<'_>) -> Self {
        Self { code, scope: code.scope(), advice: Advice::None, text: reply_text(code.name(), explanation) }
    }

    /// The same, but it ends the connection whatever the code (403 and 404 can, during the handshake).
    #[cold]
    pub fn connection(code: ReplyCode, explanation: fmt::Arguments<'_>) -> Self {
        Self { scope: Scope::Connection, ..Self::new(code, explanation) }
    }

    /// The same, with something for the operator.
    #[cold]
    pub fn advising(self, advice: Advice) -> Self {
        Self { advice, ..self }
    }

    /// As the log has it.
    pub const fn logged(&self) -> Logged<'_> {
        Logged(self)
    }
}

/// A fault as the log has it: what the peer is told, and what an operator could do.
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
    let mut cut = Cut { text: ReplyText::new(), overflowed: false };
    // Cut never fails, and what it is given to show are names and numbers.
    let _ = write!(cut, "{name} - {explanation}");
    cut.finish().as_str().into()
}

/// Takes what fits and remembers that there was more.
struct Cut {
    text: ReplyText,
    overflowed: bool,
}

impl Cut {
    fn finish(mut self) -> ReplyText {
        if self.overflowed {
            truncate_at_char(&mut self.text, REPLY_TEXT_BYTES_MAX - 3);
            let _ = self.text.push_str("...");
        }
        self.text
    }
}

impl fmt::Write for Cut {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        if self.overflowed {
            return Ok(());
        }
        for character in part.chars() {
            if self.text.push(character).is_err() {
                self.overflowed = true;
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
    fn a_text_of_exactly_255_bytes_is_whole() {
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
