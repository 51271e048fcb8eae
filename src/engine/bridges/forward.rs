//! Messages on their way to an upstream: out of the outbox of a consumer of our own, over the link, and settled
//! here when they are confirmed there.
//!
//! Each rule has a connection of its own at the broker here, so it has a window, an outbox and an order of its
//! own; when its lane ends, whatever was given out to it goes back to its queue. Messages leave in pages: each
//! lane that has something gets its share of a page, urgent rules first.
//!
//! Always true: a message leaves its queue only when the upstream has confirmed it, or it is dead-lettered to
//! the queue for those that were refused; those of a rule are sent in the order of their queue.

use crate::bridge::{
    Cause, Client, Flights, Marks, OwnId, hops_of, left_of_frame, marked, publish_len, shovelled, write_head,
    write_publish,
};
use crate::command::{ChannelId, Command, ConnectionId, Delivery, Outbox, Refusal, Settlement};
use crate::config::bridge::{RULES_MAX, Refused};
use crate::mem::Messages;
use crate::wire::{Properties, Writer};

use super::contact::Contact;
use super::lane::{End, Forward, Lane};
use super::message::{Piece, Scratch, What};
use super::state::Head;
use super::task::{Next, Task};
use super::yard::{Yard, of_broker};
use crate::engine::platform::Platform;

/// The least that a lane gets of a page when others wait, in bytes.
const SHARE_BYTES_MIN: usize = 4096;

/// What is in a page so far.
pub(super) struct Filled {
    pub(super) len: usize,
    /// The last frame in it is whole.
    pub(super) is_between_frames: bool,
    /// Messages of each lane that are in it whole, and octets of the next one that are.
    lanes: [(usize, u64); RULES_MAX],
    /// What the rate of the bridge leaves, see [`crate::bridge::Pace`].
    pace_left: i64,
    /// What stands first of a lane, behind what is in the page, and is not to be sent.
    unsendable: heapless::Vec<(usize, u64, Refusal), RULES_MAX>,
}

impl<P: Platform> Yard<'_, P> {
    /// A consumer of our own takes so many messages ahead.
    ///
    /// # Errors
    /// The broker refuses.
    #[cold]
    pub(super) fn take_ahead(
        &mut self,
        own: (ConnectionId, ChannelId),
        prefetch_count: u16,
    ) -> Result<(), Cause> {
        self.demand(own, Command::Qos { prefetch_count, global: true })
    }
}

impl<P: Platform> Task<'_, '_, P> {
    /// The channel of a rule there is ready: its messages begin to flow.
    #[cold]
    pub(super) fn begin_forward(&mut self, rule: usize) {
        match self.consume_here(rule) {
            Ok((own, channel)) => {
                let flights = Flights::new(self.head.config.window.into());
                let (progress, begun) = (self.yard.now, 0);
                let (is_ending, end) = (false, End::No);
                self.contact.lanes[rule] =
                    Lane::Forward(Forward { own, channel, flights, begun, progress, is_ending, end });
            }
            Err(cause) => {
                self.wait(rule, cause, false);
                self.shut(rule);
            }
        }
    }

    #[cold]
    fn consume_here(&mut self, rule: usize) -> Result<(ConnectionId, ChannelId), Cause> {
        self.yard.make_queues_of(self.head, self.id.direction, rule)?;
        let queue = &*self.head.config.forward[rule].queue;
        let own = self.yard.connect_own(&self.head.config.name, &self.head.config.vhost)?;
        let ahead = if self.state.courses[rule].is_careful() { 1 } else { self.head.config.window };
        let (tag, no_ack, exclusive, arguments) = ("bridge", false, false, &[][..]);
        let begun = self.yard.take_ahead(own, ahead).and_then(|()| {
            self.yard.demand(own, Command::Consume { queue, tag, no_ack, exclusive, arguments })
        });
        match begun {
            Ok(()) => Ok(own),
            Err(cause) => {
                self.yard.release_own(own.0);
                Err(cause)
            }
        }
    }

    /// Lanes whose queue here was deleted.
    pub(super) fn end_cancelled(&mut self) {
        for rule in 0..self.contact.lanes.len() {
            let Lane::Forward(lane) = &mut self.contact.lanes[rule] else { continue };
            if self.yard.broker.next_cancelled(lane.own).is_some() {
                self.yard.broker.told_cancelled(lane.own);
                lane.end(End::Settled);
                self.wait(rule, Cause::new(format_args!("this queue was deleted here")), false);
            }
        }
    }

    // ---- filling pages

    pub(super) fn begin_page(&self) -> Filled {
        let mut lanes = [(0, 0); RULES_MAX];
        for (place, lane) in lanes.iter_mut().zip(&self.contact.lanes) {
            if let Lane::Forward(lane) = lane {
                place.1 = lane.begun;
            }
        }
        let is_between_frames = self.contact.cut.is_none();
        let pace_left = self.head.pace.left(self.yard.now);
        Filled { len: 0, is_between_frames, lanes, pace_left, unsendable: heapless::Vec::new() }
    }

