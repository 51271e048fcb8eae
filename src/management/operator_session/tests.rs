//! Tests sessions with a broker that has queues, without sockets.

use std::collections::BTreeMap;

use serde_json::Value;

use super::*;
use crate::json::Json;
use crate::listing::Filter;
use crate::listing::{Ordered, RowProbe};
use crate::request_context::Endurance;
use crate::request_context::ReadContext;
use crate::request_context::{
    BridgeLinkView, Bridges, Machine, Orders, Process, SocketView, Sockets, StoreView,
};
use crate::samples::Samples;
use crate::web_page::Tokens;
use leveret_broker::{Broker, Context, Work};
use leveret_core::command::ConnectionId;
use leveret_core::limits::Limits;
use leveret_core::mem::{MessageLimits, Messages};
use leveret_core::pending_writes::PendingWrites;

struct NoSockets;

impl Sockets for NoSockets {
    fn places(&self) -> usize {
        0
    }

    fn at(&self, _: ConnectionId) -> Option<SocketView<'_>> {
        None
    }
}

impl Bridges for NoSockets {
    fn places(&self) -> usize {
        0
    }

    fn places_max(&self) -> usize {
        0
    }

    fn at(&self, _: usize) -> Option<BridgeLinkView<'_>> {
        None
    }

    fn is_known(&self, _: &str) -> bool {
        false
    }
}

struct Stage {
    broker: Broker,
    pending_writes: PendingWrites,
    work: Work,
    messages: Messages,
    process: Process,
    orders: Orders,
    tokens: Tokens,
    samples: Samples,
}

impl Stage {
    fn new() -> Self {
        let limits = Limits { queues_max: 2000, ..Limits::default() };
        Self {
            broker: Broker::new(&limits, Box::new(|bytes| bytes.fill(7))).unwrap(),
            pending_writes: PendingWrites::new(64),
            work: Work::default(),
            messages: Messages::new(MessageLimits {
                messages_max: 64,
                body_bytes_max: 1 << 20,
                assembly_bytes_max: 1 << 19,
            }),
            process: Process {
                hosts: Vec::new(),
                node: String::new(),
                machine: Machine::default(),
                environment: String::new(),
                data_dir: String::new(),
                configuration: String::new(),
                listeners: Vec::new(),
                product: (String::new(), String::new()),
                memory_limit_bytes: 0,
                uptime_ms: 0,
                connections: 0,
                handshakes_evicted: 0,
                message_size_max: 1 << 20,
                connections_opened: 0,
                confirmed: 0,
                has_refused_reads: false,
                certificates_end: None,
                is_tls_unavailable: false,
                has_unread_definitions: false,
                waiting_publishers: 0,
                waiters: None,
                disk_limit_bytes: 0,
                store: StoreView::default(),
                endurance: Endurance::default(),
                memory: Vec::new(),
            },
            orders: Orders::default(),
            tokens: Tokens::default(),
            samples: Samples::default(),
        }
    }

    fn declare(&mut self, queue: &str, arguments: &[u8]) {
        self.broker
            .operator_declare_queue(
                &mut Context::new(&mut self.pending_writes, &mut self.messages, &mut self.work),
                "/",
                queue,
                (false, false),
                arguments,
            )
            .unwrap();
    }

    fn step(&mut self, connection: &mut OperatorSession) {
        let mut context = RequestContext {
            broker: &mut self.broker,
            pending_writes: &mut self.pending_writes,
            messages: &mut self.messages,
            work: &mut self.work,
            sockets: &NoSockets,
            bridges: &NoSockets,
            process: &self.process,
            files: None,
            orders: &mut self.orders,
            tokens: &mut self.tokens,
            samples: &self.samples,
        };
        connection.handle(&mut context);
        connection.fill(&mut context);
    }
}

/// Returns the body of a chunked response.
fn unchunked(answer: &[u8]) -> Vec<u8> {
    let start = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap() + 4;
    let (mut rest, mut body) = (&answer[start..], Vec::new());
    loop {
        let end = rest.windows(2).position(|bytes| bytes == b"\r\n").unwrap();
        let length = usize::from_str_radix(core::str::from_utf8(&rest[..end]).unwrap(), 16).unwrap();
        body.extend_from_slice(&rest[end + 2..end + 2 + length]);
        rest = &rest[end + 4 + length..];
        if length == 0 {
            assert!(rest.is_empty());
            return body;
        }
    }
}

