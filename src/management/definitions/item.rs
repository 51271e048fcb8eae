//! Parses one object of a definition file: a queue, a user, a permission.
//!
//! # Invariants
//! - Names fit into AMQP's short strings.
//! - Arguments are valid field tables.
//! - Errors in a policy are reported in RabbitMQ's words.

use core::fmt;

use leveret_broker::{ExchangeDeclaration, OperatorBinding, QueueDeclaration, SHOVEL, VhostChange};
use leveret_core::command::NAME_BYTES_MAX;
use leveret_core::definition::{
    ApplyTo, Parameter, Permission, Policy, PolicyKind, TopicPermission, UNLIMITED, UserLimits, VhostLimits,
};
use leveret_core::password::{PASSWORD_BYTES_MAX, PasswordHash};
use leveret_json::{Fields, Value, items, unfit};
use zeroize::Zeroizing;

use super::read::SECTIONS;
use super::table_of;

/// One object of a list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Parsed {
    /// The object.
    pub item: Item,
    /// Names of its unknown fields, which have no effect.
    pub unknown_fields: Vec<String>,
}

/// One defined object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Item {
    /// A virtual host.
    Vhost(Vhost),
    /// A user.
    User(User),
    /// The permissions of a user in a virtual host.
    Permission(Permission<String>),
    /// The permissions of a user for the routing keys of a topic exchange.
    TopicPermission(TopicPermission<String>),
    /// Limits of a virtual host.
    Limits(String, VhostLimits),
    /// A policy, or an operator policy.
    Policy(Policy<String, Vec<u8>>),
    /// A runtime parameter, or a global one.
    Parameter(Parameter<String, String>),
    /// An exchange.
    Exchange(Exchange),
    /// A queue.
    Queue(Queue),
    /// A binding.
    Binding(Binding),
}

/// Why an object cannot be used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ItemError {
    /// A field is missing or has an invalid value; the text says which.
    Bad(String),
    /// RabbitMQ has such objects, but this broker has not; the text names the object.
    Unsupported(String),
}

impl From<String> for ItemError {
    fn from(why: String) -> Self {
        Self::Bad(why)
    }
}

impl fmt::Display for ItemError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bad(why) => f.write_str(why),
            Self::Unsupported(what) => write!(f, "{what}: not supported by this broker"),
        }
    }
}

/// A virtual host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Vhost {
    /// Its name.
    pub name: String,
    /// Limits, if the definition has any.
    pub limits: Option<VhostLimits>,
    /// The metadata of the definition.
    pub metadata: VhostChange,
}

/// A user.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct User {
    /// Its name.
    pub name: String,
    /// The password or its hash.
    pub password: Password,
    /// The tags, separated by commas.
    pub tags: String,
    /// Limits, if the definition has any.
    pub limits: Option<UserLimits>,
}

/// The password of a user.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Password {
    /// The definition has none. Then no password is accepted, as in RabbitMQ.
    Absent,
    /// Clear text. The caller of [`apply`](super::apply) must hash it first.
    Clear(ClearPassword),
    /// The salted hash, as user records contain it.
    Hash(PasswordHash),
}

/// A password in clear. It is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct ClearPassword(Zeroizing<String>);

impl ClearPassword {
    /// Returns the password's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Debug for ClearPassword {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClearPassword")
    }
}

/// An exchange.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Exchange {
    /// Its name.
    pub name: String,
    /// The virtual host.
    pub vhost: String,
    /// Its type.
    pub kind: String,
    /// Whether it survives a restart of the broker.
    pub durable: bool,
    /// Whether it is deleted with its last binding.
    pub auto_delete: bool,
    /// Whether clients may not publish to it.
    pub internal: bool,
    /// The bytes of a field table.
    pub arguments: Vec<u8>,
}

