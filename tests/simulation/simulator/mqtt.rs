//! Simulates MQTT sessions across power cuts.
//!
//! The clients keep their parts of the sessions, as real clients with persistence do. A model compares what they
//! receive with what they were promised.
//!
//! ```text
//! clients: publish, subscribe, answer late, reconnect, take over ~ lines ~> engine, simulated disk
//! ```
//!
//! Checked:
//! - A session receives every message with QoS 1 or 2 that was acknowledged while the session was subscribed.
//! - A message with QoS 2 on both sides is received once.
//! - Messages of a publisher arrive in order, per topic and QoS.
//! - One client of a group receives each message of a shared subscription.
//! - A subscription with No Local gets no message of its client. Subscription identifiers are those of matching
//!   subscriptions.
//! - Retained messages are the last ones that were acknowledged.
//! - CONNACK says whether there is a session, except for some time after its expiry interval.
//! - A packet identifier is used for one message until the client has acknowledged it.
//! - Nothing is left in the pools after all sessions have ended.
//!
//! Some seeds have little memory. The broker may then refuse a request or close its connection, but keeps the guarantees of
//! everything that it accepted.
//!
//! # Invariants
//! - A run follows from its seed.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use leveret_broker::{Gauges, OpenedLog, restore};
use leveret_core::limits::Limits;
use leveret_core::mem::{COMMAND_EXTENTS, PAGE_BYTES};
use leveret_core::time::Now;
use leveret_server::{Engine, ListenerId, PeerAddress, StorageDriver};
use leveret_storage::{Log, Settings};
use leveret_test_support::random::Random;
use leveret_test_support::simulated_disk::{Mutant, SimDisk, Trouble};
use leveret_test_support::simulated_server::mqtt::{Login, packet, split_packet};
use leveret_test_support::simulated_server::{Line, Memory, OTHER_EXTENTS};

use super::mqtt_client::{Clock, Habits, SessionClient, line};
use super::mqtt_model::Model;
use super::plan::{INDEX_BYTES, Plan, USERS};
use super::start::{IDENTITY, engine_on, hash_of};

/// Seeds of the gate. Memory is short in several of them, which [`Counts::check_work`] demands.
const SEEDS: core::ops::Range<u64> = 10401..10601;
/// Number of lives that end with a power cut or a kill.
const LIVES: u64 = 5;
/// Maximum number of steps of a life.
const STEPS_MAX: u64 = 600;
/// Maximum number of steps until everything has arrived, once all faults have ended.
const CALM_STEPS: u64 = 60_000;
/// Milliseconds without any packet after which nothing more is expected.
const CALM_MS: u64 = 3_000;
/// The same if memory is short. A client that waits for memory with unacknowledged deliveries is refused after 60 s.
const SHORT_CALM_MS: u64 = 80_000;
/// Milliseconds after which a refused client connects again, once all faults have ended.
const RETRY_MS: u64 = 1_000;

/// Returns for every third seed a memory of few extents, for clients, definitions and messages.
fn extents_of(seed: u64) -> Option<[usize; 3]> {
    let random = &mut Random::of(seed, "memory", &[]);
    // The fewest extents in which the longest message fits.
    let messages = 20;
    // So few definitions are either always stored or never.
    random.once_in(3).then_some([
        COMMAND_EXTENTS + 2 + random.below(22) as usize,
        4 * OTHER_EXTENTS,
        messages,
    ])
}

/// The sums of all runs.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    cuts: u64,
    kills: u64,
    packets: u64,
    connects: u64,
    continued: u64,
    takeovers: u64,
    resent: u64,
    published: u64,
    accepted: u64,
    received: u64,
    repeated: u64,
    owed: u64,
    exact: u64,
    shared: u64,
    retained: u64,
    refused: u64,
    /// Sessions that have dropped messages in a life.
    dropping_sessions: u64,
    /// Steps after which there was no memory for a message of a page.
    short_steps: u64,
}

