//! Leveret: the small RabbitMQ for the edge.
//!
//! One binary that speaks AMQP 0-9-1 to the programs on a device and stays inside a memory cap that is
//! really a cap; beside it lies `leveret-bench`, which measures it and others. This page is the map; every
//! file opens with why it exists and what always holds in it.
//!
//! # Rooms
//!
//! Dependencies point one way, down this list; `tests/parts/layers` holds everybody to it.
//!
//! | room | owns | sees besides the ground |
//! |------|------|------|
//! | [`limits`], [`error`], [`time`], [`command`], [`mem`] | the ground floor: caps, faults, time, words, bytes | nothing |
//! | [`log_limiter`] | the ground floor as well: how many lines peers may cause in the log | nothing |
//! | [`journal`] | the ground floor as well: what is to be written down | nothing |
//! | [`flight`] | the ground floor as well: what the last events are kept as | nothing |
//! | [`password`] | the ground floor as well: what a password is kept as | nothing |
//! | [`token_bucket`] | the ground floor as well: how much of something may be had over a time | nothing |
//! | [`small_file`] | the ground floor as well: files that are read and written whole | nothing |
//! | [`fields`] | the ground floor as well: JSON that others send | nothing |
//! | [`wire`] | AMQP bytes: borrowed views in, legal enums out | nothing |
//! | [`session`] | one peer, without its socket | `wire` |
//! | [`broker`] | meaning: exchanges, queues, consumers, settlements; deterministic, no I/O | `wire::field`, `wire::props`, `wire::Writer`, `wire::Full` |
//! | [`store`] | the disk: the append log of what must survive a power cut | nothing |
//! | [`restore`] | what a start makes of what the store holds | `broker`, `store` |
//! | [`config`] | what the operator said | nothing |
//! | [`requests`] | what an operator can ask of a broker: one table, and what answers | `broker`, `wire::field`, `wire::props`, `wire::Writer`, `wire::Full` |
//! | [`tls`] | handshakes, records and certificates, without a socket | `config` |
//! | [`bridge`] | the client of an upstream broker, without its socket and without ours | `wire`, `config` |
//! | [`tool`] | what the binary does besides serving | everyone |
//! | [`bench`] | the program that measures brokers, of which the binary has nothing | `wire`, `config` |
//! | [`engine`] | the loop without the machine: peers and what they wait for, budgets, deadlines, jobs as values | `wire`, `session`, `broker`, `store`, `restore`, `requests`, `config`, `tls`, `bridge` |
//! | [`host`] | sockets, the clock, threads and signals: the machine that the engine runs on | everyone |
//!
//! The largest room has parts, each a folder that owns what it holds ([`broker`]). The broker asks all of them, one after
//! the other; what they ask of each other while they do what they were asked:
//!
//! ```text
//! quota, deliveries         nobody
//! access, policy,           access
//! parameters, recovery
//! queue                     quota, deliveries
//! topology                  access, quota, queue                       which queues
//! queues                    queue, deliveries, quota                   what goes next
//! consumers                 queues, queue, deliveries, quota           who gets it
//! letters                   topology, queues, queue, policy, quota     what becomes of it
//! views                     all, and changes none
//! ```
//!
//! cargo optimizes and compiles package by package, so the rooms stand in several. What is generic, or says
//! `#[inline]`, is made as the package is that uses it; a test of one room compiles nothing that stands above it, and a
//! call up the stairs does not compile at all:
//!
//! | package | lies in | is made | has |
//! |---------|---------|---------|-----|
//! | `leveret-base` | `src/rooms/base/` | small, its short functions `#[inline]` | the ground floor |
//! | `leveret-wire` | `src/rooms/wire/` | small, its short functions `#[inline]` | `wire` |
//! | `leveret-session` | `src/rooms/session/` | small, its short functions `#[inline]` | `session` |
//! | `leveret-broker` | `src/rooms/broker/` | small, its short functions `#[inline]` | `broker` |
//! | `leveret-store` | `src/rooms/store/` | small | `store` |
//! | `leveret-restore` | `src/rooms/restore/` | small | `restore` |
//! | `leveret-fields` | `src/operator/fields/` | as small as can be | `fields` |
//! | `leveret-config` | `src/operator/config/` | as small as can be | `config` |
//! | `leveret-requests` | `src/operator/requests/` | as small as can be | `requests`, and the page's files in `src/operator/web/` |
//! | `leveret-tls` | `src/operator/tls/` | as small as can be | `tls` |
//! | `leveret-bridge` | `src/operator/bridge/` | as small as can be | `bridge` |
//! | `leveret-tools` | `src/tool/` | as small as can be | `tool` |
//! | `leveret-benchmark` | `src/bench/` | as small as can be | `bench`, for `leveret-bench` |
//! | `leveret-engine` | `src/engine/` | small | `engine` |
//! | `leveret-host` | `src/` | small | `host`, and the others by their names |
//!
//! # Rules
//!
//! - Data flows one way: bytes, command, broker, journal, event, bytes. Nobody calls back up the stairs.
//! - One thread decides, no locks; helpers hold no state of the broker: two wait for the disk, one runs
//!   jobs (hashing passwords, TLS handshakes), one looks names up, one writes the log. No clock and no
//!   socket below [`host`]: time is handed in, and the date, which is shown and tells a bridge its hour.
//!   Only the certificates of [`tls`] are held against a clock, by the thread of the jobs.
//! - Everything that grows with what peers do lives in a pool sized at start ([`limits`] adds them up). On
//!   the way of a message nothing allocates.
//! - A peer's mistake is a [`error::Fault`] that says whose it is and what to do; ours is an assertion.
//!
//! # The life of a message
//!
//! All of it happens in `engine::Engine::turn`, step by step: a publish, its confirm, and a delivery, by the names that
//! are in the code.
//!
//! ```text
//! publish:  Engine::read → Shared::read_amqp → Shared::handle → Connection::next → Broker::apply → Broker::publish
//!           → Topology::route → Queues::reserve → Queues::push → Journal::append
//!
//! confirm:  Connection::answer → Keeper::next_write → Log::next_commit ~ Write::run (on a helper)
//!           ~ StoreDriver::take_write → Log::commit_done → Journal::stored → Engine::note_durable
//!           → Connection::note_durable → Connection::fill
//!
//! delivery: Broker::deliver → Queues::first_to_go → Queues::take_first → Consumers::next_delivery
//!           → Consumers::put_into_outbox → Engine::write → Shared::write_amqp → Connection::fill → Stream::write
//!           → Connection::written → Broker::written
//! ```
//!
//! ```text
//! socket ─read→ input buffer ─→ session::Connection::next ─→ content collected in mem::Messages
//!                                                              │ Command::Publish
//!                                                              ▼
//!                               Broker::publish → Topology::route → Queues::push, or none
//!                                                              │ Outcome::Published → a confirm is due
//!                                                              ▼
//!                               Broker::deliver: queue → delivery record → outbox of the connection
//!                                                              │ Delivery
//!                                                              ▼
//! socket ◄write─ output buffer ◄─ session::Connection::fill ◄─ message bytes, copied once
//!                                                              │ so many sent
//!                                                              ▼
//!                               Broker::sent; the consumer's ack → Command::Settle → the record is freed
//! ```
//!
//! What must survive goes another way besides. The broker appends it to the engine's [`journal::Journal`], by
//! reference, and only what [`journal::Journal::append`] gives back for it gets into a queue; at the end of
//! the turn, when the disk is free and it is time, the store fetches it and a helper writes it:
//!
//! ```text
//! Journal::append ─→ Journal ─Keeper::next_write→ store::Write ~ helper: write, fdatasync ~ WriteDone
//!                       │ batch                                                                     │
//!                       ▼                                                                           ▼
//!          confirms and replies wait for their batch  ◄──── Journal::durable ◄── StoreDriver::take_write
//! ```
//!
//! So the one asynchronous boundary is the disk, and whoever need not wait for it does not. A message that is
//! consumed and acknowledged before its commit is made leaves the journal again. When memory is short, queues
//! give up the messages that the log has (`rooms/broker/queues/spill.rs`), and read them back ahead of delivery
//! (`rooms/broker/queues/page_in.rs`).
//!
//! A body is copied once in (input buffer to slot and blocks) and once out (to the output buffer), whatever
//! the fan-out. What a slow socket does not take is not stored: the delivery stays in the outbox, and the
//! session remembers how many bytes of it are gone.
//!
//! # Where this differs from what one might expect
//!
//! - A message that the log has is delivered only when it is written down that it may have been
//!   (`rooms/broker/queues/head.rs`): so `redelivered` is never wrong in the direction that hurts, over power
//!   cuts too. In steady traffic this costs nothing, for a message's own commit says it; a backlog costs a
//!   mark for each 256 messages, ahead of need.
//! - A delivery record serves a message from the queue until its settlement, moving between lists; so
//!   requeueing never needs memory (`rooms/broker/deliveries/records.rs`). Half of all records may serve what came
//!   back; beyond, it goes back as a mere entry, in the order of its coming, so that records are left for
//!   others.
//! - Direct reply-to is a hidden exclusive queue per consumer, named by an unguessable token, so replies obey
//!   every rule and cap that queues obey.
//! - While messages of a closed channel are on their way back, their queues pause for those few turns,
//!   instead of working out the smallest offset still missing.

#![warn(clippy::unwrap_used)]

pub mod host;

// The rooms below, by the names that everybody has for them.
pub use leveret_base::{
    command, error, flight, journal, limits, log_limiter, mem, password, small_file, time, token_bucket,
};
pub use leveret_bridge as bridge;
pub use leveret_broker as broker;
pub use leveret_config as config;
pub use leveret_engine as engine;
pub use leveret_fields as fields;
pub use leveret_requests as requests;
pub use leveret_restore as restore;
pub use leveret_session as session;
pub use leveret_store as store;
pub use leveret_tls as tls;
pub use leveret_wire as wire;
