//! Publishers that wait for room: who of them may try again, who holds room for too long, and what the log tells of it.
//!
//! Why the log tells it: whoever looks after a device asks first why its programs stand still. A publisher that is
//! faster than its consumers waits for room many times a second, and that is as it should be; so only a wait that lasts
//! is told, and that it is over. For room on the disk somebody waits in fits and starts, while the cleaner finds some:
//! that is told at once, and once a minute is enough.
//!
//! Always true: whoever of a virtual host waited longest for room tries first, and while that has no memory the others
//! go on; what was told to have begun is told to be over.

use leveret_broker::{DiskFacts, Shortage, Waiters};
use leveret_core::command::ConnectionId;
use leveret_core::error::{Fault, ReplyCode};
use leveret_core::log_limiter::{LogKind, LogSource};
use leveret_core::time::{Deadline, Now};

use super::peer::{Session, Waiting};
use super::platform::Platform;
use super::state::Engine;

/// How many times `content_timeout` a body may take while others wait for its room.
const SLOW_BODY_TIMES: u64 = 10;
/// Connections that may try again to publish, per turn.
const RETRIES_PER_TURN: usize = 64;
/// How often a wait for room on the disk is told at once.
const DISK_TOLD_EVERY_MS: u64 = 60_000;

impl<P: Platform> Engine<P> {
    /// Whether somebody waits who has not tried since room was made.
    pub(super) fn has_room_to_offer(&self) -> bool {
        !self.shared.lists.for_room.is_empty()
            && (self.room.retries_left > 0 || self.shared.room_made() != self.room.seen)
    }

    /// Nobody sleeps who could go on. Asked before the loop sleeps, by builds with assertions: who waits for
    /// room tries once more although none was made, and must find none.
    #[cfg(debug_assertions)]
    pub(super) fn check_no_sleeper(&mut self) {
        use super::peer::{Ending, PeerId};

        debug_assert!(!self.shared.has_stash_to_offer(), "somebody waits for stash room that is there");
        debug_assert_eq!(
            self.shared.broker.queues().forgotten_queue(),
            None,
            "it could deliver, and nobody will look at it"
        );
        debug_assert_eq!(
            self.shared.broker.forgotten_consumer(),
            None,
            "it could take, and nobody will look at it"
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
        debug_assert_eq!(forgotten, None, "it waits for stash room, and nobody will tell it of any");
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
        // Who waits asked for a commit when it began to; that it asks once more is no reason for a turn.
        self.shared.journal.take_urgency();
        // Whoever has output and a full socket was listed to be written to; it can be no more than before.
        self.shared
            .lists
            .to_write
            .retain(|id| self.shared.peers.get(id).is_some_and(|peer| peer.stream.writable));
        for (id, shortage) in sleepers {
            let peer = self.shared.peers.get(id);
            // A publisher that was refused because another pool is full by now no longer waits, but no room was missed.
            let still_waits =
                peer.is_none_or(|peer| peer.waiting == Waiting::Room || peer.ending != Ending::No);
            assert!(
                still_waits || !is_taken,
                "peer {} waited for {shortage:?} although there was room for it",
                id.index()
            );
        }
    }

    /// Lets those who wait try again, each once whenever room was made.
    pub(super) fn resume_for_room(&mut self) {
        if !self.has_room_to_offer() {
            return;
        }
        let made = self.shared.room_made();
        if made != self.room.seen {
            (self.room.seen, self.room.retries_left) = (made, self.shared.lists.for_room.len());
        }
        // Room is set aside for a large message at the head of the line, so it may fit where small ones do
        // not.
        let is_large_next = self.shared.supplies.messages.claim_fits();
        // What was read in this turn does not count here, so that the first in line may always try.
        self.shared.budget.begin_retries();
        let mut left = RETRIES_PER_TURN;
        while left > 0 && self.room.retries_left > 0 && !self.shared.budget.is_over() {
            // While the first in line does not fit, all wait, each in its place.
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
            // It may have been refused instead, when it wanted more than a connection may wait for.
            if is_held && self.shared.lists.for_room.last() == Some(waiting) {
                self.shared.lists.for_room.move_to(waiting, 0);
            }
        }
    }

    /// When a content has waited for the assembly share as long as a content may stand still, those end that
    /// have been coming in for a multiple of that: one octet now and then is progress too, and would hold
    /// what others wait for as long as it likes.
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

    /// Tells that publishers wait, when they have for a while, and that they go on.
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

// Since when publishers wait for room, and whether the log has it.
//
// Always true: there is a deadline only while somebody waits and it has not been told.

/// A wait of so many milliseconds is told.
const LASTS_MS: u64 = 2_000;

/// Causes that are told apart; who waits for yet another is one of the others.
const CAUSES: usize = 16;

/// What one publisher waits for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Need {
    pub(super) shortage: Shortage,
    pub(super) since: Now,
}

impl Need {
    /// What most of them wait for; `None` for none.
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
                // One that finds no place is one of the others.
                None => drop(causes.push((need, 1))),
            }
        }
        let (most, count) =
            causes.into_iter().reduce(|most, next| if next.1 > most.1 { next } else { most })?;
        let for_ms = now.as_ms().saturating_sub(most.since.as_ms());
        Some(Waiters { shortage: most.shortage, count, for_ms, others: all - count })
    }
}

/// What is known of the publishers that wait for room.
#[derive(Debug)]
pub(super) struct RoomOffers {
    /// Since when some of them have been waiting, and whether that is in the log.
    pub(super) awaited: RoomAwaited,
    /// When it was told last that some of them wait for room on the disk.
    pub(super) disk_told: Option<Now>,
    /// How much room had been made when they last tried, as `Engine::room_made` counts.
    pub(super) seen: u64,
    /// Publishers that have not tried again since then.
    pub(super) retries_left: usize,
    /// The claim of a content that waits for others to be complete, and when they have had their time.
    pub(super) crowded: Option<(u64, Deadline)>,
}

impl RoomOffers {
    pub(super) const fn new() -> Self {
        Self { awaited: RoomAwaited::No, disk_told: None, seen: 0, retries_left: 0, crowded: None }
    }

    /// When something is to be told, or somebody to be ended.
    pub(super) fn deadline(&self) -> Deadline {
        self.crowded.map_or(Deadline::NEVER, |(_, at)| at).earlier(self.awaited.deadline())
    }
}

/// Whether somebody waits for room.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum RoomAwaited {
    /// Nobody does.
    No,
    /// Somebody has, all the time since then.
    Since(Now),
    /// Somebody waits, and the log has it.
    Told,
}

impl RoomAwaited {
    /// When it is to be told.
    pub(super) const fn deadline(self) -> Deadline {
        match self {
            Self::Since(since) => since.after_ms(LASTS_MS),
            Self::No | Self::Told => Deadline::NEVER,
        }
    }
}
