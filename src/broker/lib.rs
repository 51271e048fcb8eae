//! The broker: clients, publishing, delivering, settling, users and policies; deterministic, without I/O.
//!
//! `leveret-routing` has the exchanges and bindings, and `leveret-queues` the queues with their messages.
//!
//! Each of these modules owns its state, does not depend on [`Broker`] and has its own tests:
//!
//! | module | owns | purpose |
//! |---|---|---|
//! | `access` | users, virtual hosts, permissions | checks logins and permissions |
//! | `policy` | policies | which policies apply to a queue or an exchange |
//! | `parameters` | runtime parameters | settings of components, for example shovels |
//! | `clients` | connections, channels, consumers; credit, outboxes | which consumer gets the next message |
//! | `republish` | progress of a republish, parked messages | publishes dead letters, due delayed messages, firehose copies |
//! | `orphans` | definitions without capacity at start | checks whether a name may be declared |
//! | `views` | nothing | rows of tables for operators; the reasons why publishers wait |
//!
//! [`Broker`] has the state of each module and calls the modules in the right order. The code for this is in
//! the following modules. They call each other's methods of [`Broker`] in both directions; `tests/component/layers` bounds
//! how many files import from each other in a circle.
//!
//! | module | content |
//! |---|---|
//! | `state` | the broker's state and its creation; functions that the modules below share; sizes of records |
//! | `definitions` | declares and deletes exchanges, queues and bindings; applies policies |
//! | `retained` | the retained messages of MQTT |
//! | `sessions` | MQTT sessions: their subscriptions and deliveries |
//! | `wills` | the will messages of MQTT clients |
//! | `settle`, `deliver` | settles deliveries and clears closed or deleted objects; delivers messages |
//! | `publish` | publishes messages, one by one or with `tx.commit` |
//! | `apply` | applies commands: changes the state and returns the answer |
//! | `own_connections` | the connections of bridges and of the management API |
//! | `move_messages` | moves or copies selected messages of a queue for an operator; shows routes |
//! | `operator` | changes by an operator |
//! | `recovery` | restores everything from the log at start |
//!
//! These modules define types that the others share:
//!
//! | file | content |
//! |---|---|
//! | `arguments` | the checks of the arguments of `queue.declare` |
//! | `job` | work that takes more than one step |
//! | `objects` | iterators over records by place, which may pause after each |
//! | `operator_fault` | why a change by an operator is refused; the checks that all changes share |
//! | `counters` | counters since the start |
//! | `restored` | the result of restoring a definition at start |
//!
//! [`Broker::apply`] carries out a command: it changes the state and returns the reply at once. At the end of each turn
//! of the event loop the caller calls, in this order, [`Broker::run_jobs`], [`Broker::deliver`], and for each
//! connection [`Broker::outbox`] and [`Broker::written`] (for a bridge [`Broker::sent`]).
//!
//! These terms have a fixed meaning in this crate, in `leveret-routing` and in `leveret-queues`:
//!
//! | term | meaning |
//! |---|---|
//! | log, commit | the append-only log on the disk, and one write and sync of it; AMQP's commit is `tx.commit` |
//! | batch | messages, settlements and definitions that become durable together |
//! | incarnation | the number that identifies one declaration of a queue in the log; never reused |
//! | offset | the number of a message among the messages of its queue in the log |
//! | watermark | a log entry of a queue: messages with smaller offsets may have been delivered |
//! | level | the record of a queue with priorities for the messages of one priority |
//! | hidden queue | the queue of a delayed exchange, which has no name and is not shown |
//! | slot | a level of a hidden queue: the messages that are due in one interval |
//! | entry, chunk | one position in a queue, and the unit of memory in which entries are allocated |
//! | share | the part of a pool that one queue, or one connection, may use |
//! | place | the index of a record in its pool; another record may have the place after the first is freed |
//! | serial | the number of a user, an exchange, a queue or a channel that no later one has in this process |
//! | revision | a number that rises with each change of routes or permissions; caches store it to detect changes |
//! | turn | one pass of the event loop: it applies the received commands and makes deliveries |
//! | trim list | the queues that are expired or have messages to remove: rejected, expired, or over a length limit; see `flow` in `leveret-queues` |
//! | absent | an absent message is only in the log, not in memory |
//!
//! # Invariants
//! - The same commands in the same order give the same state.
//! - Nothing here uses a socket or a clock.
//! - All state is in pools that were sized at start. A command for which a pool has no capacity is refused;
//!   the error has the configuration key of the pool.

#![warn(clippy::unwrap_used)]

mod access;
mod apply;
mod arguments;
mod clients;
mod counters;
mod definitions;
mod deliver;
mod job;
mod move_messages;
mod objects;
mod operator;
mod operator_fault;
mod orphans;
mod own_connections;
mod parameters;
mod policy;
mod publish;
mod recovery;
mod republish;
mod restored;
mod retained;
mod sessions;
mod settle;
mod state;
mod views;
mod wills;

pub use access::{Access, PATTERN_BYTES_MAX, UserView, VHOST_METADATA_BYTES_MAX, VhostChange, VhostView};
pub use apply::{ChannelRequest, ConnectionRequest};
pub use counters::{ChannelCounters, Counters};
pub use definitions::{DeleteIf, QueueDeclaration};
pub use deliver::OutboxView;
pub use leveret_core::work::Work;
pub use leveret_routing::ExchangeDeclaration;
pub use leveret_storage::Context;
pub use move_messages::{MoveOutcome, MoveRequest, MoveTarget, ShownRoute};
pub use objects::{Objects, objects};
pub use operator::{Declared, OperatorBinding};
pub use operator_fault::OperatorFault;
pub use orphans::{Orphan, Recovery};
pub use own_connections::{DeliverySource, ParkRequest, QueueRef};
pub use parameters::{PARAMETER_BYTES_MAX, ParameterNeeds, SHOVEL};
pub use policy::AppliedView;
pub use recovery::{First, OpenedLog, restore, restore_messages};
pub use republish::{ParkedFrom, parked_from, write_parked_properties, write_unparked_properties};
pub use restored::Restored;
pub use retained::{RetainedRead, RetainedReadEnd};
pub use settle::Overdue;
pub use state::Entropy;
pub use state::{
    BINDING_BYTES, CHANNEL_BYTES, CONNECTION_BYTES, CONSUMER_BYTES, DELIVERY_BYTES, EXCHANGE_BYTES,
    PARAMETER_BYTES, PERMISSION_BYTES, POLICY_BYTES, QUEUE_BYTES, REPLAY_BYTES, RETAINED_BYTES,
    SESSION_BYTES, USER_BYTES, VHOST_BYTES, buffer_bytes,
};
pub use state::{Broker, Gauges};
pub use views::{
    BindingView, ChannelView, ClassView, ConnectionView, ConsumerActivity, ConsumerView, DiskFacts,
    ExchangeView, Explained, Holder, POOLS, PoolFill, QueueView, RetainedView, SessionView, Views,
};
