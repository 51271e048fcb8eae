//! Random runs of a forwarding bridge with an upstream that checks every frame.
//!
//! Queues of three rules share one connection. Its line narrows, stalls and breaks at any byte, while the
//! upstream closes channels and refuses messages, and an operator pauses and restarts the bridge. A bridge
//! that loses its position within a message, or confuses two channels, sends bytes that look right until they
//! are checked exactly.
//!
//! The upstream requires:
//! - Frames are valid. A content is complete before anything else comes on its channel, and its bytes belong
//!   to one message.
//! - Nothing comes on a closed channel. No channel is opened twice, and none publishes before confirm.select.
//! - A repeated message is marked as such, unless it was refused. New messages keep the order of their queue.
//!
//! At the end everything published is taken or parked, and a removed bridge leaves nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use leveret_amqp::{ContentHeader, FrameKind, Method};
use leveret_config::bridge::{Bridge, Destination, RefusedAction, Rule};

use super::bridge::{ack, ask, bridge, has_header, simulation};
use super::bridge_strict_link::{FRAME_MAX, Link, Orders, Tally, assert_nothing_stays, frames, wait};
use leveret_test_support::random::Random;
use leveret_test_support::simulated_server::{Simulation, content_frames, delete, for_seeds};

/// Includes 2, 4 and 7, which once found an incomplete frame on the line.
const SEEDS: Range<u64> = 1..81;
/// The queues of the rules, whose channels are numbered from 1.
const QUEUES: [&str; 3] = ["here", "alarms", "third"];
const PARKED: &str = "parked";
/// Values of frame_max in bytes that the upstream requests: the protocol minimum, and a common one.
const FRAME_MAXES: [u32; 2] = [4_096, FRAME_MAX];
/// Maximum number of turns until nothing is under way any more.
const CALM_TURNS_MAX: u32 = 3_000;
/// Consecutive turns with nothing under way that count as rest.
const TURNS_AT_REST: u32 = 6;
const CALM_TURN_MS: u64 = 400;
/// Turns that a removed bridge has to close its link.
const END_TURNS: u32 = 20;
const END_TURN_MS: u64 = 2_000;

fn config(seed: u64) -> Bridge {
    let random = &mut Random::of(seed, "config", &[]);
    let is_small = random.once_in(3);
    let rule = |queue: &str, refused, is_urgent| Rule {
        queue: queue.into(),
        // A message that an exchange returns is parked. One that a missing queue returns is retried.
        to: match queue == QUEUES[2] {
            true => Destination::Exchange("moved".into(), Some(format!("{queue}.moved"))),
            false => Destination::Queue(format!("{queue}.moved")),
        },
        refused,
        is_urgent,
    };
    // A too large message is refused permanently, so a rule that waits would wait forever.
    let alarms = if is_small { RefusedAction::Park } else { RefusedAction::Wait };
    Bridge {
        forward: vec![
            rule(QUEUES[0], RefusedAction::Park, false),
            rule(QUEUES[1], alarms, true),
            rule(QUEUES[2], RefusedAction::Park, false),
        ],
        window: random.one_of(&[1, 2, 8, 64]),
        park_after: random.one_of(&[0, 1, 5]),
        heartbeat_s: random.one_of(&[0, 10]),
        message_size_max: if is_small { 8_000 } else { 1 << 20 },
        ..bridge()
    }
}

/// The answer that the upstream owes on a channel.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
enum Owed {
    #[default]
    Nothing,
    OpenOk,
    SelectOk,
    CloseOk,
}

/// The received part of a message.
#[derive(Default)]
enum Coming {
    #[default]
    Nothing,
    Publish,
    Content {
        message: Message,
        left: u64,
    },
}

struct Message {
    properties: Vec<u8>,
    body: Vec<u8>,
}

impl Message {
    /// Returns the number of the message. All other bytes of the body must match it.
    fn id(&self) -> u32 {
        let (id, rest) = self.body.split_first_chunk().expect("a body begins with its number");
        let id = u32::from_be_bytes(*id);
        assert!(rest.iter().all(|octet| *octet == id as u8), "the body of {id} was altered");
        id
    }
}

