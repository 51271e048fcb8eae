//! Every cap in one place, and the sum of what they cost.
//!
//! A board has so much memory and no more, so the broker's pools are sized here once, added up line by
//! line, printed at start and by `leveret check`, and refused when the sum is above `memory_limit`.
//!
//! Always true: whatever grows with what peers do has a field here and a line in [`Limits::memory_table`].
//! A field's name is its configuration key.

use core::fmt;

use crate::journal::Journal;
use crate::log_limiter::LogLimiter;
use crate::mem::{BytePool, CHUNK_BYTES, ENTRIES_PER_CHUNK, MESSAGE_SLOT_BYTES, Messages, Owner, PAGE_BYTES};

/// The smallest frame size AMQP allows a peer to negotiate, in bytes.
pub const FRAME_BYTES_MIN: u32 = 4096;

/// The caps of one broker. Defaults are the generic board: 128 MB for the whole process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once, handshakes included.
    pub connections_max: u32,
    /// Connections that have not finished their handshake, half of them of one address at most; further ones
    /// wait, or the address that holds most gives one up.
    pub handshakes_max: u32,
    /// Connections over TLS at once, those in their handshake included; further ones wait.
    pub tls_connections_max: u32,
    /// Connections that have not finished the handshake of TLS; further ones wait as for handshakes_max.
    pub tls_handshakes_max: u32,
    /// Channels open at once, over all connections.
    pub channels_max: u32,
    /// Channels per connection, announced in connection.tune (`channel_max`), 1 to 65535.
    pub channel_max: u16,
    /// Largest frame in bytes, announced in connection.tune, [`FRAME_BYTES_MIN`] and up; a frame must fit
    /// into half the input buffer.
    pub frame_max: u32,
    /// Heartbeat interval announced in connection.tune, in seconds; 0 switches heartbeats off.
    pub heartbeat_s: u16,
    /// Consumers at once.
    pub consumers_max: u32,
    /// Queues, those deleted ones included whose messages are still unacknowledged.
    pub queues_max: u32,
    /// Exchanges, predeclared ones included.
    pub exchanges_max: u32,
    /// Bindings, exchange-to-exchange ones included; one by any of several headers counts for each.
    pub bindings_max: u32,
    /// Bytes of names, binding keys and argument tables, over all exchanges, queues and bindings.
    pub names_bytes_max: u32,
    /// Virtual hosts, those included that are being deleted.
    pub vhosts_max: u32,
    /// Users.
    pub users_max: u32,
    /// Permissions, those for topics included.
    pub permissions_max: u32,
    /// Bytes of the patterns in permissions, compiled; `.*` and the empty one take next to nothing.
    pub patterns_bytes_max: u32,
    /// Messages held in memory, however many queues hold each.
    pub messages_max: u32,
    /// Bytes of message data beyond what fits into the messages' own slots.
    pub body_bytes_max: u64,
    /// Bytes of message data that half-received messages may hold together.
    pub assembly_bytes_max: u64,
    /// Queue entries: a message in three queues takes three.
    pub queue_entries_max: u32,
    /// Messages delivered and not yet acknowledged, or on their way into a socket. One connection may hold
    /// as many as it leaves to others: half of them when it is alone.
    pub unacknowledged_max: u32,
    /// Largest message body in bytes; larger ones are refused with 406.
    pub message_size_max: u32,
    /// Bytes read from one socket in one turn, and the longest input looked at together.
    pub input_buffer_bytes: u32,
    /// Bytes written to one socket in one turn.
    pub output_buffer_bytes: u32,
    /// Bytes of received but not yet handled input kept for connections that wait, over all of them.
    pub stash_bytes_max: u32,
    /// Bytes of replies kept for one connection that does not read them; beyond it, it is not read either.
    pub replies_bytes_max: u32,
    /// SO_RCVBUF of each connection in bytes; 0 leaves it to the system.
    pub socket_receive_buffer_bytes: u32,
    /// SO_SNDBUF of each connection in bytes; 0 leaves it to the system.
    pub socket_send_buffer_bytes: u32,
    /// SO_RCVBUF and SO_SNDBUF of a connection from this machine, whose segments are 64 KiB, in bytes; 0: as
    /// of any other.
    pub socket_local_buffer_bytes: u32,
    /// So many connections from this machine have those at once; further ones have what others have.
    pub socket_local_buffers_max: u32,
    /// Time from accepting a connection until connection.open, in milliseconds.
    pub handshake_timeout_ms: u32,
    /// Time a half-sent frame or message may go without progress, in milliseconds. A tenth of what a message
    /// may take to come in while another waits for its room.
    pub content_timeout_ms: u32,
    /// Time a consumer's socket may take nothing while deliveries wait for it, in milliseconds; 0: for ever.
    pub consumer_stall_timeout_ms: u32,
    /// Time a delivery may wait to be settled, and an open transaction for something to be added to it, in
    /// milliseconds; 0: for ever. Then the channel is closed.
    pub consumer_timeout_ms: u32,
    /// Bytes of a segment of the log: best a multiple of the card's erase block; an old store keeps its own.
    pub segment_bytes: u32,
    /// The largest commit in bytes.
    pub commit_bytes_max: u32,
    /// Bytes of what memory knows of the log: which segment holds which part of each queue.
    pub index_bytes_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 1024,
            handshakes_max: 256,
            tls_connections_max: 64,
            tls_handshakes_max: 16,
            channels_max: 4096,
            channel_max: 2047,
            frame_max: 131_072,
            heartbeat_s: 60,
            consumers_max: 4096,
            queues_max: 4096,
            exchanges_max: 1024,
            bindings_max: 16_384,
            names_bytes_max: 2 << 20,
            vhosts_max: 64,
            users_max: 64,
            permissions_max: 256,
            patterns_bytes_max: 512 << 10,
            messages_max: 216_000,
            body_bytes_max: 35 << 20,
            assembly_bytes_max: 18 << 20,
            queue_entries_max: 400_000,
            unacknowledged_max: 65_536,
            message_size_max: 16 << 20,
            input_buffer_bytes: 256 << 10,
            output_buffer_bytes: 256 << 10,
            stash_bytes_max: 768 << 10,
            replies_bytes_max: 2 << 10,
            socket_receive_buffer_bytes: 0,
            socket_send_buffer_bytes: 0,
            socket_local_buffer_bytes: 0,
            socket_local_buffers_max: 32,
            handshake_timeout_ms: 10_000,
            content_timeout_ms: 30_000,
            consumer_stall_timeout_ms: 600_000,
            consumer_timeout_ms: 1_800_000,
            segment_bytes: 4 << 20,
            commit_bytes_max: 512 << 10,
            index_bytes_max: 2 << 20,
        }
    }
}

