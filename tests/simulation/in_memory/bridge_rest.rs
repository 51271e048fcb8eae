//! A bridge that connects on demand: what it connects for, and when it ends its links.

use leveret_amqp::{HEARTBEAT_FRAME, Method};
use leveret_config::bridge::{Bridge, Destination, RefusedAction, Rule};
use leveret_config::bridge::{OnDemand, TimeOfDay};

use super::bridge::{Far, ack, ask, bodies, bridge, fill, open, simulation};
use leveret_test_support::simulated_server::{Simulation, content_frames};

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
fn say_goodbye(simulation: &mut Simulation, far: &mut Far) {
    assert_eq!(far.answer(simulation).last(), Some(&(0, "connection.close")));
    far.say(0, &Method::ConnectionCloseOk {});
    far.line.borrow_mut().hang_up();
    simulation.run();
    assert!(!far.line.borrow().is_held, "its socket is closed");
    far.heard.clear();
}

/// Lets time pass in which the upstream sends only heartbeats.
fn pass(simulation: &mut Simulation, far: &Far, ms: u64) {
    if far.line.borrow().is_held {
        far.say_bytes(&HEARTBEAT_FRAME);
    }
    simulation.pass_ms(ms);
}

/// Returns a simulation in which the first connection, made at the start, is over.
fn rested(config: Bridge) -> (Simulation, Far) {
    let (mut simulation, mut far) = simulation(config);
    open(&mut simulation, &mut far);
    pass(&mut simulation, &far, 9_999);
    assert!(far.names().is_empty(), "it stays for a while");
    pass(&mut simulation, &far, 1);
    say_goodbye(&mut simulation, &mut far);
    assert_eq!(simulation.engine.platform_mut().dialed, 1);
    (simulation, far)
}

fn state(simulation: &mut Simulation) -> String {
    ask(simulation, "GET /api/ctl/bridges")
}

#[test]
fn an_idle_bridge_disconnects_and_connects_again_for_enough_messages() {
    let (mut simulation, mut far) = rested(resting());
    assert!(state(&mut simulation).contains("\"state\":\"resting\""), "{}", state(&mut simulation));
    simulation.pass_ms(100 * HOUR_MS);
    assert_eq!(simulation.engine.platform_mut().dialed, 1, "there is nothing to move");
    let client = fill(&mut simulation, 4);
    simulation.pass_ms(1_000);
    assert_eq!(simulation.engine.platform_mut().dialed, 1, "that is not enough");
    simulation.publish_to(client, 1, "here", &[4]);
    simulation.run();
    assert_eq!(simulation.engine.platform_mut().dialed, 2);
    open(&mut simulation, &mut far);
    assert_eq!(bodies(&far.published()), [0, 1, 2, 3, 4]);
    pass(&mut simulation, &far, 9_999);
    far.say(1, &ack(5, true));
    simulation.run();
    pass(&mut simulation, &far, 9_999);
    assert!(!far.names().contains(&"connection.close"), "it has just moved something");
    pass(&mut simulation, &far, 1);
    say_goodbye(&mut simulation, &mut far);
    simulation.pass_ms(HOUR_MS);
    assert_eq!((simulation.counts(client, 1, "here"), simulation.engine.platform_mut().dialed), ((0, 0), 2));
}

#[test]
fn a_bridge_connects_for_a_message_that_has_waited_and_for_no_other() {
    let (mut simulation, mut far) = rested(resting());
    let client = fill(&mut simulation, 1);
    simulation.pass_ms(599_999);
    assert_eq!(simulation.engine.platform_mut().dialed, 1);
    simulation.pass_ms(1);
    assert_eq!(simulation.engine.platform_mut().dialed, 2);
    open(&mut simulation, &mut far);
    far.say(1, &ack(1, true));
    simulation.run();
    far.published();
    pass(&mut simulation, &far, 10_000);
    say_goodbye(&mut simulation, &mut far);
    simulation.publish_to(client, 1, "here", &[1]);
    simulation.pass_ms(300_000);
    simulation.ask(client, 1, &Method::QueuePurge { queue: "here", no_wait: false });
    simulation.pass_ms(100_000);
    simulation.publish_to(client, 1, "here", &[2]);
    simulation.pass_ms(599_999);
    assert_eq!(simulation.engine.platform_mut().dialed, 2, "another consumer took the waiting messages");
    simulation.pass_ms(1);
    assert_eq!(simulation.engine.platform_mut().dialed, 3);
}

#[test]
fn a_bridge_connects_at_its_interval_or_time_of_day() {
    let (mut simulation, _) = rested(with(|demand| demand.interval_ms = HOUR_MS as u32));
    simulation.pass_ms(HOUR_MS - 1);
    assert_eq!(simulation.engine.platform_mut().dialed, 1);
    simulation.pass_ms(HOUR_MS / 8 + 1);
    assert!(simulation.engine.platform_mut().dialed > 1, "the interval is over, and what spreads a fleet");

    let (mut simulation, _) = rested(with(|demand| demand.times = vec![TimeOfDay(120)]));
    simulation.pass_ms(2 * HOUR_MS - 11_000);
    assert_eq!(simulation.engine.platform_mut().dialed, 1, "its clock began at midnight");
    simulation.pass_ms(11_000 + 600_000);
    assert!(simulation.engine.platform_mut().dialed > 1, "the time of day has come, and ten minutes");
}

