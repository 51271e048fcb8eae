//! Sample messages: a test states only the fields that matter to it.

use leveret_storage::{Body, Message, Targets};

/// The smallest possible message, except for its body, without a queue.
pub(crate) const PLAIN: Message<'static> = Message {
    targets: Targets::List(&[]),
    enqueued_ms: 0,
    expiration_ms: None,
    exchange: b"",
    key: b"key",
    properties: b"",
    body: Body::Inline(&[7; 500]),
};

/// A message of usual size: with a timestamp, a key and a content type.
pub(crate) const USUAL: Message<'static> = Message {
    enqueued_ms: 1_700_000_000_000,
    exchange: b"amq.topic",
    key: b"site.7.temperature",
    properties: &[0x90, 0, 10, b't', b'e', b'x', b't', b'/', b'p', b'l', b'a', b'i', b'n', 2],
    ..PLAIN
};
