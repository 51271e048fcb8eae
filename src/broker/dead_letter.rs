//! Dead letters: what a queue gives up goes on to where its arguments, or its policy, say.
//!
//! ```text
//! queue ── rejected, expired, too many, came back too often ──→ letter: the message with its death
//!   └── x-dead-letter-exchange, -routing-key ──→ route ──→ queues, but for circles
//! ```
//!
//! Always true: a message that the log has is settled in its queue and published to the others in one group,
//! so that a power cut leaves it in one place; nothing is settled before there is room for the letter, which
//! comes from a reserve, of memory and of the log: without room the message stays where it is, late but never
//! lost. What no queue is to have is dropped, as is what a full target refuses, as in RabbitMQ.

use crate::command::{ExchangeId, Name, QueueId, VhostId};
use crate::journal::{Journal, Urgency};
use crate::mem::{MessageFlags, MessageId};
use crate::wire::Writer;
use crate::wire::field::Table;
use crate::wire::props::{Edit, HeadersEdit, Properties, PropertyEdit};

use super::death::{Death, Reason};
use super::divisions::owner_of;
use super::state::Scratch;
use super::{Broker, Context};

/// Bytes of a body that are as much work as one step.
const BYTES_PER_UNIT: u32 = 512;
/// A letter may take as long to route as so many messages.
const ROUTING_TIMES: u32 = 8;
/// Publishers leave dead letters one part in so many of the log at most.
const LETTERS_LOG_PART: u64 = 8;
/// What a header frame has around the properties.
const HEADER_BYTES: usize = 22;

/// What is to go on when a message is given up.
#[must_use = "the message goes with it"]
pub(super) enum Letter {
    /// Nothing: no queue is to have it.
    Nowhere,
    /// A copy, to the queues in `Broker::letter_targets`.
    Copy(MessageId),
}

/// Where letters go.
struct Address {
    exchange: ExchangeId,
    name: heapless::String<255>,
    key: Option<heapless::Vec<u8, 255>>,
}

impl Broker {
    /// Whether what this queue gives up goes anywhere.
    pub(super) fn has_dead_letters(&self, queue: QueueId) -> bool {
        let record = &self.queues[queue.index()];
        record.settings.dead_letters && !record.dying
    }

    /// What is to go on when the queue gives up this message; `None`: there is no room for it now. Changes
    /// no queue.
    #[cold]
    pub(super) fn write_letter(
        &mut self,
        cx: &mut Context<'_>,
        queue: QueueId,
        message: MessageId,
        reason: Reason,
    ) -> Option<Letter> {
        let Some(address) = self.dead_letter_address(queue) else { return Some(Letter::Nowhere) };
        let mut scratch = core::mem::take(&mut self.scratch);
        let mut targets = core::mem::take(&mut self.letter_targets);
        let letter = self.address_letter(cx, (queue, message, reason), &address, &mut scratch, &mut targets);
        self.scratch = scratch;
        self.letter_targets = targets;
        letter
    }

    fn dead_letter_address(&self, queue: QueueId) -> Option<Address> {
        let record = &self.queues[queue.index()];
        let terms = self.terms_of(queue);
        let name = terms.value("x-dead-letter-exchange").and_then(|value| value.as_str())?;
        let key = terms.value("x-dead-letter-routing-key").and_then(|value| value.as_bytes());
        Some(Address {
            exchange: self.find_exchange(record.vhost, name)?,
            name: heapless::String::try_from(name).ok()?,
            // What is longer than any key leads where no key does.
            key: key.map(|key| heapless::Vec::from_slice(key).unwrap_or_default()),
        })
    }

