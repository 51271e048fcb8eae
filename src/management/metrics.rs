//! Metrics in the text format of Prometheus, under the names that RabbitMQ gives them.
//!
//! Why it exists: whoever runs many brokers looks at one dashboard, and the one for RabbitMQ is there. What
//! has no name with RabbitMQ is called `leveret_…`.
//!
//! | path | what |
//! |------|------|
//! | `/metrics` | everything, queues, channels and connections as sums |
//! | `/metrics/per-object` | the same, one by one |
//! | `/metrics/detailed` | only what is asked for with `family=`, one by one, of the queues of `vhost=` |
//!
//! Always true: what is not known is left out; samples of one name follow each other under one head; single
//! numbers are written at once, rows while the client takes them; a name or label can hold any letter, for
//! labels are escaped.

use leveret_core::command::RABBITMQ_VERSION;
use leveret_core::journal::{LATENCY_BOUNDS_MS, LatencyHistogram};

use super::alarms;
use super::answer::Answer;
use super::call::Call;
use super::exposition::{Exposition, GROUPS, Labels, Lines, OURS, Rows, UNKNOWN, VHOSTS_MAX, sums};
use super::http::decode;
use super::request_context::RequestContext;
use super::wear::Wear;

/// What the answer is.
pub(super) const MEDIA: &str = "text/plain; version=0.0.4; charset=utf-8";

const AMQP: &str = "protocol=\"amqp091\"";
const DEAD_LETTERS: &str = "queue_type=\"rabbit_classic_queue\",dead_letter_strategy=\"at_most_once\"";
/// All our queues behave as RabbitMQ's classic ones.
const AMQP_QUEUE: &str = "protocol=\"amqp091\",queue_type=\"rabbit_classic_queue\"";

// Each line is a name, a space and what it says; values are given in the same order.
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
// The pools have their sizes from the start, so of memory and descriptors there is no alarm.
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
flash_syncs_total Times that the disk was asked to keep them
store_max_bytes Bytes that the store may take
store_room_bytes Bytes that it has room for now
store_log_bytes Bytes that the log takes of it, settled messages that are not compacted yet included
store_live_bytes Bytes of the log that messages in queues take
sync_budget_delayed_commits_total Commits that publishers waited for and that waited for syncs_per_second
publishers_waiting Clients that wait for room to publish
handshakes_evicted_total Connections closed before their login for another connection";
const DEAD_LETTERED: &str = "global_messages_dead_lettered_rejected_total Total number of messages \
dead-lettered due to basic.reject or basic.nack
global_messages_dead_lettered_expired_total Total number of messages dead-lettered due to message TTL exceeded
global_messages_dead_lettered_maxlen_total Total number of messages dead-lettered due to overflow drop-head or \
reject-publish-dlx
global_messages_dead_lettered_delivery_limit_total Total number of messages dead-lettered due to delivery-limit \
exceeded";

const WEAR: &str = "flash_written_ever_bytes Bytes written to the data directory by all lives of the store
flash_bytes_per_day Bytes that this process writes in a day
flash_endurance_bytes Bytes that the card takes";

/// Which of the three paths it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Scope {
    Aggregated,
    PerObject,
    Detailed,
}

/// Answers a request for metrics, whoever asks.
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
    who_we_are(&mut lines, context, scope);
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

/// What the dashboard joins everything with.
#[cold]
fn who_we_are(lines: &mut Lines<'_>, context: &RequestContext<'_>, scope: Scope) {
    let prefix = core::mem::replace(&mut lines.prefix, "rabbitmq_");
    let mut labels = Labels::default();
    labels.add("rabbitmq_version", RABBITMQ_VERSION);
    labels.add("leveret_version", env!("CARGO_PKG_VERSION"));
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
        process.connections_made,
        process.connections_made - u64::from(process.connections),
        counters.channels_opened,
        counters.channels_opened.saturating_sub(context.broker.gauges().channels as u64),
        counters.queues_declared,
        counters.queues_created,
        counters.queues_deleted,
    ];
    lines.all("", CHURN, &values);
}

