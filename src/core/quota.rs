//! Limits what one connection may take of the pools that all connections share, and counts what each takes.
//!
//! A connection may use at most a fixed multiple of the capacity that is still free in a pool, so that no
//! client can use up a pool. Declared objects that remain when their connection is closed count for its user, until
//! the user is deleted or the broker stops. This file also counts the connections and channels of users, and the
//! connections of virtual hosts; `access` in the broker checks RabbitMQ's limits with these counts.
//!
//! | pool | a connection may hold |
//! |---|---|
//! | channels, consumers | as many as are free |
//! | unsettled deliveries, and the memory of their messages | as many as are free, but always one |
//! | messages of open transactions, and their memory | as many as are free of the half that all transactions may hold |
//! | queues, exchanges, bindings, names | 15 times as many as are free: one program often declares everything |
//!
//! Objects that closed connections of one user declared have the same limit: 15 times as many as are free.
//! Otherwise a client that connects again would get 15/16 of the rest each time, and would leave other users nothing.
//!
//! # Invariants
//! - Every count that is raised is lowered by the same amount later. So the counts of connections, channels, consumers,
//!   deliveries and transactions are 0 when all connections are closed, and those of declared objects when the objects
//!   are deleted.
//! - A connection is identified by its id and by a number that no other connection has, because ids are
//!   reused.

use crate::command::{ConnectionId, VhostId};
use crate::error::{Fault, ReplyCode, no_memory_for};
use crate::limits::Limits;
use crate::mem::{Class, HeapBytes, MESSAGE_SLOT_BYTES, Memory};

/// From these sizes on, names and places of one object must leave memory to each other.
const LARGE_NAMES_BYTES: usize = 16 << 10;
const LARGE_PLACES: usize = 64;
/// What names take memory for, as words for a text.
pub const NAMES: &str = "names and arguments";
/// A connection, and the closed connections of a user, may hold this many times the free capacity for declared objects.
const DECLARED_TIMES: usize = 15;

/// The connection that declared an object, and its user.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Declarer {
    connection: ConnectionId,
    /// Number of the connection; 0 for no connection.
    number: u32,
    /// Index of the user, and the number that distinguishes it from earlier users with this index; 0 for no user.
    user: (u32, u32),
}

impl Declarer {
    /// Returns a declarer in whose share nothing counts.
    pub fn none() -> Self {
        Self { connection: ConnectionId::from_index(0), number: 0, user: (0, 0) }
    }
}

/// A kind of object that can be declared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Declared {
    /// A queue.
    Queue,
    /// An exchange.
    Exchange,
    /// A binding, with the number of places that it takes.
    Binding(u32),
}

impl Declared {
    const fn what(self) -> &'static str {
        match self {
            Self::Queue => "queues",
            Self::Exchange => "exchanges",
            Self::Binding(_) => "bindings",
        }
    }

    const fn places(self) -> usize {
        match self {
            Self::Queue | Self::Exchange => 1,
            Self::Binding(places) => places as usize,
        }
    }
}

/// Free capacity that the caller has to pass, because the quota counts neither queues nor memory.
#[derive(Clone, Copy, Debug)]
pub struct FreeCapacity {
    /// Number of queues that still fit.
    pub queues: usize,
    /// Number of exchanges for which there is memory.
    pub exchanges: usize,
    /// Number of places of bindings for which there is memory.
    pub bindings: usize,
}

/// Pools whose records are created and freed with connections.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pool {
    /// Open channels.
    Channels,
    /// Consumers, and the records for `basic.get`s.
    Consumers,
}

impl Pool {
    const fn what(self) -> &'static str {
        match self {
            Self::Channels => "channels",
            Self::Consumers => "consumers",
        }
    }
}

/// Memory of messages that cannot be freed before clients settle deliveries or end transactions.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Pinned {
    /// Bytes of blocks of the messages of unsettled deliveries.
    pub unsettled_bytes: u64,
    /// Bytes of their slots and blocks.
    pub unsettled_memory: u64,
    /// Number of messages in open transactions.
    pub open_messages: u32,
    /// Bytes of blocks of messages in open transactions.
    pub open_bytes: u64,
}

impl Pinned {
    /// Counts the memory of a delivery's message: its slot and its blocks.
    #[inline]
    const fn take_delivery(&mut self, memory: u64) {
        self.unsettled_bytes += memory.saturating_sub(MESSAGE_SLOT_BYTES as u64);
        self.unsettled_memory += memory;
    }

    #[inline]
    const fn give_delivery_back(&mut self, memory: u64) {
        self.unsettled_bytes -= memory.saturating_sub(MESSAGE_SLOT_BYTES as u64);
        self.unsettled_memory -= memory;
    }
}