#[derive(Default)]
struct Channel {
    /// The upstream has closed it and received no answer yet.
    is_closed: bool,
    has_confirms: bool,
    owed: Owed,
    coming: Coming,
    publishes: u64,
    /// Published messages without a decision, by publish number of the channel.
    pending: BTreeMap<u64, Message>,
}

impl Channel {
    /// Removes the message of this number, and with `multiple` all earlier ones. Returns their ids.
    fn settle(&mut self, number: u64, multiple: bool) -> Vec<u32> {
        let first = if multiple { 0 } else { number };
        let numbers: Vec<u64> = self.pending.range(first..=number).map(|(number, _)| *number).collect();
        numbers.iter().filter_map(|number| self.pending.remove(number)).map(|message| message.id()).collect()
    }
}

/// The class of a fault for which the upstream closes a channel.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    Publish,
    Other,
}

struct Upstream {
    link: Link,
    channels: BTreeMap<u16, Channel>,
    /// All messages received so far.
    seen: BTreeSet<u32>,
    taken: BTreeSet<u32>,
    refused: BTreeSet<u32>,
    /// The newest message of each channel.
    newest: BTreeMap<u16, u32>,
    closed_channels: u64,
}

impl Upstream {
    fn new(link: Link) -> Self {
        Self {
            link,
            channels: BTreeMap::new(),
            seen: BTreeSet::new(),
            taken: BTreeSet::new(),
            refused: BTreeSet::new(),
            newest: BTreeMap::new(),
            closed_channels: 0,
        }
    }

    fn listen(&mut self, simulation: &Simulation) {
        if self.link.is_another(simulation) {
            self.channels.clear();
        }
        let octets = self.link.read();
        for frame in frames(&octets) {
            let number = frame.header.channel;
            match frame.header.kind().expect("a known kind") {
                FrameKind::Heartbeat => assert_eq!(number, 0),
                FrameKind::Method => {
                    let method = Method::parse(frame.payload).expect("a sound method");
                    if number == 0 { self.link.hear(method) } else { self.hear(number, method) }
                }
                FrameKind::Header => self.hear_header(number, frame.payload),
                FrameKind::Body => self.hear_body(number, frame.payload),
            }
        }
    }

    fn channel(&mut self, number: u16) -> &mut Channel {
        self.channels.get_mut(&number).unwrap_or_else(|| panic!("channel {number} is not open"))
    }

    fn hear(&mut self, number: u16, method: Method<'_>) {
        if let Method::ChannelOpen {} = method {
            let channel = Channel { owed: Owed::OpenOk, ..Channel::default() };
            assert!(self.channels.insert(number, channel).is_none(), "{number} is opened twice");
            return;
        }
        if self.channel(number).is_closed {
            self.hear_on_closed(number, method);
            return;
        }
        let channel = self.channel(number);
        assert!(matches!(channel.coming, Coming::Nothing), "{method:?} within a content on {number}");
        match method {
            Method::ChannelClose { .. } => channel.owed = Owed::CloseOk,
            Method::ConfirmSelect { .. } => {
                assert_eq!(channel.owed, Owed::Nothing);
                (channel.has_confirms, channel.owed) = (true, Owed::SelectOk);
            }
            Method::BasicPublish { routing_key, .. } => {
                let queue = QUEUES[usize::from(number) - 1];
                assert_eq!(routing_key, format!("{queue}.moved").as_bytes());
                channel.coming = Coming::Publish;
            }
            Method::ChannelFlowOk { .. } => {}
            other => panic!("{other:?} on {number}"),
        }
    }

    /// Methods that were under way when the upstream closed the channel have no effect.
    fn hear_on_closed(&mut self, number: u16, method: Method<'_>) {
        match method {
            Method::ChannelCloseOk {} => drop(self.channels.remove(&number)),
            Method::ChannelClose { .. } => self.link.say(number, &Method::ChannelCloseOk {}),
            Method::BasicPublish { .. } => self.channel(number).coming = Coming::Publish,
            _ => {}
        }
    }

    fn hear_header(&mut self, number: u16, payload: &[u8]) {
        let header = ContentHeader::parse(payload).expect("a sound header");
        let message = Message { properties: header.properties.as_bytes().to_vec(), body: Vec::new() };
        let coming = Coming::Content { message, left: header.body_len };
        let before = core::mem::replace(&mut self.channel(number).coming, coming);
        assert!(matches!(before, Coming::Publish), "a header out of place on {number}");
        self.end_content(number);
    }

