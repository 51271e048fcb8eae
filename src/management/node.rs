//! Writes the management API's description of the node: process, machine, memory, feature flags.
//!
//! # Invariants
//! - Values that only exist in RabbitMQ's Erlang machine are omitted, empty or 0.

use super::alarms;
use super::json::Json;
use super::management::{nested, numbers, texts};
use super::request_context::RequestContext;
use super::samples::Total;
use super::wear::Wear;

/// Parts of RabbitMQ's memory report that do not exist here and are 0.
const ERLANG_MEMORY_PARTS: [&str; 24] = [
    "connection_readers",
    "connection_writers",
    "connection_channels",
    "connection_other",
    "queue_procs",
    "queue_slave_procs",
    "quorum_queue_procs",
    "quorum_queue_dlx_procs",
    "stream_queue_procs",
    "stream_queue_replica_reader_procs",
    "stream_queue_coordinator_procs",
    "plugins",
    "other_proc",
    "metrics",
    "mgmt_db",
    "mnesia",
    "quorum_ets",
    "other_ets",
    "binary",
    "msg_index",
    "code",
    "atom",
    "allocated_unused",
    "reserved_unallocated",
];
/// RabbitMQ's feature flags whose features exist here. There are no streams.
const FLAGS: [&str; 6] = [
    "drop_unroutable_metric",
    "empty_basic_get_metric",
    "implicit_default_bindings",
    "quorum_queue",
    "user_limits",
    "virtual_host_metadata",
];

/// Writes the memory table.
pub(super) fn memory(json: &mut Json<'_>, context: &RequestContext<'_>) {
    let mut is_first = true;
    json.raw(b"[");
    for (key, bytes) in &context.process.memory {
        json.comma(&mut is_first);
        json.raw(b"{\"name\":");
        json.text(key);
        json.raw(b",\"bytes\":");
        json.number(*bytes);
        json.raw(b"}");
    }
    json.raw(b"]");
}

/// Writes the description of this node as an object.
pub(super) fn node(json: &mut Json<'_>, context: &RequestContext<'_>) {
    let (process, machine) = (context.process, context.process.machine);
    let mut is_first = true;
    json.raw(b"{");
    let pid = std::process::id().to_string();
    let members = [
        ("name", &*process.node),
        ("type", "disc"),
        ("db_dir", &process.data_dir),
        ("os_pid", &pid),
        ("rates_mode", "basic"),
        ("mem_calculation_strategy", "rss"),
    ];
    texts(json, &mut is_first, &members);
    let is_full = alarms::is_disk_full(context);
    let truths = [("running", true), ("mem_alarm", false), ("disk_free_alarm", is_full)];
    for (name, truth) in truths {
        json.name(name, &mut is_first);
        json.truth(truth);
    }
    let gauges = [
        ("uptime", process.uptime_ms),
        ("mem_used", machine.resident_bytes),
        ("mem_limit", process.memory_limit_bytes),
        ("disk_free", machine.disk_free_bytes),
        ("disk_free_limit", process.disk_free_limit().unwrap_or(0)),
        ("fd_used", machine.files_open),
        ("fd_total", machine.files_max),
        ("sockets_used", process.connections.into()),
        ("sockets_total", machine.files_max),
        ("proc_used", 1),
        ("proc_total", 1),
        ("run_queue", 0),
        ("processors", 1),
        ("io_write_bytes", process.store.written_bytes),
        ("io_sync_count", process.store.syncs),
        ("leveret_disk_limit_bytes", if process.store.bytes_max > 0 { process.disk_limit_bytes } else { 0 }),
        ("leveret_store_bytes_max", process.store.bytes_max),
        ("leveret_store_room_bytes", process.store.room_bytes),
        ("leveret_store_log_bytes", process.store.log_bytes()),
        ("leveret_store_live_bytes", context.broker.views().live_log_bytes()),
        ("leveret_sync_budget_delayed_commits", process.store.commits_over_budget),
    ];
    numbers(json, &mut is_first, &gauges);
    if let Some(wear) = Wear::of(process) {
        let known = [
            ("leveret_flash_written_bytes", Some(wear.written_bytes)),
            ("leveret_flash_bytes_per_day", wear.bytes_per_day),
            ("leveret_flash_endurance_bytes", Some(process.endurance.bytes).filter(|bytes| *bytes > 0)),
        ];
        for (name, number) in known {
            number.into_iter().for_each(|number| numbers(json, &mut is_first, &[(name, number)]));
        }
        if let Some(tenths) = wear.tenths_left {
            json.name("leveret_flash_years_left", &mut is_first);
            json.shown_raw(format_args!("{}.{}", tenths / 10, tenths % 10));
        }
    }
    for (name, total) in [("io_write_bytes", Total::IoWriteBytes), ("io_sync_count", Total::IoSyncCount)] {
        json.name(&format!("{name}_details"), &mut is_first);
        context.samples.total(json, total, None);
    }
    for (name, count, total) in churn(context) {
        numbers(json, &mut is_first, &[(name, count)]);
        json.name(&format!("{name}_details"), &mut is_first);
        context.samples.total(json, total, None);
    }
    exchange_types(json, &mut is_first);
    json.name("config_files", &mut is_first);
    json.texts([&*process.configuration].into_iter().filter(|file| !file.is_empty()));
    for name in ["partitions", "cluster_links", "log_files", "enabled_plugins", "applications", "contexts"] {
        json.name(name, &mut is_first);
        json.raw(b"[]");
    }
    json.raw(b"}");
}

