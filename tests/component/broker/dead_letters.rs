//! Dead letters and length limits: the target and the headers of a dead letter.
//!
//! No dead letter may be lost, whatever capacity is missing and whenever the power fails.

use leveret_amqp::props::Properties;
use leveret_amqp::{Full, Table, TableWriter, Value, Writer};
use leveret_broker::{OpenedLog, restore};
use leveret_core::command::{
    ChannelCommand, DefinitionCommand, DeliveryKind, GetAnswer, GetCommand, Outbox, PublishAnswer,
    PublishCommand, Settlement,
};
use leveret_core::error::Fault;
use leveret_core::limits::Limits;
use leveret_core::mem::{MessageFlags, MessageId, Share};
use leveret_core::password::PasswordHash;
use leveret_core::time::Now;
use leveret_queues::{PageInOutcome, ReadMessage};
use leveret_storage::{Body, CommitWriter, Identity, Log, Range, Settings};

use crate::expiry::ttl;
use crate::support::{At, TestBroker};
use leveret_test_support::simulated_disk::{Mutant, SimDisk, Trouble};

/// Returns the entries of a table.
pub(crate) fn table(fill: impl FnOnce(&mut TableWriter<'_, '_>) -> Result<(), Full>) -> Vec<u8> {
    let mut bytes = [0; 1024];
    let mut writer = Writer::new(&mut bytes);
    writer.table(fill).expect("it fits");
    writer.written()[4..].to_vec()
}

pub(crate) fn declare(node: &mut TestBroker, at: At, queue: &str, durable: bool, arguments: &[u8]) {
    let (passive, exclusive, auto_delete) = (false, false, false);
    node.done(
        at,
        DefinitionCommand::QueueDeclare { queue, passive, durable, exclusive, auto_delete, arguments },
    );
}

/// Returns arguments for a queue that dead-letters to `queue` through the default exchange.
pub(crate) fn to(queue: &str) -> Vec<u8> {
    with(queue, |_| Ok(()))
}

pub(crate) fn with(queue: &str, more: impl FnOnce(&mut TableWriter<'_, '_>) -> Result<(), Full>) -> Vec<u8> {
    table(|t| {
        t.text("x-dead-letter-exchange", "")?;
        t.text("x-dead-letter-routing-key", queue)?;
        more(t)
    })
}

fn message(node: &mut TestBroker, key: &str, properties: &[u8], body: &[u8]) -> MessageId {
    message_to(node, "", key, properties, body)
}

pub(crate) fn message_to(
    node: &mut TestBroker,
    exchange: &str,
    key: &str,
    properties: &[u8],
    body: &[u8],
) -> MessageId {
    let flags = if Properties::parse(properties).is_ok_and(|properties| properties.is_persistent()) {
        MessageFlags::PERSISTENT
    } else {
        MessageFlags::NONE
    };
    let flags = if properties.len() > 3 { flags.with(MessageFlags::PARSE_PROPERTIES) } else { flags };
    let id = node.messages.begin(exchange, key.as_bytes(), Share::Ordinary).unwrap();
    let len = body.len() as u32;
    node.messages.reserve_content(id, properties, flags, len, Share::Ordinary).unwrap();
    node.messages.append_body(id, body);
    node.messages.finish(id);
    id
}

pub(crate) const PERSISTENT: &[u8] = &[0x10, 0, 2];

pub(crate) fn publish(
    node: &mut TestBroker,
    at: At,
    key: &str,
    properties: &[u8],
    body: &str,
) -> Result<PublishAnswer, Fault> {
    let message = message(node, key, properties, body.as_bytes());
    node.ask(at, PublishCommand::Publish { message, mandatory: false })
}

/// The result of a get: tag, body and properties.
pub(crate) struct Got {
    pub(crate) tag: u64,
    pub(crate) body: String,
    /// Number of messages left in the queue.
    pub(crate) left: u32,
    exchange: String,
    key: Vec<u8>,
    properties: Vec<u8>,
}

impl Got {
    pub(crate) fn has_headers(&self) -> bool {
        Properties::trusted(&self.properties).headers().is_some()
    }

