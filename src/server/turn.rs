//! The turn of the event loop.
//!
//! Each turn does the following in the same order, and every step is bounded:
//!
//! ```text
//!   poll ─ take finished disk jobs ─ read and apply ─ admission ─ worker ─ forced closes ─ timers
//!        ─ bridges ─ operator orders ─ broker jobs ─ deliver ─ write ─ start disk jobs ─ retry blocked publishers
//!        ─ resume after broker jobs ─ close ─ resume for the input backlog ─ return idle memory
//! ```
//!
//! # Invariants
//! - A peer that waits is woken by an event or a deadline, or is on a list that every turn examines.
//! - The result of a worker or disk job wakes the loop, and is handled in the next turn.
//!
//! The clock is read after the poll, and the whole turn uses this time. It is also read before the poll, to
//! compute how long to sleep. If there is work for the next turn, the poll does not sleep. Otherwise it
//! sleeps until the earliest deadline, or without limit. An idle broker therefore wakes up only for
//! heartbeats and the watchdog.
//!
//! Messages that are read in a turn are delivered in the same turn, up to [`DELIVERIES_PER_TURN`]. Messages of
//! blocked publishers that retry are delivered in the next turn. Output for a peer is usually sent in one write.
//! Disk jobs are started after the writes. Messages sent to consumers with automatic acknowledgement are then
//! settled already, and need not be written to the disk.

use std::io;

use leveret_connection::Timeout;
use leveret_core::command::ConnectionId;
use leveret_core::error::Fault;
use leveret_core::log_limiter::{LogKind, LogSource};
use leveret_core::mem;
use leveret_core::time::{Deadline, Now};
use leveret_tls::HandshakeOutput;

use super::bridges::LinkEvent;
use super::peer::{CloseStage, Peer, PeerId, Session, WaitReason};
use super::platform::{ListenerId, Platform, Readiness};
use super::state::Engine;
use super::worker::{HandshakeStep, WorkerResult};

/// Maximum number of deliveries per turn.
const DELIVERIES_PER_TURN: u32 = 8192;
/// Maximum work of the broker for input per turn, in work units. It takes some milliseconds; usual traffic
/// needs far less.
const WORK_UNITS_PER_TURN: u32 = 50_000;
/// Work units charged for each decrypted TLS record, and for each WebSocket frame without payload.
const WORK_UNITS_PER_RECORD: u32 = 16;

/// The input read and the work done in the current turn.
#[derive(Debug, Default)]
pub(super) struct TurnBudget {
    /// Work units of the broker's calls that were not yet added to `work_units`.
    pub(super) work: leveret_broker::Work,
    /// Bytes that reads of all peers returned in this turn, from sockets and input backlogs.
    bytes_read: usize,
    /// Work units charged in this turn: work of the broker for peers of every kind, and TLS records.
    work_units: u32,
    /// The read step of this turn is skipped, because peers were listed to be written when it began.
    is_read_skipped: bool,
}

impl TurnBudget {
    /// Begins a turn. Returns whether the turn may read. While output is left to be written, only every other
    /// turn may.
    pub(super) const fn begin(&mut self, has_to_write: bool) -> bool {
        let is_read_skipped = !self.is_read_skipped && has_to_write;
        (self.bytes_read, self.work_units, self.is_read_skipped) = (0, 0, is_read_skipped);
        !is_read_skipped
    }

    /// Resets the work units, because retries of blocked publishers have a separate budget.
    pub(super) const fn begin_retries(&mut self) {
        self.work_units = 0;
    }

    /// Adds `bytes` to the number of bytes read.
    pub(super) const fn note_read(&mut self, bytes: usize) {
        self.bytes_read += bytes;
    }

    /// Returns the number of bytes read in this turn.
    pub(super) const fn bytes_read(&self) -> usize {
        self.bytes_read
    }

    /// Adds `units` to the work done in this turn.
    pub(super) const fn charge(&mut self, units: u32) {
        self.work_units = self.work_units.saturating_add(units);
    }

    /// Adds the work units of the broker's calls since the last call of this method.
    pub(super) const fn charge_work(&mut self) {
        let units = self.work.take();
        self.charge(units);
    }

    /// Adds the work units for `records` decrypted TLS records or WebSocket frames without payload.
    pub(super) const fn charge_records(&mut self, records: u32) {
        self.charge(records * WORK_UNITS_PER_RECORD);
    }