/// One line of the memory table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryLine {
    /// The configuration key that sizes it, or what it is when no key does.
    pub key: &'static str,
    /// How many.
    pub count: u64,
    /// Bytes each.
    pub bytes_each: u64,
    /// What it is for.
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
    /// Where records of TLS are opened and sealed; 0 when TLS is not spoken.
    pub tls_record_bytes: usize,
    /// Lists of revoked certificates; 0 when there are none.
    pub tls_crl_bytes: usize,
    /// Socket, session and broker record of a connection together.
    pub connection_bytes: usize,
    /// Session and broker record of a channel together.
    pub channel_bytes: usize,
    /// A consumer.
    pub consumer_bytes: usize,
    /// A queue with its place in the name table.
    pub queue_bytes: usize,
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
    /// A handshake place, and a login that waits for its password to be checked.
    pub login_bytes: usize,
    /// The queue of accepted connections without a handshake place, and what is known of addresses.
    pub newcomers_bytes: usize,
    /// A delivery that is not settled, with its place in the tag table.
    pub unacknowledged_bytes: usize,
    /// Buffers that sessions and broker have once.
    pub scratch_bytes: usize,
    /// Buffers that the store has once.
    pub store_bytes: usize,
    /// A client of the operator's socket.
    pub control_bytes: usize,
}

