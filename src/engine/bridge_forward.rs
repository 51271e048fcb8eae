//! Messages on their way to an upstream: out of the outbox of our own consumer, over the link, and settled
//! here when they are confirmed there.
//!
//! What the upstream refuses goes back to its queue, and is set aside when it comes by the next time: only
//! then is it surely in memory.
//!
//! Always true: a message leaves its queue only when the upstream has confirmed it, or it is in the queue for
//! those that were refused; they are sent in the order of their queue.

use crate::bridge::{
    Cause, Drain, Event, Marks, OwnId, Price, Refusal, hops_of, marked, shovelled, write_head, write_publish,
};
use crate::command::{Command, ConnectionId, Delivery, DeliveryKind, Outbox, Settlement};
use crate::config::bridge::{RULES_MAX, Refused, Rule};
use crate::mem::Messages;
use crate::wire::{Properties, Writer};

use super::bridge_link::{Direction, Flow, Link, LinkId};
use super::bridge_peer::Next;
use super::bridge_state::{Bridge, Scratch, Written, parked_kind};
use super::platform::Platform;
use super::state::Engine;

/// Nacks in a row after which a rule that parks sets its first message aside: some 15 s by pauses of chance,
/// longer than a cluster of RabbitMQ takes to find a leader.
const NACKED_MAX: u32 = 5;
/// Of so many nacks in a row, this one makes the link anew.
const NACKED_PERIOD: u32 = 8;
const NACKED_ANEW: u32 = 2;

/// What stands first in the outbox and is not sent.
struct Unsendable {
    tag: u64,
    id: OwnId,
    rule: usize,
    /// `None`: its rule waits.
    why: Option<Refusal>,
}

/// What filling a page led to.
struct Filled {
    /// Octets of the page.
    len: usize,
    /// Where the message begins that does not fit, if one does not, and how much of it went before.
    cut: Option<(usize, u64)>,
    unsendable: Option<Unsendable>,
}

impl<P: Platform> Engine<P> {
    /// Writes once: what the client says, then messages.
    pub(super) fn write_bridge(&mut self, id: ConnectionId) {
        let count = self.with_link(id, |engine, link| engine.write_link(id, link));
        self.after_write(id.into(), count.unwrap_or(0));
    }

    fn write_link(&mut self, id: ConnectionId, link: &mut Link) -> usize {
        if let Some((_, tag, _)) = self.broker.next_cancelled(id) {
            let cause = Cause::new(format_args!("the queue of its consumer {tag} here was deleted"));
            self.broker.told_cancelled(id);
            self.lose_link(id, link, cause);
            return 0;
        }
        let mut page = core::mem::take(&mut self.output);
        let count = self.write_page(id, link, &mut page);
        self.output = page;
        count
    }

    fn write_page(&mut self, id: ConnectionId, link: &mut Link, page: &mut [u8]) -> usize {
        let is_shaking = self.peers.get(id).is_some_and(|peer| peer.stream.is_shaking_hands());
        if is_shaking {
            self.shake_link(id, link, false);
        }
        let mut said = 0;
        if !link.has_begun() {
            let pending = link.client.pending();
            said = pending.len().min(page.len());
            page[..said].copy_from_slice(&pending[..said]);
        }
        let mut filled = Filled { len: 0, cut: None, unsendable: None };
        if link.channel.is_some() && link.cause.is_none() && matches!(link.flow, Flow::Forward(_)) {
            filled = self.fill_messages(id, link, &mut page[said..]);
        }
        let Some(peer) = self.peers.get_mut(id) else { return 0 };
        let taken = match peer.stream.write(&mut self.buffers, &page[..said + filled.len]) {
            Ok(taken) => taken,
            Err(_) if link.client.is_unheard() => {
                // It may have said why it hung up.
                (peer.stream.writable, peer.stream.read_closed) = (false, true);
                peer.stream.look_again();
                self.list_to_read(id);
                return 0;
            }
            Err(error) => {
                let cause = Cause::of_writing(&error);
                self.lose_link(id, link, cause);
                return 0;
            }
        };
        let has_unsent = peer.stream.has_unsent();
        link.client.note_written(self.now, taken.min(said));
        let sent = taken.saturating_sub(said);
        if let Flow::Forward(_) = link.flow {
            self.note_sent(id, link, (sent, has_unsent), &filled);
        }
        if let Some(unsendable) = filled.unsendable
            && sent == filled.len
        {
            self.set_first_aside(id, link, &unsendable);
        }
        taken
    }

