//! The limits of a broker, and the memory that they need.
//!
//! `memory_limit` is the one number of a board. A part of it has a fixed size: the program, stacks, and buffers of the loop and
//! of commits. All pools share the rest, so no pool has a key of its own. The start and `leveret check` print the memory
//! table. The broker does not start if the fixed part leaves too little.
//!
//! # Invariants
//! - All memory whose use depends on what peers do is a line in [`Limits::memory_table`], or is charged to the shared memory.
//! - An error contains one key to change and the required value.

mod memory;

use core::fmt;

pub use memory::{
    BRIDGE_RULES_MAX, CONNECTIONS_SPARE, CONTROL_CLIENTS_MAX, HELPER_STACK_BYTES, LOG_RING_BYTES,
    MANAGEMENT_CLIENTS_UPPER_BOUND, Megabytes, MemoryLine, MemoryTable, OUTPUT_BYTES_MIN, RecordSizes,
    SHARED_BYTES_MIN, SHARED_KEY, TLS_CONNECTIONS_SPARE, grouped, kernel_socket_bytes,
};

/// Smallest frame size in bytes that AMQP allows a peer to negotiate.
pub const FRAME_BYTES_MIN: u32 = 4096;
/// Largest CONNECT of MQTT in bytes, with its will, if the input buffer has space for it ([`Limits::connect_bytes_max`]).
pub const CONNECT_BYTES_MAX: u32 = 64 << 10;
/// Maximum number of bridges, shovels included. It bounds addresses and descriptors; a bridge takes memory when it is added.
pub const BRIDGES_MAX: u32 = 32;
/// SO_RCVBUF and SO_SNDBUF in bytes of connections beyond the budget for larger ones. The kernel uses twice as much.
pub const SOCKET_BUFFER_BYTES_MIN: u32 = 4 << 10;
/// Bytes of replies kept for a connection that does not read them: enough for the longest reply. When they are reached, the
/// broker stops reading from the connection.
pub const REPLIES_BYTES_MAX: usize = 2 << 10;

