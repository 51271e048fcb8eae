//! Types of configuration values: sizes, times, listening addresses, log levels.
//!
//! A command-line flag and a value in a file are parsed by the same `FromStr`. So both accept the same spellings and
//! report the same errors.
//!
//! # Invariants
//! - A value that is out of the range of its key is an error. It is never reduced to fit.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use super::file::{ParseError, Readable, Value, read_from_text};

/// An invalid value: its text, and what a valid value is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadValue {
    text: String,
    expected: String,
}

impl BadValue {
    /// Returns the error for `text`. `expected` completes the sentence "TEXT is not …".
    #[cold]
    pub(super) fn new(text: &str, expected: impl Into<String>) -> Self {
        Self { text: text.to_string(), expected: expected.into() }
    }
}

impl fmt::Display for BadValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\" is not {}", self.text, self.expected)
    }
}

impl std::error::Error for BadValue {}

read_from_text! {
    Count<T>;
    Bytes<T>;
    Millis;
    Seconds;
    ListenAddress;
    LogLevel;
    Compat;
    Label;
    Persist;
    DiskLimit;
    FlashEndurance;
    WebOrigin;
}

/// A plain number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count<T>(pub T);

impl<T: fmt::Display> fmt::Display for Count<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<T: TryFrom<u64>> FromStr for Count<T> {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        let number: u64 = text.parse().map_err(|_| BadValue::new(text, "a whole number from 0 up"))?;
        let bits = 8 * size_of::<T>();
        let count = T::try_from(number);
        count.map(Self).map_err(|_| BadValue::new(text, format!("below 2^{bits}, the limit of this key")))
    }
}

/// A number of bytes: `64MB` (64,000,000), `64MiB` (64 × 1024 × 1024), or a number without a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes<T>(pub T);

impl<T: Copy + Into<u64>> fmt::Display for Bytes<T> {
    /// Formats the size in the largest unit in which it is a whole number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(f, self.0.into(), &SIZE_UNITS)
    }
}

/// The value of `persist`: `true` (`"all"`) if all messages in durable queues are persistent, `false` (`"marked"`) if
/// only those with delivery mode 2 are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Persist(pub bool);

impl fmt::Display for Persist {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0 { "\"all\"" } else { "\"marked\"" })
    }
}

impl FromStr for Persist {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        match text {
            "marked" => Ok(Self(false)),
            "all" => Ok(Self(true)),
            _ => Err(BadValue::new(text, "a value of persist: marked or all")),
        }
    }
}

/// A Boolean: `true` or `false`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switch(pub bool);

impl Readable for Switch {
    fn read(value: &Value<'_>) -> Result<Self, ParseError> {
        bool::read(value).map(Self)
    }
}

