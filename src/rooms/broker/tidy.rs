//! What a burst left idle goes back to the system.
//!
//! Always true: nothing that is in use moves; a step is bounded, and what it did not come to is done by the
//! next.

use super::Broker;

impl Broker {
    /// Bytes of the pools that nobody uses and the system holds memory for, about.
    pub const fn idle_bytes(&self) -> usize {
        self.queues.pool.idle_bytes()
            + self.queues.deliveries.idle_bytes()
            + self.queues.idle_bytes()
            + self.topology.idle_bytes()
            + self.consumers.idle_bytes()
            + self.channels.idle_bytes()
            + self.connections.idle_bytes()
    }

    /// Gives idle memory back, a bounded part at a time; says whether that was the last part.
    pub fn trim(&mut self) -> bool {
        self.queues.deliveries.trim();
        self.queues.trim();
        self.topology.trim();
        self.consumers.trim();
        self.channels.trim();
        self.connections.trim();
        self.queues.pool.trim()
    }
}
