//! Connections of this broker's own: the local end of a bridge.

use crate::support::{At, TestBroker};
use leveret::command::Command;

/// Of a quorum queue that gives up what came back more than twice.
const DELIVERY_LIMIT: &[u8] = b"\x0cx-queue-typeS\0\0\0\x06quorum\x10x-delivery-limitb\x02";

/// A flapping uplink is no fault of the messages that wait for it.
#[test]
fn a_link_that_breaks_again_and_again_counts_against_no_message() {
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
