//! One request with its user and the names in its path, and the ways to answer it.
//!
//! # Invariants
//! - A request from the control socket is the operator's, who may do everything.
//! - Over the network a request is answered only for a user with a tag that grants access, except for rows that
//!   demand no login.
//! - The answer to an error says what is wrong, in the two fields of RabbitMQ's API (`error` and `reason`).

use std::net::SocketAddr;

use leveret_amqp::field::Table;
use leveret_broker::{Broker, DiskFacts};
use leveret_core::batch::Batch;
use leveret_core::command::ConnectionId;
use leveret_core::error::{Fault, ReplyCode};
use leveret_core::flight::Event;
use leveret_core::mem::Messages;
use leveret_queues::WaitingByKind;
use leveret_storage::PendingWrites;

use super::http::{REQUEST_BYTES_MAX, Request, Status};
use super::json::Json;
use super::listing::{Filter, Listing, Viewer};
use super::management::text_object;
use super::messages::{PendingBrowse, QueueGet};
use super::metrics::Exposition;
use super::moving::PendingMove;
use super::samples::{Ranges, Samples};
use super::web_page::{PageFile, Tokens};

/// The most names in a path.
pub(super) const NAMES_MAX: usize = 5;

/// A user who is logged in over the network.
pub(super) struct User {
    pub(super) name: String,
    pub(super) tags: String,
    pub(super) is_monitor: bool,
    is_policymaker: bool,
    is_administrator: bool,
}

impl User {
    /// Looks a user up. Returns `None` if it does not exist or has no tag that grants access.
    pub(super) fn of(broker: &Broker, name: &str) -> Option<Self> {
        let view = broker.access().users().find(|view| view.name == name)?;
        let has = |tag| view.tags.split(',').any(|other| other == tag);
        let is_administrator = has("administrator");
        let is_monitor = is_administrator || has("monitoring");
        let is_policymaker = is_administrator || has("policymaker");
        let may_enter = is_monitor || is_policymaker || has("management");
        let (name, tags) = (name.to_string(), view.tags.to_string());
        may_enter.then_some(Self { name, tags, is_monitor, is_policymaker, is_administrator })
    }

    fn viewer(&self) -> Viewer {
        Viewer { name: self.name.as_str().into(), is_monitor: self.is_monitor }
    }
}

/// The demand of a request over the network on its user, besides a tag that grants access. The virtual host is the one
/// in the path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Demand {
    /// Nothing, not even a login.
    NoLogin,
    /// Cannot be met over the network: only the operator may send the request, over the control socket.
    Operator,
    /// A tag that grants access, no matter which.
    AnyTag,
    /// The tag `monitoring`.
    Monitor,
    /// The tag `administrator`.
    Administrator,
    /// The tag `policymaker`.
    Policymaker,
    /// The tag `policymaker`, and permissions in the virtual host unless the user is an administrator.
    PolicymakerInVhost,
    /// Permissions in the virtual host, whatever the user's tags.
    Permissions,
    /// Permissions in the virtual host, unless the user is an administrator.
    Member,
    /// Permissions in the virtual host, unless the user is a monitor.
    Watcher,
}

/// One request as it is answered.
pub(super) struct Call<'c> {
    pub(super) request: &'c Request<'c>,
    /// The user over the network. `None`: the operator at the control socket, or a client of a request without a
    /// login.
    pub(super) user: Option<&'c User>,
    /// For each word in braces of the row's pattern: the word and the path segment in its place.
    pub(super) names: heapless::Vec<(&'static str, &'c str), NAMES_MAX>,
}

