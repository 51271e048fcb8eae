//! Messages on their way from an upstream: collected, published here by our own publisher, and acknowledged
//! there when they are durable here.
//!
//! Always true: what the upstream sent is acknowledged only when a queue here has it, or the queue for those
//! that were refused; what neither takes stays the upstream's.

use crate::bridge::{Cause, Event, Marks, Price, hops_of, marked, shovelled};
use crate::broker::Shortage;
use crate::command::{Command, ConnectionId, Outcome};
use crate::config::bridge::{Destination, Rule};
use crate::journal::Batch;
use crate::mem::{Draw, MessageId, PoolFull};
use crate::session::message_flags;
use crate::time::Deadline;
use crate::wire::{Properties, Writer};

use super::bridge_link::{Direction, Fetch, Flow, Incoming, Link, Received};
use super::bridge_peer::Next;
use super::bridge_state::{REFUSED_HERE, Scratch};
use super::peer::Waiting;
use super::platform::Platform;
use super::room_awaited::Need;
use super::state::Engine;

/// How often a message is offered again that neither its queue nor the one for parked messages takes, in
/// milliseconds: what makes room for it may be anything, such as a policy that was changed.
const OFFERED_EVERY_MS: u64 = 5_000;
/// Why a message is parked that its queue refuses.
const REFUSED: &str = "refused here by its queue's own arguments";

impl<P: Platform> Engine<P> {
    /// Something of a message came.
    pub(super) fn take_arriving(&mut self, id: ConnectionId, link: &mut Link, event: Event<'_>) -> Next {
        if let Event::Deliver { .. } = event
            && let Err(cause) = self.channel_here(id, link)
        {
            return Next::Lost(cause);
        }
        let left = self.bridges.link_mut(link.id).and_then(|state| state.left);
        let is_draining = link.is_draining;
        link.has_moved = true;
        let Flow::Fetch(fetch) = &mut link.flow else {
            return Next::Lost(Cause::new(format_args!("a delivery where it has no place")));
        };
        match event {
            Event::Deliver { tag, redelivered, rule, exchange, key } => {
                assert!(
                    !matches!(
                        fetch.incoming,
                        Some(Incoming { content: Received::Part(..) | Received::Whole(_), .. })
                    ),
                    "a message that arrived has its place before the next one comes"
                );
                let is_beyond = left.is_some_and(|left| fetch.arrivals.len() as u64 >= left);
                let price = Price { messages: u64::from(!redelivered), ..Price::default() };
                if let Some(state) = self.bridges.link_mut(link.id) {
                    state.today.add(price);
                }
                let key = heapless::Vec::from_slice(key).unwrap_or_default();
                let skips = is_draining || is_beyond;
                let content = if skips { Received::Skipped(0) } else { Received::Nothing };
                let exchange = heapless::String::try_from(exchange).unwrap_or_default();
                let (since, again, only_parks) = (self.now, Deadline::NEVER, false);
                let incoming =
                    Incoming { tag, rule, redelivered, since, exchange, key, content, again, only_parks };
                fetch.incoming = Some(incoming);
                Next::GoOn
            }
            Event::Header { properties, body_len } => {
                if let Err(full) = self.begin_arriving(id, link, properties, body_len) {
                    let shortage = self.broker.shortage_of(&self.supplies.messages, id, full);
                    return self.wait_for_room(id, shortage);
                }
                self.publish_arrived(id, link)
            }
            Event::Body(octets) => {
                let Some(incoming) = &mut fetch.incoming else {
                    unreachable!("a body follows its delivery, or the client says so");
                };
                let len = octets.len() as u64;
                let price = match incoming.redelivered {
                    true => Price { repeats: len, ..Price::default() },
                    false => Price { payload: len, ..Price::default() },
                };
                if let Some(state) = self.bridges.link_mut(link.id) {
                    state.today.add(price);
                }
                match &mut incoming.content {
                    Received::Part(message, left) => {
                        self.supplies.messages.append_body(*message, octets);
                        *left -= len;
                        if *left == 0 {
                            self.supplies.messages.finish(*message);
                            incoming.content = Received::Whole(*message);
                        }
                    }
                    Received::Skipped(left) => *left = left.saturating_sub(len),
                    Received::Nothing | Received::Whole(_) => {
                        unreachable!("a body follows its header, or the client says so")
                    }
                }
                self.publish_arrived(id, link)
            }
            _ => unreachable!("others are handled elsewhere"),
        }
    }

