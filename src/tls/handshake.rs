//! The TLS handshake, one step at a time on a helper thread; and the cipher suites.
//!
//! ```text
//! loop: gather until a record is complete ──Handshake──→ helper: step() ──Shaken──→ loop: write the output
//!            ↑                                                                             │
//!            └──────────────────── More ───────────────────────────────────────────────────┘
//! ```
//!
//! A step may sign with a private key, which takes 50 ms and more on an old ARM processor, or verify a chain of
//! certificates. The handshake therefore moves to a helper thread for each step and back. It holds no broker
//! state.
//!
//! # Invariants
//! - The bytes and the records that a peer may send before the end of its handshake are bounded, because every
//!   record costs a step.
//! - A step runs only when a complete record is there. No byte is looked at twice to find that out.
//! - A peer that does not speak TLS is recognised by its first bytes.

use std::borrow::Cow;

use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::UnixTime;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{
    ConnectionState, EncodeError, InsufficientSizeError, UnbufferedConnectionCommon, UnbufferedStatus,
};
use rustls::{AlertDescription, CertificateError, CipherSuite, Error};

use super::certificates::CertificateStore;
use super::der::Certificate;
use super::records::{Connection, RECORD_BYTES_MAX, TlsSide, first_record_len, is_aligned, with_either};
use super::upstream::Target;
use super::verifier::{Clock, KnownTime, Utc, explain_other, system_s};

/// Maximum number of bytes that are not consumed yet: the certificates of a client must fit.
const INCOMING_BYTES_MAX: usize = RECORD_BYTES_MAX + (4 << 10);
/// Maximum number of records of a handshake. A complete handshake has about six. A client that splits its
/// messages into records of 256 bytes can still send the longest chain of certificates.
const RECORDS_MAX: u32 = 128;
/// Maximum number of bytes of a handshake: two hellos and the longest chain.
const SENT_BYTES_MAX: usize = 2 * INCOMING_BYTES_MAX;
/// Maximum size of a client's certificates in bytes. A session keeps them until its end.
pub const CLIENT_CHAIN_BYTES_MAX: usize = 8 << 10;
/// Maximum size of an upstream's certificates in bytes. A link keeps them until its end. Public authorities have longer
/// chains.
pub(super) const UPSTREAM_CHAIN_BYTES_MAX: usize = 16 << 10;
/// Memory of a handshake in progress in bytes: input, and rustls' state. Measured 5.3 KiB with little input, and rounded
/// up.
pub const HANDSHAKE_BYTES: usize = INCOMING_BYTES_MAX + (16 << 10);

/// A handshake in progress.
pub struct Handshake {
    /// Set in the first step.
    connection: Option<Connection>,
    /// The upstream, if Leveret is the client.
    target: Option<Target>,
    incoming: Vec<u8>,
    /// Bytes at its beginning that are complete records of types that a handshake may have.
    whole: usize,
    /// Whether no step has seen some of them.
    is_fresh: bool,
    /// Number of complete records received, of types that a handshake may have.
    records: u32,
    /// Number of bytes received.
    sent: usize,
}

/// The result of a step.
pub struct Shaken {
    /// Bytes to be sent in any case.
    pub outgoing: Vec<u8>,
    /// How the handshake continues.
    pub next: HandshakeResult,
}

/// How a handshake continues.
pub enum HandshakeResult {
    /// More input of the peer is needed.
    More(Box<Handshake>),
    /// The handshake is over.
    Open(Box<Opened>),
    /// It has failed: the reason, and what to change.
    Failed(String),
}

/// A connection whose handshake is over.
pub struct Opened {
    pub(super) connection: Connection,
    /// Input that followed the handshake: plaintext, and still encrypted.
    pub(super) plain: Vec<u8>,
    pub(super) incoming: Vec<u8>,
    /// The user name in the client's certificate, if it presented one.
    pub login: Option<String>,
    /// Version and cipher, for the log.
    pub spoken: String,
}

/// Why a handshake cannot continue.
enum HandshakeError {
    /// An error of rustls.
    Tls(Error),
    /// Leveret refuses the peer for this reason.
    Other(Cow<'static, str>),
}

impl From<Error> for HandshakeError {
    fn from(error: Error) -> Self {
        Self::Tls(error)
    }
}

impl Handshake {
    /// Begins a handshake. With an upstream as `target`, Leveret sends first.
    pub(super) fn new(target: Option<Target>) -> Box<Self> {
        let is_fresh = target.is_some();
        let incoming = Vec::new();
        Box::new(Self { connection: None, target, incoming, whole: 0, is_fresh, records: 0, sent: 0 })
    }

