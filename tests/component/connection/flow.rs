//! An open connection: channels, contents, replies, confirms and deliveries, each in its order.

use leveret_amqp::{Method, Table};
use leveret_connection::{Suspension, Timeout};
use leveret_core::batch::Batch;
use leveret_core::limits::Limits;
use leveret_core::mem::{PoolFull, Share};
use leveret_test_support::single_connection::*;

#[test]
fn an_empty_queue_name_is_the_one_declared_last_and_line_ends_vanish() {
    let mut environment = Environment::new(small_limits());
    let mut host = open_channels(&mut environment, &[1, 2]);
    let bind = |queue, exchange, routing_key| Method::QueueBind {
        queue,
        exchange,
        routing_key,
        no_wait: true,
        arguments: Table::EMPTY,
    };
    host.run(&mut environment, &method(1, &declare("a\r\nb")));
    host.run(&mut environment, &method(1, &bind("", "x\n", "")));
    host.run(&mut environment, &method(1, &bind("", "x", "key")));
    host.run(&mut environment, &method(1, &bind("q", "x", "")));
    host.run(&mut environment, &method(1, &declare("")));
    host.run(&mut environment, &method(1, &Method::QueuePurge { queue: "", no_wait: false }));
    assert_eq!(
        host.rules.log,
        [
            "Some(1) QueueDeclare { queue: \"ab\", passive: false, durable: false, exclusive: false, \
             auto_delete: false, arguments: [] }",
            "Some(1) QueueBind { queue: \"ab\", exchange: \"x\", routing_key: \"ab\", arguments: [] }",
            "Some(1) QueueBind { queue: \"ab\", exchange: \"x\", routing_key: \"key\", arguments: [] }",
            "Some(1) QueueBind { queue: \"q\", exchange: \"x\", routing_key: \"\", arguments: [] }",
            "Some(1) QueueDeclare { queue: \"\", passive: false, durable: false, exclusive: false, \
             auto_delete: false, arguments: [] }",
            "Some(1) QueuePurge { queue: \"amq.gen-1\" }",
        ]
    );
    let said = host.said();
    assert_eq!(said.len(), 3, "no_wait says nothing: {said:?}");
    assert!(said[1].contains("amq.gen-1"));
    // The other channel has declared nothing.
    host.run(&mut environment, &get(2));
    assert_eq!(host.said(), ["2 BasicGetEmpty"]);
    host.run(&mut environment, &method(2, &Method::BasicGet { queue: "", no_ack: true }));
    assert_eq!(host.said(), [channel_close(2, 404, "NOT_FOUND - no previously declared queue", (60, 70))]);
    assert_eq!(host.rules.log.last().unwrap(), "Some(2) CloseChannel");
    host.end(&mut environment);
}

#[test]
fn contents_interleave_over_channels_and_an_empty_one_needs_no_body() {
    let mut environment = Environment::new(small_limits());
    let mut host = open_channels(&mut environment, &[1, 2, 3]);
    let first = publish_in(1, "a", true, &[1; 100], 30);
    let second = publish_in(2, "b", false, &[2; 50], 50);
    // Split at frame ends: after the header, and after the first body frame.
    let piece = HEAD + 30 + 8;
    let mut script = first[..HEAD].to_vec();
    script.extend(&second[..METHOD]);
    script.extend(&first[HEAD..piece]);
    script.extend(publish(3, "c", b""));
    script.extend(&second[METHOD..]);
    script.extend(&first[piece..]);
    host.run(&mut environment, &script);
    let keys: Vec<&str> = host.rules.log.iter().map(|line| line.split(' ').nth(2).unwrap()).collect();
    assert_eq!(keys, ["x/c", "x/b", "x/a"]);
    assert!(host.rules.log[2].contains("true"), "mandatory: {:?}", host.rules.log);
    host.end(&mut environment);
}

#[test]
fn the_properties_that_matter_are_flagged() {
    let mut environment = Environment::new(small_limits());
    let mut host = open_channels(&mut environment, &[1]);
    let cases: [(&[u8], &str); 6] = [
        (&[0, 0], "MessageFlags(0)"),
        (&[0x10, 0, 2], "MessageFlags(1)"),
        (&[0x10, 0, 1], "MessageFlags(0)"),
        (&[0x20, 0, 0, 0, 0, 0], "MessageFlags(2)"),
        (&[0x01, 0, 1, b'5'], "MessageFlags(2)"),
        (&[0x12, 0, 2, 1, b'r'], "MessageFlags(3)"),
    ];
    for (properties, flags) in cases {
        let publish =
            Method::BasicPublish { exchange: "", routing_key: b"k", mandatory: false, immediate: false };
        let mut script = method(1, &publish);
        script.extend(header(1, 0, properties));
        host.run(&mut environment, &script);
        assert!(host.rules.log.last().unwrap().contains(flags), "{:?} {flags}", host.rules.log);
    }
    host.end(&mut environment);
}

