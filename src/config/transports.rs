//! The keys of TLS and of the Unix socket: which files, who may come, and the words for it.
//!
//! Always true: a file is only named here, never opened; an empty name is none.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use toml::de::DeValue;

use super::file::{Readable, Value, Wrong, put, read_from_text, section};
use super::units::{BadValue, ListenAddress, split_zone};

/// The port registered for AMQP.
pub const AMQP_PORT: u16 = 5672;

/// The port registered for AMQP over TLS.
pub const AMQPS_PORT: u16 = 5671;

/// How TLS is spoken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// PEM files with a certificate each, and those that lead to its authority; the first is for clients that
    /// name no server, or one that none is made out to.
    pub certificates: Vec<PathBuf>,
    /// PEM files with the private keys, in the same order.
    pub keys: Vec<PathBuf>,
    /// A PEM file with the authorities that sign clients' certificates.
    pub client_ca: Option<PathBuf>,
    /// PEM files with lists of clients' certificates that count no longer.
    pub crls: Vec<PathBuf>,
    /// Whether clients show certificates.
    pub client_certificates: ClientCertificates,
    /// The oldest version of TLS that is spoken.
    pub minimum_version: TlsVersion,
    /// What of a client's certificate is its user name.
    pub login_from: LoginFrom,
}

/// Where programs of the same machine come in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnixListener {
    /// The path of the socket; `None`: there is none.
    pub path: Option<PathBuf>,
    /// Who may connect, as the permissions of a file.
    pub mode: FileMode,
}

impl Default for UnixListener {
    fn default() -> Self {
        Self { path: None, mode: FileMode(0o660) }
    }
}

/// Declares the values of a key that takes one of some words.
macro_rules! words {
    ($(#[$doc:meta])* $kind:ident of $key:literal: $($(#[$why:meta])* $variant:ident = $word:literal,)*) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub enum $kind {
            $($(#[$why])* $variant,)*
        }

        impl core::str::FromStr for $kind {
            type Err = $crate::units::BadValue;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                match text {
                    $($word => Ok(Self::$variant),)*
                    _ => {
                        let words = [$($word),*].join(", ");
                        Err(Self::Err::new(text, format!("a value of {}: {words}", $key)))
                    }
                }
            }
        }

        impl core::fmt::Display for $kind {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.write_str(match self { $(Self::$variant => concat!("\"", $word, "\""),)* })
            }
        }
    };
}
pub(super) use words;

words! {
    /// Whether clients show certificates.
    ClientCertificates of "client_certificates":
    /// They are not asked for any.
    #[default]
    None = "none",
    /// They may, and then it must be a good one.
    Allow = "allow",
    /// Without a good one nobody comes in.
    Require = "require",
}

words! {
    /// The oldest version of TLS that is spoken.
    TlsVersion of "minimum_version":
    /// 1.2 and 1.3.
    #[default]
    Tls12 = "1.2",
    /// 1.3 alone.
    Tls13 = "1.3",
}

words! {
    /// What of a client's certificate is its user name; RabbitMQ's words for it.
    LoginFrom of "login_from":
    /// The common name of its subject.
    #[default]
    CommonName = "common_name",
    /// The whole subject, as RFC 4514 writes it: `CN=meter-1,O=Plant`.
    DistinguishedName = "distinguished_name",
    /// The first alternative name that is one of a machine.
    Dns = "subject_alternative_name_dns",
    /// The first alternative name that is an address of mail.
    Email = "subject_alternative_name_email",
    /// The first alternative name that is a URI.
    Uri = "subject_alternative_name_uri",
}

read_from_text! {
    ClientCertificates;
    TlsVersion;
    LoginFrom;
    FileMode;
    TlsAddress;
}

/// The permissions of a file, in octal: `0660`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileMode(pub u32);

impl FromStr for FileMode {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
        mode.map(Self).ok_or_else(|| BadValue::new(text, "the permissions of a file, such as \"0660\""))
    }
}

impl fmt::Display for FileMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{:04o}\"", self.0)
    }
}

/// An address to listen on with TLS; without a port, on the one registered for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TlsAddress(pub ListenAddress);

impl FromStr for TlsAddress {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Ok(Self(ListenAddress::required(SocketAddr::new(ip, AMQPS_PORT))));
        }
        if let Some((address, zone)) = split_zone(text) {
            let socket = SocketAddr::from((address, AMQPS_PORT));
            return Ok(Self(ListenAddress { zone: Some(zone), ..ListenAddress::required(socket) }));
        }
        text.parse().map(Self)
    }
}

/// One path or a list of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Paths(Vec<PathBuf>);

impl Readable for Paths {
    fn read(value: &Value<'_>) -> Result<Self, Wrong> {
        match value.get_ref() {
            DeValue::String(path) => Ok(Self(non_empty(path.as_ref().into()).into_iter().collect())),
            DeValue::Array(_) => Vec::read(value).map(Self),
            _ => Err(Wrong::kind(value, "a path in quotes or a list of paths")),
        }
    }
}

/// A path, unless it is empty.
pub(super) fn non_empty(path: PathBuf) -> Option<PathBuf> {
    (!path.as_os_str().is_empty()).then_some(path)
}

section! {
    /// The section `[tls]` of a file.
    pub(super) struct TlsLayer {
        certificate: Paths,
        key: Paths,
        client_ca: PathBuf,
        crl: Paths,
        client_certificates: ClientCertificates,
        minimum_version: TlsVersion,
        login_from: LoginFrom,
    }
}

impl TlsLayer {
    pub(super) fn lay_over(self, tls: &mut Tls) {
        put(&mut tls.certificates, self.certificate.map(|paths| paths.0));
        put(&mut tls.keys, self.key.map(|paths| paths.0));
        put(&mut tls.client_ca, self.client_ca.map(non_empty));
        put(&mut tls.crls, self.crl.map(|paths| paths.0));
        put(&mut tls.client_certificates, self.client_certificates);
        put(&mut tls.minimum_version, self.minimum_version);
        put(&mut tls.login_from, self.login_from);
    }

    pub(super) fn shown(tls: &Tls) -> Vec<String> {
        vec![
            format!("certificate = {}", list(&tls.certificates)),
            format!("key = {}", list(&tls.keys)),
            format!("client_ca = {}", quoted(tls.client_ca.as_deref().unwrap_or(Path::new("")))),
            format!("crl = {}", list(&tls.crls)),
            format!("client_certificates = {}", tls.client_certificates),
            format!("minimum_version = {}", tls.minimum_version),
            format!("login_from = {}", tls.login_from),
        ]
    }
}

fn list(paths: &[PathBuf]) -> String {
    let paths: Vec<String> = paths.iter().map(|path| quoted(path)).collect();
    format!("[{}]", paths.join(", "))
}

/// A path as TOML takes it.
pub(super) fn quoted(path: &Path) -> String {
    format!("{:?}", path.display().to_string())
}
