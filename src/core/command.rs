//! The vocabulary between sessions and the broker.
//!
//! A session turns bytes into a [`Command`]; the broker applies it and answers with an [`Outcome`] on the
//! spot. What the broker has to say unasked (deliveries, returns) waits in the connection's outbox as
//! [`Delivery`] records until the session has room on the wire to write them. Nothing here borrows from
//! both sides at once, so neither room ever sees into the other.
//!
//! Always true: a command is applied wholly or not at all; names and tables in it are validated bytes that
//! borrow from the input; a message in it is owned by whoever holds the command.

use crate::error::{Fault, ReplyCode};
use crate::mem::MessageId;
pub use crate::mem::{NAME_BYTES_MAX, Name};
use crate::password::{PasswordCheck, Secret};

/// Declares an index newtype; 0 is never a valid id, so "none" costs nothing.
/// The version of RabbitMQ that Leveret says it is like, as a literal.
#[macro_export]
macro_rules! rabbitmq_version {
    () => {
        "3.13.7"
    };
}

/// The last version of RabbitMQ whose semantics Leveret follows: clients of AMQP and of the management API,
/// metrics and definitions say the same.
pub const RABBITMQ_VERSION: &str = rabbitmq_version!();

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
        pub struct $name(core::num::NonZeroU32);

        impl $name {
            /// The id of the pool's slot `index` (0-based).
            pub fn from_index(index: usize) -> Self {
                let above = u32::try_from(index + 1).ok().and_then(core::num::NonZeroU32::new);
                Self(above.expect("pools hold fewer than 2^32 things"))
            }

            /// The 0-based slot in its pool.
            pub const fn index(self) -> usize {
                self.0.get() as usize - 1
            }
        }
    )*};
}

ids! {
    /// A connection; the slot is shared by the socket, the session and the broker's record.
    ConnectionId;
    /// A channel that is open, in the broker's channel pool.
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
}

/// What one peer asks of the broker.
///
/// `arguments` are the bytes of a field table without its length, already validated by the wire.
#[derive(Clone, Copy, PartialEq, Debug)]
#[allow(missing_docs, reason = "fields are those of the AMQP method of the same name")]
pub enum Command<'a> {
    /// SASL PLAIN or AMQPLAIN credentials.
    Login {
        user: &'a str,
        password: Secret<'a>,
        from_loopback: bool,
    },
    /// SASL EXTERNAL: the transport vouches for the user.
    LoginExternal {
        user: &'a str,
        from_loopback: bool,
    },
    /// connection.open.
    OpenVhost {
        vhost: &'a str,
    },
    /// channel.open: the broker makes a channel record.
    OpenChannel {
        number: u16,
    },
    /// channel.close by the client, or by us after a fault: everything it holds goes back.
    CloseChannel,
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
    Qos {
        prefetch_count: u16,
        global: bool,
    },
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
    /// A complete message. The broker takes the message over, whatever the outcome, but for
    /// [`Outcome::Wait`], where the session keeps it and asks again.
    Publish {
        message: MessageId,
        mandatory: bool,
    },
    Get {
        queue: &'a str,
        no_ack: bool,
    },
    /// Ack, and nack or reject that does not requeue, differ in `settlement`.
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

/// What becomes of a delivered message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Settlement {
    /// Done; forget it.
    Ack,
    /// Not wanted: dropped, or on to where the queue's dead letters go.
    Reject,
    /// Back to its old place in the queue, marked redelivered.
    Requeue,
}

/// Why the broker on the other side of a bridge does not take a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// It came back with this code: it reaches no queue there.
    Returned(u16),
    /// It was not confirmed but refused: basic.nack.
    Nacked,
    /// Whenever it was sent, the other side closed the channel with this code.
    Closed(u16),
    /// It is larger than the other side takes.
    TooLarge,
    /// It has crossed as many bridges as it may.
    Hops,
}

impl core::fmt::Display for Refusal {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Returned(312) => f.write_str("unroutable: it reaches no queue there (312)"),
            Self::Returned(code) => write!(f, "returned with code {code}"),
            Self::Nacked => f.write_str("refused by the upstream (basic.nack)"),
            Self::Closed(code) => write!(f, "the upstream closes its channel over it with code {code}"),
            Self::TooLarge => f.write_str("larger than the upstream takes"),
            Self::Hops => f.write_str("it has crossed as many bridges as it may"),
        }
    }
}

/// The broker's answer to one command.
#[derive(PartialEq, Debug)]
pub enum Outcome {
    /// It is done; the method's plain "ok" is the reply, if it has one.
    Done,
    /// [`Command::OpenChannel`].
    ChannelOpened(ChannelId),
    /// [`Command::QueueDeclare`]: the name (server-made ones included) and the counts for declare-ok.
    QueueDeclared {
        /// The queue's name.
        queue: Box<str>,
        /// Messages ready.
        message_count: u32,
        /// Consumers.
        consumer_count: u32,
    },
    /// Purge and delete: messages that were ready.
    MessageCount(u32),
    /// [`Command::Consume`]: the tag, server-made ones included.
    Consuming {
        /// The consumer tag.
        tag: Box<str>,
    },
    /// [`Command::Publish`] was taken care of: a confirm may go out (after the channel's returns).
    Published,
    /// [`Command::Publish`] was refused by a queue's overflow policy: a nack goes out.
    PublishRefused,
    /// [`Command::Get`]: get-empty. (get-ok travels as a [`Delivery`] in the outbox.)
    GetEmpty,
    /// [`Command::Get`]: a delivery is in the outbox.
    GetQueued,
    /// [`Command::Login`]: somebody has to take the time to check this, and bring the result to the broker,
    /// which then knows the answer.
    Check(Box<PasswordCheck>),
    /// [`Command::Get`]: the message is being read back; the broker says what became of it when the
    /// connection is no longer busy.
    Later,
    /// Nothing was done: not enough memory now. Ask again when told to.
    Wait,
    /// The peer's mistake.
    Fault(Fault),
}

/// Where a reply stands among the deliveries of its connection: it may be written once every delivery with
/// [`Delivery::sequence`] up to this is written. 0: at any frame boundary.
pub type ReplyOrder = u64;

/// One content frame set on its way to a peer.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Delivery<'a> {
    /// Position in the connection's outbox, rising; gaps are possible.
    pub sequence: u64,
    /// The channel's number on the wire.
    pub channel: u16,
    /// Which method carries it.
    pub kind: DeliveryKind<'a>,
    /// The delivery tag; 0 for returns.
    pub delivery_tag: u64,
    /// The redelivered flag.
    pub redelivered: bool,
    /// How often it came back to its queue, for a header that says so, in queues where one does.
    pub delivery_count: Option<u16>,
    /// The message; it stays until the delivery is reported as sent.
    pub message: MessageId,
    /// Its channel is closed: it is written only if it was begun.
    pub is_withdrawn: bool,
}

/// The method that carries a delivery.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum DeliveryKind<'a> {
    /// basic.deliver to this consumer.
    Deliver {
        /// The consumer's tag.
        consumer_tag: &'a str,
    },
    /// basic.get-ok.
    GetOk {
        /// Ready messages left behind this one.
        message_count: u32,
    },
    /// basic.return of a mandatory message; its confirm comes after it.
    Return(ReplyCode),
}

/// A connection's outbox as the session reads it: from the front, without taking. What was really written
/// is reported to the broker afterwards, as a count.
pub trait Outbox {
    /// The delivery at the cursor.
    fn peek(&self) -> Option<Delivery<'_>>;
    /// Moves the cursor past it.
    fn advance(&mut self);
}
