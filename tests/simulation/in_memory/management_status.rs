//! Answers that the web page asks for every few seconds: compressed, not repeated while nothing changes, and with the
//! history of the last ten minutes.

use std::io::Write;
use std::process::{Command, Stdio};

use super::management::{GUEST, ask, ask_bytes, get, status};
use super::management_changes::{body, pass_to_next_sample, say, script};
use leveret_test_support::simulated_server::{Publish, Shape, Simulation, small_limits};
use serde_json::Value;

const HOME: [u8; 4] = [127, 0, 0, 1];
const GZIP: &str = "Accept-Encoding: br, gzip\r\n";
/// A user with the tag `management` and no permissions.
const ANN: &str = "Authorization: Basic YW5uOnA=\r\n";

/// Returns the head and the body of an answer, without chunks and decompressed.
fn read(answer: &[u8]) -> (String, Vec<u8>) {
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").expect("a head") + 4;
    let head = String::from_utf8(answer[..end].to_vec()).unwrap();
    let mut body = answer[end..].to_vec();
    if head.contains("chunked") {
        let mut rest = core::mem::take(&mut body);
        loop {
            let end = rest.windows(2).position(|bytes| bytes == b"\r\n").expect("a chunk");
            let length = usize::from_str_radix(core::str::from_utf8(&rest[..end]).unwrap(), 16).unwrap();
            if length == 0 {
                break;
            }
            body.extend_from_slice(&rest[end + 2..end + 2 + length]);
            rest.drain(..end + 4 + length);
        }
    }
    if head.contains("content-encoding: gzip") {
        body = decompressed(&body);
    }
    (head, body)
}

