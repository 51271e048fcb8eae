//! How users, virtual hosts, exchanges, queues, bindings, policies and parameters are written down.
//!
//! ```text
//! key     | 0 access | 0 written down |
//!         | 0 access | 1 vhost      | name |
//!         | 0 access | 2 user       | name |
//!         | 0 access | 3 permission | vhost | user |
//!         | 0 access | 4 topic      | vhost | user | exchange |
//!         | 0 access | 5 limits     | user |
//!         | 1 exchange | vhost | name |
//!         | 2 queue    | vhost | name |
//!         | 3 binding  | vhost | source | 1 exchange, 2 queue | destination | routing key | arguments |
//!         | 4 policy   | vhost | name |
//!         | 5 operator policy | vhost | name |
//!         | 6 parameter | vhost | component | name |
//!         | 7 global parameter | name |
//!         | 8 damage    | 0 |                        see `store::damage`
//!
//! value of written down| whatever the store says with it, see `store::access` |
//!          a vhost     | max-queues u32 | max-connections u32 | metadata |      0xffffffff: no limit
//!          metadata    | flags: 1 protected | type of queues | description u16 + text | tags u16 + text |
//!          a user      | tags, with commas between | hash, see the room password |
//!          a permission| configure u16 + text | write u16 + text | read u16 + text |
//!          a topic     | write u16 + text | read u16 + text |
//!          limits      | max-connections u32 | max-channels u32 |                of a user that has any
//!          an exchange | flags: 1 auto-delete, 2 internal | version u64 | type | arguments |
//!          a queue     | flags: 1 auto-delete, 2 rebuilt, 4 levels | incarnation u64 | arguments | levels |
//!          its levels  | 14 "leveret-levels" as the name of one argument more, of type l | number u64 |
//!          a binding   | version of the source u64 | version or incarnation of the destination u64 |
//!          a policy    | to what it applies | priority i32 | pattern u16 + text | what it says |
//!          a parameter | JSON |
//! ```
//!
//! Versions that know no metadata of virtual hosts do not read it; without any, nothing stands there.
//! Names have their length before them in one byte; arguments, and what a policy says, are the rest. Little
//! endian, but for the number of the levels: programs that know no levels take it for an argument, which
//! means nothing to them.
//!
//! Always true: what is written, [`Definition::parse`] gives back; kinds sort so that what a binding needs is
//! read before it. Programs that know no policies or no parameters pass over them, and leave
//! them where they are. Without the
//! key `0 0` the log is silent about access, and what a new store begins with holds besides what else is
//! written; with it, nobody and nothing exists but what is written. A binding names versions, so one that was
//! left behind by a deletion that a power cut interrupted never binds another thing of the same name. What is
//! said of a definition in words is what it is and its names: the hash of a password is in none of them, and
//! no parameter's value, which may hold a password.

use core::fmt;

