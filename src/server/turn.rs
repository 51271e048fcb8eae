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

use leveret_connection::Timeout;
use leveret_core::command::ConnectionId;
use leveret_core::error::Fault;
use leveret_core::log_limiter::{LogKind, LogSource};
use leveret_core::time::{Deadline, Now};
use leveret_tls::Shaken;

use super::bridges::Call;
use super::peer::{Ending, Peer, PeerId, Session, Waiting};
use super::platform::{ListenerId, Platform, Readiness};
use super::state::Engine;
use super::worker::{Step, WorkerResult};

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

// How much a turn may read, and how much work it may cause, in steps of the broker.
//
// Always true: whatever is done for a peer counts, of whatever kind it is.

/// Steps of the broker for what is read in a turn: some milliseconds of work, where usual traffic takes none.
const WORK_UNITS_PER_TURN: u32 = 50_000;
/// Steps that opening a record of TLS counts as, whatever is in it.
const WORK_UNITS_PER_RECORD: u32 = 16;

/// What a turn has read and done so far.
#[derive(Debug, Default)]
pub(super) struct TurnBudget {
    /// What the broker's last calls cost.
    pub(super) work: leveret_broker::Work,
    /// Bytes read from all peers in this turn.
    bytes_read: usize,
    /// The broker's steps for them.
    work_units: u32,
    /// Nothing is read in this turn, because the last one left something to write.
    holds_back: bool,
}

impl TurnBudget {
    /// A turn begins, with something left to write or not; says whether it may read: with something left only every
    /// other turn does.
    pub(super) const fn begin(&mut self, has_to_write: bool) -> bool {
        let holds_back = !self.holds_back && has_to_write;
        (self.bytes_read, self.work_units, self.holds_back) = (0, 0, holds_back);
        !holds_back
    }

    /// Whoever waited for room may cause as much work again as what was read in this turn.
    pub(super) const fn begin_retries(&mut self) {
        self.work_units = 0;
    }

    /// Notes that so many bytes were read.
    pub(super) const fn note_read(&mut self, bytes: usize) {
        self.bytes_read += bytes;
    }

    /// Bytes read in this turn.
    pub(super) const fn bytes_read(&self) -> usize {
        self.bytes_read
    }

    /// The broker took so many steps.
    pub(super) const fn charge(&mut self, units: u32) {
        self.work_units = self.work_units.saturating_add(units);
    }

    /// Counts what the broker's last calls cost.
    pub(super) const fn charge_work(&mut self) {
        let units = self.work.take();
        self.charge(units);
    }

    /// Charges the opening of so many records of TLS.
    pub(super) const fn charge_records(&mut self, records: u32) {
        self.charge(records * WORK_UNITS_PER_RECORD);
    }

    /// Whether the turn has had as much work as it may have, whatever is left to read.
    pub(super) const fn is_over(&self) -> bool {
        self.work_units >= WORK_UNITS_PER_TURN
    }
}

// Which part does it: a peer that is to be read, written to, called or closed is a connection, a link of a bridge or an
// operator's client.
//
// Always true: a peer is read and written to once in a turn at most, and not read while it waits; a bridge is told of
// everything that happens to the peers that are its links.

impl<P: Platform> Engine<P> {
    /// Reads about as much as leaves again, or a backlog builds up that is cold when it is delivered: one
    /// buffer's worth over all peers, and with something left to write only every other turn.
    pub(super) fn read(&mut self) {
        let may_read = self.shared.budget.begin(!self.shared.lists.to_write.is_empty());
        if !may_read || self.shared.journal.is_crowded() {
            return;
        }
        for _ in 0..self.shared.lists.to_read.len() {
            if self.shared.budget.bytes_read() >= self.shared.scratch.input.len()
                || self.shared.budget.is_over()
            {
                break;
            }
            let Some(id) = self.shared.lists.to_read.pop() else { break };
            self.read_from(id);
        }
    }

