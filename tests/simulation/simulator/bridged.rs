//! Simulates a bridge across power cuts, with an upstream that shows the faults of real upstreams.
//!
//! Checked when forwarding: each message confirmed by the broker arrives upstream at least once and in order,
//! or it is parked. Repeats are marked as such. Checked when fetching: each message acknowledged to the
//! upstream is in the broker.
//!
//! ```text
//! publisher ~ line ~> engine, simulated disk ~ line ~> upstream: takes, refuses, confirms late, breaks off
//!            engine, simulated disk <~ line ~ upstream: gives, closes, breaks off, gives again
//! ```
//!
//! # Invariants
//! - A run follows from its seed.
//! - All checks use only what the publisher and the upstream saw.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::rc::Rc;

use leveret_amqp::{Method, Table, TableWriter, Writer};
use leveret_broker::{OpenedLog, restore};
use leveret_config::bridge::{Bridge, Destination, DrainRate, RefusedAction, Rule, UpstreamTls};
use leveret_config::upstream;
use leveret_core::limits::Limits;
use leveret_core::time::Now;
use leveret_server::{Engine, StorageDriver};
use leveret_storage::Log;

use super::plan::{Plan, USERS};
use super::start::{IDENTITY, engine_on, hash_of};
use super::upstream::{Upstream, Vices};
use leveret_test_support::random::Random;
use leveret_test_support::simulated_disk::{Mutant, SimDisk, Trouble};
use leveret_test_support::simulated_server::{
    Client, Line, Manners, Memory, Phase, Shape, consume, content_frames, passive,
};

const SEEDS: core::ops::Range<u64> = 1..201;
/// Seeds that once failed, when the upstream had fewer faults.
///
/// In the first, two queues could not load their first messages, because returned messages that could not be
/// sent filled the memory. In the second, a message was sent after its channel had ended.
const FAILED_ONCE: [u64; 2] = [2798, 6020];
/// Address of the upstream, and a host name that resolves to it.
const AT: ([u8; 4], u16) = ([10, 0, 0, 1], 5672);
const HOST: &str = "host-1";
const WINDOW: u16 = 8;
/// Maximum number of unconfirmed messages.
const UNCONFIRMED_MAX: usize = 24;
const LIVES: u32 = 5;
/// Number of messages to fetch up to the end of the first life, and the number added by each later life.
///
/// They are not consumed here, so the disk must have space for all of them.
const FETCHED_MAX: u64 = 80;
/// Maximum number of steps until everything has arrived, once all faults have ended.
const CALM_STEPS: u64 = 400_000;
const HOUR_MS: u64 = 3_600_000;

/// Prints the broker's log when tracing is on.
struct Shown;

impl log::Log for Shown {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        eprintln!("{} {}", record.level(), record.args());
    }

    fn flush(&self) {}
}

/// The program on the device that publishes.
struct Publisher {
    client: Client,
    line: Rc<RefCell<Line>>,
    is_ready: bool,
    publishes: u64,
    unconfirmed: BTreeMap<u64, u64>,
    /// Message count in the last answer to a passive declare.
    ready: Option<u32>,
    delivered: Vec<u64>,
}

impl Publisher {
    fn new(engine: &mut Engine<Memory>, arguments: &[u8]) -> Self {
        let line = Rc::new(RefCell::new(Line::new(Shape::WIDE)));
        engine.platform_mut().arrive(&line, SocketAddr::from(([127, 0, 0, 2], 7)));
        let mut client = Client::new(Manners { user: USERS[0], ..Manners::default() });
        client.send(1, &Method::ChannelOpen {});
        client.send(1, &Method::ConfirmSelect { no_wait: false });
        let declare = Method::QueueDeclare {
            queue: "here",
            passive: false,
            durable: true,
            exclusive: false,
            auto_delete: false,
            no_wait: false,
            arguments: Table::trusted(arguments),
        };
        client.send(1, &declare);
        let (unconfirmed, delivered) = (BTreeMap::new(), Vec::new());
        Self { client, line, is_ready: false, publishes: 0, unconfirmed, ready: None, delivered }
    }

