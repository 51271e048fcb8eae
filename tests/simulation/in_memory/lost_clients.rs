//! Publishers that give up, and come again, while their queue is full; and clients that the limit of connections refuses.

use leveret_amqp::Method;
use leveret_config::board::BOARDS;
use leveret_config::{Config, Layer};
use leveret_core::limits::Limits;
use leveret_test_support::simulated_server::mqtt::{Login, MqttClient};
use leveret_test_support::simulated_server::*;

/// Longest time of a login, in milliseconds, whatever others do.
const LOGIN_MS: u64 = 5_000;
const STEP_MS: u64 = 100;
const CONNECTIONS_MAX: u32 = 20;

fn limits() -> Limits {
    limits_with(CONNECTIONS_MAX, 16)
}

fn limits_with(connections_max: u32, handshakes_max: u32) -> Limits {
    let (messages_max, body_bytes_max, assembly_bytes_max) = (320, 4 << 20, 1 << 20);
    let limits = small_limits();
    let channels_max = limits.channels_max.max(4 * connections_max);
    Limits {
        connections_max,
        handshakes_max,
        channels_max,
        messages_max,
        body_bytes_max,
        assembly_bytes_max,
        ..limits
    }
}

/// How a device ends its connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    /// It closes the socket: the broker reads all that it sent, then the end.
    Fin,
    /// The connection breaks.
    Reset,
    /// The device loses its power, and nothing more arrives.
    Vanishes,
}

/// What a device sends before that.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Sent {
    Amqp,
    /// The first half of a large message, while the memory for incomplete messages is used up.
    HalfAmqp,
    Mqtt,
}

/// Returns a broker whose queue `full` takes no more, and that is bound to the topic `full`.
fn with_full_queue(limits: Limits) -> Simulation {
    let mut simulation = Simulation::new(limits);
    let filler = simulation.open(&[1]);
    simulation.declare(filler, 1, "full");
    let said = simulation.ask(filler, 1, &bind("full", "amq.topic", "full"));
    assert!(matches!(said.method(), Method::QueueBindOk {}));
    for _ in 0..400 {
        simulation.publish_to(filler, 1, "full", b"filling");
    }
    simulation.run();
    assert!(simulation.clients[filler].checker.is_blocked);
    simulation.lose(filler);
    simulation.pass_ms(LOST_MS);
    simulation
}

/// A connection of a device.
enum Device {
    Amqp(usize),
    Mqtt(MqttClient),
}

fn arrive(simulation: &mut Simulation, sent: Sent, number: usize) -> Device {
    match sent {
        Sent::Amqp | Sent::HalfAmqp => {
            let client = simulation.connect(Manners::default(), Shape::WIDE);
            simulation.send(client, 1, &Method::ChannelOpen {});
            if sent == Sent::HalfAmqp {
                let method = Method::BasicPublish {
                    exchange: "",
                    routing_key: b"full",
                    mandatory: false,
                    immediate: false,
                };
                simulation.send(client, 1, &method);
                let frames = content_frames(1, &[0, 0], &vec![7; 100_000], 4_088);
                simulation.clients[client].say(&frames[..frames.len() / 2]);
            } else {
                simulation.publish_to(client, 1, "full", b"reading");
            }
            Device::Amqp(client)
        }
        Sent::Mqtt => {
            let client_id = format!("random-{number}");
            let login = Login { client_id: &client_id, ..Login::default() };
            let mut client = MqttClient::open(simulation, 4);
            client.send(simulation, &login.packet());
            let publish = client.publish_packet(2, "full", 1, b"reading");
            client.send(simulation, &publish);
            Device::Mqtt(client)
        }
    }
}

fn leave(simulation: &mut Simulation, device: Device, end: End) {
    match (device, end) {
        (Device::Amqp(client), End::Fin) => {
            simulation.clients[client].die();
            simulation.hang_up(client);
        }
        (Device::Amqp(client), End::Reset) => simulation.lose(client),
        (Device::Amqp(client), End::Vanishes) => simulation.clients[client].die(),
        (Device::Mqtt(client), End::Fin) => client.hang_up(simulation),
        (Device::Mqtt(client), End::Reset) => client.lose(simulation),
        (Device::Mqtt(_), End::Vanishes) => {}
    }
}

