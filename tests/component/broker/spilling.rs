//! Eviction of messages when memory is short: no more than necessary.
//!
//! A consumer without a backlog needs the next messages at once. Each one that was evicted without need has
//! to be read from the card, checked and loaded again.

use leveret_config::board::BOARDS;
use leveret_config::{Config, Layer};
use leveret_core::batch::Batch;
use leveret_core::command::{DefinitionCommand, PublishAnswer, PublishCommand};
use leveret_core::limits::Limits;
use leveret_core::mem::{Memory, MessageFlags, MessageId, Share};
use leveret_queues::{PageInOutcome, ReadMessage};

use crate::support::{At, TestBroker};

const BODY_BYTES: u32 = 1024;

fn publish_persistent(node: &mut TestBroker, at: At) {
    let message = node.messages.begin("", b"q", Share::Ordinary).unwrap();
    let flags = MessageFlags::PERSISTENT;
    node.messages.reserve_content(message, &[0x10, 0, 2], flags, BODY_BYTES, Share::Ordinary).unwrap();
    node.messages.append_body(message, &[7; BODY_BYTES as usize]);
    node.messages.finish(message);
    assert_eq!(
        node.ask(at, PublishCommand::Publish { message, mandatory: false }),
        Ok(PublishAnswer::Published)
    );
}

/// Moves everything into a commit. Returns the batch that is durable when the commit is.
pub(crate) fn begin_commit(node: &mut TestBroker) -> Batch {
    let pending_writes = &mut node.pending_writes;
    while pending_writes.next_entry().is_some() {
        pending_writes.pop_entry();
    }
    let mut places = Vec::new();
    while pending_writes.front(&mut node.messages, &mut places).is_some() {
        pending_writes.move_front_to_commit(&mut node.messages);
    }
    pending_writes.cover(false)
}

/// Marks everything as durable.
pub(crate) fn store(node: &mut TestBroker) {
    let batch = begin_commit(node);
    node.pending_writes.stored(&mut node.messages, batch);
}

#[test]
fn no_more_messages_are_evicted_than_necessary() {
    let limits = Limits { body_bytes_max: 4 << 20, messages_max: 16_000, ..Limits::default() };
    let mut node = TestBroker::with(&limits);
    node.pending_writes.start(1, true, 1 << 20);
    node.pending_writes.set_log_free_bytes(u64::MAX, u64::MAX, false);
    let at = node.connect();
    let declare = DefinitionCommand::QueueDeclare {
        queue: "q",
        passive: false,
        durable: true,
        exclusive: false,
        auto_delete: false,
        arguments: &[],
    };
    node.done(at, declare);
    let mut published = 0;
    while !node.messages.is_above_spill_mark() {
        publish_persistent(&mut node, at);
        store(&mut node);
        published += 1;
    }
    for _ in 0..100 {
        publish_persistent(&mut node, at);
        store(&mut node);
    }
    while node.broker.evict(&mut context!(node)) {}
    assert!(!node.messages.is_above_spill_mark(), "nothing left");
    let (kept, before) = (node.messages.messages_used(), published + 100);
    assert!(kept + 10 >= published, "{kept} of {before} stayed, and {published} have room");
}

/// Publishes transient messages until publishers are blocked. Returns the number of messages.
fn fill(node: &mut TestBroker, at: At, queue: &str, body_len: u32) -> u32 {
    let mut count = 0;
    node.messages.lift_hold();
    while node.offer(at, queue, body_len) == Ok(PublishAnswer::Published) {
        count += 1;
    }
    count
}

/// Publishes a persistent message of the maximum size, and lets it be evicted.
fn leave_to_the_log(node: &mut TestBroker, at: At, limits: &Limits) {
    let body = limits.message_size_max;
    let id = node.messages.begin("", b"q", Share::Ordinary).unwrap();
    let reserved =
        node.messages.reserve_content(id, &[0x10, 0, 2], MessageFlags::PERSISTENT, body, Share::Ordinary);
    assert_eq!(reserved, Ok(()), "another of the largest messages comes in");
    let piece = vec![7; 1 << 16];
    for at in (0..body).step_by(piece.len()) {
        node.messages.append_body(id, &piece[..piece.len().min((body - at) as usize)]);
    }
    node.messages.finish(id);
    assert_eq!(
        node.ask(at, PublishCommand::Publish { message: id, mandatory: false }),
        Ok(PublishAnswer::Published)
    );
    store(node);
}

