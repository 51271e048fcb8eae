//! `leveret check --plan`: compares a plant with the memory and the disk of a configuration, and proposes the `memory_limit` or
//! `disk_limit` that is enough.
//!
//! The figures are the bytes that the broker charges to the shared memory. They include what the allocator adds.

use std::fmt::Write;
use std::str::FromStr;

use leveret_config::Config;
use leveret_config::transports::{MqttAddress, MqttTlsAddress};
use leveret_core::limits::{Limits, Megabytes, MemoryTable, RecordSizes, grouped};
use leveret_core::mem::{
    BLOCK_UNIT_BYTES, CHUNK_BYTES, Class, ENTRIES_PER_CHUNK, HeapBytes, MESSAGE_SLOT_BYTES, Memory,
};

/// Bytes of a typical name, topic or routing key.
const NAME_BYTES: u64 = 32;
/// Bytes of the properties that a typical AMQP client sends at its login.
const CLIENT_PROPERTIES_BYTES: u64 = 400;
/// Bytes that a message takes in the log in addition to its body.
const LOG_BYTES_PER_MESSAGE: u64 = 45;
/// The highest `memory_limit` that is proposed, in bytes.
const MEMORY_BYTES_MAX: u64 = 16_000_000_000;

/// A plant: how many of each thing there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    amqp_clients: u64,
    mqtt_clients: u64,
    /// Subscriptions of each MQTT client and each kept session.
    subscriptions: u64,
    /// Kept sessions whose clients are away.
    sessions: u64,
    with_tls: bool,
    users: u64,
    queues: u64,
    bindings: u64,
    /// Number and bytes of retained messages.
    retained: (u64, u64),
    /// Number and bytes of persistent messages that wait.
    backlog: (u64, u64),
}

impl FromStr for Plan {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut plan = Self { subscriptions: 1, ..Self::default() };
        for part in text.split(',') {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            let number = || {
                value
                    .parse::<u32>()
                    .map(u64::from)
                    .map_err(|_| format!("{part}: write {key}=N, such as {key}=500"))
            };
            let sized = || {
                let pair = value.split_once('x').and_then(|(count, bytes)| {
                    Some((count.parse::<u32>().ok()?.into(), bytes.parse::<u32>().ok()?.into()))
                });
                pair.ok_or_else(|| format!("{part}: write {key}=NxBYTES, such as {key}=1000x200"))
            };
            match key {
                "amqp" => plan.amqp_clients = number()?,
                "mqtt" => plan.mqtt_clients = number()?,
                "subscriptions" => plan.subscriptions = number()?,
                "sessions" => plan.sessions = number()?,
                "tls" if value.is_empty() => plan.with_tls = true,
                "users" => plan.users = number()?,
                "queues" => plan.queues = number()?,
                "bindings" => plan.bindings = number()?,
                "retained" => plan.retained = sized()?,
                "backlog" => plan.backlog = sized()?,
                _ => {
                    return Err(format!(
                        "{part} is no part of a plan; there are amqp=N, mqtt=N, subscriptions=N (of each MQTT client), \
                         sessions=N (of absent clients), tls, users=N, queues=N, bindings=N, retained=NxBYTES and \
                         backlog=NxBYTES"
                    ));
                }
            }
        }
        Ok(plan)
    }
}

/// The bytes of the shared memory that one of each thing takes.
#[derive(Clone, Copy, Debug)]
struct Costs {
    amqp_client: u64,
    mqtt_client: u64,
    /// In addition to a client of AMQP or MQTT.
    tls: u64,
    subscription: u64,
    kept_session: u64,
    user: u64,
    queue: u64,
    binding: u64,
    /// A retained message without its content.
    retained: u64,
    /// All contents of retained messages in memory. The log has the others.
    retained_contents_max: u64,
    /// A message of 100 bytes in memory.
    message: u64,
}

