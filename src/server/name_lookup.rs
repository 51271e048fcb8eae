//! A name that is to be looked up, and what came of it, as values.

use core::net::SocketAddr;

/// A name, for the thread that waits for it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NameLookup {
    /// Tells it from those before.
    pub ticket: u64,
    /// A name or an address.
    pub host: String,
    /// The port that belongs to it.
    pub port: u16,
}

/// What a lookup found.
#[derive(Debug)]
pub struct FoundAddresses {
    /// Which lookup it was.
    pub ticket: u64,
    /// All addresses, or what the system says.
    pub found: Result<Vec<SocketAddr>, String>,
}
