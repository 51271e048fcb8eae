//! Dead letters with a long history: rejected repeatedly, or with forged deaths.

use leveret_amqp::{TableWriter, Writer};
use leveret_core::command::{DefinitionCommand, PublishAnswer, Settlement};
use leveret_core::limits::Limits;

use crate::dead_letters::{BrokerRun, PERSISTENT, declare, disk, empty, got, publish, table, to, with};
use crate::support::TestBroker;

/// Bytes of a header frame besides the properties.
const HEADER_FRAME_BYTES: usize = 20;

/// Returns properties of this many bytes: three headers `s`, `t` and `u` of 100 bytes each, and `l` of the rest.
fn filling(bytes: usize) -> Vec<u8> {
    let header = |name: u8, value_len: usize| {
        [&[1, name, b'S'][..], &(value_len as u32).to_be_bytes(), &vec![b'x'; value_len]].concat()
    };
    let (properties, table, entries) = (2, 4, 4 * 7);
    let long = header(b'l', bytes - properties - table - entries - 300);
    let headers = [header(b's', 100), header(b't', 100), header(b'u', 100), long].concat();
    let properties = [&[0x20, 0][..], &(headers.len() as u32).to_be_bytes(), &headers].concat();
    assert_eq!(properties.len(), bytes);
    properties
}

/// Bytes that the published headers leave free in a frame.
const FREE: [usize; 12] = [0, 1, 2, 3, 20, 60, 64, 100, 152, 250, 400, 1_000];

/// With RabbitMQ, too, such a message arrives. A program that counts its attempts by x-death gives up some day.
#[test]
fn headers_that_fill_a_frame_make_no_rejected_message_vanish_and_its_count_rises() {
    for (frame_max, free) in [4096, 131_072].into_iter().flat_map(|size| FREE.map(|free| (size, free))) {
        let mut node = TestBroker::with(&Limits { frame_max, ..Limits::default() });
        let at = node.connect();
        declare(&mut node, at, "work", false, &to("retry"));
        declare(&mut node, at, "retry", false, &with("work", |t| t.int("x-message-ttl", 1)));
        publish(&mut node, at, "work", &filling(frame_max as usize - HEADER_FRAME_BYTES - free), "x")
            .unwrap();
        for attempt in 1..=4_i64 {
            let tag = got(&mut node, at, "work").tag;
            node.settle(at, tag, false, Settlement::Reject);
            assert_eq!(node.ready(at, "retry"), 1, "{frame_max} {free}");
            node.pending_writes.set_time(attempt as u64 * 1_000);
            node.turns(at);
            let returned = got(&mut node, at, "work");
            let deaths = [("retry", "expired"), ("work", "rejected")];
            let deaths = deaths.map(|(queue, reason)| (queue.into(), reason.into(), attempt));
            assert_eq!(returned.deaths(), deaths, "{frame_max} {free}");
            let kept = ["s", "t", "u", "l"].map(|name| returned.headers().get(name).is_some());
            assert!(kept[3], "{frame_max} {free}: a shorter header gives way");
            assert!(free < 250 || kept == [true; 4], "{frame_max} {free}: {kept:?}");
            node.settle(at, returned.tag, false, Settlement::Requeue);
        }
        let counts = node.broker.counters().headers_shortened;
        assert!((1..=8).contains(&counts) || free >= 400 && counts == 0, "{free}: {counts}");
    }
}

#[test]
fn headers_that_fill_a_frame_make_no_expired_or_dropped_message_vanish() {
    for (free, key) in
        FREE.into_iter().flat_map(|free| ["x-message-ttl", "x-max-length"].map(|key| (free, key)))
    {
        let mut node = TestBroker::new(64);
        let at = node.connect();
        declare(&mut node, at, "dead", false, &[]);
        declare(&mut node, at, "q", false, &with("dead", |t| t.int(key, 0)));
        let bytes = Limits::default().frame_max as usize - HEADER_FRAME_BYTES - free;
        publish(&mut node, at, "q", &filling(bytes), "x").unwrap();
        node.pending_writes.set_time(1_000);
        node.turns(at);
        let reason = if key == "x-message-ttl" { "expired" } else { "maxlen" };
        assert_eq!(got(&mut node, at, "dead").deaths(), [("q".into(), reason.into(), 1)], "{free}");
    }
}

/// An exchange of type headers routes by a header that the dead letter no longer has.
#[test]
fn a_removed_header_still_routes_the_dead_letter() {
    let mut node = TestBroker::new(64);
    let at = node.connect();
    declare(&mut node, at, "dead", false, &[]);
    let arguments = table(|t| {
        t.text("x-match", "all")?;
        t.text("s", &"x".repeat(100))
    });
    let (exchange, routing_key) = ("amq.headers", "");
    node.done(
        at,
        DefinitionCommand::QueueBind { queue: "dead", exchange, routing_key, arguments: &arguments },
    );
    declare(&mut node, at, "q", false, &table(|t| t.text("x-dead-letter-exchange", exchange)));
    publish(&mut node, at, "q", &filling(Limits::default().frame_max as usize - HEADER_FRAME_BYTES), "x")
        .unwrap();
    let tag = got(&mut node, at, "q").tag;
    node.settle(at, tag, false, Settlement::Reject);
    let letter = got(&mut node, at, "dead");
    assert_eq!(letter.deaths(), [("q".into(), "rejected".into(), 1)]);
    assert!(letter.headers().get("s").is_none() && letter.headers().get("l").is_some());
}

