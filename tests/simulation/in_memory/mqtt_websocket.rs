//! MQTT over WebSocket: upgrades and their refusals, frames in parts, control frames, closing, and little memory.

use leveret_core::limits::Limits;
use leveret_test_support::random::Random;
use leveret_test_support::simulated_server::mqtt::{Login, MqttClient, packet};
use leveret_test_support::simulated_server::websocket::{frame, request_upgrade, upgrade_request};
use leveret_test_support::simulated_server::{
    OTHER_EXTENTS, Shape, Simulation, for_seeds, memory_of, small_limits, wide_limits,
};

use super::mqtt::named;

const SHAPES: [Shape; 3] = [Shape::WIDE, Shape::fragments(1), Shape::fragments(7)];

fn log_in(simulation: &mut Simulation, client_id: &str) -> MqttClient {
    MqttClient::log_in_websocket(simulation, &named(client_id), Shape::WIDE)
}

/// Checks that the server has sent CLOSE with this code as its last frame, and has closed the connection.
#[track_caller]
fn assert_closed_with(simulation: &mut Simulation, mut client: MqttClient, code: u16) {
    let close = client.take_control_frames(simulation);
    assert_eq!(close, [(0x88, code.to_be_bytes().to_vec())]);
    client.assert_closed(simulation);
}

#[test]
fn messages_cross_between_websocket_mqtt_and_back_in_frames_of_any_division() {
    for (shape, level) in SHAPES.into_iter().flat_map(|shape| [3, 4, 5].map(|level| (shape, level))) {
        let mut simulation = Simulation::new(small_limits());
        let login = Login { level, ..named("browser") };
        let mut browser = MqttClient::log_in_websocket(&mut simulation, &login, shape);
        let mut sensor = MqttClient::log_in(&mut simulation, &named("sensor"));
        assert_eq!(browser.subscribe(&mut simulation, &[("to/browser", 1)]), [1]);
        assert_eq!(sensor.subscribe(&mut simulation, &[("to/sensor", 0)]), [0]);
        for len in [0, 1, 100, 120, 130, 300, 5_000, 70_000] {
            let payload: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
            assert_eq!(sensor.publish_1(&mut simulation, "to/browser", 1, &payload), 0);
            let received = browser.receive(&mut simulation).expect("the message");
            assert!(received.payload == payload, "{len} bytes");
            browser.acknowledge(&mut simulation, received.packet_id.expect("QoS 1"));
            // A packet in several frames, with a PING and an empty frame between.
            let publish = browser.publish_packet(2, "to/sensor", 9, &payload);
            let (first, rest) = publish.split_at(publish.len() / 3);
            let (second, third) = rest.split_at(rest.len() / 2);
            let parts =
                [frame(2, first), frame(0x89, b"alive"), frame(0, &[]), frame(0, second), frame(0x80, third)];
            browser.send_octets(&mut simulation, &parts.concat());
            assert_eq!(browser.expect(&mut simulation, 0x40).body[..2], [0, 9]);
            assert_eq!(browser.take_control_frames(&mut simulation), [(0x8a, b"alive".to_vec())]);
            assert!(sensor.receive(&mut simulation).expect("the message").payload == payload, "{len} bytes");
        }
        // Several packets in a frame.
        let packets = [11, 12, 13].map(|id| browser.publish_packet(2, "nowhere", id, b"x"));
        browser.send(&mut simulation, &packets.concat());
        for id in [11, 12, 13] {
            assert_eq!(browser.expect(&mut simulation, 0x40).body[..2], [0, id]);
        }
        sensor.disconnect(&mut simulation);
        browser.send(&mut simulation, &[0xE0, 0]);
        assert_closed_with(&mut simulation, browser, 1000);
        simulation.end(&[]);
    }
}

#[test]
fn requests_that_cannot_be_upgraded_have_their_status() {
    let mut simulation = Simulation::new(small_limits());
    let request = upgrade_request("");
    for (request, status) in [
        (upgrade_request("Origin: http://localhost:15672\r\n"), 101),
        (upgrade_request("Origin: https://dash.example\r\n"), 101),
        (upgrade_request("Origin: https://evil.example\r\n"), 403),
        (request.replace("Upgrade: websocket\r\n", ""), 426),
        (request.replace("Version: 13", "Version: 12"), 426),
        (request.replace("Key: dGhl", "Key: "), 400),
        (request.replace("Protocol: mqtt", "Protocol: wamp"), 400),
        (request.replace("Protocol: mqtt", "Protocol: mqttv3.1"), 101),
        (request.replace("GET", "POST"), 405),
        (request.replace("/mqtt", "/ws"), 404),
        (format!("{request}early"), 400),
    ] {
        let (_, answer) = request_upgrade(&mut simulation, Shape::WIDE, &request);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request}{answer}");
    }
    // The listener for metrics, and a listener of MQTT, know no upgrades.
    let line = simulation.connect_metrics(Shape::WIDE, [127, 0, 0, 9]);
    simulation.operator(line).write_up(request.as_bytes());
    let mqtt = simulation.connect_mqtt();
    simulation.operator(mqtt).write_up(request.as_bytes());
    simulation.run();
    for (line, status) in [(line, "404"), (mqtt, "400")] {
        let mut answer = Vec::new();
        simulation.operator(line).read_down(usize::MAX, &mut answer);
        assert!(answer.starts_with(format!("HTTP/1.1 {status} ").as_bytes()));
    }
}

