//! Shovels of runtime parameters whose upstream is an in-memory line: their creation, their requests to the
//! upstream, and their end.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;

use leveret_amqp::{Method, Properties, Table, next_frame};
use leveret_broker::{Broker, OperatorFault};
use leveret_config::bridge::Bridge;
use leveret_core::definition::{Parameter, VhostLimits};
use leveret_core::limits::Limits;
use leveret_core::mem::{COMMAND_EXTENTS, Memory};
use leveret_management::parameters::check_parameter;

use super::bridge::{Far, ack, ask as operator_ask, bodies, bridge, fill, open_for, simulation};
use super::management::{ANN, GUEST, ask, status};
use leveret_test_support::simulated_server::{
    Line, Publish, Shape, Simulation, content_frames, small_limits,
};

const FORWARD: &str = concat!(
    r#"{"src-uri":"amqp://","src-queue":"here","#,
    r#""dest-uri":"amqp://u:secret@host-1","dest-queue":"there"}"#
);
const FETCH: &str = concat!(
    r#"{"src-uri":"amqp://host-1","src-queue":"far","#,
    r#""dest-uri":"amqp://","dest-queue":"here"}"#
);

/// Returns a broker with capacity for shovels, and their upstream.
fn node() -> (Simulation, Far) {
    node_in(&Memory::unlimited())
}

/// As [`node`], with this memory for the pools and the shovels.
fn node_in(memory: &Memory) -> (Simulation, Far) {
    let mut simulation = Simulation::in_memory(Limits { bridges_max: 2, ..small_limits() }, memory);
    let line = Rc::new(RefCell::new(Line::new(Shape::WIDE)));
    simulation.engine.platform_mut().upstreams.push((SocketAddr::from(([10, 0, 0, 1], 5672)), line.clone()));
    simulation.operators.push(line.clone());
    simulation.engine.set_bridges(&[]);
    (simulation, Far::new(line))
}

fn set_in(simulation: &mut Simulation, vhost: &str, name: &str, value: &str) -> Result<(), OperatorFault> {
    let (broker, context) = simulation.engine.broker_mut();
    let value = value.as_bytes();
    let said = Parameter { vhost: Some(vhost), component: "shovel", name, value };
    let needs = check_parameter(&said)?;
    broker.set_parameter(context.pending_writes, &said, needs.as_ref(), None).map(drop)
}

fn set(simulation: &mut Simulation, value: &str) {
    set_in(simulation, "/", "s", value).expect("it is right");
}

fn with(value: &str, more: &str) -> String {
    format!("{},{more}}}", value.strip_suffix('}').expect("an object"))
}

fn names(simulation: &Simulation) -> Vec<String> {
    simulation.engine.broker().views().parameters().map(|view| view.name.to_string()).collect()
}

fn declared(queue: &str, message_count: u32) -> Method<'_> {
    Method::QueueDeclareOk { queue, message_count, consumer_count: 0 }
}

const MISSING: Method<'_> =
    Method::ChannelClose { reply_code: 404, reply_text: "NOT_FOUND", class_id: 50, method_id: 10 };

/// Answers until messages can be forwarded. The upstream has the queue.
fn open_forward(simulation: &mut Simulation, far: &mut Far) {
    open_for(simulation, far);
    assert_eq!(far.answer(simulation), [(1, "channel.open"), (1, "queue.declare")]);
    far.say(1, &declared("there", 0));
    simulation.run();
    assert_eq!(far.answer(simulation), [(1, "confirm.select")]);
}

fn open_fetch(simulation: &mut Simulation, far: &mut Far, count: u32) {
    open_for(simulation, far);
    assert_eq!(far.answer(simulation), [(1, "channel.open"), (1, "queue.declare")]);
    far.say(1, &declared("far", count));
    simulation.run();
    assert_eq!(far.answer(simulation), [(1, "basic.qos"), (1, "basic.consume")]);
}

fn deliver(simulation: &mut Simulation, far: &Far, number: u64) {
    let (consumer_tag, redelivered, exchange) = ("bridge-0", false, "");
    let routing_key = b"far";
    let deliver =
        Method::BasicDeliver { consumer_tag, delivery_tag: number, redelivered, exchange, routing_key };
    far.say(1, &deliver);
    far.say_bytes(&content_frames(1, &[0, 0], &[number as u8], 100));
    simulation.run();
}