impl<'c> Call<'c> {
    /// Returns the path segment for a word in braces, if the pattern has it.
    pub(super) fn optional_name(&self, word: &str) -> Option<&'c str> {
        self.names.iter().find(|(known, _)| *known == word).map(|(_, name)| *name)
    }

    /// Returns the path segment for a word in braces that the pattern has.
    pub(super) fn name(&self, word: &str) -> &'c str {
        debug_assert!(self.optional_name(word).is_some(), "the pattern has {word}");
        self.optional_name(word).unwrap_or_default()
    }

    /// Checks that the user meets a demand.
    ///
    /// # Errors
    /// The user does not meet it, or the virtual host does not exist.
    pub(super) fn allow(&self, context: &RequestContext<'_>, demand: Demand) -> Result<(), Answer> {
        let Some(user) = self.user else { return Ok(()) };
        let in_vhost = |is_exempt: bool, why: &str| {
            let vhost = self.name("vhost");
            if !exists(context, vhost) {
                return Err(not_found("Not Found"));
            }
            match is_exempt || context.broker.access().has_permission(&user.name, vhost) {
                true => Ok(()),
                false => Err(unauthorized(why)),
            }
        };
        let no_member = "User not authorised to access virtual host";
        let no_policymaker = "User not authorised to access object";
        match demand {
            Demand::Monitor if !user.is_monitor => Err(unauthorized("Not monitor user")),
            Demand::Administrator if !user.is_administrator => Err(unauthorized("Not administrator user")),
            Demand::Policymaker | Demand::PolicymakerInVhost if !user.is_policymaker => {
                Err(unauthorized(no_policymaker))
            }
            Demand::NoLogin
            | Demand::Operator
            | Demand::AnyTag
            | Demand::Monitor
            | Demand::Administrator
            | Demand::Policymaker => Ok(()),
            Demand::PolicymakerInVhost => in_vhost(user.is_administrator, no_policymaker),
            // An administrator needs the same permissions as over AMQP, and gets RabbitMQ's error text.
            Demand::Permissions if user.is_administrator => in_vhost(false, "Access refused."),
            Demand::Permissions => in_vhost(false, no_member),
            Demand::Member => in_vhost(user.is_administrator, no_member),
            Demand::Watcher => in_vhost(user.is_monitor, no_member),
        }
    }

    /// Returns a filter for the rows that the request selects and its user may see.
    pub(super) fn filter(&self) -> Filter {
        let viewer = self.user.filter(|user| !user.is_administrator).map(User::viewer);
        let ranges = Ranges::from_query(self.request);
        // In paths of parameters the component stands where other paths have a user.
        let user = self.optional_name("user").or(self.optional_name("component")).map(Into::into);
        let (vhost, is_ctl) = (self.optional_name("vhost").map(Into::into), self.user.is_none());
        Filter { vhost, user, viewer, ranges, is_ctl, ..Filter::default() }
    }

    /// Returns a filter for the connections that the user may close. A monitor may see the connections of others, but
    /// not close them.
    pub(super) fn closable(&self) -> Filter {
        let filter = self.filter();
        let viewer = filter.viewer.map(|viewer| Viewer { is_monitor: false, ..viewer });
        Filter { viewer, ..filter }
    }

    /// Returns a filter for the virtual hosts in which the user has permissions, even if it is an administrator.
    pub(super) fn accessible(&self) -> Filter {
        Filter { viewer: self.user.map(User::viewer), ..self.filter() }
    }

    /// Answers that the virtual host does not exist, in rabbitmqctl's words or as the management API does.
    #[cold]
    pub(super) fn no_such_vhost(&self, vhost: &str) -> Answer {
        if self.user.is_some() {
            return not_found("Not Found");
        }
        let why = format!("Virtual host '{vhost}' does not exist");
        Answer::Now(Status::NotFound, problem("no_such_vhost", &why))
    }
}

/// Returns whether the virtual host exists.
pub(super) fn exists(context: &RequestContext<'_>, vhost: &str) -> bool {
    context.broker.access().vhosts().any(|view| view.name == vhost)
}

/// Returns an exchange's name. In a path the default exchange, whose name is empty, is called `amq.default`.
pub(super) fn default_named(exchange: &str) -> &str {
    if exchange == "amq.default" { "" } else { exchange }
}

/// The most bytes that may wait for one client to read them.
pub const OUTPUT_BYTES_MAX: usize = 64 << 10;
/// The most bytes of a body that is written at once: half of the output limit, which leaves space for the response's
/// head.
const BODY_BYTES_MAX: usize = OUTPUT_BYTES_MAX / 2;