/// The limits of one broker. The defaults are for the generic board: 128 MB for the whole process.
///
/// The first fields are configuration keys of the same name. The sizes of buffers and pools after them follow from
/// `memory_limit`. A pool reserves addresses for its maximum, and shares the memory with the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Maximum number of open connections of AMQP and MQTT. A client that logs in above it is refused, unless a
    /// connection can be closed for it. Lost connections do not count.
    pub connections_max: u32,
    /// Largest message body in bytes; larger ones are refused with 406.
    pub message_size_max: u32,
    /// Largest frame in bytes, announced in connection.tune, at least [`FRAME_BYTES_MIN`]. A frame must fit into half
    /// the input buffer.
    pub frame_max: u32,
    /// Maximum channels per connection, 1 to 65535. connection.tune announces half of `channels_max` if that is less.
    pub channel_max: u16,
    /// Heartbeat interval announced in connection.tune, in seconds; 0 disables heartbeats.
    pub heartbeat_s: u16,
    /// Longest time for which an MQTT session is kept after its connection, in milliseconds.
    pub mqtt_session_expiry_max_ms: u32,
    /// Maximum number of messages that wait in one MQTT session.
    pub mqtt_session_messages_max: u32,
    /// SO_RCVBUF of a connection in bytes; 0 leaves it to the system. Connections beyond
    /// [`Self::large_socket_bytes`] get [`SOCKET_BUFFER_BYTES_MIN`].
    pub socket_receive_buffer_bytes: u32,
    /// As `socket_receive_buffer_bytes`, for SO_SNDBUF.
    pub socket_send_buffer_bytes: u32,
    /// SO_RCVBUF and SO_SNDBUF in bytes of a connection from the same machine, which has segments of 64 KiB.
    /// 0: as for other connections. They use at most half of [`Self::large_socket_bytes`].
    pub socket_local_buffer_bytes: u32,
    /// Time from accepting a connection until connection.open, in milliseconds.
    pub handshake_timeout_ms: u32,
    /// Maximum time without progress of an incomplete frame or message, in milliseconds. While another
    /// message waits for memory, a message must arrive completely within ten times this time.
    pub content_timeout_ms: u32,
    /// Maximum time for which a consumer's socket takes nothing while deliveries wait, in milliseconds; 0:
    /// unlimited.
    pub consumer_stall_timeout_ms: u32,
    /// Maximum time until a delivery is settled, and between two operations of an open transaction, in
    /// milliseconds; 0: unlimited. Then the channel is closed.
    pub consumer_timeout_ms: u32,
    /// Bytes of a segment of the log, best a multiple of the card's erase block. An existing store keeps its own
    /// size.
    pub segment_bytes: u32,
    /// Size of the largest commit in bytes.
    pub commit_bytes_max: u32,
    /// Maximum number of clients of the management API, up to [`MANAGEMENT_CLIENTS_UPPER_BOUND`]. When it is
    /// reached, an idle client is closed if another one connects.
    pub management_clients_max: u32,
    /// Maximum number of bridges, shovels included. Each has a connection for each direction, in addition to
    /// `connections_max`.
    pub bridges_max: u32,
    /// Maximum number of connections that have not logged in, at most half of them from one address. Further
    /// connections wait, and may cause the close of one that does not log in.
    pub handshakes_max: u32,
    /// Maximum number of connections in the TLS handshake. Further ones wait as with `handshakes_max`.
    pub tls_handshakes_max: u32,
    /// Maximum number of open channels over all connections.
    pub channels_max: u32,
    /// Maximum number of consumers over all connections.
    pub consumers_max: u32,
    /// Maximum number of queues, including deleted ones whose messages are still unacknowledged.
    pub queues_max: u32,
    /// Maximum number of exchanges, predeclared ones included.
    pub exchanges_max: u32,
    /// Maximum number of bindings, exchange-to-exchange ones included. A headers binding with `x-match=any` counts
    /// once per header.
    pub bindings_max: u32,
    /// Bytes of names, binding keys and argument tables over all exchanges, queues and bindings.
    pub names_bytes_max: u32,
    /// Maximum number of virtual hosts, including those being deleted.
    pub vhosts_max: u32,
    /// Maximum number of users.
    pub users_max: u32,
    /// Maximum number of permissions, topic permissions included.
    pub permissions_max: u32,
    /// Maximum number of policies, operator policies included.
    pub policies_max: u32,
    /// Maximum number of runtime parameters, global ones included; each shovel is one.
    pub parameters_max: u32,
    /// Bytes of the compiled patterns in permissions and policies. `.*` and the empty pattern take almost nothing.
    pub patterns_bytes_max: u32,
    /// Maximum number of messages in memory. A message in several queues counts once.
    pub messages_max: u32,
    /// Bytes of message data beyond what fits into the messages' slots.
    pub body_bytes_max: u64,
    /// Maximum bytes of message data of all incomplete messages together.
    pub assembly_bytes_max: u64,
    /// Maximum number of queue entries: a message in three queues takes three.
    pub queue_entries_max: u32,
    /// Maximum number of messages that are unacknowledged or being written to a socket. A connection may have
    /// at most as many as remain free for others; a single connection half of them.
    pub unacknowledged_max: u32,
    /// Maximum number of MQTT sessions that are kept after their connection.
    pub mqtt_sessions_max: u32,
    /// Bytes of bodies of the messages that wait in one MQTT session, at most `body_bytes_max`.
    pub mqtt_session_bytes_max: u32,
    /// Maximum number of retained messages.
    pub retained_max: u32,
    /// Bytes of the properties and payloads of retained messages in memory. The log has further ones.
    pub retained_bytes_max: u32,
    /// Bytes read from one socket in one turn, and the longest contiguous input.
    pub input_buffer_bytes: u32,
    /// Bytes written to one socket in one turn.
    pub output_buffer_bytes: u32,
    /// Bytes of received but not yet handled input of all connections together.
    pub input_backlog_bytes_max: u32,
    /// Bytes of output of all connections that sockets did not take, in addition to 1 KiB for each
    /// connection.
    pub unsent_bytes_max: u32,
    /// Bytes of the index of the log in memory: which segment holds which part of each queue.
    pub index_bytes_max: u32,
    /// Bytes that the kernel's buffers of all sockets may take. Only used if the sizes of the buffers are not 0.
    pub socket_budget_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 1024,
            management_clients_max: 8,
            bridges_max: BRIDGES_MAX,
            handshakes_max: 256,
            tls_handshakes_max: 16,
            channels_max: 4736,
            channel_max: 2047,
            frame_max: 131_072,
            heartbeat_s: 60,
            consumers_max: 4096,
            queues_max: 4096,
            exchanges_max: 1024,
            bindings_max: 8_192,
            names_bytes_max: 1536 << 10,
            vhosts_max: 64,
            users_max: 64,
            permissions_max: 256,
            policies_max: 64,
            parameters_max: 16,
            patterns_bytes_max: 400 << 10,
            messages_max: 170_000,
            body_bytes_max: 35 << 20,
            assembly_bytes_max: 18 << 20,
            queue_entries_max: 400_000,
            unacknowledged_max: 65_536,
            message_size_max: 16 << 20,
            mqtt_sessions_max: 1000,
            mqtt_session_expiry_max_ms: 7 * 24 * 60 * 60 * 1000,
            mqtt_session_messages_max: 10_000,
            mqtt_session_bytes_max: 1 << 20,
            retained_max: 2000,
            retained_bytes_max: 1 << 20,
            input_buffer_bytes: 256 << 10,
            output_buffer_bytes: 256 << 10,
            input_backlog_bytes_max: 768 << 10,
            unsent_bytes_max: 512 << 10,
            socket_receive_buffer_bytes: 0,
            socket_send_buffer_bytes: 0,
            socket_local_buffer_bytes: 0,
            handshake_timeout_ms: 10_000,
            content_timeout_ms: 30_000,
            consumer_stall_timeout_ms: 600_000,
            consumer_timeout_ms: 1_800_000,
            segment_bytes: 4 << 20,
            commit_bytes_max: 512 << 10,
            index_bytes_max: 4096 << 10,
            socket_budget_bytes: 128_000_000,
        }
    }
}

