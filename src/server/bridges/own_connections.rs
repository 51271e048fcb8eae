//! What a bridge does at the broker here, by connections of its own, and what it says in the log.
//!
//! Always true: whatever a bridge does to the broker it does by connections of its own, by commands; nothing
//! here calls the bridges.

use core::fmt;

use leveret_bridge::Cause;
use leveret_config::bridge::{Bridge as Config, Destination};
use leveret_core::command::{ChannelId, Command, ConnectionId, Outcome};
use leveret_core::error::Fault;
use leveret_core::journal::Batch;
use leveret_core::log_limiter::{LogKind, LogSource};
use leveret_core::time::Deadline;

use super::shovels::source_of;
use super::state::{Direction, Head};
use super::traffic::{Fetch, Lane, Own, Received};
use crate::platform::Platform;
use crate::state::Shared;

impl<P: Platform> Shared<P> {
    // ---- the broker

    /// A command of our own, and what its answer waits for.
    pub(super) fn apply(
        &mut self,
        (connection, channel): (ConnectionId, Option<ChannelId>),
        command: Command<'_>,
    ) -> (Outcome, Batch) {
        let (broker, mut context) = self.broker_mut();
        let (outcome, _) = broker.apply(&mut context, connection, channel, command);
        let batch = context.awaited();
        self.budget.charge_work();
        (outcome, batch)
    }

    /// A command that has to be carried out.
    ///
    /// # Errors
    /// The broker refuses.
    pub(super) fn demand(&mut self, own: Own, command: Command<'_>) -> Result<(), Cause> {
        match self.apply((own.connection, Some(own.channel)), command).0 {
            Outcome::Fault(fault) => Err(of_broker(fault)),
            _ => Ok(()),
        }
    }

    /// The one channel of a connection of our own is opened.
    ///
    /// # Errors
    /// The broker refuses.
    #[cold]
    pub(super) fn open_own(&mut self, connection: ConnectionId) -> Result<Own, Cause> {
        match self.apply((connection, None), Command::OpenChannel { number: 1 }).0 {
            Outcome::ChannelOpened(channel) => Ok(Own { connection, channel }),
            Outcome::Fault(fault) => Err(of_broker(fault)),
            _ => unreachable!("opening a channel is answered with a channel or a fault"),
        }
    }

    /// A connection of a bridge's own consumes a queue here, with so many messages ahead.
    ///
    /// # Errors
    /// The broker refuses.
    #[cold]
    pub(super) fn consume(
        &mut self,
        config: &Config,
        (queue, tag): (&str, &str),
        ahead: u16,
    ) -> Result<Own, Cause> {
        let name = format!("bridge {}", config.name);
        let connection = self.broker.connect_own(&name, &config.vhost).map_err(of_broker)?;
        let (no_ack, exclusive, arguments) = (false, false, &[][..]);
        let begun = self.open_own(connection).and_then(|own| {
            self.take_ahead(own, ahead)?;
            self.demand(own, Command::Consume { queue, tag, no_ack, exclusive, arguments }).map(|()| own)
        });
        begun.inspect_err(|_| self.release_own(connection))
    }

    /// A consumer of our own takes so many messages ahead.
    ///
    /// # Errors
    /// The broker refuses.
    #[cold]
    pub(super) fn take_ahead(&mut self, own: Own, prefetch_count: u16) -> Result<(), Cause> {
        self.demand(own, Command::Qos { prefetch_count, global: true })
    }

    /// A connection of our own ends: what was given out to it and is not settled goes back to where it was.
    #[cold]
    pub(super) fn release_own(&mut self, connection: ConnectionId) {
        let (broker, mut context) = self.broker_mut();
        broker.release(&mut context, connection);
    }

    /// A lane ends: what it holds of messages goes back.
    #[cold]
    pub(super) fn end_lane(&mut self, lane: &mut Lane) {
        match core::mem::replace(lane, Lane::Shut) {
            Lane::Forward(lane) => self.release_own(lane.own.connection),
            Lane::Fetch(Fetch { incoming: Some(incoming), .. }) => {
                if let Received::Part(message, _) | Received::Whole(message) = incoming.content {
                    self.supplies.messages.release(message);
                }
            }
            Lane::Shut | Lane::Opening | Lane::Fetch(_) => {}
        }
    }

    // ---- the log

    pub(super) fn say(&mut self, level: log::Level, bridge: u64, words: fmt::Arguments<'_>) {
        self.supplies.log.log(self.now, level, LogSource::Bridge(bridge), LogKind::Bridge, words);
    }

    /// Logs something of a link of a bridge, with its direction and its upstream.
    pub(super) fn say_of_link(
        &mut self,
        level: log::Level,
        head: &Head,
        (direction, upstream): (Direction, usize),
        words: fmt::Arguments<'_>,
    ) {
        let (name, what) = (&head.config.name, direction.name());
        let upstream = &head.config.upstream[upstream];
        self.say(level, head.serial, format_args!("bridge {name}, {what}, {upstream}: {words}"));
    }
}

/// The broker here refuses something.
#[cold]
pub(super) fn of_broker(fault: Fault) -> Cause {
    Cause::new(format_args!("this broker: {}", fault.text))
}

// The queues that a bridge has here: whatever is published for the upstream waits in them, also before the
// first link is up.
//
// Always true: they are durable; a bridge that cannot have them now tries again, and does not wait for a link
// to do so; the one for what is set aside is made anew when it is needed.

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