    pub(crate) fn headers(&self) -> Table<'_> {
        Properties::trusted(&self.properties).headers().expect("it has headers")
    }

    /// Returns queue, reason and count of each death, the most recent first.
    pub(crate) fn deaths(&self) -> Vec<(String, String, i64)> {
        let text = |death: Table<'_>, name| {
            death.get(name).and_then(|value| value.as_str()).unwrap_or_default().to_owned()
        };
        let deaths = self.headers().get("x-death").and_then(|value| value.as_array()).expect("x-death");
        let deaths = deaths.iter().filter_map(|value| value.as_table());
        deaths
            .map(|death| {
                let count = death.get("count").and_then(|value| value.as_integer()).unwrap_or_default();
                (text(death, "queue"), text(death, "reason"), count)
            })
            .collect()
    }
}

pub(crate) fn get(node: &mut TestBroker, at: At, queue: &str) -> Option<Got> {
    match node.ask(at, GetCommand { queue, no_ack: false }) {
        Ok(GetAnswer::Empty) => return None,
        Ok(GetAnswer::Queued) => {}
        other => panic!("basic.get answered {other:?}"),
    }
    Some(received(node, at))
}

/// Returns the message of a get in the outbox.
fn received(node: &mut TestBroker, at: At) -> Got {
    let outbox = node.broker.outbox(at.connection);
    let delivery = outbox.peek().expect("it is in the outbox");
    let DeliveryKind::GetOk { message_count: left } = delivery.kind else { panic!("it answers a get") };
    let (tag, id) = (delivery.delivery_tag, delivery.message);
    let mut scratch = vec![0; 1 << 17];
    let properties = node.messages.properties(id, &mut scratch).to_vec();
    let mut body = vec![0; node.messages.body_len(id) as usize];
    node.messages.read(id, &mut node.messages.body_cursor(id, 0), &mut body);
    let body = String::from_utf8(body).unwrap();
    let (exchange, key) = (node.messages.exchange(id).to_owned(), node.messages.routing_key(id).to_vec());
    node.broker.sent(&mut context!(node), at.connection, 1);
    Got { tag, body, left, exchange, key, properties }
}

#[track_caller]
pub(crate) fn got(node: &mut TestBroker, at: At, queue: &str) -> Got {
    get(node, at, queue).expect("there is a message")
}

pub(crate) fn empty(node: &mut TestBroker, at: At, queue: &str) -> Vec<String> {
    let mut bodies = Vec::new();
    while let Some(got) = get(node, at, queue) {
        node.settle(at, got.tag, false, Settlement::Ack);
        bodies.push(got.body);
    }
    bodies
}

#[test]
fn a_rejected_message_is_dead_lettered_with_its_death() {
    let mut node = TestBroker::new(64);
    node.broker.set_unix_time(1_700_000_000);
    let at = node.connect();
    declare(&mut node, at, "dead", false, &[]);
    declare(&mut node, at, "q", false, &to("dead"));
    // Headers { mine: 1, CC: [] }, expiration "60000".
    let headers = table(|t| t.int("mine", 1).and_then(|()| t.array("CC", |keys| keys.text("copy"))));
    let mut properties = vec![0x21, 0];
    properties.extend((headers.len() as u32).to_be_bytes());
    properties.extend(&headers);
    properties.extend(b"\x0560000");
    assert_eq!(publish(&mut node, at, "q", &properties, "body"), Ok(PublishAnswer::Published));
    let first = got(&mut node, at, "q");
    node.settle(at, first.tag, false, Settlement::Reject);
    let letter = got(&mut node, at, "dead");
    assert_eq!((&*letter.body, &*letter.exchange, &*letter.key), ("body", "", &b"dead"[..]));
    assert_eq!(Properties::trusted(&letter.properties).expiration(), None, "it expired once");
    let headers = letter.headers();
    let text = |name| headers.get(name).and_then(|value| value.as_str());
    assert_eq!(headers.get("mine"), Some(Value::Int(1)));
    assert_eq!(headers.get("CC"), None, "with a key of its own");
    assert_eq!(text("x-first-death-reason"), Some("rejected"));
    assert_eq!(text("x-first-death-queue"), Some("q"));
    assert_eq!(text("x-first-death-exchange"), Some(""));
    let deaths = headers.get("x-death").and_then(|value| value.as_array()).unwrap();
    let death = deaths.iter().next().and_then(|value| value.as_table()).unwrap();
    assert_eq!(death.get("count"), Some(Value::Long(1)));
    assert_eq!(death.get("time"), Some(Value::Timestamp(1_700_000_000)));
    assert_eq!(death.get("original-expiration"), Some(Value::LongStr(b"60000")));
    let keys = death.get("routing-keys").and_then(|value| value.as_array()).unwrap();
    assert_eq!(keys.iter().filter_map(|key| key.as_str()).collect::<Vec<_>>(), ["q", "copy"]);
    node.settle(at, letter.tag, false, Settlement::Ack);
    assert_eq!(node.broker.gauges().deliveries, 0);
    assert_eq!(node.messages.messages_used(), 0);
}

