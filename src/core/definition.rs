//! The format in which users, virtual hosts, exchanges, queues, bindings, policies and parameters are stored.
//!
//! ```text
//! key     | 0 access | 0 access is stored |
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
//!         | 8 damage    | 0 |                        see `ReportedDamage`
//!         | 9 session state | vhost | queue | 0 received, 1 deliveries |    after the queue
//!         | 10 retained | vhost | routing key |
//!         | 11 will    | vhost | queue |              after the queue
//!
//! value of access stored| whatever the storage adds, see `storage/access.rs` |
//!          a vhost     | max-queues u32 | max-connections u32 | metadata |      0xffffffff: no limit
//!          metadata    | flags: 1 protected | type of queues | description u16 + text | tags u16 + text |
//!          a user      | tags, with commas between | password hash |
//!          a permission| configure u16 + text | write u16 + text | read u16 + text |
//!          a topic     | write u16 + text | read u16 + text |
//!          limits      | max-connections u32 | max-channels u32 |                of a user that has any
//!          an exchange | flags: 1 auto-delete, 2 internal | version u64 | type | arguments |
//!          a queue     | flags: 1 auto-delete, 2 rebuilt, 4 priority queues | incarnation u64 | arguments | priorities |
//!          priorities  | 14 "leveret-levels" as the name of one argument more, of type l | number u64 |
//!          a binding   | version of the source u64 | version or incarnation of the destination u64 |
//!          a policy    | what it applies to | priority i32 | pattern u16 + text | definition |
//!          a parameter | JSON |
//!          a session state | incarnation of the queue u64 | state |
//!          a retained | QoS u8 | length of the properties u32 | properties | payload |
//!          a will     | incarnation of the queue u64 | flags: 1 retain | delay u32 | keep-alive u16 |
//!                     | routing key | length of the properties u32 | properties | payload |
//! ```
//!
//! Names are preceded by their length in one byte. Arguments and the definition of a policy take the rest of the
//! value. Numbers are little endian. The exception is the number of the priority queues: programs without priority
//! queues read it as an argument, which they ignore.
//!
//! If the metadata of a virtual host are empty, they are not written. Older versions of Leveret do not read
//! them. Versions without policies or parameters ignore these definitions and leave them in the log.
//!
//! # Invariants
//! - [`Definition::parse`] returns what [`Definition::key`] and [`Definition::value`] wrote.
//! - In the order of the keys, virtual hosts, exchanges and queues come before the bindings that need them.
//! - Without the key `0 0`, the users, virtual hosts and permissions of a new store exist in addition to
//!   those in the log. With this key, only those in the log exist.
//! - A binding contains the versions of its source and destination. After a power cut during a deletion, a
//!   binding that is left in the log can therefore not apply to a later exchange or queue of the same name.
//! - `Display` and `Debug` show the type and the names of a definition. They never show a password hash, nor the
//!   value of a parameter, which may contain a password.

use core::fmt;

