//! OWNS THE OTHER SIDE OF A BRIDGE: the client of an upstream broker, without its socket and without ours.
//!
//! | file | what it holds |
//! |------|---------------|
//! | `cause` | why a link is not up |
//! | `own_id` | what a message is known by beyond this broker |
//! | `marks` | the headers that a message gets on its way |
//! | `backoff` | when to try again |
//! | `pace` | how fast messages leave |
//! | `day_budget` | how much goes in a day |
//! | `demand` | when a link that rests is to be there again |
//! | `inflow` | what comes in to be forwarded |
//! | `price` | what a link costs, and what for |
//! | `client`, `channel` | the client's side of a connection: from the first octet to confirms and deliveries; a channel for each rule |
//! | `preparation` | what it declares there before messages flow |
//! | `stranger` | upstreams that are none |
//! | `shovelled` | what a shovel's messages get besides |
//! | `event` | what an upstream said |
//! | `flights` | what was sent and is not confirmed |
//! | `writer` | a message as the frames of a publish, from any octet of them on |
//! | `arrivals` | what came and is not acknowledged |
//!
//! Bytes, time and messages are handed in; events and bytes come out. The engine joins a client to a socket
//! on one side and to the broker on the other, where it is a consumer and a publisher like any other:
//!
//! ```text
//! forward:  queue → delivery → Writer ~ upstream ~ confirm → Flights → settled here
//! fetch:    upstream ~ delivery → Content → publish here → durable → Arrivals ~ acknowledged there
//! ```
//!
//! Always true: what an upstream sends can end its link and nothing else; a message is settled on the side
//! that it leaves only when the other side has taken it over; everything here has a fixed size.

#![warn(clippy::unwrap_used)]

mod channel;
mod client;
mod demand;
mod headers;
mod in_flight;
mod pacing;
mod writer;

// The rooms below, by the names that everybody has for them.

pub use channel::Preparation;
pub use client::Cause;
pub use client::Event;
pub use client::not_tls;
pub use client::{Client, Credentials, Stage, Verdict};
pub use demand::Demand;
pub use headers::shovelled;
pub use headers::{Marks, hops_of, marked};
pub use headers::{Origin, OwnId};
pub use in_flight::Arrivals;
pub use in_flight::Inflow;
pub use in_flight::{Flight, Flights};
pub use pacing::Backoff;
pub use pacing::DayBudget;
pub use pacing::Pace;
pub use pacing::Price;
pub use writer::{BODY_FRAME_BYTES, left_of_frame, publish_len, write_head, write_publish};

/// Bytes that the messages under way of one rule take at most.
pub const fn window_bytes(window: usize) -> usize {
    window * (size_of::<Flight>() + size_of::<in_flight::Arrival>())
}
