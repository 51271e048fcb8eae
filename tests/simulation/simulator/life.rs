//! One life of the broker, from its start to its end: the production engine, its clients, their connections,
//! and the clock.
//!
//! ```text
//! step: clients act ─ data on the connections arrives ─ the engine takes a turn if its event loop would wake up
//!       ─ if nothing moved, the clock jumps to the next due time
//! ```
//!
//! The simulation is at rest when nothing moves, nothing is under way and the engine sleeps. Then every
//! socket is falsely reported as ready, and the engine takes a turn. If a client proceeds, the engine had
//! missed a wake-up: it could have proceeded before, and nothing would have woken the event loop.
//!
//! # Invariants
//! - A life ends with the first complaint.
//! - What the engine does in the turn of a power cut is visible to no client.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;

use leveret_core::time::{Deadline, Now};
use leveret_server::Engine;

use super::actor::{Actor, Leaving, Link};
use super::operator::Operator;
use super::plan::{USERS, VHOSTS};
use super::run::Run;
use super::traffic::Mood;
use leveret_test_support::random::Random;
use leveret_test_support::simulated_server::{Client, Line, Manners, Memory, Shape};

/// The reason why a life ended before its planned end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// The power failed or a disk call did: the process is gone.
    Disk,
    /// A check has failed.
    Complaint,
}

/// Maximum number of steps until everything is at rest.
pub(super) const CALM_STEPS: u64 = 60_000;
/// Milliseconds without an unanswered request and without a delivery after which nothing more is expected.
const CALM_MS: u64 = 3_000;
/// Turns without a rest after which an engine that still has work is considered to loop forever.
const TURNS_MAX: u64 = 100_000;
/// More connections than a life has.
const CONNECTIONS_MAX: u64 = 1_000;
/// Maximum number of calls that a clean stop may take.
const FLUSHES_MAX: u64 = 1_000_000;

pub struct Life<'r> {
    pub run: &'r mut Run,
    pub engine: Engine<Memory>,
    pub actors: Vec<Actor>,
    pub operator: Option<Operator>,
    pub now: u64,
    pub mood: Mood,
    /// Clients send nothing new, and connections have no faults.
    pub is_calm: bool,
    turns_in_a_row: u64,
    /// Steps taken so far.
    steps: u64,
}

impl<'r> Life<'r> {
    pub fn new(run: &'r mut Run, engine: Engine<Memory>) -> Self {
        // The numbers of a life's clients do not depend on earlier lives.
        run.next_connection = 1 + run.life * CONNECTIONS_MAX;
        let mood = run.chance("mood").one_of(&[Mood::Mixed, Mood::Mixed, Mood::Flood, Mood::Ebb]);
        Self {
            run,
            engine,
            actors: Vec::new(),
            operator: None,
            now: 0,
            mood,
            is_calm: false,
            turns_in_a_row: 0,
            steps: 0,
        }
    }

    /// Returns the random numbers for one purpose in this step.
    pub fn chance(&self, purpose: &str) -> Random {
        Random::of(self.run.seed, purpose, &[self.run.life, self.steps])
    }

    pub const fn clock(&self) -> Now {
        Now::from_ms(self.now)
    }

    /// Takes this many steps, with random actions of the clients.
    pub fn run(&mut self, steps: u64) -> Result<(), Ended> {
        (0..steps).try_for_each(|_| self.step())
    }

    // ---- connections

    /// Connects a new client.
    pub fn connect(&mut self) {
        let plan = &self.run.plan;
        let (latency_ms, trouble, heartbeat_s) =
            (plan.latency_ms, plan.link_trouble_one_in, plan.heartbeat_s);
        let number = self.run.next_connection;
        let random = &mut Random::of(self.run.seed, "connection", &[number]);
        let at = usize::from(random.once_in(3));
        let shape = match random.below(4) {
            _ if self.is_calm => Shape::WIDE,
            0 => Shape { up_fragment: 7, up_room: 9_000, down_fragment: 300, down_room: 6_000 },
            1 => Shape { up_fragment: 1_460, up_room: 20_000, down_fragment: 1_460, down_room: 9_000 },
            _ => Shape { up_room: 200_000, down_room: 200_000, ..Shape::WIDE },
        };
        let mut line = Line::new(shape);
        if !self.is_calm && trouble > 0 && random.once_in(trouble) {
            let cut = Some(random.below(20_000));
            (line.cut_up, line.cut_down) = if random.once_in(2) { (cut, None) } else { (None, cut) };
        }
        let line = Rc::new(RefCell::new(line));
        let manners = Manners {
            heartbeat_s,
            user: USERS[at],
            vhost: VHOSTS[at],
            greed: if random.once_in(4) { 1_000 } else { usize::MAX },
            sends_first: random.once_in(8),
            ..Manners::default()
        };
        self.run.next_connection += 1;
        self.run.counts.connections += 1;
        let [.., b, c] = number.to_be_bytes();
        self.engine.platform_mut().arrive(&line, SocketAddr::from(([127, 0, b, c], 7)));
        let link = Link { latency_ms, ..Link::default() };
        let mut actor = Actor::new(number, VHOSTS[at], Client::new(manners), line, link);
        actor.act_at = self.now;
        self.actors.push(actor);
    }

