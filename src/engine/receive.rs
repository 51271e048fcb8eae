//! The way in: beginning a connection, reading, applying what was read, and publishers that wait for room.
//!
//! Always true: a peer is on the list to be read at most once, and not at all while it waits; one reading
//! takes at most the one input buffer; whoever of a virtual host waited longest for room tries first, and
//! while that has no memory the others go on.

use crate::broker;
use crate::command::{ConnectionId, Outcome};
use crate::error::{Fault, ReplyCode};
use crate::log_limiter::LogKind;
use crate::mem::Owner;
use crate::session::{Step, Suspension};
use crate::time::Deadline;

use super::peer::{Ending, Session, Waiting};
use super::peer_id::PeerId;
use super::platform::Platform;
use super::room_awaited::Need;
use super::state::Engine;
use super::stream::Reading;

/// How many times `content_timeout` a body may take while others wait for its room.
const SLOW_BODY_TIMES: u64 = 10;
/// Who has waited for room so long, in milliseconds, is looked at, and again after as long: if nothing of what it waits
/// for was taken away in between, it is asked whether it wants to leave.
const LEAVE_LOOK_MS: u64 = 10_000;
/// Connections that may try again to publish, per turn.
const RETRIES_PER_TURN: usize = 64;

impl<P: Platform> Engine<P> {
    // ---- read and apply

    /// Reads about as much as leaves again, or a backlog builds up that is cold when it is delivered: one
    /// buffer's worth over all peers, and with something left to write only every other turn.
    pub(super) fn read(&mut self) {
        let may_read = self.budget.begin(!self.lists.to_write.is_empty());
        if !may_read || self.journal.is_crowded() {
            return;
        }
        for _ in 0..self.lists.to_read.len() {
            if self.budget.bytes_read() >= self.scratch.input.len() || self.budget.is_over() {
                break;
            }
            let Some(id) = self.lists.to_read.pop() else { break };
            self.read_from(id);
        }
    }

    pub(super) fn read_from(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        if let Ending::Draining(_) = peer.ending {
            return match peer.stream.drain(&mut self.scratch.input) {
                Some(0) => self.lists.end_now(&mut self.peers, id),
                // The end may stand behind it, and the kernel tells of both at once.
                Some(count) => {
                    self.budget.note_read(count);
                    self.lists.list_to_read(&self.peers, id);
                }
                None => {}
            };
        }
        if peer.waiting != Waiting::No || peer.ending != Ending::No {
            return;
        }
        match id.connection() {
            Some(connection) if peer.session.is_bridge() => self.read_bridge(connection),
            Some(connection) => self.read_amqp(connection),
            None => self.read_operator(id),
        }
    }

