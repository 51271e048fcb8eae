//! The section `[[bridge]]`: a bridge forwards messages of queues to an upstream broker, or fetches messages from there.
//!
//! # Invariants
//! - The error for an unsupported setting names its key.
//! - Variables are expanded once, when the file is read.
//! - A formatted configuration contains no password.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use leveret_core::mem::NAME_BYTES_MAX;
use toml::de::DeValue;

use super::file::{ParseError, Readable, Value, expand, fill, read_from_text, read_text_file, section};
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
/// Default maximum size of a body that the upstream accepts, in bytes: the default of RabbitMQ 3.8 to 3.13. RabbitMQ
/// 4.0 accepts only 16 MiB by default.
pub(super) const MESSAGE_BYTES_MAX_DEFAULT: u32 = 128 << 20;
/// Default maximum number of bridges that a message may cross.
pub(super) const HOPS_MAX_DEFAULT: u16 = 8;
/// Default number of consecutive refusals before a message is parked. With the random delays between the attempts they
/// take about 15 s, longer than a RabbitMQ cluster needs to elect a leader.
pub(super) const PARK_AFTER_DEFAULT: u16 = 5;
/// Maximum length of a password in a file, in bytes.
const PASSWORD_BYTES_MAX: u64 = 255;
/// Maximum number of further bytes in a password file: a byte-order mark and a line end.
const FILE_EXTRA_BYTES_MAX: u64 = 5;

/// One bridge.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bridge {
    /// The unique name.
    pub name: String,
    /// The virtual host at this broker.
    pub vhost: String,
    /// Upstream addresses, tried in turn; at least one.
    pub upstream: Vec<Upstream>,
    /// Rules from this broker to the upstream.
    pub forward: Vec<Rule>,
    /// Rules from the upstream to this broker.
    pub fetch: Vec<Rule>,
    /// Maximum number of messages in flight: of each rule that forwards, and of all rules that fetch together.
    pub window: u16,
    /// Heartbeat interval in seconds; 0 means none.
    pub heartbeat_s: u16,
    /// Maximum delay between two connection attempts, in milliseconds.
    pub reconnect_max_ms: u32,
    /// Time limit for a confirm of the upstream, in milliseconds.
    pub confirm_timeout_ms: u32,
    /// Maximum rate of forwarding; `None`: no limit.
    pub drain_rate: Option<DrainRate>,
    /// Byte budget of a day for both directions together. When it is used up, only urgent rules continue. `None`: bytes
    /// are only counted.
    pub day_bytes_max: Option<u64>,
    /// An alarm is raised if the disk is too small for the messages that arrive in an outage of this many days; `None`:
    /// no alarm.
    pub outage_days_min: Option<u16>,
    /// When an on-demand link is opened; `None`: the link is always open.
    pub on_demand: Option<OnDemand>,
    /// Maximum size of a body that the upstream accepts, in bytes.
    pub message_size_max: u32,
    /// Maximum number of bridges that a message may cross.
    pub hops_max: u16,
    /// The queue at this broker for parked messages: refused ones that are set aside so that later messages can flow.
    pub parked: String,
    /// Number of consecutive refusals after which a message is parked. A message that can never be accepted is parked
    /// at once.
    pub park_after: u16,
    /// Time after which parked messages are sent again, in milliseconds; `None`: only when an operator requests it.
    pub park_retry_ms: Option<u32>,
    /// A file with the password for addresses that contain none. It is read for each connection attempt.
    pub password_file: Option<PathBuf>,
    /// Whether queues of the rules that are missing at the upstream are declared there, as durable queues.
    pub declares: bool,
    /// TLS settings for upstreams with `amqps://`.
    pub tls: UpstreamTls,
    /// The shovel that the bridge implements, if any.
    pub shovel: Option<Box<Shovel>>,
}

