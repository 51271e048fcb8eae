//! The doors: who comes in, from the kernel's listen queues to a place among the peers.
//!
//! ```text
//!              ┌ AmqpDoor ─ AcceptQueue: until its first words are there, and a handshake place ─→ Step::Admit
//! listen queues┤
//!              └ ManagementDoor ─ WaitingVisitors: until there is one of its places ─→ Step::Enter, Step::GiveUp
//! ```
//!
//! | file | what it holds |
//! |------|---------------|
//! | `house` | what the doors see of what is behind them, and what they say is to be done |
//! | `amqp_door` | the door of AMQP: places of handshakes, and who holds them |
//! | `accept_queue` | accepted there, and without a place yet |
//! | `admission` | who gets the next handshake place, and who gives one up |
//! | `management_door` | the door of the management API and of metrics |
//! | `waiting_visitors` | accepted there, and without a place yet |
//!
//! Always true: the doors decide and the engine does. They make no peer and close none: [`Doors::poll`] says
//! what is to be done next, one step at a time, and looks at the [`House`] again before the next one; a turn
//! takes a bounded number of steps. What may be said of time is in [`Doors::deadline`], and what may be done at
//! once in [`Doors::is_ready`].

mod accept_queue;
mod admission;
mod amqp_door;
mod house;
mod management_door;
mod waiting_visitors;

use crate::command::ConnectionId;
use crate::limits::Limits;
use crate::log_limiter::LogLimiter;
use crate::time::Deadline;

use crate::address::Source;
use crate::platform::{ListenerId, Platform, Socket};
use amqp_door::AmqpDoor;
use management_door::ManagementDoor;

pub use accept_queue::QUEUE_PLACES;
pub(super) use accept_queue::{PLACE_BYTES, Refusals, queue_bytes};
pub(super) use house::{House, Step};
pub use waiting_visitors::VISITORS_MAX;
pub(super) use waiting_visitors::{ListenerKind, WaitingVisitor};

/// What the poll reported of the doors.
pub(super) enum Knock {
    /// Somebody may have come to a listening socket of AMQP or of management.
    Listener(ListenerId),
    /// Something happened to the socket of one that waits for a handshake place, by its place in the queue.
    Newcomer(usize, bool),
}

/// Where the engine listens.
pub(super) struct Listeners {
    /// The listeners of AMQP, and whether they speak TLS.
    pub(super) amqp: Vec<bool>,
    /// The listeners of the management API, and behind them those of metrics, and whether they speak TLS.
    pub(super) management: Vec<bool>,
    /// How many of the listeners for management are of metrics.
    pub(super) metrics: usize,
}

/// Both doors.
#[derive(Debug)]
pub(super) struct Doors<S> {
    amqp: AmqpDoor<S>,
    management: ManagementDoor<S>,
    /// The door of AMQP has had its steps of this turn.
    is_amqp_done: bool,
}

impl<S: Socket> Doors<S> {
    /// `queue_places` may wait for a handshake place.
    pub(super) fn new(listeners: &Listeners, limits: &Limits, queue_places: usize) -> Self {
        Self {
            amqp: AmqpDoor::new(&listeners.amqp, limits.handshakes_max as usize, queue_places),
            management: ManagementDoor::new(&listeners.management, listeners.metrics),
            is_amqp_done: false,
        }
    }

    /// Something happened outside.
    pub(super) fn handle(&mut self, knock: &Knock) {
        match *knock {
            Knock::Listener(ListenerId::Amqp(place)) => self.amqp.note_listener(place),
            Knock::Listener(ListenerId::Management(place)) => self.management.note_listener(place),
            Knock::Listener(ListenerId::Control) => {}
            Knock::Newcomer(place, is_closed) => self.amqp.note_newcomer(place, is_closed),
        }
    }

    /// Accepts who is there; says what is to be done next, and `None` when that is all of this turn.
    pub(super) fn poll<P: Platform<Socket = S>>(
        &mut self,
        house: &House<'_, S>,
        platform: &mut P,
        log: &mut LogLimiter,
    ) -> Option<Step<S>> {
        if !self.is_amqp_done
            && let Some(step) = self.amqp.poll(house, platform, log)
        {
            return Some(step);
        }
        let step = self.management.poll(house, platform, log);
        self.is_amqp_done = step.is_some();
        step
    }

    /// Whether [`Self::poll`] would get on now, with nothing reported and no time passing.
    pub(super) fn is_ready(&self, house: &House<'_, S>) -> bool {
        self.amqp.is_ready(house) || self.management.is_ready(house)
    }

    /// When to poll if nothing else happens.
    pub(super) fn deadline(&self, house: &House<'_, S>) -> Deadline {
        self.amqp.deadline().earlier(self.management.deadline(house))
    }

    /// Nobody comes in any more, and who waits is hung up on.
    pub(super) fn shut(&mut self) {
        self.amqp.shut();
        self.management.shut();
    }

    /// A newcomer has become a connection in its handshake.
    pub(super) fn note_begun(&mut self, id: ConnectionId, with_tls: bool) {
        self.amqp.note_begun(id, with_tls);
    }

    /// A connection has opened a virtual host: it holds no handshake place any more, and its address need not
    /// wait for those that waste theirs.
    pub(super) fn note_opened(&mut self, id: ConnectionId, source: Source) {
        self.amqp.note_opened(id, source);
    }

    /// A connection of the broker is gone, which was over TLS or not.
    pub(super) fn note_gone(&mut self, id: ConnectionId, was_tls: bool) {
        self.amqp.note_gone(id, was_tls);
    }

    /// A password that came from this address was wrong.
    pub(super) fn note_wrong(&mut self, source: Source) {
        self.amqp.note_wrong(source);
    }

    /// A handshake of TLS is over, or peers were closed: somebody may have a place who could not before.
    pub(super) const fn note_change(&mut self) {
        self.amqp.note_change();
    }

    /// Who was turned away since the start.
    pub(super) const fn refusals(&self) -> Refusals {
        self.amqp.refusals()
    }
}