    /// Fills a page with messages, as many as may be under way.
    fn fill_messages(&mut self, id: ConnectionId, link: &Link, page: &mut [u8]) -> Filled {
        let mut filled = Filled { len: 0, cut: None, unsendable: None };
        let Flow::Forward(forward) = &link.flow else { unreachable!("it is one that forwards") };
        let unix_s = self.platform.unix_ms() / 1000;
        let mut scratch = core::mem::take(&mut self.bridges.scratch);
        let mut written = core::mem::take(&mut self.bridges.written);
        written.clear();
        if let Some((bridge, state)) = self.bridges.get(link.id) {
            let most = if bridge.careful > 0 { 1 } else { usize::from(bridge.config.window) };
            let window = state.left.map_or(most, |left| most.min(usize::try_from(left).unwrap_or(most)));
            let mut outbox = self.broker.outbox(id);
            let (mut begun, mut left) = (forward.begun, bridge.pace.left(self.now));
            let has_room = |written: usize| forward.flights.len() + written < window && !link.is_draining;
            while filled.len < page.len()
                && (begun > 0 || left > 0 && has_room(written.len()))
                && let (Some(delivery), Some(source)) = (outbox.peek(), outbox.source())
            {
                let own =
                    OwnId { queue: source.queue, offset: source.offset, is_transient: source.is_transient };
                let way = (state.upstream, unix_s);
                let item = Item { bridge, delivery, own, is_begun: begun > 0, way };
                let lent = (&self.supplies.messages, self.bridges.origin, link.client.frame_max());
                let by = &*self.admin.process.node;
                let (rule, head) = match item.head(lent, by, &mut scratch) {
                    Ok(head) => head,
                    Err((rule, why)) => {
                        let tag = item.delivery.delivery_tag;
                        filled.unsendable = Some(Unsendable { tag, id: own, rule, why });
                        break;
                    }
                };
                let (progress, len) = write_publish(
                    &self.supplies.messages,
                    item.delivery.message,
                    &scratch.head[..head],
                    link.client.frame_max(),
                    begun,
                    &mut page[filled.len..],
                );
                if progress.sent < progress.total {
                    filled.cut = Some((filled.len, begun));
                    filled.len += len;
                    break;
                }
                filled.len += len;
                left -= bridge.pace.cost(progress.total);
                let (tag, is_repeat) = (item.delivery.delivery_tag, item.delivery.redelivered);
                let bytes = progress.total;
                let (body, end) = (self.supplies.messages.body_len(item.delivery.message), filled.len);
                written.push(Written { tag, id: own, rule: rule as u8, is_repeat, bytes, body, end });
                begun = 0;
                outbox.advance();
            }
        }
        (self.bridges.scratch, self.bridges.written) = (scratch, written);
        filled
    }

    /// The socket took so many octets of what was filled.
    fn note_sent(
        &mut self,
        id: ConnectionId,
        link: &mut Link,
        (sent, has_unsent): (usize, bool),
        filled: &Filled,
    ) {
        let now = self.now;
        let Flow::Forward(forward) = &mut link.flow else { unreachable!("it is one that forwards") };
        if sent > 0 {
            link.client.note_sent(now);
        }
        let mut pace = self.bridges.get(link.id).map(|(bridge, _)| bridge.pace);
        let written = core::mem::take(&mut self.bridges.written);
        let before = forward.begun;
        let (mut count, mut repeats, mut start) = (0_u32, 0, 0);
        let mut price = Price::default();
        for message in written.iter().take_while(|message| message.end <= sent) {
            if forward.flights.is_empty() {
                (forward.progress, forward.drain) = (now, Drain::begin(now));
            }
            forward.flights.launch(message.tag, message.id, message.rule);
            repeats += u64::from(message.is_repeat);
            match message.is_repeat {
                true => price.repeats += message.bytes,
                false => {
                    price.payload += u64::from(message.body);
                    price.messages += 1;
                }
            }
            pace.iter_mut().for_each(|pace| pace.note_sent(now, message.bytes));
            (count, start) = (count + 1, message.end);
        }
        // What is left is some of the next message, of which some may have gone before.
        let had = if count == 0 { before } else { 0 };
        forward.begun = match sent > start || count == 0 {
            true => had + (sent - start) as u64,
            false => 0,
        };
        debug_assert!(
            forward.begun == 0 || (count as usize) < written.len() || filled.cut.is_some(),
            "a message is begun"
        );
        self.bridges.written = written;
        let is_whole = forward.begun == 0;
        if let Some((bridge, pace)) = self.bridges.get_mut(link.id).zip(pace) {
            bridge.pace = pace;
        }
        if let Some(state) = self.bridges.link_mut(link.id) {
            state.counts.repeats += repeats;
            state.today.add(price);
        }
        let (broker, mut context) = self.broker_mut();
        broker.sent(&mut context, id, count);
        broker.set_writable(&mut context, id, is_whole && !has_unsent);
    }

