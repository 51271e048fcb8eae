//! Runs a broker on arbitrary bytes: up to three hostile clients send anything, and a witness must be served.
//!
//! A fuzzer finds unexpected cases only if its bytes lead somewhere. So they are read as instructions: valid
//! methods with arbitrary arguments, contents of any size, raw bytes, fragments, windows, breaks, and time.
//!
//! # Invariants
//! - The broker never panics.
//! - Every pool is within its limits after each turn.
//! - The simulation comes to rest.
//! - The hostile clients receive valid frames.
//! - The witness receives its own message after they have left. Then nothing is left of them.

use leveret_amqp::{Method, Table, Writer};
use leveret_core::limits::Limits;

use super::{LOST_MS, Manners, Shape, Silence, Simulation, consume, content_frames, frame, method_frame};

const QUEUES: [&str; 4] = ["red", "green", "blue", ""];
const EXCHANGES: [&str; 7] = ["", "amq.direct", "amq.fanout", "amq.topic", "amq.headers", "x", "y"];
const KEYS: [&str; 6] = ["red", "green", "a.b", "a.#", "*.b", "nowhere"];
const TAGS: [&str; 3] = ["one", "two", ""];
const GUESTS: usize = 3;

pub(super) fn limits() -> Limits {
    Limits {
        connections_max: 8,
        handshakes_max: 8,
        channels_max: 16,
        channel_max: 8,
        frame_max: 4096,
        consumers_max: 12,
        queues_max: 10,
        exchanges_max: 12,
        bindings_max: 16,
        names_bytes_max: 2048,
        messages_max: 64,
        body_bytes_max: 256 << 10,
        assembly_bytes_max: 128 << 10,
        message_size_max: 64 << 10,
        queue_entries_max: 640,
        unacknowledged_max: 64,
        input_buffer_bytes: 8 << 10,
        output_buffer_bytes: 8 << 10,
        input_backlog_bytes_max: 64 << 10,
        ..Limits::default()
    }
}

/// The bytes as instructions; zeros after their end.
pub(super) struct Script<'o>(pub(super) &'o [u8]);

impl<'o> Script<'o> {
    pub(super) fn octet(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    pub(super) fn below(&mut self, bound: usize) -> usize {
        usize::from(self.octet()) % bound
    }

    fn flag(&mut self) -> bool {
        self.octet() & 1 != 0
    }

    pub(super) fn one_of<T: Copy>(&mut self, things: &[T]) -> T {
        things[self.below(things.len())]
    }

    pub(super) fn octets(&mut self, most: usize) -> &'o [u8] {
        let len = self.below(most + 1).min(self.0.len());
        let (octets, rest) = self.0.split_at(len);
        self.0 = rest;
        octets
    }
}

struct Guests<'o> {
    script: Script<'o>,
    simulation: Simulation,
    lines: [Option<usize>; GUESTS],
    /// A client sent raw bytes that may have declared anything.
    anything: bool,
}

/// Runs the script and checks the result.
pub fn check_any_session(octets: &[u8]) {
    let mut simulation = Simulation::new(limits());
    let witness = simulation.open(&[1]);
    simulation.declare(witness, 1, "witness");
    simulation.consume(witness, 1, "witness", "witness", true);
    let script = Script(octets);
    let mut guests = Guests { script, simulation, lines: [None; GUESTS], anything: false };
    while !guests.script.0.is_empty() {
        guests.instruct();
    }
    guests.leave(witness);
}

