//! The broker: exchanges, queues, consumers, acknowledgements, users and policies; deterministic, without I/O.
//!
//! Each folder owns its state, does not depend on [`Broker`] and has its own tests:
//!
//! | folder | owns | purpose |
//! |---|---|---|
//! | `access` | users, virtual hosts, permissions | checks logins and permissions |
//! | `policy` | policies | the effective policy of a queue: its policies and arguments combined |
//! | `parameters` | runtime parameters | settings of components, for example shovels |
//! | `topology` | exchanges, bindings, alternate exchanges | routes a message to queues |
//! | `queue_records` | records of all queues: messages, names, limits | which queue has a name, is full, can deliver |
//! | `queue_flow` | pools and schedules of messages in queues | adds, takes, expires, evicts, reads back messages |
//! | `consumers` | connections, channels, consumers; credit, outboxes | which consumer gets the next message |
//! | `republish` | little | publishes dead letters, due delayed messages and firehose copies |
//! | `orphans` | what could not be restored at start | whether a name may be declared |
//! | `views` | nothing | rows for operators; why publishers wait |
//!
//! [`Broker`] has one of each and sequences them, in these files. Each file calls only files above it, with one
//! exception: `settle` and `deliver` call each other, because a delivery may first have to be requeued.
//!
//! | file | content |
//! |---|---|
//! | `state` | the broker's state, its creation, steps shared by the files below; counters, sizes, name tables |
//! | `definitions` | declares and deletes exchanges, queues and bindings; applies policies |
//! | `settle`, `deliver` | settles deliveries and clears closed or deleted objects; delivers messages |
//! | `publish` | publishes messages, one by one or with a commit |
//! | `apply` | applies commands: what each changes, and what it answers |
//! | `operator` | changes by an operator |
//! | `recovery` | restores everything from the log at start |
//!
//! These files have the values that the others exchange:
//!
//! | file | content |
//! |---|---|
//! | `context` | pending writes, messages and work counter that a call borrows |
//! | `arguments` | arguments of `queue.declare`, settings of a queue, checked message properties |
//! | `deliveries` | unsettled deliveries |
//! | `quota` | what each connection uses of the shared pools |
//! | `job` | work in steps |
//! | `shortage` | why publishers wait |
//! | `retry_list` | lists of what waits for a change |
//! | `reply_text` | formatting of reply texts, and common faults |
//!
//! A command goes through [`Broker::apply`], which changes the state and answers at once. Later work of the turn
//! follows in this order: [`Broker::run_jobs`], [`Broker::deliver`], then [`Broker::outbox`] and [`Broker::sent`]
//! per connection.
//!
//! # Invariants
//! - The same commands in the same order give the same state.
//! - Nothing here uses a socket or a clock.
//! - All state is in pools that were sized at start. What does not fit is refused with the name of the limit.

#![warn(clippy::unwrap_used)]

mod access;
mod apply;
mod arguments;
mod consumers;
mod context;
mod definitions;
mod deliver;
mod deliveries;
mod job;
mod operator;
mod orphans;
mod parameters;
mod policy;
mod publish;
mod queue_flow;
mod queue_records;
mod quota;
mod recovery;
mod reply_text;
mod republish;
mod retry_list;
mod settle;
mod shortage;
mod state;
mod topology;
mod views;

pub use access::{
    Access, OperatorFault, PATTERN_BYTES_MAX, PermissionView, TopicPermissionView, UserLimits, UserView,
    VHOST_METADATA_BYTES_MAX, VhostChange, VhostLimits, VhostView,
};
pub use apply::DeliverySource;
pub use context::Context;
pub use context::Work;
pub use definitions::DeleteIf;
pub use deliver::OutboxView;
pub use operator::Declared;
pub use orphans::{Orphan, Recovery};
pub use parameters::{PARAMETER_BYTES_MAX, ParameterCheck, ParameterNeeds, ParameterView, SHOVEL};
pub use policy::{AppliedView, ApplyTo, NewPolicy, PolicyKind, PolicyView};
pub use queue_flow::{
    BrowseRequests, LogRead, PageInOutcome, Queues, ReadMessage, ReadPosition, disk_shortage,
};
pub use queue_records::{BROWSED_MAX, BrowseResult, Browsed, LogRun, declared_arguments, levels_of};
pub use recovery::{Contents, Restored};
pub use recovery::{First, restore, restore_messages};
pub use republish::{parked_from, write_parked_properties, write_unparked_properties};
pub use settle::Overdue;
pub use shortage::{Pool, Shortage, WaitingPublishers};
pub use state::Entropy;
pub use state::{
    BINDING_BYTES, CHANNEL_BYTES, CONNECTION_BYTES, CONSUMER_BYTES, DELIVERY_BYTES, EXCHANGE_BYTES,
    PARAMETER_BYTES, PERMISSION_BYTES, POLICY_BYTES, QUEUE_BYTES, USER_BYTES, VHOST_BYTES, buffer_bytes,
};
pub use state::{Broker, Gauges};
pub use state::{ChannelCounters, Counters};
pub use views::{
    BindingView, ChannelView, ConnectionView, ConsumerActivity, ConsumerView, DiskFacts, ExchangeView,
    Explained, PoolFill, QueueView, Views,
};
