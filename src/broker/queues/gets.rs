//! Gets that wait for the first message of their queue.
//!
//! Always true: a connection asks for one thing at a time.

use leveret_core::command::{ChannelId, ConnectionId, QueueId};
use leveret_core::error::Fault;

/// A get that waits for its message to be read back.
#[derive(Debug)]
pub(crate) struct Getting {
    pub(crate) connection: ConnectionId,
    pub(crate) channel: ChannelId,
    pub(crate) queue: QueueId,
    /// The serial number of the queue's declaration: its id may be given to another queue.
    pub(crate) serial: u64,
    pub(crate) no_ack: bool,
    /// The result of the get, once it is over: whether there was a message, or why not.
    pub(crate) outcome: Option<Result<bool, Fault>>,
}
