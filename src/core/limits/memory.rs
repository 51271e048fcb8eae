//! The memory table: the bytes of every pool when it is full, and of everything else in the process.
//!
//! Lines are computed from the sizes of the record types, so they are correct when a type changes. Sizes that
//! can only be measured are constants in this file.

use core::fmt::{self, Write};

use super::Limits;
use crate::log_limiter::LogLimiter;
use crate::mem::READ_BACK_CHUNKS;
use crate::mem::{
    BytePool, CHUNK_BYTES, ENTRIES_PER_CHUNK, MESSAGE_SLOT_BYTES, MessageLimits, Messages, PAGE_BYTES,
};

/// Memory of the program itself: code, constants, C library and logger. Measured, rounded up.
const PROGRAM_BYTES: u64 = 5_500_000;
/// Connections that can exist in addition to `connections_max`. A client can log in on one of them although the limit is
/// reached. It then gets a reply in its protocol, or another connection is closed for it.
pub const CONNECTIONS_SPARE: u32 = 8;
/// TLS connections that can exist in addition to `tls_connections_max`, for the same purpose. They are fewer, because each
/// reserves more memory.
pub const TLS_CONNECTIONS_SPARE: u32 = 2;
/// Maximum number of clients of the control socket; further ones wait.
pub const CONTROL_CLIENTS_MAX: usize = 4;
/// Bytes of a row of a list that the management API sorts, doubled because the list grows by reallocation.
pub const SORTED_ROW_BYTES: usize = 2 * 24;

/// Upper bound of `management_clients_max`.
pub const MANAGEMENT_CLIENTS_UPPER_BOUND: usize = 8;
/// Number of helper threads: two for the disk, the worker, and the one that writes log lines. Resolver threads are
/// counted with their bridges.
const HELPERS: u64 = 4;
/// Bytes of log lines that standard error has not accepted yet; further lines are dropped and counted.
pub const LOG_RING_BYTES: usize = 32 << 10;
/// Stack of each helper thread in bytes.
pub const HELPER_STACK_BYTES: usize = 128 << 10;
/// Bytes of buffered log lines and of the log rate limit.
const LOG_BYTES: usize = LOG_RING_BYTES + size_of::<LogLimiter>();
/// Maximum number of bytes of the main thread's stack that are used.
const STACK_BYTES: u64 = 256 << 10;

/// Bytes reserved for each connection for output that its socket does not take. So at least this much output can always
/// be handed to a socket: what it does not take can be kept.
pub const OUTPUT_BYTES_MIN: usize = 1024;

/// Maximum number of rules of one bridge in each direction.
pub const BRIDGE_RULES_MAX: usize = 8;

/// One line of the memory table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryLine {
    /// The configuration key that determines the size, or a name if there is none.
    pub key: &'static str,
    /// Number of records in the pool.
    pub count: u64,
    /// Bytes of each record.
    pub bytes_each: u64,
    /// The use of the memory, as the table prints it.
    pub reason: &'static str,
}

impl MemoryLine {
    /// Returns the bytes of the whole line.
    pub const fn bytes(&self) -> u64 {
        self.count.saturating_mul(self.bytes_each)
    }
}

/// The maximum memory use of the process, line by line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryTable {
    /// The lines, in the order in which they are printed.
    pub lines: Vec<MemoryLine>,
    /// Maximum bytes of socket buffers in the kernel, in addition; `None` if the system decides.
    pub kernel_bytes: Option<u64>,
}

impl MemoryTable {
    /// Formats the table, with its sum and the limit.
    pub fn shown(&self, memory_limit_bytes: u64) -> String {
        let mut text = format!("# {:<20}{:>11} ×{:>10} ={:>13}\n", "memory", "count", "bytes", "in all");
        for line in &self.lines {
            let (key, reason) = (line.key, line.reason);
            let [count, each, bytes] = [line.count, line.bytes_each, line.bytes()].map(grouped);
            // Writing into a String cannot fail.
            let _ = writeln!(text, "# {key:<23}{count:>10} ×{each:>10} ={bytes:>13}  {reason}");
        }
        let kernel = match self.kernel_bytes {
            Some(bytes) => format!("at most {}", Megabytes(bytes)),
            None => "as much as the system allows".to_string(),
        };
        let (sum, limit) = (Megabytes(self.bytes()), Megabytes(memory_limit_bytes));
        let _ = writeln!(
            text,
            "# total {sum} of memory_limit {limit}; in addition the kernel's socket buffers: {kernel}"
        );
        text
    }

