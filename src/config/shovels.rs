//! Shovels: RabbitMQ 3.10's runtime parameter `shovel` becomes a bridge.
//!
//! | keys | meaning |
//! |------|---------|
//! | `src-uri`, `dest-uri` | one of them is this broker (`amqp://`, no host), the other is the upstream |
//! | `src-queue`, `src-exchange` | the queue of a rule; messages of an exchange at this broker wait in a durable queue |
//! | `dest-queue`, `dest-exchange` | the destination of the rule; neither: where the message was first published to |
//! | `prefetch-count`, `reconnect-delay` | the window, and the maximum delay between two connection attempts |
//! | all others | [`Shovel`], beside the bridge |
//!
//! # Invariants
//! - Errors have RabbitMQ's texts. An unsupported setting is refused by the name of its key.
//! - No password is in an error or in a shown address.

use std::collections::BTreeMap;

use leveret_json::{Fields, Value, items};

use super::bridge::{
    Bridge, CONFIRM_TIMEOUT_MS_DEFAULT, Destination, HEARTBEAT_S_DEFAULT, HOPS_MAX_DEFAULT,
    MESSAGE_BYTES_MAX_DEFAULT, PARK_AFTER_DEFAULT, Refused, Rule, UpstreamTls, WINDOW_MAX,
};
use super::upstream::{self, Upstream};

/// Maximum number of addresses of one end.
const URIS_MAX: usize = 8;
/// Default number of messages in flight.
const PREFETCH_DEFAULT: u64 = 1_000;
/// Default delay between two connection attempts in seconds.
const DELAY_S_DEFAULT: u64 = 5;

/// The type of a key's value.
#[derive(Clone, Copy)]
enum Kind {
    Number,
    Text,
    Truth,
    Object,
    Properties,
    DeleteAfter,
    Uris,
    OneOf(&'static [&'static str]),
}

const PROTOCOLS: Kind = Kind::OneOf(&["amqp10", "amqp091"]);

/// The keys of RabbitMQ 3.10 for AMQP 0-9-1.
const KEYS: [(&str, Kind); 25] = [
    ("reconnect-delay", Kind::Number),
    ("ack-mode", Kind::OneOf(&["no-ack", "on-publish", "on-confirm"])),
    ("src-protocol", PROTOCOLS),
    ("dest-protocol", PROTOCOLS),
    ("src-uri", Kind::Uris),
    ("src-exchange", Kind::Text),
    ("src-exchange-key", Kind::Text),
    ("src-queue", Kind::Text),
    ("src-queue-args", Kind::Object),
    ("src-consumer-args", Kind::Object),
    ("prefetch-count", Kind::Number),
    ("src-prefetch-count", Kind::Number),
    ("delete-after", Kind::DeleteAfter),
    ("src-delete-after", Kind::DeleteAfter),
    ("dest-uri", Kind::Uris),
    ("dest-exchange", Kind::Text),
    ("dest-exchange-key", Kind::Text),
    ("dest-queue", Kind::Text),
    ("dest-queue-args", Kind::Object),
    ("add-forward-headers", Kind::Truth),
    ("add-timestamp-header", Kind::Truth),
    ("dest-add-forward-headers", Kind::Truth),
    ("dest-add-timestamp-header", Kind::Truth),
    ("publish-properties", Kind::Properties),
    ("dest-publish-properties", Kind::Properties),
];

/// Properties that messages may get, and whether each is a number.
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

/// Makes the bridge for a parameter.
///
/// # Errors
/// The reason, with RabbitMQ's text where RabbitMQ would refuse it too.
#[cold]
pub fn parse(vhost: &str, name: &str, json: &[u8]) -> Result<Bridge, String> {
    let value = Value::parse(json).map_err(|_| "a shovel's value must be JSON")?;
    let Value::Object(_) = value else { return Err("a shovel's value must be an object".to_string()) };
    let said = Fields::of(&value)?;
    let problems = problems(name, &said);
    if !problems.is_empty() {
        return Err(problems.join("\n"));
    }
    refuse_unbuilt(&said)?;
    made(vhost, name, &said)
}

