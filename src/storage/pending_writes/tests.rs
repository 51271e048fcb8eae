//! When messages leave the buffer, and what waits for which batch.

use super::*;
use leveret_core::mem::{MessageFlags, MessageLimits, Share};

struct Fixture {
    messages: Messages,
    pending_writes: PendingWrites,
    offsets: u64,
}

impl Fixture {
    fn new() -> Self {
        let limits =
            MessageLimits { messages_max: 4096, body_bytes_max: 1 << 20, assembly_bytes_max: 1 << 20 };
        let mut pending_writes = PendingWrites::new(4096);
        pending_writes.start(1, true, 64 << 10);
        Self { messages: Messages::new(limits), pending_writes, offsets: 0 }
    }

    fn publish(&mut self, queues: &[u64], urgency: Urgency) -> (MessageId, Batch, u64) {
        let message = self.messages.begin("", b"key", Share::Ordinary).unwrap();
        self.messages.reserve_content(message, &[0, 0], MessageFlags::NONE, 1000, Share::Ordinary).unwrap();
        self.messages.append_body(message, &[7; 1000]);
        self.messages.finish(message);
        self.offsets += 1;
        let targets = queues.iter().map(|&queue| Target { queue, offset: self.offsets });
        let appended = self.pending_writes.append(&mut self.messages, message, targets, urgency);
        (message, appended.batch(), self.offsets)
    }

    /// Settles a message of a queue. The caller still has to release the queue's reference.
    fn settle(&mut self, queue: u64, (message, _, offset): (MessageId, Batch, u64)) {
        self.pending_writes.settle(&mut self.messages, Target { queue, offset }, message);
    }

    /// Takes everything for a commit. Returns the number of messages and the last batch it completes.
    fn commit(&mut self) -> (usize, Batch) {
        let (mut count, mut targets) = (0, Vec::new());
        while self.pending_writes.front(&mut self.messages, &mut targets).is_some() {
            self.pending_writes.move_front_to_commit(&mut self.messages);
            count += 1;
        }
        while self.pending_writes.next_entry().is_some() {
            self.pending_writes.pop_entry();
        }
        self.pending_writes.drain_settles(|_| {});
        (count, self.pending_writes.cover(false))
    }
}

#[test]
fn a_message_settled_before_its_commit_is_not_written_and_its_batch_becomes_durable() {
    let mut world = Fixture::new();
    let published = world.publish(&[5], Urgency::Awaited);
    assert!(published.1 > world.pending_writes.durable());
    world.settle(5, published);
    world.messages.release(published.0);
    assert_eq!(world.messages.messages_used(), 0);
    assert!(world.pending_writes.is_empty() && world.pending_writes.advance(&mut world.messages));
    assert!(published.1 <= world.pending_writes.durable());
    assert!(!world.pending_writes.advance(&mut world.messages), "nothing is new");
    assert_eq!(world.commit().0, 0);
}

#[test]
fn a_message_in_two_queues_is_written_unless_both_have_settled_it() {
    let mut world = Fixture::new();
    let published = world.publish(&[5, 6], Urgency::Window);
    world.settle(5, published);
    assert!(world.pending_writes.is_pending_write(&world.messages, published.0));
    assert_eq!(world.commit().0, 1);
    assert!(!world.pending_writes.is_pending_write(&world.messages, published.0));
}

#[test]
fn a_message_is_held_and_then_marked_as_stored_when_its_commit_is_durable() {
    let mut world = Fixture::new();
    let (message, batch, _) = world.publish(&[5], Urgency::Awaited);
    let (count, covers) = world.commit();
    assert_eq!((count, covers), (1, batch));
    assert!(batch > world.pending_writes.durable());
    world.pending_writes.stored(&mut world.messages, covers);
    assert_eq!(world.pending_writes.durable(), batch);
    assert!(world.messages.flags(message).has(MessageFlags::STORED));
    world.messages.release(message);
    assert_eq!(world.messages.messages_used(), 0);
}

