//! A bridge whose upstream is an in-memory line. This tests cases that a real upstream cannot be made to
//! show.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;

use leveret_amqp::{
    ContentHeader, FrameKind, HEARTBEAT_FRAME, Method, Properties, Table, Writer, next_frame,
};
use leveret_config::bridge::{Bridge, Destination, DrainRate, RefusedAction, Rule, UpstreamTls};
use leveret_config::upstream::Upstream;
use leveret_core::limits::Limits;

use super::bridge_wait::refuse;
use leveret_test_support::simulated_server::{
    Line, Shape, Simulation, content_frames, method_frame, small_limits,
};

/// The address of the upstream.
const AT: ([u8; 4], u16) = ([10, 0, 0, 1], 5672);
/// A host name that resolves to [`AT`].
const HOST: &str = "host-1";

fn limits() -> Limits {
    Limits { bridges_max: 1, ..small_limits() }
}

pub(super) fn upstream(host: &str) -> Upstream {
    Upstream {
        with_tls: false,
        host: host.into(),
        port: AT.1,
        user: "u".into(),
        password: None,
        vhost: "/".into(),
    }
}

fn rule(refused: RefusedAction) -> Vec<Rule> {
    vec![Rule { queue: "here".into(), to: Destination::Queue("there".into()), refused, is_urgent: false }]
}

pub(super) fn bridge() -> Bridge {
    Bridge {
        name: "plant".into(),
        vhost: "/".into(),
        upstream: vec![upstream(HOST)],
        forward: rule(RefusedAction::Park),
        fetch: Vec::new(),
        window: 4,
        heartbeat_s: 10,
        reconnect_max_ms: 8_000,
        confirm_timeout_ms: 60_000,
        drain_rate: None,
        day_bytes_max: None,
        outage_days_min: None,
        on_demand: None,
        message_size_max: 1 << 20,
        hops_max: 8,
        parked: "parked".into(),
        park_after: 5,
        park_retry_ms: None,
        password_file: None,
        declares: false,
        shovel: None,
        tls: UpstreamTls::default(),
    }
}

/// The upstream's end of the line.
pub(super) struct Far {
    pub(super) line: Rc<RefCell<Line>>,
    pub(super) heard: Vec<u8>,
    /// Frames that were read but not examined yet.
    unread: Vec<(u16, Heard)>,
    /// Incomplete contents by channel: properties, received part of the body, and its announced length.
    contents: BTreeMap<u16, (Vec<u8>, Vec<u8>, u64)>,
    /// The requested prefetch counts, each with whether it is shared by the consumers of the channel.
    pub(super) ahead: Vec<(u16, bool)>,
    /// Number of messages published on each channel since it was opened.
    pub(super) counts: BTreeMap<u16, u64>,
    /// Names of methods that it does not answer automatically.
    pub(super) mute: Vec<&'static str>,
}

impl Far {
    pub(super) fn new(line: Rc<RefCell<Line>>) -> Self {
        let (heard, unread, ahead) = (Vec::new(), Vec::new(), Vec::new());
        let (contents, counts) = (BTreeMap::new(), BTreeMap::new());
        Self { line, heard, unread, contents, ahead, counts, mute: Vec::new() }
    }

    /// Returns everything received, as methods, headers and bodies, each with its channel.
    pub(super) fn take(&mut self) -> Vec<(u16, Heard)> {
        self.line.borrow_mut().read_down(usize::MAX, &mut self.heard);
        if self.heard.starts_with(b"AMQP") {
            self.heard.drain(..8);
        }
        let mut all = core::mem::take(&mut self.unread);
        let mut at = 0;
        while let Some(frame) = next_frame(&self.heard[at..], 1 << 20).expect("it speaks AMQP") {
            let channel = frame.header.channel;
            let heard = match frame.header.kind().expect("a known kind") {
                FrameKind::Method => {
                    let method = Method::parse(frame.payload).expect("a sound method");
                    match method {
                        Method::BasicQos { prefetch_count, global, .. } => {
                            self.ahead.push((prefetch_count, global));
                        }
                        Method::ChannelOpen {} => drop(self.counts.insert(channel, 0)),
                        Method::ChannelClose { .. } => drop(self.counts.remove(&channel)),
                        Method::BasicPublish { .. } => *self.counts.entry(channel).or_default() += 1,
                        _ => {}
                    }
                    Heard::Method(method.name(), consumer_of(&method))
                }
                FrameKind::Header => {
                    let header = ContentHeader::parse(frame.payload).expect("a sound header");
                    Heard::Header(header.properties.as_bytes().to_vec(), header.body_len)
                }
                FrameKind::Body => Heard::Body(frame.payload.to_vec()),
                FrameKind::Heartbeat => Heard::Heartbeat,
            };
            all.push((channel, heard));
            at += frame.input_len();
        }
        self.heard.drain(..at);
        all
    }