#[test]
fn an_unreachable_upstream_is_retried_until_the_messages_are_forwarded() {
    let (mut simulation, mut far) = rested(resting());
    fill(&mut simulation, 5);
    assert_eq!(simulation.engine.platform_mut().dialed, 2);
    for tries in 3..8 {
        far.line.borrow_mut().lose();
        simulation.run();
        far.heard.clear();
        simulation.pass_ms(8_000);
        assert!(
            simulation.engine.platform_mut().dialed >= tries,
            "{} tries",
            simulation.engine.platform_mut().dialed
        );
    }
    open(&mut simulation, &mut far);
    assert_eq!(bodies(&far.published()), [0, 1, 2, 3, 4]);
    far.say(1, &ack(5, true));
    simulation.run();
    pass(&mut simulation, &far, 10_000);
    say_goodbye(&mut simulation, &mut far);
}

#[test]
fn messages_requeued_by_a_lost_link_are_sent_again_before_the_bridge_disconnects() {
    let (mut simulation, mut far) = rested(resting());
    let client = fill(&mut simulation, 5);
    open(&mut simulation, &mut far);
    assert_eq!(far.published().len(), 5);
    pass(&mut simulation, &far, 15_000);
    assert!(far.line.borrow().is_held, "it waits for confirms, however long nothing moves");
    far.line.borrow_mut().lose();
    simulation.run();
    far.heard.clear();
    simulation.pass_ms(1_000);
    open(&mut simulation, &mut far);
    assert_eq!(bodies(&far.published()), [0, 1, 2, 3, 4]);
    assert_eq!(simulation.counts(client, 1, "here"), (0, 1));
}

#[test]
fn a_bridge_connects_when_told_to_and_not_while_paused() {
    let (mut simulation, mut far) = rested(resting());
    ask(&mut simulation, "POST /api/ctl/bridges/plant/resume");
    assert_eq!(simulation.engine.platform_mut().dialed, 2, "an operator requested it");
    open(&mut simulation, &mut far);
    pass(&mut simulation, &far, 10_000);
    say_goodbye(&mut simulation, &mut far);
    ask(&mut simulation, "POST /api/ctl/bridges/plant/pause");
    fill(&mut simulation, 9);
    simulation.pass_ms(HOUR_MS);
    assert_eq!(simulation.engine.platform_mut().dialed, 2, "it is paused");
    ask(&mut simulation, "POST /api/ctl/bridges/plant/resume");
    open(&mut simulation, &mut far);
    assert_eq!(far.published().len(), 9);
}

#[test]
fn a_bridge_told_to_connect_while_disconnecting_connects_again_at_once() {
    let (mut simulation, mut far) = simulation(resting());
    open(&mut simulation, &mut far);
    pass(&mut simulation, &far, 10_000);
    assert_eq!(far.names(), ["connection.close"]);
    ask(&mut simulation, "POST /api/ctl/bridges/plant/resume");
    far.say(0, &Method::ConnectionCloseOk {});
    far.line.borrow_mut().hang_up();
    simulation.run();
    far.heard.clear();
    simulation.pass_ms(1);
    assert_eq!(simulation.engine.platform_mut().dialed, 2);
}

#[test]
fn with_the_daily_budget_used_only_urgent_messages_cause_a_connection() {
    let rule = |queue: &str, is_urgent| Rule {
        queue: queue.into(),
        to: Destination::Queue("there".into()),
        refused: RefusedAction::Park,
        is_urgent,
    };
    let forward = vec![rule("here", false), rule("urgent", true)];
    let config = Bridge { forward, day_bytes_max: Some(2_000), heartbeat_s: 0, window: 4, ..resting() };
    let (mut simulation, mut far) = rested(config);
    let client = fill(&mut simulation, 40);
    open(&mut simulation, &mut far);
    loop {
        let count = far.published().len();
        if count == 0 {
            break;
        }
        far.confirm_all(&mut simulation);
    }
    let left = simulation.counts(client, 1, "here").0;
    assert!(left > 5, "{left} messages are left");
    simulation.pass_ms(10_000);
    say_goodbye(&mut simulation, &mut far);
    simulation.pass_ms(12 * HOUR_MS);
    assert_eq!(simulation.engine.platform_mut().dialed, 2, "{left} messages wait for tomorrow");
    for _ in 0..5 {
        simulation.publish_to(client, 1, "urgent", &[200]);
    }
    simulation.run();
    assert_eq!(simulation.engine.platform_mut().dialed, 3);
    open(&mut simulation, &mut far);
    assert_eq!(bodies(&far.published()), [200; 4]);
    far.confirm_all(&mut simulation);
    assert_eq!(bodies(&far.published()), [200]);
    far.confirm_all(&mut simulation);
    simulation.pass_ms(10_000);
    say_goodbye(&mut simulation, &mut far);
    simulation.pass_ms(12 * HOUR_MS);
    assert_eq!(simulation.engine.platform_mut().dialed, 4, "the next day has come");
}