/// Decompresses with the program `gzip`, which checks checksum and length.
fn decompressed(bytes: &[u8]) -> Vec<u8> {
    let program = Command::new("gzip")
        .args(["--decompress", "--stdout"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let mut program = program.unwrap();
    let (mut input, bytes) = (program.stdin.take().unwrap(), bytes.to_vec());
    let writer = std::thread::spawn(move || input.write_all(&bytes));
    let done = program.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(done.status.success(), "the answer is a gzip file");
    done.stdout
}

fn tag_of(head: &str) -> String {
    let line = head.lines().find_map(|line| line.strip_prefix("etag: "));
    line.unwrap_or_else(|| panic!("no etag: {head}")).to_string()
}

/// Declares this many queues with long names.
fn with_queues(count: usize) -> Simulation {
    let mut simulation = Simulation::new(small_limits());
    let client = simulation.open(&[1]);
    for number in 0..count {
        simulation.declare(client, 1, &format!("plant.{number:03}.{}", "line".repeat(10)));
    }
    simulation.run();
    simulation
}

#[test]
fn a_compressed_list_has_the_same_rows_however_slowly_it_is_read() {
    for (count, is_short) in [(1, true), (30, true), (400, false)] {
        let mut simulation = with_queues(count);
        let client = simulation.connect_management(Shape::WIDE, HOME);
        let (plain_head, plain) = read(&ask_bytes(&mut simulation, client, &get("/api/queues", GUEST)));
        assert!(!plain_head.contains("content-encoding"), "{plain_head}");
        assert_eq!(serde_json::from_slice::<Value>(&plain).unwrap().as_array().map(Vec::len), Some(count));
        for shape in [Shape::WIDE, Shape { down_room: 700, ..Shape::WIDE }, Shape::fragments(1)] {
            let client = simulation.connect_management(shape, HOME);
            let request = get("/api/queues", &format!("{GUEST}{GZIP}"));
            let answer = ask_bytes(&mut simulation, client, &request);
            let (head, rows) = read(&answer);
            assert!(head.contains("content-encoding: gzip\r\n"), "{head}");
            assert!(rows == plain, "{count} queues");
            assert!(answer.len() * 3 < plain.len() || count == 1, "{} of {}", answer.len(), plain.len());
            assert_eq!(head.contains("etag"), is_short, "{head}");
            let after = ask(&mut simulation, client, &get("/api/whoami", GUEST));
            assert_eq!(status(&after), "200", "the next request is answered");
        }
    }
}

#[test]
fn metrics_messages_and_errors_are_compressed_as_the_client_accepts() {
    let mut simulation = with_queues(50);
    let client = simulation.connect_management(Shape::WIDE, HOME);
    let accept = format!("{GUEST}{GZIP}");
    for path in ["/metrics", "/metrics/per-object", "/api/definitions", "/api/overview", "/api/nodes"] {
        let (head, plain) = read(&ask_bytes(&mut simulation, client, &get(path, GUEST)));
        assert_eq!((status(&head), head.contains("gzip")), ("200", false), "{path}: {head}");
        let (head, unpacked) = read(&ask_bytes(&mut simulation, client, &get(path, &accept)));
        assert!(head.contains("content-encoding: gzip"), "{path}: {head}");
        // Counters of the process differ between two requests.
        assert!(plain.len().abs_diff(unpacked.len()) < 200, "{path}");
        let refused = format!("{GUEST}Accept-Encoding: gzip;q=0\r\n");
        assert!(
            !read(&ask_bytes(&mut simulation, client, &get(path, &refused))).0.contains("gzip"),
            "{path}"
        );
    }
    let (head, short) = read(&ask_bytes(&mut simulation, client, &get("/api/whoami", &accept)));
    assert!(!head.contains("gzip") && short.starts_with(b"{"), "a short answer is not: {head}");
    let head = ask(&mut simulation, client, &get("/api/queues", &accept).replacen("GET", "HEAD", 1));
    assert!(head.ends_with("\r\n\r\n") && status(&head) == "200", "{head}");
    let (head, _) = read(&ask_bytes(&mut simulation, client, &get("/api/queues/%2F/none", &accept)));
    assert_eq!(status(&head), "404", "{head}");
}

#[test]
fn an_answer_that_the_client_has_is_not_sent_again() {
    let mut simulation = with_queues(40);
    let client = simulation.connect_management(Shape::WIDE, HOME);
    for (path, is_list) in [("/api/queues?page=1&page_size=20", true), ("/api/whoami", false)] {
        let (head, _) = read(&ask_bytes(&mut simulation, client, &get(path, GUEST)));
        let tag = tag_of(&head);
        for copies in [tag.clone(), format!("\"0\", W/{tag}")] {
            let lines = format!("{GUEST}{GZIP}If-None-Match: {copies}\r\n");
            let answer = ask(&mut simulation, client, &get(path, &lines));
            assert!(answer.starts_with("HTTP/1.1 304 ") && answer.ends_with("\r\n\r\n"), "{answer}");
            assert!(answer.len() < 160 && tag_of(&answer) == tag, "{answer}");
        }
        let other = format!("{GUEST}If-None-Match: \"0123456789abcdef\"\r\n");
        assert_eq!(status(&ask(&mut simulation, client, &get(path, &other))), "200");
        if is_list {
            let publisher = simulation.open(&[1]);
            simulation.publish_to(publisher, 1, &format!("plant.007.{}", "line".repeat(10)), b"x");
            simulation.run();
            let lines = format!("{GUEST}If-None-Match: {tag}\r\n");
            let answer = ask(&mut simulation, client, &get(path, &lines));
            assert!(status(&answer) == "200" && tag_of(&answer) != tag, "{answer}");
        }
    }
}

#[test]
fn a_poll_has_only_what_is_new_and_only_what_its_user_may_see() {
    let mut simulation = with_queues(2);
    let queue = format!("plant.000.{}", "line".repeat(10));
    let publisher = simulation.open(&[1]);
    (0..3).for_each(|_| pass_to_next_sample(&mut simulation));
    (0..50).for_each(|_| simulation.publish_to(publisher, 1, &queue, b"hi"));
    simulation.run();
    pass_to_next_sample(&mut simulation);
    let client = simulation.connect_management(Shape::WIDE, HOME);
    let shown = |simulation: &mut Simulation, login: &str, query: &str| {
        body(&say(simulation, client, login, &format!("GET /api/leveret/status{query}"), ""))
    };
    let all = shown(&mut simulation, GUEST, "?since=0");
    let history = &all["history"];
    let values = |name: &str| {
        history[name].as_array().unwrap().iter().map(|value| value.as_i64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(values("publish"), [0, 0, 0, 0, 50], "differences: {history}");
    assert_eq!(values("ready").iter().sum::<i64>(), 50);
    assert_eq!(all["totals"]["messages_ready"], 50);
    assert_eq!([&all["totals"]["queues"], &all["totals"]["connections"]], [2, 2], "{all}");
    let last = history["last"].as_u64().unwrap();
    let quiet = shown(&mut simulation, GUEST, &format!("?since={last}"));
    assert_eq!(quiet["history"]["ready"], serde_json::json!([]), "nothing is new: {quiet}");
    pass_to_next_sample(&mut simulation);
    let next = shown(&mut simulation, GUEST, &format!("?since={last}"));
    assert_eq!(
        (&next["history"]["ready"], &next["history"]["last"]),
        (&serde_json::json!([50]), &(last + 1).into())
    );
    let brief = shown(&mut simulation, GUEST, "");
    assert!(brief.get("history").is_none() && brief["memory"]["limit"].is_number(), "{brief}");
    let request = get("/api/leveret/status?since=0", &format!("{GUEST}{GZIP}"));
    let poll = ask_bytes(
        &mut simulation,
        client,
        &get(&format!("/api/leveret/status?since={last}"), &format!("{GUEST}{GZIP}")),
    );
    assert!(poll.len() <= 1000, "{} bytes a poll", poll.len());
    assert!(ask_bytes(&mut simulation, client, &request).len() <= 1500, "the first one");
    script(
        &mut simulation,
        GUEST,
        &[("PUT /api/users/ann", r#"{"password":"p","tags":"management"}"#, "201", "")],
    );
    let ann = shown(&mut simulation, ANN, "?since=0");
    let nothing = serde_json::json!({"channels": 0, "connections": 0, "consumers": 0, "exchanges": 0, "queues": 0,
        "messages_ready": 0, "messages_unacknowledged": 0});
    assert_eq!(ann["totals"], nothing, "she may enter no virtual host");
    for member in ["memory", "disk", "history", "flash", "uptime_min"] {
        assert!(ann.get(member).is_none(), "{member}: {ann}");
    }
}

#[test]
fn the_queues_that_grow_are_named_to_those_who_may_see_them() {
    let mut simulation = with_queues(6);
    let queue = |number: usize| format!("plant.{number:03}.{}", "line".repeat(10));
    let client = simulation.open(&[1]);
    simulation.consume(client, 1, &queue(3), "c", false);
    for _ in 0..6 {
        // The queue 0 gets nothing, and the queue 5 has less than the others.
        for (number, count) in [(1, 30), (2, 10), (3, 20), (4, 40), (5, 5)] {
            (0..count).for_each(|_| simulation.publish_to(client, 1, &queue(number), b"hi"));
        }
        simulation.run();
        pass_to_next_sample(&mut simulation);
    }
    script(
        &mut simulation,
        GUEST,
        &[("PUT /api/users/ann", r#"{"password":"p","tags":"management"}"#, "201", "")],
    );
    let growing = |simulation: &mut Simulation, login: &str| {
        let api = simulation.connect_management(Shape::WIDE, HOME);
        body(&say(simulation, api, login, "GET /api/leveret/status?since=0", ""))["growing"].clone()
    };
    let row = |number: usize, rate: f64, messages: u64, consumers: u64| {
        serde_json::json!({"name": queue(number), "vhost": "/", "rate": rate, "messages": messages,
            "unacknowledged": messages * consumers, "consumers": consumers})
    };
    let fastest = [row(4, 8.0, 240, 0), row(1, 6.0, 180, 0), row(3, 4.0, 120, 1)];
    assert_eq!(growing(&mut simulation, GUEST), serde_json::json!(fastest));
    assert_eq!(growing(&mut simulation, ANN), serde_json::json!([]), "she may enter no virtual host");
    (0..13).for_each(|_| pass_to_next_sample(&mut simulation));
    assert_eq!(growing(&mut simulation, GUEST), serde_json::json!([]), "nothing arrived in the last minute");
    let path =
        format!("/api/queues/%2F/{}?columns=messages_details&lengths_age=600&lengths_incr=5", queue(4));
    let api = simulation.connect_management(Shape::WIDE, HOME);
    let details =
        body(&say(&mut simulation, api, GUEST, &format!("GET {path}"), ""))["messages_details"].clone();
    let samples = details["samples"].as_array().unwrap();
    let depths: Vec<u64> = samples.iter().map(|sample| sample["sample"].as_u64().unwrap()).collect();
    assert!(depths.starts_with(&[240; 13]), "the last minute: {depths:?}");
    assert!(depths.len() > 13 && *depths.last().unwrap() < 240, "and what was before: {depths:?}");
}

#[test]
fn the_classes_of_memory_name_what_uses_most_of_them() {
    let mut simulation = Simulation::with_message_extents(64);
    let (small, large) = (simulation.open(&[1]), simulation.open(&[1, 2, 3]));
    for (queue, count) in [("few", 3), ("many", 300)] {
        simulation.declare(small, 1, queue);
        (0..count).for_each(|_| simulation.publish_to(small, 1, queue, &[7; 1_000]));
    }
    simulation.consume(large, 2, "few", "tag", false);
    simulation.run();
    let api = simulation.connect_management(Shape::WIDE, HOME);
    let status = body(&say(&mut simulation, api, GUEST, "GET /api/leveret/status", ""));
    let classes = status["memory"]["classes"].as_array().unwrap();
    assert_eq!(
        classes.iter().map(|class| &class["name"]).collect::<Vec<_>>(),
        ["clients", "definitions", "messages"]
    );
    for class in classes {
        let [used, limit, floor] = ["used", "limit", "floor"].map(|name| class[name].as_u64().unwrap());
        assert!(used > 0 && used <= limit && floor <= limit, "{class}");
    }
    let [clients, definitions, messages] = [0, 1, 2].map(|class| classes[class]["largest"].clone());
    let name_of_large = body(&say(&mut simulation, api, GUEST, "GET /api/consumers", ""));
    let name_of_large = name_of_large[0]["channel_details"]["connection_name"].clone();
    assert_eq!((&clients["kind"], &clients["user"]), (&"connection".into(), &"guest".into()), "{clients}");
    assert_eq!(clients["name"], name_of_large, "the connection with three channels");
    assert_eq!(definitions["kind"], "queues", "{definitions}");
    assert_eq!((&messages["kind"], &messages["name"]), (&"queue".into(), &"many".into()), "{messages}");
    assert_eq!((&messages["vhost"], messages["bytes"].as_u64().unwrap() / 300 / 1_000), (&"/".into(), 1));
    let metrics = say(&mut simulation, api, GUEST, "GET /metrics", "");
    let used = classes[2]["used"].as_u64().unwrap();
    let line = format!("leveret_memory_class_used_bytes{{class=\"messages\"}} {used}\n");
    assert!(metrics.contains(&line), "{line} is not in {metrics}");
}

#[test]
fn pools_show_their_use_and_their_highest_use() {
    let mut simulation = with_queues(1);
    let queue = format!("plant.000.{}", "line".repeat(10));
    let client = simulation.open(&[1]);
    (0..30).for_each(|_| simulation.publish_to(client, 1, &queue, b"hi"));
    simulation.run();
    pass_to_next_sample(&mut simulation);
    let api = simulation.connect_management(Shape::WIDE, HOME);
    let pool = |simulation: &mut Simulation| {
        let pools = body(&say(simulation, api, GUEST, "GET /api/leveret/pools", ""));
        let found = pools.as_array().unwrap().iter().find(|pool| pool["name"] == "messages").cloned();
        ["used", "peak", "limit"].map(|name| found.as_ref().unwrap()[name].as_u64().unwrap())
    };
    assert_eq!(pool(&mut simulation), [30, 30, 2_000]);
    script(&mut simulation, GUEST, &[(&format!("DELETE /api/queues/%2F/{queue}/contents"), "", "204", "")]);
    assert_eq!(pool(&mut simulation), [0, 30, 2_000]);
    script(
        &mut simulation,
        GUEST,
        &[(
            "GET /api/leveret/log?since=0",
            "",
            "200",
            r#"{"is_recorded":false,"reason":"flight_recorder is not set","events":[],"last":0}"#,
        )],
    );
}

#[test]
fn columns_that_only_the_page_needs_are_written_on_request() {
    let mut simulation = with_queues(1);
    let queue = format!("plant.000.{}", "line".repeat(10));
    let client = simulation.open(&[1]);
    simulation.consume(client, 1, &queue, "c", false);
    simulation.run();
    pass_to_next_sample(&mut simulation);
    (0..10).for_each(|_| simulation.publish_to(client, 1, &queue, b"hi"));
    simulation.run();
    simulation.ack(client, 1, 10, true);
    simulation.run();
    pass_to_next_sample(&mut simulation);
    let api = simulation.connect_management(Shape::WIDE, HOME);
    let shown = |simulation: &mut Simulation, path: &str| {
        body(&say(simulation, api, GUEST, &format!("GET {path}"), ""))
    };
    let consumer = &shown(&mut simulation, "/api/consumers?columns=consumer_tag,ack_details")[0];
    assert_eq!(*consumer, serde_json::json!({"consumer_tag": "c", "ack_details": {"rate": 2.0}}));
    assert!(shown(&mut simulation, "/api/consumers")[0].get("ack_details").is_none());
    let details = shown(&mut simulation, &format!("/api/queues/%2F/{queue}?columns=consumer_details"));
    assert_eq!(details["consumer_details"][0]["ack_details"]["rate"], 2.0, "{details}");
    let one = shown(&mut simulation, &format!("/api/queues/%2F/{queue}?columns=name,consumers,nosuch"));
    assert_eq!(one, serde_json::json!({"name": queue, "consumers": 1}), "one object has columns too");
    let rows = shown(&mut simulation, "/api/connections?columns=user,blocked_ms");
    assert_eq!(rows[0], serde_json::json!({"user": "guest", "blocked_ms": null}));
    let paged = shown(&mut simulation, "/api/consumers?page=1&columns=queue_name");
    assert_eq!(
        (&paged["total_count"], &paged["items"][0]["queue_name"]),
        (&1.into(), &queue.as_str().into())
    );
}

#[test]
fn a_blocked_publisher_shows_since_when() {
    let mut simulation = with_queues(1);
    let queue = format!("plant.000.{}", "line".repeat(10));
    let client = simulation.open(&[1]);
    for _ in 0..10_000 {
        if simulation.clients[client].checker.is_blocked {
            break;
        }
        simulation.publish(client, 1, Publish { key: &queue, ..Publish::default() }, &[7; 10_000]);
        simulation.run();
    }
    simulation.pass_ms(7_000);
    let api = simulation.connect_management(Shape::WIDE, HOME);
    let rows = body(&say(&mut simulation, api, GUEST, "GET /api/connections?columns=state,blocked_ms", ""));
    let row = rows.as_array().unwrap().iter().find(|row| row["state"] == "blocked").expect("one is blocked");
    assert!((7_000..9_000).contains(&row["blocked_ms"].as_u64().unwrap()), "{rows}");
}
