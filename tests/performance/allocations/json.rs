//! Checks that memory for reading JSON is bounded, whatever its shape: bodies for the management API, and
//! definitions files. The figure is the number of bytes in use at once, minus those for a trivial body or file of
//! the same length.

use std::convert::Infallible;
use std::io::Cursor;

use crate::counting::peak_bytes_of;
use leveret_json::READING_BYTES;
use leveret_management::definitions::{At, parse, read};
use leveret_test_support::simulated_server::{Shape, Simulation, small_limits};

/// Maximum size of a request in bytes.
const REQUEST_BYTES: usize = 64 << 10;

/// A piece, told from others.
fn numbered(piece: &str, at: usize) -> String {
    piece.replace("AT", &format!("{at:05}"))
}

/// As many of a piece as are that long together.
fn filled(bytes: usize, (begin, piece, end): (&str, &str, &str)) -> String {
    let count = (bytes - begin.len() - end.len()) / (numbered(piece, 0).len() + 1);
    let mut text = begin.to_string();
    for at in 0..count {
        text += if at == 0 { "" } else { "," };
        text += &numbered(piece, at);
    }
    text + end
}

/// Deep as it is long.
fn deep(bytes: usize, (begin, open, close, end): (&str, &str, &str, &str)) -> String {
    let count = (bytes - begin.len() - end.len()) / (open.len() + close.len());
    format!("{begin}{}{}{end}", open.repeat(count), close.repeat(count))
}

