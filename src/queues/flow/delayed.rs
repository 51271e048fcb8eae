//! Delayed messages: a hidden queue for each delayed exchange, whose levels are the slots of a timing wheel.
//!
//! ```text
//! slot    88…81        80…73      …   40…33       …   8…1        0
//! width   2^32 ms      2^29 ms        16,384 ms       4 ms       arrived before the slots were known
//!         each is a level of a hidden queue, on the disk         │
//!                      opened at its start, wider slots first ▼
//!                      held: the nearest few, in memory, in the order of due time ──→ routed
//! ```
//!
//! The slot of a message follows from the octal digits of its due time and of the wheel's current time. The
//! position of the first different digit determines the width (the tier) of the slot. The value of that digit
//! in the due time selects one of the eight slots of this width. When the time of a slot begins, the slot is
//! opened: its messages are held in memory until they are due. If there are too many, they are moved to
//! narrower slots. The slots for publishers' messages have at least the width of tier
//! [`NARROWEST_PUBLISHED`].
//!
//! # Invariants
//! - A message in a slot is treated like a message in any queue: it is confirmed when it is durable, evicted
//!   when memory is short, recovered at start, and deleted with its exchange.
//! - All messages in a slot are due in the same interval. The first message therefore determines when the
//!   slot begins, and the log needs only the messages.
//! - At start, no slot is opened before the first message of every slot in the log has been read.
//! - A held message is routed only when no unopened slot can have a message that is due earlier.
//! - In the log, a held message still belongs to its slot, and is settled when it is routed.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use leveret_amqp::delay::delay_ms;
use leveret_amqp::field::Table;
use leveret_amqp::props::Properties;
use leveret_core::command::QueueId;
use leveret_core::mem::MessageId;
use leveret_core::quota::{Declarer, Quota};
use leveret_storage::{Context, PendingWrites};

use super::Queues;
use super::page_in::ReadMessage;
use super::push::LevelChoice;
use super::schedule::QueueSchedule;
use crate::records::{QueueState, Rank, SLOTS};

impl Queues {
    /// Marks the hidden queue of an exchange and its levels as deleted. Returns the held messages of the
    /// exchange, which the caller must settle.
    #[cold]
    pub fn retire_delayed_queue(
        &mut self,
        pending_writes: &mut PendingWrites,
        queue: QueueId,
    ) -> Vec<HeldMessage> {
        let record = &mut self.records[queue];
        record.state = QueueState::Deleting;
        if record.durable_index.is_logged() {
            pending_writes.append_queue_deleted(record.durable_index.incarnation());
        }
        let records = &self.records;
        let gone = self.delay_wheel.take_held_of(|queue| records[queue].is_deleted());
        let mut unknown = 0;
        let all: heapless::Vec<QueueId, { SLOTS as usize + 1 }> = self.records.levels(queue).collect();
        for level in all {
            let due_ms = core::mem::replace(&mut self.records[level].times.due_ms, u64::MAX);
            unknown += u32::from(due_ms == UNKNOWN);
        }
        self.delay_wheel.unknown_slot_count -= unknown;
        self.delay_wheel.note_change();
        gone
    }

    /// Returns the level for a message with this delay: its slot, or the hidden queue itself.
    ///
    /// Returns the hidden queue itself while the time of any slot is unknown. Also returns it when there is
    /// no capacity for the slot; the caller then refuses the message (see [`Self::take_slot_capacity_lack`]).
    pub(crate) fn slot_for(
        &mut self,
        cx: &mut Context<'_>,
        quota: &mut Quota,
        queue: QueueId,
        choice: LevelChoice,
    ) -> QueueId {
        let now_ms = cx.pending_writes.time_ms();
        if self.delay_wheel.unknown_slot_count > 0 {
            self.register_slot(queue, Slot { number: 0, start_ms: now_ms });
            return queue;
        }
        let at_ms = self.delay_wheel.current_ms(now_ms);
        let since_ms = if choice.arrived_ms == 0 { now_ms } else { choice.arrived_ms };
        let slot = Slot::of(since_ms.saturating_add(choice.delay_ms), at_ms, NARROWEST_PUBLISHED, u32::MAX);
        let level = self.level_of_slot(quota, queue, slot);
        self.delay_wheel.lacks_slot_capacity |= level.is_none();
        level.unwrap_or(queue)
    }

