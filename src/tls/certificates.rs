//! The broker's certificates and keys: loads the configured files into a configuration of rustls, and reloads them.
//!
//! # Invariants
//! - An error contains the configuration key, the path, and what to do. It never quotes the content of a file, because a
//!   mistake in the configuration may name the file of a private key.
//! - The loaded certificates stay in use until all changed files are valid.

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
use super::revoked::RevocationLists;
use super::verifier::{Clock, Utc, system_s};
use super::verifier::{CombinedVerifier, SingleListVerifier};

/// Maximum size of a certificate chain in bytes. The chain is sent in every full handshake, from a buffer of the
/// connection.
const CHAIN_BYTES_MAX: usize = 12 << 10;
/// Minimum time between two checks whether the files have changed. A connecting client causes a check.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// What was loaded from the files.
#[derive(Clone, Debug)]
struct Loaded {
    server: Arc<ServerConfig>,
    clock: Clock,
    /// When the first of the broker's certificates expires, in seconds since 1970.
    expiry_s: u64,
}

/// The consequence of a file that cannot be used, for errors at the start.
const TLS_UNAVAILABLE: &str =
    "connections with TLS are refused until the file can be used; everything else works";

/// Identifies a version of a file: device, inode, change time in seconds and nanoseconds, size. `None`: the file cannot
/// be accessed.
type Stamp = Option<(u64, u64, i64, i64, u64)>;

/// The broker's certificates. They are reloaded when the files change. The store is used only by the helper thread that
/// runs handshakes.
#[derive(Debug)]
pub struct CertificateStore {
    tls: Tls,
    /// `None`: the files could not be used since the start, so connections with TLS are refused.
    loaded: Option<Loaded>,
    /// The version of each file when the files were last read.
    stamps: Vec<Stamp>,
    last_check: Instant,
}

impl CertificateStore {
    /// Loads the files.
    ///
    /// # Errors
    /// The configuration is incomplete, or a file cannot be used.
    pub fn open(tls: &Tls) -> Result<Self, TlsError> {
        let stamps = stamps(tls);
        Ok(Self { tls: tls.clone(), loaded: Some(load(tls)?), stamps, last_check: Instant::now() })
    }

    /// Loads the files at the start of the broker. If a file cannot be used, the store has no certificates until it can
    /// be, and the returned text is an error for the log. So a file that a power cut has damaged does not prevent other
    /// listeners and bridges from working.
    ///
    /// # Errors
    /// The configuration is incomplete.
    pub fn open_or_unavailable(tls: &Tls) -> Result<(Self, Option<String>), TlsError> {
        let stamps = stamps(tls);
        match Self::open(tls) {
            Err(error) if error.is_of_file => {
                let unavailable = Self { tls: tls.clone(), loaded: None, stamps, last_check: Instant::now() };
                Ok((unavailable, Some(format!("{error}; {TLS_UNAVAILABLE}"))))
            }
            opened => opened.map(|certificates| (certificates, None)),
        }
    }

    /// Returns whether connections with TLS are refused because no valid certificate was loaded.
    pub const fn is_unavailable(&self) -> bool {
        self.loaded.is_none()
    }

    /// Returns when the first of the broker's certificates expires, in seconds since 1970; 0 if none is loaded.
    pub fn expiry_s(&self) -> u64 {
        self.loaded.as_ref().map_or(0, |loaded| loaded.expiry_s)
    }

    /// Returns the configuration of rustls for a new connection; `None` if [`Self::is_unavailable`]. First reloads the
    /// files if they have changed.
    pub(super) fn current(&mut self) -> Option<Arc<ServerConfig>> {
        self.reload_if_changed();
        self.loaded.as_ref().map(|loaded| loaded.server.clone())
    }

    /// Reloads the files if they have changed. Checks that at most once per `CHECK_INTERVAL`.
    pub fn reload_if_changed(&mut self) {
        if self.last_check.elapsed() >= CHECK_INTERVAL {
            self.last_check = Instant::now();
            let stamps = stamps(&self.tls);
            if stamps != self.stamps {
                log::info!("the files of [tls] have changed");
                self.load_or_keep(&self.tls.clone(), stamps);
            }
        }
    }

    /// Loads the files of a changed configuration. Returns whether they are in use now: if one cannot be used, the old
    /// ones stay in use. Existing connections are not affected.
    pub fn reload(&mut self, tls: &Tls) -> bool {
        let stamps = stamps(tls);
        self.load_or_keep(tls, stamps)
    }

