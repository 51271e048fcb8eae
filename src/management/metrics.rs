//! Metrics in the text format of Prometheus, under RabbitMQ's names.
//!
//! RabbitMQ's dashboards work with these names. Metrics without a name in RabbitMQ begin with `leveret_`.
//!
//! | path | contents |
//! |------|----------|
//! | `/metrics` | everything; queues, channels and connections as sums |
//! | `/metrics/per-object` | everything, one sample for each object |
//! | `/metrics/detailed` | only the families in `family=`, one sample for each object, of the queues of `vhost=` |
//!
//! Four thousand queues with seven values each are three megabytes of text, and the samples of one name must be
//! consecutive. So an [`Exposition`] is a cursor that goes through the rows once for each name.
//!
//! # Invariants
//! - Unknown values are omitted.
//! - The samples of one name are consecutive and have one head.
//! - Single values are written at once, rows while the client reads them.
//! - Labels are escaped, so a name may contain any character.
//! - One call examines at most `POSITIONS_PER_STEP` positions. It writes at most the bytes it was allowed to, plus one
//!   sample.

use core::fmt::Display;

use leveret_broker::QueueView;
use leveret_core::command::RABBITMQ_VERSION;
use leveret_core::version::build_version;
use leveret_storage::{LATENCY_BOUNDS_MS, LatencyHistogram};

use super::alarms;
use super::bridges::Outage;
use super::columns::{Channels, ConnectionRow, Connections, ListedKind, Queues, channel_pid, connection_pid};
use super::http::decode;
use super::listing::OutputLimits;
use super::node::Wear;
use super::request::{Answer, Call};
use super::request::{BridgeLinkView, Process, ReadContext, RequestContext};

/// The media type of the response.
pub(super) const MEDIA: &str = "text/plain; version=0.0.4; charset=utf-8";

const AMQP: &str = "protocol=\"amqp091\"";
const DEAD_LETTERS: &str = "queue_type=\"rabbit_classic_queue\",dead_letter_strategy=\"at_most_once\"";
/// All queues behave like RabbitMQ's classic queues.
const AMQP_QUEUE: &str = "protocol=\"amqp091\",queue_type=\"rabbit_classic_queue\"";

