//! Requests with a body that is longer than a request buffer: publishes and definitions, over the management
//! API.

use leveret_core::limits::Limits;

use super::management::{GUEST, ask, base64, status};
use super::management_changes::{body, say};
use leveret_test_support::simulated_server::{Shape, Simulation, small_limits};

const HOME: [u8; 4] = [127, 0, 0, 1];
const PUBLISH: &str = "POST /api/exchanges/%2F/amq.default/publish";
/// `message_size_max` in these tests.
const SIZE_MAX: usize = 1 << 20;

/// Returns a broker with a queue `q`, and a client of its management API.
fn broker_with_queue(shape: Shape) -> (Simulation, usize, usize) {
    let mut simulation = Simulation::new(Limits { body_bytes_max: 6 << 20, ..small_limits() });
    let publisher = simulation.open(&[1]);
    simulation.declare(publisher, 1, "q");
    simulation.run();
    let api = simulation.connect_management(shape, HOME);
    (simulation, publisher, api)
}

fn request(line: &str, lines: &str, length: usize) -> String {
    format!("{line} HTTP/1.1\r\nHost: localhost\r\n{lines}Content-Length: {length}\r\n\r\n")
}

/// Removes the message from `q` and returns the answer about it.
fn taken(simulation: &mut Simulation, api: usize) -> serde_json::Value {
    let get = r#"{"ackmode":"ack_requeue_false","encoding":"auto","count":1}"#;
    body(&say(simulation, api, GUEST, "POST /api/queues/%2F/q/get", get))[0].clone()
}

