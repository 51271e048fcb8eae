//! Shovels: converts RabbitMQ 3.10's runtime parameter `shovel` into the [`Bridge`] that does the same.
//!
//! A bridge always connects this broker to another one. So one side of a shovel, its source or its destination, must be
//! this broker.
//!
//! | keys | meaning |
//! |------|---------|
//! | `src-uri`, `dest-uri` | one names this broker (`amqp://` without a host), the other one the upstream |
//! | `src-queue` | the queue of the bridge's rule |
//! | `src-exchange` | the exchange to which the queue of the rule is bound; at this broker that queue is durable |
//! | `dest-queue`, `dest-exchange` | the destination; without both keys the exchange that a message was published to |
//! | `prefetch-count` | the maximum number of messages in flight |
//! | `reconnect-delay` | the maximum delay between two connection attempts, in seconds |
//! | `src-protocol`, `dest-protocol`, `ack-mode`, `src-consumer-args` | only checked, not stored |
//! | all others | stored in [`Shovel`], because bridges have no such settings |
//!
//! # Invariants
//! - A value that RabbitMQ refuses, too, is refused with RabbitMQ's text. The error for an unsupported value names its
//!   key.
//! - No error and no shown address contains a password.

use std::collections::BTreeMap;

use leveret_json::{Fields, Value, items};

use super::bridge::{
    Bridge, CONFIRM_TIMEOUT_MS_DEFAULT, Destination, HEARTBEAT_S_DEFAULT, HOPS_MAX_DEFAULT,
    MESSAGE_BYTES_MAX_DEFAULT, PARK_AFTER_DEFAULT, RefusedAction, Rule, UpstreamTls, WINDOW_MAX,
};
use super::upstream::{self, Upstream};

/// Maximum number of addresses of the source, and of the destination.
const URIS_MAX: usize = 8;
/// Default of `prefetch-count`, as in RabbitMQ.
const PREFETCH_DEFAULT: u64 = 1_000;
/// Default of `reconnect-delay` in seconds, as in RabbitMQ.
const DELAY_S_DEFAULT: u64 = 5;

/// The type of a key's value.
#[derive(Clone, Copy)]
enum ValueType {
    Number,
    Text,
    Boolean,
    Object,
    Properties,
    DeleteAfter,
    /// One address or a list of them; the key is required.
    Uris,
    /// One of these words.
    OneOf(&'static [&'static str]),
}

const PROTOCOLS: ValueType = ValueType::OneOf(&["amqp10", "amqp091"]);

/// The keys of RabbitMQ 3.10 for AMQP 0-9-1.
const KEYS: [(&str, ValueType); 25] = [
    ("reconnect-delay", ValueType::Number),
    ("ack-mode", ValueType::OneOf(&["no-ack", "on-publish", "on-confirm"])),
    ("src-protocol", PROTOCOLS),
    ("dest-protocol", PROTOCOLS),
    ("src-uri", ValueType::Uris),
    ("src-exchange", ValueType::Text),
    ("src-exchange-key", ValueType::Text),
    ("src-queue", ValueType::Text),
    ("src-queue-args", ValueType::Object),
    ("src-consumer-args", ValueType::Object),
    ("prefetch-count", ValueType::Number),
    ("src-prefetch-count", ValueType::Number),
    ("delete-after", ValueType::DeleteAfter),
    ("src-delete-after", ValueType::DeleteAfter),
    ("dest-uri", ValueType::Uris),
    ("dest-exchange", ValueType::Text),
    ("dest-exchange-key", ValueType::Text),
    ("dest-queue", ValueType::Text),
    ("dest-queue-args", ValueType::Object),
    ("add-forward-headers", ValueType::Boolean),
    ("add-timestamp-header", ValueType::Boolean),
    ("dest-add-forward-headers", ValueType::Boolean),
    ("dest-add-timestamp-header", ValueType::Boolean),
    ("publish-properties", ValueType::Properties),
    ("dest-publish-properties", ValueType::Properties),
];

