//! What crosses on a bridge's line: a confirm that comes behind a refusal, an answer behind a change of mind, a close
//! that meets a close, and writes that take less than was there.
//!
//! Always true: what comes late ends no link, wakes no rule that waits, and no frame stands inside another's.

use leveret_amqp::{Method, Table};
use leveret_config::bridge::{Bridge, Destination, Refused, Rule};
use leveret_core::time::Now;

use super::bridge::{Far, Heard, ack, ask, bodies, bridge, fill, open, world};
use super::bridge_day::open_fetch;
use super::world::{Publish, Shape, World, content_frames, delete, small_limits};

fn rule(queue: &str, refused: Refused) -> Rule {
    let to = Destination::Queue(format!("{queue}.moved"));
    Rule { queue: queue.into(), to, refused, is_urgent: queue == "alarms" }
}

/// A rule that waits, and an urgent one.
fn waiting() -> Bridge {
    let forward = vec![rule("here", Refused::Wait), rule("alarms", Refused::Wait)];
    Bridge { forward, heartbeat_s: 0, ..bridge() }
}

fn fetching() -> Bridge {
    let fetch = vec![rule("far", Refused::Park)];
    Bridge { forward: Vec::new(), fetch, window: 2, heartbeat_s: 0, ..bridge() }
}

const fn nack(delivery_tag: u64, multiple: bool) -> Method<'static> {
    Method::BasicNack { delivery_tag, multiple, requeue: false }
}

/// Time jumps, and so many rounds at that instant follow.
fn jump(world: &mut World, ms: u64, rounds: u32) {
    world.now = Now::from_ms(world.now.as_ms() + ms);
    for _ in 0..rounds {
        world.round();
    }
}

/// All that is sent on the first channel is confirmed, but what begins with 0, which is nacked; how often that was
/// sent.
fn refuse_the_first(world: &mut World, far: &mut Far) -> u32 {
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
    world.run();
    sent
}

/// A message that no queue here takes, for its size.
fn deliver_too_large(world: &mut World, far: &Far, delivery_tag: u64) {
    far.say(1, &delivery(delivery_tag));
    let body = vec![7; small_limits().message_size_max as usize + 1];
    for part in content_frames(1, &[0, 0], &body, 100_000).chunks(30_000) {
        far.say_bytes(part);
        world.run();
    }
}

const fn delivery(delivery_tag: u64) -> Method<'static> {
    let (consumer_tag, redelivered, exchange, routing_key) = ("bridge-0", false, "", b"k");
    Method::BasicDeliver { consumer_tag, delivery_tag, redelivered, exchange, routing_key }
}

// ---- writes

/// The socket is said to be writable and takes nothing: the frame that was cut is still the one to go on with.
#[test]
fn a_write_that_takes_nothing_lets_no_frame_into_another() {
    let (mut world, mut far) = world(waiting());
    open(&mut world, &mut far);
    let client = world.open(&[1]);
    far.line.borrow_mut().shape.down_room = 5_000;
    world.publish_to(client, 1, "here", &vec![7; 100_000]);
    world.run();
    world.publish_to(client, 1, "alarms", &[100]);
    world.run();
    far.line.borrow_mut().tell_again();
    world.run();
    far.line.borrow_mut().shape.down_room = Shape::WIDE.down_room;
    far.answer(&mut world);
    world.run();
    let came = far.published_on();
    assert!(came.iter().any(|(on, body, _)| (*on, &body[..]) == (2, &[100][..])), "{came:?}");
    let large = came.iter().find(|(on, ..)| *on == 1).expect("the large one comes");
    assert_eq!(large.1, vec![7; 100_000]);
}

/// A message of each rule is sent and not confirmed, and of the next one as much as the line has room for.
fn begun_behind_a_late_confirm(down_room: usize) -> (World, Far) {
    let (mut world, mut far) = world(waiting());
    open(&mut world, &mut far);
    let client = world.open(&[1]);
    world.publish_to(client, 1, "here", &[1]);
    world.publish_to(client, 1, "alarms", &[2]);
    world.run();
    far.published();
    far.line.borrow_mut().shape.down_room = down_room;
    world.publish_to(client, 1, "here", &vec![7; 100_000]);
    world.run();
    (world, far)
}

