//! Who says whether a client's certificate is good: rustls, asked once for each set of lists.
//!
//! Why it exists: of several lists that bear the name of one authority rustls takes the first and looks at no
//! other, and if that is another authority's of the same name it refuses everybody. So a list that shares its
//! name is looked at by itself. Always true: the first of those asked, who has every list whose name is its
//! own, must find the certificate good; each other one can only refuse it.

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertRevocationListError, CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    RootCertStore, SignatureScheme,
};

use super::der::Certificate;

/// All that have to agree.
#[derive(Debug)]
pub(super) struct Unanimous {
    pub(super) first: Arc<dyn ClientCertVerifier>,
    pub(super) others: Vec<Judge>,
    /// The authorities in `client_ca`.
    pub(super) roots: Arc<RootCertStore>,
}

/// A refusal in words that say what to change.
#[derive(Debug)]
pub(super) struct Refusal(pub(super) String);

impl core::fmt::Display for Refusal {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(&self.0)
    }
}

impl core::error::Error for Refusal {}

impl Refusal {
    /// As rustls hands it on.
    pub(super) fn error(words: &str) -> Error {
        CertificateError::Other(OtherError(Arc::new(Self(words.to_string())))).into()
    }

    /// The words of an error that is one.
    pub(super) fn of(error: &Error) -> Option<&str> {
        let Error::InvalidCertificate(CertificateError::Other(OtherError(other))) = error else {
            return None;
        };
        other.downcast_ref::<Self>().map(|refusal| &*refusal.0)
    }
}

/// What webpki alone has a name for, in words: of the certificate of a client, or of a server.
pub(super) fn explain_other(error: &Error, whose: &str) -> Option<String> {
    if let Some(words) = Refusal::of(error) {
        return Some(words.to_string());
    }
    let Error::InvalidCertificate(error) = error else { return None };
    if let CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } = error {
        return Some(format!("its certificate is not for a {whose}: its extendedKeyUsage lacks {whose}Auth"));
    }
    let CertificateError::Other(other) = error else { return None };
    let name = other.to_string();
    let is = |part: &str| name.contains(part);
    Some(if is("UnsupportedCertVersion") {
        format!(
            "its certificate is of X.509 version 1, as `openssl x509 -req` makes it without -extfile: give it \
             an extension, such as extendedKeyUsage={whose}Auth"
        )
    } else if is("CaUsedAsEndEntity") {
        format!(
            "its certificate is one of an authority (CA:TRUE), which no {whose} may show: have that sign one \
             for it (CA:FALSE)"
        )
    } else if is("EndEntityUsedAsCa") {
        "its certificate is signed by one that is no authority's: that has to be made with CA:TRUE".into()
    } else {
        format!("its certificate breaks a rule of X.509 ({name}): have its authority make another")
    })
}

/// One who has one list.
#[derive(Debug)]
pub(super) struct Judge {
    pub(super) verifier: Arc<dyn ClientCertVerifier>,
    /// The list was found to be signed by an authority that is known, so if it is not by the one that signed
    /// a certificate, that is another of the same name.
    pub(super) may_be_of_namesake: bool,
}

/// What comes of a list, or of an authority, that is another's of the same name. That a certificate is
/// revoked goes before it, when both come of different ways to an authority.
const fn is_of_namesake(error: &Error) -> bool {
    matches!(
        error,
        Error::InvalidCertRevocationList(
            CertRevocationListError::BadSignature
                | CertRevocationListError::UnsupportedSignatureAlgorithmContext { .. }
                | CertRevocationListError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. }
        ) | Error::InvalidCertificate(
            CertificateError::BadSignature
                | CertificateError::UnsupportedSignatureAlgorithmContext { .. }
                | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. }
        )
    )
}

impl Unanimous {
    /// Whether a client's certificate is itself in `client_ca`, where its authority should be.
    fn is_known_itself(&self, der: &CertificateDer<'_>) -> bool {
        let certificate = Certificate::parse(der);
        certificate.is_some_and(|own| {
            let is_it = |root: &rustls::pki_types::TrustAnchor<'_>| {
                root.subject.as_ref() == own.subject
                    && root.subject_public_key_info.as_ref() == own.public_key
            };
            self.roots.roots.iter().any(is_it)
        })
    }
}

/// Why a certificate that is in `client_ca` is refused all the same.
fn refused_itself(error: Error, der: &CertificateDer<'_>) -> Error {
    let is_authority = Certificate::parse(der).is_some_and(|own| own.is_authority);
    match error {
        Error::InvalidCertificate(CertificateError::Other(_)) if is_authority => Refusal::error(
            "its certificate is itself in [tls] client_ca and is an authority's (CA:TRUE), which no client may \
             show: have that sign one for it (CA:FALSE)",
        ),
        Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            Refusal::error(
                "its certificate is itself in [tls] client_ca, which is for authorities: put the one that \
                 signed it there",
            )
        }
        error => error,
    }
}

impl ClientCertVerifier for Unanimous {
    fn offer_client_auth(&self) -> bool {
        self.first.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.first.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.first.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.first.verify_client_cert(end_entity, intermediates, now);
        let verified = verified.map_err(|error| match self.is_known_itself(end_entity) {
            true => refused_itself(error, end_entity),
            false => error,
        })?;
        for judge in &self.others {
            match judge.verifier.verify_client_cert(end_entity, intermediates, now) {
                Err(error) if !(judge.may_be_of_namesake && is_of_namesake(&error)) => return Err(error),
                _ => {}
            }
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.first.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.first.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.first.supported_verify_schemes()
    }
}