impl Exchange {
    /// Returns the declaration of the exchange.
    pub fn declaration(&self) -> ExchangeDeclaration<'_> {
        let Self { name: exchange, kind, durable, auto_delete, internal, arguments, .. } = self;
        let (durable, auto_delete, internal) = (*durable, *auto_delete, *internal);
        ExchangeDeclaration { exchange, kind, durable, auto_delete, internal, arguments }
    }
}

/// A queue.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Queue {
    /// Its name.
    pub name: String,
    /// The virtual host.
    pub vhost: String,
    /// Whether it survives a restart of the broker.
    pub durable: bool,
    /// Whether it is deleted with its last consumer.
    pub auto_delete: bool,
    /// The bytes of a field table.
    pub arguments: Vec<u8>,
}

impl Queue {
    /// Returns the declaration of the queue.
    pub fn declaration(&self) -> QueueDeclaration<'_> {
        let Self { name: queue, durable, auto_delete, arguments, .. } = self;
        let (durable, exclusive, auto_delete) = (*durable, false, *auto_delete);
        QueueDeclaration { queue, durable, exclusive, auto_delete, arguments }
    }
}

/// A binding.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Binding {
    /// The virtual host.
    pub vhost: String,
    /// The source exchange.
    pub source: String,
    /// The queue or exchange that gets the messages.
    pub destination: String,
    /// `queue` or `exchange`.
    pub destination_type: String,
    /// The binding key.
    pub routing_key: String,
    /// The bytes of a field table.
    pub arguments: Vec<u8>,
}

impl Binding {
    /// Returns the binding for the broker.
    pub fn named(&self) -> OperatorBinding<'_> {
        OperatorBinding {
            vhost: &self.vhost,
            source: &self.source,
            routing_key: &self.routing_key,
            destination: &self.destination,
            is_exchange: self.destination_type == "exchange",
            arguments: &self.arguments,
        }
    }
}

/// The hash algorithm of definitions that name none, as in RabbitMQ.
const ALGORITHM_DEFAULT: &str = "rabbit_password_hashing_md5";

/// Parses one object of a list.
///
/// # Errors
/// The object is not valid in this list, or this broker has no such objects.
pub fn parse(section: &str, text: &str) -> Result<Parsed, ItemError> {
    parse_fields(section, Fields::parse(text.as_bytes())?)
}

/// Parses one object whose fields have been read already.
///
/// # Errors
/// As of [`parse`].
pub fn parse_fields(section: &str, mut fields: Fields<'_>) -> Result<Parsed, ItemError> {
    if !SECTIONS.contains(&section) {
        return Err(ItemError::Unsupported(named(section, &fields)));
    }
    let what = described(section, &fields);
    item_of(section, &mut fields).map_err(|error| match error {
        ItemError::Bad(why) => ItemError::Bad(format!("{what}: {why}")),
        error @ ItemError::Unsupported(_) => error,
    })
}

fn item_of(section: &str, fields: &mut Fields<'_>) -> Result<Parsed, ItemError> {
    let item = match section {
        "vhosts" => vhost(fields)?,
        "users" => user(fields)?,
        "permissions" => permission(fields)?,
        "topic_permissions" => topic_permission(fields)?,
        "parameters" => parameter(fields)?,
        "global_parameters" => {
            let (name, value) = (fields.text("name")?, fields.value("value").compact()?);
            Item::Parameter(Parameter { vhost: None, component: String::new(), name, value })
        }
        "policies" => {
            let names = (fields.text("vhost")?, fields.text("name")?);
            Item::Policy(read_policy(fields, PolicyKind::User, names)?)
        }
        "exchanges" => exchange(fields)?,
        "queues" => queue(fields)?,
        _ => binding(fields)?,
    };
    item.check().map(|item| Parsed { item, unknown_fields: unknown(section, fields) })
}

/// Fields that RabbitMQ exports and that have no effect here: the type of a queue, and the name of `vhost-limits`.
const IGNORED_FIELDS: [(&str, &str); 2] = [("queues", "type"), ("parameters", "name")];

