//! Retained messages: the last message of each topic that an MQTT client has published with RETAIN.
//!
//! A retained message is a definition in the log ([`Definition::Retained`]). A message with QoS 1 or 2 is in the log before
//! its publisher gets the acknowledgement. A message with QoS 0 promises nothing, and devices publish such messages often.
//! So it is written within [`WRITE_DELAY_MS`], and only the last one of its topic, which spares the flash.
//!
//! The topics of all retained messages are in memory. Their contents are in memory, too, up to `retained_bytes_max`. When
//! they exceed it, those that are durable are removed from memory, and [`replay`] reads them from the log for a subscriber.
//!
//! A message that exceeds a limit is refused, and its topic keeps the message that it had.
//!
//! A content of more than [`PART_BYTES`] is in several definitions ([`definition::RetainedParts`]). They are written from the
//! memory of the retained message itself.
//!
//! # Invariants
//! - A content that is not durable is in memory.
//! - The topics take at most the memory that is free, and all retained messages a quarter of `disk_limit`.
//! - A start finds the parts of one whole message for each topic: of the last one that was acknowledged, or of a later one.

mod replay;

use core::num::NonZeroU16;
use std::rc::Rc;

use leveret_amqp::props::Properties;
use leveret_core::batch::Batch;
use leveret_core::command::{ChannelId, ConnectionId, Name, PublishAnswer, VhostId};
use leveret_core::definition::{self, Definition, RetainedPart, RetainedParts};
use leveret_core::error::{Fault, ReplyCode};
use leveret_core::limits::Limits;
use leveret_core::mem::{
    ALLOCATION_BYTES, Class, HeapBytes, IndexTable, Memory, MessageFlags, MessageId, Messages, Slab,
};
use leveret_core::topic::exchange_separators;
use leveret_queues::{Shortage, expiration_ms};
use leveret_storage::faults::check_deletable;
use leveret_storage::{Mode, PART_BYTES, PendingWrites, SplitDefinition};
use replay::{EXAMINED_PER_UNIT, Replaying};

use super::access::Access;
use super::{Broker, Context};
use crate::restored::Restored;

pub(crate) use replay::{Replay, Replays};
pub use replay::{RetainedRead, RetainedReadEnd};

/// The longest time between the publication of a retained message with QoS 0 and its write, in milliseconds.
const WRITE_DELAY_MS: u64 = 60_000;
/// After this time in milliseconds, messages are written that could not be written when they were due.
const WRITE_RETRY_MS: u64 = 1_000;
/// [`RetainedMessage::due_ms`] of a message that the log has.
const NOT_DUE: u64 = u64::MAX;
/// Why a retained message is not stored, and what to do, as a text for log lines.
const NO_MEMORY: &str = "memory_limit: raise it, or delete retained messages, queues or bindings";
const NO_DISK: &str = "disk_limit: raise it, or consume messages";
const UNWRITABLE: &str =
    "what the store can take, which cannot be written: repair the disk and restart the broker";
const NO_DISK_SHARE: &str = "a quarter of disk_limit: raise it, or delete retained messages";
/// Retained messages may take this part of `disk_limit`. They stay until a client deletes them, so without a limit they could
/// leave nothing to the queues.
const DISK_DIVISOR: u64 = 4;
/// One retained message.
#[derive(Debug)]
struct RetainedMessage {
    vhost: VhostId,
    /// The routing key of the topic.
    key: Box<str>,
    content: Content,
    /// When the message is to be written, in milliseconds of broker time; [`NOT_DUE`] if the log has it.
    due_ms: u64,
    /// The content that was appended last is durable with this batch, unless it is in parts.
    batch: Batch,
    /// The parts of the content that was appended last, and of the one before.
    stored: StoredParts,
    before: StoredParts,
}

/// The parts of a content in the log.
#[derive(Clone, Copy, Default, Debug)]
struct StoredParts {
    side: u8,
    /// 0 if the content is not in parts.
    count: u32,
    /// CRC32C of all parts.
    checksum: u32,
}

impl StoredParts {
    /// Returns the parts of a content that is written after this one.
    fn next(self, octets: &[u8]) -> Self {
        let count = Self::count_for(octets.len());
        Self { side: self.side ^ 1, count, checksum: if count > 0 { crc32c::crc32c(octets) } else { 0 } }
    }

    const fn has(self, side: u8, index: u32) -> bool {
        self.side == side && index < self.count
    }

    const fn count_for(len: usize) -> u32 {
        if len > PART_BYTES { len.div_ceil(PART_BYTES) as u32 } else { 0 }
    }

    fn key_prefix(self, vhost: &str, key: &str) -> Box<[u8]> {
        RetainedPart { vhost, key, side: self.side, index: 0, bytes: &[] }.key_prefix()
    }

    /// Returns the keys of the definitions.
    fn keys<'a>(self, vhost: &'a str, key: &'a str) -> impl Iterator<Item = Box<[u8]>> + use<'a> {
        let Self { side, count, .. } = self;
        let part = move |index| RetainedPart { vhost, key, side, index, bytes: &[] };
        (0..count).map(move |index| Definition::RetainedPart(part(index)).key())
    }

    /// Appends the deletion of the definitions to the log, without the first `kept_count`.
    fn delete(self, pending_writes: &mut PendingWrites, vhost: &str, key: &str, kept_count: u32) {
        for key in self.keys(vhost, key).skip(kept_count as usize) {
            pending_writes.define(key, None);
        }
    }
}

/// The content of a retained message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Content {
    qos: u8,
    /// Whether the message has a message expiry interval.
    has_expiry: bool,
    /// Bytes of the AMQP properties and of the payload together.
    len: u32,
    properties_len: u32,
    /// The AMQP properties, followed by the payload; `None` if only the log has them. Parts that wait for their commit share
    /// them.
    octets: Option<Rc<[u8]>>,
    /// When the message was published or restored, in milliseconds of broker time.
    arrived_ms: u64,
}

