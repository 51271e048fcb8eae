//! TLS with rustls and its provider ring.
//!
//! | file           | content                                                                     |
//! |----------------|-----------------------------------------------------------------------------|
//! | `certificates` | the broker's certificates and keys, and reloading them when files change    |
//! | `verifier`     | verification of client certificates; the time used, and its stored minimum  |
//! | `revoked`      | certificate revocation lists                                                |
//! | `handshake`    | the handshake, in steps on a helper thread; cipher suites                   |
//! | `records`      | decrypting and encrypting records, on the event loop                        |
//! | `upstream`     | TLS as a client of an upstream broker                                       |
//! | `der`          | reading names and times from certificates and revocation lists              |
//!
//! rustls' own buffers are not used: a peer can make each of them grow to 100 KB. Instead, records are decrypted in a
//! buffer of the event loop, which all connections share. What cannot be handled at once (an incomplete record, plaintext
//! without space in the broker, one encrypted record that the socket does not accept) is stored in a pool of memory with
//! a reserved part for each connection.
//!
//! To *open* a record is to decrypt and authenticate it, and to *seal* is the opposite, as in AEAD interfaces. An
//! *upstream* is a broker to which a bridge connects, so Leveret is the TLS client there.

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
pub use handshake::{
    CLIENT_CHAIN_BYTES_MAX, HANDSHAKE_BYTES, Handshake, HandshakeOutput, HandshakeResult, Opened,
};
use records::{Connection, OpenedRecords, open, seal, seal_close_notify};
pub use records::{PLAIN_BYTES_MAX, RECORD_BYTES_MAX, SEALED_BYTES_MAX, SESSION_BYTES};
pub use revoked::CRL_BYTES;
pub use verifier::KnownTime;

/// Memory of a bridge's link with TLS in bytes: handshake, session, and the upstream's certificates.
pub const LINK_BYTES: usize = HANDSHAKE_BYTES + SESSION_BYTES + UPSTREAM_CHAIN_BYTES_MAX;
/// Maximum size in bytes of a message that rustls sends by itself, such as an alert.
const REPLY_BYTES_MAX: usize = 512;

/// The TLS state of one connection.
pub enum Tls {
    /// The handshake needs input of the peer.
    Shaking(Box<Handshake>),
    /// The helper thread has the handshake, and runs a step.
    Away,
    /// The handshake is over, and the session is in use.
    Open(Box<Session>),
    /// TLS has failed. Output that was sealed before may still be sent.
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

/// The state of a connection after the handshake: keys, and the beginning of an incomplete record.
pub struct Session {
    connection: Connection,
    /// The beginning of a record whose rest was not received yet, in the part of the pool that is reserved for the
    /// connection.
    pub incomplete_record: ByteChain,
    /// The error of rustls that ended the session. rustls must not be called again after an error.
    error: Option<Error>,
}

/// The result of [`Session::unseal`].
#[derive(Debug, Default)]
pub struct Unsealed {
    /// Number of bytes of plaintext.
    pub plain: usize,
    /// Number of bytes of input that were consumed.
    pub taken: usize,
    /// Number of records with plaintext.
    pub records: u32,
    /// Whether the session has ended: by close_notify, or by an error.
    pub end: bool,
}

impl Session {
    /// Begins a session after the handshake. Plaintext that was received with the handshake is appended to `backlog`.
    /// Returns `None` if the pool has not enough memory for it.
    pub fn begin(opened: Opened, pool: &mut BytePool, backlog: &mut ByteChain) -> Option<Self> {
        let mut incomplete_record = ByteChain::default();
        if incomplete_record.append(pool, &opened.incoming) && backlog.append(pool, &opened.plain) {
            return Some(Self { connection: opened.connection, incomplete_record, error: None });
        }
        incomplete_record.clear(pool);
        None
    }

    /// Returns the error that ended a session with an upstream: an alert, or a violation of the protocol. `None` if there
    /// was no error.
    pub fn fault(&self) -> Option<String> {
        Some(match self.error.as_ref()? {
            Error::AlertReceived(alert) => upstream::explain_alert(*alert),
            error => error.to_string(),
        })
    }

    /// Opens every complete record of `input`. The plaintext is written to `plain`, which must be at least as long as
    /// `input`. Messages that rustls sends by itself are appended to `unsent`.
    pub fn unseal(
        &mut self,
        input: &mut [u8],
        plain: &mut [u8],
        unsent: &mut ByteChain,
        pool: &mut BytePool,
    ) -> Unsealed {
        if self.error.is_some() {
            return Unsealed { taken: input.len(), end: true, ..Unsealed::default() };
        }
        let mut reply = [0; REPLY_BYTES_MAX];
        match open(&mut self.connection, input, plain, &mut reply) {
            Ok(OpenedRecords { taken, plain, reply: len, records, end }) => {
                let fits = unsent.append(pool, &reply[..len]);
                Unsealed { taken, plain, records, end: end || !fits }
            }
            Err(error) => {
                log::debug!("TLS: {error}");
                self.error = Some(error);
                Unsealed { taken: input.len(), end: true, ..Unsealed::default() }
            }
        }
    }

    /// Seals at most [`PLAIN_BYTES_MAX`] bytes as one record into `out`, which must have [`SEALED_BYTES_MAX`] bytes.
    /// Returns the length of the output.
    ///
    /// # Errors
    /// The session has ended.
    pub fn seal(&mut self, plain: &[u8], out: &mut [u8]) -> std::io::Result<usize> {
        if self.error.is_some() {
            return Err(std::io::ErrorKind::InvalidData.into());
        }
        seal(&mut self.connection, plain, out).map_err(std::io::Error::other)
    }

    /// Seals the alert close_notify into `out`. Returns the length of the output; 0 if the session has ended.
    pub fn seal_close_notify(&mut self, out: &mut [u8]) -> usize {
        if self.error.is_some() { 0 } else { seal_close_notify(&mut self.connection, out).unwrap_or(0) }
    }
}