impl fmt::Display for Switch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The value of `disk_limit`: a size in bytes, or `None` for `auto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskLimit(pub Option<u64>);

impl fmt::Display for DiskLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(bytes) => Bytes(bytes).fmt(f),
            None => f.write_str("\"auto\""),
        }
    }
}

impl FromStr for DiskLimit {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        match text {
            "auto" => Ok(Self(None)),
            _ => text.parse().map(|Bytes(bytes)| Self(Some(bytes))),
        }
    }
}

/// The value of `flash_endurance`: the endurance of a flash card in bytes, or 0 for `none`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlashEndurance(pub u64);

impl fmt::Display for FlashEndurance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("\"none\""),
            bytes => Bytes(bytes).fmt(f),
        }
    }
}

impl FromStr for FlashEndurance {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        match text {
            "none" => Ok(Self(0)),
            _ => text.parse().map(|Bytes(bytes)| Self(bytes)),
        }
    }
}

/// Units of size, the largest first. A single letter is a power of 1024, as in `rabbitmq.conf` and in systemd.
const SIZE_UNITS: [(&str, u64); 12] = [
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("kB", 1_000),
    ("B", 1),
    ("G", 1 << 30),
    ("M", 1 << 20),
    ("K", 1 << 10),
];

impl<T: TryFrom<u64>> FromStr for Bytes<T> {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        let expected = "a size: write a whole number of bytes, or a whole number with B, kB, KiB, MB, MiB, GB or \
                    GiB behind it";
        let (digits, unit) = split_number(text);
        let scale = if unit.is_empty() { Some(1) } else { factor(&SIZE_UNITS, unit) };
        let (Ok(number), Some(scale)) = (digits.parse::<u64>(), scale) else {
            return Err(BadValue::new(text, expected));
        };
        let bytes = number.checked_mul(scale).and_then(|bytes| T::try_from(bytes).ok());
        let bits = 8 * size_of::<T>();
        bytes
            .map(Self)
            .ok_or_else(|| BadValue::new(text, format!("below 2^{bits} bytes, the limit of this key")))
    }
}

/// A time in milliseconds: `500ms`, `10s`, `2min`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Millis(pub u32);

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(f, self.0.into(), &TIME_UNITS)
    }
}

/// Units of time in milliseconds, the largest first.
const TIME_UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("min", 60_000), ("s", 1_000), ("ms", 1)];

impl FromStr for Millis {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        let (digits, unit) = split_number(text);
        let scale = if digits == "0" && unit.is_empty() { Some(1) } else { factor(&TIME_UNITS, unit) };
        let (Ok(number), Some(scale)) = (digits.parse::<u64>(), scale) else {
            return Err(BadValue::new(
                text,
                "a time: write a number with ms, s, min or h behind it, such as 10s",
            ));
        };
        let ms = number.checked_mul(scale).and_then(|ms| u32::try_from(ms).ok());
        ms.map(Self).ok_or_else(|| BadValue::new(text, "a time of less than 49 days"))
    }
}

/// A time in whole seconds, written like [`Millis`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seconds(pub u16);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}s\"", self.0)
    }
}

impl FromStr for Seconds {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        let Millis(ms) = text.parse()?;
        let seconds = u16::try_from(ms / 1_000).ok().filter(|_| ms.is_multiple_of(1_000));
        seconds.map(Self).ok_or_else(|| BadValue::new(text, "a time of whole seconds, at most 65535s"))
    }
}

/// An address to listen on. A port alone, or `localhost:PORT`, means 127.0.0.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenAddress {
    /// Address and port. With port 0 the system chooses a free port.
    pub socket: SocketAddr,
    /// The interface of an IPv6 link-local address, as in `[fe80::1%eth0]:5672`.
    pub zone: Option<Zone>,
    /// Whether the broker starts even if it cannot listen on this address. True for the default address `[::1]`, and for
    /// the default addresses of the management API.
    pub if_available: bool,
}

impl ListenAddress {
    /// Returns a listening address that the machine must have.
    pub const fn required(socket: SocketAddr) -> Self {
        Self { socket, zone: None, if_available: false }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.zone {
            Some(zone) => write!(f, "[{}%{}]:{}", self.socket.ip(), zone.name(), self.socket.port()),
            None => self.socket.fmt(f),
        }
    }
}

/// The name of a network interface, padded with zeros. The interface's number is not stored: the system may change it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Zone([u8; ZONE_BYTES_MAX]);

/// `IFNAMSIZ` of linux/if.h without the terminating zero.
const ZONE_BYTES_MAX: usize = 15;

impl Zone {
    /// Returns `None` if the text is no valid interface name.
    fn new(name: &str) -> Option<Self> {
        let is_name =
            !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic() && !b"/:%\"".contains(&byte));
        let mut padded = [0; ZONE_BYTES_MAX];
        padded.get_mut(..name.len()).filter(|_| is_name)?.copy_from_slice(name.as_bytes());
        Some(Self(padded))
    }

    /// Returns the interface's name.
    pub fn name(&self) -> &str {
        // `new` accepts only ASCII.
        core::str::from_utf8(&self.0).unwrap_or_default().trim_end_matches('\0')
    }
}

/// Splits an IPv6 link-local address with an interface into both. The separator is `%`, or `%25` as in URIs. Returns
/// `None` for any other text.
pub(super) fn split_zone(text: &str) -> Option<(Ipv6Addr, Zone)> {
    let (address, zone) = text.split_once('%')?;
    let address: Ipv6Addr = address.parse().ok()?;
    let zone = zone.strip_prefix("25").filter(|zone| !zone.is_empty()).unwrap_or(zone);
    Zone::new(zone).filter(|_| address.is_unicast_link_local()).map(|zone| (address, zone))
}

impl FromStr for ListenAddress {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        let expected = "an address and a port: write it like 127.0.0.1:5672, 0.0.0.0:5672 or [::1]:5672, or the \
                    port alone for this machine; names other than localhost are not looked up";
        let here = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let port = text.strip_prefix("localhost:").unwrap_or(text);
        if let Some((place, port)) = text.strip_prefix('[').and_then(|rest| rest.split_once("]:"))
            && let (Some((address, zone)), Ok(port)) = (split_zone(place), port.parse())
        {
            let socket = SocketAddr::from((address, port));
            return Ok(Self { zone: Some(zone), ..Self::required(socket) });
        }
        let socket = text.parse().or_else(|_| port.parse().map(here));
        socket.map(Self::required).map_err(|_| BadValue::new(text, expected))
    }
}

/// The minimum level of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogLevel(pub log::LevelFilter);

impl FromStr for LogLevel {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        let level = text.parse();
        level
            .map(Self)
            .map_err(|_| BadValue::new(text, "a log level: error, warn, info, debug, trace or off"))
    }
}

/// The product whose name the broker announces. Some clients behave differently with RabbitMQ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compat {
    /// Leveret, with its own name and version.
    None,
    /// RabbitMQ, the default. Celery's client then sets its prefetch count as it does with RabbitMQ.
    RabbitMq,
}

impl FromStr for Compat {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        match text {
            "none" => Ok(Self::None),
            "rabbitmq" => Ok(Self::RabbitMq),
            _ => Err(BadValue::new(text, "a value of compat: rabbitmq or none")),
        }
    }
}

/// A text of 1 to 64 printable ASCII characters that the broker sends to every client, such as a product's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label(pub String);

impl FromStr for Label {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        let plain = text.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic());
        if text.is_empty() || text.len() > 64 || !plain {
            return Err(BadValue::new(text, "a text of 1 to 64 printable ASCII characters"));
        }
        Ok(Self(text.to_string()))
    }
}

/// A text of `MIN` to `MAX` bytes, such as a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text<const MIN: usize, const MAX: usize>(pub String);

impl<const MIN: usize, const MAX: usize> Readable for Text<MIN, MAX> {
    fn read(value: &Value<'_>) -> Result<Self, ParseError> {
        let text = String::read(value)?;
        match text.len() {
            bytes if bytes < MIN => Err(ParseError::at(value, "it must not be empty")),
            bytes if bytes > MAX => {
                Err(ParseError::at(value, format_args!("it has {bytes} bytes, more than {MAX}")))
            }
            _ => Ok(Self(text)),
        }
    }
}

/// The origin of web pages, such as `https://dash.example.com:8443`, or `*` for all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebOrigin(pub String);

