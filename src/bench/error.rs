//! Why a measurement came to nothing, as one sentence that says what to do.
//!
//! Always true: it is either about the broker (not there, not answering, refusing), or about a message that
//! is not what was sent. Our own mistakes are not here.

use std::error::Error;
use std::fmt;
use std::io;

/// Why there is no measurement.
#[derive(Debug)]
pub(super) enum BenchError {
    /// Nobody listens there.
    NoBroker {
        /// The address that was tried.
        url: String,
        /// What the system says.
        why: io::Error,
    },
    /// A broker of our own did not start.
    NotStarted(String),
    /// The system refused something.
    Io {
        /// What was being done.
        doing: &'static str,
        /// What the system says.
        why: io::Error,
    },
    /// The broker ended a channel or a connection.
    Closed {
        /// Reply code.
        code: u16,
        /// Reply text.
        text: String,
    },
    /// The broker is gone.
    HungUp,
    /// The broker does not answer, deliver or read.
    Silent(String),
    /// The broker said what makes no sense.
    Strange(String),
    /// A message was lost, repeated, changed, refused or out of place.
    Wrong(String),
    /// Another thread failed, and says why.
    GivenUp,
}

impl BenchError {
    /// For `map_err`: what was being done when the system refused.
    pub(super) fn io(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |why| Self::Io { doing, why }
    }
}

impl fmt::Display for BenchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoBroker { url, why } => write!(
                f,
                "no broker at {url} ({why}): start one there, or leave --url and --address out to measure \
                 a Leveret that the bench starts itself"
            ),
            Self::NotStarted(why) => write!(f, "the broker did not start: {why}"),
            Self::Io { doing, why } => write!(f, "{doing} failed: {why}"),
            Self::Closed { code, text } => write!(f, "the broker refused: {code} {text}"),
            Self::HungUp => f.write_str("the broker closed the connection without a word: see its log"),
            Self::Silent(what) => f.write_str(what),
            Self::Strange(what) => write!(f, "the broker said what makes no sense here: {what}"),
            Self::Wrong(what) => write!(f, "not what was sent: {what}"),
            Self::GivenUp => f.write_str("given up because of another connection"),
        }
    }
}

impl Error for BenchError {}
