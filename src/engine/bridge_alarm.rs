//! The log's part of the alarm for messages that were set aside: one line when it begins, one when it ends.
//!
//! Always true: only a bridge that has set messages aside, or has just begun, is looked at; of however many
//! messages one line is written; while they are on their way back nothing is said to have ended.

use crate::log_limiter::{LogKind, LogSource};

use super::bridge_state::ParkedAlarm;
use super::platform::Platform;
use super::state::Engine;

impl<P: Platform> Engine<P> {
    /// Says of which bridges messages are set aside now, and of which none is any more.
    pub(super) fn tell_parked(&mut self) {
        for place in 0..self.bridges.places.len() {
            let bridge = &self.bridges.places[place];
            if bridge.parked_alarm != ParkedAlarm::Off && bridge.retry.is_none() && !bridge.is_leaving {
                self.tell_parked_of(place);
            }
        }
    }

    #[cold]
    fn tell_parked_of(&mut self, place: usize) {
        let bridge = &mut self.bridges.places[place];
        let (name, queue) = (&bridge.config.name, &bridge.config.parked);
        let count = self.broker.queue_depth(&bridge.config.vhost, queue).unwrap_or(0);
        let (next, level) = match count {
            0 => (ParkedAlarm::Off, log::Level::Info),
            _ => (ParkedAlarm::On, log::Level::Warn),
        };
        let was = core::mem::replace(&mut bridge.parked_alarm, next);
        // What has a space in it is one word of a shell in quotes only.
        let quote = if name.contains(' ') { "\"" } else { "" };
        let text = match (was, next) {
            (ParkedAlarm::Unknown, ParkedAlarm::On) => format_args!(
                "bridge {name}: messages are parked in {queue}; `leveretctl bridge_status name \
                 parked_by_cause` and their header x-parked-cause say why, `leveretctl retry_parked \
                 {quote}{name}{quote}` sends them again"
            ),
            (ParkedAlarm::On, ParkedAlarm::Off) => {
                format_args!("bridge {name}: no message is parked in {queue} any more")
            }
            _ => return,
        };
        let source = LogSource::Bridge(bridge.serial);
        self.supplies.log.log(self.now, level, source, LogKind::Bridge, text);
    }
}