#[test]
fn a_message_rejected_by_a_full_queue_is_reported_and_dead_lettered() {
    let mut node = TestBroker::new(64);
    let at = node.connect();
    let full = |t: &mut TableWriter<'_, '_>| {
        t.int("x-max-length", 1)?;
        t.text("x-overflow", "reject-publish-dlx")
    };
    declare(&mut node, at, "dead", false, &[]);
    declare(&mut node, at, "q", false, &with("dead", full));
    declare(&mut node, at, "free", false, &[]);
    for queue in ["q", "free"] {
        let (exchange, routing_key, arguments) = ("amq.fanout", "", &[][..]);
        node.done(at, DefinitionCommand::QueueBind { queue, exchange, routing_key, arguments });
    }
    assert_eq!(publish(&mut node, at, "q", &[0, 0], "1"), Ok(PublishAnswer::Published));
    assert_eq!(publish(&mut node, at, "q", &[0, 0], "2"), Ok(PublishAnswer::Refused));
    let id = node.messages.begin("amq.fanout", b"", Share::Ordinary).unwrap();
    node.messages.reserve_content(id, &[0, 0], MessageFlags::NONE, 1, Share::Ordinary).unwrap();
    node.messages.append_body(id, b"3");
    node.messages.finish(id);
    let outcome = node.ask(at, PublishCommand::Publish { message: id, mandatory: false });
    assert_eq!(outcome, Ok(PublishAnswer::Refused));
    assert_eq!(empty(&mut node, at, "q"), ["1"]);
    assert_eq!(empty(&mut node, at, "free"), ["3"], "the other queue has it");
    assert_eq!(empty(&mut node, at, "dead"), ["2", "3"]);
    assert_eq!(node.messages.messages_used(), 0);
}

/// Messages dropped in the middle of a transaction do not take the records that the rest of it needs.
#[test]
fn a_commit_is_complete_although_its_first_messages_displace_others() {
    let (length, ttl) = ("x-max-length", "x-message-ttl");
    for (overflow, limit, most) in [
        ("drop-head", length, 1),
        ("reject-publish-dlx", length, 1),
        ("drop-head", length, 0),
        ("drop-head", ttl, 0),
    ] {
        let mut node = TestBroker::with(&Limits { queue_entries_max: 16 * 21, ..Limits::default() });
        let at = node.connect();
        let arguments = table(|t| {
            t.int(limit, most)?;
            t.text("x-overflow", overflow)?;
            t.text("x-dead-letter-exchange", "amq.direct")
        });
        declare(&mut node, at, "q", false, &arguments);
        let queues = |exchange: &'static str, count: usize| {
            (0..count).map(move |number| (exchange, format!("{number} of {exchange}")))
        };
        for (exchange, queue) in queues("amq.direct", 12).chain(queues("amq.fanout", 6)) {
            node.declare(at, &queue, false);
            let (queue, routing_key, arguments) = (&*queue, "q", &[][..]);
            node.done(at, DefinitionCommand::QueueBind { queue, exchange, routing_key, arguments });
        }
        node.done(at, ChannelCommand::TxSelect);
        for exchange in ["", "", "amq.fanout"] {
            let message = message_to(&mut node, exchange, "q", &[0, 0], b"x");
            node.done(at, PublishCommand::Publish { message, mandatory: false });
        }
        // A rejection by a queue is reported; everything else has happened.
        let refused = node.ask(at, ChannelCommand::TxCommit).is_err();
        assert_eq!(refused, overflow != "drop-head", "{overflow}");
        let at = node.connect();
        for (_, queue) in queues("amq.fanout", 6) {
            assert_eq!(node.ready(at, &queue), 1, "{overflow}: {queue}");
            empty(&mut node, at, &queue);
        }
        node.pending_writes.set_time(2);
        node.turns(at);
        assert_eq!(node.ready(at, "q"), most as u32, "{overflow}, {limit} {most}");
        let letters = if overflow == "drop-head" { 2 - most as usize } else { 0 };
        for (_, queue) in queues("amq.direct", 12) {
            assert_eq!(empty(&mut node, at, &queue).len(), letters, "{overflow}: {queue}");
        }
        empty(&mut node, at, "q");
        assert_eq!((node.messages.messages_used(), node.broker.gauges().chunks), (0, 0), "{overflow}");
    }
}