    /// Returns the sum of all lines in bytes, without `kernel_bytes`.
    pub fn bytes(&self) -> u64 {
        self.lines.iter().map(MemoryLine::bytes).fold(0, u64::saturating_add)
    }
}

/// Sizes of the records of other packages, in bytes. This package does not depend on these packages, so the
/// caller provides the sizes.
#[derive(Clone, Copy, Debug)]
pub struct RecordSizes {
    /// A TLS session with its pending output; 0 without TLS.
    pub tls_session_bytes: usize,
    /// A TLS handshake in progress; 0 without TLS.
    pub tls_handshake_bytes: usize,
    /// A TLS link of a bridge: its handshake, then its session, and its pending output; 0 if no upstream uses TLS.
    pub tls_link_bytes: usize,
    /// Buffers in which TLS records are decrypted and encrypted; 0 without TLS.
    pub tls_record_bytes: usize,
    /// Certificate revocation lists; 0 without any.
    pub tls_crl_bytes: usize,
    /// Socket, session and broker record of a connection together.
    pub connection_bytes: usize,
    /// A bridge: its rules, its links with their windows, and its resolver thread.
    pub bridge_bytes: usize,
    /// Session and broker record of a channel together.
    pub channel_bytes: usize,
    /// A consumer.
    pub consumer_bytes: usize,
    /// A queue with its place in the name table.
    pub queue_bytes: usize,
    /// The storage's index of an empty queue.
    pub empty_queue_index_bytes: usize,
    /// The storage's index of a definition.
    pub definition_bytes: usize,
    /// An exchange with its place in the name table.
    pub exchange_bytes: usize,
    /// A binding with its places in the routing tables.
    pub binding_bytes: usize,
    /// A virtual host with its predeclared exchanges.
    pub vhost_bytes: usize,
    /// A user.
    pub user_bytes: usize,
    /// A permission without its patterns.
    pub permission_bytes: usize,
    /// A policy without its pattern.
    pub policy_bytes: usize,
    /// A runtime parameter.
    pub parameter_bytes: usize,
    /// An MQTT session; 0 without MQTT.
    pub session_bytes: usize,
    /// A retained message, without its topic and its content; 0 without MQTT.
    pub retained_bytes: usize,
    /// A connection before the login, in addition to its record: the password that waits for its check.
    pub login_bytes: usize,
    /// The list of accepted sockets that wait, and the tables of failed logins.
    pub admission_bytes: usize,
    /// An unsettled delivery with its place in the tag table.
    pub unacknowledged_bytes: usize,
    /// Shared buffers of sessions and broker.
    pub scratch_bytes: usize,
    /// Shared buffers of the storage.
    pub store_bytes: usize,
    /// The pending-write buffer, without the messages that it refers to.
    pub pending_write_bytes: usize,
    /// A client of the control socket, and its part of the peer records of all operator clients (control socket and
    /// management API).
    pub control_bytes: usize,
    /// A client of the management API; 0 if the API has no listener.
    pub management_bytes: usize,
    /// Samples of the last minutes for the management API.
    pub samples_bytes: usize,
    /// The buffer into which received JSON is parsed.
    pub json_bytes: usize,
    /// The file of the flight recorder; 0 without one.
    pub flight_bytes: usize,
}

impl Limits {
    /// Returns the sizes of the message pool.
    pub const fn message_limits(&self) -> MessageLimits {
        MessageLimits {
            messages_max: self.messages_max as usize,
            body_bytes_max: self.body_bytes_max as usize,
            assembly_bytes_max: self.assembly_bytes_max as usize,
        }
    }

    /// Returns the maximum number of channels of one connection, which connection.tune announces.
    ///
    /// A connection may have at most as many channels as remain free for other connections. So a single
    /// connection may have half of `channels_max`.
    pub fn channels_of_a_connection(&self) -> u16 {
        let half = self.channels_max.div_ceil(2);
        self.channel_max.min(u16::try_from(half).unwrap_or(u16::MAX))
    }

    /// Returns how many connections of AMQP and MQTT can exist at once: [`CONNECTIONS_SPARE`] more than may be open.
    pub const fn connection_places(&self) -> u32 {
        self.connections_max.saturating_add(CONNECTIONS_SPARE)
    }

    /// Returns how many TLS connections can exist at once: [`TLS_CONNECTIONS_SPARE`] more than may be open.
    pub const fn tls_connection_places(&self) -> u32 {
        self.tls_connections_max.saturating_add(TLS_CONNECTIONS_SPARE)
    }