fn asked(simulation: &mut Simulation, client: usize, line: &str, body: &str) -> (usize, String) {
    let request = format!(
        "{line} HTTP/1.1\r\nHost: localhost:1\r\nAuthorization: Basic Z3Vlc3Q6Z3Vlc3Q=\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    assert!(request.len() <= REQUEST_BYTES, "{}", request.len());
    simulation.operator(client).write_up(request.as_bytes());
    let mut answer = Vec::new();
    let peak = peak_bytes_of(|| {
        simulation.run();
        // A password is checked by a helper, which takes its time.
        for _ in 0..20 {
            simulation.pass_ms(50);
            simulation.operator(client).read_down(usize::MAX, &mut answer);
        }
    });
    (peak, String::from_utf8(answer).expect("answers are text"))
}

#[test]
fn no_body_for_the_management_api_takes_more_than_the_memory_table_says() {
    let mut simulation = Simulation::new(small_limits());
    let client = simulation.connect_management(Shape::WIDE, [127, 0, 0, 1]);
    let room = REQUEST_BYTES - 300;
    let blank = format!("{{{}}}", " ".repeat(room - 2));
    asked(&mut simulation, client, "PUT /api/vhosts/other", "{}");
    let (without, answer) = asked(&mut simulation, client, "PUT /api/vhosts/other", &blank);
    assert_eq!(answer.get(9..12), Some("204"), "{answer}");
    let queue = "PUT /api/queues/%2F/q";
    let publish = "POST /api/exchanges/%2F/amq.default/publish";
    let definitions = "POST /api/definitions";
    let said = "{\"routing_key\":\"q\",\"payload\":\"\",\"payload_encoding\":\"string\",\"properties\":{\"headers\":{";
    let mut beyond = Vec::new();
    for (line, body) in [
        (queue, filled(room, ("{\"arguments\":{\"x\":[", "{\"\":0}", "]}}"))),
        (queue, filled(room, ("{\"arguments\":{\"x\":[", "0", "]}}"))),
        (queue, filled(room, ("{\"arguments\":{", "\"AT\":0", "}}"))),
        (queue, filled(room, ("{\"arguments\":{", "\"\\u0041AT\":0", "}}"))),
        (queue, filled(room, ("{\"arguments\":{\"x\":{", "\"AT\":{\"\":[]}", "}}}"))),
        (queue, filled(room, ("{", "\"AT\":0", "}"))),
        (queue, filled(room, ("{\"arguments\":{\"x\":\"\\u0041", "x", "\"}}"))),
        (queue, deep(room, ("{\"arguments\":{\"x\":", "{\"\":", "}", "}}")).replace(":}", ":0}")),
        (queue, deep(room, ("{\"arguments\":{\"x\":", "[", "]", "}}"))),
        (publish, filled(room, (said, "\"AT\":0", "}}}"))),
        (publish, filled(room, (said, "\"AT\":[{\"\":0}]", "}}}"))),
        // As much as is taken.
        (publish, filled(40_000, (said, "\"\\u0041AT\":0", "}}}"))),
        (
            "PUT /api/parameters/shovel/%2F/s",
            filled(room, ("{\"value\":{\"src-queue-args\":{\"x\":[", "{\"\":0}", "]}}}")),
        ),
        ("PUT /api/global-parameters/s", filled(room, ("{\"value\":[", "{\"\":0}", "]}"))),
        ("PUT /api/global-parameters/s", filled(room, ("{\"value\":[", "{}", "]}"))),
        ("PUT /api/policies/%2F/p", filled(room, ("{\"pattern\":\"x\",\"definition\":{", "\"AT\":0", "}}"))),
        ("POST /api/users/bulk-delete", filled(room, ("{\"users\":[", "\"\"", "]}"))),
        (definitions, filled(room, ("{\"queues\":[", "{\"\":0}", "]}"))),
        (definitions, filled(room, ("{\"x\":[", "{\"\":0}", "]}"))),
        (definitions, filled(room, ("{", "\"AT\":{\"\":0}", "}"))),
        (
            definitions,
            filled(
                room,
                ("{\"queues\":[{\"name\":\"q\",\"vhost\":\"/\",\"arguments\":{\"x\":[", "{\"\":0}", "]}}]}"),
            ),
        ),
        (
            definitions,
            filled(room, ("{\"global_parameters\":[{\"name\":\"x\",\"value\":[", "{\"\":0}", "]}]}")),
        ),
    ] {
        let (peak, answer) = asked(&mut simulation, client, line, &body);
        let more = peak.saturating_sub(without);
        println!("{more} bytes more: {line} {}: {}", &body[..70], &answer[9..12]);
        assert!(answer.starts_with("HTTP/1.1 "), "{answer}");
        beyond.push((more, line, body[..70].to_string()));
    }
    let most = beyond.iter().max().expect("there are some");
    assert!(most.0 <= READING_BYTES, "{most:?}");
}

#[test]
fn no_file_of_definitions_takes_more_than_the_memory_table_says() {
    let room = 3 << 20;
    let queue =
        "{\"name\":\"AT\",\"vhost\":\"/\",\"durable\":true,\"arguments\":{\"x\":[{\"\":0},{\"\":0}]}}";
    let large = "{\"queues\":[{\"name\":\"q\",\"vhost\":\"/\",\"arguments\":{";
    let in_queue = "{\"queues\":[{\"name\":\"q\",\"vhost\":\"/\",\"arguments\":{\"x\":[";
    for (text, is_read) in [
        (filled(room, ("{\"queues\":[", queue, "]}")), true),
        (filled(room, ("{\"else\":[", queue, "]}")), true),
        // As much as is taken.
        (filled(32_000, (large, "\"\\u0041AT\":0", "}}]}")), true),
        (format!("{large}\"x\":\"{}\"}}}}]}}", "\\u0041".repeat(21_000)), true),
        (filled(room, ("{\"queues\":[", "0", "]}")), true),
        (filled(room, (in_queue, "{\"\":0}", "]}}]}")), false),
        (format!("{{\"queues\":[\"{}\"]}}", "x".repeat(room)), false),
        (format!("{{\"{}\":[]}}", "x".repeat(room)), false),
        (format!("{{\"queues\":[{}]}}", "1".repeat(room)), false),
        (deep(room, ("{\"queues\":[", "[", "]", "]}")), false),
        (deep(room, ("{\"else\":[", "{\"\":", "}", "]}")).replace(":}", ":0}"), false),
    ] {
        let mut file = Cursor::new(text.as_bytes());
        let mut done = Ok(());
        let peak = peak_bytes_of(|| {
            let take = |at: At, text: &str| {
                let _ = parse(at.section, text);
                Ok::<(), Infallible>(())
            };
            done = read(&mut file, take).map_err(|error| error.to_string());
        });
        println!("{peak} bytes: {}: {done:?}", &text[..50]);
        assert_eq!(done.is_ok(), is_read, "{done:?}");
        assert!(peak <= READING_BYTES, "{peak} bytes: {}: {done:?}", &text[..50]);
    }
}
