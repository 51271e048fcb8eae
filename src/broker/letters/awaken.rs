//! Delayed exchanges: a message with an `x-delay` header waits before it is routed, as in RabbitMQ's plug-in.
//!
//! ```text
//! publish, x-delay 5000 ──→ delayed exchange ──→ its hidden queue ──→ the slot of its time: a level of that
//!                                                                           │ when its time has come
//!                                       queues ◄── routed by x-delayed-type ┴── x-delay -5000
//! ```
//!
//! The hidden queue is one with priorities (`queues::levels`) that nobody can name; a message waits in it as
//! in any queue: confirmed when it is durable, out of memory when that is short, restored at a start, gone
//! with its exchange. When a slot opens is decided in `queues::delay_wheel`.
//!
//! Always true: a message goes from slot to slot, and from there to the queues, published and settled in one
//! group, so that a power cut leaves it in one place; it is routed no earlier than its time, of the broker's,
//! and in the order of these times; without room it stays, late but never lost.

use leveret_amqp::field::{Table, TableWriter};
use leveret_amqp::props::{Properties, PropertyEdit};
use leveret_core::command::{ExchangeId, QueueId};
use leveret_core::mem::MessageId;

use super::Post;
use super::write::Letter;
use crate::Context;
use crate::arguments::copy_flags;
use crate::queue::Queue;
use crate::queue::Taken;
use crate::queues::LevelChoice;
use crate::queues::Scratch;
use crate::queues::take_step;
use crate::queues::{Held, NARROWEST_PUBLISHED, Next, Slot, delay_ms};

/// Steps that a turn takes to route or move delayed messages; some messages take several ([`take_step`]).
const ROUSE_STEP: u32 = 512;
/// A message due more than this many milliseconds after its slot began is not held but moved to a narrower slot.
const NEAR_MS: u64 = 1 << 14;
/// Bytes of memory that must be left when a message is held.
const HELD_ROOM_BYTES: usize = 16 << 10;

/// The result of one step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Done,
    /// The step has to wait for something else.
    Blocked,
}