    /// Returns whether there was no capacity for the slot of the message being published, and clears the
    /// mark. The caller then refuses the message.
    pub const fn take_slot_capacity_lack(&mut self) -> bool {
        core::mem::replace(&mut self.delay_wheel.lacks_slot_capacity, false)
    }

    /// Returns the level of a slot and registers the slot's time; `None` if there is no capacity for another
    /// level.
    pub fn level_of_slot(&mut self, quota: &mut Quota, queue: QueueId, slot: Slot) -> Option<QueueId> {
        let declarer = self.records[queue].declared.declarer.unwrap_or_else(Declarer::none);
        let level = self.records.level_at(quota, queue, slot.number, Some(declarer)).ok()?;
        self.register_slot(level, slot);
        Some(level)
    }

    /// Notes the slot that a level has, so that the timing wheel examines it at its time.
    pub fn register_slot(&mut self, level: QueueId, slot: Slot) {
        let record = &mut self.records[level];
        let key = slot.key();
        if record.times.due_ms == UNKNOWN || record.times.due_ms <= key {
            return;
        }
        record.times.due_ms = key;
        let queues = &self.records;
        self.delay_wheel.add(key, level, || {
            let all = queues.iter().filter(|(_, record)| record.delayed_exchange().is_some());
            let all = all.map(|(index, record)| (record.times.due_ms, QueueId::from_index(index)));
            all.filter(|(key, _)| *key < UNKNOWN)
        });
        self.delay_wheel.note_change();
    }

    /// Sets the arrival time of a message that enters a slot, unless it is set.
    pub(crate) fn note_delayed_arrival(&self, cx: &mut Context<'_>, message: MessageId) {
        if cx.messages.arrived_ms(message) == 0 {
            cx.messages.set_arrived_ms(message, cx.pending_writes.time_ms().max(1));
        }
    }

    /// Notes, at start, a slot with messages in the log, and requests its first message, which determines the
    /// time of the slot.
    #[cold]
    pub(crate) fn note_slot_restored(&mut self, level: QueueId) {
        self.records[level].times.due_ms = UNKNOWN;
        self.delay_wheel.unknown_slot_count += 1;
        self.request_peek(level);
    }

    /// Sets the time of a slot whose first message was read.
    #[cold]
    pub(crate) fn set_slot_time(&mut self, level: QueueId, page: &ReadMessage<'_>) {
        let headers = Properties::trusted(page.properties).headers().unwrap_or(Table::EMPTY);
        let due_ms = page.enqueued_ms.saturating_add(delay_ms(headers));
        let slot = match self.records[level].rank {
            Rank::Level { priority: number, .. } => Slot { number, start_ms: start_ms(number, due_ms) },
            Rank::Plain | Rank::Lowest { .. } => Slot { number: 0, start_ms: page.enqueued_ms },
        };
        self.clear_unknown_slot(level);
        self.register_slot(level, slot);
    }

    fn clear_unknown_slot(&mut self, level: QueueId) {
        let record = &mut self.records[level];
        if record.times.due_ms == UNKNOWN {
            record.times.due_ms = u64::MAX;
            self.delay_wheel.unknown_slot_count -= 1;
        }
    }

    /// Notes that a read for a slot has ended. If the time of the slot is still unknown, requests the next
    /// message, or, if the slot is empty, drops the unknown time.
    #[cold]
    pub(crate) fn note_slot_read_ended(&mut self, level: QueueId) {
        self.delay_wheel.note_change();
        let record = &self.records[level];
        match record.times.due_ms == UNKNOWN && !record.is_deleted() {
            true if record.backlog.ready() > 0 => self.request_peek(level),
            true => self.clear_unknown_slot(level),
            false => {}
        }
    }

