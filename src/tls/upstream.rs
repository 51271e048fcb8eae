//! TLS as a client of an upstream: verification of its certificate, and explanations of failures.
//!
//! rustls' own verifier would keep all authorities of the system in memory, 100 KB and more, as long as a
//! connection exists. Here the file is read for each verification, piece by piece, and only authorities are kept
//! whose name is that of an issuer in the chain. A renewed file therefore counts from the next connection on.
//!
//! # Invariants
//! - A certificate is accepted only if rustls finds it valid.
//! - It is checked against the clock or the last known time, whichever is later.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, UnbufferedClientConnection, WebPkiServerVerifier};
use rustls::crypto::{
    CryptoProvider, verify_tls12_signature, verify_tls13_signature, verify_tls13_signature_with_raw_key,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::sign::SingleCertAndKey;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore,
    SignatureScheme, version,
};

use leveret_config::bridge::{Sha256, UpstreamTls};

use super::certificates::open_bounded;
use super::certificates::read_pair;
use super::der::Certificate;
use super::handshake;
use super::verifier::KnownTime;
use super::verifier::{Clock, Utc, system_s};
use super::verifier::{Refusal, explain_other};

/// Files in which systems keep their authorities.
const SYSTEM_ROOTS: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
];
const CA_FILE: &str = "ca_file";
/// Maximum number of a certificate's names in an error text.
const NAMES_SHOWN: usize = 3;

/// The upstream of a handshake.
#[derive(Debug)]
pub(super) struct Target {
    name: String,
    tls: UpstreamTls,
    /// Set in the first step.
    clock: Clock,
}

impl Target {
    /// Makes the target for an upstream at this host.
    pub(super) fn new(host: &str, tls: &UpstreamTls) -> Self {
        // A certificate for an address does not contain the interface, which only this machine knows.
        let host = host.split_once('%').map_or(host, |(address, _)| address);
        let name = tls.server_name.as_deref().unwrap_or(host).to_string();
        Self { name, tls: tls.clone(), clock: Clock { not_before_s: 0 } }
    }

    pub(super) const fn clock(&self) -> Clock {
        self.clock
    }

    /// Returns whether the certificate is checked against the clock.
    pub(super) const fn judges_by_time(&self) -> bool {
        self.tls.certificate_sha256.is_none()
    }

    /// Begins a connection.
    ///
    /// # Errors
    /// The file that cannot be used, or why the name cannot.
    pub(super) fn begin(&mut self, known: &mut KnownTime) -> Result<UnbufferedClientConnection, String> {
        let provider = Arc::new(handshake::provider());
        let keys = ["certificate", "key"];
        let pair = self.tls.identity.as_ref().map(|(chain, key)| read_pair(&provider, keys, (chain, key)));
        let pair = pair.transpose().map_err(|error| error.to_string())?;
        let own = pair.as_ref().and_then(|pair| Certificate::parse(pair.cert.first()?));
        let made_s = own.map_or(0, |certificate| certificate.not_before);
        self.clock = Clock { not_before_s: known.seconds().max(made_s) };
        let failed = |error: Error| format!("TLS cannot be set up: {error}");
        let verifier: Arc<dyn ServerCertVerifier> = match self.tls.certificate_sha256 {
            Some(sum) => Arc::new(OneCertificate { sum, provider: provider.clone() }),
            None => Arc::new(Verifier { ca_file: self.tls.ca_file.clone(), provider: provider.clone() }),
        };
        let builder = ClientConfig::builder_with_details(provider, Arc::new(self.clock))
            .with_protocol_versions(&[&version::TLS13, &version::TLS12])
            .map_err(failed)?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match pair {
            None => builder.with_no_client_auth(),
            Some(pair) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(pair))),
        };
        config.resumption = Resumption::disabled();
        let name = ServerName::try_from(self.name.clone()).map_err(|_| {
            format!("\"{}\" is no name that a certificate is made out to; set server_name", self.name)
        })?;
        UnbufferedClientConnection::new(Arc::new(config), name).map_err(failed)
    }

    /// Explains why a handshake failed, and what to change.
    pub(super) fn explain(&self, error: &Error) -> String {
        let at = |time: &UnixTime| Utc(time.as_secs());
        match error {
            Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
                match &self.tls.ca_file {
                    Some(path) => {
                        format!(
                            "its certificate is not signed by an authority in ca_file {}; \
                             server_certificate_sha256 accepts exactly one",
                            path.display()
                        )
                    }
                    None => {
                        "its certificate is not signed by an authority that this system knows: name its own \
                             in ca_file"
                            .into()
                    }
                }
            }
            Error::InvalidCertificate(CertificateError::NotValidForNameContext { presented, .. })
                if presented.is_empty() =>
            {
                "its certificate names no host, and a common name does not count: make it with \
                 subjectAltName, or accept exactly it by server_certificate_sha256"
                    .into()
            }
            Error::InvalidCertificate(CertificateError::NotValidForNameContext { presented, .. }) => {
                // rustls formats names as DnsName("…") and IpAddress(…).
                let bare = |name: &String| {
                    let inside = name.split_once('(').map_or(name.as_str(), |(_, inside)| inside);
                    inside.trim_matches(['"', ')']).to_string()
                };
                let names: Vec<String> = presented.iter().take(NAMES_SHOWN).map(bare).collect();
                let names = names.join(", ");
                format!("its certificate is made out to {names}, not to {}: set server_name", self.name)
            }
            Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. }) => {
                format!(
                    "its certificate was good until {} only; here it is {}",
                    at(not_after),
                    Utc(self.clock.now_s())
                )
            }
            Error::InvalidCertificate(CertificateError::NotValidYetContext { not_before, .. }) => {
                format!(
                    "the clock here is not to be trusted: it says {}, and its certificate is good from {} on",
                    Utc(system_s()),
                    at(not_before)
                )
            }
            Error::AlertReceived(alert) => explain_alert(*alert),
            Error::PeerIncompatible(_) => format!("nothing that both sides can do: {error}"),
            Error::General(why) => why.clone(),
            _ => explain_other(error, "server").unwrap_or_else(|| error.to_string()),
        }
    }
}

