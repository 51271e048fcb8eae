//! Messages that the upstream refuses, and upstream or local queues that are missing or full.
//!
//! Only the affected rule waits, and it retries one message at a time.

use leveret_amqp::{Method, Table, Writer};
use leveret_config::bridge::{Bridge, Destination, RefusedAction, Rule};

use super::bridge::{Far, Heard, ack, alarms, ask, bodies, bridge, fill, open, open_for, simulation};
use super::bridge_day::{deliver, open_fetch};
use leveret_test_support::simulated_server::{
    Shape, Simulation, content_frames, declare_with, delete, small_limits,
};

fn rule(queue: &str, refused: RefusedAction) -> Rule {
    let to = Destination::Queue(format!("{queue}.moved"));
    Rule { queue: queue.into(), to, refused, is_urgent: false }
}

/// A bridge with two rules that wait when refused.
fn waiting() -> Bridge {
    let forward = vec![rule("here", RefusedAction::Wait), rule("alarms", RefusedAction::Wait)];
    Bridge { forward, heartbeat_s: 0, ..bridge() }
}

/// Declares a queue that accepts nothing.
fn declare_full(simulation: &mut Simulation, client: usize, queue: &str) {
    let mut bytes = vec![0; 128];
    let mut writer = Writer::new(&mut bytes);
    let written = writer.table(|table| {
        table.int("x-max-length", 0).and_then(|()| table.text("x-overflow", "reject-publish"))
    });
    written.expect("there is room");
    let arguments = Table::trusted(&writer.written()[4..]);
    simulation.ask(client, 1, &declare_with(queue, true, arguments));
}

const fn nack(delivery_tag: u64, multiple: bool) -> Method<'static> {
    Method::BasicNack { delivery_tag, multiple, requeue: false }
}

fn not_found(over: (u16, u16)) -> Method<'static> {
    Method::ChannelClose { reply_code: 404, reply_text: "NOT_FOUND", class_id: over.0, method_id: over.1 }
}

/// Nacks everything sent on the channel of the first rule during this time. Returns what was sent.
pub(super) fn refuse(simulation: &mut Simulation, far: &mut Far, span_ms: u64) -> Vec<u8> {
    let mut tried = Vec::new();
    for _ in 0..span_ms / 100 {
        simulation.pass_ms(100);
        far.answer(simulation);
        let came = bodies(&far.published());
        if !came.is_empty() {
            far.say(1, &nack(far.counts[&1], true));
            simulation.run();
        }
        tried.extend(came);
    }
    tried
}

/// Waits until something is sent on the channel of the first rule. Returns it.
fn next_try(simulation: &mut Simulation, far: &mut Far) -> Vec<u8> {
    for _ in 0..100 {
        simulation.pass_ms(100);
        far.answer(simulation);
        let came = bodies(&far.published());
        if !came.is_empty() {
            return came;
        }
    }
    panic!("nothing is tried for ten seconds");
}

#[test]
fn one_message_at_a_time_is_retried_with_back_off_until_all_continue_in_order() {
    let (mut simulation, mut far) = simulation(waiting());
    open(&mut simulation, &mut far);
    let client = fill(&mut simulation, 10);
    assert_eq!(bodies(&far.published()), [0, 1, 2, 3]);
    far.say(1, &nack(4, true));
    simulation.run();
    assert_eq!(simulation.counts(client, 1, "here"), (10, 0), "all are requeued, and there is no consumer");
    assert_eq!(far.answer(&mut simulation), [(1, "channel.close")], "a channel that waits is closed");
    let tried = refuse(&mut simulation, &mut far, 60_000);
    assert!(tried.iter().all(|body| *body == 0), "the first is tried, and no other: {tried:?}");
    assert!((8..=40).contains(&tried.len()), "{} times in a minute, with pauses of 8 s at most", tried.len());
    assert_eq!(next_try(&mut simulation, &mut far), [0]);
    let mut moved = vec![0];
    loop {
        far.say(1, &ack(0, true));
        simulation.run();
        let came = bodies(&far.published());
        if came.is_empty() {
            break;
        }
        moved.extend(came);
    }
    assert_eq!(moved, (0..10).collect::<Vec<u8>>());
    assert_eq!(simulation.counts(client, 1, "here"), (0, 1));
    assert_eq!(simulation.engine.platform_mut().dialed, 1, "the connection stayed open");
}

