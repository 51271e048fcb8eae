//! Fetching when messages find no local capacity or do not progress, and from a hostile upstream.

use leveret_amqp::{ContentHeader, Method, Properties, Table, Writer};
use leveret_config::bridge::{Bridge, Destination, RefusedAction, Rule};

use super::bridge::{Far, ack, ask, bridge, fill, open, simulation, upstream};
use super::bridge_day::open_fetch;
use leveret_test_support::simulated_server::{Simulation, content_frames, declare_with, frame, method_frame};

const STATUS: &str = "GET /api/ctl/bridges";
/// Maximum time without progress, in milliseconds: the default of `content_timeout`.
const PATIENCE_MS: u64 = 30_000;

fn fetching() -> Bridge {
    let to = Destination::Queue("here".into());
    let fetch = vec![Rule { queue: "far".into(), to, refused: RefusedAction::Park, is_urgent: false }];
    Bridge { forward: Vec::new(), fetch, heartbeat_s: 0, ..bridge() }
}

fn delivery(delivery_tag: u64) -> Vec<u8> {
    let (consumer_tag, redelivered, exchange, routing_key) = ("bridge-0", false, "", &b"far"[..]);
    method_frame(1, &Method::BasicDeliver { consumer_tag, delivery_tag, redelivered, exchange, routing_key })
}

fn deliver(simulation: &mut Simulation, far: &Far, tag: u64) {
    far.say_bytes(&[delivery(tag), content_frames(1, &[0, 0], &[tag as u8], 100)].concat());
    simulation.run();
}

fn header(body_len: u64) -> Vec<u8> {
    let mut room = [0; 64];
    let mut writer = Writer::new(&mut room);
    ContentHeader::new(body_len, Properties::EMPTY).emit_frame(1, &mut writer).expect("it fits");
    writer.written().to_vec()
}

/// Replaces a queue of the bridge by one that rejects everything beyond `most` messages.
fn narrow(simulation: &mut Simulation, client: usize, queue: &str, most: i32) {
    simulation.ask(
        client,
        1,
        &Method::QueueDelete { queue, if_unused: false, if_empty: false, no_wait: false },
    );
    let mut room = [0; 128];
    let mut writer = Writer::new(&mut room);
    let written = writer.table(|table| {
        table.int("x-max-length", most).and_then(|()| table.text("x-overflow", "reject-publish"))
    });
    written.expect("it fits");
    let arguments = Table::trusted(&writer.written()[4..]);
    simulation.ask(client, 1, &declare_with(queue, true, arguments));
}

fn is_up(far: &Far) -> bool {
    far.line.borrow().is_held
}

#[test]
fn a_refused_message_waits_at_the_upstream_if_its_rule_says_so() {
    let mut config = fetching();
    config.fetch[0].refused = RefusedAction::Wait;
    let (mut simulation, mut far) = simulation(config);
    assert_eq!(open_fetch(&mut simulation, &mut far), 1);
    let client = simulation.open(&[1]);
    narrow(&mut simulation, client, "here", 1);
    for tag in 1..=2 {
        deliver(&mut simulation, &far, tag);
    }
    assert_eq!(far.names(), ["basic.ack", "channel.close"], "the upstream requeues the second");
    let said = ask(&mut simulation, STATUS);
    assert!(said.contains("refused here") && said.contains("\"state\":\"held\""), "{said}");
    assert_eq!((simulation.counts(client, 1, "here").0, simulation.counts(client, 1, "parked").0), (1, 0));
}

#[test]
fn a_message_that_neither_its_queue_nor_the_parking_queue_accepts_is_requeued_upstream_and_fetched_later() {
    let (mut simulation, mut far) = simulation(fetching());
    assert_eq!(open_fetch(&mut simulation, &mut far), 1);
    let client = simulation.open(&[1]);
    narrow(&mut simulation, client, "here", 1);
    narrow(&mut simulation, client, "parked", 1);
    // As many as the window of four allows.
    for tag in 1..=3 {
        deliver(&mut simulation, &far, tag);
    }
    assert_eq!(
        far.names(),
        ["basic.ack", "basic.ack", "channel.close"],
        "one in its queue, one parked, one refused"
    );
    let said = ask(&mut simulation, STATUS);
    assert!(said.contains("cannot be parked now"), "the status gives the reason: {said}");
    // Deliveries already under way on the channel are skipped, and the upstream requeues them.
    deliver(&mut simulation, &far, 4);
    far.say(1, &Method::ChannelCloseOk {});
    simulation.run();
    assert_eq!(simulation.counts(client, 1, "here").0, 1);
    for tries in 1..=4 {
        far.ahead.clear();
        let asked = far.pass_ms(&mut simulation, 9_000);
        assert!(asked.contains(&(1, "basic.consume")) || tries > 1, "{asked:?}");
        assert_eq!(far.ahead, [(1, false)], "one at a time, to see whether it is taken");
        deliver(&mut simulation, &far, 1);
        assert_eq!(far.answer(&mut simulation), [(1, "channel.close")]);
    }
    simulation.ask(client, 1, &Method::QueuePurge { queue: "here", no_wait: false });
    far.pass_ms(&mut simulation, 9_000);
    far.ahead.clear();
    deliver(&mut simulation, &far, 1);
    let asked: Vec<&str> = far.answer(&mut simulation).into_iter().map(|(_, name)| name).collect();
    assert_eq!(asked, ["basic.cancel", "basic.qos", "basic.ack", "basic.consume"], "all come again");
    assert_eq!(far.ahead, [(4, false)]);
    assert_eq!(["here", "parked"].map(|queue| simulation.counts(client, 1, queue).0), [1, 1]);
    simulation.ask(
        client,
        1,
        &Method::QueueDelete { queue: "parked", if_unused: false, if_empty: false, no_wait: false },
    );
    deliver(&mut simulation, &far, 2);
    assert_eq!(far.names(), ["basic.ack"]);
    assert_eq!(simulation.counts(client, 1, "parked").0, 1, "the queue was made again");
    assert_eq!(
        (simulation.engine.platform_mut().dialed, is_up(&far)),
        (1, true),
        "the link was never replaced"
    );
}

