//! Routing and its cost: headers exchanges compared with the plain rule; and messages, keys and bindings
//! designed to be as costly as possible. The cost is counted in the broker's own steps.

use std::collections::BTreeSet;

use leveret_amqp::{Table, Value};
use leveret_broker::{Broker, ChannelRequest, Context, Work};
use leveret_core::command::{
    ChannelAnswer, ChannelCommand, ChannelId, ConnectionId, DefinitionAnswer, DefinitionCommand,
    LoginCommand, OpenChannel, OpenVhost, PublishAnswer, PublishCommand,
};
use leveret_core::error::Fault;
use leveret_core::limits::Limits;
use leveret_core::mem::{MessageFlags, Messages, Share};
use leveret_storage::PendingWrites;
use proptest::collection::vec;
use proptest::prelude::*;

/// A broker with its messages, and one channel.
struct TestBroker {
    broker: Broker,
    pending_writes: PendingWrites,
    work: Work,
    messages: Messages,
    connection: ConnectionId,
    channel: ChannelId,
}

impl TestBroker {
    fn new() -> Self {
        Self::with(&Limits::default())
    }

    fn with(limits: &Limits) -> Self {
        let mut broker = Broker::new(limits, Box::new(leveret_test_support::random::entropy())).unwrap();
        let mut messages = Messages::new(limits.message_limits());
        let (mut pending_writes, mut work) =
            (PendingWrites::new(limits.messages_max as usize), Work::default());
        let mut context = Context::new(&mut pending_writes, &mut messages, &mut work);
        let connection = broker.connect().unwrap();
        let login = LoginCommand::External { user: "guest", from_loopback: true };
        broker.apply_to_connection(&mut context, connection, login).unwrap();
        broker.apply_to_connection(&mut context, connection, OpenVhost { vhost: "/" }).unwrap();
        let open = OpenChannel { number: 1 };
        let channel = broker.apply_to_connection(&mut context, connection, open).unwrap();
        Self { broker, pending_writes, work, messages, connection, channel }
    }

    fn ask<C: ChannelRequest>(&mut self, command: C) -> Result<C::Answer, Fault> {
        self.broker.apply_on_channel(&mut context!(self), self.connection, self.channel, command)
    }

    fn queue(&mut self, queue: &str) {
        let (passive, durable, exclusive, auto_delete) = (false, false, false, false);
        let arguments = &[];
        let declare =
            DefinitionCommand::QueueDeclare { queue, passive, durable, exclusive, auto_delete, arguments };
        assert!(matches!(self.ask(declare), Ok(DefinitionAnswer::QueueDeclared { .. })));
    }

    fn exchange(&mut self, exchange: &str, kind: &str) {
        let (passive, durable, auto_delete, internal) = (false, false, false, false);
        let arguments = &[];
        let declare = DefinitionCommand::ExchangeDeclare {
            exchange,
            kind,
            passive,
            durable,
            auto_delete,
            internal,
            arguments,
        };
        assert_eq!(self.ask(declare), Ok(DefinitionAnswer::Done));
    }

    fn bind(
        &mut self,
        queue: &str,
        exchange: &str,
        routing_key: &str,
        arguments: &[u8],
    ) -> Result<DefinitionAnswer, Fault> {
        self.ask(DefinitionCommand::QueueBind { queue, exchange, routing_key, arguments })
    }

    fn bind_exchange(&mut self, source: &str, destination: &str) {
        let (routing_key, arguments) = ("", &[]);
        let bind = DefinitionCommand::ExchangeBind { destination, source, routing_key, arguments };
        assert_eq!(self.ask(bind), Ok(DefinitionAnswer::Done));
    }

