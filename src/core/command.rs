//! Commands, outcomes and deliveries: the interface between connections and the broker.
//!
//! A connection parses bytes into a [`Command`]. The broker applies it at once and returns an [`Outcome`].
//! Deliveries and returns wait as [`Delivery`] records in the connection's outbox until the socket accepts them.
//! Neither package depends on the other.
//!
//! # Invariants
//! - A command is applied completely or not at all.
//! - Names and tables in a command are validated bytes borrowed from the input.
//! - A command with a message owns one reference to the message.

use core::num::NonZeroU16;

use crate::batch::Batch;
use crate::error::{Fault, ReplyCode};
use crate::mem::{MessageId, Messages};
pub use crate::mem::{NAME_BYTES_MAX, Name};
use crate::password::{PasswordCheck, Secret};

/// The version of RabbitMQ that Leveret is compatible with, as a literal.
#[macro_export]
macro_rules! rabbitmq_version {
    () => {
        "3.13.7"
    };
}

/// The last version of RabbitMQ whose semantics Leveret follows. Clients of AMQP and of the management API, metrics
/// and definitions see this version.
pub const RABBITMQ_VERSION: &str = rabbitmq_version!();

// Declares an index newtype. 0 is not a valid id, so an `Option` of it needs no additional memory.
macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
        pub struct $name(core::num::NonZeroU32);

        impl $name {
            /// Returns the id of the pool's slot `index` (0-based).
            pub fn from_index(index: usize) -> Self {
                let above = u32::try_from(index + 1).ok().and_then(core::num::NonZeroU32::new);
                Self(above.expect("pools hold fewer than 2^32 things"))
            }

            /// Returns the 0-based slot in the pool.
            pub const fn index(self) -> usize {
                self.0.get() as usize - 1
            }
        }
    )*};
}

ids! {
    /// A connection. Socket, connection state and the broker's record share its index.
    ConnectionId;
    /// An open channel.
    ChannelId;
    /// A consumer.
    ConsumerId;
    /// A queue.
    QueueId;
    /// An exchange.
    ExchangeId;
    /// A binding.
    BindingId;
    /// A virtual host.
    VhostId;
    /// A policy.
    PolicyId;
    /// An MQTT session.
    SessionId;
}

/// Finds the name of a virtual host. The owner of the virtual hosts implements it, for the packages that write definitions.
pub trait VhostNames {
    /// Returns the name of a virtual host, also of one that is being deleted.
    fn vhost_name(&self, vhost: VhostId) -> &str;
}

/// The policies that apply to a queue or an exchange.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct AppliedPolicies {
    /// The policy that users set.
    pub policy: Option<PolicyId>,
    /// The operator policy.
    pub operator: Option<PolicyId>,
}

/// A command of a client, with the type of its answer.
///
/// A command is answered once, or refused with a [`Fault`].
pub trait TypedCommand {
    /// What the broker answers if it accepts the command.
    type Answer;
}

macro_rules! answered_with {
    ($($command:ty => $answer:ty;)*) => {$(
        impl TypedCommand for $command {
            type Answer = $answer;
        }
    )*};
}

answered_with! {
    LoginCommand<'_> => LoginAnswer;
    OpenVhost<'_> => ();
    OpenChannel => ChannelId;
    OpenSession<'_> => SessionOpened;
    PublishCommand => PublishAnswer;
    ChannelCommand<'_> => ChannelAnswer;
    GetCommand<'_> => GetAnswer;
    DefinitionCommand<'_> => DefinitionAnswer;
    MqttCommand<'_> => MqttAnswer;
}

