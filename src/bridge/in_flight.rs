//! What was sent upstream and is not confirmed: the window of a rule that forwards.
//!
//! ```text
//! number upstream   first …            first + ring.len()
//! ring            │ tag, id │ done │ tag, id │            each with its delivery tag here
//! ```
//!
//! Always true: numbers are those that the upstream gives, from 1 on and without gaps; each is settled once,
//! in whichever order confirms come; a confirm of what was not sent is the upstream's mistake.

use std::collections::VecDeque;

use leveret_core::command::Refusal;
use leveret_core::journal::Batch;

use super::client::Cause;
use super::headers::OwnId;

/// One message under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flight {
    /// Its delivery tag here.
    pub tag: u64,
    /// What it is known by.
    pub id: OwnId,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Sent,
    /// It came back with this code; its confirm is still to come.
    Returned(u16),
    Done,
}

/// The window.
#[derive(Debug)]
pub struct Flights {
    ring: VecDeque<Flight>,
    /// The number of the first.
    first: u64,
    window: usize,
}

impl Flights {
    /// Nothing is under way, and never more than `window` will be.
    pub fn new(window: usize) -> Self {
        Self { ring: VecDeque::with_capacity(window), first: 1, window }
    }

    /// Messages under way, those included that wait for one sent before.
    pub fn len(&self) -> usize {
        self.ring.len()
    }

    /// Whether nothing is under way.
    pub fn is_empty(&self) -> bool {
        self.ring.is_empty()
    }

    /// How many more may be sent.
    pub fn room(&self) -> usize {
        self.window - self.ring.len()
    }

    /// One more was sent.
    pub fn launch(&mut self, tag: u64, id: OwnId) {
        assert!(self.room() > 0, "nothing is sent beyond the window");
        self.ring.push_back(Flight { tag, id, state: State::Sent });
    }

    /// One came back: it reaches no queue.
    ///
    /// # Errors
    /// It was not sent.
    pub fn note_return(&mut self, id: Option<OwnId>, code: u16) -> Result<(), Cause> {
        let found = self.ring.iter_mut().find(|flight| flight.state == State::Sent && Some(flight.id) == id);
        let Some(flight) = found else {
            return Err(Cause::new(format_args!("it returned a message that it was not sent")));
        };
        flight.state = State::Returned(code);
        Ok(())
    }

    /// The next that this confirm settles, and why it was refused if it was; `None` when it settles no more.
    ///
    /// # Errors
    /// What it confirms was not sent.
    pub fn confirm(
        &mut self,
        number: u64,
        is_multiple: bool,
        is_taken: bool,
    ) -> Result<Option<(Flight, Option<Refusal>)>, Cause> {
        let end = self.first + self.ring.len() as u64;
        // 0 with `multiple` is everything so far.
        let last = if is_multiple && number == 0 { end - 1 } else { number };
        if last >= end || last == 0 && !is_multiple {
            return Err(Cause::new(format_args!("it confirmed message {number}, which it was not sent")));
        }
        let at = match is_multiple {
            true => self.ring.iter().position(|flight| flight.state != State::Done),
            false => last.checked_sub(self.first).map(|at| at as usize),
        };
        let Some(at) = at.filter(|at| self.first + *at as u64 <= last) else { return Ok(None) };
        let flight = &mut self.ring[at];
        let refusal = match (flight.state, is_taken) {
            (State::Done, _) => return Ok(None),
            (State::Returned(code), _) => Some(Refusal::Returned(code)),
            (State::Sent, true) => None,
            (State::Sent, false) => Some(Refusal::Nacked),
        };
        flight.state = State::Done;
        let settled = *flight;
        while self.ring.front().is_some_and(|flight| flight.state == State::Done) {
            self.ring.pop_front();
            self.first += 1;
        }
        Ok(Some((settled, refusal)))
    }

