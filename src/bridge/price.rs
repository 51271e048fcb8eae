//! What a link costs, by the bytes of its socket, and how much of that went twice.
//!
//! Always true: whatever is counted as repeated or as payload was counted as sent or received as well.

/// Bytes of one link in one day.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Price {
    /// What went, TLS included.
    pub sent: u64,
    /// What came, TLS included.
    pub received: u64,
    /// Messages that may have gone or come before.
    pub repeated: u64,
    /// Bodies of messages that went or came for the first time.
    pub payload: u64,
    /// Messages, not bytes, that went or came for the first time.
    pub messages: u64,
}

impl Price {
    /// So many numbers say all of it.
    pub const NUMBERS: usize = 5;

    /// All of it.
    pub const fn numbers(&self) -> [u64; Self::NUMBERS] {
        let Self { sent, received, repeated, payload, messages } = *self;
        [sent, received, repeated, payload, messages]
    }

    /// What [`Self::numbers`] said.
    pub const fn from_numbers(numbers: [u64; Self::NUMBERS]) -> Self {
        let [sent, received, repeated, payload, messages] = numbers;
        Self { sent, received, repeated, payload, messages }
    }

    /// That as well.
    pub fn add(&mut self, other: Self) {
        let (mut all, other) = (self.numbers(), other.numbers());
        all.iter_mut().zip(other).for_each(|(number, more)| *number = number.saturating_add(more));
        *self = Self::from_numbers(all);
    }

    /// Its bytes as an operator is told.
    pub const fn kinds(&self) -> [(&'static str, u64); 3] {
        [("sent", self.sent), ("received", self.received), ("repeated", self.repeated)]
    }
}
