//! BRIDGES: what moves messages between this broker and others, as a part of its own.
//!
//! ```text
//! engine ── Bridges::handle: something happened to a link ─────────┐
//!        ── Bridges::poll: once in every turn ─────────────────────┤→ all is done with what is shared
//!        ── Bridges::deadline, is_ready: when to poll again        ┘
//! ```
//!
//! | file | what it holds |
//! |------|---------------|
//! | `own_connections` | what is done at the broker here, by connections of their own |
//! | `state` | what is known of bridges and of their links |
//! | `course` | how a rule goes on: waiting, or trying with one message |
//! | `links` | when links are tried, and what becomes of those that end |
//! | `registry` | all of them: what the engine asks |
//! | `contact` | a link while it has a socket, and what each rule holds over it |
//! | `task`, `traffic` | what is done with a contact: time, lanes; reading and writing |
//! | `forward`, `fetch` | messages there, and from there |
//! | `message` | what is shared: room for one message |
//! | `queues` | the queues here, made before the first link is up |
//! | `demand` | the bytes of a day; links that are there only on demand |
//! | `retry` | what was set aside goes back to where it was on its way to |
//! | `notes` | what outlives a restart |
//! | `views` | what an operator is told, and does |
//! | `shovels` | bridges that runtime parameters define, and their end |
//!
//! A bridge has a link for each direction, for what is fetched may have to wait for room here and what is
//! forwarded must not; over a link each rule has a channel there and a window of its own.
//!
//! Always true: what a bridge does it does as a client, of the broker here and of the one there; one bridge's
//! trouble is no other's, and one rule's no other rule's; nothing of it stands in the engine's other files but
//! the calls of what is public here, and [`Needs`](super::peer::Needs), by which a link says what it waits for.

mod contact;
mod course;
mod demand;
mod fetch;
mod forward;
mod links;
mod message;
mod notes;
mod own_connections;
mod queues;
mod registry;
mod retry;
mod shovels;
mod state;
mod task;
mod traffic;
mod views;

pub(super) use registry::Bridges;
pub use registry::bridge_bytes;
pub(super) use shovels::check;
pub(super) use task::Call;
pub(super) use views::ShownBridges;
