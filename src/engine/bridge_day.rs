//! The bytes of a day: counted for every bridge, and when they are used, only urgent rules go on.
//!
//! Always true: what is under way when they are used is finished, and nothing goes back to its queue for it,
//! so the order stays; a rule that is held has no consumer, here or there, until the next day begins.

use crate::bridge::tag_of;
use crate::command::{Command, ConnectionId};
use crate::log_limiter::{LogKind, LogSource};

use super::bridge_link::{Direction, Flow, Link, LinkId};
use super::bridge_state::{Bridge, Phase};
use super::platform::Platform;
use super::state::Engine;

impl<P: Platform> Engine<P> {
    /// So many bytes went over a link, whichever way.
    pub(super) fn note_day_bytes(&mut self, id: LinkId, bytes: usize) {
        let Some(bridge) = self.bridges.get_mut(id).filter(|_| bytes > 0) else { return };
        bridge.day.note(bytes as u64);
        if bridge.day.is_to_note() {
            self.bridges.note_due = self.now.after_ms(0);
        }
    }

    /// Whether rules are to be held, or to go on, at once.
    pub(super) fn has_day_work(&self) -> bool {
        self.stopping.is_none() && self.bridges.places.iter().any(is_to_turn)
    }

    /// Ends days that are over, and holds rules or lets them go on.
    pub(super) fn keep_days(&mut self) {
        for place in 0..self.bridges.places.len() {
            let bridge = &mut self.bridges.places[place];
            bridge.day.keep_time(self.now);
            if is_to_turn(bridge) && self.stopping.is_none() {
                self.turn_rules(place);
            }
        }
    }

    #[cold]
    fn turn_rules(&mut self, place: usize) {
        let bridge = &mut self.bridges.places[place];
        bridge.is_held = bridge.day.is_spent();
        let name = &bridge.config.name;
        let (level, text) = match bridge.is_held {
            true => (
                log::Level::Warn,
                format_args!(
                    "bridge {name} has used its bytes of the day (day_bytes_max): only urgent rules go on \
                     until the next day"
                ),
            ),
            false => {
                (log::Level::Info, format_args!("bridge {name} has bytes of the day again: all rules go on"))
            }
        };
        self.supplies.log.log(self.now, level, LogSource::Anybody, LogKind::Bridge, text);
        for direction in Direction::BOTH {
            let state = self.bridges.places[place].links[direction as usize].as_ref();
            if let Some(Phase::Connected(id)) = state.map(|state| state.phase) {
                self.with_link(id, |engine, link| engine.turn_link(id, link));
            }
        }
    }

    /// One that opens sees to its rules itself.
    #[cold]
    fn turn_link(&mut self, id: ConnectionId, link: &mut Link) {
        let Some((bridge, _)) = self.bridges.get(link.id) else { return };
        let held = bridge.held_rules(link.id.direction);
        if let Flow::Fetch(_) = link.flow {
            link.client.hold(held);
            return self.list_to_write(id);
        }
        let Some(channel) = link.channel.filter(|_| !link.is_draining) else { return };
        let (is_held, rules) = (bridge.is_held, bridge.config.forward.clone());
        for (at, rule) in rules.iter().enumerate().filter(|(_, rule)| !rule.is_urgent) {
            let done = match is_held {
                true => self.demand(id, channel, Command::Cancel { tag: &tag_of(at) }),
                false => self.consume_here(id, channel, &rule.queue, at),
            };
            if let Err(cause) = done {
                return self.lose_link(id, link, cause);
            }
        }
    }
}

/// Whether its rules are not as its day is.
fn is_to_turn(bridge: &Bridge) -> bool {
    !bridge.is_leaving && bridge.is_held != bridge.day.is_spent()
}