    fn publish(&mut self, number: u64, body_bytes: usize, queue: &str) {
        let routing_key = queue.as_bytes();
        let method = Method::BasicPublish { exchange: "", routing_key, mandatory: false, immediate: false };
        self.client.send(1, &method);
        let mut body = number.to_be_bytes().to_vec();
        body.resize(8 + body_bytes, 7);
        // Sets delivery mode 2 (persistent).
        self.client.say(&content_frames(1, &[0x10, 0, 2], &body, 4_000));
        self.publishes += 1;
        self.unconfirmed.insert(self.publishes, number);
    }

    /// Sends and receives; adds confirmed messages to `confirmed`. Returns whether anything moved.
    fn step(&mut self, now: Now, confirmed: &mut BTreeSet<u64>) -> bool {
        let moved = self.client.step(&mut self.line.borrow_mut(), now);
        while let Some(said) = self.client.heard.pop_front() {
            match said.method() {
                Method::QueueDeclareOk { message_count, .. } => {
                    self.ready = Some(message_count);
                    self.is_ready = true;
                }
                Method::BasicAck { delivery_tag, multiple } => {
                    let left = self.unconfirmed.split_off(&(delivery_tag + 1));
                    let mut done = core::mem::replace(&mut self.unconfirmed, left);
                    if !multiple {
                        let one = done.remove(&delivery_tag);
                        self.unconfirmed.append(&mut done);
                        done = one.into_iter().map(|number| (delivery_tag, number)).collect();
                    }
                    confirmed.extend(done.into_values());
                }
                Method::BasicDeliver { .. } => {
                    let number = said.body.first_chunk().expect("bodies begin with their number");
                    self.delivered.push(u64::from_be_bytes(*number));
                }
                _ => {}
            }
        }
        moved
    }
}

struct Bridged {
    plan: Plan,
    disk: SimDisk,
    config: Bridge,
    arguments: Vec<u8>,
    store: [u8; 16],
    seed: u64,
    life: u32,
    now: u64,
    next: u64,
    confirmed: BTreeSet<u64>,
    upstream: Upstream,
    engine: Option<Engine<Memory>>,
    publisher: Option<Publisher>,
    is_away: bool,
    cuts: u64,
    /// Highest number of messages in the message pool.
    messages_most: usize,
    /// Steps in this life.
    steps: u64,
}

impl Bridged {
    fn new(seed: u64) -> Self {
        let mut random = Random::of(seed, "bridge", &[]);
        let mut plan = Plan::of(seed);
        plan.limits = Limits { bridges_max: 1, connections_max: 24, ..plan.limits };
        plan.settings.index_bytes = super::plan::INDEX_BYTES;
        plan.slowness_ms = random.one_of(&[0, 1, 12]);
        let mut rarely = |one_in: &[u64]| random.one_of(one_in);
        let vices = Vices {
            nacks: rarely(&[0, 0, 30]),
            returns: rarely(&[0, 0, 40]),
            closes: rarely(&[0, 0, 90]),
            resets: rarely(&[0, 25, 80]),
            stalls: rarely(&[0, 30, 120]),
            dies: rarely(&[0, 0, 150]),
            forgets: 0,
            late_ms: rarely(&[0, 20, 400, 4_000]),
            idle_closes: rarely(&[0, 0, 60]),
        };
        let [wide, narrow] = [1 << 20, 1_000];
        let shape = Shape {
            down_room: rarely(&[wide, wide, 4_096, narrow, 37]) as usize,
            down_fragment: rarely(&[wide, wide, narrow, 7]) as usize,
            up_fragment: rarely(&[wide, wide, 11]) as usize,
            ..Shape::WIDE
        };
        let line = Rc::new(RefCell::new(Line::new(shape)));
        Self {
            plan,
            disk: SimDisk::new(seed, Mutant::None, IDENTITY),
            config: config(),
            arguments: Vec::new(),
            store: [0; 16],
            seed,
            life: 0,
            now: 0,
            next: 1,
            confirmed: BTreeSet::new(),
            upstream: Upstream::new(seed, line, vices),
            engine: None,
            publisher: None,
            is_away: false,
            cuts: 0,
            messages_most: 0,
            steps: 0,
        }
    }