/// A definition: an object of the broker that is restored at the next start.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Definition<'a> {
    /// Marks that all access definitions are stored: only users, virtual hosts and permissions in the log exist.
    AccessStored,
    /// A virtual host.
    Vhost {
        /// Its name.
        name: &'a str,
        /// Maximum number of queues.
        queues_max: Option<u32>,
        /// Maximum number of connections.
        connections_max: Option<u32>,
        /// Its metadata.
        metadata: VhostMetadata<'a>,
    },
    /// A user.
    User {
        /// Its name.
        name: &'a str,
        /// Its tags, separated by commas.
        tags: &'a str,
        /// The hash of its password.
        hash: &'a [u8],
    },
    /// The permissions of a user in a virtual host.
    Permission(Permission<&'a str>),
    /// The permissions of a user for the routing keys of a topic exchange.
    TopicPermission(TopicPermission<&'a str>),
    /// The limits of a user.
    UserLimits {
        /// The user.
        user: &'a str,
        /// Maximum number of connections.
        connections_max: Option<u32>,
        /// Maximum number of channels.
        channels_max: Option<u32>,
    },
    /// A durable exchange.
    Exchange {
        /// Its virtual host.
        vhost: &'a str,
        /// Its name.
        name: &'a str,
        /// The version of the exchange, never used for another one.
        version: u64,
        /// Its type.
        kind: &'a str,
        /// The exchange is deleted with its last binding.
        auto_delete: bool,
        /// Clients may not publish to the exchange.
        internal: bool,
        /// Its arguments, encoded as an AMQP table.
        arguments: &'a [u8],
    },
    /// A durable queue.
    Queue {
        /// Its virtual host.
        vhost: &'a str,
        /// Its name.
        name: &'a str,
        /// The incarnation of the queue, never used for another one.
        incarnation: u64,
        /// The queue is deleted with its last consumer.
        auto_delete: bool,
        /// The arguments were lost, and recovery has rebuilt the queue without them. The next declaration by
        /// a client sets them.
        is_rebuilt: bool,
        /// For a queue with priorities: the incarnation of the level for priority 1. The higher priorities
        /// have the following numbers. Otherwise 0.
        priorities_from: u64,
        /// Its arguments, encoded as an AMQP table.
        arguments: &'a [u8],
    },
    /// A binding between a durable exchange and a durable queue or exchange.
    Binding {
        /// The virtual host of both ends.
        vhost: &'a str,
        /// The source exchange.
        source: &'a str,
        /// The version of the source; 0 for predeclared exchanges.
        source_version: u64,
        /// The destination: a queue or an exchange.
        destination: DestinationName<'a>,
        /// The version or incarnation of the destination.
        destination_version: u64,
        /// The binding key.
        routing_key: &'a str,
        /// Its arguments, encoded as an AMQP table.
        arguments: &'a [u8],
    },
    /// A policy.
    Policy(Policy<&'a str, &'a [u8]>),
    /// A runtime parameter.
    Parameter(Parameter<&'a str, &'a [u8]>),
    /// One part of the state of an MQTT session that is kept: exchanges of QoS 2 that are not complete.
    SessionState {
        /// The virtual host of the session's queue.
        vhost: &'a str,
        /// The queue.
        queue: &'a str,
        /// Which exchanges.
        part: SessionPart,
        /// The incarnation of the queue. A state of an earlier queue of this name is ignored.
        incarnation: u64,
        /// The state, in the format of the broker.
        state: &'a [u8],
    },
    /// The will of the client of an MQTT session that is kept.
    Will {
        /// The virtual host of the session's queue.
        vhost: &'a str,
        /// The queue.
        queue: &'a str,
        /// The incarnation of the queue. A will of an earlier queue of this name is ignored.
        incarnation: u64,
        /// The will becomes the retained message of its topic.
        retain: bool,
        /// The will delay interval, in seconds.
        delay_s: u32,
        /// The keep-alive time of the client, in seconds; 0: none.
        keep_alive_s: u16,
        /// The routing key of the topic.
        topic_key: &'a str,
        /// The AMQP properties.
        properties: &'a [u8],
        /// The payload.
        payload: &'a [u8],
    },
    /// The retained message of a topic of MQTT.
    Retained {
        /// The virtual host.
        vhost: &'a str,
        /// The routing key of the topic.
        key: &'a str,
        /// The QoS.
        qos: u8,
        /// The AMQP properties, as on the wire.
        properties: &'a [u8],
        /// The payload.
        payload: &'a [u8],
    },
}

/// The permissions of a user in a virtual host. `T` is `&str` or `String`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Permission<T> {
    /// The user.
    pub user: T,
    /// The virtual host.
    pub vhost: T,
    /// The pattern of names of exchanges and queues that the user may declare and delete.
    pub configure: T,
    /// The pattern of names of exchanges and queues that the user may write to.
    pub write: T,
    /// The pattern of names of exchanges and queues that the user may read from.
    pub read: T,
}

impl Permission<String> {
    /// Returns the permissions with borrowed texts.
    pub fn borrowed(&self) -> Permission<&str> {
        let Self { user, vhost, configure, write, read } = self;
        Permission { user, vhost, configure, write, read }
    }
}

