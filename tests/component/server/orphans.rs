//! Queues whose definitions were lost in every copy. They are rebuilt where their name is still recorded.
//! Otherwise their messages wait to be adopted. No message is lost.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use leveret_amqp::{Method, Table};
use leveret_test_support::built_program::TempDir;
use leveret_test_support::simulated_server::{method_frame, qos};
use leveret_test_support::socket_client::{Broker, Link, publish};

/// `delivery_mode` 2.
const PERSISTENT: &[u8] = &[0x10, 0x00, 2];
/// `x-max-length` 10000, as the bytes of a table.
const LENGTH: &[u8] = b"\x0cx-max-lengthI\x00\x00\x27\x10";
const CONFIG: &str =
    "frame_max = \"16KiB\"\n[limits]\nsegment_bytes = \"512KiB\"\ncommit_bytes_max = \"160KiB\"\n";

/// Number of messages of 12 KB that fill more than two segments.
const OTHERS: u32 = 100;

fn start(home: &TempDir) -> Broker {
    start_with(home, CONFIG)
}

fn start_with(home: &TempDir, config: &str) -> Broker {
    let file = home.path().join("leveret.toml");
    fs::write(&file, config).expect("the folder can be written");
    let store = home.path().join("store");
    let texts = [&file, &store].map(|path| path.to_str().expect("UTF-8"));
    Broker::start(&["--config", texts[0], "--data-dir", texts[1]])
}

/// Runs `leveret ctl`. Returns whether it succeeded, and its output.
fn ctl(home: &TempDir, words: &[&str]) -> (bool, String) {
    let store = home.path().join("store");
    let mut command = Command::new(env!("CARGO_BIN_EXE_leveret"));
    let done = command.args(["ctl", "-q", "--data-dir"]).arg(store).args(words).output().expect("it runs");
    (done.status.success(), String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned())
}

fn inspect(home: &TempDir) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_leveret"));
    let done = command.arg("inspect").arg(home.path().join("store")).output().expect("it runs");
    (done.status.code(), String::from_utf8_lossy(&done.stdout).into_owned())
}

fn queue<'a>(name: &'a str, passive: bool, arguments: &'a [u8]) -> Method<'a> {
    Method::QueueDeclare {
        queue: name,
        passive,
        durable: true,
        exclusive: false,
        auto_delete: false,
        no_wait: false,
        arguments: Table::trusted(arguments),
    }
}

fn count(link: &mut Link, method: &Method<'_>) -> u32 {
    match link.ask(1, method).method() {
        Method::QueueDeclareOk { message_count, .. } => message_count,
        other => panic!("{other:?}"),
    }
}

/// Returns the error that a channel is closed with.
fn refusal(link: &mut Link, method: &Method<'_>) -> String {
    link.send(1, method);
    match link.next().method() {
        Method::ChannelClose { reply_code, reply_text, .. } => format!("{reply_code} {reply_text}"),
        other => panic!("{method:?}: {other:?}"),
    }
}

/// Fills a queue with a length limit with `messages` messages of 12 KB. It may be bound to `amq.direct` by
/// `key`.
fn fill(home: &TempDir, messages: u32, is_bound: bool) {
    let broker = start(home);
    let mut link = Link::open(broker.address, &[1]);
    fill_broker(&mut link, messages, is_bound);
    drop(link);
    broker.stop();
}

fn fill_broker(link: &mut Link, messages: u32, is_bound: bool) {
    link.ask(1, &queue("q1", false, LENGTH));
    let (exchange, routing_key) = ("amq.direct", "key");
    let (no_wait, arguments) = (false, Table::EMPTY);
    if is_bound {
        link.ask(1, &Method::QueueBind { queue: "q1", exchange, routing_key, no_wait, arguments });
    }
    link.ask(1, &queue("other", false, b""));
    link.ask(1, &Method::ConfirmSelect { no_wait: false });
    // The definition of the queue is copied along with these messages, and may be lost with them.
    for number in 0..OTHERS {
        link.write(&publish("", "other", false, PERSISTENT, &body(number)));
    }
    for number in 0..messages {
        link.write(&publish("", "q1", false, PERSISTENT, &body(number)));
    }
    let mut confirmed = 0;
    while confirmed < u64::from(OTHERS + messages) {
        if let Method::BasicAck { delivery_tag, multiple } = link.next().method() {
            confirmed = if multiple { delivery_tag } else { confirmed.max(delivery_tag) };
        }
    }
}

