//! Consumers: who gets the next message of a queue, and all that comes and goes with peers.
//!
//! Why it exists: a message that may go is his whose turn it is, if his prefetch, his socket and the share of his
//! connection allow it; nobody else's turn depends on what a message is.
//!
//! | file | what |
//! |---|---|
//! | `state`, `records` | all connections, channels and consumers; the records |
//! | `audience` | the consumers of one queue, in the order of their turns |
//! | `credit` | who may have another message: prefetch, room in the output, the share of deliveries |
//! | `outbox` | deliveries on their way to a socket, and those that their channel has not settled |
//! | `lives` | consumers, channels and connections come and go |
//!
//! Always true: a consumer that can take a message is on its queue's list of eligible ones, one that could if its
//! connection took more is on the connection's list, and all others are on neither; a record is freed only when nothing
//! refers to it any more.

mod audience;
mod credit;
mod lives;
mod outbox;
mod records;
mod state;
#[cfg(test)]
mod tests;

pub(super) use audience::Audience;
pub(super) use lives::NewConsumer;
pub(super) use records::{Channel, Connection, Consumer, ConsumerState, FullQueue, Mode, Transaction};
pub(super) use state::{Consumers, Fill};