// Each line is a name, a space and the help text. The values are given in the same order.
const CHURN: &str = "connections_opened_total Total number of connections opened
connections_closed_total Total number of connections closed or terminated
channels_opened_total Total number of channels opened
channels_closed_total Total number of channels closed
queues_declared_total Total number of queues declared
queues_created_total Total number of queues created
queues_deleted_total Total number of queues deleted";
const MACHINE: &str = "process_open_fds Open file descriptors
process_open_tcp_sockets Open TCP sockets
process_resident_memory_bytes Memory used in bytes
disk_space_available_bytes Disk space available in bytes";
const BOUNDS: &str = "process_max_fds Open file descriptors limit
process_max_tcp_sockets Open TCP sockets limit
resident_memory_limit_bytes Memory high watermark in bytes
disk_space_available_limit_bytes Free disk space low watermark in bytes";
const STORE: &str = "io_write_bytes_total Total number of I/O bytes written
io_sync_ops_total Total number of I/O sync operations";
// The pools have a fixed size from the start, so the alarms of memory and descriptors are always off.
const ALARM: &str = "alarms_free_disk_space_watermark is 1 if free disk space watermark alarm is in effect
alarms_memory_used_watermark is 1 if VM memory watermark alarm is in effect
alarms_file_descriptor_limit is 1 if file descriptor limit alarm is in effect";
const TOTALS: &str = "connections Connections currently open
channels Channels currently open
consumers Consumers currently connected
queues Queues available";
const PUBLISHED: &str = "global_publishers Current number of publishers
global_consumers Current number of consumers
global_messages_received_total Total number of messages received from publishers
global_messages_received_confirm_total Total number of messages received from publishers expecting \
confirmations
global_messages_routed_total Total number of messages routed to queues or streams
global_messages_confirmed_total Total number of messages confirmed to publishers
global_messages_unroutable_dropped_total Total number of messages published as non-mandatory into an \
exchange and dropped as unroutable
global_messages_unroutable_returned_total Total number of messages published as mandatory into an exchange \
and returned to the publisher as unroutable";
const DELIVERED: &str = "global_messages_delivered_total Total number of messages delivered to consumers
global_messages_delivered_consume_manual_ack_total Total number of messages delivered to consumers using \
basic.consume with manual acknowledgment
global_messages_delivered_consume_auto_ack_total Total number of messages delivered to consumers using \
basic.consume with automatic acknowledgment
global_messages_delivered_get_manual_ack_total Total number of messages delivered to consumers using \
basic.get with manual acknowledgment
global_messages_delivered_get_auto_ack_total Total number of messages delivered to consumers using \
basic.get with automatic acknowledgment
global_messages_get_empty_total Total number of times basic.get operations fetched no message
global_messages_redelivered_total Total number of messages redelivered to consumers
global_messages_acknowledged_total Total number of messages acknowledged by consumers";
const OWN: &str = "flash_written_bytes_total Bytes written to the data directory
flash_syncs_total Number of syncs of the disk
store_max_bytes Maximum size of the store in bytes
store_room_bytes Bytes that the store can write now
store_log_bytes Size of the log in bytes, including settled messages that are not compacted yet
store_live_bytes Bytes in the log of messages in queues
sync_budget_delayed_commits_total Commits with confirms that were delayed by syncs_per_second
publishers_waiting Blocked publishers
handshakes_evicted_total Connections closed before their login for another connection
publisher_messages_dropped_total Unconfirmed messages dropped with the connections of their publishers, which were gone \
or were closed for another client before there was capacity
message_headers_shortened_total Dead letters, delayed and parked messages whose headers were shortened to fit into a frame or \
into memory";
const MQTT: &str = "mqtt_sessions MQTT sessions
mqtt_sessions_disconnected MQTT sessions whose clients are not connected
mqtt_session_messages_dropped_total Messages that MQTT sessions dropped: there were too many, or the client accepts no \
such large packet
mqtt_clients_slow Connected clients that take their messages more slowly than they arrive
mqtt_wills_dropped_total Wills that queues did not get: a queue had used its share, or too many wills waited for capacity
mqtt_retained_messages Retained messages
mqtt_retained_bytes Bytes of the topics, properties and payloads of retained messages
mqtt_retained_refused_total Messages with RETAIN that exceeded a limit and were not retained";
const DEAD_LETTERED: &str = "global_messages_dead_lettered_rejected_total Total number of messages \
dead-lettered due to basic.reject or basic.nack
global_messages_dead_lettered_expired_total Total number of messages dead-lettered due to message TTL exceeded
global_messages_dead_lettered_maxlen_total Total number of messages dead-lettered due to overflow drop-head or \
reject-publish-dlx
global_messages_dead_lettered_delivery_limit_total Total number of messages dead-lettered due to delivery-limit \
exceeded";

const WEAR: &str = "flash_written_ever_bytes Bytes written to the data directory since the store was created
flash_bytes_per_day Bytes that this process writes per day
flash_endurance_bytes Configured endurance of the flash in bytes";

/// The requested path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Scope {
    Aggregated,
    PerObject,
    Detailed,
}

/// Answers a request for metrics, of any client.
#[cold]
pub(super) fn answer(call: &Call<'_>, context: &RequestContext<'_>) -> Answer {
    let scope = match call.request.segments.get(1).map(|last| &**last) {
        Some("per-object") => Scope::PerObject,
        Some(_) => Scope::Detailed,
        None => Scope::Aggregated,
    };
    let asked = |key: &'static str| {
        let pairs = call.request.query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.filter(move |(name, _)| *name == key).map(|pair| pair.1)
    };
    let is_wanted = |family: &str| scope != Scope::Detailed || asked("family").any(|other| other == family);
    let mut groups = 0;
    for (at, group) in GROUPS.iter().enumerate() {
        let is_here = scope != Scope::Aggregated || group.rows == Rows::Bridges;
        groups |= u16::from(is_here && group.families.iter().any(|family| is_wanted(family))) << at;
    }
    let vhosts = asked("vhost").filter_map(|name| Some(decode(name)?.as_ref().into()));
    let vhosts = vhosts.take(VHOSTS_MAX).collect();
    let prefix = if scope == Scope::Detailed { "rabbitmq_detailed_" } else { "rabbitmq_" };
    let mut out = Vec::new();
    let mut lines = Lines { out: &mut out, prefix };
    identity(&mut lines, context, scope);
    if is_wanted("connection_churn_metrics") {
        churn(&mut lines, context);
    }
    if is_wanted("node_coarse_metrics") {
        machine(&mut lines, context);
    }
    if is_wanted("node_metrics") {
        bounds(&mut lines, context);
    }
    if is_wanted("node_persister_metrics") && context.process.store.bytes_max > 0 {
        let store = context.process.store;
        lines.all("", STORE, &[store.written_bytes, store.syncs]);
    }
    if scope != Scope::Detailed {
        messages(&mut lines, context);
        own(&mut lines, context);
    }
    if scope == Scope::Aggregated {
        lines.all("", ALARM, &[alarms::is_disk_full(context).into(), 0, 0]);
        sums(&mut lines, context.context());
    }
    Answer::Metrics(out, Box::new(Exposition::new(prefix, groups, vhosts)))
}

