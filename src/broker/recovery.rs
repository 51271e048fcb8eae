//! Restores the broker at start: declares the stored objects again, and adds the stored messages to their
//! queues.
//!
//! # Invariants
//! - No message is read here: queues get only the offsets of their messages.
//! - A start declares all durable objects that the limits and this version of Leveret allow. Other objects are
//!   reported in the log file, and stay stored with their bindings.
//! - A definition whose virtual host, user, exchange or queue does not exist is deleted. While part of the log
//!   is unreadable, only access definitions of this kind are deleted.
//! - Messages without a queue stay stored.
//! - A queue is not rebuilt if the log has its deletion.
//! - A queue that adopts messages delivers nothing before these messages are in it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use leveret_amqp::field::Table;
use leveret_core::command::{AppliedPolicies, QueueId, VhostId};
use leveret_core::definition::{
    self, ApplyTo, Definition, DestinationName, Parameter, Policy, is_access, queue_in,
};
use leveret_core::password::PasswordHash;
use leveret_core::time::Now;
use leveret_queues::{
    Contents, DurableIndex, Queue, QueueKind, QueueSettings, RequeueCounts, first_rank, levels_of,
};
use leveret_routing::{BindingSpec, Destination, ExchangeDeclaration};
use leveret_storage::{
    self as store, Access, AccessDefinition, AccessReport, Log, PendingWrites, ReportedDamage, is_transient,
};

use super::orphans::Orphan;
use super::{Broker, Context};
use crate::operator_fault::OperatorFault;
use crate::restored::Restored;

/// The first user of a new store: name and password hash.
pub type First<'a> = Option<(&'a str, PasswordHash)>;

/// A log that has been opened, and what was found about its users and its damage.
pub struct OpenedLog<'l, D> {
    /// The log.
    pub log: &'l Log,
    /// Its disk.
    pub disk: &'l mut D,
    /// The users and permissions.
    pub access: AccessReport,
    /// The damage that earlier starts have reported.
    pub damage: ReportedDamage,
}

/// Declares all stored objects again, and adds to each queue the offsets of its messages in the log.
///
/// Users and permissions come from the storage. If they may be incomplete, logins are refused. A new store
/// gets the user `first`.
///
/// # Errors
/// The disk cannot be read.
pub fn restore(
    broker: &mut Broker,
    context: &mut Context<'_>,
    opened: OpenedLog<'_, impl store::Disk>,
    first: First<'_>,
    now: Now,
) -> io::Result<()> {
    let OpenedLog { log, disk, access: report, damage } = opened;
    // The start counts as a use of each queue, so broker time must be set before queues are restored.
    context.pending_writes.set_time(log.time_ms(now));
    let AccessReport { access, unreadable, is_thin, definitions, .. } = report;
    match access {
        Access::New | Access::Silent => broker.set_first_user(first),
        Access::InDoubt(why) => broker.mark_access_doubtful(why, unreadable),
        Access::Whole => {}
    }
    broker.recovery_mut().set_damage(damage);
    broker.memory().set_restoring(true);
    let restored = restore_definitions(broker, context, log, disk, &definitions);
    broker.memory().set_restoring(false);
    restored?;
    if matches!(access, Access::New | Access::Silent) || access == Access::Whole && is_thin {
        broker.access_mut().write_access(context.pending_writes);
    }
    Ok(())
}

/// A definition whose virtual host, user, exchange or queue does not exist: key, value, and the incarnations
/// of the queue and levels that must be deleted with it.
type Unowned = (Box<[u8]>, Box<[u8]>, Vec<u64>);

/// The levels of a queue with priorities that the log has.
struct Levels {
    /// Incarnation of the level for priority 1.
    from: u64,
    /// Incarnations of the levels that the log has.
    known: Vec<u64>,
}

