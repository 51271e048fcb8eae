//! Connections of the broker itself: the local end of a bridge.

use leveret_amqp::Properties;
use leveret_broker::ParkRequest;
use leveret_core::command::{DefinitionCommand, Outbox, PublishAnswer, PublishCommand, Refusal, Settlement};
use leveret_core::limits::Limits;
use leveret_core::mem::{MessageFlags, Share};

use crate::dead_letters::{PERSISTENT, declare, get, publish};
use crate::spilling::{begin_commit, store};
use crate::support::{At, TestBroker};

/// Arguments of a quorum queue that drops messages returned more than twice.
const DELIVERY_LIMIT: &[u8] = b"\x0cx-queue-typeS\0\0\0\x06quorum\x10x-delivery-limitb\x02";

/// Lost uplinks must not count against the messages that wait for them.
#[test]
fn repeated_link_failures_count_against_no_message() {
    let mut node = TestBroker::new(64);
    let at = node.connect();
    let (passive, durable, exclusive, auto_delete) = (false, true, false, false);
    let arguments = DELIVERY_LIMIT;
    let declare =
        DefinitionCommand::QueueDeclare { queue: "q", passive, durable, exclusive, auto_delete, arguments };
    node.done(at, declare);
    node.publish(at, "q", 3);
    for _ in 0..5 {
        let connection = node.broker.connect_own("bridge", "/").expect("there is room");
        let link = node.open(At { connection, channel: at.channel }, 1);
        node.consume(link, "q");
        assert_eq!(node.turn(link), 3);
        node.broker.release(&mut context!(node), connection);
        node.turns(at);
        assert_eq!(node.ready(at, "q"), 3);
    }
}

/// Returns headers with `BCC` and a key of this length, and an expiration of one minute.
fn secret_headers(filler_len: u32) -> Vec<u8> {
    let mut table = b"\x03BCCA\0\0\0\x06S\0\0\0\x01x\x01aS".to_vec();
    table.extend(filler_len.to_be_bytes());
    table.extend(vec![b'a'; filler_len as usize]);
    let len = u32::try_from(table.len()).expect("it is short");
    [b"\x21\0", &len.to_be_bytes()[..], &table, b"\x0560000"].concat()
}

/// The keys in `BCC` stay secret, even if the headers have no space for the parking cause.
#[test]
fn a_parked_message_keeps_its_bcc_keys_secret() {
    let frame_max = Limits::default().frame_max;
    for (filler_len, has_cause) in [(1, true), (frame_max - 100, false)] {
        let mut node = TestBroker::with(&Limits { connections_max: 16, ..Limits::default() });
        let at = node.connect();
        node.declare(at, "q", false);
        node.declare(at, "parked", false);
        let id = node.messages.begin("", b"q", Share::Ordinary).expect("there is room");
        let headers = secret_headers(filler_len);
        let kept = node.messages.reserve_content(id, &headers, MessageFlags::NONE, 0, Share::Ordinary);
        kept.expect("there is room");
        node.messages.finish(id);
        assert_eq!(
            node.ask(at, PublishCommand::Publish { message: id, mandatory: false }),
            Ok(PublishAnswer::Published)
        );
        let connection = node.broker.connect_own("bridge", "/").expect("there is room");
        let link = node.open(At { connection, channel: at.channel }, 1);
        node.consume(link, "q");
        assert_eq!(node.turn(link), 1);
        let request = ParkRequest { bridge: "plant", queue: "parked", why: Refusal::Nacked };
        let is_parked = node.broker.park_delivery(&mut context!(node), link.channel, 1, request);
        is_parked.expect("there is such a queue");
        node.turns(at);
        node.consume(at, "parked");
        node.broker.deliver(&mut context!(node), 8);
        let outbox = node.broker.outbox(at.connection);
        let message = outbox.peek().expect("it is delivered").message;
        let mut scratch = vec![0; frame_max as usize];
        let properties = Properties::trusted(node.messages.properties(message, &mut scratch));
        let headers = properties.headers().expect("there are headers");
        let has = |name| headers.get(name).is_some();
        assert_eq!((has("BCC"), has("a"), has("x-parked-cause")), (false, true, has_cause));
        assert_eq!(properties.expiration(), None, "it stays until an operator handles it");
    }
}

/// A bridge sends the offset of a message to another broker, so the offset must not be used again. A commit that
/// is not synced yet may be lost, and the offset with it.
#[test]
fn a_requeued_message_is_forwarded_only_when_its_commit_is_durable() {
    let mut node = TestBroker::new(64);
    node.pending_writes.start(1, true, 1 << 20);
    node.pending_writes.set_log_free_bytes(u64::MAX, u64::MAX, false);
    let at = node.connect();
    declare(&mut node, at, "q", true, &[]);
    store(&mut node);
    publish(&mut node, at, "q", PERSISTENT, "x").unwrap();
    let first = get(&mut node, at, "q").expect("it is delivered before it is written");
    let batch = begin_commit(&mut node);
    let connection = node.broker.connect_own("bridge", "/").expect("there is capacity");
    let link = node.open(At { connection, channel: at.channel }, 1);
    node.consume(link, "q");
    node.settle(at, first.tag, false, Settlement::Requeue);
    assert_eq!(node.turn(link), 0, "the commit can still be lost");
    node.pending_writes.stored(&mut node.messages, batch);
    store(&mut node);
    node.broker.queues_mut().note_durable(&node.pending_writes);
    assert_eq!(node.turns(link), 1, "it is durable");
}