#[test]
fn a_bridge_with_a_waiting_rule_can_be_removed() {
    let (mut simulation, mut far) = simulation(fetching());
    assert_eq!(open_fetch(&mut simulation, &mut far), 1);
    let client = simulation.open(&[1]);
    narrow(&mut simulation, client, "here", 0);
    narrow(&mut simulation, client, "parked", 0);
    deliver(&mut simulation, &far, 1);
    assert!(far.names() == ["channel.close"] && is_up(&far));
    simulation.engine.set_bridges(&[]);
    simulation.pass_ms(2_000);
    assert!(!is_up(&far), "there is nothing to wait for: the upstream has it");
    simulation.operators.clear();
    simulation.end(&["here", "parked"]);
}

#[test]
fn a_content_without_progress_ends_the_link_and_frees_its_memory() {
    let halves: [Vec<u8>; 5] = [
        [delivery(1), header(1_000_000), frame(3, 1, &[7; 100])].concat(),
        [delivery(1), header(1_000_000)].concat(),
        delivery(1),
        delivery(1)[..9].to_vec(),
        vec![8],
    ];
    for half in halves {
        let (mut simulation, mut far) = simulation(fetching());
        assert_eq!(open_fetch(&mut simulation, &mut far), 1);
        far.say_bytes(&half);
        simulation.run();
        simulation.pass_ms(PATIENCE_MS - 1_000);
        assert!(is_up(&far));
        simulation.pass_ms(1_000);
        assert!(!is_up(&far), "{} octets", half.len());
        simulation.assert_no_bytes();
        let said = ask(&mut simulation, STATUS);
        assert!(said.contains("not continued for 30000 ms"), "{said}");
        simulation.pass_ms(1_100);
        assert_eq!(simulation.engine.platform_mut().dialed, 2, "it is retried");
    }
}

#[test]
fn a_content_with_slow_progress_is_accepted() {
    let (mut simulation, mut far) = simulation(fetching());
    assert_eq!(open_fetch(&mut simulation, &mut far), 1);
    let client = simulation.open(&[1]);
    for octet in [delivery(1), content_frames(1, &[0, 0], b"slow", 100)].concat() {
        simulation.pass_ms(PATIENCE_MS - 1_000);
        far.say_bytes(&[octet]);
        simulation.run();
    }
    assert_eq!(far.names(), ["basic.ack"]);
    simulation.pass_ms(10 * PATIENCE_MS);
    assert!(is_up(&far), "between messages an upstream may be silent");
    assert_eq!(simulation.counts(client, 1, "here").0, 1);
}

#[test]
fn a_partly_returned_message_ends_a_forwarding_link() {
    let (mut simulation, mut far) = simulation(Bridge { heartbeat_s: 0, ..bridge() });
    open(&mut simulation, &mut far);
    let returned =
        Method::BasicReturn { reply_code: 312, reply_text: "NO_ROUTE", exchange: "", routing_key: b"there" };
    far.say(1, &returned);
    simulation.run();
    simulation.pass_ms(PATIENCE_MS);
    assert!(!is_up(&far));
}

/// Returns a table that nests as deeply as its length allows.
fn deep_table(depth: usize) -> Vec<u8> {
    let mut table = Vec::new();
    for _ in 0..depth {
        let mut outer = b"\x01aF".to_vec();
        outer.extend((table.len() as u32).to_be_bytes());
        outer.append(&mut table);
        table = outer;
    }
    table
}

fn properties_with(headers: &[u8]) -> Vec<u8> {
    let mut properties = vec![0x20, 0];
    properties.extend((headers.len() as u32).to_be_bytes());
    properties.extend(headers);
    properties
}

