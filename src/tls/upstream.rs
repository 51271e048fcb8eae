//! TLS as a client of an upstream: verification of the upstream's certificate, and descriptions of failures.
//!
//! rustls' own verifier would have all authorities of the system in memory, 100 KB and more, as long as a connection
//! exists. Here the file with the authorities is read again for each verification, one certificate at a time. Only
//! authorities whose name is that of an issuer in the upstream's chain are loaded. A side effect is that a changed file
//! is used from the next connection on.
//!
//! # Invariants
//! - A certificate is accepted only if rustls finds it valid, or if it is the one in `server_certificate_sha256`.
//! - The validity period is checked at the time of the clock or the last known time, whichever is later.

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

/// Files in which various Linux systems have the certificates of trusted authorities.
const SYSTEM_ROOTS: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
];
/// The configuration key that is named in errors about a file of authorities.
const CA_FILE: &str = "ca_file";
/// Maximum number of names from a certificate in an error text.
const NAMES_SHOWN: usize = 3;

/// The upstream with which a handshake is made, and how to verify it.
#[derive(Debug)]
pub(super) struct Target {
    /// The name that the upstream's certificate must contain.
    name: String,
    tls: UpstreamTls,
    /// The clock for checking validity periods; [`Self::begin`] sets its minimum.
    clock: Clock,
}

impl Target {
    /// Returns the target for an upstream at `host`, a name or an IP address.
    pub(super) fn new(host: &str, tls: &UpstreamTls) -> Self {
        // A certificate for an IPv6 link-local address does not contain the interface of this machine, as in
        // fe80::1%eth0.
        let host = host.split_once('%').map_or(host, |(address, _)| address);
        let name = tls.server_name.as_deref().unwrap_or(host).to_string();
        Self { name, tls: tls.clone(), clock: Clock { not_before_s: 0 } }
    }

    pub(super) const fn clock(&self) -> Clock {
        self.clock
    }

    /// Returns whether the validity period of the certificate is checked. It is not with `server_certificate_sha256`.
    pub(super) const fn checks_time(&self) -> bool {
        self.tls.certificate_sha256.is_none()
    }

    /// Begins a connection. Certificates are checked at a time not earlier than `known`.
    ///
    /// # Errors
    /// A file of the configuration cannot be used, or the name is invalid.
    pub(super) fn begin(&mut self, known: &mut KnownTime) -> Result<UnbufferedClientConnection, String> {
        let provider = Arc::new(handshake::provider());
        let keys = ["certificate", "key"];
        let pair = self.tls.identity.as_ref().map(|(chain, key)| read_pair(&provider, keys, chain, key));
        let pair = pair.transpose().map_err(|error| error.to_string())?;
        let own = pair.as_ref().and_then(|pair| Certificate::parse(pair.cert.first()?));
        // Our own certificate was not made in the future, so its start is a lower bound of the time (see [`Clock`]).
        let own_not_before_s = own.map_or(0, |certificate| certificate.not_before);
        self.clock = Clock { not_before_s: known.seconds().max(own_not_before_s) };
        let failed = |error: Error| format!("TLS cannot be set up: {error}");
        let verifier: Arc<dyn ServerCertVerifier> = match self.tls.certificate_sha256 {
            Some(sum) => Arc::new(PinnedCertificateVerifier { sum, provider: provider.clone() }),
            None => {
                Arc::new(AuthorityVerifier { ca_file: self.tls.ca_file.clone(), provider: provider.clone() })
            }
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
            format!("\"{}\" is neither a host name nor an IP address; set server_name", self.name)
        })?;
        UnbufferedClientConnection::new(Arc::new(config), name).map_err(failed)
    }

    /// Describes why a handshake failed, and what to change.
    pub(super) fn explain(&self, error: &Error) -> String {
        let at = |time: &UnixTime| Utc(time.as_secs());
        match error {
            Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
                match &self.tls.ca_file {
                    Some(path) => {
                        format!(
                            "the upstream's certificate is not signed by an authority in ca_file {}; to accept exactly \
                             this certificate, set server_certificate_sha256",
                            path.display()
                        )
                    }
                    None => {
                        "the upstream's certificate is not signed by an authority that this system trusts: name the \
                             file with its authority in ca_file"
                            .into()
                    }
                }
            }
            Error::InvalidCertificate(CertificateError::NotValidForNameContext { presented, .. })
                if presented.is_empty() =>
            {
                "the upstream's certificate names no host, and a common name does not count: add \
                 subjectAltName, or accept exactly this certificate by server_certificate_sha256"
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
                format!("the upstream's certificate is made out to {names}, not to {}: set server_name", self.name)
            }
            Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. }) => {
                format!(
                    "the upstream's certificate expired at {}; the time here is {}",
                    at(not_after),
                    Utc(self.clock.now_s())
                )
            }
            Error::InvalidCertificate(CertificateError::NotValidYetContext { not_before, .. }) => {
                format!(
                    "the clock here shows {}, but the upstream's certificate is valid from {} on: check the clock",
                    Utc(system_s()),
                    at(not_before)
                )
            }
            Error::AlertReceived(alert) => explain_alert(*alert),
            Error::PeerIncompatible(_) => format!("upstream and broker have no common version or cipher: {error}"),
            Error::General(why) => why.clone(),
            _ => explain_other(error, "server").unwrap_or_else(|| error.to_string()),
        }
    }
}