/// The TLS settings of a bridge: trusted authorities, and the bridge's own client certificate.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct UpstreamTls {
    /// PEM file with the authorities that sign upstream certificates; `None`: those of the system.
    pub ca_file: Option<PathBuf>,
    /// PEM files with the client certificate and its key; both or neither.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// The name that the upstream's certificate must contain; `None`: the host of the address.
    pub server_name: Option<String>,
    /// The hash of the only accepted certificate. Names, times and issuer of that certificate are not checked.
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
            .filter(|character| *character != ':')
            .map(|character| character.to_digit(16).map(|digit| digit as u8))
            .collect();
        let mut sum = [0; 32];
        let Some(digits) = digits.filter(|digits| digits.len() == 2 * sum.len()) else {
            return Err(BadValue::new(
                text,
                "a SHA-256: 64 hexadecimal digits, as `openssl x509 -noout -fingerprint -sha256` prints",
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

/// The value of `drain_rate`, above 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DrainRate {
    /// Messages per second: a number without a unit.
    Messages(u32),
    /// Bytes per second: a size. The size of a message includes its frames and properties, but not TLS.
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
                Err(BadValue::new(text, "a rate: leave drain_rate out for no limit, or pause the bridge"))
            }
            Err(_) => Err(BadValue::new(
                text,
                "a rate: write messages per second, like 100, or bytes per second, like \"20KB\"",
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

/// A rule: moves the messages of one queue to a queue or an exchange of the other broker.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rule {
    /// The source queue.
    pub queue: String,
    /// The destination.
    pub to: Destination,
    /// How refused messages are handled.
    pub refused: RefusedAction,
    /// Whether messages of the rule are sent before those of other rules, and even when the byte budget is used up.
    pub is_urgent: bool,
}

/// The destination of a rule's messages.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Destination {
    /// This queue.
    Queue(String),
    /// This exchange, with this routing key or, if `None`, the message's own.
    Exchange(String, Option<String>),
    /// The exchange that the message was published to, with this routing key or, if `None`, the message's own. Only
    /// shovels have this destination.
    OriginalExchange(Option<String>),
}

impl Destination {
    /// Returns the exchange that messages are published to; `None`: that which they were published to before.
    pub fn exchange(&self) -> Option<&str> {
        match self {
            Self::Queue(_) => Some(""),
            Self::Exchange(exchange, _) => Some(exchange),
            Self::OriginalExchange(_) => None,
        }
    }

    /// Returns the routing key that messages are published with; `None`: their own one.
    pub fn key(&self) -> Option<&str> {
        match self {
            Self::Queue(queue) => Some(queue),
            Self::Exchange(_, key) | Self::OriginalExchange(key) => key.as_deref(),
        }
    }
}

super::transports::words! {
    /// The treatment of a message that the receiving broker refuses.
    RefusedAction of "refused":
    /// The message is parked, and later messages of the rule continue.
    #[default]
    Park = "park",
    /// The message stays at the head of the queue, and all later messages of the rule wait.
    Wait = "wait",
    /// Only for fetching: a message that is too large for this broker is rejected, so the upstream dead-letters or drops
    /// it. A message refused for another reason is parked.
    Reject = "reject",
}

read_from_text! {
    Sha256;
    RefusedAction;
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
        refused: RefusedAction,
        urgent: bool,
    }
}

/// A name of 1 to 255 bytes, with its variables expanded.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Name(String);

impl Readable for Name {
    fn read(value: &Value<'_>) -> Result<Self, ParseError> {
        let text = expand(&String::read(value)?).map_err(|why| ParseError::at(value, why))?;
        match text.len() {
            0 => Err(ParseError::at(value, "the name must not be empty")),
            1..=NAME_BYTES_MAX => Ok(Self(text)),
            _ => Err(ParseError::at(value, "a name may have at most 255 bytes")),
        }
    }
}

/// Prefix of the names of bridges that implement shovels.
const SHOVEL_NAME_PREFIX: &str = "shovel ";

/// One address or a list of addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Upstreams(Vec<Upstream>);

impl Readable for Upstreams {
    fn read(value: &Value<'_>) -> Result<Self, ParseError> {
        let one = |value: &Value<'_>| {
            let text = expand(&String::read(value)?).map_err(|why| ParseError::at(value, why))?;
            Upstream::parse(&text).map_err(|why| ParseError::at(value, why))
        };
        let addresses = match value.get_ref() {
            DeValue::Array(list) => list.iter().map(one).collect::<Result<Vec<_>, _>>()?,
            _ => vec![one(value)?],
        };
        match addresses.len() {
            1..=UPSTREAMS_MAX => Ok(Self(addresses)),
            _ => Err(ParseError::at(value, format_args!("there must be 1 to {UPSTREAMS_MAX} addresses"))),
        }
    }
}