impl Content {
    fn new(qos: u8, octets: Rc<[u8]>, properties_len: u32, arrived_ms: u64) -> Self {
        let len = octets.len() as u32;
        let properties_len = properties_len.min(len);
        let properties = Properties::trusted(&octets[..properties_len as usize]);
        let has_expiry = properties.expiration().is_some();
        Self { qos, has_expiry, len, properties_len, octets: Some(octets), arrived_ms }
    }

    /// Returns a content that is only in the log.
    fn in_log(qos: u8, len: u32, properties: &[u8], arrived_ms: u64) -> Self {
        let has_expiry = Properties::trusted(properties).expiration().is_some();
        Self { qos, has_expiry, len, properties_len: properties.len() as u32, octets: None, arrived_ms }
    }

    /// Returns a content whose parts follow: of zeros if it is to be in memory.
    fn for_parts(qos: u8, parts: &RetainedParts, is_in_memory: bool, arrived_ms: u64) -> Self {
        let RetainedParts { len, properties_len, .. } = *parts;
        let octets = is_in_memory.then(|| zeros(len as usize));
        Self { qos, has_expiry: false, len, properties_len: properties_len.min(len), octets, arrived_ms }
    }

    /// Notes that all parts are there.
    fn note_complete(&mut self) {
        let properties = self.in_memory().map(|(properties, _)| Properties::trusted(properties));
        self.has_expiry = properties.is_some_and(|properties| properties.expiration().is_some());
    }

    pub(crate) const fn arrived_ms(&self) -> u64 {
        self.arrived_ms
    }

    /// Returns whether parts of the content wait for their commit.
    fn is_being_written(&self) -> bool {
        self.octets.as_ref().is_some_and(|octets| Rc::strong_count(octets) > 1)
    }

    /// Returns the content of a message that arrived at `arrived_ms`.
    fn of(messages: &Messages, message: MessageId, arrived_ms: u64) -> Self {
        let (properties_len, body_len) = (messages.properties_len(message), messages.body_len(message));
        let mut octets = zeros(properties_len as usize + body_len as usize);
        let mut cursor = messages.properties_cursor(message);
        messages.read(message, &mut cursor, Rc::make_mut(&mut octets));
        let flags = messages.flags(message);
        let qos = match () {
            () if flags.has(MessageFlags::EXACTLY_ONCE) => 2,
            () if flags.has(MessageFlags::PERSISTENT) => 1,
            () => 0,
        };
        Self::new(qos, octets, properties_len, arrived_ms)
    }

    pub(crate) const fn qos(&self) -> u8 {
        self.qos
    }

    pub(crate) const fn has_expiry(&self) -> bool {
        self.has_expiry
    }

    pub(crate) const fn payload_len(&self) -> u32 {
        self.len - self.properties_len
    }

    /// Returns the AMQP properties and the payload, if they are in memory.
    pub(crate) fn in_memory(&self) -> Option<(&[u8], &[u8])> {
        self.octets.as_ref().map(|octets| octets.split_at(self.properties_len as usize))
    }

    /// Returns the bytes that the content takes in memory.
    fn memory_bytes(&self) -> usize {
        if self.octets.is_some() { self.len as usize } else { 0 }
    }

    /// Returns the flags of a message with this content, which has these AMQP properties.
    fn flags_with(&self, properties: &[u8]) -> MessageFlags {
        let flags = match self.qos {
            0 => MessageFlags::NONE,
            1 => MessageFlags::PERSISTENT,
            _ => MessageFlags::PERSISTENT.with(MessageFlags::EXACTLY_ONCE),
        };
        let has_expiry = expires_ms(properties, self.arrived_ms).is_some();
        if has_expiry { flags.with(MessageFlags::EXPIRES) } else { flags }
    }
}

/// Returns when a message with these properties expires, in milliseconds of broker time; `None` if it does not.
fn expires_ms(properties: &[u8], arrived_ms: u64) -> Option<u64> {
    let expiration_ms = expiration_ms(&Properties::trusted(properties)).ok().flatten()?;
    Some(arrived_ms.saturating_add(expiration_ms))
}

/// Returns zeros in one allocation, which neither `vec!` nor `Box` can pass to an `Rc` without a copy.
fn zeros(len: usize) -> Rc<[u8]> {
    core::iter::repeat_n(0, len).collect()
}

/// All retained messages.
#[derive(Debug)]
pub(crate) struct Retained {
    slab: Slab<RetainedMessage>,
    /// By virtual host and routing key.
    table: IndexTable,
    /// Bytes of topics, properties and payloads in memory.
    bytes: HeapBytes,
    /// Bytes of the contents in memory, replaced ones included.
    content_bytes: usize,
    /// While the contents in memory have more bytes than this, durable ones are removed from memory.
    content_bytes_max: usize,
    /// The last durable batch when contents were removed because they exceed `content_bytes_max`.
    evicted_at: Batch,
    /// Bytes of topics, properties and payloads, also of contents that only the log has.
    stored_bytes: u64,
    /// The place at which the search for a content that can be removed from memory goes on.
    evict_place: usize,
    /// Number of times that contents have left memory, except for those that a publisher has removed for its own content.
    freed_count: u64,
    /// Contents that no topic has any more, and of which parts wait for their commit. Until then, their bytes are counted.
    replaced: Vec<Rc<[u8]>>,
    /// While the broker restores its definitions: messages of which parts are missing.
    incomplete: Vec<Incomplete>,
    /// Topics with a message in parts for which a start had no memory. Their parts stay in the log.
    left_out: Vec<LeftOut>,
    /// When messages are written that are not in the log yet, in milliseconds of broker time; `None` if there are none.
    write_ms: Option<u64>,
    replaying: Replaying,
    /// The topic whose update was refused last, until it has an update that fits or is deleted.
    refused: Option<RefusedUpdate>,
    /// Number of updates that were refused since the start.
    refused_count: u64,
}