#[test]
fn a_refused_request_leaves_the_connection_to_the_next_one() {
    let mut simulation = Simulation::new(small_limits());
    let request = upgrade_request("").replace("Version: 13", "Version: 1");
    let (line, answer) = request_upgrade(&mut simulation, Shape::WIDE, &request);
    assert!(answer.contains("sec-websocket-version: 13\r\n"), "{answer}");
    simulation.operator(line).write_up(upgrade_request("").as_bytes());
    simulation.run();
    let mut answer = Vec::new();
    simulation.operator(line).read_down(usize::MAX, &mut answer);
    assert!(answer.starts_with(b"HTTP/1.1 101 "));
}

/// After the upgrade a client needs no place of a client of the management API, but one of a connection.
#[test]
fn clients_count_as_connections_up_to_their_limit() {
    let limits = Limits { connections_max: 20, management_clients_max: 2, ..small_limits() };
    let mut simulation = Simulation::new(limits);
    let mut clients: Vec<MqttClient> =
        (0..20).map(|number| log_in(&mut simulation, &format!("client-{number}"))).collect();
    assert_eq!(simulation.engine.broker().gauges().connections, 20);
    for _ in 0..3 {
        let mut refused = MqttClient::open_websocket(&mut simulation, 4, Shape::WIDE);
        refused.send(&mut simulation, &Login::default().packet());
        assert_eq!(refused.expect(&mut simulation, 0x20).body[1], 3, "the server is unavailable");
        refused.lose(&mut simulation);
    }
    clients.pop().expect("it exists").lose(&mut simulation);
    clients.push(log_in(&mut simulation, "late"));
    for client in &mut clients {
        assert_eq!(client.subscribe(&mut simulation, &[("all", 0)]), [0]);
    }
    clients[0].publish(&mut simulation, "all", b"x");
    for client in &mut clients {
        assert_eq!(client.receive(&mut simulation).expect("the message").payload, b"x");
    }
    clients.into_iter().for_each(|client| client.lose(&mut simulation));
    assert_eq!(simulation.engine.broker().gauges().connections, 0);
    simulation.end(&[]);
}

#[test]
fn a_client_that_does_not_log_in_is_closed_by_the_handshake_timeout() {
    let mut simulation = Simulation::new(small_limits());
    let silent = MqttClient::open_websocket(&mut simulation, 4, Shape::WIDE);
    let mut pings = MqttClient::open_websocket(&mut simulation, 4, Shape::WIDE);
    let timeout_ms = u64::from(small_limits().handshake_timeout_ms);
    simulation.pass_ms(timeout_ms / 2);
    // Frames that are no packets do not extend the time.
    pings.send_octets(&mut simulation, &[frame(0x89, b""), frame(0x82, b"")].concat());
    assert_eq!(pings.take_control_frames(&mut simulation), [(0x8a, Vec::new())]);
    assert!(!silent.is_closed(&simulation) && !pings.is_closed(&simulation));
    simulation.pass_ms(timeout_ms / 2 + 1);
    assert!(silent.is_closed(&simulation) && pings.is_closed(&simulation));
    simulation.end(&[]);
}

#[test]
fn pings_without_a_login_do_not_keep_the_place_of_another_client() {
    let mut simulation = Simulation::new(Limits { handshakes_max: 4, ..small_limits() });
    let mut silent: Vec<MqttClient> =
        (0..4).map(|_| MqttClient::open_websocket(&mut simulation, 4, Shape::WIDE)).collect();
    let mut client = MqttClient::open(&mut simulation, 4);
    client.send(&mut simulation, &named("late").packet());
    for _ in 0..7 {
        simulation.pass_ms(500);
        silent.iter_mut().for_each(|silent| silent.send_octets(&mut simulation, &frame(0x89, b"")));
    }
    assert_eq!(client.expect(&mut simulation, 0x20).body, [0, 0]);
    assert_eq!(silent.iter().filter(|silent| silent.is_closed(&simulation)).count(), 1);
}