impl Counts {
    const fn add(&mut self, other: &Self) {
        self.cuts += other.cuts;
        self.kills += other.kills;
        self.packets += other.packets;
        self.connects += other.connects;
        self.continued += other.continued;
        self.takeovers += other.takeovers;
        self.resent += other.resent;
        self.published += other.published;
        self.accepted += other.accepted;
        self.received += other.received;
        self.repeated += other.repeated;
        self.owed += other.owed;
        self.exact += other.exact;
        self.shared += other.shared;
        self.retained += other.retained;
        self.refused += other.refused;
        self.dropping_sessions += other.dropping_sessions;
        self.short_steps += other.short_steps;
    }

    /// Checks that `seeds` runs did enough. Otherwise a change of the broker has silently made them ineffective.
    fn check_work(&self, seeds: u64) {
        assert!(self.cuts > 2 * seeds && self.kills > seeds / 4, "cut too seldom: {self:?}");
        assert!(self.continued > 8 * seeds && self.takeovers > seeds, "too few sessions: {self:?}");
        assert!(self.accepted > 50 * seeds && self.resent > 5 * seeds, "too few messages: {self:?}");
        assert!(self.owed > 40 * seeds && self.exact > 10 * seeds, "too few guarantees: {self:?}");
        assert!(self.shared > 2 * seeds && self.retained > 2 * seeds, "too few guarantees: {self:?}");
        assert!(self.short_steps > seeds / 8, "memory is too seldom short: {self:?}");
    }
}

/// The state that outlives the lives of the broker.
struct MqttRun {
    seed: u64,
    plan: Plan,
    disk: SimDisk,
    model: Model,
    clients: Vec<SessionClient>,
    engine: Option<Engine<Memory>>,
    /// All lines of the life, and those that their clients have left without closing them.
    lines: Rc<RefCell<Vec<Rc<RefCell<Line>>>>>,
    silent: Vec<Rc<RefCell<Line>>>,
    life: u64,
    steps: u64,
    clock: Clock,
    /// Clients send nothing new, and keep their connections.
    is_calm: bool,
    counts: Counts,
}

impl MqttRun {
    fn new(seed: u64) -> Self {
        let random = &mut Random::of(seed, "mqtt", &[]);
        let mut plan = Plan::of(seed);
        plan.persist_all = false;
        plan.extents = extents_of(seed);
        plan.limits = Limits {
            connections_max: 64,
            handshakes_max: 64,
            channels_max: 128,
            consumers_max: 64,
            queues_max: 64,
            bindings_max: 256,
            messages_max: 4_000,
            queue_entries_max: 32_000,
            unacknowledged_max: 1_024,
            body_bytes_max: 4 << 20,
            assembly_bytes_max: 1 << 20,
            message_size_max: 64 << 10,
            mqtt_session_messages_max: 4_000,
            // All contents of retained messages in memory, a few, or one.
            retained_bytes_max: [1 << 20, 40, 1][seed as usize % 3],
            ..plan.limits
        };
        let window_ms = random.one_of(&[0, 5, 20, 200]);
        plan.settings = Settings {
            segments_max: 128,
            index_bytes: INDEX_BYTES,
            fixed_index_bytes: 256 << 10,
            commit_window_ms: window_ms,
            confirm_window_ms: window_ms.min(random.one_of(&[0, 5, 20])),
            settle_window_ms: window_ms.max(50),
            ..plan.settings
        };
        plan.slowness_ms = random.one_of(&[0, 1, 4, 12, 300]);
        let count = 2 + random.below(3) as usize;
        let (break_one_in, rest_ms) = (random.one_of(&[6, 15, 40]), random.one_of(&[5, 40, 400]));
        // With such a message, a group is larger than half a commit.
        let long_len = (plan.settings.commit_bytes as usize / 2).min(20_000);
        let (has_group, may_be_refused) = (random.once_in(2), plan.extents.is_some());
        let habits = |random: &mut Random| Habits {
            level: random.one_of(&[4, 5]),
            expiry_s: random.one_of(&[0, 30, 100_000, 100_000, 100_000]),
            receive_max: random.one_of(&[1, 3, 10, 20, 65_535]),
            lateness_ms: random.one_of(&[1, 10, 100, 1_000]),
            break_one_in,
            rest_ms,
            long_len,
            has_group,
            may_be_refused,
        };
        Self {
            seed,
            disk: SimDisk::new(seed, Mutant::None, IDENTITY),
            plan,
            model: Model::new(count),
            clients: (0..count).map(|number| SessionClient::new(number, habits(random))).collect(),
            engine: None,
            lines: Rc::default(),
            silent: Vec::new(),
            life: 0,
            steps: 0,
            clock: Clock::default(),
            is_calm: false,
            counts: Counts::default(),
        }
    }