    /// Fills the rest of a page: urgent rules first, and those that are equal in turns.
    pub(super) fn fill_lanes(&mut self, page: &mut [u8], filled: &mut Filled, pieces: &mut Vec<Piece>) {
        let count = self.contact.lanes.len();
        for is_urgent in [true, false] {
            let turn = self.contact.turn;
            let has_something = |rule: &usize| match &self.contact.lanes[*rule] {
                Lane::Forward(lane) => {
                    // Of one that is gone the end of a frame is all that still goes.
                    self.head.config.forward[*rule].is_urgent == is_urgent
                        && lane.end != End::AtOnce
                        && (lane.begun > 0 || !lane.is_ending && self.yard.broker.has_output(lane.own))
                }
                Lane::Shut | Lane::Opening | Lane::Fetch(_) => false,
            };
            let those: heapless::Vec<usize, RULES_MAX> =
                (0..count).map(|at| (turn + at) % count).filter(has_something).collect();
            for (at, rule) in those.iter().enumerate() {
                let share = ((page.len() - filled.len) / (those.len() - at)).max(SHARE_BYTES_MIN);
                self.fill_lane(*rule, page, filled, (pieces, share));
                if !filled.is_between_frames {
                    return;
                }
            }
        }
        self.contact.turn = (self.contact.turn + 1) % count.max(1);
    }

    /// Adds what goes of a lane to a page: about so many octets, up to the end of a frame; of a share of none,
    /// the rest of the frame that was begun.
    pub(super) fn fill_lane(
        &mut self,
        rule: usize,
        page: &mut [u8],
        filled: &mut Filled,
        (pieces, share): (&mut Vec<Piece>, usize),
    ) {
        let Lane::Forward(lane) = &self.contact.lanes[rule] else { return };
        let unix_s = self.yard.platform.unix_ms() / 1000;
        let scratch = &mut self.common.scratch;
        let window = self.state.left.map_or(u64::MAX, |left| left).min(self.head.config.window.into());
        let window = if self.state.courses[rule].is_careful() { 1 } else { window as usize };
        let (mut done, mut begun) = filled.lanes[rule];
        let mut outbox = self.yard.broker.outbox(lane.own);
        (0..done).for_each(|_| outbox.advance());
        let stop = filled.len.saturating_add(share);
        let messages = &self.yard.supplies.messages;
        while filled.len < page.len() {
            let may_begin = !lane.is_ending
                && filled.len < stop
                && filled.pace_left > 0
                && lane.flights.len() + done < window;
            if begun == 0 && !may_begin {
                break;
            }
            let (Some(delivery), Some(source)) = (outbox.peek(), outbox.source()) else { break };
            let id = OwnId { queue: source.queue, offset: source.offset, is_transient: source.is_transient };
            let item = Item { head: self.head, rule, delivery, id, way: (self.state.upstream, unix_s) };
            let lent = (messages, self.common.origin, self.contact.client.frame_max());
            let head = match item.why_not(messages, scratch).filter(|_| begun == 0) {
                Some(why) => Err(why),
                None => item.write_head(lent, self.yard.node, scratch).map_err(|_| Refusal::TooLarge),
            };
            let head = match head {
                Ok(head) => head,
                Err(why) => {
                    let kept = filled.unsendable.push((rule, item.delivery.delivery_tag, why));
                    debug_assert!(kept.is_ok(), "there is one of a lane at most");
                    break;
                }
            };
            let message = item.delivery.message;
            let total = publish_len(head, messages.body_len(message));
            let wanted = (begun + stop.saturating_sub(filled.len) as u64).min(total);
            let until = wanted + left_of_frame(head, total, wanted);
            let room = (page.len() - filled.len).min((until - begun) as usize);
            let way = (Client::channel_of(rule), &scratch.head[..head]);
            let written = write_publish(messages, message, way, begun, &mut page[filled.len..][..room]);
            filled.len += written;
            let (tag, is_repeat) = (item.delivery.delivery_tag, item.delivery.redelivered);
            let body = messages.body_len(message);
            let what = What::Message { rule, from: begun, head, total, body, tag, id, is_repeat };
            pieces.push(Piece { end: filled.len, what });
            begun += written as u64;
            filled.is_between_frames = left_of_frame(head, total, begun) == 0;
            if begun < total {
                break;
            }
            (done, begun) = (done + 1, 0);
            filled.pace_left -= self.head.pace.cost(total);
            outbox.advance();
        }
        filled.lanes[rule] = (done, begun);
    }