#[test]
fn a_wrong_first_packet_and_a_wrong_password_are_refused_as_without_websocket() {
    let mut simulation = Simulation::new(small_limits());
    let mut http = MqttClient::open_websocket(&mut simulation, 4, Shape::WIDE);
    http.send(&mut simulation, b"GET / HTTP/1.1\r\n\r\n");
    assert_eq!(http.next(&mut simulation), None);
    assert_closed_with(&mut simulation, http, 1000);
    let mut client = MqttClient::open_websocket(&mut simulation, 4, Shape::WIDE);
    client.send(&mut simulation, &Login { password: Some("wrong"), ..named("c") }.packet());
    simulation.pass_ms(5_000);
    assert_eq!(client.expect(&mut simulation, 0x20).body, [0, 4]);
    assert_closed_with(&mut simulation, client, 1000);
    simulation.end(&[]);
}

/// Without DISCONNECT, the will is published, however the WebSocket ends.
#[test]
fn a_will_is_published_unless_the_client_sends_disconnect() {
    let mut simulation = Simulation::new(small_limits());
    let mut watcher = MqttClient::log_in(&mut simulation, &named("watcher"));
    watcher.subscribe(&mut simulation, &[("will", 0)]);
    let login = Login { will: Some(("will", b"gone", 0, false)), ..named("browser") };
    let close = |code: u16| frame(0x88, &code.to_be_bytes());
    for (octets, code) in [
        (close(1000), Some(1000)),
        (close(1001), Some(1001)),
        (frame(0x81, b"text"), Some(1003)),
        (vec![0x82, 1, 0], Some(1002)),
        ([frame(0x82, &packet(0x30, b"\0\x01t")), frame(0xF2, b"x")].concat(), Some(1002)),
        (Vec::new(), None),
    ] {
        for shape in SHAPES {
            let mut browser = MqttClient::log_in_websocket(&mut simulation, &login, shape);
            assert_eq!(watcher.receive(&mut simulation), None);
            match code {
                Some(code) => {
                    browser.send_octets(&mut simulation, &octets);
                    assert_closed_with(&mut simulation, browser, code);
                }
                None => browser.lose(&mut simulation),
            }
            simulation.pass_ms(1_100);
            assert_eq!(watcher.receive(&mut simulation).expect("the will").payload, b"gone");
        }
    }
    let mut browser = MqttClient::log_in_websocket(&mut simulation, &login, Shape::WIDE);
    browser.send_octets(&mut simulation, &[frame(0x82, &[0xE0, 0]), close(1000)].concat());
    assert_closed_with(&mut simulation, browser, 1000);
    assert_eq!(watcher.receive(&mut simulation), None);
    watcher.disconnect(&mut simulation);
    simulation.end(&[]);
}

/// The client sends more packets than there is space for replies, and CLOSE behind them.
#[test]
fn packets_before_close_are_handled_and_answered() {
    const COUNT: u16 = 400;
    let mut simulation = Simulation::new(small_limits());
    let mut reader = MqttClient::log_in(&mut simulation, &named("reader"));
    reader.subscribe(&mut simulation, &[("t", 0)]);
    let shape = Shape { down_room: 100, ..Shape::WIDE };
    let mut browser = MqttClient::log_in_websocket(&mut simulation, &named("browser"), shape);
    let packets = (1..=COUNT).flat_map(|id| browser.publish_packet(2, "t", id, b"x"));
    let packets: Vec<u8> = packets.collect();
    browser.send_without_turn(
        &mut simulation,
        &[frame(0x82, &packets), frame(0x88, &1001_u16.to_be_bytes())].concat(),
    );
    for id in 1..=COUNT {
        assert_eq!(browser.expect(&mut simulation, 0x40).body, id.to_be_bytes());
        assert_eq!(reader.receive(&mut simulation).expect("the message").payload, b"x");
    }
    assert_closed_with(&mut simulation, browser, 1001);
    reader.disconnect(&mut simulation);
    simulation.end(&[]);
}

/// A client that has sent CLOSE and reads nothing is dropped after a second, and gets no more messages.
#[test]
fn a_closing_client_that_reads_nothing_is_dropped() {
    let mut simulation = Simulation::new(small_limits());
    let shape = Shape { down_room: 300, ..Shape::WIDE };
    let mut browser = MqttClient::log_in_websocket(&mut simulation, &named("browser"), shape);
    browser.subscribe(&mut simulation, &[("t", 0)]);
    let mut sensor = MqttClient::log_in(&mut simulation, &named("sensor"));
    sensor.publish(&mut simulation, "t", &[1; 2_000]);
    browser.send_without_turn(&mut simulation, &frame(0x88, &[]));
    simulation.pass_ms(900);
    assert_eq!(simulation.engine.broker().gauges().connections, 2);
    simulation.pass_ms(200);
    assert_eq!(simulation.engine.broker().gauges().connections, 1);
    sensor.disconnect(&mut simulation);
    simulation.end(&[]);
}

