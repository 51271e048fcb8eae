//! The event loop of the broker, without the operating system.
//!
//! [`Engine`] owns the connections, their budgets and deadlines, the broker and the storage driver. Everything that
//! it needs from outside (sockets, clock, worker thread) goes through [`Platform`].
//!
//! | file | contents |
//! |------|----------|
//! | `turn` | the steps of one turn of the loop, and its budget of bytes and work |
//! | `state` | `Engine`, which owns all parts of the loop, and the resources that these parts share |
//! | `socket_io` | reading from and writing to AMQP and MQTT connections |
//! | `sessions` | handles the results of calls of a peer's session; closes peers |
//! | `peer` | a peer: its socket, its session, the reasons why it waits; peer ids and addresses |
//! | `lists` | lists of peers to be read, written and closed, and of peers that wait |
//! | `deadlines` | the timer heap |
//! | `system_topics` | the values of `$SYS` topics for MQTT clients |
//! | `stream` | the byte stream of a peer: readiness, TLS, input backlog, unsent output |
//! | `websocket` | WebSocket frames, for MQTT in browsers |
//! | `protocol_sniff` | TLS handshakes, and peers that speak another protocol |
//! | `admission` | listeners and accepted sockets; closes a connection when another one must be admitted |
//! | `lost_clients` | clients that are gone although their messages wait; which publishers are closed when `connections_max` is reached |
//! | `blocked_publishers` | publishers that wait for capacity: their retries, slow message bodies, log lines |
//! | `storage_driver` | passes log entries and commits between broker and storage; replies that wait for the disk |
//! | `worker` | jobs that would block the loop, and their queue |
//! | `password_checks` | logins that wait for the check of their password; limits on failed logins |
//! | `operators` | clients of the control socket and of the management API |
//! | `bridges` | federation and shovels: links to other brokers |
//! | `idle_memory` | decides when unused memory is returned to the system |
//! | `stop` | the shutdown |
//! | `platform` | the traits for sockets, clock and worker thread, which the daemon and the tests implement |
//!
//! These terms have a fixed meaning in this crate:
//!
//! | term | meaning |
//! |------|---------|
//! | turn | one pass of the event loop |
//! | peer | the other end of a connection: an AMQP or MQTT client, an operator client, or the upstream of a bridge |
//! | lost peer | a peer whose input has ended or that takes no output, although its last input may not have been handled |
//! | link | the connection of a bridge to another broker, the upstream, in one direction |
//! | flow | the use of a link by one rule of the bridge: a channel at the upstream, and messages under way |
//! | rest | a link that connects only on demand rests while it is disconnected because it had nothing to do |
//!
//! # Invariants
//! - The loop has one thread and does not block; only the poll of the daemon waits.
//! - Clock, sockets and threads are reached only through [`Platform`].
//! - The work that one peer can cause in a turn is bounded.
//!
//! The package `leveret-daemon` drives the loop with `mio` and threads. Tests drive the same loop with in-memory
//! sockets and a simulated clock.

#![warn(clippy::unwrap_used)]

mod admission;
mod blocked_publishers;
mod bridges;
mod deadlines;
mod idle_memory;
mod lists;
mod lost_clients;
mod operators;
mod password_checks;
mod peer;
mod platform;
mod protocol_sniff;
mod sessions;
mod socket_io;
mod state;
mod stop;
mod storage_driver;
mod stream;
#[cfg(test)]
mod stream_tests;
mod system_topics;
mod turn;
mod websocket;
mod worker;

use leveret_core::limits::Limits;
use leveret_core::mem::BytePool;

pub use admission::WAITING_SOCKETS_MAX;
pub use bridges::BridgeSizes;
pub use peer::PeerAddress;
pub use peer::PeerId;
pub use platform::{AcceptFailure, Accepted, ListenerId, Platform, Readiness, Socket};
pub use platform::{FoundAddresses, NameLookup};
pub use state::{Engine, EngineSetup};
pub use storage_driver::StorageDriver;
pub use storage_driver::log_file_system_full;
pub use worker::{CertificateState, WorkerJob, WorkerResult};

/// Returns the bytes of memory that this package needs per peer, for sockets of type `S`.
pub const fn peer_bytes<S>() -> usize {
    lists::peer_bytes::<S>()
}

/// Bytes per connection that has not logged in, in addition to its [`peer_bytes`].
pub const LOGIN_BYTES: usize = password_checks::LOGIN_BYTES + admission::SLOT_BYTES;

/// Returns the bytes of memory of the list of waiting sockets (of type `S`) and of the tables of failed
/// logins.
pub const fn admission_bytes<S>() -> usize {
    admission::waiting_bytes::<S>() + password_checks::TABLES_BYTES
}

/// Bytes of memory that a connection over WebSocket allocates in addition to its [`peer_bytes`].
pub const WEBSOCKET_BYTES: usize = size_of::<websocket::WebSocket>();

/// Returns the bytes reserved per TLS connection if all `connections` use TLS.
pub fn tls_reserved_bytes(connections: usize) -> usize {
    BytePool::bytes(connections.saturating_mul(stream::Buffers::RESERVED_BYTES)).div_ceil(connections)
}

/// Returns the bytes of the shared buffers in which TLS records are decrypted and encrypted.
pub fn tls_scratch_bytes(limits: &Limits) -> usize {
    stream::Buffers::scratch_bytes(limits)
}
