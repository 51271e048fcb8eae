//! Looking into a queue: its messages in their order, without taking or changing them.
//!
//! ```text
//! look ─→ what is in memory, or where in the log the first of them is
//!              want_look ─→ next_fetch ~ disk ~ page_in, paged_in ─→ fetched ─→ take_look
//! ```
//!
//! Always true: no count, mark, order or place of the queue is changed; a message read for a look takes only
//! memory that publishers could have had, and is released when it was seen.

use crate::command::QueueId;
use crate::error::{Fault, ReplyCode};
use crate::mem::{MessageId, Messages};

use super::looks::{LogRun, Look, LookState};
use super::page_in::{Fetch, FetchFrom, Page, PageIn, begin_page};
use super::place::{Lane, Place};
use super::state::Queues;
use crate::broker::quota::owner_of;

/// Queue entries that one look goes through.
const ENTRIES_MAX: u32 = 20_000;
/// Messages that one look returns at most.
pub const LOOKED_MAX: u32 = 100;
/// Bytes of records read from the log for one look.
const LOOK_BYTES: u32 = 128 << 10;

/// One message of a queue, or a run in the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seen {
    /// A message in memory, and whether it may have been delivered before.
    InMemory(MessageId, bool),
    /// A run of messages that only the log has.
    InLog(LogRun),
}

/// The result of a look into a queue.
#[derive(Debug)]
pub struct Looked {
    /// Ready messages of the queue.
    pub ready: u32,
    /// The messages asked for, in their order, as far as they are all in memory, or all in one run in the
    /// log.
    pub seen: Vec<Seen>,
}

/// How far a look has come.
struct Glance {
    seen: Vec<Seen>,
    /// Messages that the look still passes over.
    skip: u32,
    /// Entries that the look went through.
    entries: u32,
}

impl Queues {
    /// Messages of a queue from the one in this place on, counted from 0.
    ///
    /// # Errors
    /// The place is too far behind.
    pub(crate) fn look_from(&self, queue: QueueId, from: u32, count: u32) -> Result<Vec<Seen>, Fault> {
        let mut look = Glance { seen: Vec::new(), skip: from, entries: 0 };
        let mut levels = self.levels(queue);
        while levels.next().is_some_and(|level| self.look_into(level, count, &mut look)) {}
        if look.seen.is_empty() && look.entries >= ENTRIES_MAX {
            let text = format_args!("that far from the front a queue cannot be looked into");
            return Err(Fault::new(ReplyCode::PreconditionFailed, text));
        }
        Ok(look.seen)
    }

    /// Looks into a queue, or one level of it; says whether the next level is to be looked into, too.
    fn look_into(&self, queue: QueueId, count: u32, look: &mut Glance) -> bool {
        let record = &self.slab[queue.index()];
        let Glance { seen, skip, entries } = look;
        let mut goes_on = true;
        let mut each = |place: Place, came_back: Option<bool>| {
            *entries += 1;
            let here = if let Place::Stored(_, _, run) = place { run } else { 1 };
            if *skip >= here {
                *skip -= here;
                goes_on = *entries < ENTRIES_MAX;
                return goes_on;
            }
            let past = core::mem::take(skip);
            let was_delivered =
                |offset| came_back.unwrap_or_else(|| offset < record.logged.delivered_below());
            let one = match place {
                Place::Plain(message) | Place::Spilled(message, _) => {
                    Seen::InMemory(message, came_back.unwrap_or(false))
                }
                Place::Logged(message, offset) => Seen::InMemory(message, was_delivered(offset)),
                Place::Stored(lane, start, run) => {
                    let start = start + u64::from(past);
                    let redelivered_below = match (came_back, lane) {
                        (Some(true), _) => u64::MAX,
                        (_, Lane::Durable) => record.logged.delivered_below(),
                        (_, Lane::Transient) => 0,
                    };
                    let incarnation = record.incarnation(lane);
                    let count = (run - past).min(count);
                    Seen::InLog(LogRun { queue, incarnation, start, count, redelivered_below })
                }
            };
            let is_in_log = matches!(one, Seen::InLog(_));
            goes_on = false;
            if is_in_log && !seen.is_empty() {
                return false;
            }
            seen.push(one);
            goes_on = !is_in_log && (seen.len() as u32) < count;
            goes_on
        };
        record.backlog.look(&self.pool, &self.deliveries, &mut each);
        goes_on
    }

    // ---- from the log

    /// Has messages read from the log for somebody to look at; gives the number to ask for them by.
    pub fn want_look(&mut self, run: LogRun) -> u64 {
        self.looks.last += 1;
        let number = self.looks.last;
        self.looks.list.push(Look { number, run, state: LookState::Wanted, found: Vec::new() });
        number
    }

    /// Whether the messages of this look have been read.
    pub fn is_look_done(&self, number: u64) -> bool {
        let look = self.looks.list.iter().find(|look| look.number == number);
        look.is_none_or(|look| look.state == LookState::Done)
    }

    /// The messages read for a look, each with whether it was delivered before; the caller releases them.
    pub fn take_look(&mut self, number: u64) -> Vec<(MessageId, bool)> {
        let place = self.looks.list.iter().position(|look| look.number == number);
        place.map(|place| self.looks.list.swap_remove(place).found).unwrap_or_default()
    }

    pub(crate) fn next_look(&mut self) -> Option<Fetch> {
        let look = self.looks.list.iter_mut().find(|look| look.state == LookState::Wanted)?;
        look.state = LookState::Reading;
        let LogRun { queue, incarnation, start, count, .. } = look.run;
        let (end, from) = (start + u64::from(count), FetchFrom::Look);
        Some(Fetch { queue, incarnation, start, end, bytes_max: LOOK_BYTES, from, is_peek: false })
    }

    /// A message that was read for a look, its body still to come.
    pub(crate) fn look_in(&mut self, messages: &mut Messages, fetch: &Fetch, page: &Page<'_>) -> PageIn {
        let Some(queue) = self.slab.get(fetch.queue.index()) else { return PageIn::NotWanted };
        if self.looks.reading().is_none() || !(fetch.start..fetch.end).contains(&page.offset) {
            return PageIn::NotWanted;
        }
        let owner = owner_of(queue.vhost);
        if page.body_len as usize > messages.body_bytes_max() / 4
            || !messages.has_ordinary_room(owner, page.bytes())
        {
            return PageIn::NoRoom;
        }
        begin_page(messages, owner, Lane::Durable, page).map_or(PageIn::NoRoom, PageIn::Begun)
    }

    /// Adds a message whose body is whole to its look.
    pub(crate) fn looked_in(&mut self, messages: &mut Messages, offset: u64, message: MessageId) {
        messages.finish(message);
        match self.looks.reading() {
            Some(look) => look.found.push((message, offset < look.run.redelivered_below)),
            None => messages.release(message),
        }
    }

    /// Ends the read for a look, or has it done once more.
    pub(crate) fn end_look(&mut self, is_again: bool) {
        if let Some(look) = self.looks.reading() {
            look.state = if is_again { LookState::Wanted } else { LookState::Done };
        }
    }
}
