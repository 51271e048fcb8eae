//! Writes and publishes dead letters: a message that a queue removes is published to its dead-letter
//! exchange.
//!
//! ```text
//! queue ── rejected, expired, maxlen, delivery limit ──→ dead letter: the message with an x-death entry
//!   └── x-dead-letter-exchange, -routing-key ──→ route ──→ queues, without automatic cycles
//! ```
//!
//! As in RabbitMQ, a dead letter is dropped if it reaches no queue, or if a full target queue refuses it. If
//! that queue dead-letters refused messages, a further dead letter is published at once, up to
//! [`CHAINED_MAX`] times.
//!
//! # Invariants
//! - If the log has both a message and its dead letter, the settlement of the message and the publish of the
//!   dead letter are one group in the log. After a power cut the message is therefore in exactly one place.
//! - A message that has a dead letter is settled only when there is capacity for it, for which some memory and
//!   space of the log are reserved. Until then the message stays in its queue, so it is late but not lost.

use leveret_amqp::field::{Array, ArrayWriter, Table, TableWriter, Value};
use leveret_amqp::props::{BLIND_BYTES_MAX, Edit, Properties, PropertyEdit};
use leveret_amqp::{Full, Writer};
use leveret_core::command::{ExchangeId, Name, QueueId, Refusal, VhostId};
use leveret_core::error::Fault;
use leveret_core::mem::{MessageId, MessageNames, Messages, Share, sort_by_key};
use leveret_core::work::Work;
use leveret_queues::{LevelChoice, PlannedCopy, Reason, Scratch, copy_flags};
use leveret_routing::Targets;
use leveret_storage::Urgency;

use super::Republisher;
use crate::Context;
use crate::sessions::{RoutedMessage, Subscribers, select_subscribers};

/// The routing of a dead letter may take this many times the work that one publish may take.
const ROUTING_TIMES: u32 = 8;
/// Maximum number of further dead letters that one dead letter may cause because queues refuse it.
const CHAINED_MAX: u32 = 8;
/// Shortest message TTL of a queue that gets dead letters without x-death, in milliseconds.
const TTL_WITHOUT_DEATH_MS_MIN: u64 = 1_000;
/// Units of work for writing a dead letter again, and for the search for idle memory before.
const WITHOUT_DEATH_WORK: usize = 16;
/// The end of a log line about a message that is shortened to fit into a frame, after the name of a header.
pub(super) const MORE_THAN_FRAME: &str =
    " and the message's other headers are more than a frame: headers are shortened";
/// Bytes of a header frame besides the properties: 8 of the frame, and 12 of class, weight and body size.
const HEADER_BYTES: usize = 20;

/// The copy that replaces a message when it is removed from its queue.
#[must_use = "the copy would never be released"]
pub(crate) enum Republication {
    /// There is no copy, because it would reach no queue or cannot be written. The original is dropped.
    Dropped,
    /// A copy, and the number of queues at the front of `RepublishState::targets` that accept the copy. The
    /// other queues there refuse and dead-letter it.
    Copy(MessageId, usize),
}

/// The exchange and routing key that dead letters of a queue are published to.
struct DeadLetterTarget {
    exchange: ExchangeId,
    name: heapless::String<255>,
    key: Option<heapless::Vec<u8, 255>>,
}

/// `last_routing` of a queue that must not get the dead letter; no routing has this number.
const NEVER_ROUTED: u64 = u64::MAX;

/// A message that leaves its queue and is to be dead-lettered.
#[derive(Clone, Copy)]
struct DeadMessage {
    queue: QueueId,
    message: MessageId,
    reason: Reason,
}

