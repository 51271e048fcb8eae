//! Rules of a bridge that wait: what is refused is tried again alone and ever more rarely, and others go on.

use leveret::config::bridge::{Bridge, Destination, Refused, Rule};
use leveret::wire::{Method, Table, Writer};

use super::bridge::{Far, ack, ask, bodies, bridge, fill, open, world};
use super::bridge_day::{deliver, open_fetch, open_fetch_until};
use super::world::{World, content_frames, delete};

fn rule(queue: &str, refused: Refused) -> Rule {
    let to = Destination::Queue(format!("{queue}.moved"));
    Rule { queue: queue.into(), to, refused, is_urgent: false }
}

/// A rule that waits, and another.
fn waiting() -> Bridge {
    let forward = vec![rule("here", Refused::Wait), rule("alarms", Refused::Wait)];
    Bridge { forward, heartbeat_s: 0, ..bridge() }
}

/// A queue that takes nothing.
fn declare_full(world: &mut World, client: usize, queue: &str) {
    let mut bytes = vec![0; 128];
    let mut writer = Writer::new(&mut bytes);
    let written = writer.table(|table| {
        table.int("x-max-length", 0).and_then(|()| table.text("x-overflow", "reject-publish"))
    });
    written.expect("there is room");
    let (durable, passive, exclusive, auto_delete, no_wait) = (true, false, false, false, false);
    let arguments = Table::trusted(&writer.written()[4..]);
    let declare =
        Method::QueueDeclare { queue, passive, durable, exclusive, auto_delete, no_wait, arguments };
    world.ask(client, 1, &declare);
}

const fn nack(delivery_tag: u64, multiple: bool) -> Method<'static> {
    Method::BasicNack { delivery_tag, multiple, requeue: false }
}

/// What is tried over so long, all of it refused; `number` counts what was ever sent.
pub(super) fn refuse(world: &mut World, far: &mut Far, number: &mut u64, span_ms: u64) -> Vec<u8> {
    let mut tried = Vec::new();
    for _ in 0..span_ms / 100 {
        world.pass_ms(100);
        let came = bodies(&far.published());
        if !came.is_empty() {
            *number += came.len() as u64;
            far.say(1, &nack(*number, true));
            world.run();
        }
        if !far.line.borrow().is_held {
            far.heard.clear();
            world.pass_ms(1_100);
            open(world, far);
            *number = 0;
        }
        tried.extend(came);
    }
    tried
}

#[test]
fn one_message_at_a_time_is_tried_ever_more_rarely_until_all_go_on_in_order() {
    let (mut world, mut far) = world(waiting());
    open(&mut world, &mut far);
    let client = fill(&mut world, 10);
    assert_eq!(bodies(&far.published()), [0, 1, 2, 3]);
    far.say(1, &nack(4, true));
    world.run();
    assert!(far.line.borrow().is_held, "the link stays, for others need it");
    assert_eq!(world.counts(client, 1, "here"), (10, 0), "all are back, and nobody takes them");
    assert!(far.published().is_empty(), "what was given out to it is not sent");
    let mut number = 4;
    let tried = refuse(&mut world, &mut far, &mut number, 60_000);
    assert!(tried.iter().all(|body| *body == 0), "the first is tried, and no other: {tried:?}");
    assert!((8..=40).contains(&tried.len()), "{} times in a minute, with pauses of 8 s at most", tried.len());
    for _ in 0..90 {
        world.pass_ms(100);
        let came = bodies(&far.published());
        if !came.is_empty() {
            assert_eq!(came, [0]);
            break;
        }
    }
    number += 1;
    far.say(1, &ack(number, false));
    world.run();
    let mut moved = vec![0];
    loop {
        let came = bodies(&far.published());
        if came.is_empty() {
            break;
        }
        moved.extend(came);
        far.say(1, &ack(0, true));
        world.run();
    }
    assert_eq!(moved, (0..10).collect::<Vec<u8>>());
    assert_eq!(world.counts(client, 1, "here"), (0, 1));
    let links = world.engine.platform.dialed;
    assert!((2..=4).contains(&links), "of eight nacks one makes the link anew: {links}");
}

