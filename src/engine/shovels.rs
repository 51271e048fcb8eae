//! Shovels: bridges that runtime parameters define, and their end.
//!
//! ```text
//! set, clear, import, a start ─→ broker's parameters ─version─→ bridges of the file and of parameters
//!                                        ▲                               │
//!                                        └────── the last was moved ─────┘   (delete-after)
//! ```
//!
//! Always true: what the parameters say is so from the next turn on, and one shovel's change is nothing to
//! any other bridge; one that ends when so many messages were moved takes no more than those.

use crate::bridge::Preparation;
use crate::broker::{self, SHOVEL};
use crate::config::bridge::{Bridge as Config, Destination};
use crate::config::shovel::{DeleteAfter, End};
use crate::config::shovel_parameter::parse;
use crate::log_limiter::{LogKind, LogSource};
use crate::wire::{Table, Value, Writer};

use super::bridge_link::{Direction, LinkId};
use super::bridge_state::{Bridge, LinkState};
use super::platform::Platform;
use super::shovel_check::arguments_of;
use super::state::Engine;

/// Arguments of a shovel's own queue: the name of its shovel, and in which virtual host that is defined.
const OF_SHOVEL: &str = "x-shovel";
const OF_SHOVELS_VHOST: &str = "x-shovel-vhost";
/// Room for both: two names, and each what it is called, which a name of the broker's has 255 bytes for.
const ARGUMENTS_MORE: usize = 1024;

impl Bridge {
    /// What one of its links needs at the upstream before messages flow.
    pub(super) fn preparations(&self, direction: Direction) -> Vec<Preparation> {
        if !self.config.declares {
            return Vec::new();
        }
        let shovel = self.config.shovel.as_deref();
        // They were looked at when it was defined.
        let arguments = |end: Option<&End>| end.and_then(|end| arguments_of(end).ok()).unwrap_or_default();
        let of_rule = |rule: &crate::config::bridge::Rule| match direction {
            Direction::Fetch => match shovel.and_then(|shovel| shovel.source.exchange.clone()) {
                Some(exchange) => {
                    let key = shovel.and_then(|shovel| shovel.source.key.clone()).unwrap_or_default();
                    Some(Preparation::Source(exchange, key))
                }
                None => {
                    let arguments = arguments(shovel.map(|shovel| &shovel.source));
                    Some(Preparation::Queue(rule.queue.clone(), arguments))
                }
            },
            Direction::Forward => match &rule.to {
                Destination::Queue(queue) => {
                    let arguments = arguments(shovel.map(|shovel| &shovel.destination));
                    Some(Preparation::Queue(queue.clone(), arguments))
                }
                Destination::Exchange(..) | Destination::AsItWas(_) => None,
            },
        };
        self.rules(direction).iter().filter_map(of_rule).collect()
    }

    /// What a queue here is declared with where there is none. That of a shovel behind its exchange says
    /// whose it is, so that a start finds those whose shovel is gone.
    pub(super) fn arguments_here(&self) -> Vec<u8> {
        if let Some(shovel) = self.config.shovel.as_ref().filter(|_| self.source_here().is_some()) {
            let own = [(OF_SHOVEL, &*shovel.name), (OF_SHOVELS_VHOST, &*shovel.vhost)];
            if let Some(arguments) = arguments_of(&shovel.source).ok().and_then(|said| with_own(&said, own)) {
                return arguments;
            }
        }
        let ends = self.config.shovel.iter().flat_map(|shovel| [&shovel.source, &shovel.destination]);
        ends.into_iter().find(|end| end.is_here).and_then(|end| arguments_of(end).ok()).unwrap_or_default()
    }

    /// The exchange and the key whose messages wait in the queue of its one rule here.
    pub(super) fn source_here(&self) -> Option<(String, String)> {
        source_of(&self.config)
    }

    /// A link that fails is not tried again.
    pub(super) fn is_tried_once(&self) -> bool {
        self.config.shovel.as_ref().is_some_and(|shovel| shovel.is_tried_once)
    }
}