/// Whether there is memory for a content.
enum Room {
    Free,
    /// Contents that are being written can be removed from memory after their commit.
    AfterCommit,
    None,
}

/// A topic with a message that only the log has.
#[derive(Debug)]
struct LeftOut {
    vhost: VhostId,
    key: Box<str>,
    stored: StoredParts,
}

/// A retained message that a start restores from its parts.
#[derive(Debug)]
struct Incomplete {
    at: usize,
    missing_count: u32,
}

/// A topic whose retained message could not be updated.
#[derive(Debug)]
struct RefusedUpdate {
    vhost: VhostId,
    key: Box<str>,
    limit: &'static str,
}

impl Retained {
    /// Bytes that a retained message takes besides its record, without its topic and its content: the allocator's overhead for
    /// both, the counts of the shared content, and its definition in the index of the log.
    const SIDE_BYTES: usize =
        2 * ALLOCATION_BYTES + 2 * size_of::<usize>() + leveret_storage::DEFINITION_BYTES;
    /// Bytes of memory that a retained message takes, without its topic and its content.
    pub(crate) const RECORD_BYTES: usize =
        Slab::<RetainedMessage>::record_bytes() + IndexTable::ENTRY_BYTES + Self::SIDE_BYTES;

    /// Returns the bytes of unused places that may be resident in memory.
    pub(crate) const fn idle_bytes(&self) -> usize {
        self.slab.idle_bytes()
    }

    /// Returns unused memory to the system.
    pub(crate) fn trim(&mut self) {
        self.slab.trim();
        self.table.trim(self.slab.touched());
    }

    pub(crate) fn new(limits: &Limits, memory: &Memory, seed: u64) -> Self {
        let count = limits.retained_max as usize;
        Self {
            slab: Slab::in_memory(count, memory, Class::Definitions).with_side_bytes(Self::SIDE_BYTES),
            table: IndexTable::in_memory(count, memory, Class::Definitions, seed),
            bytes: HeapBytes::with_gaps(memory, Class::Definitions),
            content_bytes: 0,
            content_bytes_max: limits.retained_bytes_max as usize,
            stored_bytes: 0,
            evicted_at: Batch::NONE,
            evict_place: 0,
            freed_count: 0,
            replaced: Vec::new(),
            incomplete: Vec::new(),
            left_out: Vec::new(),
            write_ms: None,
            replaying: Replaying::new(memory),
            refused: None,
            refused_count: 0,
        }
    }

    /// Returns the topic whose update was refused last: its virtual host, its routing key, and the limit that the update
    /// exceeds. `None` if it has had an update that fits, or was deleted.
    pub(crate) fn refused_update(&self) -> Option<(VhostId, &str, &'static str)> {
        self.refused.as_ref().map(|refused| (refused.vhost, &*refused.key, refused.limit))
    }

    /// Returns the number of updates that were refused since the start.
    pub(crate) const fn refused_count(&self) -> u64 {
        self.refused_count
    }

    fn note_refused(&mut self, vhost: VhostId, key: &str, limit: &'static str) {
        self.refused_count += 1;
        self.refused = Some(RefusedUpdate { vhost, key: key.into(), limit });
    }

    /// Notes that a topic has an update that fits, or is to have no message.
    fn forget_refused(&mut self, vhost: VhostId, key: &str) {
        self.refused.take_if(|refused| refused.vhost == vhost && *refused.key == *key);
    }

    /// Returns the number of places that retained messages have used since the start.
    pub(crate) const fn places(&self) -> usize {
        self.slab.places()
    }

    /// Returns the virtual host, the routing key and the content of the retained message in a place.
    pub(crate) fn at(&self, place: usize) -> Option<(VhostId, &str, &Content)> {
        self.slab.get(place).map(|record| (record.vhost, &*record.key, &record.content))
    }

    /// Returns the number of retained messages, and the bytes of their topics and contents.
    pub(crate) const fn counts(&self) -> (usize, u64) {
        (self.slab.len(), self.stored_bytes)
    }

    /// Returns the number of retained messages, and the bytes of their topics and contents in memory.
    pub(crate) const fn counts_in_memory(&self) -> (usize, usize) {
        (self.slab.len(), self.bytes.used())
    }

    fn find(&self, vhost: VhostId, key: &str) -> Option<usize> {
        self.table.find((vhost, key), |at| self.slab[at].vhost == vhost && *self.slab[at].key == *key)
    }