impl Costs {
    fn of(limits: &Limits, sizes: &RecordSizes) -> Self {
        let connection =
            limits.connection_bytes(sizes) + leveret_broker::CONNECTION_BYTES + sizes.channel_bytes;
        // A name has a copy in the index of the log, and the allocator adds to each.
        let name = NAME_BYTES * 9 / 4;
        let session = sizes.session_bytes as u64;
        let queue = sizes.queue_bytes as u64 + name;
        let subscription = sizes.binding_bytes as u64 + name;
        let consumer = sizes.consumer_bytes as u64;
        Self {
            amqp_client: connection as u64 + CLIENT_PROPERTIES_BYTES * 5 / 4,
            mqtt_client: connection as u64 + consumer + session + queue,
            tls: sizes.tls_session_bytes as u64,
            subscription,
            kept_session: session + queue,
            // Its name is in its record and in two definitions of the index of the log.
            user: (sizes.user_bytes + sizes.permission_bytes) as u64 + 3 * NAME_BYTES * 5 / 4,
            queue,
            binding: subscription,
            retained: sizes.retained_bytes as u64 + NAME_BYTES * 5 / 4,
            retained_contents_max: limits.retained_bytes_max.into(),
            message: (MESSAGE_SLOT_BYTES + BLOCK_UNIT_BYTES + CHUNK_BYTES / ENTRIES_PER_CHUNK) as u64,
        }
    }

    /// Returns the bytes of a plant's clients and definitions.
    fn of_plan(&self, plan: &Plan) -> (u64, u64) {
        let tls = if plan.with_tls { self.tls * (plan.amqp_clients + plan.mqtt_clients) } else { 0 };
        let subscribed = (plan.mqtt_clients + plan.sessions) * plan.subscriptions;
        // Sessions are clients, and their queues are definitions.
        let session_queues = (plan.mqtt_clients + plan.sessions) * self.queue;
        let clients = plan.amqp_clients * self.amqp_client
            + plan.mqtt_clients * (self.mqtt_client - self.queue)
            + plan.sessions * (self.kept_session - self.queue)
            + tls;
        let definitions = session_queues
            + subscribed * self.subscription
            + plan.users * self.user
            + plan.queues * self.queue
            + plan.bindings * self.binding
            + plan.retained.0 * self.retained
            + self.retained_contents_max.min(plan.retained.0 * plan.retained.1) * 5 / 4;
        (clients, definitions)
    }
}

/// Returns lines with what one of each thing takes.
pub(crate) fn costs_shown(config: &Config) -> String {
    let with_everything = serving_everything(config);
    let costs = Costs::of(&config.limits, &leveret_daemon::record_sizes(&with_everything));
    let rows = [
        (costs.amqp_client, "an AMQP connection with a channel"),
        (costs.mqtt_client, "an MQTT client, without its subscriptions"),
        (costs.tls, "TLS, in addition: reserved for the longest record; an idle connection uses less"),
        (costs.subscription, "a subscription"),
        (costs.kept_session, "a kept session of an absent client, without its subscriptions"),
        (costs.user, "a user with permissions for a virtual host"),
        (costs.queue, "a queue"),
        (costs.binding, "a binding"),
        (
            costs.retained,
            "a retained message; and 5/4 of its payload, up to a quarter of this memory for all of them",
        ),
        (
            costs.message,
            "a message of 100 bytes in memory; in the log a message takes about 45 bytes more than its body",
        ),
    ];
    let mut text = String::from("# of the shared memory takes\n");
    for (bytes, what) in rows {
        // Writing into a String cannot fail.
        let _ = writeln!(text, "# {:>23}  {what}", grouped(bytes));
    }
    text
}

/// Returns a copy of the configuration that also listens for MQTT and with TLS, so that the sizes of both are known.
fn serving_everything(config: &Config) -> Config {
    let mut copy = config.clone();
    copy.mqtt.extend("127.0.0.1".parse::<MqttAddress>());
    copy.mqtt_tls.extend("127.0.0.1".parse::<MqttTlsAddress>());
    copy
}

/// The memory that a plant needs, and that of a configuration.
struct Comparison {
    clients_bytes: u64,
    definitions_bytes: u64,
    shared_bytes: u64,
    fits: bool,
}

