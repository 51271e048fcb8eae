//! The TLS handshake, one step at a time on a helper thread; and the cipher suites.
//!
//! ```text
//! loop: read until a record is complete ──Handshake──→ helper: step() ──HandshakeOutput──→ loop: send the output
//!            ↑                                                                                   │
//!            └───────────────────────────────── More ────────────────────────────────────────────┘
//! ```
//!
//! A step may sign with a private key or verify a chain of certificates, which takes 50 ms and more on an old ARM
//! processor. So that the event loop does not wait, it hands the [`Handshake`] to a helper thread for each step, which
//! hands it back. A `Handshake` contains no state of the broker.
//!
//! # Invariants
//! - The number of bytes and of records that a peer may send before the end of its handshake is limited, because every
//!   record costs a step.
//! - A step runs only after a complete record was received. Each byte is examined only once for that.

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

/// Maximum number of received bytes that no step has consumed. A client's certificates must fit.
const INCOMING_BYTES_MAX: usize = RECORD_BYTES_MAX + (4 << 10);
/// Maximum number of records of a handshake. A complete handshake has about six. With 128 records, even a client that
/// splits its messages into records of 256 bytes can send the longest chain of certificates.
const RECORDS_MAX: u32 = 128;
/// Maximum number of bytes that a peer may send in a handshake: two hello messages and the longest chain.
const RECEIVED_BYTES_MAX: usize = 2 * INCOMING_BYTES_MAX;
/// Maximum size of a client's certificates in bytes. They stay in memory until the session ends.
pub const CLIENT_CHAIN_BYTES_MAX: usize = 8 << 10;
/// Maximum size of an upstream's certificates in bytes. They stay in memory until the link ends. The limit is higher than
/// for clients, because the chains of public authorities are longer.
pub(super) const UPSTREAM_CHAIN_BYTES_MAX: usize = 16 << 10;
/// Memory of a handshake in progress in bytes: input and rustls' state. The latter was 5.3 KiB in a measurement with
/// little input; 16 KiB are reserved.
pub const HANDSHAKE_BYTES: usize = INCOMING_BYTES_MAX + (16 << 10);

/// A handshake in progress.
pub struct Handshake {
    /// The state of rustls; `None` before the first step.
    connection: Option<Connection>,
    /// The upstream, if Leveret is the client.
    target: Option<Target>,
    /// Received bytes that no step has consumed.
    incoming: Vec<u8>,
    /// Number of bytes at the start of `incoming` that are complete records.
    complete_bytes: usize,
    /// Whether there is something to do for a step: complete records since the last step, or the first message of a
    /// client.
    has_work: bool,
    /// Number of complete records received so far.
    records: u32,
    /// Number of bytes received so far.
    received_bytes: usize,
}

/// The result of a step of a handshake.
pub struct HandshakeOutput {
    /// Bytes to be sent to the peer, even if the handshake has failed: then they are an alert.
    pub outgoing: Vec<u8>,
    /// Whether the handshake continues, is complete or has failed.
    pub next: HandshakeResult,
}

/// The state of a handshake after a step.
pub enum HandshakeResult {
    /// The next step needs more input of the peer.
    More(Box<Handshake>),
    /// The handshake is complete.
    Open(Box<Opened>),
    /// The handshake has failed. The text contains the reason, and what to change.
    Failed(String),
}

/// A connection whose handshake is complete.
pub struct Opened {
    pub(super) connection: Connection,
    /// Plaintext of records that were received with the end of the handshake.
    pub(super) plain: Vec<u8>,
    /// The beginning of a further record.
    pub(super) incoming: Vec<u8>,
    /// The user name in the client's certificate; `None` without a certificate.
    pub login: Option<String>,
    /// Version and cipher suite as text, for the log.
    pub version_and_cipher: String,
}