    /// Starts a life. Returns `false` if the power failed during the start.
    fn start(&mut self) -> bool {
        self.now = 0;
        self.upstream.now = 0;
        let Ok((log, report)) =
            Log::open(&mut self.disk, self.plan.settings.clone(), IDENTITY, Now::from_ms(0))
        else {
            return false;
        };
        if report.unwritable.is_some() || report.is_pending {
            return false;
        }
        self.life = log.epoch();
        let mut engine = engine_on(&self.plan, &self.disk, (self.seed, self.cuts));
        let (broker, mut context) = engine.broker_mut();
        context.pending_writes.start(self.life, true, log.space().record_bytes_max() as u64);
        let first = Some((USERS[0], hash_of(USERS[0])));
        let restored = restore(
            broker,
            &mut context,
            OpenedLog {
                log: &log,
                disk: &mut self.disk,
                access: report.access,
                damage: report.reported_damage,
            },
            first,
            Now::from_ms(0),
        );
        if restored.is_err() {
            return false;
        }
        if self.life == 1 {
            // Nothing in the earlier store was durable, not even its name.
            self.store = [self.cuts as u8; 16];
        }
        engine.set_origin(self.store, self.life);
        engine.set_store(StorageDriver::new(log, self.plan.limits.frame_max as usize));
        // A queue with arguments is declared before the bridge starts. Otherwise the bridge would declare it
        // without.
        if self.arguments.is_empty() {
            engine.set_bridges(std::slice::from_ref(&self.config));
        }
        self.upstream.forget_connection(0);
        self.publisher = Some(Publisher::new(&mut engine, &self.arguments));
        self.engine = Some(engine);
        self.set_away(false);
        true
    }

    /// Sets whether the upstream is unreachable.
    fn set_away(&mut self, is_away: bool) {
        self.is_away = is_away;
        let Some(engine) = &mut self.engine else { return };
        engine.platform_mut().upstreams.clear();
        match is_away {
            true => self.upstream.line.borrow_mut().lose(),
            false => engine.platform_mut().upstreams.push((SocketAddr::from(AT), self.upstream.line.clone())),
        }
    }

    /// Lets the publisher, the broker and the upstream act once. If nothing moves, the clock jumps to the
    /// next due time, by at most `jump_ms`. Returns `false` if the power failed.
    fn step(&mut self, jump_ms: u64) -> bool {
        let (Some(engine), Some(publisher)) = (&mut self.engine, &mut self.publisher) else { return false };
        let clock = Now::from_ms(self.now);
        self.upstream.now = self.now;
        let mut moved = publisher.step(clock, &mut self.confirmed);
        moved |= publisher.line.borrow_mut().arrive();
        moved |= self.upstream.step(engine.platform_mut().dialed);
        moved |= self.upstream.line.borrow_mut().arrive();
        engine.set_now(clock);
        let is_woken = Memory::report(engine);
        if is_woken || engine.sleep_deadline().is_none_or(|deadline| deadline.is_due(clock)) {
            let outcome = engine.turn();
            if self.disk.is_off() || outcome.is_err() {
                return false;
            }
            self.messages_most = self.messages_most.max(engine.messages().messages_used());
            moved = true;
        }
        if !moved {
            let due = engine.next_deadline().ms_left(clock).map_or(u64::MAX, |left| self.now + left);
            let due = due.min(engine.platform_mut().helpers.due_ms().unwrap_or(u64::MAX));
            let due = due.min(self.upstream.next_ms());
            self.now = due.clamp(self.now + 1, self.now + jump_ms);
        }
        true
    }