    /// Returns how many more bytes are accepted before a step must consume some.
    pub const fn room(&self) -> usize {
        INCOMING_BYTES_MAX - self.incoming.len()
    }

    /// Appends input, at most [`Self::room`] bytes.
    pub fn take_in(&mut self, bytes: &[u8]) {
        self.incoming.extend_from_slice(bytes);
        self.sent += bytes.len();
        while self.records < RECORDS_MAX
            && let Some(len) = first_record_len(&self.incoming[self.whole..])
            && self.whole + len <= self.incoming.len()
        {
            self.whole += len;
            self.records += 1;
            self.is_fresh = true;
        }
    }

    /// Returns the first bytes while nothing else is known of the peer.
    pub fn opening(&self) -> Option<&[u8]> {
        (self.sent == self.incoming.len()).then_some(&self.incoming)
    }

    /// Returns whether a step can run: a complete record is there that no step has seen, or none can come.
    pub const fn is_ready(&self) -> bool {
        self.is_fresh || self.room() == 0
    }

    /// Returns the exceeded limit, if any.
    fn excess(&self) -> Option<String> {
        if self.records >= RECORDS_MAX {
            Some(format!("its handshake is not over after {RECORDS_MAX} records"))
        } else if self.sent > SENT_BYTES_MAX || self.room() == 0 {
            Some("its handshake is longer than any should be".into())
        } else {
            None
        }
    }

    /// Continues as far as possible with the input. This may take long.
    pub fn step(
        mut self: Box<Self>,
        mut certificates: Option<&mut CertificateStore>,
        known: &mut KnownTime,
    ) -> Shaken {
        let mut outgoing = Vec::new();
        let next = match self.advance((certificates.as_deref_mut(), known), &mut outgoing) {
            Ok(Some(opened)) => HandshakeResult::Open(Box::new(opened)),
            Ok(None) => {
                self.is_fresh = false;
                HandshakeResult::More(self)
            }
            Err(HandshakeError::Tls(error)) => {
                if let Some(connection) = &mut self.connection {
                    with_either!(connection, |end| send_alert(end, &mut self.incoming, &mut outgoing));
                }
                HandshakeResult::Failed(match &self.target {
                    Some(target) => target.explain(&error),
                    None => explain(&error, certificates.map(|own| own.clock()).unwrap_or_default()),
                })
            }
            Err(HandshakeError::Other(why)) => HandshakeResult::Failed(why.into_owned()),
        };
        Shaken { outgoing, next }
    }

    fn advance(
        &mut self,
        (mut certificates, known): (Option<&mut CertificateStore>, &mut KnownTime),
        outgoing: &mut Vec<u8>,
    ) -> Result<Option<Opened>, HandshakeError> {
        if self.connection.is_none() {
            take_time_as_told();
            self.connection = Some(self.begin(certificates.as_deref_mut(), known)?);
        }
        let Some(connection) = &mut self.connection else { unreachable!("it was begun a moment ago") };
        let mut plain = Vec::new();
        let mut came = (&mut self.incoming, &mut self.whole);
        with_either!(connection, |end| run(end, &mut came, &mut plain, outgoing))?;
        if connection.is_handshaking() {
            return self.excess().map_or(Ok(None), |why| Err(HandshakeError::Other(why.into())));
        }
        let opened = self.finish(plain)?;
        match &self.target {
            Some(target) => {
                if target.judges_by_time() {
                    known.note(target.clock());
                }
                Ok(Some(opened))
            }
            None => admit(opened, certificates).map(Some),
        }
    }

    fn begin(
        &mut self,
        certificates: Option<&mut CertificateStore>,
        known: &mut KnownTime,
    ) -> Result<Connection, HandshakeError> {
        if let Some(target) = &mut self.target {
            let begun = target.begin(known).map_err(|why| HandshakeError::Other(why.into()))?;
            return Ok(Connection::Client(begun));
        }
        let certificates = certificates.ok_or(HandshakeError::Other("there are no certificates".into()))?;
        let why = "the files of [tls] cannot be used, so nobody comes in by it; the log says why";
        let config = certificates.current().ok_or(HandshakeError::Other(why.into()))?;
        Ok(Connection::Server(UnbufferedServerConnection::new(config)?))
    }