    /// Loads the files and uses them for new connections. If one cannot be used, logs the error, keeps the loaded ones
    /// and returns `false`.
    fn load_or_keep(&mut self, tls: &Tls, stamps: Vec<Stamp>) -> bool {
        self.stamps = stamps;
        match load(tls) {
            Ok(loaded) => {
                self.tls = tls.clone();
                self.loaded = Some(loaded);
                log::info!("certificates were read again; new connections use them");
                true
            }
            Err(error) => {
                let consequence = if self.is_unavailable() {
                    TLS_UNAVAILABLE
                } else {
                    "the certificates read before stay in use"
                };
                log::error!("{error}; {consequence}");
                false
            }
        }
    }

    /// Returns the time for checking client certificates.
    pub(super) fn clock(&self) -> Clock {
        self.loaded.as_ref().map_or(Clock { not_before_s: 0 }, |loaded| loaded.clock)
    }

    /// Returns the user name in a valid client certificate: the field that `login_from` names. `None` if the
    /// certificate does not have this field.
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

/// Returns the current version of each configured file.
fn stamps(tls: &Tls) -> Vec<Stamp> {
    let stamp = |path: &PathBuf| {
        let found = fs::metadata(resolve(path)).ok()?;
        Some((found.dev(), found.ino(), found.ctime(), found.ctime_nsec(), found.size()))
    };
    tls.certificates.iter().chain(&tls.keys).chain(&tls.client_ca).chain(&tls.crls).map(stamp).collect()
}

/// Returns whether the content of a file contains `part`.
fn contains(text: &[u8], part: &str) -> bool {
    text.windows(part.len()).any(|window| window == part.as_bytes())
}

/// Reads all certificates of a PEM file. `key` is the configuration key for errors.
///
/// # Errors
/// The file cannot be read, or contains something other than valid certificates.
fn read_certificates(key: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let (text, _) = read(key, path)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let why = match chain {
        Err(_) => "is damaged: it is not a valid PEM file",
        Ok(chain) if chain.is_empty() && contains(&text, "PRIVATE KEY-----") => {
            "contains a private key and no certificate; certificate and key may be interchanged"
        }
        Ok(chain) if chain.is_empty() => {
            "contains no certificate in PEM format (-----BEGIN CERTIFICATE-----); `openssl x509 -inform der` \
             converts a DER file"
        }
        Ok(chain) if chain.iter().any(|der| Certificate::parse(der).is_none()) => {
            "contains something that is not a certificate of X.509"
        }
        Ok(chain) => return Ok(chain),
    };
    Err(TlsError::new(key, path, why))
}

/// Reads a private key from a PEM file. Logs a warning if all users of the machine can read the file. `key` is the
/// configuration key for errors.
///
/// # Errors
/// The file cannot be read, or contains no unencrypted private key.
fn read_key(key: &str, path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let (text, found) = read(key, path)?;
    if found.mode() & 0o004 != 0 {
        log::warn!(
            "{key}: all users of this machine can read {}; run chmod o-r on the file, and consider making a new \
             key",
            path.display()
        );
    }
    let why = match PrivateKeyDer::from_pem_slice(&text) {
        _ if contains(&text, "ENCRYPTED") => {
            "is encrypted, and the broker cannot ask for the password when it starts; `openssl pkey` writes the key \
             unencrypted"
        }
        Ok(key) => return Ok(key),
        Err(_) if contains(&text, "BEGIN CERTIFICATE") => {
            "contains a certificate and no private key; certificate and key may be interchanged"
        }
        Err(_) => "contains no private key in PEM format (-----BEGIN PRIVATE KEY-----)",
    };
    Err(TlsError::new(key, path, why))
}

/// The configuration keys of a certificate and of its private key, for errors.
type PairKeys = [&'static str; 2];

/// Reads a certificate with its chain, and its private key.
///
/// # Errors
/// A file cannot be used, the chain is too long, or the two do not belong together.
pub(super) fn read_pair(
    provider: &CryptoProvider,
    [certificate_key, key_key]: PairKeys,
    certificate: &Path,
    key: &Path,
) -> Result<Arc<CertifiedKey>, TlsError> {
    let chain = read_certificates(certificate_key, certificate)?;
    if chain.iter().map(|der| der.len()).sum::<usize>() > CHAIN_BYTES_MAX {
        let why = format!(
            "contains more than {CHAIN_BYTES_MAX} bytes of certificates, which are sent to every client; leave out \
             those that clients have anyway, such as the root authority"
        );
        return Err(TlsError::new(certificate_key, certificate, why));
    }
    let private = provider.key_provider.load_private_key(read_key(key_key, key)?).map_err(|_| {
        let why = "is a key of an unsupported type; P-256 is best, and P-384, Ed25519 and RSA from 2048 bits on are \
                   supported";
        TlsError::new(key_key, key, why)
    })?;
    let pair = CertifiedKey::new(chain, private);
    match pair.keys_match() {
        Err(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
            let why = format!("is not the key of the certificate in {}", certificate.display());
            Err(TlsError::new(key_key, key, why))
        }
        // If the public key cannot be computed from this type of private key, the pair is accepted unchecked.
        _ => Ok(Arc::new(pair)),
    }
}

/// Chooses the certificate for the server name that a client sends (SNI). Without a matching one, it is the first.
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

/// Returns whether a certificate contains a host name that matches `name`.
fn is_made_out_to(pair: &CertifiedKey, name: &str) -> bool {
    let certificate = pair.cert.first().and_then(|der| Certificate::parse(der));
    certificate.is_some_and(|certificate| {
        certificate.alternative_names(AlternativeName::Dns).any(|pattern| matches_name(pattern, name))
    })
}

/// Returns whether a host name matches a name in a certificate. The leftmost label of the latter may be `*`.
fn matches_name(pattern: &str, name: &str) -> bool {
    match pattern.strip_prefix("*.") {
        Some(domain) => name.split_once('.').is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(domain)),
        None => pattern.eq_ignore_ascii_case(name),
    }
}

/// The configuration keys of the broker's certificates and private keys.
const OWN: PairKeys = ["[tls] certificate", "[tls] key"];

/// Loads all files of `[tls]`, and logs the validity of the certificates and lists.
///
/// # Errors
/// The configuration is incomplete, or a file cannot be used.
fn load(tls: &Tls) -> Result<Loaded, TlsError> {
    let provider = Arc::new(handshake::provider());
    let mut pairs = read_pairs(tls, &provider)?;
    let authorities = match &tls.client_ca {
        Some(path) => read_certificates("[tls] client_ca", path)?,
        None => Vec::new(),
    };
    let mut revocation_lists = RevocationLists::read(&tls.crls)?;
    revocation_lists.find_signers(&authorities, provider.signature_verification_algorithms.all)?;
    let own = || pairs.iter().filter_map(|pair| Certificate::parse(pair.cert.first()?));
    let expiry_s = own().map(|certificate| certificate.not_after).min().unwrap_or(0);
    let certificates = pairs.iter().flat_map(|pair| pair.cert.first()).chain(&authorities);
    let created =
        certificates.filter_map(|der| Certificate::parse(der)).map(|certificate| certificate.not_before);
    let clock = Clock { not_before_s: created.max().unwrap_or(0).max(revocation_lists.newest_update_s()) };
    revocation_lists.log_validity(&authorities, clock);
    for (pair, path) in pairs.iter().zip(&tls.certificates) {
        log_validity(pair, path, clock);
    }
    let failed =
        |error: &dyn fmt::Display| TlsError::of_configuration(format!("[tls] cannot be set up: {error}"));
    let builder = ServerConfig::builder_with_details(provider.clone(), Arc::new(clock))
        .with_protocol_versions(versions_from(tls.minimum_version))
        .map_err(|error| failed(&error))?;
    let builder = match tls.client_certificates {
        ClientCertificates::None if !revocation_lists.is_empty() => {
            return Err(TlsError::of_configuration(
                "[tls] crl: names lists of revoked certificates, but client_certificates is \"none\", so client \
                 certificates are not checked; write \"require\" or \"allow\", or leave crl out",
            ));
        }
        ClientCertificates::None => builder.with_no_client_auth(),
        how => {
            builder.with_client_cert_verifier(verifier(tls, how, authorities, revocation_lists, provider)?)
        }
    };
    let first = pairs.remove(0);
    let mut server = builder.with_cert_resolver(Arc::new(ByName { first, others: pairs }));
    // Sessions are resumed by tickets, so the broker stores none. The key of the tickets is renewed each time that the
    // files are loaded, so that no session is resumed after its certificates were replaced.
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.ticketer = rustls::crypto::ring::Ticketer::new().map_err(|error| failed(&error))?;
    server.send_tls13_tickets = 1;
    server.ignore_client_order = !handshake::has_aes();
    Ok(Loaded { server: Arc::new(server), clock, expiry_s })
}

fn read_pairs(tls: &Tls, provider: &CryptoProvider) -> Result<Vec<Arc<CertifiedKey>>, TlsError> {
    if tls.certificates.is_empty() {
        return Err(TlsError::of_configuration(
            "[tls] certificate: name the PEM file of a certificate, which TLS needs",
        ));
    }
    if tls.certificates.len() != tls.keys.len() {
        let (certificates, keys) = (tls.certificates.len(), tls.keys.len());
        let why = format!("[tls] key: name one file per certificate; there are {certificates} and {keys}");
        return Err(TlsError::of_configuration(why));
    }
    let pairs = tls.certificates.iter().zip(&tls.keys);
    pairs.map(|(chain, key)| read_pair(provider, OWN, chain, key)).collect()
}

fn versions_from(minimum: TlsVersion) -> &'static [&'static rustls::SupportedProtocolVersion] {
    static FROM_12: [&rustls::SupportedProtocolVersion; 2] = [&version::TLS13, &version::TLS12];
    match minimum {
        TlsVersion::Tls12 => &FROM_12,
        TlsVersion::Tls13 => &FROM_12[..1],
    }
}