/// Writes the identity of the broker, with which dashboards join all other metrics.
#[cold]
fn identity(lines: &mut Lines<'_>, context: &RequestContext<'_>, scope: Scope) {
    let prefix = core::mem::replace(&mut lines.prefix, "rabbitmq_");
    let mut labels = Labels::default();
    labels.add("rabbitmq_version", RABBITMQ_VERSION);
    labels.add("leveret_version", build_version());
    lines.all(labels.as_str(), "build_info RabbitMQ & Erlang/OTP version info", &[1]);
    let mut labels = Labels::default();
    labels.add("rabbitmq_node", &context.process.node);
    labels.add("rabbitmq_cluster", &context.process.node);
    let endpoint = match scope {
        Scope::Aggregated => "aggregated",
        Scope::PerObject => "per-object",
        Scope::Detailed => "detailed",
    };
    labels.add("rabbitmq_endpoint", endpoint);
    lines.all(labels.as_str(), "identity_info RabbitMQ node & cluster identity info", &[1]);
    lines.prefix = prefix;
}

#[cold]
fn churn(lines: &mut Lines<'_>, context: &RequestContext<'_>) {
    let (counters, process) = (context.broker.counters(), context.process);
    let values = [
        process.connections_opened,
        process.connections_opened - u64::from(process.connections),
        counters.channels_opened,
        counters.channels_opened.saturating_sub(context.broker.gauges().channels as u64),
        counters.queues_declared,
        counters.queues_created,
        counters.queues_deleted,
    ];
    lines.all("", CHURN, &values);
}

/// Converts a value of the machine: 0 means unknown there.
const fn known(value: u64) -> u64 {
    if value == 0 { UNKNOWN } else { value }
}

/// Writes the state of the process and its machine, as the API's node does.
#[cold]
fn machine(lines: &mut Lines<'_>, context: &RequestContext<'_>) {
    let machine = context.process.machine;
    let values = [
        known(machine.files_open),
        context.process.connections.into(),
        known(machine.resident_bytes),
        known(machine.disk_free_bytes),
    ];
    lines.all("", MACHINE, &values);
}

/// Writes the limits of the process.
#[cold]
fn bounds(lines: &mut Lines<'_>, context: &RequestContext<'_>) {
    let process = context.process;
    let disk = process.disk_free_limit().unwrap_or(UNKNOWN);
    // Sockets are limited only by file descriptors.
    let files_max = known(process.machine.files_max);
    lines.all("", BOUNDS, &[files_max, files_max, process.memory_limit_bytes, disk]);
    let name = lines.head("erlang_uptime_seconds Node uptime");
    let ms = process.uptime_ms;
    lines.sample(name, "", &format_args!("{}.{:03}", ms / 1000, ms % 1000));
}

/// Writes the counters of messages, and the numbers of publishers and consumers.
#[cold]
fn messages(lines: &mut Lines<'_>, context: &RequestContext<'_>) {
    let (broker, counters) = (&*context.broker, context.broker.counters());
    let (mut queues, mut consumers) = (0, 0);
    for queue in broker.views().queues() {
        (queues, consumers) = (queues + 1, consumers + u64::from(queue.consumers));
    }
    let channels = broker.gauges().channels as u64;
    lines.all("", TOTALS, &[context.process.connections.into(), channels, consumers, queues]);
    let published = [
        broker.views().publishers(),
        consumers,
        counters.received,
        counters.received_confirm,
        counters.routed,
        context.process.confirmed,
        counters.unroutable_dropped,
        counters.unroutable_returned,
    ];
    lines.all(AMQP, PUBLISHED, &published);
    let delivered = [
        counters.delivered(),
        counters.delivered_manual,
        counters.delivered_auto,
        counters.get_manual,
        counters.get_auto,
        counters.get_empty,
        counters.redelivered,
        counters.acknowledged,
    ];
    lines.all(AMQP_QUEUE, DELIVERED, &delivered);
    let dead_lettered = [
        counters.dead_lettered_rejected,
        counters.dead_lettered_expired,
        counters.dead_lettered_max_length,
        counters.dead_lettered_delivery_limit,
    ];
    lines.all(DEAD_LETTERS, DEAD_LETTERED, &dead_lettered);
}

