//! Shovels: bridges that runtime parameters define, and how they end.
//!
//! ```text
//!   set, clear, import, a start ─→ parameters of the broker ─version─→ bridges of the file and of parameters
//!                                           ▲                                 │
//!                                           └─────── the last was moved ──────┘   (delete-after)
//! ```
//!
//! # Invariants
//! - Changed parameters take effect in the next turn. A change of one shovel does not affect other bridges.
//! - A shovel that ends after a number of messages takes no more than that.
//! - A parameter that [`check_parameter`](leveret_management::parameters::check_parameter) accepts is accepted by [`parse`] at every
//!   start.

use leveret_amqp::{Table, Value, Writer};
use leveret_bridge::Request;
use leveret_broker::{Broker, DeleteIf, SHOVEL};
use leveret_config::bridge::{Bridge as Config, Destination};
use leveret_config::shovels::parse;
use leveret_config::shovels::{DeleteAfter, ShovelEnd};
use leveret_core::log_limiter::{LogKind, LogSource};
use leveret_core::mem::{Class, HeapBytes};
use leveret_management::parameters::arguments_of;

use super::Bridges;
use super::state::{Bridge, BridgeState, Direction};
use super::traffic::LinkTask;
use crate::platform::Platform;
use crate::state::Shared;

/// Arguments of a shovel's own queue: the name of the shovel, and the virtual host in which it is defined.
const SHOVEL_NAME_ARGUMENT: &str = "x-shovel";
const SHOVEL_VHOST_ARGUMENT: &str = "x-shovel-vhost";
/// Additional bytes for both arguments: two keys, and two names of at most 255 bytes.
const OWN_ARGUMENTS_BYTES_MAX: usize = 1024;

impl BridgeState {
    /// Returns the requests that open the channel of a rule at the upstream. If the bridge is configured with `declare`, a
    /// queue there is looked up, and declared if it does not exist. To fetch from an exchange, an exclusive queue is
    /// declared and bound to it.
    pub(super) fn opening_requests(&self, direction: Direction, rule: usize, prefetch: u16) -> Vec<Request> {
        let rule = &self.rules(direction)[rule];
        let shovel = self.config.shovel.as_deref();
        let find = |queue: &str, end: Option<&ShovelEnd>| {
            // The arguments were checked when the shovel was defined.
            let arguments = end.and_then(|end| arguments_of(end).ok()).unwrap_or_default();
            self.config.declares.then(|| Request::FindQueue(queue.to_string(), Some(arguments)))
        };
        let mut requests = vec![Request::Open];
        match (direction, &rule.to) {
            (Direction::Forward, to) => {
                if let Destination::Queue(queue) = to {
                    requests.extend(find(queue, shovel.map(|shovel| &shovel.destination)));
                }
                requests.push(Request::Confirm);
            }
            (Direction::Fetch, _) => {
                match self.source_exchange() {
                    Some(ShovelEnd { exchange, key, .. }) => requests.extend([
                        Request::DeclareExclusive,
                        Request::BindExclusive(
                            exchange.clone().unwrap_or_default(),
                            key.clone().unwrap_or_default(),
                        ),
                    ]),
                    None => requests.extend(find(&rule.queue, shovel.map(|shovel| &shovel.source))),
                }
                requests.push(Request::Prefetch(prefetch));
                requests.push(self.consume_request(&rule.queue, true));
            }
        }
        requests
    }

    /// Returns the requests that restart the consumer of a rule with another prefetch count, which does not apply to a
    /// running consumer.
    pub(super) fn restart_requests(&self, rule: usize, prefetch: u16) -> [Request; 3] {
        let consume = self.consume_request(&self.config.fetch[rule].queue, false);
        [Request::Cancel { has_reply: false }, Request::Prefetch(prefetch), consume]
    }

    fn consume_request(&self, queue: &str, has_reply: bool) -> Request {
        let queue = self.source_exchange().is_none().then(|| queue.to_string());
        Request::Consume { queue, arguments: Vec::new(), has_reply }
    }

    /// Returns the source of a shovel if it is an exchange of the upstream.
    fn source_exchange(&self) -> Option<&ShovelEnd> {
        let source = self.config.shovel.as_deref().map(|shovel| &shovel.source);
        source.filter(|end| !end.is_here && end.exchange.is_some())
    }