/// Loads the first message of a queue, which is only in the log.
fn read_back(node: &mut TestBroker, limits: &Limits) -> PageInOutcome {
    let fetch = node.broker.queues_mut().next_read(&node.messages).expect("the first message is wanted");
    let (exchange, routing_key, properties) = ("", &b"q"[..], &[0x10, 0, 2][..]);
    let body_len = limits.message_size_max;
    let page =
        ReadMessage { offset: fetch.start, exchange, routing_key, properties, body_len, enqueued_ms: 0 };
    node.broker.queues_mut().page_in(&mut node.messages, &fetch, &page)
}

/// Returns a queue whose first message has the maximum size and is only in the log. Transient messages behind
/// it take all the memory that publishers can have.
fn crowd(limits: &Limits, memory: &Memory, is_after_start: bool) -> (TestBroker, At) {
    let mut node = TestBroker::in_memory(limits, memory);
    node.pending_writes.start(1, true, u64::MAX >> 8);
    node.pending_writes.set_log_free_bytes(u64::MAX, u64::MAX, false);
    let at = node.connect();
    let (passive, durable, exclusive, auto_delete) = (false, true, false, false);
    let arguments = &[];
    let queue = "q";
    node.done(
        at,
        DefinitionCommand::QueueDeclare { queue, passive, durable, exclusive, auto_delete, arguments },
    );
    leave_to_the_log(&mut node, at, limits);
    // While something else is short of memory, it is evicted.
    let helper = fill(&mut node, at, "q", 3_000);
    while node.broker.evict(&mut context!(node)) {}
    if is_after_start {
        node.broker.queues_mut().set_largest_stored_body(limits.message_size_max.into());
    }
    let mut count = helper;
    for body_len in [20_000, 3_000, 10] {
        count += fill(&mut node, at, "q", body_len);
        while node.broker.evict(&mut context!(node)) {}
    }
    assert!(count > 50, "{count} messages are no crowd");
    (node, at)
}

#[test]
fn on_every_board_transient_messages_leave_memory_for_the_largest_message_before_them() {
    for board in BOARDS {
        let mut flags = Layer::default();
        flags.board = Some(board.name.to_string());
        let config = Config::gather(None, flags).expect("it comes with the program");
        // The buffers and the program take less than half of the memory on every board.
        let shared = config.memory_limit_bytes / 2;
        let limits = Limits {
            messages_max: (shared / 128) as u32,
            queue_entries_max: (shared / 12) as u32,
            body_bytes_max: (shared / 4 * 3) & !4095,
            // On no board is it a larger part of the memory (the smallest router).
            message_size_max: (shared / 100 * 31) as u32,
            ..config.limits
        };
        for is_after_start in [false, true] {
            let (mut node, at) = crowd(&limits, &Memory::with_bytes(shared), is_after_start);
            node.consume(at, "q");
            node.turns(at);
            let PageInOutcome::Begun(id) = read_back(&mut node, &limits) else {
                panic!("{}: the first message cannot be read back", board.name);
            };
            node.messages.release(id);
        }
    }
}

#[test]
fn memory_reserved_for_loading_is_for_publishers_again_when_nothing_has_to_be_loaded() {
    let limits = Limits { body_bytes_max: 4 << 20, message_size_max: 1 << 20, ..Limits::default() };
    let (mut node, at) = crowd(&limits, &Memory::unlimited(), false);
    let before = node.messages.body_bytes_used();
    node.done(at, DefinitionCommand::QueuePurge { queue: "q" });
    node.turns(at);
    while node.broker.evict(&mut context!(node)) {}
    fill(&mut node, at, "q", 3_000);
    let now = node.messages.body_bytes_used();
    assert!(now >= before + (300 << 10), "{before} bytes were in use beside it, and {now} without it");
}