/// Declared objects, and the bytes of their names and arguments.
#[derive(Clone, Copy, Debug, Default)]
struct DeclaredCounts {
    queues: u32,
    exchanges: u32,
    /// Number of places of bindings.
    bindings: u32,
    names_bytes: u32,
}

impl DeclaredCounts {
    const fn of(&self, declared: Declared) -> usize {
        match declared {
            Declared::Queue => self.queues as usize,
            Declared::Exchange => self.exchanges as usize,
            Declared::Binding(_) => self.bindings as usize,
        }
    }

    const fn of_mut(&mut self, declared: Declared) -> &mut u32 {
        match declared {
            Declared::Queue => &mut self.queues,
            Declared::Exchange => &mut self.exchanges,
            Declared::Binding(_) => &mut self.bindings,
        }
    }

    fn add(&mut self, other: Self) {
        self.queues += other.queues;
        self.exchanges += other.exchanges;
        self.bindings += other.bindings;
        self.names_bytes += other.names_bytes;
    }
}

/// What one connection uses of the pools.
#[derive(Clone, Copy, Debug, Default)]
struct Share {
    /// Number of the connection; 0 for no connection.
    number: u32,
    user: Option<usize>,
    /// The virtual host, while the connection counts in it.
    vhost: Option<VhostId>,
    declared: DeclaredCounts,
    pinned: Pinned,
    /// Number of unsettled deliveries on all channels.
    unsettled: u32,
    channels: u32,
    /// Consumer records on all channels, including the records for `basic.get`s.
    consumers: u32,
}

impl Share {
    const fn pool_mut(&mut self, pool: Pool) -> &mut u32 {
        match pool {
            Pool::Channels => &mut self.channels,
            Pool::Consumers => &mut self.consumers,
        }
    }
}

/// Bytes of memory that the records of a client take, one of each kind.
#[derive(Clone, Copy, Debug)]
pub struct ClientRecordBytes {
    /// A connection.
    pub connection: usize,
    /// A channel.
    pub channel: usize,
    /// A consumer.
    pub consumer: usize,
    /// An unsettled delivery.
    pub delivery: usize,
}

/// The counts for the limits of a user.
#[derive(Clone, Copy, Default, Debug)]
struct User {
    /// Number of the user, which distinguishes it from earlier users with the same index; 0 for no user.
    number: u32,
    connections: u32,
    channels: u32,
    /// Objects that its closed connections declared.
    of_closed: DeclaredCounts,
}

/// The sizes of the pools, in records or bytes.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    names_bytes: usize,
    exchanges: usize,
    binding_places: usize,
    /// Message slots that ordinary publishers may use.
    messages: u32,
    /// Bytes of message blocks that ordinary publishers may use.
    body_bytes: u64,
    /// Bytes of slots and blocks together that ordinary publishers may use.
    message_bytes: u64,
    /// Bytes of the memory for messages that ordinary publishers may not use.
    reserve_bytes: u64,
    /// While all deliveries keep less memory than this, each connection leaves more than it keeps: messages can always have
    /// more than the double.
    unchecked_bytes: u64,
}

/// The use of the pools, in total and by each connection.
#[derive(Debug)]
pub struct Quota {
    sizes: Sizes,
    /// Bytes of the names and arguments of everything declared.
    names_bytes: HeapBytes,
    /// Number of places that bindings take; most take one.
    binding_places: usize,
    /// Number of exchanges that clients declared.
    exchanges: usize,
    /// Memory of messages that unsettled deliveries and open transactions of all connections keep.
    pinned: Pinned,
    /// The shares by connection index. The vector grows to the largest number of simultaneous connections so
    /// far, so that unused memory is never touched.
    shares: Vec<Share>,
    /// Number of connections ever created, which numbers them.
    serial: u32,
    memory: Memory,
    /// Number of connections in each virtual host.
    vhosts: Vec<u32>,
    /// By index. The vector grows to the largest number of users so far.
    users: Vec<User>,
}

/// The maximum numbers of bytes in the log that open transactions need for their `tx.commit`.
#[derive(Clone, Copy, Debug)]
pub struct OpenLogBytes {
    /// Of all transactions.
    pub of_all: u64,
    /// Of those of one connection.
    pub of_connection: u64,
}

impl Quota {
    /// Bytes that a connection takes in the quota.
    pub const CONNECTION_BYTES: usize = size_of::<Share>();
    /// Bytes that a virtual host takes in the quota.
    pub const VHOST_BYTES: usize = size_of::<u32>();
    /// Bytes that a user takes in the quota.
    pub const USER_BYTES: usize = size_of::<User>();

