//! What every pool costs when it is full, line by line, and what the process needs besides.
//!
//! Always true: a line is reckoned from the sizes of the records themselves, so it cannot be forgotten when
//! a record grows; what only measuring tells is a constant here.

use core::fmt::{self, Write};

use super::Limits;
use crate::journal::Journal;
use crate::log_limiter::LogLimiter;
use crate::mem::READ_BACK_CHUNKS;
use crate::mem::{
    BytePool, CHUNK_BYTES, ENTRIES_PER_CHUNK, MESSAGE_SLOT_BYTES, MessageLimits, Messages, PAGE_BYTES,
};

/// The program itself: code, constants, the C library's and the logger's needs. Measured, rounded up.
const PROGRAM_BYTES: u64 = 5_500_000;
/// Clients of the control socket at once; further ones wait.
pub const CONTROL_CLIENTS_MAX: usize = 4;
/// A row of a list that the management API puts in order, and as much again while the list grows.
pub const LISTED_ROW_BYTES: usize = 2 * 24;

/// The most clients of the management API that `management_clients_max` may allow.
pub const MANAGEMENT_CLIENTS_MOST: usize = 8;
/// Threads that wait for the disk, the one that does what else takes long, and the one that writes the log.
const HELPERS: u64 = 4;
/// Bytes of log lines that standard error has not taken yet; further ones are dropped and counted.
pub const LOG_RING_BYTES: usize = 32 << 10;
/// The stack of each, in bytes.
pub const HELPER_STACK_BYTES: usize = 128 << 10;
/// The lines, and what is known of those who cause them.
const LOG_BYTES: usize = LOG_RING_BYTES + size_of::<LogLimiter>();
/// The main thread's stack as far as it is ever touched.
const STACK_BYTES: u64 = 256 << 10;

const fn line(key: &'static str, count: u64, bytes_each: usize, reason: &'static str) -> MemoryLine {
    MemoryLine { key, count, bytes_each: bytes_each as u64, reason }
}

/// One line of the memory table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryLine {
    /// The configuration key that sizes it, or what it is when no key does.
    pub key: &'static str,
    /// How many such records the pool holds.
    pub count: u64,
    /// Bytes each.
    pub bytes_each: u64,
    /// What the memory is for, as the table prints it.
    pub reason: &'static str,
}

impl MemoryLine {
    /// Bytes in all.
    pub const fn bytes(&self) -> u64 {
        self.count.saturating_mul(self.bytes_each)
    }
}

/// What the process may use at most, line by line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryTable {
    /// The lines, in the order of the configuration.
    pub lines: Vec<MemoryLine>,
    /// What the kernel may hold for the sockets besides, in bytes; `None` when that is left to the system.
    pub kernel_bytes: Option<u64>,
}

impl MemoryTable {
    /// The table as text, its sum set against the limit.
    pub fn shown(&self, memory_limit_bytes: u64) -> String {
        let mut text = format!("# {:<20}{:>11} ×{:>10} ={:>13}\n", "memory", "count", "bytes", "in all");
        for line in &self.lines {
            let (key, reason) = (line.key, line.reason);
            let [count, each, bytes] = [line.count, line.bytes_each, line.bytes()].map(grouped);
            // Writing into a String cannot fail.
            let _ = writeln!(text, "# {key:<20}{count:>11} ×{each:>10} ={bytes:>13}  {reason}");
        }
        let kernel = match self.kernel_bytes {
            Some(bytes) => format!("at most {}", Megabytes(bytes)),
            None => "as much as the system allows".to_string(),
        };
        let (sum, limit) = (Megabytes(self.bytes()), Megabytes(memory_limit_bytes));
        let _ = writeln!(
            text,
            "# in all {sum} of memory_limit {limit}; besides, the kernel's socket buffers: {kernel}"
        );
        text
    }

    /// The sum of all lines in bytes; the kernel's part is not in it.
    pub fn bytes(&self) -> u64 {
        self.lines.iter().map(MemoryLine::bytes).fold(0, u64::saturating_add)
    }
}

