//! A bridge that connects on demand: what it connects for, and when it ends its links.

use leveret_amqp::{HEARTBEAT_FRAME, Method};
use leveret_config::bridge::{Bridge, Destination, Refused, Rule};
use leveret_config::bridge::{OnDemand, TimeOfDay};

use super::bridge::{Far, ack, ask, bodies, bridge, fill, open, world};
use super::world::{World, content_frames};

const HOUR_MS: u64 = 3_600_000;

fn resting() -> Bridge {
    let (messages, age_ms, interval_ms, times) = (5, 600_000, 0, Vec::new());
    let on_demand = OnDemand { messages, age_ms, interval_ms, times, rest_after_ms: 10_000 };
    Bridge { on_demand: Some(on_demand), window: 64, ..bridge() }
}

fn with(change: impl FnMut(&mut OnDemand)) -> Bridge {
    let mut config = resting();
    config.on_demand.iter_mut().for_each(change);
    config
}

/// Lets the bridge close the connection, and answers.
fn say_goodbye(world: &mut World, far: &mut Far) {
    assert_eq!(far.answer(world).last(), Some(&(0, "connection.close")));
    far.say(0, &Method::ConnectionCloseOk {});
    far.line.borrow_mut().hang_up();
    world.run();
    assert!(!far.line.borrow().is_held, "its socket is closed");
    far.heard.clear();
}

/// Lets time pass in which the upstream sends only heartbeats.
fn pass(world: &mut World, far: &Far, ms: u64) {
    if far.line.borrow().is_held {
        far.say_bytes(&HEARTBEAT_FRAME);
    }
    world.pass_ms(ms);
}

/// Returns a world in which the first connection, made at the start, is over.
fn rested(config: Bridge) -> (World, Far) {
    let (mut world, mut far) = world(config);
    open(&mut world, &mut far);
    pass(&mut world, &far, 9_999);
    assert!(far.names().is_empty(), "it stays for a while");
    pass(&mut world, &far, 1);
    say_goodbye(&mut world, &mut far);
    assert_eq!(world.engine.platform_mut().dialed, 1);
    (world, far)
}

fn state(world: &mut World) -> String {
    ask(world, "GET /api/ctl/bridges")
}

#[test]
fn an_idle_bridge_disconnects_and_connects_again_for_enough_messages() {
    let (mut world, mut far) = rested(resting());
    assert!(state(&mut world).contains("\"state\":\"resting\""), "{}", state(&mut world));
    world.pass_ms(100 * HOUR_MS);
    assert_eq!(world.engine.platform_mut().dialed, 1, "there is nothing to move");
    let client = fill(&mut world, 4);
    world.pass_ms(1_000);
    assert_eq!(world.engine.platform_mut().dialed, 1, "that is not enough");
    world.publish_to(client, 1, "here", &[4]);
    world.run();
    assert_eq!(world.engine.platform_mut().dialed, 2);
    open(&mut world, &mut far);
    assert_eq!(bodies(&far.published()), [0, 1, 2, 3, 4]);
    pass(&mut world, &far, 9_999);
    far.say(1, &ack(5, true));
    world.run();
    pass(&mut world, &far, 9_999);
    assert!(!far.names().contains(&"connection.close"), "it has just moved something");
    pass(&mut world, &far, 1);
    say_goodbye(&mut world, &mut far);
    world.pass_ms(HOUR_MS);
    assert_eq!((world.counts(client, 1, "here"), world.engine.platform_mut().dialed), ((0, 0), 2));
}

