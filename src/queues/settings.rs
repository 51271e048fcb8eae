//! The settings of a queue, from its arguments and policies.

use leveret_amqp::field::{Table, Value};

/// What happens when a message arrives in a full queue (`x-overflow`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Overflow {
    /// `drop-head`: the oldest message is dropped.
    #[default]
    DropHead,
    /// `reject-publish`: the publisher gets `basic.nack`.
    RejectPublish,
    /// `reject-publish-dlx`: the publisher gets `basic.nack`, and the refused message is dead-lettered.
    RejectPublishDlx,
}

/// The settings of a queue, from its arguments and policies. A limit that is not set has the maximum value of
/// its type.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QueueSettings {
    /// Maximum number of ready messages.
    pub max_length: u64,
    /// Maximum bytes of the bodies of ready messages.
    pub max_length_bytes: u64,
    /// `max_length` or `max_length_bytes` is set.
    pub limits_length: bool,
    /// What happens when a message exceeds a maximum.
    pub overflow: Overflow,
    /// The queue has a dead-letter exchange.
    pub dead_letters: bool,
    /// Time to live of messages in the queue, in milliseconds.
    pub message_ttl_ms: u64,
    /// Messages of the queue may expire: the queue has a time to live, or a message with an expiration has
    /// arrived.
    pub may_expire: bool,
    /// The queue is deleted after it was unused for this time, in milliseconds.
    pub expires_ms: u64,
    /// A message requeued more often than this is dropped or dead-lettered.
    pub delivery_limit: u32,
    /// The queue has a single active consumer.
    pub single_active: bool,
    /// The highest priority that the queue distinguishes.
    pub max_priority: u8,
    /// The consumer timeout in milliseconds; 0 is unlimited, and `u32::MAX` stands for the configured one.
    pub consumer_timeout_ms: u32,
}

impl QueueSettings {
    /// Returns the settings of a queue with this effective policy.
    pub fn of(effective: &EffectivePolicy<'_>) -> Self {
        let overflow = effective.value("x-overflow").and_then(|value| value.as_bytes());
        let is_quorum = is_quorum(effective.arguments());
        let delivery_limit = if is_quorum { effective.limit("x-delivery-limit") } else { u64::MAX };
        let message_ttl_ms = effective.limit("x-message-ttl");
        let (max_length, max_length_bytes) =
            (effective.limit("x-max-length"), effective.limit("x-max-length-bytes"));
        Self {
            max_length,
            max_length_bytes,
            limits_length: max_length != u64::MAX || max_length_bytes != u64::MAX,
            overflow: match overflow {
                Some(b"reject-publish") => Overflow::RejectPublish,
                Some(b"reject-publish-dlx") => Overflow::RejectPublishDlx,
                _ => Overflow::DropHead,
            },
            message_ttl_ms,
            may_expire: message_ttl_ms != u64::MAX,
            expires_ms: effective.limit("x-expires"),
            dead_letters: effective.value("x-dead-letter-exchange").is_some(),
            delivery_limit: u32::try_from(delivery_limit).unwrap_or(u32::MAX),
            single_active: effective.arguments().get("x-single-active-consumer") == Some(Value::Bool(true)),
            max_priority: max_priority(effective.arguments()),
            consumer_timeout_ms: consumer_timeout_ms(effective),
        }
    }

    /// Returns the settings for a level of a queue with these settings. A level does not expire separately
    /// from its queue.
    pub const fn of_level(self) -> Self {
        Self { expires_ms: u64::MAX, ..self }
    }

    /// Returns whether the queue is deleted after it was unused for some time.
    pub const fn expires(&self) -> bool {
        self.expires_ms != u64::MAX
    }
}

/// Returns the consumer timeout in milliseconds: the shorter of argument and policy. A client can therefore
/// not exceed the policy with an argument. 0 is unlimited, and `u32::MAX` stands for the configured timeout.
///
/// RabbitMQ 3.10 does not know this argument and accepts any value. So Leveret ignores a value that is not a
/// time, instead of refusing it.
fn consumer_timeout_ms(effective: &EffectivePolicy<'_>) -> u32 {
    let timeout = effective.time("x-consumer-timeout");
    timeout.map_or(u32::MAX, |ms| u32::try_from(ms).unwrap_or(u32::MAX).min(u32::MAX - 1))
}

/// Returns the highest priority of a queue with these arguments.
pub fn max_priority(arguments: Table<'_>) -> u8 {
    let value = arguments.get("x-max-priority").and_then(|value| value.as_integer());
    value.and_then(|number| u8::try_from(number).ok()).unwrap_or(0)
}

/// Returns whether a queue with these arguments is a quorum queue.
pub fn is_quorum(arguments: Table<'_>) -> bool {
    arguments.get("x-queue-type").and_then(|value| value.as_bytes()) == Some(b"quorum")
}

/// The effective policy of a queue: its arguments, policy and operator policy. If the queue has no policy, or
/// no operator policy, its table is empty.
///
/// As in RabbitMQ 3.10, the smallest of the limits applies, and the shortest consumer timeout. For all other
/// keys the argument applies, and without an argument the policy. An operator policy has only limits. The
/// name of an argument is `x-` and the key of the policy.
#[derive(Clone, Copy, Debug)]
pub struct EffectivePolicy<'a> {
    /// The arguments of the declaration.
    pub arguments: Table<'a>,
    /// The definition of the policy.
    pub policy: Table<'a>,
    /// The definition of the operator policy.
    pub operator: Table<'a>,
}

impl<'a> EffectivePolicy<'a> {
    /// Returns the arguments only, for settings that no policy can have.
    pub const fn arguments(&self) -> Table<'a> {
        self.arguments
    }

    /// Returns the smallest value of a limit; `u64::MAX` without a limit. `argument` is the name of its
    /// argument, with `x-`.
    #[inline(never)]
    pub fn limit(&self, argument: &str) -> u64 {
        self.numbers(argument).into_iter().flatten().min().unwrap_or(u64::MAX)
    }

    /// Returns the shortest of the times, in the unit of the argument. 0 means unlimited, and counts as
    /// longer than any other time. `None` if neither argument nor policies have a value.
    #[inline(never)]
    pub fn time(&self, argument: &str) -> Option<u64> {
        // Subtracting 1 turns 0 (unlimited) into the largest number.
        self.numbers(argument).into_iter().flatten().min_by_key(|ms| ms.wrapping_sub(1))
    }

    /// Returns the values in the arguments, the policy and the operator policy; `None` for a value that is
    /// missing or cannot be a limit.
    fn numbers(&self, argument: &str) -> [Option<u64>; 3] {
        let key = key_of(argument);
        let values = [self.arguments.get(argument), self.policy.get(key), self.operator.get(key)];
        values.map(|value| value.and_then(as_limit))
    }

    /// Returns the value of a key that is not a limit: that of the argument, else that of the policy, else
    /// `None`.
    #[inline(never)]
    pub fn value(&self, argument: &str) -> Option<Value<'a>> {
        self.arguments.get(argument).or_else(|| self.policy.get(key_of(argument)))
    }
}

fn key_of(argument: &str) -> &str {
    argument.strip_prefix("x-").unwrap_or(argument)
}

/// Returns the value as a limit; `None` if it is not an integer, or negative.
fn as_limit(value: Value<'_>) -> Option<u64> {
    value.as_integer().and_then(|number| u64::try_from(number).ok())
}
