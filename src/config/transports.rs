//! The settings of TLS, of the Unix socket, and the default ports. The files are not opened here. An empty path in the
//! configuration means that there is no file.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use toml::de::DeValue;

use super::file::{ParseError, Readable, Value, read_from_text, section, set_if_some};
use super::units::{BadValue, ListenAddress, split_zone};

/// The port registered for AMQP.
pub const AMQP_PORT: u16 = 5672;
/// The port of RabbitMQ's management API.
pub(super) const MANAGEMENT_PORT: u16 = 15672;

/// The port registered for AMQP over TLS.
pub const AMQPS_PORT: u16 = 5671;

/// The port registered for MQTT.
pub const MQTT_PORT: u16 = 1883;

/// The port registered for MQTT over TLS.
pub const MQTTS_PORT: u16 = 8883;

/// The settings of TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// PEM files, each with a certificate and its chain. A client gets the certificate for the server name that it sends,
    /// or else the first.
    pub certificates: Vec<PathBuf>,
    /// PEM files with the private keys, in the same order.
    pub keys: Vec<PathBuf>,
    /// A PEM file with the authorities that sign client certificates.
    pub client_ca: Option<PathBuf>,
    /// PEM files with certificate revocation lists.
    pub crls: Vec<PathBuf>,
    /// Whether clients must present a certificate.
    pub client_certificates: ClientCertificates,
    /// The minimum version of TLS.
    pub minimum_version: TlsVersion,
    /// The field of a client certificate that contains the user name.
    pub login_from: LoginFrom,
}

/// The Unix socket for programs of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnixListener {
    /// The path of the socket; `None`: there is no socket.
    pub path: Option<PathBuf>,
    /// The permissions of the socket.
    pub mode: FileMode,
}

impl Default for UnixListener {
    fn default() -> Self {
        Self { path: None, mode: FileMode(0o660) }
    }
}

/// Declares the type of a key whose value is one of several words.
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
    /// Whether clients must present a certificate.
    ClientCertificates of "client_certificates":
    /// The broker does not request a certificate.
    #[default]
    None = "none",
    /// A client may present a certificate. If it does, the certificate must be valid.
    Allow = "allow",
    /// A client without a valid certificate is refused.
    Require = "require",
}

words! {
    /// The minimum version of TLS.
    TlsVersion of "minimum_version":
    /// 1.2 and 1.3.
    #[default]
    Tls12 = "1.2",
    /// 1.3 only.
    Tls13 = "1.3",
}

words! {
    /// The field of a client certificate that contains the user name. The values are those of RabbitMQ.
    LoginFrom of "login_from":
    /// The common name of the subject.
    #[default]
    CommonName = "common_name",
    /// The whole subject in the format of RFC 4514: `CN=meter-1,O=Plant`.
    DistinguishedName = "distinguished_name",
    /// The first alternative name of type DNS.
    Dns = "subject_alternative_name_dns",
    /// The first alternative name of type email.
    Email = "subject_alternative_name_email",
    /// The first alternative name of type URI.
    Uri = "subject_alternative_name_uri",
}

read_from_text! {
    ClientCertificates;
    TlsVersion;
    LoginFrom;
    FileMode;
    TlsAddress;
    MqttAddress;
    MqttTlsAddress;
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

/// An address to listen on, like a [`ListenAddress`]. `PORT` is the default port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressWithDefaultPort<const PORT: u16>(pub ListenAddress);

/// An address to listen on for AMQP with TLS.
pub type TlsAddress = AddressWithDefaultPort<AMQPS_PORT>;

/// An address to listen on for MQTT.
pub type MqttAddress = AddressWithDefaultPort<MQTT_PORT>;

/// An address to listen on for MQTT with TLS.
pub type MqttTlsAddress = AddressWithDefaultPort<MQTTS_PORT>;

impl<const PORT: u16> FromStr for AddressWithDefaultPort<PORT> {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Ok(Self(ListenAddress::required(SocketAddr::new(ip, PORT))));
        }
        if let Some((address, zone)) = split_zone(text) {
            let socket = SocketAddr::from((address, PORT));
            return Ok(Self(ListenAddress { zone: Some(zone), ..ListenAddress::required(socket) }));
        }
        text.parse().map(Self)
    }
}

/// One path or a list of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Paths(Vec<PathBuf>);

impl Readable for Paths {
    fn read(value: &Value<'_>) -> Result<Self, ParseError> {
        match value.get_ref() {
            DeValue::String(path) => Ok(Self(non_empty(path.as_ref().into()).into_iter().collect())),
            DeValue::Array(_) => Vec::read(value).map(Self),
            _ => Err(ParseError::wrong_type(value, "a path in quotes or a list of paths")),
        }
    }
}

/// Returns the path, or `None` if it is empty.
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
    pub(super) fn apply_to(self, tls: &mut Tls) {
        set_if_some(&mut tls.certificates, self.certificate.map(|paths| paths.0));
        set_if_some(&mut tls.keys, self.key.map(|paths| paths.0));
        set_if_some(&mut tls.client_ca, self.client_ca.map(non_empty));
        set_if_some(&mut tls.crls, self.crl.map(|paths| paths.0));
        set_if_some(&mut tls.client_certificates, self.client_certificates);
        set_if_some(&mut tls.minimum_version, self.minimum_version);
        set_if_some(&mut tls.login_from, self.login_from);
    }

    pub(super) fn to_toml(tls: &Tls) -> Vec<String> {
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

/// Formats paths as a TOML array.
fn list(paths: &[PathBuf]) -> String {
    let paths: Vec<String> = paths.iter().map(|path| quoted(path)).collect();
    format!("[{}]", paths.join(", "))
}

/// Formats a path as a TOML string.
pub(super) fn quoted(path: &Path) -> String {
    format!("{:?}", path.display().to_string())
}