    /// Returns whether the work budget of the turn is used up. The turn reads no more input then.
    pub(super) const fn is_over(&self) -> bool {
        self.work_units >= WORK_UNITS_PER_TURN
    }
}

/// One part of the engine, with what determines the sleep between two turns.
struct TurnPart<P: Platform> {
    /// Returns whether a turn would make progress now, without an event and without time passing.
    is_ready: fn(&Engine<P>) -> bool,
    /// Returns when the part needs a turn if no event happens.
    deadline: fn(&Engine<P>) -> Deadline,
}

impl<P: Platform> Engine<P> {
    /// Sets the time of the turn, after the poll.
    pub fn set_now(&mut self, now: Now) {
        self.shared.now = now;
        self.shared
            .pending_writes
            .set_time(self.store.as_ref().map_or(now.as_ms(), |store| store.log().time_ms(now)));
        if self.shared.broker.set_time(now) {
            self.shared.broker.set_unix_time(self.shared.platform.unix_ms() / 1000);
            self.take_sample();
        }
    }

    /// Runs one turn.
    ///
    /// # Errors
    /// The disk failed. Nothing more becomes durable, and the process must end.
    pub fn turn(&mut self) -> io::Result<()> {
        self.take_disk_results()?;
        self.read();
        self.admit();
        self.run_worker();
        self.close_forced();
        self.run_timers();
        self.bridges.poll(&mut self.shared);
        self.run_operator_orders();
        if self.system_topics.are_offered() {
            self.send_system_topics();
        }
        let (broker, mut context) = self.shared.broker_mut();
        broker.run_jobs(&mut context);
        broker.deliver(&mut context, DELIVERIES_PER_TURN);
        self.write();
        self.start_disk_jobs();
        self.retry_blocked_publishers();
        self.report_blocked_publishers();
        self.shared.resume_after_jobs();
        self.close();
        self.shared.resume_backlogged();
        self.return_idle_memory();
        Ok(())
    }

    /// Logs that the last turn took `took_ms` milliseconds, during which no client was served.
    #[cold]
    pub fn note_long_turn(&mut self, took_ms: u64) {
        let text = format_args!("the event loop was busy for {took_ms} ms, and all clients waited");
        self.shared.resources.log.record(self.shared.now, log::Level::Warn, text);
    }

    /// Returns until when to sleep before the next turn if no event happens; `None` if there is work, so that
    /// the loop must not sleep.
    pub fn sleep_deadline(&mut self) -> Option<Deadline> {
        if self.has_work() {
            return None;
        }
        #[cfg(debug_assertions)]
        {
            self.check_no_missed_wakeup();
            if self.has_work() {
                return None;
            }
        }
        Some(self.next_deadline())
    }

    /// The parts of a turn, each with its readiness and its deadline.
    const PARTS: [TurnPart<P>; 10] = [
        // Peers to be read or written, and deadlines of peers.
        TurnPart {
            is_ready: |it| {
                !it.shared.lists.to_write.is_empty()
                    || !it.shared.lists.to_read.is_empty() && !it.shared.pending_writes.is_crowded()
                    || it.shared.may_resume_long_answer()
            },
            deadline: |it| it.shared.lists.deadlines.next(),
        },
        // The broker's jobs, deliveries, expired messages, forced closes, acknowledgement timeouts, and `$SYS` topics.
        TurnPart {
            is_ready: |it| {
                it.shared.broker.has_work(&it.shared.pending_writes)
                    || it
                        .shared
                        .broker
                        .may_expire_or_trim(&it.shared.pending_writes, &it.shared.resources.messages)
                    || it.shared.broker.has_forced()
                    || it.has_system_topics_to_send()
            },
            deadline: |it| {
                let overdue = it.shared.broker.overdue_deadline();
                overdue.earlier(it.expiry_deadline()).earlier(it.system_topics.deadline())
            },
        },
        // The disk.
        TurnPart {
            is_ready: |it| {
                let store = it.store.as_ref();
                store.is_some_and(|store| {
                    store.has_work(
                        &it.shared.broker,
                        &it.shared.pending_writes,
                        &it.shared.resources.messages,
                    )
                })
            },
            deadline: |it| it.store.as_ref().map_or(Deadline::NEVER, |store| store.commit_writer.deadline()),
        },
        // Accepted sockets, and listeners that may accept.
        TurnPart { is_ready: Self::may_admit, deadline: Self::admission_deadline },
        // Blocked publishers, and peers that wait for input backlog capacity.
        TurnPart {
            is_ready: |it| it.has_publisher_to_retry() || it.shared.can_resume_backlogged(),
            deadline: |it| it.blocked.deadline(),
        },
        // The worker.
        TurnPart { is_ready: |it| it.shared.has_job(), deadline: |it| it.shared.job_deadline() },
        TurnPart { is_ready: |it| it.bridges.is_ready(&it.shared), deadline: |it| it.bridges.deadline() },
        // Parts with only a deadline: return of idle memory, report of suppressed log lines, shutdown.
        TurnPart { is_ready: |_| false, deadline: |it| it.idle_memory.deadline() },
        TurnPart { is_ready: |_| false, deadline: |it| it.shared.resources.log.deadline() },
        TurnPart { is_ready: |_| false, deadline: |it| it.shared.stopping.unwrap_or(Deadline::NEVER) },
    ];