    /// Returns how often the bridge has tried to connect in this life, successfully or not.
    fn tries(&self) -> u32 {
        self.engine.as_ref().map_or(0, |engine| engine.platform().tried)
    }

    /// Publishes a few more messages, if the limit of unconfirmed ones allows it.
    fn publish(&mut self) {
        if self.config.forward.is_empty() {
            let mut random = Random::of(self.seed, "publisher there", &[self.cuts, self.steps]);
            let left = (FETCHED_MAX * (self.cuts + 1)).saturating_sub(self.next);
            for _ in 0..random.below(4).min(left) {
                self.upstream.source.take(self.next, random.below(self.plan.body_bytes_max.into()) as usize);
                self.next += 1;
            }
            return;
        }
        let Some(publisher) = self.publisher.as_mut().filter(|publisher| publisher.is_ready) else { return };
        let mut random = Random::of(self.seed, "publisher", &[self.cuts, self.steps]);
        for _ in 0..random.below(6) {
            if publisher.unconfirmed.len() >= UNCONFIRMED_MAX {
                return;
            }
            let body_bytes = random.below(self.plan.body_bytes_max.into()) as usize;
            let has_urgent = self.config.forward.len() > 1;
            let queue = if has_urgent && self.next.is_multiple_of(5) { "urgent" } else { "here" };
            publisher.publish(self.next, body_bytes, queue);
            self.next += 1;
        }
    }

    fn live(&mut self) {
        self.disk.start(Trouble::Never);
        let mut random = Random::of(self.seed, "bridge's life", &[self.cuts]);
        self.disk.foresee(Trouble::Cut(random.below(300)));
        if self.start() {
            for step in 0..400 + random.below(4_000) {
                self.steps = step;
                let mut random = Random::of(self.seed, "bridge's step", &[self.cuts, step]);
                if random.once_in(3) {
                    self.publish();
                }
                // A socket may report that it is writable and then accept nothing.
                if random.once_in(12) {
                    self.upstream.line.borrow_mut().tell_again();
                }
                if random.once_in(400) {
                    let is_away = !self.is_away && random.once_in(2);
                    self.set_away(is_away);
                }
                if !self.step(1_000) {
                    break;
                }
            }
        }
        (self.engine, self.publisher) = (None, None);
        self.upstream.line.borrow_mut().lose();
        self.disk.power_cut();
        self.cuts += 1;
    }

    /// Runs without faults until nothing is left to move. Returns the messages in `queue` at the end.
    fn calm_down(&mut self, queue: &str) -> Vec<u64> {
        self.disk.start(Trouble::Never);
        // The only remaining fault is one that a bridge recovers from by itself.
        self.upstream.vices =
            Vices { forgets: Random::of(self.seed, "calm", &[]).one_of(&[0, 4]), ..Vices::default() };
        assert!(self.start(), "the last start failed");
        let mut asked_at = 0;
        for _ in 0..CALM_STEPS {
            assert!(self.step(1_000), "the disk failed by itself");
            let is_empty = self.is_empty();
            let publisher = self.publisher.as_mut().expect("it is there");
            if is_empty {
                return self.take_all(queue);
            }
            if publisher.is_ready && self.now > asked_at + 1_000 {
                asked_at = self.now;
                publisher.ready = None;
                publisher.client.send(1, &passive("here"));
            }
        }
        let publisher = self.publisher.as_ref().expect("it is there");
        let engine = self.engine.as_ref().expect("it is there");
        let room = engine.pending_writes().admit(1_000, 1);
        let (gauges, heard) = (engine.broker().gauges(), &publisher.client.checker.phase);
        panic!(
            "not at rest at {}: {:?}, {heard:?}, {room:?}, {gauges:?}, {engine:?}",
            self.now, publisher.ready
        )
    }

