//! THE LOOP WITHOUT THE MACHINE: peers and what they wait for, budgets, shares, deadlines, retries, and the
//! jobs of helpers as values.
//!
//! | file | what it holds |
//! |------|---------------|
//! | `platform` | what is asked of the world outside, and nothing else is |
//! | `turn` | the one turn, in its fixed order |
//! | `state` | everything that runs, reserved at once |
//! | `receive`, `send` | the way in and the way out of a turn |
//! | `stop` | the end of it all |
//! | `peer` | a peer of whatever kind: socket, session, and what it waits for |
//! | `peer_id` | its name in all lists |
//! | `peers` | all of them, by their places |
//! | `wait_list` | a list of peers, and who is on it |
//! | `address` | who is at the other end |
//! | `stream` | the octets of a peer: readiness, TLS, input that has to wait |
//! | `protocol_sniff` | handshakes of TLS, and peers that speak something else |
//! | `listener` | whether somebody may be waiting at a listening socket |
//! | `doors` | who comes in next, at the doors of AMQP and of management: a part of its own |
//! | `newcomers` | what the doors decided is done: newcomers become peers |
//! | `worker_job`, `worker_queue` | what would hold the loop up, and who waits for it |
//! | `room_awaited`, `room_log` | since when publishers wait for room; what the log tells of it |
//! | `login_throttle` | logins that wait for their password to be checked |
//! | `store_driver` | what passes between broker and store |
//! | `restore` | what a start makes of what the store holds |
//! | `operators`, `admin_socket` | the operator's clients: another kind of peer; their records |
//! | `bridge_link`, `bridge_state` | the links of bridges, with a socket and without |
//! | `bridges` | when they are tried, and what becomes of those that end |
//! | `bridge_peer` | links as peers: connecting, reading, their time and their end |
//! | `bridge_queues` | the queues here, made before the first link is up |
//! | `bridge_forward`, `bridge_fetch` | messages on their way there, and from there |
//! | `bridge_course`, `bridge_wait` | how a rule goes on; rules that wait for the other side, alone |
//! | `bridge_retry` | what was set aside goes back to where it was on its way to |
//! | `bridge_rest`, `bridge_day` | links that are there only on demand; the bytes of a day |
//! | `bridge_notes` | what of bridges outlives a restart |
//! | `bridge_views`, `bridge_alarm` | what an operator is told of them, and does with them |
//! | `shovel_check`, `shovels` | bridges that runtime parameters define, and their end |
//! | `name_lookup` | names that are looked up |
//! | `deadlines` | who wants to be called when |
//!
//! Always true: one thread; nothing here blocks; no clock, no socket and no thread but through `platform`;
//! what a peer can cause in one turn is bounded. The loop that runs is the loop that is tested: `net` drives
//! it with `mio` and threads, the tests drive it with lines in memory and a clock that jumps.

mod address;
mod admin_socket;
mod bridge_alarm;
mod bridge_course;
mod bridge_day;
mod bridge_fetch;
mod bridge_forward;
mod bridge_link;
mod bridge_notes;
mod bridge_peer;
mod bridge_queues;
mod bridge_rest;
mod bridge_retry;
mod bridge_state;
mod bridge_views;
mod bridge_wait;
mod bridges;
mod deadlines;
mod doors;
mod listener;
mod login_throttle;
mod name_lookup;
mod newcomers;
mod operators;
mod peer;
mod peer_id;
mod peers;
mod platform;
mod protocol_sniff;
mod receive;
mod restore;
mod room_awaited;
mod room_log;
mod send;
mod shovel_check;
mod shovels;
mod state;
mod stop;
mod store_driver;
mod stream;
#[cfg(test)]
mod stream_tests;
mod turn;
mod wait_list;
mod worker_job;
mod worker_queue;

use crate::bridge;
use crate::config::bridge::RULES_MAX;
use crate::limits::Limits;
use crate::mem::BytePool;

pub use address::PeerAddress;
pub use doors::{QUEUE_PLACES, VISITORS_MAX};
pub use name_lookup::{FoundAddresses, NameLookup};
pub use peer_id::PeerId;
pub use platform::{AcceptFailure, Interest, ListenerId, Platform, Readiness, Socket, Visitor};
pub use restore::{First, restore};
pub use state::{Engine, Setup};
pub use store_driver::StoreDriver;
pub(crate) use turn::log_full;
pub use worker_job::{CertificateState, WorkerJob, WorkerResult};

/// Bytes that a peer takes here, with sockets of this kind.
pub(crate) const fn peer_bytes<S>() -> usize {
    peer::peer_bytes::<S>()
}

/// Bytes that a bridge takes here beside its connections, with frames of so many bytes.
pub(crate) const fn bridge_bytes<S>(frame_max: usize, window: usize) -> usize {
    let links = 2 * (size_of::<bridge_link::Link>() + CLIENT_BYTES) + 3 * peer_bytes::<S>();
    links
        + size_of::<bridge_state::Bridge>()
        + bridge_state::Scratch::bytes(frame_max)
        + bridge::window_bytes(if window < RULES_MAX { RULES_MAX } else { window })
}

/// What a client says besides messages, and the names that it knows.
const CLIENT_BYTES: usize = 8 << 10;

/// Bytes for each that is in its handshake.
pub(crate) const LOGIN_BYTES: usize = login_throttle::LOGIN_BYTES + doors::PLACE_BYTES;

/// Bytes for those that wait to come in, with sockets of this kind, and for what is known of who failed.
pub(crate) const fn newcomers_bytes<S>() -> usize {
    doors::queue_bytes::<S>() + login_throttle::TABLES_BYTES
}

/// Bytes of a connection over TLS, if all its connections are of that kind.
pub(crate) fn tls_reserved_bytes(connections: usize) -> usize {
    BytePool::bytes(connections.saturating_mul(stream::Buffers::RESERVED_BYTES)).div_ceil(connections)
}

/// Bytes to open and seal records of TLS in.
pub(crate) fn tls_scratch_bytes(limits: &Limits) -> usize {
    stream::Buffers::scratch_bytes(limits)
}
