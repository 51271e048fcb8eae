//! Crossing frames of a bridge: a confirm after a refusal, an answer to a superseded request, a close that
//! meets a close, and partial writes.
//!
//! # Invariants
//! - A late frame neither ends a link nor wakes a waiting rule.
//! - No frame is written into another one.

use leveret_amqp::{Method, Table};
use leveret_config::bridge::{Bridge, Destination, RefusedAction, Rule};
use leveret_core::time::Now;

use super::bridge::{Far, Heard, ack, ask, bodies, bridge, fill, open, simulation};
use super::bridge_day::open_fetch;
use leveret_test_support::simulated_server::{
    Publish, Shape, Simulation, content_frames, delete, small_limits,
};

fn rule(queue: &str, refused: RefusedAction) -> Rule {
    let to = Destination::Queue(format!("{queue}.moved"));
    Rule { queue: queue.into(), to, refused, is_urgent: queue == "alarms" }
}

/// A bridge with two rules that wait when refused, one of them urgent.
fn waiting() -> Bridge {
    let forward = vec![rule("here", RefusedAction::Wait), rule("alarms", RefusedAction::Wait)];
    Bridge { forward, heartbeat_s: 0, ..bridge() }
}

fn fetching() -> Bridge {
    let fetch = vec![rule("far", RefusedAction::Park)];
    Bridge { forward: Vec::new(), fetch, window: 2, heartbeat_s: 0, ..bridge() }
}

const fn nack(delivery_tag: u64, multiple: bool) -> Method<'static> {
    Method::BasicNack { delivery_tag, multiple, requeue: false }
}

/// Advances the clock, and runs this many rounds at that time.
fn jump(simulation: &mut Simulation, ms: u64, rounds: u32) {
    simulation.now = Now::from_ms(simulation.now.as_ms() + ms);
    for _ in 0..rounds {
        simulation.round();
    }
}

/// Confirms everything published on the first channel, but nacks bodies that begin with 0. Returns how often
/// such a body was sent.
fn refuse_the_first(simulation: &mut Simulation, far: &mut Far) -> u32 {
    let mut sent = 0;
    let came = far.published_on();
    let before = far.counts.get(&1).copied().unwrap_or(0) - came.len() as u64;
    for (number, (_, body, _)) in (before + 1..).zip(&came) {
        match body[0] {
            0 => {
                sent += 1;
                far.say(1, &nack(number, false));
            }
            _ => far.say(1, &ack(number, false)),
        }
    }
    simulation.run();
    sent
}

/// Delivers a message that is too large for any local queue.
fn deliver_too_large(simulation: &mut Simulation, far: &Far, delivery_tag: u64) {
    far.say(1, &delivery(delivery_tag));
    let body = vec![7; small_limits().message_size_max as usize + 1];
    for part in content_frames(1, &[0, 0], &body, 100_000).chunks(30_000) {
        far.say_bytes(part);
        simulation.run();
    }
}

const fn delivery(delivery_tag: u64) -> Method<'static> {
    let (consumer_tag, redelivered, exchange, routing_key) = ("bridge-0", false, "", b"k");
    Method::BasicDeliver { consumer_tag, delivery_tag, redelivered, exchange, routing_key }
}

// ---- writes

/// The socket is reported writable but accepts nothing. The partly written frame must still be continued
/// first.
#[test]
fn a_write_that_accepts_nothing_never_interleaves_frames() {
    let (mut simulation, mut far) = simulation(waiting());
    open(&mut simulation, &mut far);
    let client = simulation.open(&[1]);
    far.line.borrow_mut().shape.down_room = 5_000;
    simulation.publish_to(client, 1, "here", &vec![7; 100_000]);
    simulation.run();
    simulation.publish_to(client, 1, "alarms", &[100]);
    simulation.run();
    far.line.borrow_mut().tell_again();
    simulation.run();
    far.line.borrow_mut().shape.down_room = Shape::WIDE.down_room;
    far.answer(&mut simulation);
    simulation.run();
    let came = far.published_on();
    assert!(came.iter().any(|(on, body, _)| (*on, &body[..]) == (2, &[100][..])), "{came:?}");
    let large = came.iter().find(|(on, ..)| *on == 1).expect("the large one comes");
    assert_eq!(large.1, vec![7; 100_000]);
}