/// The next command of a connection, with the channel that it concerns.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Command<'a> {
    /// The login.
    Login(LoginCommand<'a>),
    /// The choice of the virtual host.
    OpenVhost(OpenVhost<'a>),
    /// channel.open.
    OpenChannel(OpenChannel),
    /// CONNECT of MQTT.
    OpenSession(OpenSession<'a>),
    /// A message.
    Publish(ChannelId, PublishCommand),
    /// Consumers, acknowledgements, transactions and the end of a channel.
    Channel(ChannelId, ChannelCommand<'a>),
    /// basic.get.
    Get(ChannelId, GetCommand<'a>),
    /// Exchanges, queues and bindings.
    Definition(ChannelId, DefinitionCommand<'a>),
    /// Subscriptions and acknowledgements of MQTT, and the end of a session.
    Mqtt(ChannelId, MqttCommand<'a>),
}

/// The answer to a [`Command`]: that of its [`TypedCommand`].
#[derive(PartialEq, Debug)]
#[allow(missing_docs, reason = "each variant has the answer to the command of the same name")]
pub enum Answer {
    /// [`LoginCommand`]: the user is logged in.
    LoggedIn,
    OpenVhost,
    OpenChannel(ChannelId),
    OpenSession(SessionOpened),
    Publish(PublishAnswer),
    Channel(ChannelAnswer),
    Get(GetAnswer),
    Definition(DefinitionAnswer),
    Mqtt(MqttAnswer),
}

/// The result of a command.
#[derive(PartialEq, Debug)]
pub enum Outcome {
    /// The command is done, or the client has made a mistake.
    Answer(Result<Answer, Fault>),
    /// [`LoginCommand`]: the caller must make this check, and pass its result to the broker. The broker then returns the
    /// answer.
    Check(Box<PasswordCheck>),
    /// [`GetAnswer::Later`]: the answer follows; until then the connection is busy.
    Later,
}

/// SASL, or the login with CONNECT of MQTT.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum LoginCommand<'a> {
    /// With a password: PLAIN or AMQPLAIN.
    Password {
        /// The user.
        user: &'a str,
        /// Its password.
        password: Secret<'a>,
        /// The client is on this machine.
        from_loopback: bool,
    },
    /// EXTERNAL: the transport has authenticated the user.
    External {
        /// The user.
        user: &'a str,
        /// The client is on this machine.
        from_loopback: bool,
    },
}

/// The answer to [`LoginCommand`].
#[derive(PartialEq, Debug)]
pub enum LoginAnswer {
    /// The user is logged in.
    LoggedIn,
    /// The caller must make this check, and pass its result to the broker.
    Check(Box<PasswordCheck>),
}

/// connection.open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OpenVhost<'a> {
    /// The name of the virtual host.
    pub vhost: &'a str,
}

/// channel.open: the broker creates a channel record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OpenChannel {
    /// The channel number.
    pub number: u16,
}

/// CONNECT of MQTT, after the login and the virtual host. A connection with the same client identifier loses its
/// session and is closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OpenSession<'a> {
    /// The client identifier. If it is empty, the broker assigns one.
    pub client_id: &'a str,
    /// An earlier session of the client is deleted.
    pub clean_start: bool,
    /// How long the session is kept after its connection, in seconds; 0: it ends with it.
    pub expiry_s: u32,
    /// Maximum number of deliveries that the client has not acknowledged; not 0.
    pub in_flight_max: u16,
    /// The largest packet that the client accepts, in bytes.
    pub packet_len_max: u32,
    /// The will.
    pub will: Option<SessionWill>,
}

/// The answer to [`OpenSession`].
#[derive(PartialEq, Eq, Debug)]
pub struct SessionOpened {
    /// The channel on which the session publishes and consumes.
    pub channel: ChannelId,
    /// The client identifier, also one that the broker has assigned.
    pub client_id: Box<str>,
    /// The broker has assigned the client identifier.
    pub is_assigned: bool,
    /// The session existed before.
    pub is_present: bool,
    /// How long the session is kept after its connection, in seconds; not more than the client requested.
    pub expiry_s: u32,
    /// The packet identifiers for which PUBREL was sent and PUBCOMP has not arrived.
    pub released: Box<[NonZeroU16]>,
}

/// A complete message. The broker takes ownership of it, except with [`PublishAnswer::Wait`]: then the connection keeps
/// the message and retries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PublishCommand {
    /// basic.publish, or PUBLISH of MQTT with QoS 0 or 1.
    Publish {
        /// The message.
        message: MessageId,
        /// The message is returned if it is routed to no queue.
        mandatory: bool,
    },
    /// PUBLISH with QoS 2. Like [`Self::Publish`], but a message whose packet identifier is not released is not published
    /// again.
    PublishOnce {
        /// The message.
        message: MessageId,
        /// The packet identifier.
        packet_id: NonZeroU16,
    },
    /// PUBLISH with RETAIN. Like [`Self::Publish`], or with a packet identifier like [`Self::PublishOnce`]. A message with a
    /// payload becomes the retained message of its topic, unless it exceeds a limit. One without a payload deletes it.
    PublishRetained {
        /// The message.
        message: MessageId,
        /// The packet identifier of a message with QoS 2.
        packet_id: Option<NonZeroU16>,
        /// If the message cannot be retained, it is refused. Otherwise it is published nevertheless.
        is_refusable: bool,
    },
    /// A message with QoS 2 is to be refused before it reaches the broker, for example for lack of memory. The answer is
    /// [`PublishAnswer::Published`] if it was published before and its packet identifier is not released, and otherwise
    /// [`PublishAnswer::NotPublished`].
    FindPublished {
        /// The packet identifier.
        packet_id: NonZeroU16,
    },
}

/// The answer to [`PublishCommand`].
#[derive(PartialEq, Eq, Debug)]
pub enum PublishAnswer {
    /// The message is published: a confirm may be sent, after the channel's returns.
    Published,
    /// Like [`Self::Published`], and the message was routed to no queue.
    PublishedNowhere,
    /// Like [`Self::Published`], but the message was not retained.
    NotRetained {
        /// The configuration key of the limit that the message exceeds.
        limit: &'static str,
        /// The topic.
        topic: Box<str>,
    },
    /// A queue's overflow policy refused the message: a nack is sent.
    Refused,
    /// [`PublishCommand::FindPublished`]: the message was not published.
    NotPublished,
    /// Nothing was done because memory is short now. The caller retries when it is notified.
    Wait,
}

/// Consumers, acknowledgements, transactions and the end of a channel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "fields are those of the AMQP method of the same name")]
pub enum ChannelCommand<'a> {
    /// channel.close by the client, or by the broker after a fault. Consumers, transaction and deliveries of
    /// the channel are released.
    CloseChannel,
    Qos {
        prefetch_count: u16,
        global: bool,
    },
    /// `arguments` are the bytes of a field table without its length, already validated.
    Consume {
        queue: &'a str,
        tag: &'a str,
        no_ack: bool,
        exclusive: bool,
        arguments: &'a [u8],
    },
    Cancel {
        tag: &'a str,
    },
    /// basic.ack, basic.nack or basic.reject, according to `settlement`.
    Settle {
        delivery_tag: u64,
        multiple: bool,
        settlement: Settlement,
    },
    /// basic.recover with requeue = true.
    Recover,
    ConfirmSelect,
    TxSelect,
    TxCommit,
    TxRollback,
}