impl Guests<'_> {
    fn instruct(&mut self) {
        let number = self.script.below(GUESTS);
        let Some(guest) = self.lines[number] else { return self.arrive(number) };
        match self.script.below(16) {
            0..=6 => self.say_method(guest),
            7 | 8 => self.publish(guest),
            9 => self.say_anything(guest),
            10 => {
                let channel = self.script.below(5) as u16;
                let kind = self.script.octet();
                let payload = self.script.octets(60);
                self.anything = true;
                self.say(guest, &frame(kind, channel, payload));
            }
            11 => {
                self.simulation.line(guest).shape.up_fragment = 1 + self.script.below(200);
                self.simulation.line(guest).shape.down_fragment = 1 + self.script.below(200);
            }
            12 => {
                self.simulation.clients[guest].manners.greed = self.script.one_of(&[0, 1, 50, usize::MAX]);
                self.simulation.line(guest).shape.down_room = self.script.one_of(&[10, 300, 5_000, 1 << 20]);
            }
            13 => self.depart(number, guest),
            14 => self.simulation.pass_ms(u64::from(self.script.octet()) * 200),
            _ => {
                for _ in 0..self.script.octet() {
                    self.simulation.round();
                }
            }
        }
    }

    fn arrive(&mut self, number: usize) {
        let manners = Manners { silence: Silence::AtOnce, is_heedless: true, ..Manners::default() };
        let guest = self.simulation.connect(manners, Shape::WIDE);
        self.lines[number] = Some(guest);
        if self.script.below(8) == 0 {
            self.anything = true;
            return;
        }
        let heartbeat = self.script.one_of(&[0, 0, 1, 60]);
        let mut hello = b"AMQP\0\0\x09\x01".to_vec();
        hello.extend(start_ok());
        let tune_ok = Method::ConnectionTuneOk { channel_max: 8, frame_max: 4096, heartbeat };
        hello.extend(method_frame(0, &tune_ok));
        hello.extend(method_frame(0, &Method::ConnectionOpen { virtual_host: "/" }));
        for channel in 1..=3 {
            hello.extend(method_frame(channel, &Method::ChannelOpen {}));
        }
        self.say(guest, &hello);
    }

    fn say(&mut self, guest: usize, octets: &[u8]) {
        self.simulation.clients[guest].say_raw(octets);
    }

    fn say_anything(&mut self, guest: usize) {
        self.anything = true;
        let octets = self.script.octets(255);
        self.say(guest, octets);
    }

    fn depart(&mut self, number: usize, guest: usize) {
        match self.script.below(3) {
            0 => self.simulation.lose(guest),
            1 => self.simulation.hang_up(guest),
            _ => {
                self.simulation.line(guest).cut_up = {
                    let sent = self.simulation.line(guest).sent_up();
                    Some(sent + u64::from(self.script.octet()))
                }
            }
        }
        if self.script.flag() {
            self.lines[number] = None;
            self.simulation.lose(guest);
            self.simulation.pass_ms(LOST_MS);
        }
    }

    fn say_method(&mut self, guest: usize) {
        let channel = 1 + self.script.below(3) as u16;
        let script = &mut self.script;
        let (queue, key) = (script.one_of(&QUEUES), script.one_of(&KEYS));
        let (exchange, consumer_tag) = (script.one_of(&EXCHANGES), script.one_of(&TAGS));
        let (flag, other_flag) = (script.flag(), script.flag());
        let delivery_tag = script.below(12) as u64;
        let own = script.one_of(&["x", "y"]);
        let no_wait = delivery_tag == 11;
        let limited = arguments(script.below(6) as u8);
        let arguments = Table::trusted(&limited);
        let (multiple, requeue) = (flag, other_flag);
        let method = match script.below(28) {
            0 | 1 => Method::QueueDeclare {
                queue,
                passive: delivery_tag == 1,
                durable: false,
                // No other client would know its name to delete it.
                exclusive: queue.is_empty(),
                auto_delete: other_flag || queue.is_empty(),
                no_wait,
                arguments,
            },
            2 => Method::QueueBind { queue, exchange, routing_key: key, no_wait, arguments: Table::EMPTY },
            3 => Method::QueueUnbind { queue, exchange, routing_key: key, arguments: Table::EMPTY },
            4 => Method::QueuePurge { queue, no_wait },
            5 => Method::QueueDelete { queue, if_unused: flag, if_empty: other_flag, no_wait },
            6 => Method::ExchangeDeclare {
                exchange: own,
                kind: if own == "x" { "topic" } else { "fanout" },
                passive: false,
                durable: false,
                auto_delete: true,
                internal: false,
                no_wait,
                arguments: Table::EMPTY,
            },
            7 => Method::ExchangeDelete { exchange: own, if_unused: flag, no_wait },
            8 => Method::ExchangeBind {
                destination: own,
                source: exchange,
                routing_key: key,
                no_wait,
                arguments: Table::EMPTY,
            },
            9 | 10 => consume(queue, consumer_tag, flag),
            11 => consume("amq.rabbitmq.reply-to", consumer_tag, true),
            12 => Method::BasicCancel { consumer_tag, no_wait },
            13 | 14 => Method::BasicGet { queue, no_ack: flag },
            15 | 16 => Method::BasicAck { delivery_tag, multiple },
            17 => Method::BasicNack { delivery_tag, multiple, requeue },
            18 => Method::BasicReject { delivery_tag, requeue },
            19 => Method::BasicRecover { requeue: true },
            20 => Method::BasicQos { prefetch_size: 0, prefetch_count: delivery_tag as u16, global: flag },
            21 => Method::ConfirmSelect { no_wait },
            22 => Method::TxSelect {},
            23 => Method::TxCommit {},
            24 => Method::TxRollback {},
            25 => Method::ChannelOpen {},
            26 => super::close_channel(),
            _ => Method::ChannelCloseOk {},
        };
        let bytes = method_frame(channel, &method);
        self.say(guest, &bytes);
    }

    fn publish(&mut self, guest: usize) {
        let channel = 1 + self.script.below(3) as u16;
        let exchange = self.script.one_of(&EXCHANGES);
        let routing_key = self.script.one_of(&KEYS).as_bytes();
        let (mandatory, immediate) = (self.script.flag(), self.script.octet() == 1);
        let method = Method::BasicPublish { exchange, routing_key, mandatory, immediate };
        let size = self.script.one_of(&[0, 1, 60, 300, 4_000, 9_000, 40_000]);
        let properties = properties(self.script.octet());
        let piece = self.script.one_of(&[4_088, 4_088, 100]);
        let mut bytes = method_frame(channel, &method);
        bytes.extend(content_frames(channel, &properties, &vec![7; size], piece));
        // Some contents are incomplete, and followed by something else.
        if self.script.octet() == 255 {
            bytes.truncate(bytes.len() - bytes.len() / 3);
        }
        let times = 1 + self.script.below(12);
        self.say(guest, &bytes.repeat(times));
    }

    /// Ends all hostile clients. Checks that nothing is left of them.
    fn leave(mut self, witness: usize) {
        for guest in self.lines.into_iter().flatten() {
            self.simulation.lose(guest);
        }
        self.simulation.pass_ms(LOST_MS);
        let simulation = &mut self.simulation;
        assert_eq!(simulation.peers_count(), 1, "the guests are gone");
        for queue in ["red", "green", "blue"] {
            simulation.ask(witness, 1, &super::delete(queue));
        }
        for exchange in ["x", "y"] {
            simulation.ask(
                witness,
                1,
                &Method::ExchangeDelete { exchange, if_unused: false, no_wait: false },
            );
        }
        let gauges = simulation.engine.broker().gauges();
        assert_eq!((gauges.connections, gauges.channels, gauges.consumers), (1, 1, 1), "{gauges:?}");
        assert_eq!((gauges.deliveries, gauges.jobs), (0, 0), "{gauges:?}");
        if self.anything {
            return;
        }
        simulation.deliveries(witness);
        simulation.publish_to(witness, 1, "witness", b"still served");
        simulation.run();
        assert_eq!(simulation.deliveries(witness).len(), 1);
        simulation.ask(witness, 1, &super::delete("witness"));
        simulation.lose_everybody();
        simulation.assert_empty();
    }
}