/// Logs in and retries when the connection is closed. Returns the client.
fn log_in(simulation: &mut Simulation, what: &str) -> usize {
    let end = simulation.now.as_ms() + LOGIN_MS;
    loop {
        let client = simulation.connect(Manners::default(), Shape::WIDE);
        simulation.run();
        while simulation.line(client).is_held {
            if simulation.clients[client].checker.phase == Phase::Open {
                return client;
            }
            assert!(simulation.now.as_ms() < end, "{what}: the login takes too long");
            simulation.pass_ms(STEP_MS);
        }
        assert!(
            simulation.now.as_ms() < end,
            "it is refused again and again: {:?}",
            simulation.shown(client)
        );
        simulation.pass_ms(STEP_MS);
    }
}

/// With the limits of connections of each profile. In each round an eighth of them connects, so that their number is
/// exceeded twice.
#[test]
fn devices_that_get_no_confirm_and_connect_again_keep_no_client_out() {
    let mut tried = Vec::new();
    for board in BOARDS {
        let layer = Layer::parse("leveret.toml", &format!("board = \"{}\"", board.name)).expect("a profile");
        let limits = Config::gather(None, layer).expect("a profile is valid").limits;
        let limits = (limits.connections_max, limits.handshakes_max);
        if tried.contains(&limits) {
            continue;
        }
        tried.push(limits);
        for sent in [Sent::Amqp, Sent::HalfAmqp, Sent::Mqtt] {
            for end in [End::Fin, End::Reset, End::Vanishes] {
                if limits.0 > 600 && (sent == Sent::HalfAmqp || end != End::Vanishes) {
                    // The others take too long here.
                    continue;
                }
                let what = format!("{} {sent:?} {end:?}", board.name);
                connect_again_and_again(limits_with(limits.0, limits.1), sent, end, &what);
            }
        }
    }
}

fn connect_again_and_again(limits: Limits, sent: Sent, end: End, what: &str) {
    let devices_count = (limits.connections_max as usize / 8).max(8);
    let mut simulation = with_full_queue(limits);
    if sent == Sent::HalfAmqp {
        // The half messages of these take all memory for incomplete messages.
        for number in 0..10 {
            arrive(&mut simulation, sent, number);
        }
        simulation.run();
    }
    for round in 0..16 {
        let devices: Vec<_> = (0..devices_count)
            .map(|device| arrive(&mut simulation, sent, round * devices_count + device))
            .collect();
        simulation.pass_ms(3_000);
        devices.into_iter().for_each(|device| leave(&mut simulation, device, end));
        let client = log_in(&mut simulation, what);
        simulation.lose(client);
    }
    let consumer = log_in(&mut simulation, what);
    simulation.ask(consumer, 1, &Method::ChannelOpen {});
    simulation.consume(consumer, 1, "full", "tag", true);
    simulation.pass_ms(1_000);
    assert!(simulation.deliveries(consumer).len() > 100, "{what}");
}

#[test]
fn what_a_program_published_before_it_exited_arrives_if_the_queue_takes_it_within_30_s() {
    let mut simulation = with_full_queue(limits());
    let before = simulation.engine.dropped_messages_count();
    let program = simulation.open(&[1]);
    for number in 0..1_000_u32 {
        simulation.publish_to(program, 1, "full", &number.to_be_bytes());
    }
    simulation.run();
    simulation.clients[program].die();
    simulation.hang_up(program);
    simulation.pass_ms(28_000);
    let consumer = simulation.open(&[1]);
    simulation.consume(consumer, 1, "full", "tag", true);
    simulation.pass_ms(100);
    let deliveries = simulation.deliveries(consumer);
    let numbers: Vec<_> = deliveries.iter().filter_map(|said| said.body[..].try_into().ok()).collect();
    assert_eq!(
        numbers.into_iter().map(u32::from_be_bytes).collect::<Vec<_>>(),
        (0..1_000).collect::<Vec<_>>()
    );
    assert_eq!(simulation.engine.dropped_messages_count(), before);
    simulation.end(&["full"]);
}

