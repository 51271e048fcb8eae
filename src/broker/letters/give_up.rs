//! Queues give messages up, in bounded steps: rejected, expired, and over the length limit.
//!
//! Without dead letters such a message is dropped at once. With them it goes on (`write`), which may need
//! room, or the message may have to be read back first; then its queue is on a list, which is gone through in
//! every turn as long as messages are given up, and then again when room was made.
//!
//! Always true: a message that has nowhere to go yet is in its queue, as it was, or among the rejected
//! messages, which nobody is given any more; a length limit drops messages from the front.

use leveret_amqp::Full;
use leveret_amqp::field::{Array, ArrayWriter, Table, TableWriter, Value};
use leveret_core::command::{QueueId, Refusal};
use leveret_core::mem::{MessageFlags, MessageId, sort_by_key};

use super::Post;
use super::write::Letter;
use crate::Context;
use crate::queue::Front;
use crate::queues::{Patience, take_step};

/// Expired messages that one delivery turn of a queue takes up.
const DELIVER_STEP: u32 = 64;
/// Steps that a turn takes to give messages up; some messages take several ([`take_step`]).
const SHED_STEP: u32 = 512;
/// Messages that a command gives up at once.
const COMMAND_STEP: u32 = 8;
/// Queues that one turn asks to give messages up.
const QUEUES_STEP: usize = 64;

/// What one turn may still do to give messages up.
#[derive(Debug)]
pub(crate) struct Turn {
    has_begun: bool,
    /// Queues still to be asked.
    queues: usize,
    /// Steps still to be taken.
    left: u32,
}

impl Turn {
    pub(crate) const fn new() -> Self {
        Self { has_begun: false, queues: 0, left: SHED_STEP }
    }
}

/// Whether the expired messages at the front of a queue are gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Cleared {
    Yes,
    /// Some expired messages are left for the next step.
    NotYet,
    /// An expired message is left whose dead letter has nowhere to go now.
    No,
}

