//! The caps of a broker, each by its configuration key, and what they are by default.

/// The smallest frame size AMQP allows a peer to negotiate, in bytes.
pub const FRAME_BYTES_MIN: u32 = 4096;

/// The caps of one broker. Defaults are the generic board: 128 MB for the whole process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once, handshakes included.
    pub connections_max: u32,
    /// Clients of the management API at once, at most [`MANAGEMENT_CLIENTS_MOST`]; who is idle gives way.
    ///
    /// [`MANAGEMENT_CLIENTS_MOST`]: super::MANAGEMENT_CLIENTS_MOST
    pub management_clients_max: u32,
    /// Bridges at once, each with a connection for each direction, beside those above.
    pub bridges_max: u32,
    /// Connections that have not finished their handshake, half of them of one address at most; further ones
    /// wait, or the address that holds most gives one up.
    pub handshakes_max: u32,
    /// Connections over TLS at once, those in their handshake included; further ones wait.
    pub tls_connections_max: u32,
    /// Connections that have not finished the handshake of TLS; further ones wait as for handshakes_max.
    pub tls_handshakes_max: u32,
    /// Channels open at once, over all connections.
    pub channels_max: u32,
    /// Channels per connection, 1 to 65535; connection.tune announces half of `channels_max` if that is less.
    pub channel_max: u16,
    /// Largest frame in bytes, announced in connection.tune, [`FRAME_BYTES_MIN`] and up; a frame must fit
    /// into half the input buffer.
    pub frame_max: u32,
    /// Heartbeat interval announced in connection.tune, in seconds; 0 switches heartbeats off.
    pub heartbeat_s: u16,
    /// Consumers of all connections together.
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
    /// Users that there may be.
    pub users_max: u32,
    /// Permissions, those for topics included.
    pub permissions_max: u32,
    /// Policies, operator policies included.
    pub policies_max: u32,
    /// Runtime parameters, global ones included; each shovel is one.
    pub parameters_max: u32,
    /// Bytes of the patterns in permissions and policies, compiled; `.*` and the empty one take next to
    /// nothing.
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
    /// Bytes of output that sockets did not take, kept over all connections beside 1 KiB for each of them.
    pub unsent_bytes_max: u32,
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
            management_clients_max: 8,
            bridges_max: 0,
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
            bindings_max: 8_192,
            names_bytes_max: 1536 << 10,
            vhosts_max: 64,
            users_max: 64,
            permissions_max: 256,
            policies_max: 64,
            parameters_max: 16,
            patterns_bytes_max: 400 << 10,
            messages_max: 179_000,
            body_bytes_max: 35 << 20,
            assembly_bytes_max: 18 << 20,
            queue_entries_max: 400_000,
            unacknowledged_max: 65_536,
            message_size_max: 16 << 20,
            input_buffer_bytes: 256 << 10,
            output_buffer_bytes: 256 << 10,
            stash_bytes_max: 768 << 10,
            replies_bytes_max: 2 << 10,
            unsent_bytes_max: 512 << 10,
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
            index_bytes_max: 4096 << 10,
        }
    }
}
