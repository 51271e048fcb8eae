//! Definitions lie twice, in different erase blocks: what exists must not hang on one block of a card.
//!
//! ```text
//! declared           | N: definition |                      one block of the segment that fills
//! as soon as may be  | N: definition, copy |                two blocks of it
//! N is sealed        | N: copy | N + 1: copy |              two segments; the oldest counts no more
//! ```
//!
//! A checkpoint of everything at each segment would cost what all definitions take, for ever. This costs two
//! copies of what is defined, once, and one more when the cleaner has brought both into one segment: nothing
//! beside the messages that it is for. Deletions are copied as well, as long as they kill something that lies
//! elsewhere; that of a queue, as long as messages of it do.
//!
//! Always true: one definition is read at a time, by the helper; nobody waits for a copy, and it rides along
//! with what is written within the settle window; copies get the room that publishers get and leave the
//! reserve alone, but they come before the next segment is cleaned, which may bring both copies into one: so
//! a limit that is nearly full for years has them in two as well; nothing is copied while the cleaner copies,
//! which has the buffer; a copy is made of what is durable, so it lies in another commit than that.

use super::place::{Place, Position};

/// How far the definitions have been gone through.
#[derive(Debug, Default)]
pub(super) struct Doubling {
    /// Something was defined or a segment was opened since they were gone through.
    pub(super) is_due: bool,
    /// They are being gone through.
    pub(super) is_going: bool,
    /// The key that was looked at last.
    pub(super) key: Vec<u8>,
    /// What is being read: its version, and where it lies.
    pub(super) reading: Option<(u64, Place)>,
    /// The copies made so far are durable with this.
    pub(super) copied: Position,
}

impl Doubling {
    /// Nobody knows yet what lies at one place only.
    pub(super) fn due() -> Self {
        Self { is_due: true, ..Self::default() }
    }
}
