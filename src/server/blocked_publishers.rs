//! Publishers that wait for capacity: the order of their retries, message bodies that arrive slowly, and log
//! lines about the wait.
//!
//! A publisher that is faster than its consumers waits for capacity many times per second, which is normal.
//! The log therefore reports only waits of at least 2 s and their end. An operator then sees why a program does
//! not continue. Waits for disk space are short while the compactor frees space. A wait for disk space is logged
//! at once if none was logged in the last minute, otherwise after 2 s.
//!
//! # Invariants
//! - Publishers retry in the order of the list. While message memory is used up, all wait and keep their order.
//! - A publisher that still waits after its retry moves to the end of the list if it has published something. Otherwise it
//!   keeps its place among those that have not. So several publishers share what is freed in each turn.
//! - While message memory is used up, a publisher that has published nothing is retried first again, unless its client is lost.
//! - A logged wait is followed by a logged end.

use leveret_broker::DiskFacts;
use leveret_core::command::ConnectionId;
use leveret_core::error::{Fault, ReplyCode};
use leveret_core::log_limiter::{LogKind, LogSource};
use leveret_core::time::{Deadline, Now};
use leveret_queues::{Shortage, WaitingByKind, WaitingPublishers};

use super::peer::{PeerId, Session, WaitReason};
use super::platform::Platform;
use super::state::Engine;

/// While other publishers wait for memory, a body must arrive within this multiple of `content_timeout`.
const SLOW_BODY_TIMES: u64 = 10;
/// Maximum number of publishers that retry per turn.
const RETRIES_PER_TURN: usize = 64;
/// A wait for disk space is logged at once if none was logged within this time, in milliseconds. Otherwise it is
/// logged after [`LOGGED_AFTER_MS`], like other waits.
const DISK_LOG_INTERVAL_MS: u64 = 60_000;
/// A wait is logged after this time, in milliseconds.
const LOGGED_AFTER_MS: u64 = 2_000;
/// Maximum number of different causes that are counted. Publishers with any other cause count as others of its kind.
const CAUSES_MAX: usize = 16;

/// The state of the publishers that wait for capacity.
#[derive(Debug)]
pub(super) struct BlockedPublishers {
    /// Whether publishers are blocked, and whether this was logged.
    pub(super) report: BlockedReport,
    /// When a wait for disk space was last logged.
    pub(super) disk_logged_at: Option<Now>,
    /// Value of `Shared::capacity_freed` at the last retry.
    pub(super) capacity_seen: u64,
    /// Number of publishers that have not retried since that value was reached.
    pub(super) retries_left: usize,
    /// Number of publishers that retried since then in vain. On the list they follow those that have not retried.
    pub(super) failed_count: usize,
    /// The claim of a message that waits for memory for its body, and the time at which slow bodies are ended
    /// to free memory.
    pub(super) assembly_wait: Option<(u64, Deadline)>,
}

impl BlockedPublishers {
    pub(super) const fn new() -> Self {
        Self {
            report: BlockedReport::No,
            disk_logged_at: None,
            capacity_seen: 0,
            retries_left: 0,
            failed_count: 0,
            assembly_wait: None,
        }
    }

    /// Returns when something must be logged, or slow bodies must be ended.
    pub(super) fn deadline(&self) -> Deadline {
        self.assembly_wait.map_or(Deadline::NEVER, |(_, at)| at).earlier(self.report.deadline())
    }
}

/// Whether publishers are blocked, and whether this was logged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum BlockedReport {
    /// No publisher is blocked.
    No,
    /// Since this time there have been blocked publishers without interruption.
    Since(Now),
    /// Publishers are blocked, and this was logged.
    Logged,
}

impl BlockedReport {
    /// Returns when the wait must be logged.
    pub(super) const fn deadline(self) -> Deadline {
        match self {
            Self::Since(since) => since.after_ms(LOGGED_AFTER_MS),
            Self::No | Self::Logged => Deadline::NEVER,
        }
    }
}

/// The resource that a publisher waits for, and since when.
#[derive(Clone, Copy, Debug)]
pub(super) struct BlockedOn {
    pub(super) shortage: Shortage,
    pub(super) since: Now,
}

