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
    CertRevocationListError, CertificateError, DigitallySignedStruct, DistinguishedName, Error,
    SignatureScheme,
};

/// All that have to agree.
#[derive(Debug)]
pub(super) struct Unanimous {
    pub(super) first: Arc<dyn ClientCertVerifier>,
    pub(super) others: Vec<Judge>,
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
        let verified = self.first.verify_client_cert(end_entity, intermediates, now)?;
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