    /// Returns the bytes of pending replies over all connections: `replies_bytes_max` for each, and a long answer of MQTT with
    /// twice its length, because its codes are collected before they are stored as a packet.
    pub const fn replies_pool_bytes(&self) -> usize {
        // The operator sets both factors. On a 32-bit board their product could overflow.
        (self.connection_places() as usize)
            .saturating_mul(self.replies_bytes_max as usize)
            .saturating_add(2 * self.frame_max as usize)
    }

    /// Returns the maximum number of bridge connections, one for each direction.
    pub const fn bridge_links(&self) -> usize {
        2 * self.bridges_max as usize
    }

    /// Returns the bytes of output reserved for connections, [`OUTPUT_BYTES_MIN`] for each.
    pub const fn unsent_reserve_bytes(&self) -> usize {
        let connections = (self.connection_places() as usize).saturating_add(self.bridge_links());
        connections.saturating_mul(OUTPUT_BYTES_MIN).div_ceil(PAGE_BYTES).saturating_mul(PAGE_BYTES)
    }

    /// Returns the bytes of pending output over all connections.
    pub const fn unsent_pool_bytes(&self) -> usize {
        self.unsent_reserve_bytes().saturating_add(self.unsent_bytes_max as usize)
    }

    /// Returns the maximum number of connection records of every kind in the broker.
    pub const fn connection_records(&self) -> usize {
        // Each bridge has additional records: one per forwarding rule, and one for the messages it fetches.
        let own = self.bridges_max as usize * (BRIDGE_RULES_MAX + 1);
        self.connection_places() as usize + self.bridge_links() + own
    }

    /// Returns the memory table: what every pool costs when it is full.
    pub fn memory_table(&self, sizes: &RecordSizes) -> MemoryTable {
        let mut lines = self.lines_of_peers(sizes);
        lines.retain(|line| line.key != "bridges_max" || line.count > 0);
        lines.extend(self.lines_of_messages(sizes));
        lines.extend(self.lines_of_the_process(sizes));
        let is_there = |line: &MemoryLine| {
            !matches!(line.key, "management_clients_max" | "samples" | "flight_recorder")
                || line.bytes_each > 0
        };
        lines.retain(is_there);
        lines.extend(self.access_lines(sizes).into_iter().filter(|line| line.bytes_each > 0));
        lines.extend(self.tls_lines(sizes).into_iter().filter(|line| line.bytes_each > 0));
        MemoryTable { lines, kernel_bytes: self.kernel_bytes() }
    }

    /// Returns the lines for clients and what they declare.
    fn lines_of_peers(&self, sizes: &RecordSizes) -> Vec<MemoryLine> {
        let connections = self.connection_places();
        let replies = self.replies_pool_bytes();
        vec![
            line(
                "connections_max",
                connections.into(),
                sizes.connection_bytes,
                "socket, session, broker record",
            ),
            line(
                "replies_bytes_max",
                connections.into(),
                BytePool::bytes(replies).div_ceil(connections as usize),
                "replies on their way",
            ),
            line(
                "bridges_max",
                self.bridges_max.into(),
                sizes.bridge_bytes,
                "bridges and their messages in flight",
            ),
            line("channels_max", self.channels_max.into(), sizes.channel_bytes, "session and broker record"),
            line("consumers_max", self.consumers_max.into(), sizes.consumer_bytes, "consumer with its tag"),
            line(
                "queues_max",
                self.queues_max.into(),
                sizes.queue_bytes,
                "queue and its place in the name table",
            ),
            line("exchanges_max", self.exchanges_max.into(), sizes.exchange_bytes, "exchange and name table"),
            line("bindings_max", self.bindings_max.into(), sizes.binding_bytes, "binding and routing tables"),
            line("names_bytes_max", self.names_bytes_max.into(), 1, "names, keys and arguments"),
        ]
    }

    /// Returns the number of rows of the longest list of the management API.
    fn listed_rows(&self) -> u32 {
        let rows = [
            self.connection_places(),
            self.channels_max,
            self.consumers_max,
            self.queues_max,
            self.exchanges_max,
        ];
        rows.into_iter().fold(self.bindings_max, u32::max)
    }