#[test]
fn a_message_that_is_too_large_ends_its_channel_and_is_read_over() {
    let mut environment = Environment::new(small_limits());
    let mut host = open_channels(&mut environment, &[1, 2]);
    let size = (1 << 20) + 1;
    let mut script = publish_in(1, "k", false, &vec![0; size], 100_000);
    script.extend(publish(2, "k", b"others go on"));
    for piece in script.chunks(70_000) {
        host.run(&mut environment, piece);
    }
    let text = "PRECONDITION_FAILED - message size 1048577 is larger than configured max size 1048576 \
        (message_size_max in this broker's configuration)";
    assert_eq!(host.said(), [channel_close(1, 406, text, (60, 40))]);
    assert_eq!(host.rules.log.len(), 2, "{:?}", host.rules.log);
    host.run(&mut environment, &method(1, &Method::ChannelCloseOk {}));
    assert_eq!((environment.messages.messages_used(), environment.pools.channels_used()), (0, 1));
    host.end(&mut environment);
}

#[test]
fn a_client_may_agree_to_the_close_in_the_middle_of_the_refused_content() {
    let mut environment = Environment::new(small_limits());
    let mut host = open_channels(&mut environment, &[1]);
    let size = (1 << 20) + 1;
    let script = publish_in(1, "k", false, &vec![0; size], 100_000);
    let piece = HEAD + 100_008;
    host.run(&mut environment, &script[..piece]);
    assert_eq!(host.said().len(), 1);
    host.run(&mut environment, &method(1, &Method::ChannelCloseOk {}));
    host.run(&mut environment, &script[piece..]);
    assert!(host.said().is_empty());
    assert_eq!(environment.pools.channels_used(), 0);
    host.run(&mut environment, &open_channel(1));
    host.said();
    // The content may also end there for good.
    host.run(&mut environment, &script[..piece]);
    let mut again = method(1, &Method::ChannelCloseOk {});
    again.extend(open_channel(1));
    again.extend(publish(1, "k", b"fresh"));
    host.run(&mut environment, &again);
    assert_eq!(host.said()[1..], ["1 ChannelOpenOk"]);
    assert!(host.rules.log.last().unwrap().starts_with("1 publish x/k"));
    host.end(&mut environment);
}

#[test]
fn immediate_is_refused_when_the_message_is_complete() {
    let mut environment = Environment::new(small_limits());
    let mut host = open_channels(&mut environment, &[1]);
    let publish = Method::BasicPublish { exchange: "", routing_key: b"k", mandatory: false, immediate: true };
    let mut script = method(1, &publish);
    script.extend(header(1, 1, &[0, 0]));
    host.run(&mut environment, &script);
    assert!(host.said().is_empty());
    host.run(&mut environment, &frame(3, 1, b"x"));
    assert_eq!(host.said(), [close(540, "NOT_IMPLEMENTED - immediate=true", (60, 40))]);
    host.end(&mut environment);
}

#[test]
fn a_first_content_waits_for_memory_and_a_second_one_is_refused() {
    let mut environment = Environment::new(Limits { messages_max: 64, ..small_limits() });
    let mut host = open_channels(&mut environment, &[1, 2]);
    let mut held = Vec::new();
    while let Ok(id) = environment.messages.begin("", b"q", Share::Ordinary) {
        held.push(id);
    }
    // No content is incomplete: the publish stays in the input.
    let script = publish(1, "k", b"body");
    assert_eq!(host.feed(&mut environment, &script), Some(Suspension::ContentRoom(PoolFull::Messages)));
    assert_eq!(host.stash, script);
    assert_eq!(host.connection.deadline().ms_left(environment.now), None, "our delay is not the peer's");
    environment.messages.release(held.pop().unwrap());
    for id in held.drain(20..) {
        environment.messages.release(id);
    }
    assert!(environment.messages.lift_hold());
    assert_eq!(host.feed(&mut environment, b""), None);
    assert_eq!(host.rules.log.len(), 1);
    // One content is incomplete: the next one may not wait for it.
    assert_eq!(host.feed(&mut environment, &publish(1, "k", b"body")[..30]), None);
    while let Ok(id) = environment.messages.begin("", b"q", Share::Ordinary) {
        held.push(id);
    }
    host.run(&mut environment, &[]);
    assert_eq!(host.feed(&mut environment, b""), None);
    let rest = publish(1, "k", b"body")[30..].to_vec();
    let header_end = HEAD - 30;
    host.run(&mut environment, &rest[..header_end]);
    host.run(&mut environment, &publish(2, "k", b"x"));
    let text = "RESOURCE_ERROR - no memory for another message while this connection holds others: acknowledge earlier, or raise \
         memory_limit";
    assert_eq!(host.said(), [channel_close(2, 506, text, (60, 40))]);
    host.run(&mut environment, &rest[header_end..]);
    assert_eq!(host.rules.log.last().unwrap().split(' ').nth(2), Some("x/k"), "{:?}", host.rules.log);
    for id in held {
        environment.messages.release(id);
    }
    host.end(&mut environment);
}