/// Sends one message per rule without a confirm, and then the part of another one that the line accepts.
fn begun_behind_a_late_confirm(down_room: usize) -> (Simulation, Far) {
    let (mut simulation, mut far) = simulation(waiting());
    open(&mut simulation, &mut far);
    let client = simulation.open(&[1]);
    simulation.publish_to(client, 1, "here", &[1]);
    simulation.publish_to(client, 1, "alarms", &[2]);
    simulation.run();
    far.published();
    far.line.borrow_mut().shape.down_room = down_room;
    simulation.publish_to(client, 1, "here", &vec![7; 100_000]);
    simulation.run();
    (simulation, far)
}

/// The confirms of a rule are late while a message is between two frames. The message is completed first.
#[test]
fn no_channel_is_closed_in_the_middle_of_a_content() {
    // With one of these sizes the message stops between two frames.
    for room in 4_096 + 40..4_096 + 240 {
        let (mut simulation, mut far) = begun_behind_a_late_confirm(room);
        simulation.pass_ms(30_000);
        far.say(2, &ack(1, false));
        simulation.run();
        jump(&mut simulation, 30_500, 20);
        far.line.borrow_mut().shape.down_room = Shape::WIDE.down_room;
        far.line.borrow_mut().offer_space();
        simulation.run();
        let mut left = 0;
        for (_, heard) in far.take().into_iter().filter(|(on, _)| *on == 1) {
            match heard {
                Heard::Header(_, len) => left = usize::try_from(len).expect("it is short"),
                Heard::Body(octets) => left -= octets.len(),
                Heard::Method(name, _) => assert_eq!(left, 0, "{room}: {name} within a body"),
                Heard::Heartbeat => {}
            }
        }
        assert_eq!(left, 0, "{room}: the body ends");
    }
}

/// While the line accepts nothing after a partial frame, the bridge has nothing to do.
#[test]
fn a_rule_with_late_confirms_does_not_keep_the_loop_awake() {
    let (mut simulation, far) = begun_behind_a_late_confirm(6_000);
    simulation.pass_ms(30_000);
    far.say(2, &ack(1, false));
    simulation.pass_ms(29_000);
    let before = simulation.turns;
    jump(&mut simulation, 1_500, 1_000);
    assert!(simulation.turns - before < 100, "{} turns at one instant", simulation.turns - before);
}

/// A rule may write a limited share of a page. It ends within a message, between two messages, or after the
/// last.
#[test]
fn a_rule_continues_after_its_share_of_a_page() {
    for (len, has_other) in
        [(200, false), (200, true), (1_000, false), (1_000, true), (2_000, true), (3_900, true)]
    {
        let config = Bridge { window: 256, ..waiting() };
        let (mut simulation, mut far) = simulation(config);
        let client = simulation.open(&[1]);
        for _ in 0..256 {
            simulation.publish_to(client, 1, "here", &vec![7; len]);
        }
        if has_other {
            simulation.publish_to(client, 1, "alarms", &[8]);
        }
        simulation.run();
        open(&mut simulation, &mut far);
        simulation.pass_ms(5_000);
        let count = far.published_on().iter().filter(|(on, ..)| *on == 1).count();
        assert_eq!(count, 256, "of {len} octets, another rule: {has_other}");
    }
}

// ---- confirms after a refusal

/// Messages sent before the refusal are confirmed after it. That says nothing about the refused message.
#[test]
fn a_refusal_backs_off_although_other_messages_are_confirmed() {
    let (mut simulation, mut far) = simulation(waiting());
    open(&mut simulation, &mut far);
    fill(&mut simulation, 100);
    // No time passes.
    let sent: u32 = (0..200).map(|_| refuse_the_first(&mut simulation, &mut far)).sum();
    assert_eq!(sent, 1, "no time has passed");
}

