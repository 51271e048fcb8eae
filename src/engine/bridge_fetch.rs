//! Messages on their way from an upstream: collected, published here by our own publisher, and acknowledged
//! there when they are durable here.
//!
//! Always true: what the upstream sent is acknowledged only when a queue here has it, or the queue for those
//! that were refused; what neither takes stays the upstream's.

use crate::bridge::{Cause, Event, Marks, Price, hops_of, marked};
use crate::command::{Command, ConnectionId, Outcome};
use crate::config::bridge::Rule;
use crate::journal::Batch;
use crate::mem::{Draw, MessageId};
use crate::session::message_flags;
use crate::wire::{Properties, Writer};

use super::bridge_link::{Direction, Fetch, Flow, Incoming, Link, Received};
use super::bridge_peer::Next;
use super::bridge_state::{REFUSED_HERE, Scratch};
use super::peer::Waiting;
use super::platform::Platform;
use super::state::Engine;

impl<P: Platform> Engine<P> {
    /// Something of a message came.
    pub(super) fn take_arriving(&mut self, id: ConnectionId, link: &mut Link, event: Event<'_>) -> Next {
        let is_draining = link.is_draining;
        link.has_moved = true;
        let Flow::Fetch(fetch) = &mut link.flow else {
            return Next::Lost(Cause::new(format_args!("a delivery where it has no place")));
        };
        match event {
            Event::Deliver { tag, redelivered, rule, key, .. } => {
                let price = Price { messages: u64::from(!redelivered), ..Price::default() };
                if let Some(state) = self.bridges.link_mut(link.id) {
                    state.today.add(price);
                }
                let key = heapless::Vec::from_slice(key).unwrap_or_default();
                let content = if is_draining { Received::Skipped(0) } else { Received::Nothing };
                fetch.incoming = Some(Incoming { tag, rule, redelivered, key, content });
                Next::GoOn
            }
            Event::Header { properties, body_len } => {
                if !self.begin_arriving(id, link, properties, body_len) {
                    return self.wait_for_room(id);
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

    /// Takes everything that the message will ever need. `false`: there is no room for it now.
    fn begin_arriving(
        &mut self,
        id: ConnectionId,
        link: &mut Link,
        properties: Properties<'_>,
        body_len: u64,
    ) -> bool {
        let rule = self.rule_of(link);
        let Flow::Fetch(fetch) = &mut link.flow else { unreachable!("only what is fetched arrives") };
        let (Some(incoming), Some(rule)) = (&mut fetch.incoming, rule) else {
            unreachable!("a header follows its delivery, which names a rule that is there");
        };
        if let Received::Skipped(_) = incoming.content {
            incoming.content = Received::Skipped(body_len);
            return true;
        }
        let marks = Marks { id: None, is_repeat: incoming.redelivered };
        let mut scratch = core::mem::take(&mut self.bridges.scratch);
        let Scratch { headers, edited, .. } = &mut scratch;
        let mut writer = Writer::new(edited);
        let is_marked = marked(properties, marks, self.bridges.origin, headers, &mut writer).is_ok();
        let fits = is_marked && writer.at() + 32 <= self.limits.frame_max as usize;
        let len = u32::try_from(body_len).ok().filter(|len| fits && *len <= self.limits.message_size_max);
        let begun = match len {
            None => {
                // Nothing here could hold it, so the upstream keeps it.
                fetch.held += 1;
                incoming.content = Received::Skipped(body_len);
                true
            }
            Some(len) => {
                let draw = Draw { share: self.broker.content_share(id), owner: self.broker.owner(id) };
                let key = rule.to.key().map_or(&*incoming.key, str::as_bytes);
                let messages = &mut self.supplies.messages;
                let properties = Properties::trusted(writer.written());
                let message = messages.begin(rule.to.exchange(), key, draw).ok();
                let reserved = message.filter(|message| {
                    let flags = message_flags(properties);
                    let kept =
                        messages.reserve_content(*message, properties.as_bytes(), flags, len, draw.share);
                    if kept.is_err() {
                        messages.release(*message);
                    }
                    kept.is_ok()
                });
                if let Some(message) = reserved {
                    incoming.content = Received::Part(message, len.into());
                    if len == 0 {
                        messages.finish(message);
                        incoming.content = Received::Whole(message);
                    }
                }
                reserved.is_some()
            }
        };
        self.bridges.scratch = scratch;
        begun
    }

    fn rule_of(&self, link: &Link) -> Option<Rule> {
        let Flow::Fetch(Fetch { incoming: Some(incoming), .. }) = &link.flow else { return None };
        let (bridge, _) = self.bridges.get(link.id)?;
        bridge.config.fetch.get(incoming.rule).cloned()
    }

    fn wait_for_room(&mut self, id: ConnectionId) -> Next {
        if let Some(peer) = self.peers.get_mut(id) {
            peer.waiting = Waiting::Room;
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
                return self.wait_for_room(id);
            }
            Some(Outcome::Published) if self.broker.has_returned(id) => {
                let (broker, mut context) = self.broker_mut();
                broker.sent(&mut context, id, 1);
                Some("unroutable here: it reaches no queue".to_string())
            }
            Some(Outcome::Published) => None,
            Some(Outcome::Fault(fault)) => Some(format!("refused here: {}", fault.text)),
            Some(_) => Some("refused here by its queue's own arguments".to_string()),
            None => Some("it has crossed as many bridges as it may".to_string()),
        };
        let batch = match why {
            None => Some(batch),
            Some(why) => self.put_aside(id, link, message, &why),
        };
        self.supplies.messages.release(message);
        let Flow::Fetch(fetch) = &mut link.flow else { unreachable!("it was one that fetches") };
        fetch.incoming = None;
        match batch {
            Some(batch) if fetch.arrivals.take(tag, batch) => {
                self.for_disk.push(id);
                Next::GoOn
            }
            Some(_) => Next::Lost(Cause::new(format_args!("it sends more than it was asked for"))),
            None => {
                fetch.held += 1;
                Next::GoOn
            }
        }
    }

    fn hops_of(&mut self, message: MessageId) -> u64 {
        let properties = self.supplies.messages.properties(message, &mut self.bridges.scratch.properties);
        hops_of(Properties::trusted(properties))
    }

    /// Sets a message aside that no queue here takes. `None`: that one does not take it either.
    #[cold]
    fn put_aside(&mut self, id: ConnectionId, link: &Link, message: MessageId, why: &str) -> Option<Batch> {
        let (bridge, _) = self.bridges.get(link.id)?;
        let (name, queue, channel) =
            (bridge.config.name.clone(), bridge.config.parked.clone(), link.channel?);
        let unix_s = self.platform.unix_ms() / 1000;
        let mut scratch = core::mem::take(&mut self.bridges.scratch);
        let lent = (&self.supplies.messages, message);
        let kept = scratch.of_parked(lent, (&name, None, why), unix_s, self.limits.frame_max);
        let (broker, mut context) = self.broker_mut();
        let put = broker.put_aside(&mut context, channel, message, &queue, kept);
        self.bridges.scratch = scratch;
        let batch = put.ok().flatten()?;
        if let Some(bridge) = self.bridges.get_mut(link.id) {
            bridge.parked_alarm.note_parked();
            if let Some(state) = &mut bridge.links[Direction::Fetch as usize] {
                state.counts.parked[REFUSED_HERE] += 1;
            }
        }
        debug_assert!(self.peers.get(id).is_some(), "whose message it was is still there");
        Some(batch)
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
        }
    }
}