    /// A rule's consumer there began, or did not, or is over.
    #[cold]
    pub(super) fn take_consumer(&mut self, id: ConnectionId, link: &mut Link, event: Event<'_>) -> Next {
        match event {
            Event::Consuming(at) => {
                let is_tried = self
                    .bridges
                    .get(link.id)
                    .is_some_and(|(bridge, _)| bridge.is_trying(Direction::Fetch, at));
                match is_tried.then(|| self.end_trial(id, link, at)) {
                    Some(Err(cause)) => Next::Lost(cause),
                    Some(Ok(())) | None => Next::GoOn,
                }
            }
            Event::QueueRefused(at, cause) => {
                self.waits_for_its_queue(link.id, at, &cause);
                Next::Lost(cause)
            }
            Event::QueueGone(at, cause) if self.waits_for_its_queue(link.id, at, &cause) => {
                match self.turn_consumers(id, link) {
                    Ok(()) => Next::GoOn,
                    Err(cause) => Next::Lost(cause),
                }
            }
            Event::QueueGone(_, cause) => Next::Lost(cause),
            _ => unreachable!("others are handled elsewhere"),
        }
    }

    /// Takes everything that the message will ever need. `false`: there is no room for it now.
    fn begin_arriving(
        &mut self,
        id: ConnectionId,
        link: &mut Link,
        properties: Properties<'_>,
        body_len: u64,
    ) -> Result<(), PoolFull> {
        let rule = self.rule_of(link);
        let Flow::Fetch(fetch) = &mut link.flow else { unreachable!("only what is fetched arrives") };
        let (Some(incoming), Some(rule)) = (&mut fetch.incoming, rule) else {
            unreachable!("a header follows its delivery, which names a rule that is there");
        };
        if let Received::Skipped(_) = incoming.content {
            incoming.content = Received::Skipped(body_len);
            return Ok(());
        }
        let marks = Marks { id: None, is_repeat: incoming.redelivered };
        let mut scratch = core::mem::take(&mut self.bridges.scratch);
        let Scratch { headers, edited, properties: second, .. } = &mut scratch;
        let mut writer = Writer::new(edited);
        let mut is_marked = marked(properties, marks, self.bridges.origin, headers, &mut writer).is_ok();
        let mut edited = writer.written();
        let found = self.bridges.places.iter().find(|bridge| bridge.serial == link.id.bridge);
        let shovel = found.and_then(|bridge| Some((bridge.config.shovel.as_ref()?, bridge)));
        let mut again = Writer::new(second);
        if let Some((shovel, bridge)) = shovel {
            let way = (bridge.links[link.id.direction as usize].as_ref().map_or(0, |it| it.upstream), 0);
            let unix_s = self.platform.unix_ms() / 1000;
            let said = (way, unix_s, &*self.admin.process.node);
            let marked = Properties::trusted(edited);
            is_marked &= shovelled(marked, shovel, said, headers, &mut again).is_ok();
            edited = again.written();
        }
        let fits = is_marked && edited.len() + 32 <= self.limits.frame_max as usize;
        let len = u32::try_from(body_len).ok().filter(|len| fits && *len <= self.limits.message_size_max);
        let mut is_held = false;
        let begun = match len {
            None => {
                // Nothing here could hold it, so the upstream keeps it.
                fetch.held += 1;
                incoming.content = Received::Skipped(body_len);
                is_held = true;
                Ok(())
            }
            Some(len) => {
                let draw = Draw { share: self.broker.content_share(id), owner: self.broker.owner(id) };
                let key = rule.to.key().map_or(&*incoming.key, str::as_bytes);
                let messages = &mut self.supplies.messages;
                let properties = Properties::trusted(edited);
                let exchange = rule.to.exchange().unwrap_or(&incoming.exchange);
                let message = messages.begin(exchange, key, draw);
                let reserved = message.and_then(|message| {
                    let flags = message_flags(properties);
                    let kept =
                        messages.reserve_content(message, properties.as_bytes(), flags, len, draw.share);
                    if kept.is_err() {
                        messages.release(message);
                    }
                    kept.map(|()| message)
                });
                if let Ok(message) = reserved {
                    incoming.content = Received::Part(message, len.into());
                    if len == 0 {
                        messages.finish(message);
                        incoming.content = Received::Whole(message);
                    }
                }
                reserved.map(|_| ())
            }
        };
        self.bridges.scratch = scratch;
        if is_held {
            self.count_down(link.id, 1);
        }
        begun
    }