/// The rules of one direction.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rules(Vec<Rule>);

impl Readable for Rules {
    fn read(value: &Value<'_>) -> Result<Self, ParseError> {
        let rules: Vec<Rule> = tables(value, "[[bridge.forward]] or [[bridge.fetch]]", rule)?;
        match rules.len() {
            0..=RULES_MAX => Ok(Self(rules)),
            _ => Err(ParseError::at(value, format_args!("there may be at most {RULES_MAX} rules"))),
        }
    }
}

/// Converts the keys of a rule.
#[cold]
fn rule(value: &Value<'_>, keys: RuleLayer) -> Result<Rule, ParseError> {
    let queue =
        keys.queue.ok_or_else(|| ParseError::at(value, "a rule needs queue, the source of its messages"))?;
    let to = match (keys.to_queue, keys.to_exchange, keys.to_key) {
        (Some(queue), None, None) => Destination::Queue(queue.0),
        (None, Some(exchange), key) => Destination::Exchange(exchange.0, key.map(|key| key.0)),
        _ => {
            return Err(ParseError::at(
                value,
                "a rule needs either to_queue, or to_exchange with or without to_key",
            ));
        }
    };
    let (refused, is_urgent) = (keys.refused.unwrap_or_default(), keys.urgent.unwrap_or(false));
    Ok(Rule { queue: queue.0, to, refused, is_urgent })
}

/// All bridges of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bridges(pub(super) Vec<Bridge>);

impl Readable for Bridges {
    fn read(value: &Value<'_>) -> Result<Self, ParseError> {
        let bridges: Vec<Bridge> = tables(value, "[[bridge]]", bridge)?;
        let values = value.get_ref().as_array().into_iter().flat_map(|list| list.iter());
        for (at, (bridge, bridge_value)) in bridges.iter().zip(values).enumerate() {
            let name = &bridge.name;
            if name.starts_with(SHOVEL_NAME_PREFIX) {
                let why = format!(
                    "\"{name}\": names that begin with \"{SHOVEL_NAME_PREFIX}\" are reserved for shovels"
                );
                return Err(ParseError::at(bridge_value, why));
            }
            if let Some(other) = bridges[..at].iter().position(|other| other.name == *name) {
                let first = value.get_ref().as_array().and_then(|list| list.get(other));
                let wrong = ParseError::at(bridge_value, format_args!("two bridges are named \"{name}\""));
                return Err(ParseError { earlier_at: first.map(|first| first.span().start), ..wrong });
            }
        }
        Ok(Self(bridges))
    }
}

/// Reads a section that may occur several times, and converts each occurrence by `convert`. `heading` is the section's
/// heading for errors.
fn tables<L: Default + super::file::Section, T>(
    value: &Value<'_>,
    heading: &str,
    convert: fn(&Value<'_>, L) -> Result<T, ParseError>,
) -> Result<Vec<T>, ParseError> {
    let list = value.get_ref().as_array();
    let list =
        list.ok_or_else(|| ParseError::wrong_type(value, &format!("sections, each headed {heading}")))?;
    let one = |value: &Value<'_>| {
        let table = value.get_ref().as_table().ok_or_else(|| ParseError::wrong_type(value, "a section"))?;
        let mut layer = L::default();
        // Keys of older versions are only in other sections.
        fill(&mut layer, table, |key, known| describe_unknown("key", key, known), &mut Vec::new())?;
        convert(value, layer)
    };
    list.iter().map(one).collect()
}

