//! What exchanges, queues, consumers and acknowledgements mean; deterministic, without I/O.
//!
//! The parts, each a folder that owns what it holds, knows nothing of [`Broker`] and has tests of its own:
//!
//! | part | owns | is asked |
//! |---|---|---|
//! | `quota` | what each connection holds of the shared pools | may it have more |
//! | `access` | users, virtual hosts, permissions | may that user do that |
//! | `policy` | policies, and what they and arguments say together | the terms of this queue |
//! | `parameters` | runtime parameters | what a component is told |
//! | `topology` | exchanges, bindings, alternate exchanges | which queues a message goes to |
//! | `queue` | the records of all queues: what waits in each; names, levels, limits | which queue is that, is it full, is it ready |
//! | `queues` | the way of messages through queues, out of memory and back | what goes next, what is given up, is there room |
//! | `deliveries` | what is delivered and not settled | which delivery is that |
//! | `consumers` | connections, channels, consumers; their credit, prefetch and outboxes | who gets the next message |
//! | `letters` | next to nothing | send on dead letters, delayed messages that are due, copies for the firehose |
//! | `recovery` | what a start could not put back | may this name be declared |
//! | `views` | nothing | rows for operators |
//!
//! [`Broker`] holds one of each and sequences them, in eight files of which each calls only those above it in this table
//! (`settle` and `deliver` call each other: what goes out may have to come back first):
//!
//! | file | what |
//! |---|---|
//! | `state` | all that there is, how it begins, and the few steps that every file below takes |
//! | `definitions` | exchanges, queues and bindings begin and end; what policies say of them |
//! | `settle`, `deliver` | what was given is settled; connections, channels, exclusive queues and all that ended are cleared away; messages go out |
//! | `publish` | messages come in, one by one or with a commit |
//! | `apply` | a command comes in: what it changes, and what it answers |
//! | `operator` | what an operator changes |
//! | `restore` | a start: everything back from the log |
//!
//! And the values that go from one to the other:
//!
//! | file | what |
//! |---|---|
//! | `context`, `work` | the journal, messages and counters lent for one call; what the call costs beyond its size |
//! | `arguments`, `properties` | the settings that arguments and policies give a queue; properties of messages that are answered for |
//! | `job`, `promised`, `restored`, `shortage` | work in steps; what a commit may still need; what a start is told; why publishers wait |
//! | `waiters`, `watch` | who waits for what many can bring about; when to look at who holds something for too long |
//! | `counters`, `names`, `sizes` | what has happened since the start; name tables; what records take in memory |
//! | `faults`, `words` | what is told when there is no room; things as reply texts show them |
//!
//! The life of a command: [`Broker::apply`] changes the state and answers at once. What happens later, in
//! the turn's order: [`Broker::run_jobs`], [`Broker::deliver`], then per connection [`Broker::outbox`] and
//! [`Broker::sent`].
//!
//! Always true: the same commands in the same order give the same state; nothing here knows a socket or a
//! clock; everything lives in pools that were sized at start, and what does not fit is refused by name.

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
mod queue;
mod queues;
mod quota;
mod recovery;
mod reply_text;
mod republish;
mod settle;
mod shortage;
mod state;
mod topology;
mod views;
mod waiters;
mod watch;

// The rooms below, by the names that everybody has for them.

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
pub use queue::{BROWSED_MAX, BrowseResult, Browsed, LogRun, declared_arguments, levels_of};
pub use queues::{Browses, Fetch, FetchFrom, Page, PageIn, Queues, disk_shortage};
pub use recovery::{Contents, Restored};
pub use recovery::{First, restore, restore_messages};
pub use republish::{came_from, parked, unparked};
pub use settle::Overdue;
pub use shortage::{Pool, Shortage, Waiters};
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
