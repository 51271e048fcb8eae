//! A bridge on a line that is slow: what is urgent goes first, and what is large arrives.

use leveret_amqp::HEARTBEAT_FRAME;
use leveret_config::bridge::{Bridge, Destination, Refused, Rule};

use super::bridge::{Far, ack, ask, bridge, open, world};
use super::world::{Shape, World};

/// Octets that the line takes before they are read, as a kernel does.
const ROOM: usize = 8 << 10;
/// A body frame of a bridge, and the frames around a small message.
const FRAME: usize = 4096;
const HEAD: usize = 512;

fn rule(queue: &str, is_urgent: bool) -> Rule {
    let to = Destination::Queue(format!("{queue}.moved"));
    Rule { queue: queue.into(), to, refused: Refused::Park, is_urgent }
}

/// So much goes over the line, and nothing more.
fn read(world: &mut World, far: &mut Far, octets: usize) -> usize {
    let read = far.line.borrow_mut().read_down(octets, &mut far.heard);
    world.run();
    read
}

/// An alarm took 20 to 32 s at 64 kbit/s, behind the telemetry that was on its way.
#[test]
fn an_alarm_waits_for_what_the_kernel_has_and_one_frame() {
    let forward = vec![rule("here", false), rule("alarms", true)];
    let (mut world, mut far) = world(Bridge { forward, window: 64, heartbeat_s: 0, ..bridge() });
    open(&mut world, &mut far);
    far.line.borrow_mut().shape.down_room = ROOM;
    let client = world.open(&[1]);
    for number in 0..8 {
        world.publish_to(client, 1, "here", &vec![number; 200_000]);
    }
    world.run();
    // Wherever in a message, and in a frame of it, the line stands.
    for round in 0..40 {
        read(&mut world, &mut far, 30_011 + round * 977);
        assert!(far.published_on().iter().all(|(on, ..)| *on == 1));
        world.publish_to(client, 1, "alarms", &[100 + round as u8]);
        world.run();
        let mut went = 0;
        loop {
            went += read(&mut world, &mut far, 256);
            if far.published_on().iter().any(|(on, body, _)| *on == 2 && body[0] == 100 + round as u8) {
                break;
            }
            assert!(went <= ROOM + FRAME + HEAD + 256, "round {round}: {went} octets before the alarm");
        }
        far.say(2, &ack(round as u64 + 1, false));
        world.run();
    }
    assert_eq!(world.counts(client, 1, "alarms"), (0, 1));
    far.line.borrow_mut().shape.down_room = Shape::WIDE.down_room;
    let mut came = 0;
    while read(&mut world, &mut far, usize::MAX) > 0 {
        came += far.published_on().len();
        far.say(1, &ack(0, true));
        world.run();
    }
    assert_eq!((world.counts(client, 1, "here"), world.engine.platform_mut().dialed), ((0, 1), 1), "{came}");
}

/// At 64 kbit/s a message of 2 MB never arrived: it was to be confirmed a minute after it had been begun.
#[test]
fn what_takes_longer_than_a_confirm_may_arrives() {
    let config = Bridge { heartbeat_s: 30, ..bridge() };
    let (mut world, mut far) = world(config);
    open(&mut world, &mut far);
    far.line.borrow_mut().shape.down_room = ROOM;
    let client = world.open(&[1]);
    let body = vec![7; 1 << 20];
    world.publish_to(client, 1, "here", &body);
    world.run();
    let mut seconds = 0;
    while read(&mut world, &mut far, 8_000) > 0 {
        world.pass_ms(1_000);
        seconds += 1;
        if seconds % 20 == 0 {
            far.say_bytes(&HEARTBEAT_FRAME);
        }
    }
    assert!(seconds > 120, "{seconds} s on the way");
    for _ in 0..5 {
        far.say_bytes(&HEARTBEAT_FRAME);
        world.pass_ms(10_000);
    }
    let came = far.published();
    assert!(came.len() == 1 && came[0].0 == body, "it is whole");
    far.say(1, &ack(1, false));
    world.run();
    assert_eq!((world.counts(client, 1, "here"), world.engine.platform_mut().dialed), ((0, 1), 1));
}

/// A broker did not start for a password that was not there, and it would have had to be told of a new one.
#[test]
fn a_password_file_is_the_bridges_own_trouble_and_is_read_for_each_try() {
    let folder = std::env::temp_dir().join(format!("leveret-pair-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("there is a place for it");
    let file = folder.join("password");
    let (mut world, mut far) = world(Bridge { password_file: Some(file.clone()), ..bridge() });
    let client = world.open(&[1]);
    world.publish_to(client, 1, "here", &[1]);
    world.run();
    let shown = ask(&mut world, "GET /api/ctl/bridges");
    assert!(shown.contains("password cannot be read: No such file"), "{shown}");
    assert_eq!(
        (world.counts(client, 1, "here"), world.engine.platform_mut().dialed),
        ((1, 0), 0),
        "all else goes on"
    );
    std::fs::write(&file, "secret\n").expect("it can be written");
    world.pass_ms(8_000);
    open(&mut world, &mut far);
    assert_eq!(far.published().len(), 1);
    std::fs::remove_dir_all(&folder).expect("it was made here");
}
