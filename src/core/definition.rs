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
//!         | 12 retained part | vhost | routing key | side u8 | index u32 |       after the retained message
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
//!          priorities  | 14 "leveret-levels" l: name and type of an argument | incarnation u64, big endian |
//!          a binding   | version of the source u64 | version or incarnation of the destination u64 |
//!          a policy    | what it applies to | priority i32 | pattern u16 + text | definition |
//!          a parameter | JSON |
//!          a session state | incarnation of the queue u64 | state |
//!          a retained | QoS u8 | length of the properties u32 | properties | payload |
//!          in parts   | QoS + 128 u8 | side u8 | length u32 | length of the properties u32 | CRC32C u32 |
//!          its part   | bytes of the properties and the payload |
//!          a will     | incarnation of the queue u64 | flags: 1 retain | delay u32 | keep-alive u16 |
//!                     | routing key | length of the properties u32 | properties | payload |
//! ```
//!
//! Names are preceded by their length in one byte. Arguments and the definition of a policy take the rest of the
//! key or value. Numbers are little endian, except the incarnation of the level for priority 1. It is encoded like an
//! AMQP argument, so that versions without priority levels read it as an unknown argument.
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
    Vhost(Vhost<'a>),
    /// A user.
    User(User<'a>),
    /// The permissions of a user in a virtual host.
    Permission(Permission<&'a str>),
    /// The permissions of a user for the routing keys of a topic exchange.
    TopicPermission(TopicPermission<&'a str>),
    /// The limits of the user of this name.
    UserLimits(&'a str, UserLimits),
    /// A durable exchange.
    Exchange(Exchange<'a>),
    /// A durable queue.
    Queue(Queue<'a>),
    /// A binding between a durable exchange and a durable queue or exchange.
    Binding(Binding<'a>),
    /// A policy.
    Policy(Policy<&'a str, &'a [u8]>),
    /// A runtime parameter.
    Parameter(Parameter<&'a str, &'a [u8]>),
    /// One part of the state of an MQTT session that is kept.
    SessionState(SessionState<'a>),
    /// The will of the client of an MQTT session that is kept.
    Will(Will<'a>),
    /// The retained message of a topic of MQTT.
    Retained(Retained<'a>),
    /// A part of the content of a retained message that is too large for one definition.
    RetainedPart(RetainedPart<'a>),
}

/// A virtual host.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Vhost<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its limits.
    pub limits: VhostLimits,
    /// Its metadata.
    pub metadata: VhostMetadata<'a>,
}

/// A limit that is set to unlimited, -1 in RabbitMQ, as distinct from one that is not set. Tools that set -1 expect to read
/// it.
pub const UNLIMITED: u32 = u32::MAX;

/// The limits of a virtual host; `None` is unlimited.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VhostLimits {
    /// Maximum number of queues (`max-queues`).
    pub queues_max: Option<u32>,
    /// Maximum number of connections (`max-connections`).
    pub connections_max: Option<u32>,
}

/// A user.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct User<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its tags, separated by commas.
    pub tags: &'a str,
    /// The hash of its password.
    pub hash: &'a [u8],
}

/// Formats the name only, so that no debug output contains a password hash.
impl fmt::Debug for User<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "User {:?}", self.name)
    }
}

/// The limits of a user, in all virtual hosts together; `None` is unlimited.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct UserLimits {
    /// Maximum number of connections (`max-connections`).
    pub connections_max: Option<u32>,
    /// Maximum number of channels (`max-channels`).
    pub channels_max: Option<u32>,
}

/// A durable exchange.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Exchange<'a> {
    /// Its virtual host.
    pub vhost: &'a str,
    /// Its name.
    pub name: &'a str,
    /// The version of the exchange, never used for another one.
    pub version: u64,
    /// Its type.
    pub kind: &'a str,
    /// The exchange is deleted with its last binding.
    pub auto_delete: bool,
    /// Clients may not publish to the exchange.
    pub internal: bool,
    /// Its arguments, encoded as an AMQP table.
    pub arguments: &'a [u8],
}

/// A durable queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Queue<'a> {
    /// Its virtual host.
    pub vhost: &'a str,
    /// Its name.
    pub name: &'a str,
    /// The incarnation of the queue, never used for another one.
    pub incarnation: u64,
    /// The queue is deleted with its last consumer.
    pub auto_delete: bool,
    /// The arguments were lost, and recovery has rebuilt the queue without them. The next declaration by a client sets
    /// them.
    pub is_rebuilt: bool,
    /// For a queue with priorities: the incarnation of the level for priority 1. The higher priorities have the following
    /// numbers. Otherwise 0.
    pub priorities_from: u64,
    /// Its arguments, encoded as an AMQP table.
    pub arguments: &'a [u8],
}

/// A binding between a durable exchange and a durable queue or exchange.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Binding<'a> {
    /// The virtual host of both ends.
    pub vhost: &'a str,
    /// The source exchange.
    pub source: &'a str,
    /// The version of the source; 0 for predeclared exchanges.
    pub source_version: u64,
    /// The destination: a queue or an exchange.
    pub destination: DestinationName<'a>,
    /// The version or incarnation of the destination.
    pub destination_version: u64,
    /// The binding key.
    pub routing_key: &'a str,
    /// Its arguments, encoded as an AMQP table.
    pub arguments: &'a [u8],
}

/// One part of the state of an MQTT session that is kept: handshakes of QoS 2 that are not complete.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SessionState<'a> {
    /// The virtual host of the session's queue.
    pub vhost: &'a str,
    /// The queue.
    pub queue: &'a str,
    /// Which side of the handshakes.
    pub part: SessionPart,
    /// The incarnation of the queue. A state of an earlier queue of this name is ignored.
    pub incarnation: u64,
    /// The state, in the format of the broker.
    pub state: &'a [u8],
}