/// Before, one misrouted rule kept the rule beside it at 0 of 270 messages, and sent its own 2,256 times.
#[test]
fn a_waiting_rule_does_not_affect_another_one() {
    let (mut simulation, mut far) = simulation(waiting());
    open(&mut simulation, &mut far);
    let client = fill(&mut simulation, 8);
    far.published();
    far.say(1, &nack(4, true));
    simulation.run();
    let mut tried = 0;
    for round in 0..100 {
        simulation.publish_to(client, 1, "alarms", &[100 + round]);
        simulation.run();
        far.answer(&mut simulation);
        let came = far.published_on();
        assert!(came.iter().any(|(on, body, _)| (*on, &body[..]) == (2, &[100 + round][..])), "{came:?}");
        far.say(2, &ack(u64::from(round) + 1, false));
        for _ in came.iter().filter(|(on, ..)| *on == 1) {
            tried += 1;
            far.say(1, &nack(far.counts[&1], false));
        }
        simulation.run();
        simulation.pass_ms(300);
    }
    assert_eq!(simulation.counts(client, 1, "alarms"), (0, 1), "each was settled");
    assert!((4..=20).contains(&tried), "the other was tried {tried} times in half a minute");
    assert_eq!(simulation.engine.platform_mut().dialed, 1);
}

/// Before, 200 refused messages caused 202 connections.
#[test]
fn after_a_channel_close_one_message_is_retried_alone_and_the_link_stays() {
    let (mut simulation, mut far) = simulation(waiting());
    open(&mut simulation, &mut far);
    let client = fill(&mut simulation, 5);
    for number in 100..103 {
        simulation.publish_to(client, 1, "alarms", &[number]);
    }
    simulation.run();
    assert_eq!(far.published().len(), 7);
    far.say(1, &not_found((60, 40)));
    far.say(2, &ack(3, true));
    simulation.run();
    assert_eq!(simulation.counts(client, 1, "alarms"), (0, 1), "the other rule did not notice");
    assert_eq!(simulation.counts(client, 1, "here").0, 5);
    for _ in 0..4 {
        assert_eq!(next_try(&mut simulation, &mut far), [0], "one is tried alone, for it may be any of them");
        far.say(1, &not_found((60, 40)));
        simulation.run();
    }
    assert_eq!(next_try(&mut simulation, &mut far), [0]);
    far.say(1, &ack(1, false));
    simulation.run();
    assert_eq!(bodies(&far.published()), [1, 2, 3, 4], "it is taken by now, and so are the others");
    assert_eq!(simulation.engine.platform_mut().dialed, 1);
}

/// A partly written frame is completed even if its channel is closed. Otherwise later bytes of the connection
/// would be read as part of it.
#[test]
fn a_channel_closed_in_the_middle_of_a_message_does_not_corrupt_other_channels() {
    for cut in [1, 60, 200, 5_000, 40_000] {
        let (mut simulation, mut far) = simulation(waiting());
        open(&mut simulation, &mut far);
        let client = simulation.open(&[1]);
        far.line.borrow_mut().shape.down_room = cut;
        simulation.publish_to(client, 1, "here", &vec![7; 100_000]);
        simulation.run();
        far.say(1, &not_found((60, 40)));
        simulation.publish_to(client, 1, "alarms", &[100]);
        simulation.run();
        far.line.borrow_mut().shape.down_room = Shape::WIDE.down_room;
        let asked = far.answer(&mut simulation);
        simulation.run();
        let came = far.published_on();
        assert!(came.iter().any(|(on, body, _)| (*on, &body[..]) == (2, &[100][..])), "{cut}: {asked:?}");
        assert_eq!(simulation.engine.platform_mut().dialed, 1);
        assert_eq!(simulation.counts(client, 1, "here").0, 1, "{cut}: it is where it was");
    }
}

