//! Publishers that wait for capacity: the order of their retries, slow bodies, and what is logged.
//!
//! A publisher that is faster than its consumers waits for capacity many times per second, which is normal. The log
//! therefore reports only waits that last, and their end, so that an operator can see why programs stand still. Waits
//! for disk space come and go while the compactor frees some. They are logged at once, but at most once per minute.
//!
//! # Invariants
//! - Per virtual host, the publisher that has waited longest retries first. While there is no memory for it,
//!   publishers of other virtual hosts go on.
//! - A logged wait is followed by a logged end.

use leveret_broker::{DiskFacts, Shortage, Waiters};
use leveret_core::command::ConnectionId;
use leveret_core::error::{Fault, ReplyCode};
use leveret_core::log_limiter::{LogKind, LogSource};
use leveret_core::time::{Deadline, Now};

use super::peer::{Session, Waiting};
use super::platform::Platform;
use super::state::Engine;

/// A body may take this many times `content_timeout` while others wait for its memory.
const SLOW_BODY_TIMES: u64 = 10;
/// Maximum number of publishers that retry per turn.
const RETRIES_PER_TURN: usize = 64;
/// Minimum time between two log lines about waits for disk space, in milliseconds.
const DISK_TOLD_EVERY_MS: u64 = 60_000;

impl<P: Platform> Engine<P> {
    /// Returns whether a blocked publisher has not retried since capacity was freed.
    pub(super) fn has_room_to_offer(&self) -> bool {
        !self.shared.lists.for_room.is_empty()
            && (self.room.retries_left > 0 || self.shared.room_made() != self.room.seen)
    }

    /// Asserts that no blocked publisher could proceed with the capacity that is free now.
    ///
    /// Called before the loop sleeps, in builds with assertions. Every blocked publisher retries once although
    /// nothing was freed, and must block again.
    #[cfg(debug_assertions)]
    pub(super) fn check_no_sleeper(&mut self) {
        use super::peer::{Ending, PeerId};

        debug_assert!(
            !self.shared.has_stash_to_offer(),
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
                .filter(|peer| peer.waiting == Waiting::No && peer.ending == Ending::No);
            peer.is_some_and(|peer| peer.stream.is_starved()) && !self.shared.lists.for_stash.contains(*id)
        };
        let forgotten = self.shared.peers.ids().find(is_forgotten);
        debug_assert_eq!(forgotten, None, "a peer waits for input backlog capacity and is not on the list");
        let waiting = self.shared.lists.for_room.len();
        if waiting == 0 || waiting > RETRIES_PER_TURN {
            return;
        }
        let shortage_of = |id: PeerId| self.shared.peers.get(id).map(|peer| peer.need.shortage);
        let sleepers: heapless::Vec<_, RETRIES_PER_TURN> =
            self.shared.lists.for_room.iter().map(|id| (id, shortage_of(id))).collect();
        let taken_before = self.shared.broker.counters().received;
        self.room.retries_left = waiting;
        self.resume_for_room();
        self.close();
        let is_taken = self.shared.broker.counters().received > taken_before;
        self.room.retries_left = 0;
        // The publishers asked for a commit when they blocked. Asking again is no reason for another turn.
        self.shared.journal.take_urgency();
        // Peers with output and a full socket were listed to be written to. They still cannot be written to.
        self.shared
            .lists
            .to_write
            .retain(|id| self.shared.peers.get(id).is_some_and(|peer| peer.stream.writable));
        for (id, shortage) in sleepers {
            let peer = self.shared.peers.get(id);
            // A publisher may have been refused because another pool has become full. It no longer waits, but missed
            // nothing.
            let still_waits =
                peer.is_none_or(|peer| peer.waiting == Waiting::Room || peer.ending != Ending::No);
            assert!(
                still_waits || !is_taken,
                "peer {} waited for {shortage:?} although there was capacity for it",
                id.index()
            );
        }
    }

