//! Addresses of upstream brokers: `amqp://user:password@host:port/vhost`, and `amqps://` with TLS.
//!
//! The password is never shown. Host names are not looked up here.

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
    /// A name, or an address without brackets.
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
    /// What is wrong with it. The error does not contain the password.
    #[cold]
    pub fn parse(text: &str) -> Result<Self, String> {
        let (with_tls, rest) = match text.split_once("://") {
            Some(("amqp", rest)) => (false, rest),
            Some(("amqps", rest)) => (true, rest),
            _ => return Err("it must be an address such as amqp://user@host:5672/vhost".to_string()),
        };
        if rest.contains(['?', '#']) {
            return Err(
                "no ? or # may stand in it: what else there is to say has keys of its own, and in a password \
                 they are written %3F and %23"
                    .to_string(),
            );
        }
        let (authority, vhost) = rest.split_once('/').unwrap_or((rest, ""));
        if vhost.contains('@') {
            // This part of the text may be half of a password, so the error does not repeat it.
            return Err("a / in its password is written %2F, and an @ in its virtual host %40".to_string());
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
    /// Returns whether the host is this machine. Some users may connect only from there. A host name may also resolve
    /// to this machine; that is known after the look-up.
    pub fn is_this_machine(&self) -> bool {
        let name = self.host.trim_end_matches('.').to_ascii_lowercase();
        let is_name = name == "localhost" || name.ends_with(".localhost");
        is_name || self.host.parse().is_ok_and(is_this_machine)
    }
}

/// Returns whether an address is this machine and not an address that other machines use as well.
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

/// Splits host and port. An IPv6 address is in brackets.
#[cold]
fn split_port(place: &str, usual: u16) -> Result<(&str, u16), String> {
    let (host, port) = match place.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, rest)) => (host, rest.strip_prefix(':').unwrap_or("")),
        None => place.rsplit_once(':').unwrap_or((place, "")),
    };
    if host.contains(':') != place.starts_with('[') {
        return Err("an IPv6 address stands in brackets: amqp://user@[2001:db8::1]:5672".to_string());
    }
    if port.is_empty() {
        return Ok((host, usual));
    }
    let port = port.parse().ok().filter(|port| *port != 0);
    port.map(|port| (host, port)).ok_or_else(|| {
        "its port is not one from 1 to 65535; in a password / is written %2F, : %3A and @ %40".to_string()
    })
}

/// Decodes percent-encoding.
#[cold]
pub(super) fn decoded(part: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(part.len());
    let mut rest = part.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => escaped(rest.next(), rest.next())
                .ok_or("a % in it is not followed by two hexadecimal digits")?,
            _ => byte,
        });
    }
    let text = String::from_utf8(bytes).map_err(|_| "a part of it is not UTF-8")?;
    match text.len() {
        0..=PART_BYTES_MAX => Ok(text),
        _ => Err("a part of it has more than 255 bytes".to_string()),
    }
}

fn escaped(high: Option<u8>, low: Option<u8>) -> Option<u8> {
    let digit = |octet: Option<u8>| char::from(octet?).to_digit(16);
    u8::try_from(digit(high)? * 16 + digit(low)?).ok()
}

/// A percent-encoded part of an address.
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
    fn addresses_as_people_write_them() {
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
        assert!(!format!("{with_password} {with_password:?}").contains("cret"), "it is not shown");
    }

    #[test]
    fn what_leads_to_this_machine_is_known() {
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
    fn what_is_no_address_is_refused_and_its_password_not_told() {
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
            ("amqp://h/v?heartbeat=5", "keys of its own"),
            ("amqp://a%g0@h", "hexadecimal"),
            ("amqp://a%ff@h", "UTF-8"),
        ] {
            let why = Upstream::parse(text).expect_err(text);
            assert!(why.contains(part) && !why.contains("secret"), "{text}: {why}");
        }
    }
}