impl Levels {
    fn in_log(definition: &Definition<'_>, log: &Log) -> Self {
        let all = levels_of(definition);
        let is_known =
            |incarnation: &u64| log.index().queues().get(incarnation).is_some_and(|queue| !queue.gone);
        Self { from: all.start, known: all.filter(is_known).collect() }
    }
}

/// The progress of a start in restoring definitions.
struct Restoring {
    /// Version of the newest definition of each queue.
    versions: BTreeMap<u64, u64>,
    /// The queues that exist again, by their incarnations.
    queues: BTreeMap<u64, QueueId>,
    /// Incarnations of queues and levels that are not restored, and for which no queue must be rebuilt.
    absent: BTreeSet<u64>,
    /// Definitions whose virtual host, user, exchange or queue does not exist.
    orphans: Vec<Unowned>,
    /// Number of definitions that this version cannot read.
    unreadable_count: usize,
}

impl Restoring {
    /// Declares again what the definitions of the log describe, except those of users and permissions. A definition that only a
    /// footer still has is written again. Returns the number of damaged definitions.
    ///
    /// # Errors
    /// The disk cannot be read.
    fn restore_stored(
        &mut self,
        broker: &mut Broker,
        context: &mut Context<'_>,
        log: &Log,
        disk: &mut impl store::Disk,
    ) -> io::Result<u64> {
        let mut repeated = Vec::new();
        let damaged = log.read_definitions(disk, |key, value, is_repeated| {
            self.restore(broker, context, log, key, value);
            if is_repeated {
                repeated.push((Box::from(key), Box::from(value)));
            }
        })?;
        if damaged > 0 {
            log::error!("{damaged} definitions are damaged and were skipped");
        }
        if self.unreadable_count > 0 {
            let unreadable_count = self.unreadable_count;
            log::error!(
                "{unreadable_count} stored definitions cannot be read by this version: they stay stored and are not used"
            );
        }
        if !repeated.is_empty() {
            log::warn!(
                "{} damaged definitions were rewritten from the copies in segment footers",
                repeated.len()
            );
        }
        for (key, value) in repeated {
            context.pending_writes.define(key, Some(value));
        }
        Ok(damaged)
    }

    /// Declares again what a definition describes.
    fn restore(
        &mut self,
        broker: &mut Broker,
        context: &mut Context<'_>,
        log: &Log,
        key: &[u8],
        value: &[u8],
    ) {
        let Some(definition) = Definition::parse(key, value) else {
            self.unreadable_count += 1;
            return;
        };
        let levels = Levels::in_log(&definition, log);
        let incarnation = match definition {
            Definition::Queue(definition::Queue { incarnation, .. }) => incarnation,
            // The hidden queue of a delayed exchange has the exchange's version as incarnation.
            Definition::Exchange(exchange) if !levels_of(&definition).is_empty() => exchange.version,
            _ => 0,
        };
        let is_gone = log.index().queues().get(&incarnation).is_some_and(|queue| queue.gone);
        let version = log.index().definitions().get(key).map_or(0, |definition| definition.version);
        let is_renamed = self.versions.get(&incarnation).is_some_and(|newest| *newest > version);
        if is_gone || is_renamed || self.queues.contains_key(&incarnation) {
            // The queue was deleted, or has another name now. The log entry that deleted this definition was
            // damaged.
            let levels = if is_gone { levels.known } else { Vec::new() };
            self.orphans.push((key.into(), value.into(), levels));
            return;
        }
        let restored = if !levels.known.is_empty() && broker.queues().free_count() <= levels.known.len() {
            broker.recovery_mut().note_left_out(&definition);
            Restored::NoCapacity
        } else {
            broker.restore(context, &definition)
        };
        match restored {
            Restored::Exists(Some(queue)) => {
                self.queues.insert(incarnation, queue);
                self.restore_levels(broker, queue, &levels);
            }
            Restored::Exists(None) => {}
            Restored::Orphaned => {
                // Nothing needs the content, which may be long.
                let value = if let Definition::RetainedPart(_) = definition { &[] } else { value };
                let mut incarnations = levels.known;
                incarnations.extend(Some(incarnation).filter(|incarnation| *incarnation > 0));
                self.orphans.push((key.into(), value.into(), incarnations));
            }
            failure @ (Restored::NoCapacity | Restored::Unknown) => {
                if failure == Restored::NoCapacity {
                    log::error!("{definition} is stored, but it exceeds the limits");
                    broker.recovery_mut().note_beyond_limits();
                } else {
                    log::error!("{definition} is stored, but its type is unknown to this version");
                }
                broker.recovery_mut().note_left_out_levels(incarnation, &levels.known);
                self.absent.insert(incarnation);
                self.absent.extend(levels.known);
            }
        }
    }

