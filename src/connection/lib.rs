//! OWNS ONE PEER: the server's side of one AMQP connection, without a socket, a clock or a broker.
//!
//! Bytes, time and answers are handed in; [`Command`]s and bytes come out. So a connection can be driven in
//! memory, one byte at a time, a day in a millisecond, and the bridge can hold the other end of one.
//!
//! Records and words first, then what is done with them, each file using types and functions of those above
//! it only (methods of the connection call each other across files):
//!
//! | file           | what it is for |
//! |----------------|----------------|
//! | `settings`     | what every connection is told and held to |
//! | `erlang`       | octets in error texts, as RabbitMQ shows them |
//! | `frame_faults` | what is wrong with a frame or a method |
//! | `deliveries`   | one delivery's frames, from any byte of them on |
//! | `confirms`     | publisher confirms of a channel, as numbers |
//! | `content`      | how far a message has come |
//! | `channel`      | the records of all channels |
//! | `client_properties` | what a client says of itself, as far as it is kept |
//! | `pending`      | the command that the broker is being asked |
//! | `step`         | what input led to |
//! | `context`      | what a session is lent for a call |
//! | `connection`   | the record of one connection |
//! | `timers`       | heartbeats and everything else that has its time |
//! | `replies`      | the broker's answers into methods, kept until they may be written |
//! | `publish`      | publishes: method, header and body into one message |
//! | `methods`      | methods on channels into commands |
//! | `handshake`    | protocol header, login, negotiation, connection.open |
//! | `fast_path`    | publishes and acknowledgements that are all there: the usual case |
//! | `input`        | the frames of an open connection, and who handles each; connections that close |
//! | `output`       | which replies, confirms and deliveries are sent, and in which order |
//!
//! How it is used, once per turn:
//!
//! ```text
//!   loop { next() ─ Command → the broker ─ Outcome → answer()
//!                 ─ NeedMore, Suspended, Finished → done }
//!   fill() → the socket; what it does not take is kept by the caller
//! ```
//!
//! Always true:
//! - What a peer sends can end its channel or its connection and nothing else.
//! - Nothing is begun whose answer might not fit: replies have a fixed room per connection, the last of it
//!   for a close. Input stands still instead.
//! - A reply never stands between the frames of a content on its own channel, and follows the deliveries it
//!   must follow; after channel.close nothing more is written on that channel.
//! - What was written by `fill` counts as sent.
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

// The rooms below, by the names that everybody has for them.

pub use connection::{Caller, Connection, Negotiated, Peer, Stage};
pub use connection::{Context, Names, Pools};
pub use connection::{Identity, Settings};
pub use input::{Step, Suspension};
pub use output::Filled;
pub use publish::message_flags;
pub use timers::Timeout;
