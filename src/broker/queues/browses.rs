//! Reads from the log for somebody who looks at messages of a queue.
//!
//! ```text
//! want ─→ next_fetch ~ disk ~ page_in, paged_in ─→ fetched ─→ take
//! ```
//!
//! Always true: one look is read at a time; a message read for a look takes only memory that publishers could have
//! had; the messages found are held until the caller takes them.

use super::fetch::{Fetch, FetchFrom, Page, PageIn, begin_page};
use crate::queue::LogRun;
use leveret_core::mem::{MessageId, Messages};

/// Bytes of records read from the log for one browse.
const BROWSE_BYTES: u32 = 128 << 10;

/// A read from the log for somebody who looks at messages.
#[derive(Debug)]
struct Browse {
    number: u64,
    run: LogRun,
    state: BrowseState,
    /// The messages read so far, each with whether it was delivered before.
    found: Vec<(MessageId, bool)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum BrowseState {
    Wanted,
    Reading,
    Done,
}

/// The browses under way, of which one is read at a time.
#[derive(Debug, Default)]
pub struct Browses {
    list: Vec<Browse>,
    last: u64,
}

impl Browses {
    /// Has messages read from the log for somebody to look at; gives the number to ask for them by.
    pub fn want(&mut self, run: LogRun) -> u64 {
        self.last += 1;
        self.list.push(Browse { number: self.last, run, state: BrowseState::Wanted, found: Vec::new() });
        self.last
    }

    /// Whether the messages of this look have been read.
    pub fn is_done(&self, number: u64) -> bool {
        let browse = self.list.iter().find(|browse| browse.number == number);
        browse.is_none_or(|browse| browse.state == BrowseState::Done)
    }

    /// The messages read for a look, each with whether it was delivered before; the caller releases them.
    pub fn take(&mut self, number: u64) -> Vec<(MessageId, bool)> {
        let place = self.list.iter().position(|browse| browse.number == number);
        place.map(|place| self.list.swap_remove(place).found).unwrap_or_default()
    }

    /// Whether some look waits to be read.
    #[inline]
    pub(super) fn is_wanted(&self) -> bool {
        !self.list.is_empty() && self.list.iter().any(|browse| browse.state == BrowseState::Wanted)
    }

    /// What is to be read for the next browse.
    pub(super) fn next_fetch(&mut self) -> Option<Fetch> {
        let browse = self.list.iter_mut().find(|browse| browse.state == BrowseState::Wanted)?;
        browse.state = BrowseState::Reading;
        let LogRun { queue, incarnation, start, count, .. } = browse.run;
        let (end, from) = (start + u64::from(count), FetchFrom::Browse);
        Some(Fetch { queue, incarnation, start, end, bytes_max: BROWSE_BYTES, from, is_peek: false })
    }

    /// Begins a message that was read for a look, its body still to come.
    pub(super) fn begin(&mut self, messages: &mut Messages, fetch: &Fetch, page: &Page<'_>) -> PageIn {
        if self.reading().is_none() || !(fetch.start..fetch.end).contains(&page.offset) {
            return PageIn::NotWanted;
        }
        if page.body_len as usize > messages.body_bytes_max() / 4 || !messages.has_ordinary_room(page.bytes())
        {
            return PageIn::NoRoom;
        }
        begin_page(messages, page).map_or(PageIn::NoRoom, PageIn::Begun)
    }

    /// Adds a message whose body is whole to its browse.
    pub(super) fn add(&mut self, messages: &mut Messages, offset: u64, message: MessageId) {
        messages.finish(message);
        match self.reading() {
            Some(browse) => browse.found.push((message, offset < browse.run.redelivered_below)),
            None => messages.release(message),
        }
    }

    /// Ends the read for a look, or has it done once more.
    pub(super) fn end(&mut self, is_again: bool) {
        if let Some(browse) = self.reading() {
            browse.state = if is_again { BrowseState::Wanted } else { BrowseState::Done };
        }
    }

    fn reading(&mut self) -> Option<&mut Browse> {
        self.list.iter_mut().find(|browse| browse.state == BrowseState::Reading)
    }
}