    /// Returns the limit that a new retained message would exceed, and what to do, as a text for log lines; `None` if it
    /// fits. `len` is the length of its properties and its payload.
    fn exceeded_limit(
        &self,
        pending_writes: &PendingWrites,
        vhost: VhostId,
        key: &str,
        len: usize,
    ) -> Option<&'static str> {
        let disk_max = pending_writes.disk_bytes_max() / DISK_DIVISOR;
        let replaced = self.find(vhost, key).map(|at| self.stored_bytes_of(at));
        let bytes = (key.len() + len) as u64;
        let sum = self.stored_bytes - replaced.unwrap_or(0) + bytes;
        let is_larger = replaced.is_none_or(|before| before < bytes);
        match () {
            () if !has_log_space(pending_writes, len, replaced.is_some()) => Some(NO_DISK),
            () if is_larger && disk_max > 0 && sum > disk_max => Some(NO_DISK_SHARE),
            () => None,
        }
    }

    /// Returns whether there is memory for a retained message whose content is only in the log.
    fn has_memory_for_topic(&self, vhost: VhostId, key: &str) -> bool {
        let has_memory = self.slab.free_count() > 0 && key.len() <= self.bytes.free();
        has_memory || self.find(vhost, key).is_some()
    }

    /// Returns the bytes that a retained message needs in addition to those that are in use; `None` if there is no place for it.
    fn needed_bytes(&self, vhost: VhostId, key: &str, len: usize) -> Option<usize> {
        match self.find(vhost, key) {
            None => (self.slab.free_count() > 0).then_some(key.len() + len),
            // The memory of the previous content is in use when a large one is copied, or until it is written.
            Some(at) if len > PART_BYTES || self.slab[at].content.is_being_written() => Some(len),
            Some(at) => Some(len.saturating_sub(self.slab[at].content.memory_bytes())),
        }
    }

    /// Finds memory for a retained message. For this, it removes contents from memory that are durable.
    fn make_room(
        &mut self,
        cx: &mut Context<'_>,
        access: &Access,
        vhost: VhostId,
        key: &str,
        len: usize,
    ) -> Room {
        let pending_writes = &mut *cx.pending_writes;
        let Some(needed) = self.needed_bytes(vhost, key, len) else { return Room::None };
        if needed > self.bytes.free() + self.content_bytes {
            return Room::None;
        }
        loop {
            // The topic's own content may have been removed, whose bytes are then needed, too.
            let needed = self.needed_bytes(vhost, key, len).unwrap_or(len);
            let fits = needed <= self.bytes.free();
            if fits && self.content_bytes + len <= self.content_bytes_max {
                return Room::Free;
            }
            if !self.evict_next(pending_writes, access) {
                cx.work.charge(self.slab.places() / EXAMINED_PER_UNIT);
                if fits {
                    return Room::Free;
                }
                break;
            }
        }
        if pending_writes.mode() != Mode::On {
            return Room::None;
        }
        // Contents that are written now can be removed after their commit.
        let now_ms = pending_writes.time_ms();
        for at in 0..self.slab.places() {
            if let Some(record) = self.slab.get_mut(at).filter(|record| record.due_ms != NOT_DUE) {
                record.due_ms = now_ms;
                self.write_ms = Some(now_ms);
            }
        }
        self.write_due(pending_writes, access, false);
        let durable = pending_writes.durable();
        let is_any_written =
            self.slab.iter().any(|(_, record)| record.batch > durable || record.content.is_being_written());
        if is_any_written || !self.replaced.is_empty() { Room::AfterCommit } else { Room::None }
    }

    /// Removes contents from memory that have become durable, if contents have more than their part of it.
    fn evict_excess(&mut self, pending_writes: &PendingWrites, access: &Access) {
        if self.content_bytes <= self.content_bytes_max || self.evicted_at == pending_writes.durable() {
            return;
        }
        self.evicted_at = pending_writes.durable();
        while self.content_bytes > self.content_bytes_max && self.evict_next(pending_writes, access) {}
    }

    /// Removes a content from memory that the log has. Returns `false` if there is none.
    fn evict_next(&mut self, pending_writes: &PendingWrites, access: &Access) -> bool {
        if pending_writes.mode() == Mode::Off {
            return false;
        }
        let places = self.slab.places();
        for _ in 0..places {
            let at = self.evict_place;
            self.evict_place = if at + 1 < places { at + 1 } else { 0 };
            if self.is_evictable(pending_writes, access, at) {
                let content = &mut self.slab[at].content;
                content.octets = None;
                let len = content.len as usize;
                self.bytes.subtract(len);
                self.content_bytes -= len;
                return true;
            }
        }
        false
    }

    /// Returns whether the content in a place is in memory, and the log has it.
    fn is_evictable(&self, pending_writes: &PendingWrites, access: &Access, at: usize) -> bool {
        let Some(record) = self.slab.get(at) else { return false };
        let RetainedMessage { vhost, key, content, due_ms, batch, stored, .. } = record;
        if content.memory_bytes() == 0
            || *due_ms != NOT_DUE
            || *batch > pending_writes.durable()
            || content.is_being_written()
        {
            return false;
        }
        let retained = definition::Retained { vhost: access.vhost_name(*vhost), key, ..Default::default() };
        stored.count == 0 || !pending_writes.is_split_pending(&Definition::Retained(retained).key())
    }

    fn stored_bytes_of(&self, at: usize) -> u64 {
        let record = &self.slab[at];
        record.key.len() as u64 + u64::from(record.content.len)
    }

    fn add_content(&mut self, bytes: usize) {
        self.bytes.add(bytes);
        self.content_bytes += bytes;
    }

    fn subtract_content(&mut self, bytes: usize) {
        self.bytes.subtract(bytes);
        self.content_bytes -= bytes;
        self.freed_count += 1;
    }

    /// Returns a counter that rises whenever there may be memory for a content that a publisher waits with.
    pub(crate) const fn freed_count(&self) -> u64 {
        self.freed_count
    }

    /// Sets the retained message of a topic, for which there is memory.
    fn put(&mut self, vhost: VhostId, key: &str, content: Content) -> usize {
        let in_memory = content.memory_bytes();
        let Some(at) = self.find(vhost, key) else {
            let stored = self.take_left_out(vhost, key).unwrap_or_default();
            let record = RetainedMessage {
                vhost,
                key: key.into(),
                content,
                due_ms: NOT_DUE,
                batch: Batch::NONE,
                stored,
                before: StoredParts::default(),
            };
            let at = self.slab.insert_checked(record);
            self.table.insert((vhost, key), at, self.slab.touched());
            self.bytes.add(key.len());
            self.add_content(in_memory);
            self.stored_bytes += self.stored_bytes_of(at);
            return at;
        };
        self.stored_bytes -= self.stored_bytes_of(at);
        let before = core::mem::replace(&mut self.slab[at].content, content);
        self.stored_bytes += self.stored_bytes_of(at);
        // The order is that of [`Self::needed_bytes`].
        if in_memory > PART_BYTES {
            self.add_content(in_memory);
            self.free(before);
        } else {
            self.free(before);
            self.add_content(in_memory);
        }
        at
    }

    /// Removes the retained message of a topic. Returns the parts that the log has of it, and may have of the one before; `None`
    /// if there was no message.
    fn remove(&mut self, vhost: VhostId, key: &str) -> Option<[StoredParts; 2]> {
        let Some(at) = self.find(vhost, key) else {
            return self.take_left_out(vhost, key).map(|stored| [stored, StoredParts::default()]);
        };
        self.stored_bytes -= self.stored_bytes_of(at);
        let removed = self.slab.remove(at);
        self.table.remove((vhost, key), at);
        self.bytes.subtract(removed.key.len());
        self.free(removed.content);
        Some([removed.stored, removed.before])
    }

    /// Returns the parts of a message that a start left out, and that is updated or deleted now.
    fn take_left_out(&mut self, vhost: VhostId, key: &str) -> Option<StoredParts> {
        let is_it = |left_out: &LeftOut| left_out.vhost == vhost && *left_out.key == *key;
        let at = self.left_out.iter().position(is_it)?;
        Some(self.left_out.swap_remove(at).stored)
    }

    /// Frees a content that no topic has any more, as soon as no part of it waits for its commit.
    fn free(&mut self, content: Content) {
        match content.octets {
            Some(octets) if Rc::strong_count(&octets) > 1 => self.replaced.push(octets),
            Some(octets) => self.subtract_content(octets.len()),
            None => {}
        }
    }

    /// Frees the replaced contents that are written now.
    fn free_replaced(&mut self) {
        let freed: usize = self
            .replaced
            .extract_if(.., |octets| Rc::strong_count(octets) == 1)
            .map(|octets| octets.len())
            .sum();
        if freed > 0 {
            self.subtract_content(freed);
        }
    }

    /// Notes that a retained message has changed and is to be written later.
    fn note_due(&mut self, pending_writes: &PendingWrites, at: usize) {
        let due_ms = pending_writes.time_ms() + WRITE_DELAY_MS;
        let record = &mut self.slab[at];
        // With the time of each update, a topic with frequent updates would never be written.
        if record.due_ms == NOT_DUE {
            record.due_ms = due_ms;
        }
        self.write_ms.get_or_insert(due_ms);
    }

    /// Appends a retained message to the log. A small one is durable with the returned batch, and one in parts when it is no
    /// [pending](PendingWrites::is_split_pending) split definition any more.
    fn append(&mut self, pending_writes: &mut PendingWrites, access: &Access, at: usize) -> Batch {
        let RetainedMessage { vhost, key, content, stored, before, .. } = &self.slab[at];
        let vhost = access.vhost_name(*vhost);
        let mut retained = definition::Retained { vhost, key, qos: content.qos, ..Default::default() };
        // A content that is to be written is in memory.
        let (Some(octets), Some((properties, payload))) = (&content.octets, content.in_memory()) else {
            return Batch::NONE;
        };
        // If the last content was withdrawn, the log still has the one before it, and may have parts of both sides. Its side must
        // stay as it is until the new content is complete.
        let is_withdrawn = pending_writes.withdraw_split(&Definition::Retained(retained).key());
        let (named, unused) =
            if is_withdrawn { (*before, *stored) } else { (*stored, StoredParts::default()) };
        let next = named.next(octets);
        let batch = if next.count > 0 {
            unused.delete(pending_writes, vhost, key, next.count);
            retained.parts = Some(RetainedParts {
                side: next.side,
                len: content.len,
                properties_len: content.properties_len,
                checksum: next.checksum,
            });
            let definition = Definition::Retained(retained);
            pending_writes.define_split(SplitDefinition {
                content: Rc::clone(octets),
                part_prefix: next.key_prefix(vhost, key),
                key: definition.key(),
                value: definition.value(),
                replaced_prefix: named.key_prefix(vhost, key),
                replaced_count: named.count,
            });
            Batch::NONE
        } else {
            (retained.properties, retained.payload) = (properties, payload);
            let batch = pending_writes.write_definition(&Definition::Retained(retained), true);
            named.delete(pending_writes, vhost, key, 0);
            unused.delete(pending_writes, vhost, key, 0);
            batch
        };
        let record = &mut self.slab[at];
        (record.stored, record.before, record.due_ms, record.batch) = (next, named, NOT_DUE, batch);
        batch
    }

    /// Appends retained messages to the log that are to be written now, or with `all` those that are to be written later,
    /// too.
    pub(crate) fn write_due(&mut self, pending_writes: &mut PendingWrites, access: &Access, all: bool) {
        if !self.replaced.is_empty() {
            self.free_replaced();
        }
        self.evict_excess(pending_writes, access);
        let now_ms = pending_writes.time_ms();
        let is_due = self.write_ms.is_some_and(|at_ms| all || at_ms <= now_ms);
        if !is_due {
            return;
        }
        self.write_ms = None;
        for at in 0..self.slab.places() {
            let due_ms = self.slab.get(at).map_or(NOT_DUE, |record| record.due_ms);
            if due_ms == NOT_DUE {
                continue;
            }
            // Without space in the log, a message with QoS 0 is not written at a stop either: it promises nothing.
            // A store that cannot be written has the message before, so this one must stay in memory.
            let has_space = pending_writes.mode() != Mode::Unwritable
                && has_log_space(pending_writes, self.slab[at].content.len as usize, true);
            if has_space && (all || due_ms <= now_ms && !pending_writes.is_crowded()) {
                self.append(pending_writes, access, at);
            } else {
                let again_ms = due_ms.max(now_ms + WRITE_RETRY_MS);
                self.write_ms = Some(self.write_ms.map_or(again_ms, |at_ms| at_ms.min(again_ms)));
            }
        }
    }
}