/// The message properties that `publish-properties` may set, and whether each is a number.
const PROPERTIES: [(&str, bool); 13] = [
    ("content_type", false),
    ("content_encoding", false),
    ("delivery_mode", true),
    ("priority", true),
    ("correlation_id", false),
    ("reply_to", false),
    ("expiration", false),
    ("message_id", false),
    ("timestamp", true),
    ("type", false),
    ("user_id", false),
    ("app_id", false),
    ("cluster_id", false),
];

/// Returns the bridge for the parameter `name` of virtual host `vhost`, whose value is `json`.
///
/// # Errors
/// Why the value is invalid or not supported. If RabbitMQ refuses the value, too, the text is RabbitMQ's.
#[cold]
pub fn parse(vhost: &str, name: &str, json: &[u8]) -> Result<Bridge, String> {
    let value = Value::parse(json).map_err(|_| "a shovel's value must be JSON")?;
    let Value::Object(_) = value else { return Err("a shovel's value must be an object".to_string()) };
    let fields = Fields::of(&value)?;
    let problems = invalid_values(name, &fields);
    if !problems.is_empty() {
        return Err(problems.join("\n"));
    }
    check_supported(&fields)?;
    to_bridge(vhost, name, &fields)
}

/// Returns the value of a key if it is a text.
fn text(fields: &Fields<'_>, key: &str) -> Option<String> {
    match fields.get(key)? {
        Value::String(text) => Some(text.into_owned()),
        _ => None,
    }
}

/// Returns the value of the first of these keys that is present.
fn first<'s>(fields: &Fields<'s>, keys: &[&str]) -> Option<Value<'s>> {
    keys.iter().find_map(|key| fields.get(key))
}

// ---- values that RabbitMQ refuses

/// Returns the errors that RabbitMQ reports for these values, in its texts; empty if there are none.
#[cold]
fn invalid_values(name: &str, fields: &Fields<'_>) -> Vec<String> {
    let has = |key: &str| fields.get(key).is_some();
    let mut problems = Vec::new();
    match (has("src-exchange"), has("src-queue")) {
        (false, false) => problems.push("Must specify 'src-exchange' or 'src-queue'".to_string()),
        (true, true) => problems.push("Cannot specify 'src-exchange' and 'src-queue'".to_string()),
        _ => {}
    }
    let after = first(fields, &["src-delete-after", "delete-after"]);
    if matches!(after, Some(Value::Number(_))) && text(fields, "ack-mode").as_deref() == Some("no-ack") {
        problems.push("Cannot specify 'no-ack' and numerical 'delete-after'".to_string());
    }
    if has("dest-exchange") && has("dest-queue") {
        problems.push("Cannot specify 'dest-exchange' and 'dest-queue'".to_string());
    }
    // Only the name of an unknown key is shown. Its value may contain a password, for example under "scr-uri".
    let is_known = |key: &str| KEYS.iter().any(|(known, _)| *known == key);
    let unknown: Vec<String> =
        fields.names().filter(|key| !is_known(key)).map(|key| format!("<<{key:?}>>")).collect();
    if !unknown.is_empty() {
        problems.push(format!("Unrecognised terms [{}] in {name}", unknown.join(",")));
    }
    for (key, value_type) in KEYS {
        match fields.get(key) {
            Some(value) => problems.extend(invalid_value(key, value_type, &value)),
            None if matches!(value_type, ValueType::Uris) => {
                problems.push(format!("Key \"{key}\" not found in {name}"));
            }
            None => {}
        }
    }
    problems
}

/// Returns RabbitMQ's error for the value of a key; `None` if the value is valid.
fn invalid_value(key: &str, value_type: ValueType, value: &Value<'_>) -> Option<String> {
    let shown = erlang(value);
    let expected = match value_type {
        ValueType::Number if value.as_number().is_none() => "a number",
        ValueType::Text if value.as_str().is_none() => "binary",
        ValueType::Boolean if !matches!(value, Value::Bool(_)) => "boolean",
        // RabbitMQ writes an empty object as an empty list.
        ValueType::Object if !matches!(value, Value::Object(_)) && value.holds_something() => "an object",
        ValueType::Properties => return invalid_properties(key, value),
        ValueType::Uris => return invalid_uris(key, value),
        ValueType::DeleteAfter
            if !(value.as_u64().is_some() || matches!(value.as_str(), Some("never" | "queue-length"))) =>
        {
            "a number greater than or equal to 0, \"never\" or \"queue-length\""
        }
        ValueType::OneOf(words) if !value.as_str().is_some_and(|word| words.contains(&word)) => {
            let words: Vec<String> = words.iter().map(|word| format!("<<\"{word}\">>")).collect();
            return Some(format!("{key} should be one of [{}], actually was {shown}", words.join(",")));
        }
        _ => return None,
    };
    Some(format!("{key} should be {expected}, actually was {shown}"))
}

