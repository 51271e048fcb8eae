//! Verification of client certificates, the current time, and the last known time.
//!
//! # Invariants
//! - A client certificate is valid only if the first verifier of a [`CombinedVerifier`] accepts it and no other refuses
//!   it, except for an ignored namesake error.
//! - Certificates are checked at the time of the system's clock, but not before a minimum. So a clock that is behind
//!   this minimum makes no certificate valid that had expired by then.
//! - The stored last known time never decreases, and is written at most once a day.

use core::fmt;
use core::time::Duration;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use leveret_core::small_file;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::time_provider::TimeProvider;
use rustls::{
    CertRevocationListError, CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    RootCertStore, SignatureScheme,
};

use super::der::Certificate;

/// A verifier that accepts a client certificate only if its first verifier accepts it and no other refuses it, except
/// for an ignored namesake error.
///
/// A single verifier of rustls uses only the first of several revocation lists with the same authority name. If that
/// list is from another authority of that name, the verifier refuses every certificate of the right one. So each list
/// that shares its authority name gets a verifier of its own, in addition to the first one.
#[derive(Debug)]
pub(super) struct CombinedVerifier {
    /// The verifier with the lists whose authority name is unique.
    pub(super) first: Arc<dyn ClientCertVerifier>,
    /// A verifier for each of the other lists.
    pub(super) others: Vec<SingleListVerifier>,
    /// The certificates of the authorities in `client_ca`.
    pub(super) roots: Arc<RootCertStore>,
}

/// Why a certificate is refused, and what to change: an error type of Leveret that rustls passes through.
#[derive(Debug)]
pub(super) struct Refusal(pub(super) String);

impl core::fmt::Display for Refusal {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(&self.0)
    }
}

impl core::error::Error for Refusal {}

impl Refusal {
    /// Returns a rustls error that contains `text`.
    pub(super) fn error(text: &str) -> Error {
        CertificateError::Other(OtherError(Arc::new(Self(text.to_string())))).into()
    }

    /// Returns the text of an error that [`Self::error`] has made; `None` for any other error.
    pub(super) fn text_of(error: &Error) -> Option<&str> {
        let Error::InvalidCertificate(CertificateError::Other(OtherError(other))) = error else {
            return None;
        };
        other.downcast_ref::<Self>().map(|refusal| &*refusal.0)
    }
}

/// Describes errors in a certificate that need a clearer text than rustls has: a wrong purpose, webpki's errors, and
/// those of [`Refusal`]. `owner` is "client" or "server". Returns `None` for an error that is not about the
/// certificate.
pub(super) fn explain_other(error: &Error, owner: &str) -> Option<String> {
    if let Some(text) = Refusal::text_of(error) {
        return Some(text.to_string());
    }
    let Error::InvalidCertificate(error) = error else { return None };
    if let CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } = error {
        return Some(format!(
            "the {owner}'s certificate is not for a {owner}: its extendedKeyUsage lacks {owner}Auth"
        ));
    }
    let CertificateError::Other(other) = error else { return None };
    let name = other.to_string();
    let is = |part: &str| name.contains(part);
    Some(if is("UnsupportedCertVersion") {
        format!(
            "the {owner}'s certificate is of X.509 version 1, as `openssl x509 -req` makes it without -extfile: \
             create it with an extension, such as extendedKeyUsage={owner}Auth"
        )
    } else if is("CaUsedAsEndEntity") {
        format!(
            "the {owner}'s certificate is that of an authority (CA:TRUE), which no {owner} may use: let the authority \
             sign a certificate with CA:FALSE for the {owner}"
        )
    } else if is("EndEntityUsedAsCa") {
        format!(
            "the issuer of the {owner}'s certificate is not an authority: make the issuer's certificate with CA:TRUE"
        )
    } else {
        format!(
            "the {owner}'s certificate violates a rule of X.509 ({name}): let the authority make another one"
        )
    })
}

/// The verifier for one revocation list that shares its authority name with another list or authority.
#[derive(Debug)]
pub(super) struct SingleListVerifier {
    pub(super) verifier: Arc<dyn ClientCertVerifier>,
    /// Whether errors for which [`is_namesake_error`] returns `true` are ignored. That is so if an authority in
    /// `client_ca` has signed the list: if its signature does not match the issuer of a certificate, that issuer is
    /// another authority of the same name, and the list is not about the certificate.
    pub(super) ignores_namesake_errors: bool,
}