    /// Returns the results of the handshake.
    fn finish(&mut self, plain: Vec<u8>) -> Result<Opened, HandshakeError> {
        let (Some(connection), incoming) = (self.connection.take(), core::mem::take(&mut self.incoming))
        else {
            return Err(HandshakeError::Other("it was over before it began".into()));
        };
        if !is_aligned(&incoming) {
            return Err(HandshakeError::Other("it sends pieces of a handshake after the handshake".into()));
        }
        let chain = connection.peer_certificates().unwrap_or_default();
        let most = if self.target.is_some() { UPSTREAM_CHAIN_BYTES_MAX } else { CLIENT_CHAIN_BYTES_MAX };
        if chain.iter().map(|der| der.len()).sum::<usize>() > most {
            return Err(HandshakeError::Other(
                format!("its certificates take more than {most} bytes").into(),
            ));
        }
        let version = connection.protocol_version().and_then(|version| version.as_str()).unwrap_or("TLS");
        let suite = connection.negotiated_cipher_suite().and_then(|suite| suite.suite().as_str());
        let spoken = format!("{version}, {}", suite.unwrap_or("a cipher without a name"));
        Ok(Opened { connection, plain, incoming, login: None, spoken })
    }
}

/// Continues as far as complete records allow.
fn run<E: TlsSide>(
    connection: &mut UnbufferedConnectionCommon<E>,
    (incoming, whole): &mut (&mut Vec<u8>, &mut usize),
    plain: &mut Vec<u8>,
    outgoing: &mut Vec<u8>,
) -> Result<(), HandshakeError> {
    loop {
        let is_over = !connection.is_handshaking();
        let end = if is_over { incoming.len() } else { **whole };
        let UnbufferedStatus { mut discard, state } = E::process(connection, &mut incoming[..end]);
        let goes_on = match state? {
            ConnectionState::EncodeTlsData(mut data) => {
                encode(|room| data.encode(room), outgoing);
                true
            }
            ConnectionState::TransmitTlsData(data) => {
                data.done();
                true
            }
            ConnectionState::ReadTraffic(mut traffic) => {
                while let Some(record) = traffic.next_record() {
                    let record = record?;
                    plain.extend_from_slice(record.payload);
                    discard += record.discard;
                }
                true
            }
            ConnectionState::PeerClosed | ConnectionState::Closed => {
                return Err(HandshakeError::Other("it hung up in the middle".into()));
            }
            _ => false,
        };
        incoming.drain(..discard);
        // Only complete records are discarded.
        **whole = whole.saturating_sub(discard);
        if !goes_on && (is_over || connection.is_handshaking()) {
            return Ok(());
        }
    }
}

/// Checks whether a client is accepted, and returns its user name.
fn admit(mut opened: Opened, certificates: Option<&mut CertificateStore>) -> Result<Opened, HandshakeError> {
    let Some(certificates) = certificates else { return Ok(opened) };
    let chain = opened.connection.peer_certificates().unwrap_or_default();
    let Some(certificate) = chain.first().and_then(|der| Certificate::parse(der)) else { return Ok(opened) };
    // When a session is resumed, rustls does not verify the certificate again.
    if certificate.not_after < certificates.clock().now_s() {
        let until = Utc(certificate.not_after);
        return Err(HandshakeError::Other(format!("its certificate was good until {until} only").into()));
    }
    opened.login = certificates.login(&certificate);
    Ok(opened)
}

/// Sends the alert of rustls about the failure.
fn send_alert<E: TlsSide>(
    connection: &mut UnbufferedConnectionCommon<E>,
    incoming: &mut [u8],
    outgoing: &mut Vec<u8>,
) {
    // rustls returns pending output before it processes input. The input would fail again.
    while connection.wants_write() {
        match E::process(connection, incoming).state {
            Ok(ConnectionState::EncodeTlsData(mut data)) => encode(|room| data.encode(room), outgoing),
            _ => break,
        }
    }
}

/// Appends the output of an encoder, which is asked for its length first.
fn encode(mut encoder: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>, outgoing: &mut Vec<u8>) {
    if let Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) = encoder(&mut []) {
        let at = outgoing.len();
        outgoing.resize(at + required_size, 0);
        let written = encoder(&mut outgoing[at..]).unwrap_or(0);
        outgoing.truncate(at + written);
    }
}