    /// Returns the random numbers for one purpose in this step.
    fn chance(&self, purpose: &str, number: u64) -> Random {
        Random::of(self.seed, purpose, &[self.life, self.steps, number])
    }

    /// Starts a life. Returns `false` if the power failed during the start.
    fn start(&mut self) -> bool {
        (self.clock.life_ms, self.clock.resumed_ms) = (0, 0);
        self.steps = 0;
        let opened = Log::open(&mut self.disk, self.plan.settings.clone(), IDENTITY, Now::from_ms(0));
        let Ok((log, report)) = opened else { return false };
        if report.unwritable.is_some() || report.is_pending || self.disk.is_off() {
            return false;
        }
        let mut engine = engine_on(&self.plan, &self.disk, (self.seed, self.life));
        let (broker, mut context) = engine.broker_mut();
        context.pending_writes.start(log.epoch(), true, log.space().record_bytes_max() as u64);
        let first = Some((USERS[0], hash_of(USERS[0])));
        let opened = OpenedLog {
            log: &log,
            disk: &mut self.disk,
            access: report.access,
            damage: report.reported_damage,
        };
        let restored = restore(broker, &mut context, opened, first, Now::from_ms(0));
        if restored.is_err() {
            return false;
        }
        engine.set_store(StorageDriver::new(log, self.plan.limits.frame_max as usize));
        self.engine = Some(engine);
        self.model.restarted();
        for number in 0..self.clients.len() {
            let random = &mut self.chance("restart", number as u64);
            self.clients[number].restart(self.clock, random);
        }
        true
    }

    /// Lets clients and the broker act once. If nothing moves, the clock jumps to the next due time. Returns `false` if
    /// the power failed.
    fn step(&mut self) -> bool {
        self.steps += 1;
        // The broker has noticed in the last step which connections are lost.
        self.pause();
        let Some(mut engine) = self.engine.take() else { return false };
        let mut moved = false;
        for number in 0..self.clients.len() {
            let random = &mut self.chance("client", number as u64);
            let lines = self.lines.clone();
            if !self.is_calm {
                let silent = &mut self.silent;
                self.clients[number].act(
                    &mut self.model,
                    (self.clock, random),
                    &mut || arrive(&mut engine, &mut lines.borrow_mut()),
                    &mut |line| silent.push(line),
                );
            }
            // A client does not read all the time.
            if self.is_calm || !random.once_in(3) {
                moved |= self.clients[number].step(&mut self.model, (self.clock, random));
            }
        }
        self.disturb(&mut engine);
        for line in self.lines.borrow().iter() {
            moved |= line.borrow_mut().arrive();
        }
        let clock = Now::from_ms(self.clock.life_ms);
        engine.set_now(clock);
        let is_woken = Memory::report(&mut engine);
        if is_woken || engine.sleep_deadline().is_none_or(|deadline| deadline.is_due(clock)) {
            let outcome = engine.turn();
            // Clients see nothing of what the engine does in the turn of a power cut.
            if self.disk.is_off() || outcome.is_err() {
                self.engine = Some(engine);
                return false;
            }
            moved = true;
        }
        if !moved {
            let due =
                engine.next_deadline().ms_left(clock).map_or(u64::MAX, |left| self.clock.life_ms + left);
            let due = due.min(engine.platform_mut().helpers.due_ms().unwrap_or(u64::MAX));
            let of_client = |client: &SessionClient| {
                let acts_at_ms = if self.is_calm { u64::MAX } else { client.act_at_ms() };
                client.due_ms().unwrap_or(u64::MAX).min(acts_at_ms)
            };
            let due = self.clients.iter().map(of_client).fold(due, u64::min);
            let now = self.clock.life_ms;
            self.pass_ms(due.clamp(now + 1, now + 1_000) - now);
        }
        self.counts.short_steps += u64::from(!engine.messages().has_ordinary_room(PAGE_BYTES));
        self.engine = Some(engine);
        true
    }