#[test]
fn a_waiting_rule_sends_only_one_message_on_a_new_link() {
    let (mut simulation, mut far) = simulation(waiting());
    open(&mut simulation, &mut far);
    fill(&mut simulation, 10);
    far.published();
    far.say(1, &nack(4, true));
    simulation.run();
    far.line.borrow_mut().lose();
    simulation.run();
    far.heard.clear();
    simulation.pass_ms(9_000);
    open(&mut simulation, &mut far);
    assert_eq!(bodies(&far.published()), [0], "it tries after its pause, with one");
}

#[test]
fn an_operator_sees_why_a_rule_waits_and_can_retry_at_once() {
    let (mut simulation, mut far) = simulation(Bridge { reconnect_max_ms: 300_000, ..waiting() });
    open(&mut simulation, &mut far);
    fill(&mut simulation, 10);
    far.published();
    far.say(1, &nack(4, true));
    simulation.run();
    // At that time a pause may last minutes.
    refuse(&mut simulation, &mut far, 600_000);
    for order in ["resume", "retry"] {
        let shown = ask(&mut simulation, "GET /api/ctl/bridges");
        assert!(shown.contains("\"held_rules\":1"), "{shown}");
        assert!(shown.contains("here: its first message is refused by the upstream (basic.nack)"), "{shown}");
        ask(&mut simulation, &format!("POST /api/ctl/bridges/plant/{order}"));
        far.answer(&mut simulation);
        assert_eq!(bodies(&far.published()), [0], "{order}: it tries at once, with one message");
        far.say(1, &nack(1, false));
        simulation.run();
        far.answer(&mut simulation);
        assert!(far.published().is_empty(), "and waits again");
    }
}

/// RabbitMQ nacks messages while a quorum queue is full or has no leader, which says little about the
/// message.
///
/// A channel opened meanwhile may nack forever, so each attempt uses a channel of its own.
#[test]
fn a_nacked_message_is_retried_alone_and_on_another_channel_before_it_is_parked() {
    let config = Bridge { forward: vec![rule("here", RefusedAction::Park)], ..waiting() };
    let (mut simulation, mut far) = simulation(config);
    open(&mut simulation, &mut far);
    let client = fill(&mut simulation, 6);
    assert_eq!(bodies(&far.published()), [0, 1, 2, 3]);
    far.say(1, &nack(4, true));
    simulation.run();
    assert_eq!(simulation.counts(client, 1, "parked").0, 0, "the upstream is at fault, not the message");
    for tries in 1..=5 {
        assert_eq!(next_try(&mut simulation, &mut far), [0]);
        assert_eq!(far.counts[&1], 1, "the channel is new");
        far.say(1, &nack(1, false));
        simulation.run();
        assert_eq!(simulation.counts(client, 1, "parked").0, u32::from(tries == 5), "after {tries} tries");
    }
    assert_eq!(next_try(&mut simulation, &mut far), [1], "the next is tried alone, and not at once");
    far.say(1, &ack(1, false));
    simulation.run();
    assert_eq!(
        bodies(&far.published()),
        [2, 3, 4, 5],
        "a message that is always refused does not block others"
    );
    far.say(1, &ack(5, true));
    simulation.run();
    assert_eq!((simulation.counts(client, 1, "parked").0, simulation.counts(client, 1, "here").0), (1, 0));
    assert_eq!(simulation.engine.platform_mut().dialed, 1);
}

/// Before, a full upstream queue with 4,000 waiting messages caused 14,567 sends, and would have parked all
/// of them.
#[test]
fn messages_for_a_full_upstream_queue_are_retried_and_not_all_parked() {
    let config = Bridge { forward: vec![rule("here", RefusedAction::Park)], ..waiting() };
    let (mut simulation, mut far) = simulation(Bridge { reconnect_max_ms: 60_000, ..config });
    open(&mut simulation, &mut far);
    let client = fill(&mut simulation, 200);
    far.published();
    far.say(1, &nack(4, true));
    simulation.run();
    let tried = refuse(&mut simulation, &mut far, 3_600_000);
    let parked = simulation.counts(client, 1, "parked").0;
    assert!((60..=200).contains(&tried.len()), "{} sends in an hour", tried.len());
    assert_eq!(parked as usize, tried.len() - 4, "five for the first, one for each behind it");
    assert_eq!(simulation.counts(client, 1, "here").0, 200 - parked, "the others wait");
}