/// How a request is answered.
#[derive(Debug)]
pub enum Answer {
    /// Sends this status and body at once.
    Now(Status, Vec<u8>),
    /// Sends this status and the verbs of the resource.
    Verbs(Status, String),
    /// Sends this status and body when this batch is durable.
    Durable(Batch, Status, Vec<u8>),
    /// Sends `201 Created` when this batch is durable, with the path of the new object.
    Created(Batch, String),
    /// Sends this status and body when all definitions that have been appended are durable, whatever messages wait
    /// for.
    Changed(Status, Vec<u8>),
    /// Like `Changed`, and redirects the client to this address.
    ChangedRedirect(String),
    /// Sends the list of the store's files once this batch is durable.
    PinStore(Batch),
    /// Sends a file of the web page.
    Page(&'static PageFile),
    /// Tells the client that its copy of a file of the web page is up to date.
    KnownPage(&'static PageFile),
    /// Sends messages that are taken from a queue.
    Get(Box<QueueGet>),
    /// Sends messages of a queue that remain in it, once they have been read from the disk.
    Browse(Box<PendingBrowse>),
    /// Moves messages of a queue, once they have been read from the disk.
    Move(Box<PendingMove>),
    /// Sends the result of the upload when the request's body has been received and decoded.
    Upload(Box<dyn Upload>),
    /// Sends a list, row by row as output space becomes free.
    List(Box<Listing>),
    /// Sends metrics: the text at the start, then rows as output space becomes free.
    Metrics(Vec<u8>, Box<Exposition>),
    /// Makes the connection one of MQTT over WebSocket, with this response.
    Upgrade(Vec<u8>),
}

/// A request whose body is longer than a request buffer, or which takes more than one step.
///
/// ```text
/// body ─take, 16 KiB a turn─→ message pool ─step, one part a turn─→ answer
/// ```
pub trait Upload: core::fmt::Debug {
    /// Takes the next bytes of the body. `left` is the number of bytes still to come, including these.
    ///
    /// # Errors
    /// The body is refused with this answer.
    fn take(&mut self, bytes: &[u8], left: usize, context: &mut RequestContext<'_>) -> Result<(), Answer>;
    /// Returns the length limit of the body in bytes, for a body whose length is not announced.
    fn bytes_max(&self, context: &RequestContext<'_>) -> usize;
    /// Continues with a bounded amount of work once the whole body is here. Returns `None` if there is more to do.
    ///
    /// # Errors
    /// The body is refused with this answer.
    fn step(&mut self, context: &mut RequestContext<'_>) -> Result<Option<Answer>, Answer>;
    /// Frees the message pool's memory that the body takes: the request was answered, or its client is gone.
    fn release(&mut self, messages: &mut Messages);
}

/// An answer; an error is an answer that refuses the request.
pub(super) type Answered = Result<Answer, Answer>;

/// Returns a small JSON body.
pub fn body(write: impl FnOnce(&mut Json<'_>)) -> Vec<u8> {
    let mut out = Vec::new();
    write(&mut Json::new(&mut out, BODY_BYTES_MAX));
    out
}

/// Returns a body that describes an error.
#[cold]
pub fn problem(error: &str, reason: &str) -> Vec<u8> {
    body(|json| text_object(json, &[("error", error), ("reason", reason)]))
}

pub(super) const fn done(status: Status) -> Answer {
    Answer::Now(status, Vec::new())
}

#[cold]
pub(super) fn bad_request(reason: &str) -> Answer {
    Answer::Now(Status::BadRequest, problem("bad_request", reason))
}

/// Answers `400 Bad Request` with this error text.
#[cold]
pub(super) fn bad(why: String) -> Answer {
    bad_request(&why)
}

/// Answers that the user lacks rights.
#[cold]
pub(super) fn unauthorized(reason: &str) -> Answer {
    Answer::Now(Status::Unauthorized, problem("not_authorised", reason))
}

#[cold]
pub(super) fn not_found(reason: &str) -> Answer {
    Answer::Now(Status::NotFound, problem("Object Not Found", reason))
}

#[cold]
pub(super) fn refused(fault: &Fault) -> Answer {
    let (status, error) = match fault.code {
        ReplyCode::NotFound => (Status::NotFound, "Object Not Found"),
        ReplyCode::PreconditionFailed => (Status::PreconditionFailed, "precondition_failed"),
        ReplyCode::ResourceError => (Status::Unavailable, "resource_error"),
        _ => (Status::BadRequest, "bad_request"),
    };
    Answer::Now(status, problem(error, &fault.text))
}

/// Translates an AMQP error into an HTTP answer.
#[cold]
pub(super) fn refusal(fault: &Fault) -> Answer {
    let text = fault.text.split_once(" - ").map_or(&*fault.text, |(_, text)| text);
    match fault.code {
        ReplyCode::NotFound => Answer::Now(Status::NotFound, problem("not_found", text)),
        ReplyCode::AccessRefused | ReplyCode::NotAllowed => unauthorized(text),
        ReplyCode::ResourceError => Answer::Now(Status::Unavailable, problem("unavailable", text)),
        _ => bad_request(text),
    }
}

/// Answers that the body is too long.
#[cold]
pub(super) fn too_large(why: &str) -> Answer {
    Answer::Now(Status::TooLarge, problem("too_large", why))
}

/// Answers that a body whose length was not announced is longer than it may be.
#[cold]
pub(super) fn body_too_large(bytes_max: usize) -> Answer {
    too_large(&format!("the body of this request may have at most {bytes_max} bytes"))
}

/// Answers that the body is too long for a request that takes no long body.
#[cold]
pub(super) fn request_too_large() -> Answer {
    too_large(&format!("this request may have at most {REQUEST_BYTES_MAX} bytes, its head included"))
}

/// Answers that the message pool has no memory left for the body.
#[cold]
pub(super) fn pool_full() -> Answer {
    let why = "there is no memory for the body of this request now: try \
               again later";
    Answer::Now(Status::Unavailable, problem("unavailable", why))
}

/// The state that a session may use in one step.
///
/// # Invariants
/// - The context is lent for one step. It changes nothing except through the broker.
/// - What the event loop itself must do, such as stopping, is noted in [`Orders`].
pub struct RequestContext<'s> {
    /// The broker.
    pub broker: &'s mut Broker,
    /// The buffer of log entries to be written.
    pub pending_writes: &'s mut PendingWrites,
    /// All messages in memory.
    pub messages: &'s mut Messages,
    /// The counter of the work done by calls.
    pub work: &'s mut leveret_broker::Work,
    /// The connections' sockets.
    pub sockets: &'s dyn Sockets,
    /// The bridges.
    pub bridges: &'s dyn BridgeViews,
    /// The process.
    pub process: &'s Process,
    /// The store's files for a backup, if there is a store. Only one client can use them.
    pub files: Option<&'s mut dyn Files>,
    /// Requests to the event loop.
    pub orders: &'s mut Orders,
    /// The logins with tokens.
    pub tokens: &'s mut Tokens,
    /// The samples of the last minutes.
    pub samples: &'s Samples,
    /// The events that the flight recorder has recorded.
    pub events: &'s dyn RecordedEvents,
}

/// The events of this process in the flight recorder.
pub trait RecordedEvents {
    /// Returns the newest events with numbers above `number`, at most `count`, in order.
    ///
    /// # Errors
    /// Nothing is recorded; the text says why.
    fn after(&self, number: u32, count: usize) -> Result<Vec<Event>, &str>;
}

/// The store's files during a backup.
pub trait Files {
    /// Pins what is durable now, for this client alone. Returns each file's number, how many bytes of it to copy, and
    /// its length; the rest are zeros. Returns `None` if that is impossible now; the caller tries again.
    fn pin_for_backup(&mut self) -> Option<Vec<(u32, u32, u32)>>;
    /// Returns whether the files are still pinned.
    fn is_pinned_for_backup(&self) -> bool;
    /// Ends the pinning of the files.
    fn release(&mut self);
}

impl core::fmt::Debug for RequestContext<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("RequestContext").field("broker", &self.broker).finish_non_exhaustive()
    }
}

impl RequestContext<'_> {
    /// Returns the batch up to which everything is durable.
    pub const fn durable(&self) -> Batch {
        self.pending_writes.durable()
    }

    /// Returns the broker and the context for its calls.
    pub const fn broker(&mut self) -> (&mut Broker, leveret_broker::Context<'_>) {
        (self.broker, leveret_broker::Context::new(self.pending_writes, self.messages, self.work))
    }

    /// Returns the part of the context that rows are written from.
    pub const fn context(&self) -> ReadContext<'_> {
        let Self { broker, sockets, bridges, samples, process, pending_writes, .. } = self;
        let (node, time_ms) = (process.node.as_str(), pending_writes.time_ms());
        ReadContext { broker, sockets: *sockets, bridges: *bridges, samples, node, time_ms }
    }
}

/// The state that rows are written from, which they cannot change.
#[derive(Clone, Copy)]
pub struct ReadContext<'s> {
    /// The broker that is shown.
    pub broker: &'s Broker,
    /// The connections' sockets.
    pub sockets: &'s dyn Sockets,
    /// The bridges.
    pub bridges: &'s dyn BridgeViews,
    /// The samples of the last minutes.
    pub samples: &'s Samples,
    /// This node's name.
    pub node: &'s str,
    /// The broker time in milliseconds.
    pub time_ms: u64,
}