/// Something that is defined.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Definition<'a> {
    /// From here on nobody and nothing exists but what is written.
    AccessWritten,
    /// A virtual host.
    Vhost {
        /// Its name.
        name: &'a str,
        /// The most queues it may have.
        queues_max: Option<u32>,
        /// The most connections it may have.
        connections_max: Option<u32>,
        /// The metadata.
        metadata: VhostMetadata<'a>,
    },
    /// A user.
    User {
        /// Its name.
        name: &'a str,
        /// Its tags, with commas between them.
        tags: &'a str,
        /// What its password is kept as.
        hash: &'a [u8],
    },
    /// What a user may do in a virtual host, as patterns of names.
    Permission {
        /// The virtual host.
        vhost: &'a str,
        /// The user.
        user: &'a str,
        /// What it may declare and delete, write to, and read from.
        patterns: [&'a str; 3],
    },
    /// With which routing keys a user may write to and read from a topic exchange.
    TopicPermission {
        /// The virtual host.
        vhost: &'a str,
        /// The user.
        user: &'a str,
        /// The exchange.
        exchange: &'a str,
        /// Patterns to write and to read.
        patterns: [&'a str; 2],
    },
    /// What a user may have.
    UserLimits {
        /// The user.
        user: &'a str,
        /// The most connections.
        connections_max: Option<u32>,
        /// The most channels.
        channels_max: Option<u32>,
    },
    /// A durable exchange.
    Exchange {
        /// Its virtual host.
        vhost: &'a str,
        /// Its name.
        name: &'a str,
        /// Never used again for another exchange.
        version: u64,
        /// Its type.
        kind: &'a str,
        /// It goes with its last binding.
        auto_delete: bool,
        /// Nobody publishes to it.
        internal: bool,
        /// Its arguments: the bytes of a table.
        arguments: &'a [u8],
    },
    /// A durable queue.
    Queue {
        /// Its virtual host.
        vhost: &'a str,
        /// Its name.
        name: &'a str,
        /// Never used again for another queue.
        incarnation: u64,
        /// It goes with its last consumer.
        auto_delete: bool,
        /// What it was declared with is lost: it is so until somebody declares it again.
        is_rebuilt: bool,
        /// With priorities the incarnation of the level for priority 1, behind which are those of the
        /// others; 0 without.
        levels_from: u64,
        /// Its arguments: the bytes of a table.
        arguments: &'a [u8],
    },
    /// A binding between durable things.
    Binding {
        /// The virtual host of both ends.
        vhost: &'a str,
        /// The exchange it starts from.
        source: &'a str,
        /// The version of that; 0 for those that always exist.
        source_version: u64,
        /// The queue or exchange that gets the messages.
        destination: DestinationName<'a>,
        /// The version or incarnation of that.
        destination_version: u64,
        /// The binding key.
        routing_key: &'a str,
        /// Its arguments: the bytes of a table.
        arguments: &'a [u8],
    },
    /// A policy.
    Policy {
        /// Its virtual host.
        vhost: &'a str,
        /// Its name.
        name: &'a str,
        /// It is an operator policy.
        is_operators: bool,
        /// Of which names it speaks.
        pattern: &'a str,
        /// Of what: queues, exchanges or all.
        apply_to: &'a str,
        /// Of several the one with the highest counts.
        priority: i32,
        /// What it says: the bytes of a table.
        definition: &'a [u8],
    },
    /// A runtime parameter.
    Parameter {
        /// Its virtual host; `None`: it is global.
        vhost: Option<&'a str>,
        /// Whose it is; empty if it is global.
        component: &'a str,
        /// Its name.
        name: &'a str,
        /// What it says: JSON.
        value: &'a [u8],
    },
}

/// The metadata of a virtual host, as RabbitMQ calls it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VhostMetadata<'a> {
    /// A description for people.
    pub description: &'a str,
    /// The tags, with commas between them.
    pub tags: &'a str,
    /// The type of queues that are declared without one; empty if it is not set.
    pub default_queue_type: &'a str,
    /// The virtual host is not deleted until this is lifted (`protected_from_deletion`).
    pub is_protected: bool,
}

impl VhostMetadata<'_> {
    /// Bytes of all texts.
    pub const fn text_bytes(&self) -> usize {
        self.description.len() + self.tags.len() + self.default_queue_type.len()
    }
}