    fn pass_ms(&mut self, ms: u64) {
        self.clock.life_ms += ms;
        self.clock.total_ms += ms;
    }

    /// Sometimes pauses all clients, perhaps for longer than some sessions are kept.
    fn pause(&mut self) {
        let random = &mut self.chance("pause", 0);
        // A session may expire before a CONNECT that is under way is handled.
        let is_connecting = self.clients.iter().any(|client| client.is_connected() && !client.is_open());
        if random.once_in(400) && !is_connecting && !self.is_calm {
            self.pass_ms(random.below(40_000));
            self.clock.resumed_ms = self.clock.life_ms;
        }
    }

    /// Uses up packet identifiers, or lets the broker notice that a connection was left.
    fn disturb(&mut self, engine: &mut Engine<Memory>) {
        let random = &mut self.chance("disturbance", 0);
        if self.is_calm {
            return;
        }
        if random.once_in(60) {
            // The next packet identifiers are near those in use.
            engine.broker_mut().0.pass_packet_ids(u16::MAX - random.below(12) as u16);
        }
        if random.once_in(50) && !self.silent.is_empty() {
            self.silent.remove(0).borrow_mut().lose();
        }
    }

    /// Runs a life until the power fails or the process is killed.
    fn live(&mut self) {
        let random = &mut self.chance("life", 0);
        let trouble = match random.below(8) {
            0 => Trouble::Cut(random.below(30)),
            1..=3 => Trouble::Cut(random.below(400)),
            4 | 5 => Trouble::CutAsSettled(random.below(20)),
            6 => Trouble::Kill(random.below(200)),
            _ => Trouble::Never,
        };
        if super::is_traced() {
            eprintln!("life {}: {trouble:?}", self.life);
        }
        let steps = 100 + random.below(STEPS_MAX - 100);
        self.disk.start(trouble);
        if self.start() {
            for _ in 0..steps {
                if !self.step() || !self.model.complaints.is_empty() {
                    break;
                }
            }
        }
        self.end_life();
        if self.disk.is_killed() {
            self.disk.revive();
            self.counts.kills += 1;
        } else {
            self.disk.power_cut();
            self.counts.cuts += 1;
        }
        self.life += 1;
    }

    /// Tells the model which sessions have dropped messages. Only a client that does not acknowledge its messages can make the
    /// session drop any, and only a small memory is used up by them.
    fn note_drops(&mut self) {
        let Some(engine) = &self.engine else { return };
        for session in engine.broker().views().sessions() {
            let number = session.client_id.strip_prefix("client-").and_then(|number| number.parse().ok());
            if let Some(number) = number.filter(|_| session.messages_dropped > 0) {
                assert!(self.plan.extents.is_some(), "there is memory for all messages");
                self.model.dropped(number);
                self.counts.dropping_sessions += 1;
            }
        }
    }

    fn end_life(&mut self) {
        self.note_drops();
        self.engine = None;
        self.silent.clear();
        self.lines.borrow_mut().clear();
    }