    /// Returns when a message in a slot is due, in milliseconds of broker time.
    pub fn due_ms(&mut self, cx: &mut Context<'_>, message: MessageId) -> u64 {
        let properties = cx.messages.properties(message, &mut self.scratch.properties);
        cx.work.charge_octets(properties.len());
        let headers = Properties::trusted(properties).headers().unwrap_or(Table::EMPTY);
        cx.messages.arrived_ms(message).saturating_add(delay_ms(headers))
    }
}

/// Tier of the narrowest slots for messages from publishers.
pub const NARROWEST_PUBLISHED: u32 = 4;
/// Tier of the widest slots.
const WIDEST: u32 = SLOTS as u32 / DIGITS - 1;
const DIGIT_BITS: u32 = 3;
const DIGITS: u32 = 1 << DIGIT_BITS;
/// The narrowest slot is this power of two milliseconds wide.
const FINEST_BITS: u32 = 2;
/// `due_ms` of a slot or queue that has no time.
const NEVER: u64 = u64::MAX;
/// `due_ms` of a slot that was found at start and whose first message has not been read yet.
pub(crate) const UNKNOWN: u64 = u64::MAX - 1;
/// One message in this many of the pool may be held.
const MESSAGES_PER_HELD: usize = 64;
const HELD_MAX: usize = 1024;

/// A slot of the timing wheel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slot {
    /// The slot's number, from 1; 0 is the hidden queue itself, for messages that arrived before the times of
    /// all slots were known.
    pub number: u8,
    /// When the slot begins, in milliseconds of broker time.
    pub start_ms: u64,
}

impl Slot {
    /// Returns the slot for a message that is due at `due_ms` when the wheel's time is `at_ms`. Its tier is
    /// at least `narrowest` and at most `widest`.
    pub fn of(due_ms: u64, at_ms: u64, narrowest: u32, widest: u32) -> Self {
        let due_ms = due_ms.max(at_ms);
        let bit = 63_u32.saturating_sub((due_ms ^ at_ms).leading_zeros());
        let widest = widest.min(WIDEST);
        let tier = (bit.saturating_sub(FINEST_BITS) / DIGIT_BITS).clamp(narrowest.min(widest), widest);
        let digit = due_ms >> bits(tier) & u64::from(DIGITS - 1);
        let number = 1 + (tier * DIGITS) as u8 + digit as u8;
        Self { number, start_ms: start_ms(number, due_ms) }
    }

    /// Returns the key by which slots are sorted: by start, and among slots with the same start the widest
    /// first.
    pub const fn key(self) -> u64 {
        self.start_ms << 8 | (u8::MAX - self.number) as u64
    }

    /// Returns the slot with this key.
    pub const fn of_key(key: u64) -> Self {
        Self { number: u8::MAX - key as u8, start_ms: key >> 8 }
    }

    /// Returns the tier of the slot, from 0 for the narrowest; `None` for the hidden queue itself.
    pub const fn tier(self) -> Option<u32> {
        match self.number {
            0 => None,
            number => Some((number as u32 - 1) / DIGITS),
        }
    }

    /// Returns the widest tier that the messages of this slot may be moved to; `None` if they can only be
    /// held.
    pub const fn widest_below(self) -> Option<u32> {
        match self.tier() {
            None => Some(WIDEST),
            Some(tier) => tier.checked_sub(1),
        }
    }
}

/// Returns when the slot of this number begins whose interval contains `due_ms`.
pub(crate) const fn start_ms(number: u8, due_ms: u64) -> u64 {
    let bits = bits((number.saturating_sub(1) as u32) / DIGITS);
    due_ms >> bits << bits
}

const fn bits(tier: u32) -> u32 {
    FINEST_BITS + DIGIT_BITS * tier
}