/// Writes how long publishers of persistent messages wait for their confirms.
#[cold]
fn confirm_latency(lines: &mut Lines<'_>, context: &RequestContext<'_>) {
    if context.process.store.bytes_max == 0 {
        return;
    }
    let LatencyHistogram { counts, sum_ms } = context.pending_writes.latency();
    let name = lines.head(
        "confirm_latency_seconds Time from the first message of a commit until its sync, once for each message that is \
         confirmed",
    );
    let (bucket, mut total) = (format!("{name}_bucket"), 0);
    for (at, count) in counts.into_iter().enumerate() {
        total += count;
        let bound = LATENCY_BOUNDS_MS.get(at).map(|ms| format!("{}.{:03}", ms / 1000, ms % 1000));
        let labels = format!("le=\"{}\"", bound.as_deref().unwrap_or("+Inf"));
        lines.sample(&bucket, &labels, &total);
    }
    lines.sample(&format!("{name}_sum"), "", &format_args!("{}.{:03}", sum_ms / 1000, sum_ms % 1000));
    lines.sample(&format!("{name}_count"), "", &total);
}

/// Writes the metrics that RabbitMQ has no name for.
#[cold]
fn own(lines: &mut Lines<'_>, context: &RequestContext<'_>) {
    let prefix = core::mem::replace(&mut lines.prefix, OWN_PREFIX);
    let (process, store) = (context.process, context.process.store);
    let of_store = |value| if store.bytes_max > 0 { value } else { UNKNOWN };
    let values = [
        of_store(store.written_bytes),
        of_store(store.syncs),
        of_store(store.bytes_max),
        of_store(store.room_bytes),
        of_store(store.log_bytes()),
        of_store(context.broker.views().live_log_bytes()),
        of_store(store.commits_over_budget),
        process.waiting_publishers.into(),
        process.handshakes_evicted,
        process.dropped_messages,
        context.broker.counters().headers_shortened,
    ];
    lines.all("", OWN, &values);
    let views = context.broker.views();
    let ((sessions, disconnected), (retained, bytes)) = (views.session_counts(), views.retained_counts());
    let dropped = views.session_messages_dropped();
    let wills_dropped = context.broker.counters().wills_dropped;
    let refused = views.retained_refused();
    let slow = views.slow_clients_count() as u64;
    let values = [sessions, disconnected, dropped, slow, wills_dropped, retained as u64, bytes, refused];
    lines.all("", MQTT, &values);
    let name = lines.head("alarms is 1 while this alarm is in effect");
    let alarms = alarms::which_alarms(context);
    let kind_of = |alarm: &str| alarm.split_once(':').map_or("", |(kind, _)| kind).to_owned();
    debug_assert!(
        alarms.iter().all(|alarm| alarms::NAMES.contains(&&*kind_of(alarm))),
        "each has its sample"
    );
    for kind in alarms::NAMES {
        let is_on = alarms.iter().any(|alarm| kind_of(alarm) == kind);
        lines.sample(name, &format!("alarm=\"{kind}\""), &u8::from(is_on));
    }
    confirm_latency(lines, context);
    own_of_machine(lines, process);
    let classes = [
        "memory_class_used_bytes Shared memory that a class uses",
        "memory_class_max_bytes Shared memory that a class could use now",
    ];
    let rows = views.classes().map(|class| (class.name, [class.used_bytes, class.bytes_max]));
    used_and_max(lines, "class", classes, &rows);
    let pools = ["pool_used Used part of a pool", "pool_max Size that the pool could have alone"];
    let rows = views.pools(context.messages).map(|pool| (pool.key, [pool.used, pool.max]));
    used_and_max(lines, "pool", pools, &rows);
    lines.prefix = prefix;
}

