//! The memory table: the bytes of everything that has a fixed size, and the memory that the pools share.
//!
//! Lines are computed from the sizes of the record types, so they are correct when a type changes. Sizes that
//! can only be measured are constants in this file.

use core::fmt::{self, Write};

use super::{Limits, REPLIES_BYTES_MAX, SOCKET_BUFFER_BYTES_MIN};
use crate::log_limiter::LogLimiter;
use crate::mem::{BytePool, CHUNK_BYTES, ENTRIES_PER_CHUNK, MESSAGE_SLOT_BYTES, MessageLimits, PAGE_BYTES};

/// Memory of the program itself: code, constants, C library and logger. Measured, rounded up.
const PROGRAM_BYTES: u64 = 5_500_000;
/// Connections that can exist in addition to `connections_max`. A client can log in on one of them although the limit is
/// reached. It then gets a reply in its protocol, or another connection is closed for it.
pub const CONNECTIONS_SPARE: u32 = 8;
/// TLS connections for which memory is kept, for the same purpose. They are fewer, because each reserves more memory.
pub const TLS_CONNECTIONS_SPARE: u32 = 2;
/// Maximum number of clients of the control socket; further ones wait.
pub const CONTROL_CLIENTS_MAX: usize = 4;
/// The key of the memory table's line for the memory that the pools share.
pub const SHARED_KEY: &str = "shared";
/// The least memory that the pools can share, in bytes.
pub const SHARED_BYTES_MIN: u64 = 2 << 20;

