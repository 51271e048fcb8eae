//! What operators see of MQTT, and what they can delete: sessions and retained messages.

use leveret_core::limits::Limits;
use leveret_test_support::simulated_server::mqtt::{Login, MqttClient};
use leveret_test_support::simulated_server::{Shape, Simulation, small_limits};

use super::management::{GUEST, status};
use super::management_changes::{say, script};

fn named(client_id: &str) -> Login<'_> {
    Login { client_id, ..Login::default() }
}

fn publish_retained(client: &mut MqttClient, simulation: &mut Simulation, topic: &str, payload: &[u8]) {
    let publish = client.publish_packet(3, topic, 1, payload);
    client.send(simulation, &publish);
    client.expect(simulation, 0x40);
}

#[test]
fn sessions_are_shown_and_deleted() {
    let mut simulation = Simulation::new(Limits { mqtt_session_messages_max: 5, ..small_limits() });
    let kept = Login { clean_start: false, ..named("kept/ä") };
    let mut client = MqttClient::log_in(&mut simulation, &kept);
    client.subscribe(&mut simulation, &[("a/#", 2), ("b", 1)]);
    client.lose(&mut simulation);
    simulation.pass_ms(9_100);
    let will = Some(("will", &b"x"[..], 1, false));
    let mut other = MqttClient::log_in(&mut simulation, &Login { will, ..named("other") });
    for number in 0..8 {
        other.publish_1(&mut simulation, "b", 1, &[number]);
    }
    let publish = other.publish_packet(4, "a/x", 7, b"");
    other.send(&mut simulation, &publish);
    other.expect(&mut simulation, 0x50);
    script(
        &mut simulation,
        GUEST,
        &[
            (
                "GET /api/leveret/mqtt-sessions?columns=client_id,state,subscriptions,messages_ready,messages_dropped",
                "",
                "200",
                "{\"client_id\":\"kept/ä\",\"state\":\"disconnected\",\"subscriptions\":2,\"messages_ready\":5,\
                 \"messages_dropped\":4}",
            ),
            (
                "GET /api/leveret/mqtt-sessions/%2F/other",
                "",
                "200",
                "\"user\":\"guest\",\"connection\":\"<leveret.",
            ),
            ("GET /api/leveret/mqtt-sessions/%2F/other", "", "200", "\"state\":\"connected\",\"expiry\":0"),
            (
                "GET /api/leveret/mqtt-sessions/%2F/other",
                "",
                "200",
                "\"messages_unreleased\":1,\"messages_dropped\":0,\"has_will\":true",
            ),
            (
                "GET /api/leveret/mqtt-sessions/%2F/kept%2F%C3%A4",
                "",
                "200",
                "\"queue\":\"mqtt-subscription-kept/ä\"",
            ),
            (
                "GET /api/leveret/mqtt-sessions?columns=client_id,user,last_seen,topics&name=kept",
                "",
                "200",
                "\"user\":\"guest\",\"last_seen\":14,\"topics\":[\"a/#\",\"b\"]",
            ),
            ("GET /api/leveret/mqtt-sessions/%2F/none", "", "404", ""),
            ("GET /api/leveret/mqtt-sessions/none", "", "404", ""),
            ("DELETE /api/leveret/mqtt-sessions/%2F/none", "", "404", "no MQTT session 'none'"),
            ("DELETE /api/leveret/mqtt-sessions/%2F/kept%2F%C3%A4", "", "204", ""),
            ("GET /api/leveret/mqtt-sessions/%2F/kept%2F%C3%A4", "", "404", ""),
            // It has no queue.
            ("DELETE /api/leveret/mqtt-sessions/%2F/other", "", "204", ""),
            ("GET /api/leveret/mqtt-sessions", "", "200", "[\n]"),
        ],
    );
    other.assert_closed(&mut simulation);
    let (client, connack) = MqttClient::connect(&mut simulation, &kept);
    assert_eq!(connack.body, [0, 0], "it is a new session");
    client.lose(&mut simulation);
    script(&mut simulation, GUEST, &[("DELETE /api/leveret/mqtt-sessions/%2F/kept%2F%C3%A4", "", "204", "")]);
    simulation.end(&[]);
}