impl Republisher<'_> {
    /// Writes the dead letter for a message that the queue removes. Changes no queue.
    ///
    /// Returns `None` if there is no capacity for the dead letter now.
    #[cold]
    pub(crate) fn write_dead_letter(
        &mut self,
        cx: &mut Context<'_>,
        queue: QueueId,
        message: MessageId,
        reason: Reason,
    ) -> Option<Republication> {
        if let Reason::Parked(place) = reason {
            return self.write_parked(cx, queue, message, place);
        }
        let Some(address) = self.dead_letter_target(queue) else { return Some(Republication::Dropped) };
        let mut scratch = self.queues.lend_scratch();
        let mut targets = core::mem::take(&mut self.republish.targets);
        let republication = self.write_and_route(
            cx,
            DeadMessage { queue, message, reason },
            &address,
            &mut scratch,
            &mut targets,
        );
        self.queues.return_scratch(scratch);
        self.republish.targets = targets;
        if republication.is_some() {
            self.counters.note_dead_lettered(reason);
        }
        republication
    }

    fn dead_letter_target(&self, queue: QueueId) -> Option<DeadLetterTarget> {
        let record = self.queues.at(queue);
        let effective = self.policies.effective_policy(
            &self.queues.records().record_of_queue(queue).arguments,
            self.queues.records().record_of_queue(queue).applied,
        );
        let name = effective.value("x-dead-letter-exchange").and_then(|value| value.as_str())?;
        let key = effective.value("x-dead-letter-routing-key").and_then(|value| value.as_bytes());
        Some(DeadLetterTarget {
            exchange: self.topology.find_exchange(record.vhost, name)?,
            name: heapless::String::try_from(name).ok()?,
            // A key that is too long routes like an empty key.
            key: key.map(|key| heapless::Vec::from_slice(key).unwrap_or_default()),
        })
    }

    fn write_and_route(
        &mut self,
        cx: &mut Context<'_>,
        dead: DeadMessage,
        address: &DeadLetterTarget,
        scratch: &mut Scratch,
        targets: &mut Vec<QueueId>,
    ) -> Option<Republication> {
        let DeadMessage { queue, message, reason } = dead;
        cx.work.charge(8);
        cx.work.charge_octets(cx.messages.body_len(message) as usize);
        let properties = Properties::trusted(cx.messages.properties(message, &mut scratch.properties));
        let record = self.queues.records().record_of_queue(queue);
        let (vhost, name) = (record.vhost, Name::try_from(&*record.name).unwrap_or_default());
        let place = DeathPlace { queue: name.as_str(), reason, unix_s: self.republish.unix_s };
        let death = Death::of(cx.messages, message, properties, place, address);
        let mut writer = self.copy_properties_writer(&mut scratch.rewritten);
        let own_key = address.key.as_deref().unwrap_or(death.routing_key);
        let own_key: heapless::Vec<u8, 255> = heapless::Vec::from_slice(own_key).unwrap_or_default();
        let form = death.write_fitting(cx.work, properties, &mut writer);
        if form.removes_headers() {
            // An exchange of type headers has to see the headers that are removed.
            writer.rewind(0);
            let routed = death.write_properties(properties, &DeathForm::NoDeath, &mut writer);
            assert!(routed.is_ok(), "properties that arrived in a frame fit into a frame");
        }
        let headers = Properties::trusted(writer.written()).headers().unwrap_or(Table::EMPTY);
        if let Err(fault) = self.route(cx.work, address.exchange, &own_key, headers, targets) {
            self.log_dropped(&name, &fault.text);
            return Some(Republication::Dropped);
        }
        if form.removes_headers() {
            writer.rewind(0);
            let written = death.write_properties(properties, &form, &mut writer);
            assert!(written.is_ok(), "it fitted before");
        }
        let is_shortened = form != DeathForm::WHOLE;
        drop(form);
        let written = Properties::trusted(writer.written());
        self.remove_cycle_targets(cx.work, vhost, &death, targets);
        let (accepting_count, _) = self.queues.records().keep_accepting(cx.messages, message, targets, None);
        if targets.is_empty() {
            return Some(Republication::Dropped);
        }
        self.queues.choose_levels_for(cx, self.quota, LevelChoice::of(&written, 0), targets);
        let names_len = address.name.len() + own_key.len();
        let bytes = names_len + written.as_bytes().len() + cx.messages.body_len(message) as usize;
        if !self.may_move_to(cx, queue, PlannedCopy { message, bytes: bytes as u64 }, targets) {
            return None;
        }
        let flags = copy_flags(cx.messages, message, &written);
        let names = MessageNames { exchange: &address.name, routing_key: &own_key };
        // A copy that is not logged stays in memory, and takes more of it than its original. It leaves the last memory to
        // copies that do not. A message that a full queue refuses has no second chance, so its copy may take the last memory.
        let is_evictable = self.queues.logged_target_count(cx, message, targets) == targets.len();
        let takes_all = is_evictable || reason == Reason::MaxLength;
        let share = if takes_all { Share::DeadLetter } else { Share::Reserve };
        let queue = name.escape_debug();
        let copy = match cx.messages.copy_as(message, names, writer.written(), flags, share) {
            Ok(copy) => {
                if is_shortened {
                    self.note_shortened(&format_args!("queue '{queue}': x-death{MORE_THAN_FRAME}"));
                }
                copy
            }
            Err(_) if takes_all || !self.may_omit_death(targets) => return None,
            Err(_) => {
                let copy = self.copy_without_death(cx, message, place, address, scratch)?;
                self.note_shortened(&format_args!(
                    "queue '{queue}': no memory is left for the header x-death, so messages are dead-lettered without it: \
                     consume or purge queues, or raise memory_limit"
                ));
                copy
            }
        };
        Some(Republication::Copy(copy, accepting_count))
    }

    /// Returns a dead letter without its x-death entry; `None` if there is no memory for that either.
    fn copy_without_death(
        &mut self,
        cx: &mut Context<'_>,
        message: MessageId,
        place: DeathPlace<'_>,
        address: &DeadLetterTarget,
        scratch: &mut Scratch,
    ) -> Option<MessageId> {
        cx.work.charge(WITHOUT_DEATH_WORK);
        let properties = Properties::trusted(cx.messages.properties(message, &mut scratch.properties));
        let death = Death::of(cx.messages, message, properties, place, address);
        let mut writer = self.copy_properties_writer(&mut scratch.rewritten);
        let key = address.key.as_deref().unwrap_or(death.routing_key);
        let key: heapless::Vec<u8, 255> = heapless::Vec::from_slice(key).unwrap_or_default();
        let is_written = death.write_properties(properties, &DeathForm::NoDeath, &mut writer).is_ok();
        assert!(is_written, "properties that arrived in a frame fit into a frame");
        let flags = copy_flags(cx.messages, message, &Properties::trusted(writer.written()));
        let names = MessageNames { exchange: &address.name, routing_key: &key };
        cx.messages.copy_as(message, names, writer.written(), flags, Share::DeadLetter).ok()
    }

    /// Returns whether a dead letter for which there is no memory is written without its x-death entry.
    ///
    /// A work queue and its retry queue dead-letter to each other. With the entry, a message that moves needs more memory than
    /// it gives back. If publishers have used all memory, no message could move, and consumers get none that is behind an
    /// expired one. Without the entry, a message needs no more memory than before, unless names are longer.
    ///
    /// Without x-death a cycle does not end. Messages must therefore stay in the target queue for some time. With two targets,
    /// each round of the cycle would double them.
    ///
    /// A queue without a dead-letter exchange is not part of a cycle. Messages for it wait until there is memory.
    fn may_omit_death(&self, targets: &[QueueId]) -> bool {
        let &[target] = targets else { return false };
        self.queues.at(target).settings.message_ttl_ms >= TTL_WITHOUT_DEATH_MS_MIN
            && self.queues.records().has_dead_letters(target)
    }

    /// Removes the target queues through which the message has passed since it was last rejected: publishing
    /// to them would be a cycle.
    ///
    /// The publisher may have forged any number of x-death entries, so each is examined once, whatever the
    /// number of queues.
    fn remove_cycle_targets(
        &mut self,
        work: &mut Work,
        vhost: VhostId,
        death: &Death<'_>,
        targets: &mut Vec<QueueId>,
    ) {
        let deaths = death.for_each_passed_queue(&mut |queue| {
            if let Some(queue) = self.queues.records().find_queue(vhost, queue) {
                self.queues.at_mut(queue).last_routing = NEVER_ROUTED;
            }
        });
        work.charge(deaths);
        targets.retain(|queue| self.queues.at(*queue).last_routing != NEVER_ROUTED);
    }

    /// Returns a writer for the properties of a copy, limited to the size of a frame.
    pub(crate) fn copy_properties_writer<'a>(&self, rewritten: &'a mut [u8]) -> Writer<'a> {
        Writer::new(&mut rewritten[..self.queues.frame_max().saturating_sub(HEADER_BYTES)])
    }

    /// Routes a copy with this routing key and these headers.
    ///
    /// # Errors
    /// Routing takes more than [`ROUTING_TIMES`] times the work of a publish.
    pub(crate) fn route(
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
        // What follows must not be limited: a `tx.commit` must not end half-way.
        work.lift_limit();
        if self.sessions.may_exclude_any() {
            let (topology, records) = (&*self.topology, self.queues.records());
            let message = RoutedMessage { publisher: None, routing_key: key, len: 0 };
            let subscribers = Subscribers { sessions: self.sessions, topology, records };
            select_subscribers(subscribers, work, message, targets);
        }
        routed.map(|_| ())
    }

    /// Logs, at most once a minute, why a dead letter was dropped.
    fn log_dropped(&mut self, queue: &str, why: &str) {
        if self.should_log_this_minute() {
            log::error!("queue '{}': a message cannot be dead-lettered: {why}", queue.escape_debug());
        }
    }

    /// Counts a copy whose headers were shortened, and logs `text` at most once a minute.
    #[cold]
    pub(crate) fn note_shortened(&mut self, text: &core::fmt::Arguments<'_>) {
        self.counters.headers_shortened += 1;
        let minute = self.queues.minute();
        if self.republish.shortened_logged_minute.replace(minute) != Some(minute) {
            log::warn!("{text}");
        }
    }

    /// Returns whether no dropped message was logged in this minute yet, and marks this minute as logged.
    pub(crate) fn should_log_this_minute(&mut self) -> bool {
        let minute = self.queues.minute();
        self.republish.dropped_logged_minute.replace(minute) != Some(minute)
    }

    #[cold]
    pub(crate) fn log_refused(&mut self, queue: QueueId, why: &str) {
        let name = Name::try_from(&*self.queues.records().record_of_queue(queue).name).unwrap_or_default();
        self.log_dropped(&name, why);
    }

    /// Returns whether all target queues have capacity for a copy now, and none has used so much more
    /// than its share that publishers would lack it. `source` is the queue, or its level, that the message leaves.
    pub(crate) fn may_move_to(
        &mut self,
        cx: &mut Context<'_>,
        source: QueueId,
        copy: PlannedCopy,
        targets: &[QueueId],
    ) -> bool {
        self.has_capacity_for(cx, copy, targets)
            && self.queues.queue_too_full_for_moved(cx, self.quota, Some(source), copy, targets).is_none()
    }

    /// Returns whether all target queues have capacity for a copy now.
    pub(crate) fn has_capacity_for(
        &mut self,
        cx: &mut Context<'_>,
        copy: PlannedCopy,
        targets: &[QueueId],
    ) -> bool {
        let PlannedCopy { message, bytes } = copy;
        let needed = targets.iter().filter(|queue| self.queues.at(**queue).backlog.needs_chunk()).count();
        let lacks_slot_capacity = self.queues.take_slot_capacity_lack();
        if lacks_slot_capacity
            || !self.queues.entries().may_take(needed + self.republish.reservation.chunks, 0)
        {
            return false;
        }
        let logged = self.queues.logged_target_count(cx, message, targets);
        let has_log_capacity = logged == 0
            || cx.pending_writes.can_begin_group()
                && cx.pending_writes.fits_transaction(self.republish.reservation.logged + 1)
                && cx.pending_writes.fits_commit(bytes, cx.messages.body_len(message).into(), logged)
                && cx.pending_writes.admit(bytes, logged).is_ok();
        if !has_log_capacity {
            // The copy may wait for capacity that the pending commit of the log frees.
            cx.pending_writes.request_commit_now();
        }
        has_log_capacity
    }

    /// Publishes a copy and removes its original by calling `take`. If the log has the original
    /// (`is_logged`), both are one group in the log.
    pub(super) fn publish_and_remove(
        &mut self,
        cx: &mut Context<'_>,
        republication: Republication,
        is_logged: bool,
        take: impl FnOnce(&mut Self, &mut Context<'_>),
    ) {
        let has_begun = self.begin_group_for(cx, &republication, is_logged);
        self.publish_copy(cx, republication);
        take(self, cx);
        self.end_group_of(cx, has_begun);
    }

    /// Begins a group in the log for a copy and the settlement of its original, if both are logged. Returns
    /// whether a group was begun.
    fn begin_group_for(&self, cx: &mut Context<'_>, republication: &Republication, is_logged: bool) -> bool {
        let Republication::Copy(copy, _) = *republication else { return false };
        let begins = is_logged
            && !cx.pending_writes.is_grouping()
            && self.queues.logged_target_count(cx, copy, &self.republish.targets) > 0;
        if begins {
            cx.pending_writes.begin_group();
        }
        begins
    }

    /// Publishes a copy to its target queues. The length limits of queues with a dead-letter exchange are
    /// applied later, because only one dead letter is published at a time.
    pub(crate) fn publish_copy(&mut self, cx: &mut Context<'_>, republication: Republication) {
        self.publish_chained(cx, republication, &mut { CHAINED_MAX });
    }

    fn publish_chained(&mut self, cx: &mut Context<'_>, republication: Republication, left: &mut u32) {
        let Republication::Copy(copy, accepting_count) = republication else { return };
        let targets = core::mem::take(&mut self.republish.targets);
        if accepting_count > 0 {
            self.queues.push_copy(cx, copy, &targets[..accepting_count]);
        }
        let refused = targets[accepting_count..].iter().copied();
        let refused: heapless::Vec<QueueId, { CHAINED_MAX as usize }> =
            refused.take(*left as usize).collect();
        let is_all = accepting_count + refused.len() == targets.len();
        let beyond = (!is_all).then(|| targets[targets.len() - 1]);
        self.republish.targets = targets;
        if let Some(queue) = beyond {
            self.log_refused(queue, "it is full, as are too many before it");
        }
        for queue in refused {
            *left = left.saturating_sub(1);
            match self.write_dead_letter(cx, queue, copy, Reason::MaxLength) {
                Some(republication) => self.publish_chained(cx, republication, left),
                None => self.log_refused(queue, "it is full, and there is no room elsewhere"),
            }
        }
        cx.messages.release(copy);
    }

    /// Ends the group that [`Self::begin_group_for`] began.
    fn end_group_of(&self, cx: &mut Context<'_>, has_begun: bool) {
        if has_begun {
            // No client waits for this group to be durable.
            let _ = cx.pending_writes.end_group(cx.messages, Urgency::Window);
        }
    }
}