    pub(super) fn read_from(&mut self, id: PeerId) {
        let Some(peer) = self.shared.peers.get_mut(id) else { return };
        if let Ending::Draining(_) = peer.ending {
            return match peer.stream.drain(&mut self.shared.scratch.input) {
                Some(0) => self.shared.end_now(id),
                // The end may stand behind it, and the kernel tells of both at once.
                Some(count) => {
                    self.shared.budget.note_read(count);
                    self.shared.list_to_read(id);
                }
                None => {}
            };
        }
        if peer.waiting != Waiting::No || peer.ending != Ending::No {
            return;
        }
        peer.read_at = self.shared.now;
        match id.connection() {
            Some(connection) if peer.session.is_bridge() => self.read_bridge(connection),
            Some(connection) => self.shared.read_amqp(connection),
            None => self.read_operator(id),
        }
    }

    pub(super) fn write(&mut self) {
        while let Some(id) = self.shared.broker.next_noted() {
            // A connection of a bridge's own has no socket: its link has.
            let is_own = self.shared.peers.get(id).is_none();
            let peer = if is_own { self.bridges.peer_of(id) } else { Some(id) };
            peer.into_iter().for_each(|peer| self.shared.list_to_write(peer));
        }
        for _ in 0..self.shared.lists.to_write.len() {
            let Some(id) = self.shared.lists.to_write.pop() else { break };
            self.write_to(id);
        }
    }

    pub(super) fn write_to(&mut self, id: PeerId) {
        let Some(peer) = self.shared.peers.get(id) else { return };
        let is_bridge = peer.session.is_bridge();
        let is_over = matches!(peer.ending, Ending::Draining(_) | Ending::Now);
        match (id.connection(), peer.stream.writable) {
            (Some(connection), true) if !is_over && is_bridge => self.write_bridge(connection),
            (Some(connection), true) if !is_over => self.shared.write_amqp(connection),
            (Some(connection), false) if !is_bridge => self.shared.note_stall(connection, 0),
            (None, true) if !is_over => self.write_operator(id),
            _ => {}
        }
    }

    pub(super) fn call_at_deadline(&mut self, id: PeerId) {
        let Some(peer) = self.shared.peers.get_mut(id) else { return };
        if let Ending::Draining(until) = peer.ending {
            if until.is_due(self.shared.now) {
                self.shared.end_now(id);
            } else {
                self.shared.lists.deadlines.lower(id, until);
            }
            return;
        }
        if let Waiting::Handshake(_) = peer.waiting {
            // It is told when it comes back, and then has all the time that it waited for us.
            return;
        }
        if peer.lost.is_due(self.shared.now) {
            return self.shared.end_now(id);
        }
        if let Session::Amqp(session) = &mut peer.session {
            let limits = &self.shared.limits;
            let (handshake_ms, content_ms) = (limits.handshake_timeout_ms, limits.content_timeout_ms);
            session.extend_after_pause(self.shared.now, handshake_ms.into(), content_ms.into());
        }
        if peer.must_read_first(self.shared.now) {
            // After a pause of the process, what came in time is still unread. Reading sets the deadline anew.
            peer.stream.look_again();
            return self.shared.list_to_read(id);
        }
        let Some(connection) = id.connection() else { return self.shared.call_operator(id) };
        if peer.session.is_bridge() {
            self.tell_bridge(connection, Call::Time);
            return;
        }
        if peer.write_stall.is_due(self.shared.now) {
            self.shared.end_if_stalled(connection);
        }
        self.shared.look_for_leave(connection);
        let Some(peer) = self.shared.peers.get_mut(id) else { return };
        let mut context = self.shared.supplies.context(
            self.shared.now,
            &self.shared.broker,
            &self.shared.journal,
            connection,
        );
        if peer.session.amqp().handle_timeout(&mut context) == Timeout::Close {
            return self.shared.end_now(id);
        }
        // Time may have let the session go on with input it had left standing, or finish.
        if let Some(peer) = self.shared.peers.get_mut(id) {
            peer.stream.look_again();
        }
        self.shared.list_to_read(id);
        self.shared.after_session(id);
    }

    /// A step of a handshake of TLS has been made.
    pub(super) fn take_shaken(&mut self, id: PeerId, since: Now, shaken: Shaken) {
        let is_bridge = self.shared.peers.get(id).is_some_and(|peer| peer.session.is_bridge());
        match id.connection().filter(|_| is_bridge) {
            Some(link) => drop(self.tell_bridge(link, Call::Shaken(shaken))),
            None => self.shared.take_shaken(id, since, shaken),
        }
    }

