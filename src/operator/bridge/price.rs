//! What a link costs, by the bytes of its socket, and what they were for.
//!
//! Always true: whatever is counted as something was counted as sent or received as well, so what is left of
//! those two is the protocol.

/// Bytes of one link in one day.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Price {
    /// What went, TLS included.
    pub sent: u64,
    /// What came, TLS included.
    pub received: u64,
    /// Bodies of messages that went or came for the first time.
    pub payload: u64,
    /// Messages, whole, that may have gone or come before.
    pub repeats: u64,
    /// Until the upstream said something over TLS.
    pub handshakes: u64,
    /// Heartbeats.
    pub heartbeats: u64,
    /// Messages, not bytes, that went or came for the first time.
    pub messages: u64,
}

impl Price {
    /// So many numbers say all of it.
    pub const NUMBERS: usize = 7;

    /// All of it.
    pub const fn numbers(&self) -> [u64; Self::NUMBERS] {
        let Self { sent, received, payload, repeats, handshakes, heartbeats, messages } = *self;
        [sent, received, payload, repeats, handshakes, heartbeats, messages]
    }

    /// What [`Self::numbers`] said.
    pub const fn from_numbers(numbers: [u64; Self::NUMBERS]) -> Self {
        let [sent, received, payload, repeats, handshakes, heartbeats, messages] = numbers;
        Self { sent, received, payload, repeats, handshakes, heartbeats, messages }
    }

    /// That as well.
    pub fn add(&mut self, other: Self) {
        let (mut all, other) = (self.numbers(), other.numbers());
        all.iter_mut().zip(other).for_each(|(number, more)| *number = number.saturating_add(more));
        *self = Self::from_numbers(all);
    }

    /// All of it as an operator is told.
    pub const fn kinds(&self) -> [(&'static str, u64); Self::NUMBERS + 1] {
        [
            ("sent", self.sent),
            ("received", self.received),
            ("payload", self.payload),
            ("protocol", self.protocol()),
            ("tls_handshakes", self.handshakes),
            ("heartbeats", self.heartbeats),
            ("repeats", self.repeats),
            ("messages", self.messages),
        ]
    }

    /// What all else took: logins, heads and frames of messages, confirms, records of TLS.
    const fn protocol(&self) -> u64 {
        let known = self.payload.saturating_add(self.repeats);
        let known = known.saturating_add(self.handshakes).saturating_add(self.heartbeats);
        self.sent.saturating_add(self.received).saturating_sub(known)
    }
}
