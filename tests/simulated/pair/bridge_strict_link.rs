//! An upstream's end of the connection, and what else the random lives with a strict upstream share.
//!
//! Always true: the upstream says on a connection only what a broker may say at that stage of it, and it
//! bears no frame that is not sound, that is larger than was agreed on, or that has no place there. Half a
//! frame is heard with the next one, whose octets then stand where its own should.

use std::collections::BTreeMap;
use std::sync::Mutex;

use leveret_amqp::{Frame, HEARTBEAT_FRAME, Method, Table, next_frame};

use super::bridge::Far;
use super::world::{Phase, Random, Shape, World};

/// The largest frame that an upstream asks for, in octets.
pub(super) const FRAME_MAX: u32 = 131_072;
const GREETING: &[u8; 8] = b"AMQP\0\0\x09\x01";
/// Fewer lives, as when one is replayed, need not have met everything.
const LIVES_MIN: u64 = 20;

/// How far the connection has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// The bridge's greeting is not there yet.
    Silent,
    /// Both sides agree on the connection.
    Opening,
    /// Channels may be opened.
    Open,
    /// One side has closed it, or it broke.
    Over,
}

/// What the upstream owes the bridge an answer for on the connection itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Owed {
    Nothing,
    Start,
    Tune,
    OpenOk,
    CloseOk,
}

/// The upstream's end of one connection after another.
pub(super) struct Link {
    far: Far,
    stage: Stage,
    owed: Owed,
    /// The largest frame that was agreed on, in octets.
    frame_max: u32,
    /// The upstream has said that it takes nothing for now.
    is_blocked: bool,
    /// How many connections the bridge had made when this was last asked.
    dialed: u32,
    /// Connections that the upstream broke or closed.
    pub(super) lost: u64,
}

impl Link {
    pub(super) const fn new(far: Far) -> Self {
        let (stage, owed) = (Stage::Silent, Owed::Nothing);
        Self { far, stage, owed, frame_max: FRAME_MAX, is_blocked: false, dialed: 0, lost: 0 }
    }

    /// Looks whether the connection is still the one it was; if it is not, its channels are gone too.
    pub(super) fn is_another(&mut self, world: &World) -> bool {
        if self.is_the_same(world) {
            return false;
        }
        self.dialed = world.engine.platform().dialed;
        self.far.heard.clear();
        self.stage = if self.is_gone() { Stage::Over } else { Stage::Silent };
        (self.owed, self.frame_max, self.is_blocked) = (Owed::Nothing, FRAME_MAX, false);
        true
    }

    pub(super) fn is_the_same(&self, world: &World) -> bool {
        self.dialed == world.engine.platform().dialed && !self.is_gone()
    }

    fn is_gone(&self) -> bool {
        let line = self.far.line.borrow();
        line.is_lost() || !line.is_held
    }

    /// Whether the upstream may say something.
    pub(super) fn is_up(&self) -> bool {
        self.stage != Stage::Over && !self.is_gone()
    }

    pub(super) fn is_open(&self) -> bool {
        self.stage == Stage::Open && self.is_up()
    }

    /// The whole frames of what the bridge has said; the rest of the last one is kept until it comes.
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

    /// Takes note of what the bridge says on the connection itself.
    pub(super) fn hear(&mut self, method: Method<'_>) {
        self.owed = match method {
            Method::ConnectionStartOk { .. } => Owed::Tune,
            Method::ConnectionOpen { .. } => Owed::OpenOk,
            Method::ConnectionClose { .. } => Owed::CloseOk,
            Method::ConnectionTuneOk { .. } | Method::ConnectionCloseOk {} => return,
            other => panic!("{other:?} on channel 0"),
        };
    }

    /// Gives the answer that is owed; the upstream asks for frames no larger than one of these sizes.
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

    /// The upstream closes the connection, and does not wait for an answer.
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

    /// The connection breaks.
    pub(super) fn lose(&mut self) {
        self.stage = Stage::Over;
        self.far.line.borrow_mut().lose();
        self.lost += 1;
    }

    /// The line becomes as narrow or as wide as chance has it, and may tell again of what is there.
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

/// The whole frames at the beginning of these octets.
pub(super) fn frames(octets: &[u8]) -> impl Iterator<Item = Frame<'_>> {
    let mut left = octets;
    core::iter::from_fn(move || {
        let frame = next_frame(left, FRAME_MAX).expect("its frames are sound")?;
        left = &left[frame.input_len()..];
        Some(frame)
    })
}

/// The operator's requests that are under way: no life waits for their answers.
#[derive(Default)]
pub(super) struct Orders {
    asking: Vec<usize>,
}

impl Orders {
    pub(super) fn give(&mut self, world: &mut World, random: &mut Random) {
        let order = random.one_of(&["pause", "resume", "restart", "retry"]);
        let operator = world.connect_operator(Shape::WIDE, 0);
        let request = format!(
            "POST /api/ctl/bridges/plant/{order} HTTP/1.1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        );
        world.operator(operator).write_up(request.as_bytes());
        self.asking.push(operator);
    }

    /// Those who asked go, or no place would be left for another.
    pub(super) fn hang_up(&mut self, world: &World) {
        for operator in self.asking.drain(..) {
            world.operator(operator).hang_up();
        }
    }
}

/// Waits as long as chance has it, or not at all.
pub(super) fn wait(world: &mut World, random: &mut Random) {
    if random.once_in(2) {
        world.pass_ms(random.one_of(&[1, 50, 300, 1_100, 5_000, 25_000]));
    }
}

/// A bridge that was taken away has left nothing in the broker.
pub(super) fn assert_nothing_stays(world: &mut World, client: usize) {
    world.operators.clear();
    let gauges = world.engine.broker().gauges();
    let clients = usize::from(world.clients[client].checker.phase == Phase::Open);
    assert_eq!((gauges.connections, gauges.consumers, gauges.deliveries), (clients, 0, 0));
}

/// What happened in all lives together, lest they keep their promises because nothing did.
#[derive(Default)]
pub(super) struct Tally {
    counts: Mutex<BTreeMap<&'static str, u64>>,
}

impl Tally {
    /// One life has ended, and so much happened in it.
    pub(super) fn add(&self, happened: &[(&'static str, u64)]) {
        let mut counts = self.counts.lock().expect("who holds it does not panic");
        for (what, count) in happened.iter().chain(&[("lives", 1)]) {
            *counts.entry(what).or_default() += count;
        }
    }

    /// So much of each happens in a hundred lives at least.
    pub(super) fn assert_in_hundred_lives(&self, least: &[(&'static str, u64)]) {
        let counts = self.counts.lock().expect("who holds it does not panic");
        let lives = counts.get("lives").copied().unwrap_or(0);
        for (what, least) in least {
            let count = counts.get(what).copied().unwrap_or(0);
            assert!(lives < LIVES_MIN || count * 100 >= least * lives, "too few {what}: {counts:?}");
        }
    }
}