/// This number of x-death entries is kept rather than the publisher's headers, if there are so many: an automatic cycle
/// of at most as many queues ends, and a program that counts attempts over so many queues sees its own entry.
const KEPT_ENTRIES: usize = 8;
/// Maximum number of the publisher's headers that are removed one by one. If more have to go, all of them go.
const REMOVED_HEADERS_MAX: usize = 32;
/// Up to this number of x-death entries, entries with the same queue and reason are merged. A client may have
/// forged any number.
const GROUPED_ENTRIES_MAX: usize = 32;
/// Headers that are written at the first death of a message. At a further death only x-death is written.
const OWN: [&str; 4] = ["x-death", "x-first-death-exchange", "x-first-death-queue", "x-first-death-reason"];

/// Why messages are parked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Parking {
    pub(crate) bridge: Box<str>,
    pub(crate) queue: Box<str>,
    pub(crate) why: Refusal,
}

/// How much of x-death and of the other headers a dead letter has.
///
/// As long as the headers fit into a frame, it is [`DeathForm::WHOLE`]. Otherwise the form is the first of these in
/// which they fit:
///
/// ```text
/// entries with only count, reason and queue, except the new one → the new one, too → without x-first-death-*
/// → without the oldest entries, down to KEPT_ENTRIES → without headers of the publisher, as few bytes as possible
/// → without all headers of the publisher, and without more entries
/// ```
///
/// The entries are kept longer than the publisher's headers because programs count attempts by them, and because
/// without them a cycle of dead letters would never end.
///
/// A transient dead letter for which there is no memory has the form [`DeathForm::NoDeath`]: see
/// [`Republisher::may_omit_death`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum DeathForm<'a> {
    /// x-death with at most this many entries.
    Death { entries_max: usize, short: ShortEntries, has_first_death: bool, removed: RemovedHeaders<'a> },
    /// The headers as they are routed, without the new death.
    NoDeath,
}