/// The permissions of a user for the routing keys of a topic exchange. `T` is `&str` or `String`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TopicPermission<T> {
    /// The user.
    pub user: T,
    /// The virtual host.
    pub vhost: T,
    /// The topic exchange.
    pub exchange: T,
    /// The pattern of routing keys with which the user may publish.
    pub write: T,
    /// The pattern of routing keys with which the user may bind to the exchange.
    pub read: T,
}

impl TopicPermission<String> {
    /// Returns the permissions with borrowed texts.
    pub fn borrowed(&self) -> TopicPermission<&str> {
        let Self { user, vhost, exchange, write, read } = self;
        TopicPermission { user, vhost, exchange, write, read }
    }
}

/// A policy. `T` is `&str` or `String`, and `B` are bytes, borrowed or owned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Policy<T, B> {
    /// Its virtual host.
    pub vhost: T,
    /// Whether it is a user policy or an operator policy.
    pub kind: PolicyKind,
    /// Its name.
    pub name: T,
    /// The pattern for names of queues and exchanges.
    pub pattern: T,
    /// The kinds of objects to which it applies.
    pub apply_to: ApplyTo,
    /// If several policies match a queue or exchange, the one with the highest priority applies.
    pub priority: i32,
    /// Its definition, encoded as an AMQP table.
    pub definition: B,
}

impl Policy<String, Vec<u8>> {
    /// Returns the policy with borrowed texts.
    pub fn borrowed(&self) -> Policy<&str, &[u8]> {
        let Self { vhost, kind, name, pattern, apply_to, priority, definition } = self;
        let (kind, apply_to, priority) = (*kind, *apply_to, *priority);
        Policy { vhost, kind, name, pattern, apply_to, priority, definition }
    }
}

/// Whether a policy is a user policy or an operator policy. Policies of different kinds may have the same name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PolicyKind {
    /// A policy set by a user with the tag `policymaker`.
    User,
    /// An operator policy. Its limits apply where they are lower than those of user policies and arguments.
    Operator,
}

/// What a policy applies to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ApplyTo {
    /// Queues and exchanges.
    #[default]
    All,
    /// Queues alone.
    Queues,
    /// Exchanges alone.
    Exchanges,
    /// Classic queues alone. This value and the following ones exist in RabbitMQ from 3.12.
    ClassicQueues,
    /// Quorum queues alone.
    QuorumQueues,
    /// Streams only. Leveret has no streams, so such a policy applies to nothing.
    Streams,
    /// A value that this version does not know, in the log of a later version.
    Unknown,
}

impl ApplyTo {
    /// Returns the value of `apply-to` for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Queues => "queues",
            Self::Exchanges => "exchanges",
            Self::ClassicQueues => "classic_queues",
            Self::QuorumQueues => "quorum_queues",
            Self::Streams => "streams",
            Self::Unknown => "unknown",
        }
    }

    /// Returns the variant for a value of `apply-to`; `None` if there is none.
    pub fn from_name(name: &str) -> Option<Self> {
        use ApplyTo::{All, ClassicQueues, Exchanges, Queues, QuorumQueues, Streams};
        let all = [All, Queues, Exchanges, ClassicQueues, QuorumQueues, Streams];
        all.into_iter().find(|apply_to| apply_to.name() == name)
    }
}

/// A runtime parameter. `T` is `&str` or `String`, and `B` are bytes, borrowed or owned.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Parameter<T, B> {
    /// Its virtual host; `None` for a global parameter.
    pub vhost: Option<T>,
    /// The component that it configures; empty for a global parameter.
    pub component: T,
    /// Its name.
    pub name: T,
    /// Its value: JSON, which may contain a password.
    pub value: B,
}

impl Parameter<String, String> {
    /// Returns the parameter with borrowed texts.
    pub fn borrowed(&self) -> Parameter<&str, &[u8]> {
        let Self { vhost, component, name, value } = self;
        Parameter { vhost: vhost.as_deref(), component, name, value: value.as_bytes() }
    }
}

