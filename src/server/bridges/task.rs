//! A contact with all that it needs for a while: what is done with it, and what follows.
//!
//! Always true: whatever was done, lanes become what their rules want and the loop is told what it has to know
//! before anybody else looks.

use leveret_bridge::{Cause, Stage};
use leveret_core::time::{Deadline, Now};
use leveret_tls::Shaken;

use super::contact::{Contact, End, Lane};
use super::course::Remedy;
use super::message::Common;
use super::state::{Direction, Head, LinkState};
use crate::peer::{Ending, Needs, Peer, Session, Waiting};
use crate::platform::Platform;
use crate::shared::Shared;

/// What has happened to a link.
pub(crate) enum Call<'c> {
    /// The link may be read from.
    Read,
    /// The link may be written to, or there is something to write.
    Write,
    /// The time has come that the link wanted to be called at.
    Time,
    /// More is durable here.
    Durable,
    /// A step of its handshake of TLS has been made.
    Shaken(Shaken),
    /// This broker ends it: it is being stopped, or its virtual host goes.
    PutOut(&'c str),
}

/// What an event led to that did not end the link.
#[derive(PartialEq, Eq)]
pub(super) enum Next {
    /// The next one.
    GoOn,
    /// Nothing more is handled until there is room.
    Wait,
}

/// A contact, with all that it needs for a while.
pub(super) struct Task<'t, P: Platform> {
    pub(super) direction: Direction,
    pub(super) head: &'t mut Head,
    pub(super) state: &'t mut LinkState,
    pub(super) contact: &'t mut Contact,
    pub(super) common: &'t mut Common,
    pub(super) shared: &'t mut Shared<P>,
}