/// Why a handshake cannot continue.
enum HandshakeError {
    /// An error of rustls.
    Tls(Error),
    /// Leveret itself refuses the peer, for this reason.
    Other(Cow<'static, str>),
}

impl From<Error> for HandshakeError {
    fn from(error: Error) -> Self {
        Self::Tls(error)
    }
}

impl Handshake {
    /// Begins a handshake: as a client of the upstream `target`, or as a server.
    pub(super) fn new(target: Option<Target>) -> Box<Self> {
        // A client sends first.
        let has_work = target.is_some();
        Box::new(Self {
            connection: None,
            target,
            incoming: Vec::new(),
            complete_bytes: 0,
            has_work,
            records: 0,
            received_bytes: 0,
        })
    }

    /// Returns how many more bytes can be appended before a step must consume some.
    pub const fn room(&self) -> usize {
        INCOMING_BYTES_MAX - self.incoming.len()
    }

    /// Appends received bytes, at most [`Self::room`].
    pub fn append_input(&mut self, bytes: &[u8]) {
        self.incoming.extend_from_slice(bytes);
        self.received_bytes += bytes.len();
        while self.records < RECORDS_MAX
            && let Some(len) = first_record_len(&self.incoming[self.complete_bytes..])
            && self.complete_bytes + len <= self.incoming.len()
        {
            self.complete_bytes += len;
            self.records += 1;
            self.has_work = true;
        }
    }

    /// Returns all bytes received so far, by which a protocol other than TLS can be recognised. `None` after a step has
    /// consumed some.
    pub fn opening(&self) -> Option<&[u8]> {
        (self.received_bytes == self.incoming.len()).then_some(&self.incoming)
    }

    /// Returns whether a step must run: a complete record was received since the last step, Leveret has to send first, or
    /// there is no space for more input, which is an error.
    pub const fn is_ready(&self) -> bool {
        self.has_work || self.room() == 0
    }

    /// Returns an error text if the peer has exceeded a limit.
    fn exceeded_limit(&self) -> Option<String> {
        if self.records >= RECORDS_MAX {
            Some(format!("the handshake is not complete after {RECORDS_MAX} records"))
        } else if self.received_bytes > RECEIVED_BYTES_MAX || self.room() == 0 {
            Some("the handshake is longer than any valid one".into())
        } else {
            None
        }
    }

    /// Continues the handshake as far as the input allows. This may take 50 ms and more, so a helper thread calls it.
    /// `certificates` are needed for a server only.
    pub fn step(
        mut self: Box<Self>,
        mut certificates: Option<&mut CertificateStore>,
        known: &mut KnownTime,
    ) -> HandshakeOutput {
        let mut outgoing = Vec::new();
        let next = match self.advance(certificates.as_deref_mut(), known, &mut outgoing) {
            Ok(Some(opened)) => HandshakeResult::Open(Box::new(opened)),
            Ok(None) => {
                self.has_work = false;
                HandshakeResult::More(self)
            }
            Err(HandshakeError::Tls(error)) => {
                if let Some(connection) = &mut self.connection {
                    with_either!(connection, |end| send_alert(end, &mut self.incoming, &mut outgoing));
                }
                HandshakeResult::Failed(match &self.target {
                    Some(target) => target.explain(&error),
                    None => {
                        explain_client_error(&error, certificates.map(|own| own.clock()).unwrap_or_default())
                    }
                })
            }
            Err(HandshakeError::Other(why)) => HandshakeResult::Failed(why.into_owned()),
        };
        HandshakeOutput { outgoing, next }
    }

    /// Does the work of [`Self::step`]. Returns the connection if the handshake is complete; `None` if the next step
    /// needs more input. Bytes for the peer are appended to `outgoing`.
    fn advance(
        &mut self,
        mut certificates: Option<&mut CertificateStore>,
        known: &mut KnownTime,
        outgoing: &mut Vec<u8>,
    ) -> Result<Option<Opened>, HandshakeError> {
        if self.connection.is_none() {
            simulate_slow_cpu();
            self.connection = Some(self.begin(certificates.as_deref_mut(), known)?);
        }
        let Some(connection) = &mut self.connection else { unreachable!("the connection was begun above") };
        let mut plain = Vec::new();
        let mut input = (&mut self.incoming, &mut self.complete_bytes);
        with_either!(connection, |end| run(end, &mut input, &mut plain, outgoing))?;
        if connection.is_handshaking() {
            return self.exceeded_limit().map_or(Ok(None), |why| Err(HandshakeError::Other(why.into())));
        }
        let opened = self.finish(plain)?;
        match &self.target {
            Some(target) => {
                if target.checks_time() {
                    known.note(target.clock());
                }
                Ok(Some(opened))
            }
            None => check_client(opened, certificates).map(Some),
        }
    }