    /// Applies a random fault to a connection.
    fn trouble_links(&mut self) {
        let one_in = self.run.plan.link_trouble_one_in;
        let random = &mut self.chance("link");
        if one_in == 0 || self.is_calm || self.actors.is_empty() || !random.once_in(one_in * 10) {
            return;
        }
        let at = random.below(self.actors.len() as u64) as usize;
        let (what, long) = (random.below(6), self.now + random.below(8_000));
        let actor = &mut self.actors[at];
        match what {
            // One direction stalls for some time.
            0 | 1 => actor.link.up_at = long,
            2 | 3 => actor.link.down_at = long,
            // Reset.
            4 => {
                actor.vanish(&mut self.run.ledger);
                actor.line.borrow_mut().lose();
            }
            // Half open: the client is gone, and the broker is not told.
            _ => actor.vanish(&mut self.run.ledger),
        }
    }

    /// Delivers all data that is due. Returns whether anything moved.
    fn exchange(&mut self) -> bool {
        let mut moved = false;
        let (now, clock) = (self.now, self.clock());
        for actor in &mut self.actors {
            let random = &mut Random::of(self.run.seed, "latency", &[actor.number, self.steps]);
            if actor.link.up_at <= now {
                let has_moved = actor.line.borrow_mut().arrive();
                if has_moved && actor.link.latency_ms > 0 {
                    actor.link.up_at = now + random.below(actor.link.latency_ms);
                }
                moved |= has_moved;
            }
            if actor.link.down_at <= now {
                let has_moved = actor.step(&mut self.run.ledger, clock);
                if has_moved && actor.link.latency_ms > 0 {
                    actor.link.down_at = now + random.below(actor.link.latency_ms);
                }
                moved |= has_moved;
            }
            actor.line.borrow_mut().offer_space();
        }
        if let Some(operator) = &mut self.operator {
            moved |= operator.step(&mut self.run.ledger);
        }
        moved
    }

    // ---- turns

    /// Lets the engine take a turn if a socket was reported, if it has work, or if a deadline is due.
    fn turn(&mut self) -> Result<bool, Ended> {
        self.engine.set_now(self.clock());
        let is_woken = Memory::report(&mut self.engine);
        let is_due = self.engine.sleep_deadline().is_none_or(|deadline| deadline.is_due(self.clock()));
        if !is_woken && !is_due {
            self.turns_in_a_row = 0;
            return Ok(false);
        }
        self.turns_in_a_row += 1;
        if self.turns_in_a_row > TURNS_MAX {
            self.run.ledger.complain(format!("the engine never sleeps: {:?}", self.engine));
            return Err(Ended::Complaint);
        }
        self.take_turn()?;
        Ok(true)
    }

    fn take_turn(&mut self) -> Result<(), Ended> {
        let outcome = self.engine.turn();
        self.run.ledger.lacks_deaths |= self.engine.broker().counters().headers_shortened > 0;
        if self.run.disk.is_off() || outcome.is_err() {
            return Err(Ended::Disk);
        }
        for actor in &mut self.actors {
            actor.note_turn(&mut self.run.ledger);
        }
        self.check_bounds();
        self.check()
    }

