//! That publishers wait for room, as the log tells it.
//!
//! Why it exists: whoever looks after a device asks first why its programs stand still. A publisher that is
//! faster than its consumers waits for room many times a second, and that is as it should be; so only a wait
//! that lasts is told, and that it is over.
//!
//! Always true: what was told to have begun is told to be over; while nobody waits there is no deadline.

use crate::log_limiter::{LogKind, LogSource};

use super::platform::Platform;
use super::room_awaited::RoomAwaited;
use super::state::Engine;

impl<P: Platform> Engine<P> {
    /// Tells that publishers wait, when they have for a while, and that they go on.
    pub(super) fn log_room_awaited(&mut self) {
        match (self.room_awaited, self.for_room.is_empty()) {
            (RoomAwaited::No, false) => self.room_awaited = RoomAwaited::Since(self.now),
            (RoomAwaited::Since(_), true) => self.room_awaited = RoomAwaited::No,
            (awaited @ RoomAwaited::Since(_), false) if awaited.deadline().is_due(self.now) => {
                self.room_awaited = RoomAwaited::Told;
                let waiting = self.for_room.len();
                let why = self.broker.why_room_is_awaited(&self.journal, &self.supplies.messages);
                let text = format_args!("publishers that wait for room: {waiting}; {why}");
                self.supplies.log.warn(self.now, LogSource::Anybody, LogKind::Shortage, text);
            }
            (RoomAwaited::Told, true) => {
                self.room_awaited = RoomAwaited::No;
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
}
