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

use super::answer::{Answer, not_found, unauthorized};
use super::api;
use super::exposition::{Exposition, GROUPS, Labels, Lines, OURS, Rows, VHOSTS_MAX, sums};
use super::http::{Request, decode};
use super::management::{RABBITMQ_VERSION, Who};
use super::request_context::RequestContext;

/// What the answer is.
pub(super) const MEDIA: &str = "text/plain; version=0.0.4; charset=utf-8";

const AMQP: &str = "protocol=\"amqp091\"";
/// All our queues behave as RabbitMQ's classic ones.
const AMQP_QUEUE: &str = "protocol=\"amqp091\",queue_type=\"rabbit_classic_queue\"";

/// Which of the three paths it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Scope {
    Aggregated,
    PerObject,
    Detailed,
}

/// Answers a request for metrics.
pub(super) fn answer(request: &Request<'_>, context: &RequestContext<'_>, who: &Who) -> Answer {
    let path: heapless::Vec<&str, 3> = request.segments.iter().map(|segment| &**segment).take(3).collect();
    let scope = match path.as_slice() {
        ["metrics"] => Scope::Aggregated,
        ["metrics", "per-object"] => Scope::PerObject,
        ["metrics", "detailed"] => Scope::Detailed,
        _ => return not_found("Not Found"),
    };
    if !who.is_monitor {
        return unauthorized("Not monitor user");
    }
    let asked = |key: &'static str| {
        let pairs = request.query.split('&').filter_map(|pair| pair.split_once('='));
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
    if is_wanted("node_metrics") {
        node(&mut lines, context);
    }
    if scope != Scope::Detailed {
        messages(&mut lines, context);
        own(&mut lines, context);
    }
    if scope == Scope::Aggregated {
        sums(&mut lines, context.context());
    }
    Answer::Metrics(out, Box::new(Exposition::new(prefix, groups, vhosts)))
}

/// What the dashboard joins everything with.
fn who_we_are(lines: &mut Lines<'_>, context: &RequestContext<'_>, scope: Scope) {
    let prefix = core::mem::replace(&mut lines.prefix, "rabbitmq_");
    let mut labels = Labels::default();
    labels.add("rabbitmq_version", RABBITMQ_VERSION);
    labels.add("leveret_version", env!("CARGO_PKG_VERSION"));
    lines.all(&labels.0, &[("build_info RabbitMQ & Erlang/OTP version info", 1)]);
    let mut labels = Labels::default();
    labels.add("rabbitmq_node", &context.process.node);
    labels.add("rabbitmq_cluster", &context.process.node);
    let endpoint = match scope {
        Scope::Aggregated => "aggregated",
        Scope::PerObject => "per-object",
        Scope::Detailed => "detailed",
    };
    labels.add("rabbitmq_endpoint", endpoint);
    lines.all(&labels.0, &[("identity_info RabbitMQ node & cluster identity info", 1)]);
    lines.prefix = prefix;
}

fn churn(lines: &mut Lines<'_>, context: &RequestContext<'_>) {
    let (counters, process) = (context.broker.counters(), context.process);
    let closed = process.connections_made - u64::from(process.connections);
    let channels_closed = counters.channels_opened.saturating_sub(context.broker.gauges().channels as u64);
    let families = [
        ("connections_opened_total Total number of connections opened", process.connections_made),
        ("connections_closed_total Total number of connections closed or terminated", closed),
        ("channels_opened_total Total number of channels opened", counters.channels_opened),
        ("channels_closed_total Total number of channels closed", channels_closed),
        ("queues_declared_total Total number of queues declared", counters.queues_declared),
        ("queues_created_total Total number of queues created", counters.queues_created),
        ("queues_deleted_total Total number of queues deleted", counters.queues_deleted),
    ];
    lines.all("", &families);
}

/// The machine and the store, as the API's nodes have them. What the machine does not say is 0 there.
fn node(lines: &mut Lines<'_>, context: &RequestContext<'_>) {
    let (process, machine, store) = (context.process, context.process.machine, context.process.store);
    let is_full = u64::from(api::is_disk_full(context));
    lines.all(
        "",
        &[("alarms_free_disk_space_watermark is 1 if free disk space watermark alarm is in effect", is_full)],
    );
    let families = [
        ("process_open_fds Open file descriptors", machine.files_open),
        ("process_max_fds Open file descriptors limit", machine.files_max),
        ("process_resident_memory_bytes Memory used in bytes", machine.resident_bytes),
        ("resident_memory_limit_bytes Memory high watermark in bytes", process.memory_limit_bytes),
        ("disk_space_available_bytes Disk space available in bytes", machine.disk_free_bytes),
    ];
    families.into_iter().filter(|family| family.1 > 0).for_each(|family| lines.all("", &[family]));
    if let Some(limit) = process.disk_free_limit() {
        let families = [
            ("disk_space_available_limit_bytes Free disk space low watermark in bytes", limit),
            ("io_write_bytes_total Total number of I/O bytes written", store.written_bytes),
            ("io_sync_ops_total Total number of I/O sync operations", store.syncs),
        ];
        lines.all("", &families);
    }
    lines.all("", &[("process_open_tcp_sockets Open TCP sockets", process.connections.into())]);
    lines.head("erlang_uptime_seconds Node uptime");
    let ms = process.uptime_ms;
    lines.sample("erlang_uptime_seconds", "", format_args!("{}.{:03}", ms / 1000, ms % 1000));
}

