//! Leveret, a small RabbitMQ for the edge.
//!
//! The `leveret` program is a broker for AMQP 0-9-1 whose memory never exceeds a configured limit. The same binary
//! contains the command-line tools: `leveret ctl` (also installed as `leveretctl`), `check`, `inspect` and `restore`.
//!
//! # Packages
//!
//! Each folder below `src/` is a package named `leveret-FOLDER`. A package depends only on packages above it in this
//! table; its tests may use others.
//!
//! | folder       | content                                                                                     |
//! |--------------|---------------------------------------------------------------------------------------------|
//! | `version`    | the version of a build, from Git                                                            |
//! | `core`       | limits, memory pools, errors, time and other types that several packages share              |
//! | `amqp`       | AMQP 0-9-1 bytes: frames, methods, properties, field tables                                 |
//! | `mqtt`       | MQTT 3.1, 3.1.1 and 5 bytes                                                                 |
//! | `json`       | bounded reading of JSON                                                                     |
//! | `storage`    | pending writes; the append log on disk: commits, compaction, recovery, inspection           |
//! | `routing`    | exchanges, bindings; which queues get a message                                             |
//! | `queues`     | the messages in queues: deliveries, limits, expiry, eviction from memory and reading back   |
//! | `broker`     | clients, publishing, delivering, settling, users, policies; deterministic, without I/O      |
//! | `connection` | the protocol state of one client, AMQP or MQTT, without its socket                          |
//! | `config`     | the configuration file, board profiles, command-line flags                                  |
//! | `tls`        | TLS handshakes, records and certificates, without a socket                                  |
//! | `bridge`     | the client side of a bridge to an upstream broker, without a socket                         |
//! | `management` | the management API, metrics, the control socket, the web page                               |
//! | `server`     | the event loop: connections, timers, budgets, jobs; generic over the platform               |
//! | `daemon`     | the platform: sockets, the clock, threads, signals, systemd                                 |
//! | `cli`        | the command line: arguments, `ctl`, `check`, `inspect`, `restore`                    |
//! | `bench`      | `leveret-bench`, which measures any AMQP 0-9-1 broker                                       |
//!
//! # Invariants
//!
//! - Data flows one way: bytes, command, broker, pending commit, event, bytes. A package calls a package that depends on
//!   it only through the traits that `tests/component/layers` names.
//! - One thread changes the broker's state, so the state needs no locks. Helper threads write and read the disk, hash
//!   passwords, run TLS handshakes, look up names and write log lines. They hold no broker state.
//! - The packages above `daemon` in the table neither read a clock nor open a socket: time and bytes are handed to
//!   them. The simulator therefore runs the real event loop. `tls` is the exception: it compares certificates with the
//!   clock.
//! - Everything that clients can make grow is in a pool that is sized at start (`limits` in `core` adds the pools up).
//!   Publishing, routing, delivering and acknowledging over plain TCP do not allocate.
//! - A client's mistake is an error with a reply code and a text. A mistake of Leveret is an assertion.
//!
//! # How a message passes
//!
//! Every step runs in `Engine::turn` of `server`, except `Write::run`, which runs in a helper thread.
//!
//! ```text
//! publish:  Engine::read → Shared::read_client → Shared::handle → Connection::next → Broker::apply → Broker::publish
//!           → Topology::route → Queues::check_capacity → Queues::push → PendingWrites::append
//!
//! confirm:  Connection::answer → CommitWriter::next_write → Log::next_commit ~ Write::run (helper thread)
//!           ~ StorageDriver::take_write → Log::commit_done → PendingWrites::stored → Engine::note_durable
//!           → Connection::note_durable → Connection::fill
//!
//! delivery: Broker::deliver → Queues::first_deliverable → Queues::take_first → Clients::next_delivery
//!           → Clients::put_into_outbox → Engine::write → Shared::write_client → Connection::fill → Stream::write
//!           → Broker::written
//! ```
//!
//! A durable message is appended to the pending writes, by reference, before it enters a queue. At the end of a turn
//! the storage gathers them into a commit, and a helper thread writes and syncs it. Confirms and replies that depend on
//! the commit are sent after that. The disk is the only asynchronous boundary. A message that is consumed and
//! acknowledged before its commit is made leaves the pending writes again. When memory is short, queues evict messages
//! that the log has, and read them back ahead of their delivery.
//!
//! A body is copied once in (input buffer to message pool) and once out (message pool to output buffer), whatever the
//! number of queues. Output that a socket does not take is kept in a bounded buffer of its connection, and nothing
//! more is rendered for that connection before it has left.
//!
//! # Decisions that may surprise
//!
//! - A stored message is delivered only after the log records that it may have been delivered. The flag `redelivered`
//!   therefore never says "no" wrongly, not even after a power cut. In steady traffic the message's own commit records
//!   it. A backlog costs one record per 256 messages (1,024 if a bridge consumes the queue), written ahead of need.
//! - One delivery record accompanies a message from the queue to its acknowledgement, so a requeue needs no memory.
//!   Half of all records may serve requeued messages. Beyond that, a message goes back into its queue in the order of
//!   arrival.
//! - Direct reply-to is a hidden exclusive queue per consumer, named by a random token. Replies obey every rule and
//!   limit that queues obey.
//! - While messages of a closed channel return to their queues, these queues pause for a few turns.

use std::process::ExitCode;

fn main() -> ExitCode {
    leveret_cli::args::main(leveret_version::build_version!())
}