/// The will of the client of an MQTT session that is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Will<'a> {
    /// The virtual host of the session's queue.
    pub vhost: &'a str,
    /// The queue.
    pub queue: &'a str,
    /// The incarnation of the queue. A will of an earlier queue of this name is ignored.
    pub incarnation: u64,
    /// The will becomes the retained message of its topic.
    pub retain: bool,
    /// The will delay interval, in seconds.
    pub delay_s: u32,
    /// The keep-alive time of the client, in seconds; 0: none.
    pub keep_alive_s: u16,
    /// The routing key of the topic.
    pub topic_key: &'a str,
    /// The AMQP properties.
    pub properties: &'a [u8],
    /// The payload.
    pub payload: &'a [u8],
}

/// The retained message of a topic of MQTT.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Retained<'a> {
    /// The virtual host.
    pub vhost: &'a str,
    /// The routing key of the topic.
    pub key: &'a str,
    /// The QoS.
    pub qos: u8,
    /// Where the properties and the payload are if they are too large for one definition. The two fields below are empty
    /// then.
    pub parts: Option<RetainedParts>,
    /// The AMQP properties, as on the wire.
    pub properties: &'a [u8],
    /// The payload.
    pub payload: &'a [u8],
}

/// The content of a retained message that is in definitions of its own ([`RetainedPart`]).
///
/// The parts of an update have the other side than those before, and are written before the [`Retained`]. So the parts of the
/// earlier message are complete until the new ones are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RetainedParts {
    /// 0 or 1.
    pub side: u8,
    /// Bytes of all parts: of the properties and the payload.
    pub len: u32,
    /// Bytes of the properties.
    pub properties_len: u32,
    /// CRC32C of all parts.
    pub checksum: u32,
}

/// A part of the properties and the payload of a retained message.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RetainedPart<'a> {
    /// The virtual host.
    pub vhost: &'a str,
    /// The routing key of the topic.
    pub key: &'a str,
    /// The side to which it belongs; see [`RetainedParts`].
    pub side: u8,
    /// Its index, from 0.
    pub index: u32,
    /// Its bytes.
    pub bytes: &'a [u8],
}

/// The permissions of a user in a virtual host. `T` is `&str` or `String`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
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
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
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
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
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
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum PolicyKind {
    /// A policy set by a user with the tag `policymaker`.
    #[default]
    User,
    /// An operator policy. Its limits apply where they are lower than those of user policies and arguments.
    Operator,
}

/// The kinds of objects that a policy applies to.
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
#[derive(Clone, Copy, PartialEq, Eq, Default)]
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

impl<'a> DestinationName<'a> {
    /// Returns the name.
    pub const fn name(self) -> &'a str {
        match self {
            Self::Exchange(name) | Self::Queue(name) => name,
        }
    }

    /// Returns whether this is an exchange.
    pub const fn is_exchange(self) -> bool {
        matches!(self, Self::Exchange(_))
    }

    /// Returns the key of the exchange or queue in this virtual host.
    pub fn key(self, vhost: &str) -> Box<[u8]> {
        match self {
            Self::Exchange(name) => {
                Definition::Exchange(Exchange { vhost, name, ..Exchange::default() }).key()
            }
            Self::Queue(name) => Definition::Queue(Queue { vhost, name, ..Queue::default() }).key(),
        }
    }
}

impl Default for DestinationName<'_> {
    fn default() -> Self {
        Self::Queue("")
    }
}

/// A part of the state of an MQTT session. Each is written at its own place in the order of all changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum SessionPart {
    /// Messages that the client has published.
    #[default]
    Received = 0,
    /// Messages that were sent to the client.
    Deliveries = 1,
}