/// Appends the deletion of a retained message to the log. Returns the batch. `stored` are the parts that the log may have.
fn append_removal(
    pending_writes: &mut PendingWrites,
    access: &Access,
    vhost: VhostId,
    key: &str,
    stored: [StoredParts; 2],
) -> Batch {
    let vhost = access.vhost_name(vhost);
    let definition = Definition::Retained(definition::Retained { vhost, key, ..Default::default() });
    let is_withdrawn = pending_writes.withdraw_split(&definition.key());
    let batch = pending_writes.write_definition(&definition, false);
    let [last, before] = stored;
    last.delete(pending_writes, vhost, key, 0);
    if is_withdrawn {
        before.delete(pending_writes, vhost, key, 0);
    }
    batch
}

/// Returns whether the log has space for a retained message. The update of a small one is accepted like a deletion. A large one
/// needs its space twice until the compactor has freed that of the message before.
fn has_log_space(pending_writes: &PendingWrites, len: usize, is_update: bool) -> bool {
    let is_small_update = is_update && len <= PART_BYTES;
    is_small_update || pending_writes.can_define() && pending_writes.log_free_bytes() > 2 * len as u64
}

impl Broker {
    /// Publishes a message of an MQTT client, and makes it the retained message of its topic, or deletes that one if the
    /// message has no payload. See [`leveret_core::command::PublishCommand::PublishRetained`].
    pub(crate) fn publish_retained(
        &mut self,
        cx: &mut Context<'_>,
        channel: ChannelId,
        message: MessageId,
        packet_id: Option<NonZeroU16>,
        is_refusable: bool,
    ) -> Result<PublishAnswer, Fault> {
        let (connection, vhost) = (self.clients.connection_of(channel), self.clients.channel(channel).vhost);
        self.retained.free_replaced();
        let is_written = self.clients.connection(connection).retained_first == Some(message);
        let mut change = if is_written {
            RetainedChange { vhost, key: key_of(cx, message), update: Update::Written }
        } else {
            self.retained_change(cx, vhost, message)
        };
        let exceeded = change.exceeded_limit();
        // A message that was published before is not refused: its packet identifier would be free for the client only.
        let is_repeated = packet_id.is_some_and(|packet_id| self.is_received(connection, packet_id));
        let exceeded = exceeded.filter(|_| !is_repeated);
        if let Some(limit) = exceeded.filter(|_| is_refusable) {
            let allowed = self.allowed_exchange(cx, channel, message);
            cx.messages.release(message);
            allowed?;
            self.retained.note_refused(vhost, &change.key, limit);
            let topic = exchange_separators(&change.key).unwrap_or_default();
            let text =
                format_args!("a message with RETAIN to '{}' that exceeds {limit}", topic.escape_debug());
            return Err(Fault::new(ReplyCode::ResourceError, text));
        }
        if let Update::Wait = change.update
            && !is_repeated
        {
            let allowed = self.allowed_exchange(cx, channel, message);
            allowed.inspect_err(|_| cx.messages.release(message))?;
            self.publishing.shortage = Shortage::Commit;
            return Ok(PublishAnswer::Wait);
        }
        if !is_repeated && self.must_await_retained(cx, connection, channel, message, &mut change)? {
            self.publishing.shortage = Shortage::Commit;
            return Ok(PublishAnswer::Wait);
        }
        // The content is copied after the message was published, so that a publisher that waits copies nothing.
        cx.messages.retain(message);
        let outcome = match packet_id {
            Some(packet_id) => self.publish_once(cx, channel, message, Some(change), packet_id),
            None => {
                let outcome = self.publish(cx, channel, message, false);
                outcome.map(|outcome| self.retain_if_published(cx, outcome, change, message))
            }
        };
        cx.messages.release(message);
        // A message that waits for something else now is not written again.
        if outcome != Ok(PublishAnswer::Wait) {
            self.clients.connection_mut(connection).retained_first = None;
        }
        outcome
    }