fn text(said: &Fields<'_>, key: &str) -> Option<String> {
    match said.get(key)? {
        Value::String(text) => Some(text.into_owned()),
        _ => None,
    }
}

/// Returns the value of the first of these keys that is present.
fn first<'s>(said: &Fields<'s>, keys: &[&str]) -> Option<Value<'s>> {
    keys.iter().find_map(|key| said.get(key))
}

// ---- values that RabbitMQ refuses

#[cold]
fn problems(name: &str, said: &Fields<'_>) -> Vec<String> {
    let has = |key: &str| said.get(key).is_some();
    let mut problems = Vec::new();
    match (has("src-exchange"), has("src-queue")) {
        (false, false) => problems.push("Must specify 'src-exchange' or 'src-queue'".to_string()),
        (true, true) => problems.push("Cannot specify 'src-exchange' and 'src-queue'".to_string()),
        _ => {}
    }
    let after = first(said, &["src-delete-after", "delete-after"]);
    if matches!(after, Some(Value::Number(_))) && text(said, "ack-mode").as_deref() == Some("no-ack") {
        problems.push("Cannot specify 'no-ack' and numerical 'delete-after'".to_string());
    }
    if has("dest-exchange") && has("dest-queue") {
        problems.push("Cannot specify 'dest-exchange' and 'dest-queue'".to_string());
    }
    // Only the name of the key, because a mistyped key of addresses may be followed by passwords.
    let is_known = |key: &str| KEYS.iter().any(|(known, _)| *known == key);
    let unknown: Vec<String> =
        said.names().filter(|key| !is_known(key)).map(|key| format!("<<{key:?}>>")).collect();
    if !unknown.is_empty() {
        problems.push(format!("Unrecognised terms [{}] in {name}", unknown.join(",")));
    }
    for (key, kind) in KEYS {
        match said.get(key) {
            Some(value) => problems.extend(problem(key, kind, &value)),
            None if matches!(kind, Kind::Uris) => {
                problems.push(format!("Key \"{key}\" not found in {name}"));
            }
            None => {}
        }
    }
    problems
}

/// Returns the error in the value of a key.
fn problem(key: &str, kind: Kind, value: &Value<'_>) -> Option<String> {
    let shown = erlang(value);
    let wanted = match kind {
        Kind::Number if value.as_number().is_none() => "a number",
        Kind::Text if value.as_str().is_none() => "binary",
        Kind::Truth if !matches!(value, Value::Bool(_)) => "boolean",
        Kind::Object if !matches!(value, Value::Object(_)) => "an object",
        Kind::Properties => return wrong_properties(key, value),
        Kind::Uris => return wrong_uris(key, value),
        Kind::DeleteAfter
            if !(value.as_u64().is_some() || matches!(value.as_str(), Some("never" | "queue-length"))) =>
        {
            "a number greater than or equal to 0, \"never\" or \"queue-length\""
        }
        Kind::OneOf(words) if !value.as_str().is_some_and(|word| words.contains(&word)) => {
            let words: Vec<String> = words.iter().map(|word| format!("<<\"{word}\">>")).collect();
            return Some(format!("{key} should be one of [{}], actually was {shown}", words.join(",")));
        }
        _ => return None,
    };
    Some(format!("{key} should be {wanted}, actually was {shown}"))
}