/// Checks that a bridge has rules, and the keys that need nothing else to be checked.
fn check_keys(value: &Value<'_>, keys: &BridgeLayer) -> Result<(), ParseError> {
    let wrong = |why: &str| ParseError::at(value, why);
    let [forward, fetch] =
        [&keys.forward, &keys.fetch].map(|rules| rules.as_ref().map_or(&[][..], |rules| &rules.0));
    if forward.is_empty() && fetch.is_empty() {
        return Err(wrong("a bridge needs at least one [[bridge.forward]] or [[bridge.fetch]]"));
    }
    if keys.window.as_ref().is_some_and(|window| !(1..=WINDOW_MAX).contains(&window.0)) {
        return Err(wrong(&format!("window must be 1 to {WINDOW_MAX}")));
    }
    if keys.password.is_some() && keys.password_file.is_some() {
        return Err(wrong("set either password or password_file, not both"));
    }
    if keys.day_bytes_max.as_ref().is_some_and(|bytes| bytes.0 == 0) {
        return Err(wrong(
            "day_bytes_max must be more than 0: leave it out for no budget, or pause the bridge",
        ));
    }
    if forward.iter().any(|rule| rule.refused == RefusedAction::Reject) {
        return Err(wrong(
            "refused = \"reject\" is only for [[bridge.fetch]]: write \"park\" or \"wait\" in [[bridge.forward]]",
        ));
    }
    Ok(())
}

/// The keys of a bridge for TLS.
struct UpstreamTlsKeys {
    ca_file: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    server_name: Option<Name>,
    certificate_sha256: Option<Sha256>,
}

impl UpstreamTlsKeys {
    /// Returns the settings. `with_tls`: an address of the upstream uses TLS.
    ///
    /// # Errors
    /// Keys exclude or require each other, or TLS.
    fn validate(self, value: &Value<'_>, with_tls: bool) -> Result<UpstreamTls, ParseError> {
        let Self { ca_file, certificate, key, server_name, certificate_sha256 } = self;
        let wrong = |why: &str| ParseError::at(value, why);
        let identity = match (certificate, key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => return Err(wrong("certificate and key belong together: set both, or neither")),
        };
        let server_name = server_name.map(|name| name.0);
        if server_name.as_ref().is_some_and(|name| !is_host_name(name)) {
            return Err(wrong(
                "server_name must be the host name or address that the upstream's certificate contains",
            ));
        }
        if ca_file.is_some() && certificate_sha256.is_some() {
            return Err(wrong(
                "set either ca_file or server_certificate_sha256, not both: with the latter the issuer is not checked",
            ));
        }
        let tls = UpstreamTls { ca_file, identity, server_name, certificate_sha256 };
        if !with_tls && tls != UpstreamTls::default() {
            return Err(wrong(
                "ca_file, certificate, key, server_name and server_certificate_sha256 require an address with amqps://",
            ));
        }
        Ok(tls)
    }
}