    fn hear_body(&mut self, number: u16, payload: &[u8]) {
        let Coming::Content { message, left } = &mut self.channel(number).coming else {
            panic!("a body out of place on {number}");
        };
        message.body.extend(payload);
        *left = left.checked_sub(payload.len() as u64).expect("no more than was announced");
        self.end_content(number);
    }

    fn end_content(&mut self, number: u16) {
        let channel = self.channel(number);
        let message = match core::mem::take(&mut channel.coming) {
            Coming::Content { message, left: 0 } => message,
            coming => {
                channel.coming = coming;
                return;
            }
        };
        if channel.is_closed {
            return;
        }
        assert!(channel.has_confirms, "a publish before confirm.select on {number}");
        channel.publishes += 1;
        let id = message.id();
        let is_repeat = has_header(&message.properties, "x-bridge-repeat");
        channel.pending.insert(channel.publishes, message);
        self.check_order(number, id, is_repeat);
    }

    fn check_order(&mut self, number: u16, id: u32, is_repeat: bool) {
        let was_refused = self.refused.contains(&id);
        if !self.seen.insert(id) {
            assert!(is_repeat || was_refused, "{id} came again without being marked as a repeat");
            return;
        }
        let newest = self.newest.entry(number).or_default();
        assert!(*newest < id || was_refused, "{id} came first after {newest}");
        *newest = id.max(*newest);
    }

    fn numbers(&self) -> Vec<u16> {
        self.channels.keys().copied().collect()
    }

    /// Sends some of the owed answers, or closes a channel instead.
    fn answer_some(&mut self, random: &mut Random) {
        self.link.answer(random, &FRAME_MAXES);
        for number in self.numbers() {
            let channel = self.channel(number);
            if channel.is_closed || !random.once_in(2) {
                continue;
            }
            if channel.owed != Owed::Nothing && random.once_in(12) {
                self.close(number, Fault::Other);
            } else {
                self.answer_on(number);
            }
        }
    }

    fn answer_all(&mut self, random: &mut Random) {
        self.link.answer(random, &FRAME_MAXES);
        for number in self.numbers() {
            self.answer_on(number);
        }
    }

    fn answer_on(&mut self, number: u16) {
        let answer = match core::mem::take(&mut self.channel(number).owed) {
            Owed::Nothing => return,
            Owed::OpenOk => Method::ChannelOpenOk {},
            Owed::SelectOk => Method::ConfirmSelectOk {},
            Owed::CloseOk => {
                self.channels.remove(&number);
                Method::ChannelCloseOk {}
            }
        };
        self.link.say(number, &answer);
    }

    fn close(&mut self, number: u16, fault: Fault) {
        let channel = self.channel(number);
        channel.is_closed = true;
        let owed = core::mem::take(&mut channel.owed);
        let pending = core::mem::take(&mut channel.pending);
        let (class_id, method_id) = match fault {
            Fault::Publish => (60, 40),
            Fault::Other => (0, 0),
        };
        if fault == Fault::Publish {
            self.refused.extend(pending.values().map(Message::id));
        }
        let close = Method::ChannelClose { reply_code: 404, reply_text: "NO", class_id, method_id };
        self.link.say(number, &close);
        if owed == Owed::CloseOk {
            // The bridge's own close came before, and RabbitMQ answers it nevertheless.
            self.link.say(number, &Method::ChannelCloseOk {});
        }
        self.closed_channels += 1;
    }

    /// Confirms, refuses or returns some published messages.
    fn decide_on_some(&mut self, random: &mut Random) {
        for number in self.numbers() {
            for _ in 0..1 + random.below(4) {
                let channel = self.channel(number);
                let is_going = channel.owed == Owed::CloseOk && random.once_in(2);
                if channel.is_closed || is_going || channel.pending.is_empty() {
                    break;
                }
                self.decide(number, random);
            }
        }
    }

