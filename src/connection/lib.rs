//! The protocol state of one AMQP client: the server's side of a connection, without its socket.
//!
//! Bytes, time and answers of the broker are passed in; `Command`s and bytes come out. A test can therefore
//! drive a connection in memory, byte by byte, and a day passes in a millisecond. No clock and no socket is used.
//!
//! | file         | content                                                                                   |
//! |--------------|-------------------------------------------------------------------------------------------|
//! | `connection` | the connection's record, the pools and settings that all connections share                |
//! | `handshake`  | protocol header, login, negotiation, connection.open; the client properties that are kept |
//! | `input`      | the frames of an open connection; the fast path; faulty frames; closing                   |
//! | `methods`    | methods on channels become commands                                                       |
//! | `publish`    | method, header and body become one message                                                |
//! | `replies`    | the broker's answers become methods, and wait until they may be written                   |
//! | `channel`    | the records of all channels; publisher confirms of a channel                              |
//! | `output`     | which replies, confirms and deliveries are written, and in which order                    |
//! | `deliveries` | the frames of one delivery, from any byte on                                              |
//! | `timers`     | heartbeats and all other deadlines                                                        |
//! | `erlang`     | bytes in error texts, in Erlang's notation as RabbitMQ shows them                         |
//!
//! The server uses a connection like this, once per turn:
//!
//! ```text
//!   loop { next() ─ Command → the broker ─ Outcome → answer()
//!                 ─ NeedMore, Suspended, Finished → done }
//!   fill() → the socket; the caller keeps what the socket does not take
//! ```
//!
//! # Invariants
//! - What a client sends can end its channel or its connection and nothing else.
//! - A command is begun only if its answer fits: each connection has a fixed capacity for replies, of which the
//!   last part is reserved for a close. Otherwise input stops.
//! - A reply never stands between the frames of a content on its own channel, and follows the deliveries that it
//!   must follow. After channel.close nothing more is written on that channel.
//! - Bytes written by `fill` count as sent.
//! - Nothing here allocates once a connection exists.

#![warn(clippy::unwrap_used)]
#![allow(
    clippy::result_large_err,
    clippy::large_enum_variant,
    reason = "a fault carries its text, for nothing may be allocated for it; it ends something, so it is rare"
)]

mod channel;
mod connection;
mod deliveries;
mod erlang;
mod handshake;
mod input;
mod methods;
mod output;
mod publish;
mod replies;
mod timers;

pub use connection::{Caller, Connection, Negotiated, Peer, Stage};
pub use connection::{Context, Names, Pools};
pub use connection::{Identity, Settings};
pub use input::{InputStep, Suspension};
pub use output::Filled;
pub use publish::message_flags;
pub use timers::Timeout;