/// Writes the metrics of the processor, the board and its flash.
#[cold]
fn own_of_machine(lines: &mut Lines<'_>, process: &Process) {
    let machine = process.machine;
    let seconds = |ms: u64| format!("{}.{:03}", ms / 1000, ms % 1000);
    let name = lines.head("process_cpu_seconds_total Processor time that the process has used");
    lines.sample(name, "", &seconds(machine.cpu_ms));
    if let Some(thousandths) = machine.temperature_mc {
        let name = lines.head("board_temperature_celsius Temperature of the board as reported by the kernel");
        lines.sample(name, "", &format_args!("{:.1}", f64::from(thousandths) / 1000.0));
    }
    if let Some(wear) = Wear::of(process) {
        let endurance = known(process.endurance.bytes);
        lines.all("", WEAR, &[wear.written_bytes, wear.bytes_per_day.unwrap_or(UNKNOWN), endurance]);
        if let Some(tenths) = wear.tenths_left {
            let name =
                lines.head("flash_years_left Years until the flash reaches its endurance at this rate");
            lines.sample(name, "", &format_args!("{}.{}", tenths / 10, tenths % 10));
        }
    }
}

/// Writes two families, each with a sample for each row: what is used, and the most that could be.
fn used_and_max(lines: &mut Lines<'_>, label: &str, families: [&str; 2], rows: &[(&str, [u64; 2])]) {
    for (at, family) in families.into_iter().enumerate() {
        let name = lines.head(family);
        for (of, values) in rows {
            let mut labels = Labels::default();
            labels.add(label, of);
            lines.sample(name, labels.as_str(), &values[at]);
        }
    }
}

/// Positions examined in one step.
const POSITIONS_PER_STEP: usize = 512;
/// The most virtual hosts that one request may name.
pub(super) const VHOSTS_MAX: usize = 16;
/// The most values of a row.
const VALUES_MAX: usize = 17;

/// An unknown value, which is omitted.
pub(super) const UNKNOWN: u64 = u64::MAX;
/// The prefix of names that RabbitMQ does not have.
pub(super) const OWN_PREFIX: &str = "leveret_";

/// A kind of object with one row for each object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Rows {
    Queues,
    Channels,
    Connections,
    Bridges,
}

/// Metrics of one kind of object, written name by name.
pub(super) struct Group {
    /// The families of `/metrics/detailed` that include them.
    pub(super) families: &'static [&'static str],
    /// The kind of object.
    pub(super) rows: Rows,
    /// The number of values of a row before the values of this group.
    before: usize,
    /// One line for each name: the name, a space and the help text.
    names: &'static str,
}

/// All groups, in the order in which they are written.
pub(super) const GROUPS: &[Group] = &[
    Group {
        families: &["queue_coarse_metrics"],
        rows: Rows::Queues,
        before: 0,
        names: "queue_messages_ready Messages ready to be delivered to consumers
queue_messages_unacked Messages delivered to consumers but not yet acknowledged
queue_messages Sum of ready and unacknowledged messages - total queue depth",
    },
    Group {
        families: &["queue_consumer_count", "queue_metrics"],
        rows: Rows::Queues,
        before: 3,
        names: "queue_consumers Consumers on a queue",
    },
    Group {
        families: &["queue_metrics"],
        rows: Rows::Queues,
        before: 4,
        names: "queue_messages_ready_ram Ready messages stored in memory
queue_messages_persistent Persistent messages
queue_messages_ready_bytes Size in bytes of ready messages
queue_messages_ram Ready and unacknowledged messages stored in memory
queue_messages_unacked_ram Unacknowledged messages stored in memory
queue_messages_bytes Size in bytes of ready and unacknowledged messages
queue_messages_unacked_bytes Size in bytes of all unacknowledged messages",
    },
    Group {
        families: &["channel_metrics"],
        rows: Rows::Channels,
        before: 0,
        names: "channel_consumers Consumers on a channel
channel_messages_unacked Delivered but not yet acknowledged messages
channel_messages_uncommitted Messages received in a transaction but not yet committed
channel_acks_uncommitted Message acknowledgements in a transaction not yet committed
consumer_prefetch Limit of unacknowledged messages for each consumer
channel_prefetch Total limit of unacknowledged messages for all consumers on a channel",
    },
    Group {
        families: &["connection_coarse_metrics"],
        rows: Rows::Connections,
        before: 0,
        names: "connection_incoming_bytes_total Total number of bytes received on a connection
connection_outgoing_bytes_total Total number of bytes sent on a connection",
    },
    Group {
        families: &["connection_metrics"],
        rows: Rows::Connections,
        before: 2,
        names: "connection_incoming_packets_total Total number of packets received on a connection
connection_outgoing_packets_total Total number of packets sent on a connection
connection_channels Channels on a connection",
    },
    Group {
        families: &["leveret_bridge_metrics"],
        rows: Rows::Bridges,
        before: 0,
        names: "bridge_state 0 paused or ending, 1 waiting, 2 connecting, 3 blocked, 4 running, 5 resting, 6 held, 7 budget used
bridge_backlog_messages Local messages that wait to be forwarded
bridge_pending_messages Messages in flight
bridge_parked_messages Parked messages
bridge_moved_total Messages that the other side has accepted
bridge_repeats_total Messages sent that may have been sent before
bridge_connected_total Times that the link came up
bridge_failed_total Times that the link failed to come up, or went down
bridge_day_bytes Bytes of both links of the bridge today
bridge_day_bytes_max Daily budget in bytes, after which only urgent rules continue; 0 without a limit
bridge_yesterday_bytes Bytes of both links of the bridge yesterday
bridge_held_rules Rules that are paused until the next day or until their error is corrected
bridge_day_sent_bytes Bytes sent over this link today, including TLS
bridge_day_received_bytes Bytes received over this link today, including TLS
bridge_day_repeated_bytes Bytes of messages today that may have been transferred before
bridge_inflow_per_day Messages per day that arrive to be forwarded
bridge_outage_tenths_of_days Tenths of a day of such messages that fit on the disk",
    },
];