#[test]
fn batches_are_no_larger_than_a_commit_and_become_durable_in_order() {
    let mut world = Fixture::new();
    let batches: Vec<Batch> = (0..200).map(|_| world.publish(&[5], Urgency::Awaited).1).collect();
    assert!(batches.is_sorted());
    let first = batches.iter().filter(|batch| **batch == batches[0]).count();
    assert!((40..=64).contains(&first), "{first} of a kilobyte in 64 KiB");
    let mut targets = Vec::new();
    for _ in 0..first {
        world.pending_writes.front(&mut world.messages, &mut targets).unwrap();
        world.pending_writes.move_front_to_commit(&mut world.messages);
    }
    assert_eq!(world.pending_writes.cover(false), batches[0], "the next batch is incomplete");
}

#[test]
fn a_reply_waits_for_settlements_that_did_not_fit_into_the_commit() {
    let mut world = Fixture::new();
    let published = world.publish(&[5], Urgency::Window);
    let (_, covers) = world.commit();
    world.pending_writes.stored(&mut world.messages, covers);
    world.settle(5, published);
    let awaited = world.pending_writes.await_settles();
    world.pending_writes.drain_settles(|_| {});
    assert!(world.pending_writes.cover(true) < awaited);
    assert!(world.pending_writes.cover(false) >= awaited);
}

#[test]
fn a_deleted_queue_is_removed_from_the_targets_of_pending_messages() {
    let mut world = Fixture::new();
    world.publish(&[5], Urgency::Window);
    world.publish(&[5, 6], Urgency::Window);
    world.pending_writes.append_queue_deleted(5);
    let later = world.publish(&[5], Urgency::Window);
    let mut targets = Vec::new();
    let front = world.pending_writes.front(&mut world.messages, &mut targets).unwrap();
    assert_eq!((front.number, targets.len(), targets[0].queue), (1, 1, 6));
    world.pending_writes.move_front_to_commit(&mut world.messages);
    let front = world.pending_writes.front(&mut world.messages, &mut targets).unwrap();
    assert_eq!(front.message, later.0, "a message after the deletion is kept");
}

#[test]
fn settlements_are_merged_whatever_their_order() {
    let mut world = Fixture::new();
    for offset in [4, 2, 3, 9, 1] {
        world.pending_writes.settle_stored(Settled { queue: 5, start: offset, end: offset + 1 });
        world.pending_writes.settle_stored(Settled { queue: 6, start: offset, end: offset + 1 });
    }
    let mut seen = Vec::new();
    world.pending_writes.drain_settles(|settled| seen.push((settled.queue, settled.start, settled.end)));
    assert_eq!(seen, [(5, 1, 5), (5, 9, 10), (6, 1, 5), (6, 9, 10)]);
}

#[test]
fn without_a_store_nothing_is_written_and_an_unwritable_store_takes_nothing() {
    let mut pending_writes = PendingWrites::new(4096);
    assert_eq!(pending_writes.define(Box::default(), None), Batch::NONE);
    assert_eq!(pending_writes.admit(10, 1), Ok(()));
    pending_writes.start(1, false, 0);
    assert_eq!(pending_writes.admit(10, 1), Err(NoCapacity::Commit));
    pending_writes.start(1, true, 64 << 10);
    pending_writes.set_log_free_bytes(1_000, 1_000, false);
    assert_eq!(pending_writes.admit(100, 1), Ok(()));
    assert_eq!(pending_writes.admit(1_000, 1), Err(NoCapacity::Disk));
}

/// The mark of a message is 32 bits of its number.
#[test]
fn a_pending_message_is_found_by_its_mark_when_numbers_pass_32_bits() {
    for width in [16, 31, 32, 33] {
        for before in 0..4 {
            let mut world = Fixture::new();
            world.pending_writes.messages.first_number = (1_u64 << width) - before;
            let published: Vec<_> = (0..6).map(|_| world.publish(&[5], Urgency::Window)).collect();
            for one in &published {
                assert!(
                    world.pending_writes.is_pending_write(&world.messages, one.0),
                    "2^{width} - {before}"
                );
                world.settle(5, *one);
                world.messages.release(one.0);
            }
            assert_eq!(world.commit().0, 0, "2^{width} - {before}");
            assert_eq!(world.messages.messages_used(), 0);
        }
    }
}

