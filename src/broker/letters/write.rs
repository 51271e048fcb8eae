//! Dead letters: a message that a queue gives up is published where its arguments, or its policy, say.
//!
//! ```text
//! queue ── rejected, expired, maxlen, delivery limit ──→ letter: the message with its death
//!   └── x-dead-letter-exchange, -routing-key ──→ route ──→ queues, but for circles
//! ```
//!
//! Always true: a message in the log is settled in its queue and published to the others in one group, so
//! that a power cut leaves it in one place; nothing is settled before there is room for the letter, which
//! comes from a reserve, of memory and of the log: without room the message stays where it is, late but never
//! lost. As in RabbitMQ a letter is dropped that reaches no queue, or that a full target refuses, unless the
//! target dead-letters what it refuses: then the letter goes on at once, a few times at most.

use crate::arguments::copy_flags;
use leveret_amqp::Writer;
use leveret_amqp::field::Table;
use leveret_amqp::props::{BLIND_BYTES_MAX, Edit, HeadersEdit, Properties, PropertyEdit};
use leveret_core::command::{ExchangeId, Name, QueueId, VhostId};
use leveret_core::error::Fault;
use leveret_core::journal::Urgency;
use leveret_core::mem::{MessageId, Share};

use super::Post;
use super::give_up::{Death, Reason};
use crate::Context;
use crate::context::Work;
use crate::queue::Targets;
use crate::queues::LevelChoice;
use crate::queues::Scratch;

/// How many times the routing work of one message a letter may take.
const ROUTING_TIMES: u32 = 8;
/// Letters that one letter may cause at once, by being refused.
const LETTERS_AT_ONCE: u32 = 8;
/// Bytes of a header frame around the properties.
const HEADER_BYTES: usize = 22;

/// What is sent on when a message is given up.
#[must_use = "the message goes with it"]
pub(crate) enum Letter {
    /// Nothing: the letter reaches no queue.
    Nowhere,
    /// A copy, for the first so many of the queues in `Letters::targets`; the others refuse it, and
    /// dead-letter that.
    Copy(MessageId, usize),
}

/// The exchange and routing key that letters are sent to.
struct Address {
    exchange: ExchangeId,
    name: heapless::String<255>,
    key: Option<heapless::Vec<u8, 255>>,
}

/// The number of no route.
const NEVER_ROUTED: u64 = u64::MAX;