/// The operator's view of the bridges.
pub trait BridgeViews {
    /// Returns the number of positions of links.
    fn places(&self) -> usize;
    /// Returns the most bridges that there can be.
    fn places_max(&self) -> usize;
    /// Returns the link at a position.
    fn at(&self, place: usize) -> Option<BridgeLinkView<'_>>;
    /// Returns whether a bridge of this name exists.
    fn is_known(&self, bridge: &str) -> bool;
}

/// The number of categories of a link's traffic.
pub const TRAFFIC_CATEGORIES: usize = 3;

/// One direction of a bridge.
#[derive(Clone, Debug)]
pub struct BridgeLinkView<'a> {
    /// The bridge's name.
    pub bridge: &'a str,
    /// `forward` or `fetch`.
    pub direction: &'static str,
    /// The state: `running`, `held`, `budget used`, `blocked`, `connecting`, `waiting`, `resting`, `paused` or
    /// `ending`.
    pub state: &'static str,
    /// The local virtual host.
    pub vhost: &'a str,
    /// The current or next address, without its password.
    pub upstream: String,
    /// Number of messages that the other side has accepted since the bridge was created.
    pub moved: u64,
    /// Number of messages in flight.
    pub pending: u64,
    /// The local queues that are forwarded.
    pub queues: Option<Vec<&'a str>>,
    /// Number of messages sent that may have been sent before.
    pub repeats: u64,
    /// The local parking queue for refused messages, reported with the first of the bridge's links.
    pub parked_queue: Option<&'a str>,
    /// Number of messages that arrived to be forwarded, and the milliseconds in which they arrived.
    pub inflow: (u64, u64),
    /// The part of the queues' arrival counters that is already counted in `inflow`, or precedes it.
    pub inflow_counted: u64,
    /// Number of messages that the link carried today and the day before, and the bytes of their bodies.
    pub sent_since_yesterday: (u64, u64),
    /// Free bytes in the log, if there is one.
    pub log_free_bytes: Option<u64>,
    /// There is an alarm if the disk has no capacity for an outage of this many days.
    pub outage_days_min: Option<u16>,
    /// The result of the last `retry_parked` as a sentence; empty if there was none.
    pub last_retry_result: String,
    /// Number of messages that this broker cannot accept and that remain at the upstream.
    pub held: u64,
    /// The link's traffic of today, by category.
    pub today: [(&'static str, u64); TRAFFIC_CATEGORIES],
    /// The link's traffic of the day before, by category.
    pub yesterday: [(&'static str, u64); TRAFFIC_CATEGORIES],
    /// Bytes of the bridge's links today, in both directions.
    pub day_bytes: u64,
    /// The daily budget in bytes. When it is used up, only urgent rules continue.
    pub day_bytes_max: Option<u64>,
    /// Bytes of the bridge's links the day before.
    pub yesterday_bytes: u64,
    /// Number of rules of this direction that wait for the next day, or until their error is corrected.
    pub held_rules: u64,
    /// The rules of this direction.
    pub rules: Vec<BridgeRuleView<'a>>,
    /// Whether the daily budget is used up.
    pub is_day_spent: bool,
    /// How often the link came up.
    pub connected: u64,
    /// How often the link failed to come up, or went down.
    pub failed: u64,
    /// The last error, and its age in milliseconds.
    pub last_error: Option<(&'a str, u64)>,
    /// Milliseconds since the link came up.
    pub up_for_ms: Option<u64>,
    /// Milliseconds since the link last went down.
    pub down_for_ms: Option<u64>,
    /// Milliseconds until the next attempt to connect.
    pub retry_in_ms: Option<u64>,
    /// The shovel, if the link is one of RabbitMQ's shovels.
    pub shovel: Option<ShovelView<'a>>,
    /// Time of the last change of state, in milliseconds since 1970 by the board's clock.
    pub changed_at_ms: u64,
    /// Whether the bridge is paused by the operator.
    pub is_paused: bool,
}

/// A rule of a bridge.
#[derive(Clone, Copy, Debug)]
pub struct BridgeRuleView<'a> {
    /// The queue from which the rule takes messages: a local one if it forwards.
    pub queue: &'a str,
    /// The exchange and the routing key with which it publishes them; `None`: those of the message.
    pub destination: (Option<&'a str>, Option<&'a str>),
    /// The state, as of the link.
    pub state: &'static str,
    /// Number of messages that the other side has taken since the start of the process.
    pub moved: u64,
    /// Number of messages that cannot be accepted here and that remain at the upstream.
    pub held: u64,
    /// Why the rule is held.
    pub error: Option<&'a str>,
    /// Whether the rule continues when the daily budget is used up.
    pub is_urgent: bool,
}

/// A shovel.
#[derive(Clone, Debug)]
pub struct ShovelView<'a> {
    /// The name of its parameter.
    pub name: &'a str,
    /// The virtual host of the parameter.
    pub vhost: &'a str,
    /// The source of messages.
    pub source: ShovelEndView<'a>,
    /// The destination of messages.
    pub destination: ShovelEndView<'a>,
    /// Number of messages that it has still to move, if that is limited.
    pub left: Option<u64>,
}

/// One end of a shovel.
#[derive(Clone, Debug)]
pub struct ShovelEndView<'a> {
    /// The current address, without user and password.
    pub uri: &'a str,
    /// The queue, if the end is one.
    pub queue: Option<&'a str>,
    /// The exchange, if the end is one.
    pub exchange: Option<&'a str>,
    /// The routing key, if there is one.
    pub key: Option<&'a str>,
}

impl BridgeLinkView<'_> {
    /// Returns the number of local messages that wait to be forwarded, if the link forwards.
    pub fn backlog(&self, broker: &Broker) -> Option<u64> {
        let depths = self.queues.as_ref()?.iter().filter_map(|queue| broker.queue_depth(self.vhost, queue));
        Some(depths.map(u64::from).sum())
    }

    /// Returns the number of parked messages that are still in the bridge's parking queue.
    pub fn parked_messages(&self, broker: &Broker) -> u64 {
        let depth = self.parked_queue.and_then(|queue| broker.queue_depth(self.vhost, queue));
        depth.unwrap_or(0).into()
    }
}

