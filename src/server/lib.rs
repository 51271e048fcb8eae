//! THE LOOP WITHOUT THE MACHINE: peers and what they wait for, budgets, shares, deadlines, retries, and the
//! jobs of helpers as values.
//!
//! | file | what it holds |
//! |------|---------------|
//! | `platform` | what is asked of the world outside, and nothing else is |
//! | `turn` | the one turn, in its fixed order |
//! | `state` | everything that runs, reserved at once |
//! | `shared`, `supplies` | what of it every part is lent; what sessions are lent of that |
//! | `dispatch` | which part it is that reads, writes, closes |
//! | `receive`, `send` | the way in and the way out of a connection that speaks AMQP |
//! | `sessions` | what follows when something was done with a peer; how it ends |
//! | `disk` | what the disk did, what it is handed, and who waited for it |
//! | `stop` | the end of it all |
//! | `peer` | a peer of whatever kind: socket, session, and what it waits for |
//! | `peer_id` | its name in all lists |
//! | `peers` | all of them, by their places |
//! | `lists`, `wait_list` | who is to be read, written to, closed, and who waits for what; one such list |
//! | `address` | who is at the other end |
//! | `stream` | the octets of a peer: readiness, TLS, input that has to wait |
//! | `protocol_sniff` | handshakes of TLS, and peers that speak something else |
//! | `admission` | listeners; which accepted connection gets a place, and which one loses its place to it |
//! | `worker_job`, `worker_queue` | what would hold the loop up, and who waits for it |
//! | `work_units` | how much a turn may read, and how much work it may cause |
//! | `idle_memory` | when memory that lies idle goes back to the system |
//! | `room`, `room_awaited` | publishers that wait for room: who tries next, what the log tells; what is known of them |
//! | `password_checks` | logins that wait for the check of their password; the limit on wrong passwords |
//! | `store_driver` | what passes between broker and store |
//! | `operators`, `operator_client` | the operator's clients: another kind of peer; their records |
//! | `bridges` | what moves messages between this broker and others: a part of its own |
//! | `name_lookup` | names that are looked up |
//! | `deadlines` | who wants to be called when |
//!
//! Always true: one thread; nothing here blocks; no clock, no socket and no thread but through `platform`;
//! what a peer can cause in one turn is bounded. The loop that runs is the loop that is tested: `host` drives
//! it with `mio` and threads, the tests drive it with lines in memory and a clock that jumps.

#![warn(clippy::unwrap_used)]

mod admission;
mod blocked_publishers;
mod bridges;
mod deadlines;
mod idle_memory;
mod lists;
mod operators;
mod password_checks;
mod peer;
mod platform;
mod protocol_sniff;
mod receive;
mod send;
mod sessions;
mod state;
mod stop;
mod storage_driver;
mod stream;
#[cfg(test)]
mod stream_tests;
mod turn;
mod worker;

// The rooms below, by the names that everybody has for them.

use leveret_core::limits::Limits;
use leveret_core::mem::BytePool;

pub use admission::WAITING_MAX;
pub use bridges::bridge_bytes;
pub use operators::sampled_places;
pub use peer::PeerAddress;
pub use peer::PeerId;
pub use platform::{AcceptFailure, Accepted, ListenerId, Platform, Readiness, Socket};
pub use platform::{FoundAddresses, NameLookup};
pub use state::{Engine, Setup};
pub use storage_driver::StoreDriver;
pub use storage_driver::log_full;
pub use worker::{CertificateState, WorkerJob, WorkerResult};

/// Bytes that a peer takes here, with sockets of this kind.
pub const fn peer_bytes<S>() -> usize {
    lists::peer_bytes::<S>()
}

/// Bytes of each connection that has not logged in, besides its record.
pub const LOGIN_BYTES: usize = password_checks::LOGIN_BYTES + admission::PLACE_BYTES;

/// Bytes of the accepted connections that wait, with sockets of this kind, and of the tables of wrong passwords.
pub const fn admission_bytes<S>() -> usize {
    admission::waiting_bytes::<S>() + password_checks::TABLES_BYTES
}

/// Bytes of a connection over TLS, if all its connections are of that kind.
pub fn tls_reserved_bytes(connections: usize) -> usize {
    BytePool::bytes(connections.saturating_mul(stream::Buffers::RESERVED_BYTES)).div_ceil(connections)
}

/// Bytes to open and seal records of TLS in.
pub fn tls_scratch_bytes(limits: &Limits) -> usize {
    stream::Buffers::scratch_bytes(limits)
}
