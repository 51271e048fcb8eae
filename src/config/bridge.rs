//! The section `[[bridge]]`: queues that are forwarded to an upstream broker, or fetched from it.
//!
//! # Invariants
//! - An unsupported setting is refused by its name.
//! - Variables are expanded once, when the file is read.
//! - No password is shown.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use leveret_core::mem::NAME_BYTES_MAX;
use toml::de::DeValue;

use super::file::{Readable, Value, Wrong, expand, fill, read_from_text, read_text_file, section};
use super::first_user::Secret;
use super::nearest::describe_unknown;
use super::shovels::Shovel;
use super::transports::{quoted, words};
use super::units::{BadValue, Bytes, Count, Millis, Seconds};
use super::upstream::Upstream;

/// Maximum number of rules of a bridge per direction.
pub const RULES_MAX: usize = leveret_core::limits::BRIDGE_RULES_MAX;
/// Maximum number of upstream addresses of a bridge.
const UPSTREAMS_MAX: usize = 8;
/// Default number of messages in flight per rule.
const WINDOW_DEFAULT: u16 = 256;
/// Maximum number of messages in flight per rule.
pub const WINDOW_MAX: u16 = 1024;
/// Default heartbeat interval in seconds.
pub(super) const HEARTBEAT_S_DEFAULT: u16 = 30;
/// Default maximum delay between two connection attempts, in milliseconds.
const RECONNECT_MAX_MS_DEFAULT: u32 = 300_000;
/// Default time limit for a confirm of the upstream, in milliseconds.
pub(super) const CONFIRM_TIMEOUT_MS_DEFAULT: u32 = 60_000;
/// RabbitMQ's own limit since 3.8, in bytes.
pub(super) const MESSAGE_BYTES_MAX_DEFAULT: u32 = 128 << 20;
/// Default maximum number of bridges that a message may cross.
pub(super) const HOPS_MAX_DEFAULT: u16 = 8;
/// Default number of consecutive refusals before a message is parked: about 15 s with random delays, longer than
/// a RabbitMQ cluster takes to elect a leader.
pub(super) const PARK_AFTER_DEFAULT: u16 = 5;
/// Maximum length of a password in a file, in bytes.
const PASSWORD_BYTES_MAX: u64 = 255;
/// A password file may also contain a byte-order mark and a line end.
const FILE_BYTES_BESIDES: u64 = 5;

/// One bridge.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bridge {
    /// Its unique name.
    pub name: String,
    /// The virtual host at this broker.
    pub vhost: String,
    /// Upstream addresses, tried in turn; at least one.
    pub upstream: Vec<Upstream>,
    /// Rules from this broker to the upstream.
    pub forward: Vec<Rule>,
    /// Rules from the upstream to this broker.
    pub fetch: Vec<Rule>,
    /// Maximum number of messages in flight per rule.
    pub window: u16,
    /// Heartbeat interval in seconds; 0 means none.
    pub heartbeat_s: u16,
    /// Maximum delay between two connection attempts, in milliseconds.
    pub reconnect_max_ms: u32,
    /// Time limit for a confirm of the upstream, in milliseconds.
    pub confirm_timeout_ms: u32,
    /// Maximum rate of forwarding; `None`: no limit.
    pub drain_rate: Option<DrainRate>,
    /// Byte budget of a day for both directions, beyond which only urgent rules continue; `None`: bytes are only
    /// counted.
    pub day_bytes_max: Option<u64>,
    /// An alarm is raised if the disk cannot take the messages of an outage of this many days.
    pub outage_days_min: Option<u16>,
    /// When an on-demand link is opened; `None`: the link is always open.
    pub on_demand: Option<OnDemand>,
    /// Maximum size of a body that the upstream accepts, in bytes.
    pub message_size_max: u32,
    /// Maximum number of bridges that a message may cross.
    pub hops_max: u16,
    /// The queue at this broker for messages that were refused.
    pub parked: String,
    /// Number of consecutive refusals after which a message is parked. A message that can never be accepted is parked
    /// at once.
    pub park_after: u16,
    /// Time after which parked messages are sent again, in milliseconds; `None`: only on request.
    pub park_retry_ms: Option<u32>,
    /// A file with the password for addresses without one. It is read for each connection attempt.
    pub password_file: Option<PathBuf>,
    /// Whether missing upstream queues of rules are declared, durable.
    pub declares: bool,
    /// TLS settings for upstreams with `amqps://`.
    pub tls: UpstreamTls,
    /// The shovel that the bridge implements, if any.
    pub shovel: Option<Box<Shovel>>,
}

/// Trusted authorities, and the client certificate of a bridge.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct UpstreamTls {
    /// PEM file with the authorities that sign upstream certificates; `None`: those of the system.
    pub ca_file: Option<PathBuf>,
    /// PEM files with the client certificate and its key; both or neither.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// The name expected in the upstream's certificate, if it is not the host of the address.
    pub server_name: Option<String>,
    /// The only accepted certificate, whatever its content and issuer.
    pub certificate_sha256: Option<Sha256>,
}

/// The SHA-256 of a certificate in DER.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sha256(pub [u8; 32]);