/// The operator's view of the sockets of AMQP connections.
pub trait Sockets {
    /// Returns the number of positions of connections that were ever used.
    fn places(&self) -> usize;
    /// Returns the connection at a position.
    fn at(&self, connection: ConnectionId) -> Option<SocketView<'_>>;
    /// Returns the number of messages on a channel whose publisher confirms were not sent yet.
    fn unconfirmed(&self, connection: ConnectionId, channel: u16) -> u64;
}

/// One connection's socket.
#[derive(Clone, Copy, Debug)]
pub struct SocketView<'s> {
    /// The connection's number: connections are numbered as they are opened.
    pub number: u64,
    /// The addresses of both ends.
    pub ends: Ends,
    /// Whether the connection is encrypted.
    pub is_tls: bool,
    /// The protocol and its version: `AMQP 0-9-1`, `MQTT 3.1.1`.
    pub protocol: &'static str,
    /// When the connection was opened, in milliseconds since 1970 by the board's clock.
    pub connected_at_ms: u64,
    /// How long a blocked publisher has waited, in milliseconds. `None`: it is not blocked.
    pub blocked_for_ms: Option<u64>,
    /// `running`, `blocked` or `closing`.
    pub state: &'static str,
    /// The negotiated maximum frame size, in bytes.
    pub frame_max: u32,
    /// The most channels of the connection.
    pub channel_max: u16,
    /// Heartbeat interval in seconds; 0: no heartbeats.
    pub heartbeat_s: u32,
    /// The authentication mechanism; empty before the login, and for MQTT.
    pub mechanism: &'static str,
    /// The client properties that were kept.
    pub client_properties: Table<'s>,
    /// Bytes received, without the overhead of TLS, and the number of reads.
    pub received: (u64, u64),
    /// Bytes sent, and the number of writes.
    pub sent: (u64, u64),
}