#[test]
fn a_parameter_creates_a_bridge_at_once_and_its_deletion_removes_it() {
    let (mut simulation, mut far) = node();
    set(&mut simulation, FORWARD);
    open_forward(&mut simulation, &mut far);
    let client = fill(&mut simulation, 2);
    assert_eq!(bodies(&far.published()), [0, 1]);
    far.say(1, &ack(2, true));
    simulation.run();
    set(&mut simulation, FORWARD);
    simulation.run();
    assert!(far.names().is_empty(), "the same again changes nothing");
    let (broker, context) = simulation.engine.broker_mut();
    broker.clear_parameter(context.pending_writes, Some("/"), "shovel", "s").expect("it is there");
    simulation.run();
    assert_eq!(far.names(), ["connection.close"]);
    assert_eq!(simulation.counts(client, 1, "here"), (0, 0));
    simulation.pass_ms(60_000);
    assert_eq!(simulation.engine.platform_mut().dialed, 1, "it is not tried any more");
}

#[test]
fn a_missing_upstream_queue_is_declared() {
    let (mut simulation, mut far) = node();
    set(&mut simulation, FORWARD);
    open_for(&mut simulation, &mut far);
    far.answer(&mut simulation);
    far.say(1, &MISSING);
    simulation.run();
    assert_eq!(far.names(), ["channel.close-ok", "channel.open"]);
    far.say(1, &Method::ChannelOpenOk {});
    simulation.run();
    assert_eq!(asked(&mut far), (false, true), "not whether it is there, but to make it, durable");
    assert_eq!(far.names(), ["queue.declare"]);
    far.say(1, &declared("there", 0));
    simulation.run();
    assert_eq!(far.names(), ["confirm.select"]);
}

