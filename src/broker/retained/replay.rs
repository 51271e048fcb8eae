//! Sending the retained messages that match a new subscription.
//!
//! A subscriber gets them as messages in the queue of its session. Their exchange has no name, which distinguishes them from
//! other messages ([`leveret_core::command::Delivery`]). Only some of them are in the queue at a time; when the client has
//! received these, the next ones are added. So a client gets thousands of them in many turns, and they take little memory.
//!
//! Messages whose contents are only in the log are collected, up to [`FROM_LOG_MAX`] at a time, and read in the order in
//! which they are in the log. A read has up to [`READY_MAX`] of them. A content in parts is read into a message directly.
//!
//! A retained message whose message expiry interval has passed is not sent, and is deleted when a subscription matches it.
//! The time since its publication is not in the log: after a restart, the interval begins again.

use core::cmp::Reverse;
use std::collections::VecDeque;

use leveret_amqp::field::Table;
use leveret_core::command::{BindingId, QueueId, SessionId, VhostId};
use leveret_core::definition::{self, Definition, RetainedPart};
use leveret_core::mem::{Class, HeapBytes, Memory, MessageFlags, MessageId, Share};
use leveret_core::topic::exchange_separators;
use leveret_queues::{Claim, OnFull};
use leveret_routing::{Binding, Destination};
use leveret_storage::{RecordLocation, Urgency};

use super::{Content, Retained, RetainedMessage, StoredParts, append_removal, expires_ms};
use crate::access::Access;
use crate::sessions::matches;
use crate::{Broker, Context};

/// The number of messages in the queue of a session up to which retained messages are added.
const READY_MAX: u32 = 32;
/// Retained messages are read from the log for a session that has at most this number of messages. The others are read
/// together later, so that a read is worth its cost.
const READY_MAX_BEFORE_READ: u32 = READY_MAX / 2;
/// The number of retained messages that are compared with a filter before other sessions have their turn.
const EXAMINED_MAX: usize = 4096;
/// The number of comparisons that count as one unit of work.
pub(super) const EXAMINED_PER_UNIT: usize = 8;
/// The number of messages that a session collects before they are read from the log. More would take more memory, and
/// fewer would lie further apart in the log.
const FROM_LOG_MAX: usize = 1024;
/// The largest sum of the records of one read in bytes.
const READ_BYTES_MAX: u32 = leveret_storage::FETCH_BYTES as u32;

/// The subscriptions of a session whose retained messages are not in its queue yet.
#[derive(Debug, Default)]
pub(crate) struct Replays {
    subscriptions: VecDeque<Replay>,
    /// `None` if no message of the first subscription has to be read from the log.
    from_log: Option<Box<ReplayFromLog>>,
}

/// Progress in sending the retained messages that match a subscription.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Replay {
    /// The subscription.
    binding: BindingId,
    /// The place of the next retained message to examine.
    place: usize,
}

/// Retained messages that match the first subscription, and whose contents are only in the log.
#[derive(Debug)]
struct ReplayFromLog {
    /// Places of the messages, up to [`FROM_LOG_MAX`]. When they are sorted, the next one is the last. Another topic may have a
    /// place since.
    places: Vec<u32>,
    step: FromLogStep,
    /// The memory of `places`.
    _bytes: HeapBytes,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum FromLogStep {
    Collecting,
    Collected,
    /// The messages are in the order of the log, and are being read.
    Sorted,
}

impl Replays {
    pub(crate) fn is_empty(&self) -> bool {
        self.subscriptions.is_empty()
    }

    fn begin(&mut self, binding: BindingId) {
        self.forget(binding);
        self.subscriptions.push_back(Replay { binding, place: 0 });
    }

    /// Sets the place at which the search for the first subscription goes on.
    fn advance(&mut self, place: usize) {
        if let Some(replay) = self.subscriptions.front_mut() {
            replay.place = place;
        }
    }

    fn end_first(&mut self) {
        self.subscriptions.pop_front();
        self.from_log = None;
    }

    /// Forgets a subscription that is to get no retained messages any more.
    pub(crate) fn forget(&mut self, binding: BindingId) {
        if self.subscriptions.front().is_some_and(|replay| replay.binding == binding) {
            self.end_first();
        }
        self.subscriptions.retain(|replay| replay.binding != binding);
    }

    /// Returns the places of the messages that are read from the log, if they are in its order.
    fn being_read(&mut self) -> Option<&mut Vec<u32>> {
        let from_log = self.from_log.as_mut().filter(|from_log| from_log.step == FromLogStep::Sorted);
        from_log.map(|from_log| &mut from_log.places)
    }

    /// Removes a message that was read from the log.
    fn remove_read(&mut self, place: usize) {
        if let Some(places) = self.being_read()
            && let Some(at) = places.iter().rposition(|other| *other as usize == place)
        {
            places.remove(at);
        }
    }