#[test]
fn a_bridge_connects_for_a_message_that_has_waited_and_for_no_other() {
    let (mut world, mut far) = rested(resting());
    let client = fill(&mut world, 1);
    world.pass_ms(599_999);
    assert_eq!(world.engine.platform_mut().dialed, 1);
    world.pass_ms(1);
    assert_eq!(world.engine.platform_mut().dialed, 2);
    open(&mut world, &mut far);
    far.say(1, &ack(1, true));
    world.run();
    far.published();
    pass(&mut world, &far, 10_000);
    say_goodbye(&mut world, &mut far);
    world.publish_to(client, 1, "here", &[1]);
    world.pass_ms(300_000);
    world.ask(client, 1, &Method::QueuePurge { queue: "here", no_wait: false });
    world.pass_ms(100_000);
    world.publish_to(client, 1, "here", &[2]);
    world.pass_ms(599_999);
    assert_eq!(world.engine.platform_mut().dialed, 2, "another consumer took the waiting messages");
    world.pass_ms(1);
    assert_eq!(world.engine.platform_mut().dialed, 3);
}

#[test]
fn a_bridge_connects_at_its_interval_or_time_of_day() {
    let (mut world, _) = rested(with(|demand| demand.interval_ms = HOUR_MS as u32));
    world.pass_ms(HOUR_MS - 1);
    assert_eq!(world.engine.platform_mut().dialed, 1);
    world.pass_ms(HOUR_MS / 8 + 1);
    assert!(world.engine.platform_mut().dialed > 1, "the interval is over, and what spreads a fleet");

    let (mut world, _) = rested(with(|demand| demand.times = vec![TimeOfDay(120)]));
    world.pass_ms(2 * HOUR_MS - 11_000);
    assert_eq!(world.engine.platform_mut().dialed, 1, "its clock began at midnight");
    world.pass_ms(11_000 + 600_000);
    assert!(world.engine.platform_mut().dialed > 1, "the time of day has come, and ten minutes");
}

#[test]
fn an_unreachable_upstream_is_retried_until_the_messages_are_forwarded() {
    let (mut world, mut far) = rested(resting());
    fill(&mut world, 5);
    assert_eq!(world.engine.platform_mut().dialed, 2);
    for tries in 3..8 {
        far.line.borrow_mut().lose();
        world.run();
        far.heard.clear();
        world.pass_ms(8_000);
        assert!(world.engine.platform_mut().dialed >= tries, "{} tries", world.engine.platform_mut().dialed);
    }
    open(&mut world, &mut far);
    assert_eq!(bodies(&far.published()), [0, 1, 2, 3, 4]);
    far.say(1, &ack(5, true));
    world.run();
    pass(&mut world, &far, 10_000);
    say_goodbye(&mut world, &mut far);
}

#[test]
fn messages_requeued_by_a_lost_link_are_sent_again_before_the_bridge_disconnects() {
    let (mut world, mut far) = rested(resting());
    let client = fill(&mut world, 5);
    open(&mut world, &mut far);
    assert_eq!(far.published().len(), 5);
    pass(&mut world, &far, 15_000);
    assert!(far.line.borrow().is_held, "it waits for confirms, however long nothing moves");
    far.line.borrow_mut().lose();
    world.run();
    far.heard.clear();
    world.pass_ms(1_000);
    open(&mut world, &mut far);
    assert_eq!(bodies(&far.published()), [0, 1, 2, 3, 4]);
    assert_eq!(world.counts(client, 1, "here"), (0, 1));
}

#[test]
fn a_bridge_connects_when_told_to_and_not_while_paused() {
    let (mut world, mut far) = rested(resting());
    ask(&mut world, "POST /api/ctl/bridges/plant/resume");
    assert_eq!(world.engine.platform_mut().dialed, 2, "an operator requested it");
    open(&mut world, &mut far);
    pass(&mut world, &far, 10_000);
    say_goodbye(&mut world, &mut far);
    ask(&mut world, "POST /api/ctl/bridges/plant/pause");
    fill(&mut world, 9);
    world.pass_ms(HOUR_MS);
    assert_eq!(world.engine.platform_mut().dialed, 2, "it is paused");
    ask(&mut world, "POST /api/ctl/bridges/plant/resume");
    open(&mut world, &mut far);
    assert_eq!(far.published().len(), 9);
}

