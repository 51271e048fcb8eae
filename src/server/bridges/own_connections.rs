//! The connections of bridges in this broker, their commands and queues, and their log lines.
//!
//! The queues that a bridge has here are declared before the first link is up, so that messages for the upstream can
//! wait in them.
//!
//! # Invariants
//! - Bridges consume and publish only over their own connections. Queues and bindings are declared without one, as by
//!   an operator.
//! - Nothing here calls the bridges.
//! - A queue that a bridge declares is durable; an existing queue is used as it is. A failed declaration is retried
//!   every 10 s, whether or not a link is connected.
//! - The queue of parked messages is declared again before each message that is parked, if it is missing.

use core::fmt;

use leveret_bridge::Cause;
use leveret_broker::{ChannelRequest, OperatorBinding, QueueDeclaration};
use leveret_config::bridge::{Bridge as Config, Destination};
use leveret_core::batch::Batch;
use leveret_core::command::{ChannelCommand, ConnectionId, OpenChannel};
use leveret_core::error::Fault;
use leveret_core::log_limiter::{LogKind, LogSource};
use leveret_core::time::Deadline;

use super::shovels::source_of;
use super::state::{BridgeState, Direction};
use super::traffic::{Fetch, Flow, OwnConnection, Received};
use crate::platform::Platform;
use crate::state::Shared;

impl<P: Platform> Shared<P> {
    // ---- the broker

    /// Applies a command. Returns its answer, and the batch that the answer waits for.
    pub(super) fn apply<C: ChannelRequest>(
        &mut self,
        own: OwnConnection,
        command: C,
    ) -> (Result<C::Answer, Fault>, Batch) {
        let (broker, mut context) = self.broker_mut();
        let answer = broker.apply_on_channel(&mut context, own.connection, own.channel, command);
        let batch = context.awaited;
        self.budget.charge_work();
        (answer, batch)
    }

    /// Applies a command that must succeed.
    ///
    /// # Errors
    /// The fault of the broker.
    pub(super) fn apply_checked(
        &mut self,
        own: OwnConnection,
        command: ChannelCommand<'_>,
    ) -> Result<(), Cause> {
        self.apply(own, command).0.map(|_| ()).map_err(of_broker)
    }

    /// Opens the only channel of a connection.
    ///
    /// # Errors
    /// The fault of the broker.
    #[cold]
    pub(super) fn open_own(&mut self, connection: ConnectionId) -> Result<OwnConnection, Cause> {
        let (broker, mut context) = self.broker_mut();
        let opened = broker.apply_to_connection(&mut context, connection, OpenChannel { number: 1 });
        self.budget.charge_work();
        let channel = opened.map_err(of_broker)?;
        Ok(OwnConnection { connection, channel })
    }

    /// Opens a connection that consumes a queue here, with a prefetch of `prefetch` messages.
    ///
    /// # Errors
    /// The fault of the broker.
    #[cold]
    pub(super) fn consume(
        &mut self,
        config: &Config,
        queue: &str,
        tag: &str,
        prefetch: u16,
    ) -> Result<OwnConnection, Cause> {
        let name = format!("bridge {}", config.name);
        let connection = self.broker.connect_own(&name, &config.vhost).map_err(of_broker)?;
        let (no_ack, exclusive, arguments) = (false, false, &[][..]);
        let begun = self.open_own(connection).and_then(|own| {
            self.set_prefetch(own, prefetch)?;
            self.apply_checked(own, ChannelCommand::Consume { queue, tag, no_ack, exclusive, arguments })
                .map(|()| own)
        });
        begun.inspect_err(|_| self.release_own(connection))
    }

    /// Sets the prefetch of a consumer.
    ///
    /// # Errors
    /// The fault of the broker.
    #[cold]
    pub(super) fn set_prefetch(&mut self, own: OwnConnection, prefetch_count: u16) -> Result<(), Cause> {
        self.apply_checked(own, ChannelCommand::Qos { prefetch_count, global: true })
    }

    /// Closes a connection. Its unsettled deliveries are requeued.
    #[cold]
    pub(super) fn release_own(&mut self, connection: ConnectionId) {
        let (broker, mut context) = self.broker_mut();
        broker.release(&mut context, connection);
    }

    /// Ends a flow, and gives its messages back.
    #[cold]
    pub(super) fn end_flow(&mut self, flow: &mut Flow) {
        match core::mem::replace(flow, Flow::Closed) {
            Flow::Forward(flow) => self.release_own(flow.own.connection),
            Flow::Fetch(Fetch { incoming: Some(incoming), .. }) => {
                if let Received::Part(message, _) | Received::Whole(message) = incoming.content {
                    self.resources.messages.release(message);
                }
            }
            Flow::Closed | Flow::Opening | Flow::Fetch(_) => {}
        }
    }