/// A rule whose confirms are late is given up between two frames of a message: that goes on to its end first.
#[test]
fn no_channel_is_closed_in_the_middle_of_a_content() {
    // With one of these the message stops between two frames.
    for room in 4_096 + 40..4_096 + 240 {
        let (mut world, mut far) = begun_behind_a_late_confirm(room);
        world.pass_ms(30_000);
        far.say(2, &ack(1, false));
        world.run();
        jump(&mut world, 30_500, 20);
        far.line.borrow_mut().shape.down_room = Shape::WIDE.down_room;
        far.line.borrow_mut().offer_space();
        world.run();
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

/// While a frame is cut on a line that takes no more, a bridge has nothing to do until it does.
#[test]
fn a_rule_that_is_given_up_keeps_the_loop_from_no_sleep() {
    let (mut world, far) = begun_behind_a_late_confirm(6_000);
    world.pass_ms(30_000);
    far.say(2, &ack(1, false));
    world.pass_ms(29_000);
    let before = world.turns;
    jump(&mut world, 1_500, 1_000);
    assert!(world.turns - before < 100, "{} turns at one instant", world.turns - before);
}

/// The share of a page that a rule has ends in the middle of a message, or between two, or after the last.
#[test]
fn a_rule_that_had_its_share_goes_on_by_itself() {
    for (len, has_other) in
        [(200, false), (200, true), (1_000, false), (1_000, true), (2_000, true), (3_900, true)]
    {
        let config = Bridge { window: 256, ..waiting() };
        let (mut world, mut far) = world(config);
        let client = world.open(&[1]);
        for _ in 0..256 {
            world.publish_to(client, 1, "here", &vec![7; len]);
        }
        if has_other {
            world.publish_to(client, 1, "alarms", &[8]);
        }
        world.run();
        open(&mut world, &mut far);
        world.pass_ms(5_000);
        let count = far.published_on().iter().filter(|(on, ..)| *on == 1).count();
        assert_eq!(count, 256, "of {len} octets, another rule: {has_other}");
    }
}

// ---- confirms behind a refusal

/// Messages that went before the refusal are confirmed behind it, which says nothing of the refused one.
#[test]
fn a_refusal_backs_off_though_others_are_taken() {
    let (mut world, mut far) = world(waiting());
    open(&mut world, &mut far);
    fill(&mut world, 100);
    // No time passes.
    let sent: u32 = (0..200).map(|_| refuse_the_first(&mut world, &mut far)).sum();
    assert_eq!(sent, 1, "no time has passed");
}

#[test]
fn what_is_never_taken_is_parked_though_others_are_taken() {
    let (mut world, mut far) = world(Bridge { forward: vec![rule("here", Refused::Park)], ..waiting() });
    open(&mut world, &mut far);
    let client = fill(&mut world, 200);
    let mut sent = 0;
    for _ in 0..600 {
        far.answer(&mut world);
        sent += refuse_the_first(&mut world, &mut far);
        world.pass_ms(100);
    }
    assert_eq!(world.counts(client, 1, "parked"), (1, 0));
    // Five refusals in a row, and the one that parks it.
    assert_eq!(sent, 6);
}

/// A queue is deleted here while a message is under way, whose confirm comes at once, or when the rule tries again.
#[test]
fn a_queue_that_was_deleted_here_is_made_anew_whenever_the_last_confirm_comes() {
    for late_ms in [0, 5_000] {
        let (mut world, mut far) = world(waiting());
        open(&mut world, &mut far);
        let client = fill(&mut world, 1);
        far.published();
        world.ask(client, 1, &delete("here"));
        world.run();
        world.pass_ms(late_ms);
        far.say(1, &ack(1, false));
        world.run();
        far.pass_ms(&mut world, 600_000);
        assert_eq!(world.counts(client, 1, "here"), (0, 1), "made and consumed, {late_ms} ms");
    }
}

/// A queue is deleted or purged while a message of it is on the wire in part.
#[test]
fn half_a_message_of_a_queue_that_is_gone_goes_to_its_end() {
    for (cut, is_deleted) in
        [1, 60, 200, 4_300, 5_000, 40_000].into_iter().flat_map(|cut| [(cut, true), (cut, false)])
    {
        let (mut world, mut far) = world(waiting());
        open(&mut world, &mut far);
        let client = world.open(&[1]);
        far.line.borrow_mut().shape.down_room = cut;
        world.publish_to(client, 1, "here", &vec![7; 100_000]);
        world.publish_to(client, 1, "here", &[9]);
        world.run();
        match is_deleted {
            true => world.ask(client, 1, &delete("here")),
            false => world.ask(client, 1, &Method::QueuePurge { queue: "here", no_wait: false }),
        };
        world.publish_to(client, 1, "alarms", &[100]);
        world.run();
        far.line.borrow_mut().shape.down_room = Shape::WIDE.down_room;
        far.answer(&mut world);
        world.run();
        let came = far.published_on();
        assert!(came.iter().any(|(on, body, _)| (*on, &body[..]) == (2, &[100][..])), "{cut}: {came:?}");
        assert_eq!(world.engine.platform_mut().dialed, 1);
        far.confirm_all(&mut world);
        far.pass_ms(&mut world, 20_000);
        world.publish_to(client, 1, "here", &[3]);
        world.run();
        far.answer(&mut world);
        assert!(
            bodies(&far.published()).contains(&3),
            "{cut}: the rule goes on, with the new queue if need be"
        );
        far.confirm_all(&mut world);
        ask(&mut world, "POST /api/ctl/bridges/plant/pause");
        assert_eq!(far.answer(&mut world).last(), Some(&(0, "connection.close")), "{cut}");
        world.pass_ms(3_000);
        let gauges = world.engine.broker().gauges();
        assert_eq!((gauges.connections, gauges.deliveries, gauges.consumers), (1, 0, 0), "{cut}");
    }
}

// ---- closes and answers

/// The upstream closes a channel that is being closed, and answers that as well, as RabbitMQ does.
#[test]
fn closes_that_cross_cost_no_link() {
    for has_tried in [false, true] {
        let (mut world, mut far) = world(waiting());
        open(&mut world, &mut far);
        fill(&mut world, 4);
        far.published();
        far.say(1, &nack(4, true));
        world.run();
        assert_eq!(far.names_on(), [(1, "channel.close")]);
        let (reply_code, reply_text, class_id, method_id) = (404, "NOT_FOUND", 60, 40);
        far.say(1, &Method::ChannelClose { reply_code, reply_text, class_id, method_id });
        if has_tried {
            world.pass_ms(1_100);
        }
        far.say(1, &Method::ChannelCloseOk {});
        world.run();
        assert!(far.line.borrow().is_held, "{}", ask(&mut world, "GET /api/ctl/bridges"));
        let mut asked = far.names_on();
        asked.extend(far.pass_ms(&mut world, 5_000));
        assert_eq!(asked[..2], [(1, "channel.close-ok"), (1, "channel.open")], "it is tried again");
    }
}

/// A consumer that begins again is to end before the upstream has answered the first of that.
#[test]
fn what_a_consumer_began_anew_is_answered_behind_its_end() {
    let (mut world, mut far) = world(fetching());
    assert_eq!(open_fetch(&mut world, &mut far), 1);
    deliver_too_large(&mut world, &far, 1);
    assert!(far.names().contains(&"basic.qos"), "it begins again with one more");
    ask(&mut world, "POST /api/ctl/bridges/plant/pause");
    assert_eq!(far.names(), ["basic.cancel"]);
    far.say(1, &Method::BasicQosOk {});
    world.run();
    let shown = ask(&mut world, "GET /api/ctl/bridges");
    assert!(far.line.borrow().is_held && !shown.contains("no place"), "{shown}");
}

/// The new consumer has all that it asked for, whatever the one before had and is not durable here.
#[test]
fn a_consumer_that_begins_again_may_send_all_that_it_is_asked_for() {
    let (mut world, mut far) = world(fetching());
    world.keep_on_disk(leveret_storage::Settings::default());
    world.run();
    assert_eq!(open_fetch(&mut world, &mut far), 1);
    deliver_too_large(&mut world, &far, 1);
    far.answer(&mut world);
    let ahead = far.ahead.last().expect("it was asked for").0;
    assert_eq!(ahead, 3);
    world.engine.platform_mut().helpers.slowness_ms = 5_000;
    for tag in 2..2 + u64::from(ahead) {
        far.say(1, &delivery(tag));
        far.say_bytes(&content_frames(1, &[0x10, 0, 2], &[7; 10], 100_000));
    }
    world.run();
    assert!(far.line.borrow().is_held, "{}", ask(&mut world, "GET /api/ctl/bridges"));
}

/// A consumer that the upstream ends as soon as it has begun is no success.
#[test]
fn a_queue_there_that_keeps_no_consumer_is_tried_ever_more_rarely() {
    let (mut world, mut far) = world(Bridge { reconnect_max_ms: 300_000, ..fetching() });
    assert_eq!(open_fetch(&mut world, &mut far), 1);
    let mut tries = 0;
    let cancel = Method::BasicCancel { consumer_tag: "bridge-0", no_wait: true };
    far.say(1, &cancel);
    for _ in 0..3_000 {
        world.pass_ms(100);
        if far.answer(&mut world).contains(&(1, "basic.consume")) {
            tries += 1;
            far.say(1, &cancel);
        }
    }
    assert!((4..40).contains(&tries), "{tries} times in five minutes");
}

// ---- names

/// What is sent is known by its place at the other end, so the place is written down first, of each priority: a power
/// cut that took the message would give the place, and with it the name, to another.
#[test]
fn no_place_is_named_before_the_disk_knows_of_it() {
    for arguments in [&[][..], b"\x0ex-max-priorityb\x03"] {
        let config = Bridge { forward: vec![rule("ranked", Refused::Park)], heartbeat_s: 0, ..bridge() };
        let (mut world, mut far) = world(config);
        world.keep_on_disk(leveret_storage::Settings::default());
        world.run();
        let client = world.open(&[1]);
        // It was made without arguments.
        world.ask(client, 1, &delete("ranked"));
        let (passive, durable, exclusive, auto_delete, no_wait) = (false, true, false, false, false);
        let (queue, arguments) = ("ranked", Table::trusted(arguments));
        let declare =
            Method::QueueDeclare { queue, passive, durable, exclusive, auto_delete, no_wait, arguments };
        world.ask(client, 1, &declare);
        open(&mut world, &mut far);
        world.engine.platform_mut().helpers.slowness_ms = 5_000;
        let ranked = Publish { key: "ranked", properties: &[0x18, 0, 2, 2], ..Publish::default() };
        world.publish(client, 1, ranked, &[7]);
        world.run();
        assert!(far.published().is_empty(), "nobody knows of it but memory");
        world.pass_ms(20_000);
        assert_eq!(bodies(&far.published()), [7]);
    }
}

/// What somebody here had and gave back before its commit was made has no name either, when the bridge comes for it.
#[test]
fn no_place_of_what_came_back_is_named_before_the_disk_knows_of_it() {
    let config = Bridge { forward: vec![rule("q", Refused::Park)], heartbeat_s: 0, ..bridge() };
    let (mut world, mut far) = world(config);
    world.keep_on_disk(leveret_storage::Settings::default());
    world.run();
    let client = world.open(&[1]);
    world.ask(client, 1, &delete("q"));
    let (passive, durable, exclusive, auto_delete, no_wait) = (false, true, false, false, false);
    let (queue, arguments) = ("q", Table::EMPTY);
    world.ask(
        client,
        1,
        &Method::QueueDeclare { queue, passive, durable, exclusive, auto_delete, no_wait, arguments },
    );
    world.pass_ms(10_000);
    world.engine.platform_mut().helpers.slowness_ms = 60_000;
    world.publish(client, 1, Publish { key: "q", properties: &[0x10, 0, 2], ..Publish::default() }, &[7]);
    let got = world.ask(client, 1, &Method::BasicGet { queue: "q", no_ack: false });
    let Method::BasicGetOk { delivery_tag, .. } = got.method() else { panic!("{}", got.shown()) };
    world.send(client, 1, &Method::BasicReject { delivery_tag, requeue: true });
    open(&mut world, &mut far);
    world.run();
    assert!(far.published().is_empty(), "nobody knows of it but memory");
    world.pass_ms(200_000);
    assert_eq!(bodies(&far.published()), [7]);
}