/// The answer to [`ChannelCommand`].
#[derive(PartialEq, Eq, Debug)]
pub enum ChannelAnswer {
    /// The command is done. The reply is the method's "ok", if it has one.
    Done,
    /// [`ChannelCommand::CloseChannel`].
    Closed,
    /// [`ChannelCommand::Consume`].
    Consuming {
        /// The consumer tag, also one that the broker has generated.
        tag: Box<str>,
    },
    /// [`ChannelCommand::Cancel`].
    Cancelled,
    /// [`ChannelCommand::ConfirmSelect`].
    ConfirmsSelected,
}

/// basic.get.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GetCommand<'a> {
    /// The name of the queue.
    pub queue: &'a str,
    /// The message needs no acknowledgement.
    pub no_ack: bool,
}

/// The answer to [`GetCommand`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GetAnswer {
    /// get-empty.
    Empty,
    /// A [`Delivery`] with get-ok is in the outbox.
    Queued,
    /// The message is being read back from the disk. The answer follows.
    Later,
}

/// Exchanges, queues and bindings.
///
/// `arguments` are the bytes of a field table without its length, already validated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "fields are those of the AMQP method of the same name")]
pub enum DefinitionCommand<'a> {
    ExchangeDeclare {
        exchange: &'a str,
        kind: &'a str,
        passive: bool,
        durable: bool,
        auto_delete: bool,
        internal: bool,
        arguments: &'a [u8],
    },
    ExchangeDelete {
        exchange: &'a str,
        if_unused: bool,
    },
    ExchangeBind {
        destination: &'a str,
        source: &'a str,
        routing_key: &'a str,
        arguments: &'a [u8],
    },
    ExchangeUnbind {
        destination: &'a str,
        source: &'a str,
        routing_key: &'a str,
        arguments: &'a [u8],
    },
    QueueDeclare {
        queue: &'a str,
        passive: bool,
        durable: bool,
        exclusive: bool,
        auto_delete: bool,
        arguments: &'a [u8],
    },
    QueueBind {
        queue: &'a str,
        exchange: &'a str,
        routing_key: &'a str,
        arguments: &'a [u8],
    },
    QueueUnbind {
        queue: &'a str,
        exchange: &'a str,
        routing_key: &'a str,
        arguments: &'a [u8],
    },
    QueuePurge {
        queue: &'a str,
    },
    QueueDelete {
        queue: &'a str,
        if_unused: bool,
        if_empty: bool,
    },
}

