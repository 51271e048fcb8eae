//! Connections of the broker itself: the local end of a bridge.

use leveret_amqp::Properties;
use leveret_core::command::{Command, Outbox, Outcome, Refusal};
use leveret_core::limits::Limits;
use leveret_core::mem::{MessageFlags, Share};

use crate::support::{At, TestBroker};

/// Arguments of a quorum queue that drops messages returned more than twice.
const DELIVERY_LIMIT: &[u8] = b"\x0cx-queue-typeS\0\0\0\x06quorum\x10x-delivery-limitb\x02";

/// Lost uplinks must not count against the messages that wait for them.
#[test]
fn repeated_link_failures_count_against_no_message() {
    let mut house = TestBroker::new(64);
    let at = house.connect();
    let (passive, durable, exclusive, auto_delete) = (false, true, false, false);
    let arguments = DELIVERY_LIMIT;
    let declare = Command::QueueDeclare { queue: "q", passive, durable, exclusive, auto_delete, arguments };
    house.done(at, declare);
    house.publish(at, "q", 3);
    for _ in 0..5 {
        let connection = house.broker.connect_own("bridge", "/").expect("there is room");
        let link = house.open(At { connection, channel: at.channel }, 1);
        house.consume(link, "q");
        assert_eq!(house.turn(link), 3);
        house.broker.release(&mut context!(house), connection);
        house.turns(at);
        assert_eq!(house.ready(at, "q"), 3);
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
        let mut house = TestBroker::with(&Limits { connections_max: 16, ..Limits::default() });
        let at = house.connect();
        house.declare(at, "q", false);
        house.declare(at, "parked", false);
        let id = house.messages.begin("", b"q", Share::Ordinary).expect("there is room");
        let headers = secret_headers(filler_len);
        let kept = house.messages.reserve_content(id, &headers, MessageFlags::NONE, 0, Share::Ordinary);
        kept.expect("there is room");
        house.messages.finish(id);
        assert_eq!(house.ask(at, Command::Publish { message: id, mandatory: false }), Outcome::Published);
        let connection = house.broker.connect_own("bridge", "/").expect("there is room");
        let link = house.open(At { connection, channel: at.channel }, 1);
        house.consume(link, "q");
        assert_eq!(house.turn(link), 1);
        let words = ("plant", "parked");
        let is_parked =
            house.broker.park_delivery(&mut context!(house), (link.channel, 1), words, Refusal::Nacked);
        is_parked.expect("there is such a queue");
        house.turns(at);
        house.consume(at, "parked");
        house.broker.deliver(&mut context!(house), 8);
        let outbox = house.broker.outbox(at.connection);
        let message = outbox.peek().expect("it is delivered").message;
        let mut scratch = vec![0; frame_max as usize];
        let properties = Properties::trusted(house.messages.properties(message, &mut scratch));
        let headers = properties.headers().expect("there are headers");
        let has = |name| headers.get(name).is_some();
        assert_eq!((has("BCC"), has("a"), has("x-parked-cause")), (false, true, has_cause));
        assert_eq!(properties.expiration(), None, "it stays until an operator handles it");
    }
}
