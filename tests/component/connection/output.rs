//! The output of an open connection and its order: replies, confirms and deliveries.

use leveret_amqp::Method;
use leveret_connection::Suspension;
use leveret_core::error::{Fault, ReplyCode};
use leveret_test_support::single_connection::*;

#[test]
fn a_return_comes_before_its_confirm_and_others_do_not_wait_for_it() {
    let mut environment = Environment::new(small_limits());
    let mut host = open_channels(&mut environment, &[1, 2]);
    let mut script = select(1);
    script.extend(select(2));
    host.run(&mut environment, &script);
    host.said();
    let mut script = publish(1, "k", b"first");
    script.extend(publish_in(1, "return", true, b"nobody", 4));
    script.extend(publish(2, "k", b"other"));
    host.feed(&mut environment, &script);
    host.flush(&mut environment);
    let said = host.said();
    let returned = said.iter().position(|line| line.contains("BasicReturn")).unwrap();
    assert_eq!(said[returned + 1..][..2], ["1 header 6", "1 body 6"]);
    assert_eq!(said[..returned], [ack(1, 1, false), ack(2, 1, false)], "they wait for nothing");
    assert_eq!(said[returned + 3..], [ack(1, 2, false)]);
    host.end(&mut environment);
}

#[test]
fn confirms_and_the_fault_behind_them_keep_their_order() {
    let mut environment = Environment::new(small_limits());
    let mut host = open_channels(&mut environment, &[1]);
    let mut script = select(1);
    script.extend(publish(1, "k", b"x"));
    script.extend(publish(1, "refuse", b"x"));
    script.extend(publish(1, "missing", b"x"));
    host.feed(&mut environment, &script);
    host.flush(&mut environment);
    let nack = format!("1 {:?}", Method::BasicNack { delivery_tag: 2, multiple: false, requeue: false });
    assert_eq!(
        host.said(),
        [
            "1 ConfirmSelectOk".to_string(),
            ack(1, 1, false),
            nack,
            channel_close(1, 404, "NOT_FOUND - no exchange 'missing' in vhost '/'", (60, 40)),
        ]
    );
    host.end(&mut environment);
    let mut host = open_channels(&mut environment, &[1]);
    let mut script = select(1);
    script.extend(publish(1, "k", b"x"));
    script.extend(client_closes(1));
    script.extend(open_channel(1));
    script.extend(select(1));
    script.extend(publish(1, "k", b"x"));
    script.extend(method(
        0,
        &Method::ConnectionClose { reply_code: 200, reply_text: "", class_id: 0, method_id: 0 },
    ));
    host.feed(&mut environment, &script);
    host.flush(&mut environment);
    assert_eq!(
        host.said(),
        [
            "1 ConfirmSelectOk".to_string(),
            ack(1, 1, false),
            "1 ChannelCloseOk".to_string(),
            "1 ChannelOpenOk".to_string(),
            "1 ConfirmSelectOk".to_string(),
            ack(1, 1, false),
            "0 ConnectionCloseOk".to_string(),
        ]
    );
    host.end(&mut environment);
}

#[test]
fn a_peer_that_does_not_read_replies_is_not_read_either() {
    let mut environment = Environment::new(small_limits());
    let mut host = open_channels(&mut environment, &[1]);
    let one = method(1, &declare("queue"));
    let mut suspended = None;
    for _ in 0..10_000 {
        let script = if suspended.is_some() { &[][..] } else { &one[..] };
        suspended = host.feed(&mut environment, script);
        host.flush_once(&mut environment, |_| 0);
    }
    assert_eq!(suspended, Some(Suspension::ReplySpace));
    assert!(host.rules.log.len() < 40, "{}", host.rules.log.len());
    assert!(environment.pools.reply_bytes_used() <= 4096);
    // A publish needs no reply, but space for an error about it; so some space is left.
    let begun = host.rules.log.len();
    host.run(&mut environment, &one.repeat(10_000));
    assert_eq!(host.rules.log.len(), begun + 10_001);
    assert_eq!(host.said().len(), begun + 10_001);
    host.end(&mut environment);
}

