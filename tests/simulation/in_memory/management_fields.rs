//! Fields of the management API's answers about a queue, a virtual host and their definitions.

use super::management::GUEST;
use super::management_changes::{body, say, script};
use leveret_test_support::simulated_server::{Publish, Shape, Simulation, small_limits};

const HOME: [u8; 4] = [127, 0, 0, 1];

#[test]
fn a_queue_shows_its_consumers_and_a_virtual_host_its_messages() {
    let mut simulation = Simulation::new(small_limits());
    let client = simulation.open(&[1]);
    simulation.declare(client, 1, "q");
    for _ in 0..3 {
        simulation.publish_to(client, 1, "q", b"hi");
    }
    simulation.run();
    for number in 0..40 {
        simulation.consume(client, 1, "q", &format!("c{number}"), false);
    }
    simulation.run();
    let api = simulation.connect_management(Shape::WIDE, HOME);
    let queue = body(&say(&mut simulation, api, GUEST, "GET /api/queues/%2F/q", ""));
    let consumers = queue["consumer_details"].as_array().expect("a list");
    assert_eq!((consumers.len(), &queue["consumers"]), (32, &40.into()), "no more than have room");
    assert_eq!(consumers[0]["channel_details"]["user"], "guest");
    assert_eq!(queue["message_stats"]["deliver_get"], 3);
    let listed = body(&say(&mut simulation, api, GUEST, "GET /api/queues", ""));
    assert!(listed[0].get("consumer_details").is_none(), "a list has none: {listed}");
    let vhost = body(&say(&mut simulation, api, GUEST, "GET /api/vhosts/%2F", ""));
    let counts = ["messages", "messages_ready", "messages_unacknowledged"].map(|name| vhost[name].clone());
    assert_eq!(counts, [3, 0, 3], "{vhost}");
}