/// AMQP replaces an empty key by the name of the queue if the name of the queue is empty, too. So the queue is named.
#[test]
fn the_queue_of_an_upstream_exchange_is_bound_by_its_name() {
    let (mut simulation, mut far) = node();
    set(&mut simulation, &FETCH.replace(r#""src-queue":"far""#, r#""src-exchange":"readings""#));
    open_for(&mut simulation, &mut far);
    assert_eq!(far.answer(&mut simulation), [(1, "channel.open"), (1, "queue.declare")]);
    far.say(1, &declared("amq.gen-1", 0));
    simulation.run();
    far.line.borrow_mut().read_down(usize::MAX, &mut far.heard);
    let frame = next_frame(&far.heard, 1 << 20).expect("it speaks AMQP").expect("it has said something");
    let bind = Method::parse(frame.payload).expect("a sound method");
    let Method::QueueBind { queue: "amq.gen-1", exchange: "readings", routing_key: "", .. } = bind else {
        panic!("{bind:?}")
    };
    assert_eq!(far.names(), ["queue.bind"]);
    far.say(1, &Method::QueueBindOk {});
    simulation.run();
    assert_eq!(far.names(), ["basic.qos"]);
    far.say(1, &Method::BasicQosOk {});
    simulation.run();
    far.line.borrow_mut().read_down(usize::MAX, &mut far.heard);
    let frame = next_frame(&far.heard, 1 << 20).expect("it speaks AMQP").expect("it has said something");
    let consume = Method::parse(frame.payload).expect("a sound method");
    assert!(matches!(consume, Method::BasicConsume { queue: "amq.gen-1", .. }), "{consume:?}");
}

/// Returns whether a declare is passive, and whether it is for a durable queue.
fn asked(far: &mut Far) -> (bool, bool) {
    far.line.borrow_mut().read_down(usize::MAX, &mut far.heard);
    let frame = next_frame(&far.heard, 1 << 20).expect("it speaks AMQP").expect("it has said something");
    match Method::parse(frame.payload).expect("a sound method") {
        Method::QueueDeclare { passive, durable, .. } => (passive, durable),
        other => panic!("{other:?}"),
    }
}

/// The effect of `declare` of a configured bridge: without it, the bridge declares nothing upstream.
#[test]
fn a_configured_bridge_declares_queues_if_declare_is_set() {
    let (mut simulation, mut far) = simulation(Bridge { declares: true, ..bridge() });
    open_for(&mut simulation, &mut far);
    far.answer(&mut simulation);
    far.say(1, &Method::ChannelClose { reply_code: 403, reply_text: "NO", class_id: 50, method_id: 10 });
    simulation.run();
    assert_eq!(far.names(), ["channel.close-ok"], "without permission, nothing is declared");
    simulation.pass_ms(1_100);
    assert_eq!(far.answer(&mut simulation), [(1, "channel.open"), (1, "queue.declare")], "it is retried");
}

#[test]
fn a_shovel_forwards_no_more_messages_than_configured() {
    let (mut simulation, mut far) = node();
    let client = fill(&mut simulation, 0);
    simulation.declare(client, 1, "here");
    for number in 0..5 {
        simulation.publish_to(client, 1, "here", &[number]);
    }
    simulation.run();
    set(&mut simulation, &with(FORWARD, r#""delete-after":3"#));
    open_forward(&mut simulation, &mut far);
    assert_eq!(bodies(&far.published()), [0, 1, 2]);
    far.say(1, &ack(2, true));
    simulation.run();
    assert_eq!(names(&simulation), ["s"], "one is under way");
    far.say(1, &ack(3, false));
    simulation.run();
    assert!(names(&simulation).is_empty(), "it is deleted with the last of them");
    assert_eq!(far.names(), ["connection.close"]);
    simulation.pass_ms(2_000);
    assert_eq!(simulation.counts(client, 1, "here"), (2, 0));
}

#[test]
fn a_shovel_fetches_the_initial_queue_length_and_no_more() {
    let (mut simulation, mut far) = node();
    set(&mut simulation, &with(FETCH, r#""delete-after":"queue-length""#));
    open_fetch(&mut simulation, &mut far, 2);
    let client = simulation.open(&[1]);
    deliver(&mut simulation, &far, 1);
    assert_eq!(far.names(), ["basic.ack"]);
    assert_eq!(names(&simulation), ["s"]);
    for number in 2..5 {
        deliver(&mut simulation, &far, number);
    }
    let said = far.answer(&mut simulation);
    assert_eq!(said, [(1, "basic.ack"), (1, "basic.cancel"), (0, "connection.close")]);
    assert!(names(&simulation).is_empty());
    assert_eq!(simulation.counts(client, 1, "here"), (2, 0));
}

#[test]
fn an_empty_queue_ends_the_shovel_at_once() {
    let (mut simulation, mut far) = node();
    set(&mut simulation, &with(FETCH, r#""src-delete-after":"queue-length""#));
    open_for(&mut simulation, &mut far);
    far.answer(&mut simulation);
    far.say(1, &declared("far", 0));
    simulation.run();
    let said = far.answer(&mut simulation);
    assert_eq!(said.last(), Some(&(0, "connection.close")), "{said:?}");
    assert!(names(&simulation).is_empty());
}

#[test]
fn a_shovel_whose_queue_cannot_be_declared_yet_does_not_end() {
    let (mut simulation, mut far) = node();
    let limit = |simulation: &mut Simulation, queues_max| {
        let (broker, context) = simulation.engine.broker_mut();
        let limits = VhostLimits { queues_max, connections_max: None };
        let limited = broker.access_mut().set_vhost_limits(context.pending_writes, "/", limits);
        limited.expect("the virtual host exists");
    };
    limit(&mut simulation, Some(0));
    set(&mut simulation, &with(FORWARD, r#""src-delete-after":"queue-length""#));
    open_for(&mut simulation, &mut far);
    far.answer(&mut simulation);
    far.say(1, &declared("there", 0));
    simulation.run();
    assert_eq!(far.answer(&mut simulation), [(1, "confirm.select"), (1, "channel.close")]);
    assert_eq!(names(&simulation), ["s"], "the length of its queue is not known");
    limit(&mut simulation, None);
    let client = fill(&mut simulation, 2);
    for _ in 0..20 {
        simulation.pass_ms(1_000);
        if far.answer(&mut simulation).contains(&(1, "queue.declare")) {
            far.say(1, &declared("there", 0));
            simulation.run();
        }
    }
    far.answer(&mut simulation);
    far.say(1, &ack(2, true));
    simulation.run();
    assert!(names(&simulation).is_empty(), "both messages were moved");
    assert_eq!(simulation.counts(client, 1, "here").0, 0);
}

#[test]
fn messages_name_their_shovel_and_have_its_configured_properties() {
    let (mut simulation, mut far) = node();
    set(
        &mut simulation,
        &with(
            FORWARD,
            concat!(
                r#""add-forward-headers":true,"add-timestamp-header":true,"#,
                r#""publish-properties":{"app_id":"x"}"#
            ),
        ),
    );
    open_forward(&mut simulation, &mut far);
    fill(&mut simulation, 1);
    let (_, properties) = far.published().remove(0);
    let properties = Properties::parse(&properties).expect("they are sound");
    assert_eq!(properties.app_id(), Some(&b"x"[..]));
    let headers = properties.headers().expect("there are headers");
    assert!(headers.get("x-shovelled-timestamp").is_some());
    let by = headers.get("x-shovelled").and_then(|value| value.as_array()).expect("an array");
    let by = by.iter().next().and_then(|value| value.as_table()).expect("a table");
    let text = |name| by.get(name).and_then(|value| value.as_str());
    let said = ["shovel-name", "src-queue", "dest-queue"].map(text);
    assert_eq!(said, [Some("s"), Some("here"), Some("there")]);
    assert_eq!(text("dest-uri"), Some("amqp://host-1"), "and no password");
}

#[test]
fn messages_of_a_source_exchange_wait_for_the_link_in_a_private_queue() {
    let (mut simulation, mut far) = node();
    let value = FORWARD.replace(r#""src-queue":"here""#, r#""src-exchange":"amq.fanout""#);
    set(&mut simulation, &value.replace(r#","dest-queue":"there""#, ""));
    open_for(&mut simulation, &mut far);
    far.answer(&mut simulation);
    far.line.borrow_mut().lose();
    simulation.run();
    far.heard.clear();
    let client = simulation.open(&[1]);
    let publish = Publish { exchange: "amq.fanout", key: "some.key", ..Publish::default() };
    simulation.publish(client, 1, publish, b"kept");
    simulation.run();
    assert_eq!(simulation.counts(client, 1, "shovel.s").0, 1);
    let (broker, context) = simulation.engine.broker_mut();
    broker.clear_parameter(context.pending_writes, Some("/"), "shovel", "s").expect("it is there");
    simulation.run();
    assert_eq!(simulation.engine.broker().queue_depth("/", "shovel.s"), None, "an orphaned queue is deleted");
    assert_eq!(simulation.engine.broker().queue_depth("/", "shovel.s.parked"), None);
}

#[test]
fn a_shovel_with_another_key_or_exchange_gets_nothing_by_the_old_binding() {
    let (mut simulation, _) = node();
    let of = |exchange: &str| FORWARD.replace(r#""src-queue":"here""#, exchange);
    let client = simulation.open(&[1]);
    let depth = |simulation: &mut Simulation, exchange: &str, key: &str| {
        simulation.run();
        let publish = Publish { exchange, key, ..Publish::default() };
        simulation.publish(client, 1, publish, b"a reading");
        simulation.run();
        let broker = simulation.engine.broker();
        broker.queue_depth("/", "shovel.s")
    };
    set(&mut simulation, &of(r#""src-exchange":"amq.direct","src-exchange-key":"a""#));
    assert_eq!(depth(&mut simulation, "amq.direct", "a"), Some(1));
    set(&mut simulation, &of(r#""src-exchange":"amq.direct","src-exchange-key":"b""#));
    assert_eq!(depth(&mut simulation, "amq.direct", "a"), Some(1), "what waits stays, and no more comes");
    assert_eq!(depth(&mut simulation, "amq.direct", "b"), Some(2));
    set(&mut simulation, FORWARD);
    assert_eq!(depth(&mut simulation, "amq.direct", "b"), Some(2), "the queue has no consumer");
    let (broker, mut context) = simulation.engine.broker_mut();
    broker
        .operator_delete_queue(&mut context, "/", "shovel.s", leveret_broker::DeleteIf::default())
        .expect("it is there");
    set(&mut simulation, &of(r#""src-exchange":"amq.fanout""#));
    simulation.run();
    assert_eq!(simulation.engine.broker().queue_depth("/", "shovel.s"), Some(0));
    set(&mut simulation, FORWARD);
    simulation.run();
    assert_eq!(simulation.engine.broker().queue_depth("/", "shovel.s"), None, "nothing was in it");
}

#[test]
fn a_link_to_be_tried_once_is_retried_only_on_request() {
    let (mut simulation, far) = node();
    set(&mut simulation, &with(FORWARD, r#""reconnect-delay":0"#));
    simulation.run();
    far.line.borrow_mut().lose();
    simulation.run();
    let dialed = simulation.engine.platform_mut().dialed;
    simulation.pass_ms(3_600_000);
    assert_eq!(simulation.engine.platform_mut().dialed, dialed);
}

#[test]
fn shovels_are_limited_by_bridges_max_and_deleted_with_their_virtual_host() {
    let (mut simulation, _far) = node();
    let (broker, context) = simulation.engine.broker_mut();
    broker.put_vhost(context.pending_writes, "v").expect("there is room");
    set_in(&mut simulation, "v", "s", FORWARD).expect("there is room");
    set(&mut simulation, FORWARD);
    assert_eq!(set_in(&mut simulation, "/", "third", FORWARD), Err(OperatorFault::TooManyShovels));
    let nowhere = FORWARD.replace("\"amqp://\"", "\"amqp:///none\"");
    assert!(matches!(set_in(&mut simulation, "/", "s", &nowhere), Err(OperatorFault::Invalid(_))));
    assert_eq!(names(&simulation), ["s", "s"]);
    simulation.run();
    let (broker, mut context) = simulation.engine.broker_mut();
    broker.delete_vhost(&mut context, "v").expect("it is there");
    simulation.run();
    assert_eq!(names(&simulation), ["s"]);
    set_in(&mut simulation, "/", "third", FORWARD).expect("there is room again");
}

/// There is memory for one shovel. It is changed in that memory, and another one is refused until it is deleted.
#[test]
fn a_shovel_is_refused_without_memory_and_changed_in_its_own() {
    let (mut simulation, far) = node_in(&Memory::new(COMMAND_EXTENTS + 300, [0; 3]));
    set(&mut simulation, FORWARD);
    simulation.run();
    let dialed = simulation.engine.platform_mut().dialed;
    assert!(dialed > 0, "it is started");
    let before = simulation.engine.broker().memory().extents_used();
    assert_eq!(
        set_in(&mut simulation, "/", "other", FORWARD),
        Err(OperatorFault::NoCapacity("another shovel"))
    );
    set(&mut simulation, &with(FORWARD, r#""reconnect-delay":7"#));
    simulation.run();
    far.line.borrow_mut().lose();
    simulation.pass_ms(60_000);
    assert!(simulation.engine.platform_mut().dialed > dialed, "it goes on with its new value");
    assert!(
        simulation.engine.broker().memory().extents_used() <= before + 2,
        "its memory is that of the old one"
    );
    let (broker, context) = simulation.engine.broker_mut();
    broker.clear_parameter(context.pending_writes, Some("/"), "shovel", "s").expect("it is there");
    simulation.pass_ms(60_000);
    assert!(simulation.engine.broker().memory().extents_used() < before, "its memory was returned");
    set_in(&mut simulation, "/", "other", FORWARD).expect("there is memory again");
}

fn say(simulation: &mut Simulation, login: &str, line: &str, body: &str) -> String {
    let client = simulation.connect_management(Shape::WIDE, [127, 0, 0, 1]);
    let length = body.len();
    let head = format!("{line} HTTP/1.1\r\nHost: localhost:15672\r\n{login}Content-Length: {length}\r\n\r\n");
    ask(simulation, client, &(head + body))
}

#[test]
fn the_management_api_creates_shows_and_deletes_shovels() {
    let (mut simulation, _far) = node();
    let body = |value: &str| format!("{{\"value\":{value}}}");
    let at = "/api/parameters/shovel/%2F/s";
    let of_v = FORWARD.replace("\"amqp://\"", "\"amqp:///v\"");
    let here = FORWARD.replace("host-1", "[::ffff:127.0.0.1]");
    let file = FORWARD.replace("amqp://u:secret@host-1", "amqps://host-1?cacertfile=/etc/shadow");
    let may_all = r#"{"configure":".*","write":".*","read":".*"}"#;
    for (login, line, said, wanted, part) in [
        (GUEST, "PUT /api/users/ann".into(), r#"{"password":"a","tags":"monitoring"}"#.into(), "201", ""),
        (GUEST, "PUT /api/permissions/%2F/ann".into(), may_all.into(), "201", ""),
        (GUEST, "PUT /api/vhosts/v".into(), String::new(), "201", ""),
        (GUEST, format!("PUT {at}"), body(FORWARD), "201", ""),
        (GUEST, format!("PUT {at}"), body(FORWARD), "204", ""),
        (GUEST, format!("PUT {at}"), "{}".into(), "400", "[{key_missing,value}]"),
        (GUEST, format!("PUT {at}"), body("{}"), "400", "Must specify 'src-exchange' or 'src-queue'"),
        (GUEST, "PUT /api/parameters/none/%2F/s".into(), body("{}"), "400", "component none not found"),
        (GUEST, format!("GET {at}"), String::new(), "200", "\"component\":\"shovel\",\"name\":\"s\""),
        (GUEST, "GET /api/parameters/shovel".into(), String::new(), "200", "secret"),
        (GUEST, "GET /api/parameters/none".into(), String::new(), "200", "[\n]"),
        (ANN, format!("GET {at}"), String::new(), "401", ""),
        (ANN, format!("PUT {at}"), body(FORWARD), "401", ""),
        (ANN, "GET /api/parameters".into(), String::new(), "401", ""),
        (ANN, "GET /api/global-parameters".into(), String::new(), "401", ""),
        (GUEST, "GET /api/shovels".into(), String::new(), "200", "\"dest_uri\":\"amqp://host-1\""),
        (GUEST, "GET /api/shovels/vhost/%2F/s".into(), String::new(), "200", "\"type\":\"dynamic\""),
        (GUEST, "GET /api/shovels/none".into(), String::new(), "404", ""),
        (ANN, "GET /api/shovels".into(), String::new(), "200", "\"name\":\"s\""),
        (GUEST, "PUT /api/users/ann".into(), r#"{"password":"a","tags":"policymaker"}"#.into(), "204", ""),
        (ANN, format!("PUT {at}"), body(FORWARD), "204", ""),
        (ANN, format!("PUT {at}"), body(&of_v), "400", "user \\\"ann\\\" may not connect to vhost \\\"v\\\""),
        (
            ANN,
            format!("PUT {at}"),
            body(&here),
            "400",
            "only an administrator may configure it to connect to",
        ),
        (
            ANN,
            format!("PUT {at}"),
            body(&file),
            "400",
            "only an administrator may configure it to name files",
        ),
        (ANN, "PUT /api/parameters/shovel/v/s".into(), body(FORWARD), "401", ""),
        (ANN, format!("GET {at}"), String::new(), "200", ""),
        (ANN, "GET /api/shovels".into(), String::new(), "401", ""),
        (GUEST, "DELETE /api/shovels/vhost/%2F/none/restart".into(), String::new(), "404", ""),
        (GUEST, "DELETE /api/shovels/vhost/%2F/s/restart".into(), String::new(), "204", ""),
        (GUEST, "DELETE /api/shovels/vhost/%2F/s".into(), String::new(), "204", ""),
        (GUEST, "DELETE /api/shovels/vhost/%2F/s".into(), String::new(), "404", ""),
        (GUEST, "PUT /api/global-parameters/g".into(), body("[1,2.5]"), "201", ""),
        (GUEST, "GET /api/global-parameters/g".into(), String::new(), "200", "[1,2.5]"),
        (
            GUEST,
            "GET /api/definitions".into(),
            String::new(),
            "200",
            "\"global_parameters\":[\n{\"name\":\"g\"",
        ),
        (GUEST, "DELETE /api/global-parameters/g".into(), String::new(), "204", ""),
        (GUEST, "DELETE /api/global-parameters/g".into(), String::new(), "404", ""),
    ] {
        let answer = say(&mut simulation, login, &line, &said);
        assert_eq!(status(&answer), wanted, "{line}: {answer}");
        assert!(answer.contains(part), "{line}: no {part} in {answer}");
        let shows_secret = answer.contains("secret");
        assert_eq!(
            shows_secret,
            line.starts_with("GET /api/parameters") && wanted == "200" && !line.contains("none"),
            "{line}"
        );
        simulation.run();
    }
}

#[test]
fn a_host_name_that_leads_to_this_machine_is_refused() {
    let (mut simulation, _far) = node();
    let line = Rc::new(RefCell::new(Line::new(Shape::WIDE)));
    simulation.engine.platform_mut().upstreams.push((SocketAddr::from(([127, 0, 0, 1], 5672)), line));
    set(&mut simulation, &FORWARD.replace("host-1", "here-1"));
    simulation.run();
    assert_eq!(simulation.engine.platform_mut().dialed, 0);
    let said = operator_ask(&mut simulation, "GET /api/ctl/bridges");
    assert!(said.contains("resolves to this machine itself"), "{said}");
}

#[test]
fn a_paused_shovel_says_so_and_how_to_resume_it() {
    let (mut simulation, mut far) = node();
    set(&mut simulation, FORWARD);
    open_forward(&mut simulation, &mut far);
    operator_ask(&mut simulation, "POST /api/ctl/bridges/shovel%20s/pause");
    let said = operator_ask(&mut simulation, "GET /api/shovels");
    assert!(said.contains("it is paused: use resume_bridge"), "{said}");
}

/// The state after a power cut between the end of a shovel and that of its queue: the queue has no owner.
#[test]
fn only_the_queue_of_a_missing_shovel_is_deleted_at_the_next_start() {
    let (mut simulation, _far) = node();
    let from_exchange = FORWARD.replace("\"src-queue\":\"here\"", "\"src-exchange\":\"amq.fanout\"");
    set(&mut simulation, &from_exchange);
    simulation.run();
    let queues = |simulation: &Simulation| -> Vec<String> {
        let broker = simulation.engine.broker();
        let all = broker.views().queues();
        all.map(|queue| queue.name.to_string()).filter(|name| !name.ends_with(".parked")).collect()
    };
    assert_eq!(queues(&simulation), ["shovel.s"]);
    let arguments = |broker: &Broker| {
        let queue = broker.views().queues().find(|queue| queue.name == "shovel.s");
        queue.expect("it is there").arguments.as_bytes().to_vec()
    };
    let whose = arguments(simulation.engine.broker());
    let client = simulation.open(&[1]);
    let declare = |queue, bytes| {
        let (passive, durable, exclusive, auto_delete, no_wait) = (false, true, false, false, false);
        let arguments = Table::trusted(bytes);
        Method::QueueDeclare { queue, passive, durable, exclusive, auto_delete, no_wait, arguments }
    };
    simulation.ask(client, 1, &declare("shovel.somebodys", &[]));
    simulation.publish_to(client, 1, "shovel.somebodys", b"1");
    simulation.ask(client, 1, &declare("another", &whose));
    simulation.engine.set_bridges(&[]);
    simulation.run();
    assert_eq!(
        queues(&simulation),
        ["shovel.s", "shovel.somebodys", "another"],
        "it is a shovel's that is there"
    );
    let (broker, context) = simulation.engine.broker_mut();
    broker.clear_parameter(context.pending_writes, Some("/"), "shovel", "s").expect("it is there");
    simulation.run();
    simulation.engine.set_bridges(&[]);
    simulation.run();
    assert_eq!(queues(&simulation), ["shovel.somebodys"]);
}