#[test]
fn a_message_requeued_too_often_is_dropped() {
    let mut node = TestBroker::new(64);
    let at = node.connect();
    let limited = |t: &mut TableWriter<'_, '_>| {
        t.text("x-queue-type", "quorum")?;
        t.int("x-delivery-limit", 2)
    };
    declare(&mut node, at, "dead", false, &[]);
    declare(&mut node, at, "q", true, &with("dead", limited));
    declare(&mut node, at, "dropping", true, &table(limited));
    for queue in ["q", "dropping"] {
        publish(&mut node, at, queue, &[0, 0], "x").unwrap();
        for round in 0..3 {
            assert_eq!(node.ready(at, queue), 1, "round {round}");
            let first = got(&mut node, at, queue);
            node.settle(at, first.tag, false, Settlement::Requeue);
        }
        assert_eq!(node.ready(at, queue), 0);
    }
    let letter = got(&mut node, at, "dead");
    assert_eq!(letter.deaths(), [("q".into(), "delivery_limit".into(), 1)]);
    assert_eq!(node.ready(at, "dead"), 0, "the other had nowhere to go");
    node.settle(at, letter.tag, false, Settlement::Ack);
    assert_eq!(node.messages.messages_used(), 0);
}

/// Only death entries end a cycle of full queues. It must end even if the headers have no space for them.
#[test]
fn a_cycle_of_dead_letters_without_space_for_deaths_ends() {
    const TURNS_MAX: usize = 1_000;
    let mut node = TestBroker::with(&Limits { frame_max: 4096, ..Limits::default() });
    let at = node.connect();
    declare(&mut node, at, "a", false, &with("b", |t| t.int("x-max-length", 0)));
    declare(&mut node, at, "b", false, &with("a", |t| t.int("x-max-length", 0)));
    // Headers { mine: "xxx…" } of nearly a frame.
    let text = [b'x'; 4000];
    let mut headers = b"\x04mineS".to_vec();
    headers.extend((text.len() as u32).to_be_bytes());
    headers.extend(text);
    let mut properties = vec![0x20, 0];
    properties.extend((headers.len() as u32).to_be_bytes());
    properties.extend(headers);
    publish(&mut node, at, "a", &properties, "x").unwrap();
    let mut turns = 0;
    while node.broker.may_expire_or_trim(&node.pending_writes, &node.messages) {
        node.turn(at);
        turns += 1;
        assert!(turns < TURNS_MAX, "the cycle does not end");
    }
    assert_eq!(node.messages.messages_used(), 0);
}

/// A thousand queues, each of which drops its message to the next one. Neither the stack nor a turn grows
/// with them.
#[test]
fn a_long_chain_of_queues_moves_on_step_by_step() {
    let mut node = TestBroker::with(&Limits { queues_max: 1100, ..Limits::default() });
    let at = node.connect();
    let name = |number: u32| format!("q{number}");
    declare(&mut node, at, &name(1000), false, &[]);
    for number in (0..1000).rev() {
        let arguments = with(&name(number + 1), |t| t.int("x-max-length", 0));
        declare(&mut node, at, &name(number), false, &arguments);
    }
    publish(&mut node, at, "q0", &[0, 0], "x").unwrap();
    assert_eq!(node.ready(at, "q1000"), 0, "not in one go");
    let mut turns = 0;
    while node.broker.may_expire_or_trim(&node.pending_writes, &node.messages) {
        node.turn(at);
        turns += 1;
    }
    assert!(turns > 1, "{turns}");
    assert_eq!(got(&mut node, at, "q1000").deaths().len(), 1000);
}

/// Takes every free message record, until it is released.
pub(crate) fn filled(node: &mut TestBroker) -> Vec<MessageId> {
    core::iter::from_fn(|| node.messages.begin("", b"", Share::DeadLetter).ok()).collect()
}