impl FromStr for Sha256 {
    type Err = BadValue;

    /// Parses 64 hexadecimal digits, with or without the colons of `openssl x509 -fingerprint`.
    fn from_str(text: &str) -> Result<Self, BadValue> {
        let digits: Option<Vec<u8>> = text
            .chars()
            .filter(|letter| *letter != ':')
            .map(|letter| letter.to_digit(16).map(|digit| digit as u8))
            .collect();
        let mut sum = [0; 32];
        let Some(digits) = digits.filter(|digits| digits.len() == 2 * sum.len()) else {
            return Err(BadValue::new(
                text,
                "a SHA-256: 64 hexadecimal digits, as `openssl x509 -noout -fingerprint -sha256` tells",
            ));
        };
        for (octet, pair) in sum.iter_mut().zip(digits.chunks(2)) {
            *octet = pair[0] << 4 | pair[1];
        }
        Ok(Self(sum))
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|octet| write!(f, "{octet:02x}"))
    }
}

/// A rate above 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DrainRate {
    /// Messages per second: a bare number.
    Messages(u32),
    /// Bytes per second: a size. Messages count with their properties, as they are on the wire without TLS.
    Bytes(u32),
}

impl FromStr for DrainRate {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        let is_bare = text.bytes().all(|octet| octet.is_ascii_digit());
        let rate = match is_bare {
            true => text.parse().map(|Count(count)| Self::Messages(count)),
            false => text.parse().map(|Bytes(bytes)| Self::Bytes(bytes)),
        };
        match rate {
            Ok(Self::Messages(0) | Self::Bytes(0)) => {
                Err(BadValue::new(text, "a rate: leave drain_rate out for none, or pause the bridge"))
            }
            Err(_) => Err(BadValue::new(
                text,
                "a rate: write a number of messages a second, like 100, or of bytes, like \"20KB\"",
            )),
            rate => rate,
        }
    }
}

impl fmt::Display for DrainRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Messages(count) => count.fmt(f),
            Self::Bytes(bytes) => Bytes(*bytes).fmt(f),
        }
    }
}

/// A rule: from a queue to a queue or an exchange.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rule {
    /// The source queue.
    pub queue: String,
    /// The destination.
    pub to: Destination,
    /// How refused messages are handled.
    pub refused: Refused,
    /// Whether the rule goes before others, and continues when the byte budget is used up.
    pub is_urgent: bool,
}

/// The destination of messages.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Destination {
    /// This queue.
    Queue(String),
    /// This exchange, with this routing key, or with the message's own.
    Exchange(String, Option<String>),
    /// The exchange that the message was published to, with this routing key, or with its own.
    AsItWas(Option<String>),
}

impl Destination {
    /// Returns the exchange that messages are published to, if it is not their own.
    pub fn exchange(&self) -> Option<&str> {
        match self {
            Self::Queue(_) => Some(""),
            Self::Exchange(exchange, _) => Some(exchange),
            Self::AsItWas(_) => None,
        }
    }

    /// Returns the routing key that messages are published with, if it is not their own.
    pub fn key(&self) -> Option<&str> {
        match self {
            Self::Queue(queue) => Some(queue),
            Self::Exchange(_, key) | Self::AsItWas(key) => key.as_deref(),
        }
    }
}

super::transports::words! {
    /// How messages are handled that the other broker refuses.
    Refused of "refused":
    /// They are parked, and the others continue.
    #[default]
    Park = "park",
    /// They stay at the head of the queue, and all messages of the rule behind them wait.
    Wait = "wait",
    /// A fetched message that is too large for this broker is rejected, so the upstream dead-letters or drops it. Any
    /// other refused message is parked.
    Reject = "reject",
}

read_from_text! {
    Sha256;
    Refused;
    DrainRate;
}

section! {
    /// The keys under `[[bridge]]`.
    struct BridgeLayer {
        name: Name,
        vhost: Name,
        upstream: Upstreams,
        password: Secret,
        password_file: PathBuf,
        forward: Rules,
        fetch: Rules,
        window: Count<u16>,
        heartbeat: Seconds,
        reconnect_max: Millis,
        confirm_timeout: Millis,
        drain_rate: DrainRate,
        day_bytes_max: Bytes<u64>,
        outage_days_min: Count<u16>,
        link: LinkMode,
        connect_messages: Count<u32>,
        connect_age: Millis,
        connect_interval: Millis,
        connect_at: Vec<TimeOfDay>,
        rest_after: Millis,
        message_size_max: Bytes<u32>,
        hops_max: Count<u16>,
        parked: Name,
        park_after: Count<u16>,
        park_retry: Millis,
        declare: bool,
        ca_file: PathBuf,
        certificate: PathBuf,
        key: PathBuf,
        server_name: Name,
        server_certificate_sha256: Sha256,
    }
}

section! {
    /// The keys under `[[bridge.forward]]` and `[[bridge.fetch]]`.
    struct RuleLayer {
        queue: Name,
        to_queue: Name,
        to_exchange: Name,
        to_key: Name,
        refused: Refused,
        urgent: bool,
    }
}

/// A name with its variables expanded.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Name(String);

