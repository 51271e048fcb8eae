//! TLS by rustls, with ring on every machine.
//!
//! | file           | what it does |
//! |----------------|--------------|
//! | `certificates` | what is in use, and reading it again |
//! | `clock`        | what time it is at least |
//! | `der`          | names and times in a certificate |
//! | `files`        | the operator's files, and what is wrong with them |
//! | `handshake`    | the handshake, step by step, on a helper |
//! | `known_time`   | the last time that is known to have been |
//! | `records`      | opening and sealing, on the loop |
//! | `revoked`      | lists of certificates that count no longer |
//! | `suites`       | which ciphers, in which order |
//! | `upstream`     | the other end: whom a bridge connects to |
//! | `verifier`     | whether a client's certificate is good |
//!
//! Why rustls' own buffers are not used: they grow with what a peer sends, up to 100 KB each. Here encrypted
//! input is opened in the loop's scratch; what is no whole record yet, what of an opened one cannot be
//! handled yet, and at most one record of sealed output wait in a pool that has room for each connection.

#![warn(clippy::unwrap_used)]

mod certificates;
mod der;
mod handshake;
mod records;
mod revoked;
#[cfg(test)]
mod tests;
mod upstream;
#[cfg(test)]
mod upstream_tests;
mod verifier;

// The rooms below, by the names that everybody has for them.

use rustls::Error;

use leveret_config::bridge::UpstreamTls;
use leveret_core::mem::{ByteChain, BytePool};

pub use certificates::CertificateStore;
pub use certificates::TlsError;
use handshake::UPSTREAM_CHAIN_BYTES_MAX;
pub use handshake::{CLIENT_CHAIN_BYTES_MAX, HANDSHAKE_BYTES, Handshake, Next, Opened, Shaken};
use records::{Connection, Opening, farewell, open, seal};
pub use records::{PLAIN_BYTES_MAX, RECORD_BYTES_MAX, SEALED_BYTES_MAX, SESSION_BYTES};
pub use revoked::CRL_BYTES;
pub use verifier::KnownTime;

/// Bytes of a link over TLS: its handshake and then its session, with the certificates of its upstream.
pub const LINK_BYTES: usize = HANDSHAKE_BYTES + SESSION_BYTES + UPSTREAM_CHAIN_BYTES_MAX;
/// Replies of rustls' own, such as an alert: a few dozen octets each.
const REPLY_BYTES_MAX: usize = 512;

/// TLS on one connection.
pub enum Tls {
    /// In its handshake, waiting for the peer.
    Shaking(Box<Handshake>),
    /// A step of the handshake is being made elsewhere.
    Away,
    /// The handshake is over, and the session is in use.
    Open(Box<Session>),
    /// It has failed: there is only something left to be written, maybe.
    Over,
}

impl core::fmt::Debug for Tls {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Shaking(_) => "Shaking",
            Self::Away => "Away",
            Self::Open(_) => "Open",
            Self::Over => "Over",
        })
    }
}

impl Tls {
    /// At the very beginning, with a client that has come.
    pub fn from_client() -> Self {
        Self::Shaking(Handshake::new(None))
    }

    /// At the very beginning, with us as the client of an upstream at this host.
    pub fn to_upstream(host: &str, tls: &UpstreamTls) -> Self {
        Self::Shaking(Handshake::new(Some(upstream::Target::new(host, tls))))
    }
}

/// The keys of a connection whose handshake is over, and the beginning of a record that is not all there.
pub struct Session {
    connection: Connection,
    /// Lies in what the connection has reserved.
    pub held: ByteChain,
    /// It has broken the rules, or has said that we have: rustls must not be asked for anything more.
    broken: Option<Error>,
}

/// What came out of encrypted input.
#[derive(Debug, Default)]
pub struct Unsealed {
    /// Octets of plaintext.
    pub plain: usize,
    /// Octets of input that are done with.
    pub taken: usize,
    /// Records that held some.
    pub records: u32,
    /// Nothing more will come.
    pub end: bool,
}

impl Session {
    /// Goes on where the handshake has ended. What came behind it is the stash's; `None`: there is no room.
    pub fn begin(opened: Opened, pool: &mut BytePool, stash: &mut ByteChain) -> Option<Self> {
        let mut held = ByteChain::default();
        if held.append(pool, &opened.incoming) && stash.append(pool, &opened.plain) {
            return Some(Self { connection: opened.connection, held, broken: None });
        }
        held.clear(pool);
        None
    }

    /// Why it is over, if an upstream says why, or breaks the rules.
    pub fn fault(&self) -> Option<String> {
        Some(match self.broken.as_ref()? {
            Error::AlertReceived(alert) => upstream::explain_alert(*alert),
            error => error.to_string(),
        })
    }

    /// Opens every whole record of `input` into `plain`, which is as long. What rustls has to say to the peer
    /// is added to `unsent`.
    pub fn unseal(
        &mut self,
        input: &mut [u8],
        plain: &mut [u8],
        (unsent, pool): (&mut ByteChain, &mut BytePool),
    ) -> Unsealed {
        if self.broken.is_some() {
            return Unsealed { taken: input.len(), end: true, ..Unsealed::default() };
        }
        let mut reply = [0; REPLY_BYTES_MAX];
        match open(&mut self.connection, input, plain, &mut reply) {
            Ok(Opening { taken, plain, reply: len, records, end }) => {
                let fits = unsent.append(pool, &reply[..len]);
                Unsealed { taken, plain, records, end: end || !fits }
            }
            Err(error) => {
                log::debug!("TLS: {error}");
                self.broken = Some(error);
                Unsealed { taken: input.len(), end: true, ..Unsealed::default() }
            }
        }
    }

    /// Seals at most [`PLAIN_BYTES_MAX`] octets into `out`, which has [`SEALED_BYTES_MAX`]; says how long it
    /// is.
    ///
    /// # Errors
    /// The session is over.
    pub fn seal(&mut self, plain: &[u8], out: &mut [u8]) -> std::io::Result<usize> {
        if self.broken.is_some() {
            return Err(std::io::ErrorKind::InvalidData.into());
        }
        seal(&mut self.connection, plain, out).map_err(std::io::Error::other)
    }

    /// Seals the farewell into `out`; 0 when there is none to be said.
    pub fn farewell(&mut self, out: &mut [u8]) -> usize {
        if self.broken.is_some() { 0 } else { farewell(&mut self.connection, out).unwrap_or(0) }
    }
}