    /// Returns whether no message can still be on its way to the upstream.
    fn is_empty(&self) -> bool {
        let (Some(publisher), Some(engine)) = (&self.publisher, &self.engine) else { return false };
        if self.config.forward.is_empty() {
            return publisher.is_ready && self.upstream.source.is_empty();
        }
        let is_asked = publisher.ready == Some(0) && publisher.unconfirmed.is_empty();
        let urgent = engine.broker().queue_depth("/", "urgent").unwrap_or(0);
        is_asked && urgent == 0 && self.upstream.is_at_rest() && engine.broker().gauges().deliveries == 0
    }

    fn take_all(&mut self, queue: &str) -> Vec<u64> {
        let publisher = self.publisher.as_mut().expect("it is there");
        publisher.client.send(2, &Method::ChannelOpen {});
        publisher.client.send(2, &consume(queue, "c", true));
        let until = self.now + 5_000;
        while self.now < until {
            assert!(self.step(100), "the disk failed by itself");
        }
        let publisher = self.publisher.as_ref().expect("it is there");
        assert_eq!(publisher.client.checker.phase, Phase::Open);
        publisher.delivered.clone()
    }

    /// Checks the messages that the upstream has taken.
    fn check(&self, parked: &[u64]) {
        let (mut last_firsts, mut known) = (BTreeMap::new(), BTreeSet::new());
        for &(channel, number, is_repeat) in &self.upstream.taken {
            let last_first = last_firsts.entry(channel).or_insert(0);
            assert!(number < self.next, "{number} was never published");
            let is_first = known.insert(number);
            // A refused message arrives later if the power failed before it was parked.
            if is_first && !self.upstream.refused.contains(&number) {
                assert!(number > *last_first, "{number} came first after {last_first}");
                *last_first = number;
            } else if !is_first {
                assert!(is_repeat, "{number} came again without being marked as a repeat");
            }
        }
        for number in parked {
            assert!(
                self.upstream.refused.contains(number),
                "{number} was parked although it was never refused"
            );
        }
        known.extend(parked);
        let lost: Vec<&u64> = self.confirmed.difference(&known).collect();
        assert!(lost.is_empty(), "confirmed but lost: {lost:?}");
    }

    /// Checks the messages fetched by the broker, once the upstream has none left.
    fn check_fetched(&self, here: &[u64]) {
        let acknowledged = &self.upstream.source.acknowledged;
        assert_eq!(acknowledged.len() as u64, self.next - 1, "everything published upstream is acknowledged");
        let known: BTreeSet<u64> = here.iter().copied().collect();
        let lost: Vec<&u64> = acknowledged.difference(&known).collect();
        assert!(lost.is_empty(), "acknowledged upstream but missing in the broker: {lost:?}");
        assert!(known.is_subset(acknowledged), "the broker has only messages that the upstream had");
    }
}

fn config() -> Bridge {
    let rule = |queue: &str, is_urgent| Rule {
        queue: queue.into(),
        to: match is_urgent {
            true => Destination::Queue("there".into()),
            false => Destination::Exchange("there".into(), None),
        },
        refused: RefusedAction::Park,
        is_urgent,
    };
    Bridge {
        name: "plant".into(),
        vhost: "/".into(),
        upstream: vec![upstream::Upstream {
            with_tls: false,
            host: HOST.into(),
            port: AT.1,
            user: "u".into(),
            password: None,
            vhost: "/".into(),
        }],
        forward: vec![rule("here", false), rule("urgent", true)],
        fetch: Vec::new(),
        window: WINDOW,
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
        tls: UpstreamTls::default(),
        declares: false,
        shovel: None,
    }
}