impl Post<'_> {
    /// Lets queues give messages up, as many as a turn has time for, or up to an unused queue that has
    /// expired: the caller deletes it and asks again.
    pub(crate) fn shed(&mut self, cx: &mut Context<'_>, turn: &mut Turn) -> Option<QueueId> {
        if !turn.has_begun {
            turn.has_begun = true;
            self.queues.take_due(cx.journal);
            if !self.queues.may_give_up(cx.journal, || self.room_count(cx.journal, cx.messages)) {
                return None;
            }
            if self.queues.may_wake(cx.journal, || self.room_count(cx.journal, cx.messages)) {
                self.route_due_delayed(cx);
            }
            let room = self.room_count(cx.journal, cx.messages);
            self.queues.shedding_mut().begin(room);
            turn.queues = self.queues.shedding_mut().len().min(QUEUES_STEP);
        }
        while turn.queues > 0 && turn.left > 0 {
            turn.queues -= 1;
            let Some(queue) = self.queues.shedding_mut().pop() else { break };
            let before = turn.left;
            self.queues.at_mut(queue).listed.is_shedding = false;
            let is_unused = self.queues.records().is_unused_for_too_long(cx.journal, queue);
            if is_unused && !self.queues.at(queue).dying && !cx.journal.is_crowded() {
                self.queues.shedding_mut().note_step(true);
                return Some(queue);
            }
            let is_done = self.shed_from(cx, queue, is_unused, &mut turn.left);
            if !is_done && !core::mem::replace(&mut self.queues.at_mut(queue).listed.is_shedding, true) {
                self.queues.shedding_mut().push(queue);
            }
            self.queues.shedding_mut().note_step(is_done || turn.left < before);
        }
        let room = self.room_count(cx.journal, cx.messages);
        self.queues.shedding_mut().end(room);
        None
    }

    /// Lets one queue give messages up; `false`: there are more.
    fn shed_from(&mut self, cx: &mut Context<'_>, queue: QueueId, is_unused: bool, left: &mut u32) -> bool {
        if self.queues.at(queue).dying {
            return true;
        }
        if is_unused {
            // Too much is to be written now for the queue to be deleted.
            return false;
        }
        // Each kind stops by itself: a letter without room may stand before messages that need none.
        let are_all_sent = self.dead_letter_rejected_all(cx, queue, left);
        let has_expired = self.expire_by(cx, queue, left, Patience::OneTurn);
        let is_trimmed = self.trim_by(cx, queue, left);
        // Rejected messages wait apart: the first message may go, whether there is room for their letters or
        // not.
        if has_expired && self.queues.at(queue).has_expiry() {
            self.queues.schedule(cx, queue);
            if self.queues.at(queue).front == Front::Expired {
                self.queues.unblock_front(queue);
            }
        }
        if !self.queues.records().is_first_level(queue) {
            self.queues.look_at_first_level(queue);
        }
        are_all_sent && has_expired && is_trimmed
    }

    // ---- messages over the length limit

    /// Drops or dead-letters the oldest messages of a queue over its length limit. During a commit dead
    /// letters wait for its end: the messages that it publishes have been promised room.
    pub(crate) fn trim_length(&mut self, cx: &mut Context<'_>, queue: QueueId) {
        let (queue, mut left) = (self.queues.records().queue_of_level(queue), COMMAND_STEP);
        if !self.queues.records().has_dead_letters(queue) {
            self.queues.drop_excess(cx, queue);
        } else if cx.journal.is_grouping() || !self.trim_by(cx, queue, &mut left) {
            self.queues.note_shed_anew(queue);
        }
    }

    /// Checks a queue after a message went or was requeued: it may be over its length limit, and another
    /// message may be first.
    #[cold]
    pub(crate) fn enforce_limits(&mut self, cx: &mut Context<'_>, queue: QueueId) {
        if self.queues.at(queue).settings.limits_length {
            self.trim_length(cx, queue);
        }
        if self.queues.at(queue).settings.may_expire {
            self.queues.schedule(cx, queue);
        }
    }

    /// Checks the queues that a message was pushed to: they may be over their length limit, and the message
    /// may have expired already.
    #[cold]
    pub(crate) fn enforce_limits_after_push(
        &mut self,
        cx: &mut Context<'_>,
        message: MessageId,
        queues: &[QueueId],
    ) {
        for &queue in queues {
            self.queues.note_arrival(cx, queue, message);
        }
        for &queue in queues {
            let is_over = self.queues.is_over_after_push(queue);
            if is_over {
                self.trim_length(cx, queue);
            }
            let has_expired = self.expire_arrival(cx, queue, message);
            if self.queues.at(queue).settings.may_expire && (is_over || has_expired) {
                self.queues.schedule(cx, queue);
            }
        }
    }

    /// Dead-letters a message that these queues refused. The publisher is told of the refusal, so a letter
    /// without room is dropped.
    pub(crate) fn dead_letter_refused(
        &mut self,
        cx: &mut Context<'_>,
        message: MessageId,
        queues: &[QueueId],
    ) {
        for &queue in queues {
            if let Some(letter) = self.write_letter(cx, queue, message, Reason::MaxLength) {
                self.post_letter(cx, letter);
            }
        }
    }

    fn trim_by(&mut self, cx: &mut Context<'_>, queue: QueueId, left: &mut u32) -> bool {
        let queue = self.queues.records().queue_of_level(queue);
        while self.queues.records().is_over_length(queue) {
            let (before, level) = (cx.work.units(), self.queues.records().first_level(queue));
            let is_gone = *left > 0 && self.give_up_first(cx, level, Reason::MaxLength);
            if !is_gone {
                return false;
            }
            self.queues.note_taken_off(queue, level);
            self.queues.records().charge_levels(cx.work);
            take_step(left, before, cx.work);
        }
        true
    }

    /// Gives up the first message of a queue, or level: it is dead-lettered where its queue does that; `false`: not now.
    fn give_up_first(&mut self, cx: &mut Context<'_>, queue: QueueId, reason: Reason) -> bool {
        if !self.queues.records().has_dead_letters(queue) {
            return self.queues.drop_first(cx, queue);
        }
        if self.queues.first(queue).is_none() {
            return true;
        }
        let Some((_, message, is_logged)) = self.queues.first_in_memory(queue) else {
            self.queues.want_pages(queue);
            return false;
        };
        let Some(letter) = self.write_letter(cx, queue, message, reason) else { return false };
        self.send_first(cx, queue, letter, is_logged);
        true
    }

    /// Sends the first message of a queue, or level, on as this letter.
    pub(super) fn send_first(
        &mut self,
        cx: &mut Context<'_>,
        queue: QueueId,
        letter: Letter,
        is_logged: bool,
    ) {
        self.send(cx, letter, is_logged, |post, cx| {
            let Some(first) = post.queues.first(queue) else {
                panic!("a letter takes nothing from its queue")
            };
            let taken = post.queues.take_first(cx, queue, first);
            post.queues.forget_taken(cx, queue, &taken);
        });
    }

    // ---- rejected messages

    /// Gives up a delivery that its consumer rejects, or that is over the delivery limit: it is on no list,
    /// and counts for no consumer any more.
    pub(crate) fn dead_letter_delivery(
        &mut self,
        cx: &mut Context<'_>,
        queue: QueueId,
        index: usize,
        reason: Reason,
    ) {
        self.queues.reject(cx.messages, queue, index, reason);
        let mut left = COMMAND_STEP;
        if self.queues.at(queue).listed.is_shedding || !self.dead_letter_rejected_all(cx, queue, &mut left) {
            self.queues.note_shed(queue);
        }
    }

    fn dead_letter_rejected_all(&mut self, cx: &mut Context<'_>, queue: QueueId, left: &mut u32) -> bool {
        while let Some(index) = self.queues.at(queue).backlog.first_rejected() {
            let before = cx.work.units();
            if *left == 0 || !self.dead_letter_rejected(cx, queue, index) {
                return false;
            }
            take_step(left, before, cx.work);
        }
        true
    }

    fn dead_letter_rejected(&mut self, cx: &mut Context<'_>, queue: QueueId, index: usize) -> bool {
        let delivery = &self.queues.deliveries()[index];
        let (is_logged, reason) = (delivery.logged.is_some(), delivery.death.unwrap_or(Reason::Rejected));
        let Some(message) = delivery.message else {
            self.queues.want_pages(queue);
            return false;
        };
        let Some(letter) = self.write_letter(cx, queue, message, reason) else { return false };
        self.send(cx, letter, is_logged, |post, cx| {
            post.queues.drop_rejected(cx, queue);
        });
        true
    }

    // ---- expired messages

    /// Expires a message with a time to live of 0 that came to a queue where no consumer waits, if it stands
    /// first. Says whether the queue was looked at.
    pub(crate) fn expire_arrival(
        &mut self,
        cx: &mut Context<'_>,
        queue: QueueId,
        message: MessageId,
    ) -> bool {
        let record = self.queues.at(queue);
        let is_due =
            cx.messages.flags(message).has(MessageFlags::DUE_AT_ONCE) || record.settings.message_ttl_ms == 0;
        // During a commit the dead letter waits for its end: the messages that the commit publishes have been
        // promised room.
        let waits = cx.journal.is_grouping() && record.settings.dead_letters;
        let looks = is_due && !self.queues.records().record_of_queue(queue).audience.is_ready();
        if looks && waits {
            self.queues.note_shed_anew(queue);
        } else if looks {
            self.expire_by(cx, queue, &mut 1, Patience::No);
        }
        looks
    }

    /// Gives up the expired messages at the front of a queue; `false`: not all of them now.
    #[inline(never)]
    pub(crate) fn expire_by(
        &mut self,
        cx: &mut Context<'_>,
        queue: QueueId,
        left: &mut u32,
        patience: Patience,
    ) -> bool {
        while self.queues.at(queue).settings.may_expire {
            if !self.queues.has_expired(cx, queue, patience) {
                break;
            }
            let before = cx.work.units();
            cx.work.charge(1);
            let is_gone = *left > 0 && self.give_up_first(cx, queue, Reason::Expired);
            if !is_gone {
                return false;
            }
            // A failed attempt is no step, or the queue would be asked again at once.
            take_step(left, before, cx.work);
        }
        true
    }

    /// Gives up the expired messages at the front of a queue before a delivery.
    pub(crate) fn expire_before_delivery(
        &mut self,
        cx: &mut Context<'_>,
        queue: QueueId,
        patience: Patience,
    ) -> Cleared {
        let mut left = DELIVER_STEP;
        if self.expire_by(cx, queue, &mut left, patience) {
            return Cleared::Yes;
        }
        self.queues.at_mut(queue).front = Front::Expired;
        self.queues.note_shed(queue);
        if left < DELIVER_STEP { Cleared::NotYet } else { Cleared::No }
    }

    /// Schedules the look at a queue's first message anew, for one was taken from before it.
    #[cold]
    pub(crate) fn expire_behind(&mut self, cx: &mut Context<'_>, queue: QueueId) {
        self.expire_by(cx, queue, &mut { DELIVER_STEP }, Patience::No);
        self.queues.schedule(cx, queue);
    }
}

