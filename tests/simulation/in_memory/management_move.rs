//! Moving and copying messages of a queue, and the routes that the management API shows.

use super::management::{ANN, GUEST, status};
use super::management_changes::{body, say, script};
use leveret_amqp::{Method, Table};
use leveret_core::limits::Limits;
use leveret_storage::Settings;
use leveret_test_support::random::Random;
use leveret_test_support::simulated_disk::Trouble;
use leveret_test_support::simulated_server::{
    Publish, Shape, Simulation, declare_with, for_seeds, small_limits,
};
use serde_json::{Value, json};

const HOME: [u8; 4] = [127, 0, 0, 1];
const PLAIN: &[u8] = &[0, 0];
const PERSISTENT: &[u8] = &[0x10, 0, 2];
/// delivery_mode 2, priority 3, and the headers a: true, CC: ["elsewhere"].
const RICH: &[u8] =
    b"\x38\x00\x00\x00\x00\x1a\x01at\x01\x02CCA\x00\x00\x00\x0eS\x00\x00\x00\x09elsewhere\x02\x03";
const MOVE: &str = "POST /api/leveret/queues/%2F/q/messages/move";

fn post(simulation: &mut Simulation, line: &str, asked: &Value) -> (String, Value) {
    let client = simulation.connect_management(Shape::WIDE, HOME);
    let answer = say(simulation, client, GUEST, line, &asked.to_string());
    (status(&answer).to_string(), body(&answer))
}

/// Sends a request that is answered with 200. Returns the numbers of moved and of gone messages.
fn moved(simulation: &mut Simulation, asked: &Value) -> (u64, u64) {
    let (status, answer) = post(simulation, MOVE, asked);
    assert_eq!(status, "200", "{answer}");
    (answer["moved"].as_u64().expect("a number"), answer["gone"].as_u64().expect("a number"))
}

/// Sends a request that is refused. Returns the status and the reason.
fn refused(simulation: &mut Simulation, asked: &Value) -> (String, String) {
    let (status, answer) = post(simulation, MOVE, asked);
    assert_ne!(status, "200", "{answer}");
    (status, answer["reason"].as_str().expect("a reason").to_string())
}

/// Returns up to 100 messages of a queue from this position on.
fn browse(simulation: &mut Simulation, queue: &str, position: usize) -> Vec<Value> {
    let client = simulation.connect_management(Shape::WIDE, HOME);
    let line = format!("GET /api/leveret/queues/%2F/{queue}/messages?count=100&position={position}");
    let answer = say(simulation, client, GUEST, &line, "");
    assert_eq!(status(&answer), "200", "{answer}");
    body(&answer)["messages"].as_array().expect("messages").clone()
}

/// Returns all messages of a queue.
fn all_of(simulation: &mut Simulation, queue: &str) -> Vec<Value> {
    let mut all = Vec::new();
    loop {
        let part = browse(simulation, queue, all.len());
        if part.is_empty() {
            return all;
        }
        all.extend(part);
    }
}

fn payloads(messages: &[Value]) -> Vec<&str> {
    messages.iter().map(|message| message["payload"].as_str().expect("text")).collect()
}

fn shown(simulation: &mut Simulation, queue: &str) -> String {
    payloads(&all_of(simulation, queue)).join(" ")
}

fn declare(simulation: &mut Simulation, client: usize, queue: &str, is_durable: bool, arguments: &[u8]) {
    let said = simulation.ask(client, 1, &declare_with(queue, is_durable, Table::trusted(arguments)));
    assert!(matches!(said.method(), Method::QueueDeclareOk { .. }), "{}", said.shown());
}

/// Returns a client, and queues `q` with the messages 0 to `count` - 1, and `r` without messages.
fn filled(simulation: &mut Simulation, count: usize, is_durable: bool) -> usize {
    let client = simulation.open(&[1]);
    declare(simulation, client, "q", is_durable, &[]);
    declare(simulation, client, "r", is_durable, &[]);
    fill(simulation, client, 0..count, if is_durable { PERSISTENT } else { PLAIN });
    client
}

fn fill(simulation: &mut Simulation, client: usize, numbers: core::ops::Range<usize>, properties: &[u8]) {
    for number in numbers {
        let publish = Publish { key: "q", properties, ..Publish::default() };
        simulation.publish(client, 1, publish, number.to_string().as_bytes());
        simulation.pass_ms(20);
    }
}

fn ids(messages: &[Value], places: &[usize]) -> Vec<Value> {
    places.iter().map(|place| messages[*place]["id"].clone()).collect()
}

