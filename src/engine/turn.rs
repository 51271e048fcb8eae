//! The one loop.
//!
//! A turn does the same things in the same order, and everything it does is bounded:
//!
//! ```text
//! poll ─ what the disk did ─ who may come in ─ read and apply ─ worker ─ who is put out ─ timers
//!      ─ the operator's orders ─ jobs ─ deliver ─ write ─ to the disk ─ who waited for room
//!      ─ who waited for a job ─ close ─ who waited for the stash ─ idle memory goes back
//! ```
//!
//! Always true: whoever waits is woken by an event, by a deadline, or is on a list that is looked at in every
//! turn; a helper's result is taken in the turn that its wake-up begins.
//!
//! What happens in a turn happens at one time, read after the poll (and before it once, for how long it may
//! sleep). Whoever still has work is on a list for the next turn, which then polls
//! without sleeping; when nobody has, the poll sleeps until the earliest deadline, or for ever. So an idle
//! broker does not wake up but for heartbeats and the watchdog; who waits at the door for a place that may
//! come with time makes it look again every 20 ms.
//!
//! Why this order: what was read in a turn is delivered in the same turn, and whatever a turn gives a peer
//! to read leaves in one write. The disk comes after that: what a consumer without acknowledgements has taken
//! is settled, and needs no place on the card.

use std::io;

use crate::session::Timeout;
use crate::time::{Deadline, Now};

use super::bridges::Call;
use super::doors::Knock;
use super::peer::{Ending, Waiting};
use super::peer_id::PeerId;
use super::platform::{ListenerId, Platform, Readiness};
use super::state::Engine;
use super::store_driver::StoreDriver;

/// Deliveries made per turn.
const DELIVERIES_PER_TURN: u32 = 8192;
/// How long what a peer sent that is gone may wait to be taken, when the peer owned queues: what waits may
/// wait for nothing but the room that those queues take.
const LOST_OWNER_MS: u64 = 5_000;
/// How long what a peer sent that is gone, and owned no queues, may wait to be taken: what programs sent before
/// they ended counts.
const LOST_MS: u64 = 600_000;

/// A part of what runs, as far as the sleep between two turns is concerned.
struct Part<P: Platform> {
    /// Whether a turn would get on with it now, with nothing reported and no time passing.
    is_ready: fn(&Engine<P>) -> bool,
    /// When it is to have a turn if nothing else happens.
    deadline: fn(&Engine<P>) -> Deadline,
}

impl<P: Platform> Engine<P> {
    /// The sleep is over, and it is now so late: for all that is noted now, and for the turn.
    pub fn set_now(&mut self, now: Now) {
        self.now = now;
        self.journal.set_time(self.store.as_ref().map_or(now.as_ms(), |store| store.time_ms(now)));
        if self.broker.set_time(now) {
            self.broker.set_unix_time(self.platform.unix_ms() / 1000);
            self.take_sample();
        }
    }

    /// One turn.
    ///
    /// # Errors
    /// The disk failed: nothing more becomes durable, and the process must end.
    pub fn turn(&mut self) -> io::Result<()> {
        self.take_from_disk()?;
        self.let_in();
        self.let_operators_in();
        self.read();
        self.run_worker();
        self.put_out();
        self.keep_time();
        self.poll_bridges();
        self.follow_orders();
        let (broker, mut context) = self.broker_mut();
        broker.run_jobs(&mut context);
        broker.deliver(&mut context, DELIVERIES_PER_TURN);
        self.write();
        self.hand_to_disk();
        self.resume_for_room();
        self.log_room_awaited();
        self.resume_after_jobs();
        self.close();
        self.resume_for_stash();
        self.tidy_memory();
        Ok(())
    }

    /// The last turn took so many milliseconds: whoever is served waited for it.
    #[cold]
    pub fn note_long_turn(&mut self, took_ms: u64) {
        let text = format_args!("one turn took {took_ms} ms, and everybody waited for it");
        self.supplies.log.record(self.now, log::Level::Warn, text);
    }