impl BlockedOn {
    /// Returns the most frequent shortage of each kind, and the number of publishers that wait for it.
    pub(super) fn by_kind(needs: impl Iterator<Item = Self>, now: Now) -> WaitingByKind {
        let mut causes: heapless::Vec<(Self, u32), CAUSES_MAX> = heapless::Vec::new();
        let mut by_kind = WaitingByKind::new();
        for need in needs {
            match causes.iter_mut().find(|(known, _)| known.shortage == need.shortage) {
                Some((known, count)) => {
                    known.since = known.since.min(need.since);
                    *count += 1;
                }
                // The list of causes may be full.
                None => drop(causes.push((need, 1))),
            }
            let kind = need.shortage.kind();
            match by_kind.iter_mut().find(|waiters| waiters.shortage.kind() == kind) {
                Some(waiters) => waiters.others += 1,
                None => {
                    let for_ms = now.as_ms().saturating_sub(need.since.as_ms());
                    let first = WaitingPublishers { shortage: need.shortage, count: 1, for_ms, others: 0 };
                    by_kind.push(first).expect("there are at most as many kinds");
                }
            }
        }
        for (cause, count) in causes {
            let is_kind = |waiters: &&mut WaitingPublishers| waiters.shortage.kind() == cause.shortage.kind();
            let waiters = by_kind.iter_mut().find(is_kind).expect("each cause has a kind");
            if count > waiters.count || cause.shortage == waiters.shortage {
                let for_ms = now.as_ms().saturating_sub(cause.since.as_ms());
                let others = waiters.others + waiters.count - count;
                *waiters = WaitingPublishers { shortage: cause.shortage, count, for_ms, others };
            }
        }
        by_kind
    }
}

impl<P: Platform> Engine<P> {
    /// Returns whether a blocked publisher has not retried since capacity was freed.
    pub(super) fn has_publisher_to_retry(&self) -> bool {
        !self.shared.lists.for_capacity.is_empty()
            && (self.blocked.retries_left > 0 || self.shared.capacity_freed() != self.blocked.capacity_seen)
    }

    /// Asserts that no blocked publisher could proceed with the capacity that is free now.
    ///
    /// Called before the loop sleeps, in builds with assertions. If at most [`RETRIES_PER_TURN`] publishers are
    /// blocked, each retries once, although no capacity was freed, and must block again, or be refused.
    #[cfg(debug_assertions)]
    pub(super) fn check_no_missed_wakeup(&mut self) {
        self.check_lists();
        let waiting = self.shared.lists.for_capacity.len();
        if waiting == 0 || waiting > RETRIES_PER_TURN {
            return;
        }
        let shortage_of = |id: PeerId| self.shared.peers.get(id).map(|peer| peer.blocked_on.shortage);
        let blocked_ids: heapless::Vec<_, RETRIES_PER_TURN> =
            self.shared.lists.for_capacity.iter().map(|id| (id, shortage_of(id))).collect();
        for connection in blocked_ids.iter().filter_map(|(id, _)| id.connection()) {
            self.shared.broker.watch_publish(connection);
        }
        let taken_before = self.shared.broker.counters().received;
        (self.blocked.retries_left, self.blocked.failed_count) = (waiting, 0);
        self.retry_blocked_publishers();
        self.close();
        let is_taken = self.shared.broker.counters().received > taken_before;
        self.blocked.retries_left = 0;
        // The publishers requested a commit when they blocked. A repeated request is no reason for another
        // turn.
        self.shared.pending_writes.take_urgency();
        // The retries listed peers that have output but whose sockets are full. These peers cannot be written
        // to.
        self.shared
            .lists
            .to_write
            .retain(|id| self.shared.peers.get(id).is_some_and(|peer| peer.stream.is_writable));
        for (id, shortage) in blocked_ids {
            // A publisher may have been refused because another pool is full by now, or because no consumer can take
            // its message any more and its queue is full. It would have been refused at its next retry, so no wake-up
            // was missed. Its other channels go on, and its message and its channel leave capacity to the publishers
            // behind it.
            let is_refused = |connection| self.shared.broker.was_watched_publish_refused(connection);
            if id.connection().is_some_and(is_refused) {
                break;
            }
            assert!(
                !is_taken || self.still_waits(id),
                "peer {} waited for {shortage:?} although there was capacity for it",
                id.index()
            );
        }
    }

    /// Returns whether a publisher that has retried waits again, or is being closed.
    #[cfg(debug_assertions)]
    fn still_waits(&self, id: PeerId) -> bool {
        let peer = self.shared.peers.get(id);
        peer.is_none_or(|peer| {
            peer.waiting == WaitReason::Capacity || peer.ending != super::peer::CloseStage::No
        })
    }