#[test]
fn a_hostile_upstream_affects_only_its_own_link() {
    let wide: Vec<u8> =
        (0..5_000_u32).flat_map(|at| [&[4], &at.to_be_bytes()[..], b"t\x01"].concat()).collect();
    let cancelled = Method::BasicCancel { consumer_tag: "bridge-7", no_wait: true };
    let unknown = Method::BasicDeliver {
        consumer_tag: "bridge-9",
        delivery_tag: 1,
        redelivered: false,
        exchange: "",
        routing_key: b"far",
    };
    let whole =
        |tag: u64, properties: &[u8]| [delivery(tag), content_frames(1, properties, b"x", 100_000)].concat();
    let ends: Vec<(&str, Vec<u8>)> = vec![
        ("an unknown consumer", method_frame(1, &unknown)),
        ("an unrequested cancel-ok", method_frame(1, &cancelled)),
        ("a confirm", method_frame(1, &Method::BasicAck { delivery_tag: 1, multiple: true })),
        ("a tag that does not rise", [whole(1, &[0, 0]), whole(1, &[0, 0])].concat()),
        ("more than the window", (1..=9).flat_map(|tag| [delivery(tag), header(0)].concat()).collect()),
        ("a body without a delivery", frame(3, 1, b"x")),
        ("a header without a delivery", header(1)),
        ("a delivery within another", [delivery(1), delivery(2)].concat()),
        ("more body than was said", [delivery(1), header(1), frame(3, 1, b"xy")].concat()),
        ("a frame of another channel", frame(3, 7, b"x")),
        ("an empty method", frame(1, 1, b"")),
        ("an empty header", [delivery(1), frame(2, 1, b"")].concat()),
        (
            "a table of the wrong length",
            [delivery(1), content_frames(1, &[0x20, 0, 0, 0, 9, 0], b"x", 9)].concat(),
        ),
    ];
    for (what, bytes) in ends {
        let (mut simulation, mut far) = simulation(fetching());
        assert_eq!(open_fetch(&mut simulation, &mut far), 1);
        far.say_bytes(&bytes);
        simulation.run();
        assert!(!is_up(&far), "{what} ends the link");
        let client = simulation.open(&[1]);
        simulation.publish_to(client, 1, "here", b"others go on");
        simulation.run();
        assert!(simulation.counts(client, 1, "here").0 > 0);
        simulation.pass_ms(1_100);
        assert_eq!(simulation.engine.platform_mut().dialed, 2, "{what}: it is tried again");
    }
    let lives: Vec<(&str, Vec<u8>)> = vec![
        ("an empty body frame", [delivery(1), header(1), frame(3, 1, b""), frame(3, 1, b"x")].concat()),
        ("a deep table", whole(1, &properties_with(&deep_table(500)))),
        ("a wide table", whole(1, &properties_with(&wide))),
    ];
    for (what, bytes) in lives {
        let (mut simulation, mut far) = simulation(fetching());
        assert_eq!(open_fetch(&mut simulation, &mut far), 1);
        far.say_bytes(&bytes);
        simulation.run();
        let client = simulation.open(&[1]);
        let up = is_up(&far);
        let here = simulation.counts(client, 1, "here").0;
        assert!(!up || here == 1, "{what}: it is taken, or it ends the link: {up} {here}");
    }
}

#[test]
fn a_flood_of_requests_is_answered_as_far_as_it_is_read_and_uses_no_memory() {
    let (mut simulation, mut far) = simulation(fetching());
    assert_eq!(open_fetch(&mut simulation, &mut far), 1);
    for at in 0..2_000 {
        far.say(1, &Method::ChannelFlow { active: at % 2 == 0 });
        far.say(0, &Method::ConnectionBlocked { reason: "storm" });
        far.say(0, &Method::ConnectionUnblocked {});
        far.say_bytes(&frame(3, 1, b"")[..0]);
        if at % 50 == 0 {
            simulation.run();
            far.names();
        }
    }
    simulation.run();
    let is_quiet = far.names().iter().all(|name| *name == "channel.flow-ok");
    assert!(is_quiet && is_up(&far));
    deliver(&mut simulation, &far, 1);
    assert_eq!(far.names(), ["basic.ack"]);
}

#[test]
fn counters_continue_when_a_bridge_is_changed() {
    let (mut simulation, mut far) = simulation(bridge());
    open(&mut simulation, &mut far);
    fill(&mut simulation, 3);
    far.say(1, &ack(2, true));
    simulation.run();
    // To an unreachable upstream, because the old link is still closing.
    simulation.engine.set_bridges(&[Bridge { upstream: vec![upstream("host-2")], ..bridge() }]);
    let said = ask(&mut simulation, STATUS);
    assert!(said.contains("\"moved\":2"), "{said}");
    far.say(1, &ack(3, false));
    simulation.pass_ms(2_000);
    let said = ask(&mut simulation, STATUS);
    assert!(said.contains("\"moved\":3,\"inflow"), "{said}");
}