/// Returns everything published on the channel of the first rule, like a broker without the queue. Gives the
/// bodies.
fn give_back(simulation: &mut Simulation, far: &mut Far, count: &mut u64) -> Vec<u8> {
    let came = far.published();
    for (body, properties) in &came {
        let (reply_text, routing_key) = ("NO_ROUTE", &b"here.moved"[..]);
        far.say(1, &Method::BasicReturn { reply_code: 312, reply_text, exchange: "", routing_key });
        far.say_bytes(&content_frames(1, properties, body, 100_000));
        *count += 1;
        far.say(1, &ack(*count, false));
        simulation.run();
    }
    bodies(&came)
}

/// Before, 2,525 messages were parked in 20 s, although nothing was wrong with any of them.
#[test]
fn a_missing_upstream_target_queue_holds_its_rule_and_parks_nothing() {
    for refused in [RefusedAction::Park, RefusedAction::Wait] {
        let config = Bridge { forward: vec![rule("here", refused)], ..waiting() };
        let (mut simulation, mut far) = simulation(Bridge { park_after: 1, ..config });
        open(&mut simulation, &mut far);
        let client = fill(&mut simulation, 10);
        assert_eq!(give_back(&mut simulation, &mut far, &mut 0), [0, 1, 2, 3]);
        let mut tried = Vec::new();
        for _ in 0..600 {
            simulation.pass_ms(100);
            far.answer(&mut simulation);
            tried.extend(give_back(&mut simulation, &mut far, &mut 0));
        }
        assert!(tried.iter().all(|body| *body == 0), "the first is tried, and no other: {tried:?}");
        assert!((8..=40).contains(&tried.len()), "{} times in a minute", tried.len());
        assert_eq!(
            (simulation.counts(client, 1, "parked").0, simulation.counts(client, 1, "here").0),
            (0, 10)
        );
        let shown = ask(&mut simulation, "GET /api/ctl/bridges");
        assert!(shown.contains("\"state\":\"held\"") && shown.contains("\"held_rules\":1"), "{shown}");
        assert!(shown.contains("here: queue 'here.moved' is missing there"), "{shown}");
        let said = alarms(&mut simulation);
        assert!(
            said.contains("rule: a rule of bridge plant moves no messages (here: queue 'here.moved'"),
            "{said}"
        );
        assert_eq!(next_try(&mut simulation, &mut far), [0]);
        far.say(1, &ack(1, false));
        simulation.run();
        assert_eq!(bodies(&far.published()), [1, 2, 3, 4], "it is there by now");
        let shown = ask(&mut simulation, "GET /api/ctl/bridges");
        assert!(shown.contains("\"state\":\"running\"") && shown.contains("\"last_error\":\"\""), "{shown}");
        assert!(!alarms(&mut simulation).contains("rule:"), "the rule moves messages again");
        assert_eq!(simulation.engine.platform_mut().dialed, 1);
    }
}

/// The opposite direction: a client deletes a local queue.
#[test]
fn a_deleted_local_target_queue_is_declared_again_and_nothing_is_parked() {
    let fetch = vec![rule("commands", RefusedAction::Park)];
    let config = Bridge { forward: Vec::new(), fetch, heartbeat_s: 0, ..bridge() };
    let (mut simulation, mut far) = simulation(config);
    let client = simulation.open(&[1]);
    assert_eq!(open_fetch(&mut simulation, &mut far), 1);
    simulation.ask(client, 1, &delete("commands.moved"));
    deliver(&mut simulation, &far, 0, 1);
    let shown = ask(&mut simulation, "GET /api/ctl/bridges");
    assert!(shown.contains("commands: queue 'commands.moved' is missing here"), "{shown}");
    assert!(shown.contains("\"state\":\"held\""), "{shown}");
    far.answer(&mut simulation);
    far.pass_ms(&mut simulation, 1_100);
    deliver(&mut simulation, &far, 0, 1);
    assert_eq!(simulation.counts(client, 1, "commands.moved").0, 1);
    assert_eq!(simulation.counts(client, 1, "parked").0, 0);
    let shown = ask(&mut simulation, "GET /api/ctl/bridges");
    assert!(shown.contains("\"state\":\"running\"") && shown.contains("\"last_error\":\"\""), "{shown}");
}