/// Returns RabbitMQ's error for a value of `publish-properties`; `None` if the value is valid.
fn invalid_properties(key: &str, value: &Value<'_>) -> Option<String> {
    let Value::Object(_) = value else {
        return Some(format!("{key} should be an object, actually was {}", erlang(value)));
    };
    let fields = match Fields::of(value) {
        Ok(fields) => fields,
        Err(why) => return Some(format!("{key}: {why}")),
    };
    fields.iter().find_map(|(name, value)| {
        let Some((_, is_number)) = PROPERTIES.iter().find(|(known, _)| *known == name) else {
            return Some(format!("Unrecognised terms [{{<<{name:?}>>,{}}}] in {key}", erlang(&value)));
        };
        match is_number {
            true if value.as_u64().is_none() => {
                Some(format!("{name} should be a number, actually was {}", erlang(&value)))
            }
            false if value.as_str().is_none() => {
                Some(format!("{name} should be binary, actually was {}", erlang(&value)))
            }
            _ => None,
        }
    })
}

/// Returns the error in the addresses under a key; `None` if they are valid. An address may contain a password, so the
/// error quotes no part of it.
fn invalid_uris(key: &str, value: &Value<'_>) -> Option<String> {
    let texts = uris_of(value);
    if texts.is_empty() || texts.len() > URIS_MAX {
        return Some(format!("{key} should be an address, or a list of 1 to {URIS_MAX}"));
    }
    texts
        .iter()
        .find_map(|text| Address::parse(text).err())
        .map(|why| format!("{key} is not a valid URI: {why}"))
}

/// Returns the texts of one address or of a list of addresses. A list is cut after `URIS_MAX + 1`. For a value of another
/// type the result is empty.
fn uris_of(value: &Value<'_>) -> Vec<String> {
    match value {
        Value::String(text) => vec![text.to_string()],
        Value::Array(list) => {
            let text = |value: Result<Value<'_>, String>| value.ok()?.as_str().map(str::to_string);
            items(list).take(URIS_MAX + 1).map(text).collect::<Option<_>>().unwrap_or_default()
        }
        _ => Vec::new(),
    }
}

/// Formats a value as an Erlang term, as RabbitMQ's errors do.
fn erlang(value: &Value<'_>) -> String {
    match value {
        Value::String(text) => format!("<<{text:?}>>"),
        other => other.to_string(),
    }
}

// ---- unsupported settings

/// Checks that the shovel uses no setting that Leveret does not support.
///
/// # Errors
/// The key and value that are not supported, and what to use instead.
#[cold]
fn check_supported(fields: &Fields<'_>) -> Result<(), String> {
    for key in ["src-protocol", "dest-protocol"] {
        if text(fields, key).as_deref() == Some("amqp10") {
            return Err(format!("{key} 'amqp10' is not supported here: 'amqp091' is"));
        }
    }
    if text(fields, "ack-mode").as_deref() == Some("no-ack") {
        let why = "ack-mode 'no-ack' is not supported here, for it loses messages: 'on-publish' and \
                   'on-confirm' are, and both wait for the confirm";
        return Err(why.to_string());
    }
    if fields.get("src-consumer-args").is_some_and(|arguments| arguments.holds_something()) {
        return Err("src-consumer-args is not supported here: leave it out".to_string());
    }
    Ok(())
}

// ---- the bridge

/// Percent-encodes the character `separator`, and `%` itself, in a name.
fn percent_encode(name: &str, separator: char) -> String {
    name.replace('%', "%25").replace(separator, &format!("%{:02X}", u32::from(separator)))
}