/// A message of an opened slot, which waits in memory for its due time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HeldMessage {
    /// When the message is due, in milliseconds of broker time.
    pub due_ms: u64,
    /// Order of arrival among held messages.
    serial: u64,
    /// The slot from which it was taken.
    pub queue: QueueId,
    /// The message.
    pub message: MessageId,
    /// Log offset of the message; `u64::MAX` for none.
    log_offset: u64,
}

impl HeldMessage {
    /// Returns the log offset of the message, if the log has it.
    pub fn log_offset(&self) -> Option<u64> {
        Some(self.log_offset).filter(|offset| *offset != u64::MAX)
    }
}

impl Ord for HeldMessage {
    fn cmp(&self, other: &Self) -> core::cmp::Ordering {
        (self.due_ms, self.serial).cmp(&(other.due_ms, other.serial))
    }
}

impl PartialOrd for HeldMessage {
    fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// A slot or a held message that is due.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DueItem {
    /// A slot to be opened: its key, and its level.
    Slot(u64, QueueId),
    /// A held message to be routed.
    Held(HeldMessage),
}

/// The start times of all slots with messages, and the held messages.
#[derive(Debug)]
pub struct DelayWheel {
    slots: QueueSchedule,
    held: BinaryHeap<Reverse<HeldMessage>>,
    held_max: usize,
    serial: u64,
    /// Number of slots whose time is not known yet. No slot is opened before all times are known.
    pub(crate) unknown_slot_count: u32,
    /// There was no capacity for the slot of the message that is being published.
    pub lacks_slot_capacity: bool,
    /// Value of the counter of freed capacity when a due message could not be moved or routed; `None` if
    /// nothing waits for capacity.
    stuck_at: Option<u64>,
}

impl DelayWheel {
    /// Bytes of the timing wheel for each of the maximum number of queues.
    pub const QUEUE_BYTES: usize = QueueSchedule::QUEUE_BYTES;

    /// Creates a timing wheel for up to this many queues and messages.
    pub fn new(queues: usize, messages: usize) -> Self {
        let held_max = Self::held_max(messages);
        Self {
            slots: QueueSchedule::with_capacity(queues),
            held: BinaryHeap::with_capacity(held_max),
            held_max,
            serial: 0,
            unknown_slot_count: 0,
            lacks_slot_capacity: false,
            stuck_at: None,
        }
    }

    /// Returns the maximum number of messages held in memory: at least 1.
    const fn held_max(messages: usize) -> usize {
        let part = messages / MESSAGES_PER_HELD + 1;
        if part < HELD_MAX { part } else { HELD_MAX }
    }

    /// Returns the maximum bytes that held messages take in a broker with this many messages.
    pub const fn held_bytes(messages: usize) -> usize {
        Self::held_max(messages) * size_of::<Reverse<HeldMessage>>()
    }

    /// Returns when the next slot or held message is due, in milliseconds of broker time.
    pub fn next_ms(&self) -> Option<u64> {
        if self.unknown_slot_count > 0 || self.stuck_at.is_some() {
            return None;
        }
        let slot = self.first_slot().map(|slot| slot.start_ms);
        let held = self.held.peek().map(|Reverse(held)| held.due_ms);
        [slot, held].into_iter().flatten().min()
    }

    /// Returns whether a slot or held message is due, or may be retried because capacity became free.
    /// `capacity_freed` returns the current value of that counter.
    pub fn is_due(&self, now_ms: u64, capacity_freed: impl FnOnce() -> u64) -> bool {
        match self.stuck_at {
            Some(stuck_at) => stuck_at != capacity_freed(),
            None => self.next_ms().is_some_and(|at_ms| at_ms <= now_ms),
        }
    }