impl Readable for Name {
    fn read(value: &Value<'_>) -> Result<Self, Wrong> {
        let text = expand(&String::read(value)?).map_err(|why| Wrong::value(value, why))?;
        match text.len() {
            0 => Err(Wrong::value(value, "it must not be empty")),
            1..=NAME_BYTES_MAX => Ok(Self(text)),
            _ => Err(Wrong::value(value, "a name has 255 bytes at most")),
        }
    }
}

/// Prefix of the names of bridges that shovels create.
const SHOVELS_BEGIN: &str = "shovel ";

/// One address or a list of addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Upstreams(Vec<Upstream>);

impl Readable for Upstreams {
    fn read(value: &Value<'_>) -> Result<Self, Wrong> {
        let one = |value: &Value<'_>| {
            let text = expand(&String::read(value)?).map_err(|why| Wrong::value(value, why))?;
            Upstream::parse(&text).map_err(|why| Wrong::value(value, why))
        };
        let addresses = match value.get_ref() {
            DeValue::Array(list) => list.iter().map(one).collect::<Result<Vec<_>, _>>()?,
            _ => vec![one(value)?],
        };
        match addresses.len() {
            1..=UPSTREAMS_MAX => Ok(Self(addresses)),
            _ => Err(Wrong::value(value, format_args!("there must be 1 to {UPSTREAMS_MAX} addresses"))),
        }
    }
}

/// The rules of one direction.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rules(Vec<Rule>);

impl Readable for Rules {
    fn read(value: &Value<'_>) -> Result<Self, Wrong> {
        let rules: Vec<Rule> = tables(value, "[[bridge.forward]] or [[bridge.fetch]]", rule)?;
        match rules.len() {
            0..=RULES_MAX => Ok(Self(rules)),
            _ => Err(Wrong::value(value, format_args!("there may be {RULES_MAX} of them at most"))),
        }
    }
}

#[cold]
fn rule(value: &Value<'_>, said: RuleLayer) -> Result<Rule, Wrong> {
    let queue =
        said.queue.ok_or_else(|| Wrong::value(value, "a rule needs queue, where messages come from"))?;
    let to = match (said.to_queue, said.to_exchange, said.to_key) {
        (Some(queue), None, None) => Destination::Queue(queue.0),
        (None, Some(exchange), key) => Destination::Exchange(exchange.0, key.map(|key| key.0)),
        _ => {
            return Err(Wrong::value(
                value,
                "a rule needs either to_queue, or to_exchange with or without to_key",
            ));
        }
    };
    let (refused, is_urgent) = (said.refused.unwrap_or_default(), said.urgent.unwrap_or(false));
    Ok(Rule { queue: queue.0, to, refused, is_urgent })
}

/// All bridges of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bridges(pub(super) Vec<Bridge>);

impl Readable for Bridges {
    fn read(value: &Value<'_>) -> Result<Self, Wrong> {
        let bridges: Vec<Bridge> = tables(value, "[[bridge]]", bridge)?;
        let places = value.get_ref().as_array().into_iter().flat_map(|list| list.iter());
        for (at, (one, place)) in bridges.iter().zip(places).enumerate() {
            let name = &one.name;
            if name.starts_with(SHOVELS_BEGIN) {
                let why = format!("\"{name}\" begins like the names of shovels: choose another");
                return Err(Wrong::value(place, why));
            }
            if let Some(other) = bridges[..at].iter().position(|other| other.name == *name) {
                let first = value.get_ref().as_array().and_then(|list| list.get(other));
                let wrong = Wrong::value(place, format_args!("two are named \"{name}\""));
                return Err(Wrong { first: first.map(|first| first.span().start), ..wrong });
            }
        }
        Ok(Self(bridges))
    }
}

/// Reads a section that may occur several times, and converts each occurrence.
fn tables<L: Default + super::file::Section, T>(
    value: &Value<'_>,
    heading: &str,
    made: fn(&Value<'_>, L) -> Result<T, Wrong>,
) -> Result<Vec<T>, Wrong> {
    let list = value.get_ref().as_array();
    let list = list.ok_or_else(|| Wrong::kind(value, &format!("sections, each headed {heading}")))?;
    let one = |value: &Value<'_>| {
        let table = value.get_ref().as_table().ok_or_else(|| Wrong::kind(value, "a section"))?;
        let mut said = L::default();
        fill(&mut said, table, |key, known| describe_unknown("key", key, known))?;
        made(value, said)
    };
    list.iter().map(one).collect()
}