    // ---- what the upstream says

    pub(super) fn take_confirm(&mut self, id: ConnectionId, link: &mut Link, event: Event<'_>) -> Next {
        let taken = match event {
            Event::Confirm { number, multiple, is_taken } => {
                self.confirm(id, link, (number, multiple, is_taken))
            }
            Event::Returned { code, id: own } => match &mut link.flow {
                Flow::Forward(forward) => forward.flights.note_return(own, code),
                Flow::Fetch(_) => Err(Cause::new(format_args!("a return where it has no place"))),
            },
            Event::PublishRefused(code, cause) => {
                self.note_closed(id, link, code);
                Err(cause)
            }
            _ => unreachable!("others are handled elsewhere"),
        };
        match taken {
            Ok(()) => Next::GoOn,
            Err(cause) => Next::Lost(cause),
        }
    }

    fn confirm(
        &mut self,
        id: ConnectionId,
        link: &mut Link,
        (number, multiple, is_taken): (u64, bool, bool),
    ) -> Result<(), Cause> {
        let (Flow::Forward(forward), Some(channel)) = (&mut link.flow, link.channel) else {
            return Err(Cause::new(format_args!("a confirm where it has no place")));
        };
        (forward.progress, link.has_moved) = (self.now, true);
        // What rules tried and was taken, a bit for each, and why others begin to wait.
        let (mut taken, mut waits) = (0_u8, [None; RULES_MAX]);
        while let Some((flight, refusal)) = forward.flights.confirm(number, multiple, is_taken)? {
            let drained = forward.drain.note(self.now);
            let settlement = match refusal {
                None => Settlement::Ack,
                Some(why) => {
                    let rule = usize::from(flight.rule);
                    if !self.condemn(link.id, (flight.id, rule), why) {
                        waits[rule] = Some(why);
                    }
                    Settlement::Requeue
                }
            };
            let command = Command::Settle { delivery_tag: flight.tag, multiple: false, settlement };
            if let crate::command::Outcome::Fault(fault) = self.apply_own(id, channel, command).0 {
                return Err(Cause::new(format_args!("this broker: {}", fault.text)));
            }
            if let Some(bridge) = self.bridges.get_mut(link.id) {
                bridge.careful = bridge.careful.saturating_sub(1);
                bridge.drain_per_1000_s = drained.or(bridge.drain_per_1000_s);
                if refusal.is_none() && bridge.is_trying(Direction::Forward, flight.rule.into()) {
                    taken |= 1 << flight.rule;
                }
                if let Some(state) = &mut bridge.links[Direction::Forward as usize] {
                    state.counts.moved += u64::from(refusal.is_none());
                }
            }
            self.count_down(link.id, u64::from(refusal.is_none()));
            if !multiple {
                break;
            }
        }
        // There is room in the window for what waits in the outbox.
        self.list_to_write(id);
        if taken > 0 || waits.iter().any(Option::is_some) {
            return self.turn_courses(id, link, taken, &waits);
        }
        Ok(())
    }

    /// Rules of which something was taken again go on, and those of which something was refused wait.
    #[cold]
    fn turn_courses(
        &mut self,
        id: ConnectionId,
        link: &mut Link,
        taken: u8,
        waits: &[Option<Refusal>; RULES_MAX],
    ) -> Result<(), Cause> {
        for (at, why) in waits.iter().enumerate() {
            match why {
                Some(why) => self.wait_for(id, link, at, *why)?,
                None if taken & 1 << at != 0 => self.end_trial(id, link, at)?,
                None => {}
            }
        }
        Ok(())
    }

    /// The rule of this place waits until the upstream takes its first message.
    #[cold]
    fn wait_for(&mut self, id: ConnectionId, link: &mut Link, at: usize, why: Refusal) -> Result<(), Cause> {
        let Some((bridge, _)) = self.bridges.get(link.id) else { return Ok(()) };
        let queue = &bridge.config.forward[at].queue;
        let cause = Cause::new(format_args!("the first message of {queue}: {why}; it waits"));
        self.begin_wait(id, link, at, &cause)?;
        if why == Refusal::Nacked { self.turn_from_nacks(link.id, at) } else { Ok(()) }
    }

