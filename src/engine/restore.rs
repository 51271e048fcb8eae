//! What a start makes of what the store holds: everything is declared again, and each queue is told where its
//! messages lie.
//!
//! Always true: no message is read here; what cannot be made is logged and stays in the store, unless it
//! belongs to nothing that there is.

use std::io;

use crate::broker::{Broker, Contents, Restored};
use crate::command::QueueId;
use crate::journal::definition::is_access;
use crate::journal::{Definition, is_transient};
use crate::password::PasswordHash;
use crate::store::{self, Access, AccessReport, Log};

/// Whom a new store begins with: a name, and what its password is kept as.
pub(crate) type First<'a> = Option<(&'a str, PasswordHash)>;

/// Declares everything again, and says where its messages lie. Who may come in is what the store says, as far
/// as it can vouch for that, and for a new one whoever is `first`.
pub(crate) fn restore(
    broker: &mut Broker,
    log: &Log,
    disk: &mut impl store::Disk,
    report: AccessReport,
    first: First<'_>,
) -> io::Result<()> {
    let AccessReport { access, unreadable, is_thin, .. } = report;
    match access {
        Access::New | Access::Silent => broker.begin_users(first),
        Access::InDoubt(why) => broker.doubt_access(why, unreadable),
        Access::Whole => {}
    }
    restore_definitions(broker, log, disk)?;
    if matches!(access, Access::New | Access::Silent) || access == Access::Whole && is_thin {
        broker.write_access();
    }
    Ok(())
}

fn restore_definitions(broker: &mut Broker, log: &Log, disk: &mut impl store::Disk) -> io::Result<()> {
    let mut orphans: Vec<(Box<[u8]>, Option<u64>)> = Vec::new();
    let mut queues: Vec<(u64, QueueId)> = Vec::new();
    let damaged = log.read_definitions(disk, |key, value| {
        let Some(definition) = Definition::parse(key, value) else { return };
        if let Definition::Queue { incarnation, .. } = definition
            && log.index().queues().get(&incarnation).is_some_and(|queue| queue.gone)
        {
            // It was deleted: what says so of its name was damaged.
            orphans.push((key.into(), None));
            return;
        }
        match broker.restore(&definition) {
            Restored::Exists(Some(queue)) => {
                if let Definition::Queue { incarnation, .. } = definition {
                    queues.push((incarnation, queue));
                }
            }
            Restored::Exists(None) => {}
            Restored::Orphaned => {
                let incarnation = match definition {
                    Definition::Queue { incarnation, .. } => Some(incarnation),
                    _ => None,
                };
                orphans.push((key.into(), incarnation));
            }
            not_now @ (Restored::NoRoom | Restored::Unknown) => {
                let why = match not_now {
                    Restored::NoRoom => "the limits have no room for it",
                    _ => "only another version knows its type",
                };
                log::error!("{definition} is stored, but {why}");
            }
        }
    })?;
    if damaged > 0 {
        log::error!("{damaged} definitions are damaged and left out");
    }
    if damaged > 0 || log.is_damaged() || broker.access_doubt().is_some() {
        // What seems to belong to nothing may belong to something that cannot be read. Of access that is for
        // whoever confirms the rest to say: nobody sees it, and it would come back with a user of that name.
        let hidden = orphans.drain(..).map(|(key, _)| key).filter(|key| is_access(key));
        broker.hide_access(hidden.collect());
    }
    for (key, incarnation) in orphans {
        broker.forget(&key, incarnation);
    }
    for (&incarnation, queue) in log.index().queues() {
        if is_transient(incarnation) && !queue.gone {
            broker.forget_transient(incarnation);
        }
    }
    let mut messages = 0;
    for (incarnation, queue) in queues {
        messages += restore_queue(broker, log, incarnation, queue);
    }
    log::info!("the store has {messages} messages");
    Ok(())
}

fn restore_queue(broker: &mut Broker, log: &Log, incarnation: u64, queue: QueueId) -> u64 {
    let Some(found) = log.index().queues().get(&incarnation) else { return 0 };
    let contents = Contents {
        count: found.live,
        bytes: found.live_bytes(),
        next_offset: found.next_offset(),
        delivered_through: found.delivered_below(),
        marked_through: found.delivered_through,
    };
    broker.restore_contents(queue, &contents);
    for range in found.live_ranges() {
        if !broker.restore_messages(queue, range.start, range.end) {
            log::error!(
                "queue_entries_max has no room for all that is stored: some messages wait for a restart"
            );
            break;
        }
    }
    found.live
}