    /// Checks after each turn that every pool is within its limit.
    fn check_bounds(&mut self) {
        let (limits, gauges, messages) =
            (&self.run.plan.limits, self.engine.broker().gauges(), self.engine.messages());
        let is_within = messages.messages_used() <= limits.messages_max as usize
            && messages.body_bytes_used() as u64 <= limits.body_bytes_max
            && gauges.connections <= limits.connections_max as usize
            && gauges.channels <= limits.channels_max as usize
            && gauges.consumers <= limits.consumers_max as usize
            && gauges.queues <= limits.queues_max as usize
            && gauges.deliveries <= limits.unacknowledged_max as usize;
        if !is_within {
            self.run.ledger.complain(format!("a pool is larger than its limit: {gauges:?}"));
        }
        let stuck = self.engine.store().map_or(0, |store| store.log().unreadable_segments());
        if stuck > 0 && !self.run.is_damaged && !self.run.disk.has_failed_read() {
            self.run
                .ledger
                .complain(format!("{stuck} segments are never deleted, although all of them can be read"));
        }
    }

    pub fn check(&self) -> Result<(), Ended> {
        if self.run.ledger.complaints.is_empty() { Ok(()) } else { Err(Ended::Complaint) }
    }

    pub fn step(&mut self) -> Result<(), Ended> {
        self.steps += 1;
        let random = &mut self.chance("clock");
        self.trouble_links();
        if !self.is_calm {
            self.act();
            self.operate();
            self.police();
            self.stride();
            self.pause();
        }
        let moved = self.exchange();
        self.check()?;
        let turned = self.turn()?;
        self.actors.retain(|actor| !actor.is_over());
        if moved || turned {
            self.now += u64::from(random.once_in(3));
            return Ok(());
        }
        if self.is_at_rest() && !self.may_commit_soon() && (self.is_calm || random.once_in(4)) {
            self.look_for_sleepers()?;
        }
        self.jump(random);
        Ok(())
    }

    /// Skips offsets so that they approach or pass a power of two at which integers may overflow.
    fn stride(&mut self) {
        let random = &mut self.chance("stride");
        if self.run.plan.has_strides && random.once_in(60) {
            let width: u64 = random.one_of(&[16, 29, 29, 31, 32]);
            let count = (1 << width) - random.below(20) + random.below(10);
            let (broker, context) = self.engine.broker_mut();
            broker.queues_mut().pass_offsets(context.pending_writes, count);
        }
    }

    /// Pauses the process, with or without its clients: data that arrived is read late.
    fn pause(&mut self) {
        let random = &mut self.chance("pause");
        if self.run.plan.has_pauses && random.once_in(200) {
            self.now += 1_000 + random.below(20_000);
        }
    }

    /// Returns whether nothing is under way, so that nothing can proceed before the next deadline.
    fn is_at_rest(&self) -> bool {
        let is_still = |actor: &Actor| {
            let line = actor.line.borrow();
            !line.has_to_arrive() && (actor.client.unsent() == 0 || actor.leaving != Leaving::No)
        };
        self.actors.iter().all(is_still)
    }

    /// Returns whether a commit is under way or due soon. A request that waits for one may cause it to come
    /// earlier.
    fn may_commit_soon(&self) -> bool {
        let windows = &self.run.plan.settings;
        let window_ms = windows.commit_window_ms.max(windows.confirm_window_ms).max(windows.settle_window_ms);
        let left = self.engine.next_deadline().ms_left(self.clock());
        left.is_some_and(|left| left <= window_ms) || self.engine.platform().helpers.due_ms().is_some()
    }

    /// Checks that no client sleeps which could proceed.
    fn look_for_sleepers(&mut self) -> Result<(), Ended> {
        self.run.counts.rests += 1;
        let before = self.progress();
        // Formatting the whole engine costs more than the run.
        let shown = super::is_traced().then(|| format!("{:?}", self.engine));
        Memory::report_falsely(&mut self.engine);
        for _ in 0..4 {
            self.take_turn()?;
        }
        let after = self.progress();
        if before != after {
            let what = "a client slept which could proceed";
            self.run
                .ledger
                .complain(format!("{what}: {before:?} became {after:?}; the engine was {shown:?}"));
        }
        self.check()
    }

    /// Returns what changes when a client proceeds, by connection: bytes accepted and bytes sent by the
    /// broker.
    fn progress(&self) -> Vec<(u64, usize, u64)> {
        let of = |actor: &Actor| {
            let line = actor.line.borrow();
            (actor.number, line.waiting_up(), line.sent_down())
        };
        self.actors.iter().map(of).collect()
    }