#[test]
fn another_rule_goes_on_as_if_nothing_were() {
    let (mut world, mut far) = world(waiting());
    open(&mut world, &mut far);
    let client = fill(&mut world, 8);
    far.published();
    far.say(1, &nack(4, true));
    world.run();
    let mut number = 4;
    for round in 0..20 {
        world.publish_to(client, 1, "alarms", &[100 + round]);
        world.run();
        let came = bodies(&far.published());
        assert!(came.contains(&(100 + round)), "it is sent at once: {came:?}");
        let first = number + 1;
        number += came.len() as u64;
        // Whatever else came is refused, the alarm is taken.
        for (tag, body) in (first..).zip(&came) {
            far.say(1, &if *body >= 100 { ack(tag, false) } else { nack(tag, false) });
        }
        world.run();
        if !far.line.borrow().is_held {
            far.heard.clear();
            world.pass_ms(1_100);
            open(&mut world, &mut far);
            number = 0;
        }
        let tried = came.iter().filter(|body| **body < 100).count();
        assert!(tried <= 1, "of the other rule one message is tried at most: {came:?}");
        world.pass_ms(300);
    }
    assert_eq!(world.counts(client, 1, "alarms"), (0, 1), "each was settled");
    assert!(world.engine.platform.dialed <= 3, "of eight nacks one makes the link anew");
}

#[test]
fn a_channel_that_is_closed_over_it_costs_the_others_new_links_and_no_long_wait() {
    let (mut world, mut far) = world(Bridge { window: 1, ..waiting() });
    open(&mut world, &mut far);
    let client = fill(&mut world, 2);
    world.publish_to(client, 1, "alarms", &[100]);
    world.run();
    let mut rounds = 0;
    // The pauses of the rule grow, those of the link do not.
    while bodies(&far.published()) != [100] {
        far.say(1, &Method::ChannelClose { reply_code: 404, reply_text: "no", class_id: 60, method_id: 40 });
        world.run();
        far.heard.clear();
        world.pass_ms(1_100);
        open(&mut world, &mut far);
        rounds += 1;
        assert!(rounds < 8, "the first message of the rule is tried on each link");
    }
    assert!(rounds > 0, "it was refused at least once");
    far.say(1, &ack(1, false));
    world.run();
    assert_eq!(world.counts(client, 1, "alarms"), (0, 1));
}

#[test]
fn a_link_that_is_lost_meanwhile_sends_no_more_than_one() {
    let (mut world, mut far) = world(waiting());
    open(&mut world, &mut far);
    fill(&mut world, 10);
    far.published();
    far.say(1, &nack(4, true));
    world.run();
    far.line.borrow_mut().lose();
    world.run();
    far.heard.clear();
    world.pass_ms(9_000);
    open(&mut world, &mut far);
    assert_eq!(bodies(&far.published()), [0], "it tries after its pause, with one");
}

#[test]
fn an_operator_sees_that_a_rule_waits_and_why_and_has_it_try_at_once() {
    let (mut world, mut far) = world(Bridge { reconnect_max_ms: 300_000, ..waiting() });
    open(&mut world, &mut far);
    fill(&mut world, 10);
    far.published();
    let mut number = 4;
    far.say(1, &nack(number, true));
    world.run();
    // By now a pause may be minutes long.
    refuse(&mut world, &mut far, &mut number, 600_000);
    for order in ["resume", "retry"] {
        let shown = ask(&mut world, "GET /api/ctl/bridges");
        assert!(shown.contains("\"held_rules\":1"), "{shown}");
        assert!(
            shown.contains("the first message of here: refused by the upstream (basic.nack); it waits"),
            "{shown}"
        );
        ask(&mut world, &format!("POST /api/ctl/bridges/plant/{order}"));
        assert_eq!(bodies(&far.published()), [0], "{order}: it tries at once, with one message");
        number += 1;
        far.say(1, &nack(number, false));
        world.run();
        assert!(far.published().is_empty(), "and waits again");
    }
}

