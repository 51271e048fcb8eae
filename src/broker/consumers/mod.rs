//! Connections, channels and consumers, and which consumer gets the next message of a queue.
//!
//! A message goes to the consumer whose turn it is, if its prefetch, its socket and the share of its
//! connection allow it. Turns do not depend on the messages.
//!
//! | file | content |
//! |---|---|
//! | `state` | all connections, channels and consumers, and their records |
//! | `credit` | which consumers can take another message; the consumers of one queue in the order of their turns |
//! | `outbox` | deliveries on their way to a socket, and deliveries that their channel has not settled |
//! | `lifecycle` | starting and ending consumers, channels and connections; the change of the single active consumer |
//!
//! # Invariants
//! - A consumer that can take a message is on its queue's list of eligible consumers. A consumer that could
//!   if its connection took more is on the connection's list. All others are on neither.
//! - A record is freed only when nothing refers to it any more.

mod credit;
mod lifecycle;
mod outbox;
mod state;
#[cfg(test)]
mod tests;

pub(super) use credit::QueueConsumers;
pub(super) use lifecycle::NewConsumer;
pub(super) use state::{
    Channel, ChannelState, Connection, Consumer, ConsumerState, FullQueue, Mode, Transaction,
};
pub(super) use state::{Consumers, Fill};