/// The two ends of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ends {
    /// A network connection.
    Network {
        /// The broker's address.
        host: SocketAddr,
        /// The client's address.
        peer: SocketAddr,
    },
    /// A local program at the Unix socket.
    Local {
        /// Its process id.
        pid: i32,
        /// Its user id.
        uid: u32,
    },
}

/// The store's counters and limits.
#[derive(Clone, Copy, Default, Debug)]
pub struct StoreView {
    /// Bytes written since the start, including the zeros that prepare files.
    pub written_bytes: u64,
    /// Bytes written in all runs of the store.
    pub written_all_runs_bytes: u64,
    /// Number of syncs of the disk.
    pub syncs: u64,
    /// The most bytes that the store may use.
    pub bytes_max: u64,
    /// Bytes that can be written now.
    pub room_bytes: u64,
    /// Awaited commits that were delayed by the sync budget (`syncs_per_second`), since the start.
    pub commits_over_budget: u64,
    /// Whether a commit was delayed in the last [`SYNC_BUDGET_SHOWN_MS`].
    pub is_over_budget: bool,
}

/// How long a commit delayed by the sync budget is reported, in milliseconds.
pub const SYNC_BUDGET_SHOWN_MS: u64 = 10_000;

impl StoreView {
    /// Returns the bytes that the log uses, including settled messages.
    pub const fn log_bytes(&self) -> u64 {
        self.bytes_max.saturating_sub(self.room_bytes)
    }
}

