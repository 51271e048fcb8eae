//! The content of simulated messages. Properties and body follow from the number and the length of a message,
//! so a receiver detects any change.

use super::deaths::{Deaths, is_dying, other_of, without_deaths};
use super::ledger::{Holder, Key};
use super::topology;

/// A published message.
#[derive(Clone, Debug)]
pub struct Content {
    /// The channel it was published on. Messages of one channel stay in order.
    pub stream: Holder,
    pub vhost: &'static str,
    pub exchange: &'static str,
    pub key: String,
    pub persistent: bool,
    pub mandatory: bool,
    pub len: u32,
    pub life: u32,
    /// Queues that were certainly its targets when it was sent, each with its deletion count at that time.
    pub(super) targets: Vec<(Key, u32)>,
    /// Number of unbindings requested up to that time.
    pub(super) unbound: u32,
}

impl Content {
    #[allow(clippy::too_many_arguments, reason = "a message has as many parts")]
    pub fn new(
        stream: Holder,
        vhost: &'static str,
        (exchange, key): (&'static str, String),
        (persistent, mandatory): (bool, bool),
        len: u32,
        life: u32,
    ) -> Self {
        Self {
            stream,
            vhost,
            exchange,
            key,
            persistent,
            mandatory,
            len,
            life,
            targets: Vec::new(),
            unbound: 0,
        }
    }

    /// Returns its priority, if it has one, as most messages do.
    pub const fn priority(&self) -> Option<u8> {
        if self.len.is_multiple_of(4) { None } else { Some((self.len % 5) as u8) }
    }

    /// Returns how often it has died according to a received copy, or `None` if the copy was altered.
    pub fn deaths_in(&self, exchange: &str, key: &[u8], properties: &[u8]) -> Option<Deaths> {
        let is_where_it_was = exchange == self.exchange && key == self.key.as_bytes();
        if !is_dying(&self.key) || !self.exchange.is_empty() {
            let is_same = is_where_it_was && properties == self.properties();
            return is_same.then(Deaths::default);
        }
        let expiration = self.expires().then_some(topology::EXPIRATION_MS);
        let (plain, deaths) = without_deaths(properties, &self.key, expiration)?;
        let names = [Some(&*self.key), other_of(&self.key)];
        let is_somewhere = exchange.is_empty() && names.iter().flatten().any(|name| name.as_bytes() == key);
        // The first death removes the expiration.
        let wanted = self.properties_with(self.expires() && deaths.all() == 0);
        (is_somewhere && plain == wanted).then_some(deaths)
    }

    /// Returns whether it has an expiration of its own.
    fn expires(&self) -> bool {
        self.exchange.is_empty() && topology::expires(&self.key, self.len)
    }

    /// Returns its properties in wire format.
    pub fn properties(&self) -> Vec<u8> {
        self.properties_with(self.expires())
    }

    fn properties_with(&self, expires: bool) -> Vec<u8> {
        let prefers = u8::from(self.priority().is_some());
        let mut bytes = vec![u8::from(self.persistent) << 4 | prefers << 3 | u8::from(expires), 0];
        if self.persistent {
            bytes.push(2);
        }
        bytes.extend(self.priority());
        if expires {
            bytes.push(topology::EXPIRATION_MS.len() as u8);
            bytes.extend_from_slice(topology::EXPIRATION_MS);
        }
        bytes
    }
}

/// Returns the bytes of a body; they begin with the message number.
pub fn body_of(number: u64, len: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len as usize + 8);
    bytes.extend_from_slice(&number.to_le_bytes());
    let mut state = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    while bytes.len() < len as usize {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate((len as usize).max(8));
    bytes
}

/// Returns the message number in a body. The rest of the body has to be compared separately.
pub fn number_of(body: &[u8]) -> u64 {
    body.first_chunk::<8>().map_or(u64::MAX, |first| u64::from_le_bytes(*first))
}
