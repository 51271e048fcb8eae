//! Keys of ready messages, by which an operator names messages that it has browsed.
//!
//! | message | key |
//! |---|---|
//! | the log has it | incarnation of its queue, offset |
//! | only memory has it | serial of its queue, a number that the message gets when it is browsed for the first time |
//!
//! A key also has a random number of the process, because offsets of lost messages are used again after a power
//! cut.
//!
//! # Invariants
//! - A key names one message, also after that message is gone.
//! - The numbers of messages that only memory has are kept for the last [`NUMBERED_MAX`] of them. A message
//!   whose number was dropped gets a new one when it is browsed again, and its earlier key names nothing.

use core::fmt;
use core::str::FromStr;
use std::collections::{BTreeMap, VecDeque};

use leveret_core::mem::{MessageFlags, MessageId, Messages};

use super::record::Queue;

/// Maximum number of messages without a log offset whose numbers are kept.
const NUMBERED_MAX: usize = 1_024;
/// The most memory of the numbers in bytes: an entry of the map and one of the list for each.
pub const MESSAGE_KEYS_BYTES: usize = NUMBERED_MAX * 64;

/// Names a ready message of a queue while this process runs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct MessageKey {
    /// Random number of the process.
    process: u64,
    is_logged: bool,
    /// Incarnation of the queue, or its serial if the log does not have the message.
    queue: u64,
    /// Log offset of the message, or its number if the log does not have it.
    number: u64,
}

impl MessageKey {
    /// Returns the key of another message of the same queue that the log has.
    pub(crate) const fn with_offset(self, offset: u64) -> Self {
        Self { number: offset, ..self }
    }
}

impl fmt::Display for MessageKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.is_logged { 'l' } else { 'm' };
        write!(f, "{:x}-{kind}{:x}-{:x}", self.process, self.queue, self.number)
    }
}

impl FromStr for MessageKey {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.split('-');
        let hex = |part: Option<&str>| {
            let digits = part.filter(|part| part.bytes().all(|octet| octet.is_ascii_hexdigit()));
            digits.and_then(|part| u64::from_str_radix(part, 16).ok()).ok_or(())
        };
        let process = hex(parts.next())?;
        let queue = parts.next().ok_or(())?;
        let (is_logged, queue) = match (queue.strip_prefix('l'), queue.strip_prefix('m')) {
            (Some(queue), _) => (true, queue),
            (None, Some(queue)) => (false, queue),
            (None, None) => return Err(()),
        };
        let key = Self { process, is_logged, queue: hex(Some(queue))?, number: hex(parts.next())? };
        if parts.next().is_some() { Err(()) } else { Ok(key) }
    }
}

/// The numbers of browsed messages that only memory has.
#[derive(Debug, Default)]
pub struct MessageKeys {
    /// Random number of the process; 0 before the first key was made.
    process: u64,
    /// The number given last.
    last: u64,
    /// The numbers of messages by their slots. An entry is valid while the message in the slot has
    /// [`MessageFlags::BROWSED`].
    numbers: BTreeMap<usize, u64>,
    /// The kept numbers, ascending, with the slots of their messages.
    given: VecDeque<(u64, usize)>,
}

impl MessageKeys {
    /// Returns whether [`Self::begin`] must be called before the first key is made.
    pub const fn needs_process_number(&self) -> bool {
        self.process == 0
    }

    /// Sets the random number of the process.
    pub const fn begin(&mut self, random: u64) {
        self.process = random | 1;
    }

    /// Returns the key of a message of this queue or level. `log_offset` is its offset if the log has it.
    pub(crate) fn key_of(
        &mut self,
        messages: &mut Messages,
        record: &Queue,
        message: MessageId,
        log_offset: Option<u64>,
    ) -> MessageKey {
        match log_offset {
            Some(offset) => self.key_in_log(record, offset),
            None => MessageKey {
                process: self.process,
                is_logged: false,
                queue: record.serial,
                number: self.number_of(messages, message),
            },
        }
    }

    /// Returns the key of the message of this queue or level at this log offset.
    pub const fn key_in_log(&self, record: &Queue, offset: u64) -> MessageKey {
        let queue = record.durable_index.incarnation();
        MessageKey { process: self.process, is_logged: true, queue, number: offset }
    }