/// A message that is gone does not hinder the others, however long the queue is.
#[test]
fn messages_of_a_long_queue_move_beside_one_that_is_gone() {
    let limits = Limits { messages_max: 25_000, queue_entries_max: 60_000, ..small_limits() };
    let mut simulation = Simulation::new(limits);
    let client = simulation.open(&[1]);
    simulation.declare(client, 1, "q");
    simulation.declare(client, 1, "r");
    for number in 0..21_000 {
        simulation.publish_to(client, 1, "q", number.to_string().as_bytes());
        if number % 100 == 0 {
            simulation.run();
        }
    }
    simulation.run();
    let before = browse(&mut simulation, "q", 0);
    assert_eq!(moved(&mut simulation, &json!({"count": 1, "to": {"queue": "r"}})), (1, 0));
    let asked = json!({"ids": ids(&before, &[0, 1, 2]), "to": {"queue": "r"}});
    assert_eq!(moved(&mut simulation, &asked), (2, 1));
}

#[test]
fn selected_messages_move_and_the_others_are_not_touched() {
    for is_durable in [false, true] {
        let mut simulation = Simulation::new(small_limits());
        filled(&mut simulation, 6, is_durable);
        let before = all_of(&mut simulation, "q");
        let asked = json!({"ids": ids(&before, &[4, 1, 2, 1]), "to": {"queue": "r"}});
        assert_eq!(moved(&mut simulation, &asked), (3, 0));
        assert_eq!(shown(&mut simulation, "q"), "0 3 5");
        let after = all_of(&mut simulation, "r");
        assert_eq!(payloads(&after), ["1", "2", "4"], "in the order of their queue");
        assert!(after.iter().all(|one| one["routing_key"] == "r" && one["redelivered"] == false));
        assert!(all_of(&mut simulation, "q").iter().all(|one| one["redelivered"] == false));
        assert_eq!(moved(&mut simulation, &asked), (0, 3), "they are gone");
        let both = json!({"ids": ids(&before, &[0, 4]), "to": {"queue": "r"}});
        assert_eq!(moved(&mut simulation, &both), (1, 1));
        let first = json!({"count": 100, "to": {"queue": "r"}});
        assert_eq!(moved(&mut simulation, &first), (2, 0));
        assert_eq!(
            (shown(&mut simulation, "q"), shown(&mut simulation, "r")),
            (String::new(), "1 2 4 0 3 5".into())
        );
    }
}

#[test]
fn a_copy_leaves_the_original_and_keeps_properties_and_headers() {
    let mut simulation = Simulation::new(small_limits());
    let client = filled(&mut simulation, 1, false);
    declare(&mut simulation, client, "elsewhere", false, &[]);
    let publish = Publish { key: "q", properties: RICH, ..Publish::default() };
    simulation.publish(client, 1, publish, b"rich");
    simulation.run();
    assert_eq!(shown(&mut simulation, "elsewhere"), "rich");
    let before = all_of(&mut simulation, "q");
    let asked = json!({"ids": ids(&before, &[1]), "to": {"queue": "r"}, "copy": true});
    assert_eq!(moved(&mut simulation, &asked), (1, 0));
    assert_eq!(all_of(&mut simulation, "q"), before, "the ids too");
    let copies = all_of(&mut simulation, "r");
    assert_eq!(copies[0]["properties"], before[1]["properties"]);
    assert_eq!(before[1]["properties"]["priority"], 3);
    assert_eq!(shown(&mut simulation, "elsewhere"), "rich", "a target queue alone gets the copy");
    let own = json!({"ids": ids(&before, &[0]), "to": {"queue": "q"}, "copy": true});
    assert_eq!(moved(&mut simulation, &own), (1, 0));
    assert_eq!(shown(&mut simulation, "q"), "0 rich 0");
    let own = json!({"ids": ids(&before, &[0]), "to": {"queue": "q"}});
    let (status, why) = refused(&mut simulation, &own);
    assert!(status == "400" && why.contains("in this queue already"), "{why}");
}