    /// Creates a quota in which nothing is counted, with the sizes of the pools in this memory.
    pub fn new(limits: &Limits, memory: &Memory) -> Self {
        let part = |all: u64| all - all / 16;
        let in_memory = part(memory.class_bytes(Class::Messages));
        let body_bytes = part(limits.body_bytes_max).min(in_memory);
        let messages = limits.messages_max - limits.messages_max / 16;
        let slot_bytes = u64::from(messages) * MESSAGE_SLOT_BYTES as u64;
        Self {
            sizes: Sizes {
                names_bytes: limits.names_bytes_max as usize,
                exchanges: limits.exchanges_max as usize,
                binding_places: limits.bindings_max as usize,
                messages,
                body_bytes,
                message_bytes: slot_bytes.saturating_add(body_bytes).min(in_memory),
                reserve_bytes: memory.class_bytes(Class::Messages) / 16,
                unchecked_bytes: memory.class_bytes(Class::Messages) / 64,
            },
            names_bytes: HeapBytes::with_copies(memory, Class::Definitions),
            binding_places: 0,
            exchanges: 0,
            pinned: Pinned::default(),
            shares: Vec::with_capacity(limits.connection_records()),
            serial: 0,
            memory: memory.clone(),
            vhosts: vec![0; limits.vhosts_max as usize],
            users: Vec::with_capacity(limits.users_max as usize),
        }
    }

    fn share(&self, connection: ConnectionId) -> &Share {
        &self.shares[connection.index()]
    }

    fn share_mut(&mut self, connection: ConnectionId) -> &mut Share {
        &mut self.shares[connection.index()]
    }

    // ---- connections and users

    /// Sets which users exist, by their indices and numbers. Connections of a deleted user count for no user.
    pub fn note_users(&mut self, existing: impl Iterator<Item = (usize, u32)>) {
        let mut numbers = vec![0; self.users.len()];
        for (place, number) in existing {
            if place >= numbers.len() {
                numbers.resize(place + 1, 0);
            }
            numbers[place] = number;
        }
        self.users.resize(numbers.len(), User::default());
        for (place, number) in numbers.into_iter().enumerate() {
            if self.users[place].number != number {
                self.users[place] = User { number, ..User::default() };
                let gone = self.shares.iter_mut().filter(|share| share.user == Some(place));
                gone.for_each(|share| share.user = None);
            }
        }
    }

    /// Notes a new connection, before its handshake.
    pub fn note_connection(&mut self, connection: ConnectionId) {
        // No connection has the number 0.
        self.serial = self.serial.wrapping_add(1).max(1);
        let index = connection.index();
        assert!(index < self.shares.capacity(), "there is room for every connection from the start");
        if index >= self.shares.len() {
            self.shares.resize(index + 1, Share::default());
        }
        self.shares[index] = Share { number: self.serial, ..Share::default() };
    }

    /// Notes that a connection is closed. The caller has given back everything that it used.
    pub fn note_connection_closed(&mut self, connection: ConnectionId) {
        let share = core::mem::take(self.share_mut(connection));
        assert!(share.vhost.is_none(), "a connection leaves its virtual host before it goes");
        assert_eq!(
            (share.unsettled, share.channels, share.consumers, share.pinned),
            (0, 0, 0, Pinned::default()),
            "a connection that goes holds nothing"
        );
        if let Some(user) = share.user {
            self.users[user].of_closed.add(share.declared);
        }
    }

    /// Notes the user that a connection has logged in as.
    pub fn logged_in(&mut self, connection: ConnectionId, user: Option<usize>) {
        self.share_mut(connection).user = user;
    }

    /// Counts a connection in a virtual host, and for its user.
    pub fn enter_vhost(&mut self, connection: ConnectionId, vhost: VhostId) {
        let share = self.share_mut(connection);
        share.vhost = Some(vhost);
        let user = share.user;
        self.vhosts[vhost.index()] += 1;
        if let Some(user) = user {
            self.users[user].connections += 1;
        }
    }

    /// Subtracts a connection from its virtual host and its user.
    pub fn leave_vhost(&mut self, connection: ConnectionId) {
        let share = self.share_mut(connection);
        let (vhost, user) = (share.vhost.take(), share.user);
        if let Some(vhost) = vhost {
            self.vhosts[vhost.index()] -= 1;
            if let Some(user) = user {
                self.users[user].connections -= 1;
            }
        }
    }

    /// Returns whether a connection counts for its virtual host and its user.
    pub fn is_counted(&self, connection: ConnectionId) -> bool {
        self.shares.get(connection.index()).is_some_and(|share| share.vhost.is_some())
    }

    /// Returns the number of connections in a virtual host.
    pub fn connections_in(&self, vhost: VhostId) -> u32 {
        self.vhosts[vhost.index()]
    }

    /// Returns the number of connections of a user, and of channels on these.
    pub fn of_user(&self, user: usize) -> (u32, u32) {
        self.users.get(user).map_or((0, 0), |user| (user.connections, user.channels))
    }