/// Each rule has a state of its own, so a waiting rule is visible beside a running one.
#[test]
fn the_state_names_a_rule_that_is_held_beside_one_that_runs() {
    let (mut simulation, mut far) = simulation(waiting());
    open(&mut simulation, &mut far);
    let client = fill(&mut simulation, 1);
    give_back(&mut simulation, &mut far, &mut 0);
    simulation.publish_to(client, 1, "alarms", &[100]);
    simulation.run();
    far.say(2, &ack(1, false));
    simulation.run();
    let shown = ask(&mut simulation, "GET /api/ctl/bridges");
    assert!(shown.contains("\"state\":\"held\""), "{shown}");
    for rule in ["\"queue\":\"here\",\"state\":\"held\"", "\"queue\":\"alarms\",\"state\":\"running\""] {
        assert!(shown.contains(rule), "{rule}: {shown}");
    }
}

/// The upstream pauses one channel, and no other channel waits for that.
#[test]
fn channel_flow_from_the_upstream_pauses_and_resumes_one_rule() {
    let (mut simulation, mut far) = simulation(waiting());
    open(&mut simulation, &mut far);
    let client = fill(&mut simulation, 2);
    assert_eq!(bodies(&far.published()), [0, 1]);
    far.say(1, &Method::ChannelFlow { active: false });
    simulation.run();
    assert_eq!(far.answer(&mut simulation), [(1, "channel.flow-ok")]);
    fill(&mut simulation, 3);
    simulation.publish_to(client, 1, "alarms", &[100]);
    simulation.run();
    let came: Vec<_> = far.published_on().into_iter().map(|(on, body, _)| (on, body[0])).collect();
    assert_eq!(came, [(2, 100)], "the other channel goes on");
    far.say(2, &ack(1, false));
    simulation.run();
    let shown = ask(&mut simulation, "GET /api/ctl/bridges");
    assert!(shown.contains("\"state\":\"blocked\""), "{shown}");
    far.pass_ms(&mut simulation, 180_000);
    assert!(far.published().is_empty());
    assert_eq!(simulation.engine.platform_mut().dialed, 1, "what pauses need confirm nothing");
    far.say(1, &ack(2, true));
    simulation.run();
    assert!(far.published().is_empty(), "there is room in the window, and a pause");
    far.say(1, &Method::ChannelFlow { active: true });
    simulation.run();
    assert_eq!(far.answer(&mut simulation), [(1, "channel.flow-ok")]);
    assert_eq!(bodies(&far.published()), [0, 1, 2]);
    far.say(1, &ack(5, true));
    simulation.run();
    assert_eq!(simulation.counts(client, 1, "here"), (0, 1));
    assert_eq!(simulation.engine.platform_mut().dialed, 1);
}

/// A partly sent content is completed before the answer, because nothing may come between its frames.
#[test]
fn channel_flow_in_the_middle_of_a_message_is_answered_after_it() {
    // More than one write, so that the answer is due before the rest of the content.
    for cut in [1, 60, 5_000, 40_000] {
        let (mut simulation, mut far) = simulation(waiting());
        open(&mut simulation, &mut far);
        let client = simulation.open(&[1]);
        far.line.borrow_mut().shape.down_room = cut;
        simulation.publish_to(client, 1, "here", &vec![7; 600_000]);
        simulation.publish_to(client, 1, "here", &[8]);
        simulation.run();
        far.say(1, &Method::ChannelFlow { active: false });
        simulation.run();
        far.line.borrow_mut().shape.down_room = Shape::WIDE.down_room;
        let mut came = String::new();
        let mut body_bytes = 0;
        for _ in 0..20 {
            for (on, heard) in far.take() {
                match heard {
                    Heard::Method(name, _) => came += &format!("{on} {name} after {body_bytes}; "),
                    Heard::Body(octets) => body_bytes += octets.len(),
                    Heard::Header(..) | Heard::Heartbeat => {}
                }
            }
            simulation.run();
        }
        let wanted = "1 basic.publish after 0; 1 channel.flow-ok after 600000; ";
        assert_eq!((&*came, body_bytes), (wanted, 600_000), "cut at {cut}");
    }
}