const ACCESS: u8 = 0;
/// The key of [`Definition::AccessStored`].
pub const ACCESS_STORED_KEY: [u8; 2] = [ACCESS, 0];
const EXCHANGE: u8 = 1;
const QUEUE: u8 = 2;
const RETAINED: u8 = 10;
const RETAINED_PART: u8 = 12;
/// The key of the reports about damage of the store. No [`Definition`] has it.
pub const DAMAGE_KEY: [u8; 2] = [8, 0];

/// Flags of values.
const AUTO_DELETE: u8 = 1;
const INTERNAL: u8 = 2;
const REBUILT: u8 = 2;
const LEVELS: u8 = 4;
const PROTECTED: u8 = 1;
const RETAIN: u8 = 1;
/// In the byte of the QoS: the content is in parts.
const IN_PARTS: u8 = 128;
/// The bytes before the incarnation of the level for priority 1: they have the form of an argument's name and type.
const LEVELS_NAME: &[u8] = b"\x0eleveret-levelsl";
/// The number for a limit that is not set.
const NO_LIMIT: u32 = u32::MAX;

impl RetainedPart<'_> {
    /// Returns the bytes of the key before the index. The index follows as u32, little endian.
    pub fn key_prefix(&self) -> Box<[u8]> {
        let key = Definition::RetainedPart(*self).key();
        key[..key.len() - size_of::<u32>()].into()
    }
}

impl<'a> Definition<'a> {
    /// Returns the key, which identifies the definition.
    pub fn key(&self) -> Box<[u8]> {
        let mut key = self.key_prefix().to_vec();
        { *self }.write_or_parse(&mut Fields::Write(&mut key), &mut Fields::Skip);
        key.into_boxed_slice()
    }

    /// Returns the value.
    pub fn value(&self) -> Box<[u8]> {
        let mut value = Vec::new();
        { *self }.write_or_parse(&mut Fields::Skip, &mut Fields::Write(&mut value));
        value.into_boxed_slice()
    }

    /// Parses a definition; returns `None` for invalid or unknown bytes.
    pub fn parse(key: &'a [u8], value: &'a [u8]) -> Option<Self> {
        Self::parse_with(key, &mut Fields::Parse(value))
    }

    /// Parses only the key.
    fn parse_key(key: &'a [u8]) -> Option<Self> {
        Self::parse_with(key, &mut Fields::Skip)
    }

    fn parse_with(key: &'a [u8], value: &mut Fields<'a, '_>) -> Option<Self> {
        let mut definition = Self::empty(key)?;
        let mut key = Fields::Parse(key.strip_prefix(definition.key_prefix())?);
        definition.write_or_parse(&mut key, value)?;
        key.is_at_end().then_some(definition)
    }