    /// Runs without new requests until all exchanges of packets are complete. `must_begin` is for clients that connect again.
    fn calm_down(&mut self, must_begin: bool) {
        self.is_calm = true;
        let (mut since, mut tried_at_ms) = ((self.clock.life_ms, 0), self.clock.life_ms);
        for _ in 0..CALM_STEPS {
            assert!(self.step(), "the disk failed by itself");
            if !self.model.complaints.is_empty() {
                return;
            }
            let packets: u64 = self.clients.iter().map(|client| client.counts.packets_received).sum();
            if packets != since.1 {
                since = (self.clock.life_ms, packets);
            }
            let wait_ms = if self.plan.extents.is_some() { SHORT_CALM_MS } else { CALM_MS };
            if self.clock.life_ms > since.0 + wait_ms + self.plan.slowness_ms * 4 {
                break;
            }
            // A client whose connection was closed for lack of memory tries again.
            if self.clock.life_ms > tried_at_ms + RETRY_MS && self.plan.extents.is_some() {
                tried_at_ms = self.clock.life_ms;
                self.connect_all(must_begin);
            }
        }
        for client in self.clients.iter().filter(|client| !client.is_at_rest()) {
            self.model.complaints.push(format!("an exchange of packets does not end: {client:?}"));
        }
    }

    /// Runs a life without faults in which everything arrives, and ends all sessions.
    fn last_life(&mut self) {
        self.disk.start(Trouble::Never);
        assert!(self.start(), "the last start failed");
        // The clients connect and go on for some time.
        for _ in 0..100 {
            assert!(self.step(), "the disk failed by itself");
        }
        self.connect_all(false);
        self.calm_down(false);
        if !self.model.complaints.is_empty() {
            return;
        }
        self.note_drops();
        let is_connected: Vec<bool> = self.clients.iter().map(SessionClient::is_open).collect();
        self.model.check_received(&is_connected);
        // Before MQTT 5, a client is not told that there is no memory to retain its message.
        let is_told = |client: &SessionClient| client.habits.level == 5;
        if self.plan.extents.is_none() || self.clients.iter().all(is_told) {
            let retained = self.read_retained();
            self.model.check_retained(&retained);
        }
        for _ in 0..2 {
            self.clients.iter_mut().for_each(|client| client.lose(self.clock));
            self.connect_all(true);
            self.calm_down(true);
        }
        for client in &mut self.clients {
            client.lose(self.clock);
        }
        let until = self.clock.life_ms + 10_000;
        while self.clock.life_ms < until {
            assert!(self.step(), "the disk failed by itself");
        }
        let engine = self.engine.as_ref().expect("it runs");
        let (gauges, messages, pools) = (engine.broker().gauges(), engine.messages(), engine.pools());
        let left = (messages.messages_used(), pools.channels_used(), pools.reply_bytes_used());
        if gauges != Gauges::default() || left != (0, 0, 0) {
            self.model.complain(format!("something is left: {gauges:?}, {left:?}"));
        }
    }

    /// Returns the retained messages that a new subscriber gets: by topic, the number of the message.
    fn read_retained(&mut self) -> BTreeMap<String, u64> {
        let engine = self.engine.as_mut().expect("it runs");
        let line = arrive(engine, &mut self.lines.borrow_mut());
        let login = Login { level: 4, client_id: "observer", ..Login::default() };
        let mut requests = login.packet();
        requests.extend(packet(0x82, b"\0\x01\0\x03r/#\0"));
        requests.extend([0xC0, 0]);
        line.borrow_mut().write_up(&requests);
        let (mut input, mut retained) = (Vec::new(), BTreeMap::new());
        let until = self.clock.life_ms + CALM_MS;
        while self.clock.life_ms < until {
            assert!(self.step(), "the disk failed by itself");
            line.borrow_mut().read_down(usize::MAX, &mut input);
            while let Some((packet, len)) = split_packet(&input) {
                input.drain(..len);
                if packet.first_octet >> 4 == 3 {
                    assert_eq!(packet.first_octet, 0x31, "QoS 0 and RETAIN");
                    let (topic, payload) = packet.body[2..].split_at(usize::from(packet.body[1]));
                    let number = u64::from_be_bytes(*payload.first_chunk().expect("a payload has a number"));
                    let topic = String::from_utf8_lossy(topic).into_owned();
                    assert_eq!(retained.insert(topic, number), None, "one message of each topic");
                }
            }
        }
        line.borrow_mut().hang_up();
        retained
    }

