//! Tests of definitions that were left out, the names that they block, and messages without a queue.

use super::*;
use crate::access::FIRST_VHOST;
use crate::context::Work;
use crate::recovery::Contents;
use crate::{Access, Context};
use leveret_core::command::{QueueId, VhostId};
use leveret_core::error::Fault;
use leveret_core::limits::Limits;
use leveret_core::mem::{MessageLimits, Messages};
use leveret_core::pending_writes::{Definition, DestinationName, LogEntry, PendingWrites};

/// What a start found, and the objects that it borrows.
struct OrphansFixture {
    recovery: Recovery,
    access: Access,
    pending_writes: PendingWrites,
    messages: Messages,
    work: Work,
    vhost: VhostId,
}

const QUEUE: DestinationName<'_> = DestinationName::Queue("q");
const EXCHANGE: DestinationName<'_> = DestinationName::Exchange("q");

impl OrphansFixture {
    /// Records at most this many definitions that were left out.
    fn new(left_out_max: usize) -> Self {
        let limits = Limits::default();
        let mut access = Access::new(&limits, &mut (Box::new(|bytes: &mut [u8]| bytes.fill(7)) as _), 1);
        let vhost = access.add_vhost(FIRST_VHOST).unwrap();
        let mut pending_writes = PendingWrites::new(64);
        pending_writes.start(1, true, u64::MAX);
        let messages = Messages::new(MessageLimits {
            messages_max: 16,
            body_bytes_max: 1 << 16,
            assembly_bytes_max: 1 << 16,
        });
        let (recovery, work) = (Recovery::new(left_out_max, 1), Work::default());
        Self { recovery, access, pending_writes, messages, work, vhost }
    }

    fn leave_queue_out(&mut self, name: &str, incarnation: u64) {
        let (vhost, auto_delete, is_rebuilt, priorities_from, arguments) = ("/", false, false, 0, &[][..]);
        self.recovery.note_left_out(&Definition::Queue {
            vhost,
            name,
            incarnation,
            auto_delete,
            is_rebuilt,
            priorities_from,
            arguments,
        });
    }

    fn leave_exchange_out(&mut self, name: &str, version: u64) {
        let (vhost, kind, auto_delete, internal, arguments) = ("/", "odd", false, false, &[][..]);
        self.recovery.note_left_out(&Definition::Exchange {
            vhost,
            name,
            version,
            kind,
            auto_delete,
            internal,
            arguments,
        });
    }

    fn check(&self, name: DestinationName<'_>, durable: bool) -> Result<(), Fault> {
        self.recovery.check_not_left_out(&self.access, self.vhost, name, durable)
    }

    fn delete(&mut self, name: DestinationName<'_>, is_conditional: bool) -> Result<bool, Fault> {
        let mut cx = Context::new(&mut self.pending_writes, &mut self.messages, &mut self.work);
        self.recovery.delete_left_out(&mut cx, &self.access, self.vhost, name, is_conditional)
    }

    /// Returns what was written since the last call: queues of the log that are deleted, and definitions that
    /// are.
    fn written(&mut self) -> (Vec<u64>, Vec<Box<[u8]>>) {
        let (mut queues, mut keys) = (Vec::new(), Vec::new());
        while let Some(fact) = self.pending_writes.fact() {
            match fact {
                LogEntry::Gone { queue } => queues.push(*queue),
                LogEntry::Defined { key, value: None, .. } => keys.push(key.clone()),
                other => panic!("nothing is deleted by {other:?}"),
            }
            self.pending_writes.pop_entry();
        }
        queues.sort_unstable();
        (queues, keys)
    }
}

fn orphan(incarnation: u64, name: Option<(&str, &str)>) -> Orphan {
    let name = name.map(|(vhost, queue)| (vhost.into(), queue.into()));
    Orphan { incarnation, contents: Contents { count: incarnation * 10, ..Contents::default() }, name }
}

#[test]
fn the_name_of_a_left_out_object_is_blocked_until_it_is_deleted() {
    let mut world = OrphansFixture::new(8);
    world.leave_queue_out("q", 7);
    for durable in [true, false] {
        let text = world.check(QUEUE, durable).unwrap_err().text;
        assert!(text.contains("queue 'q'") && text.contains("queues_max"), "{text}");
    }
    world.check(EXCHANGE, true).unwrap();
    world.check(DestinationName::Queue("other"), true).unwrap();
    assert!(world.delete(QUEUE, true).is_err(), "of its condition nothing is known");
    assert!(world.check(QUEUE, true).is_err());
    assert_eq!(world.delete(QUEUE, false).ok(), Some(true));
    world.check(QUEUE, true).unwrap();
    assert_eq!(world.delete(QUEUE, false).ok(), Some(false), "there is none");
}

#[test]
fn a_deletion_removes_messages_and_levels_from_the_storage() {
    let mut world = OrphansFixture::new(8);
    world.leave_queue_out("q", 7);
    world.recovery.note_left_out_levels(7, &[71, 72]);
    world.leave_queue_out("other", 8);
    world.recovery.note_left_out_levels(8, &[81]);
    world.leave_exchange_out("q", 9);
    world.delete(QUEUE, false).unwrap();
    assert_eq!(world.written(), (vec![7, 71, 72], vec![key_of("/", QUEUE)]));
    assert!(world.check(EXCHANGE, true).unwrap_err().text.contains("exchanges_max"));
    world.delete(EXCHANGE, false).unwrap();
    assert_eq!(world.written(), (vec![], vec![key_of("/", EXCHANGE)]), "an exchange has no messages");
}