    /// Returns the arguments with which a queue here is declared if it does not exist. The queue behind a shovel's
    /// source exchange carries the shovel's name, so that a start finds queues whose shovel was deleted.
    pub(super) fn arguments_here(&self) -> Vec<u8> {
        if let Some(shovel) = self.config.shovel.as_ref().filter(|_| source_of(&self.config).is_some()) {
            let own = [(SHOVEL_NAME_ARGUMENT, &*shovel.name), (SHOVEL_VHOST_ARGUMENT, &*shovel.vhost)];
            if let Some(arguments) =
                arguments_of(&shovel.source).ok().and_then(|arguments| with_own(&arguments, own))
            {
                return arguments;
            }
        }
        let ends = self.config.shovel.iter().flat_map(|shovel| [&shovel.source, &shovel.destination]);
        ends.into_iter().find(|end| end.is_here).and_then(|end| arguments_of(end).ok()).unwrap_or_default()
    }
}

/// Returns `arguments` with `own` added, in the order of their names.
fn with_own(arguments: &[u8], own: [(&str, &str); 2]) -> Option<Vec<u8>> {
    let mut bytes = vec![0; arguments.len() + OWN_ARGUMENTS_BYTES_MAX];
    let mut writer = Writer::new(&mut bytes);
    let names = own.map(|(name, _)| name);
    let text = |name: &str| own.iter().find(|(own, _)| *own == name).map_or("", |(_, text)| text);
    let done = writer.table(|table| {
        table.sorted(Table::trusted(arguments), &|_| true, &names, &mut |table, name| {
            table.text(name, text(name))
        })
    });
    // A table is written behind its length of four bytes.
    done.ok().and_then(|()| writer.written().get(4..)).map(<[u8]>::to_vec)
}

/// Returns the exchange and key whose messages the queue of the only rule here receives.
pub(super) fn source_of(config: &Config) -> Option<(String, String)> {
    let source = &config.shovel.as_ref()?.source;
    let exchange = source.exchange.clone().filter(|_| source.is_here)?;
    Some((exchange, source.key.clone().unwrap_or_default()))
}

impl Bridges {
    /// Sets the bridges of the configuration file, beside those of parameters. Unchanged bridges go on undisturbed.
    #[cold]
    pub(crate) fn set<P: Platform>(&mut self, shared: &mut Shared<P>, bridges: &[Config]) {
        self.file_bridges = bridges.to_vec();
        self.delete_orphans(shared);
        let bytes_each = self.least_bytes::<P::Socket>();
        shared.broker.set_shovel_places(self.shovels_max(), bytes_each);
        self.take_parameters(shared);
    }

