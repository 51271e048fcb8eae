//! What outlives the broker: definitions on their way to the log, and everything back from it at a start.
//!
//! Always true: only what is durable at both ends is written (a durable binding between durable things);
//! what is declared is answered when it is durable; a start declares again exactly what was durable, and
//! what there is no room for under today's limits, or of a type that only another version knows, stays
//! untouched in the log, with its bindings.

use crate::command::QueueId;
use crate::journal::{Definition, DestinationName, Journal};

use super::arguments::QueueSettings;
use super::parameters::ParameterView;
use super::policy::{Applied, ApplyTo, NewPolicy, PolicyKind};
use super::queues::Logged;
use super::queues::Queue;
use super::queues::Returns;
use super::queues::first_rank;
use super::restored::Restored;
use super::topology::{BindingSpec, Destination, ExchangeDeclaration};
use super::{Broker, Context};

impl Broker {
    // ---- at a start

    /// Declares again what was durable; definitions come in the order of their keys, so what belongs to
    /// something comes behind it.
    pub fn restore(&mut self, cx: &mut Context<'_>, definition: &Definition<'_>) -> Restored {
        let restored = self.declare_again(cx, definition);
        if let Restored::NoRoom | Restored::Unknown = restored {
            self.recovery.leave_out(definition);
        }
        restored
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
            let is_left_out = |name, version| self.recovery.may_have(vhost, name, version);
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