    /// Creates those levels of a queue with priorities that the log has.
    fn restore_levels(&mut self, broker: &mut Broker, queue: QueueId, levels: &Levels) {
        for &incarnation in &levels.known {
            let priority = (incarnation - levels.from + 1) as u8;
            match broker.restore_level(queue, priority) {
                Some(level) => self.queues.insert(incarnation, level),
                None => panic!("the limits allow all levels, and a start takes the memory for them"),
            };
        }
    }

    /// Handles messages of queues whose definition is missing.
    fn restore_lost(
        &mut self,
        broker: &mut Broker,
        context: &mut Context<'_>,
        log: &Log,
        disk: &mut impl store::Disk,
    ) -> io::Result<()> {
        let mut lost = log.index().queues_with_messages();
        lost.retain(|queue| !self.queues.contains_key(queue) && !self.absent.contains(queue));
        if lost.is_empty() {
            return Ok(());
        }
        let mut keys = log.read_names(disk, &lost)?;
        keys.extend(self.orphans.iter().filter_map(|(key, value, _)| queue_name_in(key, value)));
        for incarnation in lost {
            let Some(found) = log.index().queues().get(&incarnation) else { continue };
            let key = keys.get(&incarnation);
            let name = key.and_then(|key| queue_in(key));
            let is_deleted = key.is_some_and(|key| log.index().is_deleted_since(key, incarnation));
            let words = match name {
                Some((vhost, queue)) => format!("queue '{queue}' in vhost '{vhost}'"),
                None => "a queue whose name is lost".to_string(),
            };
            let words = format!("{words}: its definition is lost, its {} messages are not", found.live);
            let contents = contents_of(found);
            if let Some(queue) = broker.restore_lost(context, incarnation, contents, name, !is_deleted) {
                log::error!(
                    "{words}: it is a durable classic queue without arguments now, until it is declared again"
                );
                self.queues.insert(incarnation, queue);
            } else {
                log::error!("{words}: see leveretctl list_orphans, adopt_orphan and delete_orphan");
                self.absent.insert(incarnation);
            }
        }
        // The bindings of a rebuilt queue may be among the definitions without their objects.
        for (key, value, incarnations) in core::mem::take(&mut self.orphans) {
            let is_restored = match Definition::parse(&key, &value) {
                Some(binding @ Definition::Binding(_)) => {
                    broker.restore(context, &binding) == Restored::Exists(None)
                }
                _ => false,
            };
            if !is_restored {
                self.orphans.push((key, value, incarnations));
            }
        }
        Ok(())
    }
}

/// Returns the incarnation of the queue whose name a definition contains, and the key that the queue is
/// defined under.
fn queue_name_in(key: &[u8], value: &[u8]) -> Option<(u64, Box<[u8]>)> {
    match Definition::parse(key, value)? {
        Definition::Queue(queue) => Some((queue.incarnation, key.into())),
        Definition::Binding(binding) if matches!(binding.destination, DestinationName::Queue(_)) => {
            Some((binding.destination_version, binding.destination.key(binding.vhost)))
        }
        _ => None,
    }
}