/// Without capacity for the dead letter nothing is settled; with some, it proceeds automatically.
#[test]
fn without_capacity_a_dead_letter_stays_and_proceeds_later() {
    let limits = Limits { messages_max: 64, ..Limits::default() };
    let mut node = TestBroker::with(&limits);
    let at = node.connect();
    declare(&mut node, at, "dead", false, &[]);
    declare(&mut node, at, "q", false, &to("dead"));
    publish(&mut node, at, "q", &[0, 0], "x").unwrap();
    let first = got(&mut node, at, "q");
    let mut held = filled(&mut node);
    node.settle(at, first.tag, false, Settlement::Reject);
    node.turns(at);
    assert_eq!((node.ready(at, "q"), node.ready(at, "dead")), (0, 0), "it is no longer delivered");
    assert!(!node.broker.may_expire_or_trim(&node.pending_writes, &node.messages), "or the loop would burn");
    assert_eq!(node.broker.gauges().deliveries, 1);
    // The last two records are for messages that are read back, and for dead letters that are not larger.
    held.drain(..3).for_each(|id| node.messages.release(id));
    assert!(node.broker.may_expire_or_trim(&node.pending_writes, &node.messages));
    node.turn(at);
    held.into_iter().for_each(|id| node.messages.release(id));
    assert_eq!(empty(&mut node, at, "dead"), ["x"]);
    assert_eq!((node.messages.messages_used(), node.broker.gauges().deliveries), (0, 0));
}

/// With one free record, only a dead letter without x-death fits. It is written for a queue that dead-letters, too, and in which
/// messages live for a second. Otherwise it waits.
#[test]
fn a_dead_letter_lacks_x_death_only_in_a_cycle_that_takes_time() {
    let retry = |ttl_ms| with("q", |t| t.int("x-message-ttl", ttl_ms));
    for (arguments, is_moved) in [(retry(1_000), true), (retry(999), false), (ttl(1_000), false)] {
        let mut node = TestBroker::with(&Limits { messages_max: 64, ..Limits::default() });
        let at = node.connect();
        declare(&mut node, at, "retry", false, &arguments);
        declare(&mut node, at, "q", false, &to("retry"));
        publish(&mut node, at, "q", &[0, 0], "x").unwrap();
        let first = got(&mut node, at, "q");
        let mut held = filled(&mut node);
        node.messages.release(held.pop().unwrap());
        node.settle(at, first.tag, false, Settlement::Reject);
        node.turns(at);
        assert_eq!(node.ready(at, "retry"), u32::from(is_moved));
        assert_eq!(node.broker.counters().headers_shortened, u64::from(is_moved));
        held.into_iter().for_each(|id| node.messages.release(id));
        node.turns(at);
        let moved = got(&mut node, at, "retry");
        assert_eq!(
            (moved.body.as_str(), moved.has_headers()),
            ("x", !is_moved),
            "it has x-death if it has waited"
        );
    }
}

/// A rejected message that waits for capacity does not stop the length limit: surplus messages are dropped
/// independently.
#[test]
fn a_rejected_message_without_capacity_does_not_stop_the_length_limit() {
    let mut node = TestBroker::with(&Limits { messages_max: 64, ..Limits::default() });
    let (at, publisher) = (node.connect(), node.connect());
    declare(&mut node, at, "dead", false, &[]);
    let arguments = table(|t| {
        t.int("x-max-length", 1)?;
        t.text("x-dead-letter-exchange", "amq.direct")
    });
    declare(&mut node, at, "q", false, &arguments);
    for (queue, exchange, routing_key) in [("q", "amq.topic", "#"), ("dead", "amq.direct", "kept")] {
        node.done(at, DefinitionCommand::QueueBind { queue, exchange, routing_key, arguments: &[] });
    }
    let message = message_to(&mut node, "amq.topic", "kept", &[0, 0], b"x");
    node.done(at, PublishCommand::Publish { message, mandatory: false });
    let first = got(&mut node, at, "q");
    node.done(publisher, ChannelCommand::TxSelect);
    let new: Vec<_> = (0..3).map(|_| message_to(&mut node, "", "q", &[0, 0], b"y")).collect();
    let held = filled(&mut node);
    node.settle(at, first.tag, false, Settlement::Reject);
    node.turns(at);
    assert!(!node.broker.may_expire_or_trim(&node.pending_writes, &node.messages), "or the loop would burn");
    for message in new {
        node.done(publisher, PublishCommand::Publish { message, mandatory: false });
    }
    node.done(publisher, ChannelCommand::TxCommit);
    node.turns(at);
    assert_eq!(node.ready(at, "q"), 1, "its dead letters have no target, which needs no capacity");
    held.into_iter().for_each(|id| node.messages.release(id));
    node.turns(at);
    assert_eq!(empty(&mut node, at, "dead"), ["x"]);
    assert_eq!(empty(&mut node, at, "q"), ["y"]);
    assert_eq!((node.messages.messages_used(), node.broker.gauges().deliveries), (0, 0));
}