/// Converts the keys of a bridge, with the rules below it.
#[cold]
fn bridge(value: &Value<'_>, mut keys: BridgeLayer) -> Result<Bridge, ParseError> {
    let wrong = |why: &str| ParseError::at(value, why);
    let name = keys.name.take().ok_or_else(|| wrong("a bridge needs a name"))?.0;
    let upstream =
        keys.upstream.take().ok_or_else(|| wrong("a bridge needs upstream, the address it connects to"))?;
    check_keys(value, &keys)?;
    let [forward, fetch] =
        [keys.forward, keys.fetch].map(|rules| rules.map_or_else(Vec::new, |rules| rules.0));
    let on_demand = OnDemandKeys {
        link: keys.link,
        messages: keys.connect_messages,
        age: keys.connect_age,
        interval: keys.connect_interval,
        times: keys.connect_at,
        rest_after: keys.rest_after,
    };
    let on_demand = on_demand.validate(value)?;
    if forward.is_empty() && on_demand.as_ref().is_some_and(OnDemand::opens_only_for_messages) {
        return Err(wrong(
            "a bridge that only fetches cannot see the messages that wait at the upstream: with \
             link = \"on_demand\", set connect_interval or connect_at",
        ));
    }
    let tls = UpstreamTlsKeys {
        ca_file: keys.ca_file,
        certificate: keys.certificate,
        key: keys.key,
        server_name: keys.server_name,
        certificate_sha256: keys.server_certificate_sha256,
    };
    let with_tls = upstream.0.iter().any(|address| address.with_tls);
    let tls = tls.validate(value, with_tls)?;
    let bridge = Bridge {
        tls,
        shovel: None,
        declares: keys.declare.unwrap_or(false),
        vhost: keys.vhost.map_or_else(|| "/".to_string(), |name| name.0),
        upstream: with_password(upstream.0, keys.password.as_ref()),
        password_file: keys.password_file,
        forward,
        fetch,
        window: keys.window.map_or(WINDOW_DEFAULT, |count| count.0),
        heartbeat_s: keys.heartbeat.map_or(HEARTBEAT_S_DEFAULT, |time| time.0),
        reconnect_max_ms: keys.reconnect_max.map_or(RECONNECT_MAX_MS_DEFAULT, |time| time.0).max(1_000),
        confirm_timeout_ms: keys.confirm_timeout.map_or(CONFIRM_TIMEOUT_MS_DEFAULT, |time| time.0).max(1_000),
        drain_rate: keys.drain_rate,
        day_bytes_max: keys.day_bytes_max.map(|bytes| bytes.0),
        outage_days_min: keys.outage_days_min.map(|days| days.0),
        on_demand,
        message_size_max: keys.message_size_max.map_or(MESSAGE_BYTES_MAX_DEFAULT, |bytes| bytes.0),
        hops_max: keys.hops_max.map_or(HOPS_MAX_DEFAULT, |count| count.0),
        parked: keys.parked.map_or_else(|| format!("bridge.{name}.parked"), |name| name.0),
        park_after: keys.park_after.map_or(PARK_AFTER_DEFAULT, |count| count.0),
        park_retry_ms: keys.park_retry.map(|time| time.0.max(1_000)),
        name,
    };
    check_parked(value, &bridge)?;
    Ok(bridge)
}

fn check_parked(value: &Value<'_>, bridge: &Bridge) -> Result<(), ParseError> {
    match bridge.forwards_parked() {
        false => Ok(()),
        true => Err(ParseError::at(
            value,
            "the queue in `parked` must not be forwarded, because refused messages would circulate: name another \
             queue in `parked`, or write refused = \"wait\" in the rule that forwards it",
        )),
    }
}

/// Returns whether a text consists only of characters of host names and IP addresses.
fn is_host_name(name: &str) -> bool {
    name.bytes().all(|octet| octet.is_ascii_alphanumeric() || b"-._:".contains(&octet))
}

/// Sets `password` for addresses that contain none.
#[cold]
fn with_password(mut upstream: Vec<Upstream>, password: Option<&Secret>) -> Vec<Upstream> {
    for address in &mut upstream {
        address.password = address.password.take().or_else(|| password.cloned());
    }
    upstream
}

/// Reads a password from a file that contains nothing else.
///
/// # Errors
/// The path, and why the file cannot be used.
#[cold]
pub fn read_password(file: &Path) -> Result<Secret, String> {
    // A file name without a folder is looked up among the credentials of the systemd unit, if the unit has any.
    let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").filter(|_| file.components().count() == 1);
    let file = &credentials.map_or_else(|| file.to_path_buf(), |folder| PathBuf::from(folder).join(file));
    let shown = file.display();
    let text = read_text_file(file, PASSWORD_BYTES_MAX + FILE_EXTRA_BYTES_MAX);
    let text = text.map_err(|error| format!("password_file {shown} cannot be read: {error}"))?;
    let text = text.ok_or_else(|| {
        format!("password_file {shown} is larger than a password of {PASSWORD_BYTES_MAX} bytes")
    })?;
    match text.trim_end_matches(['\r', '\n']) {
        "" => Err(format!("password_file {shown} is empty")),
        lines if lines.contains('\n') => {
            Err(format!("password_file {shown} has several lines; it must contain only the password"))
        }
        password => Ok(Secret(password.to_string())),
    }
}