    /// What it is that was sent alone, if one thing was.
    pub fn only(&self) -> Option<Flight> {
        match self.ring.len() {
            1 => self.ring.front().copied(),
            _ => None,
        }
    }
}

// What came from upstream and is not acknowledged there: the window of a link that fetches.
//
// Always true: the upstream's tags rise; one is acknowledged when what came with it is durable here, and all
// before it are.

/// One message that was taken over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Arrival {
    tag: u64,
    batch: Batch,
}

/// The window.
#[derive(Debug)]
pub struct Arrivals {
    ring: VecDeque<Arrival>,
    /// The upstream was asked for so many ahead of what is acknowledged.
    ahead: usize,
    /// There are no more of them, whatever it was asked for before.
    window: usize,
}

impl Arrivals {
    /// Nothing has come, and the upstream is to send no more than so many ahead.
    pub fn new(ahead: usize) -> Self {
        Self { ring: VecDeque::with_capacity(ahead), ahead, window: ahead }
    }

    /// The consumer there begins again, and is to send no more than `ahead`: beside those that are here, and
    /// those of the one before that may still be under way.
    pub fn begin_again(&mut self, ahead: usize) {
        self.window = self.ring.len() + self.ahead + ahead;
        self.ahead = ahead;
    }

    /// Whether nothing waits to be acknowledged.
    pub fn is_empty(&self) -> bool {
        self.ring.is_empty()
    }

    /// Messages that wait to be acknowledged.
    pub fn len(&self) -> usize {
        self.ring.len()
    }

    /// The message of this tag is ours when this batch is durable. `false`: the upstream sends more than it
    /// was asked for, or tags that do not rise.
    #[must_use]
    pub fn take(&mut self, tag: u64, batch: Batch) -> bool {
        let rises = self.ring.back().is_none_or(|last| last.tag < tag);
        let fits = self.ring.len() < self.window;
        if rises && fits {
            self.ring.push_back(Arrival { tag, batch });
        }
        rises && fits
    }

    /// The next tag that can be acknowledged now: of one message, or where `together`, of as many as are
    /// durable; and how many messages that are.
    pub fn next_durable(&mut self, durable: Batch, together: bool) -> Option<(u64, u64)> {
        let mut found = None;
        let mut count = 0;
        while let Some(arrival) = self.ring.front().copied() {
            if arrival.batch > durable {
                break;
            }
            self.ring.pop_front();
            count += 1;
            found = Some((arrival.tag, count));
            if !together {
                break;
            }
        }
        found
    }
}

// How much comes in that is to be forwarded: what an operator wants to know of an outage before there is one.
//
// Always true: counters of queues only rise while a queue is there.

/// Messages that came into the queues of a bridge.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Inflow {
    /// What their counters say altogether, when that was looked at last.
    counted: u64,
    /// This day, until then.
    today: u64,
    yesterday: u64,
}

impl Inflow {
    /// The queues' counters say so much; they begin again when a queue does.
    pub const fn note(&mut self, counted: u64) {
        self.today = self.today.saturating_add(counted.saturating_sub(self.counted));
        self.counted = counted;
    }

    /// The counters say so much already, and that is nothing that came.
    pub const fn begin(&mut self, counted: u64) {
        self.counted = counted;
    }

    /// Another day begins.
    pub const fn end_day(&mut self) {
        (self.yesterday, self.today) = (self.today, 0);
    }

    /// What [`Self::note`] was last told.
    pub const fn counted(&self) -> u64 {
        self.counted
    }

    /// What is to be written down: of this day and of the one before.
    pub const fn numbers(&self) -> [u64; 2] {
        [self.today, self.yesterday]
    }

    /// Goes on with what was.
    pub const fn restore(&mut self, [today, yesterday]: [u64; 2]) {
        (self.today, self.yesterday) = (today, yesterday);
    }