#[test]
fn a_message_that_is_always_refused_is_parked_although_others_are_confirmed() {
    let (mut simulation, mut far) =
        simulation(Bridge { forward: vec![rule("here", RefusedAction::Park)], ..waiting() });
    open(&mut simulation, &mut far);
    let client = fill(&mut simulation, 200);
    let mut sent = 0;
    for _ in 0..600 {
        far.answer(&mut simulation);
        sent += refuse_the_first(&mut simulation, &mut far);
        simulation.pass_ms(100);
    }
    assert_eq!(simulation.counts(client, 1, "parked"), (1, 0));
    // Five refusals in a row, and the one that parks the message.
    assert_eq!(sent, 6);
}

/// A local queue is deleted while a message is unconfirmed. The confirm comes at once, or when the rule
/// retries.
#[test]
fn a_deleted_local_queue_is_declared_again_whenever_the_last_confirm_comes() {
    for late_ms in [0, 5_000] {
        let (mut simulation, mut far) = simulation(waiting());
        open(&mut simulation, &mut far);
        let client = fill(&mut simulation, 1);
        far.published();
        simulation.ask(client, 1, &delete("here"));
        simulation.run();
        simulation.pass_ms(late_ms);
        far.say(1, &ack(1, false));
        simulation.run();
        far.pass_ms(&mut simulation, 600_000);
        assert_eq!(simulation.counts(client, 1, "here"), (0, 1), "made and consumed, {late_ms} ms");
    }
}

/// A queue is deleted or purged while one of its messages is partly written.
#[test]
fn a_partly_sent_message_of_a_deleted_or_purged_queue_is_completed() {
    for (cut, is_deleted) in
        [1, 60, 200, 4_300, 5_000, 40_000].into_iter().flat_map(|cut| [(cut, true), (cut, false)])
    {
        let (mut simulation, mut far) = simulation(waiting());
        open(&mut simulation, &mut far);
        let client = simulation.open(&[1]);
        far.line.borrow_mut().shape.down_room = cut;
        simulation.publish_to(client, 1, "here", &vec![7; 100_000]);
        simulation.publish_to(client, 1, "here", &[9]);
        simulation.run();
        match is_deleted {
            true => simulation.ask(client, 1, &delete("here")),
            false => simulation.ask(client, 1, &Method::QueuePurge { queue: "here", no_wait: false }),
        };
        simulation.publish_to(client, 1, "alarms", &[100]);
        simulation.run();
        far.line.borrow_mut().shape.down_room = Shape::WIDE.down_room;
        far.answer(&mut simulation);
        simulation.run();
        let came = far.published_on();
        assert!(came.iter().any(|(on, body, _)| (*on, &body[..]) == (2, &[100][..])), "{cut}: {came:?}");
        assert_eq!(simulation.engine.platform_mut().dialed, 1);
        far.confirm_all(&mut simulation);
        far.pass_ms(&mut simulation, 20_000);
        simulation.publish_to(client, 1, "here", &[3]);
        simulation.run();
        far.answer(&mut simulation);
        assert!(
            bodies(&far.published()).contains(&3),
            "{cut}: the rule goes on, with the new queue if need be"
        );
        far.confirm_all(&mut simulation);
        ask(&mut simulation, "POST /api/ctl/bridges/plant/pause");
        assert_eq!(far.answer(&mut simulation).last(), Some(&(0, "connection.close")), "{cut}");
        simulation.pass_ms(3_000);
        let gauges = simulation.engine.broker().gauges();
        assert_eq!((gauges.connections, gauges.deliveries, gauges.consumers), (1, 0, 0), "{cut}");
    }
}

// ---- closes and answers

