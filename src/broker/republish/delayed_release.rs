//! Releases the messages of delayed exchanges when their `x-delay` is over, like RabbitMQ's plug-in.
//!
//! ```text
//! publish, x-delay 5000 ──→ delayed exchange ──→ its hidden queue ──→ the slot of its time: a level of that queue
//!                                                                           │ when it is due
//!                                       queues ◄── routed by x-delayed-type ┴── x-delay -5000
//! ```
//!
//! The hidden queue is a queue without a name. Its levels (`records::levels`) are the slots of a timing
//! wheel. A message in it is treated like a message in any queue: it is confirmed when it is durable, evicted
//! when memory is short, recovered at start, and deleted with its exchange. `flow::delayed` decides
//! when a slot is due.
//!
//! # Invariants
//! - When a message is moved to another slot or to its target queues, the publish and the settlement are one
//!   group in the log. After a power cut the message is therefore in exactly one place.
//! - A message is routed at its due time in broker time or later, and messages are routed in the order of
//!   their due times.
//! - While there is no capacity in the target queues, a due message stays in its slot, so it is late but not
//!   lost.

use leveret_amqp::Writer;
use leveret_amqp::delay::delay_ms;
use leveret_amqp::field::{Table, TableWriter};
use leveret_amqp::props::{HeadersEdit, Properties, PropertyEdit};
use leveret_core::command::{ExchangeId, QueueId};
use leveret_core::mem::MessageId;
use leveret_queues::{
    DueItem, HeldMessage, LevelChoice, NARROWEST_PUBLISHED, PlannedCopy, Queue, Scratch, Slot, Taken,
    copy_flags, subtract_steps,
};

use super::Republisher;
use super::dead_letter::{MORE_THAN_FRAME, Republication};
use crate::Context;

/// Steps per turn for routing or moving delayed messages; a message may take several steps ([`subtract_steps`]).
const DELAYED_STEPS_PER_TURN: u32 = 512;
/// A message that is due more than this many milliseconds after the start of its slot is moved to a narrower
/// slot and not held in memory.
const HELD_AHEAD_MS_MAX: u64 = 1 << 14;
/// Bytes of memory that must remain free when a message is held.
const HELD_FREE_BYTES: usize = 16 << 10;

/// Result of one step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum ReleaseStep {
    Done,
    /// The step must wait for capacity, or until a message is read back.
    Blocked,
}

/// Writes the properties with the negative delay, as the plug-in does. If they would not fit into a frame, `x-delay` is left
/// out. Returns whether it is.
fn write_negative_delay(properties: Properties<'_>, writer: &mut Writer<'_>) -> bool {
    let headers = properties.headers().unwrap_or(Table::EMPTY);
    let negative_delay = -(delay_ms(headers) as i64);
    let mut fill = |table: &mut TableWriter<'_, '_>| {
        table.sorted(headers, &|_| true, &["x-delay"], &mut |table, name| match i32::try_from(negative_delay)
        {
            Ok(short) => table.int(name, short),
            Err(_) => table.long(name, negative_delay),
        })
    };
    let is_shortened = properties.write_with_headers(PropertyEdit::default(), &mut fill, writer).is_err();
    if is_shortened {
        // Without x-delay no other delayed exchange delays the message again.
        let edit = PropertyEdit { headers: HeadersEdit::Without("x-delay"), ..PropertyEdit::default() };
        let written = properties.write_with(edit, writer);
        assert!(written.is_ok(), "properties that arrived in a frame fit into a frame");
    }
    is_shortened
}