    /// Writes a content in parts before its message is published. Returns whether the publisher has to wait until it is durable.
    ///
    /// In this way the acknowledgements of other clients do not wait for a long content, and a packet identifier of QoS 2 is not
    /// durable before the retained message.
    ///
    /// # Errors
    /// The user may not publish the message, which is released.
    fn must_await_retained(
        &mut self,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        channel: ChannelId,
        message: MessageId,
        change: &mut RetainedChange,
    ) -> Result<bool, Fault> {
        if let Update::Set = change.update {
            let is_persistent = cx.messages.flags(message).has(MessageFlags::PERSISTENT);
            let len = cx.messages.properties_len(message) + cx.messages.body_len(message);
            if !is_persistent || len as usize <= PART_BYTES {
                return Ok(false);
            }
            let allowed = self.allowed_exchange(cx, channel, message);
            allowed.inspect_err(|_| cx.messages.release(message))?;
            let first = RetainedChange { vhost: change.vhost, key: change.key.clone(), update: Update::Set };
            change.update = match self.change_retained(cx, first, message) {
                Ok(()) => Update::Written,
                Err(limit) => Update::Refuse(limit),
            };
        }
        let is_written = matches!(change.update, Update::Written);
        let vhost = self.access.vhost_name(change.vhost);
        let retained = definition::Retained { vhost, key: &change.key, ..Default::default() };
        let must_wait =
            is_written && cx.pending_writes.is_split_pending(&Definition::Retained(retained).key());
        self.clients.connection_mut(connection).retained_first = is_written.then_some(message);
        Ok(must_wait)
    }