    fn decide(&mut self, number: u16, random: &mut Random) {
        let pending = &self.channel(number).pending;
        let at = if random.once_in(2) { 0 } else { random.below(pending.len() as u64) };
        let publish = *pending.keys().nth(at as usize).expect("there are so many");
        let verdict = random.below(16);
        let multiple = random.once_in(4);
        match verdict {
            0..10 => self.take(number, publish, multiple),
            10..13 => self.refuse(number, publish, multiple),
            13 => self.give_back(number, publish),
            14 => self.close(number, Fault::Publish),
            _ => self.close(number, Fault::Other),
        }
    }

    fn take(&mut self, number: u16, publish: u64, multiple: bool) {
        let ids = self.channel(number).settle(publish, multiple);
        self.taken.extend(ids);
        self.link.say(number, &ack(publish, multiple));
    }

    fn take_all(&mut self) {
        for number in self.numbers() {
            if let Some((&publish, _)) = self.channel(number).pending.last_key_value() {
                self.take(number, publish, true);
            }
        }
    }

    fn refuse(&mut self, number: u16, publish: u64, multiple: bool) {
        let ids = self.channel(number).settle(publish, multiple);
        self.refused.extend(ids);
        self.link.say(number, &Method::BasicNack { delivery_tag: publish, multiple, requeue: false });
    }

    /// Returns a message as unroutable and then confirms it.
    fn give_back(&mut self, number: u16, publish: u64) {
        let message = self.channel(number).pending.remove(&publish).expect("it was not decided on");
        self.refused.insert(message.id());
        self.link.say(number, &RETURN);
        self.link.say_bytes(&content_frames(number, &message.properties, &message.body, 4_000));
        self.link.say(number, &ack(publish, false));
    }
}

const RETURN: Method<'static> =
    Method::BasicReturn { reply_code: 312, reply_text: "NO_ROUTE", exchange: "", routing_key: b"x" };

struct RandomRun {
    simulation: Simulation,
    upstream: Upstream,
    orders: Orders,
    /// The publisher.
    client: usize,
    /// The number of the next message.
    next_id: u32,
    /// In bytes.
    message_size_max: usize,
    /// Queues are deleted with their messages, so that lost messages cannot be accounted for.
    loses_queues: bool,
}

impl RandomRun {
    fn new(seed: u64) -> Self {
        let config = config(seed);
        let message_size_max = config.message_size_max as usize;
        let (mut simulation, far) = simulation(config);
        let client = simulation.open(&[1]);
        Self {
            simulation,
            upstream: Upstream::new(Link::new(far)),
            orders: Orders::default(),
            client,
            next_id: 1,
            message_size_max,
            loses_queues: seed.is_multiple_of(3),
        }
    }

    fn step(&mut self, random: &mut Random) {
        self.orders.hang_up(&self.simulation);
        if random.once_in(2) {
            for _ in 0..random.below(12) {
                self.publish(random);
            }
        }
        for _ in 0..random.below(3) {
            self.simulation.round();
        }
        self.listen();
        self.upstream.link.disturb(random);
        if self.upstream.link.is_up() {
            self.speak(random);
        }
        if self.upstream.link.is_up() && random.once_in(40) {
            self.upstream.link.lose();
        }
        if random.once_in(3) {
            self.simulation.run();
            self.listen();
        }
        if random.once_in(40) {
            self.delete(random.one_of(&[QUEUES[0], QUEUES[2], PARKED]));
        }
        if random.once_in(25) {
            self.orders.give(&mut self.simulation, random);
        }
        wait(&mut self.simulation, random);
        self.listen();
    }

    fn listen(&mut self) {
        self.upstream.listen(&self.simulation);
    }

    fn publish(&mut self, random: &mut Random) {
        let queue = QUEUES[random.below(3) as usize];
        // Contents that just fit into a frame, and contents that just do not.
        let len = random.one_of(&[0, 10, 10, 300, 4_084, 4_085, 9_000, 20_000]);
        let id = self.next_id;
        self.next_id += 1;
        let mut body = id.to_be_bytes().to_vec();
        body.resize(body.len() + len, id as u8);
        if body.len() > self.message_size_max {
            // The bridge itself refuses this message.
            self.upstream.refused.insert(id);
        }
        self.simulation.publish_to(self.client, 1, queue, &body);
    }

