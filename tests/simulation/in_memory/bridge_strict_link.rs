//! The connection of the strict upstream, and other parts that both kinds of random runs share.
//!
//! # Invariants
//! - The upstream sends only what a broker may send at that stage of the connection.
//! - It fails on any frame that is invalid, larger than negotiated, or out of place. An incomplete frame is
//!   detected with the next one, whose bytes then follow at the wrong position.

use std::collections::BTreeMap;
use std::sync::Mutex;

use leveret_amqp::{Frame, HEARTBEAT_FRAME, Method, Table, next_frame};

use super::bridge::Far;
use leveret_test_support::random::Random;
use leveret_test_support::simulated_server::{Phase, Shape, Simulation};

/// Largest frame_max that an upstream requests, in bytes.
pub(super) const FRAME_MAX: u32 = 131_072;
const GREETING: &[u8; 8] = b"AMQP\0\0\x09\x01";
/// Fewer runs, as in a replay, need not cover all kinds of events.
const RUNS_MIN: u64 = 20;

/// The stage of the connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// The protocol header of the bridge has not arrived yet.
    Silent,
    /// The connection is being negotiated.
    Opening,
    /// Channels may be opened.
    Open,
    /// One side has closed it, or it broke.
    Over,
}

/// The answer that the upstream owes on channel 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Owed {
    Nothing,
    Start,
    Tune,
    OpenOk,
    CloseOk,
}

/// The upstream's end of successive connections.
pub(super) struct Link {
    far: Far,
    stage: Stage,
    owed: Owed,
    /// The negotiated frame_max in bytes.
    frame_max: u32,
    /// The upstream has sent connection.blocked.
    is_blocked: bool,
    /// Number of connections of the bridge at the last check.
    dialed: u32,
    /// Number of connections that the upstream broke or closed.
    pub(super) lost: u64,
}

impl Link {
    pub(super) const fn new(far: Far) -> Self {
        let (stage, owed) = (Stage::Silent, Owed::Nothing);
        Self { far, stage, owed, frame_max: FRAME_MAX, is_blocked: false, dialed: 0, lost: 0 }
    }

    /// Returns whether the connection was replaced since the last check. Then its channels are gone too.
    pub(super) fn is_another(&mut self, simulation: &Simulation) -> bool {
        if self.is_the_same(simulation) {
            return false;
        }
        self.dialed = simulation.engine.platform().dialed;
        self.far.heard.clear();
        self.stage = if self.is_gone() { Stage::Over } else { Stage::Silent };
        (self.owed, self.frame_max, self.is_blocked) = (Owed::Nothing, FRAME_MAX, false);
        true
    }

    pub(super) fn is_the_same(&self, simulation: &Simulation) -> bool {
        self.dialed == simulation.engine.platform().dialed && !self.is_gone()
    }

    fn is_gone(&self) -> bool {
        let line = self.far.line.borrow();
        line.is_lost() || !line.is_held
    }

    /// Returns whether the upstream may send something.
    pub(super) fn is_up(&self) -> bool {
        self.stage != Stage::Over && !self.is_gone()
    }

    pub(super) fn is_open(&self) -> bool {
        self.stage == Stage::Open && self.is_up()
    }

    /// Returns the complete frames received. The rest of an incomplete one is kept.
    pub(super) fn read(&mut self) -> Vec<u8> {
        let heard = &mut self.far.heard;
        self.far.line.borrow_mut().read_down(usize::MAX, heard);
        if self.stage == Stage::Over {
            heard.clear();
        }
        if self.stage == Stage::Silent && heard.len() >= GREETING.len() {
            assert_eq!(heard[..GREETING.len()], *GREETING);
            heard.drain(..GREETING.len());
            (self.stage, self.owed) = (Stage::Opening, Owed::Start);
        }
        if self.stage == Stage::Silent {
            return Vec::new();
        }
        let mut whole_len = 0;
        for frame in frames(heard) {
            let len = frame.input_len();
            assert!(len <= self.frame_max as usize, "a frame of {len} octets is larger than was agreed on");
            whole_len += len;
        }
        heard.drain(..whole_len).collect()
    }

    /// Notes a method on channel 0.
    pub(super) fn hear(&mut self, method: Method<'_>) {
        self.owed = match method {
            Method::ConnectionStartOk { .. } => Owed::Tune,
            Method::ConnectionOpen { .. } => Owed::OpenOk,
            Method::ConnectionClose { .. } => Owed::CloseOk,
            Method::ConnectionTuneOk { .. } | Method::ConnectionCloseOk {} => return,
            other => panic!("{other:?} on channel 0"),
        };
    }

    /// Sends the owed answer. The upstream requests one of these values of frame_max.
    pub(super) fn answer(&mut self, random: &mut Random, frame_maxes: &[u32]) {
        match core::mem::replace(&mut self.owed, Owed::Nothing) {
            Owed::Nothing => {}
            Owed::Start => self.say(0, &START),
            Owed::Tune => {
                let frame_max = random.one_of(frame_maxes);
                self.frame_max = frame_max;
                self.say(0, &Method::ConnectionTune { channel_max: 2047, frame_max, heartbeat: 60 });
            }
            Owed::OpenOk => {
                self.stage = Stage::Open;
                self.say(0, &Method::ConnectionOpenOk {});
            }
            Owed::CloseOk => {
                self.say(0, &Method::ConnectionCloseOk {});
                self.hang_up();
            }
        }
    }