/// Rows of metrics that are still to be written.
#[derive(Debug)]
pub struct Exposition {
    prefix: &'static str,
    /// The groups whose rows are written, as a bit set.
    groups: u16,
    /// Only queues of these virtual hosts are written; if it is empty, all queues.
    vhosts: heapless::Vec<Box<str>, VHOSTS_MAX>,
    group: usize,
    name: usize,
    /// The next position. `None` until the head of the name is written.
    place: Option<usize>,
}

/// Writes the sums over queues, channels and connections.
#[cold]
pub(super) fn sums(lines: &mut Lines<'_>, context: ReadContext<'_>) {
    for rows in [Rows::Queues, Rows::Channels, Rows::Connections] {
        let mut sums = [0; VALUES_MAX];
        for place in 0..rows.places(context) {
            let values = rows.at(context, place, &[]).map_or([0; VALUES_MAX], |(_, values)| values);
            sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
        }
        for group in GROUPS.iter().filter(|group| group.rows == rows) {
            lines.all("", group.names, &sums[group.before..]);
        }
    }
}

/// Fills the values of a row up to the maximum.
fn padded<const COUNT: usize>(values: [u64; COUNT]) -> [u64; VALUES_MAX] {
    let mut all = [0; VALUES_MAX];
    all[..COUNT].copy_from_slice(&values);
    all
}

#[cold]
fn of_queue(queue: &QueueView<'_>) -> [u64; VALUES_MAX] {
    let (ready, unacked) = (queue.messages_ready.into(), queue.messages_unacknowledged.into());
    let (ready_ram, unacked_ram): (u64, u64) =
        (queue.messages_ready_ram.into(), queue.messages_unacknowledged_ram.into());
    let (ready_bytes, unacked_bytes) = (queue.message_bytes_ready, queue.message_bytes_unacknowledged);
    padded([
        ready,
        unacked,
        ready + unacked,
        queue.consumers.into(),
        ready_ram,
        queue.messages_persistent,
        ready_bytes,
        ready_ram + unacked_ram,
        unacked_ram,
        ready_bytes + unacked_bytes,
        unacked_bytes,
    ])
}

#[cold]
fn of_bridge(link: &BridgeLinkView<'_>, context: ReadContext<'_>) -> [u64; VALUES_MAX] {
    let outage = Outage::of(link, context.broker);
    let state = ["waiting", "connecting", "blocked", "running", "resting", "held", "budget used"];
    let state = state.iter().position(|state| *state == link.state).map_or(0, |at| at + 1);
    [
        state as u64,
        link.backlog(context.broker).unwrap_or(UNKNOWN),
        link.pending,
        link.parked_messages(context.broker),
        link.moved,
        link.repeats,
        link.connected,
        link.failed,
        link.day_bytes,
        link.day_bytes_max.unwrap_or(0),
        link.yesterday_bytes,
        link.held_rules,
        link.today[0].1,
        link.today[1].1,
        link.today[2].1,
        outage.inflow_per_day.unwrap_or(UNKNOWN),
        outage.tenths_left.unwrap_or(UNKNOWN),
    ]
}