fn unknown(section: &str, fields: &Fields<'_>) -> Vec<String> {
    fields.names().filter(|name| !IGNORED_FIELDS.contains(&(section, name))).map(str::to_string).collect()
}

fn vhost(fields: &mut Fields<'_>) -> Result<Item, String> {
    let name = fields.text("name")?;
    let limits = limits_field(fields)?.map(read_vhost_limits).transpose()?;
    Ok(Item::Vhost(Vhost { name, limits, metadata: vhost_change(fields)? }))
}

/// Reads the metadata of a virtual host. Fields beside the object `metadata` take precedence over its members.
///
/// # Errors
/// A field has an invalid value.
pub fn vhost_change(fields: &mut Fields<'_>) -> Result<VhostChange, String> {
    let object = fields.value("metadata");
    let inner = match object.holds_something() {
        true => change_in(&mut Fields::of(&object)?)?,
        false => VhostChange::default(),
    };
    let outer = change_in(fields)?;
    Ok(VhostChange {
        description: outer.description.or(inner.description),
        tags: outer.tags.or(inner.tags),
        default_queue_type: outer.default_queue_type.or(inner.default_queue_type),
        is_protected: outer.is_protected.or(inner.is_protected),
    })
}

fn change_in(fields: &mut Fields<'_>) -> Result<VhostChange, String> {
    let tags = tags(fields)?.map(|tags| {
        let tags: Vec<&str> = tags.split(',').map(str::trim).filter(|tag| !tag.is_empty()).collect();
        tags.join(",")
    });
    // RabbitMQ exports an unset type as the text `undefined`.
    let is_set = |kind: &String| !["", "undefined"].contains(&kind.as_str());
    Ok(VhostChange {
        description: fields.text_if_said("description")?,
        tags,
        default_queue_type: fields.text_if_said("default_queue_type")?.filter(is_set),
        is_protected: match fields.value("protected_from_deletion") {
            Value::Null => None,
            Value::Bool(is_protected) => Some(is_protected),
            other => return Err(unfit("protected_from_deletion", "true or false", &other)),
        },
    })
}

fn permission(fields: &mut Fields<'_>) -> Result<Item, String> {
    Ok(Item::Permission(Permission {
        user: fields.text("user")?,
        vhost: fields.text("vhost")?,
        configure: fields.text("configure")?,
        write: fields.text("write")?,
        read: fields.text("read")?,
    }))
}

fn topic_permission(fields: &mut Fields<'_>) -> Result<Item, String> {
    Ok(Item::TopicPermission(TopicPermission {
        user: fields.text("user")?,
        vhost: fields.text("vhost")?,
        exchange: fields.text("exchange")?,
        write: fields.text("write")?,
        read: fields.text("read")?,
    }))
}

fn parameter(fields: &mut Fields<'_>) -> Result<Item, ItemError> {
    let component = fields.text("component")?;
    if component == "operator_policy" {
        let names = (fields.text("vhost")?, fields.text("name")?);
        let mut value = Fields::of(&fields.value("value"))?;
        return Ok(Item::Policy(read_policy(&mut value, PolicyKind::Operator, names)?));
    }
    if component == SHOVEL {
        let (vhost, name) = (Some(fields.text("vhost")?), fields.text("name")?);
        return Ok(Item::Parameter(Parameter {
            vhost,
            component,
            name,
            value: fields.value("value").compact()?,
        }));
    }
    if component != "vhost-limits" {
        return Err(ItemError::Unsupported(format!("a parameter of {component}")));
    }
    Ok(Item::Limits(fields.text("vhost")?, read_vhost_limits(Fields::of(&fields.value("value"))?)?))
}

fn exchange(fields: &mut Fields<'_>) -> Result<Item, String> {
    Ok(Item::Exchange(Exchange {
        name: fields.text("name")?,
        vhost: fields.text("vhost")?,
        kind: fields.text("type")?,
        durable: fields.truth("durable")?,
        auto_delete: fields.truth("auto_delete")?,
        internal: fields.truth("internal")?,
        arguments: arguments(fields)?,
    }))
}