/// Writes the supported exchange types.
pub(super) fn exchange_types(json: &mut Json<'_>, is_first: &mut bool) {
    json.name("exchange_types", is_first);
    let mut is_first_type = true;
    json.raw(b"[");
    for kind in ["direct", "fanout", "headers", "topic"] {
        json.comma(&mut is_first_type);
        json.raw(b"{");
        let mut is_first_field = true;
        texts(json, &mut is_first_field, &[("name", kind), ("description", "")]);
        json.name("enabled", &mut is_first_field);
        json.truth(true);
        json.raw(b"}");
    }
    json.raw(b"]");
}

/// Writes the memory of the process in RabbitMQ's format. RabbitMQ divides it into parts; here it is one value.
pub(super) fn node_memory(json: &mut Json<'_>, context: &RequestContext<'_>) {
    let resident = context.process.machine.resident_bytes;
    json.raw(b"{\"memory\":{");
    let mut is_first = true;
    for name in ERLANG_MEMORY_PARTS {
        numbers(json, &mut is_first, &[(name, 0)]);
    }
    numbers(json, &mut is_first, &[("other_system", resident)]);
    texts(json, &mut is_first, &[("strategy", "rss")]);
    json.name("total", &mut is_first);
    nested(json, &[("erlang", 0), ("rss", resident), ("allocated", resident)]);
    json.raw(b"}}");
}

/// Writes RabbitMQ's feature flags with their state.
pub(super) fn feature_flags(json: &mut Json<'_>) {
    let mut is_first = true;
    json.raw(b"[");
    for name in FLAGS.iter().chain(&["stream_queue"]) {
        let is_enabled = *name != "stream_queue";
        json.comma(&mut is_first);
        json.raw(b"{");
        let members = [
            ("name", *name),
            ("desc", ""),
            ("doc_url", ""),
            ("state", if is_enabled { "enabled" } else { "unavailable" }),
            ("stability", "stable"),
            ("provided_by", "rabbit"),
        ];
        texts(json, &mut true, &members);
        json.raw(b"}");
    }
    json.raw(b"]");
}

/// Returns the counters of created and closed or deleted objects since the start, with RabbitMQ's names and the
/// matching samples.
pub(super) fn churn(context: &RequestContext<'_>) -> [(&'static str, u64, Total); 7] {
    let (counters, process) = (context.broker.counters(), context.process);
    let channels = context.broker.gauges().channels as u64;
    [
        ("connection_created", process.connections_opened, Total::ConnectionCreated),
        (
            "connection_closed",
            process.connections_opened.saturating_sub(process.connections.into()),
            Total::ConnectionClosed,
        ),
        ("channel_created", counters.channels_opened, Total::ChannelCreated),
        ("channel_closed", counters.channels_opened.saturating_sub(channels), Total::ChannelClosed),
        ("queue_declared", counters.queues_declared, Total::QueueDeclared),
        ("queue_created", counters.queues_created, Total::QueueCreated),
        ("queue_deleted", counters.queues_deleted, Total::QueueDeleted),
    ]
}