    /// Returns whether a turn would make progress now, without an event and without time passing.
    pub fn has_work(&self) -> bool {
        Self::PARTS.iter().any(|part| (part.is_ready)(self))
    }

    /// Returns when the next turn is due if no event happens.
    pub fn next_deadline(&self) -> Deadline {
        Self::PARTS.iter().fold(Deadline::NEVER, |earliest, part| earliest.earlier((part.deadline)(self)))
    }

    /// Returns when the next timed work of the broker or the log is due.
    ///
    /// This work is the expiry of messages and queues, the write of retained messages, the publishing of wills, and the end of
    /// the wait for slow clients.
    /// It is also the write of the time to the log, from which the next start computes expirations.
    fn expiry_deadline(&self) -> Deadline {
        let time_ms = self.shared.pending_writes.time_ms();
        let broker = &self.shared.broker;
        let times_ms = [
            broker.queues().next_expiry_ms(),
            broker.next_retained_write_ms(),
            broker.next_will_ms(),
            broker.queues().next_pace_change_ms(),
        ];
        let at_ms = times_ms.into_iter().flatten().min();
        let due =
            at_ms.map_or(Deadline::NEVER, |at_ms| self.shared.now.after_ms(at_ms.saturating_sub(time_ms)));
        let store = self.store.as_ref().filter(|_| self.shared.broker.queues().has_deadlines());
        store.map_or(due, |store| due.earlier(store.log().time_deadline()))
    }

    /// Handles an event of the poll about a peer.
    pub fn note_peer(&mut self, id: PeerId, seen: Readiness) {
        self.shared.note_peer(id, seen);
    }

    /// Notes that a connection may wait to be accepted at a listener.
    pub fn note_listener(&mut self, listener: ListenerId) {
        self.shared.admission.note_event(listener);
    }

    /// Handles the result of the worker's job, and starts the next job.
    pub(super) fn run_worker(&mut self) {
        if let Some((result, certificates)) = self.shared.platform.take_work_result() {
            (self.shared.worker.is_busy, self.shared.worker.certificates) = (false, certificates);
            match result {
                WorkerResult::Password(login, is_right) => self.shared.finish_login(&login, is_right),
                WorkerResult::Handshake(HandshakeStep { peer, ticket, since, output }) => {
                    if self.shared.awaits(peer, WaitReason::Handshake(ticket)) {
                        self.take_handshake_step(peer, since, output);
                    }
                }
                WorkerResult::Reload(again) => self.shared.worker.reloaded = Some(again),
                WorkerResult::Certificates => {}
                WorkerResult::BridgeState(written) => self.note_bridge_state_written(written),
            }
        }
        if !self.shared.worker.is_busy
            && let Some(job) = self.shared.next_job()
        {
            (self.shared.worker.is_busy, self.shared.worker.started_at) = (true, self.shared.now);
            self.shared.platform.start_work(job);
        }
    }

    /// Logs an error if the state of the bridges could not be written.
    #[cold]
    pub(super) fn note_bridge_state_written(&mut self, written: Result<(), String>) {
        if let Err(why) = written {
            let text = format_args!("the state of the bridges cannot be written: {why}");
            self.shared.resources.log.warn(self.shared.now, LogSource::Unknown, LogKind::Bridge, text);
        }
    }

