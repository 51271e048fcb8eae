//! A connection as the loop sees it: its socket, its session, and what it waits for.

use crate::command::{ConnectionId, Outcome, ReplyOrder};
use crate::journal::Batch;
use crate::session;
use crate::time::{Deadline, Now};

use super::address::PeerAddress;
use super::deadlines::Deadlines;
use super::platform::Socket;
use super::stream::Stream;

/// Why a connection is not read.
///
/// Who ends the waiting, and why none of it can be missed: what is looked at before every sleep cannot be
/// forgotten by whoever changed it.
///
/// | waits for | is over when | the loop notices by |
/// |---|---|---|
/// | `Replies` | some of its output was written | the socket's next report, at which all is written |
/// | `Room` | something was given back | what the pools count: `Engine::has_room_to_offer` |
/// | `Job` | the broker is not busy with it | `Broker::has_work`, as long as it is |
/// | `Handshake` | the helper gave it back | the helper's waker |
/// | `Worker` | the same, or its address may try again | that waker, and `LoginThrottle::deadline` |
/// | `Disk` | the batch is durable | the helper's waker: `Engine::note_durable` |
///
/// Besides, a connection that is read may need more of the stashes than is free (`for_stash`): it asks how
/// much is free now, `Engine::has_stash_to_offer`. A place at a door is asked for in the same way
/// (`Engine::may_accept`), and so is a journal that is crowded (`Engine::has_work`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Waiting {
    /// It is read.
    No,
    /// Its replies have to be written first.
    Replies,
    /// There is no room for its message.
    Room,
    /// Its last command is still being carried out.
    Job,
    /// A step of its handshake of TLS comes back when the worker's job with this ticket is done.
    Handshake(u64),
    /// The answer to its last command leaves when this is durable.
    Disk(Batch),
    /// The answer to its last command comes when the worker's job with this ticket is done.
    Worker(u64),
}

/// How far the end of a connection has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ending {
    /// It is alive.
    No,
    /// The session is done: what it has to say is written, then writing is shut down.
    Flushing,
    /// Everything is said; input is read and forgotten until the peer hangs up, because closing with input
    /// unread would destroy what is still on its way to the peer.
    Draining(Deadline),
    /// To be closed at the end of the turn.
    Now,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Peer<S> {
    /// Connections are numbered in the order of their coming.
    pub(super) number: u64,
    pub(super) since: Now,
    pub(super) address: PeerAddress,
    pub(super) stream: Stream<S>,
    pub(super) session: session::Connection,
    pub(super) waiting: Waiting,
    pub(super) ending: Ending,
    /// On the list of connections to read from.
    pub(super) to_read: bool,
    /// The answer that waits for the disk.
    pub(super) held: Option<(Outcome, ReplyOrder)>,
    /// On the list of connections with something that waits for the disk.
    pub(super) for_disk: bool,
    /// On the list of connections that wait for the stashes.
    pub(super) for_stash: bool,
    /// On the list of connections to write to.
    pub(super) to_write: bool,
    /// It holds a handshake place.
    pub(super) shaking_hands: bool,
    /// Since then it has not logged in, but for the time that it waited for us.
    pub(super) silent_since: Now,
    /// Its address has wasted no handshake place lately.
    pub(super) is_unspent: bool,
    /// Deliveries wait and its socket has taken nothing: so long that may last.
    pub(super) stalled: Deadline,
    /// It is gone: so long what it sent may wait to be taken, and no longer.
    pub(super) lost: Deadline,
}

/// Bytes per connection in this room: the record, its places on the lists, its deadline.
pub(super) const fn peer_bytes<S>() -> usize {
    size_of::<Option<Peer<S>>>() + 8 * size_of::<ConnectionId>() + Deadlines::ENTRY_BYTES
}

impl<S: Socket> Peer<S> {
    /// Whether the answer to a command comes later, and what it waits for. The confirm of a publish waits
    /// without its connection.
    pub(super) fn defer(&mut self, outcome: &Outcome, batch: Batch, durable: Batch) -> Option<Waiting> {
        let waiting = match outcome {
            Outcome::Later => Waiting::Job,
            Outcome::Published | Outcome::PublishRefused | Outcome::Wait => return None,
            // Without an answer nothing is said that could turn out wrong.
            _ if batch <= durable || self.session.wants_no_answer() => return None,
            _ => Waiting::Disk(batch),
        };
        self.session.defer();
        Some(waiting)
    }
}