    /// Returns the state of rustls for the first step.
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
        let why = "the files of [tls] cannot be used, so TLS is unavailable; the log contains the reason";
        let config = certificates.current().ok_or(HandshakeError::Other(why.into()))?;
        Ok(Connection::Server(UnbufferedServerConnection::new(config)?))
    }

    /// Returns the connection after a complete handshake, with the plaintext that was received with its end. The user
    /// name is not set yet.
    fn finish(&mut self, plain: Vec<u8>) -> Result<Opened, HandshakeError> {
        let (Some(connection), incoming) = (self.connection.take(), core::mem::take(&mut self.incoming))
        else {
            return Err(HandshakeError::Other("the handshake has no connection".into()));
        };
        if !is_aligned(&incoming) {
            return Err(HandshakeError::Other(
                "the peer sent a fragmented handshake message after the handshake".into(),
            ));
        }
        let chain = connection.peer_certificates().unwrap_or_default();
        let bytes_max = if self.target.is_some() { UPSTREAM_CHAIN_BYTES_MAX } else { CLIENT_CHAIN_BYTES_MAX };
        if chain.iter().map(|der| der.len()).sum::<usize>() > bytes_max {
            return Err(HandshakeError::Other(
                format!("the certificates of the peer have more than {bytes_max} bytes").into(),
            ));
        }
        let version = connection.protocol_version().and_then(|version| version.as_str()).unwrap_or("TLS");
        let suite = connection.negotiated_cipher_suite().and_then(|suite| suite.suite().as_str());
        let version_and_cipher = format!("{version}, {}", suite.unwrap_or("a cipher without a name"));
        Ok(Opened { connection, plain, incoming, login: None, version_and_cipher })
    }
}

/// Lets rustls process the complete records of `incoming`, whose total length is `complete_bytes`, and removes what
/// rustls has consumed. Decrypted data is appended to `plain`, and bytes for the peer to `outgoing`.
fn run<E: TlsSide>(
    connection: &mut UnbufferedConnectionCommon<E>,
    (incoming, complete_bytes): &mut (&mut Vec<u8>, &mut usize),
    plain: &mut Vec<u8>,
    outgoing: &mut Vec<u8>,
) -> Result<(), HandshakeError> {
    loop {
        let is_complete = !connection.is_handshaking();
        let end = if is_complete { incoming.len() } else { **complete_bytes };
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
                return Err(HandshakeError::Other(
                    "the peer closed the connection during the handshake".into(),
                ));
            }
            _ => false,
        };
        incoming.drain(..discard);
        // rustls discards only complete records.
        **complete_bytes = complete_bytes.saturating_sub(discard);
        if !goes_on && (is_complete || connection.is_handshaking()) {
            return Ok(());
        }
    }
}

/// Checks that the certificate of a client, if it has one, has not expired, and sets the user name of the connection.
///
/// # Errors
/// The certificate has expired.
fn check_client(
    mut opened: Opened,
    certificates: Option<&mut CertificateStore>,
) -> Result<Opened, HandshakeError> {
    let Some(certificates) = certificates else { return Ok(opened) };
    let chain = opened.connection.peer_certificates().unwrap_or_default();
    let Some(certificate) = chain.first().and_then(|der| Certificate::parse(der)) else { return Ok(opened) };
    // rustls does not verify the certificate again when a session is resumed, so it may have expired since then.
    if certificate.not_after < certificates.clock().now_s() {
        let until = Utc(certificate.not_after);
        return Err(HandshakeError::Other(format!("the client's certificate expired at {until}").into()));
    }
    opened.login = certificates.login(&certificate);
    Ok(opened)
}