    /// Reads once, and applies as much of it as can be.
    fn read_amqp(&mut self, id: ConnectionId) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        let is_scarce = self.supplies.messages.is_held(self.broker.owner(id))
            || !self.buffers.can_take(self.scratch.input.len());
        let session = peer.session.amqp();
        let reading = match session.is_logged_in() {
            false => Reading::Stranger,
            true if is_scarce => Reading::Look,
            true => Reading::Take,
        };
        let got = peer.stream.read(&mut self.buffers, &mut self.scratch.input, reading);
        self.budget.note_read(got.len);
        if peer.stream.has_lost_record {
            let text = "no room to keep its unfinished record of TLS";
            let text = format_args!("{}: {text}", peer.address);
            self.supplies.log.warn(self.now, peer.address.source(), LogKind::Shortage, text);
        }
        self.budget.charge_records(peer.stream.take_records());
        if peer.stream.is_shaking_hands() {
            return self.shake_hands(id.into(), got.end);
        }
        let is_known = !session.awaits_header() || self.look_at_opening(id, got.len);
        let (handled, is_done) = if is_known { self.handle(id, got.len) } else { (got.len, true) };
        let Some(peer) = self.peers.get_mut(id) else { return };
        // What is left is looked at, and counted, again.
        peer.traffic.received(handled);
        let more = peer.waiting != Waiting::No || !is_done;
        let kept = peer.stream.keep(&mut self.buffers, &mut self.scratch.input, got.len, handled, more);
        if !kept {
            let text = "no room to keep its unfinished frame; raise stash_bytes_max";
            let text = format_args!("{}: {text}", peer.address);
            self.supplies.log.warn(self.now, peer.address.source(), LogKind::Shortage, text);
            self.lists.end_now(&mut self.peers, id);
        } else if !is_done {
            // Its turn comes again; what it sent is looked at again if it was left in the socket.
            peer.stream.look_again();
            self.lists.list_to_read(&self.peers, id);
        } else if got.end && peer.waiting == Waiting::No && peer.ending == Ending::No {
            self.lists.end_now(&mut self.peers, id);
        } else {
            let is_starved = peer.stream.is_starved();
            // Who is starved and got nowhere would get nowhere again.
            let goes_on = peer.stream.readable && (handled > 0 || !is_starved);
            if is_starved {
                self.lists.for_stash.push(id);
            }
            if goes_on {
                self.lists.list_to_read(&self.peers, id);
            }
        }
        self.after_session(id.into());
    }

    /// Lets the session handle the first `len` bytes of the input buffer; says how many it is done with, and
    /// whether that is all that can be handled now.
    pub(super) fn handle(&mut self, id: ConnectionId, len: usize) -> (usize, bool) {
        let (mut at, mut is_done) = (0, true);
        let Some(peer) = self.peers.get_mut(id) else { return (0, true) };
        loop {
            let session = peer.session.amqp();
            let mut context = self.supplies.context(self.now, &self.broker, &self.journal, id);
            match session.next(&mut context, &mut self.scratch.names, &self.scratch.input[..len], &mut at) {
                Step::NeedMore => break,
                Step::Finished => {
                    peer.ending = Ending::Flushing;
                    break;
                }
                Step::Suspended(Suspension::ReplySpace) if peer.stream.write_closed => {
                    peer.ending = Ending::Now;
                    self.lists.to_close.push(id.into());
                    break;
                }
                Step::Suspended(Suspension::ReplySpace) => {
                    peer.waiting = Waiting::Replies;
                    break;
                }
                Step::Suspended(Suspension::ContentRoom(full)) => {
                    let shortage = self.broker.shortage_of(context.messages, id, full);
                    (peer.waiting, peer.need) = (Waiting::Room, Need { shortage, since: self.now });
                    break;
                }
                Step::Command { channel, command } => {
                    let mut lent =
                        broker::Context::new(&mut self.journal, context.messages, &mut self.budget.work);
                    let (outcome, order) = self.broker.apply(&mut lent, id, channel, command);
                    let batch = lent.awaited();
                    self.budget.charge_work();
                    let outcome = match outcome {
                        Outcome::Check(check) if self.worker.throttle.is_known_wrong(&check) => {
                            self.doors.note_wrong(peer.address.origin());
                            self.broker.checked(&self.journal, id, &check, false)
                        }
                        Outcome::Check(check) => {
                            session.defer_login(self.now);
                            let ticket = self.worker.ticket();
                            self.worker.throttle.enter(self.now, id, ticket, peer.address, check);
                            peer.waiting = Waiting::Worker(ticket);
                            peer.silent_since = self.now;
                            break;
                        }
                        outcome => outcome,
                    };
                    if let Some(waiting) = peer.defer(&outcome, batch, context.durable) {
                        peer.held = Some((outcome, order));
                        peer.waiting = waiting;
                        break;
                    }
                    let must_wait = matches!(outcome, Outcome::Wait);
                    peer.session.amqp().answer(&mut context, outcome, order, batch);
                    if must_wait {
                        let shortage = self.broker.last_shortage();
                        (peer.waiting, peer.need) = (Waiting::Room, Need { shortage, since: self.now });
                        break;
                    }
                    if self.broker.is_busy(id) {
                        peer.waiting = Waiting::Job;
                        break;
                    }
                    if self.budget.is_over() {
                        is_done = false;
                        break;
                    }
                }
            }
        }
        match peer.waiting {
            Waiting::Room => {
                peer.session.amqp().blocked(self.now, true);
                if peer.leave_due == Deadline::NEVER || at > 0 {
                    peer.leave_due = self.now.after_ms(LEAVE_LOOK_MS);
                    peer.leave_seen = None;
                }
                self.lists.for_room.push(id);
            }
            Waiting::Job => self.lists.for_jobs.push(id),
            Waiting::No
            | Waiting::Replies
            | Waiting::Handshake(_)
            | Waiting::Disk(_)
            | Waiting::Worker(_) => {}
        }
        (at, is_done)
    }

    // ---- who waited for room

    /// Rises with everything that can make room for a publisher: each pool counts for itself what is given
    /// back, and [`Self::check_no_sleeper`] finds what is counted nowhere.
    fn room_made(&self) -> u64 {
        self.broker.room_made() + self.journal.room_made() + self.supplies.messages.room_made()
    }

    /// Whether somebody waits who has not tried since room was made.
    pub(super) fn has_room_to_offer(&self) -> bool {
        !self.lists.for_room.is_empty() && (self.room.retries_left > 0 || self.room_made() != self.room.seen)
    }

    /// Nobody sleeps who could go on. Asked before the loop sleeps, by builds with assertions: who waits for
    /// room tries once more although none was made, and must find none.
    #[cfg(debug_assertions)]
    pub(super) fn check_no_sleeper(&mut self) {
        debug_assert!(!self.has_stash_to_offer(), "somebody waits for stash room that is there");
        debug_assert_eq!(
            self.broker.queues().forgotten_queue(),
            None,
            "it could deliver, and nobody will look at it"
        );
        debug_assert_eq!(self.broker.forgotten_consumer(), None, "it could take, and nobody will look at it");
        let is_forgotten = |id: &PeerId| {
            let peer =
                self.peers.get(*id).filter(|peer| peer.waiting == Waiting::No && peer.ending == Ending::No);
            peer.is_some_and(|peer| peer.stream.is_starved()) && !self.lists.for_stash.contains(*id)
        };
        let forgotten = self.peers.ids().find(is_forgotten);
        debug_assert_eq!(forgotten, None, "it waits for stash room, and nobody will tell it of any");
        let waiting = self.lists.for_room.len();
        if waiting == 0 || waiting > RETRIES_PER_TURN {
            return;
        }
        let sleepers: heapless::Vec<PeerId, RETRIES_PER_TURN> = self.lists.for_room.iter().collect();
        self.room.retries_left = waiting;
        self.resume_for_room();
        self.close();
        self.room.retries_left = 0;
        // Who waits asked for a commit when it began to; that it asks once more is no reason for a turn.
        self.journal.take_urgency();
        // Whoever has output and a full socket was listed to be written to; it can be no more than before.
        self.lists.to_write.retain(|id| self.peers.get(id).is_some_and(|peer| peer.stream.writable));
        for id in sleepers {
            let peer = self.peers.get(id);
            let still_waits =
                peer.is_none_or(|peer| peer.waiting == Waiting::Room || peer.ending != Ending::No);
            assert!(still_waits, "peer {} slept although there was room for it", id.index());
        }
    }

    /// Lets those who wait try again, each once whenever room was made.
    pub(super) fn resume_for_room(&mut self) {
        if !self.has_room_to_offer() {
            return;
        }
        let made = self.room_made();
        if made != self.room.seen {
            (self.room.seen, self.room.retries_left) = (made, self.lists.for_room.len());
        }
        // Room is set aside for a large message at the head of the line, so it may fit where small ones do
        // not.
        let is_large_next = self.supplies.messages.claim_fits();
        // What was read in this turn does not count here, so that the first in line may always try.
        self.budget.begin_retries();
        let mut left = RETRIES_PER_TURN;
        let mut at = 0;
        while left > 0 && self.room.retries_left > 0 && !self.budget.is_over() {
            let Some(peer) = self.lists.for_room.get(at) else {
                self.room.retries_left = 0;
                break;
            };
            let id = peer.connection().expect("the broker's connections wait for its room");
            let owner = self.broker.owner(id);
            if !self.may_enter(owner) && !is_large_next {
                // The first in line of its virtual host did not fit: all of that wait until it does, each in
                // its place.
                at += 1;
                continue;
            }
            let waiting = self.lists.for_room.take(at);
            self.room.retries_left -= 1;
            left -= 1;
            if self.broker.is_kept_waiting(&self.supplies.messages, id) {
                self.lists.for_room.push(waiting);
                continue;
            }
            let Some(peer) = self.peers.get_mut(id) else { continue };
            peer.waiting = Waiting::No;
            let before = peer.need;
            if let Session::Amqp(session) = &mut peer.session {
                session.blocked(self.now, false);
            }
            peer.stream.look_again();
            self.read_from(waiting);
            self.keep_since(waiting, before);
            let is_held = self.supplies.messages.is_held(owner) && !is_large_next;
            // It may have been refused instead, when it wanted more than a connection may wait for.
            if is_held && self.lists.for_room.last() == Some(waiting) {
                self.lists.for_room.move_to(waiting, at);
            }
        }
    }

    /// Who waits again at once for the same has waited all the time.
    fn keep_since(&mut self, id: PeerId, before: Need) {
        if let Some(peer) = self.peers.get_mut(id)
            && peer.waiting == Waiting::Room
            && peer.need.shortage == before.shortage
        {
            peer.need.since = before.since;
        }
    }

    /// A client that waits for room may have closed its connection behind what it published, and hangs until
    /// that is answered. After a while it is: what was not taken of it is given up, as if the line had broken.
    pub(super) fn look_for_leave(&mut self, id: ConnectionId) {
        let Some(peer) = self.peers.get_mut(id).filter(|peer| peer.leave_due.is_due(self.now)) else {
            return;
        };
        peer.leave_due = Deadline::NEVER;
        if peer.waiting != Waiting::Room || peer.ending != Ending::No {
            return;
        }
        peer.leave_due = self.now.after_ms(LEAVE_LOOK_MS);
        // As long as something is taken away of what is full he may still be let on, however slowly that goes.
        let shortage = peer.need.shortage;
        let made = self.broker.queues().left_queue_of(shortage).unwrap_or_else(|| self.room_made());
        let Some(peer) = self.peers.get_mut(id) else { return };
        let stands_still = peer.leave_seen.replace(made) == Some(made);
        if !stands_still || !peer.stream.may_look(&self.buffers) {
            return;
        }
        peer.stream.look_again();
        let got = peer.stream.read(&mut self.buffers, &mut self.scratch.input, Reading::Look);
        let session = peer.session.amqp();
        let leaves = session.has_close(&self.scratch.input[..got.len]);
        if leaves {
            session.leave(&mut self.supplies.context(self.now, &self.broker, &self.journal, id));
        }
        let is_kept = peer.stream.keep(&mut self.buffers, &mut self.scratch.input, got.len, 0, true);
        peer.stream.look_again();
        if !is_kept {
            self.lists.end_now(&mut self.peers, id);
        } else if leaves {
            self.resume_closed(id);
        }
    }

    fn may_enter(&mut self, owner: Owner) -> bool {
        !self.supplies.messages.is_held(owner) || self.supplies.messages.lift_hold(owner)
    }

    // ---- who waited for the stashes

    /// Whether so much is free that one of those who wait for it can go on. Those who wait otherwise as well
    /// need not stay on the list: they are read when that is over.
    pub(super) fn has_stash_to_offer(&self) -> bool {
        self.lists.for_stash.iter().any(|id| self.has_stash_for(id))
    }

    fn has_stash_for(&self, id: PeerId) -> bool {
        let peer = self.peers.get(id);
        peer.is_none_or(|peer| peer.waiting != Waiting::No || peer.stream.can_go_on(&self.buffers))
    }

    /// Lets those be read for whom so much is free as was missing.
    pub(super) fn resume_for_stash(&mut self) {
        for _ in 0..self.lists.for_stash.len() {
            let Some(id) = self.lists.for_stash.pop() else { break };
            if !self.has_stash_for(id) {
                self.lists.for_stash.push(id);
            } else if let Some(peer) = self.peers.get_mut(id) {
                peer.stream.look_again();
                self.lists.list_to_read(&self.peers, id);
            }
        }
    }

    /// When a content has waited for the assembly share as long as a content may stand still, those end that
    /// have been coming in for a multiple of that: one octet now and then is progress too, and would hold
    /// what others wait for as long as it likes.
    pub(super) fn end_slow_bodies(&mut self) {
        let patience = self.limits.content_timeout_ms.into();
        let due = self.now.after_ms(patience);
        self.room.crowded = match (self.supplies.messages.awaits_assembly(), self.room.crowded) {
            (None, _) => None,
            (Some(claim), Some((seen, at))) if seen == claim && !at.is_due(self.now) => Some((claim, at)),
            (Some(claim), Some((seen, _))) if seen == claim => {
                self.put_out_slow(patience * SLOW_BODY_TIMES);
                Some((claim, due))
            }
            (Some(claim), _) => Some((claim, due)),
        };
    }

    fn put_out_slow(&mut self, ms: u64) {
        let fault = Fault::connection(
            ReplyCode::ResourceError,
            format_args!(
                "a message was under way for {ms} ms while others waited for its room: send it faster, or \
                 raise assembly_bytes_max"
            ),
        );
        for index in 0..self.peers.connections_seen() {
            let id = ConnectionId::from_index(index);
            let is_slow = match self.peers.get_mut(id).map(|peer| &mut peer.session) {
                Some(Session::Amqp(session)) => {
                    let context = &self.supplies.context(self.now, &self.broker, &self.journal, id);
                    session.has_body_for(context, ms)
                }
                Some(Session::Bridge(needs)) => {
                    needs.body_since.is_some_and(|since| since.after_ms(ms).is_due(self.now))
                }
                _ => false,
            };
            if is_slow {
                self.put_one_out(id, &fault);
            }
        }
    }
}