#[test]
fn log_entries_become_durable_while_messages_wait_for_disk_space() {
    let mut world = Fixture::new();
    let (message, _, _) = world.publish(&[7], Urgency::Awaited);
    let user =
        Definition::User(leveret_core::definition::User { name: "alice", hash: &[0], ..Default::default() });
    let batch = world.pending_writes.define(user.key(), Some(user.value()));
    let said = world.pending_writes.entries_appended();
    // The disk takes log entries only.
    let facts_only = |world: &mut Fixture| {
        while world.pending_writes.next_entry().is_some() {
            world.pending_writes.pop_entry();
        }
        let covered = world.pending_writes.cover(false);
        world.pending_writes.stored(&mut world.messages, covered);
    };
    facts_only(&mut world);
    assert!(world.pending_writes.entries_safe() < said, "one commit is not enough for access definitions");
    facts_only(&mut world);
    assert_eq!(world.pending_writes.entries_safe(), said);
    assert!(
        world.pending_writes.durable() < batch
            && world.pending_writes.is_pending_write(&world.messages, message)
    );
}

#[test]
fn messages_of_a_deleted_queue_are_confirmed_when_the_deletion_is_durable() {
    let mut world = Fixture::new();
    // More than one batch.
    let published: Vec<_> = (0..70).map(|_| world.publish(&[7], Urgency::Awaited)).collect();
    let (first, last) = (published[0].1, published[69].1);
    assert!(first < last);
    let gone = world.pending_writes.append_queue_deleted(7);
    for (message, ..) in published {
        assert!(world.pending_writes.drop_target(&mut world.messages, message));
    }
    world.pending_writes.advance(&mut world.messages);
    assert!(world.pending_writes.durable() < first, "the queue could come back without the messages");
    assert!(world.commit().1 >= last.max(gone));
}

#[test]
fn a_change_of_the_log_limit_counts_as_new_capacity() {
    let mut pending_writes = Fixture::new().pending_writes;
    pending_writes.set_log_free_bytes(1000, 8000, false);
    let before = pending_writes.capacity_freed();
    pending_writes.set_log_free_bytes(1000, 9000, false);
    assert!(pending_writes.capacity_freed() > before, "a queue may take more of a larger log");
    let before = pending_writes.capacity_freed();
    pending_writes.set_log_free_bytes(900, 9000, false);
    assert_eq!(pending_writes.capacity_freed(), before, "less disk space is no new capacity");
    pending_writes.set_log_free_bytes(900, 7000, false);
    assert!(pending_writes.capacity_freed() > before, "less is reserved for other virtual hosts");
}

/// The definitions of a group are no log entries that are written before messages.
#[test]
fn definitions_of_a_group_wait_for_its_messages_and_keep_their_order() {
    let mut world = Fixture::new();
    let earlier = world.publish(&[5], Urgency::Window);
    let define = |world: &mut Fixture, has_message: bool, value: u8| {
        world.pending_writes.begin_group();
        if has_message {
            world.publish(&[5], Urgency::Awaited);
        }
        world.pending_writes.define_in_group(Box::new([9]), Some(Box::new([value])));
        world.pending_writes.end_group(&mut world.messages, Urgency::Awaited)
    };
    let batches = [define(&mut world, true, 1), define(&mut world, false, 2)];
    assert!(world.pending_writes.next_entry().is_none() && world.pending_writes.group().is_none());
    let mut targets = Vec::new();
    let front = world.pending_writes.front(&mut world.messages, &mut targets).unwrap();
    assert_eq!(front.message, earlier.0);
    world.pending_writes.move_front_to_commit(&mut world.messages);
    for (value, batch) in [1, 2].into_iter().zip(batches) {
        assert!(world.pending_writes.cover(false) < batch);
        let group = world.pending_writes.group().expect("its messages are next");
        assert_eq!(u64::from(value == 1), group.end - group.first);
        assert!(group.bytes > 2, "the definition counts");
        let values: Vec<_> = world.pending_writes.group_entries(0).collect();
        let LogEntry::Defined { value: Some(found), .. } = values[0] else { panic!("a definition") };
        assert_eq!((values.len(), &**found), (1, &[value][..]));
        assert!(world.pending_writes.group_entries(1).next().is_none());
        if value == 1 {
            world.pending_writes.front(&mut world.messages, &mut targets).expect("the message of the group");
            world.pending_writes.move_front_to_commit(&mut world.messages);
        }
        world.pending_writes.group_written();
    }
    assert!(world.pending_writes.is_empty() && world.pending_writes.cover(false) >= batches[1]);
}