    /// What goes on being nacked is tried on another link now and then: after a quorum queue had been without
    /// a leader, RabbitMQ 3.10.8 was seen to go on nacking on the old one.
    ///
    /// # Errors
    /// It is time for that.
    #[cold]
    fn turn_from_nacks(&mut self, link: LinkId, at: usize) -> Result<(), Cause> {
        let Some((bridge, _)) = self.bridges.get(link) else { return Ok(()) };
        if bridge.courses[Direction::Forward as usize][at].backoff.failures() % NACKED_PERIOD != NACKED_ANEW {
            return Ok(());
        }
        let queue = &bridge.config.forward[at].queue;
        let cause = Cause::new(format_args!("it nacks what comes of {queue}, whatever that is"));
        if let Some(state) = self.bridges.link_mut(link) {
            // The others are not to wait as well.
            state.backoff.reset();
        }
        Err(cause)
    }

    /// A message was refused: it is to be set aside. `false`: its rule says that it is waited for, and all of
    /// the rule with it; or it was nacked, and not yet often, which says more of a queue there (it has no
    /// leader, or is full) than of a message.
    #[cold]
    fn condemn(&mut self, link: LinkId, (id, rule): (OwnId, usize), why: Refusal) -> bool {
        let Some(bridge) = self.bridges.get_mut(link) else { return true };
        let nacked = bridge.courses[Direction::Forward as usize][rule].backoff.failures();
        let is_parked = bridge.config.forward[rule].refused == Refused::Park
            && (why != Refusal::Nacked || nacked >= NACKED_MAX);
        if is_parked {
            bridge.condemn(id, why);
        }
        is_parked
    }

    /// The upstream closed its channel over a publish: over the only one under way, or over one of them, and
    /// then they are sent one by one.
    #[cold]
    fn note_closed(&mut self, id: ConnectionId, link: &mut Link, code: u16) {
        // An upstream may say so of a link that publishes nothing, too.
        let Flow::Forward(forward) = &link.flow else { return };
        let only = forward.flights.only();
        let count = forward.flights.len();
        if let Some(flight) = only {
            let (rule, why) = (usize::from(flight.rule), Refusal::Closed(code));
            if !self.condemn(link.id, (flight.id, rule), why) {
                // Nobody here refuses anything of a link that ends.
                let _ = self.wait_for(id, link, rule, why);
            }
            if let Some(state) = self.bridges.link_mut(link.id) {
                // The others are not to wait as well.
                state.backoff.reset();
            }
        } else if let Some(bridge) = self.bridges.get_mut(link.id) {
            bridge.careful = count + 1;
        }
    }

    // ---- what is set aside

    /// What stands first in the outbox is set aside; or it goes back to its queue, if its rule waits or has
    /// to, for its upstream or for room to set it aside.
    #[cold]
    fn set_first_aside(&mut self, id: ConnectionId, link: &mut Link, first: &Unsendable) {
        let Some((bridge, _)) = self.bridges.get(link.id) else { return };
        let rule = bridge.config.forward[first.rule].clone();
        let Some(why) = first.why else { return self.give_back_first(id, link, first.tag, false) };
        let (turned, is_out) = match rule.refused {
            Refused::Wait => (self.wait_for(id, link, first.rule, why), false),
            Refused::Park => {
                let turned = match self.set_aside(id, link, first, &rule, why) {
                    Ok(()) => return self.note_set_aside(id, link, first, why),
                    Err(cause) => self.begin_wait(id, link, first.rule, &cause),
                };
                (turned, true)
            }
        };
        match turned {
            Ok(()) => self.give_back_first(id, link, first.tag, is_out),
            Err(cause) => self.lose_link(id, link, cause),
        }
    }

    #[cold]
    fn note_set_aside(&mut self, id: ConnectionId, link: &mut Link, first: &Unsendable, why: Refusal) {
        let Some(bridge) = self.bridges.get_mut(link.id) else { return };
        bridge.absolve(first.id);
        bridge.parked_alarm.note_parked();
        let was_tried = bridge.is_trying(Direction::Forward, first.rule);
        if let Some(state) = &mut bridge.links[Direction::Forward as usize] {
            state.counts.parked[parked_kind(why)] += 1;
        }
        self.count_down(link.id, 1);
        self.list_to_write(id);
        if was_tried && let Err(cause) = self.end_trial(id, link, first.rule) {
            self.lose_link(id, link, cause);
        }
    }

