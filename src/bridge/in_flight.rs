//! Messages in flight on a link: sent to the upstream and not confirmed, or received from it and not acknowledged. Also
//! the rate at which messages arrive in a bridge's queues.

use std::collections::VecDeque;

use leveret_core::batch::Batch;
use leveret_core::command::Refusal;

use super::cause::Cause;
use super::headers::OwnId;

/// One message that was sent and that the upstream has not confirmed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InFlightMessage {
    /// The delivery tag at this broker.
    pub tag: u64,
    /// The identifier in the headers.
    pub id: OwnId,
    state: FlightState,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum FlightState {
    Sent,
    /// The upstream has returned the message with this reply code. A confirm follows.
    Returned(u16),
    /// Settled out of order; the message waits for the settlement of earlier ones.
    Done,
}

/// The messages of a forwarding rule that the upstream has not confirmed, in the order of sending.
///
/// ```text
/// publish number   first …            first + ring.len()
/// ring            │ tag, id │ done │ tag, id │            each with its delivery tag at this broker
/// ```
///
/// # Invariants
/// - Publish numbers count from 1 without gaps, as the upstream counts the messages of the channel.
/// - Each message is settled once, in whatever order confirms arrive.
#[derive(Debug)]
pub struct InFlight {
    ring: VecDeque<InFlightMessage>,
    /// The publish number of the first message.
    first: u64,
    window: usize,
}

impl InFlight {
    /// Creates a list for at most `window` messages.
    pub fn new(window: usize) -> Self {
        Self { ring: VecDeque::with_capacity(window), first: 1, window }
    }

    /// Returns the number of messages in the list. A message that is confirmed out of order counts until all earlier ones
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

    /// Adds a message that is being sent. `tag` is its delivery tag at this broker. The list must have space.
    pub fn add(&mut self, tag: u64, id: OwnId) {
        assert!(self.room() > 0, "nothing is sent beyond the window");
        self.ring.push_back(InFlightMessage { tag, id, state: FlightState::Sent });
    }

    /// Records that the upstream has returned a message with this reply code, because it was routed to no queue.
    ///
    /// # Errors
    /// No message with this identifier is in flight, or it was returned already: an error of the upstream.
    pub fn note_return(&mut self, id: Option<OwnId>, code: u16) -> Result<(), Cause> {
        let found =
            self.ring.iter_mut().find(|flight| flight.state == FlightState::Sent && Some(flight.id) == id);
        let Some(flight) = found else {
            return Err(Cause::new(format_args!("the upstream returned a message that is not in flight")));
        };
        flight.state = FlightState::Returned(code);
        Ok(())
    }

    /// Settles one message by a `basic.ack` (`is_ack`) or `basic.nack` for publish number `number`. Returns the message,
    /// and the reason if the upstream refused it; `None` if no unsettled message is left. With `is_multiple`, the caller
    /// repeats the call until then.
    ///
    /// # Errors
    /// No message with this publish number was sent: an error of the upstream.
    pub fn confirm(
        &mut self,
        number: u64,
        is_multiple: bool,
        is_ack: bool,
    ) -> Result<Option<(InFlightMessage, Option<Refusal>)>, Cause> {
        let end = self.first + self.ring.len() as u64;
        // 0 with `multiple` means all messages sent so far.
        let last = if is_multiple && number == 0 { end - 1 } else { number };
        if last >= end || last == 0 && !is_multiple {
            return Err(Cause::new(format_args!(
                "the upstream confirmed publish number {number}, which was not sent"
            )));
        }
        let at = match is_multiple {
            true => self.ring.iter().position(|flight| flight.state != FlightState::Done),
            false => last.checked_sub(self.first).map(|at| at as usize),
        };
        let Some(at) = at.filter(|at| self.first + *at as u64 <= last) else { return Ok(None) };
        let flight = &mut self.ring[at];
        let refusal = match (flight.state, is_ack) {
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

/// One message that was received and is not acknowledged at the upstream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Arrival {
    /// The delivery tag at the upstream.
    tag: u64,
    /// The message is durable at this broker when this batch is.
    batch: Batch,
}

/// The messages of a fetching rule that are not acknowledged at the upstream yet, in the order of their arrival.
///
/// # Invariants
/// - Delivery tags increase.
/// - A message is acknowledged after it and all earlier messages of the rule are durable here.
#[derive(Debug)]
pub struct Arrivals {
    ring: VecDeque<Arrival>,
    /// The prefetch count of the current consumer.
    prefetch_count: usize,
    /// Maximum number of messages. After a restart of the consumer it includes those of the previous consumer.
    window: usize,
}

impl Arrivals {
    /// Creates an empty list for a consumer with this prefetch count.
    pub fn new(prefetch_count: usize) -> Self {
        Self { ring: VecDeque::with_capacity(prefetch_count), prefetch_count, window: prefetch_count }
    }

    /// Records that the consumer is restarted with this prefetch count. The upstream may still deliver messages to the
    /// previous consumer, so the list has to have space for both.
    pub fn note_consumer_restart(&mut self, prefetch_count: usize) {
        self.window = self.ring.len() + self.prefetch_count + prefetch_count;
        self.prefetch_count = prefetch_count;
    }

    /// Returns whether no message waits for its acknowledgement.
    pub fn is_empty(&self) -> bool {
        self.ring.is_empty()
    }

    /// Returns the number of messages that wait for their acknowledgement.
    pub fn len(&self) -> usize {
        self.ring.len()
    }

    /// Adds a message that will be durable with `batch`. Returns `false`, without adding it, if the upstream has exceeded
    /// the prefetch count or the delivery tag is not higher than the last one.
    #[must_use]
    pub fn take(&mut self, tag: u64, batch: Batch) -> bool {
        let is_increasing = self.ring.back().is_none_or(|last| last.tag < tag);
        let fits = self.ring.len() < self.window;
        if is_increasing && fits {
            self.ring.push_back(Arrival { tag, batch });
        }
        is_increasing && fits
    }

    /// Removes messages that can be acknowledged, given the last durable batch: one, or with `all_durable` all of them.
    /// Returns the delivery tag of the last and their number; `None` if there are none.
    pub fn next_durable(&mut self, durable: Batch, all_durable: bool) -> Option<(u64, u64)> {
        let mut found = None;
        let mut count = 0;
        while let Some(arrival) = self.ring.front().copied() {
            if arrival.batch > durable {
                break;
            }
            self.ring.pop_front();
            count += 1;
            found = Some((arrival.tag, count));
            if !all_durable {
                break;
            }
        }
        found
    }
}

/// The number of messages that arrive in the queues of a bridge, per day. The operator sees how fast the disk fills up
/// during an outage.
///
/// The input is the sum of the queues' message counters. A queue's counter only increases while the queue exists.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Inflow {
    /// The sum of the counters at the last call.
    counted: u64,
    /// Number of messages of the current day, up to the last call.
    today: u64,
    /// Number of messages of the day before.
    yesterday: u64,
}

impl Inflow {
    /// Records the current sum of the counters, and counts its increase. If the sum has decreased, because a queue was
    /// deleted, nothing is counted.
    pub const fn note(&mut self, counted: u64) {
        self.today = self.today.saturating_add(counted.saturating_sub(self.counted));
        self.counted = counted;
    }