    /// Returns the first bytes of the key, which identify the kind.
    const fn key_prefix(&self) -> &'static [u8] {
        match self {
            Self::AccessStored => &ACCESS_STORED_KEY,
            Self::Vhost(_) => &[ACCESS, 1],
            Self::User(_) => &[ACCESS, 2],
            Self::Permission(_) => &[ACCESS, 3],
            Self::TopicPermission(_) => &[ACCESS, 4],
            Self::UserLimits(..) => &[ACCESS, 5],
            Self::Exchange(_) => &[EXCHANGE],
            Self::Queue(_) => &[QUEUE],
            Self::Binding(_) => &[3],
            Self::Policy(Policy { kind: PolicyKind::User, .. }) => &[4],
            Self::Policy(Policy { kind: PolicyKind::Operator, .. }) => &[5],
            Self::Parameter(Parameter { vhost: Some(_), .. }) => &[6],
            Self::Parameter(Parameter { vhost: None, .. }) => &[7],
            Self::SessionState(_) => &[9],
            Self::Retained(_) => &[RETAINED],
            Self::Will(_) => &[11],
            Self::RetainedPart(_) => &[RETAINED_PART],
        }
    }

    /// Returns an empty definition of the kind that a key begins with. The array has each kind.
    fn empty(key: &[u8]) -> Option<Self> {
        let policy = |kind| Self::Policy(Policy { kind, ..Policy::default() });
        let parameter = |vhost| Self::Parameter(Parameter { vhost, ..Parameter::default() });
        let all = [
            Self::AccessStored,
            Self::Vhost(Vhost::default()),
            Self::User(User::default()),
            Self::Permission(Permission::default()),
            Self::TopicPermission(TopicPermission::default()),
            Self::UserLimits("", UserLimits::default()),
            Self::Exchange(Exchange::default()),
            Self::Queue(Queue::default()),
            Self::Binding(Binding::default()),
            policy(PolicyKind::User),
            policy(PolicyKind::Operator),
            parameter(Some("")),
            parameter(None),
            Self::SessionState(SessionState::default()),
            Self::Retained(Retained::default()),
            Self::Will(Will::default()),
            Self::RetainedPart(RetainedPart::default()),
        ];
        all.into_iter().find(|definition| key.starts_with(definition.key_prefix()))
    }

    /// Writes or parses the fields of the key and of the value, in the order of their bytes. Returns `None` if the bytes
    /// are invalid.
    fn write_or_parse(&mut self, key: &mut Fields<'a, '_>, value: &mut Fields<'a, '_>) -> Option<()> {
        match self {
            Self::AccessStored => Some(()),
            Self::Vhost(Vhost { name, limits, metadata }) => {
                key.names([name])?;
                value.limits([&mut limits.queues_max, &mut limits.connections_max])?;
                // Older versions write no metadata.
                if value.has_optional(*metadata != VhostMetadata::default()) {
                    value.flags([(&mut metadata.is_protected, PROTECTED)])?;
                    value.names([&mut metadata.default_queue_type])?;
                    value.texts([&mut metadata.description, &mut metadata.tags])?;
                }
                Some(())
            }
            Self::User(User { name, tags, hash }) => {
                key.names([name])?;
                value.names([tags])?;
                value.rest(hash)
            }
            Self::Permission(Permission { user, vhost, configure, write, read }) => {
                key.names([vhost, user])?;
                value.texts([configure, write, read])
            }
            Self::TopicPermission(TopicPermission { user, vhost, exchange, write, read }) => {
                key.names([vhost, user, exchange])?;
                value.texts([write, read])
            }
            Self::UserLimits(user, UserLimits { connections_max, channels_max }) => {
                key.names([user])?;
                value.limits([connections_max, channels_max])
            }
            Self::Exchange(Exchange { vhost, name, version, kind, auto_delete, internal, arguments }) => {
                key.names([vhost, name])?;
                value.flags([(auto_delete, AUTO_DELETE), (internal, INTERNAL)])?;
                value.u64(version)?;
                value.names([kind])?;
                value.rest(arguments)
            }
            Self::Queue(Queue {
                vhost,
                name,
                incarnation,
                auto_delete,
                is_rebuilt,
                priorities_from,
                arguments,
            }) => {
                let mut has_levels = *priorities_from != 0;
                key.names([vhost, name])?;
                value.flags([
                    (auto_delete, AUTO_DELETE),
                    (is_rebuilt, REBUILT),
                    (&mut has_levels, LEVELS),
                ])?;
                value.u64(incarnation)?;
                value.rest(arguments)?;
                if has_levels { value.levels(arguments, priorities_from) } else { Some(()) }
            }
            Self::Binding(Binding {
                vhost,
                source,
                source_version,
                destination,
                destination_version,
                routing_key,
                arguments,
            }) => {
                key.names([vhost, source])?;
                key.destination(destination)?;
                key.names([routing_key])?;
                key.rest(arguments)?;
                value.u64(source_version)?;
                value.u64(destination_version)
            }
            Self::Policy(Policy { vhost, kind: _, name, pattern, apply_to, priority, definition }) => {
                let mut apply_to_name = apply_to.name();
                key.names([vhost, name])?;
                value.names([&mut apply_to_name])?;
                *apply_to = ApplyTo::from_name(apply_to_name).unwrap_or(ApplyTo::Unknown);
                value.number(priority, i32::to_le_bytes, i32::from_le_bytes)?;
                value.texts([pattern])?;
                value.rest(definition)
            }
            Self::Parameter(Parameter { vhost, component, name, value: json }) => {
                match vhost {
                    Some(vhost) => key.names([vhost, component, name])?,
                    None => key.names([name])?,
                }
                value.rest(json)
            }
            Self::SessionState(SessionState { vhost, queue, part, incarnation, state }) => {
                let mut number = *part as u8;
                key.names([vhost, queue])?;
                key.byte(&mut number)?;
                *part = [SessionPart::Received, SessionPart::Deliveries].into_iter().nth(number.into())?;
                value.u64(incarnation)?;
                value.rest(state)
            }
            Self::Will(Will {
                vhost,
                queue,
                incarnation,
                retain,
                delay_s,
                keep_alive_s,
                topic_key,
                properties,
                payload,
            }) => {
                key.names([vhost, queue])?;
                value.u64(incarnation)?;
                value.flags([(retain, RETAIN)])?;
                value.u32(delay_s)?;
                value.number(keep_alive_s, u16::to_le_bytes, u16::from_le_bytes)?;
                value.names([topic_key])?;
                value.properties(properties)?;
                value.rest(payload)
            }
            Self::Retained(Retained { vhost, key: topic, qos, parts, properties, payload }) => {
                let mut kind = if parts.is_some() { *qos | IN_PARTS } else { *qos };
                key.names([vhost, topic])?;
                value.byte(&mut kind)?;
                *qos = kind & !IN_PARTS;
                if kind & IN_PARTS == 0 {
                    value.properties(properties)?;
                    return value.rest(payload);
                }
                let RetainedParts { side, len, properties_len, checksum } = parts.get_or_insert_default();
                value.byte(side)?;
                [len, properties_len, checksum].into_iter().try_for_each(|number| value.u32(number))
            }
            Self::RetainedPart(RetainedPart { vhost, key: topic, side, index, bytes }) => {
                key.names([vhost, topic])?;
                key.byte(side)?;
                key.u32(index)?;
                value.rest(bytes)
            }
        }
    }
}

