//! Sending the retained messages that match a new subscription.
//!
//! A subscriber gets them as messages in the queue of its session. Their exchange has no name, which distinguishes them from
//! other messages ([`leveret_core::command::Delivery`]). Only some of them are in the queue at a time; when the client has
//! received these, the next ones are added. So a client gets thousands of them in many turns, and they take little memory.
//!
//! Messages whose contents are only in the log are collected, up to [`FROM_LOG_MAX`] at a time, and read in the order in
//! which they are in the log. A read has up to [`READY_MAX`] of them. [`COLLECTORS_MAX`] sessions do this at a time, and the
//! others wait.
//!
//! A retained message whose message expiry interval has passed is not sent, and is deleted when a subscription matches it.
//! The time since its publication is not in the log: after a restart, the interval begins again.

use core::cmp::Reverse;
use std::collections::VecDeque;
use std::rc::Rc;

use leveret_amqp::field::Table;
use leveret_core::command::{BindingId, QueueId, SessionId, VhostId};
use leveret_core::definition::{self, Definition, RetainedPart};
use leveret_core::mem::{MessageFlags, MessageId, Share};
use leveret_core::topic::exchange_separators;
use leveret_storage::{PART_BYTES, PendingWrites, RecordLocation, Urgency};

use super::{Content, Retained, RetainedMessage, Room, StoredParts, append_removal, expires_ms, zeros};
use crate::access::Access;
use crate::queue_flow::Claim;
use crate::sessions::matches;
use crate::topology::{Binding, Destination};
use crate::{Broker, Context};

/// The number of messages in the queue of a session up to which retained messages are added.
const READY_MAX: u32 = 32;
/// Retained messages are read from the log for a session that has at most this number of messages. The others are read
/// together later, so that a read is worth its cost.
const READY_MAX_BEFORE_READ: u32 = READY_MAX / 2;
/// The number of retained messages that are compared with a filter before other sessions have their turn.
const EXAMINED_MAX: usize = 4096;
/// The number of comparisons that count as one unit of work.
const EXAMINED_PER_UNIT: usize = 8;
/// The number of messages that a session collects before they are read from the log. More would take more memory, and
/// fewer would lie further apart in the log.
const FROM_LOG_MAX: usize = 512;
/// The number of sessions that collect messages at a time.
const COLLECTORS_MAX: usize = 8;
/// Bytes of the lists of collected messages.
pub(crate) const FROM_LOG_BYTES: usize = COLLECTORS_MAX * FROM_LOG_MAX * size_of::<u32>();
/// The largest sum of the records of one read in bytes.
const READ_BYTES_MAX: u32 = leveret_storage::FETCH_BYTES as u32;

/// The subscriptions of a session whose retained messages are not in its queue yet.
#[derive(Debug, Default)]
pub(crate) struct Replays {
    subscriptions: VecDeque<Replay>,
    from_log: ReplayFromLog,
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
#[derive(Debug, Default)]
struct ReplayFromLog {
    /// Places of the messages. When they are sorted, the next one is the last.
    places: Vec<u32>,
    step: FromLogStep,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum FromLogStep {
    #[default]
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
        if self.subscriptions.front().is_some_and(|replay| replay.binding == binding) {
            self.end_first();
        }
        self.subscriptions.retain(|replay| replay.binding != binding);
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
        self.from_log = ReplayFromLog::default();
    }

    /// Removes a message that was read from the log, and returns whether it was on the list.
    fn remove_read(&mut self, place: usize) -> bool {
        let from_log = &mut self.from_log;
        let is_sorted = from_log.step == FromLogStep::Sorted;
        let found = from_log.places.iter().rposition(|other| is_sorted && *other as usize == place);
        found.map(|at| from_log.places.remove(at)).is_some()
    }