/// RabbitMQ nacks what comes while a quorum queue has no leader, or is full: that says little of the message.
/// And a channel that was opened meanwhile may nack for ever.
#[test]
fn what_is_nacked_is_tried_again_alone_and_on_another_link_before_it_is_set_aside() {
    let config = Bridge { forward: vec![rule("here", Refused::Park)], ..waiting() };
    let (mut world, mut far) = world(config);
    open(&mut world, &mut far);
    let client = fill(&mut world, 6);
    assert_eq!(bodies(&far.published()), [0, 1, 2, 3]);
    far.say(1, &nack(4, true));
    world.run();
    assert_eq!(world.counts(client, 1, "parked").0, 0, "the upstream is in trouble, not a message");
    let (mut number, mut tried) = (4, 0);
    let rest = loop {
        world.pass_ms(100);
        match &*bodies(&far.published()) {
            [] => {}
            [0] => {
                (number, tried) = (number + 1, tried + 1);
                far.say(1, &nack(number, false));
                world.run();
                if tried == 1 {
                    far.heard.clear();
                    world.pass_ms(1_100);
                    open(&mut world, &mut far);
                    number = 0;
                }
            }
            others => break others.to_vec(),
        }
    };
    assert_eq!((tried, &*rest), (5, &[1, 2, 3, 4][..]), "one that nothing helps is in nobody's way");
    far.say(1, &ack(number + 4, true));
    world.run();
    assert_eq!(bodies(&far.published()), [5]);
    far.say(1, &ack(number + 5, true));
    world.run();
    assert_eq!((world.counts(client, 1, "parked").0, world.counts(client, 1, "here").0), (1, 0));
    assert_eq!(world.engine.platform.dialed, 2, "the link was made anew once");
}

#[test]
fn what_cannot_be_set_aside_waits_alone() {
    let config =
        Bridge { forward: vec![rule("here", Refused::Park), rule("alarms", Refused::Park)], ..waiting() };
    let (mut world, mut far) = world(config);
    let client = world.open(&[1]);
    world.ask(client, 1, &delete("parked"));
    declare_full(&mut world, client, "parked");
    open(&mut world, &mut far);
    fill(&mut world, 3);
    far.published();
    far.say(1, &nack(1, false));
    far.say(1, &ack(3, true));
    world.run();
    refuse(&mut world, &mut far, &mut 3, 120_000);
    assert_eq!(world.counts(client, 1, "here").0, 1, "there is no room for it, and it is back");
    world.publish_to(client, 1, "alarms", &[100]);
    world.run();
    assert_eq!(bodies(&far.published()), [100]);
    far.say(1, &ack(0, true));
    world.pass_ms(30_000);
    assert!(far.published().is_empty(), "what is to be set aside is not sent");
    assert_eq!(world.counts(client, 1, "alarms"), (0, 1));
    assert_eq!(world.engine.platform.dialed, 2, "it was made anew for the nacks, once");
}

#[test]
fn a_queue_that_is_missing_there_keeps_no_other_from_being_fetched() {
    let fetch = vec![rule("commands", Refused::Park), rule("news", Refused::Park)];
    let config = Bridge { forward: Vec::new(), fetch, heartbeat_s: 0, ..bridge() };
    let (mut world, mut far) = world(config);
    let client = world.open(&[1]);
    open_fetch_until(&mut world, &mut far, 0);
    far.say(
        1,
        &Method::ChannelClose { reply_code: 404, reply_text: "no queue", class_id: 60, method_id: 20 },
    );
    world.run();
    far.heard.clear();
    world.pass_ms(1_100);
    // The pause of the rule may be as short as that of the link, or longer.
    let begun = open_fetch(&mut world, &mut far);
    assert!((1..=2).contains(&begun), "{begun}");
    deliver(&mut world, &far, "bridge-1", 1);
    assert_eq!(world.counts(client, 1, "news.moved").0, 1);
}

