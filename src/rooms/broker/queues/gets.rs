//! Gets that wait for the first message of their queue.
//!
//! Always true: a connection asks for one thing at a time.

use crate::command::{ChannelId, ConnectionId, QueueId};
use crate::error::Fault;

/// A get that waits for its message to be read back.
#[derive(Debug)]
pub(crate) struct Getting {
    pub(crate) connection: ConnectionId,
    pub(crate) channel: ChannelId,
    pub(crate) queue: QueueId,
    /// When the queue was declared: another may get its id.
    pub(crate) serial: u64,
    pub(crate) no_ack: bool,
    /// It is over: whether there was a message, or why not.
    pub(crate) outcome: Option<Result<bool, Fault>>,
}