// What a dead letter carries: why, when and from where it was given up, in RabbitMQ's words.
//
// ```text
// x-death              array, the last death first │ count reason queue time exchange routing-keys │ …
// x-first-death-reason, x-first-death-queue, x-first-death-exchange       of the first of all
// ```
//
// These headers stand among the others in the order of all names.
//
// Always true: x-death has one entry for each queue and reason, with a count; a letter that comes to a queue
// once more without anybody having rejected it in between is going round in circles by itself.

/// Entries of x-death that are looked at for others of their queue and reason: a client may have made up any
/// number.
const GROUPED_MAX: usize = 32;
/// The headers that a first death writes; a further death writes x-death alone.
const OWN: [&str; 4] = ["x-death", "x-first-death-exchange", "x-first-death-queue", "x-first-death-reason"];

/// Why a queue gives a message up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reason {
    /// A consumer rejected the message, or nobody wants it any more.
    Rejected,
    /// The message's time to live is over.
    Expired,
    /// The queue is over its length limit.
    MaxLength,
    /// The message is over the delivery limit.
    DeliveryLimit,
    /// The other side of a bridge does not take the message; the number is the cause's place among the
    /// parkings.
    Parked(u8),
}

/// Why a bridge sets messages aside, which bridge, and to which queue.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Parking {
    pub(crate) bridge: Box<str>,
    pub(crate) queue: Box<str>,
    pub(crate) why: Refusal,
}

