//! The client side of a bridge to an upstream broker, without its socket.
//!
//! The package does no input or output itself: its caller passes in received bytes, the time and messages, and gets
//! events and bytes to be sent. `leveret-server` connects each [`Client`] to a socket and to this broker, where a
//! bridge is a consumer and a publisher like any other client.
//!
//! A *rule* is one entry of a bridge's configuration: it moves messages from one queue or exchange to another. A *link*
//! is the connection that all rules of one direction share. *Forward* means to the upstream, *fetch* from the upstream.
//!
//! ```text
//! forward:  queue → delivery → publish, InFlight ~ upstream ~ confirm → acknowledged here
//! fetch:    upstream ~ delivery → publish here, Arrivals → durable here ~ acknowledged upstream
//! ```
//!
//! | file        | content                                                                                     |
//! |-------------|---------------------------------------------------------------------------------------------|
//! | `client`    | one AMQP connection to an upstream: opening, events                                         |
//! | `channel`   | one channel of the connection, for one rule: requests and their answers, arriving messages  |
//! | `cause`     | why a link or rule does not work                                                            |
//! | `in_flight` | messages sent to an upstream and not confirmed, or received from it and not acknowledged    |
//! | `headers`   | headers that a bridge adds to a message: hop count, identifier, shovel headers              |
//! | `pacing`    | rate limit of a bridge, delays between connection attempts                                  |
//! | `day_budget`| byte budget of a day, traffic counters of a link                                            |
//! | `demand`    | the reasons for which an on-demand link is opened                                           |
//! | `publish`   | the frames of `basic.publish`, written from any byte on                                     |
//!
//! # Invariants
//! - Invalid input of an upstream ends the link to it and affects nothing else.
//! - A forwarded message is acknowledged here only after the upstream has confirmed it. A fetched message is
//!   acknowledged at the upstream only after it is durable here.
//! - The memory of a link has a fixed upper limit.

#![warn(clippy::unwrap_used)]

mod cause;
mod channel;
mod client;
mod day_budget;
mod demand;
mod headers;
mod in_flight;
mod pacing;
mod publish;

pub use cause::Cause;
pub use channel::Request;
pub use client::Event;
pub use client::not_tls;
pub use client::{Client, Credentials, Stage};
pub use day_budget::{DayBudget, LinkTraffic};
pub use demand::Demand;
pub use headers::{BridgeHeaders, hops_of, marked, own_id_of};
pub use headers::{Origin, OwnId};
pub use headers::{Transfer, shovelled};
pub use in_flight::Arrivals;
pub use in_flight::Inflow;
pub use in_flight::{InFlight, InFlightMessage};
pub use pacing::{Backoff, RateLimit};
pub use publish::{PublishFrames, PublishHead, write_head};

/// Returns the bytes of memory for `window` messages in flight of a forwarding rule and as many of a fetching rule.
pub const fn window_bytes(window: usize) -> usize {
    window * (size_of::<InFlightMessage>() + size_of::<in_flight::Arrival>())
}