/// Why a set of limits cannot be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LimitsError {
    /// The sum is above the limit.
    TooMuch {
        /// Bytes of all lines.
        sum: u64,
        /// Bytes allowed.
        memory_limit: u64,
        /// The key of the largest line that can be lowered.
        key: &'static str,
    },
    /// Even with the smallest pools the broker needs more than the limit.
    TooLittle {
        /// Bytes allowed.
        memory_limit: u64,
        /// Bytes needed at least.
        least: u64,
    },
    /// One limit contradicts another.
    Contradiction {
        /// The key to change.
        key: &'static str,
        /// What it must be.
        must: &'static str,
    },
    /// The system does not give so much.
    NotGiven {
        /// Bytes of all lines.
        sum: u64,
        /// Bytes allowed.
        memory_limit: u64,
    },
    /// `disk_limit` leaves room for too few segments.
    Disk {
        /// `disk_limit` in bytes.
        disk_limit: u64,
        /// Bytes of a segment.
        segment_bytes: u32,
    },
}

impl LimitsError {
    /// The key to change.
    pub const fn key(&self) -> &'static str {
        match self {
            Self::TooMuch { key, .. } | Self::Contradiction { key, .. } => key,
            Self::TooLittle { .. } | Self::NotGiven { .. } => "memory_limit",
            Self::Disk { .. } => "disk_limit",
        }
    }
}

impl fmt::Display for LimitsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooMuch { sum, memory_limit, key } => write!(
                f,
                "the pools add up to {} but memory_limit is {}: lower {key} or raise memory_limit \
                 (`leveret check` shows every line)",
                Megabytes(*sum),
                Megabytes(*memory_limit)
            ),
            Self::TooLittle { memory_limit, least } => {
                match memory_limit {
                    0..1_000_000 => write!(f, "memory_limit is {memory_limit} bytes")?,
                    _ => write!(f, "memory_limit is {}", Megabytes(*memory_limit))?,
                }
                write!(
                    f,
                    ", but with the smallest pools the broker needs {}: write memory_limit = {least} or more \
                     (bytes), or take the profile of a smaller board, if there is one",
                    Megabytes(*least)
                )
            }
            Self::NotGiven { sum, memory_limit } => write!(
                f,
                "the pools add up to {} (memory_limit is {}), and the system does not give this process so \
                 much memory: lower memory_limit, or raise what the system allows",
                Megabytes(*sum),
                Megabytes(*memory_limit)
            ),
            Self::Contradiction { key, must } => write!(f, "{key} must be {must}"),
            Self::Disk { disk_limit, segment_bytes } => write!(
                f,
                "disk_limit is {disk_limit} bytes, less than {SEGMENTS_MIN} segments of segment_bytes = \
                 {segment_bytes}, which the log needs to be cleaned: write disk_limit = {} or more, or lower \
                 segment_bytes",
                SEGMENTS_MIN * u64::from(*segment_bytes)
            ),
        }
    }
}

impl core::error::Error for LimitsError {}

/// Shows bytes as megabytes with one decimal.
pub struct Megabytes(pub u64);

impl fmt::Display for Megabytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tenths = self.0.div_ceil(100_000);
        write!(f, "{}.{} MB", tenths / 10, tenths % 10)
    }
}

/// With fewer segments the log cannot be cleaned.
pub const SEGMENTS_MIN: u64 = 8;

/// The program itself: code, constants, the C library's and the logger's needs. Measured, rounded up.
const PROGRAM_BYTES: u64 = 5_500_000;
/// Clients of the operator's socket at once; further ones wait.
pub const CONTROL_CLIENTS_MAX: usize = 4;
/// Threads that wait for the disk, the one that runs errands, and the one that writes the log.
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

