//! `leveret bench` as a person at a prompt meets it, where no broker can be measured.
//!
//! Always true of it: without a measurement there is one sentence that says what to do, and exit code 1.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::{Command, Output};
use std::thread;

fn bench(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_leveret"));
    for name in ["RUST_LOG", "JOURNAL_STREAM", "NOTIFY_SOCKET"] {
        command.env_remove(name);
    }
    command.arg("bench").args(arguments).output().expect("the built binary runs")
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

#[test]
fn the_relay_needs_no_broker() {
    let output = bench(&["relay", "--messages", "10000", "--size", "100"]);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("bare relay     10,000 messages in "), "{text}");
    let output = bench(&["relay", "--messages", "10", "--json"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("\"relay_msg_per_s\": "), "{output:?}");
}

#[test]
fn where_nobody_listens_it_says_what_to_do() {
    let free = TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("bound");
    let said = refusal(&["--address", &free.to_string()]);
    assert!(said.starts_with(&format!("leveret: no broker at amqp://{free} (Connection refused")), "{said}");
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
    assert!(said.starts_with("leveret: unknown option --sise; did you mean --size?"), "{said}");
    assert!(bench(&["--help"]).status.success());
}