    pub(super) fn names(&mut self) -> Vec<&'static str> {
        self.names_on().into_iter().map(|(_, name)| name).collect()
    }

    /// Returns the names of the received methods, with their channels.
    pub(super) fn names_on(&mut self) -> Vec<(u16, &'static str)> {
        let method = |(channel, heard)| match heard {
            Heard::Method(name, _) => Some((channel, name)),
            Heard::Header(..) | Heard::Body(_) | Heard::Heartbeat => None,
        };
        self.take().into_iter().filter_map(method).collect()
    }

    /// Returns the published messages: bodies and properties.
    pub(super) fn published(&mut self) -> Vec<(Vec<u8>, Vec<u8>)> {
        self.published_on().into_iter().map(|(_, body, properties)| (body, properties)).collect()
    }

    /// Returns the published messages that are complete, with their channels.
    pub(super) fn published_on(&mut self) -> Vec<(u16, Vec<u8>, Vec<u8>)> {
        let mut all = Vec::new();
        for (channel, heard) in self.take() {
            let left = match heard {
                Heard::Header(properties, len) => {
                    let before = self.contents.insert(channel, (properties, Vec::new(), len));
                    assert!(before.is_none(), "a content within another on channel {channel}");
                    len
                }
                Heard::Body(octets) => {
                    let (_, body, len) = self.contents.get_mut(&channel).expect("a body follows its header");
                    body.extend(octets);
                    len.checked_sub(body.len() as u64).expect("no more than was announced")
                }
                Heard::Method(..) | Heard::Heartbeat => continue,
            };
            if left == 0
                && let Some((properties, body, _)) = self.contents.remove(&channel)
            {
                all.push((channel, body, properties));
            }
        }
        all
    }

    /// Answers requests of channels until there are no more. Returns the names of all requests.
    pub(super) fn answer(&mut self, simulation: &mut Simulation) -> Vec<(u16, &'static str)> {
        let mut asked = Vec::new();
        loop {
            let heard = self.names_and_tags();
            if heard.is_empty() {
                return asked;
            }
            for (channel, name, tag) in heard {
                asked.push((channel, name));
                let consumer_tag = &*tag;
                let answer = match name {
                    _ if self.mute.contains(&name) => continue,
                    // The method has no-wait set.
                    "basic.consume" | "basic.cancel" if tag.is_empty() => continue,
                    "channel.open" => Method::ChannelOpenOk {},
                    "channel.close" => Method::ChannelCloseOk {},
                    "confirm.select" => Method::ConfirmSelectOk {},
                    "basic.qos" => Method::BasicQosOk {},
                    "basic.consume" => Method::BasicConsumeOk { consumer_tag },
                    "basic.cancel" => Method::BasicCancelOk { consumer_tag },
                    _ => continue,
                };
                self.say(channel, &answer);
            }
            simulation.run();
        }
    }

    /// Returns the received methods except those of messages, which stay unread.
    fn names_and_tags(&mut self) -> Vec<(u16, &'static str, String)> {
        let (mut said, mut kept) = (Vec::new(), Vec::new());
        for (channel, heard) in self.take() {
            match heard {
                Heard::Method(name, tag) if name != "basic.publish" => said.push((channel, name, tag)),
                heard => kept.push((channel, heard)),
            }
        }
        self.unread = kept;
        said
    }

    /// Lets time pass while answering requests. Returns the names of all requests.
    pub(super) fn pass_ms(&mut self, simulation: &mut Simulation, ms: u64) -> Vec<(u16, &'static str)> {
        let mut asked = Vec::new();
        let mut left = ms;
        while left > 0 {
            let step = left.min(20_000);
            simulation.pass_ms(step);
            asked.extend(self.answer(simulation));
            left -= step;
        }
        asked
    }

    /// Confirms everything published on all channels.
    pub(super) fn confirm_all(&self, simulation: &mut Simulation) {
        for channel in self.counts.keys() {
            self.say(*channel, &ack(0, true));
        }
        simulation.run();
    }

    pub(super) fn say(&self, channel: u16, method: &Method<'_>) {
        self.say_bytes(&method_frame(channel, method));
    }

    pub(super) fn say_bytes(&self, bytes: &[u8]) {
        assert_eq!(self.line.borrow_mut().write_up(bytes), bytes.len());
    }
}