/// Sizes of records in rooms above this one, handed in so that the ground floor need not see them.
#[derive(Clone, Copy, Debug)]
pub struct RecordSizes {
    /// A session of TLS and what of its output waits; 0 when TLS is not spoken.
    pub tls_session_bytes: usize,
    /// A handshake of TLS that is under way; 0 when TLS is not spoken.
    pub tls_handshake_bytes: usize,
    /// A link of a bridge over TLS: its handshake, then its session, and what of its output waits; 0 when no
    /// upstream speaks TLS.
    pub tls_link_bytes: usize,
    /// Where records of TLS are opened and sealed; 0 when TLS is not spoken.
    pub tls_record_bytes: usize,
    /// Lists of revoked certificates; 0 when there are none.
    pub tls_crl_bytes: usize,
    /// Socket, session and broker record of a connection together.
    pub connection_bytes: usize,
    /// A bridge: what it is to do, its links and their windows, and the thread that looks names up.
    pub bridge_bytes: usize,
    /// Session and broker record of a channel together.
    pub channel_bytes: usize,
    /// A consumer.
    pub consumer_bytes: usize,
    /// A queue with its place in the name table.
    pub queue_bytes: usize,
    /// What the store knows of a queue that is empty.
    pub standing_queue_bytes: usize,
    /// What the store knows of something that is defined.
    pub definition_bytes: usize,
    /// An exchange with its place in the name table.
    pub exchange_bytes: usize,
    /// A binding with its places in the routing tables.
    pub binding_bytes: usize,
    /// A virtual host with the exchanges it begins with.
    pub vhost_bytes: usize,
    /// A user.
    pub user_bytes: usize,
    /// A permission without its patterns.
    pub permission_bytes: usize,
    /// A policy without its pattern.
    pub policy_bytes: usize,
    /// A runtime parameter.
    pub parameter_bytes: usize,
    /// A connection that has not logged in, besides its record: its password, while that waits for its check.
    pub login_bytes: usize,
    /// The list of accepted connections that wait, and the tables of wrong passwords.
    pub admission_bytes: usize,
    /// A delivery that is not settled, with its place in the tag table.
    pub unacknowledged_bytes: usize,
    /// Buffers that sessions and broker have once.
    pub scratch_bytes: usize,
    /// Buffers that the store has once.
    pub store_bytes: usize,
    /// A client of the control socket, and its part of the places for clients of both kinds.
    pub control_bytes: usize,
    /// A client of the management API; 0 when nobody listens for one.
    pub management_bytes: usize,
    /// What was counted in the last minutes, for the management API.
    pub samples_bytes: usize,
    /// What JSON that others send is read into.
    pub json_bytes: usize,
    /// The file of the flight recorder; 0 when there is none.
    pub flight_bytes: usize,
}

/// Bytes that a connection can always write at once, because there is room to keep all of them.
pub const OUTPUT_BYTES_MIN: usize = 1024;

/// Rules that one bridge may have in each direction.
pub const BRIDGE_RULES_MAX: usize = 8;

impl Limits {
    /// The sizes of the pool of messages.
    pub const fn message_limits(&self) -> MessageLimits {
        MessageLimits {
            messages_max: self.messages_max as usize,
            body_bytes_max: self.body_bytes_max as usize,
            assembly_bytes_max: self.assembly_bytes_max as usize,
        }
    }

    /// Returns the most channels that a connection can have, as connection.tune names it.
    ///
    /// A connection may have as many channels as it leaves to others, so half of `channels_max` when it is alone.
    pub fn channels_of_a_connection(&self) -> u16 {
        let half = self.channels_max.div_ceil(2);
        self.channel_max.min(u16::try_from(half).unwrap_or(u16::MAX))
    }

    /// Connections that bridges may have, one for each direction.
    pub const fn bridge_links(&self) -> usize {
        2 * self.bridges_max as usize
    }