    fn publish(&mut self, exchange: &str, key: &str, headers: &[u8]) -> Result<PublishAnswer, Fault> {
        let len = (headers.len() as u32).to_be_bytes();
        let properties = [&[0x20, 0][..], &len, headers].concat();
        let flags = MessageFlags::NONE.with(MessageFlags::PARSE_PROPERTIES);
        let message = self.messages.begin(exchange, key.as_bytes(), Share::Ordinary).unwrap();
        self.messages.reserve_content(message, &properties, flags, 0, Share::Ordinary).unwrap();
        self.messages.finish(message);
        match self.ask(PublishCommand::Publish { message, mandatory: false }) {
            // Which queues got the message is checked elsewhere.
            Ok(PublishAnswer::PublishedNowhere) => Ok(PublishAnswer::Published),
            outcome => outcome,
        }
    }

    /// Returns the cost of publishing.
    fn steps(&mut self, exchange: &str, key: &str, headers: &[u8]) -> u32 {
        self.work.take();
        assert_eq!(self.publish(exchange, key, headers), Ok(PublishAnswer::Published));
        self.work.take()
    }

    /// Returns the cost of a refused publish.
    fn steps_until_refused(&mut self, exchange: &str, key: &str, headers: &[u8]) -> u32 {
        self.work.take();
        match self.publish(exchange, key, headers) {
            Err(fault) => assert!(fault.text.contains("takes too long"), "{fault:?}"),
            other => panic!("{other:?}"),
        }
        self.work.take()
    }

    fn ready(&mut self, queue: &str) -> u32 {
        let (passive, durable, exclusive, auto_delete) = (true, false, false, false);
        let arguments = &[];
        let declare =
            DefinitionCommand::QueueDeclare { queue, passive, durable, exclusive, auto_delete, arguments };
        match self.ask(declare) {
            Ok(DefinitionAnswer::QueueDeclared { message_count, .. }) => message_count,
            other => panic!("{other:?}"),
        }
    }
}

// ---- the plain rule

/// Looks for each argument in all headers, as RabbitMQ defines the match.
fn matches(arguments: Table<'_>, headers: Table<'_>) -> bool {
    let rule = arguments.get("x-match").and_then(|value| value.as_bytes()).unwrap_or(b"all");
    let with_x = rule.ends_with(b"-with-x");
    let mut relevant =
        arguments.iter().filter(|(name, _)| *name != b"x-match" && (with_x || !name.starts_with(b"x-")));
    let agrees = |(name, wanted): (&[u8], Value<'_>)| {
        let found = headers.iter().find(|(other, _)| *other == name);
        found.is_some_and(|(_, found)| wanted == Value::Void || same(wanted, found))
    };
    if rule.starts_with(b"any") { relevant.any(agrees) } else { relevant.all(agrees) }
}

fn same(one: Value<'_>, two: Value<'_>) -> bool {
    if let (Some(one), Some(two)) = (whole(one), whole(two)) {
        return one == two;
    }
    match (real(one), real(two)) {
        (Some(one), Some(two)) => one == two,
        _ => one == two,
    }
}

fn whole(value: Value<'_>) -> Option<i128> {
    match value {
        Value::Timestamp(seconds) => Some(seconds.into()),
        other => other.as_integer().map(i128::from),
    }
}

fn real(value: Value<'_>) -> Option<f64> {
    match value {
        Value::Double(number) => Some(number),
        Value::Float(number) => Some(number.into()),
        other => whole(other).map(|number| number as f64),
    }
}

/// Values that are equal in other types, nearly equal, or look equal.
const VALUES: [&[u8]; 26] = [
    b"V",
    b"I\0\0\0\x01",
    b"I\0\0\0\x02",
    b"l\0\0\0\0\0\0\0\x01",
    b"b\x01",
    b"b\xff",
    b"B\xff",
    b"T\0\0\0\0\0\0\0\x01",
    b"d\x3f\xf0\0\0\0\0\0\0",
    b"f\x3f\x80\0\0",
    b"D\0\0\0\0\x01",
    b"t\x01",
    b"t\0",
    b"I\0\0\0\0",
    b"d\0\0\0\0\0\0\0\0",
    b"d\x80\0\0\0\0\0\0\0",
    b"S\0\0\0\x011",
    b"x\0\0\0\x011",
    b"S\0\0\0\0",
    b"F\0\0\0\x03\x01nV",
    b"A\0\0\0\x01V",
    b"A\0\0\0\0",
    // 2^53 and one more, which a double cannot distinguish; and the largest timestamp.
    b"l\0\x20\0\0\0\0\0\0",
    b"l\0\x20\0\0\0\0\0\x01",
    b"d\x43\x40\0\0\0\0\0\0",
    b"T\xff\xff\xff\xff\xff\xff\xff\xff",
];
const NAMES: [&str; 7] = ["", "a", "b", "c", "x-a", "x-match", "CB"];
const RULES: [&str; 5] = ["", "all", "any", "all-with-x", "any-with-x"];