    /// Removes the next message from the log.
    fn pop_from_log(&mut self) {
        if let Some(from_log) = &mut self.from_log {
            from_log.places.pop();
        }
    }
}

/// The result of [`Retained::next_match`].
enum NextMatch {
    /// The message at this place matches.
    At(usize),
    /// No further message matches.
    None,
    /// There are further messages to examine.
    ExamineMore,
}

/// What a replay does next.
enum ReplayStep {
    /// The message at this place is pushed.
    Push(usize),
    /// The next message or subscription is examined.
    Again,
    /// The replay continues later.
    Wait,
}

/// Sessions with retained messages to be added to their queues.
#[derive(Debug)]
pub(crate) struct Replaying {
    memory: Memory,
    /// In the order of their turns.
    sessions: VecDeque<SessionId>,
    /// The counter of freed capacity when no session could get a message.
    stuck_at: Option<u64>,
    /// Sessions whose next retained messages have to be read from the log.
    readers: VecDeque<SessionId>,
    /// Sessions that had no capacity to read messages, and the counter of freed capacity when the first of them had none.
    refused: Vec<SessionId>,
    refused_at: u64,
}

/// A read of retained messages from the log, for one session.
#[derive(Debug)]
pub struct RetainedRead {
    session: SessionId,
    /// The definitions to be read, in the order of the log.
    wanted: Vec<Wanted>,
    /// The content that is read in parts; `None` if the definitions are whole messages.
    assembly: Option<Assembly>,
    /// There is no capacity for further messages.
    is_refused: bool,
    /// The part of the counter of freed capacity that comes from messages of this read that were refused.
    freed_by_refusal: u64,
    /// The queue has as many messages or bytes as the session may have.
    is_full: bool,
}

/// A definition to be read.
#[derive(Debug)]
struct Wanted {
    /// The place of the retained message.
    place: usize,
    location: RecordLocation,
    is_found: bool,
}

/// A content in parts that is being read.
#[derive(Debug)]
struct Assembly {
    place: usize,
    stored: StoredParts,
    /// The index of the next part.
    next: u32,
    /// CRC32C of the parts before it.
    checksum: u32,
    /// The AMQP properties, until all of them were read.
    properties: Vec<u8>,
    properties_len: usize,
    /// The message, which is begun when all properties were read.
    message: Option<MessageId>,
}

/// What follows a read.
#[derive(Debug)]
pub struct RetainedReadEnd {
    /// The next read of the same content.
    pub next: Option<RetainedRead>,
    /// Topics of retained messages that cannot be read.
    pub lost: Vec<String>,
}

impl RetainedRead {
    fn new(session: SessionId) -> Self {
        Self {
            session,
            wanted: Vec::new(),
            assembly: None,
            is_refused: false,
            freed_by_refusal: 0,
            is_full: false,
        }
    }

    /// Returns where the definitions are: ascending, in one segment.
    pub fn locations(&self) -> impl Iterator<Item = RecordLocation> {
        self.wanted.iter().map(|wanted| wanted.location)
    }

    /// Adds a definition, if it can be read together with those before it. Returns whether it was added.
    fn add(&mut self, place: usize, location: RecordLocation) -> bool {
        let bytes: u32 = self.wanted.iter().map(|wanted| wanted.location.bytes).sum();
        let fits = match self.wanted.last() {
            None => true,
            Some(Wanted { location: last, .. }) => {
                last.segment == location.segment
                    && last.at < location.at
                    && bytes.saturating_add(location.bytes) <= READ_BYTES_MAX
            }
        };
        if fits {
            self.wanted.push(Wanted { place, location, is_found: false });
        }
        fits
    }
}

impl Retained {
    /// Returns the place of the next retained message that matches a subscription, from `place` on. Advances `place` by at
    /// most `examined_max`.
    fn next_match(
        &self,
        vhost: VhostId,
        subscription: &Binding,
        place: &mut usize,
        examined_max: usize,
    ) -> NextMatch {
        let key = &*subscription.key;
        if !key.contains(['*', '#']) {
            let found = self.find(vhost, key).filter(|at| *at >= *place);
            *place = self.slab.places();
            return found.map_or(NextMatch::None, NextMatch::At);
        }
        let arguments = Table::trusted(&subscription.arguments);
        let end = self.slab.places().min(*place + examined_max);
        while *place < end {
            let at = *place;
            *place += 1;
            let is_match =
                |found: &RetainedMessage| found.vhost == vhost && matches(key, arguments, &found.key);
            if self.slab.get(at).is_some_and(is_match) {
                return NextMatch::At(at);
            }
        }
        if end < self.slab.places() { NextMatch::ExamineMore } else { NextMatch::None }
    }

