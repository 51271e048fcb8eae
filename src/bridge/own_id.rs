//! What a message is known by beyond this broker: the same however often it is sent, and no other's.
//!
//! ```text
//! 0123…cdef-5-1a2        of a durable queue: the store, the queue's incarnation, the offset in its log
//! 0123…cdef-t9-5-1a2     transient: the life of the store, the queue's number in it, the place in the queue
//! ```
//!
//! All numbers are hexadecimal. Always true: what is written reads back as it was, and nothing else does.

use core::fmt::Write as _;

/// The longest, in bytes.
pub(super) const ID_BYTES_MAX: usize = 32 + 2 + 8 + 2 * 17;

/// Whose messages they are: the store, and its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Origin {
    /// Tells stores apart.
    pub store: [u8; 16],
    /// Which of its lives this is.
    pub life: u32,
}

/// What a message of this broker is known by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OwnId {
    /// The queue, as a number that no other ever has, in this life or in all of them.
    pub queue: u64,
    /// The place in it.
    pub offset: u64,
    /// It counts in this life only.
    pub is_transient: bool,
}

impl OwnId {
    /// As a header has it.
    pub(super) fn text(self, origin: Origin) -> heapless::String<ID_BYTES_MAX> {
        let mut text = heapless::String::new();
        let Self { queue, offset, is_transient } = self;
        let store = u128::from_be_bytes(origin.store);
        let written = match is_transient {
            false => write!(text, "{store:032x}-{queue:x}-{offset:x}"),
            true => write!(text, "{store:032x}-t{:x}-{queue:x}-{offset:x}", origin.life),
        };
        debug_assert!(written.is_ok(), "the longest fits");
        text
    }

    /// Reads a header, if it is one of ours.
    pub(super) fn parse(text: &[u8], origin: Origin) -> Option<Self> {
        let text = core::str::from_utf8(text).ok()?;
        let mut last = text.rsplit('-').map(|part| u64::from_str_radix(part, 16).ok());
        let (offset, queue) = (last.next()??, last.next()??);
        let id = Self { queue, offset, is_transient: text.contains("-t") };
        (id.text(origin) == text).then_some(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back_and_what_is_anothers_does_not() {
        let origin = Origin { store: *b"\0a store's own i", life: u32::MAX };
        for is_transient in [false, true] {
            for number in [0, 1, 255, u64::MAX] {
                let id = OwnId { queue: number, offset: u64::MAX - number, is_transient };
                let text = id.text(origin);
                assert_eq!(OwnId::parse(text.as_bytes(), origin), Some(id), "{text}");
                let other = Origin { store: [7; 16], ..origin };
                assert_eq!(OwnId::parse(text.as_bytes(), other), None);
                let later = Origin { life: 1, ..origin };
                assert_eq!(OwnId::parse(text.as_bytes(), later).is_none(), is_transient);
                let longer = format!("{text}-0");
                assert_eq!(OwnId::parse(longer.as_bytes(), origin), None);
            }
        }
        for nonsense in [&b""[..], b"-", b"\xff", b"00000000000000000000000000000000"] {
            assert_eq!(OwnId::parse(nonsense, Origin::default()), None);
        }
    }
}