#[test]
fn a_publish_of_any_size_up_to_message_size_max_is_delivered() {
    for shape in [Shape::WIDE, Shape { up_fragment: 1_000, ..Shape::WIDE }] {
        let (mut simulation, _, api) = broker_with_queue(shape);
        for wanted in [65_000, 65_300, 65_400, 65_536, 65_537, 70_000, 300_000, SIZE_MAX] {
            let text: String = "aé\n\"\\".chars().cycle().take(wanted * 2 / 3).collect();
            let text = text.get(..wanted.min(text.len())).map_or_else(|| "x".repeat(wanted), str::to_string);
            for said in [
                serde_json::json!({"payload": text, "payload_encoding": "string", "properties": {"delivery_mode": 2}, "routing_key": "q"}),
                serde_json::json!({"properties": {"delivery_mode": 2}, "routing_key": "q", "payload_encoding": "string", "payload": text}),
            ] {
                let answer = say(&mut simulation, api, GUEST, PUBLISH, &said.to_string());
                assert_eq!(status(&answer), "200", "{wanted}: {answer}");
                assert!(answer.ends_with(r#"{"routed":true}"#), "{wanted}: {answer}");
                let message = taken(&mut simulation, api);
                assert_eq!(message["payload"].as_str(), Some(&*text), "{wanted}");
                assert_eq!(message["properties"], serde_json::json!({"delivery_mode": 2}));
            }
        }
        simulation.lose_everybody();
        simulation.assert_no_bytes();
    }
}

#[test]
fn a_large_base64_payload_is_decoded_whatever_precedes_it() {
    let (mut simulation, _, api) = broker_with_queue(Shape::WIDE);
    for len in [49_152, 98_304, 98_305, 500_002, SIZE_MAX] {
        let letter = |at: usize| char::from(b' ' + (at * 7 % 93) as u8);
        let whole: String = (0..len / 3 * 3).map(letter).collect();
        let payload = if len % 3 == 1 { whole.clone() + "a" } else { whole.clone() };
        let text = base64(&whole) + if len % 3 == 1 { "YQ==" } else { "" };
        for said in [
            format!(
                r#"{{"payload":"{text}","payload_encoding":"base64","properties":{{}},"routing_key":"q"}}"#
            ),
            format!(
                r#"{{"payload_encoding":"base64","properties":[],"routing_key":"q","payload":"{text}"}}"#
            ),
        ] {
            let answer = say(&mut simulation, api, GUEST, PUBLISH, &said);
            assert_eq!(status(&answer), "200", "{len}: {answer}");
            let message = taken(&mut simulation, api);
            assert_eq!(message["payload"].as_str(), Some(&*payload), "{len}");
        }
    }
    // Encoders break lines, and RabbitMQ ignores white space.
    for len in [90, 98_304, 500_001] {
        let payload: String = (0..len).map(|at| char::from(b'a' + (at % 26) as u8)).collect();
        let broken: String = base64(&payload)
            .as_bytes()
            .chunks(76)
            .map(|line| format!("{}\\r\\n", core::str::from_utf8(line).unwrap()))
            .collect();
        let said = format!(
            r#"{{"payload":" {broken}\n ","payload_encoding":"base64","properties":{{}},"routing_key":"q"}}"#
        );
        let answer = say(&mut simulation, api, GUEST, PUBLISH, &said.replace('\n', "\\n"));
        assert_eq!(status(&answer), "200", "{len}: {answer}");
        assert_eq!(taken(&mut simulation, api)["payload"].as_str(), Some(&*payload), "{len}");
    }
    // Padding is allowed at the end only.
    let padded = format!("{}YQ=={}", "YWJj".repeat(16_383), "YWJj".repeat(99));
    let said = format!(
        r#"{{"payload":"{padded}","payload_encoding":"base64","properties":{{}},"routing_key":"q"}}"#
    );
    let answer = say(&mut simulation, api, GUEST, PUBLISH, &said);
    assert_eq!(
        (status(&answer), answer.contains("the payload is not valid base64")),
        ("400", true),
        "{answer}"
    );
    simulation.lose_everybody();
    simulation.assert_no_bytes();
}

#[test]
fn a_too_large_body_is_refused_with_the_limit_and_the_client_continues() {
    let (mut simulation, _, api) = broker_with_queue(Shape::WIDE);
    let payload = "x".repeat(SIZE_MAX + 1);
    let said = format!(
        r#"{{"payload":"{payload}","payload_encoding":"string","properties":{{}},"routing_key":"q"}}"#
    );
    let large = r#"{"durable":true,"arguments":{"x":""#.to_string() + &"y".repeat(70_000) + "\"}}";
    let file = format!(r#"{{"queues":[{}]}}"#, " ".repeat(SIZE_MAX));
    let rest = format!(r#"{{"payload":"","routing_key":"{}"}}"#, "r".repeat(70_000));
    for (line, said, why) in [
        (PUBLISH, &said, "the payload is longer than message_size_max (1048576 bytes)"),
        ("PUT /api/queues/%2F/large", &large, "this request may have at most 65536 bytes, its head included"),
        ("POST /api/definitions", &file, "definitions may have message_size_max (1048576 bytes)"),
    ] {
        let answer = say(&mut simulation, api, GUEST, line, said);
        assert_eq!((status(&answer), answer.contains(why)), ("413", true), "{line}: {answer}");
        assert_eq!(status(&say(&mut simulation, api, GUEST, "GET /api/whoami", "")), "200", "{line}");
    }
    let answer = say(&mut simulation, api, GUEST, PUBLISH, &rest);
    assert_eq!(
        (status(&answer), answer.contains("all of the request but `payload`")),
        ("400", true),
        "{answer}"
    );
    // A client that asks first is answered before it sends its body.
    let waits = format!("{GUEST}Expect: 100-continue\r\n");
    let answer = ask(&mut simulation, api, &request("PUT /api/queues/%2F/large", &waits, 70_000));
    assert_eq!(status(&answer), "413", "{answer}");
    let api = simulation.connect_management(Shape::WIDE, HOME);
    assert_eq!(ask(&mut simulation, api, &request(PUBLISH, &waits, 70_000)), "HTTP/1.1 100 Continue\r\n\r\n");
    simulation.lose_everybody();
    simulation.assert_no_bytes();
}

#[test]
fn a_full_message_pool_has_an_error_text_of_its_own() {
    let (mut simulation, publisher, api) = broker_with_queue(Shape::WIDE);
    for _ in 0..5 {
        simulation.publish_to(publisher, 1, "q", &vec![0; SIZE_MAX]);
    }
    simulation.run();
    let before = simulation.counts_from_outside("q");
    let payload = "x".repeat(SIZE_MAX);
    let said = format!(
        r#"{{"payload":"{payload}","payload_encoding":"string","properties":{{}},"routing_key":"q"}}"#
    );
    let file = format!(r#"{{"queues":[{}]}}"#, " ".repeat(SIZE_MAX - 99));
    for (line, said) in [(PUBLISH, said), ("POST /api/definitions", file)] {
        let answer = say(&mut simulation, api, GUEST, line, &said);
        assert_eq!(
            (status(&answer), answer.contains("there is no memory for the body")),
            ("503", true),
            "{answer}"
        );
    }
    assert_eq!(simulation.counts_from_outside("q"), before);
}

#[test]
fn nothing_is_buffered_for_unauthorized_or_lost_clients() {
    let (mut simulation, publisher, api) = broker_with_queue(Shape::WIDE);
    simulation.lose(publisher);
    simulation.run();
    let half = "x".repeat(150_000);
    for lines in ["", "Authorization: Basic Z3Vlc3Q6d3Jvbmc=\r\n"] {
        let head = request(PUBLISH, lines, 300_000);
        assert_eq!(ask(&mut simulation, api, &format!("{head}{{\"payload\":\"{half}")), "");
        simulation.assert_no_bytes();
        let answer = ask(&mut simulation, api, &"x".repeat(300_000 - 12 - half.len()));
        assert_eq!(status(&answer), "401", "{answer}");
    }
    for (line, begins) in [(PUBLISH, "{\"payload\":\""), ("POST /api/definitions", "{\"queues\":[")] {
        let api = simulation.connect_management(Shape::WIDE, HOME);
        let head = request(line, GUEST, 300_000);
        assert_eq!(ask(&mut simulation, api, &format!("{head}{begins}{half}")), "");
        assert!(simulation.engine.messages().body_bytes_used() > 100_000, "{line}: it is being taken");
        simulation.operator(api).lose();
        simulation.run();
        simulation.assert_no_bytes();
    }
    // A client that sends nothing more is disconnected after two minutes.
    let api = simulation.connect_management(Shape::WIDE, HOME);
    ask(&mut simulation, api, &format!("{}{half}", request("POST /api/definitions", GUEST, 300_000)));
    simulation.pass_ms(121_000);
    assert!(!simulation.operator(api).is_held);
    simulation.assert_no_bytes();
}

#[test]
fn large_definitions_are_imported_and_the_answer_names_what_was_refused() {
    for shape in [Shape::WIDE, Shape { up_fragment: 999, ..Shape::WIDE }] {
        let (mut simulation, _, api) = broker_with_queue(shape);
        let binding = |number: usize| {
            format!(
                r#"{{"source":"x","vhost":"/","destination":"q-{}","destination_type":"queue","routing_key":"{}-{number}","arguments":{{}}}}"#,
                number % 100,
                "k".repeat(200)
            )
        };
        let bindings: Vec<String> = (0..400).map(binding).collect();
        let queue = |number: usize| {
            format!(
                r#"{{"name":"q-{number}","vhost":"/","durable":true,"auto_delete":false,"arguments":{{}}}}"#
            )
        };
        let queues: Vec<String> = (0..100).map(queue).collect();
        let exchange = r#"{"name":"x","vhost":"/","type":"direct","durable":true,"auto_delete":false,"internal":false,"arguments":{}}"#;
        let file = |bindings: &[String]| {
            format!(
                "\u{feff}{{\"rabbit_version\":\"3.10.8\",\n \"bindings\":[{}],\"queues\":[{}],\"exchanges\":[{exchange}], \"users\": null}}",
                bindings.join(",\n"),
                queues.join(" , ")
            )
        };
        let mut wrong = bindings.clone();
        wrong[399] = wrong[399].replace("queue", "quay");
        let answer = say(&mut simulation, api, GUEST, "POST /api/definitions", &file(&wrong));
        assert_eq!((status(&answer), answer.contains("bindings[399]: ")), ("400", true), "{answer}");
        let bound = "GET /api/exchanges/%2F/x/bindings/source?columns=routing_key";
        let made = body(&say(&mut simulation, api, GUEST, bound, ""));
        assert_eq!(made.as_array().map(Vec::len), Some(399), "the others were created");
        let right = file(&bindings);
        assert!(right.len() > 2 * 65_536);
        let answer = say(&mut simulation, api, GUEST, "POST /api/definitions", &right);
        assert_eq!(status(&answer), "204", "{answer}");
        let made = body(&say(
            &mut simulation,
            api,
            GUEST,
            "GET /api/exchanges/%2F/x/bindings/source?columns=routing_key",
            "",
        ));
        assert_eq!(made.as_array().map(Vec::len), Some(400));
        let answer = say(&mut simulation, api, GUEST, "POST /api/definitions", &right[..right.len() - 1]);
        assert_eq!(
            (status(&answer), answer.contains("the definitions end where")),
            ("400", true),
            "{answer}"
        );
        simulation.lose_everybody();
        simulation.assert_no_bytes();
    }
}

/// The form that `curl -F file=@defs.json` sends.
#[test]
fn a_form_with_a_definitions_file_is_imported_like_the_file() {
    let (mut simulation, _, api) = broker_with_queue(Shape { up_fragment: 5_000, ..Shape::WIDE });
    let post = |simulation: &mut Simulation, form: &str| {
        let media = "Content-Type: multipart/form-data; boundary=\"----x\"\r\n";
        let head = request("POST /api/definitions", &format!("{GUEST}{media}"), form.len());
        ask(simulation, api, &(head + form))
    };
    let part = |name: &str, content: &str| {
        format!(
            "------x\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"d\"\r\nX: y\r\n\r\n{content}\r\n"
        )
    };
    let end = "------x--\r\n";
    for (number, spaces) in [0, 65_000, 65_300, 65_400, 65_500, 200_000].into_iter().enumerate() {
        let queue = format!(
            r#"{{"name":"{number}","vhost":"/","durable":true,"auto_delete":false,"arguments":{{}}}}"#
        );
        let file = format!("\u{feff}{{\"queues\":{}[{queue}]}}\r\n--", " ".repeat(spaces));
        let wrong = post(&mut simulation, &(part("redirect", "/x") + &part("file", &file) + end));
        assert_eq!(status(&wrong), "400", "two dashes are not JSON: {wrong}");
        let file = file.trim_end_matches('-');
        let answer = post(&mut simulation, &(part("redirect", "") + &part("file", file) + end));
        assert_eq!(status(&answer), "204", "{spaces}: {answer}");
        let made = say(&mut simulation, api, GUEST, &format!("GET /api/queues/%2F/{number}"), "");
        assert_eq!(status(&made), "200", "{spaces}");
    }
    let file = part("file", "{}");
    // As in RabbitMQ, a redirect field before or after the file is answered with 303.
    let place = "../#/import-succeeded";
    let redirect = part("redirect", place);
    let longest = format!("/{}", "x".repeat(1023));
    for (form, place) in [
        (redirect.clone() + &file + end, place),
        (file.clone() + &redirect + end, place),
        (part("file", &format!("{{{}}}", " ".repeat(70_000))) + &redirect + end, place),
        (part("redirect", &longest) + &file + end, longest.as_str()),
    ] {
        let answer = post(&mut simulation, &form);
        assert!(answer.starts_with("HTTP/1.1 303 See Other\r\n"), "{answer}");
        assert!(answer.to_lowercase().contains(&format!("\r\nlocation: {place}\r\n")), "{answer}");
        assert_eq!(status(&say(&mut simulation, api, GUEST, "GET /api/whoami", "")), "200");
    }
    let queue = r#"{"queues":[{"name":"never","vhost":"/"}]}"#;
    for place in [
        "/a\r\nSet-Cookie: b",
        "/a\0",
        "/a b",
        "/é",
        &format!("{longest}x"),
        "http://evil.org/",
        "https:evil",
        "javascript:alert(1)",
        "//evil.org/x",
        "/\\evil.org",
        "\\\\evil.org",
    ] {
        let answer = post(&mut simulation, &(part("file", queue) + &part("redirect", place) + end));
        assert_eq!((status(&answer), answer.contains("`redirect`")), ("400", true), "{place:?}: {answer}");
        assert_eq!(status(&say(&mut simulation, api, GUEST, "GET /api/queues/%2F/never", "")), "404");
    }
    let answer = post(&mut simulation, &(redirect + &part("file", "{") + end));
    assert_eq!(status(&answer), "400", "{answer}");
    for (form, why) in [
        (part("other", "{}") + end, "the form has no part named `file`"),
        (file.clone(), "the form has no part named `file`"),
        (String::from("{}"), "the form has no part named `file`"),
        (part("other", "").repeat(64) + &file + end, "the form may have at most 64 parts"),
        (part("file", "{\"queues\":[{") + end, "the definitions end where"),
        (part("file", "") + end, "the definitions end where"),
    ] {
        let answer = post(&mut simulation, &form);
        assert_eq!((status(&answer), answer.contains(why)), ("400", true), "{form}: {answer}");
    }
    simulation.lose_everybody();
    simulation.assert_no_bytes();
}

/// Other clients proceed during an import: a turn creates a few definitions and parses a part of the text.
#[test]
fn a_turn_creates_only_a_few_definitions() {
    let (mut simulation, _, api) = broker_with_queue(Shape::WIDE);
    let queue =
        |number: usize| format!(r#"{{"name":"{number}","vhost":"/","durable":true,"auto_delete":false}}"#);
    let queues: Vec<String> = (0..400).map(queue).collect();
    let file = format!("{{{}\"queues\":[{}]}}", " ".repeat(500_000), queues.join(","));
    let head = request("POST /api/definitions", GUEST, file.len());
    say(&mut simulation, api, GUEST, "GET /api/whoami", "");
    simulation.operator(api).write_up((head + &file).as_bytes());
    let (mut before, mut turns) = (simulation.engine.broker().gauges().queues, 0);
    while simulation.round() {
        let now = simulation.engine.broker().gauges().queues;
        assert!(now <= before + 8, "{now} queues after {before}");
        turns += usize::from(now > before);
        before = now;
    }
    assert!(before > 400 && turns >= 50, "{before} queues in {turns} turns");
}

/// Returns a request with a chunked body.
fn chunked(line: &str, body: &str, chunk: usize) -> String {
    let chunks: String = body
        .as_bytes()
        .chunks(chunk)
        .map(|part| format!("{:x};x=y\r\n{}\r\n", part.len(), core::str::from_utf8(part).unwrap()))
        .collect();
    let head = format!("{line} HTTP/1.1\r\nHost: localhost\r\n{GUEST}Transfer-Encoding: chunked\r\n\r\n");
    head + &chunks + "0\r\nX-Trailer: y\r\n\r\n"
}

#[test]
fn chunked_bodies_of_any_length_are_like_others() {
    for shape in [Shape::WIDE, Shape { up_fragment: 997, ..Shape::WIDE }] {
        let (mut simulation, _, api) = broker_with_queue(shape);
        // Another request follows at once, and must not be taken for a part of the body.
        let next = format!("GET /api/whoami HTTP/1.1\r\nHost: localhost\r\n{GUEST}\r\n");
        for (number, chunk) in [1, 7, 10_000].into_iter().enumerate() {
            let put = chunked(&format!("PUT /api/queues/%2F/c{number}"), r#"{"durable":true}"#, chunk);
            let answer = ask(&mut simulation, api, &(put + &next));
            assert_eq!(status(&answer), "201", "{answer}");
            assert!(answer.contains(r#""name":"guest""#), "the next request is answered: {answer}");
        }
        for (len, chunk) in [(10, 3), (60_000, 4096), (70_000, 65_536), (300_000, 1000), (SIZE_MAX, 100_000)]
        {
            let payload = "p".repeat(len);
            let body = format!(
                r#"{{"payload":"{payload}","payload_encoding":"string","properties":{{}},"routing_key":"q"}}"#
            );
            let answer = ask(&mut simulation, api, &(chunked(PUBLISH, &body, chunk) + &next));
            assert_eq!(status(&answer), "200", "{len}: {answer}");
            assert!(
                answer.contains(r#"{"routed":true}"#) && answer.contains(r#""name":"guest""#),
                "{answer}"
            );
            assert_eq!(taken(&mut simulation, api)["payload"].as_str(), Some(&*payload), "{len}");
        }
        let queues: Vec<String> = (0..40)
            .map(|at| format!(r#"{{"name":"d-{at}","vhost":"/","durable":true,"auto_delete":false}}"#))
            .collect();
        let file = format!(r#"{{"queues":[{}]}}"#, queues.join(&format!(",{}", " ".repeat(2000))));
        assert!(file.len() > 65_536);
        let answer = ask(&mut simulation, api, &chunked("POST /api/definitions", &file, 5000));
        assert_eq!(status(&answer), "204", "{answer}");
        assert_eq!(status(&say(&mut simulation, api, GUEST, "GET /api/queues/%2F/d-39", "")), "200");
        // Too long bodies are refused with the limit, and the client goes on.
        for (line, len, why) in [
            (PUBLISH, 2 * SIZE_MAX, "the payload is longer than message_size_max"),
            ("POST /api/definitions", SIZE_MAX + 1, "may have at most 1048576 bytes"),
            ("PUT /api/queues/%2F/large", 70_000, "this request may have at most 65536 bytes"),
        ] {
            let body = format!(r#"{{"payload":"{}"}}"#, "x".repeat(len));
            let answer = ask(&mut simulation, api, &(chunked(line, &body, 60_000) + &next));
            assert_eq!((status(&answer), answer.contains(why)), ("413", true), "{line}: {answer}");
            assert!(answer.contains(r#""name":"guest""#), "{line}: {answer}");
        }
        // A body that is malformed after a long beginning is refused, and the client disconnected.
        let wrong = chunked(PUBLISH, &format!(r#"{{"payload":"{}"#, "x".repeat(200_000)), 50_000)
            .replace("0\r\nX-Trailer: y", "0\nX-Trailer: y");
        let answer = ask(&mut simulation, api, &(wrong + &next));
        assert_eq!(status(&answer), "400", "{answer}");
        assert!(!answer.contains(r#""name":"guest""#) && !simulation.operator(api).is_held, "{answer}");
        simulation.lose_everybody();
        simulation.assert_no_bytes();
    }
}

#[test]
fn a_chunked_body_waits_for_its_login_and_for_permission_to_be_sent() {
    let (mut simulation, _, api) = broker_with_queue(Shape::WIDE);
    let whole = chunked("PUT /api/queues/%2F/c", r#"{"durable":true}"#, 4);
    let head_len = whole.find("\r\n\r\n").unwrap() + 4;
    let head = whole[..head_len].replace("\r\n\r\n", "\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(ask(&mut simulation, api, &head), "HTTP/1.1 100 Continue\r\n\r\n");
    for octet in whole[head_len..whole.len() - 1].chars() {
        simulation.operator(api).write_up(octet.to_string().as_bytes());
        simulation.run();
    }
    let answer = ask(&mut simulation, api, "\n");
    assert_eq!(status(&answer), "201", "{answer}");
    let wrong = whole.replace(GUEST, "Authorization: Basic Z3Vlc3Q6d3Jvbmc=\r\n");
    assert_eq!(status(&ask(&mut simulation, api, &wrong)), "401");
}