#[test]
fn a_change_of_the_same_definition_replaces_the_one_before_until_it_is_in_a_commit() {
    let mut world = Fixture::new();
    let boxed = |octets: &[u8]| -> Box<[u8]> { octets.into() };
    let writes = &mut world.pending_writes;
    let first = writes.define(boxed(b"a"), Some(boxed(b"1")));
    assert_eq!(writes.define(boxed(b"a"), Some(boxed(b"22"))), first);
    // Another definition, and a deletion, are entries of their own.
    writes.define(boxed(b"b"), Some(boxed(b"3")));
    writes.define(boxed(b"a"), Some(boxed(b"4")));
    writes.define(boxed(b"a"), None);
    writes.define(boxed(b"a"), Some(boxed(b"5")));
    let mut written = Vec::new();
    while let Some(entry) = writes.next_entry() {
        let LogEntry::Defined { key, value, version } = entry else { panic!("{entry:?}") };
        let value = value.as_ref().map(|value| value.to_vec());
        written.push((*version, key.to_vec(), value));
        writes.pop_entry();
    }
    assert!(written.is_sorted_by_key(|(version, ..)| *version));
    let expected: [(&[u8], Option<&[u8]>); 5] =
        [(b"a", Some(b"22")), (b"b", Some(b"3")), (b"a", Some(b"4")), (b"a", None), (b"a", Some(b"5"))];
    let values: Vec<_> = written.iter().map(|(_, key, value)| (&key[..], value.as_deref())).collect();
    assert_eq!(values, expected);
    // The last one is in a commit.
    writes.define(boxed(b"a"), Some(boxed(b"6")));
    assert!(writes.next_entry().is_some());
    let commit = world.commit();
    world.pending_writes.stored(&mut world.messages, commit.1);
    assert!(world.pending_writes.is_empty());
}

#[test]
fn definitions_behind_messages_replace_those_before_unless_a_message_is_between() {
    let mut world = Fixture::new();
    let define = |world: &mut Fixture, value: u8| {
        let (key, value) = (Box::from(*b"k"), Some(Box::from([value])));
        world.pending_writes.define_behind_messages(&mut world.messages, key, value)
    };
    // The first group may be partly in a commit. All others but the last are replaced.
    let batches: Vec<Batch> = (0..5).map(|value| define(&mut world, value)).collect();
    assert!(batches.iter().all(|batch| *batch == batches[0]));
    let published = world.publish(&[5], Urgency::Awaited);
    (5..8).for_each(|value| {
        define(&mut world, value);
    });
    let mut written = Vec::new();
    while let Some(group) = world.pending_writes.group().or_else(|| {
        world.pending_writes.move_front_to_commit(&mut world.messages);
        world.pending_writes.group()
    }) {
        assert_eq!((group.entries, group.settles), (1, 0));
        let entry = world.pending_writes.group_entries(0).next().unwrap();
        let LogEntry::Defined { value: Some(value), .. } = entry else { panic!("{entry:?}") };
        written.push(value[0]);
        world.pending_writes.group_written();
    }
    assert_eq!(written, [0, 4, 7]);
    let commit = world.commit();
    world.pending_writes.stored(&mut world.messages, commit.1);
    world.messages.release(published.0);
    assert!(world.pending_writes.is_empty() && !world.pending_writes.is_grouping());
}