fn wrong_properties(key: &str, value: &Value<'_>) -> Option<String> {
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

/// An address may contain a password: no part of it is repeated.
fn wrong_uris(key: &str, value: &Value<'_>) -> Option<String> {
    let texts = uris_of(value);
    if texts.is_empty() || texts.len() > URIS_MAX {
        return Some(format!("{key} should be an address, or a list of 1 to {URIS_MAX}"));
    }
    texts
        .iter()
        .find_map(|text| Address::parse(text).err())
        .map(|why| format!("{key} is not a valid URI: {why}"))
}

/// Returns the texts of one address or of a list, at most one more than allowed; none for another type.
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

/// Formats a value as RabbitMQ shows it.
fn erlang(value: &Value<'_>) -> String {
    match value {
        Value::String(text) => format!("<<{text:?}>>"),
        other => other.to_string(),
    }
}

// ---- unsupported settings

#[cold]
fn refuse_unbuilt(said: &Fields<'_>) -> Result<(), String> {
    for key in ["src-protocol", "dest-protocol"] {
        if text(said, key).as_deref() == Some("amqp10") {
            return Err(format!("{key} 'amqp10' is not supported here: 'amqp091' is"));
        }
    }
    if text(said, "ack-mode").as_deref() == Some("no-ack") {
        let why = "ack-mode 'no-ack' is not supported here, for it loses messages: 'on-publish' and \
                   'on-confirm' are, and both wait for the confirm";
        return Err(why.to_string());
    }
    if said.get("src-consumer-args").is_some_and(|arguments| arguments.holds_something()) {
        return Err("src-consumer-args is not supported here: leave it out".to_string());
    }
    Ok(())
}

// ---- the bridge

/// Percent-encodes one character in a name.
fn without(name: &str, part: char) -> String {
    name.replace('%', "%25").replace(part, &format!("%{:02X}", u32::from(part)))
}

#[cold]
fn made(vhost: &str, name: &str, said: &Fields<'_>) -> Result<Bridge, String> {
    let sources = addresses(said, "src-uri")?;
    let destinations = addresses(said, "dest-uri")?;
    let is_forward = check_ends(&sources, &destinations)?;
    let (here, there) = if is_forward { (&sources, &destinations) } else { (&destinations, &sources) };
    // A queue at this broker is named after the shovel, and after its virtual host if necessary. The separating
    // characters are encoded in the names, so two shovels never have the same queue.
    let (own, of_vhost) = match vhost {
        "/" => (format!("shovel.{}", without(name, '.')), String::new()),
        _ => (
            format!("shovel..{}.{}", without(vhost, '.'), without(name, '.')),
            format!(" of {}", without(vhost, ' ')),
        ),
    };
    let (source, destination) =
        (end(said, "src", sources.shown(), is_forward), end(said, "dest", destinations.shown(), !is_forward));
    let rule = rule(&source, &destination, &own);
    let parked = format!("{own}.parked");
    check_names(&rule, &source, &parked)?;
    let delay_s = number(said, &["reconnect-delay"], DELAY_S_DEFAULT);
    let window = number(said, &["src-prefetch-count", "prefetch-count"], PREFETCH_DEFAULT);
    let window = if window == 0 { WINDOW_MAX } else { window.min(WINDOW_MAX.into()) as u16 };
    let (forward, fetch) = if is_forward { (vec![rule], Vec::new()) } else { (Vec::new(), vec![rule]) };
    Ok(Bridge {
        name: format!("shovel {}{of_vhost}", without(name, ' ')),
        vhost: here.vhost_here(),
        upstream: there.0.iter().filter_map(|address| address.upstream.clone()).collect(),
        forward,
        fetch,
        window,
        heartbeat_s: there.0.iter().find_map(|address| address.heartbeat_s).unwrap_or(HEARTBEAT_S_DEFAULT),
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
        tls: there.tls()?,
        shovel: Some(Box::new(shovel((vhost, name), said, (source, destination), delay_s == 0))),
    })
}

/// Returns whether messages are forwarded from this broker; otherwise they are fetched.
#[cold]
fn check_ends(sources: &Addresses, destinations: &Addresses) -> Result<bool, String> {
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

/// Reads one end by its keys, which begin with `which`.
fn end(said: &Fields<'_>, which: &str, uris: Vec<String>, is_here: bool) -> ShovelEnd {
    let own = |key: &str| text(said, &format!("{which}-{key}"));
    let arguments = said.get(&format!("{which}-queue-args"));
    ShovelEnd {
        uris,
        is_here,
        queue: own("queue"),
        exchange: own("exchange"),
        key: own("exchange-key"),
        arguments: arguments.map(|arguments| arguments.to_string()).unwrap_or_default(),
    }
}

fn rule(source: &ShovelEnd, destination: &ShovelEnd, own: &str) -> Rule {
    Rule {
        // At the upstream, a queue with a server-generated name stands for the exchange.
        queue: source.queue.clone().unwrap_or_else(|| own.to_string()),
        to: match (&destination.queue, &destination.exchange) {
            (Some(queue), _) => Destination::Queue(queue.clone()),
            (None, Some(exchange)) => Destination::Exchange(exchange.clone(), destination.key.clone()),
            (None, None) => Destination::AsItWas(destination.key.clone()),
        },
        refused: Refused::Park,
        is_urgent: false,
    }
}

fn shovel(
    (vhost, name): (&str, &str),
    said: &Fields<'_>,
    (source, destination): (ShovelEnd, ShovelEnd),
    is_tried_once: bool,
) -> Shovel {
    let truth = |keys: &[&str]| first(said, keys) == Some(Value::Bool(true));
    let properties = first(said, &["dest-publish-properties", "publish-properties"]);
    let properties = properties.and_then(|said| Fields::of(&said).ok()).unwrap_or_default();
    let property = |name| match properties.get(name)? {
        Value::String(text) => Some((name, Property::Text(text.into_owned()))),
        value => value.as_u64().map(|number| (name, Property::Number(number))),
    };
    Shovel {
        name: name.to_string(),
        vhost: vhost.to_string(),
        delete_after: match first(said, &["src-delete-after", "delete-after"]) {
            Some(Value::String(word)) if word == "queue-length" => DeleteAfter::QueueLength,
            Some(value) => value.as_u64().map_or(DeleteAfter::Never, DeleteAfter::Messages),
            None => DeleteAfter::Never,
        },
        is_tried_once,
        adds_headers: truth(&["dest-add-forward-headers", "add-forward-headers"]),
        adds_timestamp: truth(&["dest-add-timestamp-header", "add-timestamp-header"]),
        properties: PROPERTIES.iter().filter_map(|(name, _)| property(*name)).collect(),
        source,
        destination,
    }
}

fn number(said: &Fields<'_>, keys: &[&str], default: u64) -> u64 {
    let said = first(said, keys).and_then(|value| value.as_number()?.as_f64());
    said.map_or(default, |number| number.max(0.0) as u64)
}

/// Checks that names fit into AMQP's short strings.
fn check_names(rule: &Rule, source: &ShovelEnd, parked: &str) -> Result<(), String> {
    let names = [Some(&*rule.queue), rule.to.exchange(), rule.to.key(), Some(parked)];
    let others = [source.exchange.as_deref(), source.key.as_deref()];
    let is_long = |name: &&str| name.len() > leveret_core::mem::NAME_BYTES_MAX;
    if names.iter().chain(&others).flatten().any(is_long) {
        let why = "names of queues and exchanges, and keys, have 255 bytes at most, and so has the name of \
                   the queue for what is refused: shovel.NAME.parked";
        return Err(why.to_string());
    }
    if source.queue.as_deref() == Some("") || source.exchange.as_deref() == Some("") {
        return Err("src-queue and src-exchange must not be empty".to_string());
    }
    Ok(())
}

// ---- addresses

/// One address of an end.
struct Address {
    /// The address as it is shown.
    shown: String,
    /// `None`: this broker.
    upstream: Option<Upstream>,
    vhost: String,
    heartbeat_s: Option<u16>,
    tls: UpstreamTls,
}

struct Addresses(Vec<Address>);

impl Addresses {
    fn is_here(&self) -> bool {
        self.0.iter().all(|address| address.upstream.is_none())
    }

    fn shown(&self) -> Vec<String> {
        self.0.iter().map(|address| address.shown.clone()).collect()
    }

    fn vhost_here(&self) -> String {
        self.0.first().map_or_else(|| "/".to_string(), |address| address.vhost.clone())
    }

    /// Returns the TLS settings that all addresses agree on.
    fn tls(&self) -> Result<UpstreamTls, String> {
        let mut all = self.0.iter().filter(|it| it.upstream.as_ref().is_some_and(|it| it.with_tls));
        let first = all.next().map(|address| address.tls.clone()).unwrap_or_default();
        match all.all(|address| address.tls == first) {
            true => Ok(first),
            false => {
                Err("addresses of one end that say different things of TLS are not supported here".into())
            }
        }
    }
}

#[cold]
fn addresses(said: &Fields<'_>, key: &str) -> Result<Addresses, String> {
    let texts = said.get(key).map(|value| uris_of(&value)).unwrap_or_default();
    let all = texts.iter().map(|text| Address::parse(text)).collect::<Result<Vec<_>, _>>()?;
    let here = all.iter().filter(|address| address.upstream.is_none()).count();
    if here != 0 && here != all.len() || here > 1 {
        return Err(format!("{key}: this broker among other addresses is not supported here"));
    }
    Ok(Addresses(all))
}

impl Address {
    /// Parses an address. The error contains no password.
    #[cold]
    fn parse(text: &str) -> Result<Self, String> {
        let (address, query) = text.split_once('?').unwrap_or((text, ""));
        let (scheme, rest) = address.split_once("://").unwrap_or((address, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let place = authority.rsplit_once('@').map_or(authority, |(_, place)| place);
        let slash = if rest.contains('/') { "/" } else { "" };
        let shown = format!("{scheme}://{place}{slash}{path}");
        let (upstream, vhost) = if scheme == "amqp" && place.is_empty() {
            if !authority.is_empty() {
                return Err(
                    "this broker itself is amqp:// without a user: a shovel logs in nowhere here".into()
                );
            }
            if path.contains('@') {
                return Err("a / in its password is written %2F".into());
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
                    let wrong = |_| "its heartbeat is no number of seconds".to_string();
                    parsed.heartbeat_s = Some(value.parse().map_err(wrong)?);
                }
                "cacertfile" => parsed.tls.ca_file = Some(value.into()),
                "certfile" => certificate = Some(value.into()),
                "keyfile" => key = Some(value.into()),
                "server_name_indication" => parsed.tls.server_name = Some(value),
                "verify" if value == "verify_peer" => {}
                // These settings are fulfilled, or do not affect messages.
                "connection_timeout" | "channel_max" | "depth" | "fail_if_no_peer_cert" => {}
                "verify" => {
                    let why = "is not supported here, for the upstream's certificate is always checked";
                    return Err(format!("its parameter verify={value} {why}"));
                }
                // The text behind a `?` may be half of a password.
                _ if name.contains('@') => return Err("a ? in its password is written %3F".into()),
                _ => return Err(format!("its parameter '{name}' is not supported here")),
            }
        }
        parsed.tls.identity = match (certificate, key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => return Err("certfile and keyfile go together".to_string()),
        };
        Ok(parsed)
    }
}

/// The settings of a shovel that a bridge does not have. No password is in a shown address.
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
    /// When the shovel ends, and its parameter is deleted.
    pub delete_after: DeleteAfter,
    /// Whether a link that fails is not tried again: `reconnect-delay` is 0.
    pub is_tried_once: bool,
    /// Whether messages get `x-shovelled` and `x-shovelled-timestamp`.
    pub adds_headers: bool,
    /// Whether messages get `x-shovelled-timestamp`.
    pub adds_timestamp: bool,
    /// Properties that messages get instead of their own.
    pub properties: BTreeMap<&'static str, Property>,
}

/// A property that messages get.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Property {
    /// A text.
    Text(String),
    /// A number.
    Number(u64),
}

/// One end of a shovel.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct ShovelEnd {
    /// Its addresses without credentials.
    pub uris: Vec<String>,
    /// Whether it is this broker.
    pub is_here: bool,
    /// The queue.
    pub queue: Option<String>,
    /// The exchange.
    pub exchange: Option<String>,
    /// The routing key.
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

    fn said(more: &str) -> String {
        format!("{{\"src-uri\":\"amqp://\",\"dest-uri\":[\"amqp://u:secret@h/v\",\"amqps://h\"]{more}}}")
    }

    #[test]
    fn every_key_becomes_what_it_means() {
        let more = ",\"src-queue\":\"a\",\"dest-queue\":\"b\",\"prefetch-count\":7,\"reconnect-delay\":3,\
                    \"delete-after\":5,\"ack-mode\":\"on-publish\",\"add-forward-headers\":true,\
                    \"publish-properties\":{\"delivery_mode\":2},\"src-queue-args\":{\"x-max-length\":3}";
        let bridge = parse("/", "s", said(more).as_bytes()).expect("it is right");
        assert_eq!((bridge.forward.len(), bridge.fetch.len(), bridge.window), (1, 0, 7));
        assert_eq!((&*bridge.vhost, bridge.reconnect_max_ms, &*bridge.name), ("/", 3_000, "shovel s"));
        assert_eq!(bridge.forward[0].to, Destination::Queue("b".into()));
        assert_eq!((bridge.upstream.len(), &*bridge.upstream[0].vhost), (2, "v"));
        let shovel = bridge.shovel.expect("it is one");
        assert_eq!(shovel.destination.uris, ["amqp://h/v", "amqps://h"]);
        assert_eq!((shovel.delete_after, shovel.adds_headers), (DeleteAfter::Messages(5), true));
        let fetch =
            "{\"src-uri\":\"amqp://h?heartbeat=9\",\"dest-uri\":\"amqp:///v%2f\",\"src-exchange\":\"x\"}";
        let bridge = parse("v", "s", fetch.as_bytes()).expect("it is right");
        assert_eq!((&*bridge.vhost, bridge.heartbeat_s, bridge.window), ("v/", 9, 1_000));
        assert_eq!(bridge.fetch[0].to, Destination::AsItWas(None));
        assert_eq!(bridge.name, "shovel s of v");
    }

    #[test]
    fn what_is_wrong_is_said_as_there_and_what_is_not_built_by_its_name() {
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
            let error = parse("/", "s", said(more).as_bytes()).expect_err(more);
            assert!(error.starts_with(why), "{error}");
        }
        for (more, why) in [
            (",\"src-queue\":\"a\",\"ack-mode\":\"no-ack\"", "ack-mode 'no-ack' is not supported"),
            (",\"src-queue\":\"a\",\"dest-protocol\":\"amqp10\"", "dest-protocol 'amqp10' is not supported"),
            (",\"src-queue\":\"a\",\"src-consumer-args\":{\"x\":1}", "src-consumer-args is not supported"),
        ] {
            let error = parse("/", "s", said(more).as_bytes()).expect_err(more);
            assert!(error.starts_with(why), "{error}");
        }
    }

    #[test]
    fn ends_that_cannot_be_are_refused_and_no_password_is_told() {
        let with = |src: &str, dest: &str| {
            let text = format!("{{\"src-uri\":{src},\"dest-uri\":{dest},\"src-queue\":\"q\"}}");
            parse("/", "s", text.as_bytes()).expect_err(&text)
        };
        for (src, dest, why) in [
            ("\"amqp://\"", "\"amqp:///v\"", "both mean this broker"),
            ("\"amqp://a\"", "\"amqp://b\"", "neither src-uri nor dest-uri"),
            ("[\"amqp://\",\"amqp://h\"]", "\"amqp://h\"", "this broker among other addresses"),
            ("[]", "\"amqp://\"", "src-uri should be an address"),
            ("3", "\"amqp://\"", "src-uri should be an address"),
            ("\"http://u:secret@h\"", "\"amqp://\"", "src-uri is not a valid URI"),
            ("\"amqp://u:secret@h?verify=verify_none\"", "\"amqp://\"", "verify_none is not supported"),
            ("\"amqp://u:1/secret@h\"", "\"amqp://\"", "a / in its password"),
            ("\"amqp://u:1?secret@h\"", "\"amqp://\"", "a ? in its password"),
            ("\"amqp://u:secret@/v\"", "\"amqp://h\"", "without a user"),
            ("\"amqps://u:secret@h?certfile=a\"", "\"amqp://\"", "go together"),
        ] {
            let error = with(src, dest);
            assert!(error.contains(why) && !error.contains("secret"), "{error}");
        }
    }
}