/// Describes an alert of the upstream, and what to change.
pub(super) fn explain_alert(alert: AlertDescription) -> String {
    let hint = match alert {
        AlertDescription::CertificateRequired => {
            "the upstream requires a client certificate: set certificate and key"
        }
        AlertDescription::HandshakeFailure => {
            "the upstream may require a client certificate: set certificate and key"
        }
        AlertDescription::UnknownCA => "the upstream does not trust the issuer of our certificate",
        AlertDescription::CertificateExpired => {
            "for the upstream our certificate has expired, or the upstream's clock is wrong"
        }
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateRevoked
        | AlertDescription::CertificateUnknown
        | AlertDescription::DecryptError
        | AlertDescription::AccessDenied => {
            "the upstream refuses our certificate: the certificate must have version 3 and CA:FALSE, and be signed by \
             an authority that the upstream trusts"
        }
        AlertDescription::ProtocolVersion => "the upstream supports neither TLS 1.2 nor 1.3",
        AlertDescription::UnrecognisedName => {
            "the upstream has no certificate for this name: set server_name"
        }
        _ => return format!("alert {alert:?}"),
    };
    format!("{hint} (alert {alert:?})")
}

/// A verifier that accepts exactly one certificate and checks neither its names nor its times.
#[derive(Debug)]
struct PinnedCertificateVerifier {
    /// The hash of the certificate.
    sum: Sha256,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedCertificateVerifier {
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
            "the upstream's certificate has the SHA-256 {}, not the one in server_certificate_sha256",
            Sha256(shown)
        )))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        // rustls' function for this supports only certificates of version 3.
        let algorithms = self.provider.signature_verification_algorithms.mapping.iter();
        let algorithms = algorithms.filter(|(scheme, _)| *scheme == dss.scheme);
        let has_signed = |certificate: &Certificate<'_>| {
            algorithms.clone().any(|(_, all)| certificate.has_signed(message, dss.signature(), all))
        };
        match Certificate::parse(cert).is_some_and(|certificate| has_signed(&certificate)) {
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
        let certificate = Certificate::parse(cert).ok_or(CertificateError::BadEncoding)?;
        let key = SubjectPublicKeyInfoDer::from(certificate.public_key_der);
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature_with_raw_key(message, &key, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// A verifier that accepts certificates of trusted authorities.
#[derive(Debug)]
struct AuthorityVerifier {
    /// The file with the authorities; `None`: that of the system.
    ca_file: Option<PathBuf>,
    provider: Arc<CryptoProvider>,
}

impl AuthorityVerifier {
    /// Loads the trusted authorities whose name is that of an issuer in `chain`. The result is empty if there are none.
    ///
    /// # Errors
    /// The file cannot be read, or contains no valid certificate.
    fn roots(&self, chain: &[&CertificateDer<'_>]) -> Result<RootCertStore, Error> {
        let failed = |why: String| Error::General(why);
        let path = match &self.ca_file {
            Some(path) => path.as_path(),
            None => system_roots().ok_or_else(|| {
                failed(
                    "this system has no file of authorities: install ca-certificates, or set ca_file".into(),
                )
            })?,
        };
        let file = open_bounded(CA_FILE, path).map_err(|error| failed(error.to_string()))?;
        let issuers: Vec<&[u8]> =
            chain.iter().filter_map(|der| Some(Certificate::parse(der)?.issuer)).collect();
        let mut roots = RootCertStore::empty();
        let (mut has_certificate, mut is_damaged) = (false, false);
        for der in CertificateDer::pem_reader_iter(file) {
            let Ok(der) = der else {
                is_damaged = true;
                break;
            };
            has_certificate = true;
            let is_issuer = Certificate::parse(&der).is_some_and(|root| issuers.contains(&root.subject));
            if is_issuer && roots.add(der).is_err() {
                is_damaged = true;
            }
        }
        if roots.is_empty() && (is_damaged || !has_certificate) {
            let what = if is_damaged { "is damaged" } else { "contains no certificate" };
            return Err(failed(format!("{CA_FILE}: {} {what}; name a PEM file", path.display())));
        }
        Ok(roots)
    }
}

/// Returns the file with the authorities of the system, if it exists.
fn system_roots() -> Option<&'static Path> {
    SYSTEM_ROOTS.iter().map(Path::new).find(|path| path.exists())
}

impl ServerCertVerifier for AuthorityVerifier {
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