#[test]
fn confirmed_messages_reach_the_upstream_despite_faults_and_power_cuts() {
    let (mut confirmed, mut taken, mut repeats, mut parked_count, mut breaks) = (0, 0, 0, 0, 0);
    if super::is_traced() && log::set_logger(&Shown).is_ok() {
        log::set_max_level(log::LevelFilter::Info);
    }
    let seeds = super::seeds_or(SEEDS);
    let failed_once = FAILED_ONCE.into_iter().filter(|_| seeds == SEEDS);
    for seed in seeds.clone().chain(failed_once) {
        let ran = std::panic::catch_unwind(|| {
            let mut run = Bridged::new(seed);
            (0..LIVES).for_each(|_| run.live());
            let parked = run.calm_down("parked");
            run.check(&parked);
            (run, parked)
        });
        let (run, parked) = ran.unwrap_or_else(|panic| {
            eprintln!(
                "replay with: LEVERET_SEED={seed} cargo test --profile checked --test simulator bridged"
            );
            std::panic::resume_unwind(panic)
        });
        confirmed += run.confirmed.len();
        taken += run.upstream.taken.len();
        repeats += run.upstream.taken.iter().filter(|(.., is_repeat)| *is_repeat).count();
        parked_count += parked.len();
        breaks += run.upstream.breaks as usize;
    }
    println!(
        "{confirmed} confirmed, {taken} taken, {repeats} marked, {parked_count} set aside, {breaks} breaks"
    );
    // Otherwise a change of the broker has silently made these runs ineffective.
    let count = (seeds.end - seeds.start) as usize;
    if count >= 100 {
        assert!(confirmed > 200 * count && taken > 200 * count, "{confirmed} {taken}");
        assert!(
            repeats > count && parked_count > count / 4 && breaks > count,
            "{repeats} {parked_count} {breaks}"
        );
    }
}

#[test]
fn messages_acknowledged_to_the_upstream_are_kept_despite_faults_and_power_cuts() {
    let (mut arrived, mut given_again, mut breaks) = (0, 0, 0);
    let seeds = super::seeds_or(SEEDS);
    for seed in seeds.clone() {
        let ran = std::panic::catch_unwind(|| {
            let mut run = Bridged::new(seed);
            run.plan.settings.segments_max = 400;
            run.config = Bridge {
                forward: Vec::new(),
                fetch: vec![Rule {
                    queue: "there".into(),
                    to: Destination::Queue("here".into()),
                    refused: RefusedAction::Park,
                    is_urgent: false,
                }],
                ..config()
            };
            (0..LIVES).for_each(|_| run.live());
            let here = run.calm_down("here");
            run.check_fetched(&here);
            (run, here)
        });
        let (run, here) = ran.unwrap_or_else(|panic| {
            eprintln!(
                "replay with: LEVERET_SEED={seed} cargo test --profile checked --test simulator bridged"
            );
            std::panic::resume_unwind(panic)
        });
        arrived += here.len();
        given_again += run.upstream.source.given_again as usize;
        breaks += run.upstream.breaks as usize;
    }
    println!("{arrived} here, {given_again} given again, {breaks} breaks");
    // Otherwise a change of the broker has silently made these runs ineffective.
    let count = (seeds.end - seeds.start) as usize;
    if count >= 100 {
        assert!(arrived > 100 * count, "{arrived}");
        assert!(given_again > count && breaks > count, "{given_again} {breaks}");
    }
}

/// A device whose upstream is unreachable for ten days and then returns.
struct Outage {
    run: Bridged,
    /// Highest number of messages in the message pool up to the end of each day.
    most: Vec<usize>,
}