/// Returns the arguments of a queue.
fn arguments(which: u8) -> Vec<u8> {
    let mut bytes = vec![0; 128];
    let mut writer = Writer::new(&mut bytes);
    let written = writer.table(|table| match which {
        1 => table.int("x-max-length", 3),
        2 => table.int("x-max-length-bytes", 500),
        3 => table.int("x-max-length", 3).and_then(|()| table.text("x-overflow", "reject-publish")),
        4 => table.int("x-no-such-thing", 1),
        5 => table.bool("x-single-active-consumer", true),
        _ => Ok(()),
    });
    assert!(written.is_ok());
    writer.written()[4..].to_vec()
}

/// Returns properties, some of which the broker interprets.
fn properties(which: u8) -> Vec<u8> {
    let headers = |name: &str, value: &str| {
        let mut bytes = vec![0; 128];
        let mut writer = Writer::new(&mut bytes);
        let written = writer
            .table(|table| table.array(name, |array| array.text(value).and_then(|()| array.text("red"))));
        assert!(written.is_ok());
        [&[0x20, 0][..], writer.written()].concat()
    };
    match which % 9 {
        1 => headers("CC", "green"),
        2 => headers("BCC", "blue"),
        3 => [&[0x02, 0x00, 21][..], b"amq.rabbitmq.reply-to"].concat(),
        4 => [&[0x01, 0x00, 1][..], b"0"].concat(),
        5 => [&[0x00, 0x10, 5][..], b"guest"].concat(),
        6 => [&[0x00, 0x10, 4][..], b"root"].concat(),
        7 => vec![0x10, 0, 2],
        _ => vec![0, 0],
    }
}

fn start_ok() -> Vec<u8> {
    let start_ok = Method::ConnectionStartOk {
        client_properties: Table::EMPTY,
        mechanism: "PLAIN",
        response: b"\0guest\0guest",
        locale: "en_US",
    };
    method_frame(0, &start_ok)
}
