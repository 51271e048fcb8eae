//! That publishers wait for room, as the log tells it.
//!
//! Why it exists: whoever looks after a device asks first why its programs stand still. A publisher that is
//! faster than its consumers waits for room many times a second, and that is as it should be; so only a wait
//! that lasts is told, and that it is over. For room on the disk somebody waits in fits and starts, while the
//! cleaner finds some: that is told at once, and once a minute is enough.
//!
//! Always true: what was told to have begun is told to be over; while nobody waits there is no deadline.

use crate::log_limiter::{LogKind, LogSource};

use super::platform::Platform;
use super::room_awaited::{Need, RoomAwaited};
use super::state::Engine;

/// How often a wait for room on the disk is told at once.
const DISK_TOLD_EVERY_MS: u64 = 60_000;

impl<P: Platform> Engine<P> {
    /// Tells that publishers wait, when they have for a while, and that they go on.
    pub(super) fn log_room_awaited(&mut self) {
        match (self.room.awaited, self.lists.for_room.is_empty()) {
            (RoomAwaited::No, false) => {
                self.room.awaited = RoomAwaited::Since(self.now);
                let first = self.lists.for_room.get(0).and_then(|id| self.peers.get(id));
                let is_of_disk = first.is_some_and(|peer| peer.need.shortage.is_of_disk());
                if is_of_disk
                    && self
                        .room
                        .disk_told
                        .is_none_or(|told| told.after_ms(DISK_TOLD_EVERY_MS).is_due(self.now))
                {
                    self.tell_room_awaited();
                }
            }
            (RoomAwaited::Since(_), true) => self.room.awaited = RoomAwaited::No,
            (awaited @ RoomAwaited::Since(_), false) if awaited.deadline().is_due(self.now) => {
                self.tell_room_awaited();
            }
            (RoomAwaited::Told, true) => {
                self.room.awaited = RoomAwaited::No;
                let text = format_args!("no publisher waits for room any more");
                self.supplies.log.log(
                    self.now,
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
        let needs = self.lists.for_room.iter().filter_map(|id| self.peers.get(id)).map(|peer| peer.need);
        let Some(waiters) = Need::most_awaited(needs, self.now) else { return };
        self.room.awaited = RoomAwaited::Told;
        if waiters.shortage.is_of_disk() {
            self.room.disk_told = Some(self.now);
        }
        let pools = (&self.journal, &self.supplies.messages);
        let why = self.broker.views().explain(pools, waiters, self.admin.process.disk_limit_bytes);
        let text = format_args!("{why}");
        self.supplies.log.warn(self.now, LogSource::Anybody, LogKind::Shortage, text);
    }
}
