//! The messages at one place of a queue, and how a place is kept in an entry.
//!
//! ```text
//! flags of an entry: │ 61 bits: offset in the log │ 3 bits: kind │
//! ```
//!
//! Always true: a place reads back from its entry as it was, whatever its offset.

use leveret_core::mem::{Entry, MessageId};

/// Entry flags: three bits of kind, sixty-one of the log offset, which no queue ever uses up.
const LOGGED: u64 = 1;
const STORED: u64 = 2;
const KIND: u64 = 7;
const KIND_BITS: u32 = 3;

/// The messages at one place of a queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    /// A message that only memory has.
    Plain(MessageId),
    /// A message in memory that the log has too, or will have.
    Logged(MessageId, u64),
    /// A run of messages that only the log has: first offset, count.
    Stored(u64, u32),
}

impl Place {
    /// The place that an entry stands for.
    pub(crate) const fn of(entry: Entry) -> Self {
        let Entry { message, flags } = entry;
        if flags & KIND == 0 {
            return Self::Plain(message);
        }
        let offset = flags >> KIND_BITS;
        match flags & KIND {
            LOGGED => Self::Logged(message, offset),
            STORED => Self::Stored(offset, message.index() as u32 + 1),
            _ => panic!("an entry is of one of these kinds"),
        }
    }

    /// The entry that keeps this place.
    pub(crate) fn entry(self) -> Entry {
        let flags = |offset: u64, kind: u64| offset << KIND_BITS | kind;
        match self {
            Self::Plain(message) => Entry { message, flags: 0 },
            Self::Logged(message, offset) => Entry { message, flags: flags(offset, LOGGED) },
            Self::Stored(start, count) => {
                Entry { message: MessageId::from_index(count as usize - 1), flags: flags(start, STORED) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_read_back_whatever_the_offset() {
        let message = MessageId::from_index(5);
        assert_eq!(Place::of(Place::Plain(message).entry()), Place::Plain(message));
        for shift in 0..61 {
            let width = 1_u64 << shift;
            for offset in [width - 1, width, width + 1] {
                for place in [Place::Logged(message, offset), Place::Stored(offset, u32::MAX - 1)] {
                    assert_eq!(Place::of(place.entry()), place);
                }
            }
        }
    }
}
