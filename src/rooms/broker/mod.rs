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
//! | `publish` | a message comes in, all or nothing |
//! | `deliver`, `get` | from queues to outboxes; from a queue to who asks |
//! | `recovery` | what a start found that it could not put back as it was |
//! | `stored`, `restored` | what outlives the broker, and a start |
//! | `adopt` | messages whose queue no definition is left of: rebuilt, adopted, deleted |
//! | `settle`, `transaction`, `promised` | acknowledgements; tx; what a commit under way may still need |
//! | `consumers` | who gets the next message of a queue: connections, channels, consumers, credit, turns |
//! | `consume` | consumers, channels and connections begin and end |
//! | `waiters` | who waits for what many can bring about |
//! | `own` | connections of this broker's own: the local end of a bridge |
//! | `letters` | what the broker itself sends on: dead letters, parked and delayed messages, copies for operators |
//! | `overdue`, `watch` | who settles nothing for too long; when to look |
//! | `jobs`, `job` | what would take too long in one go; as a value |
//! | `views`, `changes` | what there is, for those who run the broker; what they change |
//! | `shortage` | why publishers wait |
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
mod consumers;
mod context;
mod counters;
mod deliver;
mod exchanges;
mod faults;
mod get;
mod job;
mod jobs;
mod letters;
mod names;
mod operator_settings;
mod overdue;
mod own;
mod parameters;
mod policy;
mod promised;
mod properties;
mod publish;
mod queue_declare;
mod queues;
mod quota;
mod recovery;
mod restored;
mod settle;
mod shortage;
mod sizes;
mod state;
mod stored;
mod tenants;
mod topology;
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
pub use letters::{came_from, parked, unparked};
pub use names::Entropy;
pub use overdue::Overdue;
pub use own::DeliverySource;
pub use parameters::{PARAMETER_BYTES_MAX, ParameterCheck, ParameterNeeds, ParameterView, SHOVEL};
pub use policy::{AppliedView, ApplyTo, NewPolicy, PolicyKind, PolicyView};
pub use queues::{
    Fetch, FetchFrom, LOOKED_MAX, LogRun, Looked, Page, PageIn, Queues, Seen, disk_shortage, levels_of,
};
pub use recovery::{Orphan, Recovery};
pub use restored::{Contents, Restored};
pub use shortage::{Pool, Shortage, Waiters};
pub use sizes::{
    BINDING_BYTES, CHANNEL_BYTES, CONNECTION_BYTES, CONSUMER_BYTES, DELIVERY_BYTES, EXCHANGE_BYTES,
    PARAMETER_BYTES, PERMISSION_BYTES, POLICY_BYTES, QUEUE_BYTES, USER_BYTES, VHOST_BYTES, buffer_bytes,
};
pub use state::{Broker, Gauges};
pub use views::{
    BindingView, ChannelView, ConnectionView, ConsumerActivity, ConsumerView, ExchangeView, Explained,
    PoolFill, QueueView, Views,
};
pub use work::Work;
