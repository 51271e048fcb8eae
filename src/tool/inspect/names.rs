//! What queues are called: the log knows them by number.

use std::fmt::{self, Write as _};
use std::io;

use crate::store::Disk;
use crate::store::look::Look;

use super::json::Object;

/// Names of queues, read from the definitions.
#[derive(Debug, Default)]
pub(super) struct Names {}

impl Names {
    /// The names in a store, as far as its definitions can be read.
    pub(super) fn of<D: Disk>(_look: &Look, _disk: &mut D) -> Self {
        Self {}
    }

    /// What to call a queue in a table.
    pub(super) fn shown(&self, _queue: u64) -> impl fmt::Display {
        "-"
    }

    /// The fields that name a queue.
    pub(super) fn write(&self, object: &mut Object<'_>, queue: u64) -> io::Result<()> {
        object.number("incarnation", queue)
    }
}

/// Bytes as text with what is no text escaped, in quotes.
pub(super) struct Quoted<'a>(pub(super) &'a [u8]);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        match std::str::from_utf8(self.0) {
            Ok(text) => text.chars().try_for_each(|letter| match letter {
                '\'' => f.write_char(letter),
                _ => write!(f, "{}", letter.escape_debug()),
            })?,
            Err(_) => write!(f, "{}", self.0.escape_ascii())?,
        }
        f.write_char('"')
    }
}