#[test]
fn a_queue_that_is_deleted_there_costs_no_link() {
    let fetch = vec![rule("commands", Refused::Park), rule("news", Refused::Park)];
    let config = Bridge { forward: Vec::new(), fetch, heartbeat_s: 0, ..bridge() };
    let (mut world, mut far) = world(config);
    let client = world.open(&[1]);
    assert_eq!(open_fetch(&mut world, &mut far), 2);
    far.say(1, &Method::BasicCancel { consumer_tag: "bridge-0", no_wait: true });
    world.run();
    deliver(&mut world, &far, "bridge-1", 1);
    assert_eq!(world.counts(client, 1, "news.moved").0, 1);
    far.names();
    world.pass_ms(1_100);
    assert_eq!(far.names(), ["basic.consume"], "it is asked for again");
    far.say(1, &Method::BasicConsumeOk { consumer_tag: "bridge-0" });
    world.run();
    deliver(&mut world, &far, "bridge-0", 2);
    assert_eq!(world.counts(client, 1, "commands.moved").0, 1);
    assert_eq!(world.engine.platform.dialed, 1);
}

/// A quorum queue of RabbitMQ refuses a prefetch that consumers share.
#[test]
fn the_window_is_divided_among_the_queues_that_are_fetched() {
    for (window, each) in [(4, 2), (5, 2), (1, 1)] {
        let fetch = vec![rule("commands", Refused::Park), rule("news", Refused::Park)];
        let config = Bridge { forward: Vec::new(), fetch, window, heartbeat_s: 0, ..bridge() };
        let (mut world, mut far) = world(config);
        let client = world.open(&[1]);
        assert_eq!(open_fetch(&mut world, &mut far), 2);
        assert_eq!(far.ahead, [(each, false)], "a window of {window}");
        let (redelivered, exchange, routing_key) = (false, "", &b"k"[..]);
        for delivery_tag in 1..=2 * u64::from(each) {
            let consumer_tag = ["bridge-0", "bridge-1"][delivery_tag as usize % 2];
            let deliver =
                Method::BasicDeliver { consumer_tag, delivery_tag, redelivered, exchange, routing_key };
            far.say(1, &deliver);
            far.say_bytes(&content_frames(1, &[0, 0], &[7; 9], 1_000));
        }
        world.run();
        let came = world.counts(client, 1, "news.moved").0 + world.counts(client, 1, "commands.moved").0;
        assert_eq!((came, world.engine.platform.dialed), (u32::from(2 * each), 1), "a window of {window}");
    }
}

/// RabbitMQ sends what waits in a queue as soon as that one's consumer has begun. All but the last of it was
/// acknowledged there once, and lost.
#[test]
fn what_comes_before_the_last_consumer_has_begun_is_taken_like_all_else() {
    let fetch = vec![rule("first", Refused::Park), rule("second", Refused::Park)];
    let (mut world, mut far) = world(Bridge { forward: Vec::new(), fetch, window: 16, ..waiting() });
    let client = world.open(&[1]);
    open_fetch_until(&mut world, &mut far, 1);
    for tag in 1..=5 {
        deliver(&mut world, &far, "bridge-0", tag);
    }
    assert_eq!(world.counts(client, 1, "first.moved").0, 5);
    far.say(1, &Method::BasicConsumeOk { consumer_tag: "bridge-1" });
    world.run();
    deliver(&mut world, &far, "bridge-1", 6);
    far.names();
    assert_eq!(world.counts(client, 1, "first.moved").0, 5);
    assert_eq!(world.counts(client, 1, "second.moved").0, 1);
}

#[test]
fn a_delivery_before_its_consumer_has_begun_ends_the_link_and_keeps_no_memory() {
    let fetch = vec![rule("first", Refused::Park), rule("second", Refused::Park)];
    let (mut world, mut far) = world(Bridge { forward: Vec::new(), fetch, ..waiting() });
    let used = world.engine.messages().messages_used();
    open_fetch_until(&mut world, &mut far, 1);
    for tag in 1..=3 {
        deliver(&mut world, &far, "bridge-1", tag);
    }
    assert_eq!(world.engine.messages().messages_used(), used);
    assert!(world.engine.platform.dialed >= 1);
}