/// Formats the names only, so that no debug output contains a password.
impl<T: fmt::Debug, B> fmt::Debug for Parameter<T, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Parameter {:?} of {:?}", self.name, self.component)
    }
}

/// The metadata of a virtual host, as RabbitMQ calls it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VhostMetadata<'a> {
    /// A description.
    pub description: &'a str,
    /// The tags, separated by commas.
    pub tags: &'a str,
    /// The default queue type: for queues that are declared without `x-queue-type`. Empty if it is not set.
    pub default_queue_type: &'a str,
    /// The virtual host cannot be deleted (`protected_from_deletion`).
    pub is_protected: bool,
}

impl VhostMetadata<'_> {
    /// Returns the bytes of all texts.
    pub const fn text_bytes(&self) -> usize {
        self.description.len() + self.tags.len() + self.default_queue_type.len()
    }
}

/// The destination of a binding.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum DestinationName<'a> {
    /// An exchange.
    Exchange(&'a str),
    /// A queue.
    Queue(&'a str),
}

/// A part of the state of an MQTT session. Each is written at its own place in the order of all changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum SessionPart {
    /// Messages that the client has published.
    Received = 0,
    /// Messages that were sent to the client.
    Deliveries = 1,
}

const ACCESS: u8 = 0;
const ACCESS_STORED: u8 = 0;
/// The key of [`Definition::AccessStored`].
pub const ACCESS_STORED_KEY: [u8; 2] = [ACCESS, ACCESS_STORED];

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
const SESSION_STATE: u8 = 9;
const RETAINED: u8 = 10;
const WILL: u8 = 11;
const AUTO_DELETE: u8 = 1;
const INTERNAL: u8 = 2;
const REBUILT: u8 = 2;
const LEVELS: u8 = 4;
const PROTECTED: u8 = 1;
const RETAIN: u8 = 1;
/// The bytes before the number of the priority queues: they have the form of an argument's name and type.
const LEVELS_NAME: &[u8] = b"\x0eleveret-levelsl";

const NO_LIMIT: u32 = u32::MAX;

/// The key of the reports about damage of the store. No [`Definition`] has it.
pub const DAMAGE_KEY: [u8; 2] = [DAMAGE, 0];

