//! Sends arbitrary bytes as requests to the management API, from up to three hostile clients.
//!
//! A witness over AMQP and one over HTTP must be served. This tests not only the parser, but also what the
//! engine does with its result. The bytes are read as instructions: requests made of meaningful words, valid
//! or damaged at any position, raw bytes, fragments, small windows, breaks, and time.
//!
//! # Invariants
//! - The broker never panics.
//! - The simulation comes to rest.
//! - Every answer begins like an HTTP answer.
//! - When the clients have left, nothing is left of them, and a message and a request are served as before.

use super::hostile::{Script, limits};
use super::{LOST_MS, Shape, Simulation};

const CLIENTS: usize = 3;
const VERBS: [&str; 9] = ["GET", "PUT", "POST", "DELETE", "HEAD", "OPTIONS", "POST", "BREW", ""];
const WORDS: [&str; 45] = [
    "api",
    "queues",
    "exchanges",
    "bindings",
    "users",
    "vhosts",
    "permissions",
    "connections",
    "channels",
    "consumers",
    "definitions",
    "policies",
    "parameters",
    "global-parameters",
    "vhost-limits",
    "user-limits",
    "%2F",
    "witness",
    "red",
    "amq.topic",
    "guest",
    "e",
    "q",
    "get",
    "contents",
    "publish",
    "leveret",
    "messages",
    "login",
    "overview",
    "nodes",
    "metrics",
    "per-object",
    "detailed",
    "health",
    "checks",
    "shovel",
    "username",
    "cluster-name",
    "feature-flags",
    "rebalance",
    "auth",
    "",
    "%00%0d%0a",
    "..",
];
const QUERIES: [&str; 9] = [
    "",
    "?page=1&page_size=2&sort=name",
    "?page=1&use_regex=true&name=(a*)*b",
    "?columns=name,message_stats.x",
    "?lengths_age=60&lengths_incr=5",
    "?sort=messages&sort_reverse=true",
    "?page=99999999999",
    "?position=1&count=9",
    "?%&=&&a",
];
const LINES: [&str; 13] = [
    "Authorization: Basic Z3Vlc3Q6Z3Vlc3Q=\r\n",
    "Authorization: Basic Z3Vlc3Q6d3Jvbmc=\r\n",
    "Authorization: Bearer 00\r\n",
    "Origin: http://evil.example\r\n",
    "Origin: http://localhost\r\n",
    "Connection: close\r\n",
    "Expect: 100-continue\r\n",
    "If-None-Match: *\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Content-Length: 7\r\n",
    "Host: evil.example\r\n",
    "X:\r\n y\r\n",
    "X-Requested-With: page\r\n",
];
const BODIES: [&str; 12] = [
    "",
    "{}",
    "[]",
    r#"{"durable":true}"#,
    r#"{"password":"x","tags":"administrator"}"#,
    r#"{"ackmode":"ack_requeue_true","encoding":"auto","count":5}"#,
    r#"{"ackmode":"reject_requeue_false","encoding":"base64","count":-1}"#,
    concat!(
        r#"{"properties":{"headers":{"a":[1,{"b":null}]}},"routing_key":"red","#,
        r#""payload":"x","payload_encoding":"string"}"#
    ),
    r#"{"pattern":".","definition":{"max-length":1}}"#,
    r#"{"value":{"src-uri":"amqp://","a":1}}"#,
    r#"{"queues":[{"name":"green","vhost":"/"}],"users":[{"name":"z","password":"z","tags":""}]}"#,
    r#"{"configure":"(","write":".*","read":".*"}"#,
];

struct Clients<'o> {
    script: Script<'o>,
    simulation: Simulation,
    places: [Option<usize>; CLIENTS],
    /// A request may have changed the objects of the witness.
    anything: bool,
}

/// Runs the script and checks the result.
pub fn check_any_requests(octets: &[u8]) {
    let mut simulation = Simulation::new(limits());
    let witness = simulation.open(&[1]);
    simulation.declare(witness, 1, "witness");
    simulation.consume(witness, 1, "witness", "witness", true);
    let mut clients =
        Clients { script: Script(octets), simulation, places: [None; CLIENTS], anything: false };
    while !clients.script.0.is_empty() {
        clients.instruct();
    }
    clients.leave(witness);
}