#[test]
fn refused_sessions_are_an_alarm_until_one_is_deleted() {
    let mut simulation = Simulation::new(Limits { mqtt_sessions_max: 1, ..small_limits() });
    let kept = |client_id| Login {
        level: 5,
        clean_start: false,
        properties: &[0x11, 0, 0, 1, 0],
        ..named(client_id)
    };
    MqttClient::log_in(&mut simulation, &kept("first")).lose(&mut simulation);
    let no_alarm = ("GET /metrics", "", "200", "leveret_alarms{alarm=\"sessions\"} 0\n");
    script(&mut simulation, GUEST, &[no_alarm]);
    let (mut refused, connack) = MqttClient::connect(&mut simulation, &kept("second"));
    assert_eq!(connack.body[1], 0x97);
    refused.assert_closed(&mut simulation);
    script(
        &mut simulation,
        GUEST,
        &[
            (
                "GET /api/leveret/alarms",
                "",
                "200",
                "sessions: 1 MQTT sessions are kept, as many as memory_limit allows",
            ),
            ("GET /metrics", "", "200", "leveret_alarms{alarm=\"sessions\"} 1\n"),
            ("GET /metrics", "", "200", "leveret_mqtt_sessions 1\n"),
            ("GET /metrics", "", "200", "leveret_mqtt_sessions_disconnected 1\n"),
            ("DELETE /api/leveret/mqtt-sessions/%2F/first", "", "204", ""),
            no_alarm,
        ],
    );
    simulation.end(&[]);
}

/// Only the broker declares and binds the queues of sessions. Otherwise a queue would become a session at the next start, and
/// definitions would take the queue of a client before it connects.
#[test]
fn queues_of_sessions_are_not_declared_bound_or_exported() {
    let mut simulation = Simulation::new(small_limits());
    let mut client = MqttClient::log_in(&mut simulation, &Login { clean_start: false, ..named("c") });
    client.subscribe(&mut simulation, &[("t", 1)]);
    let declare = r#"{"durable":true,"arguments":{"x-mqtt-session":true}}"#;
    let queues = concat!(
        r#"{"queues":[{"name":"mqtt-subscription-d","vhost":"/","durable":true,"auto_delete":false,"#,
        r#""arguments":{"x-mqtt-session":true}}]}"#
    );
    let bindings = concat!(
        r#"{"bindings":[{"source":"amq.topic","vhost":"/","destination":"mqtt-subscription-c","#,
        r#""destination_type":"queue","routing_key":"x","arguments":{"x-mqtt-subscription-id":300000000}}]}"#
    );
    let only_broker = "only the broker declares the queues of MQTT sessions";
    script(
        &mut simulation,
        GUEST,
        &[
            ("PUT /api/queues/%2F/mqtt-subscription-d", declare, "400", only_broker),
            ("POST /api/definitions", queues, "400", only_broker),
            ("POST /api/definitions", bindings, "400", "is that of an MQTT session"),
            (
                "POST /api/bindings/%2F/e/amq.topic/q/mqtt-subscription-c",
                r#"{"routing_key":"x"}"#,
                "400",
                "locked",
            ),
        ],
    );
    let operator = simulation.connect_management(Shape::WIDE, [127, 0, 0, 1]);
    for path in ["/api/definitions", "/api/definitions/%2F"] {
        let exported = say(&mut simulation, operator, GUEST, &format!("GET {path}"), "");
        assert!(exported.contains("bindings") && !exported.contains("mqtt-subscription"), "{exported}");
    }
    let publish = client.publish_packet(2, "t", 1, b"x");
    client.send(&mut simulation, &publish);
    client.lose(&mut simulation);
    script(&mut simulation, GUEST, &[("DELETE /api/leveret/mqtt-sessions/%2F/c", "", "204", "")]);
    simulation.end(&[]);
}