/// The upstream closes a channel that is being closed, and also answers that close, as RabbitMQ does.
#[test]
fn crossing_closes_of_a_channel_do_not_end_the_link() {
    for has_tried in [false, true] {
        let (mut simulation, mut far) = simulation(waiting());
        open(&mut simulation, &mut far);
        fill(&mut simulation, 4);
        far.published();
        far.say(1, &nack(4, true));
        simulation.run();
        assert_eq!(far.names_on(), [(1, "channel.close")]);
        let (reply_code, reply_text, class_id, method_id) = (404, "NOT_FOUND", 60, 40);
        far.say(1, &Method::ChannelClose { reply_code, reply_text, class_id, method_id });
        if has_tried {
            simulation.pass_ms(1_100);
        }
        far.say(1, &Method::ChannelCloseOk {});
        simulation.run();
        assert!(far.line.borrow().is_held, "{}", ask(&mut simulation, "GET /api/ctl/bridges"));
        let mut asked = far.names_on();
        asked.extend(far.pass_ms(&mut simulation, 5_000));
        assert_eq!(asked[..2], [(1, "channel.close-ok"), (1, "channel.open")], "it is tried again");
    }
}

/// A consumer that is being restarted is cancelled after the upstream has answered `basic.qos`. It is not started again.
#[test]
fn a_consumer_that_is_being_restarted_is_cancelled() {
    let (mut simulation, mut far) = simulation(fetching());
    assert_eq!(open_fetch(&mut simulation, &mut far), 1);
    deliver_too_large(&mut simulation, &far, 1);
    assert!(far.names().contains(&"basic.qos"), "the consumer is restarted with a larger prefetch");
    ask(&mut simulation, "POST /api/ctl/bridges/plant/pause");
    assert!(far.names().is_empty());
    far.say(1, &Method::BasicQosOk {});
    simulation.run();
    assert_eq!(far.names(), ["basic.cancel"]);
    let shown = ask(&mut simulation, "GET /api/ctl/bridges");
    assert!(far.line.borrow().is_held && !shown.contains("unexpected"), "{shown}");
}

/// The new consumer receives its full prefetch, even while deliveries of the old one are not durable yet.
#[test]
fn a_restarted_consumer_receives_its_full_prefetch() {
    let (mut simulation, mut far) = simulation(fetching());
    simulation.keep_on_disk(leveret_storage::Settings::default());
    simulation.run();
    assert_eq!(open_fetch(&mut simulation, &mut far), 1);
    deliver_too_large(&mut simulation, &far, 1);
    far.answer(&mut simulation);
    let ahead = far.ahead.last().expect("it was asked for").0;
    assert_eq!(ahead, 3);
    simulation.engine.platform_mut().helpers.slowness_ms = 5_000;
    for tag in 2..2 + u64::from(ahead) {
        far.say(1, &delivery(tag));
        far.say_bytes(&content_frames(1, &[0x10, 0, 2], &[7; 10], 100_000));
    }
    simulation.run();
    assert!(far.line.borrow().is_held, "{}", ask(&mut simulation, "GET /api/ctl/bridges"));
}

/// A consumer that the upstream cancels right after its start is not a success.
#[test]
fn an_upstream_queue_that_cancels_its_consumer_is_retried_with_back_off() {
    let (mut simulation, mut far) = simulation(Bridge { reconnect_max_ms: 300_000, ..fetching() });
    assert_eq!(open_fetch(&mut simulation, &mut far), 1);
    let mut tries = 0;
    let cancel = Method::BasicCancel { consumer_tag: "bridge-0", no_wait: true };
    far.say(1, &cancel);
    for _ in 0..3_000 {
        simulation.pass_ms(100);
        if far.answer(&mut simulation).contains(&(1, "basic.consume")) {
            tries += 1;
            far.say(1, &cancel);
        }
    }
    assert!((4..40).contains(&tries), "{tries} times in five minutes");
}

// ---- message ids