/// Arguments with some of ours, in the order of their names.
fn with_own(said: &[u8], own: [(&str, &str); 2]) -> Option<Vec<u8>> {
    let mut bytes = vec![0; said.len() + ARGUMENTS_MORE];
    let mut writer = Writer::new(&mut bytes);
    let names = own.map(|(name, _)| name);
    let text = |name: &str| own.iter().find(|(own, _)| *own == name).map_or("", |(_, text)| text);
    let done = writer.table(|table| {
        table.sorted(Table::trusted(said), &|_| true, &names, &mut |table, name| table.text(name, text(name)))
    });
    // A table is written behind four bytes of its length.
    done.ok().and_then(|()| writer.written().get(4..)).map(<[u8]>::to_vec)
}

/// See [`Bridge::source_here`].
fn source_of(config: &Config) -> Option<(String, String)> {
    let source = &config.shovel.as_ref()?.source;
    let exchange = source.exchange.clone().filter(|_| source.is_here)?;
    Some((exchange, source.key.clone().unwrap_or_default()))
}

impl LinkState {
    /// How many messages it has to move, as far as that is known before it is up.
    pub(super) fn left_at_first(config: &Config) -> Option<u64> {
        match config.shovel.as_ref()?.delete_after {
            DeleteAfter::Messages(count) => Some(count),
            DeleteAfter::Never | DeleteAfter::QueueLength => None,
        }
    }
}

impl<P: Platform> Engine<P> {
    /// These bridges of the configuration are to be there from now on, beside those of parameters: those that
    /// are there as they are stay as they are.
    #[cold]
    pub fn set_bridges(&mut self, said: &[Config]) {
        self.bridges.said = said.to_vec();
        self.delete_orphans();
        self.broker.set_shovel_places(self.bridges.max.saturating_sub(said.len()));
        self.take_parameters();
    }