/// A missing dead-letter exchange takes no message and uses no memory.
#[test]
fn dead_letters_for_an_exchange_that_is_missing_are_dropped() {
    let mut node = TestBroker::with(&Limits { messages_max: 64, ..Limits::default() });
    let at = node.connect();
    let arguments = table(|t| t.text("x-dead-letter-exchange", "none"));
    declare(&mut node, at, "q", false, &arguments);
    publish(&mut node, at, "q", &[0, 0], "x").unwrap();
    let first = got(&mut node, at, "q");
    node.settle(at, first.tag, false, Settlement::Reject);
    node.turns(at);
    assert_eq!((node.messages.messages_used(), node.broker.gauges().deliveries), (0, 0));
}

#[test]
fn a_deleted_queue_drops_its_waiting_dead_letters() {
    let mut node = TestBroker::with(&Limits { messages_max: 64, ..Limits::default() });
    let at = node.connect();
    declare(&mut node, at, "dead", false, &[]);
    declare(&mut node, at, "q", false, &to("dead"));
    publish(&mut node, at, "q", &[0, 0], "x").unwrap();
    let first = got(&mut node, at, "q");
    let held = filled(&mut node);
    node.settle(at, first.tag, false, Settlement::Reject);
    node.done(at, DefinitionCommand::QueueDelete { queue: "q", if_unused: false, if_empty: false });
    node.turns(at);
    held.into_iter().for_each(|id| node.messages.release(id));
    node.turns(at);
    assert_eq!((node.messages.messages_used(), node.broker.gauges().deliveries), (0, 0));
    assert_eq!(node.broker.gauges().queues, 1);
    assert!(!node.broker.may_expire_or_trim(&node.pending_writes, &node.messages));
}

// ---- with power cuts

pub(crate) const IDENTITY: Identity = Identity { id: *b"0123456789abcdef", secret: 0x61_0A9 };
pub(crate) const NOW: Now = Now::from_ms(1);

/// One run of a broker on a disk, from its start to its end.
pub(crate) struct BrokerRun {
    pub(crate) node: TestBroker,
    pub(crate) keeper: CommitWriter,
    disk: SimDisk,
    pub(crate) at: At,
}

impl BrokerRun {
    pub(crate) fn begin(disk: &SimDisk) -> Option<Self> {
        Self::begin_with(disk, &Limits { connections_max: 16, ..Limits::default() })
    }

    pub(crate) fn begin_with(disk: &SimDisk, limits: &Limits) -> Option<Self> {
        let mut disk = disk.clone();
        let settings = Settings { segment_bytes: 512 << 10, segments_max: 30, ..Settings::default() };
        let (log, report) = Log::open(&mut disk, settings, IDENTITY, NOW).ok()?;
        let mut node = TestBroker::with(limits);
        node.pending_writes.start(log.epoch(), true, log.space().record_bytes_max() as u64);
        node.pending_writes.set_log_free_bytes(u64::MAX, u64::MAX, false);
        let first = Some(("guest", PasswordHash::NoPassword));
        restore(
            &mut node.broker,
            &mut context!(node),
            OpenedLog { log: &log, disk: &mut disk, access: report.access, damage: report.reported_damage },
            first,
            NOW,
        )
        .ok()?;
        let at = node.connect();
        Some(Self { node, keeper: CommitWriter::new(log, 1 << 17), disk, at })
    }

    /// Writes until nothing is left to write. Returns `None` if the power failed.
    pub(crate) fn store(&mut self) -> Option<()> {
        self.store_at(NOW)
    }

    /// Same as [`Self::store`] at this time of the process.
    pub(crate) fn store_at(&mut self, now: Now) -> Option<()> {
        self.keeper.flush(now);
        while let Some(write) =
            self.keeper.next_write(&mut self.node.pending_writes, &mut self.node.messages, now)
        {
            let done = write.run(&mut self.disk);
            self.keeper.write_done(&mut self.node.pending_writes, &mut self.node.messages, done, now).ok()?;
            self.node.broker.queues_mut().note_durable(&self.node.pending_writes);
            self.keeper.flush(now);
        }
        self.node.pending_writes.is_empty().then_some(())
    }

