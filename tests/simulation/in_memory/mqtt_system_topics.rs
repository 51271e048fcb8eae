//! `$SYS` topics: who gets which values, and when.

use std::collections::BTreeMap;

use leveret_test_support::simulated_server::mqtt::{Login, MqttClient};
use leveret_test_support::simulated_server::{Simulation, small_limits, wide_limits};

use super::mqtt::{named, receive_all};

const INTERVAL_MS: u64 = 10_000;

fn subscriber(simulation: &mut Simulation, client_id: &str, filter: &str) -> MqttClient {
    let mut client = MqttClient::log_in(simulation, &named(client_id));
    client.subscribe(simulation, &[(filter, 1)]);
    client
}

/// Returns payload and RETAIN of each topic.
fn values(client: &mut MqttClient, simulation: &mut Simulation) -> BTreeMap<String, (String, bool)> {
    let received = receive_all(client, simulation).into_iter();
    let value = |payload: Vec<u8>| String::from_utf8(payload).expect("values are texts");
    received.map(|(topic, payload, retain)| (topic, (value(payload), retain))).collect()
}

#[test]
fn a_subscriber_gets_all_values_at_once_and_then_those_that_change() {
    let mut simulation = Simulation::with_system_topics(small_limits(), INTERVAL_MS);
    let mut everything = subscriber(&mut simulation, "everything", "#");
    let mut dashboard = subscriber(&mut simulation, "dashboard", "$SYS/#");
    let first = values(&mut dashboard, &mut simulation);
    assert_eq!(first.len(), 31, "{first:?}");
    assert!(first.values().all(|(_, retain)| *retain));
    assert_eq!(first["$SYS/broker/version"].0, "leveret version 0");
    let mut publisher = MqttClient::log_in(&mut simulation, &named("publisher"));
    publisher.publish_1(&mut simulation, "t", 1, b"body");
    simulation.pass_ms(INTERVAL_MS + 100);
    let changed = values(&mut dashboard, &mut simulation);
    assert!(!changed.contains_key("$SYS/broker/version"), "{changed:?}");
    assert_eq!(changed["$SYS/broker/clients/connected"], ("3".to_owned(), false));
    assert_eq!(changed["$SYS/broker/messages/received"].0, "1");
    assert_eq!(changed["$SYS/broker/uptime"].0, "10 seconds");
    let load: f64 = changed["$SYS/broker/load/messages/received/1min"].0.parse().expect("a number");
    assert!((0.5..2.0).contains(&load), "{load} a minute: 6, averaged over a minute");
    assert_eq!(receive_all(&mut everything, &mut simulation).len(), 1, "`#` does not match them");
    // One value alone.
    let mut other = subscriber(&mut simulation, "other", "$SYS/broker/clients/+");
    assert_eq!(values(&mut other, &mut simulation).len(), 4);
    assert!(values(&mut dashboard, &mut simulation).is_empty(), "only the new subscriber gets them");
    dashboard.unsubscribe(&mut simulation, &["$SYS/#"]);
    simulation.pass_ms(3 * INTERVAL_MS);
    assert!(values(&mut dashboard, &mut simulation).is_empty());
    for client in [everything, dashboard, publisher, other] {
        client.hang_up(&mut simulation);
    }
}

#[test]
fn clients_that_are_away_or_slow_get_no_values() {
    let mut simulation = Simulation::with_system_topics(small_limits(), INTERVAL_MS);
    let login = Login { clean_start: false, ..named("kept") };
    let mut kept = MqttClient::log_in(&mut simulation, &login);
    kept.subscribe(&mut simulation, &[("$SYS/#", 1)]);
    kept.hang_up(&mut simulation);
    simulation.pass_ms(20 * INTERVAL_MS);
    let mut kept = MqttClient::log_in(&mut simulation, &login);
    assert!(values(&mut kept, &mut simulation).is_empty());
    simulation.pass_ms(INTERVAL_MS);
    assert!(values(&mut kept, &mut simulation).contains_key("$SYS/broker/uptime"), "the next values");
}

#[test]
fn a_client_may_leave_before_it_gets_values() {
    for is_clean in [true, false] {
        let mut simulation = Simulation::with_system_topics(small_limits(), INTERVAL_MS);
        let login = Login { clean_start: is_clean, ..named("client") };
        let mut client = MqttClient::log_in(&mut simulation, &login);
        // SUBSCRIBE of `$SYS/#` with QoS 0, and DISCONNECT.
        let subscribe = [0x82, 11, 0, 1, 0, 6, b'$', b'S', b'Y', b'S', b'/', b'#', 0, 0xe0, 0];
        client.send_without_turn(&mut simulation, &subscribe);
        simulation.pass_ms(2 * INTERVAL_MS);
        let mut other = subscriber(&mut simulation, "other", "$SYS/broker/uptime");
        assert_eq!(values(&mut other, &mut simulation).len(), 1);
    }
}

/// The values for many clients are sent in several turns.
#[test]
fn many_clients_get_all_values() {
    let mut simulation = Simulation::with_system_topics(wide_limits(), INTERVAL_MS);
    let mut clients: Vec<MqttClient> =
        (0..200).map(|number| subscriber(&mut simulation, &number.to_string(), "$SYS/#")).collect();
    for client in &mut clients {
        assert_eq!(values(client, &mut simulation).len(), 31);
    }
    simulation.pass_ms(INTERVAL_MS + 100);
    for client in &mut clients {
        assert!(values(client, &mut simulation).contains_key("$SYS/broker/uptime"));
    }
}

#[test]
fn without_the_key_there_are_no_values() {
    let mut simulation = Simulation::new(small_limits());
    let mut client = subscriber(&mut simulation, "client", "$SYS/#");
    simulation.pass_ms(60_000);
    assert!(values(&mut client, &mut simulation).is_empty());
}