    /// Returns the connection whose records take most memory, and their bytes. The memory of messages is not counted.
    pub fn largest_connection(&self, sizes: ClientRecordBytes) -> Option<(ConnectionId, u64)> {
        let bytes_of = |share: &Share| {
            sizes.connection
                + share.channels as usize * sizes.channel
                + share.consumers as usize * sizes.consumer
                + share.unsettled as usize * sizes.delivery
        };
        let open = self.shares.iter().enumerate().filter(|(_, share)| share.vhost.is_some());
        let sizes = open.map(|(index, share)| (ConnectionId::from_index(index), bytes_of(share) as u64));
        sizes.max_by_key(|(_, bytes)| *bytes)
    }

    /// Returns the number of virtual hosts and users that have connections or channels.
    pub fn holders(&self) -> usize {
        let users = self.users.iter().filter(|user| user.connections + user.channels > 0).count();
        users + self.vhosts.iter().filter(|count| **count > 0).count()
    }

    // ---- channels and consumers

    /// Checks whether a connection may have one more record of a pool with this number of free records. A
    /// full pool is not an error here, because the caller reports it.
    ///
    /// # Errors
    /// The connection uses as many records as are free.
    pub fn check_share(
        &mut self,
        connection: ConnectionId,
        pool: Pool,
        free_count: usize,
    ) -> Result<(), Fault> {
        if free_count > 0 && *self.share_mut(connection).pool_mut(pool) as usize >= free_count {
            return Err(share_used_up(pool.what()));
        }
        Ok(())
    }

    /// Counts a record of a pool that a connection takes.
    pub fn take(&mut self, connection: ConnectionId, pool: Pool) {
        let share = self.share_mut(connection);
        *share.pool_mut(pool) += 1;
        if let (Pool::Channels, Some(user)) = (pool, share.user) {
            self.users[user].channels += 1;
        }
    }

    /// Subtracts a record of a pool that a connection gives back.
    pub fn give_back(&mut self, connection: ConnectionId, pool: Pool) {
        let share = self.share_mut(connection);
        *share.pool_mut(pool) -= 1;
        if let (Pool::Channels, Some(user)) = (pool, share.user) {
            self.users[user].channels -= 1;
        }
    }

    // ---- unsettled deliveries

    /// Returns whether a connection may have one more delivery. `free_count` is the number of free delivery
    /// records.
    #[inline]
    pub fn may_take_delivery(&self, connection: ConnectionId, free_count: usize) -> bool {
        let share = self.share(connection);
        (share.unsettled as usize) < free_count && self.leaves_memory(share.pinned)
    }

    /// Returns whether a connection has unsettled deliveries.
    pub fn has_deliveries(&self, connection: ConnectionId) -> bool {
        self.share(connection).unsettled > 0
    }

    /// Returns whether a connection whose deliveries keep this memory may keep more: it keeps none, or less than is free.
    #[inline]
    fn leaves_memory(&self, held: Pinned) -> bool {
        if self.pinned.unsettled_memory < self.sizes.unchecked_bytes {
            return self.leaves_bytes(held);
        }
        let free = self.message_bytes().saturating_sub(self.pinned.unsettled_memory);
        held.unsettled_memory == 0 || self.leaves_bytes(held) && held.unsettled_memory < free
    }

    #[inline]
    const fn leaves_bytes(&self, held: Pinned) -> bool {
        held.unsettled_bytes == 0
            || held.unsettled_bytes < self.sizes.body_bytes.saturating_sub(self.pinned.unsettled_bytes)
    }

    /// Returns the bytes of slots and blocks that ordinary publishers can have now. They are fewer while clients or
    /// definitions use memory.
    #[inline]
    fn message_bytes(&self) -> u64 {
        self.memory.class_bytes(Class::Messages).saturating_sub(self.sizes.reserve_bytes)
    }

    /// Counts a new delivery of a connection, whose message takes this many bytes of slot and blocks.
    #[inline]
    pub fn take_delivery(&mut self, connection: ConnectionId, memory: u64) {
        let share = self.share_mut(connection);
        share.unsettled += 1;
        share.pinned.take_delivery(memory);
        self.pinned.take_delivery(memory);
    }

    /// Subtracts a settled delivery of a connection, whose message counted with this many bytes; 0 if it was evicted.
    #[inline]
    pub fn give_delivery_back(&mut self, connection: ConnectionId, memory: u64) {
        self.share_mut(connection).unsettled -= 1;
        self.give_delivered_memory_back(connection, memory);
    }

    /// Subtracts the memory of a delivery whose message was evicted; the delivery still counts.
    #[inline]
    pub fn give_delivered_memory_back(&mut self, connection: ConnectionId, memory: u64) {
        self.share_mut(connection).pinned.give_delivery_back(memory);
        self.pinned.give_delivery_back(memory);
    }