#[cold]
fn bridge(value: &Value<'_>, said: BridgeLayer) -> Result<Bridge, Wrong> {
    let wrong = |why: &str| Wrong::value(value, why);
    let name = said.name.ok_or_else(|| wrong("a bridge needs a name"))?.0;
    let upstream =
        said.upstream.ok_or_else(|| wrong("a bridge needs upstream, the address it connects to"))?;
    let [forward, fetch] =
        [said.forward, said.fetch].map(|rules| rules.map_or_else(Vec::new, |rules| rules.0));
    if forward.is_empty() && fetch.is_empty() {
        return Err(wrong("a bridge needs [[bridge.forward]] or [[bridge.fetch]], or it has nothing to do"));
    }
    let window = said.window.map_or(WINDOW_DEFAULT, |count| count.0);
    if !(1..=WINDOW_MAX).contains(&window) {
        return Err(wrong(&format!("window must be 1 to {WINDOW_MAX}")));
    }
    if said.password.is_some() && said.password_file.is_some() {
        return Err(wrong("either password or password_file, not both"));
    }
    let day_bytes_max = said.day_bytes_max.map(|bytes| bytes.0);
    if day_bytes_max == Some(0) {
        return Err(wrong("day_bytes_max must be more than 0: leave it out for none, or pause the bridge"));
    }
    if forward.iter().any(|rule| rule.refused == Refused::Reject) {
        return Err(wrong(
            "refused = \"reject\" is for [[bridge.fetch]]: what is forwarded is parked or waits",
        ));
    }
    let on_demand = OnDemandKeys {
        link: said.link,
        messages: said.connect_messages,
        age: said.connect_age,
        interval: said.connect_interval,
        times: said.connect_at,
        rest_after: said.rest_after,
    };
    let on_demand = on_demand.made(value)?;
    if forward.is_empty() && on_demand.as_ref().is_some_and(OnDemand::is_never_without_messages) {
        return Err(wrong(
            "a bridge that only fetches knows nothing of what waits: with link = \"on_demand\" it needs \
             connect_interval or connect_at",
        ));
    }
    let identity = match (said.certificate, said.key) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        _ => return Err(wrong("certificate and key go together: name both, or neither")),
    };
    let server_name = said.server_name.map(|name| name.0);
    if server_name.as_ref().is_some_and(|name| !is_host_name(name)) {
        return Err(wrong("server_name must be the name or the address that a certificate is made out to"));
    }
    if said.ca_file.is_some() && said.server_certificate_sha256.is_some() {
        return Err(wrong(
            "either ca_file or server_certificate_sha256, not both: with the latter nobody is asked who signed it",
        ));
    }
    let certificate_sha256 = said.server_certificate_sha256;
    let tls = UpstreamTls { ca_file: said.ca_file, identity, server_name, certificate_sha256 };
    let with_tls = upstream.0.iter().any(|address| address.with_tls);
    if !with_tls && tls != UpstreamTls::default() {
        return Err(wrong(
            "ca_file, certificate, key, server_name and server_certificate_sha256 are of use with amqps:// only",
        ));
    }
    let bridge = Bridge {
        tls,
        shovel: None,
        declares: said.declare.unwrap_or(false),
        vhost: said.vhost.map_or_else(|| "/".to_string(), |name| name.0),
        upstream: with_password(upstream.0, said.password.as_ref()),
        password_file: said.password_file,
        forward,
        fetch,
        window,
        heartbeat_s: said.heartbeat.map_or(HEARTBEAT_S_DEFAULT, |time| time.0),
        reconnect_max_ms: said.reconnect_max.map_or(RECONNECT_MAX_MS_DEFAULT, |time| time.0).max(1_000),
        confirm_timeout_ms: said.confirm_timeout.map_or(CONFIRM_TIMEOUT_MS_DEFAULT, |time| time.0).max(1_000),
        drain_rate: said.drain_rate,
        day_bytes_max,
        outage_days_min: said.outage_days_min.map(|days| days.0),
        on_demand,
        message_size_max: said.message_size_max.map_or(MESSAGE_BYTES_MAX_DEFAULT, |bytes| bytes.0),
        hops_max: said.hops_max.map_or(HOPS_MAX_DEFAULT, |count| count.0),
        parked: said.parked.map_or_else(|| format!("bridge.{name}.parked"), |name| name.0),
        park_after: said.park_after.map_or(PARK_AFTER_DEFAULT, |count| count.0),
        park_retry_ms: said.park_retry.map(|time| time.0.max(1_000)),
        name,
    };
    match bridge.feeds_itself() {
        false => Ok(bridge),
        true => Err(wrong(
            "what is refused goes to `parked`, so that is no queue to forward: name another one, or say \
             refused = \"wait\" in its rule",
        )),
    }
}

/// Returns whether a certificate could contain this name.
fn is_host_name(name: &str) -> bool {
    name.bytes().all(|octet| octet.is_ascii_alphanumeric() || b"-._:".contains(&octet))
}

/// Sets the password of addresses that contain none: this one, or `guest`.
#[cold]
fn with_password(mut upstream: Vec<Upstream>, password: Option<&Secret>) -> Vec<Upstream> {
    for address in &mut upstream {
        address.password = address.password.take().or_else(|| password.cloned());
    }
    upstream
}

/// Reads the password from a file.
///
/// # Errors
/// What is wrong with the file.
#[cold]
pub fn read_password(file: &Path) -> Result<Secret, String> {
    // A bare name is a credential of the service manager, if that provides any.
    let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").filter(|_| file.components().count() == 1);
    let file = &credentials.map_or_else(|| file.to_path_buf(), |folder| PathBuf::from(folder).join(file));
    let shown = file.display();
    let text = read_text_file(file, PASSWORD_BYTES_MAX + FILE_BYTES_BESIDES);
    let text = text.map_err(|error| format!("password_file {shown} cannot be read: {error}"))?;
    let text = text.ok_or_else(|| format!("password_file {shown} is longer than a password can be"))?;
    match text.trim_end_matches(['\r', '\n']) {
        "" => Err(format!("password_file {shown} is empty")),
        lines if lines.contains('\n') => {
            Err(format!("password_file {shown} has several lines: the password stands in it alone"))
        }
        password => Ok(Secret(password.to_string())),
    }
}

