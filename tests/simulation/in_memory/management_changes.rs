//! Changes by users over the management API: limited by their permissions, and with RabbitMQ's error texts.

use super::management::{ANN, GUEST, ask, status};
use leveret_test_support::simulated_server::{Shape, Simulation, small_limits};

const HOME: [u8; 4] = [127, 0, 0, 1];

pub(super) fn say(simulation: &mut Simulation, client: usize, login: &str, line: &str, body: &str) -> String {
    let length = body.len();
    let request =
        format!("{line} HTTP/1.1\r\nHost: localhost:15672\r\n{login}Content-Length: {length}\r\n\r\n{body}");
    ask(simulation, client, &request)
}

/// Sends requests of one user in order. Checks the status of each answer and a part of its text.
pub(super) fn script(simulation: &mut Simulation, login: &str, lines: &[(&str, &str, &str, &str)]) {
    let client = simulation.connect_management(Shape::WIDE, HOME);
    for (line, body, wanted, part) in lines {
        let answer = say(simulation, client, login, line, body);
        assert_eq!(status(&answer), *wanted, "{line} {body}: {answer}");
        assert!(answer.contains(part), "{line} {body}: no {part} in {answer}");
    }
}

const MESSAGE: &str = concat!(
    r#"{"properties":{"delivery_mode":2,"headers":{"a":1}},"#,
    r#""routing_key":"q","payload":"hi","payload_encoding":"string"}"#
);