/// Converts a shovel with valid and supported settings into a bridge.
///
/// # Errors
/// The addresses do not connect this broker to another one, or a name is too long.
#[cold]
fn to_bridge(vhost: &str, name: &str, fields: &Fields<'_>) -> Result<Bridge, String> {
    let sources = addresses(fields, "src-uri")?;
    let destinations = addresses(fields, "dest-uri")?;
    let is_forward = is_forward(&sources, &destinations)?;
    let (own_addresses, upstream_addresses) =
        if is_forward { (&sources, &destinations) } else { (&destinations, &sources) };
    // A queue that the shovel needs at this broker is named after the shovel and its virtual host. The separators are
    // percent-encoded in both names, so two shovels never share a queue.
    let (own_queue, vhost_suffix) = match vhost {
        "/" => (format!("shovel.{}", percent_encode(name, '.')), String::new()),
        _ => (
            format!("shovel..{}.{}", percent_encode(vhost, '.'), percent_encode(name, '.')),
            format!(" of {}", percent_encode(vhost, ' ')),
        ),
    };
    let (source, destination) = (
        end(fields, "src", sources.shown(), is_forward),
        end(fields, "dest", destinations.shown(), !is_forward),
    );
    let rule = rule(&source, &destination, &own_queue);
    let parked = format!("{own_queue}.parked");
    check_names(&rule, &source, &parked)?;
    let delay_s = number(fields, &["reconnect-delay"], DELAY_S_DEFAULT);
    let window = number(fields, &["src-prefetch-count", "prefetch-count"], PREFETCH_DEFAULT);
    let window = if window == 0 { WINDOW_MAX } else { window.min(WINDOW_MAX.into()) as u16 };
    let (forward, fetch) = if is_forward { (vec![rule], Vec::new()) } else { (Vec::new(), vec![rule]) };
    Ok(Bridge {
        name: format!("shovel {}{vhost_suffix}", percent_encode(name, ' ')),
        vhost: own_addresses.vhost_here(),
        upstream: upstream_addresses.0.iter().filter_map(|address| address.upstream.clone()).collect(),
        forward,
        fetch,
        window,
        heartbeat_s: upstream_addresses
            .0
            .iter()
            .find_map(|address| address.heartbeat_s)
            .unwrap_or(HEARTBEAT_S_DEFAULT),
        reconnect_max_ms: u32::try_from(delay_s.saturating_mul(1_000)).unwrap_or(u32::MAX).max(1_000),
        confirm_timeout_ms: CONFIRM_TIMEOUT_MS_DEFAULT,
        drain_rate: None,
        day_bytes_max: None,
        outage_days_min: None,
        on_demand: None,
        message_size_max: MESSAGE_BYTES_MAX_DEFAULT,
        hops_max: HOPS_MAX_DEFAULT,
        parked,
        park_after: PARK_AFTER_DEFAULT,
        park_retry_ms: None,
        password_file: None,
        declares: true,
        tls: upstream_addresses.tls()?,
        shovel: Some(Box::new(shovel(vhost, name, fields, [source, destination], delay_s == 0))),
    })
}

/// Returns `true` if the source is this broker, so that messages are forwarded, and `false` if the destination is this
/// broker, so that messages are fetched.
///
/// # Errors
/// Both or neither are this broker.
#[cold]
fn is_forward(sources: &Addresses, destinations: &Addresses) -> Result<bool, String> {
    let why = match (sources.is_here(), destinations.is_here()) {
        (true, false) => return Ok(true),
        (false, true) => return Ok(false),
        (true, true) => {
            "src-uri and dest-uri both mean this broker: a shovel within one broker is not supported here; \
             bind the exchange, or give the queue a policy with dead-letter-exchange"
        }
        (false, false) => {
            "neither src-uri nor dest-uri means this broker (amqp:// without a host): a shovel between two \
             others is not supported here; define it at one of them"
        }
    };
    Err(why.to_string())
}

