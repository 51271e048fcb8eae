//! Certificates and keys: from the configured files to rustls' configuration.
//!
//! # Invariants
//! - An error names the configuration key, the path, and what to do. The content of a file is never shown,
//!   because it may be a private key under the wrong key of the configuration.
//! - What is in use stays in use until everything new is valid.

use std::fs::{File, Metadata};
use std::io::{self, Read, Take};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fmt, fs};

use leveret_config::BYTE_ORDER_MARK;
use leveret_config::transports::{ClientCertificates, LoginFrom, Tls, TlsVersion};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{
    ClientHello, NoServerSessionStorage, ResolvesServerCert, VerifierBuilderError, WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::{InconsistentKeys, RootCertStore, ServerConfig, version};

use super::der::{AlternativeName, Certificate};
use super::handshake;
use super::revoked::Revoked;
use super::verifier::{Clock, Utc, system_s};
use super::verifier::{Judge, Unanimous};

/// Maximum size of a certificate chain in bytes. It is sent in every full handshake, from a buffer of the
/// connection.
const CHAIN_BYTES_MAX: usize = 12 << 10;
/// Minimum time between two looks at the files; they are looked at when a client connects.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Everything loaded from the files.
#[derive(Clone, Debug)]
struct Loaded {
    server: Arc<ServerConfig>,
    clock: Clock,
    /// When the first of the certificates expires, in seconds since 1970.
    end_s: u64,
}

/// The consequence when no certificate can be used.
const SHUT: &str = "nobody comes in by TLS until that file can be used; the rest is served";

/// Identifies a version of a file.
type Stamp = Option<(u64, u64, i64, i64, u64)>;

/// The certificates in use; reads them again when the files change. It belongs to the helper thread that runs
/// handshakes.
#[derive(Debug)]
pub struct CertificateStore {
    tls: Tls,
    /// `None`: there is no valid certificate yet, so clients with TLS are refused.
    loaded: Option<Loaded>,
    stamps: Vec<Stamp>,
    looked: Instant,
}

impl CertificateStore {
    /// Reads the files.
    ///
    /// # Errors
    /// The error in one of them.
    pub fn open(tls: &Tls) -> Result<Self, TlsError> {
        let stamps = stamps(tls);
        Ok(Self { tls: tls.clone(), loaded: Some(load(tls)?), stamps, looked: Instant::now() })
    }

    /// Reads the files at a start. A file that was damaged by a power cut must not prevent other listeners and
    /// bridges from working. With an unusable file, clients with TLS are refused until it can be used, and the
    /// returned text says so.
    ///
    /// # Errors
    /// The error in the configuration itself.
    pub fn open_or_wait(tls: &Tls) -> Result<(Self, Option<String>), TlsError> {
        let stamps = stamps(tls);
        match Self::open(tls) {
            Err(error) if error.is_of_file => {
                let shut = Self { tls: tls.clone(), loaded: None, stamps, looked: Instant::now() };
                Ok((shut, Some(format!("{error}; {SHUT}"))))
            }
            opened => opened.map(|certificates| (certificates, None)),
        }
    }

    /// Returns whether clients are refused because there is no valid certificate.
    pub const fn is_shut(&self) -> bool {
        self.loaded.is_none()
    }

    /// Returns when the first of the certificates expires, in seconds since 1970; 0 when there is none.
    pub fn end_s(&self) -> u64 {
        self.loaded.as_ref().map_or(0, |loaded| loaded.end_s)
    }

    /// Returns the configuration for a new connection, if there is one. Looks at the files if the last look was some
    /// time ago.
    pub(super) fn current(&mut self) -> Option<Arc<ServerConfig>> {
        self.look_again();
        self.loaded.as_ref().map(|loaded| loaded.server.clone())
    }

    /// Reads the files again if they have changed, at most once per `LOOK_AGAIN`.
    pub fn look_again(&mut self) {
        if self.looked.elapsed() >= LOOK_AGAIN {
            self.looked = Instant::now();
            let stamps = stamps(&self.tls);
            if stamps != self.stamps {
                log::info!("the files of [tls] have changed");
                self.read_again(&self.tls.clone(), stamps);
            }
        }
    }

    /// Reads everything again with a changed configuration. Returns whether it is in use now. Existing connections
    /// are not affected.
    pub fn reload(&mut self, tls: &Tls) -> bool {
        let stamps = stamps(tls);
        self.read_again(tls, stamps)
    }

    fn read_again(&mut self, tls: &Tls, stamps: Vec<Stamp>) -> bool {
        self.stamps = stamps;
        match load(tls) {
            Ok(loaded) => {
                self.tls = tls.clone();
                self.loaded = Some(loaded);
                log::info!("certificates were read again; new connections get them");
                true
            }
            Err(error) => {
                let then = if self.is_shut() { SHUT } else { "what was read before stays in use" };
                log::error!("{error}; {then}");
                false
            }
        }
    }

    pub(super) fn clock(&self) -> Clock {
        self.loaded.as_ref().map_or(Clock { not_before_s: 0 }, |loaded| loaded.clock)
    }

    /// Returns the user name in a valid certificate; `None` if it has no name of the configured kind.
    pub(super) fn login(&self, certificate: &Certificate<'_>) -> Option<String> {
        let kind = match self.tls.login_from {
            LoginFrom::CommonName => {
                // RabbitMQ joins several common names to one user name.
                let names: Vec<&str> = certificate.common_names().collect();
                return (!names.is_empty()).then(|| names.join(","));
            }
            LoginFrom::DistinguishedName => return certificate.distinguished_name(),
            LoginFrom::Dns => AlternativeName::Dns,
            LoginFrom::Email => AlternativeName::Email,
            LoginFrom::Uri => AlternativeName::Uri,
        };
        certificate.alternative_names(kind).next().map(str::to_string)
    }
}

fn stamps(tls: &Tls) -> Vec<Stamp> {
    let stamp = |path: &PathBuf| {
        let found = fs::metadata(resolve(path)).ok()?;
        Some((found.dev(), found.ino(), found.ctime(), found.ctime_nsec(), found.size()))
    };
    tls.certificates.iter().chain(&tls.keys).chain(&tls.client_ca).chain(&tls.crls).map(stamp).collect()
}

fn holds(text: &[u8], mark: &str) -> bool {
    text.windows(mark.len()).any(|window| window == mark.as_bytes())
}

fn read_certificates(key: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let (text, _) = read(key, path)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let why = match chain {
        Err(_) => "is damaged: its lines are not those of a PEM file",
        Ok(chain) if chain.is_empty() && holds(&text, "PRIVATE KEY-----") => {
            "holds a private key and no certificate; certificate and key may be the wrong way round"
        }
        Ok(chain) if chain.is_empty() => {
            "holds no certificate in PEM form (-----BEGIN CERTIFICATE-----); `openssl x509 -inform der` \
             makes it of a DER file"
        }
        Ok(chain) if chain.iter().any(|der| Certificate::parse(der).is_none()) => {
            "holds something that is no certificate of X.509"
        }
        Ok(chain) => return Ok(chain),
    };
    Err(TlsError::new(key, path, why))
}

fn read_key(key: &str, path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let (text, found) = read(key, path)?;
    if found.mode() & 0o004 != 0 {
        log::warn!(
            "{key}: {} may be read by everybody on this machine; chmod o-r it, and think of making a new \
             key",
            path.display()
        );
    }
    let why = match PrivateKeyDer::from_pem_slice(&text) {
        _ if holds(&text, "ENCRYPTED") => {
            "is encrypted, and there is nobody to type its password when the broker starts; \
             `openssl pkey` writes it out without"
        }
        Ok(key) => return Ok(key),
        Err(_) if holds(&text, "BEGIN CERTIFICATE") => {
            "holds a certificate and no private key; certificate and key may be the wrong way round"
        }
        Err(_) => "holds no private key in PEM form (-----BEGIN PRIVATE KEY-----)",
    };
    Err(TlsError::new(key, path, why))
}

/// How errors name a certificate and its key: section and key of the configuration.
type PairKeys = [&'static str; 2];

pub(super) fn read_pair(
    provider: &CryptoProvider,
    [certificate_key, key_key]: PairKeys,
    (certificate, key): (&Path, &Path),
) -> Result<Arc<CertifiedKey>, TlsError> {
    let chain = read_certificates(certificate_key, certificate)?;
    if chain.iter().map(|der| der.len()).sum::<usize>() > CHAIN_BYTES_MAX {
        let why = format!(
            "holds more than {CHAIN_BYTES_MAX} bytes of certificates, which go to every client; leave out \
             those that clients have anyway"
        );
        return Err(TlsError::new(certificate_key, certificate, why));
    }
    let private = provider.key_provider.load_private_key(read_key(key_key, key)?).map_err(|_| {
        let why = "is a key of a kind that is not supported; P-256 is best, P-384, Ed25519 and RSA from 2048 \
                   bits on will do";
        TlsError::new(key_key, key, why)
    })?;
    let pair = CertifiedKey::new(chain, private);
    match pair.keys_match() {
        Err(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
            let why = format!("is not the key of the certificate in {}", certificate.display());
            Err(TlsError::new(key_key, key, why))
        }
        // A type of key whose public half cannot be computed is accepted.
        _ => Ok(Arc::new(pair)),
    }
}

/// Chooses the certificate for the name that a client asks for, or else the first.
#[derive(Debug)]
struct ByName {
    first: Arc<CertifiedKey>,
    others: Vec<Arc<CertifiedKey>>,
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().unwrap_or_default();
        let is_for = |pair: &Arc<CertifiedKey>| is_made_out_to(pair, name);
        let others = self.others.iter();
        Some(
            if is_for(&self.first) {
                &self.first
            } else {
                others.into_iter().find(|pair| is_for(pair)).unwrap_or(&self.first)
            }
            .clone(),
        )
    }
}

fn is_made_out_to(pair: &CertifiedKey, name: &str) -> bool {
    let certificate = pair.cert.first().and_then(|der| Certificate::parse(der));
    certificate.is_some_and(|certificate| {
        certificate.alternative_names(AlternativeName::Dns).any(|pattern| matches_name(pattern, name))
    })
}

/// Returns whether a name matches that of a certificate, whose leftmost label may be `*`.
fn matches_name(pattern: &str, name: &str) -> bool {
    match pattern.strip_prefix("*.") {
        Some(domain) => name.split_once('.').is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(domain)),
        None => pattern.eq_ignore_ascii_case(name),
    }
}

