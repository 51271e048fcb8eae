//! TLS with rustls and its provider ring.
//!
//! | file           | content                                                                     |
//! |----------------|-----------------------------------------------------------------------------|
//! | `certificates` | the certificates and keys in use, and reading them again                    |
//! | `verifier`     | verification of client certificates; the clock; the last known time         |
//! | `revoked`      | certificate revocation lists                                                |
//! | `handshake`    | the handshake, step by step, on a helper thread; cipher suites              |
//! | `records`      | opening and sealing records, on the event loop                              |
//! | `upstream`     | TLS as a client of an upstream broker                                       |
//! | `der`          | names and times in certificates                                             |
//!
//! rustls' own buffers are not used: they grow with what a peer sends, up to 100 KB each. Here, encrypted input
//! is opened in a buffer of the event loop. Incomplete records, plaintext that cannot be handled yet, and at most
//! one sealed record wait in a pool with a part for each connection.

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

use rustls::Error;

use leveret_config::bridge::UpstreamTls;
use leveret_core::mem::{ByteChain, BytePool};

pub use certificates::CertificateStore;
pub use certificates::TlsError;
use handshake::UPSTREAM_CHAIN_BYTES_MAX;
pub use handshake::{CLIENT_CHAIN_BYTES_MAX, HANDSHAKE_BYTES, Handshake, HandshakeResult, Opened, Shaken};
use records::{Connection, Opening, farewell, open, seal};
pub use records::{PLAIN_BYTES_MAX, RECORD_BYTES_MAX, SEALED_BYTES_MAX, SESSION_BYTES};
pub use revoked::CRL_BYTES;
pub use verifier::KnownTime;

/// Size of a link with TLS in bytes: handshake, then session, with the upstream's certificates.
pub const LINK_BYTES: usize = HANDSHAKE_BYTES + SESSION_BYTES + UPSTREAM_CHAIN_BYTES_MAX;
/// Maximum size of a message of rustls itself, such as an alert, in bytes.
const REPLY_BYTES_MAX: usize = 512;

/// The TLS state of one connection.
pub enum Tls {
    /// The handshake waits for the peer.
    Shaking(Box<Handshake>),
    /// A step of the handshake runs on a helper thread.
    Away,
    /// The handshake is over, and the session is in use.
    Open(Box<Session>),
    /// TLS has failed; there may be something left to write.
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
    /// Begins a handshake as a server.
    pub fn from_client() -> Self {
        Self::Shaking(Handshake::new(None))
    }

    /// Begins a handshake as a client of an upstream.
    pub fn to_upstream(host: &str, tls: &UpstreamTls) -> Self {
        Self::Shaking(Handshake::new(Some(upstream::Target::new(host, tls))))
    }
}

/// The keys of a connection after the handshake, and the beginning of an incomplete record.
pub struct Session {
    connection: Connection,
    /// The incomplete record, in the part of the pool that the connection has reserved.
    pub held: ByteChain,
    /// A violation of the protocol by either side. rustls must not be called again.
    broken: Option<Error>,
}

/// The result of opening input.
#[derive(Debug, Default)]
pub struct Unsealed {
    /// Bytes of plaintext.
    pub plain: usize,
    /// Bytes of input that were consumed.
    pub taken: usize,
    /// Number of records with plaintext.
    pub records: u32,
    /// The peer sends nothing more.
    pub end: bool,
}

impl Session {
    /// Begins after the handshake. Plaintext that came with it is put into `stash`; returns `None` if there is no
    /// capacity.
    pub fn begin(opened: Opened, pool: &mut BytePool, stash: &mut ByteChain) -> Option<Self> {
        let mut held = ByteChain::default();
        if held.append(pool, &opened.incoming) && stash.append(pool, &opened.plain) {
            return Some(Self { connection: opened.connection, held, broken: None });
        }
        held.clear(pool);
        None
    }

    /// Returns why the session has ended, if the upstream says why or violates the protocol.
    pub fn fault(&self) -> Option<String> {
        Some(match self.broken.as_ref()? {
            Error::AlertReceived(alert) => upstream::explain_alert(*alert),
            error => error.to_string(),
        })
    }

    /// Opens every complete record of `input` into `plain`, which is as long. Messages of rustls for the peer are
    /// appended to `unsent`.
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

    /// Seals at most [`PLAIN_BYTES_MAX`] bytes into `out`, which has [`SEALED_BYTES_MAX`] bytes, and returns the
    /// length.
    ///
    /// # Errors
    /// The session has ended.
    pub fn seal(&mut self, plain: &[u8], out: &mut [u8]) -> std::io::Result<usize> {
        if self.broken.is_some() {
            return Err(std::io::ErrorKind::InvalidData.into());
        }
        seal(&mut self.connection, plain, out).map_err(std::io::Error::other)
    }

    /// Seals close_notify into `out`; returns 0 if it cannot be sent.
    pub fn farewell(&mut self, out: &mut [u8]) -> usize {
        if self.broken.is_some() { 0 } else { farewell(&mut self.connection, out).unwrap_or(0) }
    }
}