    pub(super) fn say(&self, channel: u16, method: &Method<'_>) {
        self.far.say(channel, method);
    }

    pub(super) fn say_bytes(&self, octets: &[u8]) {
        self.far.say_bytes(octets);
    }

    pub(super) fn beat(&self) {
        if self.is_open() {
            self.say_bytes(&HEARTBEAT_FRAME);
        }
    }

    pub(super) fn block(&mut self) {
        if self.is_open() && !self.is_blocked {
            self.is_blocked = true;
            self.say(0, &Method::ConnectionBlocked { reason: "no room" });
        }
    }

    pub(super) fn unblock(&mut self) {
        if self.is_open() && self.is_blocked {
            self.is_blocked = false;
            self.say(0, &Method::ConnectionUnblocked {});
        }
    }

    /// Closes the connection without waiting for an answer.
    pub(super) fn close(&mut self) {
        let method =
            Method::ConnectionClose { reply_code: 320, reply_text: "bye", class_id: 0, method_id: 0 };
        self.say(0, &method);
        self.hang_up();
        self.lost += 1;
    }

    fn hang_up(&mut self) {
        self.stage = Stage::Over;
        self.far.line.borrow_mut().hang_up();
    }

    /// Breaks the connection.
    pub(super) fn lose(&mut self) {
        self.stage = Stage::Over;
        self.far.line.borrow_mut().lose();
        self.lost += 1;
    }

    /// Changes the capacity of the line randomly; existing data may be reported again.
    pub(super) fn disturb(&self, random: &mut Random) {
        let mut line = self.far.line.borrow_mut();
        if random.once_in(3) {
            line.shape.down_room = random.one_of(&[1 << 20, 1 << 20, 1 << 16, 5_000, 4_096, 700, 30, 0]);
        }
        if random.once_in(3) {
            line.tell_again();
        }
    }

    pub(super) fn widen(&self) {
        let mut line = self.far.line.borrow_mut();
        line.shape = Shape::WIDE;
        line.offer_space();
    }
}

const START: Method<'static> = Method::ConnectionStart {
    version_major: 0,
    version_minor: 9,
    server_properties: Table::EMPTY,
    mechanisms: b"PLAIN AMQPLAIN",
    locales: b"en_US",
};

/// Returns the complete frames at the beginning of these bytes.
pub(super) fn frames(octets: &[u8]) -> impl Iterator<Item = Frame<'_>> {
    let mut left = octets;
    core::iter::from_fn(move || {
        let frame = next_frame(left, FRAME_MAX).expect("its frames are sound")?;
        left = &left[frame.input_len()..];
        Some(frame)
    })
}

/// Operator requests under way. No run waits for their answers.
#[derive(Default)]
pub(super) struct Orders {
    asking: Vec<usize>,
}

impl Orders {
    pub(super) fn give(&mut self, simulation: &mut Simulation, random: &mut Random) {
        let order = random.one_of(&["pause", "resume", "restart", "retry"]);
        let operator = simulation.connect_operator(Shape::WIDE, 0);
        let request = format!(
            "POST /api/ctl/bridges/plant/{order} HTTP/1.1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        );
        simulation.operator(operator).write_up(request.as_bytes());
        self.asking.push(operator);
    }

    /// Disconnects the operators; otherwise no place would be left for another one.
    pub(super) fn hang_up(&mut self, simulation: &Simulation) {
        for operator in self.asking.drain(..) {
            simulation.operator(operator).hang_up();
        }
    }
}

/// Waits for a random time, or not at all.
pub(super) fn wait(simulation: &mut Simulation, random: &mut Random) {
    if random.once_in(2) {
        simulation.pass_ms(random.one_of(&[1, 50, 300, 1_100, 5_000, 25_000]));
    }
}

/// Checks that a removed bridge has left nothing in the broker.
pub(super) fn assert_nothing_stays(simulation: &mut Simulation, client: usize) {
    simulation.operators.clear();
    let gauges = simulation.engine.broker().gauges();
    let clients = usize::from(simulation.clients[client].checker.phase == Phase::Open);
    assert_eq!((gauges.connections, gauges.consumers, gauges.deliveries), (clients, 0, 0));
}

/// Counts events over all runs. Without enough events the checks would prove nothing.
#[derive(Default)]
pub(super) struct Tally {
    counts: Mutex<BTreeMap<&'static str, u64>>,
}

impl Tally {
    /// Adds the events of one run.
    pub(super) fn add(&self, happened: &[(&'static str, u64)]) {
        let mut counts = self.counts.lock().expect("who holds it does not panic");
        for (what, count) in happened.iter().chain(&[("runs", 1)]) {
            *counts.entry(what).or_default() += count;
        }
    }

    /// Checks that at least these numbers of events happen per hundred runs.
    pub(super) fn assert_in_hundred_lives(&self, least: &[(&'static str, u64)]) {
        let counts = self.counts.lock().expect("who holds it does not panic");
        let runs = counts.get("runs").copied().unwrap_or(0);
        for (what, least) in least {
            let count = counts.get(what).copied().unwrap_or(0);
            assert!(runs < RUNS_MIN || count * 100 >= least * runs, "too few {what}: {counts:?}");
        }
    }
}