impl fmt::Display for Definition<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AccessWritten => write!(f, "that all users are written down"),
            Self::Vhost { name, .. } => write!(f, "virtual host {name:?}"),
            Self::User { name, .. } => write!(f, "user {name:?}"),
            Self::Permission { vhost, user, .. } => {
                write!(f, "the permissions of user {user:?} in virtual host {vhost:?}")
            }
            Self::TopicPermission { vhost, user, exchange, .. } => write!(
                f,
                "the topic permissions of user {user:?} for exchange {exchange:?} in virtual host {vhost:?}"
            ),
            Self::UserLimits { user, .. } => write!(f, "the limits of user {user:?}"),
            Self::Exchange { vhost, name, .. } => write!(f, "exchange {name:?} in virtual host {vhost:?}"),
            Self::Queue { vhost, name, .. } => write!(f, "queue {name:?} in virtual host {vhost:?}"),
            Self::Binding { vhost, source, destination, routing_key, .. } => write!(
                f,
                "the binding from exchange {source:?} to {destination:?} with key {routing_key:?} in virtual \
                 host {vhost:?}"
            ),
            Self::Policy { vhost, name, is_operators, .. } => {
                let kind = if *is_operators { "operator policy" } else { "policy" };
                write!(f, "{kind} {name:?} in virtual host {vhost:?}")
            }
            Self::Parameter { vhost: None, name, .. } => write!(f, "global parameter {name:?}"),
            Self::Parameter { vhost: Some(vhost), component, name, .. } => {
                write!(f, "parameter {name:?} of {component:?} in virtual host {vhost:?}")
            }
        }
    }
}