impl FromStr for WebOrigin {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        let host = text.strip_prefix("https://").or(text.strip_prefix("http://"));
        let is_host = |host: &str| !host.is_empty() && !host.contains(['/', '?', '#', '@', '*', ' ']);
        if text == "*" || host.is_some_and(is_host) {
            return Ok(Self(text.to_string()));
        }
        Err(BadValue::new(
            text,
            "an origin of web pages, such as \"https://dash.example.com\", or \"*\" for all",
        ))
    }
}

/// Splits a text into the digits at its start and the trimmed rest, which is the unit.
fn split_number(text: &str) -> (&str, &str) {
    let end = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    (&text[..end], text[end..].trim())
}

/// Formats `amount` in the largest unit in which it is a whole number, so that parsing the text gives the same value.
fn show(f: &mut fmt::Formatter<'_>, amount: u64, units: &[(&str, u64)]) -> fmt::Result {
    match units.iter().find(|(_, times)| amount >= *times && amount.is_multiple_of(*times)) {
        Some((unit, times)) => write!(f, "\"{}{unit}\"", amount / times),
        None => write!(f, "{amount}"),
    }
}

/// Returns by which factor a number with this unit is multiplied; `None` if the unit is unknown.
fn factor(units: &[(&str, u64)], unit: &str) -> Option<u64> {
    units.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).map(|(_, times)| *times)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        let size = |text: &str| text.parse::<Bytes<u64>>().map(|bytes| bytes.0);
        assert_eq!(size("64MB"), Ok(64_000_000));
        assert_eq!(size("16MiB"), Ok(16 << 20));
        assert_eq!(size("4096"), Ok(4096));
        assert_eq!(size("2 GiB"), Ok(2 << 30));
        assert_eq!(size("64mb"), Ok(64_000_000));
        assert_eq!(size("1K"), Ok(1_024));
        assert_eq!(size("2g"), Ok(2 << 30));
        for bad in ["", "MB", "64XB", "-1", "1.5MB", "64 M B", "0x10"] {
            assert!(size(bad).unwrap_err().to_string().contains("is not a size"), "{bad}");
        }
        assert!("5GB".parse::<Bytes<u32>>().unwrap_err().to_string().contains("below 2^32 bytes"));
        assert!(size("99999999999GB").is_err());
    }

    #[test]
    fn sizes_are_shown_as_they_would_be_written() {
        for text in ["64MB", "16MiB", "256KiB", "4095B", "3GB"] {
            assert_eq!(text.parse::<Bytes<u64>>().unwrap().to_string(), format!("\"{text}\""));
        }
        assert_eq!(Bytes(0_u32).to_string(), "0");
        assert_eq!(Seconds(60).to_string(), "\"60s\"");
        assert_eq!(Millis(1_500).to_string(), "\"1500ms\"");
    }

    #[test]
    fn times_have_units() {
        let time = |text: &str| text.parse::<Millis>().map(|time| time.0);
        assert_eq!(time("10s"), Ok(10_000));
        assert_eq!(time("500ms"), Ok(500));
        assert_eq!(time("2min"), Ok(120_000));
        assert_eq!(time("1h"), Ok(3_600_000));
        assert_eq!(time("0"), Ok(0));
        assert!(time("10").unwrap_err().to_string().contains("ms, s, min or h"));
        assert!(time("5000h").unwrap_err().to_string().contains("49 days"));
        assert_eq!("60s".parse(), Ok(Seconds(60)));
        assert!("1500ms".parse::<Seconds>().unwrap_err().to_string().contains("whole seconds"));
        assert!("65536s".parse::<Seconds>().is_err());
    }

    #[test]
    fn counts_keep_to_their_width() {
        assert_eq!("65535".parse(), Ok(Count(65_535_u16)));
        let error = "65536".parse::<Count<u16>>().unwrap_err();
        assert_eq!(error.to_string(), "\"65536\" is not below 2^16, the limit of this key");
        assert!("-1".parse::<Count<u16>>().unwrap_err().to_string().contains("a whole number"));
    }

    #[test]
    fn addresses_are_numbers() {
        assert!("[::1]:5672".parse::<ListenAddress>().is_ok());
        for here in ["5672", "localhost:5672"] {
            let here = here.parse::<ListenAddress>().map(|listen| listen.socket);
            assert_eq!(here, Ok("127.0.0.1:5672".parse().unwrap()));
        }
        for bad in ["myhost:5672", "65536", "127.0.0.1", ":5672", "::1:5672x", "localhost", "localhost:"] {
            assert!(
                bad.parse::<ListenAddress>().unwrap_err().to_string().contains("127.0.0.1:5672"),
                "{bad}"
            );
        }
    }

    #[test]
    fn link_local_addresses_have_an_interface() {
        for (text, shown) in [
            ("[fe80::1%eth0]:5672", "[fe80::1%eth0]:5672"),
            ("[fe80::1%25br-lan.2]:0", "[fe80::1%br-lan.2]:0"),
            ("[fe80::1%abcdefghijklmno]:1", "[fe80::1%abcdefghijklmno]:1"),
        ] {
            let listen = text.parse::<ListenAddress>().expect(text);
            assert_eq!(listen.to_string(), shown);
            assert_eq!(listen.to_string().parse(), Ok(listen), "it is read as it is shown");
        }
        for bad in [
            "[fe80::1%]:5672",
            "[fe80::1%a/b]:5672",
            "[fe80::1%abcdefghijklmnop]:5672",
            "[2001:db8::1%eth0]:5672",
            "[fe80::1%eth0]",
            "fe80::1%eth0:5672",
        ] {
            bad.parse::<ListenAddress>().expect_err(bad);
        }
    }

    #[test]
    fn labels_are_short_and_plain() {
        assert!("RabbitMQ 3".parse::<Label>().is_ok());
        for bad in ["", "line\nbreak", &"x".repeat(65)] {
            assert!(bad.parse::<Label>().is_err());
        }
    }
}