/// The message id contains the offset of the message in its queue. So the offset is stored first, per
/// priority.
///
/// Otherwise a power cut that loses the message would give its offset, and thus its id, to another message.
#[test]
fn no_message_id_is_sent_before_its_offset_is_durable() {
    for arguments in [&[][..], b"\x0ex-max-priorityb\x03"] {
        let config =
            Bridge { forward: vec![rule("ranked", RefusedAction::Park)], heartbeat_s: 0, ..bridge() };
        let (mut simulation, mut far) = simulation(config);
        simulation.keep_on_disk(leveret_storage::Settings::default());
        simulation.run();
        let client = simulation.open(&[1]);
        // The bridge declared the queue without arguments.
        simulation.ask(client, 1, &delete("ranked"));
        let (passive, durable, exclusive, auto_delete, no_wait) = (false, true, false, false, false);
        let (queue, arguments) = ("ranked", Table::trusted(arguments));
        let declare =
            Method::QueueDeclare { queue, passive, durable, exclusive, auto_delete, no_wait, arguments };
        simulation.ask(client, 1, &declare);
        open(&mut simulation, &mut far);
        simulation.engine.platform_mut().helpers.slowness_ms = 5_000;
        let ranked = Publish { key: "ranked", properties: &[0x18, 0, 2, 2], ..Publish::default() };
        simulation.publish(client, 1, ranked, &[7]);
        simulation.run();
        assert!(far.published().is_empty(), "the offset is not durable yet");
        simulation.pass_ms(20_000);
        assert_eq!(bodies(&far.published()), [7]);
    }
}

/// A message that a local client requeued before its commit has no id yet when the bridge takes it.
#[test]
fn no_message_id_of_a_requeued_message_is_sent_before_its_offset_is_durable() {
    let config = Bridge { forward: vec![rule("q", RefusedAction::Park)], heartbeat_s: 0, ..bridge() };
    let (mut simulation, mut far) = simulation(config);
    simulation.keep_on_disk(leveret_storage::Settings::default());
    simulation.run();
    let client = simulation.open(&[1]);
    simulation.ask(client, 1, &delete("q"));
    let (passive, durable, exclusive, auto_delete, no_wait) = (false, true, false, false, false);
    let (queue, arguments) = ("q", Table::EMPTY);
    simulation.ask(
        client,
        1,
        &Method::QueueDeclare { queue, passive, durable, exclusive, auto_delete, no_wait, arguments },
    );
    simulation.pass_ms(10_000);
    simulation.engine.platform_mut().helpers.slowness_ms = 60_000;
    simulation.publish(
        client,
        1,
        Publish { key: "q", properties: &[0x10, 0, 2], ..Publish::default() },
        &[7],
    );
    let got = simulation.ask(client, 1, &Method::BasicGet { queue: "q", no_ack: false });
    let Method::BasicGetOk { delivery_tag, .. } = got.method() else { panic!("{}", got.shown()) };
    simulation.send(client, 1, &Method::BasicReject { delivery_tag, requeue: true });
    open(&mut simulation, &mut far);
    simulation.run();
    assert!(far.published().is_empty(), "the offset is not durable yet");
    simulation.pass_ms(200_000);
    assert_eq!(bodies(&far.published()), [7]);
}

/// The answer to `basic.qos` of a restarted consumer comes behind the messages that are on their way, which take longer
/// than 30 s.
#[test]
fn a_consumer_is_restarted_behind_messages_on_a_slow_line() {
    let (mut simulation, mut far) = simulation(Bridge { window: 100, ..fetching() });
    assert_eq!(open_fetch(&mut simulation, &mut far), 1);
    deliver_too_large(&mut simulation, &far, 1);
    for tag in 2..42 {
        far.say(1, &delivery(tag));
        far.say_bytes(&content_frames(1, &[0x10, 0, 2], &[7; 10], 100_000));
        simulation.pass_ms(1_000);
    }
    far.say(1, &Method::BasicQosOk {});
    simulation.run();
    assert!(far.line.borrow().is_held, "{}", ask(&mut simulation, "GET /api/ctl/bridges"));
}