/// Returns the consumer tag of a method.
fn consumer_of(method: &Method<'_>) -> String {
    match method {
        Method::BasicConsume { consumer_tag, no_wait: false, .. }
        | Method::BasicCancel { consumer_tag, no_wait: false } => (*consumer_tag).to_string(),
        _ => String::new(),
    }
}

#[derive(Debug)]
pub(super) enum Heard {
    Method(&'static str, String),
    /// Properties, and the length of the body.
    Header(Vec<u8>, u64),
    Body(Vec<u8>),
    Heartbeat,
}

pub(super) fn simulation(config: Bridge) -> (Simulation, Far) {
    let mut simulation = Simulation::new(limits());
    let line = Rc::new(RefCell::new(Line::new(Shape::WIDE)));
    simulation.engine.platform_mut().upstreams.push((SocketAddr::from(AT), line.clone()));
    simulation.operators.push(line.clone());
    simulation.engine.set_bridges(&[config]);
    (simulation, Far::new(line))
}

/// Answers until messages can flow on the channels of all rules.
pub(super) fn open(simulation: &mut Simulation, far: &mut Far) {
    open_for(simulation, far);
    let asked = far.answer(simulation);
    assert!(asked.iter().any(|(_, name)| ["confirm.select", "basic.consume"].contains(name)), "{asked:?}");
}

/// Answers until channels are requested.
pub(super) fn open_for(simulation: &mut Simulation, far: &mut Far) {
    let start = Method::ConnectionStart {
        version_major: 0,
        version_minor: 9,
        server_properties: Table::EMPTY,
        mechanisms: b"PLAIN AMQPLAIN",
        locales: b"en_US",
    };
    let tune = Method::ConnectionTune { channel_max: 2047, frame_max: 131_072, heartbeat: 60 };
    far.counts.clear();
    far.contents.clear();
    simulation.run();
    far.say(0, &start);
    simulation.run();
    assert_eq!(far.names().last(), Some(&"connection.start-ok"));
    far.say(0, &tune);
    simulation.run();
    assert_eq!(far.names().last(), Some(&"connection.open"));
    far.say(0, &Method::ConnectionOpenOk {});
    simulation.run();
}

/// Publishes `count` numbered messages to the queue. Returns the publisher.
pub(super) fn fill(simulation: &mut Simulation, count: u8) -> usize {
    let client = simulation.open(&[1]);
    for number in 0..count {
        simulation.publish_to(client, 1, "here", &[number]);
    }
    simulation.run();
    client
}

pub(super) fn ack(number: u64, multiple: bool) -> Method<'static> {
    Method::BasicAck { delivery_tag: number, multiple }
}

pub(super) fn bodies(published: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    published.iter().map(|(body, _)| body[0]).collect()
}

pub(super) fn has_header(properties: &[u8], name: &str) -> bool {
    Properties::trusted(properties).headers().is_some_and(|headers| headers.get(name).is_some())
}

#[test]
fn a_window_is_filled_and_continues_as_messages_are_confirmed() {
    let (mut simulation, mut far) = simulation(bridge());
    open(&mut simulation, &mut far);
    let client = fill(&mut simulation, 10);
    let sent = far.published();
    assert_eq!(bodies(&sent), [0, 1, 2, 3], "the window is four");
    assert!(sent.iter().all(|(_, properties)| has_header(properties, "x-bridge-id")));
    assert_eq!(simulation.counts(client, 1, "here"), (6, 1));
    far.say(1, &ack(2, false));
    simulation.run();
    assert!(far.published().is_empty(), "the first is unconfirmed and still counts in the window");
    far.say(1, &ack(3, true));
    simulation.run();
    assert_eq!(bodies(&far.published()), [4, 5, 6]);
    far.say(1, &ack(0, true));
    simulation.run();
    assert_eq!(bodies(&far.published()), [7, 8, 9]);
    far.say(1, &ack(10, true));
    simulation.run();
    assert_eq!(simulation.counts(client, 1, "here"), (0, 1));
}