/// With little input backlog, input is only peeked at, and frames are decoded twice. With little memory for messages,
/// the publisher waits in the middle of a frame.
#[test]
fn input_is_peeked_at_when_memory_is_scarce() {
    for (backlog, extents) in [(64 << 10, OTHER_EXTENTS), (1 << 20, 5), (64 << 10, 5)] {
        for shape in [Shape::WIDE, Shape::fragments(13), Shape::fragments(1_000)] {
            let limits = Limits { input_backlog_bytes_max: backlog, ..wide_limits() };
            let mut simulation = Simulation::in_memory(limits, &memory_of(OTHER_EXTENTS, extents));
            let mut reader = MqttClient::log_in(&mut simulation, &named("reader"));
            reader.subscribe(&mut simulation, &[("t/#", 1)]);
            let mut browser = MqttClient::log_in_websocket(&mut simulation, &named("browser"), shape);
            let payload = |number: usize| vec![number as u8; [0, 3, 90, 200, 3_000][number % 5]];
            let mut input = Vec::new();
            for number in 0..60 {
                let publish = browser.publish_packet(2, "t/x", number as u16 + 1, &payload(number));
                // Frames end anywhere in the packets, and control frames are between them.
                let (first, rest) = publish.split_at(number % publish.len());
                input.extend(frame(0x02, first));
                input.extend(frame(0x89, &[number as u8]));
                input.extend(frame(0x80, rest));
            }
            browser.send_without_turn(&mut simulation, &input);
            simulation.run();
            let mut received = 0;
            for _ in 0..60 {
                let Some(message) = reader.receive(&mut simulation) else { break };
                assert!(message.payload == payload(received), "message {received}");
                received += 1;
                reader.acknowledge(&mut simulation, message.packet_id.expect("QoS 1"));
                simulation.pass_ms(20);
            }
            assert_eq!(received, 60, "{backlog} {extents} {shape:?}");
            for number in 1..=60_u16 {
                assert_eq!(browser.expect(&mut simulation, 0x40).body, number.to_be_bytes());
            }
            let pongs = browser.take_control_frames(&mut simulation);
            assert_eq!(pongs.last(), Some(&(0x8a, vec![59])));
            browser.send(&mut simulation, &[0xE0, 0]);
            assert_closed_with(&mut simulation, browser, 1000);
            reader.disconnect(&mut simulation);
            simulation.end(&[]);
        }
    }
}

/// Valid packets in frames of any division, then anything. Nothing panics, the messages before arrive, and every pool is
/// empty afterwards.
#[test]
fn random_frames_leave_nothing_behind() {
    for_seeds("random_frames", 0..60, |seed| {
        let mut random = Random::new(seed);
        let backlog = [64 << 10, 1 << 20][random.below(2) as usize];
        let mut simulation = Simulation::new(Limits { input_backlog_bytes_max: backlog, ..small_limits() });
        let mut reader = MqttClient::log_in(&mut simulation, &named("reader"));
        reader.subscribe(&mut simulation, &[("t", 0)]);
        let shape = Shape {
            up_fragment: 1 + random.below(300) as usize,
            down_room: 1 + random.below(400) as usize,
            ..Shape::WIDE
        };
        let mut browser = MqttClient::log_in_websocket(&mut simulation, &named("browser"), shape);
        browser.subscribe(&mut simulation, &[("t", 0)]);
        let count = random.below(20);
        let mut packets = Vec::new();
        for number in 0..count {
            let payload = vec![number as u8; random.below(500) as usize];
            packets.extend(browser.publish_packet(0, "t", 0, &payload));
        }
        let mut input = Vec::new();
        while !packets.is_empty() {
            let len = (random.below(400) as usize).min(packets.len());
            input.extend(frame(0x82, &packets.drain(..len).collect::<Vec<u8>>()));
            if random.below(3) == 0 {
                input.extend(frame(0x89, &[1; 9]));
            }
        }
        let first_octets = [0x88, 0x82, 0x02, 0x80, 0x89, 0x81, 0xff];
        for _ in 0..random.below(4) {
            let junk: Vec<u8> = (0..random.below(50)).map(|_| random.below(256) as u8).collect();
            let first_octet = first_octets[random.below(first_octets.len() as u64) as usize];
            input.extend(if random.below(2) == 0 { junk } else { frame(first_octet, &junk) });
        }
        browser.send_octets(&mut simulation, &input);
        for number in 0..count {
            let message = reader.receive(&mut simulation).expect("a message before what is wrong");
            assert!(message.payload.iter().all(|octet| u64::from(*octet) == number), "{number}");
        }
        browser.lose(&mut simulation);
        reader.lose(&mut simulation);
        simulation.pass_ms(2_000);
        assert_eq!(simulation.engine.broker().gauges().connections, 0);
        simulation.end(&[]);
    });
}