    /// Lets blocked publishers retry, each once per time that capacity is freed.
    pub(super) fn resume_for_room(&mut self) {
        if !self.has_room_to_offer() {
            return;
        }
        let made = self.shared.room_made();
        if made != self.room.seen {
            (self.room.seen, self.room.retries_left) = (made, self.shared.lists.for_room.len());
        }
        // Memory is reserved for a large message at the head of the list, so it may fit where small ones do not.
        let is_large_next = self.shared.supplies.messages.claim_fits();
        // Input of this turn does not count here, so that the first publisher can always retry.
        self.shared.budget.begin_retries();
        let mut left = RETRIES_PER_TURN;
        while left > 0 && self.room.retries_left > 0 && !self.shared.budget.is_over() {
            // While the first publisher does not fit, all wait in their order.
            let first =
                self.shared.lists.for_room.get(0).filter(|_| is_large_next || self.shared.may_enter());
            let Some(peer) = first else {
                self.room.retries_left = 0;
                break;
            };
            let id = peer.connection().expect("the broker's connections wait for its room");
            let waiting = self.shared.lists.for_room.take(0);
            self.room.retries_left -= 1;
            left -= 1;
            if self.shared.broker.is_kept_waiting(&self.shared.supplies.messages, id) {
                self.shared.lists.for_room.push(waiting);
                continue;
            }
            let Some(peer) = self.shared.peers.get_mut(id) else { continue };
            peer.waiting = Waiting::No;
            let before = peer.need;
            if let Session::Amqp(session) = &mut peer.session {
                session.unblock(self.shared.now);
            }
            peer.stream.look_again();
            self.read_from(waiting);
            self.shared.keep_since(waiting, before);
            let is_held = self.shared.supplies.messages.is_held() && !is_large_next;
            // The publisher may have been refused instead, if it wanted more than a connection may wait for.
            if is_held && self.shared.lists.for_room.last() == Some(waiting) {
                self.shared.lists.for_room.move_to(waiting, 0);
            }
        }
    }

