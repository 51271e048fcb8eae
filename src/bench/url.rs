//! Where a broker is and who we are there: `amqp://user:password@host:port/vhost`.
//!
//! Always true of a [`Url`]: every part is there, those left out being what clients assume (guest, guest,
//! port 5672, virtual host `/`).

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use crate::config::AMQP_PORT;

/// A broker and how to log in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Url {
    /// A name, or an address without brackets.
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) user: String,
    pub(super) password: String,
    pub(super) vhost: String,
}

impl Url {
    /// Guest at an address.
    pub(super) fn of_address(address: SocketAddr) -> Self {
        Self {
            host: address.ip().to_string(),
            port: address.port(),
            user: "guest".to_string(),
            password: "guest".to_string(),
            vhost: "/".to_string(),
        }
    }
}

/// Without the password.
impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "amqp://[{}]:{}", self.host, self.port),
            false => write!(f, "amqp://{}:{}", self.host, self.port),
        }
    }
}

impl FromStr for Url {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with("amqps://") {
            return Err("the bench speaks plain TCP: write amqp://".to_string());
        }
        let bad = || format!("{text:?} is not like amqp://guest:guest@127.0.0.1:5672/%2f");
        let rest = text.strip_prefix("amqp://").ok_or_else(bad)?;
        let (authority, vhost) = match rest.split_once('/') {
            Some((authority, vhost)) => (authority, decoded(vhost).ok_or_else(bad)?),
            None => (rest, "/".to_string()),
        };
        let (login, place) = authority.rsplit_once('@').unwrap_or(("guest:guest", authority));
        let (user, password) = login.split_once(':').unwrap_or((login, ""));
        let (host, port) = split_port(place).ok_or_else(bad)?;
        Ok(Self {
            host: host.to_string(),
            port,
            user: decoded(user).ok_or_else(bad)?,
            password: decoded(password).ok_or_else(bad)?,
            vhost,
        })
    }
}

/// Host and port; the host's brackets, which its colons need, are taken off.
fn split_port(place: &str) -> Option<(&str, u16)> {
    let (host, port) = match place.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => place.split_at(place.find(':').unwrap_or(place.len())),
    };
    if host.is_empty() {
        return None;
    }
    match port.strip_prefix(':') {
        Some(port) => Some((host, port.parse().ok()?)),
        None if port.is_empty() => Some((host, AMQP_PORT)),
        None => None,
    }
}

/// `%2f` and the like as the octets they stand for.
fn decoded(text: &str) -> Option<String> {
    let mut octets = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        if *first != b'%' {
            octets.push(*first);
            rest = tail;
            continue;
        }
        let (digits, tail) = tail.split_at_checked(2)?;
        let digits = str::from_utf8(digits).ok().filter(|two| !two.contains('+'))?;
        octets.push(u8::from_str_radix(digits, 16).ok()?);
        rest = tail;
    }
    String::from_utf8(octets).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(text: &str) -> (String, u16, String, String, String) {
        let url: Url = text.parse().expect(text);
        (url.host, url.port, url.user, url.password, url.vhost)
    }

    #[test]
    fn parts_left_out_are_what_clients_assume() {
        let expected = |host: &str, port, user: &str, password: &str, vhost: &str| {
            (host.to_string(), port, user.to_string(), password.to_string(), vhost.to_string())
        };
        assert_eq!(parts("amqp://h"), expected("h", 5672, "guest", "guest", "/"));
        assert_eq!(parts("amqp://h/%2f"), expected("h", 5672, "guest", "guest", "/"));
        assert_eq!(parts("amqp://h/"), expected("h", 5672, "guest", "guest", ""));
        assert_eq!(parts("amqp://a:b%40c@[::1]:7/d"), expected("::1", 7, "a", "b@c", "d"));
        let url: Url = "amqp://a:secret@[::1]:7/d".parse().expect("a URL");
        assert_eq!(url.to_string(), "amqp://[::1]:7");
    }

    #[test]
    fn what_is_no_url_is_refused() {
        for bad in
            ["", "h", "http://h", "amqp://", "amqp://h:x", "amqp://[::1", "amqp://h/%2", "amqp://h/%zz"]
        {
            assert!(bad.parse::<Url>().unwrap_err().contains("is not like amqp://"), "{bad}");
        }
        assert!("amqps://h".parse::<Url>().unwrap_err().contains("plain TCP"));
    }
}