#[test]
fn nothing_is_deleted_from_unwritable_storage() {
    let mut world = OrphansFixture::new(8);
    world.leave_queue_out("q", 7);
    world.pending_writes.start(1, false, u64::MAX);
    assert!(world.delete(QUEUE, false).is_err());
    assert!(world.check(QUEUE, false).is_err(), "it is still there");
}

#[test]
fn left_out_objects_are_known_by_name_and_version() {
    let mut world = OrphansFixture::new(8);
    world.leave_exchange_out("q", 9);
    assert!(world.recovery.may_have("/", EXCHANGE, 9));
    assert!(!world.recovery.may_have("/", EXCHANGE, 8), "that one was deleted");
    assert!(!world.recovery.may_have("/", QUEUE, 9) && !world.recovery.may_have("other", EXCHANGE, 9));
}

#[test]
fn when_the_list_overflows_no_durable_object_may_be_declared() {
    let mut world = OrphansFixture::new(1);
    world.leave_queue_out("known", 7);
    world.check(QUEUE, true).unwrap();
    world.leave_queue_out("q", 8);
    assert!(world.check(QUEUE, true).is_err());
    assert!(world.check(DestinationName::Queue("new"), true).is_err(), "it may be one of those");
    world.check(DestinationName::Queue("new"), false).unwrap();
    assert!(world.recovery.may_have("/", QUEUE, 99));
}

#[test]
fn orphans_are_found_by_name_and_incarnation() {
    let mut world = OrphansFixture::new(8);
    assert!(!world.recovery.has_orphans());
    for orphan in [orphan(1, None), orphan(2, Some(("/", "q"))), orphan(3, Some(("tenant", "q")))] {
        world.recovery.add_orphan(orphan);
    }
    let recovery = &mut world.recovery;
    let known = |recovery: &Recovery, at: Option<usize>| at.map(|at| recovery.orphans()[at].incarnation);
    assert_eq!(known(recovery, recovery.orphan_of("/", "q")), Some(2));
    assert_eq!(known(recovery, recovery.orphan_of("tenant", "q")), Some(3));
    assert_eq!(known(recovery, recovery.orphan_in("tenant")), Some(3));
    assert_eq!(recovery.orphan_of("/", "other"), None);
    assert_eq!(known(recovery, recovery.find_orphan(1).ok()), Some(1));
    let at = recovery.find_orphan(2).unwrap();
    assert_eq!(recovery.take_orphan(at).contents.count, 20);
    assert_eq!(recovery.orphan_of("/", "q"), None);
    assert!(recovery.find_orphan(2).unwrap_err().text.contains("no orphan 2"));
    assert_eq!(recovery.orphans().len(), 2);
}

#[test]
fn orphans_beyond_the_list_are_counted() {
    let mut world = OrphansFixture::new(8);
    (0..300).for_each(|incarnation| world.recovery.add_orphan(orphan(incarnation, None)));
    assert_eq!((world.recovery.orphans().len(), world.recovery.orphans_unlisted()), (256, 44));
    while !world.recovery.orphans().is_empty() {
        world.recovery.take_orphan(0);
    }
    assert!(world.recovery.has_orphans(), "those that are not listed");
}

#[test]
fn names_beyond_their_memory_are_dropped() {
    let mut world = OrphansFixture::new(8);
    let long = "n".repeat(8_000);
    for incarnation in 1..=3 {
        world.recovery.add_orphan(orphan(incarnation, Some(("/", &long))));
    }
    let named =
        |recovery: &Recovery| recovery.orphans().iter().filter(|orphan| orphan.name.is_some()).count();
    assert_eq!((world.recovery.orphans().len(), named(&world.recovery)), (3, 2));
    let at = world.recovery.find_orphan(1).unwrap();
    world.recovery.take_orphan(at);
    world.recovery.add_orphan(orphan(4, Some(("/", &long))));
    assert_eq!(named(&world.recovery), 2);
}

#[test]
fn adopted_messages_count_for_their_queue_until_they_are_in_it() {
    let mut world = OrphansFixture::new(8);
    let [one, two] = [1, 2].map(QueueId::from_index);
    world.recovery.adopted(&orphan(5, None), one);
    world.recovery.adopted(&orphan(6, None), two);
    let counts = |recovery: &Recovery| [one, two].map(|queue| recovery.adopted_by(queue));
    assert_eq!(counts(&world.recovery), [50, 60]);
    assert_eq!(world.recovery.next_adopted(), Some((6, two)));
    assert!(!world.recovery.end_adoption(two));
    assert_eq!(counts(&world.recovery), [50, 0]);
    assert_eq!(world.recovery.next_adopted(), Some((5, one)));
    assert_eq!((world.recovery.purge_adopted(one), world.recovery.purge_adopted(one)), (50, 0));
    assert_eq!(counts(&world.recovery), [0, 0]);
    assert!(world.recovery.end_adoption(one), "it was purged meanwhile");
    assert_eq!(world.recovery.next_adopted(), None);
}

#[test]
fn rebuilt_queues_are_reported_until_declared_or_deleted() {
    let mut world = OrphansFixture::new(8);
    world.recovery.note_rebuilt();
    world.recovery.note_rebuilt();
    world.recovery.note_rebuilt_gone();
    assert!(world.recovery.has_rebuilt());
    world.recovery.note_rebuilt_gone();
    assert!(!world.recovery.has_rebuilt());
}
