//! What a start makes of what the store holds: everything is declared again, and each queue is told where its
//! messages lie.
//!
//! Always true: no message is read here; what cannot be made is logged and stays in the store, unless it
//! belongs to nothing that there is; messages that belong to nothing stay.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use crate::{Broker, Contents, Context, Restored, levels_of};
use leveret_core::command::QueueId;
use leveret_core::journal::definition::{is_access, queue_in};
use leveret_core::journal::{Definition, DestinationName, ReportedDamage, is_transient};
use leveret_core::password::PasswordHash;
use leveret_core::time::Now;
use leveret_storage::{self as store, Access, AccessDefinition, AccessReport, Log};

/// Whom a new store begins with: a name, and what its password is kept as.
pub type First<'a> = Option<(&'a str, PasswordHash)>;

/// Declares everything again, and says where its messages lie. Who may come in is what the store says, as far
/// as it can vouch for that, and for a new one whoever is `first`.
///
/// # Errors
/// The disk refused a read.
pub fn restore(
    broker: &mut Broker,
    context: &mut Context<'_>,
    log: &Log,
    disk: &mut impl store::Disk,
    (report, damage): (AccessReport, ReportedDamage),
    first: First<'_>,
    now: Now,
) -> io::Result<()> {
    // A start is a use of a queue: what is noted of that is noted now, not when the store was made.
    context.journal_mut().set_time(log.time_ms(now));
    let AccessReport { access, unreadable, is_thin, definitions, .. } = report;
    match access {
        Access::New | Access::Silent => broker.begin_users(first),
        Access::InDoubt(why) => broker.doubt_access(why, unreadable),
        Access::Whole => {}
    }
    broker.recovery_mut().set_damage(damage);
    restore_definitions(broker, context, log, (disk, &definitions))?;
    if matches!(access, Access::New | Access::Silent) || access == Access::Whole && is_thin {
        broker.access_mut().write_access(context.journal_mut());
    }
    Ok(())
}

/// A definition that belongs to nothing: key and value, and what the log knows the queue by that is to go
/// with it, its levels included.
type Unowned = (Box<[u8]>, Box<[u8]>, Vec<u64>);

/// What the log has of the levels of a queue with priorities.
struct Levels {
    /// The incarnation of that for priority 1.
    from: u64,
    /// The incarnations of which it has something.
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

/// What a start has made of the definitions.
struct Restoring {
    /// The version of the newest definition of each queue.
    versions: BTreeMap<u64, u64>,
    /// The queues that are there again, by their incarnations.
    queues: BTreeMap<u64, QueueId>,
    /// Queues that are defined and not there.
    absent: BTreeSet<u64>,
    /// Definitions that belong to nothing.
    orphans: Vec<Unowned>,
    /// How many definitions this version cannot read.
    unread: usize,
}

impl Restoring {
    /// Declares again what a definition says.
    fn restore(
        &mut self,
        broker: &mut Broker,
        context: &mut Context<'_>,
        log: &Log,
        (key, value): (&[u8], &[u8]),
    ) {
        let Some(definition) = Definition::parse(key, value) else {
            self.unread += 1;
            return;
        };
        let levels = Levels::in_log(&definition, log);
        let incarnation = match definition {
            Definition::Queue { incarnation, .. } => incarnation,
            // What a delayed exchange keeps has its number.
            Definition::Exchange { version, .. } if !levels_of(&definition).is_empty() => version,
            _ => 0,
        };
        let is_gone = log.index().queues().get(&incarnation).is_some_and(|queue| queue.gone);
        let version = log.index().definitions().get(key).map_or(0, |definition| definition.version);
        let is_renamed = self.versions.get(&incarnation).is_some_and(|newest| *newest > version);
        if is_gone || is_renamed || self.queues.contains_key(&incarnation) {
            // It was deleted, or has another name by now: what says so of this one was damaged.
            let levels = if is_gone { levels.known } else { Vec::new() };
            self.orphans.push((key.into(), value.into(), levels));
            return;
        }
        let restored = if !levels.known.is_empty() && broker.queues().room() <= levels.known.len() {
            broker.recovery_mut().leave_out(&definition);
            Restored::NoRoom
        } else {
            broker.restore(context, &definition)
        };
        match restored {
            Restored::Exists(Some(queue)) => {
                self.queues.insert(incarnation, queue);
                self.restore_levels(broker, (queue, &levels));
            }
            Restored::Exists(None) => {}
            Restored::Orphaned => {
                let mut incarnations = levels.known;
                incarnations.extend(Some(incarnation).filter(|incarnation| *incarnation > 0));
                self.orphans.push((key.into(), value.into(), incarnations));
            }
            not_now @ (Restored::NoRoom | Restored::Unknown) => {
                let why = match not_now {
                    Restored::NoRoom => "the limits have no room for it",
                    _ => "only another version knows its type",
                };
                log::error!("{definition} is stored, but {why}");
                if not_now == Restored::NoRoom {
                    broker.recovery_mut().note_beyond_limits();
                }
                broker.recovery_mut().leave_out_levels(incarnation, &levels.known);
                self.absent.insert(incarnation);
                self.absent.extend(levels.known);
            }
        }
    }