const LIST: &[u8] = b"GET /api/queues/%2F?columns=name,arguments HTTP/1.1\r\n\r\n";

#[test]
fn a_listing_never_takes_more_than_its_room_and_shows_what_stays_once() {
    let mut stage = Stage::new();
    for number in 0..1500 {
        stage.declare(&format!("stays-{number}-{}", "x".repeat(100)), &[]);
    }
    let mut connection = OperatorSession::default();
    connection.take(LIST);
    let (mut answer, mut round) = (Vec::new(), 0);
    loop {
        stage.step(&mut connection);
        assert!(connection.output().len() <= OUTPUT_BYTES_MAX, "{}", connection.output().len());
        // The client reads a little now and then, while queues are created and deleted.
        let taken = connection.output().len().min(if round % 3 == 0 { 0 } else { 5000 });
        answer.extend_from_slice(&connection.output()[..taken]);
        connection.wrote(taken);
        round += 1;
        if round % 5 == 0 {
            stage.declare(&format!("comes-{round}"), &[]);
        } else if round % 5 == 3 && round > 5 {
            let name = format!("comes-{}", round - 3);
            stage
                .broker
                .operator_delete_queue(
                    &mut Context::new(&mut stage.pending_writes, &mut stage.messages, &mut stage.work),
                    "/",
                    &name,
                    leveret_broker::DeleteIf::default(),
                )
                .unwrap();
        }
        if !connection.has_request() && !connection.has_output() {
            break;
        }
    }
    let rows: Vec<Value> = serde_json::from_slice(&unchunked(&answer)).unwrap();
    let mut seen = BTreeMap::new();
    for row in &rows {
        *seen.entry(row["name"].as_str().unwrap().to_string()).or_insert(0) += 1;
    }
    assert!(seen.values().all(|times| *times == 1));
    assert_eq!(seen.keys().filter(|name| name.starts_with("stays-")).count(), 1500);
    assert!(connection.room() == REQUEST_BYTES_MAX, "and it listens again");
}

#[test]
fn arguments_that_fit_nowhere_are_told_to_be_so() {
    let mut stage = Stage::new();
    let mut arguments = b"\x01aS".to_vec();
    arguments.extend_from_slice(&(70_000_u32).to_be_bytes());
    arguments.resize(arguments.len() + 70_000, b'x');
    stage.declare("before", &[]);
    stage.declare("large", &arguments);
    stage.declare("after", &[]);
    let mut connection = OperatorSession::default();
    connection.take(LIST);
    let mut answer = Vec::new();
    while connection.has_request() || connection.has_output() {
        stage.step(&mut connection);
        answer.extend_from_slice(connection.output());
        connection.wrote(connection.output().len());
    }
    let rows: Vec<Value> = serde_json::from_slice(&unchunked(&answer)).unwrap();
    let shown: Vec<&Value> = rows.iter().map(|row| &row["arguments"]).collect();
    assert_eq!(shown, [&serde_json::json!({}), &"too large to show".into(), &serde_json::json!({})]);
}

#[test]
fn requests_are_answered_in_their_order_one_at_a_time() {
    let mut stage = Stage::new();
    let mut connection = OperatorSession::default();
    connection.take(
        b"GET /api/vhosts?columns=name HTTP/1.1\r\n\r\nDELETE /api/queues/%2F/none HTTP/1.1\r\n\r\nGET",
    );
    stage.step(&mut connection);
    let first = String::from_utf8_lossy(connection.output()).into_owned();
    assert!(first.contains("200 OK") && !first.contains("404"), "one after the other: {first}");
    let mut answer = Vec::new();
    while connection.has_request() || connection.has_output() {
        answer.extend_from_slice(connection.output());
        connection.wrote(connection.output().len());
        stage.step(&mut connection);
    }
    let text = String::from_utf8(answer).unwrap();
    let (first, second) = (text.find("HTTP/1.1 200").unwrap(), text.find("HTTP/1.1 404").unwrap());
    assert!(first < second && text.contains("{\"name\":\"/\"}"), "{text}");
    assert_eq!(connection.room(), REQUEST_BYTES_MAX - 3, "the beginning of the third waits");
    connection.take(b" nonsense\r\n\r\n");
    stage.step(&mut connection);
    assert!(connection.output().starts_with(b"HTTP/1.1 400"));
    connection.wrote(connection.output().len());
    assert!(connection.is_ending() && connection.output().is_empty());
}