fn queue(fields: &mut Fields<'_>) -> Result<Item, String> {
    Ok(Item::Queue(Queue {
        name: fields.text("name")?,
        vhost: fields.text("vhost")?,
        durable: fields.truth("durable")?,
        auto_delete: fields.truth("auto_delete")?,
        arguments: arguments(fields)?,
    }))
}

fn binding(fields: &mut Fields<'_>) -> Result<Item, String> {
    Ok(Item::Binding(Binding {
        vhost: fields.text("vhost")?,
        source: fields.text("source")?,
        destination: fields.text("destination")?,
        destination_type: fields.text("destination_type")?,
        routing_key: fields.text("routing_key")?,
        arguments: arguments(fields)?,
    }))
}

/// Reads limits of a virtual host from an object that has no other members.
///
/// # Errors
/// The object has other members, or an invalid value.
pub fn read_vhost_limits(mut fields: Fields<'_>) -> Result<VhostLimits, String> {
    let limits = VhostLimits {
        queues_max: limit(&mut fields, "max-queues")?,
        connections_max: limit(&mut fields, "max-connections")?,
    };
    fields.nothing_else().map(|()| limits)
}

/// Reads limits of a user from an object that has no other members.
///
/// # Errors
/// The object has other members, or an invalid value.
pub fn read_user_limits(mut fields: Fields<'_>) -> Result<UserLimits, String> {
    let limits = UserLimits {
        connections_max: limit(&mut fields, "max-connections")?,
        channels_max: limit(&mut fields, "max-channels")?,
    };
    fields.nothing_else().map(|()| limits)
}

/// Reads a limit. A negative value means [`UNLIMITED`], as in RabbitMQ. Values beyond the range are the largest limit.
fn limit(fields: &mut Fields<'_>, name: &str) -> Result<Option<u32>, String> {
    let value: Option<i64> = fields.number_if_said(name)?;
    Ok(value.map(|value| match value {
        ..0 => UNLIMITED,
        value => u32::try_from(value).unwrap_or(UNLIMITED).min(UNLIMITED - 1),
    }))
}

/// Reads the member `limits`, if it is set: an object, or a list of `[name, value]` pairs. RabbitMQ exports both forms.
fn limits_field<'b>(fields: &mut Fields<'b>) -> Result<Option<Fields<'b>>, String> {
    let limits = fields.value("limits");
    let read = || if let Value::Array(list) = limits { Fields::of_pairs(list) } else { Fields::of(&limits) };
    limits.holds_something().then(read).transpose()
}

fn user(fields: &mut Fields<'_>) -> Result<Item, String> {
    let name = fields.text("name")?;
    let password = password(fields)?;
    let tags = tags(fields)?.unwrap_or_default();
    let limits = limits_field(fields)?.map(read_user_limits).transpose()?;
    Ok(Item::User(User { name, password, tags, limits }))
}

/// Returns the tags, separated by commas, from a text or a list of texts. Returns `None` if there are none.
///
/// # Errors
/// The field has another type.
pub fn tags(fields: &mut Fields<'_>) -> Result<Option<String>, String> {
    match fields.value("tags") {
        Value::Null => Ok(None),
        Value::String(tags) => Ok(Some(tags.into_owned())),
        tags => match tags_listed(&tags) {
            Some(tags) => Ok(Some(tags)),
            None => Err(unfit("tags", "a text or a list of texts", &tags)),
        },
    }
}

/// Joins tags from a list of texts with commas.
fn tags_listed(tags: &Value<'_>) -> Option<String> {
    let Value::Array(list) = tags else { return None };
    items(list).enumerate().try_fold(String::new(), |mut tags, (at, tag)| {
        tags += if at == 0 { "" } else { "," };
        tags += tag.ok()?.as_str()?;
        Some(tags)
    })
}