#[test]
fn messages_are_parked_at_once_and_retried_later_if_configured() {
    let forward = vec![rule("here", RefusedAction::Park)];
    let config = Bridge { forward, park_after: 0, park_retry_ms: Some(60_000), ..waiting() };
    let (mut simulation, mut far) = simulation(config);
    open(&mut simulation, &mut far);
    let client = fill(&mut simulation, 1);
    assert_eq!(bodies(&far.published()), [0]);
    far.say(1, &nack(1, false));
    simulation.run();
    assert_eq!(simulation.counts(client, 1, "parked").0, 1);
    far.pass_ms(&mut simulation, 59_000);
    assert!(far.published().is_empty());
    assert_eq!(next_try(&mut simulation, &mut far), [0], "a minute later it is tried again");
    far.say(1, &ack(1, false));
    simulation.run();
    assert_eq!((simulation.counts(client, 1, "parked").0, simulation.counts(client, 1, "here").0), (0, 0));
}

#[test]
fn a_message_that_cannot_be_parked_delays_only_its_own_rule() {
    let config = Bridge {
        forward: vec![rule("here", RefusedAction::Park), rule("alarms", RefusedAction::Park)],
        ..waiting()
    };
    let (mut simulation, mut far) = simulation(config);
    let client = simulation.open(&[1]);
    simulation.ask(client, 1, &delete("parked"));
    declare_full(&mut simulation, client, "parked");
    open(&mut simulation, &mut far);
    fill(&mut simulation, 3);
    far.published();
    far.say(1, &nack(1, false));
    far.say(1, &ack(3, true));
    simulation.run();
    refuse(&mut simulation, &mut far, 120_000);
    assert_eq!(simulation.counts(client, 1, "here").0, 1, "there is no room for it, and it is back");
    let shown = ask(&mut simulation, "GET /api/ctl/bridges");
    assert!(shown.contains("parked is full"), "{shown}");
    simulation.publish_to(client, 1, "alarms", &[100]);
    simulation.run();
    assert_eq!(bodies(&far.published()), [100]);
    far.say(2, &ack(0, true));
    simulation.run();
    assert_eq!(simulation.counts(client, 1, "alarms"), (0, 1));
    assert_eq!(simulation.engine.platform_mut().dialed, 1);
}

#[test]
fn a_missing_upstream_queue_does_not_stop_fetching_from_others() {
    let fetch = vec![rule("commands", RefusedAction::Park), rule("news", RefusedAction::Park)];
    let config = Bridge { forward: Vec::new(), fetch, heartbeat_s: 0, ..bridge() };
    let (mut simulation, mut far) = simulation(config);
    let client = simulation.open(&[1]);
    open_for(&mut simulation, &mut far);
    far.mute = vec!["basic.consume"];
    far.answer(&mut simulation);
    far.say(1, &not_found((60, 20)));
    far.say(2, &Method::BasicConsumeOk { consumer_tag: "bridge-1" });
    simulation.run();
    deliver(&mut simulation, &far, 1, 1);
    assert_eq!(simulation.counts(client, 1, "news.moved").0, 1);
    far.mute.clear();
    simulation.pass_ms(1_100);
    let asked = far.answer(&mut simulation);
    assert!(asked.contains(&(1, "basic.consume")), "it is asked for again: {asked:?}");
    deliver(&mut simulation, &far, 0, 1);
    assert_eq!(simulation.counts(client, 1, "commands.moved").0, 1);
    assert_eq!(simulation.engine.platform_mut().dialed, 1);
}

#[test]
fn a_deleted_upstream_queue_does_not_end_the_link() {
    let fetch = vec![rule("commands", RefusedAction::Park), rule("news", RefusedAction::Park)];
    let config = Bridge { forward: Vec::new(), fetch, heartbeat_s: 0, ..bridge() };
    let (mut simulation, mut far) = simulation(config);
    let client = simulation.open(&[1]);
    assert_eq!(open_fetch(&mut simulation, &mut far), 2);
    far.say(1, &Method::BasicCancel { consumer_tag: "bridge-0", no_wait: true });
    simulation.run();
    deliver(&mut simulation, &far, 1, 1);
    assert_eq!(simulation.counts(client, 1, "news.moved").0, 1);
    far.answer(&mut simulation);
    simulation.pass_ms(1_100);
    let asked = far.answer(&mut simulation);
    assert!(asked.contains(&(1, "basic.consume")), "it is asked for again: {asked:?}");
    deliver(&mut simulation, &far, 0, 1);
    assert_eq!(simulation.counts(client, 1, "commands.moved").0, 1);
    assert_eq!(simulation.engine.platform_mut().dialed, 1);
}