#[test]
fn queues_exchanges_and_bindings_are_made_shown_and_deleted() {
    let mut simulation = Simulation::new(small_limits());
    script(
        &mut simulation,
        GUEST,
        &[
            ("PUT /api/queues/%2F/q", r#"{"durable":"true"}"#, "201", "content-length: 0"),
            ("PUT /api/queues/%2F/q", r#"{"durable":true}"#, "204", ""),
            ("PUT /api/queues/%2F/q", "{}", "400", "inequivalent arg 'durable' for queue 'q' in vhost '/'"),
            ("PUT /api/queues/%2F/r", r#"{"durable":"yes"}"#, "400", "bad_request"),
            ("PUT /api/queues/%2F/r", "{bad", "400", "bad_request"),
            ("PUT /api/queues/%2F/amq.x", "{}", "401", "not_authorised"),
            ("PUT /api/queues/none/q", "{}", "404", ""),
            ("PUT /api/exchanges/%2F/x", r#"{"type":"topic"}"#, "201", ""),
            ("PUT /api/exchanges/%2F/x", r#"{"type":"topic"}"#, "204", ""),
            ("PUT /api/exchanges/%2F/x", r#"{"type":"bogus"}"#, "400", "bogus"),
            (
                "POST /api/bindings/%2F/e/x/q/q",
                r#"{"routing_key":"a b/c~"}"#,
                "201",
                "location: q/a%2Bb%252Fc%257E\r\n",
            ),
            ("POST /api/bindings/%2F/e/x/q/q", "{}", "201", "location: q/~\r\n"),
            ("POST /api/bindings/%2F/e/x/e/amq.fanout", r#"{"routing_key":"k"}"#, "201", ""),
            ("POST /api/bindings/%2F/e/none/q/q", "{}", "404", "no exchange 'none' in vhost '/'"),
            ("POST /api/bindings/%2F/e/x/q/none", "{}", "404", "no queue 'none' in vhost '/'"),
            ("GET /api/bindings/%2F/e/x/q/q/a%2Bb%252Fc%257E", "", "200", r#""routing_key":"a b/c~""#),
            ("GET /api/bindings/%2F/e/x/q/q/none", "", "404", "Object Not Found"),
            ("GET /api/bindings/%2F/e/amq.default/q/q/q", "", "200", r#""properties_key":"q""#),
            ("GET /api/exchanges/%2F/x/bindings/source", "", "200", r#""destination":"amq.fanout""#),
            ("GET /api/exchanges/%2F/amq.fanout/bindings/destination", "", "200", r#""source":"x""#),
            ("GET /api/queues/%2F/q/bindings", "", "200", r#""properties_key":"~""#),
            ("DELETE /api/exchanges/%2F/x?if-unused=true", "", "400", "exchange 'x' in vhost '/' in use"),
            ("DELETE /api/bindings/%2F/e/x/q/q/~", "", "204", ""),
            ("DELETE /api/bindings/%2F/e/x/q/q/~", "", "404", "Object Not Found"),
            ("DELETE /api/exchanges/%2F/amq.direct", "", "401", ""),
            ("DELETE /api/exchanges/%2F/x", "", "204", ""),
            ("DELETE /api/exchanges/%2F/x", "", "404", ""),
            ("POST /api/exchanges/%2F/amq.default/publish", MESSAGE, "200", r#"{"routed":true}"#),
            ("DELETE /api/queues/%2F/q?if-empty=true", "", "400", "queue 'q' in vhost '/' not empty"),
            ("DELETE /api/queues/%2F/q/contents", "", "204", ""),
            ("DELETE /api/queues/%2F/q?if-empty=true", "", "204", ""),
            ("DELETE /api/queues/%2F/q", "", "404", ""),
            ("DELETE /api/queues/%2F/q/contents", "", "404", ""),
            ("POST /api/exchanges/%2F/amq.default/publish", MESSAGE, "200", r#"{"routed":false}"#),
            ("POST /api/exchanges/%2F/none/publish", MESSAGE, "400", "404 NOT_FOUND - no exchange 'none'"),
            ("POST /api/exchanges/%2F/amq.default/publish", "{}", "400", "properties"),
            ("POST /api/exchanges/%2F/amq.default/publish", "[]", "400", ""),
            ("PUT /api/whoami", "{}", "405", ""),
            ("POST /api/queues/%2F/q/contents", "", "404", ""),
            ("POST /api/bindings", "{}", "405", ""),
        ],
    );
}

#[test]
fn a_published_message_is_delivered_with_its_properties() {
    let mut simulation = Simulation::new(small_limits());
    let client = simulation.open(&[1]);
    simulation.declare(client, 1, "q");
    script(
        &mut simulation,
        GUEST,
        &[("POST /api/exchanges/%2F/amq.default/publish", MESSAGE, "200", r#"{"routed":true}"#)],
    );
    simulation.consume(client, 1, "q", "c", true);
    simulation.run();
    let deliveries = simulation.deliveries(client);
    assert_eq!(deliveries.len(), 1);
    assert_eq!(deliveries[0].body, b"hi");
}

#[test]
fn amqp_permissions_apply_to_the_management_api() {
    let mut simulation = Simulation::new(small_limits());
    let mine = r#"{"configure":"^mine","write":"^mine","read":"^mine"}"#;
    let key = r#"{"properties":{},"routing_key":"q","payload":"","payload_encoding":"string"}"#;
    script(
        &mut simulation,
        GUEST,
        &[
            ("PUT /api/queues/%2F/theirs", "{}", "201", ""),
            ("PUT /api/permissions/%2F/guest", mine, "204", ""),
            ("PUT /api/queues/%2F/mine", "{}", "201", ""),
            ("PUT /api/queues/%2F/other", "{}", "401", "access to queue 'other' in vhost '/' refused"),
            ("DELETE /api/queues/%2F/theirs", "", "401", "access to queue 'theirs'"),
            ("DELETE /api/queues/%2F/theirs/contents", "", "401", ""),
            ("PUT /api/exchanges/%2F/x", "{}", "401", ""),
            ("DELETE /api/exchanges/%2F/amq.topic", "", "401", ""),
            ("POST /api/bindings/%2F/e/amq.topic/q/mine", "{}", "401", ""),
            ("POST /api/exchanges/%2F/amq.topic/publish", key, "400", "403 ACCESS_REFUSED"),
            ("DELETE /api/permissions/%2F/guest", "", "204", ""),
            ("PUT /api/queues/%2F/mine", "{}", "401", "access to vhost '/' refused for user 'guest'"),
        ],
    );
}

/// RabbitMQ 3.10.8 gave the same answers.
#[test]
fn policies_are_set_shown_and_cleared_by_authorized_users() {
    let mut simulation = Simulation::new(small_limits());
    let limit = r#"{"pattern":"^q","definition":{"max-length":3}}"#;
    let shown = concat!(
        r#"{"vhost":"/","name":"p","pattern":"^q","apply-to":"all","#,
        r#""definition":{"max-length":3},"priority":0}"#
    );
    let queues = concat!(
        r#"{"pattern":"^q","definition":{"max-length":5,"overflow":"drop-head"},"#,
        r#""priority":3,"apply-to":"queues"}"#
    );
    let both = concat!(
        r#""policy":"p","operator_policy":"o","#,
        r#""effective_policy_definition":{"max-length":3,"overflow":"drop-head"}"#
    );
    let none = r#""policy":null,"operator_policy":null,"effective_policy_definition":{}"#;
    let anns = r#"{"configure":".*","write":".*","read":".*"}"#;
    script(
        &mut simulation,
        GUEST,
        &[
            ("PUT /api/queues/%2F/q", "{}", "201", ""),
            ("GET /api/policies", "", "200", "[\n]"),
            ("GET /api/policies/none", "", "404", ""),
            ("GET /api/policies/%2F/p", "", "404", "Object Not Found"),
            ("PUT /api/policies/%2F/p", limit, "201", ""),
            ("GET /api/policies/%2F/p", "", "200", shown),
            ("GET /api/policies/%2F", "", "200", shown),
            ("PUT /api/policies/%2F/p", queues, "204", ""),
            ("PUT /api/policies/none/p", limit, "404", ""),
            ("PUT /api/policies/%2F/x", r#"{"pattern":"^q"}"#, "400", "[{key_missing,definition}]"),
            ("PUT /api/policies/%2F/x", r#"{"pattern":"^q","definition":{}}"#, "400", "no policy provided"),
            (
                "PUT /api/policies/%2F/x",
                r#"{"pattern":"^q","definition":{"zz":3}}"#,
                "400",
                r#"Validation failed\n\n[{<<\"zz\">>,3}] are not recognised policy settings\n"#,
            ),
            (
                "PUT /api/policies/%2F/x",
                r#"{"pattern":"(q","definition":{"max-length":3}}"#,
                "400",
                "invalid",
            ),
            ("POST /api/policies/%2F/p", "{}", "405", ""),
            ("PUT /api/operator-policies/%2F/o", queues, "400", "<<\\\"overflow\\\">>"),
            ("PUT /api/operator-policies/%2F/o", limit, "201", ""),
            ("GET /api/operator-policies", "", "200", r#""name":"o""#),
            ("GET /api/queues/%2F/q", "", "200", both),
            ("GET /api/definitions", "", "200", r#""component":"operator_policy""#),
            ("DELETE /api/operator-policies/%2F/o", "", "204", ""),
            ("DELETE /api/operator-policies/%2F/o", "", "404", "Object Not Found"),
            ("PUT /api/users/ann", r#"{"password":"a","tags":"management"}"#, "201", ""),
            ("PUT /api/permissions/%2F/ann", anns, "201", ""),
            ("PUT /api/vhosts/v", "", "201", ""),
            ("PUT /api/vhosts/v", r#"{"tracing":true}"#, "204", ""),
            ("GET /api/vhosts/v", "", "200", r#""tracing":true"#),
            ("PUT /api/vhosts/v", r#"{"description":"x"}"#, "204", ""),
            ("GET /api/vhosts/v", "", "200", r#""tracing":true"#),
            ("PUT /api/vhosts/v", r#"{"tracing":false}"#, "204", ""),
            ("GET /api/vhosts/v", "", "200", r#""tracing":false"#),
            // As in RabbitMQ, an absent description and absent tags are removed; the queue type stays.
            (
                "PUT /api/vhosts/v",
                r#"{"description":"x","tags":"t","default_queue_type":"quorum"}"#,
                "204",
                "",
            ),
            (
                "GET /api/vhosts/v",
                "",
                "200",
                r#""description":"x","tags":["t"],"default_queue_type":"quorum""#,
            ),
            ("PUT /api/vhosts/v", r#"{"tags":["u"]}"#, "204", ""),
            (
                "GET /api/vhosts/v",
                "",
                "200",
                r#""description":"","tags":["u"],"default_queue_type":"quorum""#,
            ),
            ("PUT /api/vhosts/v", "", "204", ""),
            ("GET /api/vhosts/v", "", "200", r#""description":"","tags":[],"default_queue_type":"quorum""#),
            ("GET /api/cluster-name", "", "200", r#"{"name":"leveret@"#),
            ("PUT /api/cluster-name", r#"{"name":"hall 3"}"#, "204", ""),
            ("GET /api/cluster-name", "", "200", r#"{"name":"hall 3"}"#),
            ("GET /api/global-parameters/cluster_name", "", "200", r#""value":"hall 3""#),
            ("PUT /api/cluster-name", r#"{"name":""}"#, "400", "1 to 255 bytes"),
            ("PUT /api/cluster-name", "{}", "400", "key_missing,name"),
            ("DELETE /api/global-parameters/cluster_name", "", "204", ""),
            ("GET /api/cluster-name", "", "200", r#"{"name":"leveret@"#),
            ("PUT /api/vhosts/v", r#"{"tracing":7}"#, "400", "tracing is true or false"),
        ],
    );
    script(
        &mut simulation,
        ANN,
        &[
            ("GET /api/policies", "", "200", r#""name":"p""#),
            ("GET /api/policies/%2F/p", "", "401", "User not authorised to access object"),
            ("PUT /api/policies/%2F/p", limit, "401", "User not authorised to access object"),
            ("DELETE /api/policies/%2F/p", "", "401", "User not authorised to access object"),
            ("PUT /api/operator-policies/%2F/o", limit, "401", "Not administrator user"),
        ],
    );
    script(&mut simulation, GUEST, &[("PUT /api/users/ann", r#"{"tags":"policymaker"}"#, "204", "")]);
    script(
        &mut simulation,
        ANN,
        &[
            ("PUT /api/policies/%2F/p", limit, "204", ""),
            ("GET /api/policies/%2F/p", "", "200", shown),
            ("PUT /api/policies/v/p", limit, "401", "User not authorised to access object"),
            ("PUT /api/operator-policies/%2F/o", limit, "401", "Not administrator user"),
            ("DELETE /api/operator-policies/%2F/o", "", "401", "Not administrator user"),
            ("DELETE /api/policies/%2F/p", "", "204", ""),
            ("GET /api/queues/%2F/q", "", "200", none),
        ],
    );
}

#[test]
fn head_is_answered_with_the_headers_only() {
    let mut simulation = Simulation::new(small_limits());
    let client = simulation.connect_management(Shape::WIDE, HOME);
    for path in ["/api/whoami", "/api/queues", "/api/none"] {
        let answer = say(&mut simulation, client, GUEST, &format!("HEAD {path}"), "");
        let wanted = if path == "/api/none" { "404" } else { "200" };
        assert_eq!(status(&answer), wanted);
        assert!(answer.ends_with("\r\n\r\n") && answer.matches("\r\n\r\n").count() == 1, "{answer}");
    }
    let after = say(&mut simulation, client, GUEST, "GET /api/whoami", "");
    assert!(after.ends_with('}'), "{after}");
}

pub(super) fn body(answer: &str) -> serde_json::Value {
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    if !head.contains("chunked") {
        return body.parse().expect("JSON");
    }
    let (mut whole, mut rest) = (String::new(), body);
    loop {
        let (length, behind) = rest.split_once("\r\n").expect("a chunk");
        let length = usize::from_str_radix(length, 16).expect("its length");
        if length == 0 {
            return whole.parse().unwrap_or_else(|error| panic!("{error}: {whole}"));
        }
        whole += &behind[..length];
        rest = &behind[length + 2..];
    }
}

fn taken(simulation: &mut Simulation, client: usize, ackmode: &str, more: &str) -> serde_json::Value {
    let asked = format!(r#"{{"ackmode":"{ackmode}","encoding":"auto"{more}}}"#);
    let answer = say(simulation, client, GUEST, "POST /api/queues/%2F/q/get", &asked);
    assert_eq!(status(&answer), "200", "{answer}");
    body(&answer)
}

#[test]
fn messages_are_taken_and_put_back_as_rabbitmq_does() {
    for shape in [Shape::WIDE, Shape { down_room: 700, ..Shape::WIDE }] {
        let mut simulation = Simulation::new(small_limits());
        let publisher = simulation.open(&[1]);
        simulation.declare(publisher, 1, "q");
        let client = simulation.connect_management(Shape::WIDE, HOME);
        say(&mut simulation, client, GUEST, "POST /api/exchanges/%2F/amq.default/publish", MESSAGE);
        let large = "ä\"".repeat(2_000);
        for payload in [large.as_bytes(), b"\xff\x00\xfe", b"", "ä".as_bytes()] {
            simulation.publish_to(publisher, 1, "q", payload);
        }
        simulation.run();
        let client = simulation.connect_management(shape, HOME);
        for redelivered in [false, true] {
            let shown = taken(&mut simulation, client, "ack_requeue_true", r#","count":2"#);
            let first = serde_json::json!({
                "payload_bytes": 2, "redelivered": redelivered, "exchange": "", "routing_key": "q",
                "message_count": 4, "properties": {"delivery_mode": 2, "headers": {"a": 1}},
                "payload": "hi", "payload_encoding": "string",
            });
            assert_eq!((&shown[0], shown.as_array().map(Vec::len)), (&first, Some(2)));
            assert_eq!(shown[1]["payload"], large.as_str());
            assert_eq!(shown[1]["properties"], serde_json::json!([]));
        }
        let shown = taken(&mut simulation, client, "reject_requeue_true", r#","count":"9","truncate":3"#);
        let payloads: Vec<_> = shown.as_array().unwrap().iter().map(|one| one["payload"].clone()).collect();
        assert_eq!(payloads, ["hi", "ä\"", "/wD+", "", "ä"]);
        assert_eq!(shown[2]["payload_encoding"], "base64");
        // The limit cuts a multi-byte character.
        let cut = taken(&mut simulation, client, "ack_requeue_true", r#","count":2,"truncate":1"#);
        assert_eq!((&cut[1]["payload"], &cut[1]["payload_encoding"]), (&"ww==".into(), &"base64".into()));
        assert_eq!(cut[1]["payload_bytes"], large.len());
        assert_eq!(simulation.counts_from_outside("q"), 5);
        taken(&mut simulation, client, "ack_requeue_false", r#","count":2"#);
        assert_eq!(simulation.counts_from_outside("q"), 3);
        taken(&mut simulation, client, "reject_requeue_false", r#","count":100"#);
        assert_eq!(simulation.counts_from_outside("q"), 0);
        let none = taken(&mut simulation, client, "ack_requeue_true", r#","count":1"#);
        assert_eq!(none, serde_json::json!([]));
    }
}

#[test]
fn messages_taken_by_a_lost_client_are_requeued() {
    let mut simulation = Simulation::new(small_limits());
    let publisher = simulation.open(&[1]);
    simulation.declare(publisher, 1, "q");
    for _ in 0..20 {
        simulation.publish_to(publisher, 1, "q", &[b'x'; 3_000]);
    }
    simulation.run();
    let client = simulation.connect_management(Shape { down_room: 700, ..Shape::WIDE }, HOME);
    let asked = r#"{"ackmode":"reject_requeue_false","encoding":"auto","count":20}"#;
    let length = asked.len();
    let request = format!(
        "POST /api/queues/%2F/q/get HTTP/1.1\r\nHost: localhost\r\n{GUEST}\
         Content-Length: {length}\r\n\r\n{asked}"
    );
    simulation.operator(client).write_up(request.as_bytes());
    for _ in 0..20 {
        simulation.pass_ms(50);
    }
    assert!(simulation.counts_from_outside("q") < 20, "some are taken");
    simulation.operator(client).lose();
    simulation.run();
    assert_eq!(simulation.counts_from_outside("q"), 20);
}

#[test]
fn invalid_gets_are_refused_with_rabbitmqs_error_texts() {
    let mut simulation = Simulation::new(small_limits());
    let get = r#"{"ackmode":"ack_requeue_true","count":1,"encoding":"auto"}"#;
    script(
        &mut simulation,
        GUEST,
        &[
            ("POST /api/queues/%2F/none/get", get, "404", "no queue 'none' in vhost '/'"),
            ("POST /api/queues/%2F/q/get", "{}", "400", "ackmode"),
            (
                "POST /api/queues/%2F/q/get",
                r#"{"ackmode":"ack_requeue_true","encoding":"auto"}"#,
                "400",
                "count",
            ),
            (
                "POST /api/queues/%2F/q/get",
                r#"{"ackmode":"ack_requeue_true","encoding":"hex","count":1}"#,
                "400",
                "Unsupported encoding. Please use auto or base64.",
            ),
        ],
    );
}

fn names(rows: &serde_json::Value) -> Vec<&str> {
    rows.as_array().expect("rows").iter().filter_map(|row| row["name"].as_str()).collect()
}

#[test]
fn lists_are_sorted_filtered_and_taken_page_by_page() {
    let mut simulation = Simulation::new(small_limits());
    let client = simulation.open(&[1]);
    for name in ["sensor/long/name/b", "Abc", "xabc", "sensor/long/name/a", "abcd"] {
        simulation.declare(client, 1, name);
    }
    simulation.publish_to(client, 1, "xabc", b"1");
    simulation.run();
    let client = simulation.connect_management(Shape::WIDE, HOME);
    let mut list = |query: &str| {
        let answer = say(&mut simulation, client, GUEST, &format!("GET /api/queues?{query}"), "");
        (status(&answer).to_string(), body(&answer))
    };
    let (_, rows) = list("sort=name&columns=name");
    let sorted = ["Abc", "abcd", "sensor/long/name/a", "sensor/long/name/b", "xabc"];
    assert_eq!(names(&rows), sorted);
    assert_eq!(rows[0], serde_json::json!({"name": "Abc"}), "one column");
    let (_, rows) = list("sort=messages&sort_reverse=true&columns=name,messages,message_stats.x.rate,");
    assert_eq!(names(&rows)[0], "xabc");
    let (_, page) = list("page=2&page_size=2&sort=name&columns=name");
    assert_eq!(names(&page["items"]), &sorted[2..4]);
    for (key, number) in [("page", 2), ("page_size", 2), ("page_count", 3), ("item_count", 2)] {
        assert_eq!(page[key], number, "{key}");
    }
    assert_eq!((&page["total_count"], &page["filtered_count"]), (&5.into(), &5.into()));
    let (_, page) = list("page=1&name=ABC&columns=name");
    assert_eq!(names(&page["items"]), ["Abc", "abcd", "xabc"]);
    assert_eq!((&page["total_count"], &page["filtered_count"]), (&5.into(), &3.into()));
    let (_, page) = list("page=1&name=%5Eabc&use_regex=true&columns=name%2Cvhost");
    assert_eq!(page["items"][0], serde_json::json!({"name": "Abc", "vhost": "/"}));
    assert_eq!(page["filtered_count"], 2);
    for (query, error) in [
        ("page=0", "invalid_pagination_parameters"),
        ("page=1&page_size=501", "invalid_pagination_parameters"),
        ("page=9", "page_out_of_range"),
        ("page=a", "bad_request"),
        ("page=1&name=(&use_regex=true", "bad_request"),
        ("page=1&name=((a{100}){100}){100}&use_regex=true", "bad_request"),
    ] {
        let (status, body) = list(query);
        assert_eq!((&*status, body["error"].as_str()), ("400", Some(error)), "{query}");
    }
}

#[test]
fn a_costly_pattern_does_not_delay_other_clients() {
    let mut simulation = Simulation::new(small_limits());
    let user = simulation.open(&[1]);
    let names: Vec<String> = (0..20).map(|number| format!("{number:n<200}")).collect();
    names.iter().for_each(|name| simulation.declare(user, 1, name));
    simulation.run();
    let mut turns_of = |pattern: &str| {
        let client = simulation.connect_management(Shape::WIDE, HOME);
        let before = simulation.turns;
        let line = format!("GET /api/queues?page=1&use_regex=true&name={pattern}&columns=name");
        let answer = say(&mut simulation, client, GUEST, &line, "");
        assert_eq!(status(&answer), "200", "{answer}");
        (simulation.turns - before, body(&answer)["filtered_count"].clone())
    };
    let (plain, found) = turns_of("n$");
    assert_eq!(found, 20);
    // Each match takes as long as thousands of simple ones; other clients get a turn after each.
    let (costly, found) = turns_of("(n?){60}z");
    assert_eq!(found, 0);
    assert!(plain < 20 && costly > 20, "{costly} turns, and {plain} for a plain one");
}

#[test]
fn a_monitoring_user_cannot_close_connections() {
    let mut simulation = Simulation::new(small_limits());
    let user = simulation.open(&[1]);
    let client = simulation.connect_management(Shape::WIDE, HOME);
    let ann = r#"{"password":"a","tags":"monitoring"}"#;
    assert_eq!(status(&say(&mut simulation, client, GUEST, "PUT /api/users/ann", ann)), "201");
    let seen = say(&mut simulation, client, ANN, "GET /api/connections?columns=name", "");
    let name = body(&seen)[0]["name"].as_str().expect("it sees it").replace(' ', "%20").replace('>', "%3E");
    let close = format!("DELETE /api/connections/{name}");
    assert_eq!(status(&say(&mut simulation, client, ANN, &close, "")), "404");
    simulation.declare(user, 1, "it goes on");
    assert_eq!(status(&say(&mut simulation, client, GUEST, &close, "")), "204");
}

#[test]
fn peeking_twice_changes_nothing() {
    let mut simulation = Simulation::new(small_limits());
    let user = simulation.open(&[1, 2]);
    simulation.declare(user, 1, "q");
    for payload in ["one", "two", "three"] {
        simulation.publish_to(user, 1, "q", payload.as_bytes());
    }
    simulation.run();
    let client = simulation.connect_management(Shape::WIDE, HOME);
    let look = |simulation: &mut Simulation, query: &str| {
        let line = format!("GET /api/leveret/queues/%2F/q/messages?{query}");
        let answer = say(simulation, client, GUEST, &line, "");
        assert_eq!(status(&answer), "200", "{answer}");
        body(&answer)
    };
    for _ in 0..2 {
        let seen = look(&mut simulation, "");
        let shown = |at: usize| {
            let one = &seen["messages"][at];
            (one["position"].clone(), one["payload"].clone(), one["redelivered"].clone())
        };
        for (at, payload) in ["one", "two", "three"].into_iter().enumerate() {
            assert_eq!(shown(at), (at.into(), payload.into(), false.into()));
        }
        assert_eq!((&seen["ready"], &seen["next"]), (&3.into(), &serde_json::Value::Null));
    }
    let part = look(&mut simulation, "position=1&count=1&truncate=2");
    assert_eq!((&part["messages"][0]["payload"], &part["next"]), (&"tw".into(), &2.into()));
    assert_eq!(look(&mut simulation, "position=7")["messages"], serde_json::json!([]));
    assert_eq!(simulation.counts_from_outside("q"), 3);
    // A requeued message comes first and is marked. It is not shown while a client holds it.
    simulation.consume(user, 1, "q", "c", false);
    simulation.run();
    let sent = simulation.deliveries(user);
    assert_eq!(sent.len(), 3);
    assert!(sent.iter().all(|one| one.shown().contains("redelivered: false")), "{:?}", sent[0].shown());
    assert_eq!(look(&mut simulation, "")["ready"], 0);
    simulation.hang_up(user);
    simulation.run();
    let seen = look(&mut simulation, "");
    assert_eq!(
        (&seen["messages"][0]["payload"], &seen["messages"][0]["redelivered"]),
        (&"one".into(), &true.into())
    );
    script(
        &mut simulation,
        GUEST,
        &[
            ("GET /api/leveret/queues/%2F/none/messages", "", "404", "no queue 'none'"),
            ("GET /api/leveret/queues/%2F/q/messages?count=x", "", "400", "count"),
            ("PUT /api/permissions/%2F/guest", r#"{"configure":"","write":"","read":""}"#, "204", ""),
            ("GET /api/leveret/queues/%2F/q/messages", "", "401", "access to queue 'q'"),
        ],
    );
}

#[test]
fn users_with_clear_passwords_and_definitions_are_imported_over_http() {
    let mut simulation = Simulation::new(small_limits());
    let definitions = r#"{
        "vhosts": [{"name": "v"}],
        "users": [{"name": "d", "password": "meter", "tags": "management"}],
        "permissions": [{"user": "d", "vhost": "v", "configure": "", "write": "", "read": ".*"}],
        "queues": [{"name": "q", "vhost": "v", "durable": true, "auto_delete": false, "arguments": {}}],
        "policies": [{"name": "p", "vhost": "v", "pattern": "^q", "definition": {"max-length": 9}}],
        "bindings": []
    }"#;
    let of_one = r#"{"queues": [{"name": "r", "durable": true, "auto_delete": false, "arguments": {}}]}"#;
    script(
        &mut simulation,
        GUEST,
        &[
            ("PUT /api/users/meter", r#"{"password":"meter","tags":"management"}"#, "201", ""),
            ("PUT /api/users/meter", r#"{"password":"meter","tags":"management"}"#, "204", ""),
            ("GET /api/users/meter", "", "200", "rabbit_password_hashing_sha256"),
            ("PUT /api/permissions/%2F/meter", r#"{"configure":"","write":"","read":""}"#, "201", ""),
            ("POST /api/definitions", definitions, "204", ""),
            ("POST /api/definitions/v", of_one, "204", ""),
            ("GET /api/queues/v", "", "200", r#""name":"r""#),
            (
                "POST /api/definitions",
                r#"{"queues": [{"name": "x"}]}"#,
                "400",
                "queues[0]: queue 'x': missing field",
            ),
            ("POST /api/definitions", "[]", "400", "bad_request"),
            ("PUT /api/vhost-limits/v/max-queues", r#"{"value": 7}"#, "204", ""),
            ("GET /api/vhost-limits", "", "200", r#"[{"vhost":"v","value":{"max-queues":7}}]"#),
            ("GET /api/vhosts/v/permissions", "", "200", r#""user":"d""#),
            ("PUT /api/vhosts/w", "", "201", ""),
            ("GET /api/vhosts/w/permissions", "", "200", r#""user":"guest","vhost":"w","configure":".*""#),
            ("GET /api/vhost-limits/%2F", "", "200", "[]"),
            ("DELETE /api/vhost-limits/v/max-queues", "", "204", ""),
            ("GET /api/vhost-limits", "", "200", "\r\n\r\n[]"),
            ("PUT /api/user-limits/d/max-channels", r#"{"value": 3}"#, "204", ""),
            ("GET /api/user-limits/d", "", "200", r#"[{"user":"d","value":{"max-channels":3}}]"#),
            ("GET /api/policies/v", "", "200", r#""definition":{"max-length":9}"#),
            ("GET /api/queues/v/q", "", "200", r#""policy":"p""#),
            ("PUT /api/parameters/shovel/%2F/s", "{}", "400", "[{key_missing,value}]"),
            ("GET /api/shovels", "", "200", ""),
        ],
    );
    // `meter:meter` and `d:meter`
    let logins = ["Authorization: Basic bWV0ZXI6bWV0ZXI=\r\n", "Authorization: Basic ZDptZXRlcg==\r\n"];
    for login in logins {
        script(
            &mut simulation,
            login,
            &[
                ("GET /api/whoami", "", "200", r#""tags":["management"]"#),
                ("PUT /api/users/other", r#"{"password":"x","tags":""}"#, "401", ""),
                ("POST /api/definitions", definitions, "401", ""),
                ("GET /api/vhost-limits", "", "200", "[]"),
            ],
        );
    }
}

/// Sends definitions for a dry run, and returns the answer.
fn dry_run(simulation: &mut Simulation, path: &str, definitions: &str) -> serde_json::Value {
    let client = simulation.connect_management(Shape::WIDE, HOME);
    let answer = say(simulation, client, GUEST, &format!("POST {path}?dry_run=true"), definitions);
    assert_eq!(status(&answer), "200", "{answer}");
    body(&answer)
}

#[test]
fn a_dry_run_of_an_import_shows_what_it_would_do_and_changes_nothing() {
    let mut simulation = Simulation::new(small_limits());
    script(
        &mut simulation,
        GUEST,
        &[
            ("PUT /api/queues/%2F/same", r#"{"durable":true}"#, "201", ""),
            ("PUT /api/queues/%2F/other", r#"{"durable":true,"arguments":{"x-max-length":3}}"#, "201", ""),
            ("PUT /api/exchanges/%2F/x", r#"{"type":"topic","durable":true}"#, "201", ""),
            ("POST /api/bindings/%2F/e/x/q/same", r#"{"routing_key":"k"}"#, "201", ""),
            ("PUT /api/policies/%2F/p", r#"{"pattern":"^q","definition":{"max-length":3}}"#, "201", ""),
        ],
    );
    let queue = |name: &str, vhost: &str| serde_json::json!({"name": name, "vhost": vhost, "durable": true, "auto_delete": false, "arguments": {}});
    let binding = |destination: &str, key: &str| {
        serde_json::json!({"source": "x", "vhost": "/", "destination": destination,
            "destination_type": "queue", "routing_key": key, "arguments": {}})
    };
    let definitions = serde_json::json!({
        "vhosts": [{"name": "/"}, {"name": "v"}],
        "users": [{"name": "guest", "password": "guest", "tags": "administrator"}],
        "permissions": [
            {"user": "guest", "vhost": "v", "configure": ".*", "write": ".*", "read": ".*"},
            {"user": "nobody", "vhost": "v", "configure": ".*", "write": ".*", "read": ".*"},
        ],
        "parameters": [{"component": "federation-upstream", "vhost": "/", "name": "f", "value": {}}],
        "policies": [{"name": "p", "vhost": "/", "pattern": "^q", "definition": {"max-length": 4}}],
        "exchanges": [
            {"name": "x", "vhost": "/", "type": "topic", "durable": true, "auto_delete": false,
                "internal": false, "arguments": {}},
            {"name": "y", "vhost": "/", "type": "bogus", "durable": true, "auto_delete": false,
                "internal": false, "arguments": {}},
        ],
        "queues": [queue("same", "/"), queue("other", "/"), queue("q", "v"), queue("r", "w"), queue("s", "/")],
        "bindings": [binding("same", "k"), binding("s", "k"), binding("none", "k")],
    });
    let before = say_on_new_line(&mut simulation, "GET /api/definitions");
    let answer = dry_run(&mut simulation, "/api/definitions", &definitions.to_string());
    let names = |list: &str| -> Vec<String> {
        let objects = answer[list].as_array().expect("a list");
        assert_eq!(answer[format!("{list}_count")], objects.len(), "{answer}");
        let text = |one: &serde_json::Value, field: &str| one[field].as_str().unwrap_or("-").to_string();
        let fields = |one| ["kind", "vhost", "name"].map(|field| text(one, field)).join(" ");
        objects.iter().map(fields).collect()
    };
    assert_eq!(
        names("new"),
        ["vhost - v", "permission v guest", "queue v q", "queue / s", "binding / x to queue s"],
        "{answer}"
    );
    assert_eq!(names("different"), ["user - guest", "policy / p", "queue / other"], "{answer}");
    assert_eq!(answer["different"][0]["reason"], "it exists, and the import sets its password");
    assert!(
        answer["different"][2]["reason"].as_str().is_some_and(|why| why.contains("does not change them"))
    );
    let skipped = names("skipped");
    assert_eq!(skipped.len(), 5, "{answer}");
    let reasons: Vec<&str> = answer["skipped"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|one| one["reason"].as_str())
        .collect();
    for part in ["not supported", "no user 'nobody'", "bogus", "no virtual host 'w'", "no queue 'none'"] {
        assert!(reasons.iter().any(|why| why.contains(part)), "{part}: {answer}");
    }
    assert_eq!(answer["same"], 4, "/, x, same, and its binding: {answer}");
    // Definitions of one virtual host, and those that the parser refuses.
    let of_one = dry_run(
        &mut simulation,
        "/api/definitions/%2F",
        r#"{"users": [], "queues": [
        {"name": "same", "durable": true, "auto_delete": false, "arguments": {}},
        {"name": "t", "durable": true, "auto_delete": false, "arguments": {}}]}"#,
    );
    assert_eq!(
        (&of_one["same"], &of_one["new"][0]["name"], &of_one["new_count"]),
        (&1.into(), &"t".into(), &1.into())
    );
    script(
        &mut simulation,
        GUEST,
        &[
            (
                "POST /api/definitions?dry_run=true",
                r#"{"queues": [{"name": "x"}]}"#,
                "200",
                r#""skipped":[{"kind":"queues","name":"x","reason":"queue 'x': missing field `vhost`"}]"#,
            ),
            ("POST /api/definitions?dry_run=true", "[]", "400", "bad_request"),
            ("POST /api/definitions?dry_run=true", "", "200", r#""same":0"#),
            ("POST /api/definitions/none?dry_run=true", "{}", "404", ""),
        ],
    );
    assert_eq!(say_on_new_line(&mut simulation, "GET /api/definitions"), before);
    // Many objects are counted, and a part of them is named.
    let many: Vec<_> = (0..400).map(|number| queue(&format!("many-{number}"), "/")).collect();
    let many = serde_json::json!({"queues": many}).to_string();
    let answer = dry_run(&mut simulation, "/api/definitions", &many);
    let named = answer["new"].as_array().map_or(0, Vec::len);
    assert!((100..=200).contains(&named), "{named}");
    assert_eq!((&answer["new_count"], &answer["same"]), (&400.into(), &0.into()));
    let long: Vec<_> = (0..40).map(|number| queue(&format!("{number:\u{1}<250}"), "/")).collect();
    let long = serde_json::json!({"queues": long}).to_string();
    let answer = dry_run(&mut simulation, "/api/definitions", &long);
    assert_eq!(answer["new_count"], 40);
    // An import does what its dry run showed.
    script(&mut simulation, GUEST, &[("POST /api/definitions", &many, "204", "")]);
    let answer = dry_run(&mut simulation, "/api/definitions", &many);
    assert_eq!((&answer["new_count"], &answer["same"]), (&0.into(), &400.into()));
}

fn say_on_new_line(simulation: &mut Simulation, line: &str) -> serde_json::Value {
    let client = simulation.connect_management(Shape::WIDE, HOME);
    body(&say(simulation, client, GUEST, line, ""))
}

/// Lets time pass until just after the next sample.
pub(super) fn pass_to_next_sample(simulation: &mut Simulation) {
    let left = 5_000 - simulation.engine.now().as_ms() % 5_000;
    simulation.pass_ms(left + 100);
}

/// Returns what the API shows for `q`, and for all queues.
fn seen(simulation: &mut Simulation, query: &str) -> (serde_json::Value, serde_json::Value) {
    let client = simulation.connect_management(Shape::WIDE, HOME);
    let queue = say(simulation, client, GUEST, &format!("GET /api/queues/%2F/q?{query}"), "");
    let all = say(simulation, client, GUEST, &format!("GET /api/overview?{query}"), "");
    (body(&queue), body(&all))
}

#[test]
fn rates_are_those_of_the_last_five_seconds_and_histories_are_as_long_as_asked_for() {
    let mut simulation = Simulation::new(small_limits());
    let client = simulation.open(&[1]);
    simulation.declare(client, 1, "q");
    (0..2).for_each(|_| pass_to_next_sample(&mut simulation));
    for _ in 0..50 {
        simulation.publish_to(client, 1, "q", b"hi");
    }
    simulation.run();
    pass_to_next_sample(&mut simulation);
    let (queue, all) =
        seen(&mut simulation, "lengths_age=10&lengths_incr=5&msg_rates_age=5&msg_rates_incr=5");
    for rate in [
        &queue["messages_details"],
        &queue["messages_ready_details"],
        &queue["message_stats"]["publish_details"],
        &all["queue_totals"]["messages_details"],
        &all["message_stats"]["publish_details"],
    ] {
        assert_eq!(rate["rate"], 10.0, "{rate}");
        let samples: Vec<_> = rate["samples"].as_array().unwrap().iter().map(|one| &one["sample"]).collect();
        assert_eq!(samples[..2], [50, 0], "{rate}");
    }
    assert_eq!(queue["messages_details"]["samples"].as_array().map(Vec::len), Some(3));
    assert_eq!(queue["message_stats"]["deliver_get_details"]["rate"], 0.0);
    assert_eq!(all["churn_rates"]["connection_created"], 1);
    // Five seconds without an event and without a request have a rate too.
    pass_to_next_sample(&mut simulation);
    simulation.pass_ms(20_000);
    let (queue, all) = seen(&mut simulation, "");
    assert_eq!(
        (&queue["messages_details"]["rate"], &all["message_stats"]["publish_details"]["rate"]),
        (&0.0.into(), &0.0.into())
    );
    assert!(queue["messages_details"].get("samples").is_none(), "samples were not requested");
    // Purged messages do not count as delivered. Messages delivered twice count twice.
    pass_to_next_sample(&mut simulation);
    let api = simulation.connect_management(Shape::WIDE, HOME);
    taken(&mut simulation, api, "ack_requeue_true", r#","count":10"#);
    taken(&mut simulation, api, "ack_requeue_false", r#","count":15"#);
    assert_eq!(status(&say(&mut simulation, api, GUEST, "DELETE /api/queues/%2F/q/contents", "")), "204");
    pass_to_next_sample(&mut simulation);
    let (queue, _) = seen(&mut simulation, "");
    assert_eq!(queue["messages_details"]["rate"], -10.0, "{queue}");
    assert_eq!(queue["message_stats"]["deliver_get_details"]["rate"], 5.0, "{queue}");
    assert_eq!(queue["message_stats"]["publish_details"]["rate"], 0.0, "{queue}");
    // A new queue of the same name starts at zero.
    let gone = ("DELETE /api/queues/%2F/q", "", "204", "");
    let again = ("PUT /api/queues/%2F/q", "{}", "201", "");
    script(&mut simulation, GUEST, &[gone, again]);
    let (queue, _) = seen(&mut simulation, "");
    let stats = &queue["message_stats"];
    assert_eq!(
        (&stats["publish_details"]["rate"], &stats["deliver_get_details"]["rate"]),
        (&0.0.into(), &0.0.into())
    );
}

#[test]
fn lists_are_sorted_by_rates() {
    let mut simulation = Simulation::new(small_limits());
    let client = simulation.open(&[1]);
    for queue in ["calm", "q", "wild"] {
        simulation.declare(client, 1, queue);
    }
    pass_to_next_sample(&mut simulation);
    for (queue, count) in [("calm", 5), ("q", 100), ("wild", 20)] {
        (0..count).for_each(|_| simulation.publish_to(client, 1, queue, b"hi"));
        simulation.run();
    }
    pass_to_next_sample(&mut simulation);
    let api = simulation.connect_management(Shape::WIDE, HOME);
    let line = "GET /api/queues?sort=message_stats.publish_details.rate&columns=name";
    let rows = body(&say(&mut simulation, api, GUEST, line, ""));
    let names: Vec<_> = rows.as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["calm", "wild", "q"]);
}

#[test]
fn an_import_goes_on_after_refused_objects_and_names_them() {
    let mut simulation = Simulation::new(small_limits());
    let nowhere = |count: usize| {
        let queues = (0..count).map(|number| {
            format!(
                r#"{{"name":"q{number}","vhost":"none","durable":true,"auto_delete":false,"arguments":{{}}}}"#
            )
        });
        queues.collect::<Vec<_>>().join(",")
    };
    let file = format!(
        r#"{{"vhosts":[{{"name":"v"}}],"users":[{{"name":"u","password":"p","tags":""}}],
        "queues":[{{"name":"x","vhost":"v","durable":"perhaps"}},{},{{"name":"q","vhost":"v"}}],
        "bindings":[{{"source":"amq.direct","vhost":"v","destination":"q","destination_type":"queue",
            "routing_key":"k","arguments":[]}}],
        "parameters":[{{"value":[],"vhost":"v","component":"vhost-limits","name":"limits"}}]}}"#,
        nowhere(1572)
    );
    script(
        &mut simulation,
        GUEST,
        &[
            ("POST /api/definitions", &file, "400", "1573 of 1578 objects were not imported; the rest was"),
            ("GET /api/users/u", "", "200", ""),
            ("GET /api/queues/v/q", "", "200", ""),
            ("GET /api/bindings/v/e/amq.direct/q/q", "", "200", r#""routing_key":"k""#),
        ],
    );
    let api = simulation.connect_management(Shape::WIDE, HOME);
    let said = say(&mut simulation, api, GUEST, "POST /api/definitions", &file);
    assert!(said.contains("queues[0]: queue 'x' in vhost 'v': `durable` must be true or false"), "{said}");
    assert!(said.contains("queues[3]: ") && said.contains("… and 1,569 like it"), "{said}");
    assert!(!said.contains("queues[4]: ") && !said.contains("parameters"), "{said}");
    // A file whose syntax is wrong changes nothing.
    script(
        &mut simulation,
        GUEST,
        &[
            (
                "POST /api/definitions",
                r#"{"vhosts":[{"name":"w"}],"users":[{"name":tru}]}"#,
                "400",
                "users[0]: ",
            ),
            ("GET /api/vhosts/w", "", "404", ""),
        ],
    );
}

#[test]
fn an_overview_counts_only_what_its_user_may_see() {
    let mut simulation = Simulation::new(small_limits());
    let client = simulation.open(&[1]);
    simulation.declare(client, 1, "q");
    let reader = r#"{"password":"p","tags":"management"}"#;
    script(&mut simulation, GUEST, &[("PUT /api/users/ann", reader, "201", "")]);
    let totals = |simulation: &mut Simulation, login: &str| {
        let api = simulation.connect_management(Shape::WIDE, HOME);
        body(&say(simulation, api, login, "GET /api/overview", ""))["object_totals"].clone()
    };
    let ann = "Authorization: Basic YW5uOnA=\r\n";
    let nothing =
        serde_json::json!({"channels": 0, "connections": 0, "consumers": 0, "exchanges": 0, "queues": 0});
    assert_eq!(totals(&mut simulation, ann), nothing, "she may enter nowhere");
    let all = totals(&mut simulation, GUEST);
    assert_eq!([&all["channels"], &all["connections"], &all["queues"]], [1, 1, 1], "{all}");
    let allowed = r#"{"configure":"","write":"","read":""}"#;
    script(&mut simulation, GUEST, &[("PUT /api/permissions/%2F/ann", allowed, "201", "")]);
    let seen = totals(&mut simulation, ann);
    assert_eq!([&seen["connections"], &seen["queues"]], [0, 1], "connections are her own only: {seen}");
}

#[test]
fn answers_have_the_statuses_and_members_that_tools_read() {
    let mut simulation = Simulation::new(small_limits());
    let full = r#"{"durable":true,"arguments":{"x-max-length":0,"x-overflow":"reject-publish"}}"#;
    let message = r#"{"properties":{},"routing_key":"full","payload":"1","payload_encoding":"string"}"#;
    script(
        &mut simulation,
        GUEST,
        &[
            // A limit of -1 is none, and tools that set it expect to read it.
            ("PUT /api/vhost-limits/%2F/max-queues", r#"{"value":-1}"#, "204", ""),
            ("GET /api/vhost-limits/%2F", "", "200", r#"[{"vhost":"/","value":{"max-queues":-1}}]"#),
            ("GET /api/vhosts/%2F", "", "200", r#""limits":{"max-queues":-1}"#),
            ("GET /api/vhosts/%2F", "", "200", r#""cluster_state":{"leveret@"#),
            ("GET /api/definitions", "", "200", r#""value":{"max-queues":-1}"#),
            ("PUT /api/user-limits/guest/max-channels", r#"{"value":-1}"#, "204", ""),
            ("GET /api/user-limits/guest", "", "200", r#""value":{"max-channels":-1}"#),
            ("PUT /api/queues/%2F/full", full, "201", ""),
            (
                "POST /api/exchanges/%2F/amq.default/publish",
                message,
                "400",
                "rejected Unable to publish message. Check queue limits.",
            ),
            ("GET /api/users/none/permissions", "", "404", ""),
            ("GET /api/users/none/topic-permissions", "", "404", ""),
            ("GET /api/users/guest/topic-permissions", "", "200", ""),
            ("GET /api/health/checks/port-listener/1", "", "503", r#""missing":1,"ports":["#),
            (
                "GET /api/health/checks/protocol-listener/stomp",
                "",
                "503",
                r#""missing":"stomp","protocols":["#,
            ),
            ("GET /api/nodes", "", "200", r#""being_drained":false"#),
            ("GET /api/deprecated-features/used", "", "200", "[]"),
            ("PUT /api/users/ann", r#"{"password":"p","tags":["monitoring","plant"]}"#, "201", ""),
            ("GET /api/users/ann", "", "200", r#""tags":["monitoring","plant"]"#),
            ("PUT /api/users/ann", r#"{"password":"p","tags":[]}"#, "204", ""),
            ("GET /api/users/ann", "", "200", r#""tags":[]"#),
            ("PUT /api/users/ann", r#"{"password":"p","tags":[1]}"#, "400", "tags"),
        ],
    );
}