impl Bridge {
    /// Returns whether a rule that parks refused messages forwards the queue for parked messages. A refused message would
    /// circulate between the rule and its own queue.
    pub fn forwards_parked(&self) -> bool {
        self.forward.iter().any(|rule| rule.queue == self.parked && rule.refused == RefusedAction::Park)
    }

    /// Returns whether one of the upstreams uses TLS.
    pub fn has_tls(&self) -> bool {
        self.upstream.iter().any(|address| address.with_tls)
    }

    /// Returns the bridge as lines of a configuration file, with variables expanded and without passwords.
    #[cold]
    pub(super) fn to_toml(&self) -> Vec<String> {
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
        lines.extend(self.on_demand.iter().flat_map(OnDemand::to_toml));
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
                    // Only shovels have this destination, and they are not in the file.
                    Destination::OriginalExchange(_) => {}
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
/// Minimum idle time before a link is closed, in milliseconds. A shorter time could end before the first messages from
/// the upstream arrive.
const REST_AFTER_MS_MIN: u32 = 1_000;
/// Maximum number of times of day of a bridge.
const TIMES_MAX: usize = 8;

words! {
    /// When links are open.
    LinkMode of "link":
    /// All the time. A broken link is opened again after a random delay of at most `reconnect_max`.
    #[default]
    Always = "always",
    /// Only for a while: [`OnDemand`] lists when they are opened and closed.
    OnDemand = "on_demand",
}

/// When an on-demand link is opened and closed. These keys are refused without `link = "on_demand"`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OnDemand {
    /// The link is opened when this many messages wait to be forwarded; at least 1.
    pub messages: u32,
    /// The link is opened when a message has waited for this time, in milliseconds.
    pub age_ms: u32,
    /// The link is opened this time after the last connection ended, in milliseconds, plus a random delay of up to 1/8
    /// of it. 0: not for this reason.
    pub interval_ms: u32,
    /// The link is opened at these times of day, each with a random delay of up to 10 minutes.
    pub times: Vec<TimeOfDay>,
    /// The link is closed when nothing was transferred for this time, in milliseconds.
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
    /// Returns the settings of the link with defaults for missing keys; `None` without `link = "on_demand"`.
    ///
    /// # Errors
    /// A value is out of its range, or a key is set without `link = "on_demand"`.
    #[cold]
    pub(super) fn validate(self, value: &Value<'_>) -> Result<Option<OnDemand>, ParseError> {
        let Self { link, messages, age, interval, times, rest_after } = self;
        if link != Some(LinkMode::OnDemand) {
            let has_keys = messages.is_some()
                || times.is_some()
                || [age, interval, rest_after].iter().any(Option::is_some);
            return match has_keys {
                true => Err(ParseError::at(
                    value,
                    "connect_messages, connect_age, connect_interval, connect_at and rest_after require \
                     link = \"on_demand\"",
                )),
                false => Ok(None),
            };
        }
        let ms = |time: Option<Millis>, default| time.map_or(default, |time| time.0);
        let on_demand = OnDemand {
            messages: messages.map_or(MESSAGES_DEFAULT, |count| count.0),
            age_ms: ms(age, AGE_MS_DEFAULT),
            interval_ms: ms(interval, INTERVAL_MS_DEFAULT),
            times: times.unwrap_or_default(),
            rest_after_ms: ms(rest_after, REST_AFTER_MS_DEFAULT),
        };
        let wrong = |why: &str| Err(ParseError::at(value, why));
        if on_demand.messages == 0 {
            return wrong("connect_messages must be at least 1; with 1, every message opens the link");
        }
        if on_demand.rest_after_ms < REST_AFTER_MS_MIN {
            return wrong(
                "rest_after must be at least 1s, so that messages of the upstream have time to arrive",
            );
        }
        if on_demand.times.len() > TIMES_MAX {
            return wrong(&format!("connect_at may list at most {TIMES_MAX} times of day"));
        }
        Ok(Some(on_demand))
    }
}

impl OnDemand {
    /// Returns whether only messages that wait at this broker open the link, and neither interval nor time of day.
    pub(super) const fn opens_only_for_messages(&self) -> bool {
        self.interval_ms == 0 && self.times.is_empty()
    }