/// A failed write is noticed like the end of the input, also while the publisher is not read.
#[test]
fn what_is_dropped_with_a_lost_publisher_is_counted() {
    for breaks_on_write in [false, true] {
        let mut simulation = with_full_queue(limits());
        let before = simulation.engine.dropped_messages_count();
        let manners = Manners { heartbeat_s: 10, sends_heartbeats: false, ..Manners::default() };
        let program = simulation.open_with(manners, Shape::WIDE, &[1]);
        for _ in 0..10 {
            simulation.publish_to(program, 1, "full", b"reading");
        }
        simulation.run();
        simulation.clients[program].die();
        if breaks_on_write {
            let sent = simulation.line(program).sent_down();
            simulation.line(program).cut_down = Some(sent);
        } else {
            simulation.hang_up(program);
        }
        simulation.pass_ms(29_000);
        assert!(breaks_on_write || simulation.line(program).is_held, "its messages may still be published");
        simulation.pass_ms(11_000);
        assert!(!simulation.line(program).is_held, "it is closed 30 s after it was lost");
        let dropped = simulation.engine.dropped_messages_count() - before;
        assert_eq!(dropped, 10);
        simulation.end(&["full"]);
    }
}

/// Returns the text with which an AMQP client is refused.
fn refusal(simulation: &mut Simulation) -> String {
    let client = simulation.connect(Manners::default(), Shape::WIDE);
    simulation.pass_ms(10);
    simulation.shown(client).join(" ")
}

fn alarms(simulation: &mut Simulation) -> String {
    let operator = simulation.connect_operator(Shape::WIDE, 0);
    let request = "GET /api/ctl/alarms HTTP/1.1\r\n\r\n";
    simulation.operator(operator).write_up(request.as_bytes());
    simulation.run();
    let mut heard = Vec::new();
    simulation.operator(operator).read_down(usize::MAX, &mut heard);
    simulation.operator(operator).hang_up();
    simulation.run();
    String::from_utf8(heard).expect("answers are text")
}

#[test]
fn a_client_beyond_connections_max_is_refused_in_its_protocol_and_an_alarm_names_the_key() {
    let mut simulation = Simulation::new(limits());
    let clients: Vec<_> = (0..CONNECTIONS_MAX).map(|_| simulation.open(&[1])).collect();
    assert!(!alarms(&mut simulation).contains("connections:"), "nobody was refused yet");
    for _ in 0..30 {
        let text = refusal(&mut simulation);
        assert!(
            text.contains("NOT_ALLOWED - connection refused: node connection limit (20) is reached"),
            "{text}"
        );
    }
    for (level, code) in [(4, 3), (5, 0x97)] {
        let (mut client, connack) =
            MqttClient::connect(&mut simulation, &Login { level, ..Login::default() });
        assert_eq!(connack.body[1], code);
        client.assert_closed(&mut simulation);
    }
    // The refused connections are gone.
    simulation.pass_ms(5_000);
    let told = alarms(&mut simulation);
    assert!(told.contains("connections: connections_max = 20 connections are open"), "{told}");
    simulation.lose(clients[0]);
    simulation.run();
    assert!(!alarms(&mut simulation).contains("connections:"), "there is a place again");
    log_in(&mut simulation, "there is a place");
}

/// A client whose connection is dead takes over its session even if all places are taken.
#[test]
fn a_client_that_takes_over_its_session_needs_no_free_place() {
    let mut simulation = Simulation::new(limits());
    let login = Login { client_id: "device", ..Login::default() };
    let first = MqttClient::log_in(&mut simulation, &login);
    for _ in 1..CONNECTIONS_MAX {
        simulation.open(&[1]);
    }
    assert!(refusal(&mut simulation).contains("node connection limit"));
    MqttClient::log_in(&mut simulation, &login);
    assert!(first.is_closed(&simulation));
}