/// A policy limits the queues of sessions further, and sends what they drop to an exchange.
#[test]
fn policies_apply_to_the_queues_of_sessions() {
    let mut simulation = Simulation::new(small_limits());
    script(
        &mut simulation,
        GUEST,
        &[
            ("PUT /api/queues/%2F/dropped", r#"{"durable":true}"#, "201", ""),
            ("POST /api/bindings/%2F/e/amq.fanout/q/dropped", "{}", "201", ""),
            (
                "PUT /api/policies/%2F/sessions",
                r#"{"pattern":"^mqtt-subscription-","definition":{"max-length":2,"dead-letter-exchange":"amq.fanout"}}"#,
                "201",
                "",
            ),
        ],
    );
    let mut client = MqttClient::log_in(&mut simulation, &Login { clean_start: false, ..named("away") });
    client.subscribe(&mut simulation, &[("#", 1)]);
    client.lose(&mut simulation);
    let mut publisher = MqttClient::log_in(&mut simulation, &named("p"));
    for number in 0..5 {
        publisher.publish_1(&mut simulation, "t", 1, &[number]);
    }
    simulation.run();
    script(
        &mut simulation,
        GUEST,
        &[
            ("GET /api/leveret/mqtt-sessions/%2F/away", "", "200", "\"messages_ready\":2"),
            ("GET /api/queues/%2F/dropped?columns=messages_ready", "", "200", "\"messages_ready\":3"),
            ("DELETE /api/policies/%2F/sessions", "", "204", ""),
            ("DELETE /api/queues/%2F/dropped", "", "204", ""),
            ("DELETE /api/leveret/mqtt-sessions/%2F/away", "", "204", ""),
        ],
    );
    publisher.disconnect(&mut simulation);
    simulation.end(&[]);
}

#[test]
fn retained_messages_are_shown_and_deleted() {
    let mut simulation = Simulation::new(small_limits());
    let mut publisher = MqttClient::log_in(&mut simulation, &named("p"));
    publish_retained(&mut publisher, &mut simulation, "a/b.c", "grün \"x\"".as_bytes());
    publish_retained(&mut publisher, &mut simulation, "binary", &[0, 255]);
    let long = "ü".repeat(20_000);
    publish_retained(&mut publisher, &mut simulation, "long", long.as_bytes());
    publish_retained(&mut publisher, &mut simulation, "controls", &[1; 40_000]);
    simulation.pass_ms(7_500);
    script(
        &mut simulation,
        GUEST,
        &[
            (
                "GET /api/leveret/retained/%2F?columns=topic,routing_key,qos,payload_bytes,expires",
                "",
                "200",
                r#"{"topic":"a/b.c","routing_key":"a.b/c","qos":1,"payload_bytes":9,"expires":false}"#,
            ),
            (
                "GET /api/leveret/retained/%2F?columns=topic,age,preview",
                "",
                "200",
                r#"{"topic":"a/b.c","age":8,"preview":"grün \"x\""}"#,
            ),
            (
                "GET /api/leveret/retained/%2F?columns=topic,preview&name=binary",
                "",
                "200",
                r#""preview":"\u0000\\xff""#,
            ),
            (
                "GET /api/leveret/retained/%2F/a%2Fb.c",
                "",
                "200",
                r#","payload":"grün \"x\"","payload_encoding":"string"}"#,
            ),
            (
                "GET /api/leveret/retained/%2F/a%2Fb.c",
                "",
                "200",
                r#""properties":{"headers":{"x-mqtt-retain":true}"#,
            ),
            (
                "GET /api/leveret/retained/%2F/binary",
                "",
                "200",
                r#""payload":"AP8=","payload_encoding":"base64""#,
            ),
            ("GET /api/leveret/retained/%2F/controls", "", "200", r#""payload_bytes":40000"#),
            ("GET /api/leveret/retained/%2F/none", "", "404", ""),
            ("DELETE /api/leveret/retained/%2F/none", "", "404", "no retained message of the topic 'none'"),
            ("DELETE /api/leveret/retained/%2F/a%2Fb.c", "", "204", ""),
            ("GET /api/leveret/retained/%2F/a%2Fb.c", "", "404", ""),
        ],
    );
    let client = simulation.connect_management(Shape::WIDE, [127, 0, 0, 1]);
    let answer = say(&mut simulation, client, GUEST, "GET /api/leveret/retained/%2F/long", "");
    assert_eq!(status(&answer), "200");
    let shown = answer.matches('ü').count();
    assert_eq!(shown, 16 << 10, "the payload is shortened between two characters");
    let list = say(&mut simulation, client, GUEST, "GET /api/leveret/retained?columns=payload", "");
    assert!(!list.contains("AP8"), "lists show no payloads: {list}");
    for topic in ["binary", "long", "controls"] {
        publish_retained(&mut publisher, &mut simulation, topic, b"");
    }
    publisher.disconnect(&mut simulation);
    simulation.end(&[]);
}

/// Topic permissions with the client identifier hold for publishing, for subscriptions and for wills.
#[test]
fn topic_permissions_may_contain_the_client_identifier() {
    let mut simulation = Simulation::new(small_limits());
    let pattern =
        r#"{"exchange":"amq.topic","write":"^own\\.{client_id}\\.","read":"^own\\.{client_id}\\."}"#;
    let put = "PUT /api/topic-permissions/%2F/guest";
    script(&mut simulation, GUEST, &[(put, pattern, "201", "")]);
    let own = Login { level: 5, will: Some(("own/v1.5/will", b"", 1, false)), ..named("v1.5") };
    let mut client = MqttClient::log_in(&mut simulation, &own);
    let filters = [
        ("own/v1.5/#", 1),
        ("own/other/#", 1),
        ("own/+/#", 1),
        ("$share/g/own/v1.5/x", 1),
        ("$share/g/#", 1),
    ];
    assert_eq!(client.subscribe(&mut simulation, &filters), [1, 0x87, 0x87, 1, 0x87]);
    assert_eq!(client.publish_1(&mut simulation, "own/v1.5/y", 1, b""), 0);
    assert!(client.receive(&mut simulation).is_some());
    assert_eq!(client.publish_1(&mut simulation, "own/other/y", 1, b""), 0x87);
    let large = client.publish_packet(1 << 1 | 1, "own/other/y", 99, &[0; 61 << 10]);
    client.send(&mut simulation, &large);
    assert_eq!(client.expect(&mut simulation, 0x40).body[2], 0x87, "permissions come before the size");
    assert!(
        simulation.engine.broker().views().refused_retained().is_none(),
        "no alarm by those who may not publish"
    );
    client.disconnect(&mut simulation);
    let (mut refused, connack) =
        MqttClient::connect(&mut simulation, &Login { client_id: "other", ..own.clone() });
    assert_eq!(connack.body[1], 0x87, "the will is not its own");
    refused.assert_closed(&mut simulation);
    let wildcard = Login { level: 5, ..named("+") };
    let mut client = MqttClient::log_in(&mut simulation, &wildcard);
    assert_eq!(client.subscribe(&mut simulation, &[("own/+/#", 1)]), [0x87]);
    client.disconnect(&mut simulation);
    simulation.end(&[]);
}

#[test]
fn connections_of_mqtt_clients_show_their_protocol_and_identifier() {
    let mut simulation = Simulation::new(small_limits());
    for (level, protocol) in [(3, "MQTT 3.1.0"), (4, "MQTT 3.1.1"), (5, "MQTT 5.0")] {
        let client = MqttClient::log_in(&mut simulation, &Login { level, ..named("meter-7") });
        let expected = format!("\"protocol\":\"{protocol}\"");
        script(
            &mut simulation,
            GUEST,
            &[
                ("GET /api/connections", "", "200", &expected),
                ("GET /api/connections", "", "200", "\"client_id\":\"meter-7\""),
            ],
        );
        client.disconnect(&mut simulation);
    }
    simulation.end(&[]);
}