fn entry(name: &str, value: &[u8]) -> Vec<u8> {
    [&[name.len() as u8], name.as_bytes(), value].concat()
}

fn text(name: &str, text: &str) -> Vec<u8> {
    entry(name, &[b"S", &(text.len() as u32).to_be_bytes()[..], text.as_bytes()].concat())
}

fn number(name: &str, number: u32) -> Vec<u8> {
    entry(name, &[b"I", &number.to_be_bytes()[..]].concat())
}

fn list(name: &str, keys: &[Vec<u8>]) -> Vec<u8> {
    let values: Vec<u8> =
        keys.iter().flat_map(|key| [b"S", &(key.len() as u32).to_be_bytes()[..], key].concat()).collect();
    entry(name, &[b"A", &(values.len() as u32).to_be_bytes()[..], &values].concat())
}

fn some_entries(names: usize, count: core::ops::Range<usize>) -> impl Strategy<Value = Vec<u8>> {
    let one = (0..names, 0..VALUES.len()).prop_map(|(name, value)| entry(NAMES[name], VALUES[value]));
    vec(one, count).prop_map(|entries| entries.concat())
}

/// Returns arguments of a binding: an `x-match` before, after or absent, and pairs.
fn some_arguments() -> impl Strategy<Value = Vec<u8>> {
    (0..RULES.len(), any::<bool>(), some_entries(5, 0..4)).prop_map(|(rule, is_first, pairs)| {
        let rule = if rule == 0 { Vec::new() } else { text("x-match", RULES[rule]) };
        if is_first { [rule, pairs].concat() } else { [pairs, rule].concat() }
    })
}