    // ---- open transactions

    /// Returns the memory of messages that unsettled deliveries and open transactions of all connections
    /// keep.
    pub const fn pinned(&self) -> Pinned {
        self.pinned
    }

    /// Returns the maximum number of bytes in the log that all open transactions need for their `tx.commit`.
    pub fn open_log_bytes(&self) -> u64 {
        log_bytes_of(self.pinned)
    }

    /// Returns the maximum numbers of bytes in the log that open transactions need, for a message of this connection.
    pub fn open_log_bytes_for(&self, connection: ConnectionId) -> OpenLogBytes {
        OpenLogBytes { of_all: self.open_log_bytes(), of_connection: self.open_log_bytes_of(connection) }
    }

    /// Returns the maximum number of bytes in the log that the open transactions of a connection need for
    /// their `tx.commit`.
    pub fn open_log_bytes_of(&self, connection: ConnectionId) -> u64 {
        log_bytes_of(self.share(connection).pinned)
    }

    /// Counts slots and bytes for an open transaction of the connection.
    ///
    /// # Errors
    /// All transactions together would use more than half of a pool. Or this connection's transactions, which
    /// have messages already, would use more than is left of that half.
    pub fn take_open(&mut self, connection: ConnectionId, slots: u32, bytes: u64) -> Result<(), Fault> {
        let all = self.pinned;
        let own = self.share(connection).pinned;
        let (messages, body_bytes) = (u64::from(self.sizes.messages / 2), self.sizes.body_bytes / 2);
        let left = messages.checked_sub(u64::from(all.open_messages + slots));
        if left.is_none_or(|left| own.open_messages > 0 && u64::from(own.open_messages + slots) > left) {
            return Err(open_share_is_used_up());
        }
        let left = body_bytes.checked_sub(all.open_bytes + bytes);
        if left.is_none_or(|left| own.open_bytes > 0 && own.open_bytes + bytes > left) {
            return Err(open_share_is_used_up());
        }
        let memory_of = |pinned: Pinned| {
            u64::from(pinned.open_messages + slots) * MESSAGE_SLOT_BYTES as u64 + pinned.open_bytes + bytes
        };
        let left = (self.message_bytes().min(self.sizes.message_bytes) / 2).checked_sub(memory_of(all));
        if left.is_none_or(|left| own.open_messages > 0 && memory_of(own) > left) {
            return Err(open_share_is_used_up());
        }
        for pinned in [&mut self.pinned, &mut self.shares[connection.index()].pinned] {
            pinned.open_messages += slots;
            pinned.open_bytes += bytes;
        }
        Ok(())
    }

    /// Subtracts the slots and bytes of a finished transaction.
    pub fn give_open_back(&mut self, connection: ConnectionId, slots: u32, bytes: u64) {
        for pinned in [&mut self.pinned, &mut self.shares[connection.index()].pinned] {
            pinned.open_messages -= slots;
            pinned.open_bytes -= bytes;
        }
    }

    // ---- declared objects

    /// Counts an object that will be declared, and the bytes of its names and arguments.
    ///
    /// `declarer` is `None` for objects that are restored at start and for operators: they count in no share.
    ///
    /// # Errors
    /// There is no more capacity, or the connection has used up its share.
    pub fn declare(
        &mut self,
        declared: Declared,
        names_bytes: usize,
        declarer: Option<Declarer>,
        free_capacity: FreeCapacity,
    ) -> Result<(), Fault> {
        let free_count = self.free_places(declared, free_capacity);
        let places = declared.places();
        if places > free_count {
            return Err(no_memory_for(declared.what()));
        }
        let names_bytes_free = self.names_bytes_free();
        if names_bytes > names_bytes_free {
            return Err(no_memory_for(NAMES));
        }
        // Names and places are both checked against the memory that is free now. If both are large, each leaves half of it.
        let is_large = names_bytes > LARGE_NAMES_BYTES && places > LARGE_PLACES;
        if is_large && (names_bytes > names_bytes_free / 2 || places > free_count / 2) {
            return Err(no_memory_for(declared.what()));
        }
        if let Some(declarer) = declarer {
            let of_connection =
                self.counts_of_connection(declarer).map(|held| (*held, share_used_up as fn(&str) -> Fault));
            let of_user =
                self.counts_of_user(declarer).map(|held| (*held, user_share_used_up as fn(&str) -> Fault));
            for (held, fault) in [of_connection, of_user].into_iter().flatten() {
                if held.of(declared) + places - 1 > DECLARED_TIMES * (free_count - places) {
                    return Err(fault(declared.what()));
                }
                if held.names_bytes as usize + names_bytes > DECLARED_TIMES * (names_bytes_free - names_bytes)
                {
                    return Err(fault(NAMES));
                }
            }
            if let Some(held) = self.counts_of(declarer) {
                *held.of_mut(declared) += places as u32;
                held.names_bytes += names_bytes as u32;
            }
        }
        self.names_bytes.add(names_bytes);
        match declared {
            Declared::Queue => {}
            Declared::Exchange => self.exchanges += 1,
            Declared::Binding(places) => self.binding_places += places as usize,
        }
        Ok(())
    }

