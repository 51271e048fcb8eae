//! Gets that wait for the first message of their queue.
//!
//! Always true: a connection asks for one thing at a time.

use crate::command::{ChannelId, ConnectionId, QueueId};
use crate::error::Fault;

/// A get that waits for its message to be read back.
#[derive(Debug)]
pub(in crate::broker) struct Getting {
    pub(in crate::broker) connection: ConnectionId,
    pub(in crate::broker) channel: ChannelId,
    pub(in crate::broker) queue: QueueId,
    /// When the queue was declared: another may get its id.
    pub(in crate::broker) serial: u64,
    pub(in crate::broker) no_ack: bool,
    /// It is over: whether there was a message, or why not.
    pub(in crate::broker) outcome: Option<Result<bool, Fault>>,
}