#[test]
fn a_client_that_may_use_the_reserve_never_waits() {
    let mut environment = Environment::new(Limits { messages_max: 64, ..small_limits() });
    let mut host = open_channels(&mut environment, &[1]);
    let mut held = Vec::new();
    while let Ok(id) = environment.messages.begin("", b"q", Share::Reserve) {
        held.push(id);
    }
    environment.share = Share::Reserve;
    host.run(&mut environment, &publish(1, "k", b"body"));
    assert!(host.said()[0].contains("RESOURCE_ERROR"));
    for id in held {
        environment.messages.release(id);
    }
    host.end(&mut environment);
}

#[test]
fn half_sent_bodies_fill_their_share_and_no_more() {
    let mut environment = Environment::new(Limits { assembly_bytes_max: 1_200_000, ..small_limits() });
    let half = |channel, size: u64| {
        let mut script = publish(channel, "k", b"")[..METHOD].to_vec();
        script.extend(header(channel, size, &[0, 0]));
        script
    };
    let mut one = open_channels(&mut environment, &[1]);
    one.run(&mut environment, &half(1, 700_000));
    let mut other = Host::with_id(&environment, leveret_core::command::ConnectionId::from_index(1));
    other.run(&mut environment, &handshake(&CAPABLE, b"\0guest\0guest", 131_072, 0));
    other.run(&mut environment, &open_channel(1));
    other.run(&mut environment, &open_channel(2));
    other.said();
    // A first content waits for memory that others hold.
    assert_eq!(
        other.feed(&mut environment, &half(1, 700_000)),
        Some(Suspension::ContentRoom(PoolFull::Assembly))
    );
    one.connection.teardown(&mut environment.context());
    assert_eq!(other.feed(&mut environment, b""), None);
    // A second one must not wait.
    other.run(&mut environment, &half(2, 700_000));
    assert!(other.said()[0].contains("raise memory_limit"));
    assert_eq!(environment.messages.messages_used(), 1);
    other.end(&mut environment);
}

#[test]
fn a_publish_without_capacity_is_retried() {
    let mut environment = Environment::new(small_limits());
    let mut host = open_channels(&mut environment, &[1]);
    host.rules.is_full = true;
    let mut script = select(1);
    script.extend(publish(1, "wait", b"body"));
    script.extend(publish(1, "k", b"next"));
    assert_eq!(host.feed(&mut environment, &script), Some(Suspension::ContentRoom(PoolFull::Messages)));
    assert_eq!(host.feed(&mut environment, b""), Some(Suspension::ContentRoom(PoolFull::Messages)));
    assert_eq!(host.rules.log, ["Some(1) ConfirmSelect"]);
    host.rules.is_full = false;
    host.run(&mut environment, b"");
    assert_eq!(host.said(), ["1 ConfirmSelectOk".to_string(), ack(1, 2, true)]);
    // A publish that waits when the connection ends is freed.
    host.rules.is_full = true;
    host.feed(&mut environment, &publish(1, "wait", b"body"));
    assert_eq!(environment.messages.messages_used(), 1);
    host.end(&mut environment);
}

#[test]
fn contents_without_progress_are_closed_while_slow_ones_continue() {
    let mut environment = Environment::new(small_limits());
    let mut host = open_channels(&mut environment, &[1, 2]);
    host.run(&mut environment, &publish(1, "k", b"body")[..HEAD]);
    let start = environment.now.as_ms();
    // The other channel is active all the time.
    while environment.now.as_ms() < start + 29_000 {
        environment.now = leveret_core::time::Now::from_ms(environment.now.as_ms() + 1000);
        host.run(&mut environment, &publish(2, "k", b"busy"));
        assert_eq!(host.timeout(&mut environment), Timeout::GoOn);
    }
    assert!(host.said().is_empty());
    while environment.now.as_ms() < start + 30_000 {
        host.pass_time(&mut environment);
    }
    host.flush(&mut environment);
    let text = "RESOURCE_ERROR - a message or frame was begun and did not go on for 30000 ms";
    assert_eq!(host.said(), [close(506, text, (0, 0))]);
    host.end(&mut environment);
    // A slowly progressing content is not closed.
    let mut host = open_channels(&mut environment, &[1]);
    for octet in publish(1, "k", &[1; 100]) {
        host.run(&mut environment, &[octet]);
        environment.now = leveret_core::time::Now::from_ms(environment.now.as_ms() + 1_000);
        assert_eq!(host.timeout(&mut environment), Timeout::GoOn);
    }
    assert_eq!(host.rules.log.len(), 1);
    assert_eq!(host.connection.deadline().ms_left(environment.now), None);
    host.end(&mut environment);
}