/// Publishes a persistent message with a body of this length, which then is in the log.
fn publish_large(node: &mut TestBroker, at: At, queue: &str, body_len: u32) {
    let id = node.messages.begin("", queue.as_bytes(), Share::Ordinary).unwrap();
    let flags = MessageFlags::PERSISTENT;
    node.messages.reserve_content(id, LASTING, flags, body_len, Share::Ordinary).unwrap();
    append_body(node, id, body_len);
    node.messages.finish(id);
    assert_eq!(
        node.ask(at, PublishCommand::Publish { message: id, mandatory: false }),
        Ok(PublishAnswer::Published)
    );
    store(node);
}

/// Properties of a persistent message.
const LASTING: &[u8] = &[0x10, 0, 2];

fn append_body(node: &mut TestBroker, id: MessageId, body_len: u32) {
    let piece = vec![7; 1 << 16];
    for at in (0..body_len).step_by(piece.len()) {
        node.messages.append_body(id, &piece[..piece.len().min((body_len - at) as usize)]);
    }
}

/// Loads a message, as the engine does. Returns whether there was memory for it, or `None` if no message is
/// wanted.
fn read_wanted(node: &mut TestBroker, body_len: u32) -> Option<bool> {
    let fetch = node.broker.queues_mut().next_read(&node.messages)?;
    let (routing_key, properties) = (&b"q"[..], LASTING);
    let page =
        ReadMessage { offset: fetch.start, exchange: "", routing_key, properties, body_len, enqueued_ms: 0 };
    match node.broker.queues_mut().page_in(&mut node.messages, &fetch, &page) {
        PageInOutcome::Begun(id) => {
            append_body(node, id, body_len);
            assert!(node.broker.queues_mut().paged_in(&mut context!(node), &fetch, fetch.start, 0, id));
            node.broker.queues_mut().end_read(&fetch, fetch.start + 1);
            Some(true)
        }
        PageInOutcome::NotWanted => panic!("it is wanted"),
        PageInOutcome::NoCapacity => {
            node.broker.queues_mut().note_no_memory(&node.messages, &fetch);
            Some(false)
        }
    }
}

/// A failed attempt to load a message frees what it had taken. That must wake no other queue, or two waiting
/// queues would read the card forever.
#[test]
fn queues_that_wait_for_memory_do_not_wake_each_other() {
    const BODY_LEN: u32 = (1 << 20) - 1000;
    let limits = Limits { body_bytes_max: 8 << 20, message_size_max: 1 << 20, ..Limits::default() };
    for queues in [&["one", "two"][..], &["one", "two", "three", "four"]] {
        let mut node = TestBroker::with(&limits);
        node.pending_writes.start(1, true, u64::MAX >> 8);
        node.pending_writes.set_log_free_bytes(u64::MAX, u64::MAX, false);
        let at = node.connect();
        let floods = ["flood-1", "flood-2", "flood-3", "flood-4", "flood-5", "flood-6"];
        floods.iter().for_each(|queue| node.declare(at, queue, false));
        for queue in queues {
            let (passive, durable, exclusive, auto_delete) = (false, true, false, false);
            let arguments = &[];
            node.done(
                at,
                DefinitionCommand::QueueDeclare {
                    queue,
                    passive,
                    durable,
                    exclusive,
                    auto_delete,
                    arguments,
                },
            );
            publish_large(&mut node, at, queue, BODY_LEN);
        }
        for body_len in [20_000, 20_000, 20_000, 3_000, 3_000, 10, 10] {
            node.messages.lift_hold();
            for queue in floods {
                while node.offer(at, queue, body_len) == Ok(PublishAnswer::Published) {}
            }
            while node.broker.evict(&mut context!(node)) {}
        }
        // No consumer reads its socket: the first loaded message stays in its outbox.
        for queue in queues {
            let peer = node.connect();
            node.consume(peer, queue);
        }
        let mut reads = Vec::new();
        while reads.len() < 100 {
            node.broker.run_jobs(&mut context!(node));
            node.broker.deliver(&mut context!(node), 8192);
            while node.broker.next_with_output().is_some() {}
            let Some(read) = read_wanted(&mut node, BODY_LEN) else { break };
            reads.push(read);
        }
        assert_eq!(reads.iter().filter(|came| **came).count(), 1, "there is memory for one");
        assert!(reads.len() <= 2 * queues.len(), "{} reads for {} queues", reads.len(), queues.len());
    }
}