#[test]
fn an_id_names_no_later_message() {
    let mut simulation = Simulation::new(small_limits());
    let client = filled(&mut simulation, 3, false);
    let before = all_of(&mut simulation, "q");
    simulation.ask(client, 1, &Method::QueuePurge { queue: "q", no_wait: false });
    fill(&mut simulation, client, 10..13, PLAIN);
    let asked = json!({"ids": ids(&before, &[0, 1, 2]), "to": {"queue": "r"}});
    assert_eq!(moved(&mut simulation, &asked), (0, 3));
    assert_eq!(shown(&mut simulation, "q"), "10 11 12");
    // A message that a client holds is not ready. After it was requeued, it is.
    let before = all_of(&mut simulation, "q");
    simulation.consume(client, 1, "q", "c", false);
    simulation.run();
    let asked = json!({"ids": ids(&before, &[1]), "to": {"queue": "r"}});
    assert_eq!(moved(&mut simulation, &asked), (0, 1));
    simulation.hang_up(client);
    simulation.run();
    assert_eq!(moved(&mut simulation, &asked), (1, 0));
    let rest = all_of(&mut simulation, "q");
    assert_eq!(payloads(&rest), ["10", "12"]);
    assert!(rest.iter().all(|one| one["redelivered"] == true));
    // Another queue of that name, and another queue.
    let asked = json!({"ids": ids(&rest, &[0]), "to": {"queue": "r"}});
    let (_, other) = post(&mut simulation, &MOVE.replace("/q/", "/r/"), &asked);
    assert_eq!(other["reason"], "the messages are in this queue already");
    let asked_of_r = json!({"ids": ids(&rest, &[0]), "to": {"queue": "q"}});
    let (_, other) = post(&mut simulation, &MOVE.replace("/q/", "/r/"), &asked_of_r);
    assert_eq!((&other["moved"], &other["gone"]), (&0.into(), &1.into()));
    for (wrong, why) in [
        (json!({"ids": ["x"], "to": {"queue": "r"}}), "ids of browsed messages"),
        (json!({"ids": [1], "to": {"queue": "r"}}), "ids of browsed messages"),
        (json!({"ids": [], "count": 1, "to": {"queue": "r"}}), "either `ids`"),
        (json!({"to": {"queue": "r"}}), "`ids` must be"),
        (json!({"count": 101, "to": {"queue": "r"}}), "at most 100"),
        (json!({"count": 1}), "`to`"),
        (json!({"count": 1, "to": {}}), "either `queue` or `exchange`"),
        (json!({"count": 1, "to": {"queue": "r", "exchange": "x"}}), "either `queue` or `exchange`"),
        (json!({"count": 1, "to": {"queue": "r"}, "copy": 1}), "`copy`"),
    ] {
        let (status, said) = refused(&mut simulation, &wrong);
        assert!(status == "400" && said.contains(why), "{wrong}: {said}");
    }
}