    /// Returns whether there is a retained message in a place, and it matches a subscription.
    fn is_match(&self, vhost: VhostId, subscription: &Binding, place: usize) -> bool {
        let (key, arguments) = (&*subscription.key, Table::trusted(&subscription.arguments));
        self.slab.get(place).is_some_and(|found| found.vhost == vhost && matches(key, arguments, &found.key))
    }
}

impl Retained {
    /// Returns the key of the definition of the message in a place.
    fn definition_key(&self, access: &Access, place: usize) -> Option<Box<[u8]>> {
        let RetainedMessage { vhost, key, .. } = self.slab.get(place)?;
        let vhost = access.vhost_name(*vhost);
        Some(Definition::Retained(definition::Retained { vhost, key, ..Default::default() }).key())
    }

    /// Returns whether the parts that are read are still those of the message in a place.
    fn has_parts(&self, place: usize, parts: StoredParts) -> bool {
        let is_same = |record: &RetainedMessage| {
            let StoredParts { side, count, checksum } = record.stored;
            (side, count, checksum) == (parts.side, parts.count, parts.checksum)
        };
        self.is_only_in_log(place) && self.slab.get(place).is_some_and(is_same)
    }

    fn is_only_in_log(&self, place: usize) -> bool {
        self.slab.get(place).is_some_and(|record| record.content.octets.is_none())
    }

    fn topic_of(&self, place: usize) -> String {
        let key = self.slab.get(place).map_or("", |record| &*record.key);
        exchange_separators(key).unwrap_or_default().to_string()
    }

    /// Begins to read the content in a place, which is in parts.
    fn begin_assembly(&self, place: usize) -> Option<Assembly> {
        let RetainedMessage { content, stored, .. } = self.slab.get(place)?;
        let properties_len = content.properties_len as usize;
        let properties = Vec::with_capacity(properties_len);
        Some(Assembly {
            place,
            stored: *stored,
            next: 0,
            checksum: 0,
            properties,
            properties_len,
            message: None,
        })
    }
}

impl Broker {
    /// Begins to send the retained messages that match a subscription, at the end of this turn.
    pub(crate) fn begin_replay(&mut self, session: SessionId, binding: BindingId) {
        self.sessions.replays_mut(session).begin(binding);
        self.retained.replaying.add(session);
    }

    /// Continues with the sessions that wait for their turn, or for capacity.
    pub(crate) fn continue_replays(&mut self, cx: &mut Context<'_>) {
        let capacity_freed = self.all_capacity_freed(cx);
        let replaying = &mut self.retained.replaying;
        if replaying.refused_at != capacity_freed {
            for session in core::mem::take(&mut replaying.refused) {
                replaying.add(session);
            }
        }
        let (mut sessions_left, mut examined_left) = (replaying.sessions.len(), EXAMINED_MAX);
        let mut is_any_examined = sessions_left == 0;
        while sessions_left > 0 && examined_left > 0 {
            let Some(session) = self.retained.replaying.sessions.pop_front() else { break };
            sessions_left -= 1;
            is_any_examined |= self.replay_retained(cx, session, &mut examined_left);
        }
        let has_given_up = !is_any_examined && sessions_left == 0;
        self.retained.replaying.stuck_at = has_given_up.then(|| self.all_capacity_freed(cx));
    }

    fn all_capacity_freed(&self, cx: &Context<'_>) -> u64 {
        self.capacity_freed() + cx.pending_writes.capacity_freed() + cx.messages.capacity_freed()
    }

    /// Returns the list of messages that a session gets from the log; `None` if there is no memory for one.
    fn list_from_log(&mut self, session: SessionId) -> Option<&mut ReplayFromLog> {
        let from_log = &mut self.sessions.replays_mut(session).from_log;
        if from_log.is_none() {
            let mut bytes = HeapBytes::in_memory(&self.retained.replaying.memory, Class::Clients);
            if !bytes.try_add(FROM_LOG_MAX * size_of::<u32>()) {
                return None;
            }
            let places = Vec::with_capacity(FROM_LOG_MAX);
            *from_log =
                Some(Box::new(ReplayFromLog { places, step: FromLogStep::Collecting, _bytes: bytes }));
        }
        from_log.as_deref_mut()
    }

    /// Returns whether sessions wait for their turn to get retained messages, and may get some.
    pub(crate) fn may_replay(&self, capacity_freed: impl FnOnce() -> u64) -> bool {
        let Replaying { sessions, stuck_at, refused, refused_at, .. } = &self.retained.replaying;
        if sessions.is_empty() && refused.is_empty() {
            return false;
        }
        let capacity_freed = capacity_freed();
        !sessions.is_empty() && stuck_at.is_none_or(|stuck_at| stuck_at != capacity_freed)
            || !refused.is_empty() && *refused_at != capacity_freed
    }

    /// Adds retained messages to the queue of a session whose client has received others.
    pub(crate) fn refill_retained(&mut self, cx: &mut Context<'_>, session: SessionId) {
        if !self.sessions.replays_mut(session).is_empty() {
            let mut examined_left = EXAMINED_MAX;
            self.replay_retained(cx, session, &mut examined_left);
        }
    }