impl Clients<'_> {
    fn instruct(&mut self) {
        let number = self.script.below(CLIENTS);
        let Some(client) = self.places[number] else {
            let fragment = self.script.one_of(&[1, 7, 200, usize::MAX]);
            let down_room = self.script.one_of(&[10, 300, 5_000, 1 << 20]);
            let shape = Shape { up_fragment: fragment, down_fragment: fragment, down_room, ..Shape::WIDE };
            self.places[number] = Some(match self.script.below(6) {
                0 => self.simulation.connect_metrics(shape, [192, 0, 2, 1]),
                1 => self.simulation.connect_management(shape, [192, 0, 2, 2]),
                _ => self.simulation.connect_management(shape, [127, 0, 0, 1]),
            });
            return;
        };
        match self.script.below(16) {
            0..=8 => self.request(client),
            9 => {
                let octets = self.script.octets(255);
                self.simulation.operator(client).write_up(octets);
            }
            10 | 11 => self.read(client),
            12 => {
                self.simulation.operator(client).hang_up();
                self.places[number] = None;
            }
            13 => self.simulation.pass_ms(u64::from(self.script.octet()) * 200),
            _ => {
                for _ in 0..self.script.octet() {
                    self.simulation.round();
                }
            }
        }
    }

    fn request(&mut self, client: usize) {
        let script = &mut self.script;
        let mut request = format!("{} ", script.one_of(&VERBS));
        for _ in 0..1 + script.below(7) {
            request += "/";
            request += script.one_of(&WORDS);
        }
        request += script.one_of(&QUERIES);
        request += script.one_of(&[" HTTP/1.1\r\n", " HTTP/1.1\r\n", " HTTP/1.0\r\n", "\r\n"]);
        request += script.one_of(&["Host: localhost\r\n", "Host: localhost\r\n", ""]);
        request += script.one_of(&[LINES[0], LINES[0], LINES[0], ""]);
        for _ in 0..script.below(3) {
            request += script.one_of(&LINES);
        }
        let body = script.one_of(&BODIES).to_string();
        let body = match script.below(8) {
            // Longer than the buffer of a request.
            0 => format!("{}{body}", " ".repeat(70_000)),
            _ => body,
        };
        match script.below(3) {
            0 => {
                let chunk = script.one_of(&[1, 3, 100, 60_000]);
                request += "Transfer-Encoding: chunked\r\n\r\n";
                for part in body.as_bytes().chunks(chunk) {
                    request += &format!("{:x}\r\n{}\r\n", part.len(), String::from_utf8_lossy(part));
                }
                request += script.one_of(&["0\r\n\r\n", "0;a=b\r\nX: y\r\n\r\n", "0\r\n", ""]);
            }
            _ => request += &format!("Content-Length: {}\r\n\r\n{body}", body.len()),
        }
        let mut octets = request.into_bytes();
        match script.below(8) {
            // Some requests are incomplete or damaged.
            0 => octets.truncate(octets.len() * script.below(256) / 256),
            1 => {
                let at = octets.len() * script.below(256) / 256;
                octets[at] = script.octet();
            }
            _ => {}
        }
        self.anything = true;
        self.simulation.operator(client).write_up(&octets);
    }

    fn read(&mut self, client: usize) {
        let most = self.script.one_of(&[1, 100, usize::MAX]);
        self.simulation.operator(client).read_down(most, &mut Vec::new());
    }

    /// Ends all hostile clients. Checks that nothing is left of them.
    fn leave(mut self, witness: usize) {
        for client in self.places.into_iter().flatten() {
            self.simulation.operator(client).hang_up();
            self.simulation.operator(client).read_down(usize::MAX, &mut Vec::new());
        }
        self.simulation.pass_ms(LOST_MS);
        let simulation = &mut self.simulation;
        let client = simulation.connect_management(Shape::WIDE, [127, 0, 0, 1]);
        let request = b"GET /api/none HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        simulation.operator(client).write_up(request);
        let mut said = Vec::new();
        for _ in 0..40 {
            simulation.pass_ms(500);
            simulation.operator(client).read_down(usize::MAX, &mut said);
        }
        assert!(said.starts_with(b"HTTP/1.1 401 "), "{}", String::from_utf8_lossy(&said));
        let gauges = simulation.engine.broker().gauges();
        assert_eq!((gauges.deliveries, gauges.jobs), (0, 0), "{gauges:?}");
        if self.anything {
            return;
        }
        simulation.deliveries(witness);
        simulation.publish_to(witness, 1, "witness", b"still served");
        simulation.run();
        assert_eq!(simulation.deliveries(witness).len(), 1);
    }
}