#[test]
fn cancels_and_operator_closes_find_output_space() {
    let mut environment = Environment::new(small_limits());
    let mut host = open_channels(&mut environment, &[1]);
    host.feed(&mut environment, &method(1, &declare(&"q".repeat(255))).repeat(20));
    let mut told = 0;
    while host.connection.server_cancel(&mut environment.context(), 1, &"c".repeat(255), 0) {
        told += 1;
        assert!(told < 20);
    }
    let mut script = publish(1, "missing", b"x");
    script.extend(b"rubbish");
    host.feed(&mut environment, &script);
    let fault = Fault::new(ReplyCode::ConnectionForced, format_args!("{}", "x".repeat(255)));
    host.connection.close(&mut environment.context(), &fault);
    host.flush(&mut environment);
    assert!(host.said().last().unwrap().contains("CONNECTION_FORCED"));
    host.end(&mut environment);
}

#[test]
fn cancels_and_blocks_are_sent_to_clients_with_the_capability() {
    let mut environment = Environment::new(small_limits());
    let mut host = open_channels(&mut environment, &[1]);
    assert!(host.connection.server_cancel(&mut environment.context(), 1, "tag", 0));
    assert!(host.connection.server_cancel(&mut environment.context(), 9, "tag", 0), "a channel that is gone");
    host.connection.block(environment.now, false);
    host.flush(&mut environment);
    assert_eq!(host.said(), [format!("1 {:?}", Method::BasicCancel { consumer_tag: "tag", no_wait: true })]);
    host.run(&mut environment, &publish(1, "k", b"now it is concerned"));
    host.flush(&mut environment);
    for (is_for_disk, reason) in [(false, "low on memory"), (true, "low on disk")] {
        // The client is told that the block has ended only if this lasts. It is not told about the changes
        // before.
        for blocked in [true, true, false, true, false, true, false] {
            match blocked {
                true => host.connection.block(environment.now, is_for_disk),
                false => host.connection.unblock(environment.now),
            }
            host.later(&mut environment, 60);
            host.flush(&mut environment);
        }
        assert_eq!(host.said(), [format!("0 {:?}", Method::ConnectionBlocked { reason })]);
        host.later(&mut environment, 60);
        host.flush(&mut environment);
        host.flush(&mut environment);
        assert_eq!(host.said(), [format!("0 {:?}", Method::ConnectionUnblocked {})]);
    }
    host.end(&mut environment);

    let mut host = open_with(&mut environment, 0, &[]);
    host.run(&mut environment, &open_channel(1));
    host.run(&mut environment, &publish(1, "k", b"x"));
    host.said();
    host.connection.block(environment.now, false);
    host.later(&mut environment, 100);
    assert!(host.connection.server_cancel(&mut environment.context(), 1, "tag", 0));
    assert!(!host.connection.has_output());
    host.flush(&mut environment);
    assert!(host.said().is_empty());
    host.end(&mut environment);
}

