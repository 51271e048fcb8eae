//! `leveret-bench` as a person at a prompt meets it.
//!
//! Always true of it: every message is checked, so each run here is also a test of the broker; without a
//! measurement there is one sentence that says what to do, and exit code 1.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Output};
use std::thread;

use crate::home;
use socket2::{Domain, Socket, Type};

const PROGRAM: &str = env!("CARGO_BIN_EXE_leveret-bench");

fn bench(arguments: &[&str]) -> Output {
    let mut command = home::undisturbed(Command::new(PROGRAM));
    command.args(arguments).output().expect("the built binary runs")
}

/// The one line on standard error of a run that must fail.
#[track_caller]
fn refusal(arguments: &[&str]) -> String {
    let output = bench(arguments);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(output.stdout, b"", "{output:?}");
    let said = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(said.lines().count(), 1, "{said}");
    said.trim_end().to_string()
}

/// Somebody who is no broker: hears the first octets and says something.
fn stranger(says: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a visitor");
        stream.read_exact(&mut [0; 8]).expect("a protocol header");
        stream.write_all(says).expect("somebody who listens");
    });
    address
}

/// A run against a broker of its own that must succeed.
#[track_caller]
fn measured(line: &str) -> String {
    let output = bench(&line.split_whitespace().collect::<Vec<_>>());
    assert!(output.status.success(), "{line}: {output:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// A bench that was killed leaves its broker's folder behind with all its messages, and a later one may have
/// its number.
#[test]
fn what_another_bench_left_behind_is_not_its_own() {
    let left = std::env::temp_dir().join(format!("leveret-bench-test-{}", std::process::id()));
    std::fs::create_dir_all(&left).expect("a folder");
    let script = "touch \"$TMPDIR/leveret-bench-$$\" && exec \"$0\" --messages 10";
    let mut command = Command::new("sh");
    command.args(["-c", script, PROGRAM]).env("TMPDIR", &left).env_remove("RUST_LOG");
    let output = command.output().expect("a shell");
    std::fs::remove_dir_all(&left).expect("the folder goes");
    assert!(output.status.success(), "{output:?}");
}

/// Whichever is named last: a bench that is to run for a while at most must not run on for its messages.
#[test]
fn it_ends_at_whichever_comes_first_messages_or_seconds() {
    let sent = |line: &str| {
        let json: serde_json::Value = serde_json::from_str(&measured(line)).expect("a line of JSON");
        json["published"].as_u64().expect("it says how many")
    };
    assert_eq!(sent("--messages 100 --seconds 60 --json"), 100);
    assert_eq!(sent("--seconds 60 --messages 100 --json"), 100);
    for line in [
        "--seconds 500ms --messages 1000000 --rate 1000 --json",
        "--messages 1000000 --seconds 500ms \
                 --rate 1000 --json",
    ] {
        let sent = sent(line);
        assert!((1..100_000).contains(&sent), "{line}: {sent}");
    }
}

#[test]
fn every_way_to_acknowledge_and_confirm() {
    for line in [
        "--messages 50000",
        "--messages 20000 --ack each --prefetch 10",
        "--messages 50000 --ack multiple --prefetch 0 --confirms 100",
        "--messages 2000 --confirms 1 --persistent",
        "--messages 5000 --size 0",
        "--messages 5000 --size 7 --ack each",
        "--messages 30 --size 3MiB --confirms 2 --ack each",
    ] {
        let text = measured(line);
        assert!(text.contains("  checked        every message: "), "{text}");
        assert!(text.contains("  broker memory  "), "{text}");
        assert_eq!(text.contains("  confirmed in   p50 "), line.contains("--confirms"), "{text}");
    }
}

#[test]
fn many_queues_through_every_kind_of_exchange() {
    for kind in ["", "--exchange direct", "--exchange topic --bindings 100", "--exchange fanout"] {
        let text = measured(&format!("{kind} --messages 9000 --queues 6 --publishers 4 --consumers 3"));
        let delivered = if kind.contains("fanout") { "54,000" } else { "9,000" };
        assert!(text.contains(&format!("  delivered      {delivered} messages in ")), "{text}");
    }
    // More consumers than queues: each sees a part, and the parts add up.
    measured("--messages 9000 --queues 2 --publishers 3 --consumers 5 --ack each --prefetch 7");
}

#[test]
fn a_backlog_larger_than_the_socket_buffers_drains_to_its_end() {
    measured("--messages 60000 --size 1KiB");
    measured("--messages 60000 --size 1KiB --ack multiple");
}

#[test]
fn at_a_rate_it_tells_how_long_messages_take() {
    let text = measured("--rate 2000 --seconds 1 --confirms 100");
    assert!(text.contains("  latency        p50 ") && text.contains("  confirmed in   p50 "), "{text}");
    let json = measured("--rate 2000 --seconds 500ms --json --relay");
    for key in ["\"latency_p99_us\":", "\"broker_peak_bytes\":", "\"of_relay\":"] {
        assert!(json.contains(key), "{json}");
    }
}

#[test]
fn a_broker_of_our_own_that_does_not_start_says_why() {
    let said = refusal(&["--", "--memory-limit", "1MB"]);
    assert!(said.starts_with("leveret-bench: the broker did not start: leveret: "), "{said}");
}

/// By another process: one that this process writes, and forks meanwhile, would be busy when it is to run.
fn copy(program: &str, to: &Path) {
    assert!(Command::new("cp").arg(program).arg(to).status().expect("cp is there").success());
}

/// A copy that lies alone, with a path that has no broker in it.
#[test]
fn where_there_is_no_broker_to_start_it_says_what_was_looked_for() {
    let home = home::Home::new("bench-alone");
    let alone = home.path().join("leveret-bench");
    copy(PROGRAM, &alone);
    let output = Command::new(&alone).env("PATH", home.path()).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(
        said.starts_with("leveret-bench: the broker did not start: leveret cannot be run (No such file"),
        "{said}"
    );
    copy(env!("CARGO_BIN_EXE_leveret"), &home.path().join("leveret"));
    let output = Command::new(&alone).args(["--messages", "10"]).env("PATH", "").output().expect("it runs");
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn where_memory_allows_messages_may_be_larger() {
    measured("--messages 6 --size 20MiB --confirms 1 --persistent -- --memory-limit 256MB");
    measured("--messages 6 --size 20MiB --confirms 1 -- --board pi-4");
    // And the least memory there is still serves.
    measured("--messages 20000 --size 100 --confirms 50 --persistent -- --memory-limit 14MB");
}

#[test]
fn the_relay_needs_no_broker() {
    let output = bench(&["relay", "--messages", "10000", "--size", "100"]);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("bare relay     10,000 messages in "), "{text}");
    let output = bench(&["relay", "--messages", "10", "--json"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("\"relay_msg_per_s\":"), "{output:?}");
}

#[test]
fn where_nobody_listens_it_says_what_to_do() {
    // Bound, so that nobody else gets it, and not listened on.
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a free port");
    let free = socket.local_addr().ok().and_then(|address| address.as_socket()).expect("bound");
    let said = refusal(&["--address", &free.to_string()]);
    assert!(
        said.starts_with(&format!("leveret-bench: no broker at amqp://{free} (Connection refused")),
        "{said}"
    );
    assert!(said.contains("leave --url and --address out"), "{said}");
}

#[test]
fn somebody_who_is_no_broker_is_recognised() {
    let said = refusal(&["--address", &stranger(b"AMQP\x00\x00\x09\x01")]);
    assert!(said.ends_with("it speaks another version of AMQP"), "{said}");
    let said = refusal(&["--address", &stranger(b"HTTP/1.1 400 Bad Request\r\n\r\n")]);
    assert!(said.ends_with("is it an AMQP broker, without TLS?"), "{said}");
    let said = refusal(&["--address", &stranger(b"")]);
    assert!(said.ends_with("closed the connection without a word: see its log"), "{said}");
}

#[test]
fn what_makes_no_sense_is_refused_before_anything_is_started() {
    let said = refusal(&["--sise", "16"]);
    assert!(said.starts_with("leveret-bench: unknown option --sise; did you mean --size?"), "{said}");
    assert!(bench(&["--help"]).status.success());
    let version = bench(&["--version"]);
    assert!(version.status.success());
    assert_eq!(version.stdout, concat!("leveret-bench ", env!("CARGO_PKG_VERSION"), "\n").as_bytes());
}