fn password(fields: &mut Fields<'_>) -> Result<Password, String> {
    let clear = match fields.value("password") {
        Value::Null => None,
        Value::String(text) => Some(Zeroizing::new(text.into_owned())),
        // The value may be a password, so the error does not repeat it.
        _ => return Err("`password` must be a text".to_string()),
    };
    let hash = fields.text_if_said("password_hash")?;
    let algorithm = fields.text_if_said("hashing_algorithm")?;
    match (clear, hash) {
        (Some(_), Some(_)) => Err("both `password` and `password_hash` are given; leave one out".to_string()),
        (Some(clear), None) if clear.len() > PASSWORD_BYTES_MAX => {
            Err(format!("`password` has at most {PASSWORD_BYTES_MAX} bytes"))
        }
        // No login succeeds with an empty password.
        (Some(clear), None) if clear.is_empty() => Ok(Password::Hash(PasswordHash::NoPassword)),
        (Some(clear), None) => Ok(Password::Clear(ClearPassword(clear))),
        (None, Some(hash)) => {
            let algorithm = algorithm.as_deref().unwrap_or(ALGORITHM_DEFAULT);
            PasswordHash::import(algorithm, &hash).map(Password::Hash).map_err(|error| error.to_string())
        }
        (None, None) => Ok(Password::Absent),
    }
}

fn named(section: &str, fields: &Fields<'_>) -> String {
    match fields.get("name") {
        Some(Value::String(name)) => format!("{section} '{name}'"),
        _ => section.to_string(),
    }
}

/// Returns the description of an object in error texts: `queue 'q' in vhost '/'`.
fn described(section: &str, fields: &Fields<'_>) -> String {
    let named =
        [("", "name"), ("of ", "user"), ("from ", "source"), ("to ", "destination"), ("in vhost ", "vhost")];
    let texts = named.iter().filter_map(|(word, key)| match fields.get(key)? {
        Value::String(text) => Some((word, text)),
        _ => None,
    });
    let kind = if section == "policies" { "policy" } else { section.trim_end_matches('s') };
    texts.fold(kind.replace('_', " "), |mut text, (word, name)| {
        text += &format!(" {word}'{name}'");
        text
    })
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vhost(Vhost { name, .. }) | Self::Limits(name, _) => write!(f, "vhost '{name}'"),
            Self::User(it) => write!(f, "user '{}'", it.name),
            Self::Permission(it) => write!(f, "permission of '{}' in vhost '{}'", it.user, it.vhost),
            Self::TopicPermission(it) => {
                write!(f, "topic permission of '{}' in vhost '{}'", it.user, it.vhost)
            }
            Self::Policy(it) => write!(f, "policy '{}' in vhost '{}'", it.name, it.vhost),
            Self::Parameter(it) => match &it.vhost {
                Some(vhost) => write!(f, "{} '{}' in vhost '{vhost}'", it.component, it.name),
                None => write!(f, "global parameter '{}'", it.name),
            },
            Self::Exchange(it) => write!(f, "exchange '{}' in vhost '{}'", it.name, it.vhost),
            Self::Queue(it) => write!(f, "queue '{}' in vhost '{}'", it.name, it.vhost),
            Self::Binding(it) => {
                write!(f, "binding from '{}' to '{}' in vhost '{}'", it.source, it.destination, it.vhost)
            }
        }
    }
}