    /// Asserts that each object that could proceed is on the list of those that do.
    #[cfg(debug_assertions)]
    fn check_lists(&self) {
        use super::peer::CloseStage;

        debug_assert!(
            !self.shared.can_resume_backlogged(),
            "a peer waits for input backlog capacity that is free"
        );
        debug_assert_eq!(
            self.shared.broker.queues().forgotten_queue(),
            None,
            "a queue could deliver and is not scheduled"
        );
        debug_assert_eq!(
            self.shared.broker.forgotten_consumer(),
            None,
            "a consumer could take messages and is not scheduled"
        );
        let is_forgotten = |id: &PeerId| {
            let peer = self
                .shared
                .peers
                .get(*id)
                .filter(|peer| peer.waiting == WaitReason::No && peer.ending == CloseStage::No);
            peer.is_some_and(|peer| peer.stream.lacks_backlog())
                && !self.shared.lists.for_backlog.contains(*id)
        };
        let forgotten = self.shared.peers.ids().find(is_forgotten);
        debug_assert_eq!(forgotten, None, "a peer waits for input backlog capacity and is not on the list");
    }

    /// Makes blocked publishers retry. Each retries once whenever capacity was freed.
    pub(super) fn retry_blocked_publishers(&mut self) {
        if !self.has_publisher_to_retry() {
            return;
        }
        let made = self.shared.capacity_freed();
        if made != self.blocked.capacity_seen {
            self.blocked.capacity_seen = made;
            (self.blocked.retries_left, self.blocked.failed_count) =
                (self.shared.lists.for_capacity.len(), 0);
        }
        // Freed memory is reserved for a large message at the head of the list. So the first publisher may
        // succeed although others cannot publish.
        let is_large_next = self.shared.resources.messages.claim_fits();
        // The budget that input has used in this turn is not counted, so that the first publisher can always
        // retry.
        self.shared.budget.begin_retries();
        let mut left = RETRIES_PER_TURN;
        while left > 0 && self.blocked.retries_left > 0 && !self.shared.budget.is_over() {
            // While there is no capacity for the first publisher, all wait, and keep their order.
            let first =
                self.shared.lists.for_capacity.get(0).filter(|_| is_large_next || self.shared.can_publish());
            let Some(peer) = first else {
                self.blocked.retries_left = 0;
                break;
            };
            let id = peer.connection().expect("only connections of the broker are blocked publishers");
            self.shared.lists.for_capacity.take(0);
            self.blocked.retries_left -= 1;
            left -= 1;
            self.retry_publisher(id, is_large_next);
        }
    }

    /// Makes the publisher that was first on the list retry.
    fn retry_publisher(&mut self, id: ConnectionId, is_large_next: bool) {
        let waiting = PeerId::from(id);
        if self.shared.broker.is_still_blocked(&self.shared.resources.messages, id) {
            self.shared.lists.for_capacity.push(waiting);
            self.keep_place_of_last();
            return;
        }
        let Some(peer) = self.shared.peers.get_mut(id) else { return };
        peer.waiting = WaitReason::No;
        let before = peer.blocked_on;
        let received_before = self.shared.broker.counters().received;
        if let Session::Client(session) = &mut peer.session {
            session.unblock(self.shared.now);
        }
        peer.stream.assume_readable();
        self.read_from(waiting);
        let has_published = self.shared.broker.counters().received != received_before;
        self.shared.keep_waiting_time(waiting, before, has_published);
        let is_held = self.shared.resources.messages.is_held() && !is_large_next;
        // A publisher that published something waits behind the others. Instead of blocking again, it may
        // have been refused, because it needs more than a connection may wait for.
        let is_lost = self.shared.peers.get(waiting).is_none_or(|peer| peer.lost.is_some());
        if !has_published && !is_lost && self.shared.lists.for_capacity.last() == Some(waiting) {
            match is_held {
                true => self.shared.lists.for_capacity.move_last_to(0),
                false => self.keep_place_of_last(),
            }
        }
        if is_lost {
            // Its message may be too large for the memory that is left. Others do not wait for that.
            self.shared.resources.messages.lift_hold();
        }
    }

    /// Moves the last publisher, which has retried in vain, before those that have published something.
    fn keep_place_of_last(&mut self) {
        let place = self.blocked.retries_left + self.blocked.failed_count;
        let list = &mut self.shared.lists.for_capacity;
        // Publishers may have left the list since the retries were counted.
        list.move_last_to(place.min(list.len() - 1));
        self.blocked.failed_count += 1;
    }

