//! Quota: what one connection, one user and one virtual host may take of what all of them share.
//!
//! Why it exists: a cap alone protects the board, not the neighbours. A client that declares until it is
//! refused would leave nothing for anybody else; a connection's share does not limit a program that opens
//! four; and things that it declared, or left in durable queues, are still there when its connections are
//! gone.
//!
//! | file | what |
//! |---|---|
//! | `connections`, `shares` | what each connection holds, and what it leaves to others |
//! | `declared` | queues, exchanges, bindings, names and nodes, which outlive connections |
//! | `messages` | deliveries that are not settled, open transactions, the memory of both |
//! | `tenants` | what each virtual host and each user holds, and the divisions of the pools among them |
//! | `disk` | what the messages of each virtual host take of the disk |
//! | `state` | all of it, and who comes and goes |
//! | `held`, `refused` | the values; how who has its share is told |
//!
//! The memory of messages that wait is shared out where it is (`mem::messages`), as are the entries of queues
//! (`mem::fifo`); who has which part of them is decided here.
//!
//! Always true: what is taken is given back as the same thing, by the same connection, user and virtual host, so that
//! everything is 0 when everything was drained and closed. Whoever asks says how much room the pool has; what a
//! connection, a user and a virtual host have of it is known here alone.

mod connections;
mod declared;
mod disk;
mod held;
mod messages;
mod refused;
mod shares;
mod state;
mod tenants;
#[cfg(test)]
mod tests;

pub(super) use declared::Room;
pub(super) use disk::LogShares;
pub(super) use held::{Declared, Declarer, Pool, owner_of};
pub(super) use state::Quota;