fn body(number: u32) -> Vec<u8> {
    let mut body = vec![b'.'; 12_000];
    body[..4].copy_from_slice(&number.to_be_bytes());
    body
}

/// Consumes everything from the queue, and checks that it is what was published.
#[track_caller]
fn take_all(link: &mut Link, name: &str, messages: u32) {
    for number in 0..messages {
        let get = Method::BasicGet { queue: name, no_ack: true };
        link.send(1, &get);
        let (_, found) = link.content();
        assert_eq!(found[..4], number.to_be_bytes(), "in order");
    }
    let get = Method::BasicGet { queue: name, no_ack: true };
    assert!(matches!(link.ask(1, &get).method(), Method::BasicGetEmpty { .. }), "nothing twice");
}

/// The damaged copies of definitions.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Places {
    /// The copies in commits.
    Commits,
    /// The copies in commits, and all others in the same segments.
    Segments,
}

/// Flips one bit in each of these copies of a queue's definition. Returns the number of segments, and of
/// those with a copy.
fn damage(home: &TempDir, name: &str, places: Places) -> (usize, usize) {
    let key = [b"\x02\x01/", &[name.len() as u8][..], name.as_bytes()].concat();
    let (mut segments, mut damaged) = (0, 0);
    for file in segment_files(&home.path().join("store")) {
        let mut bytes = fs::read(&file).expect("readable");
        let footer = footer_of(&bytes);
        let found: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(&key)).collect();
        segments += usize::from(bytes.iter().any(|byte| *byte != 0));
        if found.iter().all(|at| *at >= footer) {
            continue;
        }
        damaged += 1;
        let is_hit = |at: &&usize| places == Places::Segments || **at < footer;
        found.iter().filter(is_hit).for_each(|at| bytes[*at + 3] ^= 0x80);
        fs::write(&file, bytes).expect("writable");
    }
    (segments, damaged)
}

fn segment_files(store: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(store).expect("a store").map(|entry| entry.expect("an entry").path());
    files.filter(|file| file.extension().is_some_and(|extension| extension == "seg")).collect()
}

/// Returns the start of the footer, or the end of a file without one.
fn footer_of(bytes: &[u8]) -> usize {
    let Some(trailer) = bytes.len().checked_sub(44).map(|at| &bytes[at..]) else { return bytes.len() };
    let number = |at: usize| u32::from_le_bytes(trailer[at..at + 4].try_into().expect("four")) as usize;
    if trailer[..4] == *b"LVF3" {
        bytes.len() - (number(8) + number(12) + 44).next_multiple_of(4096)
    } else {
        bytes.len()
    }
}

#[test]
fn a_definition_is_read_from_a_footer_where_no_block_of_it_is_left() {
    let home = TempDir::new("orphans");
    fill(&home, 300, true);
    let (segments, damaged) = damage(&home, "q1", Places::Commits);
    assert!(segments > 5 && (1..4).contains(&damaged), "{damaged} of {segments}");
    let broker = start(&home);
    assert!(!ctl(&home, &["list_alarms"]).1.contains("rebuilt"), "it is as it was declared");
    let mut link = Link::open(broker.address, &[1]);
    assert_eq!(count(&mut link, &queue("q1", false, LENGTH)), 300);
    take_all(&mut link, "q1", 300);
    drop(link);
    broker.stop();
    let broker = start(&home);
    let mut link = Link::open(broker.address, &[1]);
    assert_eq!(count(&mut link, &queue("q1", false, LENGTH)), 0, "it was written again, as it was declared");
    drop(link);
    broker.stop();
}

#[test]
fn a_queue_whose_definition_is_lost_is_rebuilt_by_the_names_in_footers() {
    let home = TempDir::new("orphans");
    fill(&home, 300, false);
    damage(&home, "q1", Places::Segments);
    let broker = start(&home);
    let (_, alarms) = ctl(&home, &["list_alarms"]);
    assert!(alarms.contains("rebuilt: ") && !alarms.contains("orphans: "), "{alarms}");
    let mut link = Link::open(broker.address, &[1]);
    take_all(&mut link, "q1", 300);
    drop(link);
    broker.stop();
}