    /// The first of the outbox goes to the queue for what was refused.
    ///
    /// # Errors
    /// That does not take it.
    #[cold]
    fn set_aside(
        &mut self,
        id: ConnectionId,
        link: &Link,
        first: &Unsendable,
        rule: &Rule,
        why: Refusal,
    ) -> Result<(), Cause> {
        let (Some((bridge, _)), Some(channel)) = (self.bridges.get(link.id), link.channel) else {
            unreachable!("a message is set aside for a bridge that is there, whose link has its channel")
        };
        let (name, queue) = (bridge.config.name.clone(), bridge.config.parked.clone());
        self.make_parked(link.id)?;
        let message = self.broker.outbox(id).peek().map(|delivery| delivery.message);
        let Some(message) = message else { unreachable!("what stands first in an outbox stays there") };
        let unix_s = self.platform.unix_ms() / 1000;
        let mut scratch = core::mem::take(&mut self.bridges.scratch);
        let cause = format!("{why}");
        let words = (&*name, Some(&*rule.queue), &*cause);
        let lent = (&self.supplies.messages, message);
        let kept = scratch.of_parked(lent, words, unix_s, self.limits.frame_max);
        let (broker, mut context) = self.broker_mut();
        broker.sent(&mut context, id, 1);
        let moved = broker
            .set_aside(&mut context, channel, first.tag, &queue, kept)
            .map_err(|fault| Cause::new(format_args!("this broker: {}", fault.text)));
        self.bridges.scratch = scratch;
        match moved? {
            Some(_) => Ok(()),
            None => Err(Cause::new(format_args!("there is no room in {queue} to set a message aside"))),
        }
    }
}

/// A message that is about to be sent.
struct Item<'i> {
    bridge: &'i Bridge,
    delivery: Delivery<'i>,
    own: OwnId,
    /// Some of it has gone.
    is_begun: bool,
    /// Over which upstream, and when, in seconds since 1970.
    way: (usize, u64),
}

impl Item<'_> {
    /// Writes the head of its publish; says which rule it follows, and how long the head is.
    ///
    /// # Errors
    /// It is not to be sent.
    fn head(
        &self,
        (messages, origin, frame_max): (&Messages, crate::bridge::Origin, u32),
        by: &str,
        scratch: &mut Scratch,
    ) -> Result<(usize, usize), (usize, Option<Refusal>)> {
        let DeliveryKind::Deliver { consumer_tag } = self.delivery.kind else {
            unreachable!("a link that forwards neither gets nor publishes here")
        };
        let rule = crate::bridge::rule_of(consumer_tag).filter(|at| *at < self.bridge.config.forward.len());
        let Some(rule) = rule else { unreachable!("its consumers have the tags of its rules") };
        let message = self.delivery.message;
        if !self.is_begun && self.bridge.is_waiting(Direction::Forward, rule) {
            return Err((rule, None));
        }
        let Scratch { headers, properties, edited, head } = scratch;
        let own_properties = Properties::trusted(messages.properties(message, properties));
        if !self.is_begun
            && let Some(why) = self.why_not(messages, own_properties)
        {
            return Err((rule, Some(why)));
        }
        let to = &self.bridge.config.forward[rule].to;
        let key = to.key().map_or_else(|| messages.routing_key(message), str::as_bytes);
        let marks = Marks { id: Some(self.own), is_repeat: self.delivery.redelivered };
        let mut writer = Writer::new(edited);
        let body_len = messages.body_len(message);
        let exchange = to.exchange().unwrap_or_else(|| messages.exchange(message));
        let (upstream, unix_s) = self.way;
        marked(own_properties, marks, origin, headers, &mut writer)
            .and_then(|()| {
                let marked = Properties::trusted(writer.written());
                let mut again = Writer::new(properties);
                let properties = match &self.bridge.config.shovel {
                    Some(shovel) => {
                        shovelled(marked, shovel, ((0, upstream), unix_s, by), headers, &mut again)?;
                        Properties::trusted(again.written())
                    }
                    None => marked,
                };
                write_head((exchange, key), properties, body_len, frame_max, head)
            })
            .map(|len| (rule, len))
            .map_err(|_| (rule, Some(Refusal::TooLarge)))
    }

    fn why_not(&self, messages: &Messages, properties: Properties<'_>) -> Option<Refusal> {
        let config = &self.bridge.config;
        if let Some(why) = self.bridge.is_condemned(self.own) {
            return Some(why);
        }
        if messages.body_len(self.delivery.message) > config.message_size_max {
            return Some(Refusal::TooLarge);
        }
        (hops_of(properties) >= u64::from(config.hops_max)).then_some(Refusal::Hops)
    }
}