/// The certificates of `[tls]`.
const OWN: PairKeys = ["[tls] certificate", "[tls] key"];

fn load(tls: &Tls) -> Result<Loaded, TlsError> {
    let provider = Arc::new(handshake::provider());
    if tls.certificates.is_empty() {
        return Err(TlsError::said("[tls] certificate: name the PEM file of a certificate, which TLS needs"));
    }
    if tls.certificates.len() != tls.keys.len() {
        let (certificates, keys) = (tls.certificates.len(), tls.keys.len());
        let why = format!("[tls] key: name one file per certificate; there are {certificates} and {keys}");
        return Err(TlsError::said(why));
    }
    let pairs = tls.certificates.iter().zip(&tls.keys);
    let pairs: Result<Vec<_>, _> =
        pairs.map(|(chain, key)| read_pair(&provider, OWN, (chain, key))).collect();
    let mut pairs = pairs?;
    let authorities = match &tls.client_ca {
        Some(path) => read_certificates("[tls] client_ca", path)?,
        None => Vec::new(),
    };
    let mut revoked = Revoked::read(&tls.crls)?;
    revoked.attribute(&authorities, provider.signature_verification_algorithms.all)?;
    let own = || pairs.iter().filter_map(|pair| Certificate::parse(pair.cert.first()?));
    let end_s = own().map(|certificate| certificate.not_after).min().unwrap_or(0);
    let ours = pairs.iter().flat_map(|pair| pair.cert.first()).chain(&authorities);
    let made = ours.filter_map(|der| Certificate::parse(der)).map(|certificate| certificate.not_before);
    let clock = Clock { not_before_s: made.max().unwrap_or(0).max(revoked.made_s()) };
    revoked.tell(&authorities, clock);
    for (pair, path) in pairs.iter().zip(&tls.certificates) {
        log_validity(pair, path, clock);
    }
    let versions: &[&rustls::SupportedProtocolVersion] = match tls.minimum_version {
        TlsVersion::Tls12 => &[&version::TLS13, &version::TLS12],
        TlsVersion::Tls13 => &[&version::TLS13],
    };
    let failed = |error: &dyn fmt::Display| TlsError::said(format!("[tls] cannot be set up: {error}"));
    let builder = ServerConfig::builder_with_details(provider.clone(), Arc::new(clock))
        .with_protocol_versions(versions)
        .map_err(|error| failed(&error))?;
    let builder = match tls.client_certificates {
        ClientCertificates::None if !revoked.is_empty() => {
            return Err(TlsError::said(
                "[tls] crl: names lists of revoked certificates, but client_certificates is \"none\": nobody \
                 is asked for any; write \"require\" or \"allow\", or leave crl out",
            ));
        }
        ClientCertificates::None => builder.with_no_client_auth(),
        how => builder.with_client_cert_verifier(verifier(tls, how, authorities, revoked, provider)?),
    };
    let first = pairs.remove(0);
    let mut server = builder.with_cert_resolver(Arc::new(ByName { first, others: pairs }));
    // Clients keep their sessions, encrypted with a key that is renewed with every reading of the files. No session
    // is stored here, and none outlives the certificates that it was begun with.
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.ticketer = rustls::crypto::ring::Ticketer::new().map_err(|error| failed(&error))?;
    server.send_tls13_tickets = 1;
    server.ignore_client_order = !handshake::has_aes();
    Ok(Loaded { server: Arc::new(server), clock, end_s })
}