    /// Makes a message that was published the retained one of its topic. Returns the outcome of both.
    pub(crate) fn retain_if_published(
        &mut self,
        cx: &mut Context<'_>,
        outcome: PublishAnswer,
        change: RetainedChange,
        message: MessageId,
    ) -> PublishAnswer {
        if !matches!(outcome, PublishAnswer::Published | PublishAnswer::PublishedNowhere) {
            return outcome;
        }
        let topic = exchange_separators(&change.key).unwrap_or_default();
        match self.change_retained(cx, change, message) {
            Ok(()) => outcome,
            Err(limit) => PublishAnswer::NotRetained { limit, topic: topic.as_str().into() },
        }
    }

    /// Returns the change of the retained message that a message with RETAIN makes.
    pub(crate) fn retained_change(
        &mut self,
        cx: &mut Context<'_>,
        vhost: VhostId,
        message: MessageId,
    ) -> RetainedChange {
        let key = key_of(cx, message);
        let body_len = cx.messages.body_len(message);
        let len = cx.messages.properties_len(message) as usize + body_len as usize;
        let is_persistent = cx.messages.flags(message).has(MessageFlags::PERSISTENT);
        let update = match body_len {
            0 => Update::Delete,
            _ if is_persistent && cx.pending_writes.mode() == Mode::Unwritable => Update::Refuse(UNWRITABLE),
            _ => match self.retained.exceeded_limit(cx.pending_writes, vhost, &key, len) {
                Some(limit) => Update::Refuse(limit),
                None => match self.retained.make_room(cx, &self.access, vhost, &key, len) {
                    Room::Free => Update::Set,
                    Room::AfterCommit => Update::Wait,
                    Room::None => Update::Refuse(NO_MEMORY),
                },
            },
        };
        RetainedChange { vhost, key, update }
    }