impl Republisher<'_> {
    /// Routes or moves the delayed messages that are due until the turn's steps are used up.
    pub(crate) fn route_due_delayed(&mut self, cx: &mut Context<'_>) {
        self.queues.delay_wheel_mut().note_change();
        let mut left = DELAYED_STEPS_PER_TURN;
        while left > 0 {
            let before = cx.work.units();
            cx.work.charge(1);
            let step = match self.queues.delay_wheel().next(cx.pending_writes.time_ms()) {
                None => return,
                Some(DueItem::Slot(key, level)) => self.open_slot(cx, key, level),
                Some(DueItem::Held(held)) => self.route_held(cx, held),
            };
            if step == ReleaseStep::Blocked {
                let capacity_freed = self.freed_count(cx.pending_writes, cx.messages);
                self.queues.delay_wheel_mut().note_stuck(capacity_freed);
                return;
            }
            subtract_steps(&mut left, before, cx.work);
        }
    }

    /// Routes, holds or moves the first message of a slot that is due.
    fn open_slot(&mut self, cx: &mut Context<'_>, key: u64, level: QueueId) -> ReleaseStep {
        let record = self.queues.records_mut().get_mut(level.index());
        let is_it = |record: &&mut Queue| {
            record.times.due_ms == key && record.delayed_exchange().is_some() && !record.is_deleted()
        };
        let Some(record) = record.filter(is_it) else {
            self.queues.delay_wheel_mut().pop_slot();
            return ReleaseStep::Done;
        };
        if record.backlog.ready() == 0 {
            record.times.due_ms = u64::MAX;
            self.queues.delay_wheel_mut().pop_slot();
            return ReleaseStep::Done;
        }
        let Some((first, message, is_logged)) = self.queues.first_in_memory(level) else {
            self.queues.request_read(level);
            return ReleaseStep::Blocked;
        };
        let (slot, now_ms, due_ms) =
            (Slot::of_key(key), cx.pending_writes.time_ms(), self.queues.due_ms(cx, message));
        let has_memory =
            self.queues.delay_wheel().holds_none() || cx.messages.has_ordinary_room(HELD_FREE_BYTES);
        if self.queues.delay_wheel().has_place()
            && has_memory
            && due_ms <= slot.start_ms.saturating_add(HELD_AHEAD_MS_MAX)
        {
            let taken = self.queues.take_first(cx, level, first);
            self.queues.at_mut(level).unsettled.count += 1;
            self.queues.delay_wheel_mut().hold(due_ms, level, taken.message, taken.log_offset);
            return ReleaseStep::Done;
        }
        let narrowest =
            if slot.tier().is_some_and(|tier| tier <= NARROWEST_PUBLISHED) { 0 } else { NARROWEST_PUBLISHED };
        let hidden_queue = self.queues.records().queue_of_level(level);
        let moved = slot.widest_below().map(|widest| Slot::of(due_ms, slot.start_ms, narrowest, widest));
        match moved.and_then(|slot| self.queues.level_of_slot(self.quota, hidden_queue, slot)) {
            Some(target) => self.move_first(cx, level, message, is_logged, target),
            None if due_ms <= now_ms => {
                let Some(republication) = self.write_due(cx, level, message) else {
                    return ReleaseStep::Blocked;
                };
                self.publish_and_remove_first(cx, level, republication, is_logged);
                ReleaseStep::Done
            }
            None => {
                // The slot is the narrowest one, or there is no capacity for a narrower one. The message
                // waits at the front of this slot, and so do the messages behind it, although some may be due
                // earlier.
                self.log_no_slot(level, slot);
                self.queues.delay_wheel_mut().pop_slot();
                self.queues.at_mut(level).times.due_ms = u64::MAX;
                self.queues.register_slot(level, Slot { start_ms: due_ms, ..slot });
                ReleaseStep::Done
            }
        }
    }

    /// Logs, at most once a minute, that delayed messages are late because there is no capacity for a
    /// narrower slot.
    #[cold]
    fn log_no_slot(&mut self, level: QueueId, slot: Slot) {
        let has_memory = slot.widest_below().is_none();
        if !has_memory && self.queues.should_log_level_shortage() {
            let exchange = self.queues.at(level).delayed_exchange();
            let name = exchange.map(|exchange| self.topology.exchange(exchange).name.escape_debug());
            log::warn!(
                "exchange '{}': there is no memory for another queue, and a delay slot counts like one: delayed \
                 messages wait for earlier ones and are late; raise memory_limit",
                name.into_iter().flatten().collect::<String>()
            );
        }
    }

    /// Moves the first message of a slot to the narrower slot `target`.
    fn move_first(
        &mut self,
        cx: &mut Context<'_>,
        level: QueueId,
        message: MessageId,
        is_logged: bool,
        target: QueueId,
    ) -> ReleaseStep {
        let bytes = cx.messages.stream_len(message) as u64;
        cx.work.charge_octets(cx.messages.body_len(message) as usize);
        if !self.has_capacity_for(cx, PlannedCopy { message, bytes }, &[target]) {
            return ReleaseStep::Blocked;
        }
        let Scratch { properties, rewritten } = self.queues.scratch_mut();
        let properties = cx.messages.properties(message, properties);
        let rewritten = &mut rewritten[..properties.len()];
        rewritten.copy_from_slice(properties);
        let flags = copy_flags(cx.messages, message, &Properties::trusted(rewritten));
        let Ok(copy) = cx.messages.copy_with_properties(message, rewritten, flags) else {
            return ReleaseStep::Blocked;
        };
        let arrived_ms = cx.messages.arrived_ms(message);
        cx.messages.set_arrived_ms(copy, arrived_ms);
        self.republish.targets.clear();
        self.republish.targets.push(target);
        self.publish_and_remove_first(cx, level, Republication::Copy(copy, 1), is_logged);
        ReleaseStep::Done
    }

    /// Routes a held message that is due.
    fn route_held(&mut self, cx: &mut Context<'_>, held: HeldMessage) -> ReleaseStep {
        let Some(republication) = self.write_due(cx, held.queue, held.message) else {
            return ReleaseStep::Blocked;
        };
        self.publish_and_remove(cx, republication, held.log_offset().is_some(), |republisher, cx| {
            republisher.queues.delay_wheel_mut().pop_held();
            republisher.settle_held(cx, held);
        });
        ReleaseStep::Done
    }

    /// Settles a held message that was routed.
    pub(crate) fn settle_held(&mut self, cx: &mut Context<'_>, held: HeldMessage) {
        let (message, log_offset) = (held.message, held.log_offset());
        self.queues.drop_taken(
            cx,
            held.queue,
            &Taken { message, order: 0, log_offset, redelivered: false, requeues: 0 },
        );
        self.queues.at_mut(held.queue).unsettled.count -= 1;
        self.republish.maybe_unreferenced.push(held.queue);
    }

    /// Writes and routes the copy of a delayed message that is due. Returns `None` if there is no capacity
    /// for it now. Changes no queue.
    fn write_due(
        &mut self,
        cx: &mut Context<'_>,
        level: QueueId,
        message: MessageId,
    ) -> Option<Republication> {
        let mut scratch = self.queues.lend_scratch();
        let mut targets = core::mem::take(&mut self.republish.targets);
        let republication = self.write_and_route_due(cx, level, message, &mut scratch, &mut targets);
        self.queues.return_scratch(scratch);
        self.republish.targets = targets;
        republication
    }

    fn write_and_route_due(
        &mut self,
        cx: &mut Context<'_>,
        level: QueueId,
        message: MessageId,
        scratch: &mut Scratch,
        targets: &mut Vec<QueueId>,
    ) -> Option<Republication> {
        let Some(exchange) = self.queues.at(level).delayed_exchange() else {
            return Some(Republication::Dropped);
        };
        cx.work.charge(8);
        cx.work.charge_octets(cx.messages.body_len(message) as usize);
        let properties = Properties::trusted(cx.messages.properties(message, &mut scratch.properties));
        let mut writer = self.copy_properties_writer(&mut scratch.rewritten);
        let is_shortened = write_negative_delay(properties, &mut writer);
        let written = Properties::trusted(writer.written());
        let key: heapless::Vec<u8, 255> =
            heapless::Vec::from_slice(cx.messages.routing_key(message)).unwrap_or_default();
        let headers = written.headers().unwrap_or(Table::EMPTY);
        if let Err(fault) = self.route(cx.work, exchange, &key, headers, targets) {
            return Some(self.drop_due(exchange, &fault.text));
        }
        let (accepting_count, _) = self.queues.records().keep_accepting(cx.messages, message, targets, None);
        if targets.is_empty() {
            self.counters.unroutable_dropped += 1;
            return Some(Republication::Dropped);
        }
        self.queues.choose_levels_for(cx, self.quota, LevelChoice::of(&written, 0), targets);
        let (bytes, body_bytes) = (cx.messages.stream_len(message) as u64, cx.messages.body_len(message));
        let bytes = bytes + written.as_bytes().len() as u64;
        let logged = self.queues.logged_target_count(cx, message, targets);
        if !cx.pending_writes.fits_commit(bytes, body_bytes.into(), logged)
            || targets.len() > self.queues.fan_out_max()
        {
            return Some(self.drop_due(exchange, "it is routed to more queues than commit_bytes_max allows"));
        }
        if !self.may_move_to(cx, level, PlannedCopy { message, bytes }, targets) {
            return None;
        }
        let flags = copy_flags(cx.messages, message, &written);
        let copy = cx.messages.copy_with_properties(message, written.as_bytes(), flags).ok()?;
        if is_shortened {
            let name = self.topology.exchange(exchange).name.clone();
            let name = name.escape_debug();
            self.note_shortened(&format_args!("exchange '{name}': x-delay{MORE_THAN_FRAME}"));
        }
        Some(Republication::Copy(copy, accepting_count))
    }

    /// Drops a delayed message that cannot be routed, and logs why, at most once a minute.
    #[cold]
    fn drop_due(&mut self, exchange: ExchangeId, why: &str) -> Republication {
        let name = self.topology.exchange(exchange).name.clone();
        if self.should_log_this_minute() {
            log::error!("exchange '{}': a delayed message is dropped: {why}", name.escape_debug());
        }
        Republication::Dropped
    }
}