/// Returns whether a verifier returns this error if the list or an authority in `client_ca` has the name of the
/// certificate's issuer without being of that issuer. A revoked certificate gives another error, even if this one would
/// apply as well.
const fn is_namesake_error(error: &Error) -> bool {
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

impl CombinedVerifier {
    /// Returns whether a client's certificate is in `client_ca`, which should contain its authority instead.
    fn is_in_client_ca(&self, der: &CertificateDer<'_>) -> bool {
        let certificate = Certificate::parse(der);
        certificate.is_some_and(|own| {
            let is_same = |root: &rustls::pki_types::TrustAnchor<'_>| {
                root.subject.as_ref() == own.subject
                    && root.subject_public_key_info.as_ref() == own.public_key
            };
            self.roots.roots.iter().any(is_same)
        })
    }
}

/// Returns a clearer error for a refused certificate that is itself in `client_ca`. Any other error is returned
/// unchanged.
fn explain_in_client_ca(error: Error, der: &CertificateDer<'_>) -> Error {
    let is_authority = Certificate::parse(der).is_some_and(|own| own.is_authority);
    match error {
        Error::InvalidCertificate(CertificateError::Other(_)) if is_authority => Refusal::error(
            "the client's certificate is itself in [tls] client_ca and is that of an authority (CA:TRUE), which no \
             client may use: let the authority sign a certificate with CA:FALSE for the client",
        ),
        Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            Refusal::error(
                "the client's certificate is itself in [tls] client_ca, which is for authorities: put the certificate of \
                 its issuer there",
            )
        }
        error => error,
    }
}

impl ClientCertVerifier for CombinedVerifier {
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
        let verified = verified.map_err(|error| match self.is_in_client_ca(end_entity) {
            true => explain_in_client_ca(error, end_entity),
            false => error,
        })?;
        for other in &self.others {
            match other.verifier.verify_client_cert(end_entity, intermediates, now) {
                Err(error) if !(other.ignores_namesake_errors && is_namesake_error(&error)) => {
                    return Err(error);
                }
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

const DAY_S: i64 = 86_400;

/// The time at which certificates are checked: the system's clock, but not earlier than a minimum.
///
/// A board without a battery-backed clock starts with a time in the past. Until its clock is set, every certificate
/// would be "not valid yet". For clients, the minimum is the newest creation of the broker's certificates, of the
/// authorities in `client_ca` and of the lists. For upstreams it is [`KnownTime`], or the start of the own client
/// certificate if that is later (`upstream`).
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Clock {
    /// The minimum in seconds since 1970.
    pub(super) not_before_s: u64,
}

impl Clock {
    /// Returns the time at which certificates are checked, in seconds since 1970.
    pub(super) fn now_s(self) -> u64 {
        system_s().max(self.not_before_s)
    }

    /// Returns whether the system's clock is earlier than the minimum, and therefore wrong.
    pub(super) fn is_behind(self) -> bool {
        system_s() < self.not_before_s
    }
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(self.now_s())))
    }
}

/// Returns the system's clock in seconds since 1970.
pub(super) fn system_s() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Returns the number of days from 1970-01-01 to a date of the Gregorian calendar. The computation lets years begin in
/// March, so that a leap day is the last day of its year.
pub(super) const fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + day_of_year - 719_468
}

/// A time in seconds since 1970, formatted like `2026-11-20 14:03 UTC`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Utc(pub(super) u64);

impl fmt::Display for Utc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A later time is shown as the end of the year 9999.
        let seconds = self.0.min(253_402_300_799) as i64;
        let days = seconds / DAY_S;
        let mut year = 1970 + days / 366;
        while days_since_1970(year + 1, 1, 1) <= days {
            year += 1;
        }
        let mut month = 1;
        while month < 12 && days_since_1970(year, month + 1, 1) <= days {
            month += 1;
        }
        let day = days - days_since_1970(year, month, 1) + 1;
        let (hour, minute) = (seconds % DAY_S / 3_600, seconds % 3_600 / 60);
        write!(f, "{year:04}-{month:02}-{day:02} {hour:02}:{minute:02} UTC")
    }
}

/// The name of the file of [`KnownTime`] in the data directory.
const FILE_NAME: &str = "last-known-time";
/// Minimum difference between the stored time and a new one, in seconds. It limits the writes to the flash card.
const STORE_INTERVAL_S: u64 = 86_400;
/// Maximum number of digits of a number of seconds.
const DIGITS_MAX: u64 = 20;