impl<'a> Definition<'a> {
    /// Returns the key, which identifies the definition.
    pub fn key(&self) -> Box<[u8]> {
        let mut key = Vec::new();
        match *self {
            Self::AccessStored => key.extend(ACCESS_STORED_KEY),
            Self::Vhost { name, .. } => put_access(&mut key, VHOST, &[name]),
            Self::User { name, .. } => put_access(&mut key, USER, &[name]),
            Self::Permission(Permission { vhost, user, .. }) => {
                put_access(&mut key, PERMISSION, &[vhost, user])
            }
            Self::TopicPermission(TopicPermission { vhost, user, exchange, .. }) => {
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
            Self::Policy(Policy { vhost, name, kind, .. }) => {
                key.push(if kind == PolicyKind::Operator { OPERATOR_POLICY } else { POLICY });
                [vhost, name].into_iter().for_each(|name| put_name(&mut key, name));
            }
            Self::Parameter(Parameter { vhost: Some(vhost), component, name, .. }) => {
                key.push(PARAMETER);
                [vhost, component, name].into_iter().for_each(|name| put_name(&mut key, name));
            }
            Self::Parameter(Parameter { vhost: None, name, .. }) => {
                key.push(GLOBAL_PARAMETER);
                put_name(&mut key, name);
            }
            Self::SessionState { vhost, queue, part, .. } => {
                key.push(SESSION_STATE);
                [vhost, queue].into_iter().for_each(|name| put_name(&mut key, name));
                key.push(part as u8);
            }
            Self::Will { vhost, queue, .. } => {
                key.push(WILL);
                [vhost, queue].into_iter().for_each(|name| put_name(&mut key, name));
            }
            Self::Retained { vhost, key: topic, .. } => {
                key.push(RETAINED);
                [vhost, topic].into_iter().for_each(|name| put_name(&mut key, name));
            }
        }
        key.into_boxed_slice()
    }

    /// Returns the value.
    pub fn value(&self) -> Box<[u8]> {
        let mut value = Vec::new();
        match *self {
            Self::AccessStored => {}
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
            Self::Permission(Permission { configure, write, read, .. }) => {
                [configure, write, read].into_iter().for_each(|text| put_text(&mut value, text));
            }
            Self::TopicPermission(TopicPermission { write, read, .. }) => {
                [write, read].into_iter().for_each(|text| put_text(&mut value, text));
            }
            Self::Exchange { version, kind, auto_delete, internal, arguments, .. } => {
                value.push(u8::from(auto_delete) * AUTO_DELETE + u8::from(internal) * INTERNAL);
                value.extend_from_slice(&version.to_le_bytes());
                put_name(&mut value, kind);
                value.extend_from_slice(arguments);
            }
            Self::Queue { incarnation, auto_delete, is_rebuilt, priorities_from, arguments, .. } => {
                let has_levels = priorities_from != 0;
                let flags = [(auto_delete, AUTO_DELETE), (is_rebuilt, REBUILT), (has_levels, LEVELS)];
                value.push(flags.into_iter().map(|(is_set, flag)| u8::from(is_set) * flag).sum());
                value.extend_from_slice(&incarnation.to_le_bytes());
                value.extend_from_slice(arguments);
                if has_levels {
                    value.extend_from_slice(LEVELS_NAME);
                    value.extend_from_slice(&priorities_from.to_be_bytes());
                }
            }
            Self::Binding { source_version, destination_version, .. } => {
                value.extend_from_slice(&source_version.to_le_bytes());
                value.extend_from_slice(&destination_version.to_le_bytes());
            }
            Self::Policy(Policy { pattern, apply_to, priority, definition, .. }) => {
                put_name(&mut value, apply_to.name());
                value.extend_from_slice(&priority.to_le_bytes());
                put_text(&mut value, pattern);
                value.extend_from_slice(definition);
            }
            Self::Parameter(Parameter { value: json, .. }) => value.extend_from_slice(json),
            Self::SessionState { incarnation, state, .. } => {
                value.extend_from_slice(&incarnation.to_le_bytes());
                value.extend_from_slice(state);
            }
            Self::Will {
                incarnation, retain, delay_s, keep_alive_s, topic_key, properties, payload, ..
            } => {
                value.extend_from_slice(&incarnation.to_le_bytes());
                value.push(u8::from(retain) * RETAIN);
                value.extend_from_slice(&delay_s.to_le_bytes());
                value.extend_from_slice(&keep_alive_s.to_le_bytes());
                put_name(&mut value, topic_key);
                value.extend_from_slice(&(properties.len() as u32).to_le_bytes());
                value.extend_from_slice(properties);
                value.extend_from_slice(payload);
            }
            Self::Retained { qos, properties, payload, .. } => {
                value.push(qos);
                value.extend_from_slice(&(properties.len() as u32).to_le_bytes());
                value.extend_from_slice(properties);
                value.extend_from_slice(payload);
            }
        }
        value.into_boxed_slice()
    }

    /// Parses a definition; returns `None` for invalid or unknown bytes.
    pub fn parse(key: &'a [u8], value: &'a [u8]) -> Option<Self> {
        let (mut key, mut value) = (Input(key), Input(value));
        let kind = key.byte()?;
        if kind == ACCESS {
            return Self::parse_access(key, value);
        }
        // For a global parameter, the first name in the key is that of the parameter itself.
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
                let (arguments, priorities_from) = match flags & LEVELS {
                    0 => (value.0, 0),
                    _ => split_levels(value.0)?,
                };
                Some(Self::Queue {
                    vhost,
                    name,
                    incarnation,
                    auto_delete,
                    is_rebuilt,
                    priorities_from,
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
                let kind = if kind == OPERATOR_POLICY { PolicyKind::Operator } else { PolicyKind::User };
                let apply_to = ApplyTo::from_name(apply_to).unwrap_or(ApplyTo::Unknown);
                let definition = value.0;
                let policy = Policy { vhost, kind, name, pattern, apply_to, priority, definition };
                key.0.is_empty().then_some(Self::Policy(policy))
            }
            PARAMETER => Self::parse_parameter(Some(vhost), key.name()?, key.name()?, key.0, value.0),
            GLOBAL_PARAMETER => Self::parse_parameter(None, "", vhost, key.0, value.0),
            SESSION_STATE => {
                let (queue, incarnation, state) = (key.name()?, value.number()?, value.0);
                let part = match key.0 {
                    [0] => SessionPart::Received,
                    [1] => SessionPart::Deliveries,
                    _ => return None,
                };
                Some(Self::SessionState { vhost, queue, part, incarnation, state })
            }
            WILL => {
                let (queue, incarnation, flags) = (key.name()?, value.number()?, value.byte()?);
                let (delay_s, keep_alive_s, topic_key) = (value.u32()?, value.u16()?, value.name()?);
                let len = usize::try_from(value.u32()?).ok()?;
                let (properties, payload, retain) = (value.take(len)?, value.0, flags & RETAIN != 0);
                let will = Self::Will {
                    vhost,
                    queue,
                    incarnation,
                    retain,
                    delay_s,
                    keep_alive_s,
                    topic_key,
                    properties,
                    payload,
                };
                key.0.is_empty().then_some(will)
            }
            RETAINED => {
                let (topic, qos, len) = (key.name()?, value.byte()?, value.u32()?);
                let (properties, payload) = (value.take(usize::try_from(len).ok()?)?, value.0);
                key.0.is_empty().then_some(Self::Retained { vhost, key: topic, qos, properties, payload })
            }
            _ => None,
        }
    }

    fn parse_parameter(
        vhost: Option<&'a str>,
        component: &'a str,
        name: &'a str,
        rest: &[u8],
        value: &'a [u8],
    ) -> Option<Self> {
        rest.is_empty().then_some(Self::Parameter(Parameter { vhost, component, name, value }))
    }

    /// Parses an access definition, without the first byte of its key.
    fn parse_access(mut key: Input<'a>, mut value: Input<'a>) -> Option<Self> {
        let definition = match key.byte()? {
            ACCESS_STORED => Self::AccessStored,
            VHOST => {
                let name = key.name()?;
                let (queues_max, connections_max) = (value.limit()?, value.limit()?);
                // Older versions wrote no metadata.
                let metadata =
                    if value.0.is_empty() { VhostMetadata::default() } else { value.metadata()? };
                Self::Vhost { name, queues_max, connections_max, metadata }
            }
            USER => Self::User { name: key.name()?, tags: value.name()?, hash: value.0 },
            PERMISSION => {
                let (vhost, user) = (key.name()?, key.name()?);
                let (configure, write, read) = (value.text()?, value.text()?, value.text()?);
                Self::Permission(Permission { user, vhost, configure, write, read })
            }
            TOPIC_PERMISSION => {
                let (vhost, user, exchange) = (key.name()?, key.name()?, key.name()?);
                let (write, read) = (value.text()?, value.text()?);
                Self::TopicPermission(TopicPermission { user, vhost, exchange, write, read })
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

impl fmt::Display for Definition<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AccessStored => write!(f, "the marker that all users and permissions are stored"),
            Self::Vhost { name, .. } => write!(f, "virtual host {name:?}"),
            Self::User { name, .. } => write!(f, "user {name:?}"),
            Self::Permission(Permission { vhost, user, .. }) => {
                write!(f, "the permissions of user {user:?} in virtual host {vhost:?}")
            }
            Self::TopicPermission(TopicPermission { vhost, user, exchange, .. }) => write!(
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
            Self::Policy(Policy { vhost, name, kind, .. }) => {
                let kind = if *kind == PolicyKind::Operator { "operator policy" } else { "policy" };
                write!(f, "{kind} {name:?} in virtual host {vhost:?}")
            }
            Self::Parameter(Parameter { vhost: None, name, .. }) => write!(f, "global parameter {name:?}"),
            Self::Will { vhost, queue, .. } => {
                write!(f, "the will of the MQTT session of queue {queue:?} in virtual host {vhost:?}")
            }
            Self::Retained { vhost, key, .. } => {
                write!(f, "the retained message with key {key:?} in virtual host {vhost:?}")
            }
            Self::SessionState { vhost, queue, part: SessionPart::Received, .. } => {
                write!(
                    f,
                    "the published messages of the MQTT session of queue {queue:?} in virtual host {vhost:?}"
                )
            }
            Self::SessionState { vhost, queue, .. } => {
                write!(f, "the deliveries of the MQTT session of queue {queue:?} in virtual host {vhost:?}")
            }
            Self::Parameter(Parameter { vhost: Some(vhost), component, name, .. }) => {
                write!(f, "parameter {name:?} of {component:?} in virtual host {vhost:?}")
            }
        }
    }
}

/// Formats like `Display`, so that no debug output contains a password hash.
impl fmt::Debug for Definition<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Returns whether a key is that of an access definition (user, virtual host, permission or limits). These
/// are written twice.
pub fn is_access(key: &[u8]) -> bool {
    key.first() == Some(&ACCESS)
}

/// Returns whether a key is that of a retained message.
pub fn is_retained_message(key: &[u8]) -> bool {
    key.first() == Some(&RETAINED)
}

/// Returns the virtual host and the name from the key of a queue; `None` for any other key.
pub fn queue_in(key: &[u8]) -> Option<(&str, &str)> {
    let mut key = Input(key);
    let kind = key.byte()?;
    let (vhost, name) = (key.name()?, key.name()?);
    (kind == QUEUE && key.0.is_empty()).then_some((vhost, name))
}

/// Returns the incarnation from the definition of a queue; `None` for any other definition.
pub fn incarnation_in(key: &[u8], value: &[u8]) -> Option<u64> {
    match Definition::parse(key, value)? {
        Definition::Queue { incarnation, .. } => Some(incarnation),
        _ => None,
    }
}

fn put_access(key: &mut Vec<u8>, kind: u8, names: &[&str]) {
    key.extend([ACCESS, kind]);
    names.iter().for_each(|name| put_name(key, name));
}

/// Appends a text of at most 65,535 bytes, with its length before it.
fn put_text(out: &mut Vec<u8>, text: &str) {
    assert!(text.len() <= u16::MAX.into(), "the caller limits the length");
    out.extend_from_slice(&(text.len() as u16).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// Appends a name of at most 255 bytes (AMQP short string), with its length before it.
fn put_name(out: &mut Vec<u8>, name: &str) {
    assert!(name.len() <= 255, "the caller limits the length");
    out.push(name.len() as u8);
    out.extend_from_slice(name.as_bytes());
}

/// Splits the value's rest into a queue's arguments and the number of its priority queues.
fn split_levels(bytes: &[u8]) -> Option<(&[u8], u64)> {
    let (bytes, number) = bytes.split_last_chunk()?;
    Some((bytes.strip_suffix(LEVELS_NAME)?, u64::from_be_bytes(*number)))
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

    fn u16(&mut self) -> Option<u16> {
        let bytes: [u8; 2] = self.take(2)?.try_into().ok()?;
        Some(u16::from_le_bytes(bytes))
    }

    fn u32(&mut self) -> Option<u32> {
        let bytes: [u8; 4] = self.take(4)?.try_into().ok()?;
        Some(u32::from_le_bytes(bytes))
    }

    fn limit(&mut self) -> Option<Option<u32>> {
        self.u32().map(|limit| Some(limit).filter(|limit| *limit != NO_LIMIT))
    }

    fn metadata(&mut self) -> Option<VhostMetadata<'a>> {
        let is_protected = self.byte()? & PROTECTED != 0;
        let default_queue_type = self.name()?;
        let (description, tags) = (self.text()?, self.text()?);
        Some(VhostMetadata { description, tags, default_queue_type, is_protected })
    }

    fn text(&mut self) -> Option<&'a str> {
        let len = self.u16()?.into();
        core::str::from_utf8(self.take(len)?).ok()
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
    fn definitions_read_back_as_written() {
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
            priorities_from: 0,
            arguments: b"",
        };
        let with_levels = Definition::Queue {
            vhost: "/",
            name: "levels",
            incarnation: 9,
            auto_delete: true,
            is_rebuilt: false,
            priorities_from: 10 << 32 | 3,
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
        let (vhost_name, user_name) = ("/", "me");
        let permission = Definition::Permission(Permission {
            user: user_name,
            vhost: vhost_name,
            configure: "",
            write: ".*",
            read: "^a",
        });
        let topic = Definition::TopicPermission(TopicPermission {
            vhost: vhost_name,
            user: user_name,
            exchange: "amq.topic",
            write: "^{username}",
            read: "",
        });
        let limits = Definition::UserLimits { user: "me", connections_max: Some(3), channels_max: None };
        let policy = |kind| {
            Definition::Policy(Policy {
                vhost: "/",
                kind,
                name: "p",
                pattern: "^q",
                apply_to: ApplyTo::Queues,
                priority: -3,
                definition: b"\x01xt\x01",
            })
        };
        let value = b"{\"a\":1}";
        let parameter =
            |vhost, component| Definition::Parameter(Parameter { vhost, component, name: "s", value });
        let parameters = [parameter(Some("/"), "shovel"), parameter(None, "")];
        let policies = [policy(PolicyKind::User), policy(PolicyKind::Operator)];
        let state =
            |part| Definition::SessionState { vhost: "/", queue: "q", part, incarnation: 9, state: &[0, 1] };
        let [received, deliveries] = [SessionPart::Received, SessionPart::Deliveries].map(state);
        let (vhost_name, key) = ("/", "a.b");
        let retained = |properties, payload| Definition::Retained {
            vhost: vhost_name,
            key,
            qos: 2,
            properties,
            payload,
        };
        let will = Definition::Will {
            vhost: "/",
            queue: "q",
            incarnation: 9,
            retain: true,
            delay_s: 70_000,
            keep_alive_s: 60,
            topic_key: "a.b",
            properties: b"\0\0",
            payload: b"off",
        };
        let of_mqtt = [received, deliveries, retained(&b"\0\0"[..], &b"on"[..]), will];
        let (cut_off, value_of_retained) = (of_mqtt[2].key(), of_mqtt[2].value());
        assert_eq!(Definition::parse(&cut_off, &value_of_retained[..6]), None, "properties are missing");
        let mut keys = Vec::new();
        let access = [Definition::AccessStored, vhost, user, permission, topic, limits];
        for definition in access
            .into_iter()
            .chain([exchange, queue, with_levels, binding])
            .chain(policies)
            .chain(parameters)
            .chain(of_mqtt)
        {
            let (key, value) = (definition.key(), definition.value());
            assert_eq!(Definition::parse(&key, &value), Some(definition));
            for end in 0..key.len().min(if key[0] == ACCESS { 2 } else { 5 }) {
                assert_eq!(Definition::parse(&key[..end], &value), None);
            }
            keys.push(key);
        }
        assert!(keys.is_sorted(), "objects sort before their bindings");
        assert_eq!(Definition::parse(b"\x08\x01/", b""), None, "no definition has the key of damage reports");
    }

    /// Older versions write and read only the first eight bytes.
    #[test]
    fn metadata_of_a_virtual_host_follow_the_bytes_that_older_versions_read() {
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

    /// Recovery logs the definitions that exceed a limit.
    #[test]
    fn no_text_about_a_user_contains_its_password_hash() {
        let user = Definition::User { name: "alice", tags: "administrator", hash: &[1, 211, 77] };
        for words in [format!("{user:?}"), format!("{user:#?}"), format!("{:?}", Some(user))] {
            assert!(words.contains("alice") && !words.contains("211"), "{words}");
        }
    }
}