fn restore_definitions(
    broker: &mut Broker,
    context: &mut Context<'_>,
    log: &Log,
    disk: &mut impl store::Disk,
    of_access: &[AccessDefinition],
) -> io::Result<()> {
    let mut restoring = Restoring {
        versions: log.index().versions_of_queues(),
        queues: BTreeMap::new(),
        absent: BTreeSet::new(),
        orphans: Vec::new(),
        unreadable_count: 0,
    };
    for AccessDefinition { key, value } in of_access {
        restoring.restore(broker, context, log, key, value);
    }
    let damaged = restoring.restore_stored(broker, context, log, disk)?;
    let is_suspect = damaged > 0
        || restoring.unreadable_count > 0
        || log.is_damaged()
        || broker.access().doubtful_access_reason().is_some();
    if !is_suspect {
        restoring.absent.extend(restoring.orphans.iter().flat_map(|(.., incarnations)| incarnations));
    }
    restoring.restore_lost(broker, context, log, disk)?;
    for (vhost, key) in broker.end_restoring_retained(context.pending_writes, is_suspect) {
        log::error!(
            "the retained message with key {key:?} in virtual host {vhost:?} is lost: a part of it cannot be read"
        );
    }
    broker.apply_policies(context);
    if is_suspect {
        broker.mark_parameters_doubtful();
        // A definition without its object may belong to an object whose definition cannot be read, so it stays.
        // Access definitions of this kind are deleted, at the latest when an operator confirms the users. They
        // are not listed, and a later user of that name would get them.
        let hidden = restoring.orphans.drain(..).map(|(key, ..)| key).filter(|key| is_access(key));
        broker.access_mut().drop_unreadable_access(context.pending_writes, hidden.collect());
    }
    for (key, _, incarnations) in &restoring.orphans {
        broker.delete_stale_definition(context.pending_writes, key, incarnations);
    }
    restore_contents(broker, context, log, restoring.queues);
    Ok(())
}

/// Adds to each queue the offsets of its messages in the log. Messages of queues that do not survive a start are dropped.
fn restore_contents(
    broker: &mut Broker,
    context: &mut Context<'_>,
    log: &Log,
    queues: BTreeMap<u64, QueueId>,
) {
    for (&incarnation, queue) in log.index().queues() {
        if is_transient(incarnation) && !queue.gone {
            broker.queues_mut().drop_transient(context.pending_writes, incarnation);
        }
    }
    broker.queues_mut().set_largest_stored_body(log.index().largest_body_bytes());
    let mut messages = 0;
    for (incarnation, queue) in queues {
        messages += restore_queue(broker, context, log, incarnation, queue);
    }
    if messages > 0 {
        log::info!("the store has {messages} messages");
    }
}

fn contents_of(found: &store::QueueIndex) -> Contents {
    Contents {
        count: found.live,
        bytes: found.live_bytes(),
        next_offset: found.next_offset(),
        delivered_below: found.delivered_below(),
        watermark: found.watermark,
    }
}

fn restore_queue(
    broker: &mut Broker,
    context: &mut Context<'_>,
    log: &Log,
    incarnation: u64,
    queue: QueueId,
) -> u64 {
    let Some(found) = log.index().queues().get(&incarnation) else { return 0 };
    let pending_writes = &mut *context.pending_writes;
    let is_live = |offset| found.live_ranges_from(offset).next().is_some_and(|range| range.start == offset);
    let mut settled = broker.settle_released_deliveries(pending_writes, queue, is_live);
    settled.sort_unstable();
    let mut contents = contents_of(found);
    // The bytes of the settled messages are estimated from the mean length of the queue's messages.
    let count = settled.len() as u64;
    contents.bytes -= contents.bytes * count / contents.count.max(1);
    contents.count -= count;
    broker.queues_mut().restore_contents(queue, &contents);
    restore_messages(broker, found, queue, &settled);
    contents.count
}