/// The same as in a message to people, so that no line written in haste tells a hash.
impl fmt::Debug for Definition<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Where a binding leads.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum DestinationName<'a> {
    /// To an exchange.
    Exchange(&'a str),
    /// To a queue.
    Queue(&'a str),
}

const ACCESS: u8 = 0;
const ACCESS_WRITTEN: u8 = 0;
/// The key of [`Definition::AccessWritten`].
pub const ACCESS_WRITTEN_KEY: [u8; 2] = [ACCESS, ACCESS_WRITTEN];

/// The key under which the store remembers what it could not read, see `store::damage`. No [`Definition`] has it.
pub const DAMAGE_KEY: [u8; 2] = [DAMAGE, 0];

/// Whether a key is of a definition that says who may do what: these are written twice.
pub fn is_access(key: &[u8]) -> bool {
    key.first() == Some(&ACCESS)
}

/// Virtual host and name in the key of what defines a queue.
pub fn queue_in(key: &[u8]) -> Option<(&str, &str)> {
    let mut key = Input(key);
    let kind = key.byte()?;
    let (vhost, name) = (key.name()?, key.name()?);
    (kind == QUEUE && key.0.is_empty()).then_some((vhost, name))
}

/// The incarnation in what defines a queue; `None` when that is something else.
pub fn incarnation_in(key: &[u8], value: &[u8]) -> Option<u64> {
    match Definition::parse(key, value)? {
        Definition::Queue { incarnation, .. } => Some(incarnation),
        _ => None,
    }
}

const VHOST: u8 = 1;
const USER: u8 = 2;
const PERMISSION: u8 = 3;
const TOPIC_PERMISSION: u8 = 4;
const USER_LIMITS: u8 = 5;
const EXCHANGE: u8 = 1;
const QUEUE: u8 = 2;
const BINDING: u8 = 3;
const POLICY: u8 = 4;
const OPERATOR_POLICY: u8 = 5;
const PARAMETER: u8 = 6;
const GLOBAL_PARAMETER: u8 = 7;
const DAMAGE: u8 = 8;
const AUTO_DELETE: u8 = 1;
const INTERNAL: u8 = 2;
const REBUILT: u8 = 2;
const LEVELS: u8 = 4;
const PROTECTED: u8 = 1;
/// What stands before the number of the levels, as before an argument's.
const LEVELS_NAME: &[u8] = b"\x0eleveret-levelsl";

impl<'a> Definition<'a> {
    /// What is defined.
    pub fn key(&self) -> Box<[u8]> {
        let mut key = Vec::new();
        match *self {
            Self::AccessWritten => key.extend(ACCESS_WRITTEN_KEY),
            Self::Vhost { name, .. } => put_access(&mut key, VHOST, &[name]),
            Self::User { name, .. } => put_access(&mut key, USER, &[name]),
            Self::Permission { vhost, user, .. } => put_access(&mut key, PERMISSION, &[vhost, user]),
            Self::TopicPermission { vhost, user, exchange, .. } => {
                put_access(&mut key, TOPIC_PERMISSION, &[vhost, user, exchange]);
            }
            Self::UserLimits { user, .. } => put_access(&mut key, USER_LIMITS, &[user]),
            Self::Exchange { vhost, name, .. } => {
                key.push(EXCHANGE);
                [vhost, name].into_iter().for_each(|name| put_name(&mut key, name));
            }
            Self::Queue { vhost, name, .. } => {
                key.push(QUEUE);
                [vhost, name].into_iter().for_each(|name| put_name(&mut key, name));
            }
            Self::Binding { vhost, source, destination, routing_key, arguments, .. } => {
                key.push(BINDING);
                [vhost, source].into_iter().for_each(|name| put_name(&mut key, name));
                let (kind, name) = match destination {
                    DestinationName::Exchange(name) => (EXCHANGE, name),
                    DestinationName::Queue(name) => (QUEUE, name),
                };
                key.push(kind);
                [name, routing_key].into_iter().for_each(|name| put_name(&mut key, name));
                key.extend_from_slice(arguments);
            }
            Self::Policy { vhost, name, is_operators, .. } => {
                key.push(if is_operators { OPERATOR_POLICY } else { POLICY });
                [vhost, name].into_iter().for_each(|name| put_name(&mut key, name));
            }
            Self::Parameter { vhost: Some(vhost), component, name, .. } => {
                key.push(PARAMETER);
                [vhost, component, name].into_iter().for_each(|name| put_name(&mut key, name));
            }
            Self::Parameter { vhost: None, name, .. } => {
                key.push(GLOBAL_PARAMETER);
                put_name(&mut key, name);
            }
        }
        key.into_boxed_slice()
    }

    /// What is said of it.
    pub fn value(&self) -> Box<[u8]> {
        let mut value = Vec::new();
        match *self {
            Self::AccessWritten => {}
            Self::Vhost { queues_max, connections_max, metadata, .. } => {
                for limit in [queues_max, connections_max] {
                    value.extend_from_slice(&limit.unwrap_or(NO_LIMIT).to_le_bytes());
                }
                if metadata != VhostMetadata::default() {
                    value.push(u8::from(metadata.is_protected) * PROTECTED);
                    put_name(&mut value, metadata.default_queue_type);
                    [metadata.description, metadata.tags]
                        .into_iter()
                        .for_each(|text| put_text(&mut value, text));
                }
            }
            Self::UserLimits { connections_max, channels_max, .. } => {
                for limit in [connections_max, channels_max] {
                    value.extend_from_slice(&limit.unwrap_or(NO_LIMIT).to_le_bytes());
                }
            }
            Self::User { tags, hash, .. } => {
                put_name(&mut value, tags);
                value.extend_from_slice(hash);
            }
            Self::Permission { patterns, .. } => {
                patterns.into_iter().for_each(|text| put_text(&mut value, text));
            }
            Self::TopicPermission { patterns, .. } => {
                patterns.into_iter().for_each(|text| put_text(&mut value, text));
            }
            Self::Exchange { version, kind, auto_delete, internal, arguments, .. } => {
                value.push(u8::from(auto_delete) * AUTO_DELETE + u8::from(internal) * INTERNAL);
                value.extend_from_slice(&version.to_le_bytes());
                put_name(&mut value, kind);
                value.extend_from_slice(arguments);
            }
            Self::Queue { incarnation, auto_delete, is_rebuilt, levels_from, arguments, .. } => {
                let has_levels = levels_from != 0;
                let flags = [(auto_delete, AUTO_DELETE), (is_rebuilt, REBUILT), (has_levels, LEVELS)];
                value.push(flags.into_iter().map(|(is_set, flag)| u8::from(is_set) * flag).sum());
                value.extend_from_slice(&incarnation.to_le_bytes());
                value.extend_from_slice(arguments);
                if has_levels {
                    value.extend_from_slice(LEVELS_NAME);
                    value.extend_from_slice(&levels_from.to_be_bytes());
                }
            }
            Self::Binding { source_version, destination_version, .. } => {
                value.extend_from_slice(&source_version.to_le_bytes());
                value.extend_from_slice(&destination_version.to_le_bytes());
            }
            Self::Policy { pattern, apply_to, priority, definition, .. } => {
                put_name(&mut value, apply_to);
                value.extend_from_slice(&priority.to_le_bytes());
                put_text(&mut value, pattern);
                value.extend_from_slice(definition);
            }
            Self::Parameter { value: json, .. } => value.extend_from_slice(json),
        }
        value.into_boxed_slice()
    }

    /// Reads a definition; `None` when the bytes are none.
    pub fn parse(key: &'a [u8], value: &'a [u8]) -> Option<Self> {
        let (mut key, mut value) = (Input(key), Input(value));
        let kind = key.byte()?;
        if kind == ACCESS {
            return Self::parse_access(key, value);
        }
        // A global parameter has its own name in this place.
        let vhost = key.name()?;
        match kind {
            EXCHANGE => {
                let name = key.name()?;
                let flags = value.byte()?;
                let version = value.number()?;
                let kind = value.name()?;
                let (auto_delete, internal) = (flags & AUTO_DELETE != 0, flags & INTERNAL != 0);
                Some(Self::Exchange { vhost, name, version, kind, auto_delete, internal, arguments: value.0 })
            }
            QUEUE => {
                let name = key.name()?;
                let flags = value.byte()?;
                let incarnation = value.number()?;
                let (auto_delete, is_rebuilt) = (flags & AUTO_DELETE != 0, flags & REBUILT != 0);
                let (arguments, levels_from) = match flags & LEVELS {
                    0 => (value.0, 0),
                    _ => split_levels(value.0)?,
                };
                Some(Self::Queue {
                    vhost,
                    name,
                    incarnation,
                    auto_delete,
                    is_rebuilt,
                    levels_from,
                    arguments,
                })
            }
            BINDING => {
                let source = key.name()?;
                let destination = match key.byte()? {
                    EXCHANGE => DestinationName::Exchange(key.name()?),
                    QUEUE => DestinationName::Queue(key.name()?),
                    _ => return None,
                };
                let routing_key = key.name()?;
                let (source_version, destination_version) = (value.number()?, value.number()?);
                Some(Self::Binding {
                    vhost,
                    source,
                    source_version,
                    destination,
                    destination_version,
                    routing_key,
                    arguments: key.0,
                })
            }
            POLICY | OPERATOR_POLICY => {
                let name = key.name()?;
                let (apply_to, priority, pattern) = (value.name()?, value.signed()?, value.text()?);
                let is_operators = kind == OPERATOR_POLICY;
                let definition = value.0;
                key.0.is_empty().then_some(Self::Policy {
                    vhost,
                    name,
                    is_operators,
                    pattern,
                    apply_to,
                    priority,
                    definition,
                })
            }
            PARAMETER => Self::parse_parameter(Some(vhost), (key.name()?, key.name()?), key.0, value.0),
            GLOBAL_PARAMETER => Self::parse_parameter(None, ("", vhost), key.0, value.0),
            _ => None,
        }
    }

    fn parse_parameter(
        vhost: Option<&'a str>,
        (component, name): (&'a str, &'a str),
        rest: &[u8],
        value: &'a [u8],
    ) -> Option<Self> {
        rest.is_empty().then_some(Self::Parameter { vhost, component, name, value })
    }

    /// The rest of what says who may do what.
    fn parse_access(mut key: Input<'a>, mut value: Input<'a>) -> Option<Self> {
        let definition = match key.byte()? {
            ACCESS_WRITTEN => Self::AccessWritten,
            VHOST => {
                let name = key.name()?;
                let (queues_max, connections_max) = (value.limit()?, value.limit()?);
                // Older versions wrote none.
                let metadata =
                    if value.0.is_empty() { VhostMetadata::default() } else { value.metadata()? };
                Self::Vhost { name, queues_max, connections_max, metadata }
            }
            USER => Self::User { name: key.name()?, tags: value.name()?, hash: value.0 },
            PERMISSION => {
                let (vhost, user) = (key.name()?, key.name()?);
                let patterns = [value.text()?, value.text()?, value.text()?];
                Self::Permission { vhost, user, patterns }
            }
            TOPIC_PERMISSION => {
                let (vhost, user, exchange) = (key.name()?, key.name()?, key.name()?);
                Self::TopicPermission { vhost, user, exchange, patterns: [value.text()?, value.text()?] }
            }
            USER_LIMITS => {
                let user = key.name()?;
                let (connections_max, channels_max) = (value.limit()?, value.limit()?);
                Self::UserLimits { user, connections_max, channels_max }
            }
            _ => return None,
        };
        key.0.is_empty().then_some(definition)
    }
}

const NO_LIMIT: u32 = u32::MAX;

fn put_access(key: &mut Vec<u8>, kind: u8, names: &[&str]) {
    key.extend([ACCESS, kind]);
    names.iter().for_each(|name| put_name(key, name));
}

/// Patterns are longer than names, but not much.
fn put_text(out: &mut Vec<u8>, text: &str) {
    assert!(text.len() <= u16::MAX.into(), "whoever takes it looks at its length");
    out.extend_from_slice(&(text.len() as u16).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// A queue's arguments, and the number of its levels behind them.
fn split_levels(bytes: &[u8]) -> Option<(&[u8], u64)> {
    let (bytes, number) = bytes.split_last_chunk()?;
    Some((bytes.strip_suffix(LEVELS_NAME)?, u64::from_be_bytes(*number)))
}

/// Names on the wire have at most 255 bytes.
fn put_name(out: &mut Vec<u8>, name: &str) {
    assert!(name.len() <= 255, "whoever takes it looks at its length");
    out.push(name.len() as u8);
    out.extend_from_slice(name.as_bytes());
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn number(&mut self) -> Option<u64> {
        let bytes: [u8; 8] = self.take(8)?.try_into().ok()?;
        Some(u64::from_le_bytes(bytes))
    }

    fn signed(&mut self) -> Option<i32> {
        let bytes: [u8; 4] = self.take(4)?.try_into().ok()?;
        Some(i32::from_le_bytes(bytes))
    }

    fn limit(&mut self) -> Option<Option<u32>> {
        let bytes: [u8; 4] = self.take(4)?.try_into().ok()?;
        Some(Some(u32::from_le_bytes(bytes)).filter(|limit| *limit != NO_LIMIT))
    }

    fn metadata(&mut self) -> Option<VhostMetadata<'a>> {
        let is_protected = self.byte()? & PROTECTED != 0;
        let default_queue_type = self.name()?;
        let (description, tags) = (self.text()?, self.text()?);
        Some(VhostMetadata { description, tags, default_queue_type, is_protected })
    }

    fn text(&mut self) -> Option<&'a str> {
        let len: [u8; 2] = self.take(2)?.try_into().ok()?;
        core::str::from_utf8(self.take(u16::from_le_bytes(len).into())?).ok()
    }

    fn name(&mut self) -> Option<&'a str> {
        let len = self.byte()?.into();
        core::str::from_utf8(self.take(len)?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        let exchange = Definition::Exchange {
            vhost: "/",
            name: "logs",
            version: 7 << 32,
            kind: "topic",
            auto_delete: true,
            internal: false,
            arguments: b"\x01xt\x01",
        };
        let queue = Definition::Queue {
            vhost: "/",
            name: "",
            incarnation: 9,
            auto_delete: false,
            is_rebuilt: true,
            levels_from: 0,
            arguments: b"",
        };
        let with_levels = Definition::Queue {
            vhost: "/",
            name: "levels",
            incarnation: 9,
            auto_delete: true,
            is_rebuilt: false,
            levels_from: 10 << 32 | 3,
            arguments: b"\x01xt\x01",
        };
        let binding = Definition::Binding {
            vhost: "/",
            source: "logs",
            source_version: 7,
            destination: DestinationName::Queue("q"),
            destination_version: 9,
            routing_key: "a.#",
            arguments: b"\x01xt\x01",
        };
        let vhost = Definition::Vhost {
            name: "/",
            queues_max: None,
            connections_max: Some(0),
            metadata: VhostMetadata::default(),
        };
        let user = Definition::User { name: "me", tags: "administrator,x", hash: &[0] };
        let permission = Definition::Permission { vhost: "/", user: "me", patterns: ["", ".*", "^a"] };
        let topic = Definition::TopicPermission {
            vhost: "/",
            user: "me",
            exchange: "amq.topic",
            patterns: ["^{username}", ""],
        };
        let limits = Definition::UserLimits { user: "me", connections_max: Some(3), channels_max: None };
        let policy = |is_operators| Definition::Policy {
            vhost: "/",
            name: "p",
            is_operators,
            pattern: "^q",
            apply_to: "queues",
            priority: -3,
            definition: b"\x01xt\x01",
        };
        let value = b"{\"a\":1}";
        let parameter = |vhost, component| Definition::Parameter { vhost, component, name: "s", value };
        let parameters = [parameter(Some("/"), "shovel"), parameter(None, "")];
        let policies = [policy(false), policy(true)];
        let mut keys = Vec::new();
        let access = [Definition::AccessWritten, vhost, user, permission, topic, limits];
        for definition in access
            .into_iter()
            .chain([exchange, queue, with_levels, binding])
            .chain(policies)
            .chain(parameters)
        {
            let (key, value) = (definition.key(), definition.value());
            assert_eq!(Definition::parse(&key, &value), Some(definition));
            for end in 0..key.len().min(if key[0] == ACCESS { 2 } else { 5 }) {
                assert_eq!(Definition::parse(&key[..end], &value), None);
            }
            keys.push(key);
        }
        assert!(keys.is_sorted(), "what a binding needs comes before it");
        assert_eq!(Definition::parse(b"\x08\x01/", b""), None, "of a later program");
    }

    /// The first eight bytes are all that older versions write, and read.
    #[test]
    fn metadata_of_a_virtual_host_stand_behind_what_older_versions_read() {
        let with =
            |metadata| Definition::Vhost { name: "v", queues_max: Some(3), connections_max: None, metadata };
        let old = with(VhostMetadata::default());
        let description = "d".repeat(1_000);
        let described = with(VhostMetadata {
            description: &description,
            tags: "a,b",
            default_queue_type: "quorum",
            is_protected: true,
        });
        let (key, value) = (described.key(), described.value());
        assert!(Definition::parse(&key, &value) == Some(described));
        assert_eq!((old.value().len(), &value[..8]), (8, &*old.value()));
        assert!(Definition::parse(&key, &value[..8]) == Some(old));
        assert!(Definition::parse(&key, &value[..value.len() - 1]).is_none());
    }

    /// A start says in its log which definitions the limits have no room for.
    #[test]
    fn no_words_for_a_user_tell_the_hash_of_its_password() {
        let user = Definition::User { name: "alice", tags: "administrator", hash: &[1, 211, 77] };
        for words in [format!("{user:?}"), format!("{user:#?}"), format!("{:?}", Some(user))] {
            assert!(words.contains("alice") && !words.contains("211"), "{words}");
        }
    }
}