/// Reads the keys of the source (`prefix` is "src") or of the destination ("dest").
fn end(fields: &Fields<'_>, prefix: &str, uris: Vec<String>, is_here: bool) -> ShovelEnd {
    let text_of = |key: &str| text(fields, &format!("{prefix}-{key}"));
    let arguments = fields.get(&format!("{prefix}-queue-args"));
    ShovelEnd {
        uris,
        is_here,
        queue: text_of("queue"),
        exchange: text_of("exchange"),
        key: text_of("exchange-key"),
        arguments: arguments.map(|arguments| arguments.to_string()).unwrap_or_default(),
    }
}

/// Returns the only rule of the bridge. `own_queue` is the name of the queue that is bound to a source exchange.
fn rule(source: &ShovelEnd, destination: &ShovelEnd, own_queue: &str) -> Rule {
    Rule {
        // If the source is an exchange of the upstream, the name is not used: the upstream generates one.
        queue: source.queue.clone().unwrap_or_else(|| own_queue.to_string()),
        to: match (&destination.queue, &destination.exchange) {
            (Some(queue), _) => Destination::Queue(queue.clone()),
            (None, Some(exchange)) => Destination::Exchange(exchange.clone(), destination.key.clone()),
            (None, None) => Destination::OriginalExchange(destination.key.clone()),
        },
        refused: RefusedAction::Park,
        is_urgent: false,
    }
}

/// Returns the settings that a bridge does not have. `ends` are the source and the destination.
fn shovel(vhost: &str, name: &str, fields: &Fields<'_>, ends: [ShovelEnd; 2], is_tried_once: bool) -> Shovel {
    let [source, destination] = ends;
    let is_true = |keys: &[&str]| first(fields, keys) == Some(Value::Bool(true));
    let properties = first(fields, &["dest-publish-properties", "publish-properties"]);
    let properties = properties.and_then(|value| Fields::of(&value).ok()).unwrap_or_default();
    let property = |name| match properties.get(name)? {
        Value::String(text) => Some((name, Property::Text(text.into_owned()))),
        value => value.as_u64().map(|number| (name, Property::Number(number))),
    };
    Shovel {
        name: name.to_string(),
        vhost: vhost.to_string(),
        delete_after: match first(fields, &["src-delete-after", "delete-after"]) {
            Some(Value::String(word)) if word == "queue-length" => DeleteAfter::QueueLength,
            Some(value) => value.as_u64().map_or(DeleteAfter::Never, DeleteAfter::Messages),
            None => DeleteAfter::Never,
        },
        is_tried_once,
        adds_headers: is_true(&["dest-add-forward-headers", "add-forward-headers"]),
        adds_timestamp: is_true(&["dest-add-timestamp-header", "add-timestamp-header"]),
        properties: PROPERTIES.iter().filter_map(|(name, _)| property(*name)).collect(),
        source,
        destination,
    }
}

/// Returns the first of these keys that is present as a whole number from 0 up, or the default.
fn number(fields: &Fields<'_>, keys: &[&str], default: u64) -> u64 {
    let value = first(fields, keys).and_then(|value| value.as_number()?.as_f64());
    value.map_or(default, |number| number.max(0.0) as u64)
}

/// Checks that all names fit into AMQP's short strings of 255 bytes, and that those of the source are not empty.
///
/// # Errors
/// A name is too long or empty.
fn check_names(rule: &Rule, source: &ShovelEnd, parked: &str) -> Result<(), String> {
    let names = [Some(&*rule.queue), rule.to.exchange(), rule.to.key(), Some(parked)];
    let others = [source.exchange.as_deref(), source.key.as_deref()];
    let is_long = |name: &&str| name.len() > leveret_core::mem::NAME_BYTES_MAX;
    if names.iter().chain(&others).flatten().any(is_long) {
        let why = "names of queues and exchanges, and routing keys, may have at most 255 bytes; this includes the \
                   queue for refused messages, shovel.NAME.parked";
        return Err(why.to_string());
    }
    if source.queue.as_deref() == Some("") || source.exchange.as_deref() == Some("") {
        return Err("src-queue and src-exchange must not be empty".to_string());
    }
    Ok(())
}

// ---- addresses