    // ---- the log

    pub(super) fn log_bridge(&mut self, level: log::Level, bridge: u64, text: fmt::Arguments<'_>) {
        self.resources.log.log(self.now, level, LogSource::Bridge(bridge), LogKind::Bridge, text);
    }

    /// Logs a line about a link of a bridge, with its direction and upstream.
    pub(super) fn log_link(
        &mut self,
        level: log::Level,
        bridge: &BridgeState,
        direction: Direction,
        upstream: usize,
        text: fmt::Arguments<'_>,
    ) {
        let (name, what) = (&bridge.config.name, direction.name());
        let upstream = &bridge.config.upstream[upstream];
        self.log_bridge(level, bridge.serial, format_args!("bridge {name}, {what}, {upstream}: {text}"));
    }
}

/// Makes a cause of a fault of this broker.
#[cold]
pub(super) fn of_broker(fault: Fault) -> Cause {
    Cause::new(format_args!("this broker: {}", fault.text))
}

/// Time until the declaration of a queue is retried, in milliseconds.
const DECLARE_RETRY_MS: u64 = 10_000;

impl<P: Platform> Shared<P> {
    /// Declares all queues of a bridge, as far as possible now. Failures are logged and retried.
    #[cold]
    pub(super) fn declare_queues(&mut self, bridge: &mut BridgeState) {
        let mut all = Ok(());
        for direction in Direction::BOTH {
            for rule in 0..bridge.rules(direction).len() {
                all = all.and(self.declare_queues_of(bridge, direction, rule));
            }
        }
        let all = all.and(self.declare_parked(bridge));
        let was_tried = bridge.queues_due != Deadline::NEVER;
        bridge.queues_due = match all {
            Ok(()) => Deadline::NEVER,
            Err(cause) => {
                if !was_tried {
                    let name = &bridge.config.name;
                    let text = format_args!(
                        "bridge {name}: a queue of it here could not be declared: {cause}; until it is, messages \
                         published for it are unroutable; it is retried every {} s",
                        DECLARE_RETRY_MS / 1000
                    );
                    self.log_bridge(log::Level::Warn, bridge.serial, text);
                }
                self.now.after_ms(DECLARE_RETRY_MS)
            }
        };
    }

    /// Declares the queue that a rule takes messages from here, or brings them to.
    ///
    /// # Errors
    /// The fault of the broker.
    #[cold]
    pub(super) fn declare_queues_of(
        &mut self,
        bridge: &BridgeState,
        direction: Direction,
        rule: usize,
    ) -> Result<(), Cause> {
        let (vhost, rule) = (&*bridge.config.vhost, &bridge.rules(direction)[rule]);
        match (direction, &rule.to) {
            (Direction::Forward, _) => {
                self.declare_queue(vhost, &rule.queue, &bridge.arguments_here())?;
                let Some((exchange, key)) = source_of(&bridge.config) else { return Ok(()) };
                let (broker, mut context) = self.broker_mut();
                let binding = OperatorBinding {
                    vhost,
                    source: &exchange,
                    routing_key: &key,
                    destination: &rule.queue,
                    is_exchange: false,
                    arguments: &[],
                };
                broker.operator_bind(&mut context, &binding).map(|_| ()).map_err(of_broker)
            }
            (Direction::Fetch, Destination::Queue(queue)) => {
                self.declare_queue(vhost, queue, &bridge.arguments_here())
            }
            (Direction::Fetch, _) => Ok(()),
        }
    }

    /// Declares the queue of parked messages.
    ///
    /// # Errors
    /// The fault of the broker.
    #[cold]
    pub(super) fn declare_parked(&mut self, bridge: &BridgeState) -> Result<(), Cause> {
        self.declare_queue(&bridge.config.vhost, &bridge.config.parked, &[])
    }

    /// Declares a durable queue, unless a queue of this name exists, with whatever properties.
    fn declare_queue(&mut self, vhost: &str, queue: &str, arguments: &[u8]) -> Result<(), Cause> {
        if self.broker.queue_depth(vhost, queue).is_some() {
            return Ok(());
        }
        let (broker, mut context) = self.broker_mut();
        let (durable, exclusive, auto_delete) = (true, false, false);
        let declaration = QueueDeclaration { queue, durable, exclusive, auto_delete, arguments };
        let declared = broker.operator_declare_queue(&mut context, vhost, &declaration);
        declared.map(|_| ()).map_err(of_broker)
    }
}