    /// Until when to sleep before the next turn if nothing is reported; `None`: not at all, there is work.
    pub fn sleeps_until(&mut self) -> Option<Deadline> {
        if self.has_work() {
            return None;
        }
        #[cfg(debug_assertions)]
        {
            self.check_no_sleeper();
            if self.has_work() {
                return None;
            }
        }
        Some(self.next_deadline())
    }

    /// What a turn goes through: each has its line, so none can have work and no deadline, or the other way round.
    const PARTS: [Part<P>; 11] = [
        // Whoever is to be read or written to now, and whoever wants to be called at some time.
        Part {
            is_ready: |it| {
                !it.lists.to_write.is_empty() || !it.lists.to_read.is_empty() && !it.journal.is_crowded()
            },
            deadline: |it| it.lists.deadlines.next(),
        },
        // The broker's jobs, deliveries, expired messages, connections to be closed; who settles nothing for too long.
        Part {
            is_ready: |it| {
                it.broker.has_work(&it.journal)
                    || it.broker.may_shed(&it.journal, &it.supplies.messages)
                    || it.broker.has_forced()
            },
            deadline: |it| it.broker.overdue_deadline().earlier(it.expiry_deadline()),
        },
        // The disk.
        Part {
            is_ready: |it| {
                let store = it.store.as_ref();
                store.is_some_and(|store| store.has_work(&it.broker, &it.journal, &it.supplies.messages))
            },
            deadline: |it| it.store.as_ref().map_or(Deadline::NEVER, StoreDriver::deadline),
        },
        // The operator's clients who want in.
        Part { is_ready: Self::may_let_operator_in, deadline: |it| it.admin.listener.deadline() },
        // Everybody else who wants in.
        Part { is_ready: |it| it.doors.is_ready(&it.house()), deadline: |it| it.doors.deadline(&it.house()) },
        // Who waits for room, or for the stashes.
        Part {
            is_ready: |it| it.has_room_to_offer() || it.has_stash_to_offer(),
            deadline: |it| it.room.deadline(),
        },
        // The worker.
        Part { is_ready: Self::has_job, deadline: Self::job_deadline },
        Part { is_ready: Self::has_bridge_work, deadline: |it| it.bridges.deadline() },
        // What only time brings about: memory goes back, lines that were held back are told, it stops.
        Part { is_ready: |_| false, deadline: |it| it.idle_memory.deadline() },
        Part { is_ready: |_| false, deadline: |it| it.supplies.log.deadline() },
        Part { is_ready: |_| false, deadline: |it| it.stopping.unwrap_or(Deadline::NEVER) },
    ];

    /// Whether a turn would get on now, with nothing reported and no time passing.
    pub fn has_work(&self) -> bool {
        Self::PARTS.iter().any(|part| (part.is_ready)(self))
    }

    /// When to take a turn if nothing else happens.
    pub fn next_deadline(&self) -> Deadline {
        Self::PARTS.iter().fold(Deadline::NEVER, |earliest, part| earliest.earlier((part.deadline)(self)))
    }

    /// When something expires, or the next life has to be told how late it is for that.
    fn expiry_deadline(&self) -> Deadline {
        let time_ms = self.journal.time_ms();
        let at_ms = self.broker.queues().next_expiry_ms();
        let due = at_ms.map_or(Deadline::NEVER, |at_ms| self.now.after_ms(at_ms.saturating_sub(time_ms)));
        let store = self.store.as_ref().filter(|_| self.broker.queues().has_deadlines());
        store.map_or(due, |store| due.earlier(store.time_deadline()))
    }

    // ---- what is reported

    /// Somebody may have come to a listener.
    pub fn note_listener(&mut self, listener: ListenerId) {
        match listener {
            ListenerId::Admin => self.admin.listener.note_event(),
            ListenerId::Amqp(_) | ListenerId::Management(_) => self.doors.handle(&Knock::Listener(listener)),
        }
    }