impl Post<'_> {
    // ---- the hidden queue

    // ---- out of the hidden queue

    /// Routes or moves the delayed messages that are due, as many as a turn has time for.
    pub(crate) fn route_due_delayed(&mut self, cx: &mut Context<'_>) {
        self.queues.delay_wheel_mut().note_change();
        let mut left = ROUSE_STEP;
        while left > 0 {
            let before = cx.work.units();
            cx.work.charge(1);
            let step = match self.queues.delay_wheel().next(cx.journal.time_ms()) {
                None => return,
                Some(Next::Slot(key, level)) => self.open_slot(cx, key, level),
                Some(Next::Held(held)) => self.wake_held(cx, held),
            };
            if step == Step::Blocked {
                let room = self.room_count(cx.journal, cx.messages);
                self.queues.delay_wheel_mut().note_stuck(room);
                return;
            }
            take_step(&mut left, before, cx.work);
        }
    }

    /// Routes, holds or moves the first message of a slot that has begun.
    fn open_slot(&mut self, cx: &mut Context<'_>, key: u64, level: QueueId) -> Step {
        let record = self.queues.records_mut().get_mut(level.index());
        let is_it = |record: &&mut Queue| {
            record.times.due_ms == key && record.delayed_exchange.is_some() && !record.dying
        };
        let Some(record) = record.filter(is_it) else {
            self.queues.delay_wheel_mut().pop_slot();
            return Step::Done;
        };
        if record.backlog.ready() == 0 {
            record.times.due_ms = u64::MAX;
            self.queues.delay_wheel_mut().pop_slot();
            return Step::Done;
        }
        let Some((first, message, is_logged)) = self.queues.first_in_memory(level) else {
            self.queues.want_pages(level);
            return Step::Blocked;
        };
        let (slot, now_ms, due_ms) =
            (Slot::of_key(key), cx.journal.time_ms(), self.queues.due_ms(cx, message));
        let is_room =
            self.queues.delay_wheel().holds_none() || cx.messages.has_ordinary_room(HELD_ROOM_BYTES);
        if self.queues.delay_wheel().has_place() && is_room && due_ms <= slot.start_ms.saturating_add(NEAR_MS)
        {
            let taken = self.queues.take_first(cx, level, first);
            self.queues.at_mut(level).unsettled.count += 1;
            self.queues.delay_wheel_mut().hold(due_ms, (level, taken.message, taken.logged));
            return Step::Done;
        }
        let narrowest =
            if slot.tier().is_some_and(|tier| tier <= NARROWEST_PUBLISHED) { 0 } else { NARROWEST_PUBLISHED };
        let whole = self.queues.records().queue_of_level(level);
        let moved = slot.widest_below().map(|widest| Slot::of(due_ms, slot.start_ms, narrowest, widest));
        match moved.and_then(|slot| self.queues.level_of_slot(self.quota, whole, slot)) {
            Some(target) => self.move_first(cx, (level, message, is_logged), target),
            None if due_ms <= now_ms => {
                let Some(letter) = self.write_awakened(cx, level, message) else { return Step::Blocked };
                self.send_first(cx, level, letter, is_logged);
                Step::Done
            }
            None => {
                // The slot is the narrowest, or there is no room for a narrower one: the message waits here,
                // with those behind it.
                self.log_no_slot(level, slot);
                self.queues.delay_wheel_mut().pop_slot();
                self.queues.at_mut(level).times.due_ms = u64::MAX;
                self.queues.register_slot(level, Slot { start_ms: due_ms, ..slot });
                Step::Done
            }
        }
    }

    /// Logs, once a minute at most, why delayed messages are late.
    #[cold]
    fn log_no_slot(&mut self, level: QueueId, slot: Slot) {
        let is_room = slot.widest_below().is_none();
        if !is_room && self.queues.is_minute_to_say() {
            let exchange = self.queues.at(level).delayed_exchange;
            let name = exchange.map(|exchange| self.topology.exchange(exchange).name.escape_debug());
            log::warn!(
                "exchange '{}': queues_max has no room for another span of time, which takes a place like a \
                 queue: delayed messages wait for those before them, and are late; raise queues_max",
                name.into_iter().flatten().collect::<String>()
            );
        }
    }

    /// Moves the first message of a slot to a narrower one.
    fn move_first(
        &mut self,
        cx: &mut Context<'_>,
        (level, message, is_logged): (QueueId, MessageId, bool),
        target: QueueId,
    ) -> Step {
        let bytes = cx.messages.stream_len(message) as u64;
        cx.work.charge_octets(cx.messages.body_len(message) as usize);
        if !self.takes_letter(cx, (message, bytes), &[target]) {
            return Step::Blocked;
        }
        let Scratch { properties, rewritten } = self.queues.scratch_mut();
        let properties = cx.messages.properties(message, properties);
        let rewritten = &mut rewritten[..properties.len()];
        rewritten.copy_from_slice(properties);
        let flags = copy_flags(cx.messages, message, &Properties::trusted(rewritten));
        let Ok(copy) = cx.messages.copy_with_properties(message, rewritten, flags) else {
            return Step::Blocked;
        };
        let arrived_ms = cx.messages.arrived_ms(message);
        cx.messages.set_arrived_ms(copy, arrived_ms);
        self.letters.targets.clear();
        self.letters.targets.push(target);
        self.send_first(cx, level, Letter::Copy(copy, 1), is_logged);
        Step::Done
    }

    /// Routes a held message that is due.
    fn wake_held(&mut self, cx: &mut Context<'_>, held: Held) -> Step {
        let Some(letter) = self.write_awakened(cx, held.queue, held.message) else { return Step::Blocked };
        self.send(cx, letter, held.logged().is_some(), |post, cx| {
            post.queues.delay_wheel_mut().pop_held();
            post.let_go_of_held(cx, held);
        });
        Step::Done
    }

    /// Settles a held message that was routed.
    pub(crate) fn let_go_of_held(&mut self, cx: &mut Context<'_>, held: Held) {
        let (message, logged) = (held.message, held.logged());
        self.queues.forget_taken(
            cx,
            held.queue,
            &Taken { message, offset: 0, logged, redelivered: false, requeues: 0 },
        );
        self.queues.at_mut(held.queue).unsettled.count -= 1;
        self.letters.perhaps_done.push(held.queue);
    }

    /// The letter for a delayed message that is due; `None`: there is no room for it now. Changes no queue.
    fn write_awakened(&mut self, cx: &mut Context<'_>, level: QueueId, message: MessageId) -> Option<Letter> {
        let mut scratch = self.queues.lend_scratch();
        let mut targets = core::mem::take(&mut self.letters.targets);
        let letter = self.address_awakened(cx, (level, message), &mut scratch, &mut targets);
        self.queues.return_scratch(scratch);
        self.letters.targets = targets;
        letter
    }

    fn address_awakened(
        &mut self,
        cx: &mut Context<'_>,
        (level, message): (QueueId, MessageId),
        scratch: &mut Scratch,
        targets: &mut Vec<QueueId>,
    ) -> Option<Letter> {
        let Some(exchange) = self.queues.at(level).delayed_exchange else {
            return Some(Letter::Nowhere);
        };
        cx.work.charge(8);
        cx.work.charge_octets(cx.messages.body_len(message) as usize);
        let properties = Properties::trusted(cx.messages.properties(message, &mut scratch.properties));
        let headers = properties.headers().unwrap_or(Table::EMPTY);
        let mut writer = self.writer_of_letter(&mut scratch.rewritten);
        let mut fill = |writer: &mut TableWriter<'_, '_>| {
            let awakened = -(delay_ms(headers) as i64);
            writer.sorted(headers, &|_| true, &["x-delay"], &mut |writer, name| match i32::try_from(awakened)
            {
                Ok(short) => writer.int(name, short),
                Err(_) => writer.long(name, awakened),
            })
        };
        if properties.write_with_headers(PropertyEdit::default(), &mut fill, &mut writer).is_err() {
            return Some(self.drop_awakened(exchange, "its headers fill a frame"));
        }
        let written = Properties::trusted(writer.written());
        let key: heapless::Vec<u8, 255> =
            heapless::Vec::from_slice(cx.messages.routing_key(message)).unwrap_or_default();
        let headers = written.headers().unwrap_or(Table::EMPTY);
        if let Err(fault) = self.route(cx.work, exchange, &key, headers, targets) {
            return Some(self.drop_awakened(exchange, &fault.text));
        }
        let (kept, _) = self.queues.records().keep_willing(cx.messages, message, targets, None);
        if targets.is_empty() {
            self.counters.unroutable_dropped += 1;
            return Some(Letter::Nowhere);
        }
        self.queues.choose_levels_for(cx, self.quota, LevelChoice::of(&written, 0), targets);
        let (bytes, body_bytes) = (cx.messages.stream_len(message) as u64, cx.messages.body_len(message));
        let bytes = bytes + written.as_bytes().len() as u64;
        let logged = self.queues.logged_targets(cx, message, targets);
        if !cx.journal.fits_commit(bytes, body_bytes.into(), logged)
            || targets.len() > self.queues.fan_out_max()
        {
            return Some(self.drop_awakened(exchange, "it goes to more queues than commit_bytes_max allows"));
        }
        if !self.takes_letter(cx, (message, bytes), targets) {
            return None;
        }
        let flags = copy_flags(cx.messages, message, &written);
        let copy = cx.messages.copy_with_properties(message, written.as_bytes(), flags);
        copy.ok().map(|copy| Letter::Copy(copy, kept))
    }

    /// Drops a delayed message that cannot be routed, and logs why, once a minute at most.
    #[cold]
    fn drop_awakened(&mut self, exchange: ExchangeId, why: &str) -> Letter {
        let name = self.topology.exchange(exchange).name.clone();
        if self.is_minute_to_say() {
            log::error!("exchange '{}': a delayed message is dropped: {why}", name.escape_debug());
        }
        Letter::Nowhere
    }
}
