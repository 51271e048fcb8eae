//! Consumers: who gets the next message of a queue; connections and channels.
//!
//! Why it exists: a message goes to the consumer whose turn it is, if its prefetch, its socket and the share
//! of its connection allow it; turns do not depend on the messages.
//!
//! | file | what |
//! |---|---|
//! | `state`, `records` | all connections, channels and consumers; the records |
//! | `audience` | the consumers of one queue, in the order of their turns |
//! | `credit` | who may have another message: prefetch, room in the output, the share of deliveries |
//! | `outbox` | deliveries on their way to a socket, and those that their channel has not settled; each takes its consumer's credit and gives it back |
//! | `lives` | consumers, channels and connections come and go; the next single active consumer takes over |
//!
//! Always true: a consumer that can take a message is on its queue's list of eligible ones, a consumer that
//! could if its connection took more is on the connection's list, and all others are on neither; a record is
//! freed only when nothing refers to it any more.

mod credit;
mod lives;
mod outbox;
mod state;
#[cfg(test)]
mod tests;

pub(super) use credit::QueueConsumers;
pub(super) use lives::NewConsumer;
pub(super) use state::{Channel, Connection, Consumer, ConsumerState, FullQueue, Mode, Transaction};
pub(super) use state::{Consumers, Fill};