/// Appends the alert of rustls about a failed handshake to `outgoing`.
fn send_alert<E: TlsSide>(
    connection: &mut UnbufferedConnectionCommon<E>,
    incoming: &mut [u8],
    outgoing: &mut Vec<u8>,
) {
    // The loop ends before rustls processes the input, which would fail again: rustls first returns pending output.
    while connection.wants_write() {
        match E::process(connection, incoming).state {
            Ok(ConnectionState::EncodeTlsData(mut data)) => encode(|room| data.encode(room), outgoing),
            _ => break,
        }
    }
}

/// Appends the output of an encoder of rustls. The first call, with an empty buffer, returns the required length.
fn encode(mut encoder: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>, outgoing: &mut Vec<u8>) {
    if let Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) = encoder(&mut []) {
        let at = outgoing.len();
        outgoing.resize(at + required_size, 0);
        let written = encoder(&mut outgoing[at..]).unwrap_or(0);
        outgoing.truncate(at + written);
    }
}

/// Simulates a slow processor in tests: delays the first step of a handshake by the number of milliseconds in an
/// environment variable.
fn simulate_slow_cpu() {
    #[cfg(debug_assertions)]
    if let Some(ms) = std::env::var("LEVERET_SLOW_HANDSHAKE_MS").ok().and_then(|text| text.parse().ok()) {
        std::thread::sleep(core::time::Duration::from_millis(ms));
    }
}

/// Describes why the handshake with a client failed, and what to change.
fn explain_client_error(error: &Error, clock: Clock) -> String {
    let at = |time: &UnixTime| Utc(time.as_secs());
    match error {
        Error::NoCertificatesPresented => {
            "the client presented no certificate, and [tls] client_certificates is \"require\"".into()
        }
        Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            "the client's certificate is not signed by an authority in [tls] client_ca".into()
        }
        Error::InvalidCertificate(CertificateError::Revoked) => {
            "the client's certificate was revoked: a list in [tls] crl contains its number".into()
        }
        Error::InvalidCertRevocationList(_) => {
            format!(
                "a list in [tls] crl cannot be used for the client's certificate ({error}): check that the list is from \
                 the certificate's authority"
            )
        }
        Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. }) => {
            format!(
                "the client's certificate expired at {}; the clock here shows {}",
                at(not_after),
                Utc(system_s())
            )
        }
        Error::InvalidCertificate(CertificateError::NotValidYetContext { not_before, .. }) => {
            let judgement =
                if clock.is_behind() { ", which is certainly wrong" } else { ": check the clock" };
            let here = Utc(system_s());
            format!(
                "the client's certificate is valid from {} on, but the clock here shows {here}{judgement}",
                at(not_before)
            )
        }
        Error::AlertReceived(alert) => explain_alert(*alert),
        Error::PeerIncompatible(_) => {
            format!(
                "client and broker have no common version or cipher ({error}): lower [tls] minimum_version, \
                 or update the client"
            )
        }
        _ => explain_other(error, "client").unwrap_or_else(|| error.to_string()),
    }
}

/// Describes an alert of a client, and what to change.
fn explain_alert(alert: AlertDescription) -> String {
    let hint = match alert {
        AlertDescription::UnknownCA => {
            "the client does not trust the issuer of our certificate: give the client the authority's certificate"
        }
        AlertDescription::BadCertificate | AlertDescription::CertificateUnknown => {
            "the client refuses our certificate: the certificate must contain the host name that the client connects \
             to (subjectAltName), have version 3 and CA:FALSE, and be signed by an authority that the client trusts"
        }
        AlertDescription::CertificateExpired => {
            "for the client our certificate has expired, or the client's clock is wrong"
        }
        AlertDescription::ProtocolVersion => {
            "the client supports no version of TLS that [tls] minimum_version allows"
        }
        _ => return format!("alert {alert:?}"),
    };
    format!("{hint} (alert {alert:?})")
}

/// Returns ring's cipher suites. If the processor has no AES instructions, ChaCha20-Poly1305 comes first: without them it
/// is several times as fast as AES, and its duration does not depend on the data.
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