/// Maximum number of clients of the management API on any board.
pub const MANAGEMENT_CLIENTS_UPPER_BOUND: usize = 8;
/// Number of helper threads: two for the disk, the worker, and the one that writes log lines. Resolver threads are
/// charged with their bridges.
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
    /// The name of the line.
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

    /// Returns the bytes of memory that the pools share.
    pub fn shared_bytes(&self) -> u64 {
        self.lines.iter().find(|line| line.key == SHARED_KEY).map_or(0, MemoryLine::bytes)
    }

    /// Returns the bytes of everything that has a fixed size.
    pub fn fixed_bytes(&self) -> u64 {
        self.bytes() - self.shared_bytes()
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
    /// Buffers in which TLS records are decrypted and encrypted. Upstreams may use TLS even if no listener does.
    pub tls_record_bytes: usize,
    /// Certificate revocation lists; 0 without any.
    pub tls_crl_bytes: usize,
    /// Socket and session of a connection, without the broker's record.
    pub connection_bytes: usize,
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
    /// An MQTT session.
    pub session_bytes: usize,
    /// A retained message, without its topic and its content.
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

    /// Returns the bytes of pending replies over all connections: [`REPLIES_BYTES_MAX`] for each, and a long answer of MQTT with
    /// twice its length, because its codes are collected before they are stored as a packet.
    pub const fn replies_pool_bytes(&self) -> usize {
        // The operator sets `connections_max`. On a 32-bit board the product could overflow.
        (self.connection_places() as usize)
            .saturating_mul(REPLIES_BYTES_MAX)
            .saturating_add(2 * self.frame_max as usize)
    }

    /// Returns the maximum number of connections of all bridges, one for each direction.
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

    /// Returns the memory table: what has a fixed size, and what is left of `memory_limit` bytes for the pools.
    pub fn memory_table(&self, sizes: &RecordSizes, memory_limit: u64) -> MemoryTable {
        let mut lines = self.lines_of_the_process(sizes);
        lines.extend(self.tls_lines(sizes));
        lines.retain(|line| line.bytes() > 0);
        let fixed = lines.iter().map(MemoryLine::bytes).fold(0, u64::saturating_add);
        let reason = "clients, definitions and messages";
        let shared =
            MemoryLine { key: SHARED_KEY, count: 1, bytes_each: memory_limit.saturating_sub(fixed), reason };
        lines.push(shared);
        MemoryTable { lines, kernel_bytes: self.kernel_bytes() }
    }

    /// Returns the lines for memory that exists once in the process.
    fn lines_of_the_process(&self, sizes: &RecordSizes) -> Vec<MemoryLine> {
        vec![
            line(
                "logins",
                self.handshakes_max.into(),
                sizes.login_bytes,
                "logins whose password is being checked",
            ),
            line(
                "admission",
                1,
                sizes.admission_bytes,
                "accepted connections without a slot; counters of wrong passwords",
            ),
            line("input_buffer", 1, self.input_buffer_bytes as usize, "the one input buffer"),
            line("output_buffer", 1, self.output_buffer_bytes as usize, "the one output buffer"),
            line(
                "input_backlog",
                1,
                BytePool::bytes(self.input_backlog_bytes_max as usize),
                "input of suspended connections",
            ),
            line(
                "unsent_output",
                1,
                BytePool::bytes(self.unsent_bytes_max as usize),
                "output that sockets did not accept",
            ),
            line(
                "scratch",
                1,
                sizes.scratch_bytes,
                "reading properties, sorting output; depends on frame_max",
            ),
            line("pending_writes", 1, sizes.pending_write_bytes, "entries that wait for their commit"),
            line(
                "log_buffers",
                1,
                sizes.store_bytes,
                "commits, reading back, footers; depends on segment_bytes and commit_bytes_max",
            ),
            line(
                "log_index",
                1,
                self.index_bytes_max as usize,
                "which segment of the log has which messages",
            ),
            line("allocator", 1, self.index_bytes_max as usize / 4, "fragmentation by the index"),
            line(
                "control",
                CONTROL_CLIENTS_MAX as u64,
                sizes.control_bytes,
                "clients of leveret ctl: a request and an answer each",
            ),
            line(
                "management",
                self.management_clients_max.into(),
                sizes.management_bytes,
                "clients of the management API: a request and an answer each",
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
            // The states of sessions, and their wills.
            self.mqtt_sessions_max,
            self.mqtt_sessions_max,
            self.mqtt_sessions_max,
            self.retained_max,
        ];
        numbers.into_iter().map(u64::from).sum()
    }

    /// Returns the bytes of the index of the log that queues and definitions take, without messages.
    pub fn fixed_index_bytes(&self, sizes: &RecordSizes) -> u64 {
        u64::from(self.queues_max) * sizes.empty_queue_index_bytes as u64
            + self.definitions() * sizes.definition_bytes as u64
    }

    /// Returns the bytes of shared memory that a connection takes besides the broker's record: socket and session, replies that
    /// are not sent yet, and the output that is reserved for it.
    pub const fn connection_bytes(&self, sizes: &RecordSizes) -> usize {
        sizes.connection_bytes + BytePool::bytes(REPLIES_BYTES_MAX + OUTPUT_BYTES_MIN)
    }

    fn tls_lines(&self, sizes: &RecordSizes) -> [MemoryLine; 3] {
        let handshakes = self.tls_handshakes_max.into();
        [
            line("tls_handshakes", handshakes, sizes.tls_handshake_bytes, "TLS handshakes under way"),
            line("tls_records", 1, sizes.tls_record_bytes, "buffers for TLS encryption and decryption"),
            line("crl", 1, sizes.tls_crl_bytes, "revoked certificates, old and new lists"),
        ]
    }

    /// Returns the maximum bytes of all sockets' buffers in the kernel; `None` if the system decides the size.
    fn kernel_bytes(&self) -> Option<u64> {
        let (receive, send) = (self.socket_receive_buffer_bytes, self.socket_send_buffer_bytes);
        if receive == 0 || send == 0 {
            return None;
        }
        let connections = u64::from(self.connection_places());
        let largest = kernel_socket_bytes([
            receive.max(self.socket_local_buffer_bytes),
            send.max(self.socket_local_buffer_bytes),
        ]);
        let large = self.large_socket_bytes().min(connections.saturating_mul(largest));
        Some(self.smallest_socket_bytes().saturating_add(large))
    }

    /// Returns the bytes of the kernel's buffers if those of every connection are the smallest.
    const fn smallest_socket_bytes(&self) -> u64 {
        let each = kernel_socket_bytes([SOCKET_BUFFER_BYTES_MIN; 2]);
        (self.connection_places() as u64).saturating_mul(each)
    }

    /// Returns the bytes that the kernel may use in addition, for larger buffers of some connections: what the budget leaves,
    /// and at least a quarter of it if `connections_max` was raised.
    pub const fn large_socket_bytes(&self) -> u64 {
        let budget = self.socket_budget_bytes;
        let left = budget.saturating_sub(self.smallest_socket_bytes());
        if left > budget / 4 { left } else { budget / 4 }
    }
}

/// Returns the bytes that the kernel may use for a socket with these values of SO_RCVBUF and SO_SNDBUF: it doubles both.
pub const fn kernel_socket_bytes([receive, send]: [u32; 2]) -> u64 {
    2 * (receive as u64 + send as u64)
}

/// A pool that takes its records from the shared memory.
struct SharedPool {
    /// Bytes of memory that a unit of the limit takes: a record, or a byte.
    bytes_each: fn(&RecordSizes) -> usize,
    /// The limit is what fits into this part of the memory.
    divisor: u64,
    /// The most that identifiers allow.
    most: u64,
    /// Part of the addresses that the pool may reserve, in 64ths; 0 if it reserves none.
    address_share: u64,
    get: fn(&Limits) -> u64,
    set: fn(&mut Limits, u64),
}

macro_rules! shared_pools {
    ($($key:ident: $bytes:expr, $divisor:expr, $most:expr, $share:expr;)*) => {
        [$(SharedPool {
            bytes_each: $bytes,
            divisor: $divisor,
            most: $most,
            address_share: $share,
            get: |limits| limits.$key.into(),
            set: |limits, value| limits.$key = value as _,
        }),*]
    };
}

/// All pools that share memory. Each could use all of it; the divisors only bound tables that are not part of a pool.
const SHARED_POOLS: [SharedPool; 19] = shared_pools! {
    channels_max: |sizes| sizes.channel_bytes, 1, 1 << 19, 3;
    consumers_max: |sizes| sizes.consumer_bytes, 1, 1 << 19, 3;
    queues_max: |sizes| sizes.queue_bytes, 1, 1 << 19, 3;
    exchanges_max: |sizes| sizes.exchange_bytes, 1, 1 << 17, 2;
    bindings_max: |sizes| sizes.binding_bytes, 1, 1 << 21, 6;
    names_bytes_max: |_| 1, 1, 1 << 28, 0;
    vhosts_max: |sizes| sizes.vhost_bytes, 4, 1 << 10, 1;
    users_max: |sizes| sizes.user_bytes, 1, 1 << 14, 1;
    permissions_max: |sizes| sizes.permission_bytes, 1, 1 << 15, 2;
    policies_max: |sizes| sizes.policy_bytes, 1, 1 << 12, 1;
    parameters_max: |sizes| sizes.parameter_bytes, 1, 1 << 12, 1;
    patterns_bytes_max: |_| 1, 2, 1 << 26, 0;
    messages_max: |_| MESSAGE_SLOT_BYTES, 1, 1 << 27, 10;
    body_bytes_max: |_| 1, 1, 1 << 40, 16;
    queue_entries_max: |_| CHUNK_BYTES / ENTRIES_PER_CHUNK, 1, 1 << 28, 6;
    unacknowledged_max: |sizes| sizes.unacknowledged_bytes, 4, 1 << 24, 3;
    mqtt_sessions_max: |sizes| sizes.session_bytes, 1, 1 << 16, 2;
    retained_max: |sizes| sizes.retained_bytes, 1, 1 << 17, 2;
    retained_bytes_max: |_| 1, 4, 1 << 28, 0;
};

impl Limits {
    /// Sets the limits of all pools that share memory to what fits into `memory_bytes`, and into their parts of
    /// `address_bytes`: the addresses that all pools may reserve together.
    pub fn set_shared(&mut self, sizes: &RecordSizes, memory_bytes: u64, address_bytes: u64) {
        for pool in &SHARED_POOLS {
            let each = (pool.bytes_each)(sizes) as u64;
            let fit = memory_bytes / pool.divisor / each;
            let addresses = match pool.address_share {
                0 => u64::MAX,
                share => address_bytes / 64 * share / each,
            };
            (pool.set)(self, fit.min(addresses).min(pool.most).max(64));
        }
        // The floors of the other classes are a fifth of the memory.
        self.body_bytes_max =
            self.body_bytes_max.min(memory_bytes / 4 * 3) / PAGE_BYTES as u64 * PAGE_BYTES as u64;
        for bytes in [&mut self.names_bytes_max, &mut self.patterns_bytes_max, &mut self.retained_bytes_max] {
            *bytes = *bytes / 1024 * 1024;
        }
    }

    /// Returns how many addresses the pools that share memory reserve, in bytes.
    pub fn shared_address_bytes(&self, sizes: &RecordSizes) -> u64 {
        let reserving = SHARED_POOLS.iter().filter(|pool| pool.address_share > 0);
        let bytes = reserving.map(|pool| (pool.get)(self).saturating_mul((pool.bytes_each)(sizes) as u64));
        bytes.fold(0, u64::saturating_add)
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
    fn the_pools_reserve_no_more_addresses_than_they_may() {
        assert!(SHARED_POOLS.iter().map(|pool| pool.address_share).sum::<u64>() <= 62);
    }

    #[test]
    fn digits_come_in_groups_of_three() {
        let shown = [0, 999, 1_000, 12_345_678].map(grouped);
        assert_eq!(shown, ["0", "999", "1,000", "12,345,678"]);
    }
}
