//! A bridge on a slow line: urgent messages go first, and large ones arrive.

use leveret_amqp::{HEARTBEAT_FRAME, Method};
use leveret_config::bridge::{Bridge, Destination, RefusedAction, Rule};

use super::bridge::{Far, ack, ask, bridge, open, simulation};
use leveret_test_support::simulated_server::{Shape, Simulation};

/// Number of unread bytes that the line accepts, like a kernel buffer.
const ROOM: usize = 8 << 10;
/// Size of a body frame of a bridge, and of the frames around a small message.
const FRAME: usize = 4096;
const HEAD: usize = 512;

fn rule(queue: &str, is_urgent: bool) -> Rule {
    let to = Destination::Queue(format!("{queue}.moved"));
    Rule { queue: queue.into(), to, refused: RefusedAction::Park, is_urgent }
}

/// Reads at most `octets` bytes from the line.
fn read(simulation: &mut Simulation, far: &mut Far, octets: usize) -> usize {
    let read = far.line.borrow_mut().read_down(octets, &mut far.heard);
    simulation.run();
    read
}

/// Before, an urgent message took 20 to 32 s at 64 kbit/s, behind the telemetry already on its way.
#[test]
fn an_urgent_message_waits_only_for_the_kernel_buffer_and_one_frame() {
    let forward = vec![rule("here", false), rule("alarms", true)];
    let (mut simulation, mut far) = simulation(Bridge { forward, window: 64, heartbeat_s: 0, ..bridge() });
    open(&mut simulation, &mut far);
    far.line.borrow_mut().shape.down_room = ROOM;
    let client = simulation.open(&[1]);
    for number in 0..8 {
        simulation.publish_to(client, 1, "here", &vec![number; 200_000]);
    }
    simulation.run();
    // The line may stop at any point of a message and of a frame.
    for round in 0..40 {
        read(&mut simulation, &mut far, 30_011 + round * 977);
        assert!(far.published_on().iter().all(|(on, ..)| *on == 1));
        simulation.publish_to(client, 1, "alarms", &[100 + round as u8]);
        simulation.run();
        let mut went = 0;
        loop {
            went += read(&mut simulation, &mut far, 256);
            if far.published_on().iter().any(|(on, body, _)| *on == 2 && body[0] == 100 + round as u8) {
                break;
            }
            assert!(went <= ROOM + FRAME + HEAD + 256, "round {round}: {went} octets before the alarm");
        }
        far.say(2, &ack(round as u64 + 1, false));
        simulation.run();
    }
    assert_eq!(simulation.counts(client, 1, "alarms"), (0, 1));
    far.line.borrow_mut().shape.down_room = Shape::WIDE.down_room;
    let mut came = 0;
    while read(&mut simulation, &mut far, usize::MAX) > 0 {
        came += far.published_on().len();
        far.say(1, &ack(0, true));
        simulation.run();
    }
    assert_eq!(
        (simulation.counts(client, 1, "here"), simulation.engine.platform_mut().dialed),
        ((0, 1), 1),
        "{came}"
    );
}

/// Before, a message of 2 MB never arrived at 64 kbit/s: its confirm was due one minute after its first byte.
#[test]
fn a_message_that_takes_longer_than_the_confirm_timeout_arrives() {
    let config = Bridge { heartbeat_s: 30, ..bridge() };
    let (mut simulation, mut far) = simulation(config);
    open(&mut simulation, &mut far);
    far.line.borrow_mut().shape.down_room = ROOM;
    let client = simulation.open(&[1]);
    let body = vec![7; 1 << 20];
    simulation.publish_to(client, 1, "here", &body);
    simulation.run();
    let mut seconds = 0;
    while read(&mut simulation, &mut far, 8_000) > 0 {
        simulation.pass_ms(1_000);
        seconds += 1;
        if seconds % 20 == 0 {
            far.say_bytes(&HEARTBEAT_FRAME);
        }
    }
    assert!(seconds > 120, "{seconds} s on the way");
    for _ in 0..5 {
        far.say_bytes(&HEARTBEAT_FRAME);
        simulation.pass_ms(10_000);
    }
    let came = far.published();
    assert!(came.len() == 1 && came[0].0 == body, "it is whole");
    far.say(1, &ack(1, false));
    simulation.run();
    assert_eq!((simulation.counts(client, 1, "here"), simulation.engine.platform_mut().dialed), ((0, 1), 1));
}