    /// Bytes of output kept free for connections that can keep [`OUTPUT_BYTES_MIN`] each.
    pub const fn unsent_reserve_bytes(&self) -> usize {
        let connections = (self.connections_max as usize).saturating_add(self.bridge_links());
        connections.saturating_mul(OUTPUT_BYTES_MIN).div_ceil(PAGE_BYTES).saturating_mul(PAGE_BYTES)
    }

    /// Bytes of output that sockets did not take, over all connections.
    pub const fn unsent_pool_bytes(&self) -> usize {
        self.unsent_reserve_bytes().saturating_add(self.unsent_bytes_max as usize)
    }

    /// Connections of every kind that the broker may have a record of.
    pub const fn connection_records(&self) -> usize {
        // Each bridge has one for each rule that forwards besides, and one for what goes back.
        let own = self.bridges_max as usize * (BRIDGE_RULES_MAX + 1);
        self.connections_max as usize + self.bridge_links() + own
    }

    /// The memory table: what every pool costs when it is full.
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
        lines.extend(self.access_lines(sizes));
        lines.extend(self.tls_lines(sizes).into_iter().filter(|line| line.bytes_each > 0));
        MemoryTable { lines, kernel_bytes: self.kernel_bytes() }
    }

    /// Who is there, and what they have declared.
    fn lines_of_peers(&self, sizes: &RecordSizes) -> Vec<MemoryLine> {
        // An operator's numbers: on a 32-bit board the product may wrap to one that would seem to fit.
        let replies = (self.connections_max as usize).saturating_mul(self.replies_bytes_max as usize);
        vec![
            line(
                "connections_max",
                self.connections_max.into(),
                sizes.connection_bytes,
                "socket, session, broker record",
            ),
            line(
                "replies_bytes_max",
                self.connections_max.into(),
                BytePool::bytes(replies).div_ceil(self.connections_max.max(1) as usize),
                "replies on their way",
            ),
            line(
                "bridges_max",
                self.bridges_max.into(),
                sizes.bridge_bytes,
                "bridges, their messages under way",
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

    /// Rows of the longest list of the management API.
    fn listed_rows(&self) -> u32 {
        let rows = [
            self.connections_max,
            self.channels_max,
            self.consumers_max,
            self.queues_max,
            self.exchanges_max,
        ];
        rows.into_iter().fold(self.bindings_max, u32::max)
    }

    /// Messages and their places.
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

    /// What is there once.
    fn lines_of_the_process(&self, sizes: &RecordSizes) -> Vec<MemoryLine> {
        let management_bytes = match sizes.management_bytes {
            0 => 0,
            bytes => bytes + self.listed_rows() as usize * LISTED_ROW_BYTES,
        };
        vec![
            line("input_buffer_bytes", 1, self.input_buffer_bytes as usize, "the one input buffer"),
            line("output_buffer_bytes", 1, self.output_buffer_bytes as usize, "the one output buffer"),
            line(
                "stash_bytes_max",
                1,
                BytePool::bytes(self.stash_bytes_max as usize),
                "input of connections that wait",
            ),
            line(
                "unsent_bytes_max",
                1,
                BytePool::bytes(self.unsent_pool_bytes()),
                "output that sockets did not take: 1 KiB for each connection besides",
            ),
            line("frame_max", 1, sizes.scratch_bytes, "looking into properties, sorting output"),
            line(
                "messages_max",
                1,
                Journal::bytes(self.messages_max as usize, self.input_buffer_bytes as usize),
                "what waits for its commit",
            ),
            line(
                "commit_bytes_max",
                1,
                sizes.store_bytes,
                "commits, reading back, footers: by segment_bytes too",
            ),
            line("index_bytes_max", 1, self.index_bytes_max as usize, "which segment holds what"),
            line("queues_max", self.queues_max.into(), sizes.standing_queue_bytes, "the log's queues"),
            line(
                "definitions",
                self.definitions(),
                sizes.definition_bytes,
                "where the log has what the other limits let be defined",
            ),
            line("allocator", 1, self.spread_bytes() as usize, "holes between names, and in the index"),
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
            line("json", 1, sizes.json_bytes, "a body or a thing of a file of definitions, while it is read"),
            line("stack", 1, STACK_BYTES as usize, "the one thread that decides"),
            line(
                "helpers",
                HELPERS,
                HELPER_STACK_BYTES,
                "threads for the disk, for what takes long and for the log",
            ),
            line("log", 1, LOG_BYTES, "lines on their way out, who may have how many"),
            line("flight_recorder", 1, sizes.flight_bytes, "the last events: a file in memory"),
            line("program", 1, PROGRAM_BYTES as usize, "code, constants, libraries"),
        ]
    }

    /// How many things the log may have a definition of.
    fn definitions(&self) -> u64 {
        let numbers = [
            self.queues_max,
            self.exchanges_max,
            self.bindings_max,
            self.vhosts_max,
            // A user, and a user's limits.
            self.users_max,
            self.users_max,
            self.permissions_max,
            self.policies_max,
            self.parameters_max,
        ];
        numbers.into_iter().map(u64::from).sum()
    }

    /// What the index of the log may take, in bytes, for what is there whether it has messages or not.
    pub fn standing_bytes(&self, sizes: &RecordSizes) -> u64 {
        u64::from(self.queues_max) * sizes.standing_queue_bytes as u64
            + self.definitions() * sizes.definition_bytes as u64
    }

    /// What the allocator may lose between pieces of many sizes that come and go: a quarter of them. The
    /// pools are in one piece each and lose nothing.
    fn spread_bytes(&self) -> u64 {
        (u64::from(self.names_bytes_max) + u64::from(self.index_bytes_max)) / 4
    }

    fn tls_lines(&self, sizes: &RecordSizes) -> [MemoryLine; 5] {
        let (connections, handshakes) = (self.tls_connections_max.into(), self.tls_handshakes_max.into());
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
            line("input_buffer_bytes", 1, sizes.tls_record_bytes, "where TLS is opened and sealed"),
            line("crl", 1, sizes.tls_crl_bytes, "revoked certificates, old and new lists"),
        ]
    }

    /// The lines for users, permissions and virtual hosts.
    fn access_lines(&self, sizes: &RecordSizes) -> [MemoryLine; 8] {
        let logins = "logins whose password is being checked";
        [
            line(
                "vhosts_max",
                self.vhosts_max.into(),
                // And a bit for each of its users whose publishers wait.
                sizes.vhost_bytes + (self.users_max as usize + 1).div_ceil(8),
                "virtual host, its first exchanges",
            ),
            line("users_max", self.users_max.into(), sizes.user_bytes, "user with its tags"),
            line("permissions_max", self.permissions_max.into(), sizes.permission_bytes, "permission"),
            line("policies_max", self.policies_max.into(), sizes.policy_bytes, "policy"),
            line("parameters_max", self.parameters_max.into(), sizes.parameter_bytes, "runtime parameter"),
            line(
                "patterns_bytes_max",
                self.patterns_bytes_max.into(),
                1,
                "patterns of permissions, policies",
            ),
            line("handshakes_max", self.handshakes_max.into(), sizes.login_bytes, logins),
            line("admission", 1, sizes.admission_bytes, "accepted connections that wait; wrong passwords"),
        ]
    }

    /// What the kernel may hold for all sockets: it takes twice the size asked for, each way.
    fn kernel_bytes(&self) -> Option<u64> {
        let (receive, send) = (self.socket_receive_buffer_bytes, self.socket_send_buffer_bytes);
        if receive == 0 || send == 0 {
            return None;
        }
        let local = u64::from(self.socket_local_buffer_bytes);
        let each = u64::from(receive) + u64::from(send);
        let more = (2 * local).saturating_sub(each);
        let locals = self.socket_local_buffers_max.min(self.connections_max);
        Some(2 * (each * u64::from(self.connections_max) + more * u64::from(locals)))
    }
}

/// Shows bytes as megabytes with one decimal.
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
