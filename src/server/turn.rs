//! The one loop.
//!
//! A turn does the same things in the same order, and everything it does is bounded:
//!
//! ```text
//! poll ─ what the disk did ─ read and apply ─ admission ─ worker ─ who is put out ─ timers
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
//! broker does not wake up but for heartbeats and the watchdog.
//!
//! Why this order: what was read in a turn is delivered in the same turn, and whatever a turn gives a peer
//! to read leaves in one write. The disk comes after that: what a consumer without acknowledgements has taken
//! is settled, and needs no place on the card.

use std::io;

use leveret_core::log_limiter::{LogKind, LogSource};
use leveret_core::time::{Deadline, Now};

use super::bridges::Call;
use super::peer::Waiting;
use super::peer_id::PeerId;
use super::platform::{ListenerId, Platform, Readiness};
use super::state::Engine;
use super::worker_job::{Step, WorkerResult};

/// Deliveries made per turn.
const DELIVERIES_PER_TURN: u32 = 8192;
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
        self.shared.now = now;
        self.shared
            .journal
            .set_time(self.store.as_ref().map_or(now.as_ms(), |store| store.log().time_ms(now)));
        if self.shared.broker.set_time(now) {
            self.shared.broker.set_unix_time(self.shared.platform.unix_ms() / 1000);
            self.take_sample();
        }
    }

    /// One turn.
    ///
    /// # Errors
    /// The disk failed: nothing more becomes durable, and the process must end.
    pub fn turn(&mut self) -> io::Result<()> {
        self.take_from_disk()?;
        self.read();
        self.admit();
        self.run_worker();
        self.put_out();
        self.keep_time();
        self.poll_bridges();
        self.follow_orders();
        let (broker, mut context) = self.shared.broker_mut();
        broker.run_jobs(&mut context);
        broker.deliver(&mut context, DELIVERIES_PER_TURN);
        self.write();
        self.hand_to_disk();
        self.resume_for_room();
        self.log_room_awaited();
        self.shared.resume_after_jobs();
        self.close();
        self.shared.resume_for_stash();
        self.tidy_memory();
        Ok(())
    }

    /// The last turn took so many milliseconds: whoever is served waited for it.
    #[cold]
    pub fn note_long_turn(&mut self, took_ms: u64) {
        let text = format_args!("one turn took {took_ms} ms, and everybody waited for it");
        self.shared.supplies.log.record(self.shared.now, log::Level::Warn, text);
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
    const PARTS: [Part<P>; 10] = [
        // Whoever is to be read or written to now, and whoever wants to be called at some time.
        Part {
            is_ready: |it| {
                !it.shared.lists.to_write.is_empty()
                    || !it.shared.lists.to_read.is_empty() && !it.shared.journal.is_crowded()
            },
            deadline: |it| it.shared.lists.deadlines.next(),
        },
        // The broker's jobs, deliveries, expired messages, connections to be closed; who settles nothing for too long.
        Part {
            is_ready: |it| {
                it.shared.broker.has_work(&it.shared.journal)
                    || it.shared.broker.may_shed(&it.shared.journal, &it.shared.supplies.messages)
                    || it.shared.broker.has_forced()
            },
            deadline: |it| it.shared.broker.overdue_deadline().earlier(it.expiry_deadline()),
        },
        // The disk.
        Part {
            is_ready: |it| {
                let store = it.store.as_ref();
                store.is_some_and(|store| {
                    store.has_work(&it.shared.broker, &it.shared.journal, &it.shared.supplies.messages)
                })
            },
            deadline: |it| it.store.as_ref().map_or(Deadline::NEVER, |store| store.keeper.deadline()),
        },
        // Connections that were accepted, or can be.
        Part { is_ready: Self::may_admit, deadline: Self::admission_deadline },
        // Who waits for room, or for the stashes.
        Part {
            is_ready: |it| it.has_room_to_offer() || it.shared.has_stash_to_offer(),
            deadline: |it| it.room.deadline(),
        },
        // The worker.
        Part { is_ready: |it| it.shared.has_job(), deadline: |it| it.shared.job_deadline() },
        Part { is_ready: Self::has_bridge_work, deadline: |it| it.bridges.deadline() },
        // What only time brings about: memory goes back, lines that were held back are told, it stops.
        Part { is_ready: |_| false, deadline: |it| it.idle_memory.deadline() },
        Part { is_ready: |_| false, deadline: |it| it.shared.supplies.log.deadline() },
        Part { is_ready: |_| false, deadline: |it| it.shared.stopping.unwrap_or(Deadline::NEVER) },
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
        let time_ms = self.shared.journal.time_ms();
        let at_ms = self.shared.broker.queues().next_expiry_ms();
        let due =
            at_ms.map_or(Deadline::NEVER, |at_ms| self.shared.now.after_ms(at_ms.saturating_sub(time_ms)));
        let store = self.store.as_ref().filter(|_| self.shared.broker.queues().has_deadlines());
        store.map_or(due, |store| due.earlier(store.log().time_deadline()))
    }

    /// The poll reports what became possible with a peer, or what happened to it.
    pub fn note_peer(&mut self, id: PeerId, seen: Readiness) {
        self.shared.note_peer(id, seen);
    }

    /// Somebody may have come to a listener.
    pub fn note_listener(&mut self, listener: ListenerId) {
        self.shared.admission.note_event(listener);
    }

    /// Takes what was done, and gives out what is next.
    pub(super) fn run_worker(&mut self) {
        if let Some((result, certificates)) = self.shared.platform.take_worked() {
            (self.shared.worker.is_busy, self.shared.worker.certificates) = (false, certificates);
            match result {
                WorkerResult::Password(login, is_right) => self.shared.finish_login(&login, is_right),
                WorkerResult::Handshake(Step { peer, ticket, since, shaken }) => {
                    if self.shared.awaits(peer, Waiting::Handshake(ticket)) {
                        self.take_shaken(peer, since, shaken);
                    }
                }
                WorkerResult::Reload(again) => self.shared.worker.reloaded = Some(again),
                WorkerResult::Certificates => {}
                WorkerResult::Note(noted) => self.take_noted(noted),
            }
        }
        if !self.shared.worker.is_busy
            && let Some(job) = self.shared.next_job()
        {
            (self.shared.worker.is_busy, self.shared.worker.given) = (true, self.shared.now);
            self.shared.platform.start_work(job);
        }
    }

    /// What of bridges outlives a restart was written down, or could not be.
    #[cold]
    pub(super) fn take_noted(&mut self, noted: Result<(), String>) {
        if let Err(why) = noted {
            let text = format_args!("what was done with bridges cannot be written down: {why}");
            self.shared.supplies.log.warn(self.shared.now, LogSource::Anybody, LogKind::Bridge, text);
        }
    }

    fn keep_time(&mut self) {
        self.end_slow_bodies();
        // Each peer once: one whose deadline is not moved by its being called waits for the next turn.
        for _ in 0..self.shared.lists.deadlines.len() {
            let Some(id) = self.shared.lists.deadlines.pop_due(self.shared.now) else { break };
            self.call_at_deadline(id);
        }
        self.close_overdue();
        self.shared.supplies.log.report_due(self.shared.now);
    }

    /// Closes the channels of those who settle nothing for too long. Who waits for room is let go on, for its
    /// own may be what it waits for; who cannot be told now is told with the next look.
    fn close_overdue(&mut self) {
        while let Some(overdue) = self.shared.broker.next_overdue() {
            let id = overdue.connection;
            let Some(peer) = self.shared.peers.get_mut(id).filter(|peer| !peer.session.is_bridge()) else {
                self.tell_bridge(id, Call::PutOut(&overdue.fault.text));
                continue;
            };
            let mut context =
                self.shared.supplies.context(self.shared.now, &self.shared.broker, &self.shared.journal, id);
            if !peer.session.amqp().close_channel(&mut context, overdue.channel, &overdue.fault) {
                continue;
            }
            if peer.waiting == Waiting::Room {
                peer.session.amqp().unblock(self.shared.now);
                self.shared.lists.for_room.remove(id);
                self.shared.resume(id);
            }
            if let Some(peer) = self.shared.peers.get_mut(id) {
                peer.stream.look_again();
            }
            self.shared.list_to_read(id);
            self.shared.after_session(id.into());
        }
    }

    /// Closes the connections that the broker wants closed: of users or virtual hosts that are gone.
    fn put_out(&mut self) {
        while let Some((id, fault)) = self.shared.broker.next_forced() {
            self.put_one_out(id, &fault);
        }
    }

    /// What a burst left idle, or the start, goes back to the system a little later, in bounded steps.
    fn tidy_memory(&mut self) {
        let idle_bytes = self.idle_bytes();
        if self.idle_memory.is_due(self.shared.now, idle_bytes) {
            let parts = [
                self.shared.supplies.messages.trim(),
                self.shared.supplies.pools.trim(),
                self.shared.broker.trim(),
                self.shared.buffers.trim(),
            ];
            if parts.into_iter().all(|is_done| is_done) {
                let left_bytes = self.idle_bytes();
                self.idle_memory.note_given_back(left_bytes);
            }
        }
    }

    fn idle_bytes(&self) -> usize {
        self.shared.supplies.messages.idle_bytes()
            + self.shared.supplies.pools.idle_bytes()
            + self.shared.broker.idle_bytes()
            + self.shared.buffers.idle_bytes()
    }

    /// Does what the operator wants of the loop itself.
    pub(super) fn follow_orders(&mut self) {
        let orders = core::mem::take(&mut self.operators.orders);
        if let Some((bridge, order)) = orders.bridge {
            self.order_bridge(&bridge, order);
        }
        if orders.stop {
            self.begin_stop("by leveret ctl");
        }
    }
}

impl<P: Platform> core::fmt::Debug for Engine<P> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let waiting: Vec<_> = self.shared.peers.iter().map(|peer| (peer.waiting, peer.ending)).collect();
        f.debug_struct("Engine")
            .field("now", &self.shared.now)
            .field("peers", &waiting)
            .field("lists", &self.shared.lists)
            .field("broker_has_work", &self.shared.broker.has_work(&self.shared.journal))
            .field("has_room_to_offer", &self.has_room_to_offer())
            .field("has_job", &self.shared.has_job())
            .field("next_deadline", &self.next_deadline())
            .finish_non_exhaustive()
    }
}