    /// Adds retained messages to the queue of a session, unless it has enough messages for its client. Examines at most
    /// `examined_left` messages, and subtracts their number. Returns `false` if there is no capacity.
    fn replay_retained(
        &mut self,
        cx: &mut Context<'_>,
        session: SessionId,
        examined_left: &mut usize,
    ) -> bool {
        loop {
            let Some((vhost, queue)) = self.sessions.replay_target(session) else { return true };
            let ready = self.queues.records().ready_in(queue);
            let messages_max = self.sessions.messages_max();
            let replays = self.sessions.replays_mut(session);
            let Some(replay) = replays.subscriptions.front().copied() else { return true };
            if ready >= READY_MAX.min(messages_max) {
                // `refill_retained` continues.
                return true;
            }
            let subscription = self.topology.binding_at(replay.binding.index());
            let is_own = |binding: &&Binding| binding.destination == Destination::Queue(queue);
            let Some(subscription) = subscription.filter(is_own) else {
                // The subscription has ended.
                replays.end_first();
                continue;
            };
            let next_from_log = match &replays.from_log {
                None => None,
                Some(from_log) if from_log.step == FromLogStep::Collecting => None,
                Some(from_log) => Some(from_log.places.last()),
            };
            let is_from_log = next_from_log.is_some();
            let step = match next_from_log {
                Some(None) => {
                    replays.from_log = None;
                    ReplayStep::Again
                }
                // It was deleted.
                Some(Some(&place)) if !self.retained.is_match(vhost, subscription, place as usize) => {
                    replays.pop_from_log();
                    ReplayStep::Again
                }
                Some(Some(&place)) if self.retained.is_only_in_log(place as usize) => {
                    if ready <= READY_MAX_BEFORE_READ.min(messages_max.saturating_sub(1))
                        && !self.exceeds_session_bytes(queue, place as usize)
                    {
                        self.retained.replaying.add_reader(session);
                    }
                    ReplayStep::Wait
                }
                Some(Some(&place)) => ReplayStep::Push(place as usize),
                None if *examined_left == 0 => {
                    self.retained.replaying.add(session);
                    ReplayStep::Wait
                }
                None => self.search_retained(cx, session, vhost, replay, examined_left),
            };
            let at = match step {
                ReplayStep::Push(at) => at,
                ReplayStep::Again => continue,
                ReplayStep::Wait => return true,
            };
            // `refill_retained` continues. More than the session may have would be dropped.
            if self.exceeds_session_bytes(queue, at) {
                return true;
            }
            let content = self.retained.slab[at].content.clone();
            if !self.push_retained(cx, queue, at, &content) {
                // The next attempt begins with this message. Otherwise the search before it could use up the turn again.
                if !is_from_log {
                    self.sessions.replays_mut(session).advance(at);
                }
                self.retained.replaying.add(session);
                return false;
            }
            let replays = self.sessions.replays_mut(session);
            match is_from_log {
                true => replays.pop_from_log(),
                false => replays.advance(at + 1),
            }
        }
    }

    /// Searches the next retained message that matches the first subscription of a session. Those that are only in the log
    /// are collected, and read together after the search.
    fn search_retained(
        &mut self,
        cx: &mut Context<'_>,
        session: SessionId,
        vhost: VhostId,
        replay: Replay,
        examined_left: &mut usize,
    ) -> ReplayStep {
        let replays = self.sessions.replays_mut(session);
        let Some(subscription) = self.topology.binding_at(replay.binding.index()) else {
            replays.end_first();
            return ReplayStep::Again;
        };
        let mut place = replay.place;
        let found = self.retained.next_match(vhost, subscription, &mut place, *examined_left);
        // A topic without wildcards is looked up.
        let is_exact = !subscription.key.contains(['*', '#']);
        let examined = if is_exact { 1 } else { (place - replay.place).max(1) };
        cx.work.charge(examined / EXAMINED_PER_UNIT);
        *examined_left = examined_left.saturating_sub(examined);
        match found {
            NextMatch::At(at) if self.retained.is_only_in_log(at) => {
                let Some(from_log) = self.list_from_log(session) else {
                    let capacity_freed = self.all_capacity_freed(cx);
                    self.retained.replaying.refuse(session, capacity_freed, 0);
                    return ReplayStep::Wait;
                };
                from_log.places.push(at as u32);
                if from_log.places.len() >= FROM_LOG_MAX {
                    from_log.step = FromLogStep::Collected;
                }
                self.sessions.replays_mut(session).advance(place);
            }
            NextMatch::At(at) => return ReplayStep::Push(at),
            NextMatch::None => match &mut replays.from_log {
                Some(from_log) => {
                    from_log.step = FromLogStep::Collected;
                    replays.advance(place);
                }
                None => replays.end_first(),
            },
            NextMatch::ExamineMore => replays.advance(place),
        }
        ReplayStep::Again
    }