    /// Returns the slot or held message that must be processed first, if any is due.
    pub fn next(&self, now_ms: u64) -> Option<DueItem> {
        let held = self.held.peek().map(|Reverse(held)| *held);
        let slot = self.slots.first().filter(|(key, _)| Slot::of_key(*key).start_ms <= now_ms);
        match (slot, held) {
            _ if self.unknown_slot_count > 0 => None,
            (Some((key, _)), Some(held)) if Slot::of_key(key).start_ms > held.due_ms => {
                Some(DueItem::Held(held))
            }
            (Some((key, queue)), _) => Some(DueItem::Slot(key, queue)),
            (None, held) => held.filter(|held| held.due_ms <= now_ms).map(DueItem::Held),
        }
    }

    fn first_slot(&self) -> Option<Slot> {
        self.slots.first().map(|(key, _)| Slot::of_key(key))
    }

    /// Returns the wheel's time, which determines the slots of new messages: now, but not later than the
    /// start of the first unopened slot.
    pub(crate) fn current_ms(&self, now_ms: u64) -> u64 {
        match self.first_slot() {
            None => now_ms,
            Some(slot) if slot.tier().is_some_and(|tier| tier > NARROWEST_PUBLISHED) => {
                now_ms.min(slot.start_ms.saturating_sub(1))
            }
            Some(slot) => now_ms.min(slot.start_ms),
        }
    }

    /// Adds a slot, by its key, with its level. `all` returns the keys of all slots, as for
    /// [`QueueSchedule::add`].
    pub fn add<I>(&mut self, key: u64, queue: QueueId, all: impl FnOnce() -> I)
    where
        I: Iterator<Item = (u64, QueueId)>,
    {
        self.slots.add(key, queue, all);
    }

    /// Removes the first slot.
    pub fn pop_slot(&mut self) {
        self.slots.pop(NEVER);
    }

    /// Returns whether one more message may be held.
    pub fn has_place(&self) -> bool {
        self.held.len() < self.held_max
    }

    /// Returns whether no message is held.
    pub fn holds_none(&self) -> bool {
        self.held.is_empty()
    }

    /// Holds a message of a slot that was opened.
    pub fn hold(&mut self, due_ms: u64, queue: QueueId, message: MessageId, log_offset: Option<u64>) {
        self.serial += 1;
        let (serial, log_offset) = (self.serial, log_offset.unwrap_or(u64::MAX));
        self.held.push(Reverse(HeldMessage { due_ms, serial, queue, message, log_offset }));
    }

    /// Removes the first held message.
    pub fn pop_held(&mut self) {
        self.held.pop();
    }

    /// Removes and returns the held messages of the queues for which `is_selected` is true.
    pub(crate) fn take_held_of(&mut self, is_selected: impl Fn(QueueId) -> bool) -> Vec<HeldMessage> {
        let mut taken = Vec::new();
        self.held.retain(|Reverse(held)| {
            let is_removed = is_selected(held.queue);
            if is_removed {
                taken.push(*held);
            }
            !is_removed
        });
        taken
    }

    /// Notes that a due message could not be moved or routed. It is retried when the counter of freed
    /// capacity differs from this value.
    pub const fn note_stuck(&mut self, capacity_freed: u64) {
        self.stuck_at = Some(capacity_freed);
    }

    /// Makes the wheel be processed again, because the reason why it waited may have ended.
    pub const fn note_change(&mut self) {
        self.stuck_at = None;
    }
}

#[cfg(test)]
mod delay_wheel_tests {
    use super::*;