impl Item {
    fn check(self) -> Result<Self, ItemError> {
        let names: [&str; 4] = match &self {
            Self::Vhost(Vhost { name, .. }) | Self::Limits(name, _) => [name, "", "", ""],
            Self::User(user) => [&user.name, "", "", ""],
            Self::Permission(it) => [&it.user, &it.vhost, "", ""],
            Self::TopicPermission(it) => [&it.user, &it.vhost, &it.exchange, ""],
            Self::Policy(it) => [&it.vhost, &it.name, "", ""],
            Self::Parameter(it) => [it.vhost.as_deref().unwrap_or(""), &it.name, "", ""],
            Self::Exchange(it) => [&it.vhost, &it.name, "", ""],
            Self::Queue(it) => [&it.vhost, &it.name, "", ""],
            Self::Binding(it) => [&it.vhost, &it.source, &it.destination, &it.routing_key],
        };
        if names.iter().any(|name| name.len() > NAME_BYTES_MAX) {
            return Err(ItemError::Bad("a name is longer than 255 bytes".to_string()));
        }
        match &self {
            Self::Binding(it) if !["queue", "exchange"].contains(&it.destination_type.as_str()) => {
                Err(ItemError::Bad(format!("destination_type '{}': queue or exchange", it.destination_type)))
            }
            Self::Queue(it) if it.name.is_empty() => {
                Err(ItemError::Bad("a queue without a name".to_string()))
            }
            _ => Ok(self),
        }
    }
}

fn arguments(fields: &mut Fields<'_>) -> Result<Vec<u8>, String> {
    table_of(&fields.value("arguments"))
}

/// Reads a policy from an object. Unknown members are ignored. `names` are those of the virtual host and the policy.
///
/// # Errors
/// A member is missing or invalid; the text is RabbitMQ's.
pub fn read_policy(
    fields: &mut Fields<'_>,
    kind: PolicyKind,
    names: (String, String),
) -> Result<Policy<String, Vec<u8>>, String> {
    let (vhost, name) = names;
    let invalid = |why: String| format!("Validation failed\n\n{why}\n");
    let pattern = match fields.value("pattern") {
        Value::Null => return Err("[{key_missing,pattern}]".to_string()),
        Value::String(text) => text.into_owned(),
        other => return Err(invalid(format!("pattern should be a binary but was {other}"))),
    };
    let definition = match fields.value("definition") {
        Value::Null => return Err("[{key_missing,definition}]".to_string()),
        definition @ (Value::Object(_) | Value::Array(_)) => table_of(&definition)?,
        other => return Err(invalid(format!("definition should be an object but was {other}"))),
    };
    let priority = match fields.value("priority") {
        Value::Null => 0,
        value => value.as_i64().and_then(|number| i32::try_from(number).ok()).ok_or_else(|| {
            let shown = value.as_str().map_or_else(|| value.to_string(), |text| format!("<<{text:?}>>"));
            invalid(format!("priority should be a number, actually was {shown}"))
        })?,
    };
    let apply_to = fields.text_if_said("apply-to")?.map_or(Ok(ApplyTo::All), |text| {
        let why = format!("apply-to '{text}' unrecognised; should be 'queues', 'exchanges' or 'all'");
        ApplyTo::from_name(&text).ok_or_else(|| invalid(why))
    })?;
    Ok(Policy { vhost, kind, name, pattern, apply_to, priority, definition })
}

#[cfg(test)]
mod tests {
    use super::{parse as parse_text, *};
    use leveret_amqp::field::Table;
    use serde_json::{Value, json};

    fn parse(section: &str, value: Value) -> Result<Parsed, ItemError> {
        parse_text(section, &value.to_string())
    }

    /// Parses an object all of whose fields must be known.
    fn item_of(section: &str, value: Value) -> Result<Item, ItemError> {
        parse(section, value).map(|parsed| {
            assert_eq!(parsed.unknown_fields, Vec::<String>::new());
            parsed.item
        })
    }