/// Minimum number of segments of the log. With fewer it cannot be compacted.
pub const SEGMENTS_MIN: u64 = 8;

/// Why a set of limits is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LimitsError {
    /// The sum is above the limit.
    SumTooLarge {
        /// Sum of all lines in bytes.
        sum: u64,
        /// Value of `memory_limit` in bytes.
        memory_limit: u64,
        /// The explicit limit that needs most memory; `memory_limit` if there is none.
        key: &'static str,
    },
    /// The broker needs more than the limit even with the smallest pools.
    LimitTooSmall {
        /// Value of `memory_limit` in bytes.
        memory_limit: u64,
        /// Bytes needed with the smallest pools.
        least: u64,
    },
    /// One limit contradicts another.
    Contradiction {
        /// The key to change.
        key: &'static str,
        /// The required value, in words.
        must: &'static str,
    },
    /// The operating system refuses to provide that much memory.
    MemoryRefused {
        /// Sum of all lines in bytes.
        sum: u64,
        /// Value of `memory_limit` in bytes.
        memory_limit: u64,
    },
    /// `disk_limit` is too small for the minimum number of segments.
    Disk {
        /// `disk_limit` in bytes.
        disk_limit: u64,
        /// Bytes of a segment.
        segment_bytes: u32,
    },
}

impl LimitsError {
    /// Returns the key to change.
    pub const fn key(&self) -> &'static str {
        match self {
            Self::SumTooLarge { key, .. } | Self::Contradiction { key, .. } => key,
            Self::LimitTooSmall { .. } | Self::MemoryRefused { .. } => "memory_limit",
            Self::Disk { .. } => "disk_limit",
        }
    }
}