/// RabbitMQ's quorum queues refuse a prefetch count that consumers share.
#[test]
fn the_window_is_divided_among_the_queues_that_are_fetched() {
    for (window, each) in [(4, 2), (5, 2), (1, 1)] {
        let fetch = vec![rule("commands", RefusedAction::Park), rule("news", RefusedAction::Park)];
        let config = Bridge { forward: Vec::new(), fetch, window, heartbeat_s: 0, ..bridge() };
        let (mut simulation, mut far) = simulation(config);
        assert_eq!(open_fetch(&mut simulation, &mut far), 2);
        assert_eq!(far.ahead, [(each, false); 2], "a window of {window}");
    }
}

#[test]
fn a_delivery_before_its_consumer_has_begun_ends_the_link_and_keeps_no_memory() {
    let fetch = vec![rule("first", RefusedAction::Park), rule("second", RefusedAction::Park)];
    let (mut simulation, mut far) = simulation(Bridge { forward: Vec::new(), fetch, ..waiting() });
    let used = simulation.engine.messages().messages_used();
    far.mute = vec!["basic.consume"];
    open_for(&mut simulation, &mut far);
    far.answer(&mut simulation);
    for tag in 1..=3 {
        deliver(&mut simulation, &far, 1, tag);
    }
    assert_eq!(simulation.engine.messages().messages_used(), used);
    assert!(!far.line.borrow().is_held);
}

/// Before, it was downloaded repeatedly, its window was full, and the state was "running".
#[test]
fn a_message_that_is_too_large_for_this_broker_costs_one_download_and_blocks_no_other() {
    for refused in [RefusedAction::Park, RefusedAction::Reject] {
        let fetch = vec![rule("far", refused)];
        let config = Bridge { forward: Vec::new(), fetch, window: 2, heartbeat_s: 0, ..bridge() };
        let (mut simulation, mut far) = simulation(config);
        let client = simulation.open(&[1]);
        assert_eq!(open_fetch(&mut simulation, &mut far), 1);
        let body = vec![7; small_limits().message_size_max as usize + 1];
        let mut wanted = Vec::new();
        for tag in 1..=3 {
            let deliver = Method::BasicDeliver {
                consumer_tag: "bridge-0",
                delivery_tag: tag,
                redelivered: false,
                exchange: "",
                routing_key: b"k",
            };
            far.say(1, &deliver);
            for part in content_frames(1, &[0, 0], &body, 100_000).chunks(30_000) {
                far.say_bytes(part);
                simulation.run();
            }
            wanted.extend(far.answer(&mut simulation).into_iter().map(|(_, name)| name));
        }
        for tag in 4..=9 {
            deliver(&mut simulation, &far, 0, tag);
        }
        assert_eq!(simulation.counts(client, 1, "far.moved").0, 6, "{refused}: all others come");
        let shown = ask(&mut simulation, "GET /api/ctl/bridges");
        let alarms = ask(&mut simulation, "GET /api/ctl/alarms");
        assert!(shown.contains("is too large for this broker"), "{shown}");
        match refused {
            RefusedAction::Reject => {
                assert_eq!(wanted, ["basic.reject"; 3]);
                assert!(shown.contains("\"held\":0") && !alarms.contains("held:"), "{alarms}");
            }
            _ => {
                assert_eq!(wanted, ["basic.cancel", "basic.qos", "basic.consume"].repeat(3));
                assert_eq!(far.ahead, [2, 3, 4, 5].map(|ahead| (ahead, false)), "what is held takes no room");
                assert!(shown.contains("\"held\":3"), "{shown}");
                assert!(alarms.contains("held: 3 messages are too large for this broker"), "{alarms}");
            }
        }
        assert_eq!(simulation.engine.platform_mut().dialed, 1);
    }
}
