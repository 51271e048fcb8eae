//! The client side of a bridge to an upstream broker, without its socket.
//!
//! Bytes, time and messages are passed in; events and bytes come out. The server connects a client to a socket on
//! one side and to this broker on the other. At this broker a bridge is a consumer and a publisher like any other
//! client.
//!
//! ```text
//! forward:  queue → delivery → writer ~ upstream ~ confirm → InFlight → acknowledged here
//! fetch:    upstream ~ delivery → publish here → durable → Arrivals ~ acknowledged upstream
//! ```
//!
//! | file        | content                                                                                     |
//! |-------------|---------------------------------------------------------------------------------------------|
//! | `client`    | one AMQP connection to an upstream: opening, events, causes of failure                      |
//! | `channel`   | one channel of it, for one rule: its stages, and the declarations made before messages flow |
//! | `in_flight` | messages that were sent and not confirmed, or received and not acknowledged                 |
//! | `headers`   | headers that a message gets on its way: hops, origin, shovel headers                        |
//! | `pacing`    | retry delays, rate limit, byte budget of a day, traffic per direction                       |
//! | `demand`    | when an on-demand link is opened                                                            |
//! | `writer`    | the frames of a publish, from any byte of the message on                                    |
//!
//! # Invariants
//! - What an upstream sends can end its link and nothing else.
//! - A message is acknowledged on one side only after the other side has taken it over.
//! - Everything here has a fixed size.

#![warn(clippy::unwrap_used)]

mod channel;
mod client;
mod demand;
mod headers;
mod in_flight;
mod pacing;
mod writer;

pub use channel::Preparation;
pub use client::Cause;
pub use client::Event;
pub use client::not_tls;
pub use client::{Client, Credentials, Stage, Verdict};
pub use demand::Demand;
pub use headers::shovelled;
pub use headers::{BridgeHeaders, hops_of, marked};
pub use headers::{Origin, OwnId};
pub use in_flight::Arrivals;
pub use in_flight::Inflow;
pub use in_flight::{InFlight, InFlightMessage};
pub use pacing::Backoff;
pub use pacing::DayBudget;
pub use pacing::LinkTraffic;
pub use pacing::RateLimit;
pub use writer::{BODY_FRAME_BYTES, left_of_frame, publish_len, write_head, write_publish};

/// Returns the largest memory that the messages in flight of one rule take, in bytes.
pub const fn window_bytes(window: usize) -> usize {
    window * (size_of::<InFlightMessage>() + size_of::<in_flight::Arrival>())
}