#[test]
fn a_reply_follows_the_deliveries_it_must_follow_and_goes_between_the_frames_of_others() {
    let mut environment = Environment::new(small_limits());
    let mut host = open_channels(&mut environment, &[1, 2]);
    let large = message(&mut environment, &vec![5; 300_000]);
    let small = message(&mut environment, b"small");
    host.rules.put(1, Kind::Deliver, large);
    host.rules.put(2, Kind::Deliver, small);
    host.out_bytes = 150_000;
    // The first page contains the header, one body frame and a part of the second.
    host.flush_once(&mut environment, |filled| filled);
    assert!(host.connection.has_remainder() && host.connection.has_begun_delivery());
    host.feed(&mut environment, &select(2)); // behind the delivery on channel 2
    host.flush(&mut environment);
    let said = host.said();
    assert_eq!(said[1..5], ["1 header 300000", "1 body 131064", "1 body 131064", "1 body 37872"]);
    assert!(said[5].starts_with("2 BasicDeliver"), "{said:?}");
    assert_eq!(said[6..], ["2 header 5", "2 body 5", "2 ConfirmSelectOk"]);

    let large = message(&mut environment, &vec![5; 300_000]);
    host.rules.put(1, Kind::Deliver, large);
    host.flush_once(&mut environment, |filled| filled);
    host.feed(&mut environment, &select(2)); // nothing waits on channel 2
    host.feed(&mut environment, &select(1)); // never inside a content of its own channel
    host.flush(&mut environment);
    assert_eq!(
        host.said()[1..],
        [
            "1 header 300000",
            "1 body 131064",
            "1 body 131064",
            "2 ConfirmSelectOk",
            "1 body 37872",
            "1 ConfirmSelectOk",
        ]
    );
    host.end(&mut environment);
}

#[test]
fn deliveries_to_a_closed_channel_are_not_written() {
    let mut environment = Environment::new(small_limits());
    let mut host = open_channels(&mut environment, &[1, 2]);
    for channel in [1, 1, 2] {
        let id = message(&mut environment, b"late");
        host.rules.put(channel, Kind::Deliver, id);
    }
    // After the broker's own close nothing follows, not even what is first in the outbox.
    host.feed(&mut environment, &method(1, &Method::BasicGet { queue: "", no_ack: true }));
    assert_eq!(host.rules.outbox.len(), 2);
    host.flush(&mut environment);
    let said = host.said();
    assert_eq!(said[0], channel_close(1, 404, "NOT_FOUND - no previously declared queue", (60, 70)));
    assert!(said[1].starts_with("2 BasicDeliver") && said.len() == 4, "{said:?}");
    assert!(host.rules.outbox.is_empty());
    host.end(&mut environment);
}

#[test]
fn deliveries_to_a_closed_channel_are_not_written_after_its_close_ok_either() {
    let mut environment = Environment::new(small_limits());
    let mut host = open_channels(&mut environment, &[1, 2]);
    host.feed(&mut environment, &method(1, &Method::BasicGet { queue: "", no_ack: true }));
    host.flush(&mut environment);
    host.said();
    // The broker had queued it before the close, and leaves it at the front.
    let (late, other) = (message(&mut environment, b"late"), message(&mut environment, b"other"));
    host.rules.put(1, Kind::Deliver, late);
    host.rules.outbox[0].is_withdrawn = true;
    host.rules.put(2, Kind::Deliver, other);
    host.feed(&mut environment, &method(1, &Method::ChannelCloseOk {}));
    host.flush(&mut environment);
    let said = host.said();
    assert!(said[0].starts_with("2 BasicDeliver") && said.len() == 3, "{said:?}");
    assert!(host.rules.outbox.is_empty());
    host.end(&mut environment);
}

#[test]
fn a_connection_that_closes_finishes_the_frame_it_was_in() {
    let mut environment = Environment::new(small_limits());
    let mut host = open_channels(&mut environment, &[1, 2]);
    let large = message(&mut environment, &vec![5; 300_000]);
    host.rules.put(1, Kind::Deliver, large);
    host.flush_once(&mut environment, |_| 20_000);
    let mut script = select(1); // nobody can read its reply any more
    script.extend(select(2));
    script.extend(frame(8, 1, b""));
    host.feed(&mut environment, &script);
    assert!(!host.connection.may_leave_broker(), "a frame is begun");
    host.flush_once(&mut environment, |filled| filled / 2);
    host.flush(&mut environment);
    assert!(host.connection.may_leave_broker());
    assert_eq!(
        host.said()[1..],
        [
            "1 header 300000".to_string(),
            "1 body 131064".to_string(),
            "2 ConfirmSelectOk".to_string(),
            close(505, "UNEXPECTED_FRAME - type 8, all octets = <<>>", (0, 0)),
        ]
    );
    host.end(&mut environment);
}