    /// Closes a connection from our side, whatever it waits for.
    pub(super) fn put_one_out(&mut self, id: ConnectionId, fault: &Fault) {
        let Some(peer) = self.shared.peers.get_mut(id).filter(|peer| !peer.session.is_bridge()) else {
            self.tell_bridge(id, Call::PutOut(&fault.text));
            return;
        };
        if peer.stream.is_shaking_hands() {
            return self.shared.end_now(id);
        }
        let mut context =
            self.shared.supplies.context(self.shared.now, &self.shared.broker, &self.shared.journal, id);
        peer.session.amqp().close(&mut context, fault);
        self.shared.resume_closed(id);
    }

    pub(super) fn close(&mut self) {
        if self.shared.lists.to_close.is_empty() {
            return;
        }
        while let Some(id) = self.shared.lists.to_close.pop() {
            self.shared.log_leaving(id);
            let Some(mut peer) = self.shared.peers.take(id) else { continue };
            match id.connection() {
                Some(connection) => self.forget_connection(connection, &mut peer),
                None => self.forget_operator(id, &mut peer),
            }
            peer.stream.release(&mut self.shared.buffers);
            self.shared.lists.deadlines.remove(id);
            self.shared.platform.close(peer.stream.socket);
        }
        self.shared.lists.forget_gone(&self.shared.peers);
    }

    /// A connection of the broker is gone.
    fn forget_connection(&mut self, id: ConnectionId, peer: &mut Peer<P::Socket>) {
        if peer.session.is_bridge() {
            return self.forget_bridge(id);
        }
        let mut context =
            self.shared.supplies.context(self.shared.now, &self.shared.broker, &self.shared.journal, id);
        peer.session.amqp().teardown(&mut context);
        let (broker, mut context) = self.shared.broker_mut();
        broker.release(&mut context, id);
        self.shared.worker.leave(id.into());
        self.shared.peers.note_connection_gone();
        self.shared.admission.note_closed(id, peer.stream.is_tls());
    }

    /// A client is gone, and what was held still for it may move.
    pub(super) fn forget_operator(&mut self, id: PeerId, peer: &mut Peer<P::Socket>) {
        if let Session::Operator(client) = &mut peer.session {
            let session = core::mem::take(&mut client.session);
            let (broker, mut context) = self.shared.broker_mut();
            session.abandon(broker, &mut context);
        }
        self.shared.worker.leave(id);
        if self.operators.holder == Some(id) {
            self.operators.holder = None;
            if let Some(store) = &mut self.store {
                store.keeper.log_mut().release_backup_pin();
            }
            self.recall_operators();
        }
    }

    /// Something has happened to a link of a bridge, or to a connection of its own; says how many octets were
    /// written.
    pub(super) fn tell_bridge(&mut self, id: ConnectionId, call: Call<'_>) -> usize {
        self.bridges.handle(&mut self.shared, id, call)
    }

    /// A link of a bridge reads once.
    pub(super) fn read_bridge(&mut self, id: ConnectionId) {
        self.tell_bridge(id, Call::Read);
        self.shared.after_session(id.into());
    }

    /// A link of a bridge writes once.
    pub(super) fn write_bridge(&mut self, id: ConnectionId) {
        let count = self.tell_bridge(id, Call::Write);
        self.shared.after_write(id.into(), count > 0);
    }

    /// The socket of a link of a bridge is about to be closed.
    #[cold]
    pub(super) fn forget_bridge(&mut self, id: ConnectionId) {
        self.bridges.note_closed(&mut self.shared, id);
    }

    /// Bridges do what is due, once in every turn.
    pub(super) fn poll_bridges(&mut self) {
        self.bridges.poll(&mut self.shared);
    }

    /// Whether bridges would get on now.
    pub(super) fn has_bridge_work(&self) -> bool {
        let (has_room, is_stopping) = (self.shared.lists.for_room.is_empty(), self.shared.stopping.is_some());
        self.bridges.is_ready(&self.shared.broker, self.shared.now, (has_room, is_stopping))
    }

    /// Does what an operator wants of a bridge.
    #[cold]
    pub(super) fn order_bridge(
        &mut self,
        name: &str,
        order: leveret_management::request_context::BridgeOrder,
    ) {
        self.bridges.follow_order(&mut self.shared, name, order);
    }
}