    /// Something happened to a connection that waits for a handshake place.
    pub fn note_newcomer(&mut self, place: usize, is_closed: bool) {
        self.doors.handle(&Knock::Newcomer(place, is_closed));
    }

    /// The poll reports what became possible with a peer, or what happened to it.
    pub fn note_peer(&mut self, id: PeerId, seen: Readiness) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        if seen.is_readable || seen.is_read_closed || seen.is_error {
            peer.stream.readable = true;
            peer.stream.read_closed |= seen.is_read_closed || seen.is_error;
            self.lists.list_to_read(&self.peers, id);
        }
        if seen.is_error || seen.is_read_closed {
            self.note_loss(id);
        }
        if seen.is_error || seen.is_read_closed && seen.is_write_closed {
            // Nobody reads there any more. What was sent before is still read, as soon as it can be, but no
            // message may go where it would only be lost sight of.
            self.note_deaf(id);
        } else if seen.is_writable
            && let Some(peer) = self.peers.get_mut(id)
            && !peer.stream.writable
        {
            // The system says so with whatever else it reports. Who could be written to before is on the list
            // if there is something to write.
            peer.stream.writable = true;
            self.lists.list_to_write(id);
        }
    }

    /// The peer is gone, or will say nothing more, which is the same: AMQP has no half of a connection. One
    /// that waits is not read to its end, so it would keep what it holds (its place among the connections,
    /// an exclusive queue, the messages in that) for as long as nobody makes room. An operator's client may
    /// say its last and wait for the answer.
    fn note_loss(&mut self, id: PeerId) {
        let (Some(peer), Some(connection)) = (self.peers.get_mut(id), id.connection()) else { return };
        if peer.session.is_bridge() {
            // Whatever it sent before and was not taken is the upstream's still; what it has to say is read.
            // Its last words in a handshake, an alert maybe, are read when the step under way is done.
            if !matches!(peer.waiting, Waiting::No | Waiting::Handshake(_)) {
                self.lists.end_now(&mut self.peers, id);
            }
            return;
        }
        if let Waiting::Worker(_) = peer.waiting {
            // Nobody is left to be told, and somebody else may want its place.
            return self.lists.end_now(&mut self.peers, id);
        }
        if peer.lost == Deadline::NEVER {
            let ms = if self.broker.owns_queues(connection) { LOST_OWNER_MS } else { LOST_MS };
            peer.lost = self.now.after_ms(ms);
            self.lists.deadlines.lower(id, peer.lost);
        }
    }

    fn keep_time(&mut self) {
        self.end_slow_bodies();
        // Each peer once: one whose deadline is not moved by its being called waits for the next turn.
        for _ in 0..self.lists.deadlines.len() {
            let Some(id) = self.lists.deadlines.pop_due(self.now) else { break };
            self.call_at_deadline(id);
        }
        self.close_overdue();
        self.supplies.log.report_due(self.now);
    }

    /// Closes the channels of those who settle nothing for too long. Who waits for room is let go on, for its
    /// own may be what it waits for; who cannot be told now is told with the next look.
    fn close_overdue(&mut self) {
        while let Some(overdue) = self.broker.next_overdue() {
            let id = overdue.connection;
            let Some(peer) = self.peers.get_mut(id).filter(|peer| !peer.session.is_bridge()) else {
                self.tell_bridge(id, Call::PutOut(&overdue.fault.text));
                continue;
            };
            let mut context = self.supplies.context(self.now, &self.broker, &self.journal, id);
            if !peer.session.amqp().close_channel(&mut context, overdue.channel, &overdue.fault) {
                continue;
            }
            if peer.waiting == Waiting::Room {
                peer.session.amqp().blocked(self.now, false);
                self.lists.for_room.remove(id);
                self.lists.resume(&mut self.peers, id);
            }
            if let Some(peer) = self.peers.get_mut(id) {
                peer.stream.look_again();
            }
            self.lists.list_to_read(&self.peers, id);
            self.after_session(id.into());
        }
    }

    /// What a burst left idle, or the start, goes back to the system a little later, in bounded steps.
    fn tidy_memory(&mut self) {
        let idle_bytes = self.idle_bytes();
        if self.idle_memory.is_due(self.now, idle_bytes) {
            let parts = [
                self.supplies.messages.trim(),
                self.supplies.pools.trim(),
                self.broker.trim(),
                self.buffers.trim(),
            ];
            if parts.into_iter().all(|is_done| is_done) {
                let left_bytes = self.idle_bytes();
                self.idle_memory.note_given_back(left_bytes);
            }
        }
    }

    fn idle_bytes(&self) -> usize {
        self.supplies.messages.idle_bytes()
            + self.supplies.pools.idle_bytes()
            + self.broker.idle_bytes()
            + self.buffers.idle_bytes()
    }

    fn call_at_deadline(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        if let Ending::Draining(until) = peer.ending {
            if until.is_due(self.now) {
                self.lists.end_now(&mut self.peers, id);
            } else {
                self.lists.deadlines.lower(id, until);
            }
            return;
        }
        if let Waiting::Handshake(_) = peer.waiting {
            // It is told when it comes back, and then has all the time that it waited for us.
            return;
        }
        if peer.lost.is_due(self.now) {
            return self.lists.end_now(&mut self.peers, id);
        }
        let Some(connection) = id.connection() else { return self.call_operator(id) };
        if peer.session.is_bridge() {
            self.tell_bridge(connection, Call::Time);
            return;
        }
        if peer.write_stall.is_due(self.now) {
            self.end_if_stalled(connection);
        }
        self.look_for_leave(connection);
        let Some(peer) = self.peers.get_mut(id) else { return };
        let mut context = self.supplies.context(self.now, &self.broker, &self.journal, connection);
        if peer.session.amqp().handle_timeout(&mut context) == Timeout::Close {
            return self.lists.end_now(&mut self.peers, id);
        }
        // Time may have let the session go on with input it had left standing, or finish.
        if let Some(peer) = self.peers.get_mut(id) {
            peer.stream.look_again();
        }
        self.lists.list_to_read(&self.peers, id);
        self.after_session(id);
    }

    // ---- jobs

    /// After everything in a turn that applies commands, for a command may end the job of another.
    fn resume_after_jobs(&mut self) {
        for _ in 0..self.lists.for_jobs.len() {
            let Some(peer) = self.lists.for_jobs.pop() else { break };
            let Some(id) = peer.connection() else {
                self.resume_operator(peer);
                continue;
            };
            if self.broker.is_busy(id) {
                self.lists.for_jobs.push(peer);
                continue;
            }
            if let Some(later) = self.broker.take_later(id)
                && let Some(peer) = self.peers.get_mut(id)
            {
                peer.held = Some(later);
                self.answer_held(id);
                self.after_session(id.into());
            } else {
                self.lists.resume(&mut self.peers, id);
            }
        }
    }

    /// Closes the connections that the broker wants closed: of users or virtual hosts that are gone.
    fn put_out(&mut self) {
        while let Some((id, fault)) = self.broker.next_forced() {
            self.put_one_out(id, &fault);
        }
    }
}

impl<P: Platform> core::fmt::Debug for Engine<P> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let waiting: Vec<_> = self.peers.iter().map(|peer| (peer.waiting, peer.ending)).collect();
        f.debug_struct("Engine")
            .field("now", &self.now)
            .field("peers", &waiting)
            .field("lists", &self.lists)
            .field("broker_has_work", &self.broker.has_work(&self.journal))
            .field("has_room_to_offer", &self.has_room_to_offer())
            .field("has_job", &self.has_job())
            .field("next_deadline", &self.next_deadline())
            .finish_non_exhaustive()
    }
}