/// Compares a plan with the memory of a configuration whose limits are derived.
fn compare(plan: &Plan, config: &Config, table: &MemoryTable) -> Comparison {
    let sizes = leveret_daemon::record_sizes(&serving_everything(config));
    let (clients_bytes, definitions_bytes) = Costs::of(&config.limits, &sizes).of_plan(plan);
    let memory = Memory::with_bytes(table.shared_bytes());
    let mut accounts = [Class::Definitions, Class::Clients].map(|class| HeapBytes::in_memory(&memory, class));
    let taken = accounts.iter_mut().zip([definitions_bytes, clients_bytes]);
    let has_memory = taken.fold(true, |fits, (account, bytes)| {
        fits & usize::try_from(bytes).is_ok_and(|bytes| account.try_add(bytes))
    });
    let connections = plan.amqp_clients + plan.mqtt_clients;
    let fits = has_memory && connections <= config.limits.connections_max.into();
    Comparison { clients_bytes, definitions_bytes, shared_bytes: table.shared_bytes(), fits }
}

/// Returns the least `memory_limit` in whole megabytes with which a plan fits; `None` if no memory is enough.
fn least_memory(plan: &Plan, config: &Config) -> Option<u64> {
    let fits = |megabytes: u64| {
        let mut config = config.clone();
        config.memory_limit_bytes = megabytes * 1_000_000;
        let table = leveret_daemon::derive_limits(&mut config);
        table.is_ok_and(|table| compare(plan, &config, &table).fits)
    };
    let (mut low, mut high) = (0, MEMORY_BYTES_MAX / 1_000_000);
    if !fits(high) {
        return None;
    }
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        *(if fits(middle) { &mut high } else { &mut low }) = middle;
    }
    Some(high)
}

/// Returns the answer to a plan, and whether the configuration is enough for it. `table` is the configuration's memory table.
pub(crate) fn answered(plan: &Plan, config: &Config, table: &MemoryTable) -> (String, bool) {
    let found = compare(plan, config, table);
    let (clients, definitions) = (Megabytes(found.clients_bytes), Megabytes(found.definitions_bytes));
    let mut text = format!(
        "# plan: clients take {clients} and definitions {definitions} of the shared {}\n",
        Megabytes(found.shared_bytes)
    );
    let (count, bytes) = plan.backlog;
    let log_bytes = count * (bytes + LOG_BYTES_PER_MESSAGE);
    let disk_max = config.store.disk_limit_bytes.map(|limit| limit / 10 * 7);
    let fits_on_disk = disk_max.is_none_or(|most| log_bytes <= most);
    // Writing into a String cannot fail.
    if count > 0 {
        let limit = disk_max.map_or_else(
            || "disk_limit is half of what is free on the disk at the first start".to_string(),
            |most| format!("one queue may have {}, seven tenths of disk_limit", Megabytes(most)),
        );
        let _ = writeln!(text, "# the backlog takes {} of the disk; {limit}", Megabytes(log_bytes));
    }
    if !fits_on_disk {
        let least = (log_bytes / 7 * 10).div_ceil(1_000_000);
        let _ = writeln!(text, "# it does not fit on the disk: write disk_limit = \"{least}MB\" or more");
    }
    match found.fits {
        true => {
            let left = found.shared_bytes.saturating_sub(found.clients_bytes + found.definitions_bytes);
            let _ = writeln!(
                text,
                "# it fits into the memory; {} are left for messages and more clients",
                Megabytes(left)
            );
        }
        false => match least_memory(plan, config) {
            Some(megabytes) => {
                let _ = writeln!(
                    text,
                    "# it does not fit into the memory: write memory_limit = \"{megabytes}MB\" or more{}",
                    if config.is_limit_derived("connections_max") {
                        ""
                    } else {
                        ", and raise connections_max"
                    }
                );
            }
            None => text.push_str(
                "# it does not fit into any memory_limit: raise connections_max, or plan fewer clients\n",
            ),
        },
    }
    (text, found.fits && fits_on_disk)
}

#[cfg(test)]
mod tests {
    use super::*;
    use leveret_config::Layer;
    use leveret_core::mem::{EXTENT_BYTES, MessageFlags, MessageLimits, Messages, Share};