    /// Advances the clock to the next due time.
    fn jump(&mut self, random: &mut Random) {
        let mut next = self.engine.next_deadline();
        if let Some(due_ms) = self.engine.platform_mut().helpers.due_ms() {
            next = next.earlier(Now::from_ms(due_ms).after_ms(0));
        }
        let mut at = next.ms_left(self.clock()).map_or(u64::MAX, |left| self.now + left);
        for actor in &self.actors {
            if !self.is_calm && actor.is_open() {
                at = at.min(actor.act_at);
            }
            let line = actor.line.borrow();
            if line.has_to_arrive() {
                at = at.min(actor.link.up_at);
            }
            if line.unread() > 0 || actor.client.unsent() > 0 {
                at = at.min(actor.link.down_at);
            }
            if let Some(left) = actor.client.next_deadline().ms_left(self.clock()) {
                at = at.min((self.now + left).max(actor.link.down_at));
            }
        }
        if !self.is_calm {
            at = at.min(self.now + 1 + random.below(50));
        }
        self.now = if at == u64::MAX { self.now + 1_000 } else { at.max(self.now + 1) };
    }

    // ---- ends

    /// Takes steps without new requests until all clients have their answers.
    pub fn calm_down(&mut self, what: &str) -> Result<(), Ended> {
        self.is_calm = true;
        for actor in &mut self.actors {
            (actor.link.up_at, actor.link.down_at) = (self.now, self.now);
        }
        let mut since = (self.now, 0);
        for _ in 0..CALM_STEPS {
            self.step()?;
            let delivered = self.run.ledger.delivered;
            let is_quiet = self.actors.iter().all(Actor::is_at_rest)
                && self.operator.as_ref().is_none_or(Operator::is_at_rest)
                && self.engine.platform_mut().helpers.due_ms().is_none();
            if !is_quiet || delivered != since.1 {
                since = (self.now, delivered);
            }
            let is_read =
                self.actors.iter().all(|actor| actor.line.borrow().unread() == 0 || !actor.is_open());
            if self.now > since.0 + CALM_MS && self.is_at_rest() && is_read {
                self.run.ledger.check_contests();
                if self.actors.iter().any(|actor| actor.is_open() && actor.client.checker.is_doomed()) {
                    self.run.ledger.complain("a get has no answer".into());
                }
                return self.check();
            }
        }
        let waiting: Vec<String> =
            self.actors.iter().filter(|actor| !actor.is_at_rest()).map(Actor::shown).collect();
        let room = self.engine.pending_writes().admit(1_000, 1);
        self.run.ledger.complain(format!("{what}: not at rest: {waiting:?}; {room:?}; {:?}", self.engine));
        Err(Ended::Complaint)
    }

    /// Stops the broker cleanly, as the process does.
    pub fn stop(&mut self) {
        self.is_calm = true;
        self.engine.begin_stop("by the simulator");
        let is_stopped = self.try_stop();
        self.run.counts.stops += 1;
        if is_stopped && !self.run.is_full {
            self.run.ledger.stop();
        }
    }

    /// Returns whether the stop wrote everything.
    fn try_stop(&mut self) -> bool {
        while !self.engine.is_stopped() {
            if self.step().is_err() {
                return false;
            }
        }
        let mut goes_on = self.engine.begin_flush();
        let mut flushes = 0;
        for _ in 0..2 {
            while goes_on {
                flushes += 1;
                if flushes > FLUSHES_MAX {
                    self.run.ledger.complain(format!("a clean stop does not end: {:?}", self.engine));
                    return false;
                }
                let deadline = self.engine.flush_deadline().unwrap_or(self.clock().after_ms(0));
                let due = self.engine.platform_mut().helpers.due_ms();
                let due = due.map_or(Deadline::NEVER, |due_ms| Now::from_ms(due_ms).after_ms(0));
                // Each call takes time, so that helpers finish while the loop polls without a pause.
                self.now += deadline.earlier(due).ms_left(self.clock()).unwrap_or(1).max(1);
                self.engine.set_now(self.clock());
                self.engine.platform_mut().helpers.now_ms = self.now;
                match self.engine.flush() {
                    Ok(more) if !self.run.disk.is_off() => goes_on = more,
                    _ => return false,
                }
            }
            goes_on = self.engine.close_store();
        }
        true
    }

    /// Ends the process with all its connections.
    pub fn end(mut self) {
        self.run.ledger.call_witnesses();
        for actor in &mut self.actors {
            actor.vanish(&mut self.run.ledger);
            actor.line.borrow_mut().is_held = false;
            actor.note_turn(&mut self.run.ledger);
        }
        let helpers = &self.engine.platform_mut().helpers;
        self.run.counts.commits += helpers.commits;
        self.run.counts.reads += helpers.reads;
    }
}