impl<P: Platform> Task<'_, P> {
    /// Does what follows from what has happened; says how many octets were written.
    pub(super) fn handle(&mut self, call: Call<'_>) -> usize {
        match call {
            Call::Read => self.read(),
            Call::Write => return self.write(),
            Call::Time => self.keep_time(),
            Call::Durable => self.acknowledge(),
            Call::Shaken(shaken) => self.take_shaken(shaken),
            Call::PutOut(_) if self.shared.is_stopping() => self.contact.is_draining = true,
            Call::PutOut(why) => self.lose(Cause::new(format_args!("this broker: {why}"))),
        }
        0
    }

    /// What may have changed whenever something was done: lanes become what their rules want, and the loop is
    /// told what it has to know.
    pub(super) fn settle(&mut self) {
        if self.contact.cause.is_none() {
            (0..self.contact.lanes.len()).for_each(|rule| self.tend(rule));
        }
        let (id, now) = (self.contact.peer, self.shared.now);
        let Some(peer) = self.shared.peers.get_mut(id) else { return };
        let (is_read, is_alive) = (peer.waiting == Waiting::No, peer.ending == Ending::No);
        if is_alive && self.contact.is_drained() {
            if self.contact.client.stage() == Stage::Open {
                self.contact.client.close();
                peer.ending = Ending::Flushing;
                self.shared.list_to_write(id);
            } else {
                // Nobody is there yet who could be told.
                self.shared.end_now(id);
            }
            self.contact.lanes.iter_mut().for_each(|lane| self.shared.end_lane(lane));
        }
        let input_deadline = if is_alive { self.input_deadline(is_read) } else { Deadline::NEVER };
        let pace = if is_alive { self.pace_deadline() } else { Deadline::NEVER };
        self.shared.lists.deadlines.lower(id.into(), input_deadline.earlier(pace));
        let needs = Needs { input_deadline, ..self.contact.needs() };
        if let Some(Peer { session: Session::Bridge(known), .. }) = self.shared.peers.get_mut(id) {
            *known = needs;
        }
        if !self.contact.client.pending().is_empty() {
            self.shared.list_to_write(id);
        }
        if needs.awaits_disk {
            self.shared.lists.for_disk.push(id);
        }
        self.note_active(now);
        self.note_passed();
    }

    /// The link ends, for this reason.
    #[cold]
    pub(super) fn lose(&mut self, cause: Cause) {
        let id = self.contact.peer;
        if let Some(peer) = self.shared.peers.get_mut(id)
            && peer.stream.writable
            && !peer.stream.has_unsent()
            && self.contact.cut.is_none()
        {
            // The last word, if there is one; nothing follows from whether it was heard.
            let _ = peer.stream.write(&mut self.shared.buffers, self.contact.client.pending());
        }
        self.contact.cause.get_or_insert(cause);
        self.shared.end_now(id);
    }

    // ---- lanes

    /// A lane becomes what its rule wants, as far as it can now.
    pub(super) fn tend(&mut self, rule: usize) {
        self.state.courses[rule].take_due(self.shared.now);
        let is_held = self.head.holds(&self.head.rules(self.direction)[rule]);
        let wants = !self.contact.is_draining && !is_held && !self.state.courses[rule].waits(self.shared.now);
        let is_cut = self.contact.cut == Some(rule);
        match &mut self.contact.lanes[rule] {
            Lane::Shut => {
                let client = &self.contact.client;
                if wants && client.stage() == Stage::Open && client.is_closed(rule) {
                    self.begin(rule);
                }
            }
            Lane::Opening if wants => {}
            Lane::Opening => self.shut(rule),
            Lane::Forward(lane) => {
                lane.is_ending = lane.end != End::No || !wants;
                let is_over = match lane.end {
                    End::AtOnce => true,
                    End::Sent => lane.begun == 0,
                    // With the whole contact channels need no end of their own.
                    End::Settled | End::No => lane.is_idle() && !self.contact.is_draining,
                };
                if lane.is_ending && !is_cut && is_over {
                    self.shut(rule);
                }
            }
            Lane::Fetch(lane) => {
                if !wants && !lane.is_ending {
                    lane.is_ending = true;
                    self.contact.client.cancel(self.shared.now, rule);
                } else if lane.is_ending && lane.is_over && lane.is_idle() && !self.contact.is_draining {
                    self.shut(rule);
                }
            }
        }
    }

    #[cold]
    fn begin(&mut self, rule: usize) {
        let consumes = match self.direction {
            Direction::Forward => None,
            Direction::Fetch => Some((self.head.config.fetch[rule].queue.clone(), self.ahead(rule))),
        };
        let needed = self.head.preparation(self.direction, rule);
        self.contact.client.open(self.shared.now, rule, consumes, needed);
        self.contact.lanes[rule] = Lane::Opening;
    }

    /// A rule's channel there is closed, if it is open, and what the rule holds here goes back.
    #[cold]
    pub(super) fn shut(&mut self, rule: usize) {
        self.contact.client.close_channel(self.shared.now, rule);
        self.shared.end_lane(&mut self.contact.lanes[rule]);
    }

    /// What a rule has there ended, or could not begin: it waits.
    #[cold]
    pub(super) fn give_up(&mut self, rule: usize, cause: Cause) {
        self.wait(rule, cause, Remedy::Open);
        self.shut(rule);
    }

    /// Holds a rule, and no other, until the remedy.
    #[cold]
    pub(super) fn wait(&mut self, rule: usize, cause: Cause, remedy: Remedy) {
        let (now, chance) = (self.shared.now, self.common.chance());
        let most_ms = self.head.config.reconnect_max_ms.into();
        let queue = &self.head.rules(self.direction)[rule].queue;
        let cause = Cause::new(format_args!("{queue}: {cause}"));
        if self.state.courses[rule].wait(now, (&cause, remedy), most_ms, chance) {
            let words = format_args!("{cause}; it is tried again, ever more rarely, and other rules go on");
            let way = (self.direction, self.state.upstream);
            self.shared.say_of_link(log::Level::Warn, self.head, way, words);
        }
        if let Lane::Forward(lane) = &mut self.contact.lanes[rule] {
            lane.is_ending = true;
        }
    }

    /// Something of a rule was taken: a rule that had to try goes on.
    pub(super) fn note_going(&mut self, rule: usize) {
        if self.state.courses[rule].note_taken() {
            let (name, what) = (&self.head.config.name, self.direction.name());
            let queue = &self.head.rules(self.direction)[rule].queue;
            let words = format_args!("bridge {name}, {what}: the rule of {queue} goes on");
            self.shared.say(log::Level::Info, self.head.serial, words);
            self.widen(rule);
        }
    }

    /// A rule that took one message at a time takes as many as it may.
    #[cold]
    fn widen(&mut self, rule: usize) {
        match &self.contact.lanes[rule] {
            Lane::Shut | Lane::Opening => {}
            Lane::Forward(lane) => {
                if let Err(cause) = self.shared.take_ahead(lane.own, self.head.config.window) {
                    self.wait(rule, cause, Remedy::Open);
                }
            }
            Lane::Fetch(_) => self.widen_fetch(rule),
        }
    }

    /// The consumer there begins again with as many as it may have now; what the one before had comes besides.
    #[cold]
    pub(super) fn widen_fetch(&mut self, rule: usize) {
        let ahead = self.ahead(rule);
        if let Lane::Fetch(lane) = &mut self.contact.lanes[rule] {
            lane.arrivals.begin_again(ahead.into());
            self.contact.client.widen(rule, ahead);
        }
    }

    // ---- time

    /// Returns the earliest deadline that input from the upstream can still move.
    fn input_deadline(&self, is_read: bool) -> Deadline {
        let contact = &self.contact;
        let owed = contact.confirm_deadline(self.head.config.confirm_timeout_ms.into());
        let content = contact.content_deadline(self.shared.limits.content_timeout_ms.into());
        contact.client.deadline(is_read).earlier(owed).earlier(content)
    }

    /// Returns when the byte rate of the rule lets the next message go.
    fn pace_deadline(&self) -> Deadline {
        // With nothing to send that costs a look, and no more: by then it may go.
        match self.direction {
            Direction::Forward => self.head.pace.deadline(self.shared.now),
            Direction::Fetch => Deadline::NEVER,
        }
    }

    fn keep_time(&mut self) {
        let (id, now) = (self.contact.peer, self.shared.now);
        let is_read = self.shared.peers.get(id).is_some_and(|peer| peer.waiting == Waiting::No);
        if let Err(cause) = self.contact.client.keep_time(now, is_read) {
            return self.lose(cause);
        }
        let patience = self.shared.limits.content_timeout_ms.into();
        if self.contact.content_deadline(patience).is_due(now) {
            return self.lose(Cause::new(format_args!(
                "a message or frame was begun there and did not go on for {patience} ms"
            )));
        }
        self.look_for_confirms();
        // Messages may have waited for their pace.
        if self.direction == Direction::Forward || !self.contact.client.pending().is_empty() {
            self.shared.list_to_write(id);
        }
    }

    /// Confirms are owed from when a message has gone: on a slow link that is long after it was begun, and the
    /// system takes no more of it than it is about to send.
    fn look_for_confirms(&mut self) {
        let (now, timeout_ms) = (self.shared.now, self.head.config.confirm_timeout_ms.into());
        if !self.contact.confirm_deadline(timeout_ms).is_due(now) {
            return;
        }
        let cause =
            Cause::new(format_args!("it has confirmed nothing for {timeout_ms} ms, though it is owed"));
        if self.contact.progress.after_ms(timeout_ms).is_due(now) {
            return self.lose(cause);
        }
        for rule in 0..self.contact.lanes.len() {
            if let Lane::Forward(lane) = &mut self.contact.lanes[rule]
                && !lane.flights.is_empty()
                && !self.contact.client.is_stopped(rule)
                && lane.end < End::Sent
                && lane.progress.after_ms(timeout_ms).is_due(now)
            {
                // Others are confirmed: it is this one's queue there.
                lane.end(End::Sent);
                self.wait(rule, cause.clone(), Remedy::Taken);
            }
        }
    }

    /// The link is open, or has moved something: it stays a while.
    fn note_active(&mut self, now: Now) {
        let is_busy = core::mem::take(&mut self.contact.has_moved) || !self.contact.is_idle();
        let Some(demand) = &self.head.demand else { return };
        let due = now.after_ms(demand.rest_after_ms());
        let is_new = self.state.rest_due == Deadline::NEVER && !self.state.is_going_to_rest;
        if self.state.ready_since.is_some() && (is_busy || is_new) {
            self.state.rest_due = due;
        }
    }

    /// Counts what went over the socket.
    pub(super) fn note_passed(&mut self) {
        let Some(peer) = self.shared.peers.get_mut(self.contact.peer) else { return };
        let [received, sent] = peer.stream.take_passed().map(u64::from);
        if received + sent == 0 {
            return;
        }
        self.state.today.sent += sent;
        self.state.today.received += received;
        self.head.day.note(received + sent);
        if self.head.day.is_to_note() {
            self.common.note_due = self.shared.now.after_ms(0);
        }
    }
}
