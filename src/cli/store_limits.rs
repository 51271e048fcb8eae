//! Compares the content of a store with the limits of a configuration.
//!
//! If a store exceeds the limits, a start leaves the excess objects in the log and does not serve them (alarm
//! `limits`). `leveret check` warns of that. Its counts may be too low: each binding is counted once,
//! although some bindings count several times.
//!
//! # Invariants
//! - The store is only read, without its lock: a broker may be using it.
//! - Memory is needed only for the index of the log, as at a start, and for one definition at a time.

use leveret_broker::{declared_arguments, levels_of};
use leveret_config::Config;
use leveret_core::definition::Definition;
use leveret_core::limits::{Megabytes, grouped};
use leveret_core::mem::ENTRIES_PER_CHUNK;
use leveret_storage::{FileDisk, Index, Log, QueueIndex};
use leveret_storage::{is_group, is_transient};

/// The use of each limit by the definitions of a store.
#[derive(Default)]
struct Counts {
    vhosts: u64,
    users: u64,
    permissions: u64,
    exchanges: u64,
    queues: u64,
    bindings: u64,
    names_bytes: u64,
    policies: u64,
    parameters: u64,
    retained: u64,
    retained_bytes: u64,
}

/// Returns a warning for each exceeded limit; none if the store is missing or cannot be read.
pub(crate) fn exceeded_limits(config: &Config) -> Vec<String> {
    let mut disk = FileDisk::open_read_only(&config.data_dir);
    let Ok((log, report)) = Log::read_only(&mut disk) else { return Vec::new() };
    let mut counts = Counts::default();
    for access in &report.access.definitions {
        counts.add(log.index(), &access.key, &access.value);
    }
    let read = log.read_definitions(&mut disk, |key, value, _| counts.add(log.index(), key, value));
    if read.is_err() {
        return Vec::new();
    }
    let limits = &config.limits;
    let rows = [
        (counts.vhosts, "virtual hosts", "vhosts_max", limits.vhosts_max),
        (counts.users, "users", "users_max", limits.users_max),
        (counts.permissions, "permissions", "permissions_max", limits.permissions_max),
        (counts.exchanges, "exchanges", "exchanges_max", limits.exchanges_max),
        (counts.queues, "queues", "queues_max", limits.queues_max),
        (counts.bindings, "bindings", "bindings_max", limits.bindings_max),
        (counts.names_bytes, "bytes of names and arguments", "names_bytes_max", limits.names_bytes_max),
        (counts.policies, "policies", "policies_max", limits.policies_max),
        (counts.parameters, "runtime parameters", "parameters_max", limits.parameters_max),
        (counts.retained, "retained messages", "retained_max", limits.retained_max),
        (
            counts.retained_bytes,
            "bytes of retained messages",
            "retained_bytes_max",
            limits.retained_bytes_max,
        ),
        (entries_of(log.index()), "queue entries", "queue_entries_max", limits.queue_entries_max),
    ];
    let rows = rows.into_iter().filter(|(count, .., max)| count > &u64::from(*max));
    let mut warnings: Vec<String> = rows
        .map(|(count, things, key, max)| {
            let (count, max) = (grouped(count), grouped(max.into()));
            format!(
                "this store has {count} {things}, {key} is {max}: the rest is kept but not served; raise {key}, \
                 or use a larger profile"
            )
        })
        .collect();
    let live_bytes = served(log.index()).map(|queue| queue.live_bytes()).sum();
    if let Some(max) = config.store.disk_limit_bytes.filter(|max| live_bytes > *max) {
        let (live, max) = (Megabytes(live_bytes), Megabytes(max));
        warnings.push(format!(
            "this store has {live} of messages, disk_limit is {max}: publishers wait until consumers have taken the \
             difference; raise disk_limit"
        ));
    }
    warnings
}

impl Counts {
    /// Counts a definition. A definition that cannot be read is not counted.
    fn add(&mut self, index: &Index, key: &[u8], value: &[u8]) {
        let Some(definition) = Definition::parse(key, value) else { return };
        // Each level of a queue with priorities counts as a queue while it has messages.
        let is_kept = |queue: &u64| index.queues().get(queue).is_some_and(|queue| !queue.gone);
        let levels = levels_of(&definition);
        let is_delayed = matches!(definition, Definition::Exchange(_)) && !levels.is_empty();
        self.queues += levels.filter(is_kept).count() as u64 + u64::from(is_delayed);
        let names_bytes = match &definition {
            Definition::Vhost(it) => {
                self.vhosts += 1;
                it.metadata.text_bytes()
            }
            Definition::Exchange(it) => {
                self.exchanges += 1;
                it.name.len() + it.arguments.len()
            }
            Definition::Queue(it) => {
                self.queues += 1;
                it.name.len() + declared_arguments(it.arguments).len()
            }
            Definition::Binding(it) => {
                self.bindings += 1;
                it.routing_key.len() + it.arguments.len()
            }
            Definition::User(_) => {
                self.users += 1;
                0
            }
            Definition::Permission(_) | Definition::TopicPermission(_) => {
                self.permissions += 1;
                0
            }
            Definition::Policy(_) => {
                self.policies += 1;
                0
            }
            Definition::Parameter(_) => {
                self.parameters += 1;
                0
            }
            Definition::Retained(it) => {
                self.retained += 1;
                self.retained_bytes += (it.key.len() + it.properties.len() + it.payload.len()) as u64;
                0
            }
            Definition::AccessStored
            | Definition::UserLimits(..)
            | Definition::SessionState(_)
            | Definition::Will(_) => 0,
        };
        self.names_bytes += names_bytes as u64;
    }
}

/// Iterates over the queues whose messages a start restores.
fn served(index: &Index) -> impl Iterator<Item = &QueueIndex> {
    let queues =
        index.queues().iter().filter(|(id, queue)| !queue.gone && !is_transient(**id) && !is_group(**id));
    queues.map(|(_, queue)| &**queue)
}

/// Returns the number of queue entries that a start needs: one for each run of consecutive messages in the
/// log, rounded up to whole chunks.
fn entries_of(index: &Index) -> u64 {
    let chunks = served(index).map(|queue| queue.live_ranges().count().div_ceil(ENTRIES_PER_CHUNK));
    (chunks.sum::<usize>() * ENTRIES_PER_CHUNK) as u64
}