    // ---- reading from the log

    /// Returns whether retained messages have to be read from the log.
    pub fn wants_retained_read(&self) -> bool {
        !self.retained.replaying.readers.is_empty()
    }

    /// Returns the next read of retained messages. `location_of` returns where the log has a definition.
    pub fn next_retained_read(
        &mut self,
        cx: &mut Context<'_>,
        location_of: impl Fn(&[u8]) -> Option<RecordLocation>,
    ) -> Option<RetainedRead> {
        while let Some(session) = self.retained.replaying.readers.pop_front() {
            match self.retained_read_for(cx, session, &location_of) {
                Some(read) if read.is_refused => {
                    let capacity_freed = self.all_capacity_freed(cx);
                    self.retained.replaying.refuse(session, capacity_freed, 0);
                }
                Some(read) => return Some(read),
                // The turn decides again.
                None => self.retained.replaying.add(session),
            }
        }
        None
    }

    /// Returns the next read for a session, which is refused without memory for the first message. `None` if there is nothing
    /// to read.
    fn retained_read_for(
        &mut self,
        cx: &mut Context<'_>,
        session: SessionId,
        location_of: &impl Fn(&[u8]) -> Option<RecordLocation>,
    ) -> Option<RetainedRead> {
        let (vhost, queue) = self.sessions.replay_target(session)?;
        let ready = self.queues.records().ready_in(queue);
        let most = READY_MAX.min(self.sessions.messages_max().saturating_sub(ready)) as usize;
        let Self { sessions, retained, access, topology, .. } = self;
        let replays = sessions.replays_mut(session);
        let subscription = topology.binding_at(replays.subscriptions.front()?.binding.index())?;
        let from_log = replays.from_log.as_mut()?;
        let location_at = |retained: &Retained, place: usize| {
            retained.definition_key(access, place).and_then(|key| location_of(&key))
        };
        if from_log.step == FromLogStep::Collected {
            from_log.places.sort_by_cached_key(|place| Reverse(location_at(retained, *place as usize)));
            from_log.step = FromLogStep::Sorted;
        }
        // A message without a definition was deleted.
        while from_log.places.pop_if(|place| location_at(retained, *place as usize).is_none()).is_some() {}
        let mut read = RetainedRead::new(session);
        for place in from_log.places.iter().rev().map(|place| *place as usize) {
            // Another content is in memory since, or another topic is in the place.
            let is_awaited = retained.is_match(vhost, subscription, place) && retained.is_only_in_log(place);
            let Some(record) = retained.slab.get(place).filter(|_| is_awaited) else { break };
            let is_in_parts = record.stored.count > 0;
            if read.wanted.is_empty() {
                let stream_len = record.key.len() + record.content.len as usize;
                read.is_refused = cx.messages.check_extents(stream_len, Share::Ordinary).is_err();
                if read.is_refused {
                    return Some(read);
                }
                if is_in_parts {
                    read.assembly = retained.begin_assembly(place);
                    self.plan_parts(&mut read, location_of);
                    return Some(read);
                }
            }
            let location = location_at(retained, place);
            if is_in_parts
                || read.wanted.len() >= most
                || !location.is_some_and(|location| read.add(place, location))
            {
                break;
            }
        }
        (!read.wanted.is_empty()).then_some(read)
    }

    /// Sets the next parts of a content that are read together.
    fn plan_parts(&self, read: &mut RetainedRead, location_of: &impl Fn(&[u8]) -> Option<RecordLocation>) {
        read.wanted.clear();
        let Some(Assembly { place, stored, next, .. }) = &read.assembly else { return };
        let (place, stored, next) = (*place, *stored, *next);
        let Some(record) = self.retained.slab.get(place) else { return };
        for key in stored.keys(self.access.vhost_name(record.vhost), &record.key).skip(next as usize) {
            if !location_of(&key).is_some_and(|location| read.add(place, location)) {
                break;
            }
        }
    }

    /// Takes a definition that was read. A whole retained message is pushed to the queue of its session.
    pub fn take_retained_definition(
        &mut self,
        cx: &mut Context<'_>,
        read: &mut RetainedRead,
        key: &[u8],
        value: &[u8],
    ) {
        let capacity_freed = self.all_capacity_freed(cx);
        let was_refused = read.is_refused;
        match Definition::parse(key, value) {
            Some(Definition::Retained(retained)) if read.assembly.is_none() => {
                self.take_whole(cx, read, &retained);
            }
            Some(Definition::RetainedPart(part)) => self.take_part(cx, read, &part),
            _ => {}
        }
        if read.is_refused && !was_refused {
            read.freed_by_refusal = self.all_capacity_freed(cx) - capacity_freed;
        }
    }