    /// Connects all clients that are not connected; with `must_begin` each client with a new session that is not kept.
    fn connect_all(&mut self, must_begin: bool) {
        self.silent.drain(..).for_each(|line| line.borrow_mut().lose());
        let engine = self.engine.as_mut().expect("it runs");
        for (number, client) in self.clients.iter_mut().enumerate() {
            let random = &mut Random::of(self.seed, "last", &[number as u64]);
            if !client.is_connected() {
                let line = arrive(engine, &mut self.lines.borrow_mut());
                client.connect(line, &mut self.model, (self.clock, random), must_begin);
            }
        }
    }

    /// Runs all lives. Returns the sums.
    fn run(&mut self) -> Counts {
        while self.life < LIVES && self.model.complaints.is_empty() {
            self.live();
        }
        let violations = self.disk.violations();
        self.model.complaints.extend(violations);
        if self.model.complaints.is_empty() {
            self.last_life();
        }
        let mut counts = self.counts;
        for client in &self.clients {
            counts.packets += client.counts.packets_sent + client.counts.packets_received;
            counts.connects += client.counts.connects;
            counts.continued += client.counts.continued;
            counts.takeovers += client.counts.takeovers;
            counts.resent += client.counts.resent;
            counts.refused += client.counts.refused;
        }
        let model = self.model.counts;
        (counts.published, counts.accepted) = (model.published, model.accepted);
        (counts.received, counts.repeated) = (model.received, model.repeated);
        (counts.owed, counts.exact) = (model.owed, model.exact);
        (counts.shared, counts.retained) = (model.shared, model.retained);
        counts
    }
}

/// Returns a new line to the broker's listener for MQTT.
fn arrive(engine: &mut Engine<Memory>, lines: &mut Vec<Rc<RefCell<Line>>>) -> Rc<RefCell<Line>> {
    let line = line();
    lines.retain(|line| line.borrow().is_held);
    lines.push(line.clone());
    let address = PeerAddress::Network(SocketAddr::from(([127, 0, 0, 1], 7)));
    engine.platform_mut().arrive_at(ListenerId::Mqtt(0), &line, address);
    line
}

/// Runs one seed. Returns its sums, or its complaints.
fn run(seed: u64) -> Result<Counts, String> {
    let ran = catch_unwind(AssertUnwindSafe(|| {
        let mut run = MqttRun::new(seed);
        let counts = run.run();
        (counts, core::mem::take(&mut run.model.complaints))
    }));
    match ran {
        Ok((counts, complaints)) if complaints.is_empty() => Ok(counts),
        Ok((_, complaints)) => Err(complaints.join("\n")),
        // The panic message is on standard error already.
        Err(panic) => {
            let said = panic.downcast_ref::<String>().cloned();
            Err(format!("panicked: {}", said.unwrap_or_default()))
        }
    }
}

#[test]
fn sessions_keep_their_guarantees_over_power_cuts() {
    let seeds = super::seeds_or(SEEDS);
    let failures_max = super::failures_max();
    let (next, failed) = (AtomicU64::new(seeds.start), Mutex::new(Vec::new()));
    let sum = Mutex::new(Counts::default());
    let workers = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let failures = failed.lock().expect("no thread panics while it holds the lock").len();
                    if seed >= seeds.end || failures >= failures_max {
                        break;
                    }
                    match run(seed) {
                        Ok(counts) => sum.lock().expect("as above").add(&counts),
                        Err(what) => failed.lock().expect("as above").push(format!(
                            "replay with: LEVERET_SEED={seed} cargo test --profile checked --test simulator mqtt\n{what}"
                        )),
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().expect("as above");
    assert!(failed.is_empty(), "{} seeds fail\n{}", failed.len(), failed.join("\n"));
    let sum = sum.into_inner().expect("as above");
    println!("seeds {seeds:?}: {sum:?}");
    if seeds.end - seeds.start >= SEEDS.end - SEEDS.start {
        sum.check_work(seeds.end - seeds.start);
    }
}