    fn is_awaiting(&self, place: usize) -> bool {
        self.from_log.step == FromLogStep::Sorted
            && self.from_log.places.iter().any(|other| *other as usize == place)
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

/// Sessions with retained messages to be added to their queues.
#[derive(Debug, Default)]
pub(crate) struct Replaying {
    /// In the order of their turns.
    sessions: VecDeque<SessionId>,
    /// The counter of freed capacity when no session could get a message.
    stuck_at: Option<u64>,
    /// Sessions whose next retained messages have to be read from the log.
    readers: VecDeque<SessionId>,
    /// Sessions that had no capacity for messages that were read, and the counter of freed capacity at that time.
    refused: Vec<SessionId>,
    refused_at: u64,
    /// Sessions that collect messages that are only in the log. Some may have ended since.
    collectors: Vec<SessionId>,
    /// Sessions that wait until they may collect messages.
    waiting: VecDeque<SessionId>,
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
    /// The queue has as many bytes as the session may have.
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

/// A content whose parts are being read. Its bytes are counted.
#[derive(Debug)]
struct Assembly {
    place: usize,
    stored: StoredParts,
    octets: Rc<[u8]>,
    /// The index of the next part.
    next: u32,
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
        Self { session, wanted: Vec::new(), assembly: None, is_refused: false, is_full: false }
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

    fn is_only_in_log(&self, place: usize) -> bool {
        self.slab.get(place).is_some_and(|record| record.content.octets.is_none())
    }

    fn topic_of(&self, place: usize) -> String {
        let key = self.slab.get(place).map_or("", |record| &*record.key);
        exchange_separators(key).unwrap_or_default().to_string()
    }

    /// Begins to read the content in a place, which is in parts; `None` if there is no memory for it.
    fn begin_assembly(
        &mut self,
        pending_writes: &mut PendingWrites,
        access: &Access,
        place: usize,
    ) -> Option<Assembly> {
        let RetainedMessage { vhost, key, content, stored, .. } = self.slab.get(place)?;
        let (vhost, key, len, stored) = (*vhost, key.clone(), content.len as usize, *stored);
        let Room::Free = self.make_room(pending_writes, access, (vhost, &key), len) else { return None };
        self.add_content(len);
        Some(Assembly { place, stored, octets: zeros(len), next: 0 })
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
        if !replaying.waiting.is_empty() && self.has_free_collector() {
            while let Some(next) = self.retained.replaying.waiting.pop_front() {
                if self.sessions.replay_target(next).is_some() {
                    self.retained.replaying.add(next);
                    break;
                }
            }
        }
        let (mut sessions_left, mut examined_left) = (self.retained.replaying.sessions.len(), EXAMINED_MAX);
        let mut is_any_examined = sessions_left == 0;
        while sessions_left > 0 && examined_left > 0 {
            let Some(session) = self.retained.replaying.sessions.pop_front() else { break };
            sessions_left -= 1;
            is_any_examined |= self.replay_retained(cx, session, &mut examined_left);
        }
        let has_given_up = !is_any_examined && sessions_left == 0;
        self.retained.replaying.stuck_at = has_given_up.then(|| self.all_capacity_freed(cx));
    }

    /// Returns whether another session may collect messages.
    fn has_free_collector(&mut self) -> bool {
        let Self { sessions, retained, .. } = self;
        let is_collecting = |session: &SessionId| {
            sessions.replay_target(*session).is_some()
                && !sessions.replays_mut(*session).from_log.places.is_empty()
        };
        let collectors = &mut retained.replaying.collectors;
        if collectors.len() >= COLLECTORS_MAX {
            collectors.retain(is_collecting);
        }
        collectors.len() < COLLECTORS_MAX
    }

    /// Lets a session collect messages, or makes it wait. Returns whether it may.
    fn may_collect(&mut self, session: SessionId) -> bool {
        if self.retained.replaying.collectors.contains(&session) {
            return true;
        }
        let is_free = self.has_free_collector();
        let Replaying { collectors, waiting, .. } = &mut self.retained.replaying;
        if is_free {
            collectors.push(session);
        } else if !waiting.contains(&session) {
            waiting.push_back(session);
        }
        is_free
    }

    fn all_capacity_freed(&self, cx: &Context<'_>) -> u64 {
        self.capacity_freed() + cx.pending_writes.capacity_freed() + cx.messages.capacity_freed()
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
            let next_from_log = match replays.from_log.step {
                FromLogStep::Collecting => None,
                FromLogStep::Collected | FromLogStep::Sorted => Some(replays.from_log.places.last()),
            };
            let found = match next_from_log {
                Some(None) => {
                    replays.from_log = ReplayFromLog::default();
                    self.retained.replaying.collectors.retain(|other| *other != session);
                    continue;
                }
                Some(Some(place)) => {
                    let place = *place as usize;
                    if !self.retained.is_match(vhost, subscription, place) {
                        // It was deleted.
                        replays.from_log.places.pop();
                        continue;
                    }
                    if self.retained.is_only_in_log(place) {
                        if ready <= READY_MAX_BEFORE_READ.min(messages_max.saturating_sub(1))
                            && !self.exceeds_session_bytes(queue, place)
                        {
                            self.retained.replaying.add_reader(session);
                        }
                        return true;
                    }
                    NextMatch::At(place)
                }
                None if *examined_left == 0 => {
                    self.retained.replaying.add(session);
                    return true;
                }
                None => {
                    let mut place = replay.place;
                    let found = self.retained.next_match(vhost, subscription, &mut place, *examined_left);
                    let examined = (place - replay.place).max(1);
                    cx.work.charge(examined / EXAMINED_PER_UNIT);
                    *examined_left = examined_left.saturating_sub(examined);
                    match found {
                        NextMatch::At(at) if self.retained.is_only_in_log(at) => {
                            if !self.may_collect(session) {
                                return true;
                            }
                            let replays = self.sessions.replays_mut(session);
                            replays.from_log.places.push(at as u32);
                            if replays.from_log.places.len() >= FROM_LOG_MAX {
                                replays.from_log.step = FromLogStep::Collected;
                            }
                            replays.advance(place);
                            continue;
                        }
                        NextMatch::None if !replays.from_log.places.is_empty() => {
                            replays.from_log.step = FromLogStep::Collected;
                            replays.advance(place);
                            continue;
                        }
                        NextMatch::ExamineMore => {
                            replays.advance(place);
                            continue;
                        }
                        found => found,
                    }
                }
            };
            let NextMatch::At(at) = found else {
                replays.end_first();
                continue;
            };
            // `refill_retained` continues. More than the session may have would be dropped.
            if self.exceeds_session_bytes(queue, at) {
                return true;
            }
            let content = self.retained.slab[at].content.clone();
            if !self.push_retained(cx, queue, at, &content) {
                self.retained.replaying.add(session);
                return false;
            }
            let replays = self.sessions.replays_mut(session);
            match replays.from_log.step {
                FromLogStep::Collecting => replays.advance(at + 1),
                FromLogStep::Collected | FromLogStep::Sorted => _ = replays.from_log.places.pop(),
            }
        }
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
            match self.retained_read_for(cx.pending_writes, session, &location_of) {
                Some(read) if read.is_refused => {
                    let capacity_freed = self.all_capacity_freed(cx);
                    self.retained.replaying.refuse(session, capacity_freed);
                }
                Some(read) => return Some(read),
                None => {}
            }
        }
        None
    }

    /// Returns the next read for a session, which is refused without memory for a content in parts. `None` if there is nothing
    /// to read.
    fn retained_read_for(
        &mut self,
        pending_writes: &mut PendingWrites,
        session: SessionId,
        location_of: &impl Fn(&[u8]) -> Option<RecordLocation>,
    ) -> Option<RetainedRead> {
        let Self { sessions, retained, access, .. } = self;
        sessions.replay_target(session)?;
        let from_log = &mut sessions.replays_mut(session).from_log;
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
            // Another content is in memory since, or there is none.
            let Some(record) = retained.slab.get(place).filter(|record| record.content.octets.is_none())
            else {
                break;
            };
            let is_in_parts = record.stored.count > 0;
            if is_in_parts && read.wanted.is_empty() {
                read.assembly = retained.begin_assembly(pending_writes, access, place);
                read.is_refused = read.assembly.is_none();
                self.plan_parts(&mut read, location_of);
                return Some(read);
            }
            let location = location_at(retained, place);
            if is_in_parts
                || read.wanted.len() >= READY_MAX as usize
                || !location.is_some_and(|location| read.add(place, location))
            {
                break;
            }
        }
        if read.wanted.is_empty() {
            // The turn decides again.
            retained.replaying.add(session);
            return None;
        }
        Some(read)
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
        match Definition::parse(key, value) {
            Some(Definition::Retained(retained)) if read.assembly.is_none() => {
                self.take_whole(cx, read, &retained);
            }
            Some(Definition::RetainedPart(part)) => self.take_part(read, &part),
            _ => {}
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

    fn take_part(&self, read: &mut RetainedRead, part: &RetainedPart<'_>) {
        let RetainedPart { vhost, key, side, index, bytes } = *part;
        let at = self.access.find_vhost(vhost).and_then(|vhost| self.retained.find(vhost, key));
        let Some(assembly) = &mut read.assembly else { return };
        let start = index as usize * PART_BYTES;
        let end = assembly.octets.len().min(start + PART_BYTES);
        if at == Some(assembly.place)
            && side == assembly.stored.side
            && index == assembly.next
            && bytes.len() == end.saturating_sub(start)
        {
            Rc::make_mut(&mut assembly.octets)[start..end].copy_from_slice(bytes);
            assembly.next += 1;
            if let Some(wanted) = read.wanted.iter_mut().find(|wanted| !wanted.is_found) {
                wanted.is_found = true;
            }
        }
    }

    /// Pushes a message that was read to the queue of its session, unless the session does not wait for it any more.
    fn push_read(&mut self, cx: &mut Context<'_>, read: &mut RetainedRead, at: usize, content: &Content) {
        let Some((_, queue)) = self.sessions.replay_target(read.session) else { return };
        if !self.sessions.replays_mut(read.session).is_awaiting(at) {
            return;
        }
        if self.exceeds_session_bytes(queue, at) {
            read.is_full = true;
        } else if self.push_retained(cx, queue, at, content) {
            self.sessions.replays_mut(read.session).remove_read(at);
        } else {
            read.is_refused = true;
        }
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
        if let Some(assembly) = &read.assembly {
            let (place, stored) = (assembly.place, assembly.stored);
            let record = self.retained.slab.get(place);
            let is_present = record.is_some_and(|record| {
                let StoredParts { side, count, checksum } = record.stored;
                (side, count, checksum) == (stored.side, stored.count, stored.checksum)
                    && record.content.octets.is_none()
            });
            let is_awaited = self.sessions.replay_target(session).is_some()
                && self.sessions.replays_mut(session).is_awaiting(place);
            let is_complete = assembly.next == stored.count;
            if is_present && is_awaited && !is_complete {
                // A part that the compactor has moved is read again.
                let has_progress = read.wanted.iter().any(|wanted| wanted.is_found);
                let location = read.locations().next();
                self.plan_parts(&mut read, &location_of);
                let next = read.locations().next();
                if next.is_some() && (has_progress || must_retry || next != location) {
                    end.next = Some(read);
                    return end;
                }
                end.lost.push(self.retained.topic_of(place));
                self.sessions.replays_mut(session).remove_read(place);
            } else if is_present && is_awaited {
                self.push_assembled(cx, &mut read, &mut end);
            }
            if let Some(assembly) = read.assembly.take() {
                self.retained.subtract_content(assembly.octets.len());
            }
        } else if !must_retry {
            for wanted in read.wanted.iter().filter(|wanted| !wanted.is_found) {
                let key = self.retained.definition_key(&self.access, wanted.place);
                let is_same = key.is_some_and(|key| location_of(&key) == Some(wanted.location));
                if is_same && self.retained.is_only_in_log(wanted.place) {
                    end.lost.push(self.retained.topic_of(wanted.place));
                    if self.sessions.replay_target(session).is_some() {
                        self.sessions.replays_mut(session).remove_read(wanted.place);
                    }
                }
            }
        }
        if read.is_refused {
            let capacity_freed = self.all_capacity_freed(cx);
            self.retained.replaying.refuse(session, capacity_freed);
        } else {
            self.retained.replaying.add(session);
        }
        end
    }

    fn push_assembled(&mut self, cx: &mut Context<'_>, read: &mut RetainedRead, end: &mut RetainedReadEnd) {
        let Some(Assembly { place, stored, octets, .. }) = &read.assembly else { return };
        let (place, record) = (*place, &self.retained.slab[*place].content);
        if crc32c::crc32c(octets) != stored.checksum {
            end.lost.push(self.retained.topic_of(place));
            self.sessions.replays_mut(read.session).remove_read(place);
            return;
        }
        let content = Content::new(record.qos, Rc::clone(octets), record.properties_len, record.arrived_ms);
        self.push_read(cx, read, place, &content);
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
        let RetainedMessage { vhost, key, .. } = &self.retained.slab[at];
        let Some((properties, payload)) = content.in_memory() else { return true };
        let expires_ms = expires_ms(properties, content.arrived_ms);
        if expires_ms.is_some_and(|expires_ms| expires_ms <= cx.pending_writes.time_ms()) {
            let (vhost, key) = (*vhost, key.clone());
            if !cx.pending_writes.is_crowded() {
                let stored = self.retained.remove(vhost, &key).unwrap_or_default();
                append_removal(cx.pending_writes, &self.access, (vhost, &key), stored);
            }
            return true;
        }
        cx.work.charge_octets(payload.len());
        let parts = ("", &**key, properties, payload);
        let Some(message) = new_message(cx, parts, content.flags()) else { return false };
        if content.flags().has(MessageFlags::EXPIRES) {
            cx.messages.set_arrived_ms(message, content.arrived_ms.max(1));
        }
        self.push_to_session(cx, queue, message)
    }

    /// Creates a message with QoS 0 and without properties for a session. Returns `None` if there is no memory.
    pub(crate) fn message_for_session(
        &self,
        cx: &mut Context<'_>,
        (exchange, key): (&str, &str),
        payload: &[u8],
    ) -> Option<MessageId> {
        new_message(cx, (exchange, key, &NO_PROPERTIES, payload), MessageFlags::NONE)
    }

    /// Pushes a message that is only for one session to its queue. Returns `false`, and drops the message, if there is no
    /// capacity.
    pub(crate) fn push_to_session(
        &mut self,
        cx: &mut Context<'_>,
        queue: QueueId,
        message: MessageId,
    ) -> bool {
        let claim = Claim { share: Share::Ordinary, may_wait: true, has_shares: true, has_timed_out: false };
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

/// Creates a message with these names, properties and payload. Returns `None` if there is no memory.
fn new_message(
    cx: &mut Context<'_>,
    (exchange, key, properties, payload): (&str, &str, &[u8], &[u8]),
    flags: MessageFlags,
) -> Option<MessageId> {
    let (messages, share) = (&mut *cx.messages, Share::Ordinary);
    messages.check_extents(exchange.len() + key.len() + properties.len() + payload.len(), share).ok()?;
    let message = messages.begin(exchange, key.as_bytes(), share).ok()?;
    if messages.reserve_content(message, properties, flags, payload.len() as u32, share).is_err() {
        messages.discard(message);
        return None;
    }
    messages.append_body(message, payload);
    messages.finish(message);
    Some(message)
}

impl Replaying {
    /// Adds a session, unless it is on the list.
    fn add(&mut self, session: SessionId) {
        if !self.sessions.contains(&session) {
            self.sessions.push_back(session);
        }
    }

    fn add_reader(&mut self, session: SessionId) {
        if !self.readers.contains(&session) {
            self.readers.push_back(session);
        }
    }

    /// Adds a session that had no capacity for a message that was read.
    fn refuse(&mut self, session: SessionId, capacity_freed: u64) {
        if !self.refused.contains(&session) {
            self.refused.push(session);
        }
        self.refused_at = capacity_freed;
    }
}