    /// Closes connections whose messages have been arriving too slowly while others wait for their memory.
    ///
    /// This happens when a message has waited for memory to assemble its body for `content_timeout`. A body that has
    /// been arriving for [`SLOW_BODY_TIMES`] that time is then ended. A few octets now and then count as progress for
    /// `content_timeout`, so that limit alone would not end it.
    pub(super) fn end_slow_bodies(&mut self) {
        let patience = self.shared.limits.content_timeout_ms.into();
        let due = self.shared.now.after_ms(patience);
        self.room.crowded = match (self.shared.supplies.messages.awaits_assembly(), self.room.crowded) {
            (None, _) => None,
            (Some(claim), Some((seen, at))) if seen == claim && !at.is_due(self.shared.now) => {
                Some((claim, at))
            }
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
        for index in 0..self.shared.peers.connections_seen() {
            let id = ConnectionId::from_index(index);
            let is_slow = match self.shared.peers.get_mut(id).map(|peer| &mut peer.session) {
                Some(Session::Amqp(session)) => {
                    let context = &self.shared.supplies.context(
                        self.shared.now,
                        &self.shared.broker,
                        &self.shared.journal,
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
                self.put_one_out(id, &fault);
            }
        }
    }

    /// Logs that publishers have been blocked for a while, and that they go on.
    pub(super) fn log_room_awaited(&mut self) {
        match (self.room.awaited, self.shared.lists.for_room.is_empty()) {
            (RoomAwaited::No, false) => {
                self.room.awaited = RoomAwaited::Since(self.shared.now);
                let first = self.shared.lists.for_room.get(0).and_then(|id| self.shared.peers.get(id));
                let is_of_disk = first.is_some_and(|peer| peer.need.shortage.is_of_disk());
                if is_of_disk
                    && self
                        .room
                        .disk_told
                        .is_none_or(|told| told.after_ms(DISK_TOLD_EVERY_MS).is_due(self.shared.now))
                {
                    self.tell_room_awaited();
                }
            }
            (RoomAwaited::Since(_), true) => self.room.awaited = RoomAwaited::No,
            (awaited @ RoomAwaited::Since(_), false) if awaited.deadline().is_due(self.shared.now) => {
                self.tell_room_awaited();
            }
            (RoomAwaited::Told, true) => {
                self.room.awaited = RoomAwaited::No;
                let text = format_args!("no publisher waits for room any more");
                self.shared.supplies.log.log(
                    self.shared.now,
                    log::Level::Info,
                    LogSource::Anybody,
                    LogKind::Shortage,
                    text,
                );
            }
            (RoomAwaited::No, true) | (RoomAwaited::Since(_) | RoomAwaited::Told, false) => {}
        }
    }

    fn tell_room_awaited(&mut self) {
        let needs = self
            .shared
            .lists
            .for_room
            .iter()
            .filter_map(|id| self.shared.peers.get(id))
            .map(|peer| peer.need);
        let Some(waiters) = Need::most_awaited(needs, self.shared.now) else { return };
        self.room.awaited = RoomAwaited::Told;
        if waiters.shortage.is_of_disk() {
            self.room.disk_told = Some(self.shared.now);
        }
        let pools = (&self.shared.journal, &self.shared.supplies.messages);
        let machine = self.shared.platform.machine();
        let limit_bytes = self.operators.process.disk_limit_bytes;
        let disk = DiskFacts { limit_bytes, has_no_inodes: machine.has_no_inodes };
        let why = self.shared.broker.views().explain(pools, waiters, disk);
        let text = format_args!("{why}");
        self.shared.supplies.log.warn(self.shared.now, LogSource::Anybody, LogKind::Shortage, text);
    }
}

/// A wait is logged after this time, in milliseconds.
const LASTS_MS: u64 = 2_000;

/// Number of causes that are counted separately. Publishers with a further cause are counted as others.
const CAUSES: usize = 16;

/// The resource that a publisher waits for, and since when.
#[derive(Clone, Copy, Debug)]
pub(super) struct Need {
    pub(super) shortage: Shortage,
    pub(super) since: Now,
}

impl Need {
    /// Returns what most publishers wait for; `None` if none waits.
    pub(super) fn most_awaited(needs: impl Iterator<Item = Self>, now: Now) -> Option<Waiters> {
        let mut causes: heapless::Vec<(Self, u32), CAUSES> = heapless::Vec::new();
        let mut all = 0;
        for need in needs {
            all += 1;
            match causes.iter_mut().find(|(known, _)| known.shortage == need.shortage) {
                Some((known, count)) => {
                    known.since = known.since.min(need.since);
                    *count += 1;
                }
                // A cause that does not fit is counted among the others.
                None => drop(causes.push((need, 1))),
            }
        }
        let (most, count) =
            causes.into_iter().reduce(|most, next| if next.1 > most.1 { next } else { most })?;
        let for_ms = now.as_ms().saturating_sub(most.since.as_ms());
        Some(Waiters { shortage: most.shortage, count, for_ms, others: all - count })
    }
}

/// The state of the publishers that wait for capacity.
#[derive(Debug)]
pub(super) struct RoomOffers {
    /// Since when publishers have been blocked, and whether that is in the log.
    pub(super) awaited: RoomAwaited,
    /// When a wait for disk space was last logged.
    pub(super) disk_told: Option<Now>,
    /// Value of `Shared::room_made` at the last retry.
    pub(super) seen: u64,
    /// Number of publishers that have not retried since then.
    pub(super) retries_left: usize,
    /// The claim of a message that waits for memory to be assembled, and when slow bodies are ended for it.
    pub(super) crowded: Option<(u64, Deadline)>,
}

impl RoomOffers {
    pub(super) const fn new() -> Self {
        Self { awaited: RoomAwaited::No, disk_told: None, seen: 0, retries_left: 0, crowded: None }
    }

    /// Returns when something must be logged, or slow bodies must be ended.
    pub(super) fn deadline(&self) -> Deadline {
        self.crowded.map_or(Deadline::NEVER, |(_, at)| at).earlier(self.awaited.deadline())
    }
}

/// Whether publishers are blocked, and whether that is in the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum RoomAwaited {
    /// No publisher is blocked.
    No,
    /// Publishers have been blocked since then without interruption.
    Since(Now),
    /// Publishers are blocked, and the log says so.
    Told,
}

impl RoomAwaited {
    /// Returns when the wait must be logged.
    pub(super) const fn deadline(self) -> Deadline {
        match self {
            Self::Since(since) => since.after_ms(LASTS_MS),
            Self::No | Self::Told => Deadline::NEVER,
        }
    }
}