/// Which entries of x-death have only count, reason and queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ShortEntries {
    None,
    Older,
    All,
}

/// The headers of the publisher that a dead letter does not have.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum RemovedHeaders<'a> {
    Named(heapless::Vec<&'a [u8], REMOVED_HEADERS_MAX>),
    All,
}

impl<'a> DeathForm<'a> {
    pub(crate) const WHOLE: DeathForm<'static> = DeathForm::Death {
        entries_max: usize::MAX,
        short: ShortEntries::None,
        has_first_death: true,
        removed: RemovedHeaders::Named(heapless::Vec::new()),
    };

    const fn shortened(entries_max: usize, short: ShortEntries, has_first_death: bool) -> Self {
        let removed = RemovedHeaders::Named(heapless::Vec::new());
        Self::Death { entries_max, short, has_first_death, removed }
    }

    fn removes_headers(&self) -> bool {
        match self {
            Self::Death { removed: RemovedHeaders::Named(names), .. } => !names.is_empty(),
            Self::Death { removed: RemovedHeaders::All, .. } => true,
            Self::NoDeath => false,
        }
    }
}

/// One new x-death entry, and the headers that the message had before.
///
/// x-death is an array with the latest death first. It has one entry, with a count, per queue and reason. The
/// names and the order of the fields are RabbitMQ's:
///
/// ```text
/// x-death              array │ count reason queue time exchange routing-keys │ …
/// x-first-death-reason, x-first-death-queue, x-first-death-exchange       of the very first death
/// ```
///
/// These headers are among the other headers, sorted by name. A dead letter that returns to a queue without a
/// rejection in between is in an automatic cycle and is dropped.
pub(crate) struct Death<'a> {
    pub(crate) reason: Reason,
    pub(crate) queue: &'a str,
    /// Time of the death in seconds since 1970.
    pub(crate) unix_s: u64,
    pub(crate) exchange: &'a str,
    pub(crate) routing_key: &'a [u8],
    /// The message's expiration property before the death.
    pub(crate) expiration: Option<&'a [u8]>,
    pub(crate) headers: Table<'a>,
    /// The CC header is removed, because the dead letter has another routing key.
    pub(crate) drops_cc: bool,
    /// The BCC header is removed now, because the headers may become too long to remove it on delivery.
    pub(crate) drops_bcc: bool,
}

