//! Addresses of upstream brokers: `amqp://user:password@host:port/vhost`, and `amqps://` with TLS.
//!
//! No error and no formatted address contains the password. Host names are not looked up here.

use core::net::IpAddr;
use std::fmt;

use super::first_user::{GUEST, Secret};
use super::transports::{AMQP_PORT, AMQPS_PORT};
use super::units::split_zone;

/// Maximum length of a user name, a password or a virtual host in bytes: an AMQP short string.
const PART_BYTES_MAX: usize = 255;

/// The address of an upstream broker, and the user there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Upstream {
    /// Whether TLS is used.
    pub with_tls: bool,
    /// A host name, or an IP address without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The user.
    pub user: String,
    /// The password; `None` if the address contains none.
    pub password: Option<Secret>,
    /// The virtual host.
    pub vhost: String,
}

impl Upstream {
    /// Parses an address.
    ///
    /// # Errors
    /// The address is invalid. The error does not contain the password.
    #[cold]
    pub fn parse(text: &str) -> Result<Self, String> {
        let (with_tls, rest) = match text.split_once("://") {
            Some(("amqp", rest)) => (false, rest),
            Some(("amqps", rest)) => (true, rest),
            _ => return Err("it must be an address such as amqp://user@host:5672/vhost".to_string()),
        };
        if rest.contains(['?', '#']) {
            return Err(
                "an upstream address must not contain ? or #: parameters have keys of their own; in a password, \
                 write the two characters as %3F and %23"
                    .to_string(),
            );
        }
        let (authority, vhost) = rest.split_once('/').unwrap_or((rest, ""));
        if vhost.contains('@') {
            // An `@` behind a `/` suggests that the `/` belongs to the password. So the error does not quote the text.
            return Err("write a / in the password as %2F, and an @ in the virtual host as %40".to_string());
        }
        let (login, place) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (user, password) = match login.split_once(':') {
            Some((user, password)) => (user, Some(decoded(password)?)),
            None => (login, None),
        };
        let (host, port) = split_port(place, if with_tls { AMQPS_PORT } else { AMQP_PORT })?;
        if host.is_empty() {
            return Err(
                "an address without a host means this broker itself, which a bridge does not connect \
                        to: name the upstream's host"
                    .to_string(),
            );
        }
        let or = |text: String, default: &str| if text.is_empty() { default.to_string() } else { text };
        let host = match host.split_once('%') {
            None => host.to_string(),
            Some((address, _)) => match split_zone(host) {
                Some((_, zone)) => format!("{address}%{}", zone.name()),
                None => {
                    return Err(
                        "only an IPv6 link-local address has an interface behind a %, which is written \
                                [fe80::1%25eth0]"
                            .to_string(),
                    );
                }
            },
        };
        Ok(Self {
            with_tls,
            host,
            port,
            user: or(decoded(user)?, GUEST),
            password: password.map(Secret),
            vhost: or(decoded(vhost)?, "/"),
        })
    }
}

impl Upstream {
    /// Returns whether the host is certainly this machine. Another host name may resolve to this machine, too: the caller
    /// has to check the address after the look-up with [`is_this_machine`].
    pub fn is_this_machine(&self) -> bool {
        let name = self.host.trim_end_matches('.').to_ascii_lowercase();
        let is_name = name == "localhost" || name.ends_with(".localhost");
        is_name || self.host.parse().is_ok_and(is_this_machine)
    }
}

/// Returns whether an address is a loopback address or the unspecified address, both of which lead to this machine.
pub fn is_this_machine(address: IpAddr) -> bool {
    let address = address.to_canonical();
    address.is_loopback() || address.is_unspecified()
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { with_tls, host, port, user, vhost, .. } = self;
        let scheme = if *with_tls { "amqps" } else { "amqp" };
        let (open, close) = if host.contains(':') { ("[", "]") } else { ("", "") };
        let host = host.replace('%', "%25");
        write!(f, "{scheme}://{}@{open}{host}{close}:{port}/{}", Encoded(user), Encoded(vhost))
    }
}

/// Splits the part of an address with host and port into both. An IPv6 address must be in brackets.
#[cold]
fn split_port(place: &str, default_port: u16) -> Result<(&str, u16), String> {
    let (host, port) = match place.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, rest)) => (host, rest.strip_prefix(':').unwrap_or("")),
        None => place.rsplit_once(':').unwrap_or((place, "")),
    };
    if host.contains(':') != place.starts_with('[') {
        return Err("write an IPv6 address in brackets: amqp://user@[2001:db8::1]:5672".to_string());
    }
    if port.is_empty() {
        return Ok((host, default_port));
    }
    let port = port.parse().ok().filter(|port| *port != 0);
    port.map(|port| (host, port)).ok_or_else(|| {
        "the port must be 1 to 65535; in a password, write / as %2F, : as %3A and @ as %40".to_string()
    })
}

