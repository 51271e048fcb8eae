//! Writes the management API's description of the node: process, machine, memory, feature flags.
//!
//! # Invariants
//! - Values that only exist in RabbitMQ's Erlang machine are omitted, empty or 0.

use std::borrow::Cow;

use leveret_core::limits::Megabytes;

use super::alarms;
use super::json::Json;
use super::management::{nested, numbers, texts};
use super::request::{Process, RequestContext};
use super::samples::Total;

/// Parts of RabbitMQ's memory report that do not exist here and are 0.
const ERLANG_MEMORY_PARTS: [&str; 26] = [
    "metadata_store",
    "metadata_store_ets",
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

/// Returns whether a feature flag is enabled.
pub(super) fn is_feature_enabled(name: &str) -> bool {
    FLAGS.contains(&name)
}

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
    let process = context.process;
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
    let truths =
        [("running", true), ("being_drained", false), ("mem_alarm", false), ("disk_free_alarm", is_full)];
    for (name, truth) in truths {
        json.name(name, &mut is_first);
        json.truth(truth);
    }
    numbers(json, &mut is_first, &gauges(context));
    wear(json, &mut is_first, process);
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

fn gauges(context: &RequestContext<'_>) -> [(&'static str, u64); 21] {
    let (process, machine) = (context.process, context.process.machine);
    [
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
    ]
}

fn wear(json: &mut Json<'_>, is_first: &mut bool, process: &Process) {
    if let Some(wear) = Wear::of(process) {
        let known = [
            ("leveret_flash_written_bytes", Some(wear.written_bytes)),
            ("leveret_flash_bytes_per_day", wear.bytes_per_day),
            ("leveret_flash_endurance_bytes", Some(process.endurance.bytes).filter(|bytes| *bytes > 0)),
        ];
        for (name, number) in known {
            number.into_iter().for_each(|number| numbers(json, is_first, &[(name, number)]));
        }
        if let Some(tenths) = wear.tenths_left {
            json.name("leveret_flash_years_left", is_first);
            json.shown_raw(format_args!("{}.{}", tenths / 10, tenths % 10));
        }
    }
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

/// A rate over a shorter time is not reliable.
const RUN_MS_MIN: u64 = 3_600_000;
const DAY_MS: u128 = 86_400_000;
/// A year of 365.25 days.
const YEAR_MS: u128 = 31_557_600_000;
/// The most tenths of a year in a forecast.
const TENTHS_MAX: u128 = 10_000;

/// The forecast.
///
/// Flash wears out by being written, often years after a setting could have been changed. The store counts the bytes
/// written in all its runs. The endurance of the flash is configured by its owner.
///
/// # Invariants
/// - The rate is that of this process. It is unknown before the process has run for an hour.
/// - Data written by other programs is unknown, so the forecast is an upper bound.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Wear {
    /// Bytes written in all runs of the store.
    pub written_bytes: u64,
    /// Bytes that this process writes per day, once that is known.
    pub bytes_per_day: Option<u64>,
    /// Tenths of years that the flash lasts at that rate, if its endurance is configured.
    pub tenths_left: Option<u64>,
}

impl Wear {
    /// Returns the forecast for a process that has a store.
    pub(crate) fn of(process: &Process) -> Option<Self> {
        let (store, up_ms) = (process.store, process.uptime_ms);
        if store.bytes_max == 0 {
            return None;
        }
        Some(Self::forecast(
            store.written_all_runs_bytes,
            store.written_bytes,
            up_ms,
            process.endurance.bytes,
        ))
    }

    /// Computes the forecast from the bytes of all runs, and the bytes of this run of `up_ms` milliseconds.
    fn forecast(ever: u64, here: u64, up_ms: u64, endurance: u64) -> Self {
        let per_day = u128::from(here) * DAY_MS / u128::from(up_ms.max(1));
        let is_known = up_ms >= RUN_MS_MIN;
        let left = u128::from(endurance.saturating_sub(ever));
        let tenths = left * u128::from(up_ms) * 10 / (u128::from(here) * YEAR_MS).max(1);
        Self {
            written_bytes: ever,
            bytes_per_day: is_known.then(|| u64::try_from(per_day).unwrap_or(u64::MAX)),
            tenths_left: (is_known && endurance > 0).then(|| tenths.min(TENTHS_MAX) as u64),
        }
    }

    /// Returns the alarm if the flash wears out too fast.
    pub(crate) fn alarm(process: &Process) -> Option<Cow<'static, str>> {
        Self::of(process)?.warning(process.endurance.years_min)
    }

    fn warning(&self, years_min: u32) -> Option<Cow<'static, str>> {
        let (tenths, per_day) = (self.tenths_left?, self.bytes_per_day?);
        (tenths < u64::from(years_min) * 10).then(|| {
            Cow::from(format!(
                "wear: {} per day are written to the flash, which reaches its endurance in {}.{} years at that \
                 rate (flash_endurance, flash_years_min); publish fewer persistent messages, or use a longer \
                 commit_window or settle_window",
                Megabytes(per_day),
                tenths / 10,
                tenths % 10
            ))
        })
    }
}

/// Writes the forecast as part of the status. Unknown values are omitted.
impl core::fmt::Display for Wear {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{} by this store so far", Megabytes(self.written_bytes))?;
        match self.bytes_per_day {
            Some(per_day) => write!(f, ", {} a day", Megabytes(per_day))?,
            None => f.write_str("; the rate is known after one hour")?,
        }
        match self.tenths_left {
            Some(tenths) => write!(f, ", {}.{} years left at that rate", tenths / 10, tenths % 10),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod wear_tests {
    use super::*;

    const YEAR: u64 = YEAR_MS as u64;

    fn tenths(ever: u64, here: u64, up_ms: u64, bytes: u64) -> Option<u64> {
        Wear::forecast(ever, here, up_ms, bytes).tenths_left
    }

    #[test]
    fn years_follow_from_the_rest_and_the_rate_of_this_process() {
        // A tenth of the endurance is written in a year, and half of it was used before.
        assert_eq!(tenths(500, 100, YEAR, 1_000), Some(50));
        assert_eq!(tenths(32 << 40, 1 << 40, YEAR, 32 << 40), Some(0), "it is used up");
        assert_eq!(tenths(33 << 40, 1 << 40, YEAR, 32 << 40), Some(0), "and more than that");
        assert_eq!(
            tenths(0, 0, YEAR, 1 << 40),
            Some(10_000),
            "nothing is written: the forecast has its upper limit"
        );
        assert_eq!(tenths(5, 5, RUN_MS_MIN - 1, 1 << 40), None, "too early");
        assert_eq!(tenths(u64::MAX, u64::MAX, RUN_MS_MIN, u64::MAX), Some(0));
        assert_eq!(tenths(5, 5, YEAR, 0), None, "the endurance is not configured");
    }

    #[test]
    fn an_alarm_contains_the_known_values() {
        let fast = Wear::forecast(1 << 40, 1 << 40, YEAR, 2 << 40);
        let shown = fast.to_string();
        assert!(shown.contains("1.0 years left") && shown.contains("3010.3 MB a day"), "{shown}");
        assert!(fast.warning(2).is_some_and(|text| text.starts_with("wear: 3010.3 MB per day")));
        assert_eq!((fast.warning(1), fast.warning(0)), (None, None));
    }
}