/// Where and why a message died.
#[derive(Clone, Copy)]
struct DeathPlace<'a> {
    queue: &'a str,
    reason: Reason,
    /// Seconds since 1970.
    unix_s: u64,
}

impl<'a> Death<'a> {
    /// Returns the death of a message with these properties.
    fn of(
        messages: &'a Messages,
        message: MessageId,
        properties: Properties<'a>,
        place: DeathPlace<'a>,
        address: &DeadLetterTarget,
    ) -> Self {
        let DeathPlace { queue, reason, unix_s } = place;
        Self {
            reason,
            queue,
            unix_s,
            exchange: messages.exchange(message),
            routing_key: messages.routing_key(message),
            expiration: properties.expiration(),
            headers: properties.headers().unwrap_or(Table::EMPTY),
            drops_cc: address.key.is_some(),
            drops_bcc: properties.as_bytes().len() > BLIND_BYTES_MAX / 4,
        }
    }

    /// Returns the x-death entries before this death.
    fn before(&self) -> Option<Array<'a>> {
        self.headers.get("x-death").and_then(|value| value.as_array())
    }

    /// Returns whether an older entry has the same queue and reason.
    fn is_same(&self, value: Value<'_>) -> bool {
        let is = |death: Table<'_>, name, text: &str| {
            death.get(name).and_then(|value| value.as_bytes()) == Some(text.as_bytes())
        };
        let death = value.as_table();
        death.is_some_and(|death| is(death, "queue", self.queue) && is(death, "reason", self.reason.name()))
    }

    /// Writes the properties of the dead letter. Returns their form, in which they fit.
    fn write_fitting(
        &self,
        work: &mut Work,
        properties: Properties<'a>,
        writer: &mut Writer<'_>,
    ) -> DeathForm<'a> {
        let octets = properties.as_bytes().len();
        let mut fits = |form: &DeathForm<'a>| {
            work.charge_octets(octets);
            writer.rewind(0);
            self.write_properties(properties, form, writer).is_ok().then(|| writer.room())
        };
        if fits(&DeathForm::WHOLE).is_some() {
            return DeathForm::WHOLE;
        }
        let forms = [(ShortEntries::Older, true), (ShortEntries::All, true), (ShortEntries::All, false)];
        for (short, has_first_death) in forms {
            let form = DeathForm::shortened(usize::MAX, short, has_first_death);
            if fits(&form).is_some() {
                return form;
            }
        }
        let entries_of = |entries_max| DeathForm::shortened(entries_max, ShortEntries::All, false);
        if fits(&entries_of(KEPT_ENTRIES)).is_some() {
            // The most entries that fit.
            let (mut low, mut high) = (KEPT_ENTRIES, self.before().map_or(0, |before| before.iter().count()));
            while high - low > 1 {
                let middle = low + (high - low) / 2;
                if fits(&entries_of(middle)).is_some() { low = middle } else { high = middle }
            }
            fits(&entries_of(low));
            return entries_of(low);
        }
        let without = |entries_max, removed| DeathForm::Death {
            entries_max,
            short: ShortEntries::All,
            has_first_death: false,
            removed,
        };
        // Without all headers of the publisher even the longest names of queues fit, if there are few entries.
        let mut entries_max = KEPT_ENTRIES;
        let room = loop {
            match fits(&without(entries_max, RemovedHeaders::All)) {
                Some(room) => break room,
                None => entries_max -= 1,
            }
            assert!(entries_max > 0, "one short entry fits into the smallest frame");
        };
        let form = without(entries_max, self.removed_headers(room));
        if fits(&form).is_none() {
            fits(&without(entries_max, RemovedHeaders::All));
            return without(entries_max, RemovedHeaders::All);
        }
        form
    }

    /// Returns the publisher's headers that are removed so that the others take at most `room` bytes: the shortest one
    /// that is long enough, or else the longest ones. CC stays, because it is needed to route the message.
    fn removed_headers(&self, room: usize) -> RemovedHeaders<'a> {
        let mut names = heapless::Vec::<&'a [u8], REMOVED_HEADERS_MAX>::new();
        let lengths = || {
            let mut entries = self.headers.iter();
            core::iter::from_fn(move || {
                let before = entries.rest().len();
                let (name, _) = entries.next()?;
                Some((name, before - entries.rest().len()))
            })
            .filter(|(name, _)| self.keeps(name, &DeathForm::shortened(0, ShortEntries::All, false)))
            .filter(|(name, _)| *name != b"x-death")
        };
        let all: usize = lengths().map(|(_, len)| len).sum();
        let mut excess = all.saturating_sub(room);
        while excess > 0 {
            let left = || lengths().filter(|(name, _)| *name != b"CC" && !names.contains(name));
            let enough = left().filter(|(_, len)| *len >= excess).min_by_key(|(_, len)| *len);
            let Some((name, len)) = enough.or_else(|| left().max_by_key(|(_, len)| *len)) else {
                return RemovedHeaders::All;
            };
            if names.push(name).is_err() {
                return RemovedHeaders::All;
            }
            excess = excess.saturating_sub(len);
        }
        RemovedHeaders::Named(names)
    }

    fn write_properties(
        &self,
        properties: Properties<'_>,
        form: &DeathForm<'_>,
        writer: &mut Writer<'_>,
    ) -> Result<(), Full> {
        let edit = PropertyEdit { expiration: Edit::Remove, ..PropertyEdit::default() };
        if *form == DeathForm::NoDeath && properties.headers().is_none() {
            return properties.write_with(edit, writer);
        }
        properties.write_with_headers(edit, &mut |headers| self.write(headers, form), writer)
    }

    /// Returns whether the dead letter keeps a header with this name, other than x-death.
    fn keeps(&self, name: &[u8], form: &DeathForm<'_>) -> bool {
        let drops_bcc = self.drops_cc || self.drops_bcc;
        let is_first_death = || OWN[1..].iter().any(|own| own.as_bytes() == name);
        let is_kept = match form {
            DeathForm::NoDeath => true,
            DeathForm::Death { has_first_death: false, .. } if is_first_death() => false,
            DeathForm::Death { removed: RemovedHeaders::Named(names), .. } => !names.contains(&name),
            DeathForm::Death { removed: RemovedHeaders::All, .. } => false,
        };
        is_kept && !(self.drops_cc && name == b"CC" || drops_bcc && name == b"BCC")
    }

    /// Writes the headers of the dead letter. An existing x-death header that is not an array is replaced.
    fn write(&self, headers: &mut TableWriter<'_, '_>, form: &DeathForm<'_>) -> Result<(), Full> {
        let own = match (self.headers.get("x-death"), form) {
            (_, DeathForm::NoDeath) => &[][..],
            (None, DeathForm::Death { has_first_death: true, .. }) => &OWN[..],
            _ => &OWN[..1],
        };
        let keeps = |name: &[u8]| self.keeps(name, form);
        headers.sorted(self.headers, &keeps, own, &mut |headers, name| match name {
            "x-first-death-exchange" => headers.text(name, self.exchange),
            "x-first-death-queue" => headers.text(name, self.queue),
            "x-first-death-reason" => headers.text(name, self.reason.name()),
            _ => headers.array(name, |deaths| self.write_deaths(deaths, form)),
        })
    }

    /// Writes the entry of this death and the older entries: one entry with a total count for each queue and
    /// reason.
    fn write_deaths(&self, deaths: &mut ArrayWriter<'_, '_>, form: &DeathForm<'_>) -> Result<(), Full> {
        let DeathForm::Death { entries_max, short, .. } = *form else { return Ok(()) };
        let Some(before) = self.before() else {
            return deaths.table(|death| match short {
                ShortEntries::All => self.write_short_entry(death, 1),
                ShortEntries::None | ShortEntries::Older => self.write_entry(death, true),
            });
        };
        let mut known = heapless::Vec::<_, GROUPED_ENTRIES_MAX>::new();
        let is_grouped = before.iter().try_for_each(|value| known.push(queue_and_reason(value))).is_ok();
        // The count of an entry that has none: 0 if it is the only entry, otherwise the number of entries
        // with its queue and reason.
        let uncounted = |kind| match known.len() {
            1 => 0,
            _ => known.iter().filter(|other| **other == kind).count() as i64,
        };
        let same = before.iter().find(|value| self.is_same(*value));
        match same.and_then(|value| value.as_table().zip(queue_and_reason(value))) {
            Some((same, kind)) if short == ShortEntries::All => deaths
                .table(|death| self.write_short_entry(death, raised_count(same, uncounted(Some(kind)))))?,
            Some((same, kind)) => deaths.table(|death| write_counted(death, same, uncounted(Some(kind))))?,
            None if short == ShortEntries::All => deaths.table(|death| self.write_short_entry(death, 1))?,
            None => deaths.table(|death| self.write_entry(death, false))?,
        }
        let mut entries_left = entries_max.saturating_sub(1);
        for (at, value) in before.iter().enumerate().filter(|(_, value)| !self.is_same(*value)) {
            let kind = queue_and_reason(value);
            let death = value.as_table();
            let is_uncounted = death.is_some_and(|death| death.get("count").is_none());
            if entries_left == 0 {
                break;
            }
            if is_grouped && kind.is_some() && known[..at].contains(&kind) {
                continue;
            }
            match death {
                Some(death) if short != ShortEntries::None => {
                    let Some((queue, reason)) = kind else { continue };
                    let count = death.get("count").and_then(|value| value.as_integer());
                    let count = count.unwrap_or_else(|| uncounted(kind).max(1));
                    deaths.table(|entry| write_short(entry, count, reason, queue))?;
                }
                None if short != ShortEntries::None => continue,
                Some(death) if is_uncounted && is_grouped && known.len() > 1 => deaths.table(|entry| {
                    entry.long("count", uncounted(kind))?;
                    death.iter().try_for_each(|(name, value)| entry.value(name, value))
                })?,
                _ => deaths.value(value)?,
            }
            entries_left -= 1;
        }
        Ok(())
    }

    fn write_short_entry(&self, death: &mut TableWriter<'_, '_>, count: i64) -> Result<(), Full> {
        write_short(death, count, self.reason.name().as_bytes(), self.queue.as_bytes())
    }

    /// Writes an x-death entry in RabbitMQ's order of fields: sorted, except in the very first entry.
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

    /// Calls `each` with the names of the queues through which the message has passed since it was last
    /// rejected.
    ///
    /// Returns the number of x-death entries examined.
    pub(crate) fn for_each_passed_queue(&self, each: &mut dyn FnMut(&str)) -> usize {
        if self.reason == Reason::Rejected {
            return 0;
        }
        each(self.queue);
        let mut examined_count = 1;
        for death in self.before().into_iter().flatten().filter_map(|value| value.as_table()) {
            examined_count += 1;
            let text = |name| death.get(name).and_then(|value| value.as_bytes());
            if text("reason") == Some(Reason::Rejected.name().as_bytes()) {
                break;
            }
            // Bytes that are not UTF-8 cannot be a queue's name.
            if let Some(queue) = text("queue").and_then(|queue| core::str::from_utf8(queue).ok()) {
                each(queue);
            }
        }
        examined_count
    }
}