/// Writes or parses the fields of a key or a value. Methods return `None` for invalid bytes.
enum Fields<'a, 'w> {
    /// Fields are appended to these bytes.
    Write(&'w mut Vec<u8>),
    /// Fields are set from these bytes, and the bytes are removed.
    Parse(&'a [u8]),
    /// Fields are neither written nor parsed.
    Skip,
}

impl<'a> Fields<'a, '_> {
    /// Returns whether optional fields follow. If bytes are parsed: whether any are left. Otherwise: `is_set`.
    const fn has_optional(&self, is_set: bool) -> bool {
        match self {
            Self::Parse(bytes) => !bytes.is_empty(),
            Self::Write(_) | Self::Skip => is_set,
        }
    }

    const fn is_at_end(&self) -> bool {
        matches!(self, Self::Parse([]))
    }

    fn number<T: Copy, const N: usize>(
        &mut self,
        number: &mut T,
        to_bytes: fn(T) -> [u8; N],
        from_bytes: fn([u8; N]) -> T,
    ) -> Option<()> {
        match self {
            Self::Write(out) => out.extend_from_slice(&to_bytes(*number)),
            Self::Parse(bytes) => *number = from_bytes(*take(bytes, N)?.first_chunk()?),
            Self::Skip => {}
        }
        Some(())
    }

    fn byte(&mut self, byte: &mut u8) -> Option<()> {
        self.number(byte, u8::to_le_bytes, u8::from_le_bytes)
    }

    fn u32(&mut self, number: &mut u32) -> Option<()> {
        self.number(number, u32::to_le_bytes, u32::from_le_bytes)
    }

    fn u64(&mut self, number: &mut u64) -> Option<()> {
        self.number(number, u64::to_le_bytes, u64::from_le_bytes)
    }

    /// One byte with flags.
    fn flags<const N: usize>(&mut self, flags: [(&mut bool, u8); N]) -> Option<()> {
        let mut byte = flags.iter().map(|(is_set, flag)| u8::from(**is_set) * flag).sum();
        self.byte(&mut byte)?;
        flags.into_iter().for_each(|(is_set, flag)| *is_set = byte & flag != 0);
        Some(())
    }

    fn limits<const N: usize>(&mut self, limits: [&mut Option<u32>; N]) -> Option<()> {
        limits.into_iter().try_for_each(|limit| {
            let mut number = limit.unwrap_or(NO_LIMIT);
            self.u32(&mut number)?;
            *limit = Some(number).filter(|number| *number != NO_LIMIT);
            Some(())
        })
    }

    /// Bytes behind their length, which has `len_bytes` bytes.
    fn sized(&mut self, field: &mut &'a [u8], len_bytes: usize) -> Option<()> {
        let mut len = (field.len() as u32).to_le_bytes();
        match self {
            Self::Write(out) => {
                assert!(len[len_bytes..].iter().all(|byte| *byte == 0), "the caller limits the length");
                out.extend_from_slice(&len[..len_bytes]);
                out.extend_from_slice(field);
            }
            Self::Parse(bytes) => {
                len = [0; 4];
                len[..len_bytes].copy_from_slice(take(bytes, len_bytes)?);
                *field = take(bytes, u32::from_le_bytes(len) as usize)?;
            }
            Self::Skip => {}
        }
        Some(())
    }

    /// Properties behind their length in four bytes.
    fn properties(&mut self, properties: &mut &'a [u8]) -> Option<()> {
        self.sized(properties, 4)
    }

    /// Names of at most 255 bytes (AMQP short strings), each behind its length in one byte.
    fn names<const N: usize>(&mut self, names: [&mut &'a str; N]) -> Option<()> {
        names.into_iter().try_for_each(|name| self.text(name, 1))
    }

    /// Texts of at most 65,535 bytes, each behind its length in two bytes.
    fn texts<const N: usize>(&mut self, texts: [&mut &'a str; N]) -> Option<()> {
        texts.into_iter().try_for_each(|text| self.text(text, 2))
    }

    fn text(&mut self, text: &mut &'a str, len_bytes: usize) -> Option<()> {
        let mut bytes = text.as_bytes();
        self.sized(&mut bytes, len_bytes)?;
        *text = core::str::from_utf8(bytes).ok()?;
        Some(())
    }

    fn destination(&mut self, destination: &mut DestinationName<'a>) -> Option<()> {
        let (mut kind, mut name) = match *destination {
            DestinationName::Exchange(name) => (EXCHANGE, name),
            DestinationName::Queue(name) => (QUEUE, name),
        };
        self.byte(&mut kind)?;
        self.names([&mut name])?;
        *destination = match kind {
            EXCHANGE => DestinationName::Exchange(name),
            QUEUE => DestinationName::Queue(name),
            _ => return None,
        };
        Some(())
    }

    /// All bytes that are left.
    fn rest(&mut self, field: &mut &'a [u8]) -> Option<()> {
        match self {
            Self::Write(out) => out.extend_from_slice(field),
            Self::Parse(bytes) => *field = core::mem::take(bytes),
            Self::Skip => {}
        }
        Some(())
    }

    /// The incarnation of the level for priority 1, behind the arguments of the queue.
    fn levels(&mut self, arguments: &mut &'a [u8], number: &mut u64) -> Option<()> {
        match self {
            Self::Write(out) => {
                out.extend_from_slice(LEVELS_NAME);
                out.extend_from_slice(&number.to_be_bytes());
            }
            Self::Parse(_) => {
                let (before, bytes) = arguments.split_last_chunk()?;
                (*arguments, *number) = (before.strip_suffix(LEVELS_NAME)?, u64::from_be_bytes(*bytes));
            }
            Self::Skip => {}
        }
        Some(())
    }
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(count)?;
    *bytes = rest;
    Some(taken)
}

impl fmt::Display for Definition<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AccessStored => write!(f, "the marker that all users and permissions are stored"),
            Self::Vhost(Vhost { name, .. }) => write!(f, "virtual host {name:?}"),
            Self::User(User { name, .. }) => write!(f, "user {name:?}"),
            Self::Permission(Permission { vhost, user, .. }) => {
                write!(f, "the permissions of user {user:?} in virtual host {vhost:?}")
            }
            Self::TopicPermission(TopicPermission { vhost, user, exchange, .. }) => write!(
                f,
                "the topic permissions of user {user:?} for exchange {exchange:?} in virtual host {vhost:?}"
            ),
            Self::UserLimits(user, _) => write!(f, "the limits of user {user:?}"),
            Self::Exchange(Exchange { vhost, name, .. }) => {
                write!(f, "exchange {name:?} in virtual host {vhost:?}")
            }
            Self::Queue(Queue { vhost, name, .. }) => write!(f, "queue {name:?} in virtual host {vhost:?}"),
            Self::Binding(Binding { vhost, source, destination, routing_key, .. }) => write!(
                f,
                "the binding from exchange {source:?} to {destination:?} with key {routing_key:?} in virtual \
                 host {vhost:?}"
            ),
            Self::Policy(Policy { vhost, name, kind, .. }) => {
                let kind = if *kind == PolicyKind::Operator { "operator policy" } else { "policy" };
                write!(f, "{kind} {name:?} in virtual host {vhost:?}")
            }
            Self::Parameter(Parameter { vhost: None, name, .. }) => write!(f, "global parameter {name:?}"),
            Self::Will(Will { vhost, queue, .. }) => {
                write!(f, "the will of the MQTT session of queue {queue:?} in virtual host {vhost:?}")
            }
            Self::Retained(Retained { vhost, key, .. }) => {
                write!(f, "the retained message with key {key:?} in virtual host {vhost:?}")
            }
            Self::RetainedPart(RetainedPart { vhost, key, index, .. }) => {
                write!(f, "part {index} of the retained message with key {key:?} in virtual host {vhost:?}")
            }
            Self::SessionState(SessionState { vhost, queue, part: SessionPart::Received, .. }) => {
                write!(
                    f,
                    "the published messages of the MQTT session of queue {queue:?} in virtual host {vhost:?}"
                )
            }
            Self::SessionState(SessionState { vhost, queue, .. }) => {
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

/// Returns whether a key is that of an access definition (user, virtual host, permission or limits). The storage
/// checks at start whether these are complete.
pub fn is_access(key: &[u8]) -> bool {
    key.first() == Some(&ACCESS)
}

/// Returns whether a key is that of a retained message, or of a part of it.
pub fn is_retained_message(key: &[u8]) -> bool {
    matches!(key.first(), Some(&(RETAINED | RETAINED_PART)))
}

/// Returns the virtual host and the name from the key of a queue; `None` for any other key.
pub fn queue_in(key: &[u8]) -> Option<(&str, &str)> {
    match Definition::parse_key(key)? {
        Definition::Queue(Queue { vhost, name, .. }) => Some((vhost, name)),
        _ => None,
    }
}

/// Returns the incarnation from the definition of a queue; `None` for any other definition.
pub fn incarnation_in(key: &[u8], value: &[u8]) -> Option<u64> {
    if key.first() != Some(&QUEUE) {
        return None;
    }
    match Definition::parse(key, value)? {
        Definition::Queue(queue) => Some(queue.incarnation),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definitions_have_their_bytes_of_all_versions_and_are_parsed_from_them() {
        let exchange = Definition::Exchange(Exchange {
            vhost: "/",
            name: "logs",
            version: 7 << 32,
            kind: "topic",
            auto_delete: true,
            arguments: b"\x01xt\x01",
            ..Default::default()
        });
        let internal = Definition::Exchange(Exchange {
            vhost: "/",
            name: "m",
            kind: "fanout",
            internal: true,
            ..Default::default()
        });
        let queue = Definition::Queue(Queue {
            vhost: "/",
            name: "",
            incarnation: 9,
            is_rebuilt: true,
            ..Default::default()
        });
        let with_levels = Definition::Queue(Queue {
            vhost: "/",
            name: "levels",
            incarnation: 9,
            auto_delete: true,
            priorities_from: 10 << 32 | 3,
            arguments: b"\x01xt\x01",
            ..Default::default()
        });
        let binding = Definition::Binding(Binding {
            vhost: "/",
            source: "logs",
            source_version: 7,
            destination: DestinationName::Queue("q"),
            destination_version: 9,
            routing_key: "a.#",
            arguments: b"\x01xt\x01",
        });
        let to_exchange = Definition::Binding(Binding {
            vhost: "/",
            source: "logs",
            destination: DestinationName::Exchange("x"),
            ..Default::default()
        });
        let limits = VhostLimits { queues_max: None, connections_max: Some(0) };
        let vhost = |metadata| Definition::Vhost(Vhost { name: "/", limits, metadata });
        let [description, tags, default_queue_type] = ["d", "a,b", "quorum"];
        let metadata = VhostMetadata { description, tags, default_queue_type, is_protected: true };
        let (described, vhost) = (vhost(metadata), vhost(VhostMetadata::default()));
        let user = Definition::User(User { name: "me", tags: "administrator,x", hash: &[0] });
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
        let user_limits =
            Definition::UserLimits("me", UserLimits { connections_max: Some(3), channels_max: None });
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
        let state = |part| {
            Definition::SessionState(SessionState {
                vhost: "/",
                queue: "q",
                part,
                incarnation: 9,
                state: &[0, 1],
            })
        };
        let [received, deliveries] = [SessionPart::Received, SessionPart::Deliveries].map(state);
        let (vhost_name, key) = ("/", "a.b");
        let retained = |parts, properties, payload| {
            Definition::Retained(Retained { vhost: vhost_name, key, qos: 2, parts, properties, payload })
        };
        let parts = RetainedParts { side: 1, len: 70_000, properties_len: 2, checksum: 0x0403_0201 };
        let in_parts = retained(Some(parts), &[], &[]);
        let part = Definition::RetainedPart(RetainedPart {
            vhost: vhost_name,
            key,
            side: 1,
            index: 3,
            bytes: b"xy",
        });
        let will = Definition::Will(Will {
            vhost: "/",
            queue: "q",
            incarnation: 9,
            retain: true,
            delay_s: 70_000,
            keep_alive_s: 60,
            topic_key: "a.b",
            properties: b"\0\0",
            payload: b"off",
        });
        let of_mqtt = [received, deliveries, retained(None, &b"\0\0"[..], &b"on"[..]), in_parts, will, part];
        let (cut_off, value_of_retained) = (of_mqtt[2].key(), of_mqtt[2].value());
        assert_eq!(Definition::parse(&cut_off, &value_of_retained[..6]), None, "properties are missing");
        // Other versions read and write these bytes.
        let stored: [(&[u8], &[u8]); 23] = [
            (b"\x00\x00", b""),
            (b"\x00\x01\x01/", b"\xff\xff\xff\xff\x00\x00\x00\x00"),
            (b"\x00\x01\x01/", b"\xff\xff\xff\xff\x00\x00\x00\x00\x01\x06quorum\x01\x00d\x03\x00a,b"),
            (b"\x00\x02\x02me", b"\x0fadministrator,x\x00"),
            (b"\x00\x03\x01/\x02me", b"\x00\x00\x02\x00.*\x02\x00^a"),
            (b"\x00\x04\x01/\x02me\tamq.topic", b"\x0b\x00^{username}\x00\x00"),
            (b"\x00\x05\x02me", b"\x03\x00\x00\x00\xff\xff\xff\xff"),
            (b"\x01\x01/\x01m", b"\x02\0\0\0\0\0\0\0\0\x06fanout"),
            (b"\x01\x01/\x04logs", b"\x01\x00\x00\x00\x00\x07\x00\x00\x00\x05topic\x01xt\x01"),
            (b"\x02\x01/\x00", b"\x02\t\x00\x00\x00\x00\x00\x00\x00"),
            (b"\x02\x01/\x06levels", b"\x05\t\x00\x00\x00\x00\x00\x00\x00\x01xt\x01\x0eleveret-levelsl\x00\x00\x00\n\x00\x00\x00\x03"),
            (b"\x03\x01/\x04logs\x01\x01x\x00", &[0; 16]),
            (b"\x03\x01/\x04logs\x02\x01q\x03a.#\x01xt\x01", b"\x07\x00\x00\x00\x00\x00\x00\x00\t\x00\x00\x00\x00\x00\x00\x00"),
            (b"\x04\x01/\x01p", b"\x06queues\xfd\xff\xff\xff\x02\x00^q\x01xt\x01"),
            (b"\x05\x01/\x01p", b"\x06queues\xfd\xff\xff\xff\x02\x00^q\x01xt\x01"),
            (b"\x06\x01/\x06shovel\x01s", b"{\"a\":1}"),
            (b"\x07\x01s", b"{\"a\":1}"),
            (b"\t\x01/\x01q\x00", b"\t\x00\x00\x00\x00\x00\x00\x00\x00\x01"),
            (b"\t\x01/\x01q\x01", b"\t\x00\x00\x00\x00\x00\x00\x00\x00\x01"),
            (b"\n\x01/\x03a.b", b"\x02\x02\x00\x00\x00\x00\x00on"),
            (b"\n\x01/\x03a.b", b"\x82\x01\x70\x11\x01\x00\x02\x00\x00\x00\x01\x02\x03\x04"),
            (b"\x0b\x01/\x01q", b"\t\x00\x00\x00\x00\x00\x00\x00\x01p\x11\x01\x00<\x00\x03a.b\x02\x00\x00\x00\x00\x00off"),
            (b"\x0c\x01/\x03a.b\x01\x03\x00\x00\x00", b"xy"),
        ];
        let mut keys = Vec::new();
        let access = [Definition::AccessStored, vhost, described, user, permission, topic, user_limits];
        let definitions = access
            .into_iter()
            .chain([internal, exchange, queue, with_levels, to_exchange, binding])
            .chain(policies)
            .chain(parameters)
            .chain(of_mqtt);
        assert_eq!(definitions.clone().count(), stored.len());
        for (definition, stored) in definitions.zip(stored) {
            let (key, value) = (definition.key(), definition.value());
            assert_eq!((&*key, &*value), stored, "{definition}");
            assert_eq!(Definition::parse(&key, &value), Some(definition));
            for end in 0..key.len().min(if key[0] == ACCESS { 2 } else { 5 }) {
                assert_eq!(Definition::parse(&key[..end], &value), None);
            }
            keys.push(key);
        }
        assert!(keys.is_sorted(), "objects sort before their bindings");
        assert_eq!(Definition::parse(b"\x08\x01/", b""), None, "no definition has the key of damage reports");
    }

    #[test]
    fn bytes_of_damaged_keys_and_of_other_versions_are_told_apart() {
        let is_read = |key, value| Definition::parse(key, value).is_some();
        let queue = b"\0\x09\0\0\0\0\0\0\0";
        assert!(is_read(b"\x02\x01/\x01q", queue) && !is_read(b"\x02\x01/\x01qX", queue));
        assert!(!is_read(b"\x02\x01/\x01q", b"\x04\x09\0\0\0\0\0\0\0"), "its levels are missing");
        assert!(is_read(b"\x02\x01/\x01q", b"\xf8\x09\0\0\0\0\0\0\0"), "flags of a later version");
        assert!(is_read(b"\0\x05\x02me", b"\x03\0\0\0\xff\xff\xff\xffmore"), "fields of a later version");
        match Definition::parse(b"\x04\x01/\x01p", b"\x04newt\0\0\0\0\0\0") {
            Some(Definition::Policy(policy)) => assert_eq!(policy.apply_to, ApplyTo::Unknown),
            other => panic!("{other:?}"),
        }
    }

    /// Older versions write and read only the first eight bytes.
    #[test]
    fn metadata_of_a_virtual_host_follow_the_bytes_that_older_versions_read() {
        let limits = VhostLimits { queues_max: Some(3), connections_max: None };
        let with = |metadata| Definition::Vhost(Vhost { name: "v", limits, metadata });
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
        let user = Definition::User(User { name: "alice", tags: "administrator", hash: &[1, 211, 77] });
        for words in [format!("{user:?}"), format!("{user:#?}"), format!("{:?}", Some(user))] {
            assert!(words.contains("alice") && !words.contains("211"), "{words}");
        }
    }
}
