//! The bytes of a day: counted for every bridge, and when they are used, only urgent rules go on.
//!
//! Always true: what is under way when they are used is finished, and nothing goes back to its queue for it,
//! so the order stays; a rule that is held has no consumer, here or there, until the next day begins.

use crate::bridge::Price;
use crate::command::ConnectionId;
use crate::log_limiter::{LogKind, LogSource};

use super::bridge_link::Direction;
use super::bridge_state::Bridge;
use super::peer::{Peer, Session};
use super::platform::Platform;
use super::state::Engine;

impl<P: Platform> Engine<P> {
    /// Counts what went over the socket of a link.
    pub(super) fn note_passed(&mut self, id: ConnectionId) {
        let Some(Peer { session: Session::Bridge(Some(link)), stream, .. }) = self.peers.get_mut(id) else {
            return;
        };
        let [received, sent] = stream.take_passed().map(u64::from);
        let heartbeats = link.client.take_heartbeat_bytes();
        let bytes = received + sent;
        // The first that the upstream says is counted with what it says.
        let is_handshake = stream.is_tls() && link.client.is_unheard();
        let handshakes = if is_handshake { bytes } else { 0 };
        let Some(bridge) = self.bridges.get_mut(link.id).filter(|_| bytes + heartbeats > 0) else { return };
        if let Some(state) = &mut bridge.links[link.id.direction as usize] {
            state.today.add(Price { sent, received, handshakes, heartbeats, ..Price::default() });
        }
        bridge.day.note(bytes);
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
            if bridge.day.keep_time(self.now) {
                self.note_inflow(place);
                let bridge = &mut self.bridges.places[place];
                let [_, yesterday, _] = bridge.day.numbers(self.now);
                for state in bridge.links.iter_mut().flatten() {
                    let today = core::mem::take(&mut state.today);
                    // Unless more than a day has passed.
                    state.yesterday = if yesterday > 0 { today } else { Price::default() };
                }
                bridge.inflow.end_day();
            }
            let bridge = &self.bridges.places[place];
            if is_to_turn(bridge) && self.stopping.is_none() {
                self.turn_rules(place);
            }
        }
    }

    /// Messages that ever came into the queues that a bridge forwards, as far as those know.
    fn came_for(&self, bridge: &Bridge) -> u64 {
        let queues = bridge.config.forward.iter().map(|rule| &rule.queue);
        let flows = queues.filter_map(|queue| self.broker.queue_flow(&bridge.config.vhost, queue));
        flows.map(|flow| flow.came).sum()
    }

    /// Counts what came in since that was last done.
    #[cold]
    pub(super) fn note_inflow(&mut self, place: usize) {
        let came = self.came_for(&self.bridges.places[place]);
        self.bridges.places[place].inflow.note(came);
    }

    /// What came in until now is nothing that this bridge is asked about.
    #[cold]
    pub(super) fn begin_inflow(&mut self, place: usize) {
        let came = self.came_for(&self.bridges.places[place]);
        self.bridges.places[place].inflow.begin(came);
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
        self.supplies.log.log(self.now, level, LogSource::Bridge(bridge.serial), LogKind::Bridge, text);
        Direction::BOTH.into_iter().for_each(|direction| self.turn_direction(place, direction));
    }
}

/// Whether its rules are not as its day is.
fn is_to_turn(bridge: &Bridge) -> bool {
    !bridge.is_leaving && bridge.is_held != bridge.day.is_spent()
}
