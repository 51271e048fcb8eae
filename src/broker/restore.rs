//! A start: everything back from the log.
//!
//! Always true: a start declares again exactly what was durable; a definition without room under today's
//! limits, or of a type that only another version knows, stays untouched in the log, with its bindings; a
//! thing known to have been deleted is not rebuilt; a queue that adopts messages delivers nothing before they
//! stand in it.

use leveret_core::command::{QueueId, VhostId};
use leveret_core::journal::{Definition, DestinationName, Journal};
use leveret_core::password::PasswordHash;

use super::access::{OperatorFault, VhostLimits};
use super::arguments::QueueSettings;
use super::parameters::ParameterView;
use super::policy::{Applied, ApplyTo, NewPolicy, PolicyKind};
use super::queue::{Logged, Queue, RequeueCounts, first_rank};
use super::recovery::Orphan;
use super::restored::{Contents, Restored};
use super::topology::{BindingSpec, Destination, ExchangeDeclaration};
use super::{Broker, Context};

/// The result of putting back a definition at a start.
fn restored(put: Result<(), OperatorFault>) -> Restored {
    match put {
        Ok(()) => Restored::Exists(None),
        Err(_) => Restored::NoRoom,
    }
}

impl Broker {
    // ---- at a start

    /// Declares a durable thing again; definitions come in the order of their keys, so a thing comes before
    /// its parts.
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
                    Ok(exchange) => Restored::Exists(self.topology.exchange(exchange).delayed_queue),
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
                let (arguments, requeues) = RequeueCounts::split(arguments);
                // Policies are applied to the queue later, in `Broker::apply_policies`.
                let settings = QueueSettings::of(&self.policies.terms(arguments, Applied::default()));
                let mut record = Queue::new(vhost, name, arguments, settings);
                (record.declared.durable, record.declared.auto_delete, record.declared.is_rebuilt) =
                    (true, auto_delete, is_rebuilt);
                record.logged = Logged::as_incarnation(incarnation);
                record.requeues = requeues;
                record.rank = first_rank(cx.journal, &record, levels_from);
                let is_news = record.levels_from() != levels_from;
                match self.add_queue(cx, record) {
                    Ok(queue) => {
                        if is_news {
                            // The definition was written by a version without levels.
                            self.queues.records_mut().append_queue(cx, &self.access, queue.index(), true);
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
                .records()
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

    /// The level for this priority, of which the log has messages, of a queue that was just declared again.
    pub fn restore_level(&mut self, queue: QueueId, priority: u8) -> Option<QueueId> {
        self.queues.restore_level(&mut self.quota, queue, priority)
    }

    /// Forgets a definition that an interrupted deletion left behind; a queue with its messages, which the
    /// log has under these incarnations.
    pub fn forget(&mut self, journal: &mut Journal, key: &[u8], incarnations: &[u64]) {
        for incarnation in incarnations {
            journal.queue_gone(*incarnation);
        }
        journal.define(key.into(), None);
    }

    /// Takes in messages of the store whose queue nothing defines, with the queue's name, if something says
    /// it, and whether it may be rebuilt. Gives the queue, if it exists again.
    pub fn restore_lost(
        &mut self,
        cx: &mut Context<'_>,
        incarnation: u64,
        contents: Contents,
        name: Option<(&str, &str)>,
        may_rebuild: bool,
    ) -> Option<QueueId> {
        if let Some((vhost, queue)) = name.filter(|_| may_rebuild)
            && let Some(rebuilt) = self.rebuild(cx, vhost, queue, incarnation)
        {
            return Some(rebuilt);
        }
        let name = name.map(|(vhost, queue)| (vhost.into(), queue.into()));
        self.recovery.add_orphan(Orphan { incarnation, contents, name });
        None
    }

    fn rebuild(
        &mut self,
        cx: &mut Context<'_>,
        vhost: &str,
        name: &str,
        incarnation: u64,
    ) -> Option<QueueId> {
        let vhost = self.access.find_vhost(vhost)?;
        if self.queues.records().find_queue(vhost, name).is_some() {
            return None;
        }
        let applied = self.policies_for(cx.work, vhost, name, &[]);
        let settings = QueueSettings::of(&self.policies.terms(&[], applied));
        let mut record = Queue::new(vhost, name, &[], settings);
        record.applied = applied;
        (record.declared.durable, record.declared.is_rebuilt) = (true, true);
        record.logged = Logged::as_incarnation(incarnation);
        let queue = self.add_queue(cx, record).ok()?;
        self.queues.records_mut().append_queue(cx, &self.access, queue.index(), true);
        Some(queue)
    }

    /// Notes that all adopted messages stand in their queue.
    pub fn end_adoption(&mut self, queue: QueueId) {
        if self.recovery.end_adoption(queue) && !self.queues.at(queue).dying {
            let (_, drops) = self.purge(queue);
            drops.into_iter().for_each(|job| self.jobs.begin(job));
        }
        self.end_returning(queue);
        if self.queues.records().get(queue.index()).is_some() {
            self.queues.look_at_stored(queue);
        }
    }

    /// Virtual host and name of a rebuilt queue, for the simulator, whose clients know of none.
    #[cfg(debug_assertions)]
    pub fn next_rebuilt(&self) -> Option<(String, String)> {
        let mut queues = self.queues.records().iter().map(|(_, queue)| queue);
        let queue = queues.find(|queue| queue.declared.is_rebuilt && !queue.dying)?;
        Some((self.access.vhost_name(queue.vhost).into(), queue.name.to_string()))
    }

    /// Sets the user of a new store, who may do everything in `/`; or none.
    pub fn begin_users(&mut self, first: Option<(&str, PasswordHash)>) {
        self.access.begin_users(first);
        self.note_users();
    }

    /// Notes that the store cannot vouch for its users: nobody logs in until somebody confirms them.
    /// `unreadable` are keys of definitions that the store cannot read.
    pub fn doubt_access(&mut self, why: &'static str, unreadable: Vec<Box<[u8]>>) {
        self.access.doubt_users(why, unreadable);
        self.note_users();
    }

    /// Puts back a user, permission or limit from the log; definitions come in the order of their keys.
    pub(crate) fn restore_access(&mut self, cx: &mut Context<'_>, definition: &Definition<'_>) -> Restored {
        match *definition {
            Definition::AccessWritten => {
                self.forget_first_access(cx);
                Restored::Exists(None)
            }
            Definition::Vhost { name, queues_max, connections_max, metadata } => {
                let found = self.access.find_vhost(name);
                let known = found.map_or(0, |vhost| self.access.vhost_metadata(vhost).text_bytes());
                if metadata.text_bytes() > self.quota.names_room() + known {
                    return self.access.no_room_at_start();
                }
                let found = found.or_else(|| self.add_vhost(name).ok());
                let Some(vhost) = found else { return self.access.no_room_at_start() };
                self.access.limit_vhost(vhost, VhostLimits { queues_max, connections_max });
                if self.describe_vhost(vhost, metadata).is_err() {
                    return self.access.no_room_at_start();
                }
                Restored::Exists(None)
            }
            Definition::User { .. } => {
                let restored = self.access.restore(definition);
                self.note_users();
                restored
            }
            _ => self.access.restore(definition),
        }
    }

    /// Forgets the user and the virtual hosts assumed for a new store, for the log says who there is.
    fn forget_first_access(&mut self, cx: &mut Context<'_>) {
        if !self.access.forget_first_users() {
            return;
        }
        let vhosts: Vec<VhostId> = self.access.vhost_ids().collect();
        for vhost in vhosts {
            self.drop_empty_vhost(cx, vhost);
        }
        self.note_users();
    }

    pub(crate) fn restore_policy(&mut self, vhost: &str, said: &NewPolicy<'_>) -> Restored {
        let Some(vhost) = self.access.find_vhost(vhost) else { return self.access.orphaned() };
        restored(self.policies.put(self.access.pattern_bytes_mut(), vhost, said))
    }

    /// At a start, when all definitions are restored: applies policies to everything, before the first
    /// message is looked at.
    pub fn apply_policies(&mut self, cx: &mut Context<'_>) {
        if !self.policies.is_empty() {
            self.policies.begin_telling();
            while !self.run_policies(cx, &mut { u32::MAX }) {}
        }
    }

    /// At a start: notes that the log may have parameters that nobody can read.
    pub const fn doubt_parameters(&mut self) {
        self.parameters.doubt();
    }

    pub(crate) fn restore_parameter(&mut self, said: &ParameterView<'_>) -> Restored {
        let Ok(vhost) = said.vhost.map(|name| self.access.require_vhost(name)).transpose() else {
            return self.access.orphaned();
        };
        restored(self.parameters.restore(vhost, said))
    }
}
