//! Verification of client certificates, the current time, and the last known time.
//!
//! # Invariants
//! - A client certificate is valid only if every verifier of [`Unanimous`] accepts it.
//! - The time used is the clock's or later. That never makes an expired certificate valid.
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

/// A set of verifiers that all have to agree.
///
/// If several revocation lists have the name of one authority, rustls uses the first and ignores the others. If
/// that one belongs to another authority of the same name, rustls refuses every certificate. A list that shares
/// its name is therefore checked by a verifier of its own, which can only refuse.
#[derive(Debug)]
pub(super) struct Unanimous {
    pub(super) first: Arc<dyn ClientCertVerifier>,
    pub(super) others: Vec<Judge>,
    /// The authorities in `client_ca`.
    pub(super) roots: Arc<RootCertStore>,
}

/// A refusal as a text that says what to change.
#[derive(Debug)]
pub(super) struct Refusal(pub(super) String);

impl core::fmt::Display for Refusal {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(&self.0)
    }
}

impl core::error::Error for Refusal {}

impl Refusal {
    /// Wraps the text into an error that rustls passes on.
    pub(super) fn error(words: &str) -> Error {
        CertificateError::Other(OtherError(Arc::new(Self(words.to_string())))).into()
    }

    /// Returns the text of such an error.
    pub(super) fn of(error: &Error) -> Option<&str> {
        let Error::InvalidCertificate(CertificateError::Other(OtherError(other))) = error else {
            return None;
        };
        other.downcast_ref::<Self>().map(|refusal| &*refusal.0)
    }
}

/// Explains errors that only webpki has names for, for the certificate of a client or of a server.
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

/// The verifier for one list.
#[derive(Debug)]
pub(super) struct Judge {
    pub(super) verifier: Arc<dyn ClientCertVerifier>,
    /// Whether the list is signed by a known authority. If that is not the issuer of the certificate, it is another
    /// authority of the same name.
    pub(super) may_be_of_namesake: bool,
}

/// Returns whether the error comes from a list or authority of the same name that is not the issuer's. A
/// revocation takes precedence if both occur.
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
    /// Returns whether a client's certificate is itself in `client_ca`, where its authority should be.
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

/// Explains why a certificate in `client_ca` is refused nevertheless.
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

const DAY_S: i64 = 86_400;

/// The system's clock, but never earlier than a known time.
///
/// A board without a battery-backed clock starts at a time in the past. Until it gets the right time, every
/// client certificate would be "not valid yet". But the time is not earlier than the creation of the broker's own
/// certificates, so that is the minimum.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Clock {
    /// The minimum in seconds since 1970.
    pub(super) not_before_s: u64,
}

impl Clock {
    /// Returns the time in seconds since 1970.
    pub(super) fn now_s(self) -> u64 {
        system_s().max(self.not_before_s)
    }

    /// Returns whether the system's clock is certainly wrong.
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

/// Returns the days from 1970 to a date of the Gregorian calendar. The year begins in March, so leap days come
/// last.
pub(super) const fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + day_of_year - 719_468
}

/// A time in seconds since 1970 that is formatted like `2026-11-20 14:03 UTC`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Utc(pub(super) u64);

impl fmt::Display for Utc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Dates beyond the year 9999 are not supported.
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

/// The name of the file in the data directory.
const FILE_NAME: &str = "last-known-time";
/// The file is written again when the time is this much later, in seconds.
const WORTH_S: u64 = 86_400;
/// Maximum number of digits of a number of seconds.
const DIGITS_MAX: u64 = 20;

/// The last known time, in a file of the data directory.
///
/// On a board whose clock starts in 1970, an expired certificate of an upstream would be valid again after every
/// power cut. If the certificate of an upstream is valid at the clock's time, that time is plausible and is
/// stored.
#[derive(Debug, Default)]
pub struct KnownTime {
    /// `None`: it is not stored.
    file: Option<PathBuf>,
    /// Seconds since 1970; `None`: the file was not read yet.
    seconds: Option<u64>,
}

impl KnownTime {
    /// Uses a file in this folder, which need not exist yet.
    pub fn kept_in(folder: &Path) -> Self {
        Self { file: Some(folder.join(FILE_NAME)), seconds: None }
    }

    /// Returns the seconds since 1970; 0 if unknown.
    pub(super) fn seconds(&mut self) -> u64 {
        let file = self.file.as_deref();
        *self.seconds.get_or_insert_with(|| file.map_or(0, read))
    }

    /// Stores the time of a clock at which a certificate was valid.
    pub(super) fn note(&mut self, clock: Clock) {
        let now_s = clock.now_s();
        if clock.is_behind() || now_s < self.seconds() + WORTH_S {
            return;
        }
        self.seconds = Some(now_s);
        let Some(file) = &self.file else { return };
        if let Err(error) = small_file::write(file, &format!("{now_s}\n")) {
            let shown = file.display();
            log::warn!(
                "{shown} cannot be written ({error}): after a restart without a clock the time is not known"
            );
        }
    }
}

/// Returns the content of the file; 0 if there is none or it is invalid.
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
    fn the_time_is_never_before_what_is_known() {
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
    fn it_is_kept_over_a_restart_and_never_becomes_earlier() {
        let folder = std::env::temp_dir().join(format!("leveret-known-time-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let mut known = KnownTime::kept_in(&folder);
        assert_eq!(known.seconds(), 0, "nothing is known at first");
        known.note(Clock { not_before_s: 0 });
        let noted = known.seconds();
        assert!(noted > 1_700_000_000);
        assert_eq!(KnownTime::kept_in(&folder).seconds(), noted, "it outlives the process");
        let file = folder.join(FILE_NAME);
        // A day must pass before it is written again.
        fs::remove_file(&file).unwrap();
        known.note(Clock { not_before_s: 0 });
        assert!(!file.exists());
        // A clock that is certainly wrong is ignored.
        let mut before = KnownTime::kept_in(&folder);
        before.note(Clock { not_before_s: system_s() + 1_000 });
        assert!(!file.exists() && before.seconds() == 0);
        for text in ["", "-1", "soon", "99999999999999999999999999"] {
            fs::write(&file, text).unwrap();
            assert_eq!(KnownTime::kept_in(&folder).seconds(), 0, "{text}");
        }
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(KnownTime::default().seconds(), 0);
    }
}