    fn run_timers(&mut self) {
        self.end_slow_bodies();
        // The number of calls is limited, because the new deadline of a called peer may be due already. Calls that
        // are left are made in the next turn.
        for _ in 0..self.shared.lists.deadlines.len() {
            let Some(id) = self.shared.lists.deadlines.pop_due(self.shared.now) else { break };
            self.call_at_deadline(id);
        }
        self.close_overdue();
        self.shared.resources.log.report_due(self.shared.now);
    }

    /// Closes channels with deliveries that exceeded the acknowledgement timeout. If the connection of the
    /// channel is a blocked publisher, it is resumed, because the memory that it waits for may be that of its
    /// own deliveries. If a channel cannot be closed now, the next check tries again.
    fn close_overdue(&mut self) {
        while let Some(overdue) = self.shared.broker.next_overdue() {
            let id = overdue.connection;
            let Some(peer) = self.shared.peers.get_mut(id).filter(|peer| !peer.session.is_bridge()) else {
                self.call_bridge(id, LinkEvent::Close(&overdue.fault.text));
                continue;
            };
            let mut context = self.shared.resources.context(
                self.shared.now,
                &self.shared.broker,
                &self.shared.pending_writes,
                id,
            );
            if !peer.session.client().close_channel(&mut context, overdue.channel, &overdue.fault) {
                continue;
            }
            if peer.waiting == WaitReason::Capacity {
                peer.session.client().unblock(self.shared.now);
                self.shared.lists.for_capacity.remove(id);
                self.shared.resume(id);
            }
            if let Some(peer) = self.shared.peers.get_mut(id) {
                peer.stream.assume_readable();
            }
            self.shared.list_to_read(id);
            self.shared.after_session(id.into());
        }
    }

    /// Closes the connections for which the broker requested this, for example those of deleted users or
    /// virtual hosts.
    fn close_forced(&mut self) {
        while let Some((id, fault)) = self.shared.broker.next_forced() {
            self.force_close(id, &fault);
        }
    }

    /// Returns idle memory to the system, in bounded steps: after a delay, or at once if memory is short.
    fn return_idle_memory(&mut self) {
        let idle_bytes = self.idle_bytes();
        let is_short = self.shared.broker.memory().take_shortage();
        if self.idle_memory.is_due(self.shared.now, idle_bytes, is_short) {
            let parts = [
                self.shared.resources.messages.trim(),
                self.shared.resources.pools.trim(),
                self.shared.broker.trim(),
                self.shared.buffers.trim(),
            ];
            if parts.into_iter().all(|is_done| is_done) {
                if self.shared.broker.memory().heap_freed() > 0 {
                    mem::trim_heap();
                    self.shared.broker.memory().forget_freed_heap();
                }
                let left_bytes = self.idle_bytes();
                self.idle_memory.note_returned(left_bytes);
            }
        }
    }

    fn idle_bytes(&self) -> usize {
        self.shared.resources.messages.idle_bytes()
            + self.shared.resources.pools.idle_bytes()
            + self.shared.broker.idle_bytes()
            + self.shared.broker.memory().heap_freed()
            + self.shared.buffers.idle_bytes()
    }

    /// Carries out operators' requests that concern the loop itself.
    pub(super) fn run_operator_orders(&mut self) {
        let orders = core::mem::take(&mut self.operators.orders);
        for (bridge, order) in orders.bridges {
            self.bridges.apply_order(&mut self.shared, &bridge, order);
        }
        if orders.stop {
            self.begin_stop("by leveret ctl");
        }
    }
}

