//! The directory of a real broker: inspected while it serves, and after it was killed.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStderr, Stdio};

use lapin::options::{
    BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Connection, ConnectionProperties, ExchangeKind};
use leveret_cli::inspect::{ExportTo, Options};
use leveret_cli::inspect::{Verdict, inspect};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use leveret_test_support::built_program::{self, TempDir};

/// The broker, and what it says; killed with this value.
struct Broker(Child, BufReader<ChildStderr>);

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(home: &TempDir) -> (Broker, u16) {
    let mut command = built_program::leveret();
    command.args(["serve", "--listen", "127.0.0.1:0", "--data-dir"]).arg(home.path());
    let mut child = command.stderr(Stdio::piped()).spawn().expect("the built binary runs");
    let stderr = BufReader::new(child.stderr.take().expect("it is piped"));
    let mut broker = Broker(child, stderr);
    let port = broker
        .1
        .by_ref()
        .lines()
        .map_while(Result::ok)
        .find_map(|line| {
            let (_, rest) = line.split_once("listening on 127.0.0.1:")?;
            rest.split(|letter: char| !letter.is_ascii_digit()).next()?.parse().ok()
        })
        .expect("it says which port it listens on");
    (broker, port)
}

/// Two queues at an exchange: some small messages with headers, and a large one to both.
async fn fill(port: u16, large: &[u8]) {
    let url = format!("amqp://guest:guest@127.0.0.1:{port}/%2f");
    let connection = Connection::connect(&url, ConnectionProperties::default()).await.expect("connected");
    let channel = connection.create_channel().await.expect("a channel");
    channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirming");
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    let none = FieldTable::default;
    channel.exchange_declare("site", ExchangeKind::Topic, durable, none()).await.expect("an exchange");
    for (queue, key) in [("all \u{1F407}", "#"), ("warm", "*.temperature")] {
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(queue, durable, none()).await.expect("a queue");
        channel.queue_bind(queue, "site", key, QueueBindOptions::default(), none()).await.expect("bound");
    }
    let mut headers = FieldTable::default();
    headers.insert("unit".into(), AMQPValue::LongString("\u{b0}C".into()));
    headers.insert("site".into(), AMQPValue::LongInt(-7));
    let properties =
        BasicProperties::default().with_delivery_mode(2).with_headers(headers).with_message_id("m1".into());
    for number in 0..40 {
        let body = format!("reading {number}");
        let key = if number % 4 == 0 { "7.temperature" } else { "7.humidity" };
        let options = BasicPublishOptions::default();
        let sent = channel.basic_publish("site", key, options, body.as_bytes(), properties.clone());
        assert!(sent.await.expect("published").await.expect("answered").is_ack());
    }
    let options = BasicPublishOptions::default();
    let plain = BasicProperties::default().with_delivery_mode(2);
    let sent = channel.basic_publish("site", "8.temperature", options, large, plain);
    assert!(sent.await.expect("published").await.expect("answered").is_ack());
    connection.close(200, "done").await.expect("closed");
}

/// Inspects; the report and the exported lines.
fn look(home: &TempDir) -> (String, Vec<serde_json::Value>) {
    let options = Options {
        directory: home.path().to_path_buf(),
        details: false,
        records: false,
        export: Some(ExportTo::StandardOutput),
    };
    let (mut report, mut lines) = (Vec::new(), Vec::new());
    let verdict = inspect(&options, &mut report, &mut lines).expect("it is a store");
    let report = String::from_utf8(report).expect("UTF-8");
    assert_eq!(verdict, Verdict::Good, "{report}");
    let lines = String::from_utf8(lines).expect("UTF-8");
    (report, lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect())
}

fn check(report: &str, messages: &[serde_json::Value], large: &[u8]) {
    assert_eq!(messages.len(), 41, "{report}");
    assert!(report.contains("\nqueues     2 with 52 messages\n"), "{report}");
    assert!(report.contains("  \"all \u{1F407}\" in \"/\"\n"), "{report}");
    assert!(
        report.contains("\ndefined    2 queues, 1 exchanges, 2 bindings; 0 that cannot be read"),
        "{report}"
    );
    let first = &messages[0];
    assert_eq!((&first["exchange"], &first["routing_key"]), (&"site".into(), &"7.temperature".into()));
    let names = first["queues"].as_array().expect("a list").iter().filter_map(|queue| queue["name"].as_str());
    assert_eq!(names.collect::<BTreeSet<_>>(), BTreeSet::from(["all \u{1F407}", "warm"]));
    let headers = serde_json::json!({ "unit": "\u{b0}C", "site": -7 });
    assert_eq!(first["properties"]["headers"], headers);
    assert_eq!(first["properties"]["message_id"], "m1");
    assert_eq!((&first["payload"], &first["payload_encoding"]), (&"reading 0".into(), &"string".into()));
    let last =
        messages.iter().find(|message| message["routing_key"] == "8.temperature").expect("it is there");
    assert_eq!(last["payload_bytes"], large.len());
    assert_eq!(STANDARD.decode(last["payload"].as_str().expect("a text")).expect("base64"), large);
}

#[test]
fn what_a_broker_keeps_is_found_while_it_serves_and_when_it_was_killed() {
    let home = TempDir::new("inspected");
    let large: Vec<u8> = (0..300_000_u32).map(|at| (at.wrapping_mul(at) >> 7) as u8).collect();
    let (broker, port) = start(&home);
    futures_lite::future::block_on(fill(port, &large));
    let (report, messages) = look(&home);
    let holder = format!("\nbroker     process {} uses the directory and may be writing\n", broker.0.id());
    assert!(report.contains(&holder), "{report}");
    check(&report, &messages, &large);
    drop(broker);
    let (report, messages) = look(&home);
    assert!(report.contains("\nbroker     none uses the directory\n"), "{report}");
    check(&report, &messages, &large);
    println!("{report}");
}