    fn answer(board: &str, plan: &str) -> (String, bool) {
        let mut config =
            Config::gather(None, Layer::parse("", &format!("board = \"{board}\"")).unwrap()).unwrap();
        let table = leveret_daemon::derive_limits(&mut config).unwrap();
        answered(&plan.parse().unwrap(), &config, &table)
    }

    /// The plants of the guide.
    #[test]
    fn the_plants_of_the_guide_fit_their_boards() {
        for (board, plan) in [
            ("router-64", "mqtt=20,tls,users=20,queues=5"),
            ("pi-zero-w", "mqtt=500,tls,users=500,queues=20"),
            ("pi-zero-w", "mqtt=3,subscriptions=1500,retained=1500x1000"),
            ("pi-zero-w", "mqtt=3,subscriptions=200,retained=1000x1000"),
            ("router-64", "mqtt=3,subscriptions=200,retained=1500x1000"),
            ("pi-4", "amqp=50,queues=40,bindings=40"),
            ("pi-zero-w", "amqp=5,queues=5,backlog=6000000x256"),
            // `tests/faults/memory_limit/run plants` shows that these fit.
            ("pi-zero-w", "mqtt=1,subscriptions=10000"),
            ("pi-zero-w", "retained=5000x1000"),
            ("pi-zero-w", "amqp=1,queues=2000"),
            ("pi-zero-w", "amqp=2000"),
            ("pi-zero-w", "amqp=1,queues=1,bindings=20000"),
        ] {
            let (text, fits) = answer(board, plan);
            assert!(fits, "{board} {plan}: {text}");
        }
    }

    /// The proposed memory is enough, and a megabyte less is not.
    #[test]
    fn what_does_not_fit_is_told_the_memory_that_is_enough() {
        for plan in ["mqtt=2000,tls", "users=60000", "retained=100000x4000", "amqp=3000"] {
            let (text, fits) = answer("pi-zero-w", plan);
            assert!(!fits, "{plan}: {text}");
            let (_, rest) = text.split_once("memory_limit = \"").unwrap();
            let megabytes: u64 = rest.split_once("MB").unwrap().0.parse().unwrap();
            for (megabytes, is_enough) in [(megabytes, true), (megabytes - 1, false)] {
                let text = format!("board = \"pi-zero-w\"\nmemory_limit = \"{megabytes}MB\"");
                let mut config = Config::gather(None, Layer::parse("", &text).unwrap()).unwrap();
                let table = leveret_daemon::derive_limits(&mut config).unwrap();
                assert_eq!(
                    answered(&plan.parse().unwrap(), &config, &table).1,
                    is_enough,
                    "{plan} {megabytes}"
                );
            }
        }
        let (text, fits) = answer("beaglebone-black", "backlog=6000000x256");
        assert!(!fits && text.contains("write disk_limit = \"2580MB\" or more"), "{text}");
    }

    #[test]
    fn a_message_takes_what_is_shown() {
        let memory = Memory::new(2_000, [0; 3]);
        let limits =
            MessageLimits { messages_max: 10_000, body_bytes_max: 16 << 20, assembly_bytes_max: 16 << 20 };
        let mut messages = Messages::in_memory(limits, &memory);
        for _ in 0..5_000 {
            let id = messages.begin("", &[b'k'; NAME_BYTES as usize], Share::Ordinary).unwrap();
            messages.reserve_content(id, &[0, 0], MessageFlags::NONE, 100, Share::Ordinary).unwrap();
            messages.append_body(id, &[0; 100]);
            messages.finish(id);
        }
        let each = memory.extents_used() * EXTENT_BYTES / 5_000;
        assert!((384..=400).contains(&each), "{each} bytes without the entry of a queue");
    }

    #[test]
    fn a_plan_that_cannot_be_read_says_what_to_write() {
        for (plan, why) in [
            ("mqtt", "mqtt: write mqtt=N, such as mqtt=500"),
            ("backlog=7", "backlog=7: write backlog=NxBYTES, such as backlog=1000x200"),
            ("phones=3", "phones=3 is no part of a plan; there are amqp=N"),
        ] {
            assert!(plan.parse::<Plan>().unwrap_err().starts_with(why), "{plan}");
        }
    }
}