impl Reason {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Rejected => "rejected",
            Self::Expired => "expired",
            Self::MaxLength => "maxlen",
            Self::DeliveryLimit => "delivery_limit",
            // A parked message has headers of its own, see `parked`.
            Self::Parked(_) => "parked",
        }
    }
}

/// One death, and the headers of the message before it.
pub(crate) struct Death<'a> {
    pub(crate) reason: Reason,
    pub(crate) queue: &'a str,
    /// The time of the death, in seconds since 1970.
    pub(crate) unix_s: u64,
    pub(crate) exchange: &'a str,
    pub(crate) routing_key: &'a [u8],
    /// The expiration property that the message had.
    pub(crate) expiration: Option<&'a [u8]>,
    pub(crate) headers: Table<'a>,
    /// The letter has another routing key, so the CC header goes.
    pub(crate) drops_copies: bool,
    /// The headers may be too long with this death to keep BCC out of them later, so the BCC header goes.
    pub(crate) drops_blind: bool,
}

impl<'a> Death<'a> {
    /// The x-death entries before this death.
    fn before(&self) -> Option<Array<'a>> {
        self.headers.get("x-death").and_then(|value| value.as_array())
    }

    /// Whether an older death is of the same queue, for the same reason.
    fn is_same(&self, value: Value<'_>) -> bool {
        let is = |death: Table<'_>, name, text: &str| {
            death.get(name).and_then(|value| value.as_bytes()) == Some(text.as_bytes())
        };
        let death = value.as_table();
        death.is_some_and(|death| is(death, "queue", self.queue) && is(death, "reason", self.reason.name()))
    }

    /// Writes the headers with this death; an x-death that is no list of deaths is dropped.
    pub(crate) fn write(&self, headers: &mut TableWriter<'_, '_>) -> Result<(), Full> {
        let own = match self.headers.get("x-death") {
            None => &OWN[..],
            Some(_) => &OWN[..1],
        };
        let drops_blind = self.drops_copies || self.drops_blind;
        let keeps = |name: &[u8]| !(self.drops_copies && name == b"CC" || drops_blind && name == b"BCC");
        headers.sorted(self.headers, &keeps, own, &mut |headers, name| match name {
            "x-first-death-exchange" => headers.text(name, self.exchange),
            "x-first-death-queue" => headers.text(name, self.queue),
            "x-first-death-reason" => headers.text(name, self.reason.name()),
            _ => headers.array(name, |deaths| match self.before() {
                Some(before) => self.write_deaths(deaths, before),
                None => deaths.table(|death| self.write_entry(death, true)),
            }),
        })
    }

    /// Writes this death and those before it: one entry for each queue and reason, which counts for all.
    fn write_deaths(&self, deaths: &mut ArrayWriter<'_, '_>, before: Array<'_>) -> Result<(), Full> {
        let mut known = heapless::Vec::<_, GROUPED_MAX>::new();
        let is_grouped = before.iter().try_for_each(|value| known.push(kind_of(value))).is_ok();
        // An entry without a count stands for itself, and beside others for all of its queue and reason.
        let uncounted = |kind| match known.len() {
            1 => 0,
            _ => known.iter().filter(|other| **other == kind).count() as i64,
        };
        let same = before.iter().find(|value| self.is_same(*value));
        match same.and_then(|value| value.as_table().zip(kind_of(value))) {
            Some((same, kind)) => {
                deaths.table(|death| count_once_more(death, same, uncounted(Some(kind))))?
            }
            None => deaths.table(|death| self.write_entry(death, false))?,
        }
        for (at, value) in before.iter().enumerate().filter(|(_, value)| !self.is_same(*value)) {
            let kind = kind_of(value);
            match value.as_table().filter(|death| death.get("count").is_none()) {
                _ if is_grouped && kind.is_some() && known[..at].contains(&kind) => {}
                Some(death) if is_grouped && known.len() > 1 => deaths.table(|entry| {
                    entry.long("count", uncounted(kind))?;
                    death.iter().try_for_each(|(name, value)| entry.value(name, value))
                })?,
                _ => deaths.value(value)?,
            }
        }
        Ok(())
    }

    /// Writes an x-death entry in RabbitMQ's order of fields, which is sorted for all but the very first
    /// entry.
    fn write_entry(&self, death: &mut TableWriter<'_, '_>, is_first: bool) -> Result<(), Full> {
        death.long("count", 1)?;
        if is_first {
            death.text("reason", self.reason.name())?;
            death.text("queue", self.queue)?;
            death.timestamp("time", self.unix_s)?;
            death.text("exchange", self.exchange)?;
            self.write_keys(death)?;
            return self.write_expiration(death);
        }
        death.text("exchange", self.exchange)?;
        self.write_expiration(death)?;
        death.text("queue", self.queue)?;
        death.text("reason", self.reason.name())?;
        self.write_keys(death)?;
        death.timestamp("time", self.unix_s)
    }

    fn write_keys(&self, death: &mut TableWriter<'_, '_>) -> Result<(), Full> {
        death.array("routing-keys", |keys| {
            keys.long_str(self.routing_key)?;
            let copies = self.headers.get("CC").and_then(|value| value.as_array());
            let copies = copies.into_iter().flatten().filter_map(|value| value.as_bytes());
            copies.into_iter().try_for_each(|key| keys.long_str(key))
        })
    }

    fn write_expiration(&self, death: &mut TableWriter<'_, '_>) -> Result<(), Full> {
        self.expiration.map_or(Ok(()), |text| death.long_str("original-expiration", text))
    }

    /// Calls `each` with the queues that the message passed since it was last rejected: to these it would go
    /// round in circles by itself. Says how many deaths were looked at.
    pub(crate) fn each_passed(&self, each: &mut dyn FnMut(&str)) -> usize {
        if self.reason == Reason::Rejected {
            return 0;
        }
        each(self.queue);
        let mut looked_at = 1;
        for death in self.before().into_iter().flatten().filter_map(|value| value.as_table()) {
            looked_at += 1;
            let text = |name| death.get(name).and_then(|value| value.as_bytes());
            if text("reason") == Some(Reason::Rejected.name().as_bytes()) {
                break;
            }
            // Bytes that are no UTF-8 are no queue's name.
            if let Some(queue) = text("queue").and_then(|queue| core::str::from_utf8(queue).ok()) {
                each(queue);
            }
        }
        looked_at
    }
}

/// The queue and the reason of an x-death entry, if it is one.
fn kind_of(value: Value<'_>) -> Option<(&[u8], &[u8])> {
    let death = value.as_table()?;
    let text = |name| death.get(name).and_then(|value| value.as_bytes());
    text("queue").zip(text("reason"))
}

/// Writes an older death of the same queue and reason with its count one higher, else as it was, sorted;
/// `uncounted`: the count if it has none.
fn count_once_more(death: &mut TableWriter<'_, '_>, same: Table<'_>, uncounted: i64) -> Result<(), Full> {
    let count = same.get("count").and_then(|value| value.as_integer()).unwrap_or(uncounted);
    death.long("count", count.saturating_add(1))?;
    // A client may have made the entry up; one with more fields than the broker writes keeps their order.
    let mut fields = heapless::Vec::<_, 16>::new();
    let others = || same.iter().filter(|(name, _)| *name != b"count");
    if others().try_for_each(|field| fields.push(field)).is_err() {
        return others().try_for_each(|(name, value)| death.value(name, value));
    }
    sort_by_key(&mut fields, |(name, _)| *name);
    fields.iter().try_for_each(|(name, value)| death.value(name, *value))
}
