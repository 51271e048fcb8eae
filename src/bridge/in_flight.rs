//! Messages in flight on a link: sent and not confirmed, or received and not acknowledged.

use std::collections::VecDeque;

use leveret_core::command::Refusal;
use leveret_core::pending_writes::Batch;

use super::client::Cause;
use super::headers::OwnId;

/// One message that was sent and is not confirmed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InFlightMessage {
    /// Its delivery tag at this broker.
    pub tag: u64,
    /// Its identifier.
    pub id: OwnId,
    state: FlightState,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum FlightState {
    Sent,
    /// The message was returned with this code; its confirm is still to come.
    Returned(u16),
    Done,
}

/// The window of a rule that forwards: messages that were sent and are not confirmed.
///
/// ```text
/// publish number   first …            first + ring.len()
/// ring            │ tag, id │ done │ tag, id │            each with its delivery tag at this broker
/// ```
///
/// # Invariants
/// - Publish numbers are those of the upstream: from 1 on, without gaps.
/// - Each message is settled once, in whatever order confirms arrive. A confirm of a message that was not sent is
///   an error of the upstream.
#[derive(Debug)]
pub struct InFlight {
    ring: VecDeque<InFlightMessage>,
    /// The publish number of the first message.
    first: u64,
    window: usize,
}

impl InFlight {
    /// Creates an empty window for at most `window` messages.
    pub fn new(window: usize) -> Self {
        Self { ring: VecDeque::with_capacity(window), first: 1, window }
    }

    /// Returns the number of messages in the window. Messages confirmed out of order count until those before them
    /// are confirmed.
    pub fn len(&self) -> usize {
        self.ring.len()
    }

    /// Returns whether no message is in flight.
    pub fn is_empty(&self) -> bool {
        self.ring.is_empty()
    }

    /// Returns how many more messages may be sent.
    pub fn room(&self) -> usize {
        self.window - self.ring.len()
    }

    /// Adds a message that was sent.
    pub fn launch(&mut self, tag: u64, id: OwnId) {
        assert!(self.room() > 0, "nothing is sent beyond the window");
        self.ring.push_back(InFlightMessage { tag, id, state: FlightState::Sent });
    }

    /// Records that a message was returned: it reached no queue.
    ///
    /// # Errors
    /// The message was not sent.
    pub fn note_return(&mut self, id: Option<OwnId>, code: u16) -> Result<(), Cause> {
        let found =
            self.ring.iter_mut().find(|flight| flight.state == FlightState::Sent && Some(flight.id) == id);
        let Some(flight) = found else {
            return Err(Cause::new(format_args!("it returned a message that it was not sent")));
        };
        flight.state = FlightState::Returned(code);
        Ok(())
    }

    /// Returns the next message that this confirm settles, and the reason if it was refused; `None` when it settles
    /// no more.
    ///
    /// # Errors
    /// The confirm is for a message that was not sent.
    pub fn confirm(
        &mut self,
        number: u64,
        is_multiple: bool,
        is_taken: bool,
    ) -> Result<Option<(InFlightMessage, Option<Refusal>)>, Cause> {
        let end = self.first + self.ring.len() as u64;
        // 0 with `multiple` means all messages sent so far.
        let last = if is_multiple && number == 0 { end - 1 } else { number };
        if last >= end || last == 0 && !is_multiple {
            return Err(Cause::new(format_args!("it confirmed message {number}, which it was not sent")));
        }
        let at = match is_multiple {
            true => self.ring.iter().position(|flight| flight.state != FlightState::Done),
            false => last.checked_sub(self.first).map(|at| at as usize),
        };
        let Some(at) = at.filter(|at| self.first + *at as u64 <= last) else { return Ok(None) };
        let flight = &mut self.ring[at];
        let refusal = match (flight.state, is_taken) {
            (FlightState::Done, _) => return Ok(None),
            (FlightState::Returned(code), _) => Some(Refusal::Returned(code)),
            (FlightState::Sent, true) => None,
            (FlightState::Sent, false) => Some(Refusal::Nacked),
        };
        flight.state = FlightState::Done;
        let settled = *flight;
        while self.ring.front().is_some_and(|flight| flight.state == FlightState::Done) {
            self.ring.pop_front();
            self.first += 1;
        }
        Ok(Some((settled, refusal)))
    }