    fn rule_of(&self, link: &Link) -> Option<Rule> {
        let Flow::Fetch(Fetch { incoming: Some(incoming), .. }) = &link.flow else { return None };
        let (bridge, _) = self.bridges.get(link.id)?;
        bridge.config.fetch.get(incoming.rule).cloned()
    }

    fn wait_for_room(&mut self, id: ConnectionId, shortage: Shortage) -> Next {
        if let Some(peer) = self.peers.get_mut(id) {
            (peer.waiting, peer.need) = (Waiting::Room, Need { shortage, since: self.now });
            self.for_room.push(id);
        }
        Next::Wait
    }

    /// Publishes the message that is whole, if one is.
    pub(super) fn publish_arrived(&mut self, id: ConnectionId, link: &mut Link) -> Next {
        let Flow::Fetch(Fetch { incoming: Some(incoming), .. }) = &link.flow else { return Next::GoOn };
        let (Received::Whole(message), tag, Some(channel)) = (incoming.content, incoming.tag, link.channel)
        else {
            return Next::GoOn;
        };
        if incoming.only_parks {
            return self.park_arrived(id, link, (tag, message), REFUSED);
        }
        let hops = self.hops_of(message);
        let hops_max = self.bridges.get(link.id).map_or(0, |(bridge, _)| u64::from(bridge.config.hops_max));
        // For the case that it is to be set aside.
        self.supplies.messages.retain(message);
        let (outcome, batch) = match hops > hops_max {
            true => {
                self.supplies.messages.release(message);
                (None, Batch::NONE)
            }
            false => {
                let (outcome, batch) =
                    self.apply_own(id, channel, Command::Publish { message, mandatory: true });
                (Some(outcome), batch)
            }
        };
        let why = match outcome {
            Some(Outcome::Wait) => {
                self.supplies.messages.release(message);
                return self.wait_for_room(id, self.broker.last_shortage());
            }
            Some(Outcome::Published) if self.broker.has_returned(id) => {
                let (broker, mut context) = self.broker_mut();
                broker.sent(&mut context, id, 1);
                Some("unroutable here: it reaches no queue".to_string())
            }
            Some(Outcome::Published) => None,
            Some(Outcome::Fault(fault)) => Some(format!("refused here: {}", fault.text)),
            Some(_) => {
                self.note_refused(link);
                Some(REFUSED.to_string())
            }
            None => Some("it has crossed as many bridges as it may".to_string()),
        };
        match why {
            None => self.take_over(id, link, (tag, message), batch),
            Some(why) => self.park_arrived(id, link, (tag, message), &why),
        }
    }

    /// The queue of a message has refused it. Where others may have it all the same, it is not published
    /// again.
    #[cold]
    fn note_refused(&self, link: &mut Link) {
        let to = self.rule_of(link).map(|rule| rule.to);
        let vhost = self.bridges.get(link.id).map(|(bridge, _)| &*bridge.config.vhost);
        let can_be_offered = match (to, vhost) {
            (Some(Destination::Queue(queue)), Some(vhost)) => self.broker.can_offer_again(vhost, &queue),
            _ => false,
        };
        if let Flow::Fetch(Fetch { incoming: Some(incoming), .. }) = &mut link.flow {
            incoming.only_parks = !can_be_offered;
        }
    }

    /// A message is ours as soon as this is durable.
    fn take_over(
        &mut self,
        id: ConnectionId,
        link: &mut Link,
        (tag, message): (u64, MessageId),
        batch: Batch,
    ) -> Next {
        self.supplies.messages.release(message);
        let Flow::Fetch(fetch) = &mut link.flow else { unreachable!("it was one that fetches") };
        fetch.incoming = None;
        if !fetch.arrivals.take(tag, batch) {
            return Next::Lost(Cause::new(format_args!("it sends more than it was asked for")));
        }
        self.for_disk.push(id);
        Next::GoOn
    }

