//! The daily byte budget of a bridge: what waits when it is used up, what continues, and when all continues.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;

use leveret_amqp::Method;
use leveret_config::bridge::{Bridge, Destination, RefusedAction, Rule};

use super::bridge::{Far, alarms, ask, bodies, bridge, fill, open, open_for, simulation, upstream};
use leveret_test_support::simulated_server::{Line, Shape, Simulation, content_frames};

const HOUR_MS: u64 = 3_600_000;

fn rule(queue: &str, is_urgent: bool) -> Rule {
    let to = Destination::Queue(format!("{queue}.moved"));
    Rule { queue: queue.into(), to, refused: RefusedAction::Park, is_urgent }
}

/// A bridge with a small budget and without heartbeats, so that its traffic is predictable.
fn metered() -> Bridge {
    let forward = vec![rule("here", false), rule("urgent", true)];
    Bridge { forward, heartbeat_s: 0, day_bytes_max: Some(3_000), ..bridge() }
}

/// Confirms everything until nothing more is published. Returns what was published.
fn drain(simulation: &mut Simulation, far: &mut Far) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        far.answer(simulation);
        let came = bodies(&far.published());
        if came.is_empty() {
            return all;
        }
        all.extend(came);
        far.confirm_all(simulation);
    }
}

#[test]
fn messages_that_are_not_urgent_wait_for_the_next_day_and_continue_in_order() {
    let (mut simulation, mut far) = simulation(metered());
    open(&mut simulation, &mut far);
    let client = fill(&mut simulation, 30);
    let mut sent = drain(&mut simulation, &mut far);
    assert!((4..26).contains(&sent.len()), "{} of 30 went before the bytes were used", sent.len());
    let left = 30 - sent.len() as u32;
    assert_eq!(simulation.counts(client, 1, "here"), (left, 0), "nothing was taken and put back");
    let said = alarms(&mut simulation);
    assert!(said.contains("budget: bridge plant has used its daily bytes"), "{said}");
    let shown = ask(&mut simulation, "GET /api/ctl/bridges");
    assert!(shown.contains("\"state\":\"budget used\""), "{shown}");
    for rule in ["\"queue\":\"here\",\"state\":\"budget used\"", "\"queue\":\"urgent\",\"state\":\"running\""]
    {
        assert!(shown.contains(rule), "{rule}: {shown}");
    }
    simulation.publish_to(client, 1, "urgent", &[200]);
    simulation.run();
    assert_eq!(drain(&mut simulation, &mut far), [200], "only the urgent message is sent");
    far.pass_ms(&mut simulation, 23 * HOUR_MS);
    assert!(drain(&mut simulation, &mut far).is_empty(), "the day is not over");
    let mut days = 0;
    while sent.len() < 30 {
        far.pass_ms(&mut simulation, if days == 0 { HOUR_MS } else { 24 * HOUR_MS });
        let more = drain(&mut simulation, &mut far);
        assert!((4..26).contains(&more.len()), "{} messages in a day", more.len());
        (sent, days) = ([sent, more].concat(), days + 1);
    }
    assert_eq!(sent, (0..30).collect::<Vec<u8>>());
    far.pass_ms(&mut simulation, 24 * HOUR_MS);
    assert!(!alarms(&mut simulation).contains("budget"), "a new day has all its bytes");
    assert_eq!(simulation.counts(client, 1, "here"), (0, 1));
    assert_eq!(simulation.engine.platform_mut().dialed, 1, "the link was up all the time");
}

#[test]
fn a_restart_in_the_middle_of_the_day_does_not_renew_its_budget() {
    let (mut before, mut far) = simulation(metered());
    open(&mut before, &mut far);
    fill(&mut before, 30);
    drain(&mut before, &mut far);
    before.pass_ms(20 * HOUR_MS);
    let notes = before.engine.bridge_state_text().expect("there is a bridge");
    let (mut simulation, mut far) = simulation(metered());
    simulation.engine.restore_bridge_state(&notes);
    open(&mut simulation, &mut far);
    let client = fill(&mut simulation, 3);
    assert!(drain(&mut simulation, &mut far).is_empty(), "the bytes of this day are used");
    simulation.publish_to(client, 1, "urgent", &[200]);
    simulation.run();
    assert_eq!(drain(&mut simulation, &mut far), [200]);
    simulation.pass_ms(4 * HOUR_MS - 1);
    assert!(drain(&mut simulation, &mut far).is_empty(), "the day is not over");
    simulation.pass_ms(1);
    assert_eq!(drain(&mut simulation, &mut far), [0, 1, 2], "it began four hours and a restart ago");
}

#[test]
fn a_changed_bridge_keeps_its_day_and_a_larger_budget_applies_at_once() {
    let (mut simulation, mut far) = simulation(metered());
    open(&mut simulation, &mut far);
    fill(&mut simulation, 30);
    let sent = drain(&mut simulation, &mut far).len();
    for (host, max, more) in [(2, 3_100, 0), (3, 1_000_000, 30 - sent)] {
        // The new bridge has an upstream of its own, because the old link is still closing.
        let line = Rc::new(RefCell::new(Line::new(Shape::WIDE)));
        simulation
            .engine
            .platform_mut()
            .upstreams
            .push((SocketAddr::from(([10, 0, 0, host], 5672)), line.clone()));
        simulation.operators.push(line.clone());
        far = Far::new(line);
        let upstream = vec![upstream(&format!("host-{host}"))];
        simulation.engine.set_bridges(&[Bridge { upstream, day_bytes_max: Some(max), ..metered() }]);
        simulation.pass_ms(1_100);
        open(&mut simulation, &mut far);
        assert_eq!(drain(&mut simulation, &mut far).len(), more, "of {max} bytes");
    }
}

