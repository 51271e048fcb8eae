//! How far the content of a channel has come: a record, which `publish` moves on.

use leveret_amqp::Properties;
use leveret_core::mem::{MessageFlags, MessageId};

/// How far the content of a channel has come. Without a message it is only read over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Content {
    /// A method comes next.
    None,
    /// The header comes next.
    Header { message: Option<MessageId>, flags: PublishFlags },
    /// So many octets of body come next.
    Body { message: Option<MessageId>, flags: PublishFlags, missing: u64 },
    /// Complete; the broker is being asked, or had no room.
    Complete { message: MessageId, flags: PublishFlags },
}

impl Content {
    #[inline]
    pub(super) const fn holds_message(self) -> bool {
        matches!(
            self,
            Self::Header { message: Some(_), .. }
                | Self::Body { message: Some(_), .. }
                | Self::Complete { .. }
        )
    }
}

/// The flags of basic.publish.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct PublishFlags {
    pub(super) mandatory: bool,
    pub(super) immediate: bool,
}

impl PublishFlags {
    pub(super) const NONE: Self = Self { mandatory: false, immediate: false };
}

/// What is known of a message by its properties.
pub fn message_flags(properties: Properties<'_>) -> MessageFlags {
    properties.message_flags()
}