    /// Sets a message aside that no queue here takes. Where there is no room for it either it waits, and with
    /// it all that come behind it: the upstream is not to send it again and again.
    #[cold]
    fn park_arrived(
        &mut self,
        id: ConnectionId,
        link: &mut Link,
        (tag, message): (u64, MessageId),
        why: &str,
    ) -> Next {
        let kept = match self.put_aside(id, link, message, why) {
            Ok(Some(batch)) => return self.take_over(id, link, (tag, message), batch),
            Ok(None) => return self.wait_for_room(id, self.broker.last_shortage()),
            Err(kept) => kept,
        };
        let Flow::Fetch(Fetch { incoming: Some(incoming), .. }) = &mut link.flow else {
            unreachable!("it is the one that arrived");
        };
        incoming.again = self.now.after_ms(OFFERED_EVERY_MS);
        if let Some(peer) = self.peers.get_mut(id) {
            peer.waiting = Waiting::Room;
        }
        let cause = Cause::new(format_args!("{why}, and parking it takes nothing now: {kept}"));
        self.note_cause(link.id, cause, "it waits, and goes on when there is room");
        Next::Wait
    }

    /// What nothing here has taken is offered again.
    #[cold]
    pub(super) fn offer_again(&mut self, id: ConnectionId, link: &mut Link) {
        if let Flow::Fetch(Fetch { incoming: Some(incoming), .. }) = &mut link.flow {
            incoming.again = Deadline::NEVER;
        }
        if let Some(peer) = self.peers.get_mut(id) {
            peer.waiting = Waiting::No;
            peer.stream.look_again();
        }
        self.list_to_read(id);
    }

    fn hops_of(&mut self, message: MessageId) -> u64 {
        let properties = self.supplies.messages.properties(message, &mut self.bridges.scratch.properties);
        hops_of(Properties::trusted(properties))
    }

    /// Puts a copy of a message into the queue for those that are set aside. `None`: there is no room now.
    ///
    /// # Errors
    /// That queue takes it no more than its own, or cannot be made.
    #[cold]
    fn put_aside(
        &mut self,
        id: ConnectionId,
        link: &Link,
        message: MessageId,
        why: &str,
    ) -> Result<Option<Batch>, Cause> {
        self.make_parked(link.id)?;
        let (Some((bridge, _)), Some(channel)) = (self.bridges.get(link.id), link.channel) else {
            return Err(Cause::new(format_args!("it is not wanted any more")));
        };
        let (name, queue) = (bridge.config.name.clone(), bridge.config.parked.clone());
        let unix_s = self.platform.unix_ms() / 1000;
        let mut scratch = core::mem::take(&mut self.bridges.scratch);
        let lent = (&self.supplies.messages, message);
        let kept = scratch.of_parked(lent, (&name, None, why), unix_s, self.limits.frame_max);
        let (broker, mut context) = self.broker_mut();
        let put = broker.put_aside(&mut context, channel, message, &queue, kept);
        self.bridges.scratch = scratch;
        let put = put.map_err(|fault| Cause::new(format_args!("{}", fault.text)))?;
        if put.is_none() {
            return Ok(None);
        }
        if let Some(bridge) = self.bridges.get_mut(link.id) {
            bridge.parked_alarm.note_parked();
            if let Some(state) = &mut bridge.links[Direction::Fetch as usize] {
                state.counts.parked[REFUSED_HERE] += 1;
            }
        }
        debug_assert!(self.peers.get(id).is_some(), "whose message it was is still there");
        Ok(put)
    }

    // ---- acknowledging

    /// Acknowledges what is durable by now.
    pub(super) fn acknowledge_arrivals(&mut self, id: ConnectionId) {
        self.with_link(id, |engine, link| engine.acknowledge_durable(link));
    }

    pub(super) fn acknowledge_durable(&mut self, link: &mut Link) {
        let durable = self.journal.durable();
        let Flow::Fetch(fetch) = &mut link.flow else { return };
        // What is held is not to be acknowledged with those behind it.
        let together = fetch.held == 0;
        let mut moved = 0;
        while link.client.can_acknowledge()
            && let Some((tag, count)) = fetch.arrivals.next_durable(durable, together)
        {
            link.client.acknowledge(tag, together);
            moved += count;
        }
        if let Some(bridge) = self.bridges.get_mut(link.id).filter(|_| moved > 0)
            && let Some(state) = &mut bridge.links[Direction::Fetch as usize]
        {
            state.counts.moved += moved;
            self.count_down(link.id, moved);
        }
    }
}