#[test]
fn a_queue_whose_definition_is_lost_is_rebuilt_with_its_bindings() {
    let home = TempDir::new("orphans");
    fill(&home, 300, true);
    let (segments, damaged) = damage(&home, "q1", Places::Segments);
    assert!(segments > 5 && (1..4).contains(&damaged), "{damaged} of {segments}");
    let broker = start(&home);
    let (_, alarms) = ctl(&home, &["list_alarms"]);
    assert!(alarms.contains("rebuilt: ") && !alarms.contains("orphans: "), "{alarms}");
    let mut link = Link::open(broker.address, &[1]);
    assert_eq!(count(&mut link, &queue("q1", true, b"")), 300);
    drop(link);
    broker.stop();

    // It stays so after a restart. Then it gets the arguments of its declaration.
    let broker = start(&home);
    let mut link = Link::open(broker.address, &[1]);
    assert!(ctl(&home, &["list_alarms"]).1.contains("rebuilt: "));
    assert_eq!(count(&mut link, &queue("q1", false, LENGTH)), 300);
    assert!(!ctl(&home, &["list_alarms"]).1.contains("rebuilt: "));
    drop(link);
    broker.stop();
    let broker = start(&home);
    let mut link = Link::open(broker.address, &[1]);
    let said = refusal(&mut link, &queue("q1", false, b""));
    assert!(said.starts_with("406 ") && said.contains("x-max-length"), "{said}");
    link.send(1, &Method::ChannelCloseOk {});
    link.ask(1, &Method::ChannelOpen {});
    // Its binding refers to the incarnation that its messages have.
    link.write(&publish("amq.direct", "key", false, PERSISTENT, &body(300)));
    take_all(&mut link, "q1", 301);
    drop(link);
    broker.stop();
}

/// Uses one segment, so that neither a footer nor a binding names the queue.
fn fill_nameless(home: &TempDir) {
    let broker = start(home);
    let mut link = Link::open(broker.address, &[1]);
    link.ask(1, &queue("q1", false, b""));
    link.ask(1, &Method::ConfirmSelect { no_wait: false });
    for number in 0..8 {
        link.write(&publish("", "q1", false, PERSISTENT, &body(number)));
        while !matches!(link.next().method(), Method::BasicAck { .. }) {}
    }
    drop(link);
    broker.stop();
    assert_eq!(damage(home, "q1", Places::Segments), (1, 1));
}

fn orphan(home: &TempDir) -> String {
    let (done, listed) =
        ctl(home, &["list_orphans", "incarnation", "messages", "name", "--no-table-headers"]);
    let words: Vec<&str> = listed.split_whitespace().collect();
    assert!(done && words.len() == 2 && words[1] == "8", "{listed}");
    words[0].into()
}

#[test]
fn messages_of_a_queue_without_a_name_wait_until_they_are_given_one() {
    let home = TempDir::new("orphans");
    fill_nameless(&home);
    let (code, told) = inspect(&home);
    assert!(code == Some(2) && told.contains("orphan     "), "{told}");
    let broker = start(&home);
    assert!(ctl(&home, &["list_alarms"]).1.contains("orphans: "));
    let mut link = Link::open(broker.address, &[1]);
    // The new queue has the same name, but the broker cannot know that.
    assert_eq!(count(&mut link, &queue("q1", false, b"")), 0);
    let incarnation = orphan(&home);
    for (words, why) in [
        (&["adopt_orphan", &incarnation, "q1"][..], "exists already"),
        (&["adopt_orphan", &incarnation, "amq.q"], "use another name"),
        (&["adopt_orphan", "-p", "nowhere", &incarnation, "q2"], "no virtual host 'nowhere'"),
        (&["adopt_orphan", "77", "q2"], "no orphan 77"),
        (&["adopt_orphan", "x", "q2"], "not an incarnation"),
        (&["delete_orphan", "77"], "no orphan 77"),
    ] {
        let (done, said) = ctl(&home, words);
        assert!(!done && said.contains(why), "{words:?}: {said}");
    }
    drop(link);
    broker.stop();

    // The orphan stays over restarts.
    let broker = start(&home);
    assert_eq!(orphan(&home), incarnation);
    let (done, said) = ctl(&home, &["adopt_orphan", &incarnation, "q2"]);
    assert!(done && said.contains("with 8 ready messages"), "{said}");
    assert_eq!(ctl(&home, &["list_orphans", "--no-table-headers"]).1.trim(), "");
    assert!(!ctl(&home, &["list_alarms"]).1.contains("orphans: "));
    let mut link = Link::open(broker.address, &[1]);
    assert_eq!(count(&mut link, &queue("q2", false, b"")), 8);
    link.ask(1, &Method::ConfirmSelect { no_wait: false });
    link.write(&publish("", "q2", false, PERSISTENT, &body(8)));
    assert!(matches!(link.next().method(), Method::BasicAck { .. }));
    drop(link);
    broker.stop();

    let broker = start(&home);
    let mut link = Link::open(broker.address, &[1]);
    take_all(&mut link, "q2", 9);
    assert_eq!(count(&mut link, &queue("q1", false, b"")), 0);
    drop(link);
    broker.stop();
}