#[test]
fn a_bridge_told_to_connect_while_disconnecting_connects_again_at_once() {
    let (mut world, mut far) = world(resting());
    open(&mut world, &mut far);
    pass(&mut world, &far, 10_000);
    assert_eq!(far.names(), ["connection.close"]);
    ask(&mut world, "POST /api/ctl/bridges/plant/resume");
    far.say(0, &Method::ConnectionCloseOk {});
    far.line.borrow_mut().hang_up();
    world.run();
    far.heard.clear();
    world.pass_ms(1);
    assert_eq!(world.engine.platform_mut().dialed, 2);
}

#[test]
fn with_the_daily_budget_used_only_urgent_messages_cause_a_connection() {
    let rule = |queue: &str, is_urgent| Rule {
        queue: queue.into(),
        to: Destination::Queue("there".into()),
        refused: Refused::Park,
        is_urgent,
    };
    let forward = vec![rule("here", false), rule("urgent", true)];
    let config = Bridge { forward, day_bytes_max: Some(2_000), heartbeat_s: 0, window: 4, ..resting() };
    let (mut world, mut far) = rested(config);
    let client = fill(&mut world, 40);
    open(&mut world, &mut far);
    loop {
        let count = far.published().len();
        if count == 0 {
            break;
        }
        far.confirm_all(&mut world);
    }
    let left = world.counts(client, 1, "here").0;
    assert!(left > 5, "{left} messages are left");
    world.pass_ms(10_000);
    say_goodbye(&mut world, &mut far);
    world.pass_ms(12 * HOUR_MS);
    assert_eq!(world.engine.platform_mut().dialed, 2, "{left} messages wait for tomorrow");
    for _ in 0..5 {
        world.publish_to(client, 1, "urgent", &[200]);
    }
    world.run();
    assert_eq!(world.engine.platform_mut().dialed, 3);
    open(&mut world, &mut far);
    assert_eq!(bodies(&far.published()), [200; 4]);
    far.confirm_all(&mut world);
    assert_eq!(bodies(&far.published()), [200]);
    far.confirm_all(&mut world);
    world.pass_ms(10_000);
    say_goodbye(&mut world, &mut far);
    world.pass_ms(12 * HOUR_MS);
    assert_eq!(world.engine.platform_mut().dialed, 4, "the next day has come");
}

#[test]
fn waiting_messages_are_fetched_before_a_connection_ends() {
    let fetch = vec![Rule {
        queue: "far".into(),
        to: Destination::Queue("here".into()),
        refused: Refused::Park,
        is_urgent: false,
    }];
    let (mut world, mut far) = world(Bridge { forward: Vec::new(), fetch, ..resting() });
    open(&mut world, &mut far);
    let client = world.open(&[1]);
    for number in 1..=3 {
        pass(&mut world, &far, 9_999);
        let deliver = Method::BasicDeliver {
            consumer_tag: "bridge-0",
            delivery_tag: number,
            redelivered: false,
            exchange: "",
            routing_key: b"far",
        };
        far.say(1, &deliver);
        far.say_bytes(&content_frames(1, &[0, 0], b"x", 100));
        world.run();
        assert_eq!(far.names(), ["basic.ack"], "{number}");
    }
    assert_eq!(world.counts(client, 1, "here"), (3, 0));
    pass(&mut world, &far, 9_999);
    assert!(far.names().is_empty());
    pass(&mut world, &far, 1);
    say_goodbye(&mut world, &mut far);
}