/// The control socket refuses unknown columns instead of showing all columns.
#[test]
fn unknown_columns_are_refused_however_they_are_written() {
    for columns in ["nosuch", "name,nosuch", "%zz", "name%"] {
        let mut stage = Stage::new();
        let mut connection = OperatorSession::default();
        connection.take(format!("GET /api/queues?columns={columns} HTTP/1.1\r\n\r\n").as_bytes());
        stage.step(&mut connection);
        let answer = String::from_utf8_lossy(connection.output()).into_owned();
        assert!(
            answer.starts_with("HTTP/1.1 400") && answer.contains("not supported"),
            "{columns}: {answer}"
        );
    }
}

thread_local! {
    static LOOKED: core::cell::Cell<usize> = const { core::cell::Cell::new(0) };
}

const ALIKE: usize = 3000;

fn name_like_others(place: usize) -> String {
    format!(
        "{}{:04}{}",
        "same ".repeat(9),
        place * 7 % ALIKE,
        if place.is_multiple_of(2) { "" } else { "\"" }
    )
}

#[test]
fn names_with_equal_beginnings_are_sorted_in_steps() {
    let probe = RowProbe {
        cell: |_, _, place, _, out| {
            LOOKED.set(LOOKED.get() + 1);
            Json::new(out, 4096).text(&name_like_others(place));
            true
        },
        name: |_, _| None,
    };
    for reverse in ["false", "true"] {
        let text = format!("GET /api/queues?sort=name&sort_reverse={reverse} HTTP/1.1\r\n\r\n");
        let Parsed::Request(request, _) = http::parse(text.as_bytes(), 1024) else { panic!() };
        let mut ordered = Ordered::from_query(&request, true, None).unwrap().unwrap();
        let stage = Stage::new();
        let context = ReadContext {
            broker: &stage.broker,
            sockets: &NoSockets,
            bridges: &NoSockets,
            samples: &stage.samples,
            node: "",
        };
        (0..ALIKE).for_each(|place| _ = ordered.take(probe, &Filter::default(), context, (0, place)));
        let mut steps = 0;
        loop {
            LOOKED.set(0);
            let is_done = ordered.put_in_order(&|_| probe, &Filter::default(), context, 100);
            assert!(LOOKED.get() <= 100, "a step looks at no more than it may");
            steps += 1;
            if is_done {
                break;
            }
        }
        assert!(steps > ALIKE / 100, "it took {steps}");
        ordered.begin().unwrap();
        let mut found = Vec::new();
        while let Some((_, place)) = ordered.next() {
            found.push(name_like_others(place));
            ordered.pass();
        }
        let mut wanted: Vec<_> = (0..ALIKE).map(name_like_others).collect();
        wanted.sort_by(|a, b| if reverse == "true" { b.cmp(a) } else { a.cmp(b) });
        assert_eq!(found, wanted);
    }
}

/// A request that arrives byte by byte is parsed a few times, not once for each byte.
#[test]
fn a_request_in_small_parts_is_parsed_a_few_times() {
    let long = "x".repeat(40_000);
    for (request, looks_max) in [
        (format!("GET /api/none HTTP/1.1\r\nHost: localhost\r\nX: {long}\r\n\r\n"), 20),
        (format!("PUT /api/none HTTP/1.1\r\nHost: localhost\r\nContent-Length: 40000\r\n\r\n{long}"), 20),
        ("\r\n".repeat(20_000) + "GET /api/none HTTP/1.1\nHost: localhost\n\n", 20),
        (format!("GET /api/none HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(31)), 20),
    ] {
        let mut stage = Stage::new();
        let mut session = OperatorSession::for_network(true);
        let mut parses = 0;
        for octet in request.bytes() {
            assert!(!session.has_output(), "an answer before the end");
            session.take(&[octet]);
            parses += u32::from(session.has_request());
            stage.step(&mut session);
        }
        assert!(parses <= looks_max, "{parses} looks at {:?}", &request[..40]);
        let output = String::from_utf8_lossy(session.output()).into_owned();
        assert!(output.starts_with("HTTP/1.1 4"), "{output}");
    }
}