    /// Sets the sum of the counters, at the start or with other queues, without counting messages.
    pub const fn begin(&mut self, counted: u64) {
        self.counted = counted;
    }

    /// Begins the next day.
    pub const fn end_day(&mut self) {
        (self.yesterday, self.today) = (self.today, 0);
    }

    /// Returns the sum of the counters at the last call of [`Self::note`] or [`Self::begin`].
    pub const fn counted(&self) -> u64 {
        self.counted
    }

    /// Returns the values for [`Self::restore`]: number of messages of the current day, and of the day before.
    pub const fn numbers(&self) -> [u64; 2] {
        [self.today, self.yesterday]
    }

    /// Restores values from [`Self::numbers`].
    pub const fn restore(&mut self, [today, yesterday]: [u64; 2]) {
        (self.today, self.yesterday) = (today, yesterday);
    }

    /// Returns the number of messages since the beginning of the day before, if any arrived then, or else of the current
    /// day; and the length of that time in milliseconds. `elapsed_ms` is the elapsed part of the current day.
    pub const fn span(&self, elapsed_ms: u64) -> (u64, u64) {
        match self.yesterday {
            0 => (self.today, elapsed_ms),
            yesterday => (self.today + yesterday, elapsed_ms + super::day_budget::DAY_MS),
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
        (0..count).for_each(|at| flights.add(100 + at, id(at)));
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
        flights.add(7, id(7));
        assert_eq!(settled(&mut flights, 7, false, true), [(7, None)], "publish numbers continue");
    }

    #[test]
    fn a_returned_message_is_refused_although_it_is_confirmed() {
        let mut flights = flying(3);
        assert_eq!(flights.note_return(Some(id(1)), 312), Ok(()));
        let refused = Some(Refusal::Returned(312));
        assert_eq!(settled(&mut flights, 3, true, true), [(100, None), (101, refused), (102, None)]);
    }

    #[test]
    fn a_confirm_or_return_of_a_message_that_was_not_sent_is_an_error() {
        let mut flights = flying(2);
        assert!(flights.confirm(3, false, true).is_err() && flights.confirm(3, true, true).is_err());
        assert!(flights.confirm(0, false, true).is_err());
        assert!(flights.note_return(Some(id(9)), 312).is_err() && flights.note_return(None, 312).is_err());
        assert_eq!(flights.note_return(Some(id(0)), 312), Ok(()));
        assert!(flights.note_return(Some(id(0)), 312).is_err(), "the message was returned already");
        assert_eq!(InFlight::new(4).confirm(0, true, true), Ok(None), "no message was sent so far");
    }
}

#[cfg(test)]
mod inflow_tests {
    use super::*;

    #[test]
    fn messages_are_counted_per_day_over_restarts_and_new_queues() {
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