#[test]
fn a_deleted_orphan_is_gone() {
    let home = TempDir::new("orphans");
    fill_nameless(&home);
    let broker = start(&home);
    let incarnation = orphan(&home);
    let (done, said) = ctl(&home, &["delete_orphan", &incarnation]);
    assert!(done && said.contains("with 8 messages"), "{said}");
    broker.stop();
    let broker = start(&home);
    assert_eq!(ctl(&home, &["list_orphans", "--no-table-headers"]).1.trim(), "");
    broker.stop();
}

/// All blocks are intact, and yet there are messages that cannot be reached.
#[test]
fn inspect_names_orphans_until_they_are_adopted() {
    let home = TempDir::new("orphans");
    fill_nameless(&home);
    let (code, told) = inspect(&home);
    assert!(code == Some(2) && told.contains("8 messages of a queue without a definition: ?"), "{told}");
    let broker = start(&home);
    let incarnation = orphan(&home);
    assert!(ctl(&home, &["adopt_orphan", &incarnation, "q1"]).0);
    broker.stop();
    // The damaged blocks still exist, and hide no message any more.
    let (code, told) = inspect(&home);
    assert!(code == Some(2) && !told.contains("\norphan ") && told.contains("known to be lost: 0"), "{told}");
}

/// The name is known, but the start had no capacity for the queue.
///
/// A client that declares the name later gets the messages, also after a restart. A client that deletes it
/// deletes them.
#[test]
fn declaring_the_name_of_an_orphan_adopts_it() {
    for adopts in [true, false] {
        let home = TempDir::new("orphans");
        let broker = start(&home);
        let mut link = Link::open(broker.address, &[1]);
        let fillers = (0..4_000).map(|number| format!("filler {number}"));
        for (number, name) in fillers.enumerate() {
            let mut declare = queue(&name, false, b"");
            if let Method::QueueDeclare { no_wait, .. } = &mut declare {
                *no_wait = true;
            }
            link.write(&method_frame(1, &declare));
            if number % 1_000 == 999 {
                // A connection may declare fifteen times what it leaves to others.
                link.ask(1, &qos(1));
                link = Link::open(broker.address, &[1]);
            }
        }
        fill_broker(&mut link, 300, false);
        drop(link);
        broker.stop();
        damage(&home, "q1", Places::Segments);
        let broker = start_with(&home, &format!("memory_limit = \"16MB\"\n{CONFIG}"));
        let (_, listed) = ctl(&home, &["list_orphans", "messages", "vhost", "name", "--no-table-headers"]);
        assert_eq!(listed.split_whitespace().collect::<Vec<_>>(), ["300", "/", "q1"], "{listed}");
        let mut link = Link::open(broker.address, &[1]);
        let delete = |queue| Method::QueueDelete { queue, if_unused: false, if_empty: false, no_wait: false };
        // The start has used up all memory. Commands need the part that is kept for them first.
        for number in 0..400 {
            let filler = format!("filler {number}");
            let method =
                Method::QueueDelete { queue: &filler, if_unused: false, if_empty: false, no_wait: false };
            link.ask(1, &method);
        }
        if adopts {
            assert_eq!(count(&mut link, &queue("q1", false, LENGTH)), 300);
        } else {
            link.ask(1, &delete("q1"));
        }
        assert_eq!(ctl(&home, &["list_orphans", "--no-table-headers"]).1.trim(), "");
        drop(link);
        broker.stop();

        let broker = start(&home);
        assert_eq!(ctl(&home, &["list_orphans", "--no-table-headers"]).1.trim(), "");
        let mut link = Link::open(broker.address, &[1]);
        let declared = count(&mut link, &queue("q1", false, LENGTH));
        assert_eq!(declared, if adopts { 300 } else { 0 });
        take_all(&mut link, "q1", declared);
        drop(link);
        broker.stop();
    }
}