fn verifier(
    tls: &Tls,
    how: ClientCertificates,
    authorities: Vec<CertificateDer<'static>>,
    revoked: Revoked,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>, TlsError> {
    let Some(path) = &tls.client_ca else {
        let why = format!("[tls] client_ca: name the authorities, which client_certificates = {how} needs");
        return Err(TlsError::said(why));
    };
    let sets = revoked.sets(&authorities);
    let mut roots = RootCertStore::empty();
    for der in authorities {
        roots
            .add(der)
            .map_err(|_| TlsError::new("[tls] client_ca", path, "holds a certificate that is damaged"))?;
    }
    let roots = Arc::new(roots);
    let judge = |lists| {
        // Lists are used beyond their time, and an authority without a list has revoked nothing; see `revoked`.
        let builder = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .with_crls(lists)
            .allow_unknown_revocation_status();
        let builder =
            if how == ClientCertificates::Allow { builder.allow_unauthenticated() } else { builder };
        builder.build().map_err(|error| match error {
            VerifierBuilderError::InvalidCrl(why) => {
                // The first file, because rustls does not say which one it is.
                let file = tls.crls.first().unwrap_or(path);
                TlsError::new("[tls] crl", file, format_args!("or another list cannot be used: {why:?}"))
            }
            error => TlsError::new("[tls] client_ca", path, error),
        })
    };
    let first = judge(sets.alone)?;
    let others = sets.sharing.into_iter().map(|sharing| {
        let may_be_of_namesake = sharing.is_known;
        Ok(Judge { verifier: judge(vec![sharing.list])?, may_be_of_namesake })
    });
    let others = others.collect::<Result<Vec<_>, TlsError>>()?;
    Ok(Arc::new(Unanimous { first, others, roots }))
}

/// Logs when clients will not accept the certificate, or when the clock is certainly wrong.
fn log_validity(pair: &CertifiedKey, path: &Path, clock: Clock) {
    let Some(certificate) = pair.cert.first().and_then(|der| Certificate::parse(der)) else { return };
    let (path, until) = (path.display(), Utc(certificate.not_after));
    if clock.now_s() > certificate.not_after {
        log::error!(
            "[tls] certificate: {path} was good until {until} only: clients will refuse it; renew it"
        );
    } else if clock.is_behind() {
        log::warn!(
            "the clock of this machine says {}, but {path} is good from {} on: until the clock is set, \
             clients' certificates are judged by the later of the two",
            Utc(system_s()),
            Utc(certificate.not_before)
        );
    } else {
        log::info!("[tls] certificate: {path} is good until {until}");
    }
    let flaw = if !certificate.is_version_3 {
        "is of X.509 version 1: make it with an extension (`openssl x509 -req -extfile`), such as subjectAltName"
    } else if certificate.is_authority {
        "is one of an authority (CA:TRUE): have that sign one for this broker, with CA:FALSE"
    } else if !certificate.names_a_host() {
        "names no host and no address, and a common name does not count: make it with subjectAltName"
    } else {
        return;
    };
    log::warn!("[tls] certificate: many clients will refuse it, for {path} {flaw}");
}

/// Maximum size of a file in bytes, larger than any chain or list of authorities.
const FILE_BYTES_MAX: u64 = 512 << 10;

/// Why there is no TLS: one sentence that says what to change.
#[derive(Debug)]
pub struct TlsError {
    why: String,
    /// Whether the content of a file is wrong, and not the configuration.
    pub(super) is_of_file: bool,
}

impl TlsError {
    /// Makes an error of a file; `key` names section and key.
    pub(super) fn new(key: &str, path: &Path, why: impl fmt::Display) -> Self {
        Self { why: format!("{key}: {} {why}", path.display()), is_of_file: true }
    }

    /// Makes an error of the configuration.
    pub(super) fn said(why: impl Into<String>) -> Self {
        Self { why: why.into(), is_of_file: false }
    }
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

/// Resolves a path. A bare name is a credential of the systemd unit, if there is one.
pub(super) fn resolve(path: &Path) -> PathBuf {
    let is_bare = path.file_name() == Some(path.as_os_str());
    let folder = std::env::var_os("CREDENTIALS_DIRECTORY").filter(|_| is_bare);
    folder.map(|folder| Path::new(&folder).join(path)).filter(|path| path.exists()).unwrap_or(path.into())
}

/// Reads a file completely.
pub(super) fn read(key: &str, path: &Path) -> Result<(Vec<u8>, Metadata), TlsError> {
    let resolved = resolve(path);
    let (file, found) = open(key, &resolved)?;
    let mut text = Vec::new();
    file.take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut text)
        .map_err(|error| unreadable(key, &resolved, &error))?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(TlsError::new(key, &resolved, "is larger than any such file; name the PEM file"));
    }
    if text.starts_with(BYTE_ORDER_MARK) {
        text.drain(..BYTE_ORDER_MARK.len());
    }
    Ok((text, found))
}