    #[test]
    fn a_clear_password_is_never_shown() {
        let parsed = parse("users", json!({"name": "x", "password": "hunter2", "pasword": 1})).unwrap();
        assert_eq!(parsed.unknown_fields, ["pasword"]);
        assert!(!format!("{parsed:?}").contains("hunter2"));
        let Item::User(User { password: Password::Clear(clear), .. }) = parsed.item else { panic!() };
        assert_eq!(clear.as_bytes(), b"hunter2");
        for (said, wanted) in [
            (json!({"name": "x"}), Password::Absent),
            (json!({"name": "x", "password": ""}), Password::Hash(PasswordHash::NoPassword)),
            (json!({"name": "x", "password_hash": ""}), Password::Hash(PasswordHash::NoPassword)),
        ] {
            let Ok(Item::User(user)) = item_of("users", said) else { panic!() };
            assert_eq!(user.password, wanted);
        }
        let error = parse("users", json!({"name": "x", "password": 4711})).unwrap_err().to_string();
        assert!(!error.contains("4711"), "{error}");
    }

    #[test]
    fn exports_of_rabbitmq_are_understood() {
        let user = json!({"hashing_algorithm": "rabbit_password_hashing_sha256", "limits": {},
                          "name": "guest",
                          "password_hash": "kI3GCqW5JLMJa4iX1lo7X4D6XbYqlLgxIs30+P6tENUV2POR",
                          "tags": ["administrator", "x"]});
        let Ok(Item::User(user)) = item_of("users", user) else { panic!() };
        assert_eq!((user.name.as_str(), user.tags.as_str()), ("guest", "administrator,x"));
        let vhost = json!({"limits": [], "metadata": {"default_queue_type": "quorum", "description": "a",
                           "tags": ["t1", "t2"], "protected_from_deletion": true},
                           "name": "dqt", "default_queue_type": "classic"});
        let metadata = VhostChange {
            description: Some("a".into()),
            tags: Some("t1,t2".into()),
            default_queue_type: Some("classic".into()),
            is_protected: Some(true),
        };
        let dqt = Vhost { name: "dqt".into(), limits: None, metadata };
        assert_eq!(item_of("vhosts", vhost), Ok(Item::Vhost(dqt)));
        let unset = json!({"name": "v", "tags": null, "default_queue_type": "undefined"});
        let plain = |limits| Vhost { name: "v".into(), limits, metadata: VhostChange::default() };
        assert_eq!(item_of("vhosts", unset), Ok(Item::Vhost(plain(None))));
        let limited = VhostLimits { queues_max: Some(5), connections_max: None };
        for limits in [json!([["max-queues", 5]]), json!({"max-queues": 5})] {
            let vhost = json!({"name": "v", "limits": limits});
            assert_eq!(item_of("vhosts", vhost), Ok(Item::Vhost(plain(Some(limited)))));
        }
        let limits = json!({"component": "vhost-limits", "name": "limits", "vhost": "/",
                            "value": {"max-queues": 5}});
        assert_eq!(item_of("parameters", limits), Ok(Item::Limits("/".into(), limited)));
        let queue = json!({"arguments": {"x-b": true, "x-l": [1, "two"], "x-t": {"a": 1}},
                           "auto_delete": false, "durable": true, "name": "q", "type": "classic",
                           "vhost": "/"});
        let Ok(Item::Queue(queue)) = item_of("queues", queue) else { panic!() };
        let table = Table::parse(&queue.arguments).unwrap();
        assert_eq!(table.get("x-b").and_then(|value| value.as_bool()), Some(true));
        assert_eq!(
            table.get("x-l").and_then(|value| value.as_array()).map(|list| list.iter().count()),
            Some(2)
        );
        let inner = table.get("x-t").and_then(|value| value.as_table()).and_then(|inner| inner.get("a"));
        assert_eq!(inner.and_then(|value| value.as_integer()), Some(1));
    }