    /// Reads what the broker requests, like the engine. Returns how many messages were loaded, and how many
    /// were only examined.
    pub(crate) fn read_back(&mut self) -> (u32, u32) {
        let (mut came, mut seen) = (0, 0);
        self.node.turns(self.at);
        while let Some(fetch) = self.node.broker.queues_mut().next_read(&self.node.messages) {
            let node = &mut self.node;
            let range = Range { start: fetch.start, end: fetch.end };
            let log = self.keeper.log_mut();
            let job = log.fetch(fetch.incarnation, range, fetch.bytes_max).expect("it can be read");
            let done = job.run(&mut self.disk);
            let fetched = self.keeper.log_mut().fetch_done(done, |offset, message| {
                let Body::Inline(body) = message.body else { panic!("it is small") };
                let page = ReadMessage {
                    offset,
                    exchange: core::str::from_utf8(message.exchange).unwrap(),
                    routing_key: message.key,
                    properties: message.properties,
                    body_len: body.len() as u32,
                    enqueued_ms: message.enqueued_ms,
                };
                match node.broker.queues_mut().page_in(&mut node.messages, &fetch, &page) {
                    PageInOutcome::Begun(id) => {
                        node.messages.append_body(id, body);
                        let enqueued_ms = message.enqueued_ms;
                        let queues = node.broker.queues_mut();
                        assert!(queues.paged_in(&mut context!(node), &fetch, offset, enqueued_ms, id));
                        came += 1;
                    }
                    PageInOutcome::NotWanted => seen += 1,
                    PageInOutcome::NoCapacity => panic!("there is memory"),
                }
            });
            node.broker.queues_mut().end_read(&fetch, fetched.through);
            self.node.turns(self.at);
        }
        (came, seen)
    }

    /// Gets a message, which may have to wait until the message and the watermark above it are durable.
    pub(crate) fn get(&mut self, queue: &str) -> Option<Got> {
        let outcome = match self.node.ask(self.at, GetCommand { queue, no_ack: false }) {
            Ok(GetAnswer::Later) => {
                let time_ms = self.node.pending_writes.time_ms();
                self.store().expect("the disk is well");
                let node = &mut self.node;
                node.pending_writes.set_time(time_ms);
                node.broker.run_jobs(&mut context!(node));
                node.broker.deliver(&mut context!(node), 8192);
                node.broker.take_late_get(self.at.connection).expect("it is answered").0
            }
            outcome => outcome,
        };
        (outcome == Ok(GetAnswer::Queued)).then(|| received(&mut self.node, self.at))
    }

    pub(crate) fn empty(&mut self, queue: &str) -> Vec<String> {
        let mut bodies = Vec::new();
        while let Some(got) = self.get(queue) {
            self.node.settle(self.at, got.tag, false, Settlement::Ack);
            bodies.push(got.body);
        }
        bodies
    }

    fn counts(&mut self) -> (u32, u32) {
        (self.node.ready(self.at, "q"), self.node.ready(self.at, "dead"))
    }
}

const COUNT: u32 = 20;

pub(crate) fn disk() -> SimDisk {
    let disk = SimDisk::new(1, Mutant::None, IDENTITY);
    disk.start(Trouble::Never);
    disk
}

/// Cuts the power at every call in turn, while confirmed messages are rejected, exceed limits or expire. Each
/// message must be in exactly one queue.
pub(crate) fn at_every_cut(
    arguments: &[u8],
    take: impl Fn(&mut TestBroker, At) -> At,
    give_up: impl Fn(&mut TestBroker, At),
) {
    let (mut before, mut behind) = (0, 0);
    for cut in 0.. {
        let disk = SimDisk::new(cut, Mutant::None, IDENTITY);
        disk.start(Trouble::Never);
        let mut run = BrokerRun::begin(&disk).expect("it opens");
        let at = run.at;
        declare(&mut run.node, at, "dead", true, &[]);
        declare(&mut run.node, at, "q", true, arguments);
        run.node.done(at, ChannelCommand::ConfirmSelect);
        for number in 0..COUNT {
            publish(&mut run.node, at, "q", PERSISTENT, &format!("{number}")).unwrap();
        }
        let taker = take(&mut run.node, at);
        while get(&mut run.node, taker, "q").is_some() {}
        run.store().expect("the disk is well");
        disk.foresee(Trouble::Cut(cut));
        give_up(&mut run.node, taker);
        run.node.turns(at);
        let is_over = run.store().is_some();
        let counts = run.counts();
        drop(run);
        disk.power_cut();
        disk.start(Trouble::Never);
        let mut run = BrokerRun::begin(&disk).expect("it opens");
        let (left, gone) = run.counts();
        assert_eq!(left + gone, COUNT, "cut {cut}: {left} in the queue, {gone} dead letters");
        before += u32::from(gone == 0);
        behind += u32::from(gone > 0);
        if is_over {
            assert_eq!((left, gone), counts, "cut {cut}: all was written");
            assert!(before > 0 && behind > 0, "{before} and {behind}");
            return;
        }
    }
}