    /// Makes the levels of a queue with priorities of which the log has something.
    fn restore_levels(&mut self, broker: &mut Broker, (queue, levels): (QueueId, &Levels)) {
        for &incarnation in &levels.known {
            let priority = (incarnation - levels.from + 1) as u8;
            match broker.restore_level(queue, priority) {
                Some(level) => self.queues.insert(incarnation, level),
                None => panic!("there was room for all levels"),
            };
        }
    }

    /// Sees to messages of queues that nothing defines.
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
        keys.extend(self.orphans.iter().filter_map(|(key, value, _)| named_by(key, value)));
        for incarnation in lost {
            let Some(found) = log.index().queues().get(&incarnation) else { continue };
            let key = keys.get(&incarnation);
            let name = key.and_then(|key| queue_in(key));
            let is_deleted = key.is_some_and(|key| log.index().is_deleted_since(key, incarnation));
            let words = match name {
                Some((vhost, queue)) => format!("queue '{queue}' in vhost '{vhost}'"),
                None => "a queue of which no name is left".to_string(),
            };
            let words = format!("{words}: what defines it is lost, its {} messages are not", found.live);
            let contents = contents_of(found);
            if let Some(queue) = broker.restore_lost(context, incarnation, contents, name, !is_deleted) {
                log::error!(
                    "{words}: it is there again as a plain durable queue, until somebody declares it as it \
                     should be"
                );
                self.queues.insert(incarnation, queue);
            } else {
                log::error!(
                    "{words}: leveretctl list_orphans shows them, adopt_orphan gives them a queue, \
                     delete_orphan deletes them"
                );
                self.absent.insert(incarnation);
            }
        }
        // Its bindings may be among what belonged to nothing.
        for (key, value, incarnations) in core::mem::take(&mut self.orphans) {
            let definition = Definition::parse(&key, &value);
            let binding = definition.filter(|definition| matches!(definition, Definition::Binding { .. }));
            if !binding.is_some_and(|binding| broker.restore(context, &binding) == Restored::Exists(None)) {
                self.orphans.push((key, value, incarnations));
            }
        }
        Ok(())
    }
}

/// Of which queue a definition says the name, and the key that it is defined under.
fn named_by(key: &[u8], value: &[u8]) -> Option<(u64, Box<[u8]>)> {
    let (vhost, name, incarnation) = match Definition::parse(key, value)? {
        Definition::Queue { incarnation, .. } => return Some((incarnation, key.into())),
        Definition::Binding {
            vhost, destination: DestinationName::Queue(name), destination_version, ..
        } => (vhost, name, destination_version),
        _ => return None,
    };
    let (auto_delete, is_rebuilt, levels_from, arguments) = (false, false, 0, &[][..]);
    let queue =
        Definition::Queue { vhost, name, incarnation, auto_delete, is_rebuilt, levels_from, arguments };
    Some((incarnation, queue.key()))
}