/// A program may publish before the upstream was ever reached, and its messages must not be dropped.
#[test]
fn the_queues_of_a_bridge_exist_before_its_first_link_is_up() {
    let (mut simulation, mut far) = simulation(bridge());
    let client = fill(&mut simulation, 2);
    assert_eq!(simulation.counts(client, 1, "here"), (2, 0));
    assert_eq!(simulation.counts(client, 1, "parked"), (0, 0));
    open(&mut simulation, &mut far);
    assert_eq!(bodies(&far.published()), [0, 1]);
}

#[test]
fn a_drain_rate_limits_what_the_window_would_allow() {
    let config = Bridge { drain_rate: Some(DrainRate::Messages(20)), window: 64, ..bridge() };
    let (mut simulation, mut far) = simulation(config);
    open(&mut simulation, &mut far);
    fill(&mut simulation, 60);
    let (mut sent, mut times) = (far.published().len(), 0);
    assert!((1..=3).contains(&sent), "{sent} went at once");
    while sent < 60 {
        simulation.pass_ms(50);
        simulation.run();
        let more = far.published().len();
        assert!(more <= 2, "{more} in a twentieth of a second");
        (sent, times) = (sent + more, times + 1);
        assert!(times <= 62, "{sent} after {times} twentieths");
    }
    assert!(times >= 57, "{times} twentieths of a second for 60 messages");
}

#[test]
fn unconfirmed_messages_are_sent_again_with_the_repeat_header_and_their_ids() {
    let (mut simulation, mut far) = simulation(bridge());
    open(&mut simulation, &mut far);
    fill(&mut simulation, 6);
    let first = far.published();
    far.say(1, &ack(1, false));
    simulation.run();
    far.published();
    far.line.borrow_mut().lose();
    simulation.run();
    far.heard.clear();
    simulation.pass_ms(1_100);
    open(&mut simulation, &mut far);
    let again = far.published();
    assert_eq!(bodies(&again), [1, 2, 3, 4], "confirmed messages are not sent again");
    assert!(has_header(&again[0].1, "x-bridge-repeat") && !has_header(&first[1].1, "x-bridge-repeat"));
    let id = |properties: &[u8]| {
        let headers = Properties::trusted(properties).headers().expect("there are headers");
        headers.get("x-bridge-id").and_then(|id| id.as_str()).map(str::to_string)
    };
    assert!(id(&again[0].1).is_some() && id(&again[0].1) == id(&first[1].1));
}

#[test]
fn a_missing_confirm_ends_the_link_but_a_blocked_upstream_does_not() {
    let (mut simulation, mut far) = simulation(bridge());
    open(&mut simulation, &mut far);
    fill(&mut simulation, 1);
    far.say(0, &Method::ConnectionBlocked { reason: "full" });
    for _ in 0..20 {
        far.say_bytes(&HEARTBEAT_FRAME);
        simulation.pass_ms(9_000);
    }
    assert_eq!(simulation.engine.platform_mut().dialed, 1, "the bridge waits for a blocked upstream");
    far.say(0, &Method::ConnectionUnblocked {});
    for _ in 0..6 {
        far.say_bytes(&HEARTBEAT_FRAME);
        simulation.pass_ms(9_000);
    }
    assert_eq!(simulation.engine.platform_mut().dialed, 1, "the minute starts with the unblocking");
    far.say_bytes(&HEARTBEAT_FRAME);
    simulation.pass_ms(9_000);
    assert_eq!(simulation.engine.platform_mut().dialed, 2, "it owes a confirm for longer than a minute");
}

#[test]
fn a_silent_upstream_is_lost_after_two_heartbeats_and_the_bridge_sends_its_own() {
    let (mut simulation, mut far) = simulation(bridge());
    open(&mut simulation, &mut far);
    simulation.pass_ms(19_000);
    let beats = far.take().iter().filter(|(_, heard)| matches!(heard, Heard::Heartbeat)).count();
    assert_eq!((beats, simulation.engine.platform_mut().dialed), (3, 1));
    simulation.pass_ms(1_000 + 1_000);
    assert_eq!(simulation.engine.platform_mut().dialed, 2);
}

