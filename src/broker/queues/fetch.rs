//! Reads from the log: which messages are to be read, and what came of each.
//!
//! Always true: a message that is read takes memory only from what is kept free to read back.

use leveret_amqp::props::Properties;
use leveret_core::command::QueueId;
use leveret_core::mem::{MessageFlags, MessageId, Messages, PoolFull, Share};

/// Messages to be read back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fetch {
    /// The queue to read for.
    pub queue: QueueId,
    /// The number that the log knows the queue by.
    pub incarnation: u64,
    /// The first log offset to read.
    pub start: u64,
    /// The log offset after the last one to read.
    pub end: u64,
    /// Bytes to read at once, about.
    pub bytes_max: u32,
    /// Where the messages stand in their queue.
    pub from: FetchFrom,
    /// Only the expiry of the first message is wanted: the message stays in the log.
    pub is_peek: bool,
}

/// Where in its queue a message stands that is to be read back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FetchFrom {
    /// In the middle, among messages that wait.
    Middle,
    /// In front: one message that was delivered before and requeued.
    Returned,
    /// Among the rejected: one message that is to go on as a dead letter.
    Rejected,
    /// Anywhere: somebody looks at the queue, which stays as it is.
    Browse,
}

/// A message that was read back, without its body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Page<'a> {
    /// The log offset of the message.
    pub offset: u64,
    /// The exchange that the message was published to.
    pub exchange: &'a str,
    /// The routing key of the message.
    pub routing_key: &'a [u8],
    /// The properties of the message.
    pub properties: &'a [u8],
    /// Bytes of the message body.
    pub body_len: u32,
    /// When the message came, in milliseconds of broker time.
    pub enqueued_ms: u64,
}

impl Fetch {
    pub(super) const fn is_single(&self) -> bool {
        !matches!(self.from, FetchFrom::Middle)
    }
}

impl Page<'_> {
    pub(super) fn bytes(&self) -> usize {
        self.exchange.len() + self.routing_key.len() + self.properties.len() + self.body_len as usize
    }
}

/// What becomes of a message that was read back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PageIn {
    /// The body of the message is to follow, and then [`Queues::paged_in`].
    Begun(MessageId),
    /// The message left the queue meanwhile, or was only to be seen.
    NotWanted,
    /// There is no memory for the message now.
    NoRoom,
}

/// Begins a message that was read back, its body still to come.
///
/// # Errors
/// There is no memory for it now.
pub(crate) fn begin_page(messages: &mut Messages, page: &Page<'_>) -> Result<MessageId, PoolFull> {
    let message = messages.begin(page.exchange, page.routing_key, Share::ReadBack)?;
    let flags = MessageFlags::PERSISTENT.with(MessageFlags::STORED);
    let properties = Properties::trusted(page.properties);
    let flags = if properties.expiration().is_some() { flags.with(MessageFlags::EXPIRES) } else { flags };
    let flags = if properties.is_blind() { flags.with(MessageFlags::BLIND) } else { flags };
    match messages.reserve_content(message, page.properties, flags, page.body_len, Share::ReadBack) {
        Ok(()) => Ok(message),
        Err(full) => {
            // Whoever waits for memory must not be woken by an attempt in vain.
            messages.discard(message);
            Err(full)
        }
    }
}
