//! What a message of a run is made of: its properties and bytes follow from its number and its length, so
//! that whoever receives it can tell whether anything was altered.

use super::deaths::{Deaths, is_dying, other_of, without_deaths};
use super::ledger::{Holder, Key};
use super::topology;

/// A message as it was published.
#[derive(Clone, Debug)]
pub struct Content {
    /// Its channel: what came from one is in order.
    pub stream: Holder,
    pub vhost: &'static str,
    pub exchange: &'static str,
    pub key: String,
    pub persistent: bool,
    pub mandatory: bool,
    pub len: u32,
    pub life: u32,
    /// Queues that surely were its targets when it was sent, and how often each was about to go by then.
    pub(super) targets: Vec<(Key, u32)>,
    /// How often a binding had been about to go.
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

    /// Most messages have one.
    pub const fn priority(&self) -> Option<u8> {
        if self.len.is_multiple_of(4) { None } else { Some((self.len % 5) as u8) }
    }

    /// How often it has died when it looks like that; `None`: it was altered.
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
        // The first death takes its own time away.
        let wanted = self.properties_with(self.expires() && deaths.all() == 0);
        (is_somewhere && plain == wanted).then_some(deaths)
    }

    /// Whether it has a time of its own.
    fn expires(&self) -> bool {
        self.exchange.is_empty() && topology::expires(&self.key, self.len)
    }

    /// Its properties as they are written.
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

/// The bytes of a body: they begin with its number.
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

/// The content that a body was made for; its bytes are to be compared besides.
pub fn number_of(body: &[u8]) -> u64 {
    body.first_chunk::<8>().map_or(u64::MAX, |first| u64::from_le_bytes(*first))
}