#[test]
fn messages_move_to_an_exchange_with_their_own_key_or_another_one() {
    let mut simulation = Simulation::new(small_limits());
    filled(&mut simulation, 4, false);
    script(
        &mut simulation,
        GUEST,
        &[
            ("PUT /api/exchanges/%2F/x", r#"{"type":"direct"}"#, "201", ""),
            ("POST /api/bindings/%2F/e/x/q/r", r#"{"routing_key":"q"}"#, "201", ""),
            ("POST /api/bindings/%2F/e/x/q/q", r#"{"routing_key":"back"}"#, "201", ""),
        ],
    );
    let to = |key: Option<&str>| match key {
        Some(key) => json!({"count": 2, "to": {"exchange": "x", "routing_key": key}}),
        None => json!({"count": 2, "to": {"exchange": "x"}}),
    };
    let (status, why) = refused(&mut simulation, &to(Some("nowhere")));
    assert!(status == "400" && why.contains("routing key 'nowhere' reaches no queue"), "{why}");
    let (status, why) = refused(&mut simulation, &to(Some("back")));
    assert!(status == "400" && why.contains("the queue that it comes from"), "{why}");
    let (status, why) = refused(&mut simulation, &json!({"count": 2, "to": {"exchange": "none"}}));
    assert!(status == "404" && why.contains("no exchange 'none'"), "{why}");
    let (status, why) = refused(&mut simulation, &json!({"count": 2, "to": {"queue": "none"}}));
    assert!(status == "404" && why.contains("no queue 'none'"), "{why}");
    assert_eq!(shown(&mut simulation, "q"), "0 1 2 3");
    assert_eq!(moved(&mut simulation, &to(None)), (2, 0));
    assert_eq!((shown(&mut simulation, "q"), shown(&mut simulation, "r")), ("2 3".into(), "0 1".into()));
    let copies = browse(&mut simulation, "r", 0);
    assert_eq!((&copies[0]["exchange"], &copies[0]["routing_key"]), (&"x".into(), &"q".into()));
    let by_default = json!({"count": 1, "to": {"exchange": "amq.default", "routing_key": "r"}});
    assert_eq!(moved(&mut simulation, &by_default), (1, 0));
    assert_eq!(shown(&mut simulation, "r"), "0 1 2");
}

#[test]
fn a_move_needs_the_permissions_of_a_get_and_a_publish() {
    let mut simulation = Simulation::new(small_limits());
    filled(&mut simulation, 2, false);
    script(
        &mut simulation,
        GUEST,
        &[
            ("PUT /api/users/ann", r#"{"password":"a","tags":"management"}"#, "201", ""),
            ("POST /api/bindings/%2F/e/amq.topic/q/r", r##"{"routing_key":"#"}"##, "201", ""),
        ],
    );
    let to_queue = r#"{"count":1,"to":{"queue":"r"}}"#;
    let to_topic = r#"{"count":1,"to":{"exchange":"amq.topic","routing_key":"a.b"}}"#;
    script(&mut simulation, ANN, &[(MOVE, to_queue, "401", "User not authorised to access virtual host")]);
    for (write, read, topics, asked, wanted, part) in [
        (".*", "^r$", ".*", to_queue, "401", "access to queue 'q' in vhost '/' refused"),
        ("^r$", ".*", ".*", to_queue, "401", "access to exchange 'amq.default' in vhost '/' refused"),
        ("^r$", ".*", ".*", to_topic, "401", "access to exchange 'amq.topic' in vhost '/' refused"),
        (".*", ".*", "^c", to_topic, "401", "access to topic 'a.b' in exchange 'amq.topic'"),
        (".*", ".*", "^a", to_topic, "200", r#""moved":1"#),
        ("^(amq\\\\.default)?$", "^q$", "^a", to_queue, "200", r#""moved":1"#),
    ] {
        let rights = format!(r#"{{"configure":"","write":"{write}","read":"{read}"}}"#);
        let topics = format!(r#"{{"exchange":"amq.topic","write":"{topics}","read":".*"}}"#);
        let client = simulation.connect_management(Shape::WIDE, HOME);
        say(&mut simulation, client, GUEST, "PUT /api/permissions/%2F/ann", &rights);
        say(&mut simulation, client, GUEST, "PUT /api/topic-permissions/%2F/ann", &topics);
        script(&mut simulation, ANN, &[(MOVE, asked, wanted, part)]);
    }
    assert_eq!((shown(&mut simulation, "q"), shown(&mut simulation, "r")), (String::new(), "0 1".into()));
}

#[test]
fn nothing_is_moved_to_a_full_queue_or_while_publishers_are_blocked() {
    let mut simulation = Simulation::new(small_limits());
    filled(&mut simulation, 3, false);
    script(
        &mut simulation,
        GUEST,
        &[
            (
                "PUT /api/queues/%2F/f",
                r#"{"arguments":{"x-max-length":2,"x-overflow":"reject-publish"}}"#,
                "201",
                "",
            ),
            ("PUT /api/queues/%2F/d", r#"{"arguments":{"x-max-length":2}}"#, "201", ""),
            (
                "PUT /api/queues/%2F/b",
                r#"{"arguments":{"x-max-length-bytes":2,"x-overflow":"reject-publish"}}"#,
                "201",
                "",
            ),
            ("PUT /api/queues/%2F/t", r#"{"arguments":{"x-message-ttl":0}}"#, "201", ""),
        ],
    );
    for (queue, part) in [
        ("f", "over its length limit"),
        ("d", "over its length limit"),
        ("b", "over its length"),
        ("t", "expires at once"),
    ] {
        let (status, why) = refused(&mut simulation, &json!({"count": 3, "to": {"queue": queue}}));
        assert!(status == "400" && why.contains(part), "{why}");
        assert_eq!(simulation.counts_from_outside(queue), 0);
    }
    assert_eq!(shown(&mut simulation, "q"), "0 1 2");
    assert_eq!(moved(&mut simulation, &json!({"count": 2, "to": {"queue": "f"}, "copy": true})), (2, 0));
    let (_, why) = refused(&mut simulation, &json!({"count": 1, "to": {"queue": "f"}}));
    assert!(why.contains("queue 'f' would be over its length limit"), "{why}");
    // Messages fill the memory until their publishers wait.
    for queue in ["l1", "l2", "l3", "l4", "l5", "l6", "l7", "l8", "l9"] {
        let publisher = simulation.open(&[1]);
        declare(&mut simulation, publisher, queue, false, &[]);
        for _ in 0..2_000 {
            simulation.publish_to(publisher, 1, queue, b"x");
        }
        simulation.run();
    }
    let before = simulation.engine.messages().messages_used();
    let (status, why) = refused(&mut simulation, &json!({"count": 3, "to": {"queue": "r"}}));
    assert!(status == "503" && why.contains("publishers are blocked: memory"), "{why}");
    assert_eq!(simulation.engine.messages().messages_used(), before);
    assert_eq!(simulation.counts_from_outside("q"), 3);
}

fn few_in_memory() -> (Limits, Settings) {
    let limits =
        Limits { messages_max: 320, body_bytes_max: 1 << 20, assembly_bytes_max: 1 << 19, ..small_limits() };
    (
        limits,
        Settings { segment_bytes: 1 << 20, commit_bytes: 64 << 10, segments_max: 32, ..Settings::default() },
    )
}

/// Returns the payloads, in order, of all messages of a queue, which a new client takes.
fn drain(simulation: &mut Simulation, queue: &str) -> Vec<String> {
    let client = simulation.open(&[1]);
    simulation.consume(client, 1, queue, "c", true);
    simulation.pass_ms(2_000);
    let deliveries = simulation.deliveries(client);
    simulation.hang_up(client);
    simulation.run();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_string();
    deliveries.iter().map(|one| text(&one.body)).collect()
}

#[test]
fn messages_that_only_the_log_has_are_moved() {
    let (limits, settings) = few_in_memory();
    let mut simulation = Simulation::new(limits);
    simulation.keep_on_disk(settings);
    let client = filled(&mut simulation, 0, true);
    for number in 0..300 {
        let publish = Publish { key: "q", properties: PERSISTENT, ..Publish::default() };
        simulation.publish(client, 1, publish, format!("{number:<2500}").as_bytes());
        simulation.pass_ms(20);
    }
    let api = simulation.connect_management(Shape::WIDE, HOME);
    let row = body(&say(&mut simulation, api, GUEST, "GET /api/queues/%2F/q", ""));
    assert_eq!(row["messages_ready"], 300);
    assert!(row["messages_ready_ram"].as_u64().expect("a number") < 200, "{row}");
    let all = all_of(&mut simulation, "q");
    assert_eq!(all.len(), 300);
    let places = [0, 1, 60, 62, 63, 64, 99, 150, 151, 298];
    let asked = json!({"ids": ids(&all, &places), "to": {"queue": "r"}});
    assert_eq!(moved(&mut simulation, &asked), (10, 0));
    assert_eq!(moved(&mut simulation, &asked), (0, 10));
    let first = json!({"count": 5, "to": {"queue": "r"}});
    assert_eq!(moved(&mut simulation, &first), (5, 0));
    let wanted: Vec<String> = places.into_iter().chain(2..7).map(|number| number.to_string()).collect();
    assert_eq!(drain(&mut simulation, "r"), wanted);
    let left: Vec<String> =
        (7..300).filter(|number| !places.contains(number)).map(|number| number.to_string()).collect();
    assert_eq!(drain(&mut simulation, "q"), left);
    simulation.end(&["q", "r"]);
}

/// A move that a power cut interrupts.
#[derive(Clone, Copy, Debug)]
struct InterruptedMove {
    is_copy: bool,
    /// Number of messages to be moved, up to 3.
    count: usize,
    /// Bytes of the body of each message.
    size: usize,
    /// The call of the disk at which the power fails.
    cut: u64,
    /// Selects which unsynced sectors the cut keeps.
    variant: u64,
}

impl InterruptedMove {
    /// Returns the contents of `q` and `r` after the power cut, and whether the move was answered before.
    fn run(self) -> (Vec<String>, Vec<String>, bool) {
        let (limits, settings) = few_in_memory();
        let mut simulation = Simulation::new(limits.clone());
        let disk = simulation.keep_on_disk(settings.clone());
        let publisher = filled(&mut simulation, 0, true);
        for number in 0..6 {
            let publish = Publish { key: "q", properties: PERSISTENT, ..Publish::default() };
            let size = self.size;
            let body = format!("{number:<size$}");
            simulation.publish(publisher, 1, publish, body.as_bytes());
            simulation.pass_ms(200);
        }
        let all = all_of(&mut simulation, "q");
        let ids = ids(&all, &[1, 2, 4][..self.count]);
        let asked = json!({"ids": ids, "to": {"queue": "r"}, "copy": self.is_copy});
        let body = asked.to_string();
        let client = simulation.connect_management(Shape::WIDE, HOME);
        // Which sectors a cut keeps depends on the number of starts.
        (0..self.variant).for_each(|_| disk.start(Trouble::Never));
        disk.start(Trouble::Cut(self.cut));
        let length = body.len();
        let request =
            format!("{MOVE} HTTP/1.1\r\nHost: localhost\r\n{GUEST}Content-Length: {length}\r\n\r\n{body}");
        simulation.operator(client).write_up(request.as_bytes());
        simulation.run_until_power_fails(&disk, 3_000);
        let mut answer = Vec::new();
        simulation.operator(client).read_down(usize::MAX, &mut answer);
        drop(simulation);
        disk.power_cut();
        let mut simulation = Simulation::restarted(limits, &disk, settings);
        assert_eq!(moved(&mut simulation, &asked), (0, self.count as u64), "ids end with the process");
        (drain(&mut simulation, "q"), drain(&mut simulation, "r"), !answer.is_empty())
    }
}

#[test]
fn after_a_power_cut_each_message_is_in_one_queue() {
    for (is_copy, count, size) in [(false, 1, 1), (true, 3, 1), (false, 3, 30_000), (true, 3, 30_000)] {
        let (mut answered_count, mut before_count) = (0, 0);
        let cuts = [0, 1, 2, 3, 5, 8, 12, 24].into_iter();
        for (cut, variant) in cuts.flat_map(|cut| (0..3).map(move |variant| (cut, variant))) {
            let interrupted = InterruptedMove { is_copy, count, size, cut, variant };
            let (q, r, is_answered) = interrupted.run();
            let chosen = &["1", "2", "4"][..count];
            let is_done = !r.is_empty();
            assert!(is_done || !is_answered, "an answered move is lost: {interrupted:?}");
            assert!(!is_done || r == chosen, "{r:?}: {interrupted:?}");
            let is_there = |one: &&str| is_copy || !is_done || !chosen.contains(one);
            let wanted: Vec<&str> = ["0", "1", "2", "3", "4", "5"].into_iter().filter(is_there).collect();
            assert_eq!(q, wanted, "moved: {is_done}, {interrupted:?}");
            answered_count += usize::from(is_answered);
            before_count += usize::from(!is_done);
        }
        assert!(answered_count > 0 && before_count > 0, "{answered_count} {before_count}");
    }
}

/// After restarts only the log has the messages. Every second one was acknowledged, so that each run of the log is one
/// message, and new messages are in memory.
#[test]
fn a_page_of_messages_is_full_over_many_runs_of_the_log() {
    let (limits, settings) = few_in_memory();
    let mut simulation = Simulation::new(limits.clone());
    let disk = simulation.keep_on_disk(settings.clone());
    let client = filled(&mut simulation, 240, true);
    simulation.consume(client, 1, "q", "c", false);
    simulation.pass_ms(2_000);
    assert_eq!(simulation.deliveries(client).len(), 240);
    for delivery_tag in (2..=240).step_by(2) {
        simulation.send(client, 1, &Method::BasicAck { delivery_tag, multiple: false });
    }
    simulation.pass_ms(10_000);
    let mut old: Vec<String> = (0..240).step_by(2).map(|number| number.to_string()).collect();
    for start in 0..2 {
        drop(simulation);
        simulation = Simulation::restarted(limits.clone(), &disk, settings.clone());
        let client = simulation.open(&[1]);
        let added = 1_000 + start..1_001 + start;
        old.extend(added.clone().map(|number| number.to_string()));
        fill(&mut simulation, client, added, PERSISTENT);
        simulation.pass_ms(2_000);
        for (position, count) in [(0, 20), (7, 20), (30, 50), (90, 50)] {
            let browser = simulation.connect_management(Shape::WIDE, HOME);
            let line = format!(
                "GET /api/leveret/queues/%2F/q/messages?count={count}&position={position}&truncate=20"
            );
            let answer = body(&say(&mut simulation, browser, GUEST, &line, ""));
            let messages = answer["messages"].as_array().expect("messages");
            let end = old.len().min(position + count);
            assert_eq!(payloads(messages), old[position..end], "start {start}, position {position}");
            assert_eq!(answer["ready"], old.len());
        }
    }
}

/// Moves random messages of a queue with priorities, of which only the log has some and clients requeue others.
/// Compares the queues with lists.
#[test]
fn random_moves_keep_the_order_of_all_other_messages() {
    for_seeds("random_moves", 0..6, |seed| {
        let mut random = Random::new(seed);
        let (limits, settings) = few_in_memory();
        let mut simulation = Simulation::new(limits);
        simulation.keep_on_disk(settings);
        let client = simulation.open(&[1]);
        let priorities: &[u8] = if random.once_in(2) { b"\x0ex-max-priorityI\x00\x00\x00\x02" } else { b"" };
        declare(&mut simulation, client, "q", true, priorities);
        declare(&mut simulation, client, "r", true, &[]);
        let mut published = 0;
        for _ in 0..12 {
            for _ in 0..random.below(40) {
                let priority = random.below(3) as u8;
                let properties =
                    if random.once_in(4) { [0x08, 0, priority, 0] } else { [0x18, 0, 2, priority] };
                let properties = if properties[0] == 8 { &properties[..3] } else { &properties[..] };
                let publish = Publish { key: "q", properties, ..Publish::default() };
                simulation.publish(client, 1, publish, format!("{published:<2000}").as_bytes());
                simulation.pass_ms(20);
                published += 1;
            }
            if random.once_in(3) {
                // A client takes some messages, which are requeued.
                let taker = simulation.open(&[1]);
                let prefetch_count = 1 + random.below(20) as u16;
                simulation.ask(
                    taker,
                    1,
                    &Method::BasicQos { prefetch_size: 0, prefetch_count, global: false },
                );
                simulation.consume(taker, 1, "q", "c", false);
                simulation.pass_ms(200);
                simulation.hang_up(taker);
                simulation.pass_ms(200);
            }
            let before = all_of(&mut simulation, "q");
            let target = all_of(&mut simulation, "r");
            let is_chosen: Vec<bool> = before.iter().map(|_| random.once_in(5)).collect();
            let places = (0..before.len()).filter(|place| is_chosen[*place]).take(100);
            let places: Vec<usize> = places.collect();
            let asked = json!({"ids": ids(&before, &places), "to": {"queue": "r"}});
            let (status, answer) = post(&mut simulation, MOVE, &asked);
            if status == "503" {
                assert_eq!((all_of(&mut simulation, "q"), all_of(&mut simulation, "r")), (before, target));
                drain(&mut simulation, "r");
                continue;
            }
            assert_eq!((&answer["moved"], &answer["gone"]), (&places.len().into(), &0.into()), "{answer}");
            let of = |messages: &[Value]| {
                let shown = |one: &Value| (one["payload"].to_string(), one["redelivered"].clone());
                messages.iter().map(shown).collect::<Vec<_>>()
            };
            let left: Vec<Value> =
                (0..before.len()).filter(|at| !places.contains(at)).map(|at| before[at].clone()).collect();
            assert_eq!(of(&all_of(&mut simulation, "q")), of(&left));
            let mut wanted = target;
            wanted.extend(places.iter().map(|at| before[*at].clone()));
            let wanted: Vec<_> = of(&wanted).into_iter().map(|one| one.0).collect();
            let found: Vec<_> = of(&all_of(&mut simulation, "r")).into_iter().map(|one| one.0).collect();
            assert_eq!(found, wanted);
        }
        let left: Vec<String> = all_of(&mut simulation, "q")
            .iter()
            .map(|one| one["payload"].as_str().expect("text").trim_end().to_string())
            .collect();
        assert_eq!(drain(&mut simulation, "q"), left);
        drain(&mut simulation, "r");
        simulation.end(&["q", "r"]);
    });
}

/// Returns the names of queues and of exchanges that a message would reach, sorted.
fn route(simulation: &mut Simulation, exchange: &str, asked: &Value) -> (String, String) {
    let line = format!("POST /api/leveret/exchanges/%2F/{exchange}/route");
    let (status, answer) = post(simulation, &line, asked);
    assert_eq!(status, "200", "{answer}");
    let names = |list: &str| {
        let mut names: Vec<&str> = answer[list]
            .as_array()
            .expect("a list")
            .iter()
            .map(|name| name.as_str().expect("a name"))
            .collect();
        names.sort_unstable();
        names.join(" ")
    };
    assert_eq!(answer["queue_count"].as_u64(), answer["queues"].as_array().map(|names| names.len() as u64));
    (names("queues"), names("exchanges"))
}

#[test]
fn a_shown_route_is_that_of_a_publish() {
    let mut simulation = Simulation::new(small_limits());
    let bindings = [
        ("PUT /api/queues/%2F/a", "{}"),
        ("PUT /api/queues/%2F/b", "{}"),
        ("PUT /api/queues/%2F/c", "{}"),
        ("PUT /api/exchanges/%2F/d", r#"{"type":"direct"}"#),
        ("PUT /api/exchanges/%2F/else", r#"{"type":"fanout"}"#),
        ("PUT /api/exchanges/%2F/t", r#"{"type":"topic","arguments":{"alternate-exchange":"else"}}"#),
        ("PUT /api/exchanges/%2F/h", r#"{"type":"headers"}"#),
        (
            "PUT /api/exchanges/%2F/late",
            r#"{"type":"x-delayed-message","arguments":{"x-delayed-type":"direct"}}"#,
        ),
        ("POST /api/bindings/%2F/e/d/q/a", r#"{"routing_key":"k"}"#),
        ("POST /api/bindings/%2F/e/d/e/t", r#"{"routing_key":"x.y"}"#),
        ("POST /api/bindings/%2F/e/t/q/b", r#"{"routing_key":"x.*"}"#),
        ("POST /api/bindings/%2F/e/t/q/c", r##"{"routing_key":"x.#"}"##),
        ("POST /api/bindings/%2F/e/else/q/c", "{}"),
        ("POST /api/bindings/%2F/e/h/q/a", r#"{"arguments":{"x-match":"all","site":"north","line":3}}"#),
        ("POST /api/bindings/%2F/e/late/q/b", r#"{"routing_key":"k"}"#),
    ];
    let bindings: Vec<_> = bindings.iter().map(|(line, body)| (*line, *body, "201", "")).collect();
    script(&mut simulation, GUEST, &bindings);
    let before = simulation.engine.broker().counters();
    for (exchange, asked, queues, exchanges) in [
        ("amq.default", json!({"routing_key": "b"}), "b", ""),
        ("amq.default", json!({"routing_key": "none"}), "", ""),
        ("amq.default", json!({"routing_key": "b", "headers": {"CC": ["a", "c"]}}), "a b c", ""),
        ("d", json!({"routing_key": "k"}), "a", "d"),
        ("d", json!({"routing_key": "other"}), "", "d"),
        ("d", json!({"routing_key": "x.y"}), "b c", "d t"),
        ("t", json!({"routing_key": "x"}), "c", "t"),
        ("t", json!({"routing_key": "nothing"}), "c", "else t"),
        ("t", json!({}), "c", "else t"),
        ("h", json!({"headers": {"site": "north", "line": 3, "more": true}}), "a", "h"),
        ("h", json!({"headers": {"site": "north"}}), "", "h"),
        ("late", json!({"routing_key": "k", "headers": {"x-delay": 5_000}}), "b", "late"),
    ] {
        assert_eq!(
            route(&mut simulation, exchange, &asked),
            (queues.into(), exchanges.into()),
            "{exchange} {asked}"
        );
    }
    assert_eq!(simulation.engine.broker().counters(), before);
    assert_eq!(["a", "b", "c"].map(|queue| simulation.counts_from_outside(queue)), [0; 3]);
    let long = "k".repeat(256);
    script(
        &mut simulation,
        GUEST,
        &[
            ("POST /api/leveret/exchanges/%2F/none/route", "{}", "404", "no exchange 'none' in vhost '/'"),
            ("POST /api/leveret/exchanges/none/d/route", "{}", "404", ""),
            ("POST /api/leveret/exchanges/%2F/d/route", r#"{"headers":7}"#, "400", "must be an object"),
            (
                "POST /api/leveret/exchanges/%2F/d/route",
                &format!(r#"{{"routing_key":"{long}"}}"#),
                "400",
                "255",
            ),
        ],
    );
}

#[test]
fn the_answer_about_a_route_is_bounded() {
    let mut simulation = Simulation::new(small_limits());
    let client = simulation.open(&[1]);
    for number in 0..300 {
        let name = format!("{number:n<200}");
        declare(&mut simulation, client, &name, false, &[]);
        let (exchange, routing_key, arguments) = ("amq.fanout", "", Table::trusted(&[]));
        let bind = Method::QueueBind { queue: &name, exchange, routing_key, no_wait: false, arguments };
        simulation.ask(client, 1, &bind);
    }
    let (_, answer) = post(&mut simulation, "POST /api/leveret/exchanges/%2F/amq.fanout/route", &json!({}));
    let shown = answer["queues"].as_array().map_or(0, Vec::len);
    assert!(shown > 40 && shown < 100, "{shown}");
    assert_eq!((&answer["queue_count"], &answer["exchange_count"]), (&300.into(), &1.into()));
}
