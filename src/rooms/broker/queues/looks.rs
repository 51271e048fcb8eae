//! Reads from the log for somebody who looks at messages of a queue.
//!
//! ```text
//! want ─→ next_fetch ~ disk ~ page_in, paged_in ─→ fetched ─→ take
//! ```
//!
//! Always true: one look is read at a time; a message read for a look takes only memory that publishers could have
//! had; the messages found are held until the caller takes them.

use super::fetch::{Fetch, FetchFrom, Page, PageIn, begin_page};
use crate::broker::queue::{Lane, LogRun};
use crate::broker::quota::owner_of;
use crate::command::VhostId;
use crate::mem::{MessageId, Messages};

/// Bytes of records read from the log for one look.
const LOOK_BYTES: u32 = 128 << 10;

/// A read from the log for somebody who looks at messages.
#[derive(Debug)]
struct Look {
    number: u64,
    run: LogRun,
    state: LookState,
    /// The messages read so far, each with whether it was delivered before.
    found: Vec<(MessageId, bool)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum LookState {
    Wanted,
    Reading,
    Done,
}

/// The looks under way, of which one is read at a time.
#[derive(Debug, Default)]
pub struct Looks {
    list: Vec<Look>,
    last: u64,
}

impl Looks {
    /// Has messages read from the log for somebody to look at; gives the number to ask for them by.
    pub fn want(&mut self, run: LogRun) -> u64 {
        self.last += 1;
        self.list.push(Look { number: self.last, run, state: LookState::Wanted, found: Vec::new() });
        self.last
    }

    /// Whether the messages of this look have been read.
    pub fn is_done(&self, number: u64) -> bool {
        let look = self.list.iter().find(|look| look.number == number);
        look.is_none_or(|look| look.state == LookState::Done)
    }

    /// The messages read for a look, each with whether it was delivered before; the caller releases them.
    pub fn take(&mut self, number: u64) -> Vec<(MessageId, bool)> {
        let place = self.list.iter().position(|look| look.number == number);
        place.map(|place| self.list.swap_remove(place).found).unwrap_or_default()
    }

    /// Whether some look waits to be read.
    #[inline]
    pub(super) fn is_wanted(&self) -> bool {
        !self.list.is_empty() && self.list.iter().any(|look| look.state == LookState::Wanted)
    }

    /// What is to be read for the next look.
    pub(super) fn next_fetch(&mut self) -> Option<Fetch> {
        let look = self.list.iter_mut().find(|look| look.state == LookState::Wanted)?;
        look.state = LookState::Reading;
        let LogRun { queue, incarnation, start, count, .. } = look.run;
        let (end, from) = (start + u64::from(count), FetchFrom::Look);
        Some(Fetch { queue, incarnation, start, end, bytes_max: LOOK_BYTES, from, is_peek: false })
    }

    /// Begins a message that was read for a look in this virtual host, its body still to come.
    pub(super) fn begin(
        &mut self,
        messages: &mut Messages,
        vhost: VhostId,
        fetch: &Fetch,
        page: &Page<'_>,
    ) -> PageIn {
        if self.reading().is_none() || !(fetch.start..fetch.end).contains(&page.offset) {
            return PageIn::NotWanted;
        }
        let owner = owner_of(vhost);
        if page.body_len as usize > messages.body_bytes_max() / 4
            || !messages.has_ordinary_room(owner, page.bytes())
        {
            return PageIn::NoRoom;
        }
        begin_page(messages, owner, Lane::Durable, page).map_or(PageIn::NoRoom, PageIn::Begun)
    }

    /// Adds a message whose body is whole to its look.
    pub(super) fn add(&mut self, messages: &mut Messages, offset: u64, message: MessageId) {
        messages.finish(message);
        match self.reading() {
            Some(look) => look.found.push((message, offset < look.run.redelivered_below)),
            None => messages.release(message),
        }
    }

    /// Ends the read for a look, or has it done once more.
    pub(super) fn end(&mut self, is_again: bool) {
        if let Some(look) = self.reading() {
            look.state = if is_again { LookState::Wanted } else { LookState::Done };
        }
    }

    fn reading(&mut self) -> Option<&mut Look> {
        self.list.iter_mut().find(|look| look.state == LookState::Reading)
    }
}