impl Bridge {
    /// Returns whether the bridge forwards the queue that it parks refused messages in. Such a message would
    /// circulate.
    pub fn feeds_itself(&self) -> bool {
        self.forward.iter().any(|rule| rule.queue == self.parked && rule.refused == Refused::Park)
    }

    /// Returns whether one of the upstreams uses TLS.
    pub fn has_tls(&self) -> bool {
        self.upstream.iter().any(|address| address.with_tls)
    }

    /// Formats the bridge as in a file, with variables expanded.
    #[cold]
    pub(super) fn shown(&self) -> Vec<String> {
        let upstream: Vec<String> = self.upstream.iter().map(|address| format!("\"{address}\"")).collect();
        let mut lines = vec![
            "\n[[bridge]]".to_string(),
            format!("name = {:?}", self.name),
            format!("vhost = {:?}", self.vhost),
            format!("upstream = [{}]", upstream.join(", ")),
            format!("window = {}", self.window),
            format!("heartbeat = {}", Seconds(self.heartbeat_s)),
            format!("reconnect_max = {}", Millis(self.reconnect_max_ms)),
            format!("confirm_timeout = {}", Millis(self.confirm_timeout_ms)),
            format!("message_size_max = {}", Bytes(self.message_size_max)),
            format!("hops_max = {}", self.hops_max),
            format!("parked = {:?}", self.parked),
            format!("park_after = {}", self.park_after),
            format!("declare = {}", self.declares),
        ];
        lines.extend(self.park_retry_ms.map(|ms| format!("park_retry = {}", Millis(ms))));
        lines.extend(self.password_file.as_ref().map(|path| format!("password_file = {}", quoted(path))));
        lines.extend(self.drain_rate.map(|rate| format!("drain_rate = {rate}")));
        lines.extend(self.day_bytes_max.map(|max| format!("day_bytes_max = {}", Bytes(max))));
        lines.extend(self.outage_days_min.map(|days| format!("outage_days_min = {days}")));
        lines.extend(self.on_demand.iter().flat_map(OnDemand::shown));
        let UpstreamTls { ca_file, identity, server_name, certificate_sha256 } = &self.tls;
        let (certificate, key) =
            identity.as_ref().map_or((None, None), |(one, other)| (Some(one), Some(other)));
        for (name, path) in [("ca_file", ca_file.as_ref()), ("certificate", certificate), ("key", key)] {
            lines.extend(path.map(|path| format!("{name} = {}", quoted(path))));
        }
        lines.extend(server_name.as_ref().map(|name| format!("server_name = {name:?}")));
        lines.extend(certificate_sha256.map(|sum| format!("server_certificate_sha256 = \"{sum}\"")));
        for (heading, rules) in [("[[bridge.forward]]", &self.forward), ("[[bridge.fetch]]", &self.fetch)] {
            for rule in rules {
                lines.extend([heading.to_string(), format!("queue = {:?}", rule.queue)]);
                match &rule.to {
                    Destination::Queue(queue) => lines.push(format!("to_queue = {queue:?}")),
                    Destination::Exchange(exchange, key) => {
                        lines.push(format!("to_exchange = {exchange:?}"));
                        lines.extend(key.as_ref().map(|key| format!("to_key = {key:?}")));
                    }
                    // This destination exists only for shovels, and has no key.
                    Destination::AsItWas(_) => {}
                }
                lines.push(format!("refused = {}", rule.refused));
                lines.extend(rule.is_urgent.then(|| "urgent = true".to_string()));
            }
        }
        lines
    }
}

/// Default number of messages that wait to be forwarded before a link is opened.
const MESSAGES_DEFAULT: u32 = 1_000;
/// Default age of the oldest waiting message before a link is opened, in milliseconds.
const AGE_MS_DEFAULT: u32 = 3_600_000;
/// Default time from one connection to the next, in milliseconds.
const INTERVAL_MS_DEFAULT: u32 = 6 * 3_600_000;
/// Default idle time before a link is closed, in milliseconds.
const REST_AFTER_MS_DEFAULT: u32 = 10_000;
/// Minimum idle time: a link that is closed earlier may not have received what waits at the upstream, in
/// milliseconds.
const REST_AFTER_MS_MIN: u32 = 1_000;
/// Maximum number of times of day of a bridge.
const TIMES_MAX: usize = 8;

words! {
    /// When links are open.
    LinkMode of "link":
    /// Always, or as soon as the upstream can be reached.
    #[default]
    Always = "always",
    /// While there is something to transfer; [`OnDemand`] says when they are opened.
    OnDemand = "on_demand",
}