/// Returns the verifier for client certificates, which are allowed or required.
///
/// # Errors
/// `client_ca` is missing, or a certificate or list cannot be used.
fn verifier(
    tls: &Tls,
    how: ClientCertificates,
    authorities: Vec<CertificateDer<'static>>,
    revocation_lists: RevocationLists,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>, TlsError> {
    let Some(path) = &tls.client_ca else {
        let why = format!(
            "[tls] client_ca: name the file of the authorities, which client_certificates = {how} needs"
        );
        return Err(TlsError::of_configuration(why));
    };
    let sets = revocation_lists.sets(&authorities);
    let mut roots = RootCertStore::empty();
    for der in authorities {
        roots
            .add(der)
            .map_err(|_| TlsError::new("[tls] client_ca", path, "contains a damaged certificate"))?;
    }
    let roots = Arc::new(roots);
    let verifier_with = |lists| {
        // Outdated lists are used, and an authority without a list has revoked nothing; see `revoked`.
        let builder = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .with_crls(lists)
            .allow_unknown_revocation_status();
        let builder =
            if how == ClientCertificates::Allow { builder.allow_unauthenticated() } else { builder };
        builder.build().map_err(|error| match error {
            VerifierBuilderError::InvalidCrl(why) => {
                // rustls' error does not contain which list it is about, so the text names the first file.
                let file = tls.crls.first().unwrap_or(path);
                TlsError::new("[tls] crl", file, format_args!("or another list cannot be used: {why:?}"))
            }
            error => TlsError::new("[tls] client_ca", path, error),
        })
    };
    let first = verifier_with(sets.unique)?;
    let others = sets.shared.into_iter().map(|shared| {
        let ignores_namesake_errors = shared.has_known_signer;
        Ok(SingleListVerifier { verifier: verifier_with(vec![shared.list])?, ignores_namesake_errors })
    });
    let others = others.collect::<Result<Vec<_>, TlsError>>()?;
    Ok(Arc::new(CombinedVerifier { first, others, roots }))
}

/// Logs until when a certificate is valid, and a warning if clients will refuse it or the clock is certainly wrong.
fn log_validity(pair: &CertifiedKey, path: &Path, clock: Clock) {
    let Some(certificate) = pair.cert.first().and_then(|der| Certificate::parse(der)) else { return };
    let (path, until) = (path.display(), Utc(certificate.not_after));
    if clock.now_s() > certificate.not_after {
        log::error!("[tls] certificate: {path} expired at {until}: clients will refuse it; renew it");
    } else if clock.is_behind() {
        log::warn!(
            "the clock of this machine shows {}, but {path} is valid from {} on: until the clock is set, clients' \
             certificates are checked at the later of the two times",
            Utc(system_s()),
            Utc(certificate.not_before)
        );
    } else {
        log::info!("[tls] certificate: {path} is valid until {until}");
    }
    let flaw = if !certificate.is_version_3 {
        "is of X.509 version 1: create it with an extension (`openssl x509 -req -extfile`), such as \
         subjectAltName"
    } else if certificate.is_authority {
        "is that of an authority (CA:TRUE): let the authority sign one with CA:FALSE for this broker"
    } else if !certificate.names_a_host() {
        "names no host and no address, and a common name does not count: add subjectAltName"
    } else {
        return;
    };
    log::warn!("[tls] certificate: many clients will refuse {path}, because it {flaw}");
}

/// Maximum size of a file in bytes. Every usual chain or list of authorities is smaller.
const FILE_BYTES_MAX: u64 = 512 << 10;

/// Why certificates cannot be loaded: one sentence that contains what to change.
#[derive(Debug)]
pub struct TlsError {
    why: String,
    /// Whether a file cannot be used. Otherwise the configuration itself is incomplete.
    pub(super) is_of_file: bool,
}

impl TlsError {
    /// Returns the error for a file. `key` contains section and key of the configuration.
    pub(super) fn new(key: &str, path: &Path, why: impl fmt::Display) -> Self {
        Self { why: format!("{key}: {} {why}", path.display()), is_of_file: true }
    }

    /// Returns the error for an incomplete or contradictory configuration.
    pub(super) fn of_configuration(why: impl Into<String>) -> Self {
        Self { why: why.into(), is_of_file: false }
    }
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

/// Returns the path of a configured file. A file name without a folder is looked up among the credentials of the systemd
/// unit first.
pub(super) fn resolve(path: &Path) -> PathBuf {
    let is_bare = path.file_name() == Some(path.as_os_str());
    let folder = std::env::var_os("CREDENTIALS_DIRECTORY").filter(|_| is_bare);
    folder.map(|folder| Path::new(&folder).join(path)).filter(|path| path.exists()).unwrap_or(path.into())
}

/// Reads a file of at most [`FILE_BYTES_MAX`] completely. Returns its content without a byte-order mark, and its
/// metadata.
///
/// # Errors
/// The file cannot be read, is too large, or is not a regular file.
pub(super) fn read(key: &str, path: &Path) -> Result<(Vec<u8>, Metadata), TlsError> {
    let resolved = resolve(path);
    let (file, found) = open(key, &resolved)?;
    let mut text = Vec::new();
    file.take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut text)
        .map_err(|error| unreadable(key, &resolved, &error))?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(TlsError::new(key, &resolved, "is larger than 512 KiB; name a PEM file"));
    }
    if text.starts_with(BYTE_ORDER_MARK) {
        text.drain(..BYTE_ORDER_MARK.len());
    }
    Ok((text, found))
}