    fn address_letter(
        &mut self,
        cx: &mut Context<'_>,
        (queue, message, reason): (QueueId, MessageId, Reason),
        address: &Address,
        scratch: &mut Scratch,
        targets: &mut Vec<QueueId>,
    ) -> Option<Letter> {
        let body_units = cx.messages.body_len(message) / BYTES_PER_UNIT;
        cx.work.charge(8 + body_units as usize);
        let properties = Properties::trusted(cx.messages.properties(message, &mut scratch.properties));
        let record = &self.queues[self.whole(queue).index()];
        let (vhost, name) = (record.vhost, Name::try_from(&*record.name).unwrap_or_default());
        let death = Death {
            reason,
            queue: name.as_str(),
            unix_s: self.unix_s,
            exchange: cx.messages.exchange(message),
            routing_key: cx.messages.routing_key(message),
            expiration: properties.expiration(),
            headers: properties.headers().unwrap_or(Table::EMPTY),
            drops_copies: address.key.is_some(),
        };
        let room = self.settings.frame_max.saturating_sub(HEADER_BYTES);
        let mut writer = Writer::new(&mut scratch.rewritten[..room]);
        let edit = PropertyEdit { expiration: Edit::Remove, ..PropertyEdit::default() };
        let written = properties.write_with_headers(edit, &mut |headers| death.write(headers), &mut writer);
        let edit = PropertyEdit { headers: HeadersEdit::Keep, ..edit };
        // Headers that fill a frame without that stay as they are. Only what somebody rejects may go on so:
        // of all else the death is what ends a circle.
        let is_written =
            written.is_ok() || reason == Reason::Rejected && properties.write_with(edit, &mut writer).is_ok();
        if !is_written {
            self.log_dropped(&name, "its headers fill a frame");
            return Some(Letter::Nowhere);
        }
        let written = Properties::trusted(writer.written());
        let own_key = address.key.as_deref().unwrap_or(death.routing_key);
        let own_key: heapless::Vec<u8, 255> = heapless::Vec::from_slice(own_key).unwrap_or_default();
        let headers = written.headers().unwrap_or(Table::EMPTY);
        self.limit_routing(cx.work, ROUTING_TIMES);
        let routed = self.route_letter(cx.work, address.exchange, (&own_key, headers), targets);
        // In a transaction nothing may end half-way.
        cx.work.lift_limit();
        if let Err(fault) = routed {
            self.log_dropped(&name, &fault.text);
            return Some(Letter::Nowhere);
        }
        targets.retain(|&to| !death.is_cycle(&self.queues[to.index()].name));
        targets.retain(|&to| !self.refuses(cx.messages, to, message));
        if targets.is_empty() {
            return Some(Letter::Nowhere);
        }
        self.choose_levels_for(cx, written.priority().unwrap_or(0), targets);
        let names_len = address.name.len() + own_key.len();
        let bytes = names_len + written.as_bytes().len() + cx.messages.body_len(message) as usize;
        if !self.takes_letter(cx, vhost, (message, bytes as u64), targets) {
            return None;
        }
        let flags = match cx.messages.flags(message).has(MessageFlags::PERSISTENT) {
            true => MessageFlags::PERSISTENT,
            false => MessageFlags::NONE,
        };
        let copy = cx.messages.copy_as(message, (&address.name, &own_key), writer.written(), flags);
        copy.ok().map(Letter::Copy)
    }

    /// Somebody has to know what became of it; once a minute is enough.
    fn log_dropped(&mut self, queue: &str, why: &str) {
        let minute = self.watch.now_s / 60;
        if self.dropped_logged_minute.replace(minute) != Some(minute) {
            log::error!("queue '{}': a message cannot be dead-lettered: {why}", queue.escape_debug());
        }
    }

    /// Whether all targets take a letter of so many bytes now.
    fn takes_letter(
        &self,
        cx: &mut Context<'_>,
        vhost: VhostId,
        (message, bytes): (MessageId, u64),
        targets: &[QueueId],
    ) -> bool {
        let needed = targets.iter().filter(|queue| self.queues[queue.index()].backlog.needs_chunk()).count();
        if !self.fifo_pool.may_take(|| owner_of(vhost), needed + self.promised.chunks, 0) {
            return false;
        }
        let logged = self.logged_targets(cx, message, targets);
        let takes = logged == 0
            || cx.journal.takes_group()
                && cx.journal.fits_transaction(self.promised.logged + 1)
                && cx.journal.fits_commit(bytes, cx.messages.body_len(message).into(), logged)
                && cx.journal.admit(bytes, logged).is_ok();
        if !takes {
            // What gathers may be what it waits for.
            cx.journal.hurry();
        }
        takes
    }

    /// Bytes of the log that publishers leave to dead letters. A letter takes room before the message that it
    /// comes of gives any, and a log that is full of what has to go on would be full for ever.
    pub(super) fn kept_for_letters(&self, journal: &Journal) -> u64 {
        match self.buriers {
            0 => 0,
            _ => self.settings.letters_log_bytes.min(journal.disk_bytes_max() / LETTERS_LOG_PART),
        }
    }

    /// What is posted and settled from now on is one thing to the log; says whether that is to be ended.
    pub(super) fn begin_burial(&self, cx: &mut Context<'_>, letter: &Letter, is_logged: bool) -> bool {
        let Letter::Copy(copy) = *letter else { return false };
        let begins =
            is_logged && !cx.journal.is_grouping() && self.logged_targets(cx, copy, &self.letter_targets) > 0;
        if begins {
            cx.journal.begin_group();
        }
        begins
    }

    /// Puts a letter into its queues. What is too much for those is seen to later: letters may cause letters.
    pub(super) fn post_letter(&mut self, cx: &mut Context<'_>, letter: Letter) {
        let Letter::Copy(copy) = letter else { return };
        let targets = core::mem::take(&mut self.letter_targets);
        self.push_to_targets(cx, copy, &targets, Urgency::Window, true);
        self.letter_targets = targets;
        cx.messages.release(copy);
    }

    /// The end of what [`Self::begin_burial`] began.
    pub(super) fn end_burial(&self, cx: &mut Context<'_>, has_begun: bool) {
        if has_begun {
            // Nobody waits for it.
            let _ = cx.journal.end_group(cx.messages, Urgency::Window);
        }
    }
}