/// Only the kept entries show that the message was in a queue before.
#[test]
fn a_cycle_of_several_queues_ends_although_headers_fill_a_frame() {
    for free in FREE {
        let mut node = TestBroker::with(&Limits { frame_max: 4096, ..Limits::default() });
        let at = node.connect();
        let name = |number: usize| format!("{}{number}", "n".repeat(200));
        for number in 0..8 {
            let arguments = with(&name((number + 1) % 8), |t| t.int("x-max-length", 0));
            declare(&mut node, at, &name(number), false, &arguments);
        }
        publish(&mut node, at, &name(0), &filling(4096 - HEADER_FRAME_BYTES - free), "x").unwrap();
        let mut turns = 0;
        while node.broker.may_expire_or_trim(&node.pending_writes, &node.messages) {
            node.turn(at);
            turns += 1;
            assert!(turns < 1_000, "{free}: the cycle does not end");
        }
        assert_eq!(node.messages.messages_used(), 0);
    }
}

#[test]
fn a_rejected_dead_letter_is_dead_lettered_a_few_times() {
    let mut node = TestBroker::new(64);
    let at = node.connect();
    let full = |t: &mut TableWriter<'_, '_>| {
        t.int("x-max-length", 1)?;
        t.text("x-overflow", "reject-publish-dlx")
    };
    // Each queue rejects what the one before it rejected.
    for number in 0..12 {
        let arguments = with(&format!("{}", number + 1), full);
        declare(&mut node, at, &number.to_string(), false, &arguments);
        publish(&mut node, at, &number.to_string(), &[0, 0], "first").unwrap();
    }
    declare(&mut node, at, "12", false, &[]);
    for (first, ends) in [("6", 1), ("1", 0)] {
        declare(&mut node, at, "q", false, &to(first));
        publish(&mut node, at, "q", &[0, 0], "second").unwrap();
        let rejected = got(&mut node, at, "q");
        node.settle(at, rejected.tag, false, Settlement::Reject);
        assert_eq!(node.ready(at, "12"), ends, "so many are passed at once, and no more");
        empty(&mut node, at, "12");
        node.done(at, DefinitionCommand::QueueDelete { queue: "q", if_unused: false, if_empty: false });
    }
    for number in 0..12 {
        assert_eq!(empty(&mut node, at, &number.to_string()), ["first"]);
    }
    assert_eq!((node.messages.messages_used(), node.broker.gauges().chunks), (0, 0));
}

/// A publisher forged thousands of deaths: each is examined once, whatever the number of target queues.
#[test]
fn the_cost_of_forged_deaths_does_not_depend_on_the_number_of_queues() {
    let mut node = TestBroker::new(64);
    let at = node.connect();
    let deaths = |t: &mut TableWriter<'_, '_>| {
        t.array("x-death", |deaths| {
            (0..2000).try_for_each(|number| {
                deaths.table(|death| death.text("queue", if number == 1000 { "7" } else { "nobody" }))
            })
        })
    };
    let mut bytes = vec![0; 120_000];
    let mut writer = Writer::new(&mut bytes);
    writer.table(deaths).unwrap();
    let properties = [&[0x20, 0], writer.written()].concat();
    declare(
        &mut node,
        at,
        "q",
        false,
        &table(|t| {
            t.text("x-dead-letter-exchange", "amq.fanout")?;
            t.int("x-message-ttl", 0)
        }),
    );
    for number in 0..200 {
        let queue = number.to_string();
        node.declare(at, &queue, false);
        let (queue, exchange, routing_key, arguments) = (&*queue, "amq.fanout", "", &[][..]);
        node.done(at, DefinitionCommand::QueueBind { queue, exchange, routing_key, arguments });
    }
    node.pending_writes.set_time(1);
    node.work.take();
    assert_eq!(publish(&mut node, at, "q", &properties, "x"), Ok(PublishAnswer::Published));
    node.broker.deliver(&mut context!(node), 0);
    let units = node.work.take();
    assert!((1000..5000).contains(&units), "{units}: the turn hears of each of them, and once");
    for number in 0..200 {
        assert_eq!(node.ready(at, &number.to_string()), u32::from(number != 7), "{number}");
    }
}

/// A dead letter is delivered only after it and the settlement of its original are durable.
///
/// Before, a power cut brought its message back, which died again, and a consumer received the dead letter twice
/// without a mark.
#[test]
fn a_dead_letter_waits_only_for_its_move() {
    let disk = disk();
    let mut run = BrokerRun::begin(&disk).expect("it opens");
    let at = run.at;
    declare(&mut run.node, at, "dead", true, &[]);
    declare(&mut run.node, at, "q", true, &to("dead"));
    publish(&mut run.node, at, "q", PERSISTENT, "x").unwrap();
    let first = got(&mut run.node, at, "q");
    run.store().expect("the disk is well");
    let reader = run.node.connect();
    run.node.consume(reader, "dead");
    run.node.settle(at, first.tag, false, Settlement::Reject);
    assert_eq!(run.node.turns(reader), 0, "the dead letter is not in the log");
    assert!(!run.node.pending_writes.is_empty());
    run.store().expect("the disk is well");
    let node = &mut run.node;
    node.broker.deliver(&mut context!(node), 8192);
    assert_eq!(node.outbox_bodies(reader), ["x"], "what marks it as delivered went along");
    assert!(run.node.pending_writes.is_empty(), "so nothing more is written");
}