    /// Returns how many places for such objects are free.
    fn free_places(&self, declared: Declared, free: FreeCapacity) -> usize {
        let sizes = &self.sizes;
        match declared {
            Declared::Queue => free.queues,
            Declared::Exchange => free.exchanges.min(sizes.exchanges - self.exchanges),
            Declared::Binding(_) => free.bindings.min(sizes.binding_places - self.binding_places),
        }
    }

    /// Subtracts a deleted object, and the bytes of its names and arguments.
    pub fn undeclare(&mut self, declared: Declared, names_bytes: usize, declarer: Option<Declarer>) {
        self.names_bytes.subtract(names_bytes);
        match declared {
            Declared::Queue => {}
            Declared::Exchange => self.exchanges -= 1,
            Declared::Binding(places) => self.binding_places -= places as usize,
        }
        if let Some(held) = declarer.and_then(|declarer| self.counts_of(declarer)) {
            *held.of_mut(declared) -= declared.places() as u32;
            held.names_bytes -= names_bytes as u32;
        }
    }

    /// Counts bytes of names for which no connection has a share.
    ///
    /// # Errors
    /// There is no capacity for the names.
    pub fn take_names(&mut self, names_bytes: usize) -> Result<(), Fault> {
        if names_bytes > self.names_bytes_free() {
            return Err(no_memory_for(NAMES));
        }
        self.names_bytes.add(names_bytes);
        Ok(())
    }

    /// Replaces the counted bytes of names for which no connection has a share.
    ///
    /// # Errors
    /// There is no capacity for the names. Nothing is changed.
    pub fn replace_names(&mut self, before: usize, after: usize) -> Result<(), Fault> {
        if after > before {
            return self.take_names(after - before);
        }
        self.give_names_back(before - after);
        Ok(())
    }

    /// Subtracts bytes of names for which no connection has a share.
    pub fn give_names_back(&mut self, names_bytes: usize) {
        self.names_bytes.subtract(names_bytes);
    }

    /// Returns how many bytes of names still fit.
    pub fn names_bytes_free(&self) -> usize {
        self.sizes.names_bytes.saturating_sub(self.names_bytes.used()).min(self.names_bytes.free())
    }

    /// Returns number in use and maximum of three pools: places of bindings, exchanges, bytes of names.
    pub const fn fills(&self) -> [(usize, usize); 3] {
        let sizes = self.sizes;
        [
            (self.binding_places, sizes.binding_places),
            (self.exchanges, sizes.exchanges),
            (self.names_bytes.used(), sizes.names_bytes),
        ]
    }

    /// Returns the bytes of the names and arguments of everything declared.
    pub const fn names_bytes(&self) -> usize {
        self.names_bytes.used()
    }

    /// Returns the number of exchanges that clients declared.
    pub const fn exchanges(&self) -> usize {
        self.exchanges
    }

    /// Returns the declarer of objects that this connection declares.
    pub fn declarer(&self, connection: ConnectionId) -> Declarer {
        let share = self.share(connection);
        let user = share.user.map_or((0, 0), |user| (user as u32, self.users[user].number));
        Declarer { connection, number: share.number, user }
    }

    /// Returns the counts that an object counts in: those of its connection, or, when this is closed, of its user.
    fn counts_of(&mut self, declarer: Declarer) -> Option<&mut DeclaredCounts> {
        match self.counts_of_connection(declarer).is_some() {
            true => self.counts_of_connection(declarer),
            false => self.counts_of_user(declarer),
        }
    }

    /// Returns the counts of objects that an open connection declared; `None` if it is closed.
    fn counts_of_connection(&mut self, declarer: Declarer) -> Option<&mut DeclaredCounts> {
        let share = self.shares.get_mut(declarer.connection.index())?;
        (declarer.number != 0 && share.number == declarer.number).then_some(&mut share.declared)
    }

    /// Returns the counts of objects that closed connections of a user declared; `None` if the user was deleted.
    fn counts_of_user(&mut self, declarer: Declarer) -> Option<&mut DeclaredCounts> {
        let (user, number) = declarer.user;
        let user = self.users.get_mut(user as usize)?;
        (number != 0 && user.number == number).then_some(&mut user.of_closed)
    }
}

/// Returns the maximum bytes of the log that messages of open transactions take.
fn log_bytes_of(pinned: Pinned) -> u64 {
    u64::from(pinned.open_messages) * MESSAGE_SLOT_BYTES as u64 + pinned.open_bytes
}