impl fmt::Display for LimitsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SumTooLarge { sum, memory_limit, key } => {
                write!(
                    f,
                    "the broker needs {} but memory_limit is {}: ",
                    Megabytes(*sum),
                    Megabytes(*memory_limit)
                )?;
                if *key != "memory_limit" {
                    write!(f, "lower {key} or ")?;
                }
                f.write_str("raise memory_limit (`leveret check` shows every line)")
            }
            Self::LimitTooSmall { memory_limit, least } => {
                match memory_limit {
                    // So few bytes mean that the operator forgot the unit.
                    1..10_000 => {
                        return write!(
                            f,
                            "memory_limit is {memory_limit} bytes: did you mean \"{memory_limit}MB\"? The \
                             broker needs {} even with the smallest limits",
                            Megabytes(*least)
                        );
                    }
                    0..1_000_000 => write!(f, "memory_limit is {memory_limit} bytes")?,
                    _ => write!(f, "memory_limit is {}", Megabytes(*memory_limit))?,
                }
                write!(
                    f,
                    ", but even with the smallest limits the broker needs {}: write memory_limit = {least} or more \
                     (bytes), or take the profile of a smaller board, if there is one",
                    Megabytes(*least)
                )
            }
            Self::MemoryRefused { sum, memory_limit } => write!(
                f,
                "the broker needs {} (memory_limit is {}), and the system does not give this process so \
                 much memory: lower memory_limit, or raise what the system allows (`ulimit -v`)",
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

impl Limits {
    /// Returns the smallest `commit_bytes_max` for frames of `frame_max` bytes. Every record must fit into a
    /// commit.
    pub const fn commit_bytes_min(frame_max: u32) -> u32 {
        (frame_max.saturating_add(96 << 10) / 3).saturating_mul(4).saturating_add(4095) / 4096 * 4096
    }

    /// Returns the largest CONNECT of MQTT in bytes. A third of the input buffer is left for a TLS record behind it.
    pub fn connect_bytes_max(&self) -> u32 {
        (self.input_buffer_bytes / 3 * 2).clamp(FRAME_BYTES_MIN, CONNECT_BYTES_MAX)
    }

    /// Checks that these limits fit into `memory_limit` bytes, and that the configurable ones do not contradict each other.
    ///
    /// # Errors
    /// The key to change.
    pub fn check(&self, sizes: &RecordSizes, memory_limit: u64) -> Result<MemoryTable, LimitsError> {
        self.check_contradictions()?;
        // Below `isize::MAX` the size of each pool fits into a `usize` on a 32-bit board, too.
        let memory_limit = memory_limit.min(isize::MAX as u64);
        let table = self.memory_table(sizes, memory_limit);
        let sum = table.fixed_bytes().saturating_add(SHARED_BYTES_MIN);
        if sum <= memory_limit {
            return Ok(table);
        }
        let key = "memory_limit";
        Err(LimitsError::SumTooLarge { sum, memory_limit, key })
    }

    /// Checks that the minimum number of segments fits into `disk_limit` bytes.
    ///
    /// # Errors
    /// The value to set instead.
    pub fn check_disk(&self, disk_limit: u64) -> Result<(), LimitsError> {
        let segment_bytes = self.segment_bytes;
        let is_enough = disk_limit >= SEGMENTS_MIN * u64::from(segment_bytes);
        is_enough.then_some(()).ok_or(LimitsError::Disk { disk_limit, segment_bytes })
    }

    fn check_contradictions(&self) -> Result<(), LimitsError> {
        let rules = [
            ((1..=1 << 16).contains(&self.connections_max), "connections_max", "from 1 to 65536"),
            (self.channel_max >= 1, "channel_max", "at least 1"),
            (self.frame_max >= FRAME_BYTES_MIN, "frame_max", "at least 4096 bytes"),
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
            (self.mqtt_session_messages_max >= 1, "mqtt_session_messages_max", "at least 1"),
        ];
        match rules.into_iter().find(|(holds, ..)| !holds) {
            Some((_, key, must)) => Err(LimitsError::Contradiction { key, must }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod check_tests {
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
        empty_queue_index_bytes: 400,
        definition_bytes: 300,
        exchange_bytes: 300,
        binding_bytes: 300,
        vhost_bytes: 4000,
        user_bytes: 800,
        permission_bytes: 800,
        policy_bytes: 1800,
        parameter_bytes: 2700,
        session_bytes: 2000,
        retained_bytes: 400,
        login_bytes: 1000,
        admission_bytes: 20_000,
        unacknowledged_bytes: 72,
        scratch_bytes: 300_000,
        store_bytes: 4_000_000,
        pending_write_bytes: 1_000_000,
        control_bytes: 1000,
        management_bytes: 1000,
        samples_bytes: 1000,
        json_bytes: 1000,
        flight_bytes: 0,
    };

    #[test]
    fn the_default_fits_the_generic_board() {
        let table = Limits::default().check(&SIZES, 128_000_000).unwrap();
        assert!(table.bytes() > 90_000_000, "{}", table.bytes());
    }

    #[test]
    fn no_number_makes_the_sum_wrap() {
        let index = Limits { index_bytes_max: u32::MAX, ..Limits::default() };
        let output = Limits { unsent_bytes_max: u32::MAX, ..Limits::default() };
        for limits in [index, output] {
            let error = limits.check(&SIZES, u64::MAX >> 32).unwrap_err();
            assert!(matches!(error, LimitsError::SumTooLarge { sum, .. } if sum >= 1 << 32), "{error}");
        }
        let every = Limits { frame_max: u32::MAX, ..Limits::default() };
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
        let limits = Limits { frame_max: 1 << 20, ..Limits::default() };
        let error = limits.check(&SIZES, u64::MAX).unwrap_err();
        assert_eq!(
            error.to_string(),
            "commit_bytes_max must be a multiple of 4 KiB, at least four thirds of frame_max plus 96 KiB: every record must fit"
        );
        let limits = Limits { mqtt_session_messages_max: 0, ..Limits::default() };
        assert_eq!(limits.check(&SIZES, u64::MAX).unwrap_err().key(), "mqtt_session_messages_max");
    }
}