/// The configured endurance of the flash.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Endurance {
    /// Bytes that may be written to it; 0 if not configured.
    pub bytes: u64,
    /// The alarm is raised below this many years; 0: never.
    pub years_min: u32,
}

/// The operating system's values for the process at this moment; 0 if unknown.
#[derive(Clone, Copy, Default, Debug)]
pub struct Machine {
    /// Resident memory in bytes.
    pub resident_bytes: u64,
    /// The most resident memory since the start, in bytes.
    pub resident_bytes_peak: u64,
    /// Number of open file descriptors.
    pub files_open: u64,
    /// The most open file descriptors.
    pub files_max: u64,
    /// Free bytes in the file system of the data directory.
    pub disk_free_bytes: u64,
    /// Whether the file system of the data directory has no free inodes.
    pub has_no_inodes: bool,
    /// Processor time that the process has used, in milliseconds.
    pub cpu_ms: u64,
    /// Temperature of the board in thousandths of a degree Celsius, if the kernel reports it.
    pub temperature_mc: Option<i32>,
}

/// The state of the process.
#[derive(Clone, Debug)]
pub struct Process {
    /// The configuration in the format of its file, without secrets.
    pub environment: String,
    /// The data directory, as an absolute path.
    pub data_dir: String,
    /// The configuration file, as an absolute path; empty without one.
    pub configuration: String,
    /// For each listener: `amqp`, `amqp/ssl` or `amqp/local`, a space, and the address.
    pub listeners: Vec<String>,
    /// Host names by which browsers may use the management API, in lower case.
    pub hosts: Vec<String>,
    /// Origins of pages that may connect with MQTT over WebSocket, besides the broker's own. `None`: it is not served.
    pub mqtt_websocket_origins: Option<Vec<String>>,
    /// The name of this node, as in RabbitMQ: a name, `@` and the machine's name.
    pub node: String,
    /// The operating system's values.
    pub machine: Machine,
    /// Product and version in the server properties.
    pub product: (String, String),
    /// The memory limit, in bytes.
    pub memory_limit_bytes: u64,
    /// The longest body of a message, in bytes.
    pub message_size_max: u32,
    /// Milliseconds since the start.
    pub uptime_ms: u64,
    /// Number of open AMQP connections.
    pub connections: u32,
    /// Number of connections since the start.
    pub connections_opened: u64,
    /// Number of confirms sent to publishers since the start.
    pub confirmed: u64,
    /// Number of handshakes ended since the start in favour of other connections.
    pub handshakes_evicted: u64,
    /// Number of messages since the start that were dropped with the connections of their publishers: the clients were
    /// gone, or were closed for another client, before there was capacity for them.
    pub dropped_messages: u64,
    /// The limit because of which clients are refused that open a connection: its configuration key and its value.
    pub refusing_connections: Option<(&'static str, u32)>,
    /// Whether the disk has refused to read parts of the store since the start.
    pub has_refused_reads: bool,
    /// When the first certificate expires, and the machine's time, both in seconds since 1970. `None`: there are no
    /// certificates.
    pub certificates_end: Option<(u64, u64)>,
    /// Whether connections by TLS are refused because the files of `[tls]` cannot be used.
    pub is_tls_unavailable: bool,
    /// Whether the file of `load_definitions` could not be read to its end at the start.
    pub has_unread_definitions: bool,
    /// Number of publishers that wait for capacity.
    pub waiting_publishers: u32,
    /// The shortages that most of them wait for.
    pub waiters: WaitingByKind,
    /// The configured limit of the log, in bytes; 0 without a store.
    pub disk_limit_bytes: u64,
    /// The store's values; all 0 without a store.
    pub store: StoreView,
    /// The configured endurance of the flash.
    pub endurance: Endurance,
    /// The lines of the memory table: purpose and bytes.
    pub memory: Vec<(&'static str, u64)>,
}

impl Process {
    /// Returns the open listeners: protocol, a space, and the address. Those with TLS are closed while no certificate
    /// can be used.
    pub(crate) fn open_listeners(&self) -> impl Iterator<Item = &str> {
        let has_tls =
            |text: &str| ["amqp/ssl ", "mqtt/ssl ", "https "].iter().any(|spoken| text.starts_with(spoken));
        self.listeners
            .iter()
            .map(String::as_str)
            .filter(move |text| !self.is_tls_unavailable || !has_tls(text))
    }

    /// Returns the values of the disk for the text of an alarm.
    pub const fn disk_facts(&self) -> DiskFacts {
        DiskFacts { limit_bytes: self.disk_limit_bytes, has_no_inodes: self.machine.has_no_inodes }
    }

    /// Returns the free bytes below which publishers of persistent messages are blocked: the free bytes less what the
    /// store may still write. Returns `None` without a store.
    pub fn disk_free_limit(&self) -> Option<u64> {
        let limit = self.machine.disk_free_bytes.saturating_sub(self.store.room_bytes);
        (self.store.bytes_max > 0).then_some(limit)
    }
}

/// Requests to the event loop.
#[derive(Debug, Default)]
pub struct Orders {
    /// Whether the broker is to stop.
    pub stop: bool,
    /// Names of bridges, and what to do with them, in the order of the requests.
    pub bridges: Vec<(String, BridgeOrder)>,
}

/// An order to a bridge.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BridgeOrder {
    /// Send parked messages to their original destination again.
    Retry,
    /// Close the links and do not open them again.
    Pause,
    /// Open the links at once.
    Resume,
    /// Close the links and open them again.
    Restart,
}