/// Adds to a queue the messages that the log has for it, without those that are `settled`, in ascending order.
pub fn restore_messages(broker: &mut Broker, found: &store::QueueIndex, queue: QueueId, settled: &[u64]) {
    for range in found.live_ranges().flat_map(|range| without(range, settled)) {
        if !broker.queues_mut().restore_messages(queue, range.start, range.end) {
            log::error!(
                "there is no memory for all stored messages: some are served only after a restart \
                 with a larger memory_limit"
            );
            broker.recovery_mut().note_beyond_limits();
            break;
        }
    }
}

/// Returns the parts of a range between the `settled` offsets.
fn without(range: store::Range, settled: &[u64]) -> impl Iterator<Item = store::Range> + '_ {
    let within = settled.iter().copied().filter(move |offset| range.start <= *offset && *offset < range.end);
    let ends = within.clone().chain([range.end]);
    let starts = [range.start].into_iter().chain(within.map(|offset| offset + 1));
    starts.zip(ends).map(|(start, end)| store::Range { start, end }).filter(|part| part.start < part.end)
}

/// Returns the result of restoring a definition at start.
fn restored(put: Result<(), OperatorFault>) -> Restored {
    match put {
        Ok(()) => Restored::Exists(None),
        Err(_) => Restored::NoCapacity,
    }
}

impl Broker {
    // ---- at start

    /// Declares a durable object again. Definitions come in the order of their keys, so an object precedes
    /// its parts.
    pub fn restore(&mut self, cx: &mut Context<'_>, definition: &Definition<'_>) -> Restored {
        let restored = self.declare_again(cx, definition);
        if let Restored::NoCapacity | Restored::Unknown = restored {
            self.recovery.note_left_out(definition);
        }
        restored
    }

    fn declare_again(&mut self, cx: &mut Context<'_>, definition: &Definition<'_>) -> Restored {
        match *definition {
            Definition::Exchange(exchange) => self.restore_exchange(cx, &exchange),
            Definition::Queue(queue) => self.restore_declared_queue(cx, &queue),
            Definition::Binding(binding) => self.restore_binding(cx, &binding),
            Definition::SessionState(state) => self.restore_session_state(&state),
            Definition::Retained(retained) => self.restore_retained(&retained, cx.pending_writes.time_ms()),
            Definition::RetainedPart(part) => self.restore_retained_part(&part),
            Definition::Will(will) => self.restore_will(cx, &will),
            Definition::Policy(Policy { apply_to: ApplyTo::Unknown, .. }) => Restored::Unknown,
            Definition::Policy(policy) => self.restore_policy(&policy),
            Definition::Parameter(parameter) => self.restore_parameter(&parameter),
            Definition::AccessStored => {
                self.forget_first_access(cx);
                Restored::Exists(None)
            }
            Definition::Vhost(vhost) => self.restore_vhost(&vhost),
            Definition::User(user) => {
                let restored = self.access.restore_user(&user);
                self.note_users();
                restored
            }
            Definition::Permission(permission) => self.access.restore_permission(&permission),
            Definition::TopicPermission(permission) => self.access.restore_topic_permission(&permission),
            Definition::UserLimits(user, limits) => self.access.restore_user_limits(user, limits),
        }
    }

    fn restore_exchange(&mut self, cx: &mut Context<'_>, stored: &definition::Exchange<'_>) -> Restored {
        let Some(vhost) = self.access.find_vhost(stored.vhost) else {
            return self.access.result_without_owner();
        };
        let declaration = ExchangeDeclaration {
            exchange: stored.name,
            kind: stored.kind,
            durable: true,
            auto_delete: stored.auto_delete,
            internal: stored.internal,
            arguments: stored.arguments,
        };
        let Ok(_) = declaration.new_kind() else { return Restored::Unknown };
        match self.add_exchange(cx, vhost, &declaration, stored.version) {
            Ok(exchange) => Restored::Exists(self.topology.exchange(exchange).delayed_queue),
            Err(_) => Restored::NoCapacity,
        }
    }