/// What an upstream sent during a pause of the process is read before its silence or a missing confirm is
/// judged.
#[test]
fn an_upstream_that_answered_during_a_pause_is_not_dead() {
    let (mut simulation, mut far) = simulation(bridge());
    open(&mut simulation, &mut far);
    fill(&mut simulation, 1);
    far.answer(&mut simulation);
    let channels: Vec<u16> = far.counts.keys().copied().collect();
    channels.iter().for_each(|channel| far.say(*channel, &ack(0, true)));
    far.line.borrow_mut().arrive();
    simulation.pause_ms(600_000);
    assert_eq!(simulation.engine.platform_mut().dialed, 1);
    // An upstream that sends nothing in two heartbeat intervals is lost, with or without a pause.
    simulation.pause_ms(600_000);
    simulation.pass_ms(1_000);
    assert_eq!(simulation.engine.platform_mut().dialed, 2);
}

#[test]
fn an_error_of_the_link_disappears_when_the_link_is_up_again() {
    let (mut simulation, mut far) = simulation(bridge());
    open(&mut simulation, &mut far);
    far.line.borrow_mut().lose();
    simulation.run();
    far.heard.clear();
    let shown = ask(&mut simulation, "GET /api/ctl/bridges");
    assert!(shown.contains("\"state\":\"waiting\"") && !shown.contains("\"last_error\":\"\""), "{shown}");
    simulation.pass_ms(1_100);
    open(&mut simulation, &mut far);
    let shown = ask(&mut simulation, "GET /api/ctl/bridges");
    assert!(shown.contains("\"state\":\"running\"") && shown.contains("\"last_error\":\"\""), "{shown}");
    assert!(shown.contains("\"failed\":1"), "the failure stays counted: {shown}");
}

#[test]
fn an_upstream_that_sends_invalid_frames_ends_only_its_own_link() {
    let heartbeat_with_payload = [8, 0, 0, 0, 0, 0, 1, 0, 0xce];
    let mut room = [0; 64];
    let mut writer = Writer::new(&mut room);
    ContentHeader::new(1, Properties::EMPTY).emit_frame(1, &mut writer).expect("it fits");
    let header = writer.written().to_vec();
    let returned =
        Method::BasicReturn { reply_code: 312, reply_text: "NO_ROUTE", exchange: "", routing_key: b"there" };
    let nonsense: Vec<Vec<u8>> = vec![
        method_frame(1, &ack(9, false)),
        method_frame(1, &ack(9, true)),
        method_frame(1, &ack(0, false)),
        method_frame(0, &ack(1, false)),
        method_frame(2, &ack(1, false)),
        method_frame(1, &Method::ConnectionOpenOk {}),
        method_frame(1, &Method::QueuePurgeOk { message_count: 1 }),
        [method_frame(1, &returned), content_frames(1, &[0, 0], b"x", 100)].concat(),
        header,
        vec![3, 0, 1, 0, 0, 0, 1, 7, 0xce],
        vec![1, 0, 1, 0xff, 0xff, 0xff, 0xff],
        vec![9, 0, 1, 0, 0, 0, 0, 0xce],
    ];
    for bytes in nonsense {
        let (mut simulation, mut far) = simulation(bridge());
        open(&mut simulation, &mut far);
        let client = fill(&mut simulation, 1);
        far.say_bytes(&heartbeat_with_payload);
        far.say_bytes(&bytes);
        simulation.run();
        assert!(!far.line.borrow().is_held, "{bytes:?} ends the link");
        assert_eq!(simulation.counts(client, 1, "here"), (1, 0), "the message is where it was");
        simulation.pass_ms(1_100);
        assert_eq!(simulation.engine.platform_mut().dialed, 2, "it is tried again");
    }
}