    /// Lets the upstream send something.
    fn speak(&mut self, random: &mut Random) {
        let upstream = &mut self.upstream;
        upstream.answer_some(random);
        if random.once_in(2) {
            upstream.decide_on_some(random);
        }
        if !upstream.link.is_open() {
            return;
        }
        if random.once_in(3) {
            upstream.link.beat();
        }
        if random.once_in(30) {
            upstream.link.block();
        }
        if random.once_in(10) {
            upstream.link.unblock();
        }
        if random.once_in(60) {
            upstream.link.close();
        }
    }

    fn delete(&mut self, queue: &str) {
        if self.loses_queues && self.simulation.clients[self.client].checker.is_open(1) {
            self.simulation.send(self.client, 1, &delete(queue));
        }
    }

    /// Lets the upstream accept everything until nothing is under way.
    fn calm_down(&mut self, random: &mut Random) {
        self.orders.hang_up(&self.simulation);
        ask(&mut self.simulation, "POST /api/ctl/bridges/plant/resume");
        let mut turns_at_rest = 0;
        for _ in 0..CALM_TURNS_MAX {
            self.turn_calmly(CALM_TURN_MS, random);
            turns_at_rest = if self.is_at_rest() { turns_at_rest + 1 } else { 0 };
            if turns_at_rest == TURNS_AT_REST {
                return;
            }
        }
        panic!("it does not come to rest: {}", ask(&mut self.simulation, "GET /api/ctl/bridges"));
    }

    fn turn_calmly(&mut self, ms: u64, random: &mut Random) {
        self.upstream.link.widen();
        self.simulation.run();
        self.listen();
        if self.upstream.link.is_up() {
            self.upstream.link.unblock();
            self.upstream.link.beat();
            self.upstream.answer_all(random);
            self.upstream.take_all();
        }
        self.simulation.pass_ms(ms);
        self.listen();
    }

    fn is_at_rest(&mut self) -> bool {
        let left: u32 = QUEUES.iter().map(|queue| self.depth(queue)).sum();
        left == 0 && self.simulation.engine.broker().gauges().deliveries == 0
    }

    fn depth(&mut self, queue: &str) -> u32 {
        self.simulation.engine.broker().queue_depth("/", queue).unwrap_or(0)
    }

    /// Checks that each published message is upstream, or was refused and is parked.
    fn assert_all_are_somewhere(&mut self) {
        let upstream = &self.upstream;
        let missing: Vec<u32> = (1..self.next_id).filter(|id| !upstream.taken.contains(id)).collect();
        let lost: Vec<&u32> = missing.iter().filter(|id| !upstream.refused.contains(id)).collect();
        assert!(lost.is_empty(), "{lost:?} are lost");
        let parked = self.depth(PARKED) as usize;
        assert!(parked >= missing.len(), "only {parked} of {missing:?} are parked");
    }

    fn end(&mut self, random: &mut Random) {
        self.simulation.engine.set_bridges(&[]);
        for _ in 0..END_TURNS {
            self.turn_calmly(END_TURN_MS, random);
        }
        assert_nothing_stays(&mut self.simulation, self.client);
    }
}

fn live(seed: u64, tally: &Tally) {
    let mut run = RandomRun::new(seed);
    let steps = 60 + Random::of(seed, "steps", &[]).below(200);
    for step in 0..steps {
        run.step(&mut Random::of(seed, "step", &[step]));
    }
    let random = &mut Random::of(seed, "calm", &[]);
    run.calm_down(random);
    if !run.loses_queues {
        run.assert_all_are_somewhere();
    }
    let parked = run.depth(PARKED);
    run.end(random);
    tally.add(&[
        ("messages that were taken", run.upstream.taken.len() as u64),
        ("messages that were refused", run.upstream.refused.len() as u64),
        ("messages that were set aside", parked.into()),
        ("channels that were closed", run.upstream.closed_channels),
        ("connections that were lost", run.upstream.link.lost),
    ]);
}

#[test]
fn a_strict_upstream_receives_valid_frames_and_messages_in_order_despite_faults() {
    let tally = Tally::default();
    for_seeds("a_strict_upstream_receives", SEEDS, |seed| live(seed, &tally));
    tally.assert_in_hundred_lives(&[
        ("messages that were taken", 20_000),
        ("messages that were refused", 3_000),
        ("messages that were set aside", 1_500),
        ("channels that were closed", 300),
        ("connections that were lost", 200),
    ]);
}