/// One address of the source or of the destination.
struct Address {
    /// The address without user and password, for views.
    shown: String,
    /// `None`: the address is this broker.
    upstream: Option<Upstream>,
    /// The virtual host, if the address is this broker.
    vhost: String,
    /// The parameter `heartbeat`.
    heartbeat_s: Option<u16>,
    tls: UpstreamTls,
}

/// The addresses of the source or of the destination. Either all are upstreams, or there is one and it is this broker.
struct Addresses(Vec<Address>);

impl Addresses {
    /// Returns whether the addresses mean this broker.
    fn is_here(&self) -> bool {
        self.0.iter().all(|address| address.upstream.is_none())
    }

    fn shown(&self) -> Vec<String> {
        self.0.iter().map(|address| address.shown.clone()).collect()
    }

    /// Returns the virtual host at this broker.
    fn vhost_here(&self) -> String {
        self.0.first().map_or_else(|| "/".to_string(), |address| address.vhost.clone())
    }

    /// Returns the TLS settings of the addresses with TLS. A bridge has only one set of them.
    ///
    /// # Errors
    /// The addresses have different settings.
    fn tls(&self) -> Result<UpstreamTls, String> {
        let mut all = self
            .0
            .iter()
            .filter(|address| address.upstream.as_ref().is_some_and(|upstream| upstream.with_tls));
        let first = all.next().map(|address| address.tls.clone()).unwrap_or_default();
        match all.all(|address| address.tls == first) {
            true => Ok(first),
            false => {
                Err("addresses with different TLS parameters under one key are not supported here".into())
            }
        }
    }
}

/// Parses the addresses under a key.
///
/// # Errors
/// An address is invalid or not supported, or a list contains both this broker and another address.
#[cold]
fn addresses(fields: &Fields<'_>, key: &str) -> Result<Addresses, String> {
    let texts = fields.get(key).map(|value| uris_of(&value)).unwrap_or_default();
    let all = texts.iter().map(|text| Address::parse(text)).collect::<Result<Vec<_>, _>>()?;
    let here_count = all.iter().filter(|address| address.upstream.is_none()).count();
    if here_count != 0 && here_count != all.len() || here_count > 1 {
        return Err(format!("{key}: a list of addresses that contains this broker is not supported here"));
    }
    Ok(Addresses(all))
}

impl Address {
    /// Parses an address with its parameters.
    ///
    /// # Errors
    /// The address is invalid or not supported. The error contains no password.
    #[cold]
    fn parse(text: &str) -> Result<Self, String> {
        let (address, query) = text.split_once('?').unwrap_or((text, ""));
        let (scheme, rest) = address.split_once("://").unwrap_or((address, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let host_and_port = authority.rsplit_once('@').map_or(authority, |(_, place)| place);
        let slash = if rest.contains('/') { "/" } else { "" };
        let shown = format!("{scheme}://{host_and_port}{slash}{path}");
        let (upstream, vhost) = if scheme == "amqp" && host_and_port.is_empty() {
            if !authority.is_empty() {
                return Err(
                    "the address of this broker is amqp:// without a user: a shovel needs no login here"
                        .into(),
                );
            }
            if path.contains('@') {
                return Err("write a / in the password as %2F".into());
            }
            let vhost = upstream::decoded(path)?;
            (None, if vhost.is_empty() { "/".to_string() } else { vhost })
        } else {
            (Some(Upstream::parse(address)?), String::new())
        };
        let mut parsed = Self { shown, upstream, vhost, heartbeat_s: None, tls: UpstreamTls::default() };
        let (mut certificate, mut key) = (None, None);
        for (name, value) in query
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        {
            let value = upstream::decoded(value)?;
            match name {
                "heartbeat" => {
                    let invalid = |_| "the parameter heartbeat is not a number of seconds".to_string();
                    parsed.heartbeat_s = Some(value.parse().map_err(invalid)?);
                }
                "cacertfile" => parsed.tls.ca_file = Some(value.into()),
                "certfile" => certificate = Some(value.into()),
                "keyfile" => key = Some(value.into()),
                "server_name_indication" => parsed.tls.server_name = Some(value),
                "verify" if value == "verify_peer" => {}
                // A bridge satisfies these settings anyway, or they do not affect messages.
                "connection_timeout" | "channel_max" | "depth" | "fail_if_no_peer_cert" => {}
                "verify" => {
                    let why = "is not supported here: the upstream's certificate is always checked";
                    return Err(format!("the parameter verify={value} {why}"));
                }
                // An `@` behind a `?` suggests that the `?` belongs to the password. So the error does not quote the
                // text.
                _ if name.contains('@') => return Err("write a ? in the password as %3F".into()),
                _ => return Err(format!("the parameter '{name}' is not supported here")),
            }
        }
        parsed.tls.identity = match (certificate, key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => return Err("certfile requires keyfile, and keyfile requires certfile".to_string()),
        };
        Ok(parsed)
    }
}

/// The settings of a shovel that a bridge does not have. The addresses contain no passwords.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shovel {
    /// The parameter's name.
    pub name: String,
    /// The parameter's virtual host.
    pub vhost: String,
    /// The source.
    pub source: ShovelEnd,
    /// The destination.
    pub destination: ShovelEnd,
    /// When the shovel ends; its parameter is deleted then.
    pub delete_after: DeleteAfter,
    /// Whether the shovel tries each upstream address only once and then gives up: `reconnect-delay` is 0.
    pub is_tried_once: bool,
    /// Whether the header `x-shovelled` is added to messages (`dest-add-forward-headers`).
    pub adds_headers: bool,
    /// Whether the header `x-shovelled-timestamp` is added to messages (`dest-add-timestamp-header`).
    pub adds_timestamp: bool,
    /// Properties that replace those of a message, by name (`dest-publish-properties`).
    pub properties: BTreeMap<&'static str, Property>,
}

/// The value of a message property.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Property {
    /// A text.
    Text(String),
    /// A number.
    Number(u64),
}