    /// Deletes queues of shovels that were cleared, if power was lost before that was done.
    #[cold]
    fn delete_orphans<P: Platform>(&self, shared: &mut Shared<P>) {
        let is_left = |queue: &leveret_broker::QueueView<'_>| {
            let text_of = |key: &str| match queue.arguments.get(key) {
                Some(Value::LongStr(text)) => core::str::from_utf8(text).ok(),
                _ => None,
            };
            let shovel = text_of(SHOVEL_VHOST_ARGUMENT).zip(text_of(SHOVEL_NAME_ARGUMENT));
            shovel.is_some_and(|(vhost, name)| {
                !shared.broker.may_have_parameter(vhost, SHOVEL, name)
                    && !self.places.iter().any(|bridge| {
                        bridge.state.config.vhost == queue.vhost
                            && bridge.state.config.forward.iter().any(|rule| rule.queue == queue.name)
                    })
            })
        };
        let queues = shared.broker.views().queues();
        let left: Vec<_> =
            queues.filter(is_left).map(|queue| (queue.vhost.to_string(), queue.name.to_string())).collect();
        for (vhost, queue) in left {
            shared.delete_queue(&vhost, &queue, DeleteIf::default());
        }
    }

    /// Returns whether parameters have changed since they were last examined, or a bridge can be started for which there was
    /// no memory then.
    pub(super) fn has_parameter_change(&self, broker: &Broker) -> bool {
        let has_memory = || broker.memory().free_bytes(Class::Clients) >= self.refused_bytes;
        broker.parameters_version() != self.parameters_seen || self.refused_bytes > 0 && has_memory()
    }

    /// Applies changed parameters: starts the bridges of shovels, and announces the cluster name.
    #[cold]
    pub(super) fn take_parameters<P: Platform>(&mut self, shared: &mut Shared<P>) {
        self.parameters_seen = shared.broker.parameters_version();
        self.refused_bytes = 0;
        shared.announce_cluster_name();
        let mut wanted = self.file_bridges.clone();
        for it in shared.broker.views().parameters().filter(|it| it.component == SHOVEL) {
            let Some(vhost) = it.vhost else { continue };
            match parse(vhost, it.name, it.value) {
                Ok(bridge) => wanted.push(bridge),
                Err(why) => {
                    let text = format_args!("shovel {} in virtual host {vhost}: {why}", it.name);
                    shared.resources.log.warn(shared.now, LogSource::Unknown, LogKind::Bridge, text);
                }
            }
        }
        self.want(shared, &wanted);
    }

    /// Sets which bridges must exist. Unchanged bridges go on undisturbed.
    #[cold]
    fn want<P: Platform>(&mut self, shared: &mut Shared<P>, wanted: &[Config]) {
        for at in 0..self.places.len() {
            let bridge = &mut self.places[at];
            bridge.note_inflow(&shared.broker);
            if !bridge.state.is_leaving && !wanted.contains(&bridge.state.config) {
                bridge.state.is_leaving = true;
                shared.unbind_source(&bridge.state.config, wanted);
                self.drain(shared, at);
            }
        }
        for config in wanted {
            let is_there = |bridge: &Bridge| !bridge.state.is_leaving && bridge.state.config == *config;
            if !self.places.iter().any(is_there) {
                self.add(shared, config);
            }
        }
    }

    #[cold]
    fn add<P: Platform>(&mut self, shared: &mut Shared<P>, config: &Config) {
        let name = &config.name;
        let mut refuse = |words| {
            let text = format_args!("bridge {name}: {words}");
            shared.resources.log.warn(shared.now, LogSource::Unknown, LogKind::Bridge, text);
        };
        if self.places.iter().filter(|bridge| !bridge.state.is_leaving).count() >= self.max {
            return refuse(
                "it is not started, because there are 32 bridges and shovels already, the most that are possible",
            );
        }
        let bytes = self.bytes_of::<P::Socket>(config);
        let before = self.places.iter_mut().rfind(|bridge| bridge.state.config.name == config.name);
        let mut memory = HeapBytes::in_memory(shared.broker.memory(), Class::Clients);
        // A bridge that was changed takes over the memory of its predecessor, which only ends its messages in flight.
        let used = before.map_or(0, |before| {
            core::mem::swap(&mut memory, &mut before.state.memory);
            memory.used()
        });
        if bytes > used && !memory.try_add(bytes - used) {
            refuse(
                "it is not started before there is memory for it: raise memory_limit, or delete what is not needed",
            );
            let before = self.places.iter_mut().rfind(|bridge| bridge.state.config.name == config.name);
            if let Some(before) = before {
                before.state.memory = memory;
            }
            self.refused_bytes = if self.refused_bytes == 0 { bytes } else { self.refused_bytes.min(bytes) };
            return;
        }
        memory.subtract(used.saturating_sub(bytes));
        self.close_leaving(shared);
        self.common.scratch.grow(self.frame_max);
        self.last_serial += 1;
        let before = self.places.iter_mut().rfind(|bridge| bridge.state.config.name == config.name);
        let mut bridge = Bridge::new(config.clone(), memory, self.last_serial, shared.now, before);
        // Messages that arrived until now are not counted.
        bridge.state.inflow.begin(bridge.arrived_count(&shared.broker));
        shared.declare_queues(&mut bridge.state);
        self.places.push(bridge);
        self.plan_store(config.day_bytes_max.is_some(), shared.now);
    }

    /// Deletes what a deleted shovel had here: the queue behind its source exchange, which is no longer consumed, and
    /// the queue of parked messages if it is empty.
    #[cold]
    pub(super) fn delete_queues_of<P: Platform>(&self, shared: &mut Shared<P>, left: &BridgeState) {
        let Some(shovel) = &left.config.shovel else { return };
        let is_same_shovel = |other: &Config| {
            let other = other.shovel.as_ref();
            other.is_some_and(|it| (&it.vhost, &it.name) == (&shovel.vhost, &shovel.name))
        };
        let vhost = &*left.config.vhost;
        let source_rule = left.config.forward.first().filter(|_| source_of(&left.config).is_some());
        let next =
            self.places.iter().find(|other| !other.state.is_leaving && is_same_shovel(&other.state.config));
        if let Some(Bridge { state: next, .. }) = next {
            // The shovel was changed. A queue behind an exchange that it no longer uses is deleted, unless it has
            // messages.
            let goes_on = source_of(&next.config).is_some() && next.config.vhost == vhost;
            if let Some(rule) = source_rule.filter(|_| !goes_on) {
                shared.delete_queue(vhost, &rule.queue, DeleteIf { unused: true, empty: true });
            }
            return;
        }
        let is_kept =
            shared.broker.views().parameters().any(|it| {
                it.component == SHOVEL && it.vhost == Some(&*shovel.vhost) && it.name == shovel.name
            });
        if is_kept {
            // The shovel has no slot now, and gets one when there is capacity again.
            return;
        }
        if let Some(rule) = source_rule {
            shared.delete_queue(vhost, &rule.queue, DeleteIf::default());
        }
        shared.delete_queue(vhost, &left.config.parked, DeleteIf { unused: true, empty: true });
    }
}