#[test]
fn an_invalid_end_of_a_body_closes_the_connection_and_stops_reading() {
    let mut environment = Environment::new(small_limits());
    let mut host = open_channels(&mut environment, &[1]);
    let mut script = publish(1, "k", b"body");
    *script.last_mut().unwrap() = 0;
    script.extend(open_channel(2));
    host.run(&mut environment, &script);
    let said = host.said();
    assert!(said.len() == 1 && said[0].contains("invalid_frame_end_marker,0"), "{said:?}");
    host.run(&mut environment, &[1; 1000]);
    assert!(host.stash.is_empty());
    assert_eq!(host.pass_time(&mut environment), Timeout::Close);
    host.end(&mut environment);
}

#[test]
fn records_are_small() {
    let bytes = size_of::<leveret_connection::Connection>();
    assert!(bytes <= 512, "{bytes}");
    assert!(leveret_connection::Pools::channel_record_bytes() <= 536);
}

#[test]
fn a_confirm_waits_for_the_disk_and_those_behind_it_wait_with_it() {
    let mut environment = Environment::new(small_limits());
    let mut host = open_channels(&mut environment, &[1]);
    host.run(&mut environment, &select(1));
    host.said();
    for (batch, body) in [(1, b"kept"), (0, b"held"), (2, b"more")] {
        host.rules.batch = Batch::numbered(batch);
        host.run(&mut environment, &publish(1, "none", body));
    }
    assert!(host.said().is_empty(), "nothing is durable yet");
    assert!(!host.connection.has_output(), "there is nothing to write, so the loop can sleep");
    for (durable, confirm) in [(1, ack(1, 2, true)), (2, ack(1, 3, false))] {
        environment.durable = Batch::numbered(durable);
        host.connection.note_durable(&mut environment.context());
        host.flush(&mut environment);
        assert_eq!(host.said(), [confirm]);
    }
    assert!(!host.connection.awaits_disk());
}

#[test]
fn a_channel_that_closes_confirms_nothing_that_is_not_durable() {
    let mut environment = Environment::new(small_limits());
    let mut host = open_channels(&mut environment, &[1]);
    host.run(&mut environment, &select(1));
    host.said();
    host.rules.batch = Batch::numbered(1);
    host.run(&mut environment, &publish(1, "none", b"kept"));
    host.run(&mut environment, &client_closes(1));
    assert_eq!(host.said(), ["1 ChannelCloseOk"]);
    assert!(!host.connection.awaits_disk());
}

/// The broker may close a channel at any time for what its client failed to do; the others continue.
#[test]
fn a_channel_closed_by_the_broker_drops_only_its_incomplete_content() {
    let mut environment = Environment::new(small_limits());
    let mut host = open_channels(&mut environment, &[1, 2]);
    let content = publish(1, "k", &[7; 3000]);
    host.run(&mut environment, &content[..1000]);
    assert_eq!(environment.messages.messages_used(), 1);
    assert!(host.close_channel(&mut environment, 1, "too late"));
    assert_eq!(environment.messages.messages_used(), 0);
    assert!(host.close_channel(&mut environment, 1, "again"), "it is closed already");
    host.run(&mut environment, &content[1000..]);
    host.run(&mut environment, &method(2, &declare("q")));
    host.run(&mut environment, &method(1, &Method::ChannelCloseOk {}));
    let ok = Method::QueueDeclareOk { queue: "q", message_count: 7, consumer_count: 3 };
    let late = channel_close(1, 406, "PRECONDITION_FAILED - too late", (0, 0));
    assert_eq!(host.said(), [late, format!("2 {ok:?}")]);
    assert_eq!(host.rules.log[0], "Some(1) CloseChannel");
    host.end(&mut environment);
}

#[test]
fn a_channel_closed_by_the_broker_drops_its_waiting_publish() {
    let mut environment = Environment::new(small_limits());
    let mut host = open_channels(&mut environment, &[1, 2]);
    host.rules.is_full = true;
    assert_eq!(
        host.feed(&mut environment, &publish(1, "wait", b"x")),
        Some(Suspension::ContentRoom(PoolFull::Messages))
    );
    assert!(host.close_channel(&mut environment, 1, "too late"));
    host.rules.is_full = false;
    host.run(&mut environment, &method(2, &Method::BasicRecover { requeue: true }));
    let late = channel_close(1, 406, "PRECONDITION_FAILED - too late", (0, 0));
    assert_eq!(host.said(), [late, format!("2 {:?}", Method::BasicRecoverOk {})]);
    assert_eq!(host.rules.log, ["Some(1) CloseChannel", "Some(2) Recover"]);
    host.end(&mut environment);
}