    fn take_whole(
        &mut self,
        cx: &mut Context<'_>,
        read: &mut RetainedRead,
        found: &definition::Retained<'_>,
    ) {
        let definition::Retained { vhost, key, qos, parts, properties, payload } = *found;
        let at = self.access.find_vhost(vhost).and_then(|vhost| self.retained.find(vhost, key));
        let Some(at) = at.filter(|at| parts.is_none() && self.retained.is_only_in_log(*at)) else { return };
        let Some(wanted) = read.wanted.iter_mut().find(|wanted| wanted.place == at) else { return };
        wanted.is_found = true;
        if read.is_refused || read.is_full {
            return;
        }
        let arrived_ms = self.retained.slab[at].content.arrived_ms;
        let octets = [properties, payload].concat().into();
        let content = Content::new(qos, octets, properties.len() as u32, arrived_ms);
        self.push_read(cx, read, at, &content);
    }

    fn take_part(&self, cx: &mut Context<'_>, read: &mut RetainedRead, part: &RetainedPart<'_>) {
        let RetainedPart { vhost, key, side, index, bytes } = *part;
        let at = self.access.find_vhost(vhost).and_then(|vhost| self.retained.find(vhost, key));
        let Some(assembly) = &mut read.assembly else { return };
        let Some(record) = self.retained.slab.get(assembly.place) else { return };
        let is_next = at == Some(assembly.place)
            && self.retained.has_parts(assembly.place, assembly.stored)
            && side == assembly.stored.side
            && index == assembly.next;
        if !is_next || read.is_refused {
            return;
        }
        let missing = assembly.properties_len - assembly.properties.len();
        let (properties, body) = bytes.split_at(missing.min(bytes.len()));
        assembly.properties.extend_from_slice(properties);
        if assembly.message.is_none() && assembly.properties.len() == assembly.properties_len {
            let flags = record.content.flags_with(&assembly.properties);
            let payload_len = record.content.payload_len();
            assembly.message = begin_message(cx, &record.key, &assembly.properties, payload_len, flags);
            read.is_refused = assembly.message.is_none();
        }
        if let Some(message) = assembly.message {
            if body.len() > cx.messages.body_missing(message) as usize {
                return;
            }
            cx.messages.append_body(message, body);
        }
        assembly.checksum = crc32c::crc32c_append(assembly.checksum, bytes);
        assembly.next += 1;
        if let Some(wanted) = read.wanted.iter_mut().find(|wanted| !wanted.is_found) {
            wanted.is_found = true;
        }
    }

    /// Pushes a message that was read to the queue of its session, unless the session does not wait for it any more.
    fn push_read(&mut self, cx: &mut Context<'_>, read: &mut RetainedRead, at: usize, content: &Content) {
        let Some(queue) = self.awaiting_queue(read.session, at) else { return };
        if self.is_session_full(queue, at) {
            read.is_full = true;
        } else if self.push_retained(cx, queue, at, content) {
            self.sessions.replays_mut(read.session).remove_read(at);
        } else {
            read.is_refused = true;
        }
    }

    /// Returns the queue of a session that waits for the message in a place.
    fn awaiting_queue(&mut self, session: SessionId, place: usize) -> Option<QueueId> {
        let (vhost, queue) = self.sessions.replay_target(session)?;
        let replays = self.sessions.replays_mut(session);
        let is_on_list = replays.being_read()?.iter().any(|other| *other as usize == place);
        let subscription = self.topology.binding_at(replays.subscriptions.front()?.binding.index())?;
        let is_own = subscription.destination == Destination::Queue(queue);
        (is_on_list && is_own && self.retained.is_match(vhost, subscription, place)).then_some(queue)
    }

    /// Returns whether a session has as many messages, or as many bytes, as it may have with a message that was read.
    fn is_session_full(&self, queue: QueueId, place: usize) -> bool {
        let ready_max = (READY_MAX + READY_MAX_BEFORE_READ).min(self.sessions.messages_max());
        self.queues.records().ready_in(queue) >= ready_max || self.exceeds_session_bytes(queue, place)
    }

