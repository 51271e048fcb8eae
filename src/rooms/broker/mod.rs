//! OWNS MEANING. What exchanges, queues, consumers and acknowledgements mean; deterministic, without I/O.
//!
//! | file | what it holds |
//! |------|---------------|
//! | `state`, `apply` | all that there is, and how it begins; a command comes in |
//! | `access`, `tenants` | users, virtual hosts, permissions; how they come and go with all that hangs on them |
//! | `topology` | exchanges, bindings, and which queues a message goes to by them |
//! | `exchanges` | commands about exchanges and bindings, and routes of channels: who may, in which order |
//! | `queues` | what waits in queues, in memory and out of it, in which order it goes, and what of it is delivered |
//! | `queue_declare`, `arguments` | declaring, purging, deleting queues; queue arguments |
//! | `parameters` | what components are told, by their names |
//! | `policy` | what arguments, policies and operator policies say together |
//! | `operator_settings` | what operators tell the running broker: policies at work, and parameters |
//! | `context` | what is lent for one call: journal, messages, work; what came of it besides its answer |
//! | `work` | what finding the targets of a message may cost |
//! | `publish`, `fullness` | a message comes in, all or nothing; whether a queue takes one more |
//! | `deliver`, `get` | from queues to outboxes; from a queue to who asks |
//! | `stored`, `restored`, `left_out` | what outlives the broker, and a start; what a start does not declare again |
//! | `orphans`, `adopt` | messages whose queue no definition is left of; what becomes of them |
//! | `settle`, `transaction` | acknowledgements; tx |
//! | `dead_letter`, `death` | where goes what a queue gives up; what it carries then |
//! | `firehose`, `traced` | copies of what is published and delivered, for an operator; what they name |
//! | `shed` | what queues give up, in steps: what is rejected, what is too much, what has expired |
//! | `delay` | what delayed exchanges keep wakes up |
//! | `consume`, `records` | consumers, channels, connections |
//! | `waiters` | who waits for what many can bring about |
//! | `own` | connections of this broker's own: the local end of a bridge |
//! | `parking` | what a bridge's other side does not take: another kind of dead letter |
//! | `overdue`, `watch` | who settles nothing for too long; when to look |
//! | `jobs`, `job` | what would take too long in one go; as a value |
//! | `tidy` | memory that a burst left idle |
//! | `views`, `changes` | what there is, for those who run the broker; what they change |
//! | `shortage`, `shortage_text` | why publishers wait; how that is told |
//! | `quota` | what one connection, one user and one virtual host may take of what all share |
//! | `counters` | what has happened since the start |
//! | `names`, `sizes` | name tables; what records take in memory |
//! | `faults`, `properties`, `words` | what is told when there is no room; properties that are answered for; things as reply texts show them |
//!
//! The life of a command: [`Broker::apply`] changes the state and answers at once. What happens later, in
//! the turn's order: [`Broker::run_jobs`], [`Broker::deliver`], then per connection [`Broker::outbox`] and
//! [`Broker::sent`].
//!
//! No file needs types or functions of one that needs its own: records and values stand below `state`, and
//! what is done with them above, command by command. Methods of [`Broker`] call each other across files.
//!
//! Always true: the same commands in the same order give the same state; nothing here knows a socket or a
//! clock; everything lives in pools that were sized at start, and what does not fit is refused by name.

mod access;
mod adopt;
mod apply;
mod arguments;
mod changes;
mod consume;
mod context;
mod counters;
mod dead_letter;
mod death;
mod delay;
mod deliver;
mod exchanges;
mod faults;
mod firehose;
mod fullness;
mod get;
mod job;
mod jobs;
mod left_out;
mod names;
mod operator_settings;
mod orphans;
mod overdue;
mod own;
mod parameters;
mod parking;
mod policy;
mod properties;
mod publish;
mod queue_declare;
mod queues;
mod quota;
mod records;
mod restored;
mod settle;
mod shed;
mod shortage;
mod shortage_text;
mod sizes;
mod state;
mod stored;
mod tenants;
mod tidy;
mod topology;
mod traced;
mod transaction;
mod views;
mod waiters;
mod watch;
mod words;
mod work;

pub use access::{
    Access, OperatorFault, PATTERN_BYTES_MAX, PermissionView, TopicPermissionView, UserLimits, UserView,
    VhostLimits, VhostView,
};
pub use changes::Declared;
pub use context::Context;
pub use counters::Counters;
pub use deliver::OutboxView;
pub use names::Entropy;
pub use orphans::Orphan;
pub use overdue::Overdue;
pub use own::DeliverySource;
pub use parameters::{PARAMETER_BYTES_MAX, ParameterCheck, ParameterNeeds, ParameterView, SHOVEL};
pub use parking::{came_from, parked, unparked};
pub use policy::{AppliedView, ApplyTo, NewPolicy, PolicyKind, PolicyView};
pub use queues::{Fetch, FetchFrom, LOOKED_MAX, LogRun, Looked, Page, PageIn, Queues, Seen, levels_of};
pub use restored::{Contents, Restored};
pub use shortage::{Pool, Shortage, Waiters};
pub use shortage_text::Explained;
pub use sizes::{
    BINDING_BYTES, CHANNEL_BYTES, CONNECTION_BYTES, CONSUMER_BYTES, DELIVERY_BYTES, EXCHANGE_BYTES,
    PARAMETER_BYTES, PERMISSION_BYTES, POLICY_BYTES, QUEUE_BYTES, USER_BYTES, VHOST_BYTES, buffer_bytes,
};
pub use state::{Broker, Gauges};
pub use views::{
    BindingView, ChannelView, ConnectionView, ConsumerActivity, ConsumerView, ExchangeView, PoolFill,
    QueueView,
};
pub use work::Work;
