//! Certificates and keys: from the files the operator named to what rustls works with.
//!
//! Always true: whatever is wrong with a file is said with the key it was named by, its path, and what to do;
//! nothing out of a file is ever shown, for it may be a key that was named in the wrong place; what is in use
//! stays in use until all of the new is good.

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

/// A chain is sent in every full handshake, and waits in a buffer of this connection's share.
const CHAIN_BYTES_MAX: usize = 12 << 10;
/// How often the files are looked at, when somebody connects.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What is read out of the files.
#[derive(Clone, Debug)]
struct Loaded {
    server: Arc<ServerConfig>,
    clock: Clock,
    /// When the first of our certificates ends, in seconds since 1970.
    end_s: u64,
}

/// What follows when there is nothing that could be used.
const SHUT: &str = "nobody comes in by TLS until that file can be used; the rest is served";

/// By what a file is known to be another than before.
type Stamp = Option<(u64, u64, i64, i64, u64)>;

/// Holds what is in use, and reads it again when the files change. It lives with whoever shakes hands.
#[derive(Debug)]
pub struct CertificateStore {
    tls: Tls,
    /// `None`: there is nothing yet that could be used, so nobody comes in.
    loaded: Option<Loaded>,
    stamps: Vec<Stamp>,
    looked: Instant,
}

impl CertificateStore {
    /// Reads the files.
    ///
    /// # Errors
    /// What is wrong with one of them.
    pub fn open(tls: &Tls) -> Result<Self, TlsError> {
        let stamps = stamps(tls);
        Ok(Self { tls: tls.clone(), loaded: Some(load(tls)?), stamps, looked: Instant::now() })
    }

    /// The same at a start: what a power cut has left of a file must not keep the rest of the broker from its work, be
    /// it other listeners or bridges. So with a file that cannot be used nobody comes in by TLS until it can; then what is to be told
    /// of that is given too.
    ///
    /// # Errors
    /// What is wrong with the configuration itself.
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

    /// Nobody comes in, for there is nothing that could be used.
    pub const fn is_shut(&self) -> bool {
        self.loaded.is_none()
    }

    /// When the first of our certificates ends, in seconds since 1970; 0 when there is none.
    pub fn end_s(&self) -> u64 {
        self.loaded.as_ref().map_or(0, |loaded| loaded.end_s)
    }

    /// What a new connection works with, if there is anything; looks whether the files have changed, if that
    /// is some time ago.
    pub(super) fn current(&mut self) -> Option<Arc<ServerConfig>> {
        self.look_again();
        self.loaded.as_ref().map(|loaded| loaded.server.clone())
    }

    /// Reads the files again if they have changed, unless that was looked at a moment ago.
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

    /// Reads everything again, after what the configuration says now, and says whether it is in use from now
    /// on. Connections that are there stay.
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

    /// The user name in a certificate that was found good; `None`: it has none of that kind.
    pub(super) fn login(&self, certificate: &Certificate<'_>) -> Option<String> {
        let kind = match self.tls.login_from {
            LoginFrom::CommonName => {
                // Several are one name to RabbitMQ.
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

/// What the operator calls a certificate and its key: section and key of the configuration.
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
        // A kind of key that cannot be asked for its other half is taken at its word.
        _ => Ok(Arc::new(pair)),
    }
}

/// The certificate that is made out to the name a client asks for, else the first.
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

/// Whether a name is that of a certificate, whose leftmost label may be a star.
fn matches_name(pattern: &str, name: &str) -> bool {
    match pattern.strip_prefix("*.") {
        Some(domain) => name.split_once('.').is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(domain)),
        None => pattern.eq_ignore_ascii_case(name),
    }
}

/// Those of `[tls]`.
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
    // Clients keep their sessions themselves, sealed with a key that is made anew with every reading: nothing
    // is stored here, and no session outlives the certificates it was begun with.
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
        // Lists count beyond their time, and who has none has revoked nobody: see `revoked`.
        let builder = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .with_crls(lists)
            .allow_unknown_revocation_status();
        let builder =
            if how == ClientCertificates::Allow { builder.allow_unauthenticated() } else { builder };
        builder.build().map_err(|error| match error {
            VerifierBuilderError::InvalidCrl(why) => {
                // The first of them, for it is not told which.
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

/// Says when clients will not take our certificate, or the clock is surely wrong.
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

// The operator's files of certificates, keys and lists, and what is wrong with them.
//
// Always true: a file is read whole or not at all, and none is larger than any such file; an error names the
// key and the file.

/// More than any chain of certificates or list of authorities has.
const FILE_BYTES_MAX: u64 = 512 << 10;

/// Why there is no TLS, as one sentence that says what to change.
#[derive(Debug)]
pub struct TlsError {
    why: String,
    /// What a file holds is at fault, and not what the configuration says.
    pub(super) is_of_file: bool,
}

impl TlsError {
    /// Of a file; `key` names section and key.
    pub(super) fn new(key: &str, path: &Path, why: impl fmt::Display) -> Self {
        Self { why: format!("{key}: {} {why}", path.display()), is_of_file: true }
    }

    /// Of the configuration.
    pub(super) fn said(why: impl Into<String>) -> Self {
        Self { why: why.into(), is_of_file: false }
    }
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

/// A bare name is one of the unit's credentials, when there is one of that name.
pub(super) fn resolve(path: &Path) -> PathBuf {
    let is_bare = path.file_name() == Some(path.as_os_str());
    let folder = std::env::var_os("CREDENTIALS_DIRECTORY").filter(|_| is_bare);
    folder.map(|folder| Path::new(&folder).join(path)).filter(|path| path.exists()).unwrap_or(path.into())
}

/// The text of a file of the operator's.
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

/// A file of the operator's, to be read piece by piece, and no further than any such file goes.
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