    /// Ends a read whose definitions were taken. With `must_retry`, the disk refused it, and it is repeated.
    pub fn end_retained_read(
        &mut self,
        cx: &mut Context<'_>,
        mut read: RetainedRead,
        must_retry: bool,
        location_of: impl Fn(&[u8]) -> Option<RecordLocation>,
    ) -> RetainedReadEnd {
        let mut end = RetainedReadEnd { next: None, lost: Vec::new() };
        let session = read.session;
        let freed_before = self.all_capacity_freed(cx);
        if let Some(mut assembly) = read.assembly.take() {
            let (place, stored) = (assembly.place, assembly.stored);
            let is_complete = assembly.next == stored.count;
            let is_awaited = self.retained.has_parts(place, stored)
                && self.awaiting_queue(session, place).is_some()
                && !read.is_refused;
            let message = assembly.message.take();
            if is_awaited && !is_complete {
                // A part that the compactor has moved is read again.
                let has_progress = read.wanted.iter().any(|wanted| wanted.is_found);
                let location = read.locations().next();
                read.assembly = Some(Assembly { message, ..assembly });
                self.plan_parts(&mut read, &location_of);
                let next = read.locations().next();
                if next.is_some() && (has_progress || must_retry || next != location) {
                    end.next = Some(read);
                    return end;
                }
                let message = read.assembly.take().and_then(|assembly| assembly.message);
                message.into_iter().for_each(|message| cx.messages.discard(message));
                self.lose_read(&mut end, session, place);
            } else if let Some(message) = message {
                let is_whole = cx.messages.body_missing(message) == 0 && assembly.checksum == stored.checksum;
                match is_awaited {
                    true if is_whole => {
                        cx.messages.finish(message);
                        self.push_assembled(cx, &mut read, &assembly, message);
                    }
                    true => {
                        cx.messages.discard(message);
                        self.lose_read(&mut end, session, place);
                    }
                    false => cx.messages.discard(message),
                }
            }
        } else if !must_retry {
            self.lose_missing(&mut end, &read, &location_of);
        }
        if read.is_refused {
            let capacity_freed = self.all_capacity_freed(cx);
            let by_refusal = read.freed_by_refusal + (capacity_freed - freed_before);
            self.retained.replaying.refuse(session, capacity_freed, by_refusal);
        } else {
            self.retained.replaying.add(session);
        }
        end
    }

    /// Notes that the definitions that a read did not find cannot be read, unless they have moved since.
    fn lose_missing(
        &mut self,
        end: &mut RetainedReadEnd,
        read: &RetainedRead,
        location_of: impl Fn(&[u8]) -> Option<RecordLocation>,
    ) {
        for wanted in read.wanted.iter().filter(|wanted| !wanted.is_found) {
            let key = self.retained.definition_key(&self.access, wanted.place);
            let is_same = key.is_some_and(|key| location_of(&key) == Some(wanted.location));
            if is_same && self.retained.is_only_in_log(wanted.place) {
                self.lose_read(end, read.session, wanted.place);
            }
        }
    }

    /// Notes that a message cannot be read. Its session goes on with the next one.
    fn lose_read(&mut self, end: &mut RetainedReadEnd, session: SessionId, place: usize) {
        end.lost.push(self.retained.topic_of(place));
        if self.sessions.replay_target(session).is_some() {
            self.sessions.replays_mut(session).remove_read(place);
        }
    }

    fn push_assembled(
        &mut self,
        cx: &mut Context<'_>,
        read: &mut RetainedRead,
        assembly: &Assembly,
        message: MessageId,
    ) {
        let Assembly { place, properties, .. } = assembly;
        let arrived_ms = self.retained.slab[*place].content.arrived_ms;
        let expires_ms = expires_ms(properties, arrived_ms);
        let has_expired = expires_ms.is_some_and(|expires_ms| expires_ms <= cx.pending_writes.time_ms());
        let Some(queue) = self.awaiting_queue(read.session, *place) else {
            cx.messages.release(message);
            return;
        };
        if has_expired {
            cx.messages.release(message);
            self.delete_expired(cx, *place);
        } else if self.is_session_full(queue, *place) {
            cx.messages.release(message);
            read.is_full = true;
            return;
        } else {
            if expires_ms.is_some() {
                cx.messages.set_arrived_ms(message, arrived_ms.max(1));
            }
            read.is_refused = !self.push_to_session(cx, queue, message);
        }
        if !read.is_refused {
            self.sessions.replays_mut(read.session).remove_read(*place);
        }
    }

    /// Returns whether a retained message is too large for a session that has other messages.
    fn exceeds_session_bytes(&self, queue: QueueId, at: usize) -> bool {
        let record = self.queues.at(queue);
        let bytes = record.backlog.body_bytes() + u64::from(self.retained.slab[at].content.payload_len());
        record.backlog.ready() > 0 && bytes > record.settings.max_length_bytes
    }

    /// Pushes a retained message with this content to the queue of a session, or deletes the message if it has expired.
    /// Returns `false` if there is no capacity.
    fn push_retained(&mut self, cx: &mut Context<'_>, queue: QueueId, at: usize, content: &Content) -> bool {
        let key = &self.retained.slab[at].key;
        let Some((properties, payload)) = content.in_memory() else { return true };
        let expires_ms = expires_ms(properties, content.arrived_ms);
        if expires_ms.is_some_and(|expires_ms| expires_ms <= cx.pending_writes.time_ms()) {
            self.delete_expired(cx, at);
            return true;
        }
        let created = MessageContent { exchange: "", key, properties, payload };
        let flags = content.flags_with(properties);
        let Some(message) = new_message(cx, created, flags) else { return false };
        cx.work.charge_octets(payload.len());
        if flags.has(MessageFlags::EXPIRES) {
            cx.messages.set_arrived_ms(message, content.arrived_ms.max(1));
        }
        self.push_to_session(cx, queue, message)
    }