/// Opens a file for reading its first [`FILE_BYTES_MAX`].
///
/// # Errors
/// The file cannot be opened, or is not a regular file.
pub(super) fn open_bounded(key: &str, path: &Path) -> Result<Take<File>, TlsError> {
    Ok(open(key, &resolve(path))?.0.take(FILE_BYTES_MAX))
}

/// Returns the error for a file that cannot be opened or read.
fn unreadable(key: &str, path: &Path, error: &io::Error) -> TlsError {
    let why = match error.kind() {
        io::ErrorKind::NotFound => "does not exist; name the PEM file".to_string(),
        io::ErrorKind::PermissionDenied => {
            "must not be read by the user of the broker; permit that user to read it, or use a systemd credential \
             (LoadCredential=)"
                .to_string()
        }
        _ => format!("cannot be read ({error})"),
    };
    TlsError::new(key, path, why)
}

/// Opens a regular file.
fn open(key: &str, path: &Path) -> Result<(File, Metadata), TlsError> {
    let failed = |error: io::Error| unreadable(key, path, &error);
    // Without this flag, opening a named pipe would wait for a process that writes to the pipe.
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = File::options().read(true).custom_flags(nonblocking).open(path).map_err(failed)?;
    let found = file.metadata().map_err(failed)?;
    if !found.is_file() {
        return Err(TlsError::new(key, path, "is not a regular file; name the PEM file itself"));
    }
    Ok((file, found))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_matches_one_label() {
        assert!(matches_name("a.example", "A.example"));
        assert!(matches_name("*.example", "a.example"));
        for (pattern, name) in [("*.example", "a.b.example"), ("*.example", "example"), ("a.example", "")] {
            assert!(!matches_name(pattern, name), "{pattern} {name}");
        }
    }

    #[test]
    fn missing_files_are_named() {
        let refused = |tls: &Tls| load(tls).map(|_| ()).unwrap_err().to_string();
        let mut tls = Tls::default();
        assert!(refused(&tls).starts_with("[tls] certificate: name the PEM file"), "{}", refused(&tls));
        tls.certificates.push("/no/such.pem".into());
        assert!(refused(&tls).starts_with("[tls] key: name one file per certificate"));
        tls.keys.push("/dev/null".into());
        assert_eq!(refused(&tls), "[tls] certificate: /no/such.pem does not exist; name the PEM file");
        for (path, why) in [
            ("/", "is not a regular file"),
            ("/dev/zero", "is not a regular file"),
            ("/proc/self/status", "contains no"),
        ] {
            tls.certificates = vec![path.into()];
            assert!(refused(&tls).contains(why), "{}", refused(&tls));
        }
    }
}