fn restore_definitions(
    broker: &mut Broker,
    context: &mut Context<'_>,
    log: &Log,
    (disk, of_access): (&mut impl store::Disk, &[AccessDefinition]),
) -> io::Result<()> {
    let mut restoring = Restoring {
        versions: log.index().versions_of_queues(),
        queues: BTreeMap::new(),
        absent: BTreeSet::new(),
        orphans: Vec::new(),
        unread: 0,
    };
    for AccessDefinition { key, value } in of_access {
        restoring.restore(broker, context, log, (key, value));
    }
    let mut repeated = Vec::new();
    let damaged = log.read_definitions(disk, |key, value, is_repeated| {
        restoring.restore(broker, context, log, (key, value));
        if is_repeated {
            repeated.push((Box::from(key), Box::from(value)));
        }
    })?;
    if damaged > 0 {
        log::error!("{damaged} definitions are damaged and left out");
    }
    if restoring.unread > 0 {
        let unread = restoring.unread;
        log::error!(
            "{unread} definitions are stored that this version cannot read: they stay there, left out"
        );
    }
    if !repeated.is_empty() {
        log::warn!("{} definitions were damaged and are written again, from footers", repeated.len());
    }
    for (key, value) in repeated {
        context.journal_mut().define(key, Some(value));
    }
    let is_suspect =
        damaged > 0 || restoring.unread > 0 || log.is_damaged() || broker.access().access_doubt().is_some();
    if !is_suspect {
        restoring.absent.extend(restoring.orphans.iter().flat_map(|(.., incarnations)| incarnations));
    }
    restoring.restore_lost(broker, context, log, disk)?;
    broker.apply_policies(context);
    if is_suspect {
        broker.doubt_parameters();
        // What seems to belong to nothing may belong to something that cannot be read. Of access that is for
        // whoever confirms the rest to say: nobody sees it, and it would come back with a user of that name.
        let hidden = restoring.orphans.drain(..).map(|(key, ..)| key).filter(|key| is_access(key));
        broker.access_mut().hide_access(context.journal_mut(), hidden.collect());
    }
    for (key, _, incarnations) in &restoring.orphans {
        broker.forget(context.journal_mut(), key, incarnations);
    }
    for (&incarnation, queue) in log.index().queues() {
        if is_transient(incarnation) && !queue.gone {
            broker.queues_mut().forget_transient(context.journal_mut(), incarnation);
        }
    }
    broker.queues_mut().recovered_largest(log.index().largest_body_bytes());
    let mut messages = 0;
    for (incarnation, queue) in restoring.queues {
        messages += restore_queue(broker, log, incarnation, queue);
    }
    if messages > 0 {
        log::info!("the store has {messages} messages");
    }
    Ok(())
}

fn contents_of(found: &store::QueueIndex) -> Contents {
    Contents {
        count: found.live,
        bytes: found.live_bytes(),
        next_offset: found.next_offset(),
        delivered_through: found.delivered_below(),
        marked_through: found.delivered_through,
    }
}

fn restore_queue(broker: &mut Broker, log: &Log, incarnation: u64, queue: QueueId) -> u64 {
    let Some(found) = log.index().queues().get(&incarnation) else { return 0 };
    broker.queues_mut().restore_contents(queue, &contents_of(found));
    restore_messages(broker, found, queue);
    found.live
}

/// Puts into a queue what the log has for it.
pub fn restore_messages(broker: &mut Broker, found: &store::QueueIndex, queue: QueueId) {
    for range in found.live_ranges() {
        if !broker.queues_mut().restore_messages(queue, range.start, range.end) {
            log::error!(
                "queue_entries_max has no room for all that is stored: some messages wait for a restart"
            );
            broker.recovery_mut().note_beyond_limits();
            break;
        }
    }
}