    /// Messages, and the milliseconds in which they came; `gone_ms`: of this day.
    pub const fn span(&self, gone_ms: u64) -> (u64, u64) {
        match self.yesterday {
            0 => (self.today, gone_ms),
            yesterday => (self.today + yesterday, gone_ms + super::pacing::DAY_MS),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(offset: u64) -> OwnId {
        OwnId { queue: 1, offset, is_transient: false }
    }

    fn flying(count: u64) -> Flights {
        let mut flights = Flights::new(8);
        (0..count).for_each(|at| flights.launch(100 + at, id(at)));
        flights
    }

    /// What a confirm settles, by tags.
    fn settled(
        flights: &mut Flights,
        number: u64,
        multiple: bool,
        taken: bool,
    ) -> Vec<(u64, Option<Refusal>)> {
        let mut all = Vec::new();
        while let Some((flight, refusal)) = flights.confirm(number, multiple, taken).expect("it was sent") {
            all.push((flight.tag, refusal));
            if !multiple {
                break;
            }
        }
        all
    }

    #[test]
    fn each_is_settled_once_in_whichever_order() {
        let mut flights = flying(6);
        assert_eq!(settled(&mut flights, 2, false, true), [(101, None)]);
        assert_eq!(flights.len(), 6, "the first is still under way");
        assert_eq!(settled(&mut flights, 2, false, true), []);
        assert_eq!(settled(&mut flights, 3, true, true), [(100, None), (102, None)]);
        assert_eq!((flights.len(), flights.room()), (3, 5));
        assert_eq!(settled(&mut flights, 3, true, true), []);
        assert_eq!(
            settled(&mut flights, 5, true, false),
            [(103, Some(Refusal::Nacked)), (104, Some(Refusal::Nacked))]
        );
        assert_eq!(flights.only().map(|flight| flight.tag), Some(105));
        assert_eq!(settled(&mut flights, 0, true, true), [(105, None)]);
        assert!(flights.is_empty() && flights.only().is_none());
        flights.launch(7, id(7));
        assert_eq!(settled(&mut flights, 7, false, true), [(7, None)], "numbers go on");
    }

    #[test]
    fn what_came_back_is_refused_although_it_is_confirmed() {
        let mut flights = flying(3);
        assert_eq!(flights.note_return(Some(id(1)), 312), Ok(()));
        let refused = Some(Refusal::Returned(312));
        assert_eq!(settled(&mut flights, 3, true, true), [(100, None), (101, refused), (102, None)]);
    }

    #[test]
    fn what_was_not_sent_is_the_upstreams_mistake() {
        let mut flights = flying(2);
        assert!(flights.confirm(3, false, true).is_err() && flights.confirm(3, true, true).is_err());
        assert!(flights.confirm(0, false, true).is_err());
        assert!(flights.note_return(Some(id(9)), 312).is_err() && flights.note_return(None, 312).is_err());
        assert_eq!(flights.note_return(Some(id(0)), 312), Ok(()));
        assert!(flights.note_return(Some(id(0)), 312).is_err(), "it came back already");
        assert_eq!(Flights::new(4).confirm(0, true, true), Ok(None), "everything so far is nothing");
    }
}

#[cfg(test)]
mod inflow_tests {
    use super::*;

    #[test]
    fn what_came_is_counted_by_days_over_restarts_and_new_queues() {
        let mut inflow = Inflow::default();
        inflow.begin(500);
        inflow.note(600);
        inflow.note(30);
        inflow.note(50);
        assert_eq!((inflow.numbers(), inflow.span(7)), ([120, 0], (120, 7)), "a queue was deleted between");
        inflow.end_day();
        inflow.note(51);
        assert_eq!(inflow.span(7), (121, 86_400_007));
        let mut after = Inflow::default();
        after.restore(inflow.numbers());
        after.begin(9);
        after.note(10);
        assert_eq!(after.numbers(), [2, 120]);
        after.end_day();
        assert_eq!(after.numbers(), [0, 2]);
    }
}