    /// Queues of shovels that were cleared go, if the power was cut before that was done.
    #[cold]
    fn delete_orphans(&mut self) {
        let is_left = |queue: &broker::QueueView<'_>| {
            let said = |key: &str| match queue.arguments.get(key) {
                Some(Value::LongStr(text)) => core::str::from_utf8(text).ok(),
                _ => None,
            };
            let shovel = said(OF_SHOVELS_VHOST).zip(said(OF_SHOVEL));
            shovel.is_some_and(|(vhost, name)| {
                !self.broker.may_have_parameter(vhost, SHOVEL, name)
                    && !self.bridges.places.iter().any(|bridge| {
                        bridge.config.vhost == queue.vhost
                            && bridge.config.forward.iter().any(|rule| rule.queue == queue.name)
                    })
            })
        };
        let queues = (0..self.broker.queue_places()).filter_map(|place| self.broker.queue_at(place));
        let left: Vec<_> =
            queues.filter(is_left).map(|queue| (queue.vhost.to_string(), queue.name.to_string())).collect();
        for (vhost, queue) in left {
            let context =
                &mut broker::Context::new(&mut self.journal, &mut self.supplies.messages, &mut self.work);
            // A log that takes nothing now keeps it until the next start.
            let _ = self.broker.operator_delete_queue(context, &vhost, &queue, (false, false));
        }
    }

    /// Whether parameters have changed since they were looked at.
    pub(super) const fn has_parameter_news(&self) -> bool {
        self.broker.parameters_version() != self.bridges.parameters_seen
    }

    /// Makes bridges of what the parameters say.
    #[cold]
    pub(super) fn take_parameters(&mut self) {
        self.bridges.parameters_seen = self.broker.parameters_version();
        let mut wanted = self.bridges.said.clone();
        for it in self.broker.parameters().filter(|it| it.component == SHOVEL) {
            let Some(vhost) = it.vhost else { continue };
            match parse(vhost, it.name, it.value) {
                Ok(bridge) => wanted.push(bridge),
                Err(why) => {
                    let text = format_args!("shovel {} in virtual host {vhost}: {why}", it.name);
                    self.supplies.log.warn(self.now, LogSource::Anybody, LogKind::Bridge, text);
                }
            }
        }
        self.want_bridges(&wanted);
    }

    /// A link is up: with `delete-after` the queue's length, that is known now.
    #[cold]
    pub(super) fn note_source_depth(&mut self, id: LinkId, depth: u64) {
        let Some(bridge) = self.bridges.get_mut(id) else { return };
        let after = bridge.config.shovel.as_ref().map(|shovel| shovel.delete_after);
        if after == Some(DeleteAfter::QueueLength)
            && let Some(state) = &mut bridge.links[id.direction as usize]
        {
            state.left.get_or_insert(depth);
        }
        self.count_down(id, 0);
    }

    /// So many messages more were moved, or set aside; after the last that there is to move the shovel is
    /// over, and its parameter with it.
    pub(super) fn count_down(&mut self, id: LinkId, count: u64) {
        let Some(left) = self.bridges.link_mut(id).and_then(|state| state.left.as_mut()) else { return };
        *left = left.saturating_sub(count);
        if *left == 0 {
            self.end_shovel(id);
        }
    }

    #[cold]
    fn end_shovel(&mut self, id: LinkId) {
        let Some((bridge, _)) = self.bridges.get(id) else { return };
        let Some(shovel) = bridge.config.shovel.clone().filter(|_| !bridge.is_leaving) else { return };
        let cleared =
            self.broker.clear_parameter(&mut self.journal, Some(&shovel.vhost), SHOVEL, &shovel.name);
        let name = &bridge.config.name;
        match cleared {
            Ok(_) => {
                let text = format_args!("bridge {name}: all messages were moved, so it is deleted");
                self.supplies.log.log(self.now, log::Level::Info, LogSource::Anybody, LogKind::Bridge, text);
            }
            Err(broker::OperatorFault::NoSuchParameter) => {}
            Err(why) => {
                let text = format_args!("bridge {name}: all messages were moved, but it stays: {why}");
                self.supplies.log.warn(self.now, LogSource::Anybody, LogKind::Bridge, text);
            }
        }
    }

    /// A bridge begins to leave: what is published comes to it no more by a binding that none of those that
    /// are `wanted` has.
    #[cold]
    pub(super) fn leave_source(&mut self, place: usize, wanted: &[Config]) {
        let left = &self.bridges.places[place].config;
        let Some((exchange, key)) = source_of(left) else { return };
        let goes_on = |next: &Config| next.vhost == left.vhost && next.forward == left.forward;
        let is_kept = |next: &Config| source_of(next).as_ref() == Some(&(exchange.clone(), key.clone()));
        let Some(rule) = left.forward.first().filter(|_| !wanted.iter().any(|it| goes_on(it) && is_kept(it)))
        else {
            return;
        };
        let context =
            &mut broker::Context::new(&mut self.journal, &mut self.supplies.messages, &mut self.work);
        // A log that takes nothing now keeps the binding, which `list_bindings` shows.
        let _ = self.broker.operator_unbind(context, &left.vhost, (&exchange, &key), &rule.queue);
    }

    /// What was a shovel's own here goes with it: the queue behind its exchange, which nobody empties any
    /// more, and the one for what was refused, if there is nothing in it.
    #[cold]
    pub(super) fn clear_up_after(&mut self, left: &Bridge) {
        let Some(shovel) = &left.config.shovel else { return };
        let is_it = |other: &Bridge| {
            other
                .config
                .shovel
                .as_ref()
                .is_some_and(|it| (&it.vhost, &it.name) == (&shovel.vhost, &shovel.name))
        };
        let vhost = &left.config.vhost;
        if let Some(next) = self.bridges.places.iter().find(|other| !other.is_leaving && is_it(other)) {
            // It was changed: a queue behind an exchange that it does not use any more goes, unless there is
            // something in it.
            let rule = left.config.forward.first().filter(|_| left.source_here().is_some());
            if let Some(rule) = rule.filter(|_| next.source_here().is_none() || &next.config.vhost != vhost) {
                let context =
                    &mut broker::Context::new(&mut self.journal, &mut self.supplies.messages, &mut self.work);
                let _ = self.broker.operator_delete_queue(context, vhost, &rule.queue, (true, true));
            }
            return;
        }
        let is_kept = self
            .broker
            .parameters()
            .any(|it| it.component == SHOVEL && it.vhost == Some(&*shovel.vhost) && it.name == shovel.name);
        if is_kept {
            // It has no place now, and has one when there is room for it again.
            return;
        }
        let of_exchange = left.config.forward.iter().filter(|_| left.source_here().is_some());
        let whole = of_exchange.map(|rule| (&rule.queue, (false, false)));
        for (queue, only) in whole.chain([(&left.config.parked, (true, true))]) {
            let context =
                &mut broker::Context::new(&mut self.journal, &mut self.supplies.messages, &mut self.work);
            // Where it is not there, or is not empty, there is nothing to do.
            let _ = self.broker.operator_delete_queue(context, vhost, queue, only);
        }
    }
}