/// Returns the queue and the reason of an x-death entry; `None` if the value is no such entry.
fn queue_and_reason(value: Value<'_>) -> Option<(&[u8], &[u8])> {
    let death = value.as_table()?;
    let text = |name| death.get(name).and_then(|value| value.as_bytes());
    text("queue").zip(text("reason"))
}

/// Returns the count of an older death of the same queue and reason, raised by one. `uncounted` is the previous count if
/// the entry has none.
fn raised_count(same: Table<'_>, uncounted: i64) -> i64 {
    let count = same.get("count").and_then(|value| value.as_integer()).unwrap_or(uncounted);
    count.saturating_add(1)
}

fn write_short(death: &mut TableWriter<'_, '_>, count: i64, reason: &[u8], queue: &[u8]) -> Result<(), Full> {
    death.long("count", count)?;
    death.long_str("reason", reason)?;
    death.long_str("queue", queue)
}

/// Writes an older death of the same queue and reason with its count raised by one and its fields sorted.
///
/// `uncounted` is the previous count if the entry has none.
fn write_counted(death: &mut TableWriter<'_, '_>, same: Table<'_>, uncounted: i64) -> Result<(), Full> {
    death.long("count", raised_count(same, uncounted))?;
    // A client may have forged the entry. The fields of an entry with more than 16 fields are not sorted.
    let mut fields = heapless::Vec::<_, 16>::new();
    let others = || same.iter().filter(|(name, _)| *name != b"count");
    if others().try_for_each(|field| fields.push(field)).is_err() {
        return others().try_for_each(|(name, value)| death.value(name, value));
    }
    sort_by_key(&mut fields, |(name, _)| *name);
    fields.iter().try_for_each(|(name, value)| death.value(name, *value))
}