impl Rows {
    fn places(self, context: ReadContext<'_>) -> usize {
        match self {
            Self::Queues => Queues::places(context),
            Self::Channels => Channels::places(context),
            Self::Connections => Connections::places(context),
            Self::Bridges => context.bridges.places(),
        }
    }

    /// Returns the labels and values of the row at a position. If `vhosts` is not empty, only queues of these virtual
    /// hosts are included.
    #[cold]
    fn at(
        self,
        context: ReadContext<'_>,
        place: usize,
        vhosts: &[Box<str>],
    ) -> Option<(Labels, [u64; VALUES_MAX])> {
        let mut labels = Labels::default();
        let values = match self {
            Self::Queues => {
                let queue = Queues::at(context, place)?;
                if !vhosts.is_empty() && vhosts.iter().all(|vhost| **vhost != *queue.vhost) {
                    return None;
                }
                labels.add("vhost", queue.vhost);
                labels.add("queue", queue.name);
                of_queue(&queue)
            }
            Self::Channels => {
                let channel = Channels::at(context, place)?.view;
                let socket = context.sockets.at(channel.connection)?;
                labels.add("channel", &channel_pid(socket.number, channel.connection, channel.number));
                padded([
                    channel.consumers.into(),
                    channel.messages_unacknowledged.into(),
                    channel.messages_uncommitted.into(),
                    channel.acks_uncommitted.into(),
                    channel.prefetch_count.into(),
                    channel.global_prefetch_count.into(),
                ])
            }
            Self::Connections => {
                let ConnectionRow { id, view, socket } = Connections::at(context, place)?;
                // RabbitMQ uses this label here, too.
                labels.add("channel", &connection_pid(socket.number, id));
                let (received, sent) = (socket.received, socket.sent);
                padded([received.0, sent.0, received.1, sent.1, view.channels.into()])
            }
            Self::Bridges => {
                let link = context.bridges.at(place)?;
                labels.add("bridge", link.bridge);
                labels.add("direction", link.direction);
                of_bridge(&link, context)
            }
        };
        Some((labels, values))
    }
}

impl Exposition {
    /// Creates an exposition of these groups, with a prefix of their names and a filter of the queues' virtual hosts.
    pub(super) const fn new(
        prefix: &'static str,
        groups: u16,
        vhosts: heapless::Vec<Box<str>, VHOSTS_MAX>,
    ) -> Self {
        Self { prefix, groups, vhosts, group: 0, name: 0, place: None }
    }

    /// Appends rows to `out`. Returns whether the exposition is complete.
    #[cold]
    pub fn write(&mut self, context: ReadContext<'_>, out: &mut Vec<u8>, limits: OutputLimits) -> bool {
        for _ in 0..POSITIONS_PER_STEP {
            let Some(group) = GROUPS.get(self.group) else { return true };
            if out.len() >= limits.enough {
                return false;
            }
            let is_wanted = self.groups & 1 << self.group != 0;
            let Some(family) = group.names.lines().nth(self.name).filter(|_| is_wanted) else {
                (self.group, self.name) = (self.group + 1, 0);
                continue;
            };
            let prefix = if group.rows == Rows::Bridges { OWN_PREFIX } else { self.prefix };
            let mut lines = Lines { out, prefix };
            let Some(place) = self.place else {
                lines.head(family);
                self.place = Some(0);
                continue;
            };
            if place >= group.rows.places(context) {
                (self.name, self.place) = (self.name + 1, None);
                continue;
            }
            let row = group.rows.at(context, place, &self.vhosts);
            if let Some((labels, values)) = row
                && values[group.before + self.name] != UNKNOWN
            {
                lines.sample(name_of(family), labels.as_str(), &values[group.before + self.name]);
            }
            self.place = Some(place + 1);
        }
        false
    }
}

/// Returns the name of a family from the line with its name and help text.
fn name_of(family: &str) -> &str {
    family.split_once(' ').map_or(family, |(name, _)| name)
}