/// Messages and who sends them.
fn messages(lines: &mut Lines<'_>, context: &RequestContext<'_>) {
    let (broker, counters) = (&*context.broker, context.broker.counters());
    let queues = || (0..broker.queue_places()).filter_map(|at| broker.queue_at(at));
    let consumers = queues().map(|queue| u64::from(queue.consumers)).sum();
    let families = [
        ("connections Connections currently open", context.process.connections.into()),
        ("channels Channels currently open", broker.gauges().channels as u64),
        ("consumers Consumers currently connected", consumers),
        ("queues Queues available", queues().count() as u64),
    ];
    lines.all("", &families);
    let families = [
        ("global_publishers Current number of publishers", broker.publishers()),
        ("global_consumers Current number of consumers", consumers),
        (
            "global_messages_received_total Total number of messages received from publishers",
            counters.received,
        ),
        (
            "global_messages_received_confirm_total Total number of messages received from publishers expecting \
             confirmations",
            counters.received_confirm,
        ),
        (
            "global_messages_routed_total Total number of messages routed to queues or streams",
            counters.routed,
        ),
        (
            "global_messages_confirmed_total Total number of messages confirmed to publishers",
            context.process.confirmed,
        ),
        (
            "global_messages_unroutable_dropped_total Total number of messages published as non-mandatory into \
             an exchange and dropped as unroutable",
            counters.unroutable_dropped,
        ),
        (
            "global_messages_unroutable_returned_total Total number of messages published as mandatory into an \
             exchange and returned to the publisher as unroutable",
            counters.unroutable_returned,
        ),
    ];
    lines.all(AMQP, &families);
    let families = [
        (
            "global_messages_delivered_total Total number of messages delivered to consumers",
            counters.delivered(),
        ),
        (
            "global_messages_delivered_consume_manual_ack_total Total number of messages delivered to consumers \
             using basic.consume with manual acknowledgment",
            counters.delivered_manual,
        ),
        (
            "global_messages_delivered_consume_auto_ack_total Total number of messages delivered to consumers \
             using basic.consume with automatic acknowledgment",
            counters.delivered_auto,
        ),
        (
            "global_messages_delivered_get_manual_ack_total Total number of messages delivered to consumers \
             using basic.get with manual acknowledgment",
            counters.get_manual,
        ),
        (
            "global_messages_delivered_get_auto_ack_total Total number of messages delivered to consumers using \
             basic.get with automatic acknowledgment",
            counters.get_auto,
        ),
        (
            "global_messages_get_empty_total Total number of times basic.get operations fetched no message",
            counters.get_empty,
        ),
        (
            "global_messages_redelivered_total Total number of messages redelivered to consumers",
            counters.redelivered,
        ),
        (
            "global_messages_acknowledged_total Total number of messages acknowledged by consumers",
            counters.acknowledged,
        ),
    ];
    lines.all(AMQP_QUEUE, &families);
}

/// What RabbitMQ has no name for.
fn own(lines: &mut Lines<'_>, context: &RequestContext<'_>) {
    let prefix = core::mem::replace(&mut lines.prefix, OURS);
    let (process, store) = (context.process, context.process.store);
    if store.bytes_max > 0 {
        let families = [
            ("flash_written_bytes_total Bytes written to the data directory", store.written_bytes),
            ("flash_syncs_total Times that the disk was asked to keep them", store.syncs),
            ("store_max_bytes Bytes that the store may take", store.bytes_max),
            ("store_room_bytes Bytes that it has room for now", store.room_bytes),
        ];
        lines.all("", &families);
    }
    let families = [
        ("publishers_waiting Clients that wait for room to publish", process.waiting_publishers.into()),
        ("handshakes_evicted_total Handshakes ended because others wanted in", process.handshakes_evicted),
        ("newcomers_dropped_total Newcomers hung up on before a handshake", process.newcomers_dropped),
        ("alarms Alarms that somebody should see to", api::which_alarms(context).len() as u64),
    ];
    lines.all("", &families);
    let pools = context.broker.pools(context.messages);
    for (family, shown) in [
        ("pool_used What is taken of a pool, by the key that makes it larger", false),
        ("pool_max All that the pool has", true),
    ] {
        let name = lines.head(family);
        for pool in &pools {
            let mut labels = Labels::default();
            labels.add("pool", pool.key);
            lines.sample(name, &labels.0, if shown { pool.max } else { pool.used });
        }
    }
    lines.prefix = prefix;
}