/// When an on-demand link is opened and closed. Its keys are refused without `link = "on_demand"`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OnDemand {
    /// It is opened when this many messages wait to be forwarded; at least 1.
    pub messages: u32,
    /// It is opened when a message has waited this long, in milliseconds.
    pub age_ms: u32,
    /// It is opened when the last connection was this long ago, in milliseconds; 0: never for this reason.
    pub interval_ms: u32,
    /// It is opened at these times of day.
    pub times: Vec<TimeOfDay>,
    /// It is closed when nothing was transferred for this long, in milliseconds.
    pub rest_after_ms: u32,
}

/// Minutes since midnight, UTC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TimeOfDay(pub u16);

impl FromStr for TimeOfDay {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        let number = |digits: &str, below: u16| {
            let is_two = digits.len() == 2 && digits.bytes().all(|octet| octet.is_ascii_digit());
            digits.parse::<u16>().ok().filter(|number| is_two && *number < below)
        };
        let parts = text.split_once(':').and_then(|(hour, minute)| number(hour, 24).zip(number(minute, 60)));
        let minutes = parts.map(|(hour, minute)| Self(60 * hour + minute));
        minutes.ok_or_else(|| {
            BadValue::new(text, "a time of day: write hours and minutes of UTC, such as \"02:30\"")
        })
    }
}

impl fmt::Display for TimeOfDay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{:02}:{:02}\"", self.0 / 60, self.0 % 60)
    }
}

read_from_text! {
    LinkMode;
    TimeOfDay;
}

/// The keys of an on-demand link in a file.
pub(super) struct OnDemandKeys {
    pub(super) link: Option<LinkMode>,
    pub(super) messages: Option<Count<u32>>,
    pub(super) age: Option<Millis>,
    pub(super) interval: Option<Millis>,
    pub(super) times: Option<Vec<TimeOfDay>>,
    pub(super) rest_after: Option<Millis>,
}

impl OnDemandKeys {
    #[cold]
    pub(super) fn made(self, value: &Value<'_>) -> Result<Option<OnDemand>, Wrong> {
        let Self { link, messages, age, interval, times, rest_after } = self;
        if link != Some(LinkMode::OnDemand) {
            let is_said = messages.is_some()
                || times.is_some()
                || [age, interval, rest_after].iter().any(Option::is_some);
            return match is_said {
                true => Err(Wrong::value(
                    value,
                    "connect_messages, connect_age, connect_interval, connect_at and rest_after are of use \
                     with link = \"on_demand\" only",
                )),
                false => Ok(None),
            };
        }
        let ms = |said: Option<Millis>, default| said.map_or(default, |time| time.0);
        let made = OnDemand {
            messages: messages.map_or(MESSAGES_DEFAULT, |count| count.0),
            age_ms: ms(age, AGE_MS_DEFAULT),
            interval_ms: ms(interval, INTERVAL_MS_DEFAULT),
            times: times.unwrap_or_default(),
            rest_after_ms: ms(rest_after, REST_AFTER_MS_DEFAULT),
        };
        let wrong = |why: &str| Err(Wrong::value(value, why));
        if made.messages == 0 {
            return wrong("connect_messages must be at least 1: with 1 it connects for every message");
        }
        if made.rest_after_ms < REST_AFTER_MS_MIN {
            return wrong("rest_after must be at least 1s, for what the upstream has must have time to come");
        }
        if made.times.len() > TIMES_MAX {
            return wrong(&format!("connect_at may name {TIMES_MAX} times of day at most"));
        }
        Ok(Some(made))
    }
}

impl OnDemand {
    /// Returns whether a link is opened only for messages that wait at this broker.
    pub(super) const fn is_never_without_messages(&self) -> bool {
        self.interval_ms == 0 && self.times.is_empty()
    }

