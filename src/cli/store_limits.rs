//! Compares the content of a store with the memory of a configuration.
//!
//! If the definitions of a store do not fit into the memory, a start leaves the excess objects in the log and does not serve
//! them (alarm `limits`). `leveret check` warns of that. Its figure may be too low: each binding is counted once,
//! although some bindings count several times.
//!
//! # Invariants
//! - The store is only read, without its lock: a broker may be using it.
//! - Memory is needed only for the index of the log, as at a start, and for one definition at a time.

use leveret_config::Config;
use leveret_core::definition::Definition;
use leveret_core::limits::{Megabytes, MemoryTable, RecordSizes, grouped};
use leveret_core::mem::{CHUNK_BYTES, Class, ENTRIES_PER_CHUNK, Memory};
use leveret_queues::{declared_arguments, levels_of};
use leveret_storage::{FileDisk, Index, Log, QueueIndex};
use leveret_storage::{is_group, is_transient};

/// The number of objects that the definitions of a store describe, and the bytes of their names and contents.
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

/// Returns a warning for each part of the memory or disk that the store exceeds; none if the store is missing or cannot be read.
/// `table` is the memory table of the configuration.
pub(crate) fn exceeded_limits(config: &Config, table: &MemoryTable) -> Vec<String> {
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
    let memory = Memory::with_bytes(table.shared_bytes());
    let entries = entries_of(log.index());
    let definitions_bytes = counts.bytes(&leveret_daemon::record_sizes(config));
    let rows = [
        (definitions_bytes, memory.class_bytes(Class::Definitions), counts.described()),
        (
            entries / ENTRIES_PER_CHUNK as u64 * CHUNK_BYTES as u64,
            memory.class_bytes(Class::Messages),
            format!("{} queue entries", grouped(entries)),
        ),
    ];
    let exceeded = rows.into_iter().filter(|(bytes, most, _)| bytes > most);
    let mut warnings: Vec<String> = exceeded
        .map(|(bytes, most, what)| {
            let (bytes, most) = (Megabytes(bytes), Megabytes(most));
            format!(
                "this store has {what}: they need {bytes}, and memory_limit leaves {most} for them: the rest is kept but not \
                 served; raise memory_limit"
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
    /// Returns the memory that all these objects take, in bytes.
    fn bytes(&self, sizes: &RecordSizes) -> u64 {
        let records = [
            (self.vhosts, sizes.vhost_bytes),
            (self.users, sizes.user_bytes),
            (self.permissions, sizes.permission_bytes),
            (self.exchanges, sizes.exchange_bytes),
            (self.queues, sizes.queue_bytes),
            (self.bindings, sizes.binding_bytes),
            (self.policies, sizes.policy_bytes),
            (self.parameters, sizes.parameter_bytes),
            (self.retained, sizes.retained_bytes),
        ];
        let records = records.into_iter().map(|(count, each)| count * each as u64).sum::<u64>();
        // The allocator's part, and for names the copy in the index of the log.
        records + self.names_bytes * 9 / 4 + self.retained_bytes * 5 / 4
    }

    /// Returns the numbers of the most numerous objects, as words for a text.
    fn described(&self) -> String {
        format!(
            "{} queues, {} exchanges, {} bindings, {} users and {} retained messages",
            grouped(self.queues),
            grouped(self.exchanges),
            grouped(self.bindings),
            grouped(self.users),
            grouped(self.retained)
        )
    }

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
            Definition::RetainedPart(it) => {
                self.retained_bytes += it.bytes.len() as u64;
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