    /// Returns the lines for messages and their queue entries.
    fn lines_of_messages(&self, sizes: &RecordSizes) -> Vec<MemoryLine> {
        let page = PAGE_BYTES + Messages::PAGE_OVERHEAD_BYTES;
        vec![
            line("messages_max", self.messages_max.into(), MESSAGE_SLOT_BYTES + 1, "message slots"),
            line(
                "body_bytes_max",
                self.body_bytes_max / PAGE_BYTES as u64,
                page,
                "message data beyond the slots",
            ),
            line(
                "queue_entries_max",
                u64::from(self.queue_entries_max).div_ceil(ENTRIES_PER_CHUNK as u64)
                    + READ_BACK_CHUNKS as u64,
                CHUNK_BYTES + 1,
                "places in queues",
            ),
            line(
                "unacknowledged_max",
                self.unacknowledged_max.into(),
                sizes.unacknowledged_bytes,
                "deliveries not yet acknowledged",
            ),
        ]
    }

    /// Returns the lines for memory that exists once in the process.
    fn lines_of_the_process(&self, sizes: &RecordSizes) -> Vec<MemoryLine> {
        let management_bytes = match sizes.management_bytes {
            0 => 0,
            bytes => bytes + self.listed_rows() as usize * SORTED_ROW_BYTES,
        };
        vec![
            line("input_buffer_bytes", 1, self.input_buffer_bytes as usize, "the one input buffer"),
            line("output_buffer_bytes", 1, self.output_buffer_bytes as usize, "the one output buffer"),
            line(
                "input_backlog_bytes_max",
                1,
                BytePool::bytes(self.input_backlog_bytes_max as usize),
                "input of suspended connections",
            ),
            line(
                "unsent_bytes_max",
                1,
                BytePool::bytes(self.unsent_pool_bytes()),
                "output that sockets did not accept, and 1 KiB per connection",
            ),
            line("frame_max", 1, sizes.scratch_bytes, "reading properties, sorting output"),
            line("messages_max", 1, sizes.pending_write_bytes, "entries that wait for their commit"),
            line(
                "commit_bytes_max",
                1,
                sizes.store_bytes,
                "commits, reading back, footers; depends on segment_bytes",
            ),
            line(
                "index_bytes_max",
                1,
                self.index_bytes_max as usize,
                "index of the log: which segment has which messages",
            ),
            line(
                "queues_max",
                self.queues_max.into(),
                sizes.empty_queue_index_bytes,
                "index of queues without messages",
            ),
            line(
                "definitions",
                self.definitions(),
                sizes.definition_bytes,
                "index of all definitions that the limits allow",
            ),
            line("allocator", 1, self.spread_bytes() as usize, "fragmentation by names and by the index"),
            line(
                "control",
                CONTROL_CLIENTS_MAX as u64,
                sizes.control_bytes,
                "clients of leveret ctl: a request and an answer each",
            ),
            line(
                "management_clients_max",
                self.management_clients_max.into(),
                management_bytes,
                "clients of the management API: a request, an answer and the order of a list each",
            ),
            line("samples", 1, sizes.samples_bytes, "rates and histories of the management API"),
            line("json", 1, sizes.json_bytes, "a request body, or one object of a definitions file"),
            line("stack", 1, STACK_BYTES as usize, "stack of the event loop's thread"),
            line(
                "helpers",
                HELPERS,
                HELPER_STACK_BYTES,
                "stacks of threads: disk, long computations, log output",
            ),
            line("log", 1, LOG_BYTES, "log lines to be written, and the rate limit's table"),
            line("flight_recorder", 1, sizes.flight_bytes, "the flight recorder, a file in memory"),
            line("program", 1, PROGRAM_BYTES as usize, "code, constants, libraries"),
        ]
    }

    /// Returns how many definitions the log may contain.
    fn definitions(&self) -> u64 {
        let numbers = [
            self.queues_max,
            self.exchanges_max,
            self.bindings_max,
            self.vhosts_max,
            // `users_max` is counted twice: a user and its limits are separate definitions.
            self.users_max,
            self.users_max,
            self.permissions_max,
            self.policies_max,
            self.parameters_max,
        ];
        numbers.into_iter().map(u64::from).sum()
    }

    /// Returns the bytes of the index of the log that queues and definitions take, without messages.
    pub fn fixed_index_bytes(&self, sizes: &RecordSizes) -> u64 {
        u64::from(self.queues_max) * sizes.empty_queue_index_bytes as u64
            + self.definitions() * sizes.definition_bytes as u64
            + self.mqtt_definitions(sizes) * sizes.definition_bytes as u64
    }

    /// Returns how many definitions of MQTT the log may contain: states of sessions, and retained messages.
    fn mqtt_definitions(&self, sizes: &RecordSizes) -> u64 {
        let each = u64::from(sizes.session_bytes > 0);
        each * (u64::from(self.mqtt_sessions_max) + u64::from(self.retained_max))
    }