    /// Sets or deletes the retained message of a topic. `message` has the content.
    ///
    /// # Errors
    /// The limit that the message exceeds, and what to do, as a text for log lines.
    pub(crate) fn change_retained(
        &mut self,
        cx: &mut Context<'_>,
        change: RetainedChange,
        message: MessageId,
    ) -> Result<(), &'static str> {
        let RetainedChange { vhost, key, update } = change;
        let exceeded = match update {
            Update::Refuse(limit) => Some(limit),
            Update::Delete => None,
            Update::Written => {
                // Another client may have replaced the content since. Its change is durable before this message is acknowledged.
                cx.await_batch(cx.pending_writes.last_entry_batch());
                return Ok(());
            }
            // Publishing may have taken memory since the message was checked.
            Update::Set => {
                let len = cx.messages.properties_len(message) + cx.messages.body_len(message);
                match self.retained.make_room(cx, &self.access, vhost, &key, len as usize) {
                    Room::Free => None,
                    Room::AfterCommit | Room::None => Some(NO_MEMORY),
                }
            }
            // A will cannot wait.
            Update::Wait => Some(NO_MEMORY),
        };
        if let Some(limit) = exceeded {
            self.retained.note_refused(vhost, &key, limit);
            return Err(limit);
        }
        self.retained.forget_refused(vhost, &key);
        let batch = if let Update::Set = update {
            let content = Content::of(cx.messages, message, cx.pending_writes.time_ms());
            let is_written_later = content.qos == 0;
            let at = self.retained.put(vhost, &key, content);
            if is_written_later {
                self.retained.note_due(cx.pending_writes, at);
                return Ok(());
            }
            self.retained.append(cx.pending_writes, &self.access, at)
        } else {
            match self.retained.remove(vhost, &key) {
                Some(stored) => append_removal(cx.pending_writes, &self.access, vhost, &key, stored),
                // The deletion by another client may not be durable yet.
                None => cx.pending_writes.last_entry_batch(),
            }
        };
        cx.await_batch(batch);
        Ok(())
    }

    /// Adds a retained message from the log. `arrived_ms` is the present broker time in milliseconds.
    pub(crate) fn restore_retained(
        &mut self,
        stored: &definition::Retained<'_>,
        arrived_ms: u64,
    ) -> Restored {
        let definition::Retained { vhost, key, qos, parts, properties, payload } = *stored;
        let Some(vhost) = self.access.find_vhost(vhost) else { return self.access.result_without_owner() };
        let len = parts.map_or(properties.len() + payload.len(), |parts| parts.len as usize);
        let stored = parts.map_or(StoredParts::default(), |RetainedParts { side, checksum, .. }| {
            StoredParts { side, count: StoredParts::count_for(len), checksum }
        });
        if !self.retained.has_memory_for_topic(vhost, key) {
            if stored.count > 0 {
                self.retained.left_out.push(LeftOut { vhost, key: key.into(), stored });
            }
            return Restored::NoCapacity;
        }
        let needed = self.retained.needed_bytes(vhost, key, len);
        let is_in_memory = needed.is_some_and(|needed| needed <= self.retained.bytes.free())
            && self.retained.content_bytes + len <= self.retained.content_bytes_max;
        let content = match &parts {
            None if is_in_memory => {
                Content::new(qos, [properties, payload].concat().into(), properties.len() as u32, arrived_ms)
            }
            None => Content::in_log(qos, len as u32, properties, arrived_ms),
            Some(parts) => Content::for_parts(qos, parts, is_in_memory, arrived_ms),
        };
        let at = self.retained.put(vhost, key, content);
        self.retained.slab[at].stored = stored;
        if stored.count > 0 {
            self.retained.incomplete.push(Incomplete { at, missing_count: stored.count });
        }
        Restored::Exists(None)
    }

    /// Adds a part of a retained message from the log.
    pub(crate) fn restore_retained_part(&mut self, part: &RetainedPart<'_>) -> Restored {
        let RetainedPart { vhost, key, side, index, bytes } = *part;
        let Some(vhost) = self.access.find_vhost(vhost) else { return self.access.result_without_owner() };
        let retained = &mut self.retained;
        let Some(at) = retained.find(vhost, key) else {
            // A start with more memory restores the message.
            let is_left_out = |left_out: &LeftOut| {
                left_out.vhost == vhost && *left_out.key == *key && left_out.stored.has(side, index)
            };
            let is_kept = retained.left_out.iter().any(is_left_out);
            return if is_kept { Restored::Exists(None) } else { Restored::Orphaned };
        };
        let RetainedMessage { content, stored, .. } = &mut retained.slab[at];
        if !stored.has(side, index) {
            return Restored::Orphaned;
        }
        let start = index as usize * PART_BYTES;
        let end = (content.len as usize).min(start + PART_BYTES);
        if bytes.len() == end - start {
            if let Some(octets) = &mut content.octets {
                Rc::make_mut(octets)[start..end].copy_from_slice(bytes);
            }
            let incomplete = retained.incomplete.iter_mut().find(|incomplete| incomplete.at == at);
            if let Some(incomplete) = incomplete {
                incomplete.missing_count = incomplete.missing_count.saturating_sub(1);
            }
        }
        Restored::Exists(None)
    }

    /// Removes the retained messages of which a part could not be restored. With `is_suspect`, parts of the log are
    /// unreadable, and what is left of these messages stays in it.
    ///
    /// Returns their virtual hosts and routing keys.
    pub(crate) fn end_restoring_retained(
        &mut self,
        pending_writes: &mut PendingWrites,
        is_suspect: bool,
    ) -> Vec<(String, Box<str>)> {
        let mut lost = Vec::new();
        for Incomplete { at, missing_count } in core::mem::take(&mut self.retained.incomplete) {
            let record = &mut self.retained.slab[at];
            let checksum = record.content.octets.as_deref().map(crc32c::crc32c);
            if missing_count == 0 && checksum.is_none_or(|checksum| checksum == record.stored.checksum) {
                record.content.note_complete();
                continue;
            }
            let (vhost, key) = (record.vhost, record.key.clone());
            lost.push((self.access.vhost_name(vhost).to_string(), key.clone()));
            let stored = self.retained.remove(vhost, &key).unwrap_or_default();
            if is_suspect {
                let [stored, _] = stored;
                self.retained.left_out.push(LeftOut { vhost, key, stored });
            } else {
                append_removal(pending_writes, &self.access, vhost, &key, stored);
            }
        }
        lost
    }

    /// Deletes the retained messages of a virtual host. Returns `false` if there are further ones: too much waits to be
    /// written.
    pub(crate) fn delete_retained_of(&mut self, cx: &mut Context<'_>, vhost: VhostId) -> bool {
        self.retained.refused.take_if(|refused| refused.vhost == vhost);
        let is_of_vhost = |left_out: &mut LeftOut| left_out.vhost == vhost;
        let left_out: Vec<LeftOut> = self.retained.left_out.extract_if(.., is_of_vhost).collect();
        for LeftOut { key, stored, .. } in left_out {
            let stored = [stored, StoredParts::default()];
            append_removal(cx.pending_writes, &self.access, vhost, &key, stored);
        }
        for at in 0..self.retained.slab.places() {
            let Some(record) = self.retained.slab.get(at).filter(|record| record.vhost == vhost) else {
                continue;
            };
            if cx.pending_writes.is_crowded() {
                return false;
            }
            let key = record.key.clone();
            let stored = self.retained.remove(vhost, &key).unwrap_or_default();
            append_removal(cx.pending_writes, &self.access, vhost, &key, stored);
        }
        true
    }

    /// Deletes the retained message of a topic. Returns whether there was one. The reply waits until this is durable.
    ///
    /// # Errors
    /// The storage cannot be written.
    pub(crate) fn delete_retained(
        &mut self,
        cx: &mut Context<'_>,
        vhost: VhostId,
        key: &str,
    ) -> Result<bool, Fault> {
        check_deletable(cx.pending_writes, true)?;
        self.retained.forget_refused(vhost, key);
        let removed = self.retained.remove(vhost, key);
        if let Some(stored) = removed {
            let batch = append_removal(cx.pending_writes, &self.access, vhost, key, stored);
            cx.await_batch(batch);
        }
        Ok(removed.is_some())
    }

    /// Appends all retained messages to the log that are not in it yet. Called before a clean stop.
    pub fn write_all_retained(&mut self, pending_writes: &mut PendingWrites) {
        self.retained.write_due(pending_writes, &self.access, true);
    }

    /// Returns when retained messages with QoS 0 are to be written, in milliseconds of broker time.
    pub const fn next_retained_write_ms(&self) -> Option<u64> {
        self.retained.write_ms
    }
}

/// A change of the retained message of a topic.
#[derive(Debug)]
pub(crate) struct RetainedChange {
    vhost: VhostId,
    key: Name,
    update: Update,
}

impl RetainedChange {
    /// Returns the limit that the message exceeds.
    const fn exceeded_limit(&self) -> Option<&'static str> {
        match self.update {
            Update::Refuse(limit) => Some(limit),
            Update::Set | Update::Wait | Update::Written | Update::Delete => None,
        }
    }
}

/// Returns the routing key of a message.
fn key_of(cx: &Context<'_>, message: MessageId) -> Name {
    let key = core::str::from_utf8(cx.messages.routing_key(message)).unwrap_or_default();
    Name::try_from(key).unwrap_or_default()
}

/// The effect of a message with RETAIN on the retained message of its topic.
#[derive(Debug)]
enum Update {
    Set,
    /// There will be memory after a commit.
    Wait,
    /// The content was set, and is durable, before the message is published.
    Written,
    Delete,
    /// The new message exceeds this limit, given as a text for log lines. The topic keeps its message.
    Refuse(&'static str),
}