/// Simulates a slow processor in tests: the first step of each handshake, which signs, takes longer by the number of
/// milliseconds in an environment variable.
fn take_time_as_told() {
    #[cfg(debug_assertions)]
    if let Some(ms) = std::env::var("LEVERET_SLOW_HANDSHAKE_MS").ok().and_then(|text| text.parse().ok()) {
        std::thread::sleep(core::time::Duration::from_millis(ms));
    }
}

/// Explains why a handshake failed, and what to change.
fn explain(error: &Error, clock: Clock) -> String {
    let at = |time: &UnixTime| Utc(time.as_secs());
    match error {
        Error::NoCertificatesPresented => {
            "it shows no certificate, and [tls] client_certificates is \"require\"".into()
        }
        Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            "its certificate is not signed by an authority in [tls] client_ca".into()
        }
        Error::InvalidCertificate(CertificateError::Revoked) => {
            "its certificate was revoked: a list in [tls] crl names it".into()
        }
        Error::InvalidCertRevocationList(_) => {
            format!(
                "a list in [tls] crl cannot be used for its certificate ({error}); is it the authority's?"
            )
        }
        Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. }) => {
            format!(
                "its certificate was good until {} only; the clock here says {}",
                at(not_after),
                Utc(system_s())
            )
        }
        Error::InvalidCertificate(CertificateError::NotValidYetContext { not_before, .. }) => {
            let wrong = if clock.is_behind() { ", which is surely wrong" } else { "; is that right?" };
            let here = Utc(system_s());
            format!(
                "its certificate is good from {} on, but the clock here says {here}{wrong}",
                at(not_before)
            )
        }
        Error::AlertReceived(alert) => explain_alert(*alert),
        Error::PeerIncompatible(_) => {
            format!(
                "nothing that both sides can do ({error}); [tls] minimum_version, or its program is too old"
            )
        }
        _ => explain_other(error, "client").unwrap_or_else(|| error.to_string()),
    }
}

fn explain_alert(alert: AlertDescription) -> String {
    let hint = match alert {
        AlertDescription::UnknownCA => "it does not know who signed our certificate: give it the authority's",
        AlertDescription::BadCertificate | AlertDescription::CertificateUnknown => {
            "it refuses our certificate: that has to name what it connects to (subjectAltName), be of version 3 \
             and no authority's (CA:TRUE), and be signed by one that it knows"
        }
        AlertDescription::CertificateExpired => "to it our certificate has expired, or its clock is wrong",
        AlertDescription::ProtocolVersion => "it speaks no version of TLS that [tls] minimum_version allows",
        _ => return format!("it says {alert:?}"),
    };
    format!("{hint} (it says {alert:?})")
}

/// Returns ring's cipher suites. Without AES instructions in the processor, ChaCha20-Poly1305 comes first: it is several
/// times as fast, and its duration does not depend on the data.
pub(super) fn provider() -> CryptoProvider {
    let mut provider = ring::default_provider();
    if !has_aes() {
        let suites = provider.cipher_suites.into_iter();
        let (mut first, others): (Vec<_>, Vec<_>) = suites.partition(|suite| is_chacha20(suite.suite()));
        first.extend(others);
        provider.cipher_suites = first;
    }
    provider
}

const fn is_chacha20(suite: CipherSuite) -> bool {
    matches!(
        suite,
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256
            | CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
            | CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256
    )
}

/// Returns whether the processor has instructions for AES.
#[cfg(target_arch = "x86_64")]
pub(super) fn has_aes() -> bool {
    std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq")
}

/// Returns whether the processor has instructions for AES.
#[cfg(target_arch = "aarch64")]
pub(super) fn has_aes() -> bool {
    std::arch::is_aarch64_feature_detected!("aes") && std::arch::is_aarch64_feature_detected!("pmull")
}

/// Returns whether the processor has instructions for AES, from the kernel's AT_HWCAP2.
#[cfg(target_arch = "arm")]
pub(super) fn has_aes() -> bool {
    const AES_AND_PMULL: usize = 0b11;
    let (_, features) = rustix::param::linux_hwcap();
    features & AES_AND_PMULL == AES_AND_PMULL
}

/// Returns `false`: it is unknown whether the processor has instructions for AES.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "arm")))]
pub(super) fn has_aes() -> bool {
    false
}