    /// Returns the bytes that fragmentation may take: a quarter of the memory that consists of allocations of
    /// varying sizes.
    ///
    /// Pools are not affected, because each is a single allocation.
    fn spread_bytes(&self) -> u64 {
        (u64::from(self.names_bytes_max) + u64::from(self.index_bytes_max)) / 4
    }

    fn tls_lines(&self, sizes: &RecordSizes) -> [MemoryLine; 5] {
        let (connections, handshakes) = (self.tls_connection_places().into(), self.tls_handshakes_max.into());
        let reason = "TLS: keys, a record each way, certificate";
        [
            line("tls_connections_max", connections, sizes.tls_session_bytes, reason),
            line("tls_handshakes_max", handshakes, sizes.tls_handshake_bytes, "TLS handshakes under way"),
            line(
                "bridges_max",
                self.bridge_links() as u64,
                sizes.tls_link_bytes,
                "TLS with upstreams, each way",
            ),
            line(
                "input_buffer_bytes",
                1,
                sizes.tls_record_bytes,
                "buffers for TLS encryption and decryption",
            ),
            line("crl", 1, sizes.tls_crl_bytes, "revoked certificates, old and new lists"),
        ]
    }

    /// Returns the lines for users, permissions, virtual hosts, MQTT sessions and retained messages.
    fn access_lines(&self, sizes: &RecordSizes) -> [MemoryLine; 11] {
        let logins = "logins whose password is being checked";
        [
            line(
                "vhosts_max",
                self.vhosts_max.into(),
                // In addition, one bit per user for waiting publishers.
                sizes.vhost_bytes + (self.users_max as usize + 1).div_ceil(8),
                "virtual host, its first exchanges",
            ),
            line("users_max", self.users_max.into(), sizes.user_bytes, "user with its tags"),
            line("permissions_max", self.permissions_max.into(), sizes.permission_bytes, "permission"),
            line("policies_max", self.policies_max.into(), sizes.policy_bytes, "policy"),
            line(
                "mqtt_sessions_max",
                self.mqtt_sessions_max.into(),
                sizes.session_bytes,
                "MQTT session that is kept",
            ),
            line("retained_max", self.retained_max.into(), sizes.retained_bytes, "retained message"),
            line(
                "retained_bytes_max",
                // The allocator may lose a quarter, because the messages have different lengths.
                u64::from(self.retained_bytes_max) * 5 / 4,
                usize::from(sizes.retained_bytes > 0),
                "topics and content of retained messages, and fragmentation",
            ),
            line("parameters_max", self.parameters_max.into(), sizes.parameter_bytes, "runtime parameter"),
            line(
                "patterns_bytes_max",
                self.patterns_bytes_max.into(),
                1,
                "patterns of permissions, policies",
            ),
            line("handshakes_max", self.handshakes_max.into(), sizes.login_bytes, logins),
            line(
                "admission",
                1,
                sizes.admission_bytes,
                "accepted connections without a slot; counters of wrong \
                                                         passwords",
            ),
        ]
    }

    /// Returns the maximum bytes of all sockets' buffers in the kernel, which uses twice the requested size
    /// in each direction; `None` if the system decides the size.
    fn kernel_bytes(&self) -> Option<u64> {
        let (receive, send) = (self.socket_receive_buffer_bytes, self.socket_send_buffer_bytes);
        if receive == 0 || send == 0 {
            return None;
        }
        let local = u64::from(self.socket_local_buffer_bytes);
        let each = u64::from(receive) + u64::from(send);
        let more = (2 * local).saturating_sub(each);
        let locals = self.socket_local_buffers_max.min(self.connection_places());
        Some(2 * (each * u64::from(self.connection_places()) + more * u64::from(locals)))
    }
}

const fn line(key: &'static str, count: u64, bytes_each: usize, reason: &'static str) -> MemoryLine {
    MemoryLine { key, count, bytes_each: bytes_each as u64, reason }
}

/// Formats bytes as megabytes with one decimal.
pub struct Megabytes(pub u64);

impl fmt::Display for Megabytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tenths = self.0.div_ceil(100_000);
        write!(f, "{}.{} MB", tenths / 10, tenths % 10)
    }
}

/// Returns a number with its digits in groups of three.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_come_in_groups_of_three() {
        let shown = [0, 999, 1_000, 12_345_678].map(grouped);
        assert_eq!(shown, ["0", "999", "1,000", "12,345,678"]);
    }
}
