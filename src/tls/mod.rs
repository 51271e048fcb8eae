//! TLS by rustls, with ring on every machine.
//!
//! | file           | what it does |
//! |----------------|--------------|
//! | `certificates` | what is in use, and reading it again |
//! | `clock`        | what time it is at least |
//! | `der`          | names and times in a certificate |
//! | `files`        | the operator's files, and what is wrong with them |
//! | `handshake`    | the handshake, step by step, on a helper |
//! | `records`      | opening and sealing, on the loop |
//! | `revoked`      | lists of certificates that count no longer |
//! | `suites`       | which ciphers, in which order |
//! | `verifier`     | whether a client's certificate is good |
//!
//! Why rustls' own buffers are not used: they grow with what a peer sends, up to 100 KB each. Here encrypted
//! input is opened in the loop's scratch; what is no whole record yet, what of an opened one cannot be
//! handled yet, and at most one record of sealed output wait in a pool that has room for each connection.

mod certificates;
mod clock;
mod der;
mod files;
mod handshake;
mod records;
mod revoked;
mod suites;
#[cfg(test)]
mod tests;
mod verifier;

use rustls::server::UnbufferedServerConnection;

use crate::mem::{ByteChain, BytePool};

pub use certificates::CertificateStore;
pub use files::TlsError;
pub(crate) use handshake::{CLIENT_CHAIN_BYTES_MAX, HANDSHAKE_BYTES, Handshake, Next, Opened, Shaken};
use records::{Opening, farewell, open, seal};
pub(crate) use records::{PLAIN_BYTES_MAX, RECORD_BYTES_MAX, SEALED_BYTES_MAX, SESSION_BYTES};
pub(crate) use revoked::CRL_BYTES;

/// Replies of rustls' own, such as an alert: a few dozen octets each.
const REPLY_BYTES_MAX: usize = 512;

/// TLS on one connection.
pub(crate) enum Tls {
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
    /// At the very beginning.
    pub(crate) fn new() -> Self {
        Self::Shaking(Handshake::new())
    }
}

/// The keys of a connection whose handshake is over, and the beginning of a record that is not all there.
pub(crate) struct Session {
    connection: UnbufferedServerConnection,
    /// Lies in what the connection has reserved.
    pub(crate) held: ByteChain,
    /// It has broken the rules: rustls must not be asked for anything more.
    is_broken: bool,
}

/// What came out of encrypted input.
#[derive(Debug, Default)]
pub(crate) struct Unsealed {
    /// Octets of plaintext.
    pub(crate) plain: usize,
    /// Octets of input that are done with.
    pub(crate) taken: usize,
    /// Records that held some.
    pub(crate) records: u32,
    /// Nothing more will come.
    pub(crate) end: bool,
}

impl Session {
    /// Goes on where the handshake has ended. What came behind it is the stash's; `None`: there is no room.
    pub(crate) fn begin(opened: Opened, pool: &mut BytePool, stash: &mut ByteChain) -> Option<Self> {
        let mut held = ByteChain::default();
        if held.append(pool, &opened.incoming) && stash.append(pool, &opened.plain) {
            return Some(Self { connection: opened.connection, held, is_broken: false });
        }
        held.clear(pool);
        None
    }

    /// Opens every whole record of `input` into `plain`, which is as long. What rustls has to say to the peer
    /// is added to `unsent`.
    pub(crate) fn unseal(
        &mut self,
        input: &mut [u8],
        plain: &mut [u8],
        (unsent, pool): (&mut ByteChain, &mut BytePool),
    ) -> Unsealed {
        if self.is_broken {
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
                self.is_broken = true;
                Unsealed { taken: input.len(), end: true, ..Unsealed::default() }
            }
        }
    }

    /// Seals at most [`PLAIN_BYTES_MAX`] octets into `out`, which has [`SEALED_BYTES_MAX`]; says how long it
    /// is.
    pub(crate) fn seal(&mut self, plain: &[u8], out: &mut [u8]) -> std::io::Result<usize> {
        if self.is_broken {
            return Err(std::io::ErrorKind::InvalidData.into());
        }
        seal(&mut self.connection, plain, out).map_err(std::io::Error::other)
    }

    /// Seals the farewell into `out`; 0 when there is none to be said.
    pub(crate) fn farewell(&mut self, out: &mut [u8]) -> usize {
        if self.is_broken { 0 } else { farewell(&mut self.connection, out).unwrap_or(0) }
    }
}