/// 506: a connection has used up its share of the memory for these objects.
fn share_used_up(what: &str) -> Fault {
    Fault::new(
        ReplyCode::ResourceError,
        format_args!(
            "this connection uses its whole share of the memory for {what}: use fewer, or raise memory_limit"
        ),
    )
}

/// 506: objects that closed connections of the user declared use up the user's share of the memory for
/// these objects.
fn user_share_used_up(what: &str) -> Fault {
    Fault::new(
        ReplyCode::ResourceError,
        format_args!(
            "objects that earlier connections of this user declared use the user's whole share of the memory for {what}: \
             delete some, or raise memory_limit"
        ),
    )
}

/// 506: open transactions have used up their share. Clients may leave them open, and no other client can use
/// what they hold.
fn open_share_is_used_up() -> Fault {
    Fault::new(
        ReplyCode::ResourceError,
        format_args!(
            "open transactions use their whole share of the memory for messages: commit more often, or raise memory_limit"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the virtual host that always exists.
    fn vhost() -> VhostId {
        VhostId::from_index(0)
    }

    /// Returns a quota with capacity for 100 of everything.
    fn quota() -> Quota {
        let mut limits = Limits::default();
        (limits.exchanges_max, limits.bindings_max, limits.names_bytes_max) = (100, 100, 10_000);
        (limits.unacknowledged_max, limits.messages_max, limits.body_bytes_max) = (100, 160, 1_600);
        let mut quota = Quota::new(&limits, &Memory::unlimited());
        quota.note_users([(0, 1)].into_iter());
        quota
    }

    /// Returns free capacity for this many queues, and memory for all other objects of [`quota`].
    fn queues_free(queues: usize) -> FreeCapacity {
        FreeCapacity { queues, exchanges: 100, bindings: 100 }
    }

    /// Creates a connection of the first user.
    fn connected(quota: &mut Quota, index: usize) -> ConnectionId {
        let connection = ConnectionId::from_index(index);
        quota.note_connection(connection);
        quota.logged_in(connection, Some(0));
        quota.enter_vhost(connection, vhost());
        connection
    }

    /// Returns how many records of a pool of 100 a connection gets while no other takes any.
    fn channels_of(quota: &mut Quota, connection: ConnectionId, used: usize) -> usize {
        let mut taken = 0;
        while quota.check_share(connection, Pool::Channels, 100 - used - taken).is_ok() && used + taken < 100
        {
            quota.take(connection, Pool::Channels);
            taken += 1;
        }
        taken
    }

    #[test]
    fn a_connection_leaves_as_many_channels_as_it_has() {
        let mut quota = quota();
        let [one, two] = [0, 1].map(|index| connected(&mut quota, index));
        assert_eq!(channels_of(&mut quota, one, 0), 50);
        assert_eq!(channels_of(&mut quota, two, 50), 25);
        (0..50).for_each(|_| quota.give_back(one, Pool::Channels));
        (0..25).for_each(|_| quota.give_back(two, Pool::Channels));
        for connection in [one, two] {
            quota.leave_vhost(connection);
            quota.note_connection_closed(connection);
        }
        assert_eq!(quota.holders(), 0);
    }

    #[test]
    fn what_is_declared_outlives_its_connection() {
        let mut quota = quota();
        let connection = connected(&mut quota, 0);
        let declarer = Some(quota.declarer(connection));
        quota.declare(Declared::Queue, 10, declarer, queues_free(100)).unwrap();
        quota.declare(Declared::Exchange, 20, declarer, queues_free(99)).unwrap();
        quota.declare(Declared::Binding(3), 30, declarer, queues_free(99)).unwrap();
        assert_eq!((quota.names_bytes(), quota.exchanges()), (60, 1));
        assert_eq!(quota.fills()[0], (3, 100));
        quota.leave_vhost(connection);
        quota.note_connection_closed(connection);
        // Another connection with the same id is not responsible for these declarations.
        let again = connected(&mut quota, 0);
        quota.undeclare(Declared::Queue, 10, declarer);
        quota.undeclare(Declared::Exchange, 20, declarer);
        quota.undeclare(Declared::Binding(3), 30, declarer);
        quota.leave_vhost(again);
        quota.note_connection_closed(again);
        assert_eq!((quota.names_bytes(), quota.exchanges(), quota.holders()), (0, 0, 0));
    }

    #[test]
    fn a_user_that_connects_again_and_again_leaves_a_sixteenth_to_others() {
        let mut quota = quota();
        quota.note_users([(0, 1), (1, 2)].into_iter());
        let mut declared = Vec::new();
        for _ in 0..5 {
            let connection = connected(&mut quota, 0);
            let declarer = Some(quota.declarer(connection));
            while quota.declare(Declared::Exchange, 1, declarer, queues_free(0)).is_ok() {
                declared.push(declarer);
            }
            quota.leave_vhost(connection);
            quota.note_connection_closed(connection);
        }
        assert_eq!(declared.len(), 93, "15 times what is left");
        let again = connected(&mut quota, 0);
        let fault =
            quota.declare(Declared::Exchange, 1, Some(quota.declarer(again)), queues_free(0)).unwrap_err();
        assert!(fault.text.contains("earlier connections of this user"), "{fault:?}");
        let other = ConnectionId::from_index(1);
        quota.note_connection(other);
        quota.logged_in(other, Some(1));
        quota.declare(Declared::Exchange, 1, Some(quota.declarer(other)), queues_free(0)).unwrap();
        // Deleted objects no longer count for the user, and those of a deleted user count for no user.
        declared.drain(50..).for_each(|declarer| quota.undeclare(Declared::Exchange, 1, declarer));
        quota.declare(Declared::Exchange, 1, Some(quota.declarer(again)), queues_free(0)).unwrap();
        quota.note_users([(0, 3), (1, 2)].into_iter());
        declared.into_iter().for_each(|declarer| quota.undeclare(Declared::Exchange, 1, declarer));
        assert_eq!(quota.exchanges(), 2);
    }

    #[test]
    fn one_connection_declares_fifteen_times_what_it_leaves() {
        let mut quota = quota();
        let connection = connected(&mut quota, 0);
        let declarer = Some(quota.declarer(connection));
        let mut count = 0;
        while quota.declare(Declared::Exchange, 1, declarer, queues_free(0)).is_ok() {
            count += 1;
        }
        assert_eq!(count, 93);
        // Durable objects are restored at start whatever the shares are.
        for _ in 93..100 {
            quota.declare(Declared::Exchange, 1, None, queues_free(0)).unwrap();
        }
        let fault = quota.declare(Declared::Exchange, 1, None, queues_free(0)).unwrap_err();
        assert!(fault.text.contains("raise memory_limit"), "{fault:?}");
    }

    #[test]
    fn deliveries_and_their_memory_are_shared_with_a_new_connection() {
        let mut quota = quota();
        let [one, two] = [0, 1].map(|index| connected(&mut quota, index));
        // 1,500 bytes are for ordinary publishers.
        let memory = MESSAGE_SLOT_BYTES as u64 + 100;
        let mut held = 0;
        while quota.may_take_delivery(one, 100 - held) {
            quota.take_delivery(one, memory);
            held += 1;
        }
        assert_eq!(held, 8);
        assert!(quota.may_take_delivery(two, 92), "one delivery always");
        quota.give_delivered_memory_back(one, memory);
        assert!(quota.may_take_delivery(one, 92), "only the log has one of them");
        quota.give_delivery_back(one, 0);
        (1..8).for_each(|_| quota.give_delivery_back(one, memory));
        assert_eq!(quota.pinned(), Pinned::default());
    }

    #[test]
    fn open_transactions_hold_at_most_half_and_each_leaves_as_much_as_it_holds() {
        let mut quota = quota();
        let [one, two] = [0, 1].map(|index| connected(&mut quota, index));
        // 150 slots and 1,500 bytes are for ordinary publishers: half of them is 75 and 750.
        quota.take_open(one, 37, 100).unwrap();
        assert!(quota.take_open(one, 1, 1).unwrap_err().text.contains("open transactions"));
        quota.take_open(two, 10, 500).unwrap();
        assert!(quota.take_open(two, 1, 100).unwrap_err().text.contains("open transactions"));
        quota.give_open_back(one, 37, 100);
        quota.give_open_back(two, 10, 500);
        assert_eq!(quota.pinned(), Pinned::default());
    }

    #[test]
    #[should_panic(expected = "a connection that goes holds nothing")]
    fn closing_a_connection_with_a_delivery_panics() {
        let mut quota = quota();
        let one = connected(&mut quota, 0);
        quota.take_delivery(one, 10);
        quota.leave_vhost(one);
        quota.note_connection_closed(one);
    }

    #[test]
    fn a_user_that_takes_the_place_of_a_deleted_one_has_no_connections() {
        let mut quota = quota();
        let connection = connected(&mut quota, 0);
        quota.take(connection, Pool::Channels);
        assert_eq!((quota.of_user(0), quota.connections_in(vhost())), ((1, 1), 1));
        quota.note_users([(0, 2)].into_iter());
        assert_eq!((quota.of_user(0), quota.connections_in(vhost())), ((0, 0), 1));
        quota.give_back(connection, Pool::Channels);
        quota.leave_vhost(connection);
        quota.note_connection_closed(connection);
        assert_eq!(quota.holders(), 0);
    }
}