#[test]
fn waiting_messages_are_fetched_before_a_connection_ends() {
    let fetch = vec![Rule {
        queue: "far".into(),
        to: Destination::Queue("here".into()),
        refused: RefusedAction::Park,
        is_urgent: false,
    }];
    let (mut simulation, mut far) = simulation(Bridge { forward: Vec::new(), fetch, ..resting() });
    open(&mut simulation, &mut far);
    let client = simulation.open(&[1]);
    for number in 1..=3 {
        pass(&mut simulation, &far, 9_999);
        let deliver = Method::BasicDeliver {
            consumer_tag: "bridge-0",
            delivery_tag: number,
            redelivered: false,
            exchange: "",
            routing_key: b"far",
        };
        far.say(1, &deliver);
        far.say_bytes(&content_frames(1, &[0, 0], b"x", 100));
        simulation.run();
        assert_eq!(far.names(), ["basic.ack"], "{number}");
    }
    assert_eq!(simulation.counts(client, 1, "here"), (3, 0));
    pass(&mut simulation, &far, 9_999);
    assert!(far.names().is_empty());
    pass(&mut simulation, &far, 1);
    say_goodbye(&mut simulation, &mut far);
}

#[test]
fn the_bytes_of_a_link_are_counted_by_kind() {
    let config = Bridge { heartbeat_s: 10, window: 64, ..bridge() };
    let (mut simulation, mut far) = simulation(config.clone());
    open(&mut simulation, &mut far);
    let client = simulation.open(&[1]);
    for _ in 0..3 {
        simulation.publish_to(client, 1, "here", &[7; 100]);
    }
    simulation.run();
    assert_eq!(far.published().len(), 3);
    let kind = |said: &str, day: &str, name: &str| -> u64 {
        let (_, day) = said.split_once(&format!("\"{day}_bytes_by_kind\":{{")).expect("the day is there");
        let (_, number) = day.split_once(&format!("\"{name}\":")).expect("the kind is there");
        number[..number.find([',', '}']).expect("it ends")].parse().expect("a number")
    };
    let said = ask(&mut simulation, "GET /api/ctl/bridges");
    let line = (far.line.borrow().sent_down(), far.line.borrow().sent_up());
    assert_eq!((kind(&said, "day", "sent"), kind(&said, "day", "received")), line);
    assert_eq!(kind(&said, "day", "repeated"), 0);
    far.line.borrow_mut().lose();
    simulation.run();
    far.heard.clear();
    simulation.pass_ms(1_100);
    open(&mut simulation, &mut far);
    far.say(1, &ack(3, true));
    simulation.run();
    simulation.pass_ms(5_000);
    far.say_bytes(&HEARTBEAT_FRAME);
    simulation.run();
    let said = ask(&mut simulation, "GET /api/ctl/bridges");
    let of = |name| kind(&said, "day", name);
    assert!(of("repeated") > 300 && of("repeated") < 3 * 400, "whole messages: {}", of("repeated"));
    let after = (far.line.borrow().sent_down(), far.line.borrow().sent_up());
    let sums = (line.0 + after.0, line.1 + after.1);
    assert_eq!((of("sent"), of("received")), sums, "all that went is counted");
    let notes = simulation.engine.bridge_state_text().expect("there is a bridge");
    let (mut simulation, _) = super::bridge::simulation(config);
    simulation.engine.restore_bridge_state(&notes);
    let again = ask(&mut simulation, "GET /api/ctl/bridges");
    assert_eq!(kind(&again, "day", "repeated"), of("repeated"), "a restart forgets nothing");
    simulation.pass_ms(24 * HOUR_MS);
    let next = ask(&mut simulation, "GET /api/ctl/bridges");
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
    let (mut simulation, mut far) = simulation(config.clone());
    open(&mut simulation, &mut far);
    let client = simulation.open(&[1]);
    let said = ask(&mut simulation, "GET /api/ctl/bridges");
    assert_eq!(number(&said, "inflow_per_day"), None);
    for _ in 0..100 {
        simulation.publish_to(client, 1, "here", &[7; 100]);
        simulation.run();
        far.published();
        far.say(1, &ack(0, true));
        simulation.pass_ms(HOUR_MS / 50);
    }
    let said = ask(&mut simulation, "GET /api/ctl/bridges");
    assert_eq!(number(&said, "inflow_per_day"), Some(1_200.0), "one each 72 s");
    assert_eq!(number(&said, "outage_days"), None, "there is no disk here");
    for _ in 0..200 {
        simulation.publish_to(client, 1, "here", &[7; 100]);
    }
    simulation.run();
    let notes = simulation.engine.bridge_state_text().expect("there is a bridge");
    let (mut after, _) = super::bridge::simulation(config);
    after.engine.restore_bridge_state(&notes);
    let said = ask(&mut after, "GET /api/ctl/bridges");
    let per_day = number(&said, "inflow_per_day").expect("it is known from before");
    assert!((3_500.0..3_601.0).contains(&per_day), "300 in two hours: {per_day}");
}
