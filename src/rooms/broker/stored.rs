//! What outlives the broker: definitions on their way to the log, and everything back from it at a start.
//!
//! Always true: only what is durable at both ends is written (a durable binding between durable things);
//! what is declared is answered when it is durable; a start declares again exactly what was durable, and
//! what there is no room for under today's limits, or of a type that only another version knows, stays
//! untouched in the log, with its bindings.

use crate::command::{QueueId, VhostId};
use crate::error::{Fault, ReplyCode};
use crate::journal::{Definition, DestinationName, Journal};

use super::arguments::QueueSettings;
use super::faults::check_deletable;
use super::parameters::ParameterView;
use super::policy::{Applied, ApplyTo, NewPolicy, PolicyKind};
use super::queues::Logged;
use super::queues::Queue;
use super::queues::Returns;
use super::queues::first_rank;
use super::restored::Restored;
use super::topology::{BindingSpec, Destination, ExchangeDeclaration, exchange_in_words};
use super::{Broker, Context};

impl Broker {
    // ---- at a start

    /// Declares again what was durable; definitions come in the order of their keys, so what belongs to
    /// something comes behind it.
    pub fn restore(&mut self, cx: &mut Context<'_>, definition: &Definition<'_>) -> Restored {
        let restored = self.declare_again(cx, definition);
        if let Restored::NoRoom | Restored::Unknown = restored {
            self.leave_out(definition);
        }
        restored
    }

    /// What is defined so stays in the log, and does not come back in this life.
    pub fn leave_out(&mut self, definition: &Definition<'_>) {
        match *definition {
            Definition::Exchange { vhost, name, version, .. } => {
                self.left_out.add(vhost, DestinationName::Exchange(name), version);
            }
            Definition::Queue { vhost, name, incarnation, .. } => {
                self.left_out.add(vhost, DestinationName::Queue(name), incarnation);
            }
            _ => {}
        }
    }

    /// A queue that was left out has these levels in the log.
    pub fn leave_out_levels(&mut self, incarnation: u64, levels: &[u64]) {
        self.left_out.add_levels(incarnation, levels);
    }

    fn declare_again(&mut self, cx: &mut Context<'_>, definition: &Definition<'_>) -> Restored {
        match *definition {
            Definition::Exchange { vhost, name, version, kind, auto_delete, internal, arguments } => {
                let Some(vhost) = self.access.find_vhost(vhost) else { return self.access.orphaned() };
                let declaration = ExchangeDeclaration {
                    exchange: name,
                    kind,
                    durable: true,
                    auto_delete,
                    internal,
                    arguments,
                };
                let Ok(_) = declaration.new_kind() else { return Restored::Unknown };
                match self.add_exchange(cx, vhost, &declaration, version) {
                    Ok(exchange) => Restored::Exists(self.topology.exchange(exchange).sleepers),
                    Err(_) => Restored::NoRoom,
                }
            }
            Definition::Queue {
                vhost,
                name,
                incarnation,
                auto_delete,
                is_rebuilt,
                levels_from,
                arguments,
            } => {
                let Some(vhost) = self.access.find_vhost(vhost) else { return self.access.orphaned() };
                let (arguments, returns) = Returns::split(arguments);
                // What policies say comes with the policies, see `apply_policies`.
                let settings = QueueSettings::of(&self.policies.terms(arguments, Applied::default()));
                let mut record = Queue::new(vhost, name, arguments, settings);
                (record.durable, record.auto_delete, record.is_rebuilt) = (true, auto_delete, is_rebuilt);
                record.logged = Logged::as_incarnation(incarnation);
                record.returns = returns;
                record.rank = first_rank(cx.journal, &record, levels_from);
                let is_news = record.levels_from() != levels_from;
                match self.add_queue(cx, record) {
                    Ok(queue) => {
                        if is_news {
                            // A version wrote it that knew no levels.
                            self.queues.append_queue(cx, &self.access, queue.index(), true);
                        }
                        self.queues.touch_queue(cx.journal, queue);
                        Restored::Exists(Some(queue))
                    }
                    Err(_) => Restored::NoRoom,
                }
            }
            Definition::Binding { .. } => self.restore_binding(cx, definition),
            Definition::Policy { vhost, name, is_operators, pattern, apply_to, priority, definition } => {
                let Some(apply_to) = ApplyTo::from_name(apply_to) else { return Restored::Unknown };
                let kind = if is_operators { PolicyKind::Operator } else { PolicyKind::User };
                let said = NewPolicy { kind, name, pattern, apply_to, priority, definition };
                self.restore_policy(vhost, &said)
            }
            Definition::Parameter { vhost, component, name, value } => {
                self.restore_parameter(&ParameterView { vhost, component, name, value })
            }
            Definition::AccessWritten
            | Definition::Vhost { .. }
            | Definition::User { .. }
            | Definition::Permission { .. }
            | Definition::TopicPermission { .. }
            | Definition::UserLimits { .. } => self.restore_access(cx, definition),
        }
    }