impl Outage {
    /// Simulates ten days with one reading every `every_ms`. The device's program waits for each confirm.
    fn pass(arguments: Vec<u8>, segments: u32, every_ms: u64) -> Self {
        let mut run = Bridged::new(7);
        (run.upstream.vices, run.plan.slowness_ms, run.arguments) = (Vices::default(), 0, arguments);
        run.plan.settings.segments_max = segments;
        (run.config.drain_rate, run.config.reconnect_max_ms) = (Some(DrainRate::Messages(50)), 300_000);
        run.disk.start(Trouble::Never);
        assert!(run.start());
        while !run.publisher.as_ref().is_some_and(|publisher| publisher.is_ready) {
            assert!(run.step(1_000) && run.now < HOUR_MS, "the queue is never declared");
        }
        let config = run.config.clone();
        run.engine.as_mut().expect("it is there").set_bridges(&[config]);
        run.set_away(true);
        let (mut most, mut next_at) = (Vec::new(), 0);
        for day in 1..=10 {
            run.messages_most = 0;
            while run.now < day * 24 * HOUR_MS {
                let jump_ms = if next_at > run.now { next_at - run.now } else { every_ms };
                assert!(run.step(jump_ms));
                let publisher = run.publisher.as_mut().expect("it is there");
                if run.now >= next_at && publisher.is_ready && publisher.unconfirmed.is_empty() {
                    publisher.publish(run.next, 100, "here");
                    (run.next, next_at) = (run.next + 1, run.now + every_ms);
                }
            }
            most.push(run.messages_most);
        }
        Self { run, most }
    }

    /// Makes the upstream reachable again. Returns the milliseconds from its first message until the queue is
    /// empty.
    fn drain(&mut self) -> u64 {
        let run = &mut self.run;
        run.set_away(false);
        let (away_until, mut first_at, mut asked_at) = (run.now, None, 0);
        run.publisher.as_mut().expect("it is there").ready = None;
        loop {
            assert!(run.step(1_000) && run.now < away_until + 24 * HOUR_MS);
            if !run.upstream.taken.is_empty() {
                first_at.get_or_insert(run.now);
            }
            let is_empty = run.is_empty();
            let publisher = run.publisher.as_mut().expect("it is there");
            if is_empty {
                return run.now - first_at.unwrap_or(run.now);
            }
            if run.now > asked_at + 1_000 {
                asked_at = run.now;
                publisher.ready = None;
                publisher.client.send(1, &passive("here"));
            }
        }
    }
}

#[test]
fn ten_days_without_an_upstream_fill_the_disk_but_not_memory_and_drain_at_the_set_rate() {
    let mut outage = Outage::pass(Vec::new(), 24, 60_000);
    let published = outage.run.next - 1;
    assert!(published > 5_000, "{published} readings");
    let publisher = outage.run.publisher.as_ref().expect("it is there");
    assert_eq!(publisher.unconfirmed.len(), 1, "the disk is full, and the device's program waits");
    // Random pauses of up to five minutes give about 5,760 attempts in ten days.
    let tries = outage.run.tries();
    assert!((4_000..8_000).contains(&tries), "{tries} tries in ten days");
    let last_day = outage.most.last().expect("there were ten");
    assert!(outage.most.iter().skip(1).all(|most| most <= last_day), "{:?}", outage.most);
    let took_ms = outage.drain();
    let taken = outage.run.upstream.taken.len() as u64;
    outage.run.check(&[]);
    assert!(taken >= published, "{taken} of {published}");
    let due_ms = taken * 1_000 / 50;
    assert!((due_ms * 9 / 10..due_ms * 11 / 10 + 10_000).contains(&took_ms), "{took_ms} ms for {taken}");
}

#[test]
fn ten_days_without_an_upstream_drop_the_oldest_messages_if_the_queue_has_a_length_limit() {
    let mut bytes = [0; 64];
    let mut writer = Writer::new(&mut bytes);
    assert!(writer.table(|table: &mut TableWriter<'_, '_>| table.long("x-max-length", 1_000)).is_ok());
    let arguments = writer.written()[4..].to_vec();
    let mut outage = Outage::pass(arguments, 24, 60_000);
    let published = outage.run.next - 1;
    assert!((14_400..=14_401).contains(&published), "the program waited: {published} readings");
    outage.drain();
    let numbers: Vec<u64> = outage.run.upstream.taken.iter().map(|(_, number, _)| *number).collect();
    assert_eq!(numbers, (published - 999..=published).collect::<Vec<_>>());
}
