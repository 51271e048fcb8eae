//! The queues that a bridge has here: whatever is published for the upstream waits in them, also before the
//! first link is up.
//!
//! Always true: they are durable; a bridge that cannot have them now tries again, and does not wait for a link
//! to do so; the one for what is set aside is made anew when it is needed.

use leveret_bridge::Cause;
use leveret_config::bridge::Destination;
use leveret_core::time::Deadline;

use super::own_connections::of_broker;
use super::shovels::source_of;
use super::state::{Direction, Head};
use crate::platform::Platform;
use crate::shared::Shared;

/// How long after a queue could not be made it is tried again, in milliseconds.
const AGAIN_MS: u64 = 10_000;

impl<P: Platform> Shared<P> {
    /// Makes all queues of a bridge, as far as that can be done now; what cannot is told, and tried again.
    #[cold]
    pub(super) fn make_queues(&mut self, head: &mut Head) {
        let mut all = Ok(());
        for direction in Direction::BOTH {
            for rule in 0..head.rules(direction).len() {
                all = all.and(self.make_queues_of(head, direction, rule));
            }
        }
        let all = all.and(self.make_parked(head));
        let was_tried = head.queues_due != Deadline::NEVER;
        head.queues_due = match all {
            Ok(()) => Deadline::NEVER,
            Err(cause) => {
                if !was_tried {
                    let name = &head.config.name;
                    let words = format_args!(
                        "bridge {name}: a queue of it here could not be made: {cause}; until it is, what is \
                         published for it goes nowhere; it is tried again every {} s",
                        AGAIN_MS / 1000
                    );
                    self.say(log::Level::Warn, head.serial, words);
                }
                self.now.after_ms(AGAIN_MS)
            }
        };
    }

    /// The queue that a rule takes from here, or brings to.
    ///
    /// # Errors
    /// The broker refuses.
    #[cold]
    pub(super) fn make_queues_of(
        &mut self,
        head: &Head,
        direction: Direction,
        rule: usize,
    ) -> Result<(), Cause> {
        let (vhost, rule) = (&*head.config.vhost, &head.rules(direction)[rule]);
        match (direction, &rule.to) {
            (Direction::Forward, _) => {
                self.make_queue(vhost, &rule.queue, &head.arguments_here())?;
                let Some((exchange, key)) = source_of(&head.config) else { return Ok(()) };
                let (broker, mut context) = self.broker_mut();
                let (source, queue) = ((&*exchange, &*key), (&*rule.queue, false));
                broker.operator_bind(&mut context, vhost, source, queue, &[]).map(|_| ()).map_err(of_broker)
            }
            (Direction::Fetch, Destination::Queue(queue)) => {
                self.make_queue(vhost, queue, &head.arguments_here())
            }
            (Direction::Fetch, _) => Ok(()),
        }
    }

    /// The queue for what is set aside.
    ///
    /// # Errors
    /// The broker refuses.
    #[cold]
    pub(super) fn make_parked(&mut self, head: &Head) -> Result<(), Cause> {
        self.make_queue(&head.config.vhost, &head.config.parked, &[])
    }

    /// A durable queue of this name is there, whoever made it and however.
    fn make_queue(&mut self, vhost: &str, queue: &str, arguments: &[u8]) -> Result<(), Cause> {
        if self.broker.queue_depth(vhost, queue).is_some() {
            return Ok(());
        }
        let (broker, mut context) = self.broker_mut();
        let declared = broker.operator_declare_queue(&mut context, vhost, queue, (true, false), arguments);
        declared.map(|_| ()).map_err(of_broker)
    }
}