    /// Returns the settings as lines of a configuration file.
    #[cold]
    pub(super) fn to_toml(&self) -> [String; 6] {
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
    fn missing_keys_have_defaults_and_variables_are_expanded() {
        let rules = "[[bridge.fetch]]\nqueue = \"c.${hostname}\"\nto_exchange = \"x\"\nrefused = \"wait\"\n";
        let bridges = read(&format!("{PLANT}password = \"pw\"\n{RULE}{rules}")).expect("it is right");
        let [bridge] = bridges.as_slice() else { panic!("one bridge") };
        let host = expand("${hostname}").expect("a machine has a name");
        assert_eq!(bridge.fetch[0].queue, format!("c.{host}"));
        assert_eq!(bridge.fetch[0].to, Destination::Exchange("x".into(), None));
        assert_eq!(
            (bridge.fetch[0].refused, bridge.forward[0].refused),
            (RefusedAction::Wait, RefusedAction::Park)
        );
        assert_eq!((bridge.window, &*bridge.parked, &*bridge.vhost), (256, "bridge.plant.parked", "/"));
        assert_eq!(bridge.upstream[0].password, Some(Secret("pw".into())));
        let shown = bridge.to_toml().join("\n");
        assert!(!shown.contains("pw"), "no password is shown");
        let again = read(&shown).expect("what is shown can be read");
        assert_eq!(again[0].forward, bridge.forward);
        assert_eq!((&again[0].upstream[0].host, again[0].window), (&bridge.upstream[0].host, bridge.window));
    }

    #[test]
    fn formatted_tls_settings_can_be_read() {
        let said = "ca_file = \"/ca.pem\"\ncertificate = \"/c.pem\"\nkey = \"/k.pem\"\n\
                    server_name = \"r.example\"\n";
        let bridges = read(&format!("{SAFE}{said}{RULE}")).expect("it is right");
        assert!(bridges[0].has_tls() && bridges[0].upstream[0].port == 5671);
        let again = read(&bridges[0].to_toml().join("\n")).expect("what is shown can be read");
        assert_eq!(again[0].tls, bridges[0].tls);
        assert_eq!(again[0].tls.identity, Some(("/c.pem".into(), "/k.pem".into())));
    }

    /// A fingerprint as OpenSSL prints it.
    fn pinned() -> String {
        format!("server_certificate_sha256 = \"{}\"\n", ["A0"; 32].join(":"))
    }

    #[test]
    fn a_certificate_hash_has_the_format_of_openssl() {
        let bridges = read(&format!("{SAFE}{}{RULE}", pinned())).expect("it is right");
        assert_eq!(bridges[0].tls.certificate_sha256, Some(Sha256([0xa0; 32])));
        let again = read(&bridges[0].to_toml().join("\n")).expect("what is shown can be read");
        assert_eq!(again[0].tls, bridges[0].tls);
    }

    #[test]
    fn a_rate_is_in_messages_or_in_bytes() {
        for (said, rate) in [
            ("5", DrainRate::Messages(5)),
            ("\"20KB\"", DrainRate::Bytes(20_000)),
            ("\"1500B\"", DrainRate::Bytes(1_500)),
        ] {
            let bridges = read(&format!("{PLANT}drain_rate = {said}\n{RULE}")).expect("it is right");
            assert_eq!(bridges[0].drain_rate, Some(rate));
            let again = read(&bridges[0].to_toml().join("\n")).expect("what is shown can be read");
            assert_eq!(again[0].drain_rate, Some(rate));
        }
    }

    #[test]
    fn a_byte_budget_and_urgent_rules_are_read() {
        let fetch = "[[bridge.fetch]]\nqueue = \"c\"\nto_queue = \"d\"\nurgent = true\n";
        let bridges = read(&format!("{PLANT}day_bytes_max = \"20MB\"\n{RULE}{fetch}")).expect("it is right");
        assert_eq!(bridges[0].day_bytes_max, Some(20_000_000));
        assert!(bridges[0].fetch[0].is_urgent && !bridges[0].forward[0].is_urgent);
        let again = read(&bridges[0].to_toml().join("\n")).expect("what is shown can be read");
        assert_eq!((&again[0].fetch, again[0].day_bytes_max), (&bridges[0].fetch, Some(20_000_000)));
    }

    #[test]
    fn formatted_on_demand_settings_can_be_read() {
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
        let again = read(&bridges[0].to_toml().join("\n")).expect("what is shown can be read");
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
            (&too_long, Err("larger than a password")),
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
    fn errors_contain_the_line() {
        for (text, line, part) in [
            (format!("{PLANT}drain_rate = 0\n{RULE}"), 4, "leave drain_rate out"),
            (format!("{PLANT}drain_rate = \"fast\"\n{RULE}"), 4, "messages per second"),
            (format!("{PLANT}day_bytes_max = 0\n{RULE}"), 1, "more than 0"),
            (format!("{PLANT}link = \"sometimes\"\n{RULE}"), 4, "always, on_demand"),
            (format!("{PLANT}rest_after = \"5s\"\n{RULE}"), 1, "require link = \"on_demand\""),
            (format!("{DEMAND}rest_after = \"5ms\"\n{RULE}"), 1, "at least 1s"),
            (format!("{DEMAND}connect_messages = 0\n{RULE}"), 1, "at least 1"),
            (
                format!("{DEMAND}connect_interval = 0\n{}", RULE.replace("forward", "fetch")),
                1,
                "only fetches",
            ),
            (format!("{DEMAND}connect_at = \"2:30\"\n{RULE}"), 5, "such as \"02:30\""),
            (format!("{PLANT}{RULE}to_exchange = \"x\"\n"), 4, "either to_queue, or to_exchange"),
            (PLANT.to_string(), 1, "at least one [[bridge.forward]]"),
            (format!("{PLANT}parked = \"a\"\n{RULE}"), 1, "must not be forwarded"),
            (format!("[[bridge]]\nname = \"x\"\n{RULE}"), 1, "needs upstream"),
            (format!("{PLANT}window = 0\n{RULE}"), 1, "window must be 1 to 1024"),
            (
                format!("{PLANT}{RULE}{PLANT}{RULE}"),
                7,
                "bridge: two bridges are named \"plant\"; the first is in line 1",
            ),
            (format!("{}{RULE}", PLANT.replace("plant", "shovel s")), 1, "reserved for shovels"),
            (format!("{PLANT}ca_file = \"/ca\"\n{RULE}"), 1, "amqps://"),
            (format!("{SAFE}key = \"/k\"\n{RULE}"), 1, "set both"),
            (format!("{SAFE}server_name = \"a b\"\n{RULE}"), 1, "certificate contains"),
            (format!("{SAFE}server_certificate_sha256 = \"ab:cd\"\n{RULE}"), 4, "64 hexadecimal digits"),
            (format!("{PLANT}{}{RULE}", pinned()), 1, "amqps://"),
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
    fn a_time_of_day_is_hours_and_minutes_of_two_digits_each() {
        for (text, minutes) in [("00:00", 0), ("02:30", 150), ("23:59", 1_439)] {
            let time: TimeOfDay = text.parse().expect(text);
            assert_eq!((time.0, time.to_string()), (minutes, format!("{text:?}")));
        }
        for text in ["", "24:00", "2:30", "02:60", "02:3", "+1:30", "02:30:00", "02.30", "noon"] {
            assert!(text.parse::<TimeOfDay>().is_err(), "{text}");
        }
    }
}