impl<P: Platform> Shared<P> {
    /// Deletes the parameter of a shovel that has moved its last message.
    #[cold]
    pub(super) fn end_shovel(&mut self, bridge: &BridgeState) {
        let Some(shovel) = bridge.config.shovel.as_ref().filter(|_| !bridge.is_leaving) else { return };
        let cleared =
            self.broker.clear_parameter(&mut self.pending_writes, Some(&shovel.vhost), SHOVEL, &shovel.name);
        let name = &bridge.config.name;
        let (level, text) = match &cleared {
            Ok(_) => (log::Level::Info, format!("bridge {name}: all messages were moved, so it is deleted")),
            Err(leveret_broker::OperatorFault::NoSuchParameter) => return,
            Err(why) => {
                (log::Level::Warn, format!("bridge {name}: all messages were moved, but it stays: {why}"))
            }
        };
        self.resources.log.log(self.now, level, LogSource::Unknown, LogKind::Bridge, format_args!("{text}"));
    }

    /// Deletes a queue here, under the conditions of `only`. It does nothing if the queue does not exist or a
    /// condition is not met. If the log takes nothing now, the queue stays until the next start.
    #[cold]
    fn delete_queue(&mut self, vhost: &str, queue: &str, only: DeleteIf) {
        let (broker, mut context) = self.broker_mut();
        let _ = broker.operator_delete_queue(&mut context, vhost, queue, only);
    }

    /// Removes the binding of a bridge that begins to leave, unless one of the `wanted` bridges has the same.
    #[cold]
    fn unbind_source(&mut self, left: &Config, wanted: &[Config]) {
        let Some((exchange, key)) = source_of(left) else { return };
        let goes_on = |next: &Config| next.vhost == left.vhost && next.forward == left.forward;
        let is_kept = |next: &Config| source_of(next).as_ref() == Some(&(exchange.clone(), key.clone()));
        let Some(rule) = left.forward.first().filter(|_| !wanted.iter().any(|it| goes_on(it) && is_kept(it)))
        else {
            return;
        };
        let (broker, mut context) = self.broker_mut();
        // If the log takes nothing now, the binding stays, and `list_bindings` shows it.
        let _ = broker.operator_unbind(&mut context, &left.vhost, &exchange, &key, &rule.queue);
    }
}

impl<P: Platform> LinkTask<'_, P> {
    /// Records the length of the source queue when a rule begins to flow, for `delete-after` of a queue's length.
    #[cold]
    pub(super) fn note_source_depth(&mut self, rule: usize, depth_there: u32) {
        let after = self.bridge.config.shovel.as_ref().map(|shovel| shovel.delete_after);
        if after == Some(DeleteAfter::QueueLength) {
            let here = &self.bridge.rules(self.direction)[rule].queue;
            let depth = match self.direction {
                Direction::Forward => {
                    self.shared.broker.queue_depth(&self.bridge.config.vhost, here).unwrap_or(0)
                }
                Direction::Fetch => depth_there,
            };
            self.state.messages_left.get_or_insert(depth.into());
        }
    }

    /// Subtracts `count` messages that were moved, parked or left at the upstream from `messages_left`, if that is set.
    pub(super) const fn count_down_messages_left(&mut self, count: u64) {
        if let Some(left) = &mut self.state.messages_left {
            *left = left.saturating_sub(count);
        }
    }

    /// Returns whether the shovel has moved all its messages.
    pub(super) fn has_moved_last_message(&self) -> bool {
        self.state.messages_left == Some(0) && self.bridge.config.shovel.is_some()
    }
}