impl<P: Platform> Engine<P> {
    /// Reads from the listed peers until they have returned as many bytes as the input buffer has, or the work
    /// budget is used up. The last read may exceed this number by almost one input buffer.
    ///
    /// Nothing is read while too many entries are in the pending-write buffer. While peers are listed to be written,
    /// only every other turn reads. Otherwise messages would accumulate, and would not be in the CPU caches any more
    /// when they are delivered.
    pub(super) fn read(&mut self) {
        let may_read = self.shared.budget.begin(!self.shared.lists.to_write.is_empty());
        if !may_read || self.shared.pending_writes.is_crowded() {
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
        if let CloseStage::Draining(_) = peer.ending {
            return match peer.stream.drain(&mut self.shared.scratch.input) {
                Some(0) => self.shared.close_at_turn_end(id),
                // The end of the stream may follow this data, and the kernel reports both at once.
                Some(count) => {
                    self.shared.budget.note_read(count);
                    self.shared.list_to_read(id);
                }
                None => {}
            };
        }
        if peer.waiting != WaitReason::No || peer.ending != CloseStage::No {
            return;
        }
        peer.read_at = self.shared.now;
        match id.connection() {
            Some(connection) if peer.session.is_bridge() => self.read_bridge(connection),
            Some(connection) => self.shared.read_client(connection),
            None => self.read_operator(id),
        }
    }

    pub(super) fn write(&mut self) {
        while let Some(id) = self.shared.broker.next_with_output() {
            // A connection over which a bridge rule consumes has no peer. Its output is written to the peer of the
            // rule's link.
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
        let is_over = matches!(peer.ending, CloseStage::Draining(_) | CloseStage::AtTurnEnd);
        match (id.connection(), peer.stream.is_writable) {
            (Some(connection), true) if !is_over && is_bridge => self.write_bridge(connection),
            (Some(connection), true) if !is_over => self.shared.write_client(connection),
            (Some(connection), false) if !is_bridge => self.shared.note_stall(connection, 0),
            (None, true) if !is_over => self.write_operator(id),
            _ => {}
        }
    }

    pub(super) fn call_at_deadline(&mut self, id: PeerId) {
        let Some(peer) = self.shared.peers.get_mut(id) else { return };
        if let CloseStage::Draining(until) = peer.ending {
            if until.is_due(self.shared.now) {
                self.shared.close_at_turn_end(id);
            } else {
                self.shared.lists.deadlines.lower(id, until);
            }
            return;
        }
        if let WaitReason::Handshake(_) = peer.waiting {
            // While the handshake waits for the worker or is with it, its timeout is not applied. When the result
            // arrives, the timeout of an AMQP or MQTT client is extended by this time.
            return;
        }
        if peer.lost_deadline.is_due(self.shared.now) {
            return self.shared.end_lost(id);
        }
        if let Session::Client(session) = &mut peer.session {
            let limits = &self.shared.limits;
            let (handshake_ms, content_ms) = (limits.handshake_timeout_ms, limits.content_timeout_ms);
            session.extend_after_pause(self.shared.now, handshake_ms.into(), content_ms.into());
        }
        if peer.must_read_first(self.shared.now) {
            // After a pause of the process, input that arrived in time may still be unread. Reading it
            // postpones the deadline.
            peer.stream.assume_readable();
            return self.shared.list_to_read(id);
        }
        let Some(connection) = id.connection() else { return self.shared.handle_operator_deadline(id) };
        if peer.session.is_bridge() {
            self.call_bridge(connection, LinkEvent::DeadlineDue);
            return;
        }
        if peer.write_stall.is_due(self.shared.now) {
            self.shared.end_if_stalled(connection);
        }
        self.shared.check_for_close(connection);
        let Some(peer) = self.shared.peers.get_mut(id) else { return };
        let mut context = self.shared.resources.context(
            self.shared.now,
            &self.shared.broker,
            &self.shared.pending_writes,
            connection,
        );
        if peer.session.client().handle_timeout(&mut context) == Timeout::Close {
            return self.shared.close_at_turn_end(id);
        }
        // After the timeout the session may be able to handle input that it left before, or may have ended.
        if let Some(peer) = self.shared.peers.get_mut(id) {
            peer.stream.assume_readable();
        }
        self.shared.list_to_read(id);
        self.shared.after_session(id);
    }

    /// Handles the result of one step of a TLS handshake.
    pub(super) fn take_handshake_step(&mut self, id: PeerId, since: Now, output: HandshakeOutput) {
        let is_bridge = self.shared.peers.get(id).is_some_and(|peer| peer.session.is_bridge());
        match id.connection().filter(|_| is_bridge) {
            Some(link) => drop(self.call_bridge(link, LinkEvent::HandshakeStep(output))),
            None => self.shared.take_handshake_step(id, since, output),
        }
    }

    /// Closes a connection with `fault`, even if it waits: for the broker, at a shutdown, or for a slow message body.
    pub(super) fn force_close(&mut self, id: ConnectionId, fault: &Fault) {
        let Some(peer) = self.shared.peers.get_mut(id).filter(|peer| !peer.session.is_bridge()) else {
            self.call_bridge(id, LinkEvent::Close(&fault.text));
            return;
        };
        if peer.stream.is_in_tls_handshake() {
            return self.shared.close_at_turn_end(id);
        }
        self.shared.count_waiting_messages(id);
        let Some(peer) = self.shared.peers.get_mut(id) else { return };
        let mut context = self.shared.resources.context(
            self.shared.now,
            &self.shared.broker,
            &self.shared.pending_writes,
            id,
        );
        peer.session.client().close(&mut context, fault);
        self.shared.resume_closed(id);
    }

    pub(super) fn close(&mut self) {
        if self.shared.lists.to_close.is_empty() {
            return;
        }
        while let Some(id) = self.shared.lists.to_close.pop() {
            self.shared.log_closed(id);
            let Some(mut peer) = self.shared.peers.take(id) else { continue };
            match id.connection() {
                Some(connection) => self.release_connection(connection, &mut peer),
                None => self.release_operator(id, &mut peer),
            }
            peer.stream.release(&mut self.shared.buffers);
            self.shared.lists.deadlines.remove(id);
            self.shared.platform.close(peer.stream.socket);
        }
        self.shared.lists.remove_closed(&self.shared.peers);
    }

    /// Releases the resources of a closed AMQP connection.
    fn release_connection(&mut self, id: ConnectionId, peer: &mut Peer<P::Socket>) {
        if peer.session.is_bridge() {
            return self.bridges.note_closed(&mut self.shared, id);
        }
        let mut context = self.shared.resources.context(
            self.shared.now,
            &self.shared.broker,
            &self.shared.pending_writes,
            id,
        );
        peer.session.client().teardown(&mut context);
        let (broker, mut context) = self.shared.broker_mut();
        broker.release(&mut context, id);
        self.shared.worker.remove_peer(id.into());
        self.shared.peers.note_connection_closed();
        self.shared.admission.note_closed(id, peer.stream.is_tls());
    }

    /// Releases the resources of a closed operator client, and resumes the peers that waited for these
    /// resources.
    pub(super) fn release_operator(&mut self, id: PeerId, peer: &mut Peer<P::Socket>) {
        if let Session::Operator(client) = &mut peer.session {
            let session = core::mem::take(&mut client.session);
            let (broker, mut context) = self.shared.broker_mut();
            session.abandon(broker, &mut context);
        }
        self.shared.worker.remove_peer(id);
        if self.operators.backup_client == Some(id) {
            self.operators.backup_client = None;
            if let Some(store) = &mut self.store {
                store.commit_writer.log_mut().release_backup_pin();
            }
            self.wake_backup_clients();
        }
    }

    /// Passes an event of a bridge link, or of a bridge's own connection, to the bridge. Returns the number
    /// of bytes written.
    pub(super) fn call_bridge(&mut self, id: ConnectionId, event: LinkEvent<'_>) -> usize {
        self.bridges.handle(&mut self.shared, id, event)
    }

    /// Reads once from a bridge link.
    pub(super) fn read_bridge(&mut self, id: ConnectionId) {
        self.call_bridge(id, LinkEvent::Read);
        self.shared.after_session(id.into());
    }

    /// Writes once to a bridge link.
    pub(super) fn write_bridge(&mut self, id: ConnectionId) {
        let count = self.call_bridge(id, LinkEvent::Write);
        self.shared.after_write(id.into(), count > 0);
    }
}

impl<P: Platform> core::fmt::Debug for Engine<P> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let waiting: Vec<_> = self.shared.peers.iter().map(|peer| (peer.waiting, peer.ending)).collect();
        f.debug_struct("Engine")
            .field("now", &self.shared.now)
            .field("peers", &waiting)
            .field("lists", &self.shared.lists)
            .field("broker_has_work", &self.shared.broker.has_work(&self.shared.pending_writes))
            .field("has_publisher_to_retry", &self.has_publisher_to_retry())
            .field("has_job", &self.shared.has_job())
            .field("next_deadline", &self.next_deadline())
            .finish_non_exhaustive()
    }
}
