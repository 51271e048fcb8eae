//! `report`, where names are hostile: it is read by people, in editors and terminals, wherever it was
//! written to.

use std::fs;
use std::io::Write;

use crate::flight::{Broker, Memory, frame, framed, program, report, text};
use leveret_test_support::built_program::TempDir;

/// Text that tries to forge a line of the report, control a terminal in two ways, change the writing direction,
/// use other line breaks, and shift columns.
const HOSTILE: &str =
    "evil\nRun 99, 3 events; it ended by itself\r\u{1b}]0;x\u{7}\u{9b}31m\u{202e}gnirts\u{2028}a\u{85}b\tc";

/// Definitions in which everything that can be named is named so.
fn definitions() -> serde_json::Value {
    let of = |of: &str| serde_json::json!(format!("{of}{HOSTILE}"));
    let (vhost, no) = (of("v"), serde_json::json!({}));
    serde_json::json!({
        "users": [{ "name": of("u"), "password": "words", "tags": of("t") }],
        "vhosts": [{ "name": vhost }],
        "permissions": [
            { "user": of("u"), "vhost": vhost, "configure": of("p"), "write": ".*", "read": ".*" },
        ],
        "topic_permissions": [
            { "user": of("u"), "vhost": vhost, "exchange": of("x"), "write": of("w"), "read": ".*" },
        ],
        "policies": [{
            "vhost": vhost, "name": of("policy"), "pattern": of("pattern"), "apply-to": "queues",
            "definition": { "dead-letter-exchange": of("dlx") }, "priority": 0,
        }],
        "queues": [{
            "name": of("q"), "vhost": vhost, "durable": true, "auto_delete": false,
            "arguments": { "x-dead-letter-exchange": "amq.topic", "x-dead-letter-routing-key": of("key") },
        }],
        "exchanges": [{
            "name": of("x"), "vhost": vhost, "type": "topic", "durable": true, "auto_delete": false,
            "internal": false, "arguments": { "alternate-exchange": of("ae") },
        }],
        "bindings": [{
            "source": of("x"), "vhost": vhost, "destination": of("q"), "destination_type": "queue",
            "routing_key": of("k"), "arguments": no,
        }],
    })
}

/// Consumes from a queue of its own with a hostile tag, on a channel that stays open.
fn consume(broker: &Broker) -> std::net::TcpStream {
    let mut peer = broker.open();
    peer.write_all(&framed(1, 1, &[0, 20, 0, 10, 0])).expect("it reads");
    assert_eq!(frame(&mut peer)[..4], [0, 20, 0, 11], "channel.open-ok");
    let declare = [0, 50, 0, 10, 0, 0, 1, b'q', 0, 0, 0, 0, 0];
    peer.write_all(&framed(1, 1, &declare)).expect("it reads");
    assert_eq!(frame(&mut peer)[..4], [0, 50, 0, 11], "queue.declare-ok");
    let mut consume = vec![0, 60, 0, 20, 0, 0, 1, b'q', HOSTILE.len() as u8];
    consume.extend(HOSTILE.as_bytes());
    consume.extend([0, 0, 0, 0, 0]);
    peer.write_all(&framed(1, 1, &consume)).expect("it reads");
    assert_eq!(frame(&mut peer)[..4], [0, 60, 0, 21], "consume-ok");
    peer
}

#[test]
fn no_name_gets_out_of_its_place_in_a_report_though_no_terminal_shows_it() {
    let (home, memory) = (TempDir::new("report"), Memory::new("report"));
    let broker = Broker::start(&home, text(&memory.file()), "");
    let (data, file) = (home.path().join("data"), home.path().join("names.json"));
    fs::write(&file, definitions().to_string()).expect("the folder can be written");
    let ctl = |arguments: &[&str]| {
        let done = program().args(["ctl", "--data-dir", text(&data)]).args(arguments).output();
        let done = done.expect("the built binary runs");
        assert!(done.status.success(), "{done:?}");
        String::from_utf8(done.stdout).expect("UTF-8")
    };
    ctl(&["import_definitions", text(&file)]);
    let _peer = consume(&broker);
    let (code, told) = report(&["--data-dir", text(&data)]);
    assert_eq!(code, Some(0), "{told}");
    let raw: Vec<char> =
        told.chars().filter(|letter| !leveret_daemon::logging::is_printable(*letter)).collect();
    assert!(raw.iter().all(|letter| matches!(letter, '\n' | '\t')), "{raw:?}\n{told}");
    assert!(!told.lines().any(|line| line.starts_with("Run 99")), "{told}");
    assert!(!told.contains("b\tc"), "a name is in one column: {told}");
    for of in ["u", "v", "t", "p", "w", "policy", "pattern", "dlx", "q", "key", "x", "ae", "k", ""] {
        let shown = format!("{of}evil\\nRun 99, 3 events; it ended by itself\\r\\u");
        assert!(told.contains(&shown), "{of}: {told}");
    }
    // Scripts are told the names themselves, as ever.
    let vhost = format!("v{HOSTILE}");
    assert!(ctl(&["-q", "list_queues", "-p", &vhost, "name"]).contains(&format!("q{HOSTILE}")));
    broker.end();
}