    fn restore_declared_queue(&mut self, cx: &mut Context<'_>, stored: &definition::Queue<'_>) -> Restored {
        let Some(vhost) = self.access.find_vhost(stored.vhost) else {
            return self.access.result_without_owner();
        };
        let (arguments, requeues) = RequeueCounts::split(stored.arguments);
        // Policies are applied to the queue later, in `Broker::apply_policies`.
        let effective = self.policies.effective_policy(arguments, AppliedPolicies::default());
        let mut record = Queue::new(vhost, stored.name, arguments, QueueSettings::of(&effective));
        (record.declared.durable, record.declared.auto_delete, record.declared.is_rebuilt) =
            (true, stored.auto_delete, stored.is_rebuilt);
        record.durable_index = DurableIndex::as_incarnation(stored.incarnation);
        if record.is_quorum() && !requeues.is_empty() {
            record.kind = QueueKind::Quorum { requeues: Some(Box::new(requeues)) };
        }
        record.rank = first_rank(cx.pending_writes, &record, stored.priorities_from);
        let is_upgraded = record.priorities_from() != stored.priorities_from;
        let Ok(queue) = self.add_queue(cx, record) else { return Restored::NoCapacity };
        if is_upgraded {
            // The definition was written by a version without levels.
            self.queues.records_mut().append_queue(cx, &self.access, queue.index(), true);
        }
        self.queues.touch_queue(cx.pending_writes, queue);
        if !self.restore_session(queue, cx.pending_writes.time_ms()) {
            log::error!(
                "queue '{}' is that of an MQTT session, and there is no memory for it: its client is refused",
                stored.name.escape_debug()
            );
        }
        Restored::Exists(Some(queue))
    }