/// Before, a broker did not start when a password file was missing, and had to be told about a new one.
#[test]
fn a_missing_password_file_affects_only_its_bridge_and_is_read_at_each_attempt() {
    let folder = std::env::temp_dir().join(format!("leveret-pair-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("there is a place for it");
    let file = folder.join("password");
    let (mut simulation, mut far) = simulation(Bridge { password_file: Some(file.clone()), ..bridge() });
    let client = simulation.open(&[1]);
    simulation.publish_to(client, 1, "here", &[1]);
    simulation.run();
    let shown = ask(&mut simulation, "GET /api/ctl/bridges");
    assert!(shown.contains("password cannot be read: No such file"), "{shown}");
    assert_eq!(
        (simulation.counts(client, 1, "here"), simulation.engine.platform_mut().dialed),
        ((1, 0), 0),
        "all else goes on"
    );
    std::fs::write(&file, "secret\n").expect("it can be written");
    simulation.pass_ms(8_000);
    open(&mut simulation, &mut far);
    assert_eq!(far.published().len(), 1);
    std::fs::remove_dir_all(&folder).expect("it was made here");
}

/// Closing takes as long as the upstream takes to read what was written before, but at most 30 s.
#[test]
fn a_paused_link_whose_upstream_reads_nothing_is_closed_after_a_time() {
    let (mut simulation, mut far) = simulation(Bridge { heartbeat_s: 0, window: 64, ..bridge() });
    open(&mut simulation, &mut far);
    simulation.pass_ms(31_000);
    far.line.borrow_mut().shape.down_room = FRAME;
    let client = simulation.open(&[1]);
    for _ in 0..64 {
        simulation.publish_to(client, 1, "here", &[7; 1_000]);
    }
    simulation.run();
    // No message is in flight any more, so the link may be closed.
    let reply_text = "NOT_FOUND";
    far.say(1, &Method::ChannelClose { reply_code: 404, reply_text, class_id: 60, method_id: 40 });
    simulation.run();
    ask(&mut simulation, "POST /api/ctl/bridges/plant/pause");
    simulation.pass_ms(29_000);
    assert!(far.line.borrow().is_held, "the upstream may still read");
    simulation.pass_ms(2_000);
    assert!(!far.line.borrow().is_held);
    let shown = ask(&mut simulation, "GET /api/ctl/bridges");
    assert!(shown.contains("\"state\":\"paused\""), "{shown}");
    assert_eq!(simulation.counts(client, 1, "here"), (64, 0), "no message is lost");
}

#[test]
fn a_link_that_the_upstream_closes_answers_once() {
    let (mut simulation, mut far) = simulation(Bridge { heartbeat_s: 0, ..bridge() });
    open(&mut simulation, &mut far);
    let clients: Vec<usize> = (0..5).map(|_| simulation.open(&[1])).collect();
    // The link is older than the time limit for opening and closing it.
    simulation.pass_ms(31_000);
    far.names();
    let reply_text = "shutdown";
    far.say(0, &Method::ConnectionClose { reply_code: 320, reply_text, class_id: 0, method_id: 0 });
    simulation.run();
    assert_eq!(far.names(), ["connection.close-ok"]);
    assert_eq!(simulation.counts(clients[4], 1, "here").0, 0, "clients are served");
}

#[test]
fn orders_of_two_operators_in_one_turn_are_both_carried_out() {
    let (mut simulation, mut far) = simulation(bridge());
    open(&mut simulation, &mut far);
    for order in ["pause", "retry"] {
        let operator = simulation.connect_operator(Shape::WIDE, 0);
        let request = format!("POST /api/ctl/bridges/plant/{order} HTTP/1.1\r\nContent-Length: 0\r\n\r\n");
        simulation.operator(operator).write_up(request.as_bytes());
    }
    simulation.run();
    let shown = ask(&mut simulation, "GET /api/ctl/bridges");
    assert!(
        shown.contains("\"state\":\"ending\"") && shown.contains("\"retried\":\"parked is empty\""),
        "{shown}"
    );
}
