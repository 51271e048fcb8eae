//! What these tests publish: a test says only what matters to it.

use leveret_storage::{Body, Message, Targets};

/// A message as small as may be, but for its body; to no queue.
pub(crate) const PLAIN: Message<'static> = Message {
    targets: Targets::List(&[]),
    enqueued_ms: 0,
    expiration_ms: None,
    exchange: b"",
    key: b"key",
    properties: b"",
    body: Body::Inline(&[7; 500]),
};

/// What the field publishes, of a usual length: with a time, a key and a content type.
pub(crate) const USUAL: Message<'static> = Message {
    enqueued_ms: 1_700_000_000_000,
    exchange: b"amq.topic",
    key: b"site.7.temperature",
    properties: &[0x90, 0, 10, b't', b'e', b'x', b't', b'/', b'p', b'l', b'a', b'i', b'n', 2],
    ..PLAIN
};