fn reject_all(node: &mut TestBroker, at: At) {
    node.settle(at, 0, true, Settlement::Reject);
}

#[test]
fn over_power_cuts_a_rejected_message_is_in_one_place() {
    at_every_cut(&to("dead"), |_, at| at, reject_all);
}

#[test]
fn over_power_cuts_a_message_requeued_too_often_is_in_one_place() {
    let arguments = with("dead", |t| {
        t.text("x-queue-type", "quorum")?;
        t.int("x-delivery-limit", 0)
    });
    at_every_cut(&arguments, |_, at| at, |node, at| node.settle(at, 0, true, Settlement::Requeue));
}

/// Everything in one transaction.
#[test]
fn over_power_cuts_a_transaction_takes_its_dead_letters_along() {
    let in_transaction = |node: &mut TestBroker, at| {
        let tx = node.open(at, 2);
        node.done(tx, ChannelCommand::TxSelect);
        tx
    };
    at_every_cut(&to("dead"), in_transaction, |node, tx| {
        reject_all(node, tx);
        node.done(tx, ChannelCommand::TxCommit);
    });
}

/// A fanout to a full queue and to its dead-letter queue: the dead letter has a place of its own behind the
/// message. Nothing of either is left once all is acknowledged.
#[test]
fn a_dead_letter_has_its_own_offset_in_another_target_of_its_message() {
    let disk = SimDisk::new(1, Mutant::None, IDENTITY);
    disk.start(Trouble::Never);
    let mut run = BrokerRun::begin(&disk).expect("it opens");
    let at = run.at;
    declare(&mut run.node, at, "full", true, &with("dead", |t| t.int("x-max-length", 1)));
    declare(&mut run.node, at, "dead", true, &[]);
    for queue in ["full", "dead"] {
        let (exchange, routing_key) = ("amq.fanout", "");
        run.node.done(at, DefinitionCommand::QueueBind { queue, exchange, routing_key, arguments: &[] });
    }
    for body in ["1", "2", "3"] {
        let message = message_to(&mut run.node, "amq.fanout", "", PERSISTENT, body.as_bytes());
        assert_eq!(
            run.node.ask(at, PublishCommand::Publish { message, mandatory: false }),
            Ok(PublishAnswer::Published)
        );
    }
    assert_eq!(run.empty("dead"), ["1", "2", "1", "3", "2"]);
    assert_eq!(run.empty("full"), ["3"]);
    run.store().expect("the disk is well");
    drop(run);
    let mut run = BrokerRun::begin(&disk).expect("it opens");
    let at = run.at;
    assert_eq!((run.node.ready(at, "full"), run.node.ready(at, "dead")), (0, 0), "nothing comes back");
}

/// Messages that are only in the log are read back to be dead-lettered.
#[test]
fn evicted_messages_are_loaded_to_be_dead_lettered() {
    let disk = disk();
    let mut run = BrokerRun::begin(&disk).expect("it opens");
    let at = run.at;
    declare(&mut run.node, at, "dead", true, &[]);
    declare(&mut run.node, at, "q", true, &with("dead", |t| t.int("x-max-length", COUNT as i32)));
    for number in 0..COUNT {
        publish(&mut run.node, at, "q", PERSISTENT, &format!("{number}")).unwrap();
    }
    run.store().expect("the disk is well");
    drop(run);
    let mut run = BrokerRun::begin(&disk).expect("it opens");
    let at = run.at;
    publish(&mut run.node, at, "q", PERSISTENT, "new").unwrap();
    run.node.turns(at);
    assert_eq!(run.counts(), (COUNT + 1, 0), "it is not in memory");
    assert_eq!(run.read_back(), (COUNT, 0));
    assert_eq!(run.counts(), (COUNT, 1));
    assert_eq!(run.get("dead").expect("there is a message").body, "0");
}