/// Explains an alert of the upstream.
pub(super) fn explain_alert(alert: AlertDescription) -> String {
    let hint = match alert {
        AlertDescription::CertificateRequired => "it wants a client certificate: set certificate and key",
        AlertDescription::HandshakeFailure => "it may want a client certificate: set certificate and key",
        AlertDescription::UnknownCA => "it does not know who signed our certificate",
        AlertDescription::CertificateExpired => "to it our certificate has expired, or its clock is wrong",
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateRevoked
        | AlertDescription::CertificateUnknown
        | AlertDescription::DecryptError
        | AlertDescription::AccessDenied => {
            "it refuses our certificate: that has to be of version 3, no authority's (CA:TRUE), and signed by \
             one that it knows"
        }
        AlertDescription::ProtocolVersion => "it speaks neither TLS 1.2 nor 1.3",
        AlertDescription::UnrecognisedName => "it is known by another name: set server_name",
        _ => return format!("it says {alert:?}"),
    };
    format!("{hint} (it says {alert:?})")
}

/// A verifier that accepts exactly one certificate, whatever its content.
#[derive(Debug)]
struct OneCertificate {
    sum: Sha256,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for OneCertificate {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let sum = ring::digest::digest(&ring::digest::SHA256, end_entity);
        if sum.as_ref() == self.sum.0 {
            return Ok(ServerCertVerified::assertion());
        }
        let mut shown = [0; 32];
        shown.copy_from_slice(sum.as_ref());
        Err(Refusal::error(&format!(
            "its certificate has the SHA-256 {}, not server_certificate_sha256",
            Sha256(shown)
        )))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        // rustls' standard function reads only certificates of version 3.
        let ways = self.provider.signature_verification_algorithms.mapping.iter();
        let ways = ways.filter(|(scheme, _)| *scheme == dss.scheme);
        let has_signed = |own: &Certificate<'_>| {
            ways.clone().any(|(_, ways)| own.has_signed(message, dss.signature(), ways))
        };
        match Certificate::parse(cert).is_some_and(|own| has_signed(&own)) {
            true => Ok(HandshakeSignatureValid::assertion()),
            false => Err(CertificateError::BadSignature.into()),
        }
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let own = Certificate::parse(cert).ok_or(CertificateError::BadEncoding)?;
        let key = SubjectPublicKeyInfoDer::from(own.public_key_der);
        let ways = &self.provider.signature_verification_algorithms;
        verify_tls13_signature_with_raw_key(message, &key, dss, ways)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// A verifier for an upstream's certificate.
#[derive(Debug)]
struct Verifier {
    ca_file: Option<PathBuf>,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    /// Loads the authorities that may have signed a certificate of this chain.
    fn roots(&self, chain: &[&CertificateDer<'_>]) -> Result<RootCertStore, Error> {
        let said = |why: String| Error::General(why);
        let path = match &self.ca_file {
            Some(path) => path.as_path(),
            None => system_roots().ok_or_else(|| {
                said("this system knows no authorities: install its ca-certificates, or name ca_file".into())
            })?,
        };
        let file = open_bounded(CA_FILE, path).map_err(|error| said(error.to_string()))?;
        let issuers: Vec<&[u8]> =
            chain.iter().filter_map(|der| Some(Certificate::parse(der)?.issuer)).collect();
        let mut roots = RootCertStore::empty();
        let (mut seen, mut is_damaged) = (false, false);
        for der in CertificateDer::pem_reader_iter(file) {
            let Ok(der) = der else {
                is_damaged = true;
                break;
            };
            seen = true;
            let is_one = Certificate::parse(&der).is_some_and(|one| issuers.contains(&one.subject));
            if is_one && roots.add(der).is_err() {
                is_damaged = true;
            }
        }
        if roots.is_empty() && (is_damaged || !seen) {
            let what = if is_damaged { "is damaged" } else { "holds no certificate" };
            return Err(said(format!("{CA_FILE}: {} {what}; name a PEM file", path.display())));
        }
        Ok(roots)
    }
}

/// Returns the file with the authorities of the system.
fn system_roots() -> Option<&'static Path> {
    SYSTEM_ROOTS.iter().map(Path::new).find(|path| path.exists())
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let chain: Vec<_> = core::iter::once(end_entity).chain(intermediates).collect();
        let roots = self.roots(&chain)?;
        if roots.is_empty() {
            return Err(CertificateError::UnknownIssuer.into());
        }
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|error| Error::General(error.to_string()))?
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
