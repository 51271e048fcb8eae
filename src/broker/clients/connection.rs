//! The record of a connection.

use leveret_core::command::{QueueId, SessionId, VhostId};
use leveret_core::error::{Fault, ReplyCode};
use leveret_core::mem::{List, MessageId};

use crate::access::Identity;

/// One connection.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) identity: Identity,
    pub(crate) vhost: Option<VhostId>,
    /// The session of an MQTT client.
    pub(crate) session: Option<SessionId>,
    /// The fault with which the connection must be closed by force; `None` if it need not be.
    pub(super) forced: Option<Fault>,
    pub(super) channels: List,
    pub(crate) exclusive_queues: List,
    /// Deliveries that are not completely written, in the order of writing.
    pub(crate) outbox: List,
    pub(crate) outbox_bytes: u64,
    /// Sequence number of the last delivery put into the outbox.
    pub(crate) sequence: u64,
    /// The socket can take more output: everything written so far has left.
    pub(crate) writable: bool,
    /// Consumers with credit that are not eligible because the connection takes no more messages.
    pub(super) paused: List,
    /// Cancelled consumers for which the client must get a `basic.cancel`.
    pub(super) cancelled: List,
    /// The full queue for which the connection's publish waits, if it waits for a queue.
    pub(crate) waits_for: Option<FullQueue>,
    /// How long the answers to this connection's messages have waited for MQTT clients that do not keep up; `None` if they never
    /// have.
    pub(crate) client_wait: Option<Box<ClientWait>>,
    /// The message with RETAIN whose content was written, and which is not published yet.
    pub(crate) retained_first: Option<MessageId>,
    /// Number of open transactions that are not empty.
    pub(crate) open_transactions: u32,
    /// The connection has waited too long for the disk: its next publish is refused instead of waiting again.
    pub(crate) has_timed_out: bool,
    /// What became of the next publish, if an assertion asks for that.
    #[cfg(debug_assertions)]
    pub(crate) watched_publish: WatchedPublish,
    /// Number of jobs begun by the connection's last command; the connection is not read until they are done.
    pub(crate) jobs: u32,
    /// The connection is in `Clients::output`.
    pub(super) is_on_output_list: bool,
    /// The connection is in `Clients::over_share`.
    pub(super) waits_for_share: bool,
    pub(super) state: ConnectionState,
}

/// The state of a connection's record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ConnectionState {
    Open,
    /// The connection sends no more commands, and a job requeues its deliveries. The socket may still be open, for
    /// example to send `connection.close`.
    Clearing,
    /// A job requeues the deliveries, and the socket is closed.
    ClearingReleased,
    /// All deliveries are requeued. The socket is open, so the connection's id is in use.
    Cleared,
    /// All deliveries are requeued, and the socket is closed: the record can be freed.
    Done,
}

/// The waiting of a publisher for MQTT clients that do not keep up. Times are broker time in milliseconds.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct ClientWait {
    /// The queue of the client for which the publisher waits now.
    pub(crate) queue: Option<QueueId>,
    pub(crate) since_ms: u64,
    /// When the period began in which `waited_ms` is counted.
    pub(crate) period_ms: u64,
    pub(crate) waited_ms: u64,
}

/// What became of a connection's next publish; see [`Broker::watch_publish`](crate::Broker::watch_publish).
#[cfg(debug_assertions)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum WatchedPublish {
    /// The publish is not watched, or was not refused.
    No,
    /// There was no publish yet.
    Awaited,
    Refused,
}

impl Connection {
    /// Returns the number of channels of the connection, closed ones included.
    pub(crate) const fn channels_len(&self) -> u32 {
        self.channels.len()
    }

    /// Closes the connection. Returns `false` if it was closed already.
    pub(crate) fn close(&mut self) -> bool {
        let was_open = self.state == ConnectionState::Open;
        if was_open {
            self.state = ConnectionState::Clearing;
        }
        was_open
    }

    /// Notes that all deliveries of the closed connection are requeued.
    pub(crate) fn note_cleared(&mut self) {
        self.state = match self.state {
            ConnectionState::Clearing => ConnectionState::Cleared,
            ConnectionState::ClearingReleased => ConnectionState::Done,
            other => panic!("deliveries of a connection are requeued once, after it is closed: {other:?}"),
        };
    }

    /// Notes that the socket of the closed connection is closed.
    pub(crate) fn note_released(&mut self) {
        self.state = match self.state {
            ConnectionState::Clearing => ConnectionState::ClearingReleased,
            ConnectionState::Cleared => ConnectionState::Done,
            other => panic!("a socket is closed once, after its connection: {other:?}"),
        };
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.state != ConnectionState::Open
    }

    pub(super) const fn is_released(&self) -> bool {
        matches!(self.state, ConnectionState::ClearingReleased | ConnectionState::Done)
    }

    /// Returns whether any consumer of the connection is paused.
    pub(crate) const fn has_paused_consumers(&self) -> bool {
        !self.paused.is_empty()
    }

    pub(super) fn new() -> Self {
        Self {
            identity: Identity::default(),
            vhost: None,
            session: None,
            forced: None,
            channels: List::default(),
            exclusive_queues: List::default(),
            outbox: List::default(),
            outbox_bytes: 0,
            sequence: 0,
            writable: true,
            paused: List::default(),
            cancelled: List::default(),
            waits_for: None,
            client_wait: None,
            retained_first: None,
            open_transactions: 0,
            has_timed_out: false,
            #[cfg(debug_assertions)]
            watched_publish: WatchedPublish::No,
            jobs: 0,
            is_on_output_list: false,
            waits_for_share: false,
            state: ConnectionState::Open,
        }
    }
}

/// Returns the fault for a connection that an operator closes, with this reason.
pub(crate) fn forced(reason: &str) -> Fault {
    Fault::connection(ReplyCode::ConnectionForced, format_args!("{reason}"))
}

/// A queue that had used up its share of the memory when a publish had to wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FullQueue {
    pub(crate) queue: QueueId,
    /// Serial number of the queue, which distinguishes it from others with the same id.
    pub(crate) serial: u64,
    /// The revision of routes and permissions at that time. With a later revision the message may not be
    /// routed to this queue.
    pub(crate) revision: u64,
}