    /// The socket took so many octets of what was filled.
    pub(super) fn note_sent(&mut self, sent: usize, has_unsent: bool, pieces: &[Piece]) {
        let now = self.yard.now;
        // What took nothing has changed nothing.
        if sent > 0 {
            self.contact.cut = None;
        }
        let mut start = 0;
        for piece in pieces.iter() {
            if start >= sent {
                break;
            }
            let took = piece.end.min(sent) - start;
            start = piece.end;
            match piece.what {
                What::Said => self.contact.client.note_written(now, took),
                What::Message { rule, from, head, total, body, tag, id, is_repeat } => {
                    self.contact.client.note_sent(now);
                    let Contact { lanes, cut, progress, .. } = &mut *self.contact;
                    let Lane::Forward(lane) = &mut lanes[rule] else {
                        unreachable!("a lane that ends is in no page")
                    };
                    let reached = from + took as u64;
                    *cut = (left_of_frame(head, total, reached) > 0).then_some(rule);
                    lane.begun = if reached == total { 0 } else { reached };
                    (*progress, lane.progress) = (now, now);
                    if reached < total {
                        continue;
                    }
                    lane.flights.launch(tag, id);
                    let own = lane.own;
                    self.head.pace.note_sent(now, total);
                    self.state.counts.repeats += u64::from(is_repeat);
                    let today = &mut self.state.today;
                    match is_repeat {
                        true => today.repeated += total,
                        false => {
                            (today.payload, today.messages) =
                                (today.payload + u64::from(body), today.messages + 1)
                        }
                    }
                    let (broker, mut context) = self.yard.broker();
                    broker.sent(&mut context, own, 1);
                }
            }
        }
        for lane in self.contact.forwards() {
            let (broker, mut context) = self.yard.broker();
            broker.set_writable(&mut context, lane.own, lane.begun == 0 && !has_unsent);
        }
    }

    // ---- what the upstream says

    /// Messages of a rule were confirmed, or refused.
    pub(super) fn take_confirm(
        &mut self,
        rule: usize,
        (number, multiple, is_taken): (u64, bool, bool),
    ) -> Next {
        let now = self.yard.now;
        self.contact.has_moved = true;
        self.contact.progress = now;
        loop {
            let Lane::Forward(lane) = &mut self.contact.lanes[rule] else {
                return Next::Lost(Cause::new(format_args!("a confirm where it has no place")));
            };
            lane.progress = now;
            let (flight, refusal) = match lane.flights.confirm(number, multiple, is_taken) {
                Ok(Some(settled)) => settled,
                Ok(None) => break,
                Err(cause) => return Next::Lost(cause),
            };
            let own = (lane.own, lane.channel);
            match refusal {
                Some(why) => self.refuse(rule, flight.tag, why),
                None => {
                    if let Err(cause) = self.yard.settle(own, flight.tag, Settlement::Ack) {
                        return Next::Lost(cause);
                    }
                    self.state.counts.moved += 1;
                    self.note_going(rule);
                    self.count_down(1);
                }
            }
            if !multiple {
                break;
            }
        }
        // There is room in the window for what waits in the outbox.
        self.yard.list_to_write(self.contact.peer);
        Next::GoOn
    }

    /// A message came back; its confirm is still to come.
    #[cold]
    pub(super) fn take_return(&mut self, rule: usize, id: Option<OwnId>, code: u16) -> Next {
        let Lane::Forward(lane) = &mut self.contact.lanes[rule] else {
            return Next::Lost(Cause::new(format_args!("a return where it has no place")));
        };
        match lane.flights.note_return(id, code) {
            Ok(()) => Next::GoOn,
            Err(cause) => Next::Lost(cause),
        }
    }

    /// The upstream has closed the channel of a rule that forwards, or was to. Over which of several messages
    /// that was nobody knows, so they are tried one by one.
    #[cold]
    pub(super) fn take_end_of_forward(&mut self, rule: usize, code: u16, over_publish: bool, cause: Cause) {
        if let Lane::Forward(lane) = &mut self.contact.lanes[rule] {
            lane.end(End::AtOnce);
            if let Some(only) = lane.flights.only().filter(|_| over_publish) {
                return self.refuse(rule, only.tag, Refusal::Closed(code));
            }
        } else {
            self.contact.lanes[rule] = Lane::Shut;
        }
        self.wait(rule, Cause::new(format_args!("it closed the channel: {cause}")), over_publish);
    }

    // ---- what is refused

