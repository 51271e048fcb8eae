//! `leveret inspect` on stores that are whole, cut and damaged: what it finds, what it saves, what it says.
//!
//! A store is made by random traffic over several runs of the broker and then spoiled. Checked: nothing panics; what is
//! exported is what was published; when something is missing, or is back, the verdict says so.

mod damage;
mod healthy;
mod live;
mod program;
mod traffic;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use self::traffic::Sent;
use leveret_cli::inspect::{ExportTo, Options};
use leveret_cli::inspect::{InspectError, Verdict, inspect};
use leveret_test_support::built_program::patience;

/// The result of an inspection: verdict, report, and messages by queue and offset.
struct Inspected {
    verdict: Verdict,
    /// Without its records, which are counted.
    report: String,
    records: u64,
    messages: BTreeMap<(u64, u64), Sent>,
    /// How many more the report says cannot be read.
    unreadable: u64,
}

fn inspected(directory: &Path) -> Result<Inspected, InspectError> {
    let directory = directory.to_path_buf();
    let export = Some(ExportTo::StandardOutput);
    let options = Options { directory, details: true, records: true, export };
    let (mut report, mut lines) = (Vec::new(), Vec::new());
    let verdict = inspect(&options, &mut report, &mut lines)?;
    let report = String::from_utf8(report).expect("a report is text");
    let records = report.lines().filter(|line| line.starts_with("record ")).count() as u64;
    let report = report.lines().filter(|line| !line.starts_with("record ")).collect::<Vec<_>>().join("\n");
    let mut messages = BTreeMap::new();
    for line in String::from_utf8(lines).expect("JSON is text").lines() {
        read_line(line, &mut messages);
    }
    let lost = report.split_once("known to be lost: ").map(|(_, rest)| rest);
    let digits = |rest: &str| rest.chars().take_while(char::is_ascii_digit).collect::<String>();
    let unreadable = lost.map_or(0, |rest| digits(rest).parse().expect("a number"));
    Ok(Inspected { verdict, report, records, messages, unreadable })
}

/// Tries until what it gives is good, for a while: a child that another test is just starting has our locks
/// until it runs its own program.
fn soon<T>(mut make: impl FnMut() -> T, is_good: impl Fn(&T) -> bool) -> T {
    let deadline = Instant::now() + patience(5);
    while Instant::now() < deadline {
        let made = make();
        if is_good(&made) {
            return made;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    make()
}

/// Parses an exported line with an independent JSON parser.
fn read_line(line: &str, messages: &mut BTreeMap<(u64, u64), Sent>) {
    let json: serde_json::Value = serde_json::from_str(line).expect("a line is JSON");
    let payload = json["payload"].as_str().expect("a payload is a text");
    let body = match json["payload_encoding"].as_str() {
        Some("string") => payload.as_bytes().to_vec(),
        Some("base64") => from_base64(payload),
        other => panic!("{other:?} is no encoding"),
    };
    assert_eq!(json["payload_bytes"].as_u64(), Some(body.len() as u64));
    assert_eq!(json["exchange"], "amq.topic");
    assert_eq!(json["properties"], serde_json::json!({ "delivery_mode": 2 }));
    let key = json["routing_key"].as_str().expect("a key is a text").to_string();
    let sent = Sent { key, properties: vec![0x10, 0, 2], body };
    for queue in json["queues"].as_array().expect("queues are a list") {
        let number = |name: &str| queue[name].as_u64().expect("a number");
        if let Some(name) = queue["name"].as_str() {
            assert_eq!(
                (name, queue["vhost"].as_str()),
                (&*format!("queue \"{}\"", queue["incarnation"]), Some("/"))
            );
        }
        let before = messages.insert((number("incarnation"), number("offset")), sent.clone());
        assert!(before.is_none(), "{line} comes twice");
    }
}

fn from_base64(text: &str) -> Vec<u8> {
    let value = |letter: u8| match letter {
        b'A'..=b'Z' => u32::from(letter - b'A'),
        b'a'..=b'z' => u32::from(letter - b'a') + 26,
        b'0'..=b'9' => u32::from(letter - b'0') + 52,
        b'+' => 62,
        _ => 63,
    };
    let mut bytes = Vec::new();
    for group in text.as_bytes().chunks(4) {
        let letters = group.iter().filter(|letter| **letter != b'=').count();
        let bits = group.iter().fold(0, |bits, letter| bits << 6 | value(*letter));
        bytes.extend_from_slice(&bits.to_be_bytes()[1..letters]);
    }
    bytes
}
