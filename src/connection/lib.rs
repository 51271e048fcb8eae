//! The protocol state of one client, AMQP or MQTT: the server's side of a connection, without its socket.
//!
//! The package does no input or output itself. Its caller passes in received bytes, the time and the outcomes
//! of commands, and gets `Command`s for the broker and bytes for the client. So a test can run a connection
//! in memory, byte by byte, and simulate a day in a millisecond.
//!
//! A *content* is what AMQP calls the header and body frames of a message. A *delivery* is a message that the broker
//! sends with `basic.deliver`, `basic.get-ok` or `basic.return`. The *outbox* of a connection has its deliveries that
//! are not sent yet. Here a *share* is the part of the message memory that a connection's publishes may use. In
//! `leveret-broker` it is the part of a pool that a queue or a connection may use.
//!
//! All files except `client` and `mqtt` are about AMQP.
//!
//! | file         | content                                                                                   |
//! |--------------|-------------------------------------------------------------------------------------------|
//! | `client`     | the connection of a client, whatever its protocol: what the event loop calls               |
//! | `mqtt`       | the connection of an MQTT client                                                           |
//! | `connection` | the state of a connection; the pools and settings that all connections share              |
//! | `handshake`  | protocol header, login, negotiation, connection.open; the stored client properties        |
//! | `input`      | the frames of an open connection; the fast path; faulty frames; closing                   |
//! | `methods`    | methods on channels become commands                                                       |
//! | `publish`    | method, header and body become one message                                                |
//! | `replies`    | outcomes of commands become reply methods, which are stored until they may be written     |
//! | `channel`    | the state of all channels; the publisher confirms of a channel                            |
//! | `output`     | which replies, confirms and deliveries are written, and in which order                    |
//! | `deliveries` | the frames of one delivery, from any byte on                                              |
//! | `timeouts`   | heartbeats, the handshake timeout, and all other deadlines                                |
//! | `erlang`     | formats bytes for error texts in Erlang's notation, as RabbitMQ does                      |
//!
//! The server uses a connection like this, once per turn:
//!
//! ```text
//!   loop { next() ─ Command → the broker ─ Answer → answer()
//!                 ─ NeedMore, Suspended, Finished → done }
//!   fill() → the socket; the caller stores bytes that the socket does not accept
//! ```
//!
//! # Invariants
//! - An invalid frame or method of a client closes its channel or its connection, and affects nothing else.
//! - Each connection has a fixed capacity for replies. A part of it is reserved for channel.close and
//!   connection.close. A command is passed to the broker only if there is capacity for its reply; otherwise
//!   input is suspended.
//! - A reply is not written between the frames of a content on the same channel, nor before deliveries that must precede
//!   it. After channel.close nothing more is written on that channel.
//! - Bytes written by `fill` count as sent.
//! - After the handshake, no function allocates memory.

#![warn(clippy::unwrap_used)]
#![allow(
    clippy::result_large_err,
    clippy::large_enum_variant,
    reason = "a fault contains its text, because it must not allocate; faults are rare"
)]

mod channel;
mod client;
mod connection;
mod deliveries;
mod erlang;
mod handshake;
mod input;
mod methods;
mod mqtt;
mod output;
mod publish;
mod replies;
mod timeouts;

pub use client::{Client, UnhandledMessages};
pub use connection::{Caller, Connection, Negotiated, Peer, Stage};
pub use connection::{Context, Names, Pools};
pub use connection::{Identity, Settings};
pub use input::{InputStep, Suspension};
pub use mqtt::{MQTT_HEAP_BYTES, MqttConnection, MqttSettings};
pub use output::Filled;
pub use publish::message_flags;
pub use timeouts::Timeout;