/// Returns headers that no binding requires. Their number decides how matches are searched for.
fn others(count: usize) -> Vec<u8> {
    (0..count).flat_map(|at| number(&format!("other{at}"), at as u32)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn messages_go_where_the_plain_rule_says(
        bindings in vec((some_arguments(), any::<bool>(), 0..4_u8), 1..24),
        headers in vec((some_entries(7, 0..6), prop_oneof![Just(0_usize), Just(40)], any::<bool>()), 1..8),
    ) {
        let mut node = TestBroker::new();
        node.exchange("second", "headers");
        node.bind_exchange("second", "amq.headers");
        let mut bound = Vec::new();
        for (at, (arguments, is_second, _)) in bindings.iter().enumerate() {
            let exchange = if *is_second { "second" } else { "amq.headers" };
            node.queue(&format!("q{at}"));
            assert_eq!(node.bind(&format!("q{at}"), exchange, "", arguments), Ok(DefinitionAnswer::Done));
            bound.push(true);
        }
        // Some bindings are deleted; the others must still be found.
        for (at, (arguments, is_second, fate)) in bindings.iter().enumerate().filter(|(_, it)| it.2 == 0) {
            let exchange = if *is_second { "second" } else { "amq.headers" };
            let (queue, routing_key) = (&*format!("q{at}"), "");
            assert_eq!(*fate, 0);
            let unbind = DefinitionCommand::QueueUnbind { queue, exchange, routing_key, arguments };
            assert_eq!(node.ask(unbind), Ok(DefinitionAnswer::Done));
            bound[at] = false;
        }
        let mut expected = vec![0; bindings.len()];
        for (entries, more, to_second) in &headers {
            let entries = [entries.clone(), others(*more)].concat();
            let exchange = if *to_second { "second" } else { "amq.headers" };
            prop_assert_eq!(node.publish(exchange, "", &entries), Ok(PublishAnswer::Published));
            for (at, (arguments, is_second, _)) in bindings.iter().enumerate() {
                // The second exchange forwards everything to the first.
                let is_asked = bound[at] && (*to_second || !*is_second);
                let takes = matches(Table::trusted(arguments), Table::trusted(&entries));
                expected[at] += u32::from(is_asked && takes);
            }
        }
        let found: Vec<u32> = (0..bindings.len()).map(|at| node.ready(&format!("q{at}"))).collect();
        prop_assert_eq!(found, expected);
    }
}

// ---- the cost

/// Returns limits with more bindings than the default, for costs that grow with their number.
fn many_bindings() -> Limits {
    Limits { bindings_max: 16_384, ..Limits::default() }
}

/// Returns as many different headers as a frame can contain.
fn headers_of_a_frame() -> Vec<u8> {
    let names = (1..30_000_u32).map(|at| [2, 0x80 | (at >> 8) as u8, at as u8, b'V']);
    names.flatten().collect()
}

#[test]
fn bindings_that_have_nothing_in_common_with_a_message_are_not_looked_at() {
    let mut node = TestBroker::with(&many_bindings());
    for queue in ["all", "any", "few"] {
        node.queue(queue);
    }
    for at in 0..4_000 {
        // A pair that all bindings require selects nothing; the other pair does, at any position.
        let (kind, id) = (text("kind", "report"), number("id", at));
        let pairs = if at % 2 == 0 { [kind, id].concat() } else { [id, kind].concat() };
        assert_eq!(node.bind("all", "amq.headers", "", &pairs), Ok(DefinitionAnswer::Done));
        let any = [text("x-match", "any"), number("id", at), number("other", at)].concat();
        assert_eq!(node.bind("any", "amq.headers", "", &any), Ok(DefinitionAnswer::Done));
    }
    let few = [text("x-match", "any"), entry("id", b"V")].concat();
    assert_eq!(node.bind("few", "amq.headers", "", &few), Ok(DefinitionAnswer::Done));
    let message = [text("kind", "report"), number("id", 77), number("unasked", 1)].concat();
    let steps = node.steps("amq.headers", "", &message);
    assert_eq!(["all", "any", "few"].map(|queue| node.ready(queue)), [1, 1, 1]);
    assert!(steps < 60, "{steps} steps for three matches among 8,001 bindings");
    assert!(node.steps("amq.headers", "", &[]) < 4, "without headers there is nothing to look for");
    // Common pairs are work and are counted.
    let common: Vec<u8> = (0..5).flat_map(|at| number(&format!("c{at}"), at)).collect();
    for at in 0..1_000 {
        assert_eq!(node.bind("all", "amq.headers", &at.to_string(), &common), Ok(DefinitionAnswer::Done));
    }
    let steps = node.steps("amq.headers", "", &common);
    assert!((6_000..9_000).contains(&steps), "{steps} steps for a thousand bindings of five pairs");
}

#[test]
fn thousands_of_headers_against_thousands_of_bindings_are_not_their_product() {
    let mut node = TestBroker::with(&many_bindings());
    node.queue("q");
    let headers = headers_of_a_frame();
    for at in 0..3_000 {
        let mut pairs: Vec<u8> = (0..4).flat_map(|pair| number(&format!("zz{pair}"), at)).collect();
        // Half of them have one pair in common with the message, and three more pairs to look for.
        if at % 2 == 0 {
            pairs.extend(&headers[..4]);
        }
        let rule = text("x-match", ["any", "all"][at as usize % 4 / 2]);
        assert_eq!(node.bind("q", "amq.headers", "", &[rule, pairs].concat()), Ok(DefinitionAnswer::Done));
    }
    let steps = node.steps("amq.headers", "", &headers);
    assert!(steps < 100_000, "{steps} steps for 30,000 headers and 3,000 bindings");
}

#[test]
fn thousands_of_headers_are_not_looked_at_in_each_of_many_exchanges() {
    let mut node = TestBroker::with(&many_bindings());
    node.queue("q");
    node.exchange("fan", "fanout");
    for at in 0..900 {
        let exchange = format!("e{at}");
        node.exchange(&exchange, ["headers", "direct", "topic"][at % 3]);
        node.bind_exchange("fan", &exchange);
        for pair in 0..8 {
            let arguments = number(&format!("zz{pair}"), pair);
            assert_eq!(node.bind("q", &exchange, &pair.to_string(), &arguments), Ok(DefinitionAnswer::Done));
        }
    }
    let steps = node.steps("fan", "", &[headers_of_a_frame(), list("CC", &[b"7".to_vec()])].concat());
    assert!(steps < 50_000, "{steps} steps for 30,000 headers in 900 exchanges");
    assert_eq!(node.ready("q"), 1);
}

#[test]
fn a_binding_by_any_of_its_pairs_takes_a_place_for_each() {
    let mut node = TestBroker::with(&Limits { bindings_max: 64, ..Limits::default() });
    node.queue("q");
    let any = |from: u32, count: u32| {
        let pairs: Vec<u8> = (from..from + count).flat_map(|at| number("k", at)).collect();
        [text("x-match", "any"), pairs].concat()
    };
    assert_eq!(node.bind("q", "amq.headers", "", &any(0, 40)), Ok(DefinitionAnswer::Done));
    let refused = node.bind("q", "amq.headers", "", &any(100, 40));
    assert!(matches!(&refused, Err(fault) if fault.text.contains("bindings")), "{refused:?}");
    assert_eq!(node.bind("q", "amq.headers", "", &any(100, 16)), Ok(DefinitionAnswer::Done));
    assert_eq!(node.publish("amq.headers", "", &number("k", 39)), Ok(PublishAnswer::Published));
    let (queue, exchange, routing_key) = ("q", "amq.headers", "");
    for arguments in [&*any(0, 40), &*any(100, 16)] {
        let unbind = DefinitionCommand::QueueUnbind { queue, exchange, routing_key, arguments };
        assert_eq!(node.ask(unbind), Ok(DefinitionAnswer::Done));
    }
    assert_eq!(
        node.bind("q", "amq.headers", "", &any(200, 58)),
        Ok(DefinitionAnswer::Done),
        "the places are free again"
    );
    assert_eq!(node.publish("amq.headers", "", &number("k", 39)), Ok(PublishAnswer::Published));
    assert_eq!(node.publish("amq.headers", "", &number("k", 257)), Ok(PublishAnswer::Published));
    assert_eq!(node.ready("q"), 2);
}

/// Declares patterns for which one key visits thousands of nodes. Returns that key of single letters.
fn topic_trap(node: &mut TestBroker) -> String {
    node.queue("q");
    let letters: Vec<String> = ('A'..='Z').map(String::from).collect();
    let mut patterns = BTreeSet::new();
    for one in 0..20 {
        for two in one + 1..20 {
            for three in two + 1..20 {
                for four in 20..24 {
                    let word = |at: usize| &*letters[at];
                    let words = [word(one), word(two), word(three), word(four)];
                    patterns.insert(format!("#.{}.#.none", words.join(".#.")));
                }
            }
        }
    }
    for pattern in &patterns {
        assert_eq!(node.bind("q", "amq.topic", pattern, &[]), Ok(DefinitionAnswer::Done));
    }
    let words: Vec<&str> = (0..127).map(|at| letters.get(at).map_or("Z", |letter| &**letter)).collect();
    words.join(".")
}

/// Maximum cost of a refused message with the default limits, plus the excess of its last step.
const STEPS_MAX: u32 = 8_192 * 16 + 40_000;

#[test]
fn long_keys_and_many_keys_are_refused_before_they_take_long() {
    let mut node = TestBroker::new();
    let key = topic_trap(&mut node);
    assert!(node.steps("amq.topic", "a.key.as.people.have.it", &[]) < 20);
    assert!(node.steps("amq.topic", &key[..15], &[]) < STEPS_MAX, "eight words are never too many");
    let steps = node.steps_until_refused("amq.topic", &key, &[]);
    assert!(steps <= STEPS_MAX, "{steps} steps for one key");
    let copies: Vec<Vec<u8>> = (0..400).map(|at| format!("{at}.{key}").into_bytes()).collect();
    let steps = node.steps_until_refused("amq.topic", "", &list("CC", &copies));
    assert!(steps <= STEPS_MAX, "{steps} steps for 400 copies");
    let long = list("BCC", &[[&*key, &*".Z".repeat(55_000)].concat().into_bytes()]);
    let steps = node.steps_until_refused("amq.topic", "", &[list("CC", &[]), long].concat());
    assert!(steps <= STEPS_MAX, "{steps} steps for one long key");
    // A thousand direct copies cost little.
    let names: Vec<Vec<u8>> = (0..1_000).map(|at: u32| at.to_string().into_bytes()).collect();
    assert!(node.steps("", "q", &list("CC", &names)) < 2_000);
    assert_eq!(node.ready("q"), 1);
    assert_eq!(node.messages.messages_used(), 1, "what is refused is gone");
}

#[test]
fn thousands_of_copies_are_not_looked_for_in_each_of_many_exchanges() {
    let mut node = TestBroker::new();
    node.queue("q");
    node.exchange("fan", "fanout");
    for at in 0..900 {
        let exchange = format!("e{at}");
        node.exchange(&exchange, "direct");
        node.bind_exchange("fan", &exchange);
        assert_eq!(node.bind("q", &exchange, "k", &[]), Ok(DefinitionAnswer::Done));
    }
    let copies: Vec<Vec<u8>> = (0..10_000_u32).map(|at| at.to_string().into_bytes()).collect();
    let steps = node.steps_until_refused("fan", "", &list("CC", &copies));
    assert!(steps <= STEPS_MAX, "{steps} steps for 10,000 copies in 900 exchanges");
}

#[test]
fn a_commit_may_not_take_long_either() {
    let mut node = TestBroker::new();
    let key = topic_trap(&mut node);
    assert_eq!(node.ask(ChannelCommand::TxSelect), Ok(ChannelAnswer::Done));
    // A message that was routed when it was published is not routed again.
    for _ in 0..1_000 {
        assert_eq!(node.publish("amq.topic", &key[..47], &[]), Ok(PublishAnswer::Published));
        assert!(node.work.take() < STEPS_MAX);
    }
    assert_eq!(node.ask(ChannelCommand::TxCommit), Ok(ChannelAnswer::Done));
    assert!(node.work.take() <= 9 * STEPS_MAX, "a commit without routing");
    // A message that names its queues by keys is routed at the commit. Each one is allowed, all together are
    // not.
    let copies = vec![vec![b'1']; 2_000];
    for _ in 0..600 {
        assert_eq!(node.publish("", "nobody", &list("CC", &copies)), Ok(PublishAnswer::Published));
        assert!(node.work.take() < STEPS_MAX);
    }
    match node.ask(ChannelCommand::TxCommit) {
        Err(fault) => assert!(fault.text.contains("takes too long"), "{fault:?}"),
        other => panic!("{other:?}"),
    }
    let steps = node.work.take();
    assert!(steps <= 9 * STEPS_MAX, "{steps} steps for a commit");
    assert_eq!(node.ask(ChannelCommand::TxRollback), Ok(ChannelAnswer::Done));
    assert_eq!(node.messages.messages_used(), 0);
    // An ordinary transaction works as before.
    for _ in 0..1_000 {
        assert_eq!(node.publish("", "q", &[]), Ok(PublishAnswer::Published));
    }
    assert_eq!(node.ask(ChannelCommand::TxCommit), Ok(ChannelAnswer::Done));
    assert_eq!(node.ready("q"), 1_000);
}