#[test]
fn definitions_of_a_virtual_host_can_be_imported_into_another() {
    let mut simulation = Simulation::new(small_limits());
    let policy = r#"{"pattern":"^q","definition":{"max-length":3}}"#;
    script(
        &mut simulation,
        GUEST,
        &[
            ("PUT /api/vhosts/v", "", "201", ""),
            ("PUT /api/vhosts/w", "", "201", ""),
            ("PUT /api/queues/v/q", r#"{"durable":true}"#, "201", ""),
            ("PUT /api/queues/%2F/other", r#"{"durable":true}"#, "201", ""),
            ("PUT /api/exchanges/v/x", r#"{"durable":true}"#, "201", ""),
            ("POST /api/bindings/v/e/x/q/q", r#"{"routing_key":"k"}"#, "201", ""),
            ("PUT /api/policies/v/p", policy, "201", ""),
            ("GET /api/definitions/none", "", "400", "vhost_not_found"),
            ("GET /api/topic-permissions/v/guest", "", "404", ""),
        ],
    );
    let api = simulation.connect_management(Shape::WIDE, HOME);
    let said = say(&mut simulation, api, GUEST, "GET /api/definitions/v", "");
    let file = body(&said);
    for (section, count) in
        [("queues", 1), ("exchanges", 1), ("bindings", 1), ("policies", 1), ("parameters", 0)]
    {
        assert_eq!(file[section].as_array().map(Vec::len), Some(count), "{section}: {file}");
    }
    assert!(file.get("users").is_none() && file["queues"][0].get("vhost").is_none(), "{file}");
    script(
        &mut simulation,
        GUEST,
        &[
            ("POST /api/definitions/w", &file.to_string(), "204", ""),
            ("GET /api/bindings/w/e/x/q/q/k", "", "200", r#""routing_key":"k""#),
            ("GET /api/policies/w/p", "", "200", r#""max-length":3"#),
            ("GET /api/permissions/w/guest", "", "200", r#""configure":".*""#),
            ("GET /api/permissions/w/none", "", "404", ""),
            ("POST /api/users/bulk-delete", r#"{"users":["none"]}"#, "204", ""),
            ("POST /api/users/bulk-delete", r#"{"users":"none"}"#, "400", ""),
            ("GET /api/health/checks/certificate-expiration/1/months", "", "200", r#""status":"ok""#),
            ("GET /api/health/checks/certificate-expiration/1/moons", "", "400", ""),
            ("GET /api/health/checks/certificate-expiration/x/days", "", "400", ""),
        ],
    );
}

/// Returns the names in an answer, each with its virtual host.
fn named(simulation: &mut Simulation, api: usize, line: &str) -> Vec<String> {
    let rows = body(&say(simulation, api, GUEST, line, ""));
    let rows = rows.get("items").unwrap_or(&rows).as_array().expect("a list").clone();
    let text = |row: &serde_json::Value, key: &str| row[key].as_str().unwrap_or_default().to_string();
    let name =
        |row| text(row, "vhost") + " " + &text(row, "name") + &text(row, "destination") + &text(row, "user");
    rows.iter().map(name).collect()
}

#[test]
fn lists_are_sorted_by_virtual_host_and_name_unless_another_order_is_asked_for() {
    let mut simulation = Simulation::new(small_limits());
    let api = simulation.connect_management(Shape::WIDE, HOME);
    for vhost in ["b", "a", "Z", "aa"] {
        say(&mut simulation, api, GUEST, &format!("PUT /api/vhosts/{vhost}"), "");
        for name in ["z", "B", "q10", "q9"] {
            say(&mut simulation, api, GUEST, &format!("PUT /api/queues/{vhost}/{name}"), "{}");
            say(&mut simulation, api, GUEST, &format!("PUT /api/exchanges/{vhost}/{name}"), "{}");
        }
    }
    let names = ["B", "q10", "q9", "z"];
    let of = |vhost: &str| names.iter().map(|name| format!("{vhost} {name}")).collect::<Vec<_>>();
    let all = ["Z", "a", "aa", "b"].map(of).concat();
    assert_eq!(named(&mut simulation, api, "GET /api/queues"), all);
    assert_eq!(named(&mut simulation, api, "GET /api/queues?page=1"), all);
    assert_eq!(named(&mut simulation, api, "GET /api/queues/aa"), of("aa"));
    assert_eq!(named(&mut simulation, api, "GET /api/bindings"), all);
    assert_eq!(named(&mut simulation, api, "GET /api/vhosts"), [" /", " Z", " a", " aa", " b"]);
    let users = ["/", "Z", "a", "aa", "b"].map(|vhost| format!("{vhost} guest"));
    assert_eq!(named(&mut simulation, api, "GET /api/permissions"), users);
    let exchanges = named(&mut simulation, api, "GET /api/exchanges/a");
    let begin = ["a ", "a B", "a amq.direct", "a amq.fanout", "a amq.headers", "a amq.match"];
    assert_eq!(exchanges[..6], begin, "the default exchange is the first");
    assert!(exchanges.is_sorted(), "{exchanges:?}");
    let reverse = named(&mut simulation, api, "GET /api/queues/a?sort=name&sort_reverse=true");
    assert_eq!(reverse, of("a").into_iter().rev().collect::<Vec<_>>());
}

#[test]
fn an_aliveness_test_needs_the_same_permissions_as_in_rabbitmq() {
    let mut simulation = Simulation::new(small_limits());
    let rights = |[configure, write, read]: [&str; 3]| {
        format!(r#"{{"configure":"{configure}","write":"{write}","read":"{read}"}}"#)
    };
    let own = ["^aliveness-test$", "^amq[.]default$", "^aliveness-test$"];
    let user = r#"{"password":"meter","tags":"management"}"#;
    let administrator = r#"{"password":"meter","tags":"administrator"}"#;
    script(
        &mut simulation,
        GUEST,
        &[
            ("PUT /api/vhosts/v", "", "201", ""),
            ("PUT /api/users/meter", user, "201", ""),
            ("PUT /api/users/d", administrator, "201", ""),
            ("GET /api/aliveness-test/v", "", "200", "{\"status\":\"ok\"}"),
        ],
    );
    // `meter:meter` and `d:meter`
    let [meter, d] = ["Authorization: Basic bWV0ZXI6bWV0ZXI=\r\n", "Authorization: Basic ZDptZXRlcg==\r\n"];
    let line = "GET /api/aliveness-test/v";
    script(&mut simulation, meter, &[(line, "", "401", "User not authorised to access virtual host")]);
    script(
        &mut simulation,
        d,
        &[(line, "", "401", "\"Access refused.\""), (&line.replace("/v", "/w"), "", "404", "")],
    );
    for (allowed, wanted, part) in [
        (own, "200", "ok"),
        (
            ["", own[1], own[2]],
            "401",
            "access to queue 'aliveness-test' in vhost 'v' refused for user 'meter'",
        ),
        ([own[0], "", own[2]], "401", "access to exchange"),
        (
            [own[0], own[1], ""],
            "401",
            "access to queue 'aliveness-test' in vhost 'v' refused for user 'meter'",
        ),
    ] {
        let put = "PUT /api/permissions/v/meter";
        let api = simulation.connect_management(Shape::WIDE, HOME);
        say(&mut simulation, api, GUEST, put, &rights(allowed));
        script(&mut simulation, meter, &[(line, "", wanted, part)]);
    }
}

#[test]
fn a_connection_shows_its_protocol_and_an_overview_its_listeners_as_in_rabbitmq() {
    let mut simulation = Simulation::new(small_limits());
    simulation.open(&[1]);
    let api = simulation.connect_management(Shape::WIDE, HOME);
    let connections = body(&say(&mut simulation, api, GUEST, "GET /api/connections", ""));
    assert_eq!(connections[0]["protocol"], "AMQP 0-9-1");
    let operator = simulation.connect_operator(Shape::WIDE, 0);
    simulation.operator(operator).write_up(b"GET /api/connections?columns=protocol HTTP/1.1\r\n\r\n");
    simulation.run();
    let mut heard = Vec::new();
    simulation.operator(operator).read_down(usize::MAX, &mut heard);
    assert!(String::from_utf8_lossy(&heard).contains("{0,9,1}"), "rabbitmqctl has it in Erlang's words");
    let overview = body(&say(&mut simulation, api, GUEST, "GET /api/overview", ""));
    let context = |description: &str, port: &str| {
        serde_json::json!({
            "ssl_opts": [], "node": overview["node"], "description": description, "path": "/",
            "cowboy_opts": "[{sendfile,false}]", "ip": "127.0.0.1", "port": port,
        })
    };
    let mut metrics = context("RabbitMQ Prometheus", "15692");
    metrics["protocol"] = "'http/prometheus'".into();
    assert_eq!(overview["contexts"], serde_json::json!([context("RabbitMQ Management", "15672"), metrics]));
}

/// Lets time pass until just after the next sample.
fn pass_to_next_sample(simulation: &mut Simulation) {
    let left = 5_000 - simulation.engine.now().as_ms() % 5_000;
    simulation.pass_ms(left + 100);
}

#[test]
fn exchanges_channels_and_connections_show_their_rates() {
    let mut simulation = Simulation::new(small_limits());
    let client = simulation.open(&[1, 2]);
    for queue in ["q", "r"] {
        simulation.declare(client, 1, queue);
    }
    let api = simulation.connect_management(Shape::WIDE, HOME);
    for queue in ["q", "r"] {
        say(&mut simulation, api, GUEST, &format!("POST /api/bindings/%2F/e/amq.fanout/q/{queue}"), "{}");
    }
    let idle = body(&say(&mut simulation, api, GUEST, "GET /api/exchanges/%2F/amq.fanout", ""));
    assert!(idle.get("message_stats").is_none(), "nothing was published: {idle}");
    (0..2).for_each(|_| pass_to_next_sample(&mut simulation));
    let fanout = Publish { exchange: "amq.fanout", ..Publish::default() };
    for _ in 0..50 {
        simulation.publish(client, 1, fanout, b"hi");
    }
    for _ in 0..5 {
        simulation.publish(client, 1, Publish { exchange: "", key: "nowhere", ..fanout }, b"hi");
    }
    simulation.consume(client, 2, "q", "c", false);
    simulation.run();
    for tag in 1..=20 {
        simulation.ack(client, 2, tag, false);
    }
    simulation.run();
    pass_to_next_sample(&mut simulation);
    let api = simulation.connect_management(Shape::WIDE, HOME);
    let exchange = body(&say(&mut simulation, api, GUEST, "GET /api/exchanges/%2F/amq.fanout", ""));
    let stats = &exchange["message_stats"];
    let numbers = ["publish_in", "publish_out"].map(|name| stats[name].clone());
    let rates = ["publish_in", "publish_out"].map(|name| stats[format!("{name}_details")]["rate"].clone());
    assert_eq!((numbers, rates), ([50.into(), 100.into()], [10.0.into(), 20.0.into()]), "{exchange}");
    let default = body(&say(&mut simulation, api, GUEST, "GET /api/exchanges/%2F/amq.default", ""));
    let stats = &default["message_stats"];
    assert_eq!([&stats["publish_in"], &stats["publish_out"]], [5, 0], "{default}");
    let channels = body(&say(&mut simulation, api, GUEST, "GET /api/channels?sort=number", ""));
    let stats = |at: usize, name: &str| {
        let stats = &channels[at]["message_stats"];
        (stats[name].clone(), stats[format!("{name}_details")]["rate"].clone())
    };
    assert_eq!(stats(0, "publish"), (55.into(), 11.0.into()), "{channels}");
    assert_eq!(stats(0, "drop_unroutable"), (5.into(), 1.0.into()), "{channels}");
    assert_eq!(stats(1, "deliver"), (50.into(), 10.0.into()), "{channels}");
    assert_eq!(stats(1, "deliver_get"), (50.into(), 10.0.into()), "{channels}");
    assert_eq!(stats(1, "ack"), (20.into(), 4.0.into()), "{channels}");
    assert_eq!(stats(1, "publish"), (0.into(), 0.0.into()), "{channels}");
    let connections = body(&say(&mut simulation, api, GUEST, "GET /api/connections", ""));
    let rate = |name: &str| connections[0][name]["rate"].as_f64().expect("a rate");
    assert!(rate("recv_oct_details") > 400.0 && rate("send_oct_details") > 300.0, "{connections}");
    // Five seconds without an event.
    (0..2).for_each(|_| pass_to_next_sample(&mut simulation));
    let channels = body(&say(&mut simulation, api, GUEST, "GET /api/channels?sort=number", ""));
    assert_eq!(channels[0]["message_stats"]["publish_details"]["rate"], 0.0, "{channels}");
    // A new exchange in the place of a deleted one starts at zero.
    for line in ["PUT /api/exchanges/%2F/x", "DELETE /api/exchanges/%2F/x", "PUT /api/exchanges/%2F/y"] {
        say(&mut simulation, api, GUEST, line, r#"{"type":"fanout"}"#);
    }
    for rate in [0.0, 0.2] {
        simulation.publish(client, 1, Publish { exchange: "y", ..fanout }, b"hi");
        pass_to_next_sample(&mut simulation);
        let exchange = body(&say(&mut simulation, api, GUEST, "GET /api/exchanges/%2F/y", ""));
        assert_eq!(exchange["message_stats"]["publish_in_details"]["rate"], rate, "{exchange}");
    }
}