/// Decodes the percent-encoding of a part of an address.
///
/// # Errors
/// The encoding is invalid, or the result is not UTF-8 or longer than `PART_BYTES_MAX`.
#[cold]
pub(super) fn decoded(part: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(part.len());
    let mut rest = part.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => escaped(rest.next(), rest.next())
                .ok_or("a % in the address is not followed by two hexadecimal digits")?,
            _ => byte,
        });
    }
    let text = String::from_utf8(bytes).map_err(|_| "a part of the address is not UTF-8")?;
    match text.len() {
        0..=PART_BYTES_MAX => Ok(text),
        _ => Err("a part of the address has more than 255 bytes".to_string()),
    }
}

/// Returns the byte with these two hexadecimal digits.
fn escaped(high: Option<u8>, low: Option<u8>) -> Option<u8> {
    let digit = |octet: Option<u8>| char::from(octet?).to_digit(16);
    u8::try_from(digit(high)? * 16 + digit(low)?).ok()
}

/// Formats a part of an address with percent-encoding.
struct Encoded<'a>(&'a str);

impl fmt::Display for Encoded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.bytes().try_for_each(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                write!(f, "{}", char::from(byte))
            }
            _ => write!(f, "%{byte:02x}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_parsed_and_formatted() {
        for (text, shown) in [
            ("amqp://rabbit", "amqp://guest@rabbit:5672/%2f"),
            ("amqp://edge@rabbit.example.com:7000/%2f", "amqp://edge@rabbit.example.com:7000/%2f"),
            ("amqp://e%40dge:p@ss@rabbit/plant", "amqp://e%40dge@rabbit:5672/plant"),
            ("amqp://[::1]:9/a%20b", "amqp://guest@[::1]:9/a%20b"),
            ("amqp://[fe80::1%25eth0]:9", "amqp://guest@[fe80::1%25eth0]:9/%2f"),
            ("amqps://[fe80::1%eth0]", "amqps://guest@[fe80::1%25eth0]:5671/%2f"),
            ("amqps://rabbit", "amqps://guest@rabbit:5671/%2f"),
            ("amqps://rabbit:7000/plant", "amqps://guest@rabbit:7000/plant"),
        ] {
            assert_eq!(Upstream::parse(text).expect(text).to_string(), shown);
        }
        let with_password = Upstream::parse("amqp://a:s%3Acret@h").expect("an address");
        assert_eq!(with_password.password.as_ref().map(|secret| &*secret.0), Some("s:cret"));
        assert!(!format!("{with_password} {with_password:?}").contains("cret"), "the password is not shown");
    }

    #[test]
    fn addresses_of_this_machine_are_recognised() {
        for (text, leads_here) in [
            ("amqp://localhost", true),
            ("amqp://LocalHost.", true),
            ("amqp://a.localhost", true),
            ("amqp://127.1.2.3", true),
            ("amqp://[::1]", true),
            ("amqp://[::ffff:127.0.0.1]", true),
            ("amqp://0.0.0.0", true),
            ("amqp://[::]", true),
            ("amqp://10.0.0.1", false),
            ("amqp://localhost.example.com", false),
        ] {
            assert_eq!(Upstream::parse(text).expect(text).is_this_machine(), leads_here, "{text}");
        }
    }

    #[test]
    fn invalid_addresses_are_refused_without_their_password() {
        for (text, part) in [
            ("amqpss://a:secret@h", "such as amqp://"),
            ("http://h", "such as amqp://"),
            ("amqp://", "means this broker itself"),
            ("amqp:///vhost", "means this broker itself"),
            ("amqp://[2001:db8::1%25eth0]", "link-local"),
            ("amqp://[fe80::1%]", "link-local"),
            ("amqp://[fe80::1%25a b]", "link-local"),
            ("amqp://h%25x", "link-local"),
            ("amqp://h:0", "port"),
            ("amqp://h:x", "port"),
            ("amqp://a:secret@::1", "brackets"),
            ("amqp://h/v?heartbeat=5", "keys of their own"),
            ("amqp://a%g0@h", "hexadecimal"),
            ("amqp://a%ff@h", "UTF-8"),
        ] {
            let why = Upstream::parse(text).expect_err(text);
            assert!(why.contains(part) && !why.contains("secret"), "{text}: {why}");
        }
    }
}