#[test]
fn the_bytes_of_a_link_are_counted_by_kind() {
    let config = Bridge { heartbeat_s: 10, window: 64, ..bridge() };
    let (mut world, mut far) = world(config.clone());
    open(&mut world, &mut far);
    let client = world.open(&[1]);
    for _ in 0..3 {
        world.publish_to(client, 1, "here", &[7; 100]);
    }
    world.run();
    assert_eq!(far.published().len(), 3);
    let kind = |said: &str, day: &str, name: &str| -> u64 {
        let (_, day) = said.split_once(&format!("\"{day}_bytes_by_kind\":{{")).expect("the day is there");
        let (_, number) = day.split_once(&format!("\"{name}\":")).expect("the kind is there");
        number[..number.find([',', '}']).expect("it ends")].parse().expect("a number")
    };
    let said = ask(&mut world, "GET /api/ctl/bridges");
    let line = (far.line.borrow().sent_down(), far.line.borrow().sent_up());
    assert_eq!((kind(&said, "day", "sent"), kind(&said, "day", "received")), line);
    assert_eq!(kind(&said, "day", "repeated"), 0);
    far.line.borrow_mut().lose();
    world.run();
    far.heard.clear();
    world.pass_ms(1_100);
    open(&mut world, &mut far);
    far.say(1, &ack(3, true));
    world.run();
    world.pass_ms(5_000);
    far.say_bytes(&HEARTBEAT_FRAME);
    world.run();
    let said = ask(&mut world, "GET /api/ctl/bridges");
    let of = |name| kind(&said, "day", name);
    assert!(of("repeated") > 300 && of("repeated") < 3 * 400, "whole messages: {}", of("repeated"));
    let after = (far.line.borrow().sent_down(), far.line.borrow().sent_up());
    let sums = (line.0 + after.0, line.1 + after.1);
    assert_eq!((of("sent"), of("received")), sums, "all that went is counted");
    let notes = world.engine.bridge_state_text().expect("there is a bridge");
    let (mut world, _) = super::bridge::world(config);
    world.engine.restore_bridge_state(&notes);
    let again = ask(&mut world, "GET /api/ctl/bridges");
    assert_eq!(kind(&again, "day", "repeated"), of("repeated"), "a restart forgets nothing");
    world.pass_ms(24 * HOUR_MS);
    let next = ask(&mut world, "GET /api/ctl/bridges");
    assert_eq!(kind(&next, "yesterday", "repeated"), of("repeated"));
    assert_eq!(kind(&next, "day", "repeated"), 0);
}

/// Returns the number of this name, or `None` if it is not a number.
fn number(said: &str, name: &str) -> Option<f64> {
    let (_, after) = said.split_once(&format!("\"{name}\":")).expect("it is said");
    after[..after.find([',', '}']).expect("it ends")].parse().ok()
}

#[test]
fn the_outage_gauge_follows_the_inflow() {
    let config = Bridge { heartbeat_s: 0, window: 64, ..bridge() };
    let (mut world, mut far) = world(config.clone());
    open(&mut world, &mut far);
    let client = world.open(&[1]);
    let said = ask(&mut world, "GET /api/ctl/bridges");
    assert_eq!(number(&said, "inflow_per_day"), None);
    for _ in 0..100 {
        world.publish_to(client, 1, "here", &[7; 100]);
        world.run();
        far.published();
        far.say(1, &ack(0, true));
        world.pass_ms(HOUR_MS / 50);
    }
    let said = ask(&mut world, "GET /api/ctl/bridges");
    assert_eq!(number(&said, "inflow_per_day"), Some(1_200.0), "one each 72 s");
    assert_eq!(number(&said, "outage_days"), None, "there is no disk here");
    for _ in 0..200 {
        world.publish_to(client, 1, "here", &[7; 100]);
    }
    world.run();
    let notes = world.engine.bridge_state_text().expect("there is a bridge");
    let (mut after, _) = super::bridge::world(config);
    after.engine.restore_bridge_state(&notes);
    let said = ask(&mut after, "GET /api/ctl/bridges");
    let per_day = number(&said, "inflow_per_day").expect("it is known from before");
    assert!((3_500.0..3_601.0).contains(&per_day), "300 in two hours: {per_day}");
}