/// The answer to [`DefinitionCommand`].
#[derive(PartialEq, Eq, Debug)]
pub enum DefinitionAnswer {
    /// The command is done. The reply is the method's plain "ok".
    Done,
    /// [`DefinitionCommand::QueueDeclare`]: the name (server-generated ones included) and the counts for declare-ok.
    QueueDeclared {
        /// The queue's name.
        queue: Box<str>,
        /// Number of ready messages.
        message_count: u32,
        /// Number of consumers.
        consumer_count: u32,
    },
    /// [`DefinitionCommand::QueuePurge`]: the number of messages that were ready.
    QueuePurged(u32),
    /// [`DefinitionCommand::QueueDelete`]: the number of messages that were ready.
    QueueDeleted(u32),
}

/// Subscriptions and acknowledgements of MQTT, and the end of a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MqttCommand<'a> {
    /// One topic filter of SUBSCRIBE, which is valid. It replaces an existing subscription with the same filter and group.
    Subscribe(Subscription<'a>),
    /// One topic filter of UNSUBSCRIBE. It is refused with code 404 if there is no such subscription.
    Unsubscribe {
        /// The topic filter.
        filter: &'a str,
        /// The group of a shared subscription.
        group: Option<&'a str>,
    },
    /// DISCONNECT of MQTT. The connection ends after it.
    LeaveSession {
        /// Another session expiry interval than that of CONNECT, in seconds.
        expiry_s: Option<u32>,
        /// The will is published as if the connection were lost.
        keeps_will: bool,
    },
    /// PUBACK. An unknown packet identifier is ignored.
    AcknowledgePacket {
        /// The packet identifier.
        packet_id: NonZeroU16,
    },
    /// PUBREL: the packet identifier of [`PublishCommand::PublishOnce`] is released. The answer is
    /// [`MqttAnswer::UnknownPacket`] if it is unknown.
    ReleasePacket {
        /// The packet identifier.
        packet_id: NonZeroU16,
    },
    /// PUBREC: the client has the message, and PUBREL is sent. The answer is [`MqttAnswer::UnknownPacket`] if the packet
    /// identifier is unknown.
    ReceivePacket {
        /// The packet identifier.
        packet_id: NonZeroU16,
    },
    /// PUBREC with a failure: the client refuses the message, which is settled.
    RefusePacket {
        /// The packet identifier.
        packet_id: NonZeroU16,
    },
    /// PUBCOMP: the packet identifier is free. An unknown one is ignored.
    CompletePacket {
        /// The packet identifier.
        packet_id: NonZeroU16,
    },
}

/// The answer to [`MqttCommand`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MqttAnswer {
    /// The command is done.
    Done,
    /// Nothing has the packet identifier of [`MqttCommand::ReceivePacket`] or [`MqttCommand::ReleasePacket`]. If it was
    /// released before, the reply waits until that is durable.
    UnknownPacket,
}

/// A subscription of MQTT (§3.8.3).
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Subscription<'a> {
    /// The topic filter, without `$share` and the group.
    pub filter: &'a str,
    /// The group of a shared subscription (§4.8.2).
    pub group: Option<&'a str>,
    /// The maximum QoS, 0 to 2.
    pub qos: u8,
    /// The subscription identifier.
    pub id: Option<u32>,
    /// No Local: the client does not get its own messages.
    pub no_local: bool,
    /// Retain As Published: messages keep their RETAIN flag.
    pub retain_as_published: bool,
    /// Which retained messages the client gets at first.
    pub retain_handling: RetainHandling,
}

/// A subscription that matches a message, as far as it changes the PUBLISH.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MatchedSubscription {
    /// The subscription identifier.
    pub id: Option<u32>,
    /// The message keeps its RETAIN flag.
    pub retain_as_published: bool,
}

/// When a subscriber gets the retained messages that match its filter.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum RetainHandling {
    /// With each SUBSCRIBE.
    #[default]
    Always,
    /// If the subscription did not exist.
    IfNew,
    /// Never.
    Never,
}

/// The will of a client of MQTT. The broker takes ownership of the message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SessionWill {
    /// The message.
    pub message: MessageId,
    /// It becomes the retained message of its topic.
    pub retain: bool,
    /// The will delay interval, in seconds.
    pub delay_s: u32,
    /// The keep-alive time of the client, in seconds; 0: none.
    pub keep_alive_s: u16,
}