/// The latest time that is known to have passed, in a file of the data directory. Bridges check certificates at this
/// time or later.
///
/// Without it, a board whose clock starts in 1970 after every power cut would accept an upstream's expired certificate.
/// The time of the clock is plausible, and is stored, when an upstream's certificate is valid at that time.
#[derive(Debug, Default)]
pub struct KnownTime {
    /// `None`: the time is only in memory.
    file: Option<PathBuf>,
    /// Seconds since 1970; `None`: the file was not read yet.
    seconds: Option<u64>,
}

impl KnownTime {
    /// Returns the state for the file in `folder`. The folder need not exist yet.
    pub fn stored_in(folder: &Path) -> Self {
        Self { file: Some(folder.join(FILE_NAME)), seconds: None }
    }

    /// Returns the last known time in seconds since 1970; 0 if there is none. The first call reads the file.
    pub(super) fn seconds(&mut self) -> u64 {
        let file = self.file.as_deref();
        *self.seconds.get_or_insert_with(|| file.map_or(0, read))
    }

    /// Stores the time of a clock at which an upstream's certificate was valid, if that is at least `STORE_INTERVAL_S`
    /// later than the stored time and the clock is not behind its minimum.
    pub(super) fn note(&mut self, clock: Clock) {
        let now_s = clock.now_s();
        if clock.is_behind() || now_s < self.seconds() + STORE_INTERVAL_S {
            return;
        }
        self.seconds = Some(now_s);
        let Some(file) = &self.file else { return };
        if let Err(error) = small_file::write(file, &format!("{now_s}\n")) {
            let shown = file.display();
            log::warn!(
                "{shown} cannot be written ({error}): after a power cut, a board without a battery-backed clock may \
                 accept expired certificates of upstreams"
            );
        }
    }
}

/// Returns the time in the file; 0 if the file is missing or invalid.
fn read(file: &Path) -> u64 {
    small_file::read(file, DIGITS_MAX + 1).and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod clock_tests {
    use super::*;

    #[test]
    fn days_are_those_of_the_calendar() {
        assert_eq!(days_since_1970(1970, 1, 1), 0);
        assert_eq!(days_since_1970(2000, 3, 1), 11_017);
        assert_eq!(days_since_1970(2024, 2, 29), 19_782);
        assert_eq!(days_since_1970(2026, 11, 20), 20_777);
    }

    #[test]
    fn times_are_written_as_dates() {
        assert_eq!(Utc(0).to_string(), "1970-01-01 00:00 UTC");
        assert_eq!(Utc(2_466_633_599).to_string(), "2048-02-29 23:59 UTC");
        assert_eq!(Utc(u64::MAX).to_string(), "9999-12-31 23:59 UTC");
        for day in 0..40_000 {
            let shown = Utc(day * 86_400).to_string();
            let part = |range: core::ops::Range<usize>| shown[range].parse::<i64>().unwrap();
            assert_eq!(days_since_1970(part(0..4), part(5..7), part(8..10)), day as i64);
        }
    }

    #[test]
    fn the_time_is_never_before_the_minimum() {
        let year_3000 = 32_503_680_000;
        let clock = Clock { not_before_s: year_3000 };
        assert!(clock.is_behind() && clock.now_s() == year_3000);
        let clock = Clock { not_before_s: 0 };
        assert!(!clock.is_behind() && clock.now_s() > 1_700_000_000);
    }
}

#[cfg(test)]
mod known_time_tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_known_time_is_stored_and_never_becomes_earlier() {
        let folder = std::env::temp_dir().join(format!("leveret-known-time-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let mut known = KnownTime::stored_in(&folder);
        assert_eq!(known.seconds(), 0, "no time is known at first");
        known.note(Clock { not_before_s: 0 });
        let noted = known.seconds();
        assert!(noted > 1_700_000_000);
        assert_eq!(KnownTime::stored_in(&folder).seconds(), noted, "the time is stored");
        let file = folder.join(FILE_NAME);
        // A day must pass before it is written again.
        fs::remove_file(&file).unwrap();
        known.note(Clock { not_before_s: 0 });
        assert!(!file.exists());
        // A clock that is certainly wrong is ignored.
        let mut before = KnownTime::stored_in(&folder);
        before.note(Clock { not_before_s: system_s() + 1_000 });
        assert!(!file.exists() && before.seconds() == 0);
        for text in ["", "-1", "soon", "99999999999999999999999999"] {
            fs::write(&file, text).unwrap();
            assert_eq!(KnownTime::stored_in(&folder).seconds(), 0, "{text}");
        }
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(KnownTime::default().seconds(), 0);
    }
}