    fn restore_binding(&mut self, cx: &mut Context<'_>, binding: &definition::Binding<'_>) -> Restored {
        let &definition::Binding { vhost, source, destination, arguments, .. } = binding;
        let Some(vhost_id) = self.access.find_vhost(vhost) else { return self.access.result_without_owner() };
        let (source_version, destination_version) = (binding.source_version, binding.destination_version);
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
                .filter(|queue| self.queues.at(*queue).durable_index.incarnation() == destination_version)
                .map(Destination::Queue),
            DestinationName::Exchange(name) => exchange(name, destination_version).map(Destination::Exchange),
        };
        let Some((from, to)) = from.zip(to) else {
            let is_left_out = |name, version| self.recovery.may_have(vhost, name, version);
            let may_come_back = is_left_out(DestinationName::Exchange(source), source_version)
                || is_left_out(destination, destination_version);
            return if may_come_back { Restored::NoCapacity } else { Restored::Orphaned };
        };
        let binding = BindingSpec { source, routing_key: binding.routing_key, arguments }.between(from, to);
        match self.topology.add_binding(cx, &mut self.quota, self.queues.records_mut(), &binding) {
            Ok(_) => {
                self.note_restored_subscription(to, Table::trusted(arguments));
                Restored::Exists(None)
            }
            Err(_) => Restored::NoCapacity,
        }
    }

    /// Returns the level for this priority of a queue that was just declared again. The log has messages of
    /// that level.
    pub fn restore_level(&mut self, queue: QueueId, priority: u8) -> Option<QueueId> {
        self.queues.restore_level(&mut self.quota, queue, priority)
    }

    /// Deletes a definition that an interrupted deletion left behind, and the messages of the queue and
    /// levels with these incarnations.
    pub fn delete_stale_definition(
        &mut self,
        pending_writes: &mut PendingWrites,
        key: &[u8],
        incarnations: &[u64],
    ) {
        for incarnation in incarnations {
            pending_writes.append_queue_deleted(*incarnation);
        }
        pending_writes.define(key.into(), None);
    }

    /// Handles stored messages whose queue has no definition: rebuilds the queue if that is possible, or adds
    /// an orphan.
    ///
    /// `name` is virtual host and name of the queue, if they are known. Returns the rebuilt queue; `None` for
    /// an orphan.
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
        let settings = QueueSettings::of(&self.policies.effective_policy(&[], applied));
        let mut record = Queue::new(vhost, name, &[], settings);
        record.applied = applied;
        (record.declared.durable, record.declared.is_rebuilt) = (true, true);
        record.durable_index = DurableIndex::as_incarnation(incarnation);
        let queue = self.add_queue(cx, record).ok()?;
        self.queues.records_mut().append_queue(cx, &self.access, queue.index(), true);
        Some(queue)
    }

    /// Notes that all adopted messages are in their queue.
    pub fn end_adoption(&mut self, queue: QueueId) {
        if self.recovery.end_adoption(queue) && !self.queues.at(queue).is_deleted() {
            let (_, drop_jobs) = self.purge(queue);
            drop_jobs.into_iter().for_each(|job| self.jobs.begin(job));
        }
        self.end_blocking_job(queue);
        if self.queues.records().get(queue.index()).is_some() {
            self.queues.examine_stored(queue);
        }
    }

    /// Returns virtual host and name of a rebuilt queue. The simulator deletes these queues, because it does
    /// not know their contents.
    #[cfg(debug_assertions)]
    pub fn next_rebuilt(&self) -> Option<(String, String)> {
        let mut queues = self.queues.records().iter().map(|(_, queue)| queue);
        let queue = queues.find(|queue| queue.declared.is_rebuilt && !queue.is_deleted())?;
        Some((self.access.vhost_name(queue.vhost).into(), queue.name.to_string()))
    }

    /// Sets the user of a new store, with all permissions in `/`; or none.
    pub fn set_first_user(&mut self, first: Option<(&str, PasswordHash)>) {
        self.access.set_first_user(first);
        self.note_users();
    }

    /// Refuses all logins until an operator confirms the users, because the stored users may be incomplete.
    ///
    /// `why` is the reason shown to operators. `unreadable` are the keys of definitions that cannot be read.
    pub fn mark_access_doubtful(&mut self, why: &'static str, unreadable: Vec<Box<[u8]>>) {
        self.access.set_doubt(why, unreadable);
        self.note_users();
    }

    fn restore_vhost(&mut self, definition: &definition::Vhost<'_>) -> Restored {
        let definition::Vhost { name, limits, metadata } = *definition;
        let found = self.access.find_vhost(name);
        match self.set_vhost(found, name, metadata) {
            Ok(vhost) => self.access.set_limits_of_vhost(vhost, limits),
            Err(_) => return self.access.note_no_capacity_at_start(),
        }
        Restored::Exists(None)
    }

    /// Drops the user and the virtual hosts assumed for a new store, because the log has users.
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

    pub(crate) fn restore_policy(&mut self, policy: &Policy<&str, &[u8]>) -> Restored {
        let Some(vhost) = self.access.find_vhost(policy.vhost) else {
            return self.access.result_without_owner();
        };
        restored(self.policies.put(self.access.pattern_bytes_mut(), vhost, policy))
    }

    /// Applies policies to everything, at start when all definitions are restored, before the first message
    /// is processed.
    pub fn apply_policies(&mut self, cx: &mut Context<'_>) {
        if !self.policies.is_empty() {
            self.policies.begin_notification();
            while !self.run_policies(cx, &mut { u32::MAX }) {}
        }
    }

    /// Notes, at start, that the log may have parameters that cannot be read.
    pub const fn mark_parameters_doubtful(&mut self) {
        self.parameters.note_unreadable();
    }

    pub(crate) fn restore_parameter(&mut self, parameter: &Parameter<&str, &[u8]>) -> Restored {
        let Ok(vhost) = parameter.vhost.map(|name| self.access.require_vhost(name)).transpose() else {
            return self.access.result_without_owner();
        };
        restored(self.parameters.restore(vhost, parameter))
    }
}