    fn number_of(&mut self, messages: &mut Messages, message: MessageId) -> u64 {
        let slot = message.index();
        if messages.flags(message).has(MessageFlags::BROWSED)
            && let Some(number) = self.numbers.get(&slot)
        {
            return *number;
        }
        if self.given.len() >= NUMBERED_MAX
            && let Some((number, slot)) = self.given.pop_front()
            && self.numbers.get(&slot) == Some(&number)
        {
            self.numbers.remove(&slot);
        }
        self.last += 1;
        messages.add_flags(message, MessageFlags::BROWSED);
        self.numbers.insert(slot, self.last);
        self.given.push_back((self.last, slot));
        self.last
    }

    /// Returns the log offsets, ascending, of the keys that name messages of this queue or level.
    pub(super) fn offsets(&self, record: &Queue, keys: &[MessageKey]) -> Vec<u64> {
        let incarnation = record.durable_index.incarnation();
        let own = keys.iter().filter(|key| {
            key.process == self.process && key.is_logged && incarnation != 0 && key.queue == incarnation
        });
        let mut offsets: Vec<u64> = own.map(|key| key.number).collect();
        offsets.sort_unstable();
        offsets
    }

    /// Returns the messages that only memory has and that keys of this queue or level name, ascending.
    pub(super) fn messages(
        &self,
        messages: &Messages,
        record: &Queue,
        keys: &[MessageKey],
    ) -> Vec<MessageId> {
        let own = keys
            .iter()
            .filter(|key| key.process == self.process && !key.is_logged && key.queue == record.serial);
        let mut found: Vec<MessageId> = own.filter_map(|key| self.message_of(messages, key.number)).collect();
        found.sort_unstable_by_key(|message| message.index());
        found
    }

    fn message_of(&self, messages: &Messages, number: u64) -> Option<MessageId> {
        let place = self.given.binary_search_by_key(&number, |(given, _)| *given).ok()?;
        let slot = self.given[place].1;
        let message = MessageId::from_index(slot);
        let is_same = self.numbers.get(&slot) == Some(&number);
        (is_same && messages.flags(message).has(MessageFlags::BROWSED)).then_some(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use leveret_core::mem::{MessageLimits, Share};

    #[test]
    fn a_key_is_the_same_after_it_was_written_and_read() {
        let (process, queue, number) = (u64::MAX, 5, 1 << 60);
        for is_logged in [true, false] {
            let key = MessageKey { process, is_logged, queue, number };
            assert_eq!(key.to_string().parse(), Ok(key));
        }
        for text in ["", "1-l2", "1-x2-3", "1-l2-3-4", "1-l+2-3", "-l2-3", "1-l2-11111111111111111"] {
            assert_eq!(text.parse::<MessageKey>(), Err(()), "{text}");
        }
    }

    #[test]
    fn a_number_does_not_name_a_later_message_in_the_same_slot() {
        let limits =
            MessageLimits { messages_max: 100, body_bytes_max: 1 << 20, assembly_bytes_max: 1 << 16 };
        let (mut messages, mut keys) = (Messages::new(limits), MessageKeys::default());
        let first = messages.begin("", b"k", Share::Ordinary).unwrap();
        let number = keys.number_of(&mut messages, first);
        assert_eq!((keys.number_of(&mut messages, first), number), (1, 1));
        assert_eq!(keys.message_of(&messages, number), Some(first));
        messages.release(first);
        let second = messages.begin("", b"k", Share::Ordinary).unwrap();
        assert_eq!((second, keys.message_of(&messages, number)), (first, None));
        let later = keys.number_of(&mut messages, second);
        assert_eq!([number, later].map(|number| keys.message_of(&messages, number)), [None, Some(second)]);
        for _ in 0..NUMBERED_MAX {
            let other = messages.begin("", b"k", Share::Ordinary).unwrap();
            keys.number_of(&mut messages, other);
            messages.release(other);
        }
        assert_eq!((keys.message_of(&messages, later), keys.given.len()), (None, NUMBERED_MAX));
        assert!(keys.number_of(&mut messages, second) > later);
    }
}