#[test]
fn notes_of_an_older_version_are_read_and_a_paused_bridge_stays_paused() {
    let old = "forward 1 8000 12 3 2 0 0 10 0 0 0 \"plant\"\n";
    let (mut simulation, _) = simulation(metered());
    simulation.engine.restore_bridge_state(old);
    simulation.pass_ms(60_000);
    assert_eq!(simulation.engine.platform_mut().dialed, 0, "it is paused");
    let notes = simulation.engine.bridge_state_text().expect("there is a bridge");
    assert!(notes.starts_with("forward 1 8000 12 3 2 \"plant\"\n"), "{notes}");
    assert!(notes.contains("day 0 0 60000 \"plant\"\n"), "{notes}");
}

/// Answers a fetching link until messages can flow. Returns the number of queues that it consumes.
pub(super) fn open_fetch(simulation: &mut Simulation, far: &mut Far) -> usize {
    open_for(simulation, far);
    far.answer(simulation).iter().filter(|(_, name)| *name == "basic.consume").count()
}

/// Delivers a message of a rule on its channel.
pub(super) fn deliver(simulation: &mut Simulation, far: &Far, rule: u16, delivery_tag: u64) {
    let (redelivered, exchange, routing_key) = (false, "", &b"k"[..]);
    let consumer_tag = &*format!("bridge-{rule}");
    let deliver = Method::BasicDeliver { consumer_tag, delivery_tag, redelivered, exchange, routing_key };
    far.say(rule + 1, &deliver);
    far.say_bytes(&content_frames(rule + 1, &[0, 0], &[7; 900], 1_000));
    simulation.run();
}

#[test]
fn fetching_stops_when_the_budget_is_used_and_resumes_the_next_day() {
    let fetch = vec![rule("there", false), rule("urgent", true)];
    let (mut simulation, mut far) = simulation(Bridge { forward: Vec::new(), fetch, ..metered() });
    let client = simulation.open(&[1]);
    assert_eq!(open_fetch(&mut simulation, &mut far), 2);
    deliver(&mut simulation, &far, 0, 1);
    assert_eq!(far.names(), ["basic.ack"]);
    for tag in 2..=3 {
        deliver(&mut simulation, &far, 0, tag);
    }
    far.mute = vec!["basic.cancel"];
    let said = far.names();
    assert_eq!(said.iter().filter(|name| **name == "basic.cancel").count(), 1, "{said:?}");
    // Deliveries that were under way are accepted, and so are urgent ones.
    deliver(&mut simulation, &far, 0, 4);
    deliver(&mut simulation, &far, 1, 1);
    assert_eq!(far.names_on(), [(1, "basic.ack"), (2, "basic.ack")]);
    far.say(1, &Method::BasicCancelOk { consumer_tag: "bridge-0" });
    simulation.run();
    assert_eq!(far.answer(&mut simulation), [(1, "channel.close")], "with the consumer the channel is over");
    assert_eq!(
        simulation.counts(client, 1, "there.moved").0 + simulation.counts(client, 1, "urgent.moved").0,
        5
    );
    simulation.pass_ms(HOUR_MS);
    far.line.borrow_mut().lose();
    simulation.run();
    far.heard.clear();
    simulation.pass_ms(1_100);
    assert_eq!(
        open_fetch(&mut simulation, &mut far),
        1,
        "a link that comes up meanwhile takes what is urgent"
    );
    let asked = far.pass_ms(&mut simulation, 24 * HOUR_MS);
    assert_eq!(asked.last(), Some(&(1, "basic.consume")), "{asked:?}");
}

#[test]
fn the_next_day_wakes_a_broker_that_has_nothing_else_to_do() {
    let (mut simulation, _) = simulation(metered());
    let half_an_hour_left = "day 9000 0 84600000 \"plant\"\n";
    simulation
        .engine
        .restore_bridge_state(&format!("forward 1 0 0 0 0 0 0 0 0 0 0 \"plant\"\n{half_an_hour_left}"));
    // The broker has finished its start by then, and stores the used part of the day within a minute.
    simulation.pass_ms(10_000);
    let now = simulation.engine.now();
    assert_eq!(simulation.engine.next_deadline().ms_left(now), Some(50_000));
    simulation.pass_ms(HOUR_MS / 3);
    let now = simulation.engine.now();
    assert_eq!(simulation.engine.next_deadline().ms_left(now), Some(HOUR_MS / 6 - 10_000));
}

#[test]
fn a_day_ends_even_if_the_power_is_cut_every_45_minutes() {
    let (mut simulation, mut far) = self::simulation(metered());
    open(&mut simulation, &mut far);
    fill(&mut simulation, 30);
    drain(&mut simulation, &mut far);
    simulation.pass_ms(1_000);
    let mut notes =
        simulation.engine.platform_mut().noted.last().expect("a budget that is used is written down").clone();
    let mut runs = 0;
    // Each run of 45 minutes ends with a power cut. The next one knows only the last stored notes.
    loop {
        let (mut simulation, mut far) = self::simulation(metered());
        simulation.engine.restore_bridge_state(&notes);
        open(&mut simulation, &mut far);
        fill(&mut simulation, 3);
        if !drain(&mut simulation, &mut far).is_empty() {
            break;
        }
        simulation.pass_ms(3 * HOUR_MS / 4);
        let noted = &simulation.engine.platform_mut().noted;
        assert!(noted.len() < 8, "{} times in 45 minutes", noted.len());
        notes = noted.last().unwrap_or(&notes).clone();
        runs += 1;
        assert!(runs < 64, "the day never ends: {notes}");
    }
    assert!(runs >= 32, "after {runs} runs of 45 minutes the day was not over");
}