/// Writes the format itself.
pub(super) struct Lines<'o> {
    pub(super) out: &'o mut Vec<u8>,
    /// The prefix of the names.
    pub(super) prefix: &'static str,
}

impl Lines<'_> {
    /// Writes the type and the help text of a family. The type follows from the name.
    #[cold]
    pub(super) fn head<'f>(&mut self, family: &'f str) -> &'f str {
        let (name, help) = family.split_once(' ').unwrap_or((family, ""));
        let kind = match name {
            name if name.ends_with("_total") => "counter",
            name if name.ends_with("_latency_seconds") => "histogram",
            name if name.ends_with("_info") || name.starts_with("alarms_") => "untyped",
            _ => "gauge",
        };
        let prefix = self.prefix;
        self.put(format_args!("# TYPE {prefix}{name} {kind}\n# HELP {prefix}{name} {help}\n"));
        name
    }

    #[cold]
    pub(super) fn sample(&mut self, name: &str, labels: &str, value: &dyn Display) {
        let prefix = self.prefix;
        let (open, close) = if labels.is_empty() { ("", "") } else { ("{", "}") };
        self.put(format_args!("{prefix}{name}{open}{labels}{close} {value}\n"));
    }

    /// Writes families of one sample each, without unknown values.
    #[cold]
    pub(super) fn all(&mut self, labels: &str, families: &str, values: &[u64]) {
        for (family, value) in families.lines().zip(values).filter(|(_, value)| **value != UNKNOWN) {
            let name = self.head(family);
            self.sample(name, labels, value);
        }
    }

    fn put(&mut self, text: core::fmt::Arguments<'_>) {
        // Writing to a `Vec` cannot fail.
        let _ = std::io::Write::write_fmt(self.out, text);
    }
}

/// Labels as they are written between the braces.
#[derive(Default)]
pub(super) struct Labels(Vec<u8>);

impl Labels {
    #[cold]
    pub(super) fn add(&mut self, name: &str, value: &str) {
        self.0.extend_from_slice(if self.0.is_empty() { b"" } else { b"," });
        self.0.extend_from_slice(name.as_bytes());
        self.0.extend_from_slice(b"=\"");
        for &byte in value.as_bytes() {
            if matches!(byte, b'\\' | b'"' | b'\n') {
                self.0.push(b'\\');
            }
            self.0.push(if byte == b'\n' { b'n' } else { byte });
        }
        self.0.push(b'"');
    }

    pub(super) fn as_str(&self) -> &str {
        // Only complete UTF-8 characters were appended.
        core::str::from_utf8(&self.0).unwrap_or_default()
    }
}

#[cfg(test)]
mod exposition_tests {
    use super::*;

    #[test]
    fn labels_hold_any_character() {
        let mut labels = Labels::default();
        labels.add("vhost", "/");
        labels.add("queue", "a\"b\\c\nd{}=,é");
        assert_eq!(labels.as_str(), "vhost=\"/\",queue=\"a\\\"b\\\\c\\nd{}=,é\"");
    }

    #[test]
    fn a_family_has_its_head_and_its_samples() {
        let mut out = Vec::new();
        let mut lines = Lines { out: &mut out, prefix: "rabbitmq_" };
        lines.all("", "queues Queues available\ny Not known\nx_total How many", &[3, UNKNOWN, u64::MAX - 1]);
        lines.all("a=\"b\"", "x_info What it is", &[1]);
        let text = String::from_utf8(out).expect("it is text");
        assert_eq!(
            text,
            "# TYPE rabbitmq_queues gauge\n# HELP rabbitmq_queues Queues available\nrabbitmq_queues 3\n\
             # TYPE rabbitmq_x_total counter\n# HELP rabbitmq_x_total How many\n\
             rabbitmq_x_total 18446744073709551614\n\
             # TYPE rabbitmq_x_info untyped\n# HELP rabbitmq_x_info What it is\nrabbitmq_x_info{a=\"b\"} 1\n"
        );
    }

    #[test]
    fn every_group_fits_into_the_values_of_its_row() {
        let is_small = |group: &Group| group.before + group.names.lines().count() <= VALUES_MAX;
        assert!(GROUPS.iter().all(is_small) && GROUPS.len() <= 16);
        let names = GROUPS.iter().flat_map(|group| group.names.lines()).map(name_of);
        let unique: std::collections::BTreeSet<_> = names.clone().collect();
        assert_eq!(unique.len(), names.count());
    }
}