    fn restore_binding(&mut self, cx: &mut Context<'_>, definition: &Definition<'_>) -> Restored {
        let Definition::Binding {
            vhost,
            source,
            source_version,
            destination,
            destination_version,
            routing_key,
            arguments,
        } = *definition
        else {
            return Restored::Orphaned;
        };
        let Some(vhost_id) = self.access.find_vhost(vhost) else { return self.access.orphaned() };
        let exchange = |name: &str, version: u64| {
            let found = self.topology.find_exchange(vhost_id, name);
            found.filter(|exchange| self.topology.exchange(*exchange).version == version)
        };
        let from = exchange(source, source_version);
        let to = match destination {
            DestinationName::Queue(name) => self
                .queues
                .find_queue(vhost_id, name)
                .filter(|queue| self.queues.at(*queue).logged.incarnation() == destination_version)
                .map(Destination::Queue),
            DestinationName::Exchange(name) => exchange(name, destination_version).map(Destination::Exchange),
        };
        let Some((from, to)) = from.zip(to) else {
            let is_left_out = |name, version| self.left_out.may_have(vhost, name, version);
            let may_come_back = is_left_out(DestinationName::Exchange(source), source_version)
                || is_left_out(destination, destination_version);
            return if may_come_back { Restored::NoRoom } else { Restored::Orphaned };
        };
        let binding = BindingSpec { source, routing_key, arguments }.between(from, to);
        match self.topology.add_binding(cx, &mut self.quota, &mut self.queues, &binding) {
            Ok(_) => Restored::Exists(None),
            Err(_) => Restored::NoRoom,
        }
    }

    /// The level of a queue that was just declared again, for this priority, of which the log has something.
    pub fn restore_level(&mut self, queue: QueueId, priority: u8) -> Option<QueueId> {
        self.queues.restore_level(&mut self.quota, queue, priority)
    }

    /// A definition that a deletion left behind when it was interrupted is deleted for good; a queue with its
    /// messages, which the log has under these incarnations.
    pub fn forget(&mut self, journal: &mut Journal, key: &[u8], incarnations: &[u64]) {
        for incarnation in incarnations {
            journal.queue_gone(*incarnation);
        }
        journal.define(key.into(), None);
    }
}

impl Broker {
    /// Whether something of this name may be declared: not while the store has one that the start left out.
    ///
    /// # Errors
    /// It has, or it may have, and what is to be declared is durable, too.
    pub(super) fn check_not_left_out(
        &self,
        vhost: VhostId,
        name: DestinationName<'_>,
        durable: bool,
    ) -> Result<(), Fault> {
        let is_left_out = self.left_out.version_of(self.access.vhost_name(vhost), name).is_some();
        if is_left_out || durable && self.left_out.has_more {
            Err(self.is_left_out(vhost, name))
        } else {
            Ok(())
        }
    }

    /// Deletes what the start left out, a queue with its messages, and orphans of that name; `false` when
    /// there is no such thing.
    ///
    /// # Errors
    /// The store cannot be written; or it is to be deleted under a condition of which nothing is known.
    pub(super) fn delete_left_out(
        &mut self,
        cx: &mut Context<'_>,
        vhost: VhostId,
        name: DestinationName<'_>,
        is_conditional: bool,
    ) -> Result<bool, Fault> {
        let Some(version) = self.left_out.version_of(self.access.vhost_name(vhost), name) else {
            return match name {
                DestinationName::Queue(name) if !is_conditional => self.delete_orphan_of(cx, vhost, name),
                _ => Ok(false),
            };
        };
        if is_conditional {
            return Err(self.is_left_out(vhost, name));
        }
        check_deletable(cx.journal, true)?;
        let vhost = self.access.vhost_name(vhost);
        let (auto_delete, is_rebuilt, arguments) = (false, false, &[][..]);
        let (key, incarnation) = match name {
            DestinationName::Exchange(name) => {
                let (kind, internal) = ("", false);
                let definition =
                    Definition::Exchange { vhost, name, version, kind, auto_delete, internal, arguments };
                (definition.key(), None)
            }
            DestinationName::Queue(name) => {
                let definition = Definition::Queue {
                    vhost,
                    name,
                    incarnation: version,
                    auto_delete,
                    is_rebuilt,
                    levels_from: 0,
                    arguments,
                };
                (definition.key(), Some(version))
            }
        };
        let vhost: Box<str> = vhost.into();
        self.left_out.remove(&vhost, name);
        for level in self.left_out.take_levels(version) {
            cx.journal.queue_gone(level);
        }
        if let Some(incarnation) = incarnation {
            cx.journal.queue_gone(incarnation);
        }
        let batch = cx.journal.define(key, None);
        cx.await_batch(batch);
        Ok(true)
    }

    fn is_left_out(&self, vhost: VhostId, name: DestinationName<'_>) -> Fault {
        let remedy = "raise that and start again, or delete it";
        match name {
            DestinationName::Exchange(name) => Fault::new(
                ReplyCode::ResourceError,
                format_args!(
                    "{} is in the store, but the start did not know its type or exchanges_max had no room \
                     for it: {remedy}",
                    exchange_in_words(&self.access, vhost, name)
                ),
            ),
            DestinationName::Queue(name) => Fault::new(
                ReplyCode::ResourceError,
                format_args!(
                    "{} is in the store with its messages, but queues_max had no room for it at the start: \
                     {remedy}",
                    self.queue_in_words(vhost, name)
                ),
            ),
        }
    }
}
