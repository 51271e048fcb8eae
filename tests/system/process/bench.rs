//! `leveret-bench` at a command line.
//!
//! It checks each message, so each of these runs also tests the broker. Without figures there is one sentence on
//! standard error, and the exit code is 1.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Output};
use std::thread;

use socket2::{Domain, Socket, Type};

use crate::program::{Broker, build_version};
use leveret_test_support::built_program;

const PROGRAM: &str = env!("CARGO_BIN_EXE_leveret-bench");

fn bench(arguments: &[&str]) -> Output {
    let mut command = built_program::without_test_environment(Command::new(PROGRAM));
    command.args(arguments).output().expect("the built binary runs")
}

/// Returns the one line on standard error of a run that must fail.
#[track_caller]
fn refusal(arguments: &[&str]) -> String {
    let output = bench(arguments);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(output.stdout, b"", "{output:?}");
    let text = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(text.lines().count(), 1, "{text}");
    text.trim_end().to_string()
}

/// Returns the URL of a server that answers the protocol header with these octets.
fn other_server(answer: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("amqp://{}", listener.local_addr().expect("bound"));
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        stream.read_exact(&mut [0; 8]).expect("a protocol header");
        stream.write_all(answer).expect("the client reads");
    });
    url
}

/// Returns the output of a run that must succeed.
#[track_caller]
fn measured(broker: &Broker, line: &str) -> String {
    let url = format!("amqp://127.0.0.1:{}", broker.port);
    let arguments: Vec<&str> = ["--url", &url].into_iter().chain(line.split_whitespace()).collect();
    let output = bench(&arguments);
    assert!(output.status.success(), "{line}: {output:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[track_caller]
fn json(broker: &Broker, line: &str) -> serde_json::Value {
    serde_json::from_str(&measured(broker, &format!("--json {line}"))).expect("a line of JSON")
}

#[test]
fn four_workloads_without_options() {
    let text = measured(&Broker::start(&[], &[]), "--seconds 0.2");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 6, "a head, four rows and a line to share: {text}");
    assert!(lines[0].ends_with("memory  every message checked"), "{text}");
    assert!(lines[1..5].iter().all(|row| row.contains(" MB  ")), "{text}");
    assert!(lines[5].starts_with("to share: | ") && lines[5].matches(" MB memory |").count() == 4, "{text}");
}

#[test]
fn a_run_ends_after_its_messages_or_its_seconds() {
    let broker = Broker::start(&[], &[]);
    assert_eq!(json(&broker, "--messages 100 --seconds 60")["published"], 100);
    for line in ["--seconds 0.5 --messages 1000000", "--messages 1000000 --seconds 0.5"] {
        let sent = json(&broker, &format!("{line} --rate 1000"))["published"].as_u64().expect("a number");
        assert!((1..100_000).contains(&sent), "{line}: {sent}");
    }
}

#[test]
fn every_way_to_acknowledge_and_confirm() {
    let broker = Broker::start(&["--memory-limit", "256MB"], &[]);
    for (line, count) in [
        ("--messages 50000", 50_000),
        ("--messages 20000 --ack each --prefetch 10", 20_000),
        ("--messages 50000 --ack each --prefetch 0 --confirms 100", 50_000),
        ("--messages 2000 --confirms 1 --persistent", 2_000),
        ("--messages 30 --size 3000000 --confirms 2 --ack each", 30),
        ("--messages 6 --size 20000000 --confirms 1 --persistent", 6),
        ("--messages 60000 --size 1024 --ack each", 60_000),
        ("--messages 9000 --queues 6 --publishers 4 --consumers 3", 9_000),
        // Each consumer of a queue receives a part.
        ("--messages 9000 --queues 2 --publishers 3 --consumers 5 --ack each --prefetch 7", 9_000),
    ] {
        let result = json(&broker, line);
        assert_eq!((&result["published"], &result["delivered"]), (&count.into(), &count.into()), "{line}");
        assert!(result["broker_peak_bytes"].as_u64() > Some(1 << 20), "{result}");
        assert_eq!(result["confirm_p99_us"].is_number(), line.contains("--confirms"), "{result}");
    }
    assert_eq!(json(&broker, "--messages 10 --consumers 0")["delivered"], 0);
}

#[test]
fn the_least_memory_is_enough() {
    let broker = Broker::start(&["--memory-limit", "18MB"], &[]);
    measured(&broker, "--messages 20000 --size 100 --confirms 50 --persistent");
}

#[test]
fn latency_is_measured_at_a_rate() {
    let broker = Broker::start(&[], &[]);
    let result = json(&broker, "--rate 2000 --seconds 1 --confirms 100");
    for key in ["latency_p50_us", "latency_p99_us", "latency_p99.9_us", "confirm_p50_us"] {
        assert!(result[key].as_f64() > Some(0.0), "{key}: {result}");
    }
    let rate = result["msg_per_s"].as_f64().expect("a number");
    assert!((1_000.0..2_100.0).contains(&rate), "{result}");
}

#[test]
fn without_a_broker_the_error_names_the_address() {
    // Bound but not listening, so that no other process gets the port.
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a free port");
    let free = socket.local_addr().ok().and_then(|address| address.as_socket()).expect("bound");
    let text = refusal(&["--url", &format!("amqp://{free}")]);
    let start = format!("leveret-bench: no broker at amqp://guest@{free}/%2f (Connection refused");
    assert!(text.starts_with(&start), "{text}");
    assert!(text.ends_with("start one there, or name another by --url"), "{text}");
}

#[test]
fn a_server_that_is_no_broker_is_recognized() {
    for (answer, end) in [
        (&b"AMQP\x00\x00\x09\x01"[..], "is it an AMQP 0-9-1 broker, without TLS?"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "is it an AMQP 0-9-1 broker, without TLS?"),
        (b"", "the broker closed the connection without a reason: see its log"),
    ] {
        let text = refusal(&["--url", &other_server(answer)]);
        assert!(text.ends_with(end), "{text}");
    }
}

#[test]
fn a_refused_login_is_explained() {
    let broker = Broker::start(&[], &[]);
    let text = refusal(&["--url", &format!("amqp://nobody:x@127.0.0.1:{}", broker.port)]);
    assert!(text.contains("the broker closed the connection or channel: 403 ACCESS_REFUSED"), "{text}");
}

#[test]
fn wrong_arguments_are_refused() {
    let text = refusal(&["--sise", "16"]);
    assert!(text.starts_with("leveret-bench: unknown option --sise; did you mean --size?"), "{text}");
    assert!(bench(&["--help"]).status.success());
    let version = bench(&["--version"]);
    assert!(version.status.success());
    assert_eq!(version.stdout, format!("leveret-bench {}\n", build_version()).as_bytes());
}