    /// The upstream does not take a message that was sent: it is set aside, or goes back to its queue, and its
    /// rule waits. A nack or a closed channel says more of a queue there (it has no leader, is full or is
    /// missing) than of a message, and mostly passes; so the same is tried some times.
    #[cold]
    fn refuse(&mut self, rule: usize, tag: u64, why: Refusal) {
        let is_of_message = !matches!(why, Refusal::Nacked | Refusal::Closed(_));
        let is_enough =
            is_of_message || self.state.courses[rule].failures() >= self.head.config.park_after.into();
        let is_parked = self.head.config.forward[rule].refused == Refused::Park && is_enough;
        let Lane::Forward(lane) = &self.contact.lanes[rule] else {
            unreachable!("only what was sent is refused")
        };
        let own = (lane.own, lane.channel);
        let cause = match is_parked.then(|| self.park(own, tag, why)) {
            None => Cause::new(format_args!("its first message is {why}")),
            Some(Err(cause)) => cause,
            Some(Ok(())) => {
                self.count_down(1);
                if !is_of_message {
                    self.wait(rule, Cause::new(format_args!("a message was parked: {why}")), true);
                }
                return;
            }
        };
        match self.yard.settle(own, tag, Settlement::Requeue) {
            Ok(()) => self.wait(rule, cause, true),
            Err(cause) => self.lose(cause),
        }
    }

    /// A message that was sent is dead-lettered into the queue for what is refused.
    ///
    /// # Errors
    /// That takes nothing.
    #[cold]
    fn park(&mut self, (_, channel): (ConnectionId, ChannelId), tag: u64, why: Refusal) -> Result<(), Cause> {
        self.yard.make_parked(self.head)?;
        let words = (&*self.head.config.name, &*self.head.config.parked);
        let (broker, mut context) = self.yard.broker();
        broker.park_delivery(&mut context, (channel, tag), words, why).map_err(|fault| of_broker(&fault))?;
        self.head.parked_alarm.note_parked();
        Ok(())
    }

    /// What stands first in its outbox and is not to be sent is refused without being sent.
    #[cold]
    pub(super) fn set_unsendable_aside(&mut self, filled: &Filled) {
        for &(rule, tag, why) in &filled.unsendable {
            let Lane::Forward(lane) = &self.contact.lanes[rule] else { continue };
            let own = lane.own;
            let is_first =
                self.yard.broker.outbox(own).peek().is_some_and(|delivery| delivery.delivery_tag == tag);
            if is_first && lane.begun == 0 {
                let (broker, mut context) = self.yard.broker();
                broker.sent(&mut context, own, 1);
                self.refuse(rule, tag, why);
                self.yard.list_to_write(self.contact.peer);
            }
        }
    }
}

impl<P: Platform> Yard<'_, P> {
    fn settle(
        &mut self,
        own: (ConnectionId, ChannelId),
        delivery_tag: u64,
        settlement: Settlement,
    ) -> Result<(), Cause> {
        self.demand(own, Command::Settle { delivery_tag, multiple: false, settlement })
    }
}

/// A message that is about to be sent.
struct Item<'i> {
    head: &'i Head,
    rule: usize,
    delivery: Delivery<'i>,
    id: OwnId,
    /// Over which upstream, and when, in seconds since 1970.
    way: (usize, u64),
}

impl Item<'_> {
    /// Why it is not to be sent, if it is not.
    fn why_not(&self, messages: &Messages, scratch: &mut Scratch) -> Option<Refusal> {
        let config = &self.head.config;
        let message = self.delivery.message;
        if messages.body_len(message) > config.message_size_max {
            return Some(Refusal::TooLarge);
        }
        let properties = Properties::trusted(messages.properties(message, &mut scratch.properties));
        (hops_of(properties) >= u64::from(config.hops_max)).then_some(Refusal::Hops)
    }

    /// Writes the head of its publish; says how long that is.
    ///
    /// # Errors
    /// It does not fit.
    fn write_head(
        &self,
        (messages, origin, frame_max): (&Messages, crate::bridge::Origin, u32),
        by: &str,
        scratch: &mut Scratch,
    ) -> Result<usize, crate::wire::Full> {
        let message = self.delivery.message;
        let Scratch { headers, properties, edited, head } = scratch;
        let own = Properties::trusted(messages.properties(message, properties));
        let to = &self.head.config.forward[self.rule].to;
        let key = to.key().map_or_else(|| messages.routing_key(message), str::as_bytes);
        let exchange = to.exchange().unwrap_or_else(|| messages.exchange(message));
        let marks = Marks { id: Some(self.id), is_repeat: self.delivery.redelivered };
        let mut writer = Writer::new(edited);
        marked(own, marks, origin, &mut writer)?;
        let marked = Properties::trusted(writer.written());
        let mut again = Writer::new(properties);
        let properties = match &self.head.config.shovel {
            Some(shovel) => {
                let (upstream, unix_s) = self.way;
                shovelled(marked, shovel, ((0, upstream), unix_s, by), headers, &mut again)?;
                Properties::trusted(again.written())
            }
            None => marked,
        };
        let limits = (messages.body_len(message), frame_max);
        write_head(Client::channel_of(self.rule), (exchange, key), properties, limits, head)
    }
}