    #[test]
    fn policies_are_parsed_from_policies_and_from_parameters() {
        let said =
            json!({"pattern": "^q", "definition": {"max-length": 3}, "priority": -1, "apply-to": "queues"});
        let mut policy = said.clone();
        (policy["vhost"], policy["name"]) = ("/".into(), "p".into());
        let parameter = json!({"component": "operator_policy", "name": "p", "vhost": "/", "value": said});
        for (section, value, kind) in
            [("policies", policy, PolicyKind::User), ("parameters", parameter, PolicyKind::Operator)]
        {
            let Ok(Item::Policy(policy)) = item_of(section, value) else { panic!("{section}") };
            assert_eq!((policy.kind, policy.priority, policy.apply_to), (kind, -1, ApplyTo::Queues));
            assert_eq!((&*policy.name, &*policy.pattern), ("p", "^q"));
            let definition = Table::parse(&policy.definition).unwrap();
            assert_eq!(definition.get("max-length").and_then(|value| value.as_integer()), Some(3));
        }
        for (field, value, why) in [
            ("pattern", json!(3), "pattern should be a binary but was 3"),
            ("priority", json!("x"), "priority should be a number, actually was <<\"x\">>"),
            ("apply-to", json!("zz"), "apply-to 'zz' unrecognised; should be 'queues', 'exchanges' or 'all'"),
            ("definition", Value::Null, "[{key_missing,definition}]"),
        ] {
            let mut policy = json!({"vhost": "/", "name": "p", "pattern": "^q", "definition": {}});
            policy[field] = value;
            let error = parse("policies", policy).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn unsupported_objects_are_named() {
        let other = json!({"component": "federation-upstream", "name": "s", "vhost": "/", "value": {}});
        assert!(matches!(parse("parameters", other), Err(ItemError::Unsupported(_))));
    }

    #[test]
    fn parameters_are_kept_as_json_and_their_values_never_shown() {
        let shovel =
            json!({"component": "shovel", "name": "s", "vhost": "/", "value": {"b": 1, "a": "secret"}});
        let Ok(Item::Parameter(shovel)) = item_of("parameters", shovel) else { panic!() };
        assert_eq!(shovel.value, "{\"a\":\"secret\",\"b\":1}");
        assert!(!format!("{shovel:?}").contains("secret"));
        let Ok(Item::Parameter(global)) = item_of("global_parameters", json!({"name": "x", "value": 1}))
        else {
            panic!()
        };
        assert_eq!((global.vhost, &*global.name, &*global.value), (None, "x", "1"));
    }

    #[test]
    fn invalid_objects_are_refused() {
        for (section, value, why) in [
            ("users", json!({"tags": []}), "missing field `name`"),
            ("users", json!({"name": "x", "password": "p", "password_hash": "h"}), "both"),
            ("users", json!({"name": "x", "password_hash": "AAAA"}), "the hashing algorithm is unknown"),
            ("users", json!({"name": "x", "tags": 3}), "`tags` must be a text or a list of texts, not 3"),
            (
                "queues",
                json!({"name": "x".repeat(256), "vhost": "/", "durable": true, "auto_delete": false}),
                "longer than 255",
            ),
            (
                "queues",
                json!({"name": "", "vhost": "/", "durable": true, "auto_delete": false}),
                "without a name",
            ),
            (
                "exchanges",
                json!({"name": "e", "vhost": "/", "type": "topic", "durable": true,
                                 "auto_delete": false, "arguments": [1]}),
                "must be an object",
            ),
            (
                "bindings",
                json!({"vhost": "/", "source": "e", "destination": "q", "destination_type": "x",
                                "routing_key": ""}),
                "queue or exchange",
            ),
            ("vhosts", json!({"name": "v", "limits": {"max-queus": 1}}), "max-queus"),
            ("vhosts", json!({"name": "v", "metadata": {"tags": 3}}), "`tags` must be a text or a list"),
            ("vhosts", json!({"name": "v", "protected_from_deletion": 1}), "must be true or false"),
        ] {
            let error = parse(section, value).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        let mut deep = json!(1);
        for _ in 0..40 {
            deep = json!({ "a": deep });
        }
        let queue =
            json!({"name": "q", "vhost": "/", "durable": true, "auto_delete": false, "arguments": deep});
        assert!(parse("queues", queue).unwrap_err().to_string().contains("too deep"));
    }
}