    /// Tests the wheel alone, without queues: messages leave it by due time, equal times in the order of
    /// arrival, and no message is moved more often than there are tiers.
    #[test]
    fn messages_leave_their_slots_in_the_order_of_their_due_times() {
        let mut random = 7_u64;
        let mut next = move |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 20) % below
        };
        let mut slots: Vec<(u64, Vec<(u64, u64)>)> = vec![(NEVER, Vec::new()); SLOTS as usize + 1];
        let (mut now, mut serial, mut moves, mut out) = (1 << 31, 0, 0, Vec::new());
        let mut came = 0;
        let put = |slots: &mut Vec<(u64, Vec<(u64, u64)>)>, slot: Slot, message| {
            let (start, messages) = &mut slots[usize::from(slot.number)];
            assert!(messages.is_empty() || *start == slot.start_ms, "messages of two intervals in one slot");
            *start = slot.start_ms;
            messages.push(message);
        };
        while came < 4_000 || slots.iter().any(|(_, messages)| !messages.is_empty()) {
            let first = |slots: &Vec<(u64, Vec<(u64, u64)>)>| {
                let full = slots.iter().zip(0_u8..).filter(|((_, messages), _)| !messages.is_empty());
                full.map(|((start_ms, _), number)| Slot { number, start_ms: *start_ms }.key()).min()
            };
            // Sometimes messages arrive before the due slots are emptied.
            let is_late = came < 4_000 && next(3) > 0;
            while let Some(slot) =
                first(&slots).map(Slot::of_key).filter(|slot| !is_late && slot.start_ms <= now)
            {
                let messages = core::mem::take(&mut slots[usize::from(slot.number)].1);
                for (due, serial) in messages {
                    match slot.widest_below() {
                        Some(widest) => {
                            moves += 1;
                            put(&mut slots, Slot::of(due, slot.start_ms, 0, widest), (due, serial));
                        }
                        None => out.push((due, serial)),
                    }
                }
            }
            if came < 4_000 {
                for _ in 0..next(4) {
                    let bits = 1 + next(32);
                    let due = (now + 1 + next(1 << bits)) | 0x1FF;
                    let at = first(&slots).map(Slot::of_key).map_or(now, |slot| match slot.tier() {
                        Some(tier) if tier > NARROWEST_PUBLISHED => now.min(slot.start_ms - 1),
                        _ => now.min(slot.start_ms),
                    });
                    put(&mut slots, Slot::of(due, at, NARROWEST_PUBLISHED, WIDEST), (due, serial));
                    serial += 1;
                    came += 1;
                }
            }
            let bits = next(25);
            now += next(1 << bits);
            if came >= 4_000 {
                now += 1 << 22;
            }
        }
        assert_eq!(out.len(), came);
        assert!(moves < came * 11, "{moves} moves of {came} messages");
        // Messages due within the same 4 ms are routed in one step, in the order of arrival.
        let in_order = out.windows(2).all(|two| two[0].0 >> FINEST_BITS <= two[1].0 >> FINEST_BITS);
        assert!(in_order, "out of order");
        let equal = out.windows(2).filter(|two| two[0].0 == two[1].0);
        assert!(equal.into_iter().all(|two| two[0].1 < two[1].1), "equal times out of order");
    }

    #[test]
    fn a_delay_is_a_number_of_at_most_32_bits() {
        let table = |octets: &'static [u8]| delay_ms(Table::parse(octets).expect("a table"));
        assert_eq!(table(b"\x07x-delayI\0\0\x13\x88"), 5_000);
        assert_eq!(table(b"\x07x-delayI\xff\xff\xec\x78"), 0, "it has been delayed");
        assert_eq!(table(b"\x07x-delayl\0\0\0\0\xff\xff\xff\xff"), u64::from(u32::MAX));
        assert_eq!(table(b"\x07x-delayl\0\0\0\x01\0\0\0\0"), 0, "too long is none");
        assert_eq!(table(b"\x07x-delayS\0\0\0\x0212"), 12);
        assert_eq!(table(b"\x07x-delayS\0\0\0\x01x"), 0);
        assert_eq!(table(b"\x07x-delayd\x40\x04\0\0\0\0\0\0"), 2, "2.5");
        assert_eq!(table(b"\x07x-delayD\x01\0\0\0\x19"), 2, "2.5");
        assert_eq!(table(b"\x07x-delayt\x01"), 0);
        assert_eq!(table(b"\x05delayI\0\0\x13\x88"), 0);
    }
}