/// What the machine does not say is 0 there.
const fn known(value: u64) -> u64 {
    if value == 0 { UNKNOWN } else { value }
}

/// The process and its machine, as the API's nodes have them.
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

/// What they may become.
#[cold]
fn bounds(lines: &mut Lines<'_>, context: &RequestContext<'_>) {
    let process = context.process;
    let disk = process.disk_free_limit().unwrap_or(UNKNOWN);
    // Nothing else than descriptors limits sockets.
    let files_max = known(process.machine.files_max);
    lines.all("", BOUNDS, &[files_max, files_max, process.memory_limit_bytes, disk]);
    let name = lines.head("erlang_uptime_seconds Node uptime");
    let ms = process.uptime_ms;
    lines.sample(name, "", &format_args!("{}.{:03}", ms / 1000, ms % 1000));
}

/// Messages and who sends them.
#[cold]
fn messages(lines: &mut Lines<'_>, context: &RequestContext<'_>) {
    let (broker, counters) = (&*context.broker, context.broker.counters());
    let (mut queues, mut consumers) = (0, 0);
    for queue in (0..broker.views().queue_places()).filter_map(|at| broker.views().queue_at(at)) {
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

/// How long publishers of persistent messages wait for their confirms.
#[cold]
fn confirm_latency(lines: &mut Lines<'_>, context: &RequestContext<'_>) {
    if context.process.store.bytes_max == 0 {
        return;
    }
    let LatencyHistogram { counts, sum_ms } = context.journal.latency();
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

/// What RabbitMQ has no name for.
#[cold]
fn own(lines: &mut Lines<'_>, context: &RequestContext<'_>) {
    let prefix = core::mem::replace(&mut lines.prefix, OURS);
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
    ];
    lines.all("", OWN, &values);
    let name = lines.head("alarms is 1 while this alarm is in effect");
    let alarms = alarms::which_alarms(context);
    let kind_of = |alarm: &str| alarm.split_once(':').map_or("", |(kind, _)| kind).to_owned();
    debug_assert!(
        alarms.iter().all(|alarm| alarms::KINDS.contains(&&*kind_of(alarm))),
        "each has its sample"
    );
    for kind in alarms::KINDS {
        let is_on = alarms.iter().any(|alarm| kind_of(alarm) == kind);
        lines.sample(name, &format!("alarm=\"{kind}\""), &u8::from(is_on));
    }
    confirm_latency(lines, context);
    let machine = process.machine;
    let seconds = |ms: u64| format!("{}.{:03}", ms / 1000, ms % 1000);
    if machine.cpu_ms > 0 {
        let name = lines.head("process_cpu_seconds_total Processor time that the process has used");
        lines.sample(name, "", &seconds(machine.cpu_ms));
    }
    if let Some(thousandths) = machine.temperature_mc {
        let name = lines.head("board_temperature_celsius Temperature of the board, as the kernel tells it");
        lines.sample(name, "", &format_args!("{:.1}", f64::from(thousandths) / 1000.0));
    }
    if let Some(wear) = Wear::of(process) {
        let endurance = known(process.endurance.bytes);
        lines.all("", WEAR, &[wear.written_bytes, wear.bytes_per_day.unwrap_or(UNKNOWN), endurance]);
        if let Some(tenths) = wear.tenths_left {
            let name = lines.head("flash_years_left Years that the card lasts at this rate");
            lines.sample(name, "", &format_args!("{}.{}", tenths / 10, tenths % 10));
        }
    }
    let pools = context.broker.views().pools(context.messages);
    for (family, is_used) in [
        ("pool_used What is taken of a pool, by the key that makes it larger", true),
        ("pool_max All that the pool has", false),
    ] {
        let name = lines.head(family);
        for pool in &pools {
            let mut labels = Labels::default();
            labels.add("pool", pool.key);
            lines.sample(name, labels.as_str(), if is_used { &pool.used } else { &pool.max });
        }
    }
    lines.prefix = prefix;
}