#[test]
fn a_link_may_break_after_any_byte() {
    let mut cut = 0;
    loop {
        let (mut simulation, mut far) = simulation(bridge());
        open(&mut simulation, &mut far);
        far.line.borrow_mut().shape = Shape::fragments(7);
        let sent = far.line.borrow().sent_down();
        far.line.borrow_mut().cut_down = Some(sent + cut);
        let client = fill(&mut simulation, 3);
        let is_whole = !far.line.borrow().is_lost();
        far.heard.clear();
        far.line.borrow_mut().shape = Shape::WIDE;
        if is_whole {
            break;
        }
        simulation.pass_ms(1_100);
        open(&mut simulation, &mut far);
        assert_eq!(bodies(&far.published()), [0, 1, 2], "cut after {cut} octets");
        far.say(1, &ack(3, true));
        simulation.run();
        assert_eq!(simulation.counts(client, 1, "here"), (0, 1));
        cut += 1;
    }
    assert!(cut > 300, "three messages are more than {cut} octets");
}

#[test]
fn refused_messages_are_parked_or_retried() {
    for (refused, parked) in [(RefusedAction::Park, 1), (RefusedAction::Wait, 0)] {
        let (mut simulation, mut far) =
            simulation(Bridge { forward: rule(refused), heartbeat_s: 0, ..bridge() });
        open(&mut simulation, &mut far);
        let client = fill(&mut simulation, 3);
        far.published();
        far.say(1, &Method::BasicNack { delivery_tag: 2, multiple: false, requeue: false });
        far.say(1, &ack(3, true));
        simulation.run();
        refuse(&mut simulation, &mut far, 60_000);
        assert_eq!(simulation.counts(client, 1, "parked"), (parked, 0), "{refused}");
        assert!(far.line.borrow().is_held, "neither is a reason to end the link");
        let left = u32::from(refused == RefusedAction::Wait);
        assert_eq!(
            simulation.counts(client, 1, "here").0,
            left,
            "{refused}: waiting messages stay in their queue"
        );
    }
}

/// Returns the alarms that an operator sees.
pub(super) fn alarms(simulation: &mut Simulation) -> String {
    ask(simulation, "GET /api/ctl/alarms")
}

/// Returns the answer to an operator's request.
pub(super) fn ask(simulation: &mut Simulation, request: &str) -> String {
    let operator = simulation.connect_operator(Shape::WIDE, 0);
    let request = format!("{request} HTTP/1.1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    simulation.operator(operator).write_up(request.as_bytes());
    simulation.run();
    let mut said = Vec::new();
    simulation.operator(operator).read_down(usize::MAX, &mut said);
    simulation.operator(operator).hang_up();
    simulation.run();
    let said = String::from_utf8(said).expect("answers are text");
    said.split_once("\r\n\r\n").expect("an answer has a body").1.to_string()
}

#[test]
fn parked_messages_raise_an_alarm_until_they_are_acknowledged() {
    let (mut simulation, mut far) = simulation(Bridge { heartbeat_s: 0, ..bridge() });
    open(&mut simulation, &mut far);
    let client = fill(&mut simulation, 3);
    far.published();
    assert!(!alarms(&mut simulation).contains("parked"), "messages under way raise no alarm");
    far.say(1, &Method::BasicNack { delivery_tag: 2, multiple: true, requeue: false });
    far.say(1, &ack(3, false));
    simulation.run();
    refuse(&mut simulation, &mut far, 120_000);
    let said = alarms(&mut simulation);
    assert!(said.contains("parked: bridges have parked 2 refused messages, in parked;"), "{said}");
    // A delivered message stays parked; only its acknowledgement ends the alarm.
    simulation.consume(client, 1, "parked", "who looks", true);
    simulation.run();
    assert_eq!(simulation.counts(client, 1, "parked"), (0, 1));
    assert!(!alarms(&mut simulation).contains("parked"), "the parking queue is empty");
}

#[test]
fn a_removed_bridge_leaves_nothing() {
    let (mut simulation, mut far) = simulation(bridge());
    open(&mut simulation, &mut far);
    let client = fill(&mut simulation, 3);
    far.published();
    simulation.engine.set_bridges(&[]);
    simulation.run();
    assert!(far.line.borrow().is_held, "the link stays for messages under way");
    far.say(1, &ack(3, true));
    simulation.run();
    assert_eq!(far.names(), ["connection.close"]);
    simulation.pass_ms(2_000);
    assert!(!far.line.borrow().is_held);
    assert_eq!(simulation.counts(client, 1, "here"), (0, 0));
    simulation.operators.clear();
    simulation.end(&["here", "parked"]);
}