impl Post<'_> {
    /// The letter for a message that the queue gives up; `None`: there is no room for it now. Changes no
    /// queue.
    #[cold]
    pub(crate) fn write_letter(
        &mut self,
        cx: &mut Context<'_>,
        queue: QueueId,
        message: MessageId,
        reason: Reason,
    ) -> Option<Letter> {
        if let Reason::Parked(place) = reason {
            return self.write_parked(cx, queue, message, place);
        }
        let Some(address) = self.dead_letter_address(queue) else { return Some(Letter::Nowhere) };
        let mut scratch = self.queues.lend_scratch();
        let mut targets = core::mem::take(&mut self.letters.targets);
        let letter = self.address_letter(cx, (queue, message, reason), &address, &mut scratch, &mut targets);
        self.queues.return_scratch(scratch);
        self.letters.targets = targets;
        if letter.is_some() {
            self.counters.note_dead_lettered(reason);
        }
        letter
    }

    fn dead_letter_address(&self, queue: QueueId) -> Option<Address> {
        let record = self.queues.at(queue);
        let terms = self.policies.terms(
            &self.queues.records().record_of_queue(queue).arguments,
            self.queues.records().record_of_queue(queue).applied,
        );
        let name = terms.value("x-dead-letter-exchange").and_then(|value| value.as_str())?;
        let key = terms.value("x-dead-letter-routing-key").and_then(|value| value.as_bytes());
        Some(Address {
            exchange: self.topology.find_exchange(record.vhost, name)?,
            name: heapless::String::try_from(name).ok()?,
            // A key that is too long leads where an empty key does.
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
        cx.work.charge(8);
        cx.work.charge_octets(cx.messages.body_len(message) as usize);
        let properties = Properties::trusted(cx.messages.properties(message, &mut scratch.properties));
        let record = self.queues.records().record_of_queue(queue);
        let (vhost, name) = (record.vhost, Name::try_from(&*record.name).unwrap_or_default());
        let death = Death {
            reason,
            queue: name.as_str(),
            unix_s: self.letters.unix_s,
            exchange: cx.messages.exchange(message),
            routing_key: cx.messages.routing_key(message),
            expiration: properties.expiration(),
            headers: properties.headers().unwrap_or(Table::EMPTY),
            drops_copies: address.key.is_some(),
            drops_blind: properties.as_bytes().len() > BLIND_BYTES_MAX / 4,
        };
        let mut writer = self.writer_of_letter(&mut scratch.rewritten);
        let edit = PropertyEdit { expiration: Edit::Remove, ..PropertyEdit::default() };
        let written = properties.write_with_headers(edit, &mut |headers| death.write(headers), &mut writer);
        let edit = PropertyEdit { headers: HeadersEdit::Without("BCC"), ..edit };
        // Headers that fill a frame stay without x-death. Only rejected messages may go on so: for all others
        // x-death is what ends a circle.
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
        if let Err(fault) = self.route(cx.work, address.exchange, &own_key, headers, targets) {
            self.log_dropped(&name, &fault.text);
            return Some(Letter::Nowhere);
        }
        self.leave_out_passed(cx.work, vhost, &death, targets);
        let (kept, _) = self.queues.records().keep_willing(cx.messages, message, targets, None);
        if targets.is_empty() {
            return Some(Letter::Nowhere);
        }
        self.queues.choose_levels_for(cx, self.quota, LevelChoice::of(&written, 0), targets);
        let names_len = address.name.len() + own_key.len();
        let bytes = names_len + written.as_bytes().len() + cx.messages.body_len(message) as usize;
        if !self.takes_letter(cx, (message, bytes as u64), targets) {
            return None;
        }
        let flags = copy_flags(cx.messages, message, &written);
        let names = (&*address.name, &*own_key);
        let copy = cx.messages.copy_as(message, names, writer.written(), flags, Share::DeadLetter);
        copy.ok().map(|copy| Letter::Copy(copy, kept))
    }

    /// Leaves out the queues that the dead letter has passed before without being rejected. Its publisher may
    /// have made up any number of deaths, so each is looked at once, whatever the number of queues.
    fn leave_out_passed(
        &mut self,
        work: &mut Work,
        vhost: VhostId,
        death: &Death<'_>,
        targets: &mut Vec<QueueId>,
    ) {
        let deaths = death.each_passed(&mut |queue| {
            if let Some(queue) = self.queues.records().find_queue(vhost, queue) {
                self.queues.at_mut(queue).routed_at = NEVER_ROUTED;
            }
        });
        work.charge(deaths);
        targets.retain(|queue| self.queues.at(*queue).routed_at != NEVER_ROUTED);
    }

    /// A writer for the properties of a letter, as large as a frame allows.
    pub(crate) fn writer_of_letter<'a>(&self, rewritten: &'a mut [u8]) -> Writer<'a> {
        Writer::new(&mut rewritten[..self.queues.frame_max().saturating_sub(HEADER_BYTES)])
    }

    /// Routes a letter with this key and these headers.
    ///
    /// # Errors
    /// Routing takes more work than a few messages may take.
    pub(super) fn route(
        &mut self,
        work: &mut Work,
        exchange: ExchangeId,
        key: &[u8],
        headers: Table<'_>,
        targets: &mut Vec<QueueId>,
    ) -> Result<(), Fault> {
        self.topology.limit_routing(work, ROUTING_TIMES);
        let mut chosen = Targets { queues: self.queues.records_mut(), chosen: targets };
        let routed = self.topology.route(work, exchange, key, headers, &mut chosen);
        // A commit must not end half-way.
        work.lift_limit();
        routed.map(|_| ())
    }

    /// Logs, once a minute at most, why a dead letter was dropped.
    fn log_dropped(&mut self, queue: &str, why: &str) {
        if self.is_minute_to_say() {
            log::error!("queue '{}': a message cannot be dead-lettered: {why}", queue.escape_debug());
        }
    }

    /// Whether nothing was logged in this minute about dropped letters; notes that it is now.
    pub(crate) fn is_minute_to_say(&mut self) -> bool {
        let minute = self.queues.minute();
        self.letters.dropped_logged_minute.replace(minute) != Some(minute)
    }

    #[cold]
    pub(crate) fn log_refused(&mut self, queue: QueueId, why: &str) {
        let name = Name::try_from(&*self.queues.records().record_of_queue(queue).name).unwrap_or_default();
        self.log_dropped(&name, why);
    }

    /// Whether all target queues take a letter of this many bytes now.
    pub(crate) fn takes_letter(
        &mut self,
        cx: &mut Context<'_>,
        (message, bytes): (MessageId, u64),
        targets: &[QueueId],
    ) -> bool {
        let needed = targets.iter().filter(|queue| self.queues.at(**queue).backlog.needs_chunk()).count();
        let lacks_slot = self.queues.take_lacks_slot();
        if lacks_slot || !self.queues.entries().may_take(needed + self.letters.promised.chunks, 0) {
            return false;
        }
        let logged = self.queues.logged_targets(cx, message, targets);
        let takes = logged == 0
            || cx.journal.takes_group()
                && cx.journal.fits_transaction(self.letters.promised.logged + 1)
                && cx.journal.fits_commit(bytes, cx.messages.body_len(message).into(), logged)
                && cx.journal.admit(bytes, logged).is_ok();
        if !takes {
            // The letter may wait for the commit that is being gathered.
            cx.journal.hurry();
        }
        takes
    }

    /// Sends a letter on, and has the message that it is of taken away: one step to the log, if the log has it.
    pub(super) fn send(
        &mut self,
        cx: &mut Context<'_>,
        letter: Letter,
        is_logged: bool,
        take: impl FnOnce(&mut Self, &mut Context<'_>),
    ) {
        let has_begun = self.begin_letter_group(cx, &letter, is_logged);
        self.post_letter(cx, letter);
        take(self, cx);
        self.end_letter_group(cx, has_begun);
    }

    /// Begins a group of the log for a letter and the settlement of its message, if needed; says whether it
    /// has to be ended.
    fn begin_letter_group(&self, cx: &mut Context<'_>, letter: &Letter, is_logged: bool) -> bool {
        let Letter::Copy(copy, _) = *letter else { return false };
        let begins = is_logged
            && !cx.journal.is_grouping()
            && self.queues.logged_targets(cx, copy, &self.letters.targets) > 0;
        if begins {
            cx.journal.begin_group();
        }
        begins
    }

    /// Pushes a letter to its queues. Their length limits are checked later: letters may cause letters.
    pub(crate) fn post_letter(&mut self, cx: &mut Context<'_>, letter: Letter) {
        self.post(cx, letter, &mut { LETTERS_AT_ONCE });
    }

    fn post(&mut self, cx: &mut Context<'_>, letter: Letter, left: &mut u32) {
        let Letter::Copy(copy, kept) = letter else { return };
        let targets = core::mem::take(&mut self.letters.targets);
        if kept > 0 {
            self.queues.push_letter(cx, copy, &targets[..kept]);
        }
        let refused = targets[kept..].iter().copied();
        let refused: heapless::Vec<QueueId, { LETTERS_AT_ONCE as usize }> =
            refused.take(*left as usize).collect();
        let is_all = kept + refused.len() == targets.len();
        let beyond = (!is_all).then(|| targets[targets.len() - 1]);
        self.letters.targets = targets;
        if let Some(queue) = beyond {
            self.log_refused(queue, "it is full, as are too many before it");
        }
        for queue in refused {
            *left = left.saturating_sub(1);
            match self.write_letter(cx, queue, copy, Reason::MaxLength) {
                Some(letter) => self.post(cx, letter, left),
                None => self.log_refused(queue, "it is full, and there is no room elsewhere"),
            }
        }
        cx.messages.release(copy);
    }

    /// Ends the group of the log that [`Self::begin_letter_group`] began.
    fn end_letter_group(&self, cx: &mut Context<'_>, has_begun: bool) {
        if has_begun {
            // Nobody waits for this group to be durable.
            let _ = cx.journal.end_group(cx.messages, Urgency::Window);
        }
    }
}