    /// Closes connections whose messages have been arriving too slowly while others wait for their memory.
    ///
    /// When a message has waited for `content_timeout` for memory for its body, connections are closed whose
    /// bodies have been arriving for [`SLOW_BODY_TIMES`] × `content_timeout`. `content_timeout` alone does
    /// not close them, because every few octets restart it.
    pub(super) fn end_slow_bodies(&mut self) {
        let timeout_ms = self.shared.limits.content_timeout_ms.into();
        let due = self.shared.now.after_ms(timeout_ms);
        self.blocked.assembly_wait =
            match (self.shared.resources.messages.awaits_assembly(), self.blocked.assembly_wait) {
                (None, _) => None,
                (Some(claim), Some((seen, at))) if seen == claim && !at.is_due(self.shared.now) => {
                    Some((claim, at))
                }
                (Some(claim), Some((seen, _))) if seen == claim => {
                    self.close_slow_bodies(timeout_ms * SLOW_BODY_TIMES);
                    Some((claim, due))
                }
                (Some(claim), _) => Some((claim, due)),
            };
    }

    fn close_slow_bodies(&mut self, ms: u64) {
        let fault = Fault::connection(
            ReplyCode::ResourceError,
            format_args!(
                "a message was incomplete for {ms} ms while others waited for its memory: send it faster, or \
                 raise memory_limit"
            ),
        );
        for index in 0..self.shared.peers.connections_seen() {
            let id = ConnectionId::from_index(index);
            let is_slow = match self.shared.peers.get_mut(id).map(|peer| &mut peer.session) {
                Some(Session::Client(session)) => {
                    let context = &self.shared.resources.context(
                        self.shared.now,
                        &self.shared.broker,
                        &self.shared.pending_writes,
                        id,
                    );
                    session.has_body_for(context, ms)
                }
                Some(Session::Bridge(needs)) => {
                    needs.body_since.is_some_and(|since| since.after_ms(ms).is_due(self.shared.now))
                }
                _ => false,
            };
            if is_slow {
                self.force_close(id, &fault);
            }
        }
    }

    /// Logs that publishers have been blocked for [`LOGGED_AFTER_MS`], and later that they continue.
    pub(super) fn report_blocked_publishers(&mut self) {
        let first = self.shared.blocked_publishers().next();
        match (self.blocked.report, first.is_none()) {
            (BlockedReport::No, false) => {
                self.blocked.report = BlockedReport::Since(self.shared.now);
                if first.is_some_and(|publisher| publisher.shortage.is_log_full())
                    && self
                        .blocked
                        .disk_logged_at
                        .is_none_or(|told| told.after_ms(DISK_LOG_INTERVAL_MS).is_due(self.shared.now))
                {
                    self.log_blocked_publishers();
                }
            }
            (BlockedReport::Since(_), true) => self.blocked.report = BlockedReport::No,
            (awaited @ BlockedReport::Since(_), false) if awaited.deadline().is_due(self.shared.now) => {
                self.log_blocked_publishers();
            }
            (BlockedReport::Logged, true) => {
                self.blocked.report = BlockedReport::No;
                let text = format_args!("no publisher is blocked any more");
                self.shared.resources.log.log(
                    self.shared.now,
                    log::Level::Info,
                    LogSource::Unknown,
                    LogKind::Shortage,
                    text,
                );
            }
            (BlockedReport::No, true) | (BlockedReport::Since(_) | BlockedReport::Logged, false) => {}
        }
    }

    fn log_blocked_publishers(&mut self) {
        let by_kind = BlockedOn::by_kind(self.shared.blocked_publishers(), self.shared.now);
        self.blocked.report = BlockedReport::Logged;
        let machine = self.shared.platform.machine();
        let limit_bytes = self.operators.process.disk_limit_bytes;
        let disk = DiskFacts { limit_bytes, has_no_inodes: machine.has_no_inodes };
        for waiters in by_kind {
            if waiters.shortage.is_log_full() {
                self.blocked.disk_logged_at = Some(self.shared.now);
            }
            let (pending_writes, messages) = (&self.shared.pending_writes, &self.shared.resources.messages);
            let why = self.shared.broker.views().explain(pending_writes, messages, waiters, disk);
            let text = format_args!("{why} (guide: troubleshooting.md)");
            self.shared.resources.log.warn(self.shared.now, LogSource::Unknown, LogKind::Shortage, text);
        }
    }
}