    fn delete_expired(&mut self, cx: &mut Context<'_>, place: usize) {
        let RetainedMessage { vhost, key, .. } = &self.retained.slab[place];
        let (vhost, key) = (*vhost, key.clone());
        if !cx.pending_writes.is_crowded() {
            let stored = self.retained.remove(vhost, &key).unwrap_or_default();
            append_removal(cx.pending_writes, &self.access, vhost, &key, stored);
        }
    }

    /// Creates a message with QoS 0 and without properties for a session. Returns `None` if there is no memory.
    pub(crate) fn message_for_session(
        &self,
        cx: &mut Context<'_>,
        exchange: &str,
        key: &str,
        payload: &[u8],
    ) -> Option<MessageId> {
        new_message(
            cx,
            MessageContent { exchange, key, properties: &NO_PROPERTIES, payload },
            MessageFlags::NONE,
        )
    }

    /// Pushes a message that is only for one session to its queue. Returns `false`, and drops the message, if there is no
    /// capacity.
    pub(crate) fn push_to_session(
        &mut self,
        cx: &mut Context<'_>,
        queue: QueueId,
        message: MessageId,
    ) -> bool {
        let claim = Claim { share: Share::Ordinary, on_full: OnFull::Wait };
        let targets = [queue];
        if self.queues.check_capacity(cx, &self.quota, message, &targets, claim).is_err() {
            cx.messages.discard(message);
            return false;
        }
        if self.queues.push(cx, message, &targets, Urgency::Window) {
            self.republisher().enforce_limits_after_push(cx, message, &targets);
        }
        cx.messages.release(message);
        true
    }
}

/// The AMQP properties of a message that has none: the flags.
const NO_PROPERTIES: [u8; 2] = [0; 2];

/// A message that is to be created.
struct MessageContent<'a> {
    exchange: &'a str,
    key: &'a str,
    properties: &'a [u8],
    payload: &'a [u8],
}

/// Creates a message. Returns `None` if there is no memory.
fn new_message(cx: &mut Context<'_>, content: MessageContent<'_>, flags: MessageFlags) -> Option<MessageId> {
    let MessageContent { exchange, key, properties, payload } = content;
    let (messages, share) = (&mut *cx.messages, Share::Ordinary);
    messages.check_extents(exchange.len() + key.len() + properties.len() + payload.len(), share).ok()?;
    let message = messages.begin(exchange, key.as_bytes(), share).ok()?;
    // As a whole, so that the end of a message that is discarded does not look like new capacity.
    if messages.reserve_whole(message, properties, flags, payload.len() as u32, share).is_err() {
        messages.discard(message);
        return None;
    }
    messages.append_body(message, payload);
    Some(message)
}

/// Begins a message with this routing key and these properties, and reserves memory for a payload of this length, which comes
/// in parts. Returns `None` if there is none.
fn begin_message(
    cx: &mut Context<'_>,
    key: &str,
    properties: &[u8],
    payload_len: u32,
    flags: MessageFlags,
) -> Option<MessageId> {
    let (messages, share) = (&mut *cx.messages, Share::Ordinary);
    messages.check_extents(key.len() + properties.len() + payload_len as usize, share).ok()?;
    let message = messages.begin("", key.as_bytes(), share).ok()?;
    if messages.reserve_content(message, properties, flags, payload_len, share).is_err() {
        messages.discard(message);
        return None;
    }
    Some(message)
}

impl Replaying {
    pub(super) fn new(memory: &Memory) -> Self {
        Self {
            memory: memory.clone(),
            sessions: VecDeque::new(),
            stuck_at: None,
            readers: VecDeque::new(),
            refused: Vec::new(),
            refused_at: 0,
        }
    }

    /// Adds a session, unless it is on the list.
    fn add(&mut self, session: SessionId) {
        self.stuck_at = None;
        if !self.sessions.contains(&session) {
            self.sessions.push_back(session);
        }
    }

    fn add_reader(&mut self, session: SessionId) {
        if !self.readers.contains(&session) {
            self.readers.push_back(session);
        }
    }

    /// Adds a session that had no capacity for a message from the log. `freed_by_refusal` is the part of the counter that comes
    /// from messages that were refused. It is no new capacity: otherwise two sessions would make each other read for ever.
    fn refuse(&mut self, session: SessionId, capacity_freed: u64, freed_by_refusal: u64) {
        self.refused_at = match self.refused.is_empty() {
            true => capacity_freed,
            false => self.refused_at + freed_by_refusal,
        };
        if !self.refused.contains(&session) {
            self.refused.push(session);
        }
    }
}