    /// Formats the keys as in a file.
    #[cold]
    pub(super) fn shown(&self) -> [String; 6] {
        let times: Vec<String> = self.times.iter().map(TimeOfDay::to_string).collect();
        [
            format!("link = {}", LinkMode::OnDemand),
            format!("connect_messages = {}", self.messages),
            format!("connect_age = {}", Millis(self.age_ms)),
            format!("connect_interval = {}", Millis(self.interval_ms)),
            format!("connect_at = [{}]", times.join(", ")),
            format!("rest_after = {}", Millis(self.rest_after_ms)),
        ]
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::settings::Layer;
    use super::*;

    const PLANT: &str = "[[bridge]]\nname = \"plant\"\nupstream = \"amqp://edge@h\"\n";
    const SAFE: &str = "[[bridge]]\nname = \"plant\"\nupstream = \"amqps://edge@h\"\n";
    const DEMAND: &str = "[[bridge]]\nname = \"plant\"\nupstream = \"amqp://edge@h\"\nlink = \"on_demand\"\n";
    const RULE: &str = "[[bridge.forward]]\nqueue = \"a\"\nto_queue = \"b\"\n";

    fn read(text: &str) -> Result<Vec<Bridge>, String> {
        let layer = Layer::parse("f", text).map_err(|error| error.to_string())?;
        Ok(layer.bridge.map_or_else(Vec::new, |bridges| bridges.0))
    }

    #[test]
    fn what_is_not_said_has_its_default_and_variables_are_filled_in() {
        let rules = "[[bridge.fetch]]\nqueue = \"c.${hostname}\"\nto_exchange = \"x\"\nrefused = \"wait\"\n";
        let bridges = read(&format!("{PLANT}password = \"pw\"\n{RULE}{rules}")).expect("it is right");
        let [bridge] = bridges.as_slice() else { panic!("one bridge") };
        let host = expand("${hostname}").expect("a machine has a name");
        assert_eq!(bridge.fetch[0].queue, format!("c.{host}"));
        assert_eq!(bridge.fetch[0].to, Destination::Exchange("x".into(), None));
        assert_eq!((bridge.fetch[0].refused, bridge.forward[0].refused), (Refused::Wait, Refused::Park));
        assert_eq!((bridge.window, &*bridge.parked, &*bridge.vhost), (256, "bridge.plant.parked", "/"));
        assert_eq!(bridge.upstream[0].password, Some(Secret("pw".into())));
        let shown = bridge.shown().join("\n");
        assert!(!shown.contains("pw"), "no password is shown");
        let again = read(&shown).expect("what is shown can be read");
        assert_eq!(again[0].forward, bridge.forward);
        assert_eq!((&again[0].upstream[0].host, again[0].window), (&bridge.upstream[0].host, bridge.window));
    }

    #[test]
    fn what_is_said_of_tls_is_shown_as_it_is_read() {
        let said = "ca_file = \"/ca.pem\"\ncertificate = \"/c.pem\"\nkey = \"/k.pem\"\n\
                    server_name = \"r.example\"\n";
        let bridges = read(&format!("{SAFE}{said}{RULE}")).expect("it is right");
        assert!(bridges[0].has_tls() && bridges[0].upstream[0].port == 5671);
        let again = read(&bridges[0].shown().join("\n")).expect("what is shown can be read");
        assert_eq!(again[0].tls, bridges[0].tls);
        assert_eq!(again[0].tls.identity, Some(("/c.pem".into(), "/k.pem".into())));
    }

    /// A fingerprint as OpenSSL prints it.
    fn pinned() -> String {
        format!("server_certificate_sha256 = \"{}\"\n", ["A0"; 32].join(":"))
    }

    #[test]
    fn one_certificate_is_named_as_openssl_tells_it() {
        let bridges = read(&format!("{SAFE}{}{RULE}", pinned())).expect("it is right");
        assert_eq!(bridges[0].tls.certificate_sha256, Some(Sha256([0xa0; 32])));
        let again = read(&bridges[0].shown().join("\n")).expect("what is shown can be read");
        assert_eq!(again[0].tls, bridges[0].tls);
    }

    #[test]
    fn a_rate_is_of_messages_or_of_bytes() {
        for (said, rate) in [
            ("5", DrainRate::Messages(5)),
            ("\"20KB\"", DrainRate::Bytes(20_000)),
            ("\"1500B\"", DrainRate::Bytes(1_500)),
        ] {
            let bridges = read(&format!("{PLANT}drain_rate = {said}\n{RULE}")).expect("it is right");
            assert_eq!(bridges[0].drain_rate, Some(rate));
            let again = read(&bridges[0].shown().join("\n")).expect("what is shown can be read");
            assert_eq!(again[0].drain_rate, Some(rate));
        }
    }

    #[test]
    fn a_day_has_a_budget_and_rules_that_go_on_without_it() {
        let fetch = "[[bridge.fetch]]\nqueue = \"c\"\nto_queue = \"d\"\nurgent = true\n";
        let bridges = read(&format!("{PLANT}day_bytes_max = \"20MB\"\n{RULE}{fetch}")).expect("it is right");
        assert_eq!(bridges[0].day_bytes_max, Some(20_000_000));
        assert!(bridges[0].fetch[0].is_urgent && !bridges[0].forward[0].is_urgent);
        let again = read(&bridges[0].shown().join("\n")).expect("what is shown can be read");
        assert_eq!((&again[0].fetch, again[0].day_bytes_max), (&bridges[0].fetch, Some(20_000_000)));
    }

    #[test]
    fn a_link_on_demand_is_shown_as_it_is_read() {
        let default = read(&format!("{DEMAND}{RULE}")).expect("it is right")[0].on_demand.clone();
        let (messages, age_ms, interval_ms, times) = (1_000, 3_600_000, 21_600_000, Vec::new());
        let wanted = OnDemand { messages, age_ms, interval_ms, times, rest_after_ms: 10_000 };
        assert_eq!(default, Some(wanted));
        let said = "connect_messages = 1\nconnect_age = \"5min\"\nconnect_interval = 0\n\
                    connect_at = [\"02:30\", \"14:30\"]\nrest_after = \"2s\"\n";
        let bridges = read(&format!("{DEMAND}{said}{RULE}")).expect("it is right");
        let times = vec![TimeOfDay(150), TimeOfDay(870)];
        let (messages, age_ms, interval_ms) = (1, 300_000, 0);
        let wanted = OnDemand { messages, age_ms, interval_ms, times, rest_after_ms: 2_000 };
        assert_eq!(bridges[0].on_demand, Some(wanted));
        let again = read(&bridges[0].shown().join("\n")).expect("what is shown can be read");
        assert_eq!(again[0].on_demand, bridges[0].on_demand);
    }

    #[test]
    fn a_file_with_more_than_the_password_is_refused_when_it_is_read() {
        let file = std::env::temp_dir().join(format!("leveret-password-{}", std::process::id()));
        let longest = "x".repeat(255);
        let longest_file = format!("\u{feff}{longest}\r\n");
        let too_long = format!("{longest_file}x");
        let cases: [(&str, Result<&str, &str>); 7] = [
            ("secret\n", Ok("secret")),
            ("\u{feff}secret", Ok("secret")),
            (&longest_file, Ok(&longest)),
            (&too_long, Err("longer than a password")),
            ("se cret\r\n", Ok("se cret")),
            ("user\nsecret\n", Err("has several lines")),
            ("\n", Err("is empty")),
        ];
        for (text, wanted) in cases {
            fs::write(&file, text).expect("the temporary folder can be written");
            match (read_password(&file), wanted) {
                (Ok(password), Ok(wanted)) => assert_eq!(password.0, wanted),
                (Err(why), Err(wanted)) => assert!(why.contains(wanted) && !why.contains("secret"), "{why}"),
                (read, wanted) => {
                    panic!("{text:?}: {:?} and not {wanted:?}", read.map(|password| password.0))
                }
            }
        }
        fs::remove_file(&file).expect("it was written");
        assert!(read_password(&file).is_err_and(|why| why.contains("cannot be read")));
        // The broker starts without the file. Each attempt to connect reports the error.
        let bridges = read(&format!("{PLANT}password_file = {file:?}\n{RULE}")).expect("it is right");
        assert_eq!(bridges[0].password_file, Some(file));
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_line() {
        for (text, line, part) in [
            (format!("{PLANT}drain_rate = 0\n{RULE}"), 4, "leave drain_rate out"),
            (format!("{PLANT}drain_rate = \"fast\"\n{RULE}"), 4, "messages a second"),
            (format!("{PLANT}day_bytes_max = 0\n{RULE}"), 1, "more than 0"),
            (format!("{PLANT}link = \"sometimes\"\n{RULE}"), 4, "always, on_demand"),
            (format!("{PLANT}rest_after = \"5s\"\n{RULE}"), 1, "with link = \"on_demand\" only"),
            (format!("{DEMAND}rest_after = \"5ms\"\n{RULE}"), 1, "at least 1s"),
            (format!("{DEMAND}connect_messages = 0\n{RULE}"), 1, "at least 1"),
            (
                format!("{DEMAND}connect_interval = 0\n{}", RULE.replace("forward", "fetch")),
                1,
                "only fetches",
            ),
            (format!("{DEMAND}connect_at = \"2:30\"\n{RULE}"), 5, "such as \"02:30\""),
            (format!("{PLANT}{RULE}to_exchange = \"x\"\n"), 4, "either to_queue, or to_exchange"),
            (PLANT.to_string(), 1, "has nothing to do"),
            (format!("{PLANT}parked = \"a\"\n{RULE}"), 1, "no queue to forward"),
            (format!("[[bridge]]\nname = \"x\"\n{RULE}"), 1, "needs upstream"),
            (format!("{PLANT}window = 0\n{RULE}"), 1, "window must be 1 to 1024"),
            (
                format!("{PLANT}{RULE}{PLANT}{RULE}"),
                7,
                "bridge: two are named \"plant\"; the first is in line 1",
            ),
            (format!("{}{RULE}", PLANT.replace("plant", "shovel s")), 1, "the names of shovels"),
            (format!("{PLANT}ca_file = \"/ca\"\n{RULE}"), 1, "amqps:// only"),
            (format!("{SAFE}key = \"/k\"\n{RULE}"), 1, "name both"),
            (format!("{SAFE}server_name = \"a b\"\n{RULE}"), 1, "made out to"),
            (format!("{SAFE}server_certificate_sha256 = \"ab:cd\"\n{RULE}"), 4, "64 hexadecimal digits"),
            (format!("{PLANT}{}{RULE}", pinned()), 1, "amqps:// only"),
            (format!("{SAFE}{}ca_file = \"/ca\"\n{RULE}", pinned()), 1, "not both"),
        ] {
            let why = read(&text).expect_err(&text);
            assert!(why.starts_with(&format!("f, line {line}: ")) && why.contains(part), "{why}");
        }
    }
}

#[cfg(test)]
mod on_demand_tests {
    use super::*;

    #[test]
    fn a_time_of_day_is_two_digits_and_two_digits() {
        for (text, minutes) in [("00:00", 0), ("02:30", 150), ("23:59", 1_439)] {
            let time: TimeOfDay = text.parse().expect(text);
            assert_eq!((time.0, time.to_string()), (minutes, format!("{text:?}")));
        }
        for text in ["", "24:00", "2:30", "02:60", "02:3", "+1:30", "02:30:00", "02.30", "noon"] {
            assert!(text.parse::<TimeOfDay>().is_err(), "{text}");
        }
    }
}
