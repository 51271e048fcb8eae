//! The queues that a bridge has here: whatever is published for the upstream waits in them, also before the
//! first link is up.
//!
//! Always true: they are durable; a bridge that cannot have them now asks again with each link, and when it
//! needs the one for what is set aside: a log that is full of messages for the upstream has no room for a
//! queue, and must not keep them from leaving.

use crate::bridge::Cause;
use crate::broker;
use crate::config::bridge::Destination;

use super::bridge_link::{Direction, LinkId};
use super::platform::Platform;
use super::state::Engine;

impl<P: Platform> Engine<P> {
    /// A bridge begins: its queues are made. Without room for them, or their virtual host, its links say so.
    #[cold]
    pub(super) fn begin_queues(&mut self, serial: u64) {
        for direction in Direction::BOTH {
            let id = LinkId { bridge: serial, direction };
            // Each link tries it again, and its state then says what is wrong.
            let _ = self.make_queues(id).and_then(|()| self.make_parked(id));
        }
    }

    /// The queues that a link takes from here, or brings to.
    ///
    /// # Errors
    /// The broker refuses.
    #[cold]
    pub(super) fn make_queues(&mut self, id: LinkId) -> Result<(), Cause> {
        let Some((bridge, _)) = self.bridges.get(id) else { return Ok(()) };
        let (vhost, rules) = (bridge.config.vhost.clone(), bridge.rules(id.direction).to_vec());
        let (arguments, source) = (bridge.arguments_here(), bridge.source_here());
        for rule in &rules {
            match (id.direction, &rule.to) {
                (Direction::Forward, _) => {
                    self.make_queue(&vhost, &rule.queue, &arguments)?;
                    if let Some((exchange, key)) = &source {
                        self.bind_source(&vhost, (exchange, key), &rule.queue)?;
                    }
                }
                (Direction::Fetch, Destination::Queue(queue)) => {
                    self.make_queue(&vhost, queue, &arguments)?;
                }
                (Direction::Fetch, _) => {}
            }
        }
        Ok(())
    }

    /// The queue for what is set aside.
    ///
    /// # Errors
    /// The broker refuses.
    #[cold]
    pub(super) fn make_parked(&mut self, id: LinkId) -> Result<(), Cause> {
        let Some((bridge, _)) = self.bridges.get(id) else { return Ok(()) };
        let (vhost, parked) = (bridge.config.vhost.clone(), bridge.config.parked.clone());
        self.make_queue(&vhost, &parked, &[])
    }

    /// A durable queue of this name is there, whoever made it and however.
    fn make_queue(&mut self, vhost: &str, queue: &str, arguments: &[u8]) -> Result<(), Cause> {
        if self.broker.queue_depth(vhost, queue).is_some() {
            return Ok(());
        }
        let context =
            &mut broker::Context::new(&mut self.journal, &mut self.supplies.messages, &mut self.work);
        let declared = self.broker.operator_declare_queue(context, vhost, queue, (true, false), arguments);
        declared.map(|_| ()).map_err(|fault| Cause::new(format_args!("this broker: {}", fault.text)))
    }

    /// The queue here behind an exchange that a shovel forwards from.
    fn bind_source(&mut self, vhost: &str, (exchange, key): (&str, &str), queue: &str) -> Result<(), Cause> {
        let context =
            &mut broker::Context::new(&mut self.journal, &mut self.supplies.messages, &mut self.work);
        let bound = self.broker.operator_bind(context, vhost, (exchange, key), (queue, false), &[]);
        bound.map(|_| ()).map_err(|fault| Cause::new(format_args!("this broker: {}", fault.text)))
    }
}