/// Opens a file for reading piece by piece, up to [`FILE_BYTES_MAX`].
pub(super) fn open_bounded(key: &str, path: &Path) -> Result<Take<File>, TlsError> {
    Ok(open(key, &resolve(path))?.0.take(FILE_BYTES_MAX))
}

fn unreadable(key: &str, path: &Path, error: &io::Error) -> TlsError {
    let why = match error.kind() {
        io::ErrorKind::NotFound => "does not exist; name the PEM file".to_string(),
        io::ErrorKind::PermissionDenied => {
            "may not be read by the user that the broker runs as; give it that right, or use a systemd \
             credential (LoadCredential=)"
                .to_string()
        }
        _ => format!("cannot be read ({error})"),
    };
    TlsError::new(key, path, why)
}

fn open(key: &str, path: &Path) -> Result<(File, Metadata), TlsError> {
    let failed = |error: io::Error| unreadable(key, path, &error);
    // Opening a pipe must not wait for its writer.
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = File::options().read(true).custom_flags(nonblocking).open(path).map_err(failed)?;
    let found = file.metadata().map_err(failed)?;
    if !found.is_file() {
        return Err(TlsError::new(key, path, "is no file; name the PEM file itself"));
    }
    Ok((file, found))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_one_label() {
        assert!(matches_name("a.example", "A.example"));
        assert!(matches_name("*.example", "a.example"));
        for (pattern, name) in [("*.example", "a.b.example"), ("*.example", "example"), ("a.example", "")] {
            assert!(!matches_name(pattern, name), "{pattern} {name}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let refused = |tls: &Tls| load(tls).map(|_| ()).unwrap_err().to_string();
        let mut tls = Tls::default();
        assert!(refused(&tls).starts_with("[tls] certificate: name the PEM file"), "{}", refused(&tls));
        tls.certificates.push("/no/such.pem".into());
        assert!(refused(&tls).starts_with("[tls] key: name one file per certificate"));
        tls.keys.push("/dev/null".into());
        assert_eq!(refused(&tls), "[tls] certificate: /no/such.pem does not exist; name the PEM file");
        for (path, why) in
            [("/", "is no file"), ("/dev/zero", "is no file"), ("/proc/self/status", "holds no")]
        {
            tls.certificates = vec![path.into()];
            assert!(refused(&tls).contains(why), "{}", refused(&tls));
        }
    }
}