/// The most deliveries with QoS 2 of a session whose exchange is not complete. Their list is written to the log with each
/// change, so a longer list would cost more flash.
pub const SESSION_EXACTLY_ONCE_MAX: usize = 20;

/// How a delivered message is settled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Settlement {
    /// The message is acknowledged and removed.
    Ack,
    /// The message is rejected: dropped or dead-lettered.
    Reject,
    /// The message returns to its old place in the queue, marked as redelivered.
    Requeue,
}

/// Why the upstream broker of a bridge refuses a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// The upstream returned the message with this code, because it is routed to no queue there.
    Returned(u16),
    /// The upstream refused the message with basic.nack.
    Nacked,
    /// The upstream closed the channel with this code each time the message was sent.
    Closed(u16),
    /// The message is larger than the upstream accepts.
    TooLarge,
    /// The message has passed the maximum number of bridges.
    Hops,
}

impl core::fmt::Display for Refusal {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Returned(312) => f.write_str("unroutable: it was routed to no queue there (312)"),
            Self::Returned(code) => write!(f, "returned with code {code}"),
            Self::Nacked => f.write_str("refused by the upstream (basic.nack)"),
            Self::Closed(code) => write!(f, "the upstream closes its channel over it with code {code}"),
            Self::TooLarge => f.write_str("larger than the upstream accepts"),
            Self::Hops => f.write_str("it has crossed the maximum number of bridges"),
        }
    }
}

/// The position of a reply among the deliveries of its connection. The reply may be written after all
/// deliveries with a [`Delivery::sequence`] up to this number; with 0, between any two frames.
pub type ReplyOrder = u64;

/// A message with its method, to be written to a client.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Delivery<'a> {
    /// Position in the connection's outbox, ascending; gaps are possible.
    pub sequence: u64,
    /// The channel number.
    pub channel: u16,
    /// The method with which the message is sent.
    pub kind: DeliveryKind<'a>,
    /// The delivery tag; 0 for returns.
    pub delivery_tag: u64,
    /// The redelivered flag.
    pub redelivered: bool,
    /// How often the message was requeued, for the header `x-delivery-count`; `None` for queues without this
    /// header.
    pub delivery_count: Option<u16>,
    /// The message. It stays in memory until the delivery is reported as sent.
    pub message: MessageId,
    /// The channel is closed. The delivery is then written only if a part of it was written before.
    pub is_withdrawn: bool,
    /// The delivery is written when this batch is durable: that of the packet identifier of a message with QoS 2.
    pub batch: Batch,
}

/// The method with which a message is sent to a client.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum DeliveryKind<'a> {
    /// basic.deliver to this consumer.
    Deliver {
        /// The consumer's tag.
        consumer_tag: &'a str,
    },
    /// basic.get-ok.
    GetOk {
        /// Number of ready messages left after this one.
        message_count: u32,
    },
    /// basic.return of a mandatory message. The message's confirm is sent afterwards.
    Return(ReplyCode),
    /// PUBLISH of MQTT.
    Publish(SubscriptionDelivery),
}

/// How a message is sent to an MQTT client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SubscriptionDelivery {
    /// The message is not sent: no subscription of the client matches its topic, or the packet would be too large.
    Skip,
    /// With QoS 0.
    AtMostOnce,
    /// With QoS 1 and this packet identifier.
    AtLeastOnce(NonZeroU16),
    /// With QoS 2 and this packet identifier.
    ExactlyOnce(NonZeroU16),
}

impl SubscriptionDelivery {
    /// Returns whether the delivery is settled by an acknowledgement of the client. Otherwise it is settled when it is
    /// written.
    pub const fn is_acknowledged(self) -> bool {
        matches!(self, Self::AtLeastOnce(_) | Self::ExactlyOnce(_))
    }
}

/// A connection's outbox, read from the front without removing anything.
///
/// The caller then reports to the broker how many deliveries were written.
pub trait Outbox {
    /// Returns the delivery at the cursor.
    fn peek(&self) -> Option<Delivery<'_>>;
    /// Moves the cursor to the next delivery.
    fn advance(&mut self);
    /// Returns the subscriptions of an MQTT session that match the delivery at the cursor, and change its PUBLISH.
    fn matched_subscriptions<'m>(
        &'m self,
        messages: &'m Messages,
    ) -> impl Iterator<Item = MatchedSubscription> {
        let _ = messages;
        core::iter::empty()
    }
}