impl Limits {
    /// The memory table: what every pool costs when it is full.
    pub fn memory_table(&self, sizes: &RecordSizes) -> MemoryTable {
        let mut lines = self.lines_of_peers(sizes);
        lines.extend(self.lines_of_messages(sizes));
        lines.extend(self.lines_of_the_process(sizes));
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
                u64::from(self.queue_entries_max).div_ceil(ENTRIES_PER_CHUNK as u64),
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
        vec![
            line("input_buffer_bytes", 1, self.input_buffer_bytes as usize, "the one input buffer"),
            line("output_buffer_bytes", 1, self.output_buffer_bytes as usize, "the one output buffer"),
            line(
                "stash_bytes_max",
                1,
                BytePool::bytes(self.stash_bytes_max as usize),
                "input of connections that wait",
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
            line("allocator", 1, self.spread_bytes() as usize, "holes between names, and in the index"),
            line(
                "control",
                CONTROL_CLIENTS_MAX as u64,
                sizes.control_bytes,
                "clients of leveret ctl: a request and an answer each",
            ),
            line("stack", 1, STACK_BYTES as usize, "the one thread that decides"),
            line("helpers", HELPERS, HELPER_STACK_BYTES, "threads for the disk, for errands and for the log"),
            line("log", 1, LOG_BYTES, "lines on their way out, who may have how many"),
            line("program", 1, PROGRAM_BYTES as usize, "code, constants, libraries"),
        ]
    }

    /// What the allocator may lose between pieces of many sizes that come and go: a quarter of them. The
    /// pools are in one piece each and lose nothing.
    fn spread_bytes(&self) -> u64 {
        (u64::from(self.names_bytes_max) + u64::from(self.index_bytes_max)) / 4
    }

    fn tls_lines(&self, sizes: &RecordSizes) -> [MemoryLine; 4] {
        let (connections, handshakes) = (self.tls_connections_max.into(), self.tls_handshakes_max.into());
        let reason = "TLS: keys, a record each way, certificate";
        [
            line("tls_connections_max", connections, sizes.tls_session_bytes, reason),
            line("tls_handshakes_max", handshakes, sizes.tls_handshake_bytes, "TLS handshakes under way"),
            line("input_buffer_bytes", 1, sizes.tls_record_bytes, "where TLS is opened and sealed"),
            line("crl", 1, sizes.tls_crl_bytes, "revoked certificates, old and new lists"),
        ]
    }

    /// Who may do what.
    fn access_lines(&self, sizes: &RecordSizes) -> [MemoryLine; 6] {
        let logins = "logins whose password is being checked";
        [
            line(
                "vhosts_max",
                self.vhosts_max.into(),
                sizes.vhost_bytes,
                "virtual host, its first exchanges",
            ),
            line("users_max", self.users_max.into(), sizes.user_bytes, "user with its tags"),
            line("permissions_max", self.permissions_max.into(), sizes.permission_bytes, "permission"),
            line("patterns_bytes_max", self.patterns_bytes_max.into(), 1, "patterns of permissions"),
            line("handshakes_max", self.handshakes_max.into(), sizes.login_bytes, logins),
            line("accept queue", 1, sizes.newcomers_bytes, "who waits for a handshake place; wrong logins"),
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

    /// The least `commit_bytes_max` for frames of so many bytes: every record must fit.
    pub const fn commit_bytes_min(frame_max: u32) -> u32 {
        (frame_max.saturating_add(96 << 10) / 3).saturating_mul(4).saturating_add(4095) / 4096 * 4096
    }

    /// Whether these limits can be kept within `memory_limit` bytes and do not contradict each other.
    ///
    /// # Errors
    /// The key to change.
    pub fn check(&self, sizes: &RecordSizes, memory_limit: u64) -> Result<MemoryTable, LimitsError> {
        self.check_contradictions()?;
        if sizes.tls_session_bytes > 0 {
            self.check_tls()?;
        }
        let table = self.memory_table(sizes);
        let sum = table.bytes();
        // What is below is below for every pool, so on a 32-bit board no size wraps where it becomes a usize.
        let memory_limit = memory_limit.min(isize::MAX as u64);
        if sum <= memory_limit {
            return Ok(table);
        }
        let adjustable = table.lines.iter().filter(|line| {
            let fixed = ["control", "stack", "helpers", "log", "program", "allocator", "crl", "accept queue"];
            !fixed.contains(&line.key)
        });
        let key = adjustable.max_by_key(|line| line.bytes()).map_or("messages_max", |line| line.key);
        Err(LimitsError::TooMuch { sum, memory_limit, key })
    }

    /// Whether a log of at most `disk_limit` bytes has room for the segments that it needs.
    ///
    /// # Errors
    /// What to write instead.
    pub fn check_disk(&self, disk_limit: u64) -> Result<(), LimitsError> {
        let segment_bytes = self.segment_bytes;
        let is_enough = disk_limit >= SEGMENTS_MIN * u64::from(segment_bytes);
        is_enough.then_some(()).ok_or(LimitsError::Disk { disk_limit, segment_bytes })
    }

    /// What TLS needs besides, whose records are large.
    fn check_tls(&self) -> Result<(), LimitsError> {
        let rules = [
            (self.tls_connections_max >= 1, "tls_connections_max", "at least 1 for TLS"),
            (self.tls_handshakes_max >= 1, "tls_handshakes_max", "at least 1 for TLS"),
            (self.input_buffer_bytes >= 40 << 10, "input_buffer_bytes", "at least 40 KiB for TLS"),
            (self.stash_bytes_max >= 128 << 10, "stash_bytes_max", "at least 128 KiB for TLS"),
        ];
        match rules.into_iter().find(|(holds, ..)| !holds) {
            Some((_, key, must)) => Err(LimitsError::Contradiction { key, must }),
            None => Ok(()),
        }
    }

    fn check_contradictions(&self) -> Result<(), LimitsError> {
        let rules: [(bool, &'static str, &'static str); 22] = [
            (self.connections_max >= 1, "connections_max", "at least 1"),
            (self.handshakes_max >= 1, "handshakes_max", "at least 1"),
            (self.channels_max >= 1, "channels_max", "at least 1"),
            (self.channel_max >= 1, "channel_max", "at least 1"),
            (self.exchanges_max >= 8, "exchanges_max", "at least 8: seven are predeclared"),
            (self.vhosts_max >= 1, "vhosts_max", "at least 1"),
            (self.vhosts_max as usize <= Owner::MAX, "vhosts_max", "at most 65535"),
            (self.users_max >= 1, "users_max", "at least 1"),
            (self.permissions_max >= 1, "permissions_max", "at least 1"),
            (self.frame_max >= FRAME_BYTES_MIN, "frame_max", "at least 4096 bytes"),
            (
                self.frame_max <= self.input_buffer_bytes / 2,
                "input_buffer_bytes",
                "at least twice frame_max, so that a whole frame fits",
            ),
            (self.output_buffer_bytes >= 8192, "output_buffer_bytes", "at least 8 KiB"),
            (
                self.stash_bytes_max / 2 >= self.input_buffer_bytes,
                "stash_bytes_max",
                "at least twice input_buffer_bytes",
            ),
            (self.replies_bytes_max >= 2048, "replies_bytes_max", "at least 2 KiB: the longest reply"),
            (self.messages_max >= 64, "messages_max", "at least 64"),
            (
                self.segment_bytes.is_multiple_of(4096) && self.segment_bytes >= 64 << 10,
                "segment_bytes",
                "a multiple of 4 KiB, from 64 KiB up",
            ),
            (self.segment_bytes <= 256 << 20, "segment_bytes", "at most 256 MiB"),
            (
                self.commit_bytes_max <= self.segment_bytes / 3,
                "segment_bytes",
                "at least three times commit_bytes_max",
            ),
            (
                u64::from(self.commit_bytes_max) >= (u64::from(self.frame_max) + (96 << 10)) / 3 * 4
                    && self.commit_bytes_max.is_multiple_of(4096),
                "commit_bytes_max",
                "a multiple of 4 KiB, at least four thirds of frame_max plus 96 KiB: every record must fit",
            ),
            (self.unacknowledged_max >= 64, "unacknowledged_max", "at least 64"),
            (
                u64::from(self.message_size_max) + u64::from(self.frame_max) <= self.assembly_bytes_max,
                "assembly_bytes_max",
                "at least message_size_max plus frame_max, or the largest message could never come in",
            ),
            (
                self.assembly_bytes_max <= self.body_bytes_max / 16 * 15,
                "body_bytes_max",
                "larger than assembly_bytes_max by a sixteenth of itself at least",
            ),
        ];
        match rules.into_iter().find(|(holds, ..)| !holds) {
            Some((_, key, must)) => Err(LimitsError::Contradiction { key, must }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: RecordSizes = RecordSizes {
        tls_session_bytes: 0,
        tls_handshake_bytes: 0,
        tls_record_bytes: 0,
        tls_crl_bytes: 0,
        connection_bytes: 1000,
        channel_bytes: 1000,
        consumer_bytes: 500,
        queue_bytes: 500,
        exchange_bytes: 300,
        binding_bytes: 300,
        vhost_bytes: 4000,
        user_bytes: 800,
        permission_bytes: 800,
        login_bytes: 1000,
        newcomers_bytes: 40_000,
        unacknowledged_bytes: 72,
        scratch_bytes: 300_000,
        store_bytes: 4_000_000,
        control_bytes: 1000,
    };

    #[test]
    fn the_default_fits_the_generic_board() {
        let table = Limits::default().check(&SIZES, 128_000_000).unwrap();
        assert!(table.bytes() > 90_000_000, "{}", table.bytes());
    }

    #[test]
    fn a_sum_above_the_limit_names_the_largest_line() {
        let limits = Limits { messages_max: 10_000_000, ..Limits::default() };
        let error = limits.check(&SIZES, 128_000_000).unwrap_err();
        assert!(error.to_string().contains("lower messages_max"), "{error}");
    }

    #[test]
    fn no_number_that_can_be_written_makes_the_sum_wrap() {
        let replies = Limits { connections_max: 1 << 16, replies_bytes_max: 1 << 16, ..Limits::default() };
        let bodies = Limits { body_bytes_max: u64::MAX, ..Limits::default() };
        for limits in [replies, bodies] {
            let error = limits.check(&SIZES, u64::MAX >> 32).unwrap_err();
            assert!(matches!(error, LimitsError::TooMuch { sum, .. } if sum >= 1 << 32), "{error}");
        }
        let every = Limits { frame_max: u32::MAX, input_buffer_bytes: u32::MAX, ..Limits::default() };
        assert!(matches!(every.check(&SIZES, u64::MAX), Err(LimitsError::Contradiction { .. })));
    }

    #[test]
    fn a_disk_limit_below_eight_segments_says_what_to_write() {
        let limits = Limits::default();
        assert_eq!(limits.check_disk(32 << 20), Ok(()));
        let error = limits.check_disk(32_000_000).unwrap_err();
        assert_eq!(
            error.to_string(),
            "disk_limit is 32000000 bytes, less than 8 segments of segment_bytes = 4194304, which the log \
             needs to be cleaned: write disk_limit = 33554432 or more, or lower segment_bytes"
        );
    }

    #[test]
    fn contradictions_name_the_key_to_change() {
        let limits = Limits { frame_max: 262_144, ..Limits::default() };
        let error = limits.check(&SIZES, u64::MAX).unwrap_err();
        assert_eq!(
            error.to_string(),
            "input_buffer_bytes must be at least twice frame_max, so that a whole frame fits"
        );
        let limits = Limits { message_size_max: 64 << 20, ..Limits::default() };
        assert!(limits.check(&SIZES, u64::MAX).unwrap_err().to_string().starts_with("assembly_bytes_max"));
    }
}