    /// Returns the message in flight if it is the only one.
    pub fn only(&self) -> Option<InFlightMessage> {
        match self.ring.len() {
            1 => self.ring.front().copied(),
            _ => None,
        }
    }
}

/// One message that was received and is not acknowledged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Arrival {
    tag: u64,
    batch: Batch,
}

/// The window of a rule that fetches: messages that were received and are not acknowledged upstream.
///
/// # Invariants
/// - The upstream's delivery tags rise.
/// - A message is acknowledged when it is durable here and all messages before it are.
#[derive(Debug)]
pub struct Arrivals {
    ring: VecDeque<Arrival>,
    /// The prefetch count that the upstream was asked for.
    ahead: usize,
    /// The upper limit of messages, whatever prefetch count was asked for before.
    window: usize,
}

impl Arrivals {
    /// Creates an empty window; the upstream may send `ahead` messages.
    pub fn new(ahead: usize) -> Self {
        Self { ring: VecDeque::with_capacity(ahead), ahead, window: ahead }
    }

    /// Restarts the consumer with a prefetch count of `ahead`. Messages that have arrived, and those that the
    /// previous consumer may still send, come on top.
    pub fn begin_again(&mut self, ahead: usize) {
        self.window = self.ring.len() + self.ahead + ahead;
        self.ahead = ahead;
    }

    /// Returns whether no message waits for its acknowledgement.
    pub fn is_empty(&self) -> bool {
        self.ring.is_empty()
    }

    /// Returns the number of messages that wait for their acknowledgement.
    pub fn len(&self) -> usize {
        self.ring.len()
    }

    /// Records a message that is durable with `batch`. Returns `false` if the upstream sends more than it was asked
    /// for, or tags that do not rise.
    #[must_use]
    pub fn take(&mut self, tag: u64, batch: Batch) -> bool {
        let rises = self.ring.back().is_none_or(|last| last.tag < tag);
        let fits = self.ring.len() < self.window;
        if rises && fits {
            self.ring.push_back(Arrival { tag, batch });
        }
        rises && fits
    }

    /// Returns the next tag that can be acknowledged and the number of messages it covers: one, or with `together`
    /// all that are durable.
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

/// Counts messages that arrive in the queues of a bridge. The operator sees from it how fast an outage fills the
/// disk.
///
/// The counters of a queue only rise while the queue exists.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Inflow {
    /// The sum of the queues' counters at the last call.
    counted: u64,
    /// Messages of the current day up to the last call.
    today: u64,
    yesterday: u64,
}

impl Inflow {
    /// Records the sum of the queues' counters. It falls when a queue is deleted.
    pub const fn note(&mut self, counted: u64) {
        self.today = self.today.saturating_add(counted.saturating_sub(self.counted));
        self.counted = counted;
    }

    /// Sets the sum of the queues' counters without counting messages.
    pub const fn begin(&mut self, counted: u64) {
        self.counted = counted;
    }

    /// Begins another day.
    pub const fn end_day(&mut self) {
        (self.yesterday, self.today) = (self.today, 0);
    }

    /// Returns the last value given to [`Self::note`].
    pub const fn counted(&self) -> u64 {
        self.counted
    }

    /// Returns the values to be stored: messages of the current day and of the day before.
    pub const fn numbers(&self) -> [u64; 2] {
        [self.today, self.yesterday]
    }

    /// Restores stored values.
    pub const fn restore(&mut self, [today, yesterday]: [u64; 2]) {
        (self.today, self.yesterday) = (today, yesterday);
    }

    /// Returns a number of messages and the milliseconds in which they arrived. `gone_ms` is the elapsed part of the
    /// day.
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

    fn flying(count: u64) -> InFlight {
        let mut flights = InFlight::new(8);
        (0..count).for_each(|at| flights.launch(100 + at, id(at)));
        flights
    }

    /// Returns the tags that a confirm settles.
    fn settled(
        flights: &mut InFlight,
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
        assert_eq!(InFlight::new(4).confirm(0, true, true), Ok(None), "everything so far is nothing");
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