/// The source or the destination of a shovel.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct ShovelEnd {
    /// The addresses without users and passwords.
    pub uris: Vec<String>,
    /// Whether this broker is meant.
    pub is_here: bool,
    /// The queue, if one is configured.
    pub queue: Option<String>,
    /// The exchange, if one is configured.
    pub exchange: Option<String>,
    /// The routing key that belongs to the exchange, if one is configured.
    pub key: Option<String>,
    /// Arguments for declaring a missing queue: a JSON object, or empty.
    pub arguments: String,
}

/// When a shovel ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeleteAfter {
    /// Never.
    Never,
    /// After as many messages as were in the queue at the beginning.
    QueueLength,
    /// After this number of messages.
    Messages(u64),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_uris(more: &str) -> String {
        format!("{{\"src-uri\":\"amqp://\",\"dest-uri\":[\"amqp://u:secret@h/v\",\"amqps://h\"]{more}}}")
    }

    #[test]
    fn keys_are_converted_to_settings_of_the_bridge() {
        let more = ",\"src-queue\":\"a\",\"dest-queue\":\"b\",\"prefetch-count\":7,\"reconnect-delay\":3,\
                    \"delete-after\":5,\"ack-mode\":\"on-publish\",\"add-forward-headers\":true,\
                    \"publish-properties\":{\"delivery_mode\":2},\"src-queue-args\":{\"x-max-length\":3}";
        let bridge = parse("/", "s", with_uris(more).as_bytes()).expect("it is right");
        assert_eq!((bridge.forward.len(), bridge.fetch.len(), bridge.window), (1, 0, 7));
        assert_eq!((&*bridge.vhost, bridge.reconnect_max_ms, &*bridge.name), ("/", 3_000, "shovel s"));
        assert_eq!(bridge.forward[0].to, Destination::Queue("b".into()));
        assert_eq!((bridge.upstream.len(), &*bridge.upstream[0].vhost), (2, "v"));
        let shovel = bridge.shovel.expect("the bridge of a shovel");
        assert_eq!(shovel.destination.uris, ["amqp://h/v", "amqps://h"]);
        assert_eq!((shovel.delete_after, shovel.adds_headers), (DeleteAfter::Messages(5), true));
        let fetch =
            "{\"src-uri\":\"amqp://h?heartbeat=9\",\"dest-uri\":\"amqp:///v%2f\",\"src-exchange\":\"x\"}";
        let bridge = parse("v", "s", fetch.as_bytes()).expect("it is right");
        assert_eq!((&*bridge.vhost, bridge.heartbeat_s, bridge.window), ("v/", 9, 1_000));
        assert_eq!(bridge.fetch[0].to, Destination::OriginalExchange(None));
        assert_eq!(bridge.name, "shovel s of v");
    }

    #[test]
    fn invalid_values_have_rabbitmqs_errors_and_unsupported_ones_are_named() {
        for (more, why) in [
            ("", "Must specify 'src-exchange' or 'src-queue'"),
            (",\"src-queue\":\"a\",\"foo\":1,\"bar\":1", "Unrecognised terms [<<\"bar\">>,<<\"foo\">>] in s"),
            (",\"src-queue\":\"a\",\"dest-queue\":3", "dest-queue should be binary, actually was 3"),
            (
                ",\"src-queue\":\"a\",\"delete-after\":\"zz\"",
                "delete-after should be a number greater than or equal to 0, \"never\" or \"queue-length\", \
                 actually was <<\"zz\">>",
            ),
            (
                ",\"src-queue\":\"a\",\"ack-mode\":\"zz\"",
                "ack-mode should be one of [<<\"no-ack\">>,<<\"on-publish\">>,<<\"on-confirm\">>], actually \
                 was <<\"zz\">>",
            ),
            (
                ",\"src-queue\":\"a\",\"publish-properties\":{\"zz\":1}",
                "Unrecognised terms [{<<\"zz\">>,1}] in publish-properties",
            ),
            (
                ",\"src-queue\":\"a\",\"prefetch-count\":\"x\"",
                "prefetch-count should be a number, actually was",
            ),
        ] {
            let error = parse("/", "s", with_uris(more).as_bytes()).expect_err(more);
            assert!(error.starts_with(why), "{error}");
        }
        for (more, why) in [
            (",\"src-queue\":\"a\",\"ack-mode\":\"no-ack\"", "ack-mode 'no-ack' is not supported"),
            (",\"src-queue\":\"a\",\"dest-protocol\":\"amqp10\"", "dest-protocol 'amqp10' is not supported"),
            (",\"src-queue\":\"a\",\"src-consumer-args\":{\"x\":1}", "src-consumer-args is not supported"),
        ] {
            let error = parse("/", "s", with_uris(more).as_bytes()).expect_err(more);
            assert!(error.starts_with(why), "{error}");
        }
    }

    #[test]
    fn unsupported_addresses_are_refused_and_no_error_contains_a_password() {
        let with = |src: &str, dest: &str| {
            let text = format!("{{\"src-uri\":{src},\"dest-uri\":{dest},\"src-queue\":\"q\"}}");
            parse("/", "s", text.as_bytes()).expect_err(&text)
        };
        for (src, dest, why) in [
            ("\"amqp://\"", "\"amqp:///v\"", "both mean this broker"),
            ("\"amqp://a\"", "\"amqp://b\"", "neither src-uri nor dest-uri"),
            ("[\"amqp://\",\"amqp://h\"]", "\"amqp://h\"", "a list of addresses that contains this broker"),
            ("[]", "\"amqp://\"", "src-uri should be an address"),
            ("3", "\"amqp://\"", "src-uri should be an address"),
            ("\"http://u:secret@h\"", "\"amqp://\"", "src-uri is not a valid URI"),
            ("\"amqp://u:secret@h?verify=verify_none\"", "\"amqp://\"", "verify_none is not supported"),
            ("\"amqp://u:1/secret@h\"", "\"amqp://\"", "write a / in the password"),
            ("\"amqp://u:1?secret@h\"", "\"amqp://\"", "write a ? in the password"),
            ("\"amqp://u:secret@/v\"", "\"amqp://h\"", "without a user"),
            ("\"amqps://u:secret@h?certfile=a\"", "\"amqp://\"", "certfile requires keyfile"),
        ] {
            let error = with(src, dest);
            assert!(error.contains(why) && !error.contains("secret"), "{error}");
        }
    }
}