/// A device that was lost while it waited can connect again if its user may have one connection only.
#[test]
fn a_lost_connection_does_not_count_for_the_limit_of_its_user() {
    let mut simulation = with_full_queue(limits());
    let operator = simulation.connect_operator(Shape::WIDE, 0);
    let body = r#"{"value":1}"#;
    let request = format!(
        "PUT /api/user-limits/guest/max-connections HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    simulation.operator(operator).write_up(request.as_bytes());
    simulation.run();
    let device = simulation.open(&[1]);
    simulation.publish_to(device, 1, "full", b"reading");
    simulation.run();
    assert!(refusal(&mut simulation).contains("user connection limit (1) is reached"));
    simulation.clients[device].die();
    simulation.hang_up(device);
    simulation.run();
    assert!(simulation.line(device).is_held, "its message may still be published");
    simulation.open(&[1]);
}

/// Opens as many connections as there may be, all of publishers that wait and are silent.
fn fill_with_silent_publishers(simulation: &mut Simulation) -> Vec<usize> {
    let publishers: Vec<_> = (0..CONNECTIONS_MAX)
        .map(|_| {
            let publisher = simulation.open(&[1]);
            for _ in 0..10 {
                simulation.publish_to(publisher, 1, "full", b"of the publisher that is closed");
            }
            simulation.run();
            publisher
        })
        .collect();
    simulation.pass_ms(6_000);
    publishers
}

/// The input of the client that logs in is not mixed with that of the publisher that is closed for it.
#[test]
fn what_a_client_sends_with_its_login_is_published_although_a_publisher_is_closed_for_it() {
    let mut simulation = with_full_queue(limits());
    let operator = simulation.open(&[1]);
    simulation.declare(operator, 1, "free");
    simulation.ask(operator, 1, &bind("free", "amq.topic", "free"));
    simulation.lose(operator);
    simulation.run();
    let publishers = fill_with_silent_publishers(&mut simulation);
    let mut device = MqttClient::open(&mut simulation, 5);
    let publish = device.publish_packet(0, "free", 0, b"of the client that logs in");
    let login = Login { level: 5, ..Login::default() };
    device.send(&mut simulation, &[login.packet(), publish.repeat(10)].concat());
    assert_eq!(device.expect(&mut simulation, 0x20).body[1], 0);
    let closed = publishers.iter().filter(|publisher| !simulation.line(**publisher).is_held).count();
    assert_eq!(closed, 1, "one publisher is closed");
    let consumer = log_in(&mut simulation, "another publisher is closed");
    simulation.ask(consumer, 1, &Method::ChannelOpen {});
    simulation.consume(consumer, 1, "free", "tag", true);
    let bodies: Vec<_> = simulation.deliveries(consumer).into_iter().map(|said| said.body).collect();
    assert_eq!(bodies, vec![b"of the client that logs in".to_vec(); 10]);
}

#[test]
fn a_login_that_is_refused_closes_no_publisher() {
    let mut simulation = with_full_queue(limits());
    fill_with_silent_publishers(&mut simulation);
    let before = simulation.peers_count();
    let manners = Manners { vhost: "none", ..Manners::default() };
    let client = simulation.connect(manners, Shape::WIDE);
    simulation.pass_ms(100);
    assert!(simulation.shown(client).join(" ").contains("vhost none not found"));
    simulation.hang_up(client);
    simulation.pass_ms(2_000);
    assert_eq!(simulation.peers_count(), before);
}

/// The end of a program's connection may be behind more input than the broker reads.
#[test]
fn a_user_with_one_connection_gets_it_back_from_its_own_silent_publisher() {
    let mut simulation = with_full_queue(limits());
    let operator = simulation.connect_operator(Shape::WIDE, 0);
    let body = r#"{"value":1}"#;
    let path = "PUT /api/user-limits/guest/max-connections HTTP/1.1";
    let request = format!("{path}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    simulation.operator(operator).write_up(request.as_bytes());
    simulation.run();
    let device = simulation.open(&[1]);
    simulation.publish_to(device, 1, "full", b"reading");
    simulation.run();
    simulation.clients[device].die();
    simulation.pass_ms(6_000);
    assert!(refusal(&mut simulation).contains("user connection limit (1) is reached"));
    simulation.pass_ms(100);
    simulation.open(&[1]);
}

/// A client with a will can consume what fills the memory.
#[test]
fn a_client_with_a_will_logs_in_although_the_memory_is_full() {
    let mut simulation = with_full_queue(limits());
    for number in 0..6 {
        let filler = simulation.open(&[1]);
        let queue = format!("full-{number}");
        simulation.declare(filler, 1, &queue);
        for _ in 0..400 {
            simulation.publish_to(filler, 1, &queue, &[7; 3_000]);
        }
        simulation.run();
    }
    let payload = vec![7; 2_000];
    let login = Login { will: Some(("will", &payload, 1, false)), ..Login::default() };
    MqttClient::log_in(&mut simulation, &login);
}
